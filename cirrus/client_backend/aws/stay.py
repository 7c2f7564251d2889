"""One run's stay on an instance: from the booking of its seats until its shards have ended."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from cirrus.client_backend.aws.run_service import RunService
from cirrus.client_backend.aws.seats import Booking
from cirrus.client_backend.local import LocalCommands
from cirrus.errors import CirrusError
from cirrus.paramserver.host_records import HostPhase
from cirrus.run_folder import RunFolder

log = logging.getLogger(__name__)

#: How often a stay looks at its run's client.
LOOK_SECONDS = 1.0

#: Tells how far a booking's service is, and why it failed if it has.
Report = Callable[[Booking, HostPhase, Exception | None], None]


class Stay:
    """Serves one booking in a thread of its own; what becomes of it concerns no other run.

    Args:
        booking: What is served.
        url: Of the run's folder.
        commands: How its shards are started.
        report: Told how far it is.
        on_end: Called when its shards have ended.
        client_lost_seconds: As for :class:`RunService`.
    """

    def __init__(
        self,
        booking: Booking,
        url: str,
        commands: LocalCommands,
        report: Report,
        on_end: Callable[[], None],
        *,
        client_lost_seconds: float,
    ) -> None:
        self.booking = booking
        self.client_lost = False
        """True when it ended because the run's client gave no sign of life."""
        self.phase = HostPhase.SERVING
        """How far it is."""
        self._url = url
        self._commands = commands
        self._report = report
        self._on_end = on_end
        self._ended = threading.Event()
        self._client_lost_seconds = client_lost_seconds
        self._asked: HostPhase | None = None
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"stay-{booking.number}", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def leave(self, phase: HostPhase) -> None:
        """Have the shards save themselves and end, soon; a run that is over is not asked any more.

        Args:
            phase: What is reported then.
        """
        self._asked = self._asked or phase
        self._leaving.set()

    @property
    def has_ended(self) -> bool:
        """True when no shard of it works any more, and that was reported."""
        return self._ended.is_set()

    def join(self) -> None:
        """Wait for the end."""
        self._thread.join()

    def _run(self) -> None:
        try:
            self._serve_and_report()
        finally:  # or the instance would wait for it for ever
            self._ended.set()
            self._on_end()

    def _serve_and_report(self) -> None:
        error: Exception | None
        try:
            phase, error = self._serve()
        except CirrusError as raised:
            log.exception("run %s cannot be served", self.booking.run)
            phase, error = HostPhase.FAILED, raised
        except Exception as raised:  # noqa: BLE001 (a thread that died of a bug would go unseen)
            log.exception("serving run %s failed", self.booking.run)
            phase, error = HostPhase.FAILED, raised
        log.info("run %s: %s", self.booking.run, phase)
        self.phase = phase
        self._report(self.booking, phase, error)

    def _serve(self) -> tuple[HostPhase, Exception | None]:
        """Host the shards until the run is over, fails, or is asked to leave; return how that ended."""
        service = RunService(
            RunFolder(self._url),
            self.booking.shards,
            self._commands,
            client_lost_seconds=self._client_lost_seconds,
        )
        self._report(self.booking, HostPhase.SERVING, None)
        service.start()
        try:
            while (phase := service.look()) is None:
                if self._leaving.wait(LOOK_SECONDS):
                    phase = service.look() or self._asked or HostPhase.INTERRUPTED
                    break
        finally:
            service.end()
        self.client_lost = service.client_lost
        return phase, service.failure
