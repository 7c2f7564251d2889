"""The two steps of loading, as one worker does them.

First each segment of the file is parsed and its rows are scattered over *buckets*, files in a temporary
folder. Then each bucket is read back, its rows are permuted, and it is stored as one or a few chunks. A
bucket fits in memory, whatever the size of the file.

Everything random is drawn from generators that are seeded by the number of the segment or the bucket, so that
the result does not depend on how many workers there are or on who does what.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cirrus.chunks import BlockBuilder, ChunkInfo, ChunkWriter, DatasetSummary
from cirrus.client_backend.csv_fast import FastCsvParser
from cirrus.client_backend.csv_format import CsvFormat
from cirrus.client_backend.csv_rows import LabelNames
from cirrus.client_backend.parsers import SvmlightParser
from cirrus.client_backend.rows import (
    Parser,
    Piece,
    Rows,
    SegmentFacts,
    append_piece,
    blocks_of_rows,
    find_pieces,
    join_rows,
    split_rows,
)
from cirrus.storage import open_store

#: What a random generator is for; a part of its seed.
_SCATTER, _PERMUTE, _SPLIT = range(3)


@dataclass(frozen=True, kw_only=True)
class LoadSizes:
    """How much is worked on at once. These sizes, and the seed, decide which rows go where."""

    segment_bytes: int = 8 * 2**20
    """Text that is parsed at once."""
    bucket_text_bytes: int = 48 * 2**20
    """Text whose rows go into one bucket: about one chunk's worth."""
    bucket_bytes: int = 48 * 2**20
    """A bucket whose rows take more memory than this is stored in several parts."""


@dataclass(frozen=True, kw_only=True)
class LoadPlan:
    """What all workers of a load have to know."""

    path: str
    url: str
    """The dataset's."""
    prefix: str
    """Of the keys of chunks."""
    folder: str
    """Temporary, for buckets."""
    n_workers: int
    n_buckets: int
    """Where rows are shuffled."""
    segments_per_bucket: int
    """Where they are not: a bucket is a run of segments."""
    shuffle: bool
    seed: int
    bucket_bytes: int
    """See :class:`LoadSizes`."""
    csv: CsvFormat | None = None
    """None: the file is svmlight."""
    label_names: tuple[str, ...] = ()
    """CSV: names of labels that have their numbers already."""
    n_features: int | None = None
    zero_based: bool | None = None


@dataclass(frozen=True, kw_only=True)
class BucketTask:
    """One bucket, and what is known once the whole file is read."""

    bucket: int
    base: int
    """Number of the first feature in the file."""
    label_codes: Sequence[Sequence[int]] | None = None
    """For labels that are text: the final number of each of a worker's own; one list a worker."""


@dataclass(frozen=True, kw_only=True)
class ScatterResult:
    """What scattering a segment gave."""

    segment: int
    file_position: int
    facts: SegmentFacts
    label_names: list[str]
    """All that this worker has met so far."""


@dataclass(frozen=True, kw_only=True)
class BucketResult:
    """What storing a bucket gave."""

    bucket: int
    chunks: list[ChunkInfo]
    summary: DatasetSummary


