"""From parameters and a manifest to a run's config: what "auto" means, and that every parameter arrives."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from cirrus.chunks import Manifest
from cirrus.config import LeaseRange, ModelConfig, RunConfig
from cirrus.errors import ConfigError
from cirrus.frontend.datasets import Dataset, load_arrays
from cirrus.frontend.linear import LogisticRegression
from cirrus.frontend.planning import (
    MAX_AVERAGED_VALUES,
    Schedule,
    Start,
    Validation,
    auto_batch_size,
    auto_epochs,
    check_params,
    plan_run,
)

MODEL = ModelConfig(name="logistic", params={"classes": [0.0, 1.0]})
#: By which its tables are trained, unless told otherwise.
FTRL = {"weights": "ftrl", "intercept": "ftrl"}


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """Return 3,000 rows of 50 features."""
    rng = np.random.default_rng(0)
    return load_arrays(rng.random((3000, 50)), rng.integers(0, 2, 3000), random_state=0)


@pytest.fixture(scope="module")
def manifest(dataset: Dataset) -> Manifest:
    """Return the manifest of 3,000 rows of 50 features."""
    return dataset.manifest


def plan(manifest: Manifest, *, start: Start | None = None, validated: bool = False, **params) -> RunConfig:
    """Plan a run with an estimator's parameters."""
    return plan_run(
        LogisticRegression(**params).get_params(),
        run_id="run",
        model=MODEL,
        train_url="memory://train",
        manifest=manifest,
        validation=Validation(url="memory://validation", fingerprint="abc") if validated else None,
        seed=3,
        start=start,
    )


@pytest.mark.parametrize(
    ("n_rows", "batch_size"),
    [(1, 1), (150, 150), (1024, 1024), (1025, 64), (32_561, 256), (900_000, 1024), (10**9, 1024)],
)
def test_auto_batch_size_is_all_rows_or_a_power_of_two(n_rows, batch_size):
    """Small data is one batch; larger data has about 128 updates an epoch, within 64 to 1,024 rows."""
    assert auto_batch_size(n_rows) == batch_size


@pytest.mark.parametrize(("n_rows", "epochs"), [(1, 1000), (100, 1000), (30_000, 20), (10**6, 3)])
def test_auto_epochs_is_many_for_little_data(n_rows, epochs):
    """The upper bound on epochs falls with the number of rows, and is never below 3."""
    assert auto_epochs(n_rows) == epochs


@pytest.mark.parametrize(
    ("params", "path", "expected"),
    [
        ({"optimizer": "adam"}, "tables.0.optimizer.name", "adam"),
        ({"learning_rate": 0.5}, "tables.0.optimizer.learning_rate", 0.5),
        ({"learning_rate": 0.5}, "tables.1.optimizer.learning_rate", 0.5),
        ({"l1": 0.25}, "tables.0.optimizer.l1", 0.25),
        ({"l2": 0.75}, "tables.0.optimizer.l2", 0.75),
        ({"optimizer_params": {"beta": 3}}, "tables.0.optimizer.params.beta", 3.0),
        ({"batch_size": 100}, "batch_size", 100),
        ({"batch_size": 10_000}, "batch_size", 3000),
        ({"epochs": 7}, "stop.epochs", 7),
        ({"tol": None}, "stop.tol", None),
        ({"tol": 0.5}, "stop.tol", 0.5),
        ({"target_loss": 0.25}, "stop.target_loss", 0.25),
        ({"max_seconds": 5}, "stop.max_seconds", 5.0),
        ({"max_cost": 0.5}, "stop.max_cost", 0.5),
        ({"early_stopping": True, "validated": True}, "stop.early_stopping", True),
        ({"validated": True}, "validation_url", "memory://validation"),
        ({"validated": True}, "validation_fingerprint", "abc"),
        ({"n_workers": 5}, "n_workers", 5),
        ({"n_shards": 3}, "n_shards", 3),
        ({"checkpoint_seconds": 9}, "checkpoint_seconds", 9.0),
        ({"checkpoint_url": "/x"}, "checkpoint_url", "/x"),
        ({"checkpoint_url": "x"}, "checkpoint_seconds", 60.0),
        ({"gradient_threshold": 0.125}, "gradient_threshold", 0.125),
        ({"nonfinite_gradients": "fail"}, "nonfinite_gradients", "fail"),
        ({"compression": "lz4"}, "compression", "lz4"),
        ({"wire_dtype": "float16"}, "wire_dtype", "float16"),
        ({"staleness": 3}, "staleness", 3),
        ({"staleness": np.int64(0)}, "staleness", 0),
        ({"mode": "average"}, "mode", "average"),
    ],
)
def test_every_parameter_arrives_in_the_config(manifest, params, path, expected):
    """What the user sets is what shards and workers read."""
    value: object = plan(manifest, **params)
    for step in path.split("."):
        if isinstance(value, tuple):
            value = value[int(step)]
        elif isinstance(value, dict):
            value = value[step]
        else:
            value = getattr(value, step)
    assert value == expected


