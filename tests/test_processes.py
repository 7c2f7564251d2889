"""One child process at a time: its input, its output, its end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from stand_ins import processes

from cirrus.client_backend.fleet import WorkerEvent
from cirrus.client_backend.local import LocalCommands, LocalLauncher
from cirrus.client_backend.processes import THREAD_LIMITS, ChildProcess, ChildSet, child_environment
from cirrus.client_backend.runs import new_run_id
from cirrus.errors import RunError


class TestChildren:
    """One child process."""

    def run(self, program: str, **options: Any) -> Any:
        return ChildProcess([sys.executable, "-c", program], **options).wait()

    def test_its_last_line_and_exit_code_are_its_result(self) -> None:
        """The result is the last line that is not empty, whatever was printed before."""
        end = self.run("print('noise'); print('result'); print(); raise SystemExit(4)")
        assert (end.last_line, end.returncode) == (b"result", 4)
        assert end.reason == "ended with exit code 4"

    def test_the_first_line_of_input_reaches_it(self) -> None:
        """The event arrives as one line; standard input stays open after it."""
        end = self.run("import sys; print(sys.stdin.readline().strip())", input_line=b"event")
        assert end.last_line == b"event"

    def test_much_output_does_not_block_it(self) -> None:
        """A child that prints more than a pipe holds is read all the time."""
        end = self.run("for i in range(20_000): print('x' * 50)\nprint('end')")
        assert end.last_line == b"end"

    def test_only_the_end_of_standard_error_is_kept(self, tmp_path: Path) -> None:
        """Errors quote the last lines of standard error; the log file has all of it, of every child."""
        log = tmp_path / "logs" / "a.log"
        program = "import sys; [print(i, file=sys.stderr) for i in range(5000)]"
        first = self.run(program, log_path=log)
        second = self.run("import sys; print('second', file=sys.stderr)", log_path=log)
        assert first.stderr_tail.splitlines()[-1] == "4999"
        assert len(first.stderr_tail.splitlines()) <= 12
        assert second.stderr_tail == "second"
        assert len(log.read_text().splitlines()) == 5001

    def test_a_signal_is_named(self) -> None:
        """A child that was killed says so."""
        assert self.run("import os; os.kill(os.getpid(), 9)").reason == "was ended by signal 9"

    def test_a_program_that_does_not_exist_is_an_error_of_the_run(self) -> None:
        """Starting fails with one of Cirrus' errors, naming the program."""
        with pytest.raises(RunError, match="no-such-program"):
            ChildProcess(["/no-such-program"])

    def test_children_get_one_thread_a_library_and_find_this_package(self) -> None:
        """Numeric libraries do not fight for the cores; a source folder is found from any working folder."""
        environment = child_environment({"PYTHONPATH": "/first", "HOME": "/h"})
        assert environment.items() >= {**THREAD_LIMITS, "HOME": "/h"}.items()
        assert environment["PYTHONPATH"].split(os.pathsep)[0] == "/first"
        program = "import cirrus; print('found')"
        end = subprocess.run(
            [sys.executable, "-P", "-c", program], cwd="/", env=child_environment(os.environ), check=True
        )
        assert end.returncode == 0

    def test_a_closed_set_starts_nobody(self) -> None:
        """A restart that races with the end of the run loses."""
        children = ChildSet()
        children.close(0.0)
        with pytest.raises(RunError):
            children.run([sys.executable, "-c", ""])


class TestResults:
    """What a worker process says, as the fleet hears it."""

    def invoke(self, program: str) -> Any:
        """Run a program as a worker."""
        commands = LocalCommands(worker=lambda run_url: [sys.executable, "-c", program])
        event = WorkerEvent(role="train", run_url="memory://nowhere", worker_id=0, generation=1)
        return LocalLauncher("memory://nowhere", commands).invoke(event)

    def test_a_result_is_the_last_line(self) -> None:
        """The worker's JSON becomes its result, and what it read was the event."""
        result = self.invoke(
            "import json; assert json.loads(input())['worker_id'] == 0; "
            "print(json.dumps({'outcome': 'deadline', 'steps': 3, 'rows': 5, 'seconds': 0.5}))"
        )
        assert (result.outcome, result.steps, result.rows, result.seconds) == ("deadline", 3, 5, 0.5)

    def test_anything_else_is_an_error_that_quotes_it(self) -> None:
        """Whatever a worker prints, only a result counts."""
        with pytest.raises(RunError, match="without a result; its last line was 'xxx"):
            self.invoke("print('x' * 1_000_000)")

    def test_an_error_report_is_quoted_and_judged(self) -> None:
        """An error that the worker reports comes through; its kind tells whether it can heal."""
        report = 'print(\'{"error": "l1: is wrong", "type": "ConfigError"}\'); raise SystemExit(1)'
        with pytest.raises(RunError, match="worker 0: l1: is wrong") as caught:
            self.invoke(report)
        assert caught.value.is_permanent  # type: ignore[attr-defined]

    def test_a_crash_is_explained_by_its_last_words(self) -> None:
        """Without a report, the end of standard error is what there is to say."""
        with pytest.raises(
            RunError, match=r"(?s)worker 0 ended with exit code 1; .*ZeroDivisionError"
        ) as caught:
            self.invoke("1 / 0")
        assert not caught.value.is_permanent  # type: ignore[attr-defined]


def test_the_test_sees_processes() -> None:
    """The search for leftovers finds a process by a word of its command line: it could find some."""
    marker = new_run_id()
    child = subprocess.Popen([sys.executable, "-c", "input()", marker], stdin=subprocess.PIPE)
    assert [process.pid for process in processes(marker)] == [child.pid]
    assert psutil.pid_exists(child.pid)
    child.communicate()
    assert processes(marker) == []
