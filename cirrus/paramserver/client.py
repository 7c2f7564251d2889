"""The worker's side of the parameter server: numpy and lz4, no threads.

:class:`Channel` asks one shard and waits for the answer. :class:`ParameterClient` talks to all shards of a
run: it cuts sorted ids at the shards' range boundaries, asks all of them before it waits for the first, and
sends pushes without waiting, up to a window of unacknowledged ones.
"""

from __future__ import annotations

import contextlib
import select
import socket
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from cirrus.config import TableConfig
from cirrus.errors import (
    AuthenticationError,
    CirrusError,
    ConnectionLostError,
    LeaseLostError,
    LimitError,
    ProtocolError,
    RegistrationError,
    ShardError,
    SupersededError,
    VersionMismatchError,
)
from cirrus.paramserver import handshake
from cirrus.paramserver.codec import Buffer, decode, decode_header, encode, encode_parts
from cirrus.paramserver.protocol import (
    HEADER,
    MAX_PULL_VALUES,
    Ack,
    Attach,
    Attached,
    Challenge,
    Error,
    ErrorCode,
    Hello,
    Ids,
    Message,
    NeedIds,
    Proof,
    Pull,
    Push,
    Section,
    Values,
    ValuesReply,
    Welcome,
)
from cirrus.paramserver.sockets import close, configure, set_timeout, skip
from cirrus.run_folder import ShardAddress

if TYPE_CHECKING:
    import ssl

M = TypeVar("M")

CONNECT_SECONDS = 5.0
#: A shard that does not answer for this long is given up; snapshots hold pushes back for far less.
REPLY_SECONDS = 30.0
#: Pushes that may be under way to one shard.
WINDOW_PUSHES = 16
#: Bytes of pushes that may be under way to one shard.
WINDOW_BYTES = 32 * 2**20
BUFFER_BYTES = 256 * 1024
#: The reason for which a shard hung up has this long to come.
LAST_WORDS_SECONDS = 1.0
#: A push up to this size is held until the next pull is sent with it: one system call and one wake-up of the
#: shard instead of two.
CORK_BYTES = 256 * 1024

_ERRORS: Mapping[int, type[CirrusError]] = {
    ErrorCode.PROTOCOL: ProtocolError,
    ErrorCode.VERSION: VersionMismatchError,
    ErrorCode.AUTHENTICATION: AuthenticationError,
    ErrorCode.SUPERSEDED: SupersededError,
    ErrorCode.REGISTRATION: RegistrationError,
    ErrorCode.LEASE_LOST: LeaseLostError,
    ErrorCode.INTERNAL: ShardError,
    ErrorCode.LIMIT: LimitError,
}


