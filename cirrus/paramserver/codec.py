"""Frames to messages and back. No sockets here; ``tests/test_codec.py`` runs one table in both directions.

Ids on the wire are sorted and unique, so they travel as differences, in the narrowest of 8, 16 and 32 bits
that holds the largest; a run of consecutive ids travels as a range; and a push that follows a pull of the
same ids names that pull instead. LZ4 is applied on top where asked for and where it makes the payload
smaller.

Every length is checked against the frame before anything is allocated.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import lz4.block
import numpy as np

from cirrus.config import from_plain
from cirrus.errors import ConfigError, ProtocolError, VersionMismatchError
from cirrus.paramserver.protocol import (
    ALIGNMENT_BYTES,
    COMPRESSED,
    HEADER,
    JSON_MESSAGES,
    MAGIC,
    MAX_DECODED_BYTES,
    MAX_FRAME_BYTES,
    MAX_JSON_BYTES,
    PULL_COMPRESSED,
    PULL_FLOAT16,
    PULL_HEAD,
    PUSH_KEY,
    SECTION,
    VERSION,
    Ack,
    IdEncoding,
    Ids,
    Kind,
    Message,
    Pull,
    Push,
    Section,
    ValueEncoding,
    Values,
    ValuesReply,
)

Buffer = bytes | bytearray | memoryview
#: Payloads shorter than this are not worth compressing.
MIN_COMPRESS_BYTES = 64

_DELTA_DTYPES: dict[int, np.dtype[Any]] = {
    IdEncoding.DELTA8: np.dtype("<u1"),
    IdEncoding.DELTA16: np.dtype("<u2"),
    IdEncoding.DELTA32: np.dtype("<u4"),
}
_VALUE_DTYPES: dict[int, np.dtype[Any]] = {
    ValueEncoding.FLOAT32: np.dtype("<f4"),
    ValueEncoding.FLOAT16: np.dtype("<f2"),
}
_LARGEST_FLOAT16 = np.float32(np.finfo(np.float16).max)
_KIND_OF_JSON = {message: kind for kind, message in JSON_MESSAGES.items()}
#: The body of an acknowledgement that has nothing to say.
EMPTY_ACK = b"{}"
_ACK = Ack()


@dataclass(frozen=True, slots=True)
class Header:
    """A frame's first 16 bytes."""

    kind: Kind
    request: int
    length: int


def decode_header(data: Buffer) -> Header:
    """Read a header.

    Args:
        data: At least 16 bytes.

    Raises:
        VersionMismatchError: The peer speaks another version.
        ProtocolError: This is not a frame of ours, or it is too long.
    """
    magic, version, kind, request, length, _ = HEADER.unpack_from(data)
    if magic != MAGIC:
        raise ProtocolError(f"a frame begins with {magic:#06x} instead of {MAGIC:#06x}")
    if version != VERSION:
        raise VersionMismatchError(f"the peer speaks protocol version {version}, this is version {VERSION}")
    if length > MAX_FRAME_BYTES:
        raise ProtocolError(f"a frame of {length} bytes is above the limit of {MAX_FRAME_BYTES}")
    try:
        return Header(Kind(kind), request, length)
    except ValueError as error:
        raise ProtocolError(f"unknown kind of frame {kind}") from error


def encode(message: Message, request: int, *, float16: bool = False, compressed: bool = False) -> bytes:
    """Return a whole frame.

    Args:
        message: What to send.
        request: The request's number; a reply repeats it.
        float16: Send values as float16.
        compressed: Compress what LZ4 makes smaller.
    """
    return b"".join(encode_parts(message, request, float16=float16, compressed=compressed))


