"""Parsed rows on their way from a text file into blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from cirrus.chunks import BLOCK_ROWS, Block
from cirrus.client_backend.numbering import number_ids, take_entries

#: Feature ids are uint32, and one more than the highest must be too.
MAX_INDEX = 2**32 - 2

Scalar = TypeVar("Scalar", np.float32, np.uint32)


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Parsed rows of a segment of a file."""

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

    def parse(self, data: bytes, first_line: int) -> tuple[Rows, SegmentFacts]:
        """Parse a segment that begins at line ``first_line`` (from 1) of the file.

        Raises:
            DataError: Something is wrong with a line.
        """
        ...


def take_rows(rows: Rows, chosen: NDArray[np.intp], starts: NDArray[np.int64]) -> Rows:
    """Return the rows with these numbers, in that order.

    Args:
        rows: All rows.
        chosen: Row numbers. Shape (n_chosen,).
        starts: Where each of all rows begins (:func:`row_starts`).
    """
    lengths = rows.lengths[chosen]
    n_entries = int(lengths.sum(dtype=np.int64))
    indices = np.empty(n_entries, np.uint32)
    take_entries(rows.indices, chosen, starts, indices)
    values = None
    if rows.values is not None:
        values = np.empty(n_entries, np.float32)
        take_entries(rows.values, chosen, starts, values)
    weights = None if rows.weights is None else rows.weights[chosen]
    return Rows(lengths=lengths, indices=indices, values=values, labels=rows.labels[chosen], weights=weights)


def row_starts(lengths: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Return where each row begins, and where the last one ends. Shape (n_rows + 1,)."""
    starts = np.zeros(lengths.size + 1, np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts


def join_rows(parts: Iterable[Rows]) -> Rows:
    """Return the rows of several parts, in order; a part is not kept once it is taken in."""
    lengths, labels = _Growing(np.uint32), _Growing(np.float32)
    indices, values = _Growing(np.uint32), _Growing(np.float32)
    weights = _Growing(np.float32)
    for part in parts:
        if part.weights is not None or weights.size:
            weights.append(np.ones(labels.size - weights.size, np.float32))
            weights.append(np.ones(part.labels.size, np.float32) if part.weights is None else part.weights)
        lengths.append(part.lengths)
        labels.append(part.labels)
        if part.values is not None or values.size:
            # The first values that are not all 1: those of the parts before are 1.
            values.append(np.ones(indices.size - values.size, np.float32))
            values.append(np.ones(part.indices.size, np.float32) if part.values is None else part.values)
        indices.append(part.indices)
    return Rows(
        lengths=lengths.array(),
        indices=indices.array(),
        values=values.array() if values.size else None,
        labels=labels.array(),
        weights=weights.array() if weights.size else None,
    )


class _Growing(Generic[Scalar]):
    """An array that is appended to; the operating system moves it by its pages, not by copying."""

    def __init__(self, kind: type[Scalar]) -> None:
        self._room: NDArray[Scalar] = np.empty(0, kind)
        self.size = 0

    def append(self, part: NDArray[Scalar]) -> None:
        end = self.size + part.size
        if end > self._room.size:
            self._room.resize(max(end, self._room.size * 5 // 4), refcheck=False)
        self._room[self.size : end] = part
        self.size = end

    def array(self) -> NDArray[Scalar]:
        return self._room[: self.size]


def split_rows(rows: Rows, group: NDArray[np.intp], n_groups: int) -> Iterator[tuple[int, Rows]]:
    """Yield (group, its rows in their order) for each group that has any.

    Args:
        rows: The rows.
        group: The group that each row belongs to. Shape (n_rows,).
        n_groups: Groups are numbered below this.
    """
    order = np.argsort(group, kind="stable")
    ends = np.cumsum(np.bincount(group, minlength=n_groups))
    starts = row_starts(rows.lengths)
    first = 0
    for number, end in enumerate(ends.tolist()):
        if end > first:
            yield number, take_rows(rows, order[first:end], starts)
        first = end


def blocks_of_rows(rows: Rows, order: NDArray[np.intp] | None, base: int) -> Iterator[Block]:
    """Yield rows as blocks of :data:`BLOCK_ROWS`, the last one with what is left.

    Args:
        rows: The rows.
        order: Row numbers in the order wanted; None: as they are.
        base: The number of the first feature in ``rows.indices``, 0 or 1.
    """
    starts = row_starts(rows.lengths)
    n_rows = rows.labels.size
    for first in range(0, n_rows, BLOCK_ROWS):
        last = min(first + BLOCK_ROWS, n_rows)
        chosen = np.arange(first, last) if order is None else order[first:last]
        part = take_rows(rows, chosen, starts)
        indices = part.indices - np.uint32(base)
        yield Block.from_csr(
            row_starts(part.lengths),
            indices,
            part.values,
            part.labels,
            part.weights,
            numbering=number_ids,
        )
