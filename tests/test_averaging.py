"""Model averaging: a lease is one step, and the shards add what workers did."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ps_reference import DenseTable
from ps_runs import make_table
from real_runs import assert_whole, await_work, make_data, make_dataset, plan
from stand_ins import RUN_SECONDS, eventually

from cirrus import LogisticRegression, load_model
from cirrus.client_backend.inline import InlineBackend, InlineLauncher
from cirrus.config import OPTIMIZER_PARAMS
from cirrus.errors import ConfigError
from cirrus.metrics import RunState
from cirrus.worker_runtime.local_optimizers import LocalTable

OPTIMIZERS = sorted(OPTIMIZER_PARAMS)


def make(**params: Any) -> LogisticRegression:
    """Return an estimator that goes in rounds."""
    defaults = {
        "optimizer": "sgd",
        "learning_rate": 2.0,
        "l1": 0.0,
        "epochs": 2,
        "tol": None,
        "batch_size": 50,
        "staleness": 0,
        "n_workers": 1,
        "backend": "inline",
        "random_state": 5,
    }
    return LogisticRegression(**{**defaults, **params})


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("width", [1, 3])
def test_local_optimizers_agree_with_the_reference(name: str, width: int) -> None:
    """In plain numpy, on some rows at a time, each does what the papers say, as the shards do."""
    rates: dict[str, Any] = {} if name == "add" else {"learning_rate": 0.3, "l1": 0.02, "l2": 0.05}
    if name in ("sgd", "momentum", "nesterov"):
        rates["params"] = {"decay": 0.01}
    table = make_table(optimizer=name, n_rows=20, width=width, **rates)
    reference = DenseTable(table)
    local = LocalTable(np.zeros((20, width), np.float32), table.optimizer, share=1.0)
    rng = np.random.default_rng(0)
    for step in range(30):
        rows = np.sort(rng.choice(20, 8, replace=False))
        gradient = rng.normal(size=(8, width)).astype(np.float32)
        local.step(rows, gradient, step, step)
        reference.step(rows.astype(np.uint32), gradient, step)
    np.testing.assert_allclose(local.weights, reference.weights, rtol=2e-4, atol=2e-5)


def test_ftrl_begins_where_the_weights_are() -> None:
    """A fresh state of FTRL does not move weights by itself: the smallest gradient moves them little."""
    optimizer = make_table(optimizer="ftrl", learning_rate=0.1).optimizer
    start = np.array([[0.5], [-2.0], [0.0]], np.float32)
    local = LocalTable(start, optimizer, share=0.1)
    local.step(np.arange(3), np.full((3, 1), 1e-6, np.float32), 0, 0)
    np.testing.assert_allclose(local.weights, start, atol=1e-6)


def test_one_worker_averages_with_itself() -> None:
    """With an optimizer without state, one worker does the very same either way, in fewer messages."""
    X, y = make_data()
    step_by_step, averaged = (make(mode=mode).fit(X[:3000], y[:3000]) for mode in ("sgd", "average"))
    np.testing.assert_allclose(averaged.coef_, step_by_step.coef_, rtol=1e-3, atol=1e-5)
    assert step_by_step.history_[-1].updates >= 2 * 3000 / 50
    assert averaged.history_[-1].updates < 2 * 3000 / 50
    assert averaged.history_[-1].samples == 6000
    np.testing.assert_allclose(
        averaged.history_[-1].train_loss, step_by_step.history_[-1].train_loss, rtol=1e-4
    )


def test_two_workers_meet_in_the_middle() -> None:
    """Each does one lease of one minibatch from zeros: the mean of both is a step on all rows together."""
    X, y = make_data()
    X, y = X[:2048], y[:2048]
    whole = make(batch_size=2048, epochs=1).fit(X, y)
    averaged = make(batch_size=1024, epochs=1, mode="average", n_workers=2).fit(X, y)
    assert averaged.history_[-1].updates == 2
    np.testing.assert_allclose(averaged.coef_, whole.coef_, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("optimizer", sorted(set(OPTIMIZER_PARAMS) - {"add"}))
def test_every_optimizer_learns(optimizer: str) -> None:
    """Averaging workers that do not wait for each other learn what is to learn, with any optimizer."""
    X, y = make_data()
    rate = {"sgd": 5.0, "momentum": 1.0, "nesterov": 1.0, "ftrl": 0.2, "adagrad": 0.1, "adam": 0.02}
    fitted = make(
        mode="average",
        optimizer=optimizer,
        learning_rate=rate[optimizer],
        staleness=None,
        n_workers=2,
        n_shards=2,
        epochs=4,
    ).fit(X, y)
    assert fitted.score(X, y) > 0.9


def test_averaging_goes_on_from_weights_alone(tmp_path: Path) -> None:
    """A model that was averaged has no optimizer state; training goes on from it in either mode."""
    X, y = make_data()
    X, y = X[:3000], y[:3000]
    model = make(mode="average", optimizer="ftrl", learning_rate=0.1, epochs=4).fit(X, y)
    model.save(tmp_path / "model")
    for mode in ("sgd", "average"):
        again = load_model(tmp_path / "model").set_params(mode=mode, warm_start=True, epochs=1)
        again.set_params(backend="inline", learning_rate=1e-6).fit(X, y)
        np.testing.assert_allclose(again.coef_, model.coef_, atol=1e-3)


def test_a_checkpoint_of_the_other_mode_is_refused(tmp_path: Path) -> None:
    """Its leases have other steps."""
    X, y = make_data()
    X, y = X[:3000], y[:3000]
    run = make(mode="average", epochs=10**5, checkpoint_url=str(tmp_path)).start(X, y)
    eventually(lambda: run.status.updates > 0)
    run.snapshot()
    run.stop()
    n_epochs = run.wait().epoch
    with pytest.raises(ConfigError, match="mode='average'"):
        make(mode="sgd", resume_from=str(tmp_path)).fit(X, y)
    again = make(mode="average", epochs=n_epochs + 2, resume_from=str(tmp_path)).fit(X, y)
    assert again.n_iter_ == n_epochs + 2
    assert again.history_[-1].samples == 3000 * (n_epochs + 2)


def test_shards_may_die_while_workers_average(tmp_path: Path) -> None:
    """What a worker did to the tables is added once to every shard, though shards crash and come back."""
    train = make_dataset(str(tmp_path / "train"))
    config = plan(train, mode="average", optimizer="sgd", learning_rate=1.0, snapshot_seconds=0.1)
    rng = random.Random(1)
    with InlineBackend().start(config) as run:
        assert run.supervisor is not None
        launcher = run.supervisor.launcher
        assert isinstance(launcher, InlineLauncher)
        for _ in range(3):
            moment = run.status.updates + rng.randint(1, 5 * config.steps_per_epoch)
            eventually(lambda moment=moment: run.status.updates >= moment)
            eventually(lambda: launcher.shards == {0, 1})
            launcher.crash_shard(rng.randrange(2))
        await_work(run, run.status.updates + config.steps_per_epoch)
        run.stop()
        status = run.wait(RUN_SECONDS)
        assert status.state is RunState.FINISHED
        assert_whole(run, status)
