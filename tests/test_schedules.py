"""Schedules: what works next and what is given up, as pure decisions; and what is tried."""

from __future__ import annotations

import csv
import dataclasses
import math
import random

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from cirrus.client_backend.search_folder import SearchState, Trial, TrialStatus
from cirrus.errors import ConfigError, StorageError
from cirrus.frontend.search.results import SearchResults
from cirrus.frontend.search.schedules import (
    AshaPruner,
    Job,
    MedianPruner,
    Schedule,
    WholeSchedule,
    resolve_pruner,
    schedule_from_plain,
)
from cirrus.frontend.search.spaces import (
    grid_candidates,
    plain_params,
    random_candidates,
    space_in_words,
    usable_params,
)
from cirrus.metrics import RunState


def simulate(
    schedule: Schedule, losses: list[list[float]], places: int, seed: int = 0
) -> tuple[list[Trial], list[Job]]:
    """Let trials work side by side, each job ending at a random moment; return the trials and all jobs.

    Args:
        schedule: Under test.
        losses: Of each trial at each rung.
        places: Trials at work at a time.
        seed: Of the order in which jobs end.
    """
    rng = random.Random(seed)
    trials = [Trial(index=index, params={}) for index in range(len(losses))]
    jobs: list[Job] = []
    at_work: list[Job] = []
    while True:
        while len(at_work) < places and (job := schedule.next_job(trials)) is not None:
            assert trials[job.trial].status in (TrialStatus.QUEUED, TrialStatus.PAUSED)
            trials[job.trial] = dataclasses.replace(
                trials[job.trial], status=TrialStatus.RUNNING, rung=job.rung, runs=("r",)
            )
            jobs.append(job)
            at_work.append(job)
        if not at_work:
            return trials, jobs
        job = at_work.pop(rng.randrange(len(at_work)))
        trial = trials[job.trial]
        status = TrialStatus.FINISHED if job.fraction is None else schedule.ends_at(trial)
        loss = losses[job.trial][job.rung]
        trials[job.trial] = dataclasses.replace(
            trial, status=status, losses=(*trial.losses[: job.rung], loss), loss=loss
        )


class TestWhole:
    """No pruning."""

    def test_trials_run_in_order_to_their_ends(self) -> None:
        """Each trial has one job, the whole training."""
        trials, jobs = simulate(WholeSchedule(), [[1.0]] * 5, places=2)
        assert [job.trial for job in jobs] == [0, 1, 2, 3, 4]
        assert all(job.fraction is None for job in jobs)
        assert {trial.status for trial in trials} == {TrialStatus.FINISHED}


