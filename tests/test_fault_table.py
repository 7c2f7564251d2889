"""Every part of a run, killed at every state of the run: the model is as good, and the counts are exact.

``CIRRUS_FAULTS=all`` runs the whole table (``make soak``); otherwise each state is tried with one victim, so
that each kind of victim has its turn.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import faults
import numpy as np
import pytest
from faults import PUSH, Fault, Plan, armed
from real_runs import LOSS_NOISE, assert_exact, make_data, make_dataset, plan
from stand_ins import FOR_EVER, RUN_SECONDS, eventually, processes

from cirrus import Dataset
from cirrus.client_backend.local import LocalBackend
from cirrus.client_backend.processes import child_environment
from cirrus.client_backend.runs import open_run
from cirrus.config import RunConfig, StopConfig
from cirrus.errors import ConflictError
from cirrus.metrics import RunState, RunStatus
from cirrus.paramserver.checkpoint import read_checkpoint
from cirrus.storage import open_store

EPOCHS = 5
#: Log loss of the final model on the training rows: seven runs without a fault, of seven seeds, ended between
#: 0.28211 and 0.28251. A redone step is computed from weights of another moment, as is all that one worker
#: does while the other is away.
LOSS = 0.2823

EVALUATOR = "evaluate-2"
VICTIMS = ("shard-0", "shard-1", "train-0", EVALUATOR, "client")
#: Of all the steps one of two workers does half, at the least.
ANY_WORKER = "train-?"
_SHARD = "cirrus.paramserver.server:Shard"
_COORDINATOR = "cirrus.paramserver.coordinator:Coordinator"
_KEEPER = "cirrus.paramserver.run_keeper:RunKeeper"


def own(victim: str, of_shard: str, of_worker: str) -> tuple[str, str]:
    """Return who watches, and what: the victim itself where it can; shard 0 for the client."""
    if victim == "client":
        return "shard-0", of_shard
    return victim, of_shard if victim.startswith("shard") else of_worker


def _starting(victim: str) -> list[Fault]:
    who, function = own(victim, f"{_SHARD}.start", "cirrus.worker_runtime.session:Session.__init__")
    return [Fault(who=who, function=function, victim=victim)]


def _restoring(victim: str) -> list[Fault]:
    # A shard that was lost comes back, and is about to serve.
    watcher = victim if victim.startswith("shard") else "shard-1"
    first = Fault(who=ANY_WORKER, function=PUSH, call=300, victim=watcher)
    return [
        first,
        Fault(who=watcher, function=f"{_SHARD}._restore", when="after", generation=2, victim=victim),
    ]


def _at(who: str, function: str, **when: object) -> object:
    def faults_of(victim: str) -> list[Fault]:
        return [Fault(who=who, function=function, victim=victim, **when)]  # type: ignore[arg-type]

    return faults_of


STATES = {
    "starting": _starting,
    "restoring": _restoring,
    "first lease": _at("shard-0", f"{_SHARD}.attach", when="after"),
    "mid-epoch": _at(ANY_WORKER, PUSH, call=500),
    "epoch's end": _at("shard-0", f"{_COORDINATOR}._count_epoch", call=3),
    "evaluating": _at(EVALUATOR, "cirrus.worker_runtime.evaluate:Evaluator._pull", call=7),
    "checkpointing": _at("shard-0", f"{_SHARD}.write_part", when="after", saying="/checkpoints/"),
    "snapshotting": _at("shard-0", "cirrus.paramserver.snapshots:Snapshots._make_newest", call=3),
    "finishing": _at("shard-0", f"{_COORDINATOR}.end", when="after"),
    "writing the model": _at("shard-0", f"{_SHARD}.write_part", when="after", saying="/model'"),
    "saying farewell": _at("shard-0", f"{_KEEPER}._say_farewell"),
}
TABLE = [(state, victim) for state in STATES for victim in VICTIMS]
#: Most states once, each victim at least once.
SHORT = [
    (state, VICTIMS[i % len(VICTIMS)])
    for i, state in enumerate(STATES)
    if state not in ("first lease", "finishing")
]
CASES = TABLE if os.environ.get("CIRRUS_FAULTS") == "all" else SHORT


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Return a dataset of 20,000 rows."""
    return make_dataset(str(tmp_path_factory.mktemp("data") / "train"))


def config_of(train: Dataset, *, seed: int = 0) -> RunConfig:
    """Return the config of a run with two of everything, that evaluates, snapshots and cuts checkpoints."""
    config = plan(train, epochs=EPOCHS, snapshot_seconds=0.1, checkpoint_seconds=0.2)
    return dataclasses.replace(
        config, seed=seed, validation_url=train.url, validation_fingerprint=train.manifest.fingerprint
    )


