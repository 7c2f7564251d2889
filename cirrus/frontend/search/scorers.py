"""Scorers: scikit-learn's, over a dataset in an object store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.metrics import get_scorer

from cirrus.client_backend.search_folder import SearchConfig
from cirrus.errors import ConfigError
from cirrus.frontend.base import Estimator
from cirrus.frontend.datasets import Dataset
from cirrus.frontend.prediction import Classifier, ScoringEstimator
from cirrus.frontend.search.jobs import Scorer
from cirrus.frontend.search.roles import Worth


def resolve_scorer(scoring: Any, estimator: Estimator, refit: object = True) -> Scorer | None:
    """Return what scores trials; None for the loss alone.

    Args:
        scoring: None, the name of one of scikit-learn's scorers, or a function of (estimator, X, y) whose
            ``X`` is a :class:`cirrus.Dataset`; or several: a list of names, or a dict by name.
        estimator: What is searched over.
        refit: Which of several metrics ranks trials; False: the loss does.

    Raises:
        ConfigError: It is none of these, or the estimator has no predictions to score.
    """
    if scoring is None:
        return None
    if not isinstance(estimator, ScoringEstimator):
        raise ConfigError("scoring", f"must be None: {type(estimator).__name__} is compared by its loss")
    if not is_several(scoring):
        return _over_dataset({"": _metric(scoring)}, "", is_several=False)
    metrics = scoring if isinstance(scoring, Mapping) else {name: name for name in _checked_list(scoring)}
    if not metrics or not all(isinstance(name, str) for name in metrics):
        raise ConfigError("scoring", f"must name at least one metric, each by a text, got {scoring!r}")
    ranks_by = refit if isinstance(refit, str) else None
    return _over_dataset({name: _metric(m) for name, m in metrics.items()}, ranks_by, is_several=True)


def is_several(scoring: Any) -> bool:
    """Tell whether a scoring is of several metrics."""
    return isinstance(scoring, (list, tuple, Mapping))


def scoring_name(scoring: Any) -> str | None:
    """Return what a search calls its one metric; None for the loss or several."""
    if scoring is None or isinstance(scoring, str):
        return scoring
    if is_several(scoring):
        return None
    return str(getattr(scoring, "__name__", type(scoring).__name__))


def metric_names(scoring: Any) -> dict[str, str | None]:
    """Return several metrics by name: the scorers of scikit-learn's that they are, None for functions."""
    if not is_several(scoring):
        return {}
    metrics = scoring if isinstance(scoring, Mapping) else {name: name for name in _checked_list(scoring)}
    return {name: metric if isinstance(metric, str) else None for name, metric in metrics.items()}


def holds_functions(scoring: Any) -> bool:
    """Tell whether a scoring holds what no file can."""
    return callable(scoring) or None in metric_names(scoring).values()


def restored_scoring(config: SearchConfig) -> Any:
    """Return the scoring that a search was begun with; functions are None in it."""
    return dict(config.metrics) or config.scoring


def check_same_scoring(scoring: Any, config: SearchConfig) -> None:
    """Check that a search goes on with the scoring that it was begun with.

    Raises:
        ConfigError: It is another one, or functions are missing.
    """
    missing = [name for name, metric in config.metrics.items() if metric is None]
    if missing and scoring == restored_scoring(config):
        raise ConfigError(
            "scoring",
            f"no file holds the functions {', '.join(missing)}: a program has to give them anew, as scoring",
        )
    if (scoring_name(scoring), metric_names(scoring)) != (config.scoring, config.metrics):
        begun = restored_scoring(config)
        raise ConfigError("scoring", f"is another one than the search was begun with: {begun!r}")


def choice_name(refit: Any) -> str | None:
    """Return what the function that chooses the best trial is called; None where there is none."""
    return str(getattr(refit, "__name__", type(refit).__name__)) if callable(refit) else None


def check_same_choice(refit: Any, config: SearchConfig) -> None:
    """Check that the function which chose the best trial of a search is given anew.

    Raises:
        ConfigError: It is another one, or missing.
    """
    if choice_name(refit) != config.chosen_by:
        raise ConfigError(
            "refit",
            f"no file holds the function {config.chosen_by}: a program has to give it anew, as refit",
        )


def _checked_list(scoring: Sequence[Any]) -> Sequence[str]:
    if not all(isinstance(name, str) for name in scoring):
        raise ConfigError("scoring", f"a list must hold names; a dict names functions; got {scoring!r}")
    if len(set(scoring)) != len(scoring):
        raise ConfigError("scoring", f"names must be unique, got {scoring!r}")
    return scoring


def _metric(scoring: Any) -> tuple[Callable[..., Any], bool]:
    """Return a function of (estimator, X, y), and whether it takes weights."""
    if callable(scoring):
        return scoring, False
    if not isinstance(scoring, str):
        raise ConfigError("scoring", f"must be a scikit-learn scorer's name or a function, got {scoring!r}")
    try:
        return get_scorer(scoring), True
    except ValueError as error:
        raise ConfigError(
            "scoring", f"must be a scikit-learn scorer's name or a function: {error}"
        ) from error


def _over_dataset(
    metrics: Mapping[str, tuple[Callable[..., Any], bool]], ranks_by: str | None, *, is_several: bool
) -> Scorer:
    def score(estimator: Estimator, dataset: Dataset) -> Worth:
        assert isinstance(estimator, ScoringEstimator)
        knowing, targets, weights = _read_once(estimator, dataset)
        found = {}
        for name, (metric, takes_weights) in metrics.items():
            weighted = {} if weights is None or not takes_weights else {"sample_weight": weights}
            found[name] = float(metric(knowing, dataset, targets, **weighted))
        return Worth(None if ranks_by is None else found[ranks_by], found if is_several else {})

    return score


def _read_once(estimator: ScoringEstimator, dataset: Dataset) -> tuple[ScoringEstimator, Any, Any]:
    """Go over a dataset once, for all metrics.

    Returns:
        The estimator, which knows its predictions; the rows' labels or numbers as users know them; their
        weights or None, shape (n_rows,).
    """
    decisions, targets, weights = [], [], []
    for block, scores, target in estimator.labelled_decisions(dataset):
        decisions.append(scores)
        targets.append(target)
        if block.weights is not None:
            weights.append(block.weights.astype(np.float64))
    values = np.concatenate(targets) if targets else np.zeros(0)
    if isinstance(estimator, Classifier):
        values = estimator.classes_[values.astype(np.intp)]
    if decisions:
        estimator = estimator.with_scores(dataset, np.concatenate(decisions))
    return estimator, values, np.concatenate(weights) if weights else None
