"""Who may ask the dashboard anything: those who know its token, from a page of its own.

The dashboard can end runs, and a browser sends requests for any page that is open in it. So every path begins
with a secret (``/t/TOKEN/``; there is nothing else, and pages elsewhere cannot guess it), the name that the
browser asked for must be one of ours (a foreign name that resolves to this machine is not), and what changes
anything must come from a page of this very origin. No cookie is set: there is nothing that a browser would
send by itself.
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
import urllib.parse
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from cirrus.errors import ConfigError

TOKEN_BYTES = 24
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
#: Longest body of a request: a page's cursors for some thousand runs.
MAX_BODY_BYTES = 2 * 1024 * 1024

_FOUND = "302 Found"

StartResponse = Callable[..., Any]
Application = Callable[[dict[str, Any], StartResponse], Iterable[bytes]]

#: Where a page may be framed: notebooks of this machine show it inline.
_FRAME_ANCESTORS = "'self' http://localhost:* http://127.0.0.1:* https://localhost:* https://127.0.0.1:*"


def new_token() -> str:
    """Return a secret for the path."""
    return secrets.token_urlsafe(TOKEN_BYTES)


def path_prefix(token: str) -> str:
    """Return what every path begins with."""
    return f"/t/{token}/"


def host_name(netloc: str) -> str:
    """Return the name in ``name:port``, in lower case and without the brackets of IPv6; "" if malformed."""
    try:
        return urllib.parse.urlsplit(f"//{netloc}").hostname or ""
    except ValueError:
        return ""


def allowed_hosts(bind: str, extra: Iterable[str] = ()) -> frozenset[str]:
    """Return the names that browsers may know the dashboard by.

    Args:
        bind: The address that it listens on.
        extra: More names, as the user gave them.

    Raises:
        ConfigError: It listens on all addresses, and no name was given: then any name would have to do.
    """
    names = {host_name(name) for name in extra}
    if "" in names:
        raise ConfigError("allow_host", f"give names or addresses, got {', '.join(map(repr, extra))}")
    if bind in LOOPBACK_NAMES:
        return LOOPBACK_NAMES | names
    try:
        is_any = ipaddress.ip_address(bind).is_unspecified
    except ValueError:  # a name
        is_any = bind == ""
    if is_any and not names:
        raise ConfigError(
            "allow_host", f"listening on {bind or 'all addresses'} needs the name to be asked by"
        )
    return frozenset(names) | LOOPBACK_NAMES | (frozenset() if is_any else {bind.lower()})


class Guard:
    """A WSGI application that lets through what is meant for the one inside.

    Args:
        application: The dashboard.
        token: The secret in the path.
        hosts: Names that it may be asked by, from :func:`allowed_hosts`.
        script_hashes: Hashes of the page's own inline scripts, as Content-Security-Policy wants them.
    """

    def __init__(
        self, application: Application, token: str, hosts: frozenset[str], script_hashes: Iterable[str] = ()
    ) -> None:
        self._application = application
        self._prefix = path_prefix(token).encode()
        self._hosts = hosts
        scripts = " ".join(["'self'", *script_hashes])
        self._headers = {
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Content-Security-Policy": (
                f"default-src 'self'; script-src {scripts}; style-src 'self' 'unsafe-inline'; "
                "img-src 'self' data: blob:; font-src 'self' data:; object-src 'none'; base-uri 'none'; "
                f"form-action 'none'; frame-ancestors {_FRAME_ANCESTORS}"
            ),
        }

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        refusal = self._refusal(environ)
        if refusal is not None:
            status, text = refusal
            body = text.encode() + b"\n"
            headers = {"Content-Type": "text/plain; charset=utf-8", "Content-Length": str(len(body))}
            if status == _FOUND:
                headers["Location"] = self._prefix.decode()
            start_response(status, [*headers.items(), *self._headers.items()])
            return [body]

        def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            names = {name.lower() for name in self._headers}
            kept = [(name, value) for name, value in headers if name.lower() not in names]
            return start_response(status, [*kept, *self._headers.items()], *rest)

        return self._application(environ, start)

    def _refusal(self, environ: Mapping[str, Any]) -> tuple[str, str] | None:
        """Return status and text if the request is refused, None if it may pass."""
        host = str(environ.get("HTTP_HOST", "")).lower()
        if host_name(host) not in self._hosts:
            return "403 Forbidden", "the dashboard does not go by this name (see --allow-host)"
        path = (str(environ.get("SCRIPT_NAME", "")) + str(environ.get("PATH_INFO", ""))).encode("latin-1")
        method = environ.get("REQUEST_METHOD")
        if not hmac.compare_digest(path[: len(self._prefix)], self._prefix):
            is_page = hmac.compare_digest(path + b"/", self._prefix)  # but for the last slash
            return (_FOUND, "") if is_page and method in ("GET", "HEAD") else ("404 Not Found", "not found")
        if method in ("GET", "HEAD"):
            return None
        if method != "POST":
            return "405 Method Not Allowed", "only GET and POST"
        origin = urllib.parse.urlsplit(str(environ.get("HTTP_ORIGIN", "")).lower())
        if origin.scheme not in ("http", "https") or origin.netloc != host:
            return "403 Forbidden", "not from a page of this dashboard"
        if environ.get("HTTP_SEC_FETCH_SITE", "same-origin") != "same-origin":
            return "403 Forbidden", "not from a page of this dashboard"
        if not str(environ.get("CONTENT_TYPE", "")).startswith("application/json"):
            return "415 Unsupported Media Type", "only JSON"
        return None
