"""Runs on AWS, end to end: functions executed by an emulator, shards on instances, one bucket."""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import psutil
import pytest
import real_runs
import stand_ins
from aws_services import Answer, Request, answering, forward
from aws_stand_in import BUCKET, FUNCTION, Stack, stand_in

import cirrus
from cirrus.client_backend.aws.backend import AWSBackend
from cirrus.client_backend.aws.seats import ServerRecords
from cirrus.client_backend.backend import backend_at
from cirrus.client_backend.claims import process_exists
from cirrus.client_backend.processes import child_environment
from cirrus.client_backend.runs import Run, open_run
from cirrus.errors import ConfigError
from cirrus.metrics import RunState
from cirrus.preprocessing import MinMaxScaler
from cirrus.storage import open_store

ROOT = f"s3://{BUCKET}"
#: Emulated services, functions and shards share the processors of one machine.
PATIENCE_SECONDS = 60.0

pytestmark = pytest.mark.timeout(300)


def eventually(condition: Callable[[], Any]) -> Any:
    """Wait for a condition, longer than where there are no services between."""
    return stand_ins.eventually(condition, PATIENCE_SECONDS)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A deployment whose servers wait for another run."""
    with stand_in(tmp_path_factory.mktemp("home"), warm_seconds=60.0) as made:
        yield made


@pytest.fixture(scope="module")
def rows(stack: Stack) -> cirrus.Dataset:
    """Rows in the bucket."""
    return real_runs.make_dataset(f"{ROOT}/data/rows")


@pytest.fixture
def no_servers(stack: Stack) -> Iterator[None]:
    """Begin and end without a server."""
    stack.hosts.end_all()
    yield
    stack.hosts.end_all()


def backend(**options: Any) -> AWSBackend:
    """Return the backend as a user names it by the bucket alone."""
    return AWSBackend(BUCKET, **{"generation_seconds": 30.0, **options})


def works(run: Run) -> bool:
    """Tell whether a run has made progress."""
    return run.status.updates > 0


def test_a_second_run_finds_a_warm_server(stack: Stack, no_servers: None, rows: cirrus.Dataset) -> None:
    """The server of a run that has just finished is used again, and ends with the run that was there last.

    The token of neither is in what EC2 and Lambda show of them, nor in any object but its own.
    """
    first = backend().start(real_runs.plan(rows, epochs=1, n_shards=2))
    assert first.wait(200.0).state is RunState.FINISHED
    (name,) = stack.hosts.living()
    second = backend().start(real_runs.plan(rows, epochs=5, n_shards=1))
    eventually(lambda: works(second))
    address = second.folder.shard_address(0)
    assert address is not None
    # From elsewhere this process could not reach a shard: it does not try to.
    peers = {c.raddr.port for c in psutil.Process().net_connections("tcp4") if c.raddr}
    assert address.port not in peers
    assert second.wait(200.0).state is RunState.FINISHED
    assert stack.hosts.living() == [name]
    assert [run_of(name, run) for run in (first, second)] == [1, 2]
    shown = list(what_aws_shows(stack))
    assert any(second.run_id.encode() in text for text in shown)
    for run in (first, second):
        token = run.folder.token()
        assert not [text for text in shown if token.encode() in text or bytes.fromhex(token) in text]
    assert backend().end_leftovers(first.run_id) == ()
    assert backend().end_leftovers(second.run_id) == (name,)
    eventually(lambda: stack.hosts.living() == [])


def run_of(name: str, run: Run) -> int:
    """Return the number of a run's booking on a server, by the server's last report of it."""
    report = stand_ins.last_report(run.folder, name)
    return 0 if report is None else report.booking


def test_runs_share_a_server_and_one_is_killed(stack: Stack, no_servers: None, rows: cirrus.Dataset) -> None:
    """Two runs of one shard sit on one server of two seats; after a kill a third sits there, too.

    The kill takes nothing from the other, whose counts are exact.
    """
    config = real_runs.plan(rows, epochs=12, n_shards=1)
    one = backend()
    with one.start(real_runs.plan(rows, n_shards=1)) as killed, one.start(config) as kept:
        eventually(lambda: works(killed) and works(kept))
        (name,) = stack.hosts.living()
        address, gone = kept.folder.shard_address(0), killed.folder.shard_address(0)
        assert gone is not None
        began = time.monotonic()
        killed.kill()
        assert killed.status.state is RunState.KILLED
        assert ServerRecords(open_store(ROOT)).read(name).of_run(killed.run_id) == ()  # type: ignore[union-attr]
        print(f"a kill frees the seat after {time.monotonic() - began:.1f} s")
        eventually(lambda: not process_exists(gone.pid))
        print(f"and its shard is gone after {time.monotonic() - began:.1f} s")
        with one.start(real_runs.plan(rows, epochs=1, n_shards=1)) as third:
            assert third.wait(100.0).state is RunState.FINISHED
        assert kept.folder.shard_address(0) == address
        status = kept.wait(200.0)
    real_runs.assert_exact(config, status)
    assert stack.hosts.living() == [name]


def test_a_search_packs_its_trials(stack: Stack, no_servers: None, rows: cirrus.Dataset) -> None:
    """Four trials of one shard take two servers of two seats; a kill frees a seat, and ends no server.

    When all have been killed, no server is left.
    """
    est = cirrus.LogisticRegression(
        backend=backend(), n_workers=1, epochs=real_runs.FOR_EVER, tol=None, batch_size=real_runs.BATCH_ROWS
    )
    search = cirrus.GridSearch(est, {"learning_rate": [0.05, 0.1, 0.2, 0.4]}, max_concurrent=4, refit=False)
    records = ServerRecords(open_store(ROOT))
    search.start(rows)
    try:
        eventually(lambda: [bool(row["updates"]) for row in search.results_] == [True] * 4)
        assert [record.taken for record in records.all()] == [2, 2]
        servers = stack.hosts.living()
        assert len(servers) == 2
        search.kill(1)
        eventually(lambda: search.results_[1]["status"] == "killed")
        assert sorted(record.taken for record in records.all()) == [1, 2]
        assert stack.hosts.living() == servers
    finally:
        search.kill_all()
    eventually(lambda: [row["status"] for row in search.results_] == ["killed"] * 4)
    assert stack.hosts.living() == []
    assert records.all() == []


def what_aws_shows(stack: Stack) -> Iterator[bytes]:
    """Yield what whoever may look at the account sees: instances, tags, user data, functions, objects."""
    session = boto3.session.Session()
    with (
        contextlib.closing(session.client("ec2")) as ec2,
        contextlib.closing(session.client("lambda")) as lam,
    ):
        template = stack.deployment.launch_template_id
        every = [
            ec2.describe_instances(),
            ec2.describe_tags(),
            ec2.describe_launch_template_versions(LaunchTemplateId=template),
            lam.get_function_configuration(FunctionName=FUNCTION),
        ]
        for name in stack.hosts.living():
            user_data = ec2.describe_instance_attribute(InstanceId=name, Attribute="userData")["UserData"]
            every.append(base64.b64decode(user_data.get("Value", "")).decode())
    yield from (json.dumps(found, default=str).encode() for found in every)
    store = open_store(ROOT)
    yield from (store.get(key) for key in store.list() if not key.endswith("/token"))


def cirrus_keys(prefix: str) -> list[str]:
    """Return the bucket's keys below a prefix."""
    return open_store(ROOT).list(prefix)


