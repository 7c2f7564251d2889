"""The command line: what it prints, its exit codes, and that it leaves nothing behind."""

from __future__ import annotations

import contextlib
import csv
import gzip
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from operator import itemgetter
from pathlib import Path

import numpy as np
import psutil
import pytest
from stand_ins import CTRL_C_SECONDS, FOR_EVER, PATIENCE_SECONDS, assert_within, eventually
from typer.testing import CliRunner

import cirrus
from cirrus.cli.commands import app
from cirrus.frontend.scratch import is_scratch_url, new_scratch_url

COMMANDS = [
    "load",
    "describe",
    "preprocess",
    "train",
    "search",
    "predict",
    "runs",
    "attach",
    "kill",
    "dashboard",
    "ps",
    "package",
    "deploy",
    "destroy",
]
RUN_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{6}")


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """Return a home folder for runs that nobody else uses."""
    folder = tmp_path / "home"
    monkeypatch.setenv("CIRRUS_HOME", str(folder))
    return folder


@pytest.fixture(scope="module")
def svmlight(tmp_path_factory) -> Path:
    """Return a file of 600 rows of 8 features, in a folder with a space in its name."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("a folder") / "some rows.svm"
    lines = []
    for row in rng.normal(size=(600, 8)):
        label = 1 if row[0] - row[1] + 0.5 * rng.normal() > 0 else -1
        lines.append(f"{label} " + " ".join(f"{i + 1}:{value:.4f}" for i, value in enumerate(row)))
    path.write_text("\n".join(lines) + "\n")
    return path


def run(*arguments: object) -> tuple[int, str, str]:
    """Run a command in this process; return exit code, standard output and standard error."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def spawn(*arguments: object) -> tuple[int, str, str]:
    """Run a command in a process of its own; return exit code, standard output and standard error."""
    done = subprocess.run(
        [sys.executable, "-m", "cirrus", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Return what starts a command in a process of its own, which ends with the test at the latest."""
    with contextlib.ExitStack() as ending:

        def begin(*arguments: object) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, "-m", "cirrus", *map(str, arguments)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                bufsize=1,
            )
            ending.enter_context(process)
            ending.callback(process.kill)
            return process

        yield begin


def run_id_of(process: subprocess.Popen[str]) -> str:
    """Wait until a training command says which run it has begun."""
    for line in process.stderr:
        if found := RUN_ID.search(line):
            return found.group()
    raise AssertionError("no run was begun")


def interrupt(process: subprocess.Popen[str], home: Path) -> float:
    """Press Ctrl-C in a command's terminal; return the seconds until it has ended."""
    begun_at = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE_SECONDS)
    seconds = time.monotonic() - begun_at
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "nothing is kept, as its rows were read from a file" in err
    eventually(lambda: not processes_of(home))
    return seconds


def processes_of(home: Path) -> list[psutil.Process]:
    """Return the shards and workers whose runs are in a home folder."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any(str(home) in word for word in process.info["cmdline"] or ()):
            found.append(process)
    return found


# Help.


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command):
    """Each command explains itself with a command that works."""
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert f"Example: cirrus {command}" in " ".join(result.output.split())


def test_commands_that_do_not_work_are_not_listed():
    """The list of commands is what this version has."""
    assert [command.callback.__name__ for command in app.registered_commands] == COMMANDS


def test_wrong_usage_is_exit_code_two(home):
    """An unknown option or a missing argument is wrong usage."""
    assert run("train", "--no-such-option")[0] == 2
    assert run("predict")[0] == 2


# From a file to predictions.


def test_train_describe_predict(home, svmlight, tmp_path):
    """A file becomes a model that beats the base rate, and predictions in the order of the file."""
    model = tmp_path / "my model"
    code, out, err = spawn("train", svmlight, "--epochs", 3, "--workers", 2, "--model", model)
    assert code == 0, err
    assert "loading" in err
    assert "loss" in err
    log_loss, base = map(float, re.search(r"log loss\s+([\d.]+)\s+([\d.]+)", out).groups())
    assert log_loss < base - 0.1
    assert f"model {model}" in out
    assert "next: cirrus predict" in err
    assert list((home / "scratch").iterdir()) == []

    code, out, err = run("describe", model)
    assert (code, "features  8" in out, "classes   -1, 1" in out) == (0, True, True)

    predictions = tmp_path / "sub folder" / "p.csv"
    assert run("predict", model, svmlight, "--out", predictions)[0] == 0
    with predictions.open() as file:
        rows = list(csv.DictReader(file))
    expected = cirrus.load_model(model).predict_proba(
        cirrus.load_svmlight(svmlight, "memory://test-cli/rows", shuffle=False)
    )
    np.testing.assert_allclose([float(row["probability_of_1"]) for row in rows], expected[:, 1], rtol=1e-4)
    assert {row["label"] for row in rows} == {"-1", "1"}
    table = tmp_path / "table.csv"
    table.write_text("clicked,site\n1,a\n")
    code, _, err = run("predict", model, table)
    assert (code, f"error: {table}: looks like CSV, but the model is trained on svmlight" in err) == (1, True)
    table.write_text("1 3:0.5\n1 2:x\n")
    assert "2:x" in run("predict", model, table)[2]
    # What a link points to is written; what is no file is written to, and not replaced.
    (tmp_path / "link.csv").symlink_to(predictions)
    written = predictions.read_text()
    predictions.write_text("old")
    assert run("predict", model, svmlight, "--out", tmp_path / "link.csv")[0] == 0
    assert (tmp_path / "link.csv").is_symlink()
    assert predictions.read_text() == written
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE, text=True) as reader:
        assert run("predict", model, svmlight, "--out", tmp_path / "pipe")[0] == 0
        assert reader.communicate()[0] == written
    assert (tmp_path / "pipe").is_fifo()
    predictions.write_text("before\n")
    command = [sys.executable, "-m", "cirrus", "predict", str(model), str(svmlight), "--out", "/dev/stdout"]
    with predictions.open("a") as file:
        subprocess.run(command, stdout=file, check=True, timeout=60)
    assert predictions.read_text() == "before\n" + written

    code, out, _ = run("runs")
    assert code == 0
    assert "finished" in out
    assert processes_of(home) == []


@pytest.mark.parametrize(
    ("model_type", "label", "figure", "columns"),
    [
        ("softmax", "colour", "log loss", ["label", "probability_of_blue", "probability_of_green"]),
        ("svm", "colour", "accuracy", ["label"]),
        ("linear", "price", "R2", ["prediction"]),
        ("fm-regression", "price", "R2", ["prediction"]),
    ],
)
def test_other_models_train_and_predict(home, tmp_path, model_type, label, figure, columns):
    """--model-type names the model: it beats the base, is described, and writes what it predicts."""
    rng = np.random.default_rng(0)
    rooms = rng.integers(1, 9, 400)
    colours = np.array(["green", "red", "blue"])[np.digitize(rooms, [4, 7])]
    lines = [f"{c},{2.5 * r + 1},{r},c{r % 3}" for c, r in zip(colours, rooms, strict=True)]
    data, model = tmp_path / "houses.csv", tmp_path / "model"
    data.write_text("colour,price,rooms,kind\n" + "\n".join(lines) + "\n")
    columns_of_data = ("--label", label, "--numeric", "rooms", "--categorical", "kind", "--hash-features", 64)
    code, out, err = run(
        "train", data, "--model-type", model_type, *columns_of_data, "--epochs", 60, "--model", model
    )
    assert code == 0, err
    value, base = map(float, re.search(rf"{figure}\s+([\d.]+)\s+([\d.]+)", out).groups())
    assert value < base if figure == "log loss" else value > base
    code, out, _ = run("describe", model)
    assert code == 0
    assert type(cirrus.load_model(model)).__name__ in out
    code, out, err = run("predict", model, data)
    assert code == 0, err
    rows = list(csv.DictReader(out.splitlines()))
    assert len(rows) == 400
    assert set(columns) <= rows[0].keys()


@pytest.mark.parametrize(
    ("model_type", "file_format", "figure", "columns"),
    [
        ("mf", "ratings", "RMSE", {"prediction"}),
        ("lda", "ldac", "perplexity", {"label", "topic_0", "topic_1"}),
        ("kmeans", "svmlight", "mean squared distance", {"label", "distance"}),
    ],
)
def test_models_without_labels_train_and_predict(home, tmp_path, model_type, file_format, figure, columns):
    """Ratings, documents and rows: each model beats one that knows no features, and describes rows."""
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 2, 300)
    lines = {
        "ratings": [f"u{i % 20},m{k * 5 + i % 5},{1 + 3 * k}" for i, k in enumerate(kinds)],
        "ldac": [f"3 {4 * k}:5 {4 * k + 1}:3 {4 * k + 2 + i % 2}:2" for i, k in enumerate(kinds)],
        "svmlight": [f"0 {1 + k}:{5 + i % 3} 3:1" for i, k in enumerate(kinds)],
    }[file_format]
    data, model = tmp_path / "data.txt", tmp_path / "model"
    data.write_text("\n".join(lines) + "\n")
    assert run("load", data, tmp_path / "ds", "--format", file_format)[0] == 0
    arguments = ("--model-type", model_type, "--size", 2, "--epochs", 5, "--model", model)
    code, out, err = run("train", tmp_path / "ds", *arguments)
    assert code == 0, err
    value, base = map(float, re.search(rf"{figure}\s+([\d.]+)\s+([\d.]+)", out).groups())
    assert value < base
    assert run("describe", model)[0] == 0
    code, out, err = run("predict", model, tmp_path / "ds")
    assert code == 0, err
    rows = list(csv.DictReader(out.splitlines()))
    assert (len(rows), rows[0].keys() >= columns) == (300, True)
    code, out, err = run("predict", model, data)
    assert code == 0, err
    in_file = list(csv.DictReader(out.splitlines()))
    of = itemgetter(*sorted(columns))
    assert (len(in_file), sorted(map(of, in_file))) == (300, sorted(map(of, rows)))


def test_ratings_are_predicted_by_ids(home, tmp_path):
    """Users and items of a file, or of a dataset loaded on its own, are those of the same ids."""
    rng = np.random.default_rng(0)
    triples = [(u, i, 1 + (u * i) % 5) for u in range(10, 30) for i in range(100, 115) if rng.random() < 0.8]
    trained, new, model = tmp_path / "trained.data", tmp_path / "new.data", tmp_path / "model"
    trained.write_text("".join(f"{u}\t{i}\t{r}\t0\n" for u, i, r in triples))
    asked = [*triples[::-40], (999, 114, 3), (29, 999, 3)]
    new.write_text("".join(f"{u}\t{i}\t{r}\t0\n" for u, i, r in asked))
    tabs = ("--format", "ratings", "--sep", "tab")
    assert run("load", trained, tmp_path / "ds", *tabs)[0] == 0
    code, _, err = run("train", tmp_path / "ds", "--model-type", "mf", "--epochs", 2, "--model", model)
    assert code == 0, err
    assert run("load", new, tmp_path / "new", *tabs, "--no-shuffle")[0] == 0
    users, items, _ = zip(*asked, strict=True)
    expected = [f"{value:.6g}" for value in cirrus.load_model(model).predict(users, items)]
    assert len(set(expected)) > 5
    for data in (new, tmp_path / "new"):
        code, out, err = run("predict", model, data)
        assert (code, out.split()) == (0, ["prediction", *expected]), err
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("user,item\n" + "".join(f"{u},{i}\n" for u, i, _ in asked))
    code, out, err = run("predict", model, pairs, "--sep", ",")
    assert (code, out.split()) == (0, ["prediction", *expected]), err
    code, out, err = run("predict", model, pairs, "--sep", ",", "--no-header")
    assert len(out.split()) == len(expected) + 2, err
    for arguments, problem in (
        (
            (pairs,),
            "pairs.csv:1: has 1 column, not user, item, and perhaps a rating and a timestamp: "
            "correct the line, or say what separates columns with --sep",
        ),
        ((tmp_path / "new", "--sep", ","), "--sep: does not apply to"),
        ((tmp_path / "new", "--header"), "--header: does not apply to"),
    ):
        code, _, err = run("predict", model, *arguments)
        assert (code, problem in err) == (1, True), err


def test_clusters_of_scaled_rows_are_told_of_raw_ones(home, svmlight, tmp_path):
    """Files and datasets of raw rows are scaled as what was trained on before they are compared with it."""
    for arguments in (
        ("load", svmlight, tmp_path / "raw", "--no-shuffle"),
        ("preprocess", "standard", tmp_path / "raw", tmp_path / "scaled"),
        ("train", tmp_path / "scaled", "--model-type", "kmeans", "--epochs", 1, "--model", tmp_path / "m"),
    ):
        code, _, err = run(*arguments)
        assert code == 0, err
    code, expected, err = run("predict", tmp_path / "m", tmp_path / "scaled")
    assert code == 0, err
    for data in (svmlight, tmp_path / "raw"):
        code, out, err = run("predict", tmp_path / "m", data)
        assert (code, out) == (0, expected), err


@pytest.mark.parametrize(
    ("name", "text", "options", "model_type"),
    [("r.csv", "1,2,3\n1,3,4\n", ["--format", "ratings"], "mf"), ("w.ldac", "1 0:2\n1 1:1\n", [], "lda")],
)
@pytest.mark.parametrize("command", [("train",), ("search", "--grid", "l1=0,1")])
def test_rows_without_classes_need_a_model_type(home, tmp_path, name, text, options, model_type, command):
    """Stars are not taken for classes unless somebody says so; neither from a file nor from a dataset."""
    (tmp_path / name).write_text(text)
    assert run("load", tmp_path / name, tmp_path / "ds", *options)[0] == 0
    for arguments in ((tmp_path / name, *options), (tmp_path / "ds",)):
        code, _, err = run(*command, *arguments)
        assert (code, f"say --model-type {model_type}" in err) == (1, True), err


def test_stars_are_classes_for_those_who_say_so(home, tmp_path):
    """A type that was named is trained."""
    (tmp_path / "r.csv").write_text("".join(f"{i % 7},{i % 5},{1 + i % 3}\n" for i in range(60)))
    arguments = ("--format", "ratings", "--model-type", "softmax", "--epochs", 1)
    code, _, err = run("train", tmp_path / "r.csv", *arguments)
    assert code == 0, err


def test_what_is_not_there_yet_is_made_how(home, tmp_path):
    """A file is to be loaded before it is described, and a model to be saved before it predicts."""
    (tmp_path / "my clicks.svm").write_text("1 0:1\n")
    code, _, err = run("describe", tmp_path / "my clicks.svm")
    assert (code, f"load it first, with: cirrus load '{tmp_path / 'my clicks.svm'}' URL" in err) == (1, True)
    code, _, err = run("predict", tmp_path / "none", tmp_path / "my clicks.svm")
    assert (code, "there is no saved model here" in err, "cirrus train DATA --model URL" in err) == (
        1,
        True,
        True,
    )


def test_documents_have_no_labels(home, tmp_path):
    """What is one is called one, and zeros that stand for nothing are not counted."""
    (tmp_path / "w.ldac").write_text("1 0:2\n1 1:1\n")
    assert run("load", tmp_path / "w.ldac", tmp_path / "ds")[0] == 0
    code, out, _ = run("describe", tmp_path / "ds")
    assert code == 0
    assert "in 1 chunk, 1 block\n" in out
    assert "labels    none\n" in out


def test_options_have_to_apply_to_the_model(home, svmlight):
    """An option that a model has no use for is an error, not ignored."""
    code, _, err = run("train", svmlight, "--model-type", "linear", "--balanced")
    assert (code, "does not apply to --model-type linear" in err) == (1, True)


def test_every_parameter_of_the_estimator_can_be_set(home, svmlight, tmp_path):
    """``--mode``, ``--staleness`` and ``--set`` reach the model; what is wrong with them is one line."""
    code, _, err = run(
        *("train", svmlight, "--epochs", 1, "--model", tmp_path / "m", "--mode", "average"),
        *("--set", "fit_intercept=false", "--set", "max-cost=7.5"),
    )
    assert code == 0, err
    params = cirrus.load_model(tmp_path / "m").get_params()
    assert (params["mode"], params["fit_intercept"], params["max_cost"]) == ("average", False, 7.5)
    code, _, err = run("train", svmlight, "--epochs", 1, "--model", tmp_path / "n", "--staleness", 0)
    assert code == 0, err
    assert cirrus.load_model(tmp_path / "n").get_params()["staleness"] == 0
    for wrong, problem in (
        (["--set", "l1=1"], "--set: 'l1' has an option of its own: --l1 1\n"),
        (["--set", "early_stopping=yes"], "option of its own: --early-stopping\n"),
        (["--set", "nothing=1"], "--set: --model-type logistic has no parameter 'nothing'"),
        (["--staleness", "-1"], "--staleness: "),
        (["--set", "wire_dtype=float8"], "--set wire_dtype: "),
    ):
        code, _, err = run("train", svmlight, *wrong)
        assert (code, problem in err, "Traceback" in err) == (1, True, False), err


def test_csv_files_train_and_predict(home, tmp_path):
    """CSV columns are named; a file to predict from has no label, and its columns in any order."""
    rng = np.random.default_rng(0)
    colours = rng.choice(["red", "green", "blue"], 500)
    sizes = rng.random(500)
    bought = np.where((colours == "red") ^ (rng.random(500) < 0.1), "yes", "no")
    table = tmp_path / "shop.csv.gz"
    with gzip.open(table, "wt") as file:
        csv.writer(file).writerows([("bought", "colour", "size"), *zip(bought, colours, sizes, strict=True)])
    new = tmp_path / "new.csv"
    new.write_text("size,colour\n0.5,red\n0.5,blue\n")
    columns = ["--label", "bought", "--categorical", "colour", "--numeric", "size", "--hash-features", 64]
    code, out, err = run("train", table, *columns, "--epochs", 20, "--model", tmp_path / "model")
    assert code == 0, err
    code, out, err = run("predict", tmp_path / "model", new)
    assert code == 0, err
    assert [line.split(",")[0] for line in out.splitlines()] == ["label", "yes", "no"]
    new.write_text("size;colour\n0.5;red\n0.5;blue\n")
    assert run("predict", tmp_path / "model", new, "--sep", ";")[1] == out
    code, _, err = run("predict", tmp_path / "model", new, "--sep", ";", "--header")
    assert (code, "--header: does not apply to" in err) == (1, True), err
    new.write_text("1 3:0.5 7:1\n")
    code, _, err = run("predict", tmp_path / "model", new)
    assert code == 1
    assert f"error: {new}: looks like svmlight, but the model is trained on CSV: name rows" in err


def test_datasets_are_loaded_once_and_described(home, svmlight, tmp_path):
    """A stored dataset can be described and trained on; validation may be another file."""
    code, out, err = run("load", svmlight, tmp_path / "rows")
    assert (code, out) == (0, f"dataset {tmp_path / 'rows'}\n"), err
    code, out, _ = run("describe", tmp_path / "rows")
    assert code == 0
    assert "rows      600" in out
    assert "density   100%: 4,800 values beside zeros\n" in out
    code, out, err = run("train", tmp_path / "rows", "--validation", svmlight, "--epochs", 2)
    assert code == 0, err
    assert re.search(r"held-out rows\s+600", out)
    assert (tmp_path / "rows" / "manifest.json").exists()


# Errors.


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["train", "missing.svm"], "missing.svm"),
        (["train", "."], "manifest.json"),
        (["train", "empty.svm"], "empty.svm"),
        (["train", "bad.svm"], "bad.svm:2"),
        (["train", "good.csv"], "--categorical"),
        (["train", "good.svm", "--batch-size", "0"], "--batch-size: must be"),
        (["train", "good.svm", "--epochs", "few"], "--epochs: must be"),
        (["train", "good.svm", "--workers", "0"], "--workers: must be"),
        (["train", "good.svm", "--validation-split", "1.5"], "--validation-split: must be"),
        (["train", "good.svm", "--tol", "-1"], "--tol: must be >= 0"),
        (["train", "good.svm", "--tol", "little"], "--tol: must be a number or none, got 'little'"),
        (["train", "good.svm", "--early-stopping", "--validation-split", "0"], "--early-stopping: needs"),
        (["train", "good.svm", "--model", "good.csv"], "good.csv: is a file"),
        (["train", "good.svm", "--model", "good.csv/model"], "good.csv is a file"),
        (["train", "good.svm", "--label", "y"], "--label: does not apply to --format svmlight"),
        (["load", "good.svm", "out", "--hash-features", "8"], "--hash-features: does not apply"),
        (["load", "good.svm", "out", "--sep", ""], "--sep: does not apply"),
        (["load", "good.csv", "out", "--numeric", "a", "--sep", ""], "--sep: must be one character"),
        (["load", "good.csv", "out", "--numeric", "a", "--n-features", "3"], "--n-features: does not apply"),
        (
            ["train", "one.svm"],
            "one.svm: needs samples of at least 2 classes, but the data holds one class: 1",
        ),
        (["train", "good.svm", "--n-features", "1"], "beyond --n-features 1"),
        (["train", "good.svm", "--validation", "missing.svm"], "missing.svm"),
        (["train", "good.svm", "--resume-from", "nowhere"], "nowhere"),
        (["load", ".", "out"], "folder"),
        (["describe", "nothing"], "nothing"),
        (["describe", ""], "URL: is empty"),
        (["describe", "ftp://host/data"], "'ftp://host/data' is of no known kind"),
        (["describe", "s3://"], "'s3://' has no bucket"),
        (["describe", "good.svm", "--home", "s3://b"], "--home: needs --columns"),
        (["load", "*.nothing", "out"], "*.nothing: no file matches this pattern"),
        (["predict", "nothing", "good.svm"], "nothing"),
        (["attach", "20200101-000000-abcdef"], "20200101-000000-abcdef"),
        (["kill", "20200101-000000-abcdef"], "20200101-000000-abcdef"),
    ],
)
def test_errors_are_one_line_and_exit_code_one(home, tmp_path, monkeypatch, arguments, problem):
    """Bad input is one clear line that names it, and nothing half-written is left."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.svm").touch()
    (tmp_path / "good.svm").write_text("1 1:1\n0 2:1\n" * 20)
    (tmp_path / "one.svm").write_text("1 1:1\n" * 20)
    (tmp_path / "good.csv").write_text("a,b\n1,2\n")
    (tmp_path / "bad.svm").write_text("1 1:1\n0 2:x\n")
    before = sorted(tmp_path.iterdir())
    code, _, err = run(*arguments)
    assert code == 1
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert problem in last
    assert [path for path in sorted(tmp_path.iterdir()) if path != home] == before
    assert not (home / "scratch").exists() or list((home / "scratch").iterdir()) == []


