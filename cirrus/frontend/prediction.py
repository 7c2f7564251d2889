"""What estimators that score rows have in common, by the kind of their labels: classes or numbers."""

from __future__ import annotations

import abc
import copy
from collections.abc import Iterator
from typing import Any, Literal, Self

import numpy as np
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils.validation import check_is_fitted, validate_data

from cirrus.chunks import Block
from cirrus.errors import ConfigError, DataError
from cirrus.frontend import labels
from cirrus.frontend.base import Array, SgdEstimator
from cirrus.frontend.datasets import Dataset
from cirrus.frontend.intake import DTYPES, ClassTarget, TrainingData, Wanted, refuse_path
from cirrus.frontend.model_files import class_array, class_labels
from cirrus.frontend.raw_rows import dataset_blocks, prepare_array

#: What scores are: log odds (or logarithms of several probabilities), mere margins, or the labels themselves.
ScoreKind = Literal["log odds", "margins", "numbers"]


class ScoringEstimator(SgdEstimator):
    """An estimator whose model gives each row one score, or one for each class."""

    _known_scores: tuple[Dataset, Array] | None = None

    @property
    @abc.abstractmethod
    def score_kind(self) -> ScoreKind:
        """What the scores are."""

    @abc.abstractmethod
    def labelled_decisions(self, dataset: Dataset) -> Iterator[tuple[Block, Array, Array]]:
        """Yield each block of a dataset with its scores and its rows' labels, as the estimator has them.

        Yields:
            The block; float64 of shape (n_rows,) or (n_rows, n_classes); and shape (n_rows,): positions in
            ``classes_`` (intp), or numbers (float64).

        Raises:
            DataError: The dataset has more features, or other labels, than the model.
        """

    @abc.abstractmethod
    def prediction_columns(self, scores: Array) -> dict[str, Array]:
        """Return what to write of rows with these scores: column names and values of shape (n_rows,)."""

    @abc.abstractmethod
    def predict(self, X: Any) -> Array:
        """Return a label for each row of a Dataset, array or sparse matrix: shape (n_rows,)."""

    @abc.abstractmethod
    def _array_scores(self, X: Any) -> Array:
        """Return scores of an array or CSR matrix that was checked: (n_rows,) or (n_rows, n_scores)."""

    @abc.abstractmethod
    def _block_scores(self, block: Block) -> Array:
        """Return scores of a block's rows: (n_rows,) or (n_rows, n_scores)."""

    def with_scores(self, dataset: Dataset, scores: Array) -> Self:
        """Return a copy that need not read a dataset again to tell what it predicts for its rows.

        Args:
            dataset: The dataset; this object alone is recognised.
            scores: What :meth:`iter_decisions` gives for it, (n_rows,) or (n_rows, n_scores).
        """
        knowing = copy.copy(self)
        knowing._known_scores = (dataset, scores)
        return knowing

    def _scores(self, X: Any) -> Array:
        check_is_fitted(self)
        refuse_path("X", X, self.loader)
        if self._known_scores is not None and X is self._known_scores[0]:
            return self._known_scores[1]
        if isinstance(X, Dataset):
            parts = [scores for _, scores in self.iter_decisions(X)]
            return np.concatenate(parts)
        X = validate_data(self, prepare_array(self, X), accept_sparse="csr", dtype=DTYPES, reset=False)
        return self._array_scores(X)

    def iter_decisions(self, dataset: Dataset) -> Iterator[tuple[Block, Array]]:
        """Yield each block of a dataset with its rows' scores, in order.

        Yields:
            The block (a part of it where preprocessing makes it large), and float64 of shape (n_rows,), or
            (n_rows, n_classes) for more than two classes: log odds, margins or numbers, as the estimator has
            it.

        Raises:
            DataError: The dataset has more features than the model.
        """
        check_is_fitted(self)
        for block in dataset_blocks(self, dataset):
            yield block, self._block_scores(block)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


