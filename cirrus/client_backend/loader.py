"""Loading text files as datasets: streaming, with several processes, all or nothing.

The parent reads the file in segments and hands each to a worker (:mod:`~cirrus.client_backend.load_tasks`),
which parses it and scatters its rows over buckets in a temporary folder; when all are read, the workers store
the buckets as chunks; then the parent writes the manifest. Whatever goes wrong before that leaves nothing
behind: chunks are written below a key prefix of their own, which is deleted, and a dataset that was there
stays as it was.
"""

from __future__ import annotations

import dataclasses
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cirrus.chunks import DatasetSummary, Manifest, commit_dataset, discard_chunks, new_chunk_prefix
from cirrus.chunks.writer import find_replaced
from cirrus.client_backend.csv_format import CsvFormat, CsvRequest
from cirrus.client_backend.inputs import open_input
from cirrus.client_backend.load_tasks import BucketResult, BucketTask, LoadPlan, LoadSizes, ScatterResult
from cirrus.client_backend.load_team import Team, Worker
from cirrus.client_backend.rows import MAX_INDEX
from cirrus.client_backend.segments import InputFile, Segment, is_compressed, read_segments
from cirrus.errors import ConfigError, DataError
from cirrus.storage import MemoryStore, ObjectStore

#: How much larger text is than its compressed file, at a guess; too large a bucket is scattered again.
COMPRESSION_RATIO = 5
#: Below this size another process takes longer to start than it saves.
MIN_PROCESS_BYTES = 16 * 2**20
#: More processes than this are not started unless asked for: the parent could not feed them.
MAX_PROCESSES = 16


@dataclass(frozen=True, kw_only=True)
class LoadProgress:
    """How far a load is."""

    bytes_done: int
    """Of ``bytes_total``; reading the file is one half, storing it the other."""
    bytes_total: int
    """Size of the file."""
    rows: int
    """Rows read."""


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """What all formats have in common."""

    shuffle: bool = True
    random_state: int | None = None
    n_processes: int | None = None
    progress: Callable[[LoadProgress], None] | None = None
    sizes: LoadSizes = LoadSizes()

    def __post_init__(self) -> None:
        """Check every option."""
        n = self.n_processes
        if n is not None and (isinstance(n, bool) or n < 1):
            raise ConfigError("n_processes", f"must be a whole number >= 1 or None, got {n!r}")
        if self.random_state is not None and self.random_state < 0:
            raise ConfigError(
                "random_state", f"must be a whole number >= 0 or None, got {self.random_state!r}"
            )


def load_svmlight_file(
    path: str,
    store: ObjectStore,
    *,
    n_features: int | None = None,
    zero_based: bool | None = None,
    options: LoadOptions,
) -> Manifest:
    """Load an svmlight file; see :func:`cirrus.load_svmlight`.

    Args:
        path: The file, plain, gzip, LZ4 or zip; ``-`` for standard input.
        store: The store at the dataset's URL.
        n_features: Number of columns; None: one more than the highest that occurs.
        zero_based: Whether the first feature is 0 or 1; None: 0 if 0 occurs anywhere in the file, else 1.
        options: How to load.

    Raises:
        DataError: Something is wrong with the file.
        NotFoundError: There is no such file.
        ConflictError: Another dataset was stored at the URL meanwhile.
        StorageError: The object store refused or failed.
    """
    if n_features is not None and not 1 <= n_features <= MAX_INDEX:
        raise ConfigError("n_features", f"must be a whole number >= 1 or None, got {n_features!r}")
    with open_input(path) as file:
        return _Load(file, store, options, n_features=n_features, zero_based=zero_based).run()


def load_csv_file(path: str, store: ObjectStore, *, request: CsvRequest, options: LoadOptions) -> Manifest:
    """Load a CSV file; see :func:`cirrus.load_csv`.

    Args:
        path: The file, plain, gzip, LZ4 or zip; ``-`` for standard input.
        store: The store at the dataset's URL.
        request: Which columns to take, and how.
        options: How to load.

    Raises:
        DataError: Something is wrong with the file.
        NotFoundError: There is no such file.
        ConflictError: Another dataset was stored at the URL meanwhile.
        StorageError: The object store refused or failed.
    """
    with open_input(path) as file:
        return _Load(file, store, options, csv=request.resolve(file.name, _first_lines(file))).run()


