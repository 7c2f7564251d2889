"""One client's connection to a shard: a thread that receives, applies and answers.

Large buffers are received at once, and all plain pushes in them applied by one call of a kernel that does not
hold the interpreter lock; everything else is dealt with frame by frame in Python. A push is applied under the
connection's ``gate``; whoever takes all gates (a snapshot) or one (another connection that takes over a
lease) knows that no push of these connections is half applied.
"""

from __future__ import annotations

import logging
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from cirrus.errors import (
    AuthenticationError,
    CirrusError,
    ConnectionLostError,
    LeaseLostError,
    LimitError,
    ProtocolError,
    RegistrationError,
    SupersededError,
    VersionMismatchError,
)
from cirrus.paramserver import handshake, kernels
from cirrus.paramserver.codec import (
    EMPTY_ACK,
    Buffer,
    Header,
    decode,
    decode_header,
    decoded_push_bytes,
    encode,
)
from cirrus.paramserver.limits import Holding
from cirrus.paramserver.protocol import (
    HEADER,
    JSON_MESSAGES,
    MAGIC,
    MAX_HELLO_BYTES,
    VERSION,
    Ack,
    Attach,
    Attached,
    Challenge,
    Error,
    ErrorCode,
    Hello,
    Kind,
    Message,
    NeedIds,
    Proof,
    Push,
    Welcome,
)
from cirrus.paramserver.pulls import REPLY_START, PullDesk
from cirrus.paramserver.sockets import close, configure, send_parts, set_timeout

if TYPE_CHECKING:
    import ssl

    from cirrus.paramserver.server import Shard

log = logging.getLogger(__name__)

M = TypeVar("M")

#: The kernel takes a shorter timeout for none at all.
SHORTEST_WAIT_SECONDS = 0.001
#: A refused peer has this long to take in the reason and hang up.
DRAIN_SECONDS = 1.0
#: JSON becomes objects of about so many times its size; short messages are not worth counting.
JSON_EXPANSION = 16
UNCOUNTED_JSON_BYTES = 64 * 1024

# Members of an enumeration are slow to look up, and these are needed every step.
_PUSH, _PULL, _ACK = int(Kind.PUSH), int(Kind.PULL), int(Kind.ACK)

_ERROR_CODES: dict[type[CirrusError], ErrorCode] = {
    VersionMismatchError: ErrorCode.VERSION,
    ProtocolError: ErrorCode.PROTOCOL,
    AuthenticationError: ErrorCode.AUTHENTICATION,
    SupersededError: ErrorCode.SUPERSEDED,
    RegistrationError: ErrorCode.REGISTRATION,
    LeaseLostError: ErrorCode.LEASE_LOST,
    LimitError: ErrorCode.LIMIT,
}
_PUSH_PROBLEMS = {
    kernels.BAD_PUSH: "a malformed push",
    kernels.ID_OUT_OF_RANGE: "a push of a row that this shard does not own",
    kernels.IDS_NOT_ASCENDING: "a push whose ids are not sorted and unique",
    kernels.GAP: "a push that leaves out a position",
}


