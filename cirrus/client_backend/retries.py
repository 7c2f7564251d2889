"""How often, and how soon, something that failed is tried again: policy alone, no clock and no sleeping."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """Limits of a series of attempts.

    The first failure is followed by an attempt at once: a process that was killed must not cost time. After
    that the waits are drawn with full jitter, uniformly from zero to a bound that doubles, so that many that
    failed together do not come back together.
    """

    failures: int = 8
    """The series ends with this many failures without progress in between."""
    base_seconds: float = 0.1
    """Bound of the wait after the second failure."""
    cap_seconds: float = 5.0
    """Bound of any wait."""

    def bound(self, failures: int) -> float:
        """Return the longest wait, in seconds, after this many failures in a row (1 or more)."""
        if failures <= 1:
            return 0.0
        return min(self.cap_seconds, self.base_seconds * 2.0 ** (failures - 2))


class RetryBudget:
    """Counts the failures in a row of one series of attempts.

    Progress is a number that grows with what the whole job has achieved. Only a new high counts: a shard that
    always dies at the same step restarts from a snapshot before it, so the number falls and rises, and
    nothing is gained.

    Args:
        policy: The limits.
        progress: Returns the job's progress, such as its count of updates.
        rng: Where the jitter comes from.
    """

    def __init__(self, policy: RetryPolicy, progress: Callable[[], int], rng: random.Random) -> None:
        self._policy = policy
        self._progress = progress
        self._rng = rng
        self._best = -1
        self.failures = 0

    def fail(self) -> float | None:
        """Count a failure; return the seconds to wait before the next attempt, or None to give up."""
        progress = self._progress()
        if progress > self._best:
            self._best = progress
            self.failures = 0
        self.failures += 1
        if self.failures >= self._policy.failures:
            return None
        return self._rng.uniform(0.0, self._policy.bound(self.failures))