def test_file_options_do_not_apply_to_a_dataset(home, svmlight, tmp_path):
    """Nothing that was typed is ignored."""
    run("load", svmlight, tmp_path / "rows")
    code, _, err = run("train", tmp_path / "rows", "--label", "y")
    assert code == 1
    assert "--label: does not apply" in err


def test_the_next_step_can_be_pasted(home, svmlight, tmp_path):
    """Paths with spaces are quoted."""
    target = tmp_path / "my rows"
    code, _, err = run("load", svmlight, target)
    assert code == 0
    assert f"next: cirrus train '{target}'" in err


@pytest.mark.parametrize(
    ("name", "text", "options", "model_type"),
    [("r.tsv", "1\t2\t3\n1\t3\t4\n", ["--format", "ratings"], "mf"), ("w.ldac", "1 0:2\n", [], "lda")],
)
def test_the_next_step_fits_the_rows(home, tmp_path, name, text, options, model_type):
    """What is not for the model that is trained unless told otherwise is trained with its own."""
    (tmp_path / name).write_text(text)
    code, _, err = run("load", tmp_path / name, tmp_path / "rows", *options)
    assert code == 0
    assert err.rstrip().endswith(f"next: cirrus train {tmp_path / 'rows'} --model-type {model_type}")


def test_the_version_is_told(home):
    """In one line."""
    assert run("--version") == (0, f"cirrus {cirrus.__version__}\n", "")


