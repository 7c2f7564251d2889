"""What is Ray's own: placement, lost nodes, clients that come and go, clusters that cannot do it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cirrus_dashboard.actions import attach_process
from ray_cluster import SmallCluster
from real_runs import assert_exact, assert_whole, await_work, make_dataset, plan
from stand_ins import eventually, processes

import cirrus
from cirrus import Dataset
from cirrus.client_backend.processes import child_environment
from cirrus.client_backend.ray.sizes import Need, Node, RunNeeds, run_needs, shard_home, workers_with_room
from cirrus.client_backend.runs import Run, new_run_id, open_run
from cirrus.errors import ConfigError, RunError
from cirrus.metrics import RunState

ray = pytest.importorskip("ray", reason="ray is not installed")
from cirrus.client_backend.ray.cluster import connect  # noqa: E402

RUN_SECONDS = 90.0
GB = 2**30
#: Of the table in docs/ray.md.
TABLE_HEAD = "| concept | what Cirrus does with it | file | test |"


def node(cpus: float, memory_gb: float = 8, name: str = "n") -> Node:
    """Return a node of this size."""
    return Node(node_id=name, address="a", port=1, machine=name, cpus=cpus, memory_bytes=memory_gb * GB)


def needs(n_workers: int, cpus: float = 1.0, n_shards: int = 1) -> RunNeeds:
    """Return what a run needs whose shards take half a CPU."""
    return RunNeeds(
        n_shards=n_shards,
        n_workers=n_workers,
        shard=Need(cpus=0.5, memory_mb=512),
        worker=Need(cpus=cpus, memory_mb=1024),
    )


@pytest.mark.parametrize(
    ("nodes", "wanted", "room"),
    [
        ([node(4)], needs(3), 3),
        ([node(4)], needs(8), 3),
        ([node(0.25)], needs(1), -1),
        ([node(1)], needs(2), 0),
        ([node(1), node(1)], needs(2), 1),
        ([node(4, memory_gb=2)], needs(4), 1),
        ([node(2), node(2), node(2)], needs(9, n_shards=3), 3),
        ([], needs(1), -1),
    ],
)
def test_room_is_counted_node_by_node(nodes: list[Node], wanted: RunNeeds, room: int) -> None:
    """A worker fits on one node or not at all, by CPUs and by memory, beside the shards."""
    assert workers_with_room(wanted, nodes) == room


def test_the_page_names_what_there_is() -> None:
    """Each file and each test in the table of docs/ray.md is there."""
    tests = Path(__file__).parent
    table = [line for line in (tests.parent / "docs" / "ray.md").read_text().splitlines() if line[:2] == "| "]
    rows = [line.strip("|").split("|") for line in table[table.index(TABLE_HEAD) + 1 :]]
    assert len(rows) > 8
    for row in rows:
        for name in re.findall(r"`(\w+\.py)`", row[2]):
            assert (tests.parent / "cirrus" / "client_backend" / "ray" / name).is_file(), name
        file = None
        for name in re.findall(r"`(\w+(?:\.py)?)`", row[3]):
            if name.endswith(".py"):
                file = (tests / name).read_text()
            else:
                assert file is not None
                assert f"def {name}(" in file, name


def test_shards_have_different_nodes() -> None:
    """Each shard has a node of its own as long as there are some with room for it; runs differ in theirs."""
    nodes = [node(2, name="a"), node(2, name="b"), node(0.25, name="small"), node(4, name="c")]
    first = set()
    for run in ("r1", "r2", "r3", "r4", "r5"):
        homes: list[str] = []
        for _ in range(4):
            home = shard_home(run, needs(1), nodes, homes)
            assert home is not None
            homes.append(home)
        assert sorted(homes[:3]) == ["a", "b", "c"]
        assert homes[3] == homes[0]
        first.add(homes[0])
    assert len(first) > 1
    assert shard_home("r1", needs(1), [node(2, name="a"), node(2, name="b")], ["b", "lost"]) == "a"
    assert shard_home("r1", needs(1), [node(0.25)], []) is None


def test_workers_share_a_small_cluster(small: Dataset) -> None:
    """Where workers would not all have a CPU, each declares its share; a number that was given stays."""
    shard = Need(cpus=0.5)
    config = plan(small, n_workers=2, n_shards=1)
    assert run_needs(config, [node(2)], shard=shard, worker_cpus=None).worker.cpus == pytest.approx(
        0.75, abs=0.01
    )
    assert run_needs(config, [node(8)], shard=shard, worker_cpus=None).worker.cpus == 1.0
    assert run_needs(config, [node(2)], shard=shard, worker_cpus=3.0).worker.cpus == 3.0
    assert workers_with_room(run_needs(config, [node(2)], shard=shard, worker_cpus=None), [node(2)]) == 2


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Return a dataset of 20,000 rows."""
    return make_dataset(str(tmp_path_factory.mktemp("data") / "train"))


