"""Shards that die in the middle of everything: at the end every step is in the model exactly once."""

from __future__ import annotations

import dataclasses
import itertools
import os
import random
from pathlib import Path

import numpy as np
import pytest
from ps_runs import SOME_LEASES, Shards, create_run, make_config, make_table, running
from ps_workers import THIRD_ROWS, Workers, expected_weights
from stand_ins import eventually

from cirrus.config import RunConfig
from cirrus.errors import CorruptDataError
from cirrus.metrics import RunState
from cirrus.paramserver import kernels
from cirrus.paramserver.checkpoint import Part, TablePart, read_checkpoint
from cirrus.paramserver.coordinator import Phase
from cirrus.paramserver.protocol import Done, Evaluation, NextTask, Task
from cirrus.paramserver.server import Shard
from cirrus.paramserver.snapshots import Snapshots, snapshot_pause
from cirrus.run_folder import ControlRequest, MetricsReader, RunFolder
from cirrus.storage import open_store

#: Victims and moments are drawn with this seed; another one is as good.
SEED = int(os.environ.get("CIRRUS_TEST_SEED", "1"))


def assert_exact(shards: Shards, config: RunConfig) -> None:
    """Wait for the end of the run, and check that each step is on each shard, and in the model, once."""
    status = shards.wait(40.0)
    assert (status.state, status.stop_reason) == (RunState.FINISHED, "epochs")
    n_steps = config.stop.epochs * config.steps_per_epoch
    assert shards.counts("steps_applied") == [n_steps] * config.n_shards
    for shard in range(config.n_shards):
        assert status.counts[f"shard{shard}.steps_applied"] == n_steps
    model = read_checkpoint(open_store(f"{shards.url}/model")).tables["w"]["weights"]
    np.testing.assert_array_equal(model, expected_weights(config, config.stop.epochs))
    assert status.epoch == config.stop.epochs


@pytest.mark.parametrize(("n_shards", "victims"), [(1, "first"), (2, "first"), (2, "last"), (3, "any")])
def test_shards_may_die_at_any_moment(tmp_path: Path, n_shards: int, victims: str) -> None:
    """Killed four times while two workers push: what it lost is done again, and nothing else changes."""
    config = make_config(n_shards=n_shards, leases=SOME_LEASES, stop={"epochs": 40}, snapshot_seconds=0.05)
    rng = random.Random(f"{SEED}/{n_shards}/{victims}")
    total = config.stop.epochs * config.steps_per_epoch
    with running(tmp_path / "run", config) as shards, Workers(shards.url, hold=True) as workers:
        for kill in range(4):
            moment = total * (kill + rng.random()) / 5
            eventually(lambda moment=moment: max(shards.counts("steps_applied")) >= moment)
            number = {"first": 0, "last": n_shards - 1, "any": rng.randrange(n_shards)}[victims]
            shards.replace(number)
        workers.release()
        assert_exact(shards, config)


def test_all_shards_may_die_at_once(tmp_path: Path) -> None:
    """As when a machine fails: each starts from its own snapshot, of another moment than the others'."""
    config = make_config(n_shards=3, leases=SOME_LEASES, stop={"epochs": 30}, snapshot_seconds=0.05)
    with running(tmp_path / "run", config) as shards, Workers(shards.url, hold=True) as workers:
        for moment in (100, 300, 500):
            eventually(lambda moment=moment: max(shards.counts("steps_applied")) >= moment)
            for number in range(3):
                shards.shards[number].crash()
            for number in (2, 0, 1):
                shards.start(number)
        workers.release()
        assert_exact(shards, config)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_death_before_the_first_snapshot_loses_everything_but_time(tmp_path: Path, victim: int) -> None:
    """With nothing to start from a shard begins at zero, and all of its steps are done again."""
    config = make_config(n_shards=2, leases=SOME_LEASES, stop={"epochs": 5}, snapshot_seconds=1000.0)
    with running(tmp_path / "run", config) as shards, Workers(shards.url, hold=True) as workers:
        eventually(lambda: shards.counts("steps_applied")[victim] > 60)
        shards.replace(victim)
        workers.release()
        assert_exact(shards, config)


