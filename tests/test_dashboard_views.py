"""What pages of the dashboard are told: choices of runs, deltas, colours, tables, analysis."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import json
import math
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from cirrus_dashboard import panels
from cirrus_dashboard.analysis import importances, spans
from cirrus_dashboard.curves import MAX_POINTS, Columns, decode
from cirrus_dashboard.exports import curves_csv, runs_csv
from cirrus_dashboard.parallel import parallel
from cirrus_dashboard.records import RunRecord, Totals, config_difference, hyperparameters_of, varying
from cirrus_dashboard.sources import Snapshot
from cirrus_dashboard.styles import MAX_COLORED_RUNS, QUALITATIVE, styles_of
from cirrus_dashboard.views import PORTION_SECONDS, Cursors, CurveCache, View, choose, delta, most_telling
from dashboard_runs import config_of, points

from cirrus.client_backend.metric_columns import columns_of_points
from cirrus.config import RunConfig
from cirrus.errors import ConfigError
from cirrus.metrics import MetricPoint, RunEvent, RunState, RunStatus


def record(
    run_id: str, losses: Any = (0.7, 0.5), *, state: RunState = RunState.FINISHED, **params: Any
) -> RunRecord:
    """Return a run as the source would."""
    fields = {
        name: params.pop(name)
        for name in ("search", "trial", "trial_status", "note", "begun")
        if name in params
    }
    config = config_of(run_id, **params)
    return RunRecord(
        run_id=run_id,
        version=1,
        runs=(run_id,),
        model="LogisticRegression",
        config=config,
        status=RunStatus(state=state, cost=0.5, seconds=2.0, updates=20, n_workers=2),
        columns=Columns(points(losses)),
        hyperparameters=hyperparameters_of(config),
        **fields,
    )


def snapshot(*records: RunRecord, version: int = 1) -> Snapshot:
    """Return a snapshot of these runs."""
    return Snapshot(version, MappingProxyType({run.run_id: run for run in records}))


#: What dichromats see of linear RGB: Machado, Oliveira and Fernandes, "A Physiologically-based Model for
#: Simulation of Color Vision Deficiency" (2009), severity 1.
COLOUR_VISIONS = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                   [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                     [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                   [0.004733, 0.691367, 0.303900]],
}  # fmt: skip
#: From linear sRGB to CIE XYZ, D65.
XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
                [0.0193339, 0.1191920, 0.9503041]])  # fmt: skip


def lab(color: str, kind: str | None) -> Any:
    """Return a colour as somebody sees it, in CIELAB."""
    raw = np.array([int(color[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    linear = np.where(raw <= 0.04045, raw / 12.92, ((raw + 0.055) / 1.055) ** 2.4)
    if kind is not None:
        linear = np.clip(np.array(COLOUR_VISIONS[kind]) @ linear, 0, 1)
    scaled = XYZ @ linear / XYZ.sum(axis=1)
    x, y, z = np.where(scaled > 0.008856, np.cbrt(scaled), 7.787 * scaled + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def ask(held: Snapshot, view: View, cursors: Any = None) -> dict[str, Any] | None:
    """Ask for a delta as a page does: over JSON."""
    plain = json.loads(json.dumps(cursors))
    found = delta(held, view, Cursors.from_plain(plain), source="s", cache=CurveCache())
    return None if found is None else json.loads(json.dumps(found, allow_nan=False))


class TestChoosing:
    """Which curves are drawn."""

    RUNS = tuple(record(name, (0.7, loss)) for name, loss in (("a", 0.3), ("b", 0.5), ("c", 0.4), ("d", 0.6)))

    def names(self, **view: Any) -> str:
        return "".join(run.run_id for run in choose(self.RUNS, View(**view)))

    def test_best_and_worst_are_by_the_last_loss(self):
        """Best N are those with the lowest loss, worst N those with the highest."""
        assert self.names() == "abcd"
        assert self.names(show="best", count=2) == "ac"
        assert self.names(show="worst", count=2) == "bd"
        assert self.names(show="worst", count=9) == "abcd"

    def test_pinned_stay_and_hidden_go(self):
        """A pinned run is drawn whatever its loss; a hidden one is not, and does not count among the best."""
        assert self.names(show="best", count=1, pinned=frozenset("d")) == "ad"
        assert self.names(show="best", count=1, hidden=frozenset("a")) == "c"

    def test_a_run_without_a_loss_is_neither_best_nor_worst(self):
        """What has no number cannot be ranked."""
        runs = [*self.RUNS, record("e", (math.nan,)), record("f", ())]
        assert [run.run_id for run in choose(runs, View(show="worst", count=1))] == ["d"]

    def test_a_search_can_be_looked_at_alone(self):
        """Runs of other searches, and of none, are left out."""
        runs = [record("a"), record("b", search="s", trial=0), record("c", search="t", trial=0)]
        assert [run.run_id for run in choose(runs, View(search="s"))] == ["b"]

    @pytest.mark.parametrize(
        ("field", "value"),
        [("x", "moon"), ("loss", "secret"), ("show", "some"), ("smoothing", 1.0), ("smoothing", math.nan)]
        + [("count", 0), ("count", 10**9)],
    )
    def test_a_view_is_checked(self, field, value):
        """What a browser made up is refused by the name of the field."""
        with pytest.raises(ConfigError, match=field):
            View(**{field: value})


class TestDelta:
    """What a page lacks."""

    def test_the_newest_come_first_and_trials_by_number(self):
        """Trial 10 comes after trial 9, and a search has its place by its own age."""
        trials = [
            dataclasses.replace(record(f"search-2:{n}"), search="search-2", trial=n) for n in (10, 9, 0)
        ]
        found = ask(snapshot(record("1-run"), *trials, record("3-run")), View())
        assert found is not None
        assert found["row_order"] == ["3-run", "search-2:0", "search-2:9", "search-2:10", "1-run"]

    def test_a_search_with_a_name_has_its_place_by_its_age(self):
        """A name says nothing of when the search began; its trials stay together."""
        named = [record(f"a:{n}", search="a", trial=n, begun="2") for n in (0, 1)]
        named += [record("b:0", search="b", trial=0, begun="2")]
        found = ask(snapshot(record("3-run"), *named, record("1-run")), View())
        assert found is not None
        assert found["row_order"] == ["3-run", "b:0", "a:0", "a:1", "1-run"]

    def test_curves_are_named_by_what_tells_most(self):
        """Of many hyperparameters that differ, those with the most values are in the legend."""
        runs = [record(str(n), a=n > 1, b=n > 2, c=n, d=n > 3, e=n / 2, f=n // 2) for n in range(5)]
        assert most_telling(runs, varying(runs)) == ["c", "e", "f"]

    def test_a_page_that_is_up_to_date_gets_nothing(self):
        """The same version and view: no answer at all."""
        held = snapshot(record("a"))
        first = ask(held, View())
        assert first is not None
        assert ask(held, View(), first["cursors"]) is None

    def test_only_what_changed_is_sent(self):
        """Of two runs, the one that grew is sent, from where the page stands."""
        before = snapshot(record("a"), record("b"))
        first = ask(before, View())
        assert first is not None
        assert sorted(first["curves"]) == sorted(first["rows"]) == ["a", "b"]
        grown = dataclasses.replace(before.records["b"], version=2, columns=Columns(points((0.7, 0.5, 0.4))))
        second = ask(snapshot(before.records["a"], grown, version=2), View(), first["cursors"])
        assert second is not None
        assert list(second["curves"]) == list(second["rows"]) == ["b"]
        assert second["curves"]["b"]["loss"]["from"] == 2

    def test_curves_are_named_at_length_and_in_short(self):
        """A phone has room for values alone, and for their names once."""
        found = ask(
            snapshot(record("a", l1=1, learning_rate=0.5), record("b", l1=0, learning_rate=0.5)), View()
        )
        assert found is not None
        assert [trace["chosen"] for trace in found["traces"]] == ["l1 1", "l1 0"]
        assert [trace["short"] for trace in found["traces"]] == ["1", "0"]
        trial = ask(snapshot(record("search-7:3", search="search-7", trial=3)), View())
        assert trial is not None
        assert [trace["name"] for trace in trial["traces"]] == ["7 #3"]
        assert found["titles"]["short"] == "l1"

    def test_another_axis_is_sent_anew(self):
        """Points on other axes, or smoothed otherwise, are other points."""
        held = snapshot(record("a"))
        first = ask(held, View())
        assert first is not None
        for view in (View(x="cost"), View(smoothing=0.5), View(loss="train_loss")):
            second = ask(held, view, first["cursors"])
            assert second is not None
            assert second["curves"]["a"]["loss"]["from"] == 0
            assert second["rows"] == {}

    def test_versions_of_another_process_mean_nothing(self):
        """A dashboard that was started anew sends everything, whatever the page holds."""
        first = ask(snapshot(record("a"), version=7), View())
        assert first is not None
        again = ask(snapshot(record("a"), version=7), View(), {**first["cursors"], "source": "before"})
        assert again is not None
        assert "a" in again["curves"]
        assert "a" in again["rows"]

    @pytest.mark.parametrize(
        "cursors",
        [None, 3, [], {"rows": 3, "curves": [1]}, {"source": "s", "version": "x", "curves": {"a": [1, "2"]}}]
        + [{"source": "s", "curves": {"a": [1, 2, 3, 4, 5, 6], "b": None}, "rows": {"a": None}}],
    )
    def test_odd_cursors_count_as_nothing_held(self, cursors):
        """A page may send anything; it gets the whole."""
        found = ask(snapshot(record("a")), View(), cursors)
        assert found is not None
        assert found["curves"]["a"]["loss"]["from"] == 0

    def test_numbers_that_json_does_not_know_stay_out(self):
        """A run that diverged has no loss in the table, and its page can still be read."""
        run = record("a", (math.nan, math.inf))
        status = dataclasses.replace(run.status, cost=math.nan, seconds=math.inf)
        found = ask(snapshot(dataclasses.replace(run, status=status)), View())
        assert found is not None
        assert found["rows"]["a"]["loss"] is None
        assert found["rows"]["a"]["cost"] is None

    def test_what_one_answer_has_no_time_for_comes_with_the_next(self):
        """Many curves come in portions, the newest first; a page keeps what it has meanwhile."""
        runs = [record(f"{n}", (0.7, 0.5)) for n in range(5)]
        first = self.portions(snapshot(*runs), None)
        assert [list(portion["curves"]) for portion in first] == [["4", "3"], ["2", "1"], ["0"]]
        assert [portion["more"] for portion in first] == [True, True, False]
        assert sorted(first[0]["rows"]) == ["0", "1", "2", "3", "4"]
        assert all(portion["rows"] == {} for portion in first[1:])
        grown = [
            dataclasses.replace(run, version=2, columns=Columns(points((0.7, 0.5, 0.4)))) for run in runs
        ]
        second = self.portions(snapshot(*grown, version=2), first[-1]["cursors"])
        assert [list(portion["curves"]) for portion in second] == [["4", "3"], ["2", "1"], ["0"]]
        assert all(part["loss"]["from"] == 2 for portion in second for part in portion["curves"].values())
        assert all(len(portion["cursors"]["curves"]) == 5 for portion in second)

    def test_one_curve_at_least_is_in_an_answer(self):
        """However slow the machine is, a page comes to its curves."""
        runs = [record(f"{n}") for n in range(3)]
        found = self.portions(snapshot(*runs), None, seconds_a_look=PORTION_SECONDS * 9)
        assert [list(portion["curves"]) for portion in found] == [["2"], ["1"], ["0"]]

    def portions(
        self, held: Snapshot, cursors: Any, *, seconds_a_look: float = PORTION_SECONDS * 0.6
    ) -> list[dict[str, Any]]:
        """Ask until there is no more, with a clock that moves on whenever it is looked at."""
        cache, found = CurveCache(), []
        while True:
            clock = itertools.count(0.0, seconds_a_look)
            portion = delta(
                held,
                View(),
                Cursors.from_plain(cursors),
                source="s",
                cache=cache,
                clock=lambda clock=clock: next(clock),
            )
            if portion is None:
                return found
            found.append(portion)
            cursors = json.loads(json.dumps(portion["cursors"]))

    def test_groups_have_bands(self):
        """Grouped by a hyperparameter, there is one band a value, the best first."""
        runs = [record("a", learning_rate=0.1), record("b", learning_rate=0.1)]
        runs.append(record("c", (0.4, 0.2), learning_rate=0.2))
        found = ask(snapshot(*runs), View(group_by="learning_rate"))
        assert found is not None
        assert [band["name"] for band in found["bands"]] == [
            "learning_rate = 0.2 (1)",
            "learning_rate = 0.1 (2)",
        ]

    def test_five_hundred_runs_are_little_to_send(self):
        """500 runs of 2,000 points: 300 points a curve, and an update has the curves that grew alone."""
        losses = 0.5 + 0.1 * np.random.default_rng(0).random(2000)
        columns = [Columns(points(losses + n / 1000)) for n in range(5)]
        runs = [record(f"{n:03d}", learning_rate=10.0 ** -(n % 5)) for n in range(500)]
        runs = [dataclasses.replace(run, columns=columns[n % 5]) for n, run in enumerate(runs)]
        cache = CurveCache()
        first = delta(snapshot(*runs), View(), Cursors(), source="s", cache=cache, clock=lambda: 0.0)
        assert first is not None
        assert len(first["curves"]) == 500
        assert max(len(decode(x["loss"]["columns"][0])) for x in first["curves"].values()) <= MAX_POINTS
        longer = Columns(points([*losses, 0.4]))
        runs = [
            dataclasses.replace(run, version=2, columns=longer) if n % 10 == 0 else run
            for n, run in enumerate(runs)
        ]
        cursors = Cursors.from_plain(json.loads(json.dumps(first["cursors"])))
        held = snapshot(*runs, version=2)
        second = delta(held, View(), cursors, source="s", cache=cache, clock=lambda: 0.0)
        assert second is not None
        assert len(second["curves"]) == 50
        assert len(json.dumps(second)) < 300_000


class TestColours:
    """Which colour a curve has."""

    def test_few_runs_have_each_their_own(self):
        """Up to ten curves, no two look alike."""
        runs = [record(f"{n:02d}") for n in range(MAX_COLORED_RUNS)]
        styles = styles_of(runs, None, [])
        assert len(set(styles.by_run.values())) == MAX_COLORED_RUNS
        assert styles.legend is None

    def test_many_runs_are_coloured_by_what_varies(self):
        """Beyond ten, the colour is a number's place between lowest and highest, here by logarithm."""
        runs = [record(f"{n:02d}", learning_rate=10.0 ** -(n % 4)) for n in range(12)]
        styles = styles_of(runs, None, varying(runs))
        assert styles.legend is not None
        assert styles.legend["title"] == "learning_rate (log)"
        assert (styles.legend["low"], styles.legend["high"]) == (0.001, 1.0)
        assert len({style.color for style in styles.by_run.values()}) == 4

    def test_names_have_a_colour_each(self):
        """A hyperparameter that is no number gets a colour a value."""
        runs = [record("a", optimizer="ftrl"), record("b", optimizer="adam"), record("c", optimizer="adam")]
        styles = styles_of(runs, "optimizer", varying(runs))
        assert styles.by_run["b"] == styles.by_run["c"] != styles.by_run["a"]

    @pytest.mark.parametrize("kind", [None, *COLOUR_VISIONS])
    def test_colours_differ_to_any_eye(self, kind):
        """Two colours of curves are 15 apart in CIELAB at least, as people of any colour vision see them."""
        seen = [lab(color, kind) for color in QUALITATIVE]
        assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 15


