"""Curves: what a run's metric points say as columns of numbers, and how much of it goes to a browser.

Everything here is a pure function of what it is given. A curve is made in three steps that look back, never
ahead (columns, smoothing, buckets), so that a curve that grows keeps what was sent of it, and only its new
end has to be sent.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.signal import lfilter

from cirrus.client_backend.metric_columns import METRIC_PREFIX, columns_of_points, joined
from cirrus.client_backend.metric_columns import Columns as PointColumns
from cirrus.metrics import MetricPoint

__all__ = ["METRIC_PREFIX"]

Floats = npt.NDArray[np.float64]

#: Most points of one curve on the wire, and in a browser.
MAX_POINTS = 300
#: The rate of updates is taken over this long at least, and over this share of the run's age.
RATE_SECONDS = 0.5
RATE_SHARE = 0.05
#: Losses that can be plotted: the names of columns, and what people call them.
TRAIN_LOSS = "train_loss"
VALIDATION_LOSS = "validation_loss"
#: Where the time of a step goes, in the order of a step.
STEP_PARTS = ("fetch_seconds", "pull_seconds", "compute_seconds", "push_seconds")


class Columns:
    """A run's metric points as columns; never changed.

    Args:
        points: The points.
    """

    def __init__(self, points: Iterable[MetricPoint] = ()) -> None:
        self._held = columns_of_points(list(points))
        self.parts: tuple[Columns, ...] = ()
        """What these were joined from."""

    @classmethod
    def joined(cls, parts: Sequence[Columns]) -> Columns:
        """Return runs that go on from each other as one: time and cost, which begin anew, are added up.

        Epochs, updates and samples go on by themselves.
        """
        whole = cls()
        whole.parts = tuple(parts)
        moved, before = [], dict.fromkeys(("seconds", "cost"), 0.0)
        for part in parts:
            values = part._held.values | {name: part[name] + start for name, start in before.items()}
            moved.append(PointColumns(len(part), values))
            if len(part):
                before = {name: float(values[name][-1]) for name in before}
        whole._held = joined(moved)
        return whole

    def __len__(self) -> int:
        return self._held.n_points

    @property
    def names(self) -> list[str]:
        """Names of all columns."""
        return list(self._held.values)

    def __getitem__(self, name: str) -> Floats:
        """Return a column, float64, shape (n_points,); not a number where a point does not have the value."""
        held = self._held.values.get(name)
        return np.full(len(self), np.nan) if held is None else held

    def extended(self, points: PointColumns) -> Columns:
        """Return columns with more points at the end."""
        longer = Columns()
        longer._held = joined([self._held, points] if len(self) else [points])
        return longer

    def has(self, name: str) -> bool:
        """Tell whether any point has a value of this name."""
        return bool(np.isfinite(self[name]).any())

    def last(self, name: str) -> float | None:
        """Return the last value of a column that is a number, or None."""
        values = self[name]
        finite = np.flatnonzero(np.isfinite(values))
        return float(values[finite[-1]]) if len(finite) else None


def update_rate(seconds: Floats, updates: Floats) -> Floats:
    """Return updates per second at each point, over the time just before it.

    Args:
        seconds: Ascending, shape (n,).
        updates: Cumulative, shape (n,).

    Returns:
        Shape (n,); not a number where no time has passed yet.
    """
    if not len(seconds):
        return np.empty(0)
    window = np.maximum(RATE_SECONDS, RATE_SHARE * seconds)
    begin = np.searchsorted(seconds, seconds - window, side="right") - 1
    begin = np.minimum(np.maximum(begin, 0), np.maximum(np.arange(len(seconds)) - 1, 0))
    elapsed = seconds - seconds[begin]
    done = updates - updates[begin]
    rate: Floats = np.divide(done, elapsed, out=np.full(len(seconds), np.nan), where=elapsed > 0)
    return rate


def smooth(values: Floats, weight: float) -> Floats:
    """Return the exponential moving average, without its bias towards zero at the beginning.

    As Adam corrects its averages (Kingma and Ba, 2015, section 3): the average of the first i values is
    divided by ``1 - weight**i``.

    Args:
        values: Numbers, shape (n,).
        weight: In [0, 1): how much of the average so far stays with each new value. 0 changes nothing.
    """
    if weight <= 0 or not len(values):
        return values
    averaged: Floats = lfilter([1 - weight], [1, -weight], values)
    corrected: Floats = averaged / (1 - weight ** np.arange(1, len(values) + 1))
    return corrected


def bucket_size(n_points: int, max_points: int = MAX_POINTS) -> int:
    """Return how many points are drawn together: 1, or a power of two from 4 on, of which two are kept."""
    if n_points <= max_points:
        return 1
    size = 4
    while 2 * -(-n_points // size) > max_points - 1:
        size *= 2
    return size


def thin(values: Floats, max_points: int = MAX_POINTS) -> tuple[int, npt.NDArray[np.intp]]:
    """Choose the points of a curve that are drawn: the lowest and the highest of each bucket, and the last.

    Buckets have fixed borders, so that the choice for a complete bucket stays as the curve grows, until there
    are so many that they are joined in twos.

    Args:
        values: Numbers, shape (n,).
        max_points: Most points to choose.

    Returns:
        The size of buckets, and the ascending positions of the points.
    """
    n = len(values)
    size = bucket_size(n, max_points)
    if size == 1:
        return 1, np.arange(n)
    whole = n // size * size
    blocks = values[:whole].reshape(-1, size)
    base = np.arange(0, whole, size)
    pairs = np.stack([base + blocks.argmin(axis=1), base + blocks.argmax(axis=1)], axis=1)
    pairs.sort(axis=1)
    tail = values[whole:]
    ends = [whole + tail.argmin(), whole + tail.argmax()] if len(tail) else []
    chosen = np.unique(np.concatenate([pairs.ravel(), sorted(ends), [n - 1]]).astype(np.intp))
    return size, chosen


@dataclass(frozen=True)
class Curve:
    """A curve as it is drawn: a few columns of at most :data:`MAX_POINTS` numbers."""

    bucket: int
    """Points of the run in one bucket of the curve."""
    columns: tuple[Floats, ...]
    n_stable: int
    """So many points from the beginning stay as they are while the bucket keeps its size."""

    @classmethod
    def make(cls, by: Floats, columns: Sequence[Floats], max_points: int = MAX_POINTS) -> Curve:
        """Thin columns out.

        Args:
            by: What to keep the lowest and highest points of, shape (n,); points where this is not a number
                are left out.
            columns: What to draw, each of shape (n,).
            max_points: Most points of the curve.
        """
        kept = np.flatnonzero(np.isfinite(by))
        bucket, chosen = thin(by[kept], max_points)
        # The last bucket is not complete, and the last point of all need not stay.
        stable_until = len(kept) // bucket * bucket if bucket > 1 else len(kept)
        positions = kept[chosen]
        is_stable = chosen < stable_until
        if bucket > 1 and len(chosen) and stable_until == len(kept):
            # Complete, but its very last point may be there only because it is the last.
            is_stable[chosen >= stable_until - bucket] = False
        return cls(
            bucket=bucket,
            columns=tuple(column[positions] for column in columns),
            n_stable=int(is_stable.sum()),
        )

    def __len__(self) -> int:
        return len(self.columns[0])

    @property
    def cursor(self) -> tuple[int, int]:
        """What a client that holds this curve says of it: size of buckets, and how many points will stay."""
        return self.bucket, self.n_stable

    def since(self, cursor: Sequence[int] | None) -> dict[str, object]:
        """Return what a client lacks, as JSON can hold it.

        Args:
            cursor: The :attr:`cursor` of what it holds; None: it holds nothing.

        Returns:
            ``from``: how many points of its own the client keeps; ``columns``: little-endian float32 values
            in base64 that come after them.
        """
        fits = cursor is not None and cursor[0] == self.bucket and 0 <= cursor[1] <= self.n_stable
        start = cursor[1] if fits and cursor is not None else 0
        return {"from": start, "columns": [encode(column[start:]) for column in self.columns]}


def encode(values: Floats) -> str:
    """Return numbers as little-endian float32 in base64: a third of the size and time of JSON's digits."""
    return base64.b64encode(values.astype("<f4").tobytes()).decode("ascii")


