"""The function's entry point on real data and real shards: how a generation begins, works and ends."""

from __future__ import annotations

import dataclasses
import itertools
import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from ps_runs import Shards, running
from real_runs import assert_whole, plan
from stand_ins import FOR_EVER, assert_within, eventually

from cirrus import Dataset, load_arrays
from cirrus.config import RunConfig
from cirrus.errors import CirrusError, ConfigError, DataError, NotFoundError
from cirrus.metrics import RunState
from cirrus.paramserver.checkpoint import read_checkpoint
from cirrus.run_folder import ControlRequest, MetricsReader
from cirrus.storage import open_store
from cirrus.worker_runtime import session as session_module
from cirrus.worker_runtime.handler import handler

N_ROWS, N_FEATURES = 4000, 200
JOIN_SECONDS = 30.0
DEADLINE_SECONDS = 2.0


@pytest.fixture(scope="module")
def arrays() -> tuple[scipy.sparse.csr_matrix, np.ndarray[Any, Any]]:
    """Return rows that a linear model can learn."""
    rng = np.random.default_rng(0)
    rows = scipy.sparse.random(
        N_ROWS, N_FEATURES, density=0.05, format="csr", dtype=np.float32, random_state=rng
    )
    return rows, (rows @ rng.normal(size=N_FEATURES) > 0).astype(np.float64)


