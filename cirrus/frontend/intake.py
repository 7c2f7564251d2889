"""What users hand to an estimator, turned into datasets that workers can read.

Functions here take the estimator as scikit-learn's own ``validate_data`` does: they set or check
``n_features_in_`` and ``feature_names_in_``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import scipy.sparse
from sklearn.utils import check_array
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import _check_sample_weight, validate_data

from cirrus.chunks import Manifest
from cirrus.chunks.vocabulary import Vocabulary
from cirrus.errors import ConfigError, DataError
from cirrus.frontend import labels
from cirrus.frontend.datasets import Dataset, load_arrays
from cirrus.frontend.planning import Validation
from cirrus.frontend.preprocessing_steps import apply_to_array, last_steps
from cirrus.frontend.scratch import Scratch

Array = npt.NDArray[Any]

DTYPES = [np.float64, np.float32]
#: The mean of labels that are numbers is rounded to this part of their spread.
MEAN_FRACTIONS = 64


@dataclass(frozen=True, kw_only=True)
class ClassTarget:
    """Labels that are classes."""

    classes: Array
    """The user's labels, sorted, shape (n_classes,)."""
    codes: labels.Codes
    """What stands for each in the dataset."""
    totals: tuple[float, ...]
    """Summed weights of the rows of each class (numbers of rows, where the data is a Dataset)."""


@dataclass(frozen=True, kw_only=True)
class NumberTarget:
    """Labels that are numbers, and the units that a model needs for them; all rounded."""

    mean: float
    scale: float
    """Standard deviation of the labels."""
    feature_scale: float
    """Root mean square of the features' values that are not 0."""


@dataclass(frozen=True, kw_only=True)
class NoTarget:
    """Rows without labels."""


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """A dataset that workers can read, and what its labels mean."""

    url: str
    manifest: Manifest
    target: ClassTarget | NumberTarget | NoTarget
    encoding: Mapping[str, Any] = field(default_factory=dict)
    """How raw rows became its columns, as far as that is known."""
    goes_on: bool = False
    """Whether a model that is there already is trained further."""
    vocabularies: Mapping[str, Vocabulary] = field(default_factory=dict)
    """What features are called, as far as the estimator wants to know."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What an estimator wants of data."""

    kind: Literal["classes", "numbers", "nothing"]
    several: bool = False
    """Whether there may be more than two classes."""
    classes: Array | None = None
    """The labels there may be; None: those there are."""
    non_negative: bool = False
    """Whether features must not be negative: counts."""
    vocabularies: tuple[str, ...] = ()
    """Names of the vocabularies of a dataset that it wants."""


def take_dataset(
    estimator: Any,
    dataset: Dataset,
    y: Any,
    sample_weight: Any,
    *,
    scratch: Scratch,
    wanted: Wanted,
    reset: bool,
) -> TrainingData:
    """Take a dataset as it is.

    Args:
        estimator: Whose ``n_features_in_`` is set or checked.
        dataset: The rows.
        y: Must be None.
        sample_weight: Must be None.
        scratch: Where it is copied to, if workers cannot read it where it is.
        wanted: What its labels have to be.
        reset: Whether the estimator starts anew.

    Raises:
        ConfigError: Labels or weights were given beside the dataset's own.
        DataError: The dataset does not fit the estimator.
    """
    for name, value in (("y", y), ("sample_weight", sample_weight)):
        if value is not None:
            raise ConfigError(name, "must be None: a Dataset holds its own")
    check_width(estimator, dataset, reset=reset)
    if wanted.non_negative and dataset.manifest.has_negatives:
        raise DataError(
            f"{dataset.url}: has values below 0, and {type(estimator).__name__} needs counts: leave out "
            "what made them negative, such as scaling or hashing with signs"
        )
    return TrainingData(
        url=scratch.reachable(dataset.url, "train"),
        manifest=dataset.manifest,
        target=_dataset_target(dataset, wanted),
        encoding=dataset.manifest.encoding,
        vocabularies={name: dataset.vocabulary(name) for name in wanted.vocabularies},
    )


