"""How one run's shards and workers are run on Ray: actors and tasks, from within the cluster.

A shard's actor that dies is restarted by Ray. What Ray does too late is done here: it takes a lost node for
dead after some 15 seconds, but nobody answers at its raylet's port from the first second on.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray import exceptions

from cirrus.client_backend.fleet import AttemptError, WorkerEvent, WorkerResult
from cirrus.client_backend.launcher import Launcher
from cirrus.client_backend.ray.cluster import NAMESPACE, living_nodes, ray_errors
from cirrus.client_backend.ray.shards import Report, ShardActor
from cirrus.client_backend.ray.sizes import Node, RunNeeds, describe, shard_home, workers_with_room
from cirrus.client_backend.ray.waiting import Waiter
from cirrus.client_backend.ray.workers import work
from cirrus.client_backend.status_cache import StatusCache
from cirrus.errors import CirrusError
from cirrus.metrics import RunState
from cirrus.run_folder import RunFolder

log = logging.getLogger(__name__)

#: Ray restarts a shard's actor so often; then the run's own count of failures decides.
SHARD_RESTARTS = 3
#: Threads of a shard's actor: one serves, others answer.
ACTOR_THREADS = 8
#: How long shards may take for their last snapshots.
SHARD_GRACE_SECONDS = 1.5
#: How often nodes of shards are asked for a sign of life, and how long that may take.
PROBE_SECONDS = 1.0
KNOCK_SECONDS = 1.0
#: A node that has not answered so often in a row is lost.
LOST_AFTER_PROBES = 4
POLL_SECONDS = 0.5
#: What Ray labels each node with.
NODE_LABEL = "ray.io/node-id"
#: A worker that has not come to work after so long is told of.
SCARCE_SECONDS = 15.0
#: The client's many threads share a status that is this old at most.
STATUS_AGE_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a run is placed."""

    run_id: str
    needs: RunNeeds
    environment: dict[str, Any]
    """Ray's ``runtime_env``."""
    wait_seconds: float
    """How long a cluster that is too small may take to grow."""


class _ShardPlace:
    """Where a shard is."""

    def __init__(self, actor: Any, home: str | None) -> None:
        self.actor = actor
        self.home = home
        """The id of the node that it is to be on, then of the one that it is on."""
        self.node: Node | None = None
        self.missed = 0


