"""Factorization machines: pairs of features, both tasks, real clicks, and the places a model goes to."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from sklearn.base import is_classifier, is_regressor
from sklearn.metrics import log_loss

import cirrus
from cirrus.errors import ConfigError, CorruptDataError
from cirrus.frontend.scoring import score_dataset

REAL = Path(__file__).resolve().parents[2] / "shared" / "data"
#: Learns the small data of these tests in a second.
QUICK = {"learning_rate": 0.5, "initial_scale": 0.1, "l1": 0.0, "epochs": 150, "tol": None}


def make(**params):
    """Return an estimator that runs in this process and behaves the same each time."""
    return cirrus.FactorizationMachine(**{"backend": "inline", "n_workers": 1, "random_state": 0, **params})


@pytest.fixture(scope="module")
def pairs():
    """One-hot rows of two columns of six values, whose labels no linear model can tell."""
    rng = np.random.default_rng(0)
    left, right = rng.integers(0, 6, (2, 600))
    X = np.zeros((600, 12))
    X[np.arange(600), left] = 1.0
    X[np.arange(600), 6 + right] = 1.0
    return X, (left + right) % 2


@pytest.mark.parametrize("optimizer", ["ftrl", "sgd", "momentum", "nesterov", "adagrad", "adam"])
def test_every_optimizer_learns_pairs(pairs, optimizer):
    """Labels that depend on pairs alone are told by every optimizer, where a linear model guesses."""
    X, y = pairs
    linear = cirrus.LogisticRegression(backend="inline", epochs=50, random_state=0).fit(X, y)
    assert linear.score(X, y) < 0.7
    rate = {"sgd": 5.0, "momentum": 0.5, "nesterov": 0.5, "adam": 0.3}.get(optimizer, 0.5)
    est = make(**{**QUICK, "optimizer": optimizer, "learning_rate": rate, "initial_scale": 0.3}).fit(X, y)
    assert est.score(X, y) > 0.95
    assert est.factors_.shape == (12, 8)
    np.testing.assert_allclose(est.predict_proba(X).sum(axis=1), 1.0)


def test_numbers_are_predicted_in_any_unit(pairs):
    """Regression explains a product of two columns, whatever the unit of the labels."""
    X, y = pairs
    for unit in (1.0, 1e4):
        numbers = unit * (5.0 + y)
        est = make(task="regression", **{**QUICK, "initial_scale": 0.3}).fit(X, numbers)
        assert est.score(X, numbers) > 0.9
        dataset = cirrus.load_arrays(X, numbers, shuffle=False)
        np.testing.assert_allclose(est.predict(dataset), est.predict(X), rtol=1e-5)
        assert est.score(dataset) == pytest.approx(est.score(X, numbers), abs=1e-4)


def test_the_task_says_what_it_is(pairs):
    """scikit-learn sees a classifier or a regressor; each refuses what is the other's, and strange tasks."""
    X, y = pairs
    assert is_classifier(make())
    assert is_regressor(make(task="regression"))
    fitted = make(task="regression", epochs=2).fit(X, y)
    with pytest.raises(ConfigError, match="predict_proba needs"):
        fitted.predict_proba(X)
    with pytest.raises(ConfigError, match="class_weight"):
        make(task="regression", class_weight="balanced").fit(X, y)
    with pytest.raises(ConfigError, match="task: must be one of"):
        make(task="ranking").fit(X, y)
    with pytest.raises(ConfigError, match="n_factors"):
        make(n_factors=0).fit(X, y)
    with pytest.raises(ConfigError, match="factor_l2"):
        make(factor_l2=-1.0).fit(X, y)


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_models_are_saved_and_go_on(pairs, tmp_path, task):
    """A loaded model predicts the same and goes on the same; one that does not fit its card is refused."""
    X, y = pairs
    est = make(task=task, epochs=4, tol=None).fit(X, y)
    est.save(tmp_path / "model")
    loaded = cirrus.load_model(tmp_path / "model").set_params(backend="inline", random_state=0)
    np.testing.assert_array_equal(loaded.predict(X), est.predict(X))
    np.testing.assert_array_equal(loaded.partial_fit(X, y).factors_, est.partial_fit(X, y).factors_)
    card = tmp_path / "model" / "model.json"
    card.write_text(card.read_text().replace('"n_features": 12', '"n_features": 13'))
    with pytest.raises(CorruptDataError):
        cirrus.load_model(tmp_path / "model")


