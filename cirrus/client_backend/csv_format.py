"""Which columns of a CSV file to take, and how: found out from its first rows, and kept in the dataset."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import math
import numbers
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cirrus.config import from_plain
from cirrus.errors import ConfigError, DataError

#: Text in place of a number or a category that says that there is none.
NA_VALUES = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None")
#: Rows that are looked at to find out what a file holds.
SAMPLE_ROWS = 1000


@dataclass(frozen=True, kw_only=True)
class CsvColumn:
    """A column that is used."""

    index: int
    name: str
    """From the header, or ``"column 3"``."""


@dataclass(frozen=True, kw_only=True)
class CsvFormat:
    """How to read a CSV file."""

    n_columns: int
    """Cells that every row must have."""
    has_header: bool
    label: CsvColumn | None
    """None: rows get the label 0."""
    numeric: tuple[CsvColumn, ...]
    categorical: tuple[CsvColumn, ...]
    sep: str = ","
    hash_features: int = 2**20
    label_above: float | None = None
    """The label is 1 where the label's cell is above this, else 0."""
    text_labels: bool = False
    """Labels are names of classes; else numbers."""
    drop_missing_labels: bool = False
    na_values: tuple[str, ...] = NA_VALUES

    @property
    def n_features(self) -> int:
        """Columns of the sparse rows."""
        return len(self.numeric) + self.hash_features

    def fit_to(self, path: str, first_lines: bytes, *, with_labels: bool) -> CsvFormat:
        """Find the same columns in another file, which may have them in another order.

        Args:
            path: What to call the file in an error message.
            first_lines: Its beginning, in whole lines.
            with_labels: Read its labels; otherwise they may be missing.

        Raises:
            DataError: The file has no such columns, or no rows.
        """
        first = next(_rows(path, first_lines, self.sep), None)
        if first is None:
            raise DataError(f"{path}: is empty: there are no rows to load")
        names = [cell.strip() for cell in first]
        # Without names, a file with one column less is taken for one without the label.
        lacks_label = (
            not self.has_header
            and self.label is not None
            and len(first) == self.n_columns - 1
            and not with_labels
        )

        def place(column: CsvColumn, role: str) -> CsvColumn:
            if self.has_header:
                return find_column(column.name, role, names, path)
            gone = int(lacks_label and self.label is not None and column.index > self.label.index)
            index = find_column(column.index - gone, role, names, path).index
            return dataclasses.replace(column, index=index)

        return dataclasses.replace(
            self,
            n_columns=len(first),
            label=place(self.label, "label") if with_labels and self.label is not None else None,
            numeric=tuple(place(column, "numeric") for column in self.numeric),
            categorical=tuple(place(column, "categorical") for column in self.categorical),
        )

    def to_encoding(self) -> dict[str, Any]:
        """Return what a manifest keeps."""
        return {"format": "csv", "csv": dataclasses.asdict(self)}

    @classmethod
    def from_encoding(cls, encoding: Mapping[str, Any]) -> CsvFormat:
        """Read what :meth:`to_encoding` gave, also after it has been JSON.

        Raises:
            ConfigError: It is not the encoding of a CSV file.
        """
        if encoding.get("format") != "csv" or "csv" not in encoding:
            raise ConfigError("encoding", "is not that of a dataset that was loaded from CSV")
        raw = dict(encoding["csv"])
        for name in ("numeric", "categorical", "na_values"):
            raw[name] = list(raw.get(name, ()))
        return from_plain(cls, raw, "encoding")


