"""A shard in a process of its own, and peers that misbehave towards it."""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from ps_runs import FrameReader

from cirrus.config import OptimizerConfig
from cirrus.paramserver import handshake
from cirrus.paramserver.client import Channel, ParameterClient
from cirrus.paramserver.codec import encode
from cirrus.paramserver.protocol import (
    HEADER,
    MAGIC,
    VERSION,
    Attach,
    Attached,
    Challenge,
    Error,
    ErrorCode,
    Hello,
    Message,
    Proof,
    Push,
    Section,
    StatisticsReply,
    StatisticsRequest,
    Welcome,
)
from cirrus.paramserver.standalone import create_standalone_run
from cirrus.run_folder import RunFolder, ShardAddress

SOCKET_SECONDS = 20.0
#: Rows of the probed shard's table: more than a pull of ten million.
N_ROWS = 12_000_000
#: The lease that probes push to; good workers have others.
PROBE_LEASE = 0
GOOD_LEASE = 1


class ProbedShard:
    """A shard without a job, as a process.

    Args:
        folder: For its run and its log.
        limits: Other than usual, as its command line takes them.
    """

    def __init__(self, folder: Path, **limits: float) -> None:
        optimizer = OptimizerConfig(name="add")
        self.url = create_standalone_run(str(folder), "probed", n_rows=N_ROWS, optimizer=optimizer)
        self.folder = RunFolder(self.url)
        self.token = self.folder.token()
        self.log = folder / "shard.log"
        command = [sys.executable, "-m", "cirrus.paramserver", "--run-url", self.url]
        command += ["--shard", "0", "--generation", "1"]
        command += [f"--limit={name}={value}" for name, value in limits.items()]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
            )
        assert self.process.stdout is not None
        self.process.stdout.readline()
        address = self.folder.shard_address(0)
        assert address is not None, self.log.read_text()
        self.address: ShardAddress = address
        self._grants = iter(range(1, 2**31))
        self._watched = psutil.Process(self.process.pid)

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def client(self, **options: Any) -> ParameterClient:
        """Return a good worker's connection."""
        return ParameterClient([self.address], self.token, self.folder.config().tables, **options)

    def channel(self) -> Channel:
        """Return a connection to ask things over."""
        return Channel(self.address, self.token)

    def attach(self, client: ParameterClient, lease: int) -> int:
        """Attach to a lease, whoever had it before; return the first position wanted."""
        return client.attach(0, lease, next(self._grants))

    def next_grant(self) -> int:
        """Return the number of a grant above all before."""
        return next(self._grants)

    def counts(self) -> dict[str, int]:
        """Return the shard's counters."""
        channel = self.channel()
        try:
            counts = channel.ask(StatisticsRequest(), StatisticsReply).counts
        finally:
            channel.close()
        return {name.removeprefix("shard0."): count for name, count in counts.items()}

    @property
    def memory_bytes(self) -> int:
        """How much memory it holds."""
        return int(self._watched.memory_info().rss)

    @property
    def n_threads(self) -> int:
        """How many threads it has."""
        return int(self._watched.num_threads())

    def assert_serves(self) -> None:
        """Check that it is the same process, that pushes and pulls work, and that it logged no traceback."""
        assert self.process.poll() is None, self.log.read_text()
        client = self.client()
        rows = {0: np.array([N_ROWS - 2], np.uint32)}
        before = client.wait(client.pull(rows))[0][0, 0]
        position = self.attach(client, GOOD_LEASE)
        client.push_rows(position, position, rows, {0: np.ones((1, 1), np.float32)})
        client.flush()
        assert client.wait(client.pull(rows))[0][0, 0] == before + 1
        client.close()
        assert "Traceback" not in self.log.read_text()


