"""Ratings and bags of words: what is read, what is refused, and that ids and words are kept."""

from __future__ import annotations

import gzip
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cirrus
from cirrus.chunks.vocabulary import Vocabulary, canonical_number, union_of
from cirrus.client_backend.load_tasks import LoadSizes
from cirrus.client_backend.loader import LoadOptions, load_ratings_files, load_words_files
from cirrus.client_backend.ratings import RatingsFormat
from cirrus.errors import ConfigError, CorruptDataError, DataError, NotFoundError
from cirrus.frontend.datasets import Dataset
from cirrus.frontend.loading import load_ratings_like
from cirrus.storage import open_store

DATA = Path(__file__).parent.parent.parent / "shared" / "data"

#: Sizes at which a file of some 100 kB takes the paths of a large one.
SMALL = LoadSizes(segment_bytes=3_000, bucket_text_bytes=9_000, bucket_bytes=6_000)


def small_ratings(path: Path, url: Path, **options: Any) -> Dataset:
    """Load ratings in small pieces."""
    how = RatingsFormat(sep=options.pop("sep", ","))
    store = open_store(url)
    return Dataset(
        store.url,
        load_ratings_files(str(path), store, how=how, options=LoadOptions(sizes=SMALL, **options)),
    )


def ratings_of(dataset: Dataset) -> list[tuple[Any, Any, float]]:
    """The ratings with their ids, by the rule of the documentation."""
    users, items = dataset.vocabulary("users"), dataset.vocabulary("items")
    X, y, _ = dataset.to_csr()
    assert (np.diff(X.indptr) == 2).all()
    assert (X.data == 1).all()
    pairs = X.indices.reshape(-1, 2)
    n_users = dataset.manifest.encoding["n_users"]
    return [
        (users[u], items[i - n_users], float(r)) for (u, i), r in zip(pairs.tolist(), y.tolist(), strict=True)
    ]


# Vocabularies.


@given(st.lists(st.one_of(st.integers(-(2**63), 2**63 - 1)), unique=True))
def test_numbers_keep_their_order_and_are_found(ids: list[int]) -> None:
    """A vocabulary of numbers reads back from bytes in its order, and knows the number of each id."""
    vocabulary = Vocabulary.from_bytes(Vocabulary.of(ids).to_bytes())
    assert vocabulary.ids() == ids
    assert vocabulary.codes(np.array(ids, np.int64)).tolist() == list(range(len(ids)))
    assert vocabulary.codes([str(name) for name in ids]).tolist() == list(range(len(ids)))


names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)


@given(st.lists(names, unique=True, min_size=1), st.lists(names))
def test_text_keeps_its_order_and_is_found(ids: list[str], others: list[str]) -> None:
    """A vocabulary of text reads back in its order; what is not in it has the number -1."""
    vocabulary = Vocabulary.from_bytes(Vocabulary.of(ids).to_bytes())
    assert vocabulary.ids() == ids
    assert [vocabulary[k] for k in range(len(vocabulary))] == ids
    assert vocabulary.codes(ids).tolist() == list(range(len(ids)))
    expected = [ids.index(name) if name in ids else -1 for name in others]
    assert vocabulary.codes(others).tolist() == expected if others else True
    assert union_of([Vocabulary.of(ids), vocabulary]).ids() == sorted(ids)


def test_numbers_and_their_text_are_the_same() -> None:
    """An id is found as a number and as its text, but not in another spelling, and NaN is nobody."""
    numbers, text = Vocabulary.of([3, 10]), Vocabulary.of(["3", "10", "x"])
    for vocabulary in (numbers, text):
        assert vocabulary.codes(["10", "03", "y"]).tolist() == [1, -1, -1]
        assert vocabulary.codes([10, 4]).tolist() == [1, -1]
        assert vocabulary.codes([10.0, 10.5, np.nan]).tolist() == [1, -1, -1]
    assert [canonical_number(t) for t in ("7", "-7", "07", "+7", "7.0", "9" * 30, "-0")] == [
        7,
        -7,
        None,
        None,
        None,
        None,
        None,
    ]


@given(st.binary(max_size=60), st.integers(0, 200), st.integers(0, 255))
def test_damaged_vocabularies_are_refused(noise: bytes, at: int, byte: int) -> None:
    """Bytes that are no vocabulary, or a changed one, are a CorruptDataError."""
    with pytest.raises(CorruptDataError):
        Vocabulary.from_bytes(noise)
    for good in (Vocabulary.of(["ab", "cde"]).to_bytes(), Vocabulary.of([1, 5]).to_bytes()):
        bad = bytearray(good)
        bad[at % len(bad)] = byte
        if bytes(bad) != good:
            try:
                found = Vocabulary.from_bytes(bytes(bad))
            except CorruptDataError:
                continue
            assert at % len(bad) in (6, 7), found.ids()  # which nothing is kept in


