"""What one page asks to see, and what it lacks of that: a delta against its own cursors.

The server keeps nothing about a page. A page says which version of which run it holds, and gets the rest.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cirrus.errors import ConfigError
from cirrus_dashboard.curves import (
    METRIC_PREFIX,
    TRAIN_LOSS,
    VALIDATION_LOSS,
    Curve,
    Floats,
    encode,
    group_band,
    smooth,
    update_rate,
)
from cirrus_dashboard.records import RunRecord, varying
from cirrus_dashboard.rows import row, run_name, value_text
from cirrus_dashboard.sources import Snapshot
from cirrus_dashboard.styles import QUALITATIVE, Style, styles_of

#: The loss that runs are compared by: on validation data where there is any, else in training.
BEST_KNOWN = "loss"
LOSSES = {BEST_KNOWN: "loss", TRAIN_LOSS: "training loss", VALIDATION_LOSS: "validation loss"}
X_AXES = {"seconds": "time (s)", "updates": "updates", "epochs": "epochs", "cost": "cost ($)"}
SHOW_MODES = ("all", "best", "worst")
MAX_SMOOTHING = 0.99
#: Groups that are drawn as bands; those with the lowest mean loss.
MAX_GROUPS = 10
#: One answer takes no longer than this to draw curves that are new to a page; it asks for the others at once.
PORTION_SECONDS = 0.1
#: Hyperparameters that are named with a curve, of those that differ between runs.
MAX_NAMED = 3


@dataclass(frozen=True, kw_only=True)
class View:
    """What a page shows. Every field comes from a browser, and is checked."""

    loss: str = BEST_KNOWN
    """A key of :data:`LOSSES`, or ``metric:NAME``."""
    x: str = "seconds"
    smoothing: float = 0.0
    show: str = "all"
    count: int = 5
    color_by: str | None = None
    """A hyperparameter; None: by run up to ten, else by what varies."""
    group_by: str | None = None
    search: str | None = None
    """Show the runs of this search alone."""
    hidden: frozenset[str] = frozenset()
    pinned: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        """Check what a browser may have made up."""
        known = self.loss in LOSSES or (self.loss.startswith(METRIC_PREFIX) and len(self.loss) < 100)
        if not known:
            raise ConfigError("loss", f"unknown loss {self.loss!r}")
        if self.x not in X_AXES:
            raise ConfigError("x", f"unknown axis {self.x!r}")
        if self.show not in SHOW_MODES:
            raise ConfigError("show", f"must be one of {', '.join(SHOW_MODES)}, got {self.show!r}")
        if not (math.isfinite(self.smoothing) and 0 <= self.smoothing <= MAX_SMOOTHING):
            raise ConfigError("smoothing", f"must be in [0, {MAX_SMOOTHING}], got {self.smoothing!r}")
        if not 1 <= self.count <= 1000:
            raise ConfigError("count", f"must be in [1, 1000], got {self.count!r}")

    @property
    def key(self) -> str:
        """What points of curves depend on: curves of another key must be sent anew."""
        return f"{self.loss}|{self.x}|{self.smoothing:g}"

    @property
    def loss_title(self) -> str:
        """What to write at the axis of the loss."""
        return LOSSES.get(self.loss) or self.loss.removeprefix(METRIC_PREFIX).replace("_", " ")


def choose(records: Iterable[RunRecord], view: View) -> list[RunRecord]:
    """Return the runs whose curves are drawn, oldest first.

    Pinned ones always are, hidden ones never; ``best`` and ``worst`` count among the others by their last
    loss.
    """
    held = [record for record in records if view.search is None or record.search == view.search]
    candidates = [record for record in held if record.run_id not in view.hidden and len(record.columns)]
    if view.show != "all":
        scored = sorted((record.score, record.run_id) for record in candidates if _is_number(record.score))
        ordered = [run_id for _, run_id in scored]
        kept = set(ordered[: view.count] if view.show == "best" else ordered[-view.count :])
        candidates = [x for x in candidates if x.run_id in kept or x.run_id in view.pinned]
    return sorted(candidates, key=lambda record: record.place)


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def x_values(record: RunRecord, axis: str) -> Floats:
    """Return the positions of a run's points on an axis of :data:`X_AXES`."""
    columns = record.columns
    if axis != "epochs":
        return columns[axis]
    rows = 0 if record.config is None else record.config.rows_per_epoch
    return columns["samples"] / rows if rows else columns["epoch"]


