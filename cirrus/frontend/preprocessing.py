"""Preprocessing of datasets: scikit-learn's own classes, which learn to read and write datasets.

On arrays these are scikit-learn's; on a :class:`~cirrus.Dataset` the same attributes are found by a
map-reduce over its chunks, and ``transform`` writes a new dataset, which remembers in its manifest what was
done.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse
import sklearn.feature_extraction
import sklearn.preprocessing
from sklearn.utils.validation import check_is_fitted

from cirrus.client_backend.backend import Backend
from cirrus.client_backend.map_client import MapRequest
from cirrus.client_backend.map_functions import PackedFunction
from cirrus.config import parse_json, whole_number
from cirrus.errors import ConfigError, CorruptDataError, DataError, NotFoundError
from cirrus.frontend.datasets import Dataset
from cirrus.frontend.intake import refuse_path
from cirrus.frontend.mapping import ProgressOption
from cirrus.frontend.preprocessing_steps import Step
from cirrus.storage import open_store
from cirrus.worker_runtime.column_hash import ColumnHash
from cirrus.worker_runtime.column_map import ColumnMap
from cirrus.worker_runtime.map_job import pack_arrays, unpack_arrays

Array = npt.NDArray[Any]

PREPROCESSING_KEY = "preprocessing.json"
#: Zeros are filled in by themselves while that does not make more of the entries than this many times.
FILL_RATIO = 3.0
#: Columns to hash into are fewer, as in scikit-learn.
MAX_HASHED_COLUMNS = 2**31


class _OnDatasets:
    """What the three have in common: a fitted map of columns, applied to the chunks of a dataset."""

    densify: bool | str
    backend: str | Backend | None
    n_workers: int | None
    progress: ProgressOption
    n_features_in_: int

    def _column_map(self, n_features: int) -> ColumnMap:
        raise NotImplementedError

    def _n_features_out(self) -> int:
        return self.n_features_in_

    def _refuse(self, fit_params: Mapping[str, Any]) -> None:
        for name in fit_params:
            raise ConfigError(
                name, f"is no parameter here where data is a Dataset: try {type(self).__name__}({name}=...)"
            )

    def _transform_dataset(self, dataset: Dataset, url: str | os.PathLike[str] | None) -> Dataset:
        if url is None:
            raise ConfigError("url", "is missing: say where the new dataset goes")
        n_features = self._width(dataset)
        columns = self._column_map(n_features)
        self._check_filling(dataset, columns, n_features)
        step = Step.of(columns, type(self).__name__, n_features, self._n_features_out())
        request = MapRequest(
            kind="columns",
            function=PackedFunction.of_data(pack_arrays({}, columns.to_arrays()), type(self).__name__),
            input_url=dataset.url,
            manifest=dataset.manifest,
            output_url=dataset._output(url),
            n_features=self._n_features_out(),
            keeps_features=not columns.moves,
        )
        encoding = dict(dataset.manifest.encoding)
        encoding["preprocessing"] = [*encoding.get("preprocessing", ()), step.to_plain()]
        return dataset._rewrite(request, encoding, self.backend, self.n_workers, self.progress)

    def _width(self, dataset: Dataset) -> int:
        check_is_fitted(self)
        if dataset.n_features > self.n_features_in_:
            raise DataError(
                f"{dataset.url}: has {dataset.n_features} features, but {type(self).__name__} is expecting "
                f"{self.n_features_in_} features as input"
            )
        return self.n_features_in_

    def _check_filling(self, dataset: Dataset, columns: ColumnMap, n_features: int) -> None:
        filled = columns.filled_columns(n_features)
        if self.densify not in (True, False, "auto"):
            raise ConfigError("densify", f'must be True, False or "auto", got {self.densify!r}')
        if not filled.size or self.densify is True:
            return
        n_entries = sum(dataset.manifest.touches.n_nonzero)
        n_filled = filled.size * dataset.n_rows
        if self.densify == "auto" and n_filled <= FILL_RATIO * max(n_entries, 1):
            return
        raise ConfigError(
            "densify",
            f"zero would become another number in {filled.size} columns (the first is {filled[0]}), so that "
            f"up to {n_filled:,} values would be stored where there are {n_entries:,}: "
            + self._sparse_advice(),
        )

    def _sparse_advice(self) -> str:
        return "use densify=True if that is wanted"

    def save(self, url: str | os.PathLike[str]) -> None:
        """Write what was fitted to a folder or another object store, as JSON and arrays.

        Read it back with :func:`load_preprocessing`.

        Raises:
            StorageError: The object store refused.
        """
        check_is_fitted(self)
        plain, arrays = _plain_state(self)
        store = open_store(url)
        store.put("preprocessing.npz", pack_arrays({}, arrays))
        store.put(PREPROCESSING_KEY, json.dumps(plain, indent=1).encode())

    def _statistics(self, dataset: Dataset) -> Any:
        return dataset.describe(backend=self.backend, n_workers=self.n_workers, progress=self.progress)

    def _start(self, dataset: Dataset) -> None:
        self.n_features_in_ = dataset.n_features
        if hasattr(self, "feature_names_in_"):
            del self.feature_names_in_


class MinMaxScaler(_OnDatasets, sklearn.preprocessing.MinMaxScaler):  # type: ignore[misc]
    """Scales each column to a range: scikit-learn's ``MinMaxScaler``, also on datasets.

    Args:
        feature_range: Where the smallest and the largest value go.
        copy: As in scikit-learn, for arrays.
        clip: Cut values of other data off at the range.
        densify: On datasets, whether zeros may be filled in where they do not stay zero: True, False, or
            ``"auto"``: while the data gets no more than three times as large.
        backend: Where functions run; None: as suits the size.
        n_workers: None: one a core.
        progress: True for a live line, or a function of :class:`MapProgress`.

    Example:
        >>> scaled = MinMaxScaler().fit_transform(ds, "data/scaled")  # doctest: +SKIP
    """

    def __init__(
        self,
        feature_range: tuple[float, float] = (0, 1),
        *,
        copy: bool = True,
        clip: bool = False,
        densify: bool | str = "auto",
        backend: str | Backend | None = None,
        n_workers: int | None = None,
        progress: ProgressOption = None,
    ) -> None:
        super().__init__(feature_range, copy=copy, clip=clip)
        self.densify = densify
        self.backend = backend
        self.n_workers = n_workers
        self.progress = progress

    def fit(self, X: Any, y: Any = None) -> MinMaxScaler:
        """Find each column's range.

        Args:
            X: A Dataset, or what scikit-learn takes.
            y: Ignored.
        """
        refuse_path("X", X)
        if not isinstance(X, Dataset):
            return super().fit(X, y)  # type: ignore[no-any-return]
        low, high = _limits(self.feature_range)
        if low >= high:
            raise ConfigError("feature_range", f"must be (smaller, larger), got {self.feature_range!r}")
        found = self._statistics(X)
        self._start(X)
        self.n_samples_seen_ = X.n_rows
        self.data_min_, self.data_max_ = found.minimum, found.maximum
        self.data_range_ = self.data_max_ - self.data_min_
        span = np.where(self.data_range_ < 10 * np.finfo(np.float64).eps, 1.0, self.data_range_)
        self.scale_ = (high - low) / span
        self.min_ = low - self.data_min_ * self.scale_
        return self

    def transform(self, X: Any, url: str | os.PathLike[str] | None = None) -> Any:
        """Scale.

        Args:
            X: A Dataset, an array, or a sparse matrix if its zeros stay zero.
            url: Where the new dataset goes.

        Returns:
            A Dataset, array or sparse matrix.

        Raises:
            ConfigError: Zeros would not stay zero, and there are many.
        """
        refuse_path("X", X)
        if isinstance(X, Dataset):
            return self._transform_dataset(X, url)
        if scipy.sparse.issparse(X):
            return _map_sparse(self, X)
        return super().transform(X)

    def fit_transform(self, X: Any, url: Any = None, **fit_params: Any) -> Any:
        """Fit, then transform; ``url`` is for a Dataset, and scikit-learn's ``y`` for arrays."""
        if isinstance(X, Dataset):
            self._refuse(fit_params)
            return self.fit(X).transform(X, url)
        return super().fit_transform(X, url, **fit_params)

    def _column_map(self, n_features: int) -> ColumnMap:
        offset = self.min_ if self.min_.any() else None
        clip = (float(self.feature_range[0]), float(self.feature_range[1])) if self.clip else None
        return ColumnMap(factor=self.scale_, offset=offset, clip=clip)

    def _sparse_advice(self) -> str:
        return (
            "choose a feature_range that maps 0 to 0, use StandardScaler(with_mean=False), or densify=True "
            "if that is wanted"
        )


