"""How fast datasets are scaled and hashed, beside scikit-learn on the same rows in memory.

Cirrus reads each chunk, computes, and writes it anew, in two processes; scikit-learn neither reads nor
writes. ``fit`` and ``transform`` are one number: rows by the time of both::

    python benchmarks/preprocessing.py --rows 200000

How time and memory grow with the number of rows, from stored rows to stored rows, each job in a process of
its own: rows a second of 1 and of 5 million rows, and the peaks of client and workers::

    python benchmarks/preprocessing.py --grow 1000000 5000000
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
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
from cirrus import Dataset
from cirrus.chunks import Block, BlockBuilder, ChunkWriter, commit_dataset, new_chunk_prefix
from cirrus.preprocessing import FeatureHasher, MinMaxScaler, StandardScaler
from cirrus.storage import open_store

N_DENSE = 39
N_COLUMNS = 2**20
N_BITS = 18
N_WORKERS = 2
#: Rows that scikit-learn's FeatureHasher gets: it takes a dict for each.
HASHER_ROWS = 20_000
#: Rows that are made at a time.
STORE_ROWS = 50_000


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


def store_rows(url: str, n_rows: int) -> None:
    """Store rows of 39 of 2^20 columns, long-tailed, in bounded memory."""
    store = open_store(url)
    writer = ChunkWriter(store, new_chunk_prefix())
    builder = BlockBuilder(writer)
    rng = np.random.default_rng(7)
    for first in range(0, n_rows, STORE_ROWS):
        n = min(STORE_ROWS, n_rows - first)
        columns = (N_COLUMNS ** rng.random((n, N_DENSE))).astype(np.int64)
        values = rng.integers(1, 60, n * N_DENSE)
        labels = rng.integers(0, 2, n)
        builder.add(Block.from_csr(np.arange(n + 1) * N_DENSE, columns.ravel(), values, labels))
    builder.flush()
    commit_dataset(store, writer.chunks, writer.summary, n_features=N_COLUMNS)


def squared(block: Block) -> Block:
    """Return rows with their values squared: a user's function."""
    return block.squared()


JOBS: dict[str, Callable[[Dataset, str], object]] = {
    "StandardScaler": lambda ds, out: StandardScaler(
        with_mean=False, backend="local", n_workers=N_WORKERS
    ).fit_transform(ds, out),
    "FeatureHasher": lambda ds, out: FeatureHasher(
        2**N_BITS, backend="local", n_workers=N_WORKERS
    ).fit_transform(ds, out),
    "map_chunks": lambda ds, out: ds.map_chunks(squared, out, backend="local", n_workers=N_WORKERS),
    "describe": lambda ds, _: ds.describe(backend="local", n_workers=N_WORKERS),
}


def run_job(name: str, source: str, target: str) -> None:
    """Run one job, and print its seconds and the peaks of this process and of the largest worker, in MB."""
    started_at = time.perf_counter()
    JOBS[name](Dataset.open(source), target)
    seconds = time.perf_counter() - started_at
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    own = resource.getrusage(resource.RUSAGE_SELF)
    cpu = children.ru_utime + children.ru_stime + own.ru_utime + own.ru_stime
    # Not own.ru_maxrss: that includes the peak of the process that started this one.
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    print(seconds, cpu, int(status["VmHWM"].split()[0]) // 1024, children.ru_maxrss // 1024)


def grow(sizes: list[int], names: list[str]) -> None:
    """Print how time and memory of some jobs grow with the rows."""
    with tempfile.TemporaryDirectory(prefix="cirrus-bench-") as folder:
        for n_rows in sizes:
            store_rows(f"{folder}/{n_rows}", n_rows)
        print(f"{'':16}{'rows':>12}{'rows/s':>10}{'us CPU/row':>12}{'client MB':>11}{'worker MB':>11}")
        for name in names:
            for n_rows in sizes:
                command = [sys.executable, __file__, "--job", name, f"{folder}/{n_rows}", f"{folder}/out"]
                run = subprocess.run(command, capture_output=True, text=True, check=True)
                seconds, cpu, client, worker = map(float, run.stdout.split())
                speeds = f"{n_rows / seconds:10,.0f}{cpu / n_rows * 1e6:12.2f}"
                print(f"{name:16}{n_rows:12,}{speeds}{client:11,.0f}{worker:11,.0f}", flush=True)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--grow", type=int, nargs="+", metavar="ROWS")
    parser.add_argument("--only", nargs="+", choices=list(JOBS), default=list(JOBS))
    parser.add_argument("--job", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job is not None:
        run_job(*args.job)
        return
    if args.grow is not None:
        grow(args.grow, args.only)
        return
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
