"""Where runs are kept, and how a command line names that and the backend that they work on."""

from __future__ import annotations

import os
import urllib.parse
from pathlib import Path

from cirrus.config import BackendRecord

#: Environment variable with the default root of runs.
HOME_VARIABLE = "CIRRUS_HOME"
DEFAULT_HOME = "~/.cirrus"


def default_home() -> str:
    """Return where runs are kept unless told otherwise."""
    return os.path.expanduser(os.environ.get(HOME_VARIABLE) or DEFAULT_HOME)


def absolute_root(root: str | os.PathLike[str] | None) -> str:
    """Return a root that names the same place from any working directory.

    Args:
        root: A folder or another object-store URL; None: :func:`default_home`.
    """
    named = default_home() if root is None else os.fspath(root)
    folder = local_folder(named)
    return named if folder is None else str(folder.absolute())


def local_folder(url: str) -> Path | None:
    """Return the folder that an object-store URL names, or None where it is not on this machine's disk."""
    if url.startswith("file://"):
        return Path(urllib.parse.unquote(url.removeprefix("file://")))
    return None if "://" in url else Path(url).expanduser()


def backend_options(record: BackendRecord | None, root: str) -> tuple[str, ...]:
    """Return what names a backend on a command line; empty where nothing need.

    Args:
        record: What a run or a search says of its backend; None: nothing.
        root: Where its runs lie.
    """
    name = None if record is None else record.name
    home = () if root == absolute_root(None) else ("--home", root)
    if record is None or name != "ray":
        return home
    address = () if record.address is None else ("--ray-address", record.address)
    return "--backend", "ray", *address, *home
