"""The driver: keeps as many trials at work as there is room for, until there is nothing left to do.

One thread looks after everything: it starts runs, reads how far they are, obeys requests (from this process
by its mailbox, from others by the search folder), and writes the state. Which trial works next and which is
given up is a :class:`~cirrus.frontend.search.schedules.Schedule`; how a run is started is :class:`Jobs`.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import logging
import math
import os
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

from cirrus.client_backend.overview import join_curves
from cirrus.client_backend.runs import Run, new_run_id
from cirrus.client_backend.search_folder import (
    SearchConfig,
    SearchFolder,
    SearchRequest,
    SearchState,
    Trial,
    TrialStatus,
)
from cirrus.errors import CirrusError, ConflictError, NotFoundError, RunError, StorageError
from cirrus.frontend.search.schedules import Job, Schedule
from cirrus.metrics import MetricPoint, RunState, RunStatus
from cirrus.run_folder import ClientClaim

log = logging.getLogger(__name__)

#: How often runs are looked at; objects over the network less often.
POLL_SECONDS = 0.1
REMOTE_POLL_SECONDS = 1.0
#: Numbers of trials at work are written this often; what happens to a trial at once.
STATE_SECONDS = 1.0
REMOTE_STATE_SECONDS = 5.0
CLAIM_RENEW_SECONDS = 3.0
#: How long :meth:`Driver.close` waits. Ctrl-C promises 3 seconds, and runs end side by side.
CLOSE_SECONDS = 8.0
#: A store that cannot be reached for longer than this ends the search, which can be gone on with.
STORE_PATIENCE_SECONDS = 60.0
#: So often the last writes of a driver are tried again.
FINAL_RETRIES = 5
#: How long a request of this process may take.
REQUEST_SECONDS = 20.0


class LiveRun(Protocol):
    """A run at work, supervised by this process."""

    @property
    def run(self) -> Run:
        """The run."""

    def close(self) -> None:
        """End it if it has not ended, and remove what it needed."""


class Jobs(Protocol):
    """How trials are worked on."""

    def start(self, trial: Trial, run_id: str, job: Job, resume_url: str | None) -> LiveRun:
        """Start a run of a trial.

        Args:
            trial: What to try.
            run_id: The new run's id.
            job: How far to train.
            resume_url: The model of its run before, to go on from; None: from the start.
        """

    def attach(self, run_id: str) -> LiveRun:
        """Go on with a run that was interrupted or killed."""

    def find(self, run_id: str) -> RunStatus | None:
        """Return where a run is, or None if there is none."""

    def model_url(self, run_id: str) -> str:
        """Return where a finished run left its model."""

    def points(self, run_id: str) -> list[MetricPoint]:
        """Return the points of a run."""

    def n_workers(self, trial: Trial) -> int:
        """Return how many workers a trial needs."""

    def score(self, run_id: str, status: RunStatus, loss: float | None) -> float | None:
        """Return what a finished run's model is worth, higher is better."""


class TrialSource(Protocol):
    """Where trials come from that are not all known beforehand."""

    def ask(self, index: int) -> dict[str, Any] | None:
        """Return the next hyperparameters, or None when there shall be no more."""

    def report(self, index: int, epoch: int, loss: float) -> bool:
        """Take note of a trial's loss; return whether it should be given up."""

    def tell(self, trial: Trial) -> None:
        """Take note of how a trial ended."""


@dataclass
class _Live:
    """A trial at work."""

    trial: int
    live: LiveRun
    job: Job
    before: Trial
    """What the trial had shown when this run first began."""
    epoch: int = -1
    killing: Future[None] | None = None
    pruning: bool = False
    stopping: bool = False


