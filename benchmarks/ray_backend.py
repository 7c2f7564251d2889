"""Training on Ray beside the local backend, on the same cores.

Both train the same model on the same stored rows, with the same numbers of workers and shards; rounds are
interleaved, and medians of the rows a second printed, from the first lease to the last step. A run has to
last for some seconds: Ray starts its second worker when the first is at work already::

    python benchmarks/ray_backend.py --rows 200000 --rounds 5

Ray is started on this machine for it, and ended with it; nothing is left in the home folder.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import secrets
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import ray
import scipy.sparse

import cirrus
from cirrus.client_backend.base import Backend

#: Fields a row, as in advertising data.
N_FIELDS = 39
N_FEATURES = 2**18


@dataclasses.dataclass(frozen=True, kw_only=True)
class Round:
    """One run."""

    rows_per_second: float
    whole_seconds: float
    """What a user waits for, from ``fit`` to the model."""


def make_rows(n_rows: int, url: str) -> cirrus.Dataset:
    """Store rows of one-hot fields whose labels depend on them."""
    rng = np.random.default_rng(0)
    columns = (rng.zipf(1.3, size=(n_rows, N_FIELDS)) * np.arange(1, N_FIELDS + 1)) % N_FEATURES
    starts = np.arange(0, n_rows * N_FIELDS + 1, N_FIELDS)
    X = scipy.sparse.csr_matrix(
        (np.ones(columns.size, np.float32), columns.ravel(), starts), shape=(n_rows, N_FEATURES)
    )
    X.sum_duplicates()
    y = (X @ rng.normal(size=N_FEATURES) > 0).astype(np.float64)
    return cirrus.load_arrays(X, y, url, random_state=0)


def train(data: cirrus.Dataset, backend: Backend, options: argparse.Namespace) -> Round:
    """Train once."""
    estimator = cirrus.LogisticRegression(
        backend=backend,
        n_workers=options.workers,
        n_shards=options.shards,
        epochs=options.epochs,
        tol=None,
        random_state=0,
    )
    began_at = time.perf_counter()
    estimator.fit(data)
    whole = time.perf_counter() - began_at
    last = estimator.history_[-1]
    return Round(rows_per_second=last.samples / last.seconds, whole_seconds=whole)


def main() -> None:
    """Compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print one line of JSON in the end")
    options, _ = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        data = make_rows(options.rows, str(root / "train"))
        # Else Ray writes a token into the home folder, which all later clusters would demand.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        ray.init(
            address="local", include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20
        )
        backends: dict[str, Backend] = {
            "local": cirrus.LocalBackend(root=root / "local"),
            "ray": cirrus.RayBackend(root=root / "ray"),
        }
        rounds: dict[str, list[Round]] = {name: [] for name in backends}
        for number in range(options.rounds + 1):
            for name, backend in backends.items():
                result = train(data, backend, options)
                print(
                    f"{name:6s} {result.rows_per_second:12,.0f} rows/s, {result.whole_seconds:6.1f} s in all"
                    f"{' (to warm up)' if number == 0 else ''}",
                    flush=True,
                )
                if number:
                    rounds[name].append(result)
        ray.shutdown()
    medians = {
        name: statistics.median(r.rows_per_second for r in results) for name, results in rounds.items()
    }
    ratio = medians["ray"] / medians["local"]
    print(f"medians: local {medians['local']:,.0f}, ray {medians['ray']:,.0f} rows/s: {ratio:.2f}")
    if options.json:
        json.dump({"medians": medians, "ratio": ratio}, sys.stdout)


if __name__ == "__main__":
    main()