class StandardScaler(_OnDatasets, sklearn.preprocessing.StandardScaler):  # type: ignore[misc]
    """Scales each column to mean 0 and variance 1: scikit-learn's ``StandardScaler``, also on datasets.

    Sample weights of a dataset are not used: every row counts once.

    Args:
        copy: As in scikit-learn, for arrays.
        with_mean: Shift to mean 0; sparse data would become dense.
        with_std: Scale to variance 1.
        densify: See :class:`MinMaxScaler`.
        backend: Where functions run; None: as suits the size.
        n_workers: None: one a core.
        progress: True for a live line, or a function of :class:`MapProgress`.
    """

    def __init__(
        self,
        *,
        copy: bool = True,
        with_mean: bool = True,
        with_std: bool = True,
        densify: bool | str = "auto",
        backend: str | Backend | None = None,
        n_workers: int | None = None,
        progress: ProgressOption = None,
    ) -> None:
        super().__init__(copy=copy, with_mean=with_mean, with_std=with_std)
        self.densify = densify
        self.backend = backend
        self.n_workers = n_workers
        self.progress = progress

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> StandardScaler:
        """Find each column's mean and variance.

        Args:
            X: A Dataset, or what scikit-learn takes.
            y: Ignored.
            sample_weight: For arrays.
        """
        refuse_path("X", X)
        if not isinstance(X, Dataset):
            return super().fit(X, y, sample_weight)  # type: ignore[no-any-return]
        if sample_weight is not None:
            raise ConfigError("sample_weight", "must be None for a Dataset: every row counts once")
        found = self._statistics(X)
        self._start(X)
        self.n_samples_seen_ = X.n_rows
        self.mean_ = found.mean if self.with_mean or self.with_std else None
        self.var_ = self.scale_ = None
        if self.with_std:
            self.var_ = found.variance
            # As scikit-learn tells a column that is constant but for rounding.
            eps = np.finfo(np.float64).eps
            bound = X.n_rows * eps * found.variance + (X.n_rows * found.mean * eps) ** 2
            constant = found.variance <= bound
            self.scale_ = np.where(constant, 1.0, np.sqrt(found.variance))
        return self

    def transform(self, X: Any, url: Any = None, copy: bool | None = None) -> Any:
        """Scale.

        Args:
            X: A Dataset, array or sparse matrix.
            url: Where the new dataset goes.
            copy: As in scikit-learn, for arrays.

        Returns:
            A Dataset, array or sparse matrix.

        Raises:
            ConfigError: Zeros would not stay zero, and there are many.
        """
        refuse_path("X", X)
        if isinstance(X, Dataset):
            return self._transform_dataset(X, url)
        return super().transform(X, copy=copy)

    def fit_transform(self, X: Any, url: Any = None, **fit_params: Any) -> Any:
        """Fit, then transform; ``url`` is for a Dataset, and scikit-learn's ``y`` for arrays."""
        if isinstance(X, Dataset):
            self._refuse(fit_params)
            return self.fit(X).transform(X, url)
        return super().fit_transform(X, url, **fit_params)

    def _column_map(self, n_features: int) -> ColumnMap:
        factor = None if self.scale_ is None else 1.0 / self.scale_
        offset = None
        if self.with_mean and self.mean_ is not None and self.mean_.any():
            offset = -self.mean_ if factor is None else -self.mean_ * factor
        return ColumnMap(factor=factor, offset=offset)

    def _sparse_advice(self) -> str:
        return "use with_mean=False, or densify=True if that is wanted"


