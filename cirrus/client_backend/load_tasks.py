"""The steps of loading, as one worker does them.

First each segment of the files is parsed and its rows are grouped by *buckets*, into one object of pieces a
segment. If ids or names of labels are to be numbered, which cannot be before all are known, each segment's
pieces are then written once more with the final numbers. At last each bucket is read back, its rows are
permuted, and it is stored as one or a few chunks. A bucket fits in memory, whatever the size of the files.

Everything random is drawn from generators that are seeded by the number of the segment or the bucket, so that
the result does not depend on how many workers there are or on who does what. What is done is kept, piece by
piece, so that a load that was interrupted goes on with what is missing.

=====================  ====================================================================================
key                    what (in the folder of the load)
=====================  ====================================================================================
``job.json``           which load this is, its seed, where its chunks go
``client.json``        who works on it
``pieces/FILE-N``      rows of segment N of a file, grouped by bucket
``parsed/FILE-N``      what is known of it (:class:`ScatterResult`); written after its pieces
``files/FILE``         the number of segments of a file that has been read to its end
``names/K``            all ids of a kind, in their final order
``numbered/FILE-N``    pieces with final numbers
``buckets/N``          the chunks of a bucket, and what is in them (:class:`BucketResult`)
=====================  ====================================================================================
"""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import lz4.frame
import numpy as np
from numpy.typing import NDArray

import cirrus.errors
from cirrus.chunks import BlockBuilder, ChunkInfo, ChunkWriter, DatasetSummary
from cirrus.chunks.vocabulary import Vocabulary
from cirrus.client_backend.load_formats import CsvLoad, LoadFormat, Segment, SvmlightFormat
from cirrus.client_backend.pieces import (
    Piece,
    RowJoiner,
    encode_pieces,
    find_all,
    find_piece,
    n_groups_of,
    read_all,
    read_names,
)
from cirrus.client_backend.ratings import RatingsFormat
from cirrus.client_backend.rows import ParsedRows, SegmentFacts, blocks_of_rows, split_rows
from cirrus.client_backend.segments import InputFile, count_lines, read_range
from cirrus.client_backend.vw_format import VwFormat
from cirrus.client_backend.words import WordsFormat
from cirrus.config import from_plain, parse_json
from cirrus.errors import CirrusError, CorruptDataError, RunError
from cirrus.storage import open_store

PIECES, PARSED, FILES, NAMES, NUMBERED, BUCKETS = (
    "pieces/",
    "parsed/",
    "files/",
    "names/",
    "numbered/",
    "buckets/",
)
#: What a random generator is for; a part of its seed.
_SCATTER, _PERMUTE, _SPLIT = range(3)
#: Length of the JSON at the beginning of the record of a bucket.
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, kw_only=True)
class LoadSizes:
    """How much is worked on at once. These sizes, and the seed, decide which rows go where."""

    segment_bytes: int = 8 * 2**20
    """Text that is parsed at once."""
    bucket_text_bytes: int = 32 * 2**20
    """Text whose rows go into one bucket: a chunk's worth; if it were more, a small one would follow."""
    bucket_bytes: int = 48 * 2**20
    """A bucket whose rows take more memory than this is stored in several parts."""


@dataclass(frozen=True, kw_only=True)
class LoadPlan:
    """What all workers of a load have to know."""

    files: tuple[str, ...]
    """What to call them in error messages."""
    url: str
    """The dataset's."""
    prefix: str
    """Of the keys of chunks."""
    folder: str
    """URL of the load's folder."""
    is_temporary: bool
    """Whether the folder is of no use once this load has ended, in whatever way."""
    n_workers: int
    n_buckets: int
    """Where rows are shuffled."""
    shuffle: bool
    seed: int
    bucket_bytes: int
    """See :class:`LoadSizes`."""
    svmlight: SvmlightFormat | None = None
    csv: CsvLoad | None = None
    ratings: RatingsFormat | None = None
    words: WordsFormat | None = None
    vw: VwFormat | None = None

    @property
    def format(self) -> LoadFormat:
        """How the files are written: the one that is given."""
        formats = (self.svmlight, self.csv, self.ratings, self.words, self.vw)
        return next(how for how in formats if how is not None)


def format_fields(how: LoadFormat) -> dict[str, Any]:
    """Return the fields of a :class:`LoadPlan` that say how files are written."""
    names = {
        SvmlightFormat: "svmlight",
        CsvLoad: "csv",
        RatingsFormat: "ratings",
        WordsFormat: "words",
        VwFormat: "vw",
    }
    return {names[type(how)]: how}


