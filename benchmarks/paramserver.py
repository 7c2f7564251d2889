"""What a shard takes, beside what a raw socket and a bare kernel take, measured side by side in one run.

For pushes the limit is ``1 / (1 / raw + 1 / kernel)``: a byte has to come in, and then be applied. ``raw`` is
a process that receives messages of the same size and does nothing with them, ``kernel`` the optimizer's
kernel on ids and gradients that are in memory. For pulls it is a process that answers a request of the same
size with as many bytes as the values take.

The load generators send frames that were encoded before, so that the shard is measured and not the client;
the client's own rate is printed too. Rounds are interleaved and medians printed, since other work on the
machine comes and goes::

    python benchmarks/paramserver.py --rounds 5
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection as Pipe

import numpy as np

from cirrus.config import OptimizerConfig
from cirrus.paramserver import kernels
from cirrus.paramserver.client import Channel, ParameterClient
from cirrus.paramserver.codec import encode
from cirrus.paramserver.protocol import HEADER, Attach, Pull, Push, Section
from cirrus.paramserver.standalone import create_standalone_run
from cirrus.paramserver.tables import hyper_row
from cirrus.run_folder import RunFolder, ShardAddress

N_ROWS = 2**20
SIZES = (1_000, 10_000)
N_CLIENTS = (1, 2)
N_FRAMES = 64
#: Where a push's position lies in its frame.
POSITION_OFFSET = HEADER.size + 8
POSITION = struct.Struct("<I")


def frames_of(n_values: int, seed: int, lease: int) -> list[bytearray]:
    """Return pushes to rows drawn at random; their positions are written in as they are sent."""
    rng = np.random.default_rng(seed)
    frames = []
    for request in range(N_FRAMES):
        ids = np.sort(rng.choice(N_ROWS, n_values, replace=False)).astype(np.uint32)
        values = rng.normal(size=n_values).astype(np.float32)
        push = Push(
            epoch=0, lease=lease, position=0, step=0, sections=(Section(table=0, ids=ids, values=values),)
        )
        frames.append(bytearray(encode(push, request + 1)))
    return frames


def drain(sock: socket.socket, stop: threading.Event) -> None:
    """Throw away what comes back, so that the peer is never held up."""
    buffer = bytearray(1 << 20)
    while not stop.is_set():
        try:
            if sock.recv_into(buffer) == 0:
                return
        except (BlockingIOError, TimeoutError):
            continue
        except OSError:
            return


def push_load(pipe: Pipe, address: ShardAddress, token: str, n_values: int, client: int) -> None:
    """A process that pushes when told to, one frame a call, as fast as the shard takes them."""
    channel = Channel(address, token)
    sock = channel.detach()
    frames = frames_of(n_values, client, client)
    stop = threading.Event()
    position = 0
    attached = False
    while True:
        seconds = pipe.recv()
        if seconds is None:
            break
        if not attached:
            sock.sendall(encode(Attach(epoch=0, lease=client, grant=1), 1))
            threading.Thread(target=drain, args=(sock, stop), daemon=True).start()
            attached = True
        end = time.perf_counter() + seconds
        n_sent = 0
        while time.perf_counter() < end:
            for frame in frames:
                POSITION.pack_into(frame, POSITION_OFFSET, position)
                sock.sendall(frame)
                position += 1
            n_sent += N_FRAMES
        pipe.send(n_sent)
    stop.set()
    sock.close()


def raw_load(pipe: Pipe, port: int, n_values: int) -> None:
    """As :func:`push_load`, to a sink that does nothing."""
    sock = socket.create_connection(("127.0.0.1", port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    frames = frames_of(n_values, 0, 0)
    while True:
        seconds = pipe.recv()
        if seconds is None:
            return
        end = time.perf_counter() + seconds
        n_sent = 0
        while time.perf_counter() < end:
            for frame in frames:
                sock.sendall(frame)
            n_sent += N_FRAMES
        pipe.send(n_sent)


def sink(listener: socket.socket) -> None:
    """Receive and forget, a thread a connection."""

    def serve(sock: socket.socket) -> None:
        buffer = bytearray(1 << 20)
        while sock.recv_into(buffer):
            pass

    while True:
        sock, _ = listener.accept()
        threading.Thread(target=serve, args=(sock,), daemon=True).start()


def echo(listener: socket.socket, request_bytes: int, reply_bytes: int) -> None:
    """Answer every ``request_bytes`` with ``reply_bytes``."""
    reply = bytes(reply_bytes)

    def serve(sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        buffer = memoryview(bytearray(request_bytes))
        while True:
            got = 0
            while got < request_bytes:
                received = sock.recv_into(buffer[got:])
                if not received:
                    return
                got += received
            sock.sendall(reply)

    while True:
        sock, _ = listener.accept()
        threading.Thread(target=serve, args=(sock,), daemon=True).start()


def pull_load(
    pipe: Pipe, address: tuple[str, int], token: str | None, n_values: int, reply_bytes: int
) -> None:
    """A process that sends a request and waits for the answer, again and again."""
    rng = np.random.default_rng(0)
    ids = [np.sort(rng.choice(N_ROWS, n_values, replace=False)).astype(np.uint32) for _ in range(8)]
    requests = [encode(Pull(sections=(Section(table=0, ids=i),)), 1) for i in ids]
    longest = max(len(r) for r in requests)
    if token is None:
        requests = [r.ljust(longest, b"\0") for r in requests]
        sock = socket.create_connection(address)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    else:
        shard = ShardAddress(shard=0, generation=1, host=address[0], port=address[1])
        sock = Channel(shard, token).detach()
    buffer = memoryview(bytearray(reply_bytes))
    while True:
        seconds = pipe.recv()
        if seconds is None:
            return
        end = time.perf_counter() + seconds
        n_done = 0
        while time.perf_counter() < end:
            for request in requests:
                sock.sendall(request)
                got = 0
                while got < reply_bytes:
                    got += sock.recv_into(buffer[got:])
            n_done += len(requests)
        pipe.send(n_done)


def client_load(pipe: Pipe, address: ShardAddress, token: str, run_url: str, n_values: int) -> None:
    """A process that pulls and pushes as a worker does, with the real client."""
    config = RunFolder(run_url).config()
    client = ParameterClient([address], token, config.tables)
    rng = np.random.default_rng(0)
    ids = [np.sort(rng.choice(N_ROWS, n_values, replace=False)).astype(np.uint32) for _ in range(8)]
    gradient = rng.normal(size=(n_values, 1)).astype(np.float32)
    position = client.attach(0, 60, 1)
    while True:
        seconds = pipe.recv()
        if seconds is None:
            return
        end = time.perf_counter() + seconds
        n_done = 0
        ticket = client.pull({0: ids[0]})
        while time.perf_counter() < end:
            for i in range(1, 9):
                following = client.pull({0: ids[i % 8]})
                client.wait(ticket)
                client.push(position, position, {0: gradient}, ticket)
                ticket = following
                position += 1
            n_done += 8
        client.wait(ticket)
        client.flush()
        pipe.send(n_done)


def kernel_rate(n_values: int, seconds: float) -> float:
    """Return how many times a second the bare AdaGrad kernel updates ``n_values`` rows."""
    rng = np.random.default_rng(0)
    ids = [np.sort(rng.choice(N_ROWS, n_values, replace=False)).astype(np.uint32) for _ in range(N_FRAMES)]
    gradients = [rng.normal(size=n_values).astype(np.float32) for _ in range(N_FRAMES)]
    layout = np.array([0, 0, N_ROWS, 1, 2, kernels.ADAGRAD], np.int64)
    hyper = hyper_row(OptimizerConfig(name="adagrad"))
    values = np.empty(2 * N_ROWS, np.float32)
    values.fill(0.0)
    end = time.perf_counter() + seconds
    n_done = 0
    while time.perf_counter() < end:
        for rows, gradient in zip(ids, gradients, strict=True):
            kernels.apply_rows(layout, hyper, values, rows, gradient, 0)
        n_done += N_FRAMES
    return n_done / seconds


class Load:
    """Processes that make load together.

    Args:
        target: What each runs; gets a pipe and ``arguments``.
        arguments: One tuple a process.
    """

    def __init__(self, target: Callable[..., None], arguments: list[tuple[object, ...]]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes = []
        self._processes = []
        for extra in arguments:
            ours, theirs = context.Pipe()
            process = context.Process(target=target, args=(theirs, *extra), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def rate(self, seconds: float) -> float:
        """Make load for a while; return operations a second of all processes together."""
        for pipe in self._pipes:
            pipe.send(seconds)
        started = time.perf_counter()
        total = sum(pipe.recv() for pipe in self._pipes)
        return float(total) / (time.perf_counter() - started)

    def close(self) -> None:
        """End the processes."""
        for pipe in self._pipes:
            pipe.send(None)
        for process in self._processes:
            process.join(5)
            process.kill()


@contextmanager
def server_process(target: Callable[..., None], *arguments: object) -> Iterator[int]:
    """Run a small server in a process of its own; yield its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=target, args=(listener, *arguments), daemon=True)
    process.start()
    try:
        yield listener.getsockname()[1]
    finally:
        process.kill()
        process.join()
        listener.close()


