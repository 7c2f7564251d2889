"""Searches from start to end: on threads and processes, killed, resumed, out of budget, after a crash."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from stand_ins import FOR_EVER, assert_within, eventually, processes

import cirrus
from cirrus import GridSearch, InlineBackend, LocalBackend, LogisticRegression, RandomSearch, SearchState
from cirrus.chunks import plan_leases
from cirrus.client_backend.local import LocalLauncher
from cirrus.client_backend.overview import Overview
from cirrus.client_backend.runs import list_runs, open_run
from cirrus.client_backend.search_folder import SearchFolder, SearchRequest, Trial, TrialStatus
from cirrus.errors import ConfigError, ConflictError, DataError, NotFoundError, RunError, StorageError
from cirrus.frontend.search.requests import Requests
from cirrus.frontend.search.schedules import Job
from cirrus.metrics import RunState
from cirrus.run_folder import RunFolder

N_ROWS, N_FEATURES = 3000, 100
#: Of runs that something happens to while they work.
EPOCHS = 30
BATCH_ROWS = 20
KILL_SECONDS = 5.0


def make_arrays(n_rows: int = N_ROWS) -> tuple[scipy.sparse.csr_matrix, np.ndarray]:
    """Return rows whose labels a linear model can learn nearly perfectly."""
    rng = np.random.default_rng(0)
    rows = scipy.sparse.random(
        n_rows, N_FEATURES, density=0.1, format="csr", dtype=np.float32, random_state=rng
    )
    return rows, np.where(rows @ rng.normal(size=N_FEATURES) > 0, "yes", "no")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[cirrus.Dataset, cirrus.Dataset]:
    """Return training and validation data in a folder."""
    rows, labels = make_arrays()
    url = tmp_path_factory.mktemp("data") / "rows"
    return cirrus.load_arrays(rows, labels, url, random_state=0).split(test_size=0.2, random_state=0)


def estimator(backend: Any = "inline", **params: Any) -> LogisticRegression:
    """Return something to search over that trains in a moment."""
    return LogisticRegression(
        **{"epochs": 3, "tol": None, "n_workers": 1, "random_state": 0, "backend": backend, **params}
    )


def endless(root: Path | str, **params: Any) -> LogisticRegression:
    """Return something that trains for longer than any test."""
    return estimator(LocalBackend(root=root), epochs=FOR_EVER, **params)


def steps_of(dataset: cirrus.Dataset) -> int:
    """Return the minibatches of an epoch."""
    return sum(lease.n_steps for lease in plan_leases(dataset.manifest, 1, BATCH_ROWS))


def statuses(search: Any) -> list[str]:
    """Return the status of each trial."""
    return [trial.status.value for trial in search.status.trials]


def at_work(search: Any, *trials: int) -> bool:
    """Tell whether these trials have made updates."""
    return all(
        search.status.trials[trial].status is TrialStatus.RUNNING and search.status.trials[trial].updates > 0
        for trial in trials
    )


def listens(shard: Any) -> bool:
    """Tell whether a shard takes connections."""
    try:
        socket.create_connection((shard.host, shard.port), KILL_SECONDS).close()
    except ConnectionRefusedError:
        return False
    return True


class TestAnswers:
    """What a search finds."""

    def test_a_grid_finds_the_best(self, data: Any) -> None:
        """Every combination is tried; the best has its parameters, score and a fitted estimator."""
        train, test = data
        search = GridSearch(estimator(), {"learning_rate": [0.001, 0.3], "l1": [0, 1]})
        assert search.fit(train, validation=test) is search
        results = search.results_
        assert [row["status"] for row in results] == ["finished"] * 4
        assert {(row["param_learning_rate"], row["param_l1"]) for row in results} == {
            (rate, l1) for rate in (0.001, 0.3) for l1 in (0, 1)
        }
        assert search.best_params_ == {"l1": results[search.best_index_]["param_l1"], "learning_rate": 0.3}
        assert search.best_score_ == max(row["score"] for row in results)
        assert search.best_score_ == -results[search.best_index_]["loss"]
        assert search.top(1)[0]["trial"] == search.best_index_
        assert search.best_estimator_.score(test) == search.score(test) > 0.85
        assert search.best_estimator_.get_params()["learning_rate"] == 0.3
        assert search.best_estimator_ is search.best_estimator_
        assert list(search.predict(test)) == list(search.best_estimator_.predict(test))
        assert search.predict_proba(test).shape == (test.n_rows, 2)
        assert search.decision_function(test).shape == (test.n_rows,)
        assert search.status.state is RunState.FINISHED
        assert search.status.stop_reason == "all"

    def test_the_best_is_what_training_alone_gives(self, data: Any) -> None:
        """A trial is nothing but a fit with its parameters."""
        train, test = data
        search = GridSearch(estimator(batch_size=train.n_rows), {"l2": [0.5]}).fit(train, validation=test)
        alone = estimator(batch_size=train.n_rows, l2=0.5).fit(train, validation=test)
        np.testing.assert_array_equal(search.best_estimator_.coef_, alone.coef_)

    def test_arrays_are_stored_once(self) -> None:
        """Arrays with text labels become one dataset that all trials share, gone with the search."""
        rows, labels = make_arrays()
        search = GridSearch(estimator(), {"l1": [0, 1, 2]})
        search.fit(rows[:2000], labels[:2000], validation=(rows[2000:], labels[2000:]))
        root = search._root
        configs = [
            open_run(root, run.run_id).config for run in list_runs(root) if run.search == search.search_id_
        ]
        assert len({config.train_url for config in configs}) == 1
        assert len({config.validation_url for config in configs}) == 1
        assert search.best_estimator_.classes_.tolist() == ["no", "yes"]
        assert search.score(rows[2000:], labels[2000:]) > 0.8
        search_id = search.search_id_
        del search
        assert search_id not in [found.search_id for found in Overview(root).searches()]
        assert not [run for run in list_runs(root) if run.search == search_id]

    def test_data_in_memory_is_copied_once_for_processes(self, tmp_path: Path) -> None:
        """A dataset that workers cannot reach is copied to the search, not once a trial."""
        rows, labels = make_arrays(500)
        search = GridSearch(
            estimator(LocalBackend(root=tmp_path), epochs=1), {"l1": [0, 1]}, max_concurrent=2
        )
        search.fit(cirrus.load_arrays(rows, labels))
        urls = {open_run(str(tmp_path), run.run_id).config.train_url for run in list_runs(str(tmp_path))}
        assert urls == {f"{SearchFolder.open(str(tmp_path), search.search_id_).url}/data/train"}
        assert not Path(urls.pop()).exists()  # not needed any more

    def test_columns_with_names_are_known(self) -> None:
        """The best estimator knows the names of a frame's columns."""
        pd = pytest.importorskip("pandas")
        rows, labels = make_arrays(300)
        frame = pd.DataFrame(rows.toarray(), columns=[f"c{number}" for number in range(N_FEATURES)])
        search = GridSearch(estimator(epochs=1), {"l1": [0]}).fit(frame, labels)
        assert search.best_estimator_.feature_names_in_[1] == "c1"
        assert search.predict(frame).shape == (300,)
        assert search.results_.to_pandas()["status"].tolist() == ["finished"]

    def test_random_draws_are_tried(self, data: Any) -> None:
        """As many trials as draws, each with its own numbers."""
        from scipy.stats import loguniform

        train, test = data
        search = RandomSearch(estimator(), {"learning_rate": loguniform(0.01, 1)}, n_iter=3, random_state=1)
        search.fit(train, validation=test)
        assert len({row["param_learning_rate"] for row in search.results_}) == 3

    @pytest.mark.parametrize(
        "scoring",
        ["accuracy", "neg_log_loss", lambda est, rows, labels: np.mean(est.predict(rows) == labels)],
    )
    def test_scoring_ranks_trials(self, data: Any, scoring: Any) -> None:
        """Names of scikit-learn's scorers and functions, over the validation data."""
        train, test = data
        refit = scoring if isinstance(scoring, str) else True
        search = GridSearch(estimator(), {"learning_rate": [0.001, 0.3]}, scoring=scoring, refit=refit)
        search.fit(train, validation=test)
        expected = search.score(test)
        if scoring == "neg_log_loss":
            expected = -search.results_[search.best_index_]["loss"]
        assert search.best_score_ == pytest.approx(expected, abs=1e-4)

    def test_several_metrics_are_columns_and_refit_names_the_one_that_ranks(
        self, data: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each has the value that it has alone, from one pass over the validation data; `refit` ranks."""
        train, test = data
        passes: list[int] = []

        read = LogisticRegression.iter_decisions

        def counted(self: LogisticRegression, dataset: Any) -> Any:
            passes.append(1)
            return read(self, dataset)

        monkeypatch.setattr(LogisticRegression, "iter_decisions", counted)

        def worst(fitted: Any, rows: Any, labels: Any) -> float:
            return -float(np.mean(fitted.predict(rows) == labels))

        scoring = {"area": "roc_auc", "log": "neg_log_loss", "hits": "accuracy", "worst": worst}
        ranked = {}
        for refit in ("area", "worst"):
            grid = {"learning_rate": [0.001, 0.3]}
            search = GridSearch(estimator(), grid, scoring=scoring, refit=refit)
            passes.clear()
            search.fit(train, validation=test)
            assert len(passes) == len(search.results_)
            rows = search.results_
            ranked[refit] = search.best_params_["learning_rate"]
            assert [row["score"] for row in rows] == [row[f"score_{refit}"] for row in rows]
            assert search.best_score_ == max(row[f"score_{refit}"] for row in rows)
            best = rows[search.best_index_]
            assert best["score_hits"] == -best["score_worst"] == pytest.approx(search.score(test))
            assert best["score_log"] == pytest.approx(-best["loss"], abs=1e-4)
            assert "score,score_area,score_log,score_hits,score_worst,param_" in rows.to_csv()
        assert ranked == {"area": 0.3, "worst": 0.001}

    def test_several_metrics_without_refit_have_no_best(self, data: Any) -> None:
        """As scikit-learn's; the loss ranks the table. It has to be said."""
        with pytest.raises(ConfigError, match="for multi-metric scoring, must be the name .* got True"):
            GridSearch(estimator(), {"l1": [0]}, scoring=["accuracy", "roc_auc"]).check()
        search = GridSearch(estimator(epochs=1), {"l1": [0]}, scoring=["accuracy", "roc_auc"], refit=False)
        search.fit(data[0], validation=data[1])
        (row,) = search.results_
        assert row["score"] == -row["loss"]
        assert 0.5 < row["score_accuracy"] < row["score_roc_auc"] < 1
        for name in ("best_index_", "best_params_", "best_score_", "best_estimator_"):
            assert not hasattr(search, name)

    def test_a_function_may_choose_the_best(self, tmp_path: Path, data: Any) -> None:
        """It is given the results; it has to name a trial with a model, and be given anew to go on."""
        backend = InlineBackend(root=tmp_path)

        def strongest(results: Any) -> int:
            return max(range(len(results)), key=lambda i: results[i]["param_l2"])

        est = estimator(backend, epochs=1)
        search = GridSearch(
            est, {"l2": [100.0, 0.0]}, scoring=["accuracy", "roc_auc"], refit=strongest, search_id="chosen"
        )
        assert not hasattr(search, "best_index_")
        search.fit(data[0], validation=data[1])
        assert (search.best_index_, search.best_params_) == (0, {"l2": 100.0})
        assert search.results_[0]["rank"] == 2
        assert search.best_estimator_.l2 == 100.0
        assert not hasattr(search, "best_score_")
        for wrong in (2, -1, "first"):
            search.refit = lambda _, wrong=wrong: wrong
            with pytest.raises(ConfigError, match="must return the index of a trial with a model"):
                _ = search.best_params_
        for refit in ({}, {"refit": min}):
            with pytest.raises(ConfigError, match="no file holds the function strongest"):
                GridSearch.resume("chosen", backend=backend, **refit)
        assert GridSearch.resume("chosen", backend=backend, refit=strongest).wait().best_index_ == 0

    def test_without_refit_there_is_no_estimator(self, data: Any) -> None:
        """The parameters and the score are there all the same."""
        search = GridSearch(estimator(epochs=1), {"l1": [1]}, refit=False).fit(data[0])
        assert search.best_params_ == {"l1": 1}
        with pytest.raises(AttributeError, match="refit"):
            _ = search.best_estimator_

    def test_progress_is_told(self, data: Any) -> None:
        """A function hears of the state, the last time at the end."""
        heard: list[SearchState] = []
        search = GridSearch(estimator(), {"l1": [0, 1]}, progress=heard.append).fit(data[0])
        assert heard[-1].state is RunState.FINISHED
        assert heard[-1].trials == search.status.trials


class TestPruning:
    """The hopeless are given up."""

    def test_asha_goes_on_from_models(self, data: Any) -> None:
        """A promoted trial goes on where it was: it ends as if trained in one go, and others ended early."""
        train, test = data
        rates = [0.0001, 0.001, 0.01, 0.3]
        options: dict[str, Any] = {"epochs": 9, "batch_size": 100}
        whole = GridSearch(estimator(**options), {"learning_rate": rates}).fit(train, validation=test)
        pruner = cirrus.AshaPruner(reduction_factor=3, min_fraction=1 / 9)
        halved = GridSearch(estimator(**options), {"learning_rate": rates}, pruner=pruner)
        halved.fit(train, validation=test)
        assert halved.best_params_ == whole.best_params_ == {"learning_rate": 0.3}
        assert halved.best_score_ == pytest.approx(whole.best_score_, rel=1e-3)
        best = halved.results_[halved.best_index_]
        assert best["updates"] == whole.results_[whole.best_index_]["updates"]
        assert len(best["runs"]) == 3
        pruned = [row for row in halved.results_ if row["status"] == "pruned"]
        assert len(pruned) == 3
        assert all(row["epochs"] < 9 for row in pruned)
        curve = halved.curve(halved.best_index_)
        assert [point.updates for point in curve] == sorted(point.updates for point in curve)
        assert [point.seconds for point in curve] == sorted(point.seconds for point in curve)

    def test_the_median_rule_stops_what_lags(self, data: Any) -> None:
        """A trial that is worse than the median of those before is stopped, and keeps its model."""
        train, test = data
        rates = [0.3, 0.3, 0.3, 1e-6]
        search = GridSearch(
            estimator(epochs=100, batch_size=50), {"learning_rate": rates}, pruner="median", max_concurrent=3
        )
        search.fit(train, validation=test)
        assert [row["status"] for row in search.results_] == ["finished"] * 3 + ["pruned"]
        assert search.results_[3]["epochs"] < 100
        assert search.results_[3]["score"] is not None


class TestRoom:
    """Places and budgets."""

    def test_trials_queue(self, tmp_path: Path, data: Any) -> None:
        """No more trials work at a time than there are places, nor more workers than allowed."""
        search = GridSearch(
            endless(tmp_path), {"n_workers": [1, 2, 2]}, max_concurrent=3, max_workers=3
        ).start(data[0])
        with search:
            eventually(lambda: at_work(search, 0, 1))
            assert statuses(search) == ["running", "running", "queued"]
            search.kill(0)
            eventually(lambda: search.status.trials[0].status.ended)
            assert search.status.trials[2].status is TrialStatus.QUEUED
            search.kill(1)
            eventually(lambda: at_work(search, 2))

    @pytest.mark.parametrize("validates", [True, False])
    def test_evaluators_take_room_too(self, data: Any, validates: bool) -> None:
        """Where a backend lets three functions work, there is room for a worker and an evaluator once."""

        class Narrow(InlineBackend):
            max_functions = 3

        train, test = data
        search = GridSearch(estimator(Narrow(), epochs=FOR_EVER), {"l1": [0, 1]})
        with search.start(train, validation=test if validates else None):
            if validates:
                eventually(lambda: at_work(search, 0))
                assert statuses(search) == ["running", "queued"]
            else:
                eventually(lambda: statuses(search) == ["running", "running"])

    def test_a_trial_too_large_for_the_limit_is_refused(self, data: Any) -> None:
        """It would wait for ever; numpy's numbers count as others do."""
        with pytest.raises(ConfigError, match="max_workers"):
            GridSearch(estimator(), {"n_workers": [1, 5]}, max_workers=4).fit(data[0])
        with pytest.raises(ConfigError, match="n_workers=5"):
            GridSearch(estimator(n_workers=np.int64(5)), {"l1": [0]}, max_workers=4).fit(data[0])

    @pytest.mark.parametrize("budget", ["max_seconds", "max_cost"])
    def test_budgets_end_a_search(self, data: Any, budget: str) -> None:
        """Trials at work keep what they have learned; those that wait are left."""
        backend = InlineBackend(dollars_per_hour=3600.0)
        search = GridSearch(
            estimator(backend, epochs=FOR_EVER), {"l1": [0, 1]}, max_concurrent=1, **{budget: 4.0}
        )
        search.fit(data[0])
        assert search.status.stop_reason == budget
        assert statuses(search) == ["pruned", "queued"]
        assert search.best_estimator_.score(data[1]) > 0.5
        if budget == "max_cost":
            assert 4.0 <= search.cost < 40.0

    def test_stop_keeps_models(self, data: Any) -> None:
        """`stop` finishes what is at work where it is."""
        search = GridSearch(estimator(epochs=FOR_EVER), {"l1": [0, 1]}).start(data[0])
        eventually(lambda: at_work(search, 0, 1))
        search.stop()
        search.wait()
        assert statuses(search) == ["pruned", "pruned"]
        assert search.best_estimator_.n_iter_ >= 0


class _HookedPruner(cirrus.AshaPruner):
    """ASHA with a first rung of one epoch out of FOR_EVER, whose decisions a test sees and may change."""

    def __init__(self, hook: Callable[[Job | None], Job | None]) -> None:
        super().__init__(reduction_factor=FOR_EVER, min_fraction=1 / FOR_EVER)
        self._hook = hook

    def next_job(self, trials: Sequence[Trial], *, more_to_come: bool = False) -> Job | None:
        return self._hook(super().next_job(trials, more_to_come=more_to_come))

    def to_plain(self) -> dict[str, Any]:
        return {}  # so that the search uses this object, and not one made from its parameters


class TestKilling:
    """Somebody ends trials that go nowhere."""

    def kill_a_trial(self, search: GridSearch, root: str) -> float:
        """Kill the second trial, which may have been killed before; return the seconds until it is gone."""
        if search.status.trials[1].status is TrialStatus.KILLED:
            search.resume(1)
            eventually(lambda: at_work(search, 1))
        (run_id,) = search.status.trials[1].runs
        eventually(lambda: processes(run_id))
        shard = RunFolder(f"{root}/runs/{run_id}").shard_address(0)
        eventually(lambda: listens(shard))
        begun = time.monotonic()
        search.kill(1)
        eventually(lambda: not processes(run_id))
        # Its shard is gone from the process that the others share.
        eventually(lambda: not listens(shard))
        return time.monotonic() - begun

    def test_a_killed_trial_is_gone_and_the_others_are_undisturbed(self, tmp_path: Path, data: Any) -> None:
        """Its workers are gone within 5 seconds, its curve stays, and no other trial restarts anything."""
        search = GridSearch(endless(tmp_path), {"l1": [0, 1, 2]}, max_concurrent=3).start(data[0])
        with search:
            eventually(lambda: at_work(search, 0, 1, 2))
            others = {run: processes(run, "") for i in (0, 2) for run in search.status.trials[i].runs}
            pids = {run: {process.pid for process in found} for run, found in others.items()}
            assert_within(KILL_SECONDS, lambda: self.kill_a_trial(search, str(tmp_path)))
            (run_id,) = search.status.trials[1].runs
            assert statuses(search) == ["running", "killed", "running"]
            assert open_run(str(tmp_path), run_id).status.state is RunState.KILLED
            assert search.curve(1)
            before = [search.status.trials[i].updates for i in (0, 2)]
            eventually(
                lambda: all(search.status.trials[i].updates > u for i, u in zip((0, 2), before, strict=True))
            )
            assert {run: {process.pid for process in processes(run)} for run in pids} == pids
            for run in pids:
                assert RunFolder(f"{tmp_path}/runs/{run}").shard_address(0).generation == 1
        assert not processes(str(tmp_path))

    def test_killing_all_ends_the_search(self, data: Any) -> None:
        """Trials at work and those that wait are killed; whoever waits for the search hears of it."""
        search = GridSearch(estimator(epochs=FOR_EVER), {"l1": [0, 1, 2]}, max_concurrent=2).start(data[0])
        eventually(lambda: at_work(search, 0, 1))
        search.kill_all()
        assert statuses(search) == ["killed"] * 3
        with pytest.raises(RunError, match="killed"):
            search.wait()
        with pytest.raises(RunError, match="not at work"):
            search.kill(0)

    def test_a_killed_search_stays_killed(self, tmp_path: Path, data: Any) -> None:
        """The program that is run again does not begin what somebody ended, and says so."""

        def make() -> GridSearch:
            backend = InlineBackend(root=tmp_path)
            return GridSearch(estimator(backend, epochs=FOR_EVER), {"l1": [0, 1]}, search_id="ended")

        search = make().start(data[0])
        eventually(lambda: at_work(search, 0, 1))
        search.kill_all()
        for call in (search.wait, lambda: make().fit(data[0])):
            with pytest.raises(RunError, match="killed"):
                call()
        state = Overview(str(tmp_path)).search("ended").state
        assert (state.state, state.stop_reason) == (RunState.KILLED, "killed")
        assert [trial.runs for trial in state.trials] == [trial.runs for trial in search.status.trials]

    def test_others_kill_through_the_folder(self, tmp_path: Path, data: Any) -> None:
        """Another process needs nothing but the folder to kill a trial, or the whole search."""
        search = GridSearch(endless(tmp_path), {"l1": [0, 1]}).start(data[0])
        with search:
            eventually(lambda: at_work(search, 0, 1))
            overview = Overview(str(tmp_path))
            overview.kill_trial(search.search_id_, 0)
            assert statuses(search)[0] == "killed"
            overview.kill_run(search.status.trials[1].runs[0])
            eventually(lambda: search.status.trials[1].status is TrialStatus.KILLED)
            eventually(lambda: search._driver.ended)

    def test_a_killed_trial_can_be_resumed(self, tmp_path: Path, data: Any) -> None:
        """It goes on from its snapshot in the same run, and ends with every update once."""
        backend = LocalBackend(root=tmp_path)
        grid = {"epochs": [EPOCHS, FOR_EVER]}
        search = GridSearch(estimator(backend, batch_size=BATCH_ROWS), grid).start(data[0])
        with search:
            eventually(lambda: at_work(search, 0, 1))
            search.kill(0)
            killed = search.status.trials[0]
            assert killed.status is TrialStatus.KILLED
            search.resume(0)
            eventually(lambda: search.status.trials[0].status is TrialStatus.FINISHED)
            resumed = search.status.trials[0]
            assert resumed.runs == killed.runs
            assert resumed.epochs == EPOCHS
            assert resumed.updates == EPOCHS * steps_of(data[0])
            with pytest.raises(RunError, match="finished"):
                search.resume(0)

    @pytest.mark.parametrize("moment", ["run just ended", "paused", "chosen for promotion"])
    @pytest.mark.parametrize("request_", ["kill", "kill_all"])
    def test_a_kill_between_two_rungs_holds(self, data: Any, moment: str, request_: str) -> None:
        """Whenever it comes, the trial is not promoted; after a kill of all, nothing else begins either."""
        asked: list[threading.Thread] = []

        def ask() -> None:
            call = search.kill_all if request_ == "kill_all" else lambda: search.kill(0)
            asked.append(threading.Thread(target=call))
            asked[0].start()
            # The driver's thread is the one that waits here: it finds the request at the end of this step.
            eventually(lambda: not search._driver._requests.is_heard)

        def hook(job: Job | None) -> Job | None:
            if asked:
                return job
            if moment == "run just ended":
                work = search._driver._at_work._works.get(0)
                if work is not None:
                    eventually(lambda: work.live.run.supervisor.ended)
                    ask()
            elif job is not None and job.rung == 1:
                assert search._driver._ledger.trials[0].status is TrialStatus.PAUSED
                ask()
                return job if moment == "chosen for promotion" else None
            return job

        search = GridSearch(
            estimator(epochs=FOR_EVER), {"l1": [0]}, max_concurrent=2, pruner=_HookedPruner(hook)
        )
        with search.start(data[0]):
            assert search._driver.wait(60)
            asked[0].join()
            (trial,) = search.status.trials
            assert trial.status is TrialStatus.KILLED
            assert len(trial.runs) == (2 if moment == "chosen for promotion" else 1)
            assert search.status.state is (RunState.KILLED if request_ == "kill_all" else RunState.FINISHED)

    def test_what_is_asked_for_at_the_last_moment_is_done(self, data: Any) -> None:
        """A trial that is gone on with while the driver finds that it has nothing left to do is at work."""
        resuming: list[threading.Thread] = []

        def hook(job: Job | None) -> Job | None:
            # The driver's thread is the one that waits here: it has heard all that was asked before.
            if job is None and not resuming and search.status.trials[0].status is TrialStatus.KILLED:
                asking = threading.Thread(target=search.resume, args=(0,))
                asking.start()
                resuming.append(asking)  # once it can be joined
                eventually(lambda: not search._driver._requests.is_heard)
            return job

        search = GridSearch(estimator(epochs=FOR_EVER), {"l1": [0]}, pruner=_HookedPruner(hook))
        with search.start(data[0]):
            eventually(lambda: at_work(search, 0) or search.status.trials[0].losses)
            search.kill(0)
            eventually(lambda: resuming)
            resuming[0].join()
            eventually(lambda: at_work(search, 0))

    def test_what_comes_too_late_is_said(self, tmp_path: Path) -> None:
        """Whoever asks a search that ends before it has heard that learns that nothing was done."""
        folder = SearchFolder(f"{tmp_path}/searches/s")
        ended = threading.Event()
        requests = Requests(folder, "s", lambda request: None, 0.01)
        ended.set()
        with pytest.raises(RunError, match="s has ended before it was done"):
            requests.ask(SearchRequest(action="resume", trial=0), ended)

    def test_what_cannot_be_killed_is_said(self, data: Any) -> None:
        """A trial that is not there is an error."""
        search = GridSearch(estimator(epochs=FOR_EVER), {"l1": [0]}).start(data[0])
        with search, pytest.raises(RunError, match="no trial 7"):
            search.kill(7)


class TestFailures:
    """Trials that fail, and calls that cannot work."""

    def test_a_failed_trial_is_told_and_the_others_go_on(self, data: Any) -> None:
        """Its error is in the table, and a warning says how many failed."""
        search = GridSearch(estimator(), {"class_weight": [None, {"maybe": 2.0}]})
        with pytest.warns(UserWarning, match="1 of 2 trials failed"):
            search.fit(data[0])
        assert [row["status"] for row in search.results_] == ["finished", "failed"]
        assert "class_weight" in search.results_[1]["error"]

    def test_a_search_whose_trials_all_fail_fails(self, data: Any) -> None:
        """With the first error."""
        with pytest.raises(RunError, match="all 2 trials failed.*class_weight"):
            GridSearch(estimator(), {"class_weight": [{"maybe": 2.0}, {"maybe": 3.0}]}).fit(data[0])

    @pytest.mark.parametrize(
        ("field", "options", "grid"),
        [
            ("max_concurrent", {"max_concurrent": 0}, {"l1": [0]}),
            ("max_workers", {"max_workers": 1.5}, {"l1": [0]}),
            ("max_seconds", {"max_seconds": -1}, {"l1": [0]}),
            ("max_cost", {"max_cost": float("nan")}, {"l1": [0]}),
            ("pruner", {"pruner": "magic"}, {"l1": [0]}),
            ("scoring", {"scoring": "magic"}, {"l1": [0]}),
            ("scoring", {"scoring": "accuracy"}, {"l1": [0]}),
            ("refit", {"refit": "roc_auc"}, {"l1": [0]}),
            ("refit", {"scoring": ["accuracy", "roc_auc"]}, {"l1": [0]}),
            ("refit", {"scoring": ["accuracy"], "refit": "roc_auc"}, {"l1": [0]}),
            ("refit", {"scoring": {"a": "accuracy"}, "refit": "accuracy"}, {"l1": [0]}),
            ("scoring", {"scoring": [], "refit": False}, {"l1": [0]}),
            ("scoring", {"scoring": [len], "refit": False}, {"l1": [0]}),
            ("scoring", {"scoring": {"a": None}, "refit": "a"}, {"l1": [0]}),
            ("scoring", {"scoring": {1: "accuracy"}, "refit": False}, {"l1": [0]}),
            ("scoring", {"scoring": ["accuracy"] * 2, "refit": False}, {"l1": [0]}),
            ("search_id", {"search_id": "../up"}, {"l1": [0]}),
            ("no_such", {}, {"no_such": [0]}),
            ("backend", {}, {"backend": ["local"]}),
            ("learning_rate", {}, {"learning_rate": [0.1, -1.0]}),
            ("batch_size", {}, {"batch_size": [100, 0]}),
        ],
    )
    def test_wrong_parameters_are_named(
        self, data: Any, field: str, options: dict[str, Any], grid: dict[str, Any]
    ) -> None:
        """Before anything is started."""
        with pytest.raises(ConfigError) as caught:
            GridSearch(estimator(), grid, **options).fit(data[0])
        assert caught.value.field == field

    def test_calls_out_of_order_are_errors(self, data: Any) -> None:
        """There is nothing to wait for, to kill, or to show before the start."""
        search = GridSearch(estimator(), {"l1": [0]})
        for call in (search.wait, search.kill_all, lambda: search.status):
            with pytest.raises(RunError, match="not been started"):
                call()
        assert not hasattr(search, "results_")
        with pytest.raises(ConfigError, match="train"):
            search.fit()
        with pytest.raises(ConfigError, match="resume_from"):
            GridSearch(estimator(resume_from="x"), {"l1": [0]}).fit(data[0])
        with pytest.raises(ConfigError, match="holds its own"):
            search.fit(data[0], [1])

    def test_the_dashboard_has_to_be_installed(self, data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where no package offers one, the error says what to install."""
        monkeypatch.setattr("cirrus.frontend.search.answers.DASHBOARD_ENTRY_POINTS", "cirrus.no-dashboard")
        search = GridSearch(estimator(epochs=1), {"l1": [0]}).fit(data[0])
        with pytest.raises(ConfigError, match="dashboard"):
            search.serve_dashboard()


class TestGoingOn:
    """A search outlives its program."""

    def test_a_closed_search_is_resumed_by_its_id(self, tmp_path: Path, data: Any) -> None:
        """What finished is kept, what was at work goes on in its run, what waited begins."""
        backend = LocalBackend(root=tmp_path)
        search = GridSearch(
            estimator(backend, batch_size=BATCH_ROWS), {"epochs": [1, EPOCHS, 2]}, max_concurrent=1
        ).start(*data[:1], validation=data[1])
        eventually(lambda: at_work(search, 1))
        search.close()
        search_id = search.search_id_
        (interrupted,) = Overview(str(tmp_path)).searches()
        assert interrupted.state.state is RunState.INTERRUPTED
        before = interrupted.state.trials
        again = GridSearch.resume(search_id, backend=backend, max_concurrent=2)
        again.wait()
        assert statuses(again) == ["finished"] * 3
        assert again.status.trials[0].runs == before[0].runs
        assert again.status.trials[1].runs == before[1].runs
        assert again.status.trials[1].updates == EPOCHS * steps_of(data[0])
        assert again.best_estimator_.score(data[1]) > 0.85

    @pytest.mark.parametrize("scoring", [None, lambda fitted, rows, labels: 0.0])
    def test_ctrl_c_says_how_to_go_on(self, tmp_path: Path, data: Any, scoring: Any) -> None:
        """It stays a KeyboardInterrupt, with a note: by the search's id, where a file holds all of it."""

        def press(state: SearchState) -> None:
            raise KeyboardInterrupt

        backend = InlineBackend(root=tmp_path)
        search = GridSearch(
            estimator(backend, epochs=FOR_EVER), {"l1": [0]}, search_id="s", scoring=scoring, progress=press
        )
        with pytest.raises(KeyboardInterrupt) as caught:
            search.fit(data[0], validation=data[1])
        way = f"GridSearch.resume('s', backend={backend!r}).wait()"
        expected = way if scoring is None else "the same program, with search_id='s'"
        assert caught.value.__notes__ == [f"search s was interrupted; go on with: {expected}"]
        if scoring is None:
            with pytest.raises(KeyboardInterrupt) as again:
                GridSearch.resume("s", backend=backend, progress=press).wait()
            assert again.value.__notes__ == caught.value.__notes__

    def test_several_metrics_outlive_their_program(self, tmp_path: Path, data: Any) -> None:
        """Names are in the folder, functions are given anew; another scoring or refit is another search."""
        backend = InlineBackend(root=tmp_path)

        def hits(fitted: Any, rows: Any, labels: Any) -> float:
            return float(np.mean(fitted.predict(rows) == labels))

        def make(scoring: Any, refit: Any, name: str) -> GridSearch:
            est = estimator(backend, epochs=1)
            return GridSearch(est, {"l1": [0]}, scoring=scoring, refit=refit, search_id=name)

        named = make(["accuracy", "roc_auc"], "roc_auc", "named").fit(data[0], validation=data[1])
        again = GridSearch.resume("named", backend=backend).wait()
        assert list(again.results_) == list(named.results_)
        assert again.best_score_ == named.best_score_ == again.results_[0]["score_roc_auc"]
        for scoring, refit, what in (
            (["accuracy", "roc_auc"], "accuracy", "refit"),
            (["accuracy"], "accuracy", "scoring"),
            ("roc_auc", True, "scoring"),
        ):
            with pytest.raises(ConfigError, match=f"another {what}"):
                make(scoring, refit, "named").fit(data[0], validation=data[1])
        held = make({"hits": hits, "area": "roc_auc"}, "hits", "held").fit(data[0], validation=data[1])
        with pytest.raises(
            ConfigError, match="no file holds the functions hits: a program has to give them anew"
        ):
            GridSearch.resume("held", backend=backend)
        with pytest.raises(ConfigError, match="another one than the search was begun with"):
            GridSearch.resume("held", backend=backend, scoring={"hits": hits})
        anew = GridSearch.resume("held", backend=backend, scoring={"hits": hits, "area": "roc_auc"}).wait()
        assert list(anew.results_) == list(held.results_)
        # A folder of before there were several metrics.
        store = SearchFolder.open(str(tmp_path), make(None, True, "old").fit(data[0]).search_id_).store
        for key in ("search.json", "state.json"):
            plain = json.loads(store.get(key))
            for record in (plain, *plain.get("trials", ())):
                for new in ("metrics", "ranked_by", "chosen_by", "scores"):
                    record.pop(new, None)
            store.put(key, json.dumps(plain).encode())
        assert GridSearch.resume("old", backend=backend).wait().best_index_ == 0

    def test_it_goes_on_where_its_folder_says(
        self, tmp_path: Path, data: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without a backend, its own from this user's home; an explicit one replaces it."""
        monkeypatch.setenv("CIRRUS_HOME", str(tmp_path))
        begun = GridSearch(estimator(LocalBackend(), epochs=1), {"l1": [0]}, search_id="s").fit(data[0])
        again = GridSearch.resume("s")
        assert again.wait().status.trials == begun.status.trials
        assert isinstance(again.estimator.backend, LocalBackend)
        assert again._way_on() == "go on with: GridSearch.resume('s').wait()"
        inline = InlineBackend(root=tmp_path)
        assert GridSearch.resume("s", backend=inline).wait().estimator.backend is inline
        store = SearchFolder.open(str(tmp_path), "s").store
        store.put("search.json", store.get("search.json").replace(b'"name": "local"', b'"name": "Other"'))
        with pytest.raises(ConfigError, match="begun on Other, which no name stands for"):
            GridSearch.resume("s")
        assert GridSearch.resume("s", backend="local").wait().status.trials == begun.status.trials

    def test_the_same_script_goes_on(self, tmp_path: Path, data: Any) -> None:
        """A search with a name of its own goes on where it was; one that ended only answers."""
        rows, labels = make_arrays(500)

        def make() -> GridSearch:
            return GridSearch(
                estimator(LocalBackend(root=tmp_path), epochs=1), {"l1": [0, 1]}, search_id="sweep-1"
            )

        first = make().fit(rows, labels)
        second = make().fit(rows, labels)
        assert second.status.trials == first.status.trials
        assert len(list_runs(str(tmp_path))) == 2
        assert second.best_estimator_.score(rows, labels) == first.best_estimator_.score(rows, labels)

    def test_another_search_of_the_same_name_is_refused(self, tmp_path: Path, data: Any) -> None:
        """Another grid or other data under a known name is an error that says so."""
        est = estimator(LocalBackend(root=tmp_path), epochs=1)
        GridSearch(est, {"l1": [0]}, search_id="mine").fit(data[0])
        with pytest.raises(ConfigError, match="another space"):
            GridSearch(est, {"l1": [1]}, search_id="mine").fit(data[0])
        with pytest.raises(ConfigError, match="another data"):
            GridSearch(est, {"l1": [0]}, search_id="mine").fit(data[1])

    def test_a_search_is_driven_by_one(self, tmp_path: Path, data: Any) -> None:
        """Another program cannot go on with a search that is at work."""
        search = GridSearch(endless(tmp_path), {"l1": [0]}).start(data[0])
        with search, pytest.raises(ConflictError):
            GridSearch.resume(search.search_id_, backend=LocalBackend(root=tmp_path))

    def test_what_cannot_be_resumed_is_said(self, tmp_path: Path, data: Any) -> None:
        """No such search, another kind of search, a parameter that cannot change, data that is gone."""
        backend = LocalBackend(root=tmp_path)
        with pytest.raises(NotFoundError):
            GridSearch.resume("search-x", backend=backend)
        rows, labels = make_arrays(500)
        search = GridSearch(endless(tmp_path), {"l1": [0]}).start(rows, labels)
        search.close()
        with pytest.raises(ConfigError, match="another kind"):
            RandomSearch.resume(search.search_id_, backend=backend)
        with pytest.raises(ConfigError, match="refit"):
            GridSearch.resume(search.search_id_, backend=backend, refit=False)
        SearchFolder.open(str(tmp_path), search.search_id_).store.delete_prefix("data")
        with pytest.raises(DataError, match="data of the search"):
            GridSearch.resume(search.search_id_, backend=backend)

    def test_a_search_outlives_sigkill(self, tmp_path: Path, data: Any) -> None:
        """Nothing of a killed program is left; another goes on, no update is lost or done twice."""
        script = f"""
import cirrus
est = cirrus.LogisticRegression(
    epochs={EPOCHS}, tol=None, n_workers=1, batch_size={BATCH_ROWS}, random_state=0,
    backend=cirrus.LocalBackend(root={str(tmp_path)!r}))
search = cirrus.GridSearch(est, {{"l1": [0, 1, 2]}}, max_concurrent=2, search_id="crash")
search.fit(cirrus.Dataset.open({data[0].url!r}))
"""
        with subprocess.Popen([sys.executable, "-c", script]) as program:
            overview = Overview(str(tmp_path))
            eventually(lambda: _trials_with_updates(overview, "crash") >= 2, 60.0)
            program.send_signal(signal.SIGKILL)
        eventually(lambda: not processes(str(tmp_path)))
        search = GridSearch.resume("crash", backend=LocalBackend(root=tmp_path)).wait()
        assert statuses(search) == ["finished"] * 3
        steps = EPOCHS * steps_of(data[0])
        for trial in search.status.trials:
            (run_id,) = trial.runs
            assert open_run(str(tmp_path), run_id).status.counts["shard0.steps_applied"] == steps


def _trials_with_updates(overview: Overview, search_id: str) -> int:
    try:
        state = overview.search(search_id).state
    except NotFoundError:
        return 0
    return 0 if state is None else sum(trial.updates > 0 for trial in state.trials)


class TestShardHosts:
    """The processes that run the shards of a search."""

    def test_shards_share_processes_and_survive_their_death(self, tmp_path: Path, data: Any) -> None:
        """Runs share processes; when one is killed, its shards go on from their snapshots in another."""
        search = GridSearch(
            estimator(LocalBackend(root=tmp_path), epochs=EPOCHS, batch_size=BATCH_ROWS),
            {"l1": [0, 1, 2]},
            max_concurrent=3,
        ).start(data[0])
        with search:
            eventually(lambda: at_work(search, 0, 1, 2))
            hosts = processes(f"{tmp_path}/searches", "cirrus.paramserver.pack")
            assert 1 <= len(hosts) <= 3
            assert not processes(str(tmp_path), "cirrus.paramserver")
            for host in hosts:
                host.kill()
            search.wait()
        steps = EPOCHS * steps_of(data[0])
        for trial in search.status.trials:
            assert trial.status is TrialStatus.FINISHED
            counts = open_run(str(tmp_path), trial.runs[0]).status.counts
            assert counts["shard0.steps_applied"] == steps
        assert not processes(str(tmp_path))

    def test_a_process_that_hangs_is_replaced(
        self, tmp_path: Path, data: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nobody waits for ever for shards that stand still: they go on from their snapshots in another."""
        monkeypatch.setattr(LocalLauncher, "silent_seconds", 4.0)
        search = GridSearch(
            estimator(LocalBackend(root=tmp_path), epochs=EPOCHS, batch_size=BATCH_ROWS), {"l1": [0]}
        ).start(data[0])
        with search:
            eventually(lambda: at_work(search, 0))
            for host in processes(f"{tmp_path}/searches", "cirrus.paramserver.pack"):
                host.suspend()
            search.wait()
        (trial,) = search.status.trials
        counts = open_run(str(tmp_path), trial.runs[0]).status.counts
        assert counts["shard0.steps_applied"] == EPOCHS * steps_of(data[0])


class TestAStoreThatFails:
    """A store that cannot be reached for a moment costs nothing but that moment."""

    def test_the_search_goes_on(self, data: Any) -> None:
        """Whatever the driver was about to read or write, it does so afterwards, and each trial once."""
        search = GridSearch(estimator(), {"l1": [0, 1], "learning_rate": [0.1, 0.3]}, pruner="asha")
        calls = itertools.count()

        def failing(method: Any) -> Any:
            def call(*arguments: Any, **options: Any) -> Any:
                if threading.current_thread().name == "cirrus-search" and next(calls) % 5 == 3:
                    raise StorageError("the store is away")
                return method(*arguments, **options)

            return call

        begun = search.start(data[0], validation=data[1])
        store = begun._driver._ledger.folder.store
        for name in ("put", "get", "list", "get_versioned", "exists"):
            setattr(store, name, failing(getattr(store, name)))
        search.wait()
        assert {*statuses(search)} <= {"finished", "pruned"}
        assert "finished" in statuses(search)
        assert next(calls) > 10

    def test_a_store_that_stays_away_ends_it(self, data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """The error says so, and nothing is left running."""
        monkeypatch.setattr("cirrus.frontend.search.driver.STORE_PATIENCE_SECONDS", 0.5)
        search = GridSearch(estimator(epochs=FOR_EVER), {"l1": [0]}).start(data[0])
        eventually(lambda: at_work(search, 0))

        def away(*_: Any, **__: Any) -> Any:
            raise StorageError("the store is away")

        search._driver._ledger.folder.store.list = away
        with pytest.raises(RunError, match="the store is away"):
            search.wait()
        assert search.status.state is RunState.FAILED

    def test_a_state_whose_answer_was_lost_is_no_conflict(self, data: Any) -> None:
        """The driver finds its own state in the store, and goes on."""
        search = GridSearch(estimator(epochs=FOR_EVER), {"l1": [0]}).start(data[0])
        with search:
            eventually(lambda: at_work(search, 0))
            store = search._driver._ledger.folder.store
            put, lost = store.put, threading.Event()

            def losing(key: str, *arguments: Any, **options: Any) -> Any:
                etag = put(key, *arguments, **options)
                if key == "state.json" and not lost.is_set():
                    lost.set()
                    raise StorageError("no answer")
                return etag

            store.put = losing
            eventually(lost.is_set)
            updates = search.status.trials[0].updates
            eventually(lambda: search.status.trials[0].updates > updates)
            search.kill(0)
        assert statuses(search) == ["killed"]


def test_twenty_experiments_at_a_time(tmp_path: Path, data: Any) -> None:
    """Ten learning rates with one and two workers, all at once: each finishes, with its own curve."""
    train, test = data
    grid = {"learning_rate": [0.01 * 1.6**k for k in range(10)], "n_workers": [1, 2]}
    search = GridSearch(estimator(LocalBackend(root=tmp_path), epochs=2), grid, max_concurrent=20)
    search.fit(train, validation=test)
    assert statuses(search) == ["finished"] * 20
    curves = [search.curve(trial) for trial in range(20)]
    assert all(curve[-1].updates == curves[0][-1].updates for curve in curves)
    assert len({dataclasses.astuple(curve[-1])[4:6] for curve in curves}) >= 10
    assert len({row["loss"] for row in search.results_}) >= 10


class TestOptuna:
    """Samplers and pruners of Optuna."""

    SPACE: dict[str, Any] = {"learning_rate": [0.0001, 0.3], "l1": (0, 1)}

    @pytest.fixture(autouse=True)
    def optuna(self) -> Any:
        """Return Optuna, quiet."""
        optuna = pytest.importorskip("optuna")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        return optuna

    def test_its_log_is_its_users(self, optuna: Any, caplog: pytest.LogCaptureFixture) -> None:
        """A search does not have Optuna tell of a study that nobody made; its verbosity stays what it was."""
        optuna.logging.set_verbosity(optuna.logging.INFO)
        optuna.logging.enable_propagation()
        caplog.set_level(logging.INFO)
        try:
            cirrus.OptunaSearch(estimator(), self.SPACE, n_trials=1)._source([])
            assert caplog.messages == []
            assert optuna.logging.get_verbosity() == optuna.logging.INFO
            optuna.create_study()
            assert "A new study created" in caplog.text
        finally:
            optuna.logging.disable_propagation()

    def test_a_sampler_says_what_to_try(self, optuna: Any, data: Any) -> None:
        """Every trial is asked for and told; the study knows what the search knows."""
        space = {"learning_rate": optuna.distributions.FloatDistribution(0.001, 1, log=True), "l1": [0, 1]}
        search = cirrus.OptunaSearch(estimator(epochs=1), space, n_trials=5, random_state=0, max_concurrent=2)
        search.fit(data[0], validation=data[1])
        assert statuses(search) == ["finished"] * 5
        assert search.study_.best_value == pytest.approx(search.best_score_)
        assert search.study_.best_params == search.best_params_
        assert all(0.001 <= row["param_learning_rate"] <= 1 for row in search.results_)

    def test_any_sampler_does(self, optuna: Any, data: Any) -> None:
        """A grid sampler tries its grid."""
        sampler = optuna.samplers.GridSampler({"l1": [0, 1], "learning_rate": [0.0001, 0.3]}, seed=0)
        search = cirrus.OptunaSearch(estimator(epochs=1), self.SPACE, n_trials=4, sampler=sampler)
        search.fit(data[0])
        tried = {(row["param_l1"], row["param_learning_rate"]) for row in search.results_}
        assert tried == {(l1, rate) for l1 in (0, 1) for rate in (0.0001, 0.3)}

    def test_its_pruners_prune(self, optuna: Any, data: Any) -> None:
        """A pruner of Optuna hears of each epoch, and the trials that it gives up end early."""
        pruner = optuna.pruners.ThresholdPruner(lower=-0.5)  # of minus the loss
        search = cirrus.OptunaSearch(
            estimator(epochs=100, batch_size=50), {"learning_rate": [1e-6]}, n_trials=1, pruner=pruner
        )
        search.fit(data[0])
        assert statuses(search) == ["pruned"]
        assert search.results_[0]["epochs"] < 100
        assert search.study_.trials[0].state == optuna.trial.TrialState.PRUNED

    def test_our_pruners_do_too(self, data: Any) -> None:
        """Successive halving over trials that are asked for one by one."""
        search = cirrus.OptunaSearch(estimator(), self.SPACE, n_trials=6, random_state=0, pruner="asha")
        search.fit(data[0], validation=data[1])
        assert "finished" in statuses(search)
        assert "pruned" in statuses(search)

    def test_the_same_program_goes_on(self, tmp_path: Path, data: Any) -> None:
        """The study is told again what its search knows, and no more is tried than wanted."""

        def make(**options: Any) -> Any:
            return cirrus.OptunaSearch(
                estimator(LocalBackend(root=tmp_path), epochs=1),
                self.SPACE,
                n_trials=3,
                search_id="study",
                max_concurrent=1,
                **options,
            )

        first = make(max_seconds=0.5).fit(data[0])
        assert len(first.status.trials) < 3
        second = make().fit(data[0])
        assert statuses(second).count("queued") == 0
        assert len(second.status.trials) == len(second.study_.trials) == 3
        with pytest.raises(ConfigError, match="run its program again"):
            cirrus.OptunaSearch.resume("study", backend=LocalBackend(root=tmp_path))

    @pytest.mark.parametrize(
        ("field", "space", "options"),
        [
            ("space", {}, {}),
            ("space", {"l1": 3}, {}),
            ("n_trials", {"l1": [0]}, {"n_trials": 0}),
            ("no_such", {"no_such": [0]}, {}),
            ("pruner", {"l1": [0]}, {"pruner": "magic"}),
        ],
    )
    def test_wrong_parameters_are_named(
        self, data: Any, field: str, space: Any, options: dict[str, Any]
    ) -> None:
        """Before anything is started."""
        with pytest.raises(ConfigError) as caught:
            cirrus.OptunaSearch(estimator(), space, **options).fit(data[0])
        assert caught.value.field == field
