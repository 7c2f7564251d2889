"""The client of one map job: its folder, its fleet of workers, progress, and going on where it was left.

A job is known by its :attr:`~cirrus.worker_runtime.map_job.MapJob.job_id`: rows, function, place and version.
One that was interrupted is found again by that and goes on with the chunks that have no result; what was
begun at the same place and is another job is given up, with a warning that says what differs.

Only one client at a time directs the jobs of one place; another one gets a ConflictError.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import json
import math
import secrets
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

from cirrus.chunks import ChunkInfo, DatasetSummary, Manifest, discard_chunks, new_chunk_prefix
from cirrus.client_backend.base import Backend
from cirrus.client_backend.claims import is_known_dead, new_claim, seize_claim
from cirrus.client_backend.fleet import AttemptError, Fleet, WorkerEvent, WorkerResult
from cirrus.client_backend.map_functions import PackedFunction
from cirrus.client_backend.retries import RetryPolicy
from cirrus.config import from_plain
from cirrus.errors import CirrusError, ConfigError, ConflictError, CorruptDataError, NotFoundError
from cirrus.run_folder import TOKEN_BYTES, RunFolder
from cirrus.storage import open_store
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

#: Folder below the URL that a job writes to, with its client's claim and a note of what is begun.
PLACE_FOLDER = "map-job"
BEGUN_KEY = "begun.json"
#: Folder of the jobs' own folders below the backend's root.
JOBS_FOLDER = "jobs"
#: A job that was interrupted this long ago is forgotten when another one begins.
FORGET_SECONDS = 30 * 24 * 3600.0
#: How many others are looked at then, where each costs requests.
MOST_LOOKED_AT = 20
#: A worker that ends without a result this often, with no chunk done meanwhile, ends the job.
MAX_FAILURES = 4
#: Between looks for results in a folder.
POLL_SECONDS = 0.05
#: The same where a look is a request that costs money.
REMOTE_POLL_SECONDS = 1.0
RENEW_SECONDS = 2.0
#: How long threads of this process may take to notice that the job is over.
JOIN_SECONDS = 5.0
#: How far up the user's own line is that a warning is about.
WARNING_LEVEL = 7

OnResult = Callable[[int, bytes], None]


@dataclass(frozen=True, kw_only=True)
class MapProgress:
    """How far a map job is."""

    chunks_done: int
    chunks_total: int
    rows: int
    """Rows of the chunks that are done."""
    rows_found: int = 0
    """Those of them that were done before, by a call that was interrupted."""


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
    function: PackedFunction
    """For ``columns`` the packed arrays of a map, for ``statistics`` nothing."""
    input_url: str
    manifest: Manifest
    output_url: str | None = None
    n_features: int | None = None
    keeps_features: bool = True
    """Whether a feature of the new dataset is the one of that number here, so that it is called the same."""

    def job(self) -> MapJob:
        """Return the job that this asks for, as one that begins."""
        # What cannot be compared is the same as nothing else.
        function_id = self.function.digest or f"unknown-{secrets.token_hex(16)}"
        return MapJob(
            kind=self.kind,
            input_url=self.input_url,
            fingerprint=self.manifest.fingerprint,
            n_chunks=len(self.manifest.chunks),
            function_id=function_id,
            function_name=self.function.name,
            output_url=self.output_url,
            prefix=new_chunk_prefix() if self.output_url is not None else "",
            n_features=self.n_features,
            begun_at=time.time(),
        )


def unpack_written(data: bytes, number: int) -> tuple[list[ChunkInfo], DatasetSummary]:
    """Return what a result of a job with an output says: the chunks, and what is in them.

    Raises:
        CorruptDataError: It is something else.
    """
    name = f"result {number}"
    meta, arrays = unpack_arrays(data, name)
    try:
        chunks = [from_plain(ChunkInfo, raw, name) for raw in meta["chunks"]]
        return chunks, DatasetSummary.from_parts(meta["summary"], arrays["touches"].tobytes())
    except (ConfigError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CorruptDataError(f"{name}: {error}") from error


class JobClient:
    """Directs one job; a context that removes the job's folder when all went well.

    Args:
        request: The job.
        options: Where it runs.
        mark: What the folder's name ends with, for a job that shall not meet its like.
    """

    def __init__(self, request: MapRequest, options: MapOptions, mark: str = "") -> None:
        self._request = request
        self._options = options
        self.job = request.job()
        urls = [request.input_url] if request.output_url is None else [request.input_url, request.output_url]
        self._jobs = open_store(options.backend.job_root(urls)).child(JOBS_FOLDER)
        self._folder = JobFolder(self._jobs.child(self.job.job_id + mark).url)
        self._place = None if request.output_url is None else open_store(request.output_url)
        self._makes_place = self._place is not None and not self._place.is_made()
        place_url = None if self._place is None else self._place.child(PLACE_FOLDER).url
        self._claims = RunFolder(place_url or self._folder.url)
        self._claim = new_claim()
        self._renewed_at = time.monotonic()
        self._wake = threading.Event()
        self._over = threading.Event()
        self._error: AttemptError | None = None
        self._done: set[int] = set()
        self._found: set[int] = set()
        self._rows = self._rows_found = 0
        self._is_remote = RunFolder(self._folder.url).is_remote
        self._poll_seconds = REMOTE_POLL_SECONDS if self._is_remote else POLL_SECONDS
        # All who wait for work share a look at what is taken.
        self._look = threading.Lock()
        self._looked_at = -math.inf
        self._n_taken = 0
        self._launcher = options.backend.job_launcher(self._folder.url)

    def __enter__(self) -> JobClient:
        self._take_claim()
        try:
            self._prepare()
        except BaseException:
            self._release_claim()
            raise
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        is_hopeless = isinstance(error, AttemptError) and error.is_permanent
        if is_hopeless and self._place is not None:
            discard_chunks(self._place, self.job.prefix)
        if error is None or is_hopeless:
            self._remove()
        else:
            self._release_claim()
        if is_hopeless and self._place is not None and self._makes_place:
            self._place.remove_if_empty()

    def _remove(self) -> None:
        RunFolder(self._folder.url).remove()
        if self._claims.url != self._folder.url:
            self._claims.remove()

    def _take_claim(self) -> None:
        try:
            self._claim = seize_claim(self._claims, self._claim)
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
        found = self._stored_job(self._folder)
        if found is not None and found.job_id == self.job.job_id:
            self.job = dataclasses.replace(found, input_url=self.job.input_url, begun_at=time.time())
            self._give_up_others(warn=False)
            self._forget_lost_results()
            self._folder.store.delete(STOP_KEY)
            for key in self._folder.store.list(CLAIMS):
                self._folder.store.delete(key)
            # Workers execute what was asked for now, whoever signed what is there.
            self._folder.write(self.job, self._request.function.data)
            self._found = self._folder.numbers(RESULTS)
        else:
            for key in self._folder.store.list():
                if key != "client.json":
                    self._folder.store.delete(key)
            self._give_up_others(warn=True)
            self._forget_old()
            self._folder.create(self.job, self._request.function.data, secrets.token_hex(TOKEN_BYTES))
        if self._place is not None:
            note = json.dumps(dataclasses.asdict(self.job)).encode()
            self._place.child(PLACE_FOLDER).put(BEGUN_KEY, note)
        if self._request.function.digest is None:
            warnings.warn(
                f"{self.job.function_name} cannot be compared with the function of another call "
                f"({self._request.function.obstacle}): this job would not go on after an interruption",
                UserWarning,
                stacklevel=WARNING_LEVEL - 1,
            )

    @staticmethod
    def _stored_job(folder: JobFolder) -> MapJob | None:
        if not folder.store.exists(JOB_KEY):
            return None
        try:
            return folder.job()
        except (CorruptDataError, NotFoundError):
            return None

    def _give_up_others(self, *, warn: bool) -> None:
        """Discard what other jobs began at this place and did not end; say so."""
        others = [self._begun_here()] if self._place is not None else self._others_of_this_name()
        for other in others:
            if other is None or other.prefix == self.job.prefix != "":
                continue
            if self._place is not None:
                discard_chunks(self._place, other.prefix)
                self._forget(other.job_id, lambda found: found.output_url == self.job.output_url)
            if warn:
                where = self._request.output_url or self._request.input_url
                warnings.warn(
                    f"{where}: what an interrupted job of {other.function_name!r:.100} had done is not used, "
                    f"since {self._difference(other)}",
                    UserWarning,
                    stacklevel=WARNING_LEVEL,
                )

    def _begun_here(self) -> MapJob | None:
        assert self._place is not None
        with contextlib.suppress(NotFoundError, ConfigError, ValueError):
            raw = json.loads(self._place.child(PLACE_FOLDER).get(BEGUN_KEY))
            return from_plain(MapJob, raw, BEGUN_KEY)
        return None

    def _others_of_this_name(self) -> list[MapJob | None]:
        """Return interrupted jobs of a function of this name over this dataset; lambdas have no name."""
        if self.job.kind != "reduce" or "<lambda>" in self.job.function_name:
            return []
        others: list[MapJob | None] = []
        for name in self._names_of_others():
            folder = JobFolder(self._jobs.child(name).url)
            with contextlib.suppress(CirrusError):
                other = self._stored_job(folder)
                holder = RunFolder(folder.url).claim_holder()
                is_over = holder is None or holder.released or is_known_dead(holder)
                if other is not None and is_over and _place_of(other) == _place_of(self.job):
                    others.append(other)
                    if name != other.job_id:  # it had a mark, by which nobody finds it again
                        self._forget(name, lambda _: True)
        return others

    def _names_of_others(self) -> list[str]:
        """Return names of other jobs' folders: all of them, or some, where each one costs requests.

        Of many, those that follow this job's own name, in a circle: other jobs look at others.
        """
        names = self._jobs.folders()
        after = bisect.bisect(names, self.job.job_id)
        return [*names[after:], *names[:after]][: MOST_LOOKED_AT if self._is_remote else None]

    def _forget_old(self) -> None:
        """Remove what was interrupted long ago, and will not go on."""
        oldest = time.time() - FORGET_SECONDS
        with contextlib.suppress(CirrusError):
            for name in self._names_of_others():
                self._forget(name, lambda found: found.begun_at < oldest)

    def _forget(self, name: str, is_meant: Callable[[MapJob], bool]) -> None:
        """Remove a job's folder if the job in it, which has to be signed, is the one that is meant."""
        folder = JobFolder(self._jobs.child(name).url)
        with contextlib.suppress(CirrusError):
            found = self._stored_job(folder)
            if found is not None and folder.url != self._folder.url and is_meant(found):
                self._jobs.delete_prefix(name)

    def _difference(self, other: MapJob) -> str:
        mine = self.job
        if other.function_name != mine.function_name or other.kind != mine.kind:
            return f"{mine.function_name} is another function"
        if other.function_id != mine.function_id:
            return "its code, or something that it uses, was changed"
        if other.fingerprint != mine.fingerprint:
            return "the rows that it reads are others"
        if other.n_features != mine.n_features:
            return "n_features is another"
        if self._place is None:
            return "it was at work beside another call like it"
        return "its folder is gone, or belongs to another user or machine"

    def _forget_lost_results(self) -> None:
        """Remove results that are damaged, or whose chunks are gone, so that they are made again."""
        there = set() if self._place is None else set(self._place.list(self.job.prefix))
        for number in self._folder.numbers(RESULTS):
            try:
                data = self._folder.result(number)
                is_whole = self._place is None or all(
                    chunk.key in there for chunk in unpack_written(data, number)[0]
                )
            except CorruptDataError:
                is_whole = False
            if not is_whole:
                self._folder.remove_result(number)

    def run(self, on_result: OnResult, *, in_order: bool = False) -> None:
        """Keep workers at it until every chunk has a result.

        Args:
            on_result: Takes the number of a chunk and its result, in this thread. One result at a time is in
                memory.
            in_order: Hand results over in the order of the chunks.

        Raises:
            AttemptError: A worker failed for good.
            ConflictError: Another client took the job over.
        """
        results = _Results(self._folder, on_result, in_order=in_order)
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
            self._collect(results)
            if len(self._done) < self.job.n_chunks:
                fleet.start()
            while len(self._done) < self.job.n_chunks:
                self._wake.wait(self._poll_seconds)
                self._wake.clear()
                self._renew_claim()
                error = self._error
                self._collect(results)
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

    def _collect(self, results: _Results) -> None:
        for number in sorted(self._folder.numbers(RESULTS) - self._done):
            results.add(number)
            self._done.add(number)
            n_rows = self._request.manifest.chunks[number].n_rows
            self._rows += n_rows
            self._rows_found += n_rows * (number in self._found)
            self._report()

    def _report(self) -> None:
        if self._options.progress is not None:
            self._options.progress(
                MapProgress(
                    chunks_done=len(self._done),
                    chunks_total=self.job.n_chunks,
                    rows=self._rows,
                    rows_found=self._rows_found,
                )
            )

    def _fail(self, error: AttemptError) -> None:
        self._error = self._error or error
        self._wake.set()

    def _invoke(self, event: WorkerEvent) -> WorkerResult:
        """Run a worker when there is a chunk for it; what a killed one had taken is free again."""
        while not self._has_work():
            if self._over.wait(2 * self._poll_seconds):
                return WorkerResult(outcome="finished")
        try:
            return self._launcher.invoke(dataclasses.replace(event, role="map"))
        finally:
            if not self._over.is_set():
                self._free(event)
            self._wake.set()

    def _free(self, event: WorkerEvent) -> None:
        """Let others have what a worker had taken, and let them see it at once."""
        self._folder.release(event.worker_id, event.generation)
        with self._look:
            self._looked_at = -math.inf

    def _has_work(self) -> bool:
        with self._look:
            if time.monotonic() - self._looked_at >= self._poll_seconds:
                self._n_taken = len(self._folder.numbers(CLAIMS) | self._folder.numbers(RESULTS))
                self._looked_at = time.monotonic()
            return not self._over.is_set() and self._n_taken < self.job.n_chunks


def _place_of(job: MapJob) -> tuple[str, str, str | None, str]:
    """Return what two versions of one job have in common."""
    return job.kind, job.input_url, job.output_url, job.function_name


class _Results:
    """Hands results over as they come, or in the order of the chunks: those that wait stay in the store."""

    def __init__(self, folder: JobFolder, on_result: OnResult, *, in_order: bool) -> None:
        self._folder = folder
        self._on_result = on_result
        self._in_order = in_order
        self._waiting: set[int] = set()
        self._next = 0

    def add(self, number: int) -> None:
        """Take note of a result that is there."""
        if not self._in_order:
            self._on_result(number, self._folder.result(number))
            return
        self._waiting.add(number)
        while self._next in self._waiting:
            self._waiting.remove(self._next)
            self._on_result(self._next, self._folder.result(self._next))
            self._next += 1
