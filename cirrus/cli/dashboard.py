"""``cirrus dashboard``: finds the dashboard, which is a package of its own, and serves it until Ctrl-C."""

from __future__ import annotations

import signal
import webbrowser
from importlib.metadata import entry_points

from cirrus.cli.console import say, show
from cirrus.client_backend.homes import local_folder
from cirrus.client_backend.local import LocalBackend
from cirrus.errors import ConfigError

#: Where the dashboard's package says what serves it.
ENTRY_POINT_GROUP = "cirrus.dashboard"


def dashboard(url: str | None, host: str, port: int, allow_hosts: list[str], *, open_browser: bool) -> None:
    """Serve the dashboard of all runs below a root."""
    serve = next(iter(entry_points(group=ENTRY_POINT_GROUP, name="serve")), None)
    try:
        start = None if serve is None else serve.load()
    except ImportError as error:
        raise ConfigError("dashboard", f"needs packages that are not here ({error}): {_INSTALL}") from error
    if start is None:
        raise ConfigError("dashboard", f"is not installed: {_INSTALL}")
    root = LocalBackend(root=url).root
    folder = local_folder(root)
    if folder is not None and folder.exists() and not folder.is_dir():
        raise ConfigError("url", f"{folder} is a file, and no folder that holds runs")
    if folder is not None and not folder.exists():
        say(f"{folder} is not there yet: runs show when the first has begun")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that it cleans up as with Ctrl-C
    with start(root, host=host, port=port, allow_hosts=allow_hosts) as server:
        show(server.url)
        say(f"runs of {root}; whoever knows this address may end them")
        say("Ctrl-C ends the dashboard, and no run")
        if open_browser:
            webbrowser.open(server.url)
        server.wait()


_INSTALL = "pip install 'cirrus-ml[dashboard]'"
