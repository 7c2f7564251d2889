"""What all searches are: data taken once, a driver, and the answers that they give."""

from __future__ import annotations

import abc
import dataclasses
import json
import math
import time
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, overload

from cirrus.client_backend.backend import Backend, backend_at, backend_going_on, resolve_backend
from cirrus.client_backend.claims import new_claim
from cirrus.client_backend.homes import absolute_root
from cirrus.client_backend.search_folder import (
    CONFIG_KEY,
    SearchConfig,
    SearchFolder,
    SearchState,
    Trial,
    TrialStatus,
    new_search_id,
    search_url,
)
from cirrus.config import as_whole_number
from cirrus.errors import ConfigError, ConflictError, RunError
from cirrus.frontend.base import Estimator
from cirrus.frontend.datasets import Dataset
from cirrus.frontend.estimators import estimator_class
from cirrus.frontend.intake import refuse_path
from cirrus.frontend.model_files import portable_params, restored_params
from cirrus.frontend.planning import check_params
from cirrus.frontend.search.answers import SearchAnswers
from cirrus.frontend.search.driver import Driver
from cirrus.frontend.search.endings import Farewell, let_go
from cirrus.frontend.search.jobs import TrainingJobs
from cirrus.frontend.search.progress import SearchListener, SearchProgress
from cirrus.frontend.search.results import SearchResults
from cirrus.frontend.search.roles import TrialSource
from cirrus.frontend.search.schedules import Schedule, resolve_pruner, schedule_from_plain
from cirrus.frontend.search.scorers import (
    check_same_choice,
    check_same_scoring,
    choice_name,
    holds_functions,
    is_several,
    metric_names,
    resolve_scorer,
    scoring_name,
)
from cirrus.frontend.search.search_data import open_data, take_data
from cirrus.frontend.search.settings import (
    CHANGEABLE,
    check_estimator,
    check_limits,
    check_refit,
    check_searched,
)
from cirrus.frontend.search.spaces import Params, usable_params
from cirrus.metrics import RunState

#: How often :meth:`Search.wait` calls back.
POLL_SECONDS = 0.25

S = TypeVar("S", bound="Search")


class _Resume:
    """``resume`` of a search: on the class, of a whole search by its id; on a search, of a trial."""

    @overload
    def __get__(self, search: None, owner: type[S]) -> Callable[..., S]: ...
    @overload
    def __get__(self, search: Search, owner: type[Search]) -> Callable[[int], None]: ...
    def __get__(self, search: Search | None, owner: type[Any]) -> Any:
        return owner.reopen if search is None else search.resume_trial


