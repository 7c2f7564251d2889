"""What importing costs, which names are public, and who may import whom."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import cirrus

ROOT = Path(__file__).parent.parent

#: What a worker may import beyond the standard library; more would make functions larger and slower to start.
WORKER_PACKAGES = {"cirrus", "numpy", "lz4"}
WORKER_MODULES = [
    "cirrus",
    "cirrus.chunks",
    "cirrus.models",
    "cirrus.paramserver.client",
    "cirrus.paramserver.codec",
    "cirrus.paramserver.protocol",
    "cirrus.storage",
    "cirrus.worker_runtime",
    "cirrus.worker_runtime.handler",
]


def imported_by(*modules: str) -> set[str]:
    """Return the top-level packages that a fresh interpreter holds after importing some modules."""
    program = (
        "import importlib, json, sys\n"
        "before = set(sys.modules)\n"
        f"for name in {list(modules)!r}: importlib.import_module(name)\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(json.dumps(sorted(new - set(sys.stdlib_module_names))))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def test_workers_import_numpy_and_lz4_alone():
    """The worker side needs no scipy, numba, scikit-learn or boto3."""
    assert imported_by(*WORKER_MODULES) <= WORKER_PACKAGES


def test_importing_cirrus_imports_nothing_else():
    """`import cirrus` is free; names load their module when they are used."""
    assert imported_by("cirrus") == {"cirrus"}


def test_public_names_exist_and_are_sorted():
    """`__all__` is sorted, and each of its names can be had."""
    assert cirrus.__all__ == sorted(cirrus.__all__)
    for name in cirrus.__all__:
        assert getattr(cirrus, name).__module__.startswith("cirrus.")
    assert set(cirrus.__all__) <= set(dir(cirrus))


def test_unknown_names_are_attribute_errors():
    """A typo is told as for any module."""
    with pytest.raises(AttributeError, match="LogisticRegresion"):
        _ = cirrus.LogisticRegresion


@pytest.mark.parametrize("module", [path.stem for path in (ROOT / "cirrus").glob("*.py")])
def test_modules_have_docstrings(module):
    """Every module at the top says what it is for."""
    if module != "__main__":
        assert importlib.import_module("cirrus" if module == "__init__" else f"cirrus.{module}").__doc__


def test_version_is_the_package_s():
    """One version, told in two places, is the same in both."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert cirrus.__version__ == project["version"]


def test_dependencies_are_bounded():
    """Every dependency has a lower and an upper bound."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    for requirement in [*project["dependencies"], *extras]:
        assert ">=" in requirement, requirement
        assert ",<" in requirement, requirement
