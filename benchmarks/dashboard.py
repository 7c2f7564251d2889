"""What the dashboard takes with many runs: until a page shows them, and to answer a page while it reads.

Writes the folders of so many runs with so many points each, and follows them as ``cirrus dashboard`` does::

    python benchmarks/dashboard.py --runs 500 --points 2000

The page's own part, to draw in a browser, is not in these figures.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from cirrus_dashboard.sources import FolderSource
from cirrus_dashboard.views import Cursors, CurveCache, View, delta

from cirrus.client_backend.claims import new_claim
from cirrus.client_backend.runs import run_url
from cirrus.config import LeaseRange, ModelConfig, OptimizerConfig, RunConfig, StopConfig, TableConfig
from cirrus.metrics import MetricPoint, RunState, RunStatus
from cirrus.run_folder import METRICS_SEGMENT_BYTES, MetricsWriter, RunFolder

#: At most: until a page has a line for each run, until it has all curves, and for an answer of the server.
ROWS_SECONDS, CURVES_SECONDS, ANSWER_SECONDS = 3.0, 10.0, 0.3
#: Different curves; the runs beyond repeat them.
N_KINDS = 10
N_UPDATES = 20
N_GROWING = 50
#: A page asks this often.
TICK_SECONDS = 2.0


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
    """Asks as a browser's page does, over JSON.

    Args:
        source: What it asks.
    """

    def __init__(self, source: FolderSource) -> None:
        self._source = source
        self._cursors: object = None
        self._cache = CurveCache()
        self.rows = 0
        self.points = 0
        self.bytes: list[int] = []
        self.seconds: list[float] = []

    def ask(self) -> None:
        """Ask once, if there is anything new."""
        began = time.perf_counter()
        cursors = Cursors.from_plain(self._cursors)
        found = delta(self._source.snapshot, View(), cursors, source="benchmark", cache=self._cache)
        if found is None:
            return
        text = json.dumps(found)
        self.seconds.append(time.perf_counter() - began)
        self.bytes.append(len(text))
        answer = json.loads(text)
        self._cursors = answer["cursors"]
        self.rows = len(answer["row_order"])
        self.points = sum(mark[0] for mark in answer["cursors"]["curves"].values())


@contextmanager
def asking(page: Page) -> Iterator[None]:
    """Have a page ask every two seconds, in a thread as the server has."""
    done = threading.Event()

    def ask() -> None:
        while not done.wait(TICK_SECONDS):
            page.ask()

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
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
    page = Page(source)
    with source, asking(page):
        rows = when(lambda: len(source.snapshot.records) == n_runs)
        curves = rows + when(
            lambda: (
                sum(len(record.columns) for record in source.snapshot.records.values()) == n_runs * n_points
            )
        )
    cpu = time.process_time() - began_cpu
    page.ask()
    slowest = max(page.seconds)
    print(f"first reading   all lines {rows:5.2f} s (at most {ROWS_SECONDS:g})   all curves {curves:5.2f} s "
          f"(at most {CURVES_SECONDS:g})   processor {cpu:5.2f} s")  # fmt: skip
    print(f"meanwhile       slowest answer {1000 * slowest:.0f} ms, largest {max(page.bytes) / 1e6:.2f} MB")
    return rows <= ROWS_SECONDS and curves <= CURVES_SECONDS


def n_read(source: FolderSource) -> int:
    """Return the points that were read so far."""
    return sum(len(record.columns) for record in source.snapshot.records.values())


def updates(root: Path, folders: list[RunFolder]) -> bool:
    """Answers to a page that has everything, when some runs grew."""
    source = FolderSource(str(root))
    source.poll()
    page = Page(source)
    page.ask()
    page.seconds.clear()
    page.bytes.clear()
    polls = []
    for number in range(N_UPDATES):
        for folder in folders[:N_GROWING]:
            write(folder, points(2, number))
            folder.write_status(
                RunStatus(state=RunState.RUNNING, heartbeat_at=time.time(), updates=10_000 + number)
            )
        began = time.perf_counter()
        source.poll()
        polls.append(time.perf_counter() - began)
        page.ask()
    answer, reading = statistics.median(page.seconds), statistics.median(polls)
    print(f"an update       of {N_GROWING} runs: answer {1000 * answer:.0f} ms "
          f"(at most {1000 * ANSWER_SECONDS:g}), {statistics.median(page.bytes) / 1e3:.0f} kB; "
          f"reading them {1000 * reading:.0f} ms")  # fmt: skip
    return answer <= ANSWER_SECONDS


def main() -> int:
    """Measure; return 1 when a mark is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--points", type=int, default=2000)
    options = parser.parse_args()
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
