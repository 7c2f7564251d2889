"""The run folder: the one control plane of a run, on every backend.

===========================  =========================  ==============================================
key                          its one writer             what
===========================  =========================  ==============================================
``config.json``              the client that creates    the frozen :class:`~cirrus.config.RunConfig`
``token``                    the client that creates    the run's secret, readable by its owner alone
``tls/``                     the client that creates    of runs with TLS: ``ca.pem``, and ``shard-K.pem`` with
                                                        its key, readable by its owner alone
``client.json``              whoever holds the claim    who supervises the run (conditional writes)
``shards/K.json``            shard K                    address and generation (conditional writes)
``status.json``              shard 0 (else its client)  :class:`~cirrus.metrics.RunStatus`
``metrics/N.jsonl``          shard 0                    :class:`~cirrus.metrics.MetricPoint` lines
``events/N.jsonl``           shard 0                    :class:`~cirrus.metrics.RunEvent` lines
``note.txt``                 whoever wrote last         what people want to remember of the run
``control/ID.json``          a client, one object each  a request; shard 0 deletes it when it is carried out
``snapshots/K/N/``           shard K                    recovery snapshots, manifest last
``checkpoints/NAME/``        all shards, manifest by 0  the same moment on all shards
``model/``                   all shards, manifest by 0  the final model, a checkpoint like the others
``logs/``                    each shard and worker      its standard error, where all this is a folder
===========================  =========================  ==============================================
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass

from cirrus.config import RunConfig, from_plain, parse_json
from cirrus.errors import ConfigError, ConflictError, CorruptDataError, NotFoundError, SupersededError
from cirrus.metrics import MetricPoint, RunEvent, RunStatus
from cirrus.storage import ObjectStore, open_store

log = logging.getLogger(__name__)

#: A metrics object is rewritten as it grows to this size; then the next one begins.
METRICS_SEGMENT_BYTES = 64 * 1024
#: A supervisor whose claim has not changed for this long, while somebody watched, is taken for dead.
CLAIM_SECONDS = 10.0
TOKEN_BYTES = 32
_TOKEN = re.compile(rf"[0-9a-f]{{{2 * TOKEN_BYTES}}}")
#: Longest note on a run; four bytes each at most.
MAX_NOTE_CHARACTERS = 2_000


@dataclass(frozen=True, kw_only=True)
class ShardAddress:
    """Where a shard listens, and which incarnation of it that is."""

    shard: int
    generation: int
    host: str
    port: int
    pid: int = 0


@dataclass(frozen=True, kw_only=True, repr=False)
class Certificates:
    """What a run's shards are recognised by, as PEM."""

    authority: bytes
    shards: tuple[bytes, ...]
    """Certificate and key of each."""


@dataclass(frozen=True, kw_only=True)
class ClientClaim:
    """Who supervises the run."""

    client_id: str
    host: str
    pid: int
    renewed_at: float
    """Unix time."""
    released: bool = False
    """True once the supervisor ended in order."""
    number: int = 1
    """Which supervisor of the run this is, from 1 on."""


@dataclass(frozen=True, kw_only=True)
class ControlRequest:
    """What a client asks shard 0 to do."""

    action: str
    """``stop`` (finish now, keep the model), ``kill``, ``snapshot`` (cut a checkpoint) or ``fail``."""
    reason: str = ""


