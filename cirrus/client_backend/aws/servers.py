"""The virtual machines that host a run's shards, each kept alive by one thread of the client.

A server is taken over where the run has one already (another client began it), else claimed where one is
warm, else launched. From then on the client watches: the host program's own reports in the run folder, what
EC2 says of the instance, and whether shard 0 still renews the status. The client never connects to a server.

A server that fails, vanishes, is taken back by AWS or falls silent is ended, and the next incarnation takes
its place; its shards restore themselves from their snapshots under new generations, which supersede whatever
might be left of the old ones.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Sequence
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
from cirrus.client_backend.fleet import AttemptError
from cirrus.client_backend.status_cache import StatusCache
from cirrus.errors import CirrusError, StorageError
from cirrus.metrics import RunState
from cirrus.paramserver.host_records import (
    HostPhase,
    HostReports,
    HostStatus,
    ServerClaim,
    WarmServers,
    format_shards,
)

log = logging.getLogger(__name__)

#: The reports of a server are read this often, and EC2 is asked about it this often.
POLL_SECONDS = 1.0
DESCRIBE_SECONDS = 10.0
#: EC2 may not know an instance yet that it has just started.
UNKNOWN_SECONDS = 60.0
#: From launch to the first shard: boot, packages, kernels. Measured at 60 to 90 seconds.
STARTUP_SECONDS = 600.0
#: Shard 0 renews the status twice a second; a server whose status stands still for this long is dead.
SILENT_SECONDS = 60.0
#: A warm server that will end this soon is not worth claiming.
WARM_MARGIN_SECONDS = 15.0
#: How long the end of a run waits for a launch that is under way, so that its instance is ended too.
LAUNCHING_SECONDS = 2.0
#: EC2 takes client tokens of up to 64 characters.
TOKEN_CHARACTERS = 64
NONCE_BYTES = 4

_PHASE_WORDS = {
    HostPhase.INSTALLING: "installing packages",
    HostPhase.COMPILING: "compiling kernels",
    HostPhase.SERVING: "starting shards",
}


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


@dataclass(slots=True)
class _Billing:
    """Seconds of servers that no shard counts: from their launch to their first shard."""

    seconds: float = 0.0


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
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.plan = plan
        self.facade = facade
        self.status = status
        self.reports = reports
        self.warm = warm
        self.notice = notice
        self.clock = clock
        self.closed = threading.Event()
        """Set when nothing is to be started any more."""
        self.launching = threading.Lock()
        """Held while an instance is being launched."""
        self.billing = _Billing()
        # Another client's tokens name what it launched, and EC2 would give that back, ended as it may be.
        self.nonce = secrets.token_hex(NONCE_BYTES)
        self.phase = ""
        """What the start-up is waiting for, in words."""
        size = plan.shards_per_server
        groups = [tuple(range(first, min(first + size, n_shards))) for first in range(0, n_shards, size)]
        self._servers = [_Server(self, group) for group in groups]

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
        self.closed.set()
        held = self.launching.acquire(timeout=LAUNCHING_SECONDS)
        try:
            status = self.status.read_now()
            finished = status is not None and status.state is RunState.FINISHED
            if not (finished and self.plan.keep_warm_seconds > 0):
                end_servers(self.facade, self.plan.run_id)
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
        name = self._adopt() or self._claim() or self._launch(generation)
        if name is None:  # the run is being ended
            return
        try:
            _Watch(self._all, name, self._shards, self._stale).run()
        except AttemptError:
            # Whatever is wrong with it, two servers for the same shards would cost twice.
            self._all.facade.terminate([name])
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
        for found in self._all.facade.instances(run_id=self._all.plan.run_id, states=LIVING_STATES):
            if found.tags.get(TAG_SHARDS) != format_shards(self._shards):
                continue
            report = self._all.reports.read(found.instance_id)
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
            if not self._all.facade.instances(instance_ids=[offer.instance], states=LIVING_STATES):
                warm.forget(offer.instance)
                continue
            # It may have served this very run before, and have said that it was over.
            self._stale = self._all.reports.read(offer.instance)
            if warm.claim(offer.instance, ServerClaim(run=plan.run_id, shards=self._shards)):
                self._all.facade.tag_instance(offer.instance, self._tags)
                log.info("the warm server %s hosts shards %s", offer.instance, self._tags[TAG_SHARDS])
                return offer.instance
        return None

    def _launch(self, generation: int) -> str | None:
        plan = self._all.plan
        self._all.phase = f"launching a server ({plan.instance_type})"
        with self._all.launching:
            if self._all.closed.is_set():
                return None
            return self._all.facade.run_instance(
                template_id=plan.launch_template_id,
                client_token=f"{plan.run_id}-{self._shards[0]}-{generation}-{self._all.nonce}"[
                    -TOKEN_CHARACTERS:
                ],
                tags=self._tags,
                instance_type=plan.instance_type if plan.overrides_type else None,
                spot=plan.spot,
            )


class _Watch:
    """Watches one server until the run is over or the server is lost."""

    def __init__(self, servers: Servers, name: str, shards: Sequence[int], stale: HostStatus | None) -> None:
        self._all = servers
        self._stale = stale
        self._name = name
        self._hosts_shard_0 = 0 in shards
        now = servers.clock()
        self._started_at = now
        self._describe_at = now + DESCRIBE_SECONDS
        self._serving = False
        self._heartbeat = (0.0, now)

    def run(self) -> None:
        """Watch.

        Raises:
            AttemptError: The server is lost.
        """
        while not self._all.closed.wait(POLL_SECONDS):
            status = self._all.status.read()
            if status is not None and status.state.ended and status.state is not RunState.INTERRUPTED:
                return
            now = self._all.clock()
            report = self._read_report()
            if report is not None and report != self._stale and self._take(report, now):
                return
            if now >= self._describe_at:
                self._describe_at = now + DESCRIBE_SECONDS
                self._check_instance(now)
            if not self._serving and now - self._started_at > STARTUP_SECONDS:
                raise AttemptError(
                    f"server {self._name} hosted no shard within {STARTUP_SECONDS:.0f} s; last it was"
                    f" {'not heard of' if report is None else report.phase.value}"
                )
            if self._hosts_shard_0 and self._serving:
                self._check_heartbeat(0.0 if status is None else status.heartbeat_at, now)

    def _read_report(self) -> HostStatus | None:
        try:
            return self._all.reports.read(self._name)
        except StorageError as error:
            log.info("the report of %s cannot be read now: %s", self._name, error)
            return None

    def _take(self, report: HostStatus, now: float) -> bool:
        """Take note of what the host says; return whether it has done its part."""
        match report.phase:
            case HostPhase.ENDED:
                return True
            case HostPhase.RECLAIMED:
                self._all.notice(f"AWS takes back the spot server {self._name}; another one replaces it")
                raise AttemptError(f"AWS took back the server {self._name}")
            case HostPhase.INTERRUPTED:
                self._all.notice(f"server {self._name} is shutting down; another one replaces it")
                raise AttemptError(f"server {self._name} is shutting down, or took the client for gone")
            case HostPhase.FAILED:
                raise AttemptError.of_kind(f"server {self._name}: {report.error}", report.error_type or "")
        if report.phase is HostPhase.SERVING and not self._serving:
            self._serving = True
            self._heartbeat = (self._heartbeat[0], now)
            self._all.billing.seconds += now - self._started_at
        self._all.phase = f"server {self._name} is {_PHASE_WORDS[report.phase]}"
        return False

    def _check_instance(self, now: float) -> None:
        try:
            found = self._all.facade.instances(instance_ids=[self._name])
        except CirrusError as error:
            log.info("EC2 does not say how %s is: %s", self._name, error)
            return
        if not found:
            if now - self._started_at > UNKNOWN_SECONDS:
                raise AttemptError(f"server {self._name} is unknown to EC2")
        elif not found[0].is_living:
            why = f" ({found[0].reason})" if found[0].reason else ""
            self._all.notice(f"server {self._name} has ended{why}; another one replaces it")
            raise AttemptError(f"server {self._name} is {found[0].state}{why}")

    def _check_heartbeat(self, heartbeat_at: float, now: float) -> None:
        """Compare the status with itself: the clocks of two machines need not agree."""
        if heartbeat_at != self._heartbeat[0]:
            self._heartbeat = (heartbeat_at, now)
        elif now - self._heartbeat[1] > SILENT_SECONDS:
            self._all.notice(f"server {self._name} has fallen silent; another one replaces it")
            raise AttemptError(f"server {self._name} has not been heard of for {SILENT_SECONDS:.0f} s")
