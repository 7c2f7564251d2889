"""Loading in functions: the same dataset to the bit, whoever parses, however often a function is lost."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import boto3
import pytest
from aws_services import moto_services, use_services

import cirrus
from cirrus.client_backend.aws.facade import Invocation
from cirrus.client_backend.aws.load_functions import ATTEMPTS, FunctionLoadWorker, LoadFunctions
from cirrus.client_backend.csv_format import CsvRequest
from cirrus.client_backend.inline import InlineBackend
from cirrus.client_backend.load_formats import SvmlightFormat
from cirrus.client_backend.load_function import handle_json
from cirrus.client_backend.load_tasks import LoadPlan, LoadSizes
from cirrus.client_backend.loader import (
    LoadOptions,
    LoadProgress,
    load_csv_file,
    load_inputs,
    load_svmlight_file,
    open_inputs,
)
from cirrus.client_backend.located import locate_segments
from cirrus.client_backend.segments import InputFile, Place, read_segments
from cirrus.errors import ConfigError, DataError, LostResponseError, RunError, ThrottledError
from cirrus.frontend.datasets import Dataset
from cirrus.storage import open_store

BUCKET = "cirrus-loads"
#: Sizes at which a file of some kB takes the paths of a large one.
SMALL = LoadSizes(segment_bytes=2_000, bucket_text_bytes=8_000, bucket_bytes=6_000)
N_ROWS = 400
#: A function that nobody lets go on answers after this time.
PATIENCE_SECONDS = 60.0
SVMLIGHT = "".join(f"{i} {1 + i % 7}:{i / 8} {9 + i % 90}:1\n" for i in range(N_ROWS))
FILES = {
    "svmlight": SVMLIGHT + "-1 1:1e-3 3:.5 # a comment\n\n+2.5 4:7. 99:1E2\n",
    "csv": "y,size,colour\n" + "".join(f"{i % 2},{i / 3:.4f},c{i % 2}{i % 11}\n" for i in range(500)),
    "ratings": "".join(f"u{i % 37},{i % 53},{i % 5}\n" for i in range(400)),
    "ldac": "".join(f"2 {i % 5}:1 {7 + i % 9}:{1 + i % 3}\n" for i in range(300)),
    "docword": "3\n9\n4\n1 1 2\n1 9 1\n2 3 1\n3 1 5\n",
    "vw": "".join(f"{i % 2} {1 + i % 2} |a x{i % 9}:0.5 x |b:2 y{i % 4} red=z{i % 3}\n" for i in range(200)),
}  # fmt: skip


class Functions:
    """Lambda, as far as loads need it: the handler, in this process.

    Args:
        trouble: Called with the number of each invocation before it is done; may raise.
    """

    def __init__(self, trouble: Callable[[int], None] = lambda _: None) -> None:
        self._trouble = trouble
        self._numbers = itertools.count()
        self.events: list[dict[str, Any]] = []
        self.closed = threading.Event()

    def invoke(self, function: str, payload: bytes) -> Invocation:
        """Do a task."""
        self.events.append(json.loads(payload))
        self._trouble(next(self._numbers))
        return Invocation(payload=handle_json(payload), failed=False, log_tail="")

    def close(self) -> None:
        """Note that nobody needs this any more."""
        self.closed.set()


class FunctionsBackend(InlineBackend):
    """Loads in functions."""

    loads_remotely = True
    default_job_workers = 3

    def __init__(self, functions: Functions) -> None:
        super().__init__()
        self.functions = functions
        self.notices: list[str] = []

    def load_workers(self, plan: LoadPlan) -> Sequence[FunctionLoadWorker]:
        """See :meth:`Backend.load_workers`."""
        shared = LoadFunctions(
            self.functions,  # type: ignore[arg-type]
            "worker",
            plan.n_workers,
            notice=self.notices.append,
            rng=random.Random(0),
        )
        return [FunctionLoadWorker(shared, plan) for _ in range(plan.n_workers)]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """A server that speaks S3, with a bucket."""
    with moto_services() as url:
        yield url


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket's URL."""
    use_services(monkeypatch, endpoint)
    client = boto3.session.Session().client("s3")
    client.create_bucket(Bucket=BUCKET)
    client.close()
    return f"s3://{BUCKET}"


