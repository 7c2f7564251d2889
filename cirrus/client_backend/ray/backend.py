"""The Ray backend: shards as actors, workers as tasks, one controller actor a run."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray import exceptions

from cirrus.client_backend.base import Backend, begin_run
from cirrus.client_backend.claims import new_claim
from cirrus.client_backend.homes import absolute_root
from cirrus.client_backend.launcher import Launcher
from cirrus.client_backend.local import check_backend_numbers
from cirrus.client_backend.ray.cluster import (
    HEAD_RESOURCE,
    NAMESPACE,
    connect,
    living_nodes,
    ray_errors,
)
from cirrus.client_backend.ray.controller import RunController, controller_name, find_actor
from cirrus.client_backend.ray.launcher import Plan, RayLauncher, shard_name
from cirrus.client_backend.ray.maps import MAX_WORKERS, MapController, RayJobLauncher
from cirrus.client_backend.ray.nested import RayTask, call
from cirrus.client_backend.ray.remote import RemoteSupervision
from cirrus.client_backend.ray.sizes import Need, run_needs
from cirrus.client_backend.runs import Run, open_folder
from cirrus.client_backend.supervision import Supervision
from cirrus.config import BackendRecord, RunConfig
from cirrus.errors import ConfigError, ConflictError
from cirrus.run_folder import ClientClaim, RunFolder

log = logging.getLogger(__name__)

#: What shards declare.
SHARD_CPUS = 0.5
SHARD_MEMORY_MB = 512
#: A run whose client was not heard of for so long is interrupted; it can be attached to.
CLIENT_LOST_SECONDS = 60.0
#: How long a cluster that is too small may take to grow.
WAIT_SECONDS = 30.0
#: Threads of a controller: some clients look, one closes.
CONTROLLER_THREADS = 16
#: Map jobs get this many workers where the user names no number; Ray has those wait that have no room.
DEFAULT_JOB_WORKERS = 16
ANSWER_SECONDS = 10.0
POLL_SECONDS = 0.05


class RayBackend(Backend):
    """Runs shards, workers and map functions on a Ray cluster.

    All nodes, and this process, must reach the root and the data: ``s3://``, or a folder that they share.
    That is checked on every node when a run starts.

    Args:
        address: ``HOST:PORT`` of a cluster, ``ray://HOST:PORT`` of its client server, ``"auto"`` (this
            machine's, or that of the environment variable ``RAY_ADDRESS``); None: the same, but where there
            is none, one is started on this machine that ends with this process.
        root: Where the run folders go. None: the folder named by the environment variable ``CIRRUS_HOME``,
            else ``~/.cirrus``.
        worker_cpus: CPUs that each worker declares; None: 1, or less where otherwise not all workers of a run
            had room. Their memory is the estimator's ``worker_memory_mb``.
        shard_cpus: CPUs that each shard declares.
        shard_memory_mb: Memory that each shard declares.
        dollars_per_node_hour: What a node costs, for ``cost_`` and ``max_cost``. A run pays for the share of
            the nodes' CPUs that it declares.
        generation_seconds: Lifetime of a worker's task; None: until the run is over.
        client_lost_seconds: How long a run goes on without its client; None: to its end.
        wait_seconds: How long a cluster that is too small may take to grow before the run fails.
        tls: Encrypt what workers and shards say to each other, with certificates made for each run; see
            ``docs/security.md`` for its price. Shards listen on their nodes' addresses.
        runtime_env: Ray's runtime environment of all that runs there, such as
            ``{"pip": ["cirrus-ml[ray]"]}``.

    Raises:
        ConfigError: A number cannot work.

    Example:
        >>> backend = cirrus.RayBackend("auto", root="s3://bucket/cirrus")  # doctest: +SKIP
        >>> est = cirrus.LogisticRegression(backend=backend, n_workers=30, n_shards=2)  # doctest: +SKIP
    """

    default_job_workers = DEFAULT_JOB_WORKERS

    def __init__(
        self,
        address: str | None = None,
        *,
        root: str | os.PathLike[str] | None = None,
        worker_cpus: float | None = None,
        shard_cpus: float = SHARD_CPUS,
        shard_memory_mb: int = SHARD_MEMORY_MB,
        dollars_per_node_hour: float = 0.0,
        generation_seconds: float | None = None,
        client_lost_seconds: float | None = CLIENT_LOST_SECONDS,
        wait_seconds: float = WAIT_SECONDS,
        tls: bool = False,
        runtime_env: Mapping[str, Any] | None = None,
    ) -> None:
        self.address = address
        self.root = absolute_root(root)
        if self.root.startswith("memory:"):
            raise ConfigError("root", "other processes cannot open memory://; give a folder or s3://")
        check_backend_numbers(dollars_per_node_hour, generation_seconds)
        for name, value, least in (
            ("worker_cpus", worker_cpus, 0.01),
            ("shard_cpus", shard_cpus, 0.0),
            ("shard_memory_mb", shard_memory_mb, 0),
            ("client_lost_seconds", client_lost_seconds, 5.0),
            ("wait_seconds", wait_seconds, 0.0),
        ):
            if value is not None and not value >= least:
                raise ConfigError(name, f"must be >= {least:g}, got {value!r}")
        self.worker_cpus = worker_cpus
        self.shard = Need(cpus=shard_cpus, memory_mb=shard_memory_mb)
        self.dollars_per_node_hour = dollars_per_node_hour
        self.generation_seconds = generation_seconds
        self.client_lost_seconds = client_lost_seconds
        self.wait_seconds = wait_seconds
        self.tls = tls
        self.environment = dict(runtime_env or {})

    def __repr__(self) -> str:
        return f"RayBackend({self.address!r}, root={self.root!r})"

    # Prices and places.

    @property
    def record(self) -> BackendRecord:
        """See :attr:`Backend.record`."""
        return BackendRecord(name="ray", address=self.address)

    def check(self) -> None:
        """See :meth:`Backend.check`: this process connects to the cluster."""
        connect(self.address)

    def dollars_per_hour(self, n_workers: int, n_shards: int) -> float:
        """Return what the CPUs cost that a run of this size declares."""
        if self.dollars_per_node_hour == 0:
            return 0.0
        connect(self.address)
        nodes = [node for node in living_nodes() if node.cpus > 0]
        cpus = sum(node.cpus for node in nodes)
        declared = n_shards * self.shard.cpus + n_workers * (self.worker_cpus or 1.0)
        return self.dollars_per_node_hour * len(nodes) * min(1.0, declared / cpus) if cpus else 0.0

    def scratch_url(self) -> str:
        """See :meth:`Backend.scratch_url`: where all nodes reach it."""
        return f"{self.root}/scratch/{secrets.token_hex(8)}"

    # Runs.

    def supervision(self, folder: RunFolder, config: RunConfig, claim: ClientClaim) -> Supervision:
        """See :meth:`Backend.supervision`: a controller actor keeps the run alive."""
        connect(self.address)
        there = copy.copy(self)
        there._revise = None
        with ray_errors("the run's controller"):
            controller = (
                ray.remote(RunController)
                .options(
                    name=controller_name(config.run_id),
                    namespace=NAMESPACE,
                    lifetime="detached",
                    num_cpus=0,
                    # On the head node, if it can be: without that, nothing works in any case.
                    resources={HEAD_RESOURCE: 0.0001},
                    max_restarts=-1,
                    max_concurrency=CONTROLLER_THREADS,
                    runtime_env=self.environment,
                )
                .remote(there, folder.url, claim)
            )
        return RemoteSupervision(controller, claim.client_id, folder, claim)

    def launcher(self, folder: RunFolder, config: RunConfig) -> Launcher:
        """See :meth:`Backend.launcher`; for a process of the cluster, such as the controller."""
        connect(self.address)
        needs = run_needs(config, living_nodes(), shard=self.shard, worker_cpus=self.worker_cpus)
        return RayLauncher(
            folder.url,
            Plan(
                run_id=config.run_id,
                needs=needs,
                environment=self.environment,
                wait_seconds=self.wait_seconds,
            ),
        )

    def job_launcher(self, job_url: str) -> Launcher:
        """See :meth:`Backend.job_launcher`: an actor owns the job's chunks and tasks, and ends with it."""
        connect(self.address)
        need = Need(cpus=self.worker_cpus or 1.0)
        with ray_errors("the job's controller"):
            controller = (
                ray.remote(MapController)
                .options(num_cpus=0, max_concurrency=MAX_WORKERS, runtime_env=self.environment)
                .remote(job_url, need, self.environment)
            )
        return RayJobLauncher(controller)

    def submit(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> RayTask:
        """Run a function as a task of the cluster, from which it may start runs, jobs and searches itself.

        Args:
            function: It travels whole, with what it refers to, and so does what it returns.
            *args: Its arguments.
            **kwargs: Likewise.

        Example:
            >>> def tune():
            ...     search = cirrus.GridSearch(est, {"l1": [0, 1]})
            ...     return search.fit(train, validation=test).best_params_
            >>> backend.submit(tune).result()  # doctest: +SKIP
        """
        connect(self.address)
        task = ray.remote(call).options(num_cpus=0, max_retries=0, runtime_env=self.environment)
        return RayTask(task.remote(function, args, kwargs))

    def attach(self, run_id: str, *, killed: bool = False) -> Run:
        """See :meth:`Backend.attach`; a run that goes on without its client is taken over as it is.

        Raises:
            ConflictError: Its client is heard of.
        """
        folder = open_folder(self.root, run_id)
        connect(self.address)
        controller = find_actor(controller_name(run_id), NAMESPACE)
        if controller is None:
            return super().attach(run_id, killed=killed)
        client_id = new_claim().client_id
        if _adopts(controller, client_id):
            return begin_run(folder, folder.config(), RemoteSupervision(controller, client_id, folder))
        status = folder.status()
        if status is None or not status.state.ended:
            raise ConflictError(f"{folder.url} is supervised by another client, which is at work")
        # Its shards have said so; it may still be about to end their actors.
        with contextlib.suppress(exceptions.RayError):
            ray.get(controller.close.remote(), timeout=ANSWER_SECONDS)
        _end_actor(controller_name(run_id))
        return super().attach(run_id, killed=killed)

    def end_leftovers(self, run_id: str) -> tuple[str, ...]:
        """See :meth:`Backend.end_leftovers`: the run's actors."""
        connect(self.address or "auto")
        n_shards = open_folder(self.root, run_id).config().n_shards
        names = [controller_name(run_id), *(shard_name(run_id, shard) for shard in range(n_shards))]
        ended = []
        for name in names:
            if _end_actor(name):
                ended.append(f"actor {name}")
        return tuple(ended)


def _adopts(controller: Any, client_id: str) -> bool:
    """Ask a controller to take this process for its client; one that is about to end does not."""
    try:
        return bool(ray.get(controller.adopt.remote(client_id), timeout=ANSWER_SECONDS))
    except exceptions.RayError as error:
        log.info("the controller does not answer: %s", error)
        return False


def _end_actor(name: str) -> bool:
    """End an actor and wait until its name is free; return whether there was one."""
    found = find_actor(name, NAMESPACE)
    if found is None:
        return False
    ray.kill(found, no_restart=True)
    end = time.monotonic() + ANSWER_SECONDS
    while find_actor(name, NAMESPACE) is not None and time.monotonic() < end:
        time.sleep(POLL_SECONDS)  # Ray tells nobody
    return True
