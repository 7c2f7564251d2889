"""Errors in the words of the command line: the library names parameters, people typed options.

Every parameter of a loader, a transformer or an estimator is in one of the sets below, as a test proves by
the signatures. A command calls it by the option that sets it; one that takes ``--set NAME=VALUE`` calls
parameters of estimators without an option by that; and one that cannot set it says it in plain words.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from typer.models import ArgumentInfo, OptionInfo

from cirrus.errors import CirrusError, ConfigError


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


LOADER_PARAMETERS = _names(
    """
    backend categorical format hash_features header interactions label label_above missing_label n_features
    n_processes na_values numeric path progress random_state sep shuffle url vocabulary zero_based
    """
)
TRANSFORMER_PARAMETERS = _names(
    """
    alternate_sign backend clip columns copy densify dtype feature_range input_type n_features
    n_workers progress with_mean with_std
    """
)
ESTIMATOR_PARAMETERS = _names(
    """
    backend batch_size checkpoint_seconds checkpoint_url class_weight compression
    doc_topic_prior early_stopping epochs factor_l2 fit_intercept gradient_threshold
    initial_scale l1 l2 learning_decay learning_offset learning_rate loss max_cost max_seconds
    mode n_clusters n_factors n_shards n_topics n_workers nonfinite_gradients on_client_loss
    optimizer optimizer_params progress random_state resume_from staleness target_loss task tol
    topic_word_prior warm_start wire_dtype worker_memory_mb
    """
)
#: Parameters of the library that have another name as an option, the first of these that a command has.
_OTHER_NAMES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "n_workers": ("workers",),
        "n_shards": ("shards",),
        "n_processes": ("processes",),
        "n_factors": ("size",),
        "n_topics": ("size",),
        "n_clusters": ("size",),
        "n_features": ("buckets",),
        "n_iter": ("draws",),
        "random_state": ("seed",),
        "missing_label": ("drop_missing_labels",),
        "class_weight": ("balanced",),
        "task": ("model_type",),
        "test_size": ("validation_split",),
        "with_mean": ("mean",),
        "with_std": ("std",),
        "feature_range": ("low",),
        "backend": ("backend", "home"),
        "address": ("ray_address",),
        "root": ("home",),
        "path": ("data",),
        "url": ("target",),
        "set": ("fixed",),
        "range": ("ranges",),
    }
)
#: Values that are not spelled as in Python; what is not here is typed as it is, but for quotation marks.
_OTHER_VALUES: Mapping[tuple[str, str], str] = MappingProxyType(
    {
        ("task", "classification"): "fm",
        ("task", "regression"): "fm-regression",
    }
)
#: Parameters that two options set together.
_PAIRS: Mapping[str, str] = MappingProxyType({"feature_range": "--low and --high"})
#: What cannot be set by a command, in plain words; all others: the name, in words.
_PLAIN_WORDS: Mapping[str, str] = MappingProxyType(
    {
        "n_features": "the number of features",
        "hash_features": "the number of hashed features",
        "na_values": "the values that mean none",
        "n_processes": "the number of processes",
        "n_workers": "the number of workers",
        "sep": "the separator",
    }
)
#: Classes of the library, as `cirrus preprocess` calls them.
_KINDS: Mapping[str, str] = MappingProxyType(
    {"MinMaxScaler": "minmax", "StandardScaler": "standard", "FeatureHasher": "hash"}
)
#: A value in Python, as errors show it.
_VALUE = r"""("[^"]*"|'[^']*'|\[[^\]]*\]|\([^)]*\)|[^\s,;:()]+)"""


#: What is behind these is typed as it is: ``--grid l1=0,1``.
_TYPED_AS_IS = r"(?<!--grid )(?<!--range )(?<!--set )(?<!such as )(?<!Terraform variable )"


@dataclass(frozen=True)
class _Option:
    """An option of a command.

    Args:
        name: As it is typed; of a flag, to say yes.
        is_flag: Whether it takes no value.
        opposite: What is typed to say no to a flag; None: there is nothing.
    """

    name: str
    is_flag: bool = False
    opposite: str | None = None

    def with_value(self, parameter: str, value: str) -> str:
        """Return what is typed in place of ``parameter=value``."""
        if self.is_flag:
            if value in ("False", "None"):
                return self.opposite or f"no {self.name}"
            return self.name
        plain = ",".join(part.strip().strip("\"'") for part in value.strip("[]()").split(","))
        plain = "none" if plain == "None" else plain
        return f"{self.name} {_OTHER_VALUES.get((parameter, plain), plain)}"


