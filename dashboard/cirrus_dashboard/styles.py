"""Colours of curves, chosen so that people with any colour vision can tell them apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from cirrus_dashboard.records import RunRecord, Value

#: Curves that differ: Okabe and Ito's colours ("Color Universal Design", 2008), with Tol's indigo for black
#: and for the yellow that is faint on white, and then the same with dashes.
QUALITATIVE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#332288")
DASHES = ("solid", "dash", "dot")
#: As many curves as have a colour of their own.
MAX_COLORED_RUNS = 10
#: Plasma (Smith and van der Walt, for matplotlib, 2015): lightness grows evenly, so that its order can be
#: seen with any colour vision; its palest fifth is left out, as it is faint on white.
SEQUENTIAL = ("#0D0887", "#4303A0", "#7201A8", "#9C179E", "#BD3786", "#D8576B", "#ED7953", "#FA9E3B")
NEUTRAL = "#5B7A99"
#: What every chart is drawn with: nothing of it offers to send runs elsewhere, as Plotly's own bar does.
GRAPH_CONFIG: Mapping[str, Any] = MappingProxyType(
    {"displaylogo": False, "showSendToCloud": False, "showEditInChartStudio": False, "plotlyServerURL": ""}
)
UNKNOWN = "#B0B8C1"


@dataclass(frozen=True)
class Style:
    """How a curve is drawn."""

    color: str
    dash: str = "solid"


@dataclass(frozen=True)
class Styles:
    """How all curves are drawn, and what their colours mean."""

    by_run: Mapping[str, Style]
    legend: dict[str, Any] | None
    """None: each run has a colour of its own. Else ``title`` and either ``items`` (name, color) or a
    ``scale`` of colours with ``low`` and ``high`` at its ends."""


def styles_of(shown: Sequence[RunRecord], color_by: str | None, varying: Sequence[str]) -> Styles:
    """Choose the colours.

    Args:
        shown: Runs in the order that they are drawn in.
        color_by: A hyperparameter, or None: by run where they are few, else by the first one that varies.
        varying: The hyperparameters that differ between runs.
    """
    if color_by is None and len(shown) <= MAX_COLORED_RUNS:
        return Styles({run.run_id: _nth(number) for number, run in enumerate(shown)}, None)
    name = color_by or _first_telling(shown, varying)
    if name is None:
        return Styles({run.run_id: Style(NEUTRAL) for run in shown}, None)
    values = {run.run_id: run.hyperparameters.get(name) for run in shown}
    numbers = [x for x in values.values() if _is_number(x)]
    if numbers and all(x is None or _is_number(x) for x in values.values()):
        return _by_number(name, values)
    return _by_value(name, values)


def _nth(number: int) -> Style:
    return Style(QUALITATIVE[number % len(QUALITATIVE)], DASHES[number // len(QUALITATIVE) % len(DASHES)])


def _first_telling(shown: Sequence[RunRecord], varying: Sequence[str]) -> str | None:
    """Prefer the hyperparameter with the most different values, the learning rate among equals."""
    counts = {name: len({str(run.hyperparameters.get(name)) for run in shown}) for name in varying}
    telling = [name for name in varying if counts[name] > 1]
    return min(telling, key=lambda name: (name != "learning_rate", -counts[name], name), default=None)


def _is_number(value: Value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _by_number(name: str, values: Mapping[str, Value]) -> Styles:
    numbers = {run: float(x) for run, x in values.items() if x is not None and _is_number(x)}
    low, high = min(numbers.values()), max(numbers.values())
    logarithmic = low > 0 and high / low >= 20
    place = math.log if logarithmic else float
    span = place(high) - place(low)
    by_run = {}
    for run in values:
        if run not in numbers:
            by_run[run] = Style(UNKNOWN)
            continue
        share = (place(numbers[run]) - place(low)) / span if span else 0.0
        by_run[run] = Style(SEQUENTIAL[min(int(share * len(SEQUENTIAL)), len(SEQUENTIAL) - 1)])
    title = f"{name} (log)" if logarithmic else name
    return Styles(by_run, {"title": title, "scale": list(SEQUENTIAL), "low": low, "high": high})


def _by_value(name: str, values: Mapping[str, Value]) -> Styles:
    different = sorted({str(x) for x in values.values()})
    style = {text: _nth(number) for number, text in enumerate(different)}
    items = [[text, style[text].color] for text in different]
    return Styles({run: style[str(x)] for run, x in values.items()}, {"title": name, "items": items[:12]})