class FeatureHasher(_OnDatasets, sklearn.feature_extraction.FeatureHasher):  # type: ignore[misc]
    """Hashes columns into fewer: scikit-learn's ``FeatureHasher``, also on datasets.

    On a dataset, each of ``columns`` is hashed by its number as text (``"17"``), with its value, as
    ``FeatureHasher(input_type="dict")`` does with ``{"17": value}``. Columns that are not hashed keep their
    values and come first, in their order; the hashed ones follow.

    Args:
        n_features: Columns to hash into.
        input_type: As in scikit-learn, for other input than datasets.
        dtype: As in scikit-learn, for other input than datasets.
        alternate_sign: Flip the sign of half of the columns, so that collisions cancel.
        columns: Numbers of the columns to hash; None: all.
        densify: Has no effect: zeros stay zero.
        backend: Where functions run; None: as suits the size.
        n_workers: None: one a core.
        progress: True for a live line, or a function of :class:`MapProgress`.
    """

    def __init__(
        self,
        n_features: int = 2**20,
        *,
        input_type: str = "dict",
        dtype: Any = np.float64,
        alternate_sign: bool = True,
        columns: Sequence[int] | None = None,
        densify: bool | str = "auto",
        backend: str | Backend | None = None,
        n_workers: int | None = None,
        progress: ProgressOption = None,
    ) -> None:
        super().__init__(n_features, input_type=input_type, dtype=dtype, alternate_sign=alternate_sign)
        self.columns = columns
        self.densify = densify
        self.backend = backend
        self.n_workers = n_workers
        self.progress = progress

    def fit(self, X: Any = None, y: Any = None) -> FeatureHasher:
        """Take note of the number of columns; nothing else is learned.

        Args:
            X: A Dataset, or what scikit-learn takes.
            y: Ignored.
        """
        refuse_path("X", X)
        if isinstance(X, Dataset):
            self._check_params()
            self._start(X)
            return self
        return super().fit(X, y)  # type: ignore[no-any-return]

    def _check_params(self) -> None:
        """Refuse what scikit-learn would refuse, in our own words."""
        if whole_number(self.n_features, "n_features") >= MAX_HASHED_COLUMNS:
            raise ConfigError("n_features", f"must be below {MAX_HASHED_COLUMNS:,}, got {self.n_features!r}")
        if not isinstance(self.alternate_sign, (bool, np.bool_)):
            raise ConfigError("alternate_sign", f"must be True or False, got {self.alternate_sign!r}")

    def transform(self, X: Any, url: str | os.PathLike[str] | None = None) -> Any:
        """Hash.

        Args:
            X: A Dataset, a numeric array or sparse matrix with its columns, or what scikit-learn takes.
            url: Where the new dataset goes.

        Returns:
            A Dataset or a sparse matrix.
        """
        refuse_path("X", X)
        if isinstance(X, Dataset):
            if not hasattr(self, "n_features_in_"):
                self.fit(X)
            return self._transform_dataset(X, url)
        if scipy.sparse.issparse(X) or (isinstance(X, np.ndarray) and X.ndim == 2 and X.dtype.kind in "biuf"):
            self.n_features_in_ = getattr(self, "n_features_in_", X.shape[1])
            return _map_sparse(self, scipy.sparse.csr_array(X))
        return super().transform(X)

    def fit_transform(self, X: Any, url: Any = None, **fit_params: Any) -> Any:
        """Fit, then transform; ``url`` is for a Dataset."""
        if isinstance(X, Dataset):
            self._refuse(fit_params)
            return self.fit(X).transform(X, url)
        return super().fit_transform(X, url, **fit_params)

    def _hash(self, n_features: int) -> ColumnHash:
        columns = None
        if self.columns is not None:
            for column in self.columns:
                is_whole = hasattr(column, "__index__") and not isinstance(column, bool)
                if not is_whole or not 0 <= column < n_features:
                    raise ConfigError(
                        "columns", f"must be numbers from 0 to {n_features - 1}, got {column!r}"
                    )
            columns = np.unique(np.array(list(self.columns), np.uint32))
        return ColumnHash(n_features, int(self.n_features), bool(self.alternate_sign), columns)

    def _n_features_out(self) -> int:
        return self._hash(self.n_features_in_).n_features_out

    def _column_map(self, n_features: int) -> ColumnMap:
        return ColumnMap(hashing=self._hash(n_features))


