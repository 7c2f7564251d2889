"""The search folder: the one control plane of a search, beside the run folders of its trials.

===================  ====================  ===================================================================
key                  its one writer        what
===================  ====================  ===================================================================
``search.json``      who begins it         the frozen :class:`SearchConfig`
``client.json``      who holds the claim   who drives the search (conditional writes), as for a run
``state.json``       who holds the claim   :class:`SearchState`: every trial and its runs (conditional writes)
``control/ID.json``  a client, one each    a request; whoever drives the search deletes it when it is done
``data/``            who begins it         arrays, and data that workers cannot read where it is
===================  ====================  ===================================================================

The runs of a search lie in ``runs/`` like all others, and name their search and trial in their configs.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import logging
import math
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from cirrus.client_backend.claims import is_held, seize_claim
from cirrus.client_backend.runs import new_run_id
from cirrus.config import BackendRecord, from_plain
from cirrus.errors import ConfigError, CorruptDataError, NotFoundError
from cirrus.metrics import RunState
from cirrus.run_folder import ClientClaim, RunFolder
from cirrus.storage import open_store

log = logging.getLogger(__name__)

SEARCHES_FOLDER = "searches"
SEARCH_PREFIX = "search-"
CONFIG_KEY = "search.json"
STATE_KEY = "state.json"
DATA_FOLDER = "data"


class TrialStatus(enum.StrEnum):
    """Where a trial is in its life."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    """Waits at a rung, to be promoted or pruned."""
    PRUNED = "pruned"
    KILLED = "killed"
    FINISHED = "finished"
    FAILED = "failed"

    @property
    def ended(self) -> bool:
        """True when nothing more will happen to it by itself."""
        return self not in (TrialStatus.QUEUED, TrialStatus.RUNNING, TrialStatus.PAUSED)


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """A search, whole. Written once; never changed."""

    search_id: str
    estimator: str
    """Name of the estimator's class in ``cirrus``."""
    params: Mapping[str, Any] = field(default_factory=dict)
    """The estimator's parameters that all trials share, as far as JSON can hold them."""
    method: str
    """``grid``, ``random`` or ``optuna``."""
    space: Mapping[str, Any] = field(default_factory=dict)
    """What is searched: the values of a grid, or distributions in words."""
    scoring: str | None = None
    """Name of a scikit-learn scorer; None: the loss, or several metrics."""
    metrics: dict[str, str | None] = field(default_factory=dict)
    """Several metrics: by what they are called the name of a scikit-learn scorer, or None for a function."""
    ranked_by: str | None = None
    """Which of several metrics ranks trials; None: the loss does."""
    chosen_by: str | None = None
    """What the function is called that chooses the best trial; None: the first in rank is the best."""
    refit: bool = True
    pruner: Mapping[str, Any] = field(default_factory=dict)
    """``{"name": "asha", ...}`` with the pruner's parameters; empty: none."""
    max_concurrent: int = 1
    max_workers: int | None = None
    """Most workers at work at a time, as the user said."""
    max_functions: int | None = None
    """Most workers and evaluators at a time: what the backend lets work."""
    max_seconds: float | None = None
    max_cost: float | None = None
    train_url: str = ""
    train_fingerprint: str = ""
    validation_url: str | None = None
    backend: BackendRecord | None = None
    """As of :class:`~cirrus.config.RunConfig`."""
    created_at: float = 0.0
    """Unix time."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One set of hyperparameters, and what became of it."""

    index: int
    params: Mapping[str, Any]
    """The hyperparameters, as JSON values."""
    status: TrialStatus = TrialStatus.QUEUED
    runs: tuple[str, ...] = ()
    """Its runs, oldest first: one for each rung. A run that was resumed is there once."""
    rung: int = 0
    """The rung that it is at, or works towards."""
    losses: tuple[float | None, ...] = ()
    """Its loss at the end of each rung."""
    loss: float | None = None
    """The newest loss: of the validation data where there is some, else of training."""
    score: float | None = None
    """What ranks trials, higher is better: of its best model, the scorer's value or minus the loss."""
    scores: dict[str, float] = field(default_factory=dict)
    """What each of several metrics says of that model."""
    best_run: str | None = None
    """The run that left that model; None as long as none has."""
    epochs: float = 0.0
    """Passes over the data so far."""
    updates: int = 0
    seconds: float = 0.0
    cost: float = 0.0
    """Dollars, over all its runs."""
    worker_seconds: float = 0.0
    n_workers: int = 0
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class SearchState:
    """Where a search is."""

    state: RunState
    """``running``, ``finished``, ``killed``, ``failed`` or ``interrupted``."""
    trials: tuple[Trial, ...] = ()
    stop_reason: str | None = None
    """``all``, ``max_seconds``, ``max_cost``, ``killed``, ``stopped``, ..."""
    error: str | None = None
    seconds: float = 0.0
    """Time spent so far, over all who drove it."""
    renewed_at: float = 0.0
    """Unix time of this state."""

    @property
    def cost(self) -> float:
        """Dollars, over all trials."""
        return sum(trial.cost for trial in self.trials)

    def trial_state(self, trial: Trial) -> str:
        """Return where a trial is: its status, or ``interrupted`` if it was at work when the search ended."""
        is_lost = trial.status is TrialStatus.RUNNING and self.state.ended
        return RunState.INTERRUPTED.value if is_lost else trial.status.value

    @property
    def best(self) -> Trial | None:
        """The trial that is ahead."""
        return best_trial(self.trials)


