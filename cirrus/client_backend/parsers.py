"""The svmlight format, parsed by a compiled kernel.

A line is ``LABEL INDEX:VALUE INDEX:VALUE ...``; indices ascend; ``#`` begins a comment. The kernel works on a
whole segment of a file without holding the GIL, and stops at the first thing that is wrong with a code that
tells what; only then is Python asked which line that was.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from cirrus.client_backend.loops import ARE_COMPILED, compiled, text_of
from cirrus.client_backend.rows import MAX_INDEX, NARROWED_LABEL, Rows, SegmentFacts
from cirrus.errors import DataError

if ARE_COMPILED:
    from cirrus.client_backend.bits import count_digits, value_of_digits, word_at

Bytes: TypeAlias = NDArray[np.uint8]

#: How much of a bad piece of text an error message shows.
SHOWN_CHARACTERS = 40

_SPACE, _TAB, _RETURN, _NEWLINE, _HASH = (ord(c) for c in " \t\r\n#")
_PLUS, _MINUS, _POINT, _COLON, _ZERO, _E = (ord(c) for c in "+-.:0e")

_OK = 0
_BAD_LABEL = 1
_BAD_INDEX = 2
_BAD_VALUE = 3
_INFINITE_LABEL = 4
_INFINITE_VALUE = 5
_DESCENDS = 6
_REPEATS = 7
_INDEX_TOO_LARGE = 8
_BEYOND_FEATURES = 9
_QUERY = 10
_NARROWED_LABEL = 11

_PROBLEMS = {
    _BAD_LABEL: "label {token!r} is not a number: labels of svmlight files must be numbers",
    _NARROWED_LABEL: f"label {{token!r}} {NARROWED_LABEL}",
    _BAD_INDEX: "{token!r} is not INDEX:VALUE: correct the line",
    _BAD_VALUE: "the value in {token!r} is not a number: correct the line",
    _INFINITE_LABEL: "label {token!r} is not finite: remove or correct the row",
    _INFINITE_VALUE: "the value in {token!r} is not finite: remove or correct it",
    _DESCENDS: "index in {token!r} is lower than the one before: sort each line by index",
    _REPEATS: "index in {token!r} occurs twice in the line: add up its values",
    _INDEX_TOO_LARGE: "index in {token!r} is too large: indices must be below 2**32 - 1",
    _BEYOND_FEATURES: "index in {token!r} is beyond n_features={n_features}: "
    "load what is trained on with more, or remove the entry",
    _QUERY: "{token!r}: ranking queries (qid) are not supported: remove them",
}


class SvmlightParser:
    """Parses svmlight text.

    Args:
        path: What to call the file in an error message.
        n_features: Indices beyond this are errors; None: there is no limit.
        zero_based: Whether the first feature is 0 or 1. None: not known yet; what depends on it is reported
            in :class:`SegmentFacts`.
    """

    def __init__(self, path: str, n_features: int | None = None, zero_based: bool | None = None) -> None:
        self._path = path
        self._n_features = n_features
        self._zero_based = zero_based
        self._limit = MAX_INDEX if n_features is None else n_features - (zero_based is True)

    def parse(self, data: bytes, first_line: int) -> tuple[Rows, SegmentFacts]:
        """See :class:`Parser`."""
        text = text_of(data)
        n_lines, n_colons = _count_lines(text)
        lengths = np.empty(n_lines + 1, np.uint32)
        labels = np.empty(lengths.size, np.float32)
        indices = np.empty(n_colons, np.uint32)
        values = np.empty(indices.size, np.float32)
        code, at, n_rows, n_entries = parse_svmlight(text, self._limit, lengths, labels, indices, values)
        if code != _OK:
            raise DataError(self._describe(data, at, code, first_line))
        values = values[:n_entries]
        rows = Rows(
            lengths=lengths[:n_rows],
            indices=indices[:n_entries],
            values=None if (values == 1).all() else values,
            labels=labels[:n_rows],
        )
        return rows, self._facts(rows, data, first_line)

    def _facts(self, rows: Rows, data: bytes, first_line: int) -> SegmentFacts:
        lowest = int(rows.indices.min(initial=MAX_INDEX))
        highest = int(rows.indices.max()) if rows.indices.size else -1
        if lowest == 0 and self._zero_based is False:
            line = self._line_of_index(0, rows, data, first_line)
            raise DataError(f"{self._path}:{line}: index 0 in a one-based file: use zero_based=True")
        at_limit = self._n_features is not None and self._zero_based is None and highest == self._n_features
        return SegmentFacts(
            n_rows=rows.labels.size,
            lowest_index=lowest,
            highest_index=highest,
            limit_line=self._line_of_index(highest, rows, data, first_line) if at_limit else 0,
        )

    @staticmethod
    def _line_of_index(index: int, rows: Rows, data: bytes, first_line: int) -> int:
        """Return the first line with an entry of this index."""
        entry = int(np.flatnonzero(rows.indices == index)[0])
        row = int((np.cumsum(rows.lengths) <= entry).sum())
        for number, line in enumerate(data.split(b"\n"), start=first_line):
            if line.split(b"#", 1)[0].strip():
                if row == 0:
                    return number
                row -= 1
        raise AssertionError("the kernel saw a row that is not there")

    def _describe(self, data: bytes, start: int, code: int, first_line: int) -> str:
        line = first_line + data.count(b"\n", 0, start)
        token = (data[start : start + SHOWN_CHARACTERS].split(None, 1) or [b""])[0].decode("utf-8", "replace")
        if code == _BAD_INDEX and token.startswith("qid:"):
            code = _QUERY
        problem = _PROBLEMS[code].format(token=token, n_features=self._n_features)
        return f"{self._path}:{line}: {problem}"


@compiled
def _count_lines(text: Bytes) -> tuple[int, int]:
    """Return the numbers of line ends and of colons, which are no fewer than entries."""
    n_lines = 0
    n_colons = 0
    for c in text:
        n_lines += c == _NEWLINE
        n_colons += c == _COLON
    return n_lines, n_colons


@compiled
def parse_svmlight(
    text: Bytes,
    limit: int,
    lengths: NDArray[np.uint32],
    labels: NDArray[np.float32],
    indices: NDArray[np.uint32],
    values: NDArray[np.float32],
) -> tuple[int, int, int, int]:
    """Parse a segment into arrays that are large enough.

    Args:
        text: Whole lines. Shape (n_bytes,).
        limit: Highest index that is allowed.
        lengths: Takes the number of entries of each row.
        labels: Takes the label of each row.
        indices: Takes the index of each entry.
        values: Takes the value of each entry.

    Returns:
        A code (0: all is well), where the bad token begins, number of rows, number of entries.
    """
    n_rows = 0
    n_entries = 0
    i = 0
    while i < text.size:
        i = _skip_blanks(text, i)
        if not _ends_line(text, i):
            code, i, labels[n_rows] = _parse_label(text, i)
            before = -1
            first_entry = n_entries
            i = _skip_blanks(text, i)
            while code == _OK and not _ends_line(text, i):
                code, i, index, value = _parse_entry(text, i, before, limit)
                if code == _OK:
                    indices[n_entries] = index
                    values[n_entries] = value
                    n_entries += 1
                    before = index
                    i = _skip_blanks(text, i)
            if code != _OK:
                return code, i, n_rows, n_entries
            lengths[n_rows] = n_entries - first_entry
            n_rows += 1
        while i < text.size and text[i] != _NEWLINE:
            i += 1
        i += 1
    return _OK, 0, n_rows, n_entries


@compiled
def _parse_label(text: Bytes, start: int) -> tuple[int, int, float]:
    """Return a code, where the label ends (or begins, if it is bad), and the label."""
    label, end = parse_number(text, start)
    if end == start or not _ends_token(text, end):
        return _BAD_LABEL, start, 0.0
    if not np.isfinite(np.float32(label)):
        return _INFINITE_LABEL, start, 0.0
    if narrows_whole_number(text, start, end, label):
        return _NARROWED_LABEL, start, 0.0
    return _OK, end, label


@compiled
def narrows_whole_number(text: Bytes, start: int, end: int, number: float) -> bool:
    """Return whether a number that is written as a whole one becomes another one in float32.

    One with a point or an exponent is a measured number, which is rounded as others are.
    """
    if np.float32(number) == number or np.floor(number) != number:
        return False
    first = start + 1 if text[start] == _PLUS or text[start] == _MINUS else start
    whole = True
    for i in range(first, end):
        whole = whole and _is_digit(text[i])
    return whole


@compiled
def _parse_entry(text: Bytes, start: int, before: int, limit: int) -> tuple[int, int, int, float]:
    """Return a code, where the entry ends (or begins, if it is bad), its index and its value."""
    i = start
    index = 0
    if ARE_COMPILED and start + 10 <= text.size:  # most entries are a few digits, and a digit for their value
        word = word_at(text, start)
        n = count_digits(word)
        if 0 < n < 8 and text[np.uintp(start + n)] == _COLON:
            index = value_of_digits(word, n)
            i = start + n
            digit = text[np.uintp(i + 1)]
            if _is_digit(digit) and before < index <= limit and _ends_token(text, i + 2):
                return _OK, i + 2, index, float(digit - _ZERO)
    while i < text.size and _is_digit(text[i]):
        if index <= MAX_INDEX:
            index = index * 10 + (text[i] - _ZERO)
        i += 1
    if i == start or i >= text.size or text[i] != _COLON:
        return _BAD_INDEX, start, 0, 0.0
    value, end = parse_number(text, i + 1)
    if end == i + 1 or not _ends_token(text, end):
        return _BAD_VALUE, start, 0, 0.0
    if not np.isfinite(np.float32(value)):
        return _INFINITE_VALUE, start, 0, 0.0
    if index <= before:
        return (_REPEATS if index == before else _DESCENDS), start, 0, 0.0
    if index > limit:
        return (_INDEX_TOO_LARGE if index > MAX_INDEX else _BEYOND_FEATURES), start, 0, 0.0
    return _OK, end, index, value


@compiled
def parse_number(text: Bytes, start: int) -> tuple[float, int]:
    """Return a number, which may be NaN or infinite, and where it ends: at ``start`` if there is none."""
    n = text.size
    i = start
    negative = False
    if i < n and (text[i] == _PLUS or text[i] == _MINUS):
        negative = text[i] == _MINUS
        i += 1
    first = i
    mantissa = 0.0
    exponent = 0
    while i < n and _is_digit(text[i]):
        mantissa = mantissa * 10.0 + (text[i] - _ZERO)
        i += 1
    n_digits = i - first
    if i < n and text[i] == _POINT:
        first = i = i + 1
        while i < n and _is_digit(text[i]):
            # Digits beyond what float64 holds are dropped: they cannot change a float32.
            if mantissa < 1e17:
                mantissa = mantissa * 10.0 + (text[i] - _ZERO)
                exponent -= 1
            i += 1
        n_digits += i - first
    if n_digits == 0:
        return _parse_name_of_number(text, i, start)
    if i < n and text[i] | 32 == _E:
        given, end = _parse_exponent(text, i + 1)
        if end == i + 1:
            return 0.0, start
        exponent += given
        i = end
    number = _scaled(mantissa, exponent)
    return (-number if negative else number), i


@compiled
def _parse_exponent(text: Bytes, start: int) -> tuple[int, int]:
    """Return a whole number and where it ends: at ``start`` if there is none."""
    i = start
    negative = False
    if i < text.size and (text[i] == _PLUS or text[i] == _MINUS):
        negative = text[i] == _MINUS
        i += 1
    first = i
    exponent = 0
    while i < text.size and _is_digit(text[i]):
        exponent = min(exponent * 10 + (text[i] - _ZERO), 100_000)
        i += 1
    if i == first:
        return 0, start
    return (-exponent if negative else exponent), i


@compiled
def _scaled(mantissa: float, exponent: int) -> float:
    """Return mantissa * 10**exponent, as near as float32 can tell."""
    if mantissa == 0.0 or exponent == 0:
        return mantissa
    if exponent > 300:  # in two steps, because 10**exponent is infinite, which Python refuses
        return mantissa * 1e300 * 10.0 ** min(exponent - 300, 300)
    if exponent > 0:
        return mantissa * 10.0**exponent
    if exponent < -300:  # in two steps, because 10**-exponent is infinite
        return mantissa / 1e300 / 10.0 ** min(-exponent - 300, 300)
    return mantissa / 10.0**-exponent


@compiled
def _parse_name_of_number(text: Bytes, i: int, start: int) -> tuple[float, int]:
    """Take ``nan``, ``inf`` and ``infinity`` for a number, which is then refused for what it is."""
    if i + 2 >= text.size:
        return 0.0, start
    a, b, c = text[i] | 32, text[i + 1] | 32, text[i + 2] | 32
    if not ((a == 110 and b == 97 and c == 110) or (a == 105 and b == 110 and c == 102)):
        return 0.0, start
    while not _ends_token(text, i):
        i += 1
    return np.nan, i


@compiled
def _is_digit(c: int) -> bool:
    return _ZERO <= c <= _ZERO + 9


@compiled
def _skip_blanks(text: Bytes, i: int) -> int:
    while i < text.size and (text[i] == _SPACE or text[i] == _TAB or text[i] == _RETURN):
        i += 1
    return i


@compiled
def _ends_line(text: Bytes, i: int) -> bool:
    return i >= text.size or text[i] == _NEWLINE or text[i] == _HASH


@compiled
def _ends_token(text: Bytes, i: int) -> bool:
    return _ends_line(text, i) or text[i] == _SPACE or text[i] == _TAB or text[i] == _RETURN
