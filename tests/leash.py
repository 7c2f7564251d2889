"""Runs a command until its own standard input closes: ``python leash.py COMMAND ARGUMENTS``.

So a server that heeds no leash ends with the tests that started it, however those end.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading

#: A server may take so long to end in order.
TERMINATE_SECONDS = 5.0


def main() -> int:
    """Run the command; return its exit code."""
    process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True)

    def watch() -> None:
        while os.read(0, 4096):
            pass
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(TERMINATE_SECONDS)
        # And whatever it has started, which is in its group.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    code = process.wait()
    watcher.join(TERMINATE_SECONDS)
    return code


if __name__ == "__main__":
    sys.exit(main())
