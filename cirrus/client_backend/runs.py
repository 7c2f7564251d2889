"""Runs as their clients see them: the one that supervises a run, and any other that watches or ends it.

Everything goes through the run folder, so that it works from any process that can read the store. What the
folder cannot know by itself, that its writers were lost, is judged here from the age of its last signs of
life.
"""

from __future__ import annotations

import dataclasses
import secrets
import shlex
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from cirrus.client_backend.claims import is_held, new_claim, take_claim
from cirrus.client_backend.homes import backend_options
from cirrus.client_backend.run_cost import CostModel, RunCost
from cirrus.client_backend.supervision import Supervision
from cirrus.config import RunConfig
from cirrus.errors import CirrusError, ConflictError, NotFoundError, RunError, RunInterruptedError
from cirrus.metrics import MetricPoint, RunState, RunStatus
from cirrus.run_folder import ClientClaim, ControlRequest, MetricsReader, RunFolder
from cirrus.storage import open_store

#: Shard 0 renews the status every second. One that is older than this belongs to a run that was lost.
STALE_SECONDS = 10.0
#: Said of a run that works without a client.
CLIENTLESS = "its client is gone; it goes on as long as workers live"
#: How often :meth:`Run.wait` looks at the status and calls back.
POLL_SECONDS = 0.25
#: How long :meth:`Run.kill` waits for shard 0 before it ends the run by other means.
KILL_SECONDS = 5.0
#: How long a client that does not supervise the run waits for its end: longer than a status takes to go
#: stale.
FOREIGN_KILL_SECONDS = 20.0

_ID_TIME = "%Y%m%d-%H%M%S"


def new_run_id(now: datetime | None = None) -> str:
    """Return a run id that no other run has; ids sort by time (UTC)."""
    return f"{now or datetime.now(UTC):{_ID_TIME}}-{secrets.token_hex(3)}"


def run_id_time(unix: float) -> str:
    """Return what the ids of runs of a time (Unix seconds) begin with; empty if it cannot have been."""
    try:
        return f"{datetime.fromtimestamp(unix, UTC):{_ID_TIME}}" if unix > 0 else ""
    except (ValueError, OverflowError, OSError):
        return ""


def run_url(root: str, run_id: str) -> str:
    """Return the URL of a run's folder below the root of its backend."""
    return f"{root.rstrip('/')}/runs/{run_id}"


def open_folder(root: str, run_id: str) -> RunFolder:
    """Return the folder of an existing run.

    Raises:
        NotFoundError: There is no such run.
    """
    folder = RunFolder(run_url(root, run_id))
    if not folder.store.exists("config.json"):
        raise NotFoundError(f"there is no run {run_id} in {root}: 'cirrus runs' lists those there are")
    return folder


def judge_status(status: RunStatus | None, claim: ClientClaim | None, now: float) -> RunStatus:
    """Return the status of a run as it is, from what its folder says.

    Args:
        status: What shard 0 wrote last, if anything.
        claim: Who supervises the run, or did.
        now: Unix time.
    """
    held = is_held(claim, now)
    if status is None:
        return RunStatus(state=RunState.STARTING if held else RunState.INTERRUPTED)
    if status.state is RunState.INTERRUPTED and claim is not None and held:
        # The claim is younger than the interruption: a client has attached, and its shards are about to
        # report.
        attached = claim.renewed_at > status.heartbeat_at
        return dataclasses.replace(status, state=RunState.STARTING) if attached else status
    if not status.state.ended and not held and now - status.heartbeat_at > STALE_SECONDS:
        return dataclasses.replace(status, state=RunState.INTERRUPTED, n_workers=0)
    if not status.state.ended and not held and claim is not None:
        return dataclasses.replace(status, detail=CLIENTLESS)
    return status


