"""What holds on every backend alike: real shards and workers, started, ended, broken and gone on with."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from real_runs import accuracy, assert_exact, assert_whole, await_work, make_dataset, plan
from stand_ins import assert_within, eventually

import cirrus
from cirrus import Dataset
from cirrus.chunks.manifest import MANIFEST_KEY
from cirrus.client_backend.base import Backend
from cirrus.client_backend.inline import InlineBackend, InlineLauncher
from cirrus.client_backend.local import LocalBackend
from cirrus.client_backend.runs import Run, list_runs, open_run
from cirrus.client_backend.supervisor import Supervisor
from cirrus.errors import ConflictError, RunError
from cirrus.metrics import RunState
from cirrus.preprocessing import StandardScaler
from cirrus.storage import open_store

GOOD_ACCURACY = 0.95
#: A server on AWS installs its packages first, on a machine that does all of AWS' work.
RUN_SECONDS = 300.0
#: A shard that is killed serves again within this time, on a machine with nothing else to do.
SHARD_BACK_SECONDS = 5.0


BACKENDS = ["local", "inline", "ray"]
#: For tests that leave a deployment's server for the next one. After those that end it another one installs
#: all its packages; but for one they are made with servers that are ready at once instead (test_aws_runs.py).
on_aws_too = pytest.mark.parametrize("backend", [*BACKENDS, "aws"], indirect=True)


@pytest.fixture(scope="module")
def train_here(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Return a dataset of 20,000 rows on this machine."""
    return make_dataset(str(tmp_path_factory.mktemp("data") / "train"))


@pytest.fixture
def train(backend: Backend, train_here: Dataset) -> Dataset:
    """Return the dataset where the backend reaches it."""
    if backend.reaches(train_here.url):
        return train_here
    url = f"{backend.root}/data/every-backend"
    source, there = open_store(train_here.url), open_store(url)
    if not there.exists(MANIFEST_KEY):
        for key in sorted(source.list(), key=lambda key: key == MANIFEST_KEY):
            there.put(key, source.get(key))
    return Dataset.open(url)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    """Return each backend in turn, with its runs in a fresh folder."""
    root = str(tmp_path / "home")
    if request.param == "local":
        return LocalBackend(root=root, dollars_per_hour=3600.0)
    if request.param == "inline":
        return InlineBackend(root=root, dollars_per_hour=3600.0)
    if request.param == "aws":
        return cirrus.AWSBackend(request.getfixturevalue("on_aws").deployment.bucket)
    pytest.importorskip("ray", reason="ray is not installed")
    cluster = request.getfixturevalue("ray_cluster")
    # One node, all of whose processors the runs of these tests declare.
    return cirrus.RayBackend(cluster.address, root=root, dollars_per_node_hour=3600.0)


def lose_shard(run: Run, shard: int) -> float:
    """End a shard like a killed process; return the seconds until its next generation serves."""
    before = run.folder.shard_address(shard)
    assert before is not None
    crash_shard(run, shard)
    start = time.monotonic()
    eventually(lambda: run.folder.shard_address(shard).generation > before.generation, RUN_SECONDS)  # type: ignore[union-attr]
    return time.monotonic() - start


def crash_shard(run: Run, shard: int) -> None:
    """End a shard like a killed process."""
    supervisor = run.supervisor
    if isinstance(supervisor, Supervisor) and isinstance(supervisor.launcher, InlineLauncher):
        supervisor.launcher.crash_shard(shard)
        return
    address = run.folder.shard_address(shard)
    assert address is not None
    assert address.pid != os.getpid()
    os.kill(address.pid, signal.SIGKILL)


@on_aws_too
def test_a_run_finishes_with_every_step_once(train: Dataset, backend: Backend) -> None:
    """Two workers and two shards train a good model; each shard counts each step once; it costs money.

    What it costs is told beside what it should have cost.
    """
    before = {summary.run_id for summary in list_runs(backend.root)}
    dollars, prices = backend.dollars_per_hour(2, 2), backend.worker_prices(1769)
    config = dataclasses.replace(plan(train, epochs=4), dollars_per_hour=dollars, worker_prices=prices)
    with backend.start(config) as run:
        states: list[RunState] = []
        status = run.wait(RUN_SECONDS, on_event=lambda status: states.append(status.state))
        assert status.state is RunState.FINISHED
        assert states[-1] is RunState.FINISHED
        assert_exact(config, status)
        assert accuracy(run) > GOOD_ACCURACY
        assert dollars > 0
        cost = run.cost
        assert cost.measured == pytest.approx(status.cost)
        assert cost.servers.modelled == pytest.approx(status.seconds * dollars / 3600)
        assert cost.servers.measured >= 0.99 * cost.servers.modelled  # starting costs, too
        assert (cost.workers.measured > 0) is (cost.workers.modelled > 0) is (prices.dollars_per_second > 0)
        points = run.metrics()
        assert [point.epoch for point in points if point.end_of_epoch] == [1, 2, 3, 4]
    assert {summary.run_id for summary in list_runs(backend.root)} - before == {run.run_id}


