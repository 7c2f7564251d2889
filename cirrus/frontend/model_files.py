"""Saved models: a ``model.json`` that says what it is, beside a checkpoint with the parameters.

Reading one runs nothing that is in it: JSON and float32 arrays, checked as they come in. The same
:class:`ModelCard` travels in a run's config, so that a client that attaches to a run can finish what another
began.
"""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cirrus.chunks.manifest import VocabularyInfo
from cirrus.chunks.vocabulary import Vocabulary, load_vocabulary, store_vocabulary
from cirrus.config import from_plain
from cirrus.errors import ConfigError, CorruptDataError, NotFoundError, StorageError
from cirrus.metrics import MetricPoint
from cirrus.paramserver.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from cirrus.storage import open_store

MODEL_KEY = "model.json"
MODEL_FORMAT = "cirrus-model"
MODEL_VERSION = 1
_PARAMETERS_PREFIX = "parameters-"

#: Parameters that live in the process that set them; a loaded model has their defaults.
_UNSAVED_PARAMS = ("backend", "progress", "random_state", "resume_from", "checkpoint_url")


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """Everything about a fitted estimator but its parameters' values."""

    estimator: str
    """Name of the class in ``cirrus``."""
    params: Mapping[str, Any]
    """``get_params()``, as far as it makes sense elsewhere."""
    classes: tuple[Any, ...] = ()
    """The labels, as JSON scalars."""
    n_features: int
    feature_names: tuple[str, ...] | None = None
    encoding: Mapping[str, Any] = field(default_factory=dict)
    """How raw rows became columns: :attr:`cirrus.chunks.Manifest.encoding`."""
    vocabularies: tuple[VocabularyInfo, ...] = ()
    """What rows of tables are called; keys are beside the parameters."""
    n_iter: int = 0
    cost: float = 0.0
    history: tuple[MetricPoint, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RunNotes:
    """What the client that started a run leaves for whoever finishes it: :attr:`RunConfig.model_metadata`."""

    card: ModelCard
    save_url: str | None = None
    """Where to save the model."""
    scratch_url: str | None = None
    """What to remove when the run is over."""

    def to_plain(self) -> dict[str, Any]:
        """Return the notes as what JSON can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_plain(cls, raw: Mapping[str, Any]) -> RunNotes:
        """Read notes back.

        Raises:
            ConfigError: They are not what :meth:`to_plain` returned.
        """
        return from_plain(cls, json.loads(json.dumps(raw)), "model_metadata")


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """``model.json``."""

    format: str
    version: int
    card: ModelCard
    parameters: str
    """Prefix of the checkpoint beside it."""


def portable_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of an estimator's parameters that JSON can hold and another process can use."""
    kept: dict[str, Any] = {}
    for name, value in params.items():
        if name in _UNSAVED_PARAMS:
            continue
        if name == "class_weight" and isinstance(value, Mapping):
            # JSON keys are strings; labels need not be.
            kept[name] = [[_scalar(label), float(weight)] for label, weight in value.items()]
        elif isinstance(value, Mapping):
            kept[name] = {str(key): _scalar(entry) for key, entry in value.items()}
        else:
            kept[name] = _scalar(value)
    return kept


def restored_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Undo :func:`portable_params`.

    Raises:
        CorruptDataError: There are parameters that it leaves out: not for a file to set, least of all places.
    """
    foreign = sorted(params.keys() & set(_UNSAVED_PARAMS))
    if foreign:
        raise CorruptDataError(f"sets {', '.join(foreign)}, which no saved model holds")
    restored = dict(params)
    if isinstance(restored.get("class_weight"), list):
        restored["class_weight"] = {label: weight for label, weight in restored["class_weight"]}
    return restored


def class_labels(classes: npt.NDArray[Any]) -> tuple[Any, ...]:
    """Return labels as JSON scalars.

    Raises:
        ConfigError: A label is of a kind that cannot be written.
    """
    return tuple(_scalar(label) for label in classes)


def class_array(labels: Sequence[Any]) -> npt.NDArray[Any]:
    """Undo :func:`class_labels`: int64, float64, bool or str, sorted as they were."""
    return np.array(labels)


def save_model_files(
    url: str | os.PathLike[str],
    card: ModelCard,
    checkpoint: Checkpoint,
    vocabularies: Mapping[str, Vocabulary],
) -> None:
    """Write a model; one that is there already is replaced at the last moment, then removed.

    Args:
        url: Where to.
        card: What the model is.
        checkpoint: Its parameters.
        vocabularies: What rows of its tables are called.

    Raises:
        StorageError: The object store refused.
    """
    store = open_store(url)
    replaced = _parameters_of(url)
    prefix = f"{_PARAMETERS_PREFIX}{secrets.token_hex(4)}"
    write_checkpoint(store.child(prefix), checkpoint)
    named = tuple(
        store_vocabulary(store.child(prefix), "", name, vocabulary.to_bytes())
        for name, vocabulary in vocabularies.items()
    )
    card = dataclasses.replace(card, vocabularies=named)
    file = ModelFile(format=MODEL_FORMAT, version=MODEL_VERSION, card=card, parameters=prefix)
    store.put(MODEL_KEY, json.dumps(dataclasses.asdict(file), indent=1).encode())
    if replaced is not None:
        store.delete_prefix(replaced + "/")


def check_model_place(url: str | os.PathLike[str]) -> None:
    """Find out whether a model could be written to a URL, and leave nothing there.

    Raises:
        StorageError: It could not.
    """
    store = open_store(url)
    if "://" in store.url:
        probe = f"{_PARAMETERS_PREFIX}{secrets.token_hex(4)}"
        store.put(probe, b"")
        store.delete(probe)
        return
    place = Path(store.url)
    if place.exists() and not place.is_dir():
        raise StorageError(f"{place}: is a file: a model needs a folder of its own")
    above = next(path for path in (place, *place.parents) if path.exists())
    if not above.is_dir():
        raise StorageError(f"{place}: {above} is a file, not a folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise StorageError(f"{place}: {above} cannot be written to")


def may_hold_model(url: str) -> bool:
    """Return whether a model can go to a URL and harm nothing: a model is there already, or nothing is.

    Args:
        url: A place that somebody else has chosen.

    Raises:
        StorageError: The object store refused or failed.
    """
    try:
        store = open_store(url)
    except ConfigError:
        return False
    if _parameters_of(url) is not None:
        return True
    if "://" in store.url:
        return not store.list()
    # Not list(), which would walk through all that is below.
    folder = Path(store.url)
    try:
        return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    except OSError as error:
        raise StorageError(f"{folder}: {error.strerror}") from error


def read_model_files(
    url: str | os.PathLike[str],
) -> tuple[ModelCard, Checkpoint, dict[str, Vocabulary]]:
    """Read a model: what :func:`save_model_files` was given.

    Raises:
        NotFoundError: There is no model at the URL.
        CorruptDataError: It is damaged, or not a model.
    """
    store = open_store(url)
    try:
        data = store.get(MODEL_KEY)
    except NotFoundError as error:
        raise NotFoundError(
            f"{url}: there is no saved model here (no {MODEL_KEY}): name the place that a model "
            "was saved to, with est.save(URL) or cirrus train DATA --model URL"
        ) from error
    where = f"{url}/{MODEL_KEY}"
    file = _parse(data, where)
    parameters = store.child(file.parameters)
    try:
        vocabularies = {info.name: load_vocabulary(parameters, info) for info in file.card.vocabularies}
    except ConfigError as error:  # a key that leads out of the store
        raise CorruptDataError(f"{where}: names no usable vocabulary: {error}") from error
    return file.card, read_checkpoint(parameters), vocabularies


def _parse(data: bytes, where: str) -> ModelFile:
    try:
        raw = json.loads(data)
        head = {key: raw[key] for key in ("format", "version")}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptDataError(f"{where}: is not the description of a model: {error}") from error
    if head["format"] != MODEL_FORMAT:
        raise CorruptDataError(f"{where}: is not the description of a model")
    if head["version"] != MODEL_VERSION:
        raise CorruptDataError(
            f"{where}: is of version {head['version']}, this program reads {MODEL_VERSION}"
        )
    try:
        file = from_plain(ModelFile, raw, where)
    except ConfigError as error:
        raise CorruptDataError(str(error)) from error
    if not file.parameters.startswith(_PARAMETERS_PREFIX) or "/" in file.parameters:
        raise CorruptDataError(f"{where}: names no usable parameters: {file.parameters!r}")
    return file


def _parameters_of(url: str | os.PathLike[str]) -> str | None:
    """Return the prefix of the model that is at a URL; None where there is none that we could read."""
    try:
        return _parse(open_store(url).get(MODEL_KEY), str(url)).parameters
    except (NotFoundError, CorruptDataError):
        return None


def _scalar(value: Any) -> Any:
    plain = value.item() if isinstance(value, np.generic) else value
    if plain is None or isinstance(plain, (bool, int, float, str)):
        return plain
    raise ConfigError("save", f"cannot write {plain!r} of type {type(plain).__name__}")
