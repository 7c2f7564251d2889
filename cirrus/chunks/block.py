"""Rows that are computed on together: the unit of storage, and what a minibatch is.

A block names each feature id once, in ascending order, and its rows refer to those by position. So a gradient
step needs no search for the ids that a minibatch touches: that was done when the data was loaded.

Two layouts of ``local`` serve the same arithmetic:

- *padded*: ``(row_length, n_rows)``, the first entries of all rows, then the second entries, and so on. A
  product is then one ``take`` and one sum over the first axis, which numpy does at memory speed. Rows that
  have fewer entries have the position ``n_ids``, which stands for nothing, in place of those they lack. Where
  rows come from a table, the k-th entries may be what its k-th column says.
- *CSR*: ``(nnz,)``, row after row, with ``row_starts``; for rows of very unequal lengths.

Sums over a row are taken in float64 and from its first entry to its last in both layouts, so that a row's
result does not depend on the rows beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cirrus.errors import ConfigError

#: The padded layout is chosen while no more than this part of its entries is padding.
MAX_PADDING = 0.15
#: Likewise where columns have a meaning of their own: the CSR layout would lose it.
MAX_COLUMN_PADDING = 0.5
#: Ids below this multiple of the number of entries are numbered by a lookup table instead of by sorting.
LOOKUP_RATIO = 8
#: Products with a matrix are taken of this many columns at once.
COLUMNS_AT_A_TIME = 16
#: Sums by id are taken of this many entries of each row at once, so that they stay in the processor's cache.
ENTRIES_AT_A_TIME = 16

Float32: TypeAlias = NDArray[np.float32]
Float64: TypeAlias = NDArray[np.float64]
Ids: TypeAlias = NDArray[np.uint32]
Positions: TypeAlias = NDArray[np.intp]
#: Takes feature ids; returns those that occur, ascending, and each entry's position among them.
Numbering: TypeAlias = Callable[[NDArray[Any]], tuple[Ids, Positions]]


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """A run of rows with local column indices. Its arrays are never changed once it is made.

    Attributes:
        ids: The feature ids that occur, ascending and unique. Shape (n_ids,).
        labels: One a row. Shape (n_rows,).
        local: Positions in ``ids``; no row has one of them twice. Shape (row_length, n_rows) in the padded
            layout, where ``n_ids`` is padding; (nnz,) in the CSR layout.
        row_starts: Where each row begins in ``local``. Shape (n_rows + 1,). None: the padded layout.
        values: The entries' values, shaped as ``local`` (0 where padded). None: every value is 1.
        weights: One sample weight a row. Shape (n_rows,). None: every weight is 1.
    """

    ids: Ids
    labels: Float32
    local: Positions
    row_starts: Positions | None
    values: Float32 | None
    weights: Float32 | None

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return int(self.labels.size)

    @property
    def nnz(self) -> int:
        """Number of entries, without padding."""
        if self.row_starts is None:
            return int(np.count_nonzero(self.local != self.ids.size))
        return int(self.local.size)

    def matvec(self, w: NDArray[Any]) -> Float32:
        """Return the product of the rows with a vector.

        Args:
            w: One weight for each of ``ids``. Shape (n_ids,).

        Returns:
            One sum a row. Shape (n_rows,).
        """
        extended = np.empty(self.ids.size + 1)
        extended[:-1] = w
        extended[-1] = 0.0
        return self._row_sums(extended).astype(np.float32)

    def _row_sums(self, extended: Float64) -> Float64:
        products = extended.take(self.local)
        if self.values is not None:
            products *= self.values
        if self.row_starts is None:
            sums: Float64 = np.add.reduce(products, axis=0)
            return sums
        rows = np.repeat(np.arange(self.n_rows), np.diff(self.row_starts))
        return _weighted_count(rows, products, self.n_rows)

    def rmatvec(self, errors: NDArray[Any]) -> Float64:
        """Return, for each id, the sum over the rows of error times value: the gradient of the weights.

        Args:
            errors: One number a row. Shape (n_rows,).

        Returns:
            One sum for each of ``ids``. Shape (n_ids,).
        """
        return self._id_sums(np.asarray(errors, np.float64))

    def _id_sums(self, errors: Float64) -> Float64:
        starts = self.row_starts
        entries = errors[None, :] if starts is None else np.repeat(errors, np.diff(starts))
        spread = np.broadcast_to(entries, self.local.shape) if self.values is None else entries * self.values
        n_ids = self.ids.size
        return _weighted_count(self.local.ravel(), spread.ravel(), n_ids + 1)[:n_ids]

    def matmat(self, w: NDArray[Any]) -> Float32:
        """Return the product of the rows with a matrix.

        Args:
            w: One row of weights for each of ``ids``. Shape (n_ids, width).

        Returns:
            Shape (n_rows, width).
        """
        n_ids, width = w.shape
        out = np.empty((self.n_rows, width), np.float32)
        if self.row_starts is None:
            # Whole rows of weights are gathered, as many columns at a time as fit a cache.
            for first in range(0, width, COLUMNS_AT_A_TIME):
                some = w[:, first : first + COLUMNS_AT_A_TIME]
                out[:, first : first + COLUMNS_AT_A_TIME] = self._padded_row_sums(some)
            return out
        column = np.zeros(n_ids + 1)
        for k in range(width):
            column[:-1] = w[:, k]
            out[:, k] = self._row_sums(column)
        return out

    def _padded_row_sums(self, w: NDArray[Any]) -> Float64:
        """Return sums as :meth:`_row_sums` does, for several columns: shape (n_rows, n_columns)."""
        # Products are exact in float64, and there are none where all values are 1.
        kind = np.float32 if self.values is None else np.float64
        extended = np.zeros((w.shape[0] + 1, w.shape[1]), kind)
        extended[:-1] = w
        products = extended.take(self.local, axis=0)
        if self.values is not None:
            products *= self.values[:, :, None]
        sums: Float64 = np.add.reduce(products, axis=0, dtype=np.float64)
        return sums

    def rmatmat(self, errors: NDArray[Any]) -> Float64:
        """Return, for each id and column of ``errors``, the sum over the rows of error times value.

        Args:
            errors: Shape (n_rows, width).

        Returns:
            Shape (n_ids, width).
        """
        errors = np.asarray(errors, np.float64)
        if self.row_starts is None:
            return self._padded_id_sums(errors)
        out = np.empty((self.ids.size, errors.shape[1]))
        for k, column in enumerate(np.ascontiguousarray(errors.T)):
            out[:, k] = self._id_sums(column)
        return out

    def _padded_id_sums(self, errors: Float64) -> Float64:
        """Return sums as :meth:`_id_sums` does, for several columns: two at a time, as complex numbers."""
        n_ids, width = self.ids.size, errors.shape[1]
        pairs = np.zeros((self.n_rows, -(-width // 2)), np.complex128)
        pairs.view(np.float64)[:, :width] = errors
        out = np.empty((n_ids, 2 * pairs.shape[1]))
        spread = np.empty((min(len(self.local), ENTRIES_AT_A_TIME), self.n_rows), np.complex128)
        for k, pair in enumerate(np.ascontiguousarray(pairs.T)):
            if self.values is None:
                spread[:] = pair
            sums = np.zeros(n_ids + 1, np.complex128)
            for first in range(0, len(self.local), ENTRIES_AT_A_TIME):
                local = self.local[first : first + ENTRIES_AT_A_TIME]
                some = spread[: len(local)]
                if self.values is not None:
                    values = self.values[first : first + ENTRIES_AT_A_TIME]
                    np.multiply(pair.real, values, out=some.real)
                    np.multiply(pair.imag, values, out=some.imag)
                np.add.at(sums, local.ravel(), some.ravel())
            out.view(np.complex128)[:, k] = sums[:n_ids]
        return out[:, :width]

    def rows(self, start: int, stop: int) -> Block:
        """Return the rows from ``start`` up to ``stop``, with the ids that occur in them."""
        start, stop, _ = slice(start, stop).indices(self.n_rows)
        if start == 0 and stop == self.n_rows:
            return self
        stop = max(start, stop)
        if self.row_starts is None:
            row_starts = None
            local = self.local[:, start:stop]
            values = None if self.values is None else self.values[:, start:stop]
        else:
            first, last = self.row_starts[start], self.row_starts[stop]
            row_starts = self.row_starts[start : stop + 1] - first
            local = self.local[first:last]
            values = None if self.values is None else self.values[first:last]
        weights = None if self.weights is None else self.weights[start:stop]
        return _renumbered(self.ids, self.labels[start:stop], local, row_starts, values, weights)

    def select(self, rows: Positions) -> Block:
        """Return the rows with these numbers, in that order, with the ids that occur in them."""
        labels = self.labels[rows]
        weights = None if self.weights is None else self.weights[rows]
        if self.row_starts is None:
            values = None if self.values is None else self.values[:, rows]
            return _renumbered(self.ids, labels, self.local[:, rows], None, values, weights)
        lengths = np.diff(self.row_starts)[rows]
        row_starts = np.zeros(rows.size + 1, np.intp)
        np.cumsum(lengths, out=row_starts[1:])
        # Where each chosen entry lies: its row's start, and its place in the row.
        entries = np.repeat(self.row_starts[rows] - row_starts[:-1], lengths) + np.arange(row_starts[-1])
        values = None if self.values is None else self.values[entries]
        return _renumbered(self.ids, labels, self.local[entries], row_starts, values, weights)

    def squared(self) -> Block:
        """Return the block with every value squared, as factorization machines need it."""
        return self if self.values is None else replace(self, values=self.values * self.values)

    @staticmethod
    def merge(blocks: Sequence[Block]) -> Block:
        """Return the rows of several blocks, in order, as one block.

        Raises:
            ConfigError: There are none.
        """
        if not blocks:
            raise ConfigError("blocks", "merge needs at least one")
        if len(blocks) == 1:
            return blocks[0]
        ids, maps = _union([b.ids for b in blocks])
        labels = np.concatenate([b.labels for b in blocks])
        weights = _merged(blocks, [b.weights for b in blocks])
        if all(b.row_starts is None and len(b.local) == len(blocks[0].local) for b in blocks):
            local = np.concatenate([m.take(b.local) for m, b in zip(maps, blocks, strict=True)], axis=1)
            values = _merged_values(blocks, [b.values for b in blocks], axis=1)
            return Block(ids, labels, local, None, values, weights)
        rows = [b._entries() for b in blocks]
        lengths = np.concatenate([r[0] for r in rows])
        flat = np.concatenate([m.take(r[1]) for m, r in zip(maps, rows, strict=True)])
        have_values = any(b.values is not None for b in blocks)
        flat_values = np.concatenate([r[2] for r in rows]) if have_values else None
        return _laid_out(ids, labels, lengths, flat, flat_values, weights)

    @staticmethod
    def from_csr(
        indptr: NDArray[Any],
        indices: NDArray[Any],
        values: NDArray[Any] | None,
        labels: NDArray[Any],
        weights: NDArray[Any] | None = None,
        *,
        numbering: Numbering | None = None,
    ) -> Block:
        """Make a block of rows given as CSR arrays with global feature ids.

        Columns need not be sorted. Entries of one row and column are summed, and zeros are left out: to a
        sparse model they are the same as no entry.

        Args:
            indptr: Where each row begins. Shape (n_rows + 1,).
            indices: Feature ids below 2**32. Shape (nnz,).
            values: Shape (nnz,). None: all are 1.
            labels: Shape (n_rows,).
            weights: Sample weights. Shape (n_rows,). None: all are 1.
            numbering: A faster way to number the ids; None: that of numpy.
        """
        starts = np.asarray(indptr, np.intp)
        lengths = np.diff(starts)
        columns = np.asarray(indices)[starts[0] : starts[-1]]
        data = None if values is None else np.asarray(values, np.float32)[starts[0] : starts[-1]]
        lengths, columns, data = _canonical(lengths, columns, data)
        ids, local = (numbering or _numbered)(columns)
        return _laid_out(
            ids,
            np.asarray(labels, np.float32),
            lengths,
            local,
            data,
            None if weights is None else np.asarray(weights, np.float32),
        )

    @staticmethod
    def from_columns(
        ids: Ids,
        local: Positions,
        values: Float32 | None,
        labels: Float32,
        weights: Float32 | None = None,
    ) -> Block:
        """Make a block of the columns of a table, where they are filled enough to be kept as they are.

        Args:
            ids: See :class:`Block`.
            local: In the padded layout. Shape (n_columns, n_rows).
            values: Shape (n_columns, n_rows), 0 where there is no entry. None: every value is 1.
            labels: Shape (n_rows,).
            weights: Sample weights. Shape (n_rows,). None: all are 1.
        """
        block = Block(ids, labels, local, None, values, weights)
        if local.size - block.nnz <= MAX_COLUMN_PADDING * local.size:
            return block
        lengths, entries, numbers = block._entries()
        return _laid_out(ids, labels, lengths, entries, None if values is None else numbers, weights)

    def to_csr(self) -> tuple[Positions, Ids, Float32]:
        """Return (indptr, indices, values): rows in order, global ids ascending within a row."""
        lengths, local, values = self._entries()
        order = _row_order(lengths, local)
        if order is not None:
            local, values = local[order], values[order]
        indptr = np.zeros(self.n_rows + 1, np.intp)
        np.cumsum(lengths, out=indptr[1:])
        return indptr, self.ids[local], values

    def _entries(self) -> tuple[Positions, Positions, Float32]:
        """Return row lengths, and the entries' positions and values row after row."""
        if self.row_starts is not None:
            values = np.ones(self.local.size, np.float32) if self.values is None else self.values
            return np.diff(self.row_starts), self.local, values
        by_row = self.local.T
        real = by_row != self.ids.size
        local = by_row[real]
        values = np.ones(local.size, np.float32) if self.values is None else self.values.T[real]
        return real.sum(axis=1), local, values


