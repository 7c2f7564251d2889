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
from cirrus.paramserver.watching import Unchanged
from cirrus.run_folder import RunFolder

log = logging.getLogger(__name__)

#: A run that continues without its client ends this soon after its last worker has gone ...
WORKERLESS_SECONDS = 15.0
#: ... once the client has been silent for this long.
CONTINUE_SILENT_SECONDS = 30.0
#: Shard 0 renews the status twice a second; one that stands still for this long says nothing of workers.
STATUS_SILENT_SECONDS = 60.0
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
        config = folder.config()
        n_shards = config.n_shards
        if not shards or not set(shards) <= set(range(n_shards)):
            raise ConfigError("shards", f"the run has shards 0 to {n_shards - 1}, not {list(shards)}")
        self._folder = folder
        self._client_lost_seconds = client_lost_seconds
        self._continues = config.on_client_loss == "continue"
        self._workerless, self._heartbeat = Unchanged(), Unchanged()
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
        if self._has_lost_client():
            self.client_lost = True
            return HostPhase.INTERRUPTED
        return None

    def _has_lost_client(self) -> bool:
        """Tell whether the client is lost, and nobody of the run works any more where that is waited for."""
        if not self._continues:
            return self._client.silent_seconds > self._client_lost_seconds
        if self._client.silent_seconds <= min(self._client_lost_seconds, CONTINUE_SILENT_SECONDS):
            return False
        try:
            status = self._folder.status()
        except CirrusError as error:
            log.warning("the run's status cannot be read: %s", error)
            return False
        silent = self._heartbeat.seconds(None if status is None else status.heartbeat_at)
        works = status is not None and status.n_workers > 0 and silent < STATUS_SILENT_SECONDS
        # As long as somebody works the value is always new.
        return self._workerless.seconds(object() if works else "nobody") > WORKERLESS_SECONDS

    def end(self) -> None:
        """End the shards, which write a last snapshot first; may be called again."""
        self._ending.set()
        self._launcher.shards.close(SNAPSHOT_SECONDS)
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def _keep(self, shard: int) -> None:
        """Keep one shard alive until the run is over."""
        budget = RetryBudget(SHARD_RETRIES, self._progress, self._rng)
        while not self._ending.is_set():
            try:
                address = self._folder.shard_address(shard)
                self._launcher.run_shard(shard, 1 if address is None else address.generation + 1)
            except Exception as raised:  # noqa: BLE001 (a thread that died of a bug would go unseen)
                error = AttemptError.of(f"shard {shard}", raised)
            else:
                error = AttemptError(f"shard {shard} ended before the run")
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
