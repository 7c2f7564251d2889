"""Reading a text file, plain or compressed, in segments of whole lines."""

from __future__ import annotations

import bz2
import contextlib
import errno
import gzip
import io
import lzma
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, cast

import lz4.frame
import numpy as np

from cirrus.errors import CorruptDataError, DataError, NotFoundError, StorageError
from cirrus.storage import ObjectStore

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

#: Size of a segment, if nothing else is asked for.
SEGMENT_BYTES = 8 * 2**20
#: A line, or a quoted field, that is longer than this is taken for a mistake.
MAX_LINE_BYTES = 64 * 2**20
#: An object in a store is read in pieces of this size.
OBJECT_READ_BYTES = 8 * 2**20
_NEWLINE = ord("\n")
#: How files begin that are packed in a way that is read.
_PACKED = {
    b"\x1f\x8b": "gzip",
    b"\x04\x22\x4d\x18": "lz4",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"PK\x03\x04": "zip",
}
#: A word that begins as bzip2 does is no archive without one of these behind the level of compression.
_BZIP2_BLOCKS = (b"1AY&SY", b"\x17rE8P\x90")
#: How files begin that look like no text, and what to do with them.
_NO_TEXT = {
    b"\x28\xb5\x2f\xfd": "is packed with Zstandard: pipe it, with: zstdcat FILE | cirrus load - URL",
    b"7z\xbc\xaf\x27\x1c": "is packed with 7-Zip: unpack it and name the file in it",
    b"Rar!\x1a\x07": "is packed with RAR: unpack it and name the file in it",
    # What follows is the field 1 of a Thrift structure; a CSV header may begin with the letters, too.
    b"PAR1\x15": "is a Parquet file and no text: use load_parquet, or --format parquet",
}
_MAGIC_BYTES = 10
#: What macOS packs beside each file of a zip archive.
_ZIP_EXTRAS = "__MACOSX/"
#: Also names and positions in a zip archive are numbers and text that may be wrong.
_DAMAGES = (
    EOFError,
    gzip.BadGzipFile,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    ValueError,
    OverflowError,
)
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Segment:
    """Some whole lines of a file."""

    number: int
    first_line: int
    """Counted from 1."""
    data: bytes
    file_position: int
    """Bytes of the file read so far (compressed ones, where it is)."""
    start: int = 0
    """Bytes of text before it."""

    @property
    def after(self) -> Place:
        """Where the next segment begins."""
        return Place(
            number=self.number + 1,
            line=self.first_line + count_lines(self.data),
            position=self.start + len(self.data),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a segment begins."""

    number: int = 0
    line: int = 1
    position: int = 0
    """Bytes of text before it; a byte order mark is not counted."""


#: Takes text, and returns how many of its bytes are whole units: lines, or whatever a format must not cut.
Cut = Callable[[bytes], int]


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file, or an object in a store, to be read."""

    path: str
    """In a store: the key."""
    name: str
    """What to call it in an error message."""
    n_bytes: int
    version: str = ""
    """Another one when the file was written again."""
    store: ObjectStore | None = None
    """None: a file of this machine."""


def count_lines(data: bytes) -> int:
    """Return the number of line ends; where lines are short ``bytes.count`` takes four times as long."""
    return int(np.count_nonzero(np.frombuffer(data, np.uint8) == _NEWLINE))


def is_compressed(file: InputFile) -> bool:
    """Return whether a file is compressed, by its first bytes.

    Raises:
        DataError: It is, or holds no text, in a way that is not read.
    """
    with open_file(file, _MAGIC_BYTES) as stream, _reading_errors(file.name, 1):
        return _packing(stream, file.name) is not None


def _packing(stream: IO[bytes], path: str) -> str | None:
    """Return how a file is packed, by its first bytes; None: it is plain."""
    magic = stream.read(_MAGIC_BYTES)
    for begin, problem in _NO_TEXT.items():
        if magic.startswith(begin):
            raise DataError(f"{path}: {problem}")
    for begin, kind in _PACKED.items():
        if magic.startswith(begin) and (kind != "bzip2" or magic[4:] in _BZIP2_BLOCKS):
            return kind
    return None


def read_segments(
    file: InputFile,
    *,
    quoted: bool = False,
    segment_bytes: int = SEGMENT_BYTES,
    cut: Cut | None = None,
    start: Place | None = None,
) -> Iterator[Segment]:
    """Yield a file in segments of about ``segment_bytes``, cut at line ends.

    Args:
        file: gzip, LZ4 frames, bzip2, xz, and zip archives of a single file, are recognised by their content.
        quoted: A line end between an odd and an even quotation mark does not end a line (CSV).
        segment_bytes: Size wanted.
        cut: Says how much of a text can be taken, where more than line ends matters; instead of ``quoted``.
        start: Where to begin, as some segment's ``after``; what is before it is not given again.

    Raises:
        NotFoundError: There is no such file.
        DataError: A line does not end, or the compressed data is damaged.
        StorageError: The file cannot be read.
    """
    path = file.name
    place = Place()
    with open_file(file, min(segment_bytes, OBJECT_READ_BYTES)) as raw, _decompressed(raw, path) as stream:
        with _reading_errors(path, 1):
            rest = stream.read(len(BYTE_ORDER_MARK)).removeprefix(BYTE_ORDER_MARK)
            if start is not None:
                _skip(stream, start.position - len(rest), plain=stream is raw)
                place, rest = start, rest[start.position :]
        while True:
            with _reading_errors(path, place.line + rest.count(b"\n")):
                # Where a segment ends depends on where it begins alone, so that reading can begin anywhere.
                more = stream.read(segment_bytes - len(rest) % segment_bytes)
            data = rest + more
            end = len(data) if not more else _last_line_end(data, quoted) if cut is None else cut(data)
            rest = data[end:]
            if len(rest) > MAX_LINE_BYTES:
                what = "a line" if cut is None and not quoted else "a line, quoted field or document"
                raise DataError(
                    f"{path}:{place.line}: {what} does not end within {MAX_LINE_BYTES} bytes: correct it"
                )
            if end:
                segment = Segment(place.number, place.line, data[:end], raw.tell(), place.position)
                place = segment.after
                yield segment
            if not more:
                return


def _skip(stream: IO[bytes], n_bytes: int, *, plain: bool) -> None:
    if n_bytes > 0 and plain:
        stream.seek(n_bytes, os.SEEK_CUR)
    while n_bytes > 0 and not plain and (read := len(stream.read(min(n_bytes, OBJECT_READ_BYTES)))):
        n_bytes -= read


def open_file(file: InputFile, buffer_bytes: int = OBJECT_READ_BYTES) -> IO[bytes]:
    """Open a file or object for reading, as it is.

    Args:
        file: The file.
        buffer_bytes: How much of an object is asked for at once, at least.

    Raises:
        NotFoundError: There is none.
        StorageError: It cannot be read.
    """
    if file.store is not None:
        return cast(IO[bytes], io.BufferedReader(_ObjectReader(file), buffer_bytes))
    try:
        return open(file.path, "rb")
    except FileNotFoundError as error:
        raise NotFoundError(f"{file.name}: there is no such file") from error
    except OSError as error:
        raise StorageError(f"{file.name}: {error.strerror}") from error


def read_range(file: InputFile, begin: int, n_bytes: int) -> bytes:
    """Return a range of a file or object, as it is.

    Args:
        file: The file.
        begin: Where it begins.
        n_bytes: Its length.

    Raises:
        NotFoundError: There is no such file.
        DataError: The file ends before.
        StorageError: It cannot be read.
    """
    if file.store is None:
        with open_file(file) as stream, _reading_errors(file.name, 1):
            stream.seek(begin)
            data = stream.read(n_bytes)
        if len(data) == n_bytes:
            return data
        raise _shortened(file)
    try:
        return file.store.get_range(file.path, begin, n_bytes)
    except CorruptDataError as error:
        raise _shortened(file) from error


def _shortened(file: InputFile) -> DataError:
    return DataError(f"{file.name}: became shorter while it was read: load it again")


class _ObjectReader(io.RawIOBase):
    """An object in a store as a file; each read is a request."""

    def __init__(self, file: InputFile) -> None:
        self._file = file
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._file.n_bytes}[whence]
        self._position = max(0, origin + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: WriteableBuffer) -> int:
        file = self._file
        view = memoryview(buffer).cast("B")
        length = max(0, min(len(view), file.n_bytes - self._position))
        if length:
            view[:length] = read_range(file, self._position, length)
        self._position += length
        return length


