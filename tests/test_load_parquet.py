"""Parquet files: the rows that the same table gives as CSV, in whatever row groups, files and places."""

from __future__ import annotations

import csv
import datetime
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cirrus
from cirrus.client_backend.csv_format import CsvRequest
from cirrus.client_backend.load_tasks import LoadSizes
from cirrus.client_backend.loader import LoadOptions, LoadProgress, load_parquet_files
from cirrus.errors import ConfigError, DataError
from cirrus.frontend.datasets import Dataset, load_csv_like
from cirrus.frontend.loading import load_parquet_like
from cirrus.storage import drop_memory_store, open_store

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

SITES = ["a", "b b", "c,d", 'e"f', "g\nh", "é", "", "NA", None]


def table(n_rows: int, seed: int = 0) -> dict[str, list[Any]]:
    """Columns of all kinds that a click log has."""
    rng = random.Random(seed)
    return {
        "unused": [{"x": 1}] * n_rows,
        "clicked": [rng.randrange(2) for _ in range(n_rows)],
        "hour": [rng.choice([None, 0, 7, 23]) for _ in range(n_rows)],
        "price": [rng.choice([None, 0.5, 1e-7, 3.0, 123456.789]) for _ in range(n_rows)],
        "site": [rng.choice(SITES) for _ in range(n_rows)],
        "day": [datetime.date(2026, 1, rng.randrange(1, 29)) for _ in range(n_rows)],
    }


def write_csv(path: Path, columns: dict[str, list[Any]]) -> None:
    """The same table as CSV."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


ROLES: dict[str, Any] = {"label": "clicked", "numeric": ["price", "hour"], "categorical": ["site", "day"]}


def same(one: Dataset, other: Dataset) -> bool:
    """Whether two datasets have the same rows in the same order."""
    (X, y, _), (Z, z, _) = one.to_csr(), other.to_csr()
    return X.shape == Z.shape and (X != Z).nnz == 0 and bool((y == z).all())


@pytest.mark.parametrize("row_group_size", [7, 1000])
@pytest.mark.parametrize("compression", ["snappy", "none"])
def test_rows_are_those_of_the_same_csv(tmp_path: Path, row_group_size: int, compression: str) -> None:
    """Numbers, text of any kind, dates and nulls of a Parquet file become the features that CSV's do."""
    columns = table(500)
    write_csv(tmp_path / "x.csv", columns)
    pq.write_table(
        pa.table(columns), tmp_path / "x.parquet", row_group_size=row_group_size, compression=compression
    )
    text = cirrus.load_csv(tmp_path / "x.csv", tmp_path / "a", **ROLES, hash_features=500, shuffle=False)
    columnar = cirrus.load_parquet(
        tmp_path / "x.parquet", tmp_path / "b", **ROLES, hash_features=500, shuffle=False
    )
    assert same(text, columnar)
    by_number = cirrus.load_parquet(
        tmp_path / "x.parquet", tmp_path / "c", 1, [3, 2], [4, 5], hash_features=500, shuffle=False
    )
    assert same(text, by_number)


cells = st.one_of(st.none(), st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=8))
numbers = st.one_of(st.none(), st.integers(-(10**6), 10**6), st.floats(width=32, allow_infinity=False))


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 3), numbers, cells), min_size=1, max_size=20))
def test_any_cells_are_those_of_the_same_csv(tmp_path_factory: Any, rows: list[tuple[int, Any, Any]]) -> None:
    """Whatever numbers and text there are, the features are those of the CSV file that says the same."""
    folder = tmp_path_factory.mktemp("cells")
    labels, values, texts = (list(column) for column in zip(*rows, strict=True))
    plain = [None if value is None else float(value) for value in values]
    columns = {"y": labels, "n": plain, "c": texts}
    write_csv(folder / "x.csv", columns)
    kinds = pa.schema([("y", pa.int64()), ("n", pa.float64()), ("c", pa.string())])
    pq.write_table(pa.table(columns, schema=kinds), folder / "x.parquet")
    roles: dict[str, Any] = {"label": "y", "numeric": ["n"], "categorical": ["c"], "hash_features": 64}
    text = cirrus.load_csv(folder / "x.csv", "memory://cells/a", **roles, shuffle=False)
    columnar = cirrus.load_parquet(folder / "x.parquet", "memory://cells/b", **roles, shuffle=False)
    assert same(text, columnar)


