"""Makes what AWS runs: the function's zip, and the wheelhouse that shard servers install from.

Both are reproducible: the same sources, locks and target give the same bytes, so a name that carries their
hash changes only when they do.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import cirrus
from cirrus.client_backend.aws import sources
from cirrus.client_backend.aws.bytecode import compile_members, find_python
from cirrus.client_backend.aws.elf import ELF_MAGIC, check_shared_object
from cirrus.client_backend.aws.wheels import Target, fetch_wheels, is_needed, wheel_members
from cirrus.errors import DataError

#: A larger zip would start too slowly to be worth it.
MAX_WORKER_ZIP_BYTES = 25 * 10**6
MAX_WORKER_UNZIPPED_BYTES = 80 * 10**6
#: Zip files cannot name an earlier moment.
_EPOCH = (1980, 1, 1, 0, 0, 0)
_COMPRESSION_LEVEL = 6
_FILE_MODE = 0o644
_UNIX = 3

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class WorkerPackage:
    """The zip that functions run."""

    path: Path
    sha256: str
    zipped_bytes: int
    unzipped_bytes: int
    target: Target


@dataclass(frozen=True, kw_only=True)
class ServerPackage:
    """The folder of wheels that shard servers install, with ``requirements.txt``."""

    path: Path
    sha256: str
    """Of ``requirements.txt``, which holds the hash of every wheel."""
    n_bytes: int
    target: Target


def build_worker_package(path: Path, target: Target, progress: Progress | None = None) -> WorkerPackage:
    """Make the function's zip, and replace the file at ``path`` by it.

    Args:
        path: Where it goes.
        target: The machine that runs it.
        progress: Told what is being done.

    Raises:
        DataError: A shared object does not fit the machine, or the zip is too large.
        StorageError: The wheels could not be fetched.
    """
    say = progress or _be_silent
    folder = sources.shipped_folder("lambda_package")
    handlers = sorted(folder.glob("*.py"))
    members = {name: file.read_bytes() for name, file in sources.worker_modules(handlers).items()}
    members |= {handler.name: handler.read_bytes() for handler in handlers}
    say(f"fetching wheels for Python {target.python} on {target.architecture}")
    with tempfile.TemporaryDirectory(prefix="cirrus-wheels-") as wheels:
        for wheel in fetch_wheels(folder / "worker.lock", target, Path(wheels)):
            members |= {name: data for name, data in wheel_members(wheel) if is_needed(name)}
    _check_shared_objects(members, target)
    python = find_python(target.python)
    if python is not None:
        say("compiling")
        members |= compile_members(members, python)
    else:
        say(
            f"there is no Python {target.python} here to compile with: cold starts take 0.2 s longer;"
            f" 'uv python install {target.python}' would bring one"
        )
    say("packing")
    data = pack_zip(members)
    unzipped = sum(map(len, members.values()))
    if len(data) > MAX_WORKER_ZIP_BYTES or unzipped > MAX_WORKER_UNZIPPED_BYTES:
        raise DataError(
            f"the worker zip has {len(data) / 1e6:.1f} MB, {unzipped / 1e6:.1f} MB unzipped; "
            f"at most {MAX_WORKER_ZIP_BYTES / 1e6:g} and {MAX_WORKER_UNZIPPED_BYTES / 1e6:g} are wanted"
        )
    _replace_file(path, data)
    return WorkerPackage(
        path=path,
        sha256=hashlib.sha256(data).hexdigest(),
        zipped_bytes=len(data),
        unzipped_bytes=unzipped,
        target=target,
    )


def build_server_package(path: Path, target: Target, progress: Progress | None = None) -> ServerPackage:
    """Make the shard servers' wheelhouse, and replace the folder at ``path`` by it.

    Args:
        path: Where it goes; a folder that is there already must be a wheelhouse.
        target: The machine that installs it.
        progress: Told what is being done.

    Raises:
        DataError: A shared object does not fit the machine, or ``path`` holds something else.
        StorageError: The wheels could not be fetched.
    """
    say = progress or _be_silent
    if path.exists() and not (path / "requirements.txt").is_file() and any(path.iterdir()):
        raise DataError(f"{path}: is no wheelhouse; it is left as it is")
    lock = sources.shipped_folder("lambda_package") / "server.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".tmp-wheelhouse-", dir=path.parent) as temporary:
        folder = Path(temporary) / "wheels"
        folder.mkdir()
        say(f"fetching wheels of the shard servers for Python {target.python} on {target.architecture}")
        wheels = fetch_wheels(lock, target, folder)
        for wheel in wheels:
            _check_shared_objects(dict(wheel_members(wheel)), target)
        wheels.append(_write_own_wheel(folder))
        requirements = "".join(_requirement(wheel) for wheel in sorted(wheels))
        (folder / "requirements.txt").write_text(requirements)
        n_bytes = sum(file.stat().st_size for file in folder.iterdir())
        if path.exists():
            shutil.rmtree(path)
        os.replace(folder, path)
    digest = hashlib.sha256(requirements.encode()).hexdigest()
    return ServerPackage(path=path, sha256=digest, n_bytes=n_bytes, target=target)


def pack_zip(members: Mapping[str, bytes]) -> bytes:
    """Return a zip archive of some files, the same bytes for the same files.

    Args:
        members: Contents by path.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=_COMPRESSION_LEVEL) as archive:
        for name in sorted(members):
            info = zipfile.ZipInfo(name, _EPOCH)
            info.create_system = _UNIX
            info.external_attr = _FILE_MODE << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, members[name], compresslevel=_COMPRESSION_LEVEL)
    return buffer.getvalue()


def _check_shared_objects(members: Mapping[str, bytes], target: Target) -> None:
    limits = target.limits
    for name, data in members.items():
        if data.startswith(ELF_MAGIC) or name.endswith(".so") or ".so." in name:
            check_shared_object(name, data, limits)


def _write_own_wheel(folder: Path) -> Path:
    """Write Cirrus itself as a wheel (PEP 427), from the files that are installed here."""
    version = cirrus.__version__
    info = f"cirrus_ml-{version}.dist-info"
    members = {name: file.read_bytes() for name, file in sources.all_modules().items()}
    members[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: cirrus-ml\nVersion: {version}\n".encode()
    wheel_lines = "Wheel-Version: 1.0\nGenerator: cirrus\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    members[f"{info}/WHEEL"] = wheel_lines.encode()
    record = "".join(f"{name},{_record_hash(data)},{len(data)}\n" for name, data in sorted(members.items()))
    members[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    path = folder / f"cirrus_ml-{version}-py3-none-any.whl"
    path.write_bytes(pack_zip(members))
    return path


def _record_hash(data: bytes) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def _requirement(wheel: Path) -> str:
    """Return the line that installs exactly this wheel."""
    name, version = wheel.name.split("-")[:2]
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return f"{name.replace('_', '-')}=={version} --hash=sha256:{digest}\n"


def _replace_file(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{path.name}")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def _be_silent(_: str) -> None:
    pass
