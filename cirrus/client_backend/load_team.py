"""Several workers on the tasks of one load."""

from __future__ import annotations

import itertools
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Generic, Protocol, TypeVar

from cirrus.client_backend.load_process import RemoteLoadWorker
from cirrus.client_backend.load_tasks import (
    BucketResult,
    BucketTask,
    LoadPlan,
    LoadWorker,
    NumberTask,
    ScatterResult,
    ScatterTask,
)

T = TypeVar("T")
R = TypeVar("R")


class Worker(Protocol):
    """What :class:`LoadWorker` and :class:`RemoteLoadWorker` have in common."""

    def scatter(self, task: ScatterTask) -> ScatterResult:
        """See :meth:`LoadWorker.scatter`."""
        ...

    def number(self, task: NumberTask) -> NumberTask:
        """See :meth:`LoadWorker.number`."""
        ...

    def store_bucket(self, task: BucketTask) -> BucketResult:
        """See :meth:`LoadWorker.store_bucket`."""
        ...


class RemoteWorker(Worker, Protocol):
    """A worker outside of this process."""

    def finish(self) -> None:
        """End in order: the work is done."""
        ...

    def kill(self) -> None:
        """End at once; a call that waits raises an error soon."""
        ...

    def release(self) -> None:
        """Let go of everything; no call waits any more."""
        ...


class Team:
    """The workers of one load: one in this process, or several outside of it.

    On leaving the context those end: in order, or at once if there was an exception.

    Args:
        plan: The load.
        hire: Makes the workers; None: processes of this machine, if there are several.
    """

    def __init__(self, plan: LoadPlan, hire: Callable[[LoadPlan], Sequence[RemoteWorker]] | None) -> None:
        self._plan = plan
        self._hire = hire
        self._remote: list[RemoteWorker] = []

    def __enter__(self) -> Team:
        try:
            if self._hire is not None:
                self._remote += self._hire(self._plan)
            elif self._plan.n_workers > 1:
                for _ in range(self._plan.n_workers):
                    self._remote.append(RemoteLoadWorker(self._plan))
        except BaseException:
            self._end(lambda worker: worker.kill())
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end((lambda worker: worker.finish()) if kind is None else (lambda worker: worker.kill()))

    def _end(self, how: Callable[[RemoteWorker], None]) -> None:
        for worker in self._remote:
            how(worker)
        for worker in self._remote:
            worker.release()

    def run(
        self, sources: Sequence[Iterator[T]], work: Callable[[Worker, T], R], done: Callable[[R], None]
    ) -> None:
        """Let the workers do all tasks.

        Args:
            sources: Tasks, taken one by one as workers get free; from several of these at a time, from the
                first ones first.
            work: Does a task with a worker; called in several threads.
            done: Takes a result; called in this thread.

        Raises:
            CirrusError: What the first of the tasks that failed raised; no later task is begun.
        """
        if not self._remote:
            worker = LoadWorker(self._plan)
            for source in sources:
                for task in source:
                    done(work(worker, task))
            return
        crew = _Crew(self._remote, TaskQueue(sources), work)
        try:
            crew.run(done)
        except BaseException:
            for remote in self._remote:
                remote.kill()
            crew.join()
            raise


class TaskQueue(Generic[T]):
    """Tasks from several iterators, each of which is asked by one thread at a time.

    Args:
        sources: Those at the front are used first; another is begun when all begun ones are being asked.
    """

    def __init__(self, sources: Sequence[Iterator[T]]) -> None:
        self._waiting = deque(sources)
        self._idle: list[tuple[int, Iterator[T]]] = []
        self._n_begun = 0
        self._n_asked = 0
        self._changed = threading.Condition()
        self.n_taken = 0

    def take(self) -> tuple[int, T] | None:
        """Return a task and the number of tasks that were taken before it; None: there are no more."""
        while (source := self._ask()) is not None:
            task: list[T] = []
            try:
                task = list(itertools.islice(source[1], 1))
            finally:
                with self._changed:
                    # In one step with giving the source back: tasks of one source are numbered in their
                    # order.
                    order = self.n_taken
                    self._n_asked -= 1
                    if task:
                        self.n_taken += 1
                        self._idle = sorted([*self._idle, source], key=lambda idle: idle[0])
                    self._changed.notify_all()
            if task:
                return order, task[0]
        return None

    def _ask(self) -> tuple[int, Iterator[T]] | None:
        """Return the first source that nobody asks, with its number, or None if all are used up."""
        with self._changed:
            while True:
                if self._idle:
                    self._n_asked += 1
                    return self._idle.pop(0)
                if self._waiting:
                    self._n_asked += 1
                    self._n_begun += 1
                    return self._n_begun, self._waiting.popleft()
                if not self._n_asked:
                    return None
                self._changed.wait()


class _Crew(Generic[T, R]):
    """One thread for each remote worker, which hands it tasks and waits for what comes back."""

    def __init__(
        self, workers: list[RemoteWorker], tasks: TaskQueue[T], work: Callable[[Worker, T], R]
    ) -> None:
        self._tasks = tasks
        self._work = work
        self._failures: list[tuple[int, BaseException]] = []
        self._results: queue.SimpleQueue[list[R]] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._serve, args=(worker,), daemon=True) for worker in workers
        ]

    def run(self, done: Callable[[R], None]) -> None:
        """Do all tasks, or raise what the first one that failed raised."""
        for thread in self._threads:
            thread.start()
        n_working = len(self._threads)
        while n_working:
            results = self._results.get()
            n_working -= not results
            for result in results:
                done(result)
        self.join()
        if self._failures:
            # Tasks of one file are taken in order, so all before the first that failed were done.
            raise min(self._failures, key=lambda failure: failure[0])[1]

    def join(self) -> None:
        """Wait for the threads to end."""
        for thread in self._threads:
            thread.join()

    def _serve(self, worker: RemoteWorker) -> None:
        order: int | None = None
        try:
            while not self._failures:
                order = None
                taken = self._tasks.take()
                if taken is None:
                    return
                order, task = taken
                self._results.put([self._work(worker, task)])
        except BaseException as error:  # noqa: BLE001 (raised again by run, in the caller's thread)
            # What cannot be read comes behind all that was read before.
            self._failures.append((self._tasks.n_taken if order is None else order, error))
        finally:
            self._results.put([])
