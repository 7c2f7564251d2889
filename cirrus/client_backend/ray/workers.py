"""One generation of a worker as a task."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from cirrus.client_backend.ray.shards import Report, keep_memory
from cirrus.errors import CirrusError
from cirrus.worker_runtime.handler import handler

log = logging.getLogger(__name__)


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
