"""Every model's gradient is the slope of its loss, for any data and parameters: by finite differences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cirrus.chunks import Block
from cirrus.config import ModelConfig
from cirrus.models import Model, create_model

N_FEATURES = 12
STEP = 2.0**-8

#: Of users and items among the features.
RATINGS = {"n_users": 5, "n_items": 7, "l2": 0.0}

#: Model, its parameters, and what labels are.
CASES: list[tuple[str, dict[str, Any], str]] = [
    ("logistic", {}, "two"),
    ("logistic", {"fit_intercept": False, "class_weight": [0.5, 4.0]}, "two"),
    ("softmax", {"classes": [0, 1, 2]}, "three"),
    ("softmax", {"classes": [0, 1, 2], "fit_intercept": False, "class_weight": [1, 2, 0.5]}, "three"),
    ("softmax", {"classes": [0, 1]}, "two"),
    ("svm", {"loss": "squared_hinge"}, "two"),
    ("svm", {"loss": "hinge", "class_weight": [0.5, 4.0]}, "two"),
    ("svm", {"loss": "squared_hinge", "classes": [0, 1, 2]}, "three"),
    ("svm", {"loss": "hinge", "classes": [0, 1, 2], "fit_intercept": False}, "three"),
    ("factorization_machine", {"n_factors": 3, "class_weight": [0.5, 4.0]}, "two"),
    ("factorization_machine", {"n_factors": 2, "task": "regression"}, "numbers"),
    ("matrix_factorization", {**RATINGS, "n_factors": 3}, "ratings"),
    ("matrix_factorization", {**RATINGS, "n_factors": 1, "scale": 2.0, "mean": 3.0}, "ratings"),
    ("linear", {}, "numbers"),
    ("linear", {"fit_intercept": False, "target_scale": 4.0, "feature_scale": 0.5}, "numbers"),
]


def random_block(seed: int, labels: str, *, weighted: bool = False, dense: bool = False) -> Block:
    """Return rows of normal values, some of them empty unless they are dense."""
    rng = np.random.default_rng(seed)
    n_rows = 15
    present = rng.random((n_rows, N_FEATURES)) < (1.0 if dense else 0.35)
    if labels == "ratings":
        # A user and an item, but for those that nobody knows.
        present[:] = False
        present[np.arange(n_rows), rng.integers(0, RATINGS["n_users"], n_rows)] = dense or rng.random() < 0.8
        present[np.arange(n_rows), rng.integers(RATINGS["n_users"], N_FEATURES, n_rows)] = True
    indptr = np.concatenate([[0], np.cumsum(present.sum(1))])
    indices = np.nonzero(present)[1].astype(np.uint32)
    values = rng.normal(size=len(indices)).astype(np.float32)
    if labels in ("numbers", "ratings"):
        y = rng.normal(size=n_rows)
    else:
        y = rng.integers(0, {"two": 2, "three": 3}[labels], n_rows)
    weights = rng.random(n_rows).astype(np.float32) * 3 if weighted else None
    return Block.from_csr(indptr, indices, values, y.astype(np.float32), weights)


def random_parameters(model: Model, block: Block, seed: int) -> dict[str, np.ndarray]:
    """Return normal values for every row that the block touches."""
    rng = np.random.default_rng(seed)
    widths = {table.name: table.width for table in model.tables(N_FEATURES)}
    parameters = {
        name: rng.normal(size=(len(ids), widths[name])).astype(np.float32) * 0.5
        for name, ids in model.ids(block).items()
    }
    for table in model.tables(N_FEATURES):
        if table.optimizer is not None:  # what gradients do not change stays as it begins
            parameters[table.name][:] = table.initial_mean
    return parameters


def loss_at(model: Model, parameters: Mapping[str, np.ndarray], block: Block, name: str, at: Any, by: float):
    """Return the summed loss with one parameter moved."""
    moved = {key: value.copy() for key, value in parameters.items()}
    moved[name][at] += np.float32(by)
    return model.loss(moved, block).loss_sum


@pytest.mark.parametrize(("name", "params", "labels"), CASES)
@settings(deadline=None, max_examples=8)
@given(seed=st.integers(0, 10_000), weighted=st.booleans(), dense=st.booleans())
def test_gradient_is_the_slope_of_the_loss(name, params, labels, seed, weighted, dense):
    """Moving any parameter a little changes `loss_sum` by its gradient times the move."""
    model = create_model(ModelConfig(name=name, params=params))
    block = random_block(seed, labels, weighted=weighted, dense=dense)
    parameters = random_parameters(model, block, seed)
    found = model.gradient(parameters, block)
    here = model.loss(parameters, block)
    assert found.loss_sum == pytest.approx(here.loss_sum, rel=1e-9)
    assert found.weight_sum == pytest.approx(here.weight_sum)
    assert set(found.values) == set(parameters)
    fixed = {table.name for table in model.tables(N_FEATURES) if table.optimizer is not None}
    for table, values in parameters.items():
        if table in fixed:
            assert not found.values[table].any()
            continue
        assert found.values[table].shape == values.shape
        for at in np.ndindex(*values.shape):
            right = loss_at(model, parameters, block, table, at, STEP) - here.loss_sum
            left = here.loss_sum - loss_at(model, parameters, block, table, at, -STEP)
            # Of a loss with a kink, the slope may be either side's.
            low, high = sorted((left / STEP, right / STEP))
            slack = 5e-3 * max(1.0, abs(low), abs(high))
            assert low - slack <= found.values[table][at] <= high + slack


@pytest.mark.parametrize(("name", "params", "labels"), CASES)
def test_rows_of_no_features_are_scored(name, params, labels):
    """A minibatch of empty rows has a loss and a prediction, and touches no feature."""
    model = create_model(ModelConfig(name=name, params=params))
    block = random_block(0, labels)
    empty = Block.from_csr(np.zeros(4, np.intp), np.zeros(0, np.uint32), None, block.labels[:3])
    parameters = random_parameters(model, empty, 0)
    assert len(model.predict(parameters, empty)) == 3
    assert np.isfinite(model.gradient(parameters, empty).loss_sum)
