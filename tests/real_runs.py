"""Runs of Cirrus' own shards and workers that tests can break."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import numpy as np
import scipy.sparse
from stand_ins import FOR_EVER, RUN_SECONDS, eventually

from cirrus import Dataset, LogisticRegression, load_arrays
from cirrus.client_backend.runs import Run, new_run_id
from cirrus.config import ModelConfig, RunConfig
from cirrus.frontend.planning import plan_run
from cirrus.metrics import RunState, RunStatus
from cirrus.paramserver.checkpoint import read_checkpoint, read_manifest
from cirrus.storage import open_store

N_ROWS, N_FEATURES, BATCH_ROWS = 20_000, 1000, 50
#: What a model of these rows gets right once it has seen them a dozen times.
GOOD_ACCURACY = 0.97
#: Log losses of runs with two workers and without, of other seeds, and with failures, differ by less.
LOSS_NOISE = 0.002


def make_data() -> tuple[scipy.sparse.csr_matrix, np.ndarray]:
    """Return rows whose labels a linear model can learn nearly perfectly."""
    rng = np.random.default_rng(0)
    rows = scipy.sparse.random(
        N_ROWS, N_FEATURES, density=0.02, format="csr", dtype=np.float32, random_state=rng
    )
    return rows, (rows @ rng.normal(size=N_FEATURES) > 0).astype(np.float64)


def make_dataset(url: str) -> Dataset:
    """Store the data."""
    return load_arrays(*make_data(), url=url)


def plan(
    train: Dataset,
    *,
    run_id: str = "",
    snapshot_seconds: float = 0.3,
    generation_seconds: float | None = None,
    **params: Any,
) -> RunConfig:
    """Return the config of a run over the dataset."""
    defaults = {"epochs": FOR_EVER, "tol": None, "batch_size": BATCH_ROWS, "n_workers": 2, "n_shards": 2}
    config = plan_run(
        LogisticRegression(**{**defaults, **params}).get_params(),
        run_id=run_id or new_run_id(),
        model=ModelConfig(
            name="logistic", params={"classes": [0.0, 1.0], "fit_intercept": True, "class_weight": None}
        ),
        train_url=train.url,
        manifest=train.manifest,
        seed=0,
    )
    return dataclasses.replace(
        config, snapshot_seconds=snapshot_seconds, generation_seconds=generation_seconds
    )


def await_work(run: Run, updates: int = 50, seconds: float = RUN_SECONDS) -> None:
    """Wait until a run has made so many updates, for so many seconds at most."""
    eventually(lambda: run.status.updates >= updates or run.status.state.ended, seconds)
    assert run.status.state is RunState.RUNNING, run.status.error


def accuracy(run: Run) -> float:
    """Return the share of the rows that the run's final model gets right."""
    tables = read_checkpoint(open_store(f"{run.url}/model")).tables
    rows, labels = make_data()
    scores = rows @ tables["weights"]["weights"][:, 0] + tables["intercept"]["weights"][0, 0]
    return float(np.mean((scores > 0) == labels))


def assert_exact(config: RunConfig, status: RunStatus) -> None:
    """Check that each shard applied every step of every epoch, and none twice."""
    steps = config.stop.epochs * config.steps_per_epoch
    applied = [status.counts[f"shard{shard}.steps_applied"] for shard in range(config.n_shards)]
    assert applied == [steps] * config.n_shards
    assert status.epoch == config.stop.epochs
    # Work that a crashed shard lost and that was done again is counted each time here.
    assert status.updates >= steps


class Stopped(Protocol):
    """A run that was stopped."""

    @property
    def url(self) -> str:
        """Its folder."""

    @property
    def config(self) -> RunConfig:
        """What it was to do."""


def assert_whole(run: Stopped, status: RunStatus) -> None:
    """Check that each shard of a run that was stopped applied every step of every lease in its model once."""
    ledger = read_manifest(open_store(f"{run.url}/model")).extra["coordinator"]["ledger"]
    missing = {(epoch, lease) for epoch, lease in [*ledger["todo"], *ledger["dropped"]]}
    epoch, config = ledger["epoch"], run.config
    steps = [lease.n_steps for i, lease in enumerate(config.leases) if (epoch, i) not in missing]
    applied = [status.counts[f"shard{shard}.steps_applied"] for shard in range(config.n_shards)]
    assert applied == [epoch * config.steps_per_epoch + sum(steps)] * config.n_shards
    assert epoch == status.epoch
