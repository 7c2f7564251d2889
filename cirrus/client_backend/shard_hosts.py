"""Processes that run the shards of many runs: what the runs of a search share on this machine.

A shard of its own process takes more than a second of a processor to start, and some 150 MB; in a process
that runs already it takes milliseconds. See :mod:`cirrus.paramserver.pack` for the other end.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cirrus.client_backend.fleet import AttemptError
from cirrus.client_backend.processes import ChildExit, ChildProcess, end_in_order
from cirrus.errors import RunError

#: How long a host's shards may take for their last snapshots.
HOST_GRACE_SECONDS = 2.0
#: How long the start of a run waits for a host: to compile kernels for the first time takes long.
READY_SECONDS = 5.0


def host_command(name: str) -> list[str]:
    """Return the command line of a host; the name shows in a process list."""
    return [sys.executable, "-P", "-X", f"cirrus_run={name}", "-m", "cirrus.paramserver.pack"]


class Ticket:
    """One shard that somebody waits for: ``ended`` is set when it has, with ``error`` if it crashed."""

    def __init__(self, host: _Host, number: int, shard: int) -> None:
        self.host = host
        self.number = number
        self.shard = shard
        self.ended = threading.Event()
        self.error: AttemptError | None = None


class _Host:
    """One process, and the shards in it."""

    def __init__(self, command: Sequence[str], log_path: Path | None) -> None:
        self.child = ChildProcess(command, log_path=log_path)
        self.tickets: dict[int, Ticket] = {}
        self.is_gone = False
        self.is_ready = False


class ShardHosts:
    """Some processes of this machine that run shards.

    Args:
        n_hosts: Most processes; each is started when it is first needed, and again if it dies.
        name: What they are called in a process list.
        log_path: The file that their standard error goes to; None: none that is kept.
    """

    def __init__(self, n_hosts: int, name: str, log_path: Path | None = None) -> None:
        self._n_hosts = n_hosts
        self._command = host_command(name)
        self._log_path = log_path
        self._lock = threading.Lock()
        self._hosts: list[_Host] = []
        self._numbers = itertools.count()
        self._closed = False
        self._changed = threading.Condition(self._lock)

    @property
    def pids(self) -> list[int]:
        """The processes that run."""
        with self._lock:
            return [host.child.pid for host in self._hosts]

    def warm_up(self) -> None:
        """Start a first process; does not wait for it.

        Raises:
            RunError: It cannot be started.
        """
        with self._lock:
            if not self._hosts and not self._closed:
                self._add_host()

    def await_ready(self, seconds: float = READY_SECONDS) -> None:
        """Wait until a process is ready for shards, or for so long: then shards wait themselves."""
        self.warm_up()
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or not self._hosts or any(host.is_ready for host in self._hosts), seconds
            )

    def begin(self, run_url: str, shard: int, generation: int) -> Ticket:
        """Have a shard run; returns at once.

        Raises:
            RunError: The process cannot be started, or all is being ended.
        """
        with self._lock:
            if self._closed:
                raise RunError("the search is being ended")
            host = self._free_host()
            ticket = Ticket(host, next(self._numbers), shard)
            host.tickets[ticket.number] = ticket
            order = {"id": ticket.number, "run_url": run_url, "shard": shard, "generation": generation}
            self._send(host, order)
        return ticket

    def end(self, ticket: Ticket, how: str) -> None:
        """Ask a shard to end: ``stop``, or ``crash`` without a snapshot."""
        with self._lock:
            if not ticket.host.is_gone:
                self._send(ticket.host, {"id": ticket.number, "end": how})

    def kill(self, ticket: Ticket) -> None:
        """Kill the process of a shard that is stuck: all shards in it end like killed processes."""
        with self._lock:
            if not ticket.host.is_gone:
                ticket.host.child.kill()

    def close(self) -> None:
        """End all processes, and with them what shards are left."""
        with self._lock:
            self._closed = True
            hosts = list(self._hosts)
        end_in_order([host.child for host in hosts], HOST_GRACE_SECONDS)

    def _free_host(self) -> _Host:
        """Return the host with the least to do; one that starts is left alone as long as another is ready."""
        if len(self._hosts) < self._n_hosts and all(host.tickets for host in self._hosts):
            self._add_host()
        return min(self._hosts, key=lambda host: (not host.is_ready, len(host.tickets)))

    def _add_host(self) -> None:
        host = _Host(self._command, self._log_path)
        self._hosts.append(host)
        threading.Thread(target=self._listen, args=(host,), name="cirrus-shard-host", daemon=True).start()

    def _send(self, host: _Host, order: dict[str, Any]) -> None:
        # A host that has just died has nobody to hear; its listener tells all who wait.
        with contextlib.suppress(ValueError):
            host.child.send(json.dumps(order).encode() + b"\n")

    def _listen(self, host: _Host) -> None:
        """Hear which shards have ended, and at last that the host has."""
        end = host.child.wait(lambda line: self._hear(host, line))
        with self._lock:
            host.is_gone = True
            self._hosts.remove(host)
            self._changed.notify_all()
            left = list(host.tickets.values())
            host.tickets.clear()
        for ticket in left:
            ticket.error = _host_error(end)
            ticket.ended.set()

    def _hear(self, host: _Host, line: bytes) -> None:
        try:
            report = json.loads(line)
            if report.get("ready"):
                with self._changed:
                    host.is_ready = True
                    self._changed.notify_all()
                return
            number, text, kind = int(report["id"]), report["error"], str(report["type"])
        except (ValueError, KeyError, TypeError, AttributeError):
            return  # something that a library printed
        with self._lock:
            ticket = host.tickets.pop(number, None)
        if ticket is not None:
            if text is not None:
                ticket.error = AttemptError.of_kind(str(text), kind)
            ticket.ended.set()


def _host_error(end: ChildExit) -> AttemptError:
    tail = f"; its last words:\n{end.stderr_tail}" if end.stderr_tail else ""
    return AttemptError(f"the process of its shard {end.reason}{tail}")
