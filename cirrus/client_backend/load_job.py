"""The folder of a load: what an interrupted one has done, kept beside the dataset that it is to become.

A load is known by its arguments and by the names, sizes and versions of its files. The same one finds its
folder again, and goes on with what is missing. Only one client at a time works on a load; another gets a
ConflictError. Folders that nobody went on with are removed by later loads to the same place.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
import secrets
import tempfile
import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from cirrus.chunks import MANIFEST_KEY, Manifest, discard_chunks, new_chunk_prefix, read_manifest
from cirrus.chunks.writer import CHUNK_PREFIX
from cirrus.client_backend.claims import new_claim, seize_claim
from cirrus.config import from_plain, parse_json
from cirrus.errors import (
    CirrusError,
    ConfigError,
    ConflictError,
    CorruptDataError,
    NotFoundError,
    RunError,
    StorageError,
)
from cirrus.run_folder import CLAIM_SECONDS, RunFolder
from cirrus.storage import ObjectStore, open_store

#: Loads have their folders below this one of the dataset.
LOADING_FOLDER = "loading"
#: Part of every load's identity: raised when pieces are written or rows are spread in another way.
LOAD_VERSION = 3
#: A load that nobody went on with for this long is removed by the next one to the same place.
LOAD_EXPIRY_SECONDS = 24 * 3600.0
RENEW_SECONDS = CLAIM_SECONDS / 4
_JOB_KEY = "job.json"


@dataclass(frozen=True, kw_only=True)
class LoadState:
    """What is decided once for a load, however often it is interrupted."""

    seed: int
    url: str
    """The dataset's."""
    prefix: str
    """Of the keys of its chunks."""
    created_at: float
    """Unix time."""
    made_folder: bool = False
    """True when there was no folder at the URL before: then a load that is refused leaves none."""

    def __post_init__(self) -> None:
        """Check that nothing but chunks can be below the prefix."""
        if not re.fullmatch(rf"{CHUNK_PREFIX}[0-9a-f]+/", self.prefix):
            raise ConfigError("prefix", f"{self.prefix!r} is not one of chunks")


def load_identity(arguments: dict[str, Any]) -> str:
    """Return a name that is the same for the same load, from values that JSON can hold."""
    key = json.dumps([LOAD_VERSION, arguments], sort_keys=True)
    return hashlib.sha256(key.encode()).hexdigest()[:32]


def is_begun(url: str, *roots: str) -> bool:
    """Return whether a load of a dataset has begun and was not ended, so that it can be gone on with.

    Args:
        url: The dataset's.
        roots: Where its folder may be, besides beside the dataset.
    """
    dataset = open_store(url)
    for root in (dataset, *map(open_store, roots)):
        with contextlib.suppress(CirrusError):
            for name in root.folders(LOADING_FOLDER):
                with contextlib.suppress(CirrusError):
                    if _state_of(root.child(f"{LOADING_FOLDER}/{name}")).url == dataset.url:
                        return True
    return False


