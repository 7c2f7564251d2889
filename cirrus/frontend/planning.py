"""From an estimator's parameters and a dataset's manifest to a frozen :class:`~cirrus.config.RunConfig`.

Pure: nothing is opened or started here. What ``"auto"`` means is decided here and nowhere else.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from cirrus.chunks import Manifest, cut_boundaries, plan_leases
from cirrus.config import (
    ADAPTIVE_OPTIMIZERS,
    COMPRESSIONS,
    MODES,
    NONFINITE_POLICIES,
    OPTIMIZER_PARAMS,
    WIRE_DTYPES,
    LeaseRange,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    StopConfig,
    TableConfig,
    WorkerPrices,
    check_on_client_loss,
    whole_number,
)
from cirrus.errors import ConfigError
from cirrus.models import TableSpec, create_model
from cirrus.storage import open_store

#: Data of at most this many rows is one minibatch: a gradient over all of it costs less than a round trip.
ONE_BATCH_ROWS = 1024
MIN_AUTO_BATCH_ROWS = 64
MAX_AUTO_BATCH_ROWS = 1024
#: ``batch_size="auto"`` aims at this many updates an epoch, within the bounds above.
AUTO_UPDATES_PER_EPOCH = 128

#: ``epochs="auto"`` allows for this many rows in all, so that small data gets many passes, ended by ``tol``.
AUTO_EPOCHS_ROWS = 600_000
MIN_AUTO_EPOCHS = 3
MAX_AUTO_EPOCHS = 1000

#: How often checkpoints are cut when only ``checkpoint_url`` says that they are wanted.
DEFAULT_CHECKPOINT_SECONDS = 60.0
#: With ``mode="average"`` the change of all tables goes in one message, which holds this much with ease.
MAX_AVERAGED_VALUES = 8_000_000
#: What one function may have (AWS Lambda's bounds).
WORKER_MEMORY_MB = (128, 10_240)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The order in which a run goes through its data, as a checkpoint records it."""

    fingerprint: str
    batch_size: int
    leases: tuple[LeaseRange, ...]
    mode: str
    model: ModelConfig
    optimizers: Mapping[str, str]
    """Whose state the checkpoint holds, by table; ``add`` where workers average, and leave none."""


@dataclass(frozen=True, kw_only=True)
class Validation:
    """A dataset whose loss is watched."""

    url: str
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class Start:
    """What the shards begin with, other than zeros."""

    url: str
    """A checkpoint."""
    schedule: Schedule | None = None
    """Go on in the midst of this. None: take the checkpoint's tables and begin at epoch 0."""


def auto_batch_size(n_rows: int) -> int:
    """Return the batch size that ``"auto"`` stands for.

    All rows when they are few; else the power of two that gives some
    :data:`AUTO_UPDATES_PER_EPOCH` updates an epoch, within bounds.
    """
    if n_rows <= ONE_BATCH_ROWS:
        return max(1, n_rows)
    wanted = 1 << max(0, round(math.log2(n_rows / AUTO_UPDATES_PER_EPOCH)))
    return min(MAX_AUTO_BATCH_ROWS, max(MIN_AUTO_BATCH_ROWS, wanted))


def auto_epochs(n_rows: int) -> int:
    """Return the most epochs that ``"auto"`` stands for: many for little data, few for much."""
    return min(MAX_AUTO_EPOCHS, max(MIN_AUTO_EPOCHS, round(AUTO_EPOCHS_ROWS / max(1, n_rows))))


