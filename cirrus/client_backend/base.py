"""What a backend is: it starts runs, and takes over those that lost their client."""

from __future__ import annotations

import copy
import dataclasses
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Self

from cirrus.client_backend.certificates import make_certificates
from cirrus.client_backend.claims import new_claim, take_claim
from cirrus.client_backend.homes import backend_options
from cirrus.client_backend.launcher import CostCorrection, Launcher
from cirrus.client_backend.runs import Run, judge_status, open_folder, run_url
from cirrus.client_backend.supervision import Supervision
from cirrus.client_backend.supervisor import Supervisor
from cirrus.config import BackendRecord, RunConfig, WorkerPrices
from cirrus.errors import ConfigError, RunError
from cirrus.metrics import RunState, RunStatus
from cirrus.run_folder import ClientClaim, RunFolder

if TYPE_CHECKING:
    from cirrus.client_backend.load_tasks import LoadPlan
    from cirrus.client_backend.load_team import RemoteWorker

#: Worker generations of a run's n-th client begin at n times this number: above those of the clients before,
#: who cannot have invoked a worker this often.
GENERATIONS_PER_CLIENT = 1_000_000


class Backend(ABC):
    """Where shards and workers run.

    A subclass says how one of them is run (:meth:`launcher`); starting, supervising and taking over runs is
    the same for all.

    Attributes:
        root: Object-store URL under which the run folders (``runs/RUN/``) lie.
        generation_seconds: Lifetime of a worker's generation where the run's config names none; None: until
            the run is over.
        tls: Whether workers and shards encrypt what they say to each other.
        runs_are_temporary: A run's folder is removed with its :class:`~cirrus.client_backend.runs.Run`.
        loads_remotely: Workers of loads are elsewhere (:meth:`load_workers`), and see the object store alone.
        default_job_workers: Workers of a map job where the user names no number; None: one a core of this
            machine.
    """

    root: str
    generation_seconds: float | None = None
    tls: bool = False
    runs_are_temporary: bool = False
    _revise: Callable[[RunConfig], RunConfig] | None = None
    default_job_workers: int | None = None
    loads_remotely: bool = False

    @abstractmethod
    def launcher(self, folder: RunFolder, config: RunConfig) -> Launcher:
        """Return how the shards and workers of this run are run here."""

    def check(self) -> None:
        """Look whether this backend can be used at all, before data is loaded for it.

        Raises:
            ConfigError: It cannot.
        """
        return

    def job_launcher(self, job_url: str) -> Launcher:
        """Return how the workers of a map job are run here; it needs no shards.

        Args:
            job_url: The job's folder.

        Raises:
            ConfigError: This backend runs no map jobs.
        """
        raise ConfigError("backend", f"{type(self).__name__} cannot run functions over chunks")

    def job_root(self, urls: Sequence[str]) -> str:
        """Return the URL below which the folders of map jobs lie, with their tokens, functions and results.

        Workers reach it, and nobody but this user (or the workers' role) may write there.

        Args:
            urls: Of the data that the job reads and writes.
        """
        return self.root

    def load_workers(self, plan: LoadPlan) -> Sequence[RemoteWorker] | None:
        """Return the workers of a load: as many as the plan says, or as can work here.

        None: processes of the machine that this process is on.

        Raises:
            ConfigError: They could not reach the dataset.
        """
        return None

    def dollars_per_hour(self, n_workers: int, n_shards: int) -> float:
        """Return what a run of this size costs while it runs, but for its workers' own time."""
        return 0.0

    def worker_prices(self, memory_mb: int) -> WorkerPrices:
        """Return what workers of this size cost by their time."""
        return WorkerPrices()

    def scratch_url(self) -> str | None:
        """Return a fresh URL for what a job needs only while it runs; None: a folder of this machine.

        Where it begins with ``memory:``, shards and workers are threads of this process.
        """
        return None

    def reaches(self, url: str) -> bool:
        """Tell whether shards and workers can read and write at an object-store URL."""
        return not url.startswith("memory:")

    def end_leftovers(self, run_id: str) -> tuple[str, ...]:
        """End whatever of a run is left that no process of this machine holds; return what that was."""
        return ()

    @property
    def record(self) -> BackendRecord:
        """What runs note down of this backend, so that they are gone on with there."""
        return BackendRecord(name=type(self).__name__)

    @property
    def options(self) -> tuple[str, ...]:
        """What names this backend on a command line, such as ``--home`` and a folder; empty: nothing need."""
        return backend_options(self.record, self.root)

    @property
    def max_functions(self) -> int | None:
        """Most workers and evaluators that can be alive here at a time, over all runs; None: any number."""
        return None

    def revising(self, revise: Callable[[RunConfig], RunConfig]) -> Self:
        """Return this backend, but one that starts each run by what ``revise`` makes of its config.

        A search names its runs so, and limits them.
        """
        revising = copy.copy(self)
        revising._revise = revise
        return revising

    def for_many_runs(self) -> Self:
        """Return this backend for the runs of one search, which may share processes; close it afterwards."""
        return copy.copy(self)

    def close_shared(self) -> None:
        """End what the runs of :meth:`for_many_runs` shared. They have ended by then."""
        return

    def start(self, config: RunConfig) -> Run:
        """Create a run and start its shards and workers; does not wait for them.

        Raises:
            ConflictError: There is a run of this id.
            StorageError: The run folder cannot be written.
        """
        if self._revise is not None:
            config = self._revise(config)
        certificates = make_certificates(config.n_shards) if self.tls else None
        config = dataclasses.replace(config, tls=self.tls, backend=self.record)
        folder = RunFolder(run_url(self.root, config.run_id))
        folder.create(config, certificates)
        claim = new_claim()
        try:
            folder.claim(claim)
            supervision = self.supervision(folder, config, claim)
        except BaseException:
            folder.remove()
            raise
        return begin_run(folder, config, supervision)

    def attach(self, run_id: str, *, killed: bool = False) -> Run:
        """Become the supervisor of a run whose client went away, and go on with it.

        Its shards restore themselves from their newest snapshots under a new generation; any that still live
        from before are superseded.

        Args:
            run_id: The run.
            killed: Go on with it even if it was killed.

        Raises:
            NotFoundError: There is no such run.
            ConflictError: Another living client supervises it.
            RunError: It has ended.
        """
        folder = open_folder(self.root, run_id)
        config = folder.config()
        self._check_resumable(folder, killed=killed)
        claim = new_claim()
        claim = take_claim(folder, claim)
        try:
            self._check_resumable(folder, killed=killed)
            supervision = self.supervision(folder, config, claim)
        except BaseException:
            folder.claim(dataclasses.replace(claim, released=True))
            raise
        # Workers read the status too, and must not think that the run is over before shard 0 writes it anew.
        status = folder.status() or RunStatus(state=RunState.STARTING)
        if status.state is RunState.KILLED:  # on a request that nobody may have been there to take
            for key, _ in folder.requests():
                folder.finish_request(key)
        starting = dataclasses.replace(
            status, state=RunState.STARTING, stop_reason=None, error=None, heartbeat_at=time.time()
        )
        folder.write_status(starting)
        return begin_run(folder, config, supervision)

    def _check_resumable(self, folder: RunFolder, *, killed: bool) -> None:
        status = judge_status(folder.status(), folder.claim_holder(), time.time())
        resumable = {RunState.INTERRUPTED, RunState.KILLED} if killed else {RunState.INTERRUPTED}
        if status.state.ended and status.state not in resumable:
            raise RunError(f"run {folder.config().run_id} has ended: it is {status.state}")

    def supervision(self, folder: RunFolder, config: RunConfig, claim: ClientClaim) -> Supervision:
        """Return what will keep a run alive; :meth:`Supervision.start` begins with that.

        Args:
            folder: The run folder.
            config: The run's config.
            claim: This client's claim on the run, which it holds.
        """
        return self.make_supervisor(folder, config, claim)

    def make_supervisor(self, folder: RunFolder, config: RunConfig, claim: ClientClaim) -> Supervisor:
        """Return what keeps a run alive from this process."""
        launcher = self.launcher(folder, config)
        addresses = [folder.shard_address(shard) for shard in range(config.n_shards)]
        return Supervisor(
            folder,
            config,
            launcher,
            claim,
            shard_generations=tuple(1 if found is None else found.generation + 1 for found in addresses),
            worker_generation=claim.number * GENERATIONS_PER_CLIENT,
            deadline_seconds=config.generation_seconds or self.generation_seconds,
            is_temporary=self.runs_are_temporary,
            corrected=CostCorrection.made(folder.status()),
        )


def begin_run(folder: RunFolder, config: RunConfig, supervision: Supervision) -> Run:
    """Start what keeps a run alive, and return the run."""
    run = Run(folder, config, supervisor=supervision)
    try:
        supervision.start()
    except BaseException:
        run.close()
        raise
    return run
