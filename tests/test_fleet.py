"""The fleet's policy: who is invoked again, how soon, and when it gives up.

All with plain functions as workers.
"""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Iterator

import pytest

from cirrus.client_backend.fleet import AttemptError, Fleet, WorkerEvent, WorkerResult
from cirrus.client_backend.retries import RetryBudget, RetryPolicy
from cirrus.errors import ConfigError, ConnectionLostError, DataError, StorageError

JOIN_SECONDS = 10.0
FINISHED = WorkerResult(outcome="finished", steps=1)


class World:
    """A run as the fleet sees it, and a record of what the fleet did."""

    def __init__(self, behaviour: Callable[[World, WorkerEvent], WorkerResult]) -> None:
        self.behaviour = behaviour
        self.over = threading.Event()
        self.events: list[WorkerEvent] = []
        self.fatal: list[AttemptError] = []
        self.pauses: list[float] = []
        self.updates = 0
        self.fleet: Fleet | None = None

    def invoke(self, event: WorkerEvent) -> WorkerResult:
        self.events.append(event)
        return self.behaviour(self, event)

    def pause(self, seconds: float) -> bool:
        self.pauses.append(seconds)
        return False

    def run(self, n_workers: int = 1, **options: object) -> World:
        """Run a fleet until all its slots have ended."""
        options.setdefault("pause", self.pause)
        fleet = Fleet(
            n_workers,
            self.invoke,
            self.over.is_set,
            self.fatal.append,
            progress=lambda: self.updates,
            rng=random.Random(0),
            **options,  # type: ignore[arg-type]
        )
        self.fleet = fleet
        fleet.start()
        assert fleet.join(JOIN_SECONDS)
        assert fleet.n_live == 0
        return self


def script(*steps: WorkerResult | Exception) -> Callable[[World, WorkerEvent], WorkerResult]:
    """Return a worker that does these things in turn; the run is over with the last."""
    todo: Iterator[WorkerResult | Exception] = iter(steps)
    left = len(steps)

    def work(world: World, event: WorkerEvent) -> WorkerResult:
        nonlocal left
        left -= 1
        step = next(todo)
        if left == 0:
            world.over.set()
        if isinstance(step, Exception):
            raise step
        return step

    return work


def test_each_worker_gets_an_id_and_the_evaluator_one_more() -> None:
    """Slots are numbered from 0; the evaluator is one more slot with a role of its own."""

    def work(world: World, event: WorkerEvent) -> WorkerResult:
        if len(world.events) == 4:
            world.over.set()
        assert world.over.wait(JOIN_SECONDS)
        return FINISHED

    world = World(work).run(3, with_evaluator=True, run_url="u", deadline_seconds=5.0)
    events = sorted((event.worker_id, event.role, event.generation) for event in world.events)
    assert events == [(0, "train", 1), (1, "train", 1), (2, "train", 1), (3, "evaluate", 1)]
    assert {(event.run_url, event.deadline_seconds) for event in world.events} == {("u", 5.0)}


def test_an_event_is_one_line_of_json_that_the_handler_understands() -> None:
    """The event of a worker process has exactly the fields that the handler takes."""
    event = WorkerEvent(role="train", run_url="/a b", worker_id=2, generation=3, deadline_seconds=None)
    assert json.loads(event.to_json()) == {
        "role": "train",
        "run_url": "/a b",
        "worker_id": 2,
        "generation": 3,
        "deadline_seconds": None,
    }
    assert b"\n" not in event.to_json()


@pytest.mark.parametrize("raw", [{}, {"outcome": "odd"}, {"outcome": "finished", "x": 1}, 3, None])
def test_what_is_no_result_is_refused(raw: object) -> None:
    """A worker that returns anything but a result is an error, never silently taken for one that finished."""
    with pytest.raises(ConfigError):
        WorkerResult.from_plain(raw)


def test_a_deadline_starts_the_next_generation_at_once() -> None:
    """A worker at its deadline is invoked again with the next generation, without a wait."""
    deadline = WorkerResult(outcome="deadline", steps=5)
    world = World(script(deadline, deadline, FINISHED)).run()
    assert [event.generation for event in world.events] == [1, 2, 3]
    assert world.pauses == []
    assert world.fleet is not None
    assert world.fleet.generations == (3,)


def test_generations_go_on_where_the_last_client_ended() -> None:
    """A client that attaches begins with generations that no client before has used."""
    world = World(script(ConnectionLostError("x"), FINISHED)).run(first_generation=2_000_000)
    assert [event.generation for event in world.events] == [2_000_000, 2_000_001]


def test_the_first_restart_after_a_failure_comes_at_once() -> None:
    """A worker that was killed does not wait to be back; only repeated failures have to."""
    world = World(script(ConnectionLostError("killed"), FINISHED)).run()
    assert len(world.events) == 2
    assert world.pauses == [0.0]


