"""Where loaders read from: patterns, stores, many files; and loads that are interrupted and gone on with."""

from __future__ import annotations

import gzip
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lz4.frame
import numpy as np
import pytest

from cirrus.client_backend.inputs import open_inputs
from cirrus.client_backend.load_job import LOAD_EXPIRY_SECONDS, LOADING_FOLDER
from cirrus.client_backend.load_tasks import LoadSizes
from cirrus.client_backend.load_team import TaskQueue
from cirrus.client_backend.loader import (
    MAX_PIECE_REQUESTS,
    LoadOptions,
    LoadProgress,
    _piece_requests,
    load_svmlight_file,
)
from cirrus.client_backend.segments import read_segments
from cirrus.errors import ConflictError, DataError, NotFoundError, StorageError
from cirrus.frontend.datasets import Dataset, load_csv, load_svmlight
from cirrus.storage import ObjectStore, drop_memory_store, open_store

#: Sizes at which a file of some 100 kB takes the paths of a large one.
SMALL = LoadSizes(segment_bytes=5_000, bucket_text_bytes=20_000, bucket_bytes=15_000)


def lines(first: int, last: int) -> bytes:
    """Rows whose label is their number."""
    return b"".join(b"%d %d:%d.5 200:1\n" % (i, 1 + i % 90, i % 7) for i in range(first, last))


def load(path: Path | str, url: Path | str, **options: Any) -> Dataset:
    """Load svmlight in small pieces."""
    store = open_store(url)
    manifest = load_svmlight_file(str(path), store, options=LoadOptions(sizes=SMALL, **options))
    return Dataset(store.url, manifest)


@pytest.fixture(scope="module")
def s3_endpoint() -> Iterator[str]:
    """The URL of a server that speaks S3."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A fresh bucket, found through the environment as a user's own is."""
    import boto3

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    name = f"b{abs(hash(request.node.nodeid))}"
    client = boto3.session.Session().client("s3")
    client.create_bucket(Bucket=name)
    client.close()
    return name


# Many files.


@pytest.mark.parametrize("n_processes", [1, 3])
def test_files_of_a_pattern_are_one_in_the_order_of_their_names(tmp_path: Path, n_processes: int) -> None:
    """Plain and packed files that match a pattern load as all their rows would, sorted by name."""
    (tmp_path / "part-2").write_bytes(lines(400, 900))
    (tmp_path / "part-0.gz").write_bytes(gzip.compress(lines(0, 300)))
    (tmp_path / "part-1.lz4").write_bytes(lz4.frame.compress(lines(300, 400)))
    (tmp_path / "part-3-empty").write_bytes(b"")
    (tmp_path / "other").write_bytes(b"no data")
    one = tmp_path / "one"
    one.write_bytes(lines(0, 900))
    many = load(tmp_path / "part-*", tmp_path / "a", shuffle=False, n_processes=n_processes)
    X, y, _ = many.to_csr()
    expected, labels, _ = load(one, tmp_path / "b", shuffle=False).to_csr()
    np.testing.assert_array_equal(y, labels)
    assert abs(X - expected).max() == 0


def test_the_fingerprint_covers_all_files(tmp_path: Path) -> None:
    """A change in any of the files changes the fingerprint; the number of processes does not."""
    for k in range(4):
        (tmp_path / f"part-{k}").write_bytes(lines(1000 * k, 1000 * k + 500))
    pattern = tmp_path / "part-*"
    prints = {
        load(pattern, tmp_path / "d", random_state=1, n_processes=n).manifest.fingerprint for n in (1, 2, 3)
    }
    assert len(prints) == 1
    (tmp_path / "part-3").write_bytes(lines(3000, 3499) + b"3499 5:2\n")
    assert load(pattern, tmp_path / "d", random_state=1).manifest.fingerprint not in prints


def test_errors_name_the_file_of_many_and_its_line(tmp_path: Path) -> None:
    """A bad line in one of many files is named by that file's path and line."""
    for k in range(3):
        (tmp_path / f"part-{k}").write_bytes(lines(0, 100))
    (tmp_path / "part-1").write_bytes(lines(0, 41) + b"bad\n")
    for n_processes in (1, 2):
        with pytest.raises(DataError, match=r"part-1:42: label 'bad' is not a number"):
            load(tmp_path / "part-*", tmp_path / "d", n_processes=n_processes)
    assert open_store(tmp_path / "d").list() == []


