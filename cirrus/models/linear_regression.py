"""Linear regression: numbers as labels, half the squared error as loss.

Gradient steps know nothing of units. So that one learning rate serves any data, rates are relative to the
labels' spread and the features' size, and the intercept begins at the labels' mean.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from cirrus.models import params as check
from cirrus.models.base import TableSpec
from cirrus.models.linear import LinearModel
from cirrus.models.losses import SquaredLoss

_PARAMS = frozenset({"fit_intercept", "target_mean", "target_scale", "feature_scale"})


class LinearRegressionModel(LinearModel):
    """Least squares.

    Args:
        fit_intercept: Whether there is an intercept.
        target_mean: Where the intercept begins.
        target_scale: How far labels are from their mean.
        feature_scale: How large a feature is where it is not 0.
    """

    name: ClassVar[str] = "linear"

    def __init__(
        self,
        *,
        fit_intercept: bool = True,
        target_mean: float = 0.0,
        target_scale: float = 1.0,
        feature_scale: float = 1.0,
    ) -> None:
        super().__init__(SquaredLoss(), fit_intercept=fit_intercept)
        self._target_mean = target_mean
        self._target_scale = target_scale
        self._feature_scale = feature_scale

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> Self:
        """Build the model; see :meth:`cirrus.models.base.Model.from_params`."""
        check.check_known(params, _PARAMS, cls.name)
        return cls(
            fit_intercept=check.flag(params, "fit_intercept", True),
            target_mean=check.number(params, "target_mean", 0.0),
            target_scale=check.number(params, "target_scale", 1.0, above=0.0),
            feature_scale=check.number(params, "feature_scale", 1.0, above=0.0),
        )

    def tables(self, n_features: int) -> tuple[TableSpec, ...]:
        """Return weights and intercept, each with its unit."""
        scale, loss_unit = self._target_scale, self._target_scale**2
        weights, *intercepts = super().tables(n_features)
        return (
            dataclasses.replace(weights, unit=scale / self._feature_scale, loss_unit=loss_unit),
            *(
                dataclasses.replace(table, unit=scale, loss_unit=loss_unit, initial_mean=self._target_mean)
                for table in intercepts
            ),
        )
