"""Objects in the memory of this process, by name; for ``inline`` runs, tests and data made on the fly."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from cirrus.errors import NotFoundError
from cirrus.storage.base import (
    ObjectInfo,
    ObjectStore,
    check_conditions,
    check_folder,
    check_key,
    check_length,
    check_version,
    etag,
)


class _MemoryObjects:
    """The objects of one named memory store."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.objects: dict[str, bytes] = {}


class _MemoryRegistry:
    """All memory stores of this process by name; what makes ``memory://NAME`` an address."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stores: dict[str, _MemoryObjects] = {}

    def open(self, name: str) -> _MemoryObjects:
        with self._lock:
            return self._stores.setdefault(name, _MemoryObjects())

    def drop(self, name: str) -> None:
        with self._lock:
            self._stores.pop(name, None)


_MEMORY = _MemoryRegistry()


class MemoryStore(ObjectStore):
    """Objects in this process' memory, shared by all that open the same name."""

    def __init__(self, name: str, prefix: str = "") -> None:
        """Open the store ``memory://NAME/PREFIX``; see :func:`open_store`."""
        self.url = f"memory://{name}/{prefix}".rstrip("/")
        self._name = name
        self._prefix = prefix
        self._root = f"{check_folder(prefix)}/" if prefix else ""

    @property
    def _shared(self) -> _MemoryObjects:
        # Looked up each time, so that a store that was dropped does not live on in an old handle.
        return _MEMORY.open(self._name)

    def get(self, key: str) -> bytes:
        """See :meth:`ObjectStore.get`."""
        try:
            return self._shared.objects[self._root + check_key(key)]
        except KeyError:
            raise NotFoundError(f"{self.url}/{key}: there is no such object") from None

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """See :meth:`ObjectStore.get_range`."""
        return check_length(self.get(key)[start : start + length], self.url, key, start, length)

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
        path = self._root + check_key(key)
        new = bytes(data)
        shared = self._shared
        with shared.lock:
            is_conditional = if_match is not None or if_absent
            if is_conditional:
                current = shared.objects.get(path)
                check_version(None if current is None else etag(current), if_match, f"{self.url}/{key}")
            shared.objects[path] = new
        return etag(new) if is_conditional else None

    def list(self, prefix: str = "") -> list[str]:
        """See :meth:`ObjectStore.list`."""
        shared = self._shared
        with shared.lock:
            keys = list(shared.objects)
        return sorted(k[len(self._root) :] for k in keys if k.startswith(self._root + prefix))

    def find(self, prefix: str = "") -> Sequence[ObjectInfo]:
        """See :meth:`ObjectStore.find`."""
        objects = self._shared.objects
        found = ((key, objects.get(self._root + key)) for key in self.list(prefix))
        return [ObjectInfo(key, len(data), etag(data)) for key, data in found if data is not None]

    def delete(self, key: str) -> None:
        """See :meth:`ObjectStore.delete`."""
        shared = self._shared
        with shared.lock:
            shared.objects.pop(self._root + check_key(key), None)

    def delete_prefix(self, prefix: str) -> None:
        """See :meth:`ObjectStore.delete_prefix`."""
        for key in self.list(check_folder(prefix) + "/"):
            self.delete(key)

    def exists(self, key: str) -> bool:
        """See :meth:`ObjectStore.exists`."""
        return self._root + check_key(key) in self._shared.objects

    def child(self, prefix: str) -> ObjectStore:
        """See :meth:`ObjectStore.child`."""
        return MemoryStore(self._name, self._root + check_folder(prefix))


def drop_memory_store(name: str) -> None:
    """Forget all objects of the memory store ``name``; nothing happens where there is none."""
    _MEMORY.drop(name)
