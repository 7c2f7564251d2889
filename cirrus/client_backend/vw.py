"""Vowpal Wabbit's text format, parsed and hashed by compiled kernels.

A line is ``LABEL [IMPORTANCE [BASE]] ['TAG]|NAMESPACE[:SCALE] FEATURE[:VALUE] ... |NAMESPACE ...``. A
feature's hash is MurmurHash3 (x86, 32 bits, seed 0) of ``NAMESPACE^FEATURE``, its column the remainder by
the number of columns. The pair of two features has the hash of their two hashes (four bytes each,
little-endian), and the product of their values. Vowpal Wabbit itself hashes otherwise: it takes the
namespace's hash for the seed of the feature's, takes a feature that is a number for its own hash, and keeps
the lowest bits.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from cirrus.client_backend.gathering import murmur3, tidy_rows
from cirrus.client_backend.loops import compiled, text_of
from cirrus.client_backend.parsers import narrows_whole_number, parse_number
from cirrus.client_backend.rows import NARROWED_LABEL, Rows, SegmentFacts, row_starts
from cirrus.client_backend.vw_format import VwFormat
from cirrus.errors import DataError

Bytes: TypeAlias = NDArray[np.uint8]

#: Most pairs of features that one interaction may make of a row, and most entries of a segment.
MAX_ROW_PAIRS = 2**20
MAX_SEGMENT_ENTRIES = 2**25
#: How much of a bad piece of text an error message shows.
SHOWN_CHARACTERS = 40

_NEWLINE, _SPACE, _TAB, _RETURN, _BAR, _COLON, _QUOTE, _HASH, _CARET = (ord(c) for c in "\n \t\r|:'#^")
_PLUS, _MINUS, _Y = (ord(c) for c in "+-y")
_OK, _LABEL, _IMPORTANCE, _BASE, _EXTRA, _MISSING, _SCALE, _VALUE, _NAMELESS, _PAIRS, _NARROWED = range(11)
_PROBLEMS = {
    _LABEL: "label {token!r} is not a finite number: other kinds of labels are not supported",
    _IMPORTANCE: "importance weight {token!r} is not a finite number >= 0: correct it",
    _BASE: "the prediction to begin from, {token!r}, is not supported: remove it",
    _EXTRA: "{token!r} comes behind label, weight and base: begin a tag with ', or correct it",
    _MISSING: 'there is no label: correct the line, or use missing_label="drop"',
    _SCALE: "the scale of namespace {token!r} is not a finite number: correct it",
    _VALUE: "the value of {token!r} is not finite: correct it",
    _NAMELESS: "{token!r} is a value without a feature: name it",
    _NARROWED: f"label {{token!r}} {NARROWED_LABEL}",
    _PAIRS: "interactions make more than 2**20 pairs of this row: use fewer",
}
#: What to do with a row without a label.
ERROR, DROP, ZERO = range(3)


class VwParser:
    """Parses text for Vowpal Wabbit.

    Args:
        name: What to call the file in an error message.
        how: How it is to be read.
    """

    def __init__(self, name: str, how: VwFormat) -> None:
        self._name = name
        self._how = how
        self._missing = {"error": ERROR, "drop": DROP, "zero": ZERO}[how.missing_label]
        pairs = [[ord(pair[0]), ord(pair[1])] for pair in how.interactions]
        self._pairs = np.array(pairs, np.uint8).reshape(-1, 2)

    def parse(self, data: bytes, first_line: int) -> tuple[Rows, SegmentFacts]:
        """See :class:`~cirrus.client_backend.rows.Parser`."""
        text = text_of(data)
        n_lines, n_tokens = _count_tokens(text)
        lengths = np.empty(n_lines, np.uint32)
        labels, weights = np.empty(n_lines, np.float32), np.empty(n_lines, np.float32)
        at_rows = np.empty(n_lines, np.int64)
        hashes, values = np.empty(n_tokens, np.uint32), np.empty(n_tokens, np.float32)
        spaces = np.empty(n_tokens, np.uint8)
        buffer = np.empty(text.size + 1, np.uint8)
        code, at, n_rows, n_entries = parse_vw(
            text, self._missing, lengths, labels, weights, at_rows, hashes, values, spaces, buffer
        )
        if code != _OK:
            raise DataError(self._describe(data, at, code, first_line))
        lengths, hashes, values = lengths[:n_rows], hashes[:n_entries], values[:n_entries]
        if len(self._pairs):
            lengths, hashes, values = self._with_pairs(
                lengths, hashes, values, spaces[:n_entries], at_rows, data, first_line
            )
        weights = weights[:n_rows]
        columns = hashes % np.uint32(self._how.hash_features)
        n_entries = tidy_rows(lengths, columns, values)
        values = values[:n_entries]
        if not np.isfinite(values).all():
            raise DataError(f"{self._name}:{first_line}: values in one column add up to infinity: scale them")
        rows = Rows(
            lengths=lengths,
            indices=columns[:n_entries],
            values=None if (values == 1).all() else values,
            labels=labels[:n_rows],
            weights=None if (weights == 1).all() else weights,
        )
        return rows, SegmentFacts(n_rows=n_rows)

    def _with_pairs(
        self,
        lengths: NDArray[np.uint32],
        hashes: NDArray[np.uint32],
        values: NDArray[np.float32],
        spaces: Bytes,
        at_rows: NDArray[np.int64],
        data: bytes,
        first_line: int,
    ) -> tuple[NDArray[np.uint32], NDArray[np.uint32], NDArray[np.float32]]:
        """Return rows with the pairs of their features behind these."""
        starts = row_starts(lengths)
        bad, most = count_pairs(starts, spaces, self._pairs)
        if bad >= 0:
            raise DataError(self._describe(data, int(at_rows[bad]), _PAIRS, first_line))
        if most + hashes.size > MAX_SEGMENT_ENTRIES:
            raise DataError(
                f"{self._name}:{first_line}: interactions make more than 2**25 entries of the "
                f"{lengths.size} rows from here on: use fewer"
            )
        out_lengths = np.empty(lengths.size, np.uint32)
        out_hashes = np.empty(most + hashes.size, np.uint32)
        out_values = np.empty(out_hashes.size, np.float32)
        n = fill_pairs(starts, hashes, values, spaces, self._pairs, out_lengths, out_hashes, out_values)
        if not np.isfinite(out_values[:n]).all():
            first = np.flatnonzero(~np.isfinite(out_values[:n]))[0]
            row = int(np.searchsorted(row_starts(out_lengths), first, side="right")) - 1
            line = first_line + data.count(b"\n", 0, int(at_rows[row]))
            raise DataError(f"{self._name}:{line}: the product of two values is not finite: scale them")
        return out_lengths, out_hashes[:n], out_values[:n]

    def _describe(self, data: bytes, start: int, code: int, first_line: int) -> str:
        line = first_line + data.count(b"\n", 0, start)
        words = data[start : start + SHOWN_CHARACTERS].split(b"\n", 1)[0].replace(b"|", b" ").split(None, 1)
        token = (words or [b""])[0].decode("utf-8", "replace")
        return f"{self._name}:{line}: {_PROBLEMS[code].format(token=token)}"


@compiled
def _count_tokens(text: Bytes) -> tuple[int, int]:
    """Return numbers that are no less than those of rows and of features."""
    n_lines = 1
    n_tokens = 1
    for c in text:
        n_lines += c == _NEWLINE
        n_tokens += c in (_NEWLINE, _SPACE, _TAB, _BAR)
    return n_lines, n_tokens


@compiled
def parse_vw(
    text: Bytes,
    missing: int,
    lengths: NDArray[np.uint32],
    labels: NDArray[np.float32],
    weights: NDArray[np.float32],
    at_rows: NDArray[np.int64],
    hashes: NDArray[np.uint32],
    values: NDArray[np.float32],
    spaces: Bytes,
    buffer: Bytes,
) -> tuple[int, int, int, int]:
    """Parse whole lines into arrays that are large enough.

    Args:
        text: Whole lines.
        missing: What to do with a row without a label.
        lengths: Takes the number of features of each row.
        labels: Takes the label of each row.
        weights: Takes the importance weight of each row.
        at_rows: Takes where each row begins in the text.
        hashes: Takes the hash of each feature.
        values: Takes the value of each feature.
        spaces: Takes the first letter of each feature's namespace; a space where it has no name.
        buffer: Room for a feature's name.

    Returns:
        A code (0: all is well), where the bad token begins, number of rows, number of features.
    """
    n_rows = 0
    n_entries = 0
    i = 0
    while i < text.size:
        end = i
        while end < text.size and text[end] != _NEWLINE:
            end += 1
        start = _skip(text, i, end)
        if start < end and text[start] != _HASH:
            bar = start
            while bar < end and text[bar] != _BAR:
                bar += 1
            code, at, label, weight = _parse_label(text, start, bar, bar < end)
            if code == _MISSING and missing == DROP:
                i = end + 1
                continue
            if code == _MISSING and missing == ZERO:
                code = _OK
            if code != _OK:
                return code, at, n_rows, n_entries
            before = n_entries
            code, at, n_entries = _parse_features(text, bar, end, n_entries, hashes, values, spaces, buffer)
            if code != _OK:
                return code, at, n_rows, n_entries
            lengths[n_rows] = n_entries - before
            labels[n_rows] = label
            weights[n_rows] = weight
            at_rows[n_rows] = start
            n_rows += 1
        i = end + 1
    return _OK, 0, n_rows, n_entries


@compiled
def _parse_label(text: Bytes, start: int, bar: int, has_bar: bool) -> tuple[int, int, float, float]:
    """Return a code, where the bad token begins, label and weight."""
    label, weight = 0.0, 1.0
    n_tokens = 0
    i = start
    while i < bar:
        end = i
        while end < bar and not _is_blank(text[end]):
            end += 1
        is_tag = text[i] == _QUOTE or (end == bar and has_bar)
        if is_tag:
            break
        number, stop = parse_number(text, i)
        is_number = stop == end and np.isfinite(np.float32(number))
        if n_tokens == 0:
            if not is_number:
                return _LABEL, i, 0.0, 1.0
            if narrows_whole_number(text, i, end, number):
                return _NARROWED, i, 0.0, 1.0
            label = number
        elif n_tokens == 1:
            if not is_number or number < 0:
                return _IMPORTANCE, i, 0.0, 1.0
            weight = number
        elif n_tokens == 2:
            if not is_number or number != 0:
                return _BASE, i, 0.0, 1.0
        else:
            return _EXTRA, i, 0.0, 1.0
        n_tokens += 1
        i = _skip(text, end, bar)
    if n_tokens == 0:
        return _MISSING, start, 0.0, 1.0
    return _OK, 0, label, weight


@compiled
def _parse_features(
    text: Bytes,
    start: int,
    end: int,
    n_entries: int,
    hashes: NDArray[np.uint32],
    values: NDArray[np.float32],
    spaces: Bytes,
    buffer: Bytes,
) -> tuple[int, int, int]:
    """Parse a line from its first bar on; return a code, where the bad token begins, number of features."""
    prefix = 0
    scale = 1.0
    space = _SPACE
    i = start
    while i < end:
        if text[i] == _BAR:
            i += 1
            stop = _token_end(text, i, end)
            colon = _last_colon(text, i, stop)
            scale = 1.0
            if colon < stop:
                scale, number_end = parse_number(text, colon + 1)
                if number_end != stop or not np.isfinite(np.float32(scale)):
                    return _SCALE, i, n_entries
            space = text[i] if colon > i else _SPACE
            prefix = 0
            for k in range(i, colon):
                buffer[prefix] = text[k]
                prefix += 1
            buffer[prefix] = _CARET
            prefix += 1
            i = stop
        elif _is_blank(text[i]):
            i += 1
        else:
            stop = _token_end(text, i, end)
            colon = _last_colon(text, i, stop)
            value = 1.0
            name_end = colon
            if colon < stop:
                value, number_end = parse_number(text, colon + 1)
                # Text: a category, as if the whole were its name.
                if number_end != stop or (np.isnan(value) and not _names_no_number(text, colon + 1, stop)):
                    value = 1.0
                    name_end = stop
            value *= scale
            if not np.isfinite(np.float32(value)):
                return _VALUE, i, n_entries
            if colon == i:
                return _NAMELESS, i, n_entries
            size = prefix
            for k in range(i, name_end):
                buffer[size] = text[k]
                size += 1
            hashes[n_entries] = murmur3(buffer, size)
            values[n_entries] = value
            spaces[n_entries] = space
            n_entries += 1
            i = stop
    return _OK, 0, n_entries


@compiled
def _names_no_number(text: Bytes, begin: int, end: int) -> bool:
    """Return whether a text that begins as ``nan`` or ``inf`` does is just that, or ``infinity``."""
    if begin < end and (text[begin] == _PLUS or text[begin] == _MINUS):
        begin += 1
    return bool(end - begin == 3 or (end - begin == 8 and text[end - 1] | 32 == _Y))


@compiled
def count_pairs(starts: NDArray[np.int64], spaces: Bytes, pairs: Bytes) -> tuple[int, int]:
    """Return a row with too many pairs (-1: none), and a number that is no less than that of all pairs."""
    total = 0
    counts = np.zeros(256, np.int64)
    for row in range(starts.size - 1):
        for i in range(starts[row], starts[row + 1]):
            counts[spaces[i]] += 1
        n = starts[row + 1] - starts[row]
        for k in range(pairs.shape[0]):
            left = n if pairs[k, 0] == _COLON else counts[pairs[k, 0]]
            right = n if pairs[k, 1] == _COLON else counts[pairs[k, 1]]
            if left * right > MAX_ROW_PAIRS:
                return row, total
            total += left * right
        for i in range(starts[row], starts[row + 1]):
            counts[spaces[i]] = 0
    return -1, total


@compiled
def fill_pairs(
    starts: NDArray[np.int64],
    hashes: NDArray[np.uint32],
    values: NDArray[np.float32],
    spaces: Bytes,
    pairs: Bytes,
    out_lengths: NDArray[np.uint32],
    out_hashes: NDArray[np.uint32],
    out_values: NDArray[np.float32],
) -> int:
    """Write each row's features, and behind them its pairs; return the number of entries.

    Within one namespace each two features are paired once, and a feature with itself if its value is not 1.
    """
    n = 0
    bytes_of_pair = np.empty(8, np.uint8)
    chosen = np.empty(hashes.size, np.int64)
    for row in range(starts.size - 1):
        first = n
        for i in range(starts[row], starts[row + 1]):
            out_hashes[n] = hashes[i]
            out_values[n] = values[i]
            n += 1
        for k in range(pairs.shape[0]):
            a, b = pairs[k, 0], pairs[k, 1]
            n_chosen = 0
            for j in range(starts[row], starts[row + 1]):
                if b == _COLON or spaces[j] == b:
                    chosen[n_chosen] = j
                    n_chosen += 1
            for i in range(starts[row], starts[row + 1]):
                if n_chosen == 0 or (a != _COLON and spaces[i] != a):
                    continue
                for c in range(n_chosen):
                    j = chosen[c]
                    # The same two features the other way round, if the interaction has them too.
                    swapped = (a == _COLON or spaces[j] == a) and (b == _COLON or spaces[i] == b)
                    if swapped and (j < i or (j == i and values[i] == 1)):
                        continue
                    for byte in range(4):
                        bytes_of_pair[byte] = (hashes[i] >> np.uint32(8 * byte)) & np.uint32(255)
                        bytes_of_pair[4 + byte] = (hashes[j] >> np.uint32(8 * byte)) & np.uint32(255)
                    out_hashes[n] = murmur3(bytes_of_pair, 8)
                    out_values[n] = values[i] * values[j]
                    n += 1
        out_lengths[row] = n - first
    return n


@compiled
def _token_end(text: Bytes, i: int, end: int) -> int:
    while i < end and not _is_blank(text[i]) and text[i] != _BAR:
        i += 1
    return i


@compiled
def _last_colon(text: Bytes, i: int, stop: int) -> int:
    """Return where the last colon of a token is, or its end if there is none."""
    for k in range(stop - 1, i - 1, -1):
        if text[k] == _COLON:
            return k
    return stop


@compiled
def _skip(text: Bytes, i: int, end: int) -> int:
    while i < end and _is_blank(text[i]):
        i += 1
    return i


@compiled
def _is_blank(c: int) -> bool:
    return bool(c in (_SPACE, _TAB, _RETURN))
