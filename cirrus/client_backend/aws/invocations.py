"""Workers as functions: one synchronous invocation for each generation of each worker.

What an answer says, and what the lack of one does not say, is decided here:

==================  ======================================================================================
what happens        what it means
==================  ======================================================================================
an answer           the generation ended as it says
refused             nothing was started: tried again after a wait with full jitter, as long as the run lasts
no answer           nothing: shard 0 knows whether the worker is at work. As long as it is registered, it
                    lives, and nobody is started in its place
==================  ======================================================================================
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from cirrus.client_backend.aws.facade import AwsFacade, Invocation
from cirrus.client_backend.aws.tail_log import parse_report
from cirrus.client_backend.fleet import AttemptError, WorkerEvent, WorkerResult
from cirrus.client_backend.retries import RetryPolicy
from cirrus.client_backend.status_cache import StatusCache
from cirrus.config import parse_json
from cirrus.errors import CirrusError, CloudError, LostResponseError, NotReadyError, ThrottledError

log = logging.getLogger(__name__)

#: Waits of an invocation that was throttled. A training worker that comes later costs little; an evaluator
#: that does not come holds the run up.
THROTTLED = RetryPolicy(failures=1000, base_seconds=0.25, cap_seconds=15.0)
EVALUATOR_THROTTLED = RetryPolicy(failures=1000, base_seconds=0.25, cap_seconds=1.0)
#: An invocation that is refused for this long, with nothing of the run working, ends the run.
THROTTLED_SECONDS = 300.0
#: Training workers let an evaluator that was refused go first.
EVALUATOR_FIRST_SECONDS = 2.0
HEAD_START_SECONDS = 0.5
#: A worker has this long to register at shard 0 after it was invoked; a cold start is in it.
REGISTRATION_SECONDS = 12.0
#: After its deadline, a worker that is still registered has this long to go.
OVERTIME_SECONDS = 30.0
FOLLOW_SECONDS = 0.5
#: Errors of the platform that another invocation of the same function cannot heal.
BROKEN_FUNCTION = frozenset(
    {"Runtime.ImportModuleError", "Runtime.HandlerNotFound", "Runtime.InvalidEntrypoint"}
)
LOG_LINES = 6


@dataclass(frozen=True, kw_only=True)
class BilledTime:
    """What invocations are billed, as far as their reports say."""

    invocations: int = 0
    """Answers that came."""
    reported: int = 0
    """Those with a report."""
    worker_seconds: float = 0.0
    """What the workers said of the reported ones."""
    billed_seconds: float = 0.0
    """What the reports say."""

    @property
    def correction_seconds(self) -> float:
        """What is to be added to what the workers said."""
        return self.billed_seconds - self.worker_seconds


class Invoker:
    """Invokes a function for each generation of a worker.

    Args:
        facade: AWS.
        function: The function's name.
        wanted: Workers and evaluators of the job.
        evaluator_first: There is an evaluator, and fewer functions may work at once than are wanted.
        notice: Takes what the user should know.
        status: The run's; None: the job has no shards, and nobody knows who works.
        rng: Where the jitter comes from.
    """

    def __init__(
        self,
        facade: AwsFacade,
        function: str,
        *,
        wanted: int,
        evaluator_first: bool = False,
        notice: Callable[[str], None],
        status: StatusCache | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._facade = facade
        self._function = function
        self._wanted = wanted
        self._notice = notice
        self._status = status
        self._rng = rng or random.Random()  # spreads retries  # nosec B311
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._at_work = 0
        self._said_throttled = False
        self._evaluator_came = threading.Event()
        if not evaluator_first:
            self._evaluator_came.set()
        self._evaluator_refused = threading.Event()
        self._billed = BilledTime()

    @property
    def billed(self) -> BilledTime:
        """What the invocations so far are billed."""
        with self._lock:
            return self._billed

    def close(self) -> None:
        """Invoke nobody any more; those who wait return."""
        self._closed.set()

    def invoke(self, event: WorkerEvent) -> WorkerResult:
        """Run one generation of a worker, as :meth:`Launcher.invoke`."""
        started_at = time.monotonic()
        try:
            said = self._invoke_through_throttling(event)
        except LostResponseError as error:
            return self._follow(event, error, started_at)
        if said is None:
            return WorkerResult(outcome="finished")
        return self._read_answer(event, said)

    def _is_over(self) -> bool:
        status = None if self._status is None else self._status.read()
        return status is not None and status.state.ended

    def _invoke_through_throttling(self, event: WorkerEvent) -> Invocation | None:
        """Invoke until it is not refused; return None when the run is over first."""
        evaluates = event.role == "evaluate"
        policy = EVALUATOR_THROTTLED if evaluates else THROTTLED
        refusals, give_up_at = 0, time.monotonic() + THROTTLED_SECONDS
        while True:
            if self._closed.is_set():
                raise AttemptError("the run is being ended")
            if not evaluates and not self._evaluator_came.is_set():
                self._evaluator_came.wait(EVALUATOR_FIRST_SECONDS)
                self._closed.wait(HEAD_START_SECONDS)
            if not evaluates and self._evaluator_refused.is_set():
                self._closed.wait(self._rng.uniform(0.0, EVALUATOR_FIRST_SECONDS))
            try:
                said = self._invoke_once(event)
            except (NotReadyError, ThrottledError) as error:
                refusals += 1
                if self._working() > 0:
                    give_up_at = time.monotonic() + THROTTLED_SECONDS
                if time.monotonic() > give_up_at:
                    raise
                self._say_refused(error)
                if evaluates:
                    self._evaluator_refused.set()
            else:
                if evaluates:
                    self._evaluator_refused.clear()
                return said
            self._closed.wait(self._rng.uniform(0.0, policy.bound(min(refusals + 1, 30))))
            if self._is_over():
                return None

    def _invoke_once(self, event: WorkerEvent) -> Invocation:
        with self._lock:
            self._at_work += 1
        if event.role == "evaluate":
            self._evaluator_came.set()
        try:
            return self._facade.invoke(self._function, event.to_json())
        finally:
            with self._lock:
                self._at_work -= 1

    def _working(self) -> int:
        with self._lock:
            return self._at_work

    def _say_refused(self, error: CloudError) -> None:
        if isinstance(error, NotReadyError):
            self._notice(f"the function {self._function} is not ready yet; it is invoked again until it is")
            return
        with self._lock:
            if self._said_throttled:
                return
            self._said_throttled = True
        self._notice(
            f"AWS runs fewer than the {self._wanted} functions that the job wants ({error}); it goes on with"
            " those it gets. Ask for more: Service Quotas, AWS Lambda, 'Concurrent executions'"
        )

    def _follow(self, event: WorkerEvent, error: LostResponseError, started_at: float) -> WorkerResult:
        """Wait for the end of a worker whose answer was lost, by its registration.

        Raises:
            AttemptError: It never came to work, or nobody can know.
        """
        name = f"worker {event.worker_id} generation {event.generation}"
        if self._status is None:
            raise AttemptError(f"{name}: {error}") from error
        log.info("%s: %s; shard 0 tells whether it works", name, error)
        seen = False
        overtime_at = started_at + (event.deadline_seconds or float("inf")) + OVERTIME_SECONDS
        while not self._closed.wait(FOLLOW_SECONDS):
            if self._is_over():
                return WorkerResult(outcome="finished")
            status = self._status.read()
            held = None if status is None else status.workers.get(str(event.worker_id))
            now = time.monotonic()
            if held is not None and held > event.generation:
                return WorkerResult(outcome="duplicate")
            if held == event.generation:
                seen = True
                if now < overtime_at:
                    continue
                raise AttemptError(f"{name}: still registered long after its deadline")
            if seen:
                return WorkerResult(outcome="deadline")
            if now - started_at > REGISTRATION_SECONDS:
                break
        raise AttemptError(f"{name}: {error}, and it is not at work") from error

    def _read_answer(self, event: WorkerEvent, said: Invocation) -> WorkerResult:
        name = f"{'evaluator' if event.role == 'evaluate' else 'worker'} {event.worker_id}"
        report = parse_report(said.log_tail)
        if said.failed:
            seconds = 0.0 if report is None else report.billed_seconds
            self._add_billed(0.0, seconds if report is not None else None)
            raise function_error(name, said)
        try:
            result = WorkerResult.from_plain(parse_json(said.payload))
        except (ValueError, CirrusError) as error:
            text = said.payload[:200].decode(errors="replace")
            raise AttemptError(f"{name} gave no result, but {text!r}") from error
        self._add_billed(result.seconds, None if report is None else report.billed_seconds)
        return result

    def _add_billed(self, worker_seconds: float, billed_seconds: float | None) -> None:
        has_report = billed_seconds is not None
        with self._lock:
            held = self._billed
            self._billed = BilledTime(
                invocations=held.invocations + 1,
                reported=held.reported + has_report,
                worker_seconds=held.worker_seconds + (worker_seconds if has_report else 0.0),
                billed_seconds=held.billed_seconds + (billed_seconds or 0.0),
            )


def function_error(name: str, said: Invocation) -> AttemptError:
    """Return the error for a function that raised one, or that the platform ended."""
    try:
        raw = parse_json(said.payload)
        kind, text = str(raw.get("errorType", "")), str(raw.get("errorMessage", ""))
    except (AttributeError, ValueError):
        kind, text = "", said.payload[:200].decode(errors="replace")
    if kind in BROKEN_FUNCTION:
        return AttemptError(
            f"{name}: the function is broken ({text}): run 'cirrus deploy' again", is_permanent=True
        )
    if "OutOfMemory" in kind or "signal: killed" in text:
        text += ": it may need more memory: raise worker_memory_mb"
    lines = [line for line in said.log_tail.splitlines() if line.strip()][-LOG_LINES:]
    words = "; its last words:\n" + "\n".join(lines) if lines else ""
    return AttemptError.of_kind(f"{name}: {kind}: {text}{words}", kind)
