"""The supervisor: what the client does for its run as long as it lives.

It holds the claim on the run, keeps every shard and every worker alive, and ends them all when the run is
over, when it fails, or when the client wants. How a shard or a worker is run on a backend is a
:class:`~cirrus.client_backend.launcher.Launcher`; all else is here, the same for all backends.

Threads: one for each shard, one for each slot of the fleet, and the watcher. All that ends a run goes through
the watcher's mailbox, so that there is one order of events and no locks between the threads.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import logging
import os
import queue
import random
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass

from cirrus.client_backend.fleet import AttemptError, Fleet
from cirrus.client_backend.launcher import CostCorrection, Launcher
from cirrus.client_backend.retries import RetryBudget, RetryPolicy
from cirrus.client_backend.status_cache import StatusCache
from cirrus.config import RunConfig
from cirrus.errors import CirrusError, ConflictError
from cirrus.metrics import RunState, RunStatus
from cirrus.run_folder import ClientClaim, ControlRequest, RunFolder

log = logging.getLogger(__name__)

#: The claim on a run is renewed this often; it lapses after ``run_folder.CLAIM_SECONDS``.
CLAIM_RENEW_SECONDS = 3.0
#: A shard that crashes this often in a row without progress of the run fails the run.
SHARD_RETRIES = RetryPolicy(failures=6, base_seconds=0.1, cap_seconds=2.0)
#: How long shard 0 may take to end a run that failed; then the client ends it.
FAIL_SECONDS = 3.0
#: How long :meth:`Supervisor.close` waits for the end of everything. Ctrl-C promises 3 seconds.
CLOSE_SECONDS = 4.0
#: How long the threads may take to end once their shards and workers are gone.
JOIN_SECONDS = 1.0


@dataclass(frozen=True)
class _ShardEnded:
    shard: int


@dataclass(frozen=True)
class _Failed:
    pass


@dataclass(frozen=True)
class _Close:
    pass


@dataclass(frozen=True)
class _Remove:
    pass


#: What the watcher is told.
_Message = _ShardEnded | _Failed | _Close | _Remove


class Silence:
    """How long nothing new was heard, counted only while somebody listens: a machine may have slept."""

    def __init__(self) -> None:
        self._heard: float | None = None
        self._looked_at = 0.0
        self._seconds = 0.0

    def lasts(self, heard: float, now: float) -> float:
        """Return the seconds since something new was heard.

        Args:
            heard: When the other last gave a sign of life, by its own clock.
            now: Monotonic seconds.
        """
        if heard != self._heard:
            self._heard, self._seconds = heard, 0.0
        else:
            self._seconds += min(now - self._looked_at, 2 * CLAIM_RENEW_SECONDS)
        self._looked_at = now
        return self._seconds


class StuckShards:
    """Which shards are stuck: those of which two looks in a row say that they do not answer.

    Of one that has just come back the status still says so, until shard 0 has heard of it and written that
    down: to end it again would begin all over.
    """

    def __init__(self) -> None:
        self._seen: frozenset[tuple[int, int]] = frozenset()

    def take(self, silent: Iterable[tuple[int, int]]) -> list[int]:
        """Return who is stuck, given shard and generation of those that do not answer at this look."""
        before, self._seen = self._seen, frozenset(silent)
        return sorted(shard for shard, _ in before & self._seen)


class Supervisor:
    """Keeps one run alive from this process.

    Args:
        folder: The run folder; this client holds the claim on it already.
        config: The run's config.
        launcher: How shards and workers are run.
        claim: This client's claim.
        shard_generations: The generation that each shard starts with.
        worker_generation: The generation that the workers start with.
        deadline_seconds: Lifetime of a worker's generation; None: until the run is over.
        is_temporary: The run folder goes away with :meth:`remove`, or with the run's last reference.
        corrected: What earlier clients have added to the run's cost, which shard 0 does not know.
    """

    def __init__(
        self,
        folder: RunFolder,
        config: RunConfig,
        launcher: Launcher,
        claim: ClientClaim,
        *,
        shard_generations: tuple[int, ...],
        worker_generation: int = 1,
        deadline_seconds: float | None = None,
        is_temporary: bool = False,
        corrected: CostCorrection | None = None,
    ) -> None:
        self._corrected = corrected or CostCorrection()
        self._folder = folder
        self._launcher = launcher
        self._claim = claim
        self._claim_lost = False
        self.is_temporary = is_temporary
        self._process_id = os.getpid()
        self._rng = random.Random()  # spreads retries  # nosec B311
        self._mailbox: queue.SimpleQueue[_Message] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._ended = threading.Event()
        self._failure_lock = threading.Lock()
        self._failure: CirrusError | None = None
        self._status = StatusCache(folder, launcher.status_age_seconds)
        self._silence = Silence()
        self._stuck_shards = StuckShards()
        self._live_shards = set(range(config.n_shards))
        self._fleet = Fleet(
            config.n_workers,
            launcher.invoke,
            self._is_over,
            self._fail,
            run_url=folder.url,
            with_evaluator=config.validation_url is not None,
            deadline_seconds=deadline_seconds,
            first_generation=worker_generation,
            progress=self._progress,
        )
        self._shard_threads = [
            threading.Thread(
                target=self._keep_shard, args=(shard, generation), name=f"cirrus-shard-{shard}", daemon=True
            )
            for shard, generation in enumerate(shard_generations)
        ]
        self._watcher = threading.Thread(target=self._watch, name="cirrus-watcher", daemon=True)

    @property
    def fleet(self) -> Fleet:
        """The workers."""
        return self._fleet

    @property
    def launcher(self) -> Launcher:
        """How the shards and workers are run."""
        return self._launcher

    @property
    def phase(self) -> str:
        """See :attr:`Launcher.phase`."""
        return self._launcher.phase

    @property
    def notices(self) -> tuple[str, ...]:
        """See :attr:`Launcher.notices`."""
        return self._launcher.notices

    @property
    def failure(self) -> CirrusError | None:
        """The error that this client failed the run with, if it did."""
        return self._failure

    @property
    def ended(self) -> bool:
        """True when nothing of the run is left in this process' care."""
        return self._ended.is_set()

    def wait(self, timeout: float | None) -> bool:
        """Wait until nothing is left in this process' care; return whether that is so."""
        return self._ended.wait(timeout)

    def start(self) -> None:
        """Start everything; returns at once."""
        self._watcher.start()
        atexit.register(self.close)
        for thread in self._shard_threads:
            thread.start()
        self._fleet.start()

    def close_soon(self) -> None:
        """End everything and remove what is temporary, without waiting; a finalizer may call this."""
        self._mailbox.put(_Close())
        self._mailbox.put(_Remove())

    def close(self) -> None:
        """End everything and wait for that; nothing happens when it has ended already."""
        if os.getpid() != self._process_id:  # a fork of the client inherits the object, but not the run
            return
        self._mailbox.put(_Close())
        if self._watcher.ident is None:  # it never started
            return
        try:
            self._ended.wait(CLOSE_SECONDS)
            if not self.is_temporary:
                self._watcher.join(CLOSE_SECONDS)
        finally:  # also after a second Ctrl-C
            self._launcher.kill()

    def remove(self) -> None:
        """Remove the folder of a temporary run that has ended."""
        self._mailbox.put(_Remove())
        self._watcher.join(CLOSE_SECONDS)

    # What the threads of the shards do.

    def _keep_shard(self, shard: int, generation: int) -> None:
        """Keep one shard alive until the run is over; one that somebody else ended comes back."""
        budget = RetryBudget(SHARD_RETRIES, self._progress, self._rng)
        try:
            while not self._stopping.is_set():
                try:
                    self._launcher.run_shard(shard, generation)
                except Exception as raised:  # noqa: BLE001 (a thread that died of a bug would go unseen)
                    error = AttemptError.of(f"shard {shard}", raised)
                else:
                    # Not the status that threads share: it may be older than the end of the run.
                    status = self._status.read_now()
                    if status is None or _is_final(status):
                        return
                    error = AttemptError(f"shard {shard} ended before the run")
                wait_seconds = budget.fail()
                # Without the claim, another client's shard may be what replaced this one: leave that alone.
                if self._stopping.is_set() or self._is_over() or not self._holds_claim():
                    return
                if error.is_permanent or wait_seconds is None:
                    self._fail(error)
                    return
                generation += 1
                self._stopping.wait(wait_seconds)
        finally:
            self._mailbox.put(_ShardEnded(shard))

    # What all threads ask and tell.

    def _is_over(self) -> bool:
        """Tell whether the run needs no workers; one that was interrupted and attached does need them."""
        status = self._status.read()
        return status is not None and _is_final(status)

    def _progress(self) -> int:
        status = self._status.read()
        return 0 if status is None else status.updates

    def _holds_claim(self) -> bool:
        """Return whether this client still supervises the run, as far as can be read."""
        try:
            holder = self._folder.claim_holder()
        except CirrusError:
            return True
        return holder is None or holder.client_id == self._claim.client_id

    def _fail(self, error: AttemptError) -> None:
        """Fail the run, once: ask shard 0 to end it so, and tell the watcher in case that shard 0 cannot."""
        with self._failure_lock:
            if self._failure is not None or self._stopping.is_set():
                return
            self._failure = error
        with contextlib.suppress(CirrusError):  # then the watcher ends the run, when shard 0 has not
            self._folder.request(ControlRequest(action="fail", reason=str(error)))
        self._mailbox.put(_Failed())

    # What the watcher does.

    def _watch(self) -> None:
        """Renew the claim until there is a reason to end; then end everything."""
        try:
            self._watch_until_end()
        finally:
            try:
                self._end_all()
            finally:
                atexit.unregister(self.close)
                self._ended.set()
        while self.is_temporary:
            if isinstance(self._mailbox.get(), _Remove):
                self._folder.remove()
                return

    def _watch_until_end(self) -> None:
        renew_at = time.monotonic() + CLAIM_RENEW_SECONDS
        give_up_at = float("inf")
        while True:
            now = time.monotonic()
            if now >= give_up_at:
                return
            if now >= renew_at:
                if not self._renew_claim():
                    return
                self._watch_coordinator(now)
                self._end_silent_shards()
                renew_at = now + CLAIM_RENEW_SECONDS
            try:
                message = self._mailbox.get(timeout=max(0.0, min(renew_at, give_up_at) - now))
            except queue.Empty:
                continue
            match message:
                case _Close():
                    return
                case _Failed():
                    give_up_at = time.monotonic() + FAIL_SECONDS
                case _ShardEnded(shard):
                    self._live_shards.discard(shard)
            if not self._live_shards or (self._failure is not None and 0 not in self._live_shards):
                return

    def _watch_coordinator(self, now: float) -> None:
        """Have shard 0 started anew when it is stuck: what waits for it would wait for ever."""
        limit = self._launcher.silent_seconds
        status = self._status.read()
        if limit is None or status is None or status.state is not RunState.RUNNING:
            self._silence = Silence()
        elif self._silence.lasts(status.heartbeat_at, now) > limit:
            log.warning("shard 0 of %s gives no sign of life: it is started anew", self._folder.url)
            self._silence = Silence()
            with contextlib.suppress(CirrusError):
                self._launcher.end_stuck_shard(0)

    def _renew_claim(self) -> bool:
        """Renew the claim; return False when it is lost to another client."""
        self._claim = dataclasses.replace(self._claim, renewed_at=time.time())
        try:
            self._folder.claim(self._claim)
        except ConflictError:
            self._claim_lost = not self._holds_claim()
        except CirrusError:
            # A store that fails for a moment takes no claim away; the next renewal may succeed.
            return True
        return not self._claim_lost

    def _end_silent_shards(self) -> None:
        """Have shards started anew that do not answer shard 0."""
        status = self._status.read()
        silent = () if status is None or status.state is not RunState.RUNNING else status.silent_shards
        try:
            addresses = [self._folder.shard_address(shard) for shard in silent]
        except CirrusError:
            return  # the store may say at the next look
        found = [(address.shard, address.generation) for address in addresses if address is not None]
        for shard in self._stuck_shards.take(found):
            log.warning("shard %d of %s does not answer shard 0: it is started anew", shard, self._folder.url)
            with contextlib.suppress(CirrusError):
                self._launcher.end_stuck_shard(shard)

    def _end_all(self) -> None:
        self._stopping.set()
        self._fleet.stop()
        self._claim_lost = self._claim_lost or not self._holds_claim()
        try:
            if self._claim_lost:
                self._launcher.let_go()
            else:
                self._launcher.close()
            for thread in self._shard_threads:
                thread.join(JOIN_SECONDS)
            self._fleet.join(JOIN_SECONDS)
        finally:
            self._hand_over()

    def _hand_over(self) -> None:
        """Write how the run ended, and give the claim back, unless it is another client's by now."""
        try:
            if not self._claim_lost and self._renew_claim():
                self._settle_status()
                self._release_claim()
        except CirrusError as error:
            self._failure = self._failure or error

    def _settle_status(self) -> None:
        """Write how the run ended where shard 0 could not, and what it cost where shard 0 could not know."""
        status = self._status.read_now() or RunStatus(state=RunState.STARTING, started_at=time.time())
        priced = self._corrected.plus(self._launcher.cost_correction()).apply(status)
        if status.state.ended and status.state is not RunState.INTERRUPTED:
            if priced != status:
                self._folder.write_status(priced)
            return
        failed = self._failure is not None
        self._folder.write_status(
            dataclasses.replace(
                priced,
                state=RunState.FAILED if failed else RunState.INTERRUPTED,
                error=str(self._failure) if failed else status.error,
                stop_reason="failed" if failed else "interrupted",
                n_workers=0,
                workers={},
                heartbeat_at=time.time(),
            )
        )

    def _release_claim(self) -> None:
        self._claim = dataclasses.replace(self._claim, renewed_at=time.time(), released=True)
        self._folder.claim(self._claim)


def _is_final(status: RunStatus) -> bool:
    """Return whether a run has ended for good; one that was interrupted may be going on soon."""
    return status.state.ended and status.state is not RunState.INTERRUPTED
