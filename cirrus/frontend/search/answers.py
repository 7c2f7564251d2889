"""What a search answers while it works and afterwards, and what may be asked of it meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sklearn.base import BaseEstimator, MetaEstimatorMixin

from cirrus.client_backend.overview import Overview
from cirrus.client_backend.search_folder import SearchRequest, SearchState, Trial
from cirrus.config import as_whole_number
from cirrus.errors import ConfigError, RunError
from cirrus.frontend.base import Estimator
from cirrus.frontend.search.driver import Driver
from cirrus.frontend.search.jobs import TrainingJobs
from cirrus.frontend.search.results import Row, SearchResults
from cirrus.frontend.search.scorers import choice_name, is_several, metric_names
from cirrus.frontend.search.spaces import Params, usable_params

DASHBOARD_ENTRY_POINTS = "cirrus.dashboard"


class SearchAnswers(MetaEstimatorMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """The half of a search that others look at; :class:`~cirrus.frontend.search.base.Search` begins it."""

    refit: bool | str | Callable[[SearchResults], int]
    scoring: Any
    _driver: Driver
    _jobs: TrainingJobs
    _root: str
    """Where its runs are kept."""
    _best_held: tuple[str, Estimator] | None = None
    """The run and the estimator of the best model, once somebody has asked for it."""

    @property
    def status(self) -> SearchState:
        """Where the search is, with all its trials."""
        return self._work.state

    @property
    def cost(self) -> float:
        """Dollars so far, over all trials."""
        return self._work.state.cost

    @property
    def results_(self) -> SearchResults:
        """All trials as a table, as far as they are."""
        return SearchResults(self._fitted_state, list(metric_names(self.scoring)))

    def top(self, n: int) -> list[Row]:
        """Return the rows of the best ``n`` trials so far, best first."""
        return self.results_.top(n)

    def kill(self, trial: int) -> None:
        """End a trial now; returns when its workers are gone. The others go on.

        Args:
            trial: Its index, as in ``results_``.

        Raises:
            RunError: There is no such trial, or the search is not at work.
        """
        self._work.ask(SearchRequest(action="kill", trial=trial))

    def kill_all(self) -> None:
        """End all trials now, those that wait too; returns when their workers are gone.

        Raises:
            RunError: The search is not at work.
        """
        self._work.ask(SearchRequest(action="kill_all"))

    def stop(self) -> None:
        """Begin nothing more, and have the trials at work finish where they are; :meth:`wait` for that.

        Raises:
            RunError: The search is not at work.
        """
        self._work.ask(SearchRequest(action="stop"))

    def resume_trial(self, trial: int) -> None:
        """Go on with a trial that was killed or pruned, from its newest snapshot, to its end.

        Args:
            trial: Its index.

        Raises:
            RunError: It was not cut short, or the search is not at work.
        """
        self._work.ask(SearchRequest(action="resume", trial=trial))

    def curve(self, trial: int) -> list[Any]:
        """Return the points (:class:`cirrus.MetricPoint`) of a trial, over all its runs.

        Args:
            trial: Its index.
        """
        return Overview(self._root).trial_points(self._fitted_state.trials[trial])

    def serve_dashboard(self, port: int = 8050) -> Any:
        """Serve the dashboard on loopback, in the background; needs the extra ``dashboard``.

        It shows this search and all else below the same root.

        Args:
            port: Where to listen.

        Raises:
            ConfigError: No dashboard is installed.
        """
        from importlib.metadata import entry_points

        for entry in entry_points(group=DASHBOARD_ENTRY_POINTS, name="serve"):
            return entry.load()(self._root, port=port)
        raise ConfigError("dashboard", 'is not installed: pip install "cirrus-ml[dashboard]"')

    @property
    def best_index_(self) -> int:
        """The best trial's index."""
        return self._best.index

    @property
    def best_params_(self) -> Params:
        """The best trial's hyperparameters."""
        return usable_params(self._best.params)

    @property
    def best_score_(self) -> float:
        """The best trial's score, higher is better; as in scikit-learn none where a function chose."""
        if choice_name(self.refit) is not None:
            raise AttributeError("best_score_: refit is a function, which has chosen by whatever it wanted")
        assert self._best.score is not None
        return self._best.score

    @property
    def best_estimator_(self) -> Estimator:
        """The best trial's fitted estimator."""
        if not self.refit:
            raise AttributeError("best_estimator_: the search has refit=False")
        best = self._best
        assert best.best_run is not None
        held = self._best_held
        if held is None or held[0] != best.best_run:
            estimator = self._jobs.fitted(best.best_run)
            params = self._jobs.estimator(best).get_params(deep=False)
            estimator.set_params(**{name: params[name] for name in ("backend", "random_state", "progress")})
            if (names := getattr(self, "_feature_names", None)) is not None:
                estimator.feature_names_in_ = names
            held = (best.best_run, estimator)
            self._best_held = held
        return held[1]

    def predict(self, X: Any) -> Any:
        """Return the best estimator's predictions."""
        return self.best_estimator_.predict(X)

    def predict_proba(self, X: Any) -> Any:
        """Return the best estimator's probabilities."""
        return self.best_estimator_.predict_proba(X)

    def decision_function(self, X: Any) -> Any:
        """Return the best estimator's decisions."""
        return self.best_estimator_.decision_function(X)

    def score(self, X: Any, y: Any = None) -> float:
        """Return the best estimator's own score."""
        return float(self.best_estimator_.score(X, y))

    # What there is to answer from.

    @property
    def _work(self) -> Driver:
        if not hasattr(self, "_driver"):
            raise RunError("the search has not been started: call fit or start")
        return self._driver

    @property
    def _is_at_work(self) -> bool:
        return hasattr(self, "_driver") and not self._driver.ended

    @property
    def _fitted_state(self) -> SearchState:
        if not hasattr(self, "_driver"):
            raise AttributeError("the search has not been started: call fit or start")
        return self._driver.state

    @property
    def _best(self) -> Trial:
        if callable(self.refit):
            return self._chosen(self.refit)
        if not self.refit and is_several(self.scoring):
            raise AttributeError("with several metrics and refit=False, none says which trial is the best")
        best = self._fitted_state.best
        if best is None or not best.status.ended:
            raise AttributeError("no trial has ended with a model yet")
        return best

    def _chosen(self, choose: Callable[[SearchResults], int]) -> Trial:
        """Return the trial that the user's function takes for the best.

        Raises:
            AttributeError: No trial has ended with a model yet.
            ConfigError: The function names none that has.
        """
        trials = self._fitted_state.trials
        if not any(_has_model(trial) for trial in trials):
            raise AttributeError("no trial has ended with a model yet")
        index = as_whole_number(choose(self.results_))
        if index is None or not 0 <= index < len(trials) or not _has_model(trials[index]):
            raise ConfigError("refit", "the function must return the index of a trial with a model")
        return trials[index]

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_driver") and self._driver.state.best is not None


def _has_model(trial: Trial) -> bool:
    return trial.status.ended and trial.best_run is not None