@pytest.mark.parametrize(
    ("backend", "action"),
    [*itertools.product(BACKENDS, ["stop", "kill"]), ("aws", "stop")],
    indirect=["backend"],
)
def test_another_client_ends_a_run_through_its_folder(train: Dataset, backend: Backend, action: str) -> None:
    """Stop keeps the model, kill does not; who supervises the run sees its end."""
    with backend.start(plan(train, n_shards=1)) as run:
        await_work(run)
        other = open_run(backend.root, run.run_id)
        getattr(other, action)()
        assert run.wait(RUN_SECONDS).state is (RunState.FINISHED if action == "stop" else RunState.KILLED)
        assert run.supervisor is not None
        assert run.supervisor.wait(10.0)
        assert bool(run.folder.store.list("model/")) is (action == "stop")


@on_aws_too
def test_an_interrupted_run_is_gone_on_with(train: Dataset, backend: Backend) -> None:
    """A client that closes its run interrupts it; another goes on, and no step is lost or done twice.

    Before that, nobody else can have it, and it goes on undisturbed.
    """
    first = backend.start(plan(train, n_shards=1))
    await_work(first)
    with pytest.raises(ConflictError, match="supervised"):
        backend.attach(first.run_id)
    await_work(first, first.status.updates + 10)
    first.close()
    assert first.status.state is RunState.INTERRUPTED
    done = first.status.updates
    with backend.attach(first.run_id) as second:
        await_work(second, done + 200)
        second.stop()
        status = second.wait(RUN_SECONDS)
        assert status.state is RunState.FINISHED
        assert_whole(second, status)
    with pytest.raises(RunError, match="has ended"):
        backend.attach(first.run_id)


@on_aws_too
def test_a_killed_shard_comes_back_with_what_it_had(train: Dataset, backend: Backend) -> None:
    """A shard that dies is back under a new generation, and in the end all counts are exact."""
    with backend.start(plan(train)) as run:
        await_work(run, 400, RUN_SECONDS)
        assert_within(SHARD_BACK_SECONDS, lambda: lose_shard(run, 1))
        await_work(run, run.status.updates + 400, RUN_SECONDS)
        run.stop()
        status = run.wait(RUN_SECONDS)
        assert status.state is RunState.FINISHED
        assert_whole(run, status)


def test_a_run_that_cannot_work_fails_with_the_cause(train: Dataset, backend: Backend) -> None:
    """What a worker finds wrong ends the run at once, and is in the client's error and in the status."""
    config = dataclasses.replace(plan(train, n_shards=1), train_fingerprint="another")
    with backend.start(config) as run, pytest.raises(RunError, match="was replaced since the run began"):
        run.wait(RUN_SECONDS)
    assert run.status.state is RunState.FAILED
    assert "was replaced" in str(run.status.error)


def test_the_last_reference_ends_the_run(train: Dataset, backend: Backend) -> None:
    """A run that nobody holds any more is ended: nobody could."""
    run = backend.start(plan(train, n_shards=1))
    await_work(run)
    run_id = run.run_id
    del run
    gc.collect()
    eventually(lambda: open_run(backend.root, run_id).status.state is RunState.INTERRUPTED, 10.0)


@on_aws_too
def test_estimators_and_searches_work(backend: Backend) -> None:
    """Arrays, validation, scores and a search are the same on every backend."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(600, 8))
    y = (X @ rng.normal(size=8) > 0).astype(int)
    on_aws = isinstance(backend, cirrus.AWSBackend)
    memory_mb = int(min(backend.deployment.worker_functions)) if on_aws else 256
    estimator = cirrus.LogisticRegression(
        backend=backend, n_workers=1, epochs=3, tol=None, random_state=0, worker_memory_mb=memory_mb
    )
    estimator.fit(X[:500], y[:500], validation=(X[500:], y[500:]))
    assert estimator.score(X[500:], y[500:]) > 0.8
    assert estimator.n_iter_ == 3
    search = cirrus.GridSearch(estimator, {"l2": [0.0, 1000.0]}, max_concurrent=1 if on_aws else 2)
    search.fit(X[:500], y[:500], validation=(X[500:], y[500:]))
    assert search.best_params_ == {"l2": 0.0}
    assert len(list_runs(backend.root)) >= 3


@pytest.fixture
def scaled(train: Dataset, train_here: Dataset, tmp_path: Path) -> Callable[[Backend | str], Dataset]:
    """Return a function that standardises the rows."""

    def scale(where: Backend | str) -> Dataset:
        scaler = StandardScaler(with_mean=False, backend=where)
        if isinstance(where, str):
            return scaler.fit_transform(train_here, str(tmp_path / where))
        is_near = where.reaches(str(tmp_path))
        return scaler.fit_transform(train, str(tmp_path / "out") if is_near else f"{where.root}/data/scaled")

    return scale


@on_aws_too
def test_chunks_are_mapped_and_reduced_alike(
    backend: Backend, scaled: Callable[[Backend | str], Dataset]
) -> None:
    """A transformer gives the same chunks, to the bit, wherever it runs."""
    assert scaled(backend).manifest.fingerprint == scaled("inline").manifest.fingerprint
