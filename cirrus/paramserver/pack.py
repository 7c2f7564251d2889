"""Runs the shards of many runs in one process: ``python -m cirrus.paramserver.pack``.

A shard spends its time in kernels without the interpreter lock, but a process for it takes more than a second
of a processor to load the compiler of those. The runs of a search are many and short, so their shards share.

Orders come in on standard input, one line of JSON each:

- ``{"id": 7, "run_url": ..., "shard": 0, "generation": 1}``: run this shard;
- ``{"id": 7, "end": "stop"}``: end it, with a last snapshot; ``"crash"``: end it like a killed process.

When it is ready for orders, ``{"ready": true}`` goes out on standard output; when shard 7 has ended,
``{"id": 7, "error": null, "type": ""}``. Standard input is also the leash: when it closes, all shards
snapshot, and the process ends.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping
from typing import Any, TextIO

from cirrus.errors import CirrusError, ConfigError, RunError, SupersededError
from cirrus.paramserver import kernels
from cirrus.paramserver.numba_start import hide_scipy
from cirrus.paramserver.server import Shard

log = logging.getLogger(__name__)

#: All shards have this long for their last snapshots once nobody wants them any more.
FAREWELL_SECONDS = 5.0
#: A longer report would be cut in the midst of a line, and nobody would hear that its shard has ended.
ERROR_CHARACTERS = 4_000


class Pack:
    """The shards of this process, by the numbers that orders give them.

    Args:
        out: Where reports go; nothing else may write there.
    """

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._lock = threading.Lock()
        self._shards: dict[int, Shard | None] = {}
        """None for one that is starting."""
        self._ends: dict[int, str] = {}
        """How those are to end who were asked to while they started."""
        self._threads: list[threading.Thread] = []

    def ready(self) -> None:
        """Say that orders are welcome."""
        self._say({"ready": True})

    def obey(self, order: Mapping[str, Any]) -> None:
        """Carry out one order; does not wait for it.

        Raises:
            ConfigError: It is none.
        """
        try:
            number = int(order["id"])
            if "end" in order:
                self._end(number, str(order["end"]))
                return
            arguments = (number, str(order["run_url"]), int(order["shard"]), int(order["generation"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError("order", f"is none: {error!r}") from error
        thread = threading.Thread(target=self._run, args=arguments, name=f"pack-{number}", daemon=True)
        with self._lock:
            self._shards[number] = None
            self._threads = [known for known in self._threads if known.is_alive()] + [thread]
            thread.start()

    def _run(self, number: int, run_url: str, index: int, generation: int) -> None:
        error: BaseException | None = None
        try:
            self._serve(number, Shard(run_url, shard=index, generation=generation))
        except SupersededError as superseded:
            log.info("%s", superseded)
        except (CirrusError, OSError) as raised:
            error = raised
        except Exception as raised:
            log.exception("shard %d of %s", index, run_url)
            error = raised
        with self._lock:
            del self._shards[number]
            self._ends.pop(number, None)
        report = {"id": number, "error": None, "type": ""}
        if error is not None:
            report |= {"error": str(error)[:ERROR_CHARACTERS], "type": type(error).__name__}
        self._say(report)

    def _say(self, report: Mapping[str, Any]) -> None:
        """Print a line, whole: shards end at the same time, and print() writes text and line end apart."""
        with self._lock:
            self._out.write(json.dumps(report) + "\n")
            self._out.flush()

    def _serve(self, number: int, shard: Shard) -> None:
        """Run a shard to its end; one that is not wanted any more does not start."""
        with self._lock:
            if number in self._ends:
                return
        shard.start()
        with self._lock:
            self._shards[number] = shard
            end = self._ends.pop(number, None)
        if end is not None:
            _end_shard(shard, end)
        shard.wait()
        if shard.failed:
            raise RunError("it failed; its log says why")

    def _end(self, number: int, how: str) -> None:
        with self._lock:
            if number not in self._shards:
                return
            shard = self._shards[number]
            if shard is None:
                self._ends[number] = how
                return
        # A last snapshot takes its time, and the next order must not wait for it.
        threading.Thread(target=_end_shard, args=(shard, how), daemon=True).start()

    def close(self) -> None:
        """End all shards in order, and wait for that."""
        with self._lock:
            numbers, threads = list(self._shards), list(self._threads)
        for number in numbers:
            self._end(number, "stop")
        for thread in threads:
            thread.join(FAREWELL_SECONDS)


def _end_shard(shard: Shard, how: str) -> None:
    if how == "crash":
        shard.crash()
    else:
        shard.stop()


def own_output() -> TextIO:
    """Return standard output for reports alone: what a library prints goes where the log goes.

    A line of theirs in the midst of a report would leave whoever waits for that shard waiting for ever.
    """
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return out


def main() -> int:
    """Obey until standard input closes or SIGTERM comes; return the exit code."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(name)s %(message)s")
    pack = Pack(own_output())
    kernels.compile_all()
    pack.ready()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    try:
        for line in sys.stdin:
            try:
                pack.obey(json.loads(line))
            except (ValueError, ConfigError) as error:
                log.warning("%r: %s", line[:200], error)
    finally:
        pack.close()
    return 0


if __name__ == "__main__":
    hide_scipy()
    code = main()
    sys.stdout.flush()
    # Threads that still wait on a socket must not keep the process.
    os._exit(code)
