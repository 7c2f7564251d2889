"""What a worker computes on and what it sends: minibatches, and the gradient filter."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cirrus.chunks import Block, StoredBlock, encode_block
from cirrus.config import LeaseRange
from cirrus.errors import CorruptDataError
from cirrus.worker_runtime.batches import minibatches
from cirrus.worker_runtime.gradient_filter import GradientFilter
from cirrus.worker_runtime.train import pulls_ahead

N_FEATURES = 50


def stored_blocks(sizes: list[int]) -> list[StoredBlock]:
    """Return blocks whose rows are labelled 0, 1, 2, ... throughout; row i has entries that follow from i."""
    made = []
    first = 0
    for number, n_rows in enumerate(sizes):
        labels = np.arange(first, first + n_rows, dtype=np.float32)
        indices = np.stack([labels % N_FEATURES, (labels * 7 + 1) % N_FEATURES], axis=1)
        block = Block.from_csr(
            np.arange(0, 2 * n_rows + 1, 2),
            indices.reshape(-1).astype(np.uint32),
            np.repeat(labels + 1, 2).astype(np.float32),
            labels,
        )
        made.append(StoredBlock(data=encode_block(block), name=f"block {number}", n_features=N_FEATURES))
        first += n_rows
    return made


def contents(batch: Block) -> list[tuple[float, tuple[int, ...], tuple[float, ...]]]:
    """Return label, ids and values of every row."""
    indptr, ids, values = batch.to_csr()
    rows = itertools.pairwise(indptr.tolist())
    return [
        (float(label), tuple(ids[a:b].tolist()), tuple(values[a:b].tolist()))
        for label, (a, b) in zip(batch.labels, rows, strict=True)
    ]


sizes = st.lists(st.integers(1, 40), min_size=1, max_size=6)


@given(sizes=sizes, batch_size=st.integers(1, 60), seed=st.integers(0, 3))
@settings(deadline=None)
def test_minibatches_cover_a_lease_once(sizes: list[int], batch_size: int, seed: int) -> None:
    """All but the last have exactly batch_size rows; together they are the lease's rows, each once."""
    stored = stored_blocks(sizes)
    batches = list(minibatches(stored, batch_size, 0, (seed,)))
    n_rows = sum(sizes)
    assert len(batches) == -(-n_rows // batch_size)
    assert all(batch.n_rows == batch_size for batch in batches[:-1])
    rows = [row for batch in batches for row in contents(batch)]
    assert sorted(label for label, *_ in rows) == list(range(n_rows))
    expected = [row for block in stored for row in contents(next(minibatches([block], 10**6, 0, (0,))))]
    assert sorted(rows) == sorted(expected)
    for batch in batches:
        assert (np.diff(batch.ids.astype(np.int64)) > 0).all()


@given(sizes=sizes, batch_size=st.integers(1, 60), data=st.data())
@settings(deadline=None)
def test_minibatches_are_the_same_from_any_position(
    sizes: list[int], batch_size: int, data: st.DataObject
) -> None:
    """A worker that takes a lease up in the middle computes the very steps that were left."""
    stored = stored_blocks(sizes)
    whole = [contents(batch) for batch in minibatches(stored, batch_size, 0, (7, 1, 2))]
    position = data.draw(st.integers(0, len(whole) + 2))
    rest = [contents(batch) for batch in minibatches(stored, batch_size, position, (7, 1, 2))]
    assert rest == whole[position:]


def test_blocks_are_taken_in_another_order_each_epoch() -> None:
    """The order of a lease's blocks depends on the seed that names its epoch."""
    stored = stored_blocks([1] * 20)
    orders = [
        tuple(float(batch.labels[0]) for batch in minibatches(stored, 1, 0, (0, epoch, 3)))
        for epoch in range(5)
    ]
    assert len(set(orders)) == 5


def test_a_damaged_block_is_named() -> None:
    """What cannot be decoded is an error with the block's name, and no minibatch."""
    good, bad = stored_blocks([3, 3])
    damaged = bytearray(bad.data)
    damaged[-1] ^= 1
    stored = [good, StoredBlock(data=bytes(damaged), name=bad.name, n_features=N_FEATURES)]
    with pytest.raises(CorruptDataError, match="block 1"):
        list(minibatches(stored, 2, 0, (0,)))


# The filter.


@given(
    threshold=st.sampled_from([0.0, 0.3, 1.0, 100.0]),
    width=st.integers(1, 3),
    seed=st.integers(0, 10**6),
    n_steps=st.integers(1, 12),
)
@settings(deadline=None)
def test_the_filter_loses_nothing(threshold: float, width: int, seed: int, n_steps: int) -> None:
    """The sum of what is sent is the sum of the gradients; ids are sorted and unique each time."""
    rng = np.random.default_rng(seed)
    held = GradientFilter(threshold, width)
    given_sum, sent_sum = np.zeros((30, width)), np.zeros((30, width))
    for step in range(n_steps):
        ids = np.sort(rng.choice(30, rng.integers(0, 30), replace=False)).astype(np.uint32)
        gradient = (rng.integers(-8, 8, (len(ids), width)) / 8).astype(np.float32)
        before = gradient.copy()
        given_sum[ids] += gradient
        last = step == n_steps - 1
        sent_ids, sent = held.select(ids, gradient, last=last)
        np.testing.assert_array_equal(gradient, before)
        assert sent_ids.dtype == np.uint32
        assert sent.dtype == np.float32
        assert sent.shape == (len(sent_ids), width)
        assert (np.diff(sent_ids.astype(np.int64)) > 0).all()
        assert last or (np.abs(sent).max(axis=1, initial=0) >= threshold).all()
        sent_sum[sent_ids] += sent
    np.testing.assert_array_equal(sent_sum, given_sum)


def test_small_values_are_sent_when_they_have_added_up() -> None:
    """A row waits until it is worth sending; others go at once."""
    held = GradientFilter(1.0, 1)
    ids = np.array([3, 8], np.uint32)
    gradient = np.array([[0.5], [2.0]], np.float32)
    assert held.select(ids, gradient, last=False)[0].tolist() == [8]
    sent_ids, sent = held.select(ids, gradient, last=False)
    assert sent_ids.tolist() == [3, 8]
    assert sent.tolist() == [[1.0], [2.0]]
    assert held.select(ids[:1], gradient[:1], last=False)[0].tolist() == []
    assert held.select(ids[1:], gradient[1:], last=True)[0].tolist() == [3, 8]


def test_pulls_are_further_ahead_where_an_epoch_is_long():
    """Few steps an epoch do not bear older weights; the leases of all count, not those of one worker."""

    def lease(n_steps: int) -> LeaseRange:
        return LeaseRange(chunk=0, first_block=0, n_blocks=1, n_rows=n_steps, n_steps=n_steps)

    assert pulls_ahead([lease(200), lease(55)]) == 2
    assert pulls_ahead([lease(200), lease(56)]) == 3
