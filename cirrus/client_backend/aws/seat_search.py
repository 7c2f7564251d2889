"""Finding seats for a run's shards: those it has already, those that are free, and those of new servers."""

from __future__ import annotations

import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from cirrus.client_backend.aws.facade import (
    LIVING_STATES,
    OWNER,
    TAG_DEPLOYMENT,
    TAG_OWNER,
    TAG_RUN,
    TAG_SHARDS,
    AwsFacade,
    Instance,
)
from cirrus.client_backend.aws.seats import Booking, ServerRecord, ServerRecords
from cirrus.client_backend.aws.server_watch import UNKNOWN_SECONDS, Surroundings
from cirrus.errors import CirrusError, ConfigError, CorruptDataError
from cirrus.paramserver.host_records import format_shards, parse_shards

log = logging.getLogger(__name__)

#: EC2 takes client tokens of up to 64 characters.
TOKEN_CHARACTERS = 64
NONCE_BYTES = 4
#: EC2 takes filters of so many values.
FILTER_VALUES = 200


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
    release: str
    """What new servers are installed from; empty: one that knows nothing of sharing a server."""
    keep_warm_seconds: float
    shards_per_server: int

    def record(self, instance: str) -> ServerRecord:
        """Return the record of a server that is launched now."""
        return ServerRecord(
            instance=instance,
            instance_type=self.instance_type,
            spot=self.spot,
            release=self.release,
            capacity=self.shards_per_server,
            launched_at=time.time(),
        )

    def fits(self, record: ServerRecord) -> bool:
        """Tell whether a server is one as the run would launch."""
        mine = (self.instance_type, self.spot, self.release, self.shards_per_server)
        return mine == (record.instance_type, record.spot, record.release, record.capacity)


class SeatSearch:
    """Finds seats for the shards of one run.

    Args:
        plan: What servers it gets.
        around: What the parts of its client share.
        found: Told of each booking that the run has, with its server's name.
    """

    def __init__(self, plan: ServerPlan, around: Surroundings, found: Callable[[str, Booking], None]) -> None:
        self._plan = plan
        self._around = around
        self._facade = around.facade
        self._records = around.records
        self._found = found
        self.lost: set[str] = set()
        """Servers on which this run sits no more."""
        self._made: list[tuple[str, Booking]] = []
        """What the search that is under way has booked."""
        # Another client's tokens name what it launched, and EC2 would give that back, ended as it may be.
        self._nonce = secrets.token_hex(NONCE_BYTES)

    def run(self, missing: Sequence[int], generation: int) -> None:
        """Find seats for some shards, unless the run is ended meanwhile.

        Args:
            missing: The shards.
            generation: Part of the name of what is launched for them.

        Raises:
            CloudError: EC2 refuses.
            StorageError: The records can neither be read nor written.
        """
        self._made.clear()
        try:
            self._find(list(missing), generation)
        finally:
            if self._around.closed.is_set():  # who ends the run may not have waited for this
                self._undo()

    def _undo(self) -> None:
        """Give the run's seats up, or, where another client has the run, what it cannot know of."""
        if not self._around.is_taken_over:
            leave_servers(self._facade, self._records, self._plan.run_id, keep=False)
            return
        for name, booking in self._made:
            give_up(self._around, name, booking, is_lost=False)

    def _find(self, left: list[int], generation: int) -> None:
        living = {
            found.instance_id: found
            for found in self._facade.instances(states=LIVING_STATES)
            if found.instance_id not in self.lost
        }
        records = [record for record in self._records.all() if record.instance not in self.lost]
        self._enter_unrecorded(living, records)
        at_work = self._without_ended(records, living)
        left = self._adopt(at_work, left)
        left = self._book(at_work, left)
        while left and not self._around.closed.is_set():
            left = self._launch(left, generation)

    def _seat(self, name: str, booking: Booking, missing: list[int]) -> list[int]:
        """Take note of a booking; return the shards that have no seat yet."""
        self._found(name, booking)
        self._around.phase = f"server {name} is getting ready"
        log.info("server %s hosts shards %s", name, format_shards(booking.shards))
        return [shard for shard in missing if shard not in booking.shards]

    def _enter_unrecorded(self, living: Mapping[str, Instance], records: list[ServerRecord]) -> None:
        """Have records of servers that a client launched for this run and died before it could write one."""
        recorded = {record.instance for record in records}
        for name, found in living.items():
            if name in recorded or found.tags.get(TAG_RUN) != self._plan.run_id:
                continue
            made = None
            with contextlib.suppress(ConfigError):  # the tags or the type are not what Cirrus launches
                made = self._plan.record(name).book(self._plan.run_id, parse_shards(found.tags[TAG_SHARDS]))
            if made is not None and not self._has_ended(name, made[1]):
                with contextlib.suppress(CorruptDataError):  # of another release
                    records.append(self._records.enter(made[0]))

    def _has_ended(self, name: str, booking: Booking) -> bool:
        """Tell whether a server says that none of a booking's shards works there, nor will."""
        report = self._around.reports.read(name, booking.number)
        return report is not None and report.phase.is_last

    def _adopt(self, records: Iterable[ServerRecord], missing: list[int]) -> list[int]:
        """Take over the seats that the run has already; return the shards that have none."""
        for record in records:
            for booking in record.of_run(self._plan.run_id):
                if set(booking.shards) <= set(missing) and not self._has_ended(record.instance, booking):
                    missing = self._seat(record.instance, booking, missing)
        return missing

    def _without_ended(
        self, records: Iterable[ServerRecord], living: Mapping[str, Instance]
    ) -> list[ServerRecord]:
        """Return the servers that are at work, or just launched; those that have ended are forgotten."""
        found = {record.instance: record for record in records}
        unsure = sorted(set(found) - set(living))[:FILTER_VALUES]
        ended = self._facade.instances(instance_ids=unsure) if unsure else []
        for each in ended:
            if not each.is_living:
                self._records.forget(each.instance_id)
                del found[each.instance_id]
        # Those that EC2 does not know it may not know yet. If it should know them, they ended long ago.
        young = time.time() - UNKNOWN_SECONDS
        return [r for r in found.values() if r.instance in living or r.launched_at > young]

    def _book(self, records: Iterable[ServerRecord], missing: list[int]) -> list[int]:
        """Book seats that are free; return the shards that have found none."""

        def preference(record: ServerRecord) -> tuple[bool, int]:
            # The fullest server with room for all, else the emptiest: so that a run has few, and others end.
            free = len(record.free_seats)
            return free < len(missing), free if free >= len(missing) else -free

        for record in sorted(filter(self._plan.fits, records), key=preference):
            booking = self._records.book(record.instance, self._plan.run_id, missing)
            if booking is None:
                continue
            self._made.append((record.instance, booking))
            missing = self._seat(record.instance, booking, missing)
            if record.idle_since is not None:
                # It has waited for this run alone. The clocks of two machines may differ.
                waited_seconds = min(max(0.0, time.time() - record.idle_since), self._plan.keep_warm_seconds)
                self._around.bill.pay(waited_seconds)
        return missing

    def _launch(self, missing: list[int], generation: int) -> list[int]:
        """Launch a server for some shards, and offer its other seats; return the shards that have none."""
        plan = self._plan
        self._around.phase = f"launching a server ({plan.instance_type})"
        shards = tuple(missing[: plan.shards_per_server])
        name = self._facade.run_instance(
            template_id=plan.launch_template_id,
            client_token=f"{plan.run_id}-{shards[0]}-{generation}-{self._nonce}"[-TOKEN_CHARACTERS:],
            tags={
                "Name": f"cirrus-{plan.run_id}",
                TAG_RUN: plan.run_id,
                TAG_SHARDS: format_shards(shards),
                TAG_OWNER: OWNER,
                TAG_DEPLOYMENT: plan.deployment,
            },
            instance_type=plan.instance_type if plan.overrides_type else None,
            spot=plan.spot,
        )
        made = plan.record(name).book(plan.run_id, shards)
        assert made is not None  # a new server has free seats
        # The host program writes it where this client dies before it can.
        record = self._records.enter(made[0] if plan.release else made[0].close())
        for booking in record.of_run(plan.run_id):
            self._made.append((name, booking))
            missing = self._seat(name, booking, missing)
        return missing