def test_nothing_matched(tmp_path: Path) -> None:
    """A pattern without files, and one with empty files alone, say so."""
    with pytest.raises(NotFoundError, match="no file matches this pattern"):
        load_svmlight(tmp_path / "*.svm", tmp_path / "d")
    (tmp_path / "a.svm").write_bytes(b"")
    with pytest.raises(DataError, match="is empty"):
        load_svmlight(tmp_path / "*.svm", tmp_path / "d")
    with pytest.raises(DataError, match=r"is a folder: name a file, or a pattern such as '.*/\*\.gz'"):
        load_svmlight(tmp_path, tmp_path / "d")


def test_csv_files_may_have_their_columns_in_any_order(tmp_path: Path) -> None:
    """Each CSV file of many has its header, whose names say where the columns are."""
    (tmp_path / "a.csv").write_text("y,n,c\n1,2,red\n0,3,blue\n")
    (tmp_path / "b.csv").write_text("c,more,y,n\nred,x,1,2\n")
    dataset = load_csv(
        tmp_path / "*.csv", tmp_path / "d", "y", ["n"], ["c"], hash_features=100, shuffle=False
    )
    X, y, _ = dataset.to_csr()
    assert y.tolist() == [1, 0, 1]
    assert (X[[0]] != X[[2]]).nnz == 0
    (tmp_path / "c.csv").write_text("1,2,red\n")
    with pytest.raises(DataError, match=r"c\.csv:1: has no column 'y'"):
        load_csv(tmp_path / "*.csv", tmp_path / "d", "y", ["n"], ["c"])


def test_text_labels_of_many_files_are_numbered_together(tmp_path: Path) -> None:
    """Names of labels are sorted over all files, whichever file has them."""
    for k, names in enumerate((["pear", "fig"], ["apple", "fig"])):
        (tmp_path / f"{k}.csv").write_text("".join(f"{name},{k}\n" for name in names))
    for n_processes in (1, 2):
        dataset = load_csv(
            tmp_path / "*.csv", tmp_path / "d", categorical=[1], shuffle=False, n_processes=n_processes
        )
        assert dataset.manifest.label_names == ("apple", "fig", "pear")
        assert dataset.to_csr()[1].tolist() == [2, 1, 0, 1]


def test_a_file_that_is_written_meanwhile_is_refused(tmp_path: Path) -> None:
    """A file that changes while it is read is an error, not a mixture of two files."""
    path = tmp_path / "x.svm"
    path.write_bytes(lines(0, 2000))

    def change(progress: LoadProgress) -> None:
        os.utime(path, ns=(1, 1))

    with pytest.raises(DataError, match=r"x\.svm: was changed while it was read"):
        load(path, tmp_path / "d", progress=change)
    assert open_store(tmp_path / "d").list() == []


@pytest.mark.parametrize("how", ["longer", "empty", "removed"])
@pytest.mark.parametrize("which", [0, 1])
def test_of_several_files_none_may_change(tmp_path: Path, how: str, which: int) -> None:
    """A file that grows, is emptied or removed while files are read is an error, whatever its time says."""
    paths = [tmp_path / f"part-{k}" for k in range(2)]
    for path in paths:
        path.write_bytes(lines(0, 1000))
    status = paths[which].stat()

    def change(progress: LoadProgress) -> None:
        if 2 * progress.bytes_done < progress.bytes_total:  # all is read at one half
            return
        if how == "removed":
            paths[which].unlink(missing_ok=True)
            return
        paths[which].write_bytes(lines(0, 1100) if how == "longer" else b"")
        os.utime(paths[which], ns=(status.st_atime_ns, status.st_mtime_ns))

    what = "removed" if how == "removed" else "changed"
    with pytest.raises(DataError, match=rf"part-{which}: was {what} while it was read"):
        load(tmp_path / "part-*", tmp_path / "d", progress=change)
    assert open_store(tmp_path / "d").list() == []


def test_a_file_that_the_system_does_not_open(tmp_path: Path) -> None:
    """It is one error that names the file and why; nothing is stored."""
    path = tmp_path / "x.svm"
    path.symlink_to(path)
    with pytest.raises(StorageError, match=r"x\.svm: Too many levels of symbolic links"):
        load(path, tmp_path / "d")
    assert open_store(tmp_path / "d").list() == []


def test_the_home_folder_may_be_written_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``~`` in a path or a pattern is the user's home, as it is in the URL of a dataset."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x.svm").write_bytes(lines(0, 10))
    for path in ("~/x.svm", "~/*.svm"):
        assert load(path, "~/d").n_rows == 10


