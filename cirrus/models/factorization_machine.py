"""Factorization machine (Rendle, 2010): linear scores, and a weight for each pair of features of low rank.

A row x scores ``b + w.x + sum_{i<j} <v_i, v_j> x_i x_j``. The sum over pairs is half of
``sum_f (sum_i v_if x_i)^2 - sum_i v_if^2 x_i^2``, which takes one pass over the entries; the slope by v_if is
``x_i (sum_j v_jf x_j) - v_if x_i^2``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from cirrus.errors import ConfigError
from cirrus.models import params as check
from cirrus.models.base import Array, Gradients, LossSum, TableSpec
from cirrus.models.linear import INTERCEPT, INTERCEPT_IDS, WEIGHTS, summed_loss
from cirrus.models.logistic import two_classes
from cirrus.models.losses import LogLoss, Loss, SquaredLoss

if TYPE_CHECKING:
    from cirrus.chunks import Block

FACTORS = "factors"
#: Pairs are many: steps of the adaptive optimizers that are as long as those of weights overfit.
ADAPTIVE_SCALE = 0.15

TASKS = ("classification", "regression")
_PARAMS = frozenset(
    {"task", "classes", "class_weight", "n_factors", "initial_scale", "factor_l2"}
    | {"target_mean", "target_scale", "feature_scale"}
)


class FactorizationMachineModel:
    """Pairs of features matter, for two classes (log loss) or numbers (half the squared error).

    Args:
        n_factors: How long each feature's vector is.
        initial_scale: Standard deviation of the vectors' initial values; from 0 they would never move.
        factor_l2: Penalty on the vectors' squares.
        task: One of :data:`TASKS`.
        classes: The labels of the negative and the positive class; for classification.
        class_weight: Factors on the weights of the rows of either class; for classification.
        target_mean: Where the intercept begins; for regression.
        target_scale: How far labels are from their mean; for regression.
        feature_scale: How large a feature is where it is not 0; for regression.
    """

    name: ClassVar[str] = "factorization_machine"

    def __init__(
        self,
        *,
        n_factors: int = 8,
        initial_scale: float = 0.03,
        factor_l2: float = 0.0,
        task: str = "classification",
        classes: tuple[float, ...] = (0.0, 1.0),
        class_weight: tuple[float, ...] | None = None,
        target_mean: float = 0.0,
        target_scale: float = 1.0,
        feature_scale: float = 1.0,
    ) -> None:
        if task not in TASKS:
            raise ConfigError("task", f"must be one of {', '.join(TASKS)}, got {task!r}")
        self._loss: Loss = LogLoss(classes[1], class_weight) if task == "classification" else SquaredLoss()
        self._n_factors = n_factors
        self._initial_scale = initial_scale
        self._factor_l2 = factor_l2
        self._target_mean = target_mean
        self._target_scale = target_scale
        self._feature_scale = feature_scale

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> Self:
        """Build the model; see :meth:`cirrus.models.base.Model.from_params`."""
        check.check_known(params, _PARAMS, cls.name)
        return cls(
            n_factors=check.whole(params, "n_factors", 8),
            initial_scale=check.number(params, "initial_scale", 0.03, above=0.0),
            factor_l2=check.number(params, "factor_l2", 0.0, least=0.0),
            task=params.get("task", "classification"),
            classes=two_classes(params),
            class_weight=check.factors(params, 2),
            target_mean=check.number(params, "target_mean", 0.0),
            target_scale=check.number(params, "target_scale", 1.0, above=0.0),
            feature_scale=check.number(params, "feature_scale", 1.0, above=0.0),
        )

    def tables(self, n_features: int) -> tuple[TableSpec, ...]:
        """Return the vectors, the weights and the intercept; only the vectors begin at random."""
        scale, loss_unit = self._target_scale, self._target_scale**2
        factor_unit = float(np.sqrt(scale)) / self._feature_scale
        return (
            TableSpec(
                name=FACTORS,
                n_rows=n_features,
                width=self._n_factors,
                penalties=(0.0, self._factor_l2),
                initial_scale=self._initial_scale * factor_unit,
                unit=factor_unit,
                adaptive_scale=ADAPTIVE_SCALE,
                loss_unit=loss_unit,
            ),
            TableSpec(name=WEIGHTS, n_rows=n_features, unit=scale / self._feature_scale, loss_unit=loss_unit),
            TableSpec(
                name=INTERCEPT,
                n_rows=1,
                regularised=False,
                initial_mean=self._target_mean,
                unit=scale,
                loss_unit=loss_unit,
            ),
        )

    def ids(self, block: Block) -> dict[str, Array]:
        """Return the features that occur in the minibatch, twice, and the intercept's one row."""
        return {FACTORS: block.ids, WEIGHTS: block.ids, INTERCEPT: INTERCEPT_IDS}

    def predict(self, parameters: Mapping[str, Array], block: Block) -> Array:
        """Return log odds or numbers, float64 of shape (n_rows,)."""
        return self._scores(parameters, block, block.matmat(parameters[FACTORS]), block.squared())

    def _scores(self, parameters: Mapping[str, Array], block: Block, sums: Array, squared: Block) -> Array:
        """Return scores, given each row's sum of vectors, shape (n_rows, n_factors)."""
        factors, weights = parameters[FACTORS], parameters[WEIGHTS][:, 0]
        lengths = np.square(factors) @ np.ones(self._n_factors, factors.dtype)
        pairs = np.einsum("rf,rf->r", sums, sums, dtype=np.float64)
        if squared is block:
            # With values of 1 alone, both sums over the entries are one.
            rest = block.matvec(weights - 0.5 * lengths)
        else:
            rest = block.matvec(weights) - 0.5 * squared.matvec(lengths)
        scores: Array = 0.5 * pairs + rest + parameters[INTERCEPT][0, 0]
        return scores

    def gradient(self, parameters: Mapping[str, Array], block: Block) -> Gradients:
        """Return summed loss and gradient; see :class:`cirrus.models.base.Gradients`."""
        sums, squared = block.matmat(parameters[FACTORS]), block.squared()
        losses, errors = self._loss.losses_and_errors(self._scores(parameters, block, sums, squared), block)
        weights = self._loss.row_weights(block)
        if weights is None:
            loss_sum, weight_sum = float(losses.sum()), float(block.n_rows)
        else:
            errors *= weights
            loss_sum, weight_sum = float(losses @ weights), float(weights.sum())
        slopes = block.rmatvec(errors)
        # With values of 1 alone, squares are the values themselves.
        own = slopes if squared is block else squared.rmatvec(errors)
        factors = parameters[FACTORS]
        by_factor = block.rmatmat(errors[:, None] * sums).astype(factors.dtype)
        # Repeated by hand and in one type: numpy's broadcasting over rows this short takes ten times as long.
        by_factor -= np.repeat(own.astype(factors.dtype), self._n_factors).reshape(factors.shape) * factors
        values = {FACTORS: by_factor, WEIGHTS: slopes[:, None], INTERCEPT: errors.sum().reshape(1, 1)}
        return Gradients(loss_sum, weight_sum, values)

    def loss(self, parameters: Mapping[str, Array], block: Block) -> LossSum:
        """Return the summed loss, and the loss's further figures."""
        return summed_loss(self._loss, self.predict(parameters, block), block)
