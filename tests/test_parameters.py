"""No parameter is accepted and ignored: signatures are walked, and a new parameter without a test fails here.

Of estimators each parameter is tried: another value gives shards and workers another config, or is refused by
name. That they heed each field of the config is tested elsewhere; :data:`CONFIG_FIELDS` says where, as
:data:`ELSEWHERE` does for what backends, searches, pruners, scalers and a few others accept.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stand_ins import eventually
from test_aws_deployment import make_deployment
from test_preprocessing import in_chunks

import cirrus
from cirrus import preprocessing
from cirrus.config import RunConfig, StopConfig
from cirrus.errors import ConfigError

TESTS = Path(__file__).parent

# Estimators.

ESTIMATORS = (
    cirrus.LogisticRegression,
    cirrus.LinearRegression,
    cirrus.LinearSVC,
    cirrus.SoftmaxRegression,
    cirrus.FactorizationMachine,
    cirrus.MatrixFactorization,
    cirrus.LatentDirichletAllocation,
    cirrus.KMeans,
)
#: Another value than the default, and what it takes to try it.
OTHER: dict[str, dict[str, Any]] = {
    "batch_size": {"batch_size": 7},
    "checkpoint_seconds": {"checkpoint_seconds": 5.0},
    "checkpoint_url": {"checkpoint_url": "memory://elsewhere"},
    "class_weight": {"class_weight": {0: 2.0}},
    "compression": {"compression": "lz4"},
    "doc_topic_prior": {"doc_topic_prior": 0.7},
    "early_stopping": {"early_stopping": True},
    "epochs": {"epochs": 3},
    "factor_l2": {"factor_l2": 0.5},
    "fit_intercept": {"fit_intercept": False},
    "gradient_threshold": {"gradient_threshold": 0.1},
    "initial_scale": {"initial_scale": 0.3},
    "l1": {"l1": 0.7},
    "l2": {"l2": 0.9},
    "learning_decay": {"learning_decay": 0.9},
    "learning_offset": {"learning_offset": 3.0},
    "learning_rate": {"learning_rate": 0.033},
    "loss": {"loss": "hinge"},
    "max_cost": {"max_cost": 2.0},
    "max_seconds": {"max_seconds": 9.0},
    "mode": {"mode": "average"},
    "n_clusters": {"n_clusters": 3},
    "n_factors": {"n_factors": 5},
    "n_shards": {"n_shards": 2},
    "n_topics": {"n_topics": 4},
    "n_workers": {"n_workers": 3},
    "nonfinite_gradients": {"nonfinite_gradients": "fail"},
    "on_client_loss": {"on_client_loss": "continue"},
    "optimizer": {"optimizer": "momentum"},
    "optimizer_params": {"optimizer": "momentum", "optimizer_params": {"momentum": 0.5}},
    "random_state": {"random_state": 8},
    "staleness": {"staleness": 3},
    "target_loss": {"target_loss": 0.3},
    "task": {"task": "regression"},
    "tol": {"tol": 0.5},
    "topic_word_prior": {"topic_word_prior": 0.7},
    "wire_dtype": {"wire_dtype": "float16"},
    "worker_memory_mb": {"worker_memory_mb": 512},
}
#: These say where and how a run is run, and not what it is; each with the test that it acts.
NOT_IN_THE_CONFIG = {
    "backend": "test_estimator.py::test_local_processes_train_from_arrays",
    "progress": "test_estimator.py::test_progress_is_told_of_the_run",
    "resume_from": "test_estimator.py::test_checkpoints_can_be_resumed",
    "warm_start": "test_estimator.py::test_warm_start_goes_on_with_the_optimizer_state",
}
#: What differs between any two runs, and what only the client reads again.
OWN_TO_A_RUN = ("run_id", "model_metadata")


class CapturedError(Exception):
    """The config that a run would have had."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        self.config = config


def capture(config: RunConfig) -> RunConfig:
    """Stop before the run begins."""
    raise CapturedError(config)


