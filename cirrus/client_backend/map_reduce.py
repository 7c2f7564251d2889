"""Functions over the chunks of a dataset, on any backend: job folder, fleet of workers, progress, resuming.

A job is known by its input's fingerprint, its function's bytes and where its output goes. One that was
interrupted is found again by that and goes on with the chunks that have no result. Only one client at a time
directs the jobs of one place; another one gets a ConflictError.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import inspect
import json
import secrets
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cirrus.chunks import (
    MANIFEST_KEY,
    ChunkInfo,
    DatasetSummary,
    Manifest,
    commit_dataset,
    discard_chunks,
    new_chunk_prefix,
    read_manifest,
)
from cirrus.chunks.vocabulary import copy_vocabularies
from cirrus.chunks.writer import find_replaced
from cirrus.client_backend.base import Backend
from cirrus.client_backend.claims import is_known_dead, new_claim
from cirrus.client_backend.fleet import AttemptError, Fleet, WorkerEvent, WorkerResult
from cirrus.client_backend.retries import RetryPolicy
from cirrus.config import from_plain
from cirrus.errors import CirrusError, ConflictError, CorruptDataError, NotFoundError
from cirrus.run_folder import TOKEN_BYTES, RunFolder
from cirrus.storage import ObjectStore, open_store
from cirrus.worker_runtime.column_statistics import ColumnStatistics
from cirrus.worker_runtime.map_job import (
    CLAIMS,
    JOB_KEY,
    RESULTS,
    STOP_KEY,
    JobFolder,
    Kind,
    MapJob,
    unpack_arrays,
)

#: The job's folder below the URL that it writes to.
JOB_FOLDER = "map-job"
#: Jobs without an output have their folders below this one of the backend's root.
JOBS_FOLDER = "jobs"
#: A worker that ends without a result this often, with no chunk done meanwhile, ends the job.
MAX_FAILURES = 4
POLL_SECONDS = 0.05
RENEW_SECONDS = 2.0
#: How long threads of this process may take to notice that the job is over.
JOIN_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class MapProgress:
    """How far a map job is."""

    chunks_done: int
    chunks_total: int
    rows: int
    """Rows of the chunks that are done."""


@dataclass(frozen=True, kw_only=True)
class MapOptions:
    """Where and how a job runs."""

    backend: Backend
    n_workers: int
    progress: Callable[[MapProgress], None] | None = None


@dataclass(frozen=True, kw_only=True)
class MapRequest:
    """What to do with each chunk."""

    kind: Kind
    function: bytes
    """See :func:`pack_function`; for ``columns`` the packed arrays of a map, for ``statistics`` nothing."""
    input_url: str
    manifest: Manifest
    output_url: str | None = None
    n_features: int | None = None

    @property
    def job_id(self) -> str:
        """The same for the same work."""
        parts = [self.kind, self.manifest.fingerprint, self.output_url, self.n_features]
        key = json.dumps([*parts, hashlib.sha256(self.function).hexdigest()])
        return hashlib.sha256(key.encode()).hexdigest()[:32]


def pack_function(map_block: Callable[..., Any], combine: Callable[..., Any] | None = None) -> bytes:
    """Return a user's functions as bytes. Those of the user's own modules travel whole, not by name."""
    import cloudpickle

    modules = []
    for function in (map_block, combine):
        module = inspect.getmodule(function)
        if module is not None and _is_users_own(module):
            modules.append(module)
            cloudpickle.register_pickle_by_value(module)
    try:
        data: bytes = cloudpickle.dumps((map_block, combine))
    finally:
        for module in {module.__name__: module for module in modules}.values():
            cloudpickle.unregister_pickle_by_value(module)
    return data


def _is_users_own(module: Any) -> bool:
    name, path = module.__name__, getattr(module, "__file__", None) or ""
    if name == "__main__" or not path or name.partition(".")[0] in {"cirrus", *sys.stdlib_module_names}:
        return False
    return "site-packages" not in path and "dist-packages" not in path


def rewrite_dataset(
    request: MapRequest, options: MapOptions, *, encoding: dict[str, Any], label_names: tuple[str, ...] | None
) -> Manifest:
    """Rewrite each chunk, and make a dataset of them.

    Args:
        request: Of kind ``columns`` or ``rewrite``, with an ``output_url``.
        options: Where it runs.
        encoding: Of the new dataset.
        label_names: Of the new dataset.

    Raises:
        ConflictError: Another living client writes to that URL, or has stored a dataset there meanwhile.
        DataError: The function failed, or no rows are left.
        RunError: Workers failed again and again.
    """
    assert request.output_url is not None
    results: dict[int, tuple[list[ChunkInfo], DatasetSummary]] = {}
    store = open_store(request.output_url)
    replaces = find_replaced(store)

    def keep(number: int, data: bytes) -> None:
        results[number] = _written(data, f"result {number}")

    with JobClient(request, options, store.child(JOB_FOLDER).url) as client:
        client.run(keep)
        summary = DatasetSummary()
        for number in sorted(results):
            summary.merge(results[number][1])
        chunks = [chunk for number in sorted(results) for chunk in results[number][0]]
        done = _committed(store, client.job.prefix)
        if done is not None:  # all that an earlier client did not come to was to remove the job
            return done
        n_features = request.n_features or max(summary.n_features, request.manifest.n_features)
        vocabularies = copy_vocabularies(
            open_store(request.input_url), request.manifest, store, client.job.prefix
        )
        return commit_dataset(
            store,
            chunks,
            summary,
            n_features=n_features,
            label_names=label_names,
            encoding=encoding,
            vocabularies=vocabularies,
            replaces=replaces,
        )


def _committed(store: ObjectStore, prefix: str) -> Manifest | None:
    if not store.exists(MANIFEST_KEY):
        return None
    with contextlib.suppress(CorruptDataError):
        manifest = read_manifest(store)
        if any(chunk.key.startswith(prefix) for chunk in manifest.chunks):
            return manifest
    return None


def _written(data: bytes, name: str) -> tuple[list[ChunkInfo], DatasetSummary]:
    meta, arrays = unpack_arrays(data, name)
    chunks = [from_plain(ChunkInfo, raw, name) for raw in meta["chunks"]]
    return chunks, DatasetSummary.from_parts(meta["summary"], arrays["touches"].tobytes())


def column_statistics(request: MapRequest, options: MapOptions) -> ColumnStatistics:
    """Return the statistics of all entries; the same to the bit whatever the number of workers.

    Raises:
        CorruptDataError: A chunk is damaged.
        RunError: Workers failed again and again.
    """
    total = ColumnStatistics.empty()

    def fold(_: int, data: bytes) -> None:
        nonlocal total
        arrays = unpack_arrays(data, "statistics")[1]
        total = ColumnStatistics.merge([total, ColumnStatistics(**arrays)])

    run_ordered(request, options, fold)
    return total


def run_ordered(request: MapRequest, options: MapOptions, on_result: Callable[[int, bytes], None]) -> None:
    """Run a job without an output; results are handed over in the order of the chunks."""
    waiting: dict[int, bytes] = {}
    expected = 0

    def in_order(number: int, data: bytes) -> None:
        nonlocal expected
        waiting[number] = data
        while expected in waiting:
            on_result(expected, waiting.pop(expected))
            expected += 1

    run_job(request, options, in_order)


def run_job(request: MapRequest, options: MapOptions, on_result: Callable[[int, bytes], None]) -> None:
    """Run a job without an output; results are handed over as they come.

    The same job of another client does not get in the way: this one then has a folder of its own.
    """
    jobs = open_store(options.backend.root).child(JOBS_FOLDER)
    with contextlib.ExitStack() as stack:
        try:
            client = stack.enter_context(JobClient(request, options, jobs.child(request.job_id).url))
        except ConflictError:
            name = f"{request.job_id}-{secrets.token_hex(4)}"
            client = stack.enter_context(JobClient(request, options, jobs.child(name).url))
        client.run(on_result)


class JobClient:
    """Directs one job; a context that removes the job's folder when all went well.

    Args:
        request: The job.
        options: Where it runs.
        url: The job's folder.
    """

    def __init__(self, request: MapRequest, options: MapOptions, url: str) -> None:
        self._request = request
        self._options = options
        self._claims = RunFolder(url)
        self._claim = new_claim()
        self._renewed_at = time.monotonic()
        self._folder = JobFolder(url)
        self.job: MapJob
        self._wake = threading.Event()
        self._over = threading.Event()
        self._error: AttemptError | None = None
        self._done: set[int] = set()
        self._launcher = options.backend.job_launcher(url)

    def __enter__(self) -> JobClient:
        self._take_claim()
        try:
            self._prepare()
        except BaseException:
            self._release_claim()
            raise
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            self._claims.remove()
        elif isinstance(error, AttemptError) and error.is_permanent:
            self._discard(self.job)
            self._claims.remove()
        else:
            self._release_claim()

    def _take_claim(self) -> None:
        holder = self._claims.claim_holder()
        dead = holder.client_id if holder is not None and is_known_dead(holder) else None
        try:
            self._claims.claim(self._claim, dead_client=dead)
        except ConflictError as error:
            where = self._request.output_url or self._folder.url
            raise ConflictError(
                f"{where}: another job writes here ({error}): wait for it, or choose another URL"
            ) from error

    def _release_claim(self) -> None:
        with contextlib.suppress(CirrusError):  # it lapses by itself
            self._claims.claim(dataclasses.replace(self._claim, released=True))

    def _renew_claim(self) -> None:
        if time.monotonic() - self._renewed_at >= RENEW_SECONDS:
            self._renewed_at = time.monotonic()
            self._claim = dataclasses.replace(self._claim, renewed_at=time.time())
            self._claims.claim(self._claim)

    def _prepare(self) -> None:
        """Take up the job where it was left, or begin it."""
        job_id = self._request.job_id
        found = self._found()
        if found is not None and found.job_id == job_id and self._may_resume():
            self._forget_lost_results(found)
            self._folder.store.delete(STOP_KEY)
            for key in self._folder.store.list(CLAIMS):
                self._folder.store.delete(key)
            self.job = found
            return
        if found is not None:
            self._discard(found)
        for key in self._folder.store.list():
            if key != "client.json":
                self._folder.store.delete(key)
        request = self._request
        self.job = MapJob(
            job_id=job_id,
            kind=request.kind,
            input_url=request.input_url,
            fingerprint=request.manifest.fingerprint,
            n_chunks=len(request.manifest.chunks),
            output_url=request.output_url,
            prefix=new_chunk_prefix(),
            n_features=request.n_features,
        )
        self._folder.create(self.job, request.function, secrets.token_hex(TOKEN_BYTES))

    def _found(self) -> MapJob | None:
        if not self._folder.store.exists(JOB_KEY):
            return None
        try:
            return self._folder.job()
        except (CorruptDataError, NotFoundError):
            return None

    def _may_resume(self) -> bool:
        """Return whether workers would execute what was asked for, whoever signed it.

        Results of a reduction are pickles, and the folder's token does not say who made them: they are made
        again.
        """
        if self._request.kind == "reduce":
            return False
        try:
            return self._folder.function() == self._request.function
        except (CorruptDataError, NotFoundError):
            return False

    def _forget_lost_results(self, job: MapJob) -> None:
        """Remove results that are damaged, or whose chunks are gone, so that they are made again."""
        there = set(open_store(job.output_url).list(job.prefix)) if job.output_url is not None else set()
        for number in self._folder.numbers(RESULTS):
            try:
                data = self._folder.result(number)
                is_whole = job.output_url is None or all(
                    chunk.key in there for chunk in _written(data, f"result {number}")[0]
                )
            except CorruptDataError:
                is_whole = False
            if not is_whole:
                self._folder.store.delete(f"{RESULTS}{number:06}")

    def _discard(self, job: MapJob) -> None:
        if job.output_url is not None and job.output_url == self._request.output_url:
            discard_chunks(open_store(job.output_url), job.prefix)

    def run(self, on_result: Callable[[int, bytes], None]) -> None:
        """Keep workers at it until every chunk has a result.

        Args:
            on_result: Takes the number of a chunk and its result, in this thread.

        Raises:
            AttemptError: A worker failed for good.
            ConflictError: Another client took the job over.
        """
        fleet = Fleet(
            min(self._options.n_workers, self.job.n_chunks),
            self._invoke,
            self._over.is_set,
            self._fail,
            run_url=self._folder.url,
            deadline_seconds=self._options.backend.generation_seconds,
            progress=lambda: len(self._done),
            policy=RetryPolicy(failures=MAX_FAILURES),
        )
        try:
            self._collect(on_result)
            if len(self._done) < self.job.n_chunks:
                fleet.start()
            while len(self._done) < self.job.n_chunks:
                self._wake.wait(POLL_SECONDS)
                self._wake.clear()
                self._renew_claim()
                error = self._error
                self._collect(on_result)
                if error is not None and len(self._done) < self.job.n_chunks:
                    raise error
        finally:
            self._over.set()
            fleet.stop()
            if len(self._done) < self.job.n_chunks:
                with contextlib.suppress(CirrusError):  # workers are ended below in any case
                    self._folder.store.put(STOP_KEY, b"")
            self._launcher.close()
            fleet.join(JOIN_SECONDS)

    def _collect(self, on_result: Callable[[int, bytes], None]) -> None:
        for number in sorted(self._folder.numbers(RESULTS) - self._done):
            on_result(number, self._folder.result(number))
            self._done.add(number)
            self._report()

    def _report(self) -> None:
        if self._options.progress is not None:
            chunks = self._request.manifest.chunks
            self._options.progress(
                MapProgress(
                    chunks_done=len(self._done),
                    chunks_total=len(chunks),
                    rows=sum(chunks[number].n_rows for number in self._done),
                )
            )

    def _fail(self, error: AttemptError) -> None:
        self._error = self._error or error
        self._wake.set()

    def _invoke(self, event: WorkerEvent) -> WorkerResult:
        """Run a worker when there is a chunk for it; what a killed one had taken is free again."""
        while not self._has_work():
            if self._over.wait(2 * POLL_SECONDS):
                return WorkerResult(outcome="finished")
        try:
            return self._launcher.invoke(dataclasses.replace(event, role="map"))
        finally:
            if not self._over.is_set():
                self._folder.release(event.worker_id, event.generation)
            self._wake.set()

    def _has_work(self) -> bool:
        taken = self._folder.numbers(CLAIMS) | self._folder.numbers(RESULTS)
        return not self._over.is_set() and len(taken) < self.job.n_chunks


def unpickle_result(data: bytes) -> Any:
    """Return a user's value; :class:`JobFolder` has checked that a worker of this job wrote it."""
    import pickle

    return pickle.loads(data)
