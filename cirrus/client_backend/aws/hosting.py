"""Hosts the shards of several runs at once on one instance, as its record in the bucket says.

Whoever has a booking there (:mod:`cirrus.client_backend.aws.seats`) is served, each run by itself
(:class:`Stay`): one that fails, loses its client or is given up takes none of the others with it. A seat that
was given up while its shard saves itself can be booked at once, and is served when it is free in truth, so
that two shards never want one port.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cirrus.client_backend.aws.instance import Instance, InstanceMetadata
from cirrus.client_backend.aws.seats import Booking, ServerRecord, ServerRecords
from cirrus.client_backend.aws.standbys import Standbys
from cirrus.client_backend.aws.stay import Stay
from cirrus.client_backend.local import LocalCommands, shard_command, shard_words
from cirrus.client_backend.processes import ChildProcess
from cirrus.client_backend.runs import run_url
from cirrus.errors import CirrusError, ConfigError, RunError
from cirrus.paramserver.host_records import HostPhase, HostReports, HostStatus
from cirrus.storage import open_store

log = logging.getLogger(__name__)

#: How often the host looks who has booked seats; the end of a stay makes it look at once.
LOOK_SECONDS = 0.5
#: AWS tells two minutes before, and advises to look this often.
SPOT_LOOK_SECONDS = 5.0
#: A report that the bucket refuses is tried again so often.
REPORT_ATTEMPTS = 3


@dataclass(frozen=True, kw_only=True)
class HostOptions:
    """How a host serves."""

    root: str
    """Object-store URL that ``runs/`` lies in."""
    first_port: int = 0
    """The shard on seat K listens on this port plus K; 0: on one that the kernel chooses."""
    keep_warm_seconds: float = 300.0
    client_lost_seconds: float = 300.0
    release: str = ""
    """What this instance is installed from."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not 0 <= self.first_port < 2**16:
            raise ConfigError("first_port", f"must be a port or 0, got {self.first_port}")
        if self.keep_warm_seconds < 0:
            raise ConfigError("keep_warm_seconds", f"must be >= 0, got {self.keep_warm_seconds!r}")
        if self.client_lost_seconds <= 0:
            raise ConfigError("client_lost_seconds", f"must be > 0, got {self.client_lost_seconds!r}")


