"""Holds small gradient values back until they have added up: fewer bytes, for a little delay.

The last step of a lease sends what is left; only a worker that dies in the midst of a lease forgets what it
held.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.uint32]
Values = NDArray[np.float32]


class GradientFilter:
    """The filter of one table, for one lease.

    Args:
        threshold: A row is sent when any of its values is at least this large.
        width: Values a row.
    """

    def __init__(self, threshold: float, width: int) -> None:
        self._threshold = threshold
        self._ids: Ids = np.empty(0, np.uint32)
        self._values: Values = np.empty((0, width), np.float32)

    def select(self, ids: Ids, gradient: Values, *, last: bool) -> tuple[Ids, Values]:
        """Add what is held back for these rows; return what to send now, and hold the rest.

        Args:
            ids: Sorted unique rows of the gradient.
            gradient: float32 ``(n_ids, width)``.
            last: Send everything that is held, of any row.
        """
        place = np.searchsorted(self._ids, ids)
        inside = place < len(self._ids)
        found = np.zeros(len(ids), bool)
        found[inside] = self._ids[place[inside]] == ids[inside]
        gradient = gradient.copy()
        gradient[found] += self._values[place[found]]
        rest = np.ones(len(self._ids), bool)
        rest[place[found]] = False
        send = np.abs(gradient).max(axis=1, initial=0.0) >= self._threshold
        if last:
            return self._union(self._ids[rest], self._values[rest], ids, gradient)
        self._ids, self._values = self._union(
            self._ids[rest], self._values[rest], ids[~send], gradient[~send]
        )
        return ids[send], gradient[send]

    @staticmethod
    def _union(ids_a: Ids, a: Values, ids_b: Ids, b: Values) -> tuple[Ids, Values]:
        ids = np.concatenate([ids_a, ids_b])
        order = np.argsort(ids)
        return ids[order], np.concatenate([a, b])[order]
