"""Objects as files below a folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from cirrus.errors import NotFoundError, StorageError
from cirrus.storage.base import (
    TEMPORARY_PREFIX,
    ObjectInfo,
    ObjectStore,
    check_conditions,
    check_folder,
    check_key,
    check_length,
    check_version,
    etag,
)

if TYPE_CHECKING:
    from types import TracebackType

#: A folder may vanish between making it and writing into it (a prefix is deleted): tries before giving up.
FOLDER_ATTEMPTS = 3


class FolderStore(ObjectStore):
    """Objects as files below a folder, which need not exist before the first write.

    Writes go to a temporary file that then takes the object's name in one step. Those steps, and deletions,
    take the lock of the directory (``flock``), which is what makes conditional writes safe between processes.
    """

    def __init__(self, folder: str) -> None:
        """Open a folder; see :func:`open_store`."""
        self._root = os.path.abspath(os.path.expanduser(folder))
        self.url = self._root

    def _path(self, key: str) -> str:
        return os.path.join(self._root, check_key(key))

    def get(self, key: str) -> bytes:
        """See :meth:`ObjectStore.get`."""
        path = self._path(key)
        with _os_errors(path), open(path, "rb") as file:
            return file.read()

    def get_private(self, key: str) -> bytes:
        """See :meth:`ObjectStore.get_private`."""
        path = self._path(key)
        with _os_errors(path), open(path, "rb") as file:
            status = os.fstat(file.fileno())
            if status.st_uid != os.geteuid() or status.st_mode & 0o077:
                raise StorageError(
                    f"{path}: must be this user's own file that nobody else may read (mode 0600): it belongs "
                    f"to user {status.st_uid}, mode {status.st_mode & 0o777:04o}; remove it"
                )
            return file.read()

    def get_secret(self, key: str) -> bytes:
        """See :meth:`ObjectStore.get_secret`."""
        path = self._path(key)
        with _os_errors(path), open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
            if mode & 0o077:
                raise StorageError(
                    f"{path}: is a secret, and others may use it (mode {mode:04o}): 'chmod 600' it if nobody "
                    "has, else begin anew"
                )
            return file.read()

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """See :meth:`ObjectStore.get_range`."""
        path = self._path(key)
        with _os_errors(path), open(path, "rb", buffering=0) as file:
            file.seek(start)
            data = file.read(length)
            while len(data) < length and (more := file.read(length - len(data))):
                data += more
        return check_length(data, self.url, key, start, length)

    def get_versioned(self, key: str) -> tuple[bytes, str]:
        """See :meth:`ObjectStore.get_versioned`."""
        data = self.get(key)
        return data, etag(data)

    def put(
        self,
        key: str,
        data: bytes | memoryview,
        *,
        if_match: str | None = None,
        if_absent: bool = False,
        private: bool = False,
    ) -> str | None:
        """See :meth:`ObjectStore.put`."""
        check_conditions(if_match, if_absent)
        path = self._path(key)
        is_conditional = if_match is not None or if_absent
        with _os_errors(path), _temporary_file(path, data, 0o600 if private else 0o666) as temporary:
            self._move(temporary, path, if_match, conditional=is_conditional)
        return etag(data) if is_conditional else None

    @classmethod
    def _move(cls, temporary: str, path: str, if_match: str | None, *, conditional: bool) -> None:
        with _DirectoryLock(os.path.dirname(path)):
            if conditional:
                check_version(cls._current_etag(path), if_match, path)
            os.replace(temporary, path)

    @staticmethod
    def _current_etag(path: str) -> str | None:
        try:
            with open(path, "rb") as file:
                return etag(file.read())
        except FileNotFoundError:
            return None

    def list(self, prefix: str = "") -> list[str]:
        """See :meth:`ObjectStore.list`."""
        folder = prefix.rpartition("/")[0]
        top = os.path.join(self._root, check_key(folder)) if folder else self._root
        keys = []
        with _os_errors(top):
            for directory, _, names in os.walk(top):
                relative = os.path.relpath(directory, self._root)
                base = "" if relative == "." else relative + "/"
                keys += [base + name for name in names if not name.startswith(TEMPORARY_PREFIX)]
        return sorted(key for key in keys if key.startswith(prefix))

    def folders(self, prefix: str = "") -> tuple[str, ...]:
        """See :meth:`ObjectStore.folders`."""
        top = self._path(check_folder(prefix)) if prefix else self._root
        absent = contextlib.suppress(FileNotFoundError, NotADirectoryError)
        with _os_errors(top), absent, os.scandir(top) as entries:
            return tuple(sorted(entry.name for entry in entries if entry.is_dir()))
        return ()

    def find(self, prefix: str = "") -> Sequence[ObjectInfo]:
        """See :meth:`ObjectStore.find`."""
        found = []
        for key in self.list(prefix):
            path = self._path(key)
            with _os_errors(path), contextlib.suppress(FileNotFoundError):
                status = os.stat(path)
                found.append(ObjectInfo(key, status.st_size, f"{status.st_mtime_ns}-{status.st_size}"))
        return found

    def delete(self, key: str) -> None:
        """See :meth:`ObjectStore.delete`."""
        path = self._path(key)
        absent = contextlib.suppress(FileNotFoundError, NotADirectoryError)
        with _os_errors(path), absent, _DirectoryLock(os.path.dirname(path)):
            os.unlink(path)

    def delete_prefix(self, prefix: str) -> None:
        """See :meth:`ObjectStore.delete_prefix`."""
        path = self._path(check_folder(prefix))
        with _os_errors(path):
            for attempt in range(FOLDER_ATTEMPTS):
                try:
                    shutil.rmtree(path)
                except (FileNotFoundError, NotADirectoryError):
                    if not os.path.isdir(path):
                        break
                except OSError:  # somebody wrote into it meanwhile
                    if attempt + 1 == FOLDER_ATTEMPTS:
                        raise
                else:
                    break
        self._remove_empty_folders(os.path.dirname(path))

    def _remove_empty_folders(self, folder: str) -> None:
        """Remove folders below the root that hold nothing any more, from the innermost: a store has none."""
        with contextlib.suppress(OSError):  # one holds something, or somebody else removed it
            while len(folder) > len(self._root):
                os.rmdir(folder)
                folder = os.path.dirname(folder)

    def is_made(self) -> bool:
        """See :meth:`ObjectStore.is_made`."""
        return os.path.isdir(self._root)

    def remove_if_empty(self) -> None:
        """See :meth:`ObjectStore.remove_if_empty`."""
        with contextlib.suppress(OSError):
            os.rmdir(self._root)

    def exists(self, key: str) -> bool:
        """See :meth:`ObjectStore.exists`."""
        return os.path.isfile(self._path(key))

    def child(self, prefix: str) -> ObjectStore:
        """See :meth:`ObjectStore.child`."""
        return FolderStore(os.path.join(self._root, check_folder(prefix)))


@contextlib.contextmanager
def _os_errors(path: str) -> Iterator[None]:
    """Translate the operating system's errors about a file."""
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise NotFoundError(f"{path}: there is no such file ({error.strerror})") from error
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror or error}") from error


@contextlib.contextmanager
def _temporary_file(path: str, data: bytes | memoryview, mode: int) -> Iterator[str]:
    """Write data beside ``path`` under a temporary name, which is gone afterwards if it was not moved."""
    folder = os.path.dirname(path)
    temporary = os.path.join(folder, TEMPORARY_PREFIX + secrets.token_hex(8))
    for attempt in range(FOLDER_ATTEMPTS):
        try:
            _make_folder(folder)
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            break
        except FileNotFoundError:
            if attempt + 1 == FOLDER_ATTEMPTS:
                raise
    try:
        with open(descriptor, "wb", buffering=0) as file:
            view = memoryview(data).cast("B")
            while view:
                view = view[file.write(view) :]
        yield temporary
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _make_folder(folder: str) -> None:
    try:
        os.makedirs(folder, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        file = folder
        while file != os.path.dirname(file) and not os.path.isfile(file):
            file = os.path.dirname(file)
        raise StorageError(f"{file}: is a file, where a folder is needed: name another place") from error


class _DirectoryLock:
    """Excludes other writers of a directory, in this process and in others, for a moment."""

    def __init__(self, folder: str) -> None:
        self._descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def __enter__(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        except OSError:
            os.close(self._descriptor)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)  # which unlocks
