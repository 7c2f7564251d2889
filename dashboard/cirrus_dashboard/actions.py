"""What pages ask for: runs and searches are ended and gone on with, and notes are kept."""

from __future__ import annotations

import logging
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cirrus.client_backend.overview import Overview
from cirrus.errors import CirrusError
from cirrus_dashboard.records import RunRecord

log = logging.getLogger(__name__)

#: Requests to end runs that are under way at a time.
KILL_THREADS = 8


@dataclass(frozen=True)
class _Kill:
    """What is to be ended."""

    records: tuple[RunRecord, ...]
    """What is ended, and shows why when it could not be."""
    search: str | None = None
    """The whole search that they are trials of; None: there is one record, which is ended alone."""


def attach_process(root: str, run_id: str) -> str | None:
    """Go on with a run in a process of its own, which outlives this one.

    Args:
        root: Object-store URL that holds ``runs/``.
        run_id: A run that is interrupted, or was killed.

    Returns:
        When the run has ended: None, or why it could not be gone on with.
    """
    return _run_cirrus("attach", run_id, "--killed", "--home", root)


def search_process(root: str, search_id: str) -> str | None:
    """Go on with a search that nobody drives, as :func:`attach_process` does with a run."""
    return _run_cirrus("search", "--resume", search_id, "--home", root)


def _run_cirrus(*arguments: str) -> str | None:
    """Run a command to its end; return None, or what went wrong."""
    # No pipe: that would end with this process, and break what the other writes.
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "cirrus", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
        )
        if process.wait() == 0:
            return None
        errors.seek(0)
        lines = errors.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"cirrus {arguments[0]} ended with exit code {process.returncode}"


class Actions:
    """Carries out what is asked, in threads of its own; what cannot be done is kept, to be shown.

    Args:
        overview: Of the root that the runs lie below.
        resume: Goes on with a run to its end, given (root, run id); returns what went wrong, or None.
        resume_search: Goes on with a search, given (root, search id), likewise.
        changed: Called when something was done, or could not be.
    """

    def __init__(
        self,
        overview: Overview,
        resume: Callable[[str, str], str | None],
        resume_search: Callable[[str, str], str | None],
        changed: Callable[[], None],
    ) -> None:
        self._overview = overview
        self._resume = resume
        self._resume_search = resume_search
        self._changed = changed
        self._resume_problems: dict[str, str] = {}
        """Why runs could not be gone on with."""
        self._kill_problems: dict[str, str] = {}
        """Why runs could not be ended, by what pages call them."""
        self._kills: queue.SimpleQueue[_Kill | None] = queue.SimpleQueue()

    def start(self) -> None:
        """Begin to carry out."""
        # Ending a run may take its time, and nobody waits for these: the requests lie in the folders.
        for number in range(KILL_THREADS):
            threading.Thread(
                target=self._carry_out_kills, name=f"dashboard-kill-{number}", daemon=True
            ).start()

    def close(self) -> None:
        """Carry out nothing more."""
        for _ in range(KILL_THREADS):
            self._kills.put(None)

    def problem(self, record: str, runs: Sequence[str]) -> str | None:
        """Return why something that was asked for could not be done.

        Args:
            record: What pages call the run.
            runs: Its runs.
        """
        problems = [self._kill_problems.get(record), *map(self._resume_problems.get, runs)]
        return next(filter(None, problems), None)

    def forget_kill(self, record: str) -> None:
        """Nothing is left to be ended there."""
        self._kill_problems.pop(record, None)

    def kill(self, record: RunRecord) -> None:
        """Begin to end a run; returns at once."""
        self._begin_kill(_Kill((record,)))

    def kill_all(self, records: Sequence[RunRecord]) -> None:
        """Begin to end runs; returns at once.

        A search is asked once, as a whole: were its trials ended one by one, each would make room in which
        another begins or is promoted.
        """
        searches: dict[str, list[RunRecord]] = {}
        for record in records:
            if record.search is None or record.trial_status is None:
                self._begin_kill(_Kill((record,)))
            else:
                searches.setdefault(record.search, []).append(record)
        for search, trials in searches.items():
            self._begin_kill(_Kill(tuple(trials), search))

    def _begin_kill(self, kill: _Kill) -> None:
        for record in kill.records:
            self._kill_problems.pop(record.run_id, None)
        self._kills.put(kill)

    def _carry_out_kills(self) -> None:
        while (kill := self._kills.get()) is not None:
            self._kill_now(kill)

    def _kill_now(self, kill: _Kill) -> None:
        record = kill.records[0]
        problem = None
        try:
            if kill.search is not None:
                self._overview.kill_search(kill.search)
            elif record.search is not None and record.trial_status is not None and record.trial is not None:
                self._overview.kill_trial(record.search, record.trial)
            else:
                for run_id in record.runs[-1:]:
                    self._overview.kill_run(run_id)
        except CirrusError as error:
            log.warning("cannot end %s: %s", kill.search or record.run_id, error)
            problem = f"could not be ended: {error}"
        except Exception as error:  # noqa: BLE001 (the next request still needs this thread)
            log.exception("cannot end %s", kill.search or record.run_id)
            problem = f"could not be ended: {type(error).__name__}: {error}"
        if problem is not None:
            self._kill_problems |= dict.fromkeys((found.run_id for found in kill.records), problem)
        self._changed()

    def resume(self, record: RunRecord) -> None:
        """Begin to go on with a run or trial.

        Raises:
            RunError: What it needs is gone.
        """
        if record.search is None or record.trial is None:
            self._in_background(self._resume, record.runs[-1], [record.runs[-1]])
        elif self._overview.is_driven(record.search):
            self._overview.resume_trial(record.search, record.trial)
        else:
            self._overview.queue_trial(record.search, record.trial)
            self._in_background(self._resume_search, record.search, record.runs[-1:])
        self._changed()

    def _in_background(
        self, resume: Callable[[str, str], str | None], name: str, shown_at: Sequence[str]
    ) -> None:
        """Go on with a run or a search; what goes wrong is shown with some runs."""

        def work() -> None:
            for run_id in shown_at:
                self._resume_problems.pop(run_id, None)
            problem = resume(self._overview.root, name)
            if problem is not None:
                self._resume_problems |= dict.fromkeys(shown_at, problem)
                self._changed()

        threading.Thread(target=work, name=f"resume-{name}", daemon=True).start()
