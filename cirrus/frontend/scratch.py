"""Storage for what a training job needs only while it runs: arrays as datasets, a model to start from."""

from __future__ import annotations

import logging
import re
import secrets
import shutil
import tempfile
import weakref
from collections.abc import Callable

from cirrus.chunks import MANIFEST_KEY, read_manifest
from cirrus.errors import CirrusError, ConfigError
from cirrus.storage import drop_memory_store, open_store

log = logging.getLogger(__name__)

#: Scratch places of command lines lie below this folder of the root of runs.
SCRATCH_FOLDER = "scratch"
_SCRATCH_NAME = re.compile(r"[0-9a-f]{16}")


class Scratch:
    """A place of its own; gone when closed, or when the program ends.

    Args:
        url: An object-store URL that nobody else uses; None: a new folder of this machine's temporary files.
        reaches: Tells whether shards and workers can read at a URL; None: at all but ``memory:``.
    """

    def __init__(self, url: str | None = None, *, reaches: Callable[[str], bool] | None = None) -> None:
        self._reaches = reaches or (lambda dataset_url: not dataset_url.startswith("memory:"))
        if url is None:
            self._root = tempfile.mkdtemp(prefix="cirrus-")
            self._remove = weakref.finalize(self, _remove_folder, self._root)
        elif url.startswith("memory://"):
            self._root = url
            self._remove = weakref.finalize(self, drop_memory_store, url.removeprefix("memory://"))
        else:
            self._root = url
            self._remove = weakref.finalize(self, _remove_quietly, url)

    def url(self, name: str) -> str:
        """Return the object-store URL for something called ``name``."""
        return f"{self._root}/{name}"

    def reachable(self, dataset_url: str, name: str) -> str:
        """Return a URL at which shards and workers can read a dataset.

        A dataset that they cannot read where it is, such as one in the memory of this process, is copied.

        Args:
            dataset_url: Where the dataset is.
            name: What to call a copy.
        """
        if self._reaches(dataset_url):
            return dataset_url
        source, target = open_store(dataset_url), open_store(self.url(name))
        manifest = read_manifest(source)
        named = (vocabulary.key for vocabulary in manifest.vocabularies)
        for key in [*(chunk.key for chunk in manifest.chunks), *named, MANIFEST_KEY]:
            target.put(key, source.get(key))
        return target.url

    def close(self) -> None:
        """Remove everything. Closing twice is harmless."""
        self._remove()


def memory_scratch_url() -> str:
    """Return a URL in the memory of this process that nobody else uses."""
    return f"memory://scratch-{secrets.token_hex(8)}"


def _remove_quietly(name: str) -> None:
    """Remove what a job needed from a store; a bucket has a rule that removes later what stays now."""
    try:
        remove_below(name)
    except CirrusError as error:
        log.warning("%s: left behind: %s", name, error)


def _remove_folder(name: str) -> None:
    shutil.rmtree(name, ignore_errors=True)


def new_scratch_url(root: str) -> str:
    """Return a URL below the root of runs that nobody else uses."""
    return f"{root}/{SCRATCH_FOLDER}/{secrets.token_hex(8)}"


def is_scratch_url(url: str, root: str) -> bool:
    """Return whether a URL is one that :func:`new_scratch_url` can have given; no other is ours to delete.

    Args:
        url: What a run says is its scratch place; anybody may have written it.
        root: The root of runs.
    """
    parent, _, name = url.rpartition("/")
    if not parent or not _SCRATCH_NAME.fullmatch(name):
        return False
    try:
        return open_store(parent).url == open_store(f"{root}/{SCRATCH_FOLDER}").url
    except ConfigError:
        return False


def remove_below(url: str) -> None:
    """Remove everything below an object-store URL, such as a run's scratch place."""
    parent, _, name = url.rstrip("/").rpartition("/")
    open_store(parent).delete_prefix(name)
