"""The function's entry point: under Lambda's own runtime client, its log lines and its metrics."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import real_runs
from aws_services import Answer, Request, answering
from stand_ins import eventually

import cirrus
from cirrus.client_backend.processes import child_environment
from cirrus.client_backend.runs import Run

PACKAGE = Path(__file__).parents[1] / "lambda_package"
WAIT_SECONDS = 30.0


class RuntimeApi:
    """The interface that Lambda gives to a function's process (version 2018-06-01), as far as it is needed.

    Attributes:
        events: What to invoke the function with next.
        answers: What it answered: the kind (``response`` or ``error``) and the body.
    """

    def __init__(self) -> None:
        self.events: queue.Queue[tuple[dict[str, Any], float]] = queue.Queue()
        self.answers: queue.Queue[tuple[str, Any]] = queue.Queue()
        self._number = 0

    def answer(self, request: Request) -> Answer:
        """Answer the function's process."""
        if request.path.endswith("/invocation/next"):
            event, deadline = self.events.get()
            self._number += 1
            return Answer(
                200,
                json.dumps(event).encode(),
                {
                    "Lambda-Runtime-Aws-Request-Id": f"request-{self._number}",
                    "Lambda-Runtime-Deadline-Ms": str(int(deadline * 1000)),
                    "Lambda-Runtime-Invoked-Function-Arn": "arn:aws:lambda:us-east-1:1:function:worker",
                    "Content-Type": "application/json",
                },
            )
        self.answers.put((request.path.rpartition("/")[2], json.loads(request.body)))
        return Answer(202, b"")


class Function:
    """A function's process under the real runtime client."""

    def __init__(self, api: RuntimeApi, url: str, log: Path) -> None:
        self._api = api
        self._log = log
        environment = {
            **child_environment(os.environ),
            "AWS_LAMBDA_RUNTIME_API": url.removeprefix("http://"),
            "AWS_LAMBDA_FUNCTION_NAME": "worker",
            "AWS_LAMBDA_FUNCTION_VERSION": "1",
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "1769",
            "LAMBDA_TASK_ROOT": str(PACKAGE),
            "_HANDLER": "cirrus_lambda.handler",
        }
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "awslambdaric", "cirrus_lambda.handler"],
                cwd=PACKAGE,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def invoke(self, event: dict[str, Any], seconds: float) -> tuple[str, Any]:
        """Invoke the function; return the kind of its answer, and the answer."""
        self._api.events.put((event, time.time() + seconds))
        return self._api.answers.get(timeout=WAIT_SECONDS)

    def lines(self) -> list[dict[str, Any]]:
        """Return what it logged as JSON."""
        return [json.loads(line) for line in self._log.read_text().splitlines() if line.startswith("{")]


@pytest.fixture
def function(tmp_path: Path) -> Iterator[Function]:
    """A function's process."""
    api = RuntimeApi()
    with answering(api.answer) as url:
        made = Function(api, url, tmp_path / "function.log")
        yield made
        made.process.kill()
        made.process.wait()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """A run whose worker 0 is not started by its client, and waits for one."""
    rows = real_runs.make_dataset(str(tmp_path / "rows"))
    with cirrus.LocalBackend(root=tmp_path).start(real_runs.plan(rows, n_workers=1, n_shards=1)) as started:
        eventually(lambda: started.status.updates > 0)
        yield started


def test_the_handler_works_under_lambdas_own_runtime_client(function: Function, run: Run) -> None:
    """It trains until the platform's deadline, answers, and is invoked again; nothing secret is logged."""
    event = {"role": "train", "run_url": run.url, "worker_id": 5, "generation": 1, "deadline_seconds": 60.0}
    kind, result = function.invoke(event, seconds=3.0)
    assert (kind, result["outcome"]) == ("response", "deadline")
    assert result["steps"] > 0
    assert 0 < result["compute_seconds"] < result["seconds"]
    kind, again = function.invoke({**event, "generation": 2}, seconds=2.0)
    assert (kind, again["outcome"]) == ("response", "deadline")
    log = json.dumps(function.lines())
    assert run.folder.token() not in log
    metrics = [line for line in function.lines() if "_aws" in line]
    assert len(metrics) == 2
    first = metrics[0]
    assert first["Samples"] == [float(result["rows"])]
    assert first["Updates"] == [float(result["steps"])]
    assert {
        "FetchMilliseconds",
        "PullMilliseconds",
        "ComputeMilliseconds",
        "PushMilliseconds",
    } <= first.keys()
    (directive,) = first["_aws"]["CloudWatchMetrics"]
    assert directive["Dimensions"] == [["service"]]
    assert (first["run"], first["worker"], first["generation"]) == (run.run_id, 5, 1)
    begun = next(line for line in function.lines() if line.get("message") == "generation begins")
    assert (begun["run"], begun["worker"], begun["level"]) == (run.run_id, 5, "INFO")


def test_errors_are_answers(function: Function, tmp_path: Path) -> None:
    """The client reads the class and the text of an error; the process lives on."""
    kind, said = function.invoke({"role": "sleep"}, seconds=5.0)
    assert (kind, said["errorType"]) == ("error", "ConfigError")
    event = {"role": "train", "run_url": str(tmp_path / "none"), "worker_id": 0, "generation": 1}
    kind, said = function.invoke(event, seconds=5.0)
    assert (kind, said["errorType"]) == ("error", "NotFoundError")
    assert function.process.poll() is None
    failed = [line for line in function.lines() if line.get("message") == "generation failed"]
    assert [line["exception_name"] for line in failed] == ["ConfigError", "NotFoundError"]


def test_a_log_that_cannot_be_had_is_told(tmp_path: Path) -> None:
    """What went wrong with the work is the answer; after work that went well, it is the log's own error."""
    (tmp_path / "aws_lambda_powertools.py").write_text("raise ImportError('no powertools in this zip')")
    program = """
import cirrus_lambda
for works in (False, True):
    if works:
        cirrus_lambda.work = lambda event, context: {"rows": 1, "steps": 1}
    try:
        cirrus_lambda.handler({"role": "sleep"}, None)
    except Exception as error:
        print(type(error).__name__, error)
"""
    environment = child_environment(os.environ)
    path = [str(tmp_path), str(PACKAGE), environment.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**environment, "PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    failed, worked = done.stdout.splitlines()
    assert failed.startswith("ConfigError")
    assert worked == "ImportError no powertools in this zip"
    assert "no powertools in this zip" in done.stderr
