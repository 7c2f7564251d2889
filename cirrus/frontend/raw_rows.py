"""Rows as a fitted model takes them: what was done to the rows it was trained on is done to raw ones, too.

Arrays and sparse matrices are raw rows. A dataset says in its manifest which steps it has had; the others are
done block by block.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.sparse
from sklearn.utils import check_array
from sklearn.utils.validation import validate_data

from cirrus.chunks import Block
from cirrus.errors import DataError
from cirrus.frontend.datasets import Dataset
from cirrus.frontend.intake import DTYPES, check_width, refuse_path
from cirrus.frontend.preprocessing_steps import apply_to_array, apply_to_blocks, last_steps


def prepare_array(estimator: Any, X: Any) -> Any:
    """Return an array or sparse matrix of raw rows with all steps of a model's training rows applied.

    Args:
        estimator: The fitted model.
        X: Array or sparse matrix of shape (n_rows, n_features before the steps).

    Raises:
        DataError: It has another number of features.
        ValueError: It is no array of finite numbers (scikit-learn's own).
    """
    if steps := last_steps(estimator.encoding_, {}):
        X = apply_to_array(steps, check_array(X, accept_sparse="csr", dtype=DTYPES))
    return X


def dataset_blocks(estimator: Any, dataset: Dataset) -> Iterator[Block]:
    """Yield a dataset's rows in order, with the steps that they have not had yet applied.

    Args:
        estimator: The fitted model.
        dataset: Raw rows, rows that have had some of the steps, or all.

    Raises:
        DataError: The dataset has more features than the model, or has had other steps.
    """
    steps = last_steps(estimator.encoding_, dataset.manifest.encoding, dataset.url)
    if not steps:
        check_width(estimator, dataset, reset=False)
    elif dataset.n_features > steps[0].n_features_in:
        raise DataError(
            f"{dataset.url}: has {dataset.n_features} features, the model was trained on "
            f"{steps[0].n_features_in} before preprocessing"
        )
    yield from apply_to_blocks(steps, dataset.blocks())


def any_blocks(
    estimator: Any, X: Any, *, rows_at_a_time: int, ensure_non_negative: bool = False
) -> Iterator[Block]:
    """Yield rows of whatever users hand over, as blocks.

    Args:
        estimator: The fitted model.
        X: A Dataset, array or sparse matrix.
        rows_at_a_time: Rows of an array that make a block.
        ensure_non_negative: Refuse arrays with values below 0.

    Raises:
        ConfigError: It is a path.
        DataError: It does not fit the model.
        ValueError: It is no array of finite numbers (scikit-learn's own).
    """
    refuse_path("X", X, estimator.loader)
    if isinstance(X, Dataset):
        yield from dataset_blocks(estimator, X)
        return
    X = validate_data(
        estimator,
        prepare_array(estimator, X),
        accept_sparse="csr",
        dtype=DTYPES,
        ensure_non_negative=ensure_non_negative,
        reset=False,
    )
    for first in range(0, X.shape[0], rows_at_a_time):
        rows = scipy.sparse.csr_array(X[first : first + rows_at_a_time])
        yield Block.from_csr(rows.indptr, rows.indices, rows.data, np.zeros(rows.shape[0], np.float32))
