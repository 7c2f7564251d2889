"""From the blocks of a lease to minibatches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from cirrus.chunks import Block, StoredBlock, decode_block


def minibatches(
    stored: Sequence[StoredBlock], batch_size: int, first_position: int, seed: tuple[int, ...]
) -> Iterator[Block]:
    """Yield the minibatches of a lease from a position on.

    The blocks are taken in an order that depends on the seed alone, so that every worker that is given this
    lease cuts the same minibatches. Blocks before ``first_position`` are not needed but for their number of
    rows, and each block is decoded when it is needed.

    Args:
        stored: The lease's blocks.
        batch_size: Rows a minibatch; the last one of the lease may have fewer.
        first_position: How many minibatches to leave out.
        seed: For the order of the blocks.
    """
    order = np.random.default_rng(seed).permutation(len(stored))
    skip = first_position * batch_size
    held: list[Block] = []
    n_held = 0
    for number in order:
        block = decode_block(stored[number])
        if skip >= block.n_rows:
            skip -= block.n_rows
            continue
        if skip:
            block, skip = block.rows(skip, block.n_rows), 0
        held.append(block)
        n_held += block.n_rows
        while n_held >= batch_size:
            batch, held = _take(held, batch_size)
            n_held -= batch_size
            yield batch
    if held:
        yield Block.merge(held)


def _take(held: list[Block], n_rows: int) -> tuple[Block, list[Block]]:
    """Return the first rows of some blocks as one, and what is left of the last."""
    last = held[-1]
    wanted = n_rows - sum(block.n_rows for block in held[:-1])
    if wanted == last.n_rows:
        return Block.merge(held), []
    batch = Block.merge([*held[:-1], last.rows(0, wanted)])
    return batch, [last.rows(wanted, last.n_rows)]
