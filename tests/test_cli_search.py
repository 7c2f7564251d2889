"""`cirrus search`, and what `cirrus runs` and `cirrus kill` make of searches."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from stand_ins import eventually
from typer.testing import CliRunner

import cirrus
from cirrus import GridSearch, InlineBackend, LocalBackend, LogisticRegression
from cirrus.cli.commands import app
from cirrus.client_backend.backend import backend_going_on, named_backend
from cirrus.client_backend.overview import Overview
from cirrus.client_backend.runs import open_run
from cirrus.client_backend.search_folder import SearchFolder, TrialStatus
from cirrus.config import BackendRecord
from cirrus.errors import ConfigError, RunError


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """Return a home folder for runs that nobody else uses."""
    folder = tmp_path / "home"
    monkeypatch.setenv("CIRRUS_HOME", str(folder))
    return folder


@pytest.fixture(scope="module")
def svmlight(tmp_path_factory) -> Path:
    """Return a file of 400 rows of 8 features."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "rows.svm"
    lines = []
    for row in rng.normal(size=(400, 8)):
        label = 1 if row[0] - row[1] + 0.5 * rng.normal() > 0 else -1
        lines.append(f"{label} " + " ".join(f"{i + 1}:{value:.4f}" for i, value in enumerate(row)))
    path.write_text("\n".join(lines) + "\n")
    return path


