"""What all searches are: data taken once, a driver, and the answers that they give."""

from __future__ import annotations

import abc
import dataclasses
import json
import math
import re
import time
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, overload

import numpy as np
from sklearn.base import BaseEstimator, MetaEstimatorMixin
from sklearn.utils import check_array, column_or_1d

from cirrus.chunks import MANIFEST_KEY, read_manifest
from cirrus.client_backend.backend import Backend, resolve_backend
from cirrus.client_backend.claims import new_claim
from cirrus.client_backend.overview import Overview
from cirrus.client_backend.runs import run_url
from cirrus.client_backend.search_folder import (
    CONFIG_KEY,
    SearchConfig,
    SearchFolder,
    SearchRequest,
    SearchState,
    Trial,
    TrialStatus,
    new_search_id,
    search_url,
)
from cirrus.config import as_whole_number, whole_number
from cirrus.errors import CirrusError, ConfigError, ConflictError, DataError, RunError
from cirrus.frontend.base import Estimator
from cirrus.frontend.datasets import Dataset, load_arrays
from cirrus.frontend.estimators import estimator_class
from cirrus.frontend.intake import refuse_path
from cirrus.frontend.model_files import portable_params, restored_params
from cirrus.frontend.planning import check_params
from cirrus.frontend.scratch import remove_below
from cirrus.frontend.search.driver import Driver, TrialSource
from cirrus.frontend.search.jobs import TrainingJobs
from cirrus.frontend.search.progress import SearchListener, SearchProgress
from cirrus.frontend.search.results import Row, SearchResults
from cirrus.frontend.search.schedules import Schedule, resolve_pruner, schedule_from_plain
from cirrus.frontend.search.scorers import resolve_scorer, scoring_name
from cirrus.frontend.search.spaces import Params, usable_params
from cirrus.metrics import RunState
from cirrus.storage import open_store

DASHBOARD_ENTRY_POINTS = "cirrus.dashboard"
DATA_FOLDER = "data"
#: How often :meth:`Search.wait` calls back.
POLL_SECONDS = 0.25
#: Parameters of the estimator that the search sets itself, for each trial.
_OWN_PARAMS = ("backend", "progress", "resume_from", "checkpoint_url")
_SEARCH_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_DTYPES = ["float64", "float32"]

S = TypeVar("S", bound="Search")


class _Resume:
    """``resume`` of a search: on the class, of a whole search by its id; on a search, of a trial."""

    @overload
    def __get__(self, search: None, owner: type[S]) -> Callable[..., S]: ...
    @overload
    def __get__(self, search: Search, owner: type[Search]) -> Callable[[int], None]: ...
    def __get__(self, search: Search | None, owner: type[Any]) -> Any:
        return owner.reopen if search is None else search.resume_trial


