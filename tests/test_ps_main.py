"""Shards as processes: their first line, their leash, signals, and what SIGKILL leaves."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ps_runs import SOME_LEASES, create_run, make_config
from ps_workers import Workers, expected_weights
from stand_ins import eventually

from cirrus.config import RunConfig
from cirrus.metrics import RunState, RunStatus
from cirrus.paramserver.checkpoint import read_checkpoint
from cirrus.run_folder import RunFolder
from cirrus.storage import open_store

#: From its start to its end, kernels and all, however busy the machine: a test has 120 seconds.
END_SECONDS = 60.0


class ShardProcess:
    """``python -m cirrus.paramserver``.

    Args:
        url: The run folder.
        shard: Which one.
        generation: Which incarnation.
    """

    def __init__(self, url: str, shard: int = 0, generation: int = 1) -> None:
        command = [sys.executable, "-m", "cirrus.paramserver", "--run-url", url]
        command += ["--shard", str(shard), "--generation", str(generation)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.generation = generation
        assert self.process.stdout is not None
        self.first_line = self.process.stdout.readline().strip()

    def kill(self) -> None:
        """Kill it as nothing can be caught."""
        self.process.kill()
        self.close()

    def end(self) -> tuple[int, str, str]:
        """Wait for its end; return exit code, the rest of its output, and what it said on standard error."""
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        code = self.process.wait(END_SECONDS)
        out, err = self.process.stdout.read(), self.process.stderr.read()
        self.close()
        return code, out, err

    def close(self) -> None:
        """Leave nothing behind."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()


@contextlib.contextmanager
def processes(url: str, n_shards: int) -> Iterator[list[ShardProcess]]:
    """Run the shards of a run as processes."""
    shards = [ShardProcess(url, shard) for shard in range(n_shards)]
    try:
        yield shards
    finally:
        for shard in shards:
            shard.close()


def status_of(url: str) -> RunStatus:
    """Return a run's status, once there is one."""
    found = eventually(lambda: RunFolder(url).status())
    assert isinstance(found, RunStatus)
    return found


def make_run(
    path: Path, *, epochs: int, n_shards: int = 1, snapshot_seconds: float = 0.1
) -> tuple[str, RunConfig]:
    """Create the folder of a run."""
    config = make_config(
        n_shards=n_shards, leases=SOME_LEASES, stop={"epochs": epochs}, snapshot_seconds=snapshot_seconds
    )
    return create_run(path / "run", config), config


def test_a_shard_prints_its_address_and_ends_with_its_run(tmp_path: Path) -> None:
    """The first line of standard output is host:port; the code is 0 when the run has ended."""
    url, config = make_run(tmp_path, epochs=2)
    with processes(url, 1) as (shard,), Workers(url):
        address = RunFolder(url).shard_address(0)
        assert address is not None
        assert shard.first_line == f"{address.host}:{address.port}"
        assert address.pid == shard.process.pid
        assert shard.end()[:2] == (0, "")
    assert status_of(url).state is RunState.FINISHED
    model = read_checkpoint(open_store(f"{url}/model")).tables["w"]["weights"]
    np.testing.assert_array_equal(model, expected_weights(config, 2))


@pytest.mark.parametrize("how", ["signal", "end of input"])
def test_a_shard_whose_client_goes_away_saves_and_says_so(tmp_path: Path, how: str) -> None:
    """It takes a last snapshot, so that no step is lost, writes INTERRUPTED, and ends by itself with 0."""
    url, config = make_run(tmp_path, epochs=30, snapshot_seconds=1000.0)
    with Workers(url, hold=True) as workers:
        with processes(url, 1) as (shard,):
            eventually(lambda: status_of(url).updates > 100)
            if how == "end of input":
                assert shard.process.stdin is not None
                shard.process.stdin.close()
            else:
                shard.process.send_signal(signal.SIGTERM)
            assert shard.end()[0] == 0
        status = status_of(url)
        assert status.state is RunState.INTERRUPTED
        again = ShardProcess(url, generation=2)
        workers.release()
        assert again.end()[0] == 0
    status = status_of(url)
    assert status.state is RunState.FINISHED
    assert status.counts["shard0.steps_applied"] == 30 * config.steps_per_epoch
    model = read_checkpoint(open_store(f"{url}/model")).tables["w"]["weights"]
    np.testing.assert_array_equal(model, expected_weights(config, 30))


def test_a_killed_shard_goes_on_from_its_snapshot(tmp_path: Path) -> None:
    """SIGKILL in the middle of pushes, of one shard and the other: each step is on each shard once."""
    url, config = make_run(tmp_path, epochs=60, n_shards=2)
    with processes(url, 2) as shards, Workers(url, hold=True) as workers:
        for victim, updates in ((0, 100), (1, 500)):
            eventually(lambda updates=updates: status_of(url).updates > updates)
            shards[victim].kill()
            shards[victim] = ShardProcess(url, victim, shards[victim].generation + 1)
        workers.release()
        assert [shard.end()[0] for shard in shards] == [0, 0]
    status = status_of(url)
    assert (status.state, status.epoch) == (RunState.FINISHED, 60)
    total = 60 * config.steps_per_epoch
    assert [status.counts[f"shard{shard}.steps_applied"] for shard in range(2)] == [total, total]
    model = read_checkpoint(open_store(f"{url}/model")).tables["w"]["weights"]
    np.testing.assert_array_equal(model, expected_weights(config, 60))


def test_what_is_wrong_is_said_in_a_line(tmp_path: Path) -> None:
    """A run that is not there, a shard that it does not have, a damaged config and snapshot: no traceback."""
    url, _ = make_run(tmp_path, epochs=1)
    folder = RunFolder(url)
    cases = [(str(tmp_path / "nowhere"), 0, "nowhere"), (url, 5, r"shard")]
    found = [ShardProcess(*case[:2]) for case in cases]
    folder.store.put("snapshots/0/newest.json", b"{")
    found.append(ShardProcess(url))
    folder.store.put("config.json", b"[]")
    found.append(ShardProcess(url))
    words = ["nowhere", "shard: must be in [0, 1), got 5", "newest.json", "config.json"]
    for process, word in zip(found, words, strict=True):
        said = json.loads(process.first_line)
        code, _, err = process.end()
        assert code == 1
        assert word in err
        assert word in said["error"]
        assert err.startswith("error: ")
        assert err.count("\n") == 1


def test_an_older_generation_does_not_serve(tmp_path: Path) -> None:
    """A shard that was started late, beside its successor, leaves without disturbing it."""
    url, _ = make_run(tmp_path, epochs=1)
    with processes(url, 1):
        late = ShardProcess(url)
        assert late.first_line == ""
        assert late.end()[0] == 0
        with Workers(url):
            eventually(lambda: status_of(url).state is RunState.FINISHED)


def test_a_wrong_command_line_is_refused() -> None:
    """Arguments that are missing are named."""
    done = subprocess.run(
        [sys.executable, "-m", "cirrus.paramserver"], capture_output=True, text=True, env={**os.environ}
    )
    assert done.returncode == 2
    assert "--run-url" in done.stderr
