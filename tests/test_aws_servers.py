"""The seats of a run on servers: taken over, booked, launched; watched, replaced, given up."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pytest
from stand_ins import eventually, make_config

from cirrus.client_backend.aws import server_watch, servers
from cirrus.client_backend.aws.facade import AwsFacade, Instance
from cirrus.client_backend.aws.seat_search import ServerPlan, leave_servers
from cirrus.client_backend.aws.seats import ServerRecord, ServerRecords
from cirrus.client_backend.aws.server_bill import ServerBill
from cirrus.client_backend.aws.server_turns import ServerTurns
from cirrus.client_backend.aws.servers import Servers
from cirrus.client_backend.fleet import AttemptError
from cirrus.client_backend.status_cache import StatusCache
from cirrus.errors import CapacityError, CorruptDataError, StorageError
from cirrus.metrics import RunState, RunStatus
from cirrus.paramserver.host_records import HostPhase, HostReports, HostStatus
from cirrus.run_folder import RunFolder
from cirrus.storage import drop_memory_store, open_store

RUN = "r"
RELEASE = "1f"


class Cloud(AwsFacade):
    """Instances in memory."""

    def __init__(self) -> None:
        self.machines: dict[str, Instance] = {}
        self.lock = threading.Lock()
        self.tokens: list[str] = []
        self.spots: list[bool] = []
        self.refusal: Exception | None = None
        self.at_launch: Callable[[], object] = lambda: None
        """Called while EC2 launches an instance."""

    def run_instance(
        self,
        *,
        template_id: str,
        client_token: str,
        tags: Mapping[str, str],
        instance_type: str | None = None,
        spot: bool = False,
    ) -> str:
        """Start one."""
        if self.refusal is not None:
            raise self.refusal
        self.at_launch()
        with self.lock:
            self.tokens.append(client_token)
            self.spots.append(spot)
            return self.add(f"i-{len(self.tokens)}", tags, instance_type or "c7g.large")

    def add(self, name: str, tags: Mapping[str, str], instance_type: str = "c7g.large") -> str:
        """Have one that works."""
        self.machines[name] = Instance(
            instance_id=name, state="running", reason="", instance_type=instance_type, tags=dict(tags)
        )
        return name

    def set_state(self, name: str, state: str, reason: str = "") -> None:
        """Change what EC2 says."""
        self.machines[name] = dataclasses.replace(self.machines[name], state=state, reason=reason)

    def instances(
        self,
        *,
        run_id: str | None = None,
        instance_ids: Sequence[str] | None = None,
        states: Iterable[str] | None = None,
    ) -> list[Instance]:
        """Find some."""
        return [
            machine
            for machine in self.machines.values()
            if (run_id is None or machine.tags.get("cirrus:run") == run_id)
            and (instance_ids is None or machine.instance_id in instance_ids)
            and (states is None or machine.state in states)
        ]

    def terminate(self, instance_ids: Sequence[str]) -> None:
        """End some."""
        for name in instance_ids:
            self.set_state(name, "shutting-down")


class World:
    """A run's folder, its cloud and its servers.

    Args:
        n_shards: Of the run.
        run_id: The run.
        beside: Another run's world, with the same cloud and bucket.
        plan: What its servers are.
    """

    def __init__(
        self, n_shards: int = 2, *, run_id: str = RUN, beside: World | None = None, **plan: object
    ) -> None:
        self.run_id = run_id
        self.folder = RunFolder(f"memory://test-servers/runs/{run_id}")
        self.folder.create(make_config(run_id=run_id, n_shards=n_shards))
        self.cloud = Cloud() if beside is None else beside.cloud
        self.turns = ServerTurns() if beside is None else beside.turns
        self.reports = HostReports(self.folder.store)
        self.records = ServerRecords(open_store("memory://test-servers"))
        self.notices: list[str] = []
        self.now = 0.0
        self.n_looks = 0
        """How often somebody looked at the clock, as each watch does once a round."""
        base = ServerPlan(
            run_id=run_id,
            deployment="cirrus",
            launch_template_id="lt-1",
            instance_type="c7g.large",
            overrides_type=False,
            spot=False,
            release=RELEASE,
            keep_warm_seconds=60.0,
            shards_per_server=2,
        )
        self.plan = dataclasses.replace(base, **plan)  # type: ignore[arg-type]
        around = server_watch.Surroundings(
            facade=self.cloud,
            status=StatusCache(self.folder, 0.0),
            reports=self.reports,
            records=self.records,
            bill=ServerBill(counted_servers=1.0),
            notice=self.notices.append,
            clock=self.clock,
        )
        self.servers = Servers(self.plan, n_shards, around, self.turns)
        self.ends: dict[int, AttemptError | None] = {}

    def seats(self, name: str) -> dict[str, tuple[int, ...]]:
        """Return which shards of which runs a server hosts."""
        record = self.records.read(name)
        return {} if record is None else {booking.run: booking.shards for booking in record.bookings}

    def booking(self, name: str) -> int:
        """Return the number of the run's booking on a server."""
        record = self.records.read(name)
        assert record is not None
        (booking,) = record.of_run(self.run_id)
        return booking.number

    def clock(self) -> float:
        """Return what the test says is the time."""
        self.n_looks += 1
        return self.now

    def await_look(self) -> None:
        """Wait until the one watch has seen all that is the case now."""
        enough = self.n_looks + 2
        eventually(lambda: self.n_looks >= enough)

    def serve(self, *shards: int, generation: int = 1) -> list[threading.Thread]:
        """Serve shards in threads of their own, as a supervisor does."""

        def run(shard: int) -> None:
            try:
                self.servers.serve(shard, generation)
            except AttemptError as error:
                self.ends[shard] = error
            else:
                self.ends[shard] = None

        threads = [threading.Thread(target=run, args=(shard,)) for shard in shards]
        for thread in threads:
            thread.start()
        return threads

    def serve_but_hold_the_launch(self) -> tuple[list[threading.Thread], threading.Event]:
        """Serve shards 0 and 1 as far as into a launch, which goes on once the event is set."""
        begun, done = threading.Event(), threading.Event()
        self.cloud.at_launch = lambda: (begun.set(), done.wait(10.0))
        threads = self.serve(0, 1)
        assert begun.wait(10.0)
        return threads, done

    def report(self, name: str, phase: HostPhase, error: str | None = None, kind: str | None = None) -> None:
        """Have a host report."""
        number = self.booking(name)
        self.reports.write(
            HostStatus(instance=name, phase=phase, booking=number, error=error, error_type=kind)
        )

    def finish(self, state: RunState = RunState.FINISHED) -> None:
        """End the run."""
        self.folder.write_status(RunStatus(state=state))

    @staticmethod
    def join(threads: list[threading.Thread]) -> None:
        """Wait for threads."""
        for thread in threads:
            thread.join(10.0)
            assert not thread.is_alive()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(server_watch, "POLL_SECONDS", 0.01)
    yield
    drop_memory_store("test-servers")