def loss_values(record: RunRecord, name: str) -> Floats:
    """Return the values that a run's curve of loss is drawn from; not a number where a point has none."""
    if name != BEST_KNOWN:
        return record.columns[name]
    return record.columns[VALIDATION_LOSS if record.columns.has(VALIDATION_LOSS) else TRAIN_LOSS]


def draw(record: RunRecord, view: View) -> tuple[Curve, Curve]:
    """Return a run's two curves.

    The first has the columns (x, loss, cost); the second (x, updates/s, cost, seconds) for the charts that
    need no loss.
    """
    columns = record.columns
    x = x_values(record, view.x)
    loss = loss_values(record, view.loss)
    known = np.flatnonzero(np.isfinite(loss))
    smoothed = smooth(loss[known], view.smoothing)
    losses = Curve.make(smoothed, (x[known], smoothed, columns["cost"][known]))
    rate = update_rate(columns["seconds"], columns["updates"])
    rates = Curve.make(rate, (x, rate, columns["cost"], columns["seconds"]))
    return losses, rates


class CurveCache:
    """Curves that were drawn for the last views, so that a run that stands still costs nothing.

    Args:
        max_curves: Most of them to keep; the oldest go first.
    """

    def __init__(self, max_curves: int = 2_000) -> None:
        self._max_curves = max_curves
        self._held: dict[tuple[str, str], tuple[object, tuple[Curve, Curve]]] = {}

    def holds(self, record: RunRecord, view: View) -> bool:
        """Tell whether a run's curves have been drawn."""
        found = self._held.get((record.run_id, view.key))
        return found is not None and found[0] is record.columns

    def draw(self, record: RunRecord, view: View) -> tuple[Curve, Curve]:
        """Return :func:`draw` of a run."""
        key = (record.run_id, view.key)
        found = self._held.get(key)
        if found is not None and found[0] is record.columns:
            return found[1]
        drawn = draw(record, view)
        self._held[key] = (record.columns, drawn)
        while len(self._held) > self._max_curves:
            self._held.pop(next(iter(self._held)), None)
        return drawn


