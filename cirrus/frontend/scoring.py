"""How good a model is on a dataset, beside the model that knows no features: base rate or mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_auc_score

from cirrus.errors import DataError
from cirrus.frontend.datasets import Dataset
from cirrus.frontend.prediction import ScoreKind, ScoringEstimator, chosen_classes, probabilities

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measure of how good predictions are."""

    name: str
    value: float | None
    """None where it is not defined: AUC of one class."""
    base: float
    """The same of a model that knows no features."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Weighted means over the rows of a dataset."""

    n_rows: int
    base: str
    """What the model that knows no features is called."""
    figures: tuple[Figure, ...]


def score_dataset(estimator: ScoringEstimator, dataset: Dataset) -> Scores:
    """Return how good a fitted estimator is on a dataset; memory grows by some 25 bytes a row and score.

    Raises:
        DataError: The dataset does not fit the model.
    """
    scores, targets, weights = [], [], []
    for block, block_scores, target in estimator.labelled_decisions(dataset):
        scores.append(block_scores)
        targets.append(target)
        weights.append(np.ones(block.n_rows) if block.weights is None else block.weights.astype(np.float64))
    if not scores:
        raise DataError(f"{dataset.url}: has no rows to score")
    return score_rows(
        np.concatenate(scores), np.concatenate(targets), np.concatenate(weights), estimator.score_kind
    )


def score_rows(scores: Array, targets: Array, weights: Array, kind: ScoreKind) -> Scores:
    """Return how good scores are.

    Args:
        scores: float64 of shape (n_rows,) or (n_rows, n_classes).
        targets: Positions of classes, or numbers: shape (n_rows,).
        weights: Weights of the rows, shape (n_rows,).
        kind: What scores are.
    """
    shares = weights / weights.sum()
    if kind == "numbers":
        return Scores(n_rows=len(scores), base="mean", figures=_number_figures(scores, targets, shares))
    n_classes = 2 if scores.ndim == 1 else scores.shape[1]
    rates = np.bincount(targets, weights=shares, minlength=n_classes)
    figures = []
    if kind == "log odds":
        present = rates[rates > 0]
        chances = probabilities(scores)[np.arange(len(scores)), targets]
        logarithms = np.log(np.maximum(chances, np.finfo(np.float64).tiny))
        figures.append(
            Figure(
                name="log loss",
                value=float(-shares @ logarithms),
                base=float(-present @ np.log(present)),
            )
        )
    if scores.ndim == 1:
        one_class = bool((rates == 0).any())
        auc = None if one_class else float(roc_auc_score(targets, scores, sample_weight=weights))
        figures.append(Figure(name="AUC", value=auc, base=0.5))
    right = float(shares @ (chosen_classes(scores) == targets))
    figures.append(Figure(name="accuracy", value=right, base=float(rates.max())))
    return Scores(n_rows=len(scores), base="base rate", figures=tuple(figures))


def _number_figures(scores: Array, targets: Array, shares: Array) -> tuple[Figure, ...]:
    mean = float(shares @ targets)
    variance = float(shares @ np.square(targets - mean))
    error = float(shares @ np.square(targets - scores))
    absolute = float(shares @ np.abs(targets - scores))
    return (
        Figure(name="RMSE", value=error**0.5, base=variance**0.5),
        Figure(name="mean absolute error", value=absolute, base=float(shares @ np.abs(targets - mean))),
        Figure(name="R2", value=1.0 - error / variance if variance > 0 else None, base=0.0),
    )


def scores_table(scores: Scores) -> list[str]:
    """Return lines that show scores beside those of a model that knows no features."""
    lines = [f"{'held-out rows':<22}{scores.n_rows:>10,}", f"{'':<22}{'model':>10}{scores.base:>12}"]
    for figure in scores.figures:
        value = "-" if figure.value is None else f"{figure.value:.4f}"
        lines.append(f"{figure.name:<22}{value:>10}{figure.base:>12.4f}")
    return lines
