"""Text for Vowpal Wabbit: what is read, how it is hashed and paired, and what is refused."""

from __future__ import annotations

import itertools
import struct
from pathlib import Path
from typing import Any

import mmh3
import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

import cirrus
from cirrus.client_backend.vw import VwParser
from cirrus.client_backend.vw_format import VwFormat
from cirrus.errors import ConfigError, DataError
from cirrus.frontend.loading import load_vw_like
from cirrus.storage import open_store

COLUMNS = 2**10


def column(namespace: str, feature: str) -> int:
    """Where a feature goes, by the rule of the documentation."""
    return int(mmh3.hash(f"{namespace}^{feature}", signed=False)) % COLUMNS


def pair(one: tuple[str, str], other: tuple[str, str]) -> int:
    """Where a pair of features goes, by the rule of the documentation."""
    hashes = [mmh3.hash(f"{namespace}^{feature}", signed=False) for namespace, feature in (one, other)]
    return int(mmh3.hash(struct.pack("<II", *hashes), signed=False)) % COLUMNS


def dense(*entries: tuple[int, float]) -> np.ndarray[Any, Any]:
    """A row with these values added up."""
    row = np.zeros(COLUMNS)
    for where, value in entries:
        row[where] += value
    return row


def load(tmp_path: Path, text: str, **options: Any) -> tuple[Any, ...]:
    """Load a text, in order."""
    (tmp_path / "x.vw").write_text(text)
    dataset = cirrus.load_vw(
        tmp_path / "x.vw", tmp_path / "d", hash_features=COLUMNS, shuffle=False, **options
    )
    X, y, weights = dataset.to_csr()
    return X.toarray(), y, weights


def test_what_a_line_may_look_like(tmp_path: Path) -> None:
    """Labels, weights, bases, tags, namespaces with a scale, values, text values and comments are read."""
    rows, labels, weights = load(
        tmp_path,
        "1 2.5 'tag|user:2 age:3 vip |ad red size:0.5\n"
        "# a comment\n\n"
        "-1 tagged| plain plain:2\r\n"
        "0.5 1 0 't|a x:y x:nancy\n"
        "3\n"
        "+1 |a |b z\t|  y\n",
    )
    expected = [
        dense(
            (column("user", "age"), 6),
            (column("user", "vip"), 2),
            (column("ad", "red"), 1),
            (column("ad", "size"), 0.5),
        ),
        dense((column("", "plain"), 3)),
        dense((column("a", "x:y"), 1), (column("a", "x:nancy"), 1)),
        dense(),
        dense((column("b", "z"), 1), (column("", "y"), 1)),
    ]
    np.testing.assert_allclose(rows, expected)
    assert labels.tolist() == [1, -1, 0.5, 3, 1]
    assert weights.tolist() == [2.5, 1, 1, 1, 1]


def test_weights_that_are_all_one_are_none(tmp_path: Path) -> None:
    """Without importance weights the dataset has none."""
    assert load(tmp_path, "1 |a x\n0 1.0 |a y\n")[2] is None


def test_interactions_pair_features(tmp_path: Path) -> None:
    """``ab`` pairs each feature of a namespace in a with each in b, by product; others stay alone."""
    rows, _, _ = load(tmp_path, "1 |alpha p:2 q |beta x:3 |c z\n0 |c z\n", interactions=["ab"])
    p, q, x, z = ("alpha", "p"), ("alpha", "q"), ("beta", "x"), ("c", "z")
    alone = [(column(*p), 2), (column(*q), 1), (column(*x), 3), (column(*z), 1)]
    np.testing.assert_allclose(rows[0], dense(*alone, (pair(p, x), 6), (pair(q, x), 3)))
    np.testing.assert_allclose(rows[1], dense((column(*z), 1)))


def test_interactions_within_a_namespace_and_with_all(tmp_path: Path) -> None:
    """Within one namespace pairs count once, and squares of values that are not 1; ``:`` is any."""
    text = "1 |a p:2 q |b x\n"
    p, q, x = ("a", "p"), ("a", "q"), ("b", "x")
    alone = [(column(*p), 2), (column(*q), 1), (column(*x), 1)]
    rows, _, _ = load(tmp_path, text, interactions=["aa"])
    np.testing.assert_allclose(rows[0], dense(*alone, (pair(p, p), 4), (pair(p, q), 2)))
    rows, _, _ = load(tmp_path, text, interactions=["::"])
    everything = [(pair(p, p), 4), (pair(p, q), 2), (pair(p, x), 2), (pair(q, x), 1)]
    np.testing.assert_allclose(rows[0], dense(*alone, *everything))
    rows, _, _ = load(tmp_path, text, interactions=["b:"])
    np.testing.assert_allclose(rows[0], dense(*alone, (pair(x, p), 2), (pair(x, q), 1)))


features = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("pqrs"), st.integers(1, 3)), max_size=8)


