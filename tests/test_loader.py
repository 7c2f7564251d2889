"""Loading svmlight and CSV files: what is read, what is refused, and what is left behind."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mmh3
import numpy as np
import psutil
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_svmlight_file as sklearn_load

from cirrus.client_backend.load_tasks import LoadSizes
from cirrus.client_backend.loader import LoadOptions, LoadProgress, load_svmlight_file
from cirrus.client_backend.numbering import number_ids
from cirrus.client_backend.parsers import SvmlightParser
from cirrus.client_backend.segments import InputFile, read_segments
from cirrus.errors import ConfigError, DataError, NotFoundError, RunError, StorageError
from cirrus.frontend.datasets import Dataset, load_csv, load_csv_like, load_svmlight
from cirrus.storage import open_store

#: Sizes at which a file of some 100 kB takes the paths of a large one.
SMALL = LoadSizes(segment_bytes=10_000, bucket_text_bytes=30_000, bucket_bytes=20_000)


def svmlight_text(n_rows: int, seed: int = 0, one_hot: bool = False) -> str:
    """Rows whose label is their number, so that they can be told apart."""
    rng = random.Random(seed)
    lines = []
    for i in range(n_rows):
        ids = sorted(rng.sample(range(1, 500), rng.randint(0, 12)))
        lines.append(f"{i} " + " ".join(f"{j}:{1 if one_hot else round(rng.uniform(-9, 9), 3)}" for j in ids))
    return "\n".join(lines) + "\n"


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder for temporary files, which must be empty again in the end."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


def load(path: Path, url: Path | str, **options: Any) -> Dataset:
    """Load svmlight in small pieces."""
    extra = {key: options.pop(key) for key in ("n_features", "zero_based") if key in options}
    store = open_store(url)
    manifest = load_svmlight_file(str(path), store, options=LoadOptions(sizes=SMALL, **options), **extra)
    return Dataset(store.url, manifest)


def rows_of(dataset: Dataset) -> dict[float, list[tuple[int, float]]]:
    """The rows by their label."""
    X, y, _ = dataset.to_csr()
    return {
        float(y[i]): list(
            zip(
                X.indices[X.indptr[i] : X.indptr[i + 1]].tolist(),
                X.data[X.indptr[i] : X.indptr[i + 1]].tolist(),
                strict=True,
            )
        )
        for i in range(len(y))
    }


# Svmlight: what is read.


@pytest.mark.parametrize("n_processes", [1, 2])
def test_svmlight_files_read_as_scikit_learn_reads_them(
    tmp_path: Path, temporary: Path, n_processes: int
) -> None:
    """Unshuffled, rows, labels and order are those of scikit-learn's reader, with any number of processes."""
    path = tmp_path / "x.svm"
    path.write_text(svmlight_text(3000))
    dataset = load(path, tmp_path / "d", shuffle=False, n_processes=n_processes)
    X, y = sklearn_load(str(path))
    mine, labels, weights = Dataset.open(tmp_path / "d").to_csr()
    assert weights is None
    np.testing.assert_array_equal(labels, y)
    assert mine.shape == X.shape
    assert abs(mine - X.astype(np.float32)).max() == 0
    assert dataset.manifest.encoding == {"format": "svmlight", "zero_based": False}


@pytest.mark.parametrize("one_hot", [False, True])
def test_shuffling_keeps_every_row_and_loses_the_order(
    tmp_path: Path, temporary: Path, one_hot: bool
) -> None:
    """Shuffled rows are the same rows, spread evenly: far from where they were."""
    path = tmp_path / "x.svm"
    path.write_text(svmlight_text(3000, one_hot=one_hot))
    plain = load(path, tmp_path / "a", shuffle=False)
    mixed = load(path, tmp_path / "b", random_state=1)
    assert rows_of(mixed) == rows_of(plain)
    order = mixed.to_csr()[1]
    assert len(mixed.chunks) > 3
    assert abs(np.corrcoef(order, np.arange(3000))[0, 1]) < 0.1
    assert abs(order[:1000].mean() - 1500) < 100
    assert not (np.diff(order) == 1).mean() > 0.01


