"""What all estimators share: parameters of the run, training, saving. A family adds data and model."""

from __future__ import annotations

import abc
import dataclasses
import inspect
import os
from collections.abc import Mapping
from typing import Any, ClassVar, Self, TypedDict, Unpack

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from cirrus.chunks.vocabulary import Vocabulary
from cirrus.client_backend.backend import Backend, resolve_backend
from cirrus.client_backend.runs import new_run_id
from cirrus.config import ModelConfig
from cirrus.errors import ConfigError, DataError
from cirrus.frontend.datasets import Dataset
from cirrus.frontend.intake import (
    NumberTarget,
    TrainingData,
    Wanted,
    refuse_path,
    take_arrays,
    take_dataset,
    take_validation,
)
from cirrus.frontend.model_files import ModelCard, RunNotes, portable_params, save_model_files
from cirrus.frontend.planning import Start, Validation, check_params, plan_run
from cirrus.frontend.preprocessing_steps import last_steps
from cirrus.frontend.progress import Listener
from cirrus.frontend.raw_rows import prepare_array
from cirrus.frontend.scratch import Scratch
from cirrus.frontend.starting import optimizer_names, resume_point, starting_tables
from cirrus.frontend.training import Outcome, TrainingRun, check_finished
from cirrus.metrics import MetricPoint, RunState
from cirrus.paramserver.checkpoint import Checkpoint, write_checkpoint
from cirrus.storage import open_store

Array = npt.NDArray[Any]


class RunParams(TypedDict, total=False):
    """Parameters that every estimator has; see :class:`Estimator`."""

    batch_size: int | str
    epochs: int | str
    tol: float | None
    warm_start: bool
    n_workers: int
    n_shards: int
    worker_memory_mb: int
    staleness: int | None
    target_loss: float | None
    max_seconds: float | None
    max_cost: float | None
    early_stopping: bool
    checkpoint_seconds: float | None
    checkpoint_url: str | None
    resume_from: str | None
    on_client_loss: str
    compression: str
    backend: str | Backend
    random_state: int | np.random.RandomState | None
    progress: bool | Listener | None


class SgdParams(RunParams, total=False):
    """Parameters of estimators that are trained by gradients; see :class:`SgdEstimator`."""

    optimizer: str
    learning_rate: float
    l1: float
    l2: float
    optimizer_params: Mapping[str, float] | None
    mode: str
    gradient_threshold: float | None
    nonfinite_gradients: str
    wire_dtype: str


def _whole_signature(cls: type[Estimator], own: Any) -> inspect.Signature:
    """Return the signature of an ``__init__`` with the parameters that it hands on to its base."""
    found: dict[str, inspect.Parameter] = {}
    hands_on = False
    for parameter in inspect.signature(own).parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            hands_on = True
        else:
            found[parameter.name] = parameter
    if hands_on:
        defaults: Mapping[str, Any] = cls._defaults
        base = next(
            base for base in cls.__mro__[1:] if issubclass(base, Estimator) and "__init__" in vars(base)
        )
        for name, parameter in inspect.signature(base.__init__).parameters.items():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                continue  # which there is to be refused
            default = defaults.get(name, parameter.default)
            found.setdefault(name, parameter.replace(default=default))
    return inspect.Signature(list(found.values()))


