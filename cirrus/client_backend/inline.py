"""The inline backend: shards and workers are threads of this process.

The same classes as everywhere else, real sockets between them and no spawning: for tests, tiny data and
debuggers.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cirrus.client_backend.base import Backend
from cirrus.client_backend.fleet import AttemptError, WorkerEvent, WorkerResult
from cirrus.client_backend.homes import default_home
from cirrus.client_backend.launcher import Launcher
from cirrus.client_backend.local import check_backend_numbers
from cirrus.config import BackendRecord, RunConfig
from cirrus.errors import ConfigError
from cirrus.run_folder import RunFolder

#: Default root of inline runs. They share it, as they share the process; each run has a folder of its own in
#: it.
INLINE_ROOT = "memory://cirrus-inline"
#: What a worker without a deadline is told of its remaining time.
FOREVER_MILLISECONDS = 2**53


class ShardThreads(Protocol):
    """A shard that runs as threads of this process."""

    def start(self) -> object:
        """Start the threads and announce the address."""

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end; return whether it has come."""

    def stop(self) -> None:
        """End it now, with a last snapshot."""

    def crash(self) -> None:
        """End it like a killed process: nothing is saved."""


class WorkerContext:
    """What a worker's handler learns about its invocation, as from AWS Lambda.

    Args:
        deadline_seconds: Lifetime of this generation; None: until the run is over.
        stopped: Set when the worker shall end at once.
    """

    def __init__(self, deadline_seconds: float | None, stopped: threading.Event) -> None:
        self._end = None if deadline_seconds is None else time.monotonic() + deadline_seconds
        self._stopped = stopped

    def get_remaining_time_in_millis(self) -> int:
        """Return the milliseconds that are left."""
        if self._stopped.is_set():
            return 0
        if self._end is None:
            return FOREVER_MILLISECONDS
        return max(0, int((self._end - time.monotonic()) * 1000))


def _make_shard(run_url: str, shard: int, generation: int) -> ShardThreads:
    from cirrus.paramserver.server import Shard

    return Shard(run_url, shard=shard, generation=generation, host="127.0.0.1")


def _handle(event: dict[str, Any], context: WorkerContext) -> Mapping[str, Any]:
    from cirrus.worker_runtime.handler import handler

    return handler(event, context)


@dataclass(frozen=True, kw_only=True)
class InlineParts:
    """What the inline backend runs as its shards and workers."""

    shard: Callable[[str, int, int], ShardThreads] = _make_shard
    """Makes the shard for (run url, shard, generation)."""
    handler: Callable[[dict[str, Any], WorkerContext], Mapping[str, Any]] = _handle
    """Runs one generation of a worker."""


class InlineBackend(Backend):
    """Runs shards and workers as threads of this process.

    Args:
        root: Where the run folders go. None: into the memory of this process, from where each disappears with
            its :class:`~cirrus.client_backend.runs.Run`.
        dollars_per_hour: What this machine costs while a run works, for ``cost_`` and ``max_cost``.
        generation_seconds: Lifetime of a worker; None: until the run is over.
        tls: Encrypt what workers and shards say to each other, with certificates made for each run; see
            ``docs/security.md`` for its price.
        parts: What to run instead of Cirrus' own shards and workers, for tests of failures.
    """

    def __init__(
        self,
        *,
        root: str | os.PathLike[str] | None = None,
        dollars_per_hour: float = 0.0,
        generation_seconds: float | None = None,
        tls: bool = False,
        parts: InlineParts | None = None,
    ) -> None:
        check_backend_numbers(dollars_per_hour, generation_seconds)
        self.root = INLINE_ROOT if root is None else os.fspath(root)
        self.runs_are_temporary = root is None
        self.generation_seconds = generation_seconds
        self.tls = tls
        self._dollars_per_hour = dollars_per_hour
        self._parts = parts or InlineParts()

    def __repr__(self) -> str:
        return f"InlineBackend(root={self.root!r})"

    @property
    def record(self) -> BackendRecord:
        """See :attr:`Backend.record`: whoever goes on with a run of threads does so with processes."""
        return BackendRecord(name="local")

    def dollars_per_hour(self, n_workers: int, n_shards: int) -> float:
        """Return what this machine costs, whatever the size of the run."""
        return self._dollars_per_hour

    def scratch_url(self) -> str:
        """See :meth:`Backend.scratch_url`."""
        return f"memory://scratch-{secrets.token_hex(8)}"

    def reaches(self, url: str) -> bool:
        """See :meth:`Backend.reaches`: threads of this process read all that it reads."""
        return True

    def launcher(self, folder: RunFolder, config: RunConfig) -> Launcher:
        """See :meth:`Backend.launcher`; threads cannot outlive their process."""
        if config.on_client_loss == "continue":
            raise ConfigError(
                "on_client_loss", '"continue" needs processes of their own: use backend="local"'
            )
        return InlineLauncher(folder.url, self._parts)

    def job_root(self, urls: Sequence[str]) -> str:
        """See :meth:`Backend.job_root`: a job over data that outlives this process does so too."""
        is_lasting = self.runs_are_temporary and not any(url.startswith("memory:") for url in urls)
        return default_home() if is_lasting else self.root

    def job_launcher(self, job_url: str) -> Launcher:
        """See :meth:`Backend.job_launcher`."""
        return InlineLauncher(job_url, self._parts)


class InlineLauncher(Launcher):
    """Runs the shards and workers of one run in the threads that ask for it.

    Args:
        run_url: The run folder.
        parts: What to run.
    """

    def __init__(self, run_url: str, parts: InlineParts) -> None:
        self._run_url = run_url
        self._parts = parts
        self._lock = threading.Lock()
        self._shards: dict[int, ShardThreads] = {}
        self._crashed: set[ShardThreads] = set()
        self._stopped = threading.Event()

    @property
    def shards(self) -> frozenset[int]:
        """The shards that serve."""
        with self._lock:
            return frozenset(self._shards)

    def crash_shard(self, shard: int) -> None:
        """Let a shard end like a killed process, to see it come back."""
        with self._lock:
            threads = self._shards[shard]
            self._crashed.add(threads)
        threads.crash()

    def run_shard(self, shard: int, generation: int) -> None:
        """See :meth:`Launcher.run_shard`."""
        threads = self._parts.shard(self._run_url, shard, generation)
        try:
            threads.start()
        except BaseException:
            # One that never came up holds nothing to save: its last snapshot would replace a good one.
            threads.crash()
            raise
        with self._lock:
            self._shards[shard] = threads
        try:
            if not self._stopped.is_set():
                threads.wait()
        finally:
            threads.stop()
            with self._lock:
                del self._shards[shard]
                crashed = threads in self._crashed
                self._crashed.discard(threads)
        if crashed:
            raise AttemptError(f"shard {shard} crashed")

    def invoke(self, event: WorkerEvent) -> WorkerResult:
        """See :meth:`Launcher.invoke`."""
        context = WorkerContext(event.deadline_seconds, self._stopped)
        return WorkerResult.from_plain(self._parts.handler(event.to_plain(), context))

    def close(self) -> None:
        """See :meth:`Launcher.close`."""
        self._stopped.set()
        with self._lock:
            shards = list(self._shards.values())
        for threads in shards:
            threads.stop()

    def kill(self) -> None:
        """See :meth:`Launcher.kill`; threads cannot be killed, but none keeps the interpreter alive."""
        self.close()
