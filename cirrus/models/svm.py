"""Linear support vector machine: logistic regression's tables with a hinge for a loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from cirrus.errors import ConfigError
from cirrus.models import params as check
from cirrus.models.linear import LinearModel
from cirrus.models.losses import HingeLoss, Loss, OneVersusRestHinge

LOSSES = ("hinge", "squared_hinge")
_PARAMS = frozenset({"classes", "fit_intercept", "class_weight", "loss"})


class SvmModel(LinearModel):
    """Two classes, hinge loss; of more than two, each against all others.

    Args:
        classes: The labels, as stored in the dataset; of two, the negative class first.
        loss: One of :data:`LOSSES`.
        fit_intercept: Whether there is an intercept.
        class_weight: Factors on the weights of the rows of each class; None: all 1.
    """

    name: ClassVar[str] = "svm"

    def __init__(
        self,
        *,
        classes: tuple[float, ...] = (0.0, 1.0),
        loss: str = "squared_hinge",
        fit_intercept: bool = True,
        class_weight: tuple[float, ...] | None = None,
    ) -> None:
        if loss not in LOSSES:
            raise ConfigError("loss", f"must be one of {', '.join(LOSSES)}, got {loss!r}")
        squared = loss == "squared_hinge"
        hinge: Loss
        if len(classes) == 2:
            hinge = HingeLoss(classes[1], class_weight, squared=squared)
        else:
            hinge = OneVersusRestHinge(classes, class_weight, squared=squared)
        super().__init__(hinge, fit_intercept=fit_intercept)

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> Self:
        """Build the model; see :meth:`cirrus.models.base.Model.from_params`."""
        check.check_known(params, _PARAMS, cls.name)
        classes = check.numbers(params.get("classes", (0.0, 1.0)), "classes")
        return cls(
            classes=classes,
            loss=params.get("loss", "squared_hinge"),
            fit_intercept=check.flag(params, "fit_intercept", True),
            class_weight=check.factors(params, len(classes)),
        )
