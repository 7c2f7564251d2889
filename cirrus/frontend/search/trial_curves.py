"""The losses of trials by epoch, and which trials are given up for them."""

from __future__ import annotations

from collections.abc import Mapping

from cirrus.client_backend.overview import join_curves
from cirrus.client_backend.search_folder import SearchConfig, Trial
from cirrus.frontend.search.roles import Jobs, TrialSource
from cirrus.frontend.search.schedules import Schedule
from cirrus.metrics import MetricPoint


class TrialCurves:
    """What all trials of a search have shown, as far as anybody asks for that.

    Args:
        config: The search.
        schedule: What gives trials up.
        jobs: What reads their points.
        source: What hears of their losses, and may give them up, too; None: nobody.
    """

    def __init__(
        self, config: SearchConfig, schedule: Schedule, jobs: Jobs, source: TrialSource | None
    ) -> None:
        self._watches_validation = config.validation_url is not None
        self._schedule = schedule
        self._jobs = jobs
        self._source = source
        self._curves: dict[int, Mapping[int, float]] = {}

    @property
    def is_needed(self) -> bool:
        """Whether anybody asks for what a trial at work shows."""
        return self._source is not None or self._schedule.needs_curves

    def keep(self, trial: Trial) -> None:
        """Read the whole curve of a trial that does not work, for those that are compared with it."""
        if self._schedule.needs_curves:
            self._curves[trial.index] = self._losses([self._jobs.points(run_id) for run_id in trial.runs])

    def gives_up(self, trial: Trial, points: list[MetricPoint], *, is_asked: bool) -> bool:
        """Take note of an epoch of a trial at work; return whether it should be given up.

        Args:
            trial: The trial.
            points: Of its run at work.
            is_asked: False where that is decided already.
        """
        earlier = [self._jobs.points(run_id) for run_id in trial.runs[:-1]]
        self._curves[trial.index] = curve = self._losses([*earlier, points])
        if not curve or not is_asked:
            return False
        gives_up = self._schedule.gives_up(trial.index, self._curves)
        if self._source is not None:
            epoch = max(curve)
            gives_up = self._source.report(trial.index, epoch, curve[epoch]) or gives_up
        return gives_up

    def _losses(self, curves: list[list[MetricPoint]]) -> dict[int, float]:
        return epoch_losses(join_curves(curves), watches_validation=self._watches_validation)


def epoch_losses(points: list[MetricPoint], *, watches_validation: bool) -> dict[int, float]:
    """Return the loss at the end of each epoch: of the validation data where it is watched, else of training.

    Args:
        points: A trial's curve.
        watches_validation: Whether there is validation data. An epoch that was not evaluated is left out.
    """
    losses: dict[int, float] = {}
    for point in points:
        if watches_validation:
            if point.validation_loss is not None and point.epoch > 0:
                losses[point.epoch] = point.validation_loss
        elif point.end_of_epoch and point.train_loss is not None:
            losses[point.epoch] = point.train_loss
    return losses
