"""The frozen description of a run: everything that shards and workers need to know.

A :class:`RunConfig` is written once, as ``config.json`` of the run folder, by the client that creates the
run. Shards, workers and later clients read it; nobody changes it. Every field is checked when the object is
made, so that whoever holds one can rely on it.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import json
import math
import operator
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from cirrus.errors import ConfigError

#: Optimizers that shards know, with the extra parameters of each and their defaults.
#: ``learning_rate``, ``l1`` and ``l2`` are common to all of them (``add`` uses none).
OPTIMIZER_PARAMS: Mapping[str, Mapping[str, float]] = types.MappingProxyType(
    {
        "sgd": {"decay": 0.0},
        "momentum": {"momentum": 0.9, "decay": 0.0},
        "nesterov": {"momentum": 0.9, "decay": 0.0},
        "adagrad": {"epsilon": 1e-8},
        "adam": {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8},
        "ftrl": {"beta": 1.0},
        "add": {},
    }
)
#: Gradients of these optimizers are sums over a minibatch; of all others, means weighted by sample weight.
SUMMED_OPTIMIZERS = frozenset({"ftrl", "add"})
#: A step of these is as long as their learning rate, however large the gradients are.
ADAPTIVE_OPTIMIZERS = frozenset({"adagrad", "adam", "ftrl"})
COMPRESSIONS = ("auto", "lz4", "none")
WIRE_DTYPES = ("float32", "float16")
MODES = ("sgd", "average")
NONFINITE_POLICIES = ("skip", "fail")
#: Tables of a model: one frame carries a step's gradients of all of them.
MAX_TABLES = 64
ON_CLIENT_LOSS = ("stop", "continue")

T = TypeVar("T")


def _check(condition: bool, name: str, problem: str) -> None:
    if not condition:
        raise ConfigError(name, problem)


def _is_finite(value: float) -> bool:
    try:
        return isinstance(value, (int, float)) and math.isfinite(value)
    except OverflowError:  # a whole number beyond all floating point
        return False


def parse_json(data: bytes | bytearray | str) -> Any:
    """Read JSON that somebody else wrote.

    Raises:
        ValueError: It is none, or nested more deeply than can be read.
    """
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How the shards turn a gradient into an update of one table."""

    name: str
    """One of :data:`OPTIMIZER_PARAMS`."""
    learning_rate: float = 0.1
    l1: float = 0.0
    l2: float = 0.0
    params: Mapping[str, float] = field(default_factory=dict)
    """Parameters of this optimizer alone; those left out take the defaults of :data:`OPTIMIZER_PARAMS`."""

    def __post_init__(self) -> None:
        """Check every field and fill in the defaults of ``params``."""
        _check(
            self.name in OPTIMIZER_PARAMS,
            "optimizer",
            f"unknown optimizer {self.name!r}; use one of {', '.join(OPTIMIZER_PARAMS)}",
        )
        _check(
            _is_finite(self.learning_rate) and self.learning_rate > 0,
            "learning_rate",
            f"must be a positive number, got {self.learning_rate!r}",
        )
        for name in ("l1", "l2"):
            value = getattr(self, name)
            _check(_is_finite(value) and value >= 0, name, f"must be a number >= 0, got {value!r}")
        known = OPTIMIZER_PARAMS[self.name]
        for name, value in self.params.items():
            _check(
                name in known,
                "optimizer_params",
                f"{self.name} has no parameter {name!r}; it has {', '.join(known) or 'none'}",
            )
            _check(
                _is_finite(value) and value >= 0,
                "optimizer_params",
                f"{name} must be a number >= 0, got {value!r}",
            )
            if name in ("momentum", "beta1", "beta2"):
                _check(value < 1, "optimizer_params", f"{name} must be below 1, got {value!r}")
        object.__setattr__(self, "params", {**known, **self.params})

    @property
    def sums_gradients(self) -> bool:
        """True when a minibatch's gradient is the sum over its rows, False for the weighted mean."""
        return self.name in SUMMED_OPTIMIZERS


