"""The program on an instance: it hosts the shards of many runs, and ends when nobody needs it."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
from fake_metadata import FakeMetadata, instance_values
from real_runs import assert_exact, make_dataset, plan
from stand_ins import eventually, last_report, make_config, shard_command

from cirrus.client_backend.aws import run_service
from cirrus.client_backend.aws.host import compile_kernels
from cirrus.client_backend.aws.hosting import Host, HostOptions
from cirrus.client_backend.aws.instance import Instance, InstanceMetadata
from cirrus.client_backend.aws.run_service import RunService
from cirrus.client_backend.aws.seats import ServerRecord, ServerRecords
from cirrus.client_backend.claims import LONGEST_LOOK_SECONDS, new_claim, process_exists
from cirrus.client_backend.local import LocalCommands
from cirrus.errors import ConfigError, RunError
from cirrus.metrics import RunState
from cirrus.paramserver.__main__ import STANDBY
from cirrus.paramserver.host_records import HostPhase
from cirrus.run_folder import ControlRequest, RunFolder
from cirrus.storage import open_store
from cirrus.worker_runtime.handler import handler

NAME = "i-0123456789abcdef0"


class Machine:
    """An instance on loopback, and the client's view of it.

    Args:
        root: The folder that takes the place of the bucket.
        metadata: The instance's metadata service.
    """

    def __init__(self, root, metadata):
        self.root = str(root)
        self.metadata = metadata
        self.records = ServerRecords(open_store(self.root))
        self.host = None
        self.thread = None

    def new_run(self, **metadata):
        """Create the folder of a run of stand-ins, with a living client, and return it."""
        return self.create(make_config(**metadata))

    def create(self, config):
        """Create a run's folder with a living client."""
        folder = RunFolder(f"{self.root}/runs/{config.run_id}")
        folder.create(config)
        folder.claim(new_claim())
        return folder

    def launch(self, folder, shards="0", command=shard_command, **options):
        """Start the host program for some shards of a run."""
        self.metadata.values |= instance_values(NAME, folder.config().run_id, shards)
        service = InstanceMetadata(self.metadata.url)
        self.host = Host(service.instance(), service, HostOptions(root=self.root, **options), command)
        self.thread = threading.Thread(target=self.host.run, daemon=True)
        self.thread.start()

    def offer(self, capacity, **fields):
        """Write the record of the instance, as the client does that launches it."""
        made = ServerRecord(
            instance=NAME, instance_type="c7gn.large", capacity=capacity, launched_at=time.time(), **fields
        )
        return self.records.enter(made)

    def book(self, folder, *shards):
        """Book seats for shards of a run, as its client does."""
        booking = self.records.book(NAME, folder.config().run_id, shards or (0,))
        assert booking is not None
        return booking

    def give_up(self, booking, *, keep=True):
        """Give up seats, as the client does whose run has ended."""
        return self.records.change(
            NAME, lambda record: record.give_up([booking.number], now=time.time(), keep=keep)
        )

    @property
    def idle(self):
        """The record of the instance while nobody has a seat, else None."""
        record = self.records.read(NAME)
        return record if record is not None and not record.bookings else None

    def phase(self, folder):
        """Return the phase that the instance reports for a run."""
        status = last_report(folder, NAME)
        return status and status.phase

    def ended(self):
        """Tell whether the host program has ended."""
        return not self.thread.is_alive()

    def end(self):
        """End the host program, whatever it does."""
        if self.thread is not None:
            self.host.stop()
            self.thread.join(20)
            assert self.ended()


@pytest.fixture
def machine(tmp_path):
    """An instance whose host program ends with the test."""
    with FakeMetadata({}) as metadata, contextlib.ExitStack() as stack:
        machine = Machine(tmp_path, metadata)
        stack.callback(machine.end)
        yield machine


def is_up(folder, generation=1, shard=0):
    """Return the address of a shard of at least this generation, once it has announced it."""
    address = folder.shard_address(shard)
    return address if address is not None and address.generation >= generation else None


