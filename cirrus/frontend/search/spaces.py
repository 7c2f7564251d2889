"""What to try: the candidates of a grid or of random draws, as values that JSON can hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.model_selection import ParameterGrid, ParameterSampler

from cirrus.config import whole_number
from cirrus.errors import ConfigError

Params = dict[str, Any]

#: Key of what stands for a dict whose keys are no text.
PAIRS = "pairs"


def grid_candidates(param_grid: Any) -> list[Params]:
    """Return every combination of a grid.

    Args:
        param_grid: A dict of parameter names to lists of values, or a list of such dicts.

    Raises:
        ConfigError: It is neither, or empty.
    """
    try:
        found = list(ParameterGrid(param_grid))
    except (TypeError, ValueError) as error:
        raise ConfigError("param_grid", str(error)) from error
    if not found or not found[0]:
        raise ConfigError("param_grid", "names no parameter to try")
    return [plain_params(candidate) for candidate in found]


def random_candidates(distributions: Any, n_iter: int, random_state: Any) -> list[Params]:
    """Return random draws, as :class:`sklearn.model_selection.ParameterSampler` does.

    Args:
        distributions: A dict of parameter names to lists of values or scipy.stats distributions, or a list of
            such dicts.
        n_iter: Number of draws.
        random_state: Seed.

    Raises:
        ConfigError: They cannot be drawn from.
    """
    n_iter = whole_number(n_iter, "n_iter")
    try:
        found = list(ParameterSampler(distributions, n_iter, random_state=random_state))
    except (TypeError, ValueError) as error:
        raise ConfigError("distributions", str(error)) from error
    if not found or not found[0]:
        raise ConfigError("distributions", "names no parameter to try")
    return [plain_params(candidate) for candidate in found]


def plain_params(params: Mapping[str, Any]) -> Params:
    """Return hyperparameters as JSON values.

    Raises:
        ConfigError: A value is of a kind that cannot be written down.
    """
    return {str(name): _plain(value, str(name)) for name, value in params.items()}


def _plain(value: Any, name: str) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value):
            return {key: _plain(entry, name) for key, entry in value.items()}
        # JSON keys are text; the labels of class_weight need not be.
        return {PAIRS: [[_plain(key, name), _plain(entry, name)] for key, entry in value.items()]}
    if isinstance(value, Sequence):
        return [_plain(entry, name) for entry in value]
    raise ConfigError(
        name, f"cannot be searched over: {value!r} is no number, text, truth value, None, or dict of these"
    )


def usable_params(params: Mapping[str, Any]) -> Params:
    """Undo :func:`plain_params`."""
    return {name: _usable(value) for name, value in params.items()}


def _usable(value: Any) -> Any:
    if isinstance(value, Mapping):
        if value.keys() == {PAIRS}:
            return {key: _usable(entry) for key, entry in value[PAIRS]}
        return {key: _usable(entry) for key, entry in value.items()}
    return value


def space_in_words(space: Any) -> dict[str, Any]:
    """Return a grid or distributions for people to read, as JSON values."""
    parts = [space] if isinstance(space, Mapping) else list(space)
    words: dict[str, Any] = {}
    for part in parts:
        for name, values in part.items():
            if isinstance(values, (Sequence, np.ndarray)) and not isinstance(values, str):
                words.setdefault(name, []).extend(_in_words(value) for value in values)
            else:
                words[name] = _distribution_in_words(values)
    return words


def _in_words(value: Any) -> Any:
    try:
        return _plain(value, "")
    except ConfigError:
        return repr(value)


def _distribution_in_words(distribution: Any) -> str:
    """Return a distribution of scipy.stats as ``loguniform(0.01, 1.0)``, others as they call themselves."""
    inner = getattr(distribution, "dist", None)
    if inner is None or not hasattr(inner, "name"):
        return repr(distribution)
    arguments = [*map(repr, distribution.args), *(f"{k}={v!r}" for k, v in distribution.kwds.items())]
    return f"{inner.name}({', '.join(arguments)})"