@pytest.fixture
def backend(ray_cluster: SmallCluster, tmp_path: Path) -> cirrus.RayBackend:
    """Return a backend on the shared cluster."""
    return cirrus.RayBackend(ray_cluster.address, root=tmp_path / "home")


def actors_of(run: Run) -> list[str]:
    """Return the names of the run's actors that live."""
    named = ray.util.list_named_actors(all_namespaces=True)
    return [actor["name"] for actor in named if actor["name"].startswith(run.run_id)]


class TestBackend:
    """What a backend takes."""

    @pytest.mark.parametrize(
        "options",
        [
            {"worker_cpus": 0.0},
            {"shard_cpus": -1.0},
            {"shard_memory_mb": -1},
            {"dollars_per_node_hour": -1.0},
            {"generation_seconds": 0.0},
            {"client_lost_seconds": 1.0},
            {"wait_seconds": -1.0},
            {"root": "memory://here"},
        ],
    )
    def test_wrong_numbers_are_refused(self, options: dict[str, Any]) -> None:
        """A backend's parameters are checked when it is made, before there is a cluster."""
        name = next(iter(options)).replace("dollars_per_node_hour", "dollars_per_hour")
        with pytest.raises(ConfigError, match=name):
            cirrus.RayBackend(**options)

    def test_a_cluster_has_many_addresses(self, ray_cluster: SmallCluster) -> None:
        """A process that is connected by one address of a cluster may use others, but no other cluster's."""
        connect(ray_cluster.address)
        port = ray_cluster.address.rpartition(":")[2]
        for host in ("127.0.0.1", "localhost", ray_cluster.address.rpartition(":")[0]):
            connect(f"{host}:{port}")
        for other in ("127.0.0.1:1", f"192.0.2.77:{port}"):
            with pytest.raises(ConfigError, match="is connected to the Ray cluster at"):
                connect(other)

    def test_ray_is_imported_when_it_is_asked_for(self) -> None:
        """Neither the library's names nor another backend load ray."""
        program = (
            "import sys, cirrus\n"
            "from cirrus.client_backend.backend import resolve_backend\n"
            "cirrus.LogisticRegression, resolve_backend('local'), resolve_backend('inline')\n"
            "assert 'ray' not in sys.modules\n"
            "cirrus.RayBackend\n"
            "assert 'ray' in sys.modules\n"
        )
        subprocess.run([sys.executable, "-c", program], check=True, env=child_environment(os.environ))

    def test_no_cluster_is_told_at_once(self, small: Dataset, tmp_path: Path) -> None:
        """Where nobody listens the error names the address and what to do, before rows are looked at.

        No run is left behind.
        """
        program = (
            "import sys; sys.path.insert(0, sys.argv[1])\n"
            "from real_runs import plan; import cirrus\n"
            "class Rows:\n"
            "    @property\n"
            "    def shape(self): raise AssertionError('rows were looked at before the cluster')\n"
            "data = cirrus.Dataset.open(sys.argv[3])\n"
            "for address in sys.argv[4:]:\n"
            "    backend = cirrus.RayBackend(address, root=sys.argv[2])\n"
            "    one = cirrus.LogisticRegression(backend=backend)\n"
            "    many = cirrus.GridSearch(one, {'l1': [0, 1]})\n"
            "    for begin in (lambda: one.fit(Rows(), [0, 1]), lambda: many.fit(Rows(), [0, 1]),\n"
            "                  lambda: backend.start(plan(data)), lambda: backend.submit(print)):\n"
            "        try: begin()\n"
            "        except cirrus.ConfigError as error: print(error)\n"
        )
        said = {
            "127.0.0.1:1": "no Ray cluster at 127.0.0.1:1.*ray start --head",
            "ray://127.0.0.1:1": "no Ray cluster at ray://127.0.0.1:1",
            "nonsense": "address: must be",
        }
        here = str(Path(__file__).parent)
        done = subprocess.run(
            [sys.executable, "-c", program, here, str(tmp_path), small.url, *said],
            capture_output=True,
            text=True,
            env=child_environment(os.environ),
        )
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        for number, text in enumerate(said.values()):
            for line in lines[4 * number : 4 * number + 4]:
                assert re.search(text, line), line
        assert len(lines) == 4 * len(said)
        assert not list(tmp_path.glob("runs/*/*"))


