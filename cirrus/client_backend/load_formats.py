"""The formats that can be loaded: how a segment is read, and what comes of it all.

Each format is a frozen description that travels to the workers of a load as JSON. Its methods are pure but
for :meth:`LoadFormat.reader`, which makes what a worker parses with.
"""

from __future__ import annotations

import abc
import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cirrus.chunks.vocabulary import Vocabulary
from cirrus.client_backend.csv_format import CsvFormat
from cirrus.client_backend.csv_rows import CsvParser, LabelNames
from cirrus.client_backend.loops import ARE_COMPILED
from cirrus.client_backend.rows import MAX_INDEX, ParsedRows, Parser, SegmentFacts
from cirrus.client_backend.segments import Cut
from cirrus.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A segment to be parsed, and where it is from."""

    file: int
    """Number of the file among all that are loaded."""
    number: int
    """Of the segment in its file."""
    first_line: int
    data: bytes
    csv: CsvFormat | None = None
    """Where this file is written in another way than the first one."""


@dataclass(kw_only=True)
class LoadFacts:
    """What is known once everything is read."""

    files: Sequence[str]
    """Names of the files."""
    n_rows: int = 0
    lowest_index: int = MAX_INDEX
    highest_index: int = -1
    limit_lines: dict[int, int] = field(default_factory=dict)
    """For a file, the first line with an index equal to ``n_features``, if there is one."""
    n_entries: Counter[int] = field(default_factory=Counter)
    """Entries of each file, as it writes them."""
    groups: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)
    """For a file and the first line of a segment, its first and last group of lines, where there are such."""

    def add(self, file: int, first_line: int, facts: SegmentFacts) -> None:
        """Take note of a segment."""
        if facts.first_group:
            self.groups[file, first_line] = (facts.first_group, facts.last_group)
        self.n_rows += facts.n_rows
        self.lowest_index = min(self.lowest_index, facts.lowest_index)
        self.highest_index = max(self.highest_index, facts.highest_index)
        if facts.limit_line:
            self.limit_lines[file] = min(self.limit_lines.get(file, facts.limit_line), facts.limit_line)
        self.n_entries[file] += facts.n_entries


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a manifest says because of the format."""

    n_features: int
    encoding: Mapping[str, Any]
    label_names: tuple[str, ...] | None = None
    vocabularies: Mapping[str, Vocabulary] = field(default_factory=dict)


class SegmentReader(abc.ABC):
    """Parses the segments of a load, in one worker."""

    @abc.abstractmethod
    def read(self, segment: Segment) -> tuple[ParsedRows, SegmentFacts, list[Vocabulary]]:
        """Parse a segment.

        Returns:
            Its rows; what is to be known of it; and, for each of the format's ``names``, what the numbers in
            these rows stand for.

        Raises:
            DataError: Something is wrong with a line.
        """


class LoadFormat(abc.ABC):
    """How files are written."""

    @property
    def quoted(self) -> bool:
        """Whether line ends between quotation marks do not end a line."""
        return False

    @property
    def cut(self) -> Cut | None:
        """How much of a text can be parsed by itself, where that is not whole lines."""
        return None

    @property
    def names(self) -> tuple[str, ...]:
        """What gets its numbers only when everything is read: each segment has numbers of its own before."""
        return ()

    @abc.abstractmethod
    def reader(self, files: Sequence[str]) -> SegmentReader:
        """Return what a worker parses with."""

    def renumbered(self, rows: ParsedRows, numbers: Sequence[NDArray[np.int64]]) -> ParsedRows:
        """Give rows their final numbers.

        Args:
            rows: With a segment's own numbers.
            numbers: For each of ``names``, the final number of each of these; and the last entry, how many
                there are.
        """
        raise NotImplementedError

    def base(self, facts: LoadFacts) -> int:
        """Return the number of the first feature in the files."""
        return 0

    def check(self, facts: LoadFacts) -> None:
        """Check what can be known only when everything is read.

        Raises:
            DataError: The files do not fit together.
        """
        return

    @abc.abstractmethod
    def outcome(self, facts: LoadFacts, names: Sequence[Vocabulary]) -> Outcome:
        """Return what the manifest says.

        Args:
            facts: Of all files.
            names: For each of ``names``, all that there are, sorted.
        """


class ParserReader(SegmentReader):
    """Reads with one :class:`Parser` a file, where nothing has to be numbered."""

    def __init__(self, files: Sequence[str]) -> None:
        self._files = files
        self._parsers: dict[int, Parser] = {}

    def read(self, segment: Segment) -> tuple[ParsedRows, SegmentFacts, list[Vocabulary]]:
        """See :meth:`SegmentReader.read`."""
        parser = self._parsers.get(segment.file)
        if parser is None:
            parser = self._parsers[segment.file] = self.make_parser(self._files[segment.file], segment)
        rows, facts = parser.parse(segment.data, segment.first_line)
        return rows, facts, self.take_names()

    @abc.abstractmethod
    def make_parser(self, name: str, segment: Segment) -> Parser:
        """Return the parser of a file.

        Args:
            name: What to call the file in an error message.
            segment: The first segment that is read of it.
        """

    def take_names(self) -> list[Vocabulary]:
        """Return what the numbers in the last segment's rows stand for."""
        return []


