"""Checks of the loaders' parameters: columns, and what stands for a missing value."""

from __future__ import annotations

from collections.abc import Sequence

from cirrus.config import as_whole_number
from cirrus.errors import ConfigError


def column_of(column: str | int, name: str) -> str | int:
    """Return one column as the user gave it, by name or number.

    Raises:
        ConfigError: It is neither.
    """
    found = column if isinstance(column, str) else as_whole_number(column)
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