def _limits(feature_range: Any) -> tuple[float, float]:
    """Return the two numbers that a range is.

    Raises:
        ConfigError: It is something else.
    """
    try:
        low, high = (limit + 0.0 for limit in feature_range)
    except (TypeError, ValueError) as error:
        raise ConfigError("feature_range", f"must be two numbers, got {feature_range!r}") from error
    return low, high


_KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in (MinMaxScaler, StandardScaler, FeatureHasher)}
#: Parameters that belong to the process that set them.
_UNSAVED = ("backend", "n_workers", "progress", "dtype")


def load_preprocessing(url: str | os.PathLike[str]) -> Any:
    """Return what was saved at a URL; nothing in it is executed.

    Args:
        url: What :meth:`MinMaxScaler.save` wrote to.

    Raises:
        NotFoundError: There is nothing.
        CorruptDataError: It is damaged, or something else.
    """
    store = open_store(url)
    try:
        raw, packed = store.get(PREPROCESSING_KEY), store.get("preprocessing.npz")
    except NotFoundError as error:
        raise NotFoundError(f"{url}: there is no saved preprocessing here") from error
    try:
        plain = parse_json(raw)
        made = _KINDS[plain["class"]](**{k: _param(v) for k, v in plain["params"].items()})
        fitted = dict(plain["fitted"])
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptDataError(f"{url}/{PREPROCESSING_KEY}: is no preprocessing: {error}") from error
    arrays = unpack_arrays(packed, f"{url}/preprocessing.npz")[1]
    for name, value in {**fitted, **{name: array.copy() for name, array in arrays.items()}}.items():
        if not name.endswith("_") or name.startswith("_"):
            raise CorruptDataError(f"{url}/{PREPROCESSING_KEY}: holds {name!r}, which nothing fitted has")
        setattr(made, name, value)
    return made


