"""Workers that wait for each other: with real shards, through deaths, and to the bit."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from faults import PUSH, Fault, Plan, armed
from ps_runs import Shards, make_config, make_leases, running
from real_runs import accuracy, assert_whole, make_data, make_dataset, plan
from stand_ins import RUN_SECONDS, eventually

from cirrus import Dataset, LogisticRegression
from cirrus.client_backend.base import GENERATIONS_PER_CLIENT
from cirrus.client_backend.local import LocalBackend
from cirrus.config import OPTIMIZER_PARAMS
from cirrus.errors import LeaseLostError
from cirrus.metrics import RunState
from cirrus.paramserver.client import Channel, ParameterClient
from cirrus.paramserver.protocol import NextTask, StepTurn, Task, TurnReply

N_STEPS = 6


class Stepper:
    """A worker of which each move is the test's."""

    def __init__(self, shards: Shards, number: int) -> None:
        self.control: Channel = shards.worker(number)
        self.task: Task | None = None
        self.client: ParameterClient = shards.client()

    def take(self) -> Task:
        """Get a lease."""
        self.task = self.control.ask(NextTask(wait_seconds=5.0), Task)
        assert self.task.action == "train"
        return self.task

    def may(self, position: int, *, pushing: bool = False, wait_seconds: float = 0.0) -> bool:
        """Ask whether it is this worker's turn."""
        assert self.task is not None
        key = {"epoch": self.task.epoch, "lease": self.task.lease, "grant": self.task.grant}
        turn = StepTurn(**key, position=position, pushing=pushing, wait_seconds=wait_seconds)
        return self.client.ask_coordinator(turn, TurnReply).granted

    def die(self) -> None:
        """Close everything."""
        self.control.close()
        self.client.close()


def test_a_worker_waits_for_the_slowest(tmp_path: Path) -> None:
    """It begins at most ``staleness`` steps ahead, waits without asking again, and goes on when it may."""
    config = make_config(leases=make_leases(*[N_STEPS] * 4), staleness=2, n_workers=2)
    with running(tmp_path / "run", config) as shards:
        fast, slow = Stepper(shards, 0), Stepper(shards, 1)
        fast.take()
        slow.take()
        assert slow.may(0)
        assert [fast.may(position) for position in range(4)] == [True, True, True, False]
        waiting = threading.Thread(target=slow.may, args=(1,))
        granted: list[bool] = []
        patient = threading.Thread(target=lambda: granted.append(fast.may(3, wait_seconds=5.0)))
        patient.start()
        waiting.start()
        patient.join()
        waiting.join()
        assert granted == [True]
        assert not fast.may(4)


@pytest.mark.parametrize("staleness", [0, 1])
def test_the_dead_hold_nobody_up(tmp_path: Path, staleness: int) -> None:
    """When the connection of the slowest ends, the others go on at once."""
    config = make_config(leases=make_leases(*[N_STEPS] * 4), staleness=staleness, n_workers=2)
    with running(tmp_path / "run", config) as shards:
        fast, slow = Stepper(shards, 0), Stepper(shards, 1)
        fast.take()
        slow.take()
        assert slow.may(0)
        assert [fast.may(position) for position in range(staleness + 2)] == [True] * (staleness + 1) + [False]
        slow.die()
        eventually(lambda: fast.may(staleness + 1))


def test_a_turn_is_for_the_holder_of_the_lease(tmp_path: Path) -> None:
    """A worker whose lease was given to another hears so, instead of waiting."""
    config = make_config(leases=make_leases(N_STEPS), staleness=1, n_workers=2)
    with running(tmp_path / "run", config) as shards:
        first, second = Stepper(shards, 0), Stepper(shards, 1)
        first.take()
        assert first.may(0)
        first.control.close()
        second.take()
        assert second.may(0)
        with pytest.raises(LeaseLostError, match="not this worker's any more"):
            first.may(1)


