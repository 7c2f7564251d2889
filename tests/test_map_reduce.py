"""Functions over chunks: complete whatever dies, atomic, resumed, one writer, nothing unsigned executed."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import operator
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import scipy.sparse
from stand_ins import eventually

import cirrus
from cirrus.chunks import Block, BlockBuilder, ChunkWriter, commit_dataset, new_chunk_prefix
from cirrus.client_backend.fleet import WorkerEvent
from cirrus.client_backend.map_client import (
    JOBS_FOLDER,
    MOST_LOOKED_AT,
    PLACE_FOLDER,
    JobClient,
    MapOptions,
    MapRequest,
)
from cirrus.client_backend.map_functions import pack_function
from cirrus.errors import (
    CirrusError,
    ConfigError,
    ConflictError,
    CorruptDataError,
    DataError,
    RunError,
    StorageError,
)
from cirrus.frontend.datasets import Dataset, load_arrays
from cirrus.storage import open_store
from cirrus.worker_runtime.map_job import JobFolder, MapJob
from cirrus.worker_runtime.map_tasks import check_block

N_ROWS = 1200


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of this user, with jobs that are at work or were interrupted."""
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("CIRRUS_HOME", str(folder))
    return folder


def make_job(**changed: Any) -> MapJob:
    """Return a job."""
    plain = {"kind": "reduce", "input_url": "memory://a", "fingerprint": "f", "n_chunks": 1}
    return MapJob(**{**plain, "function_id": "1", "function_name": "f", **changed})


