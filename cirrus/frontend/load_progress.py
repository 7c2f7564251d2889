"""How far a loader is, on one line of a terminal, or a line now and then in a log file."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeAlias

from cirrus.errors import ConfigError
from cirrus.frontend.progress import RowsLine

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


class LoadingLine(RowsLine):
    """Shows how far a loader is; pass :meth:`show` as its ``progress``, inside ``with``."""

    def show(self, progress: LoadProgress) -> None:
        """Show the newest state."""
        share = progress.bytes_done / progress.bytes_total if progress.bytes_total else 0.0
        rate = self.rows_per_second(progress.rows - progress.rows_found)
        line = f"  {share:4.0%}  {progress.rows:,} rows  {rate}"
        if progress.rows_found:
            line += f"  ({progress.rows_found:,} of them parsed before)"
        self._draw_or_print(line)
