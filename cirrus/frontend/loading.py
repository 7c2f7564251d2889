"""Loaders for ratings and documents; those for rows with labels are in :mod:`cirrus.frontend.datasets`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Literal

from cirrus.client_backend.loader import LoadOptions, LoadProgress, load_ratings_files, load_words_files
from cirrus.client_backend.ratings import RatingsFormat
from cirrus.errors import ConfigError
from cirrus.frontend.datasets import Dataset
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
    progress: Callable[[LoadProgress], None] | None = None,
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
        progress: Called with a :class:`LoadProgress` now and then, in this thread.

    Raises:
        ConfigError: A parameter cannot work.
        DataError: A line is wrong (the message names it and a remedy), or there are no rows.
        NotFoundError: There is no such file.
        StorageError: A file or the object store cannot be read or written.

    Example:
        >>> cirrus.load_ratings("ml-100k/u.data", "data/ratings", sep="\\t")  # doctest: +SKIP
    """
    if header not in ("infer", True, False):
        raise ConfigError("header", f'must be "infer", True or False, got {header!r}')
    store = open_store(url)
    manifest = load_ratings_files(
        os.fspath(path),
        store,
        how=RatingsFormat(sep=sep, header="infer" if header == "infer" else "yes" if header else "no"),
        options=LoadOptions(
            shuffle=shuffle, random_state=random_state, n_processes=n_processes, progress=progress
        ),
    )
    return Dataset(store.url, manifest)


def load_bag_of_words(
    path: str | os.PathLike[str],
    url: str | os.PathLike[str],
    format: Literal["ldac", "docword"] = "ldac",
    *,
    vocabulary: str | os.PathLike[str] | None = None,
    shuffle: bool = True,
    random_state: int | None = None,
    n_processes: int | None = None,
    progress: Callable[[LoadProgress], None] | None = None,
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
        progress: Called with a :class:`LoadProgress` now and then, in this thread.

    Raises:
        ConfigError: A parameter cannot work.
        DataError: A line is wrong (the message names it and a remedy), the vocabulary does not fit, or there
            are no documents.
        NotFoundError: There is no such file.
        StorageError: A file or the object store cannot be read or written.

    Example:
        >>> cirrus.load_bag_of_words("reuters.ldac", "data/reuters", vocabulary="words")  # doctest: +SKIP
    """
    store = open_store(url)
    manifest = load_words_files(
        os.fspath(path),
        store,
        kind=format,
        vocabulary=None if vocabulary is None else os.fspath(vocabulary),
        options=LoadOptions(
            shuffle=shuffle, random_state=random_state, n_processes=n_processes, progress=progress
        ),
    )
    return Dataset(store.url, manifest)
