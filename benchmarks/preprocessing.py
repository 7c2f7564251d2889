"""How fast datasets are scaled and hashed, beside scikit-learn on the same rows in memory.

Cirrus reads each chunk, computes, and writes it anew, in two processes; scikit-learn neither reads nor
writes. ``fit`` and ``transform`` are one number: rows by the time of both::

    python benchmarks/preprocessing.py --rows 200000
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import sklearn.feature_extraction
import sklearn.preprocessing

import cirrus
from cirrus.preprocessing import FeatureHasher, MinMaxScaler, StandardScaler

N_DENSE = 39
N_COLUMNS = 2**20
N_BITS = 18
N_WORKERS = 2
#: Rows that scikit-learn's FeatureHasher gets: it takes a dict for each.
HASHER_ROWS = 20_000


def rows_per_second(n_rounds: int, n_rows: int, work: Callable[..., object], *arguments: object) -> float:
    """Return how many rows a second some work is done on, at best."""
    seconds = []
    for _ in range(n_rounds):
        started_at = time.perf_counter()
        work(*arguments)
        seconds.append(time.perf_counter() - started_at)
    return n_rows / min(seconds)


def as_dicts(X: scipy.sparse.csr_array) -> list[dict[str, float]]:
    """Return rows as scikit-learn's FeatureHasher takes them."""
    return [
        dict(zip(map(str, X.indices[a:b].tolist()), X.data[a:b].tolist(), strict=True))
        for a, b in zip(X.indptr[:HASHER_ROWS], X.indptr[1 : HASHER_ROWS + 1], strict=False)
    ]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    n, rng = args.rows, np.random.default_rng(7)
    dense = rng.normal(5, 3, (n, N_DENSE)).astype(np.float32)
    columns = (N_COLUMNS ** rng.random((n, N_DENSE))).astype(np.int64)
    starts = np.arange(0, n * N_DENSE + 1, N_DENSE)
    sparse = scipy.sparse.csr_array(
        (rng.integers(1, 60, n * N_DENSE).astype(np.float32), columns.ravel(), starts), (n, N_COLUMNS)
    )
    sparse.sum_duplicates()
    y = rng.integers(0, 2, n)
    dicts = as_dicts(sparse)
    with tempfile.TemporaryDirectory(prefix="cirrus-bench-") as folder:
        stored = {
            "dense": cirrus.load_arrays(dense, y, str(Path(folder) / "dense")),
            "sparse": cirrus.load_arrays(sparse, y, str(Path(folder) / "sparse")),
        }
        options: dict[str, Any] = {"backend": "local", "n_workers": N_WORKERS}
        theirs = sklearn.preprocessing
        contestants: dict[str, tuple[str, Any, Callable[[], object], int]] = {
            f"MinMaxScaler, {N_DENSE} dense columns": (
                "dense",
                MinMaxScaler(**options),
                lambda: theirs.MinMaxScaler().fit_transform(dense),
                n,
            ),
            f"StandardScaler, {N_DENSE} dense columns": (
                "dense",
                StandardScaler(**options),
                lambda: theirs.StandardScaler().fit_transform(dense),
                n,
            ),
            "StandardScaler, 39 of 2^20 columns": (
                "sparse",
                StandardScaler(with_mean=False, **options),
                lambda: theirs.StandardScaler(with_mean=False).fit_transform(sparse),
                n,
            ),
            f"FeatureHasher, 2^20 to 2^{N_BITS} columns": (
                "sparse",
                FeatureHasher(2**N_BITS, **options),
                lambda: sklearn.feature_extraction.FeatureHasher(2**N_BITS).transform(dicts),
                len(dicts),
            ),
        }
        target = str(Path(folder) / "out")
        print(f"{n:,} rows, {N_WORKERS} processes; best of {args.rounds} rounds; rows/s of fit and transform")
        print(f"{'':38}{'cirrus':>12}{'scikit-learn':>14}")
        for name, (kind, ours, work, n_theirs) in contestants.items():
            mine = rows_per_second(args.rounds, n, ours.fit_transform, stored[kind], target)
            other = rows_per_second(args.rounds, n_theirs, work)
            print(f"{name:38}{mine:12,.0f}{other:14,.0f}")


if __name__ == "__main__":
    main()
