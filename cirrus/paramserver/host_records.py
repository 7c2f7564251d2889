"""What the machines that host shards, and the clients that want them, tell each other through the bucket.

================================  ==================  ==================================================
key                               its one writer      what
================================  ==================  ==================================================
``runs/RUN/hosts/INSTANCE.json``  the instance        :class:`HostStatus`: how far it is with the run
``servers/INSTANCE.json``         the instance        :class:`WarmServer`, only while nobody uses it
``servers/INSTANCE.claim.json``   whoever was first   :class:`ServerClaim` (written if absent)
================================  ==================  ==================================================

An instance whose run has ended stays for a while and says so. A client that wants it writes a claim, which
succeeds for one; the instance sees the claim, takes its record back and serves that run. When its time is
over, the instance writes the claim itself before it shuts down: so a claim that succeeded is always served.
"""

from __future__ import annotations

import dataclasses
import enum
import json
from dataclasses import dataclass
from typing import TypeVar

from cirrus.config import from_plain, parse_json
from cirrus.errors import ConfigError, ConflictError, CorruptDataError, NotFoundError
from cirrus.storage import ObjectStore

T = TypeVar("T")

HOSTS = "hosts/"
SERVERS = "servers/"
_CLAIM_SUFFIX = ".claim.json"


class HostPhase(enum.StrEnum):
    """How far an instance is with a run."""

    INSTALLING = "installing"
    """Its operating system runs; packages are being installed."""
    COMPILING = "compiling"
    """Kernels are compiled for its processor; takes some seconds on a fresh instance."""
    SERVING = "serving"
    """Its shards are being started or work."""
    ENDED = "ended"
    """The run is over; the instance stays warm for a while."""
    INTERRUPTED = "interrupted"
    """The run's client went away: the shards have saved themselves and ended."""
    RECLAIMED = "reclaimed"
    """The cloud takes the instance back: the shards have saved themselves and ended."""
    FAILED = "failed"
    """It could not serve the run; ``error`` says why."""

    @property
    def is_last(self) -> bool:
        """True when no shard of the run works on the instance any more."""
        return self not in (HostPhase.INSTALLING, HostPhase.COMPILING, HostPhase.SERVING)


@dataclass(frozen=True, kw_only=True)
class HostStatus:
    """How far an instance is with a run."""

    instance: str
    """Its id."""
    phase: HostPhase
    shards: tuple[int, ...] = ()
    """Which shards of the run it hosts."""
    at: float = 0.0
    """Unix time at which the phase began."""
    error: str | None = None
    error_type: str | None = None
    """The name of the exception, where there was one: tells what another attempt can heal."""


@dataclass(frozen=True, kw_only=True)
class WarmServer:
    """An instance that waits for its next run."""

    instance: str
    address: str
    """Its private IP address."""
    since: float
    """Unix time at which it became free."""
    until: float
    """Unix time at which it shuts down if nobody has claimed it."""
    shards: int
    """How many shards it hosted: what it is known to have room for."""
    instance_type: str


@dataclass(frozen=True, kw_only=True)
class ServerClaim:
    """Who uses a warm instance next."""

    run: str | None
    """A run id; None: the instance itself, which shuts down."""
    shards: tuple[int, ...] = ()
    """Which shards of that run it shall host."""


class HostReports:
    """The reports of the instances in one run's folder.

    Args:
        folder: The store of the run folder.
    """

    def __init__(self, folder: ObjectStore) -> None:
        self._store = folder

    def write(self, status: HostStatus) -> None:
        """Replace an instance's report."""
        self._store.put(f"{HOSTS}{status.instance}.json", _to_json(status))

    def read(self, instance: str) -> HostStatus | None:
        """Return an instance's report, or None before its first.

        Raises:
            CorruptDataError: It is no report.
        """
        return _read(self._store, f"{HOSTS}{instance}.json", HostStatus)

    def all(self) -> list[HostStatus]:
        """Return the reports of all instances that ever worked for the run."""
        names = [key.removeprefix(HOSTS).removesuffix(".json") for key in self._store.list(HOSTS)]
        return [status for name in names if (status := self.read(name)) is not None]


class WarmServers:
    """The instances that wait for a run, and the claims on them.

    Args:
        root: The store that ``runs/`` lies in too.
    """

    def __init__(self, root: ObjectStore) -> None:
        self._store = root

    def all(self) -> list[WarmServer]:
        """Return the instances that say they are free; some may have been claimed or ended since."""
        found = []
        for key in self._store.list(SERVERS):
            if not key.endswith(_CLAIM_SUFFIX):
                server = _read(self._store, key, WarmServer)
                if server is not None:
                    found.append(server)
        return found

    def claim(self, instance: str, claim: ServerClaim) -> bool:
        """Claim an instance; return False when somebody else was faster."""
        try:
            self._store.put(_claim_key(instance), _to_json(claim), if_absent=True)
        except ConflictError:
            return False
        return True

    def claim_of(self, instance: str) -> ServerClaim | None:
        """Return who has claimed an instance.

        Raises:
            CorruptDataError: The claim cannot be read.
        """
        return _read(self._store, _claim_key(instance), ServerClaim)

    def offer(self, server: WarmServer) -> None:
        """Say that an instance is free; what it was claimed for before is forgotten."""
        self._store.delete(_claim_key(server.instance))
        self._store.put(_record_key(server.instance), _to_json(server))

    def withdraw(self, instance: str) -> None:
        """Take back the offer of an instance, whose claim stays until the next offer."""
        self._store.delete(_record_key(instance))

    def forget(self, instance: str) -> None:
        """Remove everything about an instance that is gone."""
        self._store.delete(_record_key(instance))
        self._store.delete(_claim_key(instance))


def parse_shards(text: str) -> tuple[int, ...]:
    """Return the shards that a tag such as ``0-3`` or ``0,2-3`` names, ascending.

    Raises:
        ConfigError: It names none, or is written otherwise.
    """
    shards: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        ends = (first, last if dash else first)
        if not all(end.isdecimal() and len(end) <= _SHARD_DIGITS for end in ends):
            raise ConfigError("shards", f"{text!r} names no shards; write 0-3 or 0,2-3")
        shards.update(range(int(ends[0]), int(ends[1]) + 1))
    if not shards:
        raise ConfigError("shards", f"{text!r} names no shards; write 0-3 or 0,2-3")
    return tuple(sorted(shards))


#: So that no tag makes a range that fills the memory.
_SHARD_DIGITS = 4


def format_shards(shards: tuple[int, ...]) -> str:
    """Return the text for some shards that :func:`parse_shards` reads."""
    runs: list[list[int]] = []
    for shard in sorted(shards):
        if runs and shard == runs[-1][1] + 1:
            runs[-1][1] = shard
        else:
            runs.append([shard, shard])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _record_key(instance: str) -> str:
    return f"{SERVERS}{instance}.json"


def _claim_key(instance: str) -> str:
    return f"{SERVERS}{instance}{_CLAIM_SUFFIX}"


def _to_json(record: HostStatus | WarmServer | ServerClaim) -> bytes:
    return json.dumps(dataclasses.asdict(record)).encode()


def _read(store: ObjectStore, key: str, kind: type[T]) -> T | None:
    try:
        return from_plain(kind, parse_json(store.get(key)), key)
    except NotFoundError:
        return None
    except (ValueError, ConfigError) as error:
        raise CorruptDataError(f"{store.url}/{key}: {error}") from error