def load_csv_file_like(
    path: str,
    store: ObjectStore,
    *,
    csv: CsvFormat,
    label_names: tuple[str, ...] | None = None,
    with_labels: bool = False,
    options: LoadOptions,
) -> Manifest:
    """Load a CSV file in the way another was; see :func:`cirrus.load_csv_like`.

    Args:
        path: The file, plain, gzip, LZ4 or zip; ``-`` for standard input.
        store: The store at the dataset's URL.
        csv: How the other file was read.
        label_names: The other file's labels, if they were text.
        with_labels: Read the labels; otherwise they are 0 and may be missing.
        options: How to load.

    Raises:
        DataError: Something is wrong with the file, or it has not got the columns.
        NotFoundError: There is no such file.
        ConflictError: Another dataset was stored at the URL meanwhile.
        StorageError: The object store refused or failed.
    """
    names = (label_names or ()) if with_labels else ()
    with open_input(path) as file:
        found = csv.fit_to(file.name, _first_lines(file), with_labels=with_labels)
        return _Load(file, store, options, csv=found, label_names=names).run()


def _first_lines(file: InputFile) -> bytes:
    for segment in read_segments(file, quoted=True):
        return segment.data
    return b""


class _Load:
    """One load, from file to manifest."""

    def __init__(
        self,
        file: InputFile,
        store: ObjectStore,
        options: LoadOptions,
        *,
        csv: CsvFormat | None = None,
        label_names: tuple[str, ...] = (),
        n_features: int | None = None,
        zero_based: bool | None = None,
    ) -> None:
        self._file = file
        self._store = store
        self._replaces = find_replaced(store)
        self._progress = options.progress
        self._sizes = sizes = options.sizes
        self._size = file.n_bytes
        text_bytes = self._size * (COMPRESSION_RATIO if is_compressed(file) else 1)
        seed = options.random_state
        self._plan = LoadPlan(
            path=file.name,
            url=store.url,
            prefix=new_chunk_prefix(),
            folder="",
            n_workers=_n_workers(options.n_processes, text_bytes, store),
            n_buckets=max(1, round(text_bytes / sizes.bucket_text_bytes)),
            segments_per_bucket=max(1, sizes.bucket_text_bytes // sizes.segment_bytes),
            shuffle=options.shuffle,
            bucket_bytes=sizes.bucket_bytes,
            seed=secrets.randbits(64) if seed is None else int(seed),
            csv=csv,
            label_names=label_names,
            n_features=n_features,
            zero_based=zero_based,
        )
        self._n_rows = 0
        self._n_segments = 0
        self._lowest_index = MAX_INDEX
        self._highest_index = -1
        self._limit_line = 0
        self._label_names: dict[int, list[str]] = {}
        self._buckets: dict[int, BucketResult] = {}

    def run(self) -> Manifest:
        """Load, or leave everything as it was."""
        try:
            with tempfile.TemporaryDirectory(prefix="cirrus-load-") as folder:
                self._plan = dataclasses.replace(self._plan, folder=folder)
                with Team(self._plan) as team:
                    team.run(self._segments(), _scatter, self._note_segment)
                    self._check()
                    team.run(self._bucket_tasks(), _store_bucket, self._note_bucket)
            return self._commit()
        except BaseException:
            discard_chunks(self._store, self._plan.prefix)
            raise

    def _segments(self) -> Iterator[Segment]:
        return read_segments(
            self._file, quoted=self._plan.csv is not None, segment_bytes=self._sizes.segment_bytes
        )

    def _note_segment(self, worker: int, result: ScatterResult) -> None:
        facts = result.facts
        self._n_rows += facts.n_rows
        self._n_segments = max(self._n_segments, result.segment + 1)
        self._lowest_index = min(self._lowest_index, facts.lowest_index)
        self._highest_index = max(self._highest_index, facts.highest_index)
        if facts.limit_line:
            self._limit_line = min(self._limit_line or facts.limit_line, facts.limit_line)
        self._label_names[worker] = result.label_names
        self._report(result.file_position // 2)

    def _note_bucket(self, worker: int, result: BucketResult) -> None:
        self._buckets[result.bucket] = result
        stored = sum(chunk.n_rows for bucket in self._buckets.values() for chunk in bucket.chunks)
        self._report(self._size // 2 + self._size * stored // (2 * self._n_rows))

    def _report(self, bytes_done: int) -> None:
        if self._progress is not None:
            self._progress(LoadProgress(bytes_done=bytes_done, bytes_total=self._size, rows=self._n_rows))

    @property
    def _base(self) -> int:
        """The number of the first feature in the file."""
        if self._plan.csv is not None:
            return 0
        if self._plan.zero_based is not None:
            return 0 if self._plan.zero_based else 1
        return 0 if self._lowest_index == 0 else 1

    def _check(self) -> None:
        """Check what can be known only when the whole file is read."""
        path, n_features = self._plan.path, self._plan.n_features
        if self._n_rows == 0:
            raise DataError(f"{path}: holds no rows with a label: there is nothing to load")
        if self._base == 0 and self._limit_line:
            raise DataError(
                f"{path}:{self._limit_line}: index {n_features} is beyond n_features={n_features}, as there "
                "also is an index 0 in the file: raise n_features or leave it out"
            )

    def _bucket_tasks(self) -> Iterator[BucketTask]:
        plan = self._plan
        n_buckets = plan.n_buckets if plan.shuffle else -(-self._n_segments // plan.segments_per_bucket)
        codes = None
        if self._final_label_names is not None:
            numbers = {name: code for code, name in enumerate(self._final_label_names)}
            codes = [
                [numbers[name] for name in self._label_names.get(worker, ())]
                for worker in range(plan.n_workers)
            ]
        for bucket in range(n_buckets):
            yield BucketTask(bucket=bucket, base=self._base, label_codes=codes)

    @property
    def _final_label_names(self) -> tuple[str, ...] | None:
        plan = self._plan
        if plan.csv is None or plan.csv.label is None or not plan.csv.text_labels:
            return None
        if plan.label_names:
            return plan.label_names
        return tuple(sorted({name for names in self._label_names.values() for name in names}))

    def _commit(self) -> Manifest:
        results = [self._buckets[bucket] for bucket in sorted(self._buckets)]
        summary = DatasetSummary()
        for result in results:
            summary.merge(result.summary)
        plan = self._plan
        if plan.csv is not None:
            n_features, encoding = plan.csv.n_features, plan.csv.to_encoding()
        else:
            n_features = plan.n_features or max(self._highest_index + 1 - self._base, 1)
            encoding = {"format": "svmlight", "zero_based": self._base == 0}
        manifest = commit_dataset(
            self._store,
            [chunk for result in results for chunk in result.chunks],
            summary,
            n_features=n_features,
            label_names=self._final_label_names,
            encoding=encoding,
            replaces=self._replaces,
        )
        self._report(self._size)
        return manifest


def _n_workers(n_processes: int | None, text_bytes: int, store: ObjectStore) -> int:
    """Return the number of workers; one means this process itself."""
    if isinstance(store, MemoryStore):  # which other processes cannot write to
        return 1
    if n_processes is not None:
        return n_processes
    return max(1, min(os.cpu_count() or 1, MAX_PROCESSES, text_bytes // MIN_PROCESS_BYTES))


def _scatter(worker: Worker, segment: Segment) -> ScatterResult:
    return worker.scatter(segment.number, segment.first_line, segment.data, segment.file_position)


def _store_bucket(worker: Worker, task: BucketTask) -> BucketResult:
    return worker.store_bucket(task)