@dataclass(frozen=True, kw_only=True)
class CsvRequest:
    """What the user asked for: columns by name or by number from 0."""

    label: str | int | None
    numeric: tuple[str | int, ...]
    categorical: tuple[str | int, ...]
    sep: str = ","
    hash_features: int = 2**20
    header: str | bool = "infer"
    label_above: float | None = None
    missing_label: str = "error"
    na_values: tuple[str, ...] = NA_VALUES

    def __post_init__(self) -> None:
        """Check what can be checked without the file."""
        if not isinstance(self.sep, str) or len(self.sep) != 1:
            raise ConfigError("sep", f"must be one character, got {self.sep!r}")
        if self.sep in '"\r\n':
            raise ConfigError("sep", f"cannot be {self.sep!r}, which quotes a cell or ends a line")
        if self.header not in ("infer", True, False):
            raise ConfigError("header", f'must be "infer", True or False, got {self.header!r}')
        if self.missing_label not in ("error", "drop"):
            raise ConfigError("missing_label", f'must be "error" or "drop", got {self.missing_label!r}')
        above = self.label_above
        is_number = isinstance(above, numbers.Real) and not isinstance(above, bool) and math.isfinite(above)
        if above is not None and not is_number:
            raise ConfigError("label_above", f"must be a finite number, got {above!r}")
        if above is not None and self.label is None:
            raise ConfigError("label_above", "must be None where there is no label")
        if not 1 <= self.hash_features < 2**32 - 2**16:
            most = 2**32 - 2**16
            raise ConfigError(
                "hash_features", f"must be from 1 to below {most:,}, got {self.hash_features!r}"
            )
        if not self.numeric and not self.categorical:
            raise ConfigError("categorical", "name at least one column as numeric or categorical")
        if self.header is False and any(isinstance(c, str) for c in self._columns()):
            raise ConfigError("header", "must not be False when columns are given by name")

    def _columns(self) -> tuple[str | int, ...]:
        label = () if self.label is None else (self.label,)
        return (*label, *self.numeric, *self.categorical)

    def resolve(self, path: str, first_lines: bytes) -> CsvFormat:
        """Find the columns in a file.

        Args:
            path: What to call the file in an error message.
            first_lines: Its beginning, in whole lines.

        Raises:
            DataError: The file has no such columns, or no rows.
        """
        rows = list(itertools.islice(_rows(path, first_lines, self.sep), SAMPLE_ROWS))
        if not rows:
            raise DataError(f"{path}: is empty: there are no rows to load")
        first = rows[0]
        has_header = self._has_header(rows)
        names = [cell.strip() for cell in first] if has_header else [f"column {i}" for i in range(len(first))]

        def find(column: str | int, role: str) -> CsvColumn:
            return find_column(column, role, names, path)

        label = None if self.label is None else find(self.label, "label")
        text_labels = False
        if label is not None and self.label_above is None:
            cells = [row[label.index].strip() for row in rows[has_header:] if len(row) > label.index]
            known = [cell for cell in cells if cell not in self.na_values]
            # One number among them makes it a column of numbers, and what is no number an error.
            text_labels = bool(known) and not any(_is_number(cell) for cell in known)
        numeric = tuple(find(column, "numeric") for column in self.numeric)
        categorical = tuple(find(column, "categorical") for column in self.categorical)
        if label is not None and label in (*numeric, *categorical):
            raise ConfigError("label", f"column {label.name!r} is the label and cannot be a feature too")
        for role, columns in (("numeric", numeric), ("categorical", categorical)):
            if twice := next((c for k, c in enumerate(columns) if c in columns[:k]), None):
                raise ConfigError(role, f"column {twice.name!r} is named twice: name it once")
        return CsvFormat(
            n_columns=len(first),
            has_header=has_header,
            label=label,
            numeric=numeric,
            categorical=categorical,
            sep=self.sep,
            hash_features=self.hash_features,
            label_above=self.label_above,
            text_labels=text_labels,
            drop_missing_labels=self.missing_label == "drop",
            na_values=self.na_values,
        )

    def _has_header(self, rows: list[list[str]]) -> bool:
        """Return whether the first row holds names: always so, if the user uses one."""
        if isinstance(self.header, bool):
            return self.header
        if any(isinstance(column, str) for column in self._columns()):
            return True
        numbers = [*self.numeric, *(() if self.label is None else (self.label,))]
        indices = [i for i in numbers if isinstance(i, int) and i < min(len(row) for row in rows[:2])]
        return len(rows) > 1 and any(_is_text(rows[0][i], self) and _is_number(rows[1][i]) for i in indices)


def _rows(path: str, data: bytes, sep: str) -> Iterator[list[str]]:
    text = decode(data, path, 1)
    reader = reader_of(text, sep)
    try:
        yield from (row for row in reader if row)
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: is not proper CSV ({error}): correct the line") from error


def find_column(column: str | int, role: str, names: Sequence[str], path: str) -> CsvColumn:
    """Return a column of a file by its name or number.

    Args:
        column: Its name, or its number from 0.
        role: What it is wanted for.
        names: Of all columns.
        path: What to call the file in an error message.

    Raises:
        DataError: There is none, or several of that name.
    """
    if isinstance(column, str):
        if column not in names:
            raise DataError(f"{path}:1: has no column {column!r} ({role}); it has {', '.join(names)}")
        if names.count(column) > 1:
            raise DataError(f"{path}:1: has several columns {column!r}: give its number (from 0)")
        return CsvColumn(index=names.index(column), name=column)
    if not 0 <= column < len(names):
        raise DataError(f"{path}:1: has no column {column} ({role}), only those from 0 to {len(names) - 1}")
    return CsvColumn(index=column, name=names[column])


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _is_text(cell: str, request: CsvRequest) -> bool:
    return cell.strip() not in request.na_values and not _is_number(cell)


def decode(data: bytes, path: str, first_line: int) -> str:
    """Return a segment as text.

    Raises:
        DataError: It is not UTF-8.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = first_line + data.count(b"\n", 0, error.start)
        raise DataError(f"{path}:{line}: is not UTF-8 text ({error.reason}): convert the file") from error


def reader_of(text: str, sep: str) -> Any:
    """Return a ``csv.reader`` of text; it knows ``line_num``."""
    return csv.reader(io.StringIO(text, newline=""), delimiter=sep, strict=True)
