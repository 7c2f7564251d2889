"""Run configs, shards and clients for tests of the parameter server that need no data."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cirrus.config import LeaseRange, ModelConfig, OptimizerConfig, RunConfig, StopConfig, TableConfig
from cirrus.metrics import RunStatus
from cirrus.paramserver import handshake
from cirrus.paramserver.client import Channel, ParameterClient
from cirrus.paramserver.codec import decode, decode_header, encode
from cirrus.paramserver.protocol import (
    HEADER,
    Challenge,
    Complete,
    Hello,
    Message,
    Proof,
    Register,
    Registered,
    Task,
    Welcome,
)
from cirrus.paramserver.server import Shard
from cirrus.run_folder import RunFolder

BATCH_ROWS = 10
N_ROWS = 1000


def make_leases(*n_steps: int) -> tuple[LeaseRange, ...]:
    """Return leases of so many steps each, one block of one chunk a lease."""
    return tuple(
        LeaseRange(chunk=0, first_block=i, n_blocks=1, n_rows=n * BATCH_ROWS, n_steps=n)
        for i, n in enumerate(n_steps)
    )


#: Leases of unlike lengths.
SOME_LEASES = make_leases(5, 3, 8, 1, 6, 4)


def make_table(
    name: str = "w",
    *,
    optimizer: str = "add",
    n_rows: int = N_ROWS,
    width: int = 1,
    n_shards: int = 1,
    initial_scale: float = 0.0,
    **rates: float,
) -> TableConfig:
    """Return a table that is cut into equal ranges."""
    return TableConfig(
        name=name,
        n_rows=n_rows,
        width=width,
        optimizer=OptimizerConfig(name=optimizer, **rates),
        boundaries=tuple(n_rows * shard // n_shards for shard in range(n_shards + 1)),
        initial_scale=initial_scale,
    )


def make_config(
    *,
    leases: Sequence[LeaseRange] = make_leases(2, 3, 1),
    n_shards: int = 1,
    tables: Sequence[TableConfig] | None = None,
    stop: Mapping[str, Any] | None = None,
    **options: Any,
) -> RunConfig:
    """Return the config of a run of two epochs over a few short leases."""
    return RunConfig(
        run_id="run",
        model=ModelConfig(name="logistic"),
        tables=tuple(tables) if tables is not None else (make_table(n_shards=n_shards),),
        train_url="nowhere",
        train_fingerprint="of nothing",
        n_features=N_ROWS,
        batch_size=BATCH_ROWS,
        leases=tuple(leases),
        stop=StopConfig(**{"epochs": 2, **(stop or {})}),
        n_shards=n_shards,
        **options,
    )


def create_run(path: Path | str, config: RunConfig) -> str:
    """Create the folder of a run; return its URL."""
    url = str(path)
    RunFolder(url).create(config)
    return url


class FrameReader:
    """Cuts the frames out of what a socket receives.

    Args:
        sock: The socket.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.received = b""
        self._sock = sock

    def fill(self) -> bool:
        """Receive something; False at the end of the connection."""
        try:
            data = self._sock.recv(65536)
        except ConnectionError:
            return False
        self.received += data
        return bool(data)

    def read(self) -> Message | None:
        """Return the next message, or None at the end of the connection."""
        while len(self.received) < HEADER.size or len(self.received) < self._frame_bytes():
            if not self.fill():
                return None
        header, size = decode_header(self.received), self._frame_bytes()
        body, self.received = self.received[HEADER.size : size], self.received[size:]
        return decode(header.kind, body)

    def _frame_bytes(self) -> int:
        return HEADER.size + decode_header(self.received).length


def greet_like_a_shard(sock: socket.socket, token: str) -> None:
    """Shake hands with a client as a shard with the token does; say nothing more."""
    reader = FrameReader(sock)
    challenge = Challenge(nonce=handshake.new_nonce())
    sock.sendall(encode(challenge, 0))
    hello, proof = reader.read(), reader.read()
    assert isinstance(hello, Hello)
    assert isinstance(proof, Proof)
    handshake.check(proof.proof, token, handshake.WORKER, challenge, hello)
    answer = handshake.prove(token, handshake.SHARD, challenge, hello)
    welcome = Welcome(shard=hello.shard, generation=hello.generation, proof=answer)
    sock.sendall(encode(welcome, 2))


class Shards:
    """All shards of a run, as threads of this process.

    Args:
        url: The run folder.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.folder = RunFolder(url)
        self.config = self.folder.config()
        self.token = self.folder.token()
        self.shards: dict[int, Shard] = {}
        self._opened: list[Channel | ParameterClient] = []
        for number in range(self.config.n_shards):
            self.start(number)

    def start(self, number: int) -> Shard:
        """Start a shard, or its next generation."""
        before = self.folder.shard_address(number)
        generation = 1 if before is None else before.generation + 1
        shard = Shard(self.url, shard=number, generation=generation)
        shard.start()
        self.shards[number] = shard
        return shard

    def replace(self, number: int) -> Shard:
        """Crash a shard, and start its next generation."""
        self.shards[number].crash()
        return self.start(number)

    def channel(self, number: int = 0, **options: Any) -> Channel:
        """Connect to a shard."""
        address = self.folder.shard_address(number)
        assert address is not None
        channel = Channel(address, self.token, **options)
        self._opened.append(channel)
        return channel

    def client(self, **options: Any) -> ParameterClient:
        """Connect to all shards."""
        addresses = []
        for number in range(self.config.n_shards):
            address = self.folder.shard_address(number)
            assert address is not None
            addresses.append(address)
        client = ParameterClient(addresses, self.token, self.config.tables, **options)
        self._opened.append(client)
        return client

    def worker(self, number: int = 0, *, generation: int = 1, role: str = "train") -> Channel:
        """Return the registered connection of a worker."""
        channel = self.channel()
        channel.ask(Register(worker=number, generation=generation, role=role), Registered)
        return channel

    def counts(self, name: str) -> list[int]:
        """Return one counter of every shard."""
        return [shard.counts()[f"shard{number}.{name}"] for number, shard in sorted(self.shards.items())]

    def weights(self, table: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Return a table, whole, as the shards hold it now."""
        pieces = []
        for _, shard in sorted(self.shards.items()):
            tables = shard.tables
            pieces.append(tables.parts(tables.values)[table].arrays["weights"])
        return np.concatenate(pieces)

    def wait(self, seconds: float = 20.0) -> RunStatus:
        """Wait until all shards have ended; return the run's status."""
        for number, shard in self.shards.items():
            assert shard.wait(seconds), f"shard {number} did not end; {self.folder.status()}"
        status = self.folder.status()
        assert status is not None
        return status

    def close(self) -> None:
        """End what is still there, as a killed process would."""
        for opened in self._opened:
            opened.close()
        for shard in self.shards.values():
            shard.crash()


@contextlib.contextmanager
def running(path: Path | str, config: RunConfig | None = None) -> Iterator[Shards]:
    """Run the shards of a new run (or one that is there, without a config) as long as the context lasts."""
    url = str(path)
    if config is not None:
        create_run(url, config)
    shards = Shards(url)
    try:
        yield shards
    finally:
        shards.close()


def complete(task: Task, generations: Sequence[int], n_steps: int, *, loss: float = 1.0) -> Complete:
    """Return a worker's word that a lease is done."""
    return Complete(
        epoch=task.epoch,
        lease=task.lease,
        grant=task.grant,
        generations=tuple(generations),
        loss_sum=loss * n_steps,
        weight_sum=float(n_steps),
        n_rows=n_steps * BATCH_ROWS,
        n_steps=n_steps,
    )
