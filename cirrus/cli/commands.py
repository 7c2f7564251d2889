"""What each command is called and takes. The work is in modules that the commands import when they run."""

from __future__ import annotations

import functools
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, ParamSpec

import typer

from cirrus.cli.options import (
    DEFAULT_MODEL_TYPE,
    Architecture,
    BackendOption,
    CategoricalOption,
    DropOption,
    FileOptions,
    Format,
    FormatOption,
    HashFeaturesOption,
    HeaderOption,
    HomeOption,
    InteractionsOption,
    LabelAboveOption,
    LabelOption,
    Mode,
    ModelType,
    NameOption,
    NaValuesOption,
    NFeaturesOption,
    NumericOption,
    OnClientLoss,
    Optimizer,
    PluginDirOption,
    Preprocessing,
    PreprocessOptions,
    ProcessesOption,
    Pruner,
    PythonVersion,
    RayAddressOption,
    RunArgument,
    SearchOptions,
    SeedOption,
    SepOption,
    SetOption,
    TolOption,
    TrainOptions,
    VocabularyOption,
    YesOption,
    ZeroBasedOption,
)
from cirrus.errors import CirrusError

#: Exit codes, as is usual; wrong usage is typer's own 2.
ERROR_EXIT_CODE = 1
INTERRUPTED_EXIT_CODE = 130

P = ParamSpec("P")

