"""Metric points as columns: the kernel reads what shard 0 writes, and leaves all else to the slow way."""

from __future__ import annotations

import dataclasses
import json
import secrets

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cirrus.client_backend.metric_columns import (
    NUMBER_FIELDS,
    Columns,
    columns_of_lines,
    columns_of_points,
    joined,
)
from cirrus.errors import ConfigError, CorruptDataError
from cirrus.metrics import MetricPoint
from cirrus.run_folder import METRICS_SEGMENT_BYTES, MetricsCursor, MetricsReader, MetricsWriter, RunFolder

KEY = "metrics/00000000.jsonl"
_NUMBERS = st.floats(-1e300, 1e300) | st.sampled_from([float("nan"), float("inf"), -float("inf"), 5e-324])
_COUNTS = st.integers(0, 2**62)
_POINTS = st.builds(
    MetricPoint,
    seconds=_NUMBERS,
    epoch=_COUNTS,
    updates=_COUNTS,
    samples=_COUNTS,
    train_loss=st.none() | _NUMBERS,
    validation_loss=st.none() | _NUMBERS,
    validation_metrics=st.dictionaries(st.text(max_size=5), st.floats(-10, 10), max_size=2),
    cost=_NUMBERS,
    n_workers=_COUNTS,
    end_of_epoch=st.booleans(),
    fetch_seconds=_NUMBERS,
    pull_seconds=_NUMBERS,
    compute_seconds=_NUMBERS,
    push_seconds=_NUMBERS,
)


def lines_of(points: list[MetricPoint]) -> bytes:
    """Return points as shard 0 writes them."""
    return b"".join(json.dumps(dataclasses.asdict(point)).encode() + b"\n" for point in points)


def assert_same(found: Columns, wanted: Columns) -> None:
    """Compare columns, numbers to within a few units of their last place."""
    assert found.n_points == wanted.n_points
    assert set(found.values) == set(wanted.values)
    for name, column in wanted.values.items():
        np.testing.assert_allclose(found.values[name], column, rtol=2e-15, atol=1e-300, err_msg=name)


@given(st.lists(_POINTS, max_size=4))
def test_columns_are_what_the_points_say(points):
    """Whatever numbers a run has, the kernel and the objects say the same."""
    assert_same(columns_of_lines(lines_of(points), KEY), columns_of_points(points))


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: {name: raw[name] for name in reversed(raw)},
        lambda raw: {name: raw[name] for name in raw if name != "pull_seconds"},
        lambda raw: {**raw, "validation_metrics": {'a"}{': 0.5}},
        lambda raw: {**raw, "validation_metrics": {"é\\": 0.5}},
    ],
)
def test_lines_that_look_different_are_read_too(change):
    """Another order, fields of another version, and names that a kernel should not judge."""
    point = MetricPoint(seconds=1.5, epoch=2, updates=3, samples=4, train_loss=0.5)
    raw = change(dataclasses.asdict(point))
    lines = lines_of([point]) + json.dumps(raw, indent=None).encode() + b"\n"
    found = columns_of_lines(lines, KEY)
    assert found.n_points == 2
    assert found.values["train_loss"].tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace(b'"epoch": 2', b'"epoch": two'),
        lambda text: text.replace(b"null", b"nule"),
        lambda text: text[:-20] + b"\n",
        lambda text: text[:40],
        lambda text: text.replace(b"1.5", b"1.5.5"),
        lambda text: text.replace(b"1.5", b"-"),
        lambda text: text.replace(b"1.5", b"1e"),
        lambda text: text.replace(b"1.5", b'"fast"'),
        lambda text: text.replace(b"{}", b'{"a": "b"}'),
        lambda text: text.replace(b"{}", b"{1}"),
        lambda text: text + b"\x00\xff\n",
    ],
)
def test_damage_is_an_error_that_names_the_object(damage):
    """No nonsense becomes a number, wherever in a line it is."""
    point = MetricPoint(seconds=1.5, epoch=2, updates=3, samples=4)
    with pytest.raises((CorruptDataError, ConfigError), match="00000000.jsonl|metrics"):
        columns_of_lines(lines_of([point, point]) + damage(lines_of([point])), KEY)


