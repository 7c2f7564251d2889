"""What people see of all runs and searches below one root, and what they may do to them.

Listings, curves and requests, for command lines and dashboards in any process that can read the store. There
is nothing here that the folders do not say; the index only makes it quicker.
"""

from __future__ import annotations

import dataclasses
import shlex
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cirrus.chunks import MANIFEST_KEY
from cirrus.client_backend.claims import is_held, new_claim
from cirrus.client_backend.homes import backend_options
from cirrus.client_backend.metric_columns import Columns, columns_of_lines, joined
from cirrus.client_backend.run_index import IndexedRun, RunIndex, index_path
from cirrus.client_backend.runs import (
    RunSummary,
    judge_status,
    open_run,
    run_ids,
    run_url,
    summarise_run,
)
from cirrus.client_backend.search_folder import (
    SearchConfig,
    SearchFolder,
    SearchRequest,
    SearchState,
    Trial,
    TrialStatus,
    search_ids,
)
from cirrus.config import RunConfig
from cirrus.errors import CirrusError, ConflictError, NotFoundError, RunError
from cirrus.metrics import MetricPoint, RunState
from cirrus.run_folder import MetricsCursor, MetricsReader, RunFolder
from cirrus.storage import open_store

#: Of these a run does not come back: once its client has left it, what it says holds for ever. (A killed one
#: can be resumed.)
FINAL_STATES = frozenset({RunState.FINISHED, RunState.FAILED})
#: How long a request to a search may take to be carried out.
REQUEST_SECONDS = 20.0
REQUEST_POLL_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class SearchSummary:
    """One line of the list of searches."""

    search_id: str
    url: str
    config: SearchConfig | None = None
    """None when the folder is broken."""
    state: SearchState | None = None
    problem: str | None = None
    """What is wrong with the folder, or None."""


