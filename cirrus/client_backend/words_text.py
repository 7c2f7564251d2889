"""Documents as sparse rows, parsed by compiled kernels."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from cirrus.client_backend.loops import compiled, text_of
from cirrus.client_backend.rows import MAX_INDEX, Rows, SegmentFacts
from cirrus.client_backend.segments import count_lines
from cirrus.client_backend.words import HEADER_LINES, OUT_OF_ORDER, SHOWN_CHARACTERS
from cirrus.errors import DataError

Bytes: TypeAlias = NDArray[np.uint8]

#: Counts are kept as float32, which tells whole numbers apart up to here.
MAX_COUNT = 2**24

_NEWLINE, _SPACE, _TAB, _RETURN, _COLON, _ZERO = (ord(c) for c in "\n \t\r:0")
_OK, _BAD_NUMBER, _BAD_ENTRY, _BAD_COUNT, _BEYOND, _N_TERMS, _NO_DOCUMENT, _ORDER, _LINE = range(9)
_PROBLEMS = {
    _BAD_NUMBER: "{token!r} is not the number of terms of a document: correct the line, or check format",
    _BAD_ENTRY: "{token!r} is not TERM:COUNT: correct the line",
    _BAD_COUNT: "the count in {token!r} is not a whole number from 1 to 2**24: correct it",
    _BEYOND: "the word in {token!r} is beyond the {n_words} words there are: correct it, or the vocabulary",
    _N_TERMS: "has another number of terms than {token!r}: correct the line",
    _NO_DOCUMENT: "{token!r} is not one of the documents that the header counts: correct the line",
    _ORDER: OUT_OF_ORDER,
    _LINE: "{token!r} does not begin DOCUMENT WORD COUNT: correct the line, or check format",
}


class WordsParser:
    """Parses documents.

    Args:
        name: What to call the file in an error message.
        n_words: Numbers of words are below this; None: there is no limit.
        n_documents: docword: numbers of documents are up to this; None: it is ldac.
    """

    def __init__(self, name: str, n_words: int | None, n_documents: int | None) -> None:
        self._name = name
        self._n_words = n_words
        self._n_documents = n_documents

    def parse(self, data: bytes, first_line: int) -> tuple[Rows, SegmentFacts]:
        """See :class:`Parser`."""
        text = text_of(data)
        limit = MAX_INDEX if self._n_words is None else self._n_words - 1
        n_lines = count_lines(data) + 1
        lengths = np.empty(n_lines, np.uint32)
        documents = np.zeros(2, np.int64)
        if self._n_documents is None:
            indices = np.empty(data.count(b":"), np.uint32)
            counts = np.empty(indices.size, np.float32)
            found = parse_ldac(text, limit, lengths, indices, counts)
        else:
            indices = np.empty(n_lines, np.uint32)
            counts = np.empty(n_lines, np.float32)
            skipped = max(0, HEADER_LINES + 1 - first_line)
            found = parse_docword(
                text, skipped, self._n_documents, limit, lengths, indices, counts, documents
            )
        code, at, n_rows, n_entries = found
        if code != _OK:
            raise DataError(self._describe(data, at, code, first_line))
        values = counts[:n_entries]
        rows = Rows(
            lengths=lengths[:n_rows],
            indices=indices[:n_entries],
            values=None if (values == 1).all() else values,
            labels=np.zeros(n_rows, np.float32),
        )
        facts = SegmentFacts(
            n_rows=n_rows,
            highest_index=int(rows.indices.max()) if n_entries else -1,
            n_entries=n_entries,
            first_group=int(documents[0]),
            last_group=int(documents[1]),
        )
        return rows, facts

    def _describe(self, data: bytes, start: int, code: int, first_line: int) -> str:
        line = first_line + data.count(b"\n", 0, start)
        shown = data[start : start + SHOWN_CHARACTERS].split(b"\n", 1)[0]
        words = [shown] if code == _LINE else shown.split(None, 1)
        token = (words or [b""])[0].strip().decode("utf-8", "replace")
        problem = _PROBLEMS[code].format(token=token, n_words=self._n_words or MAX_INDEX)
        return f"{self._name}:{line}: {problem}"


@compiled
def parse_ldac(
    text: Bytes,
    limit: int,
    lengths: NDArray[np.uint32],
    indices: NDArray[np.uint32],
    counts: NDArray[np.float32],
) -> tuple[int, int, int, int]:
    """Parse whole lines of LDA-C text into arrays that are large enough.

    Returns:
        A code (0: all is well), where the bad token begins, number of rows, number of entries.
    """
    n_rows = 0
    n_entries = 0
    i = 0
    while i < text.size:
        i = _skip_blanks(text, i)
        if i < text.size and text[i] != _NEWLINE:
            start = i
            n_terms, i = _whole_number(text, i)
            if i == start or not _ends_token(text, i):
                return _BAD_NUMBER, start, n_rows, n_entries
            first = n_entries
            i = _skip_blanks(text, i)
            while i < text.size and text[i] != _NEWLINE:
                token = i
                term, i = _whole_number(text, i)
                if i == token or i >= text.size or text[i] != _COLON:
                    return _BAD_ENTRY, token, n_rows, n_entries
                value = i + 1
                count, i = _whole_number(text, value)
                if i == value or not _ends_token(text, i):
                    return _BAD_ENTRY, token, n_rows, n_entries
                if count < 1 or count > MAX_COUNT:
                    return _BAD_COUNT, token, n_rows, n_entries
                if term > limit:
                    return _BEYOND, token, n_rows, n_entries
                indices[n_entries] = term
                counts[n_entries] = count
                n_entries += 1
                i = _skip_blanks(text, i)
            if n_entries - first != n_terms:
                return _N_TERMS, start, n_rows, n_entries
            lengths[n_rows] = n_terms
            n_rows += 1
        i += 1
    return _OK, 0, n_rows, n_entries


@compiled
def parse_docword(
    text: Bytes,
    skipped: int,
    n_documents: int,
    limit: int,
    lengths: NDArray[np.uint32],
    indices: NDArray[np.uint32],
    counts: NDArray[np.float32],
    documents: NDArray[np.int64],
) -> tuple[int, int, int, int]:
    """Parse whole documents of docword text into arrays that are large enough.

    Args:
        text: Whole lines.
        skipped: Lines of the header in it.
        n_documents: Documents are numbered from 1 up to this.
        limit: Highest word, counted from 0.
        lengths: Takes the number of entries of each document.
        indices: Takes the word of each entry, counted from 0.
        counts: Takes the count of each entry.
        documents: Takes the first and the last document. Shape (2,).

    Returns:
        A code (0: all is well), where the bad token begins, number of rows, number of entries.
    """
    n_rows = 0
    n_entries = 0
    before = 0
    i = 0
    while i < text.size:
        i = _skip_blanks(text, i)
        if skipped > 0:
            skipped -= 1
            while i < text.size and text[i] != _NEWLINE:
                i += 1
        elif i < text.size and text[i] != _NEWLINE:
            start = i
            document, end = _whole_number(text, i)
            word_at = _skip_blanks(text, end)
            word, word_end = _whole_number(text, word_at)
            count_at = _skip_blanks(text, word_end)
            count, i = _whole_number(text, count_at)
            if end == start or word_at == end or word_end == word_at or count_at == word_end:
                return _LINE, start, n_rows, n_entries
            last = _skip_blanks(text, i)
            if i == count_at or not _ends_token(text, i) or (last < text.size and text[last] != _NEWLINE):
                return _LINE, start, n_rows, n_entries
            if document < 1 or document > n_documents:
                return _NO_DOCUMENT, start, n_rows, n_entries
            if document < before:
                return _ORDER, start, n_rows, n_entries
            if word < 1 or word - 1 > limit:
                return _BEYOND, word_at, n_rows, n_entries
            if count < 1 or count > MAX_COUNT:
                return _BAD_COUNT, count_at, n_rows, n_entries
            if document != before:
                lengths[n_rows] = 0
                n_rows += 1
                before = document
                if documents[0] == 0:
                    documents[0] = document
                documents[1] = document
            lengths[n_rows - 1] += 1
            indices[n_entries] = word - 1
            counts[n_entries] = count
            n_entries += 1
            i = last
        i += 1
    return _OK, 0, n_rows, n_entries


@compiled
def _whole_number(text: Bytes, i: int) -> tuple[int, int]:
    """Return a number (a large one stays large), and where it ends: where it begins if there is none."""
    number = 0
    while i < text.size and _ZERO <= text[i] <= _ZERO + 9:
        if number < 10**17:
            number = number * 10 + (text[i] - _ZERO)
        i += 1
    return number, i


@compiled
def _skip_blanks(text: Bytes, i: int) -> int:
    while i < text.size and (text[i] == _SPACE or text[i] == _TAB or text[i] == _RETURN):
        i += 1
    return i


@compiled
def _ends_token(text: Bytes, i: int) -> bool:
    if i >= text.size:
        return True
    c = text[i]
    return bool(c in (_NEWLINE, _SPACE, _TAB, _RETURN))
