"""Which steps a shard has applied: the memory behind "exactly once".

For every lease of an epoch a shard keeps one number, its *mark*: the next position it will apply. A push at
the mark is applied and moves it on; one below is a duplicate and dropped. Epochs that are complete need no
marks any more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from cirrus.config import LeaseRange
from cirrus.errors import LimitError
from cirrus.paramserver.protocol import MAX_JSON_BYTES

Marks = NDArray[np.int32]

#: Digits of a mark, and the comma and space behind it, in a message that tells of all.
_BYTES_PER_MARK = 8
#: Epochs do not overlap, but a shard that lost steps has those of several to do again. What it holds has to
#: fit a message.
MAX_OPEN_MARKS = MAX_JSON_BYTES // _BYTES_PER_MARK


class StepMarks:
    """The marks of one shard. Not thread-safe by itself: the shard guards it.

    Args:
        leases: The leases of an epoch.
    """

    def __init__(self, leases: Sequence[LeaseRange]) -> None:
        self._full: Marks = np.array([lease.n_steps for lease in leases], np.int32)
        self._epochs: dict[int, Marks] = {}
        self._completed = 0

    def of_epoch(self, epoch: int) -> Marks:
        """Return the marks of an epoch, int32 ``(n_leases,)``; the kernels change them in place.

        Raises:
            LimitError: There are too many epochs at work.
        """
        if epoch < self._completed:
            return self._full.copy()
        if epoch not in self._epochs:
            self._forget_complete()
            if len(self._epochs) * len(self._full) >= MAX_OPEN_MARKS:
                raise LimitError(
                    f"{len(self._epochs)} epochs are at work already, with {len(self._full)} leases each: a "
                    f"shard keeps {MAX_OPEN_MARKS} marks"
                )
            self._epochs[epoch] = np.zeros_like(self._full)
        return self._epochs[epoch]

    def of_lease(self, epoch: int, lease: int) -> int:
        """Return the mark of a lease."""
        if epoch < self._completed:
            return int(self._full[lease])
        marks = self._epochs.get(epoch)
        return 0 if marks is None else int(marks[lease])

    @property
    def completed_epochs(self) -> int:
        """All epochs before this one are complete; their marks are forgotten."""
        self._forget_complete()
        return self._completed

    def _forget_complete(self) -> None:
        while self._completed in self._epochs and bool(
            np.array_equal(self._epochs[self._completed], self._full)
        ):
            del self._epochs[self._completed]
            self._completed += 1

    def is_complete(self, epoch: int, lease: int) -> bool:
        """Tell whether every step of a lease was applied here."""
        return self.of_lease(epoch, lease) >= int(self._full[lease])

    def to_plain(self) -> tuple[int, dict[str, list[int]]]:
        """Return ``completed_epochs`` and the marks of the other epochs, for JSON."""
        completed = self.completed_epochs
        return completed, {str(epoch): marks.tolist() for epoch, marks in sorted(self._epochs.items())}

    def restore(self, completed_epochs: int, marks: Mapping[str, Sequence[int]]) -> None:
        """Go back to what :meth:`to_plain` returned."""
        self._completed = completed_epochs
        self._epochs = {int(epoch): np.array(values, np.int32) for epoch, values in marks.items()}