class TestRecords:
    """Facts about runs."""

    @pytest.mark.parametrize(
        ("state", "killable", "resumable"),
        [
            (RunState.STARTING, True, False),
            (RunState.RUNNING, True, False),
            (RunState.INTERRUPTED, True, True),
            (RunState.KILLED, False, True),
            (RunState.FINISHED, False, False),
            (RunState.FAILED, False, False),
        ],
    )
    def test_what_ended_cannot_be_killed(self, state, killable, resumable):
        """Kill is for what is not over, resume for what lost its client."""
        run = record("a", state=state)
        assert (run.can_be_killed, run.can_be_resumed) == (killable, resumable)

    @pytest.mark.parametrize(
        ("status", "killable", "resumable"),
        [("queued", True, False), ("running", True, False), ("paused", True, False), ("pruned", False, True)]
        + [("killed", False, True), ("finished", False, False), ("interrupted", True, True)],
    )
    def test_a_trial_is_what_its_search_says(self, status, killable, resumable):
        """Of a trial, its search knows whether anything will happen to it yet."""
        run = record("a", search="s", trial=0, trial_status=status)
        assert (run.state, run.can_be_killed, run.can_be_resumed) == (status, killable, resumable)

    def test_totals_count_what_lives(self):
        """Cost is of all runs, workers and dollars an hour of the live ones."""
        live = record("a", state=RunState.RUNNING)
        assert live.config is not None
        live = dataclasses.replace(live, config=dataclasses.replace(live.config, dollars_per_hour=3.6))
        found = Totals.of([live, record("b")])
        assert (found.n_runs, found.n_live, found.n_workers, found.cost) == (2, 1, 2, 1.0)
        assert found.dollars_per_second == pytest.approx(0.001)
        assert found.memory_mb == 2 * live.config.worker_memory_mb

    def test_only_what_differs_is_compared(self):
        """Each parameter that is not the same in two configs is named once, with its two values."""

        def config(run_id: str, rate: float, **fields: Any) -> RunConfig:
            made = config_of(run_id, learning_rate=rate, l1=1.0, search="s", trial=len(run_id))
            (table,) = made.tables
            optimizer = dataclasses.replace(table.optimizer, learning_rate=rate)
            tables = (dataclasses.replace(table, optimizer=optimizer),)
            return dataclasses.replace(made, tables=tables, hyperparameters={"learning_rate": rate}, **fields)

        first, second = config("a", 0.1), config("bb", 0.2, n_workers=3)
        assert config_difference(first, second) == [
            ("learning_rate", 0.1, 0.2),
            ("n_workers", first.n_workers, 3),
        ]
        assert config_difference(first, first) == []

    def test_trials_are_called_as_in_the_table(self):
        """By their search and their number."""
        trials = [record(f"sweep:{n}", search="sweep", trial=n, learning_rate=n + 1.0) for n in range(2)]
        text = str(panels.compare(trials))
        assert "sweep #1" in text
        assert "sweep:1" not in text

    def test_values_that_look_alike_are_told_apart(self):
        """Values are rounded, but not to the same."""
        text = str(panels.compare([record("a", learning_rate=0.100001), record("b", learning_rate=0.100002)]))
        assert "0.100001" in text
        assert "0.100002" in text
        assert "'0.1'" in str(panels.compare([record("a", rate=0.1000001), record("b", rate=0.2)]))

    def test_varying_names_what_differs(self):
        """Columns are for hyperparameters that are not the same in all runs."""
        runs = [record("a", learning_rate=0.1, l1=1.0), record("b", learning_rate=0.2, l1=1.0)]
        assert varying(runs) == ["learning_rate"]


