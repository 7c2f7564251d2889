"""What commands say: results on standard output, everything about the way there on standard error."""

from __future__ import annotations

import shlex
import sys


def command(*words: str) -> str:
    """Return a command of Cirrus' own as one types it."""
    return shlex.join(["cirrus", *words])


def say(text: str) -> None:
    """Say something about the way to the result."""
    print(text, file=sys.stderr, flush=True)


def show(text: str) -> None:
    """Print a result."""
    print(text, flush=True)


def table(rows: list[list[str]], *, right: frozenset[int] = frozenset()) -> str:
    """Return rows of cells as aligned columns.

    Args:
        rows: The first is the head.
        right: Numbers of the columns that are aligned to the right.
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def count(number: int, what: str) -> str:
    """Return a number of things: ``1 chunk``, ``1,200 chunks``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def bytes_text(n_bytes: int) -> str:
    """Return a size as people say it: ``12.3 MB``."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= size:
            return f"{n_bytes / size:.1f} {unit}"
    return f"{n_bytes} bytes"
