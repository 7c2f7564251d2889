"""Several workers on the tasks of one load."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Generic, Protocol, TypeVar

from cirrus.client_backend.load_process import RemoteLoadWorker
from cirrus.client_backend.load_tasks import BucketResult, BucketTask, LoadPlan, LoadWorker, ScatterResult

T = TypeVar("T")
R = TypeVar("R")


class Worker(Protocol):
    """What :class:`LoadWorker` and :class:`RemoteLoadWorker` have in common."""

    def scatter(self, segment: int, first_line: int, data: bytes, file_position: int) -> ScatterResult:
        """See :meth:`LoadWorker.scatter`."""
        ...

    def store_bucket(self, task: BucketTask) -> BucketResult:
        """See :meth:`LoadWorker.store_bucket`."""
        ...


class Team:
    """The workers of one load: one in this process, or several in processes of their own.

    On leaving the context the processes end: in order, or at once if there was an exception.
    """

    def __init__(self, plan: LoadPlan) -> None:
        self._plan = plan
        self._remote: list[RemoteLoadWorker] = []

    def __enter__(self) -> Team:
        try:
            if self._plan.n_workers > 1:
                for number in range(self._plan.n_workers):
                    self._remote.append(RemoteLoadWorker(self._plan, number))
        except BaseException:
            self._end(RemoteLoadWorker.kill)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end(RemoteLoadWorker.finish if kind is None else RemoteLoadWorker.kill)

    def _end(self, how: Callable[[RemoteLoadWorker], None]) -> None:
        for worker in self._remote:
            how(worker)
        for worker in self._remote:
            worker.release()

    def run(self, tasks: Iterator[T], work: Callable[[Worker, T], R], done: Callable[[int, R], None]) -> None:
        """Let the workers do all tasks.

        Args:
            tasks: Taken one by one, as workers get free.
            work: Does a task with a worker; called in several threads.
            done: Takes the number of a worker and a result; called in this thread.

        Raises:
            CirrusError: What the first of the tasks that failed raised; no later task is begun.
        """
        if not self._remote:
            worker = LoadWorker(self._plan, 0)
            for task in tasks:
                done(0, work(worker, task))
            return
        crew = _Crew(self._remote, tasks, work)
        try:
            crew.run(done)
        except BaseException:
            for remote in self._remote:
                remote.kill()
            crew.join()
            raise


class _Crew(Generic[T, R]):
    """One thread for each remote worker, which hands it tasks and waits for what comes back."""

    def __init__(
        self, workers: list[RemoteLoadWorker], tasks: Iterator[T], work: Callable[[Worker, T], R]
    ) -> None:
        self._tasks = tasks
        self._work = work
        self._taking = threading.Lock()
        self._n_taken = 0
        self._failures: list[tuple[int, BaseException]] = []
        self._results: queue.SimpleQueue[tuple[int, R] | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._serve, args=(number, worker), daemon=True)
            for number, worker in enumerate(workers)
        ]

    def run(self, done: Callable[[int, R], None]) -> None:
        """Do all tasks, or raise what the first one that failed raised."""
        for thread in self._threads:
            thread.start()
        n_working = len(self._threads)
        while n_working:
            result = self._results.get()
            if result is None:
                n_working -= 1
            else:
                done(*result)
        self.join()
        if self._failures:
            # Tasks are taken in order, so all before the first that failed were done.
            raise min(self._failures, key=lambda failure: failure[0])[1]

    def join(self) -> None:
        """Wait for the threads to end."""
        for thread in self._threads:
            thread.join()

    def _serve(self, number: int, worker: RemoteLoadWorker) -> None:
        order = 0
        try:
            while True:
                with self._taking:
                    order = self._n_taken
                    if self._failures:
                        return
                    try:
                        task = next(self._tasks)
                    except StopIteration:
                        return
                    self._n_taken += 1
                self._results.put((number, self._work(worker, task)))
        except BaseException as error:  # noqa: BLE001 (raised again by run, in the caller's thread)
            self._failures.append((order, error))
        finally:
            self._results.put(None)
