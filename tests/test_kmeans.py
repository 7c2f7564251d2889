"""K-means by minibatches: clusters that are there, sparse and dense rows, and what a model goes through."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
from sklearn.cluster import MiniBatchKMeans
from sklearn.datasets import load_digits, make_blobs
from sklearn.metrics import adjusted_rand_score

import cirrus
from cirrus.errors import ConfigError


def make(**params):
    """Return an estimator that runs in this process and behaves the same each time."""
    return cirrus.KMeans(**{"backend": "inline", "n_workers": 1, "random_state": 0, **params})


@pytest.fixture(scope="module")
def blobs():
    """Rows of five clusters well apart."""
    return make_blobs(1500, n_features=6, centers=5, cluster_std=0.5, random_state=3)


@pytest.mark.parametrize("kind", ["dense", "sparse", "dataset"])
def test_clusters_are_found(blobs, kind):
    """Rows of one cluster get one number, by 2 workers and 2 shards, whatever holds the rows."""
    X, y = blobs
    rows = {
        "dense": X,
        "sparse": scipy.sparse.csr_array(X),
        "dataset": cirrus.load_arrays(X, y, shuffle=False),
    }
    est = make(n_clusters=5, epochs=5, n_workers=2, n_shards=2).fit(rows[kind])
    assert adjusted_rand_score(y, est.predict(rows[kind])) > 0.99
    means = np.array([X[y == label].mean(axis=0) for label in range(5)])
    nearest = est.transform(cirrus.load_arrays(means, np.zeros(5), shuffle=False)).min(axis=1)
    assert nearest.max() < 0.3
    assert est.counts_.sum() == 5 * 1500 + 5


def test_real_digits_are_as_near_as_scikit_learns():
    """On digits the mean squared distance is within 3 % of scikit-learn's by minibatches."""
    X, _ = load_digits(return_X_y=True)
    exact = MiniBatchKMeans(10, random_state=0, n_init=1).fit(X)
    assert make(n_clusters=10, epochs=10).fit(X).score(X) >= 1.03 * exact.score(X)


def test_loss_is_the_mean_squared_distance(blobs):
    """The validation loss is the mean squared distance to the nearest centre."""
    X, _ = blobs
    est = make(n_clusters=5, epochs=3).fit(X, validation=X)
    assert est.history_[-1].validation_loss == pytest.approx(-est.score(X) / len(X), rel=1e-3)


def test_models_are_saved_go_on_and_go_to_scikit_learn(blobs, tmp_path):
    """A loaded model predicts and goes on the same; scikit-learn's object predicts the same."""
    X, _ = blobs
    est = make(n_clusters=5, epochs=2, tol=None).fit(X)
    est.save(tmp_path / "model")
    loaded = cirrus.load_model(tmp_path / "model").set_params(backend="inline", random_state=0)
    np.testing.assert_array_equal(loaded.predict(X), est.predict(X))
    np.testing.assert_array_equal(est.to_sklearn().predict(X), est.predict(X))
    est.partial_fit(X)
    np.testing.assert_array_equal(loaded.partial_fit(X).cluster_centers_, est.cluster_centers_)
    assert est.counts_.sum() == 3 * 1500 + 5


def test_shards_do_not_change_the_model(blobs):
    """In rounds, 1, 2 and 3 shards give the same centres to the bit."""
    X, _ = blobs
    models = [
        make(n_clusters=5, epochs=2, n_shards=n, staleness=0).fit(X).cluster_centers_ for n in (1, 2, 3)
    ]
    np.testing.assert_array_equal(models[0], models[1])
    np.testing.assert_array_equal(models[0], models[2])


def test_a_row_of_weight_two_counts_twice(blobs):
    """Weights count rows."""
    X, _ = blobs
    est = make(n_clusters=2, epochs=1).fit(X, sample_weight=np.full(len(X), 2.0))
    assert est.counts_.sum() == 2 * 1500 + 2


@pytest.mark.parametrize("n_clusters", [0, 1501, 2.5, True])
def test_the_number_of_clusters_has_to_be_possible(blobs, n_clusters):
    """From one cluster to one a row."""
    with pytest.raises(ConfigError, match="n_clusters"):
        make(n_clusters=n_clusters).fit(blobs[0])