class TestAsha:
    """Successive halving, asynchronous."""

    def test_rungs_are_powers_up_to_the_whole(self) -> None:
        """Each rung is `reduction_factor` times the one below, the last the whole training."""
        assert AshaPruner().fractions == pytest.approx((1 / 27, 1 / 9, 1 / 3, 1))
        assert AshaPruner(reduction_factor=2, min_fraction=0.25).fractions == (0.25, 0.5, 1)
        assert AshaPruner(reduction_factor=4, min_fraction=0.9).fractions == (0.25, 1)

    def test_a_third_goes_on_at_each_rung_where_all_come_together(self) -> None:
        """With as many places as trials, 27 trials give 9, 3 and 1 who go on, and they are the best."""
        losses = [[float(index)] * 4 for index in range(27)]
        trials, jobs = simulate(AshaPruner(), losses, places=1)
        by_rung = [sorted({job.trial for job in jobs if job.rung == rung}) for rung in range(4)]
        assert by_rung[0] == list(range(27))
        assert [len(rung) for rung in by_rung[1:]] == [9, 3, 1]
        assert by_rung[3] == [0]
        assert trials[0].status is TrialStatus.FINISHED
        assert {trial.status for trial in trials[1:]} == {TrialStatus.PAUSED}

    @given(
        n_trials=st.integers(1, 40),
        places=st.integers(1, 10),
        factor=st.integers(2, 4),
        seed=st.integers(0, 1000),
    )
    def test_one_at_least_is_trained_to_its_end_and_most_are_not(
        self, n_trials: int, places: int, factor: int, seed: int
    ) -> None:
        """Whatever the order of events: all begin, one at least finishes, nobody waits who was promoted."""
        rng = random.Random(seed)
        schedule = AshaPruner(reduction_factor=factor, min_fraction=factor**-2)
        losses = [[rng.random() for _ in range(3)] for _ in range(n_trials)]
        trials, jobs = simulate(schedule, losses, places, seed)
        assert sorted(job.trial for job in jobs if job.rung == 0) == list(range(n_trials))
        assert len({(job.trial, job.rung) for job in jobs}) == len(jobs)
        finished = [trial for trial in trials if trial.status is TrialStatus.FINISHED]
        assert finished
        # A rung is promoted from one at a time while others arrive: wrong promotions grow as the root of n.
        assert len(finished) <= n_trials / factor**2 + 2 * math.sqrt(n_trials) + 1

    def test_whoever_went_astray_is_never_promoted(self) -> None:
        """Losses that are no numbers, or infinite, are worse than all others."""
        losses = [[math.nan] * 4, [math.inf] * 4, [5.0] * 4]
        trials, _ = simulate(AshaPruner(), losses, places=3)
        assert [trial.status.value for trial in trials] == ["paused", "paused", "finished"]

    def test_nobody_is_promoted_where_all_went_astray(self) -> None:
        """Then the search ends, rather than train the hopeless to their ends."""
        trials, _ = simulate(AshaPruner(), [[math.nan] * 4] * 4, places=2)
        assert {trial.status for trial in trials} == {TrialStatus.PAUSED}

    def test_killed_and_failed_trials_hold_up_nobody(self) -> None:
        """A trial that was killed at a rung, or failed, is passed over."""
        trials = [
            Trial(index=0, params={}, status=TrialStatus.KILLED, losses=(0.1,), runs=("r",)),
            Trial(index=1, params={}, status=TrialStatus.FAILED),
            Trial(index=2, params={}, status=TrialStatus.PAUSED, losses=(0.2,), runs=("r",)),
        ]
        # The killed one has the only place of its rung.
        assert AshaPruner().next_job(trials) is None
        trials[0] = dataclasses.replace(trials[0], losses=(0.3,))
        assert AshaPruner().next_job(trials) == Job(trial=2, rung=1, fraction=pytest.approx(1 / 9))

    def test_a_resumed_trial_goes_first_and_to_its_end(self) -> None:
        """Somebody who resumes a trial has decided."""
        trials = [
            Trial(index=0, params={}),
            Trial(index=1, params={}, status=TrialStatus.QUEUED, runs=("r",), rung=3, losses=(9.0,)),
        ]
        assert AshaPruner().next_job(trials) == Job(trial=1, rung=3, fraction=None)

    def test_trials_that_are_still_to_come_are_waited_for(self) -> None:
        """The best of few is promoted only when no more trials will come to its rung."""
        trials = [Trial(index=0, params={}, status=TrialStatus.PAUSED, losses=(0.1,), runs=("r",))]
        assert AshaPruner().next_job(trials, more_to_come=True) is None
        assert AshaPruner().next_job(trials) is not None

    @pytest.mark.parametrize(
        "wrong",
        [{"reduction_factor": 1}, {"reduction_factor": 2.5}, {"min_fraction": 0}, {"min_fraction": 1}],
    )
    def test_wrong_parameters_are_refused(self, wrong: dict[str, float]) -> None:
        """Each parameter is checked and named."""
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            AshaPruner(**wrong)


class TestMedian:
    """The median stopping rule."""

    def test_the_worse_half_is_given_up(self) -> None:
        """A trial is given up when its best loss is above the others' median at the same epoch."""
        curves = {index: {1: 1.0, 2: 0.1 * index} for index in range(5)}
        pruner = MedianPruner()
        assert [pruner.gives_up(index, curves) for index in range(5)] == [False, False, False, True, True]

    def test_a_best_loss_of_earlier_counts(self) -> None:
        """One bad epoch is no reason."""
        curves = {index: {1: 0.5, 2: 0.5} for index in range(4)} | {4: {1: 0.4, 2: 9.0}}
        assert not MedianPruner().gives_up(4, curves)

    def test_nobody_is_given_up_too_early(self) -> None:
        """Neither before `min_epochs`, nor before `min_trials` others have come as far."""
        curves = {index: {1: float(index)} for index in range(4)}
        assert MedianPruner().gives_up(3, curves)
        assert not MedianPruner(min_epochs=2).gives_up(3, curves)
        assert not MedianPruner(min_trials=4).gives_up(3, curves)
        assert not MedianPruner().gives_up(9, curves)

    def test_going_astray_is_worse_than_all(self) -> None:
        """A loss that is no number is above every median."""
        curves = {index: {1: 1.0} for index in range(3)} | {3: {1: math.nan}}
        assert MedianPruner().gives_up(3, curves)

    @pytest.mark.parametrize("wrong", [{"min_epochs": 0}, {"min_trials": 0}, {"min_trials": True}])
    def test_wrong_parameters_are_refused(self, wrong: dict[str, int]) -> None:
        """Each parameter is checked and named."""
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            MedianPruner(**wrong)