def test_a_cluster_that_is_too_small_fails_the_run(small: Dataset, backend: cirrus.RayBackend) -> None:
    """A run that no node can hold waits for a larger cluster; its error has what it needs, and there is."""
    backend = cirrus.RayBackend(backend.address, root=backend.root, shard_memory_mb=10**8, wait_seconds=1.0)
    began_at = time.monotonic()
    with backend.start(plan(small)) as run:
        assert run.supervisor is not None
        eventually(lambda: "the cluster is too small" in run.supervisor.phase)  # type: ignore[union-attr]
        with pytest.raises(RunError, match="0.5 CPU and 100000000 MB.*1 node with 4 CPU"):
            run.wait(RUN_SECONDS)
    assert time.monotonic() - began_at >= 1.0
    eventually(lambda: actors_of(run) == [])


def test_an_idle_shard_leaves(ray_cluster: SmallCluster, tmp_path: Path) -> None:
    """An actor whose shard nobody wants ends by itself, and for good, though Ray would restart it."""
    from cirrus.client_backend.ray.shards import ShardActor

    connect(ray_cluster.address)
    options = {"name": "idle/shard-0", "namespace": "cirrus", "lifetime": "detached", "max_restarts": 3}
    actor = ray.remote(ShardActor).options(num_cpus=0, **options).remote(str(tmp_path), 0, 2.0)
    assert ray.get(actor.where.remote())

    def is_gone() -> bool:
        try:
            ray.get_actor("idle/shard-0", namespace="cirrus")
        except ValueError:
            return True
        return False

    eventually(is_gone)


def test_fewer_workers_than_wanted_go_on(small: Dataset, backend: cirrus.RayBackend) -> None:
    """With room for one worker of two the run goes on with it, and says so; nothing is missing in the end."""
    backend = cirrus.RayBackend(backend.address, root=backend.root, worker_cpus=3.0)
    config = plan(small, epochs=3, n_shards=1)
    with backend.start(config) as run:
        status = run.wait(RUN_SECONDS)
        assert_exact(config, status)
        assert any("room for 1 of 2 workers" in notice for notice in run.notices)


def test_nothing_of_a_run_stays(small: Dataset, backend: cirrus.RayBackend) -> None:
    """After the end of a run, here an encrypted one, its controller and its shards are gone by themselves."""
    backend = cirrus.RayBackend(backend.address, root=backend.root, tls=True)
    with backend.start(plan(small, epochs=1)) as run:
        assert run.wait(RUN_SECONDS).state is RunState.FINISHED
        eventually(lambda: actors_of(run) == [])
        assert run.config.tls
        assert (Path(run.url) / "logs" / "shard-0.log").exists()


