"""CSV text as sparse rows: numbers in columns of their own, categories hashed.

Column k < n_numeric is the k-th numeric column. The categories' text, as ``column=value``, is hashed by
MurmurHash3 into ``hash_features`` columns after these; so is ``column=missing`` for a cell without a value.
What was done is kept in the dataset's manifest (``CsvFormat.to_encoding``), so that later rows can be read
alike.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

import mmh3
import numpy as np
from numpy.typing import NDArray

from cirrus.chunks.vocabulary import MAX_ID_BYTES
from cirrus.client_backend.csv_format import CsvColumn, CsvFormat, decode, reader_of
from cirrus.client_backend.field_rows import NO_FEATURE, FieldRows
from cirrus.client_backend.rows import NARROWED_LABEL, SegmentFacts
from cirrus.errors import DataError

#: A column's cache of hashed categories is emptied when it has grown to this.
MAX_CACHED_CATEGORIES = 2**18
#: Labels that are text are classes; a column with more of them is hardly meant as one.
MAX_LABEL_NAMES = 1000
#: How much of a bad cell an error message shows.
SHOWN_CHARACTERS = 40


class LabelNames:
    """Numbers for labels that are text, in the order in which they are met.

    Args:
        known: Names that have their numbers; if there are any, there are no others.
    """

    def __init__(self, known: Iterable[str] = ()) -> None:
        self.names = list(known)
        self._fixed = bool(self.names)
        self._codes = {name: code for code, name in enumerate(self.names)}

    def take(self) -> list[str]:
        """Return the names met, in the order of their numbers, and forget them, unless they were known."""
        names = self.names
        if not self._fixed:
            self.names, self._codes = [], {}
        return names

    def code(self, name: str) -> int:
        """Return the number of a label, a new one if it was not met before.

        Raises:
            KeyError: There are no others than those known, and this is none of them.
        """
        if self._fixed:
            return self._codes[name]
        code = self._codes.setdefault(name, len(self.names))
        if code == len(self.names):
            self.names.append(name)
        return code


def is_label_name(text: str) -> bool:
    """Return whether a text can be the name of a class."""
    return bool(text) and "\0" not in text and len(text.encode()) <= MAX_ID_BYTES


def narrows_whole_numbers(labels: NDArray[np.float64], narrow: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return where a whole number is another one in float32; shape (n,)."""
    narrowed: NDArray[np.bool_] = (narrow != labels) & (np.floor(labels) == labels)
    return narrowed