@dataclass(frozen=True, kw_only=True)
class SvmlightFormat(LoadFormat):
    """Lines of ``LABEL INDEX:VALUE ...``."""

    n_features: int | None = None
    zero_based: bool | None = None
    """None: 0 if 0 occurs anywhere, else 1."""

    def __post_init__(self) -> None:
        """Check every field."""
        n = self.n_features
        if n is not None and not 1 <= n <= MAX_INDEX:
            raise ConfigError("n_features", f"must be a whole number >= 1 or None, got {n!r}")

    def reader(self, files: Sequence[str]) -> SegmentReader:
        """See :meth:`LoadFormat.reader`."""
        return _SvmlightReader(files, self)

    def base(self, facts: LoadFacts) -> int:
        """See :meth:`LoadFormat.base`."""
        if self.zero_based is not None:
            return 0 if self.zero_based else 1
        return 0 if facts.lowest_index == 0 else 1

    def check(self, facts: LoadFacts) -> None:
        """See :meth:`LoadFormat.check`."""
        if self.base(facts) == 0 and facts.limit_lines:
            file, line = min(facts.limit_lines.items())
            raise DataError(
                f"{facts.files[file]}:{line}: index {self.n_features} is beyond n_features={self.n_features},"
                " as there also is an index 0 in the file: raise n_features or leave it out"
            )

    def outcome(self, facts: LoadFacts, names: Sequence[Vocabulary]) -> Outcome:
        """See :meth:`LoadFormat.outcome`."""
        base = self.base(facts)
        return Outcome(
            n_features=self.n_features or max(facts.highest_index + 1 - base, 1),
            encoding={"format": "svmlight", "zero_based": base == 0},
        )


class _SvmlightReader(ParserReader):
    def __init__(self, files: Sequence[str], how: SvmlightFormat) -> None:
        super().__init__(files)
        self._how = how

    def make_parser(self, name: str, segment: Segment) -> Parser:
        # What compiles is loaded where text is parsed, which often is in processes of their own.
        from cirrus.client_backend.parsers import SvmlightParser

        return SvmlightParser(name, self._how.n_features, self._how.zero_based)


@dataclass(frozen=True, kw_only=True)
class CsvLoad(LoadFormat):
    """CSV, or a table that is read as if it were."""

    csv: CsvFormat
    """Of the first file; others may have the columns in another order."""
    label_names: tuple[str, ...] = ()
    """Names of labels that have their numbers already."""
    is_table: bool = False
    """Whether the text is made of a table, without its header."""

    @property
    def quoted(self) -> bool:
        """See :attr:`LoadFormat.quoted`."""
        return True

    @property
    def names(self) -> tuple[str, ...]:
        """See :attr:`LoadFormat.names`."""
        is_open = self.csv.label is not None and self.csv.text_labels and not self.label_names
        return ("labels",) if is_open else ()

    def reader(self, files: Sequence[str]) -> SegmentReader:
        """See :meth:`LoadFormat.reader`."""
        return _CsvReader(files, self)

    def renumbered(self, rows: ParsedRows, numbers: Sequence[NDArray[np.int64]]) -> ParsedRows:
        """See :meth:`LoadFormat.renumbered`."""
        return rows.relabelled(numbers[0].astype(np.float32)[rows.labels.astype(np.intp)])

    def outcome(self, facts: LoadFacts, names: Sequence[Vocabulary]) -> Outcome:
        """See :meth:`LoadFormat.outcome`."""
        label_names: tuple[str, ...] | None = self.label_names or None
        if self.names:
            label_names = tuple(str(name) for name in names[0].ids())
        if self.csv.label is None or not self.csv.text_labels:
            label_names = None
        return Outcome(
            n_features=self.csv.n_features, encoding=self.csv.to_encoding(), label_names=label_names
        )


class _CsvReader(ParserReader):
    def __init__(self, files: Sequence[str], how: CsvLoad) -> None:
        super().__init__(files)
        self._how = how
        self._labels = LabelNames(how.label_names)

    def make_parser(self, name: str, segment: Segment) -> Parser:
        csv = segment.csv or self._how.csv
        if self._how.is_table:
            csv = dataclasses.replace(csv, has_header=False)
        if ARE_COMPILED:
            from cirrus.client_backend.csv_fast import FastCsvParser

            return FastCsvParser(name, csv, self._labels)
        return CsvParser(name, csv, self._labels)

    def take_names(self) -> list[Vocabulary]:
        names = self._labels.take()
        return [Vocabulary.of_text(names)] if self._how.names else []
