"""The servers of a run: adopted, claimed, launched, watched, replaced and ended."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

import pytest
from stand_ins import eventually, make_config

from cirrus.client_backend.aws import server_watch, servers
from cirrus.client_backend.aws.facade import AwsFacade, Instance
from cirrus.client_backend.aws.servers import ServerPlan, Servers, end_servers
from cirrus.client_backend.fleet import AttemptError
from cirrus.client_backend.status_cache import StatusCache
from cirrus.errors import CapacityError
from cirrus.metrics import RunState, RunStatus
from cirrus.paramserver.host_records import (
    HostPhase,
    HostReports,
    HostStatus,
    ServerClaim,
    WarmServer,
    WarmServers,
)
from cirrus.run_folder import RunFolder
from cirrus.storage import drop_memory_store, open_store

RUN = "r"


class Cloud(AwsFacade):
    """Instances in memory."""

    def __init__(self) -> None:
        self.machines: dict[str, Instance] = {}
        self.tokens: list[str] = []
        self.spots: list[bool] = []
        self.refusal: Exception | None = None

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

    def tag_instance(self, instance_id: str, tags: Mapping[str, str]) -> None:
        """Set tags."""
        machine = self.machines[instance_id]
        self.machines[instance_id] = dataclasses.replace(machine, tags={**machine.tags, **tags})

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
    """A run's folder, its cloud and its servers."""

    def __init__(self, n_shards: int = 2, **plan: object) -> None:
        self.root = open_store("memory://test-servers")
        self.folder = RunFolder("memory://test-servers/runs/r")
        self.folder.create(make_config(run_id=RUN, n_shards=n_shards))
        self.cloud = Cloud()
        self.reports = HostReports(self.folder.store)
        self.warm = WarmServers(self.root)
        self.notices: list[str] = []
        self.now = 0.0
        self.n_looks = 0
        """How often somebody looked at the clock, as each watch does once a round."""
        base = ServerPlan(
            run_id=RUN,
            deployment="cirrus",
            launch_template_id="lt-1",
            instance_type="c7g.large",
            overrides_type=False,
            spot=False,
            keep_warm_seconds=60.0,
            shards_per_server=2,
        )
        self.servers = Servers(
            dataclasses.replace(base, **plan),  # type: ignore[arg-type]
            n_shards,
            facade=self.cloud,
            status=StatusCache(self.folder, 0.0),
            reports=self.reports,
            warm=self.warm,
            notice=self.notices.append,
            status_of=self._status_of,
            clock=self.clock,
        )
        self.ends: dict[int, AttemptError | None] = {}
        self.settled = 0
        """How often it was looked whether a server's run before is over."""

    def _status_of(self, run_id: str) -> RunStatus | None:
        self.settled += 1
        return RunFolder(f"memory://test-servers/runs/{run_id}").status()

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

    def report(self, name: str, phase: HostPhase, error: str | None = None, kind: str | None = None) -> None:
        """Have a host report."""
        self.reports.write(
            HostStatus(instance=name, phase=phase, shards=(0, 1), error=error, error_type=kind)
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
    monkeypatch.setattr(servers, "SETTLING_POLL_SECONDS", 0.01)
    yield
    drop_memory_store("test-servers")


def test_shards_share_a_server_to_the_end_of_the_run() -> None:
    """Two shards a server: three take two, each launched once; the end of the run is the end of the watch."""
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
    assert end_servers(world.cloud, RUN) == ()


def test_nothing_is_launched_after_the_end() -> None:
    """A thread that comes late finds the run ended."""
    world = World()
    world.servers.close()
    world.join(world.serve(0))
    assert world.ends == {0: None}
    assert not world.cloud.machines


def test_a_server_that_works_for_the_run_is_taken_over() -> None:
    """Another client launched it: it goes on; one that has done its part does not count."""
    world = World()
    tags = {"cirrus:run": RUN, "cirrus:shards": "0-1"}
    world.cloud.add("i-old", tags)
    world.report("i-old", HostPhase.INTERRUPTED)
    world.cloud.add("i-good", tags)
    world.report("i-good", HostPhase.SERVING)
    threads = world.serve(0, 1)
    eventually(lambda: "i-good" in world.servers.phase)
    world.finish()
    world.join(threads)
    assert not world.cloud.tokens


def offer(
    name: str, *, seconds: float = 100.0, instance_type: str = "c7g.large", shards: int = 2
) -> WarmServer:
    """Return the record of a warm server."""
    return WarmServer(
        instance=name,
        address="10.0.0.1",
        since=time.time(),
        until=time.time() + seconds,
        shards=shards,
        instance_type=instance_type,
    )


def test_a_warm_server_is_claimed() -> None:
    """The one that has longest to live, of the right type, alive; it is tagged with the run."""
    world = World()
    for record in (offer("i-a"), offer("i-b", seconds=200.0), offer("i-c", seconds=300, instance_type="x")):
        world.cloud.add(record.instance, {"cirrus:run": "before"}, record.instance_type)
        world.warm.offer(record)
    world.warm.offer(offer("i-dead", seconds=400.0))
    world.warm.offer(offer("i-late", seconds=5.0))
    # It has served this run before, and said that it was over.
    world.report("i-b", HostPhase.INTERRUPTED)
    threads = world.serve(0, 1)
    eventually(lambda: world.cloud.machines["i-b"].tags["cirrus:run"] == RUN)
    claim = world.warm.claim_of("i-b")
    assert claim is not None
    assert (claim.run, claim.shards) == (RUN, (0, 1))
    assert "i-dead" not in [record.instance for record in world.warm.all()]
    world.report("i-b", HostPhase.SERVING)
    eventually(lambda: "i-b is starting shards" in world.servers.phase)
    world.finish()
    world.join(threads)
    assert world.ends == {0: None, 1: None}
    assert not world.cloud.tokens


def run_before(world: World, state: RunState) -> None:
    """Have a server whose run has just ended, and which has not seen that yet."""
    world.cloud.add("i-old", {"cirrus:run": "before", "cirrus:deployment": "cirrus"})
    before = RunFolder("memory://test-servers/runs/before")
    before.create(make_config(run_id="before", n_shards=2))
    before.write_status(RunStatus(state=state))


def test_a_server_that_is_just_done_is_waited_for() -> None:
    """The next run of a script begins before the server has offered itself, and starts no second one."""
    world = World()
    run_before(world, RunState.FINISHED)
    threads = world.serve(0, 1)
    eventually(lambda: world.settled > 2)
    assert not world.cloud.tokens
    world.warm.offer(dataclasses.replace(offer("i-old"), since=time.time() - 30.0))
    eventually(lambda: world.cloud.machines["i-old"].tags["cirrus:run"] == RUN)
    world.finish()
    world.join(threads)
    assert not world.cloud.tokens
    # The time that it has waited is this run's to pay.
    assert world.servers.uncounted_seconds == pytest.approx(30.0, abs=5.0)


@pytest.mark.parametrize("reason", ["claimed", "killed", "late"])
def test_a_server_that_will_not_be_free_is_not_waited_for(reason: str) -> None:
    """Another run has it, or it ends with its run, or it does not offer itself in time."""
    world = World()
    run_before(world, RunState.KILLED if reason == "killed" else RunState.FINISHED)
    if reason == "claimed":
        world.warm.claim("i-old", ServerClaim(run="another", shards=(0,)))
    threads = world.serve(0, 1)
    if reason == "late":
        eventually(lambda: world.settled > 2)
        assert not world.cloud.tokens
        world.now = 11.0
    eventually(lambda: world.cloud.tokens)
    world.finish()
    world.join(threads)


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
