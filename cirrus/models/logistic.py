"""Binary logistic regression: a width-1 table of weights, and an intercept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from cirrus.errors import ConfigError
from cirrus.models import params as check
from cirrus.models.linear import LinearModel
from cirrus.models.losses import LogLoss

_PARAMS = frozenset({"classes", "fit_intercept", "class_weight"})


class LogisticModel(LinearModel):
    """Two classes, log loss.

    Args:
        classes: The labels, as stored in the dataset, of the negative and the positive class.
        fit_intercept: Whether there is an intercept.
        class_weight: Factors on the weights of the rows of either class; None: 1 and 1.
    """

    name: ClassVar[str] = "logistic"

    def __init__(
        self,
        *,
        classes: tuple[float, ...] = (0.0, 1.0),
        fit_intercept: bool = True,
        class_weight: tuple[float, ...] | None = None,
    ) -> None:
        self.classes = classes
        self.class_weight = class_weight
        super().__init__(LogLoss(classes[1], class_weight), fit_intercept=fit_intercept)

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> Self:
        """Build the model; see :meth:`cirrus.models.base.Model.from_params`."""
        check.check_known(params, _PARAMS, cls.name)
        return cls(
            classes=two_classes(params),
            fit_intercept=check.flag(params, "fit_intercept", True),
            class_weight=check.factors(params, 2),
        )


def two_classes(params: Mapping[str, Any]) -> tuple[float, ...]:
    """Return the labels of two classes.

    Raises:
        ConfigError: They are not two different numbers.
    """
    classes = check.numbers(params.get("classes", (0.0, 1.0)), "classes", 2)
    if classes[0] == classes[1]:
        raise ConfigError("classes", f"must be two different labels, got {classes[0]:g} twice")
    return classes
