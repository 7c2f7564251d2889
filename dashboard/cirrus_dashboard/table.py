"""The table of runs: its columns, and how it behaves."""

from __future__ import annotations

import json
from typing import Any

from cirrus_dashboard.views import VALUE_DIGITS

NUMBER = {"type": "rightAligned", "filter": "agNumberColumnFilter"}
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
    "enableCellTextSelection": True,
}


def columns(names: list[str], *, searches: bool = False) -> list[dict[str, Any]]:
    """Return the columns of the table of runs.

    Args:
        names: Hyperparameters that differ between runs; each gets a column.
        searches: Whether some of the runs are trials of a search, which is then named beside them.
    """
    search = {"field": "search", "headerName": "Search", "width": 120, "pinned": "left"}
    fixed: list[dict[str, Any]] = [
        *([search] if searches else []),
        {"field": "name", "headerName": "Run", "width": 222, "pinned": "left", "cellClass": "run-id",
         "comparator": {"function": "byNumber"}},
        {
            "field": "state",
            "headerName": "State",
            "width": 112,
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
        _number("validation", "Val. loss", ".4f", 112),
        _number("loss", "Train loss", ".4f", 116),
        {"field": "show", "headerName": "Show", "width": 86, "editable": True, "cellDataType": "boolean"},
        {"field": "pin", "headerName": "Pin", "width": 76, "editable": True, "cellDataType": "boolean"},
    ]  # fmt: skip
    chosen = [
        {
            "colId": f"p:{name}",
            "headerName": name,
            "width": 142,
            "valueGetter": {"function": f"params.data[{json.dumps('p:' + name)}]"},
            "headerTooltip": f"hyperparameter {name}",
            "valueFormatter": {"function": f"shownValue(params.value, {VALUE_DIGITS})"},
            "tooltipValueGetter": {"function": "wholeValue(params.value)"},
        }
        for name in names
    ]
    rest = [
        {"field": "epoch", "headerName": "Epoch", "width": 96, **NUMBER,
         "valueFormatter": {"function": _EPOCH}},
        _number("updates", "Updates", ",.0f", 112),
        _number("rate", "Updates/s", ",.1f", 118),
        _number("seconds", "Time (s)", ",.1f", 108),
        _number("cost", "Cost ($)", ".4f", 106),
        _number("dollars_per_second", "$/s", ".3~g", 98),
        _number("dollars_per_hour", "$/h", ".3f", 88),
        _number("workers", "Workers", ".0f", 104),
        {"field": "model", "headerName": "Model", "width": 150},
        {"field": "reason", "headerName": "Ended by", "width": 122},
        {"field": "problem", "headerName": "Problem", "width": 200},
        {"field": "note", "headerName": "Note", "width": 180},
    ]  # fmt: skip
    return [*fixed, *chosen, *rest]


def _number(field: str, title: str, form: str, width: int) -> dict[str, Any]:
    text = f"params.value == null ? '' : d3.format({form!r})(params.value)"
    return {
        "field": field,
        "headerName": title,
        "width": width,
        "valueFormatter": {"function": text},
        **NUMBER,
    }
