"""One invocation for each generation of a worker: throttling, lost answers, errors, and what Lambda bills."""

from __future__ import annotations

import dataclasses
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from stand_ins import make_config

from cirrus.client_backend.aws import invocations
from cirrus.client_backend.aws.facade import AwsFacade, Invocation
from cirrus.client_backend.aws.invocations import Invoker
from cirrus.client_backend.aws.tail_log import LambdaReport, parse_report
from cirrus.client_backend.fleet import AttemptError, WorkerEvent
from cirrus.client_backend.status_cache import StatusCache
from cirrus.errors import AccessDeniedError, LostResponseError, NotReadyError, ThrottledError
from cirrus.metrics import RunState, RunStatus
from cirrus.run_folder import RunFolder
from cirrus.storage import drop_memory_store

REPORT = (
    "START RequestId: 8f5a\nEND RequestId: 8f5a\n"
    "REPORT RequestId: 8f507cfc-xmpl-4697-b07a-ac58fc914c95\tDuration: 79.67 ms\tBilled Duration: 1480 ms\t"
    "Memory Size: 1769 MB\tMax Memory Used: 73 MB\tInit Duration: 1399.90 ms\t\n"
)
DONE = {"outcome": "finished", "steps": 3, "rows": 30, "seconds": 1.2}


class Functions(AwsFacade):
    """Answers invocations from a list, and remembers them; everything else is not there."""

    def __init__(self, *answers: Invocation | Exception | Callable[[], Invocation]) -> None:
        self.answers = list(answers)
        self.payloads: list[dict[str, Any]] = []
        self._answering = threading.Lock()

    def invoke(self, function: str, payload: bytes) -> Invocation:
        """Give the next answer."""
        with self._answering:
            self.payloads.append(json.loads(payload))
            answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, Invocation) else answer()


def said(raw: Any, *, failed: bool = False, log_tail: str = "") -> Invocation:
    """Return an answer."""
    return Invocation(payload=json.dumps(raw).encode(), failed=failed, log_tail=log_tail)


def event(generation: int = 7, role: str = "train") -> WorkerEvent:
    """Return what worker 0 is invoked with."""
    return WorkerEvent(role=role, run_url="x", worker_id=0, generation=generation, deadline_seconds=60.0)


@pytest.fixture
def folder() -> Iterator[RunFolder]:
    """The folder of a run at work."""
    made = RunFolder("memory://test-invocations/runs/r")
    made.create(make_config(run_id="r"))
    made.write_status(RunStatus(state=RunState.RUNNING))
    yield made
    drop_memory_store("test-invocations")


def make_invoker(functions: Functions, folder: RunFolder | None = None, **options: Any) -> Invoker:
    """Return an invoker."""
    return Invoker(
        functions,
        "worker",
        **{"wanted": 4, "notice": lambda _: None, **options},
        status=None if folder is None else StatusCache(folder, 0.0),
        rng=random.Random(0),
    )


def test_an_answer_is_a_result() -> None:
    """The function gets the event as JSON, and its answer is how the generation ended."""
    functions = Functions(said(DONE))
    result = make_invoker(functions).invoke(event())
    assert (result.outcome, result.steps, result.rows) == ("finished", 3, 30)
    assert functions.payloads == [event().to_plain()]


def test_throttled_invocations_are_tried_again_and_the_user_hears_of_it_once() -> None:
    """Nothing was started, so the same generation may be asked for again."""
    notices: list[str] = []
    functions = Functions(*[ThrottledError("slow down")] * 3, said(DONE))
    assert make_invoker(functions, notice=notices.append).invoke(event()).outcome == "finished"
    assert [payload["generation"] for payload in functions.payloads] == [7] * 4
    assert len(notices) == 1
    assert "4 functions" in notices[0]
    assert "Service Quotas" in notices[0]


def test_a_function_that_is_being_made_ready_is_waited_for() -> None:
    """AWS takes a while to bring back what was idle for weeks."""
    notices: list[str] = []
    functions = Functions(NotReadyError("soon"), said(DONE))
    assert make_invoker(functions, notice=notices.append).invoke(event()).outcome == "finished"
    assert notices == ["the function worker is not ready yet; it is invoked again until it is"]


def test_waiting_for_a_throttled_worker_ends_with_the_run(folder: RunFolder) -> None:
    """A run that got by without the worker needs it no more; closing ends the wait, too."""
    functions = Functions(*[ThrottledError("slow down")] * 100)
    folder.write_status(RunStatus(state=RunState.FINISHED))
    assert make_invoker(functions, folder).invoke(event()).outcome == "finished"
    closed = make_invoker(functions)
    closed.close()
    with pytest.raises(AttemptError, match="being ended"):
        closed.invoke(event())


