"""The controller of a run: a detached actor that keeps the run alive, with or without its client.

It does what the client's process does on other backends: it holds the claim on the run, and keeps shards and
workers alive. A client only asks it how things are; that is its sign of life, too. A controller whose node is
lost is started again by Ray, takes over the shards that live, and goes on.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray

from cirrus.client_backend.claims import machine_name
from cirrus.client_backend.fleet import AttemptError
from cirrus.client_backend.ray.cluster import living_nodes
from cirrus.client_backend.ray.probe import check_reach
from cirrus.client_backend.ray.shards import log_to_run
from cirrus.client_backend.supervisor import Supervisor
from cirrus.errors import ConflictError
from cirrus.run_folder import ClientClaim, RunFolder

if TYPE_CHECKING:
    from cirrus.client_backend.ray.backend import RayBackend

log = logging.getLogger(__name__)

WATCH_SECONDS = 0.5
#: A controller that nobody has told to begin ends after so long.
BEGIN_SECONDS = 120.0
#: After the end of the run, clients have so long to hear of it.
LINGER_SECONDS = 10.0
#: A client that has not been heard of for so long may be replaced by another one.
CLIENT_SECONDS = 5.0
CLAIM_ATTEMPTS = 5


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a client hears of its run."""

    ended: bool
    phase: str = ""
    notices: tuple[str, ...] = ()
    failure: str | None = None
    """The error that the run was failed with."""
    n_live: int = 0
    """Workers that are invoked."""
    generations: tuple[int, ...] = ()
    """How often each worker was invoked."""


class RunController:
    """Keeps one run alive.

    Args:
        backend: How.
        run_url: The run folder, which the client has made.
        claim: The claim that the client took; from :meth:`begin` on this actor holds it.
    """

    def __init__(self, backend: RayBackend, run_url: str, claim: ClientClaim) -> None:
        self._backend = backend
        self._folder = RunFolder(run_url)
        self._claim = claim
        self._lock = threading.Lock()
        self._client = claim.client_id
        self._heard_at = time.monotonic()
        self._began_at = time.monotonic()
        self._supervisor: Supervisor | None = None
        self._closed = False
        self._me = ray.get_runtime_context().current_actor
        log_to_run(run_url, "controller")
        again = ray.get_runtime_context().was_current_actor_reconstructed
        threading.Thread(target=self._watch, args=(again,), name="controller-watch", daemon=True).start()

    def begin(self) -> None:
        """Check the run's places from every node, and start its shards and workers.

        Raises:
            ConfigError: A node cannot read them.
            ConflictError: Another client has taken the run.
        """
        config = self._folder.config()
        check_reach(self._folder, config, living_nodes(), self._backend.environment)
        self._supervise(self._claim.number)

    def _supervise(self, number: int) -> None:
        claim = dataclasses.replace(
            self._claim, host=machine_name(), pid=os.getpid(), renewed_at=time.time(), number=number
        )
        for attempt in range(CLAIM_ATTEMPTS):
            try:
                self._folder.claim(claim)
                break
            except ConflictError:  # the client has renewed it at the same moment
                if attempt == CLAIM_ATTEMPTS - 1:
                    raise
        supervisor = self._backend.make_supervisor(self._folder, self._folder.config(), claim)
        with self._lock:
            if self._closed:
                self._folder.claim(dataclasses.replace(claim, released=True))
                return
            self._supervisor = supervisor
            self._heard_at = time.monotonic()
        supervisor.start()

    def look(self, client_id: str, seconds: float) -> Look:
        """Wait until the run's end, or for so long; return how things are.

        Args:
            client_id: Who asks; from the run's own client it is a sign of life.
            seconds: How long.
        """
        with self._lock:
            supervisor = self._supervisor
            if client_id == self._client:
                self._heard_at = time.monotonic()
            if supervisor is None:
                return Look(ended=self._closed)
        ended = supervisor.wait(seconds)
        failure = supervisor.failure
        return Look(
            ended=ended,
            phase=supervisor.phase,
            notices=supervisor.notices,
            failure=None if failure is None else str(failure),
            n_live=supervisor.fleet.n_live,
            generations=supervisor.fleet.generations,
        )

    def adopt(self, client_id: str) -> bool:
        """Take another client for the run's own; return False while that one is heard of, or at the end."""
        with self._lock:
            supervisor = self._supervisor
            if supervisor is None or supervisor.ended or self._closed:
                return False
            if time.monotonic() - self._heard_at < CLIENT_SECONDS:
                return False
            self._client, self._heard_at = client_id, time.monotonic()
        return True

    def close(self) -> None:
        """End everything of the run, and wait for that."""
        with self._lock:
            self._closed = True
            supervisor = self._supervisor
        if supervisor is not None:
            supervisor.close()

    def leave(self) -> None:
        """End this actor for good."""
        ray.actor.exit_actor()

    # What the actor does by itself.

    def _watch(self, again: bool) -> None:
        try:
            if again:
                self._begin_again()
            while not self._is_done():
                time.sleep(WATCH_SECONDS)
        except Exception:
            log.exception("the controller of %s ends", self._folder.url)
        finally:
            self.close()
            self._me.leave.remote()

    def _begin_again(self) -> None:
        """Go on with a run whose controller was lost with its node."""
        holder = self._folder.claim_holder()
        if holder is None or holder.client_id != self._claim.client_id or holder.released:
            raise AttemptError("another client has the run, or it was given back")
        self._supervise(holder.number + 1)

    def _is_done(self) -> bool:
        """Tell whether nobody needs this actor; end a run whose client is lost."""
        with self._lock:
            supervisor, silent = self._supervisor, time.monotonic() - self._heard_at
        if supervisor is None:
            return time.monotonic() - self._began_at > BEGIN_SECONDS
        if supervisor.ended:
            return silent > LINGER_SECONDS
        continues = self._folder.config().on_client_loss == "continue"
        limit = None if continues else self._backend.client_lost_seconds
        if limit is not None and silent > limit:
            log.warning("the client of %s has not been heard of for %.0f s", self._folder.url, silent)
            self.close()
        return False


def controller_name(run_id: str) -> str:
    """Return the name of a run's controller."""
    return f"{run_id}/controller"


def find_actor(name: str, namespace: str) -> Any:
    """Return the actor of a name, or None."""
    try:
        return ray.get_actor(name, namespace=namespace)
    except ValueError:
        return None
