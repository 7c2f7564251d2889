"""CSV text as sparse rows, fast: plain text goes through compiled kernels, everything else through Python.

Both read the same rows; which one was taken can be told by the clock alone. Python reads segments with
quotation marks or other characters than ASCII, and those with something wrong in them, to say what it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from cirrus.client_backend import csv_kernels as kernels
from cirrus.client_backend.csv_format import CsvFormat
from cirrus.client_backend.csv_rows import (
    MAX_LABEL_NAMES,
    CsvParser,
    LabelNames,
    is_label_name,
    narrows_whole_numbers,
)
from cirrus.client_backend.field_rows import NO_FEATURE, FieldRows
from cirrus.client_backend.rows import ParsedRows, SegmentFacts
from cirrus.client_backend.segments import count_lines


class FastCsvParser:
    """Parses CSV text: see :class:`CsvParser`, which takes over where this one gives up.

    Args:
        path: What to call the file in an error message.
        file_format: Which columns to take, and how.
        label_names: Where labels that are text get their numbers.
    """

    def __init__(self, path: str, file_format: CsvFormat, label_names: LabelNames) -> None:
        self._slow = CsvParser(path, file_format, label_names)
        self._format = file_format
        used = (*file_format.numeric, *file_format.categorical)
        n_numeric = len(file_format.numeric)
        prefixes = [f"{column.name}=".encode() for column in used]
        begun = [kernels.begin_hash(np.frombuffer(prefix, np.uint8)) for prefix in prefixes]
        self._fields = kernels.Fields(
            n_numeric=n_numeric,
            hash_features=file_format.hash_features,
            columns=np.array([column.index for column in used], np.int64),
            missing=np.array([self._slow.missing_feature(column) for column in used], np.uint32),
            hashes=np.array([state for state, _ in begun], np.uint32),
            carried=np.array([carried for _, carried in begun], np.uint32),
            sizes=np.array([len(prefix) for prefix in prefixes], np.int64),
        )
        self._missing = _missing(file_format.na_values)
        self._label_column = -1 if file_format.label is None else file_format.label.index
        self._label_names = label_names
        self._is_simple = file_format.sep.isascii()

    def parse(self, data: bytes, first_line: int) -> tuple[ParsedRows, SegmentFacts]:
        """See :class:`~cirrus.client_backend.rows.Parser`."""
        rows = self._fast(data, first_line) if self._is_simple else None
        if rows is None:
            return self._slow.parse(data, first_line)
        return rows, SegmentFacts(n_rows=rows.n_rows)

    def _fast(self, data: bytes, first_line: int) -> FieldRows | None:
        """Return the rows, or None if this is nothing for the kernels."""
        if b'"' in data or not data.isascii():
            return None
        n_lines = count_lines(data) + 1
        n_numeric = self._fields.n_numeric
        columns = np.empty((n_lines, self._fields.columns.size), np.uint32)
        values = np.empty((n_lines, n_numeric), np.float32)
        labels = np.zeros(n_lines)
        label_cells = np.empty((n_lines, 2), np.int64)
        hard = np.empty((n_lines * n_numeric, 4), np.int64)
        n_rows, n_hard = kernels.read_rows(
            np.frombuffer(data, np.uint8),
            ord(self._format.sep),
            self._format.n_columns,
            int(first_line == 1 and self._format.has_header),
            self._label_column,
            self._fields,
            self._missing,
            columns,
            values,
            labels,
            label_cells,
            hard,
        )
        if n_rows < 0 or not _read_hard(data, hard[:n_hard], columns, values):
            return None
        columns, values, labels = columns[:n_rows], values[:n_rows], labels[:n_rows]
        if self._format.label is not None and self._format.text_labels:
            labels = self._codes(data, label_cells[:n_rows])
        if self._format.label_above is None:
            narrow = labels.astype(np.float32)
            if narrows_whole_numbers(labels, narrow).any():
                return None  # for Python to name the line
        else:
            narrow = np.where(np.isnan(labels), np.nan, labels > self._format.label_above).astype(np.float32)
        # Labels that are missing or unusual, and values too large for float32, are for Python to judge.
        if not np.isfinite(narrow).all() or not np.isfinite(values).all():
            return None
        return FieldRows(columns=columns, values=values, labels=narrow)

    def _codes(self, data: bytes, cells: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the numbers of labels that are text, NaN for those that Python has to judge."""
        known: dict[bytes, float] = {}
        codes = []
        for begin, end in cells.tolist():
            label = data[begin:end]
            code = known.get(label)
            if code is None:
                code = known[label] = self._code(label.decode())
            codes.append(code)
        return np.array(codes, np.float64)

    def _code(self, label: str) -> float:
        names = self._label_names
        if label in self._format.na_values or not is_label_name(label) or len(names.names) >= MAX_LABEL_NAMES:
            return math.nan
        try:
            return names.code(label)
        except KeyError:
            return math.nan


def _read_hard(
    data: bytes, hard: NDArray[np.int64], columns: NDArray[np.uint32], values: NDArray[np.float32]
) -> bool:
    """Put in the numbers of cells that are more than a few digits; return whether they all are numbers."""
    for row, k, begin, end in hard.tolist():
        try:
            number = float(data[begin:end])
        except ValueError:
            return False
        with np.errstate(over="ignore"):
            values[row, k] = number
        columns[row, k] = k if values[row, k] else NO_FEATURE
    return True


def _missing(na_values: Iterable[str]) -> kernels.Missing:
    text, starts = _packed(sorted(filter(None, set(na_values))))
    first_bytes = np.zeros(256, np.bool_)
    first_bytes[text[starts[:-1]]] = True
    return kernels.Missing(text=text, starts=starts, first_bytes=first_bytes, empty="" in set(na_values))


def _packed(texts: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return texts as bytes, one after the other, and where each begins and the last one ends."""
    parts = [text.encode() for text in texts]
    starts = np.zeros(len(parts) + 1, np.int64)
    np.cumsum([len(part) for part in parts], out=starts[1:])
    return np.frombuffer(b"".join(parts), np.uint8), starts
