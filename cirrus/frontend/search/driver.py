"""The driver: keeps as many trials at work as there is room for, until there is nothing left to do.

One thread looks after everything: it has runs begin, sees how far they are
(:class:`~cirrus.frontend.search.at_work.TrialsAtWork`), obeys requests
(:class:`~cirrus.frontend.search.requests.Requests`), and has the state written
(:class:`~cirrus.frontend.search.ledger.Ledger`). Which trial works next and which is given up is a
:class:`~cirrus.frontend.search.schedules.Schedule`; how a run is started is
:class:`~cirrus.frontend.search.roles.Jobs`.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import threading
import time
from collections.abc import Callable

from cirrus.client_backend.search_folder import (
    SearchConfig,
    SearchFolder,
    SearchRequest,
    SearchState,
    Trial,
    TrialStatus,
)
from cirrus.errors import CirrusError, ConflictError, RunError, StorageError
from cirrus.frontend.search.at_work import TrialsAtWork
from cirrus.frontend.search.ledger import Ledger
from cirrus.frontend.search.requests import Requests
from cirrus.frontend.search.roles import Jobs, TrialSource
from cirrus.frontend.search.schedules import Schedule
from cirrus.metrics import RunState
from cirrus.run_folder import ClientClaim

log = logging.getLogger(__name__)

#: How often runs are looked at; objects over the network less often.
POLL_SECONDS = 0.1
REMOTE_POLL_SECONDS = 1.0
#: How long :meth:`Driver.close` waits. Ctrl-C promises 3 seconds, and runs end side by side.
CLOSE_SECONDS = 8.0
#: A store that cannot be reached for longer than this ends the search, which can be gone on with.
STORE_PATIENCE_SECONDS = 60.0


class Driver:
    """Drives one search from this process.

    Args:
        folder: The search folder; this client holds the claim on it.
        claim: That claim.
        config: The search.
        schedule: What trials do.
        jobs: How they do it.
        state: Where the search is.
        etag: Of the state in the folder; None: there is none yet.
        source: Where more trials come from; None: all are in the state.
        on_end: Called when nothing is left to do, in the driver's thread.
    """

    def __init__(
        self,
        folder: SearchFolder,
        claim: ClientClaim,
        config: SearchConfig,
        schedule: Schedule,
        jobs: Jobs,
        state: SearchState,
        etag: str | None,
        *,
        source: TrialSource | None = None,
        on_end: Callable[[], None] | None = None,
    ) -> None:
        self._config = config
        self._schedule = schedule
        self._jobs = jobs
        self._source = source
        self._on_end = on_end
        self._ledger = Ledger(folder, claim, state, etag)
        self._at_work = TrialsAtWork(config, self._ledger, schedule, jobs, source)
        poll_seconds = REMOTE_POLL_SECONDS if folder.is_remote else POLL_SECONDS
        self._requests = Requests(folder, config.search_id, self._obey, poll_seconds)
        self._was_killed = self._killed = state.state is RunState.KILLED
        """Before this driver came, which only goes on with what is asked for; and now."""
        self._more_to_come = source is not None and not self._was_killed
        self._winding_down: str | None = "killed" if self._was_killed else None
        self._ended = threading.Event()
        self._closing = threading.Event()
        self._process_id = os.getpid()
        self._thread = threading.Thread(target=self._drive, name="cirrus-search", daemon=True)
        self.failure: BaseException | None = None
        """What ended the driver before its time."""

    # From other threads.

    @property
    def state(self) -> SearchState:
        """Where the search is."""
        return self._ledger.state

    @property
    def ended(self) -> bool:
        """True when nothing is left in this process' care."""
        return self._ended.is_set()

    def start(self) -> None:
        """Write the state and begin; returns at once.

        Raises:
            ConflictError: Another client drives the search.
        """
        self._at_work.take_over()
        self._ledger.write()
        self._thread.start()
        atexit.register(self.close)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end; return whether it has come."""
        return self._ended.wait(timeout)

    def close(self) -> None:
        """End all runs, which can be gone on with, and wait for that. Closing twice is harmless."""
        if os.getpid() != self._process_id:  # a fork inherits the object, but not the search
            return
        self.close_soon()
        self._ended.wait(CLOSE_SECONDS)

    def close_soon(self) -> None:
        """End all runs; does not wait. A finalizer may call this."""
        self._closing.set()
        self._requests.wake()

    def ask(self, request: SearchRequest) -> None:
        """Have a request carried out, and wait for that.

        Raises:
            RunError: It cannot be, was not in time, or the search ended first.
        """
        if self._ended.is_set():
            raise RunError(f"search {self._config.search_id} is not at work")
        self._requests.ask(request, self._ended)

    # The thread.

    def _drive(self) -> None:
        try:
            self._loop()
        except BaseException as error:  # noqa: BLE001 (whoever waits for the search has to hear of it)
            self.failure = error
            log.exception("search %s", self._config.search_id)
        finally:
            try:
                self._at_work.close()
            finally:
                self._finish()

    def _loop(self) -> None:
        working_at = time.monotonic()
        while not self._closing.is_set():
            try:
                if self._step():
                    return
                working_at = time.monotonic()
            except ConflictError:
                raise
            except StorageError as error:
                # Runs go on without their driver for a while, and what a step has not done the next one does.
                if time.monotonic() - working_at > STORE_PATIENCE_SECONDS:
                    raise
                log.warning("search %s: %s: it is tried again", self._config.search_id, error)
            self._requests.hear()

    def _step(self) -> bool:
        """Look after everything once; return whether nothing is left to do."""
        self._ledger.renew_if_due()
        self._requests.hear_others()
        self._at_work.look()
        self._requests.settle(self._is_carried_out, self._ledger.write)
        self._check_budgets()
        self._fill()
        self._ledger.write_if_due()
        # What was asked for during this step may give it something to do.
        return self._is_done and not self._requests.are_pending and self._requests.is_heard

    @property
    def _is_done(self) -> bool:
        if self._at_work or self._ledger.has_queued:
            return not self._at_work and self._winding_down is not None
        if self._winding_down is not None:
            return True
        return not self._more_to_come and self._schedule.next_job(self._ledger.trials) is None

    # Room and budgets.

    def _fill(self) -> None:
        """Begin what there is room for."""
        while self._winding_down is None and len(self._at_work) < self._config.max_concurrent:
            if self._more_to_come and not self._ledger.has_queued:
                self._ask_source()
            job = self._schedule.next_job(self._ledger.trials, more_to_come=self._more_to_come)
            if job is None:
                return
            trial = self._ledger.trials[job.trial]
            if not self._has_room_for(trial) or self._at_work.is_ending_elsewhere(trial):
                return
            if self._at_work.begin(job):
                # The last to register is the first called at exit: runs are ended side by side from here.
                atexit.unregister(self.close)
                atexit.register(self.close)

    def _ask_source(self) -> None:
        assert self._source is not None
        params = self._source.ask(len(self._ledger.trials))
        if params is None:
            self._more_to_come = False
        else:
            self._ledger.append(params)

    def _has_room_for(self, trial: Trial) -> bool:
        if not self._at_work:  # a trial alone goes on with what it gets
            return True
        n_workers = self._at_work.n_workers + self._jobs.n_workers(trial)
        n_evaluators = len(self._at_work) + 1 if self._config.validation_url is not None else 0
        return n_workers <= _at_most(self._config.max_workers) and (
            n_workers + n_evaluators <= _at_most(self._config.max_functions)
        )

    def _check_budgets(self) -> None:
        if self._ledger.seconds >= _at_most(self._config.max_seconds):
            self._wind_down("max_seconds")
        elif self._ledger.cost >= _at_most(self._config.max_cost):
            self._wind_down("max_cost")

    def _wind_down(self, reason: str) -> None:
        """Begin nothing more, and have all that works finish where it is."""
        if self._winding_down is None:
            self._winding_down = reason
            self._at_work.stop()

    # Requests.

    def _obey(self, request: SearchRequest) -> None:
        match request.action:
            case "kill":
                self._at_work.kill(self._known(request.trial))
            case "kill_all":
                self._killed = True
                self._winding_down = "killed"
                for trial in list(self._ledger.trials):
                    self._at_work.kill(trial)
            case "resume":
                self._resume(self._known(request.trial))
            case "stop":
                self._wind_down("stopped")
            case _:
                raise RunError(f"unknown request {request.action!r}")

    def _is_carried_out(self, request: SearchRequest) -> bool:
        """Tell whether what was begun for a request has come to its end."""
        if request.action == "kill_all":
            return not self._at_work.is_killing()
        return request.action != "kill" or not self._at_work.is_killing(request.trial)

    def _known(self, index: int | None) -> Trial:
        trials = self._ledger.trials
        if index is None or not 0 <= index < len(trials):
            raise RunError(f"there is no trial {index}: there are 0 to {len(trials) - 1}")
        return trials[index]

    def _resume(self, trial: Trial) -> None:
        if trial.status not in (TrialStatus.KILLED, TrialStatus.PRUNED, TrialStatus.PAUSED):
            raise RunError(
                f"trial {trial.index} is {trial.status.value}: only one that was cut short can go on"
            )
        if self._was_killed:
            self._was_killed = self._killed = False
            self._winding_down = None
        if self._winding_down is not None:
            raise RunError(f"search {self._config.search_id} is at its end ({self._winding_down})")
        # To its end: somebody has decided, whatever the schedule thought of it.
        last_rung = max(trial.rung, len(getattr(self._schedule, "fractions", (1.0,))) - 1)
        self._ledger.put(trial.index, status=TrialStatus.QUEUED, rung=last_rung)

    # The end.

    def _finish(self) -> None:
        """Write how the search ended, and give the claim back."""
        try:
            if not isinstance(self.failure, ConflictError):  # else another client drives the search by now
                self._write_end()
        except CirrusError as error:
            self.failure = self.failure or error
        finally:
            atexit.unregister(self.close)
            try:
                if self._on_end is not None:
                    self._on_end()
            except CirrusError as error:  # what is left over costs space and nothing else
                log.warning("search %s: %s", self._config.search_id, error)
            finally:
                self._ended.set()

    def _write_end(self) -> None:
        if self.failure is not None:
            self._ledger.close(RunState.FAILED, "failed", str(self.failure))
        elif not self._is_done:
            self._ledger.close(RunState.INTERRUPTED, "interrupted")
        else:
            self._at_work.end_paused()
            state = RunState.KILLED if self._killed else RunState.FINISHED
            self._ledger.close(state, self._winding_down or "all")


def _at_most(limit: float | None) -> float:
    return math.inf if limit is None else limit