@dataclass(frozen=True, kw_only=True)
class SearchRequest:
    """What a client asks whoever drives the search to do."""

    action: str
    """``kill`` (a trial), ``kill_all``, ``resume`` (a trial that was killed or pruned) or ``stop``."""
    trial: int | None = None


def best_trial(trials: tuple[Trial, ...]) -> Trial | None:
    """Return the trial whose best model has the highest score; None where there is no model."""
    scored = [t for t in trials if t.best_run is not None and t.score is not None and not math.isnan(t.score)]
    return max(scored, key=lambda trial: (trial.score, -trial.index), default=None)


def new_search_id(now: datetime | None = None) -> str:
    """Return a search id that no other search has; ids sort by time (UTC)."""
    return SEARCH_PREFIX + new_run_id(now)


def is_search_id(name: str) -> bool:
    """Tell whether this is the id of a search rather than of a run."""
    return name.startswith(SEARCH_PREFIX)


def search_url(root: str, search_id: str) -> str:
    """Return the URL of a search's folder below the root of its backend."""
    return f"{root.rstrip('/')}/{SEARCHES_FOLDER}/{search_id}"


def search_ids(root: str) -> tuple[str, ...]:
    """Return the ids of all searches below a root, oldest first.

    Raises:
        StorageError: The store cannot be listed.
    """
    return open_store(root).folders(SEARCHES_FOLDER)


class SearchFolder:
    """Typed access to the objects of one search.

    Args:
        url: The search folder itself.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.store = open_store(url)
        self._claims = RunFolder(url)

    @property
    def is_remote(self) -> bool:
        """True where every look costs a request over the network."""
        return self._claims.is_remote

    @classmethod
    def open(cls, root: str, search_id: str) -> SearchFolder:
        """Return the folder of an existing search.

        Raises:
            NotFoundError: There is no such search.
        """
        folder = cls(search_url(root, search_id))
        if "/" in search_id or not folder.store.exists(CONFIG_KEY):
            raise NotFoundError(
                f"there is no search {search_id} in {root}: 'cirrus runs' lists those there are"
            )
        return folder

    # The client that begins the search.

    def create(self, config: SearchConfig) -> None:
        """Write the config.

        Raises:
            ConflictError: There is a search of this id.
        """
        self.store.put(CONFIG_KEY, _to_json(config, "params"), if_absent=True)

    def config(self) -> SearchConfig:
        """Read the config.

        Raises:
            ConfigError: It cannot be read.
        """
        return from_plain(SearchConfig, _parse(self.store.get(CONFIG_KEY), CONFIG_KEY), CONFIG_KEY)

    # Who drives it.

    def take_claim(self, claim: ClientClaim) -> ClientClaim:
        """Become the one who drives the search; return the claim as it was written.

        Raises:
            ConflictError: Another living client drives it.
        """
        return seize_claim(self._claims, claim)

    def renew_claim(self, claim: ClientClaim) -> None:
        """Renew or release the claim.

        Raises:
            ConflictError: Another client has it.
        """
        self._claims.claim(claim)

    def claim_holder(self) -> ClientClaim | None:
        """Return who drives the search, or did."""
        return self._claims.claim_holder()

    # The state.

    def write_state(self, state: SearchState, etag: str | None) -> str:
        """Replace the state that has this etag (None: there is none yet); return the new etag.

        Raises:
            ConflictError: Another client has written one.
        """
        data = _to_json(state, "hyperparameters")
        written = self.store.put(STATE_KEY, data, if_match=etag, if_absent=etag is None)
        assert written is not None  # there was a condition
        return written

    def read_state(self) -> tuple[SearchState, str] | None:
        """Return the state as it was written, and its etag; None before the first."""
        try:
            raw, etag = self.store.get_versioned(STATE_KEY)
        except NotFoundError:
            return None
        return from_plain(SearchState, _parse(raw, STATE_KEY), STATE_KEY), etag

    def state(self) -> SearchState:
        """Return the state as it is: a search whose driver was lost is interrupted."""
        held = is_held(self.claim_holder(), time.time())
        found = self.read_state()
        if found is None:
            return SearchState(state=RunState.STARTING if held else RunState.INTERRUPTED)
        state = found[0]
        if not state.state.ended and not held:
            return dataclasses.replace(state, state=RunState.INTERRUPTED)
        return state

    # Control.

    def request(self, request: SearchRequest) -> str:
        """Leave a request; return its key, which disappears when it has been carried out."""
        key = f"control/{time.time_ns():020d}-{secrets.token_hex(4)}.json"
        self.store.put(key, json.dumps(dataclasses.asdict(request)).encode(), if_absent=True)
        return key

    def requests(self) -> list[tuple[str, SearchRequest]]:
        """Return the requests that are waiting, oldest first, with their keys."""
        found = []
        for key in self.store.list("control/"):
            try:
                found.append((key, from_plain(SearchRequest, _parse(self.store.get(key), key), key)))
            except NotFoundError:
                continue
            except (ConfigError, CorruptDataError) as error:
                log.warning("%s: is no request: %s", key, error)
                self.store.delete(key)
        return found

    def finish_request(self, key: str) -> None:
        """Say that a request has been carried out."""
        self.store.delete(key)


def _to_json(record: SearchConfig | SearchState, where: str) -> bytes:
    try:
        return json.dumps(dataclasses.asdict(record)).encode()
    except (TypeError, ValueError) as error:
        raise ConfigError(where, f"must be numbers, text, truth values or None: {error}") from error


def _parse(raw: bytes, key: str) -> object:
    try:
        parsed: object = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise CorruptDataError(f"{key} is not JSON: {error}") from error
    return parsed
