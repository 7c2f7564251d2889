"""A shard as an actor: restarted by Ray, restored from its snapshot, gone when nobody needs it."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import ray

from cirrus.client_backend.claims import SignsOfLife
from cirrus.client_backend.homes import local_folder
from cirrus.client_backend.processes import MALLOC_THRESHOLDS
from cirrus.errors import CirrusError, SupersededError
from cirrus.run_folder import RunFolder

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
#: An actor without a shard is ended after this long.
IDLE_SECONDS = 20.0
#: A shard whose controller has not renewed its claim for so long saves itself and ends: nobody is left.
CONTROLLER_LOST_SECONDS = 60.0
#: glibc's names for what :data:`~cirrus.client_backend.processes.MALLOC_THRESHOLDS` sets in children.
_MALLOPT = {-1: "MALLOC_TRIM_THRESHOLD_", -3: "MALLOC_MMAP_THRESHOLD_"}


@dataclass(frozen=True, kw_only=True)
class Report:
    """How a shard or worker ended: as a value, since errors of ours need not be known to Ray."""

    error: str | None = None
    kind: str = ""
    """Class name of the error."""

    @classmethod
    def of(cls, error: BaseException) -> Report:
        """Return the report of an error."""
        return cls(error=str(error) or type(error).__name__, kind=type(error).__name__)


class _Serving:
    """One incarnation of the shard, which several calls may wait for."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.report = Report()


class ShardActor:
    """Runs one shard of one run, one incarnation after the other.

    Args:
        run_url: The run folder.
        shard: Which shard.
        idle_seconds: The actor ends after it had no shard for so long.
    """

    def __init__(self, run_url: str, shard: int, idle_seconds: float = IDLE_SECONDS) -> None:
        self._run_url = run_url
        self._index = shard
        self._idle_seconds = idle_seconds
        self._lock = threading.Lock()
        self._serving: _Serving | None = None
        self._shard: object = None
        self._stopped = False
        self._me = ray.get_runtime_context().current_actor
        log_to_run(run_url, f"shard-{shard}")
        keep_memory()
        threading.Thread(target=self._watch, name=f"shard-{shard}-watch", daemon=True).start()

    @ray.method(max_task_retries=-1)
    def serve(self) -> Report:
        """Run the shard until it ends; Ray calls this again where it restarts the actor.

        The generation is the one after what the run folder names, and what it holds is its newest snapshot's.
        """
        with self._lock:
            serving, leads = self._serving, self._serving is None
            if serving is None:
                serving = self._serving = _Serving()
        if leads:
            try:
                self._serve()
            except SupersededError as error:
                log.info("%s", error)
            except (CirrusError, OSError) as error:
                serving.report = Report.of(error)
            except Exception as error:
                log.exception("shard %d of %s", self._index, self._run_url)
                serving.report = Report.of(error)
            finally:
                with self._lock:
                    self._serving = self._shard = None
                    self._stopped = False  # the next controller may want the shard again
                serving.ended.set()
        serving.ended.wait()
        return serving.report

    def _serve(self) -> None:
        # numba takes a while to load, and the actor can be asked where it is before.
        from cirrus.errors import RunError
        from cirrus.paramserver.server import Shard

        address = RunFolder(self._run_url).shard_address(self._index)
        shard = Shard(
            self._run_url,
            shard=self._index,
            generation=1 if address is None else address.generation + 1,
            # Where Ray's own parts of this node listen, so that workers on others find it, too.
            host=ray.util.get_node_ip_address(),
        )
        shard.start()
        with self._lock:
            self._shard = shard
            stopped = self._stopped
        if stopped:
            shard.stop()
        shard.wait()
        if shard.failed:
            raise RunError(f"shard {self._index} failed; its log says why")

    def where(self) -> str:
        """Return the id of the node that the actor is on."""
        return str(ray.get_runtime_context().get_node_id())

    def stop(self) -> None:
        """Have the shard write a last snapshot and end."""
        from cirrus.paramserver.server import Shard

        with self._lock:
            self._stopped = self._serving is not None
            shard = self._shard
        if isinstance(shard, Shard):
            shard.stop()

    def leave(self) -> None:
        """End the actor for good."""
        ray.actor.exit_actor()

    def _watch(self) -> None:
        """End the actor when it is idle, or when the run's controller is lost for good."""
        folder, controller, idle_since = RunFolder(self._run_url), SignsOfLife(), time.monotonic()
        while True:
            time.sleep(LOOK_SECONDS)
            with self._lock:
                serves = self._serving is not None
            if not serves:
                if time.monotonic() - idle_since > self._idle_seconds:
                    self._me.leave.remote()
                    return
                continue
            idle_since = time.monotonic()
            try:
                claim = folder.claim_holder()
            except CirrusError as error:
                log.warning("the claim on the run cannot be read: %s", error)
                continue
            controller.take(claim)
            if (claim is not None and claim.released) or controller.silent_seconds > CONTROLLER_LOST_SECONDS:
                self.stop()


def log_to_run(run_url: str, name: str) -> None:
    """Have this process log into the run's ``logs/``, where that is a folder, beside Ray's own log."""
    folder = local_folder(run_url)
    if folder is None:
        return
    path = Path(folder) / "logs" / f"{name}.log"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path)
    except OSError as error:
        log.warning("%s: the log cannot be written: %s", path, error)
        return
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(message)s"))
    ours = logging.getLogger("cirrus")
    ours.setLevel(logging.INFO)
    ours.addHandler(handler)


def keep_memory() -> None:
    """Have the allocator keep the memory of minibatches and pushes, as in child processes elsewhere.

    By a call, and not by the environment: Ray would have to start another process for that.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, name in _MALLOPT.items():
            mallopt(parameter, int(MALLOC_THRESHOLDS[name]))