def test_ctrl_c_while_processes_start_is_as_quick(home, svmlight, start):
    """Shards that have done nothing yet have nothing to save, and are not waited for."""

    def begin_and_interrupt() -> float:
        process = start("train", svmlight, "--epochs", 100_000, "--tol", 0, "--shards", 3, "--workers", 3)
        run_id_of(process)
        return interrupt(process, home)

    assert_within(CTRL_C_SECONDS, begin_and_interrupt)


def test_an_empty_home_has_no_runs(home):
    """Without runs, the list says how to begin."""
    code, out, err = run("runs")
    assert (code, out) == (0, "")
    assert "cirrus train" in err


def test_readers_may_go_away(home, svmlight, tmp_path, start):
    """Output into a closed pipe is no error worth a traceback."""
    run("train", svmlight, "--epochs", 1, "--model", tmp_path / "model")
    process = start("predict", tmp_path / "model", svmlight)
    process.stdout.close()
    process.wait(PATIENCE_SECONDS)
    assert "Traceback" not in process.stderr.read()


# Runs that are ended, lost and found.


def test_ctrl_c_ends_within_three_seconds_and_leaves_nothing(home, svmlight, start):
    """An interrupt is exit code 130; processes and data of the run are gone, and it is listed as killed."""

    def work_and_interrupt() -> float:
        process = start("train", svmlight, "--epochs", 100_000, "--tol", 0)
        run_id = run_id_of(process)
        eventually(lambda: cirrus.open_run(str(home), run_id).status.updates > 0)
        seconds = interrupt(process, home)
        assert list((home / "scratch").iterdir()) == []
        assert cirrus.open_run(str(home), run_id).status.state is cirrus.RunState.KILLED
        return seconds

    assert_within(CTRL_C_SECONDS, work_and_interrupt)


