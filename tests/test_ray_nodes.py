"""Nodes of a Ray cluster that are lost under a run, and under a chunk that lies there."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray_cluster import SmallCluster, small_cluster
from real_runs import accuracy, assert_whole, await_work, make_dataset, plan
from stand_ins import eventually, how_busy, processes

import cirrus
from cirrus.client_backend.processes import child_environment
from cirrus.metrics import RunState

ray = pytest.importorskip("ray", reason="ray is not installed")
from ray._private.state import available_resources_per_node  # noqa: E402
from ray.experimental import get_object_locations  # noqa: E402

RUN_SECONDS = 110.0
#: The shard of a lost node serves again within this time, on a machine with nothing else to do. Ray itself
#: takes some 15 seconds to believe the loss.
NODE_BACK_SECONDS = 20.0
#: The head has four CPUs: one worker at least is on another node, wherever the shards are.
N_WORKERS, WORKER_CPUS, NODE_CPUS = 5, 1.0, 2


def node_of(actor: Any) -> str:
    """Return the node of a shard's actor."""
    return str(ray.get(actor.where.remote()))


def workers_on(node: Any, run_id: str) -> list[int]:
    """Return the processes of a run's workers on a node: its raylet has started them."""
    raylet = node.all_processes["raylet"][0].process.pid
    # Ray calls a process by what it does.
    return [worker.pid for worker in processes(f"ray::{run_id}/worker-") if worker.ppid() == raylet]


@pytest.fixture
def cluster(ray_cluster: SmallCluster) -> Iterator[SmallCluster]:
    """The cluster of all tests with two more nodes, which may be broken."""
    from cirrus.client_backend.ray.cluster import connect

    connect(ray_cluster.address)  # to the head, while there is no other node
    added = ray_cluster.add_nodes(2, cpus=NODE_CPUS)
    # Before Ray has heard what they have, it places nothing there.
    eventually(lambda: {node.node_id for node in added} <= set(available_resources_per_node()))
    yield ray_cluster
    ray_cluster.keep_head_only()


@pytest.mark.timeout(240)
def test_lost_nodes_cost_no_step(cluster: SmallCluster, tmp_path: Path) -> None:
    """The node of a shard is lost mid-run, then that of a worker: all is replaced, and every count is exact.

    Shards lie on different nodes; a chunk that was read on a lost node is read again where it is wanted.
    """
    train = make_dataset(str(tmp_path / "train"))
    head = cluster.nodes[0].node_id
    backend = cirrus.RayBackend(cluster.address, root=tmp_path / "home", worker_cpus=WORKER_CPUS)
    with backend.start(plan(train, n_workers=N_WORKERS)) as run:
        await_work(run, 200)
        shards = [ray.get_actor(f"{run.run_id}/shard-{k}", namespace="cirrus") for k in range(2)]
        places = [node_of(shard) for shard in shards]
        assert places[0] != places[1]
        victim = next(k for k in range(2) if places[k] != head)
        chunk = _chunk_on(places[victim], train)
        busy = how_busy()
        before = run.folder.shard_address(victim)
        assert before is not None
        cluster.kill_node(places[victim])
        lost_at = time.monotonic()
        eventually(
            lambda: run.folder.shard_address(victim).generation > before.generation,  # type: ignore[union-attr]
            RUN_SECONDS,
        )
        seconds, busy = time.monotonic() - lost_at, max(busy, how_busy())
        print(f"the shard of a lost node serves again after {seconds:.1f} s (waits are {busy:.1f} x longer)")
        assert seconds <= NODE_BACK_SECONDS * busy
        await_work(run, run.status.updates + 200)
        [last] = cluster.nodes[1:]
        eventually(lambda: workers_on(last, run.run_id), RUN_SECONDS)
        cluster.kill_node(last.node_id)
        # Only the head is left, and all that was on the other nodes comes back there.
        assert np.array_equal(ray.get(chunk, timeout=RUN_SECONDS), _stored_chunk(train))
        await_work(run, run.status.updates + 2 * run.config.steps_per_epoch)
        run.stop()
        status = run.wait(RUN_SECONDS)
        assert status.state is RunState.FINISHED, status.error
        assert_whole(run, status)
        assert accuracy(run) > 0.95


