"""The coordinator: policy alone, with a clock that the tests move."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import pytest
from ps_runs import BATCH_ROWS, complete, make_config, make_leases

from cirrus.config import PATIENCE_EPOCHS, RunConfig, WorkerPrices
from cirrus.errors import RegistrationError
from cirrus.metrics import RunState, RunStatus
from cirrus.paramserver import coordinator as module
from cirrus.paramserver.coordinator import Coordinator, Phase
from cirrus.paramserver.protocol import Evaluation, StepTurn, Task

UNIX_NOW = 1_000_000_000.0


class Desk:
    """A coordinator with a clock of its own, and shards that do whatever they are told.

    Args:
        config: The run, by default two epochs of three leases on one shard.
    """

    def __init__(self, config: RunConfig | None = None, generation: int = 1) -> None:
        self.config = config or make_config()
        self.now = 100.0
        self.generations = [generation] * self.config.n_shards
        self.marks: dict[tuple[int, int], int] = {}
        self.coordinator = Coordinator(self.config, generation, self.now, UNIX_NOW)
        for shard in range(1, self.config.n_shards):
            self.coordinator.shard_started(shard, generation, 0, {})

    def pass_time(self, seconds: float) -> None:
        """Let time pass, and the coordinator look at the clock."""
        self.now += seconds
        self.coordinator.tick(self.now, lambda key: self.marks.get(key, 0))

    def register(self, connection: int, worker: int | None = None, role: str = "train") -> None:
        """Register a worker of its connection's number."""
        self.coordinator.register(connection, connection if worker is None else worker, 1, role)

    def ask(self, connection: int) -> Task | None:
        """Ask for a task."""
        return self.coordinator.next_task(connection, self.now)

    def lease(self, connection: int) -> Task:
        """Ask for a lease; there has to be one."""
        task = self.ask(connection)
        assert task is not None
        assert task.action == "train"
        return task

    def done(self, task: Task, *, connection: int = 1, loss: float = 1.0, full: bool = True) -> bool:
        """Say that a lease is done."""
        n_steps = self.config.leases[task.lease].n_steps
        said = complete(task, self.generations, n_steps, loss=loss)
        return self.coordinator.complete(connection, said, full, self.now)

    def finish_epoch(self, loss: float = 1.0) -> None:
        """Have worker 1 do all that there is to do in this epoch."""
        epoch = self.coordinator.ledger.epoch
        while (task := self.ask(1)) is not None and task.action == "train" and task.epoch == epoch:
            self.pass_time(1.0)
            assert self.done(task, loss=loss)
        if task is not None and task.action == "train":
            self.coordinator.ledger.give_again((task.epoch, task.lease))

    def evaluate(self, loss: float, connection: int = 2) -> bool:
        """Have the evaluator do what it is asked for; tell whether it was asked."""
        task = self.ask(connection)
        if task is None:
            return False
        assert task.action == "evaluate"
        self.coordinator.evaluated(Evaluation(epoch=task.epoch, grant=task.grant, loss=loss), self.now)
        return True

    @property
    def phase(self) -> Phase:
        """Where the run is."""
        return self.coordinator.phase

    @property
    def reason(self) -> str | None:
        """Why it ends."""
        return self.coordinator.stop_reason


def desk(*n_steps: int, stop: Mapping[str, Any] | None = None, **options: Any) -> Desk:
    """Return a desk with worker 1 and, where there is validation, evaluator 2."""
    made = Desk(make_config(leases=make_leases(*(n_steps or (2, 3, 1))), stop=stop, **options))
    made.register(1)
    if made.config.validation_url is not None:
        made.register(2, role="evaluate")
    return made


def status_of(run: Desk) -> RunStatus:
    """Return what the run would tell now."""
    return run.coordinator.status(run.now, UNIX_NOW, {})


# Registration.


def test_a_worker_of_the_same_id_is_refused() -> None:
    """A duplicate, or a generation that is older than the one at work, may not work; a newer one may."""
    coordinator = Desk().coordinator
    coordinator.register(1, 7, 3, "train")
    for generation in (3, 2):
        with pytest.raises(RegistrationError, match="worker 7 is registered already, generation 3"):
            coordinator.register(2, 7, generation, "train")
    coordinator.register(3, 7, 3, "evaluate")
    coordinator.register(4, 7, 4, "train")
    assert (coordinator.n_workers, coordinator.n_registered) == (1, 2)
    coordinator.disconnect(4)
    coordinator.register(5, 7, 3, "train")


def test_a_newer_generation_takes_the_leases_of_the_older() -> None:
    """What the older one held is given again at once, and the older one gets no more."""
    run = desk()
    held = run.lease(1)
    run.coordinator.register(9, 1, 2, "train")
    assert run.lease(9).lease == held.lease
    with pytest.raises(RegistrationError, match="before registering"):
        run.ask(1)