@pytest.mark.parametrize(
    ("wanted", "megabytes", "is_remote", "seconds"),
    [
        (None, 0.1, False, 2),
        (None, 60, False, 15),
        (None, 10_000, False, 30),
        (None, 0.1, True, 10),
        (None, 60, True, 15),
        (1000.0, 0.1, False, 1000),
        (0.1, 60, True, 0.1),
    ],
)
def test_a_small_shard_has_little_to_do_again(
    wanted: float | None, megabytes: float, is_remote: bool, seconds: float
) -> None:
    """It saves itself every few seconds, so that a run soon gets further; a large one does not."""
    config = make_config() if wanted is None else make_config(snapshot_seconds=wanted)
    n_bytes = int(megabytes * 2**20)
    assert snapshot_pause(config.snapshot_seconds, n_bytes, is_remote=is_remote) == seconds


def test_a_shard_saves_itself_unasked(tmp_path: Path) -> None:
    """A run that says nothing of snapshots has its first ones within seconds, on every shard."""
    config = make_config(n_shards=2, leases=SOME_LEASES, stop={"epochs": 10**6})
    with running(tmp_path / "run", config) as shards, Workers(shards.url, hold=True):
        folder = RunFolder(shards.url)
        eventually(lambda: all(Snapshots(folder, shard, 1).newest() for shard in range(2)), 15.0)


def test_a_resumed_run_that_dies_begins_at_its_checkpoint(tmp_path: Path) -> None:
    """Before its first snapshot a resumed shard starts again from what it was resumed from."""
    config = make_config(leases=SOME_LEASES, stop={"epochs": 2})
    with running(tmp_path / "old", config) as shards, Workers(shards.url):
        assert_exact(shards, config)
    again = make_config(
        n_shards=2,
        leases=SOME_LEASES,
        stop={"epochs": 6},
        resume_url=str(tmp_path / "old" / "model"),
        resume_ledger=True,
        snapshot_seconds=1000.0,
    )
    with running(tmp_path / "new", again) as shards, Workers(shards.url, hold=True) as workers:
        for victim in (0, 1):
            eventually(lambda: min(shards.counts("steps_applied")) > 80)
            shards.replace(victim)
        workers.release()
        assert_exact(shards, again)


def test_a_death_after_the_last_step_takes_the_run_back(tmp_path: Path) -> None:
    """A shard that dies when all is done, but nothing saved, gets back what it lost before the run ends."""
    config = make_config(n_shards=2, leases=SOME_LEASES, snapshot_seconds=1000.0, validation_url="somewhere")
    with running(tmp_path / "run", config) as shards, Workers(shards.url):
        keeper = shards.shards[0]._keeper
        assert keeper is not None
        eventually(lambda: keeper.coordinator.phase is Phase.EVALUATING)
        shards.replace(1)
        evaluator = shards.worker(2, role="evaluate")
        while (task := evaluator.ask(NextTask(wait_seconds=5.0), Task)).action != "end":
            if task.action == "evaluate":
                evaluator.ask(Evaluation(epoch=task.epoch, grant=task.grant, loss=0.5), Done)
        evaluator.close()
        assert_exact(shards, config)


def test_states_are_restored_with_the_weights(tmp_path: Path) -> None:
    """With one worker a run whose shard died ends with the very model of one whose shard did not."""
    models = []
    for kills in (0, 2):
        table = make_table(optimizer="adam", learning_rate=0.01, initial_scale=0.3)
        config = make_config(leases=SOME_LEASES, stop={"epochs": 10}, tables=[table], snapshot_seconds=0.05)
        with (
            running(tmp_path / f"run{kills}", config) as shards,
            Workers(shards.url, n_workers=1, hold=True) as workers,
        ):
            for kill in range(kills):
                eventually(lambda kill=kill: shards.counts("steps_applied")[0] > 80 * (kill + 1))
                shards.replace(0)
            workers.release()
            assert shards.wait().state is RunState.FINISHED
            models.append(read_checkpoint(open_store(f"{shards.url}/model")).tables["w"])
    for name in ("weights", "mean", "variance"):
        np.testing.assert_allclose(models[0][name], models[1][name], rtol=1e-6)


def test_time_goes_on_over_generations(tmp_path: Path) -> None:
    """Metrics of all generations of shard 0 stand in one sequence, and the start stays the start."""
    config = make_config(leases=SOME_LEASES, stop={"epochs": 60}, snapshot_seconds=0.05)
    with running(tmp_path / "run", config) as shards, Workers(shards.url, hold=True) as workers:
        first = eventually(lambda: (s := shards.folder.status()) and s.updates and s)
        for moment in (300, 600):
            eventually(lambda moment=moment: shards.counts("steps_applied")[0] > moment)
            shards.replace(0)
        workers.release()
        assert_exact(shards, config)
        status = shards.folder.status()
        assert status is not None
        assert status.started_at == first.started_at
        assert status.seconds > 0
        points = MetricsReader(shards.folder).read()
        assert points[-1].updates >= config.stop.epochs * config.steps_per_epoch
        assert points[-1].end_of_epoch


