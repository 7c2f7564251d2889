"""The life of a run on its shards: ends, requests through the run folder, checkpoints and resuming."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ps_runs import (
    SOME_LEASES,
    Shards,
    complete,
    greet_like_a_shard,
    make_config,
    make_leases,
    make_table,
    running,
)
from ps_workers import Worker, Workers, expected_weights
from stand_ins import FOR_EVER, eventually

from cirrus.config import RunConfig
from cirrus.errors import CirrusError, ConnectionLostError, SupersededError
from cirrus.metrics import RunState
from cirrus.paramserver.checkpoint import read_checkpoint, read_manifest, resolve
from cirrus.paramserver.coordinator import Phase
from cirrus.paramserver.peers import Peers
from cirrus.paramserver.protocol import MarksReply, MarksRequest, NextTask, Task
from cirrus.paramserver.run_keeper import RunKeeper
from cirrus.paramserver.server import Shard
from cirrus.run_folder import ControlRequest, MetricsReader, RunFolder, ShardAddress
from cirrus.storage import open_store


def model_of(shards: Shards) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the saved model's weights."""
    found = read_checkpoint(open_store(f"{shards.url}/model")).tables["w"]["weights"]
    return np.array(found)


@pytest.mark.parametrize("n_shards", [1, 2, 3])
@pytest.mark.parametrize("optimizer", ["add", "adam"])
def test_a_run_ends_with_its_model_in_the_folder(tmp_path: Path, n_shards: int, optimizer: str) -> None:
    """Every step counts once on every shard; the saved model is what the shards held, states too."""
    table = make_table(optimizer=optimizer, n_shards=n_shards, initial_scale=0.5 * (optimizer == "adam"))
    config = make_config(n_shards=n_shards, leases=SOME_LEASES, stop={"epochs": 3}, tables=[table])
    with running(tmp_path / "run", config) as shards, Workers(shards.url) as workers:
        status = shards.wait()
        eventually(lambda: all(worker.ended for worker in workers.threads))
        assert status.state is RunState.FINISHED
        assert (status.stop_reason, status.epoch, status.updates) == ("epochs", 3, 81)
        assert status.samples == 3 * config.rows_per_epoch
        for shard in range(n_shards):
            assert status.counts[f"shard{shard}.steps_applied"] == 81
        np.testing.assert_array_equal(model_of(shards), shards.weights())
        if optimizer == "add":
            np.testing.assert_array_equal(model_of(shards), expected_weights(config, 3))
        manifest = read_manifest(open_store(f"{shards.url}/model"))
        assert len(manifest.parts) == n_shards
        assert manifest.extra["fingerprint"] == config.train_fingerprint
        points = MetricsReader(shards.folder).read()
        assert [point.epoch for point in points if point.end_of_epoch] == [1, 2, 3]
        assert points[-1].updates == 81


def test_shards_wait_for_each_other(tmp_path: Path) -> None:
    """They may start in any order; work begins when all are there."""
    config = make_config(n_shards=2, leases=SOME_LEASES, stop={"epochs": 1})
    with running(tmp_path / "run", config) as shards:
        worker = shards.worker()
        eventually(lambda: worker.ask(NextTask(wait_seconds=0), Task).action == "train")
        shards.shards[1].crash()
        shards.replace(0)
        worker = shards.worker()
        assert worker.ask(NextTask(wait_seconds=0.3), Task).action == "wait"
        worker.close()
        shards.start(1)
        with Workers(shards.url):
            shards.wait()
        np.testing.assert_array_equal(model_of(shards), expected_weights(config, 1))


# Requests through the run folder.


def test_a_stop_keeps_the_model(tmp_path: Path) -> None:
    """Leases that are begun are finished, no more begun, and the model saved."""
    config = make_config(n_shards=2, leases=SOME_LEASES, stop={"epochs": FOR_EVER})
    with running(tmp_path / "run", config) as shards, Workers(shards.url):
        eventually(lambda: shards.counts("steps_applied")[0] > 100)
        key = shards.folder.request(ControlRequest(action="stop"))
        status = shards.wait()
        assert (status.state, status.stop_reason) == (RunState.FINISHED, "stopped")
        assert not shards.folder.store.exists(key)
        applied = shards.counts("steps_applied")
        assert applied[0] == applied[1] == status.updates
        assert model_of(shards).sum() == 3 * applied[0]


