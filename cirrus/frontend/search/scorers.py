"""Scorers: scikit-learn's, over a dataset in an object store."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.metrics import get_scorer

from cirrus.errors import ConfigError
from cirrus.frontend.base import Estimator
from cirrus.frontend.datasets import Dataset
from cirrus.frontend.prediction import Classifier, ScoringEstimator
from cirrus.frontend.search.jobs import Scorer


def resolve_scorer(scoring: Any, estimator: Estimator) -> Scorer | None:
    """Return what ranks trials; None for the loss.

    Args:
        scoring: None, the name of one of scikit-learn's scorers, or a function of (estimator, X, y) whose
            ``X`` is a :class:`cirrus.Dataset`.
        estimator: What is searched over.

    Raises:
        ConfigError: It is none of these, or the estimator has no predictions to score.
    """
    if scoring is None:
        return None
    if not isinstance(estimator, ScoringEstimator):
        raise ConfigError("scoring", f"must be None: {type(estimator).__name__} is compared by its loss")
    if callable(scoring):
        return _over_dataset(scoring, takes_weights=False)
    try:
        scorer = get_scorer(scoring)
    except (ValueError, TypeError) as error:
        raise ConfigError(
            "scoring", f"must be a scikit-learn scorer's name or a function: {error}"
        ) from error
    return _over_dataset(scorer, takes_weights=True)


def scoring_name(scoring: Any) -> str | None:
    """Return what a search calls its scoring."""
    if scoring is None or isinstance(scoring, str):
        return scoring
    return str(getattr(scoring, "__name__", type(scoring).__name__))


def _over_dataset(scorer: Callable[..., Any], *, takes_weights: bool) -> Scorer:
    def score(estimator: Estimator, dataset: Dataset) -> float:
        targets, weights = _targets(estimator, dataset)
        if takes_weights and weights is not None:
            return float(scorer(estimator, dataset, targets, sample_weight=weights))
        return float(scorer(estimator, dataset, targets))

    return score


def _targets(estimator: Estimator, dataset: Dataset) -> tuple[Any, Any]:
    """Return the rows' labels or numbers as users know them, and their weights or None, shape (n_rows,)."""
    assert isinstance(estimator, ScoringEstimator)
    targets, weights = [], []
    for block, _, target in estimator.labelled_decisions(dataset):
        targets.append(target)
        if block.weights is not None:
            weights.append(block.weights.astype(np.float64))
    values = np.concatenate(targets) if targets else np.zeros(0)
    if isinstance(estimator, Classifier):
        values = estimator.classes_[values.astype(np.intp)]
    return values, np.concatenate(weights) if weights else None
