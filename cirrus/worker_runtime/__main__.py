"""Runs one generation of a worker as a process: ``python -m cirrus.worker_runtime``.

One line of JSON comes in on standard input, the event; one line goes out on standard output, the result or
the error. Standard input is also the leash: when it closes, whoever started this process has died, and it
ends at once.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback

from cirrus.errors import CirrusError
from cirrus.worker_runtime.handler import handler

LEASH_CODE = 3


def main() -> int:
    """Read the event, work, print the result; return the exit code."""
    line = _read_line()
    threading.Thread(target=_watch, daemon=True).start()
    try:
        event = json.loads(line)
    except ValueError as error:
        print(json.dumps({"error": f"the event is not JSON: {error}", "type": "ConfigError"}), flush=True)
        return 1
    try:
        result = handler(event)
    except CirrusError as error:
        traceback.print_exc()
        print(json.dumps({"error": str(error), "type": type(error).__name__}), flush=True)
        return 1
    except Exception as error:  # noqa: BLE001 (a bug; whoever started this process has to hear of it)
        traceback.print_exc()
        print(json.dumps({"error": repr(error), "type": type(error).__name__}), flush=True)
        return 1
    print(json.dumps(result), flush=True)
    return 0


def _read_line() -> bytes:
    """Read up to the first line's end. Not through sys.stdin, since a thread will wait on what follows."""
    line = bytearray()
    while not line.endswith(b"\n"):
        piece = os.read(sys.stdin.fileno(), 1)
        if not piece:
            break
        line += piece
    return bytes(line)


def _watch() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(LEASH_CODE)


if __name__ == "__main__":
    code = main()
    # Threads that still wait on a socket must not keep the process.
    os._exit(code)
