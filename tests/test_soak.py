"""A run whose parts are hit at random, all the time, ends with the right model.

Two minutes of it here, in which it leaves the machine to other tests for most of the time; ten minutes at
full speed by ``make soak``. The seed is printed: ``CIRRUS_TEST_SEED`` repeats the choice of victims and
moments, and ``CIRRUS_SOAK_SECONDS`` the length.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from faults import Plan, armed
from real_runs import GOOD_ACCURACY, accuracy, make_dataset, plan
from stand_ins import FOR_EVER, eventually, processes

from cirrus.client_backend.local import LocalBackend
from cirrus.client_backend.runs import Run
from cirrus.metrics import RunState

SEED = int(os.environ.get("CIRRUS_TEST_SEED") or random.SystemRandom().randrange(2**31))
SECONDS = float(os.environ.get("CIRRUS_SOAK_SECONDS") or "120")
#: A worker waits so long at each step, as if its minibatches took so long to come.
PAUSE_SECONDS = 0.0 if "CIRRUS_SOAK_SECONDS" in os.environ else 0.004
#: Between two hits, on average.
EVERY_SECONDS = 5.0
#: A process that is stopped goes on after this long at most. One of the shards that is not let go on is
#: replaced.
LONGEST_STOP_SECONDS = 4.0
END_SECONDS = 120.0
N_WORKERS, N_SHARDS = 2, 2


class Hitter:
    """Hits random parts of a run.

    Args:
        run: The run.
        rng: What chooses.
    """

    def __init__(self, run: Run, rng: random.Random) -> None:
        self._run = run
        self._rng = rng
        self._to_continue: list[tuple[float, psutil.Process]] = []
        self.hits: Counter[str] = Counter()

    def hit(self) -> None:
        """Kill or stop a process of the run."""
        kind = self._rng.choice(["shard", "shard", "worker", "worker", "evaluator"])
        how = self._rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM])
        nap = self._rng.uniform(0.2, LONGEST_STOP_SECONDS)
        victims = self._victims(kind)
        chosen = self._rng.random()
        if not victims:
            return
        victim = victims[int(chosen * len(victims))]
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.send_signal(how)
            self.hits[f"{how.name} {kind}"] += 1
            if how == signal.SIGSTOP:
                self._to_continue.append((time.monotonic() + nap, victim))

    def wake(self, *, everybody: bool = False) -> None:
        """Let those go on who have been stopped for long enough."""
        now = time.monotonic()
        for until, victim in list(self._to_continue):
            if everybody or now >= until:
                self._to_continue.remove((until, victim))
                with contextlib.suppress(psutil.NoSuchProcess):
                    victim.send_signal(signal.SIGCONT)

    def _victims(self, kind: str) -> list[psutil.Process]:
        run_id = self._run.run_id
        if kind == "shard":
            return sorted(processes(run_id, "shard"), key=lambda process: process.pid)
        workers = sorted(processes(run_id, "worker"), key=lambda process: process.pid)
        logs = {"worker": "worker-", "evaluator": "evaluator-"}
        return [process for process in workers if _log_name(process).startswith(logs[kind])]


def _log_name(process: psutil.Process) -> str:
    """Return the name of the file that a worker's standard error goes to, which tells its role."""
    with contextlib.suppress(OSError):
        return Path(os.readlink(f"/proc/{process.pid}/fd/2")).name
    return ""


@pytest.mark.timeout(SECONDS + END_SECONDS + 60)
def test_random_hits_change_nothing(tmp_path: Path) -> None:
    """Whoever is killed or stopped: no step is missing or there twice, and the model is good."""
    print(f"CIRRUS_TEST_SEED={SEED} CIRRUS_SOAK_SECONDS={SECONDS:g}")
    train = make_dataset(str(tmp_path / "train"))
    config = plan(train, n_workers=N_WORKERS, n_shards=N_SHARDS, snapshot_seconds=0.5, epochs=FOR_EVER)
    config = dataclasses.replace(
        config,
        validation_url=train.url,
        validation_fingerprint=train.manifest.fingerprint,
        lease_seconds=10.0,
    )
    rng = random.Random(SEED)
    armory = Plan(tmp_path / "faults")
    armory.write([])
    armory.slow_down(PAUSE_SECONDS)
    with LocalBackend(root=tmp_path, commands=armed(armory)).start(config) as run:
        eventually(lambda: run.status.updates > 0, END_SECONDS)
        hitter = Hitter(run, rng)
        end = time.monotonic() + SECONDS
        next_hit = time.monotonic()
        updates = 0
        while (now := time.monotonic()) < end:
            hitter.wake()
            # What never gets further is given up in the end, and rightly so.
            if now >= next_hit and run.status.updates > updates:
                updates = run.status.updates
                hitter.hit()
                next_hit = now + rng.uniform(0.5, 1.5) * EVERY_SECONDS
            run.wait(0.1)  # which fails as soon as the run does
        hitter.wake(everybody=True)
        updates = run.status.updates
        eventually(lambda: run.status.updates > updates, END_SECONDS)
        run.stop()
        status = run.wait(END_SECONDS)
    print(f"{dict(hitter.hits)}; {status.updates} updates, {status.counts}")
    assert sum(hitter.hits.values()) >= SECONDS / EVERY_SECONDS / 4
    assert status.state is RunState.FINISHED
    applied = [status.counts[f"shard{shard}.steps_applied"] for shard in range(N_SHARDS)]
    assert applied[0] == applied[1]
    whole, rest = divmod(applied[0], config.steps_per_epoch)
    assert whole >= status.epoch - 1
    assert rest or whole
    assert accuracy(run) > GOOD_ACCURACY
    assert processes(run.run_id) == []