def test_a_run_is_served_to_its_end_and_then_the_next(machine):
    """Shards of a run are hosted until it is over; a client books the idle instance for another run."""
    first = machine.new_run(n_shards=2)
    machine.launch(first, "0-1")
    eventually(lambda: is_up(first) and is_up(first, shard=1))
    assert machine.phase(first) is HostPhase.SERVING
    assert machine.idle is None
    first.request(ControlRequest(action="stop"))
    record = eventually(lambda: machine.idle)
    assert machine.phase(first) is HostPhase.ENDED
    assert (record.capacity, record.last_run, record.closed) == (2, first.config().run_id, False)
    assert abs(time.time() - record.idle_since) < 60
    second = machine.new_run()
    assert machine.book(second).number == 2
    eventually(lambda: is_up(second))
    assert last_report(second, NAME).booking == 2
    assert not machine.ended()


def test_runs_share_an_instance_and_leave_each_other_alone(machine):
    """Two runs at once, on ports of their own; one is killed, and the other goes on with the same process.

    The seat that has become free is another run's next.
    """
    machine.offer(2)
    first, second, third = (machine.new_run() for _ in range(3))
    bookings = [machine.book(run) for run in (first, second)]
    assert [booking.seats for booking in bookings] == [(0,), (1,)]
    machine.launch(first, first_port=7700)
    addresses = [eventually(lambda run=run: is_up(run)) for run in (first, second)]
    assert [port_of(address) for address in addresses] == ["7700", "7701"]
    assert machine.records.book(NAME, "another", (0,)) is None
    first.request(ControlRequest(action="kill"))
    eventually(lambda: first.status().state is RunState.KILLED)
    machine.give_up(bookings[0], keep=False)
    again = machine.book(third)
    assert again.seats == (0,)
    assert port_of(eventually(lambda: is_up(third))) == "7700"
    assert not process_exists(addresses[0].pid)
    assert is_up(second) == addresses[1]
    assert process_exists(addresses[1].pid)
    assert machine.phase(second) is HostPhase.SERVING


def test_seats_that_are_given_up_are_served_when_their_shards_have_ended(machine):
    """A client that leaves gives its seats up before its shards have saved themselves: nobody collides."""
    machine.offer(1)
    first, second = machine.new_run(), machine.new_run()
    booking = machine.book(first)
    machine.launch(first, first_port=7700)
    address = eventually(lambda: is_up(first))
    machine.give_up(booking)
    machine.book(second)
    found = eventually(lambda: is_up(second))
    assert port_of(found) == "7700"
    assert not process_exists(address.pid)
    assert first.status().state is RunState.INTERRUPTED


def test_what_was_booked_before_the_boot_is_found(machine):
    """While the instance boots, its launcher has been killed, and another run has come: it is served."""
    machine.offer(2, release="1f")
    gone, here = machine.new_run(), machine.new_run()
    machine.give_up(machine.book(gone))
    machine.book(here)
    machine.launch(gone, release="2e")
    eventually(lambda: is_up(here))
    assert gone.shard_address(0) is None
    # What it is installed from in truth, the instance knows.
    assert machine.records.read(NAME).release == "2e"


def test_one_run_s_client_is_lost(machine):
    """Its shards save themselves and its seats are free; the other run goes on, undisturbed."""
    machine.offer(2)
    lost, kept = machine.new_run(), machine.new_run()
    machine.book(lost)
    machine.book(kept)
    with renewing(kept):
        machine.launch(lost, client_lost_seconds=2.0)
        address = eventually(lambda: is_up(kept))
        eventually(lambda: machine.phase(lost) is HostPhase.INTERRUPTED)
        eventually(lambda: [b.run for b in machine.records.read(NAME).bookings] == [kept.config().run_id])
        assert lost.status().state is RunState.INTERRUPTED
        assert is_up(kept) == address
        assert not machine.ended()
    eventually(machine.ended)
    assert open_store(machine.root).list("servers/") == []


def test_one_run_that_cannot_be_served_fails_alone(machine):
    """Its client is told why; the other run goes on."""
    machine.offer(2)
    bad, good = machine.new_run(), machine.new_run()
    machine.book(bad, 7)
    machine.book(good)
    machine.launch(bad)
    eventually(lambda: is_up(good))
    eventually(lambda: machine.phase(bad) is HostPhase.FAILED)
    eventually(lambda: len(machine.records.read(NAME).bookings) == 1)
    assert machine.phase(good) is HostPhase.SERVING
    assert not machine.ended()