def _param(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _plain_state(transformer: Any) -> tuple[dict[str, Any], dict[str, Array]]:
    fitted: dict[str, Any] = {}
    arrays: dict[str, Array] = {}
    for name, value in vars(transformer).items():
        if not name.endswith("_") or name.startswith("_"):
            continue
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            arrays[name] = value
        elif value is None or isinstance(value, (bool, int, float)):
            fitted[name] = value
        elif isinstance(value, np.generic):
            fitted[name] = value.item()
    params = {k: v for k, v in transformer.get_params(deep=False).items() if k not in _UNSAVED}
    columns = params.get("columns")
    if columns is not None:
        params["columns"] = [int(column) for column in columns]
    return {"class": type(transformer).__name__, "params": params, "fitted": fitted}, arrays


def _map_sparse(transformer: _OnDatasets, X: Any) -> Any:
    """Apply a fitted map to a sparse matrix, which stays sparse."""
    check_is_fitted(transformer)
    if X.shape[1] != transformer.n_features_in_:
        raise DataError(
            f"X has {X.shape[1]} features, but {type(transformer).__name__} is expecting "
            f"{transformer.n_features_in_} features as input"
        )
    columns = transformer._column_map(transformer.n_features_in_)
    step = Step.of(
        columns, type(transformer).__name__, transformer.n_features_in_, transformer._n_features_out()
    )
    return step.apply_sparse(scipy.sparse.csr_array(X), fill=transformer.densify is True)