def load(path: Path | str, url: Path | str, backend: FunctionsBackend | None = None) -> Dataset:
    """Load svmlight in small pieces."""
    store = open_store(url)
    options = LoadOptions(sizes=SMALL, random_state=0, backend=backend)
    return Dataset(store.url, load_svmlight_file(str(path), store, options=options))


def contents(dataset: Dataset) -> list[bytes]:
    """Return the chunks' bytes."""
    store = open_store(dataset.url)
    return [store.get(chunk.key) for chunk in dataset.manifest.chunks]


def test_functions_make_the_dataset_that_processes_make(bucket: str, tmp_path: Path) -> None:
    """Objects are read by functions themselves, other text is put there for them; nothing of it is left."""
    (tmp_path / "rows.svm").write_text(SVMLIGHT)
    open_store(f"{bucket}/raw").put("rows.svm", SVMLIGHT.encode())
    here = load(tmp_path / "rows.svm", tmp_path / "here")
    for name, path in (("text", tmp_path / "rows.svm"), ("object", f"{bucket}/raw/rows.svm")):
        backend = FunctionsBackend(Functions())
        there = load(path, f"{bucket}/{name}", backend)
        assert contents(there) == contents(here)
        assert there.manifest.fingerprint == here.manifest.fingerprint
        scattered = [event for event in backend.functions.events if event["call"] == "scatter"]
        packed = {event["request"]["location"]["is_packed"] for event in scattered}
        assert packed == {name == "text"}
        assert backend.functions.closed.is_set()
        kept = {"manifest.json", *(chunk.key for chunk in there.manifest.chunks)}
        assert set(open_store(f"{bucket}/{name}").list()) == kept


def test_lost_answers_and_refusals_change_nothing(bucket: str, tmp_path: Path) -> None:
    """A task whose answer is lost is done again; refusals are waited out, and said once or more."""

    def trouble(number: int) -> None:
        if number in (1, 4):
            raise LostResponseError("no answer")
        if number in (2, 3):
            raise ThrottledError("too many")

    (tmp_path / "rows.svm").write_text(SVMLIGHT)
    backend = FunctionsBackend(Functions(trouble))
    there = load(tmp_path / "rows.svm", f"{bucket}/troubled", backend)
    assert contents(there) == contents(load(tmp_path / "rows.svm", tmp_path / "here"))
    assert any("Concurrent executions" in notice for notice in backend.notices)


def test_functions_that_are_lost_again_and_again_end_the_load(bucket: str, tmp_path: Path) -> None:
    """The error says what was lost; what was parsed is kept, and the same load goes on with it."""
    (tmp_path / "rows.svm").write_text(SVMLIGHT)

    def trouble(number: int) -> None:
        if number >= 2:
            raise LostResponseError("no answer")

    lost = FunctionsBackend(Functions(trouble))
    with pytest.raises(RunError, match="no answer"):
        load(tmp_path / "rows.svm", f"{bucket}/lost", lost)
    assert len(lost.functions.events) >= 2 + ATTEMPTS
    whole = FunctionsBackend(Functions())
    there = load(tmp_path / "rows.svm", f"{bucket}/lost", whole)
    done = [
        event["request"]["segment"]["number"]
        for event in whole.functions.events
        if event["call"] == "scatter"
    ]
    assert len(done) < len(SVMLIGHT) / SMALL.segment_bytes
    assert contents(there) == contents(load(tmp_path / "rows.svm", tmp_path / "here"))