def encode_parts(
    message: Message, request: int, *, float16: bool = False, compressed: bool = False
) -> list[Buffer]:
    """As :func:`encode`, in pieces, so that large arrays need not be copied before they are sent."""
    parts: list[Buffer] = []
    if isinstance(message, Push):
        kind = Kind.PUSH
        parts.append(
            PUSH_KEY.pack(
                message.epoch, message.lease, message.position, len(message.sections), 0, message.step
            )
        )
        _encode_sections(message.sections, parts, float16, compressed)
    elif isinstance(message, Pull):
        kind = Kind.PULL
        flags = PULL_FLOAT16 * message.float16 | PULL_COMPRESSED * message.compressed
        parts.append(PULL_HEAD.pack(len(message.sections), flags, 0))
        _encode_sections(message.sections, parts, float16, compressed)
    elif isinstance(message, ValuesReply):
        kind = Kind.VALUES
        parts.append(PULL_HEAD.pack(len(message.sections), 0, 0))
        _encode_sections(message.sections, parts, float16, compressed)
    else:
        kind = _KIND_OF_JSON[type(message)]
        parts.append(_encode_json(message))
    length = sum(len(p) for p in parts)
    if length > MAX_FRAME_BYTES:
        raise ProtocolError(f"a frame of {length} bytes is above the limit of {MAX_FRAME_BYTES}")
    parts.insert(0, HEADER.pack(MAGIC, VERSION, kind, request, length, 0))
    return parts


def decode(kind: Kind, body: Buffer) -> Message:
    """Read a frame's body.

    Raises:
        ProtocolError: The body is not what the kind promises.
    """
    view = memoryview(body)
    if kind == Kind.PUSH:
        _need(view, PUSH_KEY.size, "a push")
        epoch, lease, position, n_sections, _, step = PUSH_KEY.unpack_from(view)
        sections = _decode_sections(view[PUSH_KEY.size :], n_sections)
        return Push(epoch=epoch, lease=lease, position=position, step=step, sections=sections)
    if kind in (Kind.PULL, Kind.VALUES):
        _need(view, PULL_HEAD.size, "a pull")
        n_sections, flags, _ = PULL_HEAD.unpack_from(view)
        sections = _decode_sections(view[PULL_HEAD.size :], n_sections)
        if kind == Kind.VALUES:
            return ValuesReply(sections=sections)
        return Pull(
            sections=sections, float16=bool(flags & PULL_FLOAT16), compressed=bool(flags & PULL_COMPRESSED)
        )
    return _decode_json(kind, view)


def _encode_json(message: Message) -> bytes:
    if isinstance(message, Ack) and not message.lease_lost:
        return EMPTY_ACK
    return json.dumps(dataclasses.asdict(message)).encode()


def _decode_json(kind: Kind, view: memoryview) -> Message:
    if kind == Kind.ACK and view == EMPTY_ACK:
        return _ACK  # the one JSON message that travels every step
    if len(view) > MAX_JSON_BYTES:
        raise ProtocolError(f"a {kind.name} of {len(view)} bytes is above the limit of {MAX_JSON_BYTES}")
    try:
        raw = json.loads(bytes(view))
        return cast(Message, from_plain(JSON_MESSAGES[kind], raw, kind.name))
    except (ValueError, RecursionError, ConfigError) as error:
        raise ProtocolError(f"a malformed {kind.name}: {error}") from error


def _need(view: memoryview, size: int, what: str) -> None:
    if len(view) < size:
        raise ProtocolError(f"{what} has {len(view)} bytes where at least {size} are needed")


def _padding(length: int) -> bytes:
    return bytes(-length % ALIGNMENT_BYTES)


def _encode_sections(
    sections: Sequence[Section], parts: list[Buffer], float16: bool, compressed: bool
) -> None:
    for section in sections:
        id_encoding, count, first, id_payload = _encode_ids(section, compressed)
        value_encoding, value_payload, raw_bytes = _encode_values(section.values, float16, compressed)
        parts.append(
            SECTION.pack(
                section.table,
                id_encoding,
                value_encoding,
                count,
                first,
                len(id_payload),
                len(value_payload),
                raw_bytes,
            )
        )
        for payload in (id_payload, value_payload):
            if len(payload):
                parts.append(payload)
                if len(payload) % ALIGNMENT_BYTES:
                    parts.append(_padding(len(payload)))


