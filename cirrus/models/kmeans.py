"""K-means by minibatches (Sculley, 2010): a centre is the mean of all rows that were ever nearest to it.

The tables hold sums and counts, and a step adds the rows of its minibatch to those of their centres. That is
Sculley's learning rate of 1 / count, and needs no state beside the sums. A distance needs a centre whole, so
every step pulls all of them: this model is for some thousands of features, not for millions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from cirrus.config import OptimizerConfig
from cirrus.errors import ConfigError
from cirrus.models import params as check
from cirrus.models.base import Array, Gradients, LossSum, TableSpec
from cirrus.models.losses import sample_weights

if TYPE_CHECKING:
    from cirrus.chunks import Block

SUMS = "sums"
COUNTS = "counts"
#: Most values of all centres together: what a step pulls and pushes.
MAX_VALUES = 2**22

_PARAMS = frozenset({"n_clusters", "n_features"})
_ONE_ROW = np.zeros(1, dtype=np.uint32)
_ONE_ROW.setflags(write=False)


class KMeansModel:
    """Centres of rows.

    Args:
        n_clusters: Number of centres.
        n_features: Number of columns.
    """

    name: ClassVar[str] = "kmeans"

    def __init__(self, *, n_clusters: int, n_features: int) -> None:
        if n_clusters * n_features > MAX_VALUES:
            raise ConfigError(
                "n_clusters", f"{n_clusters} times {n_features} features are more than {MAX_VALUES:,} values"
            )
        self._n_clusters = n_clusters
        self._all_ids = np.arange(n_features, dtype=np.uint32)

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> Self:
        """Build the model; see :meth:`cirrus.models.base.Model.from_params`."""
        check.check_known(params, _PARAMS, cls.name)
        return cls(
            n_clusters=check.whole(params, "n_clusters", 8), n_features=check.whole(params, "n_features", 0)
        )

    def tables(self, n_features: int) -> tuple[TableSpec, ...]:
        """Return sums, features first, and counts; a run begins with those of the first centres."""
        add = OptimizerConfig(name="add")
        return (
            TableSpec(name=SUMS, n_rows=n_features, width=self._n_clusters, optimizer=add),
            TableSpec(name=COUNTS, n_rows=1, width=self._n_clusters, optimizer=add, initial_mean=1.0),
        )

    def ids(self, block: Block) -> dict[str, Array]:
        """Return all rows."""
        return {SUMS: self._all_ids, COUNTS: _ONE_ROW}

    def predict(self, parameters: Mapping[str, Array], block: Block) -> Array:
        """Return squared distances to the centres, float64 of shape (n_rows, n_clusters)."""
        return squared_distances(centres(parameters), block)

    def gradient(self, parameters: Mapping[str, Array], block: Block) -> Gradients:
        """Return what the minibatch adds to sums and counts."""
        distances = self.predict(parameters, block)
        nearest = distances.argmin(axis=1)
        weights = _weights(block)
        belongs = np.zeros(distances.shape)
        belongs[np.arange(block.n_rows), nearest] = weights
        sums = np.zeros((len(self._all_ids), self._n_clusters))
        sums[block.ids] = block.rmatmat(belongs)
        losses = distances.min(axis=1) * weights
        values = {SUMS: sums, COUNTS: belongs.sum(axis=0)[None]}
        return Gradients(float(losses.sum()), float(weights.sum()), values)

    def loss(self, parameters: Mapping[str, Array], block: Block) -> LossSum:
        """Return the summed squared distances to the nearest centres."""
        weights = _weights(block)
        losses = self.predict(parameters, block).min(axis=1)
        return LossSum(float(weights @ losses), float(weights.sum()))


def _weights(block: Block) -> Array:
    weights = sample_weights(block)
    return np.ones(block.n_rows) if weights is None else weights


def centres(parameters: Mapping[str, Array]) -> Array:
    """Return the centres, float64 of shape (n_features, n_clusters)."""
    found: Array = parameters[SUMS].astype(np.float64) / np.maximum(
        parameters[COUNTS].astype(np.float64), 1e-12
    )
    return found


def squared_distances(centres: Array, block: Block) -> Array:
    """Return squared distances of rows to centres, float64 of shape (n_rows, n_clusters).

    Args:
        centres: Shape (n_features, n_clusters).
        block: The rows.
    """
    own = block.squared().matvec(np.ones(block.ids.size)).astype(np.float64)
    products = block.matmat(centres[block.ids]).astype(np.float64)
    distances = own[:, None] - 2.0 * products + np.square(centres).sum(axis=0)
    positive: Array = np.maximum(distances, 0.0)
    return positive