def test_shards_share_a_server_to_the_end_of_the_run() -> None:
    """Two seats a server: three shards take two, each launched once; the end of the run ends the watch."""
    world = World(n_shards=3)
    threads = world.serve(0, 1, 2)
    eventually(lambda: len(world.cloud.tokens) == 2)
    assert {m.tags["cirrus:shards"] for m in world.cloud.machines.values()} == {"0-1", "2"}
    assert sorted(token.rpartition("-")[0] for token in world.cloud.tokens) == ["r-0-1", "r-2-1"]
    assert {m.tags["cirrus:deployment"] for m in world.cloud.machines.values()} == {"cirrus"}
    world.finish()
    world.join(threads)
    assert world.ends == {0: None, 1: None, 2: None}
    world.servers.close()
    assert all(machine.state == "running" for machine in world.cloud.machines.values())


@pytest.mark.parametrize("state", [RunState.KILLED, RunState.FAILED, RunState.INTERRUPTED, RunState.RUNNING])
def test_only_a_run_that_finished_leaves_its_servers(state: RunState) -> None:
    """After a kill, an error or a client that goes, nothing is left that costs."""
    world = World()
    threads = world.serve(0, 1)
    eventually(lambda: world.cloud.machines)
    world.finish(state)
    world.servers.close()
    world.join(threads)
    assert {machine.state for machine in world.cloud.machines.values()} == {"shutting-down"}