class Peer:
    """Somebody who is connected to a shard and says whatever a probe likes.

    Args:
        shard: To whom.
        is_known: Show the token.
    """

    def __init__(self, shard: ProbedShard, *, is_known: bool = True) -> None:
        self.sock = socket.create_connection((shard.address.host, shard.address.port), SOCKET_SECONDS)
        self._reader = FrameReader(self.sock)
        self._shard = shard
        if is_known:
            self.show_token()

    def show_token(self) -> None:
        """Shake hands."""
        challenge = self.read()
        assert isinstance(challenge, Challenge), challenge
        hello = Hello(shard=0, generation=1, nonce=handshake.new_nonce())
        proof = handshake.prove(self._shard.token, handshake.WORKER, challenge, hello)
        self.send(encode(hello, 1) + encode(Proof(proof=proof), 2))
        welcome = self.read()
        assert isinstance(welcome, Welcome), welcome

    def attach(self) -> int:
        """Attach to the probes' lease; return the first position wanted."""
        self.send(encode(Attach(epoch=0, lease=PROBE_LEASE, grant=self._shard.next_grant()), 3))
        attached = self.read()
        assert isinstance(attached, Attached), attached
        return attached.position

    def send(self, data: bytes) -> None:
        """Send bytes; a shard that has closed already is no error."""
        with contextlib.suppress(ConnectionError):
            self.sock.sendall(data)

    def read(self) -> Message | None:
        """Return the next message, or None at the end of the connection."""
        return self._reader.read()

    def assert_refused(self, code: ErrorCode, word: str) -> None:
        """Check that the next word is an error of this kind, and then the connection ends."""
        message = self.read()
        while isinstance(message, Challenge):
            message = self.read()
        assert isinstance(message, Error), message
        assert (message.code, word in message.message) == (code, True), message
        assert self.read() is None

    def close(self, *, reset: bool = False) -> None:
        """Hang up: in order (FIN) or not (RST)."""
        if reset:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


@contextlib.contextmanager
def peer(shard: ProbedShard, *, is_known: bool = True) -> Iterator[Peer]:
    """Connect for as long as the context lasts."""
    made = Peer(shard, is_known=is_known)
    try:
        yield made
    finally:
        made.close()


def header(kind: int, length: int, *, magic: int = MAGIC, version: int = VERSION) -> bytes:
    """Return the header of a frame of any kind and length."""
    return HEADER.pack(magic, version, kind, 9, length, 0)


def push(position: int, rows: np.ndarray, values: np.ndarray) -> bytes:
    """Return a push of the probes' lease."""
    section = Section(table=0, ids=rows.astype(np.uint32), values=values.astype(np.float32))
    message = Push(epoch=0, lease=PROBE_LEASE, position=position, step=position, sections=(section,))
    return encode(message, 9)


class GoodWorkers:
    """Workers that pull and push as fast as they can, in threads.

    Args:
        shard: To whom.
        n_workers: How many.
    """

    def __init__(self, shard: ProbedShard, n_workers: int) -> None:
        self._shard = shard
        self._clients = [shard.client() for _ in range(n_workers)]
        self._rows = [np.arange(i, 200_000, 200, dtype=np.uint32) for i in range(n_workers)]

    def threads(self, seconds: float, counts: list[int]) -> list[threading.Thread]:
        """Return threads that work so long, and leave their numbers of steps in ``counts``."""
        counts[:] = [0] * len(self._clients)
        return [
            threading.Thread(target=self._work, args=(i, seconds, counts)) for i in range(len(self._clients))
        ]

    def _work(self, number: int, seconds: float, counts: list[int]) -> None:
        client, rows = self._clients[number], {0: self._rows[number]}
        gradient = {0: np.zeros((len(self._rows[number]), 1), np.float32)}
        position = self._shard.attach(client, GOOD_LEASE + 1 + number)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            ticket = client.pull(rows)
            client.wait(ticket)
            client.push(position, position, gradient, ticket)
            position += 1
            counts[number] += 1
        client.flush()

    def close(self) -> None:
        """Hang up."""
        for client in self._clients:
            client.close()


def steps_at_once(teams: Sequence[GoodWorkers], seconds: float) -> list[int]:
    """Have several teams work at the same time; return the steps of each."""
    counts: list[list[int]] = [[] for _ in teams]
    threads = [
        thread for team, own in zip(teams, counts, strict=True) for thread in team.threads(seconds, own)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [sum(own) for own in counts]