class LoadJob:
    """One client's work on a load; a context that removes the folder unless the work can be gone on with.

    Args:
        store: The store at the dataset's URL.
        name: :func:`load_identity`; None: nobody can go on with this load, and its folder is a temporary
            one of this machine.
        seed: Of everything random; None: any.
        root: Where folders of loads are; None: beside the dataset.

    Raises:
        ConflictError: Another client works on the same load.
        StorageError: The object store refused or failed.
    """

    def __init__(
        self, store: ObjectStore, name: str | None, seed: int | None, root: ObjectStore | None = None
    ) -> None:
        self._store = store
        self._root = store if root is None else root
        self._name = name
        self._seed = secrets.randbits(64) if seed is None else int(seed)
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._claim: _Claim | None = None
        self._makes_folder = not store.is_made()
        self.folder: ObjectStore
        self.state: LoadState

    @property
    def is_temporary(self) -> bool:
        """Whether nobody can go on with this load."""
        return self._name is None

    def __enter__(self) -> LoadJob:
        if self._name is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="cirrus-load-")
            self.folder = open_store(self._temporary.name)
            self.state = self._fresh_state()
            return self
        self.folder = self._root.child(f"{LOADING_FOLDER}/{self._name}")
        self._claim = _Claim(self.folder.url, self._store.url)
        try:
            self._remove_others(LOAD_EXPIRY_SECONDS)
            self.state = self._found_state() or self._begin()
        except BaseException:
            self._claim.release()
            raise
        return self

    def _fresh_state(self) -> LoadState:
        return LoadState(
            seed=self._seed,
            url=self._store.url,
            prefix=new_chunk_prefix(),
            created_at=time.time(),
            made_folder=self._makes_folder,
        )

    def _found_state(self) -> LoadState | None:
        try:
            return _state_of(self.folder)
        except NotFoundError:
            return None

    def _begin(self) -> LoadState:
        state = self._fresh_state()
        self.folder.put(_JOB_KEY, json.dumps(dataclasses.asdict(state)).encode())
        return state

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._claim is not None:
            self._claim.stop()
        if error is not None and not self.is_temporary and _can_go_on(error):
            assert self._claim is not None
            self._claim.release()
            return
        is_lost = self._claim is not None and self._claim.is_lost
        if error is not None and not is_lost:
            discard_chunks(self._store, self.state.prefix)
        if self._temporary is not None:
            self._temporary.cleanup()
        elif not is_lost:
            # What cannot be removed now, a later load removes.
            with contextlib.suppress(StorageError):
                self._root.delete_prefix(f"{LOADING_FOLDER}/{self._name}")
                if error is None:
                    self._remove_others(0.0)
        if error is not None and not is_lost and self.state.made_folder:
            self._store.remove_if_empty()

    def _remove_others(self, older_than_seconds: float) -> None:
        """Remove what loads have left that nobody works on, and that were begun so long ago."""
        keys = self._root.list(f"{LOADING_FOLDER}/")
        for name in {key.split("/")[1] for key in keys if key.count("/") > 1} - {self._name}:
            folder = self._root.child(f"{LOADING_FOLDER}/{name}")
            try:
                state = _state_of(folder)
                is_other = self._root is not self._store and state.url != self._store.url
                age_seconds = LOAD_EXPIRY_SECONDS if is_other else older_than_seconds
                if time.time() - state.created_at < age_seconds:
                    continue
                with _Claim(folder.url, state.url):
                    discard_chunks(open_store(state.url) if is_other else self._store, state.prefix)
                    self._root.delete_prefix(f"{LOADING_FOLDER}/{name}")
            except (NotFoundError, CorruptDataError, ConfigError, ConflictError):
                continue  # it is just begun, being removed, or somebody works on it

    def check(self) -> None:
        """Raise a ConflictError if another client has taken this load over meanwhile."""
        if self._claim is not None:
            self._claim.check()

    def committed(self) -> Manifest | None:
        """Return the dataset's manifest, if an earlier client came as far as that."""
        if self.is_temporary or not self._store.exists(MANIFEST_KEY):
            return None
        with contextlib.suppress(CorruptDataError, NotFoundError):
            manifest = read_manifest(self._store)
            if any(chunk.key.startswith(self.state.prefix) for chunk in manifest.chunks):
                return manifest
        return None


def _can_go_on(error: BaseException) -> bool:
    """Return whether doing the same again could end otherwise than with this error."""
    if isinstance(error, Exception):
        return isinstance(error, (StorageError, RunError)) and not isinstance(error, ConflictError)
    return True


def _state_of(folder: ObjectStore) -> LoadState:
    data = folder.get(_JOB_KEY)
    try:
        return from_plain(LoadState, parse_json(data), _JOB_KEY)
    except ValueError as error:
        where = f"{folder.url}/{_JOB_KEY}"
        raise CorruptDataError(f"{where}: cannot be read ({error}): delete {folder.url}") from error


class _Claim:
    """This client's claim on a load's folder, renewed by a thread for as long as it lives."""

    def __init__(self, url: str, dataset_url: str) -> None:
        self._folder = RunFolder(url)
        self._dataset_url = dataset_url
        self._claim = new_claim()
        self._stop = threading.Event()
        self._lost: CirrusError | None = None
        try:
            self._claim = seize_claim(self._folder, self._claim)
        except ConflictError as error:
            raise ConflictError(
                f"{dataset_url}: the same data is being loaded here by another process: wait for it, or "
                "choose another URL"
            ) from error
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    def _renew(self) -> None:
        while not self._stop.wait(RENEW_SECONDS):
            try:
                self._folder.claim(dataclasses.replace(self._claim, renewed_at=time.time()))
            except ConflictError as error:
                self._lost = error
                return
            except CirrusError:  # the store may be back when the claim is renewed next
                continue

    @property
    def is_lost(self) -> bool:
        return self._lost is not None

    def check(self) -> None:
        if self._lost is not None:
            raise ConflictError(
                f"{self._dataset_url}: another process went on with this load, as this one seemed to be dead"
            ) from self._lost

    def __enter__(self) -> None:
        """Hold the claim for as long as the context lasts."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def release(self) -> None:
        """Let others go on with the load at once."""
        self.stop()
        with contextlib.suppress(CirrusError):  # it lapses by itself
            self._folder.claim(dataclasses.replace(self._claim, released=True))