def test_the_result_depends_on_the_seed_and_nothing_else(tmp_path: Path, temporary: Path) -> None:
    """The same seed gives the same bytes for any number of processes; another seed does not."""
    text = svmlight_text(3000).encode()
    plain, packed = tmp_path / "x.svm", tmp_path / "x.svm.gz"
    plain.write_bytes(text)
    packed.write_bytes(gzip.compress(text))
    prints = [
        load(plain, tmp_path / f"d{n}", random_state=5, n_processes=n).manifest.fingerprint for n in (1, 2, 3)
    ]
    assert len(set(prints)) == 1
    assert load(plain, tmp_path / "o", random_state=6).manifest.fingerprint != prints[0]
    assert rows_of(load(packed, tmp_path / "z", random_state=5)) == rows_of(Dataset.open(tmp_path / "d1"))
    unseeded = [load(plain, tmp_path / "u").manifest.fingerprint for _ in range(2)]
    assert unseeded[0] != unseeded[1]


def test_what_a_line_may_look_like(tmp_path: Path) -> None:
    """Comments, blank lines, tabs, carriage returns, rows without entries and any form of number are read."""
    path = tmp_path / "x.svm"
    path.write_bytes(
        b"\xef\xbb\xbf# made by hand\r\n+1 1:2.5e-1\t3:-4 # last\r\n\r\n-1\r\n"
        b"  0.5   2:.5 10:5. 11:0\n# end\n1e1 1:1"
    )
    X, y, _ = load_svmlight(path, tmp_path / "d", shuffle=False).to_csr()
    np.testing.assert_array_equal(y, [1, -1, 0.5, 10])
    expected = np.zeros((4, 11))
    expected[0, [0, 2]] = 0.25, -4
    expected[2, [1, 9]] = 0.5, 5
    expected[3, 0] = 1
    np.testing.assert_array_equal(X.toarray(), expected)


@given(
    st.floats(width=32, allow_nan=False, allow_infinity=False), st.sampled_from(["r", ".9g", ".17g", ".12f"])
)
def test_numbers_are_parsed_as_python_parses_them(number: float, how: str) -> None:
    """Every float32, written in any usual way, comes back as itself."""
    text = repr(number) if how == "r" else format(number, how)
    if float(text) != np.float32(float(text)) and text.lstrip("-").isdigit():
        with pytest.raises(DataError, match="beyond 2"):
            SvmlightParser("x").parse(f"{text} 1:{text}\n".encode(), 1)
        return
    rows, _ = SvmlightParser("x").parse(f"{text} 1:{text}\n".encode(), 1)
    assert rows.labels[0] == np.float32(float(text))
    value = 1.0 if rows.values is None else rows.values[0]
    assert value == np.float32(float(text))


@pytest.mark.parametrize(
    ("text", "zero_based", "columns", "n_features"),
    [
        ("1 1:1 4:1\n", "auto", [0, 3], 4),
        ("1 1:1 4:1\n", True, [1, 4], 5),
        ("1 4:1\n1 0:1 4:1\n", "auto", [0, 4], 5),
        ("1 1:1 4:1\n", False, [0, 3], 4),
    ],
)
def test_index_base(tmp_path: Path, text: str, zero_based: Any, columns: list[int], n_features: int) -> None:
    """The first feature is 1, unless the user says 0 or an index 0 is seen anywhere in the file."""
    path = tmp_path / "x.svm"
    path.write_text(text)
    dataset = load_svmlight(path, tmp_path / "d", zero_based=zero_based, shuffle=False)
    assert dataset.n_features == n_features
    assert dataset.to_csr()[0].indices.tolist()[-2:] == columns


def test_n_features_widens_the_data(tmp_path: Path) -> None:
    """A test set gets the width of its training set."""
    path = tmp_path / "x.svm"
    path.write_text("1 3:1\n")
    assert load_svmlight(path, tmp_path / "d", n_features=3).n_features == 3
    assert load_svmlight(path, tmp_path / "d", n_features=100).n_features == 100


