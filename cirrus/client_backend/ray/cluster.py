"""The connection of this process to a Ray cluster, and what Ray's errors mean."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from typing import Any

import ray
from ray import exceptions

from cirrus.client_backend.fleet import AttemptError
from cirrus.client_backend.ray.sizes import Node
from cirrus.errors import CirrusError, ConfigError, RunError

log = logging.getLogger(__name__)

#: All our actors have their names in it.
NAMESPACE = "cirrus"
#: Has Ray connect to a cluster when no address is given.
ADDRESS_VARIABLE = "RAY_ADDRESS"
CLIENT_SCHEME = "ray://"
#: Whether anybody listens at an address is asked for so long, before Ray asks for minutes.
KNOCK_SECONDS = 3.0
#: What only the cluster's head node has of.
HEAD_RESOURCE = "node:__internal_head__"


def connect(address: str | None) -> None:
    """Connect this process to a cluster, if it is not connected yet.

    Args:
        address: ``HOST:PORT`` of a cluster, ``ray://HOST:PORT`` of its client server, ``auto`` (the one of
            this machine, or of the environment variable ``RAY_ADDRESS``); None: the same, but where there is
            none, one is started here that ends with this process.

    Raises:
        ConfigError: There is no cluster at the address, or this process is connected to another one.
    """
    if ray.is_initialized():
        _check_same(address)
        return
    wanted = address or "auto"
    if wanted not in ("auto", "local"):
        _knock(wanted)
    try:
        _init(wanted)
    except ConnectionError as error:
        if address is None and not os.environ.get(ADDRESS_VARIABLE):
            _init("local")
            return
        where = os.environ.get(ADDRESS_VARIABLE, "this machine") if wanted == "auto" else wanted
        raise ConfigError(
            "address", f"there is no Ray cluster at {where} ('ray start --head' starts one): {_line(error)}"
        ) from error
    except (RuntimeError, ValueError, exceptions.RayError) as error:
        raise ConfigError("address", f"the Ray cluster at {wanted} refuses: {_line(error)}") from error


def _init(address: str) -> None:
    options: dict[str, Any] = {"address": address, "namespace": NAMESPACE}
    if address.startswith(CLIENT_SCHEME):
        ray.init(**options)
        return
    options.update(log_to_driver=False, logging_level=logging.ERROR)
    if address != "local":
        ray.init(**options)
        return
    with _without_usage_report():
        ray.init(**options, include_dashboard=False)


@contextlib.contextmanager
def _without_usage_report() -> Iterator[None]:
    """Have a cluster that is started here tell nobody of it."""
    name = "RAY_USAGE_STATS_ENABLED"
    before = os.environ.get(name)
    os.environ[name] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _knock(address: str) -> None:
    """Check that somebody listens at an address.

    Raises:
        ConfigError: It is none, or nobody does.
    """
    host, _, port = address.removeprefix(CLIENT_SCHEME).rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError("address", f'must be "auto", HOST:PORT or ray://HOST:PORT, got {address!r}')
    try:
        socket.create_connection((host.strip("[]"), int(port)), KNOCK_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            "address", f"there is no Ray cluster at {address} ('ray start --head' starts one): {error}"
        ) from error


def _check_same(address: str | None) -> None:
    if address in (None, "auto", "local") or address.startswith(CLIENT_SCHEME):
        return
    here = ray.get_runtime_context().gcs_address
    if here != address:
        raise ConfigError("address", f"this process is connected to the Ray cluster at {here}, not {address}")


def living_nodes() -> list[Node]:
    """Return the cluster's living nodes, the head first."""
    found = []
    for raw in ray.nodes():
        resources = raw["Resources"]
        if not raw["Alive"]:
            continue
        found.append(
            Node(
                node_id=raw["NodeID"],
                address=raw["NodeManagerAddress"],
                port=int(raw["NodeManagerPort"]),
                machine=raw["NodeManagerHostname"],
                cpus=float(resources.get("CPU", 0.0)),
                memory_bytes=float(resources.get("memory", 0.0)),
                is_head=HEAD_RESOURCE in resources,
            )
        )
    return sorted(found, key=lambda node: not node.is_head)


@contextlib.contextmanager
def ray_errors(what: str) -> Iterator[None]:
    """Raise Ray's errors as ours: what was raised on the other side as it was, all else as an AttemptError.

    Args:
        what: Whom it befell, such as ``worker 3``.
    """
    try:
        yield
    except exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, CirrusError):
            raise cause from error
        raise AttemptError(f"{what}: {_line(cause or error)}") from error
    except exceptions.RayError as error:
        raise AttemptError(f"{what}: {explain(error)}") from error


def explain(error: exceptions.RayError) -> str:
    """Return what an error of Ray means, in a line."""
    match error:
        case exceptions.OutOfMemoryError():
            return "its node ran out of memory: set worker_memory_mb to what it needs, or use fewer workers"
        case exceptions.RuntimeEnvSetupError():
            return f"its runtime environment cannot be made: {_line(error)}"
        case exceptions.ActorUnschedulableError() | exceptions.TaskUnschedulableError():
            return f"no node can run it: {_line(error)}"
        case exceptions.NodeDiedError():
            return "its node was lost"
        case exceptions.WorkerCrashedError() | exceptions.LocalRayletDiedError():
            return "its process or its node was lost"
        case exceptions.ActorDiedError() | exceptions.ActorUnavailableError():
            return f"its actor was lost: {_line(error)}"
        case exceptions.TaskCancelledError():
            return "it was ended"
        case _:
            return f"{type(error).__name__}: {_line(error)}"


def lost_cluster(error: BaseException) -> RunError:
    """Return the error for a cluster that does not answer any more."""
    return RunError(f"the Ray cluster was lost: {_line(error)}")


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:500] if lines else type(error).__name__
