"""The live line: what a run is doing, on one line of a terminal, or a line now and then in a log file."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import ClassVar, Self, TextIO

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from cirrus.client_backend.map_client import MapProgress
from cirrus.client_backend.run_cost import CostModel, RunCost
from cirrus.errors import ConfigError
from cirrus.metrics import RunStatus

#: Rates are taken over this long.
RATE_SECONDS = 3.0
#: Where the output is not a terminal, a line is printed this often, and after an epoch at most this often.
PLAIN_SECONDS = 5.0
PLAIN_EPOCH_SECONDS = 1.0
#: From here on, how far measured and modelled cost are apart is told as a factor.
LARGE_RATIO = 2.0

Listener = Callable[[RunStatus], None]


class RateMeter:
    """Samples and updates a second over the last moments, from cumulative counts."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int, int]] = deque()

    def add(self, status: RunStatus) -> None:
        """Take note of a status."""
        if self._seen and status.seconds <= self._seen[-1][0]:
            return
        if self._seen and status.samples < self._seen[-1][1]:
            self._seen.clear()  # shard 0 was lost, and the steps since its snapshot with it
        self._seen.append((status.seconds, status.samples, status.updates))
        while len(self._seen) > 2 and status.seconds - self._seen[1][0] >= RATE_SECONDS:
            self._seen.popleft()

    @property
    def samples_per_second(self) -> float:
        """Rows trained on a second."""
        return self._rate(1)

    @property
    def updates_per_second(self) -> float:
        """Minibatches applied a second."""
        return self._rate(2)

    def _rate(self, which: int) -> float:
        if not self._seen:
            return 0.0
        last = self._seen[-1]
        first = self._seen[0] if len(self._seen) > 1 else (0.0, 0, 0)
        seconds = last[0] - first[0]
        return (last[which] - first[which]) / seconds if seconds > 0 else 0.0


class LiveDisplay:
    """Draws the same lines anew in a terminal, inside ``with``; elsewhere it prints one now and then.

    Args:
        out: Where to; standard error by default, so that output can be piped.
        clock: Seconds, monotonic.
    """

    is_transient: ClassVar[bool] = False
    """Whether nothing of it stays in the terminal."""

    def __init__(self, out: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = Console(file=out if out is not None else sys.stderr, highlight=False)
        self._clock = clock
        self._live: Live | None = None
        self._printed_at = clock()

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=self.is_transient)
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.__exit__(kind, error, trace)

    @property
    def _is_drawn(self) -> bool:
        """True in a terminal."""
        return self._live is not None

    def _draw(self, what: RenderableType) -> None:
        """Replace what was drawn; nothing outside a terminal. Text takes one line, or what there is of it."""
        if self._live is not None:
            line = Text(what, no_wrap=True, overflow="ellipsis") if isinstance(what, str) else what
            self._live.update(line, refresh=True)

    def _is_due(self, seconds: float = PLAIN_SECONDS) -> bool:
        """Tell whether so long has passed since a line was printed."""
        return self._clock() - self._printed_at >= seconds

    def _print(self, line: str) -> None:
        self._printed_at = self._clock()
        self._console.print(line, soft_wrap=True)

    def _draw_or_print(self, line: str) -> None:
        """Draw a line, or print it where one is due."""
        if self._is_drawn:
            self._draw(line)
        elif self._is_due():
            self._print(line)


class LiveLine(LiveDisplay):
    """Shows a run's progress; pass :meth:`show` as a listener, inside ``with``.

    Args:
        out: Where to; standard error by default, so that output can be piped.
        clock: Seconds, monotonic.
        cost_model: What the run should cost, to be shown beside what it does.
    """

    def __init__(
        self,
        out: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        cost_model: CostModel | None = None,
    ) -> None:
        super().__init__(out, clock)
        self._cost_model = cost_model
        self._meter = RateMeter()
        self._last: RunStatus | None = None
        self._before: RunStatus | None = None
        self._shown_epoch = 0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if not self._is_drawn and self._last is not None:
            self._print_status(self._last)

    def show(self, status: RunStatus) -> None:
        """Show the newest status."""
        self._meter.add(status)
        if self._before is not None:
            for line in losses(self._before, status):
                self._console.print(line, soft_wrap=True)
        self._last = self._before = status
        if self._is_drawn:
            self._draw(self._line(status))
            return
        is_due = self._is_due(PLAIN_EPOCH_SECONDS if status.epoch > self._shown_epoch else PLAIN_SECONDS)
        # The last line is printed at the exit: the final status may be seen more than once.
        if is_due and status.updates and not status.state.ended:
            self._print_status(status)

    def _print_status(self, status: RunStatus) -> None:
        self._shown_epoch = status.epoch
        self._last = None
        self._print(self._line(status))

    def _line(self, status: RunStatus) -> str:
        return status_line(status, self._meter, self._cost_model)


def losses(before: RunStatus, status: RunStatus) -> list[str]:
    """Return what is to be said of shards that were lost between two statuses, a line each."""
    if status.state.ended:
        return []
    at = f"was lost at epoch {_epoch(before)}"
    lines = []
    if status.updates < before.updates:
        lines.append(f"shard 0 {at}: training goes on from what it had saved, at epoch {_epoch(status)}")
    for shard in sorted(set(status.behind_shards) - set(before.behind_shards)):
        lines.append(f"shard {shard} {at}: the steps that it had not saved are done again")
    return lines


