"""`cirrus.LogisticRegression`: scikit-learn's conventions, and that every parameter acts."""

from __future__ import annotations

import gc
import math
import pickle
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression as Reference
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import cirrus
from cirrus.errors import ConfigError, DataError, NotFoundError, RunError
from cirrus.frontend.training import nonfinite_problems
from cirrus.metrics import MetricPoint, RunState, RunStatus
from cirrus.paramserver.checkpoint import Checkpoint


def make(**params) -> cirrus.LogisticRegression:
    """Return an estimator on threads of this process."""
    return cirrus.LogisticRegression(**{"backend": "inline", "random_state": 0, **params})


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    """Return 400 rows of 6 features, of which 3 matter, and labels 0 and 1 of unlike frequency."""
    rng = np.random.default_rng(7)
    X = rng.normal(size=(400, 6))
    log_odds = X @ [2.0, -1.5, 1.0, 0, 0, 0] - 1.0
    return X, (rng.random(400) < 1 / (1 + np.exp(-log_odds))).astype(int)


# What fits, and what comes out.


def test_agrees_with_the_exact_solution(data):
    """Trained to the end without penalty, weights and intercept are those of scikit-learn's solver."""
    X, y = data
    est = make(l1=0.0, tol=1e-7, epochs=1000, learning_rate=0.5).fit(X, y)
    exact = Reference(C=np.inf, tol=1e-8).fit(X, y)
    np.testing.assert_allclose(est.coef_, exact.coef_, atol=0.02)
    np.testing.assert_allclose(est.intercept_, exact.intercept_, atol=0.02)


@pytest.mark.parametrize(
    ("optimizer", "learning_rate"),
    [("sgd", 1.0), ("momentum", 0.2), ("nesterov", 0.2), ("adagrad", 0.3), ("adam", 0.1), ("ftrl", 0.3)],
)
def test_every_optimizer_trains(data, optimizer, learning_rate):
    """Each optimizer brings the loss near that of the exact solution."""
    X, y = data
    est = make(optimizer=optimizer, learning_rate=learning_rate, l1=0.0, tol=1e-5, epochs=300).fit(X, y)
    exact = Reference(C=np.inf).fit(X, y)
    assert log_loss(y, est.predict_proba(X)) < log_loss(y, exact.predict_proba(X)) + 0.01


def test_optimizer_params_act(data):
    """A further parameter of the optimizer changes the model."""
    X, y = data
    plain = make(optimizer="momentum", l1=0.0, epochs=5).fit(X, y)
    other = make(optimizer="momentum", l1=0.0, epochs=5, optimizer_params={"momentum": 0.5}).fit(X, y)
    assert not np.allclose(plain.coef_, other.coef_)


def test_arrays_sparse_matrices_and_datasets_give_the_same_model(data):
    """The kind of container does not matter; one minibatch an epoch is deterministic."""
    X, y = data
    X = np.where(np.abs(X) < 0.5, 0.0, X)
    dataset = cirrus.load_arrays(X, y, random_state=0)
    models = [
        make(epochs=5).fit(X, y),
        make(epochs=5).fit(scipy.sparse.csr_matrix(X), y),
        make(epochs=5).fit(scipy.sparse.coo_array(X), y.tolist()),
        make(epochs=5).fit(dataset),
    ]
    for other in models[1:]:
        np.testing.assert_allclose(other.coef_, models[0].coef_, rtol=1e-6)


def test_predictions_agree_for_arrays_sparse_matrices_and_datasets(data):
    """Decisions, probabilities, labels and scores are the same whatever holds the rows."""
    X, y = data
    est = make().fit(X, y)
    dataset = cirrus.load_arrays(X, y, shuffle=False)
    decisions = est.decision_function(X)
    assert decisions.shape == (400,)
    for rows in (scipy.sparse.csr_matrix(X), dataset):
        np.testing.assert_allclose(est.decision_function(rows), decisions, rtol=1e-5, atol=1e-6)
        assert np.array_equal(est.predict(rows), est.predict(X))
    probabilities = est.predict_proba(dataset)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0)
    np.testing.assert_allclose(np.log(probabilities), est.predict_log_proba(dataset), atol=1e-9)
    assert est.score(dataset) == pytest.approx(est.score(X, y))


def test_labels_may_be_text(data):
    """Labels are given and returned as the user wrote them, sorted in `classes_`."""
    X, y = data
    names = np.where(y == 1, "late", "early")
    est = make().fit(X, names)
    assert est.classes_.tolist() == ["early", "late"]
    assert set(est.predict(X)) == {"early", "late"}
    assert est.score(X, names) == make().fit(X, y).score(X, y)


