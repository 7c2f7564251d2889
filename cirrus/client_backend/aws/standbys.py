"""Shard processes that are ready before there is a run for them: what makes a warm server quick.

A shard takes more than a second of a processor to load the compiler of its kernels; the shards of a server
take it from each other. While the server waits for its next run, it has that behind it.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Sequence

from cirrus.client_backend.processes import ChildProcess, end_in_order

#: A process that has nothing to save ends at once.
GRACE_SECONDS = 0.5


def standby_command() -> list[str]:
    """Return the command line of a process that waits for the words of its shard."""
    return [sys.executable, "-P", "-m", "cirrus.paramserver", "--standby"]


class Standbys:
    """Shard processes that wait for their run."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[ChildProcess] = []

    def start(self, n: int) -> None:
        """Start processes until so many wait.

        Raises:
            RunError: One could not be started.
        """
        with self._lock:
            self._waiting = [child for child in self._waiting if not child.has_ended]
            while len(self._waiting) < n:
                self._waiting.append(ChildProcess(standby_command()))

    def take(self, words: Sequence[str]) -> ChildProcess | None:
        """Have a process become a shard; return it, or None where none waits.

        Args:
            words: The arguments of :mod:`cirrus.paramserver`.
        """
        with self._lock:
            while self._waiting:
                child = self._waiting.pop(0)
                if not child.has_ended:
                    child.send(json.dumps(list(words)).encode() + b"\n")
                    return child
        return None

    def close(self) -> None:
        """End those that still wait."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
        threads = [threading.Thread(target=child.wait, daemon=True) for child in waiting]
        for thread in threads:
            thread.start()
        end_in_order(waiting, GRACE_SECONDS)
        for thread in threads:
            thread.join()
