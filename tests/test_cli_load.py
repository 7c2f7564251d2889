"""``cirrus load``: every format, what goes with it, and that it goes on after Ctrl-C."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path
from typing import Any

import lz4.frame
import numpy as np
import pytest
from typer.testing import CliRunner

from cirrus.chunks import MANIFEST_KEY
from cirrus.cli.commands import app
from cirrus.cli.options import Format
from cirrus.cli.sources import format_of
from cirrus.client_backend.loader import LoadProgress
from cirrus.frontend.datasets import Dataset
from cirrus.frontend.load_progress import LoadingLine
from cirrus.storage import open_store


def run(*arguments: object) -> tuple[int, str, str]:
    """Run a command in this process; return exit code, standard output and standard error."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def write(path: Path, text: str) -> Path:
    """Write a file, packed as its name says."""
    packed = {".gz": gzip.compress, ".lz4": lz4.frame.compress}.get(path.suffix, bytes)
    path.write_bytes(packed(text.encode()))
    return path


CASES: dict[str, tuple[str, str, list[str], dict[str, Any]]] = {
    "svmlight": ("x.svm.gz", "1 1:1\n0 3:2\n", [], {"n_features": 3}),
    "n-features": ("x.svm", "1 1:1\n0 3:2\n", ["--n-features", "9"], {"n_features": 9}),
    "csv": (
        "x.csv",
        "y,n,c\n1,2,a\n0,3,b\n",
        ["--label", "y", "--numeric", "n", "--categorical", "c", "--hash-features", "64"],
        {"n_features": 65},
    ),
    "csv header": (
        "x.csv",
        "9,9,9\n1,2,3\n0,3,4\n",
        ["--numeric", "1", "--header"],
        {"n_features": 2**20 + 1},
    ),
    "tsv": ("x.tsv.lz4", "1\t2\n0\t3\n", ["--categorical", "1"], {"n_features": 2**20}),
    "drop": ("x.csv", "1,2\n,3\n0,4\n", ["--numeric", "1", "--drop-missing-labels"], {}),
    "above": ("x.csv", "7,2\n3,3\n", ["--numeric", "1", "--label-above", "5"], {"labels": (0, 1)}),
    "no label": ("x.csv", "1,2\n3,4\n", ["--numeric", "0,1", "--label", "none"], {"labels": (0,)}),
    "vw": ("x.vw", "1 |a x\n0 2 |b y\n", [], {"n_features": 2**18}),
    "vw pairs": (
        "x.vw",
        "1 |a x |b y\n|a z\n0 |a x\n",
        ["--interactions", "ab, aa", "--hash-features", "64", "--drop-missing-labels"],
        {"n_features": 64},
    ),
    "ratings": ("x.data", "u\ta\t4\nv\tb\t5\n", ["--format", "ratings", "--sep", "tab"], {"n_features": 4}),
    "ratings header": (
        "x.data",
        "1,2,3\nu,a,4\nv,b,5\n",
        ["--format", "ratings", "--header"],
        {"n_features": 4},
    ),
    "zero-based": ("x.svm", "1 1:1\n0 3:2\n", ["--zero-based"], {"n_features": 4}),
    "one-based": ("x.svm", "1 1:1\n0 3:2\n", ["--one-based"], {"n_features": 3}),
    "na values": ("x.csv", "1,?\n0,-\n", ["--numeric", "1", "--na-values", "?, -"], {}),
    "ldac": ("x.ldac", "1 0:1\n1 6:2\n", [], {"n_features": 7}),
    "docword": ("x.txt", "2\n5\n2\n1 1 1\n2 2 2\n", ["--format", "docword"], {"n_features": 5}),
}


@pytest.mark.parametrize("case", CASES)
def test_every_format_loads(tmp_path: Path, case: str) -> None:
    """A file of each format, known by its name or by --format, is loaded with the options that it has."""
    name, text, options, expected = CASES[case]
    path = write(tmp_path / name, text)
    code, out, err = run("load", path, tmp_path / "ds", *options)
    assert code == 0, err
    dataset = Dataset.open(tmp_path / "ds")
    assert out == f"dataset {dataset.url}\n"
    assert dataset.n_rows == 2
    for field, value in expected.items():
        assert getattr(dataset, field) == value


