"""What many runs say together: which hyperparameters matter, and when which worker worked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cirrus.metrics import RunEvent
from cirrus_dashboard.records import RunRecord, Value

#: With fewer runs that have a loss, importances would be noise.
MIN_RUNS = 5
N_TREES = 100
#: Numbers that span this much are looked at by their logarithm.
LOG_SPAN = 20.0


@dataclass(frozen=True)
class Importance:
    """What a hyperparameter has to do with the loss."""

    name: str
    share: float
    """In [0, 1]; all hyperparameters together have 1."""
    correlation: float | None
    """Spearman's, of a number with the loss: below 0, larger is better. None for names."""


def importances(records: Iterable[RunRecord], names: Sequence[str]) -> list[Importance]:
    """Return what each hyperparameter has to do with the last loss, most important first.

    The shares are the mean decreases in impurity of a forest of extremely randomised trees (Geurts, Ernst and
    Wehenkel, 2006) that predicts the loss's rank: few runs that diverged do not drown the others.

    Args:
        records: Runs; those without a loss are left out.
        names: Hyperparameters that differ between them.

    Returns:
        An empty list where there are too few runs or nothing differs.
    """
    scored = [(record, record.score) for record in records]
    usable = [(record, score) for record, score in scored if score is not None and math.isfinite(score)]
    if len(usable) < MIN_RUNS or not names:
        return []
    # It takes a second to import, and only here is it needed.
    from scipy.stats import rankdata, spearmanr
    from sklearn.ensemble import ExtraTreesRegressor

    ranks = rankdata([score for _, score in usable])
    features = np.stack(
        [as_numbers([x.hyperparameters.get(name) for x, _ in usable]) for name in names], axis=1
    )
    forest = ExtraTreesRegressor(n_estimators=N_TREES, min_samples_leaf=2, random_state=0, n_jobs=1)
    shares = forest.fit(features, ranks).feature_importances_
    found = []
    for number, name in enumerate(names):
        column = features[:, number]
        ordered = all(is_number(x.hyperparameters.get(name)) for x, _ in usable) and np.ptp(column) > 0
        correlation = float(spearmanr(column, ranks).statistic) if ordered and np.ptp(ranks) > 0 else None
        found.append(Importance(name, float(shares[number]), correlation))
    return sorted(found, key=lambda importance: (-importance.share, importance.name))


def is_number(value: Value) -> bool:
    """Tell whether a hyperparameter is a finite number, and no truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_logarithmic(numbers: npt.NDArray[np.float64]) -> bool:
    """Tell whether numbers are better looked at by their logarithms."""
    return bool(len(numbers) and numbers.min() > 0 and numbers.max() / numbers.min() >= LOG_SPAN)


def as_numbers(values: Sequence[Value]) -> npt.NDArray[np.float64]:
    """Return a hyperparameter's values as numbers, shape (n,); names are numbered in their order.

    A missing number lies below all others.
    """
    if any(is_number(value) for value in values) and all(x is None or is_number(x) for x in values):
        present = np.array([float(x) for x in values if x is not None])
        low = present.min() - max(1.0, float(np.ptp(present)))
        return np.array([low if x is None else float(x) for x in values])
    order = {text: number for number, text in enumerate(sorted({str(value) for value in values}))}
    return np.array([float(order[str(value)]) for value in values])


@dataclass(frozen=True)
class Span:
    """One generation of a worker, or of a shard."""

    who: str
    generation: int
    begin: float
    """Unix time."""
    end: float
    open: bool
    """It is still at work."""


def spans(events: Iterable[RunEvent], now: float) -> list[Span]:
    """Return when which generation of whom worked, in the order of their beginnings.

    Args:
        events: What happened, oldest first.
        now: Unix time, at which those who have not left are still at work.
    """
    begun: dict[str, RunEvent] = {}
    found: list[Span] = []

    def close(who: str, end: float, *, is_open: bool = False) -> None:
        start = begun.pop(who, None)
        if start is not None:
            found.append(Span(who, start.generation, start.at, max(end, start.at), is_open))

    for event in events:
        if event.kind in ("joined", "started"):
            close(event.who, event.at)  # the end of the one before was never seen
            begun[event.who] = event
        elif event.kind == "left":
            close(event.who, event.at)
        elif event.kind == "ended":
            for who in list(begun):
                close(who, event.at)
    for who in list(begun):
        close(who, now, is_open=True)
    return sorted(found, key=lambda span: (span.begin, span.who))


def by_who(found: Iterable[Span]) -> Mapping[str, list[Span]]:
    """Return spans by whose they are: shards first, then workers by number, then evaluators."""
    groups: dict[str, list[Span]] = {}
    for span in found:
        groups.setdefault(span.who, []).append(span)
    return dict(sorted(groups.items(), key=lambda item: _place(item[0])))


def _place(who: str) -> tuple[int, int, str]:
    kind, _, number = who.partition("-")
    order = {"shard": 0, "train": 1, "evaluate": 2}.get(kind, 3)
    return order, int(number) if number.isdigit() else 0, who
