"""Shard 0's second job: who works on what, how far the run is, and when it ends.

This is policy, with no sockets, threads or clock in it: every method that needs the time is given it, and the
shard calls all of them under one lock. What must outlive a crash is in :meth:`Coordinator.to_plain`, which
goes into the same recovery snapshot as shard 0's tables and marks, so that the two always fit each other.

Life of a run::

    RUNNING --(a stop criterion)--> DRAINING --(no lease open)--> EVALUATING --(reported)--> SAVING --> ENDED

A stop in the middle of an epoch drops the leases that nobody has begun; those in work are finished. A shard
that comes back with steps missing takes the run from EVALUATING or SAVING back to DRAINING, in which lost
leases are done again.
"""

from __future__ import annotations

import enum
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cirrus.config import RunConfig
from cirrus.errors import LeaseLostError, ProtocolError, RegistrationError
from cirrus.metrics import MetricPoint, RunState, RunStatus
from cirrus.paramserver.ledger import LeaseKey, Ledger
from cirrus.paramserver.protocol import Complete, Evaluation, StepTurn, Task
from cirrus.paramserver.run_progress import EpochLoss, RunProgress, Sums
from cirrus.paramserver.turns import Turns
from cirrus.paramserver.worker_times import WorkerTimes

log = logging.getLogger(__name__)

#: Between two points of the training curve.
METRIC_SECONDS = 0.25
#: In a long epoch the evaluator is asked this often.
EVALUATION_SECONDS = 10.0
#: An evaluator that has not reported after this long is given up for this time.
EVALUATION_TIMEOUT_SECONDS = 300.0
#: After so many failures in a row the run goes on without evaluations, or fails if its end depends on them.
MAX_FAILED_EVALUATIONS = 3
#: Ids of workers and their generations are below this.
MAX_WORKER_NUMBER = 2**53
#: Leases a worker may hold: the one it works on and the one it fetches meanwhile.
MAX_LEASES_PER_WORKER = 2
#: Where workers go in rounds, the first round waits so long for the last of them to register.
ROUND_JOIN_SECONDS = 20.0
#: Grants of one generation of shard 0 are numbered below this, so that a later generation's are all higher.
GRANTS_PER_GENERATION = 2**40

#: Of a shard that has not reported yet what it holds.
UNKNOWN_GENERATION = -1

TRAIN, EVALUATE = "train", "evaluate"


class Phase(enum.Enum):
    """Where the run is."""

    RUNNING = "running"
    DRAINING = "draining"
    EVALUATING = "evaluating"
    SAVING = "saving"
    ENDED = "ended"


@dataclass(slots=True)
class _Worker:
    worker: int
    generation: int
    role: str
    connection: int
    seen_at: float | None = None
    """When it last asked for something; None: not yet."""


@dataclass(slots=True)
class _EvaluationState:
    wanted: bool = False
    worker: int | None = None
    grant: int = 0
    started_at: float = 0.0
    finished_at: float = 0.0
    failures: int = 0
    asked_updates: int = -1
    """Updates when the evaluation under way was given out, -1 when others were under way."""
    updates: int = -1
    """Updates of the model that was last reported on, -1 when it was changing meanwhile."""


