"""The dashboard's curves: columns, smoothing, thinning and what goes over the wire."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import pytest
from cirrus_dashboard.curves import (
    MAX_POINTS,
    Columns,
    Curve,
    bucket_size,
    decode,
    encode,
    group_band,
    smooth,
    step_split,
    thin,
    update_rate,
)
from dashboard_runs import points
from hypothesis import given
from hypothesis import strategies as st

from cirrus.client_backend.metric_columns import columns_of_points

LOSSES = st.lists(st.floats(-1e3, 1e3, width=32), max_size=1500).map(lambda values: np.array(values, float))


class Page:
    """A page that holds a curve and asks for what it lacks, as the script in the assets does."""

    def __init__(self) -> None:
        self.columns: list[npt.NDArray[np.float32]] = []
        self.cursor: tuple[int, int] | None = None
        self.received = 0

    def take(self, curve: Curve) -> None:
        news = curve.since(self.cursor)
        fresh = [decode(text) for text in news["columns"]]  # type: ignore[attr-defined]
        start = int(news["from"])  # type: ignore[call-overload]
        kept = [column[:start] for column in self.columns] if start else [fresh[0][:0]] * len(fresh)
        self.columns = [np.concatenate(pair) for pair in zip(kept, fresh, strict=True)]
        self.received += len(fresh[0])
        self.cursor = curve.cursor


def curve_of(values: npt.NDArray[np.float64]) -> Curve:
    """Return the curve of a run with these losses."""
    return Curve.make(values, (np.arange(len(values), dtype=float), values))


@given(LOSSES)
def test_a_curve_has_at_most_so_many_points_and_keeps_its_extremes(values):
    """However long a run is, its curve has at most 300 points, the extremes and the last among them."""
    _, chosen = thin(values)
    assert len(chosen) <= MAX_POINTS
    assert len(set(chosen.tolist())) == len(chosen)
    if len(values):
        kept = values[chosen]
        assert (kept.min(), kept.max(), chosen[-1]) == (values.min(), values.max(), len(values) - 1)
        assert np.all(np.diff(chosen) > 0)


@given(LOSSES, st.lists(st.integers(0, 1500), max_size=6))
def test_a_page_that_gets_increments_ends_with_the_whole_curve(values, cuts):
    """Whenever a page asks, what it joined is the curve as it is then, to the bit."""
    page = Page()
    for cut in [*sorted(min(cut, len(values)) for cut in cuts), len(values)]:
        curve = curve_of(values[:cut])
        page.take(curve)
        for held, whole in zip(page.columns, curve.columns, strict=True):
            np.testing.assert_array_equal(held, whole.astype("<f4"))


def test_increments_are_small():
    """A curve that grows by a point costs some points, not the whole curve again."""
    values = np.random.default_rng(0).random(2000)
    page = Page()
    page.take(curve_of(values[:1000]))
    before = page.received
    for end in range(1001, 1101):
        page.take(curve_of(values[:end]))
    assert page.received - before < 100 * 6


@pytest.mark.parametrize("cursor", [(1, 5), (8, 10**9), (8, -1), (0, 0)])
def test_a_cursor_that_fits_nothing_gets_the_whole_curve(cursor):
    """A page may say what it likes of what it holds."""
    curve = curve_of(np.random.default_rng(0).random(1000))
    assert curve.bucket == 8
    assert curve.since(cursor)["from"] == 0


@given(st.integers(0, 10**7))
def test_buckets_double(n):
    """Buckets hold a power of two of points, so that two are joined to one when the curve outgrows them."""
    size = bucket_size(n)
    assert size & (size - 1) == 0
    assert size == 1 or 2 * -(-n // size) < MAX_POINTS


def test_smoothing_has_no_bias_at_the_beginning():
    """A constant stays what it is, from its first value on."""
    np.testing.assert_allclose(smooth(np.full(50, 0.7), 0.95), 0.7)


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=60), st.floats(0.0, 0.99))
def test_smoothing_is_the_weighted_mean_of_what_was_before(values, weight):
    """Each value is the mean of those up to it, weighted by powers of the smoothing."""
    array = np.array(values)
    expected = [
        np.average(array[: i + 1], weights=weight ** np.arange(i, -1, -1.0)) for i in range(len(array))
    ]
    np.testing.assert_allclose(smooth(array, weight), expected, rtol=1e-7, atol=1e-9)


def test_the_rate_is_that_of_the_time_just_before():
    """Updates per second: where a run slows down, the rate follows, and no time gives no rate."""
    seconds = np.array([0.0, 1.0, 2.0, 3.0, 4.0])
    rate = update_rate(seconds, np.array([0.0, 100.0, 200.0, 210.0, 220.0]))
    assert np.isnan(rate[0])
    assert rate[1:].tolist() == [100.0, 100.0, 10.0, 10.0]
    assert np.isnan(update_rate(np.zeros(2), np.zeros(2))).all()


def test_columns_grow_and_leave_the_old_ones_alone():
    """A thread that draws is not disturbed by one that reads; measures that come later are filled up."""
    first = Columns(points([0.7, 0.6]))
    late = dataclasses.replace(points([0.5], begin=2)[0], validation_metrics={"accuracy": 0.8})
    second = first.extended(columns_of_points([late]))
    assert (len(first), len(second)) == (2, 3)
    assert second.last("train_loss") == 0.5
    assert second.last("validation_loss") is None
    assert np.isnan(second["metric:accuracy"][:2]).all()
    assert second["metric:accuracy"][2] == 0.8
    third = second.extended(columns_of_points(points([0.4], begin=3)))
    assert len(third["metric:accuracy"]) == len(third) == 4


def test_runs_that_go_on_from_each_other_are_one_curve():
    """Of a trial's rungs, time and cost are added up; updates go on by themselves."""
    joined = Columns.joined([Columns(points([0.7, 0.6])), Columns(points([0.5, 0.4]))])
    assert joined["seconds"].tolist() == [1.0, 2.0, 3.0, 4.0]
    assert joined["cost"].tolist() == [0.01, 0.02, 0.03, 0.04]
    assert joined["train_loss"].tolist() == [0.7, 0.6, 0.5, 0.4]


def test_a_band_covers_its_group():
    """Mean, lowest and highest come from the curves that reach a place."""
    short = (np.array([0.0, 1.0]), np.array([1.0, 1.0]))
    long = (np.array([0.0, 2.0]), np.array([3.0, 3.0]))
    x, mean, low, high = group_band([short, long], max_points=5)
    assert x.tolist() == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert mean.tolist() == [2.0, 2.0, 2.0, 3.0, 3.0]
    assert (low[0], high[0]) == (1.0, 3.0)
    assert [len(column) for column in group_band([])] == [0, 0, 0, 0]


def test_the_split_of_a_step_is_in_percent():
    """Fetch, pull, compute and push make 100; a run that says nothing of them has no split."""
    assert step_split(Columns(points([0.7, 0.6]))) == {"fetch": 0, "pull": 0, "compute": 100, "push": 0}
    assert step_split(Columns()) == {}


@given(st.lists(st.floats(width=32, allow_nan=True), max_size=20))
def test_numbers_survive_the_wire(values):
    """What is encoded comes back, to the bit of a float32."""
    np.testing.assert_array_equal(decode(encode(np.array(values, float))), np.array(values, "<f4"))
