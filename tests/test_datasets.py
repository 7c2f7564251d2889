"""Datasets as users handle them: arrays in, splits, and what is kept for how long."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse

import cirrus
from cirrus.chunks import BLOCK_ROWS, Block
from cirrus.errors import ConfigError, ConflictError, CorruptDataError, DataError, NotFoundError
from cirrus.frontend.datasets import Dataset, load_arrays, load_csv, load_svmlight
from cirrus.storage import open_store


def numbered(n_rows: int = 5000, n_features: int = 300, seed: int = 0) -> tuple[Any, np.ndarray]:
    """Random sparse rows, each labelled with its number."""
    X = scipy.sparse.random_array(
        (n_rows, n_features), density=0.03, format="csr", dtype=np.float32, rng=np.random.default_rng(seed)
    )
    return X, np.arange(n_rows)


def assert_same_rows(dataset: Dataset, X: Any, y: np.ndarray) -> None:
    """The dataset holds these rows, in any order; labels tell them apart."""
    mine, labels, _ = dataset.to_csr()
    assert sorted(labels.tolist()) == sorted(y.tolist())
    assert abs(mine - X[labels.astype(int)]).max() == 0


@pytest.mark.parametrize(
    "kind", [np.asarray, scipy.sparse.csr_matrix, scipy.sparse.coo_array, np.asfortranarray]
)
def test_arrays_of_any_kind_are_stored_as_they_are(kind: Any) -> None:
    """Dense or sparse, unshuffled, what comes out is what went in."""
    X = np.random.default_rng(0).standard_normal((50, 7))
    X[X < 0.3] = 0
    dataset = load_arrays(kind(X), np.arange(50) % 3, shuffle=False)
    mine, y, weights = dataset.to_csr()
    np.testing.assert_array_equal(mine.toarray(), X.astype(np.float32))
    np.testing.assert_array_equal(y, np.arange(50) % 3)
    assert weights is None
    assert (dataset.n_rows, dataset.n_features, dataset.labels) == (50, 7, (0, 1, 2))
    assert [chunk.n_rows for chunk in dataset.chunks] == [50]


def test_arrays_are_shuffled_by_seed() -> None:
    """The default order is random, the same for the same seed; no row is lost."""
    X, y = numbered()
    first, second, third = (load_arrays(X, y, random_state=seed) for seed in (1, 1, 2))
    assert_same_rows(first, X, y)
    assert first.manifest.fingerprint == second.manifest.fingerprint != third.manifest.fingerprint
    assert [rows for chunk in first.chunks for rows in chunk.block_rows] == [1024, 1024, 1024, 1024, 904]


def test_duplicates_and_zeros_in_sparse_input() -> None:
    """Duplicate entries of a sparse matrix add up, stored zeros vanish."""
    X = scipy.sparse.coo_array(([1.0, 2.0, 0.0], ([0, 0, 1], [1, 1, 0])), shape=(2, 3))
    mine, _, _ = load_arrays(X, [0, 1], shuffle=False).to_csr()
    np.testing.assert_array_equal(mine.toarray(), [[0, 3, 0], [0, 0, 0]])
    assert mine.nnz == 1


def test_text_labels_and_weights() -> None:
    """Text labels are numbered in sorted order and named; weights come back with their rows."""
    y = np.array(["no", "yes", "maybe"], dtype=object)
    dataset = load_arrays(np.eye(3), y, sample_weight=[1, 2, 0.5], shuffle=False)
    assert dataset.labels == ("maybe", "no", "yes")
    _, codes, weights = dataset.to_csr()
    assert codes.tolist() == [1, 2, 0]
    assert weights is not None
    assert weights.tolist() == [1, 2, 0.5]
    assert dataset.manifest.has_weights


@pytest.mark.parametrize(
    ("X", "y", "more", "problem"),
    [
        (np.eye(2), [0], {}, "y: must have shape"),
        (np.eye(2), [[0, 1]], {}, "y: must have shape"),
        (np.ones(3), [0, 1, 1], {}, "X: must have two dimensions"),
        (np.empty((0, 3)), [], {}, "X: has no rows"),
        (np.empty((3, 0)), [0, 1, 1], {}, "X: has no rows or no columns"),
        (np.array([[np.nan], [1]]), [0, 1], {}, "X: holds NaN"),
        (np.array([[1e300], [1]]), [0, 1], {}, "X: holds NaN, infinity or a number too large"),
        (np.array([["a"], ["b"]]), [0, 1], {}, "X: must hold numbers"),
        (np.eye(2), [0, np.inf], {}, "y: holds NaN"),
        (np.eye(2), [0, 2**24 + 1], {}, "y: holds whole numbers beyond"),
        (np.eye(2), np.array([0, "a"], dtype=object), {}, "y: labels must be all numbers or all text"),
        (np.eye(2), [0, 1], {"sample_weight": [1]}, "sample_weight: must have shape"),
        (np.eye(2), [0, 1], {"sample_weight": [1, -1]}, "sample_weight: must not be negative"),
        (np.eye(2), [0, 1], {"sample_weight": ["a", "b"]}, "sample_weight: must be numbers"),
    ],
)
def test_arrays_that_cannot_be_stored(
    X: Any, y: Any, more: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    """What cannot be a dataset is one error that names the argument, and nothing is written."""
    with pytest.raises(DataError, match=problem):
        load_arrays(X, y, tmp_path / "d", **more)
    assert open_store(tmp_path / "d").list() == []


def test_a_failed_load_leaves_the_old_dataset(tmp_path: Path) -> None:
    """A dataset is replaced by a complete one or not at all."""
    X, y = numbered(3000)
    before = load_arrays(X, y, tmp_path / "d")
    bad = X.copy()
    bad.data[-1] = np.nan
    with pytest.raises(DataError):
        load_arrays(bad, y, tmp_path / "d", shuffle=False)
    assert_same_rows(Dataset.open(tmp_path / "d"), X, y)
    load_arrays(X[:10], y[:10], tmp_path / "d")
    assert Dataset.open(tmp_path / "d").n_rows == 10
    with pytest.raises(CorruptDataError, match="the chunk is missing"):
        next(before.blocks())


def test_opening_what_is_not_there(tmp_path: Path) -> None:
    """There is one error for a place without a dataset, and it says what to do."""
    with pytest.raises(NotFoundError, match="there is no dataset: store one"):
        Dataset.open(tmp_path)


def test_datasets_without_url_go_when_nobody_holds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In memory or in a temporary folder, rows live as long as the dataset or one derived from it."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    X, y = numbered(100)
    for folder in (False, True):
        dataset = load_arrays(X, y, folder=folder)
        url = dataset.url
        assert url.startswith("memory://") is not folder
        train, _ = dataset.split(0.5)
        del dataset
        gc.collect()
        assert train.to_csr()[0].shape == (50, 300)
        del train, _
        gc.collect()
        assert open_store(url).list() == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("test_size", "n_test"), [(0.1, 500), (0.25, 1250), (0.0001, 1), (123, 123), (4999, 4999)]
)
def test_splits_are_exact_and_disjoint(test_size: float, n_test: int) -> None:
    """Each row is in one of the two parts, and their sizes are exact; both keep the order."""
    X, y = numbered()
    dataset = load_arrays(X, y, shuffle=False)
    train, test = dataset.split(test_size, random_state=3)
    assert (train.n_rows, test.n_rows) == (5000 - n_test, n_test)
    a, b = train.to_csr()[1], test.to_csr()[1]
    assert sorted([*a.tolist(), *b.tolist()]) == y.tolist()
    assert (np.diff(a) > 0).all()
    assert (np.diff(b) > 0).all()
    assert_same_rows(train, X, a)
    assert_same_rows(test, X, b)
    assert train.n_features == test.n_features == 300


def test_splits_choose_rows_evenly() -> None:
    """Every row has the same chance to be a test row, wherever it is."""
    X, y = numbered(2100, 20)
    dataset = load_arrays(X, y, shuffle=False)
    chosen = np.zeros(2100)
    for seed in range(100):
        chosen[dataset.split(0.3, random_state=seed)[1].to_csr()[1].astype(int)] += 1
    # 100 draws at 0.3 have a standard deviation of 4.6; the means of thirds, one of 0.17.
    assert chosen.min() > 5
    assert chosen.max() < 55
    assert np.abs(chosen.reshape(3, -1).mean(axis=1) - 30).max() < 1


def test_splits_are_made_once(tmp_path: Path) -> None:
    """The same arguments give the same split, stored once; another seed or other data gives another."""
    X, y = numbered(300)
    dataset = load_arrays(X, y, tmp_path / "d", random_state=0)
    train, test = dataset.split(0.2, random_state=7)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "d").rglob("*")}
    again, _ = Dataset.open(tmp_path / "d").split(60, random_state=7)
    assert again.url == train.url
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "d").rglob("*")} == files
    assert train.url.startswith(f"{tmp_path}/d/splits/")
    assert dataset.split(0.2, random_state=8)[0].manifest.fingerprint != train.manifest.fingerprint
    unseeded = {dataset.split(0.2, random_state=None)[0].url for _ in range(2)}
    assert len(unseeded) == 2
    load_arrays(X[:200], y[:200], tmp_path / "d")
    assert not open_store(test.url).exists("manifest.json")


class _Interrupted(Dataset):
    """A dataset that somebody else splits while we do."""

    def blocks(self) -> Iterator[Block]:
        yield from super().blocks()
        self.theirs = Dataset.open(self.url).split(0.2, random_state=7)


def test_two_splits_at_once_share_the_first(tmp_path: Path) -> None:
    """Who comes second takes what is there: the first one's chunks stay, and only they."""
    load_arrays(*numbered(300), url=tmp_path / "d")
    dataset = _Interrupted.open(tmp_path / "d")
    assert isinstance(dataset, _Interrupted)
    ours = dataset.split(0.2, random_state=7)
    for mine, other in zip(ours, dataset.theirs, strict=True):
        assert mine.manifest == other.manifest
        assert other.to_csr()[0].shape[0] == other.n_rows
        assert len(list(Path(mine.url).rglob("chunks-*/*"))) == len(mine.chunks)


