"""The folder of a map job: how its client and its workers meet.

It lies below the backend's root, which is the user's own (``ROOT/jobs/JOB/``), wherever the data is.

===============  ============  ======================================================================
key              its writer    what
===============  ============  ======================================================================
``token``        the client    the job's secret, readable by its owner alone
``job.json``     the client    :class:`MapJob`; signed
``function``     the client    what to do with each chunk; signed, readable by its owner alone
``stop``         the client    workers begin no further chunk
``claims/N``     one worker    it is at work on chunk N (written if absent; the client removes a dead one's)
``results/N``    one worker    what came of chunk N; signed, readable by its owner alone
===============  ============  ======================================================================

What is signed is used only if the signature, of the job's token over key and content, is right: a function
that somebody changed is never executed. The token itself is used only if it is a file that this user alone
can have written (:meth:`~cirrus.storage.ObjectStore.get_private`). Nothing else of a store is ever executed.

Who executes a job is a backend's concern (:meth:`~cirrus.client_backend.base.Backend.job_launcher`): it gets
the folder's URL, and invokes workers with the role ``map`` and that URL.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import io
import json
import math
import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cirrus.config import from_plain, parse_json
from cirrus.errors import ConfigError, ConflictError, CorruptDataError, NotFoundError
from cirrus.storage import ObjectStore, open_store

Kind = Literal["statistics", "columns", "rewrite", "reduce"]

JOB_KEY = "job.json"
FUNCTION_KEY = "function"
TOKEN_KEY = "token"  # a file's name  # nosec B105
STOP_KEY = "stop"
CLAIMS = "claims/"
RESULTS = "results/"
#: Goes up when another version of Cirrus would make other results of the same job, or could not read it.
JOB_VERSION = 2
JOB_ID_CHARACTERS = 32
_DIGEST = "sha256"
_DIGEST_BYTES = hashlib.sha256().digest_size


@dataclass(frozen=True, kw_only=True)
class MapJob:
    """A function over the chunks of a dataset."""

    kind: str
    """``statistics`` and ``columns`` are Cirrus' own; ``rewrite`` and ``reduce`` run a user's function."""
    input_url: str
    fingerprint: str
    """Of the input: a dataset that was replaced meanwhile is not read on."""
    n_chunks: int
    function_id: str
    """Digest of what is done to each chunk: of the user's code, or of a description."""
    function_name: str
    """The function, for people."""
    output_url: str | None = None
    prefix: str = ""
    """What the keys of written chunks begin with."""
    n_features: int | None = None
    """Columns that the output may have; None: any number."""
    begun_at: float = 0.0
    """Unix time at which a client last took it up."""
    version: int = JOB_VERSION

    def __post_init__(self) -> None:
        """Check the version, the kind, and that the prefix is one of chunks: what is below may be removed."""
        if self.version != JOB_VERSION:
            raise ConfigError(
                "version",
                f"is {self.version}, and this is for jobs of version {JOB_VERSION}: client and workers must "
                "be the same version of Cirrus",
            )
        if self.kind not in ("statistics", "columns", "rewrite", "reduce"):
            raise ConfigError("kind", f"unknown kind of map job {self.kind!r}")
        is_chunks = re.fullmatch(r"chunks-[0-9a-f]+/", self.prefix) is not None
        if not is_chunks and (self.prefix or self.output_url is not None):
            raise ConfigError("prefix", f"{self.prefix!r} is not a prefix of chunks")

    @property
    def job_id(self) -> str:
        """What the job is known by: the same for the same rows, code and place, and the same version."""
        parts = [self.version, self.kind, self.fingerprint, self.n_chunks, self.output_url, self.n_features]
        return hashlib.sha256(json.dumps([*parts, self.function_id]).encode()).hexdigest()[:JOB_ID_CHARACTERS]


