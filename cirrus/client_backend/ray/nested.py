"""A function of the user as a task, which may start runs and searches itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray import exceptions

from cirrus.client_backend.ray.cluster import explain
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
        return bool(ray.wait([self._ref], timeout=0)[0])

    def result(self, timeout: float | None = None) -> Any:
        """Wait for what it returns.

        Args:
            timeout: Most seconds to wait; None: for ever.

        Raises:
            TimeoutError: It has not ended in time.
            RunError: Its process was lost.
            Exception: What it raised.
        """
        try:
            return ray.get(self._ref, timeout=timeout)
        except exceptions.GetTimeoutError as error:
            raise TimeoutError(f"the task has not ended within {timeout:g} s") from error
        except exceptions.RayTaskError as error:
            if isinstance(error.cause, Exception):
                raise error.cause from error
            raise
        except exceptions.RayError as error:
            raise RunError(f"the task was lost: {explain(error)}") from error

    def cancel(self) -> None:
        """End it; runs that it has started are interrupted, and can be gone on with."""
        ray.cancel(self._ref, force=False)
