"""Functions over the chunks of a dataset, as methods of it; waiting for some of many."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cirrus.chunks import Block, Manifest
from cirrus.client_backend.backend import Backend, resolve_backend
from cirrus.client_backend.inline import InlineBackend
from cirrus.client_backend.map_client import MapOptions, MapProgress, MapRequest
from cirrus.client_backend.map_functions import PackedFunction, pack_function
from cirrus.client_backend.map_reduce import column_statistics, combine_results, rewrite_dataset, run_job
from cirrus.errors import ConfigError, DataError
from cirrus.frontend.progress import MapLine
from cirrus.storage import open_store
from cirrus.worker_runtime.map_values import unpack_value

if TYPE_CHECKING:
    from cirrus.frontend.datasets import Dataset

#: Below this many bytes of chunks, starting processes takes longer than the work.
INLINE_BYTES = 4 * 2**20
#: More workers than this are not started unless asked for.
MAX_WORKERS = 16

ProgressOption = bool | Callable[[MapProgress], None] | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Description:
    """What a dataset holds. Arrays are of shape (n_features,)."""

    n_rows: int
    n_features: int
    n_entries: int
    """Values that are stored: those that are not zero."""
    labels: dict[float | str, int]
    """Rows with each label; empty where labels are more than a thousand different numbers."""
    minimum: NDArray[np.float64]
    maximum: NDArray[np.float64]
    mean: NDArray[np.float64]
    variance: NDArray[np.float64]
    missing: NDArray[np.int64]
    """Rows without an entry in the column, which counts as zero."""

    @property
    def density(self) -> float:
        """Part of all cells that are not zero."""
        return self.n_entries / (self.n_rows * self.n_features)


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
    if not 0 <= wanted <= len(every):
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
    if n_workers is not None and (isinstance(n_workers, bool) or n_workers < 1):
        raise ConfigError("n_workers", f"must be a whole number >= 1 or None, got {n_workers!r}")
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
        raise ConfigError("progress", f"must be None, True or a function, got {progress!r}")


class ChunkOperations:
    """Methods of a dataset that run functions over its chunks."""

    url: str
    manifest: Manifest

    def blocks(self) -> Iterator[Block]:
        """Yield the rows block by block."""
        raise NotImplementedError

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
        alone. Each chunk is written whole or not at all. Interrupted, the same call goes on with the chunks
        that are missing.

        Args:
            fn: Takes a :class:`~cirrus.chunks.Block` of some 1,024 rows; returns another, or None to drop it.
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
        if n_features is not None and n_features < 1:
            raise ConfigError("n_features", f"must be a whole number >= 1 or None, got {n_features!r}")
        return self._rewrite(
            MapRequest(
                kind="rewrite",
                function=pack_function(fn),
                input_url=self.url,
                manifest=self.manifest,
                output_url=self._output(url),
                n_features=n_features,
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
    ) -> list[concurrent.futures.Future[Any]]:
        """Begin to run a function over all chunks; return a future for each chunk, in order.

        A future's result is ``reduce_fn`` over the blocks of its chunk, or without one the list of what
        ``map_fn`` returned. See :func:`cirrus.wait`.

        Args:
            map_fn: Takes a :class:`~cirrus.chunks.Block`.
            reduce_fn: Combines two values.
            backend: See :meth:`map_chunks`.
            n_workers: None: one a core.
        """
        futures: list[concurrent.futures.Future[Any]] = [
            concurrent.futures.Future() for _ in self.manifest.chunks
        ]
        request = self._reduce_request(map_fn, reduce_fn)
        options = map_options(self.manifest, [self.url], backend, n_workers, None)
        for future in futures:
            future.set_running_or_notify_cancel()

        def direct(_: ChunkOperations) -> None:
            try:
                run_job(request, options, lambda n, data: futures[n].set_result(unpack_value(data)))
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
        """Read all rows once, and return counts, density, labels, and each column's range, mean and variance.

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
        every = statistics.with_zeros(manifest.n_rows, manifest.n_features)
        labels: dict[float | str, int] = {}
        for value, count in zip(manifest.label_values, manifest.label_counts, strict=True):
            labels[value if manifest.label_names is None else manifest.label_names[int(value)]] = count
        return Description(
            n_rows=manifest.n_rows,
            n_features=manifest.n_features,
            n_entries=int(statistics.counts.sum()),
            labels=labels,
            minimum=every.minima,
            maximum=every.maxima,
            mean=every.means,
            variance=every.squares / manifest.n_rows,
            missing=manifest.n_rows - every.counts,
        )

    def sample(self, n: int, random_state: int | None = 0) -> Block:
        """Return ``n`` rows chosen evenly at random, in their order, as one block in memory.

        Args:
            n: How many; not more than there are.
            random_state: Seed. None: another sample each time.

        Raises:
            ConfigError: There are not so many rows.
            CorruptDataError: A chunk is damaged.
        """
        n_rows = self.manifest.n_rows
        if isinstance(n, bool) or not 1 <= n <= n_rows:
            raise ConfigError("n", f"must be between 1 and {n_rows}, the number of rows, got {n!r}")
        chosen = np.sort(np.random.default_rng(random_state).choice(n_rows, n, replace=False))
        parts, first = [], 0
        for block in self.blocks():
            low, high = np.searchsorted(chosen, [first, first + block.n_rows])
            if high > low:
                parts.append(block.select(chosen[low:high] - first))
            first += block.n_rows
        if not parts:
            raise DataError(f"{self.url}: holds no rows")
        return Block.merge(parts)