@pytest.mark.parametrize("victim", [0, 1])
def test_a_stop_outlives_the_shard_that_heard_it(tmp_path: Path, victim: int) -> None:
    """A request stays in the folder until it is carried out, so that the next generation hears it too."""
    config = make_config(n_shards=2, leases=SOME_LEASES, stop={"epochs": 10**6}, snapshot_seconds=0.02)
    with running(tmp_path / "run", config) as shards:
        with Workers(shards.url):
            eventually(lambda: min(shards.counts("steps_applied")) > 100)
        worker = shards.worker(9)
        eventually(lambda: worker.ask(NextTask(wait_seconds=1.0), Task).action == "train")
        keeper = shards.shards[0]._keeper
        assert keeper is not None
        key = shards.folder.request(ControlRequest(action="stop"))
        eventually(lambda: keeper.coordinator.phase is Phase.DRAINING)
        assert shards.folder.store.exists(key)
        shards.replace(victim)
        worker.close()
        with Workers(shards.url):
            status = shards.wait()
        assert (status.state, status.stop_reason) == (RunState.FINISHED, "stopped")
        assert not shards.folder.store.exists(key)
        applied = shards.counts("steps_applied")
        assert applied[0] == applied[1]
        model = read_checkpoint(open_store(f"{shards.url}/model")).tables["w"]["weights"]
        assert model.sum() == 3 * applied[0]


@pytest.mark.parametrize("moment", [60, 150, 240])
def test_a_stop_right_after_a_loss_leaves_all_shards_alike(tmp_path: Path, moment: int) -> None:
    """What other shards hold of a lost shard 0's last moments is done again before the model is written.

    They are ahead of it, perhaps by whole epochs, when it comes back and reads at once that it shall stop.
    """
    config = make_config(n_shards=3, leases=SOME_LEASES, stop={"epochs": 10**6}, snapshot_seconds=0.1)
    with running(tmp_path / "run", config) as shards, Workers(shards.url):
        eventually(lambda: min(shards.counts("steps_applied")) > moment)
        shards.shards[0].crash()
        shards.folder.request(ControlRequest(action="stop"))
        shards.start(0)
        status = shards.wait()
        assert (status.state, status.stop_reason) == (RunState.FINISHED, "stopped")
        applied = shards.counts("steps_applied")
        assert applied == [applied[0]] * 3
        assert status.updates == applied[0]
        model = read_checkpoint(open_store(f"{shards.url}/model")).tables["w"]["weights"][:, 0]
        thirds = [model[k * THIRD_ROWS : (k + 1) * THIRD_ROWS] for k in range(3)]
        np.testing.assert_array_equal(thirds[0], thirds[1])
        np.testing.assert_array_equal(thirds[0], thirds[2])
        assert thirds[0].sum() == applied[0]
        starts = np.cumsum([0, *(lease.n_steps for lease in SOME_LEASES)])
        for first, last in itertools.pairwise(starts):
            assert len(set(thirds[0][first:last].tolist())) == 1


@pytest.mark.parametrize("damage", ["flip", "cut", "manifest"])
def test_a_damaged_snapshot_is_one_clear_error(tmp_path: Path, damage: str) -> None:
    """A shard does not start from a snapshot that was changed, and says which; it leaves all as it was."""
    config = make_config(leases=SOME_LEASES, stop={"epochs": 10**6}, snapshot_seconds=0.02)
    with running(tmp_path / "run", config) as shards:
        with Workers(shards.url):
            eventually(lambda: shards.folder.store.exists("snapshots/0/newest.json"))
        shards.shards[0].crash()
        for thread in shards.shards[0]._threads:
            thread.join(10.0)  # one may be writing a snapshot
        folder = tmp_path / "run" / "snapshots" / "0"
        (part,) = folder.glob("*.bin")
        if damage == "flip":
            data = bytearray(part.read_bytes())
            data[-5] ^= 4
            part.write_bytes(data)
        elif damage == "cut":
            part.write_bytes(part.read_bytes()[:-1])
        else:
            (folder / "newest.json").write_text("{")
        before = {path: path.read_bytes() for path in folder.iterdir()}
        with pytest.raises(CorruptDataError, match="newest.json" if damage == "manifest" else part.name):
            Shard(shards.url, shard=0, generation=2).start()
        assert {path: path.read_bytes() for path in folder.iterdir()} == before
        address = shards.folder.shard_address(0)
        assert address is not None
        assert address.generation == 1