def plan_run(
    params: Mapping[str, Any],
    *,
    run_id: str,
    model: ModelConfig,
    train_url: str,
    manifest: Manifest,
    validation: Validation | None = None,
    seed: int,
    start: Start | None = None,
    dollars_per_hour: float = 0.0,
    worker_prices: WorkerPrices | None = None,
    metadata: Mapping[str, Any] | None = None,
    loss_unit: float = 1.0,
) -> RunConfig:
    """Return the whole description of a run.

    Args:
        params: An estimator's ``get_params()``.
        run_id: The new run's name.
        model: The model family and its parameters.
        train_url: Where the dataset is.
        manifest: The dataset's manifest.
        validation: Another dataset whose loss is watched.
        seed: Decides the order of leases and any initial values.
        start: A checkpoint to begin with.
        dollars_per_hour: What the backend says the job costs.
        worker_prices: What it says that workers cost by their time; None: nothing.
        metadata: What a client that attaches later needs to know.
        loss_unit: How large a loss is expected to be: ``tol`` is relative to it.

    Raises:
        ConfigError: A parameter is wrong; it is named.
    """
    params = {**_WITHOUT_GRADIENTS, **params}
    check_params(params)
    if params["early_stopping"] and validation is None:
        raise ConfigError("early_stopping", "needs data to watch: fit(..., validation=...)")
    if params["early_stopping"] and params["tol"] is None:
        raise ConfigError("early_stopping", "needs a tol to compare improvements with, got tol=None")
    n_shards = whole_number(params["n_shards"], "n_shards")
    n_workers = whole_number(params["n_workers"], "n_workers")
    batch_size = _auto(params["batch_size"], "batch_size", auto_batch_size(manifest.n_rows))
    batch_size = min(batch_size, manifest.n_rows)
    leases = plan_leases(manifest, n_workers, batch_size)
    if params["mode"] == "average":
        leases = tuple(dataclasses.replace(lease, n_steps=1) for lease in leases)
    if start is not None and start.schedule is not None:
        batch_size = _resumed_batch_size(start.schedule, manifest, model, params)
        leases = start.schedule.leases
    if params["mode"] == "average":
        _check_averaged_size(create_model(model).tables(manifest.n_features))
    optimizer = _optimizer(params)
    tables = tuple(
        _table(spec, optimizer, manifest, n_shards, batch_size)
        for spec in create_model(model).tables(manifest.n_features)
    )
    if start is not None and start.schedule is not None:
        _check_same_optimizer(start.schedule, tables)
    checkpoint_seconds = params["checkpoint_seconds"]
    if checkpoint_seconds is None and params["checkpoint_url"] is not None:
        checkpoint_seconds = DEFAULT_CHECKPOINT_SECONDS
    return RunConfig(
        run_id=run_id,
        model=model,
        tables=tables,
        train_url=train_url,
        train_fingerprint=manifest.fingerprint,
        validation_url=None if validation is None else validation.url,
        validation_fingerprint=None if validation is None else validation.fingerprint,
        n_features=manifest.n_features,
        batch_size=batch_size,
        leases=leases,
        stop=_stop(params, manifest.n_rows, loss_unit),
        n_workers=n_workers,
        n_shards=n_shards,
        seed=seed,
        compression=params["compression"],
        wire_dtype=params["wire_dtype"],
        mode=params["mode"],
        staleness=_staleness(params["staleness"]),
        gradient_threshold=_number_or_none(params["gradient_threshold"], "gradient_threshold"),
        nonfinite_gradients=params["nonfinite_gradients"],
        checkpoint_seconds=_number_or_none(checkpoint_seconds, "checkpoint_seconds"),
        checkpoint_url=_absolute(params["checkpoint_url"]),
        resume_url=None if start is None else start.url,
        resume_ledger=start is not None and start.schedule is not None,
        on_client_loss=params["on_client_loss"],
        worker_memory_mb=whole_number(params["worker_memory_mb"], "worker_memory_mb"),
        dollars_per_hour=dollars_per_hour,
        worker_prices=worker_prices or WorkerPrices(),
        model_metadata={} if metadata is None else metadata,
    )


def _in_units(optimizer: OptimizerConfig, spec: TableSpec) -> OptimizerConfig:
    """Bring an optimizer to the scale of a table's parameters.

    A step of the adaptive optimizers is as long as the learning rate, whatever the gradient's size; one of
    the others is that many gradients, and a gradient's unit is the loss's over the parameter's.
    """
    rate, params = optimizer.learning_rate, dict(optimizer.params)
    if optimizer.name not in ADAPTIVE_OPTIMIZERS:
        return dataclasses.replace(optimizer, learning_rate=rate * spec.unit**2 / spec.loss_unit)
    unit = spec.unit * spec.adaptive_scale
    for name in params.keys() & {"beta", "epsilon"}:
        params[name] *= spec.loss_unit / unit
    return dataclasses.replace(optimizer, learning_rate=rate * unit, params=params)


def _per_minibatch(optimizer: OptimizerConfig, n_rows: int) -> OptimizerConfig:
    """Bring penalties to the scale of the gradients that the optimizer gets.

    Users give them relative to the loss summed over all rows; FTRL sums gradients, all others get means.
    """
    if optimizer.sums_gradients:
        return optimizer
    return dataclasses.replace(optimizer, l1=optimizer.l1 / n_rows, l2=optimizer.l2 / n_rows)


