"""Parsed rows that have one entry for each of some fields, as CSV rows have."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cirrus.chunks import Block

#: In place of a feature where there is no entry.
NO_FEATURE = 2**32 - 1


@dataclass(frozen=True, slots=True, eq=False)
class FieldRows:
    """Rows with an entry for each field.

    They are shuffled by whole rows of a matrix, and become blocks whose columns are fields: all entries of
    one field lie together there, which LZ4 is good at.
    """

    columns: NDArray[np.uint32]
    """Features; ``NO_FEATURE`` where there is no entry. Shape (n_rows, n_fields)."""
    values: NDArray[np.float32]
    """The values of the first fields; those of the others are 1. Shape (n_rows, n_valued)."""
    labels: NDArray[np.float32]
    """Shape (n_rows,)."""
    weights: NDArray[np.float32] | None = None
    """Sample weights. Shape (n_rows,); None: all are 1."""

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return int(self.labels.size)

    @property
    def n_fields(self) -> int:
        """Entries of each row."""
        return int(self.columns.shape[1])

    def take(self, chosen: NDArray[np.intp]) -> FieldRows:
        """Return the rows with these numbers, in that order."""
        return FieldRows(
            columns=self.columns.take(chosen, axis=0),
            values=self.values.take(chosen, axis=0),
            labels=self.labels.take(chosen),
            weights=None if self.weights is None else self.weights.take(chosen),
        )

    def slice(self, first: int, last: int) -> FieldRows:
        """Return the rows from ``first`` up to ``last``, without copying them."""
        return FieldRows(
            columns=self.columns[first:last],
            values=self.values[first:last],
            labels=self.labels[first:last],
            weights=None if self.weights is None else self.weights[first:last],
        )

    def relabelled(self, labels: NDArray[np.float32]) -> FieldRows:
        """Return the rows with other labels."""
        return replace(self, labels=labels)

    def to_block(self, base: int) -> Block:
        """Return the rows as a block.

        Args:
            base: What feature 0 of the block is called here: always 0.
        """
        # What compiles is loaded where rows are worked on, which often is in processes of their own.
        from cirrus.client_backend.gathering import number_fields

        # Rows as they are in a file cannot be changed, to the kernel another type, compiled for itself.
        columns = np.require(self.columns, requirements="W")
        values = np.require(self.values, requirements="W")
        ids, local, all_values, has_values = number_fields(columns, values)
        return Block.from_columns(ids, local, all_values if has_values else None, self.labels, self.weights)

    @property
    def arrays(
        self,
    ) -> tuple[
        None, NDArray[np.uint32], NDArray[np.float32], NDArray[np.float32], NDArray[np.float32] | None
    ]:
        """See :attr:`~cirrus.client_backend.rows.ParsedRows.arrays`."""
        return None, self.columns, self.values, self.labels, self.weights