def test_datasets_may_have_text_labels(data):
    """A dataset's text labels come back too, and its score knows them."""
    X, y = data
    names = np.where(y == 1, "late", "early")
    dataset = cirrus.load_arrays(X, names, random_state=0)
    est = make().fit(dataset)
    assert est.classes_.tolist() == ["early", "late"]
    assert est.score(dataset) == pytest.approx(est.score(X, names))


def test_minus_one_and_zero_are_the_same_negative_class(data):
    """A dataset with labels 0 and 1 tests and validates a model of labels -1 and 1, and back."""
    X, y = data
    zero_one = cirrus.load_arrays(X, y, random_state=0)
    signed = cirrus.load_arrays(X, 2 * y - 1, random_state=0)
    for train, test in ((signed, zero_one), (zero_one, signed)):
        est = make().fit(train, validation=test)
        assert est.score(test) == pytest.approx(est.score(train))
        last = [point.validation_loss for point in est.history_ if point.validation_loss is not None][-1]
        assert last == pytest.approx(log_loss(y, est.predict_proba(X)), abs=0.01)


def test_sample_weights_act(data):
    """Rows of weight 0 might as well not be there, and a weight of 2 is the row twice."""
    X, y = data
    weights = np.random.default_rng(0).integers(0, 3, len(y))
    repeated = np.repeat(np.arange(len(y)), weights)
    weighted = make(epochs=20).fit(X, y, sample_weight=weights)
    np.testing.assert_allclose(weighted.coef_, make(epochs=20).fit(X[repeated], y[repeated]).coef_, rtol=1e-6)


def test_class_weight_acts(data):
    """Balanced classes and a dict of factors shift the decision towards the rare class."""
    X, y = data
    plain = make().fit(X, y).predict(X).mean()
    assert make(class_weight="balanced").fit(X, y).predict(X).mean() > plain
    assert make(class_weight={1: 5.0}).fit(X, y).predict(X).mean() > plain
    dataset = cirrus.load_arrays(X, y, random_state=0)
    np.testing.assert_allclose(
        make(class_weight="balanced", epochs=5).fit(dataset).coef_,
        make(class_weight="balanced", epochs=5).fit(X, y).coef_,
        rtol=1e-6,
    )


def test_fit_intercept_acts(data):
    """Without an intercept it is 0, and the model is another."""
    X, y = data
    est = make(fit_intercept=False).fit(X, y)
    assert est.intercept_.tolist() == [0.0]
    assert make().fit(X, y).intercept_[0] < -0.1


def test_penalties_act(data):
    """`l1` makes weights exactly 0; `l2` makes them small; neither touches the intercept."""
    X, y = data
    free = make(l1=0.0).fit(X, y)
    lasso = make(l1=30.0).fit(X, y)
    ridge = make(l1=0.0, l2=50.0).fit(X, y)
    assert np.count_nonzero(lasso.coef_) < np.count_nonzero(free.coef_)
    assert np.abs(ridge.coef_).max() < np.abs(free.coef_).max()
    assert make(l1=1e6).fit(X, y).intercept_[0] != 0.0


def test_history_tells_the_run(data):
    """Each epoch has a point: seconds, updates, samples, train loss, validation loss and cost."""
    X, y = data
    est = make(epochs=4, tol=None, batch_size=100).fit(X[:300], y[:300], validation=(X[300:], y[300:]))
    ends = [point for point in est.history_ if point.end_of_epoch]
    assert [point.samples for point in ends] == [300, 600, 900, 1200]
    assert [point.updates for point in ends] == [3, 6, 9, 12]
    assert ends[-1].train_loss < ends[0].train_loss
    assert any(point.validation_loss is not None for point in est.history_)
    assert est.n_iter_ == 4
    assert est.cost_ == 0.0


def test_a_price_makes_a_cost(data):
    """`cost_` grows with time by the backend's price."""
    X, y = data
    backend = cirrus.InlineBackend(dollars_per_hour=3600.0)
    est = make(epochs=3, tol=None, backend=backend).fit(X, y)
    assert est.cost_ == pytest.approx(est.history_[-1].seconds, abs=1.0)
    assert est.cost_ > 0


# What ends a run.