def test_many_sources_are_asked_at_once_and_each_in_order() -> None:
    """A source that waits holds up nobody else; tasks of one source come in its order."""
    gate = threading.Event()

    def slow() -> Iterator[str]:
        yield "a0"
        assert gate.wait(20)
        yield "a1"

    queue = TaskQueue([slow(), iter(["b0", "b1"])])
    assert queue.take() == (0, "a0")
    waiting: list[Any] = []
    thread = threading.Thread(target=lambda: waiting.append(queue.take()))
    thread.start()
    taken = []
    while len(taken) < 2:
        taken.append(queue.take())
    gate.set()
    thread.join(20)
    assert {task for _, task in [*taken, *waiting]} <= {"a1", "b0", "b1"}
    rest = list(iter(queue.take, None))
    everything = [*taken, *waiting, *rest]
    assert sorted(order for order, _ in everything) == [1, 2, 3]
    assert [task for _, task in sorted(everything) if task.startswith("b")] == ["b0", "b1"]


# Object stores.


@pytest.fixture(params=["memory", "s3"])
def objects(request: pytest.FixtureRequest) -> Iterator[ObjectStore]:
    """A store that is no folder."""
    if request.param == "memory":
        yield open_store("memory://load-sources")
        drop_memory_store("load-sources")
    else:
        yield open_store(f"s3://{request.getfixturevalue('bucket')}")


def test_objects_are_read_by_name_by_prefix_and_by_pattern(tmp_path: Path, objects: ObjectStore) -> None:
    """An object, all objects below a prefix but for hidden ones, and those of a pattern, load as files do."""
    objects.put("in/part-1.gz", gzip.compress(lines(500, 700)))
    objects.put("in/part-0", lines(0, 500))
    objects.put("in/_SUCCESS", b"")
    objects.put("in/.hidden", b"no data")
    objects.put("inside", b"no data")
    url = objects.url
    for path, n_rows in (
        (f"{url}/in/part-0", 500),
        (f"{url}/in", 700),
        (f"{url}/in/", 700),
        (f"{url}/in/part-*", 700),
        (f"{url}/in/part-1*", 200),
    ):
        dataset = load(path, tmp_path / "d", shuffle=False, n_processes=1)
        labels = dataset.to_csr()[1]
        assert len(labels) == n_rows, path
        assert labels.tolist() == sorted(labels.tolist())
    for missing in (f"{url}/absent", f"{url}/absent/", f"{url}/in/*.csv"):
        with pytest.raises(NotFoundError, match="no object matches|there is no such object"):
            load(missing, tmp_path / "d")
    objects.put("bad/x.svm", lines(0, 10) + b"1 1:x\n")
    with pytest.raises(DataError, match=r"bad/x\.svm:11: the value in '1:x'"):
        load(f"{url}/bad/x.svm", tmp_path / "d")


def test_from_s3_to_s3(bucket: str) -> None:
    """Input and dataset may both be in S3, read and written by several processes; no pieces stay there."""
    store = open_store(f"s3://{bucket}")
    for k in range(3):
        store.put(f"in/{k}", lines(500 * k, 500 * k + 500))
    dataset = load(f"s3://{bucket}/in/", f"s3://{bucket}/ds", n_processes=2)
    assert sorted(dataset.to_csr()[1].tolist()) == list(range(1500))
    keys = {"manifest.json", *(chunk.key for chunk in dataset.chunks)}
    assert set(store.child("ds").list()) == keys


@pytest.mark.parametrize("place", ["folder", "s3"])
def test_of_two_loads_to_one_place_one_wins(
    tmp_path: Path, place: str, request: pytest.FixtureRequest
) -> None:
    """Of two loads to one URL one is told, whether they load the same or not; the other's is whole."""
    url = str(tmp_path / "ds") if place == "folder" else f"s3://{request.getfixturevalue('bucket')}/ds"
    path, other = tmp_path / "x.svm", tmp_path / "y.svm"
    path.write_bytes(lines(0, 1000))
    other.write_bytes(lines(0, 400))
    refused: list[str] = []
    won: list[Dataset] = []

    def meanwhile(_: Any) -> None:
        if not refused:
            with pytest.raises(ConflictError, match="is being loaded here by another process") as same:
                load(path, url, n_processes=1)
            refused.append(str(same.value))
            won.append(load(other, url, n_processes=1))

    with pytest.raises(ConflictError, match="another dataset was stored or deleted here meanwhile"):
        load(path, url, n_processes=1, progress=meanwhile)
    assert Dataset.open(url).manifest == won[0].manifest
    assert len(won[0].to_csr()[1]) == 400
    assert set(open_store(url).list()) == {"manifest.json", *(chunk.key for chunk in won[0].chunks)}


# Going on after an interruption.


