"""Who goes first on one processor: pages that wait for an answer, before the thread that reads folders."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Precedence:
    """Lets long work stand back while something short is under way; may be used from several threads.

    Threads of one process share the interpreter's lock: an answer of 200 ms beside a thread that reads takes
    twice that. So whoever reads looks here between two pieces of its work.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._n_first = 0

    @contextmanager
    def first(self) -> Iterator[None]:
        """Go before those who give way, for as long as the block takes."""
        with self._changed:
            self._n_first += 1
        try:
            yield
        finally:
            with self._changed:
                self._n_first -= 1
                if self._n_first == 0:
                    self._changed.notify_all()

    def give_way(self, most_seconds: float) -> bool:
        """Wait until nobody goes first any more.

        Args:
            most_seconds: No longer than this, so that those who ask all the time do not stop all else.

        Returns:
            Whether nobody does.
        """
        with self._changed:
            return self._changed.wait_for(lambda: self._n_first == 0, most_seconds)
