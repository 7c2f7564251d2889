"""The program on an instance that hosts shards: ``python -m cirrus.client_backend.aws.host --root s3://BUCKET``.

It serves the runs that have booked seats on the instance (:mod:`cirrus.client_backend.aws.hosting`), the one
that it was launched for and others, and reports to each how far it is
(:mod:`cirrus.paramserver.host_records`). When it ends, systemd shuts the instance down, and that terminates
it:

- nobody has had a seat for ``--keep-warm-seconds``;
- the one run that had seats could not be served, or its client has given no sign of life for
  ``--client-lost-seconds`` (the shards save themselves first);
- the last of those with seats has left, and clients let nobody come any more;
- AWS takes a spot instance back (the shards save themselves first).

A client that has ended in order leaves the instance waiting, as the end of a run does. Nothing here calls
AWS but to read and write objects: the network it lives in leads nowhere else.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from cirrus.client_backend.aws.hosting import Host, HostOptions
from cirrus.client_backend.aws.instance import InstanceMetadata
from cirrus.client_backend.processes import child_environment
from cirrus.errors import CirrusError, RunError

COMPILE_SECONDS = 300.0


def compile_kernels() -> None:
    """Compile the shards' kernels in a process of its own; shards then load them from numba's cache.

    Raises:
        RunError: That failed.
    """
    command = [sys.executable, "-P", "-m", "cirrus.paramserver.kernels"]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=COMPILE_SECONDS,
            env=child_environment(os.environ),
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RunError(f"the kernels cannot be compiled: {error}") from error
    if done.returncode != 0:
        raise RunError(f"the kernels cannot be compiled: {done.stderr[-2000:]}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until the instance is to be shut down.

    Returns:
        0 then. A crash of this program is told by another code, and it is started again.
    """
    parser = argparse.ArgumentParser(prog="cirrus.client_backend.aws.host", description=__doc__)
    parser.add_argument("--root", required=True, help="URL that runs/ lies in: s3://BUCKET")
    parser.add_argument("--first-port", type=int, default=0, help="seat K has this port plus K")
    parser.add_argument("--keep-warm-seconds", type=float, default=300.0)
    parser.add_argument("--client-lost-seconds", type=float, default=300.0)
    parser.add_argument("--release", default="", help="what this instance is installed from")
    parsed = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(name)s %(message)s")
    metadata = InstanceMetadata()
    try:
        options = HostOptions(
            root=parsed.root,
            first_port=parsed.first_port,
            keep_warm_seconds=parsed.keep_warm_seconds,
            client_lost_seconds=parsed.client_lost_seconds,
            release=parsed.release,
        )
        host = Host(metadata.instance(), metadata, options)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: host.stop())
        host.run(compile_kernels)
    except CirrusError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
