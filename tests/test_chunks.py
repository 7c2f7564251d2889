"""Blocks, their codec, the manifest, leases, and what shards are balanced by."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import struct
import subprocess
import sys
import tracemalloc
import warnings
import zlib
from typing import Any

import lz4.block
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cirrus.chunks import (
    BLOCK_ROWS,
    Block,
    BlockBuilder,
    ChunkInfo,
    ChunkWriter,
    Manifest,
    StoredBlock,
    Touches,
    commit_dataset,
    cut_boundaries,
    decode_block,
    encode_block,
    expected_touches,
    iterate_blocks,
    iterate_chunk,
    new_chunk_prefix,
    plan_leases,
    read_lease,
    read_manifest,
)
from cirrus.chunks.codec import HEADER_BYTES, MAX_BLOCK_BYTES
from cirrus.chunks.columns import Reader, decode_values, encode_values
from cirrus.chunks.touches import MAX_BINS, N_COUNTERS, TouchCounter
from cirrus.errors import ConfigError, CorruptDataError, DataError, NotFoundError
from cirrus.storage import MemoryStore, ObjectStore, drop_memory_store

FLOATS = st.floats(-100, 100, width=32)


@st.composite
def csr_rows(draw: st.DrawFn, even: bool | None = None) -> dict[str, Any]:
    """Rows as a user may give them: any order of columns, duplicates, zeros, empty rows."""
    n_rows = draw(st.integers(1, 30))
    n_columns = draw(st.sampled_from([1, 7, 300, 2**32 - 1]))
    even = draw(st.booleans()) if even is None else even
    length = draw(st.integers(0, 8))
    lengths = [length if even else draw(st.integers(0, 12)) for _ in range(n_rows)]
    n_entries = sum(lengths)
    columns = st.lists(st.integers(0, n_columns - 1), min_size=n_entries, max_size=n_entries)
    numbers = st.lists(st.sampled_from([0.0, 1.0, -2.5, 3.0]), min_size=n_entries, max_size=n_entries)
    rows = st.lists(FLOATS, min_size=n_rows, max_size=n_rows)
    return {
        "indptr": np.cumsum([0, *lengths]),
        "indices": np.array(draw(columns), np.int64),
        "values": draw(st.none() | numbers.map(lambda v: np.array(v, np.float32))),
        "labels": draw(rows.map(np.array) | st.just(np.arange(n_rows) % 2)),
        "weights": draw(st.none() | rows.map(lambda v: np.abs(np.array(v, np.float32)))),
    }


def dense(rows: dict[str, Any], ids: np.ndarray) -> np.ndarray:
    """The rows as a dense matrix over these ids."""
    out = np.zeros((len(rows["indptr"]) - 1, ids.size))
    for i, (start, stop) in enumerate(zip(rows["indptr"], rows["indptr"][1:], strict=False)):
        for k in range(start, stop):
            value = 1.0 if rows["values"] is None else float(rows["values"][k])
            out[i, ids == rows["indices"][k]] += value
    return out


def assert_same_block(a: Block, b: Block) -> None:
    """Compare field by field, types included."""
    for field in dataclasses.fields(Block):
        x, y = getattr(a, field.name), getattr(b, field.name)
        assert (x is None) == (y is None), field.name
        if x is not None:
            assert x.dtype == y.dtype, field.name
            np.testing.assert_array_equal(x, y)


def zipf_block(n_rows: int = BLOCK_ROWS, n_features: int = 2**20, seed: int = 0) -> Block:
    """A block of one-hot rows, 39 ids each, the low ids most frequent."""
    rng = np.random.default_rng(seed)
    ids = (n_features ** rng.random((n_rows, 39)) - 1).astype(np.int64)
    block = Block.from_csr(np.arange(n_rows + 1) * 39, ids.ravel(), None, rng.integers(0, 2, n_rows))
    return dataclasses.replace(block, values=None)  # which were counts of duplicates


# Arithmetic.


@given(csr_rows())
def test_from_csr_sums_duplicates_sorts_and_drops_zeros(rows: dict[str, Any]) -> None:
    """A block holds the same matrix as the rows that it was made of, in canonical form."""
    block = Block.from_csr(**rows)
    assert (np.diff(block.ids.astype(np.int64)) > 0).all()
    full = dense(rows, block.ids)
    indptr, indices, values = block.to_csr()
    assert (values != 0).all()
    got = dense({"indptr": indptr, "indices": indices, "values": values}, block.ids)
    np.testing.assert_allclose(got, full, rtol=1e-6)
    every = np.unique(rows["indices"])
    assert np.count_nonzero(dense(rows, every)) == block.nnz == values.size
    for start, stop in zip(indptr, indptr[1:], strict=False):
        assert (np.diff(indices[start:stop].astype(np.int64)) > 0).all()
    np.testing.assert_array_equal(block.labels, np.asarray(rows["labels"], np.float32))


@given(csr_rows(), st.integers(0, 2**32 - 1))
def test_products_agree_with_dense_ones(rows: dict[str, Any], seed: int) -> None:
    """All four products, and those of the squared block, are what numpy makes of the dense matrix."""
    block = Block.from_csr(**rows)
    X = dense(rows, block.ids)
    rng = np.random.default_rng(seed)
    w = rng.standard_normal(block.ids.size).astype(np.float32)
    W = rng.standard_normal((block.ids.size, 3)).astype(np.float32)
    e = rng.standard_normal(block.n_rows)
    E = rng.standard_normal((block.n_rows, 3))
    for b, A in ((block, X), (block.squared(), X * X)):
        assert b.matvec(w).dtype == np.float32
        np.testing.assert_allclose(b.matvec(w), A @ w, rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(b.rmatvec(e), A.T @ e, rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(b.matmat(W), A @ W, rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(b.rmatmat(E), A.T @ E, rtol=1e-4, atol=1e-3)
        np.testing.assert_array_equal(b.matmat(W)[:, 1], b.matvec(W[:, 1]))


@given(csr_rows(), st.data())
def test_a_rows_result_depends_on_that_row_alone(rows: dict[str, Any], data: st.DataObject) -> None:
    """``matvec`` gives a row the same number, to the bit, in any slice, selection, merge and layout."""
    block = Block.from_csr(**rows)
    w = np.random.default_rng(0).standard_normal(block.ids.size).astype(np.float32)
    weight_of = dict(zip(block.ids.tolist(), w, strict=True))

    def product(part: Block) -> np.ndarray:
        return part.matvec(np.array([weight_of[i] for i in part.ids.tolist()], np.float32))

    whole = product(block)
    start = data.draw(st.integers(0, block.n_rows))
    stop = data.draw(st.integers(start, block.n_rows))
    np.testing.assert_array_equal(product(block.rows(start, stop)), whole[start:stop])
    order = np.array(data.draw(st.permutations(range(block.n_rows))), np.intp)
    np.testing.assert_array_equal(product(block.select(order)), whole[order])
    single = [block.rows(i, i + 1) for i in range(block.n_rows)]
    np.testing.assert_array_equal([product(row)[0] for row in single], whole)
    np.testing.assert_array_equal(product(Block.merge(single)), whole)


@given(csr_rows(), st.data())
def test_slices_merge_back_to_the_whole(rows: dict[str, Any], data: st.DataObject) -> None:
    """Slices hold just the ids that occur in them, and merged again they are the block they came from."""
    block = Block.from_csr(**rows)
    cuts = sorted(data.draw(st.lists(st.integers(0, block.n_rows), max_size=3)))
    edges = [0, *cuts, block.n_rows]
    parts = [block.rows(a, b) for a, b in zip(edges, edges[1:], strict=False) if b > a]
    for part in parts:
        np.testing.assert_array_equal(part.ids, np.unique(part.to_csr()[1]))
    merged = Block.merge(parts)
    for a, b in zip(merged.to_csr(), block.to_csr(), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(merged.ids, block.ids)
    np.testing.assert_array_equal(merged.labels, block.labels)
    if block.weights is not None:
        np.testing.assert_array_equal(merged.weights, block.weights)


def test_merging_mixes_values_and_weights() -> None:
    """Blocks without values or weights count as all ones beside blocks that have them."""
    ones = Block.from_csr([0, 2], [5, 9], None, [1])
    valued = Block.from_csr([0, 2], [2, 9], [0.5, 2.0], [0], [3.0])
    merged = Block.merge([ones, valued])
    np.testing.assert_array_equal(merged.ids, [2, 5, 9])
    np.testing.assert_array_equal(merged.matvec(np.array([1, 10, 100])), [110, 200.5])
    np.testing.assert_array_equal(merged.weights, [1, 3])
    with pytest.raises(ConfigError):
        Block.merge([])


def test_the_padded_layout_is_used_for_rows_of_like_length() -> None:
    """Rows that are nearly of one length are padded; rows of very unequal lengths are not."""
    assert zipf_block().row_starts is None
    uneven = Block.from_csr([0, 1, 10, 11], np.arange(11), None, [0, 0, 0])
    assert uneven.row_starts is not None
    assert uneven.nnz == 11


# Codec.


@given(csr_rows())
def test_a_block_reads_back_as_it_was(rows: dict[str, Any]) -> None:
    """``decode_block(encode_block(b))`` is b, field by field, from bytes and from a view of them."""
    block = Block.from_csr(**rows)
    data = encode_block(block)
    assert_same_block(decode_block(data), block)
    assert_same_block(decode_block(memoryview(b"xx" + data)[2:]), block)


@pytest.mark.parametrize("highest", [255, 256, 65535, 65536, 2**32 - 1])
def test_ids_of_every_width_read_back(highest: int) -> None:
    """Differences of ids at the limits of one, two and four bytes survive."""
    block = Block.from_csr([0, 2], [0, highest], None, [1])
    assert_same_block(decode_block(encode_block(block)), block)


@given(
    st.lists(st.one_of(st.integers(1, 300), st.integers(65_000, 66_000), st.integers(1, 2**24)), max_size=60),
    st.integers(0, 2**31),
)
def test_any_ids_read_back(deltas: list[int], first: int) -> None:
    """Ids survive whatever lies between them: nothing, a byte's worth, or leaps."""
    ids = np.cumsum([first, *deltas])
    block = Block.from_csr([0, ids.size], ids, None, [1])
    np.testing.assert_array_equal(decode_block(encode_block(block)).ids, ids)


