"""What the dashboard knows of each run, and what may be done with it. No store, no page: plain facts."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cirrus.client_backend.search_folder import SEARCH_PREFIX, TrialStatus
from cirrus.config import RunConfig
from cirrus.metrics import RunState, RunStatus
from cirrus_dashboard.curves import TRAIN_LOSS, VALIDATION_LOSS, Columns

#: A hyperparameter as it is shown and compared.
Value = str | int | float | bool | None

#: Parameters of estimators that say nothing of the model: where it is put, what is watched.
_NO_HYPERPARAMETERS = frozenset({"checkpoint_seconds", "warm_start", "worker_memory_mb"})

#: Where a trial is that its search has not done with; one of a search whose driver was lost, too.
_OPEN_TRIALS: frozenset[str] = frozenset(
    {TrialStatus.QUEUED, TrialStatus.RUNNING, TrialStatus.PAUSED, RunState.INTERRUPTED}
)
_RESUMABLE_TRIALS: frozenset[str] = frozenset({TrialStatus.KILLED, TrialStatus.PRUNED, RunState.INTERRUPTED})


#: What is different in any two runs, and says nothing.
_IDENTITY = frozenset({"run_id", "search", "trial"})


def trial_key(search: str, trial: int) -> str:
    """Return the name of a trial among runs."""
    return f"{search}:{trial}"


def is_value(value: object) -> bool:
    """Tell whether this can be shown as a hyperparameter."""
    return value is None or isinstance(value, (str, int, float, bool))


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A run, or a trial of a search with all its runs, as it was when it was last read."""

    run_id: str
    """The run's id; a trial's :func:`trial_key`."""
    version: int
    """Changes whenever anything else here does."""
    runs: tuple[str, ...] = ()
    """Ids of its runs, oldest first; a trial that waits has none."""
    model: str = ""
    config: RunConfig | None = None
    """None when the folder is broken."""
    status: RunStatus | None = None
    columns: Columns = field(default_factory=Columns)
    hyperparameters: Mapping[str, Value] = field(default_factory=dict)
    note: str = ""
    search: str | None = None
    begun: str = ""
    """When its search was begun, as ids of runs say it; empty where that is not known."""
    trial: int | None = None
    trial_status: str | None = None
    """Where the search says that the trial is (``SearchState.trial_state``); None for a run of no search."""
    problem: str | None = None
    """What is wrong with the folder, or None."""

    @property
    def state(self) -> str:
        """Where the run is in its life, or ``broken``."""
        if self.trial_status is not None:
            return self.trial_status
        return "broken" if self.status is None else self.status.state.value

    @property
    def age(self) -> tuple[str, str]:
        """What runs are sorted by, the oldest first; trials of a search are of one age."""
        if self.search is None or self.trial is None:
            return self.run_id, ""  # ids begin with a time
        return self.begun or self.search.removeprefix(SEARCH_PREFIX), self.search

    @property
    def place(self) -> tuple[tuple[str, str], int]:
        """What runs are sorted by where trials of a search have their numbers' order."""
        return self.age, self.trial or 0

    @property
    def is_live(self) -> bool:
        """True while the run works, or is about to."""
        return self.status is not None and not self.status.state.ended

    @property
    def is_interrupted(self) -> bool:
        """True when the run's client went away, and anybody may go on with it."""
        return self.status is not None and self.status.state is RunState.INTERRUPTED

    @property
    def can_be_killed(self) -> bool:
        """True unless the run has ended for good; an interrupted one could still be gone on with."""
        if self.trial_status is not None:
            return self.trial_status in _OPEN_TRIALS
        return self.is_live or self.is_interrupted

    @property
    def can_be_resumed(self) -> bool:
        """True when nobody works on the run, and it can be gone on with."""
        if self.trial_status is not None:
            return self.trial_status in _RESUMABLE_TRIALS
        return self.is_interrupted or (self.status is not None and self.status.state is RunState.KILLED)

    @property
    def score(self) -> float | None:
        """The run's loss as runs are compared: on validation data where there is any, else in training."""
        return self.train_loss if self.validation_loss is None else self.validation_loss

    @property
    def train_loss(self) -> float | None:
        """The newest training loss: of the curve, or of the status as long as that has not been read."""
        return self._newest(TRAIN_LOSS)

    @property
    def validation_loss(self) -> float | None:
        """The newest validation loss, likewise."""
        return self._newest(VALIDATION_LOSS)

    def _newest(self, name: str) -> float | None:
        if len(self.columns):
            return self.columns.last(name)
        value: float | None = getattr(self.status, name, None)
        return value

    @property
    def dollars_per_second(self) -> float:
        """What the run costs now."""
        if not self.is_live or self.config is None or self.status is None:
            return 0.0
        workers = self.status.n_workers * self.config.worker_prices.dollars_per_second
        return self.config.dollars_per_hour / 3600 + workers

    @property
    def memory_mb(self) -> int:
        """Memory of the run's live workers, as they were asked for."""
        if not self.is_live or self.config is None or self.status is None:
            return 0
        return self.status.n_workers * self.config.worker_memory_mb