@pytest.mark.parametrize(
    "cells", [["a", None, "b", "", "c", None], ["a", " ", "b\nb", ""], [1.5, None, 2.5], [1, None]]
)
def test_of_a_single_column_no_row_is_lost(tmp_path: Path, cells: list[Any]) -> None:
    """Rows of nothing but a missing cell are rows: the categories of one column, or labels to be dropped."""
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"x": cells}), path)
    how = CsvRequest(label=None, numeric=(), categorical=("x",), hash_features=1000)
    options = LoadOptions(shuffle=False)
    store = open_store(tmp_path / "d")
    assert load_parquet_files(str(path), store, request=how, options=options).n_rows == len(cells)
    pq.write_table(pa.table({"x": cells, "y": [0] * len(cells)}), path)
    two = CsvRequest(label="y", numeric=(), categorical=("x",), hash_features=1000)
    other = open_store(tmp_path / "e")
    load_parquet_files(str(path), other, request=two, options=options)
    X, Z = (Dataset.open(s.url).to_csr()[0] for s in (store, other))
    assert (X != Z).nnz == 0


def test_kinds_of_columns(tmp_path: Path) -> None:
    """Dictionaries, truth values, small and large numbers, decimals and times are cells."""
    columns = {
        "y": pa.array([True, False, True]),
        "flag": pa.array([True, None, False]),
        "half": pa.array(np.array([0.5, 1, 2], np.float16)),
        "big": pa.array([2**40, 1, 2], pa.uint64()),
        "word": pa.array(["a", "b", "a"]).dictionary_encode(),
        "cost": pa.array(["1.50", "2.25", None]).cast(pa.decimal128(8, 2)),
        "time": pa.array([0, 1, 2], pa.timestamp("s")),
        "nothing": pa.nulls(3),
    }
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    dataset = cirrus.load_parquet(
        tmp_path / "x.parquet",
        tmp_path / "d",
        "y",
        ["flag", "half", "big", "cost", "nothing"],
        ["word", "time", "flag"],
        shuffle=False,
    )
    X, y, _ = dataset.to_csr()
    assert y.tolist() == [1, 0, 1]
    np.testing.assert_allclose(
        X[:, :5].toarray(), [[1, 0.5, 2**40, 1.5, 0], [0, 1, 1, 2.25, 0], [0, 2, 2, 0, 0]]
    )


def small(path: Path | str, url: Path | str, **options: Any) -> Dataset:
    """Load in small batches."""
    request = CsvRequest(
        label="clicked", numeric=("price", "hour"), categorical=("site", "day"), hash_features=500
    )
    sizes = LoadSizes(bucket_text_bytes=10_000, bucket_bytes=10_000)
    store = open_store(url)
    manifest = load_parquet_files(
        str(path), store, request=request, options=LoadOptions(sizes=sizes, **options), batch_rows=100
    )
    return Dataset(store.url, manifest)


@pytest.mark.parametrize("n_processes", [1, 2])
def test_many_files_in_a_store(tmp_path: Path, n_processes: int) -> None:
    """Files of a pattern and objects of a store are read in order of their names, in any order of columns."""
    whole: dict[str, list[Any]] = {}
    store = open_store("memory://parquet")
    for k in range(3):
        columns = table(250, seed=k)
        for name, values in columns.items():
            whole.setdefault(name, []).extend(values)
        turned = dict(reversed(columns.items())) if k == 1 else columns
        pq.write_table(pa.table(turned), tmp_path / f"part-{k}.parquet", row_group_size=130)
        store.put(f"in/{k}", (tmp_path / f"part-{k}.parquet").read_bytes())
    write_csv(tmp_path / "x.csv", whole)
    text = cirrus.load_csv(tmp_path / "x.csv", tmp_path / "a", **ROLES, hash_features=500, shuffle=False)
    pattern = tmp_path / "part-*.parquet"
    assert same(text, small(pattern, tmp_path / "b", shuffle=False, n_processes=n_processes))
    assert same(text, small("memory://parquet/in/", tmp_path / "c", shuffle=False, n_processes=n_processes))
    drop_memory_store("parquet")


def test_an_interrupted_load_goes_on(tmp_path: Path) -> None:
    """What was parsed is not parsed again, and the rows are those of a load in one go."""
    for k in range(2):
        pq.write_table(pa.table(table(1000, seed=k)), tmp_path / f"{k}.parquet", row_group_size=330)

    def interrupt(progress: LoadProgress) -> None:
        if progress.rows > 1200:
            raise KeyboardInterrupt

    for shuffle in (True, False):
        with pytest.raises(KeyboardInterrupt):
            small(tmp_path / "*.parquet", tmp_path / "d", shuffle=shuffle, random_state=1, progress=interrupt)
        seen: list[LoadProgress] = []
        again = small(
            tmp_path / "*.parquet", tmp_path / "d", shuffle=shuffle, random_state=1, progress=seen.append
        )
        assert 1200 < seen[0].rows_found < 2000
        whole = small(tmp_path / "*.parquet", tmp_path / "e", shuffle=shuffle, random_state=1)
        assert again.manifest.fingerprint == whole.manifest.fingerprint


