"""Searches whose trials are known beforehand: a grid, or random draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from cirrus.client_backend.search_folder import SearchConfig, Trial
from cirrus.frontend.base import Estimator
from cirrus.frontend.search.base import Search
from cirrus.frontend.search.results import SearchResults
from cirrus.frontend.search.schedules import schedule_from_plain
from cirrus.frontend.search.scorers import restored_scoring
from cirrus.frontend.search.spaces import Params, grid_candidates, random_candidates, space_in_words


class GridSearch(Search):
    """Tries every combination of some values of hyperparameters, each as a run of its own.

    Args:
        estimator: What to search over.
        param_grid: Parameter names and the values to try, as for scikit-learn's ``GridSearchCV``: a dict, or
            a list of dicts.
        **options: As for :class:`Search`: ``max_concurrent``, ``max_workers``, ``pruner``, ``scoring``,
            ``refit``, ``max_seconds``, ``max_cost``, ``search_id``, ``progress``.

    Example:
        >>> search = cirrus.GridSearch(
        ...     cirrus.LogisticRegression(), {"learning_rate": [0.03, 0.1], "l1": [0, 1]}, pruner="asha"
        ... )
        >>> search.fit(train, validation=test).best_params_  # doctest: +SKIP
        {'l1': 1, 'learning_rate': 0.1}
    """

    _method = "grid"

    def __init__(
        self,
        estimator: Estimator,
        param_grid: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Sequence[Any]]],
        *,
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
        self.param_grid = param_grid

    def _candidates(self) -> list[Params]:
        return grid_candidates(self.param_grid)

    def _space(self) -> Mapping[str, Any]:
        return space_in_words(self.param_grid)

    @classmethod
    def _reopened(cls, estimator: Estimator, config: SearchConfig, trials: Sequence[Trial]) -> Self:
        return cls(
            estimator,
            [{name: [value] for name, value in trial.params.items()} for trial in trials],
            pruner=schedule_from_plain(config.pruner),
            scoring=restored_scoring(config),
            refit=config.ranked_by or config.refit,
        )


class RandomSearch(Search):
    """Tries random draws of hyperparameters, each as a run of its own.

    Args:
        estimator: What to search over.
        distributions: Parameter names and where to draw from, as for scikit-learn's ``RandomizedSearchCV``:
            distributions of scipy.stats, or lists of values.
        n_iter: Number of draws.
        random_state: Seed of the draws.
        **options: As for :class:`Search`: ``max_concurrent``, ``max_workers``, ``pruner``, ``scoring``,
            ``refit``, ``max_seconds``, ``max_cost``, ``search_id``, ``progress``.

    Example:
        >>> from scipy.stats import loguniform
        >>> rates = {"learning_rate": loguniform(0.01, 1)}
        >>> search = cirrus.RandomSearch(cirrus.LogisticRegression(), rates, n_iter=20, pruner="median")
    """

    _method = "random"

    def __init__(
        self,
        estimator: Estimator,
        distributions: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        *,
        n_iter: int = 10,
        random_state: Any = None,
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
        self.distributions = distributions
        self.n_iter = n_iter
        self.random_state = random_state

    def _candidates(self) -> list[Params]:
        return random_candidates(self.distributions, self.n_iter, self.random_state)

    def _space(self) -> Mapping[str, Any]:
        return {**space_in_words(self.distributions)}

    @classmethod
    def _reopened(cls, estimator: Estimator, config: SearchConfig, trials: Sequence[Trial]) -> Self:
        return cls(
            estimator,
            [{name: [value] for name, value in trial.params.items()} for trial in trials],
            n_iter=max(1, len(trials)),
            pruner=schedule_from_plain(config.pruner),
            scoring=restored_scoring(config),
            refit=config.ranked_by or config.refit,
        )