@given(st.lists(st.integers(0, 2**32 - 1), max_size=50), st.sampled_from([1, 7, 2**11, 2**23, 2**32]))
def test_ids_are_numbered_as_numpy_does_it(columns: list[int], modulus: int) -> None:
    """The compiled numbering gives what ``np.unique`` gives."""
    ids = np.array(columns, np.uint32) % np.uint64(modulus)
    found, positions = number_ids(ids.astype(np.uint32))
    expected, inverse = np.unique(ids, return_inverse=True)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(positions, inverse)
    assert (found.dtype, positions.dtype) == (np.uint32, np.intp)


def test_progress_is_reported(tmp_path: Path, temporary: Path) -> None:
    """Progress rises to the size of the file and counts its rows, and is called in the caller's thread."""
    path = tmp_path / "x.svm"
    path.write_text(svmlight_text(2000))
    for n_processes in (1, 2):
        seen: list[LoadProgress] = []
        load(path, tmp_path / "d", n_processes=n_processes, progress=seen.append)
        assert [p.bytes_total for p in seen] == [path.stat().st_size] * len(seen)
        assert seen[-1].bytes_done == path.stat().st_size
        assert seen[-1].rows == 2000
        assert len(seen) > 5


# Svmlight: what is refused.

BAD_LINES = {
    "x 1:1": "label 'x' is not a number",
    "1,2 1:1": "label '1,2' is not a number",
    "nan 1:1": "label 'nan' is not finite",
    "1e999 1:1": "label '1e999' is not finite",
    "16777217 1:1": "label '16777217' is a whole number beyond 2**24",
    "1 1:1 1:2": "occurs twice",
    "1 2:1 1:2": "lower than the one before",
    "1 1": "'1' is not INDEX:VALUE",
    "1 -1:2": "'-1:2' is not INDEX:VALUE",
    "1 a:2": "'a:2' is not INDEX:VALUE",
    "1 1:": "the value in '1:' is not a number",
    "1 1:x": "the value in '1:x' is not a number",
    "1 1:1e": "the value in '1:1e' is not a number",
    "1 1:1:1": "the value in '1:1:1' is not a number",
    "1 1:nan": "the value in '1:nan' is not finite",
    "1 1:-Infinity": "the value in '1:-Infinity' is not finite",
    "1 1:1e39": "the value in '1:1e39' is not finite",
    "1 4294967296:1": "too large",
    "1 301:1": "beyond n_features=300",
    "1 qid:3 1:1": "ranking queries",
    "\x00\x01": "is not a number",
}


@pytest.mark.parametrize(
    ("line", "n_processes"), [*((line, 1) for line in BAD_LINES), ("x 1:1", 2), ("1 301:1", 2)]
)
def test_a_bad_line_is_one_error_that_names_it(
    tmp_path: Path, temporary: Path, line: str, n_processes: int
) -> None:
    """A bad line is named with path and number and what is wrong; the dataset that was there is untouched."""
    good, bad = tmp_path / "good.svm", tmp_path / "bad.svm"
    good.write_text(svmlight_text(30))
    before = load(good, tmp_path / "d", random_state=0)
    keys = open_store(tmp_path / "d").list()
    lines = ["1 1:1"] * 3000
    lines[2500] = line
    lines[2900] = "also bad"
    bad.write_text("\n".join(lines))
    with pytest.raises(DataError) as caught:
        load(bad, tmp_path / "d", n_features=300, n_processes=n_processes)
    assert str(caught.value).startswith(f"{bad}:2501: ")
    assert BAD_LINES[line] in str(caught.value)
    assert Dataset.open(tmp_path / "d").manifest == before.manifest
    assert open_store(tmp_path / "d").list() == keys