def _encode_ids(section: Section, compressed: bool) -> tuple[int, int, int, Buffer]:
    """Return encoding, count, the first id or the pull, and the payload."""
    if section.pull is not None:
        return IdEncoding.SAME_AS_PULL, 0, section.pull, b""
    ids = section.ids
    if ids is None:
        return IdEncoding.NONE, 0, 0, b""
    count = len(ids)
    if count == 0:
        return IdEncoding.RANGE, 0, 0, b""
    first = int(ids[0])
    if int(ids[-1]) - first == count - 1:
        return IdEncoding.RANGE, count, first, b""
    deltas = ids[1:] - ids[:-1]
    widest = int(np.maximum.reduce(deltas))
    encoding = (
        IdEncoding.DELTA8 if widest < 2**8 else IdEncoding.DELTA16 if widest < 2**16 else IdEncoding.DELTA32
    )
    raw = deltas.astype(_DELTA_DTYPES[encoding], copy=False).data.cast("B")
    if compressed and len(raw) >= MIN_COMPRESS_BYTES:
        squeezed = lz4.block.compress(raw, store_size=False)
        if len(squeezed) < len(raw):
            return encoding | COMPRESSED, count, first, squeezed
    return encoding, count, first, raw


def _encode_values(values: Values | None, float16: bool, compressed: bool) -> tuple[int, Buffer, int]:
    if values is None:
        return ValueEncoding.NONE, b"", 0
    encoding = ValueEncoding.FLOAT16 if float16 else ValueEncoding.FLOAT32
    if float16:
        # Infinity would be refused by the shard; the largest number that there is does less harm.
        values = np.clip(values, -_LARGEST_FLOAT16, _LARGEST_FLOAT16)
    array = np.ascontiguousarray(values).astype(_VALUE_DTYPES[encoding], copy=False).reshape(-1)
    raw: Buffer = array.data.cast("B") if len(array) else b""
    if compressed and len(raw) >= MIN_COMPRESS_BYTES:
        squeezed = lz4.block.compress(raw, store_size=False)
        if len(squeezed) < len(raw):
            return encoding | COMPRESSED, squeezed, len(raw)
    return encoding, raw, len(raw)


def _decode_sections(view: memoryview, n_sections: int) -> tuple[Section, ...]:
    sections = []
    offset = 0
    decoded_bytes = 0
    for _ in range(n_sections):
        _need(view, offset + SECTION.size, "a section")
        table, id_encoding, value_encoding, count, first, id_bytes, value_bytes, raw_bytes = (
            SECTION.unpack_from(view, offset)
        )
        offset += SECTION.size
        id_end = offset + id_bytes
        value_start = id_end + -id_bytes % ALIGNMENT_BYTES
        value_end = value_start + value_bytes
        _need(view, value_end, "a section")
        ids, pull = _decode_ids(id_encoding, count, first, view[offset:id_end])
        values = _decode_values(value_encoding, raw_bytes, view[value_start:value_end])
        decoded_bytes += sum(0 if array is None else array.nbytes for array in (ids, values))
        if decoded_bytes > MAX_DECODED_BYTES:
            raise ProtocolError(f"a frame expands to more than {MAX_DECODED_BYTES} bytes")
        sections.append(Section(table=table, ids=ids, pull=pull, values=values))
        offset = value_end + -value_bytes % ALIGNMENT_BYTES
    if offset != len(view):
        raise ProtocolError(f"{len(view) - offset} bytes are left over behind the last section")
    return tuple(sections)


