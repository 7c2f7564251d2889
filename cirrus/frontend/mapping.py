"""Functions over the chunks of a dataset, as methods of it; waiting for some of many."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cirrus.chunks import Block, Manifest, iterate_chunk
from cirrus.client_backend.backend import Backend, resolve_backend
from cirrus.client_backend.csv_rows import missing_features
from cirrus.client_backend.inline import InlineBackend
from cirrus.client_backend.map_client import MapOptions, MapProgress, MapRequest
from cirrus.client_backend.map_functions import PackedFunction, pack_function
from cirrus.client_backend.map_reduce import column_statistics, combine_results, rewrite_dataset, run_job
from cirrus.config import whole_number
from cirrus.errors import ConfigError
from cirrus.frontend.progress import MapLine
from cirrus.storage import open_store
from cirrus.worker_runtime.column_statistics import ColumnStatistics
from cirrus.worker_runtime.map_values import unpack_value

if TYPE_CHECKING:
    from cirrus.frontend.datasets import Dataset

#: Below this many bytes of chunks, starting processes takes longer than the work.
INLINE_BYTES = 4 * 2**20
#: Statistics of more columns than this are not made into arrays of all columns: 256 MB each.
MAX_ARRAY_COLUMNS = 2**25
#: More workers than this are not started unless asked for.
MAX_WORKERS = 16

ProgressOption = bool | Callable[[MapProgress], None] | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Description:
    """What a dataset holds. Arrays are of shape (n_features,), but for those of ``occurring``."""

    n_rows: int
    n_features: int
    labels: dict[float | str, int]
    """Rows with each label; empty where labels are more than a thousand different numbers."""
    occurring: ColumnStatistics
    """Statistics over all rows of the columns that have entries, by their ``ids``; all others hold zeros."""
    missing_counts: dict[int, int]
    """Rows that had no value, of the columns of which that is known (numeric columns of a CSV file)."""

    @property
    def n_entries(self) -> int:
        """Values that are stored: those that are not zero."""
        return int(self.occurring.counts.sum())

    @property
    def density(self) -> float:
        """Part of all cells that are not zero."""
        return self.n_entries / (self.n_rows * self.n_features)

    def first_columns(self, n: int) -> Description:
        """Return the same of the first ``n`` columns, however many there are."""
        return replace(
            self,
            n_features=min(n, self.n_features),
            occurring=self.occurring.below(n),
            missing_counts={column: count for column, count in self.missing_counts.items() if column < n},
        )

    @functools.cached_property
    def minimum(self) -> NDArray[np.float64]:
        """Smallest value of each column; what is not stored is zero."""
        return self._of_all(self.occurring.minima)

    @functools.cached_property
    def maximum(self) -> NDArray[np.float64]:
        """Largest value of each column."""
        return self._of_all(self.occurring.maxima)

    @functools.cached_property
    def mean(self) -> NDArray[np.float64]:
        """Mean of each column."""
        return self._of_all(self.occurring.means)

    @functools.cached_property
    def variance(self) -> NDArray[np.float64]:
        """Variance of each column, of all rows (not of a sample)."""
        return self._of_all(self.occurring.squares / self.n_rows)

    @functools.cached_property
    def zeros(self) -> NDArray[np.int64]:
        """Rows with a zero in each column."""
        return self.n_rows - self._of_all(self.occurring.counts)

    @functools.cached_property
    def missing(self) -> NDArray[np.int64]:
        """Rows whose file had no value for the column: see ``missing_counts``. A zero is a value."""
        found = self._of_all(np.zeros_like(self.occurring.counts))
        for column, count in self.missing_counts.items():
            found[column] = count
        return found

    def _of_all(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return values of the columns that occur as an array of all, with zeros for the others.

        Raises:
            ConfigError: There are too many columns.
        """
        if self.n_features > MAX_ARRAY_COLUMNS:
            raise ConfigError(
                "n_features",
                f"{self.n_features:,} columns are too many for arrays of all columns (at most "
                f"{MAX_ARRAY_COLUMNS:,}): hash them into fewer with FeatureHasher, or see `occurring` of "
                f"Dataset.describe(), which has the {self.occurring.ids.size:,} that occur",
            )
        found = np.zeros(self.n_features, values.dtype)
        found[self.occurring.ids] = values
        return found


