"""The fleet: keeps N stateless workers alive, whatever they run on.

A worker lives for one generation: it is invoked, works until its deadline or the end of the run, and returns.
The fleet has a slot for each worker id, and a thread for each slot, which invokes the worker again and again:

=============  ====================================================================================
outcome        what the slot does next
=============  ====================================================================================
``finished``   waits for the run to be over; if that does not come (a shard crashed meanwhile and
               lost steps), invokes the worker again
``deadline``   invokes the next generation at once
``duplicate``  another invocation of this id is registered: tries a newer generation
an error       tries again at once, then with growing waits; gives up after too many failures
               without progress of the run, and at once when the error cannot go away by itself
=============  ====================================================================================

Nothing here knows processes, Lambda functions or Ray: ``invoke`` does.
"""

from __future__ import annotations

import dataclasses
import json
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from cirrus.client_backend.retries import RetryBudget, RetryPolicy
from cirrus.config import from_plain
from cirrus.errors import CirrusError, ConfigError, RunError

Role = Literal["train", "evaluate"]

#: Errors (by class name, as they come from other processes) that another attempt cannot heal.
PERMANENT_ERRORS = frozenset(
    {
        "AccessDeniedError",
        "AuthenticationError",
        "ConfigError",
        "CorruptDataError",
        "CredentialsError",
        "DataError",
        "MissingResourceError",
        "VersionMismatchError",
    }
)
#: A worker says that the run is over; how long the status may take to say so before the worker is invoked
#: again.
FINISH_SECONDS = 2.0
FINISH_POLL_SECONDS = 0.1
#: Generations without a step may follow each other this many times as often as failures.
IDLE_FACTOR = 4


@dataclass(frozen=True, kw_only=True)
class WorkerEvent:
    """What a worker is invoked with."""

    role: str
    """``train`` or ``evaluate``."""
    run_url: str
    worker_id: int
    generation: int
    """Grows with every invocation of this worker id."""
    deadline_seconds: float | None = None
    """How long this generation may work; None: until the run is over."""

    def to_plain(self) -> dict[str, Any]:
        """Return the event as the handler takes it."""
        return dataclasses.asdict(self)

    def to_json(self) -> bytes:
        """Return the event as one line of JSON, without the line's end."""
        return json.dumps(self.to_plain()).encode()


@dataclass(frozen=True, kw_only=True)
class WorkerResult:
    """What a worker says of the generation that it ended."""

    outcome: str
    """``finished``, ``deadline`` or ``duplicate``."""
    steps: int = 0
    rows: int = 0
    seconds: float = 0.0
    fetch_seconds: float = 0.0
    pull_seconds: float = 0.0
    compute_seconds: float = 0.0
    push_seconds: float = 0.0

    def __post_init__(self) -> None:
        """Check the outcome."""
        if self.outcome not in ("finished", "deadline", "duplicate"):
            raise ConfigError("outcome", f"unknown outcome {self.outcome!r} of a worker")

    @classmethod
    def from_plain(cls, raw: Any) -> WorkerResult:
        """Read what a handler returned.

        Raises:
            ConfigError: It is not a result.
        """
        return from_plain(cls, raw, "worker result")


class AttemptError(RunError):
    """One attempt to run a worker or a shard failed.

    Args:
        text: What happened, for people.
        is_permanent: Another attempt would fail in the same way.
    """

    def __init__(self, text: str, *, is_permanent: bool = False) -> None:
        super().__init__(text)
        self.is_permanent = is_permanent

    @classmethod
    def of_kind(cls, text: str, kind: str) -> AttemptError:
        """Return the error for what another process reported: its text and the class name of its error."""
        return cls(text, is_permanent=kind in PERMANENT_ERRORS)

    @classmethod
    def of(cls, what: str, error: Exception) -> AttemptError:
        """Return the error for one that was raised in this process by ``what``, such as ``worker 3``.

        An error that is none of Cirrus' own is a bug, and no attempt more will heal it.
        """
        if isinstance(error, AttemptError):
            return error
        kind = type(error).__name__
        if isinstance(error, CirrusError):
            wrapped = cls.of_kind(f"{what}: {error}", kind)
        else:
            wrapped = cls(f"{what}: {kind}: {error}", is_permanent=True)
        wrapped.__cause__ = error
        return wrapped


