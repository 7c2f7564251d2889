"""Logistic regression as pure functions: right gradients, stable losses, honest weights."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cirrus.chunks import Block
from cirrus.config import ModelConfig
from cirrus.errors import ConfigError
from cirrus.models import LogisticModel, create_model


def random_block(seed: int, *, n_rows: int = 40, n_features: int = 12, weighted: bool = False) -> Block:
    """Return rows of about four nonzeros; some rows are empty."""
    rng = np.random.default_rng(seed)
    present = rng.random((n_rows, n_features)) < 0.35
    present[0] = False
    indptr = np.concatenate([[0], np.cumsum(present.sum(1))])
    indices = np.nonzero(present)[1].astype(np.uint32) * 3
    values = rng.normal(size=len(indices)).astype(np.float32)
    labels = rng.integers(0, 2, n_rows).astype(np.float32)
    weights = rng.random(n_rows).astype(np.float32) * 3 if weighted else None
    return Block.from_csr(indptr, indices, values, labels, weights)


def random_parameters(model: LogisticModel, block: Block, seed: int = 0) -> dict[str, np.ndarray]:
    """Return normal values for every row that the block touches."""
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=(len(ids), 1)).astype(np.float32) for name, ids in model.ids(block).items()}


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("class_weight", [None, (0.5, 4.0)])
def test_gradient_is_the_derivative_of_the_loss(fit_intercept, weighted, class_weight):
    """The gradient of every parameter is the slope of `loss_sum`, by finite differences."""
    model = LogisticModel(fit_intercept=fit_intercept, class_weight=class_weight)
    block = random_block(1, weighted=weighted)
    parameters = random_parameters(model, block)
    gradients = model.gradient(parameters, block)
    assert set(gradients.values) == set(parameters)
    step = 2.0**-7
    for name, values in parameters.items():
        for row in range(len(values)):
            sides = []
            for sign in (1, -1):
                moved = {key: value.copy() for key, value in parameters.items()}
                moved[name][row, 0] += np.float32(sign * step)
                sides.append(model.loss(moved, block).loss_sum)
            slope = (sides[0] - sides[1]) / (2 * step)
            assert gradients.values[name][row, 0] == pytest.approx(slope, rel=2e-3, abs=2e-3)


def test_gradient_and_loss_report_the_same_sums():
    """`gradient` and `loss` agree on loss and weight, for the same parameters and rows."""
    model = LogisticModel(class_weight=(1.0, 2.5))
    block = random_block(2, weighted=True)
    parameters = random_parameters(model, block)
    gradients, loss = model.gradient(parameters, block), model.loss(parameters, block)
    assert gradients.loss_sum == loss.loss_sum
    assert gradients.weight_sum == loss.weight_sum


def test_zero_parameters_cost_log_two_a_row():
    """With all parameters 0 every row costs log 2, and a decision of 0 counts as the negative class."""
    model = LogisticModel()
    block = random_block(3)
    zeros = {name: np.zeros((len(ids), 1), np.float32) for name, ids in model.ids(block).items()}
    loss = model.loss(zeros, block)
    assert loss.loss_sum == pytest.approx(block.n_rows * np.log(2))
    assert loss.weight_sum == block.n_rows
    assert loss.metrics["accuracy"] == np.count_nonzero(block.labels == 0)


@given(exponent=st.floats(-300, 300), positive=st.booleans())
@settings(deadline=None)
def test_loss_is_stable_for_any_decision(exponent, positive):
    """Decisions of any size give the exact loss and a gradient in [-1, 1]: nothing overflows."""
    model = LogisticModel(fit_intercept=False)
    block = Block.from_csr(
        np.array([0, 1]), np.array([5], np.uint32), None, np.array([float(positive)], np.float32), None
    )
    weight = np.float32(exponent)
    gradients = model.gradient({"weights": np.array([[weight]])}, block)
    decision = float(weight)
    expected = np.logaddexp(0.0, -decision if positive else decision)
    assert gradients.loss_sum == pytest.approx(expected, rel=1e-12, abs=1e-300)
    error = gradients.values["weights"][0, 0]
    assert -1.0 <= error <= 1.0
    assert error <= 0 if positive else error >= 0


def test_a_row_of_weight_two_counts_as_two_rows():
    """Weights and repeated rows give the same float32 gradient, to the bit."""
    model = LogisticModel()
    rng = np.random.default_rng(4)
    dense = rng.normal(size=(30, 6)).astype(np.float32)
    labels = rng.integers(0, 2, 30).astype(np.float32)
    counts = rng.integers(0, 5, 30)

    def block_of(rows: np.ndarray, weights: np.ndarray | None) -> Block:
        ids = np.tile(np.arange(6, dtype=np.uint32), len(rows))
        return Block.from_csr(np.arange(len(rows) + 1) * 6, ids, dense[rows].ravel(), labels[rows], weights)

    weighted = block_of(np.arange(30), counts.astype(np.float32))
    repeated = block_of(rng.permutation(np.repeat(np.arange(30), counts)), None)
    parameters = random_parameters(model, weighted)
    one, other = model.gradient(parameters, weighted), model.gradient(parameters, repeated)
    assert one.weight_sum == other.weight_sum == counts.sum()
    assert one.loss_sum == pytest.approx(other.loss_sum, rel=1e-14)
    for name in parameters:
        assert np.array_equal(one.values[name].astype(np.float32), other.values[name].astype(np.float32))


def test_labels_may_be_any_two_numbers():
    """The dataset's own labels stand for the classes: -1 and 1 give what 0 and 1 give."""
    block = random_block(5)
    indptr, indices, values = block.to_csr()
    signed = Block.from_csr(indptr, indices, values, block.labels * 2 - 1, None)
    plain, other = LogisticModel(), LogisticModel(classes=(-1.0, 1.0))
    parameters = random_parameters(plain, block)
    assert plain.gradient(parameters, block).loss_sum == other.gradient(parameters, signed).loss_sum


