"""Gathering the entries of a block and numbering its ids, compiled: most of the work of making blocks."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from cirrus.client_backend.bits import count_ones, trailing_zeros
from cirrus.client_backend.field_rows import NO_FEATURE

#: Ids are sorted by this many bits at a time: counters that fit in the first-level cache.
_DIGIT_BITS = 11
#: Rows that are turned into columns at once: a line of the cache of each column.
_TILE_ROWS = 8


@numba.njit(cache=True, nogil=True)
def number_ids(columns: NDArray[np.uint32]) -> tuple[NDArray[np.uint32], NDArray[np.intp]]:
    """Return the ids that occur, ascending, and each entry's position among them.

    Args:
        columns: Feature ids. Shape (n_entries,).
    """
    positions = np.empty(columns.size, np.intp)
    return _number(columns.copy(), positions), positions


@numba.njit(cache=True, nogil=True)
def number_fields(
    columns: NDArray[np.uint32], values: NDArray[np.float32]
) -> tuple[NDArray[np.uint32], NDArray[np.intp], NDArray[np.float32], bool]:
    """Number the ids of rows with an entry for each field, and sum what a row says twice of one id.

    Args:
        columns: Feature ids, or :data:`NO_FEATURE`. Shape (n_rows, n_fields).
        values: Of the first fields; those of the others are 1. Shape (n_rows, n_valued).

    Returns:
        The ids that occur, ascending; the entries' positions among them, their number where there is no
        entry; the entries' values, 0 where there is none; and whether any value is another than these. All
        but the ids field by field. Shape (n_fields, n_rows).
    """
    n_rows, n_fields = columns.shape
    n_valued = values.shape[1]
    keys = columns.copy().reshape(n_rows * n_fields)
    nothing = np.uint32(_highest(keys) + 1)
    has_nothing = False
    for i in range(keys.size):
        if keys[i] == NO_FEATURE:
            keys[i] = nothing
            has_nothing = True
    positions = np.empty(keys.size, np.intp)
    ids = _number(keys, positions)
    n_ids = ids.size - 1 if has_nothing else ids.size
    by_row = positions.reshape(n_rows, n_fields)
    local = np.empty((n_fields, n_rows), np.intp)
    out = np.empty((n_fields, n_rows), np.float32)
    has_values = False
    # The last row that had an entry of this id.
    last_row = np.full(n_ids + 1, -1, np.int64)
    for start in range(0, n_rows, _TILE_ROWS):
        stop = min(start + _TILE_ROWS, n_rows)
        for row in range(start, stop):
            for k in range(n_fields):
                position = by_row[row, k]
                if last_row[position] == row and position < n_ids:
                    first = 0
                    while by_row[row, first] != position:
                        first += 1
                    # Say which of the fields before it is the same.
                    by_row[row, k] = n_ids + 1 + first
                last_row[position] = row
        for k in range(n_fields):
            for row in range(start, stop):
                position = by_row[row, k]
                value = values[row, k] if k < n_valued else np.float32(1)
                if position > n_ids:
                    out[position - n_ids - 1, row] += value
                    has_values = True
                if position >= n_ids:
                    position, value = n_ids, np.float32(0)
                else:
                    has_values |= value != 1
                local[k, row] = position
                out[k, row] = value
    return ids[:n_ids], local, out, has_values


@numba.njit(cache=True, nogil=True)
def _highest(keys: NDArray[np.uint32]) -> int:
    """Return the highest of the keys that are features, or -1."""
    highest = -1
    for key in keys:
        if key != NO_FEATURE:
            highest = max(highest, int(key))
    return highest


@numba.njit(cache=True, nogil=True)
def _number(keys: NDArray[np.uint32], positions: NDArray[np.intp]) -> NDArray[np.uint32]:
    """Return the keys that occur, ascending; the keys themselves are lost.

    Args:
        keys: Shape (n,).
        positions: Takes each key's position among those that are returned. Shape (n,).
    """
    n = keys.size
    highest = keys.max() if n else np.uint32(0)
    if highest >> 6 < n:
        return _number_by_bits(keys, positions, int(highest))
    order = np.arange(n).astype(np.uint32)
    other_keys = np.empty_like(keys)
    other_order = np.empty_like(order)
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
    n_ids = 0
    for i in range(n):
        if i == 0 or keys[i] != keys[n_ids - 1]:
            keys[n_ids] = keys[i]
            n_ids += 1
        positions[order[i]] = n_ids - 1
    return keys[:n_ids].copy()


@numba.njit(cache=True, nogil=True)
def _number_by_bits(
    keys: NDArray[np.uint32], positions: NDArray[np.intp], highest: int
) -> NDArray[np.uint32]:
    """Do as :func:`_number` by a bit for each possible key, in less time where these fit a cache."""
    occurs = np.zeros((highest >> 6) + 1, np.uint64)
    for key in keys:
        occurs[np.uintp(key >> 6)] |= np.uint64(1) << np.uint64(key & 63)
    # How many keys occur below those of each word.
    before = np.empty(occurs.size, np.uint32)
    n_ids = np.uint64(0)
    for k in range(occurs.size):
        before[k] = n_ids
        n_ids += count_ones(occurs[k])
    for i in range(keys.size):
        word = np.uintp(keys[i] >> 6)
        lower = (np.uint64(1) << np.uint64(keys[i] & 63)) - np.uint64(1)
        positions[i] = before[word] + count_ones(occurs[word] & lower)
    ids = np.empty(n_ids, np.uint32)
    at = np.uintp(0)
    for k in range(occurs.size):
        word = occurs[k]
        while word:
            ids[at] = np.uint32(k << 6) + np.uint32(trailing_zeros(word))
            at += np.uintp(1)
            word &= word - np.uint64(1)
    return ids


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
    # Unsigned places cannot count from the end, so that whole vectors are copied: in a quarter of the time.
    n = np.uintp(0)
    for row in chosen:
        start = np.uintp(starts[row])
        length = starts[row + 1] - starts[row]
        for i in range(length):
            out[n + np.uintp(i)] = entries[start + np.uintp(i)]
        n += np.uintp(length)


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