@contextlib.contextmanager
def _decompressed(raw: IO[bytes], path: str) -> Iterator[IO[bytes]]:
    with contextlib.ExitStack() as stack:
        stream = raw
        with _reading_errors(path, 1):
            kind = _packing(raw, path)
            raw.seek(0)
            if kind == "gzip":
                stream = cast(IO[bytes], stack.enter_context(gzip.GzipFile(fileobj=raw)))
            elif kind == "lz4":
                stream = cast(IO[bytes], stack.enter_context(lz4.frame.LZ4FrameFile(raw)))
            elif kind == "bzip2":
                stream = cast(IO[bytes], stack.enter_context(bz2.BZ2File(raw)))
            elif kind == "xz":
                stream = cast(IO[bytes], stack.enter_context(lzma.LZMAFile(raw)))
            elif kind == "zip":
                archive = stack.enter_context(zipfile.ZipFile(raw))
                members = [
                    member
                    for member in archive.infolist()
                    if not member.is_dir() and not member.filename.startswith(_ZIP_EXTRAS)
                ]
                if len(members) != 1:
                    raise DataError(f"{path}: holds {len(members)} files: unpack it and name one of them")
                stream = stack.enter_context(archive.open(members[0]))
        yield stream


@contextlib.contextmanager
def _reading_errors(path: str, line: int) -> Iterator[None]:
    """Translate what reading a compressed file may raise."""
    try:
        yield
    except (StorageError, DataError):  # which say already what is wrong, though they may be OSErrors
        raise
    except _DAMAGES as error:
        raise _damaged(path, line, error) from error
    except OSError as error:
        if error.errno in (None, errno.EINVAL):  # of a zip archive: bzip2, or a position before its beginning
            raise _damaged(path, line, error) from error
        raise StorageError(f"{path}: {error.strerror}") from error
    except (NotImplementedError, RuntimeError, MemoryError) as error:
        if str(error).startswith("LZ4"):
            raise _damaged(path, line, error) from error
        # A zip archive with encryption or a rare method, or a window larger than memory.
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