def hyperparameters_of(config: RunConfig) -> dict[str, Value]:
    """Return what was chosen for a run: its estimator's parameters, or those of its first table's optimizer.

    Nested values are named with a dot, as ``optimizer_params.beta``.
    """
    card = config.model_metadata.get("card")
    params = card.get("params") if isinstance(card, Mapping) else None
    flat: dict[str, Value] = {}
    if isinstance(params, Mapping):
        chosen: Mapping[Any, Any] = {
            name: value for name, value in params.items() if name not in _NO_HYPERPARAMETERS
        }
    else:
        optimizer = config.tables[0].optimizer
        chosen = {
            "optimizer": optimizer.name,
            "learning_rate": optimizer.learning_rate,
            "l1": optimizer.l1,
            "l2": optimizer.l2,
            "n_workers": config.n_workers,
            "n_shards": config.n_shards,
        }
    _flatten("", chosen, flat)
    _flatten("", config.hyperparameters, flat)
    if flat.get("batch_size") in (None, "auto"):
        flat["batch_size"] = config.batch_size
    return flat


def _flatten(prefix: str, raw: Mapping[Any, Any], flat: dict[str, Value]) -> None:
    for name, value in raw.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            _flatten(f"{key}.", value, flat)
        elif is_value(value):
            flat[key] = value
        else:
            flat[key] = json.dumps(value, default=str)


def plain_config(config: RunConfig) -> dict[str, Value]:
    """Return everything that a run's config says, flat, but for long lists: to compare two runs."""
    raw = dataclasses.asdict(config)
    leases = raw.pop("leases")
    flat: dict[str, Value] = {"leases": len(leases)}
    for table in raw.pop("tables"):
        name = table.pop("name")
        table.pop("boundaries")
        _flatten(f"tables.{name}.", table, flat)
    metadata = raw.pop("model_metadata")
    card = metadata.get("card") if isinstance(metadata, Mapping) else None
    if isinstance(card, Mapping) and isinstance(card.get("params"), Mapping):
        _flatten("", card["params"], flat)
    _flatten("", raw, flat)
    return dict(sorted(flat.items()))


def config_difference(first: RunConfig, second: RunConfig) -> list[tuple[str, Value, Value]]:
    """Return (name, first value, second value) wherever the configs of two runs differ.

    A parameter stands in a config several times: as the user gave it, and wherever it acts, such as
    ``tables.weights.optimizer.learning_rate``. It is named once, as shortly as it can be.
    """
    left, right = plain_config(first), plain_config(second)
    found: dict[str, tuple[Value, Value]] = {}
    for name in sorted({*left, *right} - _IDENTITY, key=lambda name: (name.count("."), name)):
        values = left.get(name), right.get(name)
        parts = name.split(".")
        is_known = any(found[other] == values and other.rpartition(".")[2] in parts for other in found)
        if values[0] != values[1] and not is_known:
            found[name] = values
    return [(name, *found[name]) for name in sorted(found)]


def varying(records: Iterable[RunRecord]) -> list[str]:
    """Return the names of the hyperparameters that are not the same in all runs, in a fixed order."""
    seen: dict[str, set[tuple[str, str]]] = {}
    for record in records:
        for name, value in record.hyperparameters.items():
            seen.setdefault(name, set()).add((type(value).__name__, str(value)))
    return sorted(name for name, values in seen.items() if len(values) > 1)


@dataclass(frozen=True, kw_only=True)
class Totals:
    """All runs together."""

    n_runs: int
    n_live: int
    n_workers: int
    memory_mb: int
    cost: float
    dollars_per_second: float

    @classmethod
    def of(cls, records: Iterable[RunRecord]) -> Totals:
        """Add runs up."""
        held = list(records)
        live = [record for record in held if record.is_live]
        return cls(
            n_runs=len(held),
            n_live=len(live),
            n_workers=sum(record.status.n_workers for record in live if record.status is not None),
            memory_mb=sum(record.memory_mb for record in live),
            cost=sum(record.status.cost for record in held if record.status is not None),
            dollars_per_second=sum(record.dollars_per_second for record in live),
        )
