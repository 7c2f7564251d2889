"""Tasks of a load, done by a function: one task an invocation.

The event is ``{"role": "load", "plan": ..., "call": "scatter" | "number" | "store_bucket", "request": ...}``;
the answer has the ``result`` and, in base64, its ``payload``, or the ``error`` that the task raised and its
``arguments``. Text is not in the event: the request says where it lies. Doing a task twice gives the same.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from cirrus.client_backend.load_tasks import LoadPlan, LoadWorker, do_task, error_to_plain
from cirrus.config import from_plain
from cirrus.errors import CirrusError, ConfigError

ROLE = "load"
#: Methods of a :class:`LoadWorker`.
CALLS = ("scatter", "number", "store_bucket")
#: What a warm function keeps: ``plan`` and ``worker`` of the last task of each thread.
_last = threading.local()


def handle(event: Mapping[str, Any]) -> dict[str, Any]:
    """Do a task.

    Args:
        event: See above.

    Returns:
        See above.

    Raises:
        ConfigError: The event is wrong.
    """
    call, request = event.get("call"), event.get("request")
    if call not in CALLS or not isinstance(request, Mapping) or not isinstance(event.get("plan"), Mapping):
        raise ConfigError("event", f"must have a plan, a request and a call of {', '.join(CALLS)}")
    plan = from_plain(LoadPlan, dict(event["plan"]), "plan")
    try:
        # Text may say numbers that no float32 holds; they are found and refused.
        with np.errstate(over="ignore", invalid="ignore"):
            result, payload = do_task(_worker_of(plan), call, request, b"")
    except CirrusError as error:
        return error_to_plain(error)
    return {"result": result, "payload": base64.b64encode(payload).decode()}


def _worker_of(plan: LoadPlan) -> LoadWorker:
    """Return the worker of the load that this thread did its last task for, or one for another load.

    A function does one task after the other, and to connect to the object store takes longer than some.
    """
    if getattr(_last, "plan", None) != plan:
        _last.worker, _last.plan = LoadWorker(plan), plan
    worker: LoadWorker = _last.worker
    return worker


def handle_json(event: bytes) -> bytes:
    """Do a task that comes as JSON; for backends whose functions take bytes."""
    return json.dumps(handle(json.loads(event))).encode()
