"""Training goes on from a checkpoint, with other shards and workers, as if it had never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from real_runs import LOSS_NOISE, make_data
from stand_ins import eventually

from cirrus import Dataset, LogisticRegression, load_arrays
from cirrus.client_backend.local import LocalBackend
from cirrus.metrics import RunState
from cirrus.run_folder import RunFolder

EPOCHS = 6
BATCH_ROWS = 50


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Return a dataset of 20,000 rows."""
    return load_arrays(*make_data(), url=str(tmp_path_factory.mktemp("data") / "train"))


def estimator(**params: Any) -> LogisticRegression:
    """Return an estimator of one worker and one shard, repeatable to the bit."""
    common = {"epochs": EPOCHS, "tol": None, "batch_size": BATCH_ROWS, "random_state": 0, "n_workers": 1}
    return LogisticRegression(**{**common, "staleness": 0, "n_shards": 1, "backend": "inline", **params})


def cut_in_the_middle(train: Dataset, url: Path, **params: Any) -> int:
    """Train until a checkpoint was cut in the midst of an epoch; return how many steps are in it."""
    run = estimator(**params, epochs=1000, checkpoint_seconds=1e9, checkpoint_url=str(url)).start(train)
    with run:
        eventually(lambda: run.status.updates > 1.3 * train.n_rows / BATCH_ROWS)
        run.snapshot()
        run.kill()
    return int((url / "latest").read_text().removeprefix("step-"))


def loss(fitted: LogisticRegression) -> float:
    """Return the mean log loss on the training rows."""
    rows, labels = make_data()
    p = fitted.predict_proba(rows)[:, 1]
    return float(-np.mean(np.where(labels > 0, np.log(p), np.log1p(-p))))


@pytest.mark.parametrize("optimizer", ["ftrl", "adam"])
@pytest.mark.parametrize("n_shards", [1, 3])
def test_one_worker_goes_on_to_the_bit(train: Dataset, tmp_path: Path, optimizer: str, n_shards: int) -> None:
    """The optimizer's state and the place in the schedule are in it: weights are the uninterrupted run's."""
    learning = {"optimizer": optimizer, "learning_rate": 0.05}
    whole = estimator(**learning).fit(train)
    steps = cut_in_the_middle(train, tmp_path, **learning)
    epochs = max(EPOCHS, -(-steps * BATCH_ROWS // train.n_rows) + 1)
    if epochs != EPOCHS:
        whole = estimator(**learning, epochs=epochs).fit(train)
    resumed = estimator(**learning, epochs=epochs, n_shards=n_shards, resume_from=str(tmp_path)).fit(train)
    np.testing.assert_array_equal(resumed.coef_, whole.coef_)
    np.testing.assert_array_equal(resumed.intercept_, whole.intercept_)


@pytest.mark.parametrize(("before", "after"), [((2, 2), (3, 1)), ((1, 1), (2, 3))], ids=["fewer", "more"])
def test_other_shards_and_workers_go_on_exactly(
    train: Dataset, tmp_path: Path, before: tuple[int, int], after: tuple[int, int]
) -> None:
    """Whatever their number, each step that is left is done once, and the loss is as if never cut."""
    racing: dict[str, Any] = {"staleness": None}
    cuts = tmp_path / "cuts"
    steps = cut_in_the_middle(train, cuts, n_workers=before[0], n_shards=before[1], **racing)
    epochs = max(EPOCHS, -(-steps * BATCH_ROWS // train.n_rows) + 1)
    uninterrupted = estimator(epochs=epochs).fit(train)
    backend = LocalBackend(root=tmp_path)
    resumed = estimator(
        epochs=epochs,
        n_workers=after[0],
        n_shards=after[1],
        backend=backend,
        resume_from=str(cuts),
        **racing,
    )
    run = resumed.start(train)
    status = run.wait()
    run.close()
    assert status.state is RunState.FINISHED
    steps_per_epoch = RunFolder(run.url).config().steps_per_epoch
    applied = [status.counts[f"shard{shard}.steps_applied"] for shard in range(after[1])]
    assert applied == [epochs * steps_per_epoch] * after[1]
    assert status.updates == epochs * steps_per_epoch
    assert status.samples == epochs * train.n_rows
    assert abs(loss(resumed) - loss(uninterrupted)) < LOSS_NOISE
