"""The data of a search: taken once, whatever users hand over, and shared by all trials."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.utils import check_array, column_or_1d

from cirrus.chunks import MANIFEST_KEY, read_manifest
from cirrus.client_backend.base import Backend
from cirrus.client_backend.search_folder import DATA_FOLDER, SearchFolder
from cirrus.errors import CirrusError, ConfigError, DataError
from cirrus.frontend.datasets import Dataset, load_arrays
from cirrus.storage import open_store

_DTYPES = ["float64", "float32"]


@dataclass(frozen=True, kw_only=True)
class SearchData:
    """Datasets that workers can read."""

    train: Dataset
    validation: Dataset | None
    feature_names: Any = None
    """Names of a frame's columns; None: there are none."""


def take_data(
    folder: SearchFolder, backend: Backend, train: Any, y: Any, sample_weight: Any, validation: Any
) -> SearchData:
    """Return the data of a search as workers can read it; arrays are stored, the same each time.

    Args:
        folder: Where data goes that workers cannot read where it is.
        backend: Where they are.
        train: A dataset, or an array or sparse matrix of shape (n_rows, n_features).
        y: Labels of shape (n_rows,), with arrays.
        sample_weight: Weights of shape (n_rows,), with arrays.
        validation: None, a dataset, or a pair (X, y).

    Raises:
        ConfigError: They do not go together.
    """
    base = f"{folder.url}/{DATA_FOLDER}"
    names: Any = None
    if isinstance(train, Dataset):
        for name, value in (("y", y), ("sample_weight", sample_weight)):
            if value is not None:
                raise ConfigError(name, "must be None: a Dataset holds its own")
        rows = _reachable(train, backend, f"{base}/train")
    else:
        columns = list(getattr(train, "columns", ()))
        if columns and all(isinstance(name, str) for name in columns):
            names = np.array(columns, dtype=object)
        rows = _stored(train, y, f"{base}/train", sample_weight)
    if validation is None or isinstance(validation, Dataset):
        held_out = validation and _reachable(validation, backend, f"{base}/validation")
    elif isinstance(validation, (tuple, list)) and len(validation) == 2:
        held_out = _stored(validation[0], validation[1], f"{base}/validation", None)
    else:
        raise ConfigError("validation", "must be a Dataset or a pair (X, y)")
    return SearchData(train=rows, validation=held_out, feature_names=names)


def open_data(url: str, fingerprint: str | None = None) -> Dataset:
    """Open data that a search began with.

    Raises:
        DataError: It is gone, or another.
    """
    try:
        dataset = Dataset.open(url)
    except CirrusError as error:
        raise DataError(f"{url}: the data of the search cannot be read: {error}") from error
    if fingerprint is not None and dataset.manifest.fingerprint != fingerprint:
        raise DataError(f"{url}: holds other rows than the search began with")
    return dataset


def _stored(X: Any, y: Any, url: str, sample_weight: Any) -> Dataset:
    """Store arrays, the same rows in the same order each time."""
    if y is None:
        raise ConfigError("y", "must be given with arrays")
    X = check_array(X, accept_sparse="csr", dtype=_DTYPES)
    return load_arrays(X, column_or_1d(y), url, sample_weight=sample_weight, random_state=0)


def _reachable(dataset: Dataset, backend: Backend, url: str) -> Dataset:
    """Return a dataset that workers can read: this one, or a copy of one that is out of their reach."""
    if backend.reaches(dataset.url):
        return dataset
    source, target = open_store(dataset.url), open_store(url)
    manifest = read_manifest(source)
    for key in [*(chunk.key for chunk in manifest.chunks), MANIFEST_KEY]:
        target.put(key, source.get(key))
    return Dataset(target.url, manifest)