def test_parquet_loads(tmp_path: Path) -> None:
    """A Parquet file is known by its name; its columns are named as those of CSV are."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"y": [1, 0], "n": [1.5, 2.5]}), tmp_path / "x.parquet")
    code, _, err = run("load", tmp_path / "x.parquet", tmp_path / "ds", "--label", "y", "--numeric", "n")
    assert code == 0, err
    assert Dataset.open(tmp_path / "ds").n_rows == 2


def test_vocabularies_are_kept_and_described(tmp_path: Path) -> None:
    """`--vocabulary` keeps the words; `describe` says how many ids and words there are."""
    path, words = write(tmp_path / "x.ldac", "1 0:1\n"), write(tmp_path / "words", "zebra\nape\n")
    assert run("load", path, tmp_path / "ds", "--vocabulary", words)[0] == 0
    assert Dataset.open(tmp_path / "ds").vocabulary("words").ids() == ["zebra", "ape"]
    assert "words     2\n" in run("describe", tmp_path / "ds")[1]


@pytest.mark.parametrize(
    ("name", "options", "field"),
    [
        ("x.svm", ["--label", "y"], "label"),
        ("x.svm", ["--interactions", "ab"], "interactions"),
        ("x.csv", ["--numeric", "1", "--n-features", "5"], "n-features"),
        ("x.csv", ["--numeric", "1", "--vocabulary", "w"], "vocabulary"),
        ("x.parquet", ["--numeric", "1", "--sep", ";"], "sep"),
        ("x.vw", ["--categorical", "c"], "categorical"),
        ("x.ldac", ["--hash-features", "5"], "hash-features"),
        ("x.svm", ["--no-header"], "header"),
        ("x.svm", ["--drop-missing-labels"], "drop-missing-labels"),
        ("x.svm", ["--label-above", "0"], "label-above"),
    ],
)
def test_options_of_other_formats_are_refused(
    tmp_path: Path, name: str, options: list[str], field: str
) -> None:
    """An option that says nothing about files of this format is an error, not passed over."""
    code, out, err = run("load", write(tmp_path / name, "1 1:1\n"), tmp_path / "ds", *options)
    assert (code, out) == (1, "")
    assert f"error: --{field}: does not apply to --format" in err.splitlines()[-1]


def test_errors_of_preprocessing_name_options(tmp_path: Path) -> None:
    """What a transformer refuses is one line that calls it as it was typed."""
    path = write(tmp_path / "x.svm", "1 1:1\n0 2:1\n")
    assert run("load", path, tmp_path / "ds")[0] == 0
    for arguments, problem in (
        (("hash", tmp_path / "ds", tmp_path / "out", "--buckets", "0"), "--buckets: must be"),
        (("standard", tmp_path / "ds", tmp_path / "ds"), "OUT: "),
    ):
        code, _, err = run("preprocess", *arguments)
        assert (code, err.splitlines()[-1].startswith(f"error: {problem}")) == (1, True), err


def test_formats_are_known_by_name() -> None:
    """The end of a name says what a file is, packed or not; anything else is svmlight."""
    names = {"a.csv": Format.CSV, "A.TSV.GZ": Format.CSV, "s3://b/x.parquet": Format.PARQUET}
    names |= {"x.vw.lz4": Format.VW, "x.ldac.zip": Format.LDAC, "csv": Format.SVMLIGHT, "-": Format.SVMLIGHT}
    assert {name: format_of(name) for name in names} == names


def test_the_help_shows_examples() -> None:
    """The help names what input may be, and has an example for every kind."""
    code, out, _ = run("load", "--help")
    text = " ".join(out.replace("│", " ").split())
    assert code == 0
    for part in ("s3://bucket/key", "standard input", ".lz4", "ratings", "docword", ".parquet", ".vw"):
        assert part in text, part
    assert text.count("Example:") >= 6


def test_a_pattern_can_be_trained_on_and_predicted_from(tmp_path: Path) -> None:
    """`train` and `predict` take what `load` takes: here, two files of text for Vowpal Wabbit."""
    rng = np.random.default_rng(0)
    rows = [f"{1 if a else -1} |s v{a} n:{rng.random():.3f}\n" for a in rng.integers(0, 2, 400)]
    for k in range(2):
        write(tmp_path / f"{k}.vw.gz", "".join(rows[200 * k : 200 * k + 200]))
    code, out, err = run(
        "train",
        tmp_path / "?.vw.gz",
        "--epochs",
        "3",
        "--model",
        tmp_path / "model",
        "--home",
        tmp_path / "home",
    )
    assert code == 0, err
    write(tmp_path / "new.vw", "|s v1 n:0.5\n|s v0 n:0.5\n")
    code, out, err = run("predict", tmp_path / "model", tmp_path / "new.vw", "--out", "-")
    assert code == 0, err
    assert [line.split(",")[0] for line in out.splitlines()[1:]] in (["1.0", "-1.0"], ["1", "-1"])
    code, _, err = run("train", tmp_path / "?.svm", "--home", tmp_path / "home")
    assert code == 1
    assert "there is no such file, object or dataset" in err


INTERRUPTED = """
import signal, sys
from cirrus.frontend import load_progress
from cirrus.cli.commands import app

