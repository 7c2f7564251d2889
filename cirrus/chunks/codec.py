"""A block as bytes.

Layout, little-endian: a header of fixed size, then an LZ4 block. The header tells how long the payload is
when decompressed, which is checked before anything is allocated for it, as is each part of it before it is
taken. The payload holds, one after the other:

========  =====================================  ===========================================================
part      form                                   how many
========  =====================================  ===========================================================
steps     u8, u16 or u32, the least room in all  n_ids; see below
leaps     u16 in planes, or u32                  n_leaps
lengths   u8, u16 or u32, the least that fits    n_rows in the CSR layout, nothing in the padded one
local     u8, u16 or u32, the least that fits    n_entries, as they lie in :attr:`Block.local`
values    :mod:`cirrus.chunks.columns`           n_entries, or nothing when all are 1; the columns are those
                                                 of :attr:`Block.values` in the padded layout, one in CSR
labels    likewise, but never of kind ONES       one column of n_rows
weights   likewise                               one column of n_rows, or nothing when all are 1
========  =====================================  ===========================================================

Ids are stored as steps: the first one is in the header, each other is the difference to the one before, and
the first step is 1. A step of 0 stands for a leap, a difference too large for the width of the steps; the
leaps lie behind. Hashed features lie some hundred apart, so that this takes a byte and a tenth for each of
them, where the largest of the differences alone would ask for two bytes.

Other forms of ``local`` take less room, but every epoch decodes them again. With all entries of a field in
one column and a dictionary for each field of few values, a block of hashed categories takes a tenth less and
45 us more, of some 105; LZ4's high compression takes 5 % less, 15 us more, and twelve times as long to write.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Any

import lz4.block
import numpy as np
from numpy.typing import NDArray

from cirrus.chunks.block import Block, Ids, Positions
from cirrus.chunks.columns import WIDTHS, Reader, decode_values, encode_values, narrowed, planes, take_planes
from cirrus.errors import CorruptDataError, DataError

MAGIC = b"CBlk"
VERSION = 3
#: Most bytes of a block's payload before compression.
MAX_BLOCK_BYTES = 64 * 2**20
#: LZ4 cannot compress better than this.
MAX_LZ4_RATIO = 255

_HAS_VALUES = 1
_HAS_WEIGHTS = 2
_PADDED = 4
_ALL_FLAGS = 7

#: magic, version, flags, width of steps, of leaps, of lengths, of local (bytes), n_rows, n_ids, n_leaps,
#: n_entries, first id, length of the payload, its compressed length; then a checksum, which covers these
#: fields too.
_HEADER = struct.Struct("<4s6B2x7I")
_CHECKSUM = struct.Struct("<I")
HEADER_BYTES = _HEADER.size + _CHECKSUM.size


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
    padded = block.row_starts is None
    lengths = narrowed(np.empty(0, np.intp) if block.row_starts is None else np.diff(block.row_starts))
    steps, leaps = _steps_and_leaps(block.ids)
    local = narrowed(block.local)
    widths = [part.itemsize for part in (steps, leaps, lengths, local)]
    parts = [steps, planes(leaps) if leaps.itemsize == 2 else leaps, lengths, local]
    if block.values is not None:
        parts += encode_values(block.values if padded else block.values[None, :])
    parts += encode_values(block.labels[None, :], some_ones=False)
    if block.weights is not None:
        parts += encode_values(block.weights[None, :])
    n_raw = sum(part.nbytes for part in parts)
    if n_raw > MAX_BLOCK_BYTES:
        raise DataError(
            f"a block of {block.n_rows} rows takes {n_raw} bytes, more than the {MAX_BLOCK_BYTES} "
            "allowed: use fewer rows a block"
        )
    payload = lz4.block.compress(b"".join(part.tobytes() for part in parts), store_size=False)
    flags = (
        (_PADDED if padded else 0)
        | (0 if block.values is None else _HAS_VALUES)
        | (0 if block.weights is None else _HAS_WEIGHTS)
    )
    first = int(block.ids[0]) if block.ids.size else 0
    sizes = (block.n_rows, block.ids.size, leaps.size, block.local.size, first, n_raw, len(payload))
    header = _HEADER.pack(MAGIC, VERSION, flags, *widths, *sizes)
    return header + _CHECKSUM.pack(zlib.crc32(payload, zlib.crc32(header))) + bytes(payload)


def _steps_and_leaps(ids: Ids) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return ids as steps, in the width that takes the least room, and leaps."""
    deltas = np.diff(ids, prepend=ids[:1])
    deltas[:1] = 1
    leap_width = 2 if int(deltas.max(initial=0)) < 2**16 else 4
    n_bytes = {
        width: width * deltas.size + leap_width * np.count_nonzero(deltas >> np.uint32(8 * width - 1) >> 1)
        for width in WIDTHS
    }
    width = min(n_bytes, key=lambda width: n_bytes[width])
    leaps = deltas[deltas > 2 ** (8 * width) - 1].astype(WIDTHS[leap_width])
    deltas[deltas > 2 ** (8 * width) - 1] = 0
    return deltas.astype(WIDTHS[width]), leaps


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

    def _fail(self, problem: str) -> CorruptDataError:
        return CorruptDataError(f"{self._stored.name}: {problem}: load the data again")

    def decode(self) -> Block:
        data = self._stored.data
        if len(data) < HEADER_BYTES:
            raise self._fail(f"has {len(data)} bytes, less than a block's header")
        magic, version, flags, *fields = _HEADER.unpack_from(data)
        step_width, leap_width, lengths_width, local_width, *sizes = fields
        n_rows, n_ids, n_leaps, n_entries, first_id, n_raw, n_payload = sizes
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
        padded = bool(flags & _PADDED)
        if (
            flags & ~_ALL_FLAGS
            or not {step_width, lengths_width, local_width} <= WIDTHS.keys()
            or leap_width not in (2, 4)
            or n_rows == 0
            or (padded and n_entries % n_rows)
        ):
            raise self._fail("has an impossible header")
        reader = Reader(self._decompressed(payload, n_raw), self._fail)
        steps = reader.take(WIDTHS[step_width], n_ids)
        leaps = take_planes(reader, n_leaps) if leap_width == 2 else reader.take(WIDTHS[4], n_leaps)
        ids = self._ids(steps, leaps, first_id)
        row_starts = (
            None if padded else self._row_starts(reader.take(WIDTHS[lengths_width], n_rows), n_entries)
        )
        shape = (n_entries // n_rows, n_rows) if padded else (1, n_entries)
        local = self._local(reader.take(WIDTHS[local_width], n_entries), n_ids + padded)
        values = decode_values(reader, *shape) if flags & _HAS_VALUES else None
        labels = decode_values(reader, 1, n_rows, some_ones=False)[0]
        weights = decode_values(reader, 1, n_rows)[0] if flags & _HAS_WEIGHTS else None
        reader.end()
        if padded:
            local = local.reshape(shape)
        elif values is not None:
            values = values[0]
        return Block(ids, labels, local, row_starts, values, weights)

    def _decompressed(self, payload: memoryview, n_raw: int) -> bytes:
        if n_raw > min(MAX_BLOCK_BYTES, MAX_LZ4_RATIO * len(payload)):
            raise self._fail("has an impossible header")
        try:
            raw: bytes = lz4.block.decompress(payload, uncompressed_size=n_raw)
        except (lz4.block.LZ4BlockError, ValueError) as error:
            raise self._fail(f"cannot be decompressed ({error})") from error
        if len(raw) != n_raw:
            raise self._fail("has a payload of another length than its header says")
        return raw

    def _ids(self, steps: NDArray[Any], leaps: NDArray[Any], first: int) -> Ids:
        if steps.size == 0:
            return np.empty(0, np.uint32)
        deltas = steps.astype(np.int64)
        if np.count_nonzero(steps) != steps.size:
            places = np.flatnonzero(steps == 0)
            if places.size != leaps.size or not leaps.all():
                raise self._fail("has other leaps between ids than its header says")
            deltas[places] = leaps
        ids = np.cumsum(deltas, out=deltas)
        ids += first - 1
        if steps[0] != 1 or ids[-1] >= min(self._stored.n_features, 2**32):
            raise self._fail("has ids that are no features of the data")
        return ids.astype(np.uint32)

    def _local(self, stored: NDArray[Any], limit: int) -> Positions:
        if stored.size and int(stored.max()) >= limit:
            raise self._fail("refers to ids that it does not have")
        return stored.astype(np.intp)

    def _row_starts(self, lengths: NDArray[Any], n_entries: int) -> Positions:
        row_starts = np.zeros(lengths.size + 1, np.intp)
        np.cumsum(lengths, out=row_starts[1:])
        if row_starts[-1] != n_entries:
            raise self._fail("has rows of another length than its entries")
        return row_starts
