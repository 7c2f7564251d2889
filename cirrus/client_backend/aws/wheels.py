"""Wheels for another machine: fetched by pip with pins and hashes, and what of them a function needs."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cirrus.client_backend.aws.elf import ElfLimits
from cirrus.errors import ConfigError, CorruptDataError, StorageError

#: Python versions that Lambda and the AWS provider know and Cirrus runs on; 3.14 is refused by the provider.
PYTHONS = ("3.12", "3.13")
#: Machine names as Lambda calls them, and as wheels and ELF files do.
WHEEL_MACHINES = {"arm64": "aarch64", "x86_64": "x86_64"}
#: This machine's own Python and architecture, for emulators.
HOST = "host"
#: glibc of Amazon Linux 2023, which Lambda's images and the shard servers are.
GLIBC_MINOR = 34
#: The oldest glibc that wheels are tagged for in this form.
_OLDEST_GLIBC_MINOR = 17
#: The longest that fetching all wheels may take.
DOWNLOAD_SECONDS = 600.0
#: A wheel whose content is larger is none of ours.
MAX_UNPACKED_BYTES = 600 * 2**20
_ERROR_LINES = 6


@dataclass(frozen=True, kw_only=True)
class Target:
    """A machine that packages are made for."""

    python: str = "3.13"
    architecture: str = "arm64"
    """``arm64``, ``x86_64``, or ``host`` for this machine and its Python."""

    def __post_init__(self) -> None:
        """Check both."""
        if self.architecture not in (*WHEEL_MACHINES, HOST):
            raise ConfigError("architecture", f"must be arm64, x86_64 or host, got {self.architecture!r}")
        if self.architecture == HOST:
            if sys.platform != "linux":
                raise ConfigError("architecture", "host works on Linux only, as functions do")
            object.__setattr__(self, "python", f"{sys.version_info.major}.{sys.version_info.minor}")
        elif self.python not in PYTHONS:
            raise ConfigError("python", f"must be one of {', '.join(PYTHONS)}, got {self.python!r}")

    @property
    def limits(self) -> ElfLimits:
        """What shared objects may ask of the machine."""
        minor = GLIBC_MINOR
        machine = platform.machine()
        if self.architecture == HOST:
            version = re.match(r"2\.(\d+)", platform.libc_ver()[1])
            minor = max(minor, int(version[1]) if version else minor)
        else:
            machine = WHEEL_MACHINES[self.architecture]
        return ElfLimits(machine=machine, glibc_minor=minor)

    def pip_options(self) -> list[str]:
        """Return the options with which pip fetches wheels for the machine."""
        if self.architecture == HOST:
            return ["--only-binary=:all:"]
        machine = WHEEL_MACHINES[self.architecture]
        tag = f"cp{self.python.replace('.', '')}"
        options = ["--only-binary=:all:", "--implementation=cp", f"--python-version={self.python}"]
        options += [f"--abi={abi}" for abi in (tag, "abi3", "none")]
        for minor in range(GLIBC_MINOR, _OLDEST_GLIBC_MINOR - 1, -1):
            options.append(f"--platform=manylinux_2_{minor}_{machine}")
        return [*options, f"--platform=manylinux2014_{machine}"]


def fetch_wheels(lock: Path, target: Target, folder: Path) -> list[Path]:
    """Fetch the wheels that a lock file names into a folder; return their paths, sorted by name.

    Args:
        lock: A requirements file with exact versions and hashes of everything.
        target: The machine that they are for.
        folder: Where to.

    Raises:
        StorageError: pip could not fetch them all.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-input", "--no-deps", "--require-hashes", "--requirement", str(lock)]
    command += ["--dest", str(folder), *target.pip_options()]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise StorageError(f"pip has not fetched the wheels within {DOWNLOAD_SECONDS:g} s") from error
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if not line.startswith("WARNING")]
        if any("No module named pip" in line for line in lines):
            raise StorageError(f"{sys.executable} has no pip, which fetches wheels: python -m ensurepip")
        text = "\n".join(lines[-_ERROR_LINES:])
        raise StorageError(f"pip could not fetch the wheels for {target.architecture}:\n{text}")
    return sorted(folder.glob("*.whl"))


def wheel_members(wheel: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the files that a wheel installs, by their paths on the module path.

    Raises:
        CorruptDataError: The archive is damaged, too large, or names a path outside.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            infos = [info for info in archive.infolist() if not info.is_dir()]
            if sum(info.file_size for info in infos) > MAX_UNPACKED_BYTES:
                raise CorruptDataError(f"{wheel.name}: is larger than {MAX_UNPACKED_BYTES} bytes unpacked")
            for info in infos:
                path = _installed_path(info.filename, wheel.name)
                if path is not None:
                    yield path, archive.read(info)
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise CorruptDataError(f"{wheel.name}: is no wheel: {error}") from error


def _installed_path(name: str, wheel: str) -> str | None:
    """Return where a member of a wheel is installed; None for scripts and headers."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\\" in name:
        raise CorruptDataError(f"{wheel}: names the path {name!r}")
    if parts[0].endswith(".data"):
        return "/".join(parts[2:]) if len(parts) > 2 and parts[1] in ("purelib", "platlib") else None
    return "/".join(parts)


#: Folders that no function ever imports: tests, compilers' input, and numpy's Fortran tools.
_LEFT_OUT = re.compile(
    r"(^|/)(tests|__pycache__|_pyinstaller)/"
    r"|^numpy/(f2py|distutils|_core/include|_core/lib|random/lib|random/_examples|doc)/"
    r"|\.(pyi|pyc|pyo|a|h|c|pxd|pyx|in|build|md|rst)$"
    r"|(^|/)(py\.typed|conftest\.py)$"
    r"|\.dist-info/(RECORD|INSTALLER|REQUESTED|direct_url\.json|entry_points\.txt|WHEEL)$"
)


def is_needed(path: str) -> bool:
    """Return whether a function needs an installed file."""
    return _LEFT_OUT.search(path) is None
