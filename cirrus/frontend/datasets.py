"""Datasets: rows that were parsed once and stored as chunks, ready for any number of workers."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
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
    discard_chunks,
    iterate_blocks,
    new_chunk_prefix,
    read_manifest,
)
from cirrus.chunks.vocabulary import Vocabulary, copy_vocabularies, read_vocabulary
from cirrus.chunks.writer import Replaced
from cirrus.client_backend.arrays import store_arrays
from cirrus.client_backend.backend import Backend
from cirrus.client_backend.csv_format import NA_VALUES, CsvFormat, CsvRequest
from cirrus.client_backend.loader import (
    load_csv_file,
    load_csv_file_like,
    load_options,
    load_svmlight_file,
)
from cirrus.config import whole_number
from cirrus.errors import ConfigError, ConflictError
from cirrus.frontend.load_parameters import column_list, column_of, na_list
from cirrus.frontend.load_progress import LoadListener, listening_to_load
from cirrus.frontend.mapping import ChunkOperations
from cirrus.frontend.scratch import Scratch, memory_scratch_url
from cirrus.storage import ObjectStore, open_store

if TYPE_CHECKING:
    from scipy.sparse import csr_array


class Dataset(ChunkOperations):
    """Rows in an object store: chunks and a manifest below one URL.

    Make one with :func:`cirrus.load_svmlight`, :func:`cirrus.load_csv`, :func:`cirrus.load_arrays` or another
    of the loaders; find it again with :meth:`open`. Its rows stay where they are until somebody reads them.

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
            NotFoundError: There is none.
            CorruptDataError: Its manifest cannot be read.
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

    def vocabulary(self, name: str) -> Vocabulary:
        """Return what features are called: ``"users"`` and ``"items"`` of ratings, ``"words"`` of documents.

        Raises:
            NotFoundError: The dataset has no vocabulary of that name.
            CorruptDataError: It is damaged.
        """
        return read_vocabulary(open_store(self.url), self.manifest, name)

    def __repr__(self) -> str:
        return f"Dataset({self.url!r}, n_rows={self.n_rows}, n_features={self.n_features})"

    def blocks(self) -> Iterator[Block]:
        """Yield the rows block by block, in order. Only one chunk is in memory at a time.

        Raises:
            CorruptDataError: A chunk is missing or damaged.
        """
        return iterate_blocks(open_store(self.url), self.manifest)

    def to_csr(self) -> tuple[csr_array, NDArray[np.float32], NDArray[np.float32] | None]:
        """Return all rows in memory: (X, y, sample weights or None), for small data.

        ``y`` holds numbers; where labels were text, ``manifest.label_names`` has the text of label 0, 1, ...
        """
        from scipy.sparse import csr_array

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
        # 32 bits where they do: many of scikit-learn's solvers take no other indices.
        kind = np.int32 if max(n_entries, self.n_features) < 2**31 else np.int64
        X = csr_array(
            (
                np.concatenate(values),
                np.concatenate(indices).astype(kind),
                np.concatenate(indptr).astype(kind),
            ),
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
            manifests = []
            for store, writer, prefix in zip(stores, writers, prefixes, strict=True):
                try:
                    manifest = commit_dataset(
                        store,
                        writer.chunks,
                        writer.summary,
                        n_features=self.n_features,
                        label_names=self.manifest.label_names,
                        encoding=self.manifest.encoding,
                        vocabularies=copy_vocabularies(open_store(self.url), self.manifest, store, prefix),
                        replaces=Replaced(None),
                    )
                except ConflictError:
                    # Somebody else stored the same rows first, and may be reading them by now.
                    discard_chunks(store, prefix)
                    manifest = read_manifest(store)
                manifests.append(manifest)
        except BaseException:
            for store, prefix in zip(stores, prefixes, strict=True):
                discard_chunks(store, prefix)
            raise
        return manifests


def _n_test_rows(test_size: float | int, n_rows: int) -> int:
    if isinstance(test_size, bool) or not isinstance(test_size, (int, float, np.integer, np.floating)):
        raise ConfigError("test_size", f"must be a number, got {test_size!r}")
    whole = isinstance(test_size, (int, np.integer))
    if not whole and not 0 < test_size < 1:
        raise ConfigError("test_size", f"must be between 0 and 1, or a number of rows, got {test_size!r}")
    n_test = int(test_size) if whole else int(np.ceil(test_size * n_rows))
    if not 0 < n_test < n_rows:
        raise ConfigError(
            "test_size", f"{test_size!r} leaves one part without rows: there are {n_rows} in all"
        )
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
    progress: bool | LoadListener | None = None,
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
        progress: True: a live line. A function: called with a :class:`LoadProgress` after each block, in this
            thread.

    Raises:
        DataError: The shapes do not fit, or there are values that are not finite.
        StorageError: The object store refused or failed.

    Example:
        >>> import numpy as np, cirrus
        >>> cirrus.load_arrays(np.eye(3), [0, 1, 1]).n_features
        3
    """
    scratch = Scratch(None if folder else memory_scratch_url()) if url is None else None
    store = open_store(scratch.url("dataset") if scratch else str(url))
    with listening_to_load(progress) as listener:
        manifest = store_arrays(
            X,
            y,
            store,
            sample_weight=sample_weight,
            shuffle=shuffle,
            random_state=random_state,
            progress=listener,
        )
    return Dataset(store.url, manifest, scratch=scratch)


def load_svmlight(
    path: str | os.PathLike[str],
    url: str | os.PathLike[str],
    n_features: int | None = None,
    *,
    zero_based: bool | Literal["auto"] = "auto",
    shuffle: bool = True,
    random_state: int | None = None,
    n_processes: int | None = None,
    backend: str | Backend | None = None,
    progress: bool | LoadListener | None = None,
) -> Dataset:
    """Load svmlight files: lines of ``LABEL INDEX:VALUE INDEX:VALUE ...``.

    Files are read once, as a stream; memory does not grow with them. A load that is refused leaves nothing;
    one that is interrupted goes on when it is called again with the same arguments. A dataset that is there
    already is replaced only when the new one is complete.

    Args:
        path: One file; a pattern (``"part-*.gz"``); an object, all objects below a prefix, or a pattern of
            objects (``"s3://bucket/key"``); or ``"-"`` for standard input. Plain, gzip, LZ4 frames, bzip2,
            xz, or zip of one file. Several files are one, in the order of their names.
        url: Where the dataset goes: a folder or ``s3://bucket/prefix``.
        n_features: Number of columns; a higher index is an error. None: as many as the file has. Give a test
            set that of its training set.
        zero_based: Whether the first index is 0 or 1. ``"auto"``: 0 if an index 0 is anywhere in the files,
            else 1, as scikit-learn does it; say which for a file that may by chance have no index 0.
        shuffle: Spread the rows over the whole dataset at random, as training needs it.
        random_state: Seed of that; the result does not depend on ``n_processes``.
        n_processes: None: as many as the machine and the file suggest.
        backend: Where text is parsed and chunks are made: ``"aws"``: in functions, which see objects in S3 by
            themselves and get other text from here. None: in processes of this machine.
        progress: True: a live line. A function: called with a :class:`LoadProgress` now and then, in this
            thread.

    Raises:
        DataError: A line is wrong (the message names it and a remedy), or there are no rows.
        NotFoundError: There is no such file.
        StorageError: The file or the object store cannot be read or written.

    Example:
        >>> cirrus.load_svmlight("a9a.gz", "data/a9a")  # doctest: +SKIP
    """
    with listening_to_load(progress) as listener:
        if zero_based not in ("auto", True, False):
            raise ConfigError("zero_based", f'must be "auto", True or False, got {zero_based!r}')
        store = open_store(url)
        manifest = load_svmlight_file(
            os.fspath(path),
            store,
            n_features=None if n_features is None else whole_number(n_features, "n_features"),
            zero_based=None if zero_based == "auto" else bool(zero_based),
            options=load_options(shuffle, random_state, n_processes, listener, backend),
        )
        return Dataset(store.url, manifest)


def load_csv(
    path: str | os.PathLike[str],
    url: str | os.PathLike[str],
    label: str | int | None = 0,
    numeric: Sequence[str | int] = (),
    categorical: Sequence[str | int] = (),
    sep: str = ",",
    hash_features: int = 2**20,
    *,
    header: bool | Literal["infer"] = "infer",
    label_above: float | None = None,
    missing_label: Literal["error", "drop"] = "error",
    na_values: Sequence[str] = NA_VALUES,
    shuffle: bool = True,
    random_state: int | None = None,
    n_processes: int | None = None,
    backend: str | Backend | None = None,
    progress: bool | LoadListener | None = None,
) -> Dataset:
    """Load CSV files. Columns are named as in the header, or numbered from 0.

    Numeric columns become features 0, 1, ... in the order given. Each category (``column=value``) is hashed
    into one of ``hash_features`` features after these. A cell without a value sets the hashed feature
    ``column=missing``. Text must be UTF-8; quotation marks work as usual in CSV.

    Args:
        path: One file, a pattern, an object or prefix in a store, or ``-``; see :func:`cirrus.load_svmlight`.
            Of several files, each has a header or none has; columns may be in another order.
        url: Where the dataset goes: a folder or ``s3://bucket/prefix``.
        label: The column to be predicted: numbers, or text for the names of classes. None: there is none.
        numeric: Columns that are numbers.
        categorical: Columns that are categories, be they numbers or text.
        sep: What separates columns.
        hash_features: Number of features for categories; more of them collide less.
        header: Whether the first line holds the columns' names. ``"infer"``: it does if a column is given by
            name here, or if it has text where the next line has a number.
        label_above: Make the label 1 where its number is above this, else 0.
        missing_label: What to do with a row without a label.
        na_values: Cells that mean that there is no value.
        shuffle: Spread the rows over the whole dataset at random, as training needs it.
        random_state: Seed of that; the result does not depend on ``n_processes``.
        n_processes: None: as many as the machine and the file suggest.
        backend: Where text is parsed and chunks are made: ``"aws"``: in functions, which see objects in S3 by
            themselves and get other text from here. None: in processes of this machine.
        progress: True: a live line. A function: called with a :class:`LoadProgress` now and then, in this
            thread.

    Raises:
        ConfigError: A parameter cannot work.
        DataError: A line is wrong (the message names it and a remedy), a column is missing, or there are no
            rows.
        NotFoundError: There is no such file.
        StorageError: The file or the object store cannot be read or written.

    Example:
        >>> cirrus.load_csv("flights.csv", "data/flights", label="arr_delay", label_above=15,
        ...                 numeric=["distance"], categorical=["carrier", "origin"])  # doctest: +SKIP
    """
    with listening_to_load(progress) as listener:
        request = CsvRequest(
            label=None if label is None else column_of(label, "label"),
            numeric=column_list(numeric, "numeric"),
            categorical=column_list(categorical, "categorical"),
            sep=sep,
            hash_features=whole_number(hash_features, "hash_features"),
            header=header,
            label_above=label_above,
            missing_label=missing_label,
            na_values=na_list(na_values),
        )
        options = load_options(shuffle, random_state, n_processes, listener, backend)
        store = open_store(url)
        return Dataset(store.url, load_csv_file(os.fspath(path), store, request=request, options=options))


def load_csv_like(
    path: str | os.PathLike[str],
    url: str | os.PathLike[str],
    encoding: Mapping[str, Any],
    *,
    label_names: tuple[str, ...] | None = None,
    with_labels: bool = False,
    shuffle: bool = False,
    random_state: int | None = None,
    n_processes: int | None = None,
    backend: str | Backend | None = None,
    progress: bool | LoadListener | None = None,
) -> Dataset:
    """Load a CSV file in the way another one was loaded, to predict or score its rows.

    See :func:`load_csv` for what both have in common.

    Args:
        path: The file. Its columns may be in another order, if they have names.
        url: Where the dataset goes.
        encoding: ``manifest.encoding`` of the other dataset.
        label_names: ``manifest.label_names`` of the other dataset.
        with_labels: Read the labels too. Otherwise their column may be missing, and they are all 0.
        shuffle: Spread the rows; the default keeps their order.
        random_state: Seed of that.
        n_processes: None: as many as the machine and the file suggest.
        backend: Where text is parsed and chunks are made: ``"aws"``: in functions, which see objects in S3 by
            themselves and get other text from here. None: in processes of this machine.
        progress: True: a live line. A function: called with a :class:`LoadProgress` now and then, in this
            thread.

    Raises:
        ConfigError: The encoding is not that of a CSV file.
        DataError: A line is wrong, a column is missing, a label is unknown, or there are no rows.
        NotFoundError: There is no such file.
        StorageError: The file or the object store cannot be read or written.
    """
    with listening_to_load(progress) as listener:
        store = open_store(url)
        manifest = load_csv_file_like(
            os.fspath(path),
            store,
            csv=CsvFormat.from_encoding(encoding),
            label_names=label_names,
            with_labels=with_labels,
            options=load_options(shuffle, random_state, n_processes, listener, backend),
        )
        return Dataset(store.url, manifest)
