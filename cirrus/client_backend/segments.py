"""Reading a text file, plain or compressed, in segments of whole lines."""

from __future__ import annotations

import contextlib
import gzip
import os
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, cast

import lz4.frame

from cirrus.errors import DataError, NotFoundError, StorageError

#: Size of a segment, if nothing else is asked for.
SEGMENT_BYTES = 8 * 2**20
#: A line, or a quoted field, that is longer than this is taken for a mistake.
MAX_LINE_BYTES = 64 * 2**20
_GZIP_MAGIC = b"\x1f\x8b"
_ZIP_MAGIC = b"PK\x03\x04"
_LZ4_MAGIC = b"\x04\x22\x4d\x18"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Segment:
    """Some whole lines of a file."""

    number: int
    first_line: int
    """Counted from 1."""
    data: bytes
    file_position: int
    """Bytes of the file read so far (compressed ones, where it is)."""


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file to be read."""

    path: str
    name: str
    """What to call it in an error message."""
    n_bytes: int


def file_size(path: str, name: str) -> int:
    """Return the size of a file to be read.

    Args:
        path: The file.
        name: What to call it in an error message.

    Raises:
        NotFoundError: There is none.
        DataError: It is empty, or a folder.
    """
    try:
        size = os.stat(path).st_size
    except FileNotFoundError as error:
        raise NotFoundError(f"{name}: there is no such file") from error
    except OSError as error:
        raise StorageError(f"{name}: {error.strerror}") from error
    if os.path.isdir(path):
        raise DataError(f"{name}: is a folder: name a file")
    if size == 0:
        raise DataError(f"{name}: is empty: there are no rows to load")
    return size


def is_compressed(file: InputFile) -> bool:
    """Return whether a file is compressed, by its first bytes."""
    with _open(file) as stream:
        return stream.read(4).startswith((_GZIP_MAGIC, _ZIP_MAGIC, _LZ4_MAGIC))


def read_segments(
    file: InputFile, *, quoted: bool = False, segment_bytes: int = SEGMENT_BYTES
) -> Iterator[Segment]:
    """Yield a file in segments of about ``segment_bytes``, cut at line ends.

    Args:
        file: gzip, LZ4 frames, and zip archives of a single file, are recognised by their content.
        quoted: A line end between an odd and an even quotation mark does not end a line (CSV).
        segment_bytes: Size wanted.

    Raises:
        NotFoundError: There is no such file.
        DataError: A line does not end, or the compressed data is damaged.
        StorageError: The file cannot be read.
    """
    path = file.name
    with _open(file) as raw, _decompressed(raw, path) as stream:
        number, line, rest = 0, 1, b""
        while True:
            with _reading_errors(path, line + rest.count(b"\n")):
                more = stream.read(segment_bytes)
            data = rest + more
            if number == 0 and not rest:
                data = data.removeprefix(_BYTE_ORDER_MARK)
            cut = _last_line_end(data, quoted) if more else len(data)
            rest = data[cut:]
            if len(rest) > MAX_LINE_BYTES:
                what = "a line or quoted field" if quoted else "a line"
                raise DataError(
                    f"{path}:{line}: {what} does not end within {MAX_LINE_BYTES} bytes: correct it"
                )
            if cut:
                yield Segment(number, line, data[:cut], raw.tell())
                number += 1
                line += data.count(b"\n", 0, cut)
            if not more:
                return


def _open(file: InputFile) -> IO[bytes]:
    try:
        return open(file.path, "rb")
    except FileNotFoundError as error:
        raise NotFoundError(f"{file.name}: there is no such file") from error
    except OSError as error:
        raise StorageError(f"{file.name}: {error.strerror}") from error


@contextlib.contextmanager
def _decompressed(raw: IO[bytes], path: str) -> Iterator[IO[bytes]]:
    magic = raw.read(4)
    raw.seek(0)
    with contextlib.ExitStack() as stack:
        stream = raw
        with _reading_errors(path, 1):
            if magic.startswith(_GZIP_MAGIC):
                stream = cast(IO[bytes], stack.enter_context(gzip.GzipFile(fileobj=raw)))
            elif magic == _LZ4_MAGIC:
                stream = cast(IO[bytes], stack.enter_context(lz4.frame.LZ4FrameFile(raw)))
            elif magic == _ZIP_MAGIC:
                archive = stack.enter_context(zipfile.ZipFile(raw))
                members = archive.infolist()
                if len(members) != 1:
                    raise DataError(f"{path}: holds {len(members)} files: unpack it and name one of them")
                stream = stack.enter_context(archive.open(members[0]))
        yield stream


@contextlib.contextmanager
def _reading_errors(path: str, line: int) -> Iterator[None]:
    """Translate what reading a compressed file may raise."""
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zipfile.BadZipFile, zlib.error) as error:
        raise _damaged(path, line, error) from error
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from error
    except (NotImplementedError, RuntimeError) as error:
        if str(error).startswith("LZ4"):
            raise _damaged(path, line, error) from error
        # A zip archive with encryption or a rare method.
        raise DataError(f"{path}: cannot be unpacked ({error}): unpack it and name the file in it") from error


def _damaged(path: str, line: int, error: Exception) -> DataError:
    return DataError(
        f"{path}:{line}: the compressed data is truncated or damaged from about here on ({error}): "
        "get the file again"
    )


def _last_line_end(data: bytes, quoted: bool) -> int:
    """Return how many bytes whole lines take up."""
    end = data.rfind(b"\n")
    if quoted:
        inside = data.count(b'"', 0, max(end, 0)) % 2
        while end >= 0 and inside:
            before = data.rfind(b"\n", 0, end)
            inside = (inside - data.count(b'"', max(before, 0), end)) % 2
            end = before
    return end + 1