def test_generations_follow_each_other_exactly(stack: Stack, no_servers: None, rows: cirrus.Dataset) -> None:
    """Functions that live for a few seconds leave no step out and do none twice.

    With CIRRUS_TEST_GENERATION_SECONDS=20 they live for as long as that.
    """
    seconds = float(os.environ.get("CIRRUS_TEST_GENERATION_SECONDS", "3"))
    config = real_runs.plan(rows, n_workers=2)
    with backend(generation_seconds=seconds).start(config) as run:
        assert run.supervisor is not None
        fleet = run.supervisor.fleet
        eventually(lambda: max(fleet.generations) >= 2 and run.status.invocations >= 3)
        real_runs.await_work(run, run.status.updates + 2 * config.steps_per_epoch)
        run.stop()
        status = run.wait(50.0)
    assert status.state is RunState.FINISHED, status.error
    real_runs.assert_whole(run, status)
    assert real_runs.accuracy(run) > 0.9
    assert status.cost == pytest.approx(
        status.worker_seconds * config.worker_prices.dollars_per_second
        + status.invocations * config.worker_prices.dollars_per_invocation,
        abs=0.01,
    )


def test_a_worker_is_invoked_twice(stack: Stack, no_servers: None, rows: cirrus.Dataset) -> None:
    """The same worker and generation a second time is refused, and the first goes on."""
    with backend().start(real_runs.plan(rows)) as run:
        eventually(lambda: works(run))
        generation = run.status.workers["0"]
        event = {"role": "train", "run_url": run.url, "worker_id": 0, "generation": generation}
        client = boto3.session.Session().client("lambda")
        said = client.invoke(FunctionName=FUNCTION, Payload=json.dumps({**event, "deadline_seconds": 20}))
        assert json.loads(said["Payload"].read())["outcome"] == "duplicate"
        client.close()
        assert run.status.workers["0"] == generation
    # A client that leaves a run that has not finished leaves nothing that is billed, and it can be resumed.
    assert stack.hosts.living() == []
    eventually(lambda: run.status.state is RunState.INTERRUPTED)


