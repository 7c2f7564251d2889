"""How a trial is worked on: an estimator with its hyperparameters, started on data that all trials share."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from cirrus.client_backend.base import Backend
from cirrus.client_backend.runs import open_run, run_url
from cirrus.client_backend.search_folder import Trial
from cirrus.config import RunConfig, as_whole_number
from cirrus.errors import NotFoundError
from cirrus.frontend.base import Estimator
from cirrus.frontend.datasets import Dataset
from cirrus.frontend.estimators import finish_job
from cirrus.frontend.search.roles import LiveRun, Worth
from cirrus.frontend.search.schedules import Job
from cirrus.frontend.search.spaces import usable_params
from cirrus.frontend.training import MODEL_PREFIX
from cirrus.metrics import MetricPoint, RunStatus
from cirrus.run_folder import MetricsReader

#: Scores a fitted estimator on validation data; a ``score`` of None: minus the loss ranks it.
Scorer = Callable[[Estimator, Dataset], Worth]


class _Attached:
    """A run that was interrupted or killed, and goes on."""

    def __init__(self, run: Any) -> None:
        self.run = run

    def close(self) -> None:
        """End it if it has not ended."""
        self.run.close()


class TrainingJobs:
    """Starts trials as runs of one backend.

    Args:
        kind: Class of the estimator.
        params: Its parameters that all trials share.
        backend: Where runs work.
        search_id: The search.
        train: What is trained on; None where no trial is left to start.
        validation: What losses and scores come from; None: the training loss.
        scorer: None: minus the loss.
    """

    def __init__(
        self,
        kind: type[Estimator],
        params: Mapping[str, Any],
        backend: Backend,
        search_id: str,
        train: Dataset | None,
        validation: Dataset | None,
        scorer: Scorer | None,
    ) -> None:
        self._kind = kind
        self._params = dict(params)
        self._backend = backend
        self._search_id = search_id
        self._train = train
        self._validation = validation
        self._scorer = scorer

    def estimator(self, trial: Trial, **params: Any) -> Estimator:
        """Return the unfitted estimator of a trial."""
        return self._kind(**{**self._params, **usable_params(trial.params), **params})

    def start(self, trial: Trial, run_id: str, job: Job, resume_url: str | None) -> LiveRun:
        """See :class:`~cirrus.frontend.search.roles.Jobs`."""

        def revise(config: RunConfig) -> RunConfig:
            return dataclasses.replace(
                limited(config, job.fraction),
                run_id=run_id,
                search=self._search_id,
                trial=trial.index,
                hyperparameters=trial.params,
            )

        backend = self._backend.revising(revise)
        estimator = self.estimator(trial, backend=backend, progress=None, resume_from=resume_url)
        return estimator.start(self._train, validation=self._validation)

    def attach(self, run_id: str) -> LiveRun:
        """See :class:`~cirrus.frontend.search.roles.Jobs`."""
        return _Attached(self._backend.attach(run_id, killed=True))

    def find(self, run_id: str) -> RunStatus | None:
        """See :class:`~cirrus.frontend.search.roles.Jobs`."""
        try:
            return open_run(self._backend.root, run_id).status
        except NotFoundError:
            return None

    def model_url(self, run_id: str) -> str:
        """See :class:`~cirrus.frontend.search.roles.Jobs`."""
        return f"{run_url(self._backend.root, run_id)}/{MODEL_PREFIX}"

    def points(self, run_id: str) -> list[MetricPoint]:
        """See :class:`~cirrus.frontend.search.roles.Jobs`."""
        try:
            return MetricsReader(open_run(self._backend.root, run_id).folder).read()
        except NotFoundError:
            return []

    def n_workers(self, trial: Trial) -> int:
        """See :class:`~cirrus.frontend.search.roles.Jobs`."""
        n_workers = as_whole_number(self.estimator(trial).get_params(deep=False)["n_workers"])
        return 1 if n_workers is None else n_workers  # what is none fails when it is started

    def fitted(self, run_id: str) -> Estimator:
        """Return the estimator that a finished run has fitted.

        Raises:
            RunError: It has not finished.
            CorruptDataError: Its model cannot be read.
        """
        run = open_run(self._backend.root, run_id)
        return finish_job(run, run.status)

    def score(self, run_id: str, status: RunStatus, loss: float | None) -> Worth:
        """See :class:`~cirrus.frontend.search.roles.Jobs`."""
        by_loss = Worth(None if loss is None or math.isnan(loss) else -loss, {})
        if self._scorer is None or self._validation is None:
            return by_loss
        found = self._scorer(self.fitted(run_id), self._validation)
        return found if found.score is not None else by_loss._replace(scores=found.scores)


def limited(config: RunConfig, fraction: float | None) -> RunConfig:
    """Return a run's config with an end after a part of its whole training.

    Args:
        config: The run.
        fraction: Of all its updates; None: no end but its own.
    """
    if fraction is None:
        return config
    updates = max(1, round(fraction * config.stop.epochs * config.steps_per_epoch))
    return dataclasses.replace(config, stop=dataclasses.replace(config.stop, max_updates=updates))