@dataclass(frozen=True, kw_only=True)
class Cursors:
    """What a page says that it holds. It comes from a browser: anything odd counts as nothing held."""

    source: str = ""
    """Which server process the versions are of."""
    version: int = -1
    key: str = ""
    view: str = ""
    """Everything that the page's last delta depended on but the runs."""
    rows: Mapping[str, int] = field(default_factory=dict)
    curves: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Run id to (number of points, bucket and stable points of both curves)."""

    @classmethod
    def from_plain(cls, raw: object) -> Cursors:
        """Read what a page sent."""
        if not isinstance(raw, dict):
            return cls()
        rows, curves = raw.get("rows"), raw.get("curves")
        return cls(
            source=str(raw.get("source", "")),
            version=raw["version"] if isinstance(raw.get("version"), int) else -1,
            key=str(raw.get("key", "")),
            view=str(raw.get("view", "")),
            rows={k: v for k, v in rows.items() if isinstance(v, int)} if isinstance(rows, dict) else {},
            curves={k: v for k, v in curves.items() if _is_cursor(v)} if isinstance(curves, dict) else {},
        )


def _is_cursor(raw: object) -> bool:
    return isinstance(raw, list) and len(raw) == 5 and all(isinstance(number, int) for number in raw)


def delta(
    snapshot: Snapshot,
    view: View,
    cursors: Cursors,
    *,
    source: str,
    cache: CurveCache,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any] | None:
    """Return what a page lacks, as JSON can hold it; None if that is nothing.

    Where that is many curves, it is a part of them, the newest first, and ``more`` says so.

    Args:
        snapshot: All runs.
        view: What the page shows.
        cursors: What it holds.
        source: Which server process this is.
        cache: Curves drawn before.
        clock: Seconds.
    """
    view_text = repr(view)
    if cursors.source != source:
        cursors = Cursors()
    elif cursors.version == snapshot.version and cursors.view == view_text:
        return None
    held_curves = cursors.curves if cursors.key == view.key else {}
    records = [x for x in snapshot.records.values() if view.search is None or x.search == view.search]
    names = varying(records)
    shown = choose(records, view)
    styles = styles_of(shown, view.color_by, names)
    named = most_telling(shown, names)
    curves, curve_cursors, drawn = _curves(shown, view, held_curves, cache, clock)
    more = len(drawn) < len(shown)
    rows = {
        record.run_id: row(record, names, live_rate=True)
        for record in records
        if cursors.rows.get(record.run_id) != record.version
    }
    return {
        "keep": bool(held_curves),
        "curves": curves,
        "traces": [_trace(record, styles.by_run[record.run_id], view, named) for record in shown],
        "bands": _bands(drawn, view, cache) if view.group_by else [],
        "more": more,
        "legend": styles.legend,
        "rows": rows,
        "row_order": [record.run_id for record in _newest_first(records)],
        "titles": {"loss": view.loss_title, "x": X_AXES[view.x], "short": ", ".join(named)},
        "cursors": {
            "source": source,
            "version": -1 if more else snapshot.version,
            "key": view.key,
            "view": view_text,
            "rows": {record.run_id: record.version for record in records},
            "curves": curve_cursors,
        },
    }


def _newest_first(records: Iterable[RunRecord]) -> list[RunRecord]:
    """Return runs as the table lists them: the newest first, but the trials of a search by number."""
    by_trial = sorted(records, key=lambda record: record.trial or 0)
    return sorted(by_trial, key=lambda record: record.age, reverse=True)


def _curves(
    shown: Sequence[RunRecord],
    view: View,
    held: Mapping[str, Sequence[int]],
    cache: CurveCache,
    clock: Callable[[], float],
) -> tuple[dict[str, Any], dict[str, list[int]], list[RunRecord]]:
    """Draw curves for as long as one answer may take; one new one at least.

    Those that the page has nothing of come first, and of these, as of the others, the newest run's.

    Returns:
        What a page lacks of each, the cursors of all that it then has, and the runs that were come to.
    """
    new: dict[str, Any] = {}
    cursors: dict[str, list[int]] = {}
    drawn: list[RunRecord] = []
    end = clock() + PORTION_SECONDS
    for record in sorted(reversed(shown), key=lambda record: record.run_id in held):
        cursor = held.get(record.run_id)
        if new and not cache.holds(record, view) and clock() > end:
            if cursor is not None:
                cursors[record.run_id] = list(cursor)
            continue
        drawn.append(record)
        losses, rates = cache.draw(record, view)
        mark = [len(record.columns), *losses.cursor, *rates.cursor]
        cursors[record.run_id] = mark
        if cursor is not None and list(cursor) == mark:
            continue
        new[record.run_id] = {
            "loss": losses.since(None if cursor is None else cursor[1:3]),
            "rate": rates.since(None if cursor is None else cursor[3:5]),
        }
    return new, cursors, drawn[::-1]


def _trace(record: RunRecord, style: Style, view: View, names: Sequence[str]) -> dict[str, Any]:
    chosen = [f"{name} {value_text(record.hyperparameters.get(name))}" for name in names]
    return {
        "id": record.run_id,
        "name": run_name(record),
        "chosen": ", ".join(chosen),
        "short": ", ".join(value_text(record.hyperparameters.get(name)) for name in names),
        "color": style.color,
        "dash": style.dash,
        "live": record.is_live,
        "pinned": record.run_id in view.pinned,
    }


def most_telling(shown: Sequence[RunRecord], names: Sequence[str]) -> list[str]:
    """Return the few hyperparameters that have the most values among the runs that are drawn."""
    counts = {name: len({value_text(record.hyperparameters.get(name)) for record in shown}) for name in names}
    chosen = sorted(names, key=lambda name: -counts[name])[:MAX_NAMED]
    return [name for name in names if name in chosen]


def _bands(shown: Sequence[RunRecord], view: View, cache: CurveCache) -> list[dict[str, Any]]:
    groups: dict[str, list[tuple[Floats, Floats]]] = {}
    for record in shown:
        losses, _ = cache.draw(record, view)
        name = value_text(record.hyperparameters.get(view.group_by or ""))
        groups.setdefault(name, []).append((losses.columns[0], losses.columns[1]))
    bands = []
    for name, members in groups.items():
        x, mean, low, high = group_band(members)
        if len(x):
            bands.append((float(mean[-1]), name, len(members), (x, mean, low, high)))
    bands.sort(key=lambda band: band[:2])
    return [
        {
            "name": f"{view.group_by} = {name} ({count})",
            "color": QUALITATIVE[number % len(QUALITATIVE)],
            "columns": [encode(column) for column in columns],
        }
        for number, (_, name, count, columns) in enumerate(bands[:MAX_GROUPS])
    ]
