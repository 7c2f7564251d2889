"""What commands say: results on standard output, everything about the way there on standard error."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.text import Text

from cirrus.frontend.progress import PLAIN_SECONDS, short_number

if TYPE_CHECKING:
    from cirrus.client_backend.loader import LoadProgress


def say(text: str) -> None:
    """Say something about the way to the result."""
    print(text, file=sys.stderr, flush=True)


def show(text: str) -> None:
    """Print a result."""
    print(text, flush=True)


def table(rows: list[list[str]], *, right: frozenset[int] = frozenset()) -> str:
    """Return rows of cells as aligned columns.

    Args:
        rows: The first is the head.
        right: Numbers of the columns that are aligned to the right.
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def bytes_text(n_bytes: int) -> str:
    """Return a size as people say it: ``12.3 MB``."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= size:
            return f"{n_bytes / size:.1f} {unit}"
    return f"{n_bytes} bytes"


class LoadingLine:
    """Shows how far a loader is; pass :meth:`show` as its ``progress``, inside ``with``."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._live: Live | None = None
        self._started_at = time.monotonic()
        self._shown_at = self._started_at

    def __enter__(self) -> LoadingLine:
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.__exit__(kind, error, trace)

    def show(self, progress: LoadProgress) -> None:
        """Show the newest state."""
        now = time.monotonic()
        seconds = max(now - self._started_at, 1e-9)
        share = progress.bytes_done / progress.bytes_total if progress.bytes_total else 0.0
        rate = (progress.rows - progress.rows_found) / seconds
        line = f"  {share:4.0%}  {progress.rows:,} rows  {short_number(rate)} rows/s"
        if progress.rows_found:
            line += f"  ({progress.rows_found:,} of them parsed before)"
        if self._live is not None:
            self._live.update(Text(line, no_wrap=True, overflow="ellipsis"), refresh=True)
        elif now - self._shown_at >= PLAIN_SECONDS:
            self._shown_at = now
            self._console.print(line, soft_wrap=True)
