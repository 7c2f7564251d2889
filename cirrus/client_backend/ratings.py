"""Ratings: lines of user, item, rating and perhaps a timestamp.

A row has two entries of value 1: its user, and behind all users its item. Users and items are numbered in
sorted order once all are known; until then each segment has numbers of its own.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from cirrus.chunks.vocabulary import MAX_ID_BYTES, Vocabulary, canonical_number
from cirrus.client_backend.csv_format import decode, reader_of
from cirrus.client_backend.csv_rows import narrows_whole_numbers
from cirrus.client_backend.load_formats import LoadFacts, LoadFormat, Outcome, Segment, SegmentReader
from cirrus.client_backend.rows import MAX_INDEX, NARROWED_LABEL, ParsedRows, Rows, SegmentFacts
from cirrus.errors import ConfigError, DataError

#: Columns that a line may have; without its rating, two are enough.
COLUMNS: tuple[int, ...] = (3, 4)
PAIR_COLUMNS = (2, *COLUMNS)
#: How much of a bad cell an error message shows.
SHOWN_CHARACTERS = 40
_USER, _ITEM, _RATING = range(3)


@dataclass(frozen=True, kw_only=True)
class RatingsFormat(LoadFormat):
    """Text of ratings."""

    sep: str = ","
    header: str = "infer"
    """Whether the first line of a file names the columns: ``yes``, ``no``, or if its rating is no number."""
    missing_rating: str = "error"
    """``error``, or ``zero``: lines may end behind the item, and what comes there is read over."""

    def __post_init__(self) -> None:
        """Check every field."""
        if not isinstance(self.sep, str) or not self.sep or set(self.sep) & set('"\r\n'):
            raise ConfigError("sep", f"must be one character or a few, such as '::', got {self.sep!r}")
        if self.header not in ("infer", "yes", "no"):
            raise ConfigError("header", f'must be "infer", True or False, got {self.header!r}')
        if self.missing_rating not in ("error", "zero"):
            raise ConfigError("missing_rating", f'must be "error" or "zero", got {self.missing_rating!r}')

    @property
    def quoted(self) -> bool:
        """See :attr:`LoadFormat.quoted`."""
        return len(self.sep) == 1

    @property
    def names(self) -> tuple[str, ...]:
        """See :attr:`LoadFormat.names`."""
        return ("users", "items")

    def reader(self, files: Sequence[str]) -> SegmentReader:
        """See :meth:`LoadFormat.reader`."""
        return _RatingsReader(files, self)

    def renumbered(self, rows: ParsedRows, numbers: Sequence[NDArray[np.int64]]) -> ParsedRows:
        """See :meth:`LoadFormat.renumbered`."""
        users, items = numbers
        pairs = rows.arrays[1].reshape(-1, 2)
        final = np.empty(pairs.shape, np.uint32)
        final[:, 0] = users[pairs[:, 0]]
        final[:, 1] = users[-1] + items[pairs[:, 1]]
        return Rows(np.full(len(pairs), 2, np.uint32), final.ravel(), None, rows.labels)

    def outcome(self, facts: LoadFacts, names: Sequence[Vocabulary]) -> Outcome:
        """See :meth:`LoadFormat.outcome`."""
        users, items = names
        n_features = len(users) + len(items)
        if n_features > MAX_INDEX:
            raise DataError(f"{len(users)} users and {len(items)} items are more than {MAX_INDEX}")
        return Outcome(
            n_features=n_features,
            encoding={
                "format": "ratings",
                "n_users": len(users),
                "n_items": len(items),
                "sep": self.sep,
                "header": self.header,
            },
            vocabularies={"users": users, "items": items},
        )


class _RatingsReader(SegmentReader):
    def __init__(self, files: Sequence[str], how: RatingsFormat) -> None:
        self._files = files
        self._how = how

    def read(self, segment: Segment) -> tuple[Rows, SegmentFacts, list[Vocabulary]]:
        """See :meth:`SegmentReader.read`."""
        return _RatingsText(self._files[segment.file], self._how, segment).rows()


class _RatingsText:
    """One segment of a file."""

    def __init__(self, name: str, how: RatingsFormat, segment: Segment) -> None:
        self._name = name
        self._sep = how.sep
        self._needs_ratings = how.missing_rating == "error"
        self._first_line = segment.first_line
        self._text = decode(segment.data, name, segment.first_line)
        self._n_skipped = 0
        self._table: list[list[str]] = []
        try:
            self._table = [cells for _, cells in self._lines()]
        except csv.Error as error:
            self._refuse_line(self._line_of_bad_csv(), f"is not proper CSV ({error}): correct the line")
        if segment.first_line == 1 and self._table and self._has_header(how.header):
            self._n_skipped = 1
            del self._table[0]

    def _lines(self) -> Iterator[tuple[int, list[str]]]:
        """Yield the cells of each line that is not blank, and the number of lines before it."""
        if len(self._sep) > 1:
            for number, line in enumerate(self._text.split("\n")):
                if line.strip():
                    yield number, line.split(self._sep)
            return
        reader = reader_of(self._text, self._sep)
        before = 0
        for cells in reader:
            if cells and (len(cells) > 1 or cells[0].strip()):
                yield before, cells
            before = reader.line_num

    def _line_of_bad_csv(self) -> int:
        reader = reader_of(self._text, self._sep)
        try:
            for _ in reader:
                pass
        except csv.Error:
            return max(int(reader.line_num) - 1, 0)
        raise AssertionError("what was no CSV has become some")

    def _has_header(self, header: str) -> bool:
        if header != "infer":
            return header == "yes"
        first = self._table[0]
        if len(first) in COLUMNS:
            return bool(first[_RATING].strip()) and _number(first[_RATING]) is None
        # Of lines without ratings names are told by the numbers below them.
        is_number = [[canonical_number(cell.strip()) is not None for cell in row] for row in self._table[:2]]
        return is_number == [[False, False], [True, True]]

    def rows(self) -> tuple[Rows, SegmentFacts, list[Vocabulary]]:
        """Return the rows, with numbers of this segment."""
        self._check_columns()
        n_rows = len(self._table)
        users, user_names = self._coded(_USER, "user")
        items, item_names = self._coded(_ITEM, "item")
        rows = Rows(
            lengths=np.full(n_rows, 2, np.uint32),
            indices=np.stack([users, items], axis=1).astype(np.uint32).ravel(),
            values=None,
            labels=self._ratings() if self._needs_ratings else np.zeros(n_rows, np.float32),
        )
        return rows, SegmentFacts(n_rows=n_rows), [user_names, item_names]

    def _check_columns(self) -> None:
        known, wanted = COLUMNS, "user, item, rating and perhaps a timestamp"
        if not self._needs_ratings:
            known, wanted = PAIR_COLUMNS, "user, item, and perhaps a rating and a timestamp"
        for number, cells in enumerate(self._table):
            if len(cells) not in known:
                found = "1 column" if len(cells) == 1 else f"{len(cells)} columns"
                advice = "correct the line, or say what separates columns with sep=..."
                self._refuse(number, f"has {found}, not {wanted}: {advice}")

    def _coded(self, column: int, kind: str) -> tuple[NDArray[np.intp], Vocabulary]:
        """Return numbers for the ids of a column, in the order in which they are met, and the ids."""
        cells = [row[column].strip() for row in self._table]
        numbers = {cell: number for number, cell in enumerate(dict.fromkeys(cells))}
        for cell in numbers:
            if not cell or "\0" in cell or len(cell) > MAX_ID_BYTES or len(cell.encode()) > MAX_ID_BYTES:
                problem = "there is none" if not cell else f"{_shown(cell)} is no id"
                self._refuse(cells.index(cell), f"{kind}: {problem}: ids have 1 to {MAX_ID_BYTES} bytes")
        values = [canonical_number(cell) for cell in numbers]
        whole = [value for value in values if value is not None]
        if len(whole) == len(values):
            names = Vocabulary(np.array(whole, np.int64))
        else:
            names = Vocabulary.of_text(list(numbers))
        return np.array([numbers[cell] for cell in cells], np.intp), names

    def _ratings(self) -> NDArray[np.float32]:
        ratings = [_number(row[_RATING]) for row in self._table]
        if None in ratings:
            bad = ratings.index(None)
            self._refuse(bad, f"rating {_shown(self._table[bad][_RATING])} is not a number: correct it")
        wide = np.array(ratings, np.float64)
        with np.errstate(over="ignore"):
            narrow = wide.astype(np.float32)
        for bad in np.flatnonzero(~np.isfinite(narrow)).tolist():
            self._refuse(bad, f"rating {_shown(self._table[bad][_RATING])} is not finite: correct it")
        for bad in np.flatnonzero(narrows_whole_numbers(wide, narrow)).tolist():
            cell = self._table[bad][_RATING].strip()
            if cell.lstrip("+-").isdigit():  # else a measured number, which is rounded as others are
                self._refuse(bad, f"rating {_shown(cell)} {NARROWED_LABEL}")
        return narrow

    def _refuse(self, row: int, problem: str) -> NoReturn:
        line, _ = next(itertools.islice(self._lines(), row + self._n_skipped, None))
        self._refuse_line(line, problem)

    def _refuse_line(self, before: int, problem: str) -> NoReturn:
        raise DataError(f"{self._name}:{self._first_line + before}: {problem}")


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _shown(cell: str) -> str:
    return repr(cell if len(cell) <= SHOWN_CHARACTERS else cell[:SHOWN_CHARACTERS] + "...")
