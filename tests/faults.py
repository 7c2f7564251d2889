"""Failures at a chosen step of a real run, without a hook in the product.

A :class:`Fault` says who watches, at which call of which of its functions, and who is hit then. A test writes
faults into a plan and runs the local backend with the commands of :func:`armed`: each shard, worker and
client is then its usual program, started by this file, which first puts a counter around the functions that
the plan names. When the count is reached, the watcher sends the signal, and waits until the victim is dead,
so that it dies at that very step. Every fault strikes once, whoever comes back afterwards.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import functools
import importlib
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cirrus.client_backend.claims import process_exists
from cirrus.client_backend.local import LocalBackend, LocalCommands
from cirrus.config import RunConfig
from cirrus.errors import CirrusError

#: What a worker calls at each of its steps.
PUSH = "cirrus.worker_runtime.train:LeaseTrainer._push"
#: A process that was killed is gone after this long.
DEAD_SECONDS = 10.0
DEAD_POLL_SECONDS = 0.002
#: Somebody who is to be hit may be about to start.
FIND_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One failure."""

    who: str
    """Who watches: ``shard-0``, ``train-1``, ``evaluate-2``, ...; ``train-?``: whichever is first."""
    function: str
    """``module:Class.method``, a method that the watcher calls."""
    victim: str
    """Who is hit: as ``who``, or ``client``."""
    call: int = 1
    """At which call of it, in one process."""
    when: str = "before"
    """``before`` or ``after`` the call."""
    saying: str = ""
    """Calls count whose arguments, as text, hold this."""
    generation: int | None = None
    """Of the watcher; None: any."""
    signal: int = signal.SIGKILL


