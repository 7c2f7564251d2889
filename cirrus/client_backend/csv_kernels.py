"""Plain CSV text, parsed and hashed by a compiled kernel.

The kernel takes text without quotation marks; each of its rows becomes sparse entries that ascend, without
zeros, and with the sum where columns collide. Cells that it should not judge are left to Python: numbers that
are more than a few plain digits, and labels that are text. Where a row is not as it should be the kernel
gives up, and whoever called it parses the segment in Python, which knows what to say about it.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numba
import numpy as np
from numpy.typing import NDArray

Bytes: TypeAlias = NDArray[np.uint8]

#: Cells longer than this are left to Python, as are lines with more cells than expected.
MAX_CELL_BYTES = 4096
#: Roles of columns.
UNUSED, LABEL, NUMERIC, CATEGORICAL = range(4)
#: Whole numbers below this, and powers of ten up to this, are exact in float64; so is one operation on them.
_EXACT_WHOLE = 2**53
_EXACT_POWER = 22

_RETURN, _NEWLINE, _SPACE = (ord(c) for c in "\r\n ")
_PLUS, _MINUS, _POINT, _ZERO = (ord(c) for c in "+-.0")


@numba.njit(cache=True, nogil=True)
def murmur3(text: Bytes, length: int) -> np.uint32:
    """Return MurmurHash3 (x86, 32 bits, seed 0) of the first bytes of a text, as ``mmh3.hash`` does.

    Args:
        text: Shape (at least length,).
        length: Bytes that are hashed.
    """
    h = np.uint32(0)
    n_whole = length // 4
    for block in range(n_whole):
        at = 4 * block
        k = (
            np.uint32(text[at])
            | np.uint32(np.uint32(text[at + 1]) << np.uint32(8))
            | np.uint32(np.uint32(text[at + 2]) << np.uint32(16))
            | np.uint32(np.uint32(text[at + 3]) << np.uint32(24))
        )
        h = np.uint32(h ^ _mixed(np.uint32(k)))
        h = np.uint32(np.uint32(h << np.uint32(13)) | np.uint32(h >> np.uint32(19)))
        h = np.uint32(np.uint32(h * np.uint32(5)) + np.uint32(0xE6546B64))
    k = np.uint32(0)
    for i in range(length - 1, 4 * n_whole - 1, -1):
        k = np.uint32(np.uint32(k << np.uint32(8)) | np.uint32(text[i]))
    h = np.uint32(h ^ _mixed(np.uint32(k)))
    h = np.uint32(h ^ np.uint32(length))
    h = np.uint32(np.uint32(h ^ np.uint32(h >> np.uint32(16))) * np.uint32(0x85EBCA6B))
    h = np.uint32(np.uint32(h ^ np.uint32(h >> np.uint32(13))) * np.uint32(0xC2B2AE35))
    return np.uint32(h ^ np.uint32(h >> np.uint32(16)))


@numba.njit(cache=True, nogil=True)
def _mixed(k: Any) -> Any:
    k = np.uint32(k * np.uint32(0xCC9E2D51))
    k = np.uint32(np.uint32(k << np.uint32(15)) | np.uint32(k >> np.uint32(17)))
    return np.uint32(k * np.uint32(0x1B873593))


@numba.njit(cache=True, nogil=True)
def find_cells(text: Bytes, sep: int, n_columns: int, ends: NDArray[np.int64]) -> int:
    """Find where the cells of each row end that is not blank.

    Args:
        text: Whole lines without quotation marks.
        sep: The byte between cells.
        n_columns: Cells that every row must have.
        ends: Takes, for each row, where its first cell begins and where each of its cells ends; each other
            cell begins one byte behind the end of the one before. Shape (n_lines, n_columns + 1).

    Returns:
        The number of rows, or -1 if this is nothing for a kernel.
    """
    n_rows = 0
    i = 0
    while i < text.size:
        if text[i] == _NEWLINE or (text[i] == _RETURN and i + 1 < text.size and text[i + 1] == _NEWLINE):
            i += 1 if text[i] == _NEWLINE else 2
            continue
        ends[n_rows, 0] = i
        begin = i
        k = 0
        while True:
            at_end = i >= text.size
            c = _NEWLINE if at_end else text[i]
            if c == _RETURN:
                if i + 1 >= text.size or text[i + 1] != _NEWLINE:
                    return -1
                c = _NEWLINE
            if c in (sep, _NEWLINE):
                if k == n_columns or i - begin > MAX_CELL_BYTES:
                    return -1
                k += 1
                ends[n_rows, k] = i
                begin = i + 1
                if c == _NEWLINE:
                    break
            i += 1
        if k != n_columns:
            return -1
        n_rows += 1
        while i < text.size and text[i] != _NEWLINE:
            i += 1
        i += 1
    return n_rows


@numba.njit(cache=True, nogil=True)
def read_rows(
    text: Bytes,
    ends: NDArray[np.int64],
    roles: NDArray[np.int64],
    features: NDArray[np.int64],
    prefixes: Bytes,
    prefix_starts: NDArray[np.int64],
    missing: Bytes,
    missing_starts: NDArray[np.int64],
    may_be_missing: NDArray[np.bool_],
    missing_columns: NDArray[np.int64],
    n_numeric: int,
    hash_features: int,
    columns: NDArray[np.uint32],
    values: NDArray[np.float32],
    lengths: NDArray[np.uint32],
    labels: NDArray[np.float64],
    hard: NDArray[np.int64],
    known: NDArray[np.float64],
) -> tuple[int, int]:
    """Turn rows into sparse entries.

    Numbers that are left to Python are noted in ``hard``; with what Python made of them, call this again.

    Args:
        text: The text.
        ends: What :func:`find_cells` gave. Shape (n_rows, n_columns + 1).
        roles: Of the columns that are used. Shape (n_used,): the number of the column times 4, plus its role.
        features: The feature of a numeric column. Shape (n_used,).
        prefixes: What is put before a category before it is hashed, one text after the other.
        prefix_starts: Where each begins. Shape (n_used + 1,).
        missing: Cells that stand for no value, one text after the other.
        missing_starts: Where each begins.
        may_be_missing: Whether one of them begins with this byte. Shape (256,).
        missing_columns: The feature of a missing value. Shape (n_used,).
        n_numeric: Features before the hashed ones.
        hash_features: Number of hashed features.
        columns: Takes the entries' features.
        values: Takes the entries' values.
        lengths: Takes the number of entries of each row.
        labels: Takes each row's label; NaN where it is left to Python.
        hard: Takes row and column of the cells that are left to Python. Shape (room, 2).
        known: Their numbers, NaN where one is missing; or nothing, the first time.

    Returns:
        The number of entries and the number of hard cells.
    """
    n_entries = 0
    n_hard = 0
    # Each column's prefix stays where it is; the cell is written behind it.
    buffers = np.empty((roles.size, MAX_CELL_BYTES + prefixes.size), np.uint8)
    for use in range(roles.size):
        for i in range(prefix_starts[use], prefix_starts[use + 1]):
            buffers[use, i - prefix_starts[use]] = prefixes[i]
    for row in range(ends.shape[0]):
        first = n_entries
        for use in range(roles.size):
            column, role = roles[use] // 4, roles[use] % 4
            begin = ends[row, 0] if column == 0 else ends[row, column] + 1
            begin, end = _strip(text, begin, ends[row, column + 1])
            value = 1.0
            if end == begin:
                is_missing = role == CATEGORICAL or _is_missing(text, begin, end, missing, missing_starts)
            else:
                is_missing = may_be_missing[text[begin]] and _is_missing(
                    text, begin, end, missing, missing_starts
                )
            if role == LABEL:
                number, is_plain = _plain_number(text, begin, end)
                labels[row] = number if is_plain and not is_missing else np.nan
                continue
            if is_missing:
                feature = missing_columns[use]
            elif role == NUMERIC:
                value, is_plain = _plain_number(text, begin, end)
                feature = features[use]
                if not is_plain:
                    hard[n_hard, 0] = row
                    hard[n_hard, 1] = column
                    n_hard += 1
                    value = known[n_hard - 1] if known.size else 0.0
                    if np.isnan(value):
                        value = 1.0
                        feature = missing_columns[use]
            else:
                buffer = buffers[use]
                size = prefix_starts[use + 1] - prefix_starts[use]
                for i in range(begin, end):
                    buffer[size] = text[i]
                    size += 1
                feature = n_numeric + murmur3(buffer, size) % hash_features
            n_entries = _insert(columns, values, first, n_entries, feature, value)
        lengths[row] = n_entries - first
    return n_entries, n_hard


@numba.njit(cache=True, nogil=True)
def _insert(
    columns: NDArray[np.uint32],
    values: NDArray[np.float32],
    first: int,
    n_entries: int,
    feature: int,
    value: float,
) -> int:
    """Insert an entry where it belongs in a row, and return the number of entries."""
    narrow = np.float32(value)
    if narrow == 0:
        return n_entries
    at = n_entries
    while at > first and columns[at - 1] > feature:
        at -= 1
    if at > first and columns[at - 1] == feature:
        values[at - 1] += narrow
        return n_entries
    for i in range(n_entries, at, -1):
        columns[i] = columns[i - 1]
        values[i] = values[i - 1]
    columns[at] = feature
    values[at] = narrow
    return n_entries + 1


@numba.njit(cache=True, nogil=True)
def _strip(text: Bytes, begin: int, end: int) -> tuple[int, int]:
    """Leave out white space at both ends, as ``str.strip`` does with ASCII."""
    while begin < end and _is_blank(text[begin]):
        begin += 1
    while end > begin and _is_blank(text[end - 1]):
        end -= 1
    return begin, end


@numba.njit(cache=True, nogil=True)
def _is_blank(c: int) -> bool:
    return c <= _SPACE and (c == _SPACE or 9 <= c <= 13 or 28 <= c <= 31)


@numba.njit(cache=True, nogil=True)
def _is_missing(text: Bytes, begin: int, end: int, missing: Bytes, starts: NDArray[np.int64]) -> bool:
    for k in range(starts.size - 1):
        if starts[k + 1] - starts[k] == end - begin:
            same = True
            for i in range(end - begin):
                if text[begin + i] != missing[starts[k] + i]:
                    same = False
                    break
            if same:
                return True
    return False


@numba.njit(cache=True, nogil=True)
def _plain_number(text: Bytes, begin: int, end: int) -> tuple[float, bool]:
    """Return a number, and whether it is one that this function reads to the last bit as Python does."""
    i = begin
    negative = i < end and text[i] == _MINUS
    if i < end and (text[i] == _MINUS or text[i] == _PLUS):
        i += 1
    mantissa = 0
    n_digits = 0
    n_decimals = 0
    behind_point = False
    while i < end:
        c = text[i]
        if c == _POINT and not behind_point:
            behind_point = True
        elif _ZERO <= c <= _ZERO + 9 and mantissa < _EXACT_WHOLE // 10 - 1:
            mantissa = mantissa * 10 + (c - _ZERO)
            n_digits += 1
            n_decimals += behind_point
        else:
            return 0.0, False
        i += 1
    if n_digits == 0 or n_decimals > _EXACT_POWER:
        return 0.0, False
    number = float(mantissa)
    if n_decimals:
        number /= 10.0**n_decimals
    return (-number if negative else number), True