class LoadWorker:
    """Does tasks of one load; in this process, or in one of its own.

    Args:
        plan: The load.
        number: Which of the workers this is.
    """

    def __init__(self, plan: LoadPlan, number: int) -> None:
        self._plan = plan
        self._number = number
        self._store = open_store(plan.url)
        self._label_names = LabelNames(plan.label_names)
        self._parser = self._make_parser()

    def _make_parser(self) -> Parser:
        plan = self._plan
        if plan.csv is not None:
            return FastCsvParser(plan.path, plan.csv, self._label_names)
        return SvmlightParser(plan.path, plan.n_features, plan.zero_based)

    def _rng(self, purpose: int, *numbers: int) -> np.random.Generator:
        return np.random.default_rng([self._plan.seed, purpose, *numbers])

    def _bucket_path(self, worker: int, name: str) -> str:
        return os.path.join(self._plan.folder, f"{worker}-{name}")

    def scatter(self, segment: int, first_line: int, data: bytes, file_position: int) -> ScatterResult:
        """Parse a segment and put its rows into buckets.

        Raises:
            DataError: Something is wrong with a line.
        """
        rows, facts = self._parser.parse(data, first_line)
        if facts.n_rows:
            for bucket, part in self._parts(rows, segment):
                append_piece(self._bucket_path(self._number, str(bucket)), segment, part)
        return ScatterResult(
            segment=segment, file_position=file_position, facts=facts, label_names=self._label_names.names
        )

    def _parts(self, rows: Rows, segment: int) -> Iterable[tuple[int, Rows]]:
        plan = self._plan
        if not plan.shuffle:
            return [(segment // plan.segments_per_bucket, rows)]
        if plan.n_buckets == 1:
            return [(0, rows)]
        buckets = self._rng(_SCATTER, segment).integers(plan.n_buckets, size=rows.labels.size, dtype=np.intp)
        return split_rows(rows, buckets, plan.n_buckets)

    def store_bucket(self, task: BucketTask) -> BucketResult:
        """Store a bucket as chunks.

        Raises:
            StorageError: The object store refused or failed.
        """
        writer = ChunkWriter(self._store, f"{self._plan.prefix}{task.bucket:06}-")
        paths = [self._bucket_path(worker, str(task.bucket)) for worker in range(self._plan.n_workers)]
        pieces = find_pieces(paths)
        if not self._plan.shuffle:
            builder = BlockBuilder(writer)
            for rows in self._read(pieces, task):
                for block in blocks_of_rows(rows, None, task.base):
                    builder.add(block)
            builder.flush()
        elif pieces:
            n_splits = -(-sum(piece.n_bytes for piece in pieces) // self._plan.bucket_bytes)
            for split in range(n_splits):
                rows = self._read_split(pieces, task, split, n_splits)
                order = self._rng(_PERMUTE, task.bucket, split).permutation(rows.labels.size)
                for block in blocks_of_rows(rows, order, task.base):
                    writer.add(block)
                writer.flush()
        for path in paths:
            if os.path.exists(path):
                os.unlink(path)
        return BucketResult(bucket=task.bucket, chunks=writer.chunks, summary=writer.summary)

    def _read(self, pieces: Iterable[Piece], task: BucketTask) -> Iterator[Rows]:
        for piece in pieces:
            rows = piece.read()
            if task.label_codes is not None:
                worker = int(os.path.basename(piece.path).partition("-")[0])
                codes = np.asarray(task.label_codes[worker], np.float32)
                rows = dataclasses.replace(rows, labels=codes[rows.labels.astype(np.intp)])
            yield rows

    def _read_split(self, pieces: list[Piece], task: BucketTask, split: int, n_splits: int) -> Rows:
        """Return one of ``n_splits`` random parts of a bucket that is too large to be read whole."""
        if n_splits == 1:
            return join_rows(self._read(pieces, task))
        return join_rows(self._read_part(pieces, task, split, n_splits))

    def _read_part(self, pieces: list[Piece], task: BucketTask, split: int, n_splits: int) -> Iterator[Rows]:
        for piece, rows in zip(pieces, self._read(pieces, task), strict=True):
            rng = self._rng(_SPLIT, task.bucket, piece.segment)
            group = rng.integers(n_splits, size=rows.labels.size, dtype=np.intp)
            yield from (part for number, part in split_rows(rows, group, n_splits) if number == split)


def plan_to_plain(plan: LoadPlan) -> dict[str, Any]:
    """Return a plan as plain values for JSON."""
    return dataclasses.asdict(plan)


def result_to_parts(result: ScatterResult | BucketResult) -> tuple[dict[str, Any], bytes]:
    """Return a result as plain values for JSON, and bytes."""
    if isinstance(result, ScatterResult):
        return dataclasses.asdict(result), b""
    plain, touches = result.summary.to_parts()
    chunks = [dataclasses.asdict(chunk) for chunk in result.chunks]
    return {"bucket": result.bucket, "chunks": chunks, "summary": plain}, touches


def scatter_result_from(plain: Mapping[str, Any]) -> ScatterResult:
    """Read what :func:`result_to_parts` gave of a ScatterResult."""
    return ScatterResult(**{**plain, "facts": SegmentFacts(**plain["facts"])})


def bucket_result_from(plain: Mapping[str, Any], touches: bytes) -> BucketResult:
    """Read what :func:`result_to_parts` gave of a BucketResult."""
    chunks = [
        ChunkInfo(
            key=chunk["key"],
            crc32=chunk["crc32"],
            block_rows=tuple(chunk["block_rows"]),
            block_offsets=tuple(chunk["block_offsets"]),
        )
        for chunk in plain["chunks"]
    ]
    summary = DatasetSummary.from_parts(plain["summary"], touches)
    return BucketResult(bucket=plain["bucket"], chunks=chunks, summary=summary)
