"""The program on an instance that hosts shards: ``python -m cirrus.client_backend.aws.host --root s3://BUCKET``.

It learns from the instance's tags which run and shards it was launched for, keeps those shards alive, and
reports how far it is (:mod:`cirrus.paramserver.host_records`). When the run is over it waits for the next
one. When it ends, systemd shuts the instance down, and that terminates it:

- nobody has claimed it for ``--keep-warm-seconds``;
- the run's client has given no sign of life for ``--client-lost-seconds`` (the shards save themselves first);
- AWS takes a spot instance back (likewise);
- it cannot serve its run.

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
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cirrus.client_backend.aws.instance import Instance, InstanceMetadata
from cirrus.client_backend.aws.run_service import RunService
from cirrus.client_backend.aws.standbys import Standbys
from cirrus.client_backend.local import LocalCommands, shard_command, shard_words
from cirrus.client_backend.processes import ChildProcess, child_environment
from cirrus.client_backend.runs import run_url
from cirrus.errors import CirrusError, ConfigError, RunError
from cirrus.paramserver.host_records import (
    HostPhase,
    HostReports,
    HostStatus,
    ServerClaim,
    WarmServer,
    WarmServers,
)
from cirrus.run_folder import RunFolder
from cirrus.storage import open_store

log = logging.getLogger(__name__)

#: How often the host looks at the run's client, and at the claim on itself while it waits.
LOOK_SECONDS = 1.0
CLAIM_LOOK_SECONDS = 0.5
#: AWS tells two minutes before, and advises to look this often.
SPOT_LOOK_SECONDS = 5.0
COMPILE_SECONDS = 300.0
#: A report that the bucket refuses is tried again so often.
REPORT_ATTEMPTS = 3


@dataclass(frozen=True, kw_only=True)
class HostOptions:
    """How a host serves."""

    root: str
    """Object-store URL that ``runs/`` lies in."""
    first_port: int = 0
    """Shard K listens on this port plus K; 0: on one that the kernel chooses."""
    keep_warm_seconds: float = 300.0
    client_lost_seconds: float = 300.0

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not 0 <= self.first_port < 2**16:
            raise ConfigError("first_port", f"must be a port or 0, got {self.first_port}")
        if self.keep_warm_seconds < 0:
            raise ConfigError("keep_warm_seconds", f"must be >= 0, got {self.keep_warm_seconds!r}")
        if self.client_lost_seconds <= 0:
            raise ConfigError("client_lost_seconds", f"must be > 0, got {self.client_lost_seconds!r}")


class Host:
    """Serves one run after the other on one instance.

    Args:
        instance: What the instance was launched as.
        metadata: Tells when AWS takes the instance back.
        options: How to serve.
        command: Command line of a shard process for (run url, shard, generation), for tests of failures.
            Listening addresses are added to it.
    """

    def __init__(
        self,
        instance: Instance,
        metadata: InstanceMetadata,
        options: HostOptions,
        command: Callable[[str, int, int], Sequence[str]] = shard_command,
    ) -> None:
        self._instance = instance
        self._metadata = metadata
        self._options = options
        self._command = command
        self._servers = WarmServers(open_store(options.root))
        self._stop = threading.Event()
        self._spot_look_at = 0.0
        self._standbys = Standbys()

    def stop(self) -> None:
        """Have the shards save themselves and :meth:`run` return, soon; a signal handler may call this."""
        self._stop.set()

    def run(self, prepare: Callable[[], None] | None = None) -> None:
        """Serve until the instance is to be shut down.

        Args:
            prepare: Called once before the first shard is started; compiles the kernels.
        """
        # Started again after a crash, the instance may be at work for a later run than it was launched for.
        claim = self._servers.claim_of(self._instance.instance)
        run, shards = self._instance.run, self._instance.shards
        if claim is not None and claim.run is not None:
            run, shards = claim.run, claim.shards
        if prepare is not None:
            self._report(run, shards, HostPhase.COMPILING)
            try:
                prepare()
            except CirrusError as error:
                log.exception("this instance cannot serve")
                self._report(run, shards, HostPhase.FAILED, error)
                return
        try:
            while True:
                phase = self._serve(run, shards)
                if phase not in (HostPhase.ENDED, HostPhase.INTERRUPTED) or self._stop.is_set():
                    break
                next_claim = self._await_claim(len(shards))
                if next_claim is None or next_claim.run is None:
                    break
                run, shards = next_claim.run, next_claim.shards
        finally:
            self._standbys.close()
        self._servers.forget(self._instance.instance)

    def _serve(self, run: str, shards: tuple[int, ...]) -> HostPhase:
        """Host shards of a run until it is over or cannot go on; return how that ended."""
        try:
            service = RunService(
                RunFolder(run_url(self._options.root, run)),
                shards,
                self._commands(),
                client_lost_seconds=self._options.client_lost_seconds,
            )
        except CirrusError as error:
            log.exception("run %s cannot be served", run)
            self._report(run, shards, HostPhase.FAILED, error)
            return HostPhase.FAILED
        self._report(run, shards, HostPhase.SERVING)
        service.start()
        while (phase := service.look()) is None:
            if self._is_reclaimed():
                service.end()
                phase = HostPhase.RECLAIMED
                break
            if self._stop.wait(LOOK_SECONDS):
                service.end()
                phase = HostPhase.INTERRUPTED
                break
        service.end()
        log.info("run %s: %s", run, phase)
        self._report(run, shards, phase, service.failure)
        if service.client_lost:
            self._stop.set()
        return phase

    def _commands(self) -> LocalCommands:
        def where(shard: int) -> list[str]:
            port = self._options.first_port + shard if self._options.first_port else 0
            return ["--host", self._instance.address, "--port", str(port)]

        def command(url: str, shard: int, generation: int) -> list[str]:
            return [*self._command(url, shard, generation), *where(shard)]

        def standby(url: str, shard: int, generation: int) -> ChildProcess | None:
            return self._standbys.take([*shard_words(url, shard, generation), *where(shard)])

        return LocalCommands(shard=command, standby=standby)

    def _await_claim(self, n_shards: int) -> ServerClaim | None:
        """Wait for the next run; return None when nobody wants the instance."""
        name, seconds = self._instance.instance, self._options.keep_warm_seconds
        if seconds == 0:
            return None
        now = time.time()
        offer = WarmServer(
            instance=name,
            address=self._instance.address,
            since=now,
            until=now + seconds,
            shards=n_shards,
            instance_type=self._instance.instance_type,
        )
        self._servers.offer(offer)
        self._get_standbys_ready(n_shards)
        end = time.monotonic() + seconds
        claim = None
        while claim is None and time.monotonic() < end and not self._is_reclaimed():
            if self._stop.wait(CLAIM_LOOK_SECONDS):
                break
            try:
                claim = self._servers.claim_of(name)
            except CirrusError as error:
                log.warning("the claim cannot be read: %s", error)
        # Whoever writes the claim first decides: from here on no client can believe that it has the instance.
        if claim is None and not self._servers.claim(name, ServerClaim(run=None)):
            claim = self._servers.claim_of(name)
        self._servers.withdraw(name)
        return claim

    def _get_standbys_ready(self, n_shards: int) -> None:
        """Start processes for the shards of the next run, which has as many as this one or as processors."""
        if self._command is not shard_command:
            return
        try:
            self._standbys.start(max(n_shards, os.cpu_count() or 1))
        except RunError as error:  # the next run then starts its shards itself
            log.warning("%s", error)

    def _is_reclaimed(self) -> bool:
        now = time.monotonic()
        if now < self._spot_look_at:
            return False
        self._spot_look_at = now + SPOT_LOOK_SECONDS
        try:
            return self._metadata.is_reclaimed()
        except RunError as error:
            log.warning("%s", error)
            return False

    def _report(
        self, run: str, shards: tuple[int, ...], phase: HostPhase, error: Exception | None = None
    ) -> None:
        status = HostStatus(
            instance=self._instance.instance,
            phase=phase,
            shards=shards,
            at=time.time(),
            error=None if error is None else str(error),
            error_type=None if error is None else type(error).__name__,
        )
        for attempt in range(REPORT_ATTEMPTS):
            try:
                HostReports(open_store(run_url(self._options.root, run))).write(status)
            except CirrusError as problem:
                log.warning("attempt %d: the report cannot be written: %s", attempt + 1, problem)
            else:
                return


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
    parser.add_argument("--first-port", type=int, default=0, help="shard K listens on this port plus K")
    parser.add_argument("--keep-warm-seconds", type=float, default=300.0)
    parser.add_argument("--client-lost-seconds", type=float, default=300.0)
    parsed = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(name)s %(message)s")
    metadata = InstanceMetadata()
    try:
        options = HostOptions(
            root=parsed.root,
            first_port=parsed.first_port,
            keep_warm_seconds=parsed.keep_warm_seconds,
            client_lost_seconds=parsed.client_lost_seconds,
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
