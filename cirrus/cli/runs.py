"""``cirrus runs``, ``attach`` and ``kill``."""

from __future__ import annotations

from cirrus.cli.console import say, show, table
from cirrus.client_backend.local import LocalBackend
from cirrus.client_backend.runs import Run, RunSummary, list_runs, open_run
from cirrus.errors import CirrusError
from cirrus.frontend.model_files import RunNotes, may_hold_model
from cirrus.frontend.progress import LiveLine, clock_time
from cirrus.frontend.scratch import is_scratch_url, remove_below
from cirrus.metrics import RunState, RunStatus

_HEAD = ["RUN", "STATE", "EPOCH", "LOSS", "VALIDATION", "WORKERS", "TIME", "COST", ""]


def list_all(home: str | None) -> None:
    """List all runs, oldest first."""
    found = list_runs(LocalBackend(root=home).root)
    if not found:
        say("no runs yet; begin with: cirrus train DATA")
        return
    show(table([_HEAD, *(_cells(summary) for summary in found)], right=frozenset(range(2, 8))))


def _cells(summary: RunSummary) -> list[str]:
    status = summary.status
    if status is None:
        return [summary.run_id, "broken", *[""] * 6, summary.problem or ""]
    return [
        summary.run_id,
        status.state.value,
        f"{status.epoch}/{status.epochs}",
        _loss(status.train_loss),
        _loss(status.validation_loss),
        str(status.n_workers),
        clock_time(status.seconds),
        f"${status.cost:.2f}",
        status.error or "; ".join(text for text in (status.stop_reason, status.warning) if text),
    ]


def _loss(loss: float | None) -> str:
    return "" if loss is None else f"{loss:.4f}"


def attach(run: str, home: str | None) -> None:
    """Go on with a run to its end, and save its model."""
    backend = LocalBackend(root=home)
    watched = open_run(backend.root, run)
    if watched.status.state is RunState.FINISHED:
        _keep_model(watched, watched.status, backend.root)
        return
    with backend.attach(run) as attached:
        say(f"attached to run {run}")
        with LiveLine() as line:
            status = attached.wait(on_event=line.show)
        _keep_model(attached, status, backend.root)


def _keep_model(run: Run, status: RunStatus, root: str) -> None:
    # scikit-learn takes a second to import, and only here is it needed.
    from cirrus.frontend.estimators import finish_job

    estimator = finish_job(run, status)
    notes = RunNotes.from_plain(run.config.model_metadata)
    _remove_scratch(notes, root)
    if notes.save_url is None:
        show(f"model {run.url}/model (parameters only: the program that began the run named no place)")
        return
    url = notes.save_url
    if not may_hold_model(url):
        say(f"warning: {url} holds something that is no Cirrus model: it stays as it is")
        url = f"{root}/models/{run.run_id}"
    say(f"saving the model to {url}")
    estimator.save(url)
    show(f"model {url}")


def kill(run: str, home: str | None) -> None:
    """End a run now."""
    root = LocalBackend(root=home).root
    killed = open_run(root, run)
    before = killed.status
    if before.state.ended and before.state is not RunState.INTERRUPTED:
        say(f"run {run} had ended already ({before.state.value})")
        return
    killed.kill()
    try:
        _remove_scratch(RunNotes.from_plain(killed.config.model_metadata), root)
    except CirrusError as error:
        say(f"warning: left some of its data behind: {error}")
    show(f"killed {run}")


def _remove_scratch(notes: RunNotes, root: str) -> None:
    # A run folder says what is to be deleted, and it need not have been written by us.
    if notes.scratch_url is None:
        return
    if is_scratch_url(notes.scratch_url, root):
        remove_below(notes.scratch_url)
    else:
        say(f"warning: left {notes.scratch_url} alone: it is no scratch place of {root}")
