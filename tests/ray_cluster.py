"""Small Ray clusters on this machine, which belong to the tests that start them and end with them."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

#: Enough for what tests put there; Ray's own default is a third of the machine.
OBJECT_STORE_BYTES = 100 * 2**20
NODE_CPUS = 4
#: How long processes of a cluster may take to end.
END_SECONDS = 15.0


class SmallCluster:
    """Nodes of a Ray cluster, all on this machine.

    Args:
        n_nodes: How many, the head among them.
        cpus: What each says to have.
    """

    def __init__(self, n_nodes: int, cpus: int = NODE_CPUS) -> None:
        from ray.cluster_utils import Cluster

        options: dict[str, Any] = {"num_cpus": cpus, "object_store_memory": OBJECT_STORE_BYTES}
        self._cluster = Cluster(initialize_head=True, head_node_args={**options, "include_dashboard": False})
        self.nodes = [
            self._cluster.head_node,
            *(self._cluster.add_node(**options) for _ in range(n_nodes - 1)),
        ]
        self._options = options

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return str(self._cluster.address)

    def add_node(self) -> Any:
        """Start one more node."""
        self.nodes.append(self._cluster.add_node(**self._options))
        return self.nodes[-1]

    def kill_node(self, node_id: str) -> None:
        """End all of a node at once, as if its machine had lost power."""
        node = next(node for node in self.nodes if node.node_id == node_id)
        self._cluster.remove_node(node, allow_graceful=False)
        self.nodes.remove(node)

    def close(self) -> None:
        """End it."""
        import ray

        ray.shutdown()
        self._cluster.shutdown()


@contextlib.contextmanager
def small_cluster(n_nodes: int = 1, cpus: int = NODE_CPUS) -> Iterator[SmallCluster]:
    """Start a cluster with a folder of its own, so that no other cluster of this machine is touched."""
    pytest.importorskip("ray", reason="ray is not installed")
    # Paths of Unix sockets may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="cr-", dir="/tmp"))
    (folder / "ray").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", str(folder))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.delenv("RAY_ADDRESS", raising=False)
        cluster = None
        try:
            with warnings.catch_warnings():
                cluster = SmallCluster(n_nodes, cpus)
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
    """Return the processes of the cluster whose files are in a folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("RAY_TMPDIR") == folder and process.pid != os.getpid():
                found.append(process)
    return found


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[SmallCluster]:
    """A cluster of one node, which all tests share."""
    with small_cluster() as cluster:
        yield cluster
