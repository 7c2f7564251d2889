"""Trials at work: their runs are begun, watched, stopped and killed, and what comes of them is taken down."""

from __future__ import annotations

import dataclasses
import logging
import math
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from cirrus.client_backend.runs import new_run_id
from cirrus.client_backend.search_folder import SearchConfig, Trial, TrialStatus
from cirrus.errors import CirrusError, ConflictError, NotFoundError, RunError, StorageError
from cirrus.frontend.search.ledger import Ledger
from cirrus.frontend.search.roles import Jobs, LiveRun, TrialSource
from cirrus.frontend.search.schedules import Job, Schedule
from cirrus.frontend.search.trial_curves import TrialCurves
from cirrus.metrics import RunState, RunStatus

log = logging.getLogger(__name__)

#: Fewest requests to end runs that may be under way at a time.
MIN_KILLERS = 4


@dataclass
class _Work:
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

    @property
    def kill_failed(self) -> bool:
        """Whether it was to be killed, and could not be."""
        killing = self.killing
        return killing is not None and killing.done() and killing.exception() is not None


class TrialsAtWork:
    """The trials of a search that work, for the driver's thread.

    Args:
        config: The search.
        ledger: Where is written what becomes of them.
        schedule: What gives trials up, and says what a completed rung makes of one.
        jobs: How they are worked on.
        source: What hears of their losses and ends; None: nobody.
    """

    def __init__(
        self,
        config: SearchConfig,
        ledger: Ledger,
        schedule: Schedule,
        jobs: Jobs,
        source: TrialSource | None,
    ) -> None:
        self._config = config
        self._ledger = ledger
        self._schedule = schedule
        self._jobs = jobs
        self._source = source
        self._works: dict[int, _Work] = {}
        self._curves = TrialCurves(config, schedule, jobs, source)
        self._killers: ThreadPoolExecutor | None = None

    def __len__(self) -> int:
        return len(self._works)

    @property
    def n_workers(self) -> int:
        """Workers that they need together."""
        return sum(self._jobs.n_workers(self._ledger.trials[index]) for index in self._works)

    def is_killing(self, trial: int | None = None) -> bool:
        """Tell whether this trial, or any, is being killed."""
        works = self._works.values() if trial is None else filter(None, [self._works.get(trial)])
        return any(work.killing is not None for work in works)

    # Beginning.

    def is_ending_elsewhere(self, trial: Trial) -> bool:
        """Tell whether a trial's last run has not ended yet, such as one that was just interrupted."""
        status = self._jobs.find(trial.runs[-1]) if trial.runs else None
        return status is not None and not status.state.ended

    def begin(self, job: Job) -> bool:
        """Start or go on with a trial; return whether it works: else it has failed, and says why.

        Raises:
            ConflictError: Another client drives the search.
            StorageError: The store cannot be reached: nothing has begun, and it can be tried again.
        """
        before = self._ledger.trials[job.trial]
        try:
            live = self._start_run(job, before)
            before = self._before_run(before, live.run.run_id)
        except ConflictError:
            raise
        except (CirrusError, ValueError, OSError) as error:  # ValueError: scikit-learn's own about data
            if isinstance(error, StorageError) and not isinstance(error, NotFoundError):
                self._ledger.put_back(before)
                raise
            log.warning("trial %d cannot be started: %s", job.trial, error)
            self._ledger.put(job.trial, status=TrialStatus.FAILED, error=str(error))
            self._tell(job.trial)
            return False
        self._works[job.trial] = _Work(trial=job.trial, live=live, job=job, before=before)
        return True

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
                self._ledger.put(job.trial, **changes)
                self._ledger.write()
                return self._jobs.attach(last)
            if status is not None and status.state is RunState.FINISHED:
                resume_url = self._jobs.model_url(last)
            elif status is not None:
                raise RunError(f"run {last} is {status.state.value}: it cannot be gone on with")
        run_id = new_run_id()
        # Written down before it begins: whoever drives the search after a crash has to find the run.
        trial = self._ledger.put(job.trial, **changes, runs=(*before.runs, run_id))
        self._ledger.write()
        return self._jobs.start(trial, run_id, job, resume_url)

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

    # Watching.

    def look(self) -> None:
        """See how far all are, and take down what has ended."""
        for index in list(self._works):
            self._look_at(self._works[index])

    def _look_at(self, work: _Work) -> None:
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
        self._ledger.put(
            index,
            loss=self._ledger.trials[index].loss if loss is None else loss,
            epochs=status.samples / per_epoch if per_epoch else before.epochs,
            updates=max(status.updates, before.updates),
            seconds=before.seconds + status.seconds,
            cost=before.cost + status.cost,
            worker_seconds=before.worker_seconds + status.worker_seconds,
        )

    def _consider(self, work: _Work) -> None:
        """An epoch has ended: should the trial be given up?"""
        if not self._curves.is_needed:
            return
        is_open = not work.pruning and work.killing is None
        trial = self._ledger.trials[work.trial]
        if self._curves.gives_up(trial, work.live.run.metrics(), is_asked=is_open):
            work.pruning = _stop(work)

    # Ends.

    def _take_end(self, work: _Work, status: RunStatus) -> None:
        """A run of a trial has ended."""
        run_id = work.live.run.run_id
        work.live.close()
        self._curves.keep(self._ledger.trials[work.trial])
        # From here on nothing is read that might fail and have the run looked at again.
        del self._works[work.trial]
        match status.state:
            case RunState.FINISHED:
                self._take_model(work.job, run_id, status, work)
            case RunState.KILLED:
                self._ledger.put(work.trial, status=TrialStatus.KILLED)
            case RunState.INTERRUPTED if work.killing is not None:  # the store failed while it was killed
                self._ledger.put(work.trial, status=TrialStatus.KILLED)
            case RunState.INTERRUPTED:
                self._ledger.put(work.trial, status=TrialStatus.FAILED, error="its run was interrupted")
            case _:
                self._ledger.put(
                    work.trial, status=TrialStatus.FAILED, error=status.error or "for an unknown reason"
                )
        self._tell(work.trial)

    def _take_model(self, job: Job, run_id: str, status: RunStatus, work: _Work | None = None) -> None:
        """A run has finished: see what its trial is now.

        Args:
            job: What the run was for.
            run_id: The run.
            status: How it ended.
            work: What it had been asked to do meanwhile; None: it ended when nobody drove the search.
        """
        trial = self._ledger.trials[job.trial]
        losses = (*trial.losses[: job.rung], *[None] * (job.rung - len(trial.losses)), trial.loss)
        changes: dict[str, Any] = {"status": self._status_after(trial, status.stop_reason, work)}
        try:
            score, scores = self._jobs.score(run_id, status, trial.loss)
        except (CirrusError, ValueError) as error:
            log.warning("trial %d cannot be scored: %s", job.trial, error)
            changes = {"status": TrialStatus.FAILED, "error": f"cannot be scored: {error}"}
        else:
            if trial.score is None or (score is not None and score > trial.score):
                # A rung may be better than those above it: more training is not always better.
                changes |= {"score": score, "scores": scores, "best_run": run_id}
        self._ledger.put(job.trial, losses=losses, **changes)

    def _status_after(self, trial: Trial, reason: str | None, work: _Work | None) -> TrialStatus:
        """Return what a trial is whose run has finished for a reason."""
        pruned = work is not None and work.pruning
        stopped = work is not None and work.stopping
        if reason == "stopped" and (pruned or stopped):
            return TrialStatus.PRUNED
        if reason != "max_updates":
            return TrialStatus.FINISHED
        ended = TrialStatus.PRUNED if stopped else self._schedule.ends_at(trial)
        if work is not None and work.killing is not None and not ended.ended:
            return TrialStatus.KILLED  # the rung ended before the kill reached it: it shall not be promoted
        return ended

    def _tell(self, index: int) -> None:
        if self._source is not None and self._ledger.trials[index].status.ended:
            self._source.tell(self._ledger.trials[index])

    def end_paused(self) -> None:
        """Nothing more begins: what waits at a rung has been pruned."""
        for trial in list(self._ledger.trials):
            if trial.status is TrialStatus.PAUSED:
                self._ledger.put(trial.index, status=TrialStatus.PRUNED)
                self._tell(trial.index)

    # What is asked of them.

    def kill(self, trial: Trial) -> None:
        """Begin to end a trial; one that does not work is killed at once."""
        work = self._works.get(trial.index)
        if work is None:
            if not trial.status.ended:
                self._ledger.put(trial.index, status=TrialStatus.KILLED)
                self._tell(trial.index)
        elif work.killing is None or work.kill_failed:
            if self._killers is None:
                self._killers = ThreadPoolExecutor(
                    max(MIN_KILLERS, self._config.max_concurrent), thread_name_prefix="cirrus-kill"
                )
            work.killing = self._killers.submit(work.live.run.kill)

    def stop(self) -> None:
        """Have all finish where they are."""
        for work in self._works.values():
            work.stopping = work.killing is None and _stop(work)

    def close(self) -> None:
        """End all, side by side; they can be gone on with."""
        works = list(self._works.values())
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

    # Those of another driver.

    def take_over(self) -> None:
        """Queue again what another driver left at work."""
        for trial in list(self._ledger.trials):
            if trial.status is TrialStatus.RUNNING:
                self._recover(trial)
            elif trial.runs:
                self._curves.keep(trial)

    def _recover(self, trial: Trial) -> None:
        """A trial was at work when its driver was lost: its run may have come to its end since."""
        run_id = trial.runs[-1] if trial.runs else ""
        status = self._jobs.find(run_id) if run_id else None
        if status is None:  # it was written down, but never began
            self._ledger.put(trial.index, status=TrialStatus.QUEUED, runs=trial.runs[:-1])
        elif status.state is RunState.FINISHED:
            job = Job(trial=trial.index, rung=trial.rung)
            self._note(trial.index, self._before_run(trial, run_id), status)
            self._take_model(job, run_id, status)
        elif status.state is RunState.KILLED:
            self._ledger.put(trial.index, status=TrialStatus.KILLED)
        elif status.state is RunState.FAILED:
            self._ledger.put(trial.index, status=TrialStatus.FAILED, error=status.error)
        else:
            self._ledger.put(trial.index, status=TrialStatus.QUEUED)


def _stop(work: _Work) -> bool:
    """Have a run finish where it is; return whether it will."""
    try:
        work.live.run.stop()
    except CirrusError as error:  # it is ending already
        log.info("trial %d: %s", work.trial, error)
        return False
    return True


def _loss(status: RunStatus, *, watches_validation: bool) -> float | None:
    """Return the loss that trials are compared by."""
    loss = status.validation_loss if watches_validation else status.train_loss
    return None if loss is None or math.isnan(loss) else loss