@dataclass(frozen=True, kw_only=True)
class Location:
    """Where the text of a segment lies, for workers that read it themselves."""

    url: str
    """Of a store; empty: this machine."""
    key: str
    """Its key, or the path of a file of this machine."""
    begin: int
    n_bytes: int
    is_packed: bool = False
    """Whether it is an LZ4 frame, put there for this worker."""


@dataclass(frozen=True, kw_only=True)
class ScatterTask:
    """One segment of a file."""

    segment: Segment
    """Without its text where there is a ``location``."""
    location: Location | None = None
    bucket: int
    """Where it goes when rows are not shuffled."""
    file_position: int
    """Bytes of the file read up to the end of it (compressed ones, where it is)."""
    start: int
    """Bytes of text before it."""


@dataclass(frozen=True, kw_only=True)
class NumberTask:
    """A segment whose rows get their final numbers."""

    file: int
    number: int


@dataclass(frozen=True, kw_only=True)
class BucketTask:
    """One bucket, and what is known once everything is read."""

    bucket: int
    base: int
    """Number of the first feature in the files."""
    segments: tuple[tuple[int, int], ...]
    """(file, number) of those that may have rows for it, in order."""


@dataclass(frozen=True, kw_only=True)
class ScatterResult:
    """What scattering a segment gave."""

    file: int
    number: int
    bucket: int
    first_line: int
    n_lines: int
    start: int
    n_bytes: int
    file_position: int
    facts: SegmentFacts
    is_cut: bool = False
    """The segment ends between quotation marks: nothing was stored, and it must be cut elsewhere."""


@dataclass(frozen=True, kw_only=True)
class BucketResult:
    """What storing a bucket gave."""

    bucket: int
    chunks: list[ChunkInfo]
    summary: DatasetSummary

    def to_bytes(self) -> bytes:
        """Return the result as bytes."""
        plain, touches = self.summary.to_parts()
        chunks = [dataclasses.asdict(chunk) for chunk in self.chunks]
        head = json.dumps({"bucket": self.bucket, "chunks": chunks, "summary": plain}).encode()
        return _LENGTH.pack(len(head)) + head + touches

    @classmethod
    def from_bytes(cls, data: bytes) -> BucketResult:
        """Read what :meth:`to_bytes` gave.

        Raises:
            CorruptDataError: It is something else.
        """
        try:
            return cls._from_bytes(data)
        except (struct.error, ValueError, KeyError, TypeError, OverflowError) as error:
            raise CorruptDataError(f"the result of a bucket: {error!r}: delete it, and load again") from error

    @classmethod
    def _from_bytes(cls, data: bytes) -> BucketResult:
        end = _LENGTH.size + _LENGTH.unpack_from(data)[0]
        plain = parse_json(data[_LENGTH.size : end])
        return cls(
            bucket=plain["bucket"],
            chunks=[from_plain(ChunkInfo, chunk, "chunk") for chunk in plain["chunks"]],
            summary=DatasetSummary.from_parts(plain["summary"], data[end:]),
        )


def segment_key(folder: str, file: int, number: int) -> str:
    """Return where something about a segment is kept; keys sort as segments do."""
    return f"{folder}{file:06}-{number:08}"