def test_failures_without_progress_are_bounded_and_spread() -> None:
    """A worker that fails again and again is given up after the policy's count, with full-jitter waits."""
    policy = RetryPolicy(failures=8, base_seconds=0.1, cap_seconds=1.0)
    world = World(lambda world, event: _raise(StorageError(f"no store {event.generation}"))).run(
        policy=policy
    )
    assert len(world.events) == 8
    assert [str(error) for error in world.fatal] == ["worker 0: no store 8"]
    bounds = [0.0, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    assert len(world.pauses) == len(bounds)
    assert all(0 <= pause <= bound for pause, bound in zip(world.pauses, bounds, strict=True))
    assert len(set(world.pauses[1:])) == len(world.pauses) - 1, "the waits have jitter"


def test_progress_of_the_run_forgives_failures() -> None:
    """As long as the run gets further, a worker that keeps dying is kept alive."""

    def work(world: World, event: WorkerEvent) -> WorkerResult:
        world.updates += 1
        if event.generation == 50:
            world.over.set()
            return FINISHED
        raise ConnectionLostError("killed")

    world = World(work).run()
    assert len(world.events) == 50
    assert world.fatal == []
    assert set(world.pauses) == {0.0}


def test_going_back_and_forth_is_no_progress() -> None:
    """Updates that are lost in a crash and done again do not count as progress: only a new high does."""
    updates = [10, 8, 10, 7, 10, 9]
    remaining = iter(updates)
    budget = RetryBudget(RetryPolicy(failures=4), lambda: next(remaining), random.Random(0))
    assert [budget.fail() is None for _ in range(4)] == [False, False, False, True]


@pytest.mark.parametrize("error", [ConfigError("l1", "is wrong"), DataError("bad chunk")])
def test_an_error_that_cannot_heal_is_fatal_at_once(error: Exception) -> None:
    """A wrong parameter or wrong data stops the run at the first worker that meets it."""
    world = World(lambda world, event: _raise(error)).run()
    assert len(world.events) == 1
    assert [fatal.__cause__ for fatal in world.fatal] == [error]
    assert str(error) in str(world.fatal[0])


def test_a_bug_is_fatal_and_never_shrinks_the_fleet_silently() -> None:
    """An exception that is none of Cirrus' own fails the run, and says what it was."""
    world = World(lambda world, event: _raise(ZeroDivisionError("oops"))).run()
    assert [str(error) for error in world.fatal] == ["worker 0: ZeroDivisionError: oops"]


def test_kinds_of_errors_from_other_processes_count_the_same() -> None:
    """Whether an error can heal is known from its class name alone, as it comes from a worker process."""
    assert AttemptError.of_kind("x", "CorruptDataError").is_permanent
    assert not AttemptError.of_kind("x", "ConnectionLostError").is_permanent


def test_a_duplicate_tries_a_newer_generation() -> None:
    """A worker that was refused as registered already comes back with a newer generation."""
    duplicate = WorkerResult(outcome="duplicate")
    world = World(script(duplicate, duplicate, FINISHED)).run()
    assert [event.generation for event in world.events] == [1, 2, 3]
    assert world.fatal == []


def test_generations_without_a_step_do_not_spin_for_ever() -> None:
    """Workers that reach their deadline before their first step, with no progress anywhere, fail the run."""
    policy = RetryPolicy(failures=3)
    world = World(lambda world, event: WorkerResult(outcome="deadline")).run(policy=policy)
    assert len(world.events) == 12
    assert "without a step" in str(world.fatal[0])


def test_a_finished_worker_waits_for_the_end_of_the_run() -> None:
    """A worker that says the run is over is not invoked again while the status catches up."""
    world = World(lambda world, event: FINISHED)

    def pause(seconds: float) -> bool:
        world.pauses.append(seconds)
        if len(world.pauses) == 5:
            world.over.set()
        return False

    world.run(pause=pause)
    assert len(world.events) == 1


def test_a_finished_worker_is_needed_again_when_a_shard_lost_steps() -> None:
    """If the run is not over long after a worker thought so, the worker is invoked again."""
    world = World(script(FINISHED, FINISHED)).run()
    assert [event.generation for event in world.events] == [1, 2]


def test_stop_invokes_nobody_more_and_cuts_waits_short() -> None:
    """A fleet that is stopped ends at once, also from within a wait, and reports no failure."""
    waiting = threading.Semaphore(0)
    fatal: list[AttemptError] = []

    class Slowest(random.Random):
        def uniform(self, a: float, b: float) -> float:
            return b

    def work(event: WorkerEvent) -> WorkerResult:
        if event.generation == 2:
            waiting.release()
        raise StorageError("no")

    slow = RetryPolicy(base_seconds=60.0, cap_seconds=60.0)
    fleet = Fleet(2, work, lambda: False, fatal.append, policy=slow, rng=Slowest())
    fleet.start()
    for _ in range(2):
        assert waiting.acquire(timeout=JOIN_SECONDS)
    fleet.stop()
    assert fleet.join(JOIN_SECONDS)
    assert fleet.generations == (2, 2)
    assert fatal == []


def test_live_workers_are_counted() -> None:
    """``n_live`` is the number of workers that are working at this moment."""
    working = threading.Semaphore(0)
    release = threading.Event()

    def work(event: WorkerEvent) -> WorkerResult:
        working.release()
        assert release.wait(JOIN_SECONDS)
        return FINISHED

    fleet = Fleet(3, work, release.is_set, lambda error: None)
    fleet.start()
    for _ in range(3):
        assert working.acquire(timeout=JOIN_SECONDS)
    assert fleet.n_live == 3
    release.set()
    assert fleet.join(JOIN_SECONDS)
    assert fleet.n_live == 0


def _raise(error: Exception) -> WorkerResult:
    raise error
