"""Child processes that live no longer than this one.

The contract with a child, a Python program of ours:

- Its standard input stays open as long as its parent lives and wants it. At end of file it ends by itself;
  that also works when the parent was killed with SIGKILL, where no handler could run. One that shall outlive
  its parent is told so in a line, and told to end in another (:mod:`cirrus.paramserver.leash`).
- It is in a session of its own, so that Ctrl-C in the terminal reaches the parent alone, which ends its
  children in order.
- The last line that it prints on standard output is its result; standard error goes to a log file.
- No secret is in its arguments or its environment.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from cirrus.errors import RunError
from cirrus.paramserver.leash import END, OUTLIVE

#: How much of a child's standard error goes into the text of an error.
STDERR_TAIL_BYTES = 4096
STDERR_TAIL_LINES = 12
#: A longer line of output is cut; it is none of ours.
LINE_BYTES = 64 * 1024
#: Bytes that glibc's allocator keeps, and above which it asks the system for pages of their own.
MALLOC_THRESHOLDS = {"MALLOC_TRIM_THRESHOLD_": str(256 * 2**20), "MALLOC_MMAP_THRESHOLD_": str(128 * 2**20)}
#: Workers and shards are parallel as processes; threads of the numeric libraries would only get in their way.
THREAD_LIMITS: Mapping[str, str] = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
}
#: How long a child may take to end after SIGTERM, before it is killed.
TERMINATE_SECONDS = 0.3
#: How long the kernel may take to report the end of a killed child.
REAP_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class ChildExit:
    """How a child ended."""

    returncode: int
    """Exit code, or minus the number of the signal that ended it."""
    last_line: bytes
    """The last line of its standard output that is not empty."""
    stderr_tail: str
    """The last lines of its standard error."""

    @property
    def reason(self) -> str:
        """The exit in words."""
        if self.returncode < 0:
            return f"was ended by signal {-self.returncode}"
        return f"ended with exit code {self.returncode}"


class ChildProcess:
    """A child process under the contract of this module.

    Whoever starts one calls :meth:`wait` soon, in a thread of its own: that is what reads the child's output.

    Args:
        command: Program and arguments.
        input_line: First line on the child's standard input.
        log_path: File that the child's standard error is appended to; None: a temporary one.
        outlives: The child goes on when this process dies.

    Raises:
        RunError: The process could not be started.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        input_line: bytes | None = None,
        log_path: Path | None = None,
        outlives: bool = False,
    ) -> None:
        self._outlives = outlives
        self._log: IO[bytes] = _open_log(log_path)
        self._log_start = self._log.tell()
        self._closing = threading.Lock()
        self._exited = threading.Event()
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env=child_environment(os.environ),
                start_new_session=True,
                bufsize=0,
            )
        except OSError as error:
            self._log.close()
            raise RunError(f"the process {command[0]} cannot be started: {error}") from error
        if input_line is not None:
            self.send(input_line + b"\n")
        if outlives:
            self.send(OUTLIVE)

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """True when it is dead, whether or not anybody waits for it."""
        return self._process.poll() is not None

    def send(self, data: bytes) -> None:
        """Write to the child's standard input; to one that is dead nothing is written.

        Raises:
            ValueError: It was asked to end already.
        """
        assert self._process.stdin is not None
        # A child that is dead already says so by its exit code, better than a broken pipe could.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(data)

    def wait(self, on_line: Callable[[bytes], None] | None = None) -> ChildExit:
        """Read the child's output until it ends; call this once.

        Args:
            on_line: Called with each line of its standard output.
        """
        assert self._process.stdout is not None
        last_line = b""
        try:
            with self._process.stdout as stdout:
                for line in iter(lambda: stdout.readline(LINE_BYTES), b""):
                    last_line = line.strip() or last_line
                    if on_line is not None:
                        on_line(line)
            returncode = self._process.wait()
            return ChildExit(returncode=returncode, last_line=last_line, stderr_tail=self._read_tail())
        finally:
            self._exited.set()
            self.close_input()
            self._log.close()

    def _read_tail(self) -> str:
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(self._log_start, size - STDERR_TAIL_BYTES))
        lines = self._log.read(STDERR_TAIL_BYTES).decode(errors="replace").splitlines()
        return "\n".join(lines[-STDERR_TAIL_LINES:])

    def close_input(self) -> None:
        """Ask the child to end, by the end of its standard input."""
        assert self._process.stdin is not None
        with self._closing, contextlib.suppress(BrokenPipeError):
            if self._outlives and not self._process.stdin.closed:
                self.send(END)
            self._process.stdin.close()

    def terminate(self) -> None:
        """Send SIGTERM."""
        self._process.terminate()

    def kill(self) -> None:
        """Send SIGKILL."""
        self._process.kill()

    def wait_exited(self, timeout: float) -> bool:
        """Wait until :meth:`wait`, in another thread, has seen the end; return whether it has."""
        return self._exited.wait(timeout)


