"""Bags of words: documents as counts of words, in Blei's format (LDA-C) or that of the UCI repository.

``ldac``: a line is a document, ``N TERM:COUNT TERM:COUNT ...`` with N terms, numbered from 0. ``docword``:
three lines with the numbers of documents, of words and of entries, then lines ``DOCUMENT WORD COUNT``,
numbered from 1 and in the order of the documents. Both are parsed by a compiled kernel.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from cirrus.chunks.vocabulary import MAX_ID_BYTES, Vocabulary
from cirrus.client_backend.csv_format import decode
from cirrus.client_backend.inputs import open_inputs
from cirrus.client_backend.load_formats import (
    LoadFacts,
    LoadFormat,
    Outcome,
    ParserReader,
    Segment,
    SegmentReader,
)
from cirrus.client_backend.rows import MAX_INDEX, Parser
from cirrus.client_backend.segments import Cut, InputFile, read_segments
from cirrus.errors import ConfigError, DataError, NotFoundError

Bytes: TypeAlias = NDArray[np.uint8]

LDAC, DOCWORD = "ldac", "docword"
#: Lines before the entries of a docword file.
HEADER_LINES = 3
#: How much of a bad piece of text an error message shows.
SHOWN_CHARACTERS = 40
#: What is wrong with documents whose numbers do not ascend.
OUT_OF_ORDER = "document {token!r} comes after a later one: sort the file by document"
#: How much of a file is looked at for its header.
HEADER_BYTES = 2**12


@dataclass(frozen=True, kw_only=True)
class WordsFormat(LoadFormat):
    """Text of documents."""

    kind: str
    n_words: int | None
    """Numbers of words are below this; None: there is no limit."""
    headers: tuple[tuple[int, int, int], ...] = ()
    """docword: documents, words and entries of each file."""
    vocabulary_crc32: int | None = None
    """Of the vocabulary that comes with it: another one makes another load."""

    @property
    def cut(self) -> Cut | None:
        """See :attr:`LoadFormat.cut`."""
        return _whole_documents if self.kind == DOCWORD else None

    def reader(self, files: Sequence[str]) -> SegmentReader:
        """See :meth:`LoadFormat.reader`."""
        return _WordsReader(files, self)

    def check(self, facts: LoadFacts) -> None:
        """See :meth:`LoadFormat.check`."""
        for file, header in enumerate(self.headers):
            found = facts.n_entries[file]
            if found != header[2]:
                raise DataError(
                    f"{facts.files[file]}:{HEADER_LINES}: the header says {header[2]} entries, there are "
                    f"{found}: the file is truncated, or its header is wrong"
                )
        last = (-1, 0)
        for (file, line), (first_document, last_document) in sorted(facts.groups.items()):
            if file == last[0] and first_document <= last[1]:
                problem = OUT_OF_ORDER.format(token=str(first_document))
                raise DataError(f"{facts.files[file]}:{line}: {problem}")
            last = (file, last_document)

    def outcome(self, facts: LoadFacts, names: Sequence[Vocabulary]) -> Outcome:
        """See :meth:`LoadFormat.outcome`."""
        return Outcome(
            n_features=self.n_words or max(facts.highest_index + 1, 1),
            encoding={"format": "bag_of_words", "kind": self.kind},
        )


def find_words_format(kind: str, files: Sequence[InputFile], vocabulary: Vocabulary | None) -> WordsFormat:
    """Find out what has to be known before reading.

    Args:
        kind: ``ldac`` or ``docword``.
        files: The files.
        vocabulary: The words, if they are known.

    Raises:
        ConfigError: There is no such format.
        DataError: The header of a file is wrong, or does not fit the others or the vocabulary.
    """
    if kind not in (LDAC, DOCWORD):
        raise ConfigError("format", f'must be "ldac" or "docword", got {kind!r}')
    n_words = None if vocabulary is None else len(vocabulary)
    crc32 = None if vocabulary is None else zlib.crc32(vocabulary.to_bytes())
    if kind == LDAC:
        return WordsFormat(kind=kind, n_words=n_words, vocabulary_crc32=crc32)
    headers = tuple(_header(file) for file in files)
    for file, (_, words, _) in zip(files, headers, strict=True):
        if words != (n_words or headers[0][1]):
            whose = f"{files[0].name} has" if n_words is None else "the vocabulary has"
            other = headers[0][1] if n_words is None else n_words
            raise DataError(f"{file.name}:2: its header says {words} words, {whose} {other}: correct one")
    return WordsFormat(kind=kind, n_words=headers[0][1], headers=headers, vocabulary_crc32=crc32)


def _header(file: InputFile) -> tuple[int, int, int]:
    numbers: list[int] = []
    text = b""
    for segment in read_segments(file, segment_bytes=HEADER_BYTES):
        text += segment.data
        if text.count(b"\n") >= HEADER_LINES:
            break
    for line, cell in enumerate(text.split(b"\n")[:HEADER_LINES], start=1):
        stripped = cell.strip()
        if not stripped.isdigit() or len(stripped) > 18:
            shown = stripped[:SHOWN_CHARACTERS].decode("utf-8", "replace")
            what = ("documents", "words", "entries")[line - 1]
            raise DataError(
                f"{file.name}:{line}: {shown!r} is not the number of {what}: a docword file begins so"
            )
        numbers.append(int(stripped))
    if len(numbers) < HEADER_LINES:
        raise DataError(f"{file.name}:{len(numbers) + 1}: ends within the header of {HEADER_LINES} lines")
    documents, words, entries = numbers
    if not 1 <= words <= MAX_INDEX:
        raise DataError(f"{file.name}:2: {words} words cannot be: there must be 1 to {MAX_INDEX}")
    return documents, words, entries


def read_words(path: str) -> Vocabulary:
    """Read a vocabulary: one word a line; the first names word 0 (``ldac``) or 1 (``docword``).

    Args:
        path: The file, plain or packed, or an object in a store.

    Raises:
        DataError: A word is empty, too long, or occurs twice.
        NotFoundError: There is no such file.
    """
    lines: list[str] = []
    with contextlib.ExitStack() as stack:
        try:
            inputs = stack.enter_context(open_inputs(path))
        except (DataError, NotFoundError) as error:
            raise type(error)(f"the vocabulary {error}") from error
        name = inputs.files[0].name
        if len(inputs.files) > 1:
            raise DataError(f"{path}: are {len(inputs.files)} files: a vocabulary is one")
        for segment in read_segments(inputs.files[0]):
            text = decode(segment.data, name, segment.first_line)
            lines += [line.strip() for line in text.removesuffix("\n").split("\n")]
    seen: dict[str, int] = {}
    for line, word in enumerate(lines, start=1):
        if not word or "\0" in word or len(word.encode()) > MAX_ID_BYTES:
            raise DataError(f"{name}:{line}: is no word of 1 to {MAX_ID_BYTES} bytes: correct the vocabulary")
        if seen.setdefault(word, line) != line:
            raise DataError(f"{name}:{line}: {word[:SHOWN_CHARACTERS]!r} is in line {seen[word]} too")
    return Vocabulary.of_text(lines)


def _whole_documents(data: bytes) -> int:
    """Return how many bytes of docword text hold whole documents: all but the last one's lines."""
    start = data.rfind(b"\n") + 1
    document: list[bytes] = []
    while start:
        before = data.rfind(b"\n", 0, start - 1) + 1
        found = data[before:start].split(None, 1)[:1]  # nothing in a blank line, which ends no document
        if document and found and found != document:
            return start
        document = found or document
        start = before
    return 0


class _WordsReader(ParserReader):
    def __init__(self, files: Sequence[str], how: WordsFormat) -> None:
        super().__init__(files)
        self._how = how

    def make_parser(self, name: str, segment: Segment) -> Parser:
        # What compiles is loaded where text is parsed, which often is in processes of their own.
        from cirrus.client_backend.words_text import WordsParser

        if self._how.kind == LDAC:
            return WordsParser(name, self._how.n_words, None)
        return WordsParser(name, self._how.n_words, self._how.headers[segment.file][0])
