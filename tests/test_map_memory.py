"""What a worker and its client hold in memory does not depend on how much comes of a chunk."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse

import cirrus
from cirrus.frontend.datasets import Dataset

#: What the smallest function of AWS Lambda that trains well leaves room for.
MOST_MB = 400
N_ROWS = 1_100
N_COLUMNS = 20_000

CLIENT = """
import resource, sys
import numpy as np
import cirrus
from cirrus.chunks import Block
from cirrus.preprocessing import StandardScaler

def densify(block):
    n_rows, n_columns = block.n_rows, 20_000
    starts, ids, values = block.to_csr()
    dense = np.random.default_rng(0).random((n_rows, n_columns), np.float32) + 0.5
    dense[np.repeat(np.arange(n_rows), np.diff(starts)), ids] = values
    columns = np.tile(np.arange(n_columns, dtype=np.uint32), n_rows)
    return Block.from_csr(np.arange(n_rows + 1) * n_columns, columns, dense.ravel(), block.labels)

source, out, what = sys.argv[1:]
ds = cirrus.Dataset.open(source)
if what == "map_chunks":
    ds.map_chunks(densify, out, backend="local", n_workers=1)
else:
    StandardScaler(densify=True, backend="local", n_workers=1).fit_transform(ds, out)
# What this process is charged for includes the peak of the one that started it; its own memory's does not.
status = dict(line.split(":") for line in open("/proc/self/status"))
worker_kb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(int(status["VmHWM"].split()[0]) // 1024, worker_kb // 1024)
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Sparse rows of many columns, in one small chunk."""
    rng = np.random.default_rng(0)
    X = scipy.sparse.random_array((N_ROWS, N_COLUMNS), density=0.002, rng=rng, format="csr")
    url = tmp_path_factory.mktemp("memory") / "in"
    return cirrus.load_arrays(X, np.arange(N_ROWS), str(url), shuffle=False)


@pytest.mark.parametrize("what", ["map_chunks", "scaler"])
def test_a_chunk_that_grows_a_thousandfold_does_not_fill_memory(
    what: str, source: Dataset, tmp_path: Path
) -> None:
    """The peak of a real worker process and of its client is below 400 MB; rows keep their order."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(cirrus.__file__).parents[1]),
        "CIRRUS_HOME": str(tmp_path / "home"),
    }
    command = [sys.executable, "-c", CLIENT, source.url, str(tmp_path / "out"), what]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    client_mb, worker_mb = map(int, run.stdout.split())
    assert client_mb < MOST_MB
    assert worker_mb < MOST_MB
    made = Dataset.open(tmp_path / "out")
    assert len(made.chunks) > len(source.chunks) or what == "scaler"
    labels = np.concatenate([block.labels for block in made.blocks()])
    np.testing.assert_array_equal(labels, np.arange(N_ROWS))
    first = next(iter(made.blocks())).rows(0, 1)
    assert first.nnz == N_COLUMNS or what == "scaler"
    print(f"{what}: client {client_mb} MB, worker {worker_mb} MB")
