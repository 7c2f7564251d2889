"""Object stores: a folder, the memory of this process, or S3, behind one small interface.

:func:`open_store` turns a URL into an :class:`ObjectStore`. Keys are relative paths (``chunks/000001``)
below the store's URL. What every store promises, and the same tests prove for each of them:

- A reader sees an object whole or not at all, the old one or the new one, never a mixture.
- A conditional ``put`` (``if_match``, ``if_absent``) is decided and done in one instant, also between
  processes.
- ``list`` is complete and sorted.
- Every failure is a :class:`~cirrus.errors.StorageError` that names the object.

Each kind of store is imported when the first one is opened: a function has no folders, and starts without.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from cirrus.errors import ConfigError
from cirrus.storage.base import ObjectInfo, ObjectStore

if TYPE_CHECKING:
    from cirrus.storage.folder import FolderStore
    from cirrus.storage.memory import MemoryStore, drop_memory_store
    from cirrus.storage.s3 import S3Store
    from cirrus.storage.s3_clients import S3Options

_HOMES = {
    "FolderStore": "cirrus.storage.folder",
    "MemoryStore": "cirrus.storage.memory",
    "S3Options": "cirrus.storage.s3_clients",
    "S3Store": "cirrus.storage.s3",
    "drop_memory_store": "cirrus.storage.memory",
}

__all__ = [
    "FolderStore",
    "MemoryStore",
    "ObjectInfo",
    "ObjectStore",
    "S3Options",
    "S3Store",
    "drop_memory_store",
    "open_store",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'cirrus.storage' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def open_store(url: str | os.PathLike[str], *, s3: S3Options | None = None) -> ObjectStore:
    """Open the object store at a URL. Nothing is read, written or connected yet.

    Args:
        url: A folder's path, ``file:///path``, ``memory://NAME/prefix`` (this process alone) or
            ``s3://bucket/prefix``.
        s3: Timeouts and endpoint for S3.

    Raises:
        ConfigError: The URL is of no known kind or incomplete.
    """
    text = os.fspath(url)
    scheme, separator, rest = text.partition("://")
    if not text:
        raise ConfigError("url", "is empty; give a folder or s3://bucket/prefix")
    if not separator or scheme == "file":
        return _folder(text if not separator else rest, text)
    name, _, prefix = rest.partition("/")
    prefix = prefix.strip("/")
    if scheme not in ("memory", "s3"):
        raise ConfigError(
            "url", f"{text!r} is of no known kind; use a folder, memory://NAME or s3://bucket/prefix"
        )
    if not name:
        raise ConfigError("url", f"{text!r} has no {'bucket' if scheme == 's3' else 'name'}")
    if scheme == "memory":
        from cirrus.storage.memory import MemoryStore

        return MemoryStore(name, prefix)
    from cirrus.storage.s3 import S3Store
    from cirrus.storage.s3_clients import S3Options

    return S3Store(name, prefix, s3 or S3Options())


def _folder(path: str, url: str) -> ObjectStore:
    from cirrus.storage.folder import FolderStore

    if path == url:
        return FolderStore(path)
    from urllib.parse import unquote

    if not path.startswith("/"):
        raise ConfigError("url", f"{url!r} names a host; write file:///path or just the path")
    return FolderStore(unquote(path))