def error_line(error: CirrusError, command: Callable[..., Any]) -> str:
    """Return what to tell somebody who typed a command.

    Args:
        error: What went wrong.
        command: The function behind the command, whose parameters are its options.
    """
    words = _Words(command)
    if isinstance(error, ConfigError):
        return f"{words.field(error.field)}: {words.text(error.problem)}"
    return words.text(str(error))


def in_options(text: str, command: Callable[..., Any]) -> str:
    """Return a text of the library, such as a warning, in the words of a command; see :func:`error_line`."""
    return _Words(command).text(text)


class _Words:
    """What parameters of the library are called by a command."""

    def __init__(self, command: Callable[..., Any]) -> None:
        self._options, self._arguments = _read(command)
        names = {*LOADER_PARAMETERS, *TRANSFORMER_PARAMETERS, *ESTIMATOR_PARAMETERS}
        names |= {*_OTHER_NAMES, *self._options} - {"set", "range"}
        by_length = sorted(names, key=len, reverse=True)
        known = "|".join(map(re.escape, by_length))
        self._pattern = re.compile(rf"(?<![\w/.\-]){_TYPED_AS_IS}({known})(?:={_VALUE}|(?![\w/=]|[.\-]\w))")

    def field(self, name: str) -> str:
        """Return what a parameter that is wrong is called."""
        name = name.replace("-", "_")
        for known in (name, *_OTHER_NAMES.get(name, ())):
            if known in self._arguments:
                return self._arguments[known]
        return self._name(name, None) if name in self._known() or self._option(name) else name

    def text(self, text: str) -> str:
        """Return a text in which ``n_features=3`` is ``--n-features 3``; parts of paths are left alone."""
        for kind, name in _KINDS.items():
            text = re.sub(rf"\b{kind}\(([^()]*(?:\([^()]*\))?[^()]*)\)", rf"{name} \1", text)
        text = re.sub(r"\bfit\(\.\.\., ([^()]*)\)", r"\1", text)
        return self._pattern.sub(self._replaced, text)

    def _replaced(self, match: re.Match[str]) -> str:
        name, value = match.groups()
        if value is None and "_" not in name:  # a word like any other
            return str(match[0])
        if match.string[: match.start()].endswith(("'", '"')):  # what was typed, or is to be
            return str(match[0])
        return self._name(name, value)

    def _name(self, name: str, value: str | None) -> str:
        option = self._option(name)
        if option is not None and name in _PAIRS:
            return _PAIRS[name]
        if option is not None:
            return option.name if value is None else option.with_value(name, value)
        if name in ESTIMATOR_PARAMETERS and "fixed" in self._options:
            text = "" if value is None else "=" + value.strip("\"'").lower()
            return f"--set {name}{text}"
        plain = _PLAIN_WORDS.get(name, name.replace("_", " "))
        return plain if value is None else f"{plain} {value}"

    def _option(self, name: str) -> _Option | None:
        found = [self._options.get(known) for known in (name, *_OTHER_NAMES.get(name, ()))]
        return next((option for option in found if option is not None), None)

    @staticmethod
    def _known() -> frozenset[str]:
        return LOADER_PARAMETERS | TRANSFORMER_PARAMETERS | ESTIMATOR_PARAMETERS


def _read(command: Callable[..., Any]) -> tuple[dict[str, _Option], dict[str, str]]:
    """Return a command's options by the names of its parameters, and what its arguments are called."""
    options, arguments = {}, {}
    for name, hint in typing.get_type_hints(command, include_extras=True).items():
        kind, *infos = typing.get_args(hint) or (hint,)
        for info in infos:
            if isinstance(info, OptionInfo):
                options[name] = _option_of(name, kind, info)
            elif isinstance(info, ArgumentInfo):
                arguments[name] = info.metavar or name.upper()
    return options, arguments


def _option_of(name: str, kind: Any, info: OptionInfo) -> _Option:
    is_flag = kind is bool or (isinstance(kind, types.UnionType) and bool in typing.get_args(kind))
    # In an annotation the first name is where a default would be.
    declared = (info.default, *(info.param_decls or ()))
    given = [option for option in declared if isinstance(option, str) and option.startswith("--")]
    if not given:
        dashed = name.replace("_", "-")
        return _Option(f"--{dashed}", is_flag, f"--no-{dashed}" if is_flag else None)
    yes, _, no = given[0].partition("/")
    return _Option(yes, is_flag, no or None)
