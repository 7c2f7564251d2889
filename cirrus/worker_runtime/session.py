"""A worker's dealings with run folder and shards: finding them, registering, coming back after a loss."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from cirrus.chunks import Manifest, read_manifest
from cirrus.config import RunConfig, TableConfig
from cirrus.errors import (
    AuthenticationError,
    ConnectionLostError,
    DataError,
    LimitError,
    RegistrationError,
    RunError,
    SupersededError,
)
from cirrus.models import Model, create_model
from cirrus.paramserver.client import Channel, ParameterClient
from cirrus.paramserver.protocol import Register
from cirrus.run_folder import RunFolder, ShardAddress
from cirrus.storage import ObjectStore, open_store

if TYPE_CHECKING:
    import ssl

T = TypeVar("T")

#: A worker gives up after it has not reached the shards for this long.
RECONNECT_SECONDS = 60.0
#: Where a shard was, somebody else may listen before its successor says where it is. Whoever has not the
#: run's token for longer than this never will. Not so on machines that runs share, where a successor may
#: wait for a new machine: there a worker ends as one that reaches nobody, and is invoked again.
STRANGER_SECONDS = 10.0
#: Between attempts to reach the shards; each is twice the one before, up to the longest.
FIRST_WAIT_SECONDS = 0.01
LONGEST_REMOTE_WAIT_SECONDS = 0.5
#: In a folder, where looking costs little: one worker must not begin a good part of an epoch before another.
LONGEST_WAIT_SECONDS = 0.05
#: A worker that was registered and lost its connection may be told that it still is, until shard 0 notices.
REREGISTER_SECONDS = 10.0


class RunOverError(RunError):
    """The run ended: there is nothing left to do."""


class DeadlineError(RunError):
    """This generation's time is over."""


@dataclass(frozen=True)
class Identity:
    """Who a worker is."""

    worker_id: int
    generation: int
    role: str


class Clock:
    """When this generation has to stop.

    Args:
        remaining_seconds: Tells how much time is left; None: as much as it takes.
    """

    def __init__(self, remaining_seconds: Callable[[], float] | None) -> None:
        now = time.monotonic()
        left = None if remaining_seconds is None else remaining_seconds()
        margin = 0.0 if left is None else min(2.0, 0.1 * left)
        self._stop_at = None if left is None else now + left - margin
        self.started_at = now

    @property
    def is_over(self) -> bool:
        """True when the worker should finish its step and go."""
        return self._stop_at is not None and time.monotonic() >= self._stop_at

    @property
    def seconds(self) -> float:
        """How long this generation has worked."""
        return time.monotonic() - self.started_at


class Session:
    """What a worker holds for its whole generation.

    Args:
        run_url: The run folder.
        identity: Who the worker is.
        clock: When it has to stop.
    """

    def __init__(self, run_url: str, identity: Identity, clock: Clock) -> None:
        self.folder = RunFolder(run_url)
        self.config: RunConfig = self.folder.config()
        self.identity = identity
        self.clock = clock
        self.model: Model = create_model(self.config.model)
        self.stopping = threading.Event()
        """Set when the worker ends: threads of it end too."""
        self._token = self.folder.token()
        self._tls = _tls_of(self.folder) if self.config.tls else None
        self._tables = {table.name: i for i, table in enumerate(self.config.tables)}
        self._was_registered = False

    def open_dataset(self, url: str, fingerprint: str | None = None) -> tuple[ObjectStore, Manifest]:
        """Open a dataset.

        Raises:
            DataError: It is not the one with this fingerprint.
        """
        store = open_store(url)
        manifest = read_manifest(store)
        if fingerprint is not None and manifest.fingerprint != fingerprint:
            raise DataError(f"{url}: was replaced since the run began; start a new run on it")
        return store, manifest

    def table(self, name: str) -> tuple[int, TableConfig]:
        """Return a table's number on the wire, and its config."""
        number = self._tables[name]
        return number, self.config.tables[number]

    def connect(self) -> ParameterClient:
        """Connect to all shards, waiting for those that are being started.

        Raises:
            ConnectionLostError: They did not come in time.
            RunOverError: The run ended meanwhile.
        """

        def attempt() -> ParameterClient:
            return ParameterClient(
                self._addresses(),
                self._token,
                self.config.tables,
                float16=self.config.wire_dtype == "float16",
                compression=self.config.compression,
                tls=self._tls,
            )

        return self._keep_trying(attempt)

    def register(self) -> Channel:
        """Connect to shard 0 and report for work; the connection is the proof that this worker lives.

        Raises:
            RegistrationError: A worker of this id is at work.
        """
        first_refused: float | None = None

        def attempt() -> Channel:
            nonlocal first_refused
            address = self.folder.shard_address(0)
            if address is None:
                raise ConnectionLostError("shard 0 has not announced an address")
            channel = Channel(address, self._token, tls=self._tls)
            register = Register(
                worker=self.identity.worker_id,
                generation=self.identity.generation,
                role=self.identity.role,
                seconds=self.clock.seconds,
            )
            try:
                channel.call(register)
            except RegistrationError as error:
                channel.close()
                now = time.monotonic()
                first_refused = first_refused or now
                if self._was_registered and now - first_refused < REREGISTER_SECONDS:
                    raise ConnectionLostError(str(error)) from error
                raise
            except BaseException:
                channel.close()
                raise
            return channel

        channel = self._keep_trying(attempt)
        self._was_registered = True
        return channel

    def _addresses(self) -> list[ShardAddress]:
        addresses = []
        for shard in range(self.config.n_shards):
            address = self.folder.shard_address(shard)
            if address is None:
                raise ConnectionLostError(f"shard {shard} has not announced an address")
            addresses.append(address)
        return addresses

    def _keep_trying(self, attempt: Callable[[], T]) -> T:
        give_up_at = time.monotonic() + RECONNECT_SECONDS
        stranger_since: float | None = None
        wait_seconds = FIRST_WAIT_SECONDS
        longest = LONGEST_REMOTE_WAIT_SECONDS if self.folder.is_remote else LONGEST_WAIT_SECONDS
        while True:
            try:
                return attempt()
            except (ConnectionLostError, SupersededError, LimitError, AuthenticationError) as error:
                self.check_run()
                if isinstance(error, AuthenticationError) and not self.folder.is_remote:
                    stranger_since = stranger_since or time.monotonic()
                    if time.monotonic() - stranger_since > STRANGER_SECONDS:
                        raise
                if time.monotonic() > give_up_at:
                    raise ConnectionLostError(
                        f"gave up after {RECONNECT_SECONDS:.0f} seconds: {error}"
                    ) from error
            jitter = random.uniform(0.5, 1.0)  # spreads retries  # nosec B311
            if self.stopping.wait(wait_seconds * jitter):
                raise RunOverError("the worker was told to stop")
            wait_seconds = min(2 * wait_seconds, longest)

    def check_run(self) -> None:
        """Look into the run folder whether there is anything left to do.

        Raises:
            RunOverError: The run ended.
            DeadlineError: This generation's time is over.
        """
        status = self.folder.status()
        if status is not None and status.state.ended:
            raise RunOverError(f"the run is {status.state}")
        if self.clock.is_over:
            raise DeadlineError("the deadline came")


def _tls_of(folder: RunFolder) -> ssl.SSLContext:
    # Not every run has TLS, and its module takes time to import.
    from cirrus.paramserver.tls import worker_context

    return worker_context(folder)
