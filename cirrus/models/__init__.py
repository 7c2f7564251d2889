"""Model families: pure functions from parameters and rows to losses and gradients."""

from __future__ import annotations

from cirrus.models.base import Gradients, LossSum, Model, TableSpec
from cirrus.models.logistic import LogisticModel
from cirrus.models.registry import create_model

__all__ = ["Gradients", "LogisticModel", "LossSum", "Model", "TableSpec", "create_model"]