def test_of_two_writers_at_once_one_is_told(tmp_path: Path) -> None:
    """A dataset that was stored since we began stays, and the other writer's chunks go."""
    X, y = numbered(50)

    class Slow:
        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
            load_arrays(X, y, url=tmp_path / "d")
            return np.ones((50, 3))

    with pytest.raises(ConflictError, match="another dataset was stored"):
        load_arrays(Slow(), y, url=tmp_path / "d")
    found = Dataset.open(tmp_path / "d")
    assert_same_rows(found, X, y)
    assert len(list((tmp_path / "d").rglob("chunks-*/*"))) == len(found.chunks)


def test_splits_keep_what_the_dataset_knows(tmp_path: Path) -> None:
    """Label names, weights and encoding go with the rows, and blocks have their full size."""
    path = tmp_path / "x.csv"
    path.write_text("".join(f"{'yes' if i % 3 else 'no'},{i % 17}\n" for i in range(5000)))
    dataset = cirrus.load_csv(path, tmp_path / "d", categorical=[1], hash_features=100)
    train, test = dataset.split(0.5)
    for part in (train, test):
        assert part.manifest.label_names == ("no", "yes")
        assert part.manifest.encoding == dataset.manifest.encoding
        assert part.chunks[0].block_rows == (BLOCK_ROWS, BLOCK_ROWS, 452)
        assert Dataset.open(part.url).manifest == part.manifest
    X, y = numbered(10)
    weighted = load_arrays(X, y, sample_weight=y, shuffle=False).split(0.5)[0]
    _, labels, weights = weighted.to_csr()
    np.testing.assert_array_equal(labels, weights)