class Channel:
    """One connection to one shard: send a message, read the answer.

    Args:
        address: Of the shard.
        token: The run's secret.
        tls: What the shard is recognised by, in runs with TLS.
        timeout_seconds: For connecting and the handshake.

    Raises:
        ConnectionLostError: Nobody answers there.
        SupersededError: Another generation of the shard does.
        AuthenticationError: One of the two does not have the run's token.
        LimitError: The shard has too many connections.
    """

    def __init__(
        self,
        address: ShardAddress,
        token: str,
        *,
        tls: ssl.SSLContext | None = None,
        timeout_seconds: float = CONNECT_SECONDS,
    ) -> None:
        self.address = address
        self._request = 0
        self._buffer = np.empty(BUFFER_BYTES, np.uint8)
        self._view = memoryview(self._buffer)
        self._start = 0
        self._end = 0
        self._name = f"shard {address.shard} at {address.host}:{address.port}"
        try:
            self._sock = socket.create_connection((address.host, address.port), timeout_seconds)
        except OSError as error:
            raise ConnectionLostError(f"cannot reach {self._name}: {error}") from error
        try:
            configure(self._sock, timeout_seconds, timeout_seconds)
            if tls is not None:
                self._encrypt(tls, timeout_seconds)
            self._shake_hands(token)
            self.set_timeout(REPLY_SECONDS)
        except BaseException:
            self.close()
            raise

    def _encrypt(self, context: ssl.SSLContext, timeout_seconds: float) -> None:
        import ssl

        from cirrus.paramserver import tls

        self._sock.settimeout(timeout_seconds)
        try:
            self._sock = tls.connect(context, self._sock, self.address.shard)
        except ssl.SSLCertVerificationError as error:
            raise AuthenticationError(f"{self._name} has no certificate of this run: {error}") from error
        except OSError as error:
            raise ConnectionLostError(f"{self._name} does not speak TLS: {error}") from error
        set_timeout(self._sock, timeout_seconds, timeout_seconds)

    def _shake_hands(self, token: str) -> None:
        """Prove to each other that both have the token."""
        hello = Hello(
            shard=self.address.shard, generation=self.address.generation, nonce=handshake.new_nonce()
        )
        self.send(hello)
        _, challenge = self.receive()
        if not isinstance(challenge, Challenge):
            raise ProtocolError(f"{self._name} began with {type(challenge).__name__}")
        proof = handshake.prove(token, handshake.WORKER, challenge, hello)
        welcome = self.ask(Proof(proof=proof), Welcome)
        try:
            handshake.check(welcome.proof, token, handshake.SHARD, challenge, hello)
        except AuthenticationError as error:
            raise AuthenticationError(f"{self._name} does not have the run's token: {error}") from error

    def set_timeout(self, seconds: float) -> None:
        """Wait this long for an answer, from now on."""
        set_timeout(self._sock, seconds, seconds)

    def close(self) -> None:
        """Close the connection."""
        close(self._sock)

    def detach(self) -> socket.socket:
        """Hand the socket over, handshake done, to somebody who speaks the protocol himself."""
        return self._sock

    def call(self, message: Message) -> Message:
        """Send a message and return the answer.

        Raises:
            ConnectionLostError: The shard went away.
            ShardError: It refused.
            ProtocolError: It said something else than was asked.
        """
        request = self.send(message)
        got, reply = self.receive()
        if got != request:
            raise ProtocolError(f"{self._name} answered request {got} instead of {request}")
        return reply

    def ask(self, message: Message, answer: type[M]) -> M:
        """As :meth:`call`, for an answer of one kind.

        Raises:
            ProtocolError: It is of another kind.
        """
        reply = self.call(message)
        if not isinstance(reply, answer):
            asked = type(message).__name__
            raise ProtocolError(f"{self._name} answered {asked} with {type(reply).__name__}")
        return reply

    def next_request(self) -> int:
        """Return a new request number."""
        self._request = self._request % 0xFFFF_FFFF + 1
        return self._request

    def send(self, message: Message) -> int:
        """Send a message and return its request number."""
        request = self.next_request()
        self.send_parts([encode(message, request)])
        return request

    def send_parts(self, parts: Sequence[Buffer]) -> None:
        """Send a frame in pieces; take in what the shard sends while it does not read.

        Otherwise a client that sends much, to a shard that answers much, would wait for it for ever, and it
        for the client.
        """
        views = [memoryview(part).cast("B") for part in parts if len(part)]
        try:
            while views:
                try:
                    sent = self._sock.sendmsg(views, [], socket.MSG_DONTWAIT)
                except BlockingIOError:
                    self._wait_until_writable()
                else:
                    views = skip(views, sent)
        except OSError as error:
            self._hear_last_words()
            raise ConnectionLostError(f"{self._name} went away: {error}") from error

    def _hear_last_words(self) -> None:
        """The shard hung up on what was being sent: raise its reason, if it gave one."""
        # Also where another thread of this process has closed the socket.
        with contextlib.suppress(OSError):
            self.set_timeout(LAST_WORDS_SECONDS)
            while True:
                self.receive()

    def _wait_until_writable(self) -> None:
        poller = select.poll()
        poller.register(self._sock, select.POLLIN | select.POLLOUT)
        events = poller.poll(REPLY_SECONDS * 1000)
        if not events:
            raise TimeoutError("it took nothing for too long")
        if events[0][1] & (select.POLLIN | select.POLLHUP | select.POLLERR):
            self._fill()

    def _fill(self) -> None:
        """Receive whatever is there, at least one byte."""
        if self._start == self._end:
            self._start = self._end = 0
        if self._end == len(self._buffer):
            left = self._end - self._start
            size = len(self._buffer)
            if left > size // 2:
                size *= 2
            larger = np.empty(size, np.uint8)
            larger[:left] = self._buffer[self._start : self._end]
            self._buffer, self._view = larger, memoryview(larger)
            self._start, self._end = 0, left
        try:
            received = self._sock.recv_into(self._view[self._end :])
        except BlockingIOError as error:
            raise ConnectionLostError(f"{self._name} does not answer") from error
        except OSError as error:
            raise ConnectionLostError(f"{self._name} went away: {error}") from error
        if received == 0:
            raise ConnectionLostError(f"{self._name} closed the connection")
        self._end += received

    def receive(self) -> tuple[int, Message]:
        """Read one message and its request number; errors are raised."""
        while True:
            if self._end - self._start >= HEADER.size:
                header = decode_header(self._view[self._start : self._end])
                stop = self._start + HEADER.size + header.length
                if stop <= self._end:
                    break
            self._fill()
        # The buffer is used again, so what outlives this call has to be a copy.
        body = bytes(self._view[self._start + HEADER.size : stop])
        self._start = stop
        message = decode(header.kind, body)
        if isinstance(message, Error):
            kind = _ERRORS.get(message.code, ShardError)
            raise kind(f"{self._name}: {message.message}")
        return header.request, message