def test_an_interrupt_waits_for_no_function(bucket: str, tmp_path: Path) -> None:
    """Ctrl-C ends a load while functions are at work; the same load goes on with what was parsed."""
    (tmp_path / "rows.svm").write_text(SVMLIGHT)
    done, late = threading.Event(), []

    def trouble(number: int) -> None:
        if number >= 2:
            late.append(done.wait(PATIENCE_SECONDS))

    def interrupt(progress: LoadProgress) -> None:
        if progress.rows:
            raise KeyboardInterrupt

    stuck = FunctionsBackend(Functions(trouble))
    options = LoadOptions(sizes=SMALL, random_state=0, backend=stuck, progress=interrupt)
    with pytest.raises(KeyboardInterrupt):
        load_svmlight_file(str(tmp_path / "rows.svm"), open_store(f"{bucket}/interrupted"), options=options)
    assert late == []  # nobody has waited for them
    assert stuck.functions.closed.is_set()
    done.set()
    whole = FunctionsBackend(Functions())
    there = load(tmp_path / "rows.svm", f"{bucket}/interrupted", whole)
    assert contents(there) == contents(load(tmp_path / "rows.svm", tmp_path / "here"))


def test_errors_name_the_line_of_the_file(bucket: str, tmp_path: Path) -> None:
    """Functions that read objects themselves do not know how many lines come before; the client does."""
    bad = SVMLIGHT + "1 2:x\n" + SVMLIGHT
    open_store(f"{bucket}/raw").put("bad.svm", bad.encode())
    (tmp_path / "bad.svm").write_text(bad)
    for path in (f"{bucket}/raw/bad.svm", tmp_path / "bad.svm"):
        with pytest.raises(DataError, match=r"bad\.svm:401: the value in '2:x' is not a number"):
            load(path, f"{bucket}/bad", FunctionsBackend(Functions()))
    assert open_store(f"{bucket}/bad").list() == []
    # What the error quotes is as long as the number that a line has until those before it are counted.
    open_store(f"{bucket}/raw").put("long.svm", b"1 1:1\n1 :1099511627999:3\n")
    with pytest.raises(DataError, match=r"long\.svm:2: .*':1099511627999:3'"):
        load(f"{bucket}/raw/long.svm", f"{bucket}/bad", FunctionsBackend(Functions()))
    late = "1 5:1\n" * 900 + "1 0:1 5:1\n"
    open_store(f"{bucket}/raw").put("late.svm", late.encode())
    how, store = SvmlightFormat(n_features=5), open_store(f"{bucket}/late")
    options = LoadOptions(sizes=SMALL, backend=FunctionsBackend(Functions()))
    with (
        open_inputs(f"{bucket}/raw/late.svm") as inputs,
        pytest.raises(DataError, match=r"late\.svm:1: index 5"),
    ):
        load_inputs(inputs, store, how, options)


def test_line_ends_between_quotation_marks_are_cut_here(bucket: str, tmp_path: Path) -> None:
    """A segment that would end within quotes is noticed, and this process cuts the file instead."""
    text = "y,colour\n" + "".join(f'{i % 2},"red\nand blue {i % 3}"\n' for i in range(150))
    (tmp_path / "quoted.csv").write_text(text)
    open_store(f"{bucket}/raw").put("quoted.csv", text.encode())
    backend = FunctionsBackend(Functions())
    made = []
    for path, url, where in (
        (str(tmp_path / "quoted.csv"), str(tmp_path / "here"), None),
        (f"{bucket}/raw/quoted.csv", f"{bucket}/quoted", backend),
    ):
        options = LoadOptions(sizes=SMALL, random_state=0, backend=where)
        store = open_store(url)
        request = CsvRequest(label="y", numeric=(), categorical=("colour",))
        made.append(Dataset(store.url, load_csv_file(path, store, request=request, options=options)))
    assert contents(made[1]) == contents(made[0])
    scattered = [event for event in backend.functions.events if event["call"] == "scatter"]
    read_there = [not event["request"]["location"]["is_packed"] for event in scattered]
    assert read_there[0]
    assert not read_there[-1]


