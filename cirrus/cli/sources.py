"""DATA arguments: a file to load, or a dataset that was loaded before."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from cirrus.chunks import MANIFEST_KEY
from cirrus.cli.console import count, say
from cirrus.cli.looks import saying_what_it_looks_like
from cirrus.cli.options import FileOptions, Format, ModelType
from cirrus.client_backend.backend import backend_at
from cirrus.client_backend.csv_format import NA_VALUES
from cirrus.client_backend.homes import default_home
from cirrus.client_backend.inputs import STANDARD_INPUT, open_inputs
from cirrus.client_backend.load_job import is_begun
from cirrus.errors import ConfigError, DataError, NotFoundError
from cirrus.frontend.datasets import Dataset, load_csv, load_csv_like, load_svmlight
from cirrus.frontend.load_progress import LoadingLine
from cirrus.frontend.loading import (
    load_bag_of_words,
    load_parquet,
    load_parquet_like,
    load_ratings,
    load_ratings_like,
    load_vw,
    load_vw_like,
)
from cirrus.frontend.progress import short_number
from cirrus.storage import open_store

_PACKED = ("", ".gz", ".lz4", ".bz2", ".xz", ".zip")
_SUFFIXES = {
    ".csv": Format.CSV,
    ".tsv": Format.CSV,
    ".parquet": Format.PARQUET,
    ".vw": Format.VW,
    ".ldac": Format.LDAC,
}
_TABLE = {
    "label",
    "label_above",
    "numeric",
    "categorical",
    "hash_features",
    "drop_missing_labels",
    "na_values",
}
#: The options that say something about files of a format.
_OPTIONS = {
    Format.SVMLIGHT: {"n_features", "zero_based"},
    Format.CSV: {*_TABLE, "sep", "header"},
    Format.PARQUET: _TABLE,
    Format.VW: {"hash_features", "drop_missing_labels", "interactions"},
    Format.RATINGS: {"sep", "header"},
    Format.LDAC: {"vocabulary"},
    Format.DOCWORD: {"vocabulary"},
}
#: What rows of a format are for, where that is not the model that is trained unless told otherwise.
OWN_MODEL_TYPES = {"ratings": ModelType.MF, "bag_of_words": ModelType.LDA}
#: What ``--label`` says of rows that have none.
NO_LABEL = "none"
#: What they are if they are not given.
_NOT_GIVEN: dict[str, Any] = {
    "label": "0",
    "numeric": "",
    "categorical": "",
    "interactions": "",
    "na_values": "",
    "drop_missing_labels": False,
}


def is_dataset(data: str) -> bool:
    """Return whether DATA names a dataset: a URL or a folder with a manifest.

    Raises:
        NotFoundError: There is no such file, object or folder.
        DataError: It is a folder, but not a dataset.
        StorageError: It cannot be looked at.
    """
    if data == STANDARD_INPUT:
        return False
    if "://" in data:
        if open_store(data).exists(MANIFEST_KEY):
            return True
        refuse_unfinished(data)
        _check_inputs(data)
        return False
    path = Path(data)
    if path.is_dir():
        if (path / MANIFEST_KEY).is_file():
            return True
        refuse_unfinished(data)
        raise DataError(f"{data}: is a folder without {MANIFEST_KEY}: name a file, or a dataset to be read")
    if not path.exists():
        refuse_unfinished(data)
        _check_inputs(data)
    return False


def refuse_unfinished(url: str) -> None:
    """Refuse a place where a load of a dataset has begun that has not ended.

    Raises:
        NotFoundError: So it is; with what to do.
    """
    if is_begun(url, default_home()):
        raise NotFoundError(
            f"{url}: a load to here was interrupted, or is at work: the same `cirrus load` goes on with it"
        )


def _check_inputs(data: str) -> None:
    try:
        with open_inputs(data):
            pass
    except NotFoundError as error:
        raise NotFoundError(f"{data}: there is no such file, object or dataset") from error


def load_file(data: str, url: str, options: FileOptions) -> Dataset:
    """Load a file as a dataset, showing how far it is.

    Raises:
        CirrusError: The file cannot be used.
    """
    say(f"loading {data}")
    started_at = time.monotonic()
    with LoadingLine() as line:
        common: dict[str, Any] = {
            "shuffle": options.shuffle,
            "random_state": options.seed,
            "n_processes": options.n_processes,
            "backend": None if options.home is None else backend_at(options.home),
            "progress": line.show,
        }
        dataset = _load(data, url, options, common)
    seconds = max(time.monotonic() - started_at, 1e-9)
    say(
        f"loaded {count(dataset.n_rows, 'row')} of {count(dataset.n_features, 'feature')} in {seconds:.1f} s "
        f"({short_number(dataset.n_rows / seconds)} rows/s)"
    )
    return dataset


def load_file_like(
    data: str,
    url: str,
    encoding: Mapping[str, Any],
    n_features: int,
    *,
    label_names: tuple[str, ...] | None = None,
    with_labels: bool = False,
    sep: str | None = None,
    header: bool | None = None,
) -> Dataset:
    """Load a file in the way other data was loaded, in the file's own order.

    Args:
        data: The file.
        url: Where the dataset goes.
        encoding: The other data's :attr:`~cirrus.chunks.Manifest.encoding`.
        n_features: The other data's number of features.
        label_names: The other data's names of labels.
        with_labels: Whether labels are needed; CSV files and ratings may do without.
        sep: What separates this file's columns; None: as in the other data.
        header: Whether its first line names the columns of ratings; None: as in the other data.

    Raises:
        CirrusError: The file cannot be used.
    """
    written = encoding.get("format", "svmlight")
    is_text_table = written == "csv" and format_of(data) is not Format.PARQUET
    if sep is not None and not (is_text_table or written == "ratings"):
        raise ConfigError("sep", f"does not apply to {data}: leave it out")
    if header is not None and written != "ratings":
        raise ConfigError("header", f"does not apply to {data}, whose columns are known: leave it out")
    say(f"loading {data}")
    with saying_what_it_looks_like(data, written), LoadingLine() as line:
        if written == "csv":
            if sep is not None:
                encoding = {**encoding, "csv": {**encoding["csv"], "sep": _typed_separator(sep)}}
            like = load_parquet_like if format_of(data) is Format.PARQUET else load_csv_like
            return like(
                data, url, encoding, label_names=label_names, with_labels=with_labels, progress=line.show
            )
        if written == "vw":
            return load_vw_like(data, url, encoding, with_labels=with_labels, progress=line.show)
        if written == "ratings":
            known = encoding.get("sep", _usual_separator(data))
            own: dict[str, Any] = {"sep": known if sep is None else _typed_separator(sep)}
            if header is not None:
                own["header"] = "yes" if header else "no"
            return load_ratings_like(
                data, url, {**encoding, **own}, with_labels=with_labels, progress=line.show
            )
        if written == "bag_of_words":
            return load_bag_of_words(data, url, encoding["kind"], shuffle=False, progress=line.show)
        if written != "svmlight":
            raise ConfigError("data", f"{data}: {written} cannot be read alike: load them, name the dataset")
        return load_svmlight(
            data,
            url,
            n_features=n_features,
            zero_based=encoding.get("zero_based", "auto"),
            shuffle=False,
            progress=line.show,
        )


def format_of(data: str) -> Format:
    """Return how a file is written, by its name."""
    name = data.lower()
    for suffix, written in _SUFFIXES.items():
        if name.endswith(tuple(suffix + packed for packed in _PACKED)):
            return written
    return Format.SVMLIGHT


def _load(data: str, url: str, options: FileOptions, common: dict[str, Any]) -> Dataset:
    written = format_of(data) if options.format is Format.AUTO else options.format
    _check_options(written, options)
    given: dict[str, Any] = {
        "sep": _separator(data, options),
        "header": "infer" if options.header is None else options.header,
    }
    if options.hash_features is not None:
        common = {**common, "hash_features": options.hash_features}
    drop: dict[str, Any] = {"missing_label": "drop" if options.drop_missing_labels else "error"}
    if written is Format.CSV:
        return load_csv(data, url, **_table_options(data, options), **drop, **given, **common)
    if written is Format.PARQUET:
        return load_parquet(data, url, **_table_options(data, options), **drop, **common)
    if written is Format.VW:
        pairs = [pair.strip() for pair in options.interactions.split(",") if pair.strip()]
        return load_vw(data, url, interactions=pairs, **drop, **common)
    if written is Format.RATINGS:
        return load_ratings(data, url, **given, **common)
    if written in (Format.LDAC, Format.DOCWORD):
        kind: Literal["ldac", "docword"] = "ldac" if written is Format.LDAC else "docword"
        return load_bag_of_words(data, url, kind, vocabulary=options.vocabulary, **common)
    zero_based: bool | Literal["auto"] = "auto" if options.zero_based is None else options.zero_based
    return load_svmlight(data, url, n_features=options.n_features, zero_based=zero_based, **common)


def _check_options(written: Format, options: FileOptions) -> None:
    """Refuse options that say nothing about files of this format."""
    for name in sorted(set().union(*_OPTIONS.values()) - _OPTIONS[written]):
        if getattr(options, name) != _NOT_GIVEN.get(name):
            raise ConfigError(name, f"does not apply to --format {written.value}: leave it out")


def refuse_file_options(data: str, options: FileOptions) -> None:
    """Refuse options that say how a file is read, where DATA is a dataset.

    Raises:
        ConfigError: One of them was given.
    """
    for name in ("format", *sorted(set().union(*_OPTIONS.values()))):
        if getattr(options, name) != (Format.AUTO if name == "format" else _NOT_GIVEN.get(name)):
            raise ConfigError(name, f"does not apply to {data}, which is a dataset already: leave it out")


def refuse_rows_without_classes(data: str, options: FileOptions) -> None:
    """Refuse rows that are not for the model that is trained unless told otherwise.

    Raises:
        ConfigError: They are ratings, or documents.
    """
    if is_dataset(data):
        written = str(Dataset.open(data).manifest.encoding.get("format"))
    else:
        found = format_of(data) if options.format is Format.AUTO else options.format
        written = "bag_of_words" if found in (Format.LDAC, Format.DOCWORD) else found.value
    if written in OWN_MODEL_TYPES:
        what = "ratings" if written == "ratings" else "documents"
        raise ConfigError(
            "model_type", f"{data} holds {what}: say --model-type {OWN_MODEL_TYPES[written].value}"
        )


def _separator(data: str, options: FileOptions) -> str:
    return _usual_separator(data) if options.sep is None else _typed_separator(options.sep)


def _typed_separator(sep: str) -> str:
    return "\t" if sep in ("tab", "\\t") else sep


def _usual_separator(data: str) -> str:
    return "\t" if ".tsv" in data.lower() else ","


def _table_options(data: str, options: FileOptions) -> dict[str, Any]:
    numeric, categorical = columns(options.numeric), columns(options.categorical)
    if not numeric and not categorical:
        raise DataError(f"{data}: name its columns with --numeric and --categorical")
    return {
        "label": None if options.label == NO_LABEL else column(options.label),
        "numeric": numeric,
        "categorical": categorical,
        "label_above": options.label_above,
        "na_values": (*NA_VALUES, *(text.strip() for text in options.na_values.split(",") if text.strip())),
    }


def columns(text: str) -> list[str | int]:
    """Return columns from a comma-separated option: numbers count from 0, all else are names."""
    return [column(part.strip()) for part in text.split(",") if part.strip()]


def column(text: str) -> str | int:
    """Return one column by number or name."""
    return int(text) if text.isdecimal() else text
