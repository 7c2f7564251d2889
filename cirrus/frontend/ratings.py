"""Ratings as matrix factorization takes them: triples of user, item and rating, in arrays or in datasets.

A dataset of ratings numbers its users and items by vocabularies of its own. Whatever is compared with a
model, or trains it further, is brought to the numbers of the model's vocabularies first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse

from cirrus.chunks import Manifest
from cirrus.chunks.vocabulary import Vocabulary
from cirrus.client_backend.arrays import store_arrays
from cirrus.errors import DataError
from cirrus.frontend.datasets import Dataset
from cirrus.frontend.intake import NumberTarget, number_target
from cirrus.storage import open_store

Array = npt.NDArray[Any]
USERS = "users"
ITEMS = "items"
#: From here on a float may stand for several whole numbers.
MAX_FLOAT_ID = 2.0**53
#: Largest id that is kept as a number; larger ones are kept as text.
MAX_INT_ID = 2**63 - 1


def number_ids(ids: Any, name: str) -> Vocabulary:
    """Return a vocabulary of all ids that occur: whole numbers sorted as such, or text.

    Where there are whole numbers beyond int64, all are kept as text.

    Raises:
        DataError: There are none, they are neither numbers nor text, or floats that may be several numbers.
    """
    array = np.asarray(ids)
    if array.ndim != 1 or array.size == 0:
        raise DataError(f"{name}: must be one id for each rating, got an array of shape {array.shape}")
    if array.dtype.kind == "f":
        _check_float_ids(array, name)
        array = array.astype(np.int64)
    if array.dtype.kind in "iub" and not (array.dtype.kind == "u" and array.max() > MAX_INT_ID):
        return Vocabulary.of(np.unique(array.astype(np.int64, copy=False)).tolist())
    return Vocabulary.of(sorted({_text(one, name) for one in array.tolist()}))


def _text(one: Any, name: str) -> str:
    """Return an id as text.

    Raises:
        DataError: It is missing, or bytes that are no text.
    """
    try:
        is_missing = one is None or bool(one != one)
    except TypeError:  # pandas' NA has no truth
        is_missing = True
    if is_missing:
        raise DataError(f"{name}: an id is missing ({one})")
    try:
        return one.decode() if isinstance(one, bytes) else str(one)
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: {one!r} is not UTF-8") from error


def asked_ids(ids: Any, name: str) -> Array:
    """Return the ids that a model is asked about, which need not be known to it.

    Args:
        ids: Shape (n,), or one id.
        name: What to call them in an error message.

    Raises:
        DataError: They are of another shape, or one is missing, a fraction, or a float that may be several
            whole numbers.
    """
    try:
        array = np.atleast_1d(np.asarray(ids))
    except ValueError:  # lists of several lengths
        raise DataError(f"{name}: must be ids, one after the other, got {ids!r:.80}") from None
    if array.ndim != 1:
        raise DataError(f"{name}: must be ids, one after the other, got an array of shape {array.shape}")
    if array.dtype.kind == "f":
        _check_float_ids(array, name)
    elif array.dtype.kind not in "iubSU":
        for one in array.tolist():
            if isinstance(one, float):
                _check_float_ids(np.array([one]), name)
            _text(one, name)
    return array


def _check_float_ids(array: Array, name: str) -> None:
    if np.isnan(array).any():
        raise DataError(f"{name}: an id is missing (NaN)")
    if not np.array_equal(array, np.rint(array)):
        raise DataError(f"{name}: ids must be whole numbers or text, got fractions")
    if (np.abs(array) >= MAX_FLOAT_ID).any():
        raise DataError(
            f"{name}: {array[np.abs(array) >= MAX_FLOAT_ID][0]} is a float that may be several whole "
            "numbers: give ids from 2**53 on as integers (numpy's int64 or uint64) or as text"
        )


def ratings_rows(users: Array, items: Array, n_users: int, n_items: int) -> scipy.sparse.csr_array:
    """Return rows with an entry for the user and one for the item; -1 has none.

    Args:
        users: Numbers of users, shape (n,).
        items: Numbers of items, shape (n,).
        n_users: Features below this are users.
        n_items: The rest are items.
    """
    columns = np.column_stack([users, np.where(items >= 0, items + n_users, -1)])
    known = columns >= 0
    indptr = np.concatenate([[0], np.cumsum(known.sum(axis=1))])
    indices = columns[known]
    values = np.ones(len(indices), np.float32)
    return scipy.sparse.csr_array((values, indices, indptr), shape=(len(users), n_users + n_items))


def store_ratings(
    numbers: Mapping[str, Array],
    ratings: Array,
    url: str,
    vocabularies: Mapping[str, Vocabulary],
    *,
    sample_weight: Any = None,
    shuffle: bool = True,
    seed: int | None = None,
) -> Manifest:
    """Store ratings as a dataset like those of :func:`cirrus.load_ratings`.

    Args:
        numbers: Of users and items in their vocabularies, or -1; each of shape (n,).
        ratings: Shape (n,).
        url: Where to.
        vocabularies: Of users and items.
        sample_weight: Shape (n,), or None.
        shuffle: Spread the rows.
        seed: Of that.

    Raises:
        DataError: The shapes do not fit, or a rating is not finite.
    """
    n_users, n_items = len(vocabularies[USERS]), len(vocabularies[ITEMS])
    return store_arrays(
        ratings_rows(numbers[USERS], numbers[ITEMS], n_users, n_items),
        ratings,
        open_store(url),
        sample_weight=sample_weight,
        shuffle=shuffle,
        random_state=seed,
        encoding={"format": "ratings", "n_users": n_users, "n_items": n_items},
        vocabularies=vocabularies,
    )


def check_triples(users: Any, items: Any, ratings: Any) -> tuple[Array, Array, Array]:
    """Return three arrays of the same length.

    Raises:
        DataError: They are not, or ratings are not numbers.
    """
    users, items, ratings = np.asarray(users), np.asarray(items), np.asarray(ratings)
    if users.ndim != 1 or users.shape != items.shape or users.shape != ratings.shape:
        shapes = f"{users.shape}, {items.shape} and {ratings.shape}"
        raise DataError(f"users, items and ratings must be arrays of one length, got shapes {shapes}")
    if ratings.dtype.kind not in "iuf":
        raise DataError(f"ratings: must be numbers, got {ratings.dtype}")
    return users, items, ratings


def ratings_of(dataset: Dataset) -> tuple[Array, Array, Array, Array | None]:
    """Return a dataset's ratings: numbers of users, of items (-1 for none), ratings, weights or None.

    Raises:
        DataError: It is no dataset of ratings.
    """
    n_users, _ = dataset_sizes(dataset)
    rows, ratings, weights = dataset.to_csr()
    users, items = np.full(dataset.n_rows, -1), np.full(dataset.n_rows, -1)
    row = np.repeat(np.arange(dataset.n_rows), np.diff(rows.indptr))
    is_user = rows.indices < n_users
    users[row[is_user]] = rows.indices[is_user]
    items[row[~is_user]] = rows.indices[~is_user] - n_users
    return users, items, ratings, weights


def dataset_sizes(dataset: Dataset) -> tuple[int, int]:
    """Return how many users and items a dataset of ratings has.

    Raises:
        DataError: It is none.
    """
    encoding = dataset.manifest.encoding
    if encoding.get("format") != "ratings":
        raise DataError(f"{dataset.url}: is no dataset of ratings: load one with cirrus.load_ratings")
    return int(encoding["n_users"]), int(encoding["n_items"])


def same_ids(ours: Mapping[str, Vocabulary], theirs: Mapping[str, Vocabulary]) -> bool:
    """Return whether two pairs of vocabularies number users and items alike."""
    return all(np.array_equal(ours[name].array, theirs[name].array) for name in (USERS, ITEMS))


def recoded(
    numbers: Array, theirs: Vocabulary, ours: Vocabulary, *, name: str, strict: bool
) -> npt.NDArray[np.int64]:
    """Return our numbers for what another vocabulary numbers; -1 for what ours has not got.

    Raises:
        DataError: An id is missing, and ``strict`` is set.
    """
    found = ours.codes(theirs.array)
    codes = np.where(numbers >= 0, found[np.maximum(numbers, 0)], -1)
    if strict and (codes < 0).any():
        missing = theirs[int(numbers[codes < 0][0])]
        raise DataError(f"{name}: {missing!r} is not one of those that the model was trained on")
    return codes


def ratings_target(dataset: Dataset) -> NumberTarget:
    """Return mean and spread of a dataset's ratings, from its manifest where that lists them all."""
    manifest = dataset.manifest
    if manifest.label_names is not None:
        raise DataError(f"{dataset.url}: its ratings are text: numbers are needed")
    if manifest.label_values and not manifest.has_weights:
        values, counts = np.array(manifest.label_values), np.array(manifest.label_counts)
        return number_target(np.ones((len(values), 1)), values, counts)
    block = next(iter(dataset.blocks()))
    return number_target(np.ones((block.n_rows, 1)), block.labels, block.weights)
