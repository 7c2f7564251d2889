"""Parsed segments on their way into chunks: one object a segment, its rows grouped by the bucket they go to.

Layout, little-endian: a header; an entry for each group and one for each vocabulary, at fixed places, so
that the rows of one bucket can be had with two range requests; then the arrays of :class:`Rows`, group
after group.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cirrus.chunks.vocabulary import Vocabulary
from cirrus.client_backend.rows import Rows
from cirrus.errors import CorruptDataError
from cirrus.storage import ObjectStore

#: magic, version, number of vocabularies, number of groups
_HEADER = struct.Struct("<4sHHI")
_MAGIC = b"CPce"
_VERSION = 1
#: offset, rows, entries, flags, checksum
_GROUP = struct.Struct("<QIQII")
#: offset, length
_NAMES = struct.Struct("<QQ")
_HAS_VALUES, _HAS_WEIGHTS = 1, 2


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of one segment that go to one bucket."""

    key: str
    segment: tuple[int, int]
    """Number of the file, and of the segment in it."""
    offset: int
    n_rows: int
    n_entries: int
    flags: int
    crc32: int

    @property
    def n_bytes(self) -> int:
        """Length of the arrays."""
        has_weights, has_values = bool(self.flags & _HAS_WEIGHTS), bool(self.flags & _HAS_VALUES)
        return 4 * (self.n_rows * (2 + has_weights) + self.n_entries * (1 + has_values))

    def read(self, store: ObjectStore) -> Rows:
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

        return Rows(
            lengths=take(np.uint32, self.n_rows),
            indices=take(np.uint32, self.n_entries),
            values=take(np.float32, self.n_entries) if self.flags & _HAS_VALUES else None,
            labels=take(np.float32, self.n_rows),
            weights=take(np.float32, self.n_rows) if self.flags & _HAS_WEIGHTS else None,
        )


def encode_pieces(
    groups: Iterable[tuple[int, Rows]], n_groups: int, names: Sequence[Vocabulary] = ()
) -> bytes:
    """Return a parsed segment as bytes.

    Args:
        groups: Rows by the number of their group, ascending; groups may be missing.
        n_groups: Groups are numbered below this.
        names: What the segment's own numbers of labels or ids stand for.
    """
    offset = _HEADER.size + n_groups * _GROUP.size + len(names) * _NAMES.size
    entries = [_GROUP.pack(0, 0, 0, 0, 0)] * n_groups
    parts: list[bytes | memoryview] = []
    for number, rows in groups:
        start, crc32 = offset, 0
        for array in (rows.lengths, rows.indices, rows.values, rows.labels, rows.weights):
            if array is not None:
                part = memoryview(np.ascontiguousarray(array).view(np.uint8))
                crc32 = zlib.crc32(part, crc32)
                offset += len(part)
                parts.append(part)
        flags = _HAS_VALUES * (rows.values is not None) + _HAS_WEIGHTS * (rows.weights is not None)
        entries[number] = _GROUP.pack(start, rows.labels.size, rows.indices.size, flags, crc32)
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
    offset, n_rows, n_entries, flags, crc32 = _GROUP.unpack(entry)
    return Piece(key, segment, offset, n_rows, n_entries, flags, crc32) if n_rows else None


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
