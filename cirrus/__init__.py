"""Train sparse models on stateless workers and a parameter server.

Names are imported when they are first used: a worker imports this package too, and must not pay for scipy,
numba or scikit-learn.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cirrus.client_backend.aws.backend import AWSBackend
    from cirrus.client_backend.inline import InlineBackend
    from cirrus.client_backend.local import LocalBackend
    from cirrus.client_backend.ray.backend import RayBackend
    from cirrus.client_backend.runs import Run, list_runs, open_run
    from cirrus.client_backend.search_folder import SearchState
    from cirrus.errors import (
        CirrusError,
        ConfigError,
        ConflictError,
        CorruptDataError,
        DataError,
        NotFoundError,
        RunError,
        RunInterruptedError,
        StorageError,
    )
    from cirrus.frontend.clusters import KMeans
    from cirrus.frontend.datasets import Dataset, load_arrays, load_csv, load_svmlight
    from cirrus.frontend.estimators import load_model
    from cirrus.frontend.factorization import FactorizationMachine
    from cirrus.frontend.linear import LinearRegression, LinearSVC, LogisticRegression, SoftmaxRegression
    from cirrus.frontend.loading import load_bag_of_words, load_parquet, load_ratings, load_vw
    from cirrus.frontend.mapping import wait
    from cirrus.frontend.recommendation import MatrixFactorization
    from cirrus.frontend.search.grid import GridSearch, RandomSearch
    from cirrus.frontend.search.optuna_search import OptunaSearch
    from cirrus.frontend.search.results import SearchResults
    from cirrus.frontend.search.schedules import AshaPruner, MedianPruner
    from cirrus.frontend.topics import LatentDirichletAllocation
    from cirrus.metrics import MetricPoint, RunState, RunStatus

__version__ = "0.1.0"

_HOMES = {
    "AWSBackend": "cirrus.client_backend.aws.backend",
    "AshaPruner": "cirrus.frontend.search.schedules",
    "CirrusError": "cirrus.errors",
    "ConfigError": "cirrus.errors",
    "ConflictError": "cirrus.errors",
    "CorruptDataError": "cirrus.errors",
    "DataError": "cirrus.errors",
    "Dataset": "cirrus.frontend.datasets",
    "FactorizationMachine": "cirrus.frontend.factorization",
    "GridSearch": "cirrus.frontend.search.grid",
    "InlineBackend": "cirrus.client_backend.inline",
    "LocalBackend": "cirrus.client_backend.local",
    "KMeans": "cirrus.frontend.clusters",
    "LatentDirichletAllocation": "cirrus.frontend.topics",
    "LinearRegression": "cirrus.frontend.linear",
    "LinearSVC": "cirrus.frontend.linear",
    "LogisticRegression": "cirrus.frontend.linear",
    "MatrixFactorization": "cirrus.frontend.recommendation",
    "MedianPruner": "cirrus.frontend.search.schedules",
    "MetricPoint": "cirrus.metrics",
    "NotFoundError": "cirrus.errors",
    "OptunaSearch": "cirrus.frontend.search.optuna_search",
    "RayBackend": "cirrus.client_backend.ray.backend",
    "RandomSearch": "cirrus.frontend.search.grid",
    "Run": "cirrus.client_backend.runs",
    "RunError": "cirrus.errors",
    "RunInterruptedError": "cirrus.errors",
    "RunState": "cirrus.metrics",
    "RunStatus": "cirrus.metrics",
    "SearchResults": "cirrus.frontend.search.results",
    "SearchState": "cirrus.client_backend.search_folder",
    "SoftmaxRegression": "cirrus.frontend.linear",
    "StorageError": "cirrus.errors",
    "list_runs": "cirrus.client_backend.runs",
    "load_arrays": "cirrus.frontend.datasets",
    "load_bag_of_words": "cirrus.frontend.loading",
    "load_csv": "cirrus.frontend.datasets",
    "load_model": "cirrus.frontend.estimators",
    "load_parquet": "cirrus.frontend.loading",
    "load_ratings": "cirrus.frontend.loading",
    "load_svmlight": "cirrus.frontend.datasets",
    "load_vw": "cirrus.frontend.loading",
    "open_run": "cirrus.client_backend.runs",
    "wait": "cirrus.frontend.mapping",
}

__all__ = [
    "AWSBackend",
    "AshaPruner",
    "CirrusError",
    "ConfigError",
    "ConflictError",
    "CorruptDataError",
    "DataError",
    "Dataset",
    "FactorizationMachine",
    "GridSearch",
    "InlineBackend",
    "KMeans",
    "LatentDirichletAllocation",
    "LinearRegression",
    "LinearSVC",
    "LocalBackend",
    "LogisticRegression",
    "MatrixFactorization",
    "MedianPruner",
    "MetricPoint",
    "NotFoundError",
    "OptunaSearch",
    "RandomSearch",
    "RayBackend",
    "Run",
    "RunError",
    "RunInterruptedError",
    "RunState",
    "RunStatus",
    "SearchResults",
    "SearchState",
    "SoftmaxRegression",
    "StorageError",
    "list_runs",
    "load_arrays",
    "load_bag_of_words",
    "load_csv",
    "load_model",
    "load_parquet",
    "load_ratings",
    "load_svmlight",
    "load_vw",
    "open_run",
    "wait",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'cirrus' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
