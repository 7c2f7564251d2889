"""The client's side of a run on Ray: it talks to the run's controller, and to nobody else."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import logging
import os
import threading
import time
from typing import Any

import ray
from ray import exceptions

from cirrus.client_backend.fleet import AttemptError
from cirrus.client_backend.ray.cluster import ClusterSilence, end_now, explain, lost_cluster
from cirrus.client_backend.ray.controller import Look
from cirrus.client_backend.supervisor import CLAIM_RENEW_SECONDS
from cirrus.errors import CirrusError, RunError
from cirrus.metrics import RunState, RunStatus
from cirrus.run_folder import ClientClaim, RunFolder

log = logging.getLogger(__name__)

#: How long a look at the run waits for its end.
LOOK_SECONDS = 0.5
#: A controller that has not answered for so long is lost: Ray starts it again within this time, if it can.
LOST_SECONDS = 60.0
ANSWER_SECONDS = 10.0
#: How long :meth:`RemoteSupervision.close` waits for the end of everything. Ctrl-C promises 3 seconds.
CLOSE_SECONDS = 4.0
BEGIN_POLL_SECONDS = 0.2
#: Where a lost cluster is back.
_ADVICE = "attach goes on with the run"
#: Nothing has been heard of the run yet.
_UNKNOWN = Look(ended=False)


class RemoteSupervision:
    """Follows a run's controller, and has it end the run with this process.

    Args:
        controller: The actor.
        client_id: Who this is to the controller.
        folder: The run's.
        claim: This client's claim on a run that its controller has to begin; None: it is at work.
    """

    is_temporary = False

    def __init__(
        self, controller: Any, client_id: str, folder: RunFolder, claim: ClientClaim | None = None
    ) -> None:
        self._controller = controller
        self._client_id = client_id
        self._folder = folder
        self._claim = claim
        self._process_id = os.getpid()
        self._ended = threading.Event()
        self._closing = threading.Event()
        self._look = _UNKNOWN
        self._failure: CirrusError | None = None
        self._thread = threading.Thread(target=self._follow, name="cirrus-ray-follow", daemon=True)

    @property
    def failure(self) -> CirrusError | None:
        """See :attr:`Supervision.failure`."""
        return self._failure

    @property
    def ended(self) -> bool:
        """See :attr:`Supervision.ended`."""
        return self._ended.is_set()

    @property
    def phase(self) -> str:
        """See :attr:`Supervision.phase`."""
        return self._look.phase or "waiting for the run's controller"

    @property
    def notices(self) -> tuple[str, ...]:
        """See :attr:`Supervision.notices`."""
        return self._look.notices

    @property
    def look(self) -> Look:
        """What the controller said last."""
        return self._look

    def start(self) -> None:
        """See :meth:`Supervision.start`."""
        atexit.register(self.close)
        self._thread.start()

    def wait(self, timeout: float | None) -> bool:
        """See :meth:`Supervision.wait`."""
        return self._ended.wait(timeout)

    def close(self) -> None:
        """See :meth:`Supervision.close`."""
        if os.getpid() != self._process_id:
            return
        self.close_soon()
        if self._thread.ident is not None:
            self._ended.wait(CLOSE_SECONDS)

    def close_soon(self) -> None:
        """See :meth:`Supervision.close_soon`."""
        self._closing.set()

    def remove(self) -> None:
        """See :meth:`Supervision.remove`: runs on a cluster are not temporary."""

    # What the thread does.

    def _follow(self) -> None:
        try:
            if self._claim is None or self._begin(self._claim):
                self._follow_to_end()
        except exceptions.RayTaskError as error:
            cause = error.cause
            self._failure = cause if isinstance(cause, CirrusError) else AttemptError(str(cause or error))
            end_now(self._controller)
        except exceptions.RayError as error:
            self._failure = RunError(f"the run's controller was lost: {explain(error)}")
        except CirrusError as error:
            self._failure = error
        except (Exception, SystemExit) as error:  # noqa: BLE001 (the cluster is gone: Ray says so in many ways)
            self._failure = lost_cluster(error)
        finally:
            atexit.unregister(self.close)
            with contextlib.suppress(CirrusError):
                self._settle()
            self._ended.set()

    def _begin(self, claim: ClientClaim) -> bool:
        """Have the controller begin; hold the claim until it does; return False if the run ends before."""
        begun = self._controller.begin.remote()
        silence = ClusterSilence(_ADVICE)
        while not ray.wait([begun], timeout=BEGIN_POLL_SECONDS)[0]:
            silence.check()
            if self._closing.is_set():
                self._controller.close.remote()
                if not ray.wait([begun], timeout=CLOSE_SECONDS / 2)[0]:
                    end_now(self._controller)
                    return False
                break
            if time.time() - claim.renewed_at > CLAIM_RENEW_SECONDS:
                claim = dataclasses.replace(claim, renewed_at=time.time())
                with contextlib.suppress(CirrusError):  # the controller has just taken it
                    self._folder.claim(claim)
        ray.get(begun)
        return True

    def _settle(self) -> None:
        """Write how the run ended, where its controller could not."""
        holder = self._folder.claim_holder()
        ours = holder is not None and self._claim is not None and holder.client_id == self._claim.client_id
        if holder is None or not ours or holder.released:
            return
        status = self._folder.status() or RunStatus(state=RunState.STARTING, started_at=time.time())
        if not status.state.ended:
            # One that had begun before can be gone on with.
            failed = self._failure is not None and self._look == _UNKNOWN and holder.number == 1
            self._folder.write_status(
                dataclasses.replace(
                    status,
                    state=RunState.FAILED if failed else RunState.INTERRUPTED,
                    stop_reason="failed" if failed else "interrupted",
                    error=None if self._failure is None else str(self._failure),
                    n_workers=0,
                    workers={},
                    heartbeat_at=time.time(),
                )
            )
        self._folder.claim(dataclasses.replace(holder, released=True))

    def _follow_to_end(self) -> None:
        lost_at = time.monotonic() + LOST_SECONDS
        silence = ClusterSilence(_ADVICE)
        asked_to_close = False
        while True:
            silence.check()
            if self._closing.is_set() and not asked_to_close:
                self._controller.close.remote()
                asked_to_close = True
            try:
                answer = self._controller.look.remote(self._client_id, LOOK_SECONDS)
                self._look = ray.get(answer, timeout=min(ANSWER_SECONDS, silence.limit_seconds / 2))
            except (exceptions.ActorUnavailableError, exceptions.GetTimeoutError) as error:
                if time.monotonic() > lost_at or asked_to_close:
                    raise
                log.info("the run's controller does not answer: %s", error)
                self._closing.wait(LOOK_SECONDS)
                continue
            silence = ClusterSilence(_ADVICE)
            lost_at = time.monotonic() + LOST_SECONDS
            if self._look.ended:
                if self._look.failure is not None:
                    self._failure = AttemptError(self._look.failure)
                with contextlib.suppress(exceptions.RayError):
                    self._controller.leave.remote()
                return