# Ratings.


@pytest.mark.parametrize("n_processes", [1, 2])
@pytest.mark.parametrize("kind", ["numbers", "text"])
def test_ratings_keep_their_ids(tmp_path: Path, kind: str, n_processes: int) -> None:
    """Every rating comes back with the ids that it was written with, in order, whoever read it."""
    rng = random.Random(0)
    rows = [(rng.randrange(400), rng.randrange(10**6), rng.randrange(1, 11) / 2) for _ in range(2000)]
    named: list[tuple[Any, Any, float]] = list(rows)
    if kind == "text":
        named = [(f"user {u}", f"é{i}", r) for u, i, r in rows]
    path = tmp_path / "ratings.csv"
    path.write_text("".join(f"{u},{i},{r},881250949\n" for u, i, r in named))
    dataset = small_ratings(path, tmp_path / "d", shuffle=False, n_processes=n_processes)
    assert ratings_of(dataset) == named
    users = sorted({row[0] for row in named})
    assert dataset.vocabulary("users").ids() == users
    assert dataset.n_features == len(users) + len({row[1] for row in named})
    mixed = small_ratings(path, tmp_path / "e", random_state=1, n_processes=n_processes)
    assert sorted(ratings_of(mixed)) == sorted(named)
    assert ratings_of(mixed) != named


def test_ids_are_text_if_one_of_them_is(tmp_path: Path) -> None:
    """In a column with one id that is no number, all are text; the other column is its own affair."""
    path = tmp_path / "r.csv"
    path.write_text("".join(f"{i % 50},{i},1\n" for i in range(1000)) + "bob,7,2\n07,7,3\n")
    dataset = small_ratings(path, tmp_path / "d", shuffle=False)
    found = ratings_of(dataset)
    assert found[0] == ("0", 0, 1)
    assert found[-2:] == [("bob", 7, 2), ("07", 7, 3)]
    assert dataset.vocabulary("users").ids()[:3] == ["0", "07", "1"]
    assert dataset.vocabulary("items").ids() == list(range(1000))


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("user,item,rating\na,x,1\nb,y,2.5\n", {}),
        ("a,x,1\nb,y,2.5\n", {}),
        ("a,x,1\nb,y,2.5\n", {"header": False}),
        ("9,8,7\na,x,1\nb,y,2.5\n", {"header": True}),
        ("a\tx\t1\t99\nb\ty\t2.5\t98\n", {"sep": "\t"}),
        ("a::x::1::99\nb::y::2.5::98\n", {"sep": "::"}),
        ('"a",x,1\r\n\r\nb,"y",2.5', {}),
    ],
)
def test_forms_of_ratings(tmp_path: Path, text: str, options: dict[str, Any]) -> None:
    """Headers, separators of several characters, quotation marks, timestamps and blank lines are read."""
    path = tmp_path / "r.csv"
    path.write_bytes(text.encode())
    dataset = cirrus.load_ratings(path, tmp_path / "d", shuffle=False, **options)
    assert ratings_of(dataset) == [("a", "x", 1), ("b", "y", 2.5)]


BAD_RATINGS = {
    "a,x,1\nb,y\n": r"r\.csv:2: has 2 columns, not user, item, rating",
    "a,x,1\n\nb,y,z\n": r"r\.csv:3: rating 'z' is not a number",
    "u,i,r\na,x,1\nb,y,nan\n": r"r\.csv:3: rating 'nan' is not finite",
    "a,x,\nb,y,1\n": r"r\.csv:1: rating '' is not a number",
    "a,x,1\nb,y,1e39\n": r"r\.csv:2: rating '1e39' is not finite",
    "a,x,1\n,y,1\n": r"r\.csv:2: user: there is none",
    "a,x,1\nb, ,1\n": r"r\.csv:2: item: there is none",
    "a,x,1\nb,y\0,1\n": r"r\.csv:2: item: 'y\\x00' is no id",
    "a,x,1\n" + "b" * 300 + ",y,1\n": r"r\.csv:2: user: 'bbb.*is no id",
    'a,x,1\nb,"y,1\n': r"r\.csv:2: is not proper CSV",
    "a,x,1\nb,\udcff,1\n": r"r\.csv:2: is not UTF-8",
    "user,item,rating\n": "no rows",
}


