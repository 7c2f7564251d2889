"""CSV at speed: the compiled path reads what Python reads, and real click data load and train."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import mmh3
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cirrus.chunks import Block
from cirrus.client_backend.csv_fast import FastCsvParser
from cirrus.client_backend.csv_format import CsvColumn, CsvFormat
from cirrus.client_backend.csv_kernels import murmur3
from cirrus.client_backend.csv_rows import CsvParser, LabelNames
from cirrus.errors import DataError
from cirrus.frontend.datasets import Dataset, load_csv
from cirrus.frontend.linear import LogisticRegression

REAL = Path(__file__).parents[2] / "shared" / "data"
CRITEO: dict[str, Any] = {"numeric": range(1, 14), "categorical": range(14, 40), "sep": "\t", "header": False}

cells = st.one_of(
    st.integers(-(10**17), 10**17).map(str),
    st.floats(width=32).map(repr),
    st.decimals(allow_nan=False, allow_infinity=False, places=3).map(str),
    st.sampled_from(
        ["", " ", "NA", "nan", "inf", "1e3", "+.5", "-", ".", "1_0", "-999", " 7\t", "7\r", "\x1c8"]
    ),
    st.text(st.characters(max_codepoint=126, exclude_characters='\n"'), max_size=6),
    st.sampled_from(["ä", '"q"', '"a,b"']),
)


@settings(deadline=None)
@given(st.binary(max_size=40))
def test_the_kernel_hashes_as_mmh3_does(data: bytes) -> None:
    """MurmurHash3 gives the numbers of the library, so that datasets do not depend on who hashed them."""
    assert murmur3(np.frombuffer(data, np.uint8), len(data)) == mmh3.hash(data, signed=False)


def parsed(parser: CsvParser | FastCsvParser, data: bytes, first_line: int) -> Block | str:
    """What a parser makes of a segment: a block, or the text of the error."""
    try:
        rows = parser.parse(data, first_line)[0]
    except DataError as error:
        return str(error)
    return rows.to_block(0) if rows.n_rows else "no rows"


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.lists(cells, min_size=4, max_size=4), max_size=8),
    st.sampled_from([None, 1.5]),
    st.booleans(),
    st.sampled_from([1, 7]),
    st.sampled_from(["\n", "\r\n", "\n\n"]),
    st.booleans(),
    st.booleans(),
)
def test_both_paths_read_the_same_rows(
    table: list[list[str]],
    label_above: float | None,
    drop: bool,
    first_line: int,
    end: str,
    plain: bool,
    text: bool,
) -> None:
    """Whatever the text, the compiled path gives the rows, or the error, that Python gives."""
    if plain:  # otherwise nearly every table has something in it that Python has to read
        table = [
            [
                ("red", " 7 ", "NA")[i % 3] if text else str(i % 3),
                *(c if c.strip().isalnum() else "" for c in row[1:3]),
                "0.25",
            ]
            for i, row in enumerate(table)
        ]
    file_format = CsvFormat(
        n_columns=4,
        has_header=True,
        label=CsvColumn(index=0, name="y"),
        numeric=(CsvColumn(index=3, name="n"),),
        categorical=(CsvColumn(index=1, name="ä"), CsvColumn(index=2, name="c")),
        hash_features=7,
        label_above=None if text else label_above,
        text_labels=text,
        drop_missing_labels=drop,
        na_values=("", "NA", "nan", "-999"),
    )
    data = "".join(",".join(row) + end for row in table).encode()
    slow = parsed(CsvParser("f", file_format, LabelNames()), data, first_line)
    fast = parsed(FastCsvParser("f", file_format, LabelNames()), data, first_line)
    if isinstance(slow, str) or isinstance(fast, str):
        assert slow == fast
        return
    for mine, theirs in zip((*fast.to_csr(), fast.labels), (*slow.to_csr(), slow.labels), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_numbers_that_stand_for_no_value(tmp_path: Path) -> None:
    """What na_values lists is no value, even if it reads as a number and all cells of the column do."""
    path = tmp_path / "a.csv"
    path.write_text("1,-999\n0,5\n")
    with_value = load_csv(path, tmp_path / "ds", numeric=[1], na_values=["-999"], header=False, shuffle=False)
    X, _, _ = with_value.to_csr()
    assert X[0, 0] == 0
    assert X[1, 0] == 5
    assert X[0].nnz == 1


def criteo(part: str, folder: Path) -> Dataset:
    """A part of the real Criteo rows."""
    return load_csv(REAL / "criteo" / f"{part}.csv.gz", folder / part, random_state=0, **CRITEO)


@pytest.mark.skipif(not (REAL / "criteo").is_dir(), reason="the real Criteo rows are not there")
def test_a_model_of_real_clicks_beats_the_base_rate(tmp_path: Path) -> None:
    """Trained on 7,200 rows of Criteo, the log loss on the 800 held-out rows is below the base rate's."""
    columns = {"numeric": (), "categorical": range(1, 40), "sep": "\t", "header": False}
    both = tmp_path / "held-out.tsv"
    both.write_bytes(
        b"".join(gzip.decompress((REAL / "criteo" / f"{p}.csv.gz").read_bytes()) for p in ("dev", "test"))
    )
    train = load_csv(REAL / "criteo" / "train.csv.gz", tmp_path / "train", random_state=0, **columns)
    held_out = load_csv(both, tmp_path / "held-out", random_state=0, **columns)
    assert (train.n_rows, held_out.n_rows) == (7200, 800)
    est = LogisticRegression(backend="inline", random_state=0, epochs=3, n_workers=1).fit(train)
    X, y, _ = held_out.to_csr()
    p = np.clip(est.predict_proba(X)[:, 1], 1e-6, 1 - 1e-6)
    base = np.average(train.to_csr()[1])
    loss = -np.mean(y * np.log(p) + (1 - y) * np.log1p(-p))
    base_loss = -np.mean(y * np.log(base) + (1 - y) * np.log1p(-base))
    assert loss < base_loss - 0.02


