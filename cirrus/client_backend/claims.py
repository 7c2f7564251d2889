"""Who supervises a run: taking the claim on it, and telling whether its holder still lives."""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Iterable

from cirrus.run_folder import CLAIM_SECONDS, ClientClaim, RunFolder

#: How long a new supervisor waits for the shard processes of the one before, who snapshot and end when they
#: lose
#: their parent. They could do no harm later, but what they save saves repeating steps.
PREDECESSOR_SECONDS = 3.0
PREDECESSOR_POLL_SECONDS = 0.02


def new_claim() -> ClientClaim:
    """Return a claim of this process, with an identity of its own."""
    return ClientClaim(
        client_id=secrets.token_hex(8),
        host=socket.gethostname(),
        pid=os.getpid(),
        renewed_at=time.time(),
    )


def take_claim(folder: RunFolder, claim: ClientClaim) -> None:
    """Become the supervisor of a run.

    A holder on this machine whose process has ended need not be waited for.

    Raises:
        ConflictError: Another living client supervises the run.
    """
    holder = folder.claim_holder()
    dead = holder is not None and is_local(holder) and not process_exists(holder.pid)
    folder.claim(claim, dead_client=holder.client_id if holder is not None and dead else None)
    if holder is not None and is_local(holder):
        addresses = (folder.shard_address(shard) for shard in range(folder.config().n_shards))
        await_exit(address.pid for address in addresses if address is not None)


def is_held(claim: ClientClaim | None, now: float) -> bool:
    """Return whether a living client supervises the run, as its claim tells at the Unix time ``now``."""
    return claim is not None and not claim.released and now - claim.renewed_at < CLAIM_SECONDS


def is_local(claim: ClientClaim) -> bool:
    """Return whether the claim's holder is, or was, a process of this machine."""
    return claim.host == socket.gethostname()


def process_exists(pid: int) -> bool:
    """Return whether there is a process of this id on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def await_exit(pids: Iterable[int], seconds: float = PREDECESSOR_SECONDS) -> None:
    """Wait until no process has one of these ids any more, or for so long."""
    alive = {pid for pid in pids if pid > 0 and pid != os.getpid()}
    end = time.monotonic() + seconds
    while (alive := {pid for pid in alive if process_exists(pid)}) and time.monotonic() < end:
        time.sleep(PREDECESSOR_POLL_SECONDS)  # they are no children of ours: there is nothing to wait on
