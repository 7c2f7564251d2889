"""Datasets as workers see them: blocks, their codec, the manifest, and leases.

=============  ==========================================================================================
module         what
=============  ==========================================================================================
``block``      :class:`Block`: rows that are computed on together, and that arithmetic
``codec``      a block as bytes and back, with every length checked
``manifest``   :class:`Manifest`: what a dataset says of itself
``touches``    counting where in the feature space the data is dense
``balance``    cutting tables into ranges of equal work for the shards
``leases``     cutting a dataset into leases, and reading one
``writer``     blocks into chunks into a dataset
=============  ==========================================================================================

It needs numpy and lz4 and nothing more, because workers import it.
"""

from cirrus.chunks.balance import cut_boundaries, expected_touches
from cirrus.chunks.block import Block
from cirrus.chunks.codec import MAX_BLOCK_BYTES, StoredBlock, decode_block, encode_block
from cirrus.chunks.leases import iterate_blocks, iterate_chunk, iterate_chunk_bytes, plan_leases, read_lease
from cirrus.chunks.manifest import MANIFEST_KEY, ChunkInfo, Manifest, read_manifest
from cirrus.chunks.touches import Touches
from cirrus.chunks.writer import (
    BLOCK_ROWS,
    DERIVED_FOLDER,
    BlockBuilder,
    ChunkWriter,
    DatasetSummary,
    commit_dataset,
    discard_chunks,
    new_chunk_prefix,
)

__all__ = [
    "BLOCK_ROWS",
    "DERIVED_FOLDER",
    "MANIFEST_KEY",
    "MAX_BLOCK_BYTES",
    "Block",
    "BlockBuilder",
    "ChunkInfo",
    "ChunkWriter",
    "DatasetSummary",
    "Manifest",
    "StoredBlock",
    "Touches",
    "commit_dataset",
    "cut_boundaries",
    "decode_block",
    "discard_chunks",
    "encode_block",
    "expected_touches",
    "iterate_blocks",
    "iterate_chunk",
    "iterate_chunk_bytes",
    "new_chunk_prefix",
    "plan_leases",
    "read_lease",
    "read_manifest",
]
