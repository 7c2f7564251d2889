"""Snapshots that cannot be written: training goes on, it is told, and the next one succeeds."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import boto3
import numpy as np
import pytest
from aws_services import Answer, Request, answering, forward, moto_services, use_services
from ps_runs import SOME_LEASES, Shards, create_run, make_config, running
from ps_workers import Workers, expected_weights
from stand_ins import eventually

from cirrus.metrics import RunState, RunStatus
from cirrus.paramserver.checkpoint import read_checkpoint
from cirrus.run_folder import ControlRequest
from cirrus.storage import open_store

DISK_BYTES = 1 << 20
BUCKET = "unreliable"
SLOW_SECONDS = 60.0
#: Not 503, which the SDK tries again for seconds.
REFUSAL = Answer(403, b"<Error><Code>AccessDenied</Code></Error>")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have shard 0 look for requests, and at the other shards, more often than one should look into S3."""
    monkeypatch.setattr("cirrus.paramserver.run_keeper.REMOTE_CONTROL_SECONDS", 0.2)
    monkeypatch.setattr("cirrus.paramserver.run_keeper.PEER_COUNTS_SECONDS", 0.2)


@contextlib.contextmanager
def small_disk(path: Path) -> Iterator[None]:
    """Mount a file system of a megabyte on a folder, as long as the context lasts."""
    path.mkdir(parents=True)
    options = ["-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs"]
    if os.geteuid() != 0 or subprocess.run(["mount", *options, path], capture_output=True).returncode != 0:
        pytest.skip("only root may mount a small file system here")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


def fill(path: Path) -> Path:
    """Leave no room in a folder's file system; return the file that takes it."""
    filler = path / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return filler


def status_of(shards: Shards) -> RunStatus:
    """Return the run's status, which is there."""
    return eventually(shards.folder.status, SLOW_SECONDS)


def finish(shards: Shards) -> None:
    """Stop the run, and check that every step is in the model once."""
    shards.folder.request(ControlRequest(action="stop"))
    status = shards.wait(SLOW_SECONDS)
    assert status.state is RunState.FINISHED
    assert shards.counts("steps_applied") == [status.updates] * 2
    model = read_checkpoint(open_store(f"{shards.url}/model")).tables["w"]["weights"]
    assert model.sum() == 3 * status.updates


def test_a_full_disk_does_not_stop_the_training(tmp_path: Path) -> None:
    """While there is no room the status says so; what is written afterwards restores a shard."""
    config = make_config(n_shards=2, leases=SOME_LEASES, stop={"epochs": 10**6}, snapshot_seconds=0.1)
    url = create_run(tmp_path / "run", config)
    disk = tmp_path / "run" / "snapshots" / "1"
    with small_disk(disk), running(url) as shards, Workers(url):
        eventually(lambda: shards.folder.store.exists("snapshots/1/newest.json"))
        filler = fill(disk)
        eventually(lambda: shards.shards[1].counts()["shard1.snapshots_failing"] >= 2)
        steps = shards.counts("steps_applied")[1]
        warning = eventually(lambda: status_of(shards).warning)
        assert "shard 1 could not write its last" in warning
        eventually(lambda: shards.counts("steps_applied")[1] > steps + 100)
        assert len(list(disk.iterdir())) <= 4  # nothing is left of those that failed
        filler.unlink()
        eventually(lambda: status_of(shards).warning is None)
        shards.replace(1)
        assert shards.counts("steps_applied")[1] > steps
        eventually(lambda: shards.counts("steps_applied")[1] > steps + 200)
        finish(shards)


