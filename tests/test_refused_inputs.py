"""What cannot be meant is refused by the name that the user knows it by, and leaves nothing behind."""

from __future__ import annotations

import io

import numpy as np
import pytest

import cirrus
from cirrus.errors import ConfigError, DataError, NotFoundError


def make(**params) -> cirrus.LogisticRegression:
    """Return an estimator on threads of this process."""
    return cirrus.LogisticRegression(**{"backend": "inline", "epochs": 2, "random_state": 0, **params})


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    """Return 60 rows of 4 features."""
    return np.random.default_rng(0).normal(size=(60, 4))


def test_whole_numbers_that_float64_cannot_tell_apart_are_two_classes(rows):
    """Labels 2**53 and 2**53 + 1 are told apart, and come back as they are."""
    y = np.where(rows[:, 0] > 0, 2**53, 2**53 + 1)
    est, same = make().fit(rows, y), make().fit(rows, y - 2**53)
    assert est.classes_.tolist() == [2**53, 2**53 + 1]
    assert np.array_equal(est.predict(rows), same.predict(rows) + 2**53)


def test_labels_that_are_neither_numbers_nor_text_are_refused(rows):
    """Dates and missing labels are refused by an error about y, before anything is trained."""
    dates = np.where(rows[:, 0] > 0, "2020-01-01", "2021-01-01").astype("datetime64[D]")
    with pytest.raises(DataError, match="y: labels must be numbers or text, got datetime64"):
        make().fit(rows, dates)
    with pytest.raises(DataError, match="y: a label is missing"):
        make().fit(rows, np.array([None, "a"] * 30, dtype=object))
    with pytest.raises(DataError, match="classes: a label is missing"):
        make().partial_fit(rows, ["a", "b"] * 30, classes=[None, "a"])


def test_parameters_that_are_none_are_refused_by_name(rows):
    """An unknown parameter names the estimator, and a random state of the wrong kind is a ConfigError."""
    with pytest.raises(TypeError, match=r"^LogisticRegression\(\) got an unexpected keyword argument 'foo'"):
        make(foo=1)
    with pytest.raises(ConfigError, match="random_state: must be a whole number"):
        make(random_state="a").fit(rows, rows[:, 0] > 0)


def test_loads_that_are_refused_say_what_is_meant_and_leave_no_folder(tmp_path):
    """Columns named twice, a quote as separator, wrong cells and vocabularies leave no folder."""
    table, out = tmp_path / "rows.csv", tmp_path / "out"
    table.write_text("y,a,b\n1,2,3\nz,3,4\n")
    for twice in (["a", "a"], ["a", 1]):
        with pytest.raises(ConfigError, match="categorical: column 'a' is named twice"):
            cirrus.load_csv(table, out, label="y", categorical=twice)
    with pytest.raises(ConfigError, match="sep: cannot be '\"', which quotes"):
        cirrus.load_csv(table, out, label="y", categorical=["a"], sep='"')
    with pytest.raises(DataError, match="'z' is not a number"):
        cirrus.load_csv(table, out, label="y", numeric=["a"])
    words, empty = tmp_path / "words.ldac", tmp_path / "empty"
    words.write_text("1 0:1\n")
    empty.write_text("")
    with pytest.raises(DataError, match="the vocabulary .*empty: is empty"):
        cirrus.load_bag_of_words(words, out, "ldac", vocabulary=empty)
    with pytest.raises(NotFoundError, match="the vocabulary .*absent: there is no such file"):
        cirrus.load_bag_of_words(words, out, "ldac", vocabulary=tmp_path / "absent")
    assert not out.exists()


def test_loads_and_refused_jobs_leave_no_empty_folder(tmp_path):
    """A load leaves its manifest and chunks; a job whose function raises, not even the output's folder."""
    table = tmp_path / "rows.csv"
    table.write_text("y,a\n1,2\n0,3\n")
    dataset = cirrus.load_csv(table, tmp_path / "out", label="y", numeric=["a"])
    assert {path.name.split("-")[0] for path in (tmp_path / "out").iterdir()} == {"manifest.json", "chunks"}

    def refuse(block):
        raise ValueError("no")

    with pytest.raises(cirrus.RunError, match="the function raised ValueError: no"):
        dataset.map_chunks(refuse, tmp_path / "mapped", backend="inline")
    assert not (tmp_path / "mapped").exists()


def test_what_is_refused_leaves_the_users_own_empty_folder(tmp_path):
    """A folder that was there before a refused load, or a job that fails, is there afterwards."""
    table, mine = tmp_path / "rows.csv", tmp_path / "mine"
    table.write_text("y,a\n1,2\nz,3\n")
    mine.mkdir()
    with pytest.raises(DataError, match="'z' is not a number"):
        cirrus.load_csv(table, mine, label="y", numeric=["a"])
    assert list(mine.iterdir()) == []
    table.write_text("y,a\n1,2\n0,3\n")
    dataset = cirrus.load_csv(table, tmp_path / "out", label="y", numeric=["a"])

    def refuse(block):
        raise ValueError("no")

    with pytest.raises(cirrus.RunError, match="the function raised ValueError: no"):
        dataset.map_chunks(refuse, mine, backend="inline")
    assert list(mine.iterdir()) == []


def test_a_stream_that_is_refused_leaves_no_folder(tmp_path, monkeypatch):
    """Nor does a load that nobody could repeat, whose own files are elsewhere."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"1,2\nz,3\n")))
    with pytest.raises(DataError, match="'z' is not a number"):
        cirrus.load_csv("-", tmp_path / "out", numeric=[1], header=False)
    assert not (tmp_path / "out").exists()