class Classifier(ClassifierMixin, ScoringEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """An estimator whose labels are classes."""

    classes_: Array
    class_weight: Any
    _several = True
    """Whether there may be more than two classes."""

    @property
    def score_kind(self) -> ScoreKind:
        """Margins: their sign, or the largest of them, says which class it is."""
        return "margins"

    def partial_fit(self, X: Any, y: Any = None, classes: Any = None, sample_weight: Any = None) -> Any:
        """Train for one epoch on some more data, going on from the model and optimizer state so far.

        Args:
            X: As in :meth:`fit`.
            y: As in :meth:`fit`.
            classes: All labels there will be; with arrays, needed in the first call.
            sample_weight: As in :meth:`fit`.

        Raises:
            ConfigError: A parameter is wrong.
            DataError: The data cannot be used, or ``classes`` are not those of the first call.
            RunError: The run failed, or somebody killed it.
        """
        if classes is not None:
            labels.check_labels(np.asarray(classes), "classes")
            given = np.unique(classes)
            if self._is_trained and not np.array_equal(given, self.classes_):
                raise DataError(
                    f"classes={given.tolist()} is not the same as on the last call to partial_fit"
                )
            labels.check_classes(given, "partial_fit", several=self._several)
        elif self._is_trained:
            given = self.classes_
        elif isinstance(X, Dataset):
            given = labels.dataset_classes(X.manifest, X.url, several=self._several)
        else:
            raise ConfigError("classes", "must be passed on the first call to partial_fit.")
        return self._train_an_epoch(X, y, sample_weight, given)

    def _wanted(self, classes: Array | None) -> Wanted:
        return Wanted(kind="classes", several=self._several, classes=classes)

    def _factors(self, data: TrainingData) -> list[float] | None:
        """Return what ``class_weight`` makes of the classes of some data."""
        target = class_target(data)
        factors = labels.class_factors(self.class_weight, target.classes, target.totals)
        return None if factors is None else list(factors)

    def _take_target(self, data: TrainingData) -> None:
        self.classes_ = class_target(data).classes

    def _check_target(self, data: TrainingData) -> None:
        found = class_target(data).classes
        if not np.array_equal(found, self.classes_):
            raise DataError(
                f"{data.url}: has classes {found.tolist()}, the model so far {self.classes_.tolist()}"
            )

    def _card_labels(self, data: TrainingData | None) -> tuple[Any, ...]:
        return class_labels(self.classes_ if data is None else class_target(data).classes)

    def _restore_labels(self, labels_: tuple[Any, ...]) -> None:
        self.classes_ = class_array(labels_)
        labels.check_classes(self.classes_, "model.json", several=self._several)

    def decision_function(self, X: Any) -> Array:
        """Return the score of ``classes_[1]``, or for more than two classes one for each of them.

        If the model was trained on a dataset that had been preprocessed, the same is done to ``X`` first,
        unless that is a Dataset which has had it already.

        Args:
            X: A Dataset, array or sparse matrix.

        Returns:
            float64 of shape (n_rows,) or (n_rows, n_classes).
        """
        return self._scores(X)

    def predict(self, X: Any) -> Array:
        """Return the likeliest label of each row, shape (n_rows,)."""
        chosen = chosen_classes(self._scores(X))
        predicted: Array = self.classes_[chosen]
        return predicted

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Return the accuracy.

        Args:
            X: A Dataset (which holds its labels and weights), array or sparse matrix.
            y: Labels, with arrays.
            sample_weight: Weights, with arrays.
        """
        if not isinstance(X, Dataset):
            return float(super().score(X, y, sample_weight=sample_weight))
        correct = total = 0.0
        for block, scores, numbers in self.labelled_decisions(X):
            weights = np.ones(block.n_rows) if block.weights is None else block.weights.astype(np.float64)
            correct += float(weights @ (chosen_classes(scores) == numbers))
            total += float(weights.sum())
        return correct / total

    def labelled_decisions(self, dataset: Dataset) -> Iterator[tuple[Block, Array, Array]]:
        """Yield each block with its scores and which class each row is of; see :class:`ScoringEstimator`."""
        check_is_fitted(self)
        codes = labels.dataset_codes(dataset.manifest, self.classes_, dataset.url)
        for block, scores in self.iter_decisions(dataset):
            numbers = np.zeros(block.n_rows, np.intp)
            for number, code in enumerate(codes):
                numbers[block.labels == np.float32(code)] = number
            yield block, scores, numbers

    def prediction_columns(self, scores: Array) -> dict[str, Array]:
        """Return the likeliest label, and its margin where there are two."""
        found = {"label": self.classes_[chosen_classes(scores)]}
        if scores.ndim == 1:
            found["margin"] = scores
        return found

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = self._several
        return tags


class ProbabilityClassifier(Classifier):
    """A classifier whose scores are log odds of two classes, or logarithms (plus a constant) of several."""

    @property
    def score_kind(self) -> ScoreKind:
        """Log odds of the second of two classes, or of each of several up to a constant."""
        return "log odds"

    def prediction_columns(self, scores: Array) -> dict[str, Array]:
        """Return the likeliest label, and probabilities: of the second of two classes, or of each."""
        found = {"label": self.classes_[chosen_classes(scores)]}
        chances = probabilities(scores)
        first = 1 if scores.ndim == 1 else 0
        for number, label in enumerate(self.classes_[first:].tolist(), first):
            found[f"probability_of_{label}"] = chances[:, number]
        return found

    def predict_proba(self, X: Any) -> Array:
        """Return the probability of each class, float64 of shape (n_rows, n_classes)."""
        return probabilities(self._scores(X))

    def predict_log_proba(self, X: Any) -> Array:
        """Return the logarithm of the probability of each class, float64 of shape (n_rows, n_classes)."""
        scores = self._scores(X)
        if scores.ndim == 1:
            return np.column_stack([-np.logaddexp(0.0, scores), -np.logaddexp(0.0, -scores)])
        logarithms: Array = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
        return logarithms


class Regressor(RegressorMixin, ScoringEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """An estimator whose labels are numbers."""

    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """Train for one epoch on some more data, going on from the model and optimizer state so far.

        Args:
            X: As in :meth:`fit`.
            y: As in :meth:`fit`.
            sample_weight: As in :meth:`fit`.

        Raises:
            ConfigError: A parameter is wrong.
            DataError: The data cannot be used.
            RunError: The run failed, or somebody killed it.
        """
        return self._train_an_epoch(X, y, sample_weight)

    @property
    def score_kind(self) -> ScoreKind:
        """Predicted labels."""
        return "numbers"

    def labelled_decisions(self, dataset: Dataset) -> Iterator[tuple[Block, Array, Array]]:
        """Yield each block with its predictions and labels; see :class:`ScoringEstimator`."""
        for block, scores in self.iter_decisions(dataset):
            yield block, scores, block.labels.astype(np.float64)

    def prediction_columns(self, scores: Array) -> dict[str, Array]:
        """Return the predicted numbers."""
        return {"prediction": scores}

    def _wanted(self, classes: Array | None) -> Wanted:
        return Wanted(kind="numbers")

    def predict(self, X: Any) -> Array:
        """Return a number for each row of a Dataset, array or sparse matrix: float64 of shape (n_rows,)."""
        return self._scores(X)

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Return R2, the part of the variance that the model explains.

        Args:
            X: A Dataset (which holds its labels and weights), array or sparse matrix.
            y: Labels, with arrays.
            sample_weight: Weights, with arrays.
        """
        return explained_variance(self, X, y, sample_weight)


def explained_variance(estimator: ScoringEstimator, X: Any, y: Any, sample_weight: Any) -> float:
    """Return R2 of an estimator whose scores are numbers; arguments as of :meth:`Regressor.score`.

    Raises:
        DataError: A dataset's labels are all the same.
    """
    if not isinstance(X, Dataset):
        return float(r2_score(y, estimator.predict(X), sample_weight=sample_weight))
    totals = np.zeros(4)
    for block, scores, numbers in estimator.labelled_decisions(X):
        weights = np.ones(block.n_rows) if block.weights is None else block.weights.astype(np.float64)
        squares = (weights @ np.square(numbers), weights @ np.square(numbers - scores))
        totals += (weights.sum(), weights @ numbers, *squares)
    weight, total, square, error = totals.tolist()
    variation = square - total**2 / weight
    if variation <= 0:
        raise DataError(f"{X.url}: its labels are all the same: R2 is not defined")
    return float(1.0 - error / variation)


def class_target(data: TrainingData) -> ClassTarget:
    """Return the classes of data that was taken for a classifier."""
    assert isinstance(data.target, ClassTarget)
    return data.target


def chosen_classes(scores: Array) -> Array:
    """Return which class has the highest score, intp of shape (n_rows,); a score of 0 is the first class."""
    if scores.ndim == 1:
        return (scores > 0).astype(np.intp)
    highest: Array = scores.argmax(axis=1)
    return highest


def probabilities(scores: Array) -> Array:
    """Return the probability of each class, float64 of shape (n_rows, n_classes)."""
    if scores.ndim == 1:
        # The smaller one directly: 1 - p loses every figure of a small probability.
        small = np.exp(-np.abs(scores))
        small /= 1.0 + small
        negative = np.where(scores > 0, small, 1.0 - small)
        positive = np.where(scores > 0, 1.0 - small, small)
        return np.column_stack([negative, positive])
    raised = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares: Array = raised / raised.sum(axis=1, keepdims=True)
    return shares
