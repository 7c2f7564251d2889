"""What loaders read and write: compressed files, standard input, strange bytes, a place that is taken."""

from __future__ import annotations

import bz2
import functools
import gzip
import io
import lzma
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lz4.frame
import numpy as np
import pytest
import scipy.sparse
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cirrus.chunks import BlockBuilder, ChunkWriter, commit_dataset, new_chunk_prefix
from cirrus.client_backend.csv_format import CsvRequest
from cirrus.client_backend.load_tasks import LoadSizes
from cirrus.client_backend.loader import LoadOptions, load_csv_file, load_words_files
from cirrus.client_backend.segments import MAX_LINE_BYTES
from cirrus.errors import ConflictError, DataError
from cirrus.frontend.datasets import Dataset, load_arrays, load_csv, load_svmlight
from cirrus.frontend.loading import load_bag_of_words, load_ratings, load_vw
from cirrus.storage import open_store

Loader = Callable[[Path, str], Dataset]

LOADERS: dict[str, Loader] = {
    "svmlight": lambda path, url: load_svmlight(path, url, shuffle=False),
    "csv": lambda path, url: load_csv(path, url, numeric=[1], categorical=[2], shuffle=False),
    "csv text labels": lambda path, url: load_csv(path, url, label=2, numeric=[1], shuffle=False),
    "ratings": lambda path, url: load_ratings(path, url, shuffle=False),
    "ratings ::": lambda path, url: load_ratings(path, url, sep="::", shuffle=False),
    "ldac": lambda path, url: load_bag_of_words(path, url, shuffle=False),
    "docword": lambda path, url: load_bag_of_words(path, url, "docword", shuffle=False),
    "vw": lambda path, url: load_vw(path, url, interactions=["ab", "::"], shuffle=False),
}
TEXT = {
    "svmlight": b"1 1:1 5:2.5\n0 3:1\n" * 50,
    "csv": b"1,2.5,red\n0,3,blue\n" * 50,
    "csv text labels": b'1,2.5,"red"\n0,3,blue\n' * 50,
    "ratings": b"alice,7,4.5\nbob,8,3,881250949\n" * 50,
    "ratings ::": b"1::7::4.5::9\n2::8::3::9\n" * 50,
    "ldac": b"2 0:3 7:1\n1 5:2\n" * 50,
    "docword": b"50\n9\n100\n" + b"".join(b"%d 3 1\n%d 9 2\n" % (d, d) for d in range(1, 51)),
    "vw": b"1 2.0 'tag|a x:2 y |b:0.5 z\n-1 |a x\n" * 50,
}


ZIP_METHODS = {
    "zip": zipfile.ZIP_DEFLATED,
    "zip of bzip2": zipfile.ZIP_BZIP2,
    "zip of LZMA": zipfile.ZIP_LZMA,
}


