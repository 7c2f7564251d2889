"""Checks of the parameters that a model gets from a run's config, which may come from a file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from typing import Any

from cirrus.errors import ConfigError


def check_known(params: Mapping[str, Any], known: Set[str], model: str) -> None:
    """Refuse parameters that a model has not got.

    Raises:
        ConfigError: There is one.
    """
    unknown = sorted(set(params) - known)
    if unknown:
        raise ConfigError("model", f"{model} has no parameter {', '.join(unknown)}")


def flag(params: Mapping[str, Any], name: str, default: bool) -> bool:
    """Return a truth value.

    Raises:
        ConfigError: It is something else.
    """
    value = params.get(name, default)
    if not isinstance(value, bool):
        raise ConfigError(name, f"must be true or false, got {value!r}")
    return value


def number(
    params: Mapping[str, Any],
    name: str,
    default: float,
    *,
    above: float | None = None,
    least: float | None = None,
) -> float:
    """Return a finite number, greater than ``above`` and at least ``least``.

    Raises:
        ConfigError: It is something else.
    """
    value = params.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ConfigError(name, f"must be a number, got {value!r}")
    if above is not None and not value > above:
        raise ConfigError(name, f"must be a number above {above:g}, got {value!r}")
    if least is not None and not value >= least:
        raise ConfigError(name, f"must be a number >= {least:g}, got {value!r}")
    return float(value)


def whole(params: Mapping[str, Any], name: str, default: int, *, least: int = 1) -> int:
    """Return a whole number of at least ``least``.

    Raises:
        ConfigError: It is something else.
    """
    value = params.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(name, f"must be a whole number >= {least}, got {value!r}")
    return value


def numbers(value: Any, name: str, length: int | None = None) -> tuple[float, ...]:
    """Return finite numbers, ``length`` of them if that is given, else at least two.

    Raises:
        ConfigError: They are something else.
    """
    wanted = "numbers" if length is None else f"{'two' if length == 2 else length} numbers"
    if (
        not isinstance(value, (list, tuple))
        or (len(value) < 2 if length is None else len(value) != length)
        or not all(isinstance(v, (int, float)) and math.isfinite(v) for v in value)
    ):
        raise ConfigError(name, f"must be {wanted}, got {value!r}")
    return tuple(float(v) for v in value)


def factors(params: Mapping[str, Any], length: int) -> tuple[float, ...] | None:
    """Return ``class_weight``: None, or a factor >= 0 for each class.

    Raises:
        ConfigError: It is something else.
    """
    value = params.get("class_weight")
    if value is None:
        return None
    found = numbers(value, "class_weight", length)
    if min(found) < 0:
        raise ConfigError("class_weight", f"must not be negative, got {found}")
    return found