@pytest.fixture(scope="module")
def train(arrays: Any, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Return them as a dataset."""
    return load_arrays(*arrays, url=str(tmp_path_factory.mktemp("data") / "train"))


class Generation(threading.Thread):
    """One invocation of the handler.

    Args:
        event: What it is invoked with.
        context: Lambda's, or None.
    """

    def __init__(self, event: Mapping[str, Any], context: Any = None) -> None:
        super().__init__(daemon=True)
        self._event, self._context = event, context
        self.result: dict[str, Any] = {}
        self.error: CirrusError | None = None
        self.start()

    def run(self) -> None:
        """Invoke it."""
        try:
            self.result = handler(self._event, self._context)
        except CirrusError as error:
            self.error = error

    def end(self) -> dict[str, Any]:
        """Wait for its result."""
        self.join(JOIN_SECONDS)
        assert not self.is_alive()
        if self.error is not None:
            raise self.error
        return self.result


def event(shards: Shards, worker: int = 0, generation: int = 1, **more: Any) -> dict[str, Any]:
    """Return what a function is invoked with."""
    said = {"role": "train", "run_url": shards.url, "worker_id": worker, "generation": generation}
    return {**said, **more}


@pytest.fixture
def for_ever(train: Dataset, tmp_path: Path) -> Iterator[Shards]:
    """Return the shards of a run that does not end by itself."""
    with running(tmp_path / "run", plan(train, epochs=FOR_EVER)) as shards:
        yield shards


def finish(shards: Shards, *generations: Generation) -> list[dict[str, Any]]:
    """Stop a run; return how its workers ended."""
    shards.folder.request(ControlRequest(action="stop"))
    shards.wait()
    return [generation.end() for generation in generations]


def assert_exact(shards: Shards, config: RunConfig) -> None:
    """Check that every step of every epoch is on every shard once."""
    status = shards.wait()
    assert status.state is RunState.FINISHED
    total = config.stop.epochs * config.steps_per_epoch
    assert shards.counts("steps_applied") == [total] * config.n_shards


# Events.


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"role": "dance"}, "role: must be"),
        ({"role": 3}, r"event\.role: must be str"),
        ({"worker_id": "0"}, r"event\.worker_id: must be int"),
        ({"generation": None}, r"event\.generation: must be int"),
        ({"run_url": ""}, "url: is empty"),
        ({"run_url": "ftp://x"}, "url: 'ftp://x' is of no known kind"),
        ({"token": "secret"}, "unknown field token"),
        ({"deadline_seconds": "soon"}, "deadline_seconds: must be"),
        ({"deadline_seconds": -1.0}, "deadline_seconds: must be"),
        ({"deadline_seconds": float("nan")}, "deadline_seconds: must be"),
    ],
)
def test_a_wrong_event_is_named(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    """The field that is wrong stands in the error."""
    good = {"role": "train", "run_url": str(tmp_path), "worker_id": 0, "generation": 1}
    with pytest.raises(ConfigError, match=problem):
        handler({**good, **change})


@pytest.mark.parametrize("wrong", [[], [1], "train", None, 3, {}, {"role": "train"}])
def test_what_is_no_event_is_named(wrong: Any) -> None:
    """Anything else than an object with all fields is a ConfigError, too."""
    with pytest.raises(ConfigError, match="event"):
        handler(wrong)


def test_a_run_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    """The error names the object that is missing."""
    with pytest.raises(NotFoundError, match=r"config\.json"):
        handler({"role": "train", "run_url": str(tmp_path), "worker_id": 0, "generation": 1})


@pytest.mark.parametrize("line", ["", "nonsense", "[]", '{"role": "train"}'])
def test_the_process_says_what_is_wrong(line: str) -> None:
    """``python -m cirrus.worker_runtime`` prints the error and its kind as a line of JSON, and exits 1."""
    done = subprocess.run(
        [sys.executable, "-m", "cirrus.worker_runtime"], input=line + "\n", capture_output=True, text=True
    )
    # The leash is gone by then, too; whichever is seen first ends the process.
    if done.returncode != 3:
        assert done.returncode == 1
        assert json.loads(done.stdout)["type"] == "ConfigError"


# Training.


@pytest.mark.parametrize("options", [{}, {"wire_dtype": "float16", "compression": "lz4"}])
def test_workers_train_to_the_end(train: Dataset, arrays: Any, tmp_path: Path, options: Any) -> None:
    """Two workers, two shards: every step once, a falling loss, a good model, time accounted for."""
    config = plan(train, epochs=4, **options)
    with running(tmp_path / "run", config) as shards:
        workers = [Generation(event(shards, number)) for number in range(2)]
        assert_exact(shards, config)
        results = [worker.end() for worker in workers]
        assert {result["outcome"] for result in results} == {"finished"}
        assert sum(result["steps"] for result in results) == 4 * config.steps_per_epoch
        assert sum(result["rows"] for result in results) == 4 * N_ROWS
        points = MetricsReader(shards.folder).read()
        losses = [point.train_loss for point in points if point.end_of_epoch]
        assert losses == sorted(losses, reverse=True)
        assert sum(point.compute_seconds for point in points) > 0
        assert sum(point.fetch_seconds for point in points) > 0
        found = read_checkpoint(open_store(f"{shards.url}/model")).tables
    rows, labels = arrays
    scores = rows @ found["weights"]["weights"][:, 0] + found["intercept"]["weights"][0, 0]
    assert np.mean((scores > 0) == labels) > 0.9


def test_a_threshold_sends_fewer_rows(train: Dataset, tmp_path: Path) -> None:
    """Small gradients are held back and sent together; the model is as good for it."""
    pushed, losses = [], []
    for threshold in (None, 1.0):
        config = plan(train, epochs=4, n_workers=1, gradient_threshold=threshold)
        with running(tmp_path / f"run-{threshold}", config) as shards:
            worker = Generation(event(shards))
            assert_exact(shards, config)
            worker.end()
            pushed.append(sum(shards.counts("rows_pushed")))
            losses.append(MetricsReader(shards.folder).read()[-1].train_loss)
    assert pushed[1] < 0.9 * pushed[0]
    assert losses[1] == pytest.approx(losses[0], abs=0.05)


def test_the_evaluator_reports(train: Dataset, tmp_path: Path) -> None:
    """It computes the loss of the rows under the model of the moment, and its accuracy."""
    config = dataclasses.replace(plan(train, epochs=12), validation_url=train.url)
    with running(tmp_path / "run", config) as shards:
        worker, evaluator = Generation(event(shards)), Generation(event(shards, 1, role="evaluate"))
        assert_exact(shards, config)
        assert worker.end()["outcome"] == "finished"
        assert evaluator.end()["outcome"] == "finished"
        status = shards.folder.status()
        assert status is not None
        assert status.validation_loss is not None
        assert status.validation_loss < 0.5
        points = [pt for pt in MetricsReader(shards.folder).read() if pt.validation_loss is not None]
        assert points[-1].validation_metrics["accuracy"] > 0.9


def test_a_validation_set_that_was_replaced_is_refused(train: Dataset, tmp_path: Path) -> None:
    """The losses of one run are all of the same rows."""
    config = dataclasses.replace(
        plan(train), validation_url=train.url, validation_fingerprint="of other rows"
    )
    with running(tmp_path / "run", config) as shards:
        worker = Generation(event(shards))
        with pytest.raises(DataError, match="was replaced since the run began"):
            Generation(event(shards, 1, role="evaluate")).end()
        shards.folder.request(ControlRequest(action="kill"))
        worker.end()


# How a generation ends.


@pytest.mark.parametrize("by_context", [False, True])
def test_a_generation_ends_before_its_deadline(for_ever: Shards, by_context: bool) -> None:
    """It returns in time, with its steps flushed, from the event's limit or the platform's."""

    class Context:
        def get_remaining_time_in_millis(self) -> int:
            """Return two seconds."""
            return 2000

    generations = itertools.count(1)

    def work() -> float:
        said = event(
            for_ever, generation=next(generations), deadline_seconds=None if by_context else DEADLINE_SECONDS
        )
        result = Generation(said, Context() if by_context else None).end()
        assert result["outcome"] == "deadline"
        assert result["seconds"] > 0.1 * DEADLINE_SECONDS
        assert result["steps"] > 0
        return float(result["seconds"])

    assert_within(DEADLINE_SECONDS, work)
    applied = for_ever.counts("steps_applied")
    assert applied[0] == applied[1] > 0
    # Its leases are free for the next one.
    again = Generation(event(for_ever, generation=next(generations)))
    eventually(lambda: for_ever.counts("steps_applied")[0] > applied[0])
    assert finish(for_ever, again)[0]["outcome"] == "finished"


def test_a_run_is_finished_by_many_short_generations(train: Dataset, tmp_path: Path) -> None:
    """However short they are, each step is done once, and the last of them hears that the run is over."""
    config = plan(train, epochs=40)
    with running(tmp_path / "run", config) as shards:
        outcomes = []
        for generation in range(1, 200):
            # Longer and longer: on a busy machine the first ones may come to nothing.
            seconds = 0.15 * 1.03**generation
            workers = [
                Generation(event(shards, number, generation, deadline_seconds=seconds)) for number in range(2)
            ]
            outcomes += [worker.end()["outcome"] for worker in workers]
            if outcomes[-2:] == ["finished", "finished"]:
                break
        assert outcomes.count("deadline") >= 2
        assert set(outcomes) == {"deadline", "finished"}
        assert_exact(shards, config)


def test_a_generation_ends_while_it_waits(train: Dataset, tmp_path: Path) -> None:
    """Also without shards, or without work, the deadline is kept."""
    with running(tmp_path / "run", plan(train, epochs=FOR_EVER)) as shards:
        shards.shards[1].crash()
        generations = itertools.count(1)

        def wait() -> float:
            said = event(shards, generation=next(generations), deadline_seconds=0.3 * DEADLINE_SECONDS)
            result = Generation(said).end()
            assert (result["outcome"], result["steps"]) == ("deadline", 0)
            return float(result["seconds"])

        assert_within(DEADLINE_SECONDS, wait)


def test_a_duplicate_steps_back(for_ever: Shards) -> None:
    """Of two invocations with one id the second ends at once; a newer generation takes over instead."""
    first = Generation(event(for_ever))
    eventually(lambda: for_ever.counts("steps_applied")[0] > 0)
    assert Generation(event(for_ever)).end() == {
        "outcome": "duplicate",
        "steps": 0,
        "rows": 0,
        "seconds": pytest.approx(0.0, abs=5.0),
        "fetch_seconds": 0.0,
        "pull_seconds": 0.0,
        "compute_seconds": 0.0,
        "push_seconds": 0.0,
    }
    newer = Generation(event(for_ever, generation=2))
    assert first.end()["outcome"] == "duplicate"
    assert finish(for_ever, newer)[0]["outcome"] == "finished"


def test_a_run_that_has_ended_needs_nobody(train: Dataset, tmp_path: Path) -> None:
    """A generation that is started too late hears so from the run folder."""
    config = plan(train, epochs=1)
    with running(tmp_path / "run", config) as shards:
        worker = Generation(event(shards))
        shards.wait()
        worker.end()
        result = Generation(event(shards, generation=2)).end()
        assert (result["outcome"], result["steps"]) == ("finished", 0)


@pytest.mark.parametrize("victims", [(0,), (1,), (0, 1, 0)])
def test_workers_ride_through_shard_losses(train: Dataset, tmp_path: Path, victims: tuple[int, ...]) -> None:
    """The same generation goes on when a shard is back, and no step is missing or doubled."""
    with running(tmp_path / "run", plan(train, epochs=FOR_EVER, snapshot_seconds=0.05)) as shards:
        workers = [Generation(event(shards, number)) for number in range(2)]
        for victim in victims:
            before = shards.counts("steps_applied")[0]
            eventually(lambda before=before: shards.counts("steps_applied")[0] > before + 300)
            shards.replace(victim)
        applied = shards.counts("steps_applied")[0]
        eventually(lambda: shards.counts("steps_applied")[0] > applied + 300)
        assert {result["outcome"] for result in finish(shards, *workers)} == {"finished"}
        status = shards.folder.status()
        assert status is not None
        assert status.state is RunState.FINISHED
        assert_whole(shards, status)


def test_data_that_went_away_is_an_error(arrays: Any, tmp_path: Path) -> None:
    """A worker whose chunk is missing or damaged says which, instead of training on what is left."""
    data = load_arrays(*arrays, url=str(tmp_path / "data"))
    with running(tmp_path / "run", plan(data, epochs=FOR_EVER)) as shards:
        for chunk in (tmp_path / "data").rglob("*"):
            if chunk.is_file() and chunk.name != "manifest.json":
                damaged = bytearray(chunk.read_bytes())
                damaged[len(damaged) // 2] ^= 4
                chunk.write_bytes(damaged)
        with pytest.raises(DataError):
            Generation(event(shards)).end()


def test_a_worker_that_cannot_reach_its_shards_gives_up(
    train: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a minute without shards (here a moment) it fails, so that nobody pays for its waiting."""
    monkeypatch.setattr(session_module, "RECONNECT_SECONDS", 0.3)
    with running(tmp_path / "run", plan(train, epochs=FOR_EVER)) as shards:
        for shard in shards.shards.values():
            shard.crash()
        with pytest.raises(CirrusError, match="gave up"):
            Generation(event(shards)).end()