@pytest.mark.parametrize(
    ("action", "state"), [("kill", RunState.KILLED), ("fail", RunState.FAILED)], ids=["kill", "fail"]
)
def test_a_killed_run_saves_nothing(tmp_path: Path, action: str, state: RunState) -> None:
    """Workers are sent home, shards end, and the reason stands in the status."""
    config = make_config(n_shards=2, leases=SOME_LEASES, stop={"epochs": FOR_EVER})
    with running(tmp_path / "run", config) as shards, Workers(shards.url) as workers:
        eventually(lambda: shards.counts("steps_applied")[0] > 100)
        shards.folder.request(ControlRequest(action=action, reason="because"))
        status = shards.wait()
        assert status.state is state
        assert status.error == ("because" if action == "fail" else None)
        assert not shards.folder.store.exists("model/checkpoint.json")
        eventually(lambda: all(worker.ended for worker in workers.threads))


def test_a_kill_is_heard_while_the_model_cannot_be_saved(tmp_path: Path) -> None:
    """A shard that is gone for good does not keep the run from being killed, nor its status from ageing."""
    config = make_config(n_shards=2, leases=SOME_LEASES, stop={"epochs": 1})
    with running(tmp_path / "run", config) as shards:
        keeper = shards.shards[0]._keeper
        assert keeper is not None
        with keeper.work:
            # Nothing to do is left, and shard 1 does not answer.
            shards.shards[1].crash()
            keeper.coordinator.phase = Phase.SAVING
        before = shards.folder.status()
        assert before is not None
        eventually(lambda: (s := shards.folder.status()) and s.heartbeat_at > before.heartbeat_at + 1)
        shards.folder.request(ControlRequest(action="kill"))
        assert shards.shards[0].wait(10.0)
        status = shards.folder.status()
        assert status is not None
        assert status.state is RunState.KILLED


@contextlib.contextmanager
def at_the_moment_of_the_end(path: Path) -> Iterator[tuple[Shard, RunFolder]]:
    """Yield the shard of a run in which nothing is left to do, and nobody has been told of it yet."""
    config = make_config(leases=SOME_LEASES, stop={"epochs": 1})
    with running(path, config) as shards:
        shard = shards.shards[0]
        keeper = shard._keeper
        assert keeper is not None
        eventually(lambda: shards.folder.status() is not None)
        with keeper.work:  # which holds back the keeper's own thread
            keeper.coordinator.end("epochs", RunState.FINISHED)
            keeper.coordinator.phase = Phase.ENDED
            yield shard, shards.folder


def test_a_run_that_is_over_is_told_before_its_snapshots_go(tmp_path: Path) -> None:
    """Also where shard 0 is stopped between the last thing to do and the word of it: nobody does it again."""
    with at_the_moment_of_the_end(tmp_path / "run") as (shard, folder):
        shard.stop()
        status = folder.status()
        assert status is not None
        assert status.state is RunState.FINISHED
        assert folder.store.list("snapshots/0/") == []


def test_a_run_that_ended_while_its_client_was_lost_is_told(tmp_path: Path) -> None:
    """Where the model was saved while shard 0 wrote its last snapshot, the run has finished, and says so."""
    with at_the_moment_of_the_end(tmp_path / "run") as (shard, folder):
        assert shard._keeper is not None
        shard._keeper.interrupt()
        status = folder.status()
        assert status is not None
        assert status.state is RunState.FINISHED


