"""Parsed rows on their way from a text file into blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cirrus.chunks import BLOCK_ROWS, Block

#: Feature ids are uint32, and one more than the highest must be too.
MAX_INDEX = 2**32 - 2
#: What is wrong with a whole number as a label that would become another one in float32.
NARROWED_LABEL = "is a whole number beyond 2**24, which float32 cannot hold: use text or scale"


#: Lengths, entries, values, labels, weights, as far as there are any.
RowArrays: TypeAlias = tuple[
    NDArray[np.uint32] | None,
    NDArray[np.uint32],
    NDArray[np.float32] | None,
    NDArray[np.float32],
    NDArray[np.float32] | None,
]


class ParsedRows(Protocol):
    """What :class:`Rows` and :class:`~cirrus.client_backend.field_rows.FieldRows` have in common."""

    @property
    def labels(self) -> NDArray[np.float32]:
        """Shape (n_rows,)."""
        ...

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        ...

    @property
    def n_fields(self) -> int:
        """Entries of each row, of which each has a meaning; 0: rows have any number of entries."""
        ...

    @property
    def arrays(self) -> RowArrays:
        """All arrays."""
        ...

    def take(self, chosen: NDArray[np.intp]) -> Self:
        """Return the rows with these numbers, in that order."""
        ...

    def slice(self, first: int, last: int) -> Self:
        """Return the rows from ``first`` up to ``last``, without copying them."""
        ...

    def relabelled(self, labels: NDArray[np.float32]) -> Self:
        """Return the rows with other labels."""
        ...

    def to_block(self, base: int) -> Block:
        """Return the rows as a block; ``base`` is the number of the first feature in the file, 0 or 1."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Rows of any length, one after the other."""

    lengths: NDArray[np.uint32]
    """Entries of each row. Shape (n_rows,)."""
    indices: NDArray[np.uint32]
    """Columns, row after row, as the file numbers them. Shape (n_entries,)."""
    values: NDArray[np.float32] | None
    """Shape (n_entries,); None: all are 1."""
    labels: NDArray[np.float32]
    """Shape (n_rows,)."""
    weights: NDArray[np.float32] | None = None
    """Sample weights. Shape (n_rows,); None: all are 1."""
    starts: NDArray[np.int64] = field(init=False)
    """Where each row begins, and where the last one ends. Shape (n_rows + 1,)."""

    def __post_init__(self) -> None:
        """Find the rows."""
        object.__setattr__(self, "starts", row_starts(self.lengths))

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return int(self.labels.size)

    @property
    def n_fields(self) -> int:
        """See :attr:`ParsedRows.n_fields`."""
        return 0

    @property
    def arrays(self) -> RowArrays:
        """See :attr:`ParsedRows.arrays`."""
        return self.lengths, self.indices, self.values, self.labels, self.weights

    def take(self, chosen: NDArray[np.intp]) -> Rows:
        """See :meth:`ParsedRows.take`."""
        # What compiles is loaded where rows are worked on, which often is in processes of their own.
        from cirrus.client_backend.gathering import take_entries

        lengths = self.lengths[chosen]
        n_entries = int(lengths.sum(dtype=np.int64))
        indices = np.empty(n_entries, np.uint32)
        take_entries(self.indices, chosen, self.starts, indices)
        values = None
        if self.values is not None:
            values = np.empty(n_entries, np.float32)
            take_entries(self.values, chosen, self.starts, values)
        weights = None if self.weights is None else self.weights[chosen]
        return Rows(
            lengths=lengths, indices=indices, values=values, labels=self.labels[chosen], weights=weights
        )

    def slice(self, first: int, last: int) -> Rows:
        """See :meth:`ParsedRows.slice`."""
        begin, end = self.starts[first], self.starts[last]
        return Rows(
            lengths=self.lengths[first:last],
            indices=self.indices[begin:end],
            values=None if self.values is None else self.values[begin:end],
            labels=self.labels[first:last],
            weights=None if self.weights is None else self.weights[first:last],
        )

    def relabelled(self, labels: NDArray[np.float32]) -> Rows:
        """See :meth:`ParsedRows.relabelled`."""
        return replace(self, labels=labels)

    def to_block(self, base: int) -> Block:
        """See :meth:`ParsedRows.to_block`."""
        from cirrus.client_backend.gathering import number_ids

        indices = self.indices - np.uint32(base)
        return Block.from_csr(
            self.starts, indices, self.values, self.labels, self.weights, numbering=number_ids
        )


def row_starts(lengths: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Return where each row begins, and where the last one ends. Shape (n_rows + 1,)."""
    starts = np.zeros(lengths.size + 1, np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts


@dataclass(frozen=True, kw_only=True)
class SegmentFacts:
    """What the loader has to know of a segment once all are read."""

    n_rows: int
    lowest_index: int = MAX_INDEX
    highest_index: int = -1
    limit_line: int = 0
    """First line with an index equal to ``n_features``, which is an error in a zero-based file; 0: none."""
    n_entries: int = 0
    """Entries as the file writes them, where the file says how many there are."""
    first_group: int = 0
    """Where rows are groups of lines with numbers, which must ascend: that of the first; 0: they are not."""
    last_group: int = 0
    """That of the last one."""


class Parser(Protocol):
    """Turns segments of a file, which end at line ends, into rows."""

    def parse(self, data: bytes, first_line: int) -> tuple[ParsedRows, SegmentFacts]:
        """Parse a segment that begins at line ``first_line`` (from 1) of the file.

        Raises:
            DataError: Something is wrong with a line.
        """
        ...


def split_rows(rows: ParsedRows, group: NDArray[np.intp], n_groups: int) -> Iterator[tuple[int, ParsedRows]]:
    """Yield (group, its rows in their order) for each group that has any.

    Args:
        rows: The rows.
        group: The group that each row belongs to. Shape (n_rows,).
        n_groups: Groups are numbered below this.
    """
    # Numbers of two bytes are sorted by counting.
    order = np.argsort(group.astype(np.uint16) if n_groups <= 2**16 else group, kind="stable")
    ordered = rows.take(order)
    first = 0
    for number, end in enumerate(np.cumsum(np.bincount(group, minlength=n_groups)).tolist()):
        if end > first:
            yield number, ordered.slice(first, end)
        first = end


def blocks_of_rows(rows: ParsedRows, order: NDArray[np.intp] | None, base: int) -> Iterator[Block]:
    """Yield rows as blocks of :data:`BLOCK_ROWS`, the last one with what is left.

    Args:
        rows: The rows.
        order: Row numbers in the order wanted; None: as they are.
        base: The number of the first feature in the file, 0 or 1.
    """
    for first in range(0, rows.n_rows, BLOCK_ROWS):
        last = min(first + BLOCK_ROWS, rows.n_rows)
        part = rows.slice(first, last) if order is None else rows.take(order[first:last])
        yield part.to_block(base)
