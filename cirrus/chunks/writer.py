"""Writing a dataset: blocks into chunks, chunks into a store, and the manifest last."""

from __future__ import annotations

import contextlib
import json
import secrets
import warnings
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cirrus.chunks.block import Block
from cirrus.chunks.codec import encode_block
from cirrus.chunks.manifest import (
    MANIFEST_KEY,
    MAX_LABEL_VALUES,
    ChunkInfo,
    Manifest,
    VocabularyInfo,
    fingerprint,
)
from cirrus.chunks.touches import TouchCounter
from cirrus.errors import ConflictError, CorruptDataError, DataError, NotFoundError, StorageError
from cirrus.storage import ObjectStore

#: Rows of a block, but for the last one of a chunk. A power of two, so that usual batch sizes divide it.
BLOCK_ROWS = 1024
#: A block with more entries than this is halved, as long as it has several rows: about 8 MB.
MAX_BLOCK_ENTRIES = 2**20
#: A chunk is closed when it has reached this size.
CHUNK_BYTES = 15 * 2**20
#: Keys of chunks begin with this; what follows is unique to one load.
CHUNK_PREFIX = "chunks-"
#: Datasets made from this one, such as its splits, lie below this folder of it.
DERIVED_FOLDER = "splits"
#: More blocks of a single label than chance explains, by this part of all blocks, are worth a warning.
SINGLE_LABEL_PART = 0.2


class DatasetSummary:
    """What a manifest says besides where the chunks are; collected block by block, and mergeable."""

    def __init__(self) -> None:
        self.touches = TouchCounter()
        self.label_counts: dict[float, int] = {}
        self.too_many_labels = False
        self.single_label_blocks = 0
        self.n_features = 0
        """One more than the highest id."""
        self.has_weights = False
        self.has_negatives = False

    def add(self, block: Block) -> None:
        """Count a block."""
        entries = block.local.ravel()
        counts = np.bincount(entries, minlength=block.ids.size + 1)[: block.ids.size]
        self.touches.add(block.ids, counts)
        if block.ids.size:
            self.n_features = max(self.n_features, int(block.ids[-1]) + 1)
        labels, label_counts = np.unique(block.labels, return_counts=True)
        self.single_label_blocks += labels.size == 1
        self._add_labels(zip(labels.tolist(), label_counts.tolist(), strict=True))
        self.has_weights |= block.weights is not None
        self.has_negatives |= block.values is not None and bool(block.values.min(initial=0) < 0)

    def _add_labels(self, counts: Iterable[tuple[float, int]]) -> None:
        if self.too_many_labels:
            return
        for label, count in counts:
            self.label_counts[label] = self.label_counts.get(label, 0) + count
        if len(self.label_counts) > MAX_LABEL_VALUES:
            self.too_many_labels = True
            self.label_counts = {}

    def to_parts(self) -> tuple[dict[str, Any], bytes]:
        """Return the summary as plain values for JSON, and bytes, for another process."""
        plain = {
            "label_counts": list(self.label_counts.items()),
            "too_many_labels": self.too_many_labels,
            "single_label_blocks": self.single_label_blocks,
            "n_features": self.n_features,
            "has_weights": self.has_weights,
            "has_negatives": self.has_negatives,
        }
        return plain, self.touches.to_bytes()

    @classmethod
    def from_parts(cls, plain: Mapping[str, Any], touches: bytes) -> DatasetSummary:
        """Read what :meth:`to_parts` gave."""
        summary = cls()
        summary.touches = TouchCounter.from_bytes(touches)
        summary.label_counts = {float(label): int(count) for label, count in plain["label_counts"]}
        summary.too_many_labels = plain["too_many_labels"]
        summary.single_label_blocks = plain["single_label_blocks"]
        summary.n_features = plain["n_features"]
        summary.has_weights = plain["has_weights"]
        summary.has_negatives = plain["has_negatives"]
        return summary

    def merge(self, other: DatasetSummary) -> None:
        """Add what another summary counted."""
        self.touches.merge(other.touches)
        if other.too_many_labels:
            self.too_many_labels = True
            self.label_counts = {}
        self._add_labels(other.label_counts.items())
        self.single_label_blocks += other.single_label_blocks
        self.n_features = max(self.n_features, other.n_features)
        self.has_weights |= other.has_weights
        self.has_negatives |= other.has_negatives


