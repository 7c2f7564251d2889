"""Options that several commands share. Light: `cirrus --help` imports this, and no numbers library."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer


class Format(enum.StrEnum):
    """How a file is written."""

    AUTO = "auto"
    SVMLIGHT = "svmlight"
    CSV = "csv"
    PARQUET = "parquet"
    VW = "vw"
    RATINGS = "ratings"
    LDAC = "ldac"
    DOCWORD = "docword"


class Optimizer(enum.StrEnum):
    """What turns gradients into updates."""

    FTRL = "ftrl"
    SGD = "sgd"
    MOMENTUM = "momentum"
    NESTEROV = "nesterov"
    ADAGRAD = "adagrad"
    ADAM = "adam"


class BackendName(enum.StrEnum):
    """Where runs work."""

    LOCAL = "local"
    AWS = "aws"
    RAY = "ray"


class ModelType(enum.StrEnum):
    """What `cirrus train` can train."""

    LOGISTIC = "logistic"
    SOFTMAX = "softmax"
    SVM = "svm"
    LINEAR = "linear"
    FM = "fm"
    FM_REGRESSION = "fm-regression"
    MF = "mf"
    LDA = "lda"
    KMEANS = "kmeans"


#: What is trained unless told otherwise.
DEFAULT_MODEL_TYPE = ModelType.LOGISTIC


class Mode(enum.StrEnum):
    """What workers send."""

    SGD = "sgd"
    AVERAGE = "average"


class OnClientLoss(enum.StrEnum):
    """What a run does when the program that watches over it dies."""

    STOP = "stop"
    CONTINUE = "continue"


class Pruner(enum.StrEnum):
    """How a search gives up the hopeless."""

    NONE = "none"
    MEDIAN = "median"
    ASHA = "asha"


class Preprocessing(enum.StrEnum):
    """What to do with the columns of a dataset."""

    MINMAX = "minmax"
    STANDARD = "standard"
    HASH = "hash"


class Architecture(enum.StrEnum):
    """A processor that functions run on."""

    ARM64 = "arm64"
    X86_64 = "x86_64"
    HOST = "host"


class PythonVersion(enum.StrEnum):
    """A Python that functions run on."""

    PYTHON_3_12 = "3.12"
    PYTHON_3_13 = "3.13"


FormatOption = Annotated[
    Format,
    typer.Option(
        "--format",
        help="How files are written; auto: by the name (.csv, .tsv, .parquet, .vw), else svmlight.",
    ),
]
LabelOption = Annotated[
    str, typer.Option(help="Tables: name or number (from 0) of the label's column; none: there is no label.")
]
LabelAboveOption = Annotated[
    float | None, typer.Option(help="Tables: predict whether the label's column is above this.")
]
NumericOption = Annotated[
    str, typer.Option(metavar="COLUMNS", help="Tables: columns that are numbers, separated by commas.")
]
CategoricalOption = Annotated[
    str, typer.Option(metavar="COLUMNS", help="Tables: columns that are categories, separated by commas.")
]
SepOption = Annotated[
    str | None,
    typer.Option(help='CSV, ratings: what separates columns; "tab" for tabs, as is usual for .tsv.'),
]
HashFeaturesOption = Annotated[
    int | None,
    typer.Option(help="Tables, vw: hash into so many features; default 2**20, vw 2**18.", show_default=False),
]
NaValuesOption = Annotated[
    str,
    typer.Option(
        metavar="TEXTS", help="Tables: cells that mean no value, besides the usual; separated by commas."
    ),
]
ZeroBasedOption = Annotated[
    bool | None,
    typer.Option(
        "--zero-based/--one-based",
        help="svmlight: the first index; default: as it looks.",
        show_default=False,
    ),
]
ProcessesOption = Annotated[int | None, typer.Option(help="Processes that parse; default: one a core.")]
TolOption = Annotated[
    str | None,
    typer.Option(help="End when the loss improves by less, for 5 epochs, or none; default: the model's."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="Any other parameter of the estimator; may be repeated."
    ),
]
HeaderOption = Annotated[
    bool | None,
    typer.Option(
        help="CSV, ratings: the first line names columns; default: as it looks.", show_default=False
    ),
]
InteractionsOption = Annotated[
    str,
    typer.Option(
        metavar="PAIRS", help="vw: pair namespaces by first letters, as -q; several are separated by commas."
    ),
]
VocabularyOption = Annotated[
    str | None, typer.Option(help="ldac, docword: a file with the words, one a line, to be kept.")
]
NFeaturesOption = Annotated[
    int | None, typer.Option(help="svmlight: number of features; by default what the file has.")
]
DropOption = Annotated[
    bool,
    typer.Option("--drop-missing-labels", help="Tables, vw: leave out rows without a label."),
]
SeedOption = Annotated[int, typer.Option(help="Of everything random.")]
HomeOption = Annotated[
    str | None,
    typer.Option(
        "--home",
        help="Where runs are kept; s3://BUCKET: of a deployment on AWS; default: $CIRRUS_HOME or ~/.cirrus.",
        show_default=False,
    ),
]
BackendOption = Annotated[
    BackendName | None,
    typer.Option(
        "--backend",
        help="Where shards and workers run; default: as --home says, and where they did before.",
        show_default=False,
    ),
]
RayAddressOption = Annotated[
    str | None,
    typer.Option(
        help="Of a Ray cluster: HOST:PORT, ray://HOST:PORT or auto; default: this machine's, else a new one.",
        show_default=False,
    ),
]
NameOption = Annotated[str, typer.Option(help="Of the deployment; several in an account need several.")]
PluginDirOption = Annotated[
    Path | None,
    typer.Option(
        help="Take Terraform's provider from this folder instead of the registry.", show_default=False
    ),
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="The run's name, as `cirrus runs` lists it.")]


@dataclass(frozen=True, kw_only=True)
class FileOptions:
    """How to read a file that is not a dataset yet."""

    format: Format
    label: str
    label_above: float | None
    numeric: str
    categorical: str
    sep: str | None
    hash_features: int | None
    n_features: int | None
    drop_missing_labels: bool
    seed: int
    interactions: str
    na_values: str = ""
    zero_based: bool | None = None
    header: bool | None = None
    vocabulary: str | None = None
    shuffle: bool = True
    n_processes: int | None = None
    home: str | None = None
    """Whose functions parse; None: processes of this machine."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """What `cirrus train` is asked for, but for the data."""

    model: str | None
    model_type: ModelType | None
    """None: :data:`DEFAULT_MODEL_TYPE`, where the rows are for it."""
    size: int | None
    epochs: str
    workers: int
    shards: int
    validation: str | None
    validation_split: float
    optimizer: Optimizer | None
    learning_rate: float | None
    l1: float | None
    l2: float | None
    batch_size: str
    tol: str | None
    balanced: bool
    target_loss: float | None
    max_seconds: float | None
    early_stopping: bool
    checkpoint_seconds: float | None
    checkpoint_url: str | None
    resume_from: str | None
    on_client_loss: OnClientLoss
    mode: Mode
    staleness: int | None
    fixed: list[str]
    seed: int
    home: str | None
    backend: BackendName | None = None
    ray_address: str | None = None


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """What `cirrus search` is asked for, but for the data."""

    grid: list[str]
    ranges: list[str]
    draws: int | None
    fixed: list[str]
    pruner: Pruner
    max_concurrent: int | None
    """None: as usual, or as the search that is gone on with has it; so are the three that follow."""
    max_workers: int | None
    max_seconds: float | None
    max_cost: float | None
    scoring: str | None
    model: str | None
    model_type: ModelType | None
    """As of :class:`TrainOptions`."""
    epochs: str
    tol: str | None
    workers: int
    validation: str | None
    validation_split: float
    results: str | None
    seed: int
    name: str | None
    home: str | None
    backend: BackendName | None = None
    ray_address: str | None = None


@dataclass(frozen=True, kw_only=True)
class PreprocessOptions:
    """What `cirrus preprocess` is asked for, but for the data."""

    kind: Preprocessing
    low: float
    high: float
    clip: bool
    mean: bool
    std: bool
    buckets: int
    columns: str
    densify: bool
    alternate_sign: bool
    save: str | None
    workers: int | None
    home: str | None