def test_a_shard_that_is_gone_once_its_part_is_written_has_been_counted(tmp_path: Path) -> None:
    """The status of a finished run has the final counts of all shards, whoever ends with the client then."""
    config = make_config(n_shards=2, leases=SOME_LEASES, stop={"epochs": 3}, snapshot_seconds=1000.0)
    with running(tmp_path / "run", config) as shards:
        other = shards.shards[1]
        write_part = other.write_part

        def write_and_be_gone(url: str) -> None:
            def gone() -> dict[str, int]:
                raise ConnectionLostError("the shard is gone")

            write_part(url)
            other.counts = gone  # type: ignore[method-assign]

        other.write_part = write_and_be_gone  # type: ignore[method-assign]
        with Workers(shards.url):
            status = shards.wait()
        assert status.state is RunState.FINISHED
        applied = [status.counts[f"shard{shard}.steps_applied"] for shard in range(2)]
        assert applied == [3 * config.steps_per_epoch] * 2


def test_requests_that_mean_nothing_are_put_away(tmp_path: Path) -> None:
    """An unknown action is no reason to end a run, nor to stay in the folder."""
    with running(tmp_path / "run", make_config()) as shards:
        key = shards.folder.request(ControlRequest(action="dance"))
        eventually(lambda: not shards.folder.store.exists(key))
        status = shards.folder.status()
        assert status is not None
        assert not status.state.ended


def test_the_keeper_counts_outside_its_lock(tmp_path: Path) -> None:
    """A snapshot takes the lock of connections, then the keeper's; the keeper never does the reverse."""
    config = make_config()
    with running(tmp_path / "run", config) as shards:
        checked = []

        def try_lock() -> None:
            checked.append(keeper.work.acquire(timeout=2.0))
            if checked[-1]:
                keeper.work.release()

        class Own:
            stopping = threading.Event()

            def counts(self) -> dict[str, int]:
                """Fail if the thread that counts holds the keeper's lock."""
                thread = threading.Thread(target=try_lock)
                thread.start()
                thread.join()
                return {}

            def is_complete(self, key: tuple[int, int]) -> bool:
                """Not asked for here."""
                raise AssertionError(key)

            def mark_of(self, key: tuple[int, int]) -> int:
                """Not asked for here."""
                raise AssertionError(key)

            def write_part(self, url: str) -> None:
                """Not asked for here."""
                raise AssertionError(url)

        peers = Peers(shards.folder, config, shards.token, 0)
        keeper = RunKeeper(Own(), shards.folder, config, 1, peers)
        with keeper.work:
            keeper.coordinator.end("why", RunState.KILLED)
        thread = threading.Thread(target=keeper.run)
        thread.start()
        thread.join(10.0)
        assert checked
        assert all(checked)


def test_a_question_to_one_shard_holds_up_no_other(tmp_path: Path) -> None:
    """Nor the end of the asking shard: whoever waits for an answer gets an error then."""
    config = make_config(n_shards=3)
    with running(tmp_path / "run", config) as shards, socket.create_server(("127.0.0.1", 0)) as deaf:
        host, port = deaf.getsockname()
        generation = 2
        shards.shards[1].crash()
        shards.folder.announce_shard(
            ShardAddress(shard=1, generation=generation, host=host, port=port, pid=os.getpid())
        )
        peers = Peers(shards.folder, config, shards.token, 0)
        failures: list[CirrusError] = []
        welcomed = threading.Event()

        def greet() -> None:
            sock, _ = deaf.accept()
            with sock:
                greet_like_a_shard(sock, shards.token)
                welcomed.set()
                while sock.recv(4096):
                    pass

        def ask() -> None:
            try:
                peers.call(1, MarksRequest(), 60.0)
            except CirrusError as error:
                failures.append(error)

        threads = [threading.Thread(target=greet), threading.Thread(target=ask)]
        for thread in threads:
            thread.start()
        assert welcomed.wait(10.0)
        assert isinstance(peers.call(2, MarksRequest()), MarksReply)
        peers.close()
        for thread in threads:
            thread.join(10.0)
        assert len(failures) == 1
        with pytest.raises(ConnectionLostError):
            peers.call(2, MarksRequest())


