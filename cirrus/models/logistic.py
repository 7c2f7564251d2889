"""Binary logistic regression: a width-1 table of weights, and an intercept of its own.

A row with label sign s (+1 or -1) and margin m = s * (w.x + b) costs ``log(1 + exp(-m))``; its gradient with
respect to ``w.x + b`` is ``-s / (1 + exp(m))``. Both are taken from ``e = exp(-|m|)``, which never overflows.

Everything of size n_rows is float64, though parameters and the wire are float32: it costs next to nothing at
minibatch size, and a row of weight 2 then gives the same float32 gradient as the row given twice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from cirrus.errors import ConfigError
from cirrus.models.base import Array, Gradients, LossSum, TableSpec

if TYPE_CHECKING:
    from cirrus.chunks import Block

WEIGHTS = "weights"
INTERCEPT = "intercept"

_PARAMS = frozenset({"classes", "fit_intercept", "class_weight"})
_INTERCEPT_IDS = np.zeros(1, dtype=np.uint32)
_INTERCEPT_IDS.setflags(write=False)


class LogisticModel:
    """Two classes, log loss.

    Args:
        classes: The labels, as stored in the dataset, of the negative and the positive class.
        fit_intercept: Whether there is an intercept.
        class_weight: Factors on the weights of the rows of either class; None: 1 and 1.
    """

    name = "logistic"

    def __init__(
        self,
        *,
        classes: tuple[float, float] = (0.0, 1.0),
        fit_intercept: bool = True,
        class_weight: tuple[float, float] | None = None,
    ) -> None:
        self.classes = classes
        self.fit_intercept = fit_intercept
        self.class_weight = class_weight
        self._positive = np.float32(classes[1])

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> LogisticModel:
        """Build the model from :attr:`cirrus.config.ModelConfig.params`, which may come from a file.

        Raises:
            ConfigError: A parameter is unknown or of the wrong type.
        """
        unknown = sorted(set(params) - _PARAMS)
        if unknown:
            raise ConfigError("model", f"{cls.name} has no parameter {', '.join(unknown)}")
        classes = _pair(params.get("classes", (0.0, 1.0)), "classes")
        if classes[0] == classes[1]:
            raise ConfigError("classes", f"must be two different labels, got {classes[0]:g} twice")
        fit_intercept = params.get("fit_intercept", True)
        if not isinstance(fit_intercept, bool):
            raise ConfigError("fit_intercept", f"must be true or false, got {fit_intercept!r}")
        class_weight = params.get("class_weight")
        if class_weight is not None:
            class_weight = _pair(class_weight, "class_weight")
            if min(class_weight) < 0:
                raise ConfigError("class_weight", f"must not be negative, got {class_weight}")
        return cls(classes=classes, fit_intercept=fit_intercept, class_weight=class_weight)

    def tables(self, n_features: int) -> tuple[TableSpec, ...]:
        """Return a row of weight for each feature, and the intercept, which is never regularised."""
        weights = TableSpec(name=WEIGHTS, n_rows=n_features)
        if not self.fit_intercept:
            return (weights,)
        return weights, TableSpec(name=INTERCEPT, n_rows=1, regularised=False)

    def ids(self, block: Block) -> dict[str, Array]:
        """Return the features that occur in the minibatch, and the intercept's one row."""
        if not self.fit_intercept:
            return {WEIGHTS: block.ids}
        return {WEIGHTS: block.ids, INTERCEPT: _INTERCEPT_IDS}

    def gradient(self, parameters: Mapping[str, Array], block: Block) -> Gradients:
        """Return summed loss and gradient; see :class:`cirrus.models.base.Gradients`."""
        positive, margins = self._margins(parameters, block)
        exponentials = np.exp(-np.abs(margins))
        losses = _losses(margins, exponentials)
        wrongness = np.where(margins >= 0, exponentials, 1.0)
        wrongness /= exponentials + 1.0
        errors = np.where(positive, -wrongness, wrongness)
        weights = self._row_weights(positive, block)
        if weights is None:
            loss_sum, weight_sum = float(losses.sum()), float(block.n_rows)
        else:
            errors *= weights
            loss_sum, weight_sum = float(losses @ weights), float(weights.sum())
        values = {WEIGHTS: block.rmatvec(errors)[:, None]}
        if self.fit_intercept:
            values[INTERCEPT] = errors.sum().reshape(1, 1)
        return Gradients(loss_sum, weight_sum, values)

    def loss(self, parameters: Mapping[str, Array], block: Block) -> LossSum:
        """Return the summed log loss, and the weight of the rows classified correctly as ``accuracy``."""
        positive, margins = self._margins(parameters, block)
        losses = _losses(margins, np.exp(-np.abs(margins)))
        # A decision of exactly 0 is the negative class, as in `predict`.
        correct = (margins > 0) | ((margins == 0) & ~positive)
        weights = self._row_weights(positive, block)
        if weights is None:
            return LossSum(float(losses.sum()), float(block.n_rows), {"accuracy": float(correct.sum())})
        return LossSum(float(losses @ weights), float(weights.sum()), {"accuracy": float(weights @ correct)})

    def _margins(self, parameters: Mapping[str, Array], block: Block) -> tuple[Array, Array]:
        """Return (n_rows,) bool: the positive rows, and (n_rows,) float64: label sign times decision."""
        decisions = block.matvec(parameters[WEIGHTS][:, 0]).astype(np.float64)
        if self.fit_intercept:
            decisions += parameters[INTERCEPT][0, 0]
        positive = block.labels == self._positive
        return positive, np.where(positive, decisions, -decisions)

    def _row_weights(self, positive: Array, block: Block) -> Array | None:
        """Return (n_rows,) float64, or None when every row weighs 1."""
        weights = None if block.weights is None else block.weights.astype(np.float64)
        if self.class_weight is None:
            return weights
        by_class: Array = np.where(positive, self.class_weight[1], self.class_weight[0])
        return by_class if weights is None else by_class * weights


def _losses(margins: Array, exponentials: Array) -> Array:
    losses: Array = np.log1p(exponentials)
    losses -= np.minimum(margins, 0.0)
    return losses


def _pair(value: Any, name: str) -> tuple[float, float]:
    if (
        not isinstance(value, (list, tuple))
        or len(value) != 2
        or not all(isinstance(v, (int, float)) and math.isfinite(v) for v in value)
    ):
        raise ConfigError(name, f"must be two numbers, got {value!r}")
    return float(value[0]), float(value[1])