def interrupt_when(condition: Callable[[LoadProgress], bool]) -> Callable[[LoadProgress], None]:
    """A progress function that does what Ctrl-C does."""

    def interrupt(progress: LoadProgress) -> None:
        if condition(progress):
            raise KeyboardInterrupt

    return interrupt


@pytest.mark.parametrize(
    ("share", "shuffle", "place"),
    [
        *((share, shuffle, "folder") for share in (0.2, 0.45, 0.7, 0.95) for shuffle in (True, False)),
        (0.3, True, "s3"),
        (0.8, False, "s3"),
    ],
)
def test_an_interrupted_load_goes_on(
    tmp_path: Path, share: float, shuffle: bool, place: str, request: pytest.FixtureRequest
) -> None:
    """What was parsed or stored is not done again; the chunks are those of a load in one go, byte by byte."""
    url = str(tmp_path / "ds") if place == "folder" else f"s3://{request.getfixturevalue('bucket')}/ds"
    for k in range(2):
        (tmp_path / f"{k}.svm").write_bytes(lines(900 * k, 900 * k + 900))
    (tmp_path / "2.svm.gz").write_bytes(gzip.compress(lines(1800, 2700)))
    options: dict[str, Any] = {"shuffle": shuffle, "random_state": 3, "n_processes": 1}
    pattern = tmp_path / "?.svm*"
    with pytest.raises(KeyboardInterrupt):
        load(
            pattern,
            url,
            **options,
            progress=interrupt_when(lambda p: p.bytes_done > share * p.bytes_total),
        )
    store = open_store(url)
    assert not store.exists("manifest.json")
    kept = {info.key: info.version for info in store.find() if "client.json" not in info.key}
    n_parsed = sum("/parsed/" in key for key in kept)
    assert n_parsed > 2
    parsed_rows: list[int] = []
    seen: list[LoadProgress] = []

    def watch(progress: LoadProgress) -> None:
        seen.append(progress)
        if len(seen) == 2:
            now = {info.key: info.version for info in store.find()}
            assert {key: now.get(key) for key in kept} == kept
            parsed_rows.append(sum("/parsed/" in key for key in now))

    again = load(pattern, url, **options, progress=watch)
    assert seen[0].rows == seen[0].rows_found == seen[-1].rows_found > 0
    assert (seen[0].rows_found == 2700) == (share > 0.5)
    assert parsed_rows
    plain = load(pattern, tmp_path / "plain", **options)
    assert again.manifest.fingerprint == plain.manifest.fingerprint
    for mine, other in zip(again.chunks, plain.chunks, strict=True):
        assert store.get(mine.key) == open_store(tmp_path / "plain").get(other.key)
    assert set(store.list()) == {"manifest.json", *(chunk.key for chunk in again.chunks)}


def test_a_seed_of_its_own_is_kept(tmp_path: Path) -> None:
    """Without random_state, a load that goes on shuffles as it began: no row is lost or doubled."""
    path = tmp_path / "x.svm"
    path.write_bytes(lines(0, 3000))
    with pytest.raises(KeyboardInterrupt):
        load(path, tmp_path / "d", progress=interrupt_when(lambda p: p.bytes_done > 0.3 * p.bytes_total))
    assert sorted(load(path, tmp_path / "d").to_csr()[1].tolist()) == list(range(3000))


@pytest.mark.parametrize("change", ["file", "arguments"])
def test_other_work_begins_anew(tmp_path: Path, change: str) -> None:
    """A load of a file that was changed, or with other arguments, takes nothing over; old pieces then go."""
    path = tmp_path / "x.svm"
    path.write_bytes(lines(0, 3000))
    with pytest.raises(KeyboardInterrupt):
        load(path, tmp_path / "d", progress=interrupt_when(lambda p: p.rows > 500))
    if change == "file":
        path.write_bytes(lines(0, 2999) + b"7 7:7\n")
    seen: list[LoadProgress] = []
    load(path, tmp_path / "d", random_state=None if change == "file" else 5, progress=seen.append)
    assert seen[-1].rows_found == 0
    assert open_store(tmp_path / "d").list(LOADING_FOLDER) == []


def test_a_store_that_fails_can_be_gone_on_with(tmp_path: Path) -> None:
    """When the object store refuses half-way, what was done is kept."""
    path = tmp_path / "x.svm"
    path.write_bytes(lines(0, 3000))

    def break_it(progress: LoadProgress) -> None:
        if progress.rows > 1000:
            raise StorageError("the disk is full")

    with pytest.raises(StorageError, match="disk is full"):
        load(path, tmp_path / "d", progress=break_it)
    seen: list[LoadProgress] = []
    assert load(path, tmp_path / "d", progress=seen.append).n_rows == 3000
    assert seen[-1].rows_found > 1000