class Run:
    """One training job, seen from a client.

    A run that this process started or attached to is supervised by it: it ends with :meth:`close`, with the
    interpreter, and when the last reference to this object goes away. Use it as a context manager to be sure
    when.

    Args:
        folder: The run folder.
        config: The run's config.
        supervisor: What keeps the run alive, where this process does.
    """

    def __init__(
        self, folder: RunFolder, config: RunConfig, *, supervisor: Supervision | None = None
    ) -> None:
        self._folder = folder
        self._config = config
        self._supervisor = supervisor
        self._reader = MetricsReader(folder)
        self._points: list[MetricPoint] = []
        self._points_lock = threading.Lock()
        self._final_status: RunStatus | None = None
        self._signs = _SignsOfLife()
        if supervisor is not None:
            # At exit the supervisor's own hook waits for the end; here, in the midst of anything, nobody may
            # wait.
            weakref.finalize(self, supervisor.close_soon).atexit = False

    def __repr__(self) -> str:
        return f"<Run {self.run_id} at {self.url}>"

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def run_id(self) -> str:
        """The run's id; ids sort by time."""
        return self._config.run_id

    @property
    def url(self) -> str:
        """The run folder."""
        return self._folder.url

    @property
    def folder(self) -> RunFolder:
        """Typed access to the run folder."""
        return self._folder

    @property
    def config(self) -> RunConfig:
        """The run's config, frozen."""
        return self._config

    @property
    def supervisor(self) -> Supervision | None:
        """What keeps the run alive, or None where another process does (or nobody)."""
        return self._supervisor

    @property
    def status(self) -> RunStatus:
        """Where the run is now.

        Raises:
            StorageError: The run folder cannot be read.
        """
        if self._final_status is not None:
            return self._final_status
        said, claim = self._folder.status(), self._folder.claim_holder()
        status = judge_status(said, claim, time.time())
        renewed = self._signs.seen((said and said.heartbeat_at, claim and claim.renewed_at))
        if said is not None and renewed and status.state is RunState.INTERRUPTED:
            status = said  # by the clock it is lost, but that of its machine is another
        if status.state is RunState.STARTING and self._supervisor is not None:
            status = dataclasses.replace(status, detail=self._supervisor.phase)
        return status

    @property
    def cost(self) -> RunCost:
        """What the run has cost so far, measured and by the model.

        Raises:
            StorageError: The run folder cannot be read.
        """
        return CostModel.of(self._config).compare(self.status)

    @property
    def notices(self) -> tuple[str, ...]:
        """What the user should know of a run of this process, such as that AWS gives it fewer workers."""
        return () if self._supervisor is None else self._supervisor.notices

    def metrics(self) -> list[MetricPoint]:
        """Return all points of the run's curves so far.

        Raises:
            StorageError: The run folder cannot be read.
        """
        with self._points_lock:
            if self._final_status is None:
                self._points += self._reader.read()
            return list(self._points)

    def wait(
        self, timeout: float | None = None, on_event: Callable[[RunStatus], None] | None = None
    ) -> RunStatus:
        """Wait for the end of the run.

        Ctrl-C ends a run that this process supervises, all its shards and workers, before it is passed on.

        Args:
            timeout: Most seconds to wait; None: for ever.
            on_event: Called with the status about four times a second, and once at the end.

        Returns:
            The status at the end, or now if the time was too short.

        Raises:
            RunError: The run failed; with the reason.
            RunInterruptedError: What kept the run alive was lost; :meth:`Backend.attach` goes on with it.
        """
        end = float("inf") if timeout is None else time.monotonic() + timeout
        try:
            while not self._await_end(min(POLL_SECONDS, end - time.monotonic())):
                if on_event is not None:
                    on_event(self.status)
                if time.monotonic() >= end:
                    return self.status
        except KeyboardInterrupt:
            self.close()
            raise
        status = self.status
        if on_event is not None:
            on_event(status)
        if status.state is RunState.FAILED:
            cause = None if self._supervisor is None else self._supervisor.failure
            raise RunError(f"run {self.run_id} failed: {status.error or 'for an unknown reason'}") from cause
        if status.state is RunState.INTERRUPTED and self._supervisor is not None and self._supervisor.failure:
            failure = self._supervisor.failure
            raise RunInterruptedError(f"run {self.run_id} was interrupted: {failure}") from failure
        return status

    def _await_end(self, seconds: float) -> bool:
        """Wait for so long, or until the run is at its end; return whether it is."""
        if self._supervisor is not None:
            return self._supervisor.wait(max(0.0, seconds))
        if self.status.state.ended:
            return True
        time.sleep(max(0.0, seconds))  # a run of another process: its folder cannot wake anybody
        return False

    def stop(self) -> None:
        """Ask the run to finish now and keep its model; :meth:`wait` for that.

        Raises:
            RunError: The run was interrupted, so that nobody is there to finish it.
        """
        self._request("stop")

    def snapshot(self, timeout: float = 60.0) -> None:
        """Ask for a checkpoint, which the run writes when no lease is open; returns when shard 0 knows.

        Args:
            timeout: Most seconds to wait for that.

        Raises:
            RunError: The run has ended, or shard 0 did not take notice in time.
        """
        key = self._request("snapshot")
        end = time.monotonic() + timeout
        while self._folder.store.exists(key):
            if self._await_end(POLL_SECONDS) or time.monotonic() > end:
                raise RunError(f"run {self.run_id} took no notice of the request ({self.status.state})")

    def _request(self, action: str) -> str:
        state = self.status.state
        if state is RunState.INTERRUPTED:
            root = self.url.removesuffix(f"/runs/{self.run_id}")
            options = backend_options(self._config.backend, root)
            attach = shlex.join(["cirrus", "attach", self.run_id, *options])
            raise RunError(f"run {self.run_id} is interrupted: '{attach}' goes on with it")
        if state.ended:
            raise RunError(f"run {self.run_id} has ended ({state})")
        return self._folder.request(ControlRequest(action=action))

    def kill(self, timeout: float | None = None) -> None:
        """End the run now, wherever its parts are; its model is not kept. Nothing happens when it has ended.

        Args:
            timeout: Most seconds to wait for the run's own coordinator; None: a time that fits.

        Raises:
            RunError: The run, of another client, did not end in time.
        """
        if self._supervisor is not None:
            self._kill_own(self._supervisor, KILL_SECONDS if timeout is None else timeout)
        else:
            self._kill_foreign(FOREIGN_KILL_SECONDS if timeout is None else timeout)

    def _kill_own(self, supervisor: Supervision, timeout: float) -> None:
        try:
            if not supervisor.ended:
                self._folder.request(ControlRequest(action="kill"))
                supervisor.wait(timeout)
        finally:
            supervisor.close()
        if self.status.state is RunState.INTERRUPTED and self._final_status is None:
            self._kill_abandoned()

    def _kill_foreign(self, timeout: float) -> None:
        if _is_over(self.status):
            return
        self._folder.request(ControlRequest(action="kill"))
        begun = time.monotonic()
        end = begun + timeout
        while not _is_over(status := self.status):
            if status.state is RunState.STARTING and time.monotonic() - begun > KILL_SECONDS:
                # Nobody is there yet to take the request, and a machine may boot for a minute before somebody
                # is. The run's client sees this, and ends what it has begun. A shard 0 that comes all the
                # same finds the request.
                self._write_killed()
                return
            if status.state is RunState.INTERRUPTED and self._kill_abandoned():
                return
            if time.monotonic() > end:
                raise RunError(f"run {self.run_id} has not ended within {timeout:g} s; the request stays")
            time.sleep(POLL_SECONDS)  # as in _await_end

    def _kill_abandoned(self) -> bool:
        """Declare a run dead whose shards are gone; return False when somebody has just attached to it."""
        claim = new_claim()
        try:
            claim = take_claim(self._folder, claim)
        except ConflictError:
            return False
        status = self._folder.status()
        if status is None or not _is_over(status):
            self._write_killed()
        self._folder.claim(dataclasses.replace(claim, released=True))
        return True

    def _write_killed(self) -> None:
        status = self._folder.status() or RunStatus(state=RunState.KILLED)
        self._folder.write_status(
            dataclasses.replace(
                status, state=RunState.KILLED, stop_reason="killed", n_workers=0, heartbeat_at=time.time()
            )
        )

    def close(self) -> None:
        """End everything of the run that this process supervises, within 3 seconds.

        A run that had not ended is interrupted, and can be attached to. May be called again.
        """
        if self._supervisor is None or self._final_status is not None:
            return
        self._supervisor.close()
        if self._supervisor.is_temporary:
            self.metrics()
            self._final_status = self.status
            self._supervisor.remove()


