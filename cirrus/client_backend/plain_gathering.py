"""What :mod:`~cirrus.client_backend.numbering` does, in numpy: the same results, more slowly."""

from __future__ import annotations

from typing import Any

import mmh3
import numpy as np
from numpy.typing import NDArray

from cirrus.client_backend.field_rows import NO_FEATURE


def number_ids(columns: NDArray[np.uint32]) -> tuple[NDArray[np.uint32], NDArray[np.intp]]:
    """See :func:`cirrus.client_backend.numbering.number_ids`."""
    ids, positions = np.unique(columns, return_inverse=True)
    return ids, positions.astype(np.intp, copy=False)


def number_fields(
    columns: NDArray[np.uint32], values: NDArray[np.float32]
) -> tuple[NDArray[np.uint32], NDArray[np.intp], NDArray[np.float32], bool]:
    """See :func:`cirrus.client_backend.numbering.number_fields`."""
    n_rows, n_fields = columns.shape
    ids, positions = np.unique(columns.ravel(), return_inverse=True)
    n_ids = ids.size - int(ids.size > 0 and ids[-1] == NO_FEATURE)
    local = np.ascontiguousarray(positions.reshape(n_rows, n_fields).T, dtype=np.intp)
    out = np.ones((n_fields, n_rows), np.float32)
    out[: values.shape[1]] = values.T
    out[local == n_ids] = 0
    has_values = bool((out[local < n_ids] != 1).any())
    for k in range(1, n_fields):
        for first in range(k):
            same = (local[k] == local[first]) & (local[k] < n_ids)
            if same.any():
                out[first, same] += out[k, same]
                out[k, same], local[k, same] = 0, n_ids
                has_values = True
    return ids[:n_ids], local, out, has_values


def take_entries(
    entries: NDArray[Any], chosen: NDArray[np.intp], starts: NDArray[np.int64], out: NDArray[Any]
) -> None:
    """See :func:`cirrus.client_backend.numbering.take_entries`."""
    lengths = starts[chosen + 1] - starts[chosen]
    before = np.cumsum(lengths) - lengths
    out[:] = entries[np.arange(out.size) + np.repeat(starts[chosen] - before, lengths)]


def tidy_rows(lengths: NDArray[np.uint32], columns: NDArray[np.uint32], values: NDArray[np.float32]) -> int:
    """See :func:`cirrus.client_backend.numbering.tidy_rows`."""
    n_rows, n_entries = lengths.size, columns.size
    rows = np.repeat(np.arange(n_rows), lengths)
    order = np.lexsort((columns, rows))  # stable: what is added up is added in the row's order
    sorted_rows, sorted_columns = rows[order], columns[order]
    begins = np.ones(n_entries, np.bool_)
    begins[1:] = (sorted_rows[1:] != sorted_rows[:-1]) | (sorted_columns[1:] != sorted_columns[:-1])
    firsts = np.flatnonzero(begins)
    # One after the other, as the loop adds them: reduceat would add in another order.
    totals = np.zeros(firsts.size)
    np.add.at(totals, np.cumsum(begins) - 1, values[order])
    kept = totals.astype(np.float32) != 0
    chosen, n = firsts[kept], int(kept.sum())
    lengths[:] = np.bincount(sorted_rows[chosen], minlength=n_rows)
    columns[:n], values[:n] = sorted_columns[chosen], totals[kept]
    return n


def murmur3(text: NDArray[np.uint8], length: int) -> np.uint32:
    """See :func:`cirrus.client_backend.csv_kernels.murmur3`."""
    return np.uint32(mmh3.hash(text[:length].tobytes(), signed=False))