def test_epochs_tol_and_targets_end_a_run(data):
    """A run ends at the first of `epochs`, `tol`, `target_loss`, `max_seconds`, `max_cost`."""
    X, y = data
    assert make(epochs=3).fit(X, y).n_iter_ == 3
    assert make(epochs=500, tol=0.05).fit(X, y).n_iter_ < 50
    assert make(epochs=500, tol=None, target_loss=0.5).fit(X, y).history_[-1].train_loss <= 0.5
    assert make(epochs=10**6, tol=None, max_seconds=0.3).fit(X, y).n_iter_ < 10**6
    pricey = cirrus.InlineBackend(dollars_per_hour=3600.0)
    assert make(epochs=10**6, tol=None, max_cost=0.3, backend=pricey).fit(X, y).cost_ < 30


def test_early_stopping_watches_the_validation_loss(data):
    """With labels that cannot be learned, validation stops improving while training goes on."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(200, 100)), rng.integers(0, 2, 200)
    common = {"epochs": 150, "l1": 0.0, "tol": 1e-4}
    stopped = make(early_stopping=True, **common).fit(X[:100], y[:100], validation=(X[100:], y[100:]))
    assert stopped.n_iter_ < 150
    assert make(**common).fit(X[:100], y[:100]).n_iter_ == 150


# Going on.


def test_warm_start_goes_on_with_the_optimizer_state(data):
    """Two fits of 3 epochs are one of 6, to the bit."""
    X, y = data
    warm = make(epochs=3, tol=None, warm_start=True).fit(X, y).fit(X, y)
    whole = make(epochs=6, tol=None).fit(X, y)
    assert np.array_equal(warm.coef_, whole.coef_)
    assert np.array_equal(warm.intercept_, whole.intercept_)


def test_partial_fit_goes_on_with_the_optimizer_state(data):
    """Three calls are one fit of 3 epochs, to the bit; counts and history add up."""
    X, y = data
    est = make()
    for _ in range(3):
        est.partial_fit(X, y, classes=[0, 1])
    whole = make(epochs=3, tol=None).fit(X, y)
    assert np.array_equal(est.coef_, whole.coef_)
    assert est.n_iter_ == 3
    assert len([point for point in est.history_ if point.end_of_epoch]) == 3


def test_partial_fit_may_see_one_class_at_a_time(data):
    """`classes` in the first call tells of labels that come later; other labels are refused."""
    X, y = data
    est = make().partial_fit(X[y == 0], y[y == 0], classes=[0, 1])
    assert est.predict_proba(X)[:, 0].mean() > 0.5
    est.partial_fit(X[y == 1], y[y == 1])
    with pytest.raises(DataError, match="none of the classes"):
        est.partial_fit(X, np.where(y == 1, 2, 0))
    with pytest.raises(DataError, match="not the same"):
        est.partial_fit(X, y, classes=[0, 2])


def test_partial_fit_needs_classes_first(data):
    """The first call cannot know which labels will come."""
    with pytest.raises(ValueError, match="classes: must be passed on the first call"):
        make().partial_fit(*data)


def test_partial_fit_takes_datasets(data):
    """A dataset knows its labels by itself."""
    X, y = data
    dataset = cirrus.load_arrays(X, y, random_state=0)
    est = make().partial_fit(dataset).partial_fit(dataset)
    assert np.array_equal(est.coef_, make(epochs=2, tol=None).fit(dataset).coef_)


def test_another_optimizer_takes_over_the_weights(data):
    """Changing the optimizer of a warm start keeps the model: the first loss is near the last one before."""
    X, y = data
    for before, after in (("sgd", "ftrl"), ("ftrl", "adagrad")):
        est = make(optimizer=before, epochs=60, tol=None, warm_start=True).fit(X, y)
        loss = est.history_[-1].train_loss
        est.set_params(optimizer=after, epochs=1).fit(X, y)
        assert est.history_[0].train_loss == pytest.approx(loss, abs=0.02)


def test_warm_start_refuses_other_features_and_classes(data):
    """A model goes on with data of its own shape alone."""
    X, y = data
    est = make(epochs=1, warm_start=True).fit(X, y)
    with pytest.raises(DataError, match="6"):
        est.fit(X[:, :3], y)
    est = make(epochs=1, warm_start=True).fit(X, y)
    with pytest.raises(DataError, match="classes"):
        est.fit(X, y + 1)


def test_checkpoints_can_be_resumed(data, tmp_path):
    """A run that resumes a checkpoint ends where the first one would have."""
    X, y = data
    whole = make(epochs=80, tol=None).fit(X, y)
    half = make(epochs=40, tol=None, checkpoint_seconds=0.02, checkpoint_url=str(tmp_path / "cuts"))
    half.fit(X, y)
    latest = (tmp_path / "cuts" / "latest").read_text()
    assert (tmp_path / "cuts" / latest / "checkpoint.json").exists()
    resumed = make(epochs=80, tol=None, resume_from=str(tmp_path / "cuts")).fit(X, y)
    assert np.array_equal(resumed.coef_, whole.coef_)


def test_resuming_checks_the_checkpoint(data, tmp_path):
    """A missing checkpoint, other data or another batch size are refused by name."""
    X, y = data
    with pytest.raises(NotFoundError, match="no checkpoint"):
        make(resume_from=str(tmp_path / "none")).fit(X, y)
    url = str(tmp_path / "cuts")
    make(epochs=40, tol=None, checkpoint_seconds=0.02, checkpoint_url=url).fit(X, y)
    with pytest.raises(ConfigError, match="other data"):
        make(resume_from=url).fit(X + 1, y)
    with pytest.raises(ConfigError, match="batch_size"):
        make(resume_from=url, batch_size=100).fit(X, y)


# How the bytes travel.


@pytest.mark.parametrize(
    "params",
    [
        {"compression": "lz4"},
        {"compression": "none"},
        {"wire_dtype": "float16"},
        {"gradient_threshold": 0.05},
    ],
)
def test_the_wire_may_be_smaller(data, params):
    """Compression changes nothing in the model; float16 and held-back gradients change it a little."""
    X, y = data
    common = {"epochs": 20, "tol": None, "batch_size": 64, "n_workers": 1}
    plain = make(**common).fit(X, y)
    other = make(**common, **params).fit(X, y)
    assert np.array_equal(other.coef_, plain.coef_) == ("compression" in params)
    assert other.score(X, y) == pytest.approx(plain.score(X, y), abs=0.03)


@pytest.mark.parametrize("n_shards", [1, 2])
def test_nonfinite_gradients_are_skipped_or_fail_the_fit(n_shards):
    """A fit that diverges goes to its end and counts and tells what was refused, or fails at once."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(2000, 6)), rng.normal(size=2000)
    diverging = {"optimizer": "sgd", "learning_rate": 1e9, "epochs": 40, "tol": None, "batch_size": 50}
    diverging |= {"backend": "inline", "random_state": 0, "n_shards": n_shards}
    run = cirrus.LinearRegression(**diverging).start(X, y)
    with pytest.raises(cirrus.RunError, match=r"every gradient of epochs \d+ to 40 was refused.*scale the"):
        run.wait()
    status = run.status
    assert status.epoch == 40
    assert sum(status.counts[f"shard{shard}.nonfinite_refused"] for shard in range(n_shards)) > 100
    diverging["epochs"] = 100_000
    with pytest.raises(cirrus.RunError, match="NaN or infinity.*lower learning_rate"):
        cirrus.LinearRegression(nonfinite_gradients="fail", **diverging).fit(X, y)
    with pytest.raises(cirrus.ConfigError, match="nonfinite_gradients: must be one of skip, fail"):
        cirrus.LinearRegression(nonfinite_gradients="apply", **diverging).fit(X, y)