class ChildSet:
    """The children of one run and kind, so that they can be ended together.

    Args:
        outlive: They go on when this process dies.
    """

    def __init__(self, *, outlive: bool = False) -> None:
        self._outlive = outlive
        self._lock = threading.Lock()
        self._children: set[ChildProcess] = set()
        self._closed = False

    def run(
        self, command: Sequence[str], *, input_line: bytes | None = None, log_path: Path | None = None
    ) -> ChildExit:
        """Start a child and wait for its end.

        Raises:
            RunError: It could not be started, or the set is closed.
        """
        if self._closed:
            raise RunError("the run is being ended")
        child = ChildProcess(command, input_line=input_line, log_path=log_path, outlives=self._outlive)
        return self.adopt(child)

    def adopt(self, child: ChildProcess) -> ChildExit:
        """Take a child that runs and that nobody waits for into the set, and wait for its end."""
        with self._lock:
            self._children.add(child)
            if self._closed:
                child.kill()
        try:
            return child.wait()
        finally:
            with self._lock:
                self._children.discard(child)

    @property
    def pids(self) -> list[int]:
        """Process ids of the children that run."""
        with self._lock:
            return sorted(child.pid for child in self._children)

    def close_inputs(self) -> None:
        """Ask all children to end, and start no more; does not wait."""
        with self._lock:
            self._closed = True
            for child in self._children:
                child.close_input()

    def kill_some(self, is_meant: Callable[[int], bool]) -> None:
        """Kill those children of whose process id something is true; does not wait."""
        with self._lock:
            for child in self._children:
                if is_meant(child.pid):
                    child.kill()

    def close(self, grace_seconds: float) -> None:
        """End all children, and any that is started later.

        Args:
            grace_seconds: How long they may take to end by themselves, once their standard input is closed.
        """
        with self._lock:
            self._closed = True
            children = list(self._children)
        end_in_order(children, grace_seconds)

    def kill(self) -> None:
        """Kill all children, and any that is started later; does not wait."""
        with self._lock:
            self._closed = True
            for child in self._children:
                child.kill()


def end_in_order(children: Iterable[ChildProcess], grace_seconds: float) -> None:
    """End children: by end of file, then SIGTERM, then SIGKILL for those who did not heed the one before."""
    alive = list(children)
    steps = (
        (ChildProcess.close_input, grace_seconds),
        (ChildProcess.terminate, TERMINATE_SECONDS),
        (ChildProcess.kill, REAP_SECONDS),
    )
    for ask, seconds in steps:
        for child in alive:
            ask(child)
        end = time.monotonic() + seconds
        alive = [child for child in alive if not child.wait_exited(max(0.0, end - time.monotonic()))]
        if not alive:
            return


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for a child: that of this process, with a few additions.

    The numeric libraries get one thread each, and glibc keeps the memory of minibatches instead of giving it
    back to the system and taking it again every step (measured: a minibatch of 4,096 rows in a third of the
    time).

    Children run with ``-P``, without the working folder on their path: a file called ``queue.py`` there must
    not break them. So where this package is not installed but imported from a source folder, that folder is
    named.
    """
    child = {**environment, **THREAD_LIMITS, **MALLOC_THRESHOLDS, "PYTHONUNBUFFERED": "1"}
    home = Path(__file__).resolve().parents[2]
    if home.name not in ("site-packages", "dist-packages"):
        paths = [p for p in environment.get("PYTHONPATH", "").split(os.pathsep) if p]
        if str(home) not in paths:
            paths.append(str(home))
        child["PYTHONPATH"] = os.pathsep.join(paths)
    return child


def _open_log(path: Path | None) -> IO[bytes]:
    if path is None:
        return tempfile.TemporaryFile()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        log = path.open("a+b")
    except OSError as error:
        raise RunError(f"{path}: the log cannot be written: {error}") from error
    log.seek(0, os.SEEK_END)
    return log
