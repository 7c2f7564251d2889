"""Small Ray clusters on this machine, which belong to the tests that start them and end with them."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from stand_ins import eventually

#: Enough for what tests put there; Ray's own default is a third of the machine.
OBJECT_STORE_BYTES = 100 * 2**20
NODE_CPUS = 4
#: Ray's workers have those below, its clients' servers the thousand above.
CLIENT_PORTS = (20_000, 23_000)
#: How long the server of one client may take to start; Ray's own 30 are too few on a busy machine.
CLIENT_SERVER_SECONDS = 90
#: How long nodes may take to join.
JOIN_SECONDS = 60.0
#: How long processes of a cluster may take to end.
END_SECONDS = 15.0


class SmallCluster:
    """Nodes of a Ray cluster, all on this machine.

    Args:
        cpus: What the head says to have.
    """

    def __init__(self, cpus: int = NODE_CPUS) -> None:
        from ray.cluster_utils import Cluster

        options: dict[str, Any] = {"num_cpus": cpus, "object_store_memory": OBJECT_STORE_BYTES}
        self._client_port = free_port()
        head = {**options, "include_dashboard": False, "ray_client_server_port": self._client_port}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self.address = str(self._cluster.address)
        """HOST:PORT."""
        self._options = options
        self.nodes = [self._cluster.head_node]

    @property
    def client_address(self) -> str:
        """ray://HOST:PORT."""
        return f"ray://127.0.0.1:{self._client_port}"

    def add_nodes(self, n_nodes: int, cpus: int) -> list[Any]:
        """Start more nodes with so many CPUs each, and wait until they belong to the cluster."""
        options = {**self._options, "num_cpus": cpus}
        added = [self._cluster.add_node(wait=False, **options) for _ in range(n_nodes)]
        self.nodes += added
        self._cluster.wait_for_nodes(JOIN_SECONDS)
        return added

    def kill_node(self, node_id: str) -> None:
        """End all of a node at once, as if its machine had lost power."""
        node = next(node for node in self.nodes if node.node_id == node_id)
        self._cluster.remove_node(node, allow_graceful=False)
        self.nodes.remove(node)

    def keep_head_only(self) -> None:
        """End all other nodes, and wait until Ray places nothing on them any more."""
        import ray

        for node in self.nodes[1:]:
            self.kill_node(node.node_id)
        eventually(lambda: sum(node["Alive"] for node in ray.nodes()) == 1, JOIN_SECONDS)

    def close(self) -> None:
        """End it, and this process' connection to any: Ray forgets what that is made of."""
        import ray

        ray.shutdown()
        self._cluster.shutdown()


def free_port() -> int:
    """Return a port that nobody has, of those that Ray gives to none of its workers."""
    for port in random.sample(range(*CLIENT_PORTS), 100):
        with socket.socket() as candidate, contextlib.suppress(OSError):
            candidate.bind(("", port))
            return port
    raise AssertionError("no port is free")


@contextlib.contextmanager
def small_cluster(cpus: int = NODE_CPUS) -> Iterator[SmallCluster]:
    """Start a cluster with a folder of its own, so that no other cluster of this machine is touched."""
    pytest.importorskip("ray", reason="ray is not installed")
    # Paths of Unix sockets may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="cr-", dir="/tmp"))
    (folder / "ray").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", str(folder))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_CLIENT_SERVER_CHECK_CHANNEL_TIMEOUT_S", str(CLIENT_SERVER_SECONDS))
        patch.delenv("RAY_ADDRESS", raising=False)
        cluster = None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)  # Ray's, of logs of its client server
                cluster = SmallCluster(cpus)
            yield cluster
        finally:
            if cluster is not None:
                cluster.close()
            left = leftovers(str(folder))
            psutil.wait_procs(left, END_SECONDS)
            left = leftovers(str(folder))
            for process in left:
                process.kill()
            shutil.rmtree(folder, ignore_errors=True)
    assert [process.pid for process in left] == []


def leftovers(folder: str) -> list[psutil.Process]:
    """Return the processes of the cluster whose files are in a folder.

    What other tests start while the cluster is there inherits its environment, and is none of it.
    """
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            of_ray = any(word.startswith("ray::") or "/ray/" in word for word in words)
            if of_ray and process.environ().get("RAY_TMPDIR") == folder and process.pid != os.getpid():
                found.append(process)
    return found


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[SmallCluster]:
    """A cluster of one node, which all tests share; what they add to it they take away."""
    with small_cluster() as cluster:
        yield cluster
