"""Saved models: they come back whole, replace each other safely, and hostile ones are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import cirrus
from cirrus.errors import CorruptDataError, NotFoundError
from cirrus.frontend.model_files import may_hold_model
from cirrus.storage import drop_memory_store


def make(**params) -> cirrus.LogisticRegression:
    """Return an estimator on threads of this process."""
    return cirrus.LogisticRegression(**{"backend": "inline", "random_state": 0, "epochs": 5, **params})


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    """Return 100 rows of 4 features and two labels."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(100, 4))
    return X, np.where(X[:, 0] + 0.1 * rng.normal(size=100) > 0, "yes", "no")


@pytest.fixture(scope="module")
def saved_once(data, tmp_path_factory) -> Path:
    """Return a saved model."""
    folder = tmp_path_factory.mktemp("models") / "model"
    make(l1=0.5, class_weight={"yes": 2.0}, optimizer_params={"beta": 2}).fit(*data).save(folder)
    return folder


@pytest.fixture
def saved(saved_once, tmp_path) -> Path:
    """Return a copy of a saved model, to be damaged."""
    return Path(shutil.copytree(saved_once, tmp_path / "model"))


def test_a_model_comes_back_whole(data, saved):
    """Predictions, labels, parameters and history survive."""
    X, y = data
    est = make(l1=0.5, class_weight={"yes": 2.0}, optimizer_params={"beta": 2}).fit(X, y)
    loaded = cirrus.load_model(saved)
    assert np.array_equal(loaded.predict_proba(X), est.predict_proba(X))
    assert loaded.classes_.tolist() == ["no", "yes"]
    assert loaded.n_features_in_ == 4
    assert loaded.n_iter_ == 5
    assert len(loaded.history_) == len(est.history_)
    for name in ("l1", "class_weight", "optimizer_params", "epochs"):
        assert loaded.get_params()[name] == est.get_params()[name]


def test_training_goes_on_from_a_saved_model(data, saved):
    """The optimizer's state is saved too: going on is as if nothing had happened."""
    X, y = data
    params = {"l1": 0.5, "class_weight": {"yes": 2.0}, "optimizer_params": {"beta": 2}}
    est = make(**params).fit(X, y).partial_fit(X, y)
    loaded = cirrus.load_model(saved).set_params(backend="inline", random_state=0).partial_fit(X, y)
    assert np.array_equal(loaded.coef_, est.coef_)


@pytest.mark.parametrize("labels", [[0, 1], [-2.0, 3.0], [False, True], ["a", "b"]])
def test_labels_keep_their_kind(data, labels):
    """Whole numbers, numbers, truth values and text come back as they were."""
    X, y = data
    est = make(epochs=1).fit(X, np.array(labels)[(y == "yes").astype(int)])
    try:
        est.save("memory://test-labels/model")
        loaded = cirrus.load_model("memory://test-labels/model")
    finally:
        drop_memory_store("test-labels")
    assert loaded.classes_.tolist() == labels
    assert loaded.classes_.dtype.kind == est.classes_.dtype.kind


def test_saving_again_replaces_the_model(data, saved):
    """There is one model at a URL, and nothing of the one before."""
    X, y = data
    before = set(saved.iterdir())
    est = make(epochs=2).fit(X, y)
    est.save(saved)
    assert cirrus.load_model(saved).n_iter_ == 2
    assert len(list(saved.iterdir())) == len(before)


def test_an_unfitted_estimator_is_not_saved(tmp_path):
    """There is nothing to save before `fit`."""
    with pytest.raises(ValueError, match="not fitted"):
        make().save(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_model_is_not_found(tmp_path):
    """The error says what was looked for."""
    with pytest.raises(NotFoundError, match="no saved model"):
        cirrus.load_model(tmp_path)


def _changed(raw: dict, path: str, value: object) -> bytes:
    target = raw
    *parents, last = path.split(".")
    for name in parents:
        target = target[name]
    target[last] = value
    return json.dumps(raw).encode()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("format", "pickle"),
        ("version", 99),
        ("parameters", "../../etc"),
        ("parameters", "parameters-/.."),
        ("parameters", 3),
        ("card", None),
        ("card.estimator", "os.system"),
        ("card.params", []),
        ("card.params", {"shell": True}),
        ("card.params.checkpoint_url", "/etc/cron.d"),
        ("card.params.resume_from", "elsewhere"),
        ("card.params.backend", "inline"),
        ("card.params.random_state", 1),
        ("card.params.class_weight", [[[], 1]]),
        ("card.params.class_weight", [1, 2]),
        ("card.classes", ["a"]),
        ("card.classes", [{}, []]),
        ("card.n_features", 5),
        ("card.n_features", "4"),
        ("card.encoding", []),
        ("card.history", [{"seconds": "x"}]),
    ],
)
def test_hostile_descriptions_are_refused(saved, path, value):
    """A model.json that was tampered with is one clear error, whatever is wrong with it."""
    raw = json.loads((saved / "model.json").read_bytes())
    (saved / "model.json").write_bytes(_changed(raw, path, value))
    with pytest.raises(CorruptDataError, match="model"):
        cirrus.load_model(saved)


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"null", b"\xff\xfe", b"[" * 100_000])
def test_descriptions_that_are_not_json_are_refused(saved, text):
    """A truncated or foreign model.json is one clear error."""
    (saved / "model.json").write_bytes(text)
    with pytest.raises(CorruptDataError, match="model.json"):
        cirrus.load_model(saved)


def test_damaged_parameters_are_refused(saved):
    """A flipped bit in the parameters is found by its checksum, a missing file by its name."""
    (part,) = saved.glob("parameters-*/part-*.bin")
    data = bytearray(part.read_bytes())
    data[-1] ^= 1
    part.write_bytes(bytes(data))
    with pytest.raises(CorruptDataError):
        cirrus.load_model(saved)
    part.unlink()
    with pytest.raises(NotFoundError):
        cirrus.load_model(saved)


def test_only_a_model_or_nothing_is_overwritten_for_others(saved, tmp_path):
    """A place that somebody else chose must be empty or hold a model: other files are never mixed with it."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    for good in (saved, tmp_path / "empty", tmp_path / "none" / "yet", "memory://test-no-model/x"):
        assert may_hold_model(str(good))
    (saved / "model.json").write_text("{}")
    for bad in (saved, tmp_path / "full", tmp_path / "full" / "file", "/", "ftp://host/x", ""):
        assert not may_hold_model(str(bad))