def status_line(status: RunStatus, meter: RateMeter, cost_model: CostModel | None = None) -> str:
    """Return one line about a run: progress, loss, speed, workers, time, cost (and by the model)."""
    parts = [_progress(status)]
    if status.train_loss is not None:
        parts.append(f"loss {status.train_loss:.4f}")
    if status.validation_loss is not None:
        parts.append(f"validation {status.validation_loss:.4f}")
    parts.append(f"{short_number(meter.samples_per_second)} samples/s")
    parts.append(f"{short_number(meter.updates_per_second)} updates/s")
    parts.append(f"{status.n_workers} worker{'' if status.n_workers == 1 else 's'}")
    parts.append(clock_time(status.seconds))
    modelled = 0.0 if cost_model is None else cost_model.compare(status).modelled
    beside = f" (model {dollars_text(modelled)})" if modelled else ""
    parts.append(dollars_text(status.cost) + beside)
    if status.warning is not None:
        parts.append(f"warning: {status.warning}")
    return "  ".join(parts)


def cost_line(cost: RunCost) -> str:
    """Return what a run has cost beside what the model says; item by item where they are far apart."""
    text = f"cost {_exact_dollars(cost.measured)}; the model says {_exact_dollars(cost.modelled)}"
    if not cost.differs:
        return text
    items = [(cost.workers, "workers"), (cost.servers, "servers and requests")]
    parts = [
        f"{name} {_exact_dollars(item.measured)} (model {_exact_dollars(item.modelled)})"
        for item, name in items
        if item.measured or item.modelled
    ]
    return f"{text}, {difference_text(cost)}: {', '.join(parts)}"


def difference_text(cost: RunCost) -> str:
    """Return how far measure and model are apart: ``+40 %``, ``-30 %``, ``3.2 x``; empty without a model."""
    if cost.ratio is None:
        return ""
    return (
        f"{cost.ratio:.1f} x" if cost.ratio >= LARGE_RATIO else f"{cost.ratio - 1.0:+.0%}".replace("%", " %")
    )


def _exact_dollars(dollars: float) -> str:
    return f"${dollars:.4f}" if dollars < 1 else f"${dollars:.2f}"


def dollars_text(dollars: float) -> str:
    """Return an amount to the cent, and small ones to a hundredth of it."""
    return f"${dollars:.2f}" if dollars >= 0.01 or not dollars else f"${dollars:.4f}"


def _progress(status: RunStatus) -> str:
    if status.state.ended:
        reason = f" ({status.stop_reason})" if status.stop_reason else ""
        return f"{status.state.value}{reason} after {status.epoch} epoch{'' if status.epoch == 1 else 's'}"
    if not status.samples_per_epoch or not status.updates:
        return f"starting: {status.detail}" if status.detail else "starting"
    done = status.samples / status.samples_per_epoch - status.epoch
    return f"epoch {_epoch(status)}/{status.epochs} {min(max(done, 0.0), 1.0):4.0%}"


def _epoch(status: RunStatus) -> int:
    """Return the epoch that a run is in, from 1 on."""
    return min(status.epoch + 1, max(status.epochs, 1))


def short_number(value: float) -> str:
    """Return a number with three figures or so: ``1,234``, ``123 k``, ``1.23 M``."""
    if value >= 1e6:
        return f"{value / 1e6:.2f} M"
    if value >= 1e4:
        return f"{value / 1e3:.0f} k"
    return f"{value:,.0f}"


def clock_time(seconds: float) -> str:
    """Return ``m:ss`` or ``h:mm:ss``."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class RowsLine(LiveDisplay):
    """Shows how many rows something has done since it began; nothing of it stays in the terminal."""

    is_transient = True

    def __init__(self, out: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(out, clock)
        self._started_at = clock()

    def rows_per_second(self, rows: int) -> str:
        """Return the rate of so many rows, as text."""
        return f"{short_number(rows / max(self._clock() - self._started_at, 1e-9))} rows/s"


class MapLine(RowsLine):
    """Shows how far a function over chunks is; pass :meth:`show` as its ``progress``, inside ``with``."""

    def show(self, progress: MapProgress) -> None:
        """Show the newest state."""
        done, total = progress.chunks_done, progress.chunks_total
        line = f"  {done / total:4.0%}  chunk {done}/{total}  {progress.rows:,} rows"
        line += f"  {self.rows_per_second(progress.rows - progress.rows_found)}"
        if progress.rows_found:
            line += f"  ({progress.rows_found:,} of them done before)"
        self._draw_or_print(line)


class Progress:
    """What an estimator's ``progress`` parameter stands for, as a listener inside ``with``.

    Args:
        progress: None or False: silent. True: a live line. Else a function of :class:`RunStatus`.
        cost_model: What the run should cost, for a live line.

    Raises:
        ConfigError: It is none of these.
    """

    def __init__(self, progress: bool | Listener | None, cost_model: CostModel | None = None) -> None:
        self._line = LiveLine(cost_model=cost_model) if progress is True else None
        if self._line is not None:
            self.listener: Listener | None = self._line.show
        elif progress is None or progress is False:
            self.listener = None
        elif callable(progress):
            self.listener = progress
        else:
            raise ConfigError("progress", f"must be None, True or a function, got {progress!r}")

    def __enter__(self) -> Progress:
        if self._line is not None:
            self._line.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._line is not None:
            self._line.__exit__(kind, error, trace)