class JobFolder:
    """Reads and writes a job's folder.

    Args:
        url: Where it is.
    """

    def __init__(self, url: str) -> None:
        self.store: ObjectStore = open_store(url)
        self.url = self.store.url
        self._token: bytes | None = None

    def create(self, job: MapJob, function: bytes, token: str) -> None:
        """Write a new job; ``job.json`` comes last."""
        self.store.put(TOKEN_KEY, token.encode(), private=True)
        self._token = token.encode()
        self.write(job, function)

    def write(self, job: MapJob, function: bytes) -> None:
        """Write a job that goes on, signed with the token that is there."""
        self._put(FUNCTION_KEY, function, private=True)
        self._put(JOB_KEY, json.dumps(dataclasses.asdict(job)).encode())

    def job(self) -> MapJob:
        """Read the job.

        Raises:
            NotFoundError: There is none.
            CorruptDataError: It is damaged or was changed.
        """
        try:
            return from_plain(MapJob, parse_json(self._get(JOB_KEY)), JOB_KEY)
        except (ConfigError, ValueError) as error:
            raise CorruptDataError(f"{self.url}/{JOB_KEY}: {error}") from error

    def function(self) -> bytes:
        """Read the function.

        Raises:
            CorruptDataError: It was changed.
        """
        return self._get(FUNCTION_KEY)

    def put_result(self, number: int, data: bytes) -> None:
        """Write what came of a chunk; private, since it may hold what only a user's own process may read."""
        self._put(f"{RESULTS}{number:06}", data, private=True)

    def result(self, number: int) -> bytes:
        """Read what came of a chunk.

        Raises:
            NotFoundError: Nothing yet.
            CorruptDataError: It was changed.
        """
        return self._get(f"{RESULTS}{number:06}")

    def remove_result(self, number: int) -> None:
        """Forget what came of a chunk, so that it is done again."""
        self.store.delete(f"{RESULTS}{number:06}")

    def numbers(self, folder: str) -> set[int]:
        """Return the numbers of the chunks that have an object in ``claims/`` or ``results/``."""
        names = [key.removeprefix(folder) for key in self.store.list(folder)]
        return {int(name) for name in names if name.isdecimal()}

    def claim(self, number: int, worker_id: int, generation: int) -> bool:
        """Take a chunk; return False when another worker has it."""
        try:
            self.store.put(
                f"{CLAIMS}{number:06}", json.dumps([worker_id, generation]).encode(), if_absent=True
            )
        except ConflictError:
            return False
        return True

    def release(self, worker_id: int, generation: int) -> None:
        """Remove the claims of a generation that has ended, so that others do what it did not finish."""
        mine = json.dumps([worker_id, generation]).encode()
        for key in self.store.list(CLAIMS):
            try:
                if self.store.get(key) == mine:
                    self.store.delete(key)
            except NotFoundError:
                continue

    def _put(self, key: str, data: bytes, *, private: bool = False) -> None:
        self.store.put(key, self._sign(key, data) + data, private=private)

    def _get(self, key: str) -> bytes:
        raw = self.store.get(key)
        signature, data = raw[:_DIGEST_BYTES], raw[_DIGEST_BYTES:]
        if not hmac.compare_digest(signature, self._sign(key, data)):
            raise CorruptDataError(
                f"{self.url}/{key}: does not carry the job's signature: it was changed; start the job again"
            )
        return data

    def _sign(self, key: str, data: bytes) -> bytes:
        if self._token is None:
            self._token = self.store.get_private(TOKEN_KEY)
        return hmac.digest(self._token, key.encode() + b"\0" + data, _DIGEST)


#: Where a zip file says how long the name and the extra field before a member are.
_ZIP_LENGTHS = struct.Struct("<HH")
_ZIP_LENGTHS_OFFSET = 26
_ZIP_HEADER_BYTES = 30
#: What reading a damaged archive of arrays may raise.
_DAMAGES = (
    ValueError,
    TypeError,
    AttributeError,
    KeyError,
    OSError,
    EOFError,
    OverflowError,
    RuntimeError,  # also NotImplementedError and RecursionError
    MemoryError,
    SyntaxError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


def pack_arrays(meta: Any, arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Return plain values and arrays as bytes, without pickle."""
    file = io.BytesIO()
    plain = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    held = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    np.savez(file, allow_pickle=False, **{"meta.json": plain, **held})
    return file.getvalue()


def unpack_arrays(data: bytes, name: str) -> tuple[Any, dict[str, NDArray[Any]]]:
    """Read what :func:`pack_arrays` gave; nothing in it is executed. Arrays are read-only views of the data.

    Args:
        data: The bytes.
        name: What to call them in an error message.

    Raises:
        CorruptDataError: They are something else.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            arrays = {
                member.filename.removesuffix(".npy"): _view(data, archive, member)
                for member in archive.infolist()
            }
        return parse_json(arrays.pop("meta.json").tobytes()), arrays
    except _DAMAGES as error:
        raise CorruptDataError(f"{name}: is damaged: {error}") from error


def _view(data: bytes, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    """Return an array of an archive without copying it: they may be as large as all other memory together."""
    if member.compress_type != zipfile.ZIP_STORED or member.file_size > len(data):
        raise ValueError(f"{member.filename} is packed, or larger than the file")
    with archive.open(member) as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError(f"{member.filename} is of another version")
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
        start = file.tell()
    n_items = math.prod(shape)
    if n_items * dtype.itemsize != member.file_size - start or dtype.hasobject or is_fortran:
        raise ValueError(f"{member.filename} is not of shape {shape}")
    # The local header holds the lengths of the two fields between itself and the member.
    lengths = _ZIP_LENGTHS.unpack_from(data, member.header_offset + _ZIP_LENGTHS_OFFSET)
    first = member.header_offset + _ZIP_HEADER_BYTES + sum(lengths)
    if zlib.crc32(memoryview(data)[first : first + member.file_size]) != member.CRC:
        raise ValueError(f"{member.filename} does not match its checksum")
    if n_items == 0:
        return np.empty(shape, dtype)
    return np.frombuffer(data, dtype, n_items, first + start).reshape(shape)
