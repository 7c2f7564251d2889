"""What a search found, as a table."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

from cirrus.client_backend.search_folder import SearchState, Trial
from cirrus.errors import StorageError

#: Columns of a result beside the hyperparameters.
COLUMNS = (
    "rank",
    "trial",
    "status",
    "score",
    "loss",
    "epochs",
    "updates",
    "seconds",
    "worker_seconds",
    "cost",
    "runs",
    "error",
)

Row = dict[str, Any]


class SearchResults(Sequence[Row]):
    """The rows of a search's table, a dict for each trial in the order of the trials.

    Keys are ``rank`` (1 is the best), ``trial``, ``status``, ``score``, ``loss``, ``epochs``, ``updates``,
    ``seconds``, ``worker_seconds``, ``cost``, ``runs`` (ids), ``error``, ``param_NAME`` for each
    hyperparameter, and ``score_NAME`` for each of several metrics.

    Args:
        state: The search, with its trials. One that was at work when the search ended is ``interrupted``.
        metrics: Several metrics; of one there is but ``score``.
    """

    def __init__(self, state: SearchState, metrics: Sequence[str] = ()) -> None:
        trials = state.trials
        ranked = sorted(trials, key=rank_key)
        ranks = {trial.index: rank for rank, trial in enumerate(ranked, start=1)}
        names = list(dict.fromkeys(name for trial in trials for name in trial.params))
        self._rows = [
            _row(trial, state.trial_state(trial), ranks[trial.index], names)
            | {f"score_{metric}": trial.scores.get(metric) for metric in metrics}
            for trial in trials
        ]
        scores = (f"score_{metric}" for metric in metrics)
        self.columns = (*COLUMNS[:4], *scores, *(f"param_{name}" for name in names), *COLUMNS[4:])
        """All keys, in the order of a table."""

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        return self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows)

    def __repr__(self) -> str:
        return f"<{len(self)} results: {', '.join(self.columns)}>"

    def top(self, n: int) -> list[Row]:
        """Return the best rows, best first."""
        return sorted(self._rows, key=lambda row: row["rank"])[:n]

    def to_csv(self, path: str | os.PathLike[str] | None = None) -> str | None:
        """Write the table as CSV.

        Args:
            path: The file; None: return the text.

        Raises:
            StorageError: The file cannot be written.
        """
        out = io.StringIO()
        writer = csv.DictWriter(out, self.columns, lineterminator="\n")
        writer.writeheader()
        for row in self._rows:
            writer.writerow({**row, "runs": " ".join(row["runs"])})
        if path is None:
            return out.getvalue()
        target = Path(path)
        unfinished = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            unfinished.write_text(out.getvalue(), newline="")
            os.replace(unfinished, target)
        except OSError as error:
            unfinished.unlink(missing_ok=True)
            raise StorageError(f"{target}: {error.strerror or error}") from error
        return None

    def to_pandas(self) -> Any:
        """Return the table as a :class:`pandas.DataFrame`; needs pandas."""
        import pandas as pd

        return pd.DataFrame(self._rows, columns=list(self.columns))


def rank_key(trial: Trial) -> tuple[bool, float, int]:
    """Return what trials are sorted by, best first: by score, those that have left no model last."""
    score = trial.score
    unknown = score is None or math.isnan(score)
    return (unknown, 0.0 if score is None or unknown else -score, trial.index)


def _row(trial: Trial, status: str, rank: int, names: Sequence[str]) -> Row:
    row: Row = {"rank": rank, "trial": trial.index, "status": status, "score": trial.score}
    row |= {f"param_{name}": trial.params.get(name) for name in names}
    return row | {
        "loss": trial.loss,
        "epochs": trial.epochs,
        "updates": trial.updates,
        "seconds": trial.seconds,
        "worker_seconds": trial.worker_seconds,
        "cost": trial.cost,
        "runs": trial.runs,
        "error": trial.error,
    }
