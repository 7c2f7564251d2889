"""Watches a server for a run with seats there: by its reports, by EC2, and by the status of shard 0."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from cirrus.client_backend.aws.facade import AwsFacade
from cirrus.client_backend.aws.seats import Booking, ServerRecords
from cirrus.client_backend.aws.server_bill import ServerBill
from cirrus.client_backend.fleet import AttemptError
from cirrus.client_backend.status_cache import StatusCache
from cirrus.errors import CirrusError, StorageError
from cirrus.metrics import RunState, RunStatus
from cirrus.paramserver.host_records import HostPhase, HostReports, HostStatus

log = logging.getLogger(__name__)

#: The reports of a server are read this often, who else has seats there, and what EC2 says of it.
POLL_SECONDS = 1.0
SHARE_SECONDS = 5.0
DESCRIBE_SECONDS = 10.0
#: A host reports how a booking ended before it gives that up. One whose report was lost says nothing.
LOOKS_WITHOUT_BOOKING = 2
#: EC2 may not know an instance yet that it has just started.
UNKNOWN_SECONDS = 60.0
#: From booking to the first shard: boot, packages, kernels. Measured at 60 to 90 seconds; this is the limit.
STARTUP_LIMIT_SECONDS = 600.0
#: Shard 0 renews the status twice a second, and says there which shards do not answer. A server whose status
#: stands still, or whose shard does not answer, for this long is dead.
SILENT_SECONDS = 60.0
#: What a status says of other shards counts for so long after it was renewed.
STALE_SECONDS = 10.0

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
    records: ServerRecords
    """Who has which seats."""
    bill: ServerBill
    """What the run pays for."""
    notice: Callable[[str], None]
    """Takes what the user should know."""
    clock: Callable[[], float] = time.monotonic
    closed: threading.Event = field(default_factory=threading.Event)
    """Set when nothing is to be started any more."""
    is_taken_over: bool = False
    """Another client has the run now, with all its seats."""
    phase: str = ""
    """What the start-up is waiting for, in words."""


class Watch:
    """Watches one server until the run is over or the server is lost.

    Args:
        around: Of all servers of the run.
        name: The instance's id.
        booking: The seats that the run has there.
    """

    def __init__(self, around: Surroundings, name: str, booking: Booking) -> None:
        self._all = around
        self._name = name
        self._booking = booking
        self._hosts_shard_0 = 0 in booking.shards
        now = around.clock()
        self._paid_until = now
        self._share = 1.0
        self._looks_without_booking = 0
        self._share_at = now
        self._started_at = now
        self._describe_at = now + DESCRIBE_SECONDS
        self._serving = False
        self._heartbeat = (0.0, now)
        self._answered_at = now

    def run(self) -> None:
        """Watch.

        Raises:
            AttemptError: The server is lost.
        """
        try:
            self._watch()
        finally:
            self._pay(self._all.clock())

    def _watch(self) -> None:
        while not self._all.closed.wait(POLL_SECONDS):
            status = self._all.status.read()
            if status is not None and status.state.ended and status.state is not RunState.INTERRUPTED:
                return
            now = self._all.clock()
            if now >= self._share_at:
                self._share_at = now + SHARE_SECONDS
                self._look_at_seats()
            self._pay(now)
            report = self._read_report()
            if report is not None and self._take(report):
                return
            if self._looks_without_booking >= LOOKS_WITHOUT_BOOKING:
                raise AttemptError(f"server {self._name} has given up this run's seats, and does not say why")
            if now >= self._describe_at:
                self._describe_at = now + DESCRIBE_SECONDS
                self._check_instance(now)
            if not self._serving and now - self._started_at > STARTUP_LIMIT_SECONDS:
                raise AttemptError(
                    f"server {self._name} hosted no shard within {STARTUP_LIMIT_SECONDS:.0f} s; last it was"
                    f" {'not heard of' if report is None else report.phase.value}"
                )
            self._check_signs_of_life(status, now)

    def _pay(self, now: float) -> None:
        """Put the time since the last look on the bill: whoever has seats here pays in proportion."""
        passed, self._paid_until = now - self._paid_until, now
        self._all.bill.pay(passed * self._share)
        if self._hosts_shard_0 and self._serving:
            self._all.bill.count(passed)

    def _look_at_seats(self) -> None:
        try:
            record = self._all.records.read(self._name)
        except CirrusError as error:
            log.info("who has seats on %s cannot be read now: %s", self._name, error)
            return
        if record is None:  # somebody has cleared the bucket up; EC2 knows whether the server lives
            return
        if self._booking in record.bookings:
            self._share = len(self._booking.seats) / record.taken
            self._looks_without_booking = 0
        else:
            self._looks_without_booking += 1

    def _read_report(self) -> HostStatus | None:
        try:
            return self._all.reports.read(self._name, self._booking.number)
        except StorageError as error:
            log.info("the report of %s cannot be read now: %s", self._name, error)
            return None

    def _take(self, report: HostStatus) -> bool:
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
            self._heartbeat = (self._heartbeat[0], self._paid_until)
            self._answered_at = self._paid_until
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

    def _check_signs_of_life(self, status: RunStatus | None, now: float) -> None:
        """See whether shard 0 renews the status, or, of other shards, says there that they answer."""
        heartbeat_at = 0.0 if status is None else status.heartbeat_at
        # The status is compared with itself: the clocks of two machines need not agree.
        if heartbeat_at != self._heartbeat[0]:
            self._heartbeat = (heartbeat_at, now)
        if not self._serving:
            return
        silent_since = self._heartbeat[1] if self._hosts_shard_0 else now
        if status is None or not self._are_missed(status, now):
            self._answered_at = now
        if now - min(silent_since, self._answered_at) > SILENT_SECONDS:
            self._all.notice(f"server {self._name} has fallen silent; another one replaces it")
            raise AttemptError(f"server {self._name} has not been heard of for {SILENT_SECONDS:.0f} s")

    def _are_missed(self, status: RunStatus, now: float) -> bool:
        """Tell whether shard 0 says, and of late, that a shard here does not answer."""
        is_new = now - self._heartbeat[1] <= STALE_SECONDS
        running = status.state is RunState.RUNNING
        return is_new and running and not set(self._booking.shards).isdisjoint(status.silent_shards)
