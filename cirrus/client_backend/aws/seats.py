"""Who has which seats on which server: one record a server, which conditional writes alone change.

A server has as many *seats* as it hosts shards at most; a *booking* is a run's, of some of them. Clients book
free seats, from the moment on that an instance is launched, and give them up when their runs end; the host
program on the instance serves what is booked, and gives up what has ended. Each change is a pure function of
the whole record (:class:`ServerRecord`) that is written back if nobody was faster, so of two who want one
seat one gets it, and whoever gives up the last booking knows, in the same moment, that nobody is there.

A record that is *closed* takes no bookings any more; what is booked is served to its end, and without
bookings the instance ends. So a booking that succeeded is always served, and an instance that is ended by a
client has no other run's shards on it.

=======================  =============================================
key                      what
=======================  =============================================
``servers/SERVER.json``  :class:`ServerRecord`, while the instance lives
=======================  =============================================
"""

from __future__ import annotations

import dataclasses
import json
import logging
import random
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from cirrus.config import from_plain, parse_json
from cirrus.errors import ConfigError, ConflictError, CorruptDataError, NotFoundError
from cirrus.storage import ObjectStore

log = logging.getLogger(__name__)

PREFIX = "servers/"
#: A seat has a port of its own, and the servers' security group lets so many in.
MAX_SEATS = 100
#: So often a change is tried that others' changes come before; the waits between grow to the last one.
CHANGE_ATTEMPTS = 40
CHANGE_FIRST_SECONDS = 0.02
CHANGE_LAST_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class Booking:
    """Some seats of a server that a run has."""

    number: int
    """Of the bookings that the server ever had; counted from 1."""
    run: str
    """The run's id."""
    shards: tuple[int, ...]
    """Which shards of the run sit here."""
    seats: tuple[int, ...]
    """Where each of them sits."""


@dataclass(frozen=True, kw_only=True)
class ServerRecord:
    """A server, and who has its seats.

    Raises:
        ConfigError: That cannot be, such as two shards on one seat.
    """

    instance: str
    """Its id."""
    instance_type: str
    spot: bool = False
    """The cloud may take it back."""
    release: str = ""
    """What it is installed from: a hash of the servers' packages; empty where that is not known."""
    capacity: int
    """Its seats, numbered from 0."""
    launched_at: float
    """Unix time."""
    bookings: tuple[Booking, ...] = ()
    n_bookings: int = 0
    """How many bookings there ever were."""
    idle_since: float | None = None
    """Unix time since which nobody has a seat; None while somebody has, and before anybody had."""
    last_run: str | None = None
    """Whose booking was given up last."""
    closed: bool = False
    """Nobody may book any more."""

    def __post_init__(self) -> None:
        """Check that no seat is taken twice."""
        if not 1 <= self.capacity <= MAX_SEATS:
            raise ConfigError("capacity", f"must be in [1, {MAX_SEATS}], got {self.capacity}")
        seats = [seat for booking in self.bookings for seat in booking.seats]
        if len(set(seats)) < len(seats) or not set(seats) <= set(range(self.capacity)):
            raise ConfigError("bookings", f"seats {sorted(seats)} of {self.capacity} cannot be taken")
        if any(len(booking.seats) != len(booking.shards) for booking in self.bookings):
            raise ConfigError("bookings", "every shard must have a seat")
        numbers = [booking.number for booking in self.bookings]
        if len(set(numbers)) < len(numbers) or not all(1 <= n <= self.n_bookings for n in numbers):
            raise ConfigError("bookings", f"numbers {numbers} of {self.n_bookings} cannot be")

    @property
    def free_seats(self) -> tuple[int, ...]:
        """The seats that can be booked, ascending."""
        if self.closed:
            return ()
        taken = {seat for booking in self.bookings for seat in booking.seats}
        return tuple(seat for seat in range(self.capacity) if seat not in taken)

    @property
    def taken(self) -> int:
        """How many seats are booked."""
        return sum(len(booking.seats) for booking in self.bookings)

    @property
    def is_over(self) -> bool:
        """True when nobody has a seat, or may have one: the instance is to end."""
        return self.closed and not self.bookings

    def book(self, run: str, shards: Sequence[int]) -> tuple[ServerRecord, Booking] | None:
        """Return the record with a booking for the first of some shards, as many as find a seat, or None."""
        free = self.free_seats
        if not free or not shards:
            return None
        seats = free[: len(shards)]
        number = self.n_bookings + 1
        made = Booking(number=number, run=run, shards=tuple(shards[: len(seats)]), seats=seats)
        bookings = (*self.bookings, made)
        return dataclasses.replace(self, bookings=bookings, n_bookings=number, idle_since=None), made

    def give_up(self, numbers: Collection[int], *, now: float, keep: bool) -> ServerRecord:
        """Return the record without some bookings.

        Args:
            numbers: Of the bookings. Those that are not there are none of this record's any more.
            now: Unix time.
            keep: Without any booking left, the server waits for the next one instead of ending.
        """
        gone = [booking for booking in self.bookings if booking.number in numbers]
        if not gone:
            return self
        left = tuple(booking for booking in self.bookings if booking.number not in numbers)
        return dataclasses.replace(
            self,
            bookings=left,
            idle_since=None if left else now,
            last_run=gone[-1].run,
            closed=self.closed or not (left or keep),
        )

    def close(self) -> ServerRecord:
        """Return the record so that nobody may book any more."""
        return dataclasses.replace(self, closed=True)

    def of_run(self, run: str) -> tuple[Booking, ...]:
        """Return a run's bookings."""
        return tuple(booking for booking in self.bookings if booking.run == run)