@contextmanager
def shard_process() -> Iterator[tuple[str, ShardAddress, str]]:
    """Run a shard in a process of its own; yield run URL, address and token."""
    with tempfile.TemporaryDirectory() as folder:
        url = create_standalone_run(folder, "benchmark")
        command = [sys.executable, "-m", "cirrus.paramserver", "--run-url", url, "--shard", "0"]
        process = subprocess.Popen(
            [*command, "--generation", "1"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            process.stdout.readline()
            run = RunFolder(url)
            address = run.shard_address(0)
            assert address is not None
            yield url, address, run.token()
        finally:
            process.stdin.close()
            process.wait(30)


def medians(loads: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Measure all loads in turn, ``rounds`` times; return the median of each."""
    for load in loads.values():
        load()
    measured: dict[str, list[float]] = {name: [] for name in loads}
    for _ in range(rounds):
        for name, load in loads.items():
            measured[name].append(load())
    return {name: statistics.median(values) for name, values in measured.items()}


def measure_pushes(n_values: int, n_clients: int, rounds: int, seconds: float) -> None:
    """Print a row about pushes."""
    with server_process(sink) as port, shard_process() as (_, address, token):
        raw = Load(raw_load, [(port, n_values)] * n_clients)
        shard = Load(push_load, [(address, token, n_values, k) for k in range(n_clients)])
        rates = medians(
            {
                "raw": lambda: raw.rate(seconds),
                "kernel": lambda: kernel_rate(n_values, seconds),
                "shard": lambda: shard.rate(seconds),
            },
            rounds,
        )
        raw.close()
        shard.close()
    limit = 1 / (1 / rates["raw"] + 1 / rates["kernel"])
    print(
        f"push {n_values:6d} values, {n_clients} client(s): shard {rates['shard']:9,.0f}/s   raw"
        f" {rates['raw']:9,.0f}/s   kernel {rates['kernel']:9,.0f}/s   limit {limit:9,.0f}/s   shard/limit"
        f" {rates['shard'] / limit:5.0%}",
        flush=True,
    )


def measure_pulls(n_values: int, n_clients: int, rounds: int, seconds: float) -> None:
    """Print a row about pulls."""
    rng = np.random.default_rng(0)
    ids = np.sort(rng.choice(N_ROWS, n_values, replace=False)).astype(np.uint32)
    request_bytes = len(encode(Pull(sections=(Section(table=0, ids=ids),)), 1))
    reply_bytes = 48 + 4 * n_values
    with server_process(echo, request_bytes, reply_bytes) as port, shard_process() as (_, address, token):
        raw = Load(pull_load, [(("127.0.0.1", port), None, n_values, reply_bytes)] * n_clients)
        shard = Load(pull_load, [((address.host, address.port), token, n_values, reply_bytes)] * n_clients)
        rates = medians(
            {"raw": lambda: raw.rate(seconds), "shard": lambda: shard.rate(seconds)},
            rounds,
        )
        raw.close()
        shard.close()
    print(
        f"pull {n_values:6d} values, {n_clients} client(s): shard {rates['shard']:9,.0f}/s   raw echo"
        f" {rates['raw']:9,.0f}/s   shard/raw {rates['shard'] / rates['raw']:5.0%}",
        flush=True,
    )


def measure_client(n_values: int, rounds: int, seconds: float) -> None:
    """Print a row about the real client: pull, then push of the same rows."""
    with shard_process() as (url, address, token):
        load = Load(client_load, [(address, token, url, n_values)])
        rate = medians({"client": lambda: load.rate(seconds)}, rounds)["client"]
        load.close()
    print(f"steps (pull, push) of {n_values:6d} values by 1 worker's client: {rate:9,.0f}/s", flush=True)


def main() -> None:
    """Measure everything."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores; medians of {options.rounds} rounds of {options.seconds:g} s, interleaved")
    for n_values in SIZES:
        for n_clients in N_CLIENTS:
            measure_pushes(n_values, n_clients, options.rounds, options.seconds)
    for n_values in SIZES:
        for n_clients in N_CLIENTS:
            measure_pulls(n_values, n_clients, options.rounds, options.seconds)
    for n_values in SIZES:
        measure_client(n_values, options.rounds, options.seconds)


if __name__ == "__main__":
    main()
