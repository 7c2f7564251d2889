"""A worker of a load in a process of its own.

The parent writes requests to the child's standard input and reads answers from its standard output. Each
message is a line of JSON that tells the length of the bytes after it. End of file means that the parent is
gone: the child then removes what the load has written so far, which the parent could not, and ends.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from typing import IO, Any

from cirrus.chunks import discard_chunks
from cirrus.client_backend.load_tasks import (
    BucketResult,
    BucketTask,
    LoadPlan,
    LoadWorker,
    NumberTask,
    ScatterResult,
    ScatterTask,
    do_task,
    error_from_plain,
    error_to_plain,
    scatter_result_from,
    task_to_parts,
)
from cirrus.client_backend.processes import child_environment
from cirrus.config import from_plain
from cirrus.errors import CirrusError, RunError
from cirrus.paramserver.numba_start import hide_scipy
from cirrus.storage import open_store

#: So many times a process that died is replaced, and what it worked on is done again.
MAX_RESTARTS = 3
#: Room in the pipe to a child, in bytes: segments that the parent had to read go through it, 64 kB at a time
#: by default.
PIPE_BYTES = 2**20
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

    Raises:
        RunError: The process could not be started.
    """

    def __init__(self, plan: LoadPlan) -> None:
        self._plan = plan
        self._n_restarts = 0
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed by release)
        # What ends the process may come while another thread replaces it.
        self._lock = threading.Lock()
        self._is_ending = False
        self._start()

    def _start(self) -> None:
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
        _widen(self._stdin)
        with contextlib.suppress(OSError):  # the first request will say why it is dead
            _send(self._stdin, {"plan": dataclasses.asdict(self._plan)})

    @property
    def _stdin(self) -> IO[bytes]:
        assert self._process.stdin is not None
        return self._process.stdin

    def scatter(self, task: ScatterTask) -> ScatterResult:
        """See :meth:`LoadWorker.scatter`."""
        return scatter_result_from(self._call("scatter", task)[0])

    def number(self, task: NumberTask) -> NumberTask:
        """See :meth:`LoadWorker.number`."""
        self._call("number", task)
        return task

    def store_bucket(self, task: BucketTask) -> BucketResult:
        """See :meth:`LoadWorker.store_bucket`."""
        return BucketResult.from_bytes(self._call("store_bucket", task)[1])

    def _call(self, name: str, task: ScatterTask | NumberTask | BucketTask) -> tuple[dict[str, Any], bytes]:
        request, data = task_to_parts(task)
        while (answer := self._asked({"call": name, "request": request}, data)) is None:
            self._restart()  # objects are written whole, so that whatever it had done is just done again
        plain, payload = answer
        if "error" in plain:
            raise error_from_plain(plain)
        return plain["result"], payload

    def _asked(self, message: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes] | None:
        """Return the answer to a message; None: the process is dead."""
        assert self._process.stdout is not None
        try:
            _send(self._stdin, message, data)
            return _receive(self._process.stdout)
        except OSError:  # a broken pipe
            return None

    def _restart(self) -> None:
        """Replace the process, which is dead, unless it was told to end or too many before it died."""
        end = self._process.wait()
        with self._lock:
            if self._is_ending or self._n_restarts == MAX_RESTARTS:
                how = f"was killed by signal {-end}" if end < 0 else f"ended with exit code {end}"
                times = f", as {self._n_restarts} others did before it" if self._n_restarts else ""
                if self._plan.is_temporary:
                    remedy = "load again"
                else:
                    remedy = "what is parsed is kept: load again, as you did, to go on with it"
                raise RunError(
                    f"a process for loading {how}{times} ({self._tail()}): {remedy}; if there is too little "
                    "memory for it, with n_processes=1"
                )
            self._n_restarts += 1
            for pipe in (self._stdin, self._process.stdout):
                assert pipe is not None
                with contextlib.suppress(OSError):
                    pipe.close()
            self._start()

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
        with self._lock:
            self._is_ending = True
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


def _widen(pipe: IO[bytes]) -> None:
    """Let more fit into a pipe where the system allows it: fewer changes between processes."""
    set_size = getattr(fcntl, "F_SETPIPE_SZ", None)
    if set_size is not None:
        with contextlib.suppress(OSError):  # more than this user may have
            fcntl.fcntl(pipe, set_size, PIPE_BYTES)


def main() -> None:
    """Serve one parent until it says end, or is gone."""
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    first = _receive(stdin)
    if first is None:
        return
    plan = from_plain(LoadPlan, first[0]["plan"], "plan")
    worker = LoadWorker(plan)
    while (message := _receive(stdin)) is not None:
        plain, data = message
        if plain["call"] == "end":
            return
        try:
            answer, payload = do_task(worker, plain["call"], plain["request"], data)
            reply: dict[str, Any] = {"result": answer}
        except CirrusError as error:
            reply, payload = error_to_plain(error), b""
        try:
            _send(stdout, reply, payload)
        except BrokenPipeError:
            break
    _clean_up(plan)


def _clean_up(plan: LoadPlan) -> None:
    """Remove what an unfinished load has left, if nothing is to go on with it."""
    if not plan.is_temporary:
        return
    shutil.rmtree(plan.folder, ignore_errors=True)
    with contextlib.suppress(CirrusError):
        discard_chunks(open_store(plan.url), plan.prefix)


if __name__ == "__main__":
    hide_scipy()
    main()
    # All is written: to take down the numeric libraries would only let the parent wait.
    os._exit(0)
