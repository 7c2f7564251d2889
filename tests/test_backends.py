"""What keeps shards and workers alive, and ends them: real processes, with stand-ins in the main parts."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import stand_ins
from stand_ins import (
    CTRL_C_SECONDS,
    PATIENCE_SECONDS,
    assert_within,
    eventually,
    make_backend,
    make_config,
    processes,
)

from cirrus.client_backend import runs
from cirrus.client_backend.backend import resolve_backend
from cirrus.client_backend.claims import new_claim
from cirrus.client_backend.fleet import WorkerEvent, WorkerResult
from cirrus.client_backend.inline import InlineBackend
from cirrus.client_backend.launcher import CostCorrection
from cirrus.client_backend.local import LocalBackend, LocalLauncher
from cirrus.client_backend.processes import child_environment
from cirrus.client_backend.runs import new_run_id, open_run
from cirrus.config import RunConfig
from cirrus.errors import ConfigError, ConflictError, NotFoundError, RunError
from cirrus.metrics import RunState
from cirrus.run_folder import CLAIM_SECONDS, RunFolder


@pytest.fixture
def nothing_left() -> Callable[[str], None]:
    """Return a check that no process of a run is left."""

    def check(run_id: str) -> None:
        eventually(lambda: not processes(run_id))

    return check


Check = Callable[[str], None]


def start_client(root: Path, run_id: str, how: str) -> subprocess.Popen[bytes]:
    """Start a client process and wait until its run works."""
    command = [sys.executable, stand_ins.__file__, "client", str(root), run_id, how]
    client = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=child_environment(os.environ)
    )
    assert client.stdout is not None
    assert client.stdout.readline() == b"ready\n"
    return client


def end_client(client: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
    """Wait for a client's end; return what it printed."""
    out, err = client.communicate(timeout=PATIENCE_SECONDS)
    return out, err


def test_a_run_starts_works_and_finishes(tmp_path: Path, nothing_left: Check) -> None:
    """A run's shards and workers are started, the status is followed to its end, and nothing is left."""
    config = make_config(n_workers=2, n_shards=2, finish_after=0.3)
    run = make_backend(tmp_path).start(config)
    states: list[RunState] = []
    status = run.wait(on_event=lambda status: states.append(status.state))
    assert status.state is RunState.FINISHED
    assert states[-1] is RunState.FINISHED
    nothing_left(run.run_id)
    holder = run.folder.claim_holder()
    assert holder is not None
    assert holder.released
    assert run.url == str(tmp_path / "runs" / config.run_id)
    assert run.config == dataclasses.replace(config, backend=run.config.backend)
    assert (tmp_path / "runs" / config.run_id / "logs" / "worker-1.log").exists()


def test_waiting_can_be_limited(tmp_path: Path) -> None:
    """``wait(timeout)`` returns the present status of a run that goes on."""
    with make_backend(tmp_path).start(make_config()) as run:
        assert run.wait(timeout=0.1).state in (RunState.STARTING, RunState.RUNNING)
    assert run.status.state is RunState.INTERRUPTED


@pytest.mark.parametrize("action", ["kill", "stop"])
def test_the_supervising_client_ends_its_run(tmp_path: Path, action: str, nothing_left: Check) -> None:
    """Kill and stop reach shard 0 through the run folder; after ``kill`` everything is gone already."""
    run = make_backend(tmp_path).start(make_config(n_workers=2, n_shards=2))
    eventually(lambda: run.status.state is RunState.RUNNING)
    getattr(run, action)()
    if action == "kill":
        assert processes(run.run_id) == []
    assert run.wait(PATIENCE_SECONDS).state is {"kill": RunState.KILLED, "stop": RunState.FINISHED}[action]
    nothing_left(run.run_id)


def test_killing_does_not_need_the_shards_consent(tmp_path: Path) -> None:
    """A run whose shards heed nothing is killed all the same, and its status says so."""
    run = make_backend(tmp_path).start(make_config(shard="stubborn", worker="stubborn", n_shards=2))
    eventually(lambda: run.status.state is RunState.RUNNING)
    for process in processes(run.run_id, "shard"):
        process.suspend()
    run.kill(timeout=0.2)
    assert processes(run.run_id) == []
    assert run.status.state is RunState.KILLED