def log_loss(url: str) -> float:
    """Return the mean log loss of a run's final model on the training rows."""
    tables = read_checkpoint(open_store(f"{url}/model")).tables
    rows, labels = make_data()
    scores = rows @ tables["weights"]["weights"][:, 0] + tables["intercept"]["weights"][0, 0]
    return float(np.mean(np.logaddexp(0.0, np.where(labels > 0, -scores, scores))))


def run_to_end(root: Path, config: RunConfig, armory: Plan, victim: str) -> RunStatus:
    """Run to the end, by another client where the first one is the victim."""
    backend = LocalBackend(root=root, commands=armed(armory))
    if victim != "client":
        with backend.start(config) as run:
            return run.wait(RUN_SECONDS)
    path = root / "config.json"
    path.write_bytes(config.to_json())
    command = [sys.executable, faults.__file__, "client", str(armory.folder), str(root), str(path)]
    client = subprocess.run(command, env=child_environment(os.environ), timeout=RUN_SECONDS, check=False)
    assert client.returncode < 0
    seen = open_run(str(root), config.run_id)
    if seen.wait(RUN_SECONDS).state is RunState.FINISHED:
        return seen.status
    with backend.attach(config.run_id) as run:
        return run.wait(RUN_SECONDS)


def test_sigterm_in_the_middle_of_a_snapshot(train: Dataset, tmp_path: Path) -> None:
    """A shard that is told to end while it writes one finishes it, writes a last one, and loses no step."""
    config = config_of(train)
    armory = Plan(tmp_path / "faults")
    function = "cirrus.paramserver.snapshots:Snapshots._make_newest"
    faults_of = [
        Fault(who=who, victim=who, function=function, call=3, signal=signal.SIGTERM) for who in VICTIMS[:2]
    ]
    armory.write(faults_of)
    status = run_to_end(tmp_path, config, armory, "shard-0")
    assert armory.struck() == [0, 1]
    assert_exact(config, status)
    assert status.updates == config.stop.epochs * config.steps_per_epoch
    assert processes(config.run_id) == []


DAY_SECONDS = 86_400.0


def test_wall_clocks_decide_nothing(train: Dataset, tmp_path: Path) -> None:
    """With clocks that jump by a day to and fro, in every process, a run is exact, and no claim is stolen."""
    config = dataclasses.replace(config_of(train), stop=StopConfig(epochs=FOR_EVER))
    armory = Plan(tmp_path / "faults")
    armory.write([])
    armory.jump_clocks(DAY_SECONDS)
    path = tmp_path / "config.json"
    path.write_bytes(config.to_json())
    command = [sys.executable, faults.__file__, "client", str(armory.folder), str(tmp_path), str(path)]
    client = subprocess.Popen(command, env=child_environment(os.environ))
    try:
        backend = LocalBackend(root=tmp_path)
        eventually(lambda: backend_knows(tmp_path, config.run_id), RUN_SECONDS)
        run = open_run(str(tmp_path), config.run_id)
        eventually(lambda: run.status.updates > 0, RUN_SECONDS)
        with pytest.raises(ConflictError, match=f"supervised by process {client.pid}"):
            backend.attach(config.run_id)
        run.stop()
        assert client.wait(RUN_SECONDS) == 0
    finally:
        client.kill()
        client.wait()
    status = run.status
    assert status.state is RunState.FINISHED
    assert [status.counts[f"shard{shard}.steps_applied"] for shard in range(2)] == [status.updates] * 2
    assert processes(config.run_id) == []


def backend_knows(root: Path, run_id: str) -> bool:
    """Tell whether the run has begun."""
    return (root / "runs" / run_id / "client.json").exists()


@pytest.mark.parametrize(("state", "victim"), CASES)
def test_a_death_changes_nothing(train: Dataset, tmp_path: Path, state: str, victim: str) -> None:
    """Whoever dies in whatever state: every step of every epoch is in the model once, and it is as good."""
    config = config_of(train)
    armory = Plan(tmp_path / "faults")
    planned = STATES[state](victim)
    armory.write(planned)
    status = run_to_end(tmp_path, config, armory, victim)
    assert armory.struck() == list(range(len(planned))), (armory.struck(), status)
    assert status.state is RunState.FINISHED
    assert_exact(config, status)
    loss = log_loss(f"{tmp_path}/runs/{config.run_id}")
    print(f"{state}, {victim}: log loss {loss:.5f}")
    assert abs(loss - LOSS) < LOSS_NOISE
    assert processes(config.run_id) == []
