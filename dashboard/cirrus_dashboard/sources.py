"""Where the dashboard's runs come from: the run folders below one root of an object store."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Protocol

from cirrus.client_backend.overview import Overview, SearchSummary
from cirrus.client_backend.runs import RunSummary, open_run, run_id_time, run_url
from cirrus.client_backend.search_folder import Trial
from cirrus.config import RunConfig
from cirrus.errors import CirrusError, NotFoundError, RunError
from cirrus.metrics import RunEvent
from cirrus.run_folder import MetricsCursor, RunFolder, read_events
from cirrus_dashboard.actions import Actions, attach_process, search_process
from cirrus_dashboard.curves import Columns
from cirrus_dashboard.precedence import Precedence
from cirrus_dashboard.records import RunRecord, hyperparameters_of, is_value, trial_key

log = logging.getLogger(__name__)

#: How often folders are read.
POLL_SECONDS = 1.0
#: How often those of a store over the network are.
REMOTE_POLL_SECONDS = 5.0
#: While many runs are read for the first time, pages get what there is this often.
PUBLISH_SECONDS = 1.0
#: Runs of a store over the network that are read at a time.
READ_THREADS = 8
#: Between two runs, reading waits at most this long for answers that are under way.
GIVE_WAY_SECONDS = 0.5
#: A store that does not answer keeps the end of the dashboard waiting for no longer.
CLOSE_SECONDS = 2.0


@dataclass(frozen=True)
class Snapshot:
    """All runs at one moment."""

    version: int = 0
    records: Mapping[str, RunRecord] = field(default_factory=lambda: MappingProxyType({}))
    problem: str | None = None
    """Why the store could not be read, or None."""


class Source(Protocol):
    """What pages read and ask for; :class:`FolderSource` is the one there is."""

    @property
    def root(self) -> str:
        """What is shown, as a URL."""

    @property
    def snapshot(self) -> Snapshot:
        """The newest state."""

    def answering(self) -> AbstractContextManager[None]:
        """Return a context in which a page is answered: reading waits for that."""

    def kill(self, run_id: str) -> None:
        """Begin to end a run."""

    def kill_all(self, run_ids: Sequence[str]) -> None:
        """Begin to end runs, and the searches whose trials are among them: no other trial begins."""

    def resume(self, run_id: str) -> None:
        """Begin to go on with a run."""

    def set_note(self, run_id: str, text: str) -> None:
        """Keep a note on a run."""

    def events(self, run_id: str) -> Sequence[RunEvent]:
        """Return what happened in a run, oldest first."""


@dataclass
class _Followed:
    """A run, and what has been read of it."""

    summary: RunSummary
    config: RunConfig | None = None
    columns: Columns = field(default_factory=Columns)
    cursor: MetricsCursor | None = None
    note: str = ""
    note_is_due: bool = True
    is_read: bool = False
    """It has ended, and its points were read after that."""
    problem: str | None = None


class FolderSource:
    """Follows the runs and searches below a root in a thread of its own; use it as a context manager.

    The runs of one trial of a search (its rungs) are one line and one curve.

    Args:
        root: Object-store URL that holds ``runs/``.
        resume: Goes on with a run to its end, given (root, run id); returns what went wrong, or None.
        resume_search: Goes on with a search, given (root, search id), likewise.
        poll_seconds: How often folders are read; None: a second, less often over the network.
    """

    def __init__(
        self,
        root: str,
        *,
        resume: Callable[[str, str], str | None] = attach_process,
        resume_search: Callable[[str, str], str | None] = search_process,
        poll_seconds: float | None = None,
    ) -> None:
        self._root = root.rstrip("/")
        self._overview = Overview(self._root)
        is_remote = RunFolder(self._root).is_remote
        # Over the network a reader waits most of the time; on this machine more than one would only compete.
        self._readers = ThreadPoolExecutor(READ_THREADS, "dashboard-read") if is_remote else None
        self._poll_seconds = poll_seconds or (REMOTE_POLL_SECONDS if is_remote else POLL_SECONDS)
        self._followed: dict[str, _Followed] = {}
        self._trials: Mapping[tuple[str, int], tuple[Trial, str]] = {}
        """Trials of searches, and where they are."""
        self._begun: Mapping[str, str] = {}
        """When searches were begun, as ids of runs say it."""
        self._snapshot = Snapshot()
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._precedence = Precedence()
        self._actions = Actions(self._overview, resume, resume_search, self._wake.set)

    def start(self) -> None:
        """Begin to follow."""
        self._thread = threading.Thread(target=self._follow, name="dashboard-source", daemon=True)
        self._thread.start()
        self._actions.start()

    def __enter__(self) -> FolderSource:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the thread. May be called again."""
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(CLOSE_SECONDS)
        if self._readers is not None:  # its user has ended, or ends when it hears of it
            self._readers.shutdown(wait=False, cancel_futures=True)
        self._actions.close()

    @property
    def root(self) -> str:
        """See :attr:`Source.root`."""
        return self._root

    @property
    def snapshot(self) -> Snapshot:
        """See :attr:`Source.snapshot`."""
        return self._snapshot

    def answering(self) -> AbstractContextManager[None]:
        """See :meth:`Source.answering`."""
        return self._precedence.first()

    # Reading.

    def _follow(self) -> None:
        while not self._stopping.is_set():
            started = time.thread_time()
            try:
                self.poll()
            except Exception as error:  # noqa: BLE001 (pages that stand still, and do not say so, are worse)
                if self._stopping.is_set():
                    return
                log.exception("reading %s", self._root)
                self._tell(f"the runs could not be read ({type(error).__name__}: {error}); it is tried again")
            # Reading must not take more than half of one processor from whoever trains here. (Standing back
            # for a page, and waiting for a store, take nothing.)
            busy = time.thread_time() - started
            self._wake.wait(max(self._poll_seconds, busy))
            self._wake.clear()

    def _tell(self, problem: str) -> None:
        """Have pages say what is wrong, above the runs as they were."""
        before = self._snapshot
        if problem != before.problem:
            self._snapshot = Snapshot(before.version + 1, before.records, problem)

    def poll(self) -> Snapshot:
        """Read what is new once, and return it; the thread does this all the time."""
        problem = None
        try:
            summaries = self._overview.runs()
            searches = self._overview.searches()
            self._trials = _trials_of(searches)
            self._begun = {search.search_id: _time_of(search) for search in searches}
        except CirrusError as error:
            problem = str(error)
            summaries = [followed.summary for followed in self._followed.values()]
        names = {summary.run_id for summary in summaries}
        for gone in self._followed.keys() - names:
            del self._followed[gone]
        newest_first = summaries[::-1]
        is_first = any(summary.run_id not in self._followed for summary in newest_first)
        due = [followed for summary in newest_first if (followed := self._take(summary)) is not None]
        if is_first:
            self._publish(problem)  # what the listing says, before the curves are read
        published_at = time.monotonic()
        reads = map(self._read, due) if self._readers is None else self._readers.map(self._read, due)
        for _ in reads:
            if self._stopping.is_set():
                return self._snapshot
            if time.monotonic() - published_at > PUBLISH_SECONDS:
                self._publish(problem)
                published_at = time.monotonic()
        self._publish(problem)
        return self._snapshot

    def _take(self, summary: RunSummary) -> _Followed | None:
        """Take note of what the listing says of a run; return it if more has to be read."""
        followed = self._followed.setdefault(summary.run_id, _Followed(summary))
        resumed = followed.is_read and summary.status != followed.summary.status
        followed.summary, followed.problem = summary, summary.problem
        if resumed:
            followed.is_read = False
        is_due = summary.status is not None and (not followed.is_read or followed.note_is_due)
        return followed if is_due else None

    def _read(self, followed: _Followed) -> None:
        """Read what is new of a run, when no page waits for an answer."""
        self._precedence.give_way(GIVE_WAY_SECONDS)
        summary = followed.summary
        folder = RunFolder(summary.url or run_url(self._root, summary.run_id))
        try:
            if followed.config is None:
                followed.config = folder.config()
            if followed.note_is_due:
                followed.note_is_due = False  # before it is read: it may be written again meanwhile
                followed.note = folder.note()
            if not followed.is_read:
                # The status was read before: what was written until the end is then read, too.
                points, followed.cursor = self._overview.columns(summary.run_id, followed.cursor)
                if points.n_points:
                    followed.columns = followed.columns.extended(points)
            followed.is_read = summary.status is not None and summary.status.state.ended
        except NotFoundError:
            return  # removed at this moment: the next listing says so
        except CirrusError as error:
            followed.problem = str(error)
        except Exception as error:  # noqa: BLE001 (one folder must not keep all the others from being read)
            log.exception("reading run %s", summary.run_id)
            followed.problem = f"cannot be read: {type(error).__name__}: {error}"

    # What was read, as pages see it.

    def _publish(self, problem: str | None) -> None:
        """Make a snapshot of all that was read, if it differs from the last one."""
        before = self._snapshot
        records: dict[str, RunRecord] = {}
        for key, members in self._grouped().items():
            old = before.records.get(key)
            record = self._record(key, members, 0 if old is None else old.version, old)
            if not record.can_be_killed:
                self._actions.forget_kill(key)
            if old is None or record != old:
                record = replace(record, version=1 if old is None else old.version + 1)
            records[key] = record
        if problem != before.problem or records != before.records:
            self._snapshot = Snapshot(before.version + 1, MappingProxyType(records), problem)

    def _grouped(self) -> dict[str, list[_Followed]]:
        """Return the runs of each record, oldest first; trials that wait for their first have none."""
        groups: dict[str, list[_Followed]] = {trial_key(*name): [] for name in self._trials}
        for run_id in sorted(self._followed):
            followed = self._followed[run_id]
            summary = followed.summary
            if summary.search is None or summary.trial is None:
                groups[run_id] = [followed]
            else:
                groups.setdefault(trial_key(summary.search, summary.trial), []).append(followed)
        return groups

    def _record(
        self, key: str, members: Sequence[_Followed], version: int, old: RunRecord | None
    ) -> RunRecord:
        last = members[-1] if members else None
        summary = last.summary if last is not None else None
        search, trial, where = self._search_of(key)
        chosen = dict(hyperparameters_of(last.config)) if last is not None and last.config else {}
        if trial is not None:
            chosen |= {name: value for name, value in trial.params.items() if is_value(value)}
        status = summary.status if summary is not None else None
        if status is not None and len(members) > 1:
            earlier = [x.summary.status for x in members[:-1] if x.summary.status is not None]
            status = replace(
                status,
                cost=status.cost + sum(x.cost for x in earlier),
                seconds=status.seconds + sum(x.seconds for x in earlier),
            )
        return RunRecord(
            run_id=key,
            runs=tuple(member.summary.run_id for member in members),
            version=version,
            model=_model_name(last),
            config=last.config if last is not None else None,
            status=status,
            columns=self._joined(members, old),
            hyperparameters=chosen,
            note=members[0].note if members else "",
            search=search,
            begun=self._begun.get(search or "", ""),
            trial=trial.index if trial is not None else (summary.trial if summary else None),
            trial_status=where,
            problem=self._problem(key, members) or (trial.error if trial else None),
        )

    def _problem(self, key: str, members: Sequence[_Followed]) -> str | None:
        """Return what is wrong with a run: what was asked for in vain, else what could not be read."""
        asked = self._actions.problem(key, [member.summary.run_id for member in members])
        return asked or next((member.problem for member in members if member.problem), None)

    def _search_of(self, key: str) -> tuple[str | None, Trial | None, str | None]:
        search, _, number = key.rpartition(":")
        if not search:
            return None, None, None
        trial, where = self._trials.get((search, int(number)), (None, None))
        return search, trial, where

    def _joined(self, members: Sequence[_Followed], old: RunRecord | None) -> Columns:
        if not members:
            return Columns()
        if len(members) == 1:
            return members[0].columns
        parts = tuple(member.columns for member in members)
        if old is not None and old.columns.parts == parts:
            return old.columns
        return Columns.joined(parts)

    # Asking.

    def kill(self, run_id: str) -> None:
        """See :meth:`Source.kill`: returns at once.

        The run's own state tells when it has ended, and its ``problem`` when it could not be.
        """
        record = self._snapshot.records.get(run_id)
        if record is not None:
            self._actions.kill(record)

    def kill_all(self, run_ids: Sequence[str]) -> None:
        """See :meth:`Source.kill_all`: returns at once, as :meth:`kill` does."""
        records = self._snapshot.records
        self._actions.kill_all([records[run_id] for run_id in run_ids if run_id in records])

    def resume(self, run_id: str) -> None:
        """See :meth:`Source.resume`.

        Raises:
            RunError: The run is not one that can be gone on with, or what it needs is gone.
        """
        record = self._snapshot.records.get(run_id)
        if record is None or not record.can_be_resumed:
            raise RunError(f"run {run_id} works, or has finished: there is nothing to go on with")
        self._actions.resume(record)

    def set_note(self, run_id: str, text: str) -> None:
        """See :meth:`Source.set_note`.

        Raises:
            NotFoundError: There is no such run.
        """
        record = self._snapshot.records.get(run_id)
        if record is None or not record.runs:
            raise NotFoundError(f"{run_id} has no run yet to keep a note with")
        first = record.runs[0]
        open_run(self._root, first).folder.write_note(text)
        followed = self._followed.get(first)
        if followed is not None:  # else it was removed just now
            followed.note_is_due = True
        self._wake.set()

    def events(self, run_id: str) -> Sequence[RunEvent]:
        """See :meth:`Source.events`.

        Raises:
            CorruptDataError: They cannot be read.
        """
        record = self._snapshot.records.get(run_id)
        runs = record.runs if record is not None else ()
        return [event for name in runs for event in read_events(RunFolder(run_url(self._root, name)))]


def _trials_of(searches: Iterable[SearchSummary]) -> dict[tuple[str, int], tuple[Trial, str]]:
    """Return the trials of searches and where they are, by search and number."""
    found = {}
    for search in searches:
        if (state := search.state) is not None:
            for trial in state.trials:
                found[search.search_id, trial.index] = (trial, state.trial_state(trial))
    return found


def _time_of(search: SearchSummary) -> str:
    return "" if search.config is None else run_id_time(search.config.created_at)


def _model_name(followed: _Followed | None) -> str:
    if followed is None or followed.config is None:
        return ""
    card = followed.config.model_metadata.get("card")
    estimator = card.get("estimator") if isinstance(card, Mapping) else None
    return str(estimator or followed.config.model.name)
