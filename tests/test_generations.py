"""A shard that was replaced and comes back changes nothing: paused, hung, or cut off by the network."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from ps_runs import create_run, make_config, make_leases
from real_runs import GOOD_ACCURACY, accuracy, assert_whole, make_dataset, plan
from stand_ins import RUN_SECONDS, eventually, processes

from cirrus.client_backend.local import LocalBackend, LocalLauncher, shard_command, worker_command
from cirrus.client_backend.processes import child_environment
from cirrus.errors import ConnectionLostError, SupersededError
from cirrus.metrics import RunState
from cirrus.paramserver.client import Channel, ParameterClient
from cirrus.paramserver.protocol import NextTask, Register, Registered, Task
from cirrus.paramserver.server import FENCE_SECONDS
from cirrus.run_folder import ControlRequest, RunFolder, ShardAddress


@contextlib.contextmanager
def started(command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a shard or worker of Cirrus as long as the context lasts, at most."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env=child_environment(os.environ),
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def await_shard(folder: RunFolder, shard: int, generation: int) -> ShardAddress:
    """Wait until a generation of a shard serves."""

    def find() -> ShardAddress | None:
        address = folder.shard_address(shard)
        return address if address is not None and address.generation >= generation else None

    found: ShardAddress = eventually(find, 60.0)
    return found


def test_a_paused_shard_that_was_replaced_refuses_pushes(tmp_path: Path) -> None:
    """It takes nothing over connections from before its pause, and ends by itself."""
    config = make_config(leases=make_leases(1000), stop={"epochs": 1})
    url = create_run(tmp_path / "run", config)
    folder = RunFolder(url)
    with started(shard_command(url, 0, 1)) as old:
        address = await_shard(folder, 0, 1)
        control = Channel(address, folder.token())
        control.ask(Register(worker=0, generation=1, role="train"), Registered)
        task = eventually(lambda: (t := control.ask(NextTask(wait_seconds=1), Task)).action == "train" and t)
        client = ParameterClient([address], folder.token(), config.tables)
        client.attach(task.epoch, task.lease, task.grant)
        ids, ones = {0: np.array([1], np.uint32)}, {0: np.ones((1, 1), np.float32)}
        client.push_rows(0, 0, ids, ones)
        client.flush()
        old.send_signal(signal.SIGSTOP)
        with started(shard_command(url, 0, 2)):
            await_shard(folder, 0, 2)
            time.sleep(FENCE_SECONDS)  # longer than the shard may go on without looking
            old.send_signal(signal.SIGCONT)
            client.push_rows(1, 1, ids, ones)
            with pytest.raises((SupersededError, ConnectionLostError)):
                client.flush()
            assert old.wait(20.0) == 0
            assert folder.shard_address(0).generation == 2  # type: ignore[union-attr]
        client.close()
        control.close()


@pytest.mark.parametrize("shard", [0, 1])
def test_a_shard_that_hangs_is_replaced(tmp_path: Path, shard: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is stopped for good is ended by the client, and another generation does its work, exactly."""
    monkeypatch.setattr(LocalLauncher, "silent_seconds", 10.0)
    train = make_dataset(str(tmp_path / "train"))
    with LocalBackend(root=tmp_path).start(plan(train)) as run:
        eventually(lambda: run.status.updates > 0)
        os.kill(await_shard(run.folder, shard, 1).pid, signal.SIGSTOP)
        await_shard(run.folder, shard, 2)
        epoch = run.status.epoch
        eventually(lambda: run.status.epoch >= epoch + 10, RUN_SECONDS)
        run.stop()
        status = run.wait(RUN_SECONDS)
        assert status.state is RunState.FINISHED
        assert_whole(run, status)
        assert accuracy(run) > GOOD_ACCURACY
    assert processes(run.run_id) == []