@functools.cache
def data_of(kind: type) -> tuple[cirrus.Dataset, cirrus.Dataset]:
    """Return rows to train on, and to validate on, of the kind that an estimator wants."""
    rng = np.random.default_rng(0)
    if kind is cirrus.MatrixFactorization:
        with tempfile.NamedTemporaryFile("w", suffix=".csv") as file:
            file.write("".join(f"u{i % 9},i{i % 7},{i % 5}\n" for i in range(120)))
            file.flush()
            dataset = cirrus.load_ratings(file.name, "memory://parameters/ratings", random_state=0)
    elif kind is cirrus.LatentDirichletAllocation:
        counts = rng.integers(0, 3, (120, 9)).astype(float)
        dataset = cirrus.load_arrays(counts, np.zeros(120), random_state=0)
    else:
        X, y = rng.normal(size=(120, 4)), rng.integers(0, 2, 120)
        dataset = cirrus.load_arrays(X, y, random_state=0)
    return dataset.split(test_size=0.25, random_state=0)


def config_of(kind: type, params: dict[str, Any]) -> dict[str, Any]:
    """Return what a run of an estimator would be, as shards and workers read it."""
    train, test = data_of(kind)
    backend = cirrus.InlineBackend(dollars_per_hour=1.0).revising(capture)
    estimator = kind(**{"random_state": 7, "backend": backend, **params})
    with pytest.raises(CapturedError) as captured:
        estimator.fit(train, validation=test)
    plain = dataclasses.asdict(captured.value.config)
    return {name: value for name, value in plain.items() if name not in OWN_TO_A_RUN}


CASES = [
    (kind, name)
    for kind in ESTIMATORS
    for name in inspect.signature(kind).parameters
    if name not in NOT_IN_THE_CONFIG
]


@pytest.mark.parametrize(("kind", "name"), CASES, ids=lambda v: v if isinstance(v, str) else v.__name__)
def test_a_parameter_of_an_estimator_acts(kind: type, name: str) -> None:
    """Another value gives another run; one that has no meaning for this estimator is refused by name."""
    other = OTHER[name]
    without = {key: value for key, value in other.items() if key != name}
    refused = None
    try:
        changed = config_of(kind, other)
    except ConfigError as error:
        refused = error.field
    if refused is None:
        assert changed != config_of(kind, without)
    else:
        assert refused in other


# What is tested elsewhere.

