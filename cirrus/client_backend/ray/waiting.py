"""Many tasks and one thread that waits for whichever of them ends first."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import ray

from cirrus.client_backend.ray.cluster import lost_cluster
from cirrus.errors import CirrusError

#: Tasks that were begun meanwhile are waited for after this long.
WAIT_SECONDS = 0.2


class Waiter:
    """Waits for the results of tasks with ``ray.wait``, whichever come first, for many threads at once.

    Args:
        check: Called now and then while somebody waits; its error is that of all who wait then, or later.
    """

    def __init__(self, check: Callable[[], None] = lambda: None) -> None:
        self._check = check
        self._failure: CirrusError | None = None
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._pending: dict[ray.ObjectRef[Any], Future[Any]] = {}
        self._closed = False
        threading.Thread(target=self._wait, name="cirrus-ray-wait", daemon=True).start()

    def result(self, ref: ray.ObjectRef[Any]) -> Any:
        """Wait for a task's end; return what it returned.

        Raises:
            ray.exceptions.RayError: It failed or was lost.
            CirrusError: What ``check`` has raised, or that the cluster was lost.
        """
        future: Future[Any] = Future()
        with self._changed:
            self.check_alive()
            self._pending[ref] = future
            self._changed.notify()
        return future.result()

    def check_alive(self) -> None:
        """Look whether tasks can still be waited for, and so begun.

        Raises:
            CirrusError: What ``check`` has raised, or that the cluster was lost.
        """
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """End the thread, once nobody waits any more."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _wait(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending or self._closed)
                if not self._pending:
                    return
                refs = list(self._pending)
            try:
                self._check()
                done = _first(refs)
            except CirrusError as error:
                self._fail(error)
                return
            except (Exception, SystemExit) as error:  # noqa: BLE001 (a lost cluster says so in many ways)
                self._fail(lost_cluster(error))
                return
            for ref in done:
                self._finish(ref)

    def _fail(self, error: CirrusError) -> None:
        with self._lock:
            self._failure = error
            pending, self._pending = self._pending, {}
        for future in pending.values():
            future.set_exception(error)

    def _finish(self, ref: ray.ObjectRef[Any]) -> None:
        with self._lock:
            future = self._pending.pop(ref)
        try:
            value = ray.get(ref)
        except Exception as error:  # noqa: BLE001 (whoever waits for it has to hear of any)
            future.set_exception(error)
        else:
            future.set_result(value)


def _first(refs: list[ray.ObjectRef[Any]]) -> list[ray.ObjectRef[Any]]:
    """Return those that have ended; wait a little for the first of them."""
    if not ray.wait(refs, num_returns=1, timeout=WAIT_SECONDS)[0]:
        return []
    # And whoever else has ended by now: all k of them, at once.
    return ray.wait(refs, num_returns=len(refs), timeout=0)[0]
