"""Loading files as datasets: streaming, with several processes, all or nothing, and to be gone on with.

The parent finds segments of the files, of several files at a time, and hands each to a worker
(:mod:`~cirrus.client_backend.load_tasks`), which reads it unless the parent had to, parses it and groups its
rows by buckets; when all are read, the workers store the buckets as chunks; then the parent writes the
manifest. What was done by then is kept in a folder beside the dataset
(:mod:`~cirrus.client_backend.load_job`): a load that was interrupted goes on with it, one that was refused
leaves nothing behind. A dataset that was there stays as it was until the manifest is replaced.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from cirrus.chunks import DatasetSummary, Manifest, commit_dataset
from cirrus.chunks.vocabulary import Vocabulary, store_vocabulary, union_of
from cirrus.chunks.writer import Replaced, find_replaced
from cirrus.client_backend.backend import Backend, resolve_backend
from cirrus.client_backend.csv_format import CsvFormat, CsvRequest
from cirrus.client_backend.homes import default_home
from cirrus.client_backend.inline import InlineBackend
from cirrus.client_backend.inputs import Inputs, open_inputs
from cirrus.client_backend.load_formats import CsvLoad, LoadFacts, LoadFormat, SvmlightFormat
from cirrus.client_backend.load_formats import Segment as FileSegment
from cirrus.client_backend.load_job import LoadJob, load_identity
from cirrus.client_backend.load_tasks import (
    BUCKETS,
    FILES,
    NAMES,
    NUMBERED,
    PARSED,
    PIECES,
    BucketResult,
    BucketTask,
    LoadPlan,
    LoadSizes,
    Location,
    NumberTask,
    ScatterResult,
    ScatterTask,
    format_fields,
    read_scatter_result,
    segment_key,
)
from cirrus.client_backend.load_team import RemoteWorker, Team, Worker
from cirrus.client_backend.located import first_line_of, locate_segments, true_line, with_true_line
from cirrus.client_backend.parquet import BATCH_ROWS, find_parquet_format, fit_parquet_format
from cirrus.client_backend.pieces import REQUESTS_AT_ONCE, get_all, read_names
from cirrus.client_backend.ratings import RatingsFormat
from cirrus.client_backend.segments import (
    InputFile,
    Place,
    Segment,
    is_compressed,
    read_range,
    read_segments,
)
from cirrus.client_backend.vw_format import VwFormat
from cirrus.client_backend.words import find_words_format, read_words
from cirrus.config import whole_number
from cirrus.errors import ConfigError, DataError
from cirrus.storage import FolderStore, MemoryStore, ObjectStore, open_store

#: How much larger text is than its compressed file, at a guess; too large a bucket is scattered again.
COMPRESSION_RATIO = 5
#: Below this size another process takes longer to start than it saves.
MIN_PROCESS_BYTES = 16 * 2**20
#: More processes than this are not started unless asked for: the parent could not feed them.
MAX_PROCESSES = 16
#: Where features are paired, so much less text is worked on at once.
PAIRED_RATIO = 8
#: In a store that is no folder, pieces that take more requests than this lie on this machine instead.
MAX_PIECE_REQUESTS = 20_000
#: How much of a file is looked at for its header.
HEADER_BYTES = 2**16
#: How much of a file is looked at for what its columns hold.
SAMPLE_BYTES = 2**20

log = logging.getLogger(__name__)

#: Yields a file's segments, from a place on.
SegmentSource = Callable[[InputFile, Place], Iterator[Segment]]


@dataclass(frozen=True, kw_only=True)
class LoadProgress:
    """How far a load is."""

    bytes_done: int
    """Of ``bytes_total``; reading the files is one half, storing their rows the other."""
    bytes_total: int
    """Size of the files."""
    rows: int
    """Rows read."""
    rows_found: int = 0
    """Of these, the rows that an earlier, interrupted load had read."""


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """What all formats have in common."""

    shuffle: bool = True
    random_state: int | None = None
    n_processes: int | None = None
    progress: Callable[[LoadProgress], None] | None = None
    sizes: LoadSizes = LoadSizes()
    backend: Backend | None = None
    """Whose workers parse and store; None: this machine's."""

    @property
    def is_remote(self) -> bool:
        """Whether workers are elsewhere, and see nothing but the object store."""
        return self.backend is not None and self.backend.loads_remotely

    def __post_init__(self) -> None:
        """Check every option."""
        if self.n_processes is not None:
            whole_number(self.n_processes, "n_processes")
        if self.random_state is not None:
            whole_number(self.random_state, "random_state", least=0)