def test_half_of_the_functions_are_throttled(stack: Stack, no_servers: None, rows: cirrus.Dataset) -> None:
    """AWS allows two of four: the run goes on with two, to its end, and says so."""
    stack.limit_concurrency(2)
    try:
        config = real_runs.plan(rows, epochs=2, n_workers=4)
        with backend(generation_seconds=10.0).start(config) as run:
            status = run.wait(200.0)
            notices = " ".join(run.notices)
    finally:
        stack.limit_concurrency(None)
    real_runs.assert_exact(config, status)
    assert f"wants 4 functions at once, but AWS allows 2 ({FUNCTION})" in notices
    assert "Service Quotas" in notices


def test_connections_that_break_at_once_change_nothing(
    stack: Stack, no_servers: None, rows: cirrus.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the client has no answer, shard 0's registrations say that the worker lives: it is left alone."""
    events: list[dict[str, Any]] = []
    with contextlib.ExitStack() as resources:
        pool = resources.enter_context(concurrent.futures.ThreadPoolExecutor(4))

        def answer(request: Request) -> Answer:
            if request.path.endswith("/invocations"):
                events.append(json.loads(request.body))
                if len(events) <= 2:
                    pool.submit(forward, stack.lambda_url, request)
                    return Answer(lost=True)
            return forward(stack.lambda_url, request)

        monkeypatch.setenv("AWS_ENDPOINT_URL_LAMBDA", resources.enter_context(answering(answer)))
        with backend(generation_seconds=60.0).start(real_runs.plan(rows, n_workers=2)) as run:
            eventually(lambda: len(run.status.workers) == 2)
            real_runs.await_work(run, run.status.updates + 400)
            run.stop()
            status = run.wait(200.0)
            real_runs.assert_whole(run, status)
    assert len(events) == 2


def test_an_instance_that_is_lost_is_replaced(stack: Stack, no_servers: None, rows: cirrus.Dataset) -> None:
    """Its shards come back elsewhere under new generations, and the counts are exact."""
    with backend().start(real_runs.plan(rows, n_workers=2)) as run:
        eventually(lambda: run.folder.store.list("snapshots/0") and works(run))
        (first,) = stack.hosts.living()
        boto3.session.Session().client("ec2").terminate_instances(InstanceIds=[first])
        eventually(lambda: first not in stack.hosts.living() and stack.hosts.living())
        eventually(lambda: (found := run.folder.shard_address(0)) and found.generation >= 2)
        done = run.status.updates
        eventually(lambda: run.status.updates > done + 400)
        run.stop()
        status = run.wait(200.0)
        assert any(first in text and "replaces" in text for text in run.notices), run.notices
        assert status.state is RunState.FINISHED
        real_runs.assert_whole(run, status)


CLIENT = """
import sys, cirrus
from cirrus.config import RunConfig
from pathlib import Path
config = RunConfig.from_json(Path(sys.argv[2]).read_bytes())
backend = cirrus.AWSBackend(sys.argv[1], generation_seconds=30.0)
run = backend.start(config) if sys.argv[3] == "start" else backend.attach(config.run_id, killed=True)
run.wait(on_event=lambda status: print(status.updates, flush=True) if status.updates else None)
"""


def start_client(config: Path, how: str) -> subprocess.Popen[bytes]:
    """Start a process that begins or resumes a run and waits for it; it tells the updates as it sees them."""
    command = [sys.executable, "-c", CLIENT, BUCKET, str(config), how]
    return subprocess.Popen(command, env=child_environment(os.environ), stdout=subprocess.PIPE)


def cli(*words: str, home: Path) -> str:
    """Run the command line as another machine would: with a user's folder of its own."""
    environment = {**child_environment(os.environ), "CIRRUS_HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-m", "cirrus", *words], env=environment, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_client_is_killed_and_another_machine_goes_on(
    stack: Stack, no_servers: None, rows: cirrus.Dataset, tmp_path: Path
) -> None:
    """Who knows the bucket alone sees the run, resumes it, and ends it; nothing is left that is billed.

    Not after Ctrl-C either.
    """
    config = real_runs.plan(rows, n_workers=2)
    path = tmp_path / "config.json"
    path.write_bytes(config.to_json())
    client = start_client(path, "start")
    assert client.stdout is not None
    assert int(client.stdout.readline()) > 0
    client.send_signal(signal.SIGKILL)
    client.communicate()
    servers = stack.hosts.living()
    assert len(servers) == 1
    assert config.run_id in cli("runs", "--home", ROOT, home=tmp_path)
    found = backend_at(ROOT)
    assert isinstance(found, AWSBackend)
    eventually(lambda: not found_alive(config.run_id))
    with found.attach(config.run_id) as attached:
        # The functions of the dead client are replaced by those of the new one.
        eventually(lambda: [g // 1_000_000 for g in attached.status.workers.values()] == [2, 2])
        assert stack.hosts.living() == servers
        said = cli("kill", config.run_id, "--home", ROOT, home=tmp_path)
        assert f"killed {config.run_id}" in said
    assert open_run(ROOT, config.run_id).status.state is RunState.KILLED
    assert stack.hosts.living() == []
    # Even a killed run goes on, on another server, from its last snapshot.
    before = open_run(ROOT, config.run_id).status.updates
    client = start_client(path, "attach")
    assert client.stdout is not None
    while int(client.stdout.readline()) <= before:
        pass
    assert len(stack.hosts.living()) == 1
    client.send_signal(signal.SIGINT)
    client.communicate(timeout=PATIENCE_SECONDS)
    assert client.returncode != 0
    assert stack.hosts.living() == []
    assert open_run(ROOT, config.run_id).status.state is RunState.INTERRUPTED


def found_alive(run_id: str) -> bool:
    """Tell whether the claim on a run is fresh."""
    holder = open_run(ROOT, run_id).folder.claim_holder()
    return holder is not None and time.time() - holder.renewed_at < 10.0


def test_jobs_run_as_functions(stack: Stack, rows: cirrus.Dataset, tmp_path: Path) -> None:
    """Statistics, a rewrite of a dataset, and loads: functions do what threads of this process would."""
    there = rows.describe(backend=backend(), n_workers=2)
    here = rows.describe(backend="inline")
    assert (there.n_rows, there.n_entries) == (here.n_rows, here.n_entries)
    assert (there.maximum == here.maximum).all()
    scaler = MinMaxScaler(backend=backend(), n_workers=2)
    scaled = scaler.fit_transform(rows, f"{ROOT}/data/scaled")
    assert scaled.n_rows == rows.n_rows
    text = "".join(f"{i % 2} {1 + i % 9}:{i / 8}\n" for i in range(2000))
    open_store(ROOT).put("raw/rows.svm", text.encode())
    (tmp_path / "rows.svm").write_text(text)
    loaded = cirrus.load_svmlight(f"{ROOT}/raw/rows.svm", f"{ROOT}/data/loaded", backend=backend())
    kept = cirrus.load_svmlight(tmp_path / "rows.svm", f"{ROOT}/data/kept", backend=backend())
    assert (loaded.n_rows, kept.n_rows) == (2000, 2000)
    assert loaded.manifest.label_counts == kept.manifest.label_counts == (1000, 1000)
    assert cirrus_keys("jobs/") == []


def test_what_cannot_work_is_refused_before_anything_is_written(
    stack: Stack, rows: cirrus.Dataset, tmp_path: Path
) -> None:
    """A size without a function, too long a lifetime, data out of reach: each names its field."""
    runs = len(cirrus_keys("runs/"))
    with pytest.raises(ConfigError, match="worker_memory_mb"):
        backend().start(real_runs.plan(rows, worker_memory_mb=512))
    with pytest.raises(ConfigError, match="train: .*cannot be reached from AWS"):
        backend().start(real_runs.plan(real_runs.make_dataset(str(tmp_path / "here"))))
    with pytest.raises(ConfigError, match="generation_seconds"):
        backend(generation_seconds=900.0).start(real_runs.plan(rows))
    with pytest.raises(ConfigError, match="does not reach"):
        real_runs.make_dataset(str(tmp_path / "there")).describe(backend=backend())
    assert len(cirrus_keys("runs/")) == runs
    assert stack.hosts.living() == []
