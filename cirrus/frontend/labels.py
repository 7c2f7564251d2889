"""Labels: what the user calls the classes, and the numbers that stand for them in a dataset.

``classes_`` holds the user's labels, sorted. A dataset holds float32 *codes*: a number is its own code where
float32 can hold it exactly, so that a svmlight file with labels -1 and 1 needs no mapping; text is coded by
its place.

Files of one data set are known to write the negative class as -1 here and as 0 there (a9a and its test file
do). Beside a positive class of 1, both are the negative class of a dataset.
"""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from cirrus.chunks import Manifest
from cirrus.errors import ConfigError, DataError

Array = npt.NDArray[Any]
Codes = tuple[float, ...]

#: Codes of the negative class where the positive one is 1.
NEGATIVE_CODES = (-1.0, 0.0)
#: A class of a model that does not occur in a dataset of named labels has this code: no row has it.
ABSENT_CODE = -1.0


def check_classes(classes: Array, where: str, *, several: bool = False) -> None:
    """Refuse anything but two classes, or two and more.

    Args:
        classes: The labels there are.
        where: What to call the place in an error message.
        several: Whether there may be more than two.

    Raises:
        DataError: There is one class, or there are too many.
    """
    if len(classes) == 1:
        raise DataError(
            f"{where}: needs samples of at least 2 classes, "
            f"but the data holds one class: {classes.tolist()[0]!r}"
        )
    if len(classes) != 2 and not several:
        raise DataError(
            f"{where}: Only binary classification is supported. The type of the target is multiclass: "
            f"it holds {len(classes)} different labels"
        )


def check_labels(y: Array, where: str) -> None:
    """Refuse labels that are neither numbers nor text, which no model could be saved with.

    Args:
        y: Labels of any shape.
        where: What to call them in an error message.

    Raises:
        DataError: There is such a label, or one is missing.
    """
    if y.dtype.kind in "mM":
        raise DataError(
            f"{where}: labels must be numbers or text, got {y.dtype}: write them as text, as with "
            f"{where}.astype(str)"
        )
    if y.dtype.kind != "O":
        return
    for label in y.ravel().tolist():
        if label is None or (isinstance(label, float) and label != label):
            raise DataError(f"{where}: a label is missing ({label}): leave such rows out")
        if not isinstance(label, (str, bytes, numbers.Number, np.generic)):
            raise DataError(
                f"{where}: labels must be numbers or text, got {label!r:.80} of type {type(label).__name__}"
            )


def array_codes(classes: Array) -> Codes:
    """Return the codes that stand for classes when labels come from arrays."""
    if classes.dtype.kind in "biuf":
        codes = classes.astype(np.float32)
        # Whole numbers beyond 2**53 may be one in float64.
        are_exact = np.array_equal(codes.astype(np.float64), classes.astype(np.float64))
        if are_exact and np.unique(codes).size == classes.size:
            return tuple(codes.tolist())
    return tuple(float(number) for number in range(len(classes)))


def encode(y: Array, classes: Array, codes: Codes, where: str) -> npt.NDArray[np.float32]:
    """Return labels as codes, float32 of shape (n_rows,).

    Raises:
        DataError: A label is of no class.
    """
    if (y.dtype.kind in "biuf") != (classes.dtype.kind in "biuf"):
        raise DataError(f"{where}: label {y.tolist()[0]!r} is none of the classes {classes.tolist()}")
    place = np.searchsorted(classes, y).clip(max=len(classes) - 1)
    strange = classes[place] != y
    if np.any(strange):
        raise DataError(
            f"{where}: label {y[strange].tolist()[0]!r} is none of the classes {classes.tolist()}"
        )
    coded: npt.NDArray[np.float32] = np.array(codes, np.float32)[place]
    return coded


def dataset_classes(manifest: Manifest, where: str, *, several: bool = False) -> Array:
    """Return the labels of a dataset as the user knows them, sorted.

    Raises:
        DataError: There are too many of them, or only one.
    """
    if not manifest.label_values:
        problem = "" if several else "Only binary classification is supported. "
        raise DataError(f"{where}: {problem}The labels are too many different numbers to be classes")
    if manifest.label_names is not None:
        classes = np.array([manifest.label_names[int(code)] for code in manifest.label_values])
    else:
        classes = np.array(manifest.label_values, dtype=np.float64)
        whole = classes.astype(np.int64)
        if np.array_equal(whole, classes):
            classes = whole
    check_classes(classes, where, several=several)
    return classes


def dataset_codes(manifest: Manifest, classes: Array, where: str) -> Codes:
    """Return the codes that classes have in a dataset.

    Raises:
        DataError: The dataset holds a label of no class.
    """
    if manifest.label_names is not None:
        names = list(manifest.label_names)
        codes = [float(names.index(name)) if name in names else ABSENT_CODE for name in classes.tolist()]
    elif classes.dtype.kind in "biuf":
        codes = [float(np.float32(label)) for label in classes]
        negatives = [value for value in manifest.label_values if value in NEGATIVE_CODES]
        if len(codes) == 2 and codes[1] == 1.0 and codes[0] in NEGATIVE_CODES and len(negatives) == 1:
            codes[0] = negatives[0]
    else:
        raise DataError(f"{where}: its labels are numbers, the model's classes are {classes.tolist()}")
    for value in manifest.label_values:
        if value not in codes:
            label = value if manifest.label_names is None else manifest.label_names[int(value)]
            raise DataError(f"{where}: label {label!r} is none of the classes {classes.tolist()}")
    if not manifest.label_values:
        raise DataError(f"{where}: its labels are too many different numbers to be classes")
    return tuple(codes)


def label_weight(manifest: Manifest, code: float) -> float:
    """Return how many rows of a dataset have a label."""
    return float(dict(zip(manifest.label_values, manifest.label_counts, strict=True)).get(code, 0))


def class_factors(class_weight: Any, classes: Array, totals: tuple[float, ...]) -> tuple[float, ...] | None:
    """Return what ``class_weight`` multiplies the weights of each class's rows by.

    Args:
        class_weight: None, ``"balanced"`` or a mapping from label to factor (1 for labels left out).
        classes: The labels.
        totals: The summed weights of the rows of each class.

    Raises:
        ConfigError: It is none of these.
    """
    if class_weight is None:
        return None
    if isinstance(class_weight, str):
        if class_weight != "balanced":
            raise ConfigError("class_weight", f'must be None, "balanced" or a dict, got {class_weight!r}')
        return tuple(sum(totals) / (len(totals) * total) if total > 0 else 1.0 for total in totals)
    if not isinstance(class_weight, Mapping):
        raise ConfigError("class_weight", f'must be None, "balanced" or a dict, got {class_weight!r}')
    known = classes.tolist()
    unknown = [label for label in class_weight if label not in known]
    unweighted = [label for label in known if label not in class_weight]
    if unknown and unweighted:  # more labels than the data has are no mistake, another name for one is
        raise ConfigError(
            "class_weight",
            f"has a factor for {unknown[0]!r}, but the classes are {known}: {unweighted} have none",
        )
    factors = tuple(float(class_weight.get(label, 1.0)) for label in known)
    if not all(factor >= 0 and np.isfinite(factor) for factor in factors):
        raise ConfigError("class_weight", f"must not be negative, got {class_weight!r}")
    return factors