class LoadWorker:
    """Does tasks of one load; in this process, or in one of its own.

    Args:
        plan: The load.
    """

    def __init__(self, plan: LoadPlan) -> None:
        self._plan = plan
        self._format = plan.format
        self._store = open_store(plan.url)
        self._folder = open_store(plan.folder)
        self._sources = {plan.folder: self._folder}
        """Stores that text is read from; to open one takes a while."""
        self._reader = self._format.reader(plan.files)
        self._vocabularies: list[Vocabulary] | None = None

    def _rng(self, purpose: int, *numbers: int) -> np.random.Generator:
        return np.random.default_rng([self._plan.seed, purpose, *numbers])

    def scatter(self, task: ScatterTask) -> ScatterResult:
        """Parse a segment and group its rows by buckets.

        Raises:
            DataError: Something is wrong with a line.
            StorageError: The object store refused or failed.
        """
        segment = task.segment
        if task.location is not None:
            name = self._plan.files[segment.file]
            segment = dataclasses.replace(segment, data=self._read_text(task.location, name))
            if self._format.quoted and segment.data.count(b'"') % 2:
                return _scattered(task, segment, SegmentFacts(n_rows=0), is_cut=True)
        rows, facts, names = self._reader.read(segment)
        if facts.n_rows:
            groups, n_groups = self._groups(rows, segment)
            key = segment_key(PIECES, segment.file, segment.number)
            self._folder.put(key, encode_pieces(groups, n_groups, names))
        result = _scattered(task, segment, facts)
        if not self._plan.is_temporary:
            key = segment_key(PARSED, segment.file, segment.number)
            self._folder.put(key, json.dumps(dataclasses.asdict(result)).encode())
        return result

    def _read_text(self, location: Location, name: str) -> bytes:
        """Return the text of a segment.

        Args:
            location: Where it is.
            name: What to call the file in an error message.

        Raises:
            DataError: The file became shorter.
            StorageError: It cannot be read.
        """
        store = self._sources.get(location.url)
        if store is None and location.url:
            store = self._sources[location.url] = open_store(location.url)
        if location.is_packed:
            assert store is not None
            return bytes(lz4.frame.decompress(store.get(location.key)))
        file = InputFile(location.key, name, n_bytes=0, store=store)
        return read_range(file, location.begin, location.n_bytes)

    def _groups(self, rows: ParsedRows, segment: Segment) -> tuple[Iterable[tuple[int, ParsedRows]], int]:
        n_buckets = self._plan.n_buckets
        if not self._plan.shuffle or n_buckets == 1:
            return [(0, rows)], 1
        rng = self._rng(_SCATTER, segment.file, segment.number)
        buckets = rng.integers(n_buckets, size=rows.n_rows, dtype=np.intp)
        return split_rows(rows, buckets, n_buckets), n_buckets

    def number(self, task: NumberTask) -> NumberTask:
        """Write a segment's pieces once more, with the final numbers.

        Raises:
            CorruptDataError: The pieces were changed.
            StorageError: The object store refused or failed.
        """
        if self._vocabularies is None:
            keys = [f"{NAMES}{k}" for k in range(len(self._format.names))]
            self._vocabularies = [Vocabulary.from_bytes(self._folder.get(key), key) for key in keys]
        key = segment_key(PIECES, task.file, task.number)
        numbers: list[NDArray[np.int64]] = []
        for own, final in zip(read_names(self._folder, key), self._vocabularies, strict=True):
            numbers.append(np.append(final.codes(own.array), len(final)))
        n_groups = n_groups_of(self._folder, key)

        def groups() -> Iterator[tuple[int, ParsedRows]]:
            for group in range(n_groups):
                piece = find_piece(self._folder, key, group, (task.file, task.number))
                if piece is not None:
                    yield group, self._format.renumbered(piece.read(self._folder), numbers)

        self._folder.put(segment_key(NUMBERED, task.file, task.number), encode_pieces(groups(), n_groups))
        return task

    def store_bucket(self, task: BucketTask) -> BucketResult:
        """Store a bucket as chunks.

        Raises:
            CorruptDataError: Pieces were changed.
            StorageError: The object store refused or failed.
        """
        plan = self._plan
        writer = ChunkWriter(self._store, f"{plan.prefix}{task.bucket:06}-")
        pieces = self._pieces(task)
        if not plan.shuffle:
            builder = BlockBuilder(writer)
            for rows in read_all(self._folder, pieces):
                for block in blocks_of_rows(rows, None, task.base):
                    builder.add(block)
            builder.flush()
        elif pieces:
            n_splits = -(-sum(piece.n_bytes for piece in pieces) // plan.bucket_bytes)
            for split in range(n_splits):
                rows = self._read_split(pieces, task.bucket, split, n_splits)
                order = self._rng(_PERMUTE, task.bucket, split).permutation(rows.n_rows)
                for block in blocks_of_rows(rows, order, task.base):
                    writer.add(block)
                writer.flush()
        result = BucketResult(bucket=task.bucket, chunks=writer.chunks, summary=writer.summary)
        if not plan.is_temporary:
            self._folder.put(f"{BUCKETS}{task.bucket:06}", result.to_bytes())
        return result

    def _pieces(self, task: BucketTask) -> list[Piece]:
        plan = self._plan
        folder = NUMBERED if self._format.names else PIECES
        group = task.bucket if plan.shuffle and plan.n_buckets > 1 else 0
        keys = [(segment_key(folder, file, number), (file, number)) for file, number in task.segments]
        return [piece for piece in find_all(self._folder, keys, group) if piece is not None]

    def _read_split(self, pieces: list[Piece], bucket: int, split: int, n_splits: int) -> ParsedRows:
        """Return one of ``n_splits`` random parts of a bucket that is too large to be read whole."""
        joiner = RowJoiner(pieces)
        for piece, rows in zip(pieces, read_all(self._folder, pieces), strict=True):
            if n_splits > 1:
                rng = self._rng(_SPLIT, bucket, *piece.segment)
                group = rng.integers(n_splits, size=rows.n_rows, dtype=np.intp)
                joiner.add(rows.take(np.flatnonzero(group == split)))
            else:
                joiner.add(rows)
        return joiner.rows()


def _scattered(
    task: ScatterTask, segment: Segment, facts: SegmentFacts, *, is_cut: bool = False
) -> ScatterResult:
    return ScatterResult(
        file=segment.file,
        number=segment.number,
        bucket=task.bucket,
        first_line=segment.first_line,
        n_lines=count_lines(segment.data),
        start=task.start,
        n_bytes=len(segment.data),
        file_position=task.file_position,
        facts=facts,
        is_cut=is_cut,
    )


def do_task(
    worker: LoadWorker, call: str, request: Mapping[str, Any], data: bytes
) -> tuple[dict[str, Any], bytes]:
    """Do a task that came as :func:`task_to_parts` gives it.

    Args:
        worker: Does it.
        call: Which of the worker's methods.
        request: The task.
        data: Its bytes.

    Returns:
        What came of it, as plain values and bytes.
    """
    if call == "scatter":
        return dataclasses.asdict(worker.scatter(scatter_task_from(request, data))), b""
    if call == "number":
        worker.number(NumberTask(**request))
        return {}, b""
    return {}, worker.store_bucket(from_plain(BucketTask, dict(request), "bucket")).to_bytes()


def error_to_plain(error: CirrusError) -> dict[str, Any]:
    """Return an error as plain values: its class, and what it is made of, which mostly is its text."""
    reduced = error.__reduce__()
    is_made = isinstance(reduced, tuple) and isinstance(reduced[1], tuple)
    arguments = reduced[1] if is_made else error.args
    return {"error": type(error).__name__, "arguments": [str(argument) for argument in arguments]}


def error_from_plain(plain: Mapping[str, Any]) -> CirrusError:
    """Return the error that :func:`error_to_plain` told of."""
    kind = getattr(cirrus.errors, str(plain["error"]), RunError)
    if not (isinstance(kind, type) and issubclass(kind, CirrusError)):
        kind = RunError
    made: CirrusError = kind(*map(str, plain["arguments"]))
    return made


def task_to_parts(task: ScatterTask | NumberTask | BucketTask) -> tuple[dict[str, Any], bytes]:
    """Return a task as plain values for JSON, and bytes."""
    if not isinstance(task, ScatterTask):
        return dataclasses.asdict(task), b""
    segment = dataclasses.replace(task.segment, data=b"")
    plain = dataclasses.asdict(dataclasses.replace(task, segment=segment))
    del plain["segment"]["data"]
    return plain, task.segment.data


def scatter_task_from(plain: Mapping[str, Any], data: bytes) -> ScatterTask:
    """Read what :func:`task_to_parts` gave of a ScatterTask."""
    segment = dict(plain["segment"])
    csv = segment.pop("csv")
    format_of_file = None if csv is None else from_plain(CsvLoad, {"csv": csv}, "csv").csv
    return ScatterTask(
        segment=Segment(**segment, data=data, csv=format_of_file),
        bucket=plain["bucket"],
        file_position=plain["file_position"],
        start=plain["start"],
        location=None if plain["location"] is None else from_plain(Location, plain["location"], "location"),
    )


def scatter_result_from(plain: Mapping[str, Any]) -> ScatterResult:
    """Read a ScatterResult from plain values."""
    return from_plain(ScatterResult, dict(plain), "parsed segment")


def read_scatter_result(data: bytes) -> ScatterResult:
    """Read a ScatterResult that an earlier load stored.

    Raises:
        CorruptDataError: It is none.
    """
    try:
        return from_plain(ScatterResult, parse_json(data), "parsed segment")
    except ValueError as error:
        raise CorruptDataError(f"{error}: delete the load's folder, and load again") from error