def test_servers_that_nobody_may_wait_for_end_with_the_run() -> None:
    """Without a time to keep warm, a run that finished ends its servers, too."""
    world = World(keep_warm_seconds=0.0)
    threads = world.serve(0)
    eventually(lambda: world.cloud.machines)
    world.finish()
    world.join(threads)
    world.servers.close()
    assert world.cloud.machines["i-1"].state == "shutting-down"
    assert leave_servers(world.cloud, world.records, RUN, keep=False) == ()


def test_nothing_is_launched_after_the_end() -> None:
    """A thread that comes late finds the run ended."""
    world = World()
    world.servers.close()
    world.join(world.serve(0))
    assert world.ends == {0: None}
    assert not world.cloud.machines


def test_what_is_launched_while_the_run_ends_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end waits for a launch for a while only; the launch then sees by itself that it came too late."""
    monkeypatch.setattr(servers, "LAUNCHING_SECONDS", 0.05)
    world = World()
    threads, done = world.serve_but_hold_the_launch()
    world.servers.close()
    assert not world.cloud.machines
    done.set()
    world.join(threads)
    assert world.cloud.machines["i-1"].state == "shutting-down"
    assert world.records.all() == []


def test_a_run_that_another_client_has_taken_over_keeps_its_seats() -> None:
    """Whoever slept while another client attached leaves that one's seats and servers alone."""
    world = World()
    threads = world.serve(0, 1)
    eventually(lambda: world.seats("i-1") == {RUN: (0, 1)})
    world.servers.let_go()
    world.join(threads)
    assert world.ends == {0: None, 1: None}
    assert world.seats("i-1") == {RUN: (0, 1)}
    assert world.cloud.machines["i-1"].state == "running"


def test_what_is_launched_for_a_run_that_was_taken_over_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other client cannot know of it, and has found seats of its own: shards would work twice."""
    monkeypatch.setattr(servers, "LAUNCHING_SECONDS", 0.05)
    world = World()
    threads, done = world.serve_but_hold_the_launch()
    world.cloud.add("i-other", {})
    world.records.enter(booked("i-other", (RUN, (0, 1))))
    world.servers.let_go()
    done.set()
    world.join(threads)
    assert world.cloud.machines["i-1"].state == "shutting-down"
    assert world.cloud.machines["i-other"].state == "running"
    assert [found.instance for found in world.records.all()] == ["i-other"]


def record(name: str, **fields: Any) -> ServerRecord:
    """Return the record of a server of two seats."""
    fixed = {"instance_type": "c7g.large", "release": RELEASE, "capacity": 2, "launched_at": time.time()}
    return ServerRecord(instance=name, **{**fixed, **fields})


def booked(name: str, *runs: tuple[str, tuple[int, ...]], **fields: Any) -> ServerRecord:
    """Return the record of a server on which runs sit."""
    found = record(name, **fields)
    for run, shards in runs:
        made = found.book(run, shards)
        assert made is not None
        found = made[0]
    return found


def test_a_server_that_works_for_the_run_is_taken_over() -> None:
    """Another client launched it: it goes on; seats on which the shards have ended do not count."""
    world = World()
    for name, phase in (("i-old", HostPhase.INTERRUPTED), ("i-good", HostPhase.SERVING)):
        world.cloud.add(name, {})
        world.records.enter(booked(name, (RUN, (0, 1))))
        world.report(name, phase)
    threads = world.serve(0, 1)
    eventually(lambda: "i-good is starting shards" in world.servers.phase)
    world.finish()
    world.join(threads)
    assert not world.cloud.tokens


def test_two_bookings_on_one_server_are_taken_over() -> None:
    """Each is told of by itself: what is said last of one takes nothing away from the other."""
    world = World()
    world.cloud.add("i-1", {})
    world.records.enter(booked("i-1", (RUN, (0,)), (RUN, (1,))))
    for number, phase in ((1, HostPhase.SERVING), (2, HostPhase.SERVING)):
        world.reports.write(HostStatus(instance="i-1", phase=phase, booking=number))
    threads = world.serve(0, 1)
    eventually(lambda: world.n_looks >= 8)
    world.folder.write_status(RunStatus(state=RunState.RUNNING, heartbeat_at=1.0))
    world.now = server_watch.STARTUP_LIMIT_SECONDS + 1.0
    enough = world.n_looks + 8
    eventually(lambda: world.ends or world.n_looks >= enough)
    world.finish()
    world.join(threads)
    assert world.ends == {0: None, 1: None}
    assert not world.cloud.tokens


@pytest.mark.parametrize("state", [RunState.FINISHED, RunState.KILLED])
def test_a_server_whose_client_died_before_it_wrote_a_record(state: RunState) -> None:
    """The tags say whose it is: who attaches takes it over, who kills the run ends it."""
    world = World()
    world.cloud.add("i-1", {"cirrus:run": RUN, "cirrus:shards": "0-1"})
    if state is RunState.KILLED:
        assert leave_servers(world.cloud, world.records, RUN, keep=False) == ("i-1",)
        return
    threads = world.serve(0, 1)
    eventually(lambda: world.seats("i-1") == {RUN: (0, 1)})
    world.finish()
    world.join(threads)
    assert not world.cloud.tokens


def test_a_server_whose_record_is_another_release_s_is_not_ended() -> None:
    """Others may sit there, whom this client cannot see; that the run's seats are left there is told."""
    world = World()
    world.cloud.add("i-1", {"cirrus:run": RUN, "cirrus:shards": "0-1"})
    open_store("memory://test-servers").put("servers/i-1.json", b'{"written": "otherwise"}')
    with pytest.raises(CorruptDataError, match="i-1"):
        leave_servers(world.cloud, world.records, RUN, keep=False)
    assert world.cloud.machines["i-1"].state == "running"


