"""Clocks of workers that wait for each other: policy alone."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cirrus.paramserver.turns import Turns

LEASE = (0, 0)


class Room:
    """Workers that do steps of one lease each, as far as they may."""

    def __init__(self, staleness: int, n_workers: int) -> None:
        self.busy = set(range(n_workers))
        self.turns = Turns(staleness, lambda: self.busy)
        self.done: Counter[int] = Counter()
        """Steps finished."""
        self.begun: Counter[int] = Counter()
        self.pushed: list[tuple[int, int]] = []
        """Round and worker, in the order in which they pushed."""
        for worker in range(n_workers):
            self.turns.join(worker, worker)

    def try_step(self, worker: int) -> bool:
        """Let a worker ask for its next step; when it may, it has finished the one before."""
        position = self.begun[worker]
        self.done[worker] = position
        if not self.turns.may_pull(worker, ((0, worker), position)):
            return False
        self.begun[worker] += 1
        return True

    def try_round(self, worker: int) -> None:
        """Let a worker do whatever comes next: pull, or push what it has pulled."""
        if self.begun[worker] == self.done[worker]:
            if self.turns.may_pull(worker, ((0, worker), self.begun[worker])):
                self.begun[worker] += 1
        elif self.turns.may_push(worker):
            self.pushed.append((self.done[worker], worker))
            self.done[worker] += 1


@given(
    staleness=st.integers(0, 4), n_workers=st.integers(1, 4), asks=st.lists(st.integers(0, 3), max_size=60)
)
def test_nobody_begins_more_than_so_many_steps_ahead(staleness: int, n_workers: int, asks: list[int]) -> None:
    """Whoever asks in whatever order: a step is begun only within the staleness, and then always."""
    room = Room(staleness, n_workers)
    for ask in asks:
        worker = ask % n_workers
        may = room.try_step(worker)
        others = [room.done[other] for other in range(n_workers) if other != worker]
        assert may == (room.done[worker] - min(others, default=room.done[worker]) <= staleness)


@given(n_workers=st.integers(1, 4), asks=st.lists(st.integers(0, 3), max_size=80))
def test_rounds_push_in_the_order_of_workers(n_workers: int, asks: list[int]) -> None:
    """With a staleness of 0 a round's pushes follow all of its pulls, in order, whoever asks when."""
    room = Room(0, n_workers)
    for ask in asks:
        before = len(room.pushed)
        room.try_round(ask % n_workers)
        if len(room.pushed) > before:
            number = room.pushed[-1][0]
            assert all(room.begun[worker] > number for worker in range(n_workers))
    assert room.pushed == sorted(room.pushed)
    for _ in range(3 * n_workers):  # and nobody waits for ever
        for worker in range(n_workers):
            room.try_round(worker)
    assert len(room.pushed) >= n_workers


@pytest.mark.parametrize("how", ["leave", "idle", "rest"])
def test_those_who_are_gone_or_idle_hold_nobody_up(how: str) -> None:
    """A dead worker leaves the clocks, and one with nothing to do is not waited for."""
    room = Room(1, 2)
    assert [room.try_step(0) for _ in range(3)] == [True, True, False]
    if how == "leave":
        room.turns.leave(1)
    else:
        room.busy.discard(1)
        if how == "rest":
            room.turns.finish_lease(1, (0, 1))
    assert [room.try_step(0) for _ in range(3)] == [True, True, True]


def test_joiners_begin_at_the_slowest_clock() -> None:
    """A worker that comes late, or back, is neither waited for until it has caught up nor let ahead."""
    room = Room(1, 2)
    for _ in range(5):
        assert room.try_step(0)
        assert room.try_step(1)
    assert room.try_step(0)
    room.busy.add(2)
    room.turns.join(2, 2)
    # Worker 1 has finished four steps, so has the joiner: it may begin its fifth and sixth, not the seventh.
    assert [room.try_step(2) for _ in range(3)] == [True, True, False]


def test_a_worker_that_rested_catches_up_at_once() -> None:
    """Who had nothing to do while others went on does not hold them up when it is back."""
    room = Room(1, 2)
    room.busy.discard(1)
    room.turns.finish_lease(1, LEASE)
    for _ in range(6):
        assert room.try_step(0)
    room.busy.add(1)
    room.turns.join(1, 1)
    assert [room.try_step(0) for _ in range(2)] == [True, False]


def test_asking_twice_is_no_step() -> None:
    """An answer that was lost, and a step begun anew after a shard was lost, do not move the clock."""
    room = Room(0, 2)
    for _ in range(3):
        assert room.turns.may_pull(0, (LEASE, 0))
    assert room.turns.may_pull(1, (LEASE, 0))
    assert not room.turns.may_pull(1, (LEASE, 1))


def test_a_finished_lease_is_a_finished_step() -> None:
    """The last step of a lease is finished by the word that the lease is done."""
    room = Room(0, 2)
    for worker in (0, 1):
        assert room.turns.may_pull(worker, ((0, worker), 0))
    assert not room.turns.may_pull(0, ((0, 0), 1))
    room.turns.finish_lease(1, (0, 1))
    assert room.turns.may_pull(0, ((0, 0), 1))