def test_a_killed_worker_is_back_at_once(tmp_path: Path) -> None:
    """SIGKILL of a worker costs the time of starting one, five times in a row."""
    with make_backend(tmp_path).start(make_config(n_workers=2)) as run:
        folder = run.folder.store
        for round_number in range(5):
            name = f"stand-ins/train-1-{1_000_000 + round_number}"
            eventually(lambda name=name: folder.exists(name))
            pid = int(folder.get(name))
            eventually(lambda: run.status.updates > 0)
            os.kill(pid, signal.SIGKILL)
        eventually(lambda: folder.exists("stand-ins/train-1-1000005"))
        assert run.supervisor is not None
        assert run.supervisor.fleet.generations == (1, 6)
        assert run.supervisor.fleet.n_live == 2


def test_a_killed_shard_is_back_under_a_new_generation(tmp_path: Path) -> None:
    """SIGKILL of a shard brings its next generation; the others are left alone."""
    with make_backend(tmp_path).start(make_config(n_shards=2)) as run:
        for generation in (1, 2, 3):

            def address(generation: int = generation) -> Any:
                found = run.folder.shard_address(1)
                return found if found is not None and found.generation == generation else None

            found = eventually(address)
            if generation < 3:
                os.kill(found.pid, signal.SIGKILL)
        first = run.folder.shard_address(0)
        assert first is not None
        assert first.generation == 1
        assert run.status.state is RunState.RUNNING


@pytest.mark.parametrize("n_shards", [1, 2])
def test_a_shard_that_cannot_start_fails_the_run(tmp_path: Path, n_shards: int, nothing_left: Check) -> None:
    """A crash loop is bounded, and its cause is in the error, the status and the log."""
    run = make_backend(tmp_path).start(make_config(n_shards=n_shards, shard="crash"))
    with pytest.raises(RunError, match=r"(?s)shard \d ended with exit code 3.*something about the cause"):
        run.wait(60.0)
    assert run.status.state is RunState.FAILED
    assert "something about the cause" in str(run.status.error)
    nothing_left(run.run_id)


def test_a_worker_with_a_wrong_parameter_fails_the_run_at_once(tmp_path: Path, nothing_left: Check) -> None:
    """An error that cannot heal is not tried again; shard 0 ends the run with its text."""
    run = make_backend(tmp_path).start(make_config(worker="config_error"))
    with pytest.raises(RunError, match="worker 0: l1: is wrong"):
        run.wait(PATIENCE_SECONDS)
    assert run.supervisor is not None
    assert run.supervisor.fleet.generations == (1,)
    nothing_left(run.run_id)


def test_generations_follow_each_other(tmp_path: Path) -> None:
    """Workers with a lifetime are invoked again and again; the event tells them how long they have."""
    backend = make_backend(tmp_path, generation_seconds=0.1)
    with backend.start(make_config(worker="generations")) as run:
        assert run.supervisor is not None
        fleet = run.supervisor.fleet
        eventually(lambda: fleet.generations[0] >= 3)


def test_no_secret_is_where_others_can_look(tmp_path: Path) -> None:
    """The run's token is in no command line and no environment, and its file is for its owner alone."""
    with make_backend(tmp_path).start(make_config(n_shards=2)) as run:
        eventually(lambda: len(processes(run.run_id)) == 3)
        token = run.folder.token()
        for process in processes(run.run_id):
            assert token not in " ".join(process.cmdline())
            assert all(token not in value for value in process.environ().values())
        mode = (Path(run.url) / "token").stat().st_mode
        assert mode & 0o077 == 0


def test_two_runs_at_once_do_not_disturb_each_other(tmp_path: Path, nothing_left: Check) -> None:
    """Ending one of two runs of the same backend leaves the other as it was."""
    backend = make_backend(tmp_path)
    with backend.start(make_config(n_workers=2)) as first, backend.start(make_config(n_workers=2)) as second:
        eventually(lambda: len(processes(first.run_id)) == len(processes(second.run_id)) == 3)
        before = {process.pid for process in processes(second.run_id)}
        first.kill()
        nothing_left(first.run_id)
        assert {process.pid for process in processes(second.run_id)} == before
        assert second.status.state is RunState.RUNNING


