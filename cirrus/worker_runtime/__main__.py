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
from typing import BinaryIO

from cirrus.errors import CirrusError
from cirrus.worker_runtime.handler import handler

LEASH_CODE = 3


def main() -> int:
    """Read the event, work, print the result; return the exit code."""
    line = sys.stdin.buffer.readline()
    threading.Thread(target=_watch, args=(sys.stdin.buffer,), daemon=True).start()
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
    print(json.dumps(result), flush=True)
    return 0


def _watch(leash: BinaryIO) -> None:
    while leash.read(1):
        pass
    os._exit(LEASH_CODE)


if __name__ == "__main__":
    code = main()
    # Threads that still wait on a socket must not keep the process.
    os._exit(code)
