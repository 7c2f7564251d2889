"""Small real programs that take the places of shards, workers and clients, to test what keeps those alive.

``python stand_ins.py shard RUN_URL SHARD GENERATION`` behaves as ``model_metadata`` of the run's config says:

- ``finish_after``: seconds until the stand-in of shard 0 ends the run;
- ``works_for``: seconds for which it says that there is a worker;
- ``shard``: ``serve``, ``crash`` (at once), ``stubborn`` (heeds neither end of file nor SIGTERM);
- ``worker``: ``work`` (until the run is over), ``crash``, ``config_error``, ``generations`` (of 0.1 s),
  ``stubborn``, ``babble`` (prints much, and no result).
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from cirrus.client_backend.local import LocalBackend, LocalCommands
from cirrus.client_backend.runs import new_run_id
from cirrus.config import LeaseRange, ModelConfig, OptimizerConfig, RunConfig, StopConfig, TableConfig
from cirrus.errors import SupersededError
from cirrus.metrics import RunState, RunStatus
from cirrus.paramserver.host_records import HostReports, HostStatus
from cirrus.run_folder import RunFolder, ShardAddress

POLL_SECONDS = 0.01
PATIENCE_SECONDS = 20.0
#: More epochs than any test waits for.
FOR_EVER = 100_000
#: A run from its start to its end, however busy the machine: a test has 120 seconds.
RUN_SECONDS = 100.0
#: A run and its client end this soon after Ctrl-C.
CTRL_C_SECONDS = 3.0
#: Other work excuses that something took so many times as long as it may, and no more.
MOST_BUSY = 3.0


def make_config(*, run_id: str = "", n_workers: int = 1, n_shards: int = 1, **metadata: Any) -> RunConfig:
    """Return the config of a run whose stand-ins behave as ``metadata`` says."""
    boundaries = (0, *(10 * shard for shard in range(1, n_shards)), 1000)
    table = TableConfig(
        name="weights", n_rows=1000, width=1, optimizer=OptimizerConfig(name="sgd"), boundaries=boundaries
    )
    return RunConfig(
        run_id=run_id or new_run_id(),
        model=ModelConfig(name="logistic"),
        tables=(table,),
        train_url="nowhere",
        train_fingerprint="",
        n_features=1000,
        batch_size=1,
        leases=(LeaseRange(chunk=0, first_block=0, n_blocks=1, n_rows=1, n_steps=1),),
        stop=StopConfig(epochs=1),
        n_workers=n_workers,
        n_shards=n_shards,
        model_metadata=metadata,
    )


def make_backend(root: Path | str, **options: Any) -> LocalBackend:
    """Return a local backend that runs the programs of this file."""
    return LocalBackend(
        root=root, commands=LocalCommands(shard=shard_command, worker=_worker_command), **options
    )


def last_report(folder: RunFolder, instance: str) -> HostStatus | None:
    """Return what a server has said last of a run, of its newest booking there."""
    keys = folder.store.list(f"hosts/{instance}/")
    numbers = [int(key.rpartition("/")[2].removesuffix(".json")) for key in keys]
    return HostReports(folder.store).read(instance, max(numbers, default=0))


def shard_command(run_url: str, shard: int, generation: int) -> list[str]:
    """Return the command line of a stand-in for a shard."""
    return [sys.executable, __file__, "shard", run_url, str(shard), str(generation)]


def _worker_command(run_url: str) -> list[str]:
    return [sys.executable, __file__, "worker", run_url]


def eventually(condition: Callable[[], Any], seconds: float = PATIENCE_SECONDS) -> Any:
    """Return the first true value of a condition; fail if none comes in time."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(POLL_SECONDS)
    return value


def how_busy() -> float:
    """Return by how much starting a process takes longer than it has to, now: 1 on a machine that is idle.

    At most :data:`MOST_BUSY`: a bound that stretches without end holds nothing.
    """
    program = "import time, numba; print(time.process_time())"
    began_at = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return min(max(1.0, (time.monotonic() - began_at) / float(done.stdout)), MOST_BUSY)


def assert_within(bound_seconds: float, take: Callable[[], float]) -> None:
    """Check that something takes less time than it may on a machine with nothing else to do.

    One that took longer may have met other work: it is allowed what that cost, and tried once more.

    Args:
        bound_seconds: What it may take, wall clock.
        take: Does it, and returns the seconds that it took.
    """
    first = take()
    if first < bound_seconds or first < bound_seconds * how_busy():
        return
    busy_before = how_busy()
    second = take()
    busy = 1.0 if second < bound_seconds else max(busy_before, how_busy())
    assert second < bound_seconds * busy, (
        f"took {first:.2f} s and {second:.2f} s, may take {bound_seconds:g} s (waits are {busy:.1f} x longer)"
    )


