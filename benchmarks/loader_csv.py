"""How fast raw click data becomes a dataset of hashed columns, beside other tools that hash the same rows.

The file has lines as Criteo published them: a label, 13 numbers and 26 categories, some missing, between
tabs. Cirrus parses, hashes, shuffles and stores it. Of the others, each does less:

- scikit-learn's FeatureHasher is given rows that are parsed already, and hashes them;
- Vowpal Wabbit parses, hashes and stores its cache (``--cache -k --noop``), in the order of the file. Its
  input, the same rows in its own format, is written before the clock runs.

Rounds of all are interleaved, and the best of each is printed, since other work on the machine comes and
goes; processor time is that of all processes together::

    python benchmarks/loader_csv.py --rows 200000
    python benchmarks/loader_csv.py --file raw.tsv --rounds 3
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

N_NUMBERS, N_CATEGORIES = 13, 26
N_BITS = 20
PROCESSES = "2"
#: Rows that FeatureHasher gets: it needs them all in memory, as Python objects.
HASHER_ROWS = 50_000

LOAD = f"""
import json, sys, time
import cirrus
started_at = time.perf_counter()
dataset = cirrus.load_csv(
    sys.argv[1], sys.argv[2], numeric=range(1, {N_NUMBERS + 1}),
    categorical=range({N_NUMBERS + 1}, {N_NUMBERS + N_CATEGORIES + 1}), sep="\\t", header=False,
    hash_features=2**{N_BITS}, n_processes={PROCESSES}, random_state=0,
)
print(json.dumps([time.perf_counter() - started_at, dataset.n_rows, dataset.manifest.n_bytes]))
"""
HASH = f"""
import itertools, json, sys, time
from sklearn.feature_extraction import FeatureHasher
names = ["column %d" % i for i in range(100)]
rows = []
with open(sys.argv[1]) as file:
    for line in itertools.islice(file, int(sys.argv[2])):
        cells = line.rstrip("\\n").split("\\t")
        numbers = [(names[i], int(cells[i])) for i in range(1, {N_NUMBERS + 1}) if cells[i]]
        rows.append(numbers + [(names[i], cells[i]) for i in range({N_NUMBERS + 1}, len(cells))])
started_at, used = time.perf_counter(), time.process_time()
FeatureHasher(2**{N_BITS}, input_type="pair").transform(rows)
print(json.dumps([time.perf_counter() - started_at, len(rows), 0, time.process_time() - used]))
"""


@dataclass(frozen=True)
class Measured:
    """One run of one contestant."""

    seconds: float
    n_rows: int
    n_bytes: int
    processor_seconds: float


def write_file(path: Path, n_rows: int) -> None:
    """Write rows of Criteo's shape; categories have from a few to very many values, most of them rare."""
    rng = np.random.default_rng(7)
    sizes = np.logspace(0.5, 6, N_CATEGORIES)
    with path.open("w") as file:
        for first in range(0, n_rows, 10_000):
            n = min(10_000, n_rows - first)
            numbers = (60 * rng.random((n, N_NUMBERS)) ** 2.5).astype(np.int64)
            categories = (sizes ** rng.random((n, N_CATEGORIES))).astype(np.int64) * 2654435761 % 2**32
            missing = rng.random((n, N_NUMBERS + N_CATEGORIES)) < 0.1
            for label, row, codes, gone in zip(
                rng.integers(0, 2, n).tolist(),
                numbers.tolist(),
                categories.tolist(),
                missing.tolist(),
                strict=True,
            ):
                cells = [*map(str, row), *(f"{code:08x}" for code in codes)]
                cells = ["" if is_gone else cell for cell, is_gone in zip(cells, gone, strict=True)]
                file.write("\t".join([str(label), *cells]) + "\n")