class Overview:
    """All runs and searches below one root. May be used from several threads.

    Args:
        root: Object-store URL that holds ``runs/`` and ``searches/``, such as ``LocalBackend().root``.
        index: Where summaries are remembered; None: :func:`~cirrus.client_backend.run_index.index_path`.
    """

    def __init__(self, root: str, *, index: RunIndex | None = None) -> None:
        self.root = root
        in_memory = root.startswith("memory:")
        self._index = None if in_memory else index or RunIndex(index_path(root), root)
        self._lock = threading.Lock()

    @property
    def problem(self) -> str | None:
        """Why listing is slower than it could be, or None."""
        return None if self._index is None else self._index.problem

    # Runs.

    def runs(self, search_id: str | None = None) -> list[RunSummary]:
        """Return all runs, oldest first; broken ones are listed as broken.

        Args:
            search_id: Only those of this search.

        Raises:
            StorageError: The store cannot be listed.
        """
        names = run_ids(self.root)
        if not names:  # nor may a listing make the folder that it looks at
            return []
        with self._lock:
            known = {} if self._index is None else self._index.read()
            found = {name: self._refreshed(name, known.get(name)) for name in names}
            if self._index is not None:
                changed = {
                    name: run for name, run in found.items() if known.get(name) != run and _is_whole(run)
                }
                self._index.write(changed, gone=known.keys() - found.keys())
        summaries = (found[name].summary for name in names)
        return [summary for summary in summaries if search_id is None or summary.search == search_id]

    def run(self, run_id: str) -> RunSummary:
        """Return one run as it is now.

        Raises:
            NotFoundError: There is no such run.
        """
        return open_summary(self.root, run_id)

    def _refreshed(self, run_id: str, known: IndexedRun | None) -> IndexedRun:
        """Return a run as it is now, reading no more than may have changed."""
        if known is not None and known.is_final:
            return known
        folder = RunFolder(run_url(self.root, run_id))
        may_change = True
        try:
            # A client that still holds a run that ended puts its cost right, and gives the claim back after
            # that: so the claim comes first.
            claim = folder.claim_holder()
            may_change = is_held(claim, time.time())
            if known is None:
                summary = summarise_run(self.root, run_id)
            else:
                # The config never changes, and is much the longest to read.
                status = judge_status(folder.status(), claim, time.time())
                summary = dataclasses.replace(known.summary, url=folder.url, status=status, problem=None)
        except CirrusError as error:
            known_so_far = known.summary if known is not None else RunSummary(run_id=run_id, url=folder.url)
            summary = dataclasses.replace(known_so_far, status=None, problem=str(error))
        has_ended = summary.status is not None and summary.status.state in FINAL_STATES
        return IndexedRun(summary=summary, is_final=has_ended and not may_change)

    def run_config(self, run_id: str) -> RunConfig:
        """Return a run's whole config.

        Raises:
            NotFoundError: There is no such run.
            ConfigError: Its config cannot be read.
        """
        return open_run(self.root, run_id).config

    def points(
        self, run_id: str, cursor: MetricsCursor | None = None
    ) -> tuple[list[MetricPoint], MetricsCursor]:
        """Return the points of a run's curves that are new, and where to go on next time.

        Args:
            run_id: The run.
            cursor: What the last call returned; None: from the beginning.

        Raises:
            CorruptDataError: The run's metrics cannot be read.
        """
        reader = MetricsReader(RunFolder(run_url(self.root, run_id)), cursor)
        return reader.read(), reader.cursor

    def columns(self, run_id: str, cursor: MetricsCursor | None = None) -> tuple[Columns, MetricsCursor]:
        """Return :meth:`points` as columns of numbers, in a small part of the time.

        Args:
            run_id: The run.
            cursor: What the last call returned; None: from the beginning.

        Raises:
            CorruptDataError: The run's metrics cannot be read.
        """
        reader = MetricsReader(RunFolder(run_url(self.root, run_id)), cursor)
        parts = [columns_of_lines(lines, key) for key, lines in reader.read_lines()]
        return joined(parts), reader.cursor

    def kill_run(self, run_id: str) -> None:
        """End a run now, wherever it works. Nothing happens when it has ended.

        Raises:
            NotFoundError: There is no such run.
            RunError: It did not end in time.
        """
        open_run(self.root, run_id).kill()

    # Searches.

    def searches(self) -> list[SearchSummary]:
        """Return all searches, oldest first; broken ones are listed as broken.

        Raises:
            StorageError: The store cannot be listed.
        """
        return [self._summary(search_id) for search_id in search_ids(self.root)]

    def search(self, search_id: str) -> SearchSummary:
        """Return one search as it is now.

        Raises:
            NotFoundError: There is no such search.
        """
        SearchFolder.open(self.root, search_id)
        return self._summary(search_id)

    def _summary(self, search_id: str) -> SearchSummary:
        folder = SearchFolder(f"{self.root.rstrip('/')}/searches/{search_id}")
        try:
            return SearchSummary(
                search_id=search_id, url=folder.url, config=folder.config(), state=folder.state()
            )
        except CirrusError as error:
            return SearchSummary(search_id=search_id, url=folder.url, problem=str(error))

    def trial(self, search_id: str, index: int) -> Trial:
        """Return a trial of a search as it is now.

        Raises:
            NotFoundError: There is no such search or trial.
        """
        return self._trial(self._state(search_id), search_id, index)

    def trial_points(self, trial: Trial) -> list[MetricPoint]:
        """Return a trial's whole curve: those of its runs, one after another."""
        return join_curves([self.points(run_id)[0] for run_id in trial.runs])

    def is_driven(self, search_id: str) -> bool:
        """Tell whether somebody drives a search, who will carry out requests."""
        return is_held(SearchFolder.open(self.root, search_id).claim_holder(), time.time())

    def kill_trial(self, search_id: str, trial: int, *, wait: bool = True) -> None:
        """End a trial now; the others go on.

        Args:
            search_id: The search.
            trial: Its index.
            wait: Return when that is done, not when it is asked for.

        Raises:
            NotFoundError: There is no such search or trial.
            RunError: It was not done in time.
        """
        self._ask(search_id, SearchRequest(action="kill", trial=trial), [trial], wait=wait)

    def kill_search(self, search_id: str, *, wait: bool = True) -> None:
        """End all trials of a search, those that wait too; arguments and errors as for :meth:`kill_trial`."""
        state = self._state(search_id)
        indices = [trial.index for trial in state.trials if not trial.status.ended]
        self._ask(search_id, SearchRequest(action="kill_all"), indices, wait=wait)

    def stop_search(self, search_id: str) -> None:
        """Ask a search to finish its trials where they are, and begin no more.

        Raises:
            NotFoundError: There is no such search.
            RunError: Nobody drives it.
        """
        self._require_driver(search_id)
        SearchFolder.open(self.root, search_id).request(SearchRequest(action="stop"))

    def resume_trial(self, search_id: str, trial: int) -> None:
        """Ask for a trial that was killed or pruned to go on, from its newest snapshot.

        Raises:
            NotFoundError: There is no such search or trial.
            RunError: Nobody drives the search: it has to be resumed as a whole.
        """
        self._trial(self._state(search_id), search_id, trial)
        self._require_driver(search_id)
        SearchFolder.open(self.root, search_id).request(SearchRequest(action="resume", trial=trial))

    def queue_trial(self, search_id: str, trial: int) -> None:
        """Leave a request for whoever resumes a search that nobody drives: to go on with a trial.

        Args:
            search_id: The search.
            trial: Its index.

        Raises:
            NotFoundError: There is no such search or trial.
            RunError: Its sampler, or its data, is gone.
        """
        folder = SearchFolder.open(self.root, search_id)
        config = folder.config()
        if config.method == "optuna":
            raise RunError(
                f"no file holds the sampler of search {search_id}: run its program again, with "
                f"search_id={search_id!r}"
            )
        if not open_store(config.train_url).exists(MANIFEST_KEY):
            raise RunError(f"the data of search {search_id} went away with its end: {config.train_url}")
        chosen = self._trial(folder.state(), search_id, trial)
        if chosen.status in (TrialStatus.KILLED, TrialStatus.PRUNED):
            folder.request(SearchRequest(action="resume", trial=trial))

    def _require_driver(self, search_id: str) -> None:
        if not self.is_driven(search_id):
            options = backend_options(SearchFolder.open(self.root, search_id).config().backend, self.root)
            resume = shlex.join(["cirrus", "search", "--resume", search_id, *options])
            raise RunError(f"no program drives search {search_id} any more: '{resume}' goes on with it")

    def _state(self, search_id: str) -> SearchState:
        return SearchFolder.open(self.root, search_id).state()

    def _trial(self, state: SearchState, search_id: str, index: int) -> Trial:
        for trial in state.trials:
            if trial.index == index:
                return trial
        raise NotFoundError(f"search {search_id} has no trial {index}: it has 0 to {len(state.trials) - 1}")

    def _ask(self, search_id: str, request: SearchRequest, indices: Iterable[int], *, wait: bool) -> None:
        """Have trials killed: by whoever drives the search, or here if nobody does."""
        folder = SearchFolder.open(self.root, search_id)
        state = folder.state()
        wanted = [self._trial(state, search_id, index) for index in indices]
        # A sampler may have more trials begin though all that there are have ended.
        may_begin_more = request.action == "kill_all" and not state.state.ended
        if all(trial.status.ended for trial in wanted) and not may_begin_more:
            return
        if not self.is_driven(search_id):
            self._kill_undriven(folder, request, [trial.index for trial in wanted])
            return
        key = folder.request(request)
        end = time.monotonic() + REQUEST_SECONDS
        while wait and folder.store.exists(key):
            if not self.is_driven(search_id):  # it went away just now
                folder.finish_request(key)
                self._kill_undriven(folder, request, [trial.index for trial in wanted])
                return
            if time.monotonic() > end:
                raise RunError(
                    f"search {search_id} did not do it within {REQUEST_SECONDS:g} s; the request stays"
                )
            time.sleep(REQUEST_POLL_SECONDS)  # an object of another process cannot wake anybody

    def _kill_undriven(self, folder: SearchFolder, request: SearchRequest, indices: Sequence[int]) -> None:
        """Kill trials of a search that nobody drives, and write it down."""
        claim = folder.take_claim(new_claim())
        try:
            found = folder.read_state()
            if found is None:
                raise ConflictError(f"search {folder.url} has not begun any trial")
            state, etag = found
            trials = [self._killed(trial) if trial.index in indices else trial for trial in state.trials]
            ended = request.action == "kill_all"
            state = dataclasses.replace(
                state,
                trials=tuple(trials),
                state=RunState.KILLED if ended else RunState.INTERRUPTED,
                stop_reason="killed" if ended else state.stop_reason,
                renewed_at=time.time(),
            )
            folder.write_state(state, etag)
        finally:
            folder.renew_claim(dataclasses.replace(claim, released=True))

    def _killed(self, trial: Trial) -> Trial:
        if trial.status.ended:
            return trial
        for run_id in trial.runs[-1:]:
            self.kill_run(run_id)
        return dataclasses.replace(trial, status=TrialStatus.KILLED)


def _is_whole(run: IndexedRun) -> bool:
    """Tell whether there is something to remember of a run: of a broken one there is not."""
    return run.summary.problem is None


def open_summary(root: str, run_id: str) -> RunSummary:
    """Return one run's line of the list.

    Raises:
        NotFoundError: There is no such run.
    """
    open_run(root, run_id)
    return summarise_run(root, run_id)


def join_curves(curves: Iterable[Sequence[MetricPoint]]) -> list[MetricPoint]:
    """Return one curve for runs that go on from each other: a trial's rungs.

    Epochs, updates and samples go on by themselves; seconds and cost begin anew with each run, and are added
    up here.

    Args:
        curves: The points of each run, oldest run first.
    """
    joined: list[MetricPoint] = []
    seconds = cost = 0.0
    for points in curves:
        joined += [
            dataclasses.replace(point, seconds=point.seconds + seconds, cost=point.cost + cost)
            for point in points
        ]
        if joined:
            seconds, cost = joined[-1].seconds, joined[-1].cost
    return joined
