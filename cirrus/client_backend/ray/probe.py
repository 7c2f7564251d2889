"""Checks that every node of the cluster reaches what a run needs, before the run begins."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import ray
from ray import exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cirrus.chunks import MANIFEST_KEY
from cirrus.client_backend.ray.cluster import explain
from cirrus.client_backend.ray.sizes import Node
from cirrus.config import RunConfig
from cirrus.errors import CirrusError, ConfigError
from cirrus.run_folder import RunFolder
from cirrus.storage import open_store

log = logging.getLogger(__name__)

#: All nodes together have this long; a first process on a node takes seconds to start.
PROBE_SECONDS = 60.0
#: Below the run folder: what the nodes write there.
PROBES = "probes/"


def check_reach(
    folder: RunFolder, config: RunConfig, nodes: Sequence[Node], environment: dict[str, Any]
) -> None:
    """Check that each node reads and writes the run folder, and reads the data.

    Args:
        folder: The run's.
        config: The run's.
        nodes: Of the cluster.
        environment: Ray's runtime environment.

    Raises:
        ConfigError: One does not.
    """
    data = {"train": config.train_url, "validation": config.validation_url}
    places = {name: url for name, url in data.items() if url is not None}
    here = ray.get_runtime_context().get_node_id()
    _check(reach(folder.url, places, here), "this node")
    try:
        _ask_nodes(folder, places, [node for node in nodes if node.node_id != here], environment)
    finally:
        folder.store.delete_prefix(PROBES.rstrip("/"))


def _ask_nodes(
    folder: RunFolder, places: dict[str, str], nodes: Sequence[Node], environment: dict[str, Any]
) -> None:
    asked = {
        ray.remote(reach)
        .options(
            num_cpus=0,
            max_retries=0,
            runtime_env=environment,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.node_id, soft=False),
        )
        .remote(folder.url, places, node.node_id): node
        for node in nodes
    }
    done, late = ray.wait(list(asked), num_returns=len(asked), timeout=PROBE_SECONDS)
    for ref in late:
        log.warning("%s has not said within %.0f s what it reaches", asked[ref].address, PROBE_SECONDS)
        ray.cancel(ref, force=True)
    for ref in done:
        node = asked[ref]
        try:
            problem = ray.get(ref)
        except exceptions.RuntimeEnvSetupError as error:
            raise ConfigError("runtime_env", explain(error)) from error
        except exceptions.RayError as error:
            log.warning("%s does not say what it reaches: %s", node.address, explain(error))
            continue
        if problem is None and not folder.store.exists(f"{PROBES}{node.node_id}"):
            problem = ("root", f"what it writes to {folder.url} is not seen by others")
        _check(problem, f"node {node.address} ({node.machine})")


def _check(problem: tuple[str, str] | None, where: str) -> None:
    if problem is None:
        return
    name, text = problem
    raise ConfigError(
        name,
        f"cannot be used from {where}: {text}. All nodes must reach it: use s3://, or a folder that they"
        " share under the same path",
    )


def reach(run_url: str, places: dict[str, str], node_id: str) -> tuple[str, str] | None:
    """Tell what this node does not reach: the name of a parameter and the problem, or None.

    Args:
        run_url: The run folder; something is written there.
        places: URLs of datasets, by the names of parameters.
        node_id: This node.
    """
    try:
        store = open_store(run_url)
        if not store.exists("config.json"):
            return ("root", f"it does not see {run_url}")
        store.put(f"{PROBES}{node_id}", b"")
    except CirrusError as error:
        return ("root", str(error))
    for name, url in places.items():
        try:
            if not open_store(url).exists(MANIFEST_KEY):
                return (name, f"it sees no dataset at {url}")
        except CirrusError as error:
            return (name, str(error))
    return None
