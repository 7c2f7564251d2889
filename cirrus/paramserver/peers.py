"""How the shards of a run talk to each other: short requests over the same protocol that workers use."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from cirrus.config import RunConfig
from cirrus.errors import CirrusError, ConnectionLostError, ProtocolError, ShardError
from cirrus.paramserver.client import Channel
from cirrus.paramserver.protocol import Message
from cirrus.run_folder import RunFolder

if TYPE_CHECKING:
    import ssl

M = TypeVar("M")
T = TypeVar("T")

#: A shard that does not answer for this long is stopped or cut off.
PEER_SECONDS = 5.0
CONNECT_SECONDS = 2.0


def at_once(
    ask: Callable[[int], T], peers: Sequence[int], meanwhile: Callable[[], None] = lambda: None
) -> Mapping[int, T | CirrusError]:
    """Ask several shards at the same time: those that hang cost the time of one.

    Args:
        ask: Asks one, in a thread of its own.
        peers: Which shards.
        meanwhile: Called in this thread while they are asked.

    Returns:
        Of each shard what came of it, or the error.
    """
    found: dict[int, T | CirrusError] = {}
    bugs: list[Exception] = []

    def attempt(peer: int) -> None:
        try:
            found[peer] = ask(peer)
        except CirrusError as error:
            found[peer] = error
        except Exception as error:  # noqa: BLE001 (raised below, in the thread that can say so)
            bugs.append(error)

    # No pool: those of the library start no thread any more once the interpreter ends, and shards may be in
    # the client's own process.
    threads = [threading.Thread(target=attempt, args=(peer,), daemon=True) for peer in peers]
    for thread in threads:
        thread.start()
    try:
        meanwhile()
    finally:
        for thread in threads:
            thread.join()
    if bugs:
        raise bugs[0]
    return found


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

    Several threads may ask at once; those who ask the same shard wait for each other. What takes a shard long
    goes over a connection of its own, so that it can be asked meanwhile whether it lives.

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
        self._lines = {
            (peer, takes_long): _Line() for peer in range(config.n_shards) for takes_long in (False, True)
        }
        self._closed = threading.Event()

    def call(self, peer: int, message: Message, timeout_seconds: float = PEER_SECONDS) -> Message:
        """Ask another shard and return its answer.

        Args:
            peer: Which shard.
            message: The question.
            timeout_seconds: How long the answer may take.

        Raises:
            ConnectionLostError: It cannot be reached.
            ShardError: It refused.
            SupersededError: It is not the generation that is announced, or says that the asker is not.
        """
        line = self._lines[peer, timeout_seconds > PEER_SECONDS]
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

    def ask(self, peer: int, message: Message, answer: type[M], timeout_seconds: float = PEER_SECONDS) -> M:
        """As :meth:`call`, for an answer of one kind."""
        reply = self.call(peer, message, timeout_seconds)
        if not isinstance(reply, answer):
            raise ProtocolError(f"shard {peer} answered with {type(reply).__name__}")
        return reply

    def forget(self, peer: int) -> None:
        """Close the connections to a shard: another incarnation of it is to be asked."""
        for takes_long in (False, True):
            line = self._lines[peer, takes_long]
            with line.lock:
                line.hang_up()
                line.channel = None

    def close(self) -> None:
        """Close all connections, and make no more; questions under way end with an error."""
        self._closed.set()
        for line in self._lines.values():
            line.hang_up()
