"""Two special functions that numpy has not got, and a worker needs without scipy."""

from __future__ import annotations

import numpy as np

from cirrus.models.base import Array

#: Arguments are raised by this much before the asymptotic series, which then errs by less than 1e-12.
_SHIFT = 8


def digamma(x: Array) -> Array:
    """Return the derivative of log gamma for x > 0, float64 (Abramowitz and Stegun, 6.3.5 and 6.3.18)."""
    x = np.asarray(x, np.float64)
    below = np.zeros_like(x)
    for step in range(_SHIFT):
        below += 1.0 / (x + step)
    y = x + _SHIFT
    inverse = 1.0 / (y * y)
    series = 1 / 120 - inverse * (1 / 252 - inverse * (1 / 240 - inverse / 132))
    series = inverse * (1 / 12 - inverse * series)
    result: Array = np.log(y) - 0.5 / y - series - below
    return result


def log_gamma(x: Array) -> Array:
    """Return log gamma for x > 0, float64 (Abramowitz and Stegun, 6.1.15 and 6.1.41)."""
    x = np.asarray(x, np.float64)
    below = np.zeros_like(x)
    for step in range(_SHIFT):
        below += np.log(x + step)
    y = x + _SHIFT
    inverse = 1.0 / (y * y)
    series = (1 / 12 - inverse * (1 / 360 - inverse * (1 / 1260 - inverse / 1680))) / y
    result: Array = (y - 0.5) * np.log(y) - y + 0.5 * np.log(2.0 * np.pi) + series - below
    return result
