"""Datasets: rows that were parsed once and stored as chunks, ready for any number of workers."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from cirrus.chunks import (
    DERIVED_FOLDER,
    MANIFEST_KEY,
    Block,
    BlockBuilder,
    ChunkInfo,
    ChunkWriter,
    Manifest,
    commit_dataset,
    iterate_blocks,
    new_chunk_prefix,
    read_manifest,
)
from cirrus.client_backend.arrays import store_arrays
from cirrus.errors import ConfigError
from cirrus.frontend.scratch import Scratch
from cirrus.storage import ObjectStore, open_store


class Dataset:
    """Rows in an object store: chunks and a manifest below one URL.

    Make one with :func:`cirrus.load_svmlight`, :func:`cirrus.load_csv` or :func:`cirrus.load_arrays`; find it
    again with :meth:`open`. Its rows stay where they are until somebody reads them.

    Attributes:
        url: Where it is.
        manifest: What it says of itself.
    """

    def __init__(self, url: str, manifest: Manifest, *, scratch: Scratch | None = None) -> None:
        """Take a dataset whose manifest is known; :meth:`open` reads it.

        Args:
            url: Where it is.
            manifest: Its manifest.
            scratch: The place it is in, if that is to go when the last dataset in it goes.
        """
        self.url = url
        self.manifest = manifest
        self._scratch = scratch

    @classmethod
    def open(cls, url: str | os.PathLike[str]) -> Dataset:
        """Open the dataset at a URL.

        Raises:
            DataError: There is none, or it cannot be read.
            StorageError: The object store refused or failed.
        """
        store = open_store(url)
        return cls(store.url, read_manifest(store))

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return self.manifest.n_rows

    @property
    def n_features(self) -> int:
        """Number of columns; feature ids are below this."""
        return self.manifest.n_features

    @property
    def chunks(self) -> tuple[ChunkInfo, ...]:
        """Where the rows are."""
        return self.manifest.chunks

    @property
    def labels(self) -> tuple[float, ...] | tuple[str, ...]:
        """The distinct labels, sorted; empty when they are more than a thousand different numbers."""
        if self.manifest.label_names is not None:
            return tuple(self.manifest.label_names[int(code)] for code in self.manifest.label_values)
        return self.manifest.label_values

    def __repr__(self) -> str:
        return f"Dataset({self.url!r}, n_rows={self.n_rows}, n_features={self.n_features})"

    def blocks(self) -> Iterator[Block]:
        """Yield the rows block by block, in order. Only one chunk is in memory at a time.

        Raises:
            CorruptDataError: A chunk is missing or damaged.
        """
        return iterate_blocks(open_store(self.url), self.manifest)

    def to_csr(self) -> tuple[scipy.sparse.csr_array, NDArray[np.float32], NDArray[np.float32] | None]:
        """Return all rows in memory: (X, y, sample weights or None), for small data.

        ``y`` holds numbers; where labels were text, ``manifest.label_names`` has the text of label 0, 1, ...
        """
        indptr, indices, values, labels, weights = [np.zeros(1, np.int64)], [], [], [], []
        n_entries = 0
        for block in self.blocks():
            starts, ids, data = block.to_csr()
            indptr.append(starts[1:] + n_entries)
            n_entries += ids.size
            indices.append(ids)
            values.append(data)
            labels.append(block.labels)
            weights.append(np.ones(block.n_rows, np.float32) if block.weights is None else block.weights)
        X = scipy.sparse.csr_array(
            (np.concatenate(values), np.concatenate(indices).astype(np.int64), np.concatenate(indptr)),
            shape=(self.n_rows, self.n_features),
        )
        return X, np.concatenate(labels), np.concatenate(weights) if self.manifest.has_weights else None

    def split(self, test_size: float | int = 0.1, random_state: int | None = 0) -> tuple[Dataset, Dataset]:
        """Split the rows at random into two datasets, (train, test), stored below this one's URL.

        The same arguments give the same rows, and are not done twice. Exactly ``test_size`` rows, chosen
        evenly among all, go to the second; both keep the rows' order.

        Args:
            test_size: Part of the rows (between 0 and 1), or their number.
            random_state: Seed. None: another split each time.

        Raises:
            ConfigError: One of the two would have no rows.
            CorruptDataError: A chunk is missing or damaged.
        """
        n_test = _n_test_rows(test_size, self.n_rows)
        if random_state is None:
            name = secrets.token_hex(8)
        else:
            key = json.dumps([self.manifest.fingerprint, n_test, random_state])
            name = hashlib.sha256(key.encode()).hexdigest()[:16]
        stores = [open_store(self.url).child(f"{DERIVED_FOLDER}/{name}/{part}") for part in ("train", "test")]
        if all(store.exists(MANIFEST_KEY) for store in stores):
            manifests = [read_manifest(store) for store in stores]
        else:
            manifests = self._write_split(stores, n_test, np.random.default_rng(random_state))
        train, test = (
            Dataset(store.url, manifest, scratch=self._scratch)
            for store, manifest in zip(stores, manifests, strict=True)
        )
        return train, test

    def _write_split(
        self, stores: list[ObjectStore], n_test: int, rng: np.random.Generator
    ) -> list[Manifest]:
        prefixes = [new_chunk_prefix() for _ in stores]
        writers = [ChunkWriter(store, prefix) for store, prefix in zip(stores, prefixes, strict=True)]
        builders = [BlockBuilder(writer) for writer in writers]
        try:
            rows_left, test_left = self.n_rows, n_test
            for block in self.blocks():
                # Drawing how many of a block are test rows, and then which, is drawing from all rows at once.
                n_here = int(rng.hypergeometric(test_left, rows_left - test_left, block.n_rows))
                is_test = np.zeros(block.n_rows, np.bool_)
                is_test[rng.choice(block.n_rows, n_here, replace=False)] = True
                for builder, chosen in zip(builders, (~is_test, is_test), strict=True):
                    builder.add(block.select(np.flatnonzero(chosen)))
                rows_left -= block.n_rows
                test_left -= n_here
            for builder in builders:
                builder.flush()
            return [
                commit_dataset(
                    store,
                    prefix,
                    writer.chunks,
                    writer.summary,
                    n_features=self.n_features,
                    label_names=self.manifest.label_names,
                    encoding=self.manifest.encoding,
                )
                for store, prefix, writer in zip(stores, prefixes, writers, strict=True)
            ]
        except BaseException:
            for store, prefix in zip(stores, prefixes, strict=True):
                store.delete_prefix(prefix)
            raise


def _n_test_rows(test_size: float | int, n_rows: int) -> int:
    if isinstance(test_size, bool) or not isinstance(test_size, (int, float, np.integer, np.floating)):
        raise ConfigError("test_size", f"must be a number, got {test_size!r}")
    whole = isinstance(test_size, (int, np.integer))
    if not whole and not 0 < test_size < 1:
        raise ConfigError("test_size", f"must be between 0 and 1, or a number of rows, got {test_size!r}")
    n_test = int(test_size) if whole else int(np.ceil(test_size * n_rows))
    if not 0 < n_test < n_rows:
        raise ConfigError("test_size", f"{test_size!r} of {n_rows} rows leaves one part without rows")
    return n_test


def load_arrays(
    X: Any,
    y: Any,
    url: str | os.PathLike[str] | None = None,
    *,
    sample_weight: Any = None,
    shuffle: bool = True,
    random_state: int | None = None,
    folder: bool = False,
) -> Dataset:
    """Store arrays as a dataset.

    Args:
        X: Array or scipy.sparse matrix of shape (n_rows, n_features).
        y: Labels, numbers or text, of shape (n_rows,).
        url: Where to; a dataset that is there is replaced. None: in the memory of this process, until nobody
            holds the dataset any more.
        sample_weight: Weights >= 0 of shape (n_rows,), or None.
        shuffle: Spread the rows over the blocks at random, as training needs it.
        random_state: Seed of that.
        folder: Without a URL: in a temporary folder instead of memory, so that other processes can read it.

    Raises:
        DataError: The shapes do not fit, or there are values that are not finite.
        StorageError: The object store refused or failed.

    Example:
        >>> import numpy as np, cirrus
        >>> cirrus.load_arrays(np.eye(3), [0, 1, 1]).n_features
        3
    """
    scratch = Scratch(in_memory=not folder) if url is None else None
    store = open_store(scratch.url("dataset") if scratch else str(url))
    manifest = store_arrays(
        X, y, store, sample_weight=sample_weight, shuffle=shuffle, random_state=random_state
    )
    return Dataset(store.url, manifest, scratch=scratch)
