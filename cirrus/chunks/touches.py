"""Counting where in the feature space the data is dense."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import lz4.block
import numpy as np
from numpy.typing import NDArray

from cirrus.errors import ConfigError

#: Counters while loading; each counts a range of ``2**shift`` ids.
N_COUNTERS = 2**16
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
    """Counts touches in memory that does not grow, whatever the ids are.

    When an id comes that is beyond the last counter, neighbours are added up in pairs until it fits. So the
    counts do not depend on the order in which ids come.
    """

    _HEADER = struct.Struct("<B")

    def __init__(self, counts: NDArray[np.int64] | None = None, shift: int = 0) -> None:
        self._counts = np.zeros(N_COUNTERS, np.int64) if counts is None else counts
        self._shift = shift

    def add(self, ids: NDArray[Any], counts: NDArray[Any]) -> None:
        """Count ids.

        Args:
            ids: Ascending, unique feature ids. Shape (n,).
            counts: How often each of them occurs. Shape (n,).
        """
        if ids.size == 0:
            return
        while int(ids[-1]) >> self._shift >= N_COUNTERS:
            self._fold()
        bins = (ids >> np.uint32(self._shift)).astype(np.intp)
        first = int(bins[0])
        added = np.bincount(bins - first, weights=counts)
        self._counts[first : first + added.size] += added.astype(np.int64)

    def _fold(self) -> None:
        folded = self._counts.reshape(-1, 2).sum(axis=1)
        self._counts = np.concatenate([folded, np.zeros(N_COUNTERS // 2, np.int64)])
        self._shift += 1

    def merge(self, other: TouchCounter) -> None:
        """Add another counter's counts."""
        while self._shift < other._shift:
            self._fold()
        width = 1 << (self._shift - other._shift)
        added = other._counts.reshape(-1, width).sum(axis=1)
        self._counts[: added.size] += added

    def to_bytes(self) -> bytes:
        """Return the counter as bytes, for another process."""
        compressed = lz4.block.compress(self._counts.tobytes(), store_size=False)
        return self._HEADER.pack(self._shift) + bytes(compressed)

    @classmethod
    def from_bytes(cls, data: bytes) -> TouchCounter:
        """Read a counter that this version of Cirrus wrote."""
        raw = lz4.block.decompress(data[cls._HEADER.size :], uncompressed_size=N_COUNTERS * 8)
        return cls(np.frombuffer(raw, np.int64).copy(), cls._HEADER.unpack_from(data)[0])

    def histogram(self, n_features: int) -> Touches:
        """Return at most :data:`MAX_BINS` bins of about equal content over ``n_features`` (>= 1) ids."""
        n_used = -(-n_features // (1 << self._shift))
        ends = np.cumsum(self._counts[:n_used])
        total = int(ends[-1])
        # A bin ends where the content passes another 1/MAX_BINS of the total.
        share = (ends * MAX_BINS // max(total, 1)).clip(max=MAX_BINS - 1)
        cuts = np.flatnonzero(np.diff(share)) + 1
        edges = [0, *(int(cut) << self._shift for cut in cuts), n_features]
        sums = np.add.reduceat(self._counts[:n_used], np.concatenate([[0], cuts]))
        return Touches(edges=tuple(edges), n_nonzero=tuple(int(s) for s in sums))
