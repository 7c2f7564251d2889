"""Functions over chunks on Ray: chunks come through the object store, a task maps each.

The controller of a job owns what its tasks return. A chunk is a task's return, so that Ray reads it again
where the node that held it is lost; there is one copy on a node, and the tasks there read it where it lies.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from cirrus.chunks import iterate_chunk_bytes
from cirrus.client_backend.fleet import AttemptError, WorkerEvent, WorkerResult
from cirrus.client_backend.launcher import Launcher
from cirrus.client_backend.ray.cluster import ClusterSilence, end_now, ray_errors
from cirrus.client_backend.ray.shards import Report, keep_memory
from cirrus.client_backend.ray.sizes import Need
from cirrus.client_backend.ray.waiting import Waiter
from cirrus.config import from_plain
from cirrus.errors import CirrusError
from cirrus.storage import open_store
from cirrus.worker_runtime.handler import Event, Result
from cirrus.worker_runtime.map_tasks import MapWorker
from cirrus.worker_runtime.session import Clock

#: A chunk is read again so often where reading fails or its node is lost.
READ_RETRIES = 3
#: So many workers of a job may be at work.
MAX_WORKERS = 128
#: Chunks that are read before a worker is free for them.
AHEAD = 2


def read_chunk(url: str, key: str) -> NDArray[np.uint8]:
    """Return a chunk's bytes, as an array that others read in the object store without a copy."""
    return np.frombuffer(open_store(url).get(key), np.uint8)


def map_chunk(job_url: str, number: int, chunk: NDArray[np.uint8]) -> int | Report:
    """Do one chunk of a job; return its rows, or the report of an error.

    Args:
        job_url: The job's folder.
        number: Which chunk.
        chunk: Its bytes; Ray starts this task where they lie, if there is room.
    """
    keep_memory()
    try:
        worker = MapWorker(job_url, 0, 0, Clock(None))
        worker.do(number, iterate_chunk_bytes(memoryview(chunk), worker.input.url, worker.manifest, number))
    except CirrusError as error:
        return Report.of(error)
    return worker.rows


class MapController:
    """Does the chunks of one job, as many at a time as its client has workers.

    Args:
        job_url: The job's folder.
        need: What a function over a chunk declares.
        environment: Ray's runtime environment.
    """

    def __init__(self, job_url: str, need: Need, environment: dict[str, Any]) -> None:
        self._job_url = job_url
        self._environment = environment
        self._need = need
        self._waiter = Waiter()
        self._lock = threading.Lock()
        self._chunks: dict[int, ray.ObjectRef[Any]] = {}

    def work(self, event: Mapping[str, Any]) -> dict[str, Any] | Report:
        """Do chunks until there are none left, or the generation's time is over; as the handler does."""
        try:
            parsed = from_plain(Event, dict(event), "event")
            return dataclasses.asdict(self._work(parsed))
        except CirrusError as error:
            return Report.of(error)

    def _work(self, event: Event) -> Result:
        left = event.deadline_seconds
        clock = Clock(None if left is None else lambda: left)
        worker = MapWorker(self._job_url, event.worker_id, event.generation, clock)
        chunks = rows = 0
        outcome = "finished"
        while not worker.is_stopped:
            if clock.is_over:
                outcome = "deadline"
                break
            number = worker.take()
            if number is None:
                break
            rows += self._do(number, worker)
            chunks += 1
        return Result(outcome=outcome, steps=chunks, rows=rows, seconds=clock.seconds)

    def _do(self, number: int, worker: MapWorker) -> int:
        chunk = self._read_ahead(number, worker)
        task = ray.remote(map_chunk).options(
            max_retries=0, runtime_env=self._environment, **self._need.to_options()
        )
        with ray_errors(f"chunk {number}"):
            said = self._waiter.result(task.remote(self._job_url, number, chunk))
        if isinstance(said, Report):
            raise AttemptError.of_kind(str(said.error), said.kind)
        return int(said)

    def _read_ahead(self, number: int, worker: MapWorker) -> ray.ObjectRef[Any]:
        """Have a chunk read, and those that will be wanted next; return the chunk."""
        keys = [chunk.key for chunk in worker.manifest.chunks]
        read = ray.remote(read_chunk).options(
            num_cpus=0, max_retries=READ_RETRIES, retry_exceptions=False, runtime_env=self._environment
        )
        with self._lock:
            for wanted in range(number, min(number + 1 + AHEAD, len(keys))):
                if wanted == number or wanted > max(self._chunks, default=-1):
                    self._chunks.setdefault(wanted, read.remote(worker.input.url, keys[wanted]))
            return self._chunks.pop(number)


class RayJobLauncher(Launcher):
    """Runs the workers of a map job through a controller in the cluster.

    Args:
        controller: The actor; this object ends it.
    """

    def __init__(self, controller: Any) -> None:
        self._controller = controller
        self._waiter = Waiter(ClusterSilence("the same call goes on with the job").check)

    def run_shard(self, shard: int, generation: int) -> None:
        """See :meth:`Launcher.run_shard`: map jobs have none."""
        raise AttemptError("this job has no shards", is_permanent=True)

    def invoke(self, event: WorkerEvent) -> WorkerResult:
        """See :meth:`Launcher.invoke`."""
        self._waiter.check_alive()
        with ray_errors(f"worker {event.worker_id}"):
            said = self._waiter.result(self._controller.work.remote(event.to_plain()))
        if isinstance(said, Report):
            raise AttemptError.of_kind(str(said.error), said.kind)
        return WorkerResult.from_plain(said)

    def close(self) -> None:
        """See :meth:`Launcher.close`; what the controller owns goes with it."""
        end_now(self._controller)
        self._waiter.close()

    def kill(self) -> None:
        """See :meth:`Launcher.kill`."""
        self.close()