def test_an_instance_on_which_nobody_may_sit_ends_with_its_last_run(machine):
    """One run took it for lost and closed it: the other is served to its end, and then the instance ends."""
    machine.offer(2)
    run = machine.new_run()
    booking = machine.book(run)
    machine.records.change(NAME, ServerRecord.close)
    machine.launch(run)
    eventually(lambda: is_up(run))
    assert machine.records.book(NAME, "another", (0,)) is None
    machine.give_up(booking)
    eventually(machine.ended)


def test_without_its_record_an_instance_serves_to_the_end(machine):
    """Somebody has emptied the bucket's folder: what is at work goes on, and nobody comes any more."""
    run = machine.new_run()
    machine.launch(run)
    address = eventually(lambda: is_up(run))
    machine.records.forget(NAME)
    machine.thread.join(2.5)
    assert is_up(run) == address
    run.request(ControlRequest(action="stop"))
    eventually(machine.ended)
    assert machine.phase(run) is HostPhase.ENDED


def test_an_instance_whose_record_is_of_no_use_ends(machine):
    """Somebody has damaged it: who is at work goes on; without anybody the instance waits for no more."""
    run = machine.new_run()
    with renewing(run):
        machine.launch(run, client_lost_seconds=1.5)
        address = eventually(lambda: is_up(run))
        open_store(machine.root).put(f"servers/{NAME}.json", b"{")
        machine.thread.join(2.0)
        assert is_up(run) == address
        run.request(ControlRequest(action="stop"))
        eventually(machine.ended)
    assert machine.phase(run) is HostPhase.ENDED
    assert open_store(machine.root).list("servers/") == []


def test_an_instance_that_nobody_wants_ends(machine):
    """When its time is over it lets nobody come any more before it ends, and leaves no record."""
    run = machine.new_run(finish_after=0.0)
    machine.launch(run, keep_warm_seconds=0.7)
    eventually(lambda: machine.idle)
    eventually(machine.ended)
    assert open_store(machine.root).list("servers/") == []


def port_of(address):
    """Return the port that a shard was told to listen on."""
    words = psutil.Process(address.pid).cmdline()
    return words[words.index("--port") + 1]


@contextlib.contextmanager
def renewing(folder):
    """Renew the claim on a run, as its client does."""
    claim = folder.claim_holder()
    stop = threading.Event()

    def renew():
        while not stop.wait(0.2):
            folder.claim(dataclasses.replace(claim, renewed_at=time.time()))

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_without_a_warm_time_it_ends_at_once(machine):
    """Zero seconds: it is never offered."""
    run = machine.new_run(finish_after=0.0)
    machine.launch(run, keep_warm_seconds=0)
    eventually(machine.ended)
    assert machine.phase(run) is HostPhase.ENDED


def test_a_killed_shard_comes_back(machine):
    """A shard process that dies is started again under the next generation."""
    run = machine.new_run()
    machine.launch(run)
    address = eventually(lambda: is_up(run))
    os.kill(address.pid, signal.SIGKILL)
    assert eventually(lambda: is_up(run, generation=2)).pid != address.pid
    assert machine.phase(run) is HostPhase.SERVING


def test_a_replacement_takes_the_generation_after_the_last(machine):
    """An instance that replaces another goes on with the next generation of its shards."""
    run = machine.new_run()
    machine.launch(run)
    eventually(lambda: is_up(run))
    machine.end()
    assert machine.phase(run) is HostPhase.INTERRUPTED
    machine.launch(run)
    assert eventually(lambda: is_up(run, generation=2)).generation == 2


def test_a_spot_notice_saves_the_run(machine):
    """When AWS takes the instance back, the shards end in order, the client is told, the instance ends."""
    run = machine.new_run()
    machine.launch(run)
    address = eventually(lambda: is_up(run))
    machine.metadata.values["spot/instance-action"] = '{"action": "terminate"}'
    eventually(machine.ended)
    assert machine.phase(run) is HostPhase.RECLAIMED
    assert run.status().state is RunState.INTERRUPTED
    assert not process_exists(address.pid)


def test_a_lost_client_ends_the_instance(machine):
    """No sign of life from the client for the time set: the shards save themselves and the instance ends."""
    run = machine.new_run()
    machine.launch(run, client_lost_seconds=1.5)
    eventually(lambda: is_up(run))
    eventually(machine.ended)
    assert machine.phase(run) is HostPhase.INTERRUPTED
    assert run.status().state is RunState.INTERRUPTED
    assert open_store(machine.root).list("servers/") == []


