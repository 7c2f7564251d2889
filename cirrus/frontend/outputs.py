"""What any estimator says of the rows of a dataset: columns to write, and how good it is on rows held out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from cirrus.errors import ConfigError
from cirrus.frontend.base import Estimator
from cirrus.frontend.clusters import KMeans
from cirrus.frontend.datasets import Dataset
from cirrus.frontend.prediction import ScoringEstimator
from cirrus.frontend.raw_rows import dataset_blocks
from cirrus.frontend.recommendation import MatrixFactorization
from cirrus.frontend.scoring import Figure, Scores, score_dataset, score_rows
from cirrus.frontend.topics import LatentDirichletAllocation

Array = npt.NDArray[Any]


def iter_columns(estimator: Estimator, dataset: Dataset) -> Iterator[dict[str, Array]]:
    """Yield what an estimator says of a dataset's rows, some at a time: names, and values of shape (n,).

    Raises:
        ConfigError: The estimator is of a kind that says nothing of rows.
        DataError: The dataset does not fit the model.
    """
    if isinstance(estimator, ScoringEstimator):
        for _, scores in estimator.iter_decisions(dataset):
            yield estimator.prediction_columns(scores)
    elif isinstance(estimator, MatrixFactorization):
        yield {"prediction": estimator.predict(dataset)}
    elif isinstance(estimator, KMeans):
        yield {"label": estimator.predict(dataset), "distance": estimator.transform(dataset).min(axis=1)}
    elif isinstance(estimator, LatentDirichletAllocation):
        shares = estimator.transform(dataset)
        topics = {f"topic_{number}": shares[:, number] for number in range(shares.shape[1])}
        yield {"label": shares.argmax(axis=1), **topics}
    else:
        raise ConfigError("model", f"{type(estimator).__name__} says nothing of rows")


def score_any(estimator: Estimator, dataset: Dataset) -> Scores:
    """Return how good an estimator is on a dataset, beside a model that knows no features.

    Raises:
        ConfigError: The estimator is of a kind that has no such figures.
        DataError: The dataset does not fit the model.
    """
    if isinstance(estimator, ScoringEstimator):
        return score_dataset(estimator, dataset)
    if isinstance(estimator, MatrixFactorization):
        predicted, ratings, weights = estimator.predict_dataset(dataset)
        weights = np.ones(len(ratings)) if weights is None else weights.astype(np.float64)
        return score_rows(predicted, ratings.astype(np.float64), weights, "numbers")
    if isinstance(estimator, KMeans):
        sums, squares = _sums(estimator, dataset)
        figure = Figure(
            name="mean squared distance",
            value=-estimator.score(dataset) / dataset.n_rows,
            base=squares / dataset.n_rows - float(np.square(sums / dataset.n_rows).sum()),
        )
        return Scores(n_rows=dataset.n_rows, base="mean", figures=(figure,))
    if isinstance(estimator, LatentDirichletAllocation):
        shares = estimator.components_.sum(axis=0) / estimator.components_.sum()
        counts, _ = _sums(estimator, dataset)
        base = float(np.exp(-(counts @ np.log(shares)) / counts.sum()))
        figure = Figure(name="perplexity", value=estimator.perplexity(dataset), base=base)
        return Scores(n_rows=dataset.n_rows, base="one topic", figures=(figure,))
    raise ConfigError("model", f"{type(estimator).__name__} has no figures to compare")


def _sums(estimator: Estimator, dataset: Dataset) -> tuple[Array, float]:
    """Return each column's sum over the rows as the model takes them, float64, and that of all squares."""
    sums, squares = np.zeros(estimator.n_features_in_), 0.0
    for block in dataset_blocks(estimator, dataset):
        _, ids, values = block.to_csr()
        np.add.at(sums, ids, values)
        squares += float(np.square(values, dtype=np.float64).sum())
    return sums, squares