class TestNames:
    """Schedules by name, and in search.json."""

    @pytest.mark.parametrize(
        "pruner", [None, "median", "asha", AshaPruner(reduction_factor=2), MedianPruner(min_epochs=3)]
    )
    def test_schedules_survive_being_written_down(self, pruner: Schedule | str | None) -> None:
        """What is read back is the same schedule."""
        schedule = resolve_pruner(pruner)
        again = schedule_from_plain(schedule.to_plain())
        assert type(again) is type(schedule)
        assert again.to_plain() == schedule.to_plain()

    @pytest.mark.parametrize("plain", [{"name": "hyperband"}, {"name": "asha", "speed": 3}, {"a": 1}])
    def test_unknown_schedules_are_refused(self, plain: dict[str, object]) -> None:
        """A file of another version is an error, not a guess."""
        with pytest.raises(ConfigError, match="pruner"):
            schedule_from_plain(plain)

    def test_unknown_names_are_refused(self) -> None:
        """The error lists what there is."""
        with pytest.raises(ConfigError, match="asha"):
            resolve_pruner("halving")


class TestSpaces:
    """What is tried."""

    def test_a_grid_is_every_combination(self) -> None:
        """As scikit-learn's grid, numpy numbers as plain ones."""
        found = grid_candidates({"l1": np.array([0.0, 1.0]), "optimizer": ["sgd", "ftrl"]})
        assert len(found) == 4
        assert {type(candidate["l1"]) for candidate in found} == {float}
        assert grid_candidates([{"l1": [0]}, {"l2": [1, 2]}]) == [{"l1": 0}, {"l2": 1}, {"l2": 2}]

    def test_draws_repeat_by_their_seed(self) -> None:
        """The same seed draws the same candidates from scipy's distributions."""
        space = {"learning_rate": scipy.stats.loguniform(0.01, 1), "l1": [0, 1]}
        first = random_candidates(space, 5, 1)
        assert first == random_candidates(space, 5, 1)
        assert first != random_candidates(space, 5, 2)
        assert all(0.01 <= candidate["learning_rate"] <= 1 for candidate in first)

    @pytest.mark.parametrize("wrong", [{}, [{}], {"l1": 3}, {"l1": []}, 7])
    def test_a_wrong_grid_is_refused(self, wrong: object) -> None:
        """The error names the parameter."""
        with pytest.raises(ConfigError, match="param_grid"):
            grid_candidates(wrong)

    def test_wrong_draws_are_refused(self) -> None:
        """The number of draws and the distributions are checked."""
        with pytest.raises(ConfigError, match="n_iter"):
            random_candidates({"l1": [0]}, 0, None)
        with pytest.raises(ConfigError, match="distributions"):
            random_candidates({"l1": 3}, 1, None)

    def test_values_survive_json(self) -> None:
        """Also dicts whose keys are labels rather than text."""
        params = {"class_weight": {0: 1.0, 1: 5.0}, "optimizer_params": {"beta1": 0.5}, "l1": np.float32(0.5)}
        plain = plain_params(params)
        assert usable_params(plain) == params
        with pytest.raises(ConfigError, match="l1"):
            plain_params({"l1": object()})

    def test_spaces_are_told_in_words(self) -> None:
        """Distributions are shown as people write them."""
        words = space_in_words({"learning_rate": scipy.stats.loguniform(0.01, 1), "l1": [0, 1]})
        assert words == {"learning_rate": "loguniform(0.01, 1)", "l1": [0, 1]}


class TestResults:
    """The table."""

    TRIALS = (
        Trial(index=0, params={"l1": 1}, status=TrialStatus.PRUNED, score=0.9, runs=("a", "b")),
        Trial(index=1, params={"l2": 2}, status=TrialStatus.FINISHED, score=0.5),
        Trial(index=2, params={"l1": 3}, status=TrialStatus.FINISHED, score=0.7, cost=1.5),
        Trial(index=3, params={}, status=TrialStatus.FAILED, error="it, well, failed"),
    )

    def test_ranks_follow_scores(self) -> None:
        """The highest score is first, whatever became of the trial; without a score it is last."""
        results = SearchResults(SearchState(state=RunState.FINISHED, trials=self.TRIALS))
        assert [row["rank"] for row in results] == [1, 3, 2, 4]
        assert [row["trial"] for row in results.top(2)] == [0, 2]
        assert len(results) == 4
        assert results[0]["param_l1"] == 1
        assert results[1]["param_l1"] is None

    def test_csv_is_read_back(self, tmp_path) -> None:
        """Every column is there, text quoted where it must be; a file appears whole."""
        results = SearchResults(SearchState(state=RunState.FINISHED, trials=self.TRIALS))
        path = tmp_path / "results.csv"
        assert results.to_csv(path) is None
        assert path.read_text() == results.to_csv()
        rows = list(csv.DictReader(path.read_text().splitlines()))
        assert tuple(rows[0]) == results.columns
        assert rows[3]["error"] == "it, well, failed"
        assert rows[0]["runs"] == "a b"
        with pytest.raises(StorageError):
            results.to_csv(tmp_path / "no" / "such" / "folder.csv")