@pytest.mark.skipif(os.environ.get("CIRRUS_FAULTS") != "all", reason="waits long; `make soak` does it")
@pytest.mark.timeout(240)
def test_a_lost_cluster_is_told(tmp_path: Path) -> None:
    """A client whose cluster is stopped says so, before Ray would end its program, and lives on.

    A run, a job over chunks and a task that it waits for at the same time all end with that error.
    """
    program = (
        "import os, sys, threading, time; sys.path.insert(0, sys.argv[1])\n"
        "from real_runs import await_work, make_dataset, plan; import cirrus\n"
        "backend = cirrus.RayBackend(sys.argv[2], root=sys.argv[3])\n"
        "data = make_dataset(sys.argv[3] + '/train')\n"
        "said = {}\n"
        "def hear(what, function):\n"
        "    try: function()\n"
        "    except cirrus.RunError as error: said[what] = error\n"
        "marker = sys.argv[3] + '/mapping'\n"
        "def linger(block, marker=marker):\n"
        "    open(marker, 'w').close()\n"
        "    time.sleep(1000)\n"
        "task = backend.submit(time.sleep, 1000)\n"
        "calls = {\n"
        "    'job': lambda: data.map_reduce(linger, lambda a, b: a, backend=backend),\n"
        "    'task': task.result,\n"
        "}\n"
        "threads = [threading.Thread(target=hear, args=call) for call in calls.items()]\n"
        "with backend.start(plan(data, n_workers=1, n_shards=1)) as run:\n"
        "    await_work(run)\n"
        "    for thread in threads: thread.start()\n"
        "    while not os.path.exists(marker): time.sleep(0.1)\n"
        "    print('ready', flush=True)\n"
        "    hear('run', run.wait)\n"
        "    for thread in threads: thread.join()\n"
        "for what in ('run', 'job', 'task'): print(what, type(said[what]).__name__, said[what])\n"
        "print(run.status.state)\n"
    )
    environment = {**child_environment(os.environ), "RAY_gcs_rpc_server_reconnect_timeout_s": "24"}
    with small_cluster() as doomed:
        client = subprocess.Popen(
            [sys.executable, "-c", program, str(Path(__file__).parent), doomed.address, str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        with client:
            assert client.stdout is not None
            assert client.stdout.readline() == "ready\n"
            doomed.kill_node(doomed.nodes[0].node_id)
            said = client.stdout.read()
    assert client.returncode == 0, said
    lines = said.splitlines()
    for what in ("run RunInterruptedError", "job AttemptError", "task RunError"):  # beside what Ray prints
        assert any(line.startswith(what) and "was lost" in line for line in lines), said
    assert f"the Ray cluster at {doomed.address} was lost" in said
    assert lines[-1] == "interrupted"


def _chunk_on(node_id: str, train: cirrus.Dataset) -> Any:
    """Have a chunk read on a node; return its place in the object store."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from cirrus.client_backend.ray.maps import read_chunk

    there = NodeAffinitySchedulingStrategy(node_id, soft=True)  # so that it can be read again elsewhere
    task = ray.remote(read_chunk).options(scheduling_strategy=there, num_cpus=0)
    chunk = task.remote(train.url, train.manifest.chunks[0].key)
    assert ray.wait([chunk], timeout=60, fetch_local=False)[0]
    assert get_object_locations([chunk])[chunk]["node_ids"] == [node_id]
    return chunk


def _stored_chunk(train: cirrus.Dataset) -> Any:
    from cirrus.storage import open_store

    return np.frombuffer(open_store(train.url).get(train.manifest.chunks[0].key), np.uint8)