def test_an_index_at_the_limit_depends_on_the_base(tmp_path: Path) -> None:
    """Index n_features is right in a one-based file, and an error with its line in a zero-based one."""
    path = tmp_path / "x.svm"
    path.write_text("# comment\n\n1 2:1\n1 3:1\n")
    assert load_svmlight(path, tmp_path / "d", n_features=3).n_features == 3
    with pytest.raises(DataError, match=r"x\.svm:4: .*beyond n_features=3"):
        load_svmlight(path, tmp_path / "d", n_features=3, zero_based=True)
    path.write_text("# comment\n\n1 2:1\n1 3:1\n1 0:1\n")
    with pytest.raises(DataError, match=r"x\.svm:4: index 3 is beyond n_features=3"):
        load_svmlight(path, tmp_path / "d", n_features=3)
    with pytest.raises(DataError, match=r"x\.svm:5: index 0 in a one-based file"):
        load_svmlight(path, tmp_path / "d", zero_based=False)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (b"\n\n", "no rows"),
        (b"# only a comment\n", "no rows"),
        (gzip.compress(b"", mtime=0), "no rows"),
    ],
)
def test_a_file_without_rows_is_refused(tmp_path: Path, content: bytes, problem: str) -> None:
    """A file that holds no rows is an error, and nothing is written."""
    path = tmp_path / "x.svm"
    path.write_bytes(content)
    with pytest.raises(DataError, match=problem):
        load_svmlight(path, tmp_path / "d")
    assert not (tmp_path / "d" / "manifest.json").exists()


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """A missing file and a folder each give one error that names them."""
    with pytest.raises(NotFoundError, match="absent"):
        load_svmlight(tmp_path / "absent", tmp_path / "d")
    with pytest.raises(DataError, match="is a folder"):
        load_svmlight(tmp_path, tmp_path / "d")


def test_damaged_compressed_files(tmp_path: Path, temporary: Path) -> None:
    """A truncated or bit-flipped gzip file, or a zip of several files, is one error that says where."""
    packed = gzip.compress(svmlight_text(3000).encode())
    path = tmp_path / "x.gz"
    path.write_bytes(packed[:-2000])
    with pytest.raises(DataError, match=r"x\.gz:\d+: the compressed data is truncated or damaged"):
        load(path, tmp_path / "d")
    flipped = bytearray(packed)
    flipped[-6] ^= 255
    path.write_bytes(bytes(flipped))
    with pytest.raises(DataError, match="truncated or damaged"):
        load(path, tmp_path / "d")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a", "1 1:1\n")
        archive.writestr("b", "1 1:1\n")
    with pytest.raises(DataError, match="holds 2 files"):
        load(tmp_path / "x.zip", tmp_path / "d")
    (tmp_path / "y.zip").write_bytes(b"PK\x03\x04 nonsense")
    with pytest.raises(DataError, match="truncated or damaged"):
        load(tmp_path / "y.zip", tmp_path / "d")
    assert open_store(tmp_path / "d").list() == []


@pytest.mark.parametrize(
    "options",
    [
        {"n_features": 0},
        {"n_processes": 0},
        {"random_state": -1},
        {"zero_based": "maybe"},
        {"n_features": 2**32},
    ],
)
def test_parameters_that_cannot_work(tmp_path: Path, options: dict[str, Any]) -> None:
    """A wrong parameter is named."""
    path = tmp_path / "x.svm"
    path.write_text("1 1:1\n")
    with pytest.raises(ConfigError, match=next(iter(options))):
        load_svmlight(path, tmp_path / "d", **options)


def test_a_store_that_refuses_is_a_storage_error(tmp_path: Path, temporary: Path) -> None:
    """Where chunks cannot be written, the error says so, from any process."""
    path = tmp_path / "x.svm"
    path.write_text(svmlight_text(1000))
    (tmp_path / "file").write_text("in the way")
    for n_processes in (1, 2):
        with pytest.raises(StorageError, match="file: is a file, where a folder is needed"):
            load(path, tmp_path / "file" / "d", n_processes=n_processes)


# Segments.


def input_file(path: Path) -> InputFile:
    """A file as the loader opens it."""
    return InputFile(str(path), path.name, path.stat().st_size)


@given(st.binary(max_size=300).map(lambda b: b.translate(None, b"\x1fP\x04")), st.integers(1, 50))
@settings(max_examples=50)
def test_segments_are_whole_lines_and_nothing_is_lost(tmp_path_factory: Any, data: bytes, size: int) -> None:
    """Segments end at line ends, know their first line, and together are the file."""
    path = tmp_path_factory.mktemp("segments") / "x"
    path.write_bytes(data)
    segments = list(read_segments(input_file(path), segment_bytes=size))
    assert b"".join(s.data for s in segments) == data.removeprefix(b"\xef\xbb\xbf")
    line = 1
    for k, segment in enumerate(segments):
        assert segment.number == k
        assert segment.first_line == line
        assert segment.data.endswith(b"\n") or k == len(segments) - 1
        line += segment.data.count(b"\n")


