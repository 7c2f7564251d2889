"""What shards begin with when training goes on from an earlier model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cirrus.config import LeaseRange, ModelConfig, TableConfig
from cirrus.errors import ConfigError, CorruptDataError
from cirrus.frontend.planning import Schedule, Start
from cirrus.paramserver.checkpoint import Checkpoint, read_manifest, resolve
from cirrus.paramserver.ftrl import ftrl_z
from cirrus.storage import open_store

OPTIMIZERS_KEY = "optimizers"


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
            mode=str(extra["mode"]),
            model=ModelConfig(name=str(extra["model"]["name"]), params=dict(extra["model"]["params"])),
            optimizers={str(table): str(name) for table, name in extra[OPTIMIZERS_KEY].items()},
        )
    except (AttributeError, KeyError, TypeError, ValueError, ConfigError) as error:
        raise CorruptDataError(f"{store.url}: does not say where in a run it was cut: {error}") from error
    return Start(url=store.url, schedule=schedule)


def _lease(raw: Any) -> LeaseRange:
    chunk, first_block, n_blocks, n_rows, n_steps = (int(number) for number in raw)
    return LeaseRange(chunk=chunk, first_block=first_block, n_blocks=n_blocks, n_rows=n_rows, n_steps=n_steps)


def starting_tables(checkpoint: Checkpoint, tables: Sequence[TableConfig]) -> Checkpoint:
    """Return what shards begin with.

    With the optimizer that a table was made with, that is weights and optimizer state; only the run's clock,
    which ``decay`` and Adam's bias correction look at, begins anew. Another optimizer takes the weights
    alone, and its state starts anew.

    Args:
        checkpoint: Weights and states, with what :func:`optimizer_names` returned in ``extra``.
        tables: The new run's tables.
    """
    before = checkpoint.extra.get(OPTIMIZERS_KEY, {})
    started = {}
    for table in tables:
        if table.name not in checkpoint.tables:
            continue  # it begins at its initial values
        arrays = checkpoint.tables[table.name]
        if before.get(table.name) != table.optimizer.name:
            arrays = {"weights": arrays["weights"]}
            if table.optimizer.name == "ftrl":
                arrays["z"] = ftrl_z(arrays["weights"], table.optimizer)
        started[table.name] = arrays
    return Checkpoint(tables=started)


def optimizer_names(tables: Sequence[TableConfig]) -> dict[str, dict[str, str]]:
    """Return what a checkpoint says of the optimizers that made its states."""
    return {OPTIMIZERS_KEY: {table.name: table.optimizer.name for table in tables}}