class Search(MetaEstimatorMixin, BaseEstimator, abc.ABC):  # type: ignore[misc]  # scikit-learn has no types
    """Tries hyperparameters, each set of them as a run; subclasses say which.

    Args:
        estimator: What to search over; each trial is a copy with its hyperparameters. Its ``backend`` is
            where runs work.
        max_concurrent: Most trials at work at a time; the others wait.
        max_workers: Most workers at work at a time, over all trials; None: any number. Nor are there more,
            evaluators counted, than the backend lets work: one for each trial, with ``validation``.
        pruner: None: every trial is trained to its end. ``"median"``, ``"asha"``, or a
            :class:`cirrus.MedianPruner` or :class:`cirrus.AshaPruner`: the hopeless are given up.
        scoring: What ranks trials: None, minus the loss (of ``validation`` if given, else of training); the
            name of a scikit-learn scorer; or a function of (estimator, dataset, labels). Higher is better.
        refit: Whether there is a ``best_estimator_``: the best model that any trial left at the end of a
            rung. It was trained on all of the training data already.
        max_seconds: End after this long; trials at work keep what they have learned.
        max_cost: End after this many dollars, over all trials.
        search_id: What to call the search; a search of that name that was interrupted goes on. None: a new
            name.
        progress: True: a live table. A function: called with a :class:`cirrus.SearchState` some times a
            second.

    Attributes:
        results_: All trials, a :class:`cirrus.SearchResults`.
        best_index_: The best trial.
        best_params_: Its hyperparameters.
        best_score_: Its score, higher is better.
        best_estimator_: Its fitted estimator.
    """

    #: How the subclass calls itself in ``search.json``.
    _method = ""
    _best_held: tuple[str, Estimator] | None = None
    resume = _Resume()
    """On the class, ``resume(search_id)``: see :meth:`reopen`. On a search, ``resume(i)``: see
    :meth:`resume_trial`."""

    def __init__(
        self,
        estimator: Estimator,
        *,
        max_concurrent: int = 4,
        max_workers: int | None = None,
        pruner: Schedule | str | None = None,
        scoring: Any = None,
        refit: bool = True,
        max_seconds: float | None = None,
        max_cost: float | None = None,
        search_id: str | None = None,
        progress: bool | SearchListener | None = None,
    ) -> None:
        self.estimator = estimator
        self.max_concurrent = max_concurrent
        self.max_workers = max_workers
        self.pruner = pruner
        self.scoring = scoring
        self.refit = refit
        self.max_seconds = max_seconds
        self.max_cost = max_cost
        self.search_id = search_id
        self.progress = progress

    # What subclasses say.

    @abc.abstractmethod
    def _candidates(self) -> list[Params]:
        """Return the hyperparameters to try, as far as they are known beforehand."""

    @abc.abstractmethod
    def _space(self) -> Mapping[str, Any]:
        """Return what is searched, for people."""

    @classmethod
    @abc.abstractmethod
    def _reopened(cls, estimator: Estimator, config: SearchConfig, trials: Sequence[Trial]) -> Self:
        """Return the search object of a search that another process began."""

    def _source(self, trials: Sequence[Trial]) -> TrialSource | None:
        """Return where trials come from that are not known beforehand, given those there are."""
        return None

    def _names(self) -> set[str]:
        """Return the parameters that are searched over."""
        return {name for candidate in self._candidates() for name in candidate}

    def _own_schedule(self) -> Schedule:
        """Return what ``pruner`` stands for."""
        return resolve_pruner(self.pruner)

    # Life.

    def fit(
        self, train: Any = None, y: Any = None, sample_weight: Any = None, validation: Any = None
    ) -> Self:
        """Run the search to its end.

        Args:
            train: A :class:`cirrus.Dataset`, or an array or sparse matrix of shape (n_rows, n_features),
                stored once, whatever the number of trials. None: wait for a search that is at work.
            y: Labels of shape (n_rows,), with arrays.
            sample_weight: Weights of shape (n_rows,), with arrays.
            validation: A Dataset or a pair ``(X, y)`` that losses and scores come from.

        Raises:
            ConfigError: A parameter is wrong.
            DataError: The data cannot be used.
            ConflictError: Another program drives a search of this name.
            RunError: All trials failed, or somebody killed the search.
        """
        if train is not None or not hasattr(self, "_driver"):
            self.start(train, y, sample_weight, validation)
        return self.wait()

    def start(
        self, train: Any = None, y: Any = None, sample_weight: Any = None, validation: Any = None
    ) -> Self:
        """Begin to search and return at once; arguments and errors as for :meth:`fit`.

        Example:
            >>> search = cirrus.GridSearch(est, {"l1": [0, 1]})
            >>> search.start(train, validation=test)  # doctest: +SKIP
            >>> search.top(3)  # doctest: +SKIP
            >>> search.kill(0)  # doctest: +SKIP
            >>> search.wait().best_params_  # doctest: +SKIP
        """
        if self._is_at_work:
            raise RunError(f"search {self.search_id_} is at work already")
        if train is None:
            raise ConfigError("train", "needs a Dataset or an array")
        self.check()
        for name, rows in (("train", train), ("validation", validation)):
            refuse_path(name, rows, self.estimator.loader)
        backend = self._own_backend()
        backend.check()
        search_id = self.search_id or new_search_id()
        folder = SearchFolder(search_url(backend.root, search_id))
        claim = folder.take_claim(new_claim())
        try:
            rows, held_out = self._take_data(folder, backend, train, y, sample_weight, validation)
            config = self._config(search_id, backend, rows, held_out)
            if folder.store.exists(CONFIG_KEY):
                self._check_same(folder.config(), config)
            else:
                folder.create(config)
            self._drive(folder, claim, config, backend, rows, held_out)
        except BaseException:
            folder.renew_claim(dataclasses.replace(claim, released=True))
            backend.close_shared()
            raise
        return self

    @classmethod
    def reopen(cls, search_id: str, *, backend: str | Backend = "local", **params: Any) -> Self:
        """Go on with a search whose program was lost, from where its trials were; :meth:`wait` for its end.

        Args:
            search_id: The search, as ``cirrus runs`` lists it.
            backend: Where it was begun.
            **params: Parameters to change: ``max_concurrent``, ``max_workers``, ``max_seconds``,
                ``max_cost`` or ``progress``.

        Raises:
            NotFoundError: There is no such search.
            ConflictError: Another living program drives it.
            ConfigError: It cannot be gone on with here.
        """
        resolved = resolve_backend(backend)
        folder = SearchFolder.open(resolved.root, search_id)
        config = folder.config()
        if config.method != cls._method:
            raise ConfigError("search_id", f"{search_id} is a search of another kind: {config.method}")
        kind = estimator_class(config.estimator)
        if kind is None:
            raise ConfigError("search_id", f"{search_id} is over {config.estimator}, which is not known here")
        found = folder.read_state()
        trials = () if found is None else found[0].trials
        estimator = kind(**restored_params(config.params), backend=backend)
        search = cls._reopened(estimator, config, trials)
        allowed = ("max_concurrent", "max_workers", "max_seconds", "max_cost", "progress")
        for name in params:
            if name not in allowed:
                raise ConfigError(name, f"cannot be changed; {', '.join(allowed)} can")
        search.set_params(**{**_budgets(config), **params}, search_id=search_id)
        search._check_settings()  # and not the trials: what is impossible about them they have told
        search._go_on(folder, config)
        return search

    def _go_on(self, folder: SearchFolder, config: SearchConfig) -> None:
        backend = self._own_backend()
        claim = folder.take_claim(new_claim())
        try:
            state = folder.read_state()
            rows = held_out = None
            is_left = state is None or any(not trial.status.ended for trial in state[0].trials)
            if is_left or folder.requests():  # such as to go on with a trial that was killed
                rows = _open_data(config.train_url, config.train_fingerprint)
                held_out = _open_data(config.validation_url) if config.validation_url else None
            self._drive(folder, claim, self._with_budgets(config, backend), backend, rows, held_out)
        except BaseException:
            folder.renew_claim(dataclasses.replace(claim, released=True))
            backend.close_shared()
            raise

    def _drive(
        self,
        folder: SearchFolder,
        claim: Any,
        config: SearchConfig,
        backend: Backend,
        rows: Dataset | None,
        held_out: Dataset | None,
    ) -> None:
        scorer = resolve_scorer(self.scoring, self.estimator)
        kind, params = type(self.estimator), self.estimator.get_params(deep=False)
        jobs = TrainingJobs(kind, params, backend, config.search_id, rows, held_out, scorer)
        found = folder.read_state()
        if found is None:
            trials = tuple(Trial(index=i, params=p) for i, p in enumerate(self._candidates()))
            state, etag = SearchState(state=RunState.STARTING, trials=trials), None
        else:
            state, etag = found
        for trial in state.trials:
            self._check_room(jobs.n_workers(trial))
        driver = Driver(
            folder,
            claim,
            config,
            self._schedule(config),
            jobs,
            state,
            etag,
            source=self._source(state.trials),
            on_end=_Farewell(folder, backend),
        )
        self._forget()
        self._driver, self._jobs, self._root = driver, jobs, backend.root
        self.search_id_ = config.search_id
        remove = self._was_temporary
        self._finalizer = weakref.finalize(self, _let_go, driver, folder if remove else None, backend.root)
        driver.start()

    def wait(self, timeout: float | None = None) -> Self:
        """Wait for the end of the search. Ctrl-C ends all its runs, which can be gone on with.

        Args:
            timeout: Most seconds to wait; None: as long as it takes.

        Raises:
            RunError: The search failed, all its trials did, or somebody killed it.
        """
        driver = self._work
        end = math.inf if timeout is None else time.monotonic() + timeout
        with SearchProgress(self.progress) as progress:
            try:
                while not driver.wait(min(POLL_SECONDS, max(0.0, end - time.monotonic()))):
                    if progress.listener is not None:
                        progress.listener(driver.state)
                    if time.monotonic() >= end:
                        return self
            except KeyboardInterrupt:
                driver.close()
                raise
            if progress.listener is not None:
                progress.listener(driver.state)
        self._check_end(driver)
        return self

    def _check_end(self, driver: Driver) -> None:
        state = driver.state
        if isinstance(driver.failure, ConflictError):
            raise RunError(f"another program drives search {self.search_id_} by now") from driver.failure
        if driver.failure is not None:
            raise RunError(f"search {self.search_id_} failed: {driver.failure}") from driver.failure
        if state.state is RunState.KILLED:
            raise RunError(f"search {self.search_id_} was killed; results_ says how far its trials came")
        failed = [trial for trial in state.trials if trial.status is TrialStatus.FAILED]
        if failed and len(failed) == len(state.trials):
            raise RunError(f"all {len(failed)} trials failed, the first with: {failed[0].error}")
        if failed:
            warnings.warn(
                f"{len(failed)} of {len(state.trials)} trials failed, the first with: {failed[0].error}",
                stacklevel=3,
            )

    def close(self) -> None:
        """End all runs of a search that is at work; it can be resumed by its id."""
        if hasattr(self, "_driver"):
            self._driver.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # While it works, and after.

    @property
    def status(self) -> SearchState:
        """Where the search is, with all its trials."""
        return self._work.state

    @property
    def cost(self) -> float:
        """Dollars so far, over all trials."""
        return self._work.state.cost

    @property
    def results_(self) -> SearchResults:
        """All trials as a table, as far as they are."""
        return SearchResults(self._fitted_state)

    def top(self, n: int) -> list[Row]:
        """Return the rows of the best ``n`` trials so far, best first."""
        return self.results_.top(n)

    def kill(self, trial: int) -> None:
        """End a trial now; returns when its workers are gone. The others go on.

        Args:
            trial: Its index, as in ``results_``.

        Raises:
            RunError: There is no such trial, or the search is not at work.
        """
        self._work.ask(SearchRequest(action="kill", trial=trial))

    def kill_all(self) -> None:
        """End all trials now, those that wait too; returns when their workers are gone.

        Raises:
            RunError: The search is not at work.
        """
        self._work.ask(SearchRequest(action="kill_all"))

    def stop(self) -> None:
        """Begin nothing more, and have the trials at work finish where they are; :meth:`wait` for that.

        Raises:
            RunError: The search is not at work.
        """
        self._work.ask(SearchRequest(action="stop"))

    def resume_trial(self, trial: int) -> None:
        """Go on with a trial that was killed or pruned, from its newest snapshot, to its end.

        Args:
            trial: Its index.

        Raises:
            RunError: It was not cut short, or the search is not at work.
        """
        self._work.ask(SearchRequest(action="resume", trial=trial))

    def curve(self, trial: int) -> list[Any]:
        """Return the points (:class:`cirrus.MetricPoint`) of a trial, over all its runs.

        Args:
            trial: Its index.
        """
        return Overview(self._root).trial_points(self._fitted_state.trials[trial])

    def serve_dashboard(self, port: int = 8050) -> Any:
        """Serve the dashboard on loopback, in the background; needs the extra ``dashboard``.

        It shows this search and all else below the same root.

        Args:
            port: Where to listen.

        Raises:
            ConfigError: No dashboard is installed.
        """
        from importlib.metadata import entry_points

        for entry in entry_points(group=DASHBOARD_ENTRY_POINTS, name="serve"):
            return entry.load()(self._root, port=port)
        raise ConfigError("dashboard", 'is not installed: pip install "cirrus-ml[dashboard]"')

    @property
    def best_index_(self) -> int:
        """The best trial's index."""
        return self._best.index

    @property
    def best_params_(self) -> Params:
        """The best trial's hyperparameters."""
        return usable_params(self._best.params)

    @property
    def best_score_(self) -> float:
        """The best trial's score, higher is better."""
        assert self._best.score is not None
        return self._best.score

    @property
    def best_estimator_(self) -> Estimator:
        """The best trial's fitted estimator."""
        if not self.refit:
            raise AttributeError("best_estimator_: the search has refit=False")
        best = self._best
        assert best.best_run is not None
        held = self._best_held
        if held is None or held[0] != best.best_run:
            estimator = self._jobs.fitted(best.best_run)
            params = self._jobs.estimator(best).get_params(deep=False)
            estimator.set_params(**{name: params[name] for name in ("backend", "random_state", "progress")})
            if (names := getattr(self, "_feature_names", None)) is not None:
                estimator.feature_names_in_ = names
            held = (best.best_run, estimator)
            self._best_held = held
        return held[1]

    def predict(self, X: Any) -> Any:
        """Return the best estimator's predictions."""
        return self.best_estimator_.predict(X)

    def predict_proba(self, X: Any) -> Any:
        """Return the best estimator's probabilities."""
        return self.best_estimator_.predict_proba(X)

    def decision_function(self, X: Any) -> Any:
        """Return the best estimator's decisions."""
        return self.best_estimator_.decision_function(X)

    def score(self, X: Any, y: Any = None) -> float:
        """Return the best estimator's own score."""
        return float(self.best_estimator_.score(X, y))

    # Helpers.

    @property
    def _work(self) -> Driver:
        if not hasattr(self, "_driver"):
            raise RunError("the search has not been started: call fit or start")
        return self._driver

    @property
    def _is_at_work(self) -> bool:
        return hasattr(self, "_driver") and not self._driver.ended

    @property
    def _fitted_state(self) -> SearchState:
        if not hasattr(self, "_driver"):
            raise AttributeError("the search has not been started: call fit or start")
        return self._driver.state

    @property
    def _best(self) -> Trial:
        best = self._fitted_state.best
        if best is None or not best.status.ended:
            raise AttributeError("no trial has ended with a model yet")
        return best

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_driver") and self._driver.state.best is not None

    def _forget(self) -> None:
        finalizer = getattr(self, "_finalizer", None)
        if finalizer is not None:
            finalizer()
        self._best_held = None

    def check(self) -> None:
        """Check what can be checked without data; :meth:`start` does so too.

        Raises:
            ConfigError: A parameter, or a value to try, is wrong; the parameter is named.
        """
        self._check_settings()
        params = self.estimator.get_params(deep=False)
        for candidate in self._candidates():
            check_params({**params, **usable_params(candidate)})

    def _check_settings(self) -> None:
        """Check everything but the values to try."""
        if not isinstance(self.estimator, Estimator):
            raise ConfigError("estimator", f"must be one of cirrus' estimators, got {self.estimator!r}")
        for name in ("max_concurrent", "max_workers"):
            value = getattr(self, name)
            if value is None and name == "max_workers":
                continue
            whole_number(value, name)
        for name in ("max_seconds", "max_cost"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, (int, float)) and 0 < value < math.inf):
                raise ConfigError(name, f"must be a positive number or None, got {value!r}")
        if self.search_id is not None and not _SEARCH_ID.fullmatch(str(self.search_id)):
            raise ConfigError(
                "search_id", f"must be letters, figures, '.', '_' and '-' only, got {self.search_id!r}"
            )
        params = self.estimator.get_params(deep=False)
        for name in ("resume_from", "checkpoint_url"):
            if params.get(name) is not None:
                raise ConfigError(name, "must be None in a search: its trials would share it")
        self._own_schedule()
        resolve_scorer(self.scoring, self.estimator)
        self._check_params(params)

    def _check_params(self, params: Mapping[str, Any]) -> None:
        for name in sorted(self._names()):
            if name not in params:
                known = ", ".join(sorted(set(params) - set(_OWN_PARAMS)))
                raise ConfigError(name, f"is no parameter of {type(self.estimator).__name__}; it has {known}")
            if name in _OWN_PARAMS:
                raise ConfigError(name, "cannot be searched over: the search sets it itself")
        check_params(params)

    def _check_room(self, n_workers: int) -> None:
        # What the backend allows is no reason to refuse: a trial alone goes on with what it gets.
        if self.max_workers is not None and n_workers > self.max_workers:
            raise ConfigError(
                "max_workers", f"is {self.max_workers}, but one trial needs n_workers={n_workers} alone"
            )

    def _own_backend(self) -> Backend:
        backend = resolve_backend(self.estimator.get_params(deep=False)["backend"]).for_many_runs()
        self._was_temporary = backend.runs_are_temporary
        # Its rungs go on from each other's models: they go away with the search, not each by itself.
        backend.runs_are_temporary = False
        return backend

    def _schedule(self, config: SearchConfig) -> Schedule:
        return schedule_from_plain(config.pruner) if config.pruner else self._own_schedule()

    def _config(
        self, search_id: str, backend: Backend, rows: Dataset, held_out: Dataset | None
    ) -> SearchConfig:
        if self.scoring is not None and held_out is None:
            raise ConfigError("scoring", "needs data to score on: fit(..., validation=...)")
        schedule = self._own_schedule()
        config = SearchConfig(
            search_id=search_id,
            estimator=type(self.estimator).__name__,
            params=portable_params(self.estimator.get_params(deep=False)),
            method=self._method,
            space=self._space(),
            scoring=scoring_name(self.scoring),
            refit=bool(self.refit),
            pruner=schedule.to_plain(),
            train_url=rows.url,
            train_fingerprint=rows.manifest.fingerprint,
            validation_url=None if held_out is None else held_out.url,
            created_at=time.time(),
        )
        return self._with_budgets(config, backend)

    def _with_budgets(self, config: SearchConfig, backend: Backend) -> SearchConfig:
        """Return a config with the budgets of this object and the limit of its backend as it is now."""
        budgets: dict[str, Any] = {}
        for name in _budgets(config):
            value = getattr(self, name)
            whole = as_whole_number(value)  # numpy's too, which JSON cannot hold
            budgets[name] = value if whole is None else whole
        return dataclasses.replace(config, **budgets, max_functions=backend.max_functions)

    def _check_same(self, known: SearchConfig, mine: SearchConfig) -> None:
        """Refuse to go on with a search of this name that was another one."""
        for field in ("method", "estimator", "params", "space", "scoring", "pruner", "train_fingerprint"):
            if _as_json(getattr(known, field)) != _as_json(getattr(mine, field)):
                what = "data" if field == "train_fingerprint" else field
                raise ConfigError(
                    "search_id",
                    f"{known.search_id} is there already, with another {what}: give this one another name",
                )

    def _take_data(
        self,
        folder: SearchFolder,
        backend: Backend,
        train: Any,
        y: Any,
        sample_weight: Any,
        validation: Any,
    ) -> tuple[Dataset, Dataset | None]:
        """Return datasets that workers can read, whatever users hand over."""
        base = f"{folder.url}/{DATA_FOLDER}"
        self._feature_names: Any = None
        if isinstance(train, Dataset):
            for name, value in (("y", y), ("sample_weight", sample_weight)):
                if value is not None:
                    raise ConfigError(name, "must be None: a Dataset holds its own")
            rows = _reachable(train, backend, f"{base}/train")
        else:
            names = list(getattr(train, "columns", ()))
            if names and all(isinstance(name, str) for name in names):
                self._feature_names = np.array(names, dtype=object)
            rows = _stored(train, y, f"{base}/train", sample_weight)
        if validation is None or isinstance(validation, Dataset):
            held_out = validation and _reachable(validation, backend, f"{base}/validation")
        elif isinstance(validation, (tuple, list)) and len(validation) == 2:
            held_out = _stored(validation[0], validation[1], f"{base}/validation", None)
        else:
            raise ConfigError("validation", "must be a Dataset or a pair (X, y)")
        return rows, held_out