# Checkpoints.


def test_checkpoints_without_a_pause_do_not_stop_the_run(tmp_path: Path) -> None:
    """However often they are wanted, workers get on between two."""
    config = make_config(n_shards=2, leases=SOME_LEASES, stop={"epochs": FOR_EVER}, checkpoint_seconds=1e-6)
    with running(tmp_path / "run", config) as shards, Workers(shards.url):
        store = open_store(f"{shards.url}/checkpoints")
        # Each is called by the steps in it: there were some between any two.
        eventually(lambda: len(store.folders()) > 3)
        shards.folder.request(ControlRequest(action="stop"))
        assert shards.wait().state is RunState.FINISHED
        cut = store.folders()
        assert len({resolve(f"{shards.url}/checkpoints"), *cut}) == len(cut) + 1


def resumed(old: Shards, url: str, n_shards: int, *, epochs: int, **options: Any) -> RunConfig:
    """Return the config of a run that goes on where a checkpoint was cut."""
    return make_config(
        leases=old.config.leases,
        n_shards=n_shards,
        stop={"epochs": epochs},
        resume_url=url,
        resume_ledger=True,
        **options,
    )


def finish(path: Path, config: RunConfig) -> tuple[Mapping[str, int], np.ndarray[Any, Any]]:
    """Run to the end; return the counters and the model."""
    with running(path, config) as shards, Workers(shards.url):
        status = shards.wait()
        assert status.state is RunState.FINISHED
        return status.counts, model_of(shards)


@pytest.mark.parametrize(("n_before", "n_after"), [(1, 3), (2, 1), (3, 2)])
def test_a_checkpoint_is_one_moment_of_all_shards(tmp_path: Path, n_before: int, n_after: int) -> None:
    """Cut while workers are at it, and restored to another number of shards, it lacks and doubles no step."""
    config = make_config(
        n_shards=n_before,
        leases=SOME_LEASES,
        stop={"epochs": FOR_EVER},
        checkpoint_url=str(tmp_path / "kept"),
    )
    with running(tmp_path / "run", config) as shards, Workers(shards.url):
        eventually(lambda: min(shards.counts("steps_applied")) > 100)
        key = shards.folder.request(ControlRequest(action="snapshot"))
        eventually(lambda: open_store(tmp_path / "kept").exists("latest"))
        cut_at = shards.counts("steps_applied")[0]
        eventually(lambda: not shards.folder.store.exists(key))
        eventually(lambda: shards.counts("steps_applied")[0] > cut_at + 50)
        shards.folder.request(ControlRequest(action="kill"))
        shards.wait()
        url = resolve(str(tmp_path / "kept"))
        found = read_checkpoint(open_store(url))
        n_done = found.extra["coordinator"]["updates"]
        assert 100 < n_done <= cut_at
        assert found.tables["w"]["weights"].sum() == 3 * n_done
        epochs = n_done // config.steps_per_epoch + 2
        counts, model = finish(tmp_path / "again", resumed(shards, url, n_after, epochs=epochs))
        assert [counts[f"shard{i}.steps_applied"] for i in range(n_after)] == (
            [epochs * config.steps_per_epoch] * n_after
        )
        np.testing.assert_array_equal(model, expected_weights(config, epochs))


def test_checkpoints_are_cut_by_the_clock(tmp_path: Path) -> None:
    """Every checkpoint_seconds one is cut, each whole, and training goes on in between."""
    config = make_config(n_shards=2, leases=SOME_LEASES, stop={"epochs": FOR_EVER}, checkpoint_seconds=0.1)
    with running(tmp_path / "run", config) as shards, Workers(shards.url):
        store = open_store(f"{shards.url}/checkpoints")
        names = eventually(lambda: len(n := _checkpoints(store.list())) >= 3 and n)
        for name in names:
            found = read_checkpoint(store.child(name))
            assert found.tables["w"]["weights"].sum() == 3 * int(name.removeprefix("step-"))
        shards.folder.request(ControlRequest(action="stop"))
        shards.wait()


