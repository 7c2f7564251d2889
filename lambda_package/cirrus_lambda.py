"""The function's entry point on AWS Lambda: the same worker as everywhere, with logs and metrics around it.

Logs are JSON lines. Metrics are in CloudWatch's embedded format, one line a generation; the ids of run and
worker are metadata of that line and no dimensions, because every combination of dimensions is billed as a
metric of its own. Neither holds a secret: the run's token is read from the run folder and goes nowhere else.

Powertools, which does both, is imported beside the work: a cold start waits for its bucket anyway.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cirrus.worker_runtime.handler import Context
from cirrus.worker_runtime.handler import handler as work

if TYPE_CHECKING:
    from aws_lambda_powertools import Logger

#: The one dimension of the metrics, and where CloudWatch keeps them.
SERVICE = "cirrus-worker"
NAMESPACE = "Cirrus"
#: Field of a worker's result, name of the metric.
_SECONDS = {
    "seconds": "Worked",
    "fetch_seconds": "Fetch",
    "pull_seconds": "Pull",
    "compute_seconds": "Compute",
    "push_seconds": "Push",
}


def handler(event: Mapping[str, Any], context: Context) -> dict[str, Any]:
    """Work for one generation; see :func:`cirrus.worker_runtime.handler.handler`.

    Args:
        event: What a worker is invoked with.
        context: Lambda's, which knows the deadline.

    Returns:
        How the generation ended.

    Raises:
        CirrusError: The generation could not work on; the client reads its class and text from the answer.
    """
    ids = _ids(event)
    if isinstance(event, Mapping) and event.get("role") == "load":
        return _load(event, ids)
    log = _Log(ids, "generation begins")
    try:
        result = work(event, context)
    except BaseException:
        log.failure("generation failed")
        raise
    log.ready().info("generation ended", extra={"result": result})
    _emit(result, ids)
    return result


def _load(event: Mapping[str, Any], ids: Mapping[str, Any]) -> dict[str, Any]:
    """Do one task of a load."""
    call = {"call": event.get("call"), "request": event.get("request")}
    log = _Log(ids, "task begins", call)
    try:
        # What parses text is imported where text is parsed: workers that train start without it.
        from cirrus.client_backend.load_function import handle

        answer = handle(event)
    except BaseException:
        log.failure("task failed", call)
        raise
    log.ready().info("task ended", extra={**call, "error": answer.get("error")})
    return answer


class _Log:
    """The function's log, which begins with a line of its own while the work begins.

    Args:
        ids: In every line.
        text: The first line.
        extra: In that line alone.
    """

    def __init__(self, ids: Mapping[str, Any], text: str, extra: Mapping[str, Any] | None = None) -> None:
        self._first = (dict(ids), text, dict(extra or {}))
        self._logger: Logger | None = None
        self._beginning = threading.Thread(target=self._begin, name="log", daemon=True)
        self._beginning.start()

    def _begin(self) -> None:
        from aws_lambda_powertools import Logger

        ids, text, extra = self._first
        logger = Logger(service=SERVICE)
        logger.append_keys(**ids)
        logger.info(text, extra=extra)
        self._logger = logger

    def ready(self) -> Logger:
        """Return what writes to the log, once the first line is there."""
        self._beginning.join()
        if self._logger is None:  # whatever failed there fails here, for the caller to see
            self._begin()
        assert self._logger is not None
        return self._logger

    def failure(self, text: str, extra: Mapping[str, Any] | None = None) -> None:
        """Write the error that is being handled; why there is no log, its thread has told."""
        self._beginning.join()
        if self._logger is not None:
            self._logger.exception(text, extra=dict(extra or {}))


def _ids(event: Any) -> dict[str, Any]:
    """Return who works on what, as far as the event says; it is checked later."""
    if not isinstance(event, Mapping):
        return {}
    url = str(event.get("run_url") or _plan_folder(event)).rstrip("/")
    run = url.rpartition("/")[2]
    return {
        "run": run,
        "role": event.get("role"),
        "worker": event.get("worker_id"),
        "generation": event.get("generation"),
    }


def _plan_folder(event: Mapping[str, Any]) -> str:
    plan = event.get("plan")
    return str(plan.get("folder", "")) if isinstance(plan, Mapping) else ""


def _emit(result: Mapping[str, Any], ids: Mapping[str, Any]) -> None:
    """Write the metrics of a generation to the log, from where CloudWatch takes them."""
    from aws_lambda_powertools.metrics import EphemeralMetrics, MetricUnit

    metrics = EphemeralMetrics(namespace=NAMESPACE, service=SERVICE)
    metrics.add_metric(name="Samples", unit=MetricUnit.Count, value=result["rows"])
    metrics.add_metric(name="Updates", unit=MetricUnit.Count, value=result["steps"])
    for field, name in _SECONDS.items():
        milliseconds = round(1000.0 * result.get(field, 0.0), 3)
        metrics.add_metric(name=f"{name}Milliseconds", unit=MetricUnit.Milliseconds, value=milliseconds)
    for key, value in ids.items():
        metrics.add_metadata(key=key, value=value)
    metrics.flush_metrics()
