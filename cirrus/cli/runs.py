"""``cirrus runs``, ``attach`` and ``kill``."""

from __future__ import annotations

from cirrus.cli.console import command, say, show, table
from cirrus.client_backend.backend import Backend, backend_at, backend_going_on
from cirrus.client_backend.overview import Overview, SearchSummary
from cirrus.client_backend.run_cost import CostModel, RunCost
from cirrus.client_backend.runs import Run, RunSummary, open_run
from cirrus.client_backend.search_folder import TrialStatus, search_ids
from cirrus.errors import CirrusError, ConfigError, RunError
from cirrus.frontend.model_files import RunNotes, may_hold_model
from cirrus.frontend.progress import LiveLine, clock_time, cost_line, difference_text, dollars_text
from cirrus.frontend.scratch import is_scratch_url, remove_below
from cirrus.frontend.search.progress import params_text, trial_cells
from cirrus.metrics import RunState, RunStatus

_SEARCH_HEAD = ["SEARCH", "STATE", "ENDED", "AT WORK", "BEST", "TIME", "COST", ""]
_SEARCH_NUMBERS = frozenset(range(2, 7))
_HEAD = ["RUN", "STATE", "EPOCH", "LOSS", "VALIDATION", "WORKERS", "TIME", "COST", "MODELLED", ""]
_MODELLED = _HEAD.index("MODELLED")


def list_all(home: str | None, search: str | None = None) -> None:
    """List all runs and searches, oldest first, or the trials of one search."""
    backend = backend_at(home)
    overview = Overview(backend.root)
    if search is not None:
        _list_trials(overview, search)
        return
    found = [summary for summary in overview.runs() if summary.search is None]
    searches = overview.searches()
    if not found and not searches:
        say("no runs yet; begin with: cirrus train DATA")
        return
    if found:
        show(_runs_table(found))
    if searches:
        show(
            ("\n" if found else "")
            + table([_SEARCH_HEAD, *map(_search_cells, searches)], right=_SEARCH_NUMBERS)
        )
        say(f"trials of a search: {command('runs', '--search', 'SEARCH', *backend.options)}")


def _runs_table(found: list[RunSummary]) -> str:
    rows = [_HEAD, *(_cells(summary) for summary in found)]
    if not any(row[_MODELLED] for row in rows[1:]):  # nothing here is priced
        rows = [[*row[:_MODELLED], *row[_MODELLED + 1 :]] for row in rows]
    return table(rows, right=frozenset(range(2, len(rows[0]) - 1)))


def _list_trials(overview: Overview, search_id: str) -> None:
    found = overview.search(search_id)
    if found.state is None:
        raise ConfigError("search", f"{search_id} is broken: {found.problem}")
    rows = [[*trial_cells(trial, found.state), trial.error or ""] for trial in found.state.trials]
    head = ["TRIAL", "STATUS", "EPOCHS", "LOSS", "SCORE", "COST", "HYPERPARAMETERS", ""]
    show(table([head, *rows], right=frozenset({0, 2, 3, 4, 5})))


def _search_cells(summary: SearchSummary) -> list[str]:
    state = summary.state
    if state is None:
        return [summary.search_id, "broken", *[""] * 5, summary.problem or ""]
    at_work = sum(state.trial_state(trial) == TrialStatus.RUNNING.value for trial in state.trials)
    ended = sum(trial.status.ended for trial in state.trials)
    best = state.best
    return [
        summary.search_id,
        state.state.value,
        f"{ended}/{len(state.trials)}",
        str(at_work),
        "" if best is None or best.score is None else f"{best.score:.4f}",
        clock_time(state.seconds),
        f"${state.cost:.2f}",
        state.error or ("" if best is None else params_text(best.params)),
    ]


def _cells(summary: RunSummary) -> list[str]:
    status = summary.status
    if status is None:
        return [summary.run_id, "broken", *[""] * 7, summary.problem or ""]
    return [
        summary.run_id,
        status.state.value,
        f"{status.epoch}/{status.epochs}",
        _loss(status.train_loss),
        _loss(status.validation_loss),
        str(status.n_workers),
        clock_time(status.seconds),
        dollars_text(status.cost),
        _modelled(summary.cost_model.compare(status)),
        status.error
        or "; ".join(text for text in (status.stop_reason, status.warning, status.detail) if text),
    ]