@pytest.mark.parametrize("reverse", [False, True], ids=["as written", "other order"])
def test_numbers_beyond_all_others(reverse):
    """Counts are infinite then and measures refused: whoever shows other runs has to go on."""

    def line_of(**fields):
        point = MetricPoint(**{"seconds": 1.0, "epoch": 0, "updates": 1, "samples": 1, **fields})
        items = list(dataclasses.asdict(point).items())
        return json.dumps(dict(items[::-1] if reverse else items)).encode() + b"\n"

    found = columns_of_lines(line_of(updates=10**400), KEY)
    assert found.values["updates"].tolist() == [np.inf]
    with pytest.raises(ConfigError, match="too large"):
        columns_of_lines(line_of(validation_metrics={"a": 10**400}), KEY)


def test_measures_that_are_nested_too_deeply_are_damage():
    """The error names the object, as that of any other line does."""
    line = lines_of([MetricPoint(seconds=1.0, epoch=0, updates=1, samples=1, validation_metrics={"a": 1.0})])
    with pytest.raises(CorruptDataError, match=KEY):
        columns_of_lines(line.replace(b'"a": 1.0', b'"a": ' + b"[" * 100_000 + b"]" * 100_000), KEY)


def test_measures_that_come_later_are_filled_up():
    """Parts that know different measures become columns of one length."""
    first = MetricPoint(seconds=1.0, epoch=0, updates=1, samples=1)
    second = dataclasses.replace(first, validation_metrics={"accuracy": 0.75})
    whole = joined([columns_of_points([first]), columns_of_points([second, first])])
    assert whole.n_points == 3
    assert np.isnan(whole.values["metric:accuracy"][[0, 2]]).all()
    assert whole.values["metric:accuracy"][1] == 0.75
    assert joined([]).n_points == 0
    assert set(NUMBER_FIELDS) <= set(joined([]).values)


class TestSegments:
    """Metrics are spread over objects; each point is read once."""

    def test_segments_that_grow_and_fill_up(self):
        """A reader that looks at any moment gets all points, in order."""
        folder = RunFolder(f"memory://segments-{secrets.token_hex(4)}/runs/a")
        writer, reader, seen = MetricsWriter(folder), MetricsReader(folder), []
        for number in range(700):
            writer.append(MetricPoint(seconds=1.0, epoch=0, updates=number, samples=number))
            if number % 7 == 0:
                writer.flush()
            if number % 30 == 0:
                seen += reader.read()
        writer.flush()
        seen += reader.read()
        assert [point.updates for point in seen] == list(range(700))
        assert reader.cursor.segment > 1
        assert MetricsReader(folder, reader.cursor).read() == []

    def test_a_segment_that_never_filled_up_has_a_successor(self):
        """A shard that was started again begins another; the one before is read to its end."""
        folder = RunFolder(f"memory://segments-{secrets.token_hex(4)}/runs/a")
        point = MetricPoint(seconds=1.0, epoch=0, updates=1, samples=1)
        first, reader = MetricsWriter(folder), MetricsReader(folder)
        first.append(point)
        first.flush()
        assert len(reader.read()) == 1
        first.append(point)
        first.flush()
        second = MetricsWriter(folder)
        second.append(point)
        second.flush()
        assert len(reader.read()) == 2
        assert len(MetricsReader(folder).read()) == 3

    def test_a_full_segment_without_successor_is_where_to_go_on(self):
        """The next point may come at any time."""
        folder = RunFolder(f"memory://segments-{secrets.token_hex(4)}/runs/a")
        line = lines_of([MetricPoint(seconds=1.0, epoch=0, updates=1, samples=1)])
        folder.store.put(KEY, line * (METRICS_SEGMENT_BYTES // len(line) + 1))
        reader = MetricsReader(folder)
        assert len(reader.read()) > 100
        assert reader.cursor == MetricsCursor(segment=0, size=len(folder.store.get(KEY)))
        folder.store.put(KEY.replace("0.", "1."), line)
        assert len(reader.read()) == 1
