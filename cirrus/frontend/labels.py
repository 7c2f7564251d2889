"""Labels: what the user calls the two classes, and the numbers that stand for them in a dataset.

``classes_`` holds the user's labels, sorted. A dataset holds float32 *codes*: a number is its own code where
float32 can hold it exactly, so that a svmlight file with labels -1 and 1 needs no mapping; text is coded by
its place.

Files of one data set are known to write the negative class as -1 here and as 0 there (a9a and its test file
do). Beside a positive class of 1, both are the negative class of a dataset.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from cirrus.chunks import Manifest
from cirrus.errors import ConfigError, DataError

Array = npt.NDArray[Any]
Codes = tuple[float, float]

#: Codes of the negative class where the positive one is 1.
NEGATIVE_CODES = (-1.0, 0.0)
#: A class of a model that does not occur in a dataset of named labels has this code: no row has it.
ABSENT_CODE = -1.0


def check_two_classes(classes: Array, where: str) -> None:
    """Refuse anything but two classes.

    Raises:
        DataError: There is one class, or there are more than two.
    """
    if len(classes) == 1:
        raise DataError(
            f"{where}: needs samples of at least 2 classes, but the data holds one class: {classes[0]!r}"
        )
    if len(classes) != 2:
        raise DataError(
            f"{where}: Only binary classification is supported. The type of the target is multiclass: "
            f"it holds {len(classes)} different labels"
        )


def array_codes(classes: Array) -> Codes:
    """Return the codes that stand for two classes when labels come from arrays."""
    if classes.dtype.kind in "biuf":
        codes = classes.astype(np.float32)
        if np.array_equal(codes.astype(np.float64), classes.astype(np.float64)):
            return float(codes[0]), float(codes[1])
    return 0.0, 1.0


def encode(y: Array, classes: Array, codes: Codes, where: str) -> npt.NDArray[np.float32]:
    """Return labels as codes, float32 of shape (n_rows,).

    Raises:
        DataError: A label is of neither class.
    """
    positive = y == classes[1]
    strange = ~(positive | (y == classes[0]))
    if np.any(strange):
        raise DataError(f"{where}: label {y[strange][0]!r} is none of the classes {classes.tolist()}")
    return np.where(positive, np.float32(codes[1]), np.float32(codes[0]))


def dataset_classes(manifest: Manifest, where: str) -> Array:
    """Return the labels of a dataset as the user knows them, sorted.

    Raises:
        DataError: There are not two of them.
    """
    if not manifest.label_values:
        raise DataError(
            f"{where}: Only binary classification is supported. The labels are too many different numbers "
            "to be classes"
        )
    if manifest.label_names is not None:
        classes = np.array([manifest.label_names[int(code)] for code in manifest.label_values])
    else:
        classes = np.array(manifest.label_values, dtype=np.float64)
        whole = classes.astype(np.int64)
        if np.array_equal(whole, classes):
            classes = whole
    check_two_classes(classes, where)
    return classes


def dataset_codes(manifest: Manifest, classes: Array, where: str) -> Codes:
    """Return the codes that two classes have in a dataset.

    Raises:
        DataError: The dataset holds a label of neither class.
    """
    if manifest.label_names is not None:
        names = list(manifest.label_names)
        low, high = (float(names.index(name)) if name in names else ABSENT_CODE for name in classes.tolist())
    elif classes.dtype.kind in "biuf":
        low, high = (float(np.float32(label)) for label in classes)
        negatives = [value for value in manifest.label_values if value in NEGATIVE_CODES]
        if high == 1.0 and low in NEGATIVE_CODES and len(negatives) == 1:
            (low,) = negatives
    else:
        raise DataError(f"{where}: its labels are numbers, the model's classes are {classes.tolist()}")
    for value in manifest.label_values:
        if value not in (low, high):
            label = value if manifest.label_names is None else manifest.label_names[int(value)]
            raise DataError(f"{where}: label {label!r} is none of the classes {classes.tolist()}")
    if not manifest.label_values:
        raise DataError(f"{where}: its labels are too many different numbers to be classes")
    return low, high


def label_weight(manifest: Manifest, code: float) -> float:
    """Return how many rows of a dataset have a label."""
    return float(dict(zip(manifest.label_values, manifest.label_counts, strict=True)).get(code, 0))


def class_factors(
    class_weight: Any, classes: Array, totals: tuple[float, float]
) -> tuple[float, float] | None:
    """Return what ``class_weight`` multiplies the weights of either class's rows by.

    Args:
        class_weight: None, ``"balanced"`` or a mapping from label to factor (1 for labels left out).
        classes: The two labels.
        totals: The summed weights of the rows of either class.

    Raises:
        ConfigError: It is none of these.
    """
    if class_weight is None:
        return None
    if isinstance(class_weight, str):
        if class_weight != "balanced":
            raise ConfigError("class_weight", f'must be None, "balanced" or a dict, got {class_weight!r}')
        low, high = (sum(totals) / (2.0 * total) if total > 0 else 1.0 for total in totals)
        return low, high
    if not isinstance(class_weight, Mapping):
        raise ConfigError("class_weight", f'must be None, "balanced" or a dict, got {class_weight!r}')
    low, high = (float(class_weight.get(label, 1.0)) for label in classes.tolist())
    if not (low >= 0 and high >= 0 and np.isfinite(low + high)):
        raise ConfigError("class_weight", f"must not be negative, got {class_weight!r}")
    return low, high
