"""Plain CSV text, parsed and hashed by a compiled kernel.

The kernel takes text without quotation marks; each of its rows becomes an entry for each field. Cells that it
should not judge are left to Python: numbers that are more than a few plain digits, and labels that are text.
Where a row is not as it should be the kernel gives up, and whoever called it parses the segment in Python,
which knows what to say about it.

Each byte is looked at twice, once for where its cell ends and once for what the cell says. Bytes are taken at
unsigned places, because a signed one could count from the end of the array, which would have to be ruled out
for every byte; four bytes in a row are then one load.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numba
import numpy as np
from numpy.typing import NDArray

from cirrus.client_backend.bits import EACH, count_digits, trailing_zeros, value_of_digits, word_at
from cirrus.client_backend.field_rows import NO_FEATURE

Bytes: TypeAlias = NDArray[np.uint8]

#: Whole numbers below this, and powers of ten up to this, are exact in float64; so is one operation on them.
_EXACT_WHOLE = 2**53
_EXACT_POWER = 22

_RETURN, _NEWLINE, _SPACE = (ord(c) for c in "\r\n ")
_PLUS, _MINUS, _POINT, _ZERO = (ord(c) for c in "+-.0")


class Fields(NamedTuple):
    """The cells that become entries, numbers first. Each array has one element for each of them."""

    n_numeric: int
    """How many of them are numbers. The k-th number is feature k."""
    hash_features: int
    """Features after these, for categories."""
    columns: NDArray[np.int64]
    """Which cell of a row."""
    missing: NDArray[np.uint32]
    """The feature of a cell without a value."""
    hashes: NDArray[np.uint32]
    """What :func:`begin_hash` gave for what is put before a category before it is hashed."""
    carried: NDArray[np.uint32]
    """Likewise."""
    sizes: NDArray[np.int64]
    """The length of what is put before."""


class Missing(NamedTuple):
    """Cells that stand for no value."""

    text: Bytes
    """All that are not empty, one after the other."""
    starts: NDArray[np.int64]
    """Where each begins, and where the last one ends."""
    first_bytes: NDArray[np.bool_]
    """Whether one of them begins with this byte. Shape (256,)."""
    empty: bool
    """Whether an empty cell stands for no value where a number belongs."""


@numba.njit(cache=True, nogil=True)
def murmur3(text: Bytes, length: int) -> np.uint32:
    """Return MurmurHash3 (x86, 32 bits, seed 0) of the first bytes of a text, as ``mmh3.hash`` does.

    Args:
        text: Shape (at least length,).
        length: Bytes that are hashed.
    """
    return _end_hash(np.uint32(0), np.uint32(0), 0, text, 0, length)


@numba.njit(cache=True, nogil=True)
def begin_hash(text: Bytes) -> tuple[np.uint32, np.uint32]:
    """Hash the beginning of texts that begin alike.

    Returns:
        The state after the whole words of four bytes, and the bytes after these as a number.
    """
    h = np.uint32(0)
    n_whole = text.size // 4 * 4
    for i in range(0, n_whole, 4):
        h = _stirred(h, _word(text, i))
    return h, _rest(text, n_whole, text.size)


@numba.njit(cache=True, nogil=True)
def _end_hash(
    h: np.uint32, carried: np.uint32, n_before: int, text: Bytes, begin: int, end: int
) -> np.uint32:
    """Hash the rest of a text of which :func:`begin_hash` has hashed ``n_before`` bytes."""
    shift = np.uint64(8 * (n_before % 4))
    word = np.uint64(carried)
    i = begin
    while i + 4 <= end:
        word |= np.uint64(_word(text, i)) << shift
        h = _stirred(h, np.uint32(word))
        word >>= np.uint64(32)
        i += 4
    word |= np.uint64(_rest(text, i, end)) << shift
    if n_before % 4 + end - i >= 4:
        h = _stirred(h, np.uint32(word))
        word >>= np.uint64(32)
    h = np.uint32(h ^ _mixed(np.uint32(word)))
    h = np.uint32(h ^ np.uint32(n_before + end - begin))
    h = np.uint32(np.uint32(h ^ np.uint32(h >> np.uint32(16))) * np.uint32(0x85EBCA6B))
    h = np.uint32(np.uint32(h ^ np.uint32(h >> np.uint32(13))) * np.uint32(0xC2B2AE35))
    return np.uint32(h ^ np.uint32(h >> np.uint32(16)))


@numba.njit(cache=True, nogil=True)
def _stirred(h: Any, k: Any) -> Any:
    h = np.uint32(h ^ _mixed(k))
    h = np.uint32(np.uint32(h << np.uint32(13)) | np.uint32(h >> np.uint32(19)))
    return np.uint32(np.uint32(h * np.uint32(5)) + np.uint32(0xE6546B64))


@numba.njit(cache=True, nogil=True)
def _mixed(k: Any) -> Any:
    k = np.uint32(k * np.uint32(0xCC9E2D51))
    k = np.uint32(np.uint32(k << np.uint32(15)) | np.uint32(k >> np.uint32(17)))
    return np.uint32(k * np.uint32(0x1B873593))


@numba.njit(cache=True, nogil=True)
def _word(text: Bytes, i: int) -> np.uint32:
    """Return four bytes as a number, the lowest one first."""
    return np.uint32(
        np.uint32(text[np.uintp(i)])
        | np.uint32(np.uint32(text[np.uintp(i + 1)]) << np.uint32(8))
        | np.uint32(np.uint32(text[np.uintp(i + 2)]) << np.uint32(16))
        | np.uint32(np.uint32(text[np.uintp(i + 3)]) << np.uint32(24))
    )


@numba.njit(cache=True, nogil=True)
def _rest(text: Bytes, begin: int, end: int) -> np.uint32:
    """Return less than four bytes as a number."""
    k = np.uint32(0)
    for i in range(end - 1, begin - 1, -1):
        k = np.uint32(np.uint32(k << np.uint32(8)) | np.uint32(text[np.uintp(i)]))
    return k


@numba.njit(cache=True, nogil=True)
def read_rows(
    text: Bytes,
    sep: int,
    n_columns: int,
    n_skipped: int,
    label_column: int,
    fields: Fields,
    missing: Missing,
    columns: NDArray[np.uint32],
    values: NDArray[np.float32],
    labels: NDArray[np.float64],
    label_cells: NDArray[np.int64],
    hard: NDArray[np.int64],
) -> tuple[int, int]:
    """Turn the rows that are not blank into entries.

    Args:
        text: Whole lines without quotation marks.
        sep: The byte between cells.
        n_columns: Cells that every row must have.
        n_skipped: Rows to leave out at the beginning.
        label_column: Where the label is; below 0: there is none, and labels are left as they are.
        fields: Which cells to take.
        missing: What stands for no value.
        columns: Takes the feature of each entry, ``NO_FEATURE`` where a number is 0. Shape
            (at least n_lines, n_fields).
        values: Takes the numbers, 1 where one is missing. Shape (at least n_lines, n_numeric).
        labels: Takes the labels; NaN where one is left to Python. Shape (at least n_lines,).
        label_cells: Takes where each label begins and ends. Shape (at least n_lines, 2).
        hard: Takes the numbers that are left to Python: row, field, where the cell begins and ends. Shape
            (at least n_lines * n_numeric, 4).

    Returns:
        The number of rows, or -1 if this is nothing for a kernel; and the number of hard cells.
    """
    n_rows = 0
    n_hard = 0
    # Where the row's cells end; each begins one byte behind the end of the one before.
    ends = np.empty(n_columns + 1, np.int64)
    is_power = fields.hash_features & (fields.hash_features - 1) == 0
    mask = np.uint32(fields.hash_features - 1)
    i = 0
    while i < text.size:
        if _is_line_end(text, i) > 0:
            i += _is_line_end(text, i)
            continue
        i = _find_cells(text, i, sep, ends)
        if i < 0:
            return -1, 0
        if n_skipped > 0:
            n_skipped -= 1
            continue
        if label_column >= 0:
            begin, end = _strip(text, ends[label_column] + 1, ends[label_column + 1])
            number, is_plain = _plain_number(text, begin, end)
            is_known = is_plain and not _is_missing(text, begin, end, missing)
            labels[n_rows] = number if is_known else np.nan
            label_cells[n_rows, 0], label_cells[n_rows, 1] = begin, end
        for k in range(fields.columns.size):
            column = fields.columns[k]
            begin, end = _strip(text, ends[column] + 1, ends[column + 1])
            if k < fields.n_numeric:
                value = np.float32(1.0)
                feature = fields.missing[k]
                if not _is_missing(text, begin, end, missing):
                    number, is_plain = _plain_number(text, begin, end)
                    value = np.float32(number)
                    feature = np.uint32(NO_FEATURE) if value == 0 else np.uint32(k)
                    if not is_plain:
                        hard[n_hard, 0], hard[n_hard, 1] = n_rows, k
                        hard[n_hard, 2], hard[n_hard, 3] = begin, end
                        n_hard += 1
                values[n_rows, k] = value
            elif begin == end or _is_missing(text, begin, end, missing):
                feature = fields.missing[k]
            else:
                h = _end_hash(fields.hashes[k], fields.carried[k], fields.sizes[k], text, begin, end)
                place = h & mask if is_power else np.uint32(h % np.uint32(fields.hash_features))
                feature = np.uint32(fields.n_numeric + place)
            columns[n_rows, k] = feature
        n_rows += 1
    return n_rows, n_hard


@numba.njit(cache=True, nogil=True)
def _is_line_end(text: Bytes, i: int) -> int:
    """Return how many bytes a line end at this place has; 0: there is none."""
    if text[np.uintp(i)] == _NEWLINE:
        return 1
    return 2 if text[np.uintp(i)] == _RETURN and i + 1 < text.size and text[i + 1] == _NEWLINE else 0


@numba.njit(cache=True, nogil=True)
def _find_cells(text: Bytes, i: int, sep: int, ends: NDArray[np.int64]) -> int:
    """Find where the cells of a row end, and return where the next line begins, or -1."""
    seps, newlines, returns = np.uint64(sep) * EACH, np.uint64(_NEWLINE) * EACH, np.uint64(_RETURN) * EACH
    ends[0] = i - 1
    for k in range(1, ends.size):
        # Eight bytes at a time, whatever the lengths of the cells: a loop over bytes is guessed wrong by the
        # processor at the end of each cell.
        found = np.uint64(0)
        while i + 8 <= text.size:
            word = word_at(text, i)
            found = _zeros(word ^ seps) | _zeros(word ^ newlines) | _zeros(word ^ returns)
            if found:
                i += int(trailing_zeros(found) >> np.uint64(3))
                break
            i += 8
        if not found:
            while i < text.size and not _ends_cell(text[np.uintp(i)], sep):
                i += 1
        ends[k] = i
        if i == text.size or _is_line_end(text, i) > 0:
            if k + 1 < ends.size:
                return -1
            return i if i == text.size else i + _is_line_end(text, i)
        if text[np.uintp(i)] == _RETURN:
            return -1
        i += 1
    return -1


@numba.njit(cache=True, nogil=True)
def _zeros(word: np.uint64) -> np.uint64:
    """Return a word whose lowest bit that is set is the highest one of the lowest byte of ``word`` that is 0.

    Higher bytes may say so falsely. From Warren, Hacker's Delight, 6-1.
    """
    return (word - EACH) & ~word & (EACH << np.uint64(7))


@numba.njit(cache=True, nogil=True)
def _ends_cell(c: int, sep: int) -> bool:
    return c in (sep, _NEWLINE, _RETURN)


@numba.njit(cache=True, nogil=True)
def _strip(text: Bytes, begin: int, end: int) -> tuple[int, int]:
    """Leave out white space at both ends, as ``str.strip`` does with ASCII."""
    while begin < end and _is_blank(text[np.uintp(begin)]):
        begin += 1
    while end > begin and _is_blank(text[np.uintp(end - 1)]):
        end -= 1
    return begin, end


@numba.njit(cache=True, nogil=True)
def _is_blank(c: int) -> bool:
    return c <= _SPACE and (c == _SPACE or 9 <= c <= 13 or 28 <= c <= 31)


@numba.njit(cache=True, nogil=True)
def _is_missing(text: Bytes, begin: int, end: int, missing: Missing) -> bool:
    if begin == end:
        return missing.empty
    return missing.first_bytes[text[np.uintp(begin)]] and _is_listed(text, begin, end, missing)


@numba.njit(cache=True, nogil=True)
def _is_listed(text: Bytes, begin: int, end: int, missing: Missing) -> bool:
    starts = missing.starts
    for k in range(starts.size - 1):
        if starts[k + 1] - starts[k] == end - begin:
            same = True
            for i in range(end - begin):
                if text[begin + i] != missing.text[starts[k] + i]:
                    same = False
                    break
            if same:
                return True
    return False


@numba.njit(cache=True, nogil=True)
def _plain_number(text: Bytes, begin: int, end: int) -> tuple[float, bool]:
    """Return a number, and whether it is one that this function reads to the last bit as Python does."""
    if 0 < end - begin <= 8 and begin + 8 <= text.size:
        word = word_at(text, begin)
        if count_digits(word) >= end - begin:
            return float(value_of_digits(word, end - begin)), True
    i = begin
    negative = i < end and text[np.uintp(i)] == _MINUS
    if i < end and (text[np.uintp(i)] == _MINUS or text[np.uintp(i)] == _PLUS):
        i += 1
    mantissa = 0
    n_digits = 0
    n_decimals = 0
    behind_point = False
    while i < end:
        c = text[np.uintp(i)]
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