def test_the_seed_alone_decides_where_vectors_begin(pairs):
    """Models of 1, 2 and 3 shards are the same to the bit; another seed gives another model."""
    X, y = pairs
    models = [make(epochs=5, tol=None, n_shards=n).fit(X, y).factors_ for n in (1, 2, 3)]
    np.testing.assert_array_equal(models[0], models[1])
    np.testing.assert_array_equal(models[0], models[2])
    assert not np.array_equal(models[0], make(epochs=5, tol=None, random_state=1).fit(X, y).factors_)


def test_the_penalty_shrinks_vectors(pairs):
    """`factor_l2` makes vectors shorter, and leaves the weights' own penalties alone."""
    X, y = pairs
    lengths = [np.abs(make(**QUICK, factor_l2=l2).fit(X, y).factors_).sum() for l2 in (0.0, 1000.0)]
    assert lengths[1] < 0.8 * lengths[0]


def log_loss_on(estimator, dataset) -> float:
    """Return the log loss on a dataset."""
    (found,) = (f.value for f in score_dataset(estimator, dataset).figures if f.name == "log loss")
    return found


@pytest.mark.skipif(not (REAL / "a9a").is_dir(), reason="the a9a files are not beside the project")
def test_pairs_help_on_real_rows(tmp_path):
    """On a9a the log loss is not above logistic regression's, by 2 workers and 2 shards."""
    train, test = (
        cirrus.load_svmlight(REAL / "a9a" / name, tmp_path / name, n_features=123, random_state=0)
        for name in ("a9a.gz", "a9a.t.gz")
    )
    linear = cirrus.LogisticRegression(backend="inline", epochs=8, random_state=0).fit(train)
    machine = make(epochs=8, n_workers=2, n_shards=2).fit(train)
    assert log_loss_on(machine, test) <= log_loss_on(linear, test)
    X, y, _ = test.to_csr()
    assert log_loss_on(machine, test) == pytest.approx(log_loss(y, machine.predict_proba(X)), abs=1e-4)


@pytest.mark.skipif(not (REAL / "criteo").is_dir(), reason="the real Criteo rows are not beside the project")
def test_real_clicks_are_predicted(tmp_path):
    """L2 is chosen on the training rows; on the 800 others log loss is at most 0.490, with pairs not more."""
    folder = REAL / "criteo"
    both = tmp_path / "held-out.tsv"
    parts = (gzip.decompress((folder / f"{part}.csv.gz").read_bytes()) for part in ("dev", "test"))
    both.write_bytes(b"".join(parts))
    columns = {"categorical": range(1, 40), "sep": "\t", "header": False, "random_state": 0}
    train = cirrus.load_csv(folder / "train.csv.gz", tmp_path / "train", **columns)
    held_out = cirrus.load_csv(both, tmp_path / "held-out", **columns)
    part, watched = train.split(test_size=0.2, random_state=0)
    common = {"backend": "inline", "n_workers": 1, "random_state": 0, "epochs": 2, "tol": None}
    tried = {
        l2: log_loss_on(cirrus.LogisticRegression(l2=l2, **common).fit(part), watched)
        for l2 in (10.0, 30.0, 100.0)
    }
    l2 = min(tried, key=tried.__getitem__)
    linear = log_loss_on(cirrus.LogisticRegression(l2=l2, **common).fit(train), held_out)
    machine = log_loss_on(cirrus.FactorizationMachine(l2=l2, **common).fit(train), held_out)
    assert linear <= 0.490
    assert machine <= linear