def test_a_run_id_is_used_once(tmp_path: Path) -> None:
    """Starting a run over an existing one is refused and changes nothing."""
    backend = make_backend(tmp_path)
    run = backend.start(make_config(finish_after=0.0))
    run.wait(PATIENCE_SECONDS)
    with pytest.raises(ConflictError):
        backend.start(run.config)
    assert run.status.state is RunState.FINISHED


def test_the_last_reference_ends_the_run(tmp_path: Path, nothing_left: Check) -> None:
    """A run that nobody holds any more is ended: nobody could."""
    run = make_backend(tmp_path).start(make_config())
    run_id = run.run_id
    eventually(lambda: processes(run_id))
    del run
    gc.collect()
    nothing_left(run_id)


class TestClientsEnd:
    """The client goes away, in all the ways there are."""

    def test_sigkill_of_the_client_leaves_no_process(self, tmp_path: Path, nothing_left: Check) -> None:
        """Where no handler can run, the children notice by themselves; the run is interrupted."""
        run_id = new_run_id()
        client = start_client(tmp_path, run_id, "wait")
        assert len(processes(run_id, "shard")) == len(processes(run_id, "worker")) == 2
        client.kill()
        end_client(client)
        nothing_left(run_id)
        assert open_run(str(tmp_path), run_id).status.state is RunState.INTERRUPTED

    def test_another_client_goes_on_at_once(self, tmp_path: Path, nothing_left: Check) -> None:
        """A run whose client was killed is attached without waiting for its claim to lapse."""
        run_id = new_run_id()
        client = start_client(tmp_path, run_id, "wait")
        client.kill()
        end_client(client)
        start = time.monotonic()
        with make_backend(tmp_path).attach(run_id) as run:
            assert time.monotonic() - start < CLAIM_SECONDS
            eventually(lambda: run.status.state is RunState.RUNNING)
            addresses = [run.folder.shard_address(shard) for shard in range(2)]
            eventually(lambda: all(run.folder.shard_address(s).generation == 2 for s in range(2)))  # type: ignore[union-attr]
            assert all(addresses)
            run.stop()
            assert run.wait(PATIENCE_SECONDS).state is RunState.FINISHED
        nothing_left(run_id)

    def test_another_client_ends_what_was_left(self, tmp_path: Path, nothing_left: Check) -> None:
        """A run without a client can be killed by any other, though no shard is there to hear it."""
        run_id = new_run_id()
        client = start_client(tmp_path, run_id, "wait")
        client.kill()
        end_client(client)
        run = open_run(str(tmp_path), run_id)
        run.kill()
        assert run.status.state is RunState.KILLED
        nothing_left(run_id)
        with pytest.raises(RunError, match="has ended"):
            make_backend(tmp_path).attach(run_id)

    def test_ctrl_c_ends_everything_in_time(self, tmp_path: Path) -> None:
        """Ctrl-C ends the run and the client within 3 s, and is still seen as one."""

        def interrupt() -> float:
            run_id = new_run_id()
            client = start_client(tmp_path, run_id, "wait")
            start = time.monotonic()
            client.send_signal(signal.SIGINT)
            _, err = end_client(client)
            seconds = time.monotonic() - start
            assert b"KeyboardInterrupt" in err
            assert processes(run_id) == []
            assert open_run(str(tmp_path), run_id).status.state is RunState.INTERRUPTED
            return seconds

        assert_within(CTRL_C_SECONDS, interrupt)

    @pytest.mark.parametrize("how", ["leave", "fail"])
    def test_the_interpreters_exit_ends_everything(self, tmp_path: Path, how: str) -> None:
        """A script that ends, by its last line or by an error, leaves no process and no hanging claim."""
        run_id = new_run_id()
        client = start_client(tmp_path, run_id, how)
        _, err = end_client(client)
        assert (b"the user's script is wrong" in err) == (how == "fail")
        assert processes(run_id) == []
        run = open_run(str(tmp_path), run_id)
        assert run.status.state is RunState.INTERRUPTED
        holder = run.folder.claim_holder()
        assert holder is not None
        assert holder.released

    def test_children_that_heed_nothing_are_killed_in_time(self, tmp_path: Path) -> None:
        """End of file, then SIGTERM, then SIGKILL, all within the time that Ctrl-C has."""

        def close() -> float:
            run = make_backend(tmp_path).start(make_config(shard="stubborn", worker="stubborn", n_shards=2))
            eventually(lambda: run.folder.store.list("stand-ins/") and run.folder.shard_address(1))
            start = time.monotonic()
            run.close()
            seconds = time.monotonic() - start
            assert processes(run.run_id) == []
            assert run.status.state is RunState.INTERRUPTED
            return seconds

        assert_within(CTRL_C_SECONDS, close)

    def test_closing_twice_is_harmless(self, tmp_path: Path) -> None:
        """``close`` may be called again, also after the end."""
        run = make_backend(tmp_path).start(make_config(finish_after=0.0))
        run.wait(PATIENCE_SECONDS)
        run.close()
        run.close()
        assert run.status.state is RunState.FINISHED

    def test_a_fork_of_the_client_does_not_end_the_run(self, tmp_path: Path) -> None:
        """A forked child that drops its copy of the run leaves the run alone."""
        with make_backend(tmp_path).start(make_config()) as run:
            eventually(lambda: run.status.state is RunState.RUNNING)
            program = (
                "import os, sys; sys.path.insert(0, sys.argv[1]);"
                "from stand_ins import *;"
                "run = make_backend(sys.argv[2]).start(make_config(finish_after=1.0));"
                "eventually(lambda: run.status.state == 'running');"
                "pid = os.fork();"
                "run.close() if pid == 0 else os.waitpid(pid, 0);"
                "os._exit(0) if pid == 0 else print(run.wait(60).state)"
            )
            here = str(Path(stand_ins.__file__).parent)
            end = subprocess.run(
                [sys.executable, "-c", program, here, str(tmp_path / "other")],
                capture_output=True,
                check=True,
                env=child_environment(os.environ),
            )
            assert end.stdout == b"finished\n"


