"""Parsed segments on their way into chunks: one object a segment, its rows grouped by the bucket they go to.

Layout, little-endian: a header; an entry for each group and one for each vocabulary, at fixed places, so
that the rows of one bucket can be had with two range requests; then the arrays of the rows, group after
group.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from cirrus.chunks.vocabulary import Vocabulary
from cirrus.client_backend.field_rows import FieldRows
from cirrus.client_backend.rows import ParsedRows, Rows
from cirrus.errors import CorruptDataError
from cirrus.storage import FolderStore, ObjectStore

T = TypeVar("T")
R = TypeVar("R")

Scalar = TypeVar("Scalar", np.float32, np.uint32)

#: An object store answers so many requests at a time, each after a while; a folder answers at once.
REQUESTS_AT_ONCE = 16

#: magic, version, number of vocabularies, number of groups
_HEADER = struct.Struct("<4sHHI")
_MAGIC = b"CPce"
_VERSION = 2
#: offset, rows, entries, values, fields, weights, checksum
_GROUP = struct.Struct("<QIQQIII")
#: offset, length
_NAMES = struct.Struct("<QQ")


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of one segment that go to one bucket."""

    key: str
    segment: tuple[int, int]
    """Number of the file, and of the segment in it."""
    offset: int
    n_rows: int
    n_entries: int
    n_values: int
    """Values that are kept; those of other entries are 1."""
    n_fields: int
    """Entries of each of :class:`FieldRows`; 0: they are :class:`Rows`."""
    n_weights: int
    """0: all are 1."""
    crc32: int

    @property
    def n_bytes(self) -> int:
        """Length of the arrays."""
        n_lengths = 0 if self.n_fields else self.n_rows
        return 4 * (n_lengths + self.n_entries + self.n_values + self.n_rows + self.n_weights)

    def read(self, store: ObjectStore) -> ParsedRows:
        """Read the rows back.

        Raises:
            CorruptDataError: They were changed.
            StorageError: The store refused or failed.
        """
        data = store.get_range(self.key, self.offset, self.n_bytes)
        if zlib.crc32(data) != self.crc32:
            raise CorruptDataError(
                f"{store.url}/{self.key}: does not match its checksum: load the data again"
            )
        at = 0

        def take(kind: type[Any], count: int) -> NDArray[Any]:
            nonlocal at
            part = np.frombuffer(data, kind, count, at) if count else np.empty(0, kind)
            at += part.nbytes
            return part

        lengths = take(np.uint32, 0 if self.n_fields else self.n_rows)
        entries = take(np.uint32, self.n_entries)
        values = take(np.float32, self.n_values)
        labels = take(np.float32, self.n_rows)
        weights = take(np.float32, self.n_weights) if self.n_weights else None
        if self.n_fields:
            columns = entries.reshape(self.n_rows, self.n_fields)
            return FieldRows(columns, values.reshape(self.n_rows, -1), labels, weights)
        return Rows(lengths, entries, values if self.n_values else None, labels, weights)


class RowJoiner:
    """Puts the rows of several pieces together, in the order in which they are given.

    Args:
        pieces: What there is to be room for. Where only a part of their rows is given, most of that is never
            touched, and thus no memory.
    """

    def __init__(self, pieces: Sequence[Piece]) -> None:
        first = pieces[0]
        self._n_fields = first.n_fields
        self._n_valued = first.n_values // first.n_rows
        n_rows = sum(piece.n_rows for piece in pieces)
        n_entries = sum(piece.n_entries for piece in pieces)
        n_values = sum(piece.n_values for piece in pieces)
        if n_values and not self._n_fields:
            n_values = n_entries
        self._lengths = _Room(np.uint32, 0 if self._n_fields else n_rows)
        self._entries = _Room(np.uint32, n_entries)
        self._values = _Room(np.float32, n_values)
        self._labels = _Room(np.float32, n_rows)
        self._weights = _Room(np.float32, n_rows if any(piece.n_weights for piece in pieces) else 0)

    def add(self, rows: ParsedRows) -> None:
        """Add rows."""
        lengths, entries, values, labels, weights = rows.arrays
        if lengths is not None:
            self._lengths.add(lengths)
        self._entries.add(entries)
        if values is not None:
            self._values.add(values)
        elif self._values.capacity:
            self._values.add_ones(entries.size)
        self._labels.add(labels)
        if weights is not None:
            self._weights.add(weights)
        elif self._weights.capacity:
            self._weights.add_ones(labels.size)

    def rows(self) -> ParsedRows:
        """Return all rows that were added."""
        labels, entries, values = self._labels.array(), self._entries.array(), self._values.array()
        weights = self._weights.array() if self._weights.capacity else None
        if self._n_fields:
            columns = entries.reshape(labels.size, self._n_fields)
            return FieldRows(columns, values.reshape(labels.size, self._n_valued), labels, weights)
        has_values = self._values.capacity > 0
        return Rows(self._lengths.array(), entries, values if has_values else None, labels, weights)


