"""What happens when: each callback turns what a page says into a question to the pure parts, no more."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from dash import ClientsideFunction, Dash, Input, Output, State, ctx, no_update
from dash.exceptions import PreventUpdate

from cirrus.errors import CirrusError
from cirrus.metrics import RunEvent
from cirrus_dashboard import panels
from cirrus_dashboard.curves import METRIC_PREFIX
from cirrus_dashboard.exports import curves_csv, runs_csv
from cirrus_dashboard.layout import TABS
from cirrus_dashboard.parallel import parallel
from cirrus_dashboard.records import RunRecord, Totals, varying
from cirrus_dashboard.sources import Source
from cirrus_dashboard.table import columns
from cirrus_dashboard.views import LOSSES, Cursors, CurveCache, View, choose, delta

#: Most runs that one request may name.
MAX_NAMED = 10_000


def register(app: Dash, source: Source) -> None:
    """Connect the page to a source of runs."""
    _register_refresh(app, source)
    _register_drawing(app)
    _register_panels(app, source)
    _register_actions(app, source)
    _register_downloads(app, source)


def _names(raw: object) -> list[str]:
    """Return the names that a browser sent, without what cannot be one."""
    if not isinstance(raw, list):
        return []
    return [name for name in raw[:MAX_NAMED] if isinstance(name, str)]


_VIEW_STATES: tuple[str, ...] = ("loss", "x", "smoothing", "show", "count", "color-by", "group-by", "search")


def _view(values: Iterable[Any]) -> View:
    loss, x, smoothing, show, count, color_by, group_by, search, hidden, pinned = values
    return View(
        loss=str(loss),
        x=str(x),
        smoothing=float(smoothing) if isinstance(smoothing, (int, float)) else 0.0,
        show=str(show),
        count=count if isinstance(count, int) else 5,
        color_by=color_by if isinstance(color_by, str) else None,
        group_by=group_by if isinstance(group_by, str) else None,
        search=search if isinstance(search, str) else None,
        hidden=frozenset(_names(hidden)),
        pinned=frozenset(_names(pinned)),
    )


def _view_parts(kind: Callable[..., Any]) -> list[Any]:
    return [*(kind(name, "value") for name in _VIEW_STATES), kind("hidden", "data"), kind("pinned", "data")]


def _register_refresh(app: Dash, source: Source) -> None:
    cache = CurveCache()
    process = secrets.token_hex(4)  # a page must not take another process' versions for its own

    @app.callback(
        Output("delta", "data"),
        Output("totals", "children"),
        Output("legend", "children"),
        Output("problem", "children"),
        Input("tick", "n_intervals"),
        Input("again", "data"),
        *_view_parts(Input),
        State("cursors", "data"),
    )
    def refresh(_: Any, __: Any, *values: Any) -> Any:
        *view_values, cursors = values
        view = _view(view_values)
        snapshot = source.snapshot
        found = delta(snapshot, view, Cursors.from_plain(cursors), source=process, cache=cache)
        if found is None:
            raise PreventUpdate
        totals = panels.totals(Totals.of(snapshot.records.values()))
        return found, totals, panels.legend(found["legend"]), snapshot.problem or ""

    @app.callback(
        Output("grid", "columnDefs"),
        Output("color-by", "options"),
        Output("group-by", "options"),
        Output("loss", "options"),
        Output("search", "options"),
        Output("search-control", "hidden"),
        Output("column-names", "data"),
        Input("cursors", "data"),
        State("column-names", "data"),
    )
    def choices(_: Any, held: Any) -> Any:
        records = list(source.snapshot.records.values())
        names = varying(records)
        metrics = sorted(
            {name for record in records for name in record.columns.names if name.startswith(METRIC_PREFIX)}
        )
        searches = sorted({record.search for record in records if record.search}, reverse=True)
        found = {"names": names, "metrics": metrics, "searches": searches}
        if held == found:
            raise PreventUpdate
        losses = [{"value": name, "label": title} for name, title in LOSSES.items()]
        losses += [{"value": x, "label": x.removeprefix(METRIC_PREFIX).replace("_", " ")} for x in metrics]
        grid = no_update if isinstance(held, dict) and held.get("names") == names else columns(names)
        return grid, names, names, losses, searches, not searches, found


def _register_drawing(app: Dash) -> None:
    """What the page does by itself: see ``assets/dashboard.js``."""
    app.clientside_callback(
        ClientsideFunction("cirrus", "merge"),
        Output("chart-loss", "figure"),
        Output("chart-rate", "figure"),
        Output("chart-loss-cost", "figure"),
        Output("chart-cost-time", "figure"),
        Output("grid", "rowData"),
        Output("cursors", "data"),
        Input("delta", "data"),
        Input("log", "value"),
        Input("selected-run", "data"),
        Input("killing", "data"),
        State("hidden", "data"),
        State("pinned", "data"),
    )
    # These set what other callbacks listen to: as outputs they would close a circle.
    app.clientside_callback(ClientsideFunction("cirrus", "again"), Input("cursors", "data"))
    app.clientside_callback(ClientsideFunction("cirrus", "watchTable"), Input("grid", "id"))
    app.clientside_callback(
        ClientsideFunction("cirrus", "choose"),
        Output("selected-run", "data"),
        Input("chart-loss", "clickData"),
        Input("chart-rate", "clickData"),
        Input("chart-loss-cost", "clickData"),
        Input("chart-cost-time", "clickData"),
        Input("grid", "cellClicked"),
        Input("ticked", "data"),
        State("selected-run", "data"),
        prevent_initial_call=True,
    )
    app.clientside_callback(
        ClientsideFunction("cirrus", "toggle"),
        Output("hidden", "data"),
        Output("pinned", "data"),
        Input("grid", "cellValueChanged"),
        Input("show-all", "n_clicks"),
        State("hidden", "data"),
        State("pinned", "data"),
        prevent_initial_call=True,
    )
    app.clientside_callback(
        ClientsideFunction("cirrus", "buttons"),
        Output("kill-selected", "disabled"),
        Output("kill-selected", "children"),
        Output("kill-all", "disabled"),
        Output("kill-all", "children"),
        Output("resume", "disabled"),
        Input("grid", "rowData"),
        Input("ticked", "data"),
    )
    app.clientside_callback(
        ClientsideFunction("cirrus", "ask"),
        Output("kill-targets", "data"),
        Output("kill-every", "data"),
        Output("kill-text", "children"),
        Input("kill-selected", "n_clicks"),
        Input("kill-all", "n_clicks"),
        Input("kill-cancel", "n_clicks"),
        Input("kill-confirm", "n_clicks"),
        State("grid", "rowData"),
        State("ticked", "data"),
        prevent_initial_call=True,
    )


def _register_panels(app: Dash, source: Source) -> None:
    app.clientside_callback(
        ClientsideFunction("cirrus", "tab"),
        *(Output(f"panel-{name}", "hidden") for name, _ in TABS),
        Input("tab", "value"),
    )

    @app.callback(
        Output("detail", "children"),
        Output("drawn", "data"),
        Input("selected-run", "data"),
        Input("cursors", "data"),
        State("drawn", "data"),
    )
    def detail(run_id: Any, _: Any, drawn: Any) -> Any:
        record = _find(source, run_id)
        mark = [run_id, record.version if record is not None else None]
        if mark == drawn:
            raise PreventUpdate
        events, problem = _events(source, record)
        names = varying(source.snapshot.records.values())
        return panels.detail(record, events, names, problem=problem), mark

    @app.callback(
        Output("note-text", "value"),
        Output("note-box", "hidden"),
        Input("selected-run", "data"),
    )
    def note(run_id: Any) -> Any:
        record = _find(source, run_id)
        return ("", True) if record is None else (record.note, False)

    _register_panel(app, source, "parallel", parallel)
    _register_panel(app, source, "importance", panels.importance)

    @app.callback(
        Output("panel-compare", "children"),
        Input("tab", "value"),
        Input("ticked", "data"),
        prevent_initial_call=True,
    )
    def compare(tab: Any, ticked: Any) -> Any:
        if tab != "compare":
            raise PreventUpdate
        chosen = [_find(source, run_id) for run_id in _names(ticked)]
        return panels.compare([record for record in chosen if record is not None])

    @app.callback(
        Output("panel-timeline", "children"),
        Input("tab", "value"),
        Input("selected-run", "data"),
        Input("cursors", "data"),
        prevent_initial_call=True,
    )
    def timeline(tab: Any, run_id: Any, _: Any) -> Any:
        if tab != "timeline":
            raise PreventUpdate
        record = _find(source, run_id)
        events, problem = _events(source, record)
        return panels.timeline(record, events, problem=problem)


def _register_panel(
    app: Dash, source: Source, name: str, draw: Callable[[list[RunRecord], list[str]], Any]
) -> None:
    @app.callback(
        Output(f"panel-{name}", "children"),
        Input("tab", "value"),
        Input("cursors", "data"),
        *_view_parts(State),
        prevent_initial_call=True,
    )
    def show(tab: Any, _: Any, *values: Any) -> Any:
        if tab != name:
            raise PreventUpdate
        view = _view(values)
        shown = choose(source.snapshot.records.values(), view)
        return draw(shown, varying(shown))


def _find(source: Source, run_id: object) -> RunRecord | None:
    return source.snapshot.records.get(run_id) if isinstance(run_id, str) else None


def _events(source: Source, record: RunRecord | None) -> tuple[Sequence[RunEvent], str | None]:
    """Return what happened in a run, and what keeps that from being known."""
    if record is None:
        return [], None
    try:
        return source.events(record.run_id), None
    except CirrusError as error:
        return [], f"its events cannot be read: {error}"


def _register_actions(app: Dash, source: Source) -> None:
    @app.callback(
        Output("toast", "children"),
        Output("killing", "data"),
        Input("kill-confirm", "n_clicks"),
        State("kill-targets", "data"),
        State("kill-every", "data"),
        prevent_initial_call=True,
    )
    def kill(_: Any, targets: Any, every: Any) -> Any:
        found = [_find(source, run_id) for run_id in _names(targets)]
        alive = [record for record in found if record is not None and record.can_be_killed]
        ending = [record.run_id for record in alive]
        if every is True:
            source.kill_all(ending)
        else:
            for run_id in ending:
                source.kill(run_id)
        text = f"ending {_runs(len(ending))}" if ending else "nothing to end: the runs were over already"
        return text, dict.fromkeys(ending, True)

    @app.callback(
        Output("toast", "children", allow_duplicate=True),
        Input("resume", "n_clicks"),
        State("ticked", "data"),
        prevent_initial_call=True,
    )
    def resume(_: Any, ticked: Any) -> Any:
        done, problems = 0, []
        for run_id in _names(ticked):
            record = _find(source, run_id)
            if record is None or not record.can_be_resumed:
                continue
            try:
                source.resume(run_id)
                done += 1
            except CirrusError as error:
                problems.append(str(error))
        return "; ".join([f"going on with {_runs(done)}", *problems])

    @app.callback(
        Output("toast", "children", allow_duplicate=True),
        Input("note-save", "n_clicks"),
        State("note-text", "value"),
        State("selected-run", "data"),
        prevent_initial_call=True,
    )
    def save_note(clicks: Any, text: Any, run_id: Any) -> Any:
        record = _find(source, run_id)
        if not clicks or record is None:
            raise PreventUpdate
        try:
            source.set_note(record.run_id, str(text or ""))
        except CirrusError as error:
            return f"the note was not kept: {error}"
        return "note kept"

    app.clientside_callback(
        ClientsideFunction("cirrus", "toast"), Output("toast", "className"), Input("toast", "children")
    )


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"


def _register_downloads(app: Dash, source: Source) -> None:
    @app.callback(
        Output("download", "data"),
        Input("csv-runs", "n_clicks"),
        Input("csv-curves", "n_clicks"),
        *_view_parts(State),
        prevent_initial_call=True,
    )
    def download(_: Any, __: Any, *values: Any) -> Any:
        view = _view(values)
        records = sorted(source.snapshot.records.values(), key=lambda record: record.place)
        if ctx.triggered_id == "csv-runs":
            return _file("cirrus-runs.csv", runs_csv(records))
        return _file("cirrus-curves.csv", curves_csv(choose(records, view), view))


def _file(name: str, text: str) -> dict[str, str]:
    """Return what ``dcc.Download`` takes."""
    return {"filename": name, "content": text, "type": "text/csv"}