def decoded_push_bytes(body: Buffer) -> int:
    """Return how many bytes ids and values of a push take once decoded, at most, by what its headers say.

    Whatever says that it has more than it says is refused when it is decoded.
    """
    if len(body) < PUSH_KEY.size:
        return 0
    n_sections = PUSH_KEY.unpack_from(body)[3]
    offset, found = PUSH_KEY.size, 0
    for _ in range(n_sections):
        if offset + SECTION.size > len(body):
            break
        _, _, _, count, _, id_bytes, value_bytes, raw_bytes = SECTION.unpack_from(body, offset)
        # Values that travel as float16 become float32.
        found += 4 * count + 2 * raw_bytes
        offset += SECTION.size + id_bytes + -id_bytes % ALIGNMENT_BYTES
        offset += value_bytes + -value_bytes % ALIGNMENT_BYTES
    return min(found, MAX_DECODED_BYTES)


def _decode_ids(encoding: int, count: int, first: int, payload: memoryview) -> tuple[Ids | None, int | None]:
    plain = encoding & ~COMPRESSED
    if plain == IdEncoding.SAME_AS_PULL:
        return None, first
    if plain == IdEncoding.NONE:
        return None, None
    if 4 * count > MAX_FRAME_BYTES:
        raise ProtocolError(f"a section of {count} ids is above the limit of {MAX_FRAME_BYTES // 4}")
    if plain == IdEncoding.RANGE:
        if first + count > 2**32:
            raise ProtocolError(f"a range of {count} ids from {first} ends above 2**32")
        return np.arange(first, first + count, dtype=np.uint32), None
    try:
        dtype = _DELTA_DTYPES[IdEncoding(plain)]
    except (ValueError, KeyError) as error:
        raise ProtocolError(f"unknown encoding of ids {encoding}") from error
    if count == 0:
        raise ProtocolError("a section of differences without a first id")
    raw = _expand(encoding, payload, (count - 1) * dtype.itemsize)
    deltas = np.frombuffer(raw, dtype)
    if len(deltas) and int(deltas.min()) == 0:
        raise ProtocolError("ids are not sorted and unique")
    ids = np.empty(count, np.uint64)
    ids[0] = first
    ids[1:] = deltas
    np.cumsum(ids, out=ids)
    if int(ids[-1]) >= 2**32:
        raise ProtocolError("an id is above 2**32")
    return ids.astype(np.uint32), None


def _decode_values(encoding: int, raw_bytes: int, payload: memoryview) -> Values | None:
    plain = encoding & ~COMPRESSED
    if plain == ValueEncoding.NONE:
        return None
    try:
        dtype = _VALUE_DTYPES[ValueEncoding(plain)]
    except (ValueError, KeyError) as error:
        raise ProtocolError(f"unknown encoding of values {encoding}") from error
    if raw_bytes % dtype.itemsize:
        raise ProtocolError(f"{raw_bytes} bytes are not a whole number of {dtype} values")
    raw = _expand(encoding, payload, raw_bytes)
    return np.frombuffer(raw, dtype).astype(np.float32, copy=False)


def _expand(encoding: int, payload: memoryview, raw_bytes: int) -> Buffer:
    """Return a payload as it was before compression, of exactly ``raw_bytes`` bytes."""
    if raw_bytes > MAX_FRAME_BYTES:
        raise ProtocolError(f"a payload of {raw_bytes} bytes is above the limit of {MAX_FRAME_BYTES}")
    if not encoding & COMPRESSED:
        if len(payload) != raw_bytes:
            raise ProtocolError(f"a payload has {len(payload)} bytes instead of {raw_bytes}")
        return payload
    try:
        raw = cast(bytes, lz4.block.decompress(payload, uncompressed_size=raw_bytes))
    except lz4.block.LZ4BlockError as error:
        raise ProtocolError(f"a payload is not LZ4: {error}") from error
    if len(raw) != raw_bytes:
        raise ProtocolError(f"a payload has {len(raw)} bytes instead of {raw_bytes}")
    return raw
