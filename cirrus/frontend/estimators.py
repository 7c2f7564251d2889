"""All estimators by name: loading one that was saved, and jobs that one process begins and another ends."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import cast

from cirrus.chunks.vocabulary import Vocabulary
from cirrus.client_backend.runs import Run
from cirrus.errors import CorruptDataError
from cirrus.frontend.base import Estimator
from cirrus.frontend.clusters import KMeans
from cirrus.frontend.datasets import Dataset
from cirrus.frontend.factorization import FactorizationMachine
from cirrus.frontend.linear import LinearRegression, LinearSVC, LogisticRegression, SoftmaxRegression
from cirrus.frontend.model_files import ModelCard, RunNotes, read_model_files, restored_params
from cirrus.frontend.recommendation import MatrixFactorization
from cirrus.frontend.starting import optimizer_names
from cirrus.frontend.topics import LatentDirichletAllocation
from cirrus.frontend.training import TrainingRun, check_finished, read_outcome
from cirrus.metrics import RunStatus
from cirrus.paramserver.checkpoint import Checkpoint

ENTRY_POINTS = "cirrus.estimators"
"""Other packages add their estimators as entry points of this group, under the class's name."""

_BUILT_IN: Mapping[str, type[Estimator]] = MappingProxyType(
    {
        kind.__name__: kind
        for kind in (
            FactorizationMachine,
            KMeans,
            LatentDirichletAllocation,
            LinearRegression,
            LinearSVC,
            LogisticRegression,
            MatrixFactorization,
            SoftmaxRegression,
        )
    }
)


def estimator_class(name: str) -> type[Estimator] | None:
    """Return the class of an estimator; None if neither Cirrus nor any installed package has it."""
    if name in _BUILT_IN:
        return _BUILT_IN[name]
    from importlib.metadata import entry_points

    for entry in entry_points(group=ENTRY_POINTS, name=name):
        return cast("type[Estimator]", entry.load())
    return None


def load_model(url: str | os.PathLike[str]) -> Estimator:
    """Return the fitted estimator that was saved at a URL.

    Nothing in the files is executed: they are JSON and arrays, checked as they come in.

    Args:
        url: A folder or object-store URL that :meth:`Estimator.save` wrote.

    Raises:
        NotFoundError: There is no model at the URL.
        CorruptDataError: It is damaged, or not a model.

    Example:
        >>> est = cirrus.load_model("out/flights")  # doctest: +SKIP
        >>> est.predict_proba(X)  # doctest: +SKIP
    """
    card, checkpoint, vocabularies = read_model_files(url)
    return estimator_from(card, checkpoint, str(url), vocabularies)


def start_job(
    estimator: Estimator,
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


def finish_job(run: Run, status: RunStatus) -> Estimator:
    """Return the fitted estimator of a run that another process began.

    Raises:
        RunError: The run has ended without a model.
        CorruptDataError: The run folder does not hold what it should.
    """
    check_finished(run.run_id, status)
    outcome = read_outcome(run, status)
    checkpoint = Checkpoint(tables=outcome.checkpoint.tables, extra=optimizer_names(run.config.shard_tables))
    card = RunNotes.from_plain(run.config.model_metadata).card
    kind = estimator_class(card.estimator)
    vocabularies = {}
    if kind is not None and kind.vocabulary_names:
        data = Dataset.open(run.config.train_url)
        vocabularies = {name: data.vocabulary(name) for name in kind.vocabulary_names}
    estimator = estimator_from(card, checkpoint, run.url, vocabularies)
    estimator.n_iter_ = status.epoch
    estimator.history_ = outcome.points
    estimator.cost_ = status.cost
    return estimator


def estimator_from(
    card: ModelCard, checkpoint: Checkpoint, where: str, vocabularies: Mapping[str, Vocabulary]
) -> Estimator:
    """Build a fitted estimator.

    Args:
        card: What the model is.
        checkpoint: Its parameters.
        where: What to call the place in an error message.
        vocabularies: What features are called.

    Raises:
        CorruptDataError: Card and parameters do not make a model.
    """
    kind = estimator_class(card.estimator)
    if kind is None:
        raise CorruptDataError(f"{where}: unknown kind of model {card.estimator!r}")
    try:
        estimator = kind(**restored_params(card.params))
        estimator._restore(card, checkpoint, vocabularies)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise CorruptDataError(f"{where}: is not a usable model: {error}") from error
    return estimator
