"""Shards share the work evenly, whatever the numbering of the features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

import cirrus
from cirrus.client_backend.runs import list_runs, open_run

N_ROWS = 20_000
ROW_LENGTH = 20
N_FEATURES = 2**18
N_SHARDS = 4


def zipf_rows(seed: int) -> sp.csr_matrix:
    """Return rows whose ids follow a Zipf law in order of frequency: P(k) about 1 / (k + 1)."""
    rng = np.random.default_rng(seed)
    ids = (N_FEATURES ** rng.random((N_ROWS, ROW_LENGTH)) - 1).astype(np.int64)
    starts = np.arange(0, ids.size + 1, ROW_LENGTH)
    rows = sp.csr_matrix((np.ones(ids.size), ids.ravel(), starts), shape=(N_ROWS, N_FEATURES))
    rows.sum_duplicates()
    rows.data[:] = 1.0
    return rows


@pytest.mark.parametrize("batch_size", [64, 1024])
def test_four_shards_get_pulls_and_pushes_within_a_fifth(tmp_path: Path, batch_size: int) -> None:
    """With Zipf ids in order of frequency, the busiest of 4 shards has at most 1.2 times the idlest."""
    rows = zipf_rows(seed=0)
    labels = np.random.default_rng(1).integers(0, 2, N_ROWS)
    dataset = cirrus.load_arrays(rows, labels, str(tmp_path / "data"), random_state=0)
    backend = cirrus.InlineBackend(root=str(tmp_path))
    estimator = cirrus.LogisticRegression(
        backend=backend, n_shards=N_SHARDS, batch_size=batch_size, epochs=1, random_state=0
    )
    estimator.fit(dataset)
    (summary,) = list_runs(str(tmp_path))
    counts = open_run(str(tmp_path), summary.run_id).status.counts
    for name in ("rows_pulled", "rows_pushed"):
        by_shard = [counts[f"shard{shard}.{name}"] for shard in range(N_SHARDS)]
        assert min(by_shard) > 0
        assert max(by_shard) / min(by_shard) <= 1.2, (name, by_shard)
