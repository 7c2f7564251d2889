"""Runs as clients see them: ids, status, metrics, the list of runs, and inline runs from start to end."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from stand_ins import PATIENCE_SECONDS, POLL_SECONDS, assert_within, eventually, make_config

from cirrus.client_backend.claims import is_held, machine_name, new_claim, process_exists
from cirrus.client_backend.inline import (
    INLINE_ROOT,
    InlineBackend,
    InlineLauncher,
    InlineParts,
    WorkerContext,
)
from cirrus.client_backend.runs import Run, judge_status, list_runs, new_run_id, open_run, run_url
from cirrus.client_backend.supervisor import CLAIM_RENEW_SECONDS, Silence, StuckShards
from cirrus.errors import DataError, NotFoundError, RunError
from cirrus.metrics import MetricPoint, RunState, RunStatus
from cirrus.run_folder import ClientClaim, MetricsWriter, RunFolder, ShardAddress
from cirrus.storage import open_store

NOW = 1_000_000.0


class ThreadShard:
    """A stand-in for a shard as threads: shard 0 keeps the status and obeys ``kill`` and ``stop``."""

    def __init__(self, run_url: str, shard: int, generation: int) -> None:
        self.folder = RunFolder(run_url)
        self.shard = shard
        self.generation = generation
        self.stopping = threading.Event()
        self.saving = True
        self.thread = threading.Thread(target=self._serve, name="stand-in-shard")

    def start(self) -> None:
        if self.folder.config().model_metadata.get("shard") == "broken":
            raise DataError("the checkpoint is of other data")
        self.folder.announce_shard(
            ShardAddress(shard=self.shard, generation=self.generation, host="127.0.0.1", port=1)
        )
        self.thread.start()

    def wait(self, timeout: float | None = None) -> bool:
        self.thread.join(timeout)
        return not self.thread.is_alive()

    def stop(self) -> None:
        self.stopping.set()
        self.thread.join()

    def crash(self) -> None:
        self.saving = False
        self.stopping.set()

    def _serve(self) -> None:
        finish_after = self.folder.config().model_metadata.get("finish_after", 1e9)
        end = time.monotonic() + finish_after
        while not self.stopping.is_set():
            state, error = RunState.RUNNING, None
            for key, request in self.folder.requests():
                state = {"kill": RunState.KILLED, "fail": RunState.FAILED}.get(
                    request.action, RunState.FINISHED
                )
                error = request.reason or None
                self.folder.finish_request(key)
            if time.monotonic() >= end:
                state = RunState.FINISHED
            if self.shard == 0:
                self._write(state, error)
            status = self.folder.status()
            if status is not None and status.state.ended:
                return
            self.stopping.wait(POLL_SECONDS)
        if self.shard == 0 and self.saving:
            self._write(RunState.INTERRUPTED)

    def _write(self, state: RunState, error: str | None = None) -> None:
        self.folder.write_status(RunStatus(state=state, error=error, heartbeat_at=time.time(), updates=1))


def handle(event: dict[str, Any], context: WorkerContext) -> Mapping[str, Any]:
    """Work until the run is over, the deadline, or the end of this process' interest."""
    folder = RunFolder(event["run_url"])
    if folder.config().model_metadata.get("worker") == "wrong":
        raise DataError("chunk 3 is broken")
    while (status := folder.status()) is None or not status.state.ended:
        if context.get_remaining_time_in_millis() == 0:
            return {"outcome": "deadline", "steps": 1}
        time.sleep(POLL_SECONDS)
    return {"outcome": "finished"}


PARTS = InlineParts(shard=ThreadShard, handler=handle)


def point(updates: int) -> MetricPoint:
    """Return a metric point."""
    return MetricPoint(seconds=1.0, epoch=0, updates=updates, samples=updates)


def claim(**changes: Any) -> ClientClaim:
    """Return the claim of a client on another machine."""
    return ClientClaim(**{"client_id": "c", "host": "elsewhere", "pid": 1, "renewed_at": NOW, **changes})


class TestIds:
    """Names of runs."""

    def test_ids_sort_by_time_and_are_unique(self) -> None:
        """The text order of ids is the order of their starts; ids of the same second differ."""
        start = datetime(2026, 11, 23, 10, 15, tzinfo=UTC)
        ids = [new_run_id(start + timedelta(seconds=17 * i)) for i in range(200)]
        assert ids == sorted(ids)
        assert ids[0].startswith("20261123-101500-")
        assert len({new_run_id(start) for _ in range(200)}) == 200