def test_a_quoted_field_is_not_cut(tmp_path: Path) -> None:
    """Line ends between quotation marks do not end a segment of CSV."""
    rows = [f'{i},"some\ntext\n""{i}""\n",end' for i in range(100)]
    path = tmp_path / "x.csv"
    path.write_text("\n".join(rows) + "\n")
    for size in (1, 7, 50, 333):
        segments = [s.data.decode() for s in read_segments(input_file(path), quoted=True, segment_bytes=size)]
        assert len(segments) > 3
        assert all(s.count('"') % 2 == 0 and s.endswith(",end\n") for s in segments)
        assert "".join(segments) == path.read_text()


# CSV.

FLIGHTS = """late,carrier,distance,"origin, airport"
20,AA,1400,JFK
-3,UA,,"EWR"
15,AA,200,NA

NA,B6,1,LGA
"""


def csv_column(key: str, n_numeric: int, hash_features: int) -> int:
    """Where a category is hashed to, by the rule of the documentation."""
    return n_numeric + mmh3.hash(key, signed=False) % hash_features


@pytest.mark.parametrize("by", ["name", "number"])
def test_csv_columns_become_features(tmp_path: Path, by: str) -> None:
    """Numbers have columns of their own, categories are hashed, missing cells have an indicator."""
    path = tmp_path / "x.csv"
    path.write_text(FLIGHTS)
    columns: dict[str, Any] = {"label": "late", "numeric": ["distance"]}
    columns["categorical"] = ["carrier", "origin, airport"]
    if by == "number":
        columns = {"label": 0, "numeric": [2], "categorical": [1, 3]}
    dataset = load_csv(
        path,
        tmp_path / "d",
        **columns,
        hash_features=1000,
        label_above=15,
        missing_label="drop",
        shuffle=False,
    )
    X, y, _ = dataset.to_csr()
    assert X.shape == (3, 1001)
    np.testing.assert_array_equal(y, [1, 0, 0])
    expected = scipy.sparse.lil_array((3, 1001))
    expected[0, 0] = 1400
    expected[2, 0] = 200
    cells = [
        (0, "carrier=AA"),
        (0, "origin, airport=JFK"),
        (1, "carrier=UA"),
        (1, "distance=missing"),
        (1, "origin, airport=EWR"),
        (2, "carrier=AA"),
        (2, "origin, airport=missing"),
    ]
    for row, key in cells:
        expected[row, csv_column(key, 1, 1000)] += 1
    assert abs(X - expected.tocsr()).max() == 0


def test_colliding_categories_add_up(tmp_path: Path) -> None:
    """Two categories of a row in the same hashed feature give it the value 2."""
    path = tmp_path / "x.csv"
    path.write_text("1,a,b\n0,c,d\n")
    X, _, _ = load_csv(path, tmp_path / "d", categorical=[1, 2], hash_features=1).to_csr()
    np.testing.assert_array_equal(X.toarray(), [[2], [2]])


def test_text_labels_are_named_in_order(tmp_path: Path, temporary: Path) -> None:
    """Labels that are text are numbered in sorted order, whichever process meets them first."""
    path = tmp_path / "x.csv"
    rng = random.Random(0)
    names = [rng.choice(["spam", "ham", "eggs"]) for _ in range(40_000)]
    path.write_text("".join(f"{name};{i % 7}\n" for i, name in enumerate(names)))
    prints = set()
    for n_processes in (1, 2):
        dataset = load_csv(
            path, tmp_path / "d", categorical=[1], sep=";", shuffle=False, n_processes=n_processes
        )
        assert dataset.manifest.label_names == ("eggs", "ham", "spam")
        assert dataset.labels == ("eggs", "ham", "spam")
        y = dataset.to_csr()[1]
        assert [dataset.manifest.label_names[int(code)] for code in y] == names
        prints.add(dataset.manifest.fingerprint)
    assert len(prints) == 1