def test_another_terminal_kills_a_run(home, svmlight, start):
    """`cirrus kill` ends a run of another terminal, whose command fails with a line that says so."""
    process = start("train", svmlight, "--epochs", 100_000, "--tol", 0)
    run_id = run_id_of(process)
    eventually(lambda: cirrus.open_run(str(home), run_id).status.updates > 0)
    code, out, err = run("kill", run_id)
    assert (code, out) == (0, f"killed {run_id}\n"), err
    _, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 1
    assert err.strip().splitlines()[-1].startswith(f"error: run {run_id} killed")
    eventually(lambda: not processes_of(home))
    assert "had ended already" in run("kill", run_id)[2]


def test_a_run_whose_terminal_died_is_attached_and_finished(home, svmlight, tmp_path, start):
    """After SIGKILL of the command, `cirrus attach` ends the run and saves its model."""
    model = tmp_path / "model"
    process = start("train", svmlight, "--epochs", 1000, "--tol", "none", "--model", model)
    run_id = run_id_of(process)
    eventually(lambda: cirrus.open_run(str(home), run_id).status.updates > 0)
    process.kill()
    process.communicate()
    eventually(lambda: not processes_of(home))
    eventually(lambda: "interrupted" in run("runs")[1])
    code, out, err = run("attach", run_id)
    assert code == 0, err
    assert out == f"model {model}\n"
    assert cirrus.load_model(model).n_iter_ == 1000
    assert list((home / "scratch").iterdir()) == []