class _Farewell:
    """What is to do when a driver has ended: this holds on to neither the search nor its data.

    Args:
        folder: The search folder.
        backend: Whose shared processes end.
    """

    def __init__(self, folder: SearchFolder, backend: Backend) -> None:
        self._folder = folder
        self._backend = backend

    def __call__(self) -> None:
        self._backend.close_shared()
        found = self._folder.read_state()
        if found is None or found[0].state is not RunState.FINISHED:
            return
        # A trial that somebody killed may be gone on with.
        if not any(trial.status is TrialStatus.KILLED for trial in found[0].trials):
            self._folder.store.delete_prefix(DATA_FOLDER)


def _let_go(driver: Driver, folder: SearchFolder | None, root: str) -> None:
    """End a search that nobody holds any more, and remove one whose folders are temporary."""
    if folder is None:
        driver.close_soon()
        return
    driver.close()
    for trial in driver.state.trials:
        for run_id in trial.runs:
            remove_below(run_url(root, run_id))
    remove_below(folder.url)


def _budgets(config: SearchConfig) -> dict[str, Any]:
    """Return what may change when a search goes on."""
    return {
        "max_concurrent": config.max_concurrent,
        "max_workers": config.max_workers,
        "max_seconds": config.max_seconds,
        "max_cost": config.max_cost,
    }


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _open_data(url: str, fingerprint: str | None = None) -> Dataset:
    try:
        dataset = Dataset.open(url)
    except CirrusError as error:
        raise DataError(f"{url}: the data of the search cannot be read: {error}") from error
    if fingerprint is not None and dataset.manifest.fingerprint != fingerprint:
        raise DataError(f"{url}: holds other rows than the search began with")
    return dataset


def _stored(X: Any, y: Any, url: str, sample_weight: Any) -> Dataset:
    """Store arrays, the same rows in the same order each time."""
    if y is None:
        raise ConfigError("y", "must be given with arrays")
    X = check_array(X, accept_sparse="csr", dtype=_DTYPES)
    return load_arrays(X, column_or_1d(y), url, sample_weight=sample_weight, random_state=0)


def _reachable(dataset: Dataset, backend: Backend, url: str) -> Dataset:
    """Return a dataset that workers can read: this one, or a copy of one that is out of their reach."""
    if backend.reaches(dataset.url):
        return dataset
    source, target = open_store(dataset.url), open_store(url)
    manifest = read_manifest(source)
    for key in [*(chunk.key for chunk in manifest.chunks), MANIFEST_KEY]:
        target.put(key, source.get(key))
    return Dataset(target.url, manifest)