def _dataset_target(dataset: Dataset, wanted: Wanted) -> ClassTarget | NumberTarget | NoTarget:
    manifest = dataset.manifest
    if wanted.kind == "nothing":
        return NoTarget()
    if wanted.kind == "numbers":
        if manifest.label_names is not None:
            raise DataError(f"{dataset.url}: its labels are text: numbers are needed for regression")
        # Rows are spread at random over the blocks: the first of them stands for all.
        block = next(iter(dataset.blocks()))
        indptr, indices, values = block.to_csr()
        rows = scipy.sparse.csr_array((values, indices, indptr), shape=(block.n_rows, manifest.n_features))
        return number_target(rows, block.labels, block.weights)
    classes = wanted.classes
    if classes is None:
        classes = labels.dataset_classes(manifest, dataset.url, several=wanted.several)
    codes = labels.dataset_codes(manifest, classes, dataset.url)
    totals = tuple(labels.label_weight(manifest, code) for code in codes)
    return ClassTarget(classes=classes, codes=codes, totals=totals)


def number_target(X: Any, y: Array, weights: Array | None) -> NumberTarget:
    """Return the units of data: powers of two, so that rounding errors do not tell on them.

    Args:
        X: Array or CSR matrix of shape (n_rows, n_features).
        y: Labels of shape (n_rows,).
        weights: Weights of shape (n_rows,) or None.
    """
    w = np.ones(len(y)) if weights is None else weights.astype(np.float64)
    targets = y.astype(np.float64)
    mean = float(w @ targets / w.sum())
    scale = _power_of_two(float(w @ np.square(targets - mean) / w.sum()))
    present = X != 0
    count = float(w @ np.asarray(present.sum(axis=1)).ravel())
    squares = X.multiply(X) if scipy.sparse.issparse(X) else X.astype(np.float64) ** 2
    square = float(w @ np.asarray(squares.sum(axis=1)).ravel()) / count if count else 0.0
    mean = round(mean / scale * MEAN_FRACTIONS) / MEAN_FRACTIONS * scale
    return NumberTarget(mean=mean, scale=scale, feature_scale=_power_of_two(square))


def _power_of_two(square: float) -> float:
    """Return the power of two that is nearest to a square root; 1 where there is no spread."""
    return 2.0 ** round(np.log2(square) / 2.0) if square > 0 else 1.0