@dataclass(frozen=True, kw_only=True)
class TableConfig:
    """One named row-sparse parameter matrix, float32, cut into ranges of rows, one a shard."""

    name: str
    n_rows: int
    width: int
    optimizer: OptimizerConfig
    boundaries: tuple[int, ...]
    """``n_shards + 1`` ascending row numbers from 0 to ``n_rows``; shard k owns ``[b[k], b[k+1])``."""
    initial_scale: float = 0.0
    """Standard deviation of the initial values, a function of (seed, table, row); 0: all are the mean."""
    initial_mean: float = 0.0

    def __post_init__(self) -> None:
        """Check that the boundaries cut the whole table."""
        _check(0 < self.n_rows <= 2**32, "n_rows", f"must be in [1, 2**32], got {self.n_rows}")
        _check(0 < self.width <= 2**16, "width", f"must be in [1, 65536], got {self.width}")
        b = self.boundaries
        _check(
            len(b) >= 2 and b[0] == 0 and b[-1] == self.n_rows and list(b) == sorted(b),
            "boundaries",
            f"must ascend from 0 to {self.n_rows}, got {b}",
        )


@dataclass(frozen=True, kw_only=True)
class LeaseRange:
    """A range of blocks that one lease covers, the same in every epoch."""

    chunk: int
    first_block: int
    n_blocks: int
    n_rows: int
    n_steps: int
    """Number of steps: its minibatches, ``ceil(n_rows / batch_size)``; 1 where workers average."""


@dataclass(frozen=True, kw_only=True)
class StopConfig:
    """When a run ends; whichever comes first."""

    epochs: int
    """Most passes over the data."""
    tol: float | None = None
    """End when the epoch loss has not improved by ``tol`` for :data:`PATIENCE_EPOCHS`; None: never."""
    target_loss: float | None = None
    """End when the loss (validation where there is one, else training) is at or below this."""
    max_seconds: float | None = None
    max_cost: float | None = None
    """Dollars."""
    max_updates: int | None = None
    """End after this many minibatches, counted from the run's very first (a checkpoint brings its own)."""
    early_stopping: bool = False
    """Watch the validation loss instead of the training loss for ``tol``."""

    def __post_init__(self) -> None:
        """Check every limit."""
        _check(
            isinstance(self.epochs, int) and self.epochs >= 1,
            "epochs",
            f'must be a whole number >= 1 or "auto", got {self.epochs!r}',
        )
        for name in ("max_seconds", "max_cost"):
            value = getattr(self, name)
            _check(
                value is None or (_is_finite(value) and value > 0),
                name,
                f"must be a positive number or None, got {value!r}",
            )
        for name in ("tol", "target_loss"):
            value = getattr(self, name)
            _check(value is None or _is_finite(value), name, f"must be a number, got {value!r}")
        _check(self.tol is None or self.tol >= 0, "tol", f"must be >= 0 or None, got {self.tol!r}")
        updates = self.max_updates
        _check(
            updates is None or (isinstance(updates, int) and updates >= 1),
            "max_updates",
            f"must be a whole number >= 1 or None, got {updates!r}",
        )