def test_values_beyond_float32_are_told():
    """Values whose squares are beyond float32 give a useless model: a warning or an error says so."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 4))
    y = X @ [1.0, 2.0, 3.0, 4.0]
    common = {"backend": "inline", "epochs": 3, "random_state": 0}
    with pytest.warns(UserWarning, match="squares of table weights went beyond float32.*scale the features"):
        cirrus.LinearRegression(**common).fit(X, y * 1e22)
    with pytest.raises(cirrus.RunError, match="every gradient of epochs 2 to 3 was refused"):
        cirrus.LogisticRegression(**common).fit(X * 1e20, y > 0)
    cirrus.LinearRegression(**common).fit(X, y * 1e10)
    counts = {"shard0.nonfinite_refused": 3, "shard1.nonfinite_refused": 4}
    status = RunStatus(state=RunState.FINISHED, counts=counts)
    points = [
        MetricPoint(seconds=1, epoch=k, updates=k, samples=k, train_loss=loss, end_of_epoch=True)
        for k, loss in enumerate((1.0, math.nan, math.inf))
    ]
    refused, lost = nonfinite_problems(status, points, Checkpoint(tables={}))
    assert refused.startswith("7 gradients were refused")
    assert lost == "the training loss of 2 of 3 epochs is not finite"


@pytest.mark.parametrize(("n_workers", "n_shards"), [(1, 1), (3, 2), (2, 4)])
def test_any_number_of_workers_and_shards_trains(data, n_workers, n_shards):
    """The numbers of workers and shards are a matter of speed; more shards than features is no error."""
    X, y = data
    est = make(n_workers=n_workers, n_shards=n_shards, batch_size=50, epochs=10).fit(X[:, :3], y)
    assert est.score(X[:, :3], y) > 0.8


# Runs that are not waited for.


def test_start_does_not_block(data):
    """`start` returns a run to watch; `wait` fits the estimator."""
    X, y = data
    est = make(epochs=30, tol=None)
    run = est.start(X, y)
    assert not hasattr(est, "coef_")
    assert run.wait().state is RunState.FINISHED
    assert run.status.epoch == 30
    assert run.metrics() == est.history_
    assert est.coef_.shape == (1, 6)
    assert run.wait().state is RunState.FINISHED


def test_a_killed_run_leaves_the_estimator_as_it_was(data):
    """`kill` ends a run without a model; `fit` of a killed run says so."""
    X, y = data
    est = make(epochs=10**6, tol=None)
    run = est.start(X, y)
    run.kill()
    assert run.wait().state is RunState.KILLED
    assert not hasattr(est, "coef_")


def test_fit_of_a_run_that_was_killed_raises(data):
    """Somebody else may end a run; then there is no model, and `fit` must not return as if."""
    X, y = data
    runs = []

    def kill(status: RunStatus) -> None:
        if status.updates and not runs:
            runs.append(status)
            raise RunError("enough")

    with pytest.raises(RunError, match="enough"):
        make(epochs=10**6, tol=None, progress=kill).fit(X, y)


def test_stop_keeps_the_model(data):
    """`stop` finishes early with what was learned."""
    X, y = data
    est = make(epochs=10**6, tol=None)
    with est.start(X, y) as run:
        run.stop()
        assert run.wait(30).state is RunState.FINISHED
    assert est.coef_.shape == (1, 6)


def test_progress_is_told_of_the_run(data):
    """A function given as `progress` sees statuses, the last one final."""
    seen: list[RunStatus] = []
    make(epochs=3, tol=None, progress=seen.append).fit(*data)
    assert seen[-1].state is RunState.FINISHED
    assert seen[-1].epoch == 3


def _threads() -> set[threading.Thread]:
    """Return the threads that are not joblib's, which stay for a while after a search."""
    return {thread for thread in threading.enumerate() if "loky" not in type(thread).__module__ + thread.name}


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    """Return a folder for temporary files that nobody else uses."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_nothing_is_left_behind(data, temporary):
    """After a fit no thread and no temporary folder of the run is left."""
    before = _threads()
    make(epochs=2).fit(*data, validation=data)
    assert _threads() <= before
    assert list(temporary.iterdir()) == []


def test_local_processes_train_from_arrays(data, tmp_path, temporary):
    """The local backend gives the model that threads give, and removes the arrays' copy."""
    X, y = data
    backend = cirrus.LocalBackend(root=tmp_path / "home")
    est = make(epochs=5, tol=None, backend=backend).fit(X, y)
    assert np.array_equal(est.coef_, make(epochs=5, tol=None).fit(X, y).coef_)
    assert [summary.model for summary in cirrus.list_runs(backend.root)] == ["logistic"]
    assert list(temporary.iterdir()) == []


