"""Fetches the next lease and its data while the worker trains on the one before.

A thread of its own asks shard 0 for tasks, over the connection that the worker registered on, and reads the
lease's blocks from the object store. It is at most one lease ahead.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from cirrus.chunks import Manifest, StoredBlock, read_lease
from cirrus.config import LeaseRange
from cirrus.errors import ProtocolError
from cirrus.paramserver.client import Channel
from cirrus.paramserver.protocol import NextTask, Task
from cirrus.storage import ObjectStore
from cirrus.worker_runtime.session import RunOverError

#: Shard 0 answers after this long at the latest, so that an ended worker's thread does not hang on.
POLL_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class FetchedLease:
    """A lease with its data."""

    task: Task
    blocks: list[StoredBlock]
    fetch_seconds: float


class LeaseFetcher:
    """Keeps the next lease ready.

    Args:
        channel: The connection that the worker is registered on; the fetcher's thread is its only user.
        store: The dataset's store.
        manifest: The dataset.
        leases: The run's leases.
    """

    def __init__(
        self, channel: Channel, store: ObjectStore, manifest: Manifest, leases: Sequence[LeaseRange]
    ) -> None:
        self._channel = channel
        self._store = store
        self._manifest = manifest
        self._leases = leases
        self._queue: queue.Queue[FetchedLease | Exception] = queue.Queue(maxsize=1)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease-fetcher", daemon=True)
        self._thread.start()

    def get(self, timeout: float) -> FetchedLease | None:
        """Return the next lease, or None when there is none yet.

        Raises:
            RunOverError: There will be none any more.
            Exception: Whatever went wrong in fetching.
        """
        try:
            item = self._queue.get(timeout=timeout)
        except queue.Empty:
            return None
        if isinstance(item, Exception):
            raise item
        return item

    def close(self) -> None:
        """End the thread; leases not taken are given to other workers, since the connection ends."""
        self._stopping.set()
        self._channel.close()
        with contextlib.suppress(queue.Empty):
            self._queue.get_nowait()  # wakes the thread if it waits for room
        self._thread.join(POLL_SECONDS)

    def _run(self) -> None:
        item: FetchedLease | Exception | None
        while not self._stopping.is_set():
            try:
                item = self._next()
            except Exception as error:  # noqa: BLE001 (raised again by get, in the worker's own thread)
                item = error
            while item is not None and not self._stopping.is_set():
                try:
                    self._queue.put(item, timeout=POLL_SECONDS)
                except queue.Full:
                    continue
                if isinstance(item, Exception):
                    return
                break

    def _next(self) -> FetchedLease | None:
        task = self._channel.call(NextTask(wait_seconds=POLL_SECONDS))
        if not isinstance(task, Task):
            raise ProtocolError(f"shard 0 answered a request for a task with {type(task).__name__}")
        if task.action == "end":
            raise RunOverError("shard 0 says that the run is over")
        if task.action != "train":
            return None
        started_at = time.perf_counter()
        blocks = read_lease(self._store, self._manifest, self._leases[task.lease])
        return FetchedLease(task, blocks, time.perf_counter() - started_at)
