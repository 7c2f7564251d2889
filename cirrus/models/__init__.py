"""Model families: pure functions from parameters and rows to losses and gradients."""

from __future__ import annotations

from cirrus.config import ModelConfig
from cirrus.errors import ConfigError
from cirrus.models.base import Gradients, LossSum, Model, TableSpec
from cirrus.models.logistic import LogisticModel

__all__ = ["Gradients", "LogisticModel", "LossSum", "Model", "TableSpec", "create_model"]


def create_model(config: ModelConfig) -> Model:
    """Return the model that a run's config names.

    Raises:
        ConfigError: There is no model of that name, or its parameters are wrong.
    """
    if config.name == LogisticModel.name:
        return LogisticModel.from_params(config.params)
    raise ConfigError("model", f"unknown model {config.name!r}; this version has {LogisticModel.name!r}")
