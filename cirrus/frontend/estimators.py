"""Estimators: scikit-learn's conventions in front, a parameter server behind."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_array, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from cirrus.chunks import Block
from cirrus.client_backend.backend import Backend, resolve_backend
from cirrus.client_backend.runs import Run, new_run_id
from cirrus.config import ModelConfig
from cirrus.errors import ConfigError, CorruptDataError, DataError
from cirrus.frontend import labels
from cirrus.frontend.datasets import Dataset
from cirrus.frontend.intake import TrainingData, check_width, take_arrays, take_dataset, take_validation
from cirrus.frontend.model_files import (
    ModelCard,
    RunNotes,
    class_array,
    class_labels,
    portable_params,
    read_model_files,
    restored_params,
    save_model_files,
)
from cirrus.frontend.planning import Start, check_params, plan_run
from cirrus.frontend.preprocessing_steps import apply_to_array, last_steps
from cirrus.frontend.progress import Listener
from cirrus.frontend.scratch import Scratch
from cirrus.frontend.starting import resume_point, starting_tables
from cirrus.frontend.training import Outcome, TrainingRun, check_finished, read_outcome
from cirrus.metrics import MetricPoint, RunStatus
from cirrus.models.logistic import INTERCEPT, WEIGHTS, LogisticModel
from cirrus.paramserver.checkpoint import Checkpoint, write_checkpoint
from cirrus.storage import open_store

Array = npt.NDArray[Any]


class LogisticRegression(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Binary logistic regression over sparse rows, trained by workers against a parameter server.

    Data is a :class:`cirrus.Dataset`, or arrays as scikit-learn takes them. The penalties ``l1`` and ``l2``
    are relative to the loss *summed* over the training rows, as in liblinear with C = 1, whatever the
    optimizer. With ``optimizer="ftrl"`` a minibatch's gradient is the sum over its rows (McMahan et al.,
    2013); with all others it is the mean. The intercept is never regularised.

    Args:
        optimizer: ``"ftrl"``, ``"sgd"``, ``"momentum"``, ``"nesterov"``, ``"adagrad"`` or ``"adam"``.
        learning_rate: Step size; with ftrl and adagrad the initial one, a feature at a time.
        l1: Strength of the penalty on absolute values; makes weights exactly 0.
        l2: Strength of the penalty on squares.
        optimizer_params: Further parameters of the optimizer, such as ``{"momentum": 0.95}``.
        batch_size: Rows of a minibatch; ``"auto"``: all of them up to 1,024 rows, else 64 to 1,024 by size.
        epochs: Most passes over the data; ``"auto"``: many for little data, few for much (see ``tol``).
        tol: End when the loss of an epoch has not improved by this much for 5 epochs; None: never.
        fit_intercept: Whether there is an intercept.
        class_weight: Factors on rows by label: None, ``"balanced"`` or a dict. Balanced factors come from the
            summed sample weights of arrays, and from the numbers of rows of a dataset.
        warm_start: Whether ``fit`` goes on from the model and optimizer state it finds.
        mode: ``"sgd"``.
        n_workers: Workers to keep alive.
        n_shards: Parameter-server processes.
        worker_memory_mb: Size of a function, where workers are functions. Local workers are processes
            of this machine and take what they need.
        staleness: None: workers never wait for each other.
        target_loss: End when the loss (of ``validation`` if given, else of training) is at or below this.
        max_seconds: End after this long.
        max_cost: End after this many dollars, by the backend's price.
        early_stopping: Watch the loss of ``validation`` for ``tol``, not that of training.
        checkpoint_seconds: Cut a checkpoint this often.
        checkpoint_url: Where checkpoints go; None: into the run folder.
        resume_from: A checkpoint to go on from, in the middle of its epoch, with the same data and batch
            size.
        gradient_threshold: Workers hold back gradient values below this until they add up, to send less.
        compression: ``"auto"``, ``"lz4"`` or ``"none"``, between workers and shards.
        wire_dtype: ``"float32"``, or ``"float16"`` for gradients and weights at half the size.
        backend: ``"local"`` (processes), ``"inline"`` (threads of this process), or an object such as
            ``cirrus.LocalBackend(...)``.
        random_state: Seed of everything random. Workers still race each other, unless there is one minibatch
            an epoch.
        progress: True: a live line. A function: called with a :class:`cirrus.RunStatus` some times a second.

    Attributes:
        classes_: The two labels, sorted, shape (2,).
        coef_: float64 of shape (1, n_features).
        intercept_: float64 of shape (1,).
        n_features_in_: Number of features.
        feature_names_in_: Names of the features, where ``X`` had string column names.
        n_iter_: Epochs completed.
        history_: List of :class:`cirrus.MetricPoint`: seconds, updates, samples, train loss, validation loss,
            cost.
        cost_: Dollars.
        encoding_: How raw rows became the columns of the dataset trained on; empty for arrays.

    Example:
        >>> import cirrus
        >>> train, test = cirrus.Dataset.open("data/clicks").split(test_size=0.1)  # doctest: +SKIP
        >>> est = cirrus.LogisticRegression(n_workers=2, progress=True)
        >>> est.fit(train, validation=test).score(test)  # doctest: +SKIP
        0.849
    """

    classes_: Array
    coef_: Array
    intercept_: Array
    n_features_in_: int
    n_iter_: int
    history_: list[MetricPoint]
    cost_: float
    encoding_: dict[str, Any]

    def __init__(
        self,
        *,
        optimizer: str = "ftrl",
        learning_rate: float = 0.1,
        l1: float = 1.0,
        l2: float = 0.0,
        optimizer_params: Mapping[str, float] | None = None,
        batch_size: int | str = "auto",
        epochs: int | str = "auto",
        tol: float | None = 1e-3,
        fit_intercept: bool = True,
        class_weight: Mapping[Any, float] | str | None = None,
        warm_start: bool = False,
        mode: str = "sgd",
        n_workers: int = 2,
        n_shards: int = 1,
        worker_memory_mb: int = 1769,
        staleness: int | None = None,
        target_loss: float | None = None,
        max_seconds: float | None = None,
        max_cost: float | None = None,
        early_stopping: bool = False,
        checkpoint_seconds: float | None = None,
        checkpoint_url: str | None = None,
        resume_from: str | None = None,
        gradient_threshold: float | None = None,
        compression: str = "auto",
        wire_dtype: str = "float32",
        backend: str | Backend = "local",
        random_state: int | np.random.RandomState | None = None,
        progress: bool | Listener | None = None,
    ) -> None:
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.l1 = l1
        self.l2 = l2
        self.optimizer_params = optimizer_params
        self.batch_size = batch_size
        self.epochs = epochs
        self.tol = tol
        self.fit_intercept = fit_intercept
        self.class_weight = class_weight
        self.warm_start = warm_start
        self.mode = mode
        self.n_workers = n_workers
        self.n_shards = n_shards
        self.worker_memory_mb = worker_memory_mb
        self.staleness = staleness
        self.target_loss = target_loss
        self.max_seconds = max_seconds
        self.max_cost = max_cost
        self.early_stopping = early_stopping
        self.checkpoint_seconds = checkpoint_seconds
        self.checkpoint_url = checkpoint_url
        self.resume_from = resume_from
        self.gradient_threshold = gradient_threshold
        self.compression = compression
        self.wire_dtype = wire_dtype
        self.backend = backend
        self.random_state = random_state
        self.progress = progress

    # Training.

    def fit(self, train: Any, y: Any = None, sample_weight: Any = None, validation: Any = None) -> Self:
        """Train from the start (or from where it is, with ``warm_start``).

        Args:
            train: A :class:`cirrus.Dataset`, or an array or sparse matrix of shape (n_rows, n_features).
            y: Labels of shape (n_rows,), with arrays; a Dataset holds its own.
            sample_weight: Weights of shape (n_rows,), with arrays; a Dataset holds its own.
            validation: A Dataset or a pair ``(X, y)`` whose loss is watched.

        Raises:
            ConfigError: A parameter is wrong.
            DataError: The data cannot be used.
            RunError: The run failed, or somebody killed it.
        """
        return self._run_to_end(self.start(train, y, sample_weight, validation))

    def start(
        self, train: Any, y: Any = None, sample_weight: Any = None, validation: Any = None
    ) -> TrainingRun:
        """Begin to train and return at once; arguments as in :meth:`fit`.

        The estimator is fitted by ``run.wait()``.

        Example:
            >>> run = est.start(train, validation=test)  # doctest: +SKIP
            >>> run.status.train_loss, run.metrics()[-1].samples  # doctest: +SKIP
            >>> run.wait()  # doctest: +SKIP
        """
        goes_on = self.warm_start and hasattr(self, "coef_")
        if goes_on and self.resume_from is not None:
            raise ConfigError("resume_from", "cannot be combined with warm_start of a fitted model")
        return self._begin(train, y, sample_weight, validation, self.get_params(deep=False), goes_on=goes_on)

    def partial_fit(self, X: Any, y: Any = None, classes: Any = None, sample_weight: Any = None) -> Self:
        """Train for one epoch on some more data, going on from the model and optimizer state so far.

        Args:
            X: As in :meth:`fit`.
            y: As in :meth:`fit`.
            classes: Both labels; with arrays, needed in the first call.
            sample_weight: As in :meth:`fit`.

        Raises:
            ConfigError: A parameter is wrong.
            DataError: The data cannot be used, or ``classes`` are not those of the first call.
            RunError: The run failed, or somebody killed it.
        """
        goes_on = hasattr(self, "coef_")
        if classes is not None:
            given = np.unique(classes)
            if goes_on and not np.array_equal(given, self.classes_):
                raise DataError(
                    f"classes={given.tolist()} is not the same as on the last call to partial_fit"
                )
            labels.check_two_classes(given, "partial_fit")
        elif goes_on:
            given = self.classes_
        elif isinstance(X, Dataset):
            given = labels.dataset_classes(X.manifest, X.url)
        else:
            raise ConfigError("classes", "must be passed on the first call to partial_fit.")
        params = {**self.get_params(deep=False), "epochs": 1, "tol": None, "early_stopping": False}
        params["resume_from"] = None
        before = (self.n_iter_, self.history_, self.cost_) if goes_on else (0, [], 0.0)
        self._run_to_end(
            self._begin(X, y, sample_weight, None, params, goes_on=goes_on, classes=given, reset=not goes_on)
        )
        self.n_iter_ += before[0]
        self.history_ = before[1] + self.history_
        self.cost_ += before[2]
        return self

    def _run_to_end(self, run: TrainingRun) -> Self:
        with run:
            status = run.wait()
        check_finished(run.run_id, status)
        return self

    def _begin(
        self,
        train: Any,
        y: Any,
        sample_weight: Any,
        validation: Any,
        params: Mapping[str, Any],
        *,
        goes_on: bool,
        classes: Array | None = None,
        reset: bool = True,
        save_url: str | None = None,
        scratch_url: str | None = None,
    ) -> TrainingRun:
        check_params(params)
        backend = resolve_backend(self.backend)
        scratch = Scratch(backend.scratch_url(), reaches=backend.reaches)
        try:
            seed = int(check_random_state(self.random_state).randint(2**31 - 1))
            if isinstance(train, Dataset):
                data = take_dataset(
                    self, train, y, sample_weight, scratch=scratch, classes=classes, reset=reset
                )
            else:
                data = take_arrays(
                    self, train, y, sample_weight, scratch=scratch, seed=seed, classes=classes, reset=reset
                )
            validation_url = take_validation(self, validation, data, scratch)
            start = self._write_start(data, scratch) if goes_on else None
            if params["resume_from"] is not None:
                start = resume_point(str(params["resume_from"]))
            card = self._card(data.classes, data.manifest.n_features, data.manifest.encoding)
            config = plan_run(
                params,
                run_id=new_run_id(),
                model=self._model_config(data),
                train_url=data.url,
                manifest=data.manifest,
                validation_url=validation_url,
                seed=seed,
                start=start,
                dollars_per_hour=backend.dollars_per_hour(self.n_workers, self.n_shards),
                worker_prices=backend.worker_prices(self.worker_memory_mb),
                metadata=RunNotes(card=card, save_url=save_url, scratch_url=scratch_url).to_plain(),
            )
            run = backend.start(config)
        except BaseException:
            scratch.close()
            raise

        def adopt(outcome: Outcome) -> None:
            self.classes_ = data.classes
            self.encoding_ = dict(data.manifest.encoding)
            self._take_tables(outcome.checkpoint)
            self.n_iter_ = outcome.status.epoch
            self.history_ = outcome.points
            self.cost_ = outcome.status.cost

        return TrainingRun(run, scratch, adopt, self.progress, inputs=(train, validation))

    def _model_config(self, data: TrainingData) -> ModelConfig:
        factors = labels.class_factors(self.class_weight, data.classes, data.totals)
        return ModelConfig(
            name=LogisticModel.name,
            params={
                "classes": list(data.codes),
                "fit_intercept": bool(self.fit_intercept),
                "class_weight": None if factors is None else list(factors),
            },
        )

    def _write_start(self, data: TrainingData, scratch: Scratch) -> Start:
        if data.manifest.n_features != self.coef_.shape[1]:
            raise DataError(
                f"{data.url}: has {data.manifest.n_features} features, "
                f"the model so far has {self.coef_.shape[1]}"
            )
        if not np.array_equal(data.classes, self.classes_):
            raise DataError(
                f"{data.url}: has classes {data.classes.tolist()}, the model so far {self.classes_.tolist()}"
            )
        url = scratch.url("start")
        write_checkpoint(open_store(url), starting_tables(self._checkpoint, self.get_params(deep=False)))
        return Start(url=url)

    def _take_tables(self, checkpoint: Checkpoint) -> None:
        """Set ``coef_`` and ``intercept_``, and keep the optimizer's state for going on."""
        weights = checkpoint.tables[WEIGHTS]["weights"]
        self.coef_ = weights.T.astype(np.float64)
        self.intercept_ = np.zeros(1)
        if INTERCEPT in checkpoint.tables:
            self.intercept_ = checkpoint.tables[INTERCEPT]["weights"][:, 0].astype(np.float64)
        self._checkpoint = Checkpoint(tables=checkpoint.tables, extra={"optimizer": self.optimizer})

    # Prediction.

    def decision_function(self, X: Any) -> Array:
        """Return log odds of ``classes_[1]``, float64 of shape (n_rows,).

        If the model was trained on a dataset that had been preprocessed, the same is done to ``X`` first,
        unless that is a Dataset which has had it already.

        Args:
            X: A Dataset, array or sparse matrix.
        """
        check_is_fitted(self)
        if isinstance(X, Dataset):
            parts = [decision for _, decision in self.iter_decisions(X)]
            return np.concatenate(parts) if parts else np.zeros(0)
        if steps := last_steps(self.encoding_, {}):
            X = apply_to_array(steps, check_array(X, accept_sparse="csr", dtype=[np.float64, np.float32]))
        X = validate_data(self, X, accept_sparse="csr", dtype=[np.float64, np.float32], reset=False)
        decisions: Array = np.asarray(X @ self.coef_[0], dtype=np.float64) + self.intercept_[0]
        return decisions

    def predict(self, X: Any) -> Array:
        """Return the likelier label of each row, shape (n_rows,)."""
        positive = (self.decision_function(X) > 0).astype(np.intp)
        predicted: Array = self.classes_[positive]
        return predicted

    def predict_proba(self, X: Any) -> Array:
        """Return the probability of each class, float64 of shape (n_rows, 2)."""
        decisions = self.decision_function(X)
        # The smaller one directly: 1 - p loses every figure of a small probability.
        small = np.exp(-np.abs(decisions))
        small /= 1.0 + small
        negative = np.where(decisions > 0, small, 1.0 - small)
        positive = np.where(decisions > 0, 1.0 - small, small)
        return np.column_stack([negative, positive])

    def predict_log_proba(self, X: Any) -> Array:
        """Return the logarithm of the probability of each class, float64 of shape (n_rows, 2)."""
        decisions = self.decision_function(X)
        return np.column_stack([-np.logaddexp(0.0, decisions), -np.logaddexp(0.0, -decisions)])

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
        for block, decisions, positive in self.labelled_decisions(X):
            weights = np.ones(block.n_rows) if block.weights is None else block.weights.astype(np.float64)
            correct += float(weights @ ((decisions > 0) == positive))
            total += float(weights.sum())
        return correct / total

    def labelled_decisions(self, dataset: Dataset) -> Iterator[tuple[Block, Array, Array]]:
        """Yield each block of a dataset with its decisions and whether its rows are of the positive class.

        Yields:
            The block, float64 of shape (n_rows,), bool of shape (n_rows,).

        Raises:
            DataError: The dataset has more features, or other labels, than the model.
        """
        check_is_fitted(self)
        positive_code = np.float32(labels.dataset_codes(dataset.manifest, self.classes_, dataset.url)[1])
        for block, decisions in self.iter_decisions(dataset):
            yield block, decisions, block.labels == positive_code

    def iter_decisions(self, dataset: Dataset) -> Iterator[tuple[Block, Array]]:
        """Yield each block of a dataset with its decisions, float64 of shape (n_rows,), in order.

        Raises:
            DataError: The dataset has more features than the model.
        """
        check_is_fitted(self)
        steps = last_steps(self.encoding_, dataset.manifest.encoding)
        if not steps:
            check_width(self, dataset, reset=False)
        elif dataset.n_features > steps[0].n_features_in:
            raise DataError(
                f"{dataset.url}: has {dataset.n_features} features, the model was trained on "
                f"{steps[0].n_features_in} before preprocessing"
            )
        weights = self.coef_[0].astype(np.float32)
        for stored in dataset.blocks():
            block = stored
            for step in steps:
                block = step.apply_block(block)
            yield block, block.matvec(weights[block.ids]).astype(np.float64) + self.intercept_[0]

    # Saving.

    def save(self, url: str | os.PathLike[str]) -> None:
        """Write the model, with its optimizer's state, to a folder or another object store.

        Read it back with :func:`cirrus.load_model`. A model that is there already is replaced.

        Raises:
            StorageError: The object store refused.
        """
        check_is_fitted(self)
        card = dataclasses.replace(
            self._card(self.classes_, self.n_features_in_, self.encoding_),
            n_iter=self.n_iter_,
            cost=self.cost_,
            history=tuple(self.history_),
        )
        save_model_files(url, card, self._checkpoint)

    def _card(self, classes: Array, n_features: int, encoding: Mapping[str, Any]) -> ModelCard:
        names = getattr(self, "feature_names_in_", None)
        return ModelCard(
            estimator=type(self).__name__,
            params=portable_params(self.get_params(deep=False)),
            classes=class_labels(classes),
            n_features=n_features,
            feature_names=None if names is None else tuple(str(name) for name in names),
            encoding=encoding,
        )

    def _restore(self, card: ModelCard, checkpoint: Checkpoint) -> None:
        self.classes_ = class_array(card.classes)
        labels.check_two_classes(self.classes_, "model.json")
        self.n_features_in_ = card.n_features
        if card.feature_names is not None:
            self.feature_names_in_ = np.array(card.feature_names, dtype=object)
        self.encoding_ = dict(card.encoding)
        self._take_tables(checkpoint)
        if self.coef_.shape != (1, card.n_features):
            raise DataError(f"the parameters are of shape {self.coef_.shape}, not (1, {card.n_features})")
        self.n_iter_ = card.n_iter
        self.history_ = list(card.history)
        self.cost_ = card.cost

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        tags.input_tags.sparse = True
        return tags


