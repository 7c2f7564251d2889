"""What the dashboard takes with many runs: until a page shows them, and to answer a page while it reads.

Writes the folders of so many runs with so many points each, and follows them as ``cirrus dashboard`` does::

    python benchmarks/dashboard.py --runs 500 --points 2000

The page's own part, to draw in a browser, is not in these figures.
"""

from __future__ import annotations

import argparse
import dataclasses
import http.client
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from cirrus_dashboard import DashboardServer
from cirrus_dashboard.sources import FolderSource

from cirrus.client_backend.claims import new_claim
from cirrus.client_backend.runs import run_url
from cirrus.config import LeaseRange, ModelConfig, OptimizerConfig, RunConfig, StopConfig, TableConfig
from cirrus.metrics import MetricPoint, RunState, RunStatus
from cirrus.run_folder import METRICS_SEGMENT_BYTES, MetricsWriter, RunFolder

#: At most: until there is a line for each run, and until there are all curves.
ROWS_SECONDS, CURVES_SECONDS = 3.0, 10.0
#: Most that any answer of the server may take, from the question to its last byte.
ANSWER_MILLISECONDS = 300.0
#: Different curves; the runs beyond repeat them.
N_KINDS = 10
N_UPDATES = 20
N_GROWING = 50
#: A page asks this often.
TICK_SECONDS = 2.0
#: What a page shows that nobody has touched.
VIEW = {"loss": "loss", "x": "seconds", "smoothing": 0, "show": "all", "count": 5}


class Answer(NamedTuple):
    """What a page got."""

    milliseconds: float
    n_bytes: int


def points(n_points: int, seed: int) -> list[MetricPoint]:
    """Return the points of a run whose loss falls, with noise."""
    rng = np.random.default_rng(seed)
    losses = 0.45 + 0.3 * np.exp(-np.arange(n_points) / rng.uniform(100, 900)) + rng.normal(0, 0.01, n_points)
    seconds = np.cumsum(rng.uniform(0.5, 1.5, n_points))
    return [
        MetricPoint(
            seconds=float(seconds[n]),
            epoch=n // 100,
            updates=10 * n,
            samples=2560 * n,
            train_loss=float(losses[n]),
            validation_loss=float(losses[n] + 0.01) if n % 100 == 0 else None,
            validation_metrics={"accuracy": 0.8} if n % 100 == 0 else {},
            cost=float(seconds[n] * 1e-4),
            n_workers=2,
            fetch_seconds=float(rng.uniform()),
            pull_seconds=float(rng.uniform()),
            compute_seconds=float(rng.uniform()),
            push_seconds=float(rng.uniform()),
        )
        for n in range(n_points)
    ]


def write(folder: RunFolder, found: list[MetricPoint]) -> None:
    """Write points as shard 0 does, some at a time."""
    writer = MetricsWriter(folder)
    for point in found:
        writer.append(point)
        if len(found) < METRICS_SEGMENT_BYTES // 400 or point.updates % 1000 == 0:
            writer.flush()
    writer.flush()


def make_runs(root: Path, n_runs: int, n_points: int) -> list[RunFolder]:
    """Write run folders; return them. Those that will grow are live, and supervised by this process."""
    kinds = [RunFolder(f"memory://dashboard-benchmark/{kind}") for kind in range(N_KINDS)]
    for kind, folder in enumerate(kinds):
        write(folder, points(n_points, kind))
    folders = []
    for number in range(n_runs):
        run_id = f"run-{number:04d}"
        folder = RunFolder(run_url(str(root), run_id))
        folder.create(config(run_id, number))
        source = kinds[number % N_KINDS].store
        for key in source.list("metrics/"):
            folder.store.put(key, source.get(key))
        live = number < N_GROWING
        folder.claim(dataclasses.replace(new_claim(), released=not live))
        state = RunState.RUNNING if live else RunState.FINISHED
        folder.write_status(RunStatus(state=state, heartbeat_at=time.time(), train_loss=0.5, updates=number))
        folders.append(folder)
    return folders