class Estimator(BaseEstimator, abc.ABC):  # type: ignore[misc]  # scikit-learn has no types
    """An estimator whose model is trained by workers against a parameter server.

    Data is a :class:`cirrus.Dataset`, or arrays as scikit-learn takes them.

    Args:
        batch_size: Rows of a minibatch; ``"auto"``: all of them up to 1,024 rows, else 64 to 1,024 by size.
        epochs: Most passes over the data; ``"auto"``: many for little data, few for much (see ``tol``).
        tol: End when the loss of an epoch has not improved by this much for 5 epochs; None: never.
        warm_start: Whether ``fit`` goes on from the model and optimizer state it finds.
        n_workers: Workers to keep alive.
        n_shards: Parameter-server processes.
        worker_memory_mb: Size of a function, where workers are functions. Local workers are processes
            of this machine and take what they need.
        staleness: How many steps a worker may be ahead of the slowest; 0: they go in rounds, and with a fixed
            ``random_state`` fits are the same to the bit; None: workers never wait for each other.
        target_loss: End when the loss (of ``validation`` if given, else of training) is at or below this.
        max_seconds: End after this long.
        max_cost: End after this many dollars, by the backend's price.
        early_stopping: Watch the loss of ``validation`` for ``tol``, not that of training.
        checkpoint_seconds: Cut a checkpoint this often.
        checkpoint_url: Where checkpoints go; None: into the run folder.
        resume_from: A checkpoint to go on from, in the middle of its epoch, with the same data, batch size
            and optimizer.
        on_client_loss: What happens when this program dies. ``"stop"``: shards snapshot and end.
            ``"continue"``: workers work to the ends of their lives (without ``generation_seconds``, of the
            run), then the same. ``cirrus attach`` goes on with the run in both cases.
        compression: ``"auto"``, ``"lz4"`` or ``"none"``, between workers and shards.
        backend: ``"local"`` (processes), ``"inline"`` (threads of this process), ``"aws"`` (functions and
            servers), or an object such as ``cirrus.LocalBackend(...)``.
        random_state: Seed of everything random. Workers still race each other, unless ``staleness=0`` or
            there is one minibatch an epoch.
        progress: True: a live line. A function: called with a :class:`cirrus.RunStatus` some times a second.

    Attributes:
        n_features_in_: Number of features.
        feature_names_in_: Names of the features, where ``X`` had string column names.
        n_iter_: Epochs completed.
        history_: List of :class:`cirrus.MetricPoint`: seconds, updates, samples, train loss, validation loss,
            cost.
        cost_: Dollars.
        encoding_: How raw rows became the columns of the dataset trained on; empty for arrays.
    """

    n_features_in_: int
    n_iter_: int
    history_: list[MetricPoint]
    cost_: float
    encoding_: dict[str, Any]
    _checkpoint: Checkpoint

    vocabulary_names: ClassVar[tuple[str, ...]] = ()
    """Vocabularies of the training data that belong to the model."""
    loader: ClassVar[str] = "load_svmlight"
    """What loads the files that such models are usually trained on."""
    _defaults: ClassVar[SgdParams] = {}
    """Defaults of a class that differ from those of its base."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Give ``__init__`` a signature that names inherited parameters too, as scikit-learn looks there."""
        super().__init_subclass__(**kwargs)
        own = cls.__dict__.get("__init__")
        if own is not None:
            own.__signature__ = _whole_signature(cls, own)

    def __init__(
        self,
        *,
        batch_size: int | str = "auto",
        epochs: int | str = "auto",
        tol: float | None = 1e-3,
        warm_start: bool = False,
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
        on_client_loss: str = "stop",
        compression: str = "auto",
        backend: str | Backend = "local",
        random_state: int | np.random.RandomState | None = None,
        progress: bool | Listener | None = None,
        **unknown: Any,
    ) -> None:
        for name in unknown:
            raise TypeError(f"{type(self).__name__}() got an unexpected keyword argument {name!r}")
        self.batch_size = batch_size
        self.epochs = epochs
        self.tol = tol
        self.warm_start = warm_start
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
        self.on_client_loss = on_client_loss
        self.compression = compression
        self.backend = backend
        self.random_state = random_state
        self.progress = progress

    # What a family decides.

    @abc.abstractmethod
    def _wanted(self, classes: Array | None) -> Wanted:
        """Return what labels have to be."""

    @abc.abstractmethod
    def _model_config(self, data: TrainingData) -> ModelConfig:
        """Return the model and its parameters, for some data."""

    def _take_target(self, data: TrainingData) -> None:
        """Set the attributes that come from labels, when a run has finished."""

    def _check_target(self, data: TrainingData) -> None:
        """Refuse data whose labels do not go with the model so far."""

    def _first_tables(self, data: TrainingData, seed: int) -> Mapping[str, Array]:
        """Return what a run over some data begins with, where that is not in the model's tables."""
        return {}

    @abc.abstractmethod
    def _take_tables(self, tables: Mapping[str, Array]) -> None:
        """Set the attributes that come from the trained weights, float32 of shape (n_rows, width) each."""

    def _card_labels(self, data: TrainingData | None) -> tuple[Any, ...]:
        """Return the labels of the data, or of the fitted model, for the model's card."""
        return ()

    def _restore_labels(self, labels: tuple[Any, ...]) -> None:
        """Undo :meth:`_card_labels`."""

    def _vocabularies(self) -> Mapping[str, Vocabulary]:
        """Return what features are called, where a saved model needs it."""
        return {}

    def _restore_vocabularies(self, vocabularies: Mapping[str, Vocabulary]) -> None:
        """Undo :meth:`_vocabularies`."""

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
        goes_on = self.warm_start and self._is_trained
        if goes_on and self.resume_from is not None:
            raise ConfigError("resume_from", "cannot be combined with warm_start of a fitted model")
        return self._begin(train, y, sample_weight, validation, self.get_params(deep=False), goes_on=goes_on)

    @property
    def _is_trained(self) -> bool:
        return hasattr(self, "_checkpoint")

    def _train_an_epoch(self, X: Any, y: Any, sample_weight: Any, classes: Array | None = None) -> Self:
        """Train for one epoch on some more data, going on from the model and optimizer state so far."""
        goes_on = self._is_trained
        params = {**self.get_params(deep=False), "epochs": 1, "tol": None, "early_stopping": False}
        params["resume_from"] = None
        before = (self.n_iter_, self.history_, self.cost_) if goes_on else (0, [], 0.0)
        self._run_to_end(
            self._begin(
                X, y, sample_weight, None, params, goes_on=goes_on, classes=classes, reset=not goes_on
            )
        )
        self.n_iter_ += before[0]
        self.history_ = before[1] + self.history_
        self.cost_ += before[2]
        return self

    def _run_to_end(self, run: TrainingRun) -> Self:
        with run:
            status = run.wait()
        # Who names the backend in words looks for it: what was deployed last may be another by now, or gone.
        interrupted = status.state is RunState.INTERRUPTED
        check_finished(run.run_id, status, resolve_backend(self.backend).options if interrupted else ())
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
        for name, rows in (("train", train), ("validation", validation)):
            refuse_path(name, rows, self.loader)
        check_params(params)
        backend = resolve_backend(self.backend)
        backend.check()
        scratch = Scratch(backend.scratch_url(), reaches=backend.reaches)
        try:
            seed = int(check_random_state(self.random_state).randint(2**31 - 1))
            data = self._take_data(
                train,
                y,
                sample_weight,
                scratch=scratch,
                seed=seed,
                wanted=self._wanted(classes),
                goes_on=goes_on,
                reset=reset,
            )
            watched = self._take_validation(validation, data, scratch)
            if goes_on:
                self._check_goes_on(data)
                data = dataclasses.replace(data, goes_on=True)
            model = self._model_config(data)
            before: Checkpoint | None = self._checkpoint if goes_on else None
            if not goes_on and params["resume_from"] is None:
                before = self._first_checkpoint(data, seed)
            start = None if before is None else Start(url=scratch.url("start"))
            if params["resume_from"] is not None:
                start = resume_point(str(params["resume_from"]))
            notes = RunNotes(card=self._card(data), save_url=save_url, scratch_url=scratch_url)
            target = data.target
            config = plan_run(
                params,
                run_id=new_run_id(),
                model=model,
                train_url=data.url,
                manifest=data.manifest,
                validation=watched,
                seed=seed,
                start=start,
                dollars_per_hour=backend.dollars_per_hour(self.n_workers, self.n_shards),
                worker_prices=backend.worker_prices(self.worker_memory_mb),
                metadata=notes.to_plain(),
                loss_unit=target.scale**2 if isinstance(target, NumberTarget) else 1.0,
            )
            if before is not None and start is not None:
                write_checkpoint(open_store(start.url), starting_tables(before, config.shard_tables))
            run = backend.start(config)
        except BaseException:
            scratch.close()
            raise

        def adopt(outcome: Outcome) -> None:
            self._take_target(data)
            self.encoding_ = dict(data.encoding)
            self._take_checkpoint(
                Checkpoint(tables=outcome.checkpoint.tables, extra=optimizer_names(config.shard_tables))
            )
            self.n_iter_ = outcome.status.epoch
            self.history_ = outcome.points
            self.cost_ = outcome.status.cost

        return TrainingRun(run, scratch, adopt, self.progress, inputs=(train, validation))

    def _take_data(
        self,
        train: Any,
        y: Any,
        sample_weight: Any,
        *,
        scratch: Scratch,
        seed: int,
        wanted: Wanted,
        goes_on: bool,
        reset: bool,
    ) -> TrainingData:
        """Return what users hand over as a dataset that workers can read.

        Arrays are raw rows: where the model so far is one of preprocessed rows, they become such.
        """
        if isinstance(train, Dataset):
            if goes_on and last_steps(self.encoding_, train.manifest.encoding, train.url):
                raise DataError(
                    f"{train.url}: was not preprocessed as what the model so far was trained on: transform it"
                )
            data = take_dataset(self, train, y, sample_weight, scratch=scratch, wanted=wanted, reset=reset)
        else:
            rows = prepare_array(self, train) if goes_on else train
            data = take_arrays(
                self, rows, y, sample_weight, scratch=scratch, seed=seed, wanted=wanted, reset=reset
            )
        if goes_on and not data.encoding:
            return dataclasses.replace(data, encoding=self.encoding_)
        return data

    def _first_checkpoint(self, data: TrainingData, seed: int) -> Checkpoint | None:
        tables = self._first_tables(data, seed)
        if not tables:
            return None
        return Checkpoint(
            tables={name: {"weights": values.astype(np.float32)} for name, values in tables.items()}
        )

    def _take_validation(self, validation: Any, data: TrainingData, scratch: Scratch) -> Validation | None:
        """Return the dataset to watch, or None."""
        return take_validation(self, validation, data, scratch)

    def _check_goes_on(self, data: TrainingData) -> None:
        first = next(iter(self._checkpoint.tables.values()))
        if data.manifest.n_features != len(first["weights"]):
            raise DataError(
                f"{data.url}: has {data.manifest.n_features} features, "
                f"the model so far has {len(first['weights'])}"
            )
        self._check_target(data)

    def _take_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Set what was learned, and keep the optimizer's state for going on."""
        self._take_tables({name: arrays["weights"] for name, arrays in checkpoint.tables.items()})
        self._checkpoint = checkpoint

    # Saving.

    def save(self, url: str | os.PathLike[str]) -> None:
        """Write the model, with its optimizer's state, to a folder or another object store.

        Read it back with :func:`cirrus.load_model`. A model that is there already is replaced.

        Raises:
            StorageError: The object store refused.
        """
        check_is_fitted(self)
        card = dataclasses.replace(
            self._card(None), n_iter=self.n_iter_, cost=self.cost_, history=tuple(self.history_)
        )
        save_model_files(url, card, self._checkpoint, self._vocabularies())

    def _card(self, data: TrainingData | None) -> ModelCard:
        """Return what the model of some data will be, or what the fitted model is."""
        names = getattr(self, "feature_names_in_", None)
        return ModelCard(
            estimator=type(self).__name__,
            params=portable_params(self.get_params(deep=False)),
            classes=self._card_labels(data),
            n_features=self.n_features_in_ if data is None else data.manifest.n_features,
            feature_names=None if names is None else tuple(str(name) for name in names),
            encoding=self.encoding_ if data is None else data.encoding,
        )

    def _restore(
        self, card: ModelCard, checkpoint: Checkpoint, vocabularies: Mapping[str, Vocabulary]
    ) -> None:
        self._restore_labels(card.classes)
        self._restore_vocabularies(vocabularies)
        self.n_features_in_ = card.n_features
        if card.feature_names is not None:
            self.feature_names_in_ = np.array(card.feature_names, dtype=object)
        self.encoding_ = dict(card.encoding)
        self._take_checkpoint(checkpoint)
        self.n_iter_ = card.n_iter
        self.history_ = list(card.history)
        self.cost_ = card.cost


