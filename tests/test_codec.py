"""The wire codec: one table of messages run in both directions, golden frames, and bytes that are wrong."""

from __future__ import annotations

import struct
from typing import Any

import lz4.block
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cirrus.errors import ProtocolError, VersionMismatchError
from cirrus.paramserver import protocol as p
from cirrus.paramserver.codec import decode, decode_header, encode, encode_parts

Header = struct.Struct("<HBBIII")
SectionHead = struct.Struct("<HBBIIIII")


def ids(*values: int) -> p.Ids:
    """Return ids as the codec wants them."""
    return np.array(values, np.uint32)


def values(*numbers: float) -> p.Values:
    """Return values as the codec wants them."""
    return np.array(numbers, np.float32)


def read(frame: bytes) -> p.Message:
    """Decode a whole frame."""
    header = decode_header(frame)
    assert len(frame) == p.HEADER.size + header.length
    return decode(header.kind, frame[p.HEADER.size :])


def push(*sections: p.Section) -> p.Push:
    """Return a push of some step."""
    return p.Push(epoch=1, lease=2, position=3, step=4, sections=sections)


#: Every message of the protocol, most of them with every field away from its default.
MESSAGES: list[p.Message] = [
    p.Challenge(nonce="ab" * 32),
    p.Hello(shard=3, generation=2, nonce="cd" * 32),
    p.Proof(proof="ef" * 32),
    p.Welcome(shard=3, generation=2, proof="secret ü"),
    p.Error(code=p.ErrorCode.LEASE_LOST, message='it\'s "gone"'),
    p.Pull(sections=()),
    p.Pull(sections=(p.Section(table=0, ids=ids(5)), p.Section(table=1, ids=ids(1, 2, 9))), float16=True),
    p.Pull(sections=(p.Section(table=7, ids=ids()),), compressed=True),
    p.ValuesReply(sections=()),
    p.ValuesReply(sections=(p.Section(table=0, values=values(1.5, -2)), p.Section(table=1, values=values()))),
    p.Push(epoch=2**32 - 1, lease=2**32 - 1, position=2**32 - 1, step=2**64 - 1),
    push(p.Section(table=0, ids=ids(0, 2**32 - 1), values=values(1, np.inf))),
    push(p.Section(table=0, pull=77, values=values(1, 2, 3)), p.Section(table=65535, pull=2**32 - 1)),
    p.Ack(),
    p.Ack(lease_lost=True),
    p.NeedIds(),
    p.Attach(epoch=1, lease=2, grant=2**40 + 1),
    p.Attached(position=9),
    p.Register(worker=4, generation=2, role="evaluate"),
    p.Registered(),
    p.NextTask(wait_seconds=0.25),
    p.Task(action="train", epoch=1, lease=2, grant=3, first_step=2**33, n_workers=7),
    p.Complete(
        epoch=1,
        lease=2,
        grant=3,
        generations=(1, 4),
        loss_sum=1.5,
        weight_sum=2.5,
        n_rows=3,
        n_steps=4,
        fetch_seconds=0.1,
        pull_seconds=0.2,
        compute_seconds=0.3,
        push_seconds=0.4,
    ),
    p.StepTurn(epoch=1, lease=2, grant=3, position=4, pushing=True, wait_seconds=0.5),
    p.TurnReply(granted=True),
    p.Done(),
    p.Evaluation(epoch=3, grant=4, loss=0.5, metrics={"accuracy": 0.75}),
    p.ShardStarted(shard=1, generation=2, completed_epochs=3, marks={"3": [0, 4, 7]}),
    p.MarksRequest(),
    p.MarksReply(generation=2, completed_epochs=3, marks={"3": [0, 4, 7]}),
    p.WriteCheckpoint(url="s3://bucket/a b"),
    p.StatisticsRequest(),
    p.StatisticsReply(counts={"shard0.steps_applied": 12}),
    p.End(),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
@pytest.mark.parametrize("compressed", [False, True])
def test_a_message_survives_the_wire(message: p.Message, compressed: bool) -> None:
    """What was encoded is decoded to an equal message, and the header tells its kind, number and length."""
    frame = encode(message, 2**32 - 1, compressed=compressed)
    header = decode_header(frame)
    assert header.request == 2**32 - 1
    assert header.length == len(frame) - p.HEADER.size
    assert decode(header.kind, frame[p.HEADER.size :]) == message
    assert read(b"".join(encode_parts(message, 0, compressed=compressed))) == message


def test_the_table_has_every_kind() -> None:
    """No kind of frame is left out of the table above."""
    assert {decode_header(encode(message, 1)).kind for message in MESSAGES} == set(p.Kind)


#: Written down byte by byte: a change of any of these is a new version of the protocol.
GOLDEN: list[tuple[p.Message, dict[str, Any], str]] = [
    (p.Ack(), {}, "43520207 07000000 02000000 00000000 7b7d"),
    (p.Done(), {}, "43520211 07000000 02000000 00000000 7b7d"),
    (
        p.Attached(position=9),
        {},
        "4352020a 07000000 0f000000 00000000 7b22706f736974696f6e223a20397d",
    ),
    (
        # one section: table 1, ids as 8-bit differences 2 and 255 from 10
        p.Pull(sections=(p.Section(table=1, ids=ids(10, 12, 267)),), compressed=True),
        {},
        "43520204 07000000 28000000 00000000"
        "0100 0200 00000000"
        "0100 00 02 03000000 0a000000 02000000 00000000 00000000"
        "02ff000000000000",
    ),
    (
        # ids as 16-bit differences, then a range of three, then 32-bit differences
        p.Pull(
            sections=(
                p.Section(table=0, ids=ids(1, 257, 258)),
                p.Section(table=2, ids=ids(7, 8, 9)),
                p.Section(table=3, ids=ids(0, 65536)),
            ),
            float16=True,
        ),
        {},
        "43520204 07000000 60000000 00000000"
        "0300 0100 00000000"
        "0000 01 02 03000000 01000000 04000000 00000000 00000000"
        "0001010000000000"
        "0200 04 02 03000000 07000000 00000000 00000000 00000000"
        "0300 02 02 02000000 00000000 04000000 00000000 00000000"
        "0000010000000000",
    ),
    (
        p.ValuesReply(sections=(p.Section(table=1, values=values(1.0, -2.0)),)),
        {},
        "43520205 07000000 28000000 00000000"
        "0100 0000 00000000"
        "0100 05 00 00000000 00000000 00000000 08000000 08000000"
        "0000803f000000c0",
    ),
    (
        # the same as float16
        p.ValuesReply(sections=(p.Section(table=1, values=values(1.0, -2.0)),)),
        {"float16": True},
        "43520205 07000000 28000000 00000000"
        "0100 0000 00000000"
        "0100 05 01 00000000 00000000 00000000 04000000 04000000"
        "003c00c000000000",
    ),
    (
        # rows 5 and 9 of table 0, and those of pull 6 in table 1
        push(
            p.Section(table=0, ids=ids(5, 9), values=values(1.0, 0.5)),
            p.Section(table=1, pull=6, values=values(-1.0)),
        ),
        {},
        "43520206 07000000 60000000 00000000"
        "01000000 02000000 03000000 0200 0000 0400000000000000"
        "0000 00 00 02000000 05000000 01000000 08000000 08000000"
        "0400000000000000"
        "0000803f0000003f"
        "0100 03 00 00000000 06000000 00000000 04000000 04000000"
        "000080bf00000000",
    ),
]


@pytest.mark.parametrize(("message", "options", "golden"), GOLDEN)
def test_the_format_does_not_drift(message: p.Message, options: dict[str, Any], golden: str) -> None:
    """Frames are, byte for byte, what docs/protocol.md says and older peers sent."""
    assert encode(message, 7, **options).hex() == golden.replace(" ", "")


def test_every_number_on_the_wire_is_fixed() -> None:
    """Kinds, encodings and error codes keep their numbers: gaps or reuse would break old peers silently."""
    assert [kind.value for kind in p.Kind] == list(range(1, 29))
    assert [int(encoding) for encoding in p.IdEncoding] == list(range(6))
    assert [int(encoding) for encoding in p.ValueEncoding] == list(range(3))
    assert [int(code) for code in p.ErrorCode] == list(range(1, 9))
    assert (p.MAGIC, p.VERSION, p.COMPRESSED) == (0x5243, 2, 0x80)
    assert (p.HEADER.size, p.PUSH_KEY.size, p.PULL_HEAD.size, p.SECTION.size) == (16, 24, 8, 24)


@pytest.mark.parametrize(
    ("section_ids", "encoding", "n_bytes"),
    [
        (ids(), p.IdEncoding.RANGE, 0),
        (ids(4), p.IdEncoding.RANGE, 0),
        (ids(4, 5, 6), p.IdEncoding.RANGE, 0),
        (ids(4, 4 + 255), p.IdEncoding.DELTA8, 1),
        (ids(4, 4 + 256), p.IdEncoding.DELTA16, 2),
        (ids(4, 4 + 65535), p.IdEncoding.DELTA16, 2),
        (ids(4, 4 + 65536), p.IdEncoding.DELTA32, 4),
        (ids(0, 2**32 - 1), p.IdEncoding.DELTA32, 4),
    ],
)
def test_ids_travel_in_the_narrowest_form(section_ids: p.Ids, encoding: int, n_bytes: int) -> None:
    """A run of ids is a range, others are differences of 8, 16 or 32 bits, whichever holds the largest."""
    frame = encode(p.Pull(sections=(p.Section(table=0, ids=section_ids),)), 1)
    head = SectionHead.unpack_from(frame, p.HEADER.size + p.PULL_HEAD.size)
    assert (head[1], head[3], head[5]) == (encoding, len(section_ids), n_bytes)


def test_compression_is_used_where_it_helps_alone() -> None:
    """Payloads that LZ4 makes smaller are compressed, others travel as they are."""
    rng = np.random.default_rng(0)
    regular = p.Section(table=0, ids=np.arange(0, 3000, 3, dtype=np.uint32), values=np.ones(1000, np.float32))
    noise = p.Section(table=0, pull=1, values=rng.normal(size=1000).astype(np.float32))
    for section, flags in ((regular, (p.COMPRESSED, p.COMPRESSED)), (noise, (0, 0))):
        frame = encode(push(section), 1, compressed=True)
        head = SectionHead.unpack_from(frame, p.HEADER.size + p.PUSH_KEY.size)
        assert (head[1] & p.COMPRESSED, head[2] & p.COMPRESSED) == flags
        assert head[7] == 4000
        assert read(frame) == push(section)


def test_float16_rounds_and_never_overflows() -> None:
    """Values beyond float16's range are sent as its largest number, since a shard refuses infinity."""
    sent = values(1.0, 1.0001, 1e6, -1e6, 65504, 1e-9, np.nan)
    found = read(encode(push(p.Section(table=0, pull=1, values=sent)), 1, float16=True))
    assert isinstance(found, p.Push)
    np.testing.assert_array_equal(found.sections[0].values, values(1, 1, 65504, -65504, 65504, 0, np.nan))


def test_a_two_dimensional_gradient_is_sent_row_by_row() -> None:
    """Values of shape (n, width), also not contiguous ones, travel flat in row order."""
    grid = np.arange(12, dtype=np.float32).reshape(3, 4).T
    found = read(encode(push(p.Section(table=0, pull=1, values=grid)), 1))
    assert isinstance(found, p.Push)
    np.testing.assert_array_equal(found.sections[0].values, grid.reshape(-1))


# Properties.

sorted_ids = st.one_of(
    st.lists(st.integers(0, 2**32 - 1), unique=True, max_size=50).map(sorted),
    st.lists(st.integers(1, 255), max_size=200).map(lambda deltas: list(np.cumsum(deltas))),
    st.tuples(st.integers(0, 2**31), st.integers(0, 300)).map(lambda t: list(range(t[0], t[0] + t[1]))),
).map(lambda found: np.array(found, np.uint32))
floats = hnp.arrays(np.float32, st.integers(0, 200), elements=st.floats(width=32))
small = st.integers(0, 65535)
word = st.integers(0, 2**32 - 1)


@st.composite
def push_messages(draw: st.DrawFn) -> p.Push:
    """Draw a push of any step, tables, rows and values."""
    sections = []
    for _ in range(draw(st.integers(0, 4))):
        named = draw(st.booleans())
        sections.append(
            p.Section(
                table=draw(small),
                ids=None if named else draw(sorted_ids),
                pull=draw(word) if named else None,
                values=draw(floats),
            )
        )
    step = draw(st.integers(0, 2**64 - 1))
    key = {"epoch": draw(word), "lease": draw(word), "position": draw(word), "step": step}
    return p.Push(sections=tuple(sections), **key)


pull_messages = st.builds(
    lambda parts, float16, compressed: p.Pull(
        sections=tuple(p.Section(table=t, ids=rows) for t, rows in parts),
        float16=float16,
        compressed=compressed,
    ),
    st.lists(st.tuples(small, sorted_ids), max_size=4),
    st.booleans(),
    st.booleans(),
)


@given(message=st.one_of(push_messages(), pull_messages), compressed=st.booleans())
@settings(deadline=None)
def test_any_push_or_pull_survives(message: p.Message, compressed: bool) -> None:
    """Whatever ids and values a step touches, the shard sees the same."""
    assert read(encode(message, 1, compressed=compressed)) == message


@given(message=push_messages(), compressed=st.booleans())
@settings(deadline=None)
def test_encoding_is_a_fixed_point(message: p.Push, compressed: bool) -> None:
    """A shard that expands a compressed push gets the very frame that an uncompressed one would have been."""
    expanded = read(encode(message, 1, compressed=compressed))
    assert encode(expanded, 1) == encode(message, 1)


@given(message=push_messages())
@settings(deadline=None)
def test_payloads_are_aligned(message: p.Push) -> None:
    """Every payload of a frame begins at a multiple of eight, and so does the next frame."""
    frame = encode(message, 1, compressed=True)
    assert len(frame) % p.ALIGNMENT_BYTES == 0


# Bytes that are wrong.


def refused(kind: p.Kind, body: bytes) -> None:
    """Check that a body is refused, or by chance means something, and nothing else."""
    try:
        decode(kind, body)
    except ProtocolError:
        return


@given(kind=st.sampled_from(p.Kind), body=st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_random_bytes_are_refused(kind: p.Kind, body: bytes) -> None:
    """No body, of whatever kind, raises anything but a ProtocolError."""
    refused(kind, body)


@given(message=st.sampled_from(MESSAGES), compressed=st.booleans(), data=st.data())
@settings(max_examples=300, deadline=None)
def test_damaged_frames_are_refused(message: p.Message, compressed: bool, data: st.DataObject) -> None:
    """A frame cut anywhere or with any bit changed raises nothing but a ProtocolError."""
    frame = bytearray(encode(message, 1, compressed=compressed))
    bit = data.draw(st.integers(0, 8 * len(frame) - 1))
    frame[bit // 8] ^= 1 << bit % 8
    try:
        header = decode_header(frame)
    except ProtocolError:
        return
    stop = data.draw(st.integers(p.HEADER.size, len(frame)))
    refused(header.kind, bytes(frame[p.HEADER.size : stop]))


BINARY = [message for message in MESSAGES if isinstance(message, (p.Pull, p.Push, p.ValuesReply))]


@pytest.mark.parametrize("message", BINARY, ids=lambda message: type(message).__name__)
def test_a_binary_body_of_another_length_is_refused(message: p.Message) -> None:
    """A pull, push or reply that is cut at any byte, or has bytes behind its end, is not accepted."""
    frame = encode(message, 1)
    kind = decode_header(frame).kind
    body = frame[p.HEADER.size :]
    for length in range(len(body)):
        with pytest.raises(ProtocolError):
            decode(kind, body[:length])
    with pytest.raises(ProtocolError, match="left over"):
        decode(kind, body + bytes(8))


def section(
    *, id_encoding: int, value_encoding: int = p.ValueEncoding.NONE, count: int = 0, first: int = 0,
    id_payload: bytes = b"", value_payload: bytes = b"", raw_bytes: int = 0,
) -> bytes:  # fmt: skip
    """Return the body of a pull with one section."""
    head = SectionHead.pack(
        0, id_encoding, value_encoding, count, first, len(id_payload), len(value_payload), raw_bytes
    )
    padded = b"".join(payload + bytes(-len(payload) % 8) for payload in (id_payload, value_payload))
    return struct.pack("<HHI", 1, 0, 0) + head + padded


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (section(id_encoding=p.IdEncoding.DELTA8, count=3, id_payload=b"\1\0"), "not sorted"),
        (section(id_encoding=p.IdEncoding.DELTA8, count=3, id_payload=b"\1"), "1 bytes instead of 2"),
        (section(id_encoding=p.IdEncoding.DELTA8, count=0), "without a first id"),
        (section(id_encoding=p.IdEncoding.DELTA8, count=2, first=2**32 - 1, id_payload=b"\1"), "above"),
        (section(id_encoding=p.IdEncoding.RANGE, count=2, first=2**32 - 1), "ends above"),
        (section(id_encoding=p.IdEncoding.RANGE, count=2**32 - 1), "above the limit"),
        (section(id_encoding=p.IdEncoding.DELTA32, count=2**32 - 1), "above the limit"),
        (section(id_encoding=99, count=1), "unknown encoding of ids"),
        (section(id_encoding=p.IdEncoding.DELTA8 | p.COMPRESSED, count=9, id_payload=b"\xff"), "not LZ4"),
        (
            section(id_encoding=p.IdEncoding.NONE, value_encoding=99, value_payload=bytes(4), raw_bytes=4),
            "unknown encoding of values",
        ),
        (
            section(id_encoding=p.IdEncoding.NONE, value_encoding=0, value_payload=bytes(6), raw_bytes=6),
            "not a whole number",
        ),
        (
            section(id_encoding=p.IdEncoding.NONE, value_encoding=0, value_payload=bytes(8), raw_bytes=4),
            "8 bytes instead of 4",
        ),
        (
            section(
                id_encoding=p.IdEncoding.NONE,
                value_encoding=p.COMPRESSED,
                value_payload=lz4.block.compress(bytes(400), store_size=False),
                raw_bytes=404,
            ),
            "400 bytes instead of 404",
        ),
        (
            section(
                id_encoding=p.IdEncoding.NONE,
                value_encoding=p.COMPRESSED,
                value_payload=lz4.block.compress(bytes(400), store_size=False),
                raw_bytes=396,
            ),
            "not LZ4",
        ),
    ],
)
def test_wrong_sections_are_named(body: bytes, problem: str) -> None:
    """Each way a section can lie about itself is refused with words that say which."""
    with pytest.raises(ProtocolError, match=problem):
        decode(p.Kind.PULL, body)


def test_few_bytes_cannot_ask_for_much_memory() -> None:
    """All sections of a frame together may not expand to more than two frames could hold."""
    import tracemalloc

    a_range = section(id_encoding=p.IdEncoding.RANGE, count=p.MAX_FRAME_BYTES // 4)[p.PULL_HEAD.size :]
    zeros = lz4.block.compress(bytes(p.MAX_FRAME_BYTES), store_size=False)
    a_bomb = section(
        id_encoding=p.IdEncoding.NONE,
        value_encoding=p.COMPRESSED,
        value_payload=zeros,
        raw_bytes=p.MAX_FRAME_BYTES,
    )[p.PULL_HEAD.size :]
    for part in (a_range, a_bomb):
        tracemalloc.start()
        with pytest.raises(ProtocolError, match="expands to"):
            decode(p.Kind.PULL, struct.pack("<HHI", 20, 0, 0) + 20 * part)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 6 * p.MAX_FRAME_BYTES


@pytest.mark.parametrize(
    ("header", "error", "problem"),
    [
        (Header.pack(0x4854, p.VERSION, 1, 0, 0, 0), ProtocolError, "begins with 0x4854"),
        (Header.pack(p.MAGIC, 1, 1, 0, 0, 0), VersionMismatchError, "version 1, this is version 2"),
        (Header.pack(p.MAGIC, p.VERSION, 0, 0, 0, 0), ProtocolError, "unknown kind of frame 0"),
        (Header.pack(p.MAGIC, p.VERSION, 255, 0, 0, 0), ProtocolError, "unknown kind of frame 255"),
        (Header.pack(p.MAGIC, p.VERSION, 1, 0, p.MAX_FRAME_BYTES + 1, 0), ProtocolError, "above the limit"),
    ],
)
def test_wrong_headers_are_named(header: bytes, error: type[ProtocolError], problem: str) -> None:
    """Another protocol, another version, an unknown kind and a length beyond the limit are told apart."""
    with pytest.raises(error, match=problem):
        decode_header(header)


def test_a_message_beyond_the_limit_is_not_sent() -> None:
    """The sender finds out first, not the peer that would refuse it."""
    too_many = np.zeros(p.MAX_FRAME_BYTES // 4, np.float32)
    with pytest.raises(ProtocolError, match="above the limit"):
        encode_parts(push(p.Section(table=0, pull=1, values=too_many)), 1)


@pytest.mark.parametrize(
    ("kind", "body", "problem"),
    [
        (p.Kind.ATTACH, b"", "malformed ATTACH"),
        (p.Kind.ATTACH, b"{", "malformed ATTACH"),
        (p.Kind.ATTACH, b"[]", "must be an object"),
        (p.Kind.ATTACH, b"\xff\xfe", "malformed ATTACH"),
        (p.Kind.ATTACH, b'{"epoch": 1, "lease": 2}', "grant is missing"),
        (p.Kind.ATTACH, b'{"epoch": 1, "lease": "2", "grant": 3}', "lease: must be int, got str"),
        (p.Kind.ATTACH, b'{"epoch": 1, "lease": 2, "grant": 3, "x": 4}', "unknown field x"),
        (p.Kind.COMPLETE, b'{"epoch": 1, "lease": 2, "grant": 3, "generations": 4}', "must be a list"),
        (p.Kind.MARKS_REPLY, b'{"generation": 1, "completed_epochs": 0, "marks": [1]}', "must be dict"),
        (p.Kind.DONE, b"[" * 100_000, "malformed DONE"),
        (p.Kind.DONE, b"9" * 10_000, "malformed DONE"),
        (p.Kind.HELLO, b" " * (p.MAX_JSON_BYTES + 1), "above the limit"),
    ],
)
def test_wrong_json_is_named(kind: p.Kind, body: bytes, problem: str) -> None:
    """A message that is not JSON, or of the wrong fields or types, is refused with the field's name."""
    with pytest.raises(ProtocolError, match=problem):
        decode(kind, body)
