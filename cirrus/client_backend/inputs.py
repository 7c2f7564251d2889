"""Inputs of loaders: files as they are, and standard input, which becomes a file first."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator

from cirrus.client_backend.segments import InputFile, file_size
from cirrus.errors import StorageError

#: The path that means standard input.
STANDARD_INPUT = "-"


@contextlib.contextmanager
def open_input(path: str) -> Iterator[InputFile]:
    """Provide a file that can be read from its beginning several times, for as long as the context lasts.

    Args:
        path: A file, or ``-`` for standard input, which is copied to a temporary file as it is.

    Raises:
        NotFoundError: There is no such file.
        DataError: It is empty, or a folder.
        StorageError: It cannot be read or copied.
    """
    if path != STANDARD_INPUT:
        yield InputFile(path, path, file_size(path, path))
        return
    name = "standard input"
    with tempfile.NamedTemporaryFile(prefix="cirrus-input-") as file:
        try:
            shutil.copyfileobj(sys.stdin.buffer, file)
            file.flush()
        except OSError as error:
            raise StorageError(f"{name}: cannot be copied to {file.name}: {error.strerror}") from error
        yield InputFile(file.name, name, file_size(file.name, name))