@pytest.mark.parametrize("test_size", [0, 0.0, 1.0, -1, 10, 0.95, "half", True, float("nan")])
def test_splits_that_cannot_be(test_size: Any) -> None:
    """Both parts must have rows."""
    dataset = load_arrays(np.eye(10), np.arange(10))
    with pytest.raises(ConfigError, match="test_size"):
        dataset.split(test_size)


def test_representation() -> None:
    """A dataset shows where and how large it is."""
    dataset = load_arrays(np.eye(3), [0, 1, 1])
    assert repr(dataset) == f"Dataset({dataset.url!r}, n_rows=3, n_features=3)"


def test_a_mistyped_index_costs_no_memory(tmp_path: Path) -> None:
    """One feature number in the billions makes a wide dataset; splitting it takes no memory a feature."""
    path = tmp_path / "wide.svm"
    path.write_text("".join(f"{row % 2} {row + 1}:1\n" for row in range(200)) + "1 4000000000:1\n")
    data = load_svmlight(path, tmp_path / "wide", random_state=0)
    assert data.n_features == 4_000_000_000
    train, held_out = data.split(test_size=0.1)
    assert train.n_rows + held_out.n_rows == 201


def test_the_label_is_no_feature(tmp_path: Path) -> None:
    """A column named as label and as feature would predict itself: an error that names it."""
    path = tmp_path / "clicks.csv"
    path.write_text("site,clicked\na,1\nb,0\n")
    with pytest.raises(ConfigError, match="clicked"):
        load_csv(path, tmp_path / "data", label="clicked", categorical=["site", "clicked"])
