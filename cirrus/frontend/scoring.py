"""How good a model is on a dataset, beside the model that knows only the base rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_auc_score

from cirrus.errors import DataError
from cirrus.frontend.datasets import Dataset
from cirrus.frontend.estimators import LogisticRegression

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Weighted means over the rows of a dataset."""

    n_rows: int
    log_loss: float
    accuracy: float
    auc: float | None
    """Area under the ROC curve; None where there is one class only."""
    base_rate: float
    """Share of the positive class."""
    base_log_loss: float
    """Log loss of predicting the base rate for every row."""

    @property
    def base_accuracy(self) -> float:
        """Accuracy of always predicting the more frequent class."""
        return max(self.base_rate, 1.0 - self.base_rate)


def score_dataset(estimator: LogisticRegression, dataset: Dataset) -> Scores:
    """Return how good a fitted classifier is on a dataset; memory grows by some 25 bytes a row.

    Raises:
        DataError: The dataset does not fit the model.
    """
    decisions, positive, weights = [], [], []
    for block, block_decisions, block_positive in estimator.labelled_decisions(dataset):
        decisions.append(block_decisions)
        positive.append(block_positive)
        weights.append(np.ones(block.n_rows) if block.weights is None else block.weights.astype(np.float64))
    if not decisions:
        raise DataError(f"{dataset.url}: has no rows to score")
    return score_decisions(np.concatenate(decisions), np.concatenate(positive), np.concatenate(weights))


def score_decisions(decisions: Array, positive: Array, weights: Array) -> Scores:
    """Return scores from log odds.

    Args:
        decisions: Log odds, float64 of shape (n_rows,).
        positive: True for rows of the positive class, shape (n_rows,).
        weights: Weights of the rows, shape (n_rows,).
    """
    total = float(weights.sum())
    margins = np.where(positive, decisions, -decisions)
    rate = float(weights @ positive) / total
    one_class = bool(positive.all() or not positive.any())
    return Scores(
        n_rows=len(decisions),
        log_loss=float(weights @ np.logaddexp(0.0, -margins)) / total,
        accuracy=float(weights @ ((decisions > 0) == positive)) / total,
        auc=None if one_class else float(roc_auc_score(positive, decisions, sample_weight=weights)),
        base_rate=rate,
        base_log_loss=_entropy(rate) + _entropy(1.0 - rate),
    )


def _entropy(probability: float) -> float:
    return -probability * float(np.log(probability)) if probability > 0 else 0.0


def scores_table(scores: Scores) -> list[str]:
    """Return lines that show scores beside those of the base rate."""
    auc = "     -" if scores.auc is None else f"{scores.auc:.4f}"
    return [
        f"{'held-out rows':<22}{scores.n_rows:>10,}",
        f"{'':<22}{'model':>10}{'base rate':>12}",
        f"{'log loss':<22}{scores.log_loss:>10.4f}{scores.base_log_loss:>12.4f}",
        f"{'AUC':<22}{auc:>10}{0.5:>12.4f}",
        f"{'accuracy':<22}{scores.accuracy:>10.4f}{scores.base_accuracy:>12.4f}",
    ]
