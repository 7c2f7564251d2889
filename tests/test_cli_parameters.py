"""No option of the command line is accepted and ignored: commands are walked, and what they do is looked at.

For each option the real command line is parsed twice, without it and with it: what the command then asks for
must differ. What is asked for must be looked at by whoever carries it out. An option that is new is tried
here without being listed, unless it takes a value that cannot be guessed.
"""

from __future__ import annotations

import ast
import dataclasses
import enum
import importlib
import inspect
import textwrap
import typing
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import cirrus.cli.options
from cirrus.cli import commands
from cirrus.cli.commands import app
from cirrus.cli.options import (
    FileOptions,
    Mode,
    ModelType,
    OnClientLoss,
    Optimizer,
    PreprocessOptions,
    SearchOptions,
    TrainOptions,
)
from cirrus.cli.training import _estimator
from cirrus.client_backend.aws.deploy import DeployOptions
from cirrus.client_backend.inline import InlineBackend

#: For each command: who carries it out, and the arguments of a call.
WORK: dict[str, tuple[tuple[str, ...], list[str]]] = {
    "attach": (("runs.attach",), ["RUN"]),
    "dashboard": (("dashboard.dashboard",), []),
    "deploy": (("deploying.deploy",), []),
    "describe": (("data.describe",), ["URL"]),
    "destroy": (("deploying.destroy",), []),
    "kill": (("runs.kill",), ["RUN"]),
    "load": (("loading.load",), ["DATA", "URL"]),
    "package": (("packaging.package",), []),
    "predict": (("data.predict",), ["MODEL", "DATA"]),
    "preprocess": (("preprocessing.preprocess",), ["minmax", "IN", "OUT"]),
    "ps": (("server.serve",), []),
    "runs": (("runs.list_all",), []),
    "search": (("searching.search", "searching.resume"), ["DATA"]),
    "train": (("training.train",), ["DATA"]),
}
#: Values of options whose form cannot be guessed.
VALUES = {"var": "owner=me", "name": "a-name"}
#: What has to be left out when an option is given.
INSTEAD: dict[tuple[str, str], list[str]] = {("search", "resume"): []}

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]  # it is a group


def words_of(command: str, option: Any) -> list[str]:
    """Return an option as it is typed, with another value than its default."""
    if option.is_flag:
        is_on = option.default is True
        return [option.secondary_opts[0] if is_on else option.opts[0]]
    value = VALUES.get(option.name, "3")
    hint = typing.get_type_hints(getattr(commands, command))[option.name]
    for kind in (hint, *typing.get_args(hint)):
        if inspect.isclass(kind) and issubclass(kind, enum.Enum):
            value = next(choice.value for choice in kind if choice != option.default)
    return [option.opts[0], value]


