"""Typed progress of a run, as shard 0 writes it and everybody else reads it.

Shard 0 appends :class:`MetricPoint` and :class:`RunEvent` lines and replaces one :class:`RunStatus`; the
progress bar, the estimator's ``history_``, the registry and the dashboard only listen.
"""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass


class RunState(enum.StrEnum):
    """Where a run is in its life."""

    STARTING = "starting"
    RUNNING = "running"
    FINISHED = "finished"
    KILLED = "killed"
    FAILED = "failed"
    INTERRUPTED = "interrupted"

    @property
    def ended(self) -> bool:
        """True when nothing of the run works any more (an interrupted one can be attached)."""
        return self not in (RunState.STARTING, RunState.RUNNING)


@dataclass(frozen=True, kw_only=True)
class MetricPoint:
    """One point of a run's curves, cumulative since the run began.

    ``train_loss`` is progressive: the mean loss of minibatches since the last point, each taken before its
    own update.
    """

    seconds: float
    """Since the first lease was given out; starting shards and workers is not in it."""
    epoch: int
    updates: int
    samples: int
    train_loss: float | None = None
    validation_loss: float | None = None
    validation_metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    cost: float = 0.0
    n_workers: int = 0
    end_of_epoch: bool = False
    """True for the point that closes an epoch: its ``train_loss`` is the mean over that whole epoch."""
    fetch_seconds: float = 0.0
    pull_seconds: float = 0.0
    compute_seconds: float = 0.0
    push_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """The one-page summary of a run."""

    state: RunState
    epoch: int = 0
    """Epochs completed."""
    epochs: int = 0
    """Epochs wanted at most."""
    updates: int = 0
    samples: int = 0
    samples_per_epoch: int = 0
    train_loss: float | None = None
    validation_loss: float | None = None
    cost: float = 0.0
    worker_cost: float = 0.0
    """The part of ``cost`` that is the workers' time and invocations."""
    worker_correction: float = 0.0
    """The part of ``worker_cost`` that clients have added, and shard 0 could not know; may be below 0."""
    server_correction: float = 0.0
    """Likewise, of the rest of ``cost``."""
    n_workers: int = 0
    workers: dict[str, int] = dataclasses.field(default_factory=dict)
    """The generation of every worker (and evaluator) that is registered, by its id: who is here lives."""
    worker_seconds: float = 0.0
    """Time of all workers together, as they report it themselves."""
    invocations: int = 0
    """Generations of workers that registered."""
    seconds: float = 0.0
    """Time spent so far, over all generations of the coordinator."""
    started_at: float = 0.0
    """Unix time of the run's first start."""
    heartbeat_at: float = 0.0
    """Unix time of this status: one that is not renewed for a while belongs to a run that was lost."""
    stop_reason: str | None = None
    """Why the run ended: ``epochs``, ``tol``, ``target_loss``, ``max_seconds``, ``max_cost``, ``killed``,
    ..."""
    error: str | None = None
    warning: str | None = None
    """What the run goes on without, such as a validation loss that cannot be computed."""
    detail: str = ""
    """What a run that is starting waits for, or that one goes on without a client, in words."""
    silent_shards: tuple[int, ...] = ()
    """Shards that shard 0 has not heard of for a while, though they are announced."""
    behind_shards: tuple[int, ...] = ()
    """Shards that came back without their last steps; while these are done again the run gets no further."""
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    """Counters of all shards: steps applied, duplicates dropped, leases given again, ..."""


@dataclass(frozen=True, kw_only=True)
class RunEvent:
    """Something that happened in a run, as shard 0 saw it."""

    at: float
    """Unix time."""
    kind: str
    """``joined`` or ``left`` (a worker or evaluator), ``started`` (a shard) or ``ended`` (the run)."""
    who: str
    """Such as ``train-3``, ``evaluate-0``, ``shard-1`` or ``run``."""
    generation: int = 0
    text: str = ""
