"""Columns of values as bytes: each in the narrowest form that numpy takes apart fast.

A part of a block is a matrix of ``n_columns`` columns with ``length`` float32 each. A column has one of these
kinds:

======== ================== ==============================================================================
kind     bytes a number     numbers
======== ================== ==============================================================================
ONES     0                  all are 1
BYTES    1                  whole ones below 2**8
CODES    1                  at most 256 different ones; they are listed in the column's dictionary
SHORTS   2                  whole ones below 2**16
FLOATS   4                  any
======== ================== ==============================================================================

What is stored is: the kind of each column, a byte; for each CODES column, the length of its dictionary less
1, a byte; their dictionaries; then the numbers, kind by kind in the order of the table. Columns of a kind lie
together, so that a few operations decode them all.

The bytes of FLOATS lie in planes: the lowest byte of every number, then the next byte of every number, and so
on. High bytes are alike and LZ4 finds them so. They are put together by shifts, which take a fifth of the
time that transposing takes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cirrus.errors import CorruptDataError

#: Columns shorter than this are not worth a dictionary each.
MIN_CODED_LENGTH = 64
#: Codes are bytes.
MAX_DICTIONARY = 256
#: Kinds of columns of values.
ONES, BYTES, CODES, SHORTS, FLOATS = range(5)
N_KINDS = 5

Bytes = NDArray[np.uint8]
Parts = list[NDArray[Any]]

_BYTE, _SHORT, _WORD = (np.dtype(f"<u{width}") for width in (1, 2, 4))
WIDTHS: dict[int, np.dtype[Any]] = {1: _BYTE, 2: _SHORT, 4: _WORD}


class Reader:
    """Takes the parts of a block's payload one after the other, never more than there is.

    Args:
        raw: The payload.
        fail: Makes the error that is raised, from what is wrong.
    """

    def __init__(self, raw: bytes, fail: Callable[[str], CorruptDataError]) -> None:
        self._raw = raw
        self._offset = 0
        self.fail = fail

    def take(self, kind: np.dtype[Any], count: int) -> NDArray[Any]:
        """Return the next ``count`` numbers, which must not be changed.

        Raises:
            CorruptDataError: There are not so many.
        """
        begin = self._advance(count * kind.itemsize)
        if count == 0:  # which frombuffer refuses at the end of the buffer
            return np.empty(0, kind)
        return np.frombuffer(self._raw, kind, count, begin)

    def take_bytes(self, count: int) -> bytes:
        """Return the next ``count`` bytes.

        Raises:
            CorruptDataError: There are not so many.
        """
        begin = self._advance(count)
        return self._raw[begin : self._offset]

    def _advance(self, n_bytes: int) -> int:
        begin = self._offset
        if n_bytes > len(self._raw) - begin:
            raise self.fail("is shorter than its header says")
        self._offset = begin + n_bytes
        return begin

    def end(self) -> None:
        """Check that nothing is left."""
        if self._offset != len(self._raw):
            raise self.fail("is longer than its header says")


def narrowed(numbers: NDArray[Any]) -> NDArray[Any]:
    """Return whole numbers below 2**32 in the least width that holds them."""
    largest = int(numbers.max(initial=0))
    return numbers.astype(WIDTHS[1 if largest < 2**8 else 2 if largest < 2**16 else 4])


def planes(numbers: NDArray[Any]) -> Bytes:
    """Return the lowest byte of every number, then the next byte of every number, and so on."""
    return np.ascontiguousarray(numbers.reshape(-1, 1).view(np.uint8).T)


def take_planes(reader: Reader, count: int) -> NDArray[np.uint16]:
    """Return the next ``count`` numbers of two bytes, which lie in planes.

    Raises:
        CorruptDataError: There are not so many.
    """
    stored = reader.take(_BYTE, 2 * count)
    numbers = stored[count:].astype(np.uint16)
    numbers <<= 8
    numbers |= stored[:count]
    return numbers


def _take_floats(reader: Reader, count: int) -> NDArray[np.float32]:
    lower = take_planes(reader, count)
    words = take_planes(reader, count).astype(np.uint32)
    words <<= 16
    words |= lower
    return words.view(np.float32)


def encode_values(matrix: NDArray[np.float32], *, some_ones: bool = True) -> Parts:
    """Return columns of float32 numbers as parts; every bit of them is kept.

    Args:
        matrix: Shape (n_columns, length).
        some_ones: Store nothing of columns that are all 1.
    """
    n_columns, length = matrix.shape
    bits = matrix.astype(np.dtype("<f4"), copy=False).view(_WORD)
    kinds = np.full(n_columns, FLOATS, np.uint8)
    if some_ones:
        kinds[(bits == np.float32(1).view(np.uint32)).all(axis=1)] = ONES
    rest = np.flatnonzero(kinds)
    shorts = _survive(matrix[rest], np.uint16)
    kinds[rest[shorts]] = SHORTS
    kinds[rest[shorts][(matrix[rest[shorts]] < 2**8).all(axis=1)]] = BYTES
    dictionaries: Parts = []
    codes: Parts = []
    large = np.flatnonzero(kinds >= SHORTS)
    if large.size and length >= MIN_CODED_LENGTH:
        ordered, counts = _distinct(bits[large])
        width = np.where(kinds[large] == SHORTS, 2, 4)
        is_coded = (counts <= MAX_DICTIONARY) & (length + 4 * counts < width * length)
        dictionaries, codes = _coded(bits[large], ordered, np.flatnonzero(is_coded))
        kinds[large[is_coded]] = CODES
    return [
        kinds,
        np.array([dictionary.size - 1 for dictionary in dictionaries], np.uint8),
        *dictionaries,
        matrix[kinds == BYTES].astype(np.uint8),
        *codes,
        matrix[kinds == SHORTS].astype(_SHORT),
        planes(bits[kinds == FLOATS]),
    ]


def decode_values(
    reader: Reader, n_columns: int, length: int, *, some_ones: bool = True
) -> NDArray[np.float32]:
    """Read what :func:`encode_values` gave.

    Args:
        reader: Where from.
        n_columns: Number of columns.
        length: Their length.
        some_ones: Columns that are all 1 take up no room, so that only the caller can know that there are not
            more of them than memory: in a block there is a byte at least for each entry's position, and for
            each row's label, which is why these must not be of that kind.

    Returns:
        Shape (n_columns, length).

    Raises:
        CorruptDataError: It is not what :func:`encode_values` gives.
    """
    kinds = reader.take_bytes(n_columns)
    counts = [kinds.count(kind) for kind in range(N_KINDS)]
    if sum(counts) != n_columns or (counts[ONES] and not some_ones):
        raise reader.fail("has columns of an unknown kind")
    sizes = reader.take(_BYTE, counts[CODES])
    found: list[tuple[int, NDArray[Any]]] = []
    dictionary = _take_dictionary(reader, sizes, _WORD) if counts[CODES] else sizes
    if counts[BYTES]:
        found.append((BYTES, reader.take(_BYTE, counts[BYTES] * length)))
    if counts[CODES]:
        words = _looked_up(reader, dictionary.astype(np.uint32), sizes, length)
        found.append((CODES, words.view(np.float32)))
    if counts[SHORTS]:
        found.append((SHORTS, reader.take(_SHORT, counts[SHORTS] * length)))
    if counts[FLOATS]:
        found.append((FLOATS, _take_floats(reader, counts[FLOATS] * length)))
    if len(found) == 1 and not counts[ONES]:
        return found[0][1].astype(np.float32, copy=False).reshape(n_columns, length)
    matrix = np.ones((n_columns, length), np.float32)
    of_column = np.frombuffer(kinds, np.uint8)
    for kind, numbers in found:
        matrix[of_column == kind] = numbers.reshape(counts[kind], length)
    return matrix


def _survive(matrix: NDArray[np.float32], narrow: type[np.unsignedinteger[Any]]) -> NDArray[np.bool_]:
    """Return for each column whether all its numbers survive in a narrow type of whole numbers."""
    with np.errstate(invalid="ignore"):
        same = (matrix.astype(narrow) == matrix).all(axis=1)
    survives: NDArray[np.bool_] = same & ~np.signbit(matrix).any(axis=1)  # -0.0 would not
    return survives


def _distinct(matrix: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.intp]]:
    """Return each column sorted, and how many different numbers it has."""
    ordered = np.sort(matrix, axis=1)
    counts = np.count_nonzero(ordered[:, 1:] != ordered[:, :-1], axis=1) + 1
    return ordered, np.asarray(counts, np.intp)


def _coded(matrix: NDArray[Any], ordered: NDArray[Any], chosen: NDArray[np.intp]) -> tuple[Parts, Parts]:
    """Return a dictionary and the codes for each of the chosen columns."""
    dictionaries, codes = [], []
    for k in chosen.tolist():
        column = ordered[k]
        is_new = np.ones(column.size, np.bool_)
        np.not_equal(column[1:], column[:-1], out=is_new[1:])
        dictionary = column[is_new]
        dictionaries.append(dictionary)
        codes.append(dictionary.searchsorted(matrix[k]).astype(np.uint8))
    return dictionaries, codes


def _take_dictionary(reader: Reader, sizes: Bytes, stored: np.dtype[Any]) -> NDArray[Any]:
    return reader.take(stored, int(sizes.sum(dtype=np.int64)) + sizes.size)


def _looked_up(reader: Reader, dictionary: NDArray[Any], sizes: Bytes, length: int) -> NDArray[Any]:
    """Take the codes of columns, and return their numbers. Shape (len(sizes), length)."""
    codes = reader.take(_BYTE, sizes.size * length).reshape(sizes.size, length)
    if (codes.max(axis=1, initial=0) > sizes).any():
        raise reader.fail("has codes that its dictionaries lack")
    starts = np.arange(sizes.size)
    starts[1:] += np.cumsum(sizes[:-1], dtype=np.intp)
    places = codes.astype(np.intp)
    places += starts[:, None]
    return dictionary.take(places)
