"""Arrays in memory, stored as a dataset."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cirrus.chunks import (
    BLOCK_ROWS,
    Block,
    ChunkWriter,
    Manifest,
    commit_dataset,
    discard_chunks,
    new_chunk_prefix,
)
from cirrus.chunks.vocabulary import Vocabulary, store_vocabulary
from cirrus.chunks.writer import find_replaced
from cirrus.client_backend.loader import LoadProgress
from cirrus.errors import DataError
from cirrus.storage import ObjectStore


def store_arrays(
    X: Any,
    y: Any,
    store: ObjectStore,
    *,
    sample_weight: Any = None,
    shuffle: bool = True,
    random_state: int | None = None,
    encoding: Mapping[str, Any] | None = None,
    vocabularies: Mapping[str, Vocabulary] | None = None,
    progress: Callable[[LoadProgress], None] | None = None,
) -> Manifest:
    """Store arrays as a dataset.

    Args:
        X: Array or scipy.sparse matrix of shape (n_rows, n_features).
        y: Labels, numbers or text, of shape (n_rows,).
        store: Where to; a dataset that is there is replaced.
        sample_weight: Weights >= 0 of shape (n_rows,), or None.
        shuffle: Spread the rows over the blocks at random.
        random_state: Seed of that.
        encoding: What the columns are.
        vocabularies: What they are called.
        progress: Told after each block.

    Raises:
        DataError: The shapes do not fit, or there are values that are not finite.
        ConflictError: Another dataset was stored there meanwhile.
    """
    from scipy.sparse import csr_array  # which takes longer to import than all else that loading files needs

    replaces = find_replaced(store)
    rows = _as_rows(X)
    n_rows, n_features = rows.shape
    labels, names = code_labels(_column(y, n_rows, "y"))
    weights = None if sample_weight is None else _weights(_column(sample_weight, n_rows, "sample_weight"))
    order = np.random.default_rng(random_state).permutation(n_rows) if shuffle else np.arange(n_rows)
    prefix = new_chunk_prefix()
    writer = ChunkWriter(store, prefix)
    try:
        for first in range(0, n_rows, BLOCK_ROWS):
            chosen = order[first : first + BLOCK_ROWS]
            part = csr_array(rows[chosen])
            writer.add(
                Block.from_csr(
                    part.indptr,
                    part.indices,
                    _finite(part.data, "X"),
                    labels[chosen],
                    None if weights is None else weights[chosen],
                )
            )
            if progress is not None:
                progress(_progress(rows, first + chosen.size))
        writer.flush()
        return commit_dataset(
            store,
            writer.chunks,
            writer.summary,
            n_features=n_features,
            label_names=names,
            encoding=encoding,
            vocabularies=tuple(
                store_vocabulary(store, prefix, name, vocabulary.to_bytes())
                for name, vocabulary in (vocabularies or {}).items()
            ),
            replaces=replaces,
        )
    except BaseException:
        discard_chunks(store, prefix)
        raise


def _progress(rows: Any, n_done: int) -> LoadProgress:
    n_bytes = int(rows.data.nbytes)
    return LoadProgress(bytes_done=n_bytes * n_done // rows.shape[0], bytes_total=n_bytes, rows=n_done)


def _as_rows(X: Any) -> Any:
    """Return X as an array or CSR matrix of two dimensions."""
    from scipy.sparse import csr_array, issparse

    rows = csr_array(X) if issparse(X) else np.asarray(X)
    if rows.ndim != 2:
        raise DataError(f"X: must have two dimensions, got shape {rows.shape}")
    if rows.dtype.kind not in "biuf":
        raise DataError(f"X: must hold numbers, got {rows.dtype}: encode text as numbers, or use load_csv")
    if rows.shape[0] == 0 or rows.shape[1] == 0:
        raise DataError(f"X: has no rows or no columns, its shape is {rows.shape}")
    return rows


def _column(values: Any, n_rows: int, name: str) -> NDArray[Any]:
    column = np.asarray(values)
    if column.shape != (n_rows,):
        raise DataError(f"{name}: must have shape ({n_rows},) as X has {n_rows} rows, got {column.shape}")
    return column


def _finite(values: NDArray[Any], name: str) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32)
    if not np.isfinite(narrow).all():
        raise DataError(f"{name}: holds NaN, infinity or a number too large for float32: clean or scale it")
    return narrow


def _weights(values: NDArray[Any]) -> NDArray[np.float32]:
    if values.dtype.kind not in "biuf":
        raise DataError(f"sample_weight: must be numbers, got {values.dtype}")
    weights = _finite(values, "sample_weight")
    if (weights < 0).any():
        raise DataError("sample_weight: must not be negative")
    return weights


def code_labels(y: NDArray[Any]) -> tuple[NDArray[np.float32], tuple[str, ...] | None]:
    """Return labels as float32 numbers, and the names that stand behind them if they were text.

    Text is numbered 0, 1, ... in sorted order.

    Raises:
        DataError: A number is not finite, or whole and too large to be told from its neighbours in float32.
    """
    if y.dtype.kind in "biuf":
        labels = _finite(y, "y")
        if y.dtype.kind in "iu" and not np.array_equal(labels.astype(np.float64), y.astype(np.float64)):
            raise DataError(
                "y: holds whole numbers beyond 2**24, which float32 cannot hold: use text or scale"
            )
        return labels, None
    if y.dtype.kind == "O" and not all(isinstance(label, str) for label in y.tolist()):
        try:
            return code_labels(y.astype(np.float64))
        except (TypeError, ValueError) as error:
            raise DataError("y: labels must be all numbers or all text") from error
    names, codes = np.unique(y.astype(np.str_), return_inverse=True)
    return codes.astype(np.float32), tuple(names.tolist())
