"""A function of the user as a task, which may start runs and searches itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray import exceptions

from cirrus.client_backend.ray.cluster import ASK_SECONDS, ClusterSilence, explain, lost_cluster
from cirrus.errors import RunError


def call(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Call a function."""
    return function(*args, **kwargs)


class RayTask:
    """A function that runs in the cluster; it ends with this process.

    Args:
        ref: What it will return.
    """

    def __init__(self, ref: ray.ObjectRef[Any]) -> None:
        self._ref = ref

    @property
    def done(self) -> bool:
        """True when it has ended."""
        return self._await(0.0)

    def result(self, timeout: float | None = None) -> Any:
        """Wait for what it returns.

        Args:
            timeout: Most seconds to wait; None: for ever.

        Raises:
            TimeoutError: It has not ended in time.
            RunError: Its process or the whole cluster was lost, or it was cancelled.
            Exception: What it raised.
        """
        if not self._await(timeout):
            raise TimeoutError(f"the task has not ended within {timeout:g} s")
        try:
            return ray.get(self._ref)
        except exceptions.RayTaskError as error:
            if isinstance(error.cause, exceptions.RayError):  # it was ended, or what it waited for was lost
                raise RunError(f"the task was lost: {explain(error.cause)}") from error
            if isinstance(error.cause, Exception):
                raise error.cause from error
            raise
        except exceptions.RayError as error:
            raise RunError(f"the task was lost: {explain(error)}") from error

    def _await(self, timeout: float | None) -> bool:
        """Wait for the task's end, for so long at most; return whether it has come."""
        silence = ClusterSilence("attach goes on with runs that the task had started")
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            silence.check()
            left = ASK_SECONDS if end is None else max(0.0, min(ASK_SECONDS, end - time.monotonic()))
            try:
                if ray.wait([self._ref], timeout=left)[0]:
                    return True
            except (exceptions.RayError, ConnectionError, SystemExit) as error:
                raise lost_cluster(error) from error
            if end is not None and time.monotonic() >= end:
                return False

    def cancel(self) -> None:
        """End it as Ctrl-C would; runs that it has started are interrupted, and can be gone on with.

        It hears of that when it runs Python code again: not in the midst of one long call, such as a sleep.
        """
        ray.cancel(self._ref, force=False)