def test_nobody_works_unregistered() -> None:
    """Without having registered there is no task."""
    with pytest.raises(RegistrationError, match="before registering"):
        Desk().ask(1)


def test_nobody_works_before_all_shards_are_known() -> None:
    """A shard that has not said what it holds could lack steps of any lease."""
    run = Desk(make_config(n_shards=3))
    fresh = Coordinator(run.config, 1, run.now, UNIX_NOW)
    fresh.register(1, 1, 1, "train")
    for shard in (2, 1):
        assert fresh.next_task(1, run.now) is None
        fresh.shard_started(shard, 1, 0, {})
    assert fresh.next_task(1, run.now) is not None


# Leases.


def test_a_worker_holds_two_leases_at_most() -> None:
    """The one that it works on, and the one that it fetches meanwhile."""
    run = desk(1, 1, 1, 1, 1)
    first, second = run.lease(1), run.lease(1)
    assert run.ask(1) is None
    run.register(5)
    assert run.lease(5) not in (first, second)
    assert run.done(first)
    assert run.ask(1) is not None


def test_grants_are_numbered_upwards_over_generations() -> None:
    """A later grant has the higher number, also when shard 0 was replaced in between."""
    run = desk()
    grants = [run.lease(1).grant, run.lease(1).grant]
    after = Desk(generation=2)
    after.register(1)
    grants.append(after.lease(1).grant)
    assert grants == sorted(set(grants))


def test_a_worker_that_goes_away_gives_everything_back() -> None:
    """When its connection ends, the next who asks gets its leases, with new grants."""
    run = desk()
    held = [run.lease(1), run.lease(1)]
    run.coordinator.disconnect(1)
    run.coordinator.disconnect(1)
    run.register(5)
    again = [run.lease(5), run.lease(5)]
    assert [task.lease for task in again] == [task.lease for task in held]
    assert [task.first_step for task in again] == [task.first_step for task in held]
    assert min(task.grant for task in again) > max(task.grant for task in held)
    assert run.coordinator.ledger.given_again == 2


def test_a_lease_without_progress_expires() -> None:
    """A worker that applies nothing for lease_seconds loses all that it holds; one that does, nothing."""
    run = desk(2, 3, 3, 3, lease_seconds=10.0)
    working, waiting = run.lease(1), run.lease(1)
    for mark in (1, 2, 3):
        run.pass_time(9.0)
        assert run.coordinator.ledger.given_again == 0
        run.marks[(0, working.lease)] = mark
        run.pass_time(0.0)
    run.pass_time(10.5)
    assert run.coordinator.ledger.given_again == 2
    assert not run.coordinator.ledger.open
    run.register(5)
    assert [run.lease(5).lease, run.lease(5).lease] == [working.lease, waiting.lease]


def test_the_lease_that_waits_does_not_expire_when_the_one_in_work_is_done() -> None:
    """A finished lease is progress of its worker, over whatever connection it was said.

    Workers register over one connection and push, and say that they are done, over another.
    """
    run = desk(2, 3, 3, lease_seconds=10.0)
    working, _ = run.lease(1), run.lease(1)
    for mark in (1, 2):
        run.pass_time(9.0)
        run.marks[(0, working.lease)] = mark
        run.pass_time(0.0)
    assert run.done(working, connection=77)
    run.pass_time(1.0)
    assert run.coordinator.ledger.given_again == 0


def test_epochs_follow_each_other_strictly() -> None:
    """No lease of the next epoch is granted before the last of this one is done, lost ones included."""
    run = desk(1, 1, n_shards=2, stop={"epochs": 3})
    first, second = run.lease(1), run.lease(1)
    run.register(5)
    assert run.ask(5) is None
    assert run.done(first)
    assert run.ask(5) is None
    run.generations[1] = 2
    assert run.coordinator.shard_started(1, 2, 0, {"0": [0, 0]}) == 1
    lost = run.lease(5)
    assert (lost.epoch, lost.lease) == (0, first.lease)
    assert run.done(second)
    assert run.ask(1) is None
    assert run.done(lost)
    assert run.lease(1).epoch == 1


# Completion.


def test_done_is_believed_of_the_shards_that_live_alone() -> None:
    """When a shard was replaced since, or shard 0 lacks steps, the lease is given again, at its place."""
    run = desk(2, n_shards=2)
    task = run.lease(1)
    assert not run.done(task, full=False)
    again = run.lease(1)
    assert (again.lease, again.first_step) == (task.lease, task.first_step)
    assert again.grant > task.grant
    run.coordinator.shard_started(1, 2, 0, {"0": [2]})
    assert not run.done(again)
    run.generations[1] = 2
    assert run.done(run.lease(1))
    assert run.coordinator.updates == 2