def _modelled(cost: RunCost) -> str:
    """Return what a run should have cost, and how far off that is where it is far off."""
    if not cost.modelled:
        return ""
    return dollars_text(cost.modelled) + (f" ({difference_text(cost)})" if cost.differs else "")


def say_cost(cost: RunCost) -> None:
    """Say what a run has cost, if anything, beside what it should have cost."""
    if cost.modelled:
        say(cost_line(cost))


def _loss(loss: float | None) -> str:
    return "" if loss is None else f"{loss:.4f}"


def attach(run: str, backend: Backend, *, is_named: bool = True, killed: bool = False) -> None:
    """Go on with a run to its end, and save its model.

    Args:
        run: The run.
        backend: Where.
        is_named: That was asked for. Otherwise only its root was, and the run goes on where it was begun.
        killed: Also with one that was killed.
    """
    if run in search_ids(backend.root):
        raise RunError(
            f"{run} is a search: go on with: {command('search', '--resume', run, *backend.options)}"
        )
    watched = open_run(backend.root, run)
    if not is_named:
        backend = backend_going_on(backend, watched.config.backend)
    if watched.status.state is RunState.FINISHED:
        _keep_model(watched, watched.status, backend)
        return
    with backend.attach(run, killed=killed) as attached:
        try:
            say(f"attached to run {run}")
            with LiveLine(cost_model=CostModel.of(attached.config)) as line:
                status = attached.wait(on_event=line.show)
        except KeyboardInterrupt:
            say(f"go on with: {command('attach', run, *backend.options)}")
            raise
        say_cost(attached.cost)
        _keep_model(attached, status, backend)


def _keep_model(run: Run, status: RunStatus, backend: Backend) -> None:
    # scikit-learn takes a second to import, and only here is it needed.
    from cirrus.frontend.estimators import finish_job
    from cirrus.frontend.training import check_finished

    root = backend.root
    check_finished(run.run_id, status, backend.options)
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


def kill(run: str, backend: Backend, trial: int | None = None) -> None:
    """End a run, a search, or one trial of a search now."""
    root = backend.root
    if run in search_ids(root):
        _kill_search(Overview(root), run, trial)
        return
    if trial is not None:
        raise ConfigError("trial", f"there is no search {run}: 'cirrus runs' lists those there are")
    killed = open_run(root, run)
    before = killed.status
    if before.state.ended and before.state is not RunState.INTERRUPTED:
        say(f"run {run} had ended already ({before.state.value})")
        _end_leftovers(backend, run)
        return
    try:
        killed.kill()
    finally:
        _end_leftovers(backend, run)
    try:
        _remove_scratch(RunNotes.from_plain(killed.config.model_metadata), root)
    except CirrusError as error:
        say(f"warning: left some of its data behind: {error}")
    show(f"killed {run}")


def _end_leftovers(backend: Backend, run: str) -> None:
    for name in backend.end_leftovers(run):
        say(f"ended {name}")


def _kill_search(overview: Overview, search_id: str, trial: int | None) -> None:
    if trial is not None:
        _kill_trial(overview, search_id, trial)
        return
    state = overview.search(search_id).state
    if state is not None and state.state.ended and state.state is not RunState.INTERRUPTED:
        say(f"search {search_id} had ended already ({state.state.value})")
        return
    overview.kill_search(search_id)
    show(f"killed {search_id}")


def _kill_trial(overview: Overview, search_id: str, index: int) -> None:
    before = overview.trial(search_id, index)
    if not before.status.ended:
        overview.kill_trial(search_id, index)
        before = overview.trial(search_id, index)  # it may have come to its end meanwhile
        if before.status is TrialStatus.KILLED:
            show(f"killed trial {index} of {search_id}")
            return
    say(f"trial {index} of {search_id} had ended already ({before.status.value})")


def _remove_scratch(notes: RunNotes, root: str) -> None:
    # A run folder says what is to be deleted, and it need not have been written by us.
    if notes.scratch_url is None:
        return
    if is_scratch_url(notes.scratch_url, root):
        remove_below(notes.scratch_url)
    else:
        say(f"warning: left {notes.scratch_url} alone: it is no scratch place of {root}")