@pytest.mark.parametrize(
    ("text", "header", "n_rows"),
    [
        ("y,a\n1,2\n0,3\n", "infer", 2),
        ("1,2\n0,3\n", "infer", 2),
        ("1,2\n0,3\n", True, 1),
        ("1,2\n0,3\n", False, 2),
    ],
)
def test_the_header_is_found_or_told(tmp_path: Path, text: str, header: Any, n_rows: int) -> None:
    """The first line is a header if it has text where the next has a number, or if the user says so."""
    path = tmp_path / "x.csv"
    path.write_text(text)
    assert load_csv(path, tmp_path / "d", numeric=[1], header=header).n_rows == n_rows


BAD_CSV = {
    "y,a,b\n1,2,c\n1,2\n": r"x\.csv:3: has 2 columns, the first line has 3",
    "y,a,b\n1,2,c\nx,2,c\n": r"x\.csv:3: y: 'x' is not a number",
    "y,a,b\n1,2,c\n,2,c\n": r"x\.csv:3: y: there is no label",
    "y,a,b\n1,2,c\ninf,2,c\n": r"x\.csv:3: y: 'inf' is not finite",
    "y,a,b\n1,2,c\n\n1,x,c\n": r"x\.csv:4: a: 'x' is not a number",
    'y,a,b\n1,2,"c\nd"\n1,NA,c\n1,x,c\n': r"x\.csv:5: a: 'x' is not a number",
    "y,a,b\n1,2,c\n1,-inf,c\n": r"x\.csv:3: a: '-inf' is not finite",
    'y,a,b\n1,2,"c\n': r"x\.csv:\d: is not proper CSV",
    'y,a,b\n1,2,"c"d\n': r"x\.csv:2: is not proper CSV",
    "y,a,b\n1,2,\udcff\n": r"x\.csv:2: is not UTF-8",
    "y,a,b\n": "no rows",
    "y,b\n1,2\n": r"x\.csv:1: has no column 'a' \(numeric\); it has y, b",
    "y,a,a,b\n1,2,3,4\n": "several columns 'a'",
    "": "is empty",
}


@pytest.mark.parametrize("text", BAD_CSV)
def test_bad_csv_is_one_error_that_names_the_line(tmp_path: Path, temporary: Path, text: str) -> None:
    """Whatever is wrong with a CSV file, the message names file, line and column, and nothing is stored."""
    path = tmp_path / "x.csv"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=BAD_CSV[text]):
        load_csv(path, tmp_path / "d", label="y", numeric=["a"], categorical=["b"])
    assert open_store(tmp_path / "d").list() == []


@pytest.mark.parametrize(
    "options",
    [
        {"sep": ",,"},
        {"hash_features": 0},
        {"header": "maybe"},
        {"header": False, "numeric": ["a"]},
        {"missing_label": "ignore"},
        {"numeric": "a"},
        {"categorical": []},
    ],
)
def test_csv_parameters_that_cannot_work(tmp_path: Path, options: dict[str, Any]) -> None:
    """A wrong parameter is named."""
    path = tmp_path / "x.csv"
    path.write_text("y,a\n1,2\n")
    with pytest.raises(ConfigError, match=next(iter(options))):
        load_csv(path, tmp_path / "d", **{"categorical": [1], **options})


def test_further_rows_are_read_alike(tmp_path: Path) -> None:
    """The encoding in the manifest reads other files: reordered, unlabelled, or with known labels."""
    path = tmp_path / "x.csv"
    path.write_text("y,a,b\nno,2,p\nyes,3,q\n")
    first = load_csv(
        path, tmp_path / "d", label="y", numeric=["a"], categorical=["b"], hash_features=50, shuffle=False
    )
    encoding = json.loads(json.dumps(Dataset.open(tmp_path / "d").manifest.encoding))
    other = tmp_path / "other.csv"
    other.write_text("b,extra,a\np,zzz,2\nq,zzz,3\n")
    again = load_csv_like(other, tmp_path / "e", encoding)
    assert abs(again.to_csr()[0] - first.to_csr()[0]).max() == 0
    assert again.to_csr()[1].tolist() == [0, 0]
    other.write_text("b,y,a\np,yes,2\n")
    names = first.manifest.label_names
    labelled = load_csv_like(other, tmp_path / "e", encoding, label_names=names, with_labels=True)
    assert labelled.to_csr()[1].tolist() == [1]
    assert labelled.manifest.label_names == ("no", "yes")
    other.write_text("b,y,a\np,yes,2\np,perhaps,2\n")
    with pytest.raises(DataError, match=r"other\.csv:3: y: label 'perhaps' is unknown; known are no, yes"):
        load_csv_like(other, tmp_path / "e", encoding, label_names=names, with_labels=True)
    other.write_text("b,y\np,yes\n")
    with pytest.raises(DataError, match="no column 'a'"):
        load_csv_like(other, tmp_path / "e", encoding)
    with pytest.raises(ConfigError, match="encoding"):
        load_csv_like(other, tmp_path / "e", {"format": "svmlight"})


