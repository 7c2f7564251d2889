"""Checkpoints, recovery snapshots and saved models: one format for the three.

A checkpoint is a folder of an object store: ``part-K.bin`` objects, each holding some rows of every table
(weights and optimizer state), and ``checkpoint.json``, written last, that names the parts with their
checksums. It can be restored to any number of shards. A part is a JSON head and raw little-endian float32
arrays; nothing in it is ever executed.

A recovery snapshot is one part with the marks of its shard, under ``snapshots/SHARD/``.
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cirrus.config import from_plain
from cirrus.errors import ConfigError, CorruptDataError, NotFoundError
from cirrus.storage import ObjectStore, open_store

Floats = NDArray[np.float32]

MANIFEST_KEY = "checkpoint.json"
#: Of the checkpoints in a folder it names the newest.
LATEST_KEY = "latest"
FORMAT_VERSION = 1
_MAGIC = b"CRPART01"
_HEAD = struct.Struct("<8sI")
#: What checkpoints that shard 0 cuts are called: by the steps in them, so that names sort by age.
_STEPS_NAME = re.compile(r"step-[0-9]{12,20}")
#: What a checkpoint may be called in a folder of them.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
#: The JSON head of a part is small; a longer one is not ours.
MAX_HEAD_BYTES = 64 * 2**20


@dataclass(frozen=True, kw_only=True)
class TablePart:
    """Some consecutive rows of one table."""

    name: str
    first_row: int
    arrays: Mapping[str, Floats]
    """``weights`` and the optimizer's state arrays, each float32 ``(n_rows, width)``."""

    @property
    def n_rows(self) -> int:
        """Number of rows held."""
        return len(self.arrays["weights"])


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one shard writes at one moment."""

    tables: tuple[TablePart, ...]
    extra: Mapping[str, Any] = field(default_factory=dict)
    """JSON: marks and counters of the shard, the ledger of shard 0."""


@dataclass(frozen=True, kw_only=True)
class PartInfo:
    """How the manifest names a part."""

    key: str
    n_bytes: int
    crc32: int


@dataclass(frozen=True, kw_only=True)
class CheckpointManifest:
    """``checkpoint.json``."""

    version: int
    parts: tuple[PartInfo, ...]
    extra: Mapping[str, Any] = field(default_factory=dict)
    """JSON: what a resuming run has to know (data fingerprint, batch size, leases, ledger, marks)."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A whole checkpoint in memory."""

    tables: Mapping[str, Mapping[str, Floats]]
    """Table name to ``weights`` and state arrays, each float32 ``(n_rows, width)``."""
    extra: Mapping[str, Any] = field(default_factory=dict)


def encode_part(part: Part) -> bytes:
    """Return a part as bytes."""
    tables = []
    payload: list[Floats] = []
    for table in part.tables:
        arrays = []
        for name, array in table.arrays.items():
            raw = np.ascontiguousarray(array, "<f4")
            arrays.append({"name": name, "shape": list(array.shape), "crc32": zlib.crc32(raw)})
            payload.append(raw)
        tables.append({"name": table.name, "first_row": table.first_row, "arrays": arrays})
    head = json.dumps({"tables": tables, "extra": dict(part.extra)}).encode()
    return b"".join([_HEAD.pack(_MAGIC, len(head)), head, *(raw.data for raw in payload)])


def decode_part(data: bytes, where: str) -> Part:
    """Read a part.

    Args:
        data: What :func:`encode_part` returned.
        where: What to call the object in an error message.

    Raises:
        CorruptDataError: The data is truncated, changed or not a part.
    """
    try:
        return _decode_part(data)
    except (ValueError, OverflowError, KeyError, TypeError, struct.error, RecursionError) as error:
        raise CorruptDataError(f"{where}: {error}") from error


