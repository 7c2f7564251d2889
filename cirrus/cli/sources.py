"""DATA arguments: a file to load, or a dataset that was loaded before."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cirrus.chunks import MANIFEST_KEY
from cirrus.cli.console import LoadingLine, say
from cirrus.cli.options import FileOptions, Format
from cirrus.errors import ConfigError, DataError, NotFoundError
from cirrus.frontend.datasets import Dataset, load_csv, load_csv_like, load_svmlight
from cirrus.frontend.progress import short_number

_CSV_SUFFIXES = tuple(kind + packed for kind in (".csv", ".tsv") for packed in ("", ".gz", ".lz4", ".zip"))


def is_dataset(data: str) -> bool:
    """Return whether DATA names a dataset, by its look: a URL or a folder with a manifest.

    Raises:
        NotFoundError: There is no such file or folder.
        DataError: It is a folder, but not a dataset.
    """
    if "://" in data:
        return True
    path = Path(data)
    if path.is_dir():
        if (path / MANIFEST_KEY).is_file():
            return True
        raise DataError(f"{data}: is a folder without {MANIFEST_KEY}: name a file, or a dataset to be read")
    if not path.exists():
        raise NotFoundError(f"{data}: there is no such file or dataset")
    return False


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
            "progress": line.show,
        }
        if _is_csv(data, options.format):
            dataset = load_csv(data, url, **_csv_options(data, options), **common)
        else:
            dataset = load_svmlight(data, url, n_features=options.n_features, **common)
    seconds = max(time.monotonic() - started_at, 1e-9)
    say(
        f"loaded {dataset.n_rows:,} rows of {dataset.n_features:,} features in {seconds:.1f} s "
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
) -> Dataset:
    """Load a file in the way other data was loaded, in the file's own order.

    Args:
        data: The file.
        url: Where the dataset goes.
        encoding: The other data's :attr:`~cirrus.chunks.Manifest.encoding`.
        n_features: The other data's number of features.
        label_names: The other data's names of labels.
        with_labels: Whether labels are needed; a CSV file may do without.

    Raises:
        CirrusError: The file cannot be used.
    """
    say(f"loading {data}")
    with LoadingLine() as line:
        if encoding.get("format") == "csv":
            return load_csv_like(
                data, url, encoding, label_names=label_names, with_labels=with_labels, progress=line.show
            )
        return load_svmlight(
            data,
            url,
            n_features=n_features,
            zero_based=encoding.get("zero_based", "auto"),
            shuffle=False,
            progress=line.show,
        )


def _is_csv(data: str, file_format: Format) -> bool:
    if file_format is Format.AUTO:
        return data.lower().endswith(_CSV_SUFFIXES)
    return file_format is Format.CSV


def _csv_options(data: str, options: FileOptions) -> dict[str, Any]:
    numeric, categorical = columns(options.numeric), columns(options.categorical)
    if not numeric and not categorical:
        raise ConfigError("categorical", f"{data} is CSV: name its columns with --numeric and --categorical")
    sep = options.sep or ("\t" if ".tsv" in data.lower() else ",")
    return {
        "label": column(options.label),
        "numeric": numeric,
        "categorical": categorical,
        "sep": "\t" if sep in ("tab", "\\t") else sep,
        "hash_features": options.hash_features,
        "label_above": options.label_above,
        "missing_label": "drop" if options.drop_missing_labels else "error",
    }


def columns(text: str) -> list[str | int]:
    """Return columns from a comma-separated option: numbers count from 0, all else are names."""
    return [column(part.strip()) for part in text.split(",") if part.strip()]


def column(text: str) -> str | int:
    """Return one column by number or name."""
    return int(text) if text.isdecimal() else text
