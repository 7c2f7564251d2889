"""A real data set (UCI Adult, "a9a"): the accuracy that liblinear reaches, however the work is cut."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from ray_cluster import SmallCluster

import cirrus
from cirrus.client_backend.base import Backend

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "data" / "a9a"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="the a9a files are not beside the project")

N_FEATURES = 123
EPOCHS = 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for datasets and runs of all tests here."""
    return tmp_path_factory.mktemp("a9a")


@pytest.fixture(scope="module")
def train(folder: Path) -> cirrus.Dataset:
    """The training rows."""
    return cirrus.load_svmlight(
        FOLDER / "a9a.gz", str(folder / "train"), n_features=N_FEATURES, random_state=0
    )


@pytest.fixture(scope="module")
def held_out(folder: Path) -> cirrus.Dataset:
    """The test rows; their file calls the negative class 0, where the training file calls it -1."""
    return cirrus.load_svmlight(
        FOLDER / "a9a.t.gz", str(folder / "held-out"), n_features=N_FEATURES, random_state=0
    )


def accuracy(
    train: cirrus.Dataset, held_out: cirrus.Dataset, backend: Backend, n_workers: int, n_shards: int
) -> float:
    """Train with default settings, and return the accuracy on the test rows."""
    estimator = cirrus.LogisticRegression(
        backend=backend,
        n_workers=n_workers,
        n_shards=n_shards,
        epochs=EPOCHS,
        random_state=0,
    )
    return float(estimator.fit(train).score(held_out))


def test_accuracy_does_not_depend_on_workers_and_shards(
    train: cirrus.Dataset, held_out: cirrus.Dataset, folder: Path
) -> None:
    """At least 0.849 with 2 workers and 2 shards, and the same within 0.003 with other numbers of both."""
    here = cirrus.InlineBackend(root=str(folder / "runs"))
    reached = accuracy(train, held_out, here, 2, 2)
    assert reached >= 0.849
    for n_workers, n_shards in ((1, 1), (4, 3)):
        assert abs(accuracy(train, held_out, here, n_workers, n_shards) - reached) <= 0.003


def test_sorted_rows_are_shuffled_at_load(
    train: cirrus.Dataset, held_out: cirrus.Dataset, folder: Path
) -> None:
    """Rows sorted by label, loaded with the default shuffle, give the same accuracy within 0.003."""
    lines = gzip.decompress((FOLDER / "a9a.gz").read_bytes()).decode().splitlines()
    path = folder / "sorted.svm"
    path.write_text("\n".join(sorted(lines, key=lambda line: line[0])) + "\n")
    rows = cirrus.load_svmlight(path, str(folder / "sorted"), n_features=N_FEATURES, random_state=0)
    labels = np.concatenate([block.labels for block in rows.blocks()])
    assert 0.1 < np.mean(labels[:2000] > 0) < 0.4
    here = cirrus.InlineBackend(root=str(folder / "runs"))
    reached = accuracy(train, held_out, here, 2, 2)
    assert abs(accuracy(rows, held_out, here, 2, 2) - reached) <= 0.003


def test_accuracy_on_ray_is_that_on_local(
    train: cirrus.Dataset, held_out: cirrus.Dataset, folder: Path, ray_cluster: SmallCluster
) -> None:
    """Processes of this machine and a Ray cluster reach the same accuracy within 0.003."""
    local, ray = (
        cirrus.LocalBackend(root=folder / "local"),
        cirrus.RayBackend(ray_cluster.address, root=folder / "ray"),
    )
    reached = {type(backend).__name__: accuracy(train, held_out, backend, 2, 2) for backend in (local, ray)}
    print(reached)
    assert abs(reached["RayBackend"] - reached["LocalBackend"]) <= 0.003
