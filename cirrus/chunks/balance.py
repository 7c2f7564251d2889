"""Cutting tables into ranges so that shards are equally busy, whatever the numbering of the features.

A shard's work is the number of *unique* ids that each minibatch asks it for. How many of a range of ids that
are follows from how often the range is touched at all, which the manifest's histogram tells.
"""

from __future__ import annotations

import numpy as np

from cirrus.chunks.block import Float64
from cirrus.chunks.manifest import Manifest
from cirrus.errors import ConfigError


def expected_touches(manifest: Manifest, batch_rows: int) -> Float64:
    """Return how many unique ids of each bin of touches a minibatch is expected to touch.

    Of ``m`` ids that share ``c`` entries among ``n_rows`` rows, each is in a row with probability ``c / (m
    n_rows)``, and in at least one of ``batch_rows`` rows with one minus the chance of being in none.

    Args:
        manifest: The dataset.
        batch_rows: Rows of a minibatch.

    Returns:
        Shape (n_bins,).
    """
    touches, n_rows = manifest.touches, manifest.n_rows
    widths = np.diff(np.asarray(touches.edges, np.float64))
    in_a_row = np.minimum(np.asarray(touches.n_nonzero, np.float64) / (widths * max(n_rows, 1)), 1.0)
    expected: Float64 = widths * -np.expm1(batch_rows * np.log1p(-np.minimum(in_a_row, 1 - 1e-12)))
    return expected


def cut_boundaries(manifest: Manifest, n_table_rows: int, n_shards: int, batch_rows: int) -> tuple[int, ...]:
    """Cut a table into ranges, one a shard, that get about the same number of unique ids from a minibatch.

    Args:
        manifest: The dataset.
        n_table_rows: Rows of the table: one for each feature and possibly some more, such as an intercept,
            which
            are taken to be touched by every minibatch.
        n_shards: Number of ranges. Where the table has fewer rows than that, the last shards get none.
        batch_rows: Rows of a minibatch.

    Returns:
        ``n_shards + 1`` ascending numbers from 0 to ``n_table_rows``.

    Raises:
        ConfigError: ``n_table_rows`` is less than the number of features, or ``n_shards`` is not positive.
    """
    n_features = manifest.n_features
    if n_shards < 1:
        raise ConfigError("n_shards", f"must be a whole number >= 1, got {n_shards!r}")
    if n_table_rows < n_features:
        raise ConfigError("n_table_rows", f"must be at least {n_features}, the number of features")
    edges = np.asarray(manifest.touches.edges, np.float64)
    work = expected_touches(manifest, batch_rows)
    if n_table_rows > n_features:
        edges = np.append(edges, n_table_rows)
        work = np.append(work, n_table_rows - n_features)
    # Untouched rows take memory at least; that decides where nothing else does.
    work = work + 1e-9 * max(float(work.sum()), 1.0) * np.diff(edges) / n_table_rows
    done = np.concatenate([[0.0], np.cumsum(work)])
    cuts = np.rint(np.interp(done[-1] * np.arange(1, n_shards) / n_shards, done, edges)).astype(np.int64)
    return _spread(cuts.tolist(), n_table_rows, n_shards)


def _spread(cuts: list[int], n_table_rows: int, n_shards: int) -> tuple[int, ...]:
    """Make the cuts ascend strictly, as far as there are rows, so that no shard is idle."""
    boundaries = [0]
    for k, cut in enumerate(cuts, start=1):
        most = max(n_table_rows - (n_shards - k), k)
        boundaries.append(min(max(cut, boundaries[-1] + 1), most, n_table_rows))
    return (*boundaries, n_table_rows)