def _row_order(lengths: Positions, local: Positions) -> Positions | None:
    """Return the order in which entries ascend within their rows; None: they do so as they are."""
    rows = np.repeat(np.arange(lengths.size), lengths)
    if ((local[1:] > local[:-1]) | (rows[1:] != rows[:-1])).all():
        return None
    return np.lexsort((local, rows))


def _renumbered(
    ids: Ids,
    labels: Float32,
    local: Positions,
    row_starts: Positions | None,
    values: Float32 | None,
    weights: Float32 | None,
) -> Block:
    """Make a block of some of a block's rows: drop the ids that do not occur."""
    flat = local.ravel()
    occurs = np.zeros(ids.size + 1, np.bool_)
    occurs[flat] = True
    kept = np.flatnonzero(occurs[:-1])
    # The count of occurring ids before each one is its new position; for padding, that is their number.
    renumber = np.cumsum(occurs, dtype=np.intp)
    renumber -= 1
    local = renumber.take(flat).reshape(local.shape)
    if row_starts is None and occurs[-1]:
        row_length = len(local)
        while row_length and (local[row_length - 1] == kept.size).all():
            row_length -= 1
        local = local[:row_length]
        values = None if values is None else values[:row_length]
    values = None if values is None else np.ascontiguousarray(values)
    return Block(ids.take(kept), labels, local, row_starts, values, weights)


