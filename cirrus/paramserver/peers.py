"""How the shards of a run talk to each other: short requests over the same protocol that workers use."""

from __future__ import annotations

import threading
from typing import TypeVar

from cirrus.config import RunConfig
from cirrus.errors import ConnectionLostError, ProtocolError, ShardError
from cirrus.paramserver.client import Channel
from cirrus.paramserver.protocol import Message
from cirrus.run_folder import RunFolder

M = TypeVar("M")

#: A shard that does not answer for this long is stopped or cut off.
PEER_SECONDS = 5.0
CONNECT_SECONDS = 2.0


class Peers:
    """Connections to the other shards, made when needed and made anew when lost.

    Args:
        folder: Where the shards announce their addresses.
        config: The run.
        token: The run's secret.
        shard: Who asks.
    """

    def __init__(self, folder: RunFolder, config: RunConfig, token: str, shard: int) -> None:
        self._folder = folder
        self._n_shards = config.n_shards
        self._token = token
        self._shard = shard
        self._channels: dict[int, Channel] = {}
        self._lock = threading.Lock()
        self._closed = False

    def call(self, peer: int, message: Message, timeout_seconds: float = PEER_SECONDS) -> Message:
        """Ask another shard and return its answer.

        Raises:
            ConnectionLostError: It cannot be reached.
            ShardError: It refused.
        """
        with self._lock:
            if self._closed:
                raise ConnectionLostError("this shard is going down")
            channel = self._channels.get(peer)
            if channel is None:
                channel = self._channels[peer] = self._connect(peer)
            try:
                channel.set_timeout(timeout_seconds)
                return channel.call(message)
            except (ConnectionLostError, ShardError):
                channel.close()
                self._channels.pop(peer, None)
                raise

    def _connect(self, peer: int) -> Channel:
        address = self._folder.shard_address(peer)
        if address is None:
            raise ConnectionLostError(f"shard {peer} has not announced an address")
        return Channel(address, self._token, timeout_seconds=CONNECT_SECONDS)

    def ask(self, peer: int, message: Message, answer: type[M]) -> M:
        """As :meth:`call`, for an answer of one kind."""
        reply = self.call(peer, message)
        if not isinstance(reply, answer):
            raise ProtocolError(f"shard {peer} answered with {type(reply).__name__}")
        return reply

    def close(self) -> None:
        """Close all connections, and make no more."""
        with self._lock:
            self._closed = True
            for channel in self._channels.values():
                channel.close()
            self._channels.clear()