class TestAnalysis:
    """Importance and timelines."""

    def test_what_decides_the_loss_is_important(self):
        """A parameter that decides the loss has nearly all of the share, one that does not little."""
        grid = itertools.product((0.001, 0.01, 0.1, 1.0), (1, 2, 4))
        runs = [record(f"{n:02d}", (0.7, 0.5 - math.log10(rate) / 10), learning_rate=rate, n_workers=workers)
                for n, (rate, workers) in enumerate(grid)]  # fmt: skip
        first, second = importances(runs, varying(runs))
        assert (first.name, second.name) == ("learning_rate", "n_workers")
        assert first.share > 0.8
        assert first.correlation == pytest.approx(-1.0)
        assert first.share + second.share == pytest.approx(1.0)

    def test_few_runs_say_nothing(self):
        """With four runs nothing is claimed."""
        runs = [record(str(n), learning_rate=float(n + 1)) for n in range(4)]
        assert importances(runs, varying(runs)) == []

    def test_generations_become_spans(self):
        """A worker's generations follow each other; who has not left works until now, or until the end."""
        events = [
            RunEvent(at=1.0, kind="started", who="shard-0", generation=1),
            RunEvent(at=2.0, kind="joined", who="train-0", generation=0),
            RunEvent(at=3.0, kind="left", who="train-0", generation=0),
            RunEvent(at=4.0, kind="joined", who="train-0", generation=1),
        ]
        found = [(x.who, x.generation, x.begin, x.end, x.open) for x in spans(events, 10.0)]
        assert found == [
            ("shard-0", 1, 1.0, 10.0, True),
            ("train-0", 0, 2.0, 3.0, False),
            ("train-0", 1, 4.0, 10.0, True),
        ]
        ended = [*events, RunEvent(at=5.0, kind="ended", who="run", text="finished")]
        assert [x.end for x in spans(ended, 10.0)] == [5.0, 3.0, 5.0]

    def test_every_panel_can_be_drawn(self):
        """What panels draw is JSON that a page can read, with and without runs."""
        runs = [record(f"{n}", (0.7, 0.5 + n / 50), learning_rate=0.1 * (n + 1), optimizer="ab"[n % 2])
                for n in range(6)]  # fmt: skip
        events = [RunEvent(at=1.0, kind="joined", who="train-0"), RunEvent(at=9e99, kind="ended", who="run")]
        drawn = [
            panels.detail(runs[0], events),
            panels.detail(None, []),
            panels.compare(runs[:2]),
            panels.compare(runs),
            parallel(runs, varying(runs)),
            parallel([], []),
            panels.importance(runs, varying(runs)),
            panels.importance([], []),
            panels.timeline(runs[0], events),
            panels.timeline(runs[0], []),
            panels.timeline(None, []),
            panels.totals(Totals.of(runs)),
        ]
        texts = [json.dumps(part, default=lambda x: x.to_plotly_json(), allow_nan=False) for part in drawn]
        assert "learning_rate" in texts[0]
        assert "0.1" in texts[2]
        assert "0.2" in texts[2]
        assert "optimizer" in texts[4]
        assert "worker 0" in texts[8]