@dataclass(slots=True)
class _Unacknowledged:
    request: int
    push: Push
    ids: dict[int, Ids]
    """Table to the ids that the push names by a pull."""
    n_bytes: int


class _ShardLink:
    """The data connection to one shard, with pulls and pushes under way."""

    def __init__(self, channel: Channel, *, float16: bool, compressed: bool) -> None:
        self.channel = channel
        self.mark = 0
        """The first position that the shard has not applied."""
        self._float16 = float16
        self._compressed = compressed
        self._replies: dict[int, ValuesReply] = {}
        self._window: deque[_Unacknowledged] = deque()
        self._window_bytes = 0
        self._corked: list[Buffer] = []

    def pull(self, sections: tuple[Section, ...]) -> int:
        message = Pull(sections=sections, float16=self._float16, compressed=self._compressed)
        request = self.channel.next_request()
        self._corked += encode_parts(message, request, compressed=self._compressed)
        self.uncork()
        return request

    def uncork(self) -> None:
        """Send the pushes that were held for the next pull to go with them."""
        if self._corked:
            parts, self._corked = self._corked, []
            self.channel.send_parts(parts)

    def wait(self, request: int) -> ValuesReply:
        while request not in self._replies:
            self._take_one()
        return self._replies.pop(request)

    def push(self, push: Push, ids: dict[int, Ids]) -> None:
        while len(self._window) >= WINDOW_PUSHES or self._window_bytes > WINDOW_BYTES:
            self._take_one()
        self._send_push(push, ids)

    def _send_push(self, push: Push, ids: dict[int, Ids]) -> None:
        request = self.channel.next_request()
        parts = encode_parts(push, request, float16=self._float16, compressed=self._compressed)
        n_bytes = sum(len(part) for part in parts)
        self._window.append(_Unacknowledged(request, push, ids, n_bytes))
        self._window_bytes += n_bytes
        self._corked += parts
        if n_bytes > CORK_BYTES:
            self.uncork()

    def flush(self) -> None:
        """Wait until every push was acknowledged."""
        while self._window:
            self._take_one()

    def attach(self, message: Attach) -> int:
        """Attach to a lease; return the first position that the shard has not applied."""
        self.flush()
        self.mark = self.ask(message, Attached).position
        return self.mark

    def ask(self, message: Message, answer: type[M]) -> M:
        """Ask the shard something while pulls and pushes are under way."""
        self.uncork()
        request = self.channel.send(message)
        while True:
            got, reply = self.channel.receive()
            if got == request and isinstance(reply, answer):
                return reply
            self._deal(got, reply)

    def _take_one(self) -> None:
        self.uncork()
        got, reply = self.channel.receive()
        self._deal(got, reply)

    def _deal(self, request: int, reply: Message) -> None:
        if isinstance(reply, ValuesReply):
            self._replies[request] = reply
        elif isinstance(reply, Ack):
            self._acknowledge(request)
            if reply.lease_lost:
                raise LeaseLostError("the lease was given to another worker")
        elif isinstance(reply, NeedIds):
            self._resend(request)
        else:
            raise ProtocolError(f"an unexpected {type(reply).__name__}")

    def _acknowledge(self, request: int) -> None:
        if not any(entry.request == request for entry in self._window):
            return
        while self._window:
            entry = self._window.popleft()
            self._window_bytes -= entry.n_bytes
            if entry.request == request:
                return

    def _resend(self, request: int) -> None:
        """The shard forgot a pull: send that push again with its ids, and all that came after it."""
        while self._window and self._window[0].request != request:
            self._window_bytes -= self._window.popleft().n_bytes
        again = list(self._window)
        self._window.clear()
        self._window_bytes = 0
        for entry in again:
            sections = tuple(
                Section(table=s.table, ids=entry.ids[s.table], values=s.values) if s.pull is not None else s
                for s in entry.push.sections
            )
            push = entry.push
            self._send_push(
                Push(
                    epoch=push.epoch,
                    lease=push.lease,
                    position=push.position,
                    step=push.step,
                    sections=sections,
                ),
                {},
            )