class _SignsOfLife:
    """Tells whether what others renew was renewed of late, by the clock of whoever looks."""

    def __init__(self) -> None:
        self._value: object = None
        self._renewed_at: float | None = None

    def seen(self, value: object) -> bool:
        """Take note of a value; return whether it has changed within the last :data:`STALE_SECONDS`."""
        now = time.monotonic()
        if self._value is not None and value != self._value:
            self._renewed_at = now
        self._value = value
        return self._renewed_at is not None and now - self._renewed_at < STALE_SECONDS


def _is_over(status: RunStatus) -> bool:
    """Return whether the run has ended for good: nobody can attach to it."""
    return status.state.ended and status.state is not RunState.INTERRUPTED


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """One line of the list of runs."""

    run_id: str
    url: str
    model: str = ""
    n_workers: int = 0
    n_shards: int = 0
    cost_model: CostModel = dataclasses.field(default_factory=CostModel)
    """What its size should cost."""
    search: str | None = None
    """The search that it belongs to."""
    trial: int | None = None
    hyperparameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What its trial tries."""
    status: RunStatus | None = None
    """None when the folder is broken."""
    problem: str | None = None
    """What is wrong with the folder, or None."""

    @property
    def dollars_per_hour(self) -> float:
        """What the run costs while it works, but for its workers' own time."""
        return self.cost_model.dollars_per_hour