class TestJudging:
    """What a status means, given its age and that of the claim."""

    @pytest.mark.parametrize(
        ("status", "held_by", "expected"),
        [
            (None, None, "interrupted"),
            (None, claim(), "starting"),
            (None, claim(renewed_at=NOW - 11), "interrupted"),
            (("running", NOW), claim(), "running"),
            (("running", NOW - 60), claim(), "running"),
            (("running", NOW - 60), claim(renewed_at=NOW - 60), "interrupted"),
            (("running", NOW - 60), claim(released=True), "interrupted"),
            (("running", NOW - 5), claim(renewed_at=NOW - 60), "running"),
            (("finished", NOW - 60), claim(renewed_at=NOW - 60), "finished"),
            (("failed", NOW - 60), None, "failed"),
            (("interrupted", NOW), claim(renewed_at=NOW - 1), "interrupted"),
            (("interrupted", NOW - 5), claim(released=True), "interrupted"),
            (("interrupted", NOW - 5), claim(renewed_at=NOW - 1), "starting"),
        ],
    )
    def test_the_table(
        self, status: tuple[str, float] | None, held_by: ClientClaim | None, expected: str
    ) -> None:
        """A run is lost when neither its shard 0 nor its client shows life; an attached one starts again."""
        written = None if status is None else RunStatus(state=RunState(status[0]), heartbeat_at=status[1])
        assert judge_status(written, held_by, NOW).state == expected

    def test_a_dead_process_of_this_machine_holds_nothing(self) -> None:
        """Where the holder's process can be looked for, nobody waits for its claim to lapse."""
        gone = 2**22 + 1  # above any process id of Linux
        assert is_held(new_claim(), time.time())
        assert not is_held(claim(host=machine_name(), pid=gone, renewed_at=time.time()), time.time())

    def test_a_process_that_waits_to_be_reaped_is_dead(self) -> None:
        """A killed client may stay in the process table for long; it supervises nothing."""
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        assert process_exists(child.pid)
        child.kill()
        eventually(lambda: not process_exists(child.pid))
        child.communicate()
        assert not process_exists(child.pid)


