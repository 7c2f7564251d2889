"""One generation of a worker as a task."""

from __future__ import annotations

import contextlib
import ctypes
import logging
from collections.abc import Mapping
from typing import Any

from cirrus.client_backend.processes import MALLOC_THRESHOLDS
from cirrus.client_backend.ray.shards import Report
from cirrus.errors import CirrusError
from cirrus.worker_runtime.handler import handler

log = logging.getLogger(__name__)

#: glibc's names for what :data:`~cirrus.client_backend.processes.MALLOC_THRESHOLDS` sets in children.
_MALLOPT = {-1: "MALLOC_TRIM_THRESHOLD_", -3: "MALLOC_MMAP_THRESHOLD_"}


def keep_memory() -> None:
    """Have the allocator keep the memory of minibatches, as in child processes of the local backend.

    By a call, and not by the environment: Ray would have to start another process for that.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, name in _MALLOPT.items():
            mallopt(parameter, int(MALLOC_THRESHOLDS[name]))


def work(event: Mapping[str, Any]) -> dict[str, Any] | Report:
    """Run one generation of a worker; return its result, or the report of its error.

    Args:
        event: As the handler takes it.
    """
    keep_memory()
    try:
        return handler(event)
    except CirrusError as error:
        return Report.of(error)
    except Exception as error:
        log.exception("worker %s", event.get("worker_id"))
        return Report.of(error)