def give_up(around: Surroundings, name: str, booking: Booking, *, is_lost: bool) -> None:
    """Give up some seats of a run, and end the server if nobody has seats there any more.

    Args:
        around: What the parts of the run's client share.
        name: The server.
        booking: The seats.
        is_lost: The server is lost: nobody may book there any more.

    Raises:
        CirrusError: The server may still be at work.
    """

    def step(record: ServerRecord) -> ServerRecord:
        left = record.give_up([booking.number], now=time.time(), keep=False)
        return left.close() if is_lost else left

    record = around.records.change(name, step)
    if record is None or record.is_over:
        around.facade.terminate([name])
        around.records.forget(name)


def leave_servers(facade: AwsFacade, records: ServerRecords, run_id: str, *, keep: bool) -> tuple[str, ...]:
    """Give up all seats of a run, and end the servers that nobody has seats on; return those.

    Args:
        facade: AWS.
        records: Who has which seats.
        run_id: The run.
        keep: Servers wait for another run instead.

    Raises:
        CirrusError: Some may still be at work.
    """

    def step(record: ServerRecord) -> ServerRecord:
        numbers = [booking.number for booking in record.of_run(run_id)]
        left = record.give_up(numbers, now=time.time(), keep=keep)
        waits_after = not left.bookings and left.last_run == run_id
        return left.close() if waits_after and not keep else left

    entered = {found.instance: found for found in records.all()}
    over: list[str] = []
    problem: CirrusError | None = None

    def leave(name: str) -> None:
        nonlocal problem
        try:
            left = records.change(name, step)
        except CirrusError as error:  # the others shall end all the same
            problem = error
            return
        # Without a record nobody else can have come to what was launched for this run.
        if left.is_over if left is not None else name not in entered:
            over.append(name)

    for found in entered.values():
        if found.of_run(run_id) or (not found.bookings and found.last_run == run_id):
            leave(found.instance)
    if not keep:
        for launched in facade.instances(run_id=run_id, states=LIVING_STATES):
            if launched.instance_id not in entered:
                leave(launched.instance_id)
    facade.terminate(over)
    for name in over:
        records.forget(name)
    if problem is not None:
        raise problem
    return tuple(over)
