"""Matrix factorization with biases (Koren et al., 2009): a vector for each user and each item.

A rating is ``mean + scale * (b_u + b_i + <p_u, q_i>)``: parameters are in the ratings' own unit, so that one
learning rate serves stars and percent alike. A row has two entries: its user, and behind all users its item;
one that lacks either (an id that training did not know) is predicted from what is left.

The loss is half the squared error. The penalty ``l2`` counts for every rating, not for every minibatch that
touches a row, so it is part of the gradient here and no business of the optimizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from cirrus.config import OptimizerConfig
from cirrus.errors import ConfigError
from cirrus.models import params as check
from cirrus.models.base import Array, Gradients, LossSum, TableSpec
from cirrus.models.losses import SquaredLoss, sample_weights

if TYPE_CHECKING:
    from cirrus.chunks import Block

USERS = "users"
ITEMS = "items"
#: Two tables of one value, which nothing changes: the ratings' mean and their scale.
MEAN = "mean"
SCALE = "scale"

_PARAMS = frozenset({"n_users", "n_items", "n_factors", "l2", "initial_scale", "mean", "scale"})
_ONE_ROW = np.zeros(1, dtype=np.uint32)
_ONE_ROW.setflags(write=False)


class MatrixFactorizationModel:
    """Ratings of items by users.

    Args:
        n_users: Features below this are users, the others are items.
        n_items: Number of items.
        n_factors: Length of the vectors.
        l2: Penalty on squares of biases and vectors, for each rating.
        initial_scale: Standard deviation of the initial values.
        mean: Of the ratings.
        scale: Of the ratings.
    """

    name: ClassVar[str] = "matrix_factorization"

    def __init__(
        self,
        *,
        n_users: int,
        n_items: int,
        n_factors: int = 20,
        l2: float = 0.1,
        initial_scale: float = 0.1,
        mean: float = 0.0,
        scale: float = 1.0,
    ) -> None:
        self._n_users = n_users
        self._n_items = n_items
        self._n_factors = n_factors
        self._l2 = l2
        self._initial_scale = initial_scale
        self._mean = mean
        self._scale = scale
        self._loss = SquaredLoss()

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> Self:
        """Build the model; see :meth:`cirrus.models.base.Model.from_params`."""
        check.check_known(params, _PARAMS, cls.name)
        return cls(
            n_users=check.whole(params, "n_users", 0),
            n_items=check.whole(params, "n_items", 0),
            n_factors=check.whole(params, "n_factors", 20),
            l2=check.number(params, "l2", 0.1, least=0.0),
            initial_scale=check.number(params, "initial_scale", 0.1, above=0.0),
            mean=check.number(params, "mean", 0.0),
            scale=check.number(params, "scale", 1.0, above=0.0),
        )

    def tables(self, n_features: int) -> tuple[TableSpec, ...]:
        """Return users and items, a bias and a vector a row, and the ratings' units.

        Raises:
            ConfigError: There are not as many features as users and items.
        """
        if n_features != self._n_users + self._n_items:
            raise ConfigError("n_users", f"and n_items must be the {n_features} features together")
        rows = [
            TableSpec(
                name=name,
                n_rows=n_rows,
                width=1 + self._n_factors,
                regularised=False,
                initial_scale=self._initial_scale,
                loss_unit=self._scale**2,
            )
            for name, n_rows in ((USERS, self._n_users), (ITEMS, self._n_items))
        ]
        fixed = OptimizerConfig(name="add")
        units = [
            TableSpec(name=name, n_rows=1, initial_mean=value, optimizer=fixed)
            for name, value in ((MEAN, self._mean), (SCALE, self._scale))
        ]
        return tuple(sorted(rows, key=lambda table: -table.n_rows)) + tuple(units)

    def ids(self, block: Block) -> dict[str, Array]:
        """Return the users and the items that occur in the minibatch, and the units."""
        n_users = int(np.searchsorted(block.ids, self._n_users))
        return {
            USERS: block.ids[:n_users],
            ITEMS: block.ids[n_users:] - np.uint32(self._n_users),
            MEAN: _ONE_ROW,
            SCALE: _ONE_ROW,
        }

    def predict(self, parameters: Mapping[str, Array], block: Block) -> Array:
        """Return ratings, float64 of shape (n_rows,)."""
        return self._ratings(parameters, *self._rows(parameters, block))

    def _rows(self, parameters: Mapping[str, Array], block: Block) -> tuple[Array, Array]:
        """Return where each row's user and item are among those of the minibatch; behind all: nowhere."""
        n_users, n_items = len(parameters[USERS]), len(parameters[ITEMS])
        if block.row_starts is None and len(block.local) == 2 and block.nnz == 2 * block.n_rows:
            return block.local[0], block.local[1] - n_users
        indptr, indices, _ = block.to_csr()
        users, items = np.full(block.n_rows, n_users), np.full(block.n_rows, n_items)
        row = np.repeat(np.arange(block.n_rows), np.diff(indptr))
        place = np.searchsorted(block.ids, indices)
        is_user = indices < self._n_users
        users[row[is_user]] = place[is_user]
        items[row[~is_user]] = place[~is_user] - n_users
        return users, items

    def _ratings(self, parameters: Mapping[str, Array], users: Array, items: Array) -> Array:
        p, q = with_nobody(parameters[USERS])[users], with_nobody(parameters[ITEMS])[items]
        return self._ratings_of(parameters, p, q)

    def _ratings_of(self, parameters: Mapping[str, Array], p: Array, q: Array) -> Array:
        dots = np.einsum("rf,rf->r", p[:, 1:], q[:, 1:], dtype=np.float64)
        mean, scale = (float(parameters[name][0, 0]) for name in (MEAN, SCALE))
        ratings: Array = mean + scale * (dots + p[:, 0] + q[:, 0])
        return ratings

    def gradient(self, parameters: Mapping[str, Array], block: Block) -> Gradients:
        """Return summed loss (without the penalty) and gradient (with it)."""
        users, items = self._rows(parameters, block)
        p, q = with_nobody(parameters[USERS])[users], with_nobody(parameters[ITEMS])[items]
        losses, errors = self._loss.losses_and_errors(self._ratings_of(parameters, p, q), block)
        weights = sample_weights(block)
        errors = errors * self._scale
        weight_sum = float(block.n_rows)
        if weights is not None:
            losses, errors, weight_sum = losses * weights, errors * weights, float(weights.sum())
        penalty: Array = np.full((block.n_rows, 1), self._l2 * self._scale**2)
        if weights is not None:
            penalty *= weights[:, None]
        by_user, by_item = errors[:, None] * q, errors[:, None] * p
        by_user[:, 0] = by_item[:, 0] = errors
        by_user += penalty * p
        by_item += penalty * q
        values = {
            USERS: _sums_by_row(by_user, users, len(parameters[USERS])),
            ITEMS: _sums_by_row(by_item, items, len(parameters[ITEMS])),
            MEAN: np.zeros((1, 1)),
            SCALE: np.zeros((1, 1)),
        }
        return Gradients(float(losses.sum()), weight_sum, values)

    def loss(self, parameters: Mapping[str, Array], block: Block) -> LossSum:
        """Return the summed loss, and squared errors."""
        ratings = self.predict(parameters, block)
        losses, squares = self._loss.losses(ratings, block), np.square(ratings - block.labels)
        weights = sample_weights(block)
        if weights is None:
            weights = np.ones(block.n_rows)
        metrics = {"squared_error": float(weights @ squares)}
        return LossSum(float(weights @ losses), float(weights.sum()), metrics)


def with_nobody(table: Array) -> Array:
    """Return a table with a row of zeros behind it: for users and items that nobody knows."""
    extended = np.zeros((len(table) + 1, table.shape[1]), table.dtype)
    extended[:-1] = table
    return extended


def _sums_by_row(values: Array, rows: Array, n_rows: int) -> Array:
    """Return the sums of values, shape (n, width), by the row of a table that they go to."""
    width = values.shape[1]
    where = (rows[:, None] * width + np.arange(width)).ravel()
    sums = np.bincount(where, weights=values.ravel(), minlength=(n_rows + 1) * width)
    return sums.reshape(n_rows + 1, width)[:n_rows]