class Slow(load_progress.LoadingLine):
    def show(self, progress):
        if progress.rows > 10_000 and len(sys.argv) > 4:
            signal.raise_signal(signal.SIGINT)
        print("found", progress.rows_found, file=sys.stderr)

import cirrus.cli.sources
cirrus.cli.sources.LoadingLine = Slow
app(sys.argv[1:4])
"""


def test_ctrl_c_and_the_same_command_again(tmp_path: Path) -> None:
    """After Ctrl-C, which is 130, the same command goes on with what was parsed."""
    path = tmp_path / "x.svm"
    line = "1 " + " ".join(f"{k}:1" for k in range(1, 300)) + "\n"
    path.write_text(line * 20_000)
    command = [sys.executable, "-c", INTERRUPTED, "load", str(path), str(tmp_path / "ds")]
    stopped = subprocess.run([*command, "stop"], capture_output=True, text=True, timeout=60, check=False)
    assert stopped.returncode == 130, stopped.stderr
    assert stopped.stderr.splitlines()[-2:] == [
        "what is parsed is kept: the same command goes on with it",
        "interrupted",
    ]
    assert not open_store(tmp_path / "ds").exists(MANIFEST_KEY)
    again = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert again.returncode == 0, again.stderr
    found = [int(line.split()[1]) for line in again.stderr.splitlines() if line.startswith("found")]
    assert found[0] > 10_000
    assert Dataset.open(tmp_path / "ds").n_rows == 20_000


LIMITED = """
import resource, sys
from cirrus.cli.commands import app

resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
app(sys.argv[2:])
"""


def test_a_store_that_takes_no_more_and_the_same_command_again(tmp_path: Path) -> None:
    """When the disk takes no more (here: of one file), it is one error, and the command can go on later."""
    path = tmp_path / "x.svm"
    rng = np.random.default_rng(0)
    rows = [" ".join(f"{k}:{value:.6f}" for k, value in enumerate(row, 1)) for row in rng.random((4000, 20))]
    path.write_text("".join(f"1 {row}\n" for row in rows))
    options = ["load", str(path), str(tmp_path / "ds"), "--processes", "2"]
    command = [sys.executable, "-c", LIMITED]
    # Enough for what is parsed, and not for the chunk with its columns in float32.
    full = subprocess.run([*command, "100000", *options], capture_output=True, text=True, timeout=60)
    assert full.returncode == 1
    assert full.stderr.splitlines()[-1].endswith(": File too large")
    assert full.stderr.splitlines()[-1].startswith(f"error: {tmp_path}/ds/")
    assert full.stderr.splitlines()[-2] == "what is parsed is kept: the same command goes on with it"
    for command in (["describe"], ["train"], ["search", "--grid", "l1=0,1"]):
        code, _, err = run(*command, tmp_path / "ds")
        assert (code, err) == (
            1,
            f"error: {tmp_path}/ds: a load to here was interrupted, or is at work: the same `cirrus load` "
            "goes on with it\n",
        )
    code, _, err = run(*options)
    assert code == 0, err
    assert Dataset.open(tmp_path / "ds").n_rows == 4000


def test_the_line_says_what_was_parsed_before(capsys: pytest.CaptureFixture[str]) -> None:
    """The progress line of a load that goes on tells the rows that an earlier one had parsed."""
    now = [0.0]
    with LoadingLine(clock=lambda: now[0]) as line:
        now[0] = 60.0
        line.show(LoadProgress(bytes_done=5, bytes_total=10, rows=1000, rows_found=400))
    assert "50%  1,000 rows  10 rows/s" in (text := capsys.readouterr().err)
    assert "(400 of them parsed before)" in text
