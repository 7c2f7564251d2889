"""Softmax, support vectors and least squares: as good as scikit-learn's, saved and continued alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_digits
from sklearn.linear_model import LinearRegression
from sklearn.linear_model import LogisticRegression as ExactLogistic
from sklearn.model_selection import train_test_split
from sklearn.svm import LinearSVC

import cirrus
from cirrus.errors import ConfigError, DataError

A9A = Path(__file__).resolve().parents[2] / "shared" / "data" / "a9a"
NAMES = ["LogisticRegression", "SoftmaxRegression", "LinearSVC", "LinearRegression"]
OPTIMIZERS = ["ftrl", "sgd", "momentum", "nesterov", "adagrad", "adam"]


def make(name: str, **params):
    """Return an estimator that runs in this process and behaves the same each time."""
    return getattr(cirrus, name)(**{"backend": "inline", "n_workers": 1, "random_state": 0, **params})


@pytest.fixture(scope="module")
def digits():
    """Training and test rows of ten classes."""
    X, y = load_digits(return_X_y=True)
    return train_test_split(X / 16, y, random_state=0)


@pytest.fixture(scope="module")
def rows():
    """Rows with labels for every kind of estimator: numbers, and what is above 0."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 5))
    return X, X @ [1.0, -2.0, 0.0, 0.5, 1.0] + 3.0 + rng.normal(size=300) * 0.1


def labels_for(name: str, numbers: np.ndarray) -> np.ndarray:
    """Return what an estimator can learn."""
    return numbers if name == "LinearRegression" else np.digitize(numbers, [1.0, 4.0])


@pytest.mark.parametrize("name", ["SoftmaxRegression", "LogisticRegression"])
def test_digits_are_read(name, digits):
    """Softmax reaches 0.96 on digits it has not seen, by whichever of its two names."""
    X, X_test, y, y_test = digits
    est = make(name, epochs=100).fit(X, y)
    assert est.score(X_test, y_test) >= 0.96
    assert est.coef_.shape == (10, 64)
    chances = est.predict_proba(X_test)
    np.testing.assert_allclose(chances.sum(axis=1), 1.0)
    np.testing.assert_allclose(np.log(chances), est.predict_log_proba(X_test), atol=1e-9)
    assert est.score(cirrus.load_arrays(X_test, y_test)) == pytest.approx(est.score(X_test, y_test))


def test_digits_are_told_apart_by_support_vectors(digits):
    """More than two classes are told one from the rest, as by scikit-learn's."""
    X, X_test, y, y_test = digits
    exact = LinearSVC(C=0.1).fit(X, y)
    assert make("LinearSVC", epochs=60).fit(X, y).score(X_test, y_test) >= exact.score(X_test, y_test) - 0.01


def test_softmax_finds_the_minimum():
    """Weights of three classes agree with an exact solver's, but for what softmax leaves open."""
    rng = np.random.default_rng(1)
    X = rng.normal(size=(500, 4))
    y = (X @ rng.normal(size=(4, 3)) + rng.normal(size=(500, 3))).argmax(axis=1)
    exact = ExactLogistic(C=1.0, tol=1e-8).fit(X, y)
    est = make(
        "SoftmaxRegression", optimizer="adagrad", learning_rate=1.0, l1=0.0, l2=1.0, epochs=300, tol=None
    )
    est.fit(X, y)
    np.testing.assert_allclose(est.predict_proba(X), exact.predict_proba(X), atol=0.01)


def test_two_classes_read_as_log_odds(rows):
    """Softmax of two classes has one row of weights, as logistic regression has."""
    X, numbers = rows
    est = make("SoftmaxRegression", l1=0.0, learning_rate=1.0, epochs=150).fit(
        X, np.where(numbers > 3, "yes", "no")
    )
    assert est.coef_.shape == (1, 5)
    assert est.decision_function(X).shape == (300,)
    assert est.score(X, np.where(numbers > 3, "yes", "no")) > 0.97


@pytest.mark.skipif(not A9A.is_dir(), reason="the a9a files are not beside the project")
def test_support_vectors_reach_liblinears_accuracy(tmp_path):
    """0.848 on a9a by 2 workers and 2 shards; with the hinge not squared, whose slope jumps, 0.845."""
    train, test = (
        cirrus.load_svmlight(A9A / name, tmp_path / name, n_features=123, random_state=0)
        for name in ("a9a.gz", "a9a.t.gz")
    )
    for loss, accuracy in (("hinge", 0.845), ("squared_hinge", 0.848)):
        est = make("LinearSVC", loss=loss, epochs=10, n_workers=2, n_shards=2).fit(train)
        assert est.score(test) >= accuracy


def test_diabetes_is_explained_as_by_least_squares():
    """R2 on real data is within a hundredth of the exact solution's, whatever the units of the labels."""
    X, y = load_diabetes(return_X_y=True)
    exact = LinearRegression().fit(X, y).score(X, y)
    for factor in (1.0, 1e-3):
        est = make("LinearRegression").fit(X, y * factor)
        assert est.score(X, y * factor) >= 0.99 * exact
    est = make("LinearRegression").fit(scipy.sparse.csr_array(X * 100), y)
    assert est.score(X * 100, y) >= 0.99 * exact


