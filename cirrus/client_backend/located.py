"""Cutting a file into segments without reading it: for loads whose workers read the text themselves.

Only the end of each segment is looked at, where its last line ends. How many lines come before is not known
then; until it is, lines are numbered from a place of their own in each segment (:func:`first_line_of`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cirrus.client_backend.segments import BYTE_ORDER_MARK, MAX_LINE_BYTES, InputFile, Place, read_range
from cirrus.errors import DataError

#: More lines than a segment can have.
LINES_PER_SEGMENT = 2**40
#: How much of the end of a segment is looked at first.
TAIL_BYTES = 2**16
_LINE = re.compile(r":(\d{13,}):")


@dataclass(frozen=True, slots=True, kw_only=True)
class LocatedSegment:
    """Some whole lines of a file or object."""

    number: int
    begin: int
    """Where they begin in it."""
    n_bytes: int
    start: int
    """Bytes of text before them."""
    file_position: int
    """Where reading would stop that reads it from its beginning in whole segments."""


def first_line_of(segment: int) -> int:
    """Return the number that the first line of a segment goes by until the lines before it are counted."""
    return 1 + segment * LINES_PER_SEGMENT


def true_line(line: int, lines_before: Callable[[int], int]) -> int:
    """Return a line's number in its file.

    Args:
        line: As :func:`first_line_of` numbers lines.
        lines_before: Returns the number of lines before a segment.
    """
    segment, within = divmod(line - 1, LINES_PER_SEGMENT)
    return 1 + within + lines_before(segment)


def with_true_line(text: str, name: str, lines_before: Callable[[int], int]) -> str:
    """Return the text of an error that names a line of a file, with the line's number in that file.

    Args:
        text: Begins with the name and the line; what follows may quote numbers of the file, however long.
        name: The file's.
        lines_before: Returns the number of lines before a segment.
    """
    found = _LINE.match(text, len(name))
    if found is None:
        return text
    return f"{name}:{true_line(int(found[1]), lines_before)}:{text[found.end() :]}"


def locate_segments(file: InputFile, segment_bytes: int, start: Place) -> Iterator[LocatedSegment]:
    """Yield the segments of a file as :func:`~cirrus.client_backend.segments.read_segments` cuts it.

    Args:
        file: Not compressed.
        segment_bytes: Size wanted.
        start: Where to begin.

    Raises:
        DataError: A line does not end, or the file became shorter.
        StorageError: It cannot be read.
    """
    mark = len(BYTE_ORDER_MARK)
    skipped = mark if read_range(file, 0, min(mark, file.n_bytes)) == BYTE_ORDER_MARK else 0
    number, begin = start.number, skipped + start.position
    while begin < file.n_bytes:
        end, position = _end_of_segment(file, number, begin, segment_bytes)
        yield LocatedSegment(
            number=number, begin=begin, n_bytes=end - begin, start=begin - skipped, file_position=position
        )
        number, begin = number + 1, end


def _end_of_segment(file: InputFile, number: int, begin: int, segment_bytes: int) -> tuple[int, int]:
    """Return where the last line ends, and up to where the file would be read to know."""
    position = begin
    while True:
        low, position = position, min(position + segment_bytes, file.n_bytes)
        last = _last_line_end(file, low, position)
        if last is not None:
            return last, position
        if position - begin > MAX_LINE_BYTES:
            raise DataError(
                f"{file.name}:{first_line_of(number)}: a line does not end within {MAX_LINE_BYTES} bytes: "
                "correct it"
            )
        if position == file.n_bytes:  # what is left, without a line end
            return position, position


def _last_line_end(file: InputFile, low: int, high: int) -> int | None:
    """Return the place behind the last line end in a range, or None where there is none."""
    size = TAIL_BYTES
    while high > low:
        first = max(low, high - size)
        found = read_range(file, first, high - first).rfind(b"\n")
        if found >= 0:
            return first + found + 1
        high, size = first, 2 * size
    return None