def asked_for(command: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[Any, ...]:
    """Return what a command line has its command do."""
    asked: list[tuple[Any, ...]] = []
    for target in WORK[command][0]:
        module, _, name = target.partition(".")

        def record(*args: Any, _name: str = name, **kwargs: Any) -> None:
            asked.append((_name, args, sorted(kwargs.items())))

        monkeypatch.setattr(f"cirrus.cli.{module}.{name}", record)
    result = CliRunner().invoke(app, [command, *arguments])
    assert result.exit_code == 0, result.output
    (found,) = asked
    return found


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_options_reach_the_work(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With any of its options a command asks for something else than without."""
    plain = WORK[command][1]
    asked = asked_for(command, plain, monkeypatch)
    options = [option for option in COMMANDS[command].params if option.param_type_name == "option"]
    for option in options:
        arguments = [*INSTEAD.get((command, option.name), plain), *words_of(command, option)]
        assert asked_for(command, arguments, monkeypatch) != asked, option.name


def test_what_cannot_act_on_a_search_that_goes_on_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every option of `cirrus search` has the search looked for or is named as one for a new one."""
    monkeypatch.setenv("CIRRUS_HOME", str(tmp_path))
    acting = {
        *("--max-concurrent", "--max-workers", "--max-seconds", "--max-cost", "--model", "--results"),
        *("--home", "--backend", "--ray-address"),
    }
    options = {option.opts[0]: option for option in COMMANDS["search"].params if option.opts[0][0] == "-"}
    assert acting < options.keys()
    for name in options.keys() - {"--resume"}:
        result = CliRunner().invoke(app, ["search", "--resume", "gone", *words_of("search", options[name])])
        refusal = f"error: {name}: the search has its own; give it to a new search\n"
        assert result.exit_code == 1, result.output
        assert (result.stderr == refusal) == (name not in acting), result.stderr
        assert name == "--ray-address" or name not in acting or "no search gone" in result.stderr
    usual = CliRunner().invoke(app, ["search", "--resume", "gone", "--seed", "0"])
    assert usual.stderr.startswith("error: --seed: "), "what is typed as the default is typed"


def test_every_command_is_walked() -> None:
    """A new command has to be listed here."""
    assert set(WORK) == set(COMMANDS)


def read_in(tree: ast.AST) -> set[str]:
    """Return the names that a piece of code reads, attributes too, but for those of its own keywords."""
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return names | {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


@pytest.mark.parametrize("target", [target for targets, _ in WORK.values() for target in targets])
def test_the_work_looks_at_what_it_is_given(target: str) -> None:
    """Whoever carries out a command reads each of its parameters."""
    module, _, name = target.partition(".")
    function = getattr(importlib.import_module(f"cirrus.cli.{module}"), name)
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    assert isinstance(tree.body[0], ast.FunctionDef)
    read = set().union(*(read_in(statement) for statement in tree.body[0].body))
    assert set(inspect.signature(function).parameters) <= read


#: Options that travel together, and the modules that read them.
RECORDS: dict[Any, tuple[str, ...]] = {
    FileOptions: ("cirrus.cli.sources", "cirrus.cli.data", "cirrus.cli.loading"),
    TrainOptions: ("cirrus.cli.training",),
    SearchOptions: ("cirrus.cli.searching",),
    PreprocessOptions: ("cirrus.cli.preprocessing",),
    DeployOptions: ("cirrus.client_backend.aws.deploy",),
}


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_every_field_of_a_record_is_read(record: Any) -> None:
    """What commands hand over in one piece is taken apart whole."""
    read: set[str] = set()
    for name in RECORDS[record]:
        tree = ast.parse(inspect.getsource(importlib.import_module(name)))
        read |= {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
        }
    assert {field.name for field in dataclasses.fields(record)} <= read


def test_all_records_are_walked() -> None:
    """Those of the options are all of them."""
    defined = {
        value
        for value in vars(cirrus.cli.options).values()
        if dataclasses.is_dataclass(value) and value.__module__ == "cirrus.cli.options"
    }
    assert defined == set(RECORDS) - {DeployOptions}


PLAIN = TrainOptions(
    model=None, model_type=ModelType.FM, size=None, epochs="auto", workers=2, shards=1, validation=None,
    validation_split=0.1, optimizer=None, learning_rate=None, l1=None, l2=None, batch_size="auto", tol=None,
    balanced=False, target_loss=None, max_seconds=None, early_stopping=False, checkpoint_seconds=None,
    checkpoint_url=None, resume_from=None, on_client_loss=OnClientLoss.STOP, mode=Mode.SGD,
    staleness=None, fixed=[], seed=0, home=None,
)  # fmt: skip
#: Another value of each option that becomes a parameter of the estimator.
TRAINED: dict[str, Any] = {
    "model_type": ModelType.FM_REGRESSION,
    "size": 5,
    "epochs": "3",
    "workers": 3,
    "shards": 2,
    "optimizer": Optimizer.ADAM,
    "learning_rate": 0.5,
    "l1": 0.5,
    "l2": 0.5,
    "batch_size": "7",
    "tol": "none",
    "balanced": True,
    "target_loss": 0.5,
    "max_seconds": 5.0,
    "early_stopping": True,
    "checkpoint_seconds": 5.0,
    "checkpoint_url": "x",
    "resume_from": "x",
    "on_client_loss": OnClientLoss.CONTINUE,
    "mode": Mode.AVERAGE,
    "staleness": 0,
    "fixed": ["max_cost=5"],
    "seed": 5,
}
#: These say what is done around the training; each with the test that it acts.
AROUND = {
    "model": "test_cli.test_train_describe_predict",
    "validation": "test_cli.test_datasets_are_loaded_once_and_described",
    "validation_split": "test_cli.test_errors_are_one_line_and_exit_code_one",
    "home": "test_cli.test_a_run_whose_terminal_died_is_attached_and_finished",
    "backend": "test_ray.test_the_command_line_trains_on_ray",
    "ray_address": "test_ray.test_the_command_line_trains_on_ray",
}


@pytest.mark.parametrize("option", TRAINED)
def test_an_option_of_training_reaches_the_estimator(option: str) -> None:
    """Each option becomes a parameter of the estimator, which is tested to act."""
    backend = InlineBackend()
    plain = _estimator(PLAIN, backend)
    other = _estimator(dataclasses.replace(PLAIN, **{option: TRAINED[option]}), backend)
    assert other.get_params() != plain.get_params()


def test_every_option_of_training_is_in_a_table() -> None:
    """A new one has to be put into one of them."""
    assert {field.name for field in dataclasses.fields(TrainOptions)} == TRAINED.keys() | AROUND.keys()
    for place in AROUND.values():
        module, _, name = place.partition(".")
        assert callable(getattr(importlib.import_module(module), name))
