"""What a user's function is, as a digest that stays the same from process to process.

Two runs of a script want to know whether they mean the same function. Its pickled bytes do not tell: sets
are pickled in another order in each process, classes of a script carry a random mark, and a module that is
pickled by name says nothing of what is in it. So the function is walked instead, and everything that could
change what it does goes into the digest:

- its code (not its name, nor where it stands in its file), defaults, and what its closure holds;
- the globals that its code names, likewise; functions, classes and modules of the user's own are walked to
  their ends, also those that the function imports when it is called;
- the name and the version of what is installed: numpy, scipy, Cirrus;
- values: numbers, text, containers, arrays, objects by what pickle would take of them. Sets have no order;
  dictionaries do, since a function sees it.

What cannot be walked makes the whole function one that cannot be told from others.
"""

from __future__ import annotations

import contextlib
import copyreg
import dis
import hashlib
import importlib
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

#: Attributes of a class that say nothing about what it does, or differ without anything having changed.
_NO_CLASS_CODE = frozenset(
    {
        "__annotations__",
        "__dict__",
        "__doc__",
        "__firstlineno__",
        "__module__",
        "__static_attributes__",
        "__weakref__",
        "_abc_impl",
    }
)
_LEAVES = (type(None), bool, int, float, complex, str, bytes, bytearray, type(...), type(NotImplemented))


@dataclass(frozen=True, kw_only=True, eq=False)
class FunctionIdentity:
    """Which functions these are."""

    name: str
    """Of the first of them, for people: ``module.function``."""
    digest: str | None
    """The same for the same code and data; None: they cannot be compared."""
    obstacle: str = ""
    """Why not."""
    modules: tuple[types.ModuleType, ...] = ()
    """The user's own modules that the functions use."""
    imported: tuple[types.ModuleType, ...] = ()
    """Those of the modules that they import when they are called."""


def identify(*functions: Callable[..., Any] | None) -> FunctionIdentity:
    """Return the identity of some functions that belong together."""
    walk = _Walk()
    digest: str | None = None
    obstacle = ""
    try:
        digest = walk.digest(functions).hex()
    except RecursionError:
        obstacle = "it holds something that is nested too deeply"
    except Exception as error:  # noqa: BLE001 (objects of any kind may refuse in any way)
        obstacle = f"{type(error).__name__}: {error}"
    return FunctionIdentity(
        name=_name(functions[0]),
        digest=digest,
        obstacle=obstacle,
        modules=tuple(walk.modules.values()),
        imported=tuple(walk.imported.values()),
    )


def _name(function: Any) -> str:
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    module = getattr(function, "__module__", None) or type(function).__module__
    return f"{module}.{name.rpartition('<locals>.')[2]}"


def is_users_own(module: types.ModuleType) -> bool:
    """Tell whether a module is neither installed nor part of Python or Cirrus, nor the script itself."""
    name, path = module.__name__, getattr(module, "__file__", None) or ""
    if name == "__main__" or not path or name.partition(".")[0] in {"cirrus", *sys.stdlib_module_names}:
        return False
    return _is_users_path(path)


def _is_users_path(path: str) -> bool:
    return "site-packages" not in path and "dist-packages" not in path