#: Epochs without an improvement of ``tol`` that end a run, as scikit-learn's ``n_iter_no_change``.
PATIENCE_EPOCHS = 5


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model family, and the parameters that its pure functions need."""

    name: str
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class WorkerPrices:
    """What a worker costs, where workers are billed by their time; zeros elsewhere."""

    dollars_per_second: float = 0.0
    dollars_per_invocation: float = 0.0

    def __post_init__(self) -> None:
        """Check both."""
        for name in ("dollars_per_second", "dollars_per_invocation"):
            value = getattr(self, name)
            _check(_is_finite(value) and value >= 0, name, f"must be a number >= 0, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class BackendRecord:
    """What a run or a search notes down of its backend. Its root is where the note lies."""

    name: str
    """``local``, ``aws`` or ``ray``, as a command line has it; of any other, its class."""
    address: str | None = None
    """Of the Ray cluster, as it was given."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training job, whole. Written once; never changed."""

    run_id: str
    model: ModelConfig
    tables: tuple[TableConfig, ...]
    train_url: str
    """The dataset to train on, as an object-store URL that workers can read."""
    train_fingerprint: str
    """``Manifest.fingerprint`` of the dataset: a resumed run must name the same data."""
    validation_url: str | None = None
    validation_fingerprint: str | None = None
    """As ``train_fingerprint``, of the dataset whose loss is watched."""
    n_features: int
    batch_size: int
    leases: tuple[LeaseRange, ...]
    stop: StopConfig
    n_workers: int = 2
    n_shards: int = 1
    seed: int = 0
    compression: str = "none"
    wire_dtype: str = "float32"
    mode: str = "sgd"
    """``sgd``: a step is the gradient of a minibatch. ``average``: workers train on a lease by themselves,
    and a step is what that did to the tables; the shards average."""
    tls: bool = False
    """Whether workers and shards encrypt what they say to each other."""
    staleness: int | None = None
    """How many steps a worker may be ahead of the slowest; 0: rounds; None: workers do not wait."""
    gradient_threshold: float | None = None
    """Worker keeps back gradient values smaller than this until they have added up; None: sends all."""
    nonfinite_gradients: str = "skip"
    """What happens to a gradient with NaN or infinity, which is never applied: ``skip``, training goes on
    without it; ``fail``, the run ends with an error."""
    snapshot_seconds: float | None = None
    """Between two recovery snapshots of a shard; None: as often as costs little. What a shard has done since
    is done again when it is lost, and meanwhile the run gets no further."""
    checkpoint_seconds: float | None = None
    checkpoint_url: str | None = None
    resume_url: str | None = None
    """A checkpoint (tables, optimizer state, ledger) that the shards start from."""
    resume_ledger: bool = False
    """True: go on in the checkpoint's epoch. False: take the tables alone and start at epoch 0."""
    on_client_loss: str = "stop"
    """What happens when the client dies: ``stop`` (shards snapshot and end), or ``continue`` until no worker
    is left, and then the same."""
    lease_seconds: float = 30.0
    """A lease without progress for this long is given to another worker."""
    generation_seconds: float | None = None
    """A worker's lifetime; None: until the job is done."""
    worker_memory_mb: int = 1769
    """Size of a worker, where workers are functions."""
    dollars_per_hour: float = 0.0
    """What the job costs while it runs, but for what is in ``worker_prices``."""
    worker_prices: WorkerPrices = field(default_factory=WorkerPrices)
    """What the workers cost by their own time."""
    backend: BackendRecord | None = None
    """Where the run works: whoever goes on with it does so there."""
    model_metadata: Mapping[str, Any] = field(default_factory=dict)
    """What the client wants back when it attaches: estimator class, parameters, classes, encoding."""
    search: str | None = None
    """The search that the run belongs to."""
    trial: int | None = None
    """Which trial of that search."""
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    """What that trial tries: the parameters in which it differs from the others, as JSON values."""

    def __post_init__(self) -> None:
        """Check what could not be checked by the parts."""
        for name in ("batch_size", "n_workers", "n_shards"):
            value = getattr(self, name)
            _check(
                isinstance(value, int) and not isinstance(value, bool) and value >= 1,
                name,
                f"must be a whole number >= 1, got {value!r}",
            )
        _check(
            self.compression in COMPRESSIONS,
            "compression",
            f"must be one of {', '.join(COMPRESSIONS)}, got {self.compression!r}",
        )
        _check(
            self.wire_dtype in WIRE_DTYPES,
            "wire_dtype",
            f"must be one of {', '.join(WIRE_DTYPES)}, got {self.wire_dtype!r}",
        )
        _check(self.mode in MODES, "mode", f"must be one of {', '.join(MODES)}, got {self.mode!r}")
        check_on_client_loss(self.on_client_loss)
        _check(
            self.nonfinite_gradients in NONFINITE_POLICIES,
            "nonfinite_gradients",
            f"must be one of {', '.join(NONFINITE_POLICIES)}, got {self.nonfinite_gradients!r}",
        )
        _check(
            self.staleness is None or (type(self.staleness) is int and self.staleness >= 0),
            "staleness",
            f"must be a whole number >= 0 or None, got {self.staleness!r}",
        )
        _check(
            self.mode == "sgd" or self.gradient_threshold is None,
            "gradient_threshold",
            'has no meaning with mode="average", where no gradients are sent',
        )
        _check(
            self.gradient_threshold is None
            or (_is_finite(self.gradient_threshold) and self.gradient_threshold >= 0),
            "gradient_threshold",
            f"must be a number >= 0 or None, got {self.gradient_threshold!r}",
        )
        _check(self.lease_seconds > 0, "lease_seconds", f"must be > 0, got {self.lease_seconds!r}")
        _check(
            self.snapshot_seconds is None or self.snapshot_seconds > 0,
            "snapshot_seconds",
            f"must be > 0 or None, got {self.snapshot_seconds!r}",
        )
        _check(
            self.checkpoint_seconds is None or self.checkpoint_seconds > 0,
            "checkpoint_seconds",
            f"must be > 0 or None, got {self.checkpoint_seconds!r}",
        )
        _check(
            1 <= len(self.tables) <= MAX_TABLES,
            "tables",
            f"a model has 1 to {MAX_TABLES} tables, this one {len(self.tables)}",
        )
        for table in self.tables:
            _check(
                len(table.boundaries) == self.n_shards + 1,
                "boundaries",
                f"table {table.name} is cut for {len(table.boundaries) - 1} shards, not {self.n_shards}",
            )
        _check(bool(self.leases), "leases", "the dataset has no rows")

    @property
    def shard_tables(self) -> tuple[TableConfig, ...]:
        """The tables as the shards keep them: where workers average, they add up what the workers did."""
        if self.mode == "sgd":
            return self.tables
        add = OptimizerConfig(name="add")
        return tuple(dataclasses.replace(table, optimizer=add) for table in self.tables)

    @property
    def steps_per_epoch(self) -> int:
        """Number of minibatches of one epoch."""
        return sum(lease.n_steps for lease in self.leases)

    @property
    def rows_per_epoch(self) -> int:
        """Number of rows of one epoch."""
        return sum(lease.n_rows for lease in self.leases)

    def to_json(self) -> bytes:
        """Return the config as UTF-8 JSON."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes) -> RunConfig:
        """Read a config back.

        Raises:
            ConfigError: The text is not JSON, or a field is missing, unknown or of the wrong type.
        """
        try:
            raw = parse_json(data)
        except ValueError as error:
            raise ConfigError("config.json", f"is not JSON: {error}") from error
        return from_plain(cls, raw, "config.json")


def as_whole_number(value: Any) -> int | None:
    """Return what users and numpy call a whole number as an int, which JSON can hold; None: it is none."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def whole_number(value: Any, name: str, *, least: int = 1) -> int:
    """Return a parameter that is a whole number, of whatever integer type.

    Args:
        value: What the user gave.
        name: What the parameter is called.
        least: The smallest that makes sense.

    Raises:
        ConfigError: It is none, or below ``least``.
    """
    number = as_whole_number(value)
    if number is None or number < least:
        raise ConfigError(name, f"must be a whole number >= {least}, got {value!r}")
    return number


