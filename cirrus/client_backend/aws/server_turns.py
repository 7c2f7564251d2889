"""Runs of one client look for seats one after the other.

Else two that begin at the same time would launch a server each, when one has room for both.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

#: How soon a run that waits for its turn sees that it is being ended.
LOOK_SECONDS = 0.2


class ServerTurns:
    """Whose turn it is, among the runs of one backend; its copies in this process share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: object) -> ServerTurns:
        return self

    def __reduce__(self) -> tuple[type[ServerTurns], tuple[()]]:
        return ServerTurns, ()  # another process' runs take turns among themselves

    @contextmanager
    def turn(self, closed: threading.Event) -> Iterator[bool]:
        """Wait for the turn and have it in the body; yields False where the run is ended before.

        Args:
            closed: Set when the run is being ended.
        """
        while not closed.is_set():
            if self._lock.acquire(timeout=LOOK_SECONDS):
                try:
                    yield True
                finally:
                    self._lock.release()
                return
        yield False
