"""Runs one generation of a worker as a process: ``python -m cirrus.worker_runtime``.

One line of JSON comes in on standard input, the event; one line goes out on standard output, the result or
the error. Standard input is also the leash (:mod:`cirrus.paramserver.leash`): when it closes, whoever
started this process has died, and it ends at once, unless it shall outlive that one: then it works to its
deadline.

Both are taken away from the code that runs here, which may be a user's: what it reads is empty, what it
prints goes to the log, and processes that it starts hold neither of the two.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from typing import Any

from cirrus.errors import CirrusError
from cirrus.paramserver.leash import watch_leash
from cirrus.worker_runtime.handler import handler

LEASH_CODE = 3


def main() -> int:
    """Read the event, work, print the result; return the exit code."""
    leash, answers = _take_streams()
    line = _read_line(leash)
    watch_leash(lambda: os._exit(LEASH_CODE), lambda: None, leash)
    try:
        event = json.loads(line)
    except ValueError as error:
        _answer(answers, {"error": f"the event is not JSON: {error}", "type": "ConfigError"})
        return 1
    try:
        result = handler(event)
    except CirrusError as error:
        traceback.print_exc()
        _answer(answers, {"error": str(error), "type": type(error).__name__})
        return 1
    except Exception as error:  # noqa: BLE001 (a bug; whoever started this process has to hear of it)
        traceback.print_exc()
        _answer(answers, {"error": repr(error), "type": type(error).__name__})
        return 1
    _answer(answers, result)
    return 0


def _take_streams() -> tuple[int, int]:
    """Return descriptors of standard input and output, and let nobody else have them."""
    streams = os.dup(sys.stdin.fileno()), os.dup(sys.stdout.fileno())  # which children do not inherit
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, sys.stdin.fileno())
    os.close(nothing)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return streams


def _answer(answers: int, result: Any) -> None:
    line = memoryview(json.dumps(result).encode() + b"\n")
    with contextlib.suppress(BrokenPipeError):  # one who has outlived its parent has nobody to tell
        while line:
            line = line[os.write(answers, line) :]


def _read_line(leash: int) -> bytes:
    """Read up to the first line's end, and nothing more: a thread will wait on what follows."""
    line = bytearray()
    while not line.endswith(b"\n"):
        piece = os.read(leash, 1)
        if not piece:
            break
        line += piece
    return bytes(line)


if __name__ == "__main__":
    code = main()
    # Threads that still wait on a socket must not keep the process.
    os._exit(code)
