"""A worker of a load in a process of its own.

The parent writes requests to the child's standard input and reads answers from its standard output. Each
message is a line of JSON that tells the length of the bytes after it. End of file means that the parent is
gone: the child then removes what the load has written so far, which the parent could not, and ends.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
from typing import IO, Any

import cirrus.errors
from cirrus.chunks import discard_chunks
from cirrus.client_backend.load_tasks import (
    BucketResult,
    BucketTask,
    LoadPlan,
    LoadWorker,
    ScatterResult,
    bucket_result_from,
    plan_to_plain,
    result_to_parts,
    scatter_result_from,
)
from cirrus.client_backend.processes import child_environment
from cirrus.config import from_plain
from cirrus.errors import CirrusError, RunError
from cirrus.storage import open_store

#: How much of a dead child's standard error goes into the text of an error.
STDERR_TAIL_BYTES = 2000
#: How long a child may take to end once it was told to, before it is killed.
CLOSE_SECONDS = 5.0


def _send(stream: IO[bytes], plain: dict[str, Any], data: bytes = b"") -> None:
    stream.write(json.dumps({**plain, "n_bytes": len(data)}).encode() + b"\n")
    stream.write(data)
    stream.flush()


def _receive(stream: IO[bytes]) -> tuple[dict[str, Any], bytes] | None:
    """Return the next message, or None at end of file."""
    line = stream.readline()
    if not line.endswith(b"\n"):
        return None
    plain = json.loads(line)
    n_bytes = plain.pop("n_bytes")
    data = stream.read(n_bytes)
    return (plain, data) if len(data) == n_bytes else None


class RemoteLoadWorker:
    """Stands for a :class:`LoadWorker` in a child process.

    Args:
        plan: The load.
        number: Which of the workers this is.

    Raises:
        RunError: The process could not be started.
    """

    def __init__(self, plan: LoadPlan, number: int) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed by release)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=child_environment(os.environ),
                # Ctrl-C in the terminal is for the parent, which ends its children in order.
                start_new_session=True,
            )
        except OSError as error:
            self._errors.close()
            raise RunError(f"a process for loading cannot be started: {error}") from error
        with contextlib.suppress(OSError):  # the first request will say why it is dead
            _send(self._stdin, {"plan": plan_to_plain(plan), "number": number})

    @property
    def _stdin(self) -> IO[bytes]:
        assert self._process.stdin is not None
        return self._process.stdin

    def scatter(self, segment: int, first_line: int, data: bytes, file_position: int) -> ScatterResult:
        """See :meth:`LoadWorker.scatter`."""
        request = {"segment": segment, "first_line": first_line, "file_position": file_position}
        return scatter_result_from(self._call("scatter", request, data)[0])

    def store_bucket(self, task: BucketTask) -> BucketResult:
        """See :meth:`LoadWorker.store_bucket`."""
        return bucket_result_from(*self._call("store_bucket", dataclasses.asdict(task)))

    def _call(self, name: str, request: dict[str, Any], data: bytes = b"") -> tuple[dict[str, Any], bytes]:
        assert self._process.stdout is not None
        try:
            _send(self._stdin, {"call": name, "request": request}, data)
            answer = _receive(self._process.stdout)
        except OSError:  # a broken pipe
            answer = None
        if answer is None:
            raise RunError(
                f"a process for loading ended unexpectedly ({self._process.wait()}): {self._tail()}"
            )
        plain, payload = answer
        if "error" in plain:
            kind = getattr(cirrus.errors, plain["error"], RunError)
            raise kind(*plain["arguments"])
        return plain["result"], payload

    def _tail(self) -> str:
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - STDERR_TAIL_BYTES))
        return self._errors.read().decode(errors="replace").strip() or "it left no message"

    def finish(self) -> None:
        """Ask the process to end in order: its work is done, and nothing is to be removed."""
        with contextlib.suppress(OSError):
            _send(self._stdin, {"call": "end", "request": {}})

    def kill(self) -> None:
        """End the process at once. A call that waits for it raises a RunError."""
        self._process.kill()

    def release(self) -> None:
        """Wait for the end of the process, which was told to, when no call waits for it any more."""
        try:
            self._process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        for file in (self._stdin, self._process.stdout, self._errors):
            with contextlib.suppress(OSError):  # what it did not read any more
                file.close()


def main() -> None:
    """Serve one parent until it says end, or is gone."""
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    first = _receive(stdin)
    if first is None:
        return
    plan = from_plain(LoadPlan, first[0]["plan"], "plan")
    worker = LoadWorker(plan, first[0]["number"])
    while (message := _receive(stdin)) is not None:
        plain, data = message
        if plain["call"] == "end":
            return
        try:
            answer, payload = result_to_parts(_work(worker, plain["call"], plain["request"], data))
            reply: dict[str, Any] = {"result": answer}
        except CirrusError as error:
            arguments = [str(argument) for argument in _arguments(error)]
            reply, payload = {"error": type(error).__name__, "arguments": arguments}, b""
        try:
            _send(stdout, reply, payload)
        except BrokenPipeError:
            break
    _clean_up(plan)


def _arguments(error: CirrusError) -> tuple[Any, ...]:
    """Return what an error is made of (its text, but for a ConfigError)."""
    reduced = error.__reduce__()
    return reduced[1] if isinstance(reduced, tuple) and isinstance(reduced[1], tuple) else error.args


def _work(
    worker: LoadWorker, call: str, request: dict[str, Any], data: bytes
) -> ScatterResult | BucketResult:
    if call == "scatter":
        return worker.scatter(data=data, **request)
    return worker.store_bucket(BucketTask(**request))


def _clean_up(plan: LoadPlan) -> None:
    """Remove what an unfinished load has left."""
    shutil.rmtree(plan.folder, ignore_errors=True)
    with contextlib.suppress(CirrusError):
        discard_chunks(open_store(plan.url), plan.prefix)


if __name__ == "__main__":
    main()
