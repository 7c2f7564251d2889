"""What every model can do: resume, go on, be saved, change shards and workers, leave for scikit-learn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

import cirrus
from cirrus.chunks import BLOCK_ROWS
from cirrus.config import OPTIMIZER_PARAMS
from cirrus.errors import ConfigError
from cirrus.preprocessing import FeatureHasher, MinMaxScaler, StandardScaler

#: Rows of four leases, so that several workers have something to do.
MANY_ROWS = 4 * BLOCK_ROWS
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


def data(name: str, n_rows: int = 200) -> tuple[Any, ...]:
    """Return rows as ``fit`` of a model takes them; 200 are one lease."""
    rng = np.random.default_rng(0)
    if name == "mf":
        users, items = (rng.permutation(np.arange(n_rows) % 20) for _ in range(2))
        return users, items, np.sin(users) * np.cos(items) + 3.0
    if name == "lda":
        return (rng.poisson(rng.gamma(0.3, 3.0, size=(n_rows, 12))),)
    X = rng.normal(size=(n_rows, 6))
    score = X[:, 0] - X[:, 1] + X[:, 2] * X[:, 3]
    if name == "kmeans":
        return (X + 4.0 * np.eye(3)[np.arange(n_rows) % 3].repeat(2, axis=1),)
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


def cut(name: str, url: str, epochs: int = 3, **params: Any) -> Any:
    """Train in part; a run that has somewhere to leave checkpoints leaves one at its end."""
    est = MODELS[name](**EXACT, epochs=epochs, checkpoint_url=url, **params)
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


def test_a_checkpoint_of_another_optimizer_is_refused(tmp_path) -> None:
    """Its state would be lost, or taken for what it is not; workers that average have none to lose."""
    cut("logistic", str(tmp_path / "sgd"), epochs=1, optimizer="adam")
    resumed = cirrus.LogisticRegression(
        **EXACT, epochs=2, optimizer="adagrad", resume_from=str(tmp_path / "sgd")
    )
    with pytest.raises(ConfigError, match="^optimizer: .*='adam', got 'adagrad': .*warm_start=True"):
        resumed.fit(*data("logistic"))
    averaging = {"mode": "average", "learning_rate": 0.05}
    cut("logistic", str(tmp_path / "average"), epochs=1, optimizer="adam", **averaging)
    resumed.set_params(resume_from=str(tmp_path / "average"), **averaging).fit(*data("logistic"))
    assert resumed.n_iter_ == 2


@pytest.mark.parametrize("name", MODELS)
def test_a_run_resumes_with_other_workers(name: str, tmp_path) -> None:
    """Three asynchronous workers go on with what one had done, and end near where it would have."""
    params = {**EXACT, "batch_size": 128}
    if name in SGD_MODELS:  # gradients of old weights, at a high rate, swing
        params["learning_rate"] = 0.05
    rows = data(name, MANY_ROWS)
    whole = MODELS[name](**params, epochs=6).fit(*rows)
    MODELS[name](**params, epochs=3, checkpoint_url=str(tmp_path)).fit(*rows)
    params |= {"n_workers": 3, "n_shards": 2, "staleness": None}
    resumed = MODELS[name](**params, epochs=6, resume_from=str(tmp_path)).fit(*rows)
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


@pytest.mark.parametrize("name", SGD_MODELS)
def test_workers_may_average_every_model(name: str) -> None:
    """One worker that averages with itself does, but for rounding, what it does step by step."""
    params = {**EXACT, "optimizer": "sgd", "learning_rate": 0.05, "l1": 0.0, "epochs": 3, "batch_size": 128}
    rows = data(name, MANY_ROWS)
    steps, averaged = (MODELS[name](**params, mode=mode).fit(*rows) for mode in ("sgd", "average"))
    assert (averaged.history_[-1].updates, steps.history_[-1].updates) == (3 * 4, 3 * 32)
    expected = outcome(steps)
    for key, array in outcome(averaged).items():
        np.testing.assert_allclose(array, expected[key], rtol=1e-3, atol=1e-5, err_msg=key)


@pytest.mark.parametrize("name", MODELS)
def test_workers_may_wait_for_each_other_with_every_model(name: str) -> None:
    """Three workers of which none is more than two steps ahead do every step, and the loss falls."""
    params = {**EXACT, "batch_size": 128, "n_workers": 3, "n_shards": 2, "staleness": 2, "epochs": 6}
    est = MODELS[name](**params).fit(*data(name, MANY_ROWS))
    losses = [point.train_loss for point in est.history_ if point.end_of_epoch]
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    assert est.history_[-1].samples == 6 * MANY_ROWS
    assert est.history_[-1].updates == 6 * 32


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


def test_a_path_is_not_data(tmp_path) -> None:
    """Whoever is handed a path says how to load it, with the loader of what he takes."""
    fitted = {name: MODELS[name](**EXACT, epochs=1).fit(*data(name)) for name in ("linear", "mf")}
    grid = cirrus.GridSearch(cirrus.LogisticRegression(backend="inline"), {"l1": [0.0, 1.0]})
    asked: list[tuple[Callable[[Any], Any], str]] = [
        (cirrus.LogisticRegression(backend="inline").fit, "load_svmlight"),
        (cirrus.MatrixFactorization(backend="inline").fit, "load_ratings"),
        (cirrus.LatentDirichletAllocation(backend="inline").fit, "load_bag_of_words"),
        (fitted["linear"].predict, "load_svmlight"),
        (fitted["mf"].predict, "load_ratings"),
        (fitted["mf"].score, "load_ratings"),
        (grid.fit, "load_svmlight"),
        *((kind().fit, "load_svmlight") for kind in (MinMaxScaler, StandardScaler, FeatureHasher)),
        (StandardScaler(with_mean=False).fit_transform, "load_svmlight"),
        *((kind().transform, "load_svmlight") for kind in (MinMaxScaler, StandardScaler, FeatureHasher)),
    ]
    for ask, loader in asked:
        for path in ("some.data", tmp_path):
            with pytest.raises(ConfigError, match=rf"load the file first, with cirrus\.{loader}\("):
                ask(path)
    X, y = np.eye(4), [0, 1, 0, 1]
    for estimator in (cirrus.LogisticRegression(backend="inline"), grid):
        with pytest.raises(ConfigError, match="^validation: must be a Dataset"):
            estimator.fit(X, y, validation="some.svm")