def _decode_part(data: bytes) -> Part:
    magic, head_bytes = _HEAD.unpack_from(data)
    if magic != _MAGIC:
        raise ValueError("is not a part of a checkpoint")
    if head_bytes > min(MAX_HEAD_BYTES, len(data)):
        raise ValueError("is truncated")
    offset = _HEAD.size + head_bytes
    head = json.loads(data[_HEAD.size : offset])
    tables = []
    for table in head["tables"]:
        arrays = {}
        for spec in table["arrays"]:
            n_rows, width = (int(v) for v in spec["shape"])
            if n_rows < 0 or width < 0:
                raise ValueError("an array has a negative shape")
            n_bytes = n_rows * width * 4
            raw = data[offset : offset + n_bytes]
            if len(raw) != n_bytes or zlib.crc32(raw) != spec["crc32"]:
                raise ValueError(f"array {spec['name']} of table {table['name']} is truncated or changed")
            arrays[str(spec["name"])] = np.frombuffer(raw, "<f4").reshape(n_rows, width)
            offset += n_bytes
        _check_arrays(arrays, f"table {table['name']}")
        tables.append(TablePart(name=str(table["name"]), first_row=int(table["first_row"]), arrays=arrays))
    if not isinstance(head["extra"], dict):
        raise TypeError("extra must be an object")
    return Part(tables=tuple(tables), extra=head["extra"])


def _check_arrays(arrays: Mapping[str, Floats], name: str) -> None:
    if "weights" not in arrays:
        raise ValueError(f"{name} has no weights")
    if len({array.shape for array in arrays.values()}) > 1:
        raise ValueError(f"{name} has arrays of several shapes")


def write_part(store: ObjectStore, key: str, part: Part) -> PartInfo:
    """Write a part and return how a manifest names it."""
    data = encode_part(part)
    store.put(key, data)
    return PartInfo(key=key, n_bytes=len(data), crc32=zlib.crc32(data))


def write_shard_part(store: ObjectStore, shard: int, part: Part) -> None:
    """Write a shard's part, and leave its checksum for shard 0, which writes the manifest."""
    info = write_part(store, _part_key(shard), part)
    store.put(_info_key(shard), json.dumps(asdict(info)).encode())


def _part_key(shard: int) -> str:
    return f"part-{shard}.bin"


def _info_key(shard: int) -> str:
    return f"part-{shard}.json"


def read_part_infos(store: ObjectStore, n_shards: int) -> list[PartInfo]:
    """Read what the shards left, and take it away: the manifest will hold it.

    Raises:
        NotFoundError: A shard has left nothing.
        CorruptDataError: It left something else.
    """
    infos = []
    for shard in range(n_shards):
        key = _info_key(shard)
        data = store.get(key)
        try:
            infos.append(from_plain(PartInfo, json.loads(data), f"{store.url}/{key}"))
        except (ValueError, RecursionError) as error:
            raise CorruptDataError(f"{store.url}/{key}: {error}") from error
        store.delete(key)
    return infos


def name_of_steps(n_steps: int) -> str:
    """Return what the checkpoint after so many steps is called in a folder of checkpoints."""
    return f"step-{n_steps:012d}"


def is_name_of_steps(name: str) -> bool:
    """Tell whether :func:`name_of_steps` could have made a name."""
    return _STEPS_NAME.fullmatch(name) is not None


def write_latest(store: ObjectStore, name: str) -> None:
    """Note which of the checkpoints in a folder is the newest."""
    store.put(LATEST_KEY, name.encode())


def resolve(url: str) -> str:
    """Return the URL of a checkpoint, given it or a folder of checkpoints (of which the newest is meant).

    Raises:
        NotFoundError: There is neither.
        CorruptDataError: What should say which is the newest does not.
    """
    store = open_store(url)
    if store.exists(MANIFEST_KEY):
        return url
    try:
        name = store.get(LATEST_KEY).decode("ascii", "replace")
    except NotFoundError as error:
        raise NotFoundError(f"{url}: there is no checkpoint ({MANIFEST_KEY} or {LATEST_KEY})") from error
    if not _NAME.fullmatch(name):
        raise CorruptDataError(f"{url}/{LATEST_KEY}: names no checkpoint of this folder: {name[:80]!r}")
    return f"{url.rstrip('/')}/{name}"


