"""Inputs of loaders: files, patterns, objects in a store; standard input and pipes, which become files first.

Several inputs are one: their rows follow each other in the order of the files' names.
"""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import os
import re
import shutil
import stat
import sys
import tempfile
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from cirrus.client_backend.segments import InputFile
from cirrus.errors import DataError, NotFoundError, StorageError
from cirrus.storage import ObjectInfo, ObjectStore, open_store

#: The path that means standard input.
STANDARD_INPUT = "-"
#: Objects below a prefix whose name begins so are no data: ``_SUCCESS`` of Spark, ``.DS_Store``.
_HIDDEN = ("_", ".")
#: What a process calls its own open files.
_OPEN_FILE = re.compile(r"/dev/(stdin|stdout|stderr|fd/\d+)|/proc/(self|\d+)/fd/\d+")


@dataclass(frozen=True)
class Inputs:
    """What one load reads."""

    name: str
    """As the user gave it."""
    files: tuple[InputFile, ...]
    """Sorted by name."""
    is_repeatable: bool = True
    """Whether another process can read the same again: not so for standard input and pipes."""

    @property
    def n_bytes(self) -> int:
        """Size of all files."""
        return sum(file.n_bytes for file in self.files)

    def check_unchanged(self) -> None:
        """Raise a DataError if a file was written or removed while it was read."""
        if not self.is_repeatable:
            return
        now = {}
        with contextlib.suppress(NotFoundError):
            now = {file.name: (file.n_bytes, file.version) for file in _found(self.name)}
        for file in self.files:
            if now.get(file.name) != (file.n_bytes, file.version):
                what = "changed" if file.name in now else "removed"
                raise DataError(f"{file.name}: was {what} while it was read: load it again")


@contextlib.contextmanager
def open_inputs(path: str) -> Iterator[Inputs]:
    """Find files that can be read from their beginning several times, for as long as the context lasts.

    Args:
        path: A file; a pattern (``part-*.gz``, ``**`` for any folders); an object or a prefix or pattern of
            objects in a store (``s3://bucket/clicks/``); or ``-`` for standard input, which is copied to a
            temporary file as it is. So is a pipe (``<(zcat rows.gz)`` of a shell).

    Raises:
        NotFoundError: There is no such file.
        DataError: All are empty, or it is a folder.
        StorageError: Something cannot be read or copied.
    """
    with contextlib.ExitStack() as stack:
        is_once = is_stream(path)
        found = [stack.enter_context(_copied(path))] if is_once else _found(path)
        files = [file for file in found if file.n_bytes]
        if not files:
            name = found[0].name if is_once else path
            raise DataError(f"{name}: is empty: there are no rows to load")
        yield Inputs(path, tuple(sorted(files, key=lambda file: file.name)), is_repeatable=not is_once)


def _found(path: str) -> list[InputFile]:
    """Return all files that a path means, also those that are empty."""
    local = _local_path(path)
    return _objects(path) if local is None else _local_files(local)


def _local_path(path: str) -> str | None:
    """Return a path on this machine, or None for objects in a store."""
    scheme, separator, rest = path.partition("://")
    if not separator:
        return os.path.expanduser(path)
    return urllib.parse.unquote(rest) if scheme == "file" else None


def _local_files(path: str) -> list[InputFile]:
    if os.path.lexists(path) or not glob.has_magic(path):
        return [_local_file(path)]
    names = sorted(glob.glob(path, recursive=True))
    files = [_local_file(name) for name in names if not os.path.isdir(name)]
    if not files:
        raise NotFoundError(f"{path}: no file matches this pattern")
    return files


def _local_file(path: str) -> InputFile:
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # ValueError: a name with a NUL
        raise NotFoundError(f"{path}: there is no such file") from error
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from error
    if stat.S_ISDIR(status.st_mode):
        raise DataError(f"{path}: is a folder: name a file, or a pattern such as '{path.rstrip('/')}/*.gz'")
    return InputFile(path, path, status.st_size, str(status.st_mtime_ns))


def _objects(url: str) -> list[InputFile]:
    scheme, _, rest = url.partition("://")
    bucket, _, key = rest.partition("/")
    store = open_store(f"{scheme}://{bucket}")
    if key and not key.endswith("/"):
        exact = [info for info in store.find(key) if info.key == key]
        if exact:
            return _files_of(store, exact)
    if glob.has_magic(key):
        fixed = key[: next(i for i, c in enumerate(key) if c in "*?[")]
        infos = [info for info in store.find(fixed) if fnmatch.fnmatchcase(info.key, key)]
        if not infos:
            raise NotFoundError(f"{url}: no object matches this pattern")
        return _files_of(store, infos)
    prefix = key if not key or key.endswith("/") else f"{key}/"
    infos = [info for info in store.find(prefix) if not info.key.rpartition("/")[2].startswith(_HIDDEN)]
    infos = [info for info in infos if not info.key.endswith("/")]
    if not infos:
        raise NotFoundError(f"{url}: there is no such object, and none below this prefix")
    return _files_of(store, infos)


def _files_of(store: ObjectStore, infos: list[ObjectInfo]) -> list[InputFile]:
    return [
        InputFile(info.key, f"{store.url}/{info.key}", info.n_bytes, info.version, store) for info in infos
    ]


def is_stream(path: str) -> bool:
    """Return whether a path is standard input, a pipe or a device, which can be read only once.

    So is what this process calls by a number: ``/dev/stdin`` means another file in every process.
    """
    if path == STANDARD_INPUT:
        return True
    local = _local_path(path)
    if local is not None and _OPEN_FILE.fullmatch(os.path.abspath(local)):
        return os.path.exists(local)
    try:
        mode = 0 if local is None else os.stat(local).st_mode
    except (OSError, ValueError):  # whoever reads it will say what is wrong
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


@contextlib.contextmanager
def _copied(path: str) -> Iterator[InputFile]:
    """Copy what can be read only once to a temporary file."""
    name = "standard input" if path == STANDARD_INPUT else path
    with contextlib.ExitStack() as stack:
        try:
            source = stack.enter_context(_stream(path))
            file = stack.enter_context(tempfile.NamedTemporaryFile(prefix="cirrus-input-"))
            shutil.copyfileobj(source, file)
            file.flush()
        except OSError as error:
            raise StorageError(
                f"{name}: cannot be copied to {tempfile.gettempdir()}: {error.strerror}: say with TMPDIR "
                "where there is room, or name a file"
            ) from error
        yield InputFile(file.name, name, os.stat(file.name).st_size, version=file.name)


def _stream(path: str) -> contextlib.AbstractContextManager[IO[bytes]]:
    if path != STANDARD_INPUT:
        return open(_local_path(path) or path, "rb")
    source: IO[bytes] | None = getattr(sys.stdin, "buffer", None)
    if source is None:  # closed, or a notebook's
        raise DataError("standard input: cannot be read here: name a file")
    return contextlib.nullcontext(source)
