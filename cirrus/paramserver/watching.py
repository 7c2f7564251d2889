"""Watching what another process writes, without its clock: what counts is how long it has not changed."""

from __future__ import annotations

import time
from collections.abc import Callable


class Unchanged:
    """Tells for how long something has been the same.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._value: object = None
        self._since = clock()

    def seconds(self, value: object) -> float:
        """Return for how long the value has been what it is."""
        now = self._clock()
        if value != self._value:
            self._value, self._since = value, now
        return now - self._since