class TestAttaching:
    """Who may supervise a run."""

    def test_of_two_clients_one_wins(self, tmp_path: Path) -> None:
        """A run with a living supervisor cannot be attached, and goes on undisturbed."""
        backend = make_backend(tmp_path)
        with backend.start(make_config()) as run:
            eventually(lambda: run.status.state is RunState.RUNNING)
            with pytest.raises(ConflictError, match="supervised"):
                backend.attach(run.run_id)
            assert run.status.state is RunState.RUNNING

    def test_a_client_that_lost_its_claim_ends_what_it_holds(self, tmp_path: Path) -> None:
        """A supervisor whose claim another client took ends its own shards and leaves the status alone."""
        backend = make_backend(tmp_path)
        first = backend.start(make_config())
        eventually(lambda: first.status.state is RunState.RUNNING)
        holder = first.folder.claim_holder()
        assert holder is not None
        # As if this client had been suspended for longer than a claim lasts.
        data = {**vars(holder), "released": True}
        first.folder.store.put("client.json", json.dumps(data).encode())
        second = backend.attach(first.run_id)
        assert first.supervisor is not None
        assert first.supervisor.wait(PATIENCE_SECONDS)
        eventually(lambda: second.status.state is RunState.RUNNING)
        second.stop()
        assert second.wait(PATIENCE_SECONDS).state is RunState.FINISHED

    def test_a_run_that_ended_is_refused(self, tmp_path: Path) -> None:
        """There is nothing to attach to when the run finished."""
        backend = make_backend(tmp_path)
        run = backend.start(make_config(finish_after=0.0))
        run.wait(PATIENCE_SECONDS)
        with pytest.raises(RunError, match="finished"):
            backend.attach(run.run_id)

    def test_an_unknown_run_is_refused(self, tmp_path: Path) -> None:
        """The error names the run and how to find those there are."""
        with pytest.raises(NotFoundError, match="there is no run nothing"):
            make_backend(tmp_path).attach("nothing")

    def test_an_orderly_end_can_be_attached_at_once(self, tmp_path: Path) -> None:
        """A client that ends in order gives its claim back; the workers' generations go on above the old."""
        backend = make_backend(tmp_path)
        with backend.start(make_config()) as first:
            eventually(lambda: first.folder.store.list("stand-ins/"))
        with backend.attach(first.run_id) as second:
            eventually(lambda: second.folder.store.exists("stand-ins/train-0-2000000"))
            assert second.status.state in (RunState.STARTING, RunState.RUNNING)


