"""Schedules: which trial works next, and which is given up. Pure decisions over what trials have shown.

A trial is worked on in *rungs*: runs that each go on from the model of the one before. All but those of ASHA
have one rung, the whole training.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from cirrus.client_backend.search_folder import Trial, TrialStatus
from cirrus.config import whole_number
from cirrus.errors import ConfigError

#: Loss at the end of each epoch, by epoch.
Curve = Mapping[int, float]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to have a trial do next."""

    trial: int
    rung: int = 0
    fraction: float | None = None
    """Up to which part of its whole training it works; None: to the end."""


class Schedule(abc.ABC):
    """Decides what trials do."""

    #: True when :meth:`gives_up` looks at curves.
    needs_curves = False

    @abc.abstractmethod
    def next_job(self, trials: Sequence[Trial], *, more_to_come: bool = False) -> Job | None:
        """Return what a free place should be used for; None: nothing, until another trial has moved on.

        Args:
            trials: All trials there are.
            more_to_come: True when there will be trials that are not known yet.
        """

    def ends_at(self, trial: Trial) -> TrialStatus:
        """Return what a trial is that has completed its rung, short of its whole training."""
        return TrialStatus.PRUNED

    def gives_up(self, trial: int, curves: Mapping[int, Curve]) -> bool:
        """Tell whether a trial at work should be given up.

        Args:
            trial: Its index.
            curves: Of all trials, it included, as far as they are known.
        """
        return False

    @abc.abstractmethod
    def to_plain(self) -> dict[str, Any]:
        """Return the schedule by name and parameters, as JSON; none for no pruning."""


class WholeSchedule(Schedule):
    """Every trial is trained to its end, in order."""

    def next_job(self, trials: Sequence[Trial], *, more_to_come: bool = False) -> Job | None:
        """See :meth:`Schedule.next_job`."""
        for trial in trials:
            if trial.status is TrialStatus.QUEUED:
                return Job(trial=trial.index, rung=trial.rung)
        return None

    def to_plain(self) -> dict[str, Any]:
        """See :meth:`Schedule.to_plain`."""
        return {}


class MedianPruner(WholeSchedule):
    """Gives up trials that do worse than half of the others did at the same time.

    A trial is given up after an epoch if its best loss so far is above the median of what the others had lost
    after as many epochs (the median stopping rule of Golovin et al., "Google Vizier", 2017).

    Args:
        min_epochs: No trial is given up before it has completed so many.
        min_trials: Nor before so many others have come as far.
    """

    needs_curves = True

    def __init__(self, *, min_epochs: int = 1, min_trials: int = 3) -> None:
        self.min_epochs = whole_number(min_epochs, "min_epochs")
        self.min_trials = whole_number(min_trials, "min_trials")

    def __repr__(self) -> str:
        return f"MedianPruner(min_epochs={self.min_epochs}, min_trials={self.min_trials})"

    def gives_up(self, trial: int, curves: Mapping[int, Curve]) -> bool:
        """See :meth:`Schedule.gives_up`."""
        own = curves.get(trial, {})
        epoch = max(own, default=0)
        if epoch < self.min_epochs:
            return False
        others = [
            _comparable(curve[epoch]) for index, curve in curves.items() if index != trial and epoch in curve
        ]
        if len(others) < self.min_trials:
            return False
        return min(_comparable(loss) for loss in own.values()) > median(others)

    def to_plain(self) -> dict[str, Any]:
        """See :meth:`Schedule.to_plain`."""
        return {"name": "median", "min_epochs": self.min_epochs, "min_trials": self.min_trials}


