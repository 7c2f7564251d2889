"""What a model family is to the rest of the system.

A model is pure: it holds no parameters, opens nothing and remembers nothing. The worker asks it which rows
of which tables a minibatch touches, pulls those rows, and hands them back for a gradient. Names of tables are
the model's own; shards only know them as matrices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import numpy.typing as npt

from cirrus.config import OptimizerConfig

if TYPE_CHECKING:
    from cirrus.chunks import Block

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class TableSpec:
    """One parameter matrix that a model needs."""

    name: str
    n_rows: int
    width: int = 1
    regularised: bool = True
    """False for tables that ``l1`` and ``l2`` must leave alone, such as an intercept."""
    penalties: tuple[float, float] | None = None
    """``l1`` and ``l2`` of this table alone; None: the estimator's."""
    initial_mean: float = 0.0
    """What the initial values are, or lie around."""
    initial_scale: float = 0.0
    """Standard deviation of the initial values, a function of (seed, table, row); 0: all are the mean."""
    unit: float = 1.0
    """How large a parameter is expected to be; the estimator's learning rate is relative to it."""
    adaptive_scale: float = 1.0
    """What the unit is multiplied by for optimizers whose steps do not shrink with the gradient."""
    loss_unit: float = 1.0
    """How large a loss is expected to be."""
    optimizer: OptimizerConfig | None = None
    """An optimizer of the table's own; None: the estimator's."""


@dataclass(frozen=True, slots=True)
class Gradients:
    """What one minibatch says about the parameters it touches."""

    loss_sum: float
    """Sum over the rows of weight times loss."""
    weight_sum: float
    """Sum of the rows' weights; the number of rows where there are none."""
    values: dict[str, Array]
    """For each table, float of shape (touched rows, width): the sum over the rows of weight times gradient.
    Rows of a table are in the order of :meth:`Model.ids`."""


@dataclass(frozen=True, slots=True)
class LossSum:
    """How well parameters do on some rows; sums, so that those of several minibatches can be added."""

    loss_sum: float
    weight_sum: float
    metrics: dict[str, float] = field(default_factory=dict)
    """Further weighted sums by name, such as ``accuracy``: each divided by ``weight_sum`` is a mean."""


class Model(Protocol):
    """The pure functions of one model family."""

    name: ClassVar[str]
    """What a run's config calls the family."""

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> Self:
        """Build the model from :attr:`cirrus.config.ModelConfig.params`, which may come from a file.

        Raises:
            ConfigError: A parameter is unknown, missing or of the wrong type.
        """

    def tables(self, n_features: int) -> tuple[TableSpec, ...]:
        """Return the tables for data of ``n_features`` columns; the first is the largest."""

    def ids(self, block: Block) -> dict[str, Array]:
        """Return the rows of each table that a minibatch touches: uint32, sorted, unique."""

    def gradient(self, parameters: Mapping[str, Array], block: Block) -> Gradients:
        """Return the summed gradient of a minibatch.

        Args:
            parameters: For each table the rows of :meth:`ids`, float32 of shape (number of ids, width).
            block: The minibatch.
        """

    def loss(self, parameters: Mapping[str, Array], block: Block) -> LossSum:
        """Return the summed loss of a minibatch, without a gradient."""

    def predict(self, parameters: Mapping[str, Array], block: Block) -> Array:
        """Return what the model says of each row, before any link function.

        Returns:
            float64 of shape (n_rows,), or (n_rows, n_outputs) for a model with several outputs: log odds,
            margins, numbers, distances or topic weights, as the family has it.
        """