def write_manifest(store: ObjectStore, parts: Sequence[PartInfo], extra: Mapping[str, Any]) -> None:
    """Write the manifest, which makes the checkpoint exist."""
    manifest = CheckpointManifest(version=FORMAT_VERSION, parts=tuple(parts), extra=extra)
    store.put(MANIFEST_KEY, json.dumps(asdict(manifest)).encode())


def read_manifest(store: ObjectStore) -> CheckpointManifest:
    """Read a checkpoint's manifest.

    Raises:
        NotFoundError: There is no checkpoint.
        CorruptDataError: It is not one of ours.
    """
    data = store.get(MANIFEST_KEY)
    where = f"{store.url}/{MANIFEST_KEY}"
    try:
        manifest = from_plain(CheckpointManifest, json.loads(data), where)
    except (ValueError, RecursionError, ConfigError) as error:
        raise CorruptDataError(f"{where}: {error}") from error
    if manifest.version != FORMAT_VERSION:
        raise CorruptDataError(
            f"{where}: is of version {manifest.version}, this program reads {FORMAT_VERSION}"
        )
    return manifest


def read_parts(store: ObjectStore, manifest: CheckpointManifest) -> Iterator[Part]:
    """Yield the parts, one at a time.

    Raises:
        CorruptDataError: A part is not what the manifest says.
    """
    for info in manifest.parts:
        try:
            data = store.get(info.key)
        except ConfigError as error:  # a key that leads out of the store
            raise CorruptDataError(f"{store.url}/{MANIFEST_KEY}: names no usable part: {error}") from error
        if len(data) != info.n_bytes or zlib.crc32(data) != info.crc32:
            raise CorruptDataError(f"{store.url}/{info.key}: is not the object that {MANIFEST_KEY} names")
        yield decode_part(data, f"{store.url}/{info.key}")


def read_checkpoint(store: ObjectStore) -> Checkpoint:
    """Read a checkpoint whole.

    Raises:
        NotFoundError: There is none.
        CorruptDataError: A part is missing, truncated or changed.
    """
    manifest = read_manifest(store)
    pieces: dict[str, list[TablePart]] = {}
    for part in read_parts(store, manifest):
        for table in part.tables:
            pieces.setdefault(table.name, []).append(table)
    tables = {}
    for name, held in pieces.items():
        held.sort(key=lambda piece: piece.first_row)
        if len({_kind(piece) for piece in held}) > 1:
            raise CorruptDataError(f"{store.url}: the parts disagree on the arrays or the width of {name}")
        expected = 0
        for piece in held:
            if piece.first_row != expected:
                raise CorruptDataError(
                    f"{store.url}: rows {expected} to {piece.first_row} of {name} are missing"
                )
            expected += piece.n_rows
        tables[name] = {
            array: np.concatenate([piece.arrays[array] for piece in held]) for array in held[0].arrays
        }
    return Checkpoint(tables=tables, extra=manifest.extra)


def _kind(piece: TablePart) -> tuple[int, frozenset[str]]:
    """Return what must be the same for all pieces of a table: width and arrays."""
    return piece.arrays["weights"].shape[1], frozenset(piece.arrays)


def write_checkpoint(store: ObjectStore, checkpoint: Checkpoint) -> None:
    """Write a checkpoint from memory, as one part, manifest last."""
    parts = tuple(
        TablePart(name=name, first_row=0, arrays=arrays) for name, arrays in checkpoint.tables.items()
    )
    info = write_part(store, _part_key(0), Part(tables=parts))
    write_manifest(store, [info], checkpoint.extra)
