"""A run's metric points as columns of numbers, read from the lines that shard 0 has written by a kernel.

A thousand runs have millions of points, and making an object of each costs some 40 us. The lines of one
version of Cirrus all look alike: the same names in the same order, with a number behind each. The kernel
reads just these, without the interpreter lock; whatever looks different is read by :mod:`cirrus.run_folder`,
which knows what to say about it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from cirrus.config import parse_json
from cirrus.errors import ConfigError
from cirrus.metrics import MetricPoint
from cirrus.run_folder import parse_points

Floats = NDArray[np.float64]
_Bytes = NDArray[np.uint8]

#: The field that holds more measures, by name.
_MEASURES = "validation_metrics"
#: Prefix of the columns of these, such as ``metric:accuracy``.
METRIC_PREFIX = "metric:"
#: A column for each of these, in the order of the lines.
NUMBER_FIELDS = tuple(field.name for field in dataclasses.fields(MetricPoint) if field.name != _MEASURES)
#: Digits that a mantissa of 64 bits holds whatever they are.
_MOST_DIGITS = 18
#: No line is shorter: its names alone are longer.
_SHORTEST_LINE = 64

_NULL, _NAN, _TRUE, _FALSE, _INFINITY = (
    np.frombuffer(word, np.uint8) for word in (b"null", b"NaN", b"true", b"false", b"Infinity")
)
_NEWLINE, _MINUS, _PLUS, _POINT, _ZERO, _OPEN, _CLOSE, _BACKSLASH = (ord(c) for c in "\n-+.0{}\\")
_SMALL_E, _LARGE_E = ord("e"), ord("E")


class Columns(NamedTuple):
    """Points as columns."""

    n_points: int
    values: dict[str, Floats]
    """By name, each of shape (n_points,); not a number where a point does not have the value."""


class _Layout(NamedTuple):
    """What every line consists of, but for its values."""

    text: _Bytes
    """What is before each value, and after the last, one after the other."""
    starts: NDArray[np.int64]
    """Where each begins, and where the last one ends."""
    measures: int
    """Which value is the one with names of its own."""


@functools.cache
def _layout() -> _Layout:
    names = [field.name for field in dataclasses.fields(MetricPoint)]
    parts = [f'{"{" if n == 0 else ", "}"{name}": '.encode() for n, name in enumerate(names)] + [b"}\n"]
    starts = np.cumsum([0, *map(len, parts)], dtype=np.int64)
    return _Layout(np.frombuffer(b"".join(parts), np.uint8), starts, names.index(_MEASURES))


def columns_of_lines(lines: bytes, key: str) -> Columns:
    """Return the points in lines of a run's metrics.

    Numbers are read to within a few units of their last place, and not to the bit.

    Args:
        lines: Whole lines.
        key: The object that they come from, for errors.

    Raises:
        CorruptDataError: A line is not JSON.
        ConfigError: A line is no point.
    """
    text = np.frombuffer(lines, np.uint8)
    most = text.size // _SHORTEST_LINE + 1
    numbers = np.empty((len(NUMBER_FIELDS), most))
    spans = np.empty((most, 3), np.int64)
    n_points, n_spans = _read_lines(text, *_layout(), numbers, spans)
    if n_points < 0:
        return columns_of_points(parse_points(lines, key))
    values = {name: numbers[place, :n_points].copy() for place, name in enumerate(NUMBER_FIELDS)}
    try:
        found = [(int(n), parse_json(lines[begin:end])) for n, begin, end in spans[:n_spans]]
        values |= _measures(n_points, found)
    except (ValueError, OverflowError, ConfigError):
        return columns_of_points(parse_points(lines, key))
    return Columns(n_points, values)


def columns_of_points(points: Sequence[MetricPoint]) -> Columns:
    """Return points as columns.

    Raises:
        ConfigError: A measure is no number.
    """
    values = {name: _floats([getattr(point, name) for point in points]) for name in NUMBER_FIELDS}
    measures = ((n, point.validation_metrics) for n, point in enumerate(points) if point.validation_metrics)
    return Columns(len(points), values | _measures(len(points), measures))


def _measures(n_points: int, found: Iterable[tuple[int, Mapping[str, float | None]]]) -> dict[str, Floats]:
    """Return the columns of measures that some points have.

    Args:
        n_points: Number of all points.
        found: Which point, and its measures by name.
    """
    columns: dict[str, Floats] = {}
    for n, measures in found:
        for name, value in measures.items():
            if value is not None and not isinstance(value, (int, float)):
                raise ConfigError(f"metrics.{_MEASURES}.{name}", f"must be a number, got {value!r}")
            column = columns.setdefault(METRIC_PREFIX + name, np.full(n_points, np.nan))
            column[n] = np.nan if value is None else value
    return columns


def _floats(values: Sequence[float | None]) -> Floats:
    return np.array([_float(value) for value in values], dtype=np.float64)


def _float(value: float | None) -> float:
    """Return a value as a number; a count beyond all of these is infinite, as it is to the kernel."""
    if value is None:
        return np.nan
    try:
        return float(value)
    except OverflowError:
        return np.inf if value > 0 else -np.inf


def joined(parts: Sequence[Columns]) -> Columns:
    """Return points that follow each other as one."""
    if len(parts) == 1:
        return parts[0]
    names = dict.fromkeys([*NUMBER_FIELDS, *(name for part in parts for name in part.values)])
    values = {
        name: np.concatenate([_column(part, name) for part in parts]) if parts else np.empty(0)
        for name in names
    }
    return Columns(sum(part.n_points for part in parts), values)


def _column(part: Columns, name: str) -> Floats:
    found = part.values.get(name)
    return np.full(part.n_points, np.nan) if found is None else found


@numba.njit(cache=True, nogil=True)
def _read_lines(
    text: _Bytes,
    names: _Bytes,
    starts: NDArray[np.int64],
    measures: int,
    numbers: Floats,
    spans: NDArray[np.int64],
) -> tuple[int, int]:
    """Read lines that look as they should.

    Args:
        text: Whole lines.
        names: See :class:`_Layout`, as for the next two.
        starts: See there.
        measures: See there.
        numbers: Takes the values, shape (n_fields, at least n_lines).
        spans: Takes what is for Python to read: the line, where it begins and ends. Shape
            (at least n_lines, 3).

    Returns:
        The number of lines, -1 if one looks different; and of spans.
    """
    n = 0
    n_spans = 0
    i = 0
    n_values = starts.size - 2
    while i < text.size:
        row = 0
        for k in range(n_values + 1):
            begin, end = starts[k], starts[k + 1]
            if i + (end - begin) > text.size:
                return -1, 0
            for j in range(end - begin):
                if text[i + j] != names[begin + j]:
                    return -1, 0
            i += end - begin
            if k == n_values:
                break
            if k == measures:
                begin = i
                i = _end_of_object(text, i)
                if i < 0:
                    return -1, 0
                if i - begin > 2:
                    spans[n_spans, 0], spans[n_spans, 1], spans[n_spans, 2] = n, begin, i
                    n_spans += 1
            else:
                value, i = _value(text, i)
                if i < 0:
                    return -1, 0
                numbers[row, n] = value
                row += 1
        n += 1
    return n, n_spans


@numba.njit(cache=True, nogil=True)
def _end_of_object(text: _Bytes, i: int) -> int:
    """Return where an object that holds no other ends, or -1."""
    if i >= text.size or text[i] != _OPEN:
        return -1
    i += 1
    while i < text.size:
        c = text[i]
        if c in (_OPEN, _BACKSLASH, _NEWLINE):
            return -1
        i += 1
        if c == _CLOSE:
            return i
    return -1


@numba.njit(cache=True, nogil=True)
def _is_at(text: _Bytes, i: int, word: _Bytes) -> bool:
    if i + word.size > text.size:
        return False
    same = True
    for j in range(word.size):
        same = same and text[i + j] == word[j]
    return same


@numba.njit(cache=True, nogil=True)
def _value(text: _Bytes, i: int) -> tuple[float, int]:
    """Return a number, ``null``, ``true``, ``false``, ``NaN`` or ``Infinity``, and where it ends, or -1."""
    if _is_at(text, i, _NULL) or _is_at(text, i, _NAN):
        return np.nan, i + (_NULL.size if text[i] == _NULL[0] else _NAN.size)
    if _is_at(text, i, _TRUE):
        return 1.0, i + _TRUE.size
    if _is_at(text, i, _FALSE):
        return 0.0, i + _FALSE.size
    negative = i < text.size and text[i] == _MINUS
    if negative:
        i += 1
    if _is_at(text, i, _INFINITY):
        return -np.inf if negative else np.inf, i + _INFINITY.size
    mantissa = np.uint64(0)
    n_digits = 0
    exponent = 0
    seen = 0
    behind_point = False
    while i < text.size:
        c = text[i]
        if c == _POINT and not behind_point:
            behind_point = True
        elif _ZERO <= c <= _ZERO + 9:
            seen += 1
            if n_digits < _MOST_DIGITS:
                mantissa = mantissa * np.uint64(10) + np.uint64(c - _ZERO)
                n_digits += int(mantissa > 0)
                exponent -= behind_point
            else:
                exponent += not behind_point
        else:
            break
        i += 1
    if seen == 0:
        return 0.0, -1
    if i < text.size and (text[i] == _SMALL_E or text[i] == _LARGE_E):
        power, i = _exponent(text, i + 1)
        if i < 0:
            return 0.0, -1
        exponent += power
    value = _scaled(float(mantissa), exponent)
    return -value if negative else value, i


@numba.njit(cache=True, nogil=True)
def _exponent(text: _Bytes, i: int) -> tuple[int, int]:
    negative = i < text.size and text[i] == _MINUS
    if i < text.size and (text[i] == _MINUS or text[i] == _PLUS):
        i += 1
    power = 0
    begin = i
    while i < text.size and _ZERO <= text[i] <= _ZERO + 9 and power < 10_000:
        power = 10 * power + int(text[i]) - _ZERO
        i += 1
    if i == begin:
        return 0, -1
    return -power if negative else power, i


@numba.njit(cache=True, nogil=True)
def _scaled(mantissa: float, exponent: int) -> float:
    """Return ``mantissa * 10**exponent``, in two steps where one power alone would leave the range."""
    if mantissa == 0.0 or exponent == 0:
        return mantissa
    if exponent > 0:
        return mantissa * 10.0 ** min(exponent, 400)
    if exponent >= -300:
        return mantissa / 10.0 ** (-exponent)
    return mantissa / 1e300 / 10.0 ** min(-exponent - 300, 400)
