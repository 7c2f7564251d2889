"""The ledger of a search: what is known of its trials, kept in the search folder by the one who drives it."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cirrus.client_backend.search_folder import SearchFolder, SearchState, Trial, TrialStatus
from cirrus.errors import CirrusError, ConflictError, StorageError
from cirrus.metrics import RunState
from cirrus.run_folder import ClientClaim

log = logging.getLogger(__name__)

#: Numbers of trials at work are written this often; what happens to a trial at once.
STATE_SECONDS = 1.0
REMOTE_STATE_SECONDS = 5.0
CLAIM_RENEW_SECONDS = 3.0
#: So often the last writes are tried again.
FINAL_RETRIES = 5
FINAL_RETRY_SECONDS = 0.1
REMOTE_FINAL_RETRY_SECONDS = 1.0


class Ledger:
    """The trials of a search, the claim on it, and its state, which follows them.

    Everything but :attr:`state` is for the driver's thread.

    Args:
        folder: The search folder; this client holds the claim on it.
        claim: That claim.
        state: Where the search is.
        etag: Of the state in the folder; None: there is none yet.
    """

    def __init__(
        self, folder: SearchFolder, claim: ClientClaim, state: SearchState, etag: str | None
    ) -> None:
        self.folder = folder
        self._claim = claim
        self._state = state
        self._etag = etag
        self._trials = list(state.trials)
        self._seconds_before = state.seconds
        self._started_at = time.monotonic()
        self._renew_at = self._write_at = 0.0
        """When the claim and the state are due again; monotonic seconds."""
        self._state_seconds = REMOTE_STATE_SECONDS if folder.is_remote else STATE_SECONDS
        self._is_dirty = True
        self._lock = threading.Lock()
        """Guards what other threads read: the state."""

    @property
    def state(self) -> SearchState:
        """Where the search was when that was written last; for any thread."""
        with self._lock:
            return self._state

    @property
    def trials(self) -> Sequence[Trial]:
        """All trials, as they are now."""
        return self._trials

    @property
    def seconds(self) -> float:
        """Time spent so far, over all who drove the search."""
        return self._seconds_before + time.monotonic() - self._started_at

    @property
    def cost(self) -> float:
        """Dollars so far, over all trials."""
        return sum(trial.cost for trial in self._trials)

    @property
    def has_queued(self) -> bool:
        """Whether a trial waits to begin."""
        return any(trial.status is TrialStatus.QUEUED for trial in self._trials)

    def put(self, index: int, **changes: Any) -> Trial:
        """Change a trial; a new status is written as soon as can be."""
        self._trials[index] = trial = dataclasses.replace(self._trials[index], **changes)
        self._is_dirty = self._is_dirty or "status" in changes
        return trial

    def put_back(self, trial: Trial) -> None:
        """Have a trial wait as it was before an attempt to begin it."""
        self._trials[trial.index] = dataclasses.replace(trial, status=TrialStatus.QUEUED)

    def append(self, params: Mapping[str, Any]) -> None:
        """Add a trial."""
        self._trials.append(Trial(index=len(self._trials), params=params))
        self._is_dirty = True

    # Writing.

    def renew_if_due(self) -> None:
        """Renew the claim every few seconds.

        Raises:
            ConflictError: Another client drives the search.
        """
        now = time.monotonic()
        if now < self._renew_at:
            return
        self._claim = dataclasses.replace(self._claim, renewed_at=time.time())
        try:
            self.folder.renew_claim(self._claim)
        except ConflictError:
            raise
        except CirrusError as error:  # a store that fails for a moment takes no claim away
            log.warning("the claim on the search cannot be renewed: %s", error)
        self._renew_at = now + CLAIM_RENEW_SECONDS

    def write_if_due(self) -> None:
        """Write the state when anything has happened, else now and then; errors as of :meth:`write`."""
        now = time.monotonic()
        if self._is_dirty or now >= self._write_at:
            self.write()
            self._write_at = now + self._state_seconds

    def write(
        self,
        state: RunState = RunState.RUNNING,
        *,
        stop_reason: str | None = None,
        error: str | None = None,
    ) -> None:
        """Write where the search is.

        Raises:
            ConflictError: Another client drives the search.
            StorageError: It cannot be written.
        """
        written = dataclasses.replace(
            self._state,
            state=state,
            stop_reason=stop_reason,
            error=error,
            trials=tuple(self._trials),
            seconds=self.seconds,
            renewed_at=time.time(),
        )
        try:
            self._etag = self.folder.write_state(written, self._etag)
        except ConflictError:
            self._etag = self.folder.write_state(written, self._etag_of_own())
        with self._lock:
            self._state = written
        self._is_dirty = False

    def _etag_of_own(self) -> str | None:
        """Return the etag of a state that this client wrote, though the answer to that was lost.

        Raises:
            ConflictError: Another client drives the search.
        """
        holder = self.folder.claim_holder()
        if holder is None or holder.client_id != self._claim.client_id:
            raise ConflictError(f"another client drives search {self.folder.url}")
        found = self.folder.read_state()
        return None if found is None else found[1]

    def close(self, state: RunState, stop_reason: str, error: str | None = None) -> None:
        """Write how the search ended, and give the claim back: insisting, as no next step will do it."""
        self._insist(lambda: self.write(state, stop_reason=stop_reason, error=error))
        released = dataclasses.replace(self._claim, renewed_at=time.time(), released=True)
        self._insist(lambda: self.folder.renew_claim(released))

    def _insist(self, write: Callable[[], None]) -> None:
        for _ in range(FINAL_RETRIES):
            try:
                return write()
            except ConflictError:
                raise
            except StorageError as error:
                log.warning("%s: %s: it is tried again", self.folder.url, error)
            # A store wakes nobody when it is back.
            time.sleep(REMOTE_FINAL_RETRY_SECONDS if self.folder.is_remote else FINAL_RETRY_SECONDS)
        return write()