def test_done_is_counted_once() -> None:
    """A second word of the same lease adds nothing to updates, samples and losses."""
    run = desk(2, 3)
    task = run.lease(1)
    assert run.done(task)
    assert run.done(task, loss=1e9)
    status = run.coordinator.status(run.now, UNIX_NOW, {})
    assert (status.updates, status.samples) == (2, 2 * BATCH_ROWS)
    run.finish_epoch(loss=3.0)
    closing = run.coordinator.points[-1]
    assert closing.end_of_epoch
    assert closing.train_loss == pytest.approx((2 * 1.0 + 3 * 3.0) / 5)


# How a run ends.


def finish(run: Desk) -> None:
    """Let a run that drains go on to its end."""
    run.pass_time(0.1)
    assert run.phase == Phase.SAVING
    assert run.ask(1) is None
    run.coordinator.saved()
    assert run.phase == Phase.ENDED
    assert run.ask(1) == Task(action="end")
    assert run.ask(99) == Task(action="end")


def test_a_run_ends_after_its_epochs() -> None:
    """Every lease of every epoch is done, then the model saved, then all are sent home."""
    run = desk(2, 3, 1, stop={"epochs": 3})
    for epoch in range(3):
        assert run.phase == Phase.RUNNING
        run.finish_epoch()
        assert run.coordinator.status(run.now, UNIX_NOW, {}).epoch == epoch + 1
    assert run.reason == "epochs"
    finish(run)
    status = run.coordinator.status(run.now, UNIX_NOW, {"x": 1})
    assert status.state is RunState.FINISHED
    assert (status.epoch, status.epochs, status.updates, status.samples) == (3, 3, 18, 180)
    assert status.counts == {"x": 1, "leases_given_again": status.counts["leases_given_again"]}
    assert status.heartbeat_at == status.started_at == UNIX_NOW


def test_tol_ends_a_run_that_does_not_improve() -> None:
    """As in scikit-learn: after five epochs that are not better by tol than the best before."""
    run = desk(stop={"epochs": 50, "tol": 0.01})
    losses = [1.0, 0.9, *[0.895] * (PATIENCE_EPOCHS - 1), 0.88, *[0.88] * PATIENCE_EPOCHS]
    for loss in losses[:-1]:
        run.finish_epoch(loss)
        assert run.phase == Phase.RUNNING
    run.finish_epoch(losses[-1])
    assert run.reason == "tol"
    finish(run)


def test_an_epoch_whose_loss_is_of_some_rows_decides_nothing() -> None:
    """What a killed worker found before is not known: the mean of the others is no target, and no best."""
    run = desk(2, 3, 1, stop={"epochs": 50, "tol": 0.01, "target_loss": 0.5})
    run.finish_epoch(1.0)
    task = run.lease(1)
    rest = complete(task, run.generations, run.config.leases[task.lease].n_steps - 1, loss=0.1)
    assert run.coordinator.complete(1, rest, True, run.now)
    run.finish_epoch(0.1)
    assert run.coordinator.status(run.now, UNIX_NOW, {}).train_loss == pytest.approx(0.1)
    after = Desk(run.config, generation=2)
    after.register(1)
    after.coordinator.restore(json.loads(json.dumps(run.coordinator.to_plain(run.now))))
    for epoch in range(PATIENCE_EPOCHS + 1):
        assert after.phase == Phase.RUNNING
        after.finish_epoch(0.98 - 0.02 * epoch)
    after.finish_epoch(0.4)
    assert after.reason == "target_loss"
    finish(after)


def test_target_loss_ends_a_run() -> None:
    """The loss of an epoch at or below the target is enough."""
    run = desk(stop={"epochs": 50, "target_loss": 0.5})
    run.finish_epoch(0.51)
    assert run.phase == Phase.RUNNING
    run.finish_epoch(0.5)
    assert run.reason == "target_loss"
    finish(run)


@pytest.mark.parametrize(
    ("stop", "options", "reason"),
    [
        ({"max_seconds": 60.0}, {}, "max_seconds"),
        ({"max_cost": 0.5}, {"dollars_per_hour": 30.0}, "max_cost"),
    ],
)
def test_limits_end_a_run_in_the_middle(
    stop: dict[str, float], options: dict[str, float], reason: str
) -> None:
    """At the limit no lease is begun any more; what is begun is finished, and the model saved."""
    run = desk(2, 3, 1, stop={"epochs": 50, **stop}, **options)
    task = run.lease(1)
    run.marks[(0, task.lease)] = 1
    run.pass_time(59.0)
    assert run.phase == Phase.RUNNING
    run.marks[(0, task.lease)] = 2
    run.pass_time(1.0)
    assert (run.phase, run.reason) == (Phase.DRAINING, reason)
    assert run.ask(1) is None
    assert run.done(task)
    finish(run)
    status = run.coordinator.status(run.now, UNIX_NOW, {})
    assert status.updates == run.config.leases[task.lease].n_steps


