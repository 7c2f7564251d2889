"""Linear estimators: logistic and softmax regression, support vector machine, linear regression."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Unpack

import numpy as np
from sklearn import linear_model, svm
from sklearn.utils.validation import check_is_fitted

from cirrus.chunks import Block
from cirrus.config import ModelConfig
from cirrus.errors import ConfigError, DataError
from cirrus.frontend.base import Array, SgdParams
from cirrus.frontend.intake import NumberTarget, TrainingData
from cirrus.frontend.prediction import (
    Classifier,
    ProbabilityClassifier,
    Regressor,
    ScoringEstimator,
    class_target,
)
from cirrus.models.linear import INTERCEPT, WEIGHTS
from cirrus.models.linear_regression import LinearRegressionModel
from cirrus.models.logistic import LogisticModel
from cirrus.models.softmax import SoftmaxModel
from cirrus.models.svm import LOSSES, SvmModel


class LinearParams(SgdParams, total=False):
    """Parameters of linear classifiers."""

    fit_intercept: bool
    class_weight: Mapping[Any, float] | str | None


class _Linear(ScoringEstimator):
    """Scores ``X @ coef_.T + intercept_``."""

    coef_: Array
    intercept_: Array

    def _take_tables(self, tables: Mapping[str, Array]) -> None:
        coef = tables[WEIGHTS].T.astype(np.float64)
        if coef.shape[1] != self.n_features_in_:
            raise DataError(
                f"the parameters are of shape {coef.shape}, not for {self.n_features_in_} features"
            )
        self.coef_ = coef
        self.intercept_ = np.zeros(len(coef))
        if INTERCEPT in tables:
            self.intercept_ = tables[INTERCEPT][0].astype(np.float64)
        self._check_shape()

    def _check_shape(self) -> None:
        """Refuse parameters that do not go with the labels."""

    def _array_scores(self, X: Any) -> Array:
        coef = self.coef_.reshape(-1, self.n_features_in_)
        scores: Array = np.asarray(X @ coef.T, dtype=np.float64) + self.intercept_
        return scores[:, 0] if len(coef) == 1 else scores

    def _block_scores(self, block: Block) -> Array:
        coef = self.coef_.reshape(-1, self.n_features_in_)
        if len(coef) == 1:
            single = coef[0].astype(np.float32)[block.ids]
            return block.matvec(single).astype(np.float64) + self.intercept_
        weights = coef[:, block.ids].T.astype(np.float32)
        scores: Array = block.matmat(weights).astype(np.float64) + self.intercept_
        return scores


def given_weights(estimator: _Linear, exact: Any) -> Any:
    """Give weights and the names of columns to a scikit-learn estimator, and return it."""
    exact.coef_ = estimator.coef_.copy()
    exact.intercept_ = estimator.intercept_.copy()
    exact.n_features_in_ = estimator.n_features_in_
    if hasattr(estimator, "feature_names_in_"):
        exact.feature_names_in_ = estimator.feature_names_in_
    return exact


class _LinearClassifier(_Linear, Classifier):
    def __init__(
        self,
        *,
        fit_intercept: bool = True,
        class_weight: Mapping[Any, float] | str | None = None,
        **sgd: Unpack[SgdParams],
    ) -> None:
        super().__init__(**sgd)
        self.fit_intercept = fit_intercept
        self.class_weight = class_weight

    def _linear_params(self, data: TrainingData) -> dict[str, Any]:
        return {
            "classes": list(class_target(data).codes),
            "fit_intercept": bool(self.fit_intercept),
            "class_weight": self._factors(data),
        }

    def _given_to(self, exact: Any) -> Any:
        """Give what was learned to a scikit-learn estimator of the same form."""
        check_is_fitted(self)
        exact.classes_ = self.classes_.copy()
        exact.n_iter_ = np.array([self.n_iter_], np.int32)
        return given_weights(self, exact)

    def _check_shape(self) -> None:
        n_classes = len(self.classes_)
        wanted = 1 if n_classes == 2 else n_classes
        if len(self.coef_) != wanted:
            raise DataError(f"the parameters are of shape {self.coef_.shape}, for {n_classes} classes")


class LogisticRegression(_LinearClassifier, ProbabilityClassifier):
    """Logistic regression over sparse rows, trained by workers against a parameter server.

    Two classes have one log odds; more than two are trained as :class:`SoftmaxRegression`. Data is a
    :class:`cirrus.Dataset`, or arrays as scikit-learn takes them. The penalties ``l1`` and ``l2`` are
    relative to the loss *summed* over the training rows, as in liblinear with C = 1, whatever the optimizer.
    With ``optimizer="ftrl"`` a minibatch's gradient is the sum over its rows (McMahan et al., 2013); with all
    others it is the mean. The intercept is never regularised.

    Args:
        fit_intercept: Whether there is an intercept.
        class_weight: Factors on rows by label: None, ``"balanced"`` or a dict. Balanced factors come from the
            summed sample weights of arrays, and from the numbers of rows of a dataset.
        **sgd: Parameters of :class:`cirrus.frontend.base.SgdEstimator`: ``optimizer``, ``learning_rate``,
            ``l1``, ``l2``, ``batch_size``, ``epochs``, ``n_workers``, ``n_shards``, ``backend`` and more;
            docs/estimator.md has a table of all.

    Attributes:
        classes_: The labels, sorted, shape (n_classes,).
        coef_: float64 of shape (1, n_features), or (n_classes, n_features) for more than two classes.
        intercept_: float64 of shape (1,) or (n_classes,).

    Example:
        >>> import cirrus
        >>> train, test = cirrus.Dataset.open("data/clicks").split(test_size=0.1)  # doctest: +SKIP
        >>> est = cirrus.LogisticRegression(n_workers=2, progress=True)
        >>> est.fit(train, validation=test).score(test)  # doctest: +SKIP
        0.849
    """

    def __init__(self, **params: Unpack[LinearParams]) -> None:
        super().__init__(**params)

    def _model_config(self, data: TrainingData) -> ModelConfig:
        name = LogisticModel.name if len(class_target(data).classes) == 2 else SoftmaxModel.name
        return ModelConfig(name=name, params=self._linear_params(data))

    def to_sklearn(self) -> linear_model.LogisticRegression:
        """Return a fitted ``sklearn.linear_model.LogisticRegression`` that predicts the same.

        It takes columns as this model was trained on them: preprocessing is not part of it.
        """
        return self._given_to(linear_model.LogisticRegression(fit_intercept=self.fit_intercept))


class SoftmaxRegression(_LinearClassifier, ProbabilityClassifier):
    """Multinomial logistic regression: weights for each class, also where there are just two.

    With two classes ``coef_`` and ``intercept_`` hold the difference of the second class's weights to the
    first's, so that they read as those of :class:`LogisticRegression`.

    Args:
        **params: As of :class:`LogisticRegression`.

    Attributes:
        classes_: The labels, sorted, shape (n_classes,).
        coef_: float64 of shape (n_classes, n_features), or (1, n_features) for two classes.
        intercept_: float64 of shape (n_classes,) or (1,).

    Example:
        >>> import cirrus
        >>> from sklearn.datasets import load_digits
        >>> X, y = load_digits(return_X_y=True)
        >>> cirrus.SoftmaxRegression(backend="inline").fit(X / 16, y).score(X / 16, y)  # doctest: +SKIP
        0.99
    """

    def __init__(self, **params: Unpack[LinearParams]) -> None:
        super().__init__(**params)

    def _model_config(self, data: TrainingData) -> ModelConfig:
        return ModelConfig(name=SoftmaxModel.name, params=self._linear_params(data))

    def to_sklearn(self) -> linear_model.LogisticRegression:
        """Return a fitted ``sklearn.linear_model.LogisticRegression`` that predicts the same."""
        return self._given_to(linear_model.LogisticRegression(fit_intercept=self.fit_intercept))

    def _check_shape(self) -> None:
        if len(self.classes_) == 2 and len(self.coef_) == 2:
            self.coef_ = self.coef_[1:] - self.coef_[:1]
            self.intercept_ = self.intercept_[1:] - self.intercept_[:1]
        super()._check_shape()


class LinearSVC(_LinearClassifier):
    """Linear support vector machine. More than two classes are told one from the rest.

    The penalties are relative to the summed loss: ``l2=1`` is scikit-learn's ``LinearSVC(C=1)``.

    Args:
        loss: ``"squared_hinge"`` or ``"hinge"``.
        **params: As of :class:`LogisticRegression`.

    Attributes:
        classes_: The labels, sorted, shape (n_classes,).
        coef_: float64 of shape (1, n_features), or (n_classes, n_features) for more than two classes.
        intercept_: float64 of shape (1,) or (n_classes,).

    Example:
        >>> import cirrus
        >>> est = cirrus.LinearSVC(loss="hinge")
        >>> est.fit(train).score(test)  # doctest: +SKIP
        0.849
    """

    def __init__(self, *, loss: str = "squared_hinge", **params: Unpack[LinearParams]) -> None:
        super().__init__(**params)
        self.loss = loss

    def _model_config(self, data: TrainingData) -> ModelConfig:
        if self.loss not in LOSSES:
            raise ConfigError("loss", f"must be one of {', '.join(LOSSES)}, got {self.loss!r}")
        return ModelConfig(name=SvmModel.name, params={**self._linear_params(data), "loss": self.loss})

    def to_sklearn(self) -> svm.LinearSVC:
        """Return a fitted ``sklearn.svm.LinearSVC`` that predicts the same."""
        return self._given_to(svm.LinearSVC(loss=self.loss, fit_intercept=self.fit_intercept))


class LinearRegression(_Linear, Regressor):
    """Least squares over sparse rows, with penalties if wanted.

    The loss is half the squared error; ``l2=a`` is scikit-learn's ``Ridge(alpha=a)``. The learning rate is
    relative to the spread of the labels and the size of the features, so that units do not matter; so is
    ``tol``, to the labels' variance.

    Args:
        fit_intercept: Whether there is an intercept.
        **sgd: Parameters of :class:`cirrus.frontend.base.SgdEstimator`.

    Attributes:
        coef_: float64 of shape (n_features,).
        intercept_: float64 of shape (1,).

    Example:
        >>> import cirrus
        >>> from sklearn.datasets import load_diabetes
        >>> X, y = load_diabetes(return_X_y=True)
        >>> cirrus.LinearRegression(backend="inline").fit(X, y).score(X, y)  # doctest: +SKIP
        0.517
    """

    _defaults: ClassVar[SgdParams] = {"optimizer": "adagrad", "learning_rate": 0.5, "l1": 0.0, "tol": 1e-7}

    def __init__(self, *, fit_intercept: bool = True, **sgd: Unpack[SgdParams]) -> None:
        params: SgdParams = {**self._defaults, **sgd}
        super().__init__(**params)
        self.fit_intercept = fit_intercept

    def _model_config(self, data: TrainingData) -> ModelConfig:
        target = data.target
        assert isinstance(target, NumberTarget)
        return ModelConfig(
            name=LinearRegressionModel.name,
            params={
                "fit_intercept": bool(self.fit_intercept),
                "target_mean": target.mean,
                "target_scale": target.scale,
                "feature_scale": target.feature_scale,
            },
        )

    def to_sklearn(self) -> linear_model.LinearRegression:
        """Return a fitted ``sklearn.linear_model.LinearRegression`` that predicts the same."""
        check_is_fitted(self)
        return given_weights(self, linear_model.LinearRegression(fit_intercept=self.fit_intercept))

    def _check_shape(self) -> None:
        if len(self.coef_) != 1:
            raise DataError(f"the parameters are of shape {self.coef_.shape}, for one target")
        self.coef_ = self.coef_[0]