class Search(SearchAnswers, abc.ABC):
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
            Several metrics: a list of names, or a dict of names to such names and functions.
        refit: Whether there is a ``best_estimator_``: the best model that any trial left at the end of a
            rung. It was trained on all of the training data already. With several metrics the name of the
            one that ranks trials, or False: then minus the loss ranks them, and there is no ``best_...``.
            Or a function that is given ``results_`` and returns the index of the trial to take for the best.
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
    #: Whether the search folder holds all that :meth:`reopen` needs.
    _is_reopened_by_id = True
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
        refit: bool | str | Callable[[SearchResults], int] = True,
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
            data = take_data(folder, backend, train, y, sample_weight, validation)
            self._feature_names = data.feature_names
            config = self._config(search_id, backend, data.train, data.validation)
            if folder.store.exists(CONFIG_KEY):
                known = folder.config()
                self._check_same(known, config)
                config = dataclasses.replace(config, backend=known.backend)
            else:
                folder.create(config)
            self._drive(folder, claim, config, backend, data.train, data.validation)
        except BaseException:
            folder.renew_claim(dataclasses.replace(claim, released=True))
            backend.close_shared()
            raise
        return self

    @classmethod
    def reopen(cls, search_id: str, *, backend: str | Backend | None = None, **params: Any) -> Self:
        """Go on with a search whose program was lost, from where its trials were; :meth:`wait` for its end.

        Args:
            search_id: The search, as ``cirrus runs`` lists it.
            backend: Where it goes on, below whose root its folder lies. None: where it was begun, as its
                folder in this user's own home (``$CIRRUS_HOME``) records.
            **params: Parameters to change: ``max_concurrent``, ``max_workers``, ``max_seconds``,
                ``max_cost`` or ``progress``; or ``scoring`` and ``refit`` anew, where they were functions or
                held some.

        Raises:
            NotFoundError: There is no such search.
            ConflictError: Another living program drives it.
            ConfigError: It cannot be gone on with here.
        """
        begun = backend_at(None) if backend is None else resolve_backend(backend)
        folder = SearchFolder.open(begun.root, search_id)
        config = folder.config()
        if backend is None:
            backend = backend_going_on(begun, config.backend)
        if config.method != cls._method:
            raise ConfigError("search_id", f"{search_id} is a search of another kind: {config.method}")
        kind = estimator_class(config.estimator)
        if kind is None:
            raise ConfigError("search_id", f"{search_id} is over {config.estimator}, which is not known here")
        found = folder.read_state()
        trials = () if found is None else found[0].trials
        estimator = kind(**restored_params(config.params), backend=backend)
        search = cls._reopened(estimator, config, trials)
        allowed = (*CHANGEABLE, "progress", "scoring", *(["refit"] if config.chosen_by else []))
        for name in params:
            if name not in allowed:
                raise ConfigError(name, f"cannot be changed; {', '.join(allowed)} can")
        check_same_scoring(params.get("scoring", search.scoring), config)
        check_same_choice(params.get("refit"), config)
        limits = {name: getattr(config, name) for name in CHANGEABLE}
        search.set_params(**{**limits, **params}, search_id=search_id)
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
                rows = open_data(config.train_url, config.train_fingerprint)
                held_out = open_data(config.validation_url) if config.validation_url else None
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
        scorer = resolve_scorer(self.scoring, self.estimator, self.refit)
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
            on_end=Farewell(folder, backend),
        )
        self._forget()
        self._driver, self._jobs, self._root = driver, jobs, backend.root
        self._noted = config.backend
        self.search_id_ = config.search_id
        remove = self._was_temporary
        self._finalizer = weakref.finalize(self, let_go, driver, folder if remove else None, backend.root)
        driver.start()

    def wait(self, timeout: float | None = None) -> Self:
        """Wait for the end of the search. Ctrl-C ends all its runs, which can be gone on with; it says how.

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
            except KeyboardInterrupt as error:
                driver.close()
                if not self._was_temporary and driver.state.state is RunState.INTERRUPTED:
                    error.add_note(f"search {self.search_id_} was interrupted; {self._way_on()}")
                raise
            if progress.listener is not None:
                progress.listener(driver.state)
        self._check_end(driver)
        return self

    def _way_on(self) -> str:
        """Return how to go on with the search from a program."""
        name = self.search_id_
        if not self._is_reopened_by_id or holds_functions(self.scoring) or callable(self.refit):
            return f"go on with: the same program, with search_id={name!r}"
        given = self.estimator.get_params(deep=False)["backend"]
        is_found = self._root == absolute_root(None) and resolve_backend(given).record == self._noted
        where = "" if is_found else f", backend={given!r}"
        return f"go on with: {type(self).__name__}.resume({name!r}{where}).wait()"

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
        check_estimator(self.estimator)
        check_limits({name: getattr(self, name) for name in CHANGEABLE}, self.search_id)
        self._own_schedule()
        resolve_scorer(self.scoring, self.estimator, self.refit)
        check_refit(self.refit, self.scoring)
        check_searched(self._names(), self.estimator)

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
            metrics=metric_names(self.scoring),
            ranked_by=self.refit if isinstance(self.refit, str) and is_several(self.scoring) else None,
            chosen_by=choice_name(self.refit),
            refit=bool(self.refit),
            pruner=schedule.to_plain(),
            train_url=rows.url,
            train_fingerprint=rows.manifest.fingerprint,
            validation_url=None if held_out is None else held_out.url,
            backend=backend.record,
            created_at=time.time(),
        )
        return self._with_budgets(config, backend)

    def _with_budgets(self, config: SearchConfig, backend: Backend) -> SearchConfig:
        """Return a config with the budgets of this object and the limit of its backend as it is now."""
        budgets: dict[str, Any] = {}
        for name in CHANGEABLE:
            value = getattr(self, name)
            whole = as_whole_number(value)  # numpy's too, which JSON cannot hold
            budgets[name] = value if whole is None else whole
        return dataclasses.replace(config, **budgets, max_functions=backend.max_functions)

    def _check_same(self, known: SearchConfig, mine: SearchConfig) -> None:
        """Refuse to go on with a search of this name that was another one."""
        words = {
            "train_fingerprint": "data",
            "metrics": "scoring",
            "ranked_by": "refit",
            "chosen_by": "refit",
        }
        for field in ("method", "estimator", "params", "space", "scoring", "pruner", *words):
            if _as_json(getattr(known, field)) != _as_json(getattr(mine, field)):
                what = words.get(field, field)
                raise ConfigError(
                    "search_id",
                    f"{known.search_id} is there already, with another {what}: give this one another name",
                )


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))
