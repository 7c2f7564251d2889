"""The live table of a search: trials at work and the best, or a line now and then in a log file."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, TextIO

from rich.console import Group
from rich.table import Table
from rich.text import Text

from cirrus.client_backend.search_folder import SearchState, Trial, TrialStatus
from cirrus.errors import ConfigError
from cirrus.frontend.progress import LiveDisplay, clock_time, dollars_text
from cirrus.frontend.search.results import rank_key
from cirrus.metrics import RunState

#: Lines of the table: those at work first, then the best.
TABLE_LINES = 16

SearchListener = Callable[[SearchState], None]


class SearchTable(LiveDisplay):
    """Shows a search's progress; pass :meth:`show` as a listener, inside ``with``."""

    def __init__(self, out: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(out, clock)
        self._last: SearchState | None = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if not self._is_drawn and self._last is not None:
            self._print(search_line(self._last))

    def show(self, state: SearchState) -> None:
        """Show the newest state."""
        self._last = state
        if self._is_drawn:
            self._draw(Group(search_table(state), Text(search_line(state))))
        elif self._is_due() and not state.state.ended:
            self._print(search_line(state))
            self._last = None


def search_line(state: SearchState) -> str:
    """Return one line about a search: trials by status, the best so far, time, cost."""
    counts = Counter(map(state.trial_state, state.trials))
    in_order = (*(status.value for status in TrialStatus), RunState.INTERRUPTED.value)
    parts = [f"{len(state.trials)} trials"]
    parts.append(", ".join(f"{counts[name]} {name}" for name in in_order if counts[name]))
    best = state.best
    if best is not None and best.score is not None:
        parts.append(f"best {best.score:.4f} ({params_text(best.params)})")
    parts.append(clock_time(state.seconds))
    parts.append(dollars_text(state.cost))
    return "  ".join(part for part in parts if part)


def search_table(state: SearchState) -> Table:
    """Return the trials that work, then the best of the others."""
    table = Table(box=None, pad_edge=False)
    for name in ("trial", "status", "epochs", "loss", "score", "cost", "hyperparameters"):
        table.add_column(name, justify="left" if name in ("status", "hyperparameters") else "right")
    for trial in shown_trials(state):
        table.add_row(*trial_cells(trial, state))
    return table


def shown_trials(state: SearchState, lines: int = TABLE_LINES) -> list[Trial]:
    """Return the trials at work, then the best of those that have a score."""
    at_work = [trial for trial in state.trials if trial.status is TrialStatus.RUNNING]
    others = [t for t in state.trials if t.status is not TrialStatus.RUNNING and t.score is not None]
    return [*at_work[:lines], *sorted(others, key=rank_key)[: max(0, lines - len(at_work))]]


def trial_cells(trial: Trial, state: SearchState) -> tuple[str, ...]:
    """Return a trial of a search as the cells of a table's line."""
    return (
        str(trial.index),
        state.trial_state(trial),
        f"{trial.epochs:.1f}",
        "" if trial.loss is None else f"{trial.loss:.4f}",
        "" if trial.score is None else f"{trial.score:.4f}",
        f"${trial.cost:.4f}",
        params_text(trial.params),
    )


def params_text(params: Mapping[str, Any]) -> str:
    """Return hyperparameters as ``l1=0.5, learning_rate=0.1``."""
    return ", ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in params.items()
    )


class SearchProgress:
    """What a search's ``progress`` parameter stands for, as a listener inside ``with``.

    Args:
        progress: None or False: silent. True: a live table. Else a function of :class:`SearchState`.

    Raises:
        ConfigError: It is none of these.
    """

    def __init__(self, progress: bool | SearchListener | None) -> None:
        self._table = SearchTable() if progress is True else None
        self.listener: SearchListener | None = None
        if self._table is not None:
            self.listener = self._table.show
        elif progress is not None and progress is not False:
            if not callable(progress):
                raise ConfigError("progress", f"must be None, True or a function, got {progress!r}")
            self.listener = progress

    def __enter__(self) -> SearchProgress:
        if self._table is not None:
            self._table.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._table is not None:
            self._table.__exit__(kind, error, trace)