class RunFolder:
    """Typed access to the objects of one run.

    Args:
        url: The run folder itself, such as ``/home/ada/.cirrus/runs/20261123-101500-ab12``.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.store: ObjectStore = open_store(url)

    @property
    def is_remote(self) -> bool:
        """True where a look at the folder is a request that takes time and costs money."""
        return "://" in self.url and not self.url.startswith(("memory:", "file:"))

    @property
    def model_url(self) -> str:
        """Where the final model goes."""
        return f"{self.url}/model"

    def checkpoints_url(self, config: RunConfig) -> str:
        """Return the folder that the run's checkpoints go to."""
        return config.checkpoint_url or f"{self.url}/checkpoints"

    # The client that creates the run.

    def create(self, config: RunConfig, certificates: Certificates | None = None) -> str:
        """Write the config and a fresh token; return the token.

        Args:
            config: The run.
            certificates: Where it has TLS.

        Raises:
            ConflictError: There is a run of this id.
        """
        token = secrets.token_hex(TOKEN_BYTES)
        self.store.put("config.json", config.to_json(), if_absent=True)
        self.store.put("token", token.encode(), private=True)
        if certificates is not None:
            self.store.put("tls/ca.pem", certificates.authority)
            for shard, pem in enumerate(certificates.shards):
                self.store.put(f"tls/shard-{shard}.pem", pem, private=True)
        return token

    def config(self) -> RunConfig:
        """Read the run's config."""
        return RunConfig.from_json(self.store.get("config.json"))

    def token(self) -> str:
        """Read the run's secret.

        Raises:
            CorruptDataError: It is not what :meth:`create` wrote; one that was cut short would be easy to
                guess.
            StorageError: Others may read it.
        """
        token = self.store.get_secret("token").decode("ascii", "replace")
        if not _TOKEN.fullmatch(token):
            raise CorruptDataError(
                f"{self.store.url}/token: is not the {2 * TOKEN_BYTES} hexadecimal digits of a run's secret: "
                "it was changed or cut short; start the run again"
            )
        return token

    def certificate_authority(self) -> bytes:
        """Read the certificate of whom the run's shards are to be recognised by, as PEM."""
        return self.store.get("tls/ca.pem")

    def shard_certificate(self, shard: int) -> bytes:
        """Read a shard's certificate and key, as PEM.

        Raises:
            StorageError: Others may read it.
        """
        return self.store.get_secret(f"tls/shard-{shard}.pem")

    def remove(self) -> None:
        """Delete all that the folder holds."""
        parent, _, name = self.url.rstrip("/").rpartition("/")
        open_store(parent).delete_prefix(name)

    # Supervision.

    def claim(self, claim: ClientClaim, *, dead: ClientClaim | None = None) -> None:
        """Become the supervisor, or renew the claim.

        No clock is asked: whoever has not released the claim holds it, unless the caller knows better.

        Args:
            claim: Who wants it.
            dead: The claim of a client that is dead; if it has changed since, it was not.

        Raises:
            ConflictError: Another client holds the claim, or was faster.
        """
        data = json.dumps(dataclasses.asdict(claim)).encode()
        try:
            raw, etag = self.store.get_versioned("client.json")
        except NotFoundError:
            self._put_claim(data, if_absent=True)
            return
        held = from_plain(ClientClaim, _parse(raw, "client.json"), "client.json")
        if held.client_id != claim.client_id and not held.released and held != dead:
            raise ConflictError(self._held_by(held))
        self._put_claim(data, if_match=etag)

    def _put_claim(self, data: bytes, *, if_match: str | None = None, if_absent: bool = False) -> None:
        try:
            self.store.put("client.json", data, if_match=if_match, if_absent=if_absent)
        except ConflictError as error:
            holder = self.claim_holder()
            raise ConflictError(str(error) if holder is None else self._held_by(holder)) from error

    def _held_by(self, holder: ClientClaim) -> str:
        return f"{self.url} is supervised by process {holder.pid} on {holder.host}"

    def claim_holder(self) -> ClientClaim | None:
        """Return who supervises the run, or None if nobody ever did."""
        try:
            return from_plain(
                ClientClaim, _parse(self.store.get("client.json"), "client.json"), "client.json"
            )
        except NotFoundError:
            return None

    # Shards.

    def shard_address(self, shard: int) -> ShardAddress | None:
        """Return where a shard was last seen, or None before its first start."""
        key = f"shards/{shard}.json"
        try:
            return from_plain(ShardAddress, _parse(self.store.get(key), key), key)
        except NotFoundError:
            return None

    def announce_shard(self, address: ShardAddress) -> None:
        """Write a shard's address, unless a newer generation has written its own.

        Raises:
            SupersededError: This shard belongs to an older generation than the one in the folder.
        """
        key = f"shards/{address.shard}.json"
        data = json.dumps(dataclasses.asdict(address)).encode()
        while True:
            try:
                raw, etag = self.store.get_versioned(key)
            except NotFoundError:
                try:
                    self.store.put(key, data, if_absent=True)
                except ConflictError:
                    continue
                return
            held = from_plain(ShardAddress, _parse(raw, key), key)
            if held.generation >= address.generation:
                raise SupersededError(
                    f"shard {address.shard} generation {address.generation} was replaced by {held.generation}"
                )
            try:
                self.store.put(key, data, if_match=etag)
            except ConflictError:
                continue
            return

    # What shard 0 writes.

    def write_status(self, status: RunStatus) -> None:
        """Replace the run's status."""
        self.store.put("status.json", json.dumps(dataclasses.asdict(status)).encode())

    def status(self) -> RunStatus | None:
        """Return the run's status, or None before its coordinator first wrote one."""
        try:
            raw = _parse(self.store.get("status.json"), "status.json")
        except NotFoundError:
            return None
        return from_plain(RunStatus, raw, "status.json")

    # What people write.

    def note(self) -> str:
        """Return the note on the run; empty if there is none."""
        try:
            return self.store.get("note.txt")[: 4 * MAX_NOTE_CHARACTERS].decode(errors="replace")
        except NotFoundError:
            return ""

    def write_note(self, text: str) -> None:
        """Replace the note on the run.

        Raises:
            ConfigError: It is too long.
        """
        if len(text) > MAX_NOTE_CHARACTERS:
            raise ConfigError("note", f"has {len(text)} characters, more than {MAX_NOTE_CHARACTERS}")
        self.store.put("note.txt", text.encode())

    # Control.

    def request(self, request: ControlRequest) -> str:
        """Leave a request for shard 0; return its key, which disappears when it has been carried out."""
        key = f"control/{time.time_ns():020d}-{secrets.token_hex(4)}.json"
        self.store.put(key, json.dumps(dataclasses.asdict(request)).encode(), if_absent=True)
        return key

    def requests(self) -> list[tuple[str, ControlRequest]]:
        """Return the requests that are waiting, oldest first, with their keys."""
        found = []
        for key in self.store.list("control/"):
            try:
                found.append((key, from_plain(ControlRequest, _parse(self.store.get(key), key), key)))
            except NotFoundError:
                continue
            except (ConfigError, CorruptDataError) as error:
                # A stray file, or a client of another version: no reason to end a run.
                log.warning("%s: is no control request: %s", key, error)
                self.store.delete(key)
        return found

    def finish_request(self, key: str) -> None:
        """Say that a request has been carried out."""
        self.store.delete(key)