def test_the_time_of_workers_costs_and_counts_towards_the_limit() -> None:
    """Workers that are billed by their time are, from what they say of it; a restart forgets none of it."""
    prices = WorkerPrices(dollars_per_second=0.01, dollars_per_invocation=0.1)
    run = desk(2, 3, 1, stop={"epochs": 50, "max_cost": 1.0}, worker_prices=prices)
    run.coordinator.note_seconds(1, 20.0, run.now)
    assert run.coordinator.cost(run.now) == pytest.approx(0.3)
    task = run.lease(1)
    run.pass_time(10.0)
    assert run.coordinator.cost(run.now) == pytest.approx(0.4)
    status = run.coordinator.status(run.now, UNIX_NOW, {})
    assert (status.worker_seconds, status.invocations) == (pytest.approx(30.0), 1)
    assert status.workers == {"1": 1}
    after = Coordinator(run.config, 2, 0.0, UNIX_NOW)
    after.restore(json.loads(json.dumps(run.coordinator.to_plain(run.now))))
    assert after.cost(0.0) == pytest.approx(0.4)
    run.marks[(0, task.lease)] = 1
    run.pass_time(60.0)
    assert (run.phase, run.reason) == (Phase.DRAINING, "max_cost")


def test_a_draining_run_finishes_what_others_began() -> None:
    """A lease that was begun and lost is done to its end, since its steps cannot be taken back."""
    run = desk(2, 3, 1)
    lost, held = run.lease(1), run.lease(1)
    run.register(5)
    run.coordinator.disconnect(1)
    run.coordinator.end("stopped")
    assert run.phase == Phase.DRAINING
    tasks = [run.lease(5), run.lease(5)]
    assert {task.lease for task in tasks} == {lost.lease, held.lease}
    for task in tasks:
        assert run.phase == Phase.DRAINING
        assert run.done(task, connection=5)
    assert run.ask(5) is None
    assert run.phase == Phase.SAVING


def test_a_stop_after_the_end_changes_nothing() -> None:
    """A run that saves, or has ended, keeps its reason; a kill acts as long as it has not ended."""
    run = desk(stop={"epochs": 1})
    run.finish_epoch()
    assert run.phase == Phase.SAVING
    run.coordinator.end("stopped")
    assert (run.phase, run.reason) == (Phase.SAVING, "epochs")
    run.coordinator.end("killed", RunState.KILLED)
    assert (run.phase, run.reason) == (Phase.ENDED, "killed")
    run.coordinator.saved()
    assert run.coordinator.status(run.now, UNIX_NOW, {}).state is RunState.KILLED


@pytest.mark.parametrize("state", [RunState.KILLED, RunState.FAILED, RunState.INTERRUPTED])
def test_a_killed_run_waits_for_nobody(state: RunState) -> None:
    """Open leases do not hold it up, and everybody is sent home at once."""
    run = desk()
    run.lease(1)
    run.coordinator.end("why", state, "what happened")
    assert run.ask(1) == Task(action="end")
    status = run.coordinator.status(run.now, UNIX_NOW, {})
    assert (status.state, status.stop_reason, status.error) == (state, "why", "what happened")


# Evaluation.

VALIDATED = {"validation_url": "somewhere"}


def test_the_evaluator_is_asked_after_each_epoch() -> None:
    """It reports the loss of the model, which becomes a point of the curve; training goes on meanwhile."""
    run = desk(stop={"epochs": 3}, **VALIDATED)
    assert not run.evaluate(0.0)
    run.finish_epoch()
    assert run.phase == Phase.RUNNING
    run.lease(1)
    assert run.evaluate(0.25)
    assert not run.evaluate(0.0)
    point = run.coordinator.points[-1]
    assert (point.validation_loss, point.epoch) == (0.25, 1)
    assert run.coordinator.status(run.now, UNIX_NOW, {}).validation_loss == 0.25


def test_the_evaluator_is_asked_in_long_epochs_too() -> None:
    """Every ten seconds, as long as the run runs."""
    run = desk(1000, **VALIDATED, lease_seconds=1e9)
    run.lease(1)
    for _ in range(3):
        run.pass_time(module.EVALUATION_SECONDS - 0.1)
        assert not run.evaluate(0.0)
        run.pass_time(0.2)
        assert run.evaluate(0.5)


