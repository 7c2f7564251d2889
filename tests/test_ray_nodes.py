"""Nodes of a Ray cluster that are lost under a run, and under a chunk that lies there."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray_cluster import SmallCluster, small_cluster
from real_runs import accuracy, assert_exact, make_dataset, plan
from stand_ins import eventually

import cirrus
from cirrus.metrics import RunState

ray = pytest.importorskip("ray", reason="ray is not installed")

RUN_SECONDS = 110.0
#: Ray itself takes some 15 seconds to believe that a node is lost, and then starts the actor again.
NODE_BACK_SECONDS = 20.0


@pytest.fixture
def cluster() -> Iterator[SmallCluster]:
    """A cluster of three nodes, which may be broken."""
    with small_cluster(n_nodes=3, cpus=2) as cluster:
        yield cluster


def node_of(actor: Any) -> str:
    """Return the node of a shard's actor."""
    return str(ray.get(actor.where.remote()))


@pytest.mark.timeout(240)
def test_lost_nodes_cost_no_step(cluster: SmallCluster, tmp_path: Path) -> None:
    """The node of a shard and that of workers are lost mid-run: all is replaced, and every count is exact.

    Shards lie on different nodes; a chunk that was read on a lost node is read again where it is wanted.
    """
    train = make_dataset(str(tmp_path / "train"))
    backend = cirrus.RayBackend(cluster.address, root=tmp_path / "home", worker_cpus=0.5)
    config = plan(train, epochs=30)
    with backend.start(config) as run:
        eventually(lambda: run.status.updates > 500 or run.status.state.ended, RUN_SECONDS)
        assert run.status.state is RunState.RUNNING, run.status.error
        shards = [ray.get_actor(f"{run.run_id}/shard-{k}", namespace="cirrus") for k in range(2)]
        nodes = [node_of(shard) for shard in shards]
        assert nodes[0] != nodes[1]
        head = cluster.nodes[0].node_id
        victim = next(k for k in range(2) if nodes[k] != head)
        chunk = _chunk_on(nodes[victim], train)
        before = run.folder.shard_address(victim)
        assert before is not None
        cluster.kill_node(nodes[victim])
        lost_at = time.monotonic()
        eventually(
            lambda: run.folder.shard_address(victim).generation > before.generation,  # type: ignore[union-attr]
            NODE_BACK_SECONDS,
        )
        print(f"the shard of a lost node serves again after {time.monotonic() - lost_at:.1f} s")
        # Only the head is left then, and all that was on the other node comes back there.
        assert run.status.state is RunState.RUNNING, run.status.error
        cluster.kill_node(cluster.nodes[1].node_id)
        assert np.array_equal(ray.get(chunk, timeout=60), _stored_chunk(train))
        status = run.wait(RUN_SECONDS)
        assert status.state is RunState.FINISHED, status.error
        assert_exact(config, status)
        assert accuracy(run) > 0.95


def _chunk_on(node_id: str, train: cirrus.Dataset) -> Any:
    """Have a chunk read on a node; return its place in the object store."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from cirrus.client_backend.ray.maps import read_chunk

    there = NodeAffinitySchedulingStrategy(node_id, soft=True)
    task = ray.remote(read_chunk).options(scheduling_strategy=there, num_cpus=0)
    chunk = task.remote(train.url, train.manifest.chunks[0].key)
    assert ray.wait([chunk], timeout=60, fetch_local=False)[0]
    return chunk


def _stored_chunk(train: cirrus.Dataset) -> Any:
    from cirrus.storage import open_store

    return np.frombuffer(open_store(train.url).get(train.manifest.chunks[0].key), np.uint8)
