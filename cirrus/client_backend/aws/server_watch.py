"""Watches one server of a run: by its own reports, by what EC2 says of it, and by the status of shard 0."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cirrus.client_backend.aws.facade import AwsFacade
from cirrus.client_backend.fleet import AttemptError
from cirrus.client_backend.status_cache import StatusCache
from cirrus.errors import CirrusError, StorageError
from cirrus.metrics import RunState
from cirrus.paramserver.host_records import HostPhase, HostReports, HostStatus

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

_PHASE_WORDS = {
    HostPhase.INSTALLING: "installing packages",
    HostPhase.COMPILING: "compiling kernels",
    HostPhase.SERVING: "starting shards",
}


@dataclass(kw_only=True)
class Surroundings:
    """What the threads of all servers of a run share."""

    facade: AwsFacade
    status: StatusCache
    """The run's."""
    reports: HostReports
    """What the hosts say."""
    notice: Callable[[str], None]
    """Takes what the user should know."""
    clock: Callable[[], float] = time.monotonic
    closed: threading.Event = field(default_factory=threading.Event)
    """Set when nothing is to be started any more."""
    phase: str = ""
    """What the start-up is waiting for, in words."""
    uncounted_seconds: float = 0.0
    """Seconds of servers that no shard counts: before their first shard of this run."""


class Watch:
    """Watches one server until the run is over or the server is lost.

    Args:
        around: Of all servers of the run.
        name: The instance's id.
        shards: Which shards it hosts.
        stale: A report of it that is about the time before.
    """

    def __init__(
        self, around: Surroundings, name: str, shards: Sequence[int], stale: HostStatus | None
    ) -> None:
        self._all = around
        self._stale = stale
        self._name = name
        self._hosts_shard_0 = 0 in shards
        now = around.clock()
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
            self._all.uncounted_seconds += now - self._started_at
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