def take_arrays(
    estimator: Any,
    X: Any,
    y: Any,
    sample_weight: Any,
    *,
    scratch: Scratch,
    seed: int,
    wanted: Wanted,
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
        wanted: What the labels have to be.
        reset: Whether the estimator starts anew.

    Raises:
        DataError: Labels or weights cannot be used (other problems raise scikit-learn's own ValueError).
    """
    if wanted.kind == "nothing":
        X = validate_data(
            estimator,
            X,
            accept_sparse="csr",
            dtype=DTYPES,
            ensure_non_negative=wanted.non_negative,
            reset=reset,
        )
        y = np.zeros(X.shape[0])
    else:
        numeric = wanted.kind == "numbers"
        X, y = validate_data(
            estimator, X, y, accept_sparse="csr", dtype=DTYPES, y_numeric=numeric, reset=reset
        )
    weights = None
    if sample_weight is not None:
        weights = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        if not weights.any():
            raise DataError("sample_weight: every row has weight 0")
    target: ClassTarget | NumberTarget | NoTarget = NoTarget()
    if wanted.kind == "numbers":
        target = number_target(X, y, weights)
    elif wanted.kind == "classes":
        target, y = _class_target(y, weights, wanted)
    dataset = load_arrays(X, y, scratch.url("train"), sample_weight=weights, random_state=seed)
    return TrainingData(url=dataset.url, manifest=dataset.manifest, target=target)


def _class_target(y: Array, weights: Array | None, wanted: Wanted) -> tuple[ClassTarget, Array]:
    """Return what labels mean, and the labels as codes."""
    labels.check_labels(y, "y")
    check_classification_targets(y)
    kind = type_of_target(y, input_name="y", raise_unknown=True)
    if kind != "binary" and not (wanted.several and kind == "multiclass"):
        raise DataError(f"Only binary classification is supported. The type of the target is {kind}.")
    classes = wanted.classes
    if classes is None:
        classes = np.unique(y)
        labels.check_classes(classes, "y", several=wanted.several)
    codes = labels.array_codes(classes)
    coded = labels.encode(y, classes, codes, "y")
    totals = tuple(
        float(np.count_nonzero(rows) if weights is None else weights[rows].sum())
        for rows in (coded == np.float32(code) for code in codes)
    )
    return ClassTarget(classes=classes, codes=codes, totals=totals), coded


def take_validation(
    estimator: Any, validation: Any, data: TrainingData, scratch: Scratch
) -> Validation | None:
    """Return the dataset to watch, or None.

    Args:
        estimator: Whose number of features it has to have.
        validation: None, a Dataset or a pair (X, y); for an estimator without labels, a Dataset or X.
        data: What is trained on; labels have to mean the same in both.
        scratch: Where arrays go.

    Raises:
        ConfigError: It is none of these.
        DataError: It does not fit the training data.
    """
    if validation is None:
        return None
    if isinstance(validation, Dataset):
        if last_steps(data.encoding, validation.manifest.encoding, validation.url):
            raise DataError(f"{validation.url}: was not preprocessed as {data.url} was: transform it too")
        check_width(estimator, validation, reset=False)
        if isinstance(data.target, ClassTarget):
            _check_codes(validation, data.target, data.url)
        return Validation(
            url=scratch.reachable(validation.url, "validation"), fingerprint=validation.manifest.fingerprint
        )
    y: Any = None
    if isinstance(data.target, NoTarget):
        X = validation
    elif not isinstance(validation, (tuple, list)) or len(validation) != 2:
        raise ConfigError("validation", "must be a Dataset or a pair (X, y)")
    else:
        X, y = validation
    if steps := last_steps(data.encoding, {}):
        X = apply_to_array(steps, check_array(X, accept_sparse="csr", dtype=DTYPES))
    if y is None:
        X = validate_data(estimator, X, accept_sparse="csr", dtype=DTYPES, reset=False)
        y = np.zeros(X.shape[0])
    else:
        X, y = validate_data(estimator, X, y, accept_sparse="csr", dtype=DTYPES, reset=False)
    if isinstance(data.target, ClassTarget):
        y = labels.encode(y, data.target.classes, data.target.codes, "validation")
    stored = load_arrays(X, y, scratch.url("validation"), shuffle=False)
    return Validation(url=stored.url, fingerprint=stored.manifest.fingerprint)


def _check_codes(validation: Dataset, target: ClassTarget, train_url: str) -> None:
    codes = labels.dataset_codes(validation.manifest, target.classes, validation.url)
    # A model of two classes knows its positive class by the code, and takes all others for the negative one.
    first = 1 if len(codes) == 2 else 0
    pairs = zip(codes[first:], target.codes[first:], strict=True)
    if any(code not in (expected, labels.ABSENT_CODE) for code, expected in pairs):
        raise DataError(f"{validation.url}: codes its labels otherwise than {train_url}; load both alike")


def refuse_path(name: str, data: Any, loader: str = "load_svmlight") -> None:
    """Refuse the path of a file, or the URL of a dataset, in place of what is there.

    Args:
        name: What the parameter is called.
        data: What was given for it.
        loader: The loader of such files.

    Raises:
        ConfigError: It is a path.
    """
    if isinstance(data, (str, os.PathLike)):
        path = os.fspath(data)
        raise ConfigError(
            name,
            f"must be a Dataset or arrays, got the path {path!r}: load the file first, with "
            f"cirrus.{loader}({path!r}, URL) or the loader of its format, and hand over what that returns; "
            "a dataset that was loaded before is opened with cirrus.Dataset.open(URL)",
        )


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