#: Of estimators without gradients, which lack these parameters.
_WITHOUT_GRADIENTS: Mapping[str, Any] = MappingProxyType(
    {"mode": "sgd", "wire_dtype": "float32", "gradient_threshold": None, "nonfinite_gradients": "skip"}
)


def check_params(params: Mapping[str, Any]) -> None:
    """Check what can be checked without data, so that a mistake is found before a long load.

    Args:
        params: An estimator's ``get_params()``.

    Raises:
        ConfigError: A parameter is wrong, or comes with a later version; it is named.
    """
    params = {**_WITHOUT_GRADIENTS, **params}
    for name in ("fit_intercept", "warm_start", "early_stopping"):
        if name in params and not isinstance(params[name], (bool, np.bool_)):
            raise ConfigError(name, f"must be True or False, got {params[name]!r}")
    _optimizer(params)
    _stop(params, 1, 1.0)
    _auto(params["batch_size"], "batch_size", 1)
    for name in ("n_workers", "n_shards"):
        whole_number(params[name], name)
    choices = {
        "compression": COMPRESSIONS,
        "wire_dtype": WIRE_DTYPES,
        "mode": MODES,
        "nonfinite_gradients": NONFINITE_POLICIES,
    }
    for name, known in choices.items():
        if params[name] not in known:
            raise ConfigError(name, f"must be one of {', '.join(known)}, got {params[name]!r}")
    if params["mode"] == "average" and params["gradient_threshold"] is not None:
        raise ConfigError("gradient_threshold", 'has no meaning with mode="average": no gradients are sent')
    _staleness(params["staleness"])
    check_on_client_loss(params["on_client_loss"])
    seed = params["random_state"]
    if not (seed is None or isinstance(seed, (numbers.Integral, np.random.RandomState)) or seed is np.random):
        raise ConfigError("random_state", f"must be a whole number, a RandomState or None, got {seed!r}")
    if isinstance(seed, numbers.Integral) and not 0 <= int(seed) < 2**32:
        raise ConfigError("random_state", f"must be a whole number from 0 to 2**32 - 1 or None, got {seed}")
    least, most = WORKER_MEMORY_MB
    memory = whole_number(params["worker_memory_mb"], "worker_memory_mb")
    if not least <= memory <= most:
        raise ConfigError("worker_memory_mb", f"must be between {least} and {most}, got {memory}")


def _optimizer(params: Mapping[str, Any]) -> OptimizerConfig | None:
    """Return the optimizer that an estimator's parameters describe; None: its model has its own."""
    if "optimizer" not in params:
        return None
    name = params["optimizer"]
    if name == "add" or name not in OPTIMIZER_PARAMS:
        known = ", ".join(known for known in OPTIMIZER_PARAMS if known != "add")
        raise ConfigError("optimizer", f"must be one of {known}, got {name!r}")
    extra = params["optimizer_params"]
    if extra is not None and not isinstance(extra, Mapping):
        raise ConfigError("optimizer_params", f"must be a dict or None, got {extra!r}")
    return OptimizerConfig(
        name=name,
        learning_rate=_number(params["learning_rate"], "learning_rate"),
        l1=_number(params["l1"], "l1"),
        l2=_number(params["l2"], "l2"),
        params={key: _number(value, f"optimizer_params[{key!r}]") for key, value in (extra or {}).items()},
    )


def _stop(params: Mapping[str, Any], n_rows: int, loss_unit: float) -> StopConfig:
    tol = _number_or_none(params["tol"], "tol")
    return StopConfig(
        epochs=_auto(params["epochs"], "epochs", auto_epochs(n_rows)),
        tol=None if tol is None else tol * loss_unit,
        target_loss=_number_or_none(params["target_loss"], "target_loss"),
        max_seconds=_number_or_none(params["max_seconds"], "max_seconds"),
        max_cost=_number_or_none(params["max_cost"], "max_cost"),
        early_stopping=bool(params["early_stopping"]),
    )


