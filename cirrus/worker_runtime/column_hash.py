"""Hashing of columns by their numbers, as scikit-learn's ``FeatureHasher`` hashes them written as text.

MurmurHash3 (x86, 32 bits, seed 0) of the decimal digits, for whole arrays of numbers at once; formula after
A. Appleby's ``MurmurHash3_x86_32``.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

UInt32 = NDArray[np.uint32]

#: Datasets of so many columns have them all hashed at once and looked up; of wider ones those that occur are.
MAX_TABLE_COLUMNS = 2**22
#: Decimal digits of the largest feature id.
MAX_DIGITS = 10


def decimal_hashes(numbers: NDArray[Any]) -> NDArray[np.int32]:
    """Return the hash of each number's decimal digits.

    Args:
        numbers: Below 2**32. Shape (n,).
    """
    wide = numbers.astype(np.int64)
    hashes = np.empty(wide.size, np.int32)
    n_digits = np.searchsorted(10 ** np.arange(1, MAX_DIGITS, dtype=np.int64), wide, side="right") + 1
    for length in np.flatnonzero(np.bincount(n_digits, minlength=MAX_DIGITS + 1)).tolist():
        chosen = n_digits == length
        hashes[chosen] = _hashes_of_length(wide[chosen], length).view(np.int32)
    return hashes


def _hashes_of_length(numbers: NDArray[np.int64], length: int) -> UInt32:
    """Return hashes of numbers of so many digits each."""
    powers = [10 ** (length - 1 - place) for place in range(length)]
    digits = [(numbers // power % 10 + ord("0")).astype(np.uint32) for power in powers]
    state = np.zeros(numbers.size, np.uint32)
    for first in range(0, length - 3, 4):
        state ^= _scrambled(_word(digits[first : first + 4]))
        state = _rotated(state, 13) * np.uint32(5) + np.uint32(0xE6546B64)
    if length % 4:
        state ^= _scrambled(_word(digits[length - length % 4 :]))
    state ^= np.uint32(length)
    state ^= state >> np.uint32(16)
    state *= np.uint32(0x85EBCA6B)
    state ^= state >> np.uint32(13)
    state *= np.uint32(0xC2B2AE35)
    state ^= state >> np.uint32(16)
    return state


def _word(digits: list[UInt32]) -> UInt32:
    """Return up to four bytes as one number, the first of them lowest."""
    word = digits[0].copy()
    for place, digit in enumerate(digits[1:], start=1):
        word |= digit << np.uint32(8 * place)
    return word


def _scrambled(word: UInt32) -> UInt32:
    return _rotated(word * np.uint32(0xCC9E2D51), 15) * np.uint32(0x1B873593)


def _rotated(word: UInt32, bits: int) -> UInt32:
    return (word << np.uint32(bits)) | (word >> np.uint32(32 - bits))


@dataclass(frozen=True, eq=False)
class ColumnHash:
    """Where columns go: those that are not hashed first, in their order, then the buckets of the others."""

    n_features: int
    """Columns that there are."""
    n_buckets: int
    alternate_sign: bool
    """Whether half of the hashed columns have their values' sign changed."""
    columns: UInt32 | None
    """Those that are hashed, ascending; None: all. Shape (n,)."""

    @property
    def n_kept(self) -> int:
        """Columns that are not hashed."""
        return 0 if self.columns is None else self.n_features - int(self.columns.size)

    @property
    def n_features_out(self) -> int:
        """Columns that there will be."""
        return self.n_kept + self.n_buckets

    def look_up(self, ids: NDArray[Any]) -> tuple[UInt32, NDArray[np.float64]]:
        """Return the new column of each of some columns, and the sign of its values; shapes (n,)."""
        if self.n_features > MAX_TABLE_COLUMNS:
            return self._compute(ids)
        targets, signs = self._table
        return targets.take(ids), signs.take(ids)

    @functools.cached_property
    def _table(self) -> tuple[UInt32, NDArray[np.float64]]:
        return self._compute(np.arange(self.n_features, dtype=np.int64))

    def _compute(self, ids: NDArray[Any]) -> tuple[UInt32, NDArray[np.float64]]:
        codes = decimal_hashes(ids).astype(np.int64)
        targets = np.abs(codes) % self.n_buckets + self.n_kept
        signs = np.where(codes >= 0, 1.0, -1.0) if self.alternate_sign else np.ones(codes.size)
        if self.columns is not None:
            before = np.searchsorted(self.columns, ids)
            place = before.clip(max=max(self.columns.size - 1, 0))
            is_kept = self.columns[place] != ids if self.columns.size else np.ones(codes.size, np.bool_)
            targets = np.where(is_kept, ids - before, targets)
            signs[is_kept] = 1.0
        return targets.astype(np.uint32), signs
