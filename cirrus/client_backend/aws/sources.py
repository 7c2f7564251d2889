"""Where the files lie that a deployment is made from, and which of Cirrus' modules a worker needs."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

import cirrus
from cirrus.errors import ConfigError

#: What an ``if`` asks for whose body is not for functions: what only type checkers read, or is compiled.
_NOT_FOR_FUNCTIONS = ("TYPE_CHECKING", "ARE_COMPILED")
#: Packages that workers use, all of them; what they import comes with them.
WORKER_PACKAGES = ("chunks", "models", "storage", "worker_runtime")


def package_root() -> Path:
    """Return the folder of the package ``cirrus``."""
    return Path(cirrus.__file__).resolve().parent


def shipped_folder(name: str) -> Path:
    """Return one of the folders that lie beside the package: ``lambda_package`` or ``terraform``.

    In a source tree they lie at its top; an installed package carries them inside.

    Raises:
        ConfigError: The installation is incomplete.
    """
    root = package_root()
    for folder in (root / "client_backend" / "aws" / name, root.parent / name):
        if folder.is_dir():
            return folder
    raise ConfigError(name, f"this installation of cirrus has no folder {name}: install it again")


def all_modules() -> dict[str, Path]:
    """Return every Python file of Cirrus by its path in an archive (``cirrus/config.py``).

    The function's own files, which an installed package carries inside, are none of them.
    """
    root = package_root()
    files = [path for path in sorted(root.rglob("*.py")) if path.parent.name != "lambda_package"]
    return {f"cirrus/{path.relative_to(root).as_posix()}": path for path in files}


def worker_modules(handlers: Iterable[Path]) -> dict[str, Path]:
    """Return the Python files of Cirrus that a function needs, by their paths in an archive.

    These are the worker's packages and all that they and the handlers import, at the top of a module or in
    the midst of a function, but for what is imported for type checking, or to be compiled with numba.

    Args:
        handlers: Further files whose imports are needed.
    """
    files = {_module_name(path): (path, file) for path, file in all_modules().items()}
    prefixes = tuple(f"cirrus.{name}" for name in WORKER_PACKAGES)
    todo = [name for name in files if name in prefixes or name.startswith(tuple(f"{p}." for p in prefixes))]
    for handler in handlers:
        todo += _imports(handler, handler.stem)
    found: dict[str, Path] = {}
    seen: set[str] = set()
    while todo:
        name = todo.pop()
        if name in seen or name not in files:  # a name that is no module is something inside of one
            continue
        seen.add(name)
        path, file = files[name]
        found[path] = file
        todo += [name.rpartition(".")[0], *_imports(file, name, is_package=file.stem == "__init__")]
    return dict(sorted(found.items()))


def _module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _imports(file: Path, module: str, *, is_package: bool = False) -> list[str]:
    """Return the modules that a file imports; for ``from a import b`` both ``a`` and ``a.b``."""
    names: list[str] = []
    for node in _statements(ast.parse(file.read_bytes(), str(file))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                above = parts[: len(parts) - node.level + is_package]
                base = ".".join([*above, base]).rstrip(".")
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return names


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """Yield every node below one, without what stands under an ``if`` that is not for functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith(_NOT_FOR_FUNCTIONS):
            for other in child.orelse:
                yield other
                yield from _statements(other)
            continue
        yield child
        yield from _statements(child)
