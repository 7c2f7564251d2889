"""The connection of this process to a Ray cluster, and what Ray's errors mean."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import ray
from ray import exceptions

from cirrus.client_backend.fleet import AttemptError
from cirrus.client_backend.ray.sizes import Node
from cirrus.errors import CirrusError, ConfigError

log = logging.getLogger(__name__)

#: All our actors have their names in it.
NAMESPACE = "cirrus"
#: Has Ray connect to a cluster when no address is given.
ADDRESS_VARIABLE = "RAY_ADDRESS"
#: After so long without the cluster's control store Ray ends the process that is connected to it.
RECONNECT_VARIABLE = "RAY_gcs_rpc_server_reconnect_timeout_s"
RECONNECT_SECONDS = 60.0
#: How often a cluster that is silent is asked for a sign of life.
ASK_SECONDS = 1.0
#: Has Ray's ``ray://`` client send the cluster's token.
AUTH_VARIABLE = "RAY_AUTH_MODE"
#: Where Ray looks for that token.
TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
AUTH_FILE = ".ray/auth_token"
TOKEN_BYTES = 32
CLIENT_SCHEME = "ray://"
#: Whether anybody listens at an address is asked for so long, before Ray asks for minutes.
KNOCK_SECONDS = 3.0
#: What only the cluster's head node has of.
HEAD_RESOURCE = "node:__internal_head__"
#: A process has one connection, and several threads that may find it lost.
_LEAVING = threading.Lock()


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
    may_start_one = address is None and not os.environ.get(ADDRESS_VARIABLE)
    if wanted not in ("auto", "local"):
        _knock(wanted)
    try:
        _init(wanted)
    except (ConnectionError, exceptions.AuthenticationError) as error:
        if may_start_one:  # there is none, or another program's
            _init("local")
            return
        if isinstance(error, exceptions.AuthenticationError):
            raise ConfigError("address", f"the Ray cluster at {wanted} refuses: {_line(error)}") from error
        if wanted.startswith(CLIENT_SCHEME):  # somebody listens
            raise ConfigError(
                "address",
                f"the Ray cluster at {wanted} does not take this client: {_line(error)}. If it demands a"
                f" token, set {AUTH_VARIABLE}=token, and have the token of 'ray get-auth-token' here",
            ) from error
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
    with _environment(_of_own_cluster()):
        ray.init(**options, include_dashboard=False)


def _of_own_cluster() -> dict[str, str]:
    """Return the environment of a cluster that is started here: it reports to nobody, and takes no strangers.

    Without a token Ray would write one into the user's home, which every later cluster would then demand.
    """
    found = {"RAY_USAGE_STATS_ENABLED": "0"}
    has_token = any(name in os.environ for name in TOKEN_VARIABLES) or (Path.home() / AUTH_FILE).exists()
    return found if has_token else {**found, TOKEN_VARIABLES[0]: _own_token()}


@functools.cache
def _own_token() -> str:
    """Return the token of clusters that this process starts; Ray remembers the first one."""
    return secrets.token_hex(TOKEN_BYTES)


@contextlib.contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    """Set variables for what is started meanwhile."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


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
    context = ray.get_runtime_context()
    # What runs in a cluster uses that one: the address is how its client calls it.
    if context.worker.mode != ray.WORKER_MODE and not _is_same(address, context.gcs_address):
        raise ConfigError(
            "address",
            f"this process is connected to the Ray cluster at {context.gcs_address}, not {address}",
        )


def _is_same(address: str, here: str) -> bool:
    """Tell whether an address is that of a cluster, which calls itself by its head's address."""
    host, _, port = address.rpartition(":")
    here_host, _, here_port = here.rpartition(":")
    if port != here_port or host == here_host:
        return port == here_port
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host.strip("[]"), None)}
    except OSError:
        return False
    is_ours = here_host == ray.util.get_node_ip_address()
    return here_host in found or (is_ours and any(ip_address(ip).is_loopback for ip in found))


class ClusterSilence:
    """Tells that the cluster is gone for good, before Ray ends this process for it without an error.

    Args:
        advice: What to do where the cluster is back.
    """

    def __init__(self, advice: str) -> None:
        self._advice = advice
        value = os.environ.get(RECONNECT_VARIABLE, "")
        self.limit_seconds = (float(value) if value.isdecimal() else RECONNECT_SECONDS) / 2
        """How long the cluster may be silent."""
        # A ray:// client has no control store to ask; its own connection says that it was lost.
        is_client = ray.util.client.ray.is_connected()
        self._address = None if is_client else ray.get_runtime_context().gcs_address
        self._asked_at = time.monotonic()
        self._silent_since: float | None = None

    def check(self) -> None:
        """Ask the cluster's control store for a sign of life, once in a while.

        Raises:
            AttemptError: There was none for too long; this process is not connected any more.
        """
        if not ray.is_initialized():  # Ray would start a cluster for whatever is asked next
            raise AttemptError("the Ray cluster was lost, or this process has left it", is_permanent=True)
        now = time.monotonic()
        if self._address is None or now - self._asked_at < ASK_SECONDS:
            return
        self._asked_at = now
        try:
            _knock(self._address)
        except ConfigError as error:
            if self._silent_since is None:
                self._silent_since = now
            silent = now - self._silent_since
            if silent < self.limit_seconds:
                return
            with _LEAVING:
                if ray.is_initialized():
                    ray.shutdown()  # else Ray ends this process
            raise AttemptError(
                f"the Ray cluster at {self._address} was lost: nobody has answered there for {silent:.0f} s;"
                f" where it is back, {self._advice}",
                is_permanent=True,
            ) from error
        self._silent_since = None


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
    except ConnectionError as error:  # of a ray:// client
        raise lost_cluster(error) from error


def end_now(actor: Any) -> None:
    """End an actor, if there is still a cluster: without one, Ray would start one for this."""
    if ray.is_initialized():
        with contextlib.suppress(exceptions.RayError):
            ray.kill(actor, no_restart=True)


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


def lost_cluster(error: BaseException) -> AttemptError:
    """Return the error for a cluster that does not answer any more."""
    return AttemptError(f"the Ray cluster was lost: {_line(error)}", is_permanent=True)


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:500] if lines else type(error).__name__
