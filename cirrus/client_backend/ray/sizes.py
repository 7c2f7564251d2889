"""What of a cluster a run's parts declare to need, and whether a cluster has that; pure."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cirrus.config import RunConfig

BYTES_PER_MB = 2**20
#: Shares of a CPU are declared in hundredths; Ray counts in ten-thousandths.
CPU_PARTS = 100
#: With less of a CPU each, workers would only get in each other's way.
LEAST_WORKER_CPUS = 0.1


@dataclass(frozen=True, kw_only=True)
class Node:
    """A living node of the cluster."""

    node_id: str
    address: str
    port: int
    """Of its raylet."""
    machine: str
    """The host's name: several nodes may be on one machine."""
    cpus: float = 0.0
    memory_bytes: float = 0.0
    is_head: bool = False


@dataclass(frozen=True, kw_only=True)
class Need:
    """What one actor or task declares."""

    cpus: float
    memory_mb: int = 0

    def to_options(self) -> dict[str, Any]:
        """Return it as options of Ray."""
        return {"num_cpus": self.cpus, "memory": self.memory_mb * BYTES_PER_MB}

    def __str__(self) -> str:
        memory = f" and {self.memory_mb} MB" if self.memory_mb else ""
        return f"{self.cpus:g} CPU{memory}"


@dataclass(frozen=True, kw_only=True)
class RunNeeds:
    """What all parts of a run declare; its evaluator works between others, and declares nothing."""

    n_shards: int
    n_workers: int
    shard: Need
    worker: Need


def run_needs(
    config: RunConfig,
    nodes: Sequence[Node],
    *,
    shard: Need,
    worker_cpus: float | None,
) -> RunNeeds:
    """Return what a run declares.

    Args:
        config: The run.
        nodes: The cluster.
        shard: What a shard declares.
        worker_cpus: What a worker declares; None: a CPU, or less where else not all of them had room.
    """
    if worker_cpus is None:
        left = sum(node.cpus for node in nodes) - config.n_shards * shard.cpus
        share = math.floor(left / config.n_workers * CPU_PARTS + 1e-6) / CPU_PARTS
        worker_cpus = min(1.0, max(share, LEAST_WORKER_CPUS))
    worker = Need(cpus=worker_cpus, memory_mb=config.worker_memory_mb)
    return RunNeeds(n_shards=config.n_shards, n_workers=config.n_workers, shard=shard, worker=worker)


def shard_home(run_id: str, needs: RunNeeds, nodes: Sequence[Node], taken: Sequence[str]) -> str | None:
    """Return the node that a shard is best on: one with the fewest other shards of its run.

    Of equals the first by a hash of run and node (rendezvous hashing: Thaler and Ravishankar, 1998) is taken,
    so that the shards of several runs do not all begin at the same node.

    Args:
        run_id: The run.
        needs: What its shards declare.
        nodes: The cluster.
        taken: The nodes of the run's other shards, one for each.

    Returns:
        The node's id; None: no node is large enough.
    """

    def cost(node_id: str) -> tuple[int, bytes]:
        return taken.count(node_id), hashlib.sha256(f"{run_id}/{node_id}".encode()).digest()

    fitting = [
        node.node_id
        for node in nodes
        if node.cpus + 1e-9 >= needs.shard.cpus and node.memory_bytes >= needs.shard.memory_mb * BYTES_PER_MB
    ]
    return min(fitting, key=cost, default=None)


def workers_with_room(needs: RunNeeds, nodes: Sequence[Node]) -> int:
    """Return how many workers an idle cluster has room for beside the shards; below 0: not even for those."""
    cpus = [node.cpus for node in nodes]
    memory = [node.memory_bytes / BYTES_PER_MB for node in nodes]

    def place(need: Need) -> bool:
        fitting = [
            i for i in range(len(nodes)) if cpus[i] + 1e-9 >= need.cpus and memory[i] >= need.memory_mb
        ]
        if not fitting:
            return False
        most = max(fitting, key=lambda i: (cpus[i], memory[i]))  # as SPREAD does
        cpus[most] -= need.cpus
        memory[most] -= need.memory_mb
        return True

    if not all(place(needs.shard) for _ in range(needs.n_shards)):
        return -1
    placed = 0
    while placed < needs.n_workers and place(needs.worker):
        placed += 1
    return placed


def describe(nodes: Sequence[Node]) -> str:
    """Return a cluster in words."""
    cpus = sum(node.cpus for node in nodes)
    memory = sum(node.memory_bytes for node in nodes) / BYTES_PER_MB
    return f"{len(nodes)} node{'' if len(nodes) == 1 else 's'} with {cpus:g} CPU and {memory:.0f} MB in all"
