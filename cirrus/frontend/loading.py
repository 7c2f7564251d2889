"""Loaders for Parquet, ratings, documents, Vowpal Wabbit; see also :mod:`cirrus.frontend.datasets`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from cirrus.client_backend.backend import Backend
from cirrus.client_backend.csv_format import NA_VALUES, CsvFormat, CsvRequest
from cirrus.client_backend.loader import (
    LoadOptions,
    load_options,
    load_parquet_files,
    load_parquet_files_like,
    load_ratings_files,
    load_vw_files,
    load_words_files,
)
from cirrus.client_backend.ratings import RatingsFormat
from cirrus.client_backend.vw_format import VwFormat
from cirrus.config import whole_number
from cirrus.errors import ConfigError
from cirrus.frontend.datasets import Dataset
from cirrus.frontend.load_parameters import column_list, column_of, na_list
from cirrus.frontend.load_progress import LoadListener, listening_to_load
from cirrus.storage import open_store


def load_ratings(
    path: str | os.PathLike[str],
    url: str | os.PathLike[str],
    sep: str = ",",
    *,
    header: bool | Literal["infer"] = "infer",
    shuffle: bool = True,
    random_state: int | None = None,
    n_processes: int | None = None,
    backend: str | Backend | None = None,
    progress: bool | LoadListener | None = None,
) -> Dataset:
    r"""Load ratings: lines of user, item, rating and perhaps a timestamp, which is read over.

    Users and items may be numbers or text. They are numbered in sorted order; the dataset keeps the ids:
    ``ds.vocabulary("users")`` and ``ds.vocabulary("items")``. Each row has two entries of value 1, its user
    ``u`` and its item as ``n_users + i``; its label is the rating. ``ds.manifest.encoding`` has ``n_users``
    and ``n_items``.

    Args:
        path: One file, a pattern, an object or prefix in a store, or ``-``; see :func:`cirrus.load_svmlight`.
        url: Where the dataset goes: a folder or ``s3://bucket/prefix``.
        sep: What separates columns; several characters, such as ``"::"``, do not go with quotation marks.
        header: Whether the first line of each file names the columns. ``"infer"``: it does if its rating is
            not a number.
        shuffle: Spread the rows over the whole dataset at random, as training needs it.
        random_state: Seed of that; the result does not depend on ``n_processes``.
        n_processes: None: as many as the machine and the files suggest.
        backend: Where text is parsed and chunks are made: ``"aws"``: in functions, which see objects in S3 by
            themselves and get other text from here. None: in processes of this machine.
        progress: True: a live line. A function: called with a :class:`LoadProgress` now and then, in this
            thread.

    Raises:
        ConfigError: A parameter cannot work.
        DataError: A line is wrong (the message names it and a remedy), or there are no rows.
        NotFoundError: There is no such file.
        StorageError: A file or the object store cannot be read or written.

    Example:
        >>> cirrus.load_ratings("ml-100k/u.data", "data/ratings", sep="\\t")  # doctest: +SKIP
    """
    with listening_to_load(progress) as listener:
        if header not in ("infer", True, False):
            raise ConfigError("header", f'must be "infer", True or False, got {header!r}')
        store = open_store(url)
        manifest = load_ratings_files(
            os.fspath(path),
            store,
            how=RatingsFormat(sep=sep, header="infer" if header == "infer" else "yes" if header else "no"),
            options=load_options(shuffle, random_state, n_processes, listener, backend),
        )
        return Dataset(store.url, manifest)


def load_ratings_like(
    path: str | os.PathLike[str],
    url: str | os.PathLike[str],
    encoding: Mapping[str, Any],
    *,
    with_labels: bool = False,
    progress: bool | LoadListener | None = None,
) -> Dataset:
    """Load ratings in the way others were loaded, in their own order, to predict or score them.

    Args:
        path: See :func:`load_ratings`.
        url: Where the dataset goes.
        encoding: ``manifest.encoding`` of the other dataset; ``sep`` and ``header`` are as in the defaults
            of :func:`load_ratings` where it has none.
        with_labels: Every line must have a rating; otherwise lines may end behind the item, and all get 0.
        progress: True: a live line. A function: called with a :class:`LoadProgress` now and then, in this
            thread.

    Raises:
        ConfigError: The encoding is not that of ratings.
        DataError: A line is wrong, or there are no rows.
        NotFoundError: There is no such file.
        StorageError: A file or the object store cannot be read or written.
    """
    with listening_to_load(progress) as listener:
        if encoding.get("format") != "ratings":
            raise ConfigError("encoding", "is not that of a dataset of ratings")
        store = open_store(url)
        how = RatingsFormat(
            sep=encoding.get("sep", ","),
            header=encoding.get("header", "infer"),
            missing_rating="error" if with_labels else "zero",
        )
        options = LoadOptions(shuffle=False, progress=listener)
        return Dataset(store.url, load_ratings_files(os.fspath(path), store, how=how, options=options))


def load_bag_of_words(
    path: str | os.PathLike[str],
    url: str | os.PathLike[str],
    format: Literal["ldac", "docword"] = "ldac",
    *,
    vocabulary: str | os.PathLike[str] | None = None,
    shuffle: bool = True,
    random_state: int | None = None,
    n_processes: int | None = None,
    backend: str | Backend | None = None,
    progress: bool | LoadListener | None = None,
) -> Dataset:
    """Load documents as counts of words, for topic models. A row is a document; labels are 0.

    Args:
        path: One file, a pattern, an object or prefix in a store, or ``-``; see :func:`cirrus.load_svmlight`.
        url: Where the dataset goes: a folder or ``s3://bucket/prefix``.
        format: ``"ldac"``: a line a document, ``N TERM:COUNT ...`` with N terms, numbered from 0 (Blei's
            LDA-C). ``"docword"``: three lines with the numbers of documents, words and entries, then lines
            ``DOCUMENT WORD COUNT``, numbered from 1, in the order of the documents (UCI). Documents without
            words are left out of the latter.
        vocabulary: A file with the words, one a line; kept as ``ds.vocabulary("words")``.
        shuffle: Spread the rows over the whole dataset at random, as training needs it.
        random_state: Seed of that; the result does not depend on ``n_processes``.
        n_processes: None: as many as the machine and the files suggest.
        backend: Where text is parsed and chunks are made: ``"aws"``: in functions, which see objects in S3 by
            themselves and get other text from here. None: in processes of this machine.
        progress: True: a live line. A function: called with a :class:`LoadProgress` now and then, in this
            thread.

    Raises:
        ConfigError: A parameter cannot work.
        DataError: A line is wrong (the message names it and a remedy), the vocabulary does not fit, or there
            are no documents.
        NotFoundError: There is no such file.
        StorageError: A file or the object store cannot be read or written.

    Example:
        >>> cirrus.load_bag_of_words("reuters.ldac", "data/reuters", vocabulary="words")  # doctest: +SKIP
    """
    with listening_to_load(progress) as listener:
        store = open_store(url)
        manifest = load_words_files(
            os.fspath(path),
            store,
            kind=format,
            vocabulary=None if vocabulary is None else os.fspath(vocabulary),
            options=load_options(shuffle, random_state, n_processes, listener, backend),
        )
        return Dataset(store.url, manifest)


def load_vw(
    path: str | os.PathLike[str],
    url: str | os.PathLike[str],
    interactions: Sequence[str] = (),
    hash_features: int = 2**18,
    *,
    missing_label: Literal["error", "drop"] = "error",
    shuffle: bool = True,
    random_state: int | None = None,
    n_processes: int | None = None,
    backend: str | Backend | None = None,
    progress: bool | LoadListener | None = None,
) -> Dataset:
    """Load text for Vowpal Wabbit: ``LABEL [WEIGHT] ['TAG]|NAMESPACE[:SCALE] FEATURE[:VALUE] ... |...``.

    Importance weights become sample weights; tags, and lines that begin with ``#``, are read over. A value
    that is text makes a category of its feature. Features are hashed with MurmurHash3, but not as Vowpal
    Wabbit does it: see ``docs/loading.md``.

    Args:
        path: One file, a pattern, an object or prefix in a store, or ``-``; see :func:`cirrus.load_svmlight`.
        url: Where the dataset goes: a folder or ``s3://bucket/prefix``.
        interactions: Pairs of namespaces by their first letters, as ``-q`` of ``vw``: ``["ab"]`` pairs each
            feature of a namespace in ``a`` with each of one in ``b``; ``:`` is any namespace.
        hash_features: Number of columns; more of them collide less.
        missing_label: What to do with a row without a label.
        shuffle: Spread the rows over the whole dataset at random, as training needs it.
        random_state: Seed of that; the result does not depend on ``n_processes``.
        n_processes: None: as many as the machine and the files suggest.
        backend: Where text is parsed and chunks are made: ``"aws"``: in functions, which see objects in S3 by
            themselves and get other text from here. None: in processes of this machine.
        progress: True: a live line. A function: called with a :class:`LoadProgress` now and then, in this
            thread.

    Raises:
        ConfigError: A parameter cannot work.
        DataError: A line is wrong (the message names it and a remedy), or there are no rows.
        NotFoundError: There is no such file.
        StorageError: A file or the object store cannot be read or written.

    Example:
        >>> cirrus.load_vw("clicks.vw.gz", "data/clicks", interactions=["ua"])  # doctest: +SKIP
    """
    with listening_to_load(progress) as listener:
        if isinstance(interactions, str):
            raise ConfigError("interactions", f"must be a list such as ['ab'], got the text {interactions!r}")
        if missing_label not in ("error", "drop"):
            raise ConfigError("missing_label", f'must be "error" or "drop", got {missing_label!r}')
        store = open_store(url)
        manifest = load_vw_files(
            os.fspath(path),
            store,
            how=VwFormat(
                hash_features=whole_number(hash_features, "hash_features"),
                interactions=tuple(interactions),
                missing_label=missing_label,
            ),
            options=load_options(shuffle, random_state, n_processes, listener, backend),
        )
        return Dataset(store.url, manifest)


def load_vw_like(
    path: str | os.PathLike[str],
    url: str | os.PathLike[str],
    encoding: Mapping[str, Any],
    *,
    with_labels: bool = False,
    progress: bool | LoadListener | None = None,
) -> Dataset:
    """Load text for Vowpal Wabbit in the way other such text was loaded, in its own order.

    Args:
        path: See :func:`load_vw`.
        url: Where the dataset goes.
        encoding: ``manifest.encoding`` of the other dataset.
        with_labels: Every row must have a label; otherwise those without one get 0.
        progress: True: a live line. A function: called with a :class:`LoadProgress` now and then, in this
            thread.

    Raises:
        ConfigError: The encoding is not that of such text.
        DataError: A line is wrong, or there are no rows.
        NotFoundError: There is no such file.
        StorageError: A file or the object store cannot be read or written.
    """
    with listening_to_load(progress) as listener:
        if encoding.get("format") != "vw":
            raise ConfigError(
                "encoding", "is not that of a dataset that was loaded from text for Vowpal Wabbit"
            )
        store = open_store(url)
        how = VwFormat(
            hash_features=encoding["hash_features"],
            interactions=tuple(encoding["interactions"]),
            missing_label="error" if with_labels else "zero",
        )
        options = LoadOptions(shuffle=False, progress=listener)
        return Dataset(store.url, load_vw_files(os.fspath(path), store, how=how, options=options))


def load_parquet(
    path: str | os.PathLike[str],
    url: str | os.PathLike[str],
    label: str | int | None = 0,
    numeric: Sequence[str | int] = (),
    categorical: Sequence[str | int] = (),
    hash_features: int = 2**20,
    *,
    label_above: float | None = None,
    missing_label: Literal["error", "drop"] = "error",
    na_values: Sequence[str] = NA_VALUES,
    shuffle: bool = True,
    random_state: int | None = None,
    n_processes: int | None = None,
    backend: str | Backend | None = None,
    progress: bool | LoadListener | None = None,
) -> Dataset:
    """Load Parquet files. The rows are those that :func:`cirrus.load_csv` makes of the same table.

    Needs pyarrow: ``pip install 'cirrus-ml[parquet]'``. Rows are read in batches; columns that are not
    named are not read. Nulls and NaN are cells without a value.

    Args:
        path: One file, a pattern, an object or prefix in a store, or ``-``; see :func:`cirrus.load_svmlight`.
            All files must have the columns.
        url: Where the dataset goes: a folder or ``s3://bucket/prefix``.
        label: The column to be predicted: numbers, truth values, or text for the names of classes. None:
            there is none.
        numeric: Columns that are numbers or truth values.
        categorical: Columns that are categories, be they numbers or text.
        hash_features: Number of features for categories; more of them collide less.
        label_above: Make the label 1 where its number is above this, else 0.
        missing_label: What to do with a row without a label.
        na_values: Cells that mean that there is no value.
        shuffle: Spread the rows over the whole dataset at random, as training needs it.
        random_state: Seed of that; the result does not depend on ``n_processes``.
        n_processes: None: as many as the machine and the files suggest.
        backend: Where text is parsed and chunks are made: ``"aws"``: in functions, which see objects in S3 by
            themselves and get other text from here. None: in processes of this machine.
        progress: True: a live line. A function: called with a :class:`LoadProgress` now and then, in this
            thread.

    Raises:
        ConfigError: A parameter cannot work, or pyarrow is not installed.
        DataError: A row is wrong (the message names it, counted from 1, and a remedy), a column is missing,
            or it is no Parquet file.
        NotFoundError: There is no such file.
        StorageError: A file or the object store cannot be read or written.

    Example:
        >>> cirrus.load_parquet("clicks/*.parquet", "data/clicks", label="clicked", numeric=["hour"],
        ...                     categorical=["site", "device"])  # doctest: +SKIP
    """
    with listening_to_load(progress) as listener:
        request = CsvRequest(
            label=None if label is None else column_of(label, "label"),
            numeric=column_list(numeric, "numeric"),
            categorical=column_list(categorical, "categorical"),
            hash_features=whole_number(hash_features, "hash_features"),
            label_above=label_above,
            missing_label=missing_label,
            na_values=na_list(na_values),
        )
        options = load_options(shuffle, random_state, n_processes, listener, backend)
        store = open_store(url)
        return Dataset(
            store.url, load_parquet_files(os.fspath(path), store, request=request, options=options)
        )


def load_parquet_like(
    path: str | os.PathLike[str],
    url: str | os.PathLike[str],
    encoding: Mapping[str, Any],
    *,
    label_names: tuple[str, ...] | None = None,
    with_labels: bool = False,
    progress: bool | LoadListener | None = None,
) -> Dataset:
    """Load Parquet files in the way another table was loaded, in their own order, to predict or score rows.

    Args:
        path: See :func:`load_parquet`.
        url: Where the dataset goes.
        encoding: ``manifest.encoding`` of the other dataset, from Parquet or CSV.
        label_names: ``manifest.label_names`` of the other dataset.
        with_labels: Read the labels too. Otherwise their column may be missing, and they are all 0.
        progress: True: a live line. A function: called with a :class:`LoadProgress` now and then, in this
            thread.

    Raises:
        ConfigError: The encoding is not that of a table.
        DataError: A row is wrong, a column is missing, or a label is unknown.
        NotFoundError: There is no such file.
        StorageError: A file or the object store cannot be read or written.
    """
    with listening_to_load(progress) as listener:
        store = open_store(url)
        manifest = load_parquet_files_like(
            os.fspath(path),
            store,
            csv=CsvFormat.from_encoding(encoding),
            label_names=label_names,
            with_labels=with_labels,
            options=LoadOptions(shuffle=False, progress=listener),
        )
        return Dataset(store.url, manifest)