class TestInlineRuns:
    """A run of threads, in the memory of this process."""

    @pytest.fixture(autouse=True)
    def _nothing_is_left(self) -> Any:
        before = set(threading.enumerate())
        stored = set(open_store(INLINE_ROOT).list())  # other tests use the same store of this process
        yield
        gc.collect()
        eventually(lambda: set(threading.enumerate()) <= before)
        assert set(open_store(INLINE_ROOT).list()) <= stored

    def test_a_whole_run(self) -> None:
        """The run finishes; its records can be read after its folder has gone."""
        run = InlineBackend(parts=PARTS).start(make_config(n_workers=2, n_shards=2, finish_after=0.05))
        MetricsWriter(run.folder)
        writer = MetricsWriter(run.folder)
        writer.append(point(1))
        writer.flush()
        assert run.wait(PATIENCE_SECONDS).state is RunState.FINISHED
        assert run.folder.store.exists("status.json")
        run.close()
        assert run.status.state is RunState.FINISHED
        assert [p.updates for p in run.metrics()] == [1]
        assert not run.folder.store.exists("status.json")
        run.close()
        assert run.wait().state is RunState.FINISHED

    def test_starting_and_ending_costs_little(self) -> None:
        """A run that has nothing to do takes less than 50 ms: scikit-learn's checks make hundreds."""

        def run_once() -> float:
            start = time.perf_counter()
            with InlineBackend(parts=PARTS).start(make_config(run_id=new_run_id(), finish_after=0.0)) as run:
                run.wait()
            return time.perf_counter() - start

        assert_within(0.05, lambda: min(run_once() for _ in range(5)))

    def test_a_crashed_shard_comes_back(self) -> None:
        """A shard that ends without notice is started again under the next generation."""
        with InlineBackend(parts=PARTS).start(make_config(n_shards=2)) as run:
            assert run.supervisor is not None
            launcher = run.supervisor.launcher
            assert isinstance(launcher, InlineLauncher)
            eventually(lambda: launcher.shards == {0, 1})
            launcher.crash_shard(1)
            eventually(lambda: (found := run.folder.shard_address(1)) and found.generation == 2)
            eventually(lambda: run.status.state is RunState.RUNNING)

    @pytest.mark.parametrize(
        ("behaviour", "text"),
        [({"shard": "broken"}, "shard 0: the checkpoint is"), ({"worker": "wrong"}, "worker 0: chunk 3")],
    )
    def test_wrong_data_fails_the_run_at_once(self, behaviour: dict[str, str], text: str) -> None:
        """The run's error names who met it, and has the original error as its cause."""
        with InlineBackend(parts=PARTS).start(make_config(**behaviour)) as run:
            with pytest.raises(RunError, match=text) as caught:
                run.wait(PATIENCE_SECONDS)
            assert run.status.state is RunState.FAILED
        cause = caught.value.__cause__
        assert cause is not None
        assert isinstance(cause.__cause__, DataError)

    def test_kill_and_close_end_it(self) -> None:
        """Both end all threads; what is left of the run says how it ended."""
        backend = InlineBackend(parts=PARTS)
        killed = backend.start(make_config())
        killed.kill()
        assert killed.wait().state is RunState.KILLED
        killed.close()
        closed = backend.start(make_config())
        closed.close()
        assert closed.status.state is RunState.INTERRUPTED

    def test_the_last_reference_ends_it(self) -> None:
        """A run that nobody holds ends and leaves nothing, also one that had finished."""
        stored = set(open_store(INLINE_ROOT).list())
        for finish_after in (0.0, 1e9):
            run = InlineBackend(parts=PARTS).start(make_config(finish_after=finish_after))
            eventually(lambda run=run: run.status.state is not RunState.STARTING)
            gone = weakref.ref(run)
            del run
            gc.collect()
            assert gone() is None
            eventually(lambda: set(open_store(INLINE_ROOT).list()) <= stored)

    def test_a_worker_learns_of_its_deadline_and_of_the_end(self) -> None:
        """The context counts down to the deadline, and to zero at once when the run is closed."""
        stopped = threading.Event()
        assert WorkerContext(None, stopped).get_remaining_time_in_millis() > 10**12
        assert 59_000 < WorkerContext(60.0, stopped).get_remaining_time_in_millis() <= 60_000
        assert WorkerContext(-1.0, stopped).get_remaining_time_in_millis() == 0
        stopped.set()
        assert WorkerContext(60.0, stopped).get_remaining_time_in_millis() == 0

    def test_a_root_that_was_given_keeps_its_runs(self, tmp_path: Path) -> None:
        """Only runs in the default root go away; others are listed, and can be attached to."""
        backend = InlineBackend(root=str(tmp_path), parts=PARTS)
        with backend.start(make_config()) as run:
            pass
        assert [summary.run_id for summary in list_runs(backend.root)] == [run.run_id]
        with backend.attach(run.run_id) as again:
            eventually(lambda: (found := again.folder.shard_address(0)) and found.generation == 2)
            again.stop()
            assert again.wait(PATIENCE_SECONDS).state is RunState.FINISHED


