"""Plain TCP, for both ends: options, timeouts, and sending many pieces at once."""

from __future__ import annotations

import math
import socket
import struct
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from cirrus.paramserver.codec import Buffer

if TYPE_CHECKING:
    from cirrus.paramserver.tls import TlsSocket

#: Below this, pieces are joined and sent with one call; above, the kernel gathers them.
JOIN_BYTES = 16 * 1024
#: A peer whose machine is gone without a word is noticed after 30 s + 3 * 10 s of silence.
KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
#: Linux takes at most this many pieces in one call.
MAX_PIECES = 512


def configure(sock: socket.socket, receive_seconds: float, send_seconds: float) -> None:
    """Set what every connection of ours has.

    The timeouts are the kernel's (``SO_RCVTIMEO``): Python's own would cost a ``poll`` before every call.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        # Not every system has all of them.
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    sock.setblocking(True)
    set_timeout(sock, receive_seconds, send_seconds)


def set_timeout(sock: socket.socket, receive_seconds: float, send_seconds: float) -> None:
    """Make receiving and sending fail with ``BlockingIOError`` after so long."""
    if type(sock) is not socket.socket:
        # An encrypted one, whose module is imported only where there is one.
        cast("TlsSocket", sock).set_seconds(receive_seconds, send_seconds)
        return
    for option, seconds in ((socket.SO_RCVTIMEO, receive_seconds), (socket.SO_SNDTIMEO, send_seconds)):
        whole = int(seconds)
        value = struct.pack("ll", whole, int((seconds - whole) * 1_000_000))
        sock.setsockopt(socket.SOL_SOCKET, option, value)


def send_parts(sock: socket.socket, parts: Sequence[Buffer], seconds: float = math.inf) -> None:
    """Send all pieces, blocking.

    Args:
        sock: Where to.
        parts: The pieces.
        seconds: How long all of them may take; one call of the kernel has a timeout of its own.

    Raises:
        BlockingIOError: The peer has not taken them in time.
    """
    if sum(len(part) for part in parts) <= JOIN_BYTES:
        sock.sendall(b"".join(parts))
        return
    views = [memoryview(part).cast("B") for part in parts if len(part)]
    end = time.monotonic() + seconds
    while views:
        sent = sock.sendmsg(views[:MAX_PIECES])
        views = skip(views, sent)
        if views and time.monotonic() > end:
            raise BlockingIOError(f"the peer has not taken an answer after {seconds:g} s")


def skip(views: list[memoryview], n_bytes: int) -> list[memoryview]:
    """Return what is left of some pieces after the first ``n_bytes``."""
    for i, view in enumerate(views):
        if n_bytes < len(view):
            return [view[n_bytes:], *views[i + 1 :]]
        n_bytes -= len(view)
    return []


def close(sock: socket.socket) -> None:
    """Close a socket and wake whoever is blocked on it."""
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        # The peer was faster; there is nobody left to wake.
        pass
    finally:
        sock.close()