class SgdEstimator(Estimator):
    """An estimator that is trained by gradients; parameters as in :class:`Estimator`, and these.

    The penalties ``l1`` and ``l2`` are relative to the loss *summed* over the training rows, as in liblinear
    with C = 1, whatever the optimizer. With ``optimizer="ftrl"`` a minibatch's gradient is the sum over its
    rows (McMahan et al., 2013); with all others it is the mean. Intercepts are never regularised.

    Args:
        optimizer: ``"ftrl"``, ``"sgd"``, ``"momentum"``, ``"nesterov"``, ``"adagrad"`` or ``"adam"``.
        learning_rate: Step size; with ftrl and adagrad the initial one, a feature at a time.
        l1: Strength of the penalty on absolute values; makes weights exactly 0.
        l2: Strength of the penalty on squares.
        optimizer_params: Further parameters of the optimizer, such as ``{"momentum": 0.95}``.
        mode: ``"sgd"``, or ``"average"``: workers train on a lease by themselves, and the shards average.
        gradient_threshold: Workers hold back gradient values below this until they add up, to send less.
        nonfinite_gradients: A gradient with NaN or infinity is never applied. ``"skip"``: training goes on
            without it, and status counts it as ``nonfinite_refused``; ``"fail"``: the fit ends with an error.
        wire_dtype: ``"float32"``, or ``"float16"`` for gradients and weights at half the size.
        **run: Parameters of :class:`Estimator`.
    """

    def __init__(
        self,
        *,
        optimizer: str = "ftrl",
        learning_rate: float = 0.1,
        l1: float = 1.0,
        l2: float = 0.0,
        optimizer_params: Mapping[str, float] | None = None,
        mode: str = "sgd",
        gradient_threshold: float | None = None,
        nonfinite_gradients: str = "skip",
        wire_dtype: str = "float32",
        **run: Unpack[RunParams],
    ) -> None:
        super().__init__(**run)
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.l1 = l1
        self.l2 = l2
        self.optimizer_params = optimizer_params
        self.mode = mode
        self.gradient_threshold = gradient_threshold
        self.nonfinite_gradients = nonfinite_gradients
        self.wire_dtype = wire_dtype
