"""Loops over bytes, compiled where numba is installed.

Functions in the cloud have numpy and no compiler: numba with what it needs has 200 MB, ten times as much as
everything else that a function loads. There the same loops run as plain Python, one interpreter a function,
and give the same rows a hundred times more slowly; where that would count, another way is taken
(:mod:`~cirrus.client_backend.gathering`).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

F = TypeVar("F", bound=Callable[..., Any])

#: Whether loops are compiled here.
ARE_COMPILED = importlib.util.find_spec("numba") is not None


class _Text(bytes):
    """Bytes with the one thing of an array that loops over text ask for."""

    @property
    def size(self) -> int:
        """How many there are."""
        return len(self)


def compiled(function: F) -> F:
    """Compile a function when it is called first, to run without the interpreter lock; it is kept on disk."""
    if not ARE_COMPILED:
        return function
    import numba

    made: Any = numba.njit(cache=True, nogil=True)(function)
    return made  # type: ignore[no-any-return]


def text_of(data: bytes) -> NDArray[np.uint8]:
    """Return text for :func:`compiled` loops; not copied where they are compiled. Shape (n_bytes,)."""
    if ARE_COMPILED:
        return np.frombuffer(data, np.uint8)
    # Elements of an array are numbers of eight bits, which overflow; those of bytes are Python's own.
    return _Text(data)  # type: ignore[return-value]