class _Walk:
    """Digests values; each is walked once, and one that holds itself is known by how far up it is."""

    def __init__(self) -> None:
        self.modules: dict[str, types.ModuleType] = {}
        self.imported: dict[str, types.ModuleType] = {}
        self._done: dict[int, tuple[Any, bytes]] = {}
        self._open: dict[int, int] = {}

    def digest(self, value: Any) -> bytes:
        """Return the digest of a value.

        Raises:
            TypeError: It cannot be walked (objects of the user's may raise whatever they like).
        """
        if isinstance(value, _LEAVES) and type(value) in _LEAVES:
            return _hash(type(value).__name__, [repr(value).encode()])
        key = id(value)
        if key in self._done:
            return self._done[key][1]
        if key in self._open:
            return _hash("above", [str(len(self._open) - self._open[key]).encode()])
        self._open[key] = len(self._open)
        try:
            digest = self._walk(value)
        finally:
            del self._open[key]
        self._done[key] = (value, digest)
        return digest

    def _walk(self, value: Any) -> bytes:
        """Return the digest of what is no leaf."""
        for kinds, walk in self._walks:
            if isinstance(value, kinds):
                return walk(self, value)
        original = getattr(value, "py_func", None)
        if isinstance(original, types.FunctionType):  # compiled by numba, which marks it at random
            return self._all("compiled", [original, type(value)])
        return self._object(value)

    def _all(self, kind: str, parts: Iterable[Any]) -> bytes:
        return _hash(kind, [self.digest(part) for part in parts])

    def _sequence(self, value: Any) -> bytes:
        return self._all(type(value).__name__, value) if type(value) in (list, tuple) else self._object(value)

    def _dict(self, value: Any) -> bytes:
        if type(value) not in (dict, types.MappingProxyType):
            return self._object(value)
        return self._all("dict", [part for item in value.items() for part in item])

    def _set(self, value: Any) -> bytes:
        if type(value) not in (set, frozenset):
            return self._object(value)
        return _hash("set", sorted(self.digest(part) for part in value))

    def _array(self, value: Any) -> bytes:
        if value.dtype.hasobject or type(value) not in (np.ndarray, *np.sctypeDict.values()):
            return self._object(value)
        head = f"{value.dtype.str} {value.shape}".encode()
        return _hash(
            "array", [head, hashlib.sha256(np.ascontiguousarray(value).reshape(-1).view(np.uint8)).digest()]
        )

    def _function(self, value: types.FunctionType) -> bytes:
        if _is_installed(value):
            return _hash("installed", [_reference(value)])
        self._note_module(value)
        codes = list(_codes(value.__code__))
        parts: list[Any] = [value.__code__, value.__defaults__, value.__kwdefaults__, value.__closure__]
        parts.append(dict(value.__dict__))
        names = {name for code in codes for name in _globals_of(code)}
        parts += [(name, value.__globals__[name]) for name in sorted(names & value.__globals__.keys())]
        parts += [module for code in codes for module in self._imports(code, value.__globals__)]
        return self._all("function", parts)

    def _note_module(self, value: Any) -> None:
        module = sys.modules.get(value.__module__ or "")
        if module is not None and is_users_own(module):
            self.modules[module.__name__] = module

    def _imports(self, code: types.CodeType, names: dict[str, Any]) -> Iterator[types.ModuleType]:
        """Yield the user's own modules that some code imports when it runs."""
        for module in _imported_by(code, names):
            if is_users_own(module):
                self.imported[module.__name__] = module
                yield module

    def _code(self, value: types.CodeType) -> bytes:
        parts: list[Any] = [value.co_code, value.co_exceptiontable, value.co_consts, value.co_names]
        parts += [
            value.co_varnames,
            value.co_freevars,
            value.co_cellvars,
            value.co_argcount,
            value.co_posonlyargcount,
        ]
        return self._all("code", [*parts, value.co_kwonlyargcount, value.co_flags])

    def _class(self, value: type) -> bytes:
        if _is_installed(value):
            return _hash("installed", [_reference(value)])
        self._note_module(value)
        held = [(name, part) for name, part in vars(value).items() if name not in _NO_CLASS_CODE]
        held = [(name, part) for name, part in held if not isinstance(part, types.GetSetDescriptorType)]
        return self._all("class", [value.__name__, type(value), value.__bases__, *held])

    def _module(self, value: types.ModuleType) -> bytes:
        if not is_users_own(value):
            return _hash("module", [value.__name__.encode(), _version(value.__name__).encode()])
        self.modules[value.__name__] = value
        parts = [value.__name__.encode()]
        # The file says what an attribute may not: locks and the like cannot be walked.
        with contextlib.suppress(OSError):
            parts.append(hashlib.sha256(Path(value.__file__ or "").read_bytes()).digest())
        for name, part in list(vars(value).items()):
            if not (name.startswith("__") and name.endswith("__")):
                with contextlib.suppress(Exception):
                    parts += [name.encode(), self.digest(part)]
        return _hash("own module", parts)

    def _method(self, value: types.MethodType) -> bytes:
        return self._all("method", [value.__func__, value.__self__])

    def _cell(self, value: types.CellType) -> bytes:
        try:
            return self._all("cell", [value.cell_contents])
        except ValueError:
            return _hash("empty cell", [])

    def _property(self, value: property) -> bytes:
        return self._all("property", [value.fget, value.fset, value.fdel])

    def _wrapped(self, value: Any) -> bytes:
        return self._all(type(value).__name__, [value.__func__])

    def _object(self, value: Any) -> bytes:
        """Digest an object by what pickle would take of it."""
        reducer = copyreg.dispatch_table.get(type(value))
        reduced = value.__reduce_ex__(4) if reducer is None else reducer(value)
        if isinstance(reduced, str):
            parts = [reduced, getattr(value, "__module__", None), getattr(value, "__wrapped__", None)]
            return self._all("named", parts)
        make, arguments, *rest = reduced
        state, items, pairs = [*rest, None, None, None][:3]
        contents = [list(items or ()), [tuple(pair) for pair in pairs or ()]]
        return self._all("object", [type(value), make, arguments, state, *contents])

    _walks: tuple[tuple[Any, Callable[[_Walk, Any], bytes]], ...] = (
        ((list, tuple), _sequence),
        ((dict, types.MappingProxyType), _dict),
        ((set, frozenset), _set),
        ((np.ndarray, np.generic), _array),
        (types.FunctionType, _function),
        (types.CodeType, _code),
        (type, _class),
        (types.ModuleType, _module),
        (types.MethodType, _method),
        (types.CellType, _cell),
        (property, _property),
        ((staticmethod, classmethod), _wrapped),
    )