class WaitResult(NamedTuple):
    """Futures that are done, and those that are not."""

    done: set[concurrent.futures.Future[Any]]
    not_done: set[concurrent.futures.Future[Any]]


def wait(
    futures: Iterable[concurrent.futures.Future[Any]], k: int | None = None, timeout: float | None = None
) -> WaitResult:
    """Wait until ``k`` of some futures are done, well or not.

    Args:
        futures: What :meth:`cirrus.Dataset.submit` returned, or any of :mod:`concurrent.futures`.
        k: How many; None: all of them.
        timeout: Most seconds to wait; None: for ever.

    Returns:
        (done, not_done). Fewer than ``k`` are done only after the timeout.

    Example:
        >>> done, rest = cirrus.wait(ds.submit(count_rows), k=3)  # doctest: +SKIP
    """
    every = set(futures)
    wanted = len(every) if k is None else k
    if isinstance(wanted, bool) or not hasattr(wanted, "__index__") or not 0 <= wanted <= len(every):
        raise ConfigError("k", f"must be between 0 and {len(every)}, the number of futures, got {k!r}")
    enough = threading.Event()
    lock = threading.Lock()
    n_done = 0

    def count(_: concurrent.futures.Future[Any]) -> None:
        nonlocal n_done
        with lock:
            n_done += 1
            if n_done >= wanted:
                enough.set()

    if wanted == 0:
        enough.set()
    for future in every:
        future.add_done_callback(count)
    enough.wait(timeout)
    done = {future for future in every if future.done()}
    return WaitResult(done, every - done)


def map_options(
    manifest: Manifest,
    urls: Sequence[str],
    backend: str | Backend | None,
    n_workers: int | None,
    progress: Callable[[MapProgress], None] | None,
) -> MapOptions:
    """Return where a job over a dataset runs.

    Args:
        manifest: The dataset.
        urls: What workers have to reach.
        backend: None: threads of this process for small data and such in memory, else processes.
        n_workers: None: what the backend takes for right, as far as there are chunks.
        progress: Called in the thread that waits.

    Raises:
        ConfigError: Workers there could not reach the data.
    """
    if n_workers is not None:
        n_workers = whole_number(n_workers, "n_workers")
    in_memory = any(url.startswith("memory:") for url in urls)
    if backend is None:
        small = manifest.n_bytes < INLINE_BYTES or len(manifest.chunks) == 1
        backend = "inline" if in_memory or small else "local"
    found = resolve_backend(backend)
    if in_memory and not isinstance(found, InlineBackend):
        raise ConfigError("backend", 'only "inline" reaches memory://; give a folder, or use that')
    for url in urls:
        if not found.reaches(url):
            raise ConfigError("backend", f"{found!r} does not reach {url}: load the data to {found.root}")
    automatic = found.default_job_workers or min(os.cpu_count() or 1, MAX_WORKERS)
    return MapOptions(backend=found, n_workers=n_workers or automatic, progress=progress)


@contextlib.contextmanager
def listening(progress: ProgressOption) -> Iterator[Callable[[MapProgress], None] | None]:
    """Return the listener that a ``progress`` parameter stands for."""
    if progress is True:
        with MapLine() as line:
            yield line.show
    elif progress is None or progress is False:
        yield None
    elif callable(progress):
        yield progress
    else:
        check_progress(progress)


def check_progress(progress: ProgressOption) -> None:
    """Check a ``progress`` parameter.

    Raises:
        ConfigError: It is none.
    """
    if not (progress is None or isinstance(progress, bool) or callable(progress)):
        raise ConfigError("progress", f"must be None, True or a function, got {progress!r}")