app = typer.Typer(
    name="cirrus",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from cirrus import __version__

        print(f"cirrus {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Train sparse models on stateless workers and a parameter server."""


def _command(function: Callable[P, None]) -> Callable[P, None]:
    """Make a function a command whose errors are one line on standard error and an exit code."""

    @functools.wraps(function)
    def reporting(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = functools.partial(_show_warning, function)
                function(*args, **kwargs)
        except KeyboardInterrupt:
            _end("interrupted", INTERRUPTED_EXIT_CODE)
        except BrokenPipeError:
            # Whoever read our output has gone; nor may the interpreter try to flush the rest at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(ERROR_EXIT_CODE) from None
        except CirrusError as error:
            from cirrus.cli.wording import error_line

            _end(f"error: {error_line(error, function)}", ERROR_EXIT_CODE)
        except OSError as error:
            _end(f"error: {error.filename or 'input or output'}: {error.strerror}", ERROR_EXIT_CODE)

    app.command()(reporting)
    return reporting


def _show_warning(function: Callable[..., None], message: Warning | str, *_: object, **__: object) -> None:
    from cirrus.cli.wording import in_options

    print(f"warning: {in_options(str(message), function)}", file=sys.stderr, flush=True)


def _typed(context: typer.Context) -> list[str]:
    """Return the parameters of a command that were typed, even if as their defaults."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]


def _end(message: str, code: int) -> None:
    print(message, file=sys.stderr, flush=True)
    raise typer.Exit(code) from None


@_command
def load(
    data: Annotated[
        str,
        typer.Argument(
            help="Files: a path, a pattern in quotation marks, s3://bucket/key or a prefix, or - for standard"
            " input; plain, .gz, .lz4, .bz2, .xz or .zip."
        ),
    ],
    url: Annotated[str, typer.Argument(help="Where the dataset goes: a folder or s3://bucket/prefix.")],
    format: FormatOption = Format.AUTO,
    label: LabelOption = "0",
    label_above: LabelAboveOption = None,
    numeric: NumericOption = "",
    categorical: CategoricalOption = "",
    sep: SepOption = None,
    hash_features: HashFeaturesOption = None,
    interactions: InteractionsOption = "",
    header: HeaderOption = None,
    vocabulary: VocabularyOption = None,
    n_features: NFeaturesOption = None,
    drop_missing_labels: DropOption = False,
    shuffle: Annotated[
        bool, typer.Option(help="Spread the rows at random, or keep the file's order.")
    ] = True,
    na_values: NaValuesOption = "",
    zero_based: ZeroBasedOption = None,
    seed: SeedOption = 0,
    processes: ProcessesOption = None,
    home: Annotated[
        str | None,
        typer.Option(help="s3://BUCKET of a deployment: parse in its functions.", show_default=False),
    ] = None,
) -> None:
    """Parse files once and store them as a dataset, to train on as often as you like.

    Interrupted, the same command goes on where it was.

    Example: cirrus load a9a.gz data/a9a

    Example: cirrus load clicks.csv data/clicks --label clicked --categorical site,device --numeric hour

    Example: cirrus load 'logs/*.parquet' s3://bucket/logs --label clicked --categorical site --numeric hour

    Example: cirrus load s3://bucket/train.vw.gz data/train --interactions ua,uc --hash-features 1048576

    Example: cirrus load s3://bucket/raw/ s3://bucket/clicks --format csv --label 0 --home s3://bucket

    Example: zcat part-*.gz | cirrus load - data/ratings --format ratings --sep tab

    Example: cirrus load docword.nips.txt.gz data/nips --format docword --vocabulary vocab.nips.txt
    """
    from cirrus.cli import loading as work

    work.load(
        data,
        url,
        FileOptions(
            format=format,
            label=label,
            label_above=label_above,
            numeric=numeric,
            categorical=categorical,
            sep=sep,
            hash_features=hash_features,
            interactions=interactions,
            header=header,
            vocabulary=vocabulary,
            n_features=n_features,
            drop_missing_labels=drop_missing_labels,
            na_values=na_values,
            zero_based=zero_based,
            seed=seed,
            shuffle=shuffle,
            n_processes=processes,
            home=home,
        ),
    )


@_command
def describe(
    url: Annotated[str, typer.Argument(help="A dataset or a saved model.")],
    columns: Annotated[
        int, typer.Option(help="Dataset: show this many columns; that reads all rows. 0: the manifest alone.")
    ] = 0,
    home: Annotated[
        str | None,
        typer.Option(help="s3://BUCKET of a deployment: read rows in its functions.", show_default=False),
    ] = None,
) -> None:
    """Say what a dataset or a saved model holds.

    Example: cirrus describe data/clicks --columns 20
    """
    from cirrus.cli import data as work

    work.describe(url, columns, home)


@_command
def preprocess(
    kind: Annotated[Preprocessing, typer.Argument(help="What to do with the columns.")],
    source: Annotated[str, typer.Argument(metavar="IN", help="A dataset.")],
    target: Annotated[str, typer.Argument(metavar="OUT", help="Where the new dataset goes.")],
    low: Annotated[float, typer.Option(help="minmax: where the smallest value of a column goes.")] = 0.0,
    high: Annotated[float, typer.Option(help="minmax: where the largest value of a column goes.")] = 1.0,
    clip: Annotated[bool, typer.Option("--clip", help="minmax: cut values off at the range.")] = False,
    mean: Annotated[
        bool, typer.Option(help="standard: shift to mean 0; sparse data would become dense.")
    ] = True,
    std: Annotated[bool, typer.Option(help="standard: scale to variance 1.")] = True,
    buckets: Annotated[int, typer.Option(help="hash: number of columns to hash into.")] = 2**20,
    columns: Annotated[
        str, typer.Option(metavar="NUMBERS", help="hash: columns to hash, separated by commas; default: all.")
    ] = "",
    densify: Annotated[
        bool, typer.Option("--densify", help="Fill in zeros that do not stay zero, however many.")
    ] = False,
    alternate_sign: Annotated[
        bool, typer.Option(help="hash: flip the sign of half of the columns, so that collisions cancel.")
    ] = True,
    save: Annotated[str | None, typer.Option(help="Also save what was fitted, to use it on arrays.")] = None,
    workers: Annotated[int | None, typer.Option(help="Functions at a time; default: one a core.")] = None,
    home: Annotated[
        str | None,
        typer.Option(help="s3://BUCKET of a deployment: work in its functions.", show_default=False),
    ] = None,
) -> None:
    """Scale or hash the columns of a dataset; interrupted, the same command goes on where it was.

    Example: cirrus preprocess standard data/clicks data/scaled --no-mean
    """
    from cirrus.cli import preprocessing as work

    work.preprocess(
        source,
        target,
        PreprocessOptions(
            kind=kind,
            low=low,
            high=high,
            clip=clip,
            mean=mean,
            std=std,
            buckets=buckets,
            columns=columns,
            densify=densify,
            alternate_sign=alternate_sign,
            save=save,
            workers=workers,
            home=home,
        ),
    )


@_command
def train(
    data: Annotated[str, typer.Argument(help="Files as `cirrus load` takes them, or a dataset.")],
    model: Annotated[
        str | None,
        typer.Option(help="Where the model goes; default: into the home folder.", show_default=False),
    ] = None,
    epochs: Annotated[str, typer.Option(help='Most passes over the data, or "auto".')] = "auto",
    workers: Annotated[int, typer.Option(help="Processes that compute gradients.")] = 2,
    shards: Annotated[int, typer.Option(help="Processes that hold the parameters.")] = 1,
    validation: Annotated[
        str | None, typer.Option(help="File or dataset to validate on, instead of a part of DATA.")
    ] = None,
    validation_split: Annotated[
        float, typer.Option(help="Share of DATA to hold out; 0: train on all of it.")
    ] = 0.1,
    model_type: Annotated[
        ModelType | None,
        typer.Option(
            help="What to train; linear, fm-regression: numbers, all others: classes.",
            show_default=DEFAULT_MODEL_TYPE.value,
        ),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(help="Factors (fm, mf), topics (lda) or clusters (kmeans); default: the model's."),
    ] = None,
    optimizer: Annotated[
        Optimizer | None, typer.Option(help="How gradients become updates; default: the model's.")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Step size; default: the model's.")] = None,
    l1: Annotated[
        float | None, typer.Option(help="Penalty on absolute values; default: the model's.")
    ] = None,
    l2: Annotated[float | None, typer.Option(help="Penalty on squares; default: 0.")] = None,
    batch_size: Annotated[str, typer.Option(help='Rows of a minibatch, or "auto".')] = "auto",
    tol: TolOption = None,
    balanced: Annotated[bool, typer.Option("--balanced", help="Weigh the two classes alike.")] = False,
    target_loss: Annotated[float | None, typer.Option(help="End at this loss.")] = None,
    max_seconds: Annotated[float | None, typer.Option(help="End after this long.")] = None,
    early_stopping: Annotated[
        bool, typer.Option("--early-stopping", help="Watch the validation loss for --tol.")
    ] = False,
    checkpoint_seconds: Annotated[float | None, typer.Option(help="Cut a checkpoint this often.")] = None,
    checkpoint_url: Annotated[str | None, typer.Option(help="Where checkpoints go.")] = None,
    resume_from: Annotated[str | None, typer.Option(help="A checkpoint to go on from.")] = None,
    on_client_loss: Annotated[
        OnClientLoss, typer.Option(help="If this program dies: stop, or continue as long as workers live.")
    ] = OnClientLoss.STOP,
    mode: Annotated[
        Mode, typer.Option(help="sgd: workers send gradients; average: what they learned from a lease.")
    ] = Mode.SGD,
    staleness: Annotated[
        int | None,
        typer.Option(help="Most steps between workers; 0: in step, the same every time; default: any."),
    ] = None,
    fixed: SetOption = None,
    format: FormatOption = Format.AUTO,
    label: LabelOption = "0",
    label_above: LabelAboveOption = None,
    numeric: NumericOption = "",
    categorical: CategoricalOption = "",
    sep: SepOption = None,
    hash_features: HashFeaturesOption = None,
    interactions: InteractionsOption = "",
    n_features: NFeaturesOption = None,
    drop_missing_labels: DropOption = False,
    header: HeaderOption = None,
    na_values: NaValuesOption = "",
    zero_based: ZeroBasedOption = None,
    processes: ProcessesOption = None,
    seed: SeedOption = 0,
    home: HomeOption = None,
    backend: BackendOption = None,
    ray_address: RayAddressOption = None,
) -> None:
    """Train a model, and compare it on rows held out with one that knows no features.

    Example: cirrus train clicks.svm --epochs 3 --workers 2 --model out/clicks

    Example: cirrus train houses.csv --model-type linear --label price --numeric rooms,area

    Example: cirrus train clicks.svm --backend ray --ray-address auto

    Example: cirrus train ratings.csv --format ratings --model-type mf --size 20
    """
    from cirrus.cli import training

    training.train(
        data,
        FileOptions(
            format=format,
            label=label,
            label_above=label_above,
            numeric=numeric,
            categorical=categorical,
            sep=sep,
            hash_features=hash_features,
            interactions=interactions,
            n_features=n_features,
            drop_missing_labels=drop_missing_labels,
            header=header,
            na_values=na_values,
            zero_based=zero_based,
            n_processes=processes,
            seed=seed,
        ),
        TrainOptions(
            model=model,
            model_type=model_type,
            size=size,
            epochs=epochs,
            workers=workers,
            shards=shards,
            validation=validation,
            validation_split=validation_split,
            optimizer=optimizer,
            learning_rate=learning_rate,
            l1=l1,
            l2=l2,
            batch_size=batch_size,
            tol=tol,
            balanced=balanced,
            target_loss=target_loss,
            max_seconds=max_seconds,
            early_stopping=early_stopping,
            checkpoint_seconds=checkpoint_seconds,
            checkpoint_url=checkpoint_url,
            resume_from=resume_from,
            on_client_loss=on_client_loss,
            mode=mode,
            staleness=staleness,
            fixed=fixed or [],
            seed=seed,
            home=home,
            backend=backend,
            ray_address=ray_address,
        ),
    )


@_command
def search(
    context: typer.Context,
    data: Annotated[
        str | None,
        typer.Argument(help="An svmlight or CSV file, plain, .gz or .zip, or a dataset.", show_default=False),
    ] = None,
    grid: Annotated[
        list[str] | None, typer.Option(metavar="NAME=A,B,...", help="Values to try; may be repeated.")
    ] = None,
    ranges: Annotated[
        list[str] | None,
        typer.Option(
            "--range", metavar="NAME=LOW:HIGH", help="Where --draws draw from; logarithmic above 0."
        ),
    ] = None,
    draws: Annotated[
        int | None, typer.Option(help="Try so many random draws instead of every combination.")
    ] = None,
    fixed: SetOption = None,
    pruner: Annotated[Pruner, typer.Option(help="How the hopeless are given up.")] = Pruner.NONE,
    max_concurrent: Annotated[int | None, typer.Option(help="Trials at a time.", show_default="4")] = None,
    max_workers: Annotated[int | None, typer.Option(help="Workers at a time, over all trials.")] = None,
    max_seconds: Annotated[float | None, typer.Option(help="End after this long.")] = None,
    max_cost: Annotated[
        float | None, typer.Option(help="End after this many dollars, over all trials.")
    ] = None,
    scoring: Annotated[
        str | None, typer.Option(help="A scikit-learn scorer such as roc_auc; default: the loss.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Where the best model goes; default: into the home folder.", show_default=False),
    ] = None,
    model_type: Annotated[
        ModelType | None,
        typer.Option(
            help="What to train; linear, fm-regression: numbers, all others: classes.",
            show_default=DEFAULT_MODEL_TYPE.value,
        ),
    ] = None,
    epochs: Annotated[str, typer.Option(help='Most passes over the data, or "auto".')] = "auto",
    tol: TolOption = None,
    workers: Annotated[int, typer.Option(help="Processes that compute gradients, for each trial.")] = 1,
    validation: Annotated[
        str | None, typer.Option(help="File or dataset to validate on, instead of a part of DATA.")
    ] = None,
    validation_split: Annotated[float, typer.Option(help="Share of DATA to hold out.")] = 0.1,
    results: Annotated[str | None, typer.Option(help="CSV file for the table of all trials.")] = None,
    name: Annotated[
        str | None, typer.Option(help="What to call the search; the same command goes on with it.")
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="SEARCH",
            help="Go on with a search whose terminal went away, within its limits: --max-... replace them.",
        ),
    ] = None,
    format: FormatOption = Format.AUTO,
    label: LabelOption = "0",
    label_above: LabelAboveOption = None,
    numeric: NumericOption = "",
    categorical: CategoricalOption = "",
    sep: SepOption = None,
    hash_features: HashFeaturesOption = None,
    n_features: NFeaturesOption = None,
    drop_missing_labels: DropOption = False,
    interactions: InteractionsOption = "",
    header: HeaderOption = None,
    na_values: NaValuesOption = "",
    zero_based: ZeroBasedOption = None,
    processes: ProcessesOption = None,
    seed: SeedOption = 0,
    home: HomeOption = None,
    backend: BackendOption = None,
    ray_address: RayAddressOption = None,
) -> None:
    """Try hyperparameters side by side, and keep the best model.

    Example: cirrus search clicks.svm --grid learning_rate=0.03,0.1,0.3 --grid l1=0,1 --pruner asha
    """
    from cirrus.cli import searching

    options = SearchOptions(
        grid=grid or [],
        ranges=ranges or [],
        draws=draws,
        fixed=fixed or [],
        pruner=pruner,
        max_concurrent=max_concurrent,
        max_workers=max_workers,
        max_seconds=max_seconds,
        max_cost=max_cost,
        scoring=scoring,
        model=model,
        model_type=model_type,
        epochs=epochs,
        tol=tol,
        workers=workers,
        validation=validation,
        validation_split=validation_split,
        results=results,
        seed=seed,
        name=name,
        home=home,
        backend=backend,
        ray_address=ray_address,
    )
    if resume is not None:
        if data is not None:
            raise typer.BadParameter("give DATA or --resume, not both", param_hint="--resume")
        searching.resume(resume, options, _typed(context))
        return
    if data is None:
        raise typer.BadParameter("is missing", param_hint="DATA")
    searching.search(
        data,
        FileOptions(
            format=format,
            label=label,
            label_above=label_above,
            numeric=numeric,
            categorical=categorical,
            sep=sep,
            hash_features=hash_features,
            interactions=interactions,
            n_features=n_features,
            drop_missing_labels=drop_missing_labels,
            header=header,
            na_values=na_values,
            zero_based=zero_based,
            n_processes=processes,
            seed=seed,
        ),
        options,
    )


@_command
def predict(
    model: Annotated[str, typer.Argument(help="A saved model.")],
    data: Annotated[str, typer.Argument(help="A file like the one trained on, or a dataset.")],
    out: Annotated[str, typer.Option("--out", "-o", help="CSV file to write; - for standard output.")] = "-",
    sep: SepOption = None,
    header: HeaderOption = None,
) -> None:
    """Predict the label of each row, in the order of the file, as CSV.

    The columns are the likelier label and the probability of the second class; more than two classes have a
    probability each, and numbers a single column. Users and items of ratings are known by their ids; a line
    needs no rating. Without --sep, columns are separated as in the files trained on.

    Example: cirrus predict out/clicks new.svm --out predictions.csv

    Example: cirrus predict out/films pairs.csv --sep ,
    """
    from cirrus.cli import data as work

    work.predict(model, data, out, sep=sep, header=header)


@_command
def runs(
    search: Annotated[
        str | None, typer.Option(metavar="SEARCH", help="The trials of this search.", show_default=False)
    ] = None,
    home: HomeOption = None,
) -> None:
    """List all runs and searches, oldest first, live or long ended.

    Example: cirrus runs
    """
    from cirrus.cli import runs as work

    work.list_all(home, search)


@_command
def attach(
    run: RunArgument,
    killed: Annotated[bool, typer.Option("--killed", help="Go on with it even if it was killed.")] = False,
    home: HomeOption = None,
    backend: BackendOption = None,
    ray_address: RayAddressOption = None,
) -> None:
    """Go on with a run whose terminal went away, to its end; its model goes where it was meant to.

    Example: cirrus attach 20261123-101500-ab12cd
    """
    from cirrus.cli import runs as work
    from cirrus.client_backend.backend import named_backend

    is_named = backend is not None or ray_address is not None
    work.attach(run, named_backend(backend, home, ray_address), is_named=is_named, killed=killed)


@_command
def kill(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run or a search, as `cirrus runs` lists it.")],
    trial: Annotated[
        int | None, typer.Option(help="Only this trial of a search; the others go on.", show_default=False)
    ] = None,
    home: HomeOption = None,
    backend: BackendOption = None,
    ray_address: RayAddressOption = None,
) -> None:
    """End a run or a whole search now; its model is not kept.

    Example: cirrus kill 20261123-101500-ab12cd
    """
    from cirrus.cli import runs as work
    from cirrus.client_backend.backend import named_backend

    work.kill(run, named_backend(backend, home, ray_address), trial)


@_command
def dashboard(
    url: Annotated[
        str | None,
        typer.Argument(
            help="What holds the runs: a folder or s3://bucket/prefix; default: $CIRRUS_HOME or ~/.cirrus.",
            show_default=False,
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Where to listen; 0: the kernel chooses.")
    ] = 8050,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="A name that browsers may ask by; give it for each.", show_default=False
        ),
    ] = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
) -> None:
    """Show the loss curves of all runs as they grow, and end those that go nowhere.

    The first line on standard output is its address. Whoever knows that may end runs.

    Example: cirrus dashboard --open
    """
    from cirrus.cli import dashboard as work

    work.dashboard(url, host, port, allow_host or [], open_browser=open_browser)


@_command
def ps(
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Where to listen on loopback; 0: the kernel chooses.")
    ] = 0,
    rows: Annotated[int, typer.Option(help="Rows of its table.")] = 2**20,
    width: Annotated[int, typer.Option(help="Numbers in a row.")] = 1,
    optimizer: Annotated[Optimizer, typer.Option(help="How gradients become updates.")] = Optimizer.SGD,
    learning_rate: Annotated[float, typer.Option(help="Step size.")] = 0.1,
) -> None:
    """Run one parameter-server shard until Ctrl-C, with an empty table called "weights".

    The first line on standard output is its address. Clients find their token in the run folder.

    Example: cirrus ps --port 0 --rows 1000000 --optimizer adagrad
    """
    from cirrus.cli import server

    server.serve(port, rows, width, optimizer, learning_rate)


@_command
def package(
    out: Annotated[Path, typer.Option(help="Folder for worker.zip, or for server/.")] = Path("out"),
    server: Annotated[
        bool, typer.Option("--server", help="The wheels that shard servers install, instead of the zip.")
    ] = False,
    python: Annotated[
        PythonVersion, typer.Option(help="Python of the functions and servers.")
    ] = PythonVersion.PYTHON_3_13,
    architecture: Annotated[
        Architecture, typer.Option(help="Their processor; host: this machine and its Python, for emulators.")
    ] = Architecture.ARM64,
) -> None:
    """Pack what runs on AWS: the zip of the worker function, or the wheels of the shard servers.

    The same sources give the same bytes. `cirrus deploy` does this by itself.

    Example: cirrus package --architecture x86_64 --out out
    """
    from cirrus.cli import packaging
    from cirrus.client_backend.aws.wheels import Target

    packaging.package(out, Target(python=python.value, architecture=architecture.value), server=server)


@_command
def deploy(
    name: NameOption = "cirrus",
    region: Annotated[
        str | None, typer.Option(help="AWS region; default: as your environment or profile says.")
    ] = None,
    worker_memory_mb: Annotated[
        list[int] | None, typer.Option(help="Memory of a worker function; may be given again.")
    ] = None,
    python: Annotated[
        PythonVersion, typer.Option(help="Python of the functions and servers.")
    ] = PythonVersion.PYTHON_3_13,
    architecture: Annotated[
        Architecture, typer.Option(help="Their processor; host: this machine, for emulators.")
    ] = Architecture.ARM64,
    var: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Any other variable of terraform/.")
    ] = None,
    plugin_dir: PluginDirOption = None,
    yes: YesOption = False,
) -> None:
    """Make what Cirrus needs in your AWS account, or bring it up to date, with Terraform.

    Shows the plan and asks before it does anything.

    Example: cirrus deploy --region eu-central-1 --worker-memory-mb 1769 --var keep_warm_seconds=600
    """
    from cirrus.cli import deploying
    from cirrus.client_backend.aws.deploy import DeployOptions
    from cirrus.client_backend.aws.wheels import Target

    options = DeployOptions(
        name=name,
        region=region,
        target=Target(python=python.value, architecture=architecture.value),
        worker_memory_mb=tuple(worker_memory_mb or DeployOptions.worker_memory_mb),
        variables=deploying.parse_variables(var or []),
        plugin_folder=plugin_dir,
    )
    deploying.deploy(options, yes=yes)


@_command
def destroy(
    name: NameOption = "cirrus",
    delete_data: Annotated[
        bool, typer.Option("--delete-data", help="Also delete the datasets, runs and models in the bucket.")
    ] = False,
    plugin_dir: PluginDirOption = None,
    yes: YesOption = False,
) -> None:
    """End all servers of a deployment and remove everything of it from your AWS account.

    Example: cirrus destroy --delete-data
    """
    from cirrus.cli import deploying

    deploying.destroy(name, delete_data=delete_data, plugin_dir=plugin_dir, yes=yes)