def test_ctrl_c_of_an_attached_run_says_how_to_go_on(home, svmlight, tmp_path, start):
    """As it does of the command that began the run: what is printed is what has to be typed."""
    process = start("train", svmlight, "--epochs", FOR_EVER, "--tol", "none", "--model", tmp_path / "model")
    run_id = run_id_of(process)
    process.kill()
    process.communicate()
    eventually(lambda: "interrupted" in run("runs")[1])
    attached = start("attach", run_id)
    assert f"attached to run {run_id}" in attached.stderr.readline()
    attached.send_signal(signal.SIGINT)
    _, err = attached.communicate(timeout=PATIENCE_SECONDS)
    assert attached.returncode == 130
    assert f"go on with: cirrus attach {run_id}\n" in err
    eventually(lambda: not processes_of(home))
    assert run("kill", run_id)[0] == 0


def _tamper(run_folder: Path, **notes: str) -> None:
    config = json.loads((run_folder / "config.json").read_bytes())
    config["model_metadata"].update(notes)
    (run_folder / "config.json").write_text(json.dumps(config))


def test_a_run_folder_cannot_have_other_folders_deleted_or_overwritten(home, svmlight, tmp_path):
    """What a run folder says of places to delete or to write is believed only where that is harmless."""
    assert run("train", svmlight, "--epochs", 1, "--model", tmp_path / "model")[0] == 0
    (finished,) = (home / "runs").iterdir()
    victim = tmp_path / "scratch" / "0123456789abcdef"
    victim.mkdir(parents=True)
    (victim / "file").write_text("mine")
    _tamper(finished, scratch_url=str(victim), save_url=str(victim))
    code, out, err = run("attach", finished.name)
    assert code == 0, err
    assert f"left {victim} alone" in err
    assert f"{victim} holds something that is no Cirrus model" in err
    assert [path.name for path in victim.iterdir()] == ["file"]
    assert out == f"model {home}/models/{finished.name}\n"
    cirrus.load_model(home / "models" / finished.name)

    lost = finished.rename(finished.with_name("20200101-000000-abcdef"))
    for name in ("status.json", "client.json"):
        (lost / name).unlink(missing_ok=True)
    _tamper(lost, scratch_url=f"{home}/scratch/../runs")
    code, _, err = run("kill", lost.name)
    assert code == 0, err
    assert f"left {home}/scratch/../runs alone" in err
    assert lost.exists()