def test_the_final_model_is_evaluated() -> None:
    """The run waits for the loss of the very model that it will save."""
    run = desk(stop={"epochs": 1}, **VALIDATED)
    early = None
    while (task := run.ask(1)) is not None:
        run.pass_time(module.EVALUATION_SECONDS + 1)
        early = early or run.ask(2)
        assert run.done(task)
    assert early is not None
    assert run.phase == Phase.EVALUATING
    # A report on an older model does not count for the final one.
    run.coordinator.evaluated(Evaluation(epoch=0, grant=early.grant, loss=9.0), run.now)
    assert run.phase == Phase.EVALUATING
    assert run.evaluate(0.5)
    finish(run)
    assert run.coordinator.status(run.now, UNIX_NOW, {}).validation_loss == 0.5


def test_early_stopping_watches_the_validation_loss() -> None:
    """The next epoch waits for the evaluator; after five without improvement the run ends."""
    run = desk(stop={"epochs": 50, "tol": 0.01, "early_stopping": True}, **VALIDATED)
    for loss in [1.0, 0.5, *[0.495] * PATIENCE_EPOCHS]:
        assert run.phase == Phase.RUNNING
        run.finish_epoch(loss=1 / (run.now + 1))  # the training loss improves all the time
        assert run.ask(1) is None
        assert run.evaluate(loss)
    assert run.reason == "early_stopping"
    finish(run)


def test_target_loss_is_the_validation_loss_where_there_is_one() -> None:
    """The training loss alone does not end a run that has validation data."""
    run = desk(stop={"epochs": 50, "target_loss": 0.5}, **VALIDATED)
    run.finish_epoch(0.1)
    assert run.evaluate(0.6)
    assert run.phase == Phase.RUNNING
    run.finish_epoch(0.1)
    assert run.evaluate(0.5)
    assert run.reason == "target_loss"
    finish(run)


def test_an_evaluator_that_dies_is_asked_again() -> None:
    """Another evaluator gets the task; after three failures in a row the run goes on without, and says so."""
    run = desk(stop={"epochs": 2}, **VALIDATED)
    run.finish_epoch(0.6)
    for connection in (2, 12, 22):
        assert run.coordinator.status(run.now, UNIX_NOW, {}).warning is None
        task = run.ask(connection)
        assert task is not None
        assert task.action == "evaluate"
        run.coordinator.disconnect(connection)
        run.register(connection + 10, role="evaluate")
    warning = run.coordinator.status(run.now, UNIX_NOW, {}).warning
    assert warning == "the validation loss could not be computed 3 times in a row"
    run.finish_epoch(0.6)
    finish(run)


@pytest.mark.parametrize(
    "stop", [{"epochs": 9, "target_loss": 0.5}, {"epochs": 9, "early_stopping": True, "tol": 0.01}]
)
def test_a_run_that_watches_the_validation_loss_fails_without_it(stop: dict[str, Any]) -> None:
    """It does not change to another rule behind its user's back."""
    run = desk(stop=stop, **VALIDATED)
    run.finish_epoch(0.6)
    for connection in (2, 12, 22):
        assert run.ask(1) is None
        assert run.ask(connection) is not None
        run.coordinator.disconnect(connection)
        run.register(connection + 10, role="evaluate")
    status = run.coordinator.status(run.now, UNIX_NOW, {})
    assert status.state is RunState.FAILED
    watcher = "target_loss" if "target_loss" in stop else "early_stopping"
    assert status.error is not None
    assert status.error.endswith(f"3 times in a row, and {watcher} watches it")


def test_an_evaluator_that_hangs_is_given_up() -> None:
    """After five minutes its task is given to whoever asks, and its late report is not taken."""
    run = desk(stop={"epochs": 1}, **VALIDATED)
    run.finish_epoch()
    stuck = run.ask(2)
    assert stuck is not None
    run.pass_time(module.EVALUATION_TIMEOUT_SECONDS + 1)
    run.coordinator.evaluated(Evaluation(epoch=1, grant=stuck.grant, loss=9.0), run.now)
    assert run.phase == Phase.EVALUATING
    assert run.evaluate(0.5)
    finish(run)


# Shards that come back.


@pytest.mark.parametrize("saving", [False, True])
def test_a_shard_that_lost_steps_takes_the_run_back(saving: bool) -> None:
    """While the final model is evaluated or saved, lost leases are done again before the run ends."""
    options = {} if saving else VALIDATED
    run = desk(2, 3, n_shards=2, stop={"epochs": 1}, **options)
    run.finish_epoch()
    assert run.phase == (Phase.SAVING if saving else Phase.EVALUATING)
    run.generations[1] = 2
    assert run.coordinator.shard_started(1, 2, 0, {"0": [2, 1]}) == 1
    assert run.phase == Phase.DRAINING
    run.coordinator.saved()
    assert run.phase == Phase.DRAINING
    task = run.lease(1)
    assert (task.epoch, task.lease) == (0, 1)
    assert run.done(task)
    assert saving or run.evaluate(0.5)
    finish(run)