class Host:
    """Serves the runs that have seats on one instance.

    Args:
        instance: What the instance was launched as.
        metadata: Tells when AWS takes the instance back.
        options: How to serve.
        command: Command line of a shard process for (run url, shard, generation), for tests of failures.
            Listening addresses are added to it.
    """

    def __init__(
        self,
        instance: Instance,
        metadata: InstanceMetadata,
        options: HostOptions,
        command: Callable[[str, int, int], Sequence[str]] = shard_command,
    ) -> None:
        self._instance = instance
        self._metadata = metadata
        self._options = options
        self._command = command
        self._records = ServerRecords(open_store(options.root))
        self._stop = threading.Event()
        self._woken = threading.Event()
        self._spot_look_at = 0.0
        self._standbys = Standbys()
        self._stays: dict[int, Stay] = {}
        self._idle_at: float | None = None
        self._blind_at: float | None = None
        """Since when the record can be neither read nor written, in monotonic seconds."""
        self._most_taken = os.cpu_count() or 1

    def stop(self) -> None:
        """Have all shards save themselves and :meth:`run` return, soon; a signal handler may call this."""
        self._stop.set()
        self._woken.set()

    def run(self, prepare: Callable[[], None] | None = None) -> None:
        """Serve until the instance is to be shut down.

        Args:
            prepare: Called once before the first shard is started; compiles the kernels.

        Raises:
            CirrusError: The record can neither be read nor written.
        """
        record = self._enter()
        if prepare is not None:
            for booking in record.bookings:
                self._report(booking, HostPhase.COMPILING)
            try:
                prepare()
            except CirrusError as error:
                log.exception("this instance cannot serve")
                self._leave(HostPhase.FAILED, error)
                return
        try:
            while (phase := self._look()) is None:
                self._woken.wait(LOOK_SECONDS)
                self._woken.clear()
                if self._stop.is_set():
                    phase = HostPhase.INTERRUPTED
                    break
                if self._is_reclaimed():
                    phase = HostPhase.RECLAIMED
                    break
            self._leave(phase)
        finally:
            self._standbys.close()

    def _enter(self) -> ServerRecord:
        """Return this instance's record, written anew where the client that launched it could not.

        Started again after a crash, the program finds there whom it is at work for.
        """
        mine = self._instance
        made = ServerRecord(
            instance=mine.instance,
            instance_type=mine.instance_type,
            release=self._options.release,
            capacity=len(mine.shards),
            launched_at=time.time(),
        ).book(mine.run, mine.shards)
        assert made is not None  # a new server has free seats
        record = self._records.enter(made[0])

        def step(record: ServerRecord) -> ServerRecord:
            # A client may not know of the deployment's newest release; what it launches is of that.
            return dataclasses.replace(record, release=self._options.release)

        return self._records.change(mine.instance, step) or record

    # Serving.

    def _look(self) -> HostPhase | None:
        """Serve what is booked, and nothing else; return how the host ends if nobody needs it any more."""
        try:
            for stay in [stay for stay in self._stays.values() if stay.has_ended]:
                self._give_up(stay)
                del self._stays[stay.booking.number]
            record = self._records.read(self._instance.instance)
            if record is not None:  # without one, what is booked stays as it was
                self._settle(record)
            needless = self._is_needless(record)
        except CirrusError as error:
            log.warning("the record of this server cannot be used now: %s", error)
            return HostPhase.FAILED if self._is_blind_for_good() else None
        self._blind_at = None
        return HostPhase.ENDED if needless else None

    def _is_blind_for_good(self) -> bool:
        """Tell whether nobody is at work here, nor could come: for so long the record has been of no use.

        Shards go on whatever becomes of the record. But without them, to wait for a record that somebody has
        damaged, or for a role that was taken away, would cost as long as the instance may live.
        """
        now = time.monotonic()
        if self._blind_at is None or not all(stay.has_ended for stay in self._stays.values()):
            self._blind_at = now
        return now - self._blind_at > self._options.client_lost_seconds

    def _settle(self, record: ServerRecord) -> None:
        """Have what is at work be what is booked."""
        self._most_taken = max(self._most_taken, record.taken)
        booked = {booking.number for booking in record.bookings}
        for number, stay in self._stays.items():
            if number not in booked:
                stay.leave(HostPhase.INTERRUPTED)
        for booking in record.bookings:
            taken = {seat for stay in self._stays.values() for seat in stay.booking.seats}
            if booking.number not in self._stays and taken.isdisjoint(booking.seats):
                self._serve(booking)

    def _serve(self, booking: Booking) -> None:
        stay = self._stays[booking.number] = Stay(
            booking,
            run_url(self._options.root, booking.run),
            self._commands(booking),
            self._report,
            self._woken.set,
            client_lost_seconds=self._options.client_lost_seconds,
        )
        stay.start()

    def _give_up(self, stay: Stay) -> None:
        """Free the seats of a stay that has ended."""
        ended_well = stay.phase in (HostPhase.ENDED, HostPhase.INTERRUPTED) and not stay.client_lost
        keep = ended_well and self._options.keep_warm_seconds > 0
        numbers = [stay.booking.number]
        self._records.change(
            self._instance.instance, lambda record: record.give_up(numbers, now=time.time(), keep=keep)
        )

    def _is_needless(self, record: ServerRecord | None) -> bool:
        """Tell whether nobody has a seat, nor may have one any more."""
        if self._stays or (record is not None and record.bookings):
            self._idle_at = None
            return False
        if record is None or record.closed:
            return True
        now = time.monotonic()
        if self._idle_at is None:
            self._idle_at = now
            self._get_standbys_ready(min(record.capacity, self._most_taken))
        if now - self._idle_at < self._options.keep_warm_seconds:
            return False
        # Whoever writes first decides: from here on no client can believe that it has a seat.
        left = self._records.change(
            self._instance.instance, lambda record: record if record.bookings else record.close()
        )
        return left is None or left.is_over

    def _leave(self, phase: HostPhase, error: Exception | None = None) -> None:
        """Let nobody come any more, have all shards save themselves, tell their clients, and be forgotten."""
        record = None
        try:
            record = self._records.change(self._instance.instance, ServerRecord.close)
        except CirrusError as problem:
            log.warning("the record of this server cannot be closed: %s", problem)
        for stay in self._stays.values():
            stay.leave(phase)
        for stay in self._stays.values():
            stay.join()
        for booking in () if record is None else record.bookings:
            if booking.number not in self._stays:
                self._report(booking, phase, error)
        try:
            self._records.forget(self._instance.instance)
        except CirrusError as problem:  # clients see that the instance is gone
            log.warning("the record of this server cannot be removed: %s", problem)

    # What it takes.

    def _commands(self, booking: Booking) -> LocalCommands:
        seats = dict(zip(booking.shards, booking.seats, strict=True))

        def where(shard: int) -> list[str]:
            port = self._options.first_port + seats[shard] if self._options.first_port else 0
            return ["--host", self._instance.address, "--port", str(port)]

        def command(url: str, shard: int, generation: int) -> list[str]:
            return [*self._command(url, shard, generation), *where(shard)]

        def standby(url: str, shard: int, generation: int) -> ChildProcess | None:
            return self._standbys.take([*shard_words(url, shard, generation), *where(shard)])

        return LocalCommands(shard=command, standby=standby)

    def _get_standbys_ready(self, n_shards: int) -> None:
        """Start processes for the shards that come next, while nobody else needs the processors."""
        if self._command is not shard_command:
            return
        try:
            self._standbys.start(n_shards)
        except RunError as error:  # the next run then starts its shards itself
            log.warning("%s", error)

    def _is_reclaimed(self) -> bool:
        now = time.monotonic()
        if now < self._spot_look_at:
            return False
        self._spot_look_at = now + SPOT_LOOK_SECONDS
        try:
            return self._metadata.is_reclaimed()
        except RunError as error:
            log.warning("%s", error)
            return False

    def _report(self, booking: Booking, phase: HostPhase, error: Exception | None = None) -> None:
        """Tell a run's clients how far its booking is; the threads of all stays do so."""
        status = HostStatus(
            instance=self._instance.instance,
            phase=phase,
            shards=booking.shards,
            booking=booking.number,
            at=time.time(),
            error=None if error is None else str(error),
            error_type=None if error is None else type(error).__name__,
        )
        for attempt in range(REPORT_ATTEMPTS):
            try:
                HostReports(open_store(run_url(self._options.root, booking.run))).write(status)
            except CirrusError as problem:
                log.warning("attempt %d: the report cannot be written: %s", attempt + 1, problem)
            else:
                return
