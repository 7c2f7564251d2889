"""The table of runs: its columns, and how it behaves."""

from __future__ import annotations

import json
from typing import Any

from cirrus_dashboard.rows import VALUE_DIGITS

NUMBER = {"type": "rightAligned", "filter": "agNumberColumnFilter"}
_SWITCH = {"editable": True, "cellDataType": "boolean", "suppressHeaderMenuButton": True}
_EPOCH = "params.data.epochs ? params.data.epoch + '/' + params.data.epochs : ''"
#: Colours are those of ``assets/dashboard.css``, which knows whether the page is light or dark.
_THEME = {
    "browserColorScheme": "inherit",
    "accentColor": "var(--accent)",
    "backgroundColor": "var(--card)",
    "foregroundColor": "var(--ink)",
    "chromeBackgroundColor": "var(--back)",
    "borderColor": "var(--line)",
    "headerHeight": 36,
    "rowHeight": 34,
    "fontSize": 13,
    "wrapperBorder": False,
    "cellHorizontalPadding": 10,
    "fontFamily": "inherit",
}
GRID_OPTIONS: dict[str, Any] = {
    "theme": {"function": f"themeQuartz.withParams({json.dumps(_THEME)})"},
    "rowSelection": {"mode": "multiRow", "enableClickSelection": False},
    "selectionColumnDef": {"pinned": "left", "width": 44, "maxWidth": 44},
    "animateRows": False,
    "suppressCellFocus": False,
    "localeText": {"noRowsToShow": "no runs yet"},
    "columnMenu": "legacy",
    # Each column is as wide as what is in it: see fitColumns() in assets/dashboard.js.
    "suppressColumnVirtualisation": True,
    "enableCellTextSelection": True,
}


def columns(names: list[str]) -> list[dict[str, Any]]:
    """Return the columns of the table of runs.

    Args:
        names: Hyperparameters that differ between runs; each gets a column.
    """
    fixed: list[dict[str, Any]] = [
        {"field": "name", "headerName": "Run", "pinned": "left", "cellClass": "run-id",
         "comparator": {"function": "byNumber"}},
        {
            "field": "state",
            "headerName": "State",
            "minWidth": 104,
            "cellClassRules": {
                f"state-{state}": f"params.value === '{state}'"
                for state in (
                    "queued",
                    "paused",
                    "pruned",
                    "starting",
                    "running",
                    "killing",
                    "finished",
                    "killed",
                    "failed",
                    "interrupted",
                    "broken",
                )
            },
        },
        _number("validation", "Val. loss", ".4f"),
        _number("loss", "Train loss", ".4f"),
        {"field": "show", "headerName": "Show", "width": 64, **_SWITCH},
        {"field": "pin", "headerName": "Pin", "width": 56, **_SWITCH},
    ]  # fmt: skip
    chosen = [
        {
            "colId": f"p:{name}",
            "headerName": name,
            "valueGetter": {"function": f"params.data[{json.dumps('p:' + name)}]"},
            "headerTooltip": f"hyperparameter {name}",
            "valueFormatter": {"function": f"shownValue(params.value, {VALUE_DIGITS})"},
            "tooltipValueGetter": {"function": "wholeValue(params.value)"},
        }
        for name in names
    ]
    rest = [
        {"field": "epoch", "headerName": "Epoch", **NUMBER,
         "valueFormatter": {"function": _EPOCH}},
        _number("updates", "Updates", ",.0f"),
        _number("rate", "Updates/s", ",.1f"),
        _number("seconds", "Time (s)", ",.1f"),
        _number("cost", "Cost ($)", ".4f"),
        _number("dollars_per_second", "$/s", ".3~g"),
        _number("dollars_per_hour", "$/h", ".3f"),
        _number("workers", "Workers", ".0f"),
        {"field": "model", "headerName": "Model"},
        {"field": "search", "headerName": "Search"},
        {"field": "trial", "headerName": "Trial", **NUMBER},
        {"field": "reason", "headerName": "Ended by"},
        {"field": "problem", "headerName": "Problem", "width": 200},
        {"field": "note", "headerName": "Note", "width": 180},
    ]  # fmt: skip
    return [*fixed, *chosen, *rest]


def _number(field: str, title: str, form: str) -> dict[str, Any]:
    text = f"params.value == null ? '' : d3.format({form!r})(params.value)"
    return {
        "field": field,
        "headerName": title,
        "valueFormatter": {"function": text},
        **NUMBER,
    }