def test_local_processes_train_from_datasets_in_memory(data, tmp_path, temporary):
    """A dataset that only this process can read is copied for workers that are others."""
    X, y = data
    backend = cirrus.LocalBackend(root=tmp_path / "home")
    est = make(epochs=2, tol=None, backend=backend)
    est.fit(cirrus.load_arrays(X, y, random_state=0), validation=cirrus.load_arrays(X, y))
    assert est.history_[-1].validation_loss is not None
    assert list(temporary.iterdir()) == []


def test_a_run_keeps_its_datasets(data):
    """A dataset in memory that nobody else holds lives as long as the run over it."""
    est = make(epochs=200, tol=None)
    run = est.start(cirrus.load_arrays(*data, random_state=0))
    gc.collect()
    assert run.wait().state is RunState.FINISHED


# scikit-learn's machinery.


def test_works_in_pipelines_searches_and_cross_validation(data):
    """The estimator is one more scikit-learn classifier, also in other processes."""
    X, y = data
    pipeline = make_pipeline(StandardScaler(), make(epochs=20))
    assert pipeline.fit(X, y).score(X, y) > 0.8
    assert cross_val_score(make(epochs=20), X, y, cv=2, n_jobs=2).min() > 0.75
    search = GridSearchCV(make(epochs=3, n_workers=1), {"l1": [0.1, 1e6]}, cv=2).fit(X, y)
    assert search.best_params_ == {"l1": 0.1}


