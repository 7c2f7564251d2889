"""Parquet files, read as if they were CSV: the same columns, the same hashing, the same rows.

Batches of rows become CSV text, which goes the way of all CSV. What is read of a file is what is used of
it: its footer, and the columns that were named.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cirrus.client_backend.csv_format import SAMPLE_ROWS, CsvColumn, CsvFormat, CsvRequest, find_column
from cirrus.client_backend.segments import InputFile, Place, Segment, open_file
from cirrus.errors import CirrusError, ConfigError, DataError

#: Rows of a segment.
BATCH_ROWS = 2**15


@dataclass(frozen=True)
class ParquetSource:
    """Yields the segments of Parquet files, as CSV.

    Attributes:
        columns: What is read, in this order.
        numbers: Those of them that are numbers, or the label.
    """

    columns: tuple[str, ...]
    numbers: frozenset[str]
    batch_rows: int = BATCH_ROWS

    def segments(self, file: InputFile, start: Place) -> Iterator[Segment]:
        """Yield the segments of a file from a place on; lines are rows, counted from 1.

        Raises:
            ConfigError: pyarrow is not installed.
            DataError: It is no Parquet file, is damaged, lacks a column, or has one that is no column of
                cells.
            StorageError: The file cannot be read.
        """
        with _opened(file) as table:
            self._check(file, table.schema_arrow)
            n_rows = max(table.metadata.num_rows, 1)
            number = row = 0
            for group in range(table.metadata.num_row_groups):
                in_group = table.metadata.row_group(group).num_rows
                n_batches = -(-in_group // self.batch_rows)
                if number + n_batches <= start.number:
                    number += n_batches
                    row += in_group
                    continue
                for batch in table.iter_batches(
                    self.batch_rows, row_groups=[group], columns=list(self.columns), use_threads=False
                ):
                    if number >= start.number:
                        done = file.n_bytes * (row + batch.num_rows) // n_rows
                        yield Segment(number, row + 1, self.text(batch), min(done, file.n_bytes), row)
                    number += 1
                    row += batch.num_rows

    def _check(self, file: InputFile, schema: Any) -> None:
        import pyarrow as pa

        for name in self.columns:
            index = find_column(name, "used", schema.names, file.name).index
            if pa.types.is_nested(schema.field(index).type):
                raise DataError(f"{file.name}: column {name!r} holds {schema.field(index).type}, not cells")

    def text(self, batch: Any) -> bytes:
        """Return a batch of rows as CSV without a header."""
        import pyarrow as pa
        import pyarrow.csv

        columns = [self._cells(batch.column(name), name) for name in self.columns]
        # A blank line is no row: where it is all there would be of one, what is missing is quoted.
        blank = len(columns) == 1 and _has_blanks(columns[0])
        if blank:
            columns = [columns[0].cast(pa.string()).fill_null("")]
        table = pa.table(columns, names=list(self.columns))
        # Text that needs no quotation marks is parsed many times faster.
        for quoting in ("all_valid",) if blank else ("none", "needed"):
            out = io.BytesIO()
            options = pa.csv.WriteOptions(include_header=False, quoting_style=quoting)
            try:
                pa.csv.write_csv(table, out, options)
            except pa.ArrowInvalid:
                if quoting != "none":
                    raise
                continue
            return out.getvalue()
        raise AssertionError("unreachable")

    def _cells(self, column: Any, name: str) -> Any:
        import pyarrow as pa

        kind = column.type
        if pa.types.is_dictionary(kind):
            column, kind = column.cast(kind.value_type), kind.value_type
        if pa.types.is_boolean(kind) and name in self.numbers:
            return column.cast(pa.int8())
        if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
            return column.cast(pa.float32()) if kind == pa.float16() else column
        return column.cast(pa.string())


def _has_blanks(column: Any) -> bool:
    """Return whether a cell would be written as nothing or as blanks."""
    import pyarrow as pa
    import pyarrow.compute

    if column.null_count or not pa.types.is_string(column.type):
        return bool(column.null_count)
    return bool(pa.compute.any(pa.compute.equal(pa.compute.utf8_trim_whitespace(column), "")).as_py())


def find_parquet_format(request: CsvRequest, files: Sequence[InputFile]) -> tuple[CsvFormat, ParquetSource]:
    """Find columns in Parquet files.

    Args:
        request: Which columns to take, and how.
        files: All of them have these columns.

    Raises:
        ConfigError: pyarrow is not installed.
        DataError: The first file has no such columns, or is no Parquet file.
        StorageError: It cannot be read.
    """
    first = files[0]
    with _opened(first) as table:
        names = table.schema_arrow.names

        def found(column: str | int, role: str) -> str:
            name = find_column(column, role, names, first.name).name
            return find_column(name, role, names, first.name).name  # which must be the only one of that name

        label = None if request.label is None else found(request.label, "label")
        numeric = tuple(found(column, "numeric") for column in request.numeric)
        categorical = tuple(found(column, "categorical") for column in request.categorical)
        used = dict.fromkeys((*(() if label is None else (label,)), *numeric, *categorical))
        source = ParquetSource(tuple(used), frozenset((label, *numeric)) - {None})  # type: ignore[arg-type]
        head = _header(source.columns)
        sample = dataclasses.replace(source, batch_rows=SAMPLE_ROWS)
    for segment in sample.segments(first, Place()):
        head += segment.data
        break
    request = dataclasses.replace(
        request, label=label, numeric=numeric, categorical=categorical, sep=",", header=True
    )
    return request.resolve(first.name, head), source


def fit_parquet_format(
    like: CsvFormat, files: Sequence[InputFile], *, with_labels: bool
) -> tuple[CsvFormat, ParquetSource]:
    """Find the columns of another table in Parquet files; see :meth:`CsvFormat.fit_to`."""
    first = files[0]
    with _opened(first) as table:
        names = table.schema_arrow.names
    fitted = dataclasses.replace(like, sep=",").fit_to(first.name, _header(names), with_labels=with_labels)
    label = () if fitted.label is None else (fitted.label,)
    used = tuple(dict.fromkeys(names[c.index] for c in (*label, *fitted.numeric, *fitted.categorical)))
    source = ParquetSource(used, frozenset(names[c.index] for c in (*label, *fitted.numeric)))

    def moved(column: CsvColumn) -> CsvColumn:
        return dataclasses.replace(column, index=used.index(names[column.index]))

    return (
        dataclasses.replace(
            fitted,
            n_columns=len(used),
            label=None if fitted.label is None else moved(fitted.label),
            numeric=tuple(moved(column) for column in fitted.numeric),
            categorical=tuple(moved(column) for column in fitted.categorical),
        ),
        source,
    )


def _header(names: Sequence[str]) -> bytes:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(names)
    return out.getvalue().encode()


@contextlib.contextmanager
def _opened(file: InputFile) -> Iterator[Any]:
    """Open a Parquet file, and translate what reading it raises."""
    try:
        import pyarrow as pa
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError("load_parquet", "needs pyarrow: pip install 'cirrus-ml[parquet]'") from error
    try:
        with open_file(file) as stream, pa.parquet.ParquetFile(stream) as table:
            yield table
    except CirrusError:
        raise
    except (pa.ArrowException, OSError, ValueError, MemoryError, OverflowError) as error:
        problem = str(error).split("\n", 1)[0][:200]
        raise DataError(
            f"{file.name}: is no Parquet file, or is damaged ({problem}): write it again"
        ) from error