class Connection(threading.Thread):
    """Serves one socket until it ends.

    Args:
        shard: Whose tables these are.
        sock: The accepted socket, which the connection owns from now on.
        number: Unique in this shard.
    """

    def __init__(self, shard: Shard, sock: socket.socket, number: int) -> None:
        super().__init__(name=f"shard{shard.shard}-connection{number}", daemon=True)
        self.number = number
        self.gate = threading.Lock()
        """Held while pushes of this connection are applied."""
        self.counters = np.zeros(kernels.N_COUNTERS, np.int64)
        self._memory = Holding(shard.memory)
        """What it has taken beyond the buffer that everybody has."""
        self.pulls = PullDesk(shard.tables, self._memory)
        self.is_known = False
        """True once the peer has proved that it has the token."""
        self.accepted_at = time.monotonic()
        self.is_ending = False
        self.attached: tuple[int, int] | None = None
        """Epoch and lease whose steps this connection pushes; changed under the gate."""
        self._shard = shard
        self._sock = sock
        self._limits = shard.limits
        self._watches_silence = False
        """True while it holds memory that is worth giving back when the peer is silent."""
        self._large_since: float | None = None
        """When the frame at the front of the buffer was seen to be a large one that is not whole."""
        self._start = 0
        self._end = 0
        self._marks = np.zeros(1, np.int32)
        self._buffer = np.empty(0, np.uint8)
        self._resize(shard.limits.buffer_bytes)
        self._out = np.zeros(4, np.int64)
        self._ack: int | None = None
        self._lease_lost = False
        self._skipping = False

    # Life.

    def run(self) -> None:
        """Serve until the peer or the shard ends the connection."""
        try:
            configure(self._sock, self._shard.limits.hello_seconds, self._shard.limits.send_seconds)
            self._serve()
        except ConnectionLostError as error:
            # The shard is going down: a peer that sees the connection end comes back to its next generation.
            log.debug("connection %d of shard %d ends: %s", self.number, self._shard.shard, error)
        except CirrusError as error:
            self._refuse(error)
        except (OSError, struct.error) as error:
            log.debug("connection %d of shard %d ended: %s", self.number, self._shard.shard, error)
        finally:
            self._shard.forget(self)
            self._memory.give_back()
            close(self._sock)

    def end(self) -> None:
        """Close the socket, which ends the thread."""
        self.is_ending = True
        close(self._sock)

    def _refuse(self, error: CirrusError) -> None:
        n_refused = 1 if self.is_known else self._shard.refused.count()
        if n_refused is not None:
            log.info(
                "connection %d of shard %d refused (%d since the last of these lines): %s",
                self.number,
                self._shard.shard,
                n_refused,
                error,
            )
        if isinstance(error, AuthenticationError):
            self._shard.stopping.wait(self._shard.limits.wrong_proof_seconds)
        code = _ERROR_CODES.get(type(error), ErrorCode.INTERNAL)
        try:
            self._sock.sendall(encode(Error(code=code, message=str(error)), 0))
            self._sock.shutdown(socket.SHUT_WR)
            self._drain()
        except OSError as lost:
            log.debug("the refused peer had gone: %s", lost)

    def _drain(self) -> None:
        """Throw away what the peer was sending: closing before would reset it, and lose the reason."""
        deadline = time.monotonic() + DRAIN_SECONDS
        while (left := deadline - time.monotonic()) > SHORTEST_WAIT_SECONDS:
            set_timeout(self._sock, left, left)
            if self._sock.recv_into(self._view) == 0:
                return

    def _serve(self) -> None:
        self._shake_hands()
        while True:
            if not self._process():
                self._make_room()
                self._flush_ack()
                received = self._receive()
                if received == 0:
                    return
                self._end += received

    def _receive(self) -> int:
        """Receive something; give back what others may need while nothing comes."""
        if not self._watches_silence and self._memory.n_bytes > 0:
            self._watches_silence = True
            set_timeout(self._sock, self._limits.memory_idle_seconds, self._limits.send_seconds)
        while True:
            try:
                return self._sock.recv_into(self._view[self._end :])
            except BlockingIOError:
                if not self._watches_silence:
                    raise
            if self._large_since is None:
                self._release()
            else:
                self._check_large()

    # The handshake.

    def _encrypt(self, context: ssl.SSLContext) -> None:
        from cirrus.paramserver import tls

        sock = tls.accept(context, self._sock)
        self._sock = sock
        if self.is_ending:  # whoever ended it may have closed the one before
            raise ConnectionResetError("ended")
        set_timeout(sock, self._shard.limits.hello_seconds, self._shard.limits.hello_seconds)
        sock.settimeout(self._shard.limits.hello_seconds)
        sock.do_handshake()

    def _shake_hands(self) -> None:
        shard = self._shard
        if shard.tls is not None:
            self._encrypt(shard.tls)
        deadline = time.monotonic() + shard.limits.hello_seconds
        challenge = Challenge(nonce=handshake.new_nonce())
        self._send([encode(challenge, 0)])
        hello, _ = self._receive_first(Hello, deadline)
        proof, request = self._receive_first(Proof, deadline)
        handshake.check(proof.proof, shard.token, handshake.WORKER, challenge, hello)
        self._check_hello(hello)
        shard.admit(self)
        set_timeout(self._sock, shard.limits.idle_seconds, shard.limits.send_seconds)
        answer = handshake.prove(shard.token, handshake.SHARD, challenge, hello)
        welcome = Welcome(shard=shard.shard, generation=shard.generation, proof=answer)
        self._send([encode(welcome, request)])

    def _receive_first(self, kind: type[M], deadline: float) -> tuple[M, int]:
        """Return the message that has to come now, and its request number."""
        while True:
            available = self._end - self._start
            if available >= HEADER.size:
                header = decode_header(self._view[self._start : self._end])
                if JSON_MESSAGES.get(header.kind) is not kind or header.length > MAX_HELLO_BYTES:
                    raise AuthenticationError(f"a {kind.__name__} must come first, to show the run's token")
                if available >= HEADER.size + header.length:
                    break
            left = deadline - time.monotonic()
            if left < SHORTEST_WAIT_SECONDS:
                raise ConnectionResetError("took too long to say hello")
            set_timeout(self._sock, left, left)
            room = self._start + HEADER.size + MAX_HELLO_BYTES
            received = self._sock.recv_into(self._view[self._end : room])
            if received == 0:
                raise ConnectionResetError("closed before saying hello")
            self._end += received
        body = self._start + HEADER.size
        self._start = body + header.length
        return cast(M, decode(header.kind, self._view[body : self._start])), header.request

    def _check_hello(self, hello: Hello) -> None:
        if hello.shard != self._shard.shard:
            raise ProtocolError(f"this is shard {self._shard.shard}, not {hello.shard}")
        if hello.generation > self._shard.generation:
            self._shard.superseded()
        if hello.generation != self._shard.generation:
            raise SupersededError(
                f"this is generation {self._shard.generation} of shard {hello.shard}, not {hello.generation}"
            )

    # Receiving.

    def _make_room(self) -> None:
        """Move what is left to the front; grow the buffer when one frame needs more."""
        left = self._end - self._start
        if left and self._start:
            self._buffer[:left] = self._buffer[self._start : self._end].copy()
            self._large_since = None  # that one has been dealt with
        self._start, self._end = 0, left
        if left < HEADER.size:
            self._large_since = None
            return
        needed = HEADER.size + decode_header(self._view).length
        if needed <= self._limits.buffer_bytes:
            return
        if self._large_since is None:
            self._large_since = time.monotonic()
        self._check_large()
        if needed > len(self._buffer):
            # The buffer, and a scratch of the same size.
            self._memory.take(2 * (needed - len(self._buffer)), f"a frame of {needed} bytes")
            self._resize(needed)

    def _resize(self, n_bytes: int) -> None:
        """Have buffers of a size; what was received and not dealt with is at the front."""
        buffer = np.empty(n_bytes, np.uint8)
        if self._end:
            buffer[: self._end] = self._buffer[: self._end]
        self._buffer, self._view = buffer, memoryview(buffer)
        self._scratch = np.empty(n_bytes // 4 + 1, np.uint32)

    def _check_large(self) -> None:
        """End the connection if the large frame that memory is held for has taken too long.

        Raises:
            LimitError: It has.
        """
        assert self._large_since is not None
        seconds = self._limits.large_frame_seconds
        if time.monotonic() - self._large_since > seconds:
            raise LimitError(
                f"a frame above {self._limits.buffer_bytes} bytes was not whole after {seconds:g} s"
            )

    def _release(self) -> None:
        """Give back all that was taken; the next large frame takes it again."""
        self._resize(self._limits.buffer_bytes)
        self.pulls.release()
        self._memory.give_back()
        self._watches_silence = False
        set_timeout(self._sock, self._limits.idle_seconds, self._limits.send_seconds)

    def _process(self) -> bool:
        """Deal with one run of pushes or one other frame; False when more bytes are needed."""
        if self._end - self._start < HEADER.size:
            return False
        kind = self._view[self._start + 3]
        if kind == _PUSH:
            return self._apply_pushes()
        if kind == _PULL:
            status = self.pulls.answer_plain(self._buffer, self._start, self._end)
            if status == kernels.ANSWERED:
                self._start = self.pulls.position
                self._send_plain_reply()
                return True
        header = decode_header(self._view[self._start : self._end])
        stop = self._start + HEADER.size + header.length
        if stop > self._end:
            return False
        body = self._view[self._start + HEADER.size : stop]
        self._start = stop
        if header.kind == Kind.PULL:
            self.pulls.answer(header, body, self._send)
        elif header.length <= UNCOUNTED_JSON_BYTES:
            self._answer(header, decode(header.kind, body))
        else:
            with self._memory.lend(JSON_EXPANSION * header.length, f"a {header.kind.name}"):
                self._answer(header, decode(header.kind, body))
        return True

    def _answer(self, header: Header, message: Message) -> None:
        """Deal with a frame that is neither pull nor push."""
        if isinstance(message, Attach):
            reply: Message = Attached(position=self._attach(message))
        else:
            try:
                reply = self._shard.answer(self, message)
            except (RegistrationError, LeaseLostError) as error:
                reply = Error(code=_ERROR_CODES[type(error)], message=str(error))
        self._send([encode(reply, header.request)])

    def _send_plain_reply(self) -> None:
        """Send the answer to a plain pull, and the acknowledgement of the pushes before it."""
        start, stop = REPLY_START, REPLY_START + self.pulls.reply_bytes
        if self._ack is not None:
            ack = self._take_ack()
            if len(ack) > start:
                self._sock.sendall(ack)
            else:
                start -= len(ack)
                self.pulls.reply.data[start:REPLY_START] = ack
        reply = self.pulls.reply.data[start:stop]
        if len(reply) <= self._limits.buffer_bytes:
            self._sock.sendall(reply)
        else:
            send_parts(self._sock, [reply], self._limits.send_seconds)

    def _send(self, parts: list[Buffer]) -> None:
        if self._ack is not None:
            parts.insert(0, self._take_ack())
        send_parts(self._sock, parts, self._limits.send_seconds)

    def _flush_ack(self) -> None:
        if self._ack is not None:
            self._sock.sendall(self._take_ack())

    def _take_ack(self) -> bytes:
        assert self._ack is not None
        frame = (
            encode(Ack(lease_lost=True), self._ack)
            if self._lease_lost
            else HEADER.pack(MAGIC, VERSION, _ACK, self._ack, len(EMPTY_ACK), 0) + EMPTY_ACK
        )
        self._ack = None
        return frame

    # Pushes.

    def _attach(self, message: Attach) -> int:
        """Make this the one connection that pushes a lease; return the first position wanted."""
        # One at a time: of two that take the same lease over from each other, one could overlook the other.
        with self._shard.attaching:
            marks = self._shard.attach(self, message)
            with self.gate:
                self._marks = marks
                self.attached = (message.epoch, message.lease)
                self._lease_lost = False
                self._skipping = False
                return int(marks[message.lease])

    def detach(self, lease: tuple[int, int]) -> None:
        """Another connection took the lease over: pushes of it are dropped here from now on."""
        with self.gate:
            if self.attached == lease:
                self.attached = None

    def _apply_pushes(self) -> bool:
        self._shard.confirm()
        status = self._run_kernel(self._buffer, self._start, self._end)
        out = self._out
        self._start = int(out[kernels.OUT_POSITION])
        if out[kernels.OUT_FRAMES]:
            self._ack = int(out[kernels.OUT_REQUEST])
            self._skipping = False
        if status == kernels.NEED_MORE:
            if self._end - self._start >= HEADER.size:
                decode_header(self._view[self._start : self._end])  # refuses one that is too long
            return False
        if status == kernels.OTHER_FRAME:
            if self._view[self._start + 3] != _PUSH:
                return True
            return self._one_push(self._apply_encoded)
        if status == kernels.NOT_ATTACHED:
            return self._one_push(self._drop)
        if status == kernels.NEED_IDS:
            return self._one_push(self._ask_for_ids)
        if status == kernels.GAP and self._skipping:
            return self._one_push(lambda _header, _body: None)
        raise ProtocolError(_PUSH_PROBLEMS[status])

    def _run_kernel(self, buffer: NDArray[np.uint8], start: int, end: int) -> int:
        tables = self._shard.tables
        refused_before = self.counters[kernels.NONFINITE_REFUSED]
        whole_before = self.counters[kernels.STEPS_WHOLE]
        with self.gate:
            epoch, lease = self.attached or (-1, -1)
            kernels.apply_pushes(
                buffer,
                start,
                end,
                tables.layout,
                tables.hyper,
                tables.values,
                self._marks,
                epoch,
                lease,
                self.pulls.keys,
                self.pulls.rows,
                self._scratch,
                self.counters,
                True,
                self._out,
            )
        if self.counters[kernels.NONFINITE_REFUSED] != refused_before:
            self._shard.met_nonfinite(epoch)
        if self.counters[kernels.STEPS_WHOLE] != whole_before:
            self._shard.met_finite(epoch)
        return int(self._out[kernels.OUT_STATUS])

    def _one_push(self, deal: Callable[[Header, memoryview], None]) -> bool:
        header = decode_header(self._view[self._start : self._end])
        stop = self._start + HEADER.size + header.length
        if stop > self._end:
            return False
        body = self._view[self._start + HEADER.size : stop]
        self._start = stop
        deal(header, body)
        return True

    def _apply_encoded(self, header: Header, body: memoryview) -> None:
        """A push with compressed or float16 payloads: expand it, then as the others."""
        # As a message, as a plain frame, and as rows.
        n_bytes = 3 * decoded_push_bytes(body)
        with self._memory.lend(n_bytes, f"a compressed push of {header.length} bytes"):
            self._apply_expanded(header, body)

    def _apply_expanded(self, header: Header, body: memoryview) -> None:
        push = decode(Kind.PUSH, body)
        assert isinstance(push, Push)
        plain = np.frombuffer(encode(push, header.request), np.uint8)
        scratch = self._scratch
        if len(plain) // 4 >= len(scratch):
            self._scratch = np.empty(len(plain) // 4 + 1, np.uint32)
        try:
            status = self._run_kernel(plain, 0, len(plain))
        finally:
            self._scratch = scratch
        if self._out[kernels.OUT_FRAMES]:
            self._ack = header.request
            self._skipping = False
        elif status == kernels.NEED_IDS:
            self._ask_for_ids(header, body)
        elif status == kernels.NOT_ATTACHED:
            self._drop(header, body)
        elif not (status == kernels.GAP and self._skipping):
            raise ProtocolError(_PUSH_PROBLEMS.get(status, "a malformed push"))

    def _drop(self, header: Header, _: memoryview) -> None:
        self._lease_lost = True
        self._ack = header.request

    def _ask_for_ids(self, header: Header, _: memoryview) -> None:
        self._skipping = True
        self._send([encode(NeedIds(), header.request)])
