"""Softmax regression (multinomial logistic regression): a table as wide as there are classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from cirrus.models import params as check
from cirrus.models.linear import LinearModel
from cirrus.models.losses import SoftmaxLoss

_PARAMS = frozenset({"classes", "fit_intercept", "class_weight"})


class SoftmaxModel(LinearModel):
    """Two classes or more, log loss.

    Args:
        classes: The labels, as stored in the dataset, of the classes.
        fit_intercept: Whether each class has an intercept.
        class_weight: A factor on the weights of the rows of each class; None: all 1.
    """

    name: ClassVar[str] = "softmax"

    def __init__(
        self,
        *,
        classes: tuple[float, ...],
        fit_intercept: bool = True,
        class_weight: tuple[float, ...] | None = None,
    ) -> None:
        super().__init__(SoftmaxLoss(classes, class_weight), fit_intercept=fit_intercept)

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> Self:
        """Build the model; see :meth:`cirrus.models.base.Model.from_params`."""
        check.check_known(params, _PARAMS, cls.name)
        classes = check.numbers(params.get("classes"), "classes")
        return cls(
            classes=classes,
            fit_intercept=check.flag(params, "fit_intercept", True),
            class_weight=check.factors(params, len(classes)),
        )
