"""Servers that speak AWS' protocols on loopback, for tests of what talks to AWS."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

#: Longer than any function of a test works.
FORWARD_SECONDS = 60.0
_HOP_HEADERS = frozenset({"connection", "content-length", "transfer-encoding", "date", "server"})


@dataclass(frozen=True)
class Answer:
    """What a service says to one request."""

    status: int = 200
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)
    lost: bool = False
    """Close the connection instead."""


@dataclass(frozen=True)
class Request:
    """What a service was asked."""

    method: str
    path: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    peer: int = 0
    """The port at the other end: tells connections apart."""


def json_error(code: str, status: int = 400) -> Answer:
    """Return an error as Lambda sends it."""
    body = f'{{"message": "about {code}", "Type": "User"}}'.encode()
    return Answer(status, body, {"x-amzn-ErrorType": code})


def xml_error(code: str, status: int = 400) -> Answer:
    """Return an error as EC2 sends it."""
    error = f"<Error><Code>{code}</Code><Message>about {code}</Message></Error>"
    return Answer(status, f"<Response><Errors>{error}</Errors><RequestID>1</RequestID></Response>".encode())


@contextlib.contextmanager
def answering(answer: Callable[[Request], Answer]) -> Iterator[str]:
    """Serve on a port of loopback that the kernel chooses; yield the URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            peer = int(self.client_address[1])
            said = answer(Request(self.command, self.path, body, dict(self.headers), peer))
            if said.lost:
                self.close_connection = True
                return
            self.send_response(said.status)
            for name, value in said.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(said.body)))
            self.end_headers()
            self.wfile.write(said.body)

        do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = _serve

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def forward(url: str, request: Request) -> Answer:
    """Have another service answer."""
    host, _, port = url.removeprefix("http://").partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=FORWARD_SECONDS)
    try:
        connection.request(request.method, request.path, request.body, request.headers)
        said = connection.getresponse()
        headers = {name: value for name, value in said.getheaders() if name.lower() not in _HOP_HEADERS}
        return Answer(said.status, said.read(), headers)
    finally:
        connection.close()


@contextlib.contextmanager
def moto_services() -> Iterator[str]:
    """Serve moto's S3, EC2, IAM and so on; yield the URL."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # it would log every request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def use_services(patch: pytest.MonkeyPatch, url: str, **others: str) -> None:
    """Have boto3 find AWS at a URL, but for the services named (``lambda_``, ``ec2``, ``s3``)."""
    patch.setenv("AWS_ACCESS_KEY_ID", "testing")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    patch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    patch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    patch.setenv("AWS_ENDPOINT_URL", url)
    for service, other in others.items():
        patch.setenv(f"AWS_ENDPOINT_URL_{service.rstrip('_').upper()}", other)
