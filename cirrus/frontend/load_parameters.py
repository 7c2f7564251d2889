"""Checks of the loaders' parameters: what users and numpy call a whole number becomes an int."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from cirrus.errors import ConfigError


def whole_number(value: Any, name: str) -> int:
    """Return a parameter that is a whole number from 1, of whatever integer type.

    Raises:
        ConfigError: It is none.
    """
    number = _index(value)
    if number is None or number < 1:
        raise ConfigError(name, f"must be a whole number >= 1, got {value!r}")
    return number


def column_of(column: str | int, name: str) -> str | int:
    """Return one column as the user gave it, by name or number.

    Raises:
        ConfigError: It is neither.
    """
    found = column if isinstance(column, str) else _index(column)
    if found is None:
        raise ConfigError(name, f"must be the name or the number (from 0) of a column, got {column!r}")
    return found


def column_list(columns: Sequence[str | int], name: str) -> tuple[str | int, ...]:
    """Return columns as the user gave them.

    Raises:
        ConfigError: They are no list of names or numbers.
    """
    if isinstance(columns, str):
        raise ConfigError(name, f"must be a list of columns, got the text {columns!r}")
    try:
        every = tuple(columns)
    except TypeError as error:
        raise ConfigError(name, f"must be a list of columns, got {columns!r}") from error
    return tuple(column_of(column, name) for column in every)


def na_list(values: Sequence[str]) -> tuple[str, ...]:
    """Return ``na_values`` as the user gave them.

    Raises:
        ConfigError: They are no list of text.
    """
    if isinstance(values, str) or not all(isinstance(value, str) for value in values):
        raise ConfigError("na_values", f"must be a list of text such as ['NA'], got {values!r}")
    return tuple(values)


def _index(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None