#: Fields of the config that every shard and worker gets, each with the test that they heed it.
CONFIG_FIELDS = {
    "run_id": "test_backends.py::test_a_run_id_is_used_once",
    "model": "test_gradients.py::test_gradient_is_the_slope_of_the_loss",
    "tables": "test_ps_client.py::test_training_equals_a_simulation",
    "train_url": "test_worker_handler.py::test_data_that_went_away_is_an_error",
    "train_fingerprint": "test_damage.py::test_a_run_notices_that_its_dataset_was_replaced",
    "validation_url": "test_worker_handler.py::test_the_evaluator_reports",
    "validation_fingerprint": "test_worker_handler.py::test_a_validation_set_that_was_replaced_is_refused",
    "n_features": "test_chunks.py::test_boundaries_always_cut_the_whole_table",
    "batch_size": "test_estimator.py::test_history_tells_the_run",
    "leases": "test_planning.py::test_leases_cover_the_dataset_once",
    "stop": "test_ps_coordinator.py::test_limits_end_a_run_in_the_middle",
    "n_workers": "test_estimator.py::test_any_number_of_workers_and_shards_trains",
    "n_shards": "test_estimator.py::test_any_number_of_workers_and_shards_trains",
    "seed": "test_linear_models.py::test_rounds_give_the_same_model_on_any_shards",
    "compression": "test_estimator.py::test_the_wire_may_be_smaller",
    "wire_dtype": "test_estimator.py::test_the_wire_may_be_smaller",
    "mode": "test_averaging.py::test_two_workers_meet_in_the_middle",
    "tls": "test_tls.py::test_nothing_can_be_read_on_the_way",
    "staleness": "test_staleness.py",
    "gradient_threshold": "test_worker_handler.py::test_a_threshold_sends_fewer_rows",
    "nonfinite_gradients": "test_estimator.py::test_nonfinite_gradients_are_skipped_or_fail_the_fit",
    "on_client_loss": "test_client_loss.py::test_workers_finish_a_run_without_a_client",
    "snapshot_seconds": "test_ps_recovery.py::test_shards_may_die_at_any_moment",
    "checkpoint_seconds": "test_ps_life.py::test_checkpoints_are_cut_by_the_clock",
    "checkpoint_url": "test_estimator.py::test_checkpoints_can_be_resumed",
    "resume_url": "test_ps_life.py::test_weights_may_be_taken_without_the_schedule",
    "resume_ledger": "test_ps_recovery.py::test_a_resumed_run_that_dies_begins_at_its_checkpoint",
    "lease_seconds": "test_ps_coordinator.py::test_a_lease_without_progress_expires",
    "generation_seconds": "test_backends.py::test_generations_follow_each_other",
    "worker_memory_mb": "test_aws_deployment.py::test_a_size_without_a_function_names_the_variable",
    "dollars_per_hour": "test_estimator.py::test_a_price_makes_a_cost",
    "worker_prices": "test_ps_coordinator.py::test_the_time_of_workers_costs_and_counts_towards_the_limit",
    "backend": "test_ray.py::test_what_was_killed_goes_on_where_it_was",
    "model_metadata": "test_cli.py::test_a_run_whose_terminal_died_is_attached_and_finished",
    "search": "test_overview.py",
    "trial": "test_dashboard_server.py::test_a_trial_is_one_line_with_one_curve",
    "hyperparameters": "test_overview.py::test_runs_are_listed_from_it_and_from_folders_alike",
}
STOP_FIELDS = {
    "epochs": "test_estimator.py::test_epochs_tol_and_targets_end_a_run",
    "tol": "test_estimator.py::test_epochs_tol_and_targets_end_a_run",
    "target_loss": "test_ps_coordinator.py::test_target_loss_ends_a_run",
    "max_seconds": "test_ps_coordinator.py::test_limits_end_a_run_in_the_middle",
    "max_cost": "test_ps_coordinator.py::test_limits_end_a_run_in_the_middle",
    "max_updates": "test_search.py::test_asha_goes_on_from_models",
    "early_stopping": "test_ps_coordinator.py::test_early_stopping_watches_the_validation_loss",
}
_SEARCH = {
    "max_concurrent": "test_search.py::test_twenty_experiments_at_a_time",
    "max_workers": "test_search.py::test_trials_queue",
    "pruner": "test_search.py::test_asha_goes_on_from_models",
    "scoring": "test_search.py::test_scoring_ranks_trials",
    "refit": "test_search.py::test_several_metrics_are_columns_and_refit_names_the_one_that_ranks",
    "max_seconds": "test_search.py::test_budgets_end_a_search",
    "max_cost": "test_search.py::test_budgets_end_a_search",
    "search_id": "test_search.py::test_the_same_script_goes_on",
    "progress": "test_search.py::test_progress_is_told",
    "estimator": "test_search.py::test_asha_goes_on_from_models",
}
HERE = "test_parameters.py"
_SCALER = {
    "copy": f"{HERE}::test_copy_acts_on_arrays",
    "densify": "test_preprocessing.py::test_scalers_equal_scikit_learns_on_random_sparse_rows",
    "backend": "test_preprocessing.py::test_a_model_of_preprocessed_rows_predicts_raw_ones",
    "n_workers": f"{HERE}::test_workers_and_progress_of_a_step_act",
    "progress": f"{HERE}::test_workers_and_progress_of_a_step_act",
}
#: What accepts parameters, and where each of them is tested.
ELSEWHERE: dict[Any, dict[str, str]] = {
    cirrus.LocalBackend: {
        "root": "test_estimator.py::test_local_processes_train_from_arrays",
        "dollars_per_hour": f"{HERE}::test_the_price_of_a_local_machine_acts",
        "generation_seconds": "test_faults.py::test_workers_may_be_short_lived",
        "keep_runs": "test_housekeeping.py::test_the_local_backend_tidies_up_when_a_run_starts",
        "tls": "test_tls.py::test_backends_encrypt_when_asked_to",
        "commands": "test_backends.py",
    },
    cirrus.InlineBackend: {
        "root": "test_runs.py::test_a_root_that_was_given_keeps_its_runs",
        "dollars_per_hour": "test_estimator.py::test_a_price_makes_a_cost",
        "generation_seconds": f"{HERE}::test_the_lifetime_of_inline_workers_acts",
        "tls": "test_tls.py::test_backends_encrypt_when_asked_to",
        "parts": "test_runs.py::test_a_crashed_shard_comes_back",
    },
    cirrus.AWSBackend: {
        "config": "test_aws_deployment.py",
        "generation_seconds": "test_aws_runs.py::test_generations_follow_each_other_exactly",
        "instance_type": "test_aws_cost.py",
        "shards_per_server": "test_aws_servers.py",
        "spot": "test_aws_cost.py::test_spot_servers_cost_what_they_cost_now",
        "tls": f"{HERE}::test_every_backend_hands_tls_on",
        "prices": "test_aws_cost.py::test_a_table_can_be_replaced",
    },
    cirrus.RayBackend: {
        "address": "test_ray.py::test_no_cluster_is_told_at_once",
        "root": "test_ray.py::test_nothing_of_a_run_stays",
        "worker_cpus": "test_ray.py::test_fewer_workers_than_wanted_go_on",
        "shard_cpus": "test_ray.py::test_cost_is_the_share_of_the_nodes",
        "shard_memory_mb": "test_ray.py::test_a_cluster_that_is_too_small_fails_the_run",
        "dollars_per_node_hour": "test_ray.py::test_cost_is_the_share_of_the_nodes",
        "generation_seconds": "test_ray.py::test_a_run_outlives_its_client_and_is_taken_over",
        "client_lost_seconds": "test_ray.py::test_a_run_without_a_client_ends_in_time",
        "wait_seconds": "test_ray.py::test_a_cluster_that_is_too_small_fails_the_run",
        "tls": f"{HERE}::test_every_backend_hands_tls_on",
        "runtime_env": "test_ray.py::test_a_search_runs_as_a_task_that_starts_runs",
    },
    cirrus.AshaPruner: {
        "reduction_factor": "test_schedules.py::test_rungs_are_powers_up_to_the_whole",
        "min_fraction": "test_schedules.py::test_rungs_are_powers_up_to_the_whole",
    },
    cirrus.MedianPruner: {
        "min_epochs": "test_schedules.py::test_nobody_is_given_up_too_early",
        "min_trials": "test_schedules.py::test_nobody_is_given_up_too_early",
    },
    cirrus.GridSearch: {**_SEARCH, "param_grid": "test_search.py::test_trials_queue"},
    cirrus.RandomSearch: {
        **_SEARCH,
        "distributions": "test_search.py::test_random_draws_are_tried",
        "n_iter": "test_search.py::test_random_draws_are_tried",
        "random_state": "test_search.py::test_random_draws_are_tried",
    },
    cirrus.OptunaSearch: {
        **_SEARCH,
        "space": "test_search.py::test_a_sampler_says_what_to_try",
        "n_trials": "test_search.py::test_a_sampler_says_what_to_try",
        "sampler": "test_search.py::test_any_sampler_does",
        "random_state": "test_search.py::test_a_sampler_says_what_to_try",
    },
    cirrus.load_arrays: {
        "X": "test_datasets.py::test_arrays_of_any_kind_are_stored_as_they_are",
        "y": "test_datasets.py::test_text_labels_and_weights",
        "url": "test_datasets.py::test_a_failed_load_leaves_the_old_dataset",
        "sample_weight": "test_datasets.py::test_text_labels_and_weights",
        "shuffle": "test_datasets.py::test_arrays_are_shuffled_by_seed",
        "random_state": "test_datasets.py::test_arrays_are_shuffled_by_seed",
        "folder": "test_datasets.py::test_datasets_without_url_go_when_nobody_holds_them",
        "progress": "test_load_refusals.py::test_arrays_tell_how_far_they_are",
    },
    preprocessing.MinMaxScaler: {
        **_SCALER,
        "feature_range": "test_preprocessing.py::test_min_max_scaler_equals_scikit_learns",
        "clip": "test_preprocessing.py::test_clip_and_other_data",
    },
    preprocessing.StandardScaler: {
        **_SCALER,
        "with_mean": "test_preprocessing.py::test_standard_scaler_equals_scikit_learns",
        "with_std": "test_preprocessing.py::test_standard_scaler_equals_scikit_learns",
    },
    preprocessing.FeatureHasher: {
        **{name: test for name, test in _SCALER.items() if name != "copy"},
        "n_features": "test_preprocessing.py::test_feature_hasher_equals_scikit_learns",
        "input_type": f"{HERE}::test_the_hasher_takes_other_input_as_scikit_learn_does",
        "dtype": f"{HERE}::test_the_hasher_takes_other_input_as_scikit_learn_does",
        "alternate_sign": "test_preprocessing.py::test_feature_hasher_equals_scikit_learns",
        "columns": "test_preprocessing.py::test_feature_hasher_equals_scikit_learns",
    },
}