class TestExports:
    """CSV."""

    def test_runs_are_lines_with_their_hyperparameters(self):
        """Every run is a line; text that a spreadsheet would compute is kept from it."""
        text = runs_csv([record("a", learning_rate=0.1, note="=1+1"), record("b", l1=2.0)])
        first, second = csv.DictReader(io.StringIO(text))
        assert (first["run"], first["learning_rate"], first["l1"], first["note"]) == ("a", "0.1", "", "'=1+1")
        assert (second["run"], second["train_loss"], second["l1"]) == ("b", "0.5", "2.0")
        (head, *_) = csv.reader(io.StringIO(text))
        assert "n_workers" in head
        assert len(head) == len(set(head))

    def test_curves_are_all_points_that_have_a_loss(self):
        """Points come as they were measured, those without this loss left out."""
        run = record("a", np.linspace(0.7, 0.5, 1000))
        point = MetricPoint(seconds=2000.0, epoch=1, updates=5, samples=5, validation_loss=0.25)
        run = dataclasses.replace(run, columns=run.columns.extended(columns_of_points([point])))
        train = curves_csv([run], View(loss="train_loss", smoothing=0.9)).splitlines()
        assert train[0] == "run,seconds,updates,epochs,cost,training_loss"
        assert len(train) == 1001
        assert train[1].endswith(",0.7")
        assert curves_csv([run], View(loss="validation_loss")).splitlines()[1:] == ["a,2000,5,5,0,0.25"]


