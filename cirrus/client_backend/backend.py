"""Where a run works: the backend's own class, and the names that users may give instead of one."""

from __future__ import annotations

from cirrus.client_backend.base import Backend
from cirrus.client_backend.inline import InlineBackend
from cirrus.client_backend.local import LocalBackend
from cirrus.config import BackendRecord
from cirrus.errors import ConfigError
from cirrus.storage import open_store

__all__ = ["Backend", "backend_at", "backend_going_on", "named_backend", "resolve_backend"]


def resolve_backend(backend: str | Backend) -> Backend:
    """Return the backend that a user's parameter names.

    Args:
        backend: ``local``, ``inline``, ``aws`` (the deployment that this user has made last), ``ray`` (the
            cluster of this machine, else one is started), or a backend object, which is returned as it is.

    Raises:
        ConfigError: There is no such backend.
    """
    if isinstance(backend, Backend):
        return backend
    if backend == "local":
        return LocalBackend()
    if backend == "inline":
        return InlineBackend()
    if backend == "aws":
        from cirrus.client_backend.aws.backend import AWSBackend  # boto3 takes half a second to import

        return AWSBackend()
    if backend == "ray":
        return _ray_backend()
    raise ConfigError(
        "backend",
        f'unknown backend {backend!r}; use "local", "inline", "aws", "ray", or a backend object such as'
        " cirrus.LocalBackend(...)",
    )


def _ray_backend(address: str | None = None, root: str | None = None) -> Backend:
    try:
        from cirrus.client_backend.ray.backend import RayBackend
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "ray":
            raise
        raise ConfigError("backend", "ray is not installed: pip install 'cirrus-ml[ray]'") from error

    return RayBackend(address, root=root)


def named_backend(name: str | None, root: str | None, ray_address: str | None = None) -> Backend:
    """Return the backend that a command line asks for.

    Args:
        name: ``local``, ``aws`` or ``ray``; None: as the root and the address say.
        root: Where the run folders lie; None: as usual for the backend.
        ray_address: Of a Ray cluster, as for :class:`~cirrus.client_backend.ray.backend.RayBackend`.

    Raises:
        ConfigError: They do not go together.
    """
    if ray_address is not None and name not in (None, "ray"):
        raise ConfigError("ray_address", f"goes with --backend ray, not {name}")
    if name == "ray" or ray_address is not None:
        return _ray_backend(ray_address, root)
    if name == "local":
        return LocalBackend(root=root)
    if name == "aws" and root is None:
        return resolve_backend("aws")
    found = backend_at(root)
    if name == "aws" and isinstance(found, LocalBackend):
        raise ConfigError("backend", f"{root} is no deployment on AWS: name s3://BUCKET as --home")
    return found


def backend_going_on(begun: Backend, record: BackendRecord | None) -> Backend:
    """Return the backend that a run or a search goes on with: that which it was begun on.

    Args:
        begun: What :func:`backend_at` found at the root.
        record: What the run or the search says of its backend; None: nothing, as from an older version.

    Raises:
        ConfigError: No command line can name it, or it is not what the root belongs to.
    """
    if record is None or record == begun.record:
        return begun
    if record.name not in ("local", "aws", "ray"):
        raise ConfigError(
            "backend",
            f"it was begun on {record.name}, which no name stands for: go on with it from a program that "
            "gives this backend, or name another one",
        )
    return named_backend(record.name, begun.root, record.address)


def backend_at(root: str | None) -> Backend:
    """Return the backend whose runs lie at a root.

    Args:
        root: ``s3://BUCKET`` of an AWS deployment, or another object-store URL; None: this user's own folder.

    Raises:
        StorageError: The bucket cannot be read.
    """
    bucket = (root or "").removeprefix("s3://").strip("/")
    if root is None or not root.startswith("s3://") or "/" in bucket:
        return LocalBackend(root=root)
    from cirrus.client_backend.aws.backend import AWSBackend
    from cirrus.client_backend.aws.deployment import DEPLOYMENT_KEY

    if not open_store(f"s3://{bucket}").exists(DEPLOYMENT_KEY):
        return LocalBackend(root=root)
    return AWSBackend(bucket)
