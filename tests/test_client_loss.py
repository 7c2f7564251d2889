"""The client dies, and the run was told to continue: workers go on, others take over, nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import real_client
from real_runs import assert_exact, make_dataset, plan
from stand_ins import RUN_SECONDS, eventually, processes

from cirrus import Dataset, LogisticRegression
from cirrus.client_backend.local import LocalBackend
from cirrus.client_backend.processes import child_environment
from cirrus.client_backend.runs import list_runs, open_run
from cirrus.config import RunConfig
from cirrus.errors import ConfigError
from cirrus.metrics import RunState


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Return a dataset of 20,000 rows."""
    return make_dataset(str(tmp_path_factory.mktemp("data") / "train"))


@pytest.fixture
def no_leftovers() -> Iterator[list[str]]:
    """Runs of which nothing may be left; what is left all the same is ended."""
    run_ids: list[str] = []
    yield run_ids
    for run_id in run_ids:
        for process in processes(run_id):
            process.kill()


def lose_client(config: RunConfig, root: Path) -> None:
    """Start a run from a process that is killed as soon as the run trains."""
    (root / "config.json").write_bytes(config.to_json())
    command = [sys.executable, real_client.__file__, str(root), str(root / "config.json")]
    client = subprocess.Popen(command, stdout=subprocess.PIPE, env=child_environment(os.environ))
    assert client.stdout is not None
    assert client.stdout.readline()
    client.send_signal(signal.SIGKILL)
    client.communicate()


def test_workers_finish_a_run_without_a_client(
    train: Dataset, tmp_path: Path, no_leftovers: list[str]
) -> None:
    """Workers without a deadline bring the run to its end; it is listed as clientless, its model saved."""
    config = plan(train, epochs=60, on_client_loss="continue")
    no_leftovers.append(config.run_id)
    lose_client(config, tmp_path)
    run = open_run(str(tmp_path), config.run_id)
    before = run.status
    assert before.state is RunState.RUNNING
    assert "client is gone" in before.detail
    (listed,) = list_runs(str(tmp_path))
    assert listed.status is not None
    assert "client is gone" in listed.status.detail
    eventually(lambda: run.status.state is RunState.FINISHED, RUN_SECONDS)
    assert_exact(config, run.status)
    assert run.folder.store.exists("model/checkpoint.json")
    eventually(lambda: not processes(config.run_id))


def test_shards_end_when_the_last_worker_has_done_its_time(
    train: Dataset, tmp_path: Path, no_leftovers: list[str]
) -> None:
    """After the workers' deadlines the shards snapshot and end; another client resumes, with exact counts."""
    config = plan(train, on_client_loss="continue", generation_seconds=4.0)
    no_leftovers.append(config.run_id)
    lose_client(config, tmp_path)
    run = open_run(str(tmp_path), config.run_id)
    done = run.status.updates
    eventually(lambda: not processes(config.run_id), 40.0)
    status = run.status
    assert status.state is RunState.INTERRUPTED
    assert status.updates > done
    with LocalBackend(root=tmp_path).attach(config.run_id) as attached:
        eventually(lambda: attached.status.updates > status.updates)
        attached.stop()
        ended = attached.wait(RUN_SECONDS)
    applied = [ended.counts[f"shard{shard}.steps_applied"] for shard in range(2)]
    assert applied == [ended.updates] * 2
    assert processes(config.run_id) == []


def test_a_new_client_takes_over_what_still_works(
    train: Dataset, tmp_path: Path, no_leftovers: list[str]
) -> None:
    """Shards that outlived their client save themselves for the next one, who loses and repeats nothing."""
    config = plan(train, on_client_loss="continue", snapshot_seconds=1000.0)
    no_leftovers.append(config.run_id)
    lose_client(config, tmp_path)
    run = open_run(str(tmp_path), config.run_id)
    eventually(lambda: run.status.updates > 500)
    before = {process.pid for process in processes(config.run_id)}
    done = run.status.updates
    with LocalBackend(root=tmp_path).attach(config.run_id) as attached:
        eventually(lambda: attached.status.updates > done + 200)
        assert attached.status.detail == ""
        # Workers of the first client find that they were replaced.
        eventually(lambda: not before & {process.pid for process in processes(config.run_id)})
        attached.stop()
        status = attached.wait(RUN_SECONDS)
    applied = [status.counts[f"shard{shard}.steps_applied"] for shard in range(2)]
    assert applied == [status.updates] * 2
    assert processes(config.run_id) == []


def test_a_clientless_run_can_be_killed(train: Dataset, tmp_path: Path, no_leftovers: list[str]) -> None:
    """``cirrus kill`` reaches shards that have outlived their client."""
    config = plan(train, on_client_loss="continue")
    no_leftovers.append(config.run_id)
    lose_client(config, tmp_path)
    run = open_run(str(tmp_path), config.run_id)
    run.kill()
    assert run.status.state is RunState.KILLED
    eventually(lambda: not processes(config.run_id))


def test_a_client_that_leaves_in_order_takes_all_along(
    train: Dataset, tmp_path: Path, no_leftovers: list[str]
) -> None:
    """To continue is for a client that was lost; one that closes its run ends it."""
    config = plan(train, on_client_loss="continue")
    no_leftovers.append(config.run_id)
    with LocalBackend(root=tmp_path).start(config) as run:
        eventually(lambda: run.status.updates > 0)
    assert processes(config.run_id) == []
    assert run.status.state is RunState.INTERRUPTED


def test_of_two_clients_that_attach_at_once_one_wins(
    train: Dataset, tmp_path: Path, no_leftovers: list[str]
) -> None:
    """The other is told who has the run; both of them agree on who won."""
    config = plan(train, on_client_loss="continue")
    no_leftovers.append(config.run_id)
    lose_client(config, tmp_path)
    command = [sys.executable, "-m", "cirrus", "attach", config.run_id, "--home", str(tmp_path)]
    environment = child_environment(os.environ)
    clients = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True)
        for _ in range(2)
    ]
    try:
        eventually(lambda: any(client.poll() is not None for client in clients), 60.0)
        lost, won = sorted(clients, key=lambda client: client.poll() is None)
        _, said = lost.communicate(timeout=30.0)
        assert lost.returncode != 0
        assert f"supervised by process {won.pid}" in said
        eventually(lambda: open_run(str(tmp_path), config.run_id).status.state is RunState.RUNNING)
        open_run(str(tmp_path), config.run_id).kill()
        won.communicate(timeout=30.0)
    finally:
        for client in clients:
            client.kill()
            client.communicate()
    eventually(lambda: not processes(config.run_id))


def test_threads_cannot_outlive_their_process(train: Dataset) -> None:
    """``inline`` refuses what it cannot do, and an unknown word is refused everywhere."""
    with pytest.raises(ConfigError, match='use backend="local"'):
        LogisticRegression(backend="inline", on_client_loss="continue").fit(train)
    with pytest.raises(ConfigError, match="on_client_loss: must be one of stop, continue"):
        LogisticRegression(on_client_loss="stay").fit(train)
