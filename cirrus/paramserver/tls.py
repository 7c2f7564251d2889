"""TLS between workers and shards, for runs that have it; the rest of the code does not know.

A run has a certificate authority of its own (``client_backend/certificates.py`` makes it), and nobody trusts
any other: shard K has to show its certificate for :func:`shard_name`. The authority's key is gone once the
certificates are made. Workers need the standard library alone, and import it only for such a run.

:class:`TlsSocket` behaves as the plain sockets of ``sockets.py`` do, so that both ends use either: it sends
what fits when asked not to wait, and says ``BlockingIOError`` when its time is over. Encrypting and
decrypting happen without the interpreter lock.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import tempfile
from collections.abc import Iterable
from typing import Any, cast

from cirrus.errors import ConfigError
from cirrus.run_folder import RunFolder

#: What TLS encrypts at once, at most.
RECORD_BYTES = 16 * 1024


def shard_name(shard: int) -> str:
    """Return the name that a shard's certificate is for."""
    return f"shard-{shard}.cirrus.internal"


class TlsSocket(ssl.SSLSocket):
    """An encrypted socket with the manners of a plain one.

    One thread at a time may use it, but for :meth:`shutdown`.
    """

    _receive_seconds = 10.0
    _send_seconds = 10.0

    def set_seconds(self, receive_seconds: float, send_seconds: float) -> None:
        """Fail with ``BlockingIOError`` after so long, from now on."""
        self._receive_seconds, self._send_seconds = receive_seconds, send_seconds

    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:
        """Receive what is there, at least a byte and maybe many records; 0 at the end."""
        self.settimeout(self._receive_seconds)
        try:
            return self._receive_more(memoryview(buffer), super().recv_into(buffer, nbytes, flags))
        except TimeoutError as error:
            raise BlockingIOError("nothing came in time") from error
        except ValueError as error:  # closed by another thread
            raise ConnectionResetError(str(error)) from error

    def _receive_more(self, buffer: memoryview, received: int) -> int:
        """Take in what else has come; return how many bytes there are now.

        A record at a time would have the whole loop around this run for every 16 KB.
        """
        if received < RECORD_BYTES:
            return received
        self.settimeout(0.0)
        # Errors and the end come again at the next call.
        with contextlib.suppress(OSError):
            while received < len(buffer) and (more := super().recv_into(buffer[received:])):
                received += more
        return received

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Send everything."""
        self.settimeout(self._send_seconds)
        try:
            super().sendall(data, flags)
        except TimeoutError as error:
            raise BlockingIOError("the peer took nothing for too long") from error
        except ValueError as error:
            raise ConnectionResetError(str(error)) from error

    def sendmsg(  # type: ignore[override]  # the superclass has it for nobody
        self, buffers: Iterable[Any], ancillary: Any = (), flags: int = 0, address: Any = None
    ) -> int:
        """Send the beginning of some pieces, a record of it; return how many bytes that were.

        A record that could not be sent whole is under way: the next call has to bring the same bytes again.
        """
        first = _first_record(buffers)
        self.settimeout(0.0 if flags & socket.MSG_DONTWAIT else self._send_seconds)
        try:
            return self.send(first)
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError, TimeoutError) as error:
            raise BlockingIOError("the peer takes nothing now") from error
        except ValueError as error:
            raise ConnectionResetError(str(error)) from error

    def shutdown(self, how: int) -> None:
        """End the connection below TLS, also for a thread that is using it at this moment."""
        socket.socket.shutdown(self, how)


def _first_record(pieces: Iterable[Any]) -> bytes | memoryview:
    """Return the beginning of some pieces, as much as fits a record."""
    found: list[memoryview] = []
    room = RECORD_BYTES
    for piece in pieces:
        found.append(memoryview(piece).cast("B")[:room])
        room -= len(found[-1])
        if room == 0:
            break
    return found[0] if len(found) == 1 else b"".join(found)


def _context(purpose: int) -> ssl.SSLContext:
    context = ssl.SSLContext(purpose)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.sslsocket_class = TlsSocket
    return context


def shard_context(folder: RunFolder, shard: int) -> ssl.SSLContext:
    """Return what a shard needs to be recognised.

    Raises:
        NotFoundError: The run has no certificates.
        ConfigError: They cannot be read.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER)
    # The library wants a file: one that nobody else can open, gone at once.
    with tempfile.NamedTemporaryFile(prefix="cirrus-") as file:
        file.write(folder.shard_certificate(shard))
        file.flush()
        try:
            context.load_cert_chain(file.name)
        except (ssl.SSLError, OSError) as error:
            raise ConfigError("tls", f"the certificate of shard {shard} cannot be read: {error}") from error
    return context


def worker_context(folder: RunFolder) -> ssl.SSLContext:
    """Return what it takes to recognise a run's shards, and nobody else.

    Raises:
        NotFoundError: The run has no certificates.
        ConfigError: They cannot be read.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cadata=folder.certificate_authority().decode("ascii", "replace"))
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError("tls", f"the run's certificate authority cannot be read: {error}") from error
    return context


def accept(context: ssl.SSLContext, sock: socket.socket) -> TlsSocket:
    """Encrypt an accepted connection; the handshake is still to be made."""
    wrapped = context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
    return cast(TlsSocket, wrapped)


def connect(context: ssl.SSLContext, sock: socket.socket, shard: int) -> TlsSocket:
    """Encrypt a connection to a shard, and check that it is this one."""
    return cast(TlsSocket, context.wrap_socket(sock, server_hostname=shard_name(shard)))
