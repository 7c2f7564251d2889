"""What the features of a dataset are called: ids of users or items, words.

An object of its own beside the chunks, written once. Layout, little-endian: a header of fixed size, then an
LZ4 block of ``n_ids`` whole numbers (int64) or, for text, the length of each id in bytes (uint16) and then
the ids themselves in UTF-8, one after the other.
"""

from __future__ import annotations

import functools
import struct
import zlib
from collections.abc import Iterable
from typing import Any

import lz4.block
import numpy as np
from numpy.typing import NDArray

from cirrus.chunks.manifest import Manifest, VocabularyInfo
from cirrus.errors import CorruptDataError, DataError, NotFoundError
from cirrus.storage import ObjectStore

MAGIC = b"CVoc"
VERSION = 1
#: Longest id that is text, in bytes of UTF-8.
MAX_ID_BYTES = 256
#: Most bytes of a vocabulary before compression.
MAX_VOCABULARY_BYTES = 2**30
#: LZ4 cannot compress better than this.
_MAX_LZ4_RATIO = 255

_NUMBERS, _TEXT = 0, 1
#: magic, version, kind, number of ids, bytes before compression, bytes after, checksum of these.
_HEADER = struct.Struct("<4sBB2xIQQI")


class Vocabulary:
    """Ids in an order: the k-th one names the k-th feature of its kind.

    Args:
        ids: Whole numbers, or text as UTF-8 bytes (``S``); unique. Shape (n_ids,).
    """

    def __init__(self, ids: NDArray[np.int64] | NDArray[np.bytes_]) -> None:
        self._ids: NDArray[Any] = ids

    @classmethod
    def of(cls, ids: Iterable[str] | Iterable[int]) -> Vocabulary:
        """Make a vocabulary of ids in an order of their own, all text or all whole numbers.

        Raises:
            DataError: An id is too long, empty, holds a NUL, or occurs twice.
        """
        found = list(ids)
        if found and all(isinstance(name, (int, np.integer)) for name in found):
            array: NDArray[Any] = np.array(found, np.int64)
        else:
            array = _encoded([str(name) for name in found])
        if np.unique(array).size != array.size:
            repeated = array[np.setdiff1d(np.arange(array.size), np.unique(array, return_index=True)[1])[0]]
            raise DataError(f"{_shown(repeated)!r} occurs twice in a vocabulary: names must be unique")
        return cls(array)

    @classmethod
    def of_text(cls, names: list[str]) -> Vocabulary:
        """Make a vocabulary of text that is known to be unique.

        Raises:
            DataError: An id is too long, empty, or holds a NUL.
        """
        return cls(_encoded(names))

    def __len__(self) -> int:
        return int(self._ids.size)

    def __getitem__(self, number: int) -> str | int:
        return _shown(self._ids[number])

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} ids)"

    @property
    def is_text(self) -> bool:
        """Whether the ids are text; else they are whole numbers."""
        return self._ids.dtype.kind == "S"

    @property
    def array(self) -> NDArray[Any]:
        """The ids as they are kept: int64, or UTF-8 bytes. Shape (n_ids,)."""
        return self._ids

    def ids(self) -> list[str] | list[int]:
        """Return all ids in order."""
        if self.is_text:
            return [name.decode() for name in self._ids.tolist()]
        numbers: list[int] = self._ids.tolist()
        return numbers

    @functools.cached_property
    def _order(self) -> NDArray[np.intp] | None:
        """What sorts the ids; None: they are sorted."""
        if bool((self._ids[1:] > self._ids[:-1]).all()):
            return None
        return np.argsort(self._ids, kind="stable")

    def codes(self, ids: Any) -> NDArray[np.int64]:
        """Return the number of each id, -1 for those that are not there.

        Numbers and their text are the same: ``7`` finds ``"7"``, and the other way round.

        Args:
            ids: Text or whole numbers. Shape (n,).

        Returns:
            Shape (n,).
        """
        wanted, is_possible = self._as_kept(ids)
        if not len(self):
            return np.full(is_possible.shape, -1, np.int64)
        order = self._order
        at = np.minimum(np.searchsorted(self._ids, wanted, sorter=order), len(self) - 1)
        found = at if order is None else order[at]
        is_there = is_possible & (self._ids[found] == wanted)
        return np.where(is_there, found, -1).astype(np.int64)

    def _as_kept(self, ids: Any) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Return ids in the form that they are kept in, and which of them could be there at all."""
        array = np.atleast_1d(np.asarray(ids))
        if array.dtype.kind == "f":
            whole = np.isfinite(array) & (array == np.rint(array)) & (np.abs(array) < 2**53)
            numbers = np.where(whole, array, 0).astype(np.int64)
            return (numbers.astype("S") if self.is_text else numbers), whole
        if array.dtype.kind in "iu" and self.is_text:
            return array.astype("S"), np.ones(array.shape, np.bool_)
        if array.dtype.kind in "iub":
            numbers = array.astype(np.int64)
            fits = np.ones(array.shape, np.bool_) if array.dtype.kind != "u" else array <= 2**63 - 1
            return (numbers.astype("S") if self.is_text else numbers), fits
        if array.dtype.kind == "S":
            if self.is_text:
                return array, np.ones(array.shape, np.bool_)
            array = np.char.decode(array, "utf-8", "replace")
        texts = [
            name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
            for name in array.tolist()
        ]
        if self.is_text:
            encoded = [name.encode("utf-8", "replace") for name in texts]
            possible = np.array(["\0" not in name for name in texts], np.bool_)
            return np.array(encoded, np.bytes_).reshape(array.shape), possible.reshape(array.shape)
        values = [canonical_number(name) for name in texts]
        numbers = np.array([0 if value is None else value for value in values], np.int64)
        return numbers, np.array([value is not None for value in values], np.bool_)

    def to_bytes(self) -> bytes:
        """Return the vocabulary as bytes.

        Raises:
            DataError: It is larger than :data:`MAX_VOCABULARY_BYTES`.
        """
        if self.is_text:
            names = self._ids.tolist()
            lengths = np.array([len(name) for name in names], "<u2")
            raw = lengths.tobytes() + b"".join(names)
        else:
            raw = self._ids.astype("<i8").tobytes()
        if len(raw) > MAX_VOCABULARY_BYTES:
            raise DataError(f"{len(self)} ids take {len(raw)} bytes, more than {MAX_VOCABULARY_BYTES}")
        payload = lz4.block.compress(raw, store_size=False)
        kind = _TEXT if self.is_text else _NUMBERS
        checksum = zlib.crc32(payload)
        header = _HEADER.pack(MAGIC, VERSION, kind, len(self), len(raw), len(payload), checksum)
        return header + bytes(payload)

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "vocabulary") -> Vocabulary:
        """Read back what :meth:`to_bytes` gave.

        Args:
            data: The bytes.
            name: What to call them in an error message.

        Raises:
            CorruptDataError: They are not a whole, unchanged vocabulary.
        """

        def fail(problem: str) -> CorruptDataError:
            return CorruptDataError(f"{name}: {problem}: load the data again")

        if len(data) < _HEADER.size:
            raise fail("is shorter than a vocabulary's header")
        magic, version, kind, n_ids, n_raw, n_payload, checksum = _HEADER.unpack_from(data)
        payload = memoryview(data)[_HEADER.size :]
        if magic != MAGIC or version != VERSION or kind not in (_NUMBERS, _TEXT):
            raise fail(f"is no vocabulary of version {VERSION}")
        if len(payload) != n_payload or zlib.crc32(payload) != checksum:
            raise fail("is truncated or does not match its checksum")
        least = n_ids * (2 if kind == _TEXT else 8)
        if n_raw > min(MAX_VOCABULARY_BYTES, _MAX_LZ4_RATIO * (n_payload + 1)) or n_raw < least:
            raise fail("has an impossible header")
        try:
            raw = lz4.block.decompress(payload, uncompressed_size=n_raw)
        except (lz4.block.LZ4BlockError, ValueError) as error:
            raise fail(f"cannot be decompressed ({error})") from error
        if len(raw) != n_raw:
            raise fail("has a payload of another length than its header says")
        if kind == _NUMBERS:
            if len(raw) != 8 * n_ids:
                raise fail("has another length than its header says")
            return cls(np.frombuffer(raw, "<i8").astype(np.int64))
        lengths = np.frombuffer(raw, "<u2", n_ids).astype(np.int64)
        ends = 2 * n_ids + np.cumsum(lengths)
        if lengths.max(initial=0) > MAX_ID_BYTES or int(ends[-1] if n_ids else 0) != len(raw):
            raise fail("has ids of another length than its header says")
        names = [raw[end - n : end] for n, end in zip(lengths.tolist(), ends.tolist(), strict=True)]
        try:
            b"".join(names).decode()
        except UnicodeDecodeError as error:
            raise fail(f"is not UTF-8 ({error.reason})") from error
        return cls(np.array(names, np.bytes_) if names else np.empty(0, "S1"))


def canonical_number(text: str) -> int | None:
    """Return the whole number that a text is the usual form of, or None: ``"7"``, but not ``"07"``."""
    if not text.isascii() or not text.removeprefix("-").isdecimal() or len(text) > 20:
        return None
    number = int(text)
    return number if str(number) == text and -(2**63) <= number < 2**63 else None


def union_of(parts: Iterable[Vocabulary]) -> Vocabulary:
    """Return all ids of some vocabularies, sorted: numbers if they all are, else text by its code points."""
    total = _Union()
    for part in parts:
        total.add(part.array)
    return Vocabulary(total.ids())


class _Union:
    """Merges sorted ids now and then, so that many small parts cost no more than few large ones."""

    def __init__(self) -> None:
        self._parts: list[NDArray[Any]] = [np.empty(0, np.int64)]
        self._n_pending = 0

    def add(self, ids: NDArray[Any]) -> None:
        self._parts.append(ids)
        self._n_pending += ids.size
        if self._n_pending > self._parts[0].size:
            self._parts = [self.ids()]
            self._n_pending = 0

    def ids(self) -> NDArray[Any]:
        parts = [part for part in self._parts if part.size]
        if not parts:
            return np.empty(0, np.int64)
        if any(part.dtype.kind == "S" for part in parts):
            parts = [part.astype("S") for part in parts]
        return np.unique(np.concatenate(parts))


def read_vocabulary(store: ObjectStore, manifest: Manifest, name: str) -> Vocabulary:
    """Read one of a dataset's vocabularies.

    Args:
        store: The store at the dataset's URL.
        manifest: The dataset's manifest.
        name: What is named: ``"users"``, ``"items"``, ``"words"``.

    Raises:
        NotFoundError: The dataset has none of that name.
        CorruptDataError: It is damaged.
    """
    info = next((v for v in manifest.vocabularies if v.name == name), None)
    if info is None:
        known = ", ".join(v.name for v in manifest.vocabularies) or "none"
        raise NotFoundError(f"{store.url}: has no vocabulary {name!r}; it has {known}")
    return load_vocabulary(store, info)


def load_vocabulary(store: ObjectStore, info: VocabularyInfo) -> Vocabulary:
    """Read a vocabulary that :func:`store_vocabulary` wrote.

    Raises:
        CorruptDataError: It is damaged.
    """
    data = store.get(info.key)
    where = f"{store.url}/{info.key}"
    if zlib.crc32(data) != info.crc32:
        raise CorruptDataError(f"{where}: does not match its checksum: load the data again")
    vocabulary = Vocabulary.from_bytes(data, where)
    if len(vocabulary) != info.n_ids:
        raise CorruptDataError(f"{where}: has {len(vocabulary)} ids, the manifest says {info.n_ids}")
    return vocabulary


def store_vocabulary(store: ObjectStore, prefix: str, name: str, data: bytes) -> VocabularyInfo:
    """Write a vocabulary below a dataset's key prefix, and return what its manifest has to say of it.

    Args:
        store: The store at the dataset's URL.
        prefix: Of the dataset's keys (``new_chunk_prefix``).
        name: What is named.
        data: :meth:`Vocabulary.to_bytes`.
    """
    key = f"{prefix}{name}.vocabulary"
    store.put(key, data)
    n_ids = len(Vocabulary.from_bytes(data, key))
    return VocabularyInfo(name=name, key=key, n_ids=n_ids, crc32=zlib.crc32(data))


def copy_vocabularies(
    source: ObjectStore, manifest: Manifest, target: ObjectStore, prefix: str
) -> tuple[VocabularyInfo, ...]:
    """Copy a dataset's vocabularies to one made from it; see :func:`store_vocabulary`."""
    return tuple(
        store_vocabulary(target, prefix, info.name, read_vocabulary(source, manifest, info.name).to_bytes())
        for info in manifest.vocabularies
    )


def _encoded(names: list[str]) -> NDArray[np.bytes_]:
    encoded = []
    for name in names:
        data = name.encode("utf-8")
        if not data or b"\0" in data or len(data) > MAX_ID_BYTES:
            problem = "is empty" if not data else "holds a NUL" if b"\0" in data else "is too long"
            raise DataError(f"{name[:40]!r} {problem}: names must have 1 to {MAX_ID_BYTES} bytes")
        encoded.append(data)
    return np.array(encoded, np.bytes_) if encoded else np.empty(0, "S1")


def _shown(kept: Any) -> str | int:
    return kept.decode() if isinstance(kept, bytes) else int(kept)
