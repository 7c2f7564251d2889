"""Marks and the ledger: what has been applied, and what is left to do."""

from __future__ import annotations

import numpy as np
import pytest
from ps_runs import make_leases

from cirrus.errors import LimitError
from cirrus.paramserver.ledger import LeaseKey, Ledger
from cirrus.paramserver.marks import StepMarks

N_STEPS = (2, 3, 1, 4)
LEASES = make_leases(*N_STEPS)


def make_ledger(epochs: int = 3, seed: int = 0, n_leases: int = len(LEASES)) -> Ledger:
    """Return a fresh ledger."""
    return Ledger(make_leases(*([2] * n_leases)) if n_leases != len(LEASES) else LEASES, epochs, seed)


def drain(ledger: Ledger, *, finish: bool = True) -> list[LeaseKey]:
    """Take all that can be granted now, in order."""
    keys = []
    while (key := ledger.grant(0, len(keys), 0.0)) is not None:
        keys.append(key)
    for key in keys if finish else []:
        ledger.finish(key)
        assert key not in ledger.open
    return keys


# Marks.


def test_marks_begin_at_zero_and_are_changed_in_place() -> None:
    """The kernel and the shard look at one array for each epoch."""
    marks = StepMarks(LEASES)
    marks.of_epoch(1)[2] = 1
    assert marks.of_epoch(1).tolist() == [0, 0, 1, 0]
    assert marks.of_epoch(0).tolist() == [0, 0, 0, 0]
    assert marks.is_complete(1, 2)
    assert not marks.is_complete(0, 2)


def test_looking_at_a_lease_keeps_nothing() -> None:
    """Whoever asks about epochs that nobody works on takes no memory."""
    marks = StepMarks(LEASES)
    assert [marks.of_lease(epoch, 2) for epoch in range(100)] == [0] * 100
    assert not marks.is_complete(1000, 0)
    assert marks.to_plain() == (0, {})


def test_there_are_only_so_many_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that takes up leases of epoch after epoch is refused before a shard's memory is gone."""
    monkeypatch.setattr("cirrus.paramserver.marks.MAX_OPEN_MARKS", 3 * len(LEASES))
    marks = StepMarks(LEASES)
    for epoch in range(3):
        marks.of_epoch(epoch)
    with pytest.raises(LimitError, match="3 epochs are at work already, with 4 leases each"):
        marks.of_epoch(3)
    marks.of_epoch(0)[:] = N_STEPS
    marks.of_epoch(3)
    assert marks.completed_epochs == 1


def test_complete_epochs_are_forgotten_in_order() -> None:
    """An epoch is complete when it and all before it are; then its steps are all duplicates."""
    marks = StepMarks(LEASES)
    marks.of_epoch(1)[:] = N_STEPS
    assert marks.completed_epochs == 0
    marks.of_epoch(0)[:] = N_STEPS
    assert marks.completed_epochs == 2
    assert marks.to_plain() == (2, {})
    assert marks.of_epoch(0).tolist() == list(N_STEPS)
    assert marks.is_complete(1, 3)
    # Nobody can undo what is complete.
    marks.of_epoch(0)[:] = 0
    assert marks.is_complete(0, 0)


def test_marks_survive_as_json() -> None:
    """What a snapshot holds is what the next generation begins with."""
    marks = StepMarks(LEASES)
    marks.of_epoch(0)[:] = N_STEPS
    marks.of_epoch(1)[1] = 2
    completed, plain = marks.to_plain()
    assert (completed, plain) == (1, {"1": [0, 2, 0, 0]})
    again = StepMarks(LEASES)
    again.restore(completed, plain)
    assert again.to_plain() == marks.to_plain()
    assert again.of_epoch(1).dtype == np.int32


# The ledger.


def test_every_lease_is_granted_once_an_epoch_in_an_order_of_its_own() -> None:
    """Leases are permuted by seed and epoch, the same way every time."""
    orders = []
    for seed in (0, 0, 1):
        ledger = make_ledger(seed=seed, n_leases=50)
        for epoch in range(3):
            keys = drain(ledger)
            assert sorted(keys) == [(epoch, lease) for lease in range(50)]
            orders.append([lease for _, lease in keys])
            ledger.advance()
    assert orders[:3] == orders[3:6]
    assert len({tuple(order) for order in orders}) == 6


def test_the_clock_of_steps_has_no_gaps() -> None:
    """In the order of granting, each lease begins at the step where the one before ends."""
    ledger = make_ledger()
    expected = 0
    for _ in range(3):
        for key in drain(ledger):
            assert ledger.first_step(key) == expected
            expected += N_STEPS[key[1]]
        ledger.advance()
    assert expected == 3 * sum(N_STEPS)


def test_many_epochs_do_not_pile_up() -> None:
    """Orders of old epochs are computed again when they are asked for, not kept."""
    ledger = make_ledger()
    first = ledger.first_step((0, 2))
    for epoch in range(100):
        ledger.first_step((epoch, 0))
    assert ledger.first_step((0, 2)) == first
    assert len(ledger._orders) <= 6


