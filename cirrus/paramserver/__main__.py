"""Runs one shard as a process: ``python -m cirrus.paramserver --run-url URL --shard 0 --generation 1``.

With ``--standby`` alone the process loads everything that a shard needs, which takes more than a second of a
processor, and then waits for the other words as a line of JSON on standard input: ``["--run-url", ...]``.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence

from cirrus.errors import CirrusError, SupersededError
from cirrus.paramserver import kernels
from cirrus.paramserver.leash import watch_leash
from cirrus.paramserver.limits import Limits, parse_limits
from cirrus.paramserver.numba_start import hide_scipy
from cirrus.paramserver.orphan import outlive_client
from cirrus.paramserver.server import Shard

log = logging.getLogger(__name__)

STANDBY = "--standby"


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until the run ends, standard input closes, or SIGTERM comes.

    Standard input is the leash (:mod:`cirrus.paramserver.leash`). A shard that shall outlive its client goes
    on when that was lost, as long as workers do.

    Returns:
        The exit code: 0 when the run ended or its client went away, 1 on an error.
    """
    parser = argparse.ArgumentParser(prog="cirrus.paramserver", description=__doc__)
    parser.add_argument("--run-url", required=True, help="the run folder")
    parser.add_argument("--shard", type=int, required=True)
    parser.add_argument("--generation", type=int, required=True)
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (loopback)")
    parser.add_argument("--port", type=int, default=0, help="0: the kernel chooses")
    parser.add_argument(
        "--limit",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="allow connections more or less than usual; may be given several times. Names: "
        + ", ".join(f"{name} ({value:g})" for name, value in vars(Limits()).items()),
    )
    parser.add_argument("--no-leash", action="store_true", help="go on when standard input closes")
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words == [STANDBY]:
        ordered = _await_order()
        if ordered is None:
            return 0
        words = ordered
    options = parser.parse_args(words)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(name)s %(message)s")
    try:
        shard = Shard(
            options.run_url,
            shard=options.shard,
            generation=options.generation,
            host=options.host,
            port=options.port,
            limits=parse_limits(options.limit),
        )
        address = shard.start()
    except SupersededError as error:
        log.info("%s", error)
        return 0
    except (CirrusError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        # For whoever started this process: some errors another attempt cannot heal.
        print(json.dumps({"error": str(error), "type": type(error).__name__}), flush=True)
        return 1
    with contextlib.suppress(BrokenPipeError):  # nobody is left to be told, as the leash will say
        print(f"{address.host}:{address.port}", flush=True)
    if not options.no_leash:
        watch_leash(shard.stop, lambda: outlive_client(shard))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: threading.Thread(target=shard.stop, daemon=True).start())
    shard.wait()
    return 1 if shard.failed else 0


def _await_order() -> list[str] | None:
    """Get ready to be a shard; return the words of the one that this process becomes, or None: of none."""
    kernels.compile_all()
    with contextlib.suppress(ImportError):  # of stores that are no folders
        importlib.import_module("boto3.session")
    line = b""
    # Byte by byte: whatever comes after the line is for the leash.
    while not line.endswith(b"\n"):
        byte = os.read(sys.stdin.fileno(), 1)
        if not byte:
            return None
        line += byte
    return [str(word) for word in json.loads(line)]


if __name__ == "__main__":
    hide_scipy()
    code = main()
    sys.stdout.flush()
    # Threads that still wait on a socket must not keep the process.
    os._exit(code)
