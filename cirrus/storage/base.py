"""What an object store promises, and the checks that every store makes."""

from __future__ import annotations

import abc
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from cirrus.errors import ConfigError, ConflictError, CorruptDataError

#: Names in a folder that begin with this are unfinished writes and no objects.
TEMPORARY_PREFIX = ".tmp-"


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a listing says of an object."""

    key: str
    n_bytes: int
    version: str
    """Another one whenever the object was written again: an etag, or time and size of a file."""


class ObjectStore(abc.ABC):
    """Objects (bytes) by key, below one URL. All methods may be called from several threads.

    Attributes:
        url: Where the store is rooted; ``open_store(url)`` in another process opens the same one (except for
            ``memory://``, which belongs to one process).
    """

    url: str

    @abc.abstractmethod
    def get(self, key: str) -> bytes:
        """Return an object.

        Raises:
            NotFoundError: There is none.
            StorageError: The store refused or failed.
        """

    def get_private(self, key: str) -> bytes:
        """Return an object that was written with ``private=True``, if only this user can have written it.

        Raises:
            NotFoundError: There is none.
            StorageError: The store refused or failed; in a folder also: it is another user's, or others may
                read or write it.
        """
        return self.get(key)

    def get_secret(self, key: str) -> bytes:
        """Return an object that was written with ``private=True``, if it is still private.

        Raises:
            NotFoundError: There is none.
            StorageError: The store refused or failed; in a folder also: others may read or write it.
        """
        return self.get(key)

    @abc.abstractmethod
    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Return ``length`` bytes of an object from ``start`` on.

        Raises:
            NotFoundError: There is no such object.
            CorruptDataError: The object ends before ``start + length``.
            StorageError: The store refused or failed.
        """

    @abc.abstractmethod
    def get_versioned(self, key: str) -> tuple[bytes, str]:
        """Return an object and its etag, for a later ``put(..., if_match=etag)``.

        Raises:
            NotFoundError: There is no such object.
            StorageError: The store refused or failed.
        """

    @abc.abstractmethod
    def put(
        self,
        key: str,
        data: bytes | memoryview,
        *,
        if_match: str | None = None,
        if_absent: bool = False,
        private: bool = False,
    ) -> str | None:
        """Write an object, atomically.

        Args:
            key: Where to.
            data: The whole object.
            if_match: Write only over the version with this etag.
            if_absent: Write only where there is no object yet.
            private: In a folder, let nobody but this user read it (mode 0600). Elsewhere access is a matter
                of the bucket's or the process' own rights, and this changes nothing.

        Returns:
            Its etag if there was a condition; else None, because it may have to be computed from the whole
            object, which takes as long as writing that.

        Raises:
            ConflictError: The condition did not hold.
            StorageError: The store refused or failed.
        """

    @abc.abstractmethod
    def list(self, prefix: str = "") -> list[str]:
        """Return the sorted keys that begin with the string ``prefix`` (``"a/b"`` finds ``"a/bc"`` too)."""

    def folders(self, prefix: str = "") -> tuple[str, ...]:
        """Return the sorted names of the folders directly below the folder ``prefix`` (``""``: the store).

        Raises:
            StorageError: The store refused or failed.
        """
        start = f"{check_folder(prefix)}/" if prefix else ""
        keys = (key[len(start) :] for key in self.list(start))
        return tuple(sorted({key.partition("/")[0] for key in keys if "/" in key}))

    @abc.abstractmethod
    def find(self, prefix: str = "") -> Sequence[ObjectInfo]:
        """Return what :meth:`list` does, with size and version of each object."""

    @abc.abstractmethod
    def delete(self, key: str) -> None:
        """Remove an object; nothing happens where there is none."""

    @abc.abstractmethod
    def delete_prefix(self, prefix: str) -> None:
        """Remove every object below the folder ``prefix`` (``"a/b"`` leaves ``"a/bc"`` alone).

        Raises:
            ConfigError: The prefix is empty: that could be a folder with much else in it.
        """

    def is_made(self) -> bool:
        """Return whether the store is there already without any object in it, as a folder may be."""
        return True

    def remove_if_empty(self) -> None:  # noqa: B027 - most stores have nothing where there are no objects
        """Remove what is left of a store without any object, such as an empty folder."""

    @abc.abstractmethod
    def exists(self, key: str) -> bool:
        """Return whether there is such an object."""

    @abc.abstractmethod
    def child(self, prefix: str) -> ObjectStore:
        """Return the store of the keys below the folder ``prefix``."""


def check_key(key: str) -> str:
    """Return the key, or raise a ConfigError if it could lead out of the store."""
    parts = key.split("/")
    if not key or "\0" in key or any(p in ("", ".", "..") or p.startswith(TEMPORARY_PREFIX) for p in parts):
        raise ConfigError("key", f"{key!r} is no relative path such as 'folder/name'")
    return key


def check_folder(prefix: str) -> str:
    """Return a folder prefix without its last slash."""
    return check_key(prefix.removesuffix("/"))


def check_conditions(if_match: str | None, if_absent: bool) -> None:
    """Raise a ConfigError when both conditions of a ``put`` are given."""
    if if_match is not None and if_absent:
        raise ConfigError("if_match", "cannot be combined with if_absent")


def check_length(data: bytes, url: str, key: str, start: int, length: int) -> bytes:
    """Return what a range read gave, or raise a CorruptDataError if it is too short."""
    if len(data) != length:
        raise CorruptDataError(
            f"{url}/{key}: bytes {start} to {start + length} are wanted, but the object is shorter: "
            "it was truncated, load the data again"
        )
    return data


def etag(data: bytes | memoryview) -> str:
    """Return the etag of an object in a store that has none of its own: a hash of the content."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def check_version(current: str | None, if_match: str | None, name: str) -> None:
    """Raise a ConflictError unless the current etag is the one expected (None: no object)."""
    if current == if_match:
        return
    if if_match is None:
        raise ConflictError(f"{name}: exists already")
    raise ConflictError(f"{name}: was changed or removed by another writer")
