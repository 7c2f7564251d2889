"""Gathering the entries of a block and numbering its ids, compiled: most of the work of making blocks."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

#: Ids are sorted by this many bits at a time: counters that fit in the first-level cache.
_DIGIT_BITS = 11


@numba.njit(cache=True, nogil=True)
def number_ids(columns: NDArray[np.uint32]) -> tuple[NDArray[np.uint32], NDArray[np.intp]]:
    """Return the ids that occur, ascending, and each entry's position among them.

    Args:
        columns: Feature ids. Shape (n_entries,).
    """
    n = columns.size
    keys = columns.copy()
    order = np.arange(n).astype(np.intp)
    other_keys = np.empty_like(keys)
    other_order = np.empty_like(order)
    highest = keys.max() if n else np.uint32(0)
    shift = 0
    while shift < 32 and highest >> shift > 0:
        starts = np.zeros((1 << _DIGIT_BITS) + 1, np.int64)
        for i in range(n):
            starts[((keys[i] >> shift) & ((1 << _DIGIT_BITS) - 1)) + 1] += 1
        for digit in range(1 << _DIGIT_BITS):
            starts[digit + 1] += starts[digit]
        for i in range(n):
            digit = (keys[i] >> shift) & ((1 << _DIGIT_BITS) - 1)
            at = starts[digit]
            starts[digit] = at + 1
            other_keys[at] = keys[i]
            other_order[at] = order[i]
        keys, other_keys = other_keys, keys
        order, other_order = other_order, order
        shift += _DIGIT_BITS
    positions = other_order
    n_ids = 0
    for i in range(n):
        if i == 0 or keys[i] != keys[n_ids - 1]:
            keys[n_ids] = keys[i]
            n_ids += 1
        positions[order[i]] = n_ids - 1
    return keys[:n_ids].copy(), positions


@numba.njit(cache=True, nogil=True)
def take_entries(
    entries: NDArray[Any], chosen: NDArray[np.intp], starts: NDArray[np.int64], out: NDArray[Any]
) -> None:
    """Gather the entries of some rows, in the order wanted.

    Args:
        entries: Row after row. Shape (n_entries,).
        chosen: Row numbers. Shape (n_chosen,).
        starts: Where each row begins and the last one ends. Shape (n_rows + 1,).
        out: Takes the entries, and has room for just these.
    """
    n = 0
    for row in chosen:
        for i in range(starts[row], starts[row + 1]):
            out[n] = entries[i]
            n += 1


@numba.njit(cache=True, nogil=True)
def tidy_rows(lengths: NDArray[np.uint32], columns: NDArray[np.uint32], values: NDArray[np.float32]) -> int:
    """Sort the entries of each row by column, add up those of one column, and leave out zeros, in place.

    Args:
        lengths: Entries of each row. Shape (n_rows,).
        columns: Row after row. Shape (n_entries,).
        values: Shape (n_entries,).

    Returns:
        The number of entries that are left, at the beginning of the arrays.
    """
    n = 0
    start = 0
    for row in range(lengths.size):
        end = start + lengths[row]
        order = np.argsort(columns[start:end], kind="mergesort")
        sorted_columns = columns[start:end][order]
        sorted_values = values[start:end][order]
        first = n
        at = 0
        while at < order.size:
            column = sorted_columns[at]
            total = 0.0
            while at < order.size and sorted_columns[at] == column:
                total += sorted_values[at]
                at += 1
            if np.float32(total) != 0:
                columns[n] = column
                values[n] = total
                n += 1
        lengths[row] = n - first
        start = end
    return n