def test_a_store_that_refuses_does_not_stop_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3 that takes no snapshots for a while: training goes on, the status says so, the next one succeeds."""
    refusing = False

    with contextlib.ExitStack() as stack:
        s3 = stack.enter_context(moto_services())

        def answer(request: Request) -> Answer:
            if refusing and request.method == "PUT" and "/snapshots/" in unquote(request.path):
                return REFUSAL
            return forward(s3, request)

        use_services(monkeypatch, stack.enter_context(answering(answer)))
        with contextlib.closing(boto3.session.Session().client("s3")) as client:
            client.create_bucket(Bucket=BUCKET)
        config = make_config(n_shards=2, leases=SOME_LEASES, stop={"epochs": 10**6}, snapshot_seconds=0.2)
        url = create_run(f"s3://{BUCKET}/run", config)
        shards = stack.enter_context(running(url))
        stack.enter_context(Workers(url))
        eventually(lambda: shards.folder.store.exists("snapshots/0/newest.json"), SLOW_SECONDS)
        refusing = True
        eventually(lambda: "could not write" in (status_of(shards).warning or ""), SLOW_SECONDS)
        steps = shards.counts("steps_applied")
        eventually(lambda: min(shards.counts("steps_applied")) > max(steps) + 20, SLOW_SECONDS)
        refusing = False
        eventually(lambda: status_of(shards).warning is None, SLOW_SECONDS)
        finish(shards)


def test_a_store_that_fails_altogether_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S3 that refuses all for a while: training goes on, and shards find each other again afterwards."""
    failing = False
    failed: Counter[str] = Counter()
    words = ("control/", "shards/0.json", "shards/1.json")

    with contextlib.ExitStack() as stack:
        s3 = stack.enter_context(moto_services())

        def answer(request: Request) -> Answer:
            if not failing:
                return forward(s3, request)
            wanted = unquote(request.path)
            failed.update(word for word in words if word in wanted)
            return REFUSAL

        use_services(monkeypatch, stack.enter_context(answering(answer)))
        with contextlib.closing(boto3.session.Session().client("s3")) as client:
            client.create_bucket(Bucket=BUCKET)
        config = make_config(n_shards=2, leases=SOME_LEASES, stop={"epochs": 10**6}, snapshot_seconds=1000.0)
        url = create_run(f"s3://{BUCKET}/gone", config)
        shards = stack.enter_context(running(url))
        stack.enter_context(Workers(url))
        eventually(lambda: min(shards.counts("steps_applied")) > 0, SLOW_SECONDS)
        failing = True
        eventually(lambda: min(failed[word] for word in words) > 1, SLOW_SECONDS)
        steps = shards.counts("steps_applied")
        eventually(lambda: min(shards.counts("steps_applied")) > max(steps) + 20, SLOW_SECONDS)
        failing = False
        shards.replace(0)
        steps = shards.counts("steps_applied")
        eventually(lambda: min(shards.counts("steps_applied")) > max(steps) + 20, SLOW_SECONDS)
        finish(shards)


def test_a_checkpoint_that_fails_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A place that took a checkpoint may fail for a moment: the run goes on, the request is kept."""
    monkeypatch.setattr("cirrus.paramserver.run_keeper.CHECKPOINT_RETRY_SECONDS", 0.2)
    config = make_config(
        n_shards=2, leases=SOME_LEASES, stop={"epochs": 10**6}, checkpoint_url=str(tmp_path / "kept")
    )
    with small_disk(tmp_path / "kept"), running(tmp_path / "run", config) as shards, Workers(shards.url):
        first = shards.folder.request(ControlRequest(action="snapshot"))
        eventually(lambda: not shards.folder.store.exists(first))
        filler = fill(tmp_path / "kept")
        second = shards.folder.request(ControlRequest(action="snapshot"))
        eventually(lambda: "checkpoint could not be written" in (status_of(shards).warning or ""))
        steps = shards.counts("steps_applied")[0]
        eventually(lambda: shards.counts("steps_applied")[0] > steps + 100)
        assert shards.folder.store.exists(second)
        filler.unlink()
        eventually(lambda: not shards.folder.store.exists(second))
        eventually(lambda: status_of(shards).warning is None)
        finish(shards)


def test_the_model_waits_for_room(tmp_path: Path) -> None:
    """A run that ends while the disk is full saves its model as soon as there is room."""
    config = make_config(n_shards=2, leases=SOME_LEASES, stop={"epochs": 3})
    url = create_run(tmp_path / "run", config)
    model = tmp_path / "run" / "model"
    with small_disk(model), running(url) as shards:
        filler = fill(model)
        with Workers(url):
            log = shards.shards[0]
            eventually(lambda: log._keeper is not None and log._keeper._save_failing_since is not None)
            filler.unlink()
            assert shards.wait(SLOW_SECONDS).state is RunState.FINISHED
        found = read_checkpoint(open_store(f"{url}/model")).tables["w"]["weights"]
        np.testing.assert_array_equal(found, expected_weights(config, 3))
