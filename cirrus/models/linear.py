"""What all linear models share: scores ``x.w + b``, with a table of weights and an intercept of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from cirrus.models.base import Array, Gradients, LossSum, TableSpec
from cirrus.models.losses import Loss

if TYPE_CHECKING:
    from cirrus.chunks import Block

WEIGHTS = "weights"
INTERCEPT = "intercept"

INTERCEPT_IDS = np.zeros(1, dtype=np.uint32)
INTERCEPT_IDS.setflags(write=False)


class LinearModel:
    """Scores are linear in the features; a loss says what they cost.

    Args:
        loss: What scores cost.
        fit_intercept: Whether there is an intercept.
    """

    def __init__(self, loss: Loss, *, fit_intercept: bool = True) -> None:
        self.fit_intercept = fit_intercept
        self._loss = loss

    def tables(self, n_features: int) -> tuple[TableSpec, ...]:
        """Return a row of weights for each feature, and the intercepts, which are never regularised."""
        weights = TableSpec(name=WEIGHTS, n_rows=n_features, width=self._loss.n_scores)
        if not self.fit_intercept:
            return (weights,)
        intercept = TableSpec(name=INTERCEPT, n_rows=1, width=self._loss.n_scores, regularised=False)
        return weights, intercept

    def ids(self, block: Block) -> dict[str, Array]:
        """Return the features that occur in the minibatch, and the intercept's one row."""
        if not self.fit_intercept:
            return {WEIGHTS: block.ids}
        return {WEIGHTS: block.ids, INTERCEPT: INTERCEPT_IDS}

    def predict(self, parameters: Mapping[str, Array], block: Block) -> Array:
        """Return scores, float64 of shape (n_rows,) or (n_rows, n_scores)."""
        weights = parameters[WEIGHTS]
        if self._loss.n_scores == 1:
            scores = block.matvec(weights[:, 0]).astype(np.float64)
            return scores + parameters[INTERCEPT][0, 0] if self.fit_intercept else scores
        scores = block.matmat(weights).astype(np.float64)
        return scores + parameters[INTERCEPT] if self.fit_intercept else scores

    def gradient(self, parameters: Mapping[str, Array], block: Block) -> Gradients:
        """Return summed loss and gradient; see :class:`cirrus.models.base.Gradients`."""
        losses, errors = self._loss.losses_and_errors(self.predict(parameters, block), block)
        weights = self._loss.row_weights(block)
        if weights is None:
            loss_sum, weight_sum = float(losses.sum()), float(block.n_rows)
        else:
            errors *= weights if errors.ndim == 1 else weights[:, None]
            loss_sum, weight_sum = float(losses @ weights), float(weights.sum())
        slopes = block.rmatvec(errors)[:, None] if errors.ndim == 1 else block.rmatmat(errors)
        values = {WEIGHTS: slopes}
        if self.fit_intercept:
            values[INTERCEPT] = errors.sum(axis=0).reshape(1, -1)
        return Gradients(loss_sum, weight_sum, values)

    def loss(self, parameters: Mapping[str, Array], block: Block) -> LossSum:
        """Return the summed loss, and the loss's further figures."""
        return summed_loss(self._loss, self.predict(parameters, block), block)


def summed_loss(loss: Loss, scores: Array, block: Block) -> LossSum:
    """Return what scores cost in all, and the sums of the loss's further figures."""
    losses, metrics = loss.losses(scores, block), loss.metrics(scores, block)
    weights = loss.row_weights(block)
    if weights is None:
        sums = {name: float(values.sum()) for name, values in metrics.items()}
        return LossSum(float(losses.sum()), float(block.n_rows), sums)
    sums = {name: float(weights @ values) for name, values in metrics.items()}
    return LossSum(float(losses @ weights), float(weights.sum()), sums)
