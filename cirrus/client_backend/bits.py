"""Eight bytes at a time for compiled kernels, with operations on bits that numba does not offer."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba.core import types
from numba.extending import intrinsic
from numpy.typing import NDArray

#: Times this, a byte is in each byte of a word.
EACH = np.uint64(0x0101010101010101)
_ZEROS = np.uint64(ord("0")) * EACH


def _type_trailing_zeros(typing_context: Any, word: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], context.get_constant(types.boolean, True))

    return types.uint64(types.uint64), generate


def _type_ones(typing_context: Any, word: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


_trailing_zeros: Any = intrinsic(_type_trailing_zeros)
_ones: Any = intrinsic(_type_ones)


@numba.njit(cache=True, nogil=True)
def trailing_zeros(word: np.uint64) -> np.uint64:
    """Return the number of zeros below the lowest bit that is set, of a word that is not 0."""
    n: np.uint64 = _trailing_zeros(word)
    return n


@numba.njit(cache=True, nogil=True)
def count_ones(word: np.uint64) -> np.uint64:
    """Return the number of bits that are set."""
    n: np.uint64 = _ones(word)
    return n


@numba.njit(cache=True, nogil=True)
def word_at(text: NDArray[np.uint8], i: int) -> np.uint64:
    """Return eight bytes as a number, the lowest one first: a single load.

    Args:
        text: Shape (at least i + 8,).
        i: Where they begin.
    """
    word = np.uint64(0)
    for k in range(8):
        word |= np.uint64(text[np.uintp(i + k)]) << np.uint64(8 * k)
    return word


@numba.njit(cache=True, nogil=True)
def count_digits(word: np.uint64) -> Any:
    """Return how many of eight bytes of text are decimal digits before the first that is none."""
    offsets = word ^ _ZEROS
    # In each byte the highest bit is set if it is no digit; nothing is carried into the next one.
    others = (((offsets & (np.uint64(0x7F) * EACH)) + np.uint64(0x76) * EACH) | offsets) & (
        EACH << np.uint64(7)
    )
    return np.int64(8) if others == 0 else np.int64(trailing_zeros(others) >> np.uint64(3))


@numba.njit(cache=True, nogil=True)
def value_of_digits(word: np.uint64, n: int) -> Any:
    """Return the number that the first ``n`` of eight bytes of text, 1 to 8, are the digits of.

    All at once: neighbouring digits are put together to numbers of two digits, these to numbers of four.
    """
    word = (word ^ _ZEROS) << np.uint64(64 - 8 * n)  # the bytes before the digits are 0
    word = (word * np.uint64(10) + (word >> np.uint64(8))) & np.uint64(0x00FF00FF00FF00FF)
    word = (word * np.uint64(100) + (word >> np.uint64(16))) & np.uint64(0x0000FFFF0000FFFF)
    return np.int64((word * np.uint64(10_000) + (word >> np.uint64(32))) & np.uint64(0xFFFFFFFF))