class RayLauncher(Launcher):
    """Runs the shards and workers of one run; lives in a process of the cluster.

    Args:
        run_url: The run folder.
        plan: How they are placed.
    """

    status_age_seconds = STATUS_AGE_SECONDS

    def __init__(self, run_url: str, plan: Plan) -> None:
        self._run_url = run_url
        self._folder = RunFolder(run_url)
        self._plan = plan
        self._waiter = Waiter()
        self._lock = threading.Lock()
        self._places: dict[int, _ShardPlace] = {}
        self._lost_nodes: set[str] = set()
        self._workers: dict[ray.ObjectRef[Any], tuple[int, float]] = {}
        """The worker's id, and since when it is wanted."""
        self._status = StatusCache(self._folder, STATUS_AGE_SECONDS)
        self._closed = threading.Event()
        self._phase = ""
        self._notices: tuple[str, ...] = ()
        threading.Thread(target=self._watch, name="cirrus-ray-watch", daemon=True).start()

    @property
    def phase(self) -> str:
        """See :attr:`Launcher.phase`."""
        return self._phase

    @property
    def notices(self) -> tuple[str, ...]:
        """See :attr:`Launcher.notices`."""
        return self._notices

    # Shards.

    def run_shard(self, shard: int, generation: int) -> None:
        """See :meth:`Launcher.run_shard`; the actor itself decides the generation that the shard gets."""
        self._await_size()
        with ray_errors(f"shard {shard}"):
            place = self._place(shard)
            self._await_place(shard, place)
            report = self._waiter.result(place.actor.serve.remote())
        if report.error is not None:
            raise AttemptError.of_kind(f"shard {shard}: {report.error}", report.kind)
        place.actor.leave.remote()

    def _await_size(self) -> None:
        """Wait until the cluster is large enough.

        Raises:
            AttemptError: It stays too small.
        """
        needs = self._plan.needs
        end = time.monotonic() + self._plan.wait_seconds
        while (room := workers_with_room(needs, nodes := living_nodes())) < 1:
            wanted = f"{needs.n_shards} x {needs.shard} for shards and {needs.worker} for each worker"
            text = f"the cluster is too small: a run of this size needs {wanted}; there are {describe(nodes)}"
            if time.monotonic() >= end:
                raise AttemptError(text, is_permanent=True)
            self._phase = text
            if self._closed.wait(POLL_SECONDS):
                raise AttemptError("the run is being ended")
        if room < needs.n_workers:
            self._notice(
                f"the cluster has room for {room} of {needs.n_workers} workers ({needs.worker} each; there"
                f" are {describe(nodes)}): the run goes on with those"
            )

    def _notice(self, text: str) -> None:
        with self._lock:
            if text in self._notices:
                return
            self._notices = (*self._notices, text)
        log.warning("%s", text)

    def _place(self, shard: int) -> _ShardPlace:
        """Return the shard's actor: the one that there is, or a new one."""
        needs = self._plan.needs.shard
        with self._lock:
            if self._closed.is_set():
                raise AttemptError("the run is being ended")
            nodes = [node for node in living_nodes() if node.node_id not in self._lost_nodes]
            others = [place.home for k, place in self._places.items() if k != shard and place.home]
            home = shard_home(self._plan.run_id, self._plan.needs, nodes, others)
            actor = (
                ray.remote(ShardActor)
                .options(
                    name=shard_name(self._plan.run_id, shard),
                    namespace=NAMESPACE,
                    get_if_exists=True,
                    lifetime="detached",
                    max_restarts=SHARD_RESTARTS,
                    max_concurrency=ACTOR_THREADS,
                    runtime_env=self._plan.environment,
                    **needs.to_options(),
                    **self._where(home),
                )
                .remote(self._run_url, shard)
            )
            place = self._places[shard] = _ShardPlace(actor, home)
        return place

    def _where(self, home: str | None) -> dict[str, Any]:
        """Return the options that put a shard on its node, or where that is full or lost on another.

        Ray's own ``SPREAD`` does not see to it that actors differ in their nodes: each raylet has its count.
        """
        # Ray itself does not know yet that they are lost.
        lost = {NODE_LABEL: f"!in({','.join(sorted(self._lost_nodes))})"} if self._lost_nodes else {}
        elsewhere: dict[str, Any] = {"label_selector": lost}
        if home is None:
            return elsewhere
        return {"label_selector": {NODE_LABEL: home}, "fallback_strategy": [elsewhere]}

    def _await_place(self, shard: int, place: _ShardPlace) -> None:
        """Wait until Ray has started the actor."""
        ref = place.actor.where.remote()
        while not ray.wait([ref], timeout=POLL_SECONDS)[0]:
            self._phase = f"waiting until Ray starts shard {shard} ({self._plan.needs.shard})"
            if self._closed.is_set():
                raise AttemptError("the run is being ended")
        place.home = node_id = str(ray.get(ref))
        place.node = next((node for node in living_nodes() if node.node_id == node_id), None)
        self._phase = f"starting shard {shard}"

    # Workers.

    def invoke(self, event: WorkerEvent) -> WorkerResult:
        """See :meth:`Launcher.invoke`."""
        evaluates = event.role == "evaluate"
        name = f"{'evaluator' if evaluates else 'worker'} {event.worker_id}"
        # An evaluator that waited for room would hold up the workers that it waits for.
        declared = {"num_cpus": 0} if evaluates else self._plan.needs.worker.to_options()
        with self._lock:
            if self._closed.is_set():
                raise AttemptError("the run is being ended")
            ref: ray.ObjectRef[Any] = (
                ray.remote(work)
                .options(
                    name=f"{self._plan.run_id}/{name.replace(' ', '-')}",
                    max_retries=0,
                    scheduling_strategy="SPREAD",
                    runtime_env=self._plan.environment,
                    **declared,
                )
                .remote(event.to_plain())
            )
            self._workers[ref] = (event.worker_id, time.monotonic())
        try:
            with ray_errors(name):
                said = self._waiter.result(ref)
        finally:
            with self._lock:
                self._workers.pop(ref, None)
        if isinstance(said, Report):
            raise AttemptError.of_kind(f"{name}: {said.error}", said.kind)
        return WorkerResult.from_plain(said)

    # Watching.

    def _watch(self) -> None:
        """Look after the nodes of shards, and at what is not told otherwise."""
        while not self._closed.wait(PROBE_SECONDS):
            with self._lock:
                places = dict(self._places)
            for shard, place in places.items():
                try:
                    self._probe(shard, place)
                except exceptions.RayError as error:
                    log.info("shard %d: %s", shard, error)
            self._look_for_waiting()

    def _look_for_waiting(self) -> None:
        """Tell of workers that find no room, because others have it."""
        status = self._status.read()
        if status is None or status.state is not RunState.RUNNING:
            return
        latest = time.monotonic() - SCARCE_SECONDS
        with self._lock:
            wanted = [worker for worker, since in self._workers.values() if since < latest]
        missing = [worker for worker in wanted if str(worker) not in status.workers]
        if missing and status.workers:
            self._notice(
                f"{len(missing)} of {len(wanted)} workers have not come to work yet: Ray starts them when it"
                " has room"
            )

    def _probe(self, shard: int, place: _ShardPlace) -> None:
        """Replace a shard whose node is lost, before Ray does."""
        if place.node is None:
            return
        if answers(place.node):
            place.missed = 0
            return
        place.missed += 1
        if place.missed < LOST_AFTER_PROBES:
            return
        log.warning("shard %d: its node %s is lost", shard, place.node.node_id)
        with self._lock:
            self._lost_nodes.add(place.node.node_id)
        place.node = None
        ray.kill(place.actor, no_restart=True)

    # The end.

    def close(self) -> None:
        """See :meth:`Launcher.close`."""
        with self._lock:
            self._closed.set()
            workers, places = list(self._workers), dict(self._places)
        stops = [_call(place.actor.stop.remote) for place in places.values()]
        for ref in workers:
            _call(functools.partial(ray.cancel, ref, force=True))
        waiting = [ref for ref in stops if ref is not None]
        if waiting:
            _call(functools.partial(ray.wait, waiting, num_returns=len(waiting), timeout=SHARD_GRACE_SECONDS))
        self.kill()
        self._waiter.close()

    def kill(self) -> None:
        """See :meth:`Launcher.kill`."""
        with self._lock:
            self._closed.set()
            workers, places = list(self._workers), list(self._places.values())
        for ref in workers:
            _call(functools.partial(ray.cancel, ref, force=True))
        for place in places:
            _call(functools.partial(ray.kill, place.actor, no_restart=True))


def shard_name(run_id: str, shard: int) -> str:
    """Return the name of a shard's actor."""
    return f"{run_id}/shard-{shard}"


def answers(node: Node) -> bool:
    """Return whether anybody listens at a node's raylet's port."""
    try:
        socket.create_connection((node.address, node.port), KNOCK_SECONDS).close()
    except OSError:
        return False
    return True


def _call(function: Callable[[], Any]) -> Any:
    """Call Ray where an error changes nothing: what is to be ended may have ended."""
    with contextlib.suppress(exceptions.RayError, CirrusError, ValueError):
        return function()
    return None
