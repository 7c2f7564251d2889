"""Rewriting blocks column by column, which is what preprocessing comes down to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cirrus.chunks import Block
from cirrus.errors import CorruptDataError, DataError
from cirrus.worker_runtime.column_hash import ColumnHash

Float64 = NDArray[np.float64]

#: Rows are filled in parts of about this many entries.
FILL_ENTRIES = 2**19
#: Feature ids have 32 bits.
MAX_COLUMNS = 2**32


@dataclass(frozen=True, slots=True, eq=False)
class ColumnMap:
    """What becomes of an entry: ``clip(factor * value + offset)``, in the column ``target`` or as hashed.

    Arrays are of shape (n_features,), None where they change nothing.
    """

    factor: Float64 | None = None
    offset: Float64 | None = None
    target: NDArray[np.uint32] | None = None
    clip: tuple[float, float] | None = None
    hashing: ColumnHash | None = None
    """Where entries go instead of to a ``target``, and with which sign."""

    @property
    def moves(self) -> bool:
        """Whether entries go to other columns."""
        return self.target is not None or self.hashing is not None

    def targets(self, ids: NDArray[Any]) -> NDArray[Any]:
        """Return the new columns of entries in the columns ``ids``; shapes (n,)."""
        if self.hashing is not None:
            return self.hashing.look_up(ids)[0]
        return ids if self.target is None else self.target.take(ids)

    def image(self, ids: NDArray[Any], values: Float64) -> Float64:
        """Return what becomes of values in the columns ``ids``; shapes (n,)."""
        if self.hashing is not None:
            values = values * self.hashing.look_up(ids)[1]
        if self.factor is not None:
            values = values * self.factor.take(ids)
        if self.offset is not None:
            values = values + self.offset.take(ids)
        return values if self.clip is None else np.clip(values, *self.clip)

    def filled_columns(self, n_features: int) -> NDArray[np.int64]:
        """Return the columns whose zeros do not stay zero, so that all rows need an entry there."""
        if self.offset is None and self.clip is None:
            return np.empty(0, np.int64)
        every = np.arange(n_features)
        return np.flatnonzero(self.image(every, np.zeros(n_features)))

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the map as arrays, to be sent to workers."""
        arrays = {"factor": self.factor, "offset": self.offset, "target": self.target}
        found: dict[str, NDArray[Any]] = {name: value for name, value in arrays.items() if value is not None}
        if self.clip is not None:
            found["clip"] = np.array(self.clip)
        if (hashing := self.hashing) is not None:
            numbers = [hashing.n_features, hashing.n_buckets, int(hashing.alternate_sign)]
            found["hash"] = np.array(numbers, np.int64)
            if hashing.columns is not None:
                found["hash_columns"] = hashing.columns
        return found

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> ColumnMap:
        """Read what :meth:`to_arrays` gave.

        Raises:
            CorruptDataError: These are no such arrays.
        """
        clip = arrays.get("clip")
        known = {"factor", "offset", "target", "clip", "hash", "hash_columns"}
        if not set(arrays) <= known or (clip is not None and clip.shape != (2,)):
            raise CorruptDataError("a description of columns holds arrays that it cannot hold")
        return cls(
            hashing=_hashing(arrays),
            factor=arrays.get("factor"),
            offset=arrays.get("offset"),
            target=arrays.get("target"),
            clip=None if clip is None else (float(clip[0]), float(clip[1])),
        )


def _hashing(arrays: Mapping[str, NDArray[Any]]) -> ColumnHash | None:
    numbers, columns = arrays.get("hash"), arrays.get("hash_columns")
    if numbers is None and columns is None:
        return None
    if numbers is None or numbers.shape != (3,) or "target" in arrays:
        raise CorruptDataError("a description of columns does not say how they are hashed")
    n_features, n_buckets, alternate_sign = numbers.tolist()
    if not (1 <= n_features <= MAX_COLUMNS and 1 <= n_buckets <= MAX_COLUMNS):
        raise CorruptDataError(f"{n_features} columns cannot be hashed into {n_buckets}")
    if columns is not None and (
        columns.ndim != 1 or bool((columns[1:] <= columns[:-1]).any()) or bool((columns >= n_features).any())
    ):
        raise CorruptDataError("a description of columns hashes columns that there are not")
    return ColumnHash(n_features, n_buckets, bool(alternate_sign), columns)


class BlockRewriter:
    """Applies a map to blocks.

    Args:
        columns: The map.
        n_features: Columns of the blocks.
    """

    def __init__(self, columns: ColumnMap, n_features: int) -> None:
        self._columns = columns
        self._filled = columns.filled_columns(n_features)
        self._images = columns.image(self._filled, np.zeros(self._filled.size))

    def __call__(self, block: Block) -> Block:
        """Return the block with its entries mapped.

        Raises:
            DataError: A number gets too large for float32.
        """
        return Block.merge(list(self.parts(block)))

    def parts(self, block: Block) -> Iterator[Block]:
        """Yield what :meth:`__call__` returns, as several blocks where zeros are filled in by the million.

        Raises:
            DataError: A number gets too large for float32.
        """
        if not self._filled.size:
            yield self._mapped(block)
            return
        step = max(1, FILL_ENTRIES // self._filled.size)
        parts = (self._fill(block.rows(i, i + step)) for i in range(0, block.n_rows, step))
        if block.n_rows <= 2 * step:
            yield Block.merge(list(parts))
        else:
            yield from parts

    def _mapped(self, block: Block) -> Block:
        """Return the block with its entries mapped, where no zeros are filled in."""
        if not self._columns.moves and block.nnz == block.local.size:
            ids = block.ids.take(block.local.ravel())
            values = np.ones(ids.size) if block.values is None else block.values.ravel().astype(np.float64)
            narrow = _narrow(self._columns.image(ids, values))
            # Rows in column-major order are as good as any other while no entry turns to zero.
            if narrow.all():
                return replace(
                    block, values=None if (narrow == 1).all() else narrow.reshape(block.local.shape)
                )
        indptr, ids, entries = block.to_csr()
        narrow = _narrow(self._columns.image(ids, entries.astype(np.float64)))
        return Block.from_csr(indptr, self._columns.targets(ids), narrow, block.labels, block.weights)

    def _fill(self, block: Block) -> Block:
        indptr, ids, entries = block.to_csr()
        rows = np.repeat(np.arange(block.n_rows), np.diff(indptr))
        images = self._columns.image(ids, entries.astype(np.float64))
        place = np.searchsorted(self._filled, ids).clip(max=self._filled.size - 1)
        is_filled = self._filled[place] == ids
        dense = np.tile(self._images, (block.n_rows, 1))
        dense[rows[is_filled], place[is_filled]] = images[is_filled]
        rest = ~is_filled
        all_rows = np.concatenate([rows[rest], np.repeat(np.arange(block.n_rows), self._filled.size)])
        order = np.argsort(all_rows, kind="stable")
        all_ids = np.concatenate([ids[rest].astype(np.int64), np.tile(self._filled, block.n_rows)])[order]
        values = np.concatenate([images[rest], dense.ravel()])[order]
        starts = np.zeros(block.n_rows + 1, np.intp)
        np.cumsum(np.bincount(all_rows, minlength=block.n_rows), out=starts[1:])
        return Block.from_csr(
            starts, self._columns.targets(all_ids), _narrow(values), block.labels, block.weights
        )


def _narrow(values: Float64) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32)
    if not np.isfinite(narrow).all():
        raise DataError("a value is NaN, infinite or too large for float32 after preprocessing")
    return narrow