def _laid_out(
    ids: Ids,
    labels: Float32,
    lengths: Positions,
    local: Positions,
    values: Float32 | None,
    weights: Float32 | None,
) -> Block:
    """Make a block of entries given row after row, in the layout that suits the rows' lengths."""
    n_rows = lengths.size
    row_length = int(lengths.max(initial=0))
    n_padded = row_length * n_rows
    if n_padded - local.size > MAX_PADDING * n_padded:
        row_starts = np.zeros(n_rows + 1, np.intp)
        np.cumsum(lengths, out=row_starts[1:])
        return Block(ids, labels, local, row_starts, values, weights)
    if n_padded == local.size:
        padded = local.reshape(n_rows, row_length)
        padded_values = None if values is None else values.reshape(n_rows, row_length)
    else:
        real = np.arange(row_length) < lengths[:, None]
        padded = np.full((n_rows, row_length), ids.size, np.intp)
        padded[real] = local
        padded_values = None
        if values is not None:
            padded_values = np.zeros((n_rows, row_length), np.float32)
            padded_values[real] = values
    return Block(
        ids,
        labels,
        np.ascontiguousarray(padded.T),
        None,
        None if padded_values is None else np.ascontiguousarray(padded_values.T),
        weights,
    )


def _canonical(
    lengths: Positions, columns: NDArray[Any], values: Float32 | None
) -> tuple[Positions, NDArray[Any], Float32 | None]:
    """Sort the columns of each row, sum its duplicates, leave out its zeros."""
    n_rows = lengths.size
    rows = np.repeat(np.arange(n_rows), lengths)
    ascends = (columns[1:] > columns[:-1]) | (rows[1:] != rows[:-1])
    if not ascends.all():
        order = np.lexsort((columns, rows))
        rows, columns = rows[order], columns[order]
        values = np.ones(columns.size, np.float32) if values is None else values[order]
        is_new = np.ones(len(columns), np.bool_)
        is_new[1:] = (columns[1:] != columns[:-1]) | (rows[1:] != rows[:-1])
        values = np.add.reduceat(values, np.flatnonzero(is_new), dtype=np.float64).astype(np.float32)
        rows, columns = rows[is_new], columns[is_new]
    if values is not None:
        real = values != 0
        if not real.all():
            rows, columns, values = rows[real], columns[real], values[real]
        if (values == 1).all():
            values = None
    return np.bincount(rows, minlength=n_rows), columns, values


