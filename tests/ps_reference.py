"""Optimizers in plain float64 numpy, written from the papers: what the shards must agree with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cirrus.config import OptimizerConfig, TableConfig
from cirrus.paramserver.tables import initial_values

Doubles = NDArray[np.float64]


def shrink(weights: Doubles, by: Doubles | float) -> Doubles:
    """Return the proximal step of L1: nearer to zero by so much, and never past it."""
    return np.sign(weights) * np.maximum(np.abs(weights) - by, 0.0)


class DenseTable:
    """One table and its optimizer.

    Args:
        config: The table.
        seed: For initial values.
    """

    def __init__(self, config: TableConfig, seed: int = 0) -> None:
        self.optimizer: OptimizerConfig = config.optimizer
        self.weights = initial_values(config, 0, config.n_rows, seed).astype(np.float64)
        shape = (config.n_rows, config.width)
        self.first, self.second = np.zeros(shape), np.zeros(shape)
        if config.optimizer.name == "ftrl":
            held = self.optimizer
            strength = held.params["beta"] / held.learning_rate + held.l2
            self.first = -strength * self.weights - held.l1 * np.sign(self.weights)

    def step(self, rows: NDArray[np.uint32], gradient: NDArray[np.float32], step: int) -> None:
        """Update some rows.

        Args:
            rows: Unique row numbers.
            gradient: ``(n_rows, width)`` or flat.
            step: The run's clock.
        """
        w, g = self.weights[rows], gradient.reshape(-1, self.weights.shape[1]).astype(np.float64)
        a, b = self.first[rows], self.second[rows]
        rate, l1, l2, more = (
            self.optimizer.learning_rate,
            self.optimizer.l1,
            self.optimizer.l2,
            self.optimizer.params,
        )
        match self.optimizer.name:
            case "sgd":
                rate /= 1 + more["decay"] * step
                w = shrink(w - rate * (g + l2 * w), rate * l1)
            case "momentum" | "nesterov" as name:
                rate /= 1 + more["decay"] * step
                g = g + l2 * w
                a = more["momentum"] * a + g
                towards = g + more["momentum"] * a if name == "nesterov" else a
                w = shrink(w - rate * towards, rate * l1)
            case "adagrad":
                g = g + l2 * w
                a = a + g**2
                scaled = rate / (np.sqrt(a) + more["epsilon"])
                w = shrink(w - scaled * g, scaled * l1)
            case "adam":
                g = g + l2 * w
                a = more["beta1"] * a + (1 - more["beta1"]) * g
                b = more["beta2"] * b + (1 - more["beta2"]) * g**2
                mean = a / (1 - more["beta1"] ** (step + 1))
                variance = b / (1 - more["beta2"] ** (step + 1))
                scaled = rate / (np.sqrt(variance) + more["epsilon"])
                w = shrink(w - scaled * mean, scaled * l1)
            case "ftrl":
                sigma = (np.sqrt(b + g**2) - np.sqrt(b)) / rate
                a, b = a + g - sigma * w, b + g**2
                w = -shrink(a, l1) / ((more["beta"] + np.sqrt(b)) / rate + l2)
            case "add":
                w = w + g
        self.weights[rows], self.first[rows], self.second[rows] = w, a, b
