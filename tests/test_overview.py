"""What people see of runs and searches: the index as a mere cache, curves by cursors, requests."""

from __future__ import annotations

import dataclasses
import sqlite3
from pathlib import Path

import pytest
from stand_ins import make_config

from cirrus.client_backend.claims import new_claim
from cirrus.client_backend.overview import Overview, join_curves
from cirrus.client_backend.run_index import (
    INDEX_NAME,
    INDEX_VERSION,
    RunIndex,
    file_system_type,
    is_network_file_system,
)
from cirrus.client_backend.runs import run_url
from cirrus.client_backend.search_folder import (
    SearchConfig,
    SearchFolder,
    SearchState,
    Trial,
    TrialStatus,
    best_trial,
    is_search_id,
    new_search_id,
    search_url,
)
from cirrus.errors import ConfigError, ConflictError, NotFoundError, RunError
from cirrus.metrics import MetricPoint, RunState, RunStatus
from cirrus.run_folder import MetricsCursor, MetricsWriter, RunFolder
from cirrus.storage import open_store


def make_run(
    root: Path | str, run_id: str, state: RunState = RunState.FINISHED, **fields: object
) -> RunFolder:
    """Write the folder of a run that ended."""
    folder = RunFolder(run_url(str(root), run_id))
    folder.create(dataclasses.replace(make_config(run_id=run_id), **fields))
    folder.write_status(RunStatus(state=state, updates=7))
    return folder


def make_search(root: Path | str, *trials: Trial, state: RunState = RunState.RUNNING) -> SearchFolder:
    """Write the folder of a search that nobody drives."""
    config = SearchConfig(search_id=new_search_id(), estimator="LogisticRegression", method="grid")
    folder = SearchFolder(search_url(str(root), config.search_id))
    folder.create(config)
    folder.write_state(SearchState(state=state, trials=trials), None)
    return folder


def ids(overview: Overview) -> list[str]:
    """Return the ids of all runs, as listed."""
    return [summary.run_id for summary in overview.runs()]