class _Room(Generic[Scalar]):
    """An array that is filled bit by bit."""

    def __init__(self, kind: type[Scalar], capacity: int) -> None:
        self.capacity = capacity
        self._room: NDArray[Scalar] = np.empty(capacity, kind)
        self._size = 0

    def add(self, part: NDArray[Scalar]) -> None:
        end = self._size + part.size
        self._room[self._size : end] = part.ravel()
        self._size = end

    def add_ones(self, n: int) -> None:
        self._room[self._size : self._size + n] = 1
        self._size += n

    def array(self) -> NDArray[Scalar]:
        return self._room[: self._size]


def encode_pieces(
    groups: Iterable[tuple[int, ParsedRows]], n_groups: int, names: Sequence[Vocabulary] = ()
) -> bytes:
    """Return a parsed segment as bytes.

    Args:
        groups: Rows by the number of their group, ascending; groups may be missing.
        n_groups: Groups are numbered below this.
        names: What the segment's own numbers of labels or ids stand for.
    """
    offset = _HEADER.size + n_groups * _GROUP.size + len(names) * _NAMES.size
    entries = [bytes(_GROUP.size)] * n_groups
    parts: list[bytes | memoryview] = []
    for number, rows in groups:
        start, crc32 = offset, 0
        for array in rows.arrays:
            if array is not None and array.size:
                part = memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
                crc32 = zlib.crc32(part, crc32)
                offset += len(part)
                parts.append(part)
        _, features, values, _, weights = rows.arrays
        sizes = [0 if array is None else array.size for array in (features, values, weights)]
        entries[number] = _GROUP.pack(start, rows.n_rows, *sizes[:2], rows.n_fields, sizes[2], crc32)
    for vocabulary in names:
        data = vocabulary.to_bytes()
        entries.append(_NAMES.pack(offset, len(data)))
        parts.append(data)
        offset += len(data)
    return b"".join([_HEADER.pack(_MAGIC, _VERSION, len(names), n_groups), *entries, *parts])


def find_piece(store: ObjectStore, key: str, group: int, segment: tuple[int, int]) -> Piece | None:
    """Return where a group's rows are in an object of pieces, or None if it has none.

    Args:
        store: Where pieces are kept.
        key: The object.
        group: Number of the group.
        segment: See :class:`Piece`.

    Raises:
        CorruptDataError: The object is shorter than that.
        StorageError: The store refused or failed.
    """
    entry = store.get_range(key, _HEADER.size + group * _GROUP.size, _GROUP.size)
    piece = Piece(key, segment, *_GROUP.unpack(entry))
    return piece if piece.n_rows else None


def read_names(store: ObjectStore, key: str) -> list[Vocabulary]:
    """Return the vocabularies in an object of pieces.

    Raises:
        CorruptDataError: The object was changed.
        StorageError: The store refused or failed.
    """
    magic, version, n_names, n_groups = _HEADER.unpack(store.get_range(key, 0, _HEADER.size))
    where = f"{store.url}/{key}"
    if magic != _MAGIC or version != _VERSION:
        raise CorruptDataError(f"{where}: holds no pieces of version {_VERSION}: load the data again")
    first = _HEADER.size + n_groups * _GROUP.size
    entries = store.get_range(key, first, n_names * _NAMES.size)
    return [
        Vocabulary.from_bytes(store.get_range(key, offset, length), where)
        for offset, length in _NAMES.iter_unpack(entries)
    ]


def n_groups_of(store: ObjectStore, key: str) -> int:
    """Return the number of groups of an object of pieces."""
    n_groups: int = _HEADER.unpack(store.get_range(key, 0, _HEADER.size))[3]
    return n_groups


def read_all(store: ObjectStore, pieces: Sequence[Piece]) -> Iterator[ParsedRows]:
    """Yield the rows of some pieces, in order; from a store that is no folder several at a time."""
    return _all(store, lambda piece: piece.read(store), pieces)


def find_all(
    store: ObjectStore, keys: Sequence[tuple[str, tuple[int, int]]], group: int
) -> Iterator[Piece | None]:
    """Yield what :func:`find_piece` returns for each (key, segment), in order."""
    return _all(store, lambda at: find_piece(store, at[0], group, at[1]), keys)


def get_all(store: ObjectStore, keys: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Yield each key and its object, in order."""
    return _all(store, lambda key: (key, store.get(key)), keys)


def _all(store: ObjectStore, get: Callable[[T], R], things: Sequence[T]) -> Iterator[R]:
    if isinstance(store, FolderStore) or len(things) < 2:
        yield from map(get, things)
        return
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        for first in range(0, len(things), REQUESTS_AT_ONCE):  # so that few wait in memory
            yield from pool.map(get, things[first : first + REQUESTS_AT_ONCE])
