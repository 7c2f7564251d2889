"""Searches: many experiments at a time, successive halving beside a whole grid, and how fast a kill is.

The data is a folder with ``X.npy`` (column ids of one-hot fields) and ``y.npy``; the first ``--rows`` of it
are used, the last tenth of them to validate on::

    python benchmarks/search.py --data out/bench-data --rows 100000

``--part`` takes one of the three: ``twenty``, ``asha`` or ``kill``. Successive halving has 27 trials of three
times as many epochs as the others, 27, so that its first rung, a twenty-seventh, is a whole epoch.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse

import cirrus

N_COLUMNS = 2**20
DEFAULT_DATA = Path("out/bench-data")
PARTS = ("twenty", "asha", "kill")
#: 10 learning rates and 2 numbers of workers.
TWENTY: dict[str, list[Any]] = {"learning_rate": [0.01 * 1.6**k for k in range(10)], "n_workers": [1, 2]}
#: 9 learning rates and 3 penalties.
TWENTY_SEVEN: dict[str, list[Any]] = {
    "learning_rate": [0.002 * 2.0**k for k in range(9)],
    "l1": [0.3, 1.0, 3.0],
}


def load(folder: Path, store: Path, n_rows: int) -> tuple[cirrus.Dataset, cirrus.Dataset]:
    """Store the first rows as two datasets, to train and to validate on."""
    columns = np.load(folder / "X.npy", mmap_mode="r", allow_pickle=False)[:n_rows]
    y = np.load(folder / "y.npy", allow_pickle=False)[:n_rows]
    n_fields = columns.shape[1]
    X = scipy.sparse.csr_matrix(
        (
            np.ones(columns.size, np.float32),
            np.sort(columns, axis=1).ravel(),
            np.arange(0, columns.size + 1, n_fields),
        ),
        shape=(len(columns), N_COLUMNS),
    )
    cut = n_rows * 9 // 10
    train = cirrus.load_arrays(X[:cut], y[:cut], store / "train", random_state=0)
    return train, cirrus.load_arrays(X[cut:], y[cut:], store / "test", random_state=0)


def estimator(root: Path, epochs: int) -> cirrus.LogisticRegression:
    """Return what is searched over."""
    return cirrus.LogisticRegression(
        epochs=epochs, tol=None, n_workers=1, random_state=0, backend=cirrus.LocalBackend(root=root)
    )


def run(search: cirrus.GridSearch, train: cirrus.Dataset, test: cirrus.Dataset) -> tuple[float, float]:
    """Run a search; return its seconds and its workers' seconds."""
    began = time.perf_counter()
    search.fit(train, validation=test)
    return time.perf_counter() - began, sum(row["worker_seconds"] for row in search.results_)


def twenty(root: Path, train: cirrus.Dataset, test: cirrus.Dataset, epochs: int) -> bool:
    """Twenty experiments at a time beside the same one after another."""
    seconds = {}
    for places in (1, 20):
        search = cirrus.GridSearch(estimator(root, epochs), TWENTY, max_concurrent=places)
        seconds[places], _ = run(search, train, test)
        curves = [search.curve(trial) for trial in range(20)]
        assert all(row["status"] == "finished" for row in search.results_)
        assert all(curve[-1].updates > 0 for curve in curves)
        print(f"{places:>3} at a time  {seconds[places]:7.1f} s", flush=True)
    ratio = seconds[20] / seconds[1]
    print(f"20 at a time take {ratio:.2f} of the time of one after another (at most 1.3)")
    return ratio <= 1.3


def asha(root: Path, train: cirrus.Dataset, test: cirrus.Dataset, epochs: int) -> bool:
    """Successive halving beside the whole grid."""
    found = {}
    for pruner in ("asha", None):
        search = cirrus.GridSearch(estimator(root, epochs), TWENTY_SEVEN, max_concurrent=2, pruner=pruner)
        seconds, worker_seconds = run(search, train, test)
        loss = -search.best_score_
        found[pruner] = loss, worker_seconds
        print(
            f"{pruner or 'grid'}: loss {loss:.4f}  {worker_seconds:6.1f} worker-seconds  {seconds:6.1f} s  "
            f"{search.best_params_}",
            flush=True,
        )
    loss_ratio = found["asha"][0] / found[None][0]
    work_ratio = found["asha"][1] / found[None][1]
    print(f"asha: {loss_ratio:.4f} of the loss (at most 1.01), {work_ratio:.3f} of the work (at most 0.333)")
    return loss_ratio <= 1.01 and work_ratio <= 1 / 3


def kill(root: Path, train: cirrus.Dataset, test: cirrus.Dataset, epochs: int) -> bool:
    """How long a killed trial takes to be gone, beside others that go on."""
    search = cirrus.GridSearch(estimator(root, 1000 * epochs), {"l1": [0.5, 1.0, 2.0]}, max_concurrent=3)
    slowest = 0.0
    with search.start(train, validation=test):
        while any(trial.updates == 0 for trial in search.status.trials):
            time.sleep(0.1)  # other processes wake nobody here
        for trial in (0, 1):
            began = time.perf_counter()
            search.kill(trial)
            slowest = max(slowest, time.perf_counter() - began)
        survivor = search.status.trials[2]
        assert survivor.status == "running", survivor
    print(f"a killed trial's workers and shards were gone after {slowest:.2f} s at most (at most 5)")
    return slowest <= 5.0


def main() -> int:
    """Run the parts that are asked for; return 1 when one misses its mark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--epochs", type=int, default=9, help="asha: three times as many")
    parser.add_argument("--part", choices=PARTS, action="append", help="default: all")
    options = parser.parse_args()
    if not (options.data / "X.npy").exists():
        print(f"skipped: there is no {options.data}/X.npy")
        return 0
    held = True
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        train, test = load(options.data, root / "data", options.rows)
        for part in options.part or PARTS:
            epochs = options.epochs * (3 if part == "asha" else 1)
            print(f"-- {part}, {options.rows:,} rows, {epochs} epochs", flush=True)
            held = {"twenty": twenty, "asha": asha, "kill": kill}[part](root, train, test, epochs) and held
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