def test_further_rows_are_read_alike(tmp_path: Path) -> None:
    """What was loaded from CSV can be predicted from Parquet, and the other way round, without labels too."""
    columns = {"y": ["no", "yes"], "n": [1.5, None], "c": ["p", "q"]}
    write_csv(tmp_path / "x.csv", columns)
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    roles: dict[str, Any] = {"label": "y", "numeric": ["n"], "categorical": ["c"], "hash_features": 64}
    text = cirrus.load_csv(tmp_path / "x.csv", tmp_path / "a", **roles, shuffle=False)
    columnar = cirrus.load_parquet(tmp_path / "x.parquet", tmp_path / "b", **roles, shuffle=False)
    assert columnar.labels == ("no", "yes")
    pq.write_table(pa.table({"more": [0, 0], "c": ["p", "q"], "n": [1.5, None]}), tmp_path / "other.parquet")
    for encoding in (text.manifest.encoding, columnar.manifest.encoding):
        rows = load_parquet_like(tmp_path / "other.parquet", tmp_path / "c", encoding)
        assert (rows.to_csr()[0] != text.to_csr()[0]).nnz == 0
        again = load_csv_like(
            tmp_path / "x.csv", tmp_path / "c", encoding, label_names=("no", "yes"), with_labels=True
        )
        assert same(again, text)
        labelled = load_parquet_like(
            tmp_path / "x.parquet", tmp_path / "c", encoding, label_names=("no", "yes"), with_labels=True
        )
        assert same(labelled, text)
        with pytest.raises(DataError, match=r"other\.parquet:1: has no column 'y'"):
            load_parquet_like(tmp_path / "other.parquet", tmp_path / "c", encoding, with_labels=True)


@pytest.mark.parametrize(
    ("columns", "options", "problem"),
    [
        ({"y": [1, 2], "n": ["1", "x"]}, {}, r"x\.parquet:2: n: 'x' is not a number"),
        ({"y": [1, None], "n": [1, 2]}, {}, r"x\.parquet:2: y: there is no label"),
        ({"y": [1, 2], "n": [1.0, float("inf")]}, {}, r"x\.parquet:2: n: 'inf' is not finite"),
        ({"y": [1], "m": [1]}, {}, r"x\.parquet:1: has no column 'n' \(numeric\); it has y, m"),
        ({"y": [1], "n": [[1]]}, {}, r"column 'n' holds list<.*>, not cells"),
        ({"y": [1], "n": [b"\xff"]}, {}, r"x\.parquet: is no Parquet file, or is damaged \(.*UTF"),
        ({"y": pa.array([], pa.int64()), "n": pa.array([], pa.int64())}, {}, "no rows"),
    ],
)
def test_what_cannot_be_read_is_one_error(
    tmp_path: Path, columns: dict[str, Any], options: dict[str, Any], problem: str
) -> None:
    """A bad cell is named by file, row and column, a bad column by its name; nothing is stored."""
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=problem):
        cirrus.load_parquet(tmp_path / "x.parquet", tmp_path / "d", "y", ["n"], **options)
    assert open_store(tmp_path / "d").list() == []


@settings(max_examples=60)
@given(st.data())
def test_damaged_files_are_refused(tmp_path_factory: Any, data: st.DataObject) -> None:
    """Random bytes, and Parquet files with some bytes changed, load or are one error that names the file."""
    folder = tmp_path_factory.mktemp("damaged")
    path = folder / "x.parquet"
    if data.draw(st.booleans()):
        content = bytearray(b"PAR1" + data.draw(st.binary(max_size=200)) + b"PAR1")
    else:
        pq.write_table(pa.table({"y": list(range(50)), "n": [1.5] * 50}), path)
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        content = content[: data.draw(st.integers(len(content) - 20, len(content)))]
    path.write_bytes(content)
    refusal = ""
    try:
        dataset = cirrus.load_parquet(path, "memory://damaged/d", "y", ["n"])
    except DataError as error:
        refusal = str(error)
    assert str(path) in refusal if refusal else dataset.n_rows > 0


def test_parameters_that_cannot_work(tmp_path: Path) -> None:
    """A wrong parameter is named; so is what drops rows and turns numbers into labels acted upon."""
    pq.write_table(pa.table({"y": [5, None, 9], "n": [1, -1, 3]}), tmp_path / "x.parquet")
    for options in ({"hash_features": 0}, {"missing_label": "no"}, {"numeric": "n"}, {"n_processes": 0}):
        arguments: dict[str, Any] = {"label": "y", "numeric": ["n"], **options}
        with pytest.raises(ConfigError, match=next(iter(options))):
            cirrus.load_parquet(tmp_path / "x.parquet", tmp_path / "d", **arguments)
    dataset = cirrus.load_parquet(
        tmp_path / "x.parquet",
        tmp_path / "d",
        "y",
        ["n"],
        label_above=6,
        missing_label="drop",
        na_values=["", "3"],
        shuffle=False,
    )
    X, y, _ = dataset.to_csr()
    assert y.tolist() == [0, 1]
    assert X[:, [0]].toarray().ravel().tolist() == [1, 0]