class Reckoning(LocalLauncher):
    """Knows of costs that shard 0 does not."""

    correction = CostCorrection(workers=0.05, servers=0.2)
    phase = "waiting for a machine"
    notices = ("fewer workers than wanted",)

    def cost_correction(self) -> CostCorrection:
        """Return them."""
        return self.correction


class ReckoningBackend(LocalBackend):
    """Runs what its launcher says more of."""

    def launcher(self, folder: RunFolder, config: RunConfig) -> Reckoning:
        """See :meth:`Backend.launcher`."""
        return Reckoning(folder.url, self._commands)


def test_the_launcher_puts_the_costs_right_and_says_what_it_waits_for(tmp_path: Path) -> None:
    """What shard 0 could not know is added once, at the end; phase and notices reach the run."""
    commands = make_backend(tmp_path)._commands
    run = ReckoningBackend(root=tmp_path, commands=commands).start(make_config(finish_after=0.2))
    assert run.notices == ("fewer workers than wanted",)
    details: list[str] = []
    status = run.wait(on_event=lambda status: details.append(status.detail))
    assert set(details) <= {"waiting for a machine", ""}
    assert (status.state, status.cost, status.worker_cost) == (RunState.FINISHED, 0.25, 0.05)
    run.close()
    assert run.status.cost == 0.25
    assert (run.cost.workers.measured, run.cost.servers.measured) == (0.05, 0.2)


def test_the_costs_of_all_clients_of_a_run_are_added(tmp_path: Path) -> None:
    """Shard 0 goes on with its own count; what each client puts right stays, and is in the cost once."""
    backend = ReckoningBackend(root=tmp_path, commands=make_backend(tmp_path)._commands)
    with backend.start(make_config()) as first:
        eventually(lambda: first.status.updates > 0)
    assert (first.status.state, first.status.cost) == (RunState.INTERRUPTED, 0.25)
    with backend.attach(first.run_id) as second:
        eventually(lambda: second.folder.status().updates > 0)  # type: ignore[union-attr]
        second.kill()
    assert second.status.cost == pytest.approx(0.5)
    assert second.cost.workers.measured == pytest.approx(0.1)
    with backend.attach(first.run_id, killed=True) as third:
        pass  # perhaps before shard 0 has written anything
    assert third.status.cost == pytest.approx(0.75)


