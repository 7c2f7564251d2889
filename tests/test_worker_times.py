"""The time that workers are billed by: reports, connections, generations and the loss of shard 0."""

from __future__ import annotations

import json

import pytest

from cirrus.config import WorkerPrices
from cirrus.paramserver.worker_times import WorkerTimes


def test_a_workers_own_report_beats_the_connection() -> None:
    """What a worker did before it registered counts, and its connection tells what comes after."""
    times = WorkerTimes()
    times.report("train", 0, 1, 1.5, now=100.0)
    assert times.seconds(100.0) == 1.5
    assert times.seconds(104.0) == 5.5
    times.report("train", 0, 1, 9.0, now=104.0)
    assert times.seconds(104.0) == 9.0
    times.report("train", 0, 1, 2.0, now=105.0)
    assert times.seconds(105.0) == 10.0


def test_generations_add_up() -> None:
    """A worker that was invoked again is another invocation; one that is gone costs no more."""
    times = WorkerTimes()
    times.report("train", 0, 1, 0.0, now=0.0)
    times.end("train", 0, 1, now=10.0)
    assert times.seconds(50.0) == 10.0
    times.report("train", 0, 2, 0.0, now=60.0)
    times.report("evaluate", 0, 1, 0.0, now=60.0)
    assert times.seconds(61.0) == 12.0
    assert times.invocations == 3
    prices = WorkerPrices(dollars_per_second=0.5, dollars_per_invocation=1.0)
    assert times.dollars(prices, 61.0) == 9.0


def test_what_an_old_generation_says_changes_nothing() -> None:
    """A late word of a generation that was replaced neither counts nor ends the new one."""
    times = WorkerTimes()
    times.report("train", 0, 2, 0.0, now=0.0)
    times.report("train", 0, 1, 100.0, now=1.0)
    times.end("train", 0, 1, now=1.0)
    assert times.seconds(2.0) == 2.0
    assert times.invocations == 1


def test_a_new_shard_0_counts_nobody_twice() -> None:
    """After a restore, a generation that registers again goes on at its own count of seconds."""
    before = WorkerTimes()
    before.report("train", 0, 1, 0.0, now=0.0)
    before.report("train", 1, 4, 2.0, now=0.0)
    after = WorkerTimes()
    after.restore(json.loads(json.dumps(before.to_plain(10.0))))
    assert after.seconds(1000.0) == pytest.approx(22.0)
    after.report("train", 0, 1, 13.0, now=1000.0)
    assert after.seconds(1000.0) == pytest.approx(25.0)
    assert after.invocations == 2


@pytest.mark.parametrize("field", ["dollars_per_second", "dollars_per_invocation"])
def test_prices_are_checked(field: str) -> None:
    """A price is a number that is not negative."""
    with pytest.raises(ValueError, match=field):
        WorkerPrices(**{field: -1.0})