def test_the_status_tells_for_which_shards_steps_are_done_again() -> None:
    """The run gets no further meanwhile, which people wonder at; afterwards it says no more of it."""
    run = desk(2, 3, n_shards=3, stop={"epochs": 3})
    run.finish_epoch()
    assert status_of(run).behind_shards == ()
    run.generations[2] = 2
    assert run.coordinator.shard_started(2, 2, 0, {"0": [2, 1]}) == 1
    assert status_of(run).behind_shards == (2,)
    updates = status_of(run).updates
    assert run.done(run.lease(1))
    assert (status_of(run).behind_shards, status_of(run).updates) == ((), updates)
    run.generations[1] = 2
    assert run.coordinator.shard_started(1, 2, 0, {}) == 2
    assert status_of(run).behind_shards == (1,)
    run.coordinator.end("killed", RunState.KILLED)
    assert status_of(run).behind_shards == ()


def test_a_shard_that_lost_nothing_changes_nothing() -> None:
    """Hearing again what is known already, as before saving, gives nothing again."""
    run = desk(2, 3, n_shards=2, stop={"epochs": 1})
    run.finish_epoch()
    assert run.coordinator.shard_started(1, 1, 1, {}) == 0
    assert run.coordinator.shard_started(1, 1, 0, {"0": [2, 3]}) == 0
    assert run.phase == Phase.SAVING


@pytest.mark.parametrize("stop_first", [False, True])
def test_a_shard_that_is_ahead_is_caught_up_with(stop_first: bool) -> None:
    """A shard 0 that lost its last moments does again what the others hold of them, before the run stops.

    Otherwise the model had steps on some shards that others lack.
    """
    run = Desk(make_config(n_shards=2, leases=make_leases(2, 3, 1), stop={"epochs": 50}))
    run.register(1)
    if stop_first:
        run.coordinator.end("stopped")
    run.coordinator.shard_started(1, 1, 2, {"2": [0, 3, 0]})
    run.coordinator.end("stopped")
    done = []
    while (task := run.ask(1)) is not None and task.action == "train":
        done.append((task.epoch, task.lease))
        assert run.done(task)
    assert sorted(done) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 1)]
    assert run.coordinator.status(run.now, UNIX_NOW, {}).epoch == 2
    finish(run)


def test_a_checkpoint_waits_for_what_other_shards_hold() -> None:
    """While a shard is ahead leases are granted as usual; then those that are begun; then all are at rest."""
    run = Desk(make_config(n_shards=2, leases=make_leases(2, 3, 1), stop={"epochs": 50}))
    run.register(1)
    run.coordinator.shard_started(1, 1, 0, {"0": [2, 3, 1], "1": [1, 0, 0]})
    run.coordinator.checkpoint_wanted = True
    done = []
    while (task := run.ask(1)) is not None:
        assert not run.coordinator.ledger.at_rest
        done.append((task.epoch, task.lease))
        assert run.done(task)
    assert sorted(done) == [(0, 0), (0, 1), (0, 2), (1, 0)]
    assert run.coordinator.ledger.at_rest


@pytest.mark.parametrize("when", ["before", "after", "saving"])
def test_a_lease_of_a_forgotten_grant_is_finished(when: str) -> None:
    """A worker goes on with what a former shard 0 gave it: from then on the lease counts as begun."""
    run = desk(2, 3, 1, stop={"epochs": 50})
    if when == "before":
        run.coordinator.attached((0, 1))
    run.coordinator.end("stopped")
    if when == "saving":
        run.pass_time(0.1)
        assert run.phase == Phase.SAVING
    if when != "before":
        run.coordinator.attached((0, 1))
    assert run.phase == Phase.DRAINING
    task = run.lease(1)
    assert (task.epoch, task.lease) == (0, 1)
    assert run.done(task)
    finish(run)


def test_a_refused_word_takes_nothing_from_others() -> None:
    """A worker that is late, with a grant that is not the last, cannot have the lease given again."""
    run = desk(2, 3, n_shards=2)
    late = run.lease(1)
    run.register(5)
    run.coordinator.disconnect(1)
    again = run.lease(5)
    assert again.lease == late.lease
    assert not run.done(late, full=False)
    assert run.coordinator.ledger.given_again == 1
    assert run.done(again, connection=5)
    assert not run.done(late, full=False)
    assert run.coordinator.ledger.given_again == 1


# Turns.


def rounds(*n_steps: int) -> Desk:
    """Return a desk with two workers that go in rounds."""
    leases = make_leases(*(n_steps or (2, 2, 2, 2)))
    run = Desk(make_config(leases=leases, staleness=0, n_workers=2, lease_seconds=10.0))
    run.register(1, 0)
    run.register(2, 1)
    return run