def test_clone_and_pickle_keep_what_they_should(data):
    """A clone has the parameters alone, a pickle the model too."""
    X, y = data
    est = make(l2=0.5, epochs=3).fit(X, y)
    copy = clone(est)
    assert copy.get_params() == est.get_params()
    assert not hasattr(copy, "coef_")
    loaded = pickle.loads(pickle.dumps(est))
    assert np.array_equal(loaded.predict_proba(X), est.predict_proba(X))
    assert np.array_equal(loaded.partial_fit(X, y).coef_, est.partial_fit(X, y).coef_)


# Errors.


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"optimizer": "lbfgs"}, "optimizer"),
        ({"batch_size": 0}, "batch_size"),
        ({"mode": "mean"}, "mode"),
        ({"staleness": -1}, "staleness"),
        ({"class_weight": "even"}, "class_weight"),
        ({"class_weight": {1: -1.0}}, "class_weight"),
        ({"class_weight": 3}, "class_weight"),
        ({"class_weight": {"yes": 3.0}}, "class_weight"),
        ({"fit_intercept": "no"}, "fit_intercept"),
        ({"warm_start": 1}, "warm_start"),
        ({"tol": -1.0}, "tol"),
        ({"backend": "cluster"}, "backend"),
        ({"backend": "aws"}, "backend"),
        ({"progress": "yes"}, "progress"),
        ({"early_stopping": True}, "early_stopping"),
    ],
)
def test_wrong_parameters_are_named(data, params, field):
    """`fit` refuses a parameter that cannot work, by name; making the estimator does not."""
    est = make(**params)
    with pytest.raises(ConfigError) as caught:
        est.fit(*data)
    assert caught.value.field == field


def test_datasets_bring_their_own_labels_and_weights(data):
    """Labels or weights beside a dataset are a mistake."""
    dataset = cirrus.load_arrays(*data)
    with pytest.raises(ConfigError, match="y: must be None"):
        make().fit(dataset, data[1])
    with pytest.raises(ConfigError, match="sample_weight: must be None"):
        make().fit(dataset, sample_weight=np.ones(400))


def test_classes_have_to_be_two_or_more(data):
    """One label, and numbers that are no classes, are refused, for arrays and datasets."""
    X, y = data
    for labels in (np.zeros(400), np.linspace(0.0, 1.0, 400)):
        with pytest.raises(ValueError, match="class|label"):
            make().fit(X, labels)
    with pytest.raises(DataError, match="one class"):
        make().fit(cirrus.load_arrays(X, np.zeros(400)))
    many = np.random.default_rng(0).normal(size=(1500, 2))
    with pytest.raises(DataError, match="too many different numbers"):
        make().fit(cirrus.load_arrays(many, np.linspace(0.0, 1.0, 1500)))


def test_datasets_have_to_fit_the_model(data):
    """A wider dataset or strange labels are refused; a narrower one has zeros where it ends."""
    X, y = data
    est = make(epochs=2).fit(cirrus.load_arrays(X, y))
    with pytest.raises(DataError, match="n_features=6"):
        est.predict(cirrus.load_arrays(np.hstack([X, X]), y))
    with pytest.raises(DataError, match="none of the classes"):
        est.score(cirrus.load_arrays(X, y + 1))
    narrow = cirrus.load_arrays(X[:, :4], y, shuffle=False)
    padded = np.hstack([X[:, :4], np.zeros((400, 2))])
    np.testing.assert_allclose(est.decision_function(narrow), est.decision_function(padded), rtol=1e-5)


def test_validation_has_to_fit_the_training_data(data):
    """Validation data needs the same features and labels."""
    X, y = data
    with pytest.raises(ValueError, match="features"):
        make().fit(X, y, validation=(X[:, :2], y))
    with pytest.raises(DataError, match="none of the classes"):
        make().fit(X, y, validation=(X, y + 5))
    with pytest.raises(ConfigError, match="validation"):
        make().fit(X, y, validation=X)
