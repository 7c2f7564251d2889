"""Matrix factorization as an estimator: ratings of items by users."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Self, Unpack

import numpy as np
from sklearn.metrics import r2_score
from sklearn.utils.validation import check_is_fitted

from cirrus.chunks.vocabulary import Vocabulary
from cirrus.config import ModelConfig, whole_number
from cirrus.errors import ConfigError, DataError
from cirrus.frontend.base import Array, SgdEstimator, SgdParams
from cirrus.frontend.datasets import Dataset
from cirrus.frontend.intake import NumberTarget, TrainingData, Wanted, refuse_path
from cirrus.frontend.planning import Validation
from cirrus.frontend.ratings import (
    ITEMS,
    USERS,
    asked_ids,
    check_triples,
    dataset_sizes,
    number_ids,
    ratings_of,
    ratings_target,
    recoded,
    same_ids,
    store_ratings,
)
from cirrus.frontend.scratch import Scratch
from cirrus.frontend.training import TrainingRun
from cirrus.models.matrix_factorization import MEAN, SCALE, MatrixFactorizationModel


class MatrixFactorization(SgdEstimator):
    """Predicts ratings by a bias and a vector for each user and each item (Koren et al., 2009).

    Users and items may have ids of any kind, numbers or text. One that training did not meet has no bias and
    no vector: its ratings are the mean, plus the other's bias.

    Args:
        n_factors: Length of the vectors.
        l2: Penalty on squares of biases and vectors, for each rating they take part in, as scikit-surprise's
            ``reg_all``.
        initial_scale: Standard deviation of the vectors' initial values.
        **sgd: Parameters of :class:`cirrus.frontend.base.SgdEstimator`, but for ``l1``.

    Attributes:
        mean_: Of the ratings.
        user_biases_: float64 of shape (n_users,).
        user_factors_: float64 of shape (n_users, n_factors).
        item_biases_: float64 of shape (n_items,).
        item_factors_: float64 of shape (n_items, n_factors).
        users_: The users' ids: a :class:`~cirrus.chunks.vocabulary.Vocabulary`.
        items_: The items' ids.

    Example:
        >>> import cirrus
        >>> est = cirrus.MatrixFactorization(n_factors=20)
        >>> est.fit(["ann", "ann", "bob"], ["tea", "milk", "tea"], [5, 2, 4])  # doctest: +SKIP
        >>> est.predict(["bob"], ["milk"])  # doctest: +SKIP
        >>> est.recommend("bob", 1)  # doctest: +SKIP
    """

    vocabulary_names = (USERS, ITEMS)
    loader = "load_ratings"
    _defaults: ClassVar[SgdParams] = {
        "optimizer": "adagrad",
        "learning_rate": 0.1,
        "l1": 0.0,
        "l2": 0.1,
        "batch_size": 1024,
    }

    mean_: float
    user_biases_: Array
    user_factors_: Array
    item_biases_: Array
    item_factors_: Array
    users_: Vocabulary
    items_: Vocabulary

    def __init__(self, *, n_factors: int = 20, initial_scale: float = 0.1, **sgd: Unpack[SgdParams]) -> None:
        params: SgdParams = {**self._defaults, **sgd}
        super().__init__(**params)
        self.n_factors = n_factors
        self.initial_scale = initial_scale

    # Training. Signatures differ from other estimators': a rating is a triple.

    def fit(  # type: ignore[override]
        self,
        users: Any,
        items: Any = None,
        ratings: Any = None,
        sample_weight: Any = None,
        validation: Any = None,
    ) -> Self:
        """Train from the start (or from where it is, with ``warm_start``).

        Args:
            users: A dataset of :func:`cirrus.load_ratings`; or users' ids of shape (n_ratings,).
            items: Items' ids of shape (n_ratings,).
            ratings: Numbers of shape (n_ratings,).
            sample_weight: Weights of shape (n_ratings,), with arrays.
            validation: A dataset of ratings, or a triple (users, items, ratings), whose loss is watched.

        Raises:
            ConfigError: A parameter is wrong.
            DataError: The data cannot be used.
            RunError: The run failed, or somebody killed it.
        """
        return self._run_to_end(self.start(users, items, ratings, sample_weight, validation))

    def start(  # type: ignore[override]
        self,
        users: Any,
        items: Any = None,
        ratings: Any = None,
        sample_weight: Any = None,
        validation: Any = None,
    ) -> TrainingRun:
        """Begin to train and return at once; arguments as in :meth:`fit`."""
        return super().start(users, _pair(items, ratings), sample_weight, validation)

    def partial_fit(
        self, users: Any, items: Any = None, ratings: Any = None, sample_weight: Any = None
    ) -> Self:
        """Train for one epoch on some more ratings of the users and items of the first call.

        Args:
            users: As in :meth:`fit`.
            items: As in :meth:`fit`.
            ratings: As in :meth:`fit`.
            sample_weight: As in :meth:`fit`.

        Raises:
            DataError: There is a user or an item that the first call had not got.
        """
        return self._train_an_epoch(users, _pair(items, ratings), sample_weight)

    def _wanted(self, classes: Array | None) -> Wanted:
        return Wanted(kind="numbers", vocabularies=self.vocabulary_names)

    def _take_data(
        self,
        train: Any,
        y: Any,
        sample_weight: Any,
        *,
        scratch: Scratch,
        seed: int,
        wanted: Wanted,
        goes_on: bool,
        reset: bool,
    ) -> TrainingData:
        ours = self._vocabularies() if goes_on else None
        if isinstance(train, Dataset):
            if y is not None or sample_weight is not None:
                raise ConfigError("items", "must be None, as all else: a Dataset has its own")
            dataset_sizes(train)
            found = {name: train.vocabulary(name) for name in self.vocabulary_names}
            if ours is None or same_ids(ours, found):
                dataset, url, vocabularies = train, scratch.reachable(train.url, "train"), found
            else:
                dataset = self._recode(train, found, ours, scratch.url("train"), strict=True)
                url, vocabularies = dataset.url, dict(ours)
        else:
            if y is None:
                raise ConfigError("items", "and ratings are needed beside arrays of users")
            users, items, ratings = check_triples(train, *y)
            vocabularies = (
                dict(ours)
                if ours is not None
                else {
                    USERS: number_ids(users, USERS),
                    ITEMS: number_ids(items, ITEMS),
                }
            )
            codes = {}
            for name, ids in ((USERS, users), (ITEMS, items)):
                codes[name] = vocabularies[name].codes(ids)
                if (codes[name] < 0).any():
                    (strange, *_) = ids[codes[name] < 0].tolist()
                    raise DataError(f"{name}: {strange!r} is not one of those that the model was trained on")
            url = scratch.url("train")
            manifest = store_ratings(
                codes, ratings, url, vocabularies, sample_weight=sample_weight, seed=seed
            )
            dataset = Dataset(url, manifest)
        self.n_features_in_ = dataset.n_features
        return TrainingData(
            url=url,
            manifest=dataset.manifest,
            target=ratings_target(dataset),
            encoding=dataset.manifest.encoding,
            vocabularies=vocabularies,
        )

    def _take_validation(self, validation: Any, data: TrainingData, scratch: Scratch) -> Validation | None:
        if validation is None:
            return None
        url = scratch.url("validation")
        if isinstance(validation, Dataset):
            dataset_sizes(validation)
            found = {name: validation.vocabulary(name) for name in self.vocabulary_names}
            if same_ids(data.vocabularies, found):
                return Validation(
                    url=scratch.reachable(validation.url, "validation"),
                    fingerprint=validation.manifest.fingerprint,
                )
            coded = self._recode(validation, found, data.vocabularies, url, strict=False)
            return Validation(url=url, fingerprint=coded.manifest.fingerprint)
        if not isinstance(validation, (tuple, list)) or len(validation) != 3:
            raise ConfigError("validation", "must be a Dataset of ratings, or (users, items, ratings)")
        users, items, ratings = check_triples(*validation)
        named = data.vocabularies
        codes = {USERS: named[USERS].codes(users), ITEMS: named[ITEMS].codes(items)}
        manifest = store_ratings(codes, ratings, url, named, shuffle=False)
        return Validation(url=url, fingerprint=manifest.fingerprint)

    def _recode(
        self,
        dataset: Dataset,
        theirs: Mapping[str, Vocabulary],
        ours: Mapping[str, Vocabulary],
        url: str,
        *,
        strict: bool,
    ) -> Dataset:
        users, items, ratings, weights = ratings_of(dataset)
        codes = {
            name: recoded(numbers, theirs[name], ours[name], name=f"{dataset.url}: {name}", strict=strict)
            for name, numbers in ((USERS, users), (ITEMS, items))
        }
        return Dataset(url, store_ratings(codes, ratings, url, ours, sample_weight=weights, seed=0))

    def _model_config(self, data: TrainingData) -> ModelConfig:
        if self.l1 != 0:
            raise ConfigError("l1", f"must be 0: there are no weights to be made zero, got {self.l1!r}")
        target = data.target
        assert isinstance(target, NumberTarget)
        return ModelConfig(
            name=MatrixFactorizationModel.name,
            params={
                "n_users": len(data.vocabularies[USERS]),
                "n_items": len(data.vocabularies[ITEMS]),
                "n_factors": self.n_factors,
                "l2": self.l2,
                "initial_scale": self.initial_scale,
                "mean": target.mean,
                "scale": target.scale,
            },
        )

    def _take_target(self, data: TrainingData) -> None:
        self._restore_vocabularies(data.vocabularies)

    def _check_goes_on(self, data: TrainingData) -> None:
        """Nothing to refuse: the data was brought to the model's users and items."""

    def _vocabularies(self) -> Mapping[str, Vocabulary]:
        return {USERS: self.users_, ITEMS: self.items_}

    def _restore_vocabularies(self, vocabularies: Mapping[str, Vocabulary]) -> None:
        self.users_, self.items_ = vocabularies[USERS], vocabularies[ITEMS]

    def _take_tables(self, tables: Mapping[str, Array]) -> None:
        users, items = (tables[name].astype(np.float64) for name in (USERS, ITEMS))
        if (len(users), len(items)) != (len(self.users_), len(self.items_)):
            raise DataError(f"the parameters are of {len(users)} users and {len(items)} items")
        mean, scale = (float(tables[name][0, 0]) for name in (MEAN, SCALE))
        self.mean_ = mean
        self.user_biases_, self.item_biases_ = scale * users[:, 0], scale * items[:, 0]
        self.user_factors_, self.item_factors_ = scale * users[:, 1:], items[:, 1:]

    # Prediction.

    def predict(self, users: Any, items: Any = None) -> Array:
        """Return predicted ratings, float64 of shape (n,).

        Args:
            users: Ids of shape (n,); or a dataset of ratings.
            items: Ids of shape (n,).

        Raises:
            DataError: Their shapes differ, or an id is missing or no whole number or text.
        """
        check_is_fitted(self)
        if isinstance(users, Dataset):
            if items is not None:
                raise ConfigError("items", "must be None: a Dataset has its own")
            return self.predict_dataset(users)[0]
        if items is None:
            refuse_path("users", users, self.loader)
            raise ConfigError("items", "is missing: name an item for each user; recommend() chooses items")
        user_numbers = self.users_.codes(asked_ids(users, USERS))
        item_numbers = self.items_.codes(asked_ids(items, ITEMS))
        if user_numbers.shape != item_numbers.shape:
            shapes = f"{user_numbers.shape} and {item_numbers.shape}"
            raise DataError(f"users and items must be arrays of one length, got shapes {shapes}")
        return self._predict_numbers(user_numbers, item_numbers)

    def predict_dataset(self, dataset: Dataset) -> tuple[Array, Array, Array | None]:
        """Return a dataset's predicted ratings, its ratings, and its weights or None: each of shape (n,)."""
        users, items, ratings, weights = ratings_of(dataset)
        numbers = [
            recoded(codes, dataset.vocabulary(name), ours, name=name, strict=False)
            for name, codes, ours in ((USERS, users, self.users_), (ITEMS, items, self.items_))
        ]
        return self._predict_numbers(*numbers), ratings, weights

    def _predict_numbers(self, users: Array, items: Array) -> Array:
        known_user, known_item = users >= 0, items >= 0
        ratings = np.full(len(users), self.mean_)
        ratings += np.where(known_user, self.user_biases_[users], 0.0)
        ratings += np.where(known_item, self.item_biases_[items], 0.0)
        dots = np.einsum("rf,rf->r", self.user_factors_[users], self.item_factors_[items])
        ratings += np.where(known_user & known_item, dots, 0.0)
        return ratings

    def recommend(self, user: Any, n: int = 10, exclude: Iterable[Any] = ()) -> list[tuple[Any, float]]:
        """Return the items that a user is predicted to rate highest.

        Args:
            user: The user's id; one that training did not meet gets the items with the highest biases.
            n: How many items.
            exclude: Ids of items to leave out, such as those that the user has rated.

        Returns:
            Pairs of item and predicted rating, the highest first.

        Raises:
            ConfigError: ``n`` or ``exclude`` is of the wrong kind.
            DataError: An id is missing, or no whole number or text.
        """
        check_is_fitted(self)
        whole_number(n, "n")
        items = np.arange(len(self.items_))
        if isinstance(exclude, (str, bytes)) or not isinstance(exclude, Iterable):
            raise ConfigError("exclude", f"must be a list of items' ids, got {exclude!r:.80}")
        if left_out := list(exclude):
            items = np.setdiff1d(items, self.items_.codes(asked_ids(left_out, "exclude")))
        asked = asked_ids(user, "user")
        if np.ndim(user) != 0:
            raise DataError(f"user: must be one user's id, got {user!r:.80}")
        number = int(self.users_.codes(asked)[0])
        ratings = self._predict_numbers(np.full(len(items), number), items)
        best = np.argsort(-ratings, kind="stable")[:n]
        return [(self.items_[int(items[k])], float(ratings[k])) for k in best]

    def score(self, users: Any, items: Any = None, ratings: Any = None) -> float:
        """Return R2 of predicted ratings; arguments as in :meth:`fit`."""
        check_is_fitted(self)
        if isinstance(users, Dataset):
            predicted, truth, weights = self.predict_dataset(users)
            return float(r2_score(truth, predicted, sample_weight=weights))
        refuse_path("users", users, self.loader)
        if items is None or ratings is None:
            raise ConfigError("items", "and ratings are needed beside arrays of users")
        users, items, ratings = check_triples(users, items, ratings)
        return float(r2_score(ratings, self.predict(users, items)))


def _pair(items: Any, ratings: Any) -> tuple[Any, Any] | None:
    if (items is None) != (ratings is None):
        raise ConfigError("ratings" if ratings is None else "items", "is missing")
    return None if items is None else (items, ratings)