def processes(marker: str, role: str = "") -> list[psutil.Process]:
    """Return the living processes whose command line holds the marker (a run id) and the role."""
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            alive = process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            continue
        if alive and any(marker in word for word in words) and (not role or role in words):
            found.append(process)
    return found


def watch_input(then: Callable[[], None]) -> None:
    """Call ``then`` in a thread at the end of standard input."""

    def watch() -> None:
        while os.read(0, 4096):
            pass
        then()

    threading.Thread(target=watch, daemon=True).start()


def be_stubborn() -> None:
    """Heed nothing but SIGKILL."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def run_shard(run_url: str, shard: int, generation: int) -> None:
    """Play a shard."""
    folder = RunFolder(run_url)
    metadata = folder.config().model_metadata
    behaviour = metadata.get("shard", "serve")
    if behaviour == "crash":
        print("something about the cause", file=sys.stderr)
        sys.exit(3)
    lost_parent = threading.Event()
    if behaviour == "stubborn":
        be_stubborn()
    else:
        watch_input(lost_parent.set)
    address = ShardAddress(shard=shard, generation=generation, host="127.0.0.1", port=1, pid=os.getpid())
    try:
        folder.announce_shard(address)
    except SupersededError:
        return
    print("127.0.0.1:1", flush=True)
    if shard == 0:
        _coordinate(folder, lost_parent, metadata.get("finish_after"), metadata.get("works_for", 0.0))
        return
    while not lost_parent.is_set():
        status = folder.status()
        if status is not None and status.state in (RunState.FINISHED, RunState.KILLED, RunState.FAILED):
            return
        time.sleep(POLL_SECONDS)


def _coordinate(
    folder: RunFolder, lost_parent: threading.Event, finish_after: float | None, works_for: float
) -> None:
    before = folder.status()
    updates = 0 if before is None else before.updates
    start = time.monotonic()
    while True:
        updates += 1
        now = time.time()
        status = RunStatus(
            state=RunState.RUNNING,
            updates=updates,
            heartbeat_at=now,
            started_at=now,
            n_workers=int(time.monotonic() - start < works_for),
        )
        state, error = RunState.RUNNING, None
        for key, request in folder.requests():
            ends = {"kill": RunState.KILLED, "stop": RunState.FINISHED, "fail": RunState.FAILED}
            state, error = ends.get(request.action, state), request.reason or None
            folder.finish_request(key)
        if finish_after is not None and time.monotonic() - start > finish_after:
            state = RunState.FINISHED
        if lost_parent.is_set() and not state.ended:
            state = RunState.INTERRUPTED
        folder.write_status(dataclasses.replace(status, state=state, error=error))
        if state.ended:
            return
        time.sleep(POLL_SECONDS)


def run_worker() -> None:
    """Play a worker."""
    event = json.loads(sys.stdin.buffer.readline())
    folder = RunFolder(event["run_url"])
    behaviour = folder.config().model_metadata.get("worker", "work")
    name = f"stand-ins/{event['role']}-{event['worker_id']}-{event['generation']}"
    folder.store.put(name, str(os.getpid()).encode())
    if behaviour == "stubborn":
        be_stubborn()
    else:
        watch_input(lambda: os._exit(0))
    if behaviour == "crash":
        sys.exit("no more memory")
    if behaviour == "config_error":
        print(json.dumps({"error": "l1: is wrong", "type": "ConfigError"}))
        sys.exit(1)
    if behaviour == "babble":
        print("x" * 1_000_000)
        return
    end = time.monotonic() + (0.1 if behaviour == "generations" else float("inf"))
    while (status := folder.status()) is None or not status.state.ended or status.state == "interrupted":
        if time.monotonic() > end:
            print(json.dumps({"outcome": "deadline", "steps": 1, "rows": 1, "seconds": 0.1}))
            return
        time.sleep(POLL_SECONDS)
    print(json.dumps({"outcome": "finished", "steps": 1, "rows": 1, "seconds": 0.1}))


def run_client(root: str, run_id: str, how: str) -> None:
    """Play a client: start a run, and ``wait`` for it, or ``leave`` or ``fail`` with the run going on."""
    run = make_backend(root).start(make_config(run_id=run_id, n_workers=2, n_shards=2))
    eventually(lambda: run.folder.store.list("stand-ins/train-1") and run.folder.shard_address(0))
    eventually(lambda: run.folder.shard_address(1))
    print("ready", flush=True)
    if how == "wait":
        run.wait()
    if how == "fail":
        raise RuntimeError("the user's script is wrong")


if __name__ == "__main__":
    if sys.argv[1] == "shard":
        run_shard(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    elif sys.argv[1] == "worker":
        run_worker()
    else:
        run_client(*sys.argv[2:])