def test_free_seats_are_booked_before_anything_is_launched() -> None:
    """Those of the fullest server with room for all; of the right type, size and release, alive, open."""
    world = World(n_shards=1)
    others = {
        "i-idle": booked("i-idle"),
        "i-full": booked("i-full", ("b", (0, 1))),
        "i-half": booked("i-half", ("c", (0,))),
        "i-type": record("i-type", instance_type="x"),
        "i-spot": record("i-spot", spot=True),
        "i-size": record("i-size", capacity=1),
        "i-older": booked("i-older", ("d", (0,)), release="0e"),
        "i-shut": booked("i-shut", ("e", (0,))).close(),
    }
    for name, found in others.items():
        world.cloud.add(name, {})
        world.records.enter(found)
    world.cloud.add("i-dead", {})
    world.cloud.set_state("i-dead", "terminated")
    world.records.enter(booked("i-dead", ("f", (0,))))
    world.records.enter(booked("i-lost", ("f", (0,)), launched_at=time.time() - 100.0))
    open_store("memory://test-servers").put("servers/i-odd.json", b'{"instance": "i-odd", "until": 3}')
    threads = world.serve(0)
    eventually(lambda: world.seats("i-half") == {"c": (0,), RUN: (0,)})
    assert world.records.read("i-dead") is None
    world.report("i-half", HostPhase.SERVING)
    eventually(lambda: "i-half is starting shards" in world.servers.phase)
    world.finish()
    world.join(threads)
    world.servers.close()
    assert world.ends == {0: None}
    assert not world.cloud.tokens
    assert world.seats("i-half") == {"c": (0,)}
    assert {m.state for m in world.cloud.machines.values() if m.instance_id != "i-dead"} == {"running"}


def test_a_server_that_ec2_does_not_know_yet() -> None:
    """Just launched by another client: its seats can be booked."""
    world = World(n_shards=1)
    world.records.enter(booked("i-new", ("other", (0,))))
    threads = world.serve(0)
    eventually(lambda: world.seats("i-new") == {"other": (0,), RUN: (0,)})
    world.finish()
    world.join(threads)
    assert not world.cloud.tokens