class ServerRecords:
    """The records of a deployment's servers.

    Args:
        root: The store that ``runs/`` lies in too.
        pause: Waits for some seconds.
    """

    def __init__(self, root: ObjectStore, pause: Callable[[float], object] = time.sleep) -> None:
        self._store = root
        self._pause = pause
        self._rng = random.Random()  # spreads retries  # nosec B311

    def all(self) -> list[ServerRecord]:
        """Return the records that can be read; another release's may be written otherwise.

        Raises:
            StorageError: The store cannot be listed.
        """
        found = []
        for key in self._store.list(PREFIX):
            try:
                record = self.read(key.removeprefix(PREFIX).removesuffix(".json"))
            except CorruptDataError as error:
                log.info("skipped: %s", error)
                continue
            if record is not None:
                found.append(record)
        return found

    def read(self, instance: str) -> ServerRecord | None:
        """Return a server's record, or None where there is none.

        Raises:
            CorruptDataError: It is no record.
            StorageError: It cannot be read.
        """
        found = self._read(instance)
        return None if found is None else found[0]

    def enter(self, record: ServerRecord) -> ServerRecord:
        """Write the record of a server that has none; return the one that it has then.

        Raises:
            StorageError: It cannot be written.
        """
        for _ in range(CHANGE_ATTEMPTS):
            try:
                self._store.put(_key(record.instance), _to_json(record), if_absent=True)
            except ConflictError:
                found = self.read(record.instance)
                if found is not None:
                    return found
            else:
                return record
        raise ConflictError(f"{self._store.url}/{_key(record.instance)}: comes and goes")

    def change(self, instance: str, step: Callable[[ServerRecord], ServerRecord]) -> ServerRecord | None:
        """Change a record, whoever else does so at the same time; return it, or None where there is none.

        Args:
            instance: Of which server.
            step: Makes the new record of the one that there is; called again when somebody was faster.

        Raises:
            ConflictError: Others were faster, again and again.
            CorruptDataError: What is there is no record.
            StorageError: The store refused or failed.
        """
        limit = CHANGE_FIRST_SECONDS
        for _ in range(CHANGE_ATTEMPTS):
            found = self._read(instance)
            if found is None:
                return None
            record, etag = found
            changed = step(record)
            if changed == record:
                return record
            try:
                self._store.put(_key(instance), _to_json(changed), if_match=etag)
            except ConflictError:
                self._pause(self._rng.uniform(0.0, limit))
                limit = min(2 * limit, CHANGE_LAST_SECONDS)
            else:
                return changed
        raise ConflictError(f"{self._store.url}/{_key(instance)}: others change it all the time; try again")

    def book(self, instance: str, run: str, shards: Sequence[int]) -> Booking | None:
        """Book seats for the first of some shards, as many as there are seats for; None: there is none.

        Raises:
            StorageError: As for :meth:`change`.
        """
        made: Booking | None = None

        def step(record: ServerRecord) -> ServerRecord:
            nonlocal made
            if made is not None and made in record.bookings:
                return record  # written, though the answer was lost and the repetition refused
            found = record.book(run, shards)
            made = None if found is None else found[1]
            return record if found is None else found[0]

        return made if self.change(instance, step) is not None else None

    def forget(self, instance: str) -> None:
        """Remove the record of a server that is gone."""
        self._store.delete(_key(instance))

    def _read(self, instance: str) -> tuple[ServerRecord, str] | None:
        key = _key(instance)
        try:
            data, etag = self._store.get_versioned(key)
            record = from_plain(ServerRecord, parse_json(data), key)
        except NotFoundError:
            return None
        except (ValueError, ConfigError) as error:
            raise CorruptDataError(f"{self._store.url}/{key}: {error}") from error
        if record.instance != instance:
            raise CorruptDataError(f"{self._store.url}/{key}: is about {record.instance!r}")
        return record, etag


def _key(instance: str) -> str:
    return f"{PREFIX}{instance}.json"


def _to_json(record: ServerRecord) -> bytes:
    return json.dumps(dataclasses.asdict(record)).encode()