class _LinesWriter:
    """Appends JSON lines to the objects of one prefix; the owner is shard 0.

    Object stores cannot append, so the newest segment is written whole each time until it is full.
    """

    def __init__(self, folder: RunFolder, prefix: str) -> None:
        self._store = folder.store
        self._prefix = prefix
        self._number = len(self._store.list(prefix))
        self._lines: list[bytes] = []
        self._size = 0
        self._dirty = False

    def _append(self, record: MetricPoint | RunEvent) -> None:
        line = json.dumps(dataclasses.asdict(record)).encode() + b"\n"
        self._lines.append(line)
        self._size += len(line)
        self._dirty = True

    def flush(self) -> None:
        """Write what has been appended since the last flush."""
        if not self._dirty:
            return
        self._store.put(f"{self._prefix}{self._number:08d}.jsonl", b"".join(self._lines))
        self._dirty = False
        if self._size >= METRICS_SEGMENT_BYTES:
            self._number += 1
            self._lines.clear()
            self._size = 0


class MetricsWriter(_LinesWriter):
    """Appends points to a run's metrics."""

    def __init__(self, folder: RunFolder) -> None:
        super().__init__(folder, "metrics/")

    def append(self, point: MetricPoint) -> None:
        """Add a point; :meth:`flush` makes it visible."""
        self._append(point)


