"""Scalers on real data (UCI Adult, "a9a"): scikit-learn's numbers, however the work is cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.preprocessing

import cirrus
from cirrus.preprocessing import MinMaxScaler, StandardScaler

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "data" / "a9a"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="the a9a files are not beside the project")

#: Largest difference from scikit-learn's float64, as a part of the value, or of 1 where that is smaller.
#: Rows are stored as float32, whose own rounding is 6e-8 of a value.
CLOSE = 1e-6


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (MinMaxScaler(densify=True), sklearn.preprocessing.MinMaxScaler()),
        (MinMaxScaler((-2, 3), densify=True), sklearn.preprocessing.MinMaxScaler((-2, 3))),
        (StandardScaler(densify=True), sklearn.preprocessing.StandardScaler()),
        (StandardScaler(with_mean=False), sklearn.preprocessing.StandardScaler(with_mean=False)),
    ],
)
def test_scalers_equal_scikit_learns_on_a9a(ours: Any, theirs: Any, tmp_path: Path) -> None:
    """Attributes to 1e-12, rows to 1e-6 of each value (they are stored as float32)."""
    dataset = cirrus.load_svmlight(FOLDER / "a9a.gz", tmp_path / "in", n_features=123, shuffle=False)
    X = dataset.to_csr()[0].toarray().astype(np.float64)
    ours.n_workers = 2
    scaled = ours.fit_transform(dataset, tmp_path / "out").to_csr()[0].toarray().astype(np.float64)
    expected = theirs.fit_transform(X)
    for name in ("mean_", "var_", "scale_", "data_min_", "data_max_", "data_range_", "min_"):
        if getattr(theirs, name, None) is not None:
            np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-12, atol=1e-12)
    differences = np.abs(scaled - expected) / np.maximum(np.abs(expected), 1.0)
    assert differences.max() < CLOSE
    print(f"{ours}: {differences.max():.1e} of the value, {np.abs(scaled - expected).max():.1e} at most")