def test_time_in_which_the_host_stood_still_is_no_silence(machine):
    """A host program that was stopped for longer than the limit does not take its client for lost."""
    run = machine.new_run()
    service = RunService(
        run, (0,), LocalCommands(shard=shard_command), client_lost_seconds=LONGEST_LOOK_SECONDS + 1
    )
    service.start()
    try:
        assert service.look() is None
        service._client._looked_at -= 3600.0  # an hour in which nobody looked
        assert service.look() is None
        service._client._looked_at -= 3600.0
        assert service.look() is HostPhase.INTERRUPTED
        assert service.client_lost
    finally:
        service.end()


def test_a_run_that_continues_lasts_as_long_as_its_workers(machine, monkeypatch):
    """Without its client it goes on while a worker is registered; then it saves, and the instance ends."""
    monkeypatch.setattr(run_service, "WORKERLESS_SECONDS", 1.0)
    config = make_config(works_for=8.0)
    run = machine.create(dataclasses.replace(config, on_client_loss="continue"))
    machine.launch(run, client_lost_seconds=1.5)
    eventually(lambda: (s := run.status()) and s.n_workers)
    machine.thread.join(5.0)
    assert machine.phase(run) is HostPhase.SERVING
    eventually(lambda: machine.phase(run) is HostPhase.INTERRUPTED)
    assert not run.status().n_workers
    eventually(machine.ended)


def test_a_sign_of_life_counts_whatever_the_client_s_clock_says(machine):
    """A client whose clock is years behind is as alive as any, if it renews its claim."""
    run = machine.new_run()
    machine.launch(run, client_lost_seconds=2.5)
    claim = run.claim_holder()
    eventually(lambda: is_up(run))
    for tick in range(16):
        run.store.put(
            "client.json", json.dumps({**dataclasses.asdict(claim), "renewed_at": 1000.0 + tick}).encode()
        )
        machine.thread.join(0.25)
    assert machine.phase(run) is HostPhase.SERVING


def test_a_client_that_leaves_in_order_leaves_the_instance_warm(machine):
    """A released claim ends the shards at once; the same run can be claimed back by who attaches to it."""
    run = machine.new_run()
    machine.launch(run)
    eventually(lambda: is_up(run))
    run.claim(dataclasses.replace(run.claim_holder(), released=True))
    eventually(lambda: machine.idle)
    assert machine.phase(run) is HostPhase.INTERRUPTED
    run.claim(new_claim())
    machine.book(run)
    eventually(lambda: is_up(run, generation=2))


@pytest.mark.parametrize("shards", ["0-4", "7"])
def test_shards_that_the_run_does_not_have_fail(machine, shards):
    """Wrong tags are told to the client, and the instance ends."""
    run = machine.new_run(n_shards=2)
    machine.launch(run, shards)
    eventually(machine.ended)
    report = last_report(run, NAME)
    assert report.phase is HostPhase.FAILED
    assert (report.error_type, "the run has shards 0 to 1" in report.error) == ("ConfigError", True)


def test_a_shard_that_always_crashes_fails(machine):
    """After some attempts without progress the client is told why, and the instance ends."""
    run = machine.new_run(shard="crash")
    machine.launch(run)
    eventually(machine.ended)
    report = last_report(run, NAME)
    assert report.phase is HostPhase.FAILED
    assert report.error.startswith("shard 0 ended with exit code")


def test_a_run_that_is_over_is_not_served_again(machine):
    """A host program that is started again after the end of its run waits for the next one."""
    run = machine.new_run(finish_after=0.0)
    machine.launch(run)
    eventually(lambda: machine.idle)
    generation = run.shard_address(0).generation
    machine.end()
    machine.launch(run)
    eventually(lambda: machine.idle)
    assert run.shard_address(0).generation == generation


def test_after_a_crash_of_the_host_program_the_record_counts(machine):
    """The tags name the first run for ever; what is booked is what is gone on with."""
    first, second = machine.new_run(finish_after=0.0), machine.new_run()
    machine.offer(1)
    machine.book(second)
    machine.launch(first)
    eventually(lambda: is_up(second))
    assert first.shard_address(0) is None


