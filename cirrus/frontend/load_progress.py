"""How far a loader is, on one line of a terminal, or a line now and then in a log file."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, TypeAlias

from rich.console import Console
from rich.live import Live
from rich.text import Text

from cirrus.errors import ConfigError
from cirrus.frontend.progress import PLAIN_SECONDS, short_number

if TYPE_CHECKING:
    from cirrus.client_backend.loader import LoadProgress

LoadListener: TypeAlias = Callable[["LoadProgress"], None]


@contextlib.contextmanager
def listening_to_load(progress: bool | LoadListener | None) -> Iterator[LoadListener | None]:
    """Return the listener that a loader's ``progress`` parameter stands for.

    Args:
        progress: None or False: silent. True: a live line. Else a function of :class:`LoadProgress`.

    Raises:
        ConfigError: It is none of these.
    """
    if progress is True:
        with LoadingLine() as line:
            yield line.show
    elif progress is None or progress is False:
        yield None
    elif callable(progress):
        yield progress
    else:
        raise ConfigError("progress", f"must be None, True or a function, got {progress!r}")


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