def test_tables_are_a_weight_a_feature_and_an_intercept_apart():
    """The intercept is a table of its own never regularised, absent without `fit_intercept`."""
    weights, intercept = LogisticModel().tables(1000)
    assert (weights.name, weights.n_rows, weights.width, weights.regularised) == ("weights", 1000, 1, True)
    assert (intercept.name, intercept.n_rows, intercept.regularised) == ("intercept", 1, False)
    assert [table.name for table in LogisticModel(fit_intercept=False).tables(7)] == ["weights"]


def test_model_is_created_from_its_config():
    """A config as it comes back from JSON names the model and its parameters."""
    config = ModelConfig(
        name="logistic", params={"classes": [1, 2], "fit_intercept": False, "class_weight": [1, 3]}
    )
    model = create_model(config)
    assert isinstance(model, LogisticModel)
    assert (model.classes, model.fit_intercept, model.class_weight) == ((1.0, 2.0), False, (1.0, 3.0))


@pytest.mark.parametrize(
    ("name", "params", "field"),
    [
        ("tree", {}, "model"),
        ("logistic", {"depth": 3}, "model"),
        ("logistic", {"classes": [1, 1]}, "classes"),
        ("logistic", {"classes": "ab"}, "classes"),
        ("logistic", {"classes": [0, float("nan")]}, "classes"),
        ("logistic", {"fit_intercept": 1}, "fit_intercept"),
        ("logistic", {"class_weight": [1.0]}, "class_weight"),
        ("logistic", {"class_weight": [1.0, -1.0]}, "class_weight"),
    ],
)
def test_bad_model_configs_name_the_field(name, params, field):
    """A model or parameter that cannot work is refused by name."""
    with pytest.raises(ConfigError) as caught:
        create_model(ModelConfig(name=name, params=params))
    assert caught.value.field == field
