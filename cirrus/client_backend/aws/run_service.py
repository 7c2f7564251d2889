"""Keeps some shards of one run alive on this machine, as long as the run and its client want that."""

from __future__ import annotations

import logging
import random
import threading

from cirrus.client_backend.claims import SignsOfLife
from cirrus.client_backend.fleet import AttemptError
from cirrus.client_backend.local import LocalCommands, LocalLauncher
from cirrus.client_backend.retries import RetryBudget, RetryPolicy
from cirrus.errors import CirrusError, ConfigError
from cirrus.metrics import RunState
from cirrus.paramserver.host_records import HostPhase
from cirrus.run_folder import RunFolder

log = logging.getLogger(__name__)

#: Shards may write their last snapshot for so long. Of a spot instance's two minutes this leaves some.
SNAPSHOT_SECONDS = 75.0
#: A shard that crashes this often in a row without progress of the run fails the run.
SHARD_RETRIES = RetryPolicy(failures=6, base_seconds=0.1, cap_seconds=2.0)


class RunService:
    """Keeps some shards of one run alive on this machine.

    Args:
        folder: The run's folder.
        shards: Which shards.
        commands: How a shard process is started.
        client_lost_seconds: The client is taken for lost when its sign of life has not changed for so long.

    Raises:
        ConfigError: The run has no such shards.
        NotFoundError: There is no such run.
        StorageError: The folder cannot be read.
    """

    def __init__(
        self,
        folder: RunFolder,
        shards: tuple[int, ...],
        commands: LocalCommands,
        *,
        client_lost_seconds: float,
    ) -> None:
        n_shards = folder.config().n_shards
        if not shards or not set(shards) <= set(range(n_shards)):
            raise ConfigError("shards", f"the run has shards 0 to {n_shards - 1}, not {list(shards)}")
        self._folder = folder
        self._client_lost_seconds = client_lost_seconds
        self._launcher = LocalLauncher(folder.url, commands)
        self._rng = random.Random()  # spreads retries  # nosec B311
        self._ending = threading.Event()
        self._failure_lock = threading.Lock()
        self.failure: CirrusError | None = None
        """Why the run cannot be served, if so."""
        self.client_lost = False
        """True when the client has given no sign of life for too long."""
        self._client = SignsOfLife()
        self._threads = [
            threading.Thread(target=self._keep, args=(shard,), name=f"shard-{shard}", daemon=True)
            for shard in shards
        ]

    def start(self) -> None:
        """Start the shards, unless the run is over."""
        if self._is_over():
            return
        for thread in self._threads:
            thread.start()

    def look(self) -> HostPhase | None:
        """Return how the service has ended, or must end now; None while it goes on."""
        if self.failure is not None:
            return HostPhase.FAILED
        if not any(thread.is_alive() for thread in self._threads):
            return HostPhase.ENDED if self._is_over() else HostPhase.INTERRUPTED
        try:
            claim = self._folder.claim_holder()
        except CirrusError as error:
            # A store that fails for a moment says nothing about the client.
            log.warning("the client's claim cannot be read: %s", error)
            return None
        self._client.take(claim)
        if claim is not None and claim.released and not self._is_over():
            return HostPhase.INTERRUPTED
        if self._client.silent_seconds > self._client_lost_seconds:
            self.client_lost = True
            return HostPhase.INTERRUPTED
        return None

    def end(self) -> None:
        """End the shards, which write a last snapshot first; may be called again."""
        self._ending.set()
        self._launcher.shards.close(SNAPSHOT_SECONDS)
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def _keep(self, shard: int) -> None:
        """Keep one shard alive until it ends in order."""
        budget = RetryBudget(SHARD_RETRIES, self._progress, self._rng)
        while not self._ending.is_set():
            try:
                address = self._folder.shard_address(shard)
                self._launcher.run_shard(shard, 1 if address is None else address.generation + 1)
            except Exception as raised:  # noqa: BLE001 (a thread that died of a bug would go unseen)
                error = AttemptError.of(f"shard {shard}", raised)
            else:
                return
            wait_seconds = budget.fail()
            if self._ending.is_set() or self._is_over():
                return
            log.warning("%s", error)
            if error.is_permanent or wait_seconds is None:
                with self._failure_lock:
                    self.failure = self.failure or error
                return
            self._ending.wait(wait_seconds)

    def _is_over(self) -> bool:
        try:
            status = self._folder.status()
        except CirrusError:
            return False
        return status is not None and status.state.ended and status.state is not RunState.INTERRUPTED

    def _progress(self) -> int:
        try:
            status = self._folder.status()
        except CirrusError:
            return 0
        return 0 if status is None else status.updates