@functools.cache
def texts_of(file: str) -> dict[str, str]:
    """Return the tests of a file by name, as text, decorators included."""
    source = (TESTS / file).read_text()
    lines = source.splitlines()
    found = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            start = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            found[node.name] = "\n".join(lines[start - 1 : node.end_lineno])
    return found


#: These tests give parameters by position, by what they make of them, or through a helper of theirs.
BY_OTHER_WORDS = {
    "config", "param_grid", "distributions", "url", "n_features", "train_url", "train_fingerprint", "seed",
    "model_metadata", "max_updates",
}  # fmt: skip


def check_there_is(test: str, parameter: str) -> None:
    """Check that a test that is named here exists, and names the parameter that it is said to try."""
    file, _, name = test.partition("::")
    assert texts_of(file)
    assert not name or name in texts_of(file), f"there is no test {test}"
    text = texts_of(file)[name] if name else (TESTS / file).read_text()
    assert parameter in text or parameter in BY_OTHER_WORDS, f"{test} does not try {parameter}"


@pytest.mark.parametrize("owner", ELSEWHERE, ids=lambda owner: owner.__name__)
def test_every_parameter_has_a_test(owner: Any) -> None:
    """Whoever adds a parameter has to say which test shows that it acts."""
    assert set(inspect.signature(owner).parameters) == set(ELSEWHERE[owner])
    for parameter, test in ELSEWHERE[owner].items():
        check_there_is(test, parameter)