class ChunkOperations:
    """Methods of a dataset that run functions over its chunks."""

    url: str
    manifest: Manifest

    def map_chunks(
        self,
        fn: Callable[[Block], Block | None],
        url: str | os.PathLike[str],
        *,
        n_features: int | None = None,
        backend: str | Backend | None = None,
        n_workers: int | None = None,
        progress: ProgressOption = None,
    ) -> Dataset:
        """Apply a function to every block, and store what it returns as a new dataset.

        The function runs on workers, in any order and now and then twice, so it must depend on the block
        alone. Interrupted, the same call goes on with the chunks that are missing; a call whose function was
        changed begins anew, and warns.

        Args:
            fn: Takes a :class:`~cirrus.chunks.Block` of some 1,024 rows; returns another, or None to drop it.
                It gets fewer rows at a time where it makes very many entries of them.
            url: Where the new dataset goes; one that is there is replaced when the new one is complete.
            n_features: Columns of the new dataset; None: as many as here, or more if there are more.
            backend: ``"local"``, ``"inline"``, ``"aws"`` or a backend object; None: whichever suits the size.
            n_workers: None: one a core.
            progress: True for a live line, or a function of :class:`MapProgress`.

        Raises:
            ConflictError: Another process writes to that URL.
            RunError: The function failed (the text says how), or workers were lost again and again.
            DataError: No rows are left.

        Example:
            >>> import dataclasses
            >>> def clip(block):
            ...     return dataclasses.replace(block, values=block.values.clip(-1, 1))
            >>> ds.map_chunks(clip, "data/clipped")  # doctest: +SKIP
        """
        return self._rewrite(
            MapRequest(
                kind="rewrite",
                function=pack_function(fn),
                input_url=self.url,
                manifest=self.manifest,
                output_url=self._output(url),
                n_features=None if n_features is None else whole_number(n_features, "n_features"),
            ),
            dict(self.manifest.encoding),
            backend,
            n_workers,
            progress,
        )

    def _output(self, url: str | os.PathLike[str]) -> str:
        output = open_store(url).url
        if output.rstrip("/") == self.url.rstrip("/"):
            raise ConfigError("url", f"{output} is the dataset that is read: choose another place")
        return output

    def _rewrite(
        self,
        request: MapRequest,
        encoding: dict[str, Any],
        backend: str | Backend | None,
        n_workers: int | None,
        progress: ProgressOption,
    ) -> Dataset:
        assert request.output_url is not None
        urls = [self.url, request.output_url]
        with listening(progress) as listener:
            options = map_options(self.manifest, urls, backend, n_workers, listener)
            manifest = rewrite_dataset(
                request, options, encoding=encoding, label_names=self.manifest.label_names
            )
        return type(self)(request.output_url, manifest)  # type: ignore[call-arg, return-value]

    def map_reduce(
        self,
        map_fn: Callable[[Block], Any],
        reduce_fn: Callable[[Any, Any], Any],
        *,
        backend: str | Backend | None = None,
        n_workers: int | None = None,
        progress: ProgressOption = None,
    ) -> Any:
        """Return ``reduce_fn`` over ``map_fn`` of every block, in the order of the rows.

        Args:
            map_fn: Takes a :class:`~cirrus.chunks.Block`.
            reduce_fn: Combines two values; must not depend on how they are grouped.
            backend: See :meth:`map_chunks`.
            n_workers: None: one a core.
            progress: True for a live line, or a function of :class:`MapProgress`.

        Raises:
            RunError: A function failed (the text says how), or workers were lost again and again.

        Example:
            >>> ds.map_reduce(lambda block: block.nnz, lambda a, b: a + b)  # doctest: +SKIP
        """
        request = self._reduce_request(map_fn, reduce_fn)
        with listening(progress) as listener:
            options = map_options(self.manifest, [self.url], backend, n_workers, listener)
            return combine_results(request, options, reduce_fn)

    def submit(
        self,
        map_fn: Callable[[Block], Any],
        reduce_fn: Callable[[Any, Any], Any] | None = None,
        *,
        backend: str | Backend | None = None,
        n_workers: int | None = None,
        progress: ProgressOption = None,
    ) -> list[concurrent.futures.Future[Any]]:
        """Begin to run a function over all chunks; return a future for each chunk, in order.

        A future's result is ``reduce_fn`` over the blocks of its chunk, or without one the list of what
        ``map_fn`` returned. See :func:`cirrus.wait`.

        Args:
            map_fn: Takes a :class:`~cirrus.chunks.Block`.
            reduce_fn: Combines two values.
            backend: See :meth:`map_chunks`.
            n_workers: None: one a core.
            progress: True for a live line, or a function of :class:`MapProgress`, called in another thread.
        """
        futures: list[concurrent.futures.Future[Any]] = [
            concurrent.futures.Future() for _ in self.manifest.chunks
        ]
        request = self._reduce_request(map_fn, reduce_fn)
        check_progress(progress)
        options = map_options(self.manifest, [self.url], backend, n_workers, None)
        for future in futures:
            future.set_running_or_notify_cancel()

        def direct(_: ChunkOperations) -> None:
            try:
                with listening(progress) as listener:
                    run_job(
                        request,
                        replace(options, progress=listener),
                        lambda n, data: futures[n].set_result(unpack_value(data)),
                    )
            except BaseException as error:  # noqa: BLE001 (raised again by the futures)
                for future in futures:
                    if not future.done():
                        future.set_exception(error)

        # The thread holds the dataset: one in memory goes with the last who does.
        threading.Thread(target=direct, args=(self,), name="cirrus-map", daemon=True).start()
        return futures

    def _reduce_request(
        self, map_fn: Callable[[Block], Any], reduce_fn: Callable[[Any, Any], Any] | None
    ) -> MapRequest:
        return MapRequest(
            kind="reduce",
            function=pack_function(map_fn, reduce_fn, parameter="map_fn"),
            input_url=self.url,
            manifest=self.manifest,
        )

    def describe(
        self,
        *,
        backend: str | Backend | None = None,
        n_workers: int | None = None,
        progress: ProgressOption = None,
    ) -> Description:
        """Read all rows once: density, labels, and each column's range, mean, variance and missing values.

        Args:
            backend: See :meth:`map_chunks`.
            n_workers: None: one a core.
            progress: True for a live line, or a function of :class:`MapProgress`.

        Raises:
            CorruptDataError: A chunk is damaged.
        """
        manifest = self.manifest
        request = MapRequest(
            kind="statistics",
            function=PackedFunction.of_data(b"", "describe"),
            input_url=self.url,
            manifest=manifest,
        )
        with listening(progress) as listener:
            options = map_options(manifest, [self.url], backend, n_workers, listener)
            statistics = column_statistics(request, options)
        labels: dict[float | str, int] = {}
        for value, count in zip(manifest.label_values, manifest.label_counts, strict=True):
            labels[value if manifest.label_names is None else manifest.label_names[int(value)]] = count
        return Description(
            n_rows=manifest.n_rows,
            n_features=manifest.n_features,
            labels=labels,
            occurring=statistics.with_zeros(manifest.n_rows),
            missing_counts={
                column: statistics.count_of(feature)
                for column, feature in enumerate(missing_features(manifest.encoding))
            },
        )

    def sample(self, n: int, random_state: int | None = 0, *, progress: ProgressOption = None) -> Block:
        """Return ``n`` rows chosen evenly at random, in their order, as one block in memory.

        Only the chunks that hold one of them are read.

        Args:
            n: How many; not more than there are.
            random_state: Seed. None: another sample each time.
            progress: True for a live line, or a function of :class:`MapProgress`.

        Raises:
            ConfigError: There are not so many rows.
            CorruptDataError: A chunk is damaged.
        """
        n_rows = self.manifest.n_rows
        if isinstance(n, bool) or not hasattr(n, "__index__") or not 1 <= n <= n_rows:
            raise ConfigError("n", f"must be between 1 and {n_rows}, the number of rows, got {n!r}")
        chosen = np.sort(np.random.default_rng(random_state).choice(n_rows, n, replace=False))
        store, chunks = open_store(self.url), self.manifest.chunks
        parts, first = [], 0
        with listening(progress) as listener:
            for number, chunk in enumerate(chunks):
                low, high = np.searchsorted(chosen, [first, first + chunk.n_rows])
                blocks = iterate_chunk(store, self.manifest, number) if high > low else ()
                start = first
                for block in blocks:
                    low, high = np.searchsorted(chosen, [start, start + block.n_rows])
                    if high > low:
                        parts.append(block.select(chosen[low:high] - start))
                    start += block.n_rows
                first += chunk.n_rows
                if listener is not None:
                    listener(MapProgress(chunks_done=number + 1, chunks_total=len(chunks), rows=first))
        return Block.merge(parts)