def turn(run: Desk, task: Task, position: int, *, pushing: bool = False) -> bool:
    """Ask for a turn."""
    key = {"epoch": task.epoch, "lease": task.lease, "grant": task.grant}
    return run.coordinator.take_turn(StepTurn(**key, position=position, pushing=pushing), run.now)


def test_in_rounds_every_worker_has_leases_of_its_own() -> None:
    """Who gets which lease depends on the order of the epoch and on nothing else."""
    run = rounds()
    assert [run.lease(2).first_step for _ in range(2)] == [2, 6]
    assert [run.lease(1).first_step for _ in range(2)] == [0, 4]
    assert run.ask(1) is None


def test_a_worker_that_is_to_get_a_lease_is_waited_for() -> None:
    """In rounds the others wait for it, though it holds none at this moment."""
    run = rounds()
    first = run.lease(1)
    assert turn(run, first, 0)
    assert not turn(run, first, 0, pushing=True)
    second = run.lease(2)
    assert turn(run, second, 0)
    assert not turn(run, second, 0, pushing=True)
    assert turn(run, first, 0, pushing=True)
    assert not turn(run, second, 0, pushing=True)
    assert not turn(run, first, 1)
    assert turn(run, second, 0, pushing=True)


def test_a_checkpoint_does_not_wait_for_those_who_wait_for_it() -> None:
    """While no new lease is given out, a worker without one is not waited for."""
    run = rounds()
    first = run.lease(1)
    run.coordinator.checkpoint_wanted = True
    assert run.ask(2) is None
    assert turn(run, first, 0)
    assert turn(run, first, 0, pushing=True)


@pytest.mark.parametrize("asked", [False, True])
def test_a_silent_worker_loses_its_place(asked: bool) -> None:
    """One that is connected, but asks for nothing, is given up like a lease, and others do its part."""
    run = rounds()
    first = run.lease(1)
    if asked:
        run.lease(2)
    assert turn(run, first, 0)
    for _ in range(4):
        run.pass_time(5.0)
        assert turn(run, first, 0)
    assert turn(run, first, 0, pushing=True)
    assert run.done(first)
    done = []
    while (task := run.ask(1)) is not None and task.epoch == 0:
        done.append(task.first_step)
        assert run.done(task)
    assert len(done) == 3


def test_the_first_round_waits_for_all_workers_and_not_for_ever() -> None:
    """Where one does not come, the others begin without it after a while."""
    run = Desk(make_config(staleness=0, n_workers=3))
    run.register(1, 0)
    run.register(2, 1)
    assert run.ask(1) is None
    run.pass_time(module.ROUND_JOIN_SECONDS - 0.1)
    assert run.ask(2) is None
    run.pass_time(0.1)
    assert run.ask(2) is not None


# Checkpoints.


def test_a_checkpoint_holds_new_leases_back() -> None:
    """Leases that are begun are finished, lost ones too; then nothing is granted until it is cut."""
    run = desk(2, 3, 1)
    held = run.lease(1)
    run.coordinator.checkpoint_wanted = True
    assert run.ask(1) is None
    run.coordinator.disconnect(1)
    run.register(5)
    again = run.lease(5)
    assert again.lease == held.lease
    assert not run.coordinator.ledger.at_rest
    assert run.done(again, connection=5)
    assert run.coordinator.ledger.at_rest
    assert run.ask(5) is None
    run.coordinator.checkpoint_wanted = False
    assert run.ask(5) is not None


def test_a_resumed_run_goes_on_where_the_checkpoint_was_cut() -> None:
    """It does the leases that the checkpoint lacks, in the same order, but has limits of its own."""
    old = desk(2, 3, 1, 4, stop={"epochs": 2, "max_seconds": 60.0})
    order = [old.lease(1)]
    old.pass_time(50.0)
    assert old.done(order[0])
    plain = json.loads(json.dumps(old.coordinator.to_plain(old.now)))
    new = desk(2, 3, 1, 4, stop={"epochs": 2, "max_seconds": 60.0})
    new.coordinator.resume(plain)
    new.pass_time(50.0)
    assert new.phase == Phase.RUNNING
    before = new.coordinator.updates
    expected = old.lease(1)
    task = new.lease(1)
    assert (task.epoch, task.lease, task.first_step) == (0, expected.lease, expected.first_step)
    assert new.done(task)
    new.finish_epoch()
    new.finish_epoch()
    assert new.reason == "epochs"
    assert (before, new.coordinator.updates) == (old.config.leases[order[0].lease].n_steps, 20)


def test_a_run_that_was_stopped_in_an_epoch_is_resumed_in_it() -> None:
    """The leases that a stop dropped are done by the run that is resumed from its model."""
    old = desk(2, 3, 1, 4, stop={"epochs": 1})
    first = old.lease(1)
    old.coordinator.end("stopped")
    assert old.done(first)
    assert old.phase == Phase.SAVING
    new = desk(2, 3, 1, 4, stop={"epochs": 1})
    new.coordinator.resume(json.loads(json.dumps(old.coordinator.to_plain(old.now))))
    leases = []
    while (task := new.ask(1)) is not None:
        leases.append(task.lease)
        assert new.done(task)
    assert sorted([first.lease, *leases]) == [0, 1, 2, 3]
    assert (new.reason, new.coordinator.updates) == ("epochs", 10)