def test_a_record_that_cannot_be_changed_keeps_no_other_server() -> None:
    """The end of a run ends what it can, and tells of the rest."""

    class Stubborn(ServerRecords):
        def change(self, instance: str, step: Callable[[ServerRecord], ServerRecord]) -> ServerRecord | None:
            if instance == "i-1":
                raise StorageError("no")
            return super().change(instance, step)

    world = World(n_shards=4)
    threads = world.serve(*range(4))
    eventually(lambda: len(world.records.all()) == 2)
    records = Stubborn(open_store("memory://test-servers"))
    with pytest.raises(StorageError, match="no"):
        leave_servers(world.cloud, records, RUN, keep=False)
    assert [world.cloud.machines[name].state for name in ("i-1", "i-2")] == ["running", "shutting-down"]
    world.finish()
    world.join(threads)


def test_a_server_of_an_older_release_waits_in_vain() -> None:
    """After a newer deployment, runs get servers of that; the older ones end by themselves."""
    world = World()
    world.cloud.add("i-old", {})
    world.records.enter(record("i-old", release="0e", idle_since=time.time()))
    threads = world.serve(0, 1)
    eventually(lambda: world.cloud.tokens)
    assert world.seats("i-old") == {}
    world.finish()
    world.join(threads)


def test_servers_of_a_deployment_that_knows_no_sharing_are_not_shared() -> None:
    """Where an older Cirrus has deployed, what its servers do not know is not asked of them."""
    world = World(n_shards=1, release="")
    other = World(n_shards=1, run_id="other", beside=world, release="")
    threads = world.serve(0)
    eventually(lambda: len(world.cloud.tokens) == 1)
    threads += other.serve(0)
    eventually(lambda: len(world.cloud.tokens) == 2)
    assert all(server.closed for server in world.records.all())
    for each in (world, other):
        each.finish()
    world.join(threads)


