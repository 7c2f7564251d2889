"""Who supervises a run: taking the claim on it, and telling whether its holder still lives."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import secrets
import socket
import time
from collections.abc import Iterable
from pathlib import Path

from cirrus.run_folder import CLAIM_SECONDS, ClientClaim, RunFolder

#: How long a new supervisor waits for the shard processes of the one before, who snapshot and end when they
#: lose
#: their parent. They could do no harm later, but what they save saves repeating steps.
PREDECESSOR_SECONDS = 3.0
PREDECESSOR_POLL_SECONDS = 0.02
#: Between two looks at a client's claim no more than this counts as its silence.
LONGEST_LOOK_SECONDS = 5.0
#: A claim that may have lapsed is looked at this often.
WATCH_POLL_SECONDS = 0.5


def new_claim() -> ClientClaim:
    """Return a claim of this process, with an identity of its own."""
    return ClientClaim(
        client_id=secrets.token_hex(8),
        host=machine_name(),
        pid=os.getpid(),
        renewed_at=time.time(),
    )


def seize_claim(folder: RunFolder, claim: ClientClaim) -> ClientClaim:
    """Become the one client of a folder; return the claim as it was written, with its number.

    Clocks of two machines need not agree, and one may jump: a claim that was not released has to be watched
    for as long as it takes to lapse, unless its holder was a process of this machine.

    Raises:
        ConflictError: Another living client holds it.
    """
    holder = folder.claim_holder()
    if holder is None:
        folder.claim(claim)
        return claim
    claim = dataclasses.replace(claim, number=holder.number + 1)
    folder.claim(claim, dead=holder if _is_lost(folder, holder) else None)
    return claim


def _is_lost(folder: RunFolder, holder: ClientClaim) -> bool:
    """Return whether the holder of a claim is dead, which may take as long as a claim lasts."""
    if holder.released or is_known_dead(holder):
        return True
    if holder.host == machine_name() and abs(time.time() - holder.renewed_at) < CLAIM_SECONDS:
        return False  # at work here, by all that can be seen; to wait for it again costs little
    end = time.monotonic() + CLAIM_SECONDS
    while time.monotonic() < end:
        time.sleep(WATCH_POLL_SECONDS)  # another process' object wakes nobody
        if folder.claim_holder() != holder:
            return False
    return True


def take_claim(folder: RunFolder, claim: ClientClaim) -> ClientClaim:
    """Become the supervisor of a run, as :func:`seize_claim`, once the shards of the one before have ended.

    Raises:
        ConflictError: Another living client supervises the run.
    """
    holder = folder.claim_holder()
    claim = seize_claim(folder, claim)
    if holder is not None and holder.host == machine_name():
        addresses = (folder.shard_address(shard) for shard in range(folder.config().n_shards))
        await_exit(address.pid for address in addresses if address is not None)
    return claim


class SignsOfLife:
    """Tells for how long a run's client has been silent.

    Its claim is compared with what it was, not with this machine's clock: the client's may be wrong. And time
    in which this machine itself stood still says nothing about the client.

    Args:
        longest_look_seconds: Between two looks no more than this counts as silence.
    """

    def __init__(self, longest_look_seconds: float = LONGEST_LOOK_SECONDS) -> None:
        self._longest_look_seconds = longest_look_seconds
        self._last: ClientClaim | None = None
        self._looked_at = time.monotonic()
        self.silent_seconds = 0.0
        """How long the claim has not changed."""

    def take(self, claim: ClientClaim | None) -> None:
        """Take note of the claim as it is now."""
        now = time.monotonic()
        passed, self._looked_at = now - self._looked_at, now
        if claim != self._last:
            self._last, self.silent_seconds = claim, 0.0
        else:
            self.silent_seconds += min(passed, self._longest_look_seconds)


def is_held(claim: ClientClaim | None, now: float) -> bool:
    """Return whether a living client supervises the run, as far as can be told at the Unix time ``now``.

    An estimate, for people: whoever acts on it takes the claim first, which looks for itself.
    """
    if claim is None or claim.released or is_known_dead(claim):
        return False
    return now - claim.renewed_at < CLAIM_SECONDS


def is_known_dead(claim: ClientClaim) -> bool:
    """Return whether the claim's holder was a process of this machine that has ended."""
    return claim.host == machine_name() and not process_exists(claim.pid)


def machine_name() -> str:
    """Return the host's name with a mark of where process ids mean the same: this boot and this container."""
    mark = hashlib.blake2b(digest_size=4)
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        with contextlib.suppress(OSError):  # not every system has them; then the name must do
            mark.update(os.readlink(path).encode() if "/ns/" in path else Path(path).read_bytes())
    return f"{socket.gethostname()}/{mark.hexdigest()}"


def process_exists(pid: int) -> bool:
    """Return whether a process of this id works on this machine; one that waits to be reaped does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:  # no Linux, or it has just ended
        return True
    return stat.rpartition(b")")[2].split()[0] not in (b"Z", b"X")


def await_exit(pids: Iterable[int], seconds: float = PREDECESSOR_SECONDS) -> None:
    """Wait until no process has one of these ids any more, or for so long."""
    alive = {pid for pid in pids if pid > 0 and pid != os.getpid()}
    end = time.monotonic() + seconds
    while (alive := {pid for pid in alive if process_exists(pid)}) and time.monotonic() < end:
        time.sleep(PREDECESSOR_POLL_SECONDS)  # they are no children of ours: there is nothing to wait on
