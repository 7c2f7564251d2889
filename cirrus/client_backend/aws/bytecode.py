"""Compiles a function's Python files beforehand.

A function's files cannot be written to, so without this every cold start compiles numpy again: a fifth of a
second on a processor of today.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from cirrus.errors import DataError

COMPILE_SECONDS = 300.0
QUESTION_SECONDS = 10.0
#: Where Lambda puts a function's files; tracebacks name them so.
TASK_FOLDER = "/var/task"
#: Where version managers keep interpreters: the variable that names the folder, where that is otherwise, and
#: what is in it.
VERSION_MANAGERS = (
    ("PYENV_ROOT", "~/.pyenv", "versions/{}.*"),
    ("UV_PYTHON_INSTALL_DIR", "~/.local/share/uv/python", "cpython-{}.*"),
    ("MISE_DATA_DIR", "~/.local/share/mise", "installs/python/{}*"),
    ("ASDF_DATA_DIR", "~/.asdf", "installs/python/{}.*"),
    ("MAMBA_ROOT_PREFIX", "~/miniforge3", "envs/*"),
    ("CONDA_ROOT", "~/miniconda3", "envs/*"),
)
_ERROR_LINES = 5
#: Compiles every file below a folder, in order. Nobody asks whether a source is newer: both come in one zip.
_PROGRAM = """
import pathlib, py_compile, sys
folder, task = pathlib.Path(sys.argv[1]), sys.argv[2]
for path in sorted(folder.rglob("*.py")):
    name = path.relative_to(folder).as_posix()
    py_compile.compile(str(path), dfile=f"{task}/{name}", doraise=True,
                       invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
"""


def find_python(version: str) -> str | None:
    """Return an interpreter of this version, such as ``3.13``, or None where none works on this machine.

    It is looked for on the path, where version managers keep those that they do not put there, and by uv.
    """
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        return sys.executable
    return next((program for program in _programs(version) if _is_python(program, version)), None)


def _programs(version: str) -> Iterator[str]:
    """Yield what may be interpreters of a version, the likeliest first."""
    on_path = shutil.which(f"python{version}")
    if on_path is not None:
        yield on_path
    for variable, usual, folder in VERSION_MANAGERS:
        try:
            root = Path(os.environ.get(variable) or usual).expanduser()
        except RuntimeError:  # there is no home
            continue
        pattern = f"{folder.format(version)}/bin/python{version}"
        yield from sorted(map(str, root.glob(pattern)), reverse=True)
    # uv knows of some more; it fetches nothing when it is asked to find.
    uv = shutil.which("uv")
    if uv is not None and (found := _answer([uv, "python", "find", "--system", "--no-project", version])):
        yield found


def _is_python(program: str, version: str) -> bool:
    """Return whether a program is an interpreter of a version, and no stand-in of a version manager."""
    question = "import sys; print(sys.implementation.cache_tag)"
    return _answer([program, "-I", "-S", "-c", question]) == f"cpython-{version.replace('.', '')}"


def _answer(command: list[str]) -> str | None:
    """Return what a program prints, or None where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=QUESTION_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def compile_members(members: Mapping[str, bytes], python: str) -> dict[str, bytes]:
    """Return the compiled forms of all Python files among some, by path; the same for the same files.

    Args:
        members: Contents by path.
        python: The interpreter to compile with.

    Raises:
        DataError: A file is no Python for this interpreter.
    """
    with tempfile.TemporaryDirectory(prefix="cirrus-compile-") as temporary:
        folder = Path(temporary)
        for name, data in members.items():
            if name.endswith(".py"):
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
        # With a seed of its own each time, sets of constants would be written in another order.
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        environment = {**kept, "PYTHONHASHSEED": "0"}
        command = [python, "-S", "-c", _PROGRAM, str(folder), TASK_FOLDER]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=COMPILE_SECONDS,
                env=environment,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise DataError(f"the function's files cannot be compiled with {python}: {error}") from error
        if done.returncode != 0:
            text = "\n".join(done.stderr.strip().splitlines()[-_ERROR_LINES:])
            raise DataError(f"the function's files cannot be compiled with {python}:\n{text}")
        found = sorted(folder.rglob("__pycache__/*.pyc"))
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}