def load_options(
    shuffle: bool,
    random_state: int | None,
    n_processes: int | None,
    progress: Callable[[LoadProgress], None] | None,
    backend: str | Backend | None,
) -> LoadOptions:
    """Return what a loader's parameters ask for.

    Raises:
        ConfigError: One of them cannot work.
    """
    found = None if backend is None else resolve_backend(backend)
    if isinstance(found, InlineBackend) and n_processes is None:
        n_processes = 1
    return LoadOptions(
        shuffle=bool(shuffle),
        random_state=None if random_state is None else whole_number(random_state, "random_state", least=0),
        n_processes=None if n_processes is None else whole_number(n_processes, "n_processes"),
        progress=progress,
        backend=found,
    )


def load_svmlight_file(
    path: str,
    store: ObjectStore,
    *,
    n_features: int | None = None,
    zero_based: bool | None = None,
    options: LoadOptions,
) -> Manifest:
    """Load svmlight files; see :func:`cirrus.load_svmlight`.

    Args:
        path: See :func:`~cirrus.client_backend.inputs.open_inputs`.
        store: The store at the dataset's URL.
        n_features: Number of columns; None: one more than the highest that occurs.
        zero_based: Whether the first feature is 0 or 1; None: 0 if 0 occurs anywhere in the files, else 1.
        options: How to load.

    Raises:
        DataError: Something is wrong with a file.
        NotFoundError: There is no such file.
        ConflictError: Another dataset was stored at the URL meanwhile.
        StorageError: The object store refused or failed.
    """
    how = SvmlightFormat(n_features=n_features, zero_based=zero_based)
    with open_inputs(path) as inputs:
        return load_inputs(inputs, store, how, options)


def load_csv_file(path: str, store: ObjectStore, *, request: CsvRequest, options: LoadOptions) -> Manifest:
    """Load CSV files; see :func:`cirrus.load_csv`.

    Args:
        path: See :func:`~cirrus.client_backend.inputs.open_inputs`.
        store: The store at the dataset's URL.
        request: Which columns to take, and how.
        options: How to load.

    Raises:
        DataError: Something is wrong with a file.
        NotFoundError: There is no such file.
        ConflictError: Another dataset was stored at the URL meanwhile.
        StorageError: The object store refused or failed.
    """
    with open_inputs(path) as inputs:
        first = inputs.files[0]
        how = CsvLoad(csv=request.resolve(first.name, first_lines(first, quoted=True, n_bytes=SAMPLE_BYTES)))
        return load_inputs(inputs, store, how, options)


def load_csv_file_like(
    path: str,
    store: ObjectStore,
    *,
    csv: CsvFormat,
    label_names: tuple[str, ...] | None = None,
    with_labels: bool = False,
    options: LoadOptions,
) -> Manifest:
    """Load CSV files in the way others were; see :func:`cirrus.load_csv_like`.

    Args:
        path: See :func:`~cirrus.client_backend.inputs.open_inputs`.
        store: The store at the dataset's URL.
        csv: How the other files were read.
        label_names: The other files' labels, if they were text.
        with_labels: Read the labels; otherwise they are 0 and may be missing.
        options: How to load.

    Raises:
        DataError: Something is wrong with a file, or it has not got the columns.
        NotFoundError: There is no such file.
        ConflictError: Another dataset was stored at the URL meanwhile.
        StorageError: The object store refused or failed.
    """
    names = (label_names or ()) if with_labels else ()
    with open_inputs(path) as inputs:
        first = inputs.files[0]
        found = csv.fit_to(
            first.name, first_lines(first, quoted=True, n_bytes=HEADER_BYTES), with_labels=with_labels
        )
        return load_inputs(inputs, store, CsvLoad(csv=found, label_names=names), options)


def load_ratings_files(
    path: str, store: ObjectStore, *, how: RatingsFormat, options: LoadOptions
) -> Manifest:
    """Load ratings; see :func:`cirrus.load_ratings`.

    Args:
        path: See :func:`~cirrus.client_backend.inputs.open_inputs`.
        store: The store at the dataset's URL.
        how: How the files are written.
        options: How to load.

    Raises:
        DataError: Something is wrong with a file.
        NotFoundError: There is no such file.
        ConflictError: Another dataset was stored at the URL meanwhile.
        StorageError: The object store refused or failed.
    """
    with open_inputs(path) as inputs:
        return load_inputs(inputs, store, how, options)


