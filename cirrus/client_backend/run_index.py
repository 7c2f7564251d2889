"""The index: a SQLite file that remembers what was read from run folders, so that listing many is fast.

It is a cache and nothing more. Whatever is in it came from run folders and can be read from there again: an
index that is missing, damaged or of an older version is made anew, one of a newer version or that somebody
holds locked is left alone and done without.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cirrus.client_backend.homes import default_home, local_folder
from cirrus.client_backend.runs import RunSummary
from cirrus.config import from_plain
from cirrus.errors import ConfigError

log = logging.getLogger(__name__)

INDEX_NAME = "index.sqlite"
#: Raised whenever the tables, or what their rows mean, change.
INDEX_VERSION = 2
#: How long to wait for somebody who writes at this moment.
BUSY_SECONDS = 2.0
#: File systems over a network, on which the shared memory of SQLite's write-ahead log does not work.
NETWORK_FILE_SYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "9p", "ceph", "glusterfs", "lustre", "gpfs", "beegfs"}
)
_CREATE = """
CREATE TABLE IF NOT EXISTS runs (
    root TEXT NOT NULL, run_id TEXT NOT NULL, is_final INTEGER NOT NULL, summary TEXT NOT NULL,
    PRIMARY KEY (root, run_id)
) WITHOUT ROWID
"""


@dataclass(frozen=True, kw_only=True)
class IndexedRun:
    """What the index remembers of a run."""

    summary: RunSummary
    is_final: bool
    """True when nothing of it will change any more."""


def index_path(root: str) -> Path:
    """Return where the index of a root is: beside the runs, or at home when these are in a bucket."""
    folder = local_folder(root)
    if folder is not None:
        return folder / INDEX_NAME
    mark = hashlib.blake2b(root.encode(), digest_size=8).hexdigest()
    return Path(default_home()) / f"index-{mark}.sqlite"


def file_system_type(path: Path) -> str:
    """Return the kind of file system that a path is on, such as ``ext4``; empty where that cannot be told."""
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return ""
    target = os.path.realpath(path)
    best, kind = "", ""
    for line in lines:
        fields, _, rest = line.partition(" - ")
        mount = fields.split()[4].encode().decode("unicode_escape")  # spaces are written as \040
        covers = target == mount or target.startswith(mount.rstrip("/") + "/")
        if covers and len(mount) >= len(best):
            best, kind = mount, rest.split()[0]
    return kind


def is_network_file_system(kind: str) -> bool:
    """Tell whether a kind of file system is one over the network."""
    return kind in NETWORK_FILE_SYSTEMS or kind.startswith("fuse.")


class RunIndex:
    """Remembers runs by their root and id. May be used from several threads and processes.

    Nothing here raises for the sake of the index: without it, listing is slower and nothing else.

    Args:
        path: The file.
        root: The root of the runs.
        file_system: Tells the kind of file system of a path.
    """

    def __init__(
        self, path: Path, root: str, *, file_system: Callable[[Path], str] = file_system_type
    ) -> None:
        self._path = path
        self._root = root
        self._file_system = file_system
        self.problem: str | None = None
        """Why the index is done without, or None."""
        self._told: str | None = None
        """The problem that was logged: a dashboard looks every second."""

    def read(self) -> dict[str, IndexedRun]:
        """Return the runs that the index knows, by their ids."""
        found: dict[str, IndexedRun] = {}
        with self._open() as connection:
            if connection is not None:
                query = "SELECT run_id, is_final, summary FROM runs WHERE root = ?"
                for run_id, is_final, text in connection.execute(query, (self._root,)):
                    with contextlib.suppress(ValueError, RecursionError, ConfigError):  # then it is read anew
                        summary = from_plain(RunSummary, json.loads(text), run_id)
                        found[run_id] = IndexedRun(summary=summary, is_final=bool(is_final))
        return found

    def write(self, runs: Mapping[str, IndexedRun], gone: Iterable[str] = ()) -> None:
        """Remember runs, and forget others.

        Args:
            runs: What to remember, by run id.
            gone: Ids of runs that are there no more.
        """
        rows = [
            (self._root, run_id, int(run.is_final), json.dumps(dataclasses.asdict(run.summary)))
            for run_id, run in runs.items()
        ]
        forgotten = [(self._root, run_id) for run_id in gone]
        if not rows and not forgotten:
            return
        with self._open() as connection:
            if connection is not None:
                connection.executemany("INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?)", rows)
                connection.executemany("DELETE FROM runs WHERE root = ? AND run_id = ?", forgotten)
                connection.commit()

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection | None]:
        """Yield a connection, or None where the index is done without; note why."""
        self.problem = None
        connection = None
        try:
            connection = self._connect()
            yield connection
            if connection is not None:
                self._told = None
        except sqlite3.DatabaseError as error:
            if connection is None:
                # What is raised inside `with` is about the file too: the callers do nothing else.
                yield None
            self._note(f"{self._path}: {error}: listing reads every run folder instead")
        except OSError as error:
            if connection is None:
                yield None
            self._note(f"{self._path}: {error.strerror or error}: listing reads every run folder instead")
        finally:
            if connection is not None:
                connection.close()

    def _connect(self) -> sqlite3.Connection | None:
        """Open the file, made anew if it is damaged or old; None where it is of a newer version."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            connection, version = self._connect_once()
        except sqlite3.OperationalError:
            raise  # locked, or no permission: nothing is wrong with what it holds
        except sqlite3.DatabaseError as error:
            log.warning("%s: %s: it is made anew from the run folders", self._path, error)
            self._remove()
            connection, version = self._connect_once()
        if version > INDEX_VERSION:
            connection.close()
            self._note(
                f"{self._path}: is of a newer version of Cirrus: listing reads every run folder instead"
            )
            return None
        return connection

    def _connect_once(self) -> tuple[sqlite3.Connection, int]:
        connection = sqlite3.connect(self._path, timeout=BUSY_SECONDS)
        try:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version <= INDEX_VERSION:
                self._prepare(connection, version)
        except BaseException:
            connection.close()
            raise
        return connection, version

    def _prepare(self, connection: sqlite3.Connection, version: int) -> None:
        mode = "DELETE" if is_network_file_system(self._file_system(self._path.parent)) else "WAL"
        connection.execute(f"PRAGMA journal_mode={mode}")
        connection.execute("PRAGMA synchronous=NORMAL")
        (check,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if check != "ok":
            raise sqlite3.DatabaseError(check)
        if version < INDEX_VERSION:
            connection.execute("DROP TABLE IF EXISTS runs")
            connection.execute(f"PRAGMA user_version={INDEX_VERSION}")
        connection.execute(_CREATE)
        connection.commit()

    def _remove(self) -> None:
        for suffix in ("", "-wal", "-shm", "-journal"):
            Path(f"{self._path}{suffix}").unlink(missing_ok=True)

    def _note(self, problem: str) -> None:
        self.problem = problem
        if problem != self._told:
            self._told = problem
            log.warning("%s", problem)
