"""Standard input as a leash: how a child process learns that its parent has died, or wants it to end.

The parent holds the other end and writes nothing; when it dies, by whatever means, the kernel closes that. A
child that shall outlive its parent is told so by the line ``outlive``; an end in order is then the line
``end``, and the mere end of file means that the parent was lost.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable

OUTLIVE = b"outlive\n"
END = b"end\n"
#: More is none of ours.
_LINES_BYTES = 4096


def watch_leash(
    end: Callable[[], None], lost: Callable[[], None] | None = None, descriptor: int | None = None
) -> None:
    """Watch standard input, in a thread.

    Args:
        end: Called once when this process shall end: its parent wants that, or was lost and is not to be
            outlived.
        lost: Called once instead when the parent was lost and is to be outlived.
        descriptor: Where standard input is by now; None: where it was.
    """
    source = sys.stdin.fileno() if descriptor is None else descriptor
    threading.Thread(target=_watch, args=(end, lost, source), name="leash", daemon=True).start()


def _watch(end: Callable[[], None], lost: Callable[[], None] | None, source: int) -> None:
    # Not sys.stdin: a thread that waits in it would trouble the interpreter's end.
    said = b"\n"
    while data := os.read(source, _LINES_BYTES):
        said = (said + data)[-_LINES_BYTES:]
        if b"\n" + END in said:
            end()
            return
    if b"\n" + OUTLIVE in said and lost is not None:
        lost()
    else:
        end()