@pytest.mark.parametrize(
    ("generation", "text"),
    [
        (3, "generation 3"),
        (1_000_000, "generation 1"),
        (1_000_004, "generation 5"),
        (2_000_000, "generation 1 of client 2"),
    ],
)
def test_generations_are_told_as_people_count(generation, text):
    """Workers count from a high number, so that those of another client are never taken for theirs."""
    assert panels.generation_text(generation) == text


def test_what_tells_a_run_from_others_comes_first():
    """Hyperparameters that all runs share are folded away."""
    run = record("a", learning_rate=0.5, l1=1)
    text = str(panels.detail(run, [], ["learning_rate"]))
    assert text.index("learning_rate") < text.index("that all runs share") < text.index("'l1'")


def test_what_a_run_should_cost_stands_with_what_it_costs():
    """Where it is priced, the model's figure for its size and seconds is among the facts."""
    run = record("a")
    status = RunStatus(state=RunState.RUNNING, seconds=100.0, cost=1.5)
    priced = dataclasses.replace(config_of("a"), dollars_per_hour=36.0)
    text = str(panels.detail(dataclasses.replace(run, status=status, config=priced), [], []))
    assert text.index("$1.50") < text.index("cost by the model") < text.index("$1.00")
    assert "cost by the model" not in str(panels.detail(dataclasses.replace(run, status=status), [], []))