def open_run(root: str, run_id: str) -> Run:
    """Return a run to watch or to end, without supervising it.

    Args:
        root: Object-store URL that holds ``runs/``, such as ``LocalBackend().root``.
        run_id: The run's id.

    Raises:
        NotFoundError: There is no such run.
        ConfigError: Its config cannot be read.
    """
    folder = open_folder(root, run_id)
    return Run(folder, folder.config())


def list_runs(root: str) -> list[RunSummary]:
    """Return all runs below a root, oldest first; broken ones are listed as broken.

    Raises:
        StorageError: The store cannot be listed.
    """
    return [summarise_run(root, run_id) for run_id in run_ids(root)]


def run_ids(root: str) -> tuple[str, ...]:
    """Return the ids of all runs below a root, oldest first.

    Raises:
        StorageError: The store cannot be listed.
    """
    return open_store(root).folders("runs")


def summarise_run(root: str, run_id: str) -> RunSummary:
    """Return a run's line of the list; a broken run is listed as broken."""
    url = run_url(root, run_id)
    try:
        folder = RunFolder(url)
        config = folder.config()
        status = judge_status(folder.status(), folder.claim_holder(), time.time())
    except CirrusError as error:
        return RunSummary(run_id=run_id, url=url, problem=str(error))
    return RunSummary(
        run_id=run_id,
        url=url,
        model=config.model.name,
        n_workers=config.n_workers,
        n_shards=config.n_shards,
        cost_model=CostModel.of(config),
        search=config.search,
        trial=config.trial,
        hyperparameters=config.hyperparameters,
        status=status,
    )