class TestWatching:
    """A client that does not supervise the run."""

    @pytest.fixture
    def run(self, tmp_path: Path) -> Run:
        """Return a run whose client has gone, to be watched."""
        config = make_config()
        RunFolder(run_url(str(tmp_path), config.run_id)).create(config)
        return open_run(str(tmp_path), config.run_id)

    def test_an_unknown_run(self, tmp_path: Path) -> None:
        """Opening a run that is not there names it."""
        with pytest.raises(NotFoundError, match="no run r1"):
            open_run(str(tmp_path), "r1")

    def test_metrics_are_read_once_each(self, run: Run) -> None:
        """Every call returns all points so far, whatever the segments they are stored in."""
        writer = MetricsWriter(run.folder)
        for count in range(1, 2001):
            writer.append(point(count))
            if count % 100 == 0:
                writer.flush()
                assert [p.updates for p in run.metrics()] == list(range(1, count + 1))
        assert len(run.folder.store.list("metrics/")) > 1

    def test_waiting_follows_the_folder(self, run: Run) -> None:
        """``wait`` of a watcher ends when the status says so, and tells of a failure."""
        run.folder.write_status(RunStatus(state=RunState.FAILED, error="no more disk"))
        with pytest.raises(RunError, match="no more disk"):
            run.wait()

    def test_waiting_calls_back(self, run: Run) -> None:
        """The callback hears of the run while it goes on, and of its end."""
        run.folder.claim(claim(renewed_at=time.time()))
        heard: list[RunState] = []

        def hear(status: RunStatus) -> None:
            heard.append(status.state)
            run.folder.write_status(RunStatus(state=RunState.FINISHED))

        run.wait(10.0, hear)
        assert heard == [RunState.STARTING, RunState.FINISHED]

    def test_nobody_can_finish_an_interrupted_run(self, run: Run) -> None:
        """``stop`` of a run without shards says how to go on."""
        with pytest.raises(RunError, match="cirrus attach"):
            run.stop()

    def test_killing_what_nobody_supervises(self, run: Run) -> None:
        """``kill`` of an abandoned run writes its end; a second one changes nothing."""
        run.kill()
        assert run.status.state is RunState.KILLED
        assert run.status.stop_reason == "killed"
        run.kill()

    def test_killing_has_a_limit(self, run: Run) -> None:
        """A run of another client that takes no notice is reported; the request stays for it."""
        run.folder.claim(claim(renewed_at=time.time()))
        run.folder.write_status(RunStatus(state=RunState.RUNNING, heartbeat_at=time.time()))
        with pytest.raises(RunError, match="has not ended"):
            run.kill(timeout=0.1)
        assert [request.action for _, request in run.folder.requests()] == ["kill"]

    def test_a_request_that_nobody_takes_is_an_error(self, run: Run) -> None:
        """``snapshot`` does not claim to have asked where nobody listens."""
        run.folder.claim(claim(renewed_at=time.time()))
        with pytest.raises(RunError, match="no notice"):
            run.snapshot(timeout=0.01)


class TestList:
    """The list of runs."""

    def test_broken_folders_are_listed_as_broken(self, tmp_path: Path) -> None:
        """One damaged run does not hide the others, and each says what is wrong with it."""
        root = str(tmp_path)
        damage: dict[str, Callable[[Path], object]] = {
            "a-good": lambda folder: None,
            "b-no-config": lambda folder: (folder / "config.json").unlink(),
            "c-no-json": lambda folder: (folder / "config.json").write_text("{"),
            "d-wrong-field": lambda folder: (folder / "config.json").write_text('{"run_id": 3}'),
            "e-bad-status": lambda folder: (folder / "status.json").write_text("[]"),
            "f-bad-claim": lambda folder: (folder / "client.json").write_text("nonsense"),
        }
        for run_id, spoil in damage.items():
            folder = RunFolder(run_url(root, run_id))
            folder.create(make_config(run_id=run_id, n_workers=3))
            folder.write_status(RunStatus(state=RunState.FINISHED, epoch=2))
            spoil(tmp_path / "runs" / run_id)
        (tmp_path / "runs" / "a file").write_text("not a run")
        runs = list_runs(root)
        assert [run.run_id for run in runs] == sorted(damage)
        good = runs[0]
        assert (good.model, good.n_workers, good.problem) == ("logistic", 3, None)
        assert good.status is not None
        assert good.status.state is RunState.FINISHED
        assert all(run.problem and run.status is None for run in runs[1:])

    def test_there_may_be_no_runs(self, tmp_path: Path) -> None:
        """A root that does not exist yet has no runs, which is no error."""
        assert list_runs(str(tmp_path / "nowhere")) == []


def test_silence_is_counted_only_while_somebody_listens() -> None:
    """Shard 0 is stuck when its heartbeat stands still, and not when this machine slept meanwhile."""
    silence = Silence()
    assert silence.lasts(10.0, 100.0) == 0
    assert silence.lasts(10.0, 103.0) == 3
    assert silence.lasts(10.0, 106.0) == 6
    assert silence.lasts(10.0, 9_000.0) == 6 + 2 * CLAIM_RENEW_SECONDS
    assert silence.lasts(11.0, 9_003.0) == 0


def test_a_shard_that_is_just_back_is_not_ended_again() -> None:
    """Two looks in a row have to say that it does not answer, both of the same generation."""
    stuck = StuckShards()
    assert stuck.take([(1, 1), (2, 1)]) == []
    assert stuck.take([(1, 1)]) == [1]
    assert stuck.take([(1, 2)]) == []
    assert stuck.take([]) == []
    assert stuck.take([(1, 2)]) == []
    assert stuck.take([(1, 2), (2, 1)]) == [1]