@dataclass
class _Request:
    request: SearchRequest
    key: str | None = None
    """Its object in the search folder, where it came from there."""
    done: threading.Event = field(default_factory=threading.Event)
    error: CirrusError | None = None


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
        self._folder = folder
        self._claim = claim
        self._config = config
        self._schedule = schedule
        self._jobs = jobs
        self._source = source
        self._on_end = on_end
        self._state = state
        self._etag = etag
        self._trials = list(state.trials)
        self._seconds_before = state.seconds
        self._started_at = time.monotonic()
        self._live: dict[int, _Live] = {}
        self._curves: dict[int, dict[int, float]] = {}
        self._was_killed = self._killed = state.state is RunState.KILLED
        """Before this driver came, which only goes on with what is asked for; and now."""
        self._more_to_come = source is not None and not self._was_killed
        self._winding_down: str | None = "killed" if self._was_killed else None
        self._requests_seen: set[str] = set()
        self._pending: list[_Request] = []
        """Requests that were heard, and are not carried out yet."""
        self._renew_at = self._control_at = self._state_at = 0.0
        """When the claim, the requests of others and the state are due again; monotonic seconds."""
        self._mailbox: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        """Guards what other threads read: the state."""
        self._ended = threading.Event()
        self._closing = threading.Event()
        self._dirty = True
        self._process_id = os.getpid()
        self._killers: ThreadPoolExecutor | None = None
        remote = "://" in folder.url and not folder.url.startswith(("memory:", "file:"))
        self._poll_seconds = REMOTE_POLL_SECONDS if remote else POLL_SECONDS
        self._state_seconds = REMOTE_STATE_SECONDS if remote else STATE_SECONDS
        self._thread = threading.Thread(target=self._drive, name="cirrus-search", daemon=True)
        self.failure: BaseException | None = None
        """What ended the driver before its time."""

    # From other threads.

    @property
    def state(self) -> SearchState:
        """Where the search is."""
        with self._lock:
            return self._state

    @property
    def ended(self) -> bool:
        """True when nothing is left in this process' care."""
        return self._ended.is_set()

    def start(self) -> None:
        """Write the state and begin; returns at once.

        Raises:
            ConflictError: Another client drives the search.
        """
        self._look_after_what_was()
        self._write_state()
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
        self._mailbox.put(None)

    def ask(self, request: SearchRequest) -> None:
        """Have a request carried out, and wait for that.

        Raises:
            RunError: It cannot be, or was not in time.
        """
        if self._ended.is_set():
            raise RunError(f"search {self._config.search_id} is not at work")
        message = _Request(request)
        self._mailbox.put(message)
        end = time.monotonic() + REQUEST_SECONDS
        while not message.done.wait(POLL_SECONDS):
            if self._ended.is_set():
                break
            if time.monotonic() > end:
                raise RunError(f"search {self._config.search_id}: not done within {REQUEST_SECONDS:g} s")
        if message.error is not None:
            raise message.error

    # The thread.

    def _drive(self) -> None:
        try:
            self._loop()
        except BaseException as error:  # noqa: BLE001 (whoever waits for the search has to hear of it)
            self.failure = error
            log.exception("search %s", self._config.search_id)
        finally:
            try:
                self._close_runs()
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
            self._pending += self._next_messages()

    def _step(self) -> bool:
        """Look after everything once; return whether nothing is left to do."""
        now = time.monotonic()
        if now >= self._renew_at:
            self._renew_claim()
            self._renew_at = now + CLAIM_RENEW_SECONDS
        if now >= self._control_at:
            self._pending += self._requests_of_others()
            self._control_at = now + 2 * self._poll_seconds
        for index in list(self._live):
            self._look_at(self._live[index])
        self._pending = [request for request in self._pending if not self._settled(request)]
        self._check_budgets()
        self._fill()
        if self._dirty or now >= self._state_at:
            self._write_state()
            self._state_at = now + self._state_seconds
        return self._is_done and not self._pending

    def _next_messages(self) -> list[_Request]:
        """Wait a little, or until somebody of this process asks for something; obey."""
        asked = []
        with contextlib.suppress(queue.Empty):
            message = self._mailbox.get(timeout=self._poll_seconds)
            while True:
                if message is not None:
                    self._obey(message)
                    asked.append(message)
                message = self._mailbox.get_nowait()
        return asked

    @property
    def _is_done(self) -> bool:
        if self._live or any(trial.status is TrialStatus.QUEUED for trial in self._trials):
            return not self._live and self._winding_down is not None
        if self._winding_down is not None:
            return True
        return not self._more_to_come and self._schedule.next_job(self._trials) is None

    # Trials at work.

    def _put(self, index: int, **changes: Any) -> Trial:
        """Change a trial."""
        self._trials[index] = trial = dataclasses.replace(self._trials[index], **changes)
        self._dirty = self._dirty or "status" in changes
        return trial

    def _fill(self) -> None:
        """Begin what there is room for."""
        while self._winding_down is None and len(self._live) < self._config.max_concurrent:
            if self._more_to_come and not any(t.status is TrialStatus.QUEUED for t in self._trials):
                self._ask_source()
            job = self._schedule.next_job(self._trials, more_to_come=self._more_to_come)
            if job is None or not self._has_room_for(self._trials[job.trial]):
                return
            if self._is_ending_elsewhere(self._trials[job.trial]):
                return
            self._begin(job)

    def _ask_source(self) -> None:
        assert self._source is not None
        params = self._source.ask(len(self._trials))
        if params is None:
            self._more_to_come = False
        else:
            self._trials.append(Trial(index=len(self._trials), params=params))
            self._dirty = True

    def _has_room_for(self, trial: Trial) -> bool:
        if not self._live:  # a trial alone goes on with what it gets
            return True
        n_workers = sum(self._jobs.n_workers(self._trials[index]) for index in self._live)
        n_workers += self._jobs.n_workers(trial)
        n_evaluators = len(self._live) + 1 if self._config.validation_url is not None else 0
        return n_workers <= _at_most(self._config.max_workers) and (
            n_workers + n_evaluators <= _at_most(self._config.max_functions)
        )

    def _is_ending_elsewhere(self, trial: Trial) -> bool:
        """Tell whether a trial's last run has not ended yet, such as one that was just interrupted."""
        status = self._jobs.find(trial.runs[-1]) if trial.runs else None
        return status is not None and not status.state.ended

    def _begin(self, job: Job) -> None:
        """Start or go on with a trial."""
        before = self._trials[job.trial]
        try:
            live = self._start_run(job, before)
            before = self._before_run(before, live.run.run_id)
        except ConflictError:
            raise
        except (CirrusError, ValueError, OSError) as error:  # ValueError: scikit-learn's own about data
            if isinstance(error, StorageError) and not isinstance(error, NotFoundError):
                self._trials[job.trial] = dataclasses.replace(before, status=TrialStatus.QUEUED)
                raise  # nothing has begun, and the next step tries it again
            log.warning("trial %d cannot be started: %s", job.trial, error)
            self._put(job.trial, status=TrialStatus.FAILED, error=str(error))
            self._tell(job.trial)
            return
        self._live[job.trial] = _Live(trial=job.trial, live=live, job=job, before=before)
        # The last to register is the first that is called at exit: runs are ended side by side from here.
        atexit.unregister(self.close)
        atexit.register(self.close)

    def _before_run(self, trial: Trial, run_id: str) -> Trial:
        """Return a trial as it was before a run that it goes on with: without that run's own numbers."""
        if run_id not in trial.runs:
            return trial
        runs = trial.runs[: trial.runs.index(run_id)]
        statuses = [status for earlier in runs if (status := self._jobs.find(earlier)) is not None]
        return dataclasses.replace(
            trial,
            runs=runs,
            seconds=sum(status.seconds for status in statuses),
            cost=sum(status.cost for status in statuses),
            worker_seconds=sum(status.worker_seconds for status in statuses),
        )

    def _start_run(self, job: Job, before: Trial) -> LiveRun:
        changes: dict[str, Any] = {
            "status": TrialStatus.RUNNING,
            "rung": job.rung,
            "n_workers": self._jobs.n_workers(before),
            "error": None,
        }
        resume_url = None
        if before.runs:
            last = before.runs[-1]
            status = self._jobs.find(last)
            if status is not None and status.state in (RunState.INTERRUPTED, RunState.KILLED):
                self._put(job.trial, **changes)
                self._write_state()
                return self._jobs.attach(last)
            if status is not None and status.state is RunState.FINISHED:
                resume_url = self._jobs.model_url(last)
            elif status is not None:
                raise RunError(f"run {last} is {status.state.value}: it cannot be gone on with")
        run_id = new_run_id()
        # Written down before it begins: whoever drives the search after a crash has to find the run.
        trial = self._put(job.trial, **changes, runs=(*before.runs, run_id))
        self._write_state()
        return self._jobs.start(trial, run_id, job, resume_url)

    def _look_at(self, work: _Live) -> None:
        """See how far a trial at work is."""
        run = work.live.run
        has_ended = run.supervisor is None or run.supervisor.ended
        status = run.status
        self._note(work.trial, work.before, status)
        if has_ended and status.state.ended:
            self._take_end(work, status)
        elif status.epoch != work.epoch and status.epoch > 0 and not status.state.ended:
            work.epoch = status.epoch
            self._consider(work)

    def _note(self, index: int, before: Trial, status: RunStatus) -> None:
        """Take over a run's numbers; those of the trial's runs before are added."""
        loss = _loss(status, watches_validation=self._config.validation_url is not None)
        per_epoch = status.samples_per_epoch
        self._put(
            index,
            loss=self._trials[index].loss if loss is None else loss,
            epochs=status.samples / per_epoch if per_epoch else before.epochs,
            updates=max(status.updates, before.updates),
            seconds=before.seconds + status.seconds,
            cost=before.cost + status.cost,
            worker_seconds=before.worker_seconds + status.worker_seconds,
        )

    def _consider(self, work: _Live) -> None:
        """An epoch has ended: should the trial be given up?"""
        if self._source is None and not self._schedule.needs_curves:
            return
        curve = self._curve(self._trials[work.trial], work.live.run.metrics())
        self._curves[work.trial] = curve
        if not curve or work.pruning or work.killing is not None:
            return
        epoch = max(curve)
        gives_up = self._schedule.gives_up(work.trial, self._curves)
        if self._source is not None:
            gives_up = self._source.report(work.trial, epoch, curve[epoch]) or gives_up
        if gives_up:
            work.pruning = self._stop_run(work)

    def _curve(self, trial: Trial, points: list[MetricPoint] | None = None) -> dict[int, float]:
        """Return the loss at the end of each epoch of a trial."""
        runs = list(trial.runs)
        curves = [self._jobs.points(run_id) for run_id in (runs if points is None else runs[:-1])]
        if points is not None:
            curves.append(points)
        return epoch_losses(join_curves(curves), watches_validation=self._config.validation_url is not None)

    def _stop_run(self, work: _Live) -> bool:
        """Have a run finish where it is; return whether it will."""
        try:
            work.live.run.stop()
        except CirrusError as error:  # it is ending already
            log.info("trial %d: %s", work.trial, error)
            return False
        return True

    def _take_end(self, work: _Live, status: RunStatus) -> None:
        """A run of a trial has ended."""
        run_id = work.live.run.run_id
        work.live.close()
        if self._schedule.needs_curves:
            self._curves[work.trial] = self._curve(self._trials[work.trial])
        # From here on nothing is read that might fail and have the run looked at again.
        del self._live[work.trial]
        match status.state:
            case RunState.FINISHED:
                self._take_model(work.job, run_id, status, work)
            case RunState.KILLED:
                self._put(work.trial, status=TrialStatus.KILLED)
            case RunState.INTERRUPTED if work.killing is not None:  # the store failed while it was killed
                self._put(work.trial, status=TrialStatus.KILLED)
            case RunState.INTERRUPTED:
                self._put(work.trial, status=TrialStatus.FAILED, error="its run was interrupted")
            case _:
                self._put(
                    work.trial, status=TrialStatus.FAILED, error=status.error or "for an unknown reason"
                )
        self._tell(work.trial)

    def _take_model(self, job: Job, run_id: str, status: RunStatus, work: _Live | None = None) -> None:
        """A run has finished: see what its trial is now.

        Args:
            job: What the run was for.
            run_id: The run.
            status: How it ended.
            work: What it had been asked to do meanwhile; None: it ended when nobody drove the search.
        """
        pruned = work is not None and work.pruning
        stopped = work is not None and work.stopping
        trial = self._trials[job.trial]
        losses = (*trial.losses[: job.rung], *[None] * (job.rung - len(trial.losses)), trial.loss)
        reason = status.stop_reason
        if reason == "stopped" and (pruned or stopped):
            ended = TrialStatus.PRUNED
        elif reason == "max_updates":
            ended = TrialStatus.PRUNED if stopped else self._schedule.ends_at(trial)
        else:
            ended = TrialStatus.FINISHED
        if work is not None and work.killing is not None and not ended.ended:
            ended = TrialStatus.KILLED  # the rung ended before the kill reached it: it shall not be promoted
        changes: dict[str, Any] = {"status": ended}
        try:
            score = self._jobs.score(run_id, status, trial.loss)
        except (CirrusError, ValueError) as error:
            log.warning("trial %d cannot be scored: %s", job.trial, error)
            changes = {"status": TrialStatus.FAILED, "error": f"cannot be scored: {error}"}
        else:
            if trial.score is None or (score is not None and score > trial.score):
                # A rung may be better than those above it: more training is not always better.
                changes |= {"score": score, "best_run": run_id}
        self._put(job.trial, losses=losses, **changes)

    def _tell(self, index: int) -> None:
        if self._source is not None and self._trials[index].status.ended:
            self._source.tell(self._trials[index])

    # Requests.

    def _requests_of_others(self) -> list[_Request]:
        found = []
        for key, request in self._folder.requests():
            if key in self._requests_seen:
                continue
            self._requests_seen.add(key)
            message = _Request(request, key)
            self._obey(message)
            if message.error is not None:
                log.warning("%s", message.error)
            found.append(message)
        return found

    def _obey(self, message: _Request) -> None:
        request = message.request
        try:
            match request.action:
                case "kill":
                    self._kill(self._known(request.trial))
                case "kill_all":
                    self._killed = True
                    self._winding_down = "killed"
                    for trial in list(self._trials):
                        self._kill(trial)
                case "resume":
                    self._resume(self._known(request.trial))
                case "stop":
                    self._wind_down("stopped")
                case _:
                    raise RunError(f"unknown request {request.action!r}")  # noqa: TRY301
        except CirrusError as error:
            message.error = error

    def _known(self, index: int | None) -> Trial:
        if index is None or not 0 <= index < len(self._trials):
            raise RunError(f"there is no trial {index}: there are 0 to {len(self._trials) - 1}")
        return self._trials[index]

    def _settled(self, message: _Request) -> bool:
        """Tell whether a request has been carried out, and whoever asked been told."""
        if message.error is None:
            affected = {message.request.trial} if message.request.action == "kill" else set(self._live)
            if message.request.action in ("kill", "kill_all") and any(
                work.killing is not None for index, work in self._live.items() if index in affected
            ):
                return False
        self._write_state()
        if message.key is not None:
            self._folder.finish_request(message.key)
        message.done.set()
        return True

    def _kill(self, trial: Trial) -> None:
        work = self._live.get(trial.index)
        if work is not None:
            failed_before = (
                work.killing is not None and work.killing.done() and work.killing.exception() is not None
            )
            if work.killing is None or failed_before:
                if self._killers is None:
                    self._killers = ThreadPoolExecutor(
                        max(4, self._config.max_concurrent), thread_name_prefix="cirrus-kill"
                    )
                work.killing = self._killers.submit(work.live.run.kill)
        elif not trial.status.ended:
            self._put(trial.index, status=TrialStatus.KILLED)
            self._tell(trial.index)

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
        self._put(trial.index, status=TrialStatus.QUEUED, rung=last_rung)

    def _wind_down(self, reason: str) -> None:
        """Begin nothing more, and have all that works finish where it is."""
        if self._winding_down is None:
            self._winding_down = reason
            for work in self._live.values():
                work.stopping = work.killing is None and self._stop_run(work)

    def _check_budgets(self) -> None:
        config = self._config
        if config.max_seconds is not None and self._seconds >= config.max_seconds:
            self._wind_down("max_seconds")
        elif config.max_cost is not None and sum(t.cost for t in self._trials) >= config.max_cost:
            self._wind_down("max_cost")

    @property
    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._started_at

    # The state and the end.

    def _look_after_what_was(self) -> None:
        """Queue again what another driver left at work."""
        for trial in list(self._trials):
            if trial.status is TrialStatus.RUNNING:
                self._recover(trial)
            elif trial.runs and self._schedule.needs_curves:
                self._curves[trial.index] = self._curve(trial)

    def _recover(self, trial: Trial) -> None:
        """A trial was at work when its driver was lost: its run may have come to its end since."""
        run_id = trial.runs[-1] if trial.runs else ""
        status = self._jobs.find(run_id) if run_id else None
        if status is None:  # it was written down, but never began
            self._put(trial.index, status=TrialStatus.QUEUED, runs=trial.runs[:-1])
        elif status.state is RunState.FINISHED:
            job = Job(trial=trial.index, rung=trial.rung)
            self._note(trial.index, self._before_run(trial, run_id), status)
            self._take_model(job, run_id, status)
        elif status.state is RunState.KILLED:
            self._put(trial.index, status=TrialStatus.KILLED)
        elif status.state is RunState.FAILED:
            self._put(trial.index, status=TrialStatus.FAILED, error=status.error)
        else:
            self._put(trial.index, status=TrialStatus.QUEUED)

    def _renew_claim(self) -> None:
        self._claim = dataclasses.replace(self._claim, renewed_at=time.time())
        try:
            self._folder.renew_claim(self._claim)
        except ConflictError:
            raise
        except CirrusError as error:  # a store that fails for a moment takes no claim away
            log.warning("the claim on the search cannot be renewed: %s", error)

    def _write_state(self, **changes: Any) -> None:
        state = dataclasses.replace(
            self._state,
            state=changes.get("state", RunState.RUNNING),
            stop_reason=changes.get("stop_reason"),
            error=changes.get("error"),
            trials=tuple(self._trials),
            seconds=self._seconds,
            renewed_at=time.time(),
        )
        try:
            self._etag = self._folder.write_state(state, self._etag)
        except ConflictError:
            self._etag = self._folder.write_state(state, self._etag_of_own())
        with self._lock:
            self._state = state
        self._dirty = False

    def _etag_of_own(self) -> str | None:
        """Return the etag of a state that this client wrote, though the answer to that was lost.

        Raises:
            ConflictError: Another client drives the search.
        """
        holder = self._folder.claim_holder()
        if holder is None or holder.client_id != self._claim.client_id:
            raise ConflictError(f"another client drives search {self._config.search_id}")
        found = self._folder.read_state()
        return None if found is None else found[1]

    def _close_runs(self) -> None:
        """End what is still at work, side by side; it can be gone on with."""
        works = list(self._live.values())
        for work in works:
            if work.live.run.supervisor is not None:
                work.live.run.supervisor.close_soon()
        for work in works:
            try:
                work.live.close()
                self._note(work.trial, work.before, work.live.run.status)
            except CirrusError as error:
                log.warning("trial %d: %s", work.trial, error)
        if self._killers is not None:
            self._killers.shutdown(wait=False)

    def _finish(self) -> None:
        """Write how the search ended, and give the claim back."""
        try:
            if isinstance(self.failure, ConflictError):
                return  # another client drives the search by now
            ending = self._ending()
            self._insist(lambda: self._write_state(**ending))
            released = dataclasses.replace(self._claim, renewed_at=time.time(), released=True)
            self._insist(lambda: self._folder.renew_claim(released))
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

    def _ending(self) -> dict[str, Any]:
        """Return how the search has ended, as fields of its state."""
        if self.failure is not None:
            return {"state": RunState.FAILED, "stop_reason": "failed", "error": str(self.failure)}
        if not self._is_done:
            return {"state": RunState.INTERRUPTED, "stop_reason": "interrupted"}
        self._end_paused()
        state = RunState.KILLED if self._killed else RunState.FINISHED
        return {"state": state, "stop_reason": self._winding_down or "all"}

    def _insist(self, write: Callable[[], None]) -> None:
        """Write something at the end, where no next step will do it."""
        for _ in range(FINAL_RETRIES):
            try:
                return write()
            except ConflictError:
                raise
            except StorageError as error:
                log.warning("search %s: %s: it is tried again", self._config.search_id, error)
            time.sleep(self._poll_seconds)  # a store wakes nobody when it is back
        return write()

    def _end_paused(self) -> None:
        for trial in list(self._trials):
            if trial.status is TrialStatus.PAUSED:
                self._put(trial.index, status=TrialStatus.PRUNED)
                self._tell(trial.index)


def _at_most(limit: int | None) -> float:
    return math.inf if limit is None else limit


def _loss(status: RunStatus, *, watches_validation: bool) -> float | None:
    """Return the loss that trials are compared by."""
    loss = status.validation_loss if watches_validation else status.train_loss
    return None if loss is None or math.isnan(loss) else loss


def epoch_losses(points: list[MetricPoint], *, watches_validation: bool) -> dict[int, float]:
    """Return the loss at the end of each epoch: of the validation data where it is watched, else of training.

    Args:
        points: A trial's curve.
        watches_validation: Whether there is validation data. An epoch that was not evaluated is left out.
    """
    losses: dict[int, float] = {}
    for point in points:
        if watches_validation:
            if point.validation_loss is not None and point.epoch > 0:
                losses[point.epoch] = point.validation_loss
        elif point.end_of_epoch and point.train_loss is not None:
            losses[point.epoch] = point.train_loss
    return losses
