"""Clients of S3, shared by all stores of a process that would make the same one.

Making a client takes the SDK a tenth of a second of a processor and more, and a program opens many stores.
Threads may share a client. What it is made of, credentials above all, is read when it is made: so it is
shared for as long as nothing of that changes, and by one process alone, because a fork must not use its
parent's connections.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cirrus.errors import StorageError

#: Clients that are kept for stores to come; a store keeps its own in any case.
MAX_CLIENTS = 16
#: Requests of one client at the same time that keep their connections; those beyond open new ones.
MAX_CONNECTIONS = 64
#: Environment variables that the SDK heeds begin with one of these.
_PREFIXES = ("AWS_", "BOTO", "HOME", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
#: The SDK's files, by the variables that name others.
_FILES = {"AWS_CONFIG_FILE": "~/.aws/config", "AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials"}


@dataclass(frozen=True, kw_only=True)
class S3Options:
    """How long to wait for S3, and where it is."""

    connect_timeout_seconds: float = 5.0
    read_timeout_seconds: float = 30.0
    attempts: int = 4
    """Tries of each request, by the SDK's standard retry mode."""
    page_keys: int = 1000
    """Keys that one listing or deleting request handles; S3 allows no more than 1,000."""
    endpoint_url: str | None = None
    """None: what the SDK finds (``AWS_ENDPOINT_URL``, else AWS itself)."""


def s3_client(options: S3Options) -> Any:
    """Return a client for these options and the environment and files of the SDK as they are now.

    Raises:
        StorageError: The SDK's configuration is wrong.
    """
    return _client(options, os.getpid(), _environment(), _files())


@functools.lru_cache(MAX_CLIENTS)
def _client(options: S3Options, process_id: int, environment: object, files: object) -> Any:
    """Make a client; the arguments but the first are what it may be shared by."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    config = Config(
        connect_timeout=options.connect_timeout_seconds,
        read_timeout=options.read_timeout_seconds,
        retries={"mode": "standard", "total_max_attempts": options.attempts},
        max_pool_connections=MAX_CONNECTIONS,
    )
    try:
        return boto3.session.Session().client("s3", config=config, endpoint_url=options.endpoint_url)
    except (BotoCoreError, ValueError) as error:
        raise StorageError(f"S3 cannot be used: {error}") from error


def _environment() -> tuple[tuple[str, str], ...]:
    found = [(name, value) for name, value in os.environ.items() if name.upper().startswith(_PREFIXES)]
    return tuple(sorted(found))


def _files() -> tuple[tuple[int, int, int] | None, ...]:
    """Return what changes when one of the SDK's files is written; None for one that is not there."""
    versions: list[tuple[int, int, int] | None] = []
    for variable, usual in _FILES.items():
        try:
            found = Path(os.environ.get(variable) or usual).expanduser().stat()
        except (OSError, RuntimeError):  # no such file, or no home that it could be in
            versions.append(None)
        else:
            versions.append((found.st_ino, found.st_mtime_ns, found.st_size))
    return tuple(versions)
