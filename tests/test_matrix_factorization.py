"""Matrix factorization: real ratings, ids of any kind, and those that nobody knows."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

import cirrus
from cirrus.config import ModelConfig
from cirrus.errors import ConfigError, CorruptDataError, DataError
from cirrus.models import create_model

MOVIES = Path(__file__).resolve().parents[2] / "shared" / "data" / "movielens-100k" / "u.data.gz"


def make(**params):
    """Return an estimator that runs in this process and behaves the same each time."""
    return cirrus.MatrixFactorization(**{"backend": "inline", "n_workers": 1, "random_state": 0, **params})


@pytest.fixture(scope="module")
def triples():
    """Ratings of 40 users and 30 items that have biases and one taste."""
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, 40, 2000), rng.integers(0, 30, 2000)
    taste_u, taste_i, bias = rng.normal(size=40), rng.normal(size=30), rng.normal(size=30)
    ratings = 3.0 + bias[items] + taste_u[users] * taste_i[items] + rng.normal(size=2000) * 0.1
    return np.array([f"user {u}" for u in users]), items * 7, ratings


@pytest.mark.skipif(not MOVIES.is_file(), reason="MovieLens is not beside the project")
def test_real_ratings_are_predicted(tmp_path):
    """RMSE on a tenth of MovieLens held out is at most 0.915, for a file and for arrays."""
    raw = np.loadtxt(gzip.decompress(MOVIES.read_bytes()).decode().splitlines(), dtype=np.int64)
    order = np.random.default_rng(0).permutation(len(raw))
    test, train = raw[order[:10_000]], raw[order[10_000:]]
    path = tmp_path / "train.tsv"
    np.savetxt(path, train, fmt="%d", delimiter="\t")
    dataset = cirrus.load_ratings(path, tmp_path / "train", sep="\t", random_state=0)
    of_file = make(n_workers=2, n_shards=2).fit(dataset, validation=tuple(test[:, :3].T))
    of_arrays = make().fit(*train[:, :3].T)
    for est in (of_file, of_arrays):
        rmse = np.sqrt(np.mean(np.square(est.predict(*test[:, :2].T) - test[:, 2])))
        assert rmse <= 0.915
    assert of_file.history_[-1].validation_loss == pytest.approx(rmse**2 / 2, rel=0.05)
    best = of_file.recommend(196, 5)
    assert len(best) == 5
    assert best[0][1] >= best[-1][1] > of_file.mean_
    assert best[0][1] == pytest.approx(of_file.predict([196], [best[0][0]])[0])


@pytest.mark.parametrize("optimizer", ["ftrl", "sgd", "momentum", "nesterov", "adagrad", "adam"])
def test_every_optimizer_finds_the_taste(triples, optimizer):
    """Biases alone explain half; every optimizer finds the vectors that explain the rest."""
    rate = {"sgd": 5.0, "momentum": 0.5, "nesterov": 0.5, "adam": 0.05}.get(optimizer, 0.2)
    params = {"n_factors": 2, "l2": 0.01, "epochs": 60, "batch_size": 200, "tol": None}
    est = make(optimizer=optimizer, learning_rate=rate, **params)
    assert est.fit(*triples).score(*triples) > 0.95


def test_ids_may_be_anything(triples):
    """Ids come back as they were: text, numbers; numbers and their text are the same."""
    users, items, ratings = triples
    est = make(epochs=3).fit(users, items, ratings)
    assert est.recommend("user 3", 1)[0][0] in set(items.tolist())
    text = make(epochs=3).fit(items, [f"i{u}" for u in users], ratings)
    assert text.recommend(7, 1)[0][0].startswith("iuser ")
    with pytest.raises(DataError, match="fractions"):
        make().fit(items + 0.5, users, ratings)


@pytest.mark.parametrize(
    ("ids", "asked"),
    [
        ([b"ann", b"bob"], "ann"),
        (np.array([b"ann", "bob"], object), b"ann"),
        ([True, False], 1),
        (np.array(["2020-02-29", "2020-03-01"], "M8[D]"), "2020-02-29"),
        (np.array([7, 8], np.uint8), 7.0),
        (np.array([2**63 + 1, 5], np.uint64), np.uint64(2**63 + 1)),
        (np.array([2**63 + 1, 5], np.uint64), str(2**63 + 1)),
        ([2**70, 5], 2**70),
    ],
)
def test_ids_of_every_type_are_found_again(ids, asked):
    """Bytes are text, truth values are numbers, and all else is what it prints as."""
    est = make(epochs=1).fit(ids, [1, 2], [5.0, 1.0])
    assert not any(str(name).startswith("-") for name in est.users_.ids())
    known = est.predict(np.asarray(ids)[:1], [1])
    assert known != pytest.approx(est.mean_, abs=1e-6)
    assert est.predict([asked], [1]) == known


class _NotAvailable:
    """Compares like the missing value of pandas."""

    def __ne__(self, other):
        return self

    def __bool__(self):
        raise TypeError("boolean value of NA is ambiguous")


@pytest.mark.parametrize("ids", [[1.0, np.inf], [1e300, 2.0], [2.0**53, 2.0]])
def test_floats_that_are_no_single_number_are_no_ids(ids):
    """Such users would become one another, or one that there is not."""
    with pytest.raises(DataError, match="users: .* integers .* or as text"):
        make().fit(ids, [1, 2], [5.0, 1.0])


@pytest.mark.parametrize("missing", [None, float("nan"), _NotAvailable()])
def test_missing_ids_are_refused(missing):
    """Ratings of nobody would be taken for those of one user."""
    for users in (np.array([missing, 3], object), np.array([missing, "ann"], object), [missing, 3]):
        with pytest.raises(DataError, match="users: an id is missing"):
            make().fit(users, [1, 2], [5.0, 1.0])


def test_unknown_users_and_items_get_the_mean(triples):
    """Nobody knows them: the mean; or one of two: the mean and the other's bias."""
    users, items, ratings = triples
    est = make(epochs=20).fit(users, items, ratings)
    assert est.mean_ == pytest.approx(ratings.mean(), abs=0.05)
    nobody, known_item, known_user = est.predict(["x", "x", "user 3"], [9999, 7, 9999])
    assert nobody == est.mean_
    assert known_item == pytest.approx(est.mean_ + est.item_biases_[1])
    assert known_user == pytest.approx(est.mean_ + est.user_biases_[est.users_.codes(["user 3"])[0]])
    best, worst = est.recommend("x", 1)[0][0], est.recommend("x", 30)[-1][0]
    assert est.item_biases_[best // 7] == est.item_biases_.max()
    assert est.item_biases_[worst // 7] == est.item_biases_.min()


def test_ids_that_cannot_be_are_refused_when_asked_about(triples):
    """A missing id, a fraction or a table of ids is no unknown id: each is refused by the argument's name."""
    est = make(epochs=1).fit([196, 1, 2], [242, 1, 2], [1, 2, 3])
    for users in ([None], [np.nan], [196, None], np.array([np.nan, 1], object)):
        with pytest.raises(DataError, match="users: an id is missing"):
            est.predict(users, [242] * len(users))
    with pytest.raises(DataError, match="users: ids must be whole numbers or text, got fractions"):
        est.predict([196.5], [242.0])
    with pytest.raises(DataError, match="items: an id is missing"):
        est.predict([196], [None])
    with pytest.raises(DataError, match="users: must be ids.*shape"):
        est.predict([[196, 1]], [[242, 1]])
    with pytest.raises(DataError, match="user: an id is missing"):
        est.recommend(None)
    with pytest.raises(DataError, match="user: must be one user's id"):
        est.recommend([196])
    for exclude in (50, "242"):
        with pytest.raises(ConfigError, match="exclude: must be a list of items' ids"):
            est.recommend(196, exclude=exclude)
    assert est.predict([196.0, 7], [242, 7]).shape == (2,)
    assert {item for item, _ in est.recommend(7, exclude={242})} == {1, 2}


def test_recommendations_leave_out_what_is_excluded(triples):
    """Items that are excluded are not among them, and n limits their number."""
    est = make(epochs=3).fit(*triples)
    first = [item for item, _ in est.recommend("user 1", 3)]
    assert not set(first) & {item for item, _ in est.recommend("user 1", 30, exclude=first)}
    assert len(est.recommend("user 1", 30, exclude=first)) == 27
    with pytest.raises(ConfigError, match="n: must be"):
        est.recommend("user 1", 0)


def test_models_are_saved_with_their_ids(triples, tmp_path):
    """A loaded model knows all ids and goes on the same; a damaged vocabulary is refused."""
    est = make(epochs=3, tol=None).fit(*triples)
    est.save(tmp_path / "model")
    loaded = cirrus.load_model(tmp_path / "model").set_params(backend="inline", random_state=0)
    assert loaded.recommend("user 3", 4) == est.recommend("user 3", 4)
    est.partial_fit(*triples)
    np.testing.assert_array_equal(loaded.partial_fit(*triples).item_factors_, est.item_factors_)
    assert loaded.n_iter_ == 4
    (names,) = (tmp_path / "model").glob("parameters-*/users.vocabulary")
    names.write_bytes(names.read_bytes()[:-1] + b"!")
    with pytest.raises(CorruptDataError, match="checksum"):
        cirrus.load_model(tmp_path / "model")


def test_going_on_needs_known_ids_in_any_order(triples):
    """Other data may number its ids otherwise; strange ids are refused, but not in validation."""
    users, items, ratings = triples
    some = users > "user 2"
    est = make(epochs=3, warm_start=True).fit(users, items, ratings)
    before = est.user_biases_.copy()
    est.partial_fit(users[some], items[some], ratings[some])
    untouched = est.users_.codes(np.unique(users[~some]))
    np.testing.assert_array_equal(est.user_biases_[untouched], before[untouched])
    with pytest.raises(DataError, match="users: 'nobody'"):
        est.partial_fit(np.array(["nobody"]), items[:1], ratings[:1])
    validation = (np.array(["nobody", users[0]]), items[:2], ratings[:2])
    assert est.fit(users, items, ratings, validation=validation).history_[-1].validation_loss is not None


def test_datasets_are_scored_by_their_own_ids(triples, tmp_path):
    """A dataset with other numbers for the same ids is predicted by the ids."""
    users, items, ratings = triples
    path = tmp_path / "some.csv"
    some = users > "user 2"
    rows = zip(users[some], items[some], ratings[some].tolist(), strict=True)
    lines = (f"{user},{item},{rating!r}" for user, item, rating in rows)
    path.write_text("\n".join(lines) + "\n")
    dataset = cirrus.load_ratings(path, tmp_path / "some", shuffle=False)
    est = make(epochs=5).fit(users, items, ratings, validation=dataset)
    np.testing.assert_allclose(est.predict(dataset), est.predict(users[some], items[some]))
    assert est.score(dataset) == pytest.approx(est.score(users[some], items[some], ratings[some]), abs=1e-5)


def test_shards_do_not_change_the_model(triples):
    """With rounds, 1, 2 and 3 shards give the same model to the bit; another seed another one."""
    models = [make(epochs=2, staleness=0, n_shards=n).fit(*triples).user_factors_ for n in (1, 2, 3)]
    np.testing.assert_array_equal(models[0], models[1])
    np.testing.assert_array_equal(models[0], models[2])
    assert not np.array_equal(models[0], make(epochs=2, random_state=1).fit(*triples).user_factors_)


def test_the_penalty_counts_for_every_rating():
    """The gradient has l2 times the parameter for each rating, weighted as the rating is."""
    params = {"n_users": 2, "n_items": 2, "n_factors": 1}
    X = np.array([[1, 0, 1, 0], [1, 0, 1, 0], [0, 1, 0, 1]], np.float32)
    dataset = cirrus.load_arrays(X, [1.0, 2.0, 3.0], sample_weight=[1.0, 2.0, 1.0], shuffle=False)
    (block,) = dataset.blocks()
    free, held = (
        create_model(ModelConfig(name="matrix_factorization", params={**params, "l2": l2}))
        for l2 in (0.0, 0.5)
    )
    widths = {table.name: table.width for table in free.tables(4)}
    tables = {name: np.full((len(ids), widths[name]), 0.5) for name, ids in free.ids(block).items()}
    difference = held.gradient(tables, block).values["users"] - free.gradient(tables, block).values["users"]
    np.testing.assert_allclose(difference, 0.5 * 0.5 * np.array([[3.0, 3.0], [1.0, 1.0]]))


def test_wrong_data_is_refused_by_name(triples):
    """Arrays of unequal lengths, missing arguments, other datasets and l1 are refused."""
    users, items, ratings = triples
    with pytest.raises(DataError, match="one length"):
        make().fit(users[:-1], items, ratings)
    with pytest.raises(ConfigError, match="ratings: is missing"):
        make().fit(users, items)
    with pytest.raises(ConfigError, match="items"):
        make().fit(users)
    with pytest.raises(DataError, match="load_ratings"):
        make().fit(cirrus.load_arrays(np.eye(3), [1.0, 2.0, 3.0]))
    with pytest.raises(ConfigError, match="l1"):
        make(l1=1.0).fit(users, items, ratings)
    with pytest.raises(ConfigError, match="validation"):
        make().fit(users, items, ratings, validation=(users, items))
    fitted = make(epochs=1).fit(users, items, ratings)
    for ask in (fitted.predict, fitted.score):
        with pytest.raises(ConfigError, match="^items: "):
            ask(users[:1])
