"""What panels are put together from."""

from __future__ import annotations

from typing import Any

from dash import dcc, html

from cirrus_dashboard.styles import GRAPH_CONFIG

_FONT = {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 12, "color": "#33414e"}
#: Of figures that are drawn on cards.
LAYOUT: dict[str, Any] = {
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "font": _FONT,
    "margin": {"l": 60, "r": 20, "t": 20, "b": 44},
}


def hint(text: str) -> html.P:
    """Return what is said where there is nothing to see."""
    return html.P(text, className="hint")


def graph(figure: dict[str, Any], height: int) -> dcc.Graph:
    """Return a figure as a part of the page, so many pixels high."""
    config: Any = {**GRAPH_CONFIG, "displayModeBar": False, "responsive": True}
    return dcc.Graph(figure=figure, config=config, style={"height": f"{height}px"})