@settings(max_examples=60)
@given(
    st.lists(features, min_size=1, max_size=5),
    st.lists(st.sampled_from(["ab", "aa", "b:", "::", "cc"]), unique=True),
)
def test_the_kernels_agree_with_python(rows: list[list[tuple[str, str, int]]], pairs: list[str]) -> None:
    """Rows and pairs are those that a few lines of Python make of the same text."""
    text = "".join("1 " + " ".join(f"|{n} {f}:{v}" for n, f, v in row) + "\n" for row in rows)
    parser = VwParser("x", VwFormat(hash_features=COLUMNS, interactions=tuple(pairs)))
    found, facts = parser.parse(text.encode(), 1)
    assert facts.n_rows == len(rows)
    values = np.ones(found.indices.size) if found.values is None else found.values
    X = scipy.sparse.csr_array(
        (values, found.indices, np.cumsum([0, *found.lengths])), shape=(len(rows), COLUMNS)
    )
    for k, row in enumerate(rows):
        entries = [(column(n, f), float(v)) for n, f, v in row]
        for a, b in pairs:
            seen = set()
            for (i, one), (j, other) in itertools.product(enumerate(row), enumerate(row)):
                if a not in (":", one[0]) or b not in (":", other[0]) or frozenset((i, j)) in seen:
                    continue
                seen.add(frozenset((i, j)))
                if i != j or one[2] != 1:
                    first, second = one, other
                    if a in (":", other[0]) and b in (":", one[0]) and j < i:
                        first, second = other, one
                    entries.append((pair(first[:2], second[:2]), float(one[2] * other[2])))
        np.testing.assert_allclose(X[[k]].toarray()[0], dense(*entries))


BAD = {
    "1 |a x\nx |a x\n": r"x\.vw:2: label 'x' is not a finite number",
    "1 |a x\nnan |a x\n": r"x\.vw:2: label 'nan'",
    "1:2:3 |a x\n": r"x\.vw:1: label '1:2:3'",
    "1 -2 |a x\n": r"x\.vw:1: importance weight '-2'",
    "1 1 0.5 |a x\n": r"x\.vw:1: the prediction to begin from, '0\.5', is not supported",
    "1 1 0 z z|a x\n": r"x\.vw:1: 'z' comes behind label",
    "1 |a x\n\n|a x\n": r"x\.vw:3: there is no label",
    "1|a x\n": r"x\.vw:1: there is no label",
    "1 |a:x y\n": r"x\.vw:1: the scale of namespace 'a:x'",
    "1 |a y:1e39\n": r"x\.vw:1: the value of 'y:1e39' is not finite",
    "1 |a y:nan\n": r"x\.vw:1: the value of 'y:nan' is not finite",
    "1 |a y:-Infinity\n": r"x\.vw:1: the value of 'y:-Infinity' is not finite",
    "1 |a x :3\n": r"x\.vw:1: ':3' is a value without a feature",
    "1 |a x\n1 |a y:1e30 |b z:1e30\n": r"x\.vw:2: the product of two values is not finite",
    "1 |a x\n1 |a "
    + "x " * 1500
    + "|b "
    + "y " * 1500
    + "\n": r"x\.vw:2: interactions make more than 2\*\*20",
    "\n# nothing\n": "no rows",
}


@pytest.mark.parametrize("text", BAD, ids=range(len(BAD)))
def test_a_bad_line_is_one_error_that_names_it(tmp_path: Path, text: str) -> None:
    """Whatever is wrong with a line, the message names file and line, and nothing is stored."""
    with pytest.raises(DataError, match=BAD[text]):
        load(tmp_path, text, interactions=["ab"])
    assert open_store(tmp_path / "d").list() == []


def test_rows_without_a_label(tmp_path: Path) -> None:
    """Rows without a label are dropped if that is wanted; to be predicted, they are read as they are."""
    text = "1 |a x\n|a y\n'tag |a z\n0 |a x\n"
    _, labels, _ = load(tmp_path, text, missing_label="drop")
    assert labels.tolist() == [1, 0]
    encoding = cirrus.Dataset.open(tmp_path / "d").manifest.encoding
    rows = load_vw_like(tmp_path / "x.vw", tmp_path / "e", encoding)
    assert rows.n_rows == 4
    with pytest.raises(DataError, match=r"x\.vw:2: there is no label"):
        load_vw_like(tmp_path / "x.vw", tmp_path / "e", encoding, with_labels=True)
    with pytest.raises(ConfigError, match="encoding"):
        load_vw_like(tmp_path / "x.vw", tmp_path / "e", {"format": "csv"})


@pytest.mark.parametrize(
    "options",
    [
        {"interactions": "ab"},
        {"interactions": ["abc"]},
        {"interactions": ["a|"]},
        {"interactions": ["ab", "ba"]},
        {"hash_features": 0},
        {"hash_features": 2**32},
        {"missing_label": "ignore"},
    ],
)
def test_parameters_that_cannot_work(tmp_path: Path, options: dict[str, Any]) -> None:
    """A wrong parameter is named."""
    with pytest.raises(ConfigError, match=next(iter(options))):
        cirrus.load_vw(tmp_path / "x.vw", tmp_path / "d", **options)