def test_throttling_with_nothing_at_work_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing of the run works, refusals for a long time are an error."""
    monkeypatch.setattr(invocations, "THROTTLED_SECONDS", -1.0)
    with pytest.raises(ThrottledError):
        make_invoker(Functions(ThrottledError("slow down"))).invoke(event())


def test_an_evaluator_goes_first() -> None:
    """Where functions are scarce, training workers come after the evaluator, without which no run ends."""
    order: list[str] = []
    evaluator_may = threading.Event()

    def answer() -> Invocation:
        order.append(threading.current_thread().name)
        if order[-1] == "evaluate":
            evaluator_may.set()
        return said(DONE)

    invoker = make_invoker(Functions(answer, answer), evaluator_first=True)
    threads = [
        threading.Thread(target=invoker.invoke, args=(event(role=role),), name=role)
        for role in ("train", "evaluate")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10.0)
    assert order == ["evaluate", "train"]
    assert evaluator_may.is_set()


class TestLostAnswers:
    """No answer came: shard 0's registrations tell whether the worker lives."""

    @pytest.fixture(autouse=True)
    def _quick(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(invocations, "FOLLOW_SECONDS", 0.01)

    @staticmethod
    def _write(folder: RunFolder, workers: dict[str, int], state: RunState = RunState.RUNNING) -> None:
        folder.write_status(RunStatus(state=state, workers=workers))

    def test_a_registered_worker_is_waited_for(self, folder: RunFolder) -> None:
        """Nobody is started in its place as long as it is registered; then its generation is over."""
        self._write(folder, {"0": 7})
        results: list[Any] = []
        invoker = make_invoker(Functions(LostResponseError("broken")), folder)
        thread = threading.Thread(target=lambda: results.append(invoker.invoke(event())))
        thread.start()
        time.sleep(0.1)  # nothing may happen
        assert not results
        self._write(folder, {"1": 7})
        thread.join(10.0)
        assert results[0].outcome == "deadline"

    def test_a_worker_that_was_replaced_is_a_duplicate(self, folder: RunFolder) -> None:
        """A newer generation works: this one is out of date."""
        self._write(folder, {"0": 8})
        result = make_invoker(Functions(LostResponseError("broken")), folder).invoke(event())
        assert result.outcome == "duplicate"

    def test_the_end_of_the_run_is_the_end(self, folder: RunFolder) -> None:
        """A run that is over needs no answer."""
        self._write(folder, {}, RunState.KILLED)
        assert (
            make_invoker(Functions(LostResponseError("broken")), folder).invoke(event()).outcome == "finished"
        )

    def test_a_worker_that_never_came(self, folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
        """After the time that a cold start may take, a new generation may try."""
        monkeypatch.setattr(invocations, "REGISTRATION_SECONDS", 0.05)
        with pytest.raises(AttemptError, match="generation 7: broken, and it is not at work") as caught:
            make_invoker(Functions(LostResponseError("broken")), folder).invoke(event())
        assert not caught.value.is_permanent

    def test_a_worker_that_stays_too_long(self, folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
        """A registration beyond the deadline is one that hangs."""
        monkeypatch.setattr(invocations, "OVERTIME_SECONDS", -60.0)
        self._write(folder, {"0": 7})
        with pytest.raises(AttemptError, match="long after its deadline"):
            make_invoker(Functions(LostResponseError("broken")), folder).invoke(event())

    def test_a_job_without_shards_tries_again(self) -> None:
        """Nobody knows who works on a job over chunks, where doing one twice is harmless."""
        with pytest.raises(AttemptError, match="broken"):
            make_invoker(Functions(LostResponseError("broken"))).invoke(event())


ERRORS = [
    ({"errorType": "ConfigError", "errorMessage": "l1: is wrong"}, "ConfigError: l1: is wrong", True),
    ({"errorType": "StorageError", "errorMessage": "S3 answered 500"}, "S3 answered 500", False),
    ({"errorType": "Sandbox.Timedout", "errorMessage": "after 900 s"}, "after 900 s", False),
    ({"errorType": "Runtime.OutOfMemory", "errorMessage": "killed"}, "raise worker_memory_mb", False),
    ({"errorType": "Runtime.ImportModuleError", "errorMessage": "no lz4"}, "run 'cirrus deploy' again", True),
    ("odd", "odd", False),
]


@pytest.mark.parametrize(("raw", "text", "is_permanent"), ERRORS)
def test_a_function_that_failed(raw: Any, text: str, is_permanent: bool) -> None:
    """Its error is told with the last lines of its log, and whether another attempt could heal it."""
    functions = Functions(said(raw, failed=True, log_tail="one\ntwo\nthe last line"))
    with pytest.raises(AttemptError, match=text) as caught:
        make_invoker(functions).invoke(event())
    assert caught.value.is_permanent is is_permanent
    assert ("the last line" in str(caught.value)) == ("broken" not in str(caught.value))


@pytest.mark.parametrize("raw", [None, [], {"outcome": "odd"}, {"steps": 1}, "text"])
def test_an_answer_that_is_no_result(raw: Any) -> None:
    """A function that is none of ours is told from one that failed."""
    with pytest.raises(AttemptError, match="gave no result"):
        make_invoker(Functions(said(raw))).invoke(event())


def test_refused_rights_are_for_the_fleet_to_judge() -> None:
    """What AWS denies is passed on, and is permanent for the fleet."""
    with pytest.raises(AccessDeniedError) as caught:
        make_invoker(Functions(AccessDeniedError("no"))).invoke(event())
    assert AttemptError.of("worker 0", caught.value).is_permanent


def test_reports_correct_what_workers_say() -> None:
    """Billed time replaces the worker's own; without a report the worker is believed."""
    invoker = make_invoker(Functions(said(DONE, log_tail=REPORT), said(DONE)))
    invoker.invoke(event())
    invoker.invoke(event())
    billed = invoker.billed
    assert (billed.invocations, billed.reported) == (2, 1)
    assert billed.correction_seconds == pytest.approx(1.48 - 1.2)


RECORDED: list[tuple[str, LambdaReport | None]] = [
    (
        REPORT,
        LambdaReport(
            request_id="8f507cfc-xmpl-4697-b07a-ac58fc914c95",
            billed_seconds=1.48,
            seconds=0.07967,
            init_seconds=1.3999,
            memory_mb=1769,
            max_memory_mb=73,
        ),
    ),
    (
        "REPORT RequestId: 1-2\tDuration: 240012.11 ms\tBilled Duration: 240013 ms\tMemory Size: 512 MB\t"
        "Max Memory Used: 120 MB\tXRAY TraceId: 1-5e34a614-10bdxmplf1fb\tSegmentId: 07f5xmpl2d1f6f85\t"
        "Sampled: true",
        LambdaReport(
            request_id="1-2", billed_seconds=240.013, seconds=240.01211, memory_mb=512, max_memory_mb=120
        ),
    ),
    (
        '{"time":"2023-03-13T18:56:24.046000Z","type":"platform.report","record":{"requestId":"6d68ca91-49c9",'
        '"metrics":{"durationMs":411.5,"billedDurationMs":412,"memorySizeMB":1024,"maxMemoryUsedMB":512,'
        '"initDurationMs":139.25},"status":"success"}}',
        LambdaReport(
            request_id="6d68ca91-49c9",
            billed_seconds=0.412,
            seconds=0.4115,
            init_seconds=0.13925,
            memory_mb=1024,
            max_memory_mb=512,
        ),
    ),
    ("REPORT RequestId: 1\tDuration: 3.00 ms\tBilled Dur", None),
    ('{"type":"platform.report","record":{}}', None),
    ('{"message": "REPORT of a user", "type": "app"}\nEND RequestId: 1', None),
    ("{", None),
    ("", None),
]


@pytest.mark.parametrize(("log_tail", "expected"), RECORDED)
def test_recorded_reports(log_tail: str, expected: LambdaReport | None) -> None:
    """Text and JSON, cold and warm, traced or not, whole or cut."""
    assert parse_report(log_tail) == expected


def test_the_last_report_counts() -> None:
    """The tail may hold the end of another generation."""
    first = REPORT.replace("1480 ms", "9 ms")
    found = parse_report(first + REPORT)
    assert found is not None
    assert found.billed_seconds == 1.48


def test_many_threads_share_one_status(folder: RunFolder) -> None:
    """The status is read once in a while, however many ask; reading anew is always possible."""
    now = [0.0]
    cache = StatusCache(folder, 1.0, clock=lambda: now[0])
    first = cache.read()
    assert first is not None
    folder.write_status(dataclasses.replace(first, updates=5))
    assert cache.read() == first
    assert (cache.read_now() or first).updates == 5
    now[0] = 1.0
    assert (cache.read() or first).updates == 5
