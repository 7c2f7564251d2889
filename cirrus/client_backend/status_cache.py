"""The status of a run, read by many threads of one client and from the store once in a while."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from cirrus.errors import CirrusError
from cirrus.metrics import RunStatus
from cirrus.run_folder import RunFolder


class StatusCache:
    """Reads a run's status at most once in a while, however many threads ask.

    Args:
        folder: The run folder.
        age_seconds: What was read stays good for this long; 0: it is read anew each time.
        clock: Monotonic seconds.
    """

    def __init__(
        self, folder: RunFolder, age_seconds: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._folder = folder
        self._age_seconds = age_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._read_at = float("-inf")
        self._status: RunStatus | None = None

    def read(self) -> RunStatus | None:
        """Return the status, or None where there is none that can be read."""
        if self._age_seconds <= 0:
            return self.read_now()
        with self._lock:
            if self._clock() - self._read_at >= self._age_seconds:
                self._status = self.read_now()
                self._read_at = self._clock()
            return self._status

    def read_now(self) -> RunStatus | None:
        """Return the status as it is in the store, or None where there is none that can be read."""
        try:
            return self._folder.status()
        except CirrusError:
            return None
