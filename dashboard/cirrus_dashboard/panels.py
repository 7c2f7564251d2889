"""Parts of the page that are made anew whenever what they show changes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from dash import html

from cirrus.client_backend.base import GENERATIONS_PER_CLIENT
from cirrus.client_backend.run_cost import CostModel
from cirrus.metrics import RunEvent
from cirrus_dashboard.accessibility import aria
from cirrus_dashboard.analysis import (
    MIN_RUNS,
    by_who,
    importances,
    spans,
)
from cirrus_dashboard.curves import step_split
from cirrus_dashboard.parts import LAYOUT, graph, hint
from cirrus_dashboard.records import RunRecord, Totals, Value, config_difference
from cirrus_dashboard.rows import run_name, value_text
from cirrus_dashboard.styles import QUALITATIVE

#: Colours of a step's parts: fetch, pull, compute, push.
_PART_COLORS = ("#56B4E9", "#0072B2", "#009E73", "#E69F00")
#: Events that the detail of a run lists, the newest.
MAX_EVENTS_LISTED = 100
#: Whoever has a line in the timeline; more would be too thin to read.
MAX_TIMELINE_LINES = 200


def totals(found: Totals) -> list[html.Div]:
    """Return the figures in the header."""
    figures = [
        ("runs", f"{found.n_runs:,}"),
        ("live", f"{found.n_live:,}"),
        ("workers", f"{found.n_workers:,}"),
        ("memory", f"{found.memory_mb / 1024:,.1f} GB"),
        ("cost", dollars(found.cost)),
        (f"per hour, {found.dollars_per_second:.2g} $/s", dollars(found.dollars_per_second * 3600)),
    ]
    return [html.Div([html.B(value), html.Span(name)], className="total") for name, value in figures]


def dollars(amount: float) -> str:
    """Return an amount as people write it, small ones with the digits that matter."""
    return f"${amount:,.2f}" if amount >= 1 or amount == 0 else f"${amount:.4f}"


def legend(found: dict[str, Any] | None) -> list[Any]:
    """Return what the colours of curves mean, where they do not stand for runs."""
    if found is None:
        return []
    if "scale" in found:
        gradient = f"linear-gradient(90deg, {', '.join(found['scale'])})"
        ends = [value_text(float(found[end])) for end in ("low", "high")]
        scale = html.Span(className="scale", style={"background": gradient})
        return [html.Span([f"colour: {found['title']}  ", ends[0], scale, ends[1]])]
    items = [html.Span([html.I(style={"background": color}), text]) for text, color in found["items"]]
    return [html.Span(f"colour: {found['title']}"), *items]


def _pairs(rows: Sequence[tuple[str, str]]) -> html.Table:
    lines = [html.Tr([html.Th(name, scope="row"), html.Td(value)]) for name, value in rows]
    return html.Table(html.Tbody(lines), className="pairs")


def detail(
    record: RunRecord | None,
    events: Sequence[RunEvent],
    names: Sequence[str] = (),
    *,
    problem: str | None = None,
) -> list[Any]:
    """Return everything about one run.

    Args:
        record: The run.
        events: What happened in it, oldest first.
        names: Hyperparameters that differ between runs; the others are folded away.
        problem: Why its events are not known.
    """
    if record is None:
        return [hint("Click a curve, or a line of the table, to see a run's hyperparameters, where its time "
                      "goes, and what happened to it.")]  # fmt: skip
    title = record.run_id if record.trial is None else f"Trial {record.trial} of {record.search}"
    parts: list[Any] = [
        html.H2(title),
        html.Div([html.Span(record.state, className=f"state-{record.state}"), f"  {record.model}"]),
    ]
    parts += [html.P(text, className="state-failed") for text in (record.problem, problem) if text]
    parts += [html.H3("Now"), _pairs(_facts(record))]
    split = step_split(record.columns)
    if split:
        parts += [html.H3("Where a worker's time goes"), *_split_bar(split)]
    parts += _hyperparameters(record, names)
    if events:
        parts += [html.H3("Events"), _event_list(events)]
    return parts


def _hyperparameters(record: RunRecord, names: Sequence[str]) -> list[Any]:
    """Return what was chosen: first what tells the run from others."""
    texts = {name: value_text(value) for name, value in sorted(record.hyperparameters.items())}
    telling = [(name, text) for name, text in texts.items() if name in names]
    others = [(name, text) for name, text in texts.items() if name not in names]
    if not telling:
        return [html.H3("Hyperparameters"), _pairs(others)]
    folded = html.Details([html.Summary(f"{len(others)} that all runs share"), _pairs(others)])
    return [html.H3("Hyperparameters"), _pairs(telling), folded]


def _facts(record: RunRecord) -> list[tuple[str, str]]:
    status, config = record.status, record.config
    facts: list[tuple[str, str]] = []
    if len(record.runs) > 1 or record.trial is not None:
        facts.append(("runs", ", ".join(record.runs) or "none yet"))
    for title, value in (("validation loss", record.validation_loss), ("training loss", record.train_loss)):
        if value is not None:
            facts.append((title, f"{value:.5g}"))
    for name in record.columns.names:
        value = record.columns.last(name) if name.startswith("metric:") else None
        if value is not None:
            facts.append((name.removeprefix("metric:").replace("_", " "), f"{value:.5g}"))
    if status is not None:
        facts += [
            ("epoch", f"{status.epoch} of {status.epochs}"),
            ("updates", f"{status.updates:,}"),
            ("time", f"{status.seconds:,.1f} s"),
            ("cost", dollars(status.cost)),
            ("worker time", f"{status.worker_seconds:,.0f} s in {status.invocations} invocations"),
        ]
        modelled = 0.0 if config is None else CostModel.of(config).compare(status).modelled
        if modelled:
            facts.append(("cost by the model", dollars(modelled)))
        if status.stop_reason:
            facts.append(("ended by", status.stop_reason))
    if config is not None:
        live = f"{status.n_workers} of " if status is not None and record.is_live else ""
        facts.append(("workers, shards", f"{live}{config.n_workers}, {config.n_shards}"))
        facts.append(("data", config.train_url))
    return facts


def _split_bar(split: Any) -> list[html.Div]:
    named = list(zip(split.items(), _PART_COLORS, strict=True))
    bar = html.Div(
        [html.Div(style={"width": f"{share:.2f}%", "background": color}) for (_, share), color in named],
        className="split",
        role="img",
        **aria(label=", ".join(f"{part} {share:.0f} %" for part, share in split.items())),
    )
    names = [
        html.Span([html.I(style={"background": color}), f"{part} {share:.0f} %"])
        for (part, share), color in named
    ]
    return [bar, html.Div(names, className="split-names")]


def _event_list(events: Sequence[RunEvent]) -> html.Ul:
    newest = list(events)[::-1][:MAX_EVENTS_LISTED]
    items = [html.Li([html.Time(_clock(event.at)), html.Span(_event_text(event))]) for event in newest]
    return html.Ul(items, className="events", tabIndex=0)


def _clock(unix: float) -> str:
    return datetime.fromtimestamp(max(0.0, min(unix, 2e11)), UTC).strftime("%H:%M:%S")


def _event_text(event: RunEvent) -> str:
    if event.kind == "ended":
        return f"{event.who} {event.text}"
    return f"{_who(event.who)} {event.kind} ({generation_text(event.generation)})"


def generation_text(generation: int) -> str:
    """Return a generation in words: workers count from a high number with each client of the run."""
    client, number = divmod(generation, GENERATIONS_PER_CLIENT)
    if client == 0:
        return f"generation {number}"
    return f"generation {number + 1}" + (f" of client {client}" if client > 1 else "")


def _who(who: str) -> str:
    kind, _, number = who.partition("-")
    return f"{ {'train': 'worker', 'evaluate': 'evaluator'}.get(kind, kind) } {number}".strip()


def importance(records: Sequence[RunRecord], names: Sequence[str]) -> Any:
    """Return how much each hyperparameter has to do with the loss."""
    found = importances(records, names)
    if not found:
        return hint(f"Importance needs {MIN_RUNS} runs with a loss that differ in a hyperparameter.")
    shown = found[:15][::-1]
    texts = [
        "" if x.correlation is None else f"correlation {x.correlation:+.2f}"
        for x in shown
    ]  # fmt: skip
    bars = {
        "type": "bar",
        "orientation": "h",
        "x": [x.share for x in shown],
        "y": [x.name for x in shown],
        "text": texts,
        "textposition": "auto",
        "cliponaxis": False,
        "marker": {"color": QUALITATIVE[0]},
        "hovertemplate": "%{y}: %{x:.0%}<extra></extra>",
    }
    layout = {
        **LAYOUT,
        "margin": {"l": 20, "r": 30, "t": 10, "b": 44},
        "xaxis": {"tickformat": ".0%", "gridcolor": "#e8ecf0", "title": {"text": "importance for the loss"}},
        "yaxis": {"automargin": True},
        "bargap": 0.35,
    }
    text = ("From a forest of random trees that predicts the order of the losses of the runs that are shown. "
            "A negative correlation: larger values, lower loss.")  # fmt: skip
    figure = graph({"data": [bars], "layout": layout}, 110 + 42 * len(shown))
    return html.Div([html.P(text, className="faint"), figure])


def compare(records: Sequence[RunRecord]) -> Any:
    """Return what differs between the configs of two runs."""
    pair = [record for record in records if record.config is not None]
    if len(pair) != 2 or pair[0].config is None or pair[1].config is None:
        return hint("Tick two runs in the table to compare what they were asked to do.")
    rows = config_difference(pair[0].config, pair[1].config)
    head = html.Thead(html.Tr([html.Th("", scope="col"), *(html.Th(run_name(x), scope="col") for x in pair)]))
    results = [("state", pair[0].state, pair[1].state), ("loss", *(_score(record) for record in pair))]
    lines = [
        html.Tr([html.Th(name, scope="row"), *map(html.Td, _apart(first, second))])
        for name, first, second in [*results, *rows]
    ]
    table = html.Table([head, html.Tbody(lines)], className="pairs plain")
    return html.Div(table, className="scroll")


def _apart(first: Value, second: Value) -> tuple[str, str]:
    """Return two values as people write them, with all digits where they would look alike."""
    texts = value_text(first), value_text(second)
    return texts if texts[0] != texts[1] or first == second else (repr(first), repr(second))


def _score(record: RunRecord) -> str:
    return "" if record.score is None else f"{record.score:.5g}"


def timeline(record: RunRecord | None, events: Sequence[RunEvent], *, problem: str | None = None) -> Any:
    """Return when which generation of a run's workers and shards worked.

    Args:
        record: The run.
        events: What happened in it, oldest first.
        problem: Why its events are not known.
    """
    if record is None:
        return hint("Choose a run to see the generations of its workers and shards.")
    if problem is not None:
        return hint(f"{run_name(record)}: {problem}")
    groups = by_who(spans(events, time.time()))
    if not groups:
        return hint(f"Nothing is known of the workers of {run_name(record)}.")
    start = min(span.begin for group in groups.values() for span in group)
    names = list(groups)[:MAX_TIMELINE_LINES]
    bars = []
    for number, who in enumerate(names):
        for place, span in enumerate(groups[who]):
            bars.append((who, number, place, span))
    trace = {
        "type": "bar",
        "orientation": "h",
        "y": [_who(who) for who, *_ in bars],
        "base": [span.begin - start for *_, span in bars],
        "x": [max(span.end - span.begin, 1e-3) for *_, span in bars],
        "marker": {
            "color": [_span_color(who, place) for who, _, place, _ in bars],
            "line": {"color": "#ffffff", "width": 1},
        },
        "customdata": [
            [generation_text(span.generation), "at work" if span.open else "ended"] for *_, span in bars
        ],
        "hovertemplate": ("<b>%{y}</b>, %{customdata[0]}<br>%{x:.1f} s, %{customdata[1]}<extra></extra>"),
    }
    layout = {
        **LAYOUT,
        "barmode": "overlay",
        "bargap": 0.3,
        "uirevision": record.run_id,
        "xaxis": {"title": {"text": "seconds since the first shard came up"}, "gridcolor": "#e8ecf0"},
        "yaxis": {"automargin": True, "autorange": "reversed", "type": "category"},
    }
    return html.Div(
        [
            html.P([html.B(run_name(record)), ": each bar is one generation."], className="faint"),
            graph({"data": [trace], "layout": layout}, 110 + 24 * len(names)),
        ]
    )


def _span_color(who: str, place: int) -> str:
    shades = {
        "shard": ("#5D3A9B", "#8F76BD"),
        "train": ("#0072B2", "#56B4E9"),
        "evaluate": ("#009E73", "#6CC7AE"),
    }
    return shades.get(who.partition("-")[0], ("#5B7A99", "#9FB2C4"))[place % 2]