def zipped(data: bytes, method: int) -> bytes:
    """A zip archive of one file."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        archive.writestr("x", data)
    return out.getvalue()


PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "lz4": lz4.frame.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    **{name: functools.partial(zipped, method=method) for name, method in ZIP_METHODS.items()},
}


@pytest.mark.parametrize("kind", LOADERS)
def test_packed_files_load_as_plain_ones(tmp_path: Path, kind: str) -> None:
    """How a file is packed is recognised by its content; the dataset is that of what is in it."""
    (tmp_path / "plain").write_bytes(TEXT[kind])
    plain = LOADERS[kind](tmp_path / "plain", str(tmp_path / "a"))
    for pack in PACKINGS.values():
        (tmp_path / "packed").write_bytes(pack(TEXT[kind]))
        packed = LOADERS[kind](tmp_path / "packed", str(tmp_path / "b"))
        assert packed.manifest.fingerprint == plain.manifest.fingerprint


@pytest.mark.parametrize(
    ("begin", "problem"),
    [
        (b"\x28\xb5\x2f\xfd", "is packed with Zstandard: pipe it, with: zstdcat FILE"),
        (b"7z\xbc\xaf\x27\x1c", "is packed with 7-Zip: unpack it"),
        (b"Rar!\x1a\x07", "is packed with RAR: unpack it"),
        (b"PAR1\x15", "is a Parquet file and no text: use load_parquet"),
    ],
)
def test_what_is_no_text_is_refused_by_its_kind(tmp_path: Path, begin: bytes, problem: str) -> None:
    """A file that is packed in a way that is not read says so, instead of a line that cannot be read."""
    path = tmp_path / "x"
    path.write_bytes(begin + bytes(100))
    with pytest.raises(DataError, match=rf"^{path}: {problem}"):
        load_svmlight(path, tmp_path / "ds")


def test_words_that_begin_as_packed_files_do_are_text(tmp_path: Path) -> None:
    """Two or three letters at the beginning of a file are a coincidence."""
    path = tmp_path / "x.csv"
    path.write_bytes(b"BZh9,1\nBZh8,2\n")
    assert load_csv(path, tmp_path / "ds", numeric=[1]).labels == ("BZh8", "BZh9")


def test_a_zip_archive_holds_one_file_beside_what_macos_adds(tmp_path: Path) -> None:
    """Folders, and the resource forks that macOS packs beside each file, are no files to choose from."""
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.mkdir("rows")
        archive.writestr("rows/x.svm", TEXT["svmlight"])
        archive.writestr("__MACOSX/rows/._x.svm", b"\0\5\x16\7")
    assert load_svmlight(path, tmp_path / "ds").n_rows == 100


@pytest.mark.parametrize("n_processes", [1, 2])
def test_line_ends_between_quotation_marks_far_down(tmp_path: Path, n_processes: int) -> None:
    """Workers read plain files themselves, which may cut quoted cells: then one process reads them."""
    text = b"1,2.5,red\n0,1,blue\n" * 5000 + b'0,3,"dark\nblue"\n1,3,red\n' * 500
    (tmp_path / "plain").write_bytes(text)
    (tmp_path / "packed").write_bytes(lz4.frame.compress(text))
    sizes = LoadSizes(segment_bytes=5000)
    options = LoadOptions(sizes=sizes, shuffle=False, n_processes=n_processes)
    request = CsvRequest(label=0, numeric=(1,), categorical=(2,))
    made = []
    for name in ("plain", "packed"):
        store = open_store(str(tmp_path / f"of {name}"))
        manifest = load_csv_file(str(tmp_path / name), store, request=request, options=options)
        X, y, _ = Dataset(store.url, manifest).to_csr()
        made.append((X.indptr.tolist(), X.indices.tolist(), X.data.tolist(), y.tolist()))
    assert len(made[0][3]) == 11_000
    assert made[0] == made[1]


def test_a_line_without_end_is_named(tmp_path: Path) -> None:
    """Also where no process has read the lines before it."""
    path = tmp_path / "long.svm"
    path.write_bytes(b"1 1:1\n" * 3 + b"1 " + b" " * (MAX_LINE_BYTES + 10**6))
    with pytest.raises(DataError, match=r"long\.svm:4: a line does not end within"):
        load_svmlight(path, tmp_path / "ds")


def test_damaged_lz4_files(tmp_path: Path) -> None:
    """A truncated or changed LZ4 frame is one error that says where."""
    packed = lz4.frame.compress(np.random.default_rng(0).bytes(100_000), content_checksum=True)
    path = tmp_path / "x.lz4"
    for damaged in (packed[:-1000], packed[:500] + bytes(100) + packed[600:]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"x\.lz4:1: the compressed data is truncated or damaged"):
            load_svmlight(path, tmp_path / "ds")


def test_standard_input(tmp_path: Path) -> None:
    """``-`` reads standard input; errors call it by its name; nothing of it stays."""
    url = tmp_path / "ds"

    def load(text: bytes) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "cirrus", "load", "-", str(url)]
        return subprocess.run(command, input=text, capture_output=True, check=False, timeout=60)

    assert load(TEXT["svmlight"]).returncode == 0
    assert Dataset.open(url).n_rows == 100
    refused = load(b"1 1:1\n0 1:x\n")
    assert refused.returncode == 1
    assert refused.stderr.decode().splitlines()[-1].startswith("error: standard input:2: ")
    assert Dataset.open(url).n_rows == 100


def test_what_a_process_calls_its_input_is_read_by_that_process(tmp_path: Path) -> None:
    """``/dev/stdin`` with a file behind it is another one in the processes that load."""
    path = tmp_path / "rows.svm"
    path.write_bytes(TEXT["svmlight"])
    command = [sys.executable, "-m", "cirrus", "load", "/dev/stdin", str(tmp_path / "ds"), "--processes", "2"]
    with path.open("rb") as file:
        done = subprocess.run(command, stdin=file, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert Dataset.open(tmp_path / "ds").n_rows == 100


@pytest.mark.parametrize("before", [False, True], ids=["empty place", "dataset there"])
@pytest.mark.parametrize("kind", ["folder", "memory"])
def test_of_two_writers_one_wins(tmp_path: Path, kind: str, before: bool) -> None:
    """A load that finds another's dataset in its place in the end says so, and leaves that as it is."""
    url = str(tmp_path / "ds") if kind == "folder" else f"memory://two-writers-{before}/ds"
    path = tmp_path / "x.svm"
    path.write_bytes(TEXT["svmlight"])
    if before:
        load_svmlight(path, url)
    others: list[Dataset] = []

    def meanwhile(_: Any) -> None:
        if not others:
            others.append(load_svmlight(path, url, n_features=77))

    with pytest.raises(ConflictError, match="another dataset was stored or deleted here meanwhile"):
        load_svmlight(path, url, progress=meanwhile)
    assert Dataset.open(url).manifest == others[0].manifest
    keys = {"manifest.json", *(chunk.key for chunk in others[0].manifest.chunks)}
    assert set(open_store(url).list()) == keys


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_a_pipe_is_read_once_as_standard_input_is(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    """What a shell makes of ``<(zcat rows.gz)`` has no size and cannot be read again: it is copied first."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for text in (TEXT["svmlight"], b""):
        writer = threading.Thread(target=pipe.write_bytes, args=(pack(text) if text else b"",))
        writer.start()
        if text:
            assert load_svmlight(pipe, tmp_path / "ds").n_rows == 100
        else:
            with pytest.raises(DataError, match=rf"^{pipe}: is empty"):
                load_svmlight(pipe, tmp_path / "ds")
        writer.join(20)


def test_standard_input_that_is_closed(tmp_path: Path) -> None:
    """It is one error, as any input that cannot be read."""
    script = f'exec "{sys.executable}" -m cirrus load - "{tmp_path}/ds" <&-'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "error: standard input: cannot be read here: name a file"


bits = st.one_of(
    st.binary(max_size=20),
    st.sampled_from(
        [b"\n", b",", b":", b" ", b'"', b"1", b"0:1", b"-1", b"1e400", b"\r", b"\0", b"#", b"\xef\xbb\xbf"]
    ),
)
magics = st.sampled_from(
    [b"", b"", b"\x1f\x8b\x08", b"PK\x03\x04", b"\x04\x22\x4d\x18", b"BZh91AY&SY", b"\xfd7zXZ\0\0\4"]
)


@settings(deadline=None, max_examples=100)
@given(st.sampled_from(sorted(LOADERS)), magics, st.lists(bits, max_size=30))
@example("csv", b"", [b'1,2,"'])
@example("svmlight", b"", [b"1 99999999999999999999:1"])
@example("ratings", b"", [b"a,b,1\n\xff,b,1"])
@example("docword", b"", [b"1\n1\n1\n1 1 1 1"])
@example("vw", b"", [b"1 |a x:inf"])
def test_any_bytes_load_or_are_refused_by_place(
    tmp_path_factory: Any, kind: str, magic: bytes, parts: list[bytes]
) -> None:
    """Whatever bytes a file holds, a loader takes them or raises one DataError that names the file."""
    path = tmp_path_factory.mktemp("fuzz") / "strange"
    path.write_bytes(magic + b"".join(parts))
    load_or_be_refused(kind, path)


def load_or_be_refused(kind: str, path: Path) -> None:
    """Load a file, and check that it is whole, or refused by a message that names the file."""
    refusal = ""
    try:
        dataset = LOADERS[kind](path, "memory://fuzz/ds")
    except DataError as error:
        refusal = str(error)
    if refusal:
        assert str(path) in refusal
        return
    X, y, _ = dataset.to_csr()
    assert X.shape[0] == y.size == dataset.n_rows > 0
    assert np.isfinite(X.data).all()
    assert np.isfinite(y).all()


@pytest.mark.parametrize("name", sorted(ZIP_METHODS))
def test_damaged_zip_files(tmp_path: Path, name: str) -> None:
    """A byte of a zip archive that is wrong is one error that names the file, whatever packed it."""
    packed = zipped(TEXT["svmlight"], ZIP_METHODS[name])
    path = tmp_path / "x.zip"
    for at in range(30, packed.index(b"PK\x01\x02")):
        path.write_bytes(packed[:at] + bytes([packed[at] ^ 0xFF]) + packed[at + 1 :])
        load_or_be_refused("svmlight", path)


@settings(deadline=None, max_examples=200)
@given(
    st.sampled_from(sorted(LOADERS)),
    st.sampled_from(["plain", *PACKINGS]),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 3), bits), min_size=1, max_size=4),
)
def test_damaged_files_load_or_are_refused_by_place(
    tmp_path_factory: Any, kind: str, packing: str, damages: list[tuple[float, int, bytes]]
) -> None:
    """A good file with bytes put in, left out or changed, before or after packing, is no surprise."""
    pack = {"plain": bytes, **PACKINGS}[packing]
    for damaged_first in (True, False):
        data = TEXT[kind] if damaged_first else pack(TEXT[kind])
        for where, n_removed, inserted in damages:
            at = int(where * len(data))
            data = data[:at] + inserted + data[at + n_removed :]
        path = tmp_path_factory.mktemp("damaged") / "x"
        path.write_bytes(pack(data) if damaged_first else data)
        load_or_be_refused(kind, path)


def in_chunks(whole: Dataset, block_rows: int, chunk_bytes: int) -> Dataset:
    """Store rows again, in order, as small blocks and chunks."""
    store = open_store("memory://any-rows/d")
    writer = ChunkWriter(store, new_chunk_prefix(), chunk_bytes=chunk_bytes)
    builder = BlockBuilder(writer, block_rows=block_rows)
    for block in whole.blocks():
        builder.add(block)
    builder.flush()
    manifest = commit_dataset(
        store,
        writer.chunks,
        writer.summary,
        n_features=whole.n_features,
        label_names=whole.manifest.label_names,
    )
    return Dataset(store.url, manifest)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_rows_come_back_in_order(data: st.DataObject) -> None:
    """Sparse rows with any labels, numbers or text, unshuffled in any chunks, read back as they were."""
    n_rows, n_columns = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 2**20))
    numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)
    rows = data.draw(
        st.lists(
            st.dictionaries(st.integers(0, n_columns - 1), numbers.filter(bool), max_size=8),
            min_size=n_rows,
            max_size=n_rows,
        )
    )
    names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=9)
    kind = data.draw(st.sampled_from([numbers, names]))
    drawn = data.draw(st.lists(kind, min_size=n_rows, max_size=n_rows))
    labels = np.array(drawn, np.float32 if kind is numbers else np.object_)
    indptr = np.cumsum([0, *(len(row) for row in rows)])
    columns = np.array([c for row in rows for c in sorted(row)], np.int64)
    values = np.array([row[c] for row in rows for c in sorted(row)], np.float32)
    X = scipy.sparse.csr_array((values, columns, indptr), shape=(n_rows, n_columns))
    whole = load_arrays(X, labels, shuffle=False)
    cut = in_chunks(whole, data.draw(st.integers(1, n_rows)), data.draw(st.integers(1, 2000)))
    back, y, _ = cut.to_csr()
    np.testing.assert_array_equal(back.indptr, indptr)
    np.testing.assert_array_equal(back.indices, columns)
    np.testing.assert_array_equal(back.data, values)
    if cut.manifest.label_names is None:
        np.testing.assert_array_equal(y, labels)
    else:
        assert [cut.manifest.label_names[int(code)] for code in y] == drawn


@pytest.mark.parametrize("size", [8, 12, 16, 20, 24, 1000])
def test_a_blank_line_ends_no_document(tmp_path: Path, size: int) -> None:
    """Blank lines in docword text are read over, wherever segments are cut."""
    path = tmp_path / "x"
    path.write_bytes(b"2\n3\n4\n1 1 1\n1 2 1\n\n1 3 1\n2 1 1\n")
    options = LoadOptions(shuffle=False, sizes=LoadSizes(segment_bytes=size))
    store = open_store(tmp_path / "d")
    assert load_words_files(str(path), store, kind="docword", vocabulary=None, options=options).n_rows == 2
