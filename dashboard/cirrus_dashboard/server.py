"""The dashboard as a server: one process, a few threads, until it is closed."""

from __future__ import annotations

import html
import socket
import threading
from collections.abc import Iterable, MutableMapping
from typing import Any

import waitress
from waitress import wasyncore
from waitress.channel import HTTPChannel

from cirrus.errors import ConfigError
from cirrus_dashboard.app import make_app
from cirrus_dashboard.security import (
    MAX_BODY_BYTES,
    Application,
    Guard,
    StartResponse,
    allowed_hosts,
    new_token,
    path_prefix,
)
from cirrus_dashboard.sources import FolderSource, Source

DEFAULT_PORT = 8050
THREADS = 8
MAX_CONNECTIONS = 200
#: A connection that is silent for this long is closed.
SILENT_SECONDS = 60
#: How often the loop looks whether it shall end.
LOOP_SECONDS = 0.2
#: Requests that are being answered when the server closes have this long.
CLOSE_SECONDS = 2.0


class DashboardServer:
    """Serves the dashboard of one source from threads of this process.

    It listens when it is made, and ends with :meth:`close`, with ``with``, or with the process. In Jupyter it
    shows itself inline.

    Args:
        source: Where runs come from.
        host: Address to listen on.
        port: Port to listen on; 0: the kernel chooses.
        allow_hosts: More names that browsers may ask by.
        token: The secret in the path; None: a new one.

    Raises:
        ConfigError: The address cannot be listened on, or needs ``allow_hosts``.
    """

    def __init__(
        self,
        source: Source,
        *,
        host: str = "127.0.0.1",
        port: int = DEFAULT_PORT,
        allow_hosts: Iterable[str] = (),
        token: str | None = None,
    ) -> None:
        token = token or new_token()
        names = tuple(allow_hosts)
        hosts = allowed_hosts(host, names)
        app = make_app(source, path_prefix(token))
        guard = Guard(_Prompt(app.server, source), token, hosts, app.csp_hashes())
        self._map: MutableMapping[int, Any] = {}
        listener = _listen(host, port)
        self.source = source
        """Where runs come from."""
        self.port = int(listener.getsockname()[1])
        self._server = waitress.create_server(
            guard,
            map=self._map,
            sockets=[listener],
            threads=THREADS,
            connection_limit=MAX_CONNECTIONS,
            channel_timeout=SILENT_SECONDS,
            max_request_body_size=MAX_BODY_BYTES,
            ident=None,
        )
        shown = "localhost" if host in ("127.0.0.1", "::1") else (names[0] if names else host)
        self.url = f"http://{shown}:{self.port}{path_prefix(token)}"
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="dashboard", daemon=True)
        self._thread.start()

    def __enter__(self) -> DashboardServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<dashboard of {self.source.root} at {self.url}>"

    def _repr_html_(self) -> str:
        address = html.escape(self.url)
        return (
            f'<iframe src="{address}" style="width:100%;height:900px;border:0"></iframe>'
            f'<p><a href="{address}" target="_blank" rel="noreferrer">open the dashboard</a></p>'
        )

    def _serve(self) -> None:
        while not self._stopping.is_set():
            wasyncore.loop(timeout=LOOP_SECONDS, map=self._map, use_poll=True, count=1)
        self._server.task_dispatcher.shutdown(timeout=CLOSE_SECONDS)
        for channel in list(self._map.values()):
            if isinstance(channel, HTTPChannel):
                channel.handle_close()  # also the files of answers that were too large for memory
        wasyncore.close_all(self._map, ignore_all=True)

    def wait(self) -> None:
        """Wait until another thread closes the server."""
        while self._thread.is_alive():
            self._thread.join(LOOP_SECONDS)

    def close(self) -> None:
        """Stop listening, and reading runs. May be called again."""
        self._stopping.set()
        self._thread.join()
        if isinstance(self.source, FolderSource):
            self.source.close()


class _Prompt:
    """A WSGI application that has reading wait while it answers.

    Args:
        application: The dashboard.
        source: What reads.
    """

    def __init__(self, application: Application, source: Source) -> None:
        self._application = application
        self._source = source

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request; Dash has made all of its body when this returns."""
        with self._source.answering():
            return self._application(environ, start_response)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError("host", f"cannot listen on {host}: {error.strerror or error}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        problem = f"cannot listen on {host}:{port}: {error.strerror or error}; 0 takes one that is free"
        raise ConfigError("port", problem) from error
    return listener


def serve(
    root: str,
    *,
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    allow_hosts: Iterable[str] = (),
    token: str | None = None,
) -> DashboardServer:
    """Serve the dashboard of all runs below a root; returns when it listens.

    Args:
        root: Object-store URL that holds ``runs/``, such as ``LocalBackend().root``.
        host: Address to listen on.
        port: Port to listen on; 0: the kernel chooses.
        allow_hosts: More names that browsers may ask by.
        token: The secret in the path; None: a new one.

    Raises:
        ConfigError: The root or the address cannot be used.
        StorageError: There is no such store.
    """
    source = FolderSource(root)
    try:
        server = DashboardServer(source, host=host, port=port, allow_hosts=allow_hosts, token=token)
    except BaseException:
        source.close()
        raise
    source.start()
    return server