class Coordinator:
    """Leases, registration, metrics and the end of the run.

    Args:
        config: The run.
        generation: Of shard 0.
        now: Monotonic seconds.
        started_at: Unix time of the run's first start.
    """

    def __init__(self, config: RunConfig, generation: int, now: float, started_at: float) -> None:
        self.config = config
        self.ledger = Ledger(config.leases, config.stop.epochs, config.seed)
        self.phase = Phase.RUNNING
        self.final_state: RunState | None = None
        self.stop_reason: str | None = None
        self.error: str | None = None
        self.warning: str | None = None
        """What the run goes on without."""
        self.points: list[MetricPoint] = []
        """Points not yet taken by the shard."""
        self.checkpoint_wanted = False
        """True holds new leases back until those begun are done and a checkpoint was cut."""
        self.version = 0
        """Grows when :meth:`tick` changes something that waiting workers may care for."""
        self._started_at = started_at
        self._base_now = now
        self._working_since: float | None = None
        self._grant = generation * GRANTS_PER_GENERATION
        self._workers: dict[int, _Worker] = {}
        self._times = WorkerTimes()
        self._worker_correction = self._server_correction = 0.0
        self._told_seconds = 0.0
        """That former generations of shard 0 told of, at least."""
        self._shard_generations = [UNKNOWN_GENERATION] * config.n_shards
        self._shard_generations[0] = generation
        self._lossy_shards: set[int] = set()
        """That came back without steps, since all such steps were last done again."""
        self._progress = RunProgress()
        self._since_point = Sums()
        self._last_point_at = now
        self._evaluation = _EvaluationState(finished_at=now)
        self._first_asked_at: float | None = None
        self._rounds_epoch = -1
        """The epoch that the workers go through in rounds, where they do."""
        self._turns: Turns | None = None
        if config.staleness is not None and config.n_workers > 1:
            self._turns = Turns(config.staleness, self._busy)

    # Registration.

    def register(self, connection: int, worker: int, generation: int, role: str) -> None:
        """Take a worker on.

        Raises:
            RegistrationError: This id works already, under this or a newer generation.
            ProtocolError: There is no such role, or no worker can have such a number.
        """
        if role not in (TRAIN, EVALUATE):
            raise ProtocolError(f"there is no role {role!r}")
        if not (0 <= worker < MAX_WORKER_NUMBER and 0 <= generation < MAX_WORKER_NUMBER):
            raise ProtocolError(f"worker {worker}, generation {generation}: no worker has such a number")
        for other in list(self._workers.values()):
            if other.worker == worker and other.role == role:
                if other.generation >= generation:
                    raise RegistrationError(
                        f"worker {worker} is registered already, generation {other.generation}"
                    )
                self.disconnect(other.connection)
        self._workers[connection] = _Worker(worker, generation, role, connection)

    def note_seconds(self, connection: int, seconds: float, now: float) -> None:
        """A worker says how long its generation has worked."""
        worker = self._workers.get(connection)
        if worker is not None and math.isfinite(seconds):
            self._times.report(worker.role, worker.worker, worker.generation, seconds, now)

    def worker_of(self, connection: int, done: Complete) -> int:
        """Return the connection that the worker registered on who reports a lease over this one.

        The grant tells who it is: workers report over another connection than they registered on.
        """
        held = self.ledger.open.get((done.epoch, done.lease))
        return connection if held is None or held.grant != done.grant else held.worker

    def disconnect(self, connection: int, now: float | None = None) -> None:
        """A worker's control connection ended: whatever it held is given again.

        Args:
            connection: Which one.
            now: Monotonic seconds; None: the worker's time runs until it is heard of again.
        """
        worker = self._workers.pop(connection, None)
        if worker is None:
            return
        if now is not None:
            self._times.end(worker.role, worker.worker, worker.generation, now)
        if worker.role == EVALUATE:
            if self._evaluation.worker == connection:
                self._evaluation_failed()
            return
        if self._turns is not None:
            self._turns.leave(connection)
        for key, holder in list(self.ledger.open.items()):
            if holder.worker == connection:
                self.ledger.give_again(key)

    @property
    def n_workers(self) -> int:
        """Workers that train."""
        return sum(worker.role == TRAIN for worker in self._workers.values())

    @property
    def n_registered(self) -> int:
        """Workers and evaluators."""
        return len(self._workers)

    @property
    def is_served(self) -> bool:
        """True when somebody brings the run on: workers, an evaluator at its end, and at last shard 0."""
        if self.phase in (Phase.SAVING, Phase.ENDED):
            return True
        return self.n_workers > 0 or (self.phase is Phase.EVALUATING and self.n_registered > 0)

    # Tasks.

    def next_task(self, connection: int, now: float) -> Task | None:
        """Return what a worker shall do, or None when it shall wait."""
        worker = self._workers.get(connection)
        if self.phase == Phase.ENDED:
            return Task(action="end")
        if worker is None:
            raise RegistrationError("a task was asked for before registering")
        if self.phase == Phase.SAVING:
            return None
        if worker.role == EVALUATE:
            return self._next_evaluation(connection, now)
        worker.seen_at = now
        if UNKNOWN_GENERATION in self._shard_generations or not self._round_may_open(now):
            return None
        held = sum(holder.worker == connection for holder in self.ledger.open.values())
        if held >= MAX_LEASES_PER_WORKER:
            return None
        self._grant += 1
        key = self.ledger.grant(
            connection,
            self._grant,
            now,
            only_begun=self.checkpoint_wanted,
            may_take=self._in_round(worker, now),
        )
        if key is None:
            return None
        if self._working_since is None:
            self._working_since = now
        return Task(
            action=TRAIN,
            epoch=key[0],
            lease=key[1],
            grant=self._grant,
            first_step=self.ledger.first_step(key),
            n_workers=self.n_workers,
        )

    def complete(self, connection: int, done: Complete, own_mark_full: bool, now: float) -> bool:
        """A worker says that all shards acknowledged every step of a lease.

        Returns:
            False when a shard was replaced meanwhile or steps are missing here: the lease is given again.
        """
        key = (done.epoch, done.lease)
        # The grant tells who it is: workers say this over another connection than they registered on.
        held = self.ledger.open.get(key)
        is_holder = held is not None and held.grant == done.grant
        if not own_mark_full or list(done.generations) != self._shard_generations:
            # Of one who does not hold it any more, or says it twice, there is nothing to give again.
            if is_holder:
                self.ledger.give_again(key)
            return False
        worker = held.worker if held is not None and is_holder else connection
        if self.ledger.finish(key):
            self._progress.samples += self.config.leases[done.lease].n_rows
            self._progress.updates += self.config.leases[done.lease].n_steps
            self._since_point.add(done)
            if done.epoch == self._progress.completed_epochs:
                self._progress.epoch_loss.add(done)
        if self._turns is not None:
            self._turns.finish_lease(worker, key)
        for holder in self.ledger.open.values():
            if holder.worker == worker:
                holder.progress_at = now
        self._settle(now)
        return True

    def shard_started(
        self, shard: int, generation: int, completed_epochs: int, marks: Mapping[str, Sequence[int]]
    ) -> int:
        """A shard says what it holds; return how many leases it lost steps of."""
        self._shard_generations[shard] = max(generation, self._shard_generations[shard])
        if not self.ledger.has_lost:
            self._lossy_shards.clear()
        lost = self.ledger.reopen_lost(completed_epochs, marks)
        self.ledger.note_held(completed_epochs, marks)
        if lost:
            self._lossy_shards.add(shard)
        self._drain_again()
        return lost

    @property
    def behind_shards(self) -> tuple[int, ...]:
        """The shards for whose sake leases are done again at present."""
        if not self.ledger.has_lost or self.phase is Phase.ENDED:
            return ()
        return tuple(sorted(self._lossy_shards))

    def attached(self, key: LeaseKey) -> None:
        """A worker takes up a lease, perhaps by a grant of a former shard 0 that was forgotten with it."""
        if key not in self.ledger.open:
            self.ledger.note_begun(key[0], [key[1]])
            self._drain_again()

    def _drain_again(self) -> None:
        if self.phase in (Phase.EVALUATING, Phase.SAVING) and not self.ledger.at_rest:
            self.phase = Phase.DRAINING

    # Turns, where workers wait for each other.

    def take_turn(self, wish: StepTurn, now: float) -> bool:
        """Tell whether the holder of a lease may go on with its next step.

        Raises:
            LeaseLostError: The lease is not its any more.
        """
        key = (wish.epoch, wish.lease)
        holder = self.ledger.open.get(key)
        if self._turns is None or holder is None or holder.grant != wish.grant or self.phase is Phase.ENDED:
            raise LeaseLostError(f"lease {wish.lease} of epoch {wish.epoch} is not this worker's any more")
        holder.progress_at = now  # it waits for others, which is not its fault
        worker = self._workers[holder.worker]
        worker.seen_at = now
        self._turns.join(holder.worker, worker.worker)
        if wish.pushing:
            return self._turns.may_push(holder.worker)
        return self._turns.may_pull(holder.worker, (key, wish.position))

    @property
    def _goes_in_rounds(self) -> bool:
        return self._turns is not None and self.config.staleness == 0

    def _round_may_open(self, now: float) -> bool:
        """Tell whether leases of the epoch may be given out; with the first, count who is there."""
        if not self._goes_in_rounds or self._rounds_epoch == self.ledger.epoch:
            return True
        if self._first_asked_at is None:
            self._first_asked_at = now
        waits = now - self._first_asked_at < ROUND_JOIN_SECONDS
        if self._rounds_epoch < 0 and self.n_workers < self.config.n_workers and waits:
            return False
        assert self._turns is not None
        self._rounds_epoch = self.ledger.epoch
        self._turns.open_epoch()
        for worker in self._workers.values():
            if worker.role == TRAIN:
                self._turns.join(worker.connection, worker.worker)
        return True

    def _is_silent(self, worker: _Worker, now: float) -> bool:
        return worker.seen_at is not None and now - worker.seen_at > self.config.lease_seconds

    def _places_present(self, now: float) -> set[int]:
        """Return the places in a round of the workers that can be counted on."""
        holding = {holder.worker for holder in self.ledger.open.values()}
        return {
            worker.worker % self.config.n_workers
            for worker in self._workers.values()
            if worker.role == TRAIN and (worker.connection in holding or not self._is_silent(worker, now))
        }

    def _in_round(self, worker: _Worker, now: float) -> Callable[[int], bool] | None:
        """Return which leases are a worker's, by their place in the epoch's order; None: all of them.

        In rounds every worker has its own leases, so that it depends on nothing else which come together.
        Those of workers that are not there are anybody's.
        """
        if not self._goes_in_rounds:
            return None
        n_workers, present = self.config.n_workers, self._places_present(now)
        own = worker.worker % n_workers
        return lambda rank: rank % n_workers == own or rank % n_workers not in present

    def _busy(self) -> set[int]:
        """Return the connections of the workers that have a lease, or in rounds are to get one."""
        busy = {holder.worker for holder in self.ledger.open.values()}
        if self._goes_in_rounds:
            n_workers = self.config.n_workers
            ranks = self.ledger.ranks_to_do(only_begun=self.checkpoint_wanted)
            places = {rank % n_workers for rank in ranks}
            busy |= {c for c, worker in self._workers.items() if worker.worker % n_workers in places}
        return busy

    # Evaluation.

    @property
    def _evaluates(self) -> bool:
        return self.config.validation_url is not None and self._evaluation.failures < MAX_FAILED_EVALUATIONS

    def _next_evaluation(self, connection: int, now: float) -> Task | None:
        state = self._evaluation
        if not state.wanted or state.worker is not None:
            return None
        self._grant += 1
        state.wanted, state.worker, state.grant, state.started_at = False, connection, self._grant, now
        state.asked_updates = -1 if self.ledger.open else self._progress.updates
        return Task(action=EVALUATE, epoch=self._progress.completed_epochs, grant=self._grant)

    def evaluated(self, report: Evaluation, now: float) -> None:
        """The evaluator found a loss."""
        state = self._evaluation
        if report.grant != state.grant or state.worker is None:
            return
        state.worker, state.failures, state.finished_at = None, 0, now
        state.updates = state.asked_updates if state.asked_updates == self._progress.updates else -1
        self._progress.validation_loss = report.loss
        self._point(now, validation=report)
        self._settle(now)

    def _evaluation_failed(self) -> None:
        state, stop = self._evaluation, self.config.stop
        state.worker = None
        state.failures += 1
        state.wanted = True
        if state.failures < MAX_FAILED_EVALUATIONS:
            return
        problem = f"the validation loss could not be computed {state.failures} times in a row"
        if self.phase is Phase.RUNNING and (stop.early_stopping or stop.target_loss is not None):
            watcher = "early_stopping" if stop.early_stopping else "target_loss"
            self.end("failed", RunState.FAILED, f"{problem}, and {watcher} watches it")
        elif self.phase is not Phase.ENDED:
            self.warning = problem
            log.warning("%s; the run goes on without it", problem)

    # Time.

    @property
    def shard_generations(self) -> tuple[int, ...]:
        """The generation of every shard that the ledger counts on."""
        return tuple(self._shard_generations)

    @property
    def updates(self) -> int:
        """Steps done so far."""
        return self._progress.updates

    def lifetime(self, now: float) -> float:
        """Return how long shard 0 has been up, over all its generations: what is paid for."""
        return self._progress.lifetime + now - self._base_now

    def seconds(self, now: float) -> float:
        """Return how long the run has worked, from its first lease on, over all generations of shard 0."""
        if self._working_since is None:
            return self._progress.seconds
        return self._progress.seconds + now - self._working_since

    def cost(self, now: float) -> float:
        """Return what the run has cost so far, in dollars."""
        fixed = self.lifetime(now) / 3600.0 * self.config.dollars_per_hour
        return fixed + self._server_correction + self._worker_cost(now)

    def _worker_cost(self, now: float) -> float:
        return self._times.dollars(self.config.worker_prices, now) + self._worker_correction

    def keep_told(self, status: RunStatus) -> None:
        """Count on from what a former generation of shard 0 told of: time, and what clients added.

        Its last steps may be lost with it, and are done again; the time that they took was spent.
        """
        self._worker_correction = status.worker_correction
        self._server_correction = status.server_correction
        self._told_seconds = status.seconds
        self._count_told()

    def _count_told(self) -> None:
        missing = max(0.0, self._told_seconds - self._progress.seconds)
        self._progress.seconds += missing
        self._progress.lifetime += missing

    def tick(self, now: float, mark_of: Callable[[LeaseKey], int]) -> None:
        """Look at the clock: expired leases, limits, curve points.

        Args:
            now: Monotonic seconds.
            mark_of: The next position of a lease on this shard, which tells whether it makes progress.
        """
        before = (self.phase, self.ledger.epoch, self.ledger.given_again, self._evaluation.wanted)
        self._look_at_clock(now, mark_of)
        if before != (self.phase, self.ledger.epoch, self.ledger.given_again, self._evaluation.wanted):
            self.version += 1

    def _look_at_clock(self, now: float, mark_of: Callable[[LeaseKey], int]) -> None:
        self._expire(now, mark_of)
        stop = self.config.stop
        if self.phase == Phase.RUNNING:
            if stop.max_seconds is not None and self.lifetime(now) >= stop.max_seconds:
                self.end("max_seconds")
            elif stop.max_cost is not None and self.cost(now) >= stop.max_cost:
                self.end("max_cost")
        state = self._evaluation
        if state.worker is not None and now - state.started_at > EVALUATION_TIMEOUT_SECONDS:
            self._evaluation_failed()
        idle = state.worker is None and not state.wanted
        if self._evaluates and idle and now - state.finished_at > EVALUATION_SECONDS:
            state.wanted = self.phase == Phase.RUNNING
        if now - self._last_point_at >= METRIC_SECONDS and self._since_point.weight > 0:
            self._point(now)
        self._settle(now)

    def _expire(self, now: float, mark_of: Callable[[LeaseKey], int]) -> None:
        if self._turns is not None:
            for worker in self._workers.values():
                worker.seen_at = now if worker.seen_at is None else worker.seen_at
                if self._is_silent(worker, now):
                    self._turns.leave(worker.connection)
        active: dict[int, float] = {}
        for key, holder in self.ledger.open.items():
            mark = mark_of(key)
            if mark != holder.mark:
                holder.mark, holder.progress_at = mark, now
            active[holder.worker] = max(active.get(holder.worker, 0.0), holder.progress_at)
        for key, holder in list(self.ledger.open.items()):
            if now - active[holder.worker] > self.config.lease_seconds:
                self.ledger.give_again(key)
                if self._turns is not None:
                    self._turns.leave(holder.worker)

    # Ends.

    def end(self, reason: str, state: RunState = RunState.FINISHED, error: str | None = None) -> None:
        """End the run. Killed and failed ones save no model and wait for nobody."""
        if self.phase is not Phase.RUNNING and state == RunState.FINISHED:
            return
        self.stop_reason, self.final_state, self.error = reason, state, error
        if state == RunState.FINISHED:
            self.ledger.drop_rest()
            self.phase = Phase.DRAINING
        else:
            self.phase = Phase.ENDED

    def saved(self) -> None:
        """The model is in the run folder; unless a shard lost steps meanwhile, the run is over."""
        if self.phase == Phase.SAVING:
            self.phase = Phase.ENDED

    def _settle(self, now: float) -> None:
        """Move on as far as the state allows."""
        if self.phase == Phase.RUNNING and self.ledger.epoch_complete:
            self._close_epoch(now)
        if self.phase == Phase.RUNNING and self._has_enough_updates:
            self.end("max_updates")
        while self.phase == Phase.DRAINING and self.ledger.epoch_complete and self.ledger.is_behind:
            self._count_epoch(now)
            self.ledger.advance()
            self.ledger.drop_rest()
        evaluation = self._evaluation
        if self.phase == Phase.DRAINING and self.ledger.epoch_complete:
            self.phase = Phase.EVALUATING
            if self._since_point.weight > 0:
                self._point(now)
            if self._evaluates and evaluation.updates != self._progress.updates:
                # One under way has seen an older model; its report will not fit the next grant.
                evaluation.wanted, evaluation.worker = True, None
        if self.phase == Phase.EVALUATING and (
            not self._evaluates or evaluation.updates == self._progress.updates
        ):
            self.phase = Phase.SAVING

    def _count_epoch(self, now: float) -> None:
        progress = self._progress
        if progress.completed_epochs > self.ledger.epoch:
            return
        progress.completed_epochs = self.ledger.epoch + 1
        progress.train_loss = progress.epoch_loss.mean
        progress.epoch_is_known = progress.epoch_loss.covers(self.config.rows_per_epoch)
        self._point(now, end_of_epoch=True)
        progress.epoch_loss = EpochLoss()
        if self._evaluates:
            self._evaluation.wanted, self._evaluation.worker = True, None

    def _close_epoch(self, now: float) -> None:
        progress, stop = self._progress, self.config.stop
        self._count_epoch(now)
        if progress.completed_epochs >= stop.epochs:
            self.end("epochs")
            return
        if self._has_enough_updates:
            self.end("max_updates")
            return
        decides = self._evaluates and (stop.early_stopping or stop.target_loss is not None)
        if decides and self._evaluation.updates != progress.updates:
            return
        if self._reached_target(decides):
            self.end("target_loss")
            return
        watched = progress.validation_loss if decides and stop.early_stopping else self._epoch_loss
        if stop.tol is not None and progress.patience.is_over(watched, stop.tol):
            self.end("early_stopping" if stop.early_stopping else "tol")
            return
        self.ledger.advance()

    @property
    def _has_enough_updates(self) -> bool:
        limit = self.config.stop.max_updates
        return limit is not None and self._progress.updates >= limit

    @property
    def _epoch_loss(self) -> float | None:
        """The training loss of the epoch that was completed, where enough of it is known to decide by it."""
        return self._progress.train_loss if self._progress.epoch_is_known else None

    def _reached_target(self, decides: bool) -> bool:
        loss = self._progress.validation_loss if decides else self._epoch_loss
        target = self.config.stop.target_loss
        return target is not None and loss is not None and loss <= target

    # Reports.

    def _point(self, now: float, *, end_of_epoch: bool = False, validation: Evaluation | None = None) -> None:
        sums, progress = self._since_point, self._progress
        loss = progress.train_loss if end_of_epoch else sums.mean_loss
        if not end_of_epoch and loss is not None:
            progress.train_loss = loss
        self.points.append(
            MetricPoint(
                seconds=self.seconds(now),
                epoch=progress.completed_epochs,
                updates=progress.updates,
                samples=progress.samples,
                train_loss=loss,
                validation_loss=None if validation is None else validation.loss,
                validation_metrics={} if validation is None else dict(validation.metrics),
                cost=self.cost(now),
                n_workers=self.n_workers,
                end_of_epoch=end_of_epoch,
                fetch_seconds=sums.fetch,
                pull_seconds=sums.pull,
                compute_seconds=sums.compute,
                push_seconds=sums.push,
            )
        )
        self._since_point = Sums()
        self._last_point_at = now

    def status(self, now: float, unix_now: float, counts: Mapping[str, int]) -> RunStatus:
        """Return the run's summary."""
        progress = self._progress
        if self.phase == Phase.ENDED and self.final_state is not None:
            state = self.final_state
        else:
            state = RunState.RUNNING if progress.updates or self._workers else RunState.STARTING
        return RunStatus(
            state=state,
            epoch=progress.completed_epochs,
            epochs=self.config.stop.epochs,
            updates=progress.updates,
            samples=progress.samples,
            samples_per_epoch=self.config.rows_per_epoch,
            train_loss=progress.train_loss,
            validation_loss=progress.validation_loss,
            cost=self.cost(now),
            worker_cost=self._worker_cost(now),
            worker_correction=self._worker_correction,
            server_correction=self._server_correction,
            n_workers=self.n_workers,
            workers={str(worker.worker): worker.generation for worker in self._workers.values()},
            worker_seconds=self._times.seconds(now),
            invocations=self._times.invocations,
            seconds=self.seconds(now),
            started_at=self._started_at,
            heartbeat_at=unix_now,
            stop_reason=self.stop_reason,
            error=self.error,
            warning=self.warning,
            behind_shards=self.behind_shards,
            counts={**counts, "leases_given_again": self.ledger.given_again},
        )

    # What outlives a crash.

    def to_plain(self, now: float) -> dict[str, Any]:
        """Return what a later generation needs, as JSON."""
        return {
            **self._progress.to_plain(seconds=self.seconds(now), lifetime=self.lifetime(now)),
            "ledger": self.ledger.to_plain(),
            "worker_times": self._times.to_plain(now),
            "started_at": self._started_at,
            "stop_reason": self.stop_reason if self._is_finishing else None,
        }

    @property
    def _is_finishing(self) -> bool:
        """True when the run is on its way to a model; one that was killed goes on if it is resumed."""
        return self.phase is not Phase.RUNNING and self.final_state is RunState.FINISHED

    def restore(self, plain: Mapping[str, Any]) -> None:
        """Go on from what :meth:`to_plain` returned."""
        self.ledger.restore(plain["ledger"])
        self._times.restore(plain["worker_times"])
        self._started_at = float(plain["started_at"])
        self._progress = RunProgress.from_plain(plain)
        self._count_told()
        if plain["stop_reason"] is not None:
            self.stop_reason, self.final_state = plain["stop_reason"], RunState.FINISHED
            self.phase = Phase.DRAINING

    def resume(self, plain: Mapping[str, Any]) -> None:
        """Begin a new run where a checkpoint of another left off: its place in the schedule, not its limits.

        A checkpoint that was cut at the very end of an epoch opens the next one. Leases that a stop dropped
        are to do again.
        """
        ledger = plain["ledger"]
        ledger = {**ledger, "todo": [*ledger["todo"], *ledger["dropped"]], "dropped": []}
        fresh: dict[str, Any] = {"stop_reason": None, "worker_times": WorkerTimes().to_plain(0.0)}
        fresh |= RunProgress.FRESH
        self.restore({**plain, **fresh, "ledger": ledger})
        self.phase = Phase.RUNNING
        self.stop_reason = self.final_state = None
