"""Counting where in the feature space the data is dense."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import lz4.block
import numpy as np
from numpy.typing import NDArray

from cirrus.errors import ConfigError, CorruptDataError

#: Even counters.
N_COUNTERS = 2**16
#: Ids are below ``2**32``, so that the even counters need not be wider.
MAX_SHIFT = 16
#: Relative counters tell ids apart that differ in this many bits after the highest.
_RELATIVE_BITS = 10
#: Bins that are kept in the manifest.
MAX_BINS = 1024


@dataclass(frozen=True, kw_only=True)
class Touches:
    """A histogram of nonzero entries over feature ids, with bins of about equal content."""

    edges: tuple[int, ...]
    """Ascending ids from 0 to the number of features; bin k covers ``[edges[k], edges[k + 1])``."""
    n_nonzero: tuple[int, ...]
    """Nonzero entries with ids in each bin."""

    def __post_init__(self) -> None:
        """Check that the bins are bins."""
        e = self.edges
        if (
            len(e) != len(self.n_nonzero) + 1
            or e[0] != 0
            or any(a >= b for a, b in zip(e, e[1:], strict=False))
        ):
            raise ConfigError("touches", "edges must ascend from 0, one more than there are counts")


class TouchCounter:
    """Counts touches in memory that does not grow, whatever the ids and in whatever order they come.

    Two sets of counters see every touch. *Even* ones cover ``2**shift`` ids each; when an id comes that is
    beyond the last one, neighbours are added up in pairs until it fits. *Relative* ones cover ranges whose
    width grows with the ids, a thousandth of them, so that the head of a long-tailed distribution is seen
    finely even among billions of ids. The histogram takes the finer of the two everywhere.
    """

    _HEADER = struct.Struct("<B")

    def __init__(self) -> None:
        self._even = np.zeros(N_COUNTERS, np.int64)
        self._shift = 0
        self._relative = np.zeros(1 + (32 << _RELATIVE_BITS), np.int64)

    def add(self, ids: NDArray[Any], counts: NDArray[Any]) -> None:
        """Count ids.

        Args:
            ids: Ascending, unique feature ids, uint32. Shape (n,).
            counts: How often each of them occurs. Shape (n,).
        """
        if ids.size == 0:
            return
        while int(ids[-1]) >> self._shift >= N_COUNTERS:
            self._fold()
        _add_at(self._even, (ids >> np.uint32(self._shift)).astype(np.intp), counts)
        _add_at(self._relative, _relative_bins(ids), counts)

    def _fold(self) -> None:
        folded = self._even.reshape(-1, 2).sum(axis=1)
        self._even = np.concatenate([folded, np.zeros(N_COUNTERS // 2, np.int64)])
        self._shift += 1

    def merge(self, other: TouchCounter) -> None:
        """Add another counter's counts."""
        while self._shift < other._shift:
            self._fold()
        width = 1 << (self._shift - other._shift)
        added = other._even.reshape(-1, width).sum(axis=1)
        self._even[: added.size] += added
        self._relative += other._relative

    def to_bytes(self) -> bytes:
        """Return the counter as bytes, for another process."""
        raw = self._even.tobytes() + self._relative.tobytes()
        return self._HEADER.pack(self._shift) + bytes(lz4.block.compress(raw, store_size=False))

    @classmethod
    def from_bytes(cls, data: bytes) -> TouchCounter:
        """Read a counter that this version of Cirrus wrote.

        Raises:
            CorruptDataError: It is none.
        """
        counter = cls()
        n_even, n_relative = counter._even.size, counter._relative.size
        n_bytes = 8 * (n_even + n_relative)
        try:
            (counter._shift,) = cls._HEADER.unpack_from(data)
            raw = lz4.block.decompress(data[cls._HEADER.size :], uncompressed_size=n_bytes)
        except (struct.error, lz4.block.LZ4BlockError) as error:
            raise CorruptDataError(f"counters of touches cannot be read: {error}") from error
        if len(raw) != n_bytes or counter._shift > MAX_SHIFT:
            raise CorruptDataError("counters of touches are of another size")
        counts = np.frombuffer(raw, np.int64).copy()
        counter._even, counter._relative = counts[:n_even], counts[n_even:]
        return counter

    def histogram(self, n_features: int) -> Touches:
        """Return at most :data:`MAX_BINS` bins of about equal content over ``n_features`` (>= 1) ids."""
        starts, counts = self._finest(n_features)
        ends = np.cumsum(counts)
        # A bin ends where the content passes another 1/MAX_BINS of the total.
        share = (ends * MAX_BINS // max(int(ends[-1]), 1)).clip(max=MAX_BINS - 1)
        cuts = np.flatnonzero(np.diff(share)) + 1
        edges = [0, *starts[cuts].tolist(), n_features]
        sums = np.add.reduceat(counts, np.concatenate([[0], cuts]))
        return Touches(edges=tuple(edges), n_nonzero=tuple(sums.tolist()))

    def _finest(self, n_features: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return where each of the finest ranges begins, and the touches in it."""
        # Ids beyond the counters were never touched, however many there may be.
        n_even = min(-(-n_features // (1 << self._shift)), self._even.size)
        starts = np.arange(n_even, dtype=np.int64) << self._shift
        counts = self._even[:n_even]
        if self._shift == 0:
            return starts, counts
        # Below this id, relative ranges are narrower. It is a power of two, where ranges of both kinds begin.
        limit = 1 << (self._shift + _RELATIVE_BITS)
        relative = _relative_starts()
        used = (relative < min(limit, n_features)) & (np.diff(relative, append=2**32) > 0)
        first_even = limit >> self._shift
        return (
            np.concatenate([relative[used], starts[first_even:]]),
            np.concatenate([self._relative[used], counts[first_even:]]),
        )


def _add_at(counters: NDArray[np.int64], bins: NDArray[np.intp], counts: NDArray[Any]) -> None:
    """Add counts to counters; bins ascend."""
    first = int(bins[0])
    added = np.bincount(bins - first, weights=counts)
    counters[first : first + added.size] += added.astype(np.int64)


def _relative_bins(ids: NDArray[Any]) -> NDArray[np.intp]:
    """Return the relative counter of each id: 0 for id 0, else from its highest bits.

    Exponent and first bits of a float64, read as one number, ascend with it.
    """
    bits: NDArray[np.int64] = ids.astype(np.float64).view(np.int64) >> (52 - _RELATIVE_BITS)
    return np.maximum(bits - (1023 << _RELATIVE_BITS) + 1, 0)


def _relative_starts() -> NDArray[np.int64]:
    """Return the lowest id of each relative counter, rounded up; some hold no whole number at all."""
    bits = np.arange(32 << _RELATIVE_BITS, dtype=np.int64) + (1023 << _RELATIVE_BITS)
    lowest = np.ceil((bits << (52 - _RELATIVE_BITS)).view(np.float64)).astype(np.int64)
    return np.concatenate([[0], lowest])