def _numbered(columns: NDArray[Any]) -> tuple[Ids, Positions]:
    """Return the ids that occur, and each entry's position among them."""
    if columns.size == 0:
        return np.empty(0, np.uint32), np.empty(0, np.intp)
    bound = int(columns.max()) + 1
    if bound > LOOKUP_RATIO * columns.size:
        ids, local = np.unique(columns, return_inverse=True)
        return ids.astype(np.uint32), local.astype(np.intp, copy=False)
    occurs = np.zeros(bound, np.bool_)
    occurs[columns] = True
    renumber = np.cumsum(occurs, dtype=np.intp)
    renumber -= 1
    return np.flatnonzero(occurs).astype(np.uint32), renumber.take(columns)


def _union(parts: Sequence[Ids]) -> tuple[Ids, list[Positions]]:
    """Return the ids of several ascending lists in one, and for each list where its ids are in that.

    Each of the maps has one more entry, so that what is padding in a block stays padding.
    """
    every = np.concatenate(parts)
    order = np.argsort(every, kind="stable")  # timsort: merges the runs, which is much faster than sorting
    ascending = every[order]
    is_new = np.ones(every.size, np.bool_)
    np.not_equal(ascending[1:], ascending[:-1], out=is_new[1:])
    ids = ascending[is_new]
    rank = np.cumsum(is_new, dtype=np.intp)
    rank -= 1
    position = np.empty(every.size, np.intp)
    position[order] = rank
    ends = np.cumsum([part.size for part in parts])
    return ids, [np.append(position[e - p.size : e], ids.size) for e, p in zip(ends, parts, strict=True)]


def _weighted_count(bins: Positions, weights: Float64, n_bins: int) -> Float64:
    # Weighted counts are float64 already, which the types of numpy do not say.
    return np.bincount(bins, weights=weights, minlength=n_bins).astype(np.float64, copy=False)


def _merged(blocks: Sequence[Block], parts: Sequence[Float32 | None]) -> Float32 | None:
    if all(part is None for part in parts):
        return None
    return np.concatenate(
        [np.ones(b.n_rows, np.float32) if p is None else p for b, p in zip(blocks, parts, strict=True)]
    )


def _merged_values(blocks: Sequence[Block], parts: Sequence[Float32 | None], axis: int) -> Float32 | None:
    if all(part is None for part in parts):
        return None
    filled = [
        (b.local != b.ids.size).astype(np.float32) if p is None else p
        for b, p in zip(blocks, parts, strict=True)
    ]
    return np.concatenate(filled, axis=axis)
