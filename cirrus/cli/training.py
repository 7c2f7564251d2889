"""``cirrus train``."""

from __future__ import annotations

import functools
import re
import secrets
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from cirrus.chunks import DERIVED_FOLDER
from cirrus.cli.console import command, count, say, show
from cirrus.cli.options import DEFAULT_MODEL_TYPE, FileOptions, Mode, ModelType, TrainOptions
from cirrus.cli.parameters import fixed_parameters, tol_of
from cirrus.cli.runs import say_cost
from cirrus.cli.sources import (
    is_dataset,
    load_file,
    load_file_like,
    refuse_file_options,
    refuse_rows_without_classes,
)
from cirrus.client_backend.backend import Backend, named_backend
from cirrus.errors import ConfigError, DataError
from cirrus.frontend.base import Estimator
from cirrus.frontend.clusters import KMeans
from cirrus.frontend.datasets import Dataset
from cirrus.frontend.estimators import start_job
from cirrus.frontend.factorization import FactorizationMachine
from cirrus.frontend.linear import LinearRegression, LinearSVC, LogisticRegression, SoftmaxRegression
from cirrus.frontend.model_files import check_model_place
from cirrus.frontend.outputs import score_any
from cirrus.frontend.planning import check_params
from cirrus.frontend.recommendation import MatrixFactorization
from cirrus.frontend.scoring import scores_table
from cirrus.frontend.scratch import new_scratch_url, remove_below
from cirrus.frontend.topics import LatentDirichletAllocation
from cirrus.frontend.training import check_finished
from cirrus.storage import open_store


def train(data: str, file_options: FileOptions, options: TrainOptions) -> None:
    """Train a model, and compare it on rows held out with one that knows no features."""
    if not 0 <= options.validation_split < 1:
        raise ConfigError(
            "validation_split", f"must be at least 0 and below 1, got {options.validation_split}"
        )
    if options.early_stopping and options.validation is None and options.validation_split == 0:
        raise ConfigError("early_stopping", "needs rows to watch: hold some out, or name others")
    backend = named_backend(options.backend, options.home, options.ray_address)
    estimator = _estimator(options, backend)
    check_params(estimator.get_params(deep=False))
    for source in (data, options.validation):
        if source is not None:
            is_dataset(source)
    if options.model is not None:
        check_model_place(options.model)
    if is_dataset(data):
        refuse_file_options(data, file_options)
    if options.model_type is None:
        refuse_rows_without_classes(data, file_options)
    backend.check()
    job = _Job(estimator, backend, options.model)
    try:
        if is_dataset(data):
            dataset = Dataset.open(data)
        else:
            dataset = load_file(data, job.scratch("data"), file_options)
        rows, held_out = job.hold_out(dataset, options.validation, options.validation_split)
        model = job.fit(rows, held_out)
    except DataError as error:
        raise type(error)(job.in_user_words(str(error), data, options.validation)) from error
    finally:
        job.clean_up()
    show(f"model {model}")
    say(f"next: cirrus predict {shlex.quote(model)} {shlex.quote(data)} --out predictions.csv")


#: What each model type trains.
ESTIMATORS: Mapping[ModelType, Callable[..., Estimator]] = MappingProxyType(
    {
        ModelType.LOGISTIC: LogisticRegression,
        ModelType.SOFTMAX: SoftmaxRegression,
        ModelType.SVM: LinearSVC,
        ModelType.LINEAR: LinearRegression,
        ModelType.FM: FactorizationMachine,
        ModelType.FM_REGRESSION: functools.partial(FactorizationMachine, task="regression"),
        ModelType.MF: MatrixFactorization,
        ModelType.LDA: LatentDirichletAllocation,
        ModelType.KMEANS: KMeans,
    }
)
#: These are compared by other figures than those of labels.
WITHOUT_LABELS = frozenset({ModelType.MF, ModelType.LDA, ModelType.KMEANS})
#: What --size is called, of those that have it.
SIZES: Mapping[ModelType, str] = MappingProxyType(
    {
        ModelType.FM: "n_factors",
        ModelType.FM_REGRESSION: "n_factors",
        ModelType.MF: "n_factors",
        ModelType.LDA: "n_topics",
        ModelType.KMEANS: "n_clusters",
    }
)