@pytest.mark.parametrize(
    ("url", "is_ours"),
    [
        ("/home/ada/.cirrus/scratch/0123456789abcdef", True),
        ("/home/ada/.cirrus/scratch/0123456789abcdef/", False),
        ("/home/ada/.cirrus/scratch/..", False),
        ("/home/ada/.cirrus/scratch/", False),
        ("/home/ada/.cirrus/scratch", False),
        ("/home/ada/.cirrus/0123456789abcdef", False),
        ("/home/ada/.cirrus/scratch/x/0123456789abcdef", False),
        ("/home/ada/.cirrus/scratch/../0123456789abcdef", False),
        ("/home/ada", False),
        ("s3://bucket/scratch/0123456789abcdef", False),
        ("no://where/0123456789abcdef", False),
        ("", False),
    ],
)
def test_scratch_places_are_told_by_their_form(url, is_ours):
    """Only what Cirrus can have made, right below the root's scratch folder, is one to be deleted."""
    root = "/home/ada/.cirrus"
    assert is_scratch_url(url, root) is is_ours
    assert is_scratch_url(new_scratch_url(root), root)


def test_ps_prints_its_address_first(home, start):
    """A shard by hand listens where its first line says, until it is interrupted."""
    process = start("ps", "--port", 0, "--rows", 100)
    assert select.select([process.stdout], [], [], PATIENCE_SECONDS)[0]
    host, port = process.stdout.readline().strip().split(":")
    assert host == "127.0.0.1"
    assert int(port) in {c.laddr.port for c in psutil.Process(process.pid).net_connections()}
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130


def test_python_minus_m_is_the_command():
    """`python -m cirrus` and `cirrus` are the same."""
    done = subprocess.run(
        [sys.executable, "-m", "cirrus", "--help"], capture_output=True, text=True, check=True, env=os.environ
    )
    for command in COMMANDS:
        assert command in done.stdout
