"""Many tasks and one thread that waits for whichever of them ends first."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Any

import ray

#: Tasks that were begun meanwhile are waited for after this long.
WAIT_SECONDS = 0.2


class Waiter:
    """Waits for the results of tasks with ``ray.wait``, whichever come first, for many threads at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._pending: dict[ray.ObjectRef[Any], Future[Any]] = {}
        self._closed = False
        threading.Thread(target=self._wait, name="cirrus-ray-wait", daemon=True).start()

    def result(self, ref: ray.ObjectRef[Any]) -> Any:
        """Wait for a task's end; return what it returned.

        Raises:
            ray.exceptions.RayError: It failed or was lost.
        """
        future: Future[Any] = Future()
        with self._changed:
            self._pending[ref] = future
            self._changed.notify()
        return future.result()

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
            first, _ = ray.wait(refs, num_returns=1, timeout=WAIT_SECONDS)
            if first:
                # And whoever else has ended by now: all k of them, at once.
                done, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
                for ref in done:
                    self._finish(ref)

    def _finish(self, ref: ray.ObjectRef[Any]) -> None:
        with self._lock:
            future = self._pending.pop(ref)
        try:
            value = ray.get(ref)
        except Exception as error:  # noqa: BLE001 (whoever waits for it has to hear of any)
            future.set_exception(error)
        else:
            future.set_result(value)