class CsvParser:
    """Parses CSV text.

    Args:
        path: What to call the file in an error message.
        file_format: Which columns to take, and how.
        label_names: Where labels that are text get their numbers.
    """

    def __init__(self, path: str, file_format: CsvFormat, label_names: LabelNames) -> None:
        self._path = path
        self._format = file_format
        self._label_names = label_names
        self._missing = frozenset(file_format.na_values)
        first = len(file_format.numeric)
        columns = (*file_format.numeric, *file_format.categorical)
        self._hashed = {
            column.index: _HashedColumn(column.name, first, file_format.hash_features, self._missing)
            for column in columns
        }

    def parse(self, data: bytes, first_line: int) -> tuple[FieldRows, SegmentFacts]:
        """See :class:`~cirrus.client_backend.rows.Parser`."""
        text = decode(data, self._path, first_line)
        where = _Where(self._path, text, first_line, self._format)
        table, labels = self._labels(self._cells(text, where), where)
        n_numeric = len(self._format.numeric)
        columns = np.empty((len(table), n_numeric + len(self._format.categorical)), np.uint32)
        values = np.empty((len(table), n_numeric), np.float32)
        for k, column in enumerate(self._format.numeric):
            numbers, is_missing = self._numbers([row[column.index] for row in table], column, where)
            values[:, k] = np.where(is_missing, 1.0, numbers)
            columns[:, k] = np.where(values[:, k] == 0, NO_FEATURE, k)
            columns[is_missing, k] = self.missing_feature(column)
        for k, column in enumerate(self._format.categorical, start=n_numeric):
            hashed = self._hashed[column.index]
            columns[:, k] = [hashed[row[column.index]] for row in table]
            hashed.trim()
        return FieldRows(columns=columns, values=values, labels=labels), SegmentFacts(n_rows=len(table))

    def missing_feature(self, column: CsvColumn) -> int:
        """Return the feature of a cell without a value."""
        return self._hashed[column.index][""]

    def _cells(self, text: str, where: _Where) -> list[list[str]]:
        """Return the cells of each row that is not blank, without the header."""
        reader = reader_of(text, self._format.sep)
        try:
            table = [row for row in reader if row]
        except csv.Error as error:
            where.refuse_line(reader.line_num, f"is not proper CSV ({error}): correct the line")
        del table[: where.n_skipped]
        n_columns = self._format.n_columns
        for number, row in enumerate(table):
            if len(row) != n_columns:
                found = f"has {len(row)} columns, the first line has {n_columns}"
                where.refuse(number, f"{found}: correct the line, or say what separates columns with sep=...")
        return table

    def _labels(self, table: list[list[str]], where: _Where) -> tuple[list[list[str]], NDArray[np.float32]]:
        """Return the rows that have a label, and the labels."""
        column = self._format.label
        if column is None:
            return table, np.zeros(len(table), np.float32)
        cells = [row[column.index].strip() for row in table]
        if not self._missing.isdisjoint(cells):
            if not self._format.drop_missing_labels:
                number = next(i for i, cell in enumerate(cells) if cell in self._missing)
                where.refuse(
                    number, f'{column.name}: there is no label: correct the line, or use missing_label="drop"'
                )
            kept = [i for i, cell in enumerate(cells) if cell not in self._missing]
            where.keep(kept)
            table, cells = [table[i] for i in kept], [cells[i] for i in kept]
        if self._format.text_labels:
            return table, self._text_labels(cells, column, where)
        numbers, _ = self._numbers(cells, column, where)
        if self._format.label_above is not None:
            return table, (numbers > self._format.label_above).astype(np.float32)
        narrow = numbers.astype(np.float32)
        for i in np.flatnonzero(narrows_whole_numbers(numbers, narrow)).tolist():
            if not cells[i].lstrip("+-").isdigit():
                continue  # with a point or an exponent: a measured number, which is rounded as others are
            where.refuse(i, f"{column.name}: label {_shown(cells[i])} {NARROWED_LABEL}")
        return table, narrow

    def _text_labels(self, cells: list[str], column: CsvColumn, where: _Where) -> NDArray[np.float32]:
        codes = []
        for i, cell in enumerate(cells):
            if not is_label_name(cell):
                where.refuse(
                    i, f"{column.name}: {_shown(cell)} is no name: 1 to {MAX_ID_BYTES} bytes of text"
                )
            try:
                codes.append(self._label_names.code(cell))
            except KeyError:
                known = ", ".join(self._label_names.names)
                where.refuse(i, f"{column.name}: label {_shown(cell)} is unknown; known are {known}")
            if len(self._label_names.names) > MAX_LABEL_NAMES:
                problem = f"has more than {MAX_LABEL_NAMES} different labels"
                where.refuse(i, f"{column.name}: {problem}: name the right column, or use numbers")
        return np.array(codes, np.float32)

    def _numbers(
        self, cells: Sequence[str], column: CsvColumn, where: _Where
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Return a column's numbers, 0 where there is none, and where that is."""
        cells = [cell.strip() for cell in cells]
        # Also what reads as a number can stand for none, such as -999.
        is_missing = np.array([cell in self._missing for cell in cells], np.bool_)
        numbers = np.zeros(len(cells))
        for i in np.flatnonzero(~is_missing).tolist():
            try:
                numbers[i] = float(cells[i])
            except ValueError:
                remedy = "correct it, or add it to na_values"
                where.refuse(i, f"{column.name}: {_shown(cells[i])} is not a number: {remedy}")
        with np.errstate(over="ignore"):
            is_strange = ~np.isfinite(numbers.astype(np.float32))
        for i in np.flatnonzero(is_strange).tolist():
            if cells[i].strip() not in self._missing:
                where.refuse(i, f"{column.name}: {_shown(cells[i])} is not finite in float32: correct it")
        numbers[is_strange] = 0.0
        return numbers, is_missing | is_strange


class _HashedColumn(dict[str, int]):
    """Columns of a field's categories, hashed when they are met first."""

    def __init__(self, name: str, first: int, hash_features: int, missing: frozenset[str]) -> None:
        super().__init__()
        self._name = name
        self._first = first
        self._hash_features = hash_features
        self._missing_values = missing

    def __missing__(self, cell: str) -> int:
        value = cell.strip()
        if not value or value in self._missing_values:
            value = "missing"
        hashed: int = mmh3.hash(f"{self._name}={value}", signed=False)
        column = self[cell] = self._first + hashed % self._hash_features
        return column

    def trim(self) -> None:
        """Forget everything when there is too much of it."""
        if len(self) > MAX_CACHED_CATEGORIES:
            self.clear()


class _Where:
    """Knows which line a row of a segment is on; finds out only when there is an error to report."""

    def __init__(self, path: str, text: str, first_line: int, file_format: CsvFormat) -> None:
        self._path = path
        self._text = text
        self._first_line = first_line
        self._format = file_format
        self._kept: list[int] | None = None

    @property
    def n_skipped(self) -> int:
        """Rows before the first one: the header."""
        return int(self._first_line == 1 and self._format.has_header)

    def keep(self, kept: list[int]) -> None:
        """Note that from now on rows are numbered among these."""
        self._kept = kept

    def refuse_line(self, line: int, problem: str) -> NoReturn:
        """Raise a DataError about a line of the segment, counted from 1."""
        raise DataError(f"{self._path}:{self._first_line + line - 1}: {problem}")

    def refuse(self, row: int, problem: str) -> NoReturn:
        """Raise a DataError about a row."""
        row = self.n_skipped + (row if self._kept is None else self._kept[row])
        reader = reader_of(self._text, self._format.sep)
        begins = []
        end = 0
        for cells in reader:
            if cells:
                begins.append(end)
            if len(begins) > row:
                break
            end = reader.line_num
        self.refuse_line(begins[row] + 1, problem)


def _shown(cell: str) -> str:
    return repr(cell if len(cell) <= SHOWN_CHARACTERS else cell[:SHOWN_CHARACTERS] + "...")


def missing_features(encoding: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the features of rows without a value in each of the numeric columns of a loaded CSV file.

    Another category may by chance be hashed to the same feature.

    Args:
        encoding: Of a dataset's manifest. Of any other than that of a CSV file as it was loaded: none.
    """
    if encoding.get("format") != "csv" or encoding.get("preprocessing"):
        return ()
    file_format = CsvFormat.from_encoding(encoding)
    parser = CsvParser("", file_format, LabelNames())
    return tuple(parser.missing_feature(column) for column in file_format.numeric)