def write_vowpal(source: Path, path: Path) -> None:
    """Write the same rows for Vowpal Wabbit."""
    with source.open() as lines, path.open("w") as file:
        for line in lines:
            cells = line.rstrip("\n").split("\t")
            numbers = [f"{i}:{cells[i]}" for i in range(1, N_NUMBERS + 1) if cells[i]]
            rest = [f"{i}={cells[i] or 'missing'}" for i in range(N_NUMBERS + 1, len(cells))]
            file.write(f"{1 if cells[0] == '1' else -1} |n {' '.join(numbers)} |c {' '.join(rest)}\n")


def run(*command: str) -> tuple[str, float, float]:
    """Run a Python program of ours; return what it prints, and its time, also that of its processors."""
    before = os.times()
    started_at = time.perf_counter()
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started_at
    after = os.times()
    if done.returncode:
        sys.exit(done.stderr)
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return done.stdout, seconds, used


def timed_inside(code: str, *arguments: str) -> Measured:
    """Run code that measures itself, so that the start of Python does not count."""
    printed, _, used = run("-c", code, *arguments)
    seconds, n_rows, n_bytes, *used_inside = json.loads(printed)
    return Measured(seconds, n_rows, n_bytes, *used_inside or [used])


def timed_outside(n_rows: int, *command: str) -> Measured:
    """Run a command as a user would, the start of Python included."""
    _, seconds, used = run(*command)
    return Measured(seconds, n_rows, 0, used)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=200_000, help="rows of the generated file")
    parser.add_argument("--file", type=Path, help="a file of this shape instead, tabs between cells")
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cirrus-bench-") as folder:
        path, target = args.file or Path(folder) / "raw.tsv", str(Path(folder) / "dataset")
        if args.file is None:
            write_file(path, args.rows)
        n_rows = path.read_bytes().count(b"\n")
        vowpal, cache = Path(folder) / "rows.vw", Path(folder) / "rows.cache"
        write_vowpal(path, vowpal)
        columns = ["--numeric", ",".join(map(str, range(1, N_NUMBERS + 1))), "--categorical"]
        columns += [",".join(map(str, range(N_NUMBERS + 1, N_NUMBERS + N_CATEGORIES + 1)))]
        command = ["-m", "cirrus", "load", str(path), target, "--format", "csv", "--sep", "\t", *columns]
        options = [
            "-d",
            str(vowpal),
            "--cache_file",
            str(cache),
            "-k",
            "--noop",
            "-b",
            str(N_BITS),
            "--quiet",
        ]
        contestants: dict[str, Callable[[], Measured]] = {
            f"cirrus.load_csv, {PROCESSES} processes": lambda: timed_inside(LOAD, str(path), target),
            "cirrus load": lambda: timed_outside(n_rows, *command, "--processes", PROCESSES),
            "scikit-learn FeatureHasher": lambda: timed_inside(HASH, str(path), str(HASHER_ROWS)),
            "vw --cache": lambda: timed_outside(n_rows, "-m", "vowpalwabbit", *options),
        }
        # Once on little, so that no round pays for compiling the kernels.
        small = Path(folder) / "small.tsv"
        write_file(small, 1000)
        timed_inside(LOAD, str(small), target)
        best: dict[str, Measured] = {}
        for _ in range(args.rounds):
            for name, measure in contestants.items():
                measured = measure()
                if name not in best or measured.seconds < best[name].seconds:
                    best[name] = measured
        size = path.stat().st_size
        print(f"{path.name}: {n_rows:,} rows, {size / 1e6:,.0f} MB; best of {args.rounds} rounds")
        print(f"{'':34}{'rows/s':>12}{'processor us/row':>18}{'stored/text':>13}")
        for name, m in best.items():
            n_bytes = cache.stat().st_size if name.startswith("vw") else m.n_bytes
            stored = f"{n_bytes / size:13.3f}" if n_bytes else ""
            used = 1e6 * m.processor_seconds / m.n_rows
            print(f"{name:34}{m.n_rows / m.seconds:12,.0f}{used:18.1f}{stored}")


if __name__ == "__main__":
    main()