@pytest.mark.parametrize("extra", [{}, {"completed_epochs": "x"}, {"completed_epochs": 0, "marks": [1]}])
def test_a_snapshot_without_a_ledger_is_one_clear_error(tmp_path: Path, extra: dict[str, object]) -> None:
    """One whose checksum is right, but that does not say how far the run was, starts no shard."""
    config = make_config(leases=SOME_LEASES)
    folder = RunFolder(create_run(tmp_path / "run", config))
    table = TablePart(name="w", first_row=0, arrays={"weights": np.zeros((1000, 1), np.float32)})
    Snapshots(folder, 0, 1).write(Part(tables=(table,), extra=extra))
    with pytest.raises(
        CorruptDataError,
        match="snapshots/0: does not say how far the run was.*with the version of Cirrus that began it",
    ):
        Shard(folder.url, shard=0, generation=2).start()
    assert folder.shard_address(0) is None


def test_a_stopped_shard_snapshots_everything(tmp_path: Path) -> None:
    """A shard that is told to stop saves its last moment: nothing is done again after it comes back."""
    config = make_config(n_shards=2, leases=SOME_LEASES, stop={"epochs": 40}, snapshot_seconds=1000.0)
    with running(tmp_path / "run", config) as shards, Workers(shards.url, hold=True):
        eventually(lambda: min(shards.counts("steps_applied")) > 200)
        for shard in shards.shards.values():
            shard.stop()
        status = shards.folder.status()
        assert status is not None
        assert status.state is RunState.INTERRUPTED
    with running(tmp_path / "run") as shards, Workers(shards.url):
        assert min(shards.counts("steps_applied")) > 200
        assert_exact(shards, config)


def test_what_clients_added_to_the_cost_stays(tmp_path: Path) -> None:
    """The next generation of shard 0 counts on from it, and tells of it, for the client that comes next."""
    config = make_config(
        leases=SOME_LEASES, stop={"epochs": 10**6, "max_cost": 15.0}, snapshot_seconds=1000.0
    )
    with running(tmp_path / "run", config) as shards, Workers(shards.url, hold=True):
        eventually(lambda: shards.counts("steps_applied")[0] > 100)
        shards.shards[0].stop()
        status = shards.folder.status()
        assert status is not None
        shards.folder.write_status(
            dataclasses.replace(
                status, cost=17.0, worker_cost=7.0, worker_correction=7.0, server_correction=10.0
            )
        )
    with running(tmp_path / "run") as shards, Workers(shards.url):
        status = shards.wait(40.0)
    assert (status.state, status.stop_reason) == (RunState.FINISHED, "max_cost")
    assert (status.cost, status.worker_cost) == (17.0, 7.0)
    assert (status.worker_correction, status.server_correction) == (7.0, 10.0)


def test_a_run_that_was_begun_before_something_was_counted_goes_on(tmp_path: Path) -> None:
    """A snapshot of an older version has a counter less: of that there was none, the rest is as it was."""
    config = make_config(n_shards=2, leases=SOME_LEASES, stop={"epochs": 40}, snapshot_seconds=1000.0)
    with running(tmp_path / "run", config) as shards, Workers(shards.url, hold=True):
        eventually(lambda: min(shards.counts("steps_applied")) > 200)
        for shard in shards.shards.values():
            shard.stop()
    for number in range(2):
        snapshots = Snapshots(RunFolder(shards.url), number, 1)
        part = snapshots.newest()
        assert part is not None
        fewer = {**part.extra, "counters": part.extra["counters"][: kernels.STEPS_APPLIED + 1]}
        assert len(fewer["counters"]) < len(part.extra["counters"])
        snapshots.write(dataclasses.replace(part, extra=fewer))
    with running(tmp_path / "run") as shards:
        assert min(shards.counts("steps_applied")) > 200
        assert shards.counts("rows_pushed") == [0, 0]
        with Workers(shards.url):
            assert_exact(shards, config)
