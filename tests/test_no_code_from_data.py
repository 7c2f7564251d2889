"""Nothing that is read from the network or an object store may become code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("cirrus", "dashboard", "lambda_package", "examples", "benchmarks")
#: Modules whose readers run what the data says.
CODE_FROM_DATA = frozenset(
    {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
)
#: Builtins that run text; importing by a name that comes from elsewhere is next to it.
RUNS_TEXT = frozenset({"eval", "exec", "compile", "__import__"})
#: Attributes that read pickles or run commands from text, whatever they are called on.
RISKY_CALLS = frozenset({"read_pickle", "unsafe_load", "full_load", "load_all"})

#: The one exception: functions that users hand to map jobs, and what these return. One place reads both,
#: and sees only what carries the signature of the job's token (``worker_runtime/map_job.py``).
EXCEPTIONS = {
    "cirrus/client_backend/map_functions.py": {"import cloudpickle"},
    "cirrus/worker_runtime/map_values.py": {"import cloudpickle", "import pickle"},
}
#: Who of those only writes.
WRITERS = {"cirrus/client_backend/map_functions.py"}


def sources() -> Iterator[Path]:
    """Return every Python file that is shipped or run beside what is."""
    for folder in SOURCES:
        yield from sorted((ROOT / folder).rglob("*.py"))


def findings(tree: ast.AST) -> Iterator[str]:
    """Say what in a module could make code of data."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (
                f"import {alias.name}" for alias in node.names if alias.name.split(".")[0] in CODE_FROM_DATA
            )
        elif isinstance(node, ast.ImportFrom):
            if (node.module or "").split(".")[0] in CODE_FROM_DATA:
                yield f"import {node.module}"
        elif isinstance(node, ast.Call):
            yield from _risky_call(node)


def _risky_call(call: ast.Call) -> Iterator[str]:
    if isinstance(call.func, ast.Name) and call.func.id in RUNS_TEXT:
        yield f"{call.func.id}()"
    if isinstance(call.func, ast.Attribute):
        owner = call.func.value
        is_yaml = isinstance(owner, ast.Name) and owner.id == "yaml" and call.func.attr == "load"
        if call.func.attr in RISKY_CALLS or is_yaml:
            yield f"{call.func.attr}()"
        if call.func.attr == "load" and isinstance(owner, ast.Name) and owner.id in ("np", "numpy"):
            says_no = any(
                keyword.arg == "allow_pickle"
                and isinstance(keyword.value, ast.Constant)
                and keyword.value.value is False
                for keyword in call.keywords
            )
            if not says_no:
                yield "np.load without allow_pickle=False"
    for keyword in call.keywords:
        if keyword.arg == "allow_pickle" and not (
            isinstance(keyword.value, ast.Constant) and keyword.value.value is False
        ):
            yield "allow_pickle"
        if keyword.arg == "shell" and not (
            isinstance(keyword.value, ast.Constant) and keyword.value.value is False
        ):
            yield "shell="


def test_no_reader_makes_code_of_data() -> None:
    """Pickle and its like, eval and exec are where the list of exceptions says, and nowhere else."""
    found: dict[str, set[str]] = {}
    for path in sources():
        risks = set(findings(ast.parse(path.read_text())))
        if risks:
            found[str(path.relative_to(ROOT))] = risks
    assert found == EXCEPTIONS


def test_who_only_writes_does_not_read() -> None:
    """Of the exceptions, pickles are read in one module alone."""
    for name in WRITERS:
        called = {
            node.func.attr
            for node in ast.walk(ast.parse((ROOT / name).read_text()))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        }
        assert not called & {"load", "loads", "Unpickler"}


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "import joblib.externals",
        "from cloudpickle import loads",
        "eval(x)",
        "np.load(f)",
        "np.load(f, allow_pickle=True)",
        "np.load(f, allow_pickle=may)",
        "np.savez(f, allow_pickle=True)",
        "yaml.load(f)",
        "pd.read_pickle(f)",
        "subprocess.run(c, shell=True)",
    ],
)
def test_the_scan_sees(text: str) -> None:
    """Each kind of reader is found by the scan above."""
    assert list(findings(ast.parse(text)))


@pytest.mark.parametrize(
    "text", ["np.load(f, allow_pickle=False)", "json.load(f)", "subprocess.run(c)", "re.compile(x)"]
)
def test_the_scan_does_not_see_ghosts(text: str) -> None:
    """What runs nothing is left alone."""
    assert not list(findings(ast.parse(text)))