@dataclass(frozen=True, slots=True)
class PullTicket:
    """A pull under way. Its ids may be named by the push that follows."""

    ids: Mapping[int, Ids]
    """Table to the ids asked for, sorted and unique."""
    cuts: Mapping[int, NDArray[np.intp]]
    """Table to where the ids are cut, ``n_shards + 1`` positions."""
    requests: Sequence[Sequence[int]]
    """By shard, the requests that cover its part, none when it has none of the ids."""


class ParameterClient:
    """Pulls from and pushes to all shards of a run.

    Args:
        addresses: Of every shard, in order.
        token: The run's secret.
        tables: The run's tables, in order; their place is their number on the wire.
        float16: Send and receive values as float16.
        compression: ``"lz4"``, ``"none"``, or ``"auto"``: LZ4 unless the shard is on this machine.
        tls: What the shards are recognised by, in runs with TLS.
    """

    def __init__(
        self,
        addresses: Sequence[ShardAddress],
        token: str,
        tables: Sequence[TableConfig],
        *,
        float16: bool = False,
        compression: str = "auto",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._tables = tuple(tables)
        self._boundaries = [np.array(table.boundaries, np.int64) for table in tables]
        self._links: list[_ShardLink] = []
        self._lease = (0, 0)
        try:
            for address in addresses:
                local = address.host.startswith("127.") or address.host in ("localhost", "::1")
                compressed = compression == "lz4" or (compression == "auto" and not local)
                channel = Channel(address, token, tls=tls)
                self._links.append(_ShardLink(channel, float16=float16, compressed=compressed))
        except BaseException:
            self.close()
            raise

    @property
    def generations(self) -> tuple[int, ...]:
        """Generations of the shards that this client is connected to."""
        return tuple(link.channel.address.generation for link in self._links)

    def close(self) -> None:
        """Close all connections."""
        for link in self._links:
            link.channel.close()

    def attach(self, epoch: int, lease: int, grant: int) -> int:
        """Take up a lease on every shard; return the first position that any of them lacks.

        Raises:
            LeaseLostError: It was given to another worker since.
        """
        message = Attach(epoch=epoch, lease=lease, grant=grant)
        self._lease = (epoch, lease)
        return min(link.attach(message) for link in self._links)

    def pull(self, ids: Mapping[int, Ids]) -> PullTicket:
        """Ask for rows without waiting for them.

        Args:
            ids: Table number to sorted unique row numbers.
        """
        cuts = {}
        for table, rows in ids.items():
            cuts[table] = self._cut(table, rows)
        requests = []
        for shard, link in enumerate(self._links):
            parts = {t: rows[cuts[t][shard] : cuts[t][shard + 1]] for t, rows in ids.items()}
            requests.append([link.pull(sections) for sections in self._frames(parts)])
        return PullTicket(ids, cuts, requests)

    def _cut(self, table: int, rows: Ids) -> NDArray[np.intp]:
        """Return where sorted rows are cut at the shards' boundaries, ``n_shards + 1`` positions."""
        if len(self._links) == 1:
            return np.array((0, len(rows)))
        cut = np.searchsorted(rows, self._boundaries[table])
        cut[0], cut[-1] = 0, len(rows)
        return cut

    def _frames(self, parts: Mapping[int, Ids]) -> list[tuple[Section, ...]]:
        """Spread the sections of a pull over frames whose answers are not too large."""
        wanted = sum(len(rows) * self._tables[table].width for table, rows in parts.items())
        if wanted <= MAX_PULL_VALUES:
            sections = tuple(Section(table=t, ids=rows) for t, rows in parts.items() if len(rows))
            return [sections] if sections else []
        frames: list[tuple[Section, ...]] = []
        for table, rows in parts.items():
            step = max(1, MAX_PULL_VALUES // self._tables[table].width)
            for start in range(0, len(rows), step):
                frames.append((Section(table=table, ids=rows[start : start + step]),))
        return frames

    def wait(self, ticket: PullTicket) -> dict[int, Values]:
        """Return the rows of a pull: table number to float32 ``(n_ids, width)``."""
        found: dict[int, list[Values]] = {table: [] for table in ticket.ids}
        for link, requests in zip(self._links, ticket.requests, strict=True):
            for request in requests:
                for section in link.wait(request).sections:
                    if section.values is None or section.table not in found:
                        raise ProtocolError("a shard answered a pull with something else")
                    found[section.table].append(section.values)
        rows = {}
        for table, pieces in found.items():
            width = self._tables[table].width
            flat = pieces[0] if len(pieces) == 1 else np.concatenate([np.empty(0, np.float32), *pieces])
            if len(flat) != len(ticket.ids[table]) * width:
                raise ProtocolError(f"{len(flat)} values came for {len(ticket.ids[table])} rows")
            rows[table] = flat.reshape(-1, width)
        return rows

    def push(self, position: int, step: int, gradients: Mapping[int, Values], ticket: PullTicket) -> None:
        """Send the gradient of one step, for the very ids of a pull, without waiting for the answer.

        Args:
            position: Of the step in the lease.
            step: The run's clock.
            gradients: Table number to float32 ``(n_ids, width)``.
            ticket: The pull.
        """
        epoch, lease = self._lease
        for shard, link in enumerate(self._links):
            if position < link.mark:
                continue
            sections = []
            named: dict[int, Ids] = {}
            requests = ticket.requests[shard]
            for table, values in gradients.items():
                cut = ticket.cuts[table]
                start, stop = int(cut[shard]), int(cut[shard + 1])
                if start == stop:
                    continue
                ids = ticket.ids[table][start:stop]
                if len(requests) == 1:
                    named[table] = ids
                    sections.append(Section(table=table, pull=requests[0], values=values[start:stop]))
                else:
                    sections.append(Section(table=table, ids=ids, values=values[start:stop]))
            push = Push(epoch=epoch, lease=lease, position=position, step=step, sections=tuple(sections))
            link.push(push, named)

    def push_rows(
        self, position: int, step: int, ids: Mapping[int, Ids], gradients: Mapping[int, Values]
    ) -> None:
        """As :meth:`push`, for rows that no pull names."""
        epoch, lease = self._lease
        for shard, link in enumerate(self._links):
            if position < link.mark:
                continue
            sections = []
            for table, rows in ids.items():
                boundaries = self._boundaries[table]
                start, stop = np.searchsorted(rows, boundaries[shard : shard + 2])
                if shard == len(self._links) - 1:
                    stop = len(rows)
                if start < stop:
                    sections.append(
                        Section(table=table, ids=rows[start:stop], values=gradients[table][start:stop])
                    )
            push = Push(epoch=epoch, lease=lease, position=position, step=step, sections=tuple(sections))
            link.push(push, {})

    def ask_coordinator(self, message: Message, answer: type[M]) -> M:
        """Ask shard 0 something, once all other shards have acknowledged every push.

        Those to shard 0 are on their way before the question, and it answers in order.

        Raises:
            LeaseLostError: The lease was given to another worker.
        """
        for link in self._links[1:]:
            link.flush()
        return self._links[0].ask(message, answer)

    def call_coordinator(self, message: Message) -> Message:
        """Ask shard 0 something, with nothing else under way.

        Raises:
            LeaseLostError: Shard 0 does not accept what the message says of a lease.
        """
        self._links[0].flush()
        return self._links[0].channel.call(message)

    def flush(self) -> None:
        """Wait until every shard has acknowledged every push.

        Raises:
            LeaseLostError: Some were dropped, since the lease is another worker's now.
        """
        for link in self._links:
            link.flush()
