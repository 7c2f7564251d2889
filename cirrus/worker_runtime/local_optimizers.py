"""The shards' optimizers in plain numpy, for workers that train on a lease by themselves.

The formulas are those of :func:`cirrus.paramserver.kernels.apply_rows`; numba is too large for a worker. The
state begins anew with every lease.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cirrus.config import OptimizerConfig

#: float32 always: numpy keeps it so when Python's numbers come in.
Floats = NDArray[Any]
Rows = NDArray[np.intp]


class LocalTable:
    """Some rows of one table, and a fresh optimizer for them.

    FTRL's closed form holds the penalties of the whole run's loss; here it is centred on where the lease
    began, and gets the share of the penalties that the lease is of an epoch.

    Args:
        weights: Where the rows begin, float32 ``(n_rows, width)``; it is copied.
        optimizer: What to do with gradients.
        share: Which part of an epoch's rows the lease has.
    """

    def __init__(self, weights: Floats, optimizer: OptimizerConfig, share: float) -> None:
        self.weights = weights.copy()
        self._optimizer = optimizer
        self._first = np.zeros_like(weights)
        self._second = np.zeros_like(weights)
        self._l1, self._l2 = optimizer.l1, optimizer.l2
        if optimizer.name == "ftrl":
            self._l1, self._l2 = share * optimizer.l1, share * optimizer.l2
            self._first = -(optimizer.params["beta"] / optimizer.learning_rate) * self.weights
        self._rules: dict[str, Callable[[Rows, Floats, int, int], Floats]] = {
            "sgd": self._sgd,
            "momentum": self._momentum,
            "nesterov": self._momentum,
            "adagrad": self._adagrad,
            "adam": self._adam,
            "ftrl": self._ftrl,
            "add": lambda rows, gradient, *_: self.weights[rows] + gradient,
        }

    def step(self, rows: Rows, gradient: Floats, clock: int, n_before: int) -> None:
        """Do one step.

        Args:
            rows: Unique positions of rows in this table.
            gradient: float32 ``(len(rows), width)``.
            clock: The run's, for ``decay``.
            n_before: Steps done since the state began, for Adam's bias correction.
        """
        self.weights[rows] = self._rules[self._optimizer.name](rows, gradient, clock, n_before)

    def _rate(self, clock: int) -> float:
        return self._optimizer.learning_rate / (1.0 + self._optimizer.params["decay"] * clock)

    def _sgd(self, rows: Rows, gradient: Floats, clock: int, _: int) -> Floats:
        weights, rate = self.weights[rows], self._rate(clock)
        return _shrink(weights - rate * (gradient + self._l2 * weights), rate * self._l1)

    def _momentum(self, rows: Rows, gradient: Floats, clock: int, _: int) -> Floats:
        weights, rate, mu = self.weights[rows], self._rate(clock), self._optimizer.params["momentum"]
        gradient = gradient + self._l2 * weights
        velocity = self._first[rows] = mu * self._first[rows] + gradient
        towards = gradient + mu * velocity if self._optimizer.name == "nesterov" else velocity
        return _shrink(weights - rate * towards, rate * self._l1)

    def _adagrad(self, rows: Rows, gradient: Floats, *_: int) -> Floats:
        weights = self.weights[rows]
        gradient = gradient + self._l2 * weights
        squares = self._first[rows] = self._first[rows] + gradient**2
        scaled = self._optimizer.learning_rate / (np.sqrt(squares) + self._optimizer.params["epsilon"])
        return _shrink(weights - scaled * gradient, scaled * self._l1)

    def _adam(self, rows: Rows, gradient: Floats, _: int, n_before: int) -> Floats:
        params, weights = self._optimizer.params, self.weights[rows]
        beta1, beta2 = params["beta1"], params["beta2"]
        gradient = gradient + self._l2 * weights
        mean = self._first[rows] = beta1 * self._first[rows] + (1.0 - beta1) * gradient
        variance = self._second[rows] = beta2 * self._second[rows] + (1.0 - beta2) * gradient**2
        root = np.sqrt(variance / (1.0 - beta2 ** (n_before + 1)))
        scaled = self._optimizer.learning_rate / (root + params["epsilon"])
        return _shrink(weights - scaled * mean / (1.0 - beta1 ** (n_before + 1)), scaled * self._l1)

    def _ftrl(self, rows: Rows, gradient: Floats, *_: int) -> Floats:
        before = self._second[rows]
        after = self._second[rows] = before + gradient**2
        root, rate = np.sqrt(after), self._optimizer.learning_rate
        z = self._first[rows] + gradient - (root - np.sqrt(before)) / rate * self.weights[rows]
        self._first[rows] = z
        weights: Floats = -_shrink(z, self._l1) / ((self._optimizer.params["beta"] + root) / rate + self._l2)
        return weights


def _shrink(weights: Floats, by: Floats | float) -> Floats:
    """Return the proximal step of L1: nearer to zero by so much, and never past it."""
    shrunk: Floats = np.maximum(weights - by, 0.0) + np.minimum(weights + by, 0.0)
    return shrunk
