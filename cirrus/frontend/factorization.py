"""Factorization machines as an estimator."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Unpack

import numpy as np
import scipy.sparse
from sklearn.utils import RegressorTags

from cirrus.chunks import Block
from cirrus.config import ModelConfig
from cirrus.errors import ConfigError, DataError
from cirrus.frontend.base import Array, SgdParams
from cirrus.frontend.intake import NumberTarget, TrainingData, Wanted
from cirrus.frontend.prediction import ProbabilityClassifier, ScoreKind, class_target, explained_variance
from cirrus.models.factorization_machine import FACTORS, TASKS, FactorizationMachineModel
from cirrus.models.linear import INTERCEPT, WEIGHTS

#: Rows of an array that are scored at a time.
_ROWS_AT_A_TIME = 4096


class FactorizationMachine(ProbabilityClassifier):
    """Factorization machine (Rendle, 2010): a linear model, and a vector for each feature.

    The dot product of two features' vectors is the weight of their occurring together, so that pairs which
    are rare or absent in training have weights, too, where a linear model sees features one by one. The
    vectors begin at small random values, which depend on ``random_state``, table and row alone.

    Args:
        n_factors: Length of the vectors.
        task: ``"classification"`` of two classes (log loss), or ``"regression"`` (half the squared error).
        factor_l2: Strength of the penalty on squares of the vectors; ``l1`` and ``l2`` are for the weights.
        initial_scale: Standard deviation of the vectors' initial values.
        class_weight: As of :class:`cirrus.LogisticRegression`; for classification.
        **sgd: Parameters of :class:`cirrus.frontend.base.SgdEstimator`.

    Attributes:
        classes_: The two labels, sorted; for classification.
        factors_: float64 of shape (n_features, n_factors).
        coef_: float64 of shape (n_features,).
        intercept_: float64 of shape (1,).

    Example:
        >>> import cirrus
        >>> est = cirrus.FactorizationMachine(n_factors=8)
        >>> est.fit(train).predict_proba(test)  # doctest: +SKIP
    """

    _several = False

    factors_: Array
    coef_: Array
    intercept_: Array

    def __init__(
        self,
        *,
        n_factors: int = 8,
        task: str = "classification",
        factor_l2: float = 0.0,
        initial_scale: float = 0.03,
        class_weight: Mapping[Any, float] | str | None = None,
        **sgd: Unpack[SgdParams],
    ) -> None:
        super().__init__(**sgd)
        self.n_factors = n_factors
        self.task = task
        self.factor_l2 = factor_l2
        self.initial_scale = initial_scale
        self.class_weight = class_weight

    @property
    def _is_regression(self) -> bool:
        if self.task not in TASKS:
            raise ConfigError("task", f"must be one of {', '.join(TASKS)}, got {self.task!r}")
        return self.task == "regression"

    def partial_fit(self, X: Any, y: Any = None, classes: Any = None, sample_weight: Any = None) -> Any:
        """Train for one epoch on some more data; arguments as of :class:`cirrus.LogisticRegression`."""
        if not self._is_regression:
            return super().partial_fit(X, y, classes, sample_weight)
        if classes is not None:
            raise ConfigError("classes", 'must be None with task="regression"')
        return self._train_an_epoch(X, y, sample_weight)

    # What a family decides; what differs between the two tasks is as of the classes that have one of them.

    @property
    def score_kind(self) -> ScoreKind:
        """Log odds, or numbers."""
        return "numbers" if self._is_regression else "log odds"

    def _wanted(self, classes: Array | None) -> Wanted:
        return Wanted(kind="numbers") if self._is_regression else super()._wanted(classes)

    def _model_config(self, data: TrainingData) -> ModelConfig:
        params: dict[str, Any] = {
            "task": self.task,
            "n_factors": self.n_factors,
            "factor_l2": self.factor_l2,
            "initial_scale": self.initial_scale,
        }
        target = data.target
        if isinstance(target, NumberTarget):
            if self.class_weight is not None:
                raise ConfigError("class_weight", 'must be None with task="regression"')
            params |= {
                "target_mean": target.mean,
                "target_scale": target.scale,
                "feature_scale": target.feature_scale,
            }
        else:
            params |= {"classes": list(class_target(data).codes), "class_weight": self._factors(data)}
        return ModelConfig(name=FactorizationMachineModel.name, params=params)

    def _take_target(self, data: TrainingData) -> None:
        if not self._is_regression:
            super()._take_target(data)

    def _check_target(self, data: TrainingData) -> None:
        if not self._is_regression:
            super()._check_target(data)

    def _card_labels(self, data: TrainingData | None) -> tuple[Any, ...]:
        return () if self._is_regression else super()._card_labels(data)

    def _restore_labels(self, labels_: tuple[Any, ...]) -> None:
        if not self._is_regression:
            super()._restore_labels(labels_)

    def _take_tables(self, tables: Mapping[str, Array]) -> None:
        if len(tables[FACTORS]) != self.n_features_in_ or tables[WEIGHTS].shape != (self.n_features_in_, 1):
            raise DataError(f"the parameters are not for {self.n_features_in_} features")
        self.factors_ = tables[FACTORS].astype(np.float64)
        self.coef_ = tables[WEIGHTS][:, 0].astype(np.float64)
        self.intercept_ = tables[INTERCEPT][:, 0].astype(np.float64)

    def _block_scores(self, block: Block) -> Array:
        parameters = {
            FACTORS: self.factors_[block.ids],
            WEIGHTS: self.coef_[block.ids, None],
            INTERCEPT: self.intercept_[:, None],
        }
        model = FactorizationMachineModel(n_factors=self.factors_.shape[1], task=self.task)
        return model.predict(parameters, block)

    def _array_scores(self, X: Any) -> Array:
        parts = []
        for first in range(0, X.shape[0], _ROWS_AT_A_TIME):
            rows = scipy.sparse.csr_array(X[first : first + _ROWS_AT_A_TIME])
            labels = np.zeros(rows.shape[0], np.float32)
            parts.append(self._block_scores(Block.from_csr(rows.indptr, rows.indices, rows.data, labels)))
        return np.concatenate(parts)

    def predict(self, X: Any) -> Array:
        """Return the likelier label, or the number, of each row: shape (n_rows,)."""
        return self._scores(X) if self._is_regression else super().predict(X)

    def predict_proba(self, X: Any) -> Array:
        """Return the probability of each class, float64 of shape (n_rows, 2); for classification."""
        self._check_classifies("predict_proba")
        return super().predict_proba(X)

    def predict_log_proba(self, X: Any) -> Array:
        """Return the logarithm of the probability of each class; for classification."""
        self._check_classifies("predict_log_proba")
        return super().predict_log_proba(X)

    def _check_classifies(self, method: str) -> None:
        if self._is_regression:
            raise ConfigError("task", f'{method} needs task="classification"')

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Return the accuracy, or R2; arguments as of :class:`cirrus.LogisticRegression`."""
        if self._is_regression:
            return explained_variance(self, X, y, sample_weight)
        return super().score(X, y, sample_weight)

    def labelled_decisions(self, dataset: Any) -> Iterator[tuple[Block, Array, Array]]:
        """Yield each block with its scores and labels; labels are positions in ``classes_``, or numbers."""
        if not self._is_regression:
            yield from super().labelled_decisions(dataset)
            return
        for block, scores in self.iter_decisions(dataset):
            yield block, scores, block.labels.astype(np.float64)

    def prediction_columns(self, scores: Array) -> dict[str, Array]:
        """Return the likelier label and its probability, or the number."""
        return {"prediction": scores} if self._is_regression else super().prediction_columns(scores)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        if self.task == "regression":
            tags.estimator_type = "regressor"
            tags.classifier_tags = None
            tags.regressor_tags = RegressorTags()
        return tags
