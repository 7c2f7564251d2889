"""How fast a text file becomes a dataset, beside scikit-learn's reader, which keeps it all in memory.

The file has rows of 39 one-hot fields over 2**20 columns, of very unequal frequency, as advertising data has
them. Each load runs in a process of its own, so that its peak memory is its own too; the best of the rounds
is printed, since other work on the machine comes and goes::

    python benchmarks/loader.py --rows 900000 --processes 1 2
    python benchmarks/loader.py --file clicks.svm.gz
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

N_FIELDS = 39
N_COLUMNS = 2**20
#: Distinct rows of the generated file, which repeats them.
N_DISTINCT = 50_000

LOAD = """
import json, resource, sys, time
import cirrus
started_at = time.perf_counter()
dataset = cirrus.load_svmlight(sys.argv[1], sys.argv[2], n_processes=int(sys.argv[3]), random_state=0)
seconds = time.perf_counter() - started_at
peaks = [resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
print(json.dumps([seconds, dataset.n_rows, dataset.manifest.n_bytes, *peaks]))
"""
READ = """
import json, resource, sys, time
from sklearn.datasets import load_svmlight_file
started_at = time.perf_counter()
X, y = load_svmlight_file(sys.argv[1])
seconds = time.perf_counter() - started_at
print(json.dumps([seconds, len(y), 0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 0]))
"""


def write_file(path: Path, n_rows: int) -> None:
    """Write rows of one-hot fields; low columns are much more frequent than high ones."""
    rng = np.random.default_rng(7)
    columns = np.sort((N_COLUMNS ** rng.random((N_DISTINCT, N_FIELDS))).astype(np.int64), axis=1)
    lines = [
        f"{label} " + " ".join(f"{column}:1" for column in np.unique(row).tolist()) + "\n"
        for label, row in zip(rng.integers(0, 2, N_DISTINCT).tolist(), columns, strict=True)
    ]
    with path.open("w") as file:
        for first in range(0, n_rows, N_DISTINCT):
            file.writelines(lines[: n_rows - first])


def run(code: str, *arguments: str) -> list[float]:
    """Run a program of ours and return the numbers that it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stderr)
    numbers: list[float] = json.loads(done.stdout)
    return numbers


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=450_000, help="rows of the generated file")
    parser.add_argument("--file", type=Path, help="an svmlight file of yours instead")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cirrus-bench-") as folder:
        path = args.file or Path(folder) / "generated.svm"
        if args.file is None:
            write_file(path, args.rows)
        target = str(Path(folder) / "dataset")
        # Once on little, so that no round pays for compiling the kernels.
        small = Path(folder) / "small.svm"
        write_file(small, 1000)
        run(LOAD, str(small), target, "1")
        size = path.stat().st_size
        contestants = [(f"cirrus, {n} processes", LOAD, [target, str(n)]) for n in args.processes]
        contestants.append(("scikit-learn, in memory", READ, []))
        started_at = time.perf_counter()
        best: dict[str, list[float]] = {}
        for _ in range(args.rounds):
            for name, code, more in contestants:
                numbers = run(code, str(path), *more)
                best[name] = min(best.get(name, numbers), numbers)
        print(f"{path.name}: {size / 1e6:,.0f} MB; best of {args.rounds} rounds")
        print(f"{'':26}{'rows/s':>12}{'MB/s':>8}{'client MB':>11}{'worker MB':>11}{'stored MB':>11}")
        for name, (seconds, n_rows, n_bytes, own, children) in best.items():
            print(
                f"{name:26}{n_rows / seconds:12,.0f}{size / 1e6 / seconds:8.0f}{own:11.0f}{children:11.0f}"
                f"{n_bytes / 1e6:11.0f}"
            )
        print(f"({time.perf_counter() - started_at:.0f} s in all)")


if __name__ == "__main__":
    main()
