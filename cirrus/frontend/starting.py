"""What shards begin with when training goes on from an earlier model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cirrus.config import OPTIMIZER_PARAMS
from cirrus.paramserver.checkpoint import Checkpoint, Floats


def starting_tables(checkpoint: Checkpoint, params: Mapping[str, Any]) -> Checkpoint:
    """Return what shards begin with.

    With the optimizer that the checkpoint was made with, that is all of it: training goes on as if it had
    never stopped. Another optimizer takes the weights alone, and its state starts anew.

    Args:
        checkpoint: Tables, with the optimizer's name in ``extra``.
        params: An estimator's ``get_params()``.
    """
    if checkpoint.extra.get("optimizer") == params["optimizer"]:
        return Checkpoint(tables=checkpoint.tables)
    tables = {}
    for name, arrays in checkpoint.tables.items():
        tables[name] = {"weights": arrays["weights"]}
        if params["optimizer"] == "ftrl":
            penalties = (params["l1"], params["l2"]) if name != "intercept" else (0.0, 0.0)
            tables[name]["z"] = _ftrl_z(arrays["weights"], params, *penalties)
    return Checkpoint(tables=tables)


def _ftrl_z(weights: Floats, params: Mapping[str, Any], l1: float, l2: float) -> Floats:
    """Return the ``z`` from which FTRL's closed form gives these weights, with no squares summed up yet."""
    extra = params["optimizer_params"] or {}
    beta = extra.get("beta", OPTIMIZER_PARAMS["ftrl"]["beta"])
    strength = beta / params["learning_rate"] + l2
    z = -strength * weights.astype(np.float64) - l1 * np.sign(weights)
    return z.astype(np.float32)