class ChunkWriter:
    """Writes blocks as chunks of about :data:`CHUNK_BYTES`, and sums up what it wrote.

    Args:
        store: Where to.
        prefix: What the chunks' keys begin with; a number follows.
        chunk_bytes: When to close a chunk.
    """

    def __init__(self, store: ObjectStore, prefix: str, *, chunk_bytes: int = CHUNK_BYTES) -> None:
        self.summary = DatasetSummary()
        self.chunks: list[ChunkInfo] = []
        self._store = store
        self._prefix = prefix
        self._chunk_bytes = chunk_bytes
        self._parts: list[bytes] = []
        self._rows: list[int] = []
        self._n_bytes = 0

    def add(self, block: Block) -> None:
        """Append a block of at least one row, in several parts where it has very many entries.

        Raises:
            DataError: A single row is too large.
        """
        if block.n_rows > 1 and block.local.size > MAX_BLOCK_ENTRIES and block.nnz > MAX_BLOCK_ENTRIES:
            middle = block.n_rows // 2
            self.add(block.rows(0, middle))
            self.add(block.rows(middle, block.n_rows))
            return
        self.summary.add(block)
        part = encode_block(block)
        self._parts.append(part)
        self._rows.append(block.n_rows)
        self._n_bytes += len(part)
        if self._n_bytes >= self._chunk_bytes:
            self.flush()

    def flush(self) -> None:
        """Write what there is as a chunk."""
        if not self._parts:
            return
        key = f"{self._prefix}{len(self.chunks):06}"
        data = b"".join(self._parts)
        offsets = np.cumsum([0, *(len(part) for part in self._parts)]).tolist()
        self._store.put(key, data)
        self.chunks.append(
            ChunkInfo(
                key=key, crc32=zlib.crc32(data), block_rows=tuple(self._rows), block_offsets=tuple(offsets)
            )
        )
        self._parts, self._rows, self._n_bytes = [], [], 0


class BlockBuilder:
    """Cuts rows that come in pieces of any size into blocks of :data:`BLOCK_ROWS`."""

    def __init__(self, writer: ChunkWriter, *, block_rows: int = BLOCK_ROWS) -> None:
        self._writer = writer
        self._block_rows = block_rows
        self._pending: list[Block] = []
        self._n_pending = 0

    def add(self, rows: Block) -> None:
        """Append rows."""
        start = 0
        while rows.n_rows - start >= self._block_rows - self._n_pending:
            stop = start + self._block_rows - self._n_pending
            self._keep(rows.rows(start, stop))
            self._write()
            start = stop
        if start < rows.n_rows:
            self._keep(rows.rows(start, rows.n_rows))

    def _keep(self, rows: Block) -> None:
        self._pending.append(rows)
        self._n_pending += rows.n_rows

    def _write(self) -> None:
        self._writer.add(Block.merge(self._pending))
        self._pending, self._n_pending = [], 0

    def flush(self) -> None:
        """Write the rows that are left as a smaller block, and end the chunk."""
        if self._pending:
            self._write()
        self._writer.flush()


def new_chunk_prefix() -> str:
    """Return a key prefix that no other load uses: nobody reads there before the manifest is written."""
    return f"{CHUNK_PREFIX}{secrets.token_hex(6)}/"


@dataclass(frozen=True)
class Replaced:
    """The dataset, if any, that is at a URL when the work on its successor begins."""

    etag: str | None
    """Of its manifest; None: there is none."""


def find_replaced(store: ObjectStore) -> Replaced:
    """Return what :func:`commit_dataset` must still find, so that of two writers at once only one wins.

    Raises:
        StorageError: The object store refused or failed.
    """
    try:
        return Replaced(store.get_versioned(MANIFEST_KEY)[1])
    except NotFoundError:
        return Replaced(None)