def test_a_run_outlives_its_client_and_is_taken_over(small: Dataset, backend: cirrus.RayBackend) -> None:
    """SIGKILL of the client stops nothing: another one takes the run over as it is, its shards unharmed.

    While nobody has it, its workers follow each other, and any client can end it through its folder.
    """
    program = (
        "import sys, time; sys.path.insert(0, sys.argv[1])\n"
        "from real_runs import plan; import cirrus\n"
        "backend = cirrus.RayBackend(sys.argv[2], root=sys.argv[3], generation_seconds=1.0)\n"
        "run = backend.start(plan(cirrus.Dataset.open(sys.argv[4]), run_id=sys.argv[5], n_shards=1))\n"
        "while run.status.updates < 50: time.sleep(0.05)\n"
        "print('ready', flush=True)\n"
        "run.wait()\n"
    )
    run_id = new_run_id()
    client = subprocess.Popen(
        [sys.executable, "-c", program, str(Path(__file__).parent), str(backend.address), backend.root]
        + [small.url, run_id],
        stdout=subprocess.PIPE,
        env=child_environment(os.environ),
    )
    with client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"ready\n"
        client.kill()
    watched = open_run(backend.root, run_id)
    updates = watched.status.updates
    eventually(lambda: watched.status.updates > updates + 50)
    invocations = watched.status.invocations
    eventually(lambda: watched.status.invocations >= invocations + 2)

    def attach() -> Run | None:
        try:
            return backend.attach(run_id)
        except cirrus.StorageError:  # the dead client was heard of just now
            return None

    with eventually(attach) as run:
        await_work(run, run.status.updates + 50)
        address = run.folder.shard_address(0)
        assert address is not None
        assert address.generation == 1
        watched.kill()
        assert run.wait(RUN_SECONDS).state is RunState.KILLED


def test_a_run_without_a_client_ends_in_time(small: Dataset, backend: cirrus.RayBackend) -> None:
    """A controller that hears of no client for ``client_lost_seconds`` interrupts the run, and leaves."""
    backend = cirrus.RayBackend(backend.address, root=backend.root, client_lost_seconds=5.0)
    run = backend.start(plan(small, n_shards=1))
    await_work(run)
    # As if this process had stopped: the controller hears of its client no more.
    supervisor: Any = run.supervisor
    supervisor._client_id = "somebody else"
    eventually(lambda: run.status.state.ended)
    assert run.status.state is RunState.INTERRUPTED
    eventually(lambda: actors_of(run) == [])


def test_a_killed_worker_task_is_replaced(small: Dataset, backend: cirrus.RayBackend) -> None:
    """Ray does not retry it: the fleet starts the next generation, and no step is missing or done twice."""
    with backend.start(plan(small, n_shards=1)) as run:
        await_work(run, 200)
        # Ray calls a process by what it does.
        eventually(lambda: processes(f"ray::{run.run_id}/worker-0"))[0].kill()
        eventually(lambda: run.status.invocations >= 3)
        await_work(run, run.status.updates + 200)
        run.stop()
        assert_whole(run, run.wait(RUN_SECONDS))


def test_a_search_runs_as_a_task_that_starts_runs(small: Dataset, backend: cirrus.RayBackend) -> None:
    """Nested: the search itself works in the cluster; its runs are those of any other search."""
    estimator = cirrus.LogisticRegression(
        backend=backend, n_workers=1, epochs=2, tol=None, random_state=0, worker_memory_mb=256
    )
    train, test = small.split(test_size=0.1, random_state=0)

    def linger() -> None:
        while True:
            time.sleep(0.1)

    def tune() -> dict[str, float]:
        search = cirrus.GridSearch(estimator, {"l2": [0.0, 1000.0]}, max_concurrent=2, refit=False)
        return dict(search.fit(train, validation=test).best_params_)

    task = backend.submit(tune)
    assert task.result(RUN_SECONDS) == {"l2": 0.0}
    assert task.done
    lazy = backend.submit(linger)
    with pytest.raises(TimeoutError):
        lazy.result(0.1)
    assert not lazy.done
    lazy.cancel()
    with pytest.raises(RunError, match="the task was lost: it was ended"):
        lazy.result(RUN_SECONDS)
    with pytest.raises(ZeroDivisionError):
        backend.submit(lambda: 1 / 0).result(RUN_SECONDS)
    marked = cirrus.RayBackend(backend.address, runtime_env={"env_vars": {"CIRRUS_TEST_MARK": "here"}})
    assert marked.submit(lambda: os.environ["CIRRUS_TEST_MARK"]).result(RUN_SECONDS) == "here"


