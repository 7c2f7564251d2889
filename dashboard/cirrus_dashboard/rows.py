"""What a run is called, and what its line of the table says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from cirrus.client_backend.search_folder import SEARCH_PREFIX
from cirrus_dashboard.curves import update_rate
from cirrus_dashboard.records import RunRecord, Value

#: Digits of a hyperparameter that are shown; CSV files have all.
VALUE_DIGITS = 4


def run_name(record: RunRecord) -> str:
    """Return what a run is called where there is little room: its id, or its search and its trial."""
    if record.trial is None:
        return record.run_id
    return f"{(record.search or '').removeprefix(SEARCH_PREFIX)} #{record.trial}".strip()


def value_text(value: Value) -> str:
    """Return a hyperparameter as people write it."""
    if value is None:
        return "none"
    return f"{value:.{VALUE_DIGITS}g}" if isinstance(value, float) else str(value)


def row(record: RunRecord, names: Sequence[str], *, live_rate: bool) -> dict[str, Any]:
    """Return a run's line of the table, as JSON can hold it.

    Args:
        record: The run.
        names: Hyperparameters that get a column.
        live_rate: Give updates per second of a live run; an ended run's are its mean.
    """
    status = record.status
    line: dict[str, Any] = {
        "id": record.run_id,
        "name": run_name(record),
        "state": record.state,
        "model": record.model,
        "search": record.search or "",
        "trial": record.trial,
        "note": record.note,
        "live": record.is_live,
        "killable": record.can_be_killed,
        "resumable": record.can_be_resumed,
        "problem": record.problem or (status.error if status is not None else None) or "",
    }
    if status is not None:
        seconds = status.seconds
        rate = status.updates / seconds if seconds > 0 else None
        if live_rate and record.is_live and len(record.columns):
            rate = float(update_rate(record.columns["seconds"], record.columns["updates"])[-1])
        line |= {
            "loss": _finite(record.train_loss),
            "validation": _finite(record.validation_loss),
            "epoch": status.epoch,
            "epochs": status.epochs,
            "updates": status.updates,
            "rate": _finite(rate),
            "workers": status.n_workers if record.is_live else 0,
            "seconds": _finite(seconds),
            "cost": _finite(status.cost),
            "dollars_per_second": record.dollars_per_second,
            "dollars_per_hour": record.dollars_per_second * 3600,
            "reason": status.stop_reason or "",
        }
    for name in names:
        value = record.hyperparameters.get(name)
        line[f"p:{name}"] = _finite(value) if isinstance(value, float) else value
    return line


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None
