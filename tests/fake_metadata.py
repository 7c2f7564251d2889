"""An instance metadata service (version 2) on loopback."""

from __future__ import annotations

import http.server
import secrets
import threading
from types import TracebackType

TOKEN_HEADER = "X-aws-ec2-metadata-token"


class FakeMetadata:
    """Serves values by path, to those who show a token that it gave out; a context manager.

    Args:
        values: By path below ``latest/meta-data/``; may be changed while it serves.
    """

    def __init__(self, values: dict[str, str]) -> None:
        self.values = values
        self.tokens: set[str] = set()
        """Those that are valid; clear it, and all have expired."""
        self.failures = 0
        """So many requests to come are answered with an error."""
        service = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                if service.fails(self):
                    return
                wanted = self.headers.get(f"{TOKEN_HEADER}-ttl-seconds", "")
                if self.path != "/latest/api/token" or not wanted.isdecimal():
                    self.answer(400, "")
                    return
                token = secrets.token_hex(8)
                service.tokens.add(token)
                self.answer(200, token)

            def do_GET(self) -> None:
                if service.fails(self):
                    return
                if self.headers.get(TOKEN_HEADER) not in service.tokens:
                    self.answer(401, "")
                    return
                value = service.values.get(self.path.removeprefix("/latest/meta-data/"))
                self.answer(404 if value is None else 200, value or "")

            def answer(self, status: int, text: str) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(text.encode())))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def fails(self, handler: http.server.BaseHTTPRequestHandler) -> bool:
        """Answer with an error if one is due; return whether it was."""
        if not self.failures:
            return False
        self.failures -= 1
        handler.send_error(503)
        return True

    def __enter__(self) -> FakeMetadata:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def instance_values(instance: str, run: str, shards: str) -> dict[str, str]:
    """Return the metadata of an instance whose private network is loopback."""
    return {
        "instance-id": instance,
        "instance-type": "c7gn.large",
        "local-ipv4": "127.0.0.1",
        "tags/instance/cirrus:run": run,
        "tags/instance/cirrus:shards": shards,
    }
