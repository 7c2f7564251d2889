"""What people are told who typed a command: options, and never parameters of the Python library."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import cirrus
from cirrus.cli import commands
from cirrus.cli.parameters import fixed_parameters, pair, value_of
from cirrus.cli.wording import (
    ESTIMATOR_PARAMETERS,
    LOADER_PARAMETERS,
    TRANSFORMER_PARAMETERS,
    error_line,
    in_options,
)
from cirrus.errors import ConfigError, DataError
from cirrus.preprocessing import FeatureHasher, MinMaxScaler, StandardScaler

LOADERS = (
    cirrus.load_svmlight,
    cirrus.load_csv,
    cirrus.load_parquet,
    cirrus.load_ratings,
    cirrus.load_bag_of_words,
    cirrus.load_vw,
)
TRANSFORMERS = (MinMaxScaler, StandardScaler, FeatureHasher)
ESTIMATORS = (
    cirrus.LogisticRegression,
    cirrus.SoftmaxRegression,
    cirrus.LinearSVC,
    cirrus.LinearRegression,
    cirrus.FactorizationMachine,
    cirrus.MatrixFactorization,
    cirrus.LatentDirichletAllocation,
    cirrus.KMeans,
)
#: Parameters that a command has no option for, because it decides them.
DECIDED = {"progress", "copy", "dtype", "input_type", "url", "path", "warm_start"}
#: What can go wrong with parameters of which kind.
COMMANDS: dict[Callable[..., None], frozenset[str]] = {
    commands.load: LOADER_PARAMETERS,
    commands.train: LOADER_PARAMETERS | ESTIMATOR_PARAMETERS,
    commands.search: LOADER_PARAMETERS | ESTIMATOR_PARAMETERS,
    commands.preprocess: TRANSFORMER_PARAMETERS,
    commands.predict: LOADER_PARAMETERS,
}


def names_of(things: tuple[Any, ...]) -> set[str]:
    """Return the parameters of functions, or of the constructors of classes."""
    return {name for thing in things for name in inspect.signature(thing).parameters if name != "self"}


def test_every_parameter_is_known() -> None:
    """No parameter of the library is unknown to the words of the command line, and no word is left over."""
    assert names_of(LOADERS) == LOADER_PARAMETERS
    assert names_of(TRANSFORMERS) == TRANSFORMER_PARAMETERS
    assert {name for kind in ESTIMATORS for name in kind().get_params()} == ESTIMATOR_PARAMETERS


@pytest.mark.parametrize("command", [commands.load, commands.train, commands.search, commands.preprocess])
def test_every_parameter_can_be_set(command: Callable[..., None]) -> None:
    """What can be told in Python can be told in an option, but for what a command decides itself."""
    unreachable = DECIDED | ({"vocabulary", "shuffle"} if command is not commands.load else set())
    if command is commands.preprocess:
        unreachable |= {"backend"}
    for name in sorted(COMMANDS[command] - unreachable):
        assert re.match(r"(--[a-z]|[A-Z]+: )", error_line(ConfigError(name, "is wrong"), command)), name


def texts() -> Iterator[tuple[str, str]]:
    """Yield each text with spaces of the library, but for docstrings, and where it is; values are 3."""
    root = Path(cirrus.__file__).parent
    for path in sorted(root.rglob("*.py")):
        tree = ast.parse(path.read_text())
        within = {
            id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values
        }
        documents = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if id(node) in within | documents:
                continue
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "3" for part in node.values]
                text = "".join(map(str, parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value
            else:
                continue
            if " " in text:
                yield f"{path.relative_to(root)}:{node.lineno}", re.sub(r"\{\w+(![rs])?\}", "3", text)


@pytest.mark.parametrize("command", list(COMMANDS), ids=lambda command: command.__name__)
def test_no_error_shows_python(command: Callable[..., None]) -> None:
    """No text of the library, as a command says it, sets a parameter as Python does or names one."""
    known = "|".join(sorted(map(re.escape, COMMANDS[command]), key=len, reverse=True))
    set_in_python = re.compile(rf"(?<![\w/.\-])({known})=")
    named = re.compile(rf"(?<![\w/.\-])({known})(?![\w/.=])")
    n_changed = 0
    for where, text in texts():
        said = in_options(text, command)
        n_changed += said != text
        said = re.sub(r"(--(set|grid|range)|such as|Terraform variable) \w+(=\S+)?", "", said)
        found = [match[0] for match in set_in_python.finditer(said)]
        found += [match[0] for match in named.finditer(said) if "_" in match[0]]
        assert not found, (where, said)
        assert not re.search(r"\b(MinMaxScaler|StandardScaler|FeatureHasher)\(", said), (where, said)
    assert n_changed > 3  # else this proves nothing


@pytest.mark.parametrize(
    ("command", "text", "said"),
    [
        (commands.load, 'use missing_label="drop"', "use --drop-missing-labels"),
        (commands.load, "correct it, or add it to na_values", "correct it, or add it to --na-values"),
        (commands.load, "in a one-based file: use zero_based=True", "in a one-based file: use --zero-based"),
        (commands.load, "load it with shuffle=True", "load it with --shuffle"),
        (commands.load, "use zero_based=False", "use --one-based"),
        (commands.load, "with n_processes=1", "with --processes 1"),
        (
            commands.load,
            "must be a list: interactions=['ab', 'c']",
            "must be a list: --interactions ab,c",
        ),
        (commands.search, "such as --grid l1=0,1 or", "such as --grid l1=0,1 or"),
        (commands.train, "needs data: fit(..., validation=...)", "needs data: --validation ..."),
        (commands.train, "got tol=None", "got --tol none"),
        (commands.train, 'has no meaning with mode="average": no', "has no meaning with --mode average: no"),
        (commands.train, "wire_dtype=float16", "--set wire_dtype=float16"),
        (commands.train, 'needs task="classification"', "needs --model-type fm"),
        (commands.train, 'class_weight="balanced"', "--balanced"),
        (commands.preprocess, "use densify=True if that is wanted", "use --densify if that is wanted"),
        (commands.preprocess, "StandardScaler(with_mean=False), or", "standard --no-mean, or"),
        (commands.preprocess, "choose a feature_range that", "choose a --low and --high that"),
        (commands.predict, "is beyond n_features=3: load", "is beyond the number of features 3: load"),
        (commands.load, "/data/n_features/x.csv:3: bad", "/data/n_features/x.csv:3: bad"),
        (commands.load, "the label is wrong", "the label is wrong"),
    ],
)
def test_python_becomes_options(command: Callable[..., None], text: str, said: str) -> None:
    """Values are spelled as they are typed; words and paths that look like parameters are left alone."""
    assert in_options(text, command) == said
    assert error_line(DataError(text), command) == said


@pytest.mark.parametrize(
    ("field", "command", "name"),
    [
        ("sep", commands.load, "--sep"),
        ("feature_range", commands.preprocess, "--low and --high"),
        ("densify", commands.preprocess, "--densify"),
        ("n_features", commands.preprocess, "--buckets"),
        ("validation_split", commands.train, "--validation-split"),
        ("gradient_threshold", commands.train, "--set gradient_threshold"),
        ("n_topics", commands.train, "--size"),
        ("data", commands.train, "DATA"),
        ("set", commands.search, "--set"),
        ("range", commands.search, "--range"),
    ],
)
def test_fields_are_options(field: str, command: Callable[..., None], name: str) -> None:
    """The parameter that is wrong is called by its option, or as the help calls the argument."""
    assert error_line(ConfigError(field, "is wrong"), command) == f"{name}: is wrong"


def test_parameters_can_be_set() -> None:
    """``--set`` takes numbers, words and parts of a parameter; it refuses what it does not know or is set."""
    kind = cirrus.LogisticRegression
    fixed = fixed_parameters(
        ["max-cost=2.5", "fit_intercept=false", "optimizer_params.beta=1"], kind, "logistic", ("l1",)
    )
    assert fixed == {"max_cost": 2.5, "fit_intercept": False, "optimizer_params": {"beta": 1}}
    assert value_of(" none ") is None
    assert pair("a-b=1,2") == ("a_b", "1,2")
    for text, problem in (
        ("l1=None", "option of its own: l1=None"),
        ("depth=1", "no parameter 'depth'$"),
        ("max_cosd=1", "did you mean 'max_cost'"),
        ("progress=1", "decided by the command"),
        ("l1", "NAME=VALUE"),
    ):
        with pytest.raises(ConfigError, match=problem):
            fixed_parameters([text], kind, "logistic", ("l1", "progress"))
