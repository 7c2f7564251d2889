"""What failures cost: how soon a killed shard is back, and the time that killed workers take.

``python benchmarks/faults.py``: for each of some kills of a shard, the seconds until its successor serves and
until training has gone on; then, window by window in turns, the rows a second with and without a worker
killed in the window. One kill a minute costs the share that the kill takes of its window, times window over
minute.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.sparse

import cirrus
from cirrus.client_backend.local import LocalBackend, LocalLauncher
from cirrus.client_backend.runs import Run, new_run_id
from cirrus.client_backend.supervisor import Supervisor
from cirrus.config import ModelConfig, RunConfig
from cirrus.frontend.planning import plan_run
from cirrus.paramserver.snapshots import SNAPSHOT_SECONDS

N_ROWS, N_FEATURES, PER_ROW = 100_000, 2**20, 39
BATCH_ROWS = 256
N_WORKERS, N_SHARDS = 2, 2
MINUTE_SECONDS = 60.0
#: What is promised.
RECOVERY_SECONDS = 5.0
KILL_SHARE = 0.05
POLL_SECONDS = 0.01
PATIENCE_SECONDS = 120.0


def make_dataset(url: str) -> cirrus.Dataset:
    """Store rows shaped like advertising data."""
    rng = np.random.default_rng(0)
    columns = (N_FEATURES * rng.random(N_ROWS * PER_ROW) ** 3).astype(np.int32)
    ones = np.ones(len(columns), np.float32)
    rows = scipy.sparse.csr_matrix(
        (ones, columns, np.arange(0, len(columns) + 1, PER_ROW)), (N_ROWS, N_FEATURES)
    )
    labels = (rows @ rng.normal(size=N_FEATURES) > 0).astype(np.float64)
    return cirrus.load_arrays(rows, labels, url=url)


def await_true(condition: Callable[[], object]) -> None:
    """Wait until a condition is true.

    Raises:
        TimeoutError: It does not come true.
    """
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("the run stands still")
        time.sleep(POLL_SECONDS)


def plan(train: cirrus.Dataset) -> RunConfig:
    """Return the config of a run that does not end by itself."""
    estimator = cirrus.LogisticRegression(
        n_workers=N_WORKERS, n_shards=N_SHARDS, batch_size=BATCH_ROWS, epochs=10**6, tol=None
    )
    return plan_run(
        estimator.get_params(),
        run_id=new_run_id(),
        model=ModelConfig(
            name="logistic", params={"classes": [0.0, 1.0], "fit_intercept": True, "class_weight": None}
        ),
        train_url=train.url,
        manifest=train.manifest,
        seed=0,
    )


def recover(run: Run, shard: int) -> tuple[float, float]:
    """Kill a shard; return the seconds until its successor serves, and until training has gone on."""
    address = run.folder.shard_address(shard)
    assert address is not None
    generation = address.generation
    os.kill(address.pid, signal.SIGKILL)
    start = time.monotonic()

    def is_back() -> bool:
        found = run.folder.shard_address(shard)
        return found is not None and found.generation > generation

    await_true(is_back)
    serves = time.monotonic() - start
    # A lease counts when all shards have acknowledged it, the new one too.
    updates = run.status.updates
    await_true(lambda: run.status.updates > updates)
    return serves, time.monotonic() - start


def worker_pids(run: Run) -> list[int]:
    """Return the processes of the run's workers."""
    assert isinstance(run.supervisor, Supervisor)
    launcher = run.supervisor.launcher
    assert isinstance(launcher, LocalLauncher)
    return launcher.workers.pids


def samples_of_window(run: Run, seconds: float, *, kill: bool) -> float:
    """Return the rows a second of one window, at the beginning of which a worker is killed or not."""
    pids = worker_pids(run)
    before, start = run.status.samples, time.monotonic()
    if kill:
        os.kill(pids[0], signal.SIGKILL)
    time.sleep(seconds)
    rate = (run.status.samples - before) / (time.monotonic() - start)
    await_true(lambda: run.status.n_workers == N_WORKERS)
    return rate


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=5, help="of each shard")
    parser.add_argument("--windows", type=int, default=8, help="with a kill, and as many without")
    parser.add_argument("--window-seconds", type=float, default=5.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        train = make_dataset(str(Path(folder) / "train"))
        with LocalBackend(root=Path(folder)).start(plan(train)) as run:
            await_true(lambda: run.status.updates > 0)
            time.sleep(2 * SNAPSHOT_SECONDS)
            print("shard  serves again  trains again   (seconds; median, worst)")
            worst = 0.0
            for shard in range(N_SHARDS):
                times = [recover(run, shard) for _ in range(options.kills)]
                serves, trains = zip(*times, strict=True)
                worst = max(worst, *trains)
                print(
                    f"{shard:5d}  {statistics.median(serves):5.2f} {max(serves):5.2f}"
                    f"   {statistics.median(trains):5.2f} {max(trains):5.2f}"
                )
            print(f"worst recovery {worst:.2f} s; promised: {RECOVERY_SECONDS:.0f} s")
            rates: dict[bool, list[float]] = {True: [], False: []}
            for _ in range(options.windows):
                for kill in (False, True):
                    rates[kill].append(samples_of_window(run, options.window_seconds, kill=kill))
            with_kill, without = statistics.median(rates[True]), statistics.median(rates[False])
            window = options.window_seconds
            lost = max(0.0, 1.0 - with_kill / without) * window
            print(f"rows/s: {without:,.0f}; in {window:g} s with a killed worker: {with_kill:,.0f}")
            print(
                f"a killed worker costs {lost:.2f} s of the run, {lost / MINUTE_SECONDS:.1%} at one kill a"
                f" minute; promised: {KILL_SHARE:.0%}"
            )


if __name__ == "__main__":
    main()
