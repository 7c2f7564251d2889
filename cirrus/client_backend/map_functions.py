"""Users' functions as bytes that workers can execute, and as an identity that tells them apart."""

from __future__ import annotations

import contextlib
import hashlib
import threading
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from cirrus.client_backend.function_identity import identify, is_users_own
from cirrus.errors import ConfigError

#: Which modules are pickled by value is known to cloudpickle for the whole process.
_REGISTRY_LOCK = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class PackedFunction:
    """What to do with each chunk."""

    data: bytes
    """What workers get."""
    name: str
    """For people."""
    digest: str | None
    """The same for the same code; None: it cannot be compared with that of another process."""
    obstacle: str = ""
    """Why not."""

    @classmethod
    def of_data(cls, data: bytes, name: str) -> PackedFunction:
        """Return what stands for a task of Cirrus' own, which is described by plain data."""
        return cls(data=data, name=name, digest=hashlib.sha256(data).hexdigest())


def pack_function(
    map_block: Callable[..., Any], combine: Callable[..., Any] | None = None, *, parameter: str = "fn"
) -> PackedFunction:
    """Return a user's functions as bytes; all that they use of the user's own modules travels with them.

    Args:
        map_block: Takes a block.
        combine: Combines two of what that gives; None: there is no such function.
        parameter: What the first one is called in an error message.

    Raises:
        ConfigError: They are no functions, or hold something that cannot be sent.
    """
    if not callable(map_block):
        raise ConfigError(parameter, f"must be a function, got {map_block!r}")
    if combine is not None and not callable(combine):
        raise ConfigError("reduce_fn", f"must be a function, got {combine!r}")
    identity = identify(map_block, combine)
    own = [*_modules_of(map_block, combine), *identity.modules]
    # A module with a lock or an open file cannot travel: then the workers have to import it themselves.
    attempts = ((own, identity.imported), (_modules_of(map_block, combine), ()))
    error: Exception | None = None
    for modules, imported in attempts:
        try:
            data = _dumps((map_block, combine, imported), modules)
        except Exception as raised:  # noqa: BLE001 (whatever a user's object raises when it is pickled)
            error = error or raised
            continue
        return PackedFunction(
            data=data, name=identity.name, digest=identity.digest, obstacle=identity.obstacle
        )
    assert error is not None
    raise ConfigError(
        parameter, f"cannot be sent to workers: {type(error).__name__}: {error}: make it where it is used"
    ) from error


def _modules_of(*functions: Any) -> list[types.ModuleType]:
    import inspect

    found = [inspect.getmodule(function) for function in functions]
    return [module for module in found if module is not None and is_users_own(module)]


def _dumps(value: Any, modules: Iterable[types.ModuleType]) -> bytes:
    import cloudpickle

    with _REGISTRY_LOCK, _by_value(modules):
        data: bytes = cloudpickle.dumps(value)
    return data


@contextlib.contextmanager
def _by_value(modules: Iterable[types.ModuleType]) -> Iterator[None]:
    """Have some modules pickled whole instead of by their names."""
    import cloudpickle

    before = cloudpickle.list_registry_pickle_by_value()
    mine = {module.__name__: module for module in modules if module.__name__ not in before}
    for module in mine.values():
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in mine.values():
            cloudpickle.unregister_pickle_by_value(module)
