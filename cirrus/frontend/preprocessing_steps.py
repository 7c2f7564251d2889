"""What was done to a dataset's columns, as its manifest remembers it, and doing it again to raw rows."""

from __future__ import annotations

import base64
import binascii
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lz4.block
import numpy as np
import numpy.typing as npt
import scipy.sparse

from cirrus.chunks import Block
from cirrus.errors import ConfigError, CorruptDataError, DataError
from cirrus.worker_runtime.column_map import BlockRewriter, ColumnMap

Array = npt.NDArray[Any]

#: Feature ids have 32 bits.
MAX_FEATURES = 2**32
#: Zeros that are filled into sparse matrices by themselves: some 3 GB.
MAX_FILLED = 2**28
#: They are filled into so many entries at a time.
ROWS_AT_A_TIME_ENTRIES = 2**22

_DTYPES = {
    "factor": "<f8",
    "offset": "<f8",
    "target": "<u4",
    "clip": "<f8",
    "hash": "<i8",
    "hash_columns": "<u4",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """One preprocessing of columns."""

    name: str
    """Class that did it."""
    columns: ColumnMap
    n_features_in: int
    n_features_out: int

    @classmethod
    def of(cls, columns: ColumnMap, name: str, n_features_in: int, n_features_out: int) -> Step:
        """Return a step."""
        return cls(name=name, columns=columns, n_features_in=n_features_in, n_features_out=n_features_out)

    def to_plain(self) -> dict[str, Any]:
        """Return the step as what JSON can hold."""
        arrays = {name: _encode(name, array) for name, array in self.columns.to_arrays().items()}
        return {
            "name": self.name,
            "n_features_in": self.n_features_in,
            "n_features_out": self.n_features_out,
            "arrays": arrays,
        }

    @classmethod
    def from_plain(cls, raw: Any) -> Step:
        """Read a step back.

        Raises:
            CorruptDataError: It is none.
        """
        try:
            arrays = {name: _decode(name, text) for name, text in raw["arrays"].items()}
            step = cls.of(
                ColumnMap.from_arrays(arrays),
                str(raw["name"]),
                int(raw["n_features_in"]),
                int(raw["n_features_out"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
            raise CorruptDataError(f"preprocessing: is not what Cirrus wrote: {error}") from error
        for name in ("factor", "offset", "target"):
            if name in arrays and arrays[name].shape != (step.n_features_in,):
                raise CorruptDataError(f"preprocessing: {name} is not of {step.n_features_in} columns")
        step._check_targets()
        return step

    def _check_targets(self) -> None:
        """Refuse entries that would be written beyond the rows' end."""
        target, hashing = self.columns.target, self.columns.hashing
        if not (1 <= self.n_features_in <= MAX_FEATURES and 1 <= self.n_features_out <= MAX_FEATURES):
            raise CorruptDataError(
                f"preprocessing: {self.n_features_in} columns cannot become {self.n_features_out}"
            )
        if hashing is not None:
            widths = (hashing.n_features, hashing.n_features_out)
            if widths != (self.n_features_in, self.n_features_out):
                raise CorruptDataError("preprocessing: the hash is one of other columns")
        elif target is None and self.n_features_in != self.n_features_out:
            raise CorruptDataError("preprocessing: there is no target, but the number of columns changes")
        if target is not None and int(target.max()) >= self.n_features_out:
            raise CorruptDataError(f"preprocessing: a target is beyond {self.n_features_out} columns")

    @functools.cached_property
    def _filled(self) -> Array:
        return self.columns.filled_columns(self.n_features_in)

    def apply_dense(self, X: Array) -> Array:
        """Return an array with its columns mapped; NaN stays NaN."""
        self._check(X.shape[1])
        every = np.arange(X.shape[1])
        rows = self.columns.image(every, np.asarray(X, np.float64))
        if not self.columns.moves:
            return rows
        shape = (X.shape[1], self.n_features_out)
        spread = scipy.sparse.csr_array(
            (np.ones(X.shape[1]), (every, self.columns.targets(every))), shape=shape
        )
        mapped: Array = rows @ spread
        return mapped

    def apply_sparse(self, X: Any, *, fill: bool) -> Any:
        """Return a CSR matrix with its columns mapped.

        Args:
            X: CSR matrix.
            fill: Store zeros that do not stay zero.

        Raises:
            ConfigError: Zeros would not stay zero, and are not to be stored or too many.
        """
        self._check(X.shape[1])
        if fill and 0 < self._filled.size * X.shape[0] <= MAX_FILLED:
            n_rows = max(1, ROWS_AT_A_TIME_ENTRIES // self._filled.size)
            parts = [self._fill(X[i : i + n_rows]) for i in range(0, X.shape[0], n_rows)]
            return scipy.sparse.vstack(parts, format="csr")
        if self._filled.size:
            raise ConfigError(
                "X",
                f"is sparse, and {self.name} makes zeros of {self._filled.size} columns other numbers: "
                "give an array, or a Dataset where there are many rows",
            )
        return self._mapped(X)

    def _fill(self, X: Any) -> Any:
        """Return some rows with their columns mapped: those where zeros do not stay so as an array."""
        dense = self.columns.image(self._filled, X[:, self._filled].toarray().astype(np.float64))
        shape = (self._filled.size, self.n_features_out)
        ones = np.ones(self._filled.size)
        places = (np.arange(self._filled.size), self.columns.targets(self._filled))
        filled = scipy.sparse.csr_array(dense) @ scipy.sparse.csr_array((ones, places), shape=shape)
        is_kept = ~np.isin(X.indices, self._filled)
        starts = np.concatenate([[0], np.cumsum(is_kept)])[X.indptr]
        kept = scipy.sparse.csr_array((X.data[is_kept], X.indices[is_kept], starts), shape=X.shape)
        return self._mapped(kept) + filled

    def _mapped(self, X: Any) -> Any:
        """Return a CSR matrix with the columns of its entries mapped."""
        values = self.columns.image(X.indices, X.data.astype(np.float64))
        # As wide as the columns are many: indices and their starts are of one type.
        kind = X.indices.dtype if self.n_features_out < 2**31 else np.dtype(np.int64)
        indices = self.columns.targets(X.indices).astype(kind)
        mapped = scipy.sparse.csr_array(
            (values, indices, X.indptr.astype(kind)), shape=(X.shape[0], self.n_features_out)
        )
        if self.columns.moves:
            mapped.sum_duplicates()
        return mapped

    def apply_block(self, block: Block) -> Block:
        """Return a block of a dataset with its columns mapped."""
        return self._rewriter(block)

    def apply_in_parts(self, block: Block) -> Iterator[Block]:
        """Yield a block of a dataset with its columns mapped, as several where it gets large."""
        return self._rewriter.parts(block)

    @functools.cached_property
    def _rewriter(self) -> BlockRewriter:
        return BlockRewriter(self.columns, self.n_features_in)

    def _check(self, n_features: int) -> None:
        if n_features != self.n_features_in:
            raise DataError(
                f"X has {n_features} features, but the model's {self.name} is expecting {self.n_features_in}"
            )


def last_steps(encoding: Mapping[str, Any], done: Mapping[str, Any], name: str = "the dataset") -> list[Step]:
    """Return the steps of one encoding that another one has not had yet.

    Args:
        encoding: Of what a model was trained on.
        done: Of the rows at hand; empty: they are raw.
        name: What to call them in an error message.

    Raises:
        DataError: The rows have had other steps.
    """
    wanted: Sequence[Any] = encoding.get("preprocessing", ())
    had: Sequence[Any] = done.get("preprocessing", ())
    if list(wanted[: len(had)]) != list(had):
        raise DataError(f"{name}: was preprocessed in another way than what the model was trained on")
    return [Step.from_plain(raw) for raw in wanted[len(had) :]]


def apply_to_blocks(steps: Sequence[Step], blocks: Iterable[Block]) -> Iterator[Block]:
    """Yield blocks of a dataset with all steps applied; a block that gets large comes as several."""
    if not steps:
        yield from blocks
        return
    for block in blocks:
        yield from apply_to_blocks(steps[1:], steps[0].apply_in_parts(block))


def apply_to_array(steps: Sequence[Step], X: Any) -> Any:
    """Return an array or sparse matrix with all steps applied."""
    for step in steps:
        if scipy.sparse.issparse(X):
            X = step.apply_sparse(scipy.sparse.csr_array(X), fill=True)
        else:
            X = step.apply_dense(np.asarray(X))
    return X


def _encode(name: str, array: Array) -> str:
    raw = np.ascontiguousarray(array, _DTYPES[name]).tobytes()
    return base64.b64encode(lz4.block.compress(raw)).decode()


def _decode(name: str, text: str) -> Array:
    try:
        raw = lz4.block.decompress(base64.b64decode(text, validate=True))
    except (binascii.Error, lz4.block.LZ4BlockError) as error:
        raise CorruptDataError(f"preprocessing: {name} is damaged: {error}") from error
    return np.frombuffer(raw, _DTYPES[name])
