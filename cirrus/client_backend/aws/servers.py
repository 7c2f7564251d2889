"""The virtual machines that host a run's shards, each kept alive by one thread of the client.

A server is taken over where the run has one already (another client began it), else claimed where one is
warm, else launched. From then on the client watches: the host program's own reports in the run folder, what
EC2 says of the instance, and whether shard 0 still renews the status. The client never connects to a server.

A server that fails, vanishes, is taken back by AWS or falls silent is ended, and the next incarnation takes
its place; its shards restore themselves from their snapshots under new generations, which supersede whatever
might be left of the old ones.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from cirrus.client_backend.aws.facade import (
    LIVING_STATES,
    OWNER,
    TAG_DEPLOYMENT,
    TAG_OWNER,
    TAG_RUN,
    TAG_SHARDS,
    AwsFacade,
)
from cirrus.client_backend.aws.server_watch import Surroundings, Watch
from cirrus.client_backend.fleet import AttemptError
from cirrus.client_backend.status_cache import StatusCache
from cirrus.errors import CirrusError
from cirrus.metrics import RunState, RunStatus
from cirrus.paramserver.host_records import (
    HostReports,
    HostStatus,
    ServerClaim,
    WarmServers,
    format_shards,
)

log = logging.getLogger(__name__)

#: A warm server that will end this soon is not worth claiming.
WARM_MARGIN_SECONDS = 15.0
#: A server sees within a second or two that its run is over: how long, and how often, it is looked for.
SETTLING_SECONDS = 10.0
SETTLING_POLL_SECONDS = 0.3
#: How long the end of a run waits for a launch that is under way, so that its instance is ended too.
LAUNCHING_SECONDS = 2.0
#: EC2 takes client tokens of up to 64 characters.
TOKEN_CHARACTERS = 64
NONCE_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class ServerPlan:
    """What servers a run gets."""

    run_id: str
    deployment: str
    """Its name, which the instances are tagged with."""
    launch_template_id: str
    instance_type: str
    overrides_type: bool
    """The launch template has another instance type."""
    spot: bool
    keep_warm_seconds: float
    shards_per_server: int


class Servers:
    """All servers of one run.

    Args:
        plan: What they are.
        n_shards: Shards of the run.
        facade: AWS.
        status: The run's.
        reports: What the hosts say.
        warm: Servers that wait for a run.
        notice: Takes what the user should know.
        status_of: Returns the status of another run, or None where it has none.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        plan: ServerPlan,
        n_shards: int,
        *,
        facade: AwsFacade,
        status: StatusCache,
        reports: HostReports,
        warm: WarmServers,
        notice: Callable[[str], None],
        status_of: Callable[[str], RunStatus | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.plan = plan
        self.around = Surroundings(facade=facade, status=status, reports=reports, notice=notice, clock=clock)
        self.warm = warm
        self.status_of = status_of
        self.launching = threading.Lock()
        """Held while an instance is being launched."""
        # Another client's tokens name what it launched, and EC2 would give that back, ended as it may be.
        self.nonce = secrets.token_hex(NONCE_BYTES)
        size = plan.shards_per_server
        groups = [tuple(range(first, min(first + size, n_shards))) for first in range(0, n_shards, size)]
        self._servers = [_Server(self, group) for group in groups]

    @property
    def phase(self) -> str:
        """What the start-up is waiting for, in words."""
        return self.around.phase

    @property
    def uncounted_seconds(self) -> float:
        """Seconds of servers that no shard counts: before their first shard of this run."""
        return self.around.uncounted_seconds

    @property
    def count(self) -> int:
        """How many servers the run has."""
        return len(self._servers)

    def serve(self, shard: int, generation: int) -> None:
        """Keep the server of a shard at work until the run is over.

        Args:
            shard: Which one; the threads of all shards of a server wait for the same incarnation.
            generation: Of the shard, as this client counts; names the incarnation.

        Raises:
            AttemptError: The server is lost.
            CloudError: None could be had.
        """
        self._servers[shard // self.plan.shards_per_server].serve(generation)

    def close(self) -> None:
        """End the servers, unless the run has finished and they may wait for another one."""
        self.around.closed.set()
        held = self.launching.acquire(timeout=LAUNCHING_SECONDS)
        try:
            status = self.around.status.read_now()
            finished = status is not None and status.state is RunState.FINISHED
            if not (finished and self.plan.keep_warm_seconds > 0):
                end_servers(self.around.facade, self.plan.run_id)
        finally:
            if held:
                self.launching.release()


def end_servers(facade: AwsFacade, run_id: str) -> tuple[str, ...]:
    """End all servers of a run; return their ids.

    Raises:
        CloudError: They may still be at work.
    """
    names = [found.instance_id for found in facade.instances(run_id=run_id, states=LIVING_STATES)]
    facade.terminate(names)
    return tuple(names)


class _Server:
    """One server after the other, for the same shards."""

    def __init__(self, servers: Servers, shards: tuple[int, ...]) -> None:
        self._all = servers
        self._shards = shards
        self._lock = threading.Lock()
        self._incarnation: Future[None] | None = None
        self._stale: HostStatus | None = None

    def serve(self, generation: int) -> None:
        with self._lock:
            future = self._incarnation
            leads = future is None
            if future is None:
                future = self._incarnation = Future()
        if not leads:
            future.result()
            return
        try:
            self._serve(generation)
        except BaseException as error:
            self._forget()
            future.set_exception(error)
            raise
        self._forget()
        future.set_result(None)

    def _forget(self) -> None:
        with self._lock:
            self._incarnation = None

    def _serve(self, generation: int) -> None:
        name = self._adopt() or self._claim() or self._claim_soon() or self._launch(generation)
        if name is None:  # the run is being ended
            return
        try:
            Watch(self._all.around, name, self._shards, self._stale).run()
        except AttemptError:
            # Whatever is wrong with it, two servers for the same shards would cost twice.
            self._all.around.facade.terminate([name])
            raise

    @property
    def _tags(self) -> dict[str, str]:
        run_id = self._all.plan.run_id
        return {
            "Name": f"cirrus-{run_id}",
            TAG_RUN: run_id,
            TAG_SHARDS: format_shards(self._shards),
            TAG_OWNER: OWNER,
            TAG_DEPLOYMENT: self._all.plan.deployment,
        }

    def _adopt(self) -> str | None:
        """Return the server that works for these shards already."""
        for found in self._all.around.facade.instances(run_id=self._all.plan.run_id, states=LIVING_STATES):
            if found.tags.get(TAG_SHARDS) != format_shards(self._shards):
                continue
            report = self._all.around.reports.read(found.instance_id)
            if report is None or not report.phase.is_last:
                return found.instance_id
        return None

    def _claim(self) -> str | None:
        """Return a warm server that is this run's from now on."""
        plan, warm = self._all.plan, self._all.warm
        for offer in sorted(warm.all(), key=lambda offer: offer.until, reverse=True):
            room = max(offer.shards, plan.shards_per_server)
            fits = offer.instance_type == plan.instance_type and len(self._shards) <= room
            if not fits or offer.until - time.time() < WARM_MARGIN_SECONDS:
                continue
            if not self._all.around.facade.instances(instance_ids=[offer.instance], states=LIVING_STATES):
                warm.forget(offer.instance)
                continue
            # It may have served this very run before, and have said that it was over.
            self._stale = self._all.around.reports.read(offer.instance)
            if warm.claim(offer.instance, ServerClaim(run=plan.run_id, shards=self._shards)):
                self._all.around.facade.tag_instance(offer.instance, self._tags)
                log.info("the warm server %s hosts shards %s", offer.instance, self._tags[TAG_SHARDS])
                # It has waited for this run alone. The clocks of two machines may differ.
                waited_seconds = min(max(0.0, time.time() - offer.since), plan.keep_warm_seconds)
                self._all.around.uncounted_seconds += waited_seconds
                return offer.instance
        return None

    def _claim_soon(self) -> str | None:
        """Return a server whose run has just ended, claimed as soon as it offers itself.

        A script's next run begins before the server of the one before has seen that its run is over.
        """
        around = self._all.around
        end = around.clock() + SETTLING_SECONDS
        while not around.closed.is_set():
            is_settling = self._is_settling()
            name = self._claim()  # after looking: what offers itself in between is found here
            if name is not None or not is_settling or around.clock() > end:
                return name
            around.closed.wait(SETTLING_POLL_SECONDS)
        return None

    def _is_settling(self) -> bool:
        """Tell whether there is a server of the right type whose run has finished; it is not free yet."""
        plan, warm = self._all.plan, self._all.warm
        offered = {offer.instance for offer in warm.all()}
        for found in self._all.around.facade.instances(states=LIVING_STATES):
            run_id = found.tags.get(TAG_RUN, "")
            is_ours = found.tags.get(TAG_DEPLOYMENT) == plan.deployment and run_id not in ("", plan.run_id)
            if not is_ours or found.instance_type != plan.instance_type or found.instance_id in offered:
                continue
            with contextlib.suppress(CirrusError):  # another run's records may be damaged
                claim = warm.claim_of(found.instance_id)
                status = self._all.status_of(run_id) if claim is None or claim.run == run_id else None
                if status is not None and status.state is RunState.FINISHED:
                    return True
        return False

    def _launch(self, generation: int) -> str | None:
        plan = self._all.plan
        self._all.around.phase = f"launching a server ({plan.instance_type})"
        with self._all.launching:
            if self._all.around.closed.is_set():
                return None
            return self._all.around.facade.run_instance(
                template_id=plan.launch_template_id,
                client_token=f"{plan.run_id}-{self._shards[0]}-{generation}-{self._all.nonce}"[
                    -TOKEN_CHARACTERS:
                ],
                tags=self._tags,
                instance_type=plan.instance_type if plan.overrides_type else None,
                spot=plan.spot,
            )
