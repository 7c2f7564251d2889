"""What is on the page, and where; what it shows comes from the callbacks."""

from __future__ import annotations

from typing import Any

import dash_ag_grid as dag
from dash import dcc, html

from cirrus.run_folder import MAX_NOTE_CHARACTERS
from cirrus_dashboard.accessibility import aria
from cirrus_dashboard.styles import GRAPH_CONFIG
from cirrus_dashboard.table import GRID_OPTIONS, columns
from cirrus_dashboard.views import BEST_KNOWN, LOSSES, MAX_SMOOTHING, X_AXES

#: How often a page asks for what is new.
TICK_MILLISECONDS = 2_000

#: The charts: component id and title; the assets' script draws them in this order.
CHARTS = (
    ("chart-loss", "Loss"),
    ("chart-rate", "Updates per second"),
    ("chart-loss-cost", "Loss against cost"),
    ("chart-cost-time", "Cost against time"),
)
TABS = (
    ("runs", "Runs"),
    ("parallel", "Parallel coordinates"),
    ("importance", "Importance"),
    ("compare", "Compare"),
    ("timeline", "Timeline"),
)


def page(root: str) -> html.Div:
    """Return the whole page.

    Args:
        root: What is shown, for the header.
    """
    return html.Div(
        [
            *_state(),
            _header(root),
            html.Div(id="problem", className="problem", role="alert"),
            # The page's own script fills it: then nobody else can.
            html.Div(id="away", className="problem", role="alert"),
            html.Main([_controls(), _charts(), _lower()]),
            _kill_dialog(),
            html.Div(id="toast", role="status", className="toast"),
        ],
        className="page",
    )


def _state() -> list[Any]:
    return [
        dcc.Interval(id="tick", interval=TICK_MILLISECONDS),
        dcc.Store(id="delta"),
        dcc.Store(id="cursors"),
        dcc.Store(id="again"),
        dcc.Store(id="ticked", data=[]),
        dcc.Store(id="column-names"),
        dcc.Store(id="selected-run"),
        dcc.Store(id="kill-targets"),
        dcc.Store(id="kill-every", data=False),
        dcc.Store(id="killing", data={}),
        dcc.Store(id="drawn"),
        dcc.Store(id="hidden", storage_type="local"),
        dcc.Store(id="pinned", storage_type="local"),
        dcc.Download(id="download"),
    ]


def _header(root: str) -> html.Header:
    return html.Header(
        [
            html.H1([html.Span("☁", className="logo", **aria(hidden="true")), "Cirrus"]),
            html.Span(root, className="root", title=root),
            html.Div(id="totals", className="totals"),
        ]
    )


def _labelled(text: str, control: Any, name: str, wide: bool = False) -> html.Div:
    return html.Div(
        [html.Label(text, htmlFor=name, className="control-label"), control],
        className="control wide" if wide else "control",
    )


def _dropdown(name: str, options: list[dict[str, str]], value: str | None, placeholder: str) -> dcc.Dropdown:
    return dcc.Dropdown(
        id=name,
        options=options,
        value=value,
        placeholder=placeholder,
        clearable=value is None,
        searchable=False,
        persistence=True,
        persistence_type="session",
    )


def _options(named: dict[str, str]) -> list[dict[str, str]]:
    return [{"value": name, "label": title} for name, title in named.items()]


def _controls() -> html.Section:
    show = html.Div(
        [
            dcc.RadioItems(
                id="show",
                options=_options({"all": "all", "best": "best", "worst": "worst"}),
                value="all",
                className="segments",
                persistence=True,
                persistence_type="session",
            ),
            dcc.Input(
                id="count",
                type="number",
                value=5,
                min=1,
                max=1000,
                step=1,
                debounce=True,
                className="count",
                persistence=True,
                persistence_type="session",
            ),
        ],
        className="show",
    )
    smoothing = dcc.Slider(
        id="smoothing",
        min=0,
        max=MAX_SMOOTHING,
        step=0.01,
        value=0,
        marks=None,
        tooltip={"placement": "bottom"},
        updatemode="mouseup",
        persistence=True,
        persistence_type="session",
    )
    logs = dcc.Checklist(
        id="log",
        options=_options({"y": "log loss", "x": "log x"}),
        value=[],
        className="segments",
        persistence=True,
        persistence_type="session",
    )
    return html.Section(
        [
            _labelled("Show", show, "show"),
            _labelled("Loss", _dropdown("loss", _options(LOSSES), BEST_KNOWN, ""), "loss"),
            _labelled("Horizontal axis", _dropdown("x", _options(X_AXES), "seconds", ""), "x"),
            _labelled("Smoothing", smoothing, "smoothing", wide=True),
            _labelled("Axes", logs, "log"),
            _labelled("Colour by", _dropdown("color-by", [], None, "automatic"), "color-by"),
            _labelled("Group by", _dropdown("group-by", [], None, "no groups"), "group-by"),
            html.Div(
                _labelled("Search", _dropdown("search", [], None, "all runs"), "search"),
                id="search-control",
                hidden=True,
            ),
        ],
        className="controls card",
        **aria(label="what the charts show"),
    )