def run(*arguments: object) -> tuple[int, str, str]:
    """Run a command in this process; return exit code, standard output and standard error."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def test_a_search_ends_with_a_table_and_a_model(home, svmlight, tmp_path):
    """Every trial is in the table and the CSV file, the best model is saved, nothing else is left."""
    model, results = tmp_path / "model", tmp_path / "results.csv"
    code, out, err = run(
        *("search", svmlight, "--grid", "learning_rate=0.0001,0.3", "--set", "l1=0", "--epochs", 2),
        *("--model", model, "--results", results, "--name", "sweep", "--scoring", "roc_auc"),
    )
    assert code == 0, err
    assert "search sweep" in err
    lines = out.splitlines()
    assert lines[0].split() == ["TRIAL", "STATUS", "EPOCHS", "LOSS", "SCORE", "COST", "HYPERPARAMETERS"]
    assert "learning_rate=0.3" in lines[1]
    assert lines[-1] == f"model {model}"
    assert cirrus.load_model(model).get_params()["learning_rate"] == 0.3
    assert cirrus.load_model(model).get_params()["l1"] == 0
    rows = list(csv.DictReader(results.read_text().splitlines()))
    assert [row["status"] for row in rows] == ["finished", "finished"]
    assert not (home / "searches/sweep/data").exists()
    code, out, _ = run("runs")
    assert code == 0
    assert "sweep" in out
    assert "2/2" in out
    assert run("runs")[2] == "trials of a search: cirrus runs --search SEARCH\n"
    code, out, _ = run("runs", "--search", "sweep")
    assert out.count("finished") == 2
    code, out, err = run("kill", "sweep")
    assert (code, out) == (0, "")
    assert "had ended already (finished)" in err
    # The same command has nothing left to do, and answers.
    code, out, err = run(
        *("search", svmlight, "--grid", "learning_rate=0.0001,0.3", "--set", "l1=0", "--epochs", 2),
        *("--model", model, "--name", "sweep", "--scoring", "roc_auc"),
    )
    assert code == 0, err
    assert out.splitlines()[:3] == lines[:3]


def test_draws_come_from_ranges(home, svmlight):
    """So many trials as draws, between the bounds."""
    code, _, err = run(
        *("search", svmlight, "--range", "learning_rate=0.01:1", "--range", "l1=0:1", "--draws", 2),
        *("--epochs", 1, "--tol", "none", "--name", "drawn"),
    )
    assert code == 0, err
    found = Overview(str(home)).search("drawn")
    assert found.config.params["tol"] is None
    state = found.state
    assert state is not None
    assert len(state.trials) == 2
    assert all(0.01 <= trial.params["learning_rate"] <= 1 for trial in state.trials)
    assert all(0 <= trial.params["l1"] <= 1 for trial in state.trials)


def test_an_interrupted_search_is_resumed_or_killed(home, svmlight):
    """`--resume` goes on to the end; `kill` ends one trial or all of a search that nobody drives."""
    data = cirrus.load_svmlight(svmlight, home / "rows")
    estimator = LogisticRegression(
        epochs=100_000, tol=None, n_workers=1, backend=LocalBackend(root=home), max_seconds=60
    )
    search = GridSearch(estimator, {"epochs": [1, 2, 100_000]}, max_concurrent=1, search_id="open")
    search.start(data)
    search.close()
    code, out, err = run("kill", "open", "--trial", 2)
    assert (code, out) == (0, "killed trial 2 of open\n"), err
    code, out, err = run("kill", "open", "--trial", 9)
    assert code == 1
    assert "no trial 9" in err
    code, out, err = run("kill", "open", "--trial", 2)
    assert (code, out, err) == (0, "", "trial 2 of open had ended already (killed)\n")
    code, out, err = run("attach", "open")
    assert (code, out) == (1, "")
    assert err == "error: open is a search: go on with: cirrus search --resume open\n"
    elsewhere = ("attach", "open", "--home", home)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CIRRUS_HOME")
        assert run(*elsewhere)[2].endswith(f"go on with: cirrus search --resume open --home {home}\n")
    code, out, err = run("search", "--resume", "open")
    assert code == 0, err
    assert "going on with search open" in err
    state = Overview(str(home)).search("open").state
    assert [trial.status.value for trial in state.trials] == ["finished", "finished", "killed"]
    again = GridSearch(estimator, {"l2": [0]}, search_id="idle").start(data)
    again.close()
    assert run("kill", "idle")[:2] == (0, "killed idle\n")
    assert Overview(str(home)).search("idle").state.state == "killed"


def test_a_resumed_search_keeps_its_limits(home, svmlight):
    """What it may spend is what it was begun with; an option replaces that one limit."""
    data = cirrus.load_svmlight(svmlight, home / "rows").url
    limits = ("--max-seconds", 0.2, "--max-cost", 5, "--max-concurrent", 1, "--max-workers", 2)
    trials = ("--grid", "l1=0,1", "--epochs", 1_000_000, "--tol", "none", "--set", "max_seconds=90")
    code, _, err = run("search", data, *trials, *limits, "--name", "kept")
    assert code == 0, err
    config = Overview(str(home)).search("kept").config
    assert config is not None
    assert (config.max_seconds, config.max_cost) == (0.2, 5)
    assert (config.max_concurrent, config.max_workers) == (1, 2)
    for options, told in (
        ((), "for 0.2 s and $5 in all"),
        (("--max-seconds", 0.3, "--max-cost", 7), "for 0.3 s and $7 in all"),
    ):
        code, _, err = run("search", "--resume", "kept", *options)
        assert code == 0, err
        assert f"going on with search kept, {told}\n" in err
        state = Overview(str(home)).search("kept").state
        assert state is not None
        assert state.stop_reason == "max_seconds"


def test_a_command_line_names_its_backend_again(home, tmp_path):
    """What is printed to go on with is what the command was begun with; what is usual is left out."""
    ray_backend = pytest.importorskip("cirrus.client_backend.ray.backend")
    made = (
        ("local", None, None, ()),
        ("local", str(tmp_path), None, ("--home", str(tmp_path))),
        ("ray", None, None, ("--backend", "ray")),
        ("ray", str(tmp_path), "h:1", ("--backend", "ray", "--ray-address", "h:1", "--home", str(tmp_path))),
    )
    for name, root, address, options in made:
        backend = named_backend(name, root, address)
        assert isinstance(backend, ray_backend.RayBackend) == (name == "ray")
        assert backend.options == options


def test_what_goes_on_does_so_where_it_was_begun(home, svmlight):
    """Runs and searches note down their backend, with which commands that name none go on."""
    pytest.importorskip("ray")
    begun, ray = LocalBackend(root=home), named_backend("ray", str(home), "h:1")
    assert backend_going_on(begun, None) is begun
    assert backend_going_on(begun, begun.record) is begun
    found = backend_going_on(begun, ray.record)
    assert (type(found), found.options, found.record) == (type(ray), ray.options, ray.record)
    with pytest.raises(ConfigError, match="is no deployment on AWS"):
        backend_going_on(begun, BackendRecord(name="aws"))
    with pytest.raises(ConfigError, match="begun on MyBackend, which no name stands for"):
        backend_going_on(begun, BackendRecord(name="MyBackend"))
    data = cirrus.load_svmlight(svmlight, home / "rows")
    estimator = LogisticRegression(epochs=100_000, tol=None, n_workers=1, backend=begun)
    search = GridSearch(estimator, {"l1": [0]}, search_id="noted")
    with search.start(data):
        eventually(lambda: search.status.trials[0].updates > 0)
    folder = SearchFolder.open(str(home), "noted")
    run_id = search.status.trials[0].runs[0]
    assert folder.config().backend == open_run(str(home), run_id).config.backend == begun.record
    # As if it had been begun in a cluster that is gone.
    for place, what in (
        (folder.store, "search.json"),
        (open_run(str(home), run_id).folder.store, "config.json"),
    ):
        place.put(what, place.get(what).replace(b'"name": "local"', b'"name": "ray"'))
        assert b'"name": "ray"' in place.get(what)
    with pytest.raises(RunError, match=f"'cirrus attach {run_id} --backend ray' goes on with it"):
        open_run(str(home), run_id).stop()
    with pytest.raises(RunError, match="'cirrus search --resume noted --backend ray' goes on with it"):
        Overview(str(home)).stop_search("noted")


def test_a_search_that_was_cut_short_has_nothing_at_work(home, svmlight):
    """Its trials that were at work are interrupted, as it is itself."""
    data = cirrus.load_svmlight(svmlight, home / "rows")
    estimator = LogisticRegression(epochs=100_000, tol=None, n_workers=1, backend=InlineBackend(root=home))
    search = GridSearch(estimator, {"l1": [0, 1]}, max_concurrent=1, search_id="cut")
    with search.start(data):
        eventually(lambda: search.status.trials[0].status is TrialStatus.RUNNING)
    assert search.status.trials[0].status is TrialStatus.RUNNING
    line = next(line for line in run("runs")[1].splitlines() if line.startswith("cut"))
    assert line.split()[:4] == ["cut", "interrupted", "0/2", "0"]
    assert [row["status"] for row in search.results_] == ["interrupted", "queued"]
    assert "running" not in str(search.results_.to_csv())
    lines = run("runs", "--search", "cut")[1].splitlines()
    assert [line.split()[1] for line in lines[1:]] == ["interrupted", "queued"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--epochs", "1"], "name what to try"),
        (["--grid", "l1"], "NAME=VALUES"),
        (["--grid", "no_such=1"], "is no parameter of LogisticRegression: it has 'batch_size', "),
        (["--grid", "learning_rat=1"], "LogisticRegression: did you mean 'learning_rate'?"),
        (["--range", "l1=0:1"], "--draws"),
        (["--grid", "learning_rate=0.1,-1"], "--grid: 'learning_rate=0.1,-1': must be"),
        (["--grid", "learning_rate="], "'learning_rate=' is not of the form NAME=VALUES"),
        (["--range", "learning_rate=1", "--draws", "2"], "--range: 'learning_rate=1' is not of the form"),
        (["--range", "l1=1:0", "--draws", "2"], "--range: 'l1=1:0': LOW must be below HIGH"),
        (["--grid", "l1=0,1", "--draws", "0"], "--draws: must be"),
        (["--grid", "l1=0", "--set", "epochs=3"], "option of its own: --epochs 3"),
        (["--grid", "l1=0", "--set", "tol=None"], "option of its own: --tol none"),
        (["--grid", "l1=0", "--tol", "much"], "--tol: must be a number or none, got 'much'"),
        (["--grid", "l1=0", "--set", "depth=3"], "no parameter 'depth'"),
        (["--grid", "l1=0", "--validation-split", "0"], "validation-split"),
        (["--grid", "l1=0", "--scoring", "magic"], "scoring"),
        (["--grid", "l1=0", "--name", "../up"], "search_id"),
    ],
)
def test_wrong_options_are_one_line(home, svmlight, arguments, text):
    """What is wrong is said before anything is loaded, and nothing is left."""
    code, out, err = run("search", svmlight, *arguments)
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert text in err
    assert not (home / "searches").exists()


def test_wrong_usage_is_exit_code_two(home, svmlight):
    """Neither nothing, nor both a file and a search to resume."""
    assert run("search")[0] == 2
    assert run("search", svmlight, "--resume", "x")[0] == 2


def test_a_search_that_is_not_there_is_said(home):
    """With what lists those there are."""
    for arguments in (("search", "--resume", "x"), ("runs", "--search", "x"), ("kill", "x", "--trial", 1)):
        code, _, err = run(*arguments)
        assert code == 1
        assert "cirrus runs" in err
