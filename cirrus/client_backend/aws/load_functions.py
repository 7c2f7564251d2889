"""Functions as the workers of a load: one invocation a task, which may be done twice.

Text that lies in S3 is read by the function itself; other text is put into the load's folder for it.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import random
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

import lz4.frame

from cirrus.client_backend.aws.facade import AwsFacade, Invocation
from cirrus.client_backend.aws.invocations import THROTTLED, THROTTLED_SECONDS, function_error
from cirrus.client_backend.fleet import AttemptError
from cirrus.client_backend.load_function import ROLE
from cirrus.client_backend.load_tasks import (
    BucketResult,
    BucketTask,
    LoadPlan,
    Location,
    NumberTask,
    ScatterResult,
    ScatterTask,
    error_from_plain,
    scatter_result_from,
    segment_key,
    task_to_parts,
)
from cirrus.errors import CloudError, LostResponseError, NotReadyError, RunError, ThrottledError
from cirrus.storage import open_store

#: Tries of a task whose function ended without an answer.
ATTEMPTS = 4
#: Text for functions lies below this key of the load's folder.
TEXT = "text/"


class LoadFunctions:
    """Invokes a function for each task of a load, as often as it takes; shared by all workers of the load.

    Args:
        facade: AWS; the last worker that is released closes it.
        function: The function's name.
        n_workers: How many share it.
        notice: Takes what the user should know.
        rng: Where the jitter comes from.
    """

    def __init__(
        self,
        facade: AwsFacade,
        function: str,
        n_workers: int,
        *,
        notice: Callable[[str], None],
        rng: random.Random | None = None,
    ) -> None:
        self._facade = facade
        self._function = function
        self._notice = notice
        self._rng = rng or random.Random()  # spreads retries  # nosec B311
        self._ended: Future[None] = Future()
        self._lock = threading.Lock()
        self._users = n_workers
        self._answered_at = time.monotonic()

    def call(self, event: Mapping[str, Any]) -> tuple[dict[str, Any], bytes]:
        """Have a function do a task; return what came of it.

        Raises:
            CirrusError: What the task raised.
            CloudError: AWS refuses.
            RunError: The function ended without an answer again and again, or the load is being ended.
        """
        data = json.dumps(event).encode()
        for attempt in range(1, ATTEMPTS + 1):
            try:
                said = self._invoke(data)
            except LostResponseError as error:
                problem: RunError = AttemptError(f"{self._function}: {error}")
            else:
                if not said.failed:
                    return self._read(said)
                problem = function_error(self._function, said)
                if isinstance(problem, AttemptError) and problem.is_permanent:
                    break
            self._pause(attempt)
        raise RunError(f"a function of the load failed: {problem}") from problem

    def _invoke(self, data: bytes) -> Invocation:
        """Invoke until it is not refused."""
        refusals = 0
        while True:
            try:
                said = self._ask(data)
            except (NotReadyError, ThrottledError) as error:
                refusals += 1
                if time.monotonic() - self._answered_at > THROTTLED_SECONDS:
                    raise
                self._say_refused(error)
                self._pause(refusals)
            else:
                self._answered_at = time.monotonic()
                return said

    def _ask(self, data: bytes) -> Invocation:
        """Invoke once, in a thread that is left alone when the load is being ended meanwhile.

        What its function still does then is what another attempt at the same load would do.
        """
        answer: Future[Invocation] = Future()

        def invoke() -> None:
            try:
                answer.set_result(self._facade.invoke(self._function, data))
            except BaseException as error:  # noqa: BLE001 (raised again for whoever waits)
                answer.set_exception(error)

        if not self._ended.done():
            threading.Thread(target=invoke, name=f"invoke-{self._function}", daemon=True).start()
        either: tuple[Future[Any], ...] = (answer, self._ended)
        wait(either, return_when=FIRST_COMPLETED)
        if not answer.done():
            raise RunError("the load is being ended")
        return answer.result()

    def _say_refused(self, error: CloudError) -> None:
        if isinstance(error, ThrottledError):
            self._notice(
                f"AWS runs fewer functions than the load wants ({error}); it goes on with those it gets. Ask"
                " for more: Service Quotas, AWS Lambda, 'Concurrent executions'"
            )

    def _pause(self, failures: int) -> None:
        wait((self._ended,), self._rng.uniform(0.0, THROTTLED.bound(min(failures, 30))))

    def _read(self, said: Invocation) -> tuple[dict[str, Any], bytes]:
        try:
            plain = json.loads(said.payload)
            failure = error_from_plain(plain) if "error" in plain else None
            if failure is None:
                return plain["result"], base64.b64decode(plain["payload"], validate=True)
        except (KeyError, TypeError, ValueError) as error:
            text = said.payload[:200].decode(errors="replace")
            raise RunError(
                f"{self._function} gave no result, but {text!r}: if it is older than this client, run 'cirrus"
                " deploy' again"
            ) from error
        raise failure

    def end(self) -> None:
        """Invoke nothing any more, and wait for no answer."""
        with self._lock:
            if not self._ended.done():
                self._ended.set_result(None)

    def release(self) -> None:
        """Note that a worker needs this no more."""
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._facade.close()


class FunctionLoadWorker:
    """Stands for a :class:`~cirrus.client_backend.load_tasks.LoadWorker` in functions.

    Args:
        functions: Shared by all workers of the load.
        plan: The load.
    """

    def __init__(self, functions: LoadFunctions, plan: LoadPlan) -> None:
        self._functions = functions
        self._plan = plan
        self._plain_plan = dataclasses.asdict(plan)
        self._folder = open_store(plan.folder)

    def scatter(self, task: ScatterTask) -> ScatterResult:
        """See :meth:`LoadWorker.scatter`."""
        if task.location is not None:
            return scatter_result_from(self._call("scatter", task)[0])
        segment = task.segment
        key = segment_key(TEXT, segment.file, segment.number)
        self._folder.put(key, lz4.frame.compress(segment.data))
        location = Location(
            url=self._plan.folder, key=key, begin=0, n_bytes=len(segment.data), is_packed=True
        )
        empty = dataclasses.replace(segment, data=b"")
        result = self._call("scatter", dataclasses.replace(task, segment=empty, location=location))[0]
        self._folder.delete(key)
        return scatter_result_from(result)

    def number(self, task: NumberTask) -> NumberTask:
        """See :meth:`LoadWorker.number`."""
        self._call("number", task)
        return task

    def store_bucket(self, task: BucketTask) -> BucketResult:
        """See :meth:`LoadWorker.store_bucket`."""
        return BucketResult.from_bytes(self._call("store_bucket", task)[1])

    def _call(self, name: str, task: ScatterTask | NumberTask | BucketTask) -> tuple[dict[str, Any], bytes]:
        request, _ = task_to_parts(task)
        return self._functions.call(
            {"role": ROLE, "plan": self._plain_plan, "call": name, "request": request}
        )

    def finish(self) -> None:
        """See :meth:`RemoteWorker.finish`."""

    def kill(self) -> None:
        """See :meth:`RemoteWorker.kill`; a function that is at work is not waited for."""
        self._functions.end()

    def release(self) -> None:
        """See :meth:`RemoteWorker.release`."""
        self._functions.release()
