"""The function's entry point: the same on a laptop, in Lambda and in a Ray task.

The event is ``{"role": "train" | "evaluate" | "map", "run_url": ..., "worker_id": ..., "generation": ...,
"deadline_seconds": ...}``; the result says how the generation ended. Secrets are never in it: the token is in
the run folder.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from cirrus.config import from_plain
from cirrus.errors import ConfigError, RegistrationError
from cirrus.worker_runtime.session import Clock, DeadlineError, Identity, RunOverError, Session
from cirrus.worker_runtime.train import Totals
from cirrus.worker_runtime.trainer import Trainer


class Context(Protocol):
    """What Lambda hands to a handler, as far as it is used here."""

    def get_remaining_time_in_millis(self) -> int:
        """Return the milliseconds left until the function is ended."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """What a function is invoked with."""

    role: str
    run_url: str
    worker_id: int
    generation: int
    deadline_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a generation ended."""

    outcome: str
    """``finished`` (the run is over), ``deadline`` (start me again) or ``duplicate`` (another me is at
    work)."""
    steps: int
    rows: int
    seconds: float
    fetch_seconds: float = 0.0
    """Reading leases from the object store, beside the training."""
    pull_seconds: float = 0.0
    compute_seconds: float = 0.0
    push_seconds: float = 0.0


def handler(event: Mapping[str, Any], context: Context | None = None) -> dict[str, Any]:
    """Work for one generation.

    Args:
        event: See :class:`Event`.
        context: Lambda's, which knows the deadline.

    Returns:
        See :class:`Result`.

    Raises:
        ConfigError: The event or the run's config is wrong.
        CirrusError: The generation could not work on.
    """
    if not isinstance(event, Mapping):
        raise ConfigError("event", f"must be an object, got {type(event).__name__}")
    parsed = from_plain(Event, dict(event), "event")
    left = parsed.deadline_seconds
    if left is not None and not (math.isfinite(left) and left >= 0):
        raise ConfigError("deadline_seconds", f"must be a number >= 0 or None, got {left!r}")
    if parsed.role not in ("train", "evaluate", "map"):
        raise ConfigError("role", f"must be train, evaluate or map, got {parsed.role!r}")
    clock = Clock(_remaining(parsed, context))
    # What a role needs is imported for that role: a cold start waits for nothing else.
    if parsed.role == "map":
        from cirrus.worker_runtime.map_tasks import MapWorker

        mapper = MapWorker(parsed.run_url, parsed.worker_id, parsed.generation, clock)
        outcome = mapper.run()
        return asdict(Result(outcome=outcome, steps=mapper.chunks, rows=mapper.rows, seconds=clock.seconds))
    identity = Identity(parsed.worker_id, parsed.generation, parsed.role)
    session = Session(parsed.run_url, identity, clock)
    totals = Totals()
    try:
        if parsed.role == "evaluate":
            from cirrus.worker_runtime.evaluate import Evaluator

            evaluator = Evaluator(session)
            try:
                evaluator.run()
            finally:
                totals.steps, totals.rows = evaluator.steps, evaluator.rows
        else:
            trainer = Trainer(session)
            totals = trainer.totals
            trainer.run()
    except RunOverError:
        outcome = "finished"
    except DeadlineError:
        outcome = "deadline"
    except RegistrationError:
        outcome = "duplicate"
    finally:
        session.stopping.set()
    return asdict(
        Result(
            outcome=outcome,
            steps=totals.steps,
            rows=totals.rows,
            seconds=clock.seconds,
            fetch_seconds=totals.fetch_seconds,
            pull_seconds=totals.pull_seconds,
            compute_seconds=totals.compute_seconds,
            push_seconds=totals.push_seconds,
        )
    )


def _remaining(event: Event, context: Context | None) -> Callable[[], float] | None:
    """Return how much time is left: what the platform or the event says, whichever is less."""
    if context is None and event.deadline_seconds is None:
        return None

    def remaining() -> float:
        limits = [] if event.deadline_seconds is None else [event.deadline_seconds]
        if context is not None:
            limits.append(context.get_remaining_time_in_millis() / 1000.0)
        return min(limits)

    return remaining