def test_intercept_is_not_regularised(manifest):
    """`l1` and `l2` act on the weights alone."""
    weights, intercept = plan(manifest, l1=2.0, l2=3.0).tables
    assert (weights.optimizer.l1, weights.optimizer.l2) == (2.0, 3.0)
    assert (intercept.optimizer.l1, intercept.optimizer.l2) == (0.0, 0.0)


def test_tables_are_cut_for_all_shards(manifest):
    """Each table's ranges cover it, also the intercept's single row."""
    for table in plan(manifest, n_shards=4).tables:
        assert len(table.boundaries) == 5
        assert table.boundaries[0] == 0
        assert table.boundaries[-1] == table.n_rows


def test_leases_cover_the_dataset_once(manifest):
    """Every row is in one lease, and steps are counted by the batch size."""
    config = plan(manifest, batch_size=64)
    assert config.rows_per_epoch == 3000
    assert all(lease.n_steps == -(-lease.n_rows // 64) for lease in config.leases)


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"optimizer": "lbfgs"}, "optimizer"),
        ({"optimizer": "add"}, "optimizer"),
        ({"learning_rate": 0}, "learning_rate"),
        ({"random_state": -1}, "random_state"),
        ({"learning_rate": "fast"}, "learning_rate"),
        ({"l1": -1}, "l1"),
        ({"l2": float("nan")}, "l2"),
        ({"optimizer_params": {"momentum": 0.9}}, "optimizer_params"),
        ({"optimizer_params": 3}, "optimizer_params"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": "big"}, "batch_size"),
        ({"batch_size": 2.5}, "batch_size"),
        ({"epochs": 0}, "epochs"),
        ({"epochs": "many"}, "epochs"),
        ({"tol": "small"}, "tol"),
        ({"n_workers": 0}, "n_workers"),
        ({"n_workers": True}, "n_workers"),
        ({"n_shards": -1}, "n_shards"),
        ({"mode": "mean"}, "mode"),
        ({"mode": "average", "gradient_threshold": 0.1}, "gradient_threshold"),
        ({"staleness": -1}, "staleness"),
        ({"staleness": 0.5}, "staleness"),
        ({"staleness": True}, "staleness"),
        ({"worker_memory_mb": 64}, "worker_memory_mb"),
        ({"max_seconds": 0}, "max_seconds"),
        ({"max_cost": -1}, "max_cost"),
        ({"compression": "gzip"}, "compression"),
        ({"wire_dtype": "int8"}, "wire_dtype"),
    ],
)
def test_wrong_parameters_are_named_before_any_data_is_read(params, field):
    """A parameter that cannot work is refused by name, without data."""
    with pytest.raises(ConfigError) as caught:
        check_params(LogisticRegression(**params).get_params())
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"early_stopping": True}, "early_stopping"),
        ({"early_stopping": True, "tol": None, "validated": True}, "early_stopping"),
        ({"checkpoint_seconds": 0}, "checkpoint_seconds"),
        ({"gradient_threshold": -0.5}, "gradient_threshold"),
    ],
)
def test_wrong_combinations_are_named(manifest, params, field):
    """Early stopping needs something to watch; intervals and thresholds have a sign."""
    with pytest.raises(ConfigError) as caught:
        plan(manifest, **params)
    assert caught.value.field == field


