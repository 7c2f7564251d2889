"""What a run pays for its servers: its part of each, for as long as it has seats there.

A server's seconds are paid by those who have seats on it, in proportion to their seats; who is alone pays
all of it. So what the runs of a server pay adds up to what it costs, from its launch to its end, but for the
time in which it waited in vain. Shard 0 cannot know who else is there: it counts its whole life at a fixed
rate (``RunConfig.dollars_per_hour``), and the client puts the difference right at the end.
"""

from __future__ import annotations

import threading


class ServerBill:
    """Adds up the seconds of servers that a run pays for, and those that shard 0 counts.

    Args:
        counted_servers: How many servers shard 0 counts each second as; need not be whole.
    """

    def __init__(self, counted_servers: float) -> None:
        self._counted_servers = counted_servers
        self._lock = threading.Lock()
        self._uncounted_seconds = 0.0

    def pay(self, server_seconds: float) -> None:
        """Add what the run pays for."""
        with self._lock:
            self._uncounted_seconds += server_seconds

    def count(self, seconds: float) -> None:
        """Take note that shard 0 was up for so long."""
        with self._lock:
            self._uncounted_seconds -= seconds * self._counted_servers

    @property
    def uncounted_seconds(self) -> float:
        """Seconds of servers that the run pays for beyond those that shard 0 counts; may be below 0."""
        with self._lock:
            return self._uncounted_seconds