class AshaPruner(Schedule):
    """Asynchronous successive halving: all trials a little, the best of them more (Li et al., MLSys 2020).

    Trials are trained to the first *rung*, a small part of their whole training. Whenever a place is free,
    the best trial is promoted that is among the best ``1 / reduction_factor`` of all that have completed its
    rung, from the highest rung on; it goes on from its model, to the next rung. If there is none, a new trial
    begins. When all have settled, the best of a rung is promoted though few completed it, so that one trial
    at least is trained to its end.

    Args:
        reduction_factor: One in so many is promoted.
        min_fraction: The first rung, as a part of the whole training; each is ``reduction_factor`` times the
            one below.
    """

    def __init__(self, *, reduction_factor: int = 3, min_fraction: float = 1 / 27) -> None:
        reduction_factor = whole_number(reduction_factor, "reduction_factor", least=2)
        if not isinstance(min_fraction, (int, float)) or not 0 < min_fraction < 1:
            raise ConfigError("min_fraction", f"must be above 0 and below 1, got {min_fraction!r}")
        self.reduction_factor = reduction_factor
        self.min_fraction = min_fraction
        # Not by floor(): a rung of 1/27 is three steps below 1, and not 2.9999.
        n_steps = max(1, round(math.log(1 / min_fraction, reduction_factor)))
        self.fractions = tuple(float(reduction_factor) ** (step - n_steps) for step in range(n_steps + 1))
        """Of the whole training, by rung; the last is 1."""

    def __repr__(self) -> str:
        return f"AshaPruner(reduction_factor={self.reduction_factor}, min_fraction={self.min_fraction:.4g})"

    def next_job(self, trials: Sequence[Trial], *, more_to_come: bool = False) -> Job | None:
        """See :meth:`Schedule.next_job`."""
        queued = [trial for trial in trials if trial.status is TrialStatus.QUEUED]
        for trial in queued:  # one that somebody resumed goes first, and to its end
            if trial.runs:
                return self._job(trial.index, trial.rung)
        below_is_settled = not queued and not more_to_come
        promoted = None
        for rung in range(len(self.fractions) - 1):
            candidate = self._promotable(trials, rung, is_closed=below_is_settled)
            promoted = candidate or promoted
            at_work = any(t.status is TrialStatus.RUNNING and t.rung == rung for t in trials)
            below_is_settled = below_is_settled and candidate is None and not at_work
        if promoted is not None:
            return self._job(promoted.index, promoted.rung + 1)
        return self._job(queued[0].index, 0) if queued else None

    def _job(self, trial: int, rung: int) -> Job:
        rung = min(rung, len(self.fractions) - 1)
        return Job(
            trial=trial,
            rung=rung,
            fraction=None if rung == len(self.fractions) - 1 else self.fractions[rung],
        )

    def _promotable(self, trials: Sequence[Trial], rung: int, *, is_closed: bool) -> Trial | None:
        """Return the best trial that waits at a rung and deserves the next one.

        Args:
            trials: All trials.
            rung: Which.
            is_closed: True when no trial will come to the rung any more, but those at work there.
        """
        completed = sorted(
            (trial for trial in trials if len(trial.losses) > rung),
            key=lambda trial: (_comparable(trial.losses[rung]), trial.index),
        )
        at_work = any(t.status is TrialStatus.RUNNING and t.rung == rung for t in trials)
        places = len(completed) // self.reduction_factor
        if is_closed and not at_work:
            places = max(1, places)
        for trial in completed[:places]:
            if trial.status is TrialStatus.PAUSED and trial.rung == rung and _has_loss(trial, rung):
                return trial
        return None

    def ends_at(self, trial: Trial) -> TrialStatus:
        """See :meth:`Schedule.ends_at`."""
        return TrialStatus.PAUSED

    def to_plain(self) -> dict[str, Any]:
        """See :meth:`Schedule.to_plain`."""
        return {
            "name": "asha",
            "reduction_factor": self.reduction_factor,
            "min_fraction": self.min_fraction,
        }


def resolve_pruner(pruner: Schedule | str | None) -> Schedule:
    """Return the schedule that a user's parameter names.

    Args:
        pruner: None, ``"median"``, ``"asha"``, or an object.

    Raises:
        ConfigError: It is none of these.
    """
    if pruner is None:
        return WholeSchedule()
    if isinstance(pruner, Schedule):
        return pruner
    if pruner == "median":
        return MedianPruner()
    if pruner == "asha":
        return AshaPruner()
    raise ConfigError(
        "pruner", f'must be None, "median", "asha", cirrus.MedianPruner or cirrus.AshaPruner, got {pruner!r}'
    )


def schedule_from_plain(plain: Mapping[str, Any]) -> Schedule:
    """Undo :meth:`Schedule.to_plain`.

    Raises:
        ConfigError: It is of no schedule that is known here.
    """
    kinds: dict[str, type[Schedule]] = {"median": MedianPruner, "asha": AshaPruner}
    params = dict(plain)
    if not params:
        return WholeSchedule()
    kind = kinds.get(str(params.pop("name", None)))
    if kind is None:
        raise ConfigError("pruner", f"unknown pruner {dict(plain)!r}")
    try:
        return kind(**params)
    except TypeError as error:
        raise ConfigError("pruner", f"{dict(plain)!r}: {error}") from error


def _comparable(loss: float | None) -> float:
    """Return a loss that can be compared: training that went astray is worse than all."""
    return math.inf if loss is None or math.isnan(loss) else loss


def _has_loss(trial: Trial, rung: int) -> bool:
    return math.isfinite(_comparable(trial.losses[rung]))