def decode(text: str) -> npt.NDArray[np.float32]:
    """Undo :func:`encode`."""
    return np.frombuffer(base64.b64decode(text), dtype="<f4")


def group_band(
    curves: Iterable[tuple[Floats, Floats]], max_points: int = MAX_POINTS
) -> tuple[Floats, Floats, Floats, Floats]:
    """Join curves of a group into one with a band.

    Args:
        curves: (x, y) each, x ascending.
        max_points: Number of places to look at.

    Returns:
        x, mean, lowest and highest y, over the range where any curve is, from those that reach there.
    """
    usable = [(x, y) for x, y in curves if len(x)]
    if not usable:
        empty = np.empty(0)
        return empty, empty, empty, empty
    low = min(float(x[0]) for x, _ in usable)
    high = max(float(x[-1]) for x, _ in usable)
    grid = np.linspace(low, high, max_points if high > low else 1)
    rows = np.stack([np.interp(grid, x, y, left=np.nan, right=np.nan) for x, y in usable])
    held = np.isfinite(rows)
    n = held.sum(axis=0)
    some = n > 0
    grid, rows, held, n = grid[some], rows[:, some], held[:, some], n[some]
    mean = np.where(held, rows, 0.0).sum(axis=0) / n
    lowest = np.where(held, rows, np.inf).min(axis=0)
    highest = np.where(held, rows, -np.inf).max(axis=0)
    return grid, mean, lowest, highest


def step_split(columns: Columns) -> Mapping[str, float]:
    """Return the share of a worker's time that each part of a step takes, in percent; empty if unknown."""
    sums = {part.removesuffix("_seconds"): float(np.nansum(columns[part])) for part in STEP_PARTS}
    total = sum(sums.values())
    return {part: 100 * value / total for part, value in sums.items()} if total > 0 else {}