def test_what_was_killed_goes_on_where_it_was(small: Dataset, backend: cirrus.RayBackend) -> None:
    """A dashboard's Resume, which knows the root alone, goes on in the cluster that the run was begun on."""
    with backend.start(plan(small, n_shards=1)) as run:
        await_work(run)
        run.kill()
    eventually(lambda: actors_of(run) == [])
    resumed = open_run(backend.root, run.run_id)
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(attach_process, backend.root, run.run_id)
        try:
            eventually(lambda: ended.done() or actors_of(run), RUN_SECONDS)
            assert not ended.done(), ended.result()
            eventually(lambda: resumed.status.state is RunState.RUNNING, RUN_SECONDS)
        finally:
            resumed.kill()
        assert ended.result(RUN_SECONDS) == f"error: run {run.run_id} killed"


def test_cost_is_the_share_of_the_nodes(small: Dataset, backend: cirrus.RayBackend) -> None:
    """A run pays for the CPUs that it declares, of nodes that have a price."""
    backend = cirrus.RayBackend(backend.address, root=backend.root, dollars_per_node_hour=8.0)
    assert backend.dollars_per_hour(1, 2) == pytest.approx(8.0 * 2 / 4)
    assert backend.dollars_per_hour(100, 1) == 8.0
    backend = cirrus.RayBackend(backend.address, shard_cpus=1.0, worker_cpus=0.5, dollars_per_node_hour=8.0)
    assert backend.dollars_per_hour(2, 1) == pytest.approx(8.0 * 2 / 4)


def test_the_command_line_trains_on_ray(small: Dataset, backend: cirrus.RayBackend, tmp_path: Path) -> None:
    """``cirrus train --backend ray`` trains on the cluster at the address, and saves the model."""
    address = f"localhost:{str(backend.address).rpartition(':')[2]}"
    cuts = tmp_path / "cuts"
    arguments = [
        *("train", small.url, "--backend", "ray", "--ray-address", address, "--home", backend.root),
        *(
            "--epochs",
            "2",
            "--tol",
            "none",
            "--model",
            str(tmp_path / "model"),
            "--checkpoint-url",
            str(cuts),
        ),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "cirrus", *arguments],
        capture_output=True,
        text=True,
        env=child_environment(os.environ),
    )
    assert done.returncode == 0, done.stderr
    assert "run " in done.stderr
    assert cirrus.load_model(str(tmp_path / "model")).n_iter_ == 2
    assert (cuts / "latest").read_text().startswith("step-")


def test_a_client_of_the_client_server_trains(
    small: Dataset, backend: cirrus.RayBackend, ray_cluster: SmallCluster
) -> None:
    """A program needs nothing of the cluster but its ``ray://`` address to train on it."""
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from real_runs import assert_exact, plan; import cirrus\n"
        "backend = cirrus.RayBackend(sys.argv[2], root=sys.argv[3])\n"
        "config = plan(cirrus.Dataset.open(sys.argv[4]), epochs=2, n_shards=1)\n"
        "with backend.start(config) as run: assert_exact(config, run.wait(90))\n"
        "print(run.status.state)\n"
    )
    arguments = [str(Path(__file__).parent), ray_cluster.client_address, backend.root, small.url]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        env=child_environment(os.environ),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "finished"