def load_vw_files(path: str, store: ObjectStore, *, how: VwFormat, options: LoadOptions) -> Manifest:
    """Load text for Vowpal Wabbit; see :func:`cirrus.load_vw`.

    Args:
        path: See :func:`~cirrus.client_backend.inputs.open_inputs`.
        store: The store at the dataset's URL.
        how: How the files are read.
        options: How to load.

    Raises:
        DataError: Something is wrong with a file.
        NotFoundError: There is no such file.
        ConflictError: Another dataset was stored at the URL meanwhile.
        StorageError: The object store refused or failed.
    """
    if how.interactions:  # rows become many times as long as their text
        sizes = options.sizes
        smaller = LoadSizes(
            segment_bytes=max(1, sizes.segment_bytes // PAIRED_RATIO),
            bucket_text_bytes=max(1, sizes.bucket_text_bytes // PAIRED_RATIO),
            bucket_bytes=sizes.bucket_bytes,
        )
        options = dataclasses.replace(options, sizes=smaller)
    with open_inputs(path) as inputs:
        return load_inputs(inputs, store, how, options)


def load_words_files(
    path: str, store: ObjectStore, *, kind: str, vocabulary: str | None, options: LoadOptions
) -> Manifest:
    """Load bags of words; see :func:`cirrus.load_bag_of_words`.

    Args:
        path: See :func:`~cirrus.client_backend.inputs.open_inputs`.
        store: The store at the dataset's URL.
        kind: ``ldac`` or ``docword``.
        vocabulary: A file with the words, or None.
        options: How to load.

    Raises:
        DataError: Something is wrong with a file.
        NotFoundError: There is no such file.
        ConflictError: Another dataset was stored at the URL meanwhile.
        StorageError: The object store refused or failed.
    """
    words = None if vocabulary is None else read_words(vocabulary)
    with open_inputs(path) as inputs:
        how = find_words_format(kind, inputs.files, words)
        with_words = {} if words is None else {"words": words}
        return load_inputs(inputs, store, how, options, vocabularies=with_words)


def load_parquet_files(
    path: str,
    store: ObjectStore,
    *,
    request: CsvRequest,
    options: LoadOptions,
    batch_rows: int = BATCH_ROWS,
) -> Manifest:
    """Load Parquet files; see :func:`cirrus.load_parquet`.

    Args:
        path: See :func:`~cirrus.client_backend.inputs.open_inputs`.
        store: The store at the dataset's URL.
        request: Which columns to take, and how.
        options: How to load.
        batch_rows: Rows that are read at once.

    Raises:
        ConfigError: pyarrow is not installed.
        DataError: Something is wrong with a file.
        NotFoundError: There is no such file.
        ConflictError: Another dataset was stored at the URL meanwhile.
        StorageError: The object store refused or failed.
    """
    with open_inputs(path) as inputs:
        csv, found = find_parquet_format(request, inputs.files)
        source = dataclasses.replace(found, batch_rows=batch_rows)
        how = CsvLoad(csv=csv, is_table=True)
        return load_inputs(inputs, store, how, options, source=source.segments)


def load_parquet_files_like(
    path: str,
    store: ObjectStore,
    *,
    csv: CsvFormat,
    label_names: tuple[str, ...] | None = None,
    with_labels: bool = False,
    options: LoadOptions,
) -> Manifest:
    """Load Parquet files in the way others, or CSV files, were; see :func:`load_csv_file_like`."""
    names = (label_names or ()) if with_labels else ()
    with open_inputs(path) as inputs:
        found, source = fit_parquet_format(csv, inputs.files, with_labels=with_labels)
        how = CsvLoad(csv=found, label_names=names, is_table=True)
        return load_inputs(inputs, store, how, options, source=source.segments)


def first_lines(file: InputFile, *, quoted: bool, n_bytes: int) -> bytes:
    """Return the beginning of a file, in whole lines."""
    for segment in read_segments(file, quoted=quoted, segment_bytes=n_bytes):
        return segment.data
    return b""


def load_inputs(
    inputs: Inputs,
    store: ObjectStore,
    how: LoadFormat,
    options: LoadOptions,
    *,
    source: SegmentSource | None = None,
    vocabularies: Mapping[str, Vocabulary] | None = None,
    may_locate: bool = True,
) -> Manifest:
    """Load files of any format.

    Args:
        inputs: The files.
        store: The store at the dataset's URL.
        how: How they are written.
        options: How to load.
        source: What yields the segments of a file, where these are not runs of lines.
        vocabularies: What comes with the files and belongs to the dataset.
        may_locate: Let workers read files themselves, if any lines of these can be taken.

    Raises:
        DataError: Something is wrong with a file.
        ConflictError: Another dataset was stored at the URL meanwhile, or the same is being loaded.
        StorageError: The object store refused or failed.
    """
    if options.backend is not None and not options.backend.reaches(store.url):
        raise ConfigError("backend", f"{options.backend!r} does not reach {store.url}: choose another URL")
    replaces = find_replaced(store)
    name = secrets.token_hex(16) if options.is_remote else None
    packed = _are_packed(inputs, is_table=source is not None)
    # Text that workers read themselves, if any lines of it can be taken.
    is_text = source is None and how.cut is None and not any(packed)
    is_located = may_locate and is_text and _workers_see(inputs, options, quoted=how.quoted)
    if inputs.is_repeatable and not isinstance(store, MemoryStore):
        name = load_identity(
            {
                "format": {key: dataclasses.asdict(value) for key, value in format_fields(how).items()},
                "files": [(file.name, file.n_bytes, file.version) for file in inputs.files],
                "shuffle": options.shuffle,
                "random_state": options.random_state,
                "sizes": dataclasses.asdict(options.sizes),
                **({"is_located": True} if is_located else {}),
            }
        )
    root = None
    if name is not None and not isinstance(store, FolderStore) and not options.is_remote:
        sizes = [
            file.n_bytes * _ratio(is_packed) for file, is_packed in zip(inputs.files, packed, strict=True)
        ]
        if _piece_requests(sum(sizes), options.sizes) > MAX_PIECE_REQUESTS:
            root = open_store(default_home())
            name = load_identity({"url": store.url, "load": name})
    try:
        with LoadJob(store, name, options.random_state, root) as job:
            done = job.committed()
            if done is not None:  # all that an earlier client did not come to was to remove the folder
                return done
            load = _Load(inputs, store, how, options, job, source, packed, is_located=is_located)
            load.run()
            inputs.check_unchanged()
            return load.commit(replaces, vocabularies or {})
    except _CutError:
        log.info("%s: has line ends between quotation marks: this process reads and cuts it", inputs.name)
        return load_inputs(
            inputs, store, how, options, source=source, vocabularies=vocabularies, may_locate=False
        )


class _CutError(Exception):
    """A worker found that what it was to read ends between quotation marks."""


class _Load:
    """One load, from files to what a manifest says."""

    def __init__(
        self,
        inputs: Inputs,
        store: ObjectStore,
        how: LoadFormat,
        options: LoadOptions,
        job: LoadJob,
        source: SegmentSource | None,
        packed: Sequence[bool],
        *,
        is_located: bool,
    ) -> None:
        self._inputs = inputs
        self._store = store
        self._format = how
        self._job = job
        self._folder = job.folder
        self._source = source or self._text_source
        self._backend = options.backend if options.is_remote else None
        self._is_located = is_located
        self._progress = options.progress
        self._sizes = sizes = options.sizes
        # A compressed file counts for as much text as it may hold.
        self._ratios = [_ratio(is_packed) for is_packed in packed]
        sizes_of_text = [file.n_bytes * k for file, k in zip(inputs.files, self._ratios, strict=True)]
        self._text_before = list(itertools.accumulate(sizes_of_text, initial=0))
        text_bytes = self._text_before[-1]
        self._plan = LoadPlan(
            files=tuple(file.name for file in inputs.files),
            url=store.url,
            prefix=job.state.prefix,
            folder=job.folder.url,
            is_temporary=job.is_temporary,
            n_workers=_n_workers(options, text_bytes, store),
            n_buckets=_n_buckets(text_bytes, sizes),
            shuffle=options.shuffle,
            seed=job.state.seed,
            bucket_bytes=sizes.bucket_bytes,
            **format_fields(how),
        )
        self._facts = LoadFacts(files=self._plan.files)
        self._parsed: dict[tuple[int, int], ScatterResult] = {}
        self._positions = [0] * len(inputs.files)
        self._n_segments: dict[int, int] = {}
        """Of files that have been read to their end."""
        self._kept_files: set[int] = set()
        self._rows_found = 0
        self._names: list[Vocabulary] = []
        self._buckets: dict[int, BucketResult] = {}

    def run(self) -> None:
        """Do everything but the manifest."""
        self._find_parsed()
        with Team(self._plan, None if self._backend is None else self._hire) as team:
            files = range(len(self._inputs.files))
            try:
                team.run([self._scatter_tasks(file) for file in files], _scatter, self._note_parsed)
            except DataError as error:
                raise DataError(self._with_true_line(str(error))) from error
            if self._is_located:
                lines = self._facts.limit_lines
                lines.update({file: self._true_line(file, line) for file, line in lines.items()})
            self._keep_file_lengths()
            self._check()
            if self._format.names:
                self._collect_names()
                team.run([self._number_tasks()], _number, lambda _: self._job.check())
            team.run([self._bucket_tasks()], _store_bucket, self._note_bucket)

    def _hire(self, plan: LoadPlan) -> Sequence[RemoteWorker]:
        assert self._backend is not None
        workers = self._backend.load_workers(plan)
        assert workers is not None
        return workers

    # Reading.

    def _find_parsed(self) -> None:
        """Take up what an earlier, interrupted load has parsed."""
        if self._plan.is_temporary:
            return
        there = {key.removeprefix(PIECES) for key in self._folder.list(PIECES)}
        for key, data in get_all(self._folder, self._folder.list(PARSED)):
            result = read_scatter_result(data)
            if result.facts.n_rows and key.removeprefix(PARSED) not in there:
                continue
            self._take_in(result)
        for key, data in get_all(self._folder, self._folder.list(FILES)):
            file = int(key.removeprefix(FILES))
            self._n_segments[file] = int(data)
            self._kept_files.add(file)
        self._rows_found = self._facts.n_rows
        if self._rows_found:
            self._report(sum(self._positions) // 2)

    def _scatter_tasks(self, file: int) -> Iterator[ScatterTask]:
        """Yield the segments of a file that are still to be parsed."""
        known = self._n_segments.get(file)
        if known is not None and all((file, number) in self._parsed for number in range(known)):
            return
        source = self._inputs.files[file]
        csv = self._format_of(file)
        start = Place()
        while (done := self._parsed.get((file, start.number))) is not None:
            start = Place(
                number=start.number + 1,
                line=done.first_line + done.n_lines,
                position=done.start + done.n_bytes,
            )
        end = start.number
        if self._is_located:
            yield from self._located_tasks(file, start)
            return
        for segment in self._source(source, start):
            end = segment.number + 1
            if (file, segment.number) in self._parsed:
                continue
            text_position = self._text_before[file] + segment.file_position * self._ratios[file]
            yield ScatterTask(
                segment=FileSegment(
                    file=file,
                    number=segment.number,
                    first_line=segment.first_line,
                    data=segment.data,
                    csv=csv,
                ),
                bucket=max(text_position - 1, 0) // self._sizes.bucket_text_bytes,
                file_position=segment.file_position,
                start=segment.start,
            )
        self._n_segments[file] = end

    def _located_tasks(self, file: int, start: Place) -> Iterator[ScatterTask]:
        """Yield the segments of a file that workers read themselves."""
        source = self._inputs.files[file]
        csv = self._format_of(file)
        end = start.number
        for found in locate_segments(source, self._sizes.segment_bytes, start):
            end = found.number + 1
            if (file, found.number) in self._parsed:
                continue
            yield ScatterTask(
                segment=FileSegment(
                    file=file, number=found.number, first_line=first_line_of(found.number), data=b"", csv=csv
                ),
                location=Location(
                    url="" if source.store is None else source.store.url,
                    key=source.path,
                    begin=found.begin,
                    n_bytes=found.n_bytes,
                ),
                bucket=max(self._text_before[file] + found.file_position - 1, 0)
                // self._sizes.bucket_text_bytes,
                file_position=found.file_position,
                start=found.start,
            )
        self._n_segments[file] = end

    def _true_line(self, file: int, line: int) -> int:
        return true_line(line, lambda segment: self._lines_before(file, segment))

    def _lines_before(self, file: int, segment: int) -> int:
        """Return the number of lines before a segment; those before the first that failed are parsed."""
        return sum(self._parsed[file, number].n_lines for number in range(segment))

    def _with_true_line(self, text: str) -> str:
        """Return the text of an error that names a line of a file."""
        names = [file.name for file in self._inputs.files]
        files = [file for file, name in enumerate(names) if text.startswith(f"{name}:")]
        if not self._is_located or not files:
            return text
        return with_true_line(text, names[files[0]], lambda segment: self._lines_before(files[0], segment))

    def _text_source(self, file: InputFile, start: Place) -> Iterator[Segment]:
        return read_segments(
            file,
            quoted=self._format.quoted,
            cut=self._format.cut,
            segment_bytes=self._sizes.segment_bytes,
            start=start,
        )

    def _format_of(self, file: int) -> CsvFormat | None:
        """Return how a CSV file is written that may have its columns in another order than the first one."""
        how = self._format
        if file == 0 or self._source != self._text_source:
            return None
        if not isinstance(how, CsvLoad) or not how.csv.has_header:
            return None
        source = self._inputs.files[file]
        head = first_lines(source, quoted=True, n_bytes=HEADER_BYTES)
        return how.csv.fit_to(source.name, head, with_labels=how.csv.label is not None)

    def _note_parsed(self, result: ScatterResult) -> None:
        self._job.check()
        if result.is_cut:
            raise _CutError
        self._take_in(result)
        if not self._plan.is_temporary and len(self._inputs.files) > 1:
            self._keep_file_lengths()
        self._report(sum(self._positions) // 2)

    def _take_in(self, result: ScatterResult) -> None:
        self._parsed[result.file, result.number] = result
        self._facts.add(result.file, result.first_line, result.facts)
        self._positions[result.file] = max(self._positions[result.file], result.file_position)

    def _keep_file_lengths(self) -> None:
        """Note which files have been read to their end, so that they need not be opened again."""
        if self._plan.is_temporary:
            return
        for file in self._n_segments.keys() - self._kept_files:
            self._kept_files.add(file)
            self._folder.put(f"{FILES}{file:06}", str(self._n_segments[file]).encode())

    def _report(self, bytes_done: int) -> None:
        if self._progress is not None:
            total = self._inputs.n_bytes
            self._progress(
                LoadProgress(
                    bytes_done=bytes_done,
                    bytes_total=total,
                    rows=self._facts.n_rows,
                    rows_found=self._rows_found,
                )
            )

    def _check(self) -> None:
        """Check what can be known only when everything is read."""
        if self._facts.n_rows == 0:
            raise DataError(f"{self._inputs.name}: holds no rows with a label: there is nothing to load")
        self._format.check(self._facts)

    # Numbering.

    def _collect_names(self) -> None:
        """Put together what has to be numbered, for the workers to read."""
        segments = self._segments_with_rows()
        kinds = range(len(self._format.names))
        if len(self._folder.list(NAMES)) < len(kinds):
            parts = [read_names(self._folder, segment_key(PIECES, *segment)) for segment in segments]
            for kind in kinds:
                names = union_of(part[kind] for part in parts)
                self._folder.put(f"{NAMES}{kind}", names.to_bytes())
        for kind in kinds:
            self._names.append(Vocabulary.from_bytes(self._folder.get(f"{NAMES}{kind}"), f"{NAMES}{kind}"))

    def _segments_with_rows(self) -> list[tuple[int, int]]:
        return sorted(segment for segment, result in self._parsed.items() if result.facts.n_rows)

    def _number_tasks(self) -> Iterator[NumberTask]:
        done = set(self._folder.list(NUMBERED))
        for file, number in self._segments_with_rows():
            if segment_key(NUMBERED, file, number) not in done:
                yield NumberTask(file=file, number=number)

    # Storing.

    def _bucket_tasks(self) -> Iterator[BucketTask]:
        self._find_buckets()
        segments = self._segments_with_rows()
        groups: dict[int, list[tuple[int, int]]] = {}
        if self._plan.shuffle:
            groups = {bucket: segments for bucket in range(self._plan.n_buckets)}
        else:
            for segment in segments:
                groups.setdefault(self._parsed[segment].bucket, []).append(segment)
        base = self._format.base(self._facts)
        for bucket in sorted(groups.keys() - self._buckets.keys()):
            yield BucketTask(bucket=bucket, base=base, segments=tuple(groups[bucket]))

    def _find_buckets(self) -> None:
        """Take up the chunks that an earlier, interrupted load has stored."""
        if self._plan.is_temporary:
            return
        there = set(self._store.list(self._plan.prefix))
        for _, data in get_all(self._folder, self._folder.list(BUCKETS)):
            result = BucketResult.from_bytes(data)
            if all(chunk.key in there for chunk in result.chunks):
                self._buckets[result.bucket] = result

    def _note_bucket(self, result: BucketResult) -> None:
        self._job.check()
        self._buckets[result.bucket] = result
        stored = sum(chunk.n_rows for bucket in self._buckets.values() for chunk in bucket.chunks)
        size = self._inputs.n_bytes
        self._report(size // 2 + size * stored // (2 * self._facts.n_rows))

    def commit(self, replaces: Replaced, vocabularies: Mapping[str, Vocabulary]) -> Manifest:
        """Write the manifest.

        Args:
            replaces: The dataset that may be there.
            vocabularies: What came with the files.
        """
        results = [self._buckets[bucket] for bucket in sorted(self._buckets)]
        summary = DatasetSummary()
        for result in results:
            summary.merge(result.summary)
        outcome = self._format.outcome(self._facts, self._names)
        manifest = commit_dataset(
            self._store,
            [chunk for result in results for chunk in result.chunks],
            summary,
            n_features=outcome.n_features,
            label_names=outcome.label_names,
            encoding=outcome.encoding,
            vocabularies=tuple(
                store_vocabulary(self._store, self._plan.prefix, name, vocabulary.to_bytes())
                for name, vocabulary in {**outcome.vocabularies, **vocabularies}.items()
            ),
            replaces=replaces,
        )
        self._report(self._inputs.n_bytes)
        return manifest


def _workers_see(inputs: Inputs, options: LoadOptions, *, quoted: bool) -> bool:
    """Return whether workers should read the files themselves: then no text goes through this process."""
    if options.is_remote:
        return all(file.store for file in inputs.files)
    if not inputs.is_repeatable or any(file.store for file in inputs.files):
        return False
    # Quotation marks may have line ends between them, which is found out late, and then all is done again.
    heads = (read_range(file, 0, min(file.n_bytes, HEADER_BYTES)) for file in inputs.files)
    return not quoted or not any(b'"' in head for head in heads)


def _are_packed(inputs: Inputs, *, is_table: bool) -> list[bool]:
    """Return which files hold more text than they have bytes."""
    if is_table:
        return [True] * len(inputs.files)
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        return list(pool.map(is_compressed, inputs.files))


def _piece_requests(text_bytes: int, sizes: LoadSizes) -> float:
    """Return how many requests the pieces take: two for each segment and bucket."""
    return 2 * (text_bytes / sizes.segment_bytes) * (text_bytes / sizes.bucket_text_bytes)


def _n_buckets(text_bytes: int, sizes: LoadSizes) -> int:
    """Return the number of buckets: 1 or even, so that of two workers none waits for the other's last one."""
    n = max(1, round(text_bytes / sizes.bucket_text_bytes))
    return n if n == 1 else n + n % 2


def _ratio(is_packed: bool) -> int:
    return COMPRESSION_RATIO if is_packed else 1


def _n_workers(options: LoadOptions, text_bytes: int, store: ObjectStore) -> int:
    """Return the number of workers; one means this process itself, unless they are elsewhere."""
    if isinstance(store, MemoryStore):  # which other processes cannot write to
        return 1
    if options.n_processes is not None:
        return options.n_processes
    if options.backend is not None and options.is_remote:
        most = options.backend.default_job_workers or 1
        return max(1, min(most, -(-text_bytes // options.sizes.segment_bytes)))
    return max(1, min(os.cpu_count() or 1, MAX_PROCESSES, text_bytes // MIN_PROCESS_BYTES))


def _scatter(worker: Worker, task: ScatterTask) -> ScatterResult:
    return worker.scatter(task)


def _number(worker: Worker, task: NumberTask) -> NumberTask:
    return worker.number(task)


def _store_bucket(worker: Worker, task: BucketTask) -> BucketResult:
    return worker.store_bucket(task)