def test_a_finished_run_is_resumed_with_more_epochs() -> None:
    """A checkpoint that was cut at the end of an epoch opens the next one."""
    old = desk(stop={"epochs": 1})
    old.finish_epoch()
    new = desk(stop={"epochs": 3})
    new.coordinator.resume(json.loads(json.dumps(old.coordinator.to_plain(old.now))))
    new.pass_time(0.1)
    assert new.lease(1).epoch == 1


# The curve.


def test_points_add_up() -> None:
    """Points come some time apart, carry the mean loss since the last one, and where the time went."""
    run = desk(1, 1, 1, 1, 1, 1, stop={"epochs": 1}, dollars_per_hour=36.0)
    for i in range(6):
        task = run.lease(1)
        said = complete(task, run.generations, 1, loss=float(i))
        run.pass_time(module.METRIC_SECONDS * 0.6)
        said = dataclasses.replace(said, fetch_seconds=0.1, pull_seconds=0.2, push_seconds=0.3)
        assert run.coordinator.complete(1, said, True, run.now)
        run.pass_time(0.0)
    points = run.coordinator.points
    assert [(point.updates, point.train_loss) for point in points] == [(1, 0.0), (3, 1.5), (5, 3.5), (6, 2.5)]
    assert [point.end_of_epoch for point in points] == [False, False, False, True]
    assert sum(point.fetch_seconds for point in points) == pytest.approx(0.6)
    assert points[1].pull_seconds == pytest.approx(0.4)
    assert points[-1].cost == pytest.approx(0.01 * 6 * 0.6 * module.METRIC_SECONDS)
    assert [point.n_workers for point in points] == [1] * 4


def test_time_and_money_are_counted_over_generations() -> None:
    """What the shards before spent is spent."""
    run = desk(dollars_per_hour=3600.0)
    run.lease(1)
    run.pass_time(10.0)
    plain = run.coordinator.to_plain(run.now)
    after = desk(dollars_per_hour=3600.0)
    after.coordinator.restore(plain)
    after.lease(1)
    after.pass_time(5.0)
    assert after.coordinator.seconds(after.now) == pytest.approx(15.0)
    assert after.coordinator.cost(after.now) == pytest.approx(15.0)
    assert after.coordinator.status(after.now, 0.0, {}).started_at == UNIX_NOW


@pytest.mark.parametrize("saved", [False, True])
def test_time_that_was_told_of_is_spent(saved: bool) -> None:
    """Steps since the snapshot are lost with shard 0; their time is counted, by the clock and in money."""
    limits = {"epochs": 9, "max_seconds": 20.0}
    run = desk(dollars_per_hour=3600.0, stop=limits)
    run.lease(1)
    run.pass_time(5.0)
    plain = run.coordinator.to_plain(run.now)
    run.pass_time(7.0)
    told = status_of(run)
    after = desk(dollars_per_hour=3600.0, stop=limits)
    after.coordinator.keep_told(told)
    if saved:
        after.coordinator.restore(plain)
    assert status_of(after).seconds == pytest.approx(12.0)
    assert status_of(after).cost == pytest.approx(told.cost)
    after.lease(1)
    after.pass_time(7.0)
    assert (status_of(after).seconds, after.phase) == (pytest.approx(19.0), Phase.RUNNING)
    after.pass_time(1.0)
    assert after.reason == "max_seconds"


def test_a_run_that_drains_still_drains_after_a_crash() -> None:
    """The decision to end, and why, survive; so does the patience of tol."""
    run = desk(2, 3, 1, stop={"epochs": 50, "tol": 0.01})
    for _ in range(PATIENCE_EPOCHS):
        run.finish_epoch(1.0)
    task = run.lease(1)
    after = Desk(run.config, generation=2)
    after.register(1)
    after.coordinator.restore(json.loads(json.dumps(run.coordinator.to_plain(run.now))))
    assert after.lease(1).lease == task.lease
    after.coordinator.ledger.give_again((task.epoch, task.lease))
    after.finish_epoch(1.0)
    assert after.reason == "tol"
    run.coordinator.end("stopped")
    after = Desk(run.config, generation=2)
    after.register(1)
    after.coordinator.restore(json.loads(json.dumps(run.coordinator.to_plain(run.now))))
    assert (after.phase, after.reason) == (Phase.DRAINING, "stopped")
    task = after.lease(1)
    assert after.done(task)
    finish(after)
