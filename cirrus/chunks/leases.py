"""Cutting a dataset into leases, and reading the blocks of one."""

from __future__ import annotations

from collections.abc import Iterator

from cirrus.chunks.block import Block
from cirrus.chunks.codec import StoredBlock, decode_block
from cirrus.chunks.manifest import ChunkInfo, Manifest
from cirrus.config import LeaseRange
from cirrus.errors import ConfigError, CorruptDataError, DataError, NotFoundError
from cirrus.storage import ObjectStore

#: Leases a worker and epoch, where there are blocks enough: so that a slow worker holds up the end of an
#: epoch by little, and a dead one loses little.
LEASES_PER_WORKER = 16
#: Most bytes of a chunk that are read at once, unless a single block is larger.
READ_BYTES = 16 * 2**20


def plan_leases(manifest: Manifest, n_workers: int, batch_size: int) -> tuple[LeaseRange, ...]:
    """Cut a dataset into leases: consecutive blocks of one chunk each.

    There are at least :data:`LEASES_PER_WORKER` a worker where the blocks allow that and a lease still holds
    a whole minibatch. Of the sizes that do, the one is taken whose last minibatch is fullest.

    Args:
        manifest: The dataset.
        n_workers: Workers that will share it.
        batch_size: Rows of a minibatch.
    """
    for name, value in (("n_workers", n_workers), ("batch_size", batch_size)):
        if value < 1:
            raise ConfigError(name, f"must be a whole number >= 1, got {value!r}")
    most_rows = manifest.n_rows // (LEASES_PER_WORKER * n_workers)
    leases: list[LeaseRange] = []
    for number, chunk in enumerate(manifest.chunks):
        leases += _plan_chunk(number, chunk, most_rows, batch_size)
    return tuple(leases)


def _plan_chunk(number: int, chunk: ChunkInfo, most_rows: int, batch_size: int) -> Iterator[LeaseRange]:
    n_blocks = _blocks_per_lease(max(chunk.block_rows), most_rows, batch_size)
    first = 0
    while first < chunk.n_blocks:
        stop = min(first + n_blocks, chunk.n_blocks)
        if sum(chunk.block_rows[stop:]) < batch_size:  # too little for a lease of its own
            stop = chunk.n_blocks
        n_rows = sum(chunk.block_rows[first:stop])
        yield LeaseRange(
            chunk=number,
            first_block=first,
            n_blocks=stop - first,
            n_rows=n_rows,
            n_steps=-(-n_rows // batch_size),
        )
        first = stop


def _blocks_per_lease(block_rows: int, most_rows: int, batch_size: int) -> int:
    least = -(-batch_size // block_rows)
    most = max(most_rows // block_rows, least)

    def waste(n_blocks: int) -> tuple[float, int]:
        n_rows = n_blocks * block_rows
        return -n_rows % batch_size / n_rows, -n_blocks

    return min(range(least, most + 1), key=waste)


def read_lease(store: ObjectStore, manifest: Manifest, lease: LeaseRange) -> list[StoredBlock]:
    """Read the blocks of a lease, in one request; :func:`decode_block` takes each of them.

    Args:
        store: The store at the dataset's URL.
        manifest: The dataset.
        lease: A range of blocks of one chunk.

    Raises:
        DataError: The dataset has no such blocks.
        CorruptDataError: The chunk is missing or truncated.
        StorageError: The store refused or failed.
    """
    if not 0 <= lease.chunk < len(manifest.chunks):
        raise DataError(f"{store.url}: has no chunk {lease.chunk}")
    chunk = manifest.chunks[lease.chunk]
    last = lease.first_block + lease.n_blocks
    if not 0 <= lease.first_block < last <= chunk.n_blocks:
        raise DataError(f"{store.url}/{chunk.key}: has no blocks {lease.first_block} to {last}")
    offsets = chunk.block_offsets[lease.first_block : last + 1]
    try:
        data = memoryview(store.get_range(chunk.key, offsets[0], offsets[-1] - offsets[0]))
    except NotFoundError as error:
        raise CorruptDataError(
            f"{store.url}/{chunk.key}: the chunk is missing: load the data again"
        ) from error
    return _cut(data, store.url, manifest, lease)


def _cut(data: memoryview, url: str, manifest: Manifest, lease: LeaseRange) -> list[StoredBlock]:
    """Cut the bytes of a lease into blocks."""
    chunk = manifest.chunks[lease.chunk]
    offsets = chunk.block_offsets[lease.first_block : lease.first_block + lease.n_blocks + 1]
    return [
        StoredBlock(
            data=data[start - offsets[0] : stop - offsets[0]],
            name=f"{url}/{chunk.key}, block {lease.first_block + i}",
            n_features=manifest.n_features,
            n_rows=chunk.block_rows[lease.first_block + i],
        )
        for i, (start, stop) in enumerate(zip(offsets, offsets[1:], strict=False))
    ]


def iterate_blocks(store: ObjectStore, manifest: Manifest) -> Iterator[Block]:
    """Yield every block of a dataset, in order; one chunk is in memory at a time."""
    for number in range(len(manifest.chunks)):
        yield from iterate_chunk(store, manifest, number)


def iterate_chunk(
    store: ObjectStore, manifest: Manifest, number: int, read_bytes: int = READ_BYTES
) -> Iterator[Block]:
    """Yield every block of one chunk, in order.

    Args:
        store: The store at the dataset's URL.
        manifest: The dataset.
        number: Which of its chunks.
        read_bytes: So many of its bytes are in memory at a time, or a whole block.

    Raises:
        CorruptDataError: The chunk is missing or damaged.
    """
    for part in _parts(manifest.chunks[number], number, read_bytes):
        for stored in read_lease(store, manifest, part):
            yield decode_block(stored)


def _parts(chunk: ChunkInfo, number: int, read_bytes: int) -> Iterator[LeaseRange]:
    """Cut a chunk into ranges of blocks of at most so many bytes, or one block."""
    first = 0
    while first < chunk.n_blocks:
        stop = first + 1
        while stop < chunk.n_blocks and (
            chunk.block_offsets[stop + 1] - chunk.block_offsets[first] <= read_bytes
        ):
            stop += 1
        n_rows = sum(chunk.block_rows[first:stop])
        yield LeaseRange(
            chunk=number, first_block=first, n_blocks=stop - first, n_rows=n_rows, n_steps=stop - first
        )
        first = stop


def iterate_chunk_bytes(data: memoryview, url: str, manifest: Manifest, number: int) -> Iterator[Block]:
    """Yield every block of a chunk that was read already, in order.

    Args:
        data: The whole chunk; blocks are views of it, as far as they can.
        url: Of the dataset, for error messages.
        manifest: The dataset.
        number: Which of its chunks.

    Raises:
        CorruptDataError: The chunk is damaged.
    """
    chunk = manifest.chunks[number]
    if len(data) < chunk.block_offsets[-1]:
        raise CorruptDataError(f"{url}/{chunk.key}: has {len(data)} bytes: load the data again")
    whole = LeaseRange(
        chunk=number, first_block=0, n_blocks=chunk.n_blocks, n_rows=chunk.n_rows, n_steps=chunk.n_blocks
    )
    for stored in _cut(data[chunk.block_offsets[0] :], url, manifest, whole):
        yield decode_block(stored)