def make_dataset(url: str | Path, n_chunks: int = 6) -> Dataset:
    """Store rows as chunks of equal size; row i is labelled i."""
    X = np.random.default_rng(0).normal(size=(N_ROWS, 5)).astype(np.float32)
    whole = cirrus.load_arrays(X, np.arange(N_ROWS), shuffle=False)
    store = open_store(url)
    writer = ChunkWriter(store, new_chunk_prefix(), chunk_bytes=1)
    builder = BlockBuilder(writer, block_rows=N_ROWS // n_chunks)
    for block in whole.blocks():
        builder.add(block)
    builder.flush()
    return Dataset(store.url, commit_dataset(store, writer.chunks, writer.summary, n_features=5))


def doubled(block: Block) -> Block:
    """Return the block with its values doubled."""
    assert block.values is not None
    return dataclasses.replace(block, values=block.values * 2)


def count_rows(block: Block) -> int:
    """Return the number of rows."""
    return block.n_rows


@pytest.mark.parametrize("backend", ["local", "inline"])
def test_map_chunks_makes_a_dataset_of_what_the_function_returns(
    backend: str, tmp_path: Path, home: Path
) -> None:
    """Every chunk is rewritten once, in order; the manifest is right; no trace of the job is left."""
    source = make_dataset(tmp_path / "in")
    seen = []
    made = source.map_chunks(doubled, tmp_path / "out", backend=backend, n_workers=2, progress=seen.append)
    np.testing.assert_array_equal(made.to_csr()[0].toarray(), 2 * source.to_csr()[0].toarray())
    np.testing.assert_array_equal(made.to_csr()[1], np.arange(N_ROWS))
    assert len(made.chunks) == len(source.chunks)
    assert seen[-1].chunks_done == 6
    assert seen[-1].rows == N_ROWS
    again = Dataset.open(tmp_path / "out")
    assert again.manifest == made.manifest
    assert made.manifest.touches == source.manifest.touches
    assert not list((tmp_path / "out" / PLACE_FOLDER).glob("**/*"))
    assert not list((home / JOBS_FOLDER).glob("*"))


@pytest.mark.parametrize("backend", ["local", "inline"])
def test_map_reduce_combines_in_the_order_of_the_rows(backend: str, tmp_path: Path) -> None:
    """The reduce function need not be commutative."""
    source = make_dataset(tmp_path / "in")
    order = source.map_reduce(lambda b: b.labels.tolist(), operator.add, backend=backend, n_workers=2)
    assert order == list(range(N_ROWS))


def test_dropped_blocks_leave_no_chunk() -> None:
    """None drops a block; a chunk without rows is not written; none at all is an error."""
    source = make_dataset("memory://dropped/in")
    kept = source.map_chunks(lambda b: b if b.labels[0] >= 600 else None, "memory://dropped/out")
    assert kept.n_rows == 600
    assert len(kept.chunks) == 3
    with pytest.raises(DataError, match="no rows"):
        source.map_chunks(lambda b: None, "memory://dropped/none")


@pytest.mark.parametrize(
    ("fn", "text"),
    [
        (lambda b: 1 / 0, "ZeroDivisionError"),
        (lambda b: 5, "must return a Block"),
        (lambda b: dataclasses.replace(b, values=b.values * np.nan), "NaN"),
        (lambda b: dataclasses.replace(b, ids=b.ids[::-1].copy()), "ascend"),
        (lambda b: dataclasses.replace(b, labels=b.labels[:-1]), "rows"),
    ],
)
def test_a_function_that_fails_gives_one_clear_error_and_leaves_nothing(fn: Any, text: str) -> None:
    """It is not tried again, and there is no half dataset."""
    source = make_dataset("memory://failing/in")
    with pytest.raises(RunError, match=text):
        source.map_chunks(fn, "memory://failing/out")
    assert open_store("memory://failing/out").list() == []


def test_a_function_that_is_killed_is_run_again(tmp_path: Path) -> None:
    """SIGKILL in the middle of a chunk costs that attempt, and nothing of the result."""
    source = make_dataset(tmp_path / "in")
    mark = tmp_path / "killed"

    def killed_once(block: Block) -> Block:
        if block.labels[0] == 400 and not mark.exists():
            mark.write_text("")
            os.kill(os.getpid(), signal.SIGKILL)
        return block

    made = source.map_chunks(killed_once, tmp_path / "out", backend="local", n_workers=2)
    assert mark.exists()
    np.testing.assert_array_equal(made.to_csr()[1], np.arange(N_ROWS))
    stored = {p.name for p in (tmp_path / "out").glob("chunks-*/*")}
    assert len(stored) == 6


def test_attempts_are_bounded(tmp_path: Path) -> None:
    """A function that always dies ends the job."""
    source = make_dataset(tmp_path / "in", n_chunks=1)

    def dies(block: Block) -> Block:
        os._exit(9)

    with pytest.raises(RunError, match="exit code 9"):
        source.map_chunks(dies, tmp_path / "out", backend="local", n_workers=1)
    assert not (tmp_path / "out" / "manifest.json").exists()


CLIENT = """
import pathlib, sys, time
import cirrus
source, out, marks = sys.argv[1:]

def fn(block, marks=marks, out=out):
    first = int(block.labels[0])
    with open(f"{marks}/{first}", "a") as file:
        file.write("x")
    while first >= 400 and not pathlib.Path(marks, "go").exists():
        time.sleep(0.01)
    return block

cirrus.Dataset.open(source).map_chunks(fn, out, backend="local", n_workers=1)
"""


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_job_goes_on_with_the_missing_chunks(
    tmp_path: Path, home: Path, signal_number: int
) -> None:
    """Nothing is left running, and the same call does no finished chunk again."""
    make_dataset(tmp_path / "in")
    marks, out = tmp_path / "marks", tmp_path / "out"
    marks.mkdir()
    script = tmp_path / "client.py"
    script.write_text(CLIENT)
    command = [sys.executable, str(script), str(tmp_path / "in"), str(out), str(marks)]
    environment = {**os.environ, "PYTHONPATH": str(Path(cirrus.__file__).parents[1])}
    first = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    eventually(lambda: (marks / "400").exists())
    eventually(lambda: len(list(home.glob(f"{JOBS_FOLDER}/*/results/*"))) == 2)
    children = psutil.Process(first.pid).children(recursive=True)
    assert children
    first.send_signal(signal_number)
    first.wait(20)
    eventually(lambda: not any(child.is_running() and child.status() != "zombie" for child in children))
    assert not (out / "manifest.json").exists()
    (marks / "go").write_text("")
    subprocess.run(command, env=environment, check=True, timeout=60)
    assert [(marks / str(n)).read_text() for n in (0, 200)] == ["x", "x"]
    np.testing.assert_array_equal(Dataset.open(out).to_csr()[1], np.arange(N_ROWS))


def test_of_two_writers_to_one_url_one_wins() -> None:
    """The other one gets an error at once, and the winner's result is whole."""
    source = make_dataset("memory://writers/in")
    begun, go = threading.Event(), threading.Event()
    with_events = dict(begun=begun, go=go)
    cirrus_test_events.update(with_events)

    def waits(block: Block) -> Block:
        import test_map_reduce

        test_map_reduce.cirrus_test_events["begun"].set()
        assert test_map_reduce.cirrus_test_events["go"].wait(20)
        return block

    with concurrent.futures.ThreadPoolExecutor() as pool:
        winner = pool.submit(source.map_chunks, waits, "memory://writers/out", backend="inline")
        try:
            assert begun.wait(20)
            with pytest.raises(ConflictError, match="another job writes here"):
                source.map_chunks(doubled, "memory://writers/out", backend="inline")
        finally:
            go.set()
        made = winner.result(20)
    np.testing.assert_array_equal(made.to_csr()[0].toarray(), source.to_csr()[0].toarray())
    source.map_chunks(doubled, "memory://writers/out", backend="inline")


def test_a_job_does_not_overwrite_what_was_stored_meanwhile() -> None:
    """A dataset that somebody else stored at the URL while the job ran stays, and the job says so."""
    source = make_dataset("memory://meanwhile/in")
    begun, go = threading.Event(), threading.Event()
    cirrus_test_events.update(begun=begun, go=go)

    def waits(block: Block) -> Block:
        import test_map_reduce

        test_map_reduce.cirrus_test_events["begun"].set()
        assert test_map_reduce.cirrus_test_events["go"].wait(20)
        return block

    with concurrent.futures.ThreadPoolExecutor() as pool:
        job = pool.submit(source.map_chunks, waits, "memory://meanwhile/out", backend="inline")
        try:
            assert begun.wait(20)
            load_arrays(np.eye(3), np.arange(3.0), "memory://meanwhile/out")
        finally:
            go.set()
        with pytest.raises(ConflictError):
            job.result(20)
    assert Dataset.open("memory://meanwhile/out").n_rows == 3


#: What functions that run in this process wait for: they travel by value, and events cannot.
cirrus_test_events: dict[str, threading.Event] = {}


def test_a_changed_function_is_never_executed(tmp_path: Path) -> None:
    """Whatever is not signed with the job's token is refused; token and function are private."""
    folder = JobFolder(str(tmp_path))
    job = make_job()
    folder.create(job, b"function", "secret")
    assert folder.function() == b"function"
    assert folder.job() == job
    for name in ("function", "token"):
        assert (tmp_path / name).stat().st_mode & 0o077 == 0
    raw = (tmp_path / "function").read_bytes()
    (tmp_path / "function").write_bytes(raw[:-1] + b"!")
    with pytest.raises(CorruptDataError, match="signature"):
        JobFolder(str(tmp_path)).function()
    (tmp_path / "function").write_bytes((tmp_path / "job.json").read_bytes())
    with pytest.raises(CorruptDataError, match="signature"):
        JobFolder(str(tmp_path)).function()


def test_futures_can_be_waited_for_some_at_a_time() -> None:
    """The wait ends as soon as k are done; a failure is raised by the future."""
    futures: list[concurrent.futures.Future[Any]] = [concurrent.futures.Future() for _ in range(4)]
    futures[2].set_result(1)
    futures[0].set_exception(ValueError())
    assert cirrus.wait(futures, 2) == ({futures[0], futures[2]}, {futures[1], futures[3]})
    assert cirrus.wait(futures, timeout=0.0).done == {futures[0], futures[2]}
    with concurrent.futures.ThreadPoolExecutor() as pool:
        waiting = pool.submit(cirrus.wait, futures, 3)
        futures[3].set_result(None)
        assert waiting.result(20).not_done == {futures[1]}
    source = make_dataset("memory://futures/in")
    futures = source.submit(count_rows, operator.add)
    done, rest = cirrus.wait(futures, 2, timeout=20)
    assert len(done) >= 2
    assert done | rest == set(futures)
    assert sum(future.result(20) for future in concurrent.futures.as_completed(futures)) == N_ROWS
    failing = source.submit(lambda b: 1 / 0)
    assert len(cirrus.wait(failing, timeout=20).done) == 6
    with pytest.raises(RunError, match="ZeroDivisionError"):
        failing[0].result()
    with pytest.raises(ConfigError, match="k"):
        cirrus.wait(futures, 7)


def test_progress_of_futures_and_samples_is_told() -> None:
    """Both say how far they are; what is no listener is refused at once."""
    source = make_dataset("memory://told/in")
    heard: list[Any] = []
    assert len(cirrus.wait(source.submit(count_rows, progress=heard.append), timeout=20).done) == 6
    assert [progress.chunks_done for progress in heard] == [1, 2, 3, 4, 5, 6]
    heard.clear()
    source.sample(5, progress=heard.append)
    assert heard[-1].rows == N_ROWS
    with pytest.raises(ConfigError, match="progress"):
        source.submit(count_rows, progress=5)  # type: ignore[arg-type]


def test_describe_and_sample() -> None:
    """Each column's statistics are those of the rows; a sample holds distinct rows, in order."""
    source = make_dataset("memory://described/in")
    X = source.to_csr()[0].toarray().astype(np.float64)
    found = source.describe()
    assert (found.n_rows, found.n_features, found.density) == (N_ROWS, 5, 1.0)
    assert load_arrays(np.eye(3), ["b", "a", "b"]).describe().labels == {"a": 1, "b": 2}
    np.testing.assert_allclose(found.mean, X.mean(axis=0), atol=1e-9)
    np.testing.assert_allclose(found.variance, X.var(axis=0), rtol=1e-9)
    np.testing.assert_array_equal(found.minimum, X.min(axis=0))
    np.testing.assert_array_equal(found.maximum, X.max(axis=0))
    np.testing.assert_array_equal(found.zeros, 0)
    np.testing.assert_array_equal(found.missing, 0)
    sample = source.sample(50, random_state=3)
    assert sample.n_rows == 50
    assert (np.diff(sample.labels) > 0).all()
    starts, ids, values = sample.to_csr()
    rows = scipy.sparse.csr_array((values, ids, starts), shape=(50, 5)).toarray()
    np.testing.assert_array_equal(rows, X[sample.labels.astype(int)])
    assert (source.sample(50, random_state=3).labels == sample.labels).all()
    assert (source.sample(50, random_state=4).labels != sample.labels).any()
    halves = np.array([source.sample(20, random_state=seed).labels < N_ROWS / 2 for seed in range(50)])
    assert 0.4 < halves.mean() < 0.6  # four standard deviations of 1,000 draws are 0.063
    with pytest.raises(ConfigError, match="n:"):
        source.sample(N_ROWS + 1)


def test_wrong_arguments_are_refused() -> None:
    """Each has an error that names the parameter."""
    source = make_dataset("memory://wrong/in")
    with pytest.raises(ConfigError, match="url"):
        source.map_chunks(doubled, "memory://wrong/in")
    with pytest.raises(ConfigError, match="backend"):
        source.map_chunks(doubled, "memory://wrong/out", backend="local")
    for wrong in (0, 1.5, True, "2"):
        with pytest.raises(ConfigError, match="n_workers"):
            source.map_chunks(doubled, "memory://wrong/out", n_workers=wrong)
        with pytest.raises(ConfigError, match="n_features"):
            source.map_chunks(doubled, "memory://wrong/out", n_features=wrong)
        with pytest.raises(ConfigError, match="n: "):
            source.sample(wrong)
    with pytest.raises(ConfigError, match="k: "):
        cirrus.wait([], k=0.0)
    with pytest.raises(RunError, match="n_features=3"):
        source.map_chunks(doubled, "memory://wrong/out", n_features=3)


def interrupt_after_three(progress: Any) -> None:
    """Stop the client when half of the chunks are done."""
    if progress.chunks_done == 3:
        raise KeyboardInterrupt


@pytest.mark.parametrize("damaged", ["out/chunks-*/*", f"home/{JOBS_FOLDER}/*/results/*"])
@pytest.mark.parametrize("is_torn", [True, False])
def test_what_an_interrupted_job_lost_is_made_again(
    damaged: str, is_torn: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A result that is torn, or whose chunk is gone, is not relied on."""
    monkeypatch.setenv("CIRRUS_HOME", str(tmp_path / "home"))
    source = make_dataset(tmp_path / "in")
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        source.map_chunks(doubled, out, backend="inline", n_workers=1, progress=interrupt_after_three)
    victim = min(tmp_path.glob(damaged))
    if is_torn and "results" in damaged:
        victim.write_bytes(b"")
    else:
        victim.unlink()
    made = source.map_chunks(doubled, out, backend="inline", n_workers=1)
    np.testing.assert_array_equal(made.to_csr()[1], np.arange(N_ROWS))


def test_a_planted_job_with_its_own_token_is_not_executed(tmp_path: Path, home: Path) -> None:
    """A job that goes on does so with the function that was asked for now."""
    source = make_dataset(tmp_path / "in")
    out = tmp_path / "out"
    mark = tmp_path / "executed"
    with pytest.raises(KeyboardInterrupt):
        source.map_chunks(doubled, out, backend="inline", n_workers=1, progress=interrupt_after_three)
    (url,) = (home / JOBS_FOLDER).glob("*")
    folder = JobFolder(str(url))

    def planted(block: Block) -> Block:
        mark.write_text("")
        return block

    folder.create(folder.job(), pack_function(planted).data, "a token of somebody else")
    made = source.map_chunks(doubled, out, backend="inline", n_workers=1)
    assert not mark.exists()
    np.testing.assert_array_equal(made.to_csr()[0].toarray(), 2 * source.to_csr()[0].toarray())


def test_a_token_that_others_could_have_written_is_not_used(tmp_path: Path) -> None:
    """Function and results are trusted for the token's sake, so it must be a file of this user alone."""
    folder = JobFolder(str(tmp_path))
    folder.create(make_job(), b"function", "secret")
    (tmp_path / "token").chmod(0o640)
    with pytest.raises(StorageError, match="0600"):
        JobFolder(str(tmp_path)).function()


def test_a_job_of_another_version_is_refused() -> None:
    """Client and workers must agree on what a job is."""
    with pytest.raises(ConfigError, match="same version"):
        make_job(version=1)
    assert make_job().job_id != make_job(function_id="2").job_id


def stop_after_three(progress: Any) -> None:
    """Stop the client when half of the chunks are done."""
    if progress.chunks_done >= 3:
        raise KeyboardInterrupt


def test_a_reduction_goes_on_where_it_was(tmp_path: Path, home: Path) -> None:
    """Results that are there and whole are used again, whatever was not is computed."""
    source = make_dataset(tmp_path / "in")
    calls = tmp_path / "calls"

    def count(block: Block, calls: Path = calls) -> list[int]:
        with calls.open("a") as file:
            file.write(f"{int(block.labels[0])} ")
        return block.labels.astype(int).tolist()

    def reduce() -> Any:
        return source.map_reduce(count, operator.add, backend="inline", n_workers=1, progress=seen.append)

    with pytest.raises(KeyboardInterrupt):
        source.map_reduce(count, operator.add, backend="inline", n_workers=1, progress=stop_after_three)
    done = sorted(home.glob(f"{JOBS_FOLDER}/*/results/*"))
    done[1].write_bytes(done[1].read_bytes()[:-1])
    seen: list[Any] = []
    assert reduce() == list(range(N_ROWS))
    again = {calls.read_text().split().count(str(first)) for first in (0, 400)}
    assert again == {1}
    assert calls.read_text().split().count("200") == 2
    assert seen[-1].rows_found == 200 * (len(done) - 1)
    assert not list((home / JOBS_FOLDER).glob("*"))


def test_a_reduction_of_other_code_begins_anew_and_says_so(tmp_path: Path) -> None:
    """What another function of the same name had done is not used."""
    source = make_dataset(tmp_path / "in")

    def make(factor: int) -> Any:
        def scaled(block: Block) -> float:
            return factor * block.n_rows

        return scaled

    with pytest.raises(KeyboardInterrupt):
        source.map_reduce(make(2), operator.add, backend="inline", progress=stop_after_three)
    with pytest.warns(UserWarning, match="scaled' had done is not used, since its code"):
        assert source.map_reduce(make(3), operator.add, backend="inline") == 3 * N_ROWS


def test_a_rewrite_of_other_code_begins_anew_and_says_so(tmp_path: Path, home: Path) -> None:
    """Chunks that another function wrote are removed, and the reason is given."""
    source, out = make_dataset(tmp_path / "in"), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        source.map_chunks(doubled, out, backend="inline", progress=stop_after_three)
    with pytest.warns(UserWarning, match="is another function"):
        made = source.map_chunks(lambda block: block, out, backend="inline")
    np.testing.assert_array_equal(made.to_csr()[0].toarray(), source.to_csr()[0].toarray())
    assert len(list(out.glob("chunks-*/*"))) == 6
    assert not list((home / JOBS_FOLDER).glob("*"))


def test_what_a_function_prints_and_reads_is_not_what_its_worker_does(tmp_path: Path) -> None:
    """Text on standard output is no result, and nobody waits for what is never typed."""
    source = make_dataset(tmp_path / "in")

    def prints(block: Block) -> int:
        print('{"error": "none", "type": "none"}', end="")
        return block.n_rows

    assert source.map_reduce(prints, operator.add, backend="local", n_workers=1) == N_ROWS
    with pytest.raises(RunError, match="worker 0: the map function raised EOFError"):
        source.map_reduce(lambda block: input(), operator.add, backend="local", n_workers=1)


@pytest.mark.parametrize("error", [KeyboardInterrupt, GeneratorExit, SystemExit, MemoryError])
def test_whatever_a_function_raises_ends_the_job(error: type[BaseException], tmp_path: Path) -> None:
    """Also what is no Exception: its thread would end without a word."""

    def fails(block: Block) -> int:
        raise error

    with pytest.raises(RunError, match=error.__name__):
        make_dataset(tmp_path / "in").map_reduce(fails, operator.add, backend="inline")


def test_jobs_of_long_ago_are_forgotten(tmp_path: Path, home: Path) -> None:
    """What was interrupted a month ago goes when another job begins; what is younger stays."""
    source = make_dataset(tmp_path / "in")
    for name, begun_at in (("old", 1.0), ("young", time.time())):
        JobFolder(str(home / JOBS_FOLDER / name)).create(make_job(begun_at=begun_at), b"", "secret")
    assert source.map_reduce(count_rows, operator.add, backend="inline") == N_ROWS
    assert [folder.name for folder in (home / JOBS_FOLDER).iterdir()] == ["young"]


def test_of_many_jobs_the_old_are_forgotten(tmp_path: Path, home: Path) -> None:
    """However many young ones there are, and wherever the old ones stand among them."""
    source = make_dataset(tmp_path / "in")
    old, young = ("0" * 32, "f" * 32), [f"{number:032}" for number in range(1, 30)]
    for name in (*old, *young):
        begun_at = 1.0 if name in old else time.time()
        JobFolder(str(home / JOBS_FOLDER / name)).create(make_job(begun_at=begun_at), b"", "secret")
    assert source.map_reduce(count_rows, operator.add, backend="inline") == N_ROWS
    assert sorted(folder.name for folder in (home / JOBS_FOLDER).iterdir()) == young


def test_where_a_look_costs_requests_jobs_look_at_the_ones_after_them(tmp_path: Path, home: Path) -> None:
    """No job looks at more than 20 others, and each has some job before it that looks at it."""
    source = make_dataset(tmp_path / "in")
    request = MapRequest(
        kind="reduce", function=pack_function(count_rows), input_url=source.url, manifest=source.manifest
    )
    names = [f"{number:x}" * 32 for number in range(16)]
    names += [f"{number:x}{'7' * 31}" for number in range(16)]
    for name in names:
        JobFolder(str(home / JOBS_FOLDER / name)).create(make_job(), b"", "secret")
    seen: set[str] = set()
    client = JobClient(request, MapOptions(backend=cirrus.InlineBackend(), n_workers=1))
    client._is_remote = True
    for job_id in names:
        client.job = dataclasses.replace(client.job, function_id=job_id)
        looked_at = client._names_of_others()
        assert len(looked_at) == MOST_LOOKED_AT
        seen |= set(looked_at)
    assert seen == set(names)


def test_a_call_that_was_at_work_beside_its_like_is_named_as_such(tmp_path: Path, home: Path) -> None:
    """What the second of two calls at once had done is of no use to a third: it goes, with a warning."""
    source = make_dataset(tmp_path / "in")
    function = pack_function(count_rows, operator.add, parameter="map_fn")
    job = MapRequest(kind="reduce", function=function, input_url=source.url, manifest=source.manifest).job()
    JobFolder(str(home / JOBS_FOLDER / f"{job.job_id}-abcd")).create(job, b"", "secret")
    with pytest.warns(UserWarning, match="count_rows' had done is not used, since it was at work beside"):
        assert source.map_reduce(count_rows, operator.add, backend="inline") == N_ROWS
    assert not list((home / JOBS_FOLDER).glob("*"))


def test_a_reduce_function_that_fails_in_the_client_is_one_clear_error(tmp_path: Path, home: Path) -> None:
    """The error says what was raised and where; the user's own error is its cause; nothing is left."""
    source = make_dataset(tmp_path / "in")

    def fails(a: int, b: int) -> int:
        raise KeyError("no such thing")

    with pytest.raises(RunError, match=r"the reduce function raised KeyError.*\n.*in fails,") as caught:
        source.map_reduce(count_rows, fails, backend="inline")
    assert isinstance(caught.value.__cause__, KeyError)
    assert not list((home / JOBS_FOLDER).glob("*"))


def test_who_interrupts_a_reduction_goes_on_with_what_workers_did(tmp_path: Path, home: Path) -> None:
    """An interruption while the client combines is none of the function's errors: results stay."""
    source = make_dataset(tmp_path / "in")
    mark, calls = tmp_path / "interrupted", tmp_path / "calls"

    def count(block: Block, calls: Path = calls) -> int:
        with calls.open("a") as file:
            file.write("x")
        return block.n_rows

    def add(a: int, b: int, mark: Path = mark, end: int = N_ROWS) -> int:
        if a + b == end and not mark.exists():  # all chunks have results by then
            mark.touch()
            signal.raise_signal(signal.SIGINT)
        return a + b

    with pytest.raises(KeyboardInterrupt):
        source.map_reduce(count, add, backend="inline", n_workers=1)
    assert len(list(home.glob(f"{JOBS_FOLDER}/*/results/*"))) == 6
    assert source.map_reduce(count, add, backend="inline", n_workers=1) == N_ROWS
    assert calls.read_text() == 6 * "x"


class CountedLooks(JobFolder):
    """Counts how often somebody looks at what is taken."""

    looks = 0

    def numbers(self, folder: str) -> set[int]:
        """See JobFolder."""
        self.looks += 1
        return super().numbers(folder)


def test_those_who_wait_for_work_share_a_look(tmp_path: Path) -> None:
    """A look costs requests: however many wait, there are two in an interval, and one more after a death."""
    source = make_dataset(tmp_path / "in")
    request = MapRequest(
        kind="reduce", function=pack_function(count_rows), input_url=source.url, manifest=source.manifest
    )
    with JobClient(request, MapOptions(backend=cirrus.InlineBackend(), n_workers=1)) as client:
        folder = CountedLooks(client._folder.url)
        client._folder, client._poll_seconds = folder, 3600.0
        for number in range(6):
            assert folder.claim(number, 0, 0)
        assert not any(client._has_work() for _ in range(100))
        assert folder.looks == 2
        client._free(WorkerEvent(role="map", run_url=folder.url, worker_id=0, generation=0))
        assert client._has_work()


@dataclasses.dataclass
class Total:
    """A value of a class of the user's own."""

    rows: int

    def __add__(self, other: object) -> Total:
        assert type(other) is Total
        return Total(self.rows + other.rows)


@pytest.mark.parametrize("backend", ["local", "inline"])
def test_values_of_the_users_own_classes_come_back_as_such(backend: str, tmp_path: Path) -> None:
    """They belong to the class that the client has, not to a copy of it."""
    source = make_dataset(tmp_path / "in")
    total = source.map_reduce(lambda b: Total(b.n_rows), operator.add, backend=backend, n_workers=2)
    assert total == Total(N_ROWS)


@pytest.mark.parametrize(
    ("fn", "text"),
    [
        (lambda b: (row for row in b.labels), "cannot be sent back"),
        (lambda b: np.zeros(2**27, np.uint8), "more than 64 MB"),
    ],
)
def test_values_that_cannot_be_sent_back_are_refused_by_name(fn: Any, text: str, tmp_path: Path) -> None:
    """Nothing that a function returns makes a worker try again and again, or the client's memory grow."""
    source = make_dataset(tmp_path / "in")
    for work in (lambda: source.map_reduce(fn, max), lambda: source.submit(fn)[0].result(20)):
        with pytest.raises(RunError, match=text):
            work()


@pytest.mark.parametrize("prefix", ["mine/", "", "../", "chunks-ab/../"])
def test_a_job_may_only_remove_chunks(prefix: str) -> None:
    """What a job's prefix names is removed with the job: it must be one of chunks."""
    with pytest.raises(ConfigError, match="prefix"):
        make_job(kind="rewrite", output_url="memory://b", prefix=prefix)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"local": np.array([0, 2], np.uint16)}, "beyond the ids"),
        ({"row_starts": np.array([0, 1, 1], np.uint32)}, "row_starts"),
        ({"row_starts": np.array([1, 1, 2], np.uint32)}, "row_starts"),
        ({"row_starts": np.array([0, 3, 2], np.uint32)}, "row_starts"),
        ({"values": np.array([1e300, 1.0])}, "beyond float32"),
        ({"values": np.array([np.nan, 1.0], np.float32)}, "NaN"),
        ({"values": [1.0, 2.0]}, "values are no array"),
        ({"ids": np.array([1, 2**32], np.int64)}, "below"),
        ({"ids": np.array([-1, 2], np.int64)}, "below"),
        ({"ids": np.array([2, 1], np.uint32)}, "ascend"),
        ({"labels": np.ones((2, 1), np.float32)}, "labels are no array"),
        ({"labels": [0.0, 1.0]}, "labels are no array"),
        ({"local": np.array([0.0, 1.0])}, "local are no array"),
    ],
)
def test_a_block_that_could_not_be_read_again_is_refused(change: dict[str, Any], problem: str) -> None:
    """What a function returns is checked before it is stored, and the error names the part."""
    block = Block(
        ids=np.array([1, 5], np.uint32),
        labels=np.zeros(2, np.float32),
        local=np.array([0, 1], np.uint16),
        row_starts=np.array([0, 1, 2], np.uint32),
        values=None,
        weights=None,
    )
    check_block(block)
    with pytest.raises(DataError, match=problem):
        check_block(dataclasses.replace(block, **change))


def test_a_function_that_exits_fails_the_job(tmp_path: Path) -> None:
    """Also where it runs in a thread, which ends without a word."""
    with pytest.raises(CirrusError, match="SystemExit"):
        make_dataset(tmp_path / "in").map_reduce(lambda block: sys.exit(4), max, backend="inline")
