"""What a dataset says of itself: ``manifest.json``, the one object that makes chunks a dataset.

It is written last, in one step, and never changed. A dataset that is loaded anew gets other chunk keys and a
new manifest, so that readers of the old one are not disturbed before it is replaced.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cirrus.chunks.touches import Touches
from cirrus.config import from_plain
from cirrus.errors import ConfigError, CorruptDataError, NotFoundError
from cirrus.storage import ObjectStore

MANIFEST_KEY = "manifest.json"
MANIFEST_VERSION = 1
#: Distinct labels are listed up to this many; more are numbers to be predicted, not classes.
MAX_LABEL_VALUES = 1000


@dataclass(frozen=True, kw_only=True)
class ChunkInfo:
    """One chunk: where it is, and where its blocks are in it."""

    key: str
    """Relative to the dataset's URL."""
    crc32: int
    block_rows: tuple[int, ...]
    """Number of rows of each block."""
    block_offsets: tuple[int, ...]
    """Where each block begins in the object, and the object's length: one more than there are blocks."""

    def __post_init__(self) -> None:
        """Check that there are blocks with rows, and that they fill the object."""
        if not self.block_rows or min(self.block_rows) < 1:
            raise ConfigError("block_rows", f"of {self.key} must be at least one block, each with rows")
        o = self.block_offsets
        if len(o) != len(self.block_rows) + 1 or o[0] != 0 or list(o) != sorted(o):
            raise ConfigError("block_offsets", f"of {self.key} do not fit its {len(self.block_rows)} blocks")

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return sum(self.block_rows)

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return len(self.block_rows)

    @property
    def n_bytes(self) -> int:
        """Length of the object."""
        return self.block_offsets[-1]


@dataclass(frozen=True, kw_only=True)
class VocabularyInfo:
    """Where one of a dataset's vocabularies is (:class:`~cirrus.chunks.vocabulary.Vocabulary`)."""

    name: str
    """What it names: ``"users"``, ``"items"``, ``"words"``."""
    key: str
    """Relative to the dataset's URL."""
    n_ids: int
    crc32: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A dataset, but for its rows."""

    n_rows: int
    n_features: int
    chunks: tuple[ChunkInfo, ...]
    label_values: tuple[float, ...]
    """The distinct labels, ascending; empty when there are more than :data:`MAX_LABEL_VALUES`."""
    label_counts: tuple[int, ...]
    """Rows with each of the ``label_values``."""
    touches: Touches
    fingerprint: str
    """The same for the same rows in the same order, wherever they are stored."""
    label_names: tuple[str, ...] | None = None
    """For labels that were text: label k (0, 1, ...) was written so."""
    single_label_blocks: int = 0
    """Blocks whose rows all have the same label although the dataset has several."""
    has_weights: bool = False
    has_negatives: bool = False
    """Whether a value is known to be below 0; datasets of earlier versions do not say."""
    encoding: Mapping[str, Any] = field(default_factory=dict)
    """How raw rows became columns: what is needed to read further rows in the same way."""
    vocabularies: tuple[VocabularyInfo, ...] = ()
    """What features are called, where they are ids of a kind or words."""
    version: int = MANIFEST_VERSION

    def __post_init__(self) -> None:
        """Check what could not be checked by the parts."""
        if self.n_rows != sum(chunk.n_rows for chunk in self.chunks):
            raise ConfigError("n_rows", "is not the sum of the chunks' rows")
        if self.touches.edges[-1] != self.n_features:
            raise ConfigError("touches", "must cover all features")
        if len(self.label_values) != len(self.label_counts):
            raise ConfigError("label_counts", "must be one for each label value")
        names = self.label_names
        if names is not None and not all(v.is_integer() and 0 <= v < len(names) for v in self.label_values):
            raise ConfigError("label_names", f"must name each label, and there are {len(names)}")

    @property
    def n_blocks(self) -> int:
        """Number of blocks of all chunks."""
        return sum(chunk.n_blocks for chunk in self.chunks)

    @property
    def n_bytes(self) -> int:
        """Bytes of all chunks."""
        return sum(chunk.n_bytes for chunk in self.chunks)

    def to_json(self) -> bytes:
        """Return the manifest as UTF-8 JSON."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, data: bytes, name: str = MANIFEST_KEY) -> Manifest:
        """Read a manifest back.

        Args:
            data: What :meth:`to_json` gave.
            name: What to call it in an error message.

        Raises:
            CorruptDataError: It is not a manifest of this version of Cirrus.
        """
        try:
            raw = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise CorruptDataError(f"{name}: is not JSON ({error}): load the data again") from error
        version = raw.get("version") if isinstance(raw, dict) else None
        if version != MANIFEST_VERSION:
            raise CorruptDataError(
                f"{name}: is of version {version!r}, this version of Cirrus reads {MANIFEST_VERSION}: "
                "load the data again"
            )
        try:
            return from_plain(cls, raw, name)
        except (ConfigError, IndexError) as error:
            problem = str(error) if str(error).startswith(name) else f"{name}: {error}"
            raise CorruptDataError(f"{problem}: load the data again") from error


def fingerprint(
    chunks: tuple[ChunkInfo, ...],
    n_features: int,
    label_names: tuple[str, ...] | None,
    vocabularies: tuple[VocabularyInfo, ...] = (),
) -> str:
    """Return a hash of a dataset's content: what :attr:`Manifest.fingerprint` holds."""
    content: list[Any] = [n_features, label_names, [(chunk.crc32, chunk.block_rows) for chunk in chunks]]
    if vocabularies:
        content.append([(vocabulary.name, vocabulary.n_ids, vocabulary.crc32) for vocabulary in vocabularies])
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def read_manifest(store: ObjectStore) -> Manifest:
    """Read the manifest of the dataset at a store's URL.

    Raises:
        NotFoundError: There is no dataset.
        CorruptDataError: Its manifest cannot be read.
    """
    try:
        data = store.get(MANIFEST_KEY)
    except NotFoundError as error:
        raise NotFoundError(
            f"{store.url}: there is no dataset: store one with 'cirrus load' or cirrus.load_svmlight"
        ) from error
    manifest = Manifest.from_json(data, f"{store.url}/{MANIFEST_KEY}")
    expected = fingerprint(manifest.chunks, manifest.n_features, manifest.label_names, manifest.vocabularies)
    if manifest.fingerprint != expected:
        raise CorruptDataError(
            f"{store.url}/{MANIFEST_KEY}: its fingerprint is not that of its chunks: load the data again"
        )
    return manifest