@pytest.mark.parametrize("text", BAD_RATINGS, ids=range(len(BAD_RATINGS)))
def test_bad_ratings_are_one_error_that_names_the_line(tmp_path: Path, text: str) -> None:
    """Whatever is wrong with ratings, the message names file and line, and nothing is stored."""
    path = tmp_path / "r.csv"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=BAD_RATINGS[text]):
        cirrus.load_ratings(path, tmp_path / "d")
    assert open_store(tmp_path / "d").list() == []


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("a,7\nb,8,5\nc,9,,99\n", {}),
        ("a,7,good\nb,8,bad\nc,9,\n", {"header": "no"}),
        ("user,item\na,7\nb,8\nc,9\n", {"header": "yes"}),
        ("user,item,rating\na,7,1\nb,8\nc,9\n", {}),
        ("a;7\nb;8\nc;9\n", {"sep": ";"}),
    ],
)
def test_pairs_need_no_rating_to_be_predicted(tmp_path: Path, text: str, options: dict[str, Any]) -> None:
    """Lines may end behind the item, what comes there is read over, and all ratings are 0."""
    path = tmp_path / "r.csv"
    path.write_text(text)
    dataset = load_ratings_like(path, tmp_path / "d", {"format": "ratings", **options})
    assert ratings_of(dataset) == [("a", 7, 0), ("b", 8, 0), ("c", 9, 0)]
    with pytest.raises(DataError, match=r"r\.csv:\d: (has \d columns,|rating)"):
        load_ratings_like(path, tmp_path / "e", {"format": "ratings", **options}, with_labels=True)


def test_names_of_pairs_are_told_by_the_numbers_below(tmp_path: Path) -> None:
    """Without a rating a first line of two names is a header where numbers follow, and else a pair."""
    path = tmp_path / "r.csv"
    for text, n_rows in (("user,item\n1,7\n", 1), ("user,item\na,7\n", 2), ("1,7\n2,8\n", 2), ("a,b\n", 1)):
        path.write_text(text)
        assert load_ratings_like(path, tmp_path / "d", {"format": "ratings"}).n_rows == n_rows
    path.write_text("a\n1,2\n")
    with pytest.raises(DataError, match=r"r\.csv:1: has 1 column, not user, item, and perhaps"):
        load_ratings_like(path, tmp_path / "d", {"format": "ratings"})
    with pytest.raises(ConfigError, match="encoding"):
        load_ratings_like(path, tmp_path / "d", {"format": "csv"})


