"""Checks shared objects against the machine that shall load them."""

from __future__ import annotations

import io
from dataclasses import dataclass

from elftools.common.exceptions import ELFError
from elftools.construct import ConstructError
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection

from cirrus.errors import CorruptDataError, DataError

ELF_MAGIC = b"\x7fELF"
#: Machine names as wheels have them, by the ELF header's.
_MACHINES = {"EM_AARCH64": "aarch64", "EM_X86_64": "x86_64"}
_GLIBC = "GLIBC_2."


@dataclass(frozen=True, kw_only=True)
class ElfLimits:
    """What shared objects may ask of a machine."""

    machine: str
    """``aarch64`` or ``x86_64``."""
    glibc_minor: int
    """N of the newest glibc 2.N that there is."""


def check_shared_object(name: str, data: bytes, limits: ElfLimits) -> None:
    """Check that a machine can load a shared object.

    Its header tells the processor; the versions of the symbols that it needs tell the oldest C library.

    Args:
        name: What to call it in an error message.
        data: The file.
        limits: The machine.

    Raises:
        CorruptDataError: It is no ELF file, or damaged.
        DataError: It is for another processor or a newer C library.
    """
    try:
        elf = ELFFile(io.BytesIO(data))
        machine = _MACHINES.get(elf["e_machine"], elf["e_machine"])
        if machine != limits.machine:
            raise DataError(f"{name}: is for {machine}, not for {limits.machine}")
        versions = [
            entry.name
            for section in elf.iter_sections()
            if isinstance(section, GNUVerNeedSection)
            for _, entries in section.iter_versions()
            for entry in entries
        ]
    except (ELFError, ConstructError, ValueError, UnicodeDecodeError) as error:
        if isinstance(error, DataError):
            raise
        raise CorruptDataError(f"{name}: is no ELF file or damaged: {error}") from error
    for version in versions:
        minor = version.removeprefix(_GLIBC).partition(".")[0]
        if version.startswith(_GLIBC) and minor.isdecimal() and int(minor) > limits.glibc_minor:
            raise DataError(f"{name}: needs {version}, but the machine has glibc 2.{limits.glibc_minor}")