def test_a_run_that_still_starts_is_killed_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine boots for a minute before anybody can take a request: the run's client ends it at once.

    Whoever goes on with it later is not killed by the same request.
    """
    monkeypatch.setattr(runs, "KILL_SECONDS", 0.1)

    class Booting(Reckoning):
        def run_shard(self, shard: int, generation: int) -> None:
            eventually(lambda: (status := folder.status()) and status.state.ended)

        def invoke(self, event: WorkerEvent) -> WorkerResult:
            eventually(lambda: (status := folder.status()) and status.state.ended)
            return WorkerResult(outcome="finished")

    class BootingBackend(LocalBackend):
        def launcher(self, folder: RunFolder, config: RunConfig) -> Booting:
            return Booting(folder.url, self._commands)

    folder = RunFolder(f"{tmp_path}/runs/r")
    with BootingBackend(root=tmp_path).start(make_config(run_id="r")) as run:
        open_run(str(tmp_path), "r").kill()
        assert run.wait(PATIENCE_SECONDS).state is RunState.KILLED
    assert [request.action for _, request in folder.requests()] == ["kill"]
    with BootingBackend(root=tmp_path).attach("r", killed=True):
        assert not folder.requests()


@pytest.mark.parametrize("taken_over", [False, True])
def test_who_has_lost_a_run_to_another_client_lets_it_go(tmp_path: Path, taken_over: bool) -> None:
    """A client that ends sees first whether the run is still its own, for the seats may be another's now."""
    ends: list[str] = []

    class Watched(Reckoning):
        def close(self) -> None:
            ends.append("close")
            super().close()

        def let_go(self) -> None:
            ends.append("let go")
            super().close()

    class WatchedBackend(LocalBackend):
        def launcher(self, folder: RunFolder, config: RunConfig) -> Watched:
            return Watched(folder.url, self._commands)

    run = WatchedBackend(root=tmp_path, commands=make_backend(tmp_path)._commands).start(make_config())
    eventually(lambda: run.status.state is RunState.RUNNING)
    if taken_over:
        holder = run.folder.claim_holder()
        assert holder is not None
        run.folder.claim(dataclasses.replace(new_claim(), number=holder.number + 1), dead=holder)
    run.close()
    assert ends == ["let go" if taken_over else "close"]


def test_a_backend_that_cannot_run_a_config_leaves_no_run(tmp_path: Path) -> None:
    """Where nothing can be started there is nothing to list; a run that was there is given back."""

    class Unable(LocalBackend):
        def launcher(self, folder: RunFolder, config: RunConfig) -> Reckoning:
            raise ConfigError("worker_memory_mb", "there is no such size")

    with pytest.raises(ConfigError, match="no such size"):
        Unable(root=tmp_path).start(make_config(run_id="r"))
    assert not list((tmp_path / "runs").glob("*/*"))
    with make_backend(tmp_path).start(make_config(run_id="r")) as run:
        eventually(lambda: run.status.state is RunState.RUNNING)
    with pytest.raises(ConfigError, match="no such size"):
        Unable(root=tmp_path).attach("r")
    holder = run.folder.claim_holder()
    assert holder is not None
    assert holder.released


class TestNames:
    """Which backend a parameter means."""

    def test_names_and_objects(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Both names give a fresh backend; an object is itself; the default root is where the user says."""
        monkeypatch.setenv("CIRRUS_HOME", str(tmp_path / "home"))
        assert isinstance(resolve_backend("inline"), InlineBackend)
        local = resolve_backend("local")
        assert local.root == str(tmp_path / "home")
        assert resolve_backend(local) is local
        monkeypatch.delenv("CIRRUS_HOME")
        assert LocalBackend().root == str(Path("~/.cirrus").expanduser())

    @pytest.mark.parametrize("name", ["x", "Local"])
    def test_other_names_are_refused(self, name: str) -> None:
        """The error lists the choices."""
        with pytest.raises(ConfigError, match='unknown.*"local", "inline", "aws", "ray"'):
            resolve_backend(name)

    @pytest.mark.parametrize("options", [{"dollars_per_hour": -1.0}, {"generation_seconds": 0.0}])
    @pytest.mark.parametrize("kind", [LocalBackend, InlineBackend])
    def test_wrong_numbers_are_refused(self, kind: Any, options: Mapping[str, float]) -> None:
        """A backend's numbers are checked when it is made."""
        with pytest.raises(ConfigError, match=next(iter(options))):
            kind(**options)

    def test_processes_cannot_share_memory(self) -> None:
        """A root in this process' memory is refused where other processes must read it."""
        with pytest.raises(ConfigError, match="root"):
            LocalBackend(root="memory://here")

    @pytest.mark.parametrize("kind", [LocalBackend, InlineBackend])
    def test_backends_can_be_copied_to_other_processes(self, kind: Any) -> None:
        """scikit-learn clones and pickles estimators with their parameters."""
        backend = kind(dollars_per_hour=2.0, generation_seconds=3.0)
        copy = pickle.loads(pickle.dumps(backend))
        assert (copy.root, copy.generation_seconds) == (backend.root, 3.0)
        assert copy.dollars_per_hour(1, 1) == 2.0