@pytest.mark.skipif(not (REAL / "criteo").is_dir(), reason="the real Criteo rows are not there")
def test_missing_values_of_real_clicks_are_marked(tmp_path: Path) -> None:
    """Each empty cell of the 7,200 rows sets the mark of its column, and no other cell does."""
    path = REAL / "criteo" / "train.csv.gz"
    rows = [line.split("\t") for line in gzip.decompress(path.read_bytes()).decode().splitlines()]
    X, _, _ = load_csv(path, tmp_path / "ds", hash_features=2**24, shuffle=False, **CRITEO).to_csr()
    n_missing = 0
    for k in range(1, 40):
        is_empty = np.array([not row[k].strip() for row in rows])
        mark = 13 + mmh3.hash(f"column {k}=missing", signed=False) % 2**24
        np.testing.assert_array_equal(X[:, [mark]].toarray().ravel() != 0, is_empty)
        n_missing += is_empty.sum()
    assert n_missing > 10_000


@pytest.mark.skipif(not (REAL / "avazu").is_dir(), reason="the real Avazu rows are not there")
def test_a_model_of_many_real_files_beats_the_base_rate(tmp_path: Path) -> None:
    """Trained on Avazu's rows, the log loss on those of two other files is below the base rate's."""
    with gzip.open(REAL / "avazu" / "train.csv.gz", "rt") as file:
        head = file.readline()
    for part in ("dev", "test"):  # which have no header of their own
        text = gzip.decompress((REAL / "avazu" / f"{part}.csv.gz").read_bytes())
        (tmp_path / f"{part}.csv.gz").write_bytes(gzip.compress(head.encode() + text))
    names = head.strip().split(",")
    columns: dict[str, Any] = {"label": "click", "categorical": names[3:], "random_state": 0}
    train = load_csv(REAL / "avazu" / "train.csv.gz", tmp_path / "train", **columns)
    held_out = load_csv(tmp_path / "*.csv.gz", tmp_path / "held-out", **columns)
    assert held_out.n_rows > 800
    est = LogisticRegression(backend="inline", random_state=0, epochs=3, n_workers=1).fit(train)
    X, y, _ = held_out.to_csr()
    p = np.clip(est.predict_proba(X)[:, 1], 1e-6, 1 - 1e-6)
    base = np.average(train.to_csr()[1])
    loss = -np.mean(y * np.log(p) + (1 - y) * np.log1p(-p))
    assert loss < -np.mean(y * np.log(base) + (1 - y) * np.log1p(-base))


@pytest.mark.skipif(not (REAL / "avazu").is_dir(), reason="the real Avazu rows are not there")
def test_real_rows_with_a_header(tmp_path: Path) -> None:
    """Avazu's rows load by the names of their columns."""
    path = REAL / "avazu" / "train.csv.gz"
    with gzip.open(path, "rt") as file:
        names = file.readline().strip().split(",")
        n_rows = sum(1 for _ in file)
    data = load_csv(path, tmp_path / "ds", label="click", categorical=names[2:])
    assert data.n_rows == n_rows
    assert data.manifest.label_values == (0.0, 1.0)