def check_on_client_loss(value: object) -> None:
    """Check what a run shall do without its client.

    Raises:
        ConfigError: It is none of :data:`ON_CLIENT_LOSS`.
    """
    _check(
        value in ON_CLIENT_LOSS,
        "on_client_loss",
        f"must be one of {', '.join(ON_CLIENT_LOSS)}, got {value!r}",
    )


def from_plain(kind: type[T], raw: Any, where: str) -> T:
    """Build a dataclass from what JSON gave, checking names and types on the way.

    Args:
        kind: A dataclass.
        raw: Dicts, lists and scalars, as :func:`parse_json` returns them.
        where: What to call the place in an error message.

    Raises:
        ConfigError: A field is missing, unknown or of another type.
    """
    return typing.cast(T, _convert(kind, raw, where))


def _convert(hint: Any, raw: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _convert_dataclass(typing.cast(type, hint), raw, where)
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        options = typing.get_args(hint)
        if raw is None and type(None) in options:
            return None
        (inner,) = (o for o in options if o is not type(None))
        return _convert(inner, raw, where)
    if origin is tuple:
        _check(isinstance(raw, list), where, f"must be a list, got {type(raw).__name__}")
        args = typing.get_args(hint)
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_convert(args[0], v, f"{where}[{i}]") for i, v in enumerate(raw))
        _check(len(args) == len(raw), where, f"must have {len(args)} entries, got {len(raw)}")
        return tuple(_convert(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(args, raw, strict=True)))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        try:
            return hint(raw)
        except ValueError as error:
            raise ConfigError(where, f"unknown value {raw!r}") from error
    if hint is float and isinstance(raw, int) and not isinstance(raw, bool):
        try:
            return float(raw)
        except OverflowError as error:
            raise ConfigError(where, "is too large a number") from error
    if origin is dict:
        _check(isinstance(raw, dict), where, f"must be dict, got {type(raw).__name__}")
        inner = typing.get_args(hint)[1]
        return {key: _convert(inner, value, f"{where}.{key}") for key, value in raw.items()}
    expected = dict if origin is not None else hint
    if expected is not Any:
        _check(isinstance(raw, expected), where, f"must be {expected.__name__}, got {type(raw).__name__}")
    return raw


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _convert_dataclass(kind: type, raw: Any, where: str) -> Any:
    _check(isinstance(raw, dict), where, f"must be an object, got {type(raw).__name__}")
    hints = _hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    unknown = sorted(set(raw) - set(fields))
    _check(not unknown, where, f"unknown field {', '.join(unknown)}")
    values = {}
    for name, spec in fields.items():
        if name in raw:
            values[name] = _convert(hints[name], raw[name], f"{where}.{name}")
        else:
            required = spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING
            _check(not required, where, f"field {name} is missing")
    return kind(**values)
