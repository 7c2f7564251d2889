"""Parallel coordinates: one line a run, from its hyperparameters to its loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from dash import html

from cirrus_dashboard.analysis import as_numbers, is_logarithmic, is_number
from cirrus_dashboard.parts import LAYOUT, graph, hint
from cirrus_dashboard.records import RunRecord, Value
from cirrus_dashboard.rows import run_name, value_text
from cirrus_dashboard.styles import SEQUENTIAL

#: Values that are written beside an axis of the parallel coordinates.
MAX_TICKS = 8
#: How far they are apart, as a share of the axis: else they would cover each other.
TICK_DISTANCE = 0.05
#: Hyperparameters that have room beside each other.
MAX_AXES = 12


def parallel(records: Sequence[RunRecord], names: Sequence[str]) -> Any:
    """Return parallel coordinates: one line a run, from its hyperparameters to its loss.

    Drawn as plain lines, as Plotly's own kind needs WebGL, which not every browser has.
    """
    held = [(record, record.score) for record in records]
    scored = [(record, score) for record, score in held if score is not None and np.isfinite(score)]
    if len(scored) < 2 or not names:
        return hint("Parallel coordinates need two runs with a loss that differ in a hyperparameter.")
    # The best are drawn last, over all others.
    scored.sort(key=lambda pair: -pair[1])
    scores = [score for _, score in scored]
    axes = [_axis(name, [x.hyperparameters.get(name) for x, _ in scored]) for name in names[:MAX_AXES]]
    axes.append(_axis("loss", list(scores)))
    # Few runs that diverged must not leave one colour for all the others.
    low, high = min(scores), float(np.percentile(scores, 90))
    traces = []
    for number, (record, score) in enumerate(scored):
        share = min(1.0, (score - low) / (high - low)) if high > low else 0.0
        title = "<br>".join(
            [f"<b>{run_name(record)}</b>", f"loss {score:.5g}"]
            + [f"{name} {value_text(record.hyperparameters.get(name))}" for name in names[:MAX_AXES]]
        )
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": list(range(len(axes))),
                "y": [axis.places[number] for axis in axes],
                "line": {"color": SEQUENTIAL[int(share * (len(SEQUENTIAL) - 1))], "width": 1.8},
                "opacity": 0.85 if len(scored) <= 60 else 0.5,
                "name": run_name(record),
                "hovertemplate": f"{title}<extra></extra>",
            }
        )
    ticks = [
        {"x": number, "y": place, "text": text, "showarrow": False, "xanchor": "right", "xshift": -5,
         "font": {"size": 11, "color": "#5b6875"}, "bgcolor": "rgba(255,255,255,0.75)"}
        for number, axis in enumerate(axes) for place, text in axis.ticks
    ]  # fmt: skip
    layout = {
        **LAYOUT,
        "margin": {"l": 80, "r": 30, "t": 44, "b": 16},
        "uirevision": "parallel",
        "showlegend": False,
        "hovermode": "closest",
        "annotations": ticks,
        "shapes": [
            {"type": "line", "x0": n, "x1": n, "y0": 0, "y1": 1, "line": {"color": "#8a97a3", "width": 1}}
            for n in range(len(axes))
        ],
        "xaxis": {
            "tickvals": list(range(len(axes))),
            "ticktext": [axis.title for axis in axes],
            "side": "top",
            "showgrid": False,
            "zeroline": False,
            "range": [-0.35, len(axes) - 0.85],
        },
        "yaxis": {"visible": False, "range": [-0.05, 1.05]},
    }
    help_text = "One line a run, in the strongest colour where the loss is low; hover for its values."
    inner = html.Div(graph({"data": traces, "layout": layout}, 420), style={"minWidth": "560px"})
    return html.Div([html.P(help_text, className="faint"), html.Div(inner, className="scroll")])


@dataclass(frozen=True)
class _Axis:
    title: str
    places: list[float]
    """Of each run, in [0, 1]."""
    ticks: list[tuple[float, str]]


def _axis(name: str, values: Sequence[Value]) -> _Axis:
    """Place the values of a hyperparameter on an axis: numbers by size, or its logarithm; names in order."""
    numbers = as_numbers(values)
    logarithmic = all(is_number(value) for value in values) and is_logarithmic(numbers)
    scaled = np.log(numbers) if logarithmic else numbers
    span = float(np.ptp(scaled)) or 1.0
    places = ((scaled - scaled.min()) / span).tolist()
    texts = dict(zip(places, values, strict=True))
    chosen = sorted(texts)
    if len(chosen) > MAX_TICKS:
        wanted = np.linspace(0, 1, MAX_TICKS)
        chosen = sorted({min(chosen, key=lambda place: abs(place - want)) for want in wanted})
    apart: list[float] = []
    for place in chosen:
        if not apart or place - apart[-1] >= TICK_DISTANCE:
            apart.append(place)
    ticks = [(place, _short(texts[place])) for place in apart]
    return _Axis(f"{name} (log)" if logarithmic else name, places, ticks)


def _short(value: Value) -> str:
    return f"{value:.3g}" if isinstance(value, float) else value_text(value)
