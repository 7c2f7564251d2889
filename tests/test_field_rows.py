"""Rows of a table on their way into blocks: numbered, joined, kept field by field."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cirrus.chunks import Block, decode_block, encode_block
from cirrus.client_backend.field_rows import NO_FEATURE, FieldRows
from cirrus.client_backend.pieces import RowJoiner, encode_pieces, find_piece
from cirrus.client_backend.rows import ParsedRows, Rows, blocks_of_rows, split_rows
from cirrus.storage import MemoryStore, drop_memory_store


@st.composite
def field_rows(draw: st.DrawFn) -> FieldRows:
    """Rows that say things twice, lack entries, and have features near and far apart."""
    n_rows, n_fields = draw(st.integers(1, 20)), draw(st.integers(1, 6))
    n_valued = draw(st.integers(0, n_fields))
    features = st.one_of(st.integers(0, 9), st.sampled_from([NO_FEATURE, 2**21, NO_FEATURE - 1]))
    return FieldRows(
        columns=draw(hnp.arrays(np.uint32, (n_rows, n_fields), elements=features)),
        values=draw(
            hnp.arrays(np.float32, (n_rows, n_valued), elements=st.sampled_from([1, -2.5, 3e7, 0.1]))
        ),
        labels=np.arange(n_rows, dtype=np.float32),
        weights=draw(st.sampled_from([None, np.arange(n_rows, dtype=np.float32) + 1])),
    )


def as_rows(rows: FieldRows) -> Rows:
    """The same rows, one entry after the other."""
    values = np.ones(rows.columns.shape, np.float32)
    values[:, : rows.values.shape[1]] = rows.values
    real = rows.columns != NO_FEATURE
    lengths = real.sum(axis=1).astype(np.uint32)
    return Rows(lengths, rows.columns[real], values[real], rows.labels, rows.weights)


def assert_same_rows(found: Block, expected: Block) -> None:
    """The two have the same entries, whatever their layout; sums may round differently."""
    for mine, theirs in zip(found.to_csr()[:2], expected.to_csr()[:2], strict=True):
        np.testing.assert_array_equal(mine, theirs)
    np.testing.assert_allclose(found.to_csr()[2], expected.to_csr()[2], rtol=1e-6)
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_array_equal(found.ids, expected.ids)
    if found.weights is None or expected.weights is None:
        assert found.weights is expected.weights
    else:
        np.testing.assert_array_equal(found.weights, expected.weights)


@settings(deadline=None, max_examples=300)
@given(field_rows())
def test_fields_become_the_rows_that_they_are(rows: FieldRows) -> None:
    """Numbering field by field gives what numbering row after row gives, sums of duplicates included."""
    # Values as above never cancel out.
    assert_same_rows(rows.to_block(0), as_rows(rows).to_block(0))


@settings(deadline=None)
@given(field_rows())
def test_a_block_of_fields_computes_and_reads_back(rows: FieldRows) -> None:
    """Products do not care for the order of entries, and the codec keeps it."""
    block = rows.to_block(0)
    again = decode_block(encode_block(block))
    for name in ("ids", "labels", "local", "row_starts", "values", "weights"):
        np.testing.assert_array_equal(getattr(again, name), getattr(block, name))
    indptr, ids, values = block.to_csr()
    shape = (block.n_rows, max(block.ids.size, 1))
    positions = np.searchsorted(block.ids, ids)
    dense = scipy.sparse.csr_array((values, positions, indptr), shape).toarray()[:, : block.ids.size]
    w = np.linspace(1, 2, block.ids.size)
    np.testing.assert_allclose(block.matvec(w), dense.astype(np.float64) @ w, rtol=1e-6)
    np.testing.assert_allclose(block.rmatvec(np.ones(block.n_rows)), dense.sum(axis=0, dtype=np.float64))


def test_fields_keep_their_columns_while_they_are_filled() -> None:
    """A field is a column of the block, also with gaps; a table of gaps is stored row after row instead."""
    columns = np.array([[0, 9], [NO_FEATURE, 8], [0, 9]], np.uint32)
    values = np.array([[2], [0], [3]], np.float32)
    block = FieldRows(columns, values, np.zeros(3, np.float32)).to_block(0)
    assert block.row_starts is None
    np.testing.assert_array_equal(block.ids, [0, 8, 9])
    np.testing.assert_array_equal(block.local, [[0, 3, 0], [2, 1, 2]])
    assert block.values is not None
    np.testing.assert_array_equal(block.values, [[2, 0, 3], [1, 1, 1]])
    columns[:2] = NO_FEATURE
    sparse = FieldRows(columns, values, np.zeros(3, np.float32)).to_block(0)
    assert sparse.row_starts is not None
    assert sparse.nnz == 2


def test_rows_that_say_nothing_at_all() -> None:
    """Rows without a single entry are rows still."""
    nothing = FieldRows(
        np.full((3, 2), NO_FEATURE, np.uint32), np.ones((3, 1), np.float32), np.ones(3, np.float32)
    )
    block = nothing.to_block(0)
    assert (block.n_rows, block.nnz, block.ids.size) == (3, 0, 0)
    assert decode_block(encode_block(block)).n_rows == 3


@settings(deadline=None, max_examples=60)
@given(st.lists(field_rows(), min_size=1, max_size=3), st.booleans(), st.data())
def test_pieces_read_back(parts: list[FieldRows], by_row: bool, data: st.DataObject) -> None:
    """Rows of either form that were grouped, written and joined are the same rows in order."""
    n_fields, n_valued = parts[0].n_fields, parts[0].values.shape[1]
    parts = [p for p in parts if (p.n_fields, p.values.shape[1]) == (n_fields, n_valued)]
    store = MemoryStore("pieces")
    try:
        pieces, expected = [], []
        for number, fields in enumerate(parts):
            rows: ParsedRows = as_rows(fields) if by_row else fields
            group = np.array(
                data.draw(st.lists(st.integers(0, 2), min_size=rows.n_rows, max_size=rows.n_rows)), np.intp
            )
            store.put(str(number), encode_pieces(split_rows(rows, group, 3), 3))
            pieces += [p for p in [find_piece(store, str(number), 1, (0, number))] if p is not None]
            expected.append(as_rows(fields.take(np.flatnonzero(group == 1))))
        if pieces:
            joiner = RowJoiner(pieces)
            for piece in pieces:
                joiner.add(piece.read(store))
            found = list(blocks_of_rows(joiner.rows(), None, 0))
            with_weights = any(p.weights is not None for p in expected if p.n_rows)
            merged = Block.merge([p.to_block(0) for p in expected if p.n_rows])
            assert (found[0].weights is not None) == with_weights
            assert_same_rows(found[0], merged)
    finally:
        drop_memory_store("pieces")


@pytest.mark.parametrize("fields", [False, True])
def test_taking_rows_and_slices(fields: bool) -> None:
    """Chosen rows come in the order asked for, slices are runs of rows, and labels can be exchanged."""
    columns = np.arange(12, dtype=np.uint32).reshape(4, 3)
    table = FieldRows(columns, np.ones((4, 0), np.float32), np.arange(4, dtype=np.float32))
    rows: Any = table if fields else as_rows(table)
    taken = rows.take(np.array([2, 0]))
    np.testing.assert_array_equal(taken.labels, [2, 0])
    np.testing.assert_array_equal(taken.to_block(0).to_csr()[1], [6, 7, 8, 0, 1, 2])
    part = rows.slice(1, 3)
    np.testing.assert_array_equal(part.to_block(0).to_csr()[1], [3, 4, 5, 6, 7, 8])
    np.testing.assert_array_equal(part.relabelled(np.array([7, 8], np.float32)).to_block(0).labels, [7, 8])
