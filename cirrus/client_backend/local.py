"""The local backend: shards and workers are processes of this machine."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cirrus.client_backend.base import Backend
from cirrus.client_backend.fleet import AttemptError, WorkerEvent, WorkerResult
from cirrus.client_backend.homes import absolute_root, local_folder
from cirrus.client_backend.housekeeping import remove_old_runs
from cirrus.client_backend.launcher import Launcher
from cirrus.client_backend.processes import ChildExit, ChildProcess, ChildSet
from cirrus.client_backend.runs import Run
from cirrus.client_backend.shard_hosts import ShardHosts, Ticket
from cirrus.config import BackendRecord, RunConfig
from cirrus.errors import CirrusError, ConfigError, RunError
from cirrus.run_folder import RunFolder

#: So many run folders are kept, and all of the last day.
KEEP_RUNS = 100
#: Workers hold nothing that is worth saving, and end at once when they are asked to.
WORKER_GRACE_SECONDS = 0.3
#: Shards write a last snapshot. One that takes longer is lost, and the one before it stands.
SHARD_GRACE_SECONDS = 1.5
#: Shard 0 renews its status every second. One that has not for so long hangs, however busy the machine is.
SILENT_SECONDS = 120.0
#: What processes that run the shards of many runs are called in a process list, below the root.
HOSTS_NAME = "searches"
#: Where those processes log, below the root.
HOSTS_LOG = "logs/shard-hosts.log"
#: Shards of this many processes keep any machine's workers busy.
MAX_HOSTS = 8


def shard_command(run_url: str, shard: int, generation: int) -> list[str]:
    """Return the command line of a shard process."""
    return [*_python(run_url), "-m", "cirrus.paramserver", *shard_words(run_url, shard, generation)]


def shard_words(run_url: str, shard: int, generation: int) -> list[str]:
    """Return the arguments of a shard process."""
    return ["--run-url", run_url, "--shard", str(shard), "--generation", str(generation)]


def worker_command(run_url: str) -> list[str]:
    """Return the command line of a worker process, which gets everything else as its event."""
    return [*_python(run_url), "-m", "cirrus.worker_runtime"]


def _python(run_url: str) -> list[str]:
    # The -X option does nothing but show in a process list which run a process belongs to.
    return [sys.executable, "-P", "-X", f"cirrus_run={run_url}"]


def _no_standby(run_url: str, shard: int, generation: int) -> ChildProcess | None:
    return None


@dataclass(frozen=True, kw_only=True)
class LocalCommands:
    """What the local backend runs as its shards and workers."""

    shard: Callable[[str, int, int], Sequence[str]] = shard_command
    """Command line for (run url, shard, generation)."""
    worker: Callable[[str], Sequence[str]] = worker_command
    """Command line for (run url)."""
    standby: Callable[[str, int, int], ChildProcess | None] = _no_standby
    """A process that becomes the shard (run url, shard, generation), if there is one that waits for that."""


class LocalBackend(Backend):
    """Runs shards and workers as processes of this machine, which end with this one.

    With ``on_client_loss="continue"`` they go on when this process dies, until the workers have done their
    time.

    Args:
        root: Where the run folders go, as an object-store URL that other processes can open. None: the folder
            named by the environment variable ``CIRRUS_HOME``, else ``~/.cirrus``.
        dollars_per_hour: What this machine costs while a run works, for ``cost_`` and ``max_cost``.
        generation_seconds: Lifetime of a worker process; None: until the run is over.
        keep_runs: How many of the newest run folders are kept. Of older ones those are removed, when a run
            starts, that ended more than a day ago, belong to no search and hold no checkpoint. None: all.
        tls: Encrypt what workers and shards say to each other, with certificates made for each run; see
            ``docs/security.md`` for its price.
        commands: What to run instead of Cirrus' own shards and workers, for tests of failures.
    """

    def __init__(
        self,
        *,
        root: str | os.PathLike[str] | None = None,
        dollars_per_hour: float = 0.0,
        generation_seconds: float | None = None,
        keep_runs: int | None = KEEP_RUNS,
        tls: bool = False,
        commands: LocalCommands | None = None,
    ) -> None:
        self.root = absolute_root(root)
        if self.root.startswith("memory:"):
            raise ConfigError("root", "other processes cannot open memory://; give a folder")
        check_backend_numbers(dollars_per_hour, generation_seconds)
        self.generation_seconds = generation_seconds
        self.tls = tls
        if keep_runs is not None and keep_runs < 0:
            raise ConfigError("keep_runs", f"must be >= 0 or None, got {keep_runs!r}")
        self._keep_runs = keep_runs
        self._dollars_per_hour = dollars_per_hour
        self._commands = commands or LocalCommands()
        self._hosts: ShardHosts | None = None

    def __repr__(self) -> str:
        return f"LocalBackend(root={self.root!r})"

    @property
    def record(self) -> BackendRecord:
        """See :attr:`Backend.record`."""
        return BackendRecord(name="local")

    def dollars_per_hour(self, n_workers: int, n_shards: int) -> float:
        """Return what this machine costs, whatever the size of the run."""
        return self._dollars_per_hour

    def start(self, config: RunConfig) -> Run:
        """See :meth:`Backend.start`."""
        if self._hosts is not None:
            self._hosts.await_ready()  # or its workers would wait, and be counted as working
        run = super().start(config)
        if self._keep_runs is not None:
            remove_old_runs(self.root, self._keep_runs)
        return run

    def launcher(self, folder: RunFolder, config: RunConfig) -> Launcher:
        """See :meth:`Backend.launcher`."""
        outlive = config.on_client_loss == "continue"
        if self._hosts is not None and not outlive:
            return PackedLauncher(folder.url, self._commands, self._hosts)
        return LocalLauncher(folder.url, self._commands, outlive=outlive)

    def for_many_runs(self) -> Self:
        """See :meth:`Backend.for_many_runs`: shards of all runs share a process for each core."""
        shared = super().for_many_runs()
        if self._commands.shard is shard_command:
            folder = local_folder(self.root)
            shared._hosts = ShardHosts(
                min(os.cpu_count() or 1, MAX_HOSTS),
                f"{self.root}/{HOSTS_NAME}",
                None if folder is None else folder / HOSTS_LOG,
            )
            shared._hosts.warm_up()
        return shared

    def close_shared(self) -> None:
        """See :meth:`Backend.close_shared`."""
        if self._hosts is not None:
            self._hosts.close()

    def job_launcher(self, job_url: str) -> Launcher:
        """See :meth:`Backend.job_launcher`."""
        return LocalLauncher(job_url, self._commands)


class LocalLauncher(Launcher):
    """Runs the shards and workers of one run as child processes.

    Args:
        run_url: The run folder. Where it is a folder of this machine, what the processes write on standard
            error goes into its ``logs/``.
        commands: What to run.
        outlive: The processes go on when this one dies, until no worker is left.
    """

    silent_seconds = SILENT_SECONDS

    def __init__(self, run_url: str, commands: LocalCommands, *, outlive: bool = False) -> None:
        self._run_url = run_url
        self._commands = commands
        folder = local_folder(run_url)
        self._logs = None if folder is None else folder / "logs"
        self.shards = ChildSet(outlive=outlive)
        self.workers = ChildSet(outlive=outlive)

    def end_stuck_shard(self, shard: int) -> None:
        """See :meth:`Launcher.end_stuck_shard`."""
        address = RunFolder(self._run_url).shard_address(shard)
        if address is not None:
            self.shards.kill_some(lambda pid: pid == address.pid)

    def _log_path(self, name: str) -> Path | None:
        return None if self._logs is None else self._logs / f"{name}.log"

    def run_shard(self, shard: int, generation: int) -> None:
        """See :meth:`Launcher.run_shard`."""
        ready = self._commands.standby(self._run_url, shard, generation)
        if ready is not None:
            end = self.shards.adopt(ready)
        else:
            command = self._commands.shard(self._run_url, shard, generation)
            end = self.shards.run(command, log_path=self._log_path(f"shard-{shard}"))
        if end.returncode != 0:
            raise _child_error(f"shard {shard}", end)

    def invoke(self, event: WorkerEvent) -> WorkerResult:
        """See :meth:`Launcher.invoke`."""
        name = f"{'evaluator' if event.role == 'evaluate' else 'worker'} {event.worker_id}"
        end = self.workers.run(
            self._commands.worker(self._run_url),
            input_line=event.to_json(),
            log_path=self._log_path(name.replace(" ", "-")),
        )
        if end.returncode != 0:
            raise _child_error(name, end)
        try:
            return WorkerResult.from_plain(json.loads(end.last_line))
        except (ValueError, CirrusError) as error:
            text = end.last_line[:200].decode(errors="replace")
            raise AttemptError(f"{name} ended without a result; its last line was {text!r}") from error

    def close(self) -> None:
        """See :meth:`Launcher.close`.

        Shards save while the workers end; one that has not announced itself has done nothing yet.
        """
        self.shards.close_inputs()
        self.workers.close(WORKER_GRACE_SECONDS)
        if self.shards.pids:
            announced = self._announced_pids()
            self.shards.kill_some(lambda pid: announced is not None and pid not in announced)
        self.shards.close(SHARD_GRACE_SECONDS)

    def _announced_pids(self) -> set[int] | None:
        """Return the process ids of the shards that serve, or None where that cannot be read."""
        folder = RunFolder(self._run_url)
        try:
            addresses = [folder.shard_address(shard) for shard in range(folder.config().n_shards)]
        except CirrusError:
            return None
        return {address.pid for address in addresses if address is not None}

    def kill(self) -> None:
        """See :meth:`Launcher.kill`."""
        self.workers.kill()
        self.shards.kill()


class PackedLauncher(LocalLauncher):
    """Runs the workers of one run as child processes, and its shards in processes that runs share.

    Args:
        run_url: The run folder.
        commands: What to run as workers.
        hosts: Where shards run.
    """

    def __init__(self, run_url: str, commands: LocalCommands, hosts: ShardHosts) -> None:
        super().__init__(run_url, commands)
        self._hosts = hosts
        self._lock = threading.Lock()
        self._tickets: set[Ticket] = set()
        self._closed = False

    def run_shard(self, shard: int, generation: int) -> None:
        """See :meth:`Launcher.run_shard`."""
        with self._lock:
            if self._closed:
                raise RunError("the run is being ended")
            ticket = self._hosts.begin(self._run_url, shard, generation)
            self._tickets.add(ticket)
        ticket.ended.wait()
        with self._lock:
            self._tickets.discard(ticket)
        if ticket.error is not None:
            raise AttemptError(
                f"shard {shard}: {ticket.error}", is_permanent=ticket.error.is_permanent
            ) from ticket.error

    def end_stuck_shard(self, shard: int) -> None:
        """See :meth:`Launcher.end_stuck_shard`: its process ends, and what other shards are in it too."""
        with self._lock:
            stuck = [ticket for ticket in self._tickets if ticket.shard == shard]
        for ticket in stuck:
            self._hosts.kill(ticket)

    def close(self) -> None:
        """See :meth:`Launcher.close`."""
        self.workers.close(WORKER_GRACE_SECONDS)
        end = time.monotonic() + SHARD_GRACE_SECONDS
        tickets = self._end_shards("stop")
        if not all([ticket.ended.wait(max(0.0, end - time.monotonic())) for ticket in tickets]):
            self._end_shards("crash")

    def kill(self) -> None:
        """See :meth:`Launcher.kill`."""
        self.workers.kill()
        self._end_shards("crash")

    def _end_shards(self, how: str) -> list[Ticket]:
        with self._lock:
            self._closed = True
            tickets = list(self._tickets)
        for ticket in tickets:
            self._hosts.end(ticket, how)
        return tickets


def check_backend_numbers(dollars_per_hour: float, generation_seconds: float | None) -> None:
    """Check the numbers that backends of this machine share.

    Raises:
        ConfigError: One cannot work.
    """
    if dollars_per_hour < 0:
        raise ConfigError("dollars_per_hour", f"must be >= 0, got {dollars_per_hour!r}")
    if generation_seconds is not None and generation_seconds <= 0:
        raise ConfigError("generation_seconds", f"must be > 0 or None, got {generation_seconds!r}")


def _child_error(name: str, end: ChildExit) -> AttemptError:
    """Return the error of a child that failed: what it reported in its last line, else how it ended."""
    report = _error_report(end.last_line)
    if report is not None:
        return AttemptError.of_kind(f"{name}: {report[0]}", report[1])
    tail = f"; its last words:\n{end.stderr_tail}" if end.stderr_tail else ""
    return AttemptError(f"{name} {end.reason}{tail}")


def _error_report(line: bytes) -> tuple[str, str] | None:
    """Return the text and the kind of an error that a child reported as JSON, or None if the line is none."""
    try:
        raw = json.loads(line)
    except ValueError:
        return None
    if not isinstance(raw, dict) or not isinstance(raw.get("error"), str):
        return None
    return raw["error"], str(raw.get("type", ""))
