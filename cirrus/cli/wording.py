"""Errors in the words of the command line: the library names parameters, people typed options."""

from __future__ import annotations

import re
import typing
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from typer.models import OptionInfo

from cirrus.errors import CirrusError, ConfigError

#: Parameters of the library that have another name as an option.
_OTHER_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "n_workers": "workers",
        "n_shards": "shards",
        "n_processes": "processes",
        "random_state": "seed",
        "missing_label": "drop_missing_labels",
        "class_weight": "balanced",
        "test_size": "validation_split",
        "root": "home",
    }
)


def error_line(error: CirrusError, command: Callable[..., Any]) -> str:
    """Return what to tell somebody who typed a command.

    Args:
        error: What went wrong.
        command: The function behind the command, whose parameters are its options.
    """
    options = _options(command)
    if isinstance(error, ConfigError):
        name = options.get(error.field, error.field)
        return f"{name}: {_with_options(error.problem, options)}"
    return _with_options(str(error), options)


def _options(command: Callable[..., Any]) -> dict[str, str]:
    """Return what the parameters of a command are called as options."""
    found = {}
    for name, hint in typing.get_type_hints(command, include_extras=True).items():
        for info in typing.get_args(hint)[1:]:
            if isinstance(info, OptionInfo):
                given = [option for option in info.param_decls or () if option.startswith("--")]
                found[name] = given[0] if given else f"--{name.replace('_', '-')}"
    return found | {name: found[other] for name, other in _OTHER_NAMES.items() if other in found}


def _with_options(text: str, options: Mapping[str, str]) -> str:
    """Return a text in which ``n_features=3`` is ``--n-features 3``; parts of paths are left alone."""
    for name, option in options.items():
        alone = rf"(?<![\w/.\-]){re.escape(name)}"
        text = re.sub(rf"{alone}=(?=\S)", f"{option} ", text)
        if "_" in name:
            text = re.sub(rf"{alone}(?![\w/.\-])", option, text)
    return text
