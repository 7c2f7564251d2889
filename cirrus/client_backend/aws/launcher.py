"""How one run's shards and workers are run on AWS: servers on EC2, functions on Lambda."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from cirrus.client_backend.aws.facade import AwsFacade
from cirrus.client_backend.aws.invocations import BilledTime, Invoker
from cirrus.client_backend.aws.servers import Servers
from cirrus.client_backend.fleet import AttemptError, WorkerEvent, WorkerResult
from cirrus.client_backend.launcher import CostCorrection, Launcher
from cirrus.errors import CirrusError

log = logging.getLogger(__name__)

#: The client's many threads share a status that is this old at most.
STATUS_AGE_SECONDS = 0.5


class Notices:
    """What the user should know, once each; also in the log as warnings."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._texts: list[str] = []

    def add(self, text: str) -> None:
        """Say something."""
        with self._lock:
            if text in self._texts:
                return
            self._texts.append(text)
        log.warning("%s", text)

    @property
    def texts(self) -> tuple[str, ...]:
        """All that was said."""
        with self._lock:
            return tuple(self._texts)


class AwsLauncher(Launcher):
    """Runs the shards and workers of one run.

    Args:
        facade: AWS; this object closes it.
        invoker: For the workers.
        servers: For the shards; None: the job has none.
        notices: Where what the user should know is collected.
        server_dollars_per_second: Of one server, for what shard 0 does not count, or counts too much.
        worker_dollars_per_second: Of one worker.
    """

    status_age_seconds = STATUS_AGE_SECONDS

    def __init__(
        self,
        facade: AwsFacade,
        invoker: Invoker,
        servers: Servers | None,
        notices: Notices,
        *,
        server_dollars_per_second: float = 0.0,
        worker_dollars_per_second: float = 0.0,
    ) -> None:
        self._facade = facade
        self._invoker = invoker
        self._servers = servers
        self._notices = notices
        self._server_dollars_per_second = server_dollars_per_second
        self._worker_dollars_per_second = worker_dollars_per_second
        self._closing = threading.Lock()
        self._closed = False

    @property
    def notices(self) -> tuple[str, ...]:
        """See :attr:`Launcher.notices`."""
        return self._notices.texts

    @property
    def phase(self) -> str:
        """See :attr:`Launcher.phase`."""
        return "" if self._servers is None else self._servers.phase

    @property
    def billed(self) -> BilledTime:
        """What the reports of the invocations say."""
        return self._invoker.billed

    def cost_correction(self) -> CostCorrection:
        """See :meth:`Launcher.cost_correction`."""
        servers = 0.0 if self._servers is None else self._servers.uncounted_seconds
        return CostCorrection(
            workers=self._invoker.billed.correction_seconds * self._worker_dollars_per_second,
            servers=servers * self._server_dollars_per_second,
        )

    def run_shard(self, shard: int, generation: int) -> None:
        """See :meth:`Launcher.run_shard`; the host program decides the generation that the shard gets."""
        if self._servers is None:
            raise AttemptError("this job has no shards", is_permanent=True)
        self._servers.serve(shard, generation)

    def invoke(self, event: WorkerEvent) -> WorkerResult:
        """See :meth:`Launcher.invoke`."""
        return self._invoker.invoke(event)

    def close(self) -> None:
        """See :meth:`Launcher.close`; functions end by themselves once they see that the run is over."""
        self._end(lambda servers: servers.close())

    def let_go(self) -> None:
        """See :meth:`Launcher.let_go`: the run's seats are the other client's."""
        self._end(lambda servers: servers.let_go())

    def _end(self, end_servers: Callable[[Servers], None]) -> None:
        with self._closing:
            if self._closed:
                return
            self._invoker.close()
            try:
                if self._servers is not None:
                    end_servers(self._servers)
            except CirrusError as error:
                self._notices.add(
                    f"servers may still be at work, and cost ({error}): 'cirrus kill' the run, or wait: they"
                    " end by themselves when no client is heard of"
                )
            finally:
                self._facade.close()
            self._closed = True

    def kill(self) -> None:
        """See :meth:`Launcher.kill`: ends what :meth:`close` has not, which EC2 does in one call."""
        if not self._closing.locked():
            self.close()
