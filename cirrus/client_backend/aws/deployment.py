"""What ``cirrus deploy`` has made in an account, as clients need to know it.

Terraform writes it into the bucket (``cirrus/deployment.json``), so that a machine needs the bucket's name
and no more; ``cirrus deploy`` notes a copy down in the user's folder, so that this machine needs nothing.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cirrus.client_backend.homes import default_home
from cirrus.config import from_plain, parse_json
from cirrus.errors import ConfigError, CorruptDataError, NotFoundError
from cirrus.storage import open_store

DEPLOYMENT_KEY = "cirrus/deployment.json"
LOCAL_NAME = "deployment.json"
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
ARCHITECTURES = ("arm64", "x86_64")


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """Where things are; Terraform's outputs carry the same names.

    Raises:
        ConfigError: A field cannot be right; it is named.
    """

    region: str
    availability_zone: str
    bucket: str
    architecture: str
    """``arm64`` or ``x86_64``, of functions and servers."""
    worker_functions: Mapping[str, str]
    """Name of the function for each size in MB (JSON has text as keys)."""
    launch_template_id: str
    instance_type: str
    subnet_id: str
    keep_warm_seconds: float = 300.0
    """How long a server waits for another run after its own has ended."""
    disk_gb: int = 16
    """Of a server."""
    spot: bool = False
    """Servers are spot instances."""
    server_release: str = ""
    """What new servers are installed from: a hash of their packages. Empty: deployed by a release of Cirrus
    whose servers serve one run at a time."""
    name: str = "cirrus"
    """Of the deployment; its servers carry it as the tag ``cirrus:deployment``."""

    def __post_init__(self) -> None:
        """Check every field."""
        for name in ("region", "availability_zone", "bucket", "launch_template_id", "instance_type"):
            if not getattr(self, name):
                raise ConfigError(name, "of the deployment is empty: run 'cirrus deploy' again")
        if self.architecture not in ARCHITECTURES:
            raise ConfigError(
                "architecture", f"must be one of {', '.join(ARCHITECTURES)}, got {self.architecture!r}"
            )
        for memory_mb, function in self.worker_functions.items():
            if not (isinstance(memory_mb, str) and memory_mb.isdecimal() and isinstance(function, str)):
                raise ConfigError(
                    "worker_functions", f"must give names by sizes in MB, got {memory_mb!r}: {function!r}"
                )
        if self.disk_gb < 1:
            raise ConfigError("disk_gb", f"must be >= 1, got {self.disk_gb!r}")
        if self.keep_warm_seconds < 0:
            raise ConfigError("keep_warm_seconds", f"must be >= 0, got {self.keep_warm_seconds!r}")

    @property
    def root(self) -> str:
        """Object-store URL below which runs, jobs and scratch data lie."""
        return f"s3://{self.bucket}"

    def worker_function(self, memory_mb: int) -> str:
        """Return the name of the worker function of a size.

        Raises:
            ConfigError: There is none of this size.
        """
        name = self.worker_functions.get(str(memory_mb))
        if name is None:
            sizes = ", ".join(sorted(self.worker_functions, key=int)) or "none"
            raise ConfigError(
                "worker_memory_mb",
                f"there is no worker function of {memory_mb} MB, only of {sizes}: memory belongs to a"
                f" function, not to a call; add {memory_mb} to the Terraform variable worker_memory_mb, and"
                " deploy again",
            )
        return name

    def to_json(self) -> bytes:
        """Return the deployment as UTF-8 JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes, where: str = LOCAL_NAME) -> Deployment:
        """Read a deployment back.

        Raises:
            CorruptDataError: It is not JSON, or a field is missing, unknown or wrong.
        """
        try:
            return from_plain(cls, parse_json(data), where)
        except ValueError as error:
            raise CorruptDataError(f"{where}: {error}; 'cirrus deploy' writes it anew") from error

    def note_down(self) -> None:
        """Write the deployment to this user's folder.

        Raises:
            StorageError: It cannot be written.
        """
        open_store(default_home()).put(LOCAL_NAME, self.to_json())

    def forget(self) -> None:
        """Remove this user's copy, if it is of this deployment."""
        try:
            held = local_deployment()
        except (ConfigError, CorruptDataError):
            return
        if held.bucket == self.bucket:
            open_store(default_home()).delete(LOCAL_NAME)


def local_deployment() -> Deployment:
    """Return the deployment that this user has made, or used, last.

    Raises:
        ConfigError: There is none.
        CorruptDataError: The file is damaged.
    """
    path = Path(default_home()) / LOCAL_NAME
    try:
        return Deployment.from_json(path.read_bytes(), str(path))
    except OSError as error:
        raise ConfigError(
            "backend",
            f"no AWS deployment is known here ({path} cannot be read): run 'cirrus deploy', or name the"
            " bucket of one: cirrus.AWSBackend('BUCKET')",
        ) from error


def bucket_deployment(bucket: str) -> Deployment:
    """Return the deployment that a bucket belongs to.

    Args:
        bucket: Its name, or ``s3://NAME``.

    Raises:
        ConfigError: The bucket belongs to none.
        StorageError: It cannot be read.
        CorruptDataError: What it says is damaged.
    """
    name = bucket.removeprefix("s3://").strip("/")
    if not _BUCKET.fullmatch(name):
        raise ConfigError("bucket", f"{bucket!r} is no bucket's name: give one, such as my-bucket")
    try:
        data = open_store(f"s3://{name}").get(DEPLOYMENT_KEY)
    except NotFoundError as error:
        raise ConfigError(
            "bucket", f"{name} holds no {DEPLOYMENT_KEY}: it is no bucket that 'cirrus deploy' has made"
        ) from error
    found = Deployment.from_json(data, f"s3://{name}/{DEPLOYMENT_KEY}")
    if found.bucket != name:
        raise CorruptDataError(f"s3://{name}/{DEPLOYMENT_KEY}: is of another bucket, {found.bucket}")
    return found
