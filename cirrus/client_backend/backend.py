"""Where a run works: the backend's own class, and the names that users may give instead of one."""

from __future__ import annotations

from cirrus.client_backend.base import Backend
from cirrus.client_backend.inline import InlineBackend
from cirrus.client_backend.local import LocalBackend
from cirrus.errors import ConfigError

__all__ = ["Backend", "resolve_backend"]

#: Names that later versions will know.
_PLANNED = ("aws", "ray")


def resolve_backend(backend: str | Backend) -> Backend:
    """Return the backend that a user's parameter names.

    Args:
        backend: ``local``, ``inline``, or a backend object, which is returned as it is.

    Raises:
        ConfigError: There is no such backend.
    """
    if isinstance(backend, Backend):
        return backend
    if backend == "local":
        return LocalBackend()
    if backend == "inline":
        return InlineBackend()
    choices = 'use "local", "inline", or a backend object such as cirrus.LocalBackend(...)'
    if backend in _PLANNED:
        raise ConfigError("backend", f"{backend!r} is not in this version; {choices}")
    raise ConfigError("backend", f"unknown backend {backend!r}; {choices}")