class TestIndex:
    """The index makes listing quicker, and is never what is believed."""

    def test_runs_are_listed_from_it_and_from_folders_alike(self, tmp_path: Path) -> None:
        """The first listing and those after it say the same, and show what a run says of its search."""
        make_run(tmp_path, "a", search="search-1", trial=3, hyperparameters={"l1": 0.5})
        make_run(tmp_path, "b", RunState.KILLED)
        overview = Overview(str(tmp_path))
        first = overview.runs()
        assert overview.runs() == first
        assert overview.problem is None
        assert [(run.run_id, run.search, run.trial, run.hyperparameters) for run in first] == [
            ("a", "search-1", 3, {"l1": 0.5}),
            ("b", None, None, {}),
        ]
        assert [run.run_id for run in overview.runs("search-1")] == ["a"]

    def test_finished_runs_are_read_once(self, tmp_path: Path) -> None:
        """What a finished run says comes from the index; a killed one can be resumed, so it is read again."""
        finished, killed = make_run(tmp_path, "a"), make_run(tmp_path, "b", RunState.KILLED)
        Overview(str(tmp_path)).runs()
        finished.store.delete("config.json")
        killed.store.delete("config.json")
        killed.write_status(RunStatus(state=RunState.FINISHED, updates=9))
        listed = Overview(str(tmp_path)).runs()
        assert [(run.status.state.value, run.status.updates) for run in listed if run.status] == [
            ("finished", 7),
            ("finished", 9),
        ]

    def test_what_a_client_puts_right_after_the_end_is_listed(self, tmp_path: Path) -> None:
        """While its client holds a run that has ended, its cost may change: it is read again until then."""
        folder = make_run(tmp_path, "a")
        claim = new_claim()
        folder.claim(claim)
        overview = Overview(str(tmp_path))
        assert [run.status.cost for run in overview.runs() if run.status] == [0.0]
        folder.write_status(RunStatus(state=RunState.FINISHED, updates=7, cost=2.5))
        folder.claim(dataclasses.replace(claim, released=True))
        assert [run.status.cost for run in overview.runs() if run.status] == [2.5]
        folder.store.delete("config.json")
        assert [run.status.cost for run in overview.runs() if run.status] == [2.5]

    def test_runs_that_are_gone_are_forgotten(self, tmp_path: Path) -> None:
        """A run whose folder was removed is listed no more, nor kept in the index."""
        make_run(tmp_path, "a")
        make_run(tmp_path, "b").store  # noqa: B018
        overview = Overview(str(tmp_path))
        overview.runs()
        RunFolder(run_url(str(tmp_path), "a")).remove()
        assert ids(overview) == ["b"]
        assert set(RunIndex(tmp_path / INDEX_NAME, str(tmp_path)).read()) == {"b"}

    def test_broken_runs_are_listed_and_not_remembered(self, tmp_path: Path) -> None:
        """A run whose config cannot be read is listed with what is wrong, until it is mended."""
        folder = make_run(tmp_path, "a")
        config = folder.store.get("config.json")
        folder.store.put("config.json", b"{")
        overview = Overview(str(tmp_path))
        assert overview.runs()[0].problem is not None
        folder.store.put("config.json", config)
        assert overview.runs()[0].problem is None

    @pytest.mark.parametrize("damage", [b"not a database at all, but longer than a header of one" * 99, b""])
    def test_a_damaged_index_is_made_anew(self, tmp_path: Path, damage: bytes) -> None:
        """An index that is no database, or empty, costs nothing but a slower listing."""
        make_run(tmp_path, "a")
        Overview(str(tmp_path)).runs()
        (tmp_path / INDEX_NAME).write_bytes(damage)
        overview = Overview(str(tmp_path))
        assert ids(overview) == ["a"]
        assert overview.problem is None
        assert set(RunIndex(tmp_path / INDEX_NAME, str(tmp_path)).read()) == {"a"}

    def test_pages_that_are_damaged_are_noticed(self, tmp_path: Path) -> None:
        """Damage in the midst of the file does no harm either."""
        for number in range(40):
            make_run(tmp_path, f"run-{number:02d}")
        Overview(str(tmp_path)).runs()
        path = tmp_path / INDEX_NAME
        data = bytearray(path.read_bytes())
        data[5000:9000] = b"\xff" * 4000
        path.write_bytes(data)
        for suffix in ("-wal", "-shm"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)
        assert len(ids(Overview(str(tmp_path)))) == 40

    def test_an_older_index_is_made_anew(self, tmp_path: Path) -> None:
        """Rows of an older version are not understood, and dropped."""
        make_run(tmp_path, "a")
        Overview(str(tmp_path)).runs()
        with sqlite3.connect(tmp_path / INDEX_NAME) as connection:
            connection.execute("UPDATE runs SET summary = 'of another time'")
            connection.execute("PRAGMA user_version = 0")
        connection.close()
        assert ids(Overview(str(tmp_path))) == ["a"]
        assert len(RunIndex(tmp_path / INDEX_NAME, str(tmp_path)).read()) == 1

    def test_a_newer_index_is_left_alone(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """An index of a newer version keeps what it holds; it is said, once, that it is done without."""
        make_run(tmp_path, "a")
        with sqlite3.connect(tmp_path / INDEX_NAME) as connection:
            connection.execute("CREATE TABLE runs (whatever TEXT)")
            connection.execute("INSERT INTO runs VALUES ('precious')")
            connection.execute(f"PRAGMA user_version = {INDEX_VERSION + 1}")
        connection.close()
        overview = Overview(str(tmp_path))
        assert ids(overview) == ids(overview) == ["a"]
        assert "newer version" in (overview.problem or "")
        assert caplog.text.count("newer version") == 1
        with sqlite3.connect(tmp_path / INDEX_NAME) as connection:
            assert connection.execute("SELECT * FROM runs").fetchall() == [("precious",)]
        connection.close()

    def test_a_locked_index_is_done_without(self, tmp_path: Path) -> None:
        """While somebody holds the index locked, runs are listed from their folders, and it is said why."""
        make_run(tmp_path, "a")
        index = RunIndex(tmp_path / INDEX_NAME, str(tmp_path), file_system=lambda _: "nfs")
        Overview(str(tmp_path), index=index).runs()
        holder = sqlite3.connect(tmp_path / INDEX_NAME, isolation_level=None)
        holder.execute("BEGIN EXCLUSIVE")
        overview = Overview(str(tmp_path), index=index)
        assert ids(overview) == ["a"]
        assert "locked" in (overview.problem or "")
        holder.execute("ROLLBACK")
        holder.close()
        assert ids(overview) == ["a"]
        assert overview.problem is None

    @pytest.mark.parametrize(
        ("kind", "mode"), [("ext4", "wal"), ("nfs4", "delete"), ("fuse.sshfs", "delete")]
    )
    def test_the_journal_suits_the_file_system(self, tmp_path: Path, kind: str, mode: str) -> None:
        """A write-ahead log where memory can be shared, a plain journal on file systems over a network."""
        make_run(tmp_path, "a")
        Overview(
            str(tmp_path),
            index=RunIndex(tmp_path / INDEX_NAME, str(tmp_path), file_system=lambda _: kind),
        ).runs()
        with sqlite3.connect(tmp_path / INDEX_NAME) as connection:
            assert connection.execute("PRAGMA journal_mode").fetchone() == (mode,)
        connection.close()

    def test_this_machines_file_systems_are_told_apart(self) -> None:
        """The kind of a file system is known where Linux is, and /proc is none over the network."""
        kind = file_system_type(Path("/proc/self"))
        assert kind in ("proc", "")
        assert not is_network_file_system(kind)

    def test_nothing_is_made_where_there_are_no_runs(self, tmp_path: Path) -> None:
        """Looking at an empty root leaves it as it is."""
        assert Overview(str(tmp_path / "nowhere")).runs() == []
        assert not (tmp_path / "nowhere").exists()


class TestFolders:
    """Listing what is directly below."""

    @pytest.mark.parametrize("kind", ["memory", "folder"])
    def test_only_folders_directly_below_are_listed(self, tmp_path: Path, kind: str) -> None:
        """Objects, and what is deeper, are no folders of the one asked for."""
        store = open_store(f"memory://{tmp_path.name}" if kind == "memory" else tmp_path)
        for key in ("runs/b/x/y", "runs/a/z", "runs/file", "other/c/d"):
            store.put(key, b"")
        assert store.folders("runs") == ("a", "b")
        assert store.folders() == ("other", "runs")
        assert store.folders("absent") == ()


class TestCurves:
    """Points by cursor, and trials' curves from several runs."""

    def test_a_cursor_brings_what_is_new(self, tmp_path: Path) -> None:
        """Each call returns the points since the last one, also across segments and from another process."""
        writer = MetricsWriter(make_run(tmp_path, "a"))
        overview = Overview(str(tmp_path))
        assert overview.points("a") == ([], MetricsCursor())
        cursor, seen = MetricsCursor(), 0
        for total in (3, 4, 700, 1500):
            for number in range(seen, total):
                writer.append(MetricPoint(seconds=1.0, epoch=0, updates=number, samples=number))
            writer.flush()
            points, cursor = Overview(str(tmp_path)).points("a", cursor)
            assert [point.updates for point in points] == list(range(seen, total))
            seen = total
        assert cursor.segment > 0

    def test_curves_of_rungs_are_one(self) -> None:
        """Seconds and cost are added up over the runs of a trial; what goes on by itself stays."""
        rungs = [
            [MetricPoint(seconds=s, epoch=e, updates=e, samples=e, cost=s) for s, e in rung]
            for rung in ([(1.0, 1), (2.0, 2)], [], [(0.5, 3)])
        ]
        joined = join_curves(rungs)
        assert [(point.seconds, point.cost, point.epoch) for point in joined] == [
            (1.0, 1.0, 1),
            (2.0, 2.0, 2),
            (2.5, 2.5, 3),
        ]


class TestSearchFolders:
    """Searches as people see them when nobody drives them."""

    def test_a_search_without_a_driver_is_interrupted(self, tmp_path: Path) -> None:
        """A search is running only as long as somebody holds its claim."""
        folder = make_search(tmp_path)
        (listed,) = Overview(str(tmp_path)).searches()
        assert listed.state is not None
        assert listed.state.state is RunState.INTERRUPTED
        claim = folder.take_claim(new_claim())
        assert folder.state().state is RunState.RUNNING
        with pytest.raises(ConflictError):
            folder.take_claim(dataclasses.replace(new_claim()))
        folder.renew_claim(dataclasses.replace(claim, released=True))
        assert folder.state().state is RunState.INTERRUPTED

    def test_a_broken_search_is_listed_as_broken(self, tmp_path: Path) -> None:
        """One folder that cannot be read hides no other."""
        broken, whole = make_search(tmp_path), make_search(tmp_path)
        broken.store.put("search.json", b"[]")
        problems = {search.url: search.problem for search in Overview(str(tmp_path)).searches()}
        assert problems[broken.url]
        assert problems[whole.url] is None

    def test_a_state_is_written_by_one(self, tmp_path: Path) -> None:
        """Whoever has not seen the newest state cannot replace it."""
        folder = make_search(tmp_path)
        found = folder.read_state()
        assert found is not None
        state, etag = found
        folder.write_state(dataclasses.replace(state, seconds=1.0), etag)
        with pytest.raises(ConflictError):
            folder.write_state(state, etag)

    def test_trials_nobody_drives_are_killed_here(self, tmp_path: Path) -> None:
        """A trial that waits, or whose run was interrupted, is killed in the folders; others stay."""
        run_id = "20260101-000000-abcdef"
        make_run(tmp_path, run_id, RunState.INTERRUPTED)
        trials = [
            Trial(index=0, params={}, status=TrialStatus.RUNNING, runs=(run_id,)),
            Trial(index=1, params={}),
            Trial(index=2, params={}, status=TrialStatus.FINISHED),
        ]
        folder = make_search(tmp_path, *trials)
        overview = Overview(str(tmp_path))
        overview.kill_trial(folder.config().search_id, 0)
        state = overview.search(folder.config().search_id).state
        assert state is not None
        assert [trial.status.value for trial in state.trials] == ["killed", "queued", "finished"]
        assert state.state is RunState.INTERRUPTED
        assert overview.run(run_id).status.state is RunState.KILLED
        overview.kill_search(folder.config().search_id)
        state = overview.search(folder.config().search_id).state
        assert [trial.status.value for trial in state.trials] == ["killed", "killed", "finished"]
        assert state.state is RunState.KILLED

    def test_what_needs_a_driver_says_so(self, tmp_path: Path) -> None:
        """Resuming or stopping a search that nobody drives is refused, with what to do."""
        search_id = make_search(tmp_path, Trial(index=0, params={})).config().search_id
        overview = Overview(str(tmp_path))
        with pytest.raises(RunError, match=f"cirrus search --resume {search_id}"):
            overview.resume_trial(search_id, 0)
        with pytest.raises(RunError, match="drives"):
            overview.stop_search(search_id)
        with pytest.raises(NotFoundError, match="no trial 5"):
            overview.kill_trial(search_id, 5)
        with pytest.raises(NotFoundError, match="no search"):
            overview.kill_trial("search-x", 0)

    def test_strays_among_the_requests_are_removed(self, tmp_path: Path) -> None:
        """What is no request ends nothing."""
        folder = make_search(tmp_path)
        folder.store.put("control/1.json", b"{")
        folder.store.put("control/2.json", b'{"action": 3}')
        assert folder.requests() == []
        assert folder.store.list("control/") == []

    def test_hyperparameters_have_to_fit_into_json(self, tmp_path: Path) -> None:
        """A value that cannot be written is an error that names what it is about."""
        with pytest.raises(ConfigError, match="hyperparameters"):
            make_search(tmp_path, Trial(index=0, params={"x": object()}))

    def test_the_best_trial_has_the_best_model(self) -> None:
        """Whatever became of it; a trial without a model, or whose score is no number, is never best."""
        pruned = Trial(index=0, params={}, status=TrialStatus.PRUNED, score=0.9, best_run="r")
        finished = Trial(index=1, params={}, status=TrialStatus.FINISHED, score=0.5, best_run="r")
        broken = Trial(index=2, params={}, status=TrialStatus.FINISHED, score=float("nan"), best_run="r")
        killed = Trial(index=3, params={}, status=TrialStatus.KILLED, score=0.99)
        assert best_trial((pruned, finished, broken, killed)) is pruned
        assert best_trial((finished, broken)) is finished
        assert best_trial((broken, killed)) is None

    def test_ids_of_searches_are_told_from_those_of_runs(self) -> None:
        """`cirrus kill` takes both."""
        assert is_search_id(new_search_id())
        assert not is_search_id("20261123-101500-ab12cd")


def test_listing_hundreds_of_runs_reads_no_folder(tmp_path: Path) -> None:
    """What 200 finished runs said once is listed again, whatever has become of their folders."""
    folders = [make_run(tmp_path, f"run-{number:03d}") for number in range(200)]
    first = Overview(str(tmp_path)).runs()
    for folder in folders:
        for key in folder.store.list(""):
            folder.store.put(key, b"{")
    assert Overview(str(tmp_path)).runs() == first
    assert len(first) == 200