def _checkpoints(keys: list[str]) -> list[str]:
    return [key.split("/")[0] for key in keys if key.endswith("checkpoint.json")]


def test_a_stopped_run_is_resumed_from_its_model(tmp_path: Path) -> None:
    """A run that was stopped in the middle of an epoch is gone on with in that epoch, exactly."""
    config = make_config(leases=make_leases(*[3] * 40), stop={"epochs": 2})
    with running(tmp_path / "run", config) as shards:
        worker, client = shards.worker(), shards.client()
        for _ in range(3):
            task = worker.ask(NextTask(wait_seconds=5), Task)
            done = Worker(shards.url, 9)
            done._train(client, task)
        shards.folder.request(ControlRequest(action="stop"))
        keeper = shards.shards[0]._keeper
        assert keeper is not None
        eventually(lambda: keeper.coordinator.phase is not Phase.RUNNING)
        assert worker.ask(NextTask(wait_seconds=5), Task).action == "end"
        worker.close()
        assert shards.wait().updates == 9
        again = resumed(shards, f"{shards.url}/model", 2, epochs=2)
    counts, model = finish(tmp_path / "again", again)
    assert counts["shard0.steps_applied"] == counts["shard1.steps_applied"] == 240
    np.testing.assert_array_equal(model, expected_weights(config, 2))


def test_weights_may_be_taken_without_the_schedule(tmp_path: Path) -> None:
    """A warm start takes the tables and begins at epoch 0."""
    config = make_config(n_shards=2, leases=SOME_LEASES, stop={"epochs": 1})
    finish(tmp_path / "run", config)
    warm = make_config(leases=SOME_LEASES, stop={"epochs": 2}, resume_url=str(tmp_path / "run" / "model"))
    counts, model = finish(tmp_path / "again", warm)
    assert counts["shard0.steps_applied"] == 2 * config.steps_per_epoch
    np.testing.assert_array_equal(model, expected_weights(config, 3))


# Generations.


def test_a_superseded_shard_does_not_start(tmp_path: Path) -> None:
    """Of two generations the newer serves; an older one, and the same again, cannot announce themselves."""
    with running(tmp_path / "run", make_config()) as shards:
        shards.replace(0)
        for generation in (1, 2):
            late = Shard(shards.url, shard=0, generation=generation)
            with pytest.raises(SupersededError):
                late.start()
        address = shards.folder.shard_address(0)
        assert address is not None
        assert address.generation == 2


def test_done_by_word_of_a_dead_shard_is_not_done(tmp_path: Path) -> None:
    """Steps that only a shard's former generation acknowledged are done again before the model is saved."""
    config = make_config(n_shards=2, leases=make_leases(2), stop={"epochs": 1})
    with running(tmp_path / "run", config) as shards:
        worker, client = shards.worker(), shards.client()
        task = eventually(lambda: (t := worker.ask(NextTask(wait_seconds=1), Task)).action == "train" and t)
        helper = Worker(shards.url, 9)
        n_steps = config.leases[task.lease].n_steps
        client.attach(task.epoch, task.lease, task.grant)
        for position in range(n_steps):
            ids = {0: np.array([position, position + 333, position + 666], np.uint32)}
            client.push_rows(position, position, ids, {0: np.ones((3, 1), np.float32)})
        client.flush()
        shards.shards[1].crash()
        worker.ask(complete(task, (1, 1), n_steps), object)
        shards.start(1)
        again = eventually(lambda: (t := worker.ask(NextTask(wait_seconds=1), Task)).action != "wait" and t)
        assert (again.action, again.lease) == ("train", task.lease)
        helper._train(shards.client(), again)
        eventually(lambda: worker.ask(NextTask(wait_seconds=1), Task).action == "end")
        worker.close()
        shards.wait()
        assert shards.counts("steps_applied") == [n_steps, n_steps]
        np.testing.assert_array_equal(model_of(shards), expected_weights(config, 1))
