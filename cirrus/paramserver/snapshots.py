"""Recovery snapshots of one shard: what a later generation of it starts from.

A snapshot is one object, with a checksum for every array in it, and a small manifest that names it and is
replaced atomically afterwards; so there is always one that is whole. The one before it is kept until then.
"""

from __future__ import annotations

import json
import logging
import threading
import zlib
from dataclasses import asdict

from cirrus.config import from_plain
from cirrus.errors import ConfigError, CorruptDataError, NotFoundError
from cirrus.paramserver.checkpoint import Part, PartInfo, decode_part, write_part
from cirrus.run_folder import RunFolder

log = logging.getLogger(__name__)


class Snapshots:
    """Writes and reads the snapshots of one shard.

    Args:
        folder: The run's folder.
        shard: Whose.
    """

    def __init__(self, folder: RunFolder, shard: int) -> None:
        self._store = folder.store.child(f"snapshots/{shard}")
        self._lock = threading.Lock()
        self._number = 0
        self._previous: str | None = None

    def write(self, part: Part) -> None:
        """Write a snapshot and forget the one before."""
        with self._lock:
            self._number += 1
            info = write_part(self._store, f"{self._number:08d}.bin", part)
            self._store.put("newest.json", json.dumps(asdict(info)).encode())
            if self._previous is not None:
                self._store.delete(self._previous)
            self._previous = info.key

    def newest(self) -> Part | None:
        """Return the newest snapshot, or None when there is none.

        Raises:
            CorruptDataError: It was changed since it was written.
        """
        try:
            raw = self._store.get("newest.json")
        except NotFoundError:
            return None
        try:
            info = from_plain(PartInfo, json.loads(raw), "newest.json")
        except (ValueError, ConfigError) as error:
            raise CorruptDataError(f"{self._store.url}/newest.json: {error}") from error
        data = self._store.get(info.key)
        where = f"{self._store.url}/{info.key}"
        if zlib.crc32(data) != info.crc32:
            raise CorruptDataError(f"{where}: does not match its checksum")
        self._number = int(info.key.removesuffix(".bin"))
        self._previous = info.key
        log.info("restoring from %s", where)
        return decode_part(data, where)
