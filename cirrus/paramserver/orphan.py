"""A shard without its client: works as long as workers live, or until another client comes; then it ends.

For runs with ``on_client_loss="continue"``. Nothing here trusts a clock of another process: what others
write is compared with what it was.
"""

from __future__ import annotations

import logging

from cirrus.errors import CirrusError
from cirrus.paramserver.server import Shard
from cirrus.paramserver.watching import Unchanged
from cirrus.run_folder import ClientClaim, RunFolder

log = logging.getLogger(__name__)

#: How often a shard without a client looks around.
LOOK_SECONDS = 0.2
#: Shard 0 ends when it has had no worker for this long: one may just be coming back from a lost connection.
WORKERLESS_SECONDS = 5.0
#: The others end when shard 0 has not renewed the status for this long.
SILENT_SECONDS = 15.0


def outlive_client(shard: Shard) -> None:
    """Keep a shard at work without its client until no worker is left or a new client comes; then stop it."""
    log.warning("shard %d has lost its client, and goes on as long as workers do", shard.shard)
    claim = _claim(shard.folder)
    workerless, status = Unchanged(), Unchanged()
    while not shard.stopping.wait(LOOK_SECONDS):
        try:
            claim = claim or _claim(shard.folder)
            reason = _successor(shard.folder, claim) or _lack(shard, workerless, status)
        except CirrusError as error:
            log.info("shard %d cannot look around: %s", shard.shard, error)
            continue
        if reason is not None:
            log.warning("shard %d stops: %s", shard.shard, reason)
            shard.stop()
            return


def _claim(folder: RunFolder) -> ClientClaim | None:
    try:
        return folder.claim_holder()
    except CirrusError:
        return None


def _successor(folder: RunFolder, lost: ClientClaim | None) -> str | None:
    """Return who takes the run over, if somebody does: who waits for this shard's last snapshot."""
    holder = folder.claim_holder()
    if holder is None or lost is None or holder.client_id == lost.client_id:
        return None
    return f"process {holder.pid} on {holder.host} takes the run over"


def _lack(shard: Shard, workerless: Unchanged, status: Unchanged) -> str | None:
    """Return what the shard cannot go on without, if that is gone."""
    if shard.shard == 0:
        at_work = shard.has_workers
        # As long as somebody works the value is always new.
        gone = workerless.seconds(object() if at_work else "nobody") > WORKERLESS_SECONDS
        return f"no worker for {WORKERLESS_SECONDS:.0f} s" if gone else None
    said = shard.folder.status()
    if said is not None and said.state.ended:
        return f"the run is {said.state}"
    silent = status.seconds(None if said is None else said.heartbeat_at) > SILENT_SECONDS
    return f"shard 0 was silent for {SILENT_SECONDS:.0f} s" if silent else None