@pytest.mark.parametrize("n_shards", [1, 3])
def test_runs_that_begin_at_once_share_servers(n_shards: int) -> None:
    """Twelve shards of runs that begin in the same moment take three servers of four seats, booted or not."""
    first = World(n_shards, run_id="r0", shards_per_server=4)
    others = [
        World(n_shards, run_id=f"r{i}", beside=first, shards_per_server=4) for i in range(1, 12 // n_shards)
    ]
    worlds = [first, *others]
    threads = [thread for world in worlds for thread in world.serve(*range(n_shards))]
    eventually(lambda: sum(len(found.bookings) for found in first.records.all()) >= len(worlds))
    eventually(lambda: sum(found.taken for found in first.records.all()) == 12)
    assert len(first.cloud.tokens) == 3
    assert [found.taken for found in first.records.all()] == [4, 4, 4]
    for world in worlds:
        world.finish()
    first.join(threads)
    for world in worlds:
        world.servers.close()
    assert all(not found.bookings and not found.closed for found in first.records.all())


def test_copies_of_a_backend_take_the_same_turns() -> None:
    """In one process, that is; in another there are turns of its own. Who is ended waits for none."""
    turns = ServerTurns()
    assert copy.deepcopy(turns) is turns
    other = pickle.loads(pickle.dumps(turns))
    open_, closed = threading.Event(), threading.Event()
    closed.set()
    with turns.turn(open_) as is_mine, other.turn(open_) as is_too, turns.turn(closed) as is_late:
        assert (is_mine, is_too, is_late) == (True, True, False)


def test_a_kill_leaves_the_others_where_they_are() -> None:
    """Who is killed gives up his own seats; the last one there ends the server."""
    killed = World(n_shards=1)
    other = World(n_shards=1, run_id="other", beside=killed)
    threads = killed.serve(0)
    eventually(lambda: killed.cloud.machines)
    threads += other.serve(0)
    eventually(lambda: other.seats("i-1") == {RUN: (0,), "other": (0,)})
    killed.finish(RunState.KILLED)
    killed.servers.close()
    assert killed.seats("i-1") == {"other": (0,)}
    assert leave_servers(killed.cloud, killed.records, RUN, keep=False) == ()
    assert other.cloud.machines["i-1"].state == "running"
    assert not other.ends
    other.finish(RunState.KILLED)
    other.servers.close()
    killed.join(threads)
    assert other.cloud.machines["i-1"].state == "shutting-down"
    assert other.records.all() == []


def test_the_server_of_a_run_that_is_over_can_be_ended() -> None:
    """Killing the run that was there last ends what waits for another one, unless another has come."""
    world = World(n_shards=1)
    threads = world.serve(0)
    eventually(lambda: world.cloud.machines)
    world.finish()
    world.join(threads)
    world.servers.close()
    assert world.cloud.machines["i-1"].state == "running"
    assert world.records.book("i-1", "other", [0]) is not None
    assert leave_servers(world.cloud, world.records, RUN, keep=False) == ()
    world.records.change("i-1", lambda found: found.give_up([2], now=time.time(), keep=True))
    assert leave_servers(world.cloud, world.records, RUN, keep=False) == ()
    assert leave_servers(world.cloud, world.records, "other", keep=False) == ("i-1",)


def test_who_shares_a_server_pays_a_part_of_it() -> None:
    """Each second is paid by those with seats, in proportion; the wait before by who ended it."""
    first = World(n_shards=1)
    first.cloud.add("i-1", {})
    first.records.enter(record("i-1", idle_since=time.time() - 30.0))
    second = World(n_shards=1, run_id="second", beside=first)
    threads = first.serve(0)
    eventually(lambda: first.seats("i-1"))
    first.await_look()
    assert first.servers.uncounted_seconds == pytest.approx(30.0, abs=5.0)
    waited = first.servers.uncounted_seconds
    first.now = 100.0
    first.await_look()
    threads += second.serve(0)
    eventually(lambda: len(first.seats("i-1")) == 2)
    second.await_look()
    for world in (first, second):
        world.now += 6.0  # it is seen who else is there
        world.await_look()
    before = [world.servers.uncounted_seconds for world in (first, second)]
    for world in (first, second):
        world.now += 50.0
        world.await_look()
    assert before[0] == pytest.approx(waited + 103.0)
    assert before[1] == pytest.approx(3.0)
    after = [world.servers.uncounted_seconds for world in (first, second)]
    assert after == pytest.approx([before[0] + 25.0, before[1] + 25.0])
    for world in (first, second):
        world.finish()
    first.join(threads)


@pytest.mark.parametrize(
    ("phase", "text", "kind"),
    [
        (HostPhase.RECLAIMED, "took back", None),
        (HostPhase.INTERRUPTED, "shutting down", None),
        (HostPhase.FAILED, "no numba", "ConfigError"),
        (HostPhase.FAILED, "no numba", None),
    ],
)
def test_a_server_that_says_it_is_lost(phase: HostPhase, text: str, kind: str | None) -> None:
    """It is ended, and all its shards' threads hear of it; the next generation gets another one."""
    world = World()
    threads = world.serve(0, 1)
    eventually(lambda: world.cloud.machines)
    world.report("i-1", phase, "no numba" if phase is HostPhase.FAILED else None, kind)
    world.join(threads)
    errors = [world.ends[shard] for shard in (0, 1)]
    assert all(error is not None and text in str(error) for error in errors)
    assert errors[0] is not None
    assert errors[0].is_permanent is (kind is not None)
    assert world.cloud.machines["i-1"].state == "shutting-down"
    threads = world.serve(0, 1, generation=2)
    eventually(lambda: "i-2" in world.cloud.machines)
    assert [token.rpartition("-")[0] for token in world.cloud.tokens] == ["r-0-1", "r-0-2"]
    world.finish()
    world.join(threads)


def test_a_server_that_ec2_has_lost() -> None:
    """What EC2 says of an instance counts, with its reason."""
    world = World(n_shards=1)
    threads = world.serve(0)
    eventually(lambda: world.cloud.machines)
    world.cloud.set_state("i-1", "terminated", "Server.SpotInstanceTermination")
    eventually(lambda: world.servers.phase)
    world.now = 11.0
    world.join(threads)
    assert "terminated (Server.SpotInstanceTermination)" in str(world.ends[0])
    assert "replaces it" in world.notices[0]


def test_seats_that_a_server_has_given_up_without_a_word() -> None:
    """Its report was lost: after a while without a booking the client takes other seats."""
    world = World(n_shards=1)
    threads = world.serve(0)
    eventually(lambda: world.cloud.machines)
    world.report("i-1", HostPhase.SERVING)
    eventually(lambda: "starting shards" in world.servers.phase)
    world.records.change("i-1", lambda found: found.give_up([1], now=time.time(), keep=True))
    for step in range(1, 4):
        world.now = 6.0 * step
        if not world.ends:
            world.n_looks = 0
            eventually(lambda: world.ends or world.n_looks >= 3)
    world.join(threads)
    assert "has given up this run's seats" in str(world.ends[0])


def test_a_server_that_does_not_come_up() -> None:
    """A start-up has an end; the error says how far it came."""
    world = World(n_shards=1)
    threads = world.serve(0)
    eventually(lambda: world.cloud.machines)
    world.report("i-1", HostPhase.INSTALLING)
    eventually(lambda: "installing packages" in world.servers.phase)
    world.now = 601.0
    world.join(threads)
    assert "within 600 s; last it was installing" in str(world.ends[0])
    assert world.cloud.machines["i-1"].state == "shutting-down"


def test_a_server_that_falls_silent() -> None:
    """A status that stands still means that shard 0 is dead, whatever the clocks of the machines say."""
    world = World(n_shards=1)
    status = RunStatus(state=RunState.RUNNING, heartbeat_at=1.0)
    world.folder.write_status(status)
    threads = world.serve(0)
    eventually(lambda: world.cloud.machines)
    world.report("i-1", HostPhase.SERVING)
    eventually(lambda: "starting shards" in world.servers.phase)
    for step in range(1, 4):
        world.folder.write_status(dataclasses.replace(status, heartbeat_at=1.0 + step))
        world.now = 50.0 * step
        world.await_look()
    assert not world.ends
    world.now = 300.0
    world.join(threads)
    assert "not been heard of" in str(world.ends[0])


def test_a_server_whose_shard_does_not_answer() -> None:
    """Shard 0, on another server, says so; what it said before it fell silent itself does not count."""
    world = World(n_shards=2, shards_per_server=1)
    threads = world.serve(1)
    eventually(lambda: len(world.cloud.machines) == 2)
    (name,) = (name for name in world.cloud.machines if world.seats(name) == {RUN: (1,)})
    world.report(name, HostPhase.SERVING)
    eventually(lambda: "starting shards" in world.servers.phase)
    status = RunStatus(state=RunState.RUNNING, heartbeat_at=1.0, silent_shards=(1,))
    for now in (10.0, 100.0, 200.0):  # the status stands still
        world.folder.write_status(status)
        world.now = now
        world.await_look()
    assert not world.ends
    for step in range(1, 10):
        world.folder.write_status(dataclasses.replace(status, heartbeat_at=1.0 + step))
        world.now = 200.0 + 9.0 * step
        eventually(lambda enough=world.n_looks + 2: world.ends or world.n_looks >= enough)
    world.join(threads)
    assert "not been heard of" in str(world.ends[1])
    assert world.cloud.machines[name].state == "shutting-down"


def test_no_machine_to_be_had() -> None:
    """What EC2 refuses reaches the supervisor as it is."""
    world = World(n_shards=1)
    world.cloud.refusal = CapacityError("none left")
    with pytest.raises(CapacityError, match="none left"):
        world.servers.serve(0, 1)


def test_the_time_before_the_first_shard_is_billed() -> None:
    """From the launch to the report that shards are served; shard 0 counts what comes after."""
    world = World(n_shards=1, spot=True)
    threads = world.serve(0)
    eventually(lambda: world.cloud.spots == [True])
    world.report("i-1", HostPhase.INSTALLING)
    eventually(lambda: "installing" in world.servers.phase)
    world.now = 80.0
    world.report("i-1", HostPhase.SERVING)
    eventually(lambda: world.servers.uncounted_seconds == 80.0)
    world.finish()
    world.join(threads)
