"""One epoch of training beside scikit-learn's SGDClassifier and Vowpal Wabbit, on the same rows.

The data is a folder with ``X.npy`` (column ids of one-hot fields), ``y.npy`` and, for Vowpal Wabbit,
``train.vw`` and ``test.vw``; the last tenth of the rows is the test part::

    python benchmarks/training.py --data out/bench-data --rounds 3

Cirrus reads chunks that were stored before, SGDClassifier a matrix that is in memory, Vowpal Wabbit its text
file. The epoch's own time is compared, from the first lease to the last step; the time of ``fit`` as a whole,
with processes to start and a model to fetch, stands beside it. Rounds are interleaved and medians printed,
since other work on the machine comes and goes. A factorization machine with 8 factors is trained beside
logistic regression: how much longer takes a step of ten times the parameters?
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import log_loss

import cirrus

N_COLUMNS = 2**20
#: Where the benchmark's data may lie when it is not named.
DEFAULT_DATA = Path("out/bench-data")

VOWPAL = """
import sys, time
from vowpalwabbit import Workspace
train, test, model, predictions = sys.argv[1:]
started_at = time.perf_counter()
Workspace(f"-d {train} -b 20 --loss_function logistic -f {model} --quiet").finish()
print(time.perf_counter() - started_at)
Workspace(f"-d {test} -t -i {model} --link logistic -p {predictions} --quiet").finish()
"""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One round of one tool."""

    seconds: float
    """The epoch."""
    whole_seconds: float
    """What a user waits for."""
    test_loss: float


@dataclass(frozen=True, kw_only=True)
class Data:
    """The rows, in all the ways they are needed."""

    train: cirrus.Dataset
    X: scipy.sparse.csr_matrix
    y: NDArray[Any]
    X_test: scipy.sparse.csr_matrix
    y_test: NDArray[Any]
    folder: Path


def load(folder: Path, store: Path) -> Data:
    """Read the rows, and store the training part as a dataset."""
    columns, y = np.load(folder / "X.npy", allow_pickle=False), np.load(folder / "y.npy", allow_pickle=False)
    n_train = len(y) * 9 // 10
    X, X_test = (one_hot(part) for part in (columns[:n_train], columns[n_train:]))
    train = cirrus.load_arrays(X, y[:n_train], store / "train", random_state=0)
    return Data(train=train, X=X, y=y[:n_train], X_test=X_test, y_test=y[n_train:], folder=folder)


def one_hot(columns: NDArray[Any]) -> scipy.sparse.csr_matrix:
    """Return rows of ones at the given columns; a column that two fields share counts once."""
    n_rows, n_fields = columns.shape
    starts = np.arange(n_rows + 1) * n_fields
    matrix = scipy.sparse.csr_matrix(
        (np.ones(columns.size, np.float32), columns.ravel(), starts), shape=(n_rows, N_COLUMNS)
    )
    matrix.sum_duplicates()
    matrix.data[:] = 1.0
    return matrix


def run_cirrus(kind: type[Any], data: Data, n_workers: int, home: Path) -> Result:
    """Train for one epoch with the default settings."""
    started_at = time.perf_counter()
    backend = cirrus.LocalBackend(root=home)
    est = kind(epochs=1, n_workers=n_workers, backend=backend, random_state=0)
    est.fit(data.train)
    whole = time.perf_counter() - started_at
    loss = log_loss(data.y_test, est.predict_proba(data.X_test))
    return Result(seconds=est.history_[-1].seconds, whole_seconds=whole, test_loss=loss)


def run_sgd(data: Data) -> Result:
    """One call of ``partial_fit``."""
    classifier = SGDClassifier(loss="log_loss", random_state=0)
    started_at = time.perf_counter()
    classifier.partial_fit(data.X, data.y, classes=[0, 1])
    seconds = time.perf_counter() - started_at
    loss = log_loss(data.y_test, classifier.predict_proba(data.X_test))
    return Result(seconds=seconds, whole_seconds=seconds, test_loss=loss)


def run_vowpal(data: Data, folder: Path) -> Result:
    """One pass over the text file, in a process of its own."""
    paths = [data.folder / "train.vw", data.folder / "test.vw", folder / "model", folder / "predictions"]
    started_at = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", VOWPAL, *map(str, paths)], capture_output=True, text=True, check=True
    )
    seconds = float(done.stdout.split()[0])
    loss = log_loss(data.y_test, np.loadtxt(paths[3]))
    return Result(seconds=seconds, whole_seconds=time.perf_counter() - started_at, test_loss=loss)


def main() -> int:
    """Print rates, ratios and test losses."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    if not (options.data / "X.npy").exists():
        print(f"skipped: {options.data} has no X.npy; name a folder with --data")
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = load(options.data, folder)
        tools: dict[str, Callable[[], Result]] = {
            "cirrus": lambda: run_cirrus(cirrus.LogisticRegression, data, options.workers, folder / "home"),
            "cirrus, FM of 8": lambda: run_cirrus(
                cirrus.FactorizationMachine, data, options.workers, folder / "home"
            ),
            "SGDClassifier": lambda: run_sgd(data),
        }
        if (options.data / "train.vw").exists():
            tools["vowpal wabbit"] = lambda: run_vowpal(data, folder)
        results: dict[str, list[Result]] = {tool: [] for tool in tools}
        for _ in range(options.rounds):
            for tool, run in tools.items():
                results[tool].append(run())
    report(results, data.train.n_rows)
    return 0


def report(results: dict[str, list[Result]], n_rows: int) -> None:
    """Print medians, and how many times faster than each other tool Cirrus is."""
    print(f"one epoch of {n_rows:,} rows, median of {len(results['cirrus'])}")
    print(f"{'':<16}{'samples/s':>12}{'epoch s':>10}{'whole s':>10}{'test loss':>11}{'cirrus is':>11}")
    cirrus_seconds = statistics.median(result.seconds for result in results["cirrus"])
    for tool, rounds in results.items():
        seconds = statistics.median(result.seconds for result in rounds)
        whole = statistics.median(result.whole_seconds for result in rounds)
        loss = statistics.median(result.test_loss for result in rounds)
        print(
            f"{tool:<16}{n_rows / seconds:>12,.0f}{seconds:>10.2f}{whole:>10.2f}{loss:>11.4f}"
            f"{seconds / cirrus_seconds:>10.2f}x"
        )


if __name__ == "__main__":
    sys.exit(main())