@dataclass(frozen=True)
class Plan:
    """A folder with the faults of one run and the marks of those that have struck.

    Args:
        folder: An empty folder.
    """

    folder: Path

    def write(self, faults: Sequence[Fault]) -> None:
        """Arm the programs that are started from now on."""
        self.folder.mkdir(exist_ok=True)
        (self.folder / "faults.json").write_text(json.dumps([dataclasses.asdict(fault) for fault in faults]))

    def jump_clocks(self, seconds: float) -> None:
        """Have the wall clocks of the programs that are started from now on jump to and fro by so much."""
        (self.folder / "clock").write_text(str(seconds))

    def slow_down(self, seconds: float) -> None:
        """Have the workers that are started from now on pause for so long at each step."""
        (self.folder / "pause").write_text(str(seconds))

    def faults(self) -> list[tuple[int, Fault]]:
        """Return all faults, with their numbers."""
        raw = json.loads((self.folder / "faults.json").read_text())
        return [(number, Fault(**one)) for number, one in enumerate(raw)]

    def struck(self) -> list[int]:
        """Return the numbers of the faults that have struck."""
        return sorted(int(path.suffix[1:]) for path in self.folder.glob("struck.*"))

    def strike_once(self, number: int) -> bool:
        """Mark a fault as having struck; return False if it has before."""
        try:
            os.close(os.open(self.folder / f"struck.{number}", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True

    def note_pid(self, name: str) -> None:
        """Say which process somebody is."""
        path = self.folder / f"{name}.pid"
        path.with_suffix(f".{os.getpid()}").write_text(str(os.getpid()))
        path.with_suffix(f".{os.getpid()}").replace(path)

    def pid(self, name: str) -> int:
        """Return the living process that somebody is, waiting for one that is about to start."""
        end = time.monotonic() + FIND_SECONDS
        while time.monotonic() < end:
            with contextlib.suppress(OSError, ValueError):
                pid = int((self.folder / f"{name}.pid").read_text())
                if process_exists(pid):
                    return pid
            time.sleep(DEAD_POLL_SECONDS)
        raise RuntimeError(f"there is no process of {name}")


def armed(plan: Plan) -> LocalCommands:
    """Return commands that start the usual shards and workers with the plan's faults in them."""

    def command(run_url: str, *words: str) -> list[str]:
        return [
            sys.executable,
            "-P",
            "-X",
            f"cirrus_run={run_url}",
            __file__,
            words[0],
            str(plan.folder),
            *words[1:],
        ]

    def shard(run_url: str, number: int, generation: int) -> list[str]:
        return command(
            run_url, "shard", "--run-url", run_url, "--shard", str(number), "--generation", str(generation)
        )

    return LocalCommands(shard=shard, worker=lambda run_url: command(run_url, "worker"))


class Injector:
    """Counts calls in one process, and strikes.

    Args:
        plan: The faults.
        name: Who this process is.
        generation: Which incarnation.
    """

    def __init__(self, plan: Plan, name: str, generation: int) -> None:
        self._plan = plan
        self._lock = threading.Lock()
        self._counts: dict[int, int] = {}
        self._name = name
        plan.note_pid(name)
        _jump_clock(plan)
        for number, fault in plan.faults():
            if fnmatch.fnmatchcase(name, fault.who) and fault.generation in (None, generation):
                self._watch(number, fault)

    def _watch(self, number: int, fault: Fault) -> None:
        module, _, path = fault.function.partition(":")
        owner: Any = importlib.import_module(module)
        *parents, last = path.split(".")
        for parent in parents:
            owner = getattr(owner, parent)
        function: Callable[..., Any] = getattr(owner, last)

        @functools.wraps(function)
        def watched(*arguments: Any, **named: Any) -> Any:
            # To write arguments down takes longer than a step of training.
            counts = not fault.saying or fault.saying in f"{arguments[1:]} {named}"
            due = counts and self._count(number) == fault.call
            if due and fault.when == "before":
                self.strike(number, fault)
            result = function(*arguments, **named)
            if due and fault.when == "after":
                self.strike(number, fault)
            return result

        setattr(owner, last, watched)

    def _count(self, number: int) -> int:
        with self._lock:
            self._counts[number] = self._counts.get(number, 0) + 1
            return self._counts[number]

    def strike(self, number: int, fault: Fault) -> None:
        """Hit the victim, and wait for its death where that was meant."""
        if not self._plan.strike_once(number):
            return
        pid = os.getpid() if fault.victim == self._name else self._plan.pid(fault.victim)
        os.kill(pid, fault.signal)
        end = time.monotonic() + DEAD_SECONDS
        while fault.signal == signal.SIGKILL and process_exists(pid) and time.monotonic() < end:
            time.sleep(DEAD_POLL_SECONDS)


#: A clock that jumps does so this often.
JUMP_SECONDS = 0.2


def _jump_clock(plan: Plan) -> None:
    """Make this process' wall clock unreliable, where the plan says so; monotonic ones stay as they are."""
    try:
        most = float((plan.folder / "clock").read_text())
    except FileNotFoundError:
        return
    begin, real_time = time.monotonic(), time.time

    def jumping() -> float:
        jump = int((time.monotonic() - begin) / JUMP_SECONDS)
        return real_time() + random.Random(f"{os.getpid()}/{jump}").uniform(-most, most)

    time.time = jumping
    time.time_ns = lambda: int(jumping() * 1e9)


def _slow_steps(plan: Plan) -> None:
    """Make each step of this process take longer, where the plan says so."""
    try:
        seconds = float((plan.folder / "pause").read_text())
    except FileNotFoundError:
        return
    from cirrus.worker_runtime.train import LeaseTrainer

    push = LeaseTrainer._push

    def slow_push(*arguments: Any, **named: Any) -> None:
        time.sleep(seconds)
        push(*arguments, **named)

    if seconds > 0:
        LeaseTrainer._push = slow_push  # type: ignore[method-assign]


def run_shard(plan: Plan, arguments: Sequence[str]) -> int:
    """Be a shard."""
    from cirrus.paramserver import __main__ as program

    words = dict(zip(arguments[::2], arguments[1::2], strict=True))
    Injector(plan, f"shard-{words['--shard']}", int(words["--generation"]))
    return program.main(arguments)


def run_worker(plan: Plan) -> int:
    """Be a worker or evaluator, whichever the event says."""
    from cirrus.worker_runtime import __main__ as program

    handle = program.handler

    def named(event: dict[str, Any]) -> dict[str, Any]:
        _slow_steps(plan)
        Injector(plan, f"{event['role']}-{event['worker_id']}", int(event["generation"]))
        return handle(event)

    program.handler = named
    return program.main()


def run_client(plan: Plan, root: str, config: str) -> int:
    """Be a client: start a run and wait for it."""
    Injector(plan, "client", 1)
    backend = LocalBackend(root=root, commands=armed(plan))
    try:
        backend.start(RunConfig.from_json(Path(config).read_bytes())).wait()
    except CirrusError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    role, folder, *rest = sys.argv[1:]
    found = Plan(Path(folder))
    if role == "shard":
        code = run_shard(found, rest)
    elif role == "worker":
        code = run_worker(found)
    else:
        code = run_client(found, *rest)
    sys.stdout.flush()
    os._exit(code)  # threads that wait on a socket must not keep the process
