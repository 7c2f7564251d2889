"""K-means as an estimator."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self, Unpack

import numpy as np
import scipy.sparse
from sklearn.base import ClusterMixin, TransformerMixin
from sklearn.cluster import MiniBatchKMeans, kmeans_plusplus
from sklearn.utils.validation import check_is_fitted

from cirrus.chunks import Block
from cirrus.config import ModelConfig
from cirrus.errors import ConfigError, DataError
from cirrus.frontend.base import Array, Estimator, RunParams, SgdParams
from cirrus.frontend.datasets import Dataset
from cirrus.frontend.intake import TrainingData, Wanted
from cirrus.frontend.raw_rows import any_blocks
from cirrus.models.kmeans import COUNTS, SUMS, KMeansModel, squared_distances

#: The first centres are chosen among this many rows for each of them, and among no fewer than a block's.
SAMPLE_ROWS_A_CLUSTER = 30
MIN_SAMPLE_ROWS = 1024
_ROWS_AT_A_TIME = 4096


class KMeans(ClusterMixin, TransformerMixin, Estimator):  # type: ignore[misc]  # scikit-learn has no types
    """K-means by minibatches (Sculley, 2010), begun by k-means++ on a sample of the rows.

    Args:
        n_clusters: Number of clusters; times the number of features at most 4 million.
        **run: Parameters of :class:`cirrus.frontend.base.Estimator`.

    Attributes:
        cluster_centers_: float64 of shape (n_clusters, n_features).
        counts_: float64 of shape (n_clusters,): rows that each centre is the mean of, over all epochs.

    Example:
        >>> import cirrus
        >>> cirrus.KMeans(n_clusters=10).fit(X).predict(X)  # doctest: +SKIP
    """

    # A sum has to hold every addition: without rounds, two at the same instant may lose one.
    _defaults: ClassVar[SgdParams] = {"batch_size": 256, "staleness": 0}

    cluster_centers_: Array
    counts_: Array

    def __init__(self, *, n_clusters: int = 8, **run: Unpack[RunParams]) -> None:
        params: RunParams = {"batch_size": 256, "staleness": 0, **run}
        super().__init__(**params)
        self.n_clusters = n_clusters

    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Train for one epoch on some more rows; arguments as in :meth:`fit`."""
        return self._train_an_epoch(X, y, sample_weight)

    def fit_predict(self, X: Any, y: Any = None, sample_weight: Any = None) -> Array:
        """Train, and return the cluster of each row."""
        return self.fit(X, y, sample_weight).predict(X)

    # What a family decides.

    def _wanted(self, classes: Array | None) -> Wanted:
        return Wanted(kind="nothing")

    def _model_config(self, data: TrainingData) -> ModelConfig:
        if (
            isinstance(self.n_clusters, bool)
            or not hasattr(self.n_clusters, "__index__")
            or not 1 <= self.n_clusters <= data.manifest.n_rows
        ):
            n_rows = data.manifest.n_rows
            raise ConfigError("n_clusters", f"must be from 1 to the {n_rows} rows, got {self.n_clusters!r}")
        params = {"n_clusters": int(self.n_clusters), "n_features": data.manifest.n_features}
        return ModelConfig(name=KMeansModel.name, params=params)

    def _first_tables(self, data: TrainingData, seed: int) -> Mapping[str, Array]:
        """Return the centres that k-means++ finds in a sample, each as the mean of one row."""
        wanted = max(MIN_SAMPLE_ROWS, SAMPLE_ROWS_A_CLUSTER * int(self.n_clusters))
        parts: list[Any] = []
        n_rows = 0
        for block in Dataset.open(data.url).blocks():
            indptr, indices, values = block.to_csr()
            shape = (block.n_rows, data.manifest.n_features)
            parts.append(scipy.sparse.csr_array((values, indices.astype(np.int32), indptr), shape=shape))
            n_rows += block.n_rows
            if n_rows >= wanted:
                break
        sample = scipy.sparse.csr_matrix(scipy.sparse.vstack(parts))
        centres, _ = kmeans_plusplus(sample, int(self.n_clusters), random_state=seed)
        if scipy.sparse.issparse(centres):
            centres = centres.toarray()
        return {SUMS: centres.T, COUNTS: np.ones((1, int(self.n_clusters)))}

    def _take_tables(self, tables: Mapping[str, Array]) -> None:
        if tables[SUMS].shape != (self.n_features_in_, self.n_clusters):
            raise DataError(f"the parameters are not of {self.n_features_in_} features")
        self.counts_ = tables[COUNTS][0].astype(np.float64)
        self.cluster_centers_ = tables[SUMS].T.astype(np.float64) / self.counts_[:, None]

    # Use.

    def transform(self, X: Any) -> Array:
        """Return the distance of each row to each centre, float64 of shape (n_rows, n_clusters)."""
        return np.concatenate([np.sqrt(distances) for _, distances in self._distances(X)])

    def predict(self, X: Any) -> Array:
        """Return the number of the nearest centre of each row, intp of shape (n_rows,)."""
        return np.concatenate([distances.argmin(axis=1) for _, distances in self._distances(X)])

    def score(self, X: Any, y: Any = None) -> float:
        """Return the negative sum of squared distances to the nearest centres."""
        return -float(sum(distances.min(axis=1).sum() for _, distances in self._distances(X)))

    def to_sklearn(self) -> MiniBatchKMeans:
        """Return a fitted ``sklearn.cluster.MiniBatchKMeans`` that predicts the same."""
        check_is_fitted(self)
        found = MiniBatchKMeans(n_clusters=self.n_clusters, init=self.cluster_centers_, n_init=1)
        # One step on the centres themselves sets everything that predictions need; they stay where they are.
        found.partial_fit(self.cluster_centers_)
        found.cluster_centers_ = self.cluster_centers_.copy()
        return found

    def _distances(self, X: Any) -> Iterator[tuple[Block, Array]]:
        check_is_fitted(self)
        for block in any_blocks(self, X, rows_at_a_time=_ROWS_AT_A_TIME):
            yield block, squared_distances(self.cluster_centers_.T, block)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.target_tags.required = False
        return tags