def test_every_field_of_the_config_has_a_test() -> None:
    """The same for what shards and workers are told."""
    assert {field.name for field in dataclasses.fields(RunConfig)} == set(CONFIG_FIELDS)
    assert {field.name for field in dataclasses.fields(StopConfig)} == set(STOP_FIELDS)
    for parameter, test in {**CONFIG_FIELDS, **STOP_FIELDS, **NOT_IN_THE_CONFIG}.items():
        check_there_is(test, parameter)


def test_nothing_public_is_left_out() -> None:
    """Every public class or function that takes parameters is in one of the tables, or says why not."""
    loaders = {name for name in cirrus.__all__ if name.startswith("load_") and name != "load_arrays"}
    # Tested parameter by parameter in test_load_parameters.py, but for the one that opens a model.
    known = {kind.__name__ for kind in (*ESTIMATORS, *ELSEWHERE)} | loaders
    # What Cirrus gives and users only read; functions that open, list or wait.
    given = {
        "Dataset", "MetricPoint", "Run", "RunState", "RunStatus", "SearchResults", "SearchState",
        "list_runs", "open_run", "wait",
    }  # fmt: skip
    public = set()
    for name in cirrus.__all__:
        thing = getattr(cirrus, name)
        is_error = inspect.isclass(thing) and issubclass(thing, Exception)
        if (inspect.isclass(thing) and not is_error) or inspect.isfunction(thing):
            public.add(name)
    assert public - known - given == set()


