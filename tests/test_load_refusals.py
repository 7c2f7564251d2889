"""What loaders and estimators refuse rather than change silently, and what they say about places."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse

import cirrus
from cirrus.client_backend.loader import LoadProgress
from cirrus.errors import ConfigError, DataError, NotFoundError, StorageError
from cirrus.preprocessing import FeatureHasher, StandardScaler


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "5", True])
def test_a_limit_of_labels_is_a_finite_number(tmp_path: Path, value: object) -> None:
    """A ``label_above`` that nothing is above, or that is no number, is refused before anything is read."""
    path = tmp_path / "x.csv"
    path.write_text("y,a\n1,2\n3,4\n")
    with pytest.raises(ConfigError, match="label_above: must be a finite number"):
        cirrus.load_csv(path, tmp_path / "d", label="y", numeric=["a"], label_above=value)  # type: ignore[arg-type]
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("written", ["16777217", "-16777217", "+16777217"])
def test_no_loader_merges_labels(tmp_path: Path, written: str) -> None:
    """A whole number that float32 would make another one is refused, with its line."""
    vw, ratings = tmp_path / "x.vw", tmp_path / "x.csv"
    vw.write_text(f"16777216 |a b\n{written} |a c\n")
    with pytest.raises(DataError, match=r"x\.vw:2: label '[+-]?16777217' is a whole number beyond 2\*\*24"):
        cirrus.load_vw(vw, tmp_path / "d")
    ratings.write_text(f"1,2,16777216\n1,3,{written}\n")
    with pytest.raises(DataError, match=r"x\.csv:2: rating '[+-]?16777217' is a whole number beyond 2\*\*24"):
        cirrus.load_ratings(ratings, tmp_path / "d")


def test_measured_numbers_are_rounded(tmp_path: Path) -> None:
    """A number with a point or an exponent is rounded as any other."""
    vw, ratings = tmp_path / "x.vw", tmp_path / "x.csv"
    vw.write_text("16777217.0 |a b\n1.6777217e7 |a c\n")
    assert cirrus.load_vw(vw, tmp_path / "v").manifest.label_values == (16777216.0,)
    ratings.write_text("1,2,16777217.0\n")
    assert cirrus.load_ratings(ratings, tmp_path / "r").manifest.label_values == (16777216.0,)


def test_a_dataset_cannot_be_where_a_file_is(tmp_path: Path) -> None:
    """A URL that is a file, or goes through one, is an error that names this file, which stays."""
    path, file = tmp_path / "x.svm", tmp_path / "file"
    path.write_text("1 1:1\n")
    file.write_text("mine")
    for url in (file, file / "deeper" / "still"):
        with pytest.raises(StorageError, match=rf"^{file}: is a file, where a folder is needed"):
            cirrus.load_svmlight(path, url)
        with pytest.raises(StorageError, match=rf"^{file}: is a file, where a folder is needed"):
            cirrus.load_arrays(np.eye(3), [0, 1, 1], url)
        with pytest.raises(NotFoundError):
            cirrus.Dataset.open(url)
    assert file.read_text() == "mine"


def test_topics_need_counts(tmp_path: Path) -> None:
    """A topic model refuses a dataset with values below 0, which are no counts."""
    X = scipy.sparse.random(50, 8, density=0.5, random_state=0, format="csr")
    counts = cirrus.load_arrays(X, np.zeros(50), tmp_path / "counts")
    assert not counts.manifest.has_negatives
    scaled = StandardScaler(backend="inline").fit_transform(
        cirrus.load_arrays(X.toarray(), np.zeros(50)), tmp_path / "scaled"
    )
    assert scaled.manifest.has_negatives
    topics = cirrus.LatentDirichletAllocation(n_topics=2, epochs=1, backend="inline")
    with pytest.raises(DataError, match="has values below 0, and LatentDirichletAllocation needs counts"):
        topics.fit(scaled)
    topics.fit(counts)
    text = tmp_path / "x.svm"
    text.write_text("0 1:1 2:-1\n")
    with pytest.raises(DataError, match="below 0"):
        topics.fit(cirrus.load_svmlight(text, tmp_path / "text"))


def test_words_do_not_name_hashed_columns(tmp_path: Path) -> None:
    """What is hashed has no names any more; what is scaled keeps them."""
    text, words = tmp_path / "x.ldac", tmp_path / "words"
    text.write_text("2 0:1 2:3\n1 1:2\n")
    words.write_text("red\ngreen\nblue\n")
    documents = cirrus.load_bag_of_words(text, tmp_path / "d", vocabulary=words)
    hashed = FeatureHasher(8, backend="inline").fit_transform(documents, tmp_path / "hashed")
    assert hashed.manifest.vocabularies == ()
    scaled = StandardScaler(with_mean=False, backend="inline").fit_transform(documents, tmp_path / "scaled")
    assert list(scaled.vocabulary("words").ids()) == ["red", "green", "blue"]


@pytest.mark.parametrize("kind", [np.asarray, scipy.sparse.csr_array])
def test_arrays_tell_how_far_they_are(tmp_path: Path, kind: object) -> None:
    """``load_arrays`` calls the progress function after each block, up to all rows; True shows a line."""
    X = kind(np.arange(6000.0).reshape(3000, 2) + 1)  # type: ignore[operator]
    seen: list[LoadProgress] = []
    cirrus.load_arrays(X, np.zeros(3000), tmp_path / "d", progress=seen.append)
    assert [progress.rows for progress in seen] == [1024, 2048, 3000]
    assert seen[0].bytes_done < seen[-1].bytes_done == seen[-1].bytes_total
    assert cirrus.load_arrays(X, np.zeros(3000), progress=True).n_rows == 3000
    with pytest.raises(ConfigError, match="progress"):
        cirrus.load_arrays(X, np.zeros(3000), progress=5)  # type: ignore[arg-type]