def test_real_shards_work_on_the_instance(machine, tmp_path):
    """Two runs on one instance at the same time, from compiling on: exact, the models saved.

    The shards of a later run are processes that waited for it, loaded, while the server was idle; when the
    host program ends, none of its processes is left.
    """
    compile_kernels()
    data = make_dataset(str(tmp_path / "data"))
    configs = [plan(data, epochs=2, n_workers=1, n_shards=1 + (i > 1)) for i in range(3)]
    folders = [machine.create(config) for config in configs]
    machine.offer(2)
    for folder in folders[:2]:
        machine.book(folder)
    machine.metadata.values |= instance_values(NAME, configs[0].run_id, "0")
    environment = {**os.environ, "AWS_EC2_METADATA_SERVICE_ENDPOINT": machine.metadata.url}
    command = [sys.executable, "-m", "cirrus.client_backend.aws.host", "--root", machine.root]
    command += ["--keep-warm-seconds", "60", "--client-lost-seconds", "60"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as process:
        host = psutil.Process(process.pid)
        try:
            with concurrent.futures.ThreadPoolExecutor(2) as pool:
                list(pool.map(work, folders[:2]))
            for config, folder in zip(configs[:2], folders[:2], strict=True):
                assert_exact(config, finished(folder))
            waiting = eventually(lambda: standbys_of(host))
            assert {machine.phase(folder) for folder in folders[:2]} == {HostPhase.ENDED}
            machine.book(folders[2], 0, 1)
            work(folders[2])
            assert_exact(configs[2], finished(folders[2]))
            addresses = [folders[2].shard_address(shard) for shard in (0, 1)]
            assert {address.pid for address in addresses} <= {child.pid for child in waiting}
            children = host.children()
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            process.kill()
    assert psutil.wait_procs([*waiting, *children], timeout=10)[1] == []


def work(folder):
    """Do a worker's work for a run, to its end."""
    handler({"role": "train", "run_url": folder.url, "worker_id": 0, "generation": 1})


def standbys_of(host):
    """Return the processes of a host program that wait to become shards, once there are two."""
    found = []
    for child in host.children():
        with contextlib.suppress(psutil.NoSuchProcess):
            found += [child] if STANDBY in child.cmdline() else []
    return found if len(found) >= 2 else []


def finished(folder):
    """Return the status of a run once it has finished."""
    eventually(lambda: folder.status().state is RunState.FINISHED)
    return folder.status()


class TestMetadata:
    """What an instance asks of its metadata service."""

    def test_an_instance_reads_what_it_was_launched_as(self):
        """Identity and tags come from the service, with a token."""
        with FakeMetadata(instance_values(NAME, "run-1", "0,2-3")) as service:
            metadata = InstanceMetadata(service.url)
            assert metadata.instance() == Instance(
                instance=NAME, address="127.0.0.1", instance_type="c7gn.large", run="run-1", shards=(0, 2, 3)
            )
            assert len(service.tokens) == 1
            assert not metadata.is_reclaimed()

    def test_an_expired_token_is_renewed(self):
        """Refused with the old token, it asks for a new one and goes on."""
        with FakeMetadata(instance_values(NAME, "run-1", "0")) as service:
            metadata = InstanceMetadata(service.url)
            assert metadata.get("instance-id") == NAME
            service.tokens.clear()
            assert metadata.get("instance-id") == NAME

    def test_a_moment_s_failure_is_tried_again(self):
        """The service may be busy while the instance boots."""
        with FakeMetadata(instance_values(NAME, "run-1", "0")) as service:
            service.failures = 2
            assert InstanceMetadata(service.url).get("instance-id") == NAME

    def test_a_service_that_does_not_answer_is_an_error(self):
        """After some attempts, with its address."""
        with FakeMetadata({}) as service:
            service.failures = 1000
            with pytest.raises(RunError, match="gives no instance-id"):
                InstanceMetadata(service.url).get("instance-id")

    def test_a_missing_tag_is_named(self):
        """An instance that nobody tagged says what is missing."""
        values = instance_values(NAME, "run-1", "0")
        del values["tags/instance/cirrus:run"]
        with FakeMetadata(values) as service, pytest.raises(ConfigError, match="cirrus:run"):
            InstanceMetadata(service.url).instance()


@pytest.mark.parametrize(
    "wrong",
    [{"first_port": -1}, {"first_port": 70000}, {"keep_warm_seconds": -1.0}, {"client_lost_seconds": 0.0}],
)
def test_options_that_cannot_work_are_refused(wrong):
    """Each by its name."""
    with pytest.raises(ConfigError) as caught:
        HostOptions(root="s3://bucket", **wrong)
    assert caught.value.field == next(iter(wrong))
