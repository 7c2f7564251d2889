"""Inputs of loaders: files, patterns, objects in a store, and standard input, which becomes a file first.

Several inputs are one: their rows follow each other in the order of the files' names.
"""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import os
import shutil
import sys
import tempfile
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, replace

from cirrus.client_backend.segments import InputFile, file_size
from cirrus.errors import DataError, NotFoundError, StorageError
from cirrus.storage import ObjectInfo, ObjectStore, open_store

#: The path that means standard input.
STANDARD_INPUT = "-"
#: Objects below a prefix whose name begins so are no data: ``_SUCCESS`` of Spark, ``.DS_Store``.
_HIDDEN = ("_", ".")


@dataclass(frozen=True)
class Inputs:
    """What one load reads."""

    name: str
    """As the user gave it."""
    files: tuple[InputFile, ...]
    """Sorted by name."""
    is_repeatable: bool = True
    """Whether another process can read the same again: not so for standard input."""

    @property
    def n_bytes(self) -> int:
        """Size of all files."""
        return sum(file.n_bytes for file in self.files)

    def check_unchanged(self) -> None:
        """Raise a DataError if a file was written while it was read."""
        if not self.is_repeatable:
            return
        with open_inputs(self.name) as now:
            before = {file.name: file.version for file in self.files}
            for file in now.files:
                if before.get(file.name, file.version) != file.version:
                    raise DataError(f"{file.name}: was changed while it was read: load it again")


@contextlib.contextmanager
def open_inputs(path: str) -> Iterator[Inputs]:
    """Find files that can be read from their beginning several times, for as long as the context lasts.

    Args:
        path: A file; a pattern (``part-*.gz``, ``**`` for any folders); an object or a prefix or pattern of
            objects in a store (``s3://bucket/clicks/``); or ``-`` for standard input, which is copied to a
            temporary file as it is.

    Raises:
        NotFoundError: There is no such file.
        DataError: All are empty, or it is a folder.
        StorageError: Something cannot be read or copied.
    """
    if path == STANDARD_INPUT:
        with _standard_input() as file:
            yield Inputs(path, (file,), is_repeatable=False)
        return
    scheme, separator, rest = path.partition("://")
    if separator and scheme != "file":
        found = _objects(path)
    else:
        found = _local_files(urllib.parse.unquote(rest) if separator else path)
    files = [file for file in found if file.n_bytes]
    if not files:
        raise DataError(f"{path}: is empty: there are no rows to load")
    yield Inputs(path, tuple(sorted(files, key=lambda file: file.name)))


def _local_files(path: str) -> list[InputFile]:
    if os.path.lexists(path) or not glob.has_magic(path):
        return [_local_file(path)]
    names = sorted(glob.glob(path, recursive=True))
    files = [_local_file(name, may_be_empty=True) for name in names if not os.path.isdir(name)]
    if not files:
        raise NotFoundError(f"{path}: no file matches this pattern")
    return files


def _local_file(path: str, *, may_be_empty: bool = False) -> InputFile:
    try:
        size = file_size(path, path)
    except DataError:
        if not may_be_empty:
            raise
        return InputFile(path, path, 0)
    try:
        version = str(os.stat(path).st_mtime_ns)
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from error
    return InputFile(path, path, size, version)


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


@contextlib.contextmanager
def _standard_input() -> Iterator[InputFile]:
    name = "standard input"
    with tempfile.NamedTemporaryFile(prefix="cirrus-input-") as file:
        try:
            shutil.copyfileobj(sys.stdin.buffer, file)
            file.flush()
        except OSError as error:
            raise StorageError(f"{name}: cannot be copied to {file.name}: {error.strerror}") from error
        yield replace(InputFile(file.name, name, file_size(file.name, name)), version=file.name)