def test_what_nobody_goes_on_with_expires(tmp_path: Path) -> None:
    """The pieces of a load that was interrupted long ago are removed by the next load to the same place."""
    path, other = tmp_path / "x.svm", tmp_path / "y.svm"
    path.write_bytes(lines(0, 3000))
    other.write_bytes(lines(0, 3000))
    store = open_store(tmp_path / "d")
    with pytest.raises(KeyboardInterrupt):
        load(path, tmp_path / "d", progress=interrupt_when(lambda p: p.rows > 500))
    (key,) = [key for key in store.list(LOADING_FOLDER) if key.endswith("job.json")]
    old = json.loads(store.get(key))
    assert time.time() - old["created_at"] < 60
    with pytest.raises(KeyboardInterrupt):
        load(other, tmp_path / "d", progress=interrupt_when(lambda p: p.rows > 500))
    assert store.exists(key)
    store.put(key, json.dumps({**old, "created_at": time.time() - LOAD_EXPIRY_SECONDS - 1}).encode())
    with pytest.raises(KeyboardInterrupt):
        load(other, tmp_path / "d", progress=interrupt_when(lambda p: p.rows > 500))
    assert not store.exists(key)
    assert not [key for key in store.list() if key.startswith(old["prefix"])]


def test_a_load_that_had_only_to_be_tidied_up(tmp_path: Path) -> None:
    """A client that died between the manifest and the tidying up left a dataset; the next one tidies up."""
    path = tmp_path / "x.svm"
    path.write_bytes(lines(0, 3000))
    store = open_store(tmp_path / "d")

    def at_the_end(progress: LoadProgress) -> None:
        if progress.bytes_done == progress.bytes_total and store.exists("manifest.json"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load(path, tmp_path / "d", progress=at_the_end)
    manifest = Dataset.open(tmp_path / "d").manifest
    assert store.list(LOADING_FOLDER)
    assert load(path, tmp_path / "d").manifest == manifest
    assert store.list(LOADING_FOLDER) == []


def test_segments_can_be_read_from_any_of_them_on(tmp_path: Path) -> None:
    """Reading from where a segment ends gives the segments that follow, of plain and packed files."""
    text = b"\xef\xbb\xbf" + lines(0, 300)
    (tmp_path / "plain").write_bytes(text)
    (tmp_path / "packed").write_bytes(gzip.compress(text))
    for name in ("plain", "packed"):
        with open_inputs(str(tmp_path / name)) as inputs:
            for size in (1, 50, 999):
                whole = list(read_segments(inputs.files[0], segment_bytes=size))
                for k in (0, 1, len(whole) // 2, len(whole) - 1):
                    rest = list(read_segments(inputs.files[0], segment_bytes=size, start=whole[k].after))
                    assert [(s.number, s.first_line, s.data) for s in rest] == [
                        (s.number, s.first_line, s.data) for s in whole[k + 1 :]
                    ]


def test_many_pieces_lie_on_this_machine(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pieces of a large load into S3 lie in the home folder, where it goes on, and which is empty after."""
    monkeypatch.setenv("CIRRUS_HOME", str(tmp_path / "home"))
    path = tmp_path / "x.svm"
    assert _piece_requests(10**9, LoadSizes()) < MAX_PIECE_REQUESTS < _piece_requests(3 * 10**9, LoadSizes())
    home, store = open_store(tmp_path / "home"), open_store(f"s3://{bucket}/ds")
    sizes = LoadSizes(segment_bytes=2000, bucket_text_bytes=250, bucket_bytes=100_000)

    def once(progress: Callable[[LoadProgress], None]) -> Dataset:
        options = LoadOptions(sizes=sizes, shuffle=False, n_processes=1, progress=progress)
        return Dataset(store.url, load_svmlight_file(str(path), store, options=options))

    path.write_bytes(lines(0, 5000))
    assert _piece_requests(path.stat().st_size, sizes) > MAX_PIECE_REQUESTS
    with pytest.raises(KeyboardInterrupt):
        once(progress=interrupt_when(lambda p: p.rows > 2000))
    assert store.list() == []
    assert len(home.list(LOADING_FOLDER)) > 10
    seen: list[LoadProgress] = []
    dataset = once(progress=seen.append)
    assert seen[-1].rows_found > 2000
    assert dataset.to_csr()[1].tolist() == list(range(5000))
    assert home.list() == []