def test_rounds_wait_for_the_first_of_all_workers(tmp_path: Path) -> None:
    """With a staleness of 0 no lease is given out before all are there, and each has leases of its own."""
    config = make_config(leases=make_leases(*[1] * 8), staleness=0, n_workers=2)
    with running(tmp_path / "run", config) as shards:
        first = Stepper(shards, 0)
        assert first.control.ask(NextTask(wait_seconds=0.1), Task).action == "wait"
        second = Stepper(shards, 1)
        order = [first.take().first_step, first.take().first_step, second.take().first_step]
        assert order == [0, 2, 1]


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Return a dataset of 20,000 rows."""
    return make_dataset(str(tmp_path_factory.mktemp("data") / "train"))


def fit(rows: int, **params: object) -> LogisticRegression:
    """Fit some rows of the tests' data, by threads of this process."""
    X, y = make_data()
    defaults = {"epochs": 2, "tol": None, "batch_size": 40, "backend": "inline", "random_state": 5}
    return LogisticRegression(**{**defaults, **params}).fit(X[:rows], y[:rows])


@pytest.mark.parametrize("optimizer", sorted(set(OPTIMIZER_PARAMS) - {"add"}))
def test_one_worker_is_deterministic_whatever_the_shards(optimizer: str) -> None:
    """With ``staleness=0`` the model is the same to the bit, from run to run and with 1, 2 and 3 shards."""
    fitted = [
        fit(2000, optimizer=optimizer, staleness=0, n_workers=1, n_shards=n_shards, learning_rate=0.05)
        for n_shards in (1, 1, 2, 3)
    ]
    assert len({(model.coef_.tobytes(), model.intercept_.tobytes()) for model in fitted}) == 1
    assert np.count_nonzero(fitted[0].coef_) > 100
    assert len({model.history_[-1].train_loss for model in fitted}) == 1


@pytest.mark.parametrize("mode", ["sgd", "average"])
def test_several_workers_are_deterministic(mode: str) -> None:
    """So is that of three workers, which go in rounds, and the loss by which a run may be ended."""
    fitted = [
        fit(4000, mode=mode, staleness=0, n_workers=3, n_shards=n_shards, epochs=3)
        for n_shards in (1, 2, 3, 2)
    ]
    assert len({(model.coef_.tobytes(), model.intercept_.tobytes()) for model in fitted}) == 1
    losses = [[p.train_loss for p in model.history_ if p.end_of_epoch] for model in fitted]
    assert losses == [losses[0]] * 4


def deaths(first: int) -> list[Fault]:
    """Return faults that hit both workers and both shards, at steps of first and of second lives."""
    second = first + 1
    return [
        Fault(who="train-0", victim="train-0", generation=first, function=PUSH, call=60),
        Fault(who="train-1", victim="shard-0", generation=first, function=PUSH, call=90),
        Fault(who="train-1", victim="train-1", generation=first, function=PUSH, call=150),
        Fault(who="train-0", victim="shard-1", generation=second, function=PUSH, call=60),
        Fault(who="train-1", victim="shard-1", generation=second, function=PUSH, call=60),
    ]


@pytest.mark.parametrize("staleness", [0, 2])
def test_workers_and_shards_may_die_while_others_wait(train: Dataset, tmp_path: Path, staleness: int) -> None:
    """A worker and each of two shards are killed: the run goes on, and every step counts once."""
    config = plan(train, staleness=staleness, batch_size=100)
    armory = Plan(tmp_path / "faults")
    armory.write(deaths(GENERATIONS_PER_CLIENT))
    with LocalBackend(root=tmp_path, commands=armed(armory)).start(config) as run:
        eventually(lambda: armory.struck() == [0, 1, 2, 3, 4] or run.status.state.ended, RUN_SECONDS)
        epoch = run.status.epoch
        eventually(lambda: run.status.epoch >= max(6, epoch + 2) or run.status.state.ended, RUN_SECONDS)
        run.stop()
        status = run.wait(RUN_SECONDS)
        assert status.state is RunState.FINISHED
        assert armory.struck() == [0, 1, 2, 3, 4]
        assert_whole(run, status)
        assert accuracy(run) > 0.95