def test_a_place_that_functions_do_not_reach_is_refused(tmp_path: Path) -> None:
    """Before anything is read."""
    (tmp_path / "rows.svm").write_text(SVMLIGHT)
    backend = FunctionsBackend(Functions())
    backend.reaches = lambda url: url.startswith("s3://")  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="backend: .*does not reach"):
        cirrus.load_svmlight(tmp_path / "rows.svm", tmp_path / "out", backend=backend)
    assert backend.functions.events == []


@pytest.mark.parametrize("n_bytes", [4, 7, 50, 1000])
@pytest.mark.parametrize(
    "text", [b"", b"a\n", b"\xef\xbb\xbfa\nbb\n", b"a\nbb", b"x" * 90 + b"\ny\n\n", b"\n" * 9]
)
def test_objects_are_cut_as_files_are(text: bytes, n_bytes: int, tmp_path: Path) -> None:
    """Looking at the ends of segments alone finds the same segments as reading everything."""
    (tmp_path / "text").write_bytes(text)
    store = open_store(tmp_path)
    file = InputFile("text", "text", len(text), "", store)
    whole = [(s.number, s.start, len(s.data)) for s in read_segments(file, segment_bytes=n_bytes)]
    found = [(s.number, s.start, s.n_bytes) for s in locate_segments(file, n_bytes, Place())]
    assert found == whole
    for begin in (segment.after for segment in read_segments(file, segment_bytes=n_bytes)):
        rest = [(s.number, s.start, s.n_bytes) for s in locate_segments(file, n_bytes, begin)]
        assert rest == [segment for segment in whole if segment[0] >= begin.number]


PLAIN = """
import sys
sys.modules["numba"] = None  # as in a function, which has none
from pathlib import Path
import numpy as np
import cirrus
from cirrus.client_backend.loops import ARE_COMPILED
assert not ARE_COMPILED
folder, out = Path(sys.argv[1]), sys.argv[2]
"""
LOADS = """
options = {"random_state": 0, "n_processes": 1}
with np.errstate(over="ignore", invalid="ignore"):
    cirrus.load_svmlight(folder / "svmlight", f"{out}/svmlight", **options)
    cirrus.load_csv(folder / "csv", f"{out}/csv", "y", numeric=["size"], categorical=["colour"], **options)
    cirrus.load_ratings(folder / "ratings", f"{out}/ratings", **options)
    cirrus.load_bag_of_words(folder / "ldac", f"{out}/ldac", **options)
    cirrus.load_bag_of_words(folder / "docword", f"{out}/docword", "docword", **options)
    cirrus.load_vw(folder / "vw", f"{out}/vw", ["ab", "aa"], **options)
    try:
        cirrus.load_svmlight(folder / "huge", f"{out}/huge", **options)
    except cirrus.errors.DataError as error:
        print(error)
"""


def test_without_a_compiler_the_same_rows_are_read(tmp_path: Path) -> None:
    """Each format, parsed by plain Python and numpy, gives the chunks that compiled loops give."""
    for name, text in {**FILES, "huge": "1 1:1e400\n"}.items():
        (tmp_path / name).write_text(text)
    command = [sys.executable, "-c", PLAIN + LOADS, str(tmp_path), str(tmp_path / "plain")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert "huge:1: the value in '1:1e400' is not finite" in done.stdout
    names: dict[str, Any] = {"folder": tmp_path, "out": tmp_path / "compiled"}
    exec("import cirrus, cirrus.errors, numpy as np\n" + LOADS, names)
    for name in FILES:
        compiled = cirrus.Dataset.open(tmp_path / "compiled" / name)
        plain = cirrus.Dataset.open(tmp_path / "plain" / name)
        assert plain.n_rows == compiled.n_rows
        assert contents(plain) == contents(compiled), name