def load_model(url: str | os.PathLike[str]) -> LogisticRegression:
    """Return the fitted estimator that was saved at a URL.

    Nothing in the files is executed: they are JSON and arrays, checked as they come in.

    Args:
        url: A folder or object-store URL that :meth:`LogisticRegression.save` wrote.

    Raises:
        NotFoundError: There is no model at the URL.
        CorruptDataError: It is damaged, or not a model.

    Example:
        >>> est = cirrus.load_model("out/flights")  # doctest: +SKIP
        >>> est.predict_proba(X)  # doctest: +SKIP
    """
    card, checkpoint = read_model_files(url)
    return estimator_from(card, checkpoint, str(url))


def start_job(
    estimator: LogisticRegression,
    train: Dataset,
    validation: Dataset | None,
    *,
    save_url: str | None,
    scratch_url: str | None,
) -> TrainingRun:
    """Begin to train, leaving notes for a client that may have to finish the job.

    Args:
        estimator: What to fit.
        train: The rows.
        validation: Rows whose loss is watched.
        save_url: Where the model is to be saved.
        scratch_url: What is to be removed when the run is over.
    """
    params = estimator.get_params(deep=False)
    return estimator._begin(
        train, None, None, validation, params, goes_on=False, save_url=save_url, scratch_url=scratch_url
    )


def finish_job(run: Run, status: RunStatus) -> LogisticRegression:
    """Return the fitted estimator of a run that another process began.

    Raises:
        RunError: The run has ended without a model.
        CorruptDataError: The run folder does not hold what it should.
    """
    check_finished(run.run_id, status)
    outcome = read_outcome(run, status)
    estimator = estimator_from(
        RunNotes.from_plain(run.config.model_metadata).card, outcome.checkpoint, run.url
    )
    estimator.n_iter_ = status.epoch
    estimator.history_ = outcome.points
    estimator.cost_ = status.cost
    return estimator


def estimator_from(card: ModelCard, checkpoint: Checkpoint, where: str) -> LogisticRegression:
    """Build a fitted estimator.

    Args:
        card: What the model is.
        checkpoint: Its parameters.
        where: What to call the place in an error message.

    Raises:
        CorruptDataError: Card and parameters do not make a model.
    """
    if card.estimator != LogisticRegression.__name__:
        raise CorruptDataError(f"{where}: unknown kind of model {card.estimator!r}")
    try:
        estimator = LogisticRegression(**restored_params(card.params))
        estimator._restore(card, checkpoint)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise CorruptDataError(f"{where}: is not a usable model: {error}") from error
    return estimator
