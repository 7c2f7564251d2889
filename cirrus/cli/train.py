"""``cirrus train``."""

from __future__ import annotations

import enum
import os
import secrets
import shlex
from pathlib import Path
from typing import Annotated

import typer

from cirrus.cli.console import say, show
from cirrus.cli.sources import (
    CategoricalOption,
    DropOption,
    FileOptions,
    Format,
    FormatOption,
    HashFeaturesOption,
    LabelAboveOption,
    LabelOption,
    NFeaturesOption,
    NumericOption,
    SeedOption,
    SepOption,
    is_dataset,
    load_file,
)
from cirrus.client_backend.local import LocalBackend
from cirrus.errors import ConfigError
from cirrus.frontend.datasets import Dataset
from cirrus.frontend.estimators import LogisticRegression, start_job
from cirrus.frontend.planning import check_params
from cirrus.frontend.scoring import score_dataset, scores_table
from cirrus.frontend.training import check_finished
from cirrus.storage import open_store

HomeOption = Annotated[
    str | None,
    typer.Option(
        "--home", help="Where runs are kept; default: $CIRRUS_HOME or ~/.cirrus.", show_default=False
    ),
]


class Optimizer(enum.StrEnum):
    """What turns gradients into updates."""

    FTRL = "ftrl"
    SGD = "sgd"
    MOMENTUM = "momentum"
    NESTEROV = "nesterov"
    ADAGRAD = "adagrad"
    ADAM = "adam"


def train(
    data: Annotated[str, typer.Argument(help="An svmlight or CSV file, plain or .gz, or a dataset.")],
    model: Annotated[
        str | None,
        typer.Option(
            help="Where the model goes; default: models/RUN in the home folder.", show_default=False
        ),
    ] = None,
    epochs: Annotated[str, typer.Option(help='Most passes over the data, or "auto".')] = "auto",
    workers: Annotated[int, typer.Option(help="Processes that compute gradients.")] = 2,
    shards: Annotated[int, typer.Option(help="Processes that hold the parameters.")] = 1,
    validation: Annotated[
        str | None, typer.Option(help="Dataset to validate on, instead of a part of DATA.")
    ] = None,
    validation_split: Annotated[
        float, typer.Option(help="Share of DATA to hold out; 0: train on all of it.")
    ] = 0.1,
    optimizer: Annotated[Optimizer, typer.Option(help="How gradients become updates.")] = Optimizer.FTRL,
    learning_rate: Annotated[float, typer.Option(help="Step size.")] = 0.15,
    l1: Annotated[float, typer.Option(help="Penalty on absolute values.")] = 1.0,
    l2: Annotated[float, typer.Option(help="Penalty on squares.")] = 0.0,
    batch_size: Annotated[str, typer.Option(help='Rows of a minibatch, or "auto".')] = "auto",
    tol: Annotated[float, typer.Option(help="End when the loss improves by less, for 5 epochs.")] = 1e-3,
    balanced: Annotated[bool, typer.Option("--balanced", help="Weigh the two classes alike.")] = False,
    target_loss: Annotated[float | None, typer.Option(help="End at this loss.")] = None,
    max_seconds: Annotated[float | None, typer.Option(help="End after this long.")] = None,
    early_stopping: Annotated[
        bool, typer.Option("--early-stopping", help="Watch the validation loss for --tol.")
    ] = False,
    checkpoint_seconds: Annotated[float | None, typer.Option(help="Cut a checkpoint this often.")] = None,
    checkpoint_url: Annotated[str | None, typer.Option(help="Where checkpoints go.")] = None,
    resume_from: Annotated[str | None, typer.Option(help="A checkpoint to go on from.")] = None,
    format: FormatOption = Format.AUTO,  # noqa: A002 - the option's name
    label: LabelOption = "0",
    label_above: LabelAboveOption = None,
    numeric: NumericOption = "",
    categorical: CategoricalOption = "",
    sep: SepOption = None,
    hash_features: HashFeaturesOption = 2**20,
    n_features: NFeaturesOption = None,
    drop_missing_labels: DropOption = False,
    seed: SeedOption = 0,
    home: HomeOption = None,
) -> None:
    """Train a logistic regression, and compare it with the base rate on rows held out.

    Example: cirrus train clicks.svm --epochs 3 --workers 2 --model out/clicks
    """
    if not 0 <= validation_split < 1:
        raise ConfigError("validation-split", f"must be at least 0 and below 1, got {validation_split}")
    backend = LocalBackend(root=home)
    estimator = LogisticRegression(
        optimizer=optimizer.value,
        learning_rate=learning_rate,
        l1=l1,
        l2=l2,
        batch_size=_number_or_auto(batch_size),
        epochs=_number_or_auto(epochs),
        tol=tol,
        class_weight="balanced" if balanced else None,
        n_workers=workers,
        n_shards=shards,
        target_loss=target_loss,
        max_seconds=max_seconds,
        early_stopping=early_stopping,
        checkpoint_seconds=checkpoint_seconds,
        checkpoint_url=checkpoint_url,
        resume_from=resume_from,
        backend=backend,
        random_state=seed,
        progress=True,
    )
    options = FileOptions(
        format=format,
        label=label,
        label_above=label_above,
        numeric=numeric,
        categorical=categorical,
        sep=sep,
        hash_features=hash_features,
        n_features=n_features,
        drop_missing_labels=drop_missing_labels,
        seed=seed,
    )
    check_params(estimator.get_params(deep=False))
    held_out = None if validation is None else Dataset.open(validation)
    if is_dataset(data):
        _train(estimator, Dataset.open(data), held_out, validation_split, model, backend, None, data)
        return
    scratch_url = f"{backend.root}/scratch/{secrets.token_hex(8)}"
    try:
        dataset = load_file(data, f"{scratch_url}/data", options)
        _train(estimator, dataset, held_out, validation_split, model, backend, scratch_url, data)
    finally:
        open_store(scratch_url).delete_prefix("")


def _train(
    estimator: LogisticRegression,
    dataset: Dataset,
    held_out: Dataset | None,
    validation_split: float,
    model: str | None,
    backend: LocalBackend,
    scratch_url: str | None,
    data: str,
) -> None:
    rows = dataset
    if held_out is None and validation_split > 0:
        say(f"holding out {validation_split:.0%} of the rows")
        rows, held_out = dataset.split(test_size=validation_split, random_state=0)
    model_url = f"{backend.root}/models/{secrets.token_hex(4)}" if model is None else _absolute(model)
    say(f"starting {estimator.n_shards} shard(s) and {estimator.n_workers} worker(s)")
    with start_job(estimator, rows, held_out, save_url=model_url, scratch_url=scratch_url) as job:
        say(f"run {job.run_id} (watch or end it from anywhere: cirrus runs, cirrus kill {job.run_id})")
        status = job.wait()
        check_finished(job.run_id, status)
    estimator.save(model_url)
    if held_out is not None:
        show("\n".join(scores_table(score_dataset(estimator, held_out))))
    shown = model_url if model is None else model
    show(f"model {shown}")
    say(f"next: cirrus predict {shlex.quote(shown)} {shlex.quote(data)} --out predictions.csv")


def _absolute(url: str) -> str:
    """Return a URL that means the same in another working folder."""
    return url if "://" in url else os.path.abspath(Path(url).expanduser())


def _number_or_auto(text: str) -> int | str:
    try:
        return int(text)
    except ValueError:
        return text
