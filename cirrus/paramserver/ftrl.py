"""Weights that FTRL-proximal begins with: it takes a weight from its state, so the state must hold it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cirrus.config import OptimizerConfig

Floats = NDArray[np.float32]


def ftrl_z(weights: Floats, optimizer: OptimizerConfig) -> Floats:
    """Return the ``z`` from which FTRL's closed form gives these weights, with no squares summed up yet."""
    strength = optimizer.params["beta"] / optimizer.learning_rate + optimizer.l2
    z = -strength * weights.astype(np.float64) - optimizer.l1 * np.sign(weights)
    single: Floats = z.astype(np.float32)
    return single
