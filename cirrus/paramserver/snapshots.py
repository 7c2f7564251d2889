"""Recovery snapshots of one shard: what a later generation of it starts from.

A snapshot is one object, with a checksum for every array in it, and a small manifest that names it and is
replaced atomically afterwards; so there is always one that is whole. The one before it is kept until then.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import zlib
from dataclasses import asdict

from cirrus.config import from_plain, parse_json
from cirrus.errors import (
    CirrusError,
    ConfigError,
    ConflictError,
    CorruptDataError,
    NotFoundError,
    StorageError,
    SupersededError,
)
from cirrus.paramserver.checkpoint import Part, PartInfo, decode_part, write_part
from cirrus.run_folder import RunFolder

log = logging.getLogger(__name__)

NEWEST_KEY = "newest.json"
#: A shard that is lost has this long to do again, at most, where its tables are small.
SNAPSHOT_SECONDS = 2.0
#: In an object store over the network, where every snapshot is requests that cost money.
REMOTE_SNAPSHOT_SECONDS = 10.0
#: What a shard writes in snapshots, on average: little beside what training does.
SNAPSHOT_BYTES_PER_SECOND = 4 * 2**20
#: However large the tables are.
LONGEST_SNAPSHOT_SECONDS = 30.0


def snapshot_pause(wanted_seconds: float | None, table_bytes: int, *, is_remote: bool) -> float:
    """Return the seconds between two snapshots of a shard.

    Args:
        wanted_seconds: What its run asks for; None: as often as costs little.
        table_bytes: The memory of its tables: the larger they are, the more rarely they are written.
        is_remote: Whether they are written over the network.
    """
    if wanted_seconds is not None:
        return wanted_seconds
    shortest = REMOTE_SNAPSHOT_SECONDS if is_remote else SNAPSHOT_SECONDS
    return max(shortest, min(LONGEST_SNAPSHOT_SECONDS, table_bytes / SNAPSHOT_BYTES_PER_SECOND))


class Snapshots:
    """Writes and reads the snapshots of one shard.

    Args:
        folder: The run's folder.
        shard: Whose.
        generation: Of the shard; a newer one's snapshots are never replaced.
    """

    def __init__(self, folder: RunFolder, shard: int, generation: int) -> None:
        self._store = folder.store.child(f"snapshots/{shard}")
        self._generation = generation
        self._lock = threading.Lock()
        self._number = 0
        self._previous: str | None = None

    def write(self, part: Part) -> None:
        """Write a snapshot and forget the one before.

        Raises:
            SupersededError: A newer generation has written one.
            StorageError: It could not be written; the one before stands.
        """
        with self._lock:
            self._number += 1
            info = write_part(self._store, f"{self._generation:06d}-{self._number:08d}.bin", part)
            try:
                self._make_newest(info)
            except SupersededError:
                self._store.delete(info.key)
                raise
            except StorageError:
                self._abandon(info.key)
                raise
            if self._previous is not None:
                self._store.delete(self._previous)
            self._previous = info.key

    def _abandon(self, key: str) -> None:
        """Delete a snapshot that was not made the newest, unless it was, and only the word of it got lost."""
        with contextlib.suppress(CirrusError):  # left behind, it is cleared away with the others
            held = self._read_newest()
            if held is None or held[0].key != key:
                self._store.delete(key)

    def _make_newest(self, info: PartInfo) -> None:
        data = json.dumps(asdict(info)).encode()
        while True:
            held = self._read_newest()
            try:
                if held is None:
                    self._store.put(NEWEST_KEY, data, if_absent=True)
                    return
                key, etag = held[0].key, held[1]
                if _parse_name(key)[0] > self._generation:
                    raise SupersededError(f"{self._store.url}/{key}: a newer generation has written it")
                self._store.put(NEWEST_KEY, data, if_match=etag)
            except ConflictError:
                continue  # another generation writes at this very moment: look again who is newer
            return

    def _read_newest(self) -> tuple[PartInfo, str] | None:
        try:
            raw, etag = self._store.get_versioned(NEWEST_KEY)
        except NotFoundError:
            return None
        where = f"{self._store.url}/{NEWEST_KEY}"
        try:
            info = from_plain(PartInfo, parse_json(raw), NEWEST_KEY)
            _parse_name(info.key)
        except (ValueError, ConfigError) as error:
            raise CorruptDataError(f"{where}: {error}") from error
        return info, etag

    def newest(self) -> Part | None:
        """Return the newest snapshot, or None when there is none.

        Raises:
            CorruptDataError: It was changed since it was written.
        """
        held = self._read_newest()
        if held is None:
            return None
        info = held[0]
        data = self._store.get(info.key)
        where = f"{self._store.url}/{info.key}"
        if zlib.crc32(data) != info.crc32:
            raise CorruptDataError(f"{where}: does not match its checksum")
        self._previous = info.key
        generation, number = _parse_name(info.key)
        if generation == self._generation:
            self._number = number
        log.info("restoring from %s", where)
        return decode_part(data, where)

    def clear(self) -> None:
        """Delete all snapshots: the run is over and its model saved."""
        with self._lock:
            for key in self._store.list():
                self._store.delete(key)
            self._previous = None


def _parse_name(key: str) -> tuple[int, int]:
    """Return generation and number of a snapshot.

    Raises:
        ValueError: The name is not a snapshot's.
    """
    generation, _, number = key.removesuffix(".bin").partition("-")
    return int(generation), int(number)