def test_ids_that_lie_as_hashes_do_take_little_more_than_a_byte() -> None:
    """A tenth of 9,400 hashed ids lie further apart than a byte can say; only these take two bytes more."""
    ids = np.unique(np.random.default_rng(0).integers(0, 2**20, 9400))
    few = Block.from_csr([0, 1], ids[:1], None, [1])
    many = Block.from_csr([0, ids.size], ids, None, [1])
    positions = lz4.block.compress(np.arange(ids.size, dtype=np.uint16).tobytes())
    assert len(encode_block(many)) - len(encode_block(few)) < 1.25 * ids.size + len(positions)


numbers = st.one_of(
    st.just(1.0),
    st.integers(0, 300).map(float),
    st.integers(-3, 70_000).map(float),
    st.sampled_from([0.25, -0.0, float("nan"), float("inf"), 3e38, 1e-45]),
    st.floats(width=32),
)


@settings(max_examples=200)
@given(st.lists(st.tuples(st.lists(numbers, min_size=1, max_size=4), st.booleans()), max_size=6), st.data())
def test_columns_of_values_read_back_to_the_bit(
    kinds: list[tuple[list[float], bool]], data: st.DataObject
) -> None:
    """Whatever numbers columns hold, few or many different ones, each bit of them survives."""
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    length = data.draw(st.sampled_from([1, 5, 100, 400]))
    matrix = np.empty((len(kinds), length), np.float32)
    for column, (some, varied) in zip(matrix, kinds, strict=True):
        column[:] = rng.choice(np.array(some, np.float32), length)
        if varied:
            column[: length // 2] = rng.normal(size=length // 2)
    for some_ones in (True, False):
        raw = b"".join(part.tobytes() for part in encode_values(matrix, some_ones=some_ones))
        reader = Reader(raw, CorruptDataError)
        found = decode_values(reader, *matrix.shape, some_ones=some_ones)
        reader.end()
        np.testing.assert_array_equal(found.view(np.uint32), matrix.view(np.uint32))


@settings(max_examples=300)
@given(st.binary(max_size=60), st.integers(0, 5), st.integers(0, 8), st.booleans())
@example(b"\0\1", 2, 0, True)
@example(b"\1\3", 2, 0, False)
def test_columns_that_are_none_are_corrupt_data_or_harmless(
    raw: bytes, n_columns: int, length: int, some_ones: bool
) -> None:
    """Any bytes are columns of the shape that was asked for, or CorruptDataError."""
    small = bytes(byte % 7 for byte in raw)
    for data in (raw, small):
        with contextlib.suppress(CorruptDataError):
            found = decode_values(Reader(data, CorruptDataError), n_columns, length, some_ones=some_ones)
            assert found.shape == (n_columns, length)
            assert found.dtype == np.float32


@pytest.mark.parametrize(
    ("column", "bytes_a_number"),
    [
        ([1.0], 0),
        ([0, 255], 1),
        ([0, 256], 1),  # by a dictionary
        ([0.5, -0.25, 1e9], 1),
        (range(0, 60_000, 100), 2),
        (range(-1, 599), 4),
    ],
)
def test_columns_of_values_take_the_least_room(column: list[float], bytes_a_number: int) -> None:
    """Small numbers take a byte, few different ones too, and ones nothing."""
    matrix = np.resize(np.array(column, np.float32), (3, 2048))
    n_bytes = sum(part.nbytes for part in encode_values(matrix))
    assert n_bytes <= 3 * (2048 * bytes_a_number + 20)


def test_one_hot_rows_take_little_room() -> None:
    """Values that are all 1, small labels and small positions are stored in a byte or less."""
    block = zipf_block()
    assert len(encode_block(block)) < 2.9 * block.nnz
    assert decode_block(encode_block(block)).values is None


@settings(max_examples=150)
@given(st.binary(max_size=200), st.booleans())
def test_random_bytes_are_corrupt_data(noise: bytes, with_magic: bool) -> None:
    """Bytes that are no block raise CorruptDataError and nothing else."""
    with pytest.raises(CorruptDataError):
        decode_block((b"CBlk\x03" if with_magic else b"") + noise)


@settings(max_examples=150)
@given(csr_rows(), st.data())
def test_flipped_bits_and_truncation_are_corrupt_data(rows: dict[str, Any], data: st.DataObject) -> None:
    """Any one bit flipped, or any number of bytes missing at the end, is noticed."""
    encoded = bytearray(encode_block(Block.from_csr(**rows)))
    bit = data.draw(st.integers(0, 8 * len(encoded) - 1))
    flipped = bytearray(encoded)
    flipped[bit // 8] ^= 1 << bit % 8
    with pytest.raises(CorruptDataError):
        decode_block(bytes(flipped))
    with pytest.raises(CorruptDataError):
        decode_block(bytes(encoded[: data.draw(st.integers(0, len(encoded) - 1))]))


def _with_checksum(data: bytes) -> bytes:
    header = data[: HEADER_BYTES - 4]
    payload = data[HEADER_BYTES:]
    return header + struct.pack("<I", zlib.crc32(payload, zlib.crc32(header))) + payload


@settings(max_examples=200)
@given(csr_rows(), st.data())
def test_forged_headers_are_corrupt_data_or_harmless(rows: dict[str, Any], data: st.DataObject) -> None:
    """A header changed at will, with a checksum that fits, never gives a block that breaks its promises."""
    block = Block.from_csr(**rows)
    encoded = bytearray(encode_block(block))
    for _ in range(data.draw(st.integers(1, 3))):
        encoded[data.draw(st.integers(4, HEADER_BYTES - 5))] = data.draw(st.integers(0, 255))
    try:
        forged = decode_block(StoredBlock(_with_checksum(bytes(encoded)), "forged", 2**32))
    except CorruptDataError:
        return
    assert forged.n_rows >= 1
    assert (np.diff(forged.ids.astype(np.int64)) > 0).all()
    with np.errstate(all="ignore"):
        assert forged.matvec(np.ones(forged.ids.size)).shape == (forged.n_rows,)
        assert forged.rmatvec(np.ones(forged.n_rows)).shape == forged.ids.shape


def test_hostile_lengths_do_not_allocate() -> None:
    """A header that claims gigabytes is refused before memory is taken for them."""
    encoded = bytearray(encode_block(zipf_block(4)))
    for field in range(7):
        hostile = bytearray(encoded)
        struct.pack_into("<I", hostile, 12 + 4 * field, 2**32 - 1)
        data = _with_checksum(bytes(hostile))
        tracemalloc.start()
        with pytest.raises(CorruptDataError):
            decode_block(data)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1_000_000


def test_decoding_checks_the_number_of_features() -> None:
    """An id beyond the dataset's features is corrupt data, and the message names the block."""
    data = encode_block(Block.from_csr([0, 1], [100], None, [0]))
    assert decode_block(StoredBlock(data, "c, block 3", 101)).ids[0] == 100
    with pytest.raises(CorruptDataError, match="c, block 3"):
        decode_block(StoredBlock(data, "c, block 3", 100))


def test_decoding_checks_the_number_of_rows() -> None:
    """A block that was exchanged for another is found before anybody counts on its rows."""
    data = encode_block(zipf_block(10))
    assert decode_block(StoredBlock(data, "c, block 3", 2**20, 10)).n_rows == 10
    with pytest.raises(CorruptDataError, match="c, block 3: has 10 rows, the manifest says 11"):
        decode_block(StoredBlock(data, "c, block 3", 2**20, 11))


@pytest.mark.parametrize("label", [-1.0, 0.5, 2.0, float("nan"), float("inf")])
def test_every_label_has_a_name(label: float) -> None:
    """Labels that were text are codes of names; other numbers are refused."""
    names = ("a", "b")
    assert fake_manifest([[1]], label_values=(1.0,), label_names=names).label_names == names
    with pytest.raises(ConfigError, match="label_names"):
        fake_manifest([[1]], label_values=(label,), label_names=names)


def test_other_versions_are_named() -> None:
    """A block of another format version says so instead of guessing."""
    data = bytearray(encode_block(zipf_block(2)))
    data[4] = 9
    with pytest.raises(CorruptDataError, match="format 9"):
        decode_block(bytes(data))


def test_a_row_that_is_too_large_is_a_data_error() -> None:
    """A single row beyond the size of a block is refused by name of that limit."""
    n = MAX_BLOCK_BYTES // 5
    with pytest.raises(DataError, match=str(MAX_BLOCK_BYTES)):
        encode_block(Block.from_csr([0, n], np.arange(n), np.full(n, 2.5, np.float32), [0]))


# Datasets.


class CountingStore(MemoryStore):
    """A memory store that counts range requests."""

    n_ranges = 0

    def get_range(self, key: str, start: int, length: int) -> bytes:
        self.n_ranges += 1
        return super().get_range(key, start, length)


@pytest.fixture
def store() -> Any:
    """An empty store."""
    yield CountingStore("test-chunks", "data")
    drop_memory_store("test-chunks")


def write(store: ObjectStore, blocks: list[Block], **options: Any) -> Manifest:
    """Store blocks as a dataset."""
    prefix = new_chunk_prefix()
    writer = ChunkWriter(store, prefix, **options)
    for block in blocks:
        writer.add(block)
    writer.flush()
    return commit_dataset(store, writer.chunks, writer.summary)


def fake_manifest(block_rows: list[list[int]], **extra: Any) -> Manifest:
    """A manifest over chunks that do not exist."""
    chunks = tuple(
        ChunkInfo(
            key=f"c{i}",
            crc32=0,
            block_rows=tuple(rows),
            block_offsets=tuple(range(0, 10 * len(rows) + 1, 10)),
        )
        for i, rows in enumerate(block_rows)
    )
    fields: dict[str, Any] = {
        "n_rows": sum(map(sum, block_rows)),
        "n_features": 10,
        "chunks": chunks,
        "label_values": (0.0,),
        "label_counts": (1,),
        "touches": Touches(edges=(0, 10), n_nonzero=(1,)),
        "fingerprint": "",
    }
    return Manifest(**{**fields, **extra})


def test_a_dataset_reads_back(store: CountingStore) -> None:
    """What was written in chunks is found through the manifest, row by row, with its statistics."""
    blocks = [zipf_block(seed=i) for i in range(5)]
    written = write(store, blocks, chunk_bytes=150_000)
    manifest = read_manifest(store)
    assert manifest == written
    assert len(manifest.chunks) == 3
    assert manifest.n_rows == 5 * BLOCK_ROWS
    for a, b in zip(iterate_blocks(store, manifest), blocks, strict=True):
        assert_same_block(a, b)
    labels = np.concatenate([b.labels for b in blocks])
    assert manifest.label_values == (0.0, 1.0)
    assert manifest.label_counts == (int((labels == 0).sum()), int((labels == 1).sum()))
    assert manifest.n_features == 1 + max(int(b.ids[-1]) for b in blocks)
    assert sum(manifest.touches.n_nonzero) == sum(b.nnz for b in blocks)
    assert not manifest.has_weights


def test_the_fingerprint_tells_data_apart_and_not_places(store: CountingStore) -> None:
    """The same rows have the same fingerprint wherever they are; other rows have another."""
    first = write(store, [zipf_block(seed=1)])
    assert write(store.child("elsewhere"), [zipf_block(seed=1)]).fingerprint == first.fingerprint
    assert write(store.child("other"), [zipf_block(seed=2)]).fingerprint != first.fingerprint


def test_replacing_a_dataset_leaves_nothing_of_the_old_one(store: CountingStore) -> None:
    """Old chunks and what was derived from other data go when, and only when, the new manifest is there."""
    write(store, [zipf_block(seed=1)])
    store.put("splits/abc/manifest.json", b"{}")
    write(store, [zipf_block(seed=1)])
    assert store.exists("splits/abc/manifest.json")
    manifest = write(store, [zipf_block(seed=2)])
    assert sorted(store.list()) == sorted(["manifest.json", *(chunk.key for chunk in manifest.chunks)])


def test_an_empty_dataset_is_refused(store: CountingStore) -> None:
    """There is no dataset without rows."""
    with pytest.raises(DataError, match="no rows"):
        write(store, [])
    with pytest.raises(NotFoundError, match="there is no dataset"):
        read_manifest(store)


def test_rows_are_cut_into_blocks_of_equal_size(store: CountingStore) -> None:
    """A builder takes pieces of any size and writes blocks of one size, and a rest."""
    writer = ChunkWriter(store, "x/")
    builder = BlockBuilder(writer, block_rows=100)
    whole = zipf_block(730)
    for a, b in ((0, 30), (30, 31), (31, 431), (431, 730)):
        builder.add(whole.rows(a, b))
    builder.flush()
    assert writer.chunks[0].block_rows == (100,) * 7 + (30,)
    manifest = commit_dataset(store, writer.chunks, writer.summary)
    merged = Block.merge(list(iterate_blocks(store, manifest)))
    for a, b in zip(merged.to_csr(), whole.to_csr(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_blocks_with_very_many_entries_are_halved(store: CountingStore) -> None:
    """Wide rows give blocks of fewer rows, so that no block is too large to be handled."""
    n = 2**18
    wide = Block.from_csr(np.arange(9) * n, np.tile(np.arange(n), 8), None, np.arange(8))
    assert write(store, [wide]).chunks[0].block_rows == (4, 4)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda data: b"", "not JSON"),
        (lambda data: b"[" * 100_000, "not JSON"),
        (lambda data: b"[1]", "version None"),
        (lambda data: data.replace(b'"version":1', b'"version":7'), "version 7"),
        (lambda data: data.replace(b'"n_rows":1024', b'"n_rows":1025'), "n_rows"),
        (lambda data: data.replace(b'"n_features"', b'"x"'), "unknown field x"),
        (lambda data: data.replace(b'"block_offsets":[0,', b'"block_offsets":[1,'), "block_offsets"),
        (lambda data: data.replace(b'"edges":[0,', b'"edges":[9999999,'), "edges"),
        (lambda data: data.replace(b'"fingerprint":"', b'"fingerprint":5,"x":"'), "manifest.json"),
        (lambda data: data.replace(b'"fingerprint":"', b'"fingerprint":"0'), "fingerprint is not that"),
        (lambda data: data.replace(b'"crc32":', b'"crc32":1'), "fingerprint is not that"),
        (lambda data: data.replace(b'"label_names":null', b'"label_names":["a"]'), "label_names"),
        (lambda data: data.replace(b'"block_rows":[1024]', b'"block_rows":[1024,0]'), "block_rows"),
        (
            lambda data: data.replace(
                b'"chunks":[', b'"chunks":[{"key":"c","crc32":0,"block_rows":[],"block_offsets":[0]},'
            ),
            "block_rows",
        ),
    ],
)
def test_a_damaged_manifest_is_corrupt_data(store: CountingStore, damage: Any, problem: str) -> None:
    """A manifest that cannot be relied on says which, what is wrong, and what to do."""
    write(store, [zipf_block()])
    store.put("manifest.json", damage(store.get("manifest.json")))
    with pytest.raises(CorruptDataError, match=problem) as caught:
        read_manifest(store)
    assert "load the data again" in str(caught.value)
    assert store.url in str(caught.value)


def test_blocks_of_one_label_are_worth_a_warning(store: CountingStore) -> None:
    """Sorted data warns; data of one label, or of shuffled rare labels, does not."""
    zeros, ones = (
        dataclasses.replace(zipf_block(), labels=np.full(BLOCK_ROWS, v, np.float32)) for v in (0, 1)
    )
    with pytest.warns(UserWarning, match="4 of 4 blocks hold rows of one label"):
        manifest = write(store, [zeros, zeros, ones, ones])
    assert manifest.single_label_blocks == 4
    rare = zeros.labels.copy()
    rare[5] = 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert write(store, [zeros, zeros]).single_label_blocks == 0
        write(store, [dataclasses.replace(zeros, labels=rare), zeros, zeros])


def test_more_labels_than_classes_can_have_are_numbers(store: CountingStore) -> None:
    """Beyond a thousand distinct labels the manifest lists none."""
    many = dataclasses.replace(zipf_block(), labels=np.arange(BLOCK_ROWS, dtype=np.float32))
    assert write(store, [many]).label_values == ()


# Leases.


@given(
    st.lists(st.lists(st.integers(1, 1024), min_size=1, max_size=40), min_size=1, max_size=4),
    st.integers(1, 20),
    st.integers(1, 5000),
)
def test_leases_cover_every_block_once(blocks: list[list[int]], n_workers: int, batch_size: int) -> None:
    """Whatever the sizes, each block is in one lease, and a lease knows its rows and steps."""
    manifest = fake_manifest(blocks)
    seen = []
    for lease in plan_leases(manifest, n_workers, batch_size):
        taken = range(lease.first_block, lease.first_block + lease.n_blocks)
        rows = [blocks[lease.chunk][b] for b in taken]
        assert lease.n_rows == sum(rows)
        assert lease.n_steps == -(-lease.n_rows // batch_size)
        seen += [(lease.chunk, b) for b in taken]
    assert seen == [(c, b) for c, rows in enumerate(blocks) for b in range(len(rows))]


@pytest.mark.parametrize("n_workers", [1, 2, 8])
@pytest.mark.parametrize("batch_size", [64, 256, 1000, 1024])
def test_there_are_sixteen_leases_a_worker(n_workers: int, batch_size: int) -> None:
    """Where there are blocks enough, each worker gets at least 16 leases."""
    leases = plan_leases(fake_manifest([[1024] * 150] * 6), n_workers, batch_size)
    assert len(leases) >= 16 * n_workers


def test_leases_are_whole_minibatches_where_they_can_be() -> None:
    """A batch size that divides a block wastes nothing, another one little; a large one takes groups."""
    manifest = fake_manifest([[1024] * 160] * 4)
    assert all(lease.n_rows % 256 == 0 for lease in plan_leases(manifest, 2, 256))
    large = plan_leases(manifest, 2, 4096)
    assert all(lease.n_rows % 4096 == 0 for lease in large)
    odd = plan_leases(manifest, 1, 1000)
    rows, steps = sum(lease.n_rows for lease in odd), sum(lease.n_steps for lease in odd)
    assert steps <= 1.1 * rows / 1000
    huge = plan_leases(manifest, 2, 10**6)
    assert [lease.n_blocks for lease in huge] == [160] * 4


def test_a_dataset_of_one_block_is_one_lease() -> None:
    """Small data is one lease, whatever the number of workers."""
    (lease,) = plan_leases(fake_manifest([[100]]), 8, 32)
    assert (lease.n_rows, lease.n_steps) == (100, 4)


@pytest.mark.parametrize("bad", [{"n_workers": 0, "batch_size": 1}, {"n_workers": 1, "batch_size": 0}])
def test_impossible_plans_are_refused(bad: dict[str, int]) -> None:
    """There must be at least one worker and one row in a minibatch."""
    with pytest.raises(ConfigError):
        plan_leases(fake_manifest([[100]]), **bad)


def test_a_lease_is_read_by_one_request(store: CountingStore) -> None:
    """The blocks of a lease come in one range request, and are those of the chunk."""
    blocks = [zipf_block(seed=i) for i in range(6)]
    manifest = write(store, blocks)
    leases = plan_leases(manifest, 1, 2048)
    assert [lease.n_blocks for lease in leases] == [2, 2, 2]
    store.n_ranges = 0
    for lease in leases:
        for k, stored in enumerate(read_lease(store, manifest, lease)):
            assert_same_block(decode_block(stored), blocks[lease.first_block + k])
    assert store.n_ranges == len(leases)


def test_a_large_chunk_is_read_in_parts(store: CountingStore) -> None:
    """So many bytes at a time as are asked for, or one block; the blocks are those of the chunk, in order."""
    blocks = [zipf_block(seed=i) for i in range(5)]
    manifest = write(store, blocks)
    largest = max(np.diff(manifest.chunks[0].block_offsets).tolist())
    for read_bytes, n_requests in ((2**30, 1), (2 * largest, 3), (1, 5)):
        store.n_ranges = 0
        for read, block in zip(iterate_chunk(store, manifest, 0, read_bytes), blocks, strict=True):
            assert_same_block(read, block)
        assert store.n_ranges == n_requests


def test_damaged_chunks_are_named(store: CountingStore) -> None:
    """A missing, truncated or bit-flipped chunk is corrupt data; the message names chunk and block."""
    manifest = write(store, [zipf_block(seed=i) for i in range(3)])
    (chunk,) = manifest.chunks
    (lease,) = plan_leases(manifest, 1, 10**6)
    good = store.get(chunk.key)
    flipped = bytearray(good)
    flipped[chunk.block_offsets[1] + 500] ^= 4
    store.put(chunk.key, bytes(flipped))
    stored = read_lease(store, manifest, lease)
    decode_block(stored[0])
    with pytest.raises(CorruptDataError, match=f"{chunk.key}, block 1: does not match its checksum"):
        decode_block(stored[1])
    store.put(chunk.key, good[:-1])
    with pytest.raises(CorruptDataError, match=chunk.key):
        read_lease(store, manifest, lease)
    store.delete(chunk.key)
    with pytest.raises(CorruptDataError, match=f"{chunk.key}: the chunk is missing"):
        read_lease(store, manifest, lease)
    with pytest.raises(DataError, match="no blocks"):
        read_lease(store, manifest, dataclasses.replace(lease, n_blocks=99))
    for chunk_number in (-1, 1):
        with pytest.raises(DataError, match=f"has no chunk {chunk_number}"):
            read_lease(store, manifest, dataclasses.replace(lease, chunk=chunk_number))


def test_a_lease_knows_how_many_rows_its_blocks_have(store: CountingStore) -> None:
    """A valid block in the place of another of as many bytes is found by its rows."""
    manifest = write(store, [zipf_block(16)])
    (chunk,) = manifest.chunks
    changed = dataclasses.replace(manifest, n_rows=17, chunks=(dataclasses.replace(chunk, block_rows=(17,)),))
    (lease,) = plan_leases(changed, 1, 10)
    (stored,) = read_lease(store, changed, lease)
    with pytest.raises(CorruptDataError, match=f"{chunk.key}, block 0: has 16 rows, the manifest says 17"):
        decode_block(stored)


# Balance.


def zipf_ids(rng: np.random.Generator, size: int, n_features: int, exponent: float) -> np.ndarray:
    """Ids drawn by a Zipf law in order of frequency, by the inverse of its distribution."""
    u = rng.random(size)
    if exponent == 1.0:
        drawn = np.exp(u * np.log(n_features)) - 1
    else:
        drawn = (u * (n_features ** (1 - exponent) - 1) + 1) ** (1 / (1 - exponent)) - 1
    return np.minimum(drawn, n_features - 1).astype(np.uint32)


@pytest.mark.parametrize("exponent", [0.8, 1.0, 1.3])
@pytest.mark.parametrize("n_features", [2**20, 2**31])
def test_shards_are_balanced_under_a_zipf_law(exponent: float, n_features: int) -> None:
    """With ids in order of frequency, four shards get unique ids within 20 % of each other for any batch."""
    rng = np.random.default_rng(0)
    n_rows, width = 50_000, 39
    counter = TouchCounter()
    draws = zipf_ids(rng, n_rows * width, n_features, exponent)
    counter.add(*np.unique(draws, return_counts=True))
    manifest = fake_manifest([[n_rows]], n_features=n_features, touches=counter.histogram(n_features))
    for batch_rows in (64, 256, 1024, 4096):
        boundaries = cut_boundaries(manifest, n_features + 1, 4, batch_rows)
        work = np.zeros(4)
        for _ in range(max(3, 2048 // batch_rows)):
            batch = np.unique(draws.reshape(n_rows, width)[rng.integers(0, n_rows, batch_rows)])
            work += np.histogram(batch, boundaries)[0]
        assert work.max() / work.min() < 1.2, (batch_rows, boundaries, work)


def test_expected_touches_are_those_of_random_rows() -> None:
    """The formula is right for ids that are equally likely: it gives the mean of what is drawn."""
    rng = np.random.default_rng(0)
    manifest = fake_manifest([[1000]], n_features=500, touches=Touches(edges=(0, 500), n_nonzero=(10_000,)))
    drawn = [np.unique(rng.integers(0, 500, (64, 10))).size for _ in range(200)]
    assert expected_touches(manifest, 64)[0] == pytest.approx(np.mean(drawn), rel=0.02)


@given(
    st.lists(st.integers(0, 1000), min_size=1, max_size=8),
    st.integers(0, 3),
    st.integers(1, 12),
    st.integers(1, 5000),
)
def test_boundaries_always_cut_the_whole_table(
    counts: list[int], n_more: int, n_shards: int, batch_rows: int
) -> None:
    """For any histogram the ranges ascend from 0 to the end, and no shard is idle while there are rows."""
    touches = Touches(edges=tuple(range(len(counts) + 1)), n_nonzero=tuple(counts))
    manifest = fake_manifest([[1000]], n_features=len(counts), touches=touches)
    n_rows = len(counts) + n_more
    boundaries = cut_boundaries(manifest, n_rows, n_shards, batch_rows)
    assert len(boundaries) == n_shards + 1
    assert (boundaries[0], boundaries[-1]) == (0, n_rows)
    sizes = np.diff(boundaries)
    assert (sizes >= 0).all()
    assert np.count_nonzero(sizes) == min(n_shards, n_rows)


def test_boundaries_need_a_table_for_all_features() -> None:
    """A table with fewer rows than features, or no shard, is refused."""
    manifest = fake_manifest([[10]])
    with pytest.raises(ConfigError, match="n_table_rows"):
        cut_boundaries(manifest, 9, 2, 10)
    with pytest.raises(ConfigError, match="n_shards"):
        cut_boundaries(manifest, 10, 0, 10)


@given(
    st.lists(st.lists(st.integers(0, 2**32 - 2), min_size=1, max_size=5), min_size=1, max_size=6), st.data()
)
def test_counting_touches_does_not_depend_on_order(groups: list[list[int]], data: st.DataObject) -> None:
    """The histogram is the same in whatever order ids come, and however counters are merged."""
    n_features = 1 + max(max(group) for group in groups)

    def count(parts: list[list[int]]) -> TouchCounter:
        counter = TouchCounter()
        for part in parts:
            counter.add(*np.unique(np.array(part, np.uint32), return_counts=True))
        return counter

    expected = count(groups).histogram(n_features)
    assert count(data.draw(st.permutations(groups))).histogram(n_features) == expected
    merged = TouchCounter()
    for group in groups:
        merged.merge(TouchCounter.from_bytes(count([group]).to_bytes()))
    assert merged.histogram(n_features) == expected
    assert sum(expected.n_nonzero) == sum(len(group) for group in groups)
    assert len(expected.n_nonzero) <= MAX_BINS


def test_bins_are_narrow_where_the_data_is() -> None:
    """Frequent ids get bins of their own, rare ones share."""
    counter = TouchCounter()
    ids = np.arange(N_COUNTERS, dtype=np.uint32)
    counter.add(ids, (1e9 / (1 + ids)).astype(np.int64))
    edges = counter.histogram(N_COUNTERS).edges
    assert edges[:5] == (0, 1, 2, 3, 4)
    assert edges[-1] - edges[-2] > 10


def test_the_worker_side_imports_numpy_and_lz4_alone() -> None:
    """Importing chunks pulls in neither scipy, numba, boto3 nor scikit-learn."""
    code = (
        "import sys, cirrus.chunks; "
        "sys.exit(' '.join({'scipy', 'numba', 'boto3', 'sklearn', 'mmh3'} & set(sys.modules)) or 0)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, timeout=30, capture_output=True)
    assert done.returncode == 0, done.stderr