class EventsWriter(_LinesWriter):
    """Appends to what happened in a run."""

    def __init__(self, folder: RunFolder) -> None:
        super().__init__(folder, "events/")

    def append(self, event: RunEvent) -> None:
        """Add an event; :meth:`flush` makes it visible."""
        self._append(event)


def read_events(folder: RunFolder) -> list[RunEvent]:
    """Return what happened in a run, oldest first.

    Raises:
        CorruptDataError: A line is not JSON.
        ConfigError: A line is no event.
    """
    found = []
    for key in sorted(folder.store.list("events/")):
        lines = folder.store.get(key).splitlines()
        found += [from_plain(RunEvent, _parse(line, key), key) for line in lines]
    return found


@dataclass(frozen=True, kw_only=True)
class MetricsCursor:
    """How far somebody has read a run's metrics."""

    segment: int = 0
    size: int = 0
    """Bytes of that segment that were read."""


class MetricsReader:
    """Reads a run's metrics, each call the points that are new.

    Args:
        folder: The run.
        cursor: Where to go on; None: at the beginning.
    """

    def __init__(self, folder: RunFolder, cursor: MetricsCursor | None = None) -> None:
        self._store = folder.store
        cursor = cursor or MetricsCursor()
        self._segment = cursor.segment
        self._size_read = cursor.size

    @property
    def cursor(self) -> MetricsCursor:
        """Where another reader would go on."""
        return MetricsCursor(segment=self._segment, size=self._size_read)

    def read(self) -> list[MetricPoint]:
        """Return the points written since the last call.

        Raises:
            CorruptDataError: A line is not JSON.
            ConfigError: A line is no point.
        """
        return [point for key, lines in self.read_lines() for point in parse_points(lines, key)]

    def read_lines(self) -> Iterator[tuple[str, bytes]]:
        """Yield the lines written since the last call: the key of their object, and whole lines of it."""
        held = self._get(self._segment)
        while held is not None:
            yield from self._unread(held)
            # A segment that is full is written no more. (One of a shard that died need not be full.)
            if len(held) < METRICS_SEGMENT_BYTES and not self._store.exists(_segment_key(self._segment + 1)):
                return
            following = self._get(self._segment + 1)
            if following is None:
                return
            if len(held) < METRICS_SEGMENT_BYTES:
                # It may have grown before the next one began.
                yield from self._unread(self._get(self._segment) or b"")
            self._segment += 1
            self._size_read = 0
            held = following

    def _get(self, segment: int) -> bytes | None:
        try:
            return self._store.get(_segment_key(segment))
        except NotFoundError:
            return None

    def _unread(self, data: bytes) -> Iterator[tuple[str, bytes]]:
        if len(data) > self._size_read:
            lines = data[self._size_read :]
            self._size_read = len(data)
            yield _segment_key(self._segment), lines


def _segment_key(segment: int) -> str:
    return f"metrics/{segment:08d}.jsonl"


def parse_points(lines: bytes, key: str) -> list[MetricPoint]:
    """Return the points in lines of a run's metrics.

    Args:
        lines: Whole lines.
        key: The object that they come from, for errors.

    Raises:
        CorruptDataError: A line is not JSON.
        ConfigError: A line is no point.
    """
    return [from_plain(MetricPoint, _parse(line, key), key) for line in lines.splitlines()]


def _parse(raw: bytes, key: str) -> object:
    try:
        parsed: object = parse_json(raw)
    except ValueError as error:
        raise CorruptDataError(f"{key} is not JSON: {error}") from error
    return parsed
