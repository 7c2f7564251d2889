"""How a backend runs one shard or one worker: all that differs between backends once a run has begun."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass

from cirrus.client_backend.fleet import WorkerEvent, WorkerResult
from cirrus.metrics import RunStatus


@dataclass(frozen=True, kw_only=True)
class CostCorrection:
    """Dollars to be added to what shard 0 has counted."""

    workers: float = 0.0
    servers: float = 0.0

    @classmethod
    def made(cls, status: RunStatus | None) -> CostCorrection:
        """Return what clients have added to a status' cost."""
        if status is None:
            return cls()
        return cls(workers=status.worker_correction, servers=status.server_correction)

    def plus(self, other: CostCorrection) -> CostCorrection:
        """Return both together."""
        return CostCorrection(workers=self.workers + other.workers, servers=self.servers + other.servers)

    def apply(self, status: RunStatus) -> RunStatus:
        """Return a status with this correction in its cost, and no other."""
        made = CostCorrection.made(status)
        worker_cost = max(0.0, status.worker_cost + self.workers - made.workers)
        cost = status.cost + self.workers - made.workers + self.servers - made.servers
        return dataclasses.replace(
            status,
            cost=max(worker_cost, cost),
            worker_cost=worker_cost,
            worker_correction=self.workers,
            server_correction=self.servers,
        )


class Launcher(ABC):
    """How a backend runs the shards and workers of one run.

    ``run_shard`` and ``invoke`` are called from many threads at once, and block. ``close`` makes all of them
    return.

    Attributes:
        status_age_seconds: How old the run's status may be that the client's threads share; 0: always new.
        silent_seconds: Shard 0 of a run at work is taken for stuck when its status stands still for this
            long; None: something else watches it.
    """

    status_age_seconds: float = 0.0
    silent_seconds: float | None = None

    @property
    def notices(self) -> tuple[str, ...]:
        """What the user should know, such as that there are fewer workers than wanted."""
        return ()

    @property
    def phase(self) -> str:
        """What the start-up is waiting for, in words; may be empty."""
        return ""

    def cost_correction(self) -> CostCorrection:
        """Return the dollars that shard 0 could not know of, or has counted too much (below 0)."""
        return CostCorrection()

    @abstractmethod
    def run_shard(self, shard: int, generation: int) -> None:
        """Run one incarnation of a shard; return when it ended in order.

        Raises:
            CirrusError: It crashed, or could not be started.
        """

    def end_stuck_shard(self, shard: int) -> None:
        """Kill what runs a shard that is stuck; :meth:`run_shard` then fails, and it is started anew."""
        return

    @abstractmethod
    def invoke(self, event: WorkerEvent) -> WorkerResult:
        """Run one generation of a worker.

        Raises:
            CirrusError: It failed.
        """

    @abstractmethod
    def close(self) -> None:
        """End all workers and shards, who snapshot; takes 2.5 s at most and may be called again."""

    def let_go(self) -> None:
        """End what is in this process' care, of a run that another client has taken over since.

        What that client has in its care is left alone. May take as long as :meth:`close`.
        """
        self.close()

    @abstractmethod
    def kill(self) -> None:
        """End everything now; does not wait."""