def test_what_is_given_again_comes_first() -> None:
    """Of several leases to do, one of an earlier epoch, or earlier in the order, is granted first."""
    ledger = make_ledger()
    order = drain(ledger)
    ledger.advance()
    second = ledger.grant(0, 0, 0.0)
    ledger.give_again(order[3])
    ledger.give_again(order[1])
    assert ledger.given_again == 2
    assert [ledger.grant(0, 0, 0.0) for _ in range(2)] == [order[1], order[3]]
    assert not ledger.epoch_complete
    assert second is not None
    ledger.give_again(second)
    assert ledger.grant(0, 0, 0.0) == second


def test_giving_again_twice_is_giving_again_once() -> None:
    """A lease that is to do already is neither doubled nor counted."""
    ledger = make_ledger()
    key = ledger.grant(0, 0, 0.0)
    assert key is not None
    ledger.give_again(key)
    ledger.give_again(key)
    assert ledger.given_again == 1
    assert sorted(drain(ledger)) == [(0, lease) for lease in range(4)]


def test_a_lease_may_be_finished_by_a_worker_that_had_lost_it() -> None:
    """When all steps are there it does not matter who did them; a second word of it changes nothing."""
    ledger = make_ledger()
    key = ledger.grant(0, 0, 0.0)
    assert key is not None
    ledger.give_again(key)
    assert ledger.finish(key)
    assert not ledger.finish(key)
    assert len(drain(ledger)) == 3
    assert ledger.epoch_complete


def test_only_begun_leases_can_be_asked_for() -> None:
    """Before a checkpoint, leases that some worker has begun are finished, and no others started."""
    ledger = make_ledger()
    assert ledger.at_rest
    key = ledger.grant(0, 0, 0.0)
    assert key is not None
    assert not ledger.at_rest
    assert ledger.grant(0, 1, 0.0, only_begun=True) is None
    ledger.give_again(key)
    assert not ledger.at_rest
    assert ledger.grant(0, 2, 0.0, only_begun=True) == key
    ledger.finish(key)
    assert ledger.at_rest
    assert ledger.grant(0, 3, 0.0, only_begun=True) is None
    assert len(drain(ledger)) == 3


def test_dropping_the_rest_keeps_what_is_begun() -> None:
    """A run that stops finishes what is in work and what was lost, and begins nothing more."""
    ledger = make_ledger()
    held, lost = ledger.grant(0, 0, 0.0), ledger.grant(0, 1, 0.0)
    assert held is not None
    assert lost is not None
    ledger.give_again(lost)
    ledger.drop_rest()
    assert ledger.grant(0, 2, 0.0) == lost
    assert ledger.grant(0, 9, 0.0) is None
    ledger.finish(lost)
    ledger.finish(held)
    assert ledger.epoch_complete
    # A shard that comes back without them does not bring dropped leases back, only those that were done.
    assert ledger.reopen_lost(0, {}) == 2
    assert sorted(drain(ledger)) == sorted([held, lost])


@pytest.mark.parametrize("in_work", [False, True])
def test_lost_steps_are_found_by_marks(in_work: bool) -> None:
    """Of a shard that came back, every lease that it does not hold whole is given again, old epochs too."""
    ledger = make_ledger()
    drain(ledger)
    ledger.advance()
    drain(ledger)
    ledger.advance()
    open_key = ledger.grant(0, 0, 0.0) if in_work else None
    marks = {"1": [2, 3, 0, 3], "2": [0, 0, 0, 0]}
    assert ledger.reopen_lost(1, marks) == 2
    assert ledger.reopen_lost(1, marks) == 0
    expected = [(1, 2), (1, 3)]
    assert sorted(key for key in drain(ledger) if key[0] == 1) == expected
    assert open_key is None or open_key in ledger.open
    assert ledger.reopen_lost(3, {}) == 0
    assert ledger.reopen_lost(0, {}) == len(LEASES) * 2 + (3 if in_work else 4)


def test_a_lease_done_again_for_a_shard_counts_once() -> None:
    """Finishing a lease is news the first time alone, also when a shard lost its steps in between."""
    ledger = make_ledger()
    key = ledger.grant(0, 0, 0.0)
    assert key is not None
    assert ledger.finish(key)
    assert not ledger.finish(key)
    held = [0 if lease == key[1] else steps.n_steps for lease, steps in enumerate(LEASES)]
    assert ledger.reopen_lost(0, {"0": held}) == 1
    assert ledger.grant(0, 1, 0.0, only_begun=True) == key
    restored = make_ledger()
    restored.restore(ledger.to_plain())
    for each in (ledger, restored):
        assert not each.finish(key)


def test_the_ledger_survives_as_json() -> None:
    """Open leases are to do again for the next generation; nothing else is forgotten."""
    ledger = make_ledger()
    drain(ledger)
    ledger.advance()
    done, held, lost = (ledger.grant(0, i, 0.0) for i in range(3))
    assert done is not None
    assert lost is not None
    ledger.finish(done)
    ledger.give_again(lost)
    ledger.drop_rest()
    again = make_ledger()
    again.restore(ledger.to_plain())
    assert again.to_plain() == ledger.to_plain()
    assert again.epoch == 1
    assert again.given_again == 1
    assert not again.open
    assert not again.at_rest
    assert sorted(drain(again)) == sorted([held, lost])
    assert again.epoch_complete
