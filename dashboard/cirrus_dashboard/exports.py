"""Runs and curves as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable

from cirrus_dashboard.records import RunRecord, Value
from cirrus_dashboard.views import View, loss_values, x_values

_FACTS = ("run", "state", "model", "search", "trial", "validation_loss", "train_loss", "epoch", "updates",
          "seconds", "cost", "n_workers", "stop_reason", "note")  # fmt: skip
#: Spreadsheets take cells that begin with one of these for formulas.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def runs_csv(records: Iterable[RunRecord]) -> str:
    """Return one line a run: what became of it, and its hyperparameters."""
    held = list(records)
    names = sorted({name for record in held for name in record.hyperparameters}.difference(_FACTS))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*_FACTS, *names])
    for record in held:
        writer.writerow([_cell(value) for value in [*_facts(record), *_chosen(record, names)]])
    return out.getvalue()


def _facts(record: RunRecord) -> list[Value]:
    status = record.status
    losses: list[Value] = [record.validation_loss, record.train_loss]
    progress: list[Value] = [None] * 6
    if status is not None:
        workers = record.config.n_workers if record.config is not None else None
        progress = [status.epoch, status.updates, status.seconds, status.cost, workers, status.stop_reason]
    what: list[Value] = [record.run_id, record.state, record.model, record.search, record.trial]
    return [*what, *losses, *progress, record.note]


def _chosen(record: RunRecord, names: Iterable[str]) -> list[Value]:
    return [record.hyperparameters.get(name) for name in names]


def _cell(value: Value) -> Value:
    if isinstance(value, str) and value.startswith(_FORMULA_STARTS):
        return "'" + value
    return "" if value is None else value


def curves_csv(records: Iterable[RunRecord], view: View) -> str:
    """Return all points of the curves that are shown, as CSV: not thinned out, not smoothed."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["run", "seconds", "updates", "epochs", "cost", view.loss_title.replace(" ", "_")])
    for record in records:
        held = record.columns
        columns = (held["seconds"], held["updates"], x_values(record, "epochs"), held["cost"])
        for *place, loss in zip(*columns, loss_values(record, view.loss), strict=True):
            if loss == loss:  # a point has a loss, or not a number
                writer.writerow([record.run_id, *(f"{number:.9g}" for number in (*place, loss))])
    return out.getvalue()
