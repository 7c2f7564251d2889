"""What being careful costs: the handshake of a connection, and TLS.

Two shards, one with TLS and one without, are asked in turns, and medians printed, since other work on the
machine comes and goes. A step is a pull of some rows, and a push to them, by one client over loopback: the
network's own time is next to nothing, and what TLS adds is seen at its largest::

    python benchmarks/security.py --rounds 7
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import psutil

from cirrus.client_backend.certificates import make_certificates
from cirrus.paramserver.client import Channel, ParameterClient
from cirrus.paramserver.standalone import create_standalone_run
from cirrus.paramserver.tls import worker_context
from cirrus.run_folder import RunFolder, ShardAddress

N_ROWS = 2**20
SIZES = (1_000, 10_000, 100_000)
N_CONNECTIONS = 50
ROUND_SECONDS = 0.5


@dataclass(frozen=True)
class Server:
    """A shard, and how to reach it."""

    folder: RunFolder
    address: ShardAddress
    token: str
    process: psutil.Process
    is_encrypted: bool

    def client(self) -> ParameterClient:
        """Connect."""
        tls = worker_context(self.folder) if self.is_encrypted else None
        return ParameterClient(
            [self.address], self.token, self.folder.config().tables, compression="none", tls=tls
        )

    def cpu_seconds(self) -> float:
        """Return how long it has worked."""
        times = self.process.cpu_times()
        return float(times.user + times.system)


@contextlib.contextmanager
def running(root: str, *, is_encrypted: bool) -> Iterator[Server]:
    """Run a shard."""
    certificates = make_certificates(1) if is_encrypted else None
    url = create_standalone_run(
        root, "tls" if is_encrypted else "plain", n_rows=N_ROWS, certificates=certificates
    )
    command = [sys.executable, "-m", "cirrus.paramserver", "--run-url", url]
    process = subprocess.Popen(
        [*command, "--shard", "0", "--generation", "1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        folder = RunFolder(url)
        address = folder.shard_address(0)
        assert address is not None
        yield Server(folder, address, folder.token(), psutil.Process(process.pid), is_encrypted)
    finally:
        process.kill()
        process.wait()


def bare_connections(server: Server) -> list[float]:
    """Return the milliseconds of some connections without a word said."""
    found = []
    for _ in range(N_CONNECTIONS):
        begun = time.perf_counter()
        sock = socket.create_connection((server.address.host, server.address.port))
        found.append(1e3 * (time.perf_counter() - begun))
        sock.close()
    return found


def connections(server: Server) -> list[float]:
    """Return the milliseconds of some connections with their handshakes."""
    tls = worker_context(server.folder) if server.is_encrypted else None
    found = []
    for _ in range(N_CONNECTIONS):
        begun = time.perf_counter()
        channel = Channel(server.address, server.token, tls=tls)
        found.append(1e3 * (time.perf_counter() - begun))
        channel.close()
    return found


def steps(server: Server, n_rows: int) -> tuple[float, float]:
    """Return steps a second, and microseconds of processor a step, of client and shard together."""
    client = server.client()
    rows = {0: np.sort(np.random.default_rng(0).choice(N_ROWS, n_rows, replace=False)).astype(np.uint32)}
    gradient = {0: np.ones((n_rows, 1), np.float32)}
    position = client.attach(0, 0, time.monotonic_ns())
    n_steps, cpu = 0, time.process_time() + server.cpu_seconds()
    begun = time.perf_counter()
    while time.perf_counter() < begun + ROUND_SECONDS:
        ticket = client.pull(rows)
        client.wait(ticket)
        client.push(position, position, gradient, ticket)
        position, n_steps = position + 1, n_steps + 1
    client.flush()
    seconds = time.perf_counter() - begun
    cpu = time.process_time() + server.cpu_seconds() - cpu
    client.close()
    return n_steps / seconds, 1e6 * cpu / n_steps


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as root,
        running(root, is_encrypted=False) as plain,
        running(root, is_encrypted=True) as tls,
    ):
        times: dict[str, list[float]] = {"a bare connection": [], "handshake": [], "handshake and TLS": []}
        for _ in range(options.rounds):
            times["a bare connection"] += bare_connections(plain)
            times["handshake"] += connections(plain)
            times["handshake and TLS"] += connections(tls)
        for name, found in times.items():
            print(f"{name:20} {statistics.median(found):6.2f} ms")
        print(
            f"\n{'rows a step':>12} {'plain/s':>9} {'TLS/s':>9} {'ratio':>6}   {'plain us':>9} {'TLS us':>9}"
        )
        for n_rows in SIZES:
            pairs = [(steps(plain, n_rows), steps(tls, n_rows)) for _ in range(options.rounds)]
            rates = [statistics.median(pair[k][0] for pair in pairs) for k in range(2)]
            cpu = [statistics.median(pair[k][1] for pair in pairs) for k in range(2)]
            print(
                f"{n_rows:>12,} {rates[0]:>9,.0f} {rates[1]:>9,.0f} {rates[1] / rates[0]:>6.2f}   "
                f"{cpu[0]:>9,.0f} {cpu[1]:>9,.0f}"
            )


if __name__ == "__main__":
    main()