def config(run_id: str, number: int) -> RunConfig:
    """Return the config of a run, with hyperparameters that differ."""
    table = TableConfig(
        name="weights", n_rows=1000, width=1, optimizer=OptimizerConfig(name="ftrl"), boundaries=(0, 1000)
    )
    chosen = {"learning_rate": 0.001 * 1.5 ** (number % 17), "l1": number % 3}
    return RunConfig(
        run_id=run_id,
        model=ModelConfig(name="logistic"),
        tables=(table,),
        train_url="nowhere",
        train_fingerprint="",
        n_features=1000,
        batch_size=256,
        leases=tuple(
            LeaseRange(chunk=0, first_block=n, n_blocks=1, n_rows=1024, n_steps=4) for n in range(100)
        ),
        stop=StopConfig(epochs=20),
        n_workers=2,
        n_shards=1,
        model_metadata={"card": {"estimator": "LogisticRegression", "params": chosen}},
    )


class Page:
    """Asks a server as a browser's page does, for all that is new.

    Args:
        url: The server's address, as ``cirrus dashboard`` prints it.
    """

    def __init__(self, url: str) -> None:
        self._place = urllib.parse.urlsplit(url)
        self._connection = http.client.HTTPConnection(str(self._place.hostname), self._place.port)
        found = json.loads(self._request("GET", "_dash-dependencies"))
        (self._refresh,) = (
            x for x in found if "delta.data" in x["output"] and x["clientside_function"] is None
        )
        self._cursors: object = None

    def ask(self) -> list[Answer]:
        """Return the answers until there is nothing more."""
        answers: list[Answer] = []
        while True:
            began = time.perf_counter()
            raw = self._request("POST", "_dash-update-component", self._question())
            seconds = time.perf_counter() - began
            if not raw:
                return answers
            found = json.loads(raw)["response"]["delta"]["data"]
            self._cursors = found["cursors"]
            answers.append(Answer(1000 * seconds, len(raw)))
            if not found["more"]:
                return answers

    def _question(self) -> dict[str, object]:
        values = {**VIEW, "cursors": self._cursors}
        outputs = [part.split(".") for part in self._refresh["output"].strip(".").split("...")]
        return {
            "output": self._refresh["output"],
            "outputs": [{"id": name, "property": what} for name, what in outputs],
            "inputs": [{**part, "value": values.get(part["id"])} for part in self._refresh["inputs"]],
            "state": [{**part, "value": values.get(part["id"])} for part in self._refresh["state"]],
            "changedPropIds": ["tick.n_intervals"],
        }

    def _request(self, method: str, path: str, body: object = None) -> bytes:
        headers = {"Origin": f"http://{self._place.netloc}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body)
        self._connection.request(method, f"{self._place.path}{path}", data, headers)
        answer = self._connection.getresponse()
        text = answer.read()
        if answer.status not in (200, 204):
            raise SystemExit(f"{path}: {answer.status} {text.decode(errors='replace')}")
        return text


def be_a_page(url: str) -> None:
    """Ask whenever a line comes, and print the answers to it; a process of its own, as a browser is."""
    page = Page(url)
    for _ in sys.stdin:
        print(json.dumps(page.ask()), flush=True)


class Browser:
    """A page in another process; use it as a context manager.

    Args:
        url: What it looks at.
    """

    def __init__(self, url: str) -> None:
        command = [sys.executable, __file__, "--page", url]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.ask()  # it is up

    def ask(self) -> list[Answer]:
        """Have it ask; return the answers that it got."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return [Answer(*answer) for answer in json.loads(self._process.stdout.readline())]

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()


@contextmanager
def asking(browser: Browser) -> Iterator[list[Answer]]:
    """Have a page ask every two seconds meanwhile; yield the answers that it gets."""
    done = threading.Event()
    answers: list[Answer] = []

    def ask() -> None:
        while not done.wait(TICK_SECONDS):
            answers.extend(browser.ask())

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield answers
    finally:
        done.set()
        thread.join()


def when(condition: Callable[[], bool]) -> float:
    """Return the seconds until something is true."""
    began = time.perf_counter()
    while not condition():
        time.sleep(0.005)  # another thread's snapshot wakes nobody
    return time.perf_counter() - began


def first_reading(root: Path, n_runs: int, n_points: int) -> bool:
    """From nothing to all curves, with a page that watches."""
    began_cpu = time.process_time()
    source = FolderSource(str(root))
    with DashboardServer(source, port=0) as server, Browser(server.url) as browser:
        with asking(browser) as answers:
            source.start()
            rows = when(lambda: len(source.snapshot.records) == n_runs)
            curves = rows + when(lambda: n_read(source) == n_runs * n_points)
        answers += browser.ask()
    cpu = time.process_time() - began_cpu
    slowest = max(answer.milliseconds for answer in answers)
    print(f"first reading   all lines {rows:5.2f} s (at most {ROWS_SECONDS:g})   all curves {curves:5.2f} s "
          f"(at most {CURVES_SECONDS:g})   processor {cpu:5.2f} s")  # fmt: skip
    largest = max(answer.n_bytes for answer in answers)
    print(f"meanwhile       slowest of {len(answers)} answers {slowest:.0f} ms "
          f"(at most {ANSWER_MILLISECONDS:g}), largest {largest / 1e6:.2f} MB")  # fmt: skip
    return rows <= ROWS_SECONDS and curves <= CURVES_SECONDS and slowest <= ANSWER_MILLISECONDS


def n_read(source: FolderSource) -> int:
    """Return the points that were read so far."""
    return sum(len(record.columns) for record in source.snapshot.records.values())


def updates(root: Path, folders: list[RunFolder]) -> bool:
    """Answers to a page that has everything, when some runs grew; and to one that is opened then."""
    source = FolderSource(str(root))
    source.poll()
    answers, polls = [], []
    with DashboardServer(source, port=0) as server, Browser(server.url) as browser:
        for number in range(N_UPDATES):
            for folder in folders[:N_GROWING]:
                write(folder, points(2, number))
                folder.write_status(
                    RunStatus(state=RunState.RUNNING, heartbeat_at=time.time(), updates=10_000 + number)
                )
            began = time.perf_counter()
            source.poll()
            polls.append(time.perf_counter() - began)
            answers += browser.ask()
        opened = Page(server.url).ask()
    slowest = max(answer.milliseconds for answer in answers)
    usual = statistics.median(answer.milliseconds for answer in answers)
    n_bytes = statistics.median(answer.n_bytes for answer in answers)
    print(f"an update       of {N_GROWING} runs: answer {usual:.0f} ms, slowest {slowest:.0f} "
          f"(at most {ANSWER_MILLISECONDS:g}), {n_bytes / 1e3:.0f} kB; "
          f"reading them {1000 * statistics.median(polls):.0f} ms")  # fmt: skip
    whole = max(answer.milliseconds for answer in opened)
    n_bytes = sum(answer.n_bytes for answer in opened)
    print(f"a page reloaded {len(opened)} answers, the slowest {whole:.0f} ms "
          f"(at most {ANSWER_MILLISECONDS:g}), {n_bytes / 1e6:.2f} MB")  # fmt: skip
    return max(slowest, whole) <= ANSWER_MILLISECONDS


def main() -> int:
    """Measure; return 1 when a mark is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--points", type=int, default=2000)
    parser.add_argument("--page", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.page:
        be_a_page(options.page)
        return 0
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        folders = make_runs(root, options.runs, options.points)
        print(f"{options.runs} runs of {options.points:,} points", flush=True)
        held = [
            first_reading(root, options.runs, options.points),
            first_reading(root, options.runs, options.points),
            updates(root, folders),
        ]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
