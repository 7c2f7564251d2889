"""Who has which seats on a server: no seat is given twice, and nobody sits on a server that is ended."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cirrus.client_backend.aws.seats import Booking, ServerRecord, ServerRecords
from cirrus.errors import ConfigError, ConflictError, CorruptDataError
from cirrus.storage import ObjectStore, drop_memory_store, open_store

NAME = "i-0a"
GOOD = (
    '{"instance": "i-0a", "instance_type": "x", "capacity": 2, "launched_at": 0, "n_bookings": 2, "bookings":'
    ' [{"number": 1, "run": "r", "shards": [0], "seats": [0]},'
    ' {"number": 2, "run": "s", "shards": [0], "seats": [1]}]}'
)


def record(capacity: int = 2, instance: str = NAME) -> ServerRecord:
    """Return the record of a new server."""
    return ServerRecord(instance=instance, instance_type="c7g.large", capacity=capacity, launched_at=1.0)


@pytest.fixture
def store() -> Iterator[ObjectStore]:
    """An empty store."""
    name = uuid.uuid4().hex
    yield open_store(f"memory://{name}")
    drop_memory_store(name)


def test_seats_are_booked_and_given_up(store: ObjectStore) -> None:
    """A run gets as many of the free seats as it needs or there are; those given up are free again."""
    records = ServerRecords(store)
    records.enter(record(3))
    first = records.book(NAME, "ada", [4, 5])
    assert first == Booking(number=1, run="ada", shards=(4, 5), seats=(0, 1))
    second = records.book(NAME, "bob", [0, 1])
    assert second == Booking(number=2, run="bob", shards=(0,), seats=(2,))
    assert records.book(NAME, "eve", [0]) is None
    left = records.change(NAME, lambda found: found.give_up([1], now=5.0, keep=False))
    assert left is not None
    assert (left.bookings, left.free_seats, left.closed, left.idle_since) == ((second,), (0, 1), False, None)
    assert records.book(NAME, "eve", [7]) == Booking(number=3, run="eve", shards=(7,), seats=(0,))


@pytest.mark.parametrize("keep", [False, True])
def test_who_leaves_last_decides(store: ObjectStore, keep: bool) -> None:
    """The last booking that is given up leaves a server that waits, or one that lets nobody come."""
    records = ServerRecords(store)
    records.enter(record())
    records.book(NAME, "ada", [0])
    left = records.change(NAME, lambda found: found.give_up([1], now=5.0, keep=keep))
    assert left is not None
    assert (left.is_over, left.idle_since, left.last_run) == (not keep, 5.0, "ada")
    assert (records.book(NAME, "bob", [0]) is not None) is keep


def test_a_booking_whose_answer_is_lost_is_made_once(store: ObjectStore) -> None:
    """The repetition of a write that has succeeded is refused: what it wrote is found, not written again."""

    class Forgetful(ServerRecords):
        def __init__(self) -> None:
            super().__init__(store, pause=self.refuse)
            self.lost = 1
            self.waits = 0

        def refuse(self, seconds: float) -> None:
            self.waits += 1

    records = Forgetful()
    records.enter(record())
    put: Callable[..., str | None] = store.put

    class Store:
        """The same store, but the first conditional write says that somebody else was faster."""

        def __getattr__(self, name: str) -> object:
            return getattr(store, name)

        def put(self, key: str, data: bytes, **conditions: object) -> str | None:
            done = put(key, data, **conditions)
            if records.lost and "if_match" in conditions:
                records.lost -= 1
                raise ConflictError("the answer was lost")
            return done

    records._store = Store()  # type: ignore[assignment]
    booking = records.book(NAME, "ada", [0])
    assert booking is not None
    found = records.read(NAME)
    assert found is not None
    assert (found.bookings, records.waits) == ((booking,), 1)


def test_of_many_who_race_each_seat_gets_one(tmp_path: object) -> None:
    """Twenty runs want seven seats in the same moment: seven get one, each another."""
    records = [ServerRecords(open_store(f"{tmp_path}")) for _ in range(20)]
    records[0].enter(record(7))
    start = threading.Barrier(len(records))
    made: list[Booking | None] = []

    def book(number: int) -> None:
        start.wait()
        made.append(records[number].book(NAME, f"run-{number}", [0]))

    threads = [threading.Thread(target=book, args=(number,)) for number in range(len(records))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30.0)
    booked = [booking for booking in made if booking is not None]
    assert len(made) == 20
    assert sorted(booking.seats for booking in booked) == [(seat,) for seat in range(7)]
    found = records[0].read(NAME)
    assert found is not None
    assert sorted(found.bookings, key=lambda b: b.number) == sorted(booked, key=lambda b: b.number)


def test_one_record_a_server(store: ObjectStore) -> None:
    """The client and the host program may both write the first; the first stays, and both know it."""
    records = ServerRecords(store)
    made = record().book("ada", [0])
    assert made is not None
    assert records.enter(made[0]) == made[0]
    assert records.enter(record(5)) == made[0]
    records.forget(NAME)
    assert records.read(NAME) is None
    assert records.book(NAME, "ada", [0]) is None
    assert store.list() == []


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "[]",
        '{"instance": 1}',
        GOOD.replace('"capacity": 2', '"capacity": 1000000000'),
        GOOD.replace('"seats": [1]', '"seats": [2]'),
        GOOD.replace('"seats": [1]', '"seats": [0]'),
        GOOD.replace('"seats": [1]', '"seats": []'),
        GOOD.replace('"number": 2', '"number": 1'),
        GOOD.replace('"n_bookings": 2', '"n_bookings": 1'),
        GOOD.replace('"i-0a"', '"i-0b"'),
    ],
)
def test_what_is_no_record_is_named_and_passed_over(store: ObjectStore, raw: str) -> None:
    """Another release's records stand in nobody's way."""
    records = ServerRecords(store)
    store.put(f"servers/{NAME}.json", GOOD.encode())
    assert records.read(NAME) is not None
    store.put(f"servers/{NAME}.json", raw.encode())
    with pytest.raises(CorruptDataError, match=r"servers/i-0a\.json"):
        records.read(NAME)
    good = records.enter(record(instance="i-0b"))
    assert records.all() == [good]


@given(st.lists(st.tuples(st.integers(-1, 3), st.integers(-1, 3)), max_size=4))
def test_no_record_has_a_seat_twice(places: list[tuple[int, int]]) -> None:
    """Seats that overlap, or that the server has not, make no record."""
    bookings = tuple(
        Booking(number=i + 1, run="r", shards=(0, 1), seats=seats) for i, seats in enumerate(places)
    )
    seats = [seat for pair in places for seat in pair]
    fields = {"instance": NAME, "instance_type": "x", "capacity": 3, "launched_at": 0.0}
    if len(set(seats)) == len(seats) and all(0 <= seat < 3 for seat in seats):
        assert ServerRecord(**fields, bookings=bookings, n_bookings=len(places)).taken == len(seats)  # type: ignore[arg-type]
    else:
        with pytest.raises(ConfigError):
            ServerRecord(**fields, bookings=bookings, n_bookings=len(places))  # type: ignore[arg-type]


class Lives(RuleBasedStateMachine):
    """Clients and a host that change one record, each after what it read may have become old.

    ``changes`` are steps that somebody has begun by reading; each is written only over what it read.
    """

    def __init__(self) -> None:
        super().__init__()
        self.store = open_store(f"memory://{uuid.uuid4().hex}")
        self.records = ServerRecords(self.store, pause=lambda _: None)
        self.records.enter(record(3))
        self.sitting: dict[int, Booking] = {}
        self.is_ended = False

    @property
    def now(self) -> ServerRecord:
        """The record."""
        found = self.records.read(NAME)
        assert found is not None
        return found

    @rule(run=st.sampled_from("abc"), n=st.integers(1, 3), between=st.booleans())
    def book(self, run: str, n: int, between: bool) -> None:
        """A client books, while somebody else may be faster."""
        if between:
            self.sneak("x", 1)
        was_closed = self.now.closed
        booking = self.records.book(NAME, run, list(range(n)))
        if booking is not None:
            assert not was_closed
            assert not self.is_ended
            self.sitting[booking.number] = booking

    def sneak(self, run: str, n: int) -> None:
        """Somebody books by another way to the bucket."""
        booking = ServerRecords(self.store).book(NAME, run, list(range(n)))
        if booking is not None:
            self.sitting[booking.number] = booking

    @precondition(lambda self: self.sitting)
    @rule(data=st.data(), keep=st.booleans(), between=st.booleans())
    def give_up(self, data: st.DataObject, keep: bool, between: bool) -> None:
        """A run ends; whoever finds the server over ends it, and nobody may sit there then."""
        number = data.draw(st.sampled_from(sorted(self.sitting)))
        if between:
            self.sneak("y", 1)
        left = self.records.change(NAME, lambda found: found.give_up([number], now=1.0, keep=keep))
        del self.sitting[number]
        assert left is not None
        if left.is_over:
            assert not self.sitting
            self.is_ended = True

    @rule()
    def idle(self) -> None:
        """The host has waited long enough."""
        left = self.records.change(NAME, lambda found: found if found.bookings else found.close())
        assert left is not None
        if left.is_over:
            assert not self.sitting
            self.is_ended = True

    @rule()
    def lose(self) -> None:
        """A client takes the server for lost: nobody comes any more, who is there stays."""
        self.records.change(NAME, ServerRecord.close)
        self.is_ended = self.is_ended or not self.sitting

    @invariant()
    def the_record_is_what_is_the_case(self) -> None:
        """Who was told that he has a seat has it, alone."""
        assert {booking.number: booking for booking in self.now.bookings} == self.sitting
        assert self.now.taken + len(self.now.free_seats) == 3 or self.now.closed
        assert not (self.is_ended and self.sitting)


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