# What was tested nowhere else.


def rows(n_rows: int = 60) -> cirrus.Dataset:
    """Return a small dataset in memory."""
    X = np.random.default_rng(0).normal(size=(n_rows, 3))
    return cirrus.load_arrays(X, np.arange(n_rows) % 2, random_state=0)


@pytest.mark.parametrize("kind", [preprocessing.MinMaxScaler, preprocessing.StandardScaler])
def test_copy_acts_on_arrays(kind: type) -> None:
    """As in scikit-learn: without a copy, arrays are scaled in place."""
    for copy in (True, False):
        X = np.arange(12.0).reshape(4, 3)
        kind(copy=copy).fit(X).transform(X)
        assert (np.arange(12.0).reshape(4, 3) == X).all() == copy


@pytest.mark.parametrize(
    "make", [preprocessing.MinMaxScaler, preprocessing.StandardScaler, preprocessing.FeatureHasher]
)
def test_workers_and_progress_of_a_step_act(make: Any) -> None:
    """The job over the chunks has as many workers as were asked for, and its progress is told."""
    asked: list[int] = []
    heard: list[Any] = []

    class Watched(cirrus.InlineBackend):
        def job_launcher(self, job_url: str) -> Any:
            launcher = super().job_launcher(job_url)
            invoke = launcher.invoke
            all_begun = threading.Barrier(3)
            begun: set[int] = set()

            def watched(event: Any) -> Any:
                asked.append(event.worker_id)
                if event.worker_id not in begun:
                    begun.add(event.worker_id)
                    all_begun.wait(30)  # else two of them may have done all before the third is asked
                return invoke(event)

            launcher.invoke = watched  # type: ignore[method-assign]
            return launcher

    step = make(n_workers=3, backend=Watched(), progress=heard.append)
    url = f"memory://parameters/{make.__name__}"
    dataset = in_chunks(np.random.default_rng(0).normal(size=(700, 3)), f"{url}/in")
    step.fit_transform(dataset, f"{url}/out")
    assert set(asked) == {0, 1, 2}
    assert heard


def test_the_hasher_takes_other_input_as_scikit_learn_does() -> None:
    """``input_type`` and ``dtype`` mean what they mean there."""
    pairs = [[("a", 2), ("b", 1)], [("a", 1)]]
    made = preprocessing.FeatureHasher(8, input_type="pair", dtype=np.float32).transform(pairs)
    assert made.dtype == np.float32
    as_dicts = preprocessing.FeatureHasher(8).transform([dict(row) for row in pairs])
    assert as_dicts.dtype == np.float64
    np.testing.assert_array_equal(made.toarray(), as_dicts.toarray())
    with pytest.raises(Exception, match="str"):
        preprocessing.FeatureHasher(8, input_type="dict").transform(["a string"])


def test_the_price_of_a_local_machine_acts() -> None:
    """What an hour costs is in the config of every run."""
    for price in (0.0, 2.5):
        assert cirrus.LocalBackend(dollars_per_hour=price).dollars_per_hour(5, 1) == price


def test_the_lifetime_of_inline_workers_acts() -> None:
    """Workers of this lifetime are invoked again and again."""
    backend = cirrus.InlineBackend(generation_seconds=0.3)
    est = cirrus.LogisticRegression(backend=backend, epochs=10**8, tol=None, n_workers=1)
    with est.start(rows()) as run:
        eventually(lambda: run.status.invocations >= 3)
        run.kill()


@pytest.mark.parametrize("is_encrypted", [False, True])
def test_every_backend_hands_tls_on(is_encrypted: bool) -> None:
    """What a backend was told is what it has its runs do."""
    for make in (
        cirrus.InlineBackend,
        cirrus.LocalBackend,
        cirrus.RayBackend,
        functools.partial(cirrus.AWSBackend, make_deployment()),
    ):
        assert make(tls=is_encrypted).tls is is_encrypted