def _hash(kind: str, parts: Iterable[bytes]) -> bytes:
    found = hashlib.sha256(kind.encode() + b"\0")
    for part in parts:
        found.update(len(part).to_bytes(8, "little"))
        found.update(part)
    return found.digest()


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """Yield a function's code and that of the functions in it."""
    yield code
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            yield from _codes(const)


def _globals_of(code: types.CodeType) -> Iterator[str]:
    """Yield the names that some code looks for among its module's; attributes' names are no such."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"):
            yield str(instruction.argval)


def _imported_by(code: types.CodeType, names: dict[str, Any]) -> Iterator[types.ModuleType]:
    """Yield the modules of the user's own that some code imports, as far as they can be imported here."""
    above = ""
    for instruction in dis.get_instructions(code):
        if instruction.opname == "IMPORT_NAME":
            above = str(instruction.argval)
            yield from _own_module(above, names)
        elif instruction.opname == "IMPORT_FROM":
            yield from _own_module(f"{above}.{instruction.argval}", names)


def _own_module(name: str, names: dict[str, Any]) -> Iterator[types.ModuleType]:
    """Yield the module of this name, or of this name in the package of the code that imports it."""
    for full in dict.fromkeys([name, f"{names.get('__package__') or ''}.{name}"]):
        if not full or full.startswith("."):
            continue
        if full not in sys.modules and _is_users_file(full.partition(".")[0]):
            with contextlib.suppress(Exception):  # what cannot be imported here fails where it is
                importlib.import_module(full)
        module = sys.modules.get(full)
        if module is not None:
            yield module
            return


def _is_users_file(top: str) -> bool:
    if top in sys.stdlib_module_names or top == "cirrus":
        return False
    spec = importlib.machinery.PathFinder.find_spec(top)
    return spec is not None and spec.origin is not None and _is_users_path(spec.origin)


def _is_installed(value: Any) -> bool:
    """Tell whether a function or class is part of a library, where its name says which it is."""
    module = sys.modules.get(getattr(value, "__module__", None) or "")
    if module is None or module.__name__ == "__main__" or is_users_own(module):
        return False
    found: Any = module
    for part in value.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is value


def _reference(value: Any) -> bytes:
    return f"{value.__module__}:{value.__qualname__} {_version(value.__module__)}".encode()


def _version(module: str) -> str:
    top = sys.modules.get(module.partition(".")[0])
    version = getattr(top, "__version__", "")
    return version if isinstance(version, str) else ""