def test_numbers_are_predicted_for_datasets_as_for_arrays(rows):
    """Predictions and R2 are the same for a dataset; labels of text are refused."""
    X, y = rows
    est = make("LinearRegression", epochs=100).fit(cirrus.load_arrays(X, y, shuffle=False), validation=(X, y))
    dataset = cirrus.load_arrays(X, y, shuffle=False)
    np.testing.assert_allclose(est.predict(dataset), est.predict(X), rtol=1e-4, atol=1e-4)
    assert est.score(dataset) == pytest.approx(est.score(X, y), abs=1e-5)
    assert est.score(X, y) > 0.99
    mean_loss = np.mean(np.square(est.predict(X) - y)) / 2
    assert est.history_[-1].validation_loss == pytest.approx(mean_loss, rel=1e-3)
    with pytest.raises(DataError, match="text"):
        make("LinearRegression").fit(cirrus.load_arrays(X, y.astype(str)))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_trains_every_model(name, optimizer, rows):
    """Each of the six optimizers gets each linear model well beyond a constant guess."""
    X, numbers = rows
    y = labels_for(name, numbers)
    rate = {"adam": 0.1, "sgd": 0.1, "momentum": 0.05, "nesterov": 0.05}.get(optimizer, 0.5)
    est = make(name, optimizer=optimizer, learning_rate=rate, l1=0.0, epochs=150, tol=None).fit(X, y)
    assert est.score(X, y) > 0.85


@pytest.mark.parametrize("name", NAMES)
def test_models_are_saved_and_go_on(name, rows, tmp_path):
    """A loaded model predicts the same, and one more epoch gives the same as without the detour."""
    X, numbers = rows
    y = labels_for(name, numbers)
    est = make(name, epochs=3, tol=None).fit(X, y)
    est.save(tmp_path / "model")
    loaded = cirrus.load_model(tmp_path / "model")
    assert type(loaded) is type(est)
    np.testing.assert_array_equal(loaded.predict(X), est.predict(X))
    loaded.set_params(backend="inline", random_state=0)
    np.testing.assert_array_equal(loaded.partial_fit(X, y).coef_, est.partial_fit(X, y).coef_)
    assert loaded.n_iter_ == 4


@pytest.mark.parametrize("name", NAMES)
def test_shards_do_not_change_the_model(name, rows):
    """With one minibatch an epoch, 1, 2 and 3 shards give the same model to the bit."""
    X, numbers = rows
    y = labels_for(name, numbers)
    models = [make(name, epochs=5, tol=None, n_shards=n).fit(X, y).coef_ for n in (1, 2, 3)]
    np.testing.assert_array_equal(models[0], models[1])
    np.testing.assert_array_equal(models[0], models[2])


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_all_named(name):
    """`get_params`, `clone` and the signature know inherited parameters, and unknown ones are refused."""
    est = make(name, learning_rate=0.7, fit_intercept=False)
    params = est.get_params()
    assert {"optimizer", "n_workers", "fit_intercept", "learning_rate"} <= params.keys()
    assert clone(est).get_params() == params
    assert "learning_rate=0.7" in repr(est)
    assert "n_shards" not in repr(est)
    with pytest.raises(TypeError, match="depth"):
        make(name, depth=3)


def test_losses_have_to_be_known(rows):
    """A loss that there is not is refused by name."""
    with pytest.raises(ConfigError, match="loss: must be one of hinge, squared_hinge"):
        make("LinearSVC", loss="log").fit(rows[0], rows[1] > 3)


def test_classes_of_datasets_keep_their_names(rows, tmp_path):
    """Text labels of several classes are predicted as text, and a dataset that lacks some can be scored."""
    X, numbers = rows
    y = np.array(["low", "mid", "high"])[labels_for("SoftmaxRegression", numbers)]
    est = make("SoftmaxRegression", l1=0.0, learning_rate=1.0, epochs=150).fit(
        cirrus.load_arrays(X, y), validation=(X, y)
    )
    assert est.classes_.tolist() == ["high", "low", "mid"]
    assert est.score(X, y) > 0.9
    some = y != "high"
    part = cirrus.load_arrays(X[some], y[some])
    assert est.score(part) == pytest.approx(est.score(X[some], y[some]))
    with pytest.raises(DataError, match="codes its labels otherwise"):
        make("SoftmaxRegression").fit(
            cirrus.load_arrays(X, y), validation=cirrus.load_arrays(X[some], y[some])
        )


def test_class_weights_apply_to_several_classes(rows):
    """A heavy class is predicted more often; "balanced" weighs classes by their rarity."""
    X, numbers = rows
    y = np.digitize(numbers + np.random.default_rng(2).normal(size=300) * 4, [1.0, 4.0])
    share = {}
    for weight in (None, {1: 20.0}, "balanced"):
        est = make("SoftmaxRegression", epochs=60, class_weight=weight).fit(X, y)
        share[str(weight)] = np.mean(est.predict(X) == 1)
    assert share["{1: 20.0}"] > max(share["None"], share["balanced"]) + 0.2


@pytest.mark.parametrize("name", NAMES)
def test_scikit_learns_object_predicts_the_same(name, rows):
    """`to_sklearn` gives a fitted estimator of scikit-learn's, for two classes and for more."""
    X, numbers = rows
    for y in (labels_for(name, numbers), numbers if name == "LinearRegression" else numbers > 3):
        est = make(name, epochs=5).fit(X, y)
        exact = est.to_sklearn()
        np.testing.assert_allclose(exact.predict(X), est.predict(X), rtol=1e-6)
        assert exact.score(X, y) == pytest.approx(est.score(X, y))
        if hasattr(est, "predict_proba"):
            np.testing.assert_allclose(exact.predict_proba(X), est.predict_proba(X), atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_rounds_give_the_same_model_on_any_shards(name, rows):
    """With `staleness=0` and several minibatches, 1, 2 and 3 shards give the same model to the bit."""
    X, numbers = rows
    y = labels_for(name, numbers)
    params = {"epochs": 2, "tol": None, "batch_size": 50, "staleness": 0}
    models = [make(name, n_shards=n, **params).fit(X, y).coef_ for n in (1, 2, 3)]
    np.testing.assert_array_equal(models[0], models[1])
    np.testing.assert_array_equal(models[0], models[2])
