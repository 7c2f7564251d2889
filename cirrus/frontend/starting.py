"""What shards begin with when training goes on from an earlier model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cirrus.config import OPTIMIZER_PARAMS, LeaseRange
from cirrus.errors import ConfigError, CorruptDataError
from cirrus.frontend.planning import Schedule, Start
from cirrus.paramserver.checkpoint import Checkpoint, Floats, read_manifest, resolve
from cirrus.storage import open_store


def resume_point(url: str) -> Start:
    """Return where a checkpoint that a run cut leaves off.

    Args:
        url: A checkpoint, or the folder of a run's checkpoints (the newest is taken).

    Raises:
        NotFoundError: There is no checkpoint.
        CorruptDataError: It is damaged, or does not say where it was cut.
    """
    store = open_store(resolve(url))
    extra = read_manifest(store).extra
    try:
        schedule = Schedule(
            fingerprint=str(extra["fingerprint"]),
            batch_size=int(extra["batch_size"]),
            leases=tuple(_lease(raw) for raw in extra["leases"]),
        )
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise CorruptDataError(f"{store.url}: does not say where in a run it was cut: {error}") from error
    return Start(url=store.url, schedule=schedule)


def _lease(raw: Any) -> LeaseRange:
    chunk, first_block, n_blocks, n_rows, n_steps = (int(number) for number in raw)
    return LeaseRange(chunk=chunk, first_block=first_block, n_blocks=n_blocks, n_rows=n_rows, n_steps=n_steps)


def starting_tables(checkpoint: Checkpoint, params: Mapping[str, Any]) -> Checkpoint:
    """Return what shards begin with.

    With the optimizer that the checkpoint was made with, that is weights and optimizer state; only the run's
    clock, which ``decay`` and Adam's bias correction look at, begins anew. Another optimizer takes the
    weights alone, and its state starts anew.

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
    single: Floats = z.astype(np.float32)
    return single