def _resumed_batch_size(
    schedule: Schedule, manifest: Manifest, model: ModelConfig, params: Mapping[str, Any]
) -> int:
    wanted = params["batch_size"]
    _check_same_model(schedule.model, model, manifest.n_features)
    if schedule.mode != params["mode"]:
        raise ConfigError("mode", f"the checkpoint was cut at mode={schedule.mode!r}, got {params['mode']!r}")
    if schedule.fingerprint != manifest.fingerprint:
        raise ConfigError("resume_from", "the checkpoint was cut from a run over other data")
    if wanted not in ("auto", schedule.batch_size):
        raise ConfigError(
            "batch_size", f"the checkpoint was cut at batch_size={schedule.batch_size}, got {wanted!r}"
        )
    return schedule.batch_size


def _check_same_model(before: ModelConfig, model: ModelConfig, n_features: int) -> None:
    """Refuse a checkpoint whose tables another model, or one of another size, would misread."""
    if before.name != model.name:
        raise ConfigError(
            "resume_from",
            f"the checkpoint was cut from a model of another kind: {before.name!r}, got {model.name!r}",
        )
    shapes = [
        [(spec.name, spec.n_rows, spec.width) for spec in create_model(config).tables(n_features)]
        for config in (before, model)
    ]
    if shapes[0] != shapes[1]:
        raise ConfigError(
            "resume_from",
            f"the checkpoint was cut from a model of another size: {dict(before.params)}, "
            f"got {dict(model.params)}",
        )


def _check_same_optimizer(before: Schedule, tables: Sequence[TableConfig]) -> None:
    """Refuse a checkpoint whose optimizer's state another optimizer would misread, or go on without."""
    if before.mode == "average":  # workers begin every lease with a fresh state
        return
    for table in tables:
        cut_with = before.optimizers.get(table.name)
        if cut_with != table.optimizer.name:
            raise ConfigError(
                "optimizer",
                f"the checkpoint was cut with optimizer={cut_with!r}, got {table.optimizer.name!r}: go on"
                " with that one, or let another begin from a finished model, with warm_start=True",
            )


def _table(
    spec: TableSpec, optimizer: OptimizerConfig | None, manifest: Manifest, n_shards: int, batch_size: int
) -> TableConfig:
    if spec.optimizer is not None:
        optimizer = spec.optimizer
    elif optimizer is None:
        raise ConfigError("optimizer", f"table {spec.name} of the model has none, and nor has the estimator")
    else:
        l1, l2 = spec.penalties or (optimizer.l1, optimizer.l2)
        if not spec.regularised:
            l1 = l2 = 0.0
        optimizer = dataclasses.replace(optimizer, l1=l1, l2=l2)
        optimizer = _per_minibatch(_in_units(optimizer, spec), manifest.n_rows)
    if spec.n_rows == manifest.n_features:
        boundaries = cut_boundaries(manifest, spec.n_rows, n_shards, batch_size)
    else:
        boundaries = tuple(spec.n_rows * k // n_shards for k in range(n_shards + 1))
    return TableConfig(
        name=spec.name,
        n_rows=spec.n_rows,
        width=spec.width,
        optimizer=optimizer,
        boundaries=boundaries,
        initial_scale=spec.initial_scale,
        initial_mean=spec.initial_mean,
    )


def _check_averaged_size(specs: Sequence[TableSpec]) -> None:
    """Refuse tables of which a lease's change would not fit into one message."""
    n_values = sum(spec.n_rows * spec.width for spec in specs)
    if n_values > MAX_AVERAGED_VALUES:
        raise ConfigError(
            "mode",
            f'"average" is for models of up to {MAX_AVERAGED_VALUES:,} values, this one has {n_values:,};'
            ' use "sgd"',
        )


def _staleness(value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not hasattr(value, "__index__") or int(value) < 0:
        raise ConfigError("staleness", f"must be a whole number >= 0 or None, got {value!r}")
    return int(value)


def _absolute(url: Any) -> str | None:
    """Return a URL that means the same to a process in another working folder."""
    return None if url is None else open_store(url).url


def _auto(value: Any, name: str, automatic: int) -> int:
    if isinstance(value, str):
        if value == "auto":
            return automatic
        raise ConfigError(name, f'must be a whole number >= 1 or "auto", got {value!r}')
    return whole_number(value, name)


def _number(value: Any, name: str) -> float:
    if isinstance(value, (bool, str)) or not hasattr(value, "__float__"):
        raise ConfigError(name, f"must be a number, got {value!r}")
    return float(value)


def _number_or_none(value: Any, name: str) -> float | None:
    return None if value is None else _number(value, name)