def _estimator(options: TrainOptions, backend: Backend) -> Estimator:
    model_type = options.model_type or DEFAULT_MODEL_TYPE
    params: dict[str, Any] = {
        "optimizer": None if options.optimizer is None else options.optimizer.value,
        "learning_rate": options.learning_rate,
        "l1": options.l1,
        "l2": options.l2,
        "class_weight": "balanced" if options.balanced else None,
        "batch_size": None if options.batch_size == "auto" else number_or_auto(options.batch_size),
        "mode": None if options.mode is Mode.SGD else options.mode.value,
        "staleness": options.staleness,
        SIZES.get(model_type, "size"): options.size,
    }
    kind = ESTIMATORS[model_type]
    given = {name: value for name, value in params.items() if value is not None}
    if strange := sorted(given.keys() - kind().get_params().keys()):
        raise ConfigError(strange[0], f"does not apply to --model-type {model_type.value}")
    if options.tol is not None:
        given["tol"] = tol_of(options.tol)
    chosen: dict[str, Any] = {
        "epochs": number_or_auto(options.epochs),
        "n_workers": options.workers,
        "n_shards": options.shards,
        "target_loss": options.target_loss,
        "max_seconds": options.max_seconds,
        "early_stopping": options.early_stopping,
        "checkpoint_seconds": options.checkpoint_seconds,
        "checkpoint_url": options.checkpoint_url,
        "resume_from": options.resume_from,
        "on_client_loss": options.on_client_loss.value,
        "backend": backend,
        "random_state": options.seed,
        "progress": True,
    }
    taken = {*params, *chosen, "tol", "task"}
    fixed = fixed_parameters(options.fixed, kind, model_type.value, taken)
    return kind(**given, **chosen, **fixed)


class _Job:
    """One `cirrus train`: what it makes on the way, and where its model goes.

    Args:
        estimator: What to fit.
        backend: Where the run works.
        model: Where the model goes; None: beside the runs.
    """

    def __init__(self, estimator: Estimator, backend: Backend, model: str | None) -> None:
        root = backend.root
        self._estimator = estimator
        self._options = backend.options
        self._scratch_url = new_scratch_url(root)
        self._uses_scratch = False
        self._model = f"{root}/models/{secrets.token_hex(8)}" if model is None else open_store(model).url
        self._shown_model = self._model if model is None else model

    def scratch(self, name: str) -> str:
        """Return a place for data that is needed as long as the run lasts."""
        self._uses_scratch = True
        return f"{self._scratch_url}/{name}"

    def in_user_words(self, text: str, data: str, validation: str | None) -> str:
        """Return a text that names what the user named, where it names what was made of that on the way."""
        places = {self._scratch_url + "/data": data, self._scratch_url + "/validation": validation}
        if "://" not in data:
            places[str(Path(data).absolute())] = data
        for place, name in places.items():
            parts = rf"{re.escape(place)}(?:/{DERIVED_FOLDER}/[^:\s]*)?(?=[:\s,;]|$)"
            text = name.join(re.split(parts, text)) if name is not None else text
        return text

    def clean_up(self) -> None:
        """Remove what the run needed."""
        if self._uses_scratch:
            remove_below(self._scratch_url)

    def hold_out(
        self, dataset: Dataset, validation: str | None, share: float
    ) -> tuple[Dataset, Dataset | None]:
        """Return what to train on, and what to validate on."""
        if validation is not None:
            if is_dataset(validation):
                return dataset, Dataset.open(validation)
            manifest = dataset.manifest
            return dataset, load_file_like(
                validation,
                self.scratch("validation"),
                manifest.encoding,
                manifest.n_features,
                label_names=manifest.label_names,
                with_labels=True,
            )
        if share == 0:
            return dataset, None
        say(f"holding out {share:.0%} of the rows")
        return dataset.split(test_size=share, random_state=0)

    def fit(self, rows: Dataset, held_out: Dataset | None) -> str:
        """Train, save, compare with the base rate; return the place of the model."""
        estimator = self._estimator
        say(f"starting {count(estimator.n_shards, 'shard')} and {count(estimator.n_workers, 'worker')}")
        scratch_url = self._scratch_url if self._uses_scratch else None
        with start_job(estimator, rows, held_out, save_url=self._model, scratch_url=scratch_url) as run:
            say(f"run {run.run_id} (from another terminal: {command('kill', run.run_id, *self._options)})")
            try:
                status = run.wait()
                say_cost(run.cost)
                check_finished(run.run_id, status, self._options)
            except KeyboardInterrupt:
                if self._uses_scratch:
                    run.kill()  # nobody can go on with it: its data goes, too
                    say(
                        "nothing is kept, as its rows were read from a file: `cirrus load` it first, and "
                        "train on the dataset, to be able to go on"
                    )
                else:
                    say(f"go on with: {command('attach', run.run_id, *self._options)}")
                say_cost(run.cost)
                raise
        estimator.save(self._model)
        if held_out is not None:
            show("\n".join(scores_table(score_any(estimator, held_out))))
        return self._shown_model


def number_or_auto(text: str) -> int | str:
    """Return a whole number, or the text as it is."""
    try:
        return int(text)
    except ValueError:
        return text
