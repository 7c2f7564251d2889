"""The bridge to Optuna: its samplers say what to try, and its pruners what to give up, by ask and tell."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from cirrus.client_backend.search_folder import SearchConfig, Trial, TrialStatus
from cirrus.config import whole_number
from cirrus.errors import ConfigError
from cirrus.frontend.base import Estimator
from cirrus.frontend.search.base import Search
from cirrus.frontend.search.results import SearchResults
from cirrus.frontend.search.roles import TrialSource
from cirrus.frontend.search.schedules import Schedule, WholeSchedule
from cirrus.frontend.search.spaces import Params, plain_params, usable_params

if TYPE_CHECKING:
    import optuna


class OptunaSearch(Search):
    """Tries what a sampler of Optuna asks for, learning from the trials before; needs the extra ``optuna``.

    The study maximises the score; at the end of each epoch it hears minus the loss.

    Args:
        estimator: What to search over.
        space: Parameter names, and distributions of Optuna (``optuna.distributions``) or lists of values.
        n_trials: How many to try.
        sampler: A sampler of Optuna; None: its TPE sampler.
        random_state: Seed of that TPE sampler.
        pruner: A pruner of Optuna, or as for :class:`Search`.
        **options: As for :class:`Search`.

    Attributes:
        study_: The :class:`optuna.Study`.

    Example:
        >>> from optuna.distributions import FloatDistribution
        >>> space = {"learning_rate": FloatDistribution(0.01, 1, log=True), "l1": [0, 1]}
        >>> search = cirrus.OptunaSearch(cirrus.LogisticRegression(), space, n_trials=30)
    """

    _method = "optuna"
    _is_reopened_by_id = False
    study_: optuna.Study

    def __init__(
        self,
        estimator: Estimator,
        space: Mapping[str, Any],
        *,
        n_trials: int = 20,
        sampler: Any = None,
        random_state: int | None = None,
        max_concurrent: int = 4,
        max_workers: int | None = None,
        pruner: Any = None,
        scoring: Any = None,
        refit: bool | str | Callable[[SearchResults], int] = True,
        max_seconds: float | None = None,
        max_cost: float | None = None,
        search_id: str | None = None,
        progress: Any = None,
    ) -> None:
        super().__init__(
            estimator,
            max_concurrent=max_concurrent,
            max_workers=max_workers,
            pruner=pruner,
            scoring=scoring,
            refit=refit,
            max_seconds=max_seconds,
            max_cost=max_cost,
            search_id=search_id,
            progress=progress,
        )
        self.space = space
        self.n_trials = n_trials
        self.sampler = sampler
        self.random_state = random_state

    def _candidates(self) -> list[Params]:
        return []  # each is asked for when there is room for it

    def _names(self) -> set[str]:
        return set(self.space)

    def _space(self) -> Mapping[str, Any]:
        return {name: _in_words(values) for name, values in self.space.items()}

    def _own_schedule(self) -> Schedule:
        return WholeSchedule() if _is_optuna_pruner(self.pruner) else super()._own_schedule()

    def check(self) -> None:
        """See :meth:`Search.check`."""
        _import_optuna()
        whole_number(self.n_trials, "n_trials")
        self._distributions()
        super().check()

    def _distributions(self) -> dict[str, Any]:
        optuna = _import_optuna()
        if not isinstance(self.space, Mapping) or not self.space:
            raise ConfigError("space", "must be a dict of parameter names to distributions or lists")
        found: dict[str, Any] = {}
        for name, values in self.space.items():
            if isinstance(values, optuna.distributions.BaseDistribution):
                found[name] = values
            elif isinstance(values, Sequence) and not isinstance(values, str) and values:
                found[name] = optuna.distributions.CategoricalDistribution(list(values))
            else:
                raise ConfigError(
                    "space", f"{name} must be a distribution of Optuna or a list, got {values!r}"
                )
        return found

    def _source(self, trials: Sequence[Trial]) -> TrialSource:
        optuna = _import_optuna()
        sampler = self.sampler
        if sampler is None:
            sampler = optuna.samplers.TPESampler(seed=self.random_state)
        pruner = self.pruner if _is_optuna_pruner(self.pruner) else optuna.pruners.NopPruner()
        storage = optuna.storages.InMemoryStorage()
        with _silent(type(storage).__module__):  # it would tell of a study that its user did not make
            self.study_ = optuna.create_study(
                storage=storage, sampler=sampler, pruner=pruner, direction="maximize"
            )
        return _StudySource(self.study_, self._distributions(), self.n_trials, trials)

    @classmethod
    def _reopened(cls, estimator: Estimator, config: SearchConfig, trials: Sequence[Trial]) -> NoReturn:
        raise ConfigError(
            "search_id",
            f"no file holds {config.search_id}'s sampler: run its program again, with "
            f"search_id={config.search_id!r}",
        )


class _StudySource:
    """Trials from a study, in the driver's thread.

    Args:
        study: Maximises the score.
        distributions: By parameter name.
        n_trials: How many there shall be.
        trials: Those of a search that goes on.
    """

    def __init__(
        self, study: optuna.Study, distributions: dict[str, Any], n_trials: int, trials: Sequence[Trial]
    ) -> None:
        self._study = study
        self._distributions = distributions
        self._n_trials = n_trials
        self._asked: dict[int, optuna.Trial] = {}
        self._epochs: dict[int, int] = {}
        self._is_exhausted = False
        for trial in trials:
            self._take_up(trial)

    def _take_up(self, trial: Trial) -> None:
        """Tell the study of a trial that it has forgotten with its program."""
        # As if the sampler had asked for it: what has ended is told at once.
        self._study.enqueue_trial(usable_params(trial.params))
        self._asked[trial.index] = self._study.ask(self._distributions)
        if trial.status.ended:
            self.tell(trial)

    def ask(self, index: int) -> dict[str, Any] | None:
        """See :class:`~cirrus.frontend.search.roles.TrialSource`."""
        if index >= self._n_trials or self._is_exhausted:
            return None
        asked = self._study.ask(self._distributions)
        self._asked[index] = asked
        return plain_params(asked.params)

    def report(self, index: int, epoch: int, loss: float) -> bool:
        """See :class:`~cirrus.frontend.search.roles.TrialSource`."""
        asked = self._asked.get(index)
        if asked is None or epoch <= self._epochs.get(index, 0) or not math.isfinite(loss):
            return False
        self._epochs[index] = epoch
        asked.report(-loss, epoch)
        return bool(asked.should_prune())

    def tell(self, trial: Trial) -> None:
        """See :class:`~cirrus.frontend.search.roles.TrialSource`."""
        from optuna.trial import TrialState

        asked = self._asked.pop(trial.index, None)
        if asked is None:  # it was told before, and somebody resumed it
            return
        has_score = trial.score is not None and math.isfinite(trial.score)
        try:
            if trial.status is TrialStatus.FINISHED and has_score:
                self._study.tell(asked, trial.score)
            elif trial.status is TrialStatus.PRUNED:
                self._study.tell(asked, state=TrialState.PRUNED)
            else:
                self._study.tell(asked, state=TrialState.FAIL)
        except RuntimeError as error:
            # A sampler that has nothing left (a grid's) stops the study, which Optuna allows in optimize()
            # alone; what was told is stored all the same.
            if "Study.stop" not in str(error):
                raise
            self._is_exhausted = True


def _import_optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ConfigError("optuna", 'is not installed: pip install "cirrus-ml[optuna]"') from error
    return optuna


@contextlib.contextmanager
def _silent(logger_name: str) -> Iterator[None]:
    """Keep back what this thread would log there below a warning; no verbosity is changed."""
    logger, thread = logging.getLogger(logger_name), threading.get_ident()

    def is_told(record: logging.LogRecord) -> bool:
        return record.thread != thread or record.levelno >= logging.WARNING

    logger.addFilter(is_told)
    try:
        yield
    finally:
        logger.removeFilter(is_told)


def _is_optuna_pruner(pruner: Any) -> bool:
    return isinstance(pruner, _import_optuna().pruners.BasePruner)


def _in_words(values: Any) -> Any:
    return list(values) if isinstance(values, Sequence) and not isinstance(values, str) else repr(values)
