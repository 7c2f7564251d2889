"""A block as bytes.

Layout, little-endian: a header of fixed size, then an LZ4 block. The header tells every length that the
payload must have, so that a damaged or hostile one is refused before anything is allocated for it. The
payload holds, one after the other:

========  =======================================  ==========================================================
part      type                                     length
========  =======================================  ==========================================================
ids       u8, u16 or u32, the least that fits      n_ids; the first one is in the header, each other is the
                                                   difference to the one before (the first entry here is 0)
lengths   u8, u16 or u32                           n_rows in the CSR layout, nothing in the padded one
local     u8, u16 or u32                           n_entries, as they lie in :attr:`Block.local`
values    u8, or float32 where that does not do    n_entries, or nothing when all are 1
labels    u8, or float32 where that does not do    n_rows
weights   float32                                  n_rows, or nothing when all are 1
========  =======================================  ==========================================================

The bytes of float32 values lie in planes: the lowest byte of every number, then the next byte of every
number, and so on. High bytes are alike and LZ4 finds them so. Local positions would take a quarter less in
that way, but every epoch puts them together again: a block of hashed categories then took 315 us to decode
instead of 113, which is as long as its gradient.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Any

import lz4.block
import numpy as np
from numpy.typing import NDArray

from cirrus.chunks.block import Block, Float32, Positions
from cirrus.errors import CorruptDataError, DataError

MAGIC = b"CBlk"
VERSION = 2
#: Most bytes of a block's payload before compression.
MAX_BLOCK_BYTES = 64 * 2**20
#: LZ4 cannot compress better than this.
MAX_LZ4_RATIO = 255

_HAS_VALUES = 1
_HAS_WEIGHTS = 2
_FLOAT_LABELS = 4
_PADDED = 8
_SMALL_VALUES = 16
_ALL_FLAGS = 31

#: magic, version, flags, width of ids, of lengths, of local (bytes), n_rows, n_ids, n_entries, first id,
#: length of the compressed payload; then its checksum, which covers the fields before it too.
_HEADER = struct.Struct("<4s5B3x5I")
_CHECKSUM = struct.Struct("<I")
HEADER_BYTES = _HEADER.size + _CHECKSUM.size
_WIDTHS: dict[int, np.dtype[Any]] = {w: np.dtype(f"<u{w}") for w in (1, 2, 4)}


@dataclass(frozen=True, slots=True, eq=False)
class StoredBlock:
    """The bytes of one block, and what to call them in an error message."""

    data: bytes | memoryview
    name: str
    n_features: int
    """Ids must be below this."""
    n_rows: int | None = None
    """Rows there must be; None: any number."""


def encode_block(block: Block) -> bytes:
    """Return a block as bytes.

    Raises:
        DataError: The block is larger than :data:`MAX_BLOCK_BYTES`.
    """
    deltas = np.diff(block.ids, prepend=block.ids[:1])
    lengths = np.empty(0, np.intp) if block.row_starts is None else np.diff(block.row_starts)
    flags = _PADDED if block.row_starts is None else 0
    parts: list[NDArray[Any]] = [_narrow(deltas), _narrow(lengths), _narrow(block.local)]
    widths = [part.itemsize for part in parts]
    if block.values is not None:
        flags |= _HAS_VALUES
        if _are_small(block.values):
            flags |= _SMALL_VALUES
            parts.append(block.values.astype(np.uint8))
        else:
            parts.append(_planes(block.values))
    small = block.labels.astype(np.uint8) if _are_small(block.labels) else None
    if small is None:
        flags |= _FLOAT_LABELS
    parts.append(block.labels if small is None else small)
    if block.weights is not None:
        flags |= _HAS_WEIGHTS
        parts.append(block.weights)
    raw = b"".join(part.tobytes() for part in parts)
    if len(raw) > MAX_BLOCK_BYTES:
        raise DataError(
            f"a block of {block.n_rows} rows takes {len(raw)} bytes, more than the {MAX_BLOCK_BYTES} "
            "allowed: use fewer rows a block"
        )
    payload = lz4.block.compress(raw, store_size=False)
    first = int(block.ids[0]) if block.ids.size else 0
    header = _HEADER.pack(
        MAGIC, VERSION, flags, *widths, block.n_rows, block.ids.size, block.local.size, first, len(payload)
    )
    return header + _CHECKSUM.pack(zlib.crc32(payload, zlib.crc32(header))) + bytes(payload)


def _narrow(numbers: NDArray[Any]) -> NDArray[Any]:
    """Return whole numbers in the least width that holds them."""
    largest = int(numbers.max(initial=0))
    return numbers.astype(_WIDTHS[1 if largest < 2**8 else 2 if largest < 2**16 else 4])


def _are_small(numbers: Float32) -> bool:
    """Return whether all are whole numbers that fit in a byte (and none is -0.0)."""
    with np.errstate(invalid="ignore"):
        return bool((numbers.astype(np.uint8) == numbers).all()) and not np.signbit(numbers).any()


def _planes(numbers: NDArray[Any]) -> NDArray[np.uint8]:
    """Return the lowest byte of every number, then the next byte of every number, and so on."""
    flat = numbers.astype(numbers.dtype.newbyteorder("<"), copy=False).ravel()
    return np.ascontiguousarray(flat.view(np.uint8).reshape(flat.size, flat.itemsize).T)


def _value_width(flags: int) -> int:
    if not flags & _HAS_VALUES:
        return 0
    return 1 if flags & _SMALL_VALUES else 4


def decode_block(data: bytes | memoryview | StoredBlock) -> Block:
    """Read a block back.

    What it returns can be relied on: ids ascend and are below ``n_features`` and there are ``n_rows`` (where
    the data is a :class:`StoredBlock`), positions are in range, rows have the lengths they should.

    Raises:
        CorruptDataError: The bytes are not a whole, unchanged block.
    """
    if not isinstance(data, StoredBlock):
        data = StoredBlock(data, "block", 2**32)
    return _Decoder(data).decode()


class _Decoder:
    """Takes one block apart, checking each length before it is used."""

    def __init__(self, stored: StoredBlock) -> None:
        self._stored = stored
        self._offset = 0
        self._raw = b""

    def _fail(self, problem: str) -> CorruptDataError:
        return CorruptDataError(f"{self._stored.name}: {problem}: load the data again")

    def decode(self) -> Block:
        data = self._stored.data
        if len(data) < HEADER_BYTES:
            raise self._fail(f"has {len(data)} bytes, less than a block's header")
        fields = _HEADER.unpack_from(data)
        magic, version, flags, ids_width, lengths_width, local_width, *sizes = fields
        n_rows, n_ids, n_entries, first_id, n_payload = sizes
        if magic != MAGIC:
            raise self._fail("is no block")
        if version != VERSION:
            raise self._fail(f"was written in format {version}, this version of Cirrus reads {VERSION}")
        payload = memoryview(data)[HEADER_BYTES:]
        if n_payload != len(payload):
            raise self._fail(f"is truncated ({len(payload)} bytes of {n_payload})")
        (checksum,) = _CHECKSUM.unpack_from(data, _HEADER.size)
        if zlib.crc32(payload, zlib.crc32(memoryview(data)[: _HEADER.size])) != checksum:
            raise self._fail("does not match its checksum")
        if self._stored.n_rows not in (None, n_rows):
            raise self._fail(f"has {n_rows} rows, the manifest says {self._stored.n_rows}")
        if flags & ~_ALL_FLAGS or not {ids_width, lengths_width, local_width} <= _WIDTHS.keys():
            raise self._fail("has an impossible header")
        padded = bool(flags & _PADDED)
        n_raw = (
            n_ids * ids_width
            + (0 if padded else n_rows * lengths_width)
            + n_entries * (local_width + _value_width(flags))
            + n_rows * ((4 if flags & _FLOAT_LABELS else 1) + (4 if flags & _HAS_WEIGHTS else 0))
        )
        self._decompress(payload, n_raw)
        ids = self._ids(self._take(_WIDTHS[ids_width], n_ids), first_id)
        row_starts = (
            None if padded else self._row_starts(self._take(_WIDTHS[lengths_width], n_rows), n_entries)
        )
        local = self._take(_WIDTHS[local_width], n_entries).astype(np.intp)
        if n_rows == 0 or (padded and n_entries % n_rows):
            raise self._fail("has an impossible number of rows")
        if padded:
            local = local.reshape(-1, n_rows)
        self._check_local(local, n_ids, padded)
        values = self._values(flags, n_entries)
        if padded and values is not None:
            values = values.reshape(-1, n_rows)
        labels = self._floats(n_rows) if flags & _FLOAT_LABELS else self._small_labels(n_rows)
        weights = self._floats(n_rows) if flags & _HAS_WEIGHTS else None
        return Block(ids, labels, local, row_starts, values, weights)

    def _decompress(self, payload: memoryview, n_raw: int) -> None:
        if n_raw > min(MAX_BLOCK_BYTES, MAX_LZ4_RATIO * len(payload)):
            raise self._fail("has an impossible header")
        try:
            self._raw = lz4.block.decompress(payload, uncompressed_size=n_raw)
        except (lz4.block.LZ4BlockError, ValueError) as error:
            raise self._fail(f"cannot be decompressed ({error})") from error
        if len(self._raw) != n_raw:
            raise self._fail("has a payload of another length than its header says")

    def _take(self, kind: np.dtype[Any], count: int) -> NDArray[Any]:
        if count == 0:  # which frombuffer refuses at the end of the buffer
            return np.empty(0, kind)
        part = np.frombuffer(self._raw, kind, count, self._offset)
        self._offset += part.nbytes
        return part

    def _from_planes(self, count: int) -> Float32:
        """Return float32 values whose bytes lie in planes."""
        planes = self._take(_WIDTHS[1], 4 * count).reshape(4, count)
        return np.ascontiguousarray(planes.T).view(np.dtype("<f4")).ravel().astype(np.float32, copy=False)

    def _values(self, flags: int, count: int) -> Float32 | None:
        if not flags & _HAS_VALUES:
            return None
        if flags & _SMALL_VALUES:
            return self._take(_WIDTHS[1], count).astype(np.float32)
        return self._from_planes(count)

    def _floats(self, count: int) -> Float32:
        return self._take(np.dtype("<f4"), count).astype(np.float32, copy=False)

    def _small_labels(self, count: int) -> Float32:
        return self._take(_WIDTHS[1], count).astype(np.float32)

    def _ids(self, deltas: NDArray[Any], first: int) -> NDArray[np.uint32]:
        if deltas.size == 0:
            return np.empty(0, np.uint32)
        ids = np.cumsum(deltas, dtype=np.uint64)
        ids += np.uint64(first)
        if deltas[0] or not deltas[1:].all() or ids[-1] >= min(self._stored.n_features, 2**32):
            raise self._fail("has ids that do not ascend or are no features of the data")
        return ids.astype(np.uint32)

    def _row_starts(self, lengths: NDArray[Any], n_entries: int) -> Positions:
        row_starts = np.zeros(lengths.size + 1, np.intp)
        np.cumsum(lengths, out=row_starts[1:])
        if row_starts[-1] != n_entries:
            raise self._fail("has rows of another length than its entries")
        return row_starts

    def _check_local(self, local: Positions, n_ids: int, padded: bool) -> None:
        if local.size and local.max() >= (n_ids + 1 if padded else n_ids):
            raise self._fail("refers to ids that it does not have")
