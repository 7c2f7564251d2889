"""Matrix factorization on MovieLens 100k: error and time beside scikit-surprise's SVD.

    python benchmarks/recommendation.py ../shared/data/movielens-100k/u.data.gz

A tenth of the ratings is held out at random (seed 0). scikit-surprise needs numpy 1, so it is run from an
environment of its own: with ``--only surprise`` there, and without here.
"""

from __future__ import annotations

import argparse
import gzip
import importlib
import importlib.util
import io
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Ratings = npt.NDArray[np.int64]
DEFAULT_PATH = Path("../shared/data/movielens-100k/u.data.gz")
EPOCHS = (3, 5, 7)
#: Factors and epochs: scikit-surprise's best on this split is among them.
SURPRISE = ((10, 40), (20, 40), (100, 20))


def main() -> None:
    """Print a line for each way of training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "path", type=Path, nargs="?", default=DEFAULT_PATH, help="u.data.gz of MovieLens 100k"
    )
    parser.add_argument("--only", choices=["cirrus", "surprise"])
    options = parser.parse_args()
    if not options.path.is_file():
        print(f"no {options.path}: the benchmark of recommendation is skipped")
        return
    raw = np.loadtxt(io.StringIO(gzip.decompress(options.path.read_bytes()).decode()), dtype=np.int64)
    order = np.random.default_rng(0).permutation(len(raw))
    test, train = raw[order[: len(raw) // 10], :3], raw[order[len(raw) // 10 :], :3]
    if options.only != "surprise":
        _cirrus(train, test)
    if options.only == "surprise" or (options.only is None and importlib.util.find_spec("surprise")):
        _surprise(train, test)


def _cirrus(train: Ratings, test: Ratings) -> None:
    import cirrus

    for epochs in EPOCHS:
        est = cirrus.MatrixFactorization(
            backend="inline", n_workers=1, random_state=0, epochs=epochs, tol=None
        )
        started_at = time.perf_counter()
        est.fit(*train.T)
        seconds = time.perf_counter() - started_at
        _report(f"cirrus, {epochs} epochs", est.predict(*test[:, :2].T), test, seconds)


def _surprise(train: Ratings, test: Ratings) -> None:
    surprise: Any = importlib.import_module("surprise")
    reader = surprise.Reader(line_format="user item rating", sep="\t", rating_scale=(1, 5))
    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as file:
        np.savetxt(file, train, fmt="%d", delimiter="\t")
        file.flush()
        trainset = surprise.Dataset.load_from_file(file.name, reader)  # which needs no pandas
    for n_factors, n_epochs in SURPRISE:
        model = surprise.SVD(n_factors=n_factors, n_epochs=n_epochs, random_state=0)
        started_at = time.perf_counter()
        model.fit(trainset.build_full_trainset())
        seconds = time.perf_counter() - started_at
        predicted = np.array([model.predict(str(user), str(item)).est for user, item, _ in test.tolist()])
        _report(f"surprise, {n_factors} factors, {n_epochs} epochs", predicted, test, seconds)


def _report(name: str, predicted: npt.NDArray[np.float64], test: Ratings, seconds: float) -> None:
    error = float(np.sqrt(np.mean(np.square(predicted - test[:, 2]))))
    print(f"{name:<36} RMSE {error:.4f}  {seconds:6.2f} s", flush=True)


if __name__ == "__main__":
    main()