def test_resuming_keeps_the_schedule_of_the_checkpoint(manifest):
    """A resumed run takes leases and batch size from the checkpoint, whatever the number of workers."""
    leases = (LeaseRange(chunk=0, first_block=0, n_blocks=3, n_rows=3000, n_steps=43),)
    schedule = Schedule(
        fingerprint=manifest.fingerprint,
        batch_size=70,
        leases=leases,
        mode="sgd",
        model=MODEL,
        optimizers=FTRL,
    )
    config = plan(manifest, start=Start(url="memory://old", schedule=schedule), n_workers=8)
    assert (config.leases, config.batch_size) == (leases, 70)
    assert (config.resume_url, config.resume_ledger) == ("memory://old", True)


def test_resuming_with_other_data_or_batch_size_is_refused(manifest):
    """A checkpoint fits data, batch size, mode and optimizer that it was cut with, and no others."""
    schedule = Schedule(
        fingerprint="other", batch_size=64, leases=(), mode="sgd", model=MODEL, optimizers=FTRL
    )
    with pytest.raises(ConfigError, match="other data"):
        plan(manifest, start=Start(url="memory://old", schedule=schedule))
    schedule = dataclasses.replace(schedule, fingerprint=manifest.fingerprint)
    with pytest.raises(ConfigError, match="batch_size=64"):
        plan(manifest, start=Start(url="memory://old", schedule=schedule), batch_size=65)
    with pytest.raises(ConfigError, match="mode='sgd'"):
        plan(manifest, start=Start(url="memory://old", schedule=schedule), mode="average")
    with pytest.raises(
        ConfigError, match="^optimizer: the checkpoint was cut with optimizer='ftrl', got 'sgd'"
    ):
        plan(manifest, start=Start(url="memory://old", schedule=schedule), optimizer="sgd")


def test_averaging_makes_a_lease_one_step(manifest):
    """What a worker does with a lease is pushed once, and added by the shards."""
    config = plan(manifest, batch_size=64, mode="average", optimizer="adam")
    assert {lease.n_steps for lease in config.leases} == {1}
    assert config.rows_per_epoch == 3000
    assert {table.optimizer.name for table in config.tables} == {"adam"}
    assert {table.optimizer.name for table in config.shard_tables} == {"add"}


def test_averaging_is_refused_for_large_models(manifest):
    """The change of all tables has to fit into one message; the error says what to use instead."""
    edges = (*manifest.touches.edges[:-1], MAX_AVERAGED_VALUES)
    touches = dataclasses.replace(manifest.touches, edges=edges)
    large = dataclasses.replace(manifest, n_features=MAX_AVERAGED_VALUES, touches=touches)
    with pytest.raises(ConfigError, match='8,000,001; use "sgd"'):
        plan(large, mode="average")


@pytest.mark.parametrize(("optimizer", "divisor"), [("ftrl", 1), ("adagrad", 3000)])
def test_penalties_are_relative_to_the_loss_of_all_rows(manifest, optimizer, divisor):
    """FTRL, which gets sums, gets the penalty whole; optimizers of means get it divided by the 3,000 rows."""
    table = plan(manifest, optimizer=optimizer, l1=2.0, l2=4.0).tables[0]
    assert table.optimizer.l1 == pytest.approx(2.0 / divisor)
    assert table.optimizer.l2 == pytest.approx(4.0 / divisor)