class Fleet:
    """Keeps ``n_workers`` workers, and the evaluator where there is one, alive until the run is over.

    Args:
        n_workers: Number of training workers; they get the ids 0 to ``n_workers - 1``.
        invoke: Runs one generation of a worker and returns when that has ended; raises a CirrusError when it
            failed. Called from a thread per slot.
        is_over: Tells whether the run needs no workers any more.
        on_fatal: Called, at most once a slot, with the error that the fleet gave up at.
        run_url: The run folder, for the events.
        with_evaluator: One more slot, with the id ``n_workers`` and the role ``evaluate``.
        deadline_seconds: Lifetime of a generation; None: until the run is over.
        first_generation: Number of the first generation; a client that attaches to a run must begin above
            those of the client before.
        progress: Grows with what the run has achieved, such as its count of updates.
        policy: Limits of failing again and again.
        rng: Where the jitter comes from.
        pause: Waits for some seconds or until the fleet is stopped; returns whether it is stopped.
    """

    def __init__(
        self,
        n_workers: int,
        invoke: Callable[[WorkerEvent], WorkerResult],
        is_over: Callable[[], bool],
        on_fatal: Callable[[AttemptError], None],
        *,
        run_url: str = "",
        with_evaluator: bool = False,
        deadline_seconds: float | None = None,
        first_generation: int = 1,
        progress: Callable[[], int] = lambda: 0,
        policy: RetryPolicy | None = None,
        rng: random.Random | None = None,
        pause: Callable[[float], bool] | None = None,
    ) -> None:
        self._invoke = invoke
        self._is_over = is_over
        self._on_fatal = on_fatal
        self._run_url = run_url
        self._deadline_seconds = deadline_seconds
        self._first_generation = first_generation
        self._progress = progress
        self._policy = policy or RetryPolicy()
        self._rng = rng or random.Random()  # spreads retries  # nosec B311
        self._stopped = threading.Event()
        self._pause = pause or self._stopped.wait
        self._lock = threading.Lock()
        self._n_live = 0
        roles: list[Role] = ["train"] * n_workers
        if with_evaluator:
            roles.append("evaluate")
        self._invocations = [0] * len(roles)
        self._threads = [
            threading.Thread(
                target=self._keep_alive, args=(slot, role), name=f"cirrus-{role}-{slot}", daemon=True
            )
            for slot, role in enumerate(roles)
        ]

    @property
    def n_live(self) -> int:
        """Number of workers (and evaluators) that are invoked at this moment."""
        with self._lock:
            return self._n_live

    @property
    def generations(self) -> tuple[int, ...]:
        """How often each slot was invoked by this fleet."""
        with self._lock:
            return tuple(self._invocations)

    def start(self) -> None:
        """Invoke all workers; returns at once."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Invoke nobody any more. Those who work are left alone: ending them is the backend's part."""
        self._stopped.set()

    def join(self, timeout: float | None = None) -> bool:
        """Wait for all slots to end.

        Args:
            timeout: Most seconds to wait for all of them; None: for ever.

        Returns:
            True when no worker is alive any more.
        """
        end = None if timeout is None else time.monotonic() + timeout
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(None if end is None else max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _keep_alive(self, slot: int, role: Role) -> None:
        """Keep one worker alive: the life of a slot."""
        failures = RetryBudget(self._policy, self._progress, self._rng)
        idle_policy = dataclasses.replace(self._policy, failures=self._policy.failures * IDLE_FACTOR)
        idle = RetryBudget(idle_policy, self._progress, self._rng)
        while not self._stopped.is_set() and not self._is_over():
            error: AttemptError
            try:
                result = self._invoke_next(slot, role)
            except Exception as raised:  # noqa: BLE001 (a slot that died of a bug would go unseen)
                error = AttemptError.of(f"worker {slot}", raised)
                wait_seconds = failures.fail()
            else:
                if result.outcome == "finished":
                    self._await_end()
                    continue
                if result.outcome == "deadline" and result.steps > 0:
                    continue
                # No fault of this worker where there are more workers than leases, or a shard is recovering;
                # yet many in a row without any progress of the run would be a loop that never ends, and may
                # bill.
                error = AttemptError(f"worker {slot}: generations end without a step ({result.outcome})")
                wait_seconds = idle.fail()
            if self._stopped.is_set() or self._is_over():
                return
            if error.is_permanent or wait_seconds is None:
                self._on_fatal(error)
                return
            self._pause(wait_seconds)

    def _invoke_next(self, slot: int, role: Role) -> WorkerResult:
        with self._lock:
            generation = self._first_generation + self._invocations[slot]
            self._invocations[slot] += 1
            self._n_live += 1
        event = WorkerEvent(
            role=role,
            run_url=self._run_url,
            worker_id=slot,
            generation=generation,
            deadline_seconds=self._deadline_seconds,
        )
        try:
            return self._invoke(event)
        finally:
            with self._lock:
                self._n_live -= 1

    def _await_end(self) -> None:
        """Wait until the run is over, or for a while."""
        waited = 0.0
        while waited < FINISH_SECONDS and not self._is_over() and not self._pause(FINISH_POLL_SECONDS):
            waited += FINISH_POLL_SECONDS
