"""A run seen from the estimator that it will fit."""

from __future__ import annotations

import math
import shlex
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType

import numpy as np

from cirrus.client_backend.run_cost import CostModel, RunCost
from cirrus.client_backend.runs import Run
from cirrus.config import RunConfig
from cirrus.errors import RunError, RunInterruptedError
from cirrus.frontend.progress import Listener, Progress
from cirrus.frontend.scratch import Scratch
from cirrus.metrics import MetricPoint, RunState, RunStatus
from cirrus.paramserver.checkpoint import Checkpoint, read_checkpoint
from cirrus.storage import open_store

MODEL_PREFIX = "model"
_ADVICE = "scale the features (and, for regression, the target) to about 1, or lower learning_rate"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a finished run leaves."""

    status: RunStatus
    points: list[MetricPoint]
    checkpoint: Checkpoint


def read_outcome(run: Run, status: RunStatus) -> Outcome:
    """Read the model of a run that has finished; warn of numbers in it that are beyond float32.

    Raises:
        RunError: The shards refused every step of the last epoch.
    """
    check_gradients(status)
    checkpoint = read_checkpoint(open_store(run.url).child(MODEL_PREFIX))
    points = run.metrics()
    if problems := list(nonfinite_problems(status, points, checkpoint)):
        warnings.warn(f"{'; '.join(problems)}: {_ADVICE}", UserWarning, stacklevel=2)
    return Outcome(status=status, points=points, checkpoint=checkpoint)


def check_gradients(status: RunStatus) -> None:
    """Refuse a run that stood still at its end, as every step had a gradient that the shards refused.

    Raises:
        RunError: It did.
    """
    finite, nonfinite = (
        [count for name, count in status.counts.items() if name.endswith(f".last_{kind}_epoch")]
        for kind in ("finite", "nonfinite")
    )
    last = status.epoch - 1
    if finite and max(finite) < last <= max(nonfinite) and len(finite) == _n_shards(status):
        first = max(finite) + 2
        epochs = f"epoch {first}" if first == status.epoch else f"epochs {first} to {status.epoch}"
        raise RunError(
            f"every gradient of {epochs} was refused, as it held NaN or infinity: nothing was learned there; "
            f"{_ADVICE}"
        )


def _n_shards(status: RunStatus) -> int:
    return sum(name.endswith(".nonfinite_refused") for name in status.counts)


def nonfinite_problems(
    status: RunStatus, points: Iterable[MetricPoint], checkpoint: Checkpoint
) -> Iterator[str]:
    """Say where a training met numbers that are NaN or beyond float32."""
    refused = sum(count for name, count in status.counts.items() if name.endswith(".nonfinite_refused"))
    if refused:
        yield f"{refused:,} gradients were refused, as they held NaN or infinity (nonfinite_refused)"
    losses = [point.train_loss for point in points if point.end_of_epoch and point.train_loss is not None]
    if lost := sum(not math.isfinite(loss) for loss in losses):
        yield f"the training loss of {lost} of {len(losses)} epochs is not finite"
    for table, arrays in checkpoint.tables.items():
        for name, values in arrays.items():
            if beyond := int(np.count_nonzero(~np.isfinite(values))):
                yield f"{beyond:,} of {values.size:,} numbers in {name} of table {table} went beyond float32"


def check_finished(run_id: str, status: RunStatus, options: Sequence[str] = ()) -> None:
    """Refuse a run that ended without a model.

    Args:
        run_id: The run.
        status: How it ended.
        options: What names its backend on a command line (:attr:`Backend.options`).

    Raises:
        RunInterruptedError: Its client went away; it can be attached.
        RunError: It was killed or failed.
    """
    if status.state is RunState.INTERRUPTED:
        attach = shlex.join(["cirrus", "attach", run_id, *options])
        raise RunInterruptedError(f"run {run_id} was interrupted; go on with: {attach}")
    if status.state is not RunState.FINISHED:
        raise RunError(f"run {run_id} {status.state.value}" + (f": {status.error}" if status.error else ""))


class TrainingRun:
    """A run that fits an estimator when it ends: what :meth:`LogisticRegression.start` returns.

    Use :meth:`wait` (or leave a ``with`` block) to have the estimator fitted; a run that nobody waits for
    ends with this process.

    Args:
        run: The supervised run.
        scratch: What is to be removed once the run has ended.
        adopt: Called with what the run left, once, when it has finished.
        progress: The estimator's parameter.
        inputs: Datasets that have to live as long as the run.
    """

    def __init__(
        self,
        run: Run,
        scratch: Scratch,
        adopt: Callable[[Outcome], None],
        progress: bool | Listener | None = None,
        inputs: tuple[object, ...] = (),
    ) -> None:
        self._run = run
        self._scratch = scratch
        self._adopt = adopt
        self._progress = progress
        self._inputs = inputs
        self._points: list[MetricPoint] | None = None
        self._final: RunStatus | None = None

    @property
    def run_id(self) -> str:
        """The run's name, as ``cirrus runs`` lists it."""
        return self._run.run_id

    @property
    def run(self) -> Run:
        """The supervised run itself, which fits nothing."""
        return self._run

    @property
    def url(self) -> str:
        """The run folder."""
        return self._run.url

    @property
    def config(self) -> RunConfig:
        """The run's frozen description."""
        return self._run.config

    @property
    def status(self) -> RunStatus:
        """How far the run is."""
        return self._run.status if self._final is None else self._final

    @property
    def cost(self) -> RunCost:
        """What the run has cost so far, measured and by the model."""
        return CostModel.of(self.config).compare(self.status)

    def metrics(self) -> list[MetricPoint]:
        """Return all points of the run's curves so far."""
        return self._run.metrics() if self._points is None else list(self._points)

    def stop(self) -> None:
        """Ask the run to finish now and keep its model; :meth:`wait` for it."""
        self._run.stop()

    def snapshot(self) -> None:
        """Ask for a checkpoint."""
        self._run.snapshot()

    def kill(self) -> None:
        """End the run without a model. Returns when its shards and workers are gone."""
        if self._final is None:
            self._run.kill()

    def wait(self, timeout: float | None = None) -> RunStatus:
        """Wait for the end of the run, then fit the estimator if the run finished.

        Args:
            timeout: Seconds to wait at most; None: as long as it takes.

        Returns:
            The status; ``state`` tells whether the run has ended and how. A run that was killed or
            interrupted leaves the estimator as it was.

        Raises:
            RunError: The run failed.
        """
        if self._final is not None:
            return self._final
        try:
            with Progress(self._progress, CostModel.of(self.config)) as progress:
                status = self._run.wait(timeout, progress.listener)
            if status.state.ended:
                self._finish(status)
        except BaseException:
            self.close()
            raise
        return status

    def close(self) -> None:
        """End the run if it has not ended, and remove what it needed. Closing twice is harmless."""
        self._run.close()
        self._scratch.close()
        self._inputs = ()

    def __enter__(self) -> TrainingRun:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.wait()
        self.close()

    def _finish(self, status: RunStatus) -> None:
        if status.state is RunState.FINISHED:
            outcome = read_outcome(self._run, status)
            self._points = outcome.points
            self._adopt(outcome)
        else:
            self._points = self._run.metrics()
        self._final = status
        self.close()