class Network:
    """Two network namespaces with a wire between them, which can be cut.

    Args:
        name: What the namespaces are called, with ``a`` or ``b`` behind.
    """

    SUBNET = "10.213.77"

    def __init__(self, name: str) -> None:
        self.a, self.b = f"{name}a", f"{name}b"

    def __enter__(self) -> Network:
        self._ip("netns", "add", self.a)
        self._ip("netns", "add", self.b)
        self._ip("link", "add", self.a, "netns", self.a, "type", "veth", "peer", self.b, "netns", self.b)
        for number, name in enumerate((self.a, self.b), start=1):
            self._ip("-n", name, "address", "add", f"{self.SUBNET}.{number}/24", "dev", name)
            self._ip("-n", name, "link", "set", name, "up")
            self._ip("-n", name, "link", "set", "lo", "up")
        return self

    def __exit__(self, *_: object) -> None:
        for name in (self.a, self.b):
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)

    def cut(self) -> None:
        """No packet gets from one side to the other."""
        self._ip("-n", self.b, "link", "set", self.b, "down")

    def heal(self) -> None:
        """The wire is whole again."""
        self._ip("-n", self.b, "link", "set", self.b, "up")

    def shard(self, where: str, url: str, shard: int, generation: int) -> list[str]:
        """Return the command line of a shard in a namespace."""
        host = f"{self.SUBNET}.{1 if where == self.a else 2}"
        return [*self.inside(where), *shard_command(url, shard, generation), "--host", host]

    def inside(self, where: str) -> list[str]:
        """Return what runs a command in a namespace."""
        return ["ip", "netns", "exec", where]

    @staticmethod
    def _ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def network() -> Iterator[Network]:
    """Two namespaces; the test is skipped where the machine allows none."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("only root can make network namespaces, with the program ip")
    try:
        with Network(f"cirrus{os.getpid() % 10_000}") as made:
            yield made
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this machine allows no network namespaces: {error.stderr.decode().strip()}")


def test_a_partition_heals_and_the_replaced_shard_changes_nothing(tmp_path: Path, network: Network) -> None:
    """Cut off with a worker of its own, shard 1 is replaced; when the wire is whole again it has no say."""
    train = make_dataset(str(tmp_path / "train"))
    # A worker on the wrong side of the cut holds its leases until they expire, and the epoch up.
    config = dataclasses.replace(plan(train, epochs=10**5), lease_seconds=5.0)
    folder = RunFolder(create_run(tmp_path / "run", config))
    url = folder.url
    worker = worker_command(url)

    def send_event(process: subprocess.Popen[bytes], number: int) -> None:
        event = f'{{"role": "train", "run_url": "{url}", "worker_id": {number}, "generation": 1}}\n'
        assert process.stdin is not None
        process.stdin.write(event.encode())
        process.stdin.flush()

    def updates() -> int:
        status = folder.status()
        return 0 if status is None else status.updates

    with contextlib.ExitStack() as stack:
        stack.enter_context(started(network.shard(network.a, url, 0, 1)))
        cut_off = stack.enter_context(started(network.shard(network.b, url, 1, 1)))
        for number, where in enumerate((network.a, network.b)):
            process = stack.enter_context(started([*network.inside(where), *worker]))
            send_event(process, number)
        eventually(lambda: updates() > 500, 60.0)
        network.cut()
        stack.enter_context(started(network.shard(network.a, url, 1, 2)))
        await_shard(folder, 1, 2)
        before = updates()
        eventually(lambda: updates() > before + 500, 60.0)
        network.heal()
        assert cut_off.wait(20.0) == 0
        healed = updates()
        eventually(lambda: updates() > healed + 500, 60.0)
        folder.request(ControlRequest(action="stop"))
        ended = eventually(lambda: (s := folder.status()) and s.state.ended and s, 60.0)
    assert ended.state is RunState.FINISHED
    assert [ended.counts[f"shard{shard}.steps_applied"] for shard in range(2)] == [ended.updates] * 2
