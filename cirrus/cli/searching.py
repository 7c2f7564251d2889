"""``cirrus search``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scipy.stats import loguniform, uniform

from cirrus.cli.console import command, say, show, table
from cirrus.cli.options import DEFAULT_MODEL_TYPE, FileOptions, Pruner, SearchOptions
from cirrus.cli.parameters import fixed_parameters, pair, tol_of, value_of
from cirrus.cli.sources import is_dataset, load_file, load_file_like, refuse_rows_without_classes
from cirrus.cli.training import ESTIMATORS, WITHOUT_LABELS, number_or_auto
from cirrus.client_backend.backend import Backend, backend_going_on, named_backend
from cirrus.client_backend.overview import Overview
from cirrus.client_backend.search_folder import (
    CONFIG_KEY,
    DATA_FOLDER,
    SearchFolder,
    new_search_id,
    search_url,
)
from cirrus.errors import ConfigError, ConflictError, NotFoundError
from cirrus.frontend.datasets import Dataset
from cirrus.frontend.model_files import may_hold_model
from cirrus.frontend.prediction import ScoringEstimator
from cirrus.frontend.scoring import score_dataset, scores_table
from cirrus.frontend.scratch import remove_below
from cirrus.frontend.search.base import Search
from cirrus.frontend.search.grid import GridSearch, RandomSearch
from cirrus.frontend.search.progress import trial_cells
from cirrus.frontend.search.results import rank_key
from cirrus.metrics import RunState

#: Parameters of the command that act on a search which was begun before; its folder holds the others.
RESUME_PARAMETERS = frozenset(
    (
        *("resume", "max_concurrent", "max_workers", "max_seconds", "max_cost", "model", "results"),
        *("home", "backend", "ray_address"),
    )
)
#: Lines of the table at the end.
TOP_TRIALS = 10
HEAD = ("TRIAL", "STATUS", "EPOCHS", "LOSS", "SCORE", "COST", "HYPERPARAMETERS")
NUMBER_COLUMNS = frozenset({0, 2, 3, 4, 5})


def search(data: str, file_options: FileOptions, options: SearchOptions) -> None:
    """Try hyperparameters, show the best, and save the best model."""
    if not 0 < options.validation_split < 1 and options.validation is None:
        raise ConfigError("validation_split", f"must be above 0 and below 1, got {options.validation_split}")
    _check_model_place(options.model)
    backend = named_backend(options.backend, options.home, options.ray_address)
    search_id = options.name or new_search_id()
    made = _make(options, search_id, backend)
    try:
        made.check()
    except ConfigError as error:
        raise _as_typed(error, options) from error
    for source in (data, options.validation):
        if source is not None:
            is_dataset(source)
    if options.model_type is None:
        refuse_rows_without_classes(data, file_options)
    place = search_url(backend.root, search_id)
    if options.name is not None and _is_driven(backend.root, search_id):
        raise ConflictError(f"another program drives search {search_id}")
    backend.check()
    try:
        rows, held_out = _data(data, file_options, options, f"{place}/{DATA_FOLDER}")
        say(f"search {search_id} (from another terminal: {command('kill', search_id, *backend.options)})")
        made.start(rows, validation=held_out)
    except BaseException:
        if not SearchFolder(place).store.exists(CONFIG_KEY):
            remove_below(place)
        raise
    _finish(made, search_id, options, held_out, backend)


def resume(search_id: str, options: SearchOptions, typed: Sequence[str]) -> None:
    """Go on with a search whose terminal went away.

    Args:
        search_id: The search.
        options: What was typed, and defaults.
        typed: Parameters of the command that were typed.

    Raises:
        ConfigError: One of them cannot act on it.
    """
    for name in typed:
        if name not in RESUME_PARAMETERS:
            raise ConfigError(name, "the search has its own; give it to a new search")
    _check_model_place(options.model)
    backend = named_backend(options.backend, options.home, options.ray_address)
    config = SearchFolder.open(backend.root, search_id).config()
    if options.backend is None and options.ray_address is None:
        backend = backend_going_on(backend, config.backend)
    kind = RandomSearch if config.method == "random" else GridSearch
    made = kind.reopen(search_id, backend=backend, progress=True, **_given_limits(options))
    say(f"going on with search {search_id}{_limits_text(made)}")
    held_out = None
    if config.validation_url is not None and not made.status.state.ended:
        held_out = Dataset.open(config.validation_url)
    _finish(made, search_id, options, held_out, backend)


def _finish(
    made: Search, search_id: str, options: SearchOptions, held_out: Dataset | None, backend: Backend
) -> None:
    """Wait for the end; show what came of it, and save the best model."""
    try:
        with made:
            made.wait()
    except KeyboardInterrupt:
        if made.status.state is not RunState.FINISHED:
            say(f"go on with: {_resume_command(search_id, options, backend)}")
        raise
    finally:
        if options.results is not None:
            made.results_.to_csv(options.results)
    ranked = sorted(made.status.trials, key=rank_key)
    cells = [list(HEAD), *(list(trial_cells(trial, made.status)) for trial in ranked[:TOP_TRIALS])]
    show(table(cells, right=NUMBER_COLUMNS))
    if made.status.best is None:
        say("no trial came as far as a model")
        return
    estimator = made.best_estimator_
    url = options.model or f"{backend.root}/models/{search_id}"
    estimator.save(url)
    if held_out is not None and isinstance(estimator, ScoringEstimator) and _is_there(held_out):
        show("\n".join(scores_table(score_dataset(estimator, held_out))))
    show(f"model {url}")


def _resume_command(search_id: str, options: SearchOptions, backend: Backend) -> str:
    """Return what goes on with a search, to the places that were named for what comes of it."""
    places = {"--model": options.model, "--results": options.results}
    limits = {f"--{name.replace('_', '-')}": str(value) for name, value in _given_limits(options).items()}
    given = [
        word for name, value in {**limits, **places}.items() if value is not None for word in (name, value)
    ]
    return command("search", "--resume", search_id, *given, *backend.options)


def _given_limits(options: SearchOptions) -> dict[str, Any]:
    """Return the limits that were typed; the others are those of the search."""
    limits = {
        "max_concurrent": options.max_concurrent,
        "max_workers": options.max_workers,
        "max_seconds": options.max_seconds,
        "max_cost": options.max_cost,
    }
    return {name: value for name, value in limits.items() if value is not None}


def _limits_text(made: Search) -> str:
    """Return where a search ends by itself: its time and its money count from its beginning."""
    seconds = None if made.max_seconds is None else f"{made.max_seconds:g} s"
    cost = None if made.max_cost is None else f"${made.max_cost:g}"
    limits = " and ".join(filter(None, (seconds, cost)))
    return f", for {limits} in all" if limits else ""


def _is_there(dataset: Dataset) -> bool:
    """Tell whether a dataset still is: data that was loaded for the search is gone with it."""
    try:
        Dataset.open(dataset.url)
    except NotFoundError:
        return False
    return True


def _check_model_place(url: str | None) -> None:
    """Refuse a place for the model that holds something else, before a long search."""
    if url is not None and not may_hold_model(url):
        raise ConfigError("model", f"{url} holds something that is no Cirrus model")


def _is_driven(root: str, search_id: str) -> bool:
    try:
        return Overview(root).is_driven(search_id)
    except NotFoundError:
        return False


def _make(options: SearchOptions, search_id: str, backend: Backend) -> Search:
    model_type = options.model_type or DEFAULT_MODEL_TYPE
    if model_type in WITHOUT_LABELS:
        raise ConfigError("model_type", f"{model_type.value} cannot be searched from the command line")
    kind = ESTIMATORS[model_type]
    taken = ("backend", "progress", "n_workers", "epochs", "tol", "random_state", "task")
    fixed = fixed_parameters(options.fixed, kind, model_type.value, taken)
    if options.tol is not None:
        fixed["tol"] = tol_of(options.tol)
    estimator = kind(
        **fixed,
        epochs=number_or_auto(options.epochs),
        n_workers=options.workers,
        random_state=options.seed,
        backend=backend,
    )
    grid = {name: [value_of(part) for part in text.split(",")] for name, text in map(pair, options.grid)}
    ranges = dict(map(_distribution, options.ranges))
    common: dict[str, Any] = {
        **_given_limits(options),
        "pruner": None if options.pruner is Pruner.NONE else options.pruner.value,
        "scoring": options.scoring,
        "search_id": search_id,
        "progress": True,
    }
    if not grid and not ranges:
        raise ConfigError("grid", "name what to try, such as --grid l1=0,1 or --draws 20 --range l1=0.1:10")
    if options.draws is not None:
        return RandomSearch(
            estimator, {**grid, **ranges}, n_iter=options.draws, random_state=options.seed, **common
        )
    if ranges:
        raise ConfigError("range", "has endlessly many values: say how many to try with --draws")
    return GridSearch(estimator, grid, **common)


def _as_typed(error: ConfigError, options: SearchOptions) -> ConfigError:
    """Return an error about a parameter that is searched over as one about what was typed for it."""
    for option, texts in (("grid", options.grid), ("range", options.ranges)):
        for text in texts:
            if pair(text, option)[0] == error.field:
                return ConfigError(option, f"{text!r}: {error.problem}")
    return error


def _data(
    data: str, file_options: FileOptions, options: SearchOptions, place: str
) -> tuple[Dataset, Dataset]:
    dataset = Dataset.open(data) if is_dataset(data) else load_file(data, f"{place}/rows", file_options)
    if options.validation is None:
        say(f"holding out {options.validation_split:.0%} of the rows")
        return dataset.split(test_size=options.validation_split, random_state=0)
    if is_dataset(options.validation):
        return dataset, Dataset.open(options.validation)
    manifest = dataset.manifest
    return dataset, load_file_like(
        options.validation,
        f"{place}/validation",
        manifest.encoding,
        manifest.n_features,
        label_names=manifest.label_names,
        with_labels=True,
    )


def _distribution(typed: str) -> tuple[str, Any]:
    """Return the name and the distribution of ``NAME=LOW:HIGH``."""
    name, text = pair(typed, "range")
    low_text, separator, high_text = text.partition(":")
    low, high = value_of(low_text), value_of(high_text)
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in (low, high))
    if not separator or not numbers:
        raise ConfigError("range", f"{typed!r} is not of the form NAME=LOW:HIGH, such as l1=0.1:10")
    if not low < high:
        raise ConfigError("range", f"{typed!r}: LOW must be below HIGH, but {low} is not below {high}")
    return name, loguniform(low, high) if low > 0 else uniform(low, high - low)
