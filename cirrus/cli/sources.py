"""DATA arguments: a file to load, or a dataset that was loaded before."""

from __future__ import annotations

import enum
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from cirrus.chunks import MANIFEST_KEY
from cirrus.cli.console import LoadingLine, say
from cirrus.errors import ConfigError, DataError, NotFoundError
from cirrus.frontend.datasets import Dataset, load_csv, load_svmlight
from cirrus.frontend.progress import short_number

_CSV_SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz")


class Format(enum.StrEnum):
    """How a file is written."""

    AUTO = "auto"
    SVMLIGHT = "svmlight"
    CSV = "csv"


FormatOption = Annotated[
    Format, typer.Option("--format", help="How the file is written; auto: CSV if its name says so.")
]
LabelOption = Annotated[str, typer.Option(help="CSV: name or number (from 0) of the label's column.")]
LabelAboveOption = Annotated[
    float | None, typer.Option(help="CSV: predict whether the label's column is above this.")
]
NumericOption = Annotated[
    str, typer.Option(metavar="COLUMNS", help="CSV: columns that are numbers, separated by commas.")
]
CategoricalOption = Annotated[
    str, typer.Option(metavar="COLUMNS", help="CSV: columns that are categories, separated by commas.")
]
SepOption = Annotated[
    str | None, typer.Option(help='CSV: what separates columns; "tab" for tabs, as is usual for .tsv.')
]
HashFeaturesOption = Annotated[int, typer.Option(help="CSV: categories are hashed into this many features.")]
NFeaturesOption = Annotated[
    int | None, typer.Option(help="svmlight: number of features; by default what the file has.")
]
DropOption = Annotated[
    bool,
    typer.Option("--drop-missing-labels", help="CSV: leave out rows without a label, instead of failing."),
]
SeedOption = Annotated[int, typer.Option(help="Of everything random.")]


@dataclass(frozen=True, kw_only=True)
class FileOptions:
    """How to read a file that is not a dataset yet."""

    format: Format = Format.AUTO
    label: str = "0"
    label_above: float | None = None
    numeric: str = ""
    categorical: str = ""
    sep: str | None = None
    hash_features: int = 2**20
    n_features: int | None = None
    drop_missing_labels: bool = False
    shuffle: bool = True
    seed: int = 0
    n_processes: int | None = None


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


def load_file_like(data: str, url: str, encoding: Mapping[str, Any], n_features: int) -> Dataset:
    """Load a file in the way the data of a model was loaded, in the file's own order.

    Raises:
        CirrusError: The file cannot be used.
    """
    kind = encoding.get("format")
    if kind not in ("csv", "svmlight", None):
        raise DataError(f"{data}: the model was trained on {kind}, which has no files to predict from")
    with LoadingLine() as line:
        if kind == "csv":
            return load_csv_like(data, url, encoding, progress=line.show)
        return load_svmlight(data, url, n_features=n_features, shuffle=False, progress=line.show)


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