def test_parameters_of_ratings(tmp_path: Path) -> None:
    """A wrong parameter is named."""
    for options in ({"sep": ""}, {"sep": '"'}, {"header": "maybe"}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            cirrus.load_ratings(tmp_path / "r.csv", tmp_path / "d", **options)  # type: ignore[arg-type]


def test_parts_of_ratings_keep_the_ids(tmp_path: Path) -> None:
    """Splits and rewritten datasets have the vocabularies of the whole, and a replaced one's are removed."""
    path = tmp_path / "r.csv"
    path.write_text("".join(f"u{i % 50},{i % 77},{i % 5}\n" for i in range(1000)))
    dataset = cirrus.load_ratings(path, tmp_path / "d", random_state=0)
    train, test = dataset.split(0.2)
    assert sorted(ratings_of(train) + ratings_of(test)) == sorted(ratings_of(dataset))
    same = dataset.map_chunks(lambda block: block, tmp_path / "same", backend="inline")
    assert ratings_of(same) == ratings_of(dataset)
    path.write_text("a,b,1\nc,d,2\n")
    again = cirrus.load_ratings(path, tmp_path / "d")
    keys = {part.key for part in (*again.manifest.chunks, *again.manifest.vocabularies)}
    assert set(open_store(tmp_path / "d").list()) == {"manifest.json", *keys}
    with pytest.raises(NotFoundError, match="has no vocabulary 'words'; it has users, items"):
        again.vocabulary("words")
    key = again.manifest.vocabularies[0].key
    open_store(tmp_path / "d").put(key, b"changed")
    with pytest.raises(CorruptDataError, match="checksum"):
        again.vocabulary("users")


def test_the_fingerprint_covers_the_ids(tmp_path: Path) -> None:
    """The same ratings of other users are other data."""
    prints = set()
    for user in "ab":
        (tmp_path / "r.csv").write_text(f"{user},x,1\n")
        prints.add(cirrus.load_ratings(tmp_path / "r.csv", tmp_path / "d").manifest.fingerprint)
    assert len(prints) == 2


@pytest.mark.skipif(not DATA.exists(), reason="needs ../shared/data")
def test_movielens(tmp_path: Path) -> None:
    """The real 100,000 ratings load with all their ids."""
    path = DATA / "movielens-100k" / "u.data.gz"
    dataset = cirrus.load_ratings(path, tmp_path / "d", sep="\t", shuffle=False)
    rows = [line.split("\t") for line in gzip.decompress(path.read_bytes()).decode().splitlines()]
    assert ratings_of(dataset) == [(int(u), int(i), float(r)) for u, i, r, _ in rows]
    assert dataset.manifest.encoding["n_users"] == 943
    assert dataset.manifest.encoding["n_items"] == 1682


# Bags of words.


def small_words(path: Path, url: Path, kind: str, vocabulary: Path | None = None, **options: Any) -> Dataset:
    """Load documents in small pieces."""
    store = open_store(url)
    manifest = load_words_files(
        str(path),
        store,
        kind=kind,
        vocabulary=None if vocabulary is None else str(vocabulary),
        options=LoadOptions(sizes=SMALL, **options),
    )
    return Dataset(store.url, manifest)


def documents(n: int) -> list[dict[int, int]]:
    """Documents of a few words each."""
    rng = random.Random(n)
    return [dict(Counter(rng.randrange(300) for _ in range(rng.randrange(1, 30)))) for _ in range(n)]


def documents_of(dataset: Dataset) -> list[dict[int, int]]:
    """The documents as they were written."""
    X, y, _ = dataset.to_csr()
    assert not y.any()
    return [
        dict(zip(X.indices[a:b].tolist(), X.data[a:b].astype(int).tolist(), strict=True))
        for a, b in zip(X.indptr[:-1], X.indptr[1:], strict=True)
    ]


def ldac(docs: list[dict[int, int]]) -> str:
    """Documents in Blei's format, in any order of words."""
    return "".join(f"{len(doc)} " + " ".join(f"{w}:{c}" for w, c in doc.items()) + "\n" for doc in docs)


def docword(docs: list[dict[int, int]]) -> str:
    """Documents in the format of UCI."""
    lines = [f"{d} {w + 1} {c}\n" for d, doc in enumerate(docs, start=1) for w, c in doc.items()]
    return f"{len(docs)}\n300\n{len(lines)}\n" + "".join(lines)


@pytest.mark.parametrize("n_processes", [1, 2])
@pytest.mark.parametrize("kind", ["ldac", "docword"])
def test_documents_come_back_as_they_were(tmp_path: Path, kind: str, n_processes: int) -> None:
    """Documents of both formats read back in order and whole, also where a segment ends within one."""
    docs = documents(400)
    path = tmp_path / "docs"
    path.write_text(ldac(docs) if kind == "ldac" else docword(docs))
    dataset = small_words(path, tmp_path / "d", kind, shuffle=False, n_processes=n_processes)
    assert documents_of(dataset) == [dict(sorted(doc.items())) for doc in docs]
    assert dataset.n_features == (300 if kind == "docword" else max(w for doc in docs for w in doc) + 1)
    mixed = small_words(path, tmp_path / "e", kind, random_state=1, n_processes=n_processes)
    key = sorted(sorted(doc.items()) for doc in docs)
    assert sorted(sorted(doc.items()) for doc in documents_of(mixed)) == key


def test_words_are_kept(tmp_path: Path) -> None:
    """A vocabulary is kept in its own order, and its length is the number of features."""
    (tmp_path / "words").write_text("zebra\nape\n日本\nunused\n")
    (tmp_path / "docs").write_text("2 0:3 2:1\n0\n1 1:2\n")
    dataset = cirrus.load_bag_of_words(
        tmp_path / "docs", tmp_path / "d", vocabulary=tmp_path / "words", shuffle=False
    )
    assert dataset.vocabulary("words").ids() == ["zebra", "ape", "日本", "unused"]
    assert dataset.n_features == 4
    assert documents_of(dataset) == [{0: 3, 2: 1}, {}, {1: 2}]
    assert dataset.vocabulary("words").codes(["日本", "none"]).tolist() == [2, -1]


BAD_WORDS = {
    ("ldac", "1 0:1\nx 0:1\n"): r"docs:2: 'x' is not the number of terms",
    ("ldac", "1 0:1\n2 0:1\n"): r"docs:2: has another number of terms than '2'",
    ("ldac", "1 0:1\n1 0\n"): r"docs:2: '0' is not TERM:COUNT",
    ("ldac", "1 0:1\n1 0:1.5\n"): r"docs:2: '0:1\.5' is not TERM:COUNT",
    ("ldac", "1 0:1\n\n1 0:0\n"): r"docs:3: the count in '0:0'",
    ("ldac", "1 0:99999999999999999999999\n"): r"docs:1: the count in",
    ("ldac", "1 99999999999999999999999:1\n"): r"docs:1: the word in .* is beyond",
    ("docword", "1\n5\n1\n1 6 1\n"): r"docs:4: the word in '6' is beyond the 5 words",
    ("docword", "1\n5\n1\n2 1 1\n"): r"docs:4: '2' is not one of the documents",
    ("docword", "2\n5\n2\n2 1 1\n1 1 1\n"): r"docs:5: document '1' comes after a later one",
    ("docword", "1\n5\n1\n1 1\n"): r"docs:4: '1 1' does not begin DOCUMENT WORD COUNT",
    ("docword", "1\n5\n1\n1 1 1 1\n"): r"docs:4: '1 1 1 1' does not begin",
    ("docword", "1\n5\n1\n1 0 1\n"): r"docs:4: the word in '0' is beyond",
    ("docword", "1\n5\n1\n1 1 0\n"): r"docs:4: the count in '0'",
    ("docword", "1\n5\n3\n1 1 1\n"): r"docs:3: the header says 3 entries, there are 1",
    ("docword", "1\nx\n3\n1 1 1\n"): r"docs:2: 'x' is not the number of words",
    ("docword", "1\n5\n"): r"docs:3: '' is not the number of entries",
    ("docword", "1\n0\n3\n"): r"docs:2: 0 words cannot be",
}


@pytest.mark.parametrize(("kind", "text"), BAD_WORDS, ids=range(len(BAD_WORDS)))
def test_bad_documents_are_one_error_that_names_the_line(tmp_path: Path, kind: Any, text: str) -> None:
    """Whatever is wrong with documents, the message names file and line, and nothing is stored."""
    (tmp_path / "docs").write_text(text)
    with pytest.raises(DataError, match=BAD_WORDS[kind, text]):
        cirrus.load_bag_of_words(tmp_path / "docs", tmp_path / "d", kind)
    assert open_store(tmp_path / "d").list() == []


def test_documents_out_of_order_are_found_in_large_files(tmp_path: Path) -> None:
    """A document whose lines come in two places is refused, though they are read in different segments."""
    docs = [{w: 1 for w in range(200)} for _ in range(10)]
    lines = docword(docs).splitlines()
    lines.append("1 1 1")
    lines[2] = str(len(lines) - 3)
    (tmp_path / "docs").write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"docs:\d{4}: document '1' comes after a later one"):
        small_words(tmp_path / "docs", tmp_path / "d", "docword")


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("a\n\nb\n", r"words:2: is no word"),
        ("a\nb\na\n", r"words:3: 'a' is in line 1 too"),
        ("a\n", r"docs:1: the word in '1:1' is beyond the 1 words"),
        ("", "is empty"),
    ],
)
def test_vocabularies_that_do_not_fit(tmp_path: Path, words: str, problem: str) -> None:
    """A vocabulary with an empty or repeated word, or with too few, is refused by place."""
    (tmp_path / "words").write_text(words)
    (tmp_path / "docs").write_text("1 1:1\n")
    with pytest.raises(DataError, match=problem):
        cirrus.load_bag_of_words(tmp_path / "docs", tmp_path / "d", vocabulary=tmp_path / "words")
    with pytest.raises(ConfigError, match="format"):
        cirrus.load_bag_of_words(tmp_path / "docs", tmp_path / "d", "csv")  # type: ignore[arg-type]
    (tmp_path / "docs").write_text("1\n5\n1\n1 1 1\n")
    (tmp_path / "words").write_text("a\nb\n")
    with pytest.raises(DataError, match="its header says 5 words, the vocabulary has 2"):
        cirrus.load_bag_of_words(tmp_path / "docs", tmp_path / "d", "docword", vocabulary=tmp_path / "words")


@pytest.mark.skipif(not DATA.exists(), reason="needs ../shared/data")
def test_reuters(tmp_path: Path) -> None:
    """The real 395 articles load with their 4,258 words."""
    folder = DATA / "reuters"
    dataset = cirrus.load_bag_of_words(
        folder / "reuters.ldac.gz", tmp_path / "d", vocabulary=folder / "reuters.tokens.gz", shuffle=False
    )
    assert (dataset.n_rows, dataset.n_features) == (395, 4258)
    lines = gzip.decompress((folder / "reuters.ldac.gz").read_bytes()).decode().splitlines()
    expected = [{int(t.split(":")[0]): int(t.split(":")[1]) for t in line.split()[1:]} for line in lines]
    assert documents_of(dataset) == [dict(sorted(doc.items())) for doc in expected]
    assert dataset.vocabulary("words")[0] == "church"
