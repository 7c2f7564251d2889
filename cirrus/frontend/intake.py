"""What users hand to an estimator, turned into datasets that workers can read.

Functions here take the estimator as scikit-learn's own ``validate_data`` does: they set or check
``n_features_in_`` and ``feature_names_in_``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.utils import check_array
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import _check_sample_weight, validate_data

from cirrus.chunks import Manifest
from cirrus.errors import ConfigError, DataError
from cirrus.frontend import labels
from cirrus.frontend.datasets import Dataset, load_arrays
from cirrus.frontend.preprocessing_steps import apply_to_array, last_steps
from cirrus.frontend.scratch import Scratch

Array = npt.NDArray[Any]

_DTYPES = [np.float64, np.float32]


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """A dataset that workers can read, and what its labels mean."""

    url: str
    manifest: Manifest
    classes: Array
    """The user's labels, sorted, shape (2,)."""
    codes: labels.Codes
    totals: tuple[float, float]
    """Summed weights of the rows of either class (numbers of rows, where the data is a Dataset)."""


def take_dataset(
    estimator: Any,
    dataset: Dataset,
    y: Any,
    sample_weight: Any,
    *,
    scratch: Scratch,
    classes: Array | None,
    reset: bool,
) -> TrainingData:
    """Take a dataset as it is.

    Args:
        estimator: Whose ``n_features_in_`` is set or checked.
        dataset: The rows.
        y: Must be None.
        sample_weight: Must be None.
        scratch: Where it is copied to, if workers cannot read it where it is.
        classes: The labels there may be; None: those there are.
        reset: Whether the estimator starts anew.

    Raises:
        ConfigError: Labels or weights were given beside the dataset's own.
        DataError: The dataset does not fit the estimator, or has not got two classes.
    """
    for name, value in (("y", y), ("sample_weight", sample_weight)):
        if value is not None:
            raise ConfigError(name, "must be None: a Dataset holds its own")
    check_width(estimator, dataset, reset=reset)
    if classes is None:
        classes = labels.dataset_classes(dataset.manifest, dataset.url)
    codes = labels.dataset_codes(dataset.manifest, classes, dataset.url)
    low, high = (labels.label_weight(dataset.manifest, code) for code in codes)
    return TrainingData(
        url=scratch.reachable(dataset.url, "train"),
        manifest=dataset.manifest,
        classes=classes,
        codes=codes,
        totals=(low, high),
    )


def take_arrays(
    estimator: Any,
    X: Any,
    y: Any,
    sample_weight: Any,
    *,
    scratch: Scratch,
    seed: int,
    classes: Array | None,
    reset: bool,
) -> TrainingData:
    """Store arrays as a dataset.

    Args:
        estimator: Whose ``n_features_in_`` and ``feature_names_in_`` are set or checked.
        X: Array or sparse matrix of shape (n_rows, n_features).
        y: Labels of shape (n_rows,).
        sample_weight: Weights of shape (n_rows,) or None.
        scratch: Where the dataset goes.
        seed: Of the order of the rows.
        classes: The labels there may be; None: those there are.
        reset: Whether the estimator starts anew.

    Raises:
        DataError: Labels or weights cannot be used (other problems raise scikit-learn's own ValueError).
    """
    X, y = validate_data(estimator, X, y, accept_sparse="csr", dtype=_DTYPES, reset=reset)
    check_classification_targets(y)
    kind = type_of_target(y, input_name="y", raise_unknown=True)
    if kind != "binary":
        raise DataError(f"Only binary classification is supported. The type of the target is {kind}.")
    weights = None
    if sample_weight is not None:
        weights = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        if not weights.any():
            raise DataError("sample_weight: every row has weight 0")
    if classes is None:
        classes = np.unique(y)
        labels.check_two_classes(classes, "y")
    codes = labels.array_codes(classes)
    coded = labels.encode(y, classes, codes, "y")
    dataset = load_arrays(X, coded, scratch.url("train"), sample_weight=weights, random_state=seed)
    positive = coded == np.float32(codes[1])
    low, high = (
        float(np.count_nonzero(rows) if weights is None else weights[rows].sum())
        for rows in (~positive, positive)
    )
    return TrainingData(
        url=dataset.url, manifest=dataset.manifest, classes=classes, codes=codes, totals=(low, high)
    )


def take_validation(estimator: Any, validation: Any, data: TrainingData, scratch: Scratch) -> str | None:
    """Return the URL of a dataset to watch, or None.

    Args:
        estimator: Whose number of features it has to have.
        validation: None, a Dataset or a pair (X, y).
        data: What is trained on; labels have to mean the same in both.
        scratch: Where arrays go.

    Raises:
        ConfigError: It is none of these.
        DataError: It does not fit the training data.
    """
    if validation is None:
        return None
    if isinstance(validation, Dataset):
        if last_steps(data.manifest.encoding, validation.manifest.encoding):
            raise DataError(f"{validation.url}: was not preprocessed as {data.url} was: transform it too")
        check_width(estimator, validation, reset=False)
        # A model knows its positive class by the code, and takes all others for the negative one.
        codes = labels.dataset_codes(validation.manifest, data.classes, validation.url)
        if codes[1] != data.codes[1]:
            raise DataError(f"{validation.url}: codes its labels otherwise than {data.url}; load both alike")
        return scratch.reachable(validation.url, "validation")
    if not isinstance(validation, (tuple, list)) or len(validation) != 2:
        raise ConfigError("validation", "must be a Dataset or a pair (X, y)")
    X, y = validation
    if steps := last_steps(data.manifest.encoding, {}):
        X = apply_to_array(steps, check_array(X, accept_sparse="csr", dtype=_DTYPES))
    X, y = validate_data(estimator, X, y, accept_sparse="csr", dtype=_DTYPES, reset=False)
    coded = labels.encode(y, data.classes, data.codes, "validation")
    return load_arrays(X, coded, scratch.url("validation"), shuffle=False).url


def check_width(estimator: Any, dataset: Dataset, *, reset: bool) -> None:
    """Set ``n_features_in_`` from a dataset, or check a dataset against it.

    A dataset may have fewer features than the model: those that are missing are 0 in every row.

    Raises:
        DataError: It has more.
    """
    if reset:
        estimator.n_features_in_ = dataset.n_features
        if hasattr(estimator, "feature_names_in_"):
            del estimator.feature_names_in_
    elif dataset.n_features > estimator.n_features_in_:
        raise DataError(
            f"{dataset.url}: has {dataset.n_features} features, the model has {estimator.n_features_in_}; "
            f"load it with n_features={estimator.n_features_in_}"
        )