def test_files_without_names_may_lack_the_label(tmp_path: Path) -> None:
    """Without a header, a file with one column less is one without the label."""
    path = tmp_path / "x.csv"
    path.write_text("7,1,p\n8,0,q\n")
    first = load_csv(
        path, tmp_path / "d", label=1, numeric=[0], categorical=[2], hash_features=50, shuffle=False
    )
    path.write_text("7,p\n8,q\n")
    again = load_csv_like(path, tmp_path / "e", first.manifest.encoding)
    assert abs(again.to_csr()[0] - first.to_csr()[0]).max() == 0


def test_csv_in_zip(tmp_path: Path) -> None:
    """A zip archive of one file is read as that file."""
    with zipfile.ZipFile(tmp_path / "x.csv.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.csv", FLIGHTS)
    dataset = load_csv(
        tmp_path / "x.csv.zip", tmp_path / "d", label="late", numeric=["distance"], missing_label="drop"
    )
    assert dataset.n_rows == 3


# Processes.

LOAD_AND_WAIT = """
import sys
import threading
from cirrus.client_backend.load_tasks import LoadSizes
from cirrus.client_backend.loader import LoadOptions, load_svmlight_file
from cirrus.storage import open_store

def wait(progress):
    if progress.bytes_done * 4 > progress.bytes_total * float(sys.argv[3]):
        print("waiting", flush=True)
        sys.stdin.readline()

sizes = LoadSizes(segment_bytes=10_000, bucket_text_bytes=30_000, bucket_bytes=20_000)
options = LoadOptions(sizes=sizes, n_processes=2, progress=wait, random_state=3)
load_svmlight_file(sys.argv[1], open_store(sys.argv[2]), options=options)
"""


