"""Old run folders, which would otherwise add up: every fit leaves one."""

from __future__ import annotations

import logging
import random
import time

from cirrus.client_backend.runs import run_ids, run_url
from cirrus.errors import CirrusError
from cirrus.metrics import RunState
from cirrus.run_folder import RunFolder

log = logging.getLogger(__name__)

#: A run that ended less than this long ago is kept, whatever their number.
YOUNG_SECONDS = 24 * 3600.0
#: How many runs are looked at when another begins: enough to keep up, too few to be noticed.
MOST_LOOKED_AT = 20
#: Nothing is left to do for these; an interrupted run can be attached.
_OVER = frozenset({RunState.FINISHED, RunState.KILLED, RunState.FAILED})


def remove_old_runs(root: str, keep_runs: int, rng: random.Random | None = None) -> list[str]:
    """Remove the folders of some runs that nobody needs any more.

    These are runs that have ended more than :data:`YOUNG_SECONDS` ago, are not among the newest, belong to no
    search, and hold no checkpoint. What fails is left for another time.

    Args:
        root: Object-store URL that holds ``runs/``.
        keep_runs: So many of the newest runs are left alone.
        rng: Chooses which of many runs to look at.

    Returns:
        The ids of the runs removed.
    """
    removed = []
    try:
        old = run_ids(root)[: -keep_runs or None]
        rng = rng or random.Random()  # chooses which to look at  # nosec B311
        for run_id in rng.sample(old, min(len(old), MOST_LOOKED_AT)):
            folder = RunFolder(run_url(root, run_id))
            if _is_done_with(folder):
                folder.remove()
                removed.append(run_id)
    except CirrusError as error:
        log.info("old runs are left in %s: %s", root, error)
    return removed


def _is_done_with(folder: RunFolder) -> bool:
    try:
        status, config = folder.status(), folder.config()
        if status is None or status.state not in _OVER or config.search is not None:
            return False
        is_young = time.time() - status.heartbeat_at < YOUNG_SECONDS
        return not is_young and "checkpoints" not in folder.store.folders("")
    except CirrusError as error:  # a broken folder is for people to look at
        log.info("%s is left: %s", folder.url, error)
        return False
