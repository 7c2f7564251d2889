"""What is known of each column: counts, extremes, mean and variance, of parts that can be merged exactly.

A column's entries are summed up alone; rows without an entry, which mean zero, are added at the end
(:meth:`ColumnStatistics.with_zeros`). Parts are merged as Chan, Golub and LeVeque do it, so that nothing is
lost where a mean is large and a variance small.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from cirrus.chunks import Block

Float64 = NDArray[np.float64]

#: Parts are merged when they hold this many columns together: some 25 MB.
FOLD_COLUMNS = 2**19
#: So many columns are merged at once.
MERGE_COLUMNS = 2**18


@dataclass(frozen=True, slots=True, eq=False)
class ColumnStatistics:
    """Statistics of the columns that occur. All arrays are of shape (n_ids,)."""

    ids: NDArray[np.uint32]
    """Ascending."""
    counts: NDArray[np.int64]
    """Entries."""
    means: Float64
    squares: Float64
    """Summed squares of the entries' distances from their mean."""
    minima: Float64
    maxima: Float64

    @classmethod
    def empty(cls) -> ColumnStatistics:
        """Return the statistics of no rows."""
        none = np.empty(0)
        return cls(np.empty(0, np.uint32), np.empty(0, np.int64), none, none, none, none)

    @classmethod
    def of_block(cls, block: Block) -> ColumnStatistics:
        """Return the statistics of a block."""
        n_ids = block.ids.size
        local = block.local.ravel()
        counts = np.bincount(local, minlength=n_ids + 1)[:n_ids]
        if block.values is None:
            ones = np.ones(n_ids)
            return cls(block.ids, counts, ones, np.zeros(n_ids), ones, ones)
        values = block.values.ravel().astype(np.float64)
        means = np.bincount(local, weights=values, minlength=n_ids + 1)[:n_ids] / np.maximum(counts, 1)
        minima, maxima = np.full(n_ids + 1, np.inf), np.full(n_ids + 1, -np.inf)
        np.minimum.at(minima, local, values)
        np.maximum.at(maxima, local, values)
        # A column of equal values has a variance of 0, whatever rounding makes of its mean.
        means = np.clip(means, minima[:n_ids], maxima[:n_ids])
        distances = values - np.append(means, 0.0).take(local)
        squares = np.bincount(local, weights=distances * distances, minlength=n_ids + 1)[:n_ids].astype(
            np.float64, copy=False
        )
        return cls(block.ids, counts, means, squares, minima[:n_ids], maxima[:n_ids])

    @classmethod
    def merge(cls, parts: Sequence[ColumnStatistics], at_once: int = MERGE_COLUMNS) -> ColumnStatistics:
        """Return the statistics of all rows of several parts.

        Args:
            parts: Of different rows.
            at_once: So many columns, added up over the parts, are merged at a time.
        """
        n_ranges = -(-sum(part.ids.size for part in parts) // at_once)
        if n_ranges <= 1:
            return cls._merge(parts)
        # In ranges of columns, since that takes several times the memory of what is merged.
        largest = max((part.ids for part in parts), key=len)
        cuts = largest[np.linspace(0, largest.size, n_ranges + 1).astype(np.intp)[1:-1]]
        places = [[0, *np.searchsorted(part.ids, cuts).tolist(), part.ids.size] for part in parts]
        merged = [
            cls._merge([part._range(p[k], p[k + 1]) for part, p in zip(parts, places, strict=True)])
            for k in range(n_ranges)
        ]
        names = [field.name for field in fields(cls)]
        return cls(**{name: np.concatenate([getattr(part, name) for part in merged]) for name in names})

    def _range(self, start: int, stop: int) -> ColumnStatistics:
        """Return the statistics of some columns, by their places."""
        names = [field.name for field in fields(self)]
        return ColumnStatistics(**{name: getattr(self, name)[start:stop] for name in names})

    @classmethod
    def _merge(cls, parts: Sequence[ColumnStatistics]) -> ColumnStatistics:
        parts = [part for part in parts if part.ids.size]
        if not parts:
            return cls.empty()
        if len(parts) == 1:
            return parts[0]
        every = np.concatenate([part.ids for part in parts])
        order = np.argsort(every, kind="stable")
        ids = every[order]
        is_first = np.ones(ids.size, np.bool_)
        np.not_equal(ids[1:], ids[:-1], out=is_first[1:])
        starts = np.flatnonzero(is_first)
        group = np.cumsum(is_first) - 1
        counts = np.concatenate([part.counts for part in parts])[order]
        means = np.concatenate([part.means for part in parts])[order]
        squares = np.concatenate([part.squares for part in parts])[order]
        minima = np.minimum.reduceat(np.concatenate([part.minima for part in parts])[order], starts)
        maxima = np.maximum.reduceat(np.concatenate([part.maxima for part in parts])[order], starts)
        totals = np.add.reduceat(counts, starts)
        # Around one of the means, so that equal means stay as they are to the last bit.
        origin = means[starts]
        shifts = means - origin[group]
        merged = origin + np.add.reduceat(counts * shifts, starts) / totals
        between = means - merged[group]
        return cls(
            ids=ids[starts],
            counts=totals,
            means=merged,
            squares=np.add.reduceat(squares + counts * between * between, starts),
            minima=minima,
            maxima=maxima,
        )

    @classmethod
    def of_blocks(cls, blocks: Iterable[Block]) -> ColumnStatistics:
        """Return the statistics of all rows of some blocks, in bounded memory."""
        parts: list[ColumnStatistics] = []
        n_columns = 0
        for block in blocks:
            part = cls.of_block(block)
            parts.append(part)
            n_columns += part.ids.size
            if n_columns >= FOLD_COLUMNS and len(parts) > 1:
                parts = [cls.merge(parts)]
                # What is merged is not counted: else a wide dataset would be merged with every block.
                n_columns = 0
        return cls.merge(parts)

    def below(self, column: int) -> ColumnStatistics:
        """Return the statistics of the columns before one."""
        return self._range(0, int(np.searchsorted(self.ids, column)))

    def count_of(self, column: int) -> int:
        """Return the number of entries in a column."""
        place = int(np.searchsorted(self.ids, column))
        return int(self.counts[place]) if place < self.ids.size and self.ids[place] == column else 0

    def with_zeros(self, n_rows: int) -> ColumnStatistics:
        """Return the statistics of the same columns over every row, where no entry means zero.

        Args:
            n_rows: Rows that these statistics are of.

        Returns:
            ``counts`` is still the number of entries. In columns that do not occur, all else is 0.
        """
        n_zeros = n_rows - self.counts
        shares = self.counts / n_rows
        return ColumnStatistics(
            ids=self.ids,
            counts=self.counts,
            means=self.means * shares,
            squares=self.squares + self.means**2 * n_zeros * shares,
            minima=np.where(n_zeros > 0, np.minimum(self.minima, 0.0), self.minima),
            maxima=np.where(n_zeros > 0, np.maximum(self.maxima, 0.0), self.maxima),
        )