def wait_until(condition: Any, seconds: float = 20.0) -> None:
    """Wait for a condition, and fail if it does not come."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.02)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("quarter", [1, 3])
def test_a_load_that_dies_goes_on(tmp_path: Path, how: signal.Signals, quarter: int) -> None:
    """Killed or interrupted, a load leaves no process, temporary file or dataset, and can be gone on with."""
    path = tmp_path / "x.svm"
    path.write_text(svmlight_text(3000))
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    paths = os.pathsep.join(p for p in sys.path if p)
    environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": paths}
    client = subprocess.Popen(
        [sys.executable, "-c", LOAD_AND_WAIT, str(path), str(tmp_path / "d"), str(quarter)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    with client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"waiting\n"
        children = psutil.Process(client.pid).children()
        assert len(children) == 2
        client.send_signal(how)
        assert client.wait(timeout=20) != 0
    wait_until(lambda: not any(child.is_running() for child in children))
    wait_until(lambda: list(temporary.iterdir()) == [])
    left = open_store(tmp_path / "d").list()
    assert "manifest.json" not in left
    parsed = {key for key in left if "/parsed/" in key}
    assert parsed
    seen: list[LoadProgress] = []
    again = load(path, tmp_path / "d", random_state=3, progress=seen.append)
    assert 0 < seen[0].rows_found == seen[0].rows <= 3000
    assert again.manifest.fingerprint == load(path, tmp_path / "e", random_state=3).manifest.fingerprint
    keys = {"manifest.json", *(chunk.key for chunk in again.chunks)}
    assert set(open_store(tmp_path / "d").list()) == keys


def _load_processes() -> list[psutil.Process]:
    children = psutil.Process().children()
    return [child for child in children if "load_process" in " ".join(child.cmdline())]


def test_a_worker_that_dies_is_replaced(tmp_path: Path, temporary: Path) -> None:
    """When a process of the load is killed, another does its work, and the dataset is the same."""
    path = tmp_path / "x.svm"
    path.write_text(svmlight_text(3000))
    killed: list[psutil.Process] = []

    def kill_one(progress: LoadProgress) -> None:
        if not killed:
            killed.append(_load_processes()[0])
            killed[0].kill()

    made = load(path, tmp_path / "d", n_processes=2, random_state=3, progress=kill_one)
    assert killed
    alone = load(path, tmp_path / "e", n_processes=1, random_state=3)
    assert made.manifest.fingerprint == alone.manifest.fingerprint
    assert not _load_processes()


def test_workers_that_die_again_and_again_are_one_error(tmp_path: Path, temporary: Path) -> None:
    """A load whose processes all die ends with one error that says how to go on, and then does go on."""
    path = tmp_path / "x.svm"
    path.write_text(svmlight_text(3000))
    stop = threading.Event()

    def kill_all() -> None:
        while not stop.wait(0.01):
            for child in psutil.Process().children():
                with contextlib.suppress(psutil.Error):
                    if "load_process" in " ".join(child.cmdline()):
                        child.kill()

    killer = threading.Thread(target=kill_all)
    killer.start()
    try:
        with pytest.raises(RunError, match=r"killed by signal 9, as 3 others .* kept: load again") as caught:
            load(path, tmp_path / "d", n_processes=2)
    finally:
        stop.set()
        killer.join()
    assert "n_processes=1" in str(caught.value)
    assert load(path, tmp_path / "d").n_rows == 3000
    assert not open_store(tmp_path / "d").list("loading")


def test_an_error_in_the_progress_callback_ends_the_load(tmp_path: Path, temporary: Path) -> None:
    """What the caller's own function raises comes out as it is."""
    path = tmp_path / "x.svm"
    path.write_text(svmlight_text(3000))

    def fail(progress: LoadProgress) -> None:
        raise ZeroDivisionError

    for n_processes in (1, 2):
        with pytest.raises(ZeroDivisionError):
            load(path, tmp_path / "d", n_processes=n_processes, progress=fail)
    assert open_store(tmp_path / "d").list() == []


MEASURE_MEMORY = """
import re, resource, sys
from pathlib import Path
from cirrus.client_backend.loader import LoadOptions, load_svmlight_file
from cirrus.storage import open_store
load_svmlight_file(sys.argv[1], open_store(sys.argv[2]), options=LoadOptions(n_processes=2))
# Not ru_maxrss: it is inherited from the process that started this one.
print(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux' /proc")
def test_memory_stays_below_300_mb(tmp_path: Path) -> None:
    """A file of 150 MB, three times what one bucket holds, is loaded with less than 300 MB in any process."""
    path = tmp_path / "x.svm"
    rng = np.random.default_rng(0)
    ids = np.sort(rng.integers(1, 2**20, (2000, 39)), axis=1)
    lines = [f"{i % 2} " + " ".join(f"{j}:1" for j in np.unique(row)) for i, row in enumerate(ids)]
    text = "\n".join(lines).encode() + b"\n"
    with path.open("wb") as file:
        while file.tell() < 150e6:
            file.write(text)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-c", MEASURE_MEMORY, str(path), str(tmp_path / "d")]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=100, check=True)
    peaks_mb = [int(kilobytes) / 1000 for kilobytes in done.stdout.split()]
    assert max(peaks_mb) < 300, peaks_mb


@pytest.mark.parametrize("quoted", [False, True])
def test_labels_are_never_merged(tmp_path: Path, quoted: bool) -> None:
    """Whole numbers that float32 cannot tell apart are refused by line; others, and thresholds, are not."""
    path = tmp_path / "x.csv"
    cell = '"2"' if quoted else "2"
    path.write_text(f"y,a\n16777216,1\n0.1,1\n16777217,{cell}\n")
    with pytest.raises(DataError, match=r"x\.csv:4: y: label '16777217' is a whole number beyond 2\*\*24"):
        load_csv(path, tmp_path / "d", label="y", numeric=["a"])
    above = load_csv(path, tmp_path / "d", "y", ["a"], label_above=16777216, shuffle=False)
    assert above.to_csr()[1].tolist() == [0, 0, 1]