def _chart(name: str, title: str) -> html.Figure:
    config: Any = {
        **GRAPH_CONFIG,
        "modeBarButtonsToRemove": ["lasso2d", "select2d", "zoomIn2d", "zoomOut2d"],
        "toImageButtonOptions": {"filename": f"cirrus-{name}", "scale": 2},
    }
    graph = dcc.Graph(id=name, responsive=True, style={"height": "100%"}, config=config)
    return html.Figure(
        [html.Figcaption(title), html.Div(graph, className="graph")],
        className=f"card chart {name}",
        **aria(label=title),
    )


def _charts() -> html.Section:
    return html.Section(
        [
            html.Div(id="legend", className="legend"),
            html.Div([_chart(name, title) for name, title in CHARTS], className="charts"),
        ],
        **aria(label="curves"),
    )


def _lower() -> html.Div:
    # Radio buttons, as Dash's own tabs cannot be reached with the keyboard.
    tabs = dcc.RadioItems(id="tab", options=_options(dict(TABS)), value="runs", className="tabs")
    panels = [
        html.Div(
            _runs_panel() if name == "runs" else html.P("…", className="hint"),
            id=f"panel-{name}",
            className="panel",
        )
        for name, _ in TABS
    ]
    note = html.Div(
        [
            html.Label("Note", htmlFor="note-text", className="control-label"),
            dcc.Textarea(id="note-text", className="note", maxLength=MAX_NOTE_CHARACTERS, rows=2),
            _button("note-save", "Keep note", disabled=False),
        ],
        id="note-box",
        hidden=True,
    )
    detail = html.Aside(
        [html.Div(id="detail"), note], className="card detail", **aria(label="the chosen run")
    )
    return html.Div([html.Section([tabs, *panels], className="card tables"), detail], className="lower")


def _button(name: str, text: str, kind: str = "", *, disabled: bool = True, title: str = "") -> html.Button:
    return html.Button(
        text, id=name, className=f"button {kind}", disabled=disabled, title=title, type="button"
    )


def _runs_panel() -> html.Div:
    buttons = html.Div(
        [
            _button("kill-selected", "Kill selected", "danger", title="end the runs that are ticked"),
            _button("kill-all", "Kill all", "danger", title="end all runs that are not over"),
            _button("resume", "Resume", title="go on with the interrupted runs that are ticked"),
            _button("show-all", "Show all", disabled=False, title="bring hidden curves back"),
            _button("csv-runs", "Runs as CSV", disabled=False),
            _button("csv-curves", "Curves as CSV", disabled=False),
        ],
        className="buttons",
    )
    grid = dag.AgGrid(
        id="grid",
        rowData=[],
        columnDefs=columns([]),
        defaultColDef={
            "sortable": True,
            "filter": True,
            "resizable": True,
            "suppressHeaderFilterButton": True,
            "minWidth": 60,
        },
        getRowId="params.data.id",
        dashGridOptions=GRID_OPTIONS,
        className="grid",
        style={"height": "100%", "width": "100%"},
    )
    return html.Div([buttons, html.Div(grid, className="grid-box")])


def _kill_dialog() -> html.Dialog:
    return html.Dialog(
        [
            html.H2("End runs?", id="kill-title"),
            html.P(id="kill-text"),
            html.P("Their workers stop and their models are not kept; their curves stay.", className="faint"),
            html.Div(
                [
                    html.Button("Cancel", id="kill-cancel", className="button", type="button"),
                    html.Button("Kill", id="kill-confirm", className="button danger solid", type="button"),
                ],
                className="buttons end",
            ),
        ],
        id="kill-dialog",
        **aria(labelledby="kill-title"),
    )
