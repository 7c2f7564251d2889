"""What the driver of a search works with, and nothing of how that is done."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from cirrus.client_backend.runs import Run
from cirrus.client_backend.search_folder import Trial
from cirrus.frontend.search.schedules import Job
from cirrus.metrics import MetricPoint, RunStatus


class Worth(NamedTuple):
    """What a model is worth."""

    score: float | None
    """What ranks it, higher is better; None: nobody knows."""
    scores: dict[str, float]
    """By the name of each of several metrics; empty where there is one."""


class LiveRun(Protocol):
    """A run at work, supervised by this process."""

    @property
    def run(self) -> Run:
        """The run."""

    def close(self) -> None:
        """End it if it has not ended, and remove what it needed."""


class Jobs(Protocol):
    """How trials are worked on."""

    def start(self, trial: Trial, run_id: str, job: Job, resume_url: str | None) -> LiveRun:
        """Start a run of a trial.

        Args:
            trial: What to try.
            run_id: The new run's id.
            job: How far to train.
            resume_url: The model of its run before, to go on from; None: from the start.
        """

    def attach(self, run_id: str) -> LiveRun:
        """Go on with a run that was interrupted or killed."""

    def find(self, run_id: str) -> RunStatus | None:
        """Return where a run is, or None if there is none."""

    def model_url(self, run_id: str) -> str:
        """Return where a finished run left its model."""

    def points(self, run_id: str) -> list[MetricPoint]:
        """Return the points of a run."""

    def n_workers(self, trial: Trial) -> int:
        """Return how many workers a trial needs."""

    def score(self, run_id: str, status: RunStatus, loss: float | None) -> Worth:
        """Return what a finished run's model is worth."""


class TrialSource(Protocol):
    """Where trials come from that are not all known beforehand."""

    def ask(self, index: int) -> dict[str, Any] | None:
        """Return the next hyperparameters, or None when there shall be no more."""

    def report(self, index: int, epoch: int, loss: float) -> bool:
        """Take note of a trial's loss; return whether it should be given up."""

    def tell(self, trial: Trial) -> None:
        """Take note of how a trial ended."""
