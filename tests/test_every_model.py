"""What every model can do: resume, go on, be saved, change shards and workers, leave for scikit-learn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

import cirrus
from cirrus.config import OPTIMIZER_PARAMS
from cirrus.errors import ConfigError

#: One worker in rounds: results are then the same to the bit.
EXACT = {
    "backend": "inline",
    "random_state": 0,
    "batch_size": 32,
    "n_workers": 1,
    "staleness": 0,
    "tol": None,
}

SGD_MODELS: Mapping[str, Callable[..., Any]] = {
    "logistic": cirrus.LogisticRegression,
    "several classes": cirrus.LogisticRegression,
    "softmax": cirrus.SoftmaxRegression,
    "svm": cirrus.LinearSVC,
    "linear": cirrus.LinearRegression,
    "fm": lambda **params: cirrus.FactorizationMachine(n_factors=3, **params),
    "fm of numbers": lambda **params: cirrus.FactorizationMachine(n_factors=3, task="regression", **params),
    "mf": lambda **params: cirrus.MatrixFactorization(n_factors=3, **params),
}
MODELS: Mapping[str, Callable[..., Any]] = {
    **SGD_MODELS,
    "lda": lambda **params: cirrus.LatentDirichletAllocation(n_topics=3, **params),
    "kmeans": lambda **params: cirrus.KMeans(n_clusters=3, **params),
}
IN_SCIKIT_LEARN = ("logistic", "several classes", "softmax", "svm", "linear", "lda", "kmeans")


def data(name: str) -> tuple[Any, ...]:
    """Return some 200 rows, as ``fit`` of a model takes them."""
    rng = np.random.default_rng(0)
    if name == "mf":
        users, items = (rng.permutation(np.repeat(np.arange(20), 10)) for _ in range(2))
        return users, items, np.sin(users) * np.cos(items) + 3.0
    if name == "lda":
        return (rng.poisson(rng.gamma(0.3, 3.0, size=(200, 12))),)
    X = rng.normal(size=(200, 6))
    score = X[:, 0] - X[:, 1] + X[:, 2] * X[:, 3]
    if name == "kmeans":
        return (X + 4.0 * np.repeat(np.eye(3), [60, 70, 70], axis=0).repeat(2, axis=1),)
    if name in ("linear", "fm of numbers"):
        return X, score
    if name in ("several classes", "softmax", "svm"):
        return X, np.digitize(score, [-1.0, 1.0])
    return X, score > 0


def outcome(estimator: Any) -> dict[str, np.ndarray]:
    """Return all that was learned: weights and optimizer states of every table."""
    return {
        f"{table}/{kind}": array
        for table, arrays in estimator._checkpoint.tables.items()
        for kind, array in arrays.items()
    }


def assert_same(one: Any, other: Any) -> None:
    """Two estimators learned the same, to the bit."""
    first, second = outcome(one), outcome(other)
    assert first.keys() == second.keys()
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name], err_msg=name)


def cut(name: str, url: str, epochs: int = 3) -> Any:
    """Train in part; a run that has somewhere to leave checkpoints leaves one at its end."""
    est = MODELS[name](**EXACT, epochs=epochs, checkpoint_url=url)
    return est.fit(*data(name))


@pytest.mark.parametrize("name", MODELS)
def test_a_resumed_run_ends_where_a_whole_one_does(name: str, tmp_path) -> None:
    """On as many shards as before or on more, a run that resumes a checkpoint ends at the same model."""
    whole = MODELS[name](**EXACT, epochs=6).fit(*data(name))
    cut(name, str(tmp_path))
    for n_shards in (1, 3):
        resumed = MODELS[name](**EXACT, epochs=6, n_shards=n_shards, resume_from=str(tmp_path))
        assert_same(resumed.fit(*data(name)), whole)
        assert resumed.n_iter_ == 6


@pytest.mark.parametrize(
    ("name", "other", "problem"),
    [
        ("logistic", cirrus.LinearSVC, "another kind: 'logistic'"),
        (
            "fm",
            lambda **params: cirrus.FactorizationMachine(n_factors=5, **params),
            "another size: .*n_factors",
        ),
        ("kmeans", lambda **params: cirrus.KMeans(n_clusters=2, **params), "another size: .*n_clusters"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(
    name: str, other: Callable[..., Any], problem: str, tmp_path
) -> None:
    """Tables of the same names and shapes would be taken for what they are not, so the model is compared."""
    cut(name, str(tmp_path), epochs=1)
    with pytest.raises(ConfigError, match=f"resume_from: .*{problem}"):
        other(**EXACT, epochs=2, resume_from=str(tmp_path)).fit(*data(name))


@pytest.mark.parametrize("name", MODELS)
def test_a_run_resumes_with_other_workers(name: str, tmp_path) -> None:
    """Three asynchronous workers go on with what one had done, and end near where it would have."""
    whole = MODELS[name](**EXACT, epochs=6).fit(*data(name))
    cut(name, str(tmp_path))
    params = {**EXACT, "n_workers": 3, "n_shards": 2, "staleness": None}
    resumed = MODELS[name](**params, epochs=6, resume_from=str(tmp_path)).fit(*data(name))
    assert resumed.n_iter_ == 6
    first, loss = whole.history_[0].train_loss, whole.history_[-1].train_loss
    assert abs(resumed.history_[-1].train_loss - loss) <= 0.05 * abs(loss) + 0.5 * abs(first - loss)


@pytest.mark.parametrize("name", MODELS)
def test_models_go_on_from_where_they_are(name: str, tmp_path) -> None:
    """``warm_start``, ``partial_fit`` and a saved model go on alike, and not from the start."""
    rows = data(name)
    est = MODELS[name](**EXACT, epochs=2, warm_start=True).fit(*rows)
    est.save(str(tmp_path / "model"))
    loaded = cirrus.load_model(str(tmp_path / "model"))
    loaded.set_params(backend="inline", random_state=0)
    assert_same(loaded, est)
    loaded.partial_fit(*rows)
    est.set_params(epochs=1).fit(*rows)
    assert_same(loaded, est)
    fresh = MODELS[name](**EXACT, epochs=1).fit(*rows)
    assert any((outcome(fresh)[key] != array).any() for key, array in outcome(est).items())


@pytest.mark.parametrize("name", SGD_MODELS)
@pytest.mark.parametrize("optimizer", [known for known in OPTIMIZER_PARAMS if known != "add"])
def test_every_optimizer_trains_every_model(name: str, optimizer: str) -> None:
    """The loss falls, and the model is the same to the bit on one, two and three shards."""
    params = {**EXACT, "optimizer": optimizer, "learning_rate": 0.05, "l1": 0.0, "epochs": 6}
    found = [MODELS[name](**params, n_shards=n_shards).fit(*data(name)) for n_shards in (1, 2, 3)]
    losses = [point.train_loss for point in found[0].history_ if point.train_loss is not None]
    assert losses[-1] < losses[0]
    assert_same(found[1], found[0])
    assert_same(found[2], found[0])


@pytest.mark.parametrize("name", ["lda", "kmeans"])
def test_shards_do_not_change_models_without_gradients(name: str) -> None:
    """One, two and three shards give the same model, to the bit."""
    found = [MODELS[name](**EXACT, n_shards=n_shards, epochs=3).fit(*data(name)) for n_shards in (1, 2, 3)]
    assert_same(found[1], found[0])
    assert_same(found[2], found[0])


@pytest.mark.parametrize("name", IN_SCIKIT_LEARN)
def test_models_leave_for_scikit_learn(name: str, tmp_path) -> None:
    """Where scikit-learn has such a model, its object answers as ours does, also of a loaded model."""
    rows = data(name)
    MODELS[name](**EXACT, epochs=3).fit(*rows).save(str(tmp_path / "model"))
    est = cirrus.load_model(str(tmp_path / "model"))
    exact = est.to_sklearn()
    assert type(exact).__module__.startswith("sklearn.")
    method = "transform" if name == "lda" else "predict"
    np.testing.assert_allclose(
        getattr(exact, method)(rows[0]), getattr(est, method)(rows[0]), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("name", sorted(MODELS.keys() - set(IN_SCIKIT_LEARN)))
def test_no_export_is_promised_where_scikit_learn_has_no_such_model(name: str) -> None:
    """There is no method then, rather than one that fails."""
    assert not hasattr(MODELS[name](), "to_sklearn")
