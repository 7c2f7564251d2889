"""How the shards of a run talk to each other: short requests over the same protocol that workers use."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, TypeVar

from cirrus.config import RunConfig
from cirrus.errors import ConnectionLostError, ProtocolError, ShardError
from cirrus.paramserver.client import Channel
from cirrus.paramserver.protocol import Message
from cirrus.run_folder import RunFolder

if TYPE_CHECKING:
    import ssl

M = TypeVar("M")

#: A shard that does not answer for this long is stopped or cut off.
PEER_SECONDS = 5.0
CONNECT_SECONDS = 2.0


class _Line:
    """The connection to one peer; one question at a time."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.channel: Channel | None = None

    def hang_up(self) -> None:
        """Close the connection; somebody who waits for an answer gets an error."""
        channel = self.channel
        if channel is not None:
            channel.close()


class Peers:
    """Connections to the other shards, made when needed and made anew when lost.

    Several threads may ask at once; those who ask the same shard wait for each other.

    Args:
        folder: Where the shards announce their addresses.
        config: The run.
        token: The run's secret.
        shard: Who asks.
        tls: What they are recognised by, in runs with TLS.
    """

    def __init__(
        self,
        folder: RunFolder,
        config: RunConfig,
        token: str,
        shard: int,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._tls = tls
        self._folder = folder
        self._token = token
        self._shard = shard
        self._lines = {peer: _Line() for peer in range(config.n_shards)}
        self._closed = threading.Event()

    def call(self, peer: int, message: Message, timeout_seconds: float = PEER_SECONDS) -> Message:
        """Ask another shard and return its answer.

        Raises:
            ConnectionLostError: It cannot be reached.
            ShardError: It refused.
            SupersededError: It is not the generation that is announced, or says that the asker is not.
        """
        line = self._lines[peer]
        with line.lock:
            if line.channel is None:
                line.channel = self._connect(peer)
            try:
                # Once the connection is there to be closed: close() closes what it finds.
                self._check_open()
                line.channel.set_timeout(timeout_seconds)
                return line.channel.call(message)
            except (ConnectionLostError, ShardError, OSError) as error:
                line.hang_up()
                line.channel = None
                if isinstance(error, OSError):
                    raise ConnectionLostError("this shard is going down") from error
                raise

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise ConnectionLostError("this shard is going down")

    def _connect(self, peer: int) -> Channel:
        address = self._folder.shard_address(peer)
        if address is None:
            raise ConnectionLostError(f"shard {peer} has not announced an address")
        return Channel(address, self._token, tls=self._tls, timeout_seconds=CONNECT_SECONDS)

    def ask(self, peer: int, message: Message, answer: type[M]) -> M:
        """As :meth:`call`, for an answer of one kind."""
        reply = self.call(peer, message)
        if not isinstance(reply, answer):
            raise ProtocolError(f"shard {peer} answered with {type(reply).__name__}")
        return reply

    def forget(self, peer: int) -> None:
        """Close the connection to a shard: another incarnation of it is to be asked."""
        line = self._lines[peer]
        with line.lock:
            line.hang_up()
            line.channel = None

    def close(self) -> None:
        """Close all connections, and make no more; questions under way end with an error."""
        self._closed.set()
        for line in self._lines.values():
            line.hang_up()