def commit_dataset(
    store: ObjectStore,
    chunks: Iterable[ChunkInfo],
    summary: DatasetSummary,
    *,
    n_features: int | None = None,
    label_names: tuple[str, ...] | None = None,
    encoding: Mapping[str, Any] | None = None,
    vocabularies: tuple[VocabularyInfo, ...] = (),
    replaces: Replaced | None = None,
) -> Manifest:
    """Write the manifest over chunks that are in the store, and then delete those of the dataset it replaces.

    What was derived from other data that was here (:data:`DERIVED_FOLDER`) is deleted too.

    Args:
        store: The store at the dataset's URL.
        chunks: The chunks, in order.
        summary: What is in them.
        n_features: None: one more than the highest id.
        label_names: Names of the labels 0, 1, ..., where they were text.
        encoding: How raw rows became columns.
        vocabularies: What features are called; these objects are in the store too.
        replaces: What :func:`find_replaced` gave when the work began; None: replace whatever there is.

    Raises:
        DataError: There are no rows.
        ConflictError: Another dataset was stored here since ``replaces`` was found; it stays.
    """
    chunks = tuple(chunks)
    if not chunks:
        raise DataError(f"{store.url}: there are no rows to store")
    features = max(summary.n_features if n_features is None else n_features, 1)
    labels = sorted(summary.label_counts)
    several = summary.too_many_labels or len(labels) > 1
    manifest = Manifest(
        n_rows=sum(chunk.n_rows for chunk in chunks),
        n_features=features,
        chunks=chunks,
        label_values=tuple(labels),
        label_counts=tuple(summary.label_counts[label] for label in labels),
        touches=summary.touches.histogram(features),
        fingerprint=fingerprint(chunks, features, label_names, vocabularies),
        label_names=label_names,
        single_label_blocks=summary.single_label_blocks if several else 0,
        has_weights=summary.has_weights,
        has_negatives=summary.has_negatives,
        encoding=json.loads(json.dumps(encoding or {})),  # as it will be read back
        vocabularies=vocabularies,
    )
    _warn_of_single_labels(manifest)
    replaced = _existing_manifest(store)
    _put_manifest(store, manifest, replaces)
    # The new dataset is there from here on: what cannot be deleted any more is only in the way.
    with contextlib.suppress(StorageError):
        if replaced is not None and replaced.fingerprint != manifest.fingerprint:
            store.delete_prefix(DERIVED_FOLDER)
        if replaced is not None:
            for key in [part.key for part in replaced.chunks] + [part.key for part in replaced.vocabularies]:
                store.delete(key)
    return manifest


def _put_manifest(store: ObjectStore, manifest: Manifest, replaces: Replaced | None) -> None:
    if replaces is None:
        store.put(MANIFEST_KEY, manifest.to_json())
        return
    try:
        store.put(MANIFEST_KEY, manifest.to_json(), if_match=replaces.etag, if_absent=replaces.etag is None)
    except ConflictError as error:
        raise ConflictError(
            f"{store.url}: another dataset was stored or deleted here meanwhile: what is there stays; load "
            "again to replace it, or choose another URL"
        ) from error


def discard_chunks(store: ObjectStore, prefix: str) -> None:
    """Delete chunks that were written for a dataset that is not to be, unless it came to be after all.

    Args:
        store: The store at the dataset's URL.
        prefix: What :func:`new_chunk_prefix` gave.
    """
    with contextlib.suppress(StorageError):
        manifest = _existing_manifest(store)
        if manifest is None or not any(chunk.key.startswith(prefix) for chunk in manifest.chunks):
            store.delete_prefix(prefix)


def _existing_manifest(store: ObjectStore) -> Manifest | None:
    try:
        return Manifest.from_json(store.get(MANIFEST_KEY))
    except (NotFoundError, CorruptDataError):
        return None


def _warn_of_single_labels(manifest: Manifest) -> None:
    # Rare labels are missing from many blocks of well shuffled rows too: with frequencies p, a block of n
    # rows holds one label alone with probability sum(p ** n).
    shares = np.asarray(manifest.label_counts, np.float64) / manifest.n_rows
    rows = np.asarray([n for chunk in manifest.chunks for n in chunk.block_rows])
    expected = sum(float((share**rows).sum()) for share in shares)
    if manifest.single_label_blocks > expected + SINGLE_LABEL_PART * manifest.n_blocks:
        warnings.warn(
            f"{manifest.single_label_blocks} of {manifest.n_blocks} blocks hold rows of one label alone: "
            "training goes worse on sorted data; load it with shuffle=True",
            UserWarning,
            stacklevel=4,
        )
