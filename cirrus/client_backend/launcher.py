"""How a backend runs one shard or one worker: all that differs between backends once a run has begun."""

from __future__ import annotations

from abc import ABC, abstractmethod

from cirrus.client_backend.fleet import WorkerEvent, WorkerResult


class Launcher(ABC):
    """How a backend runs the shards and workers of one run.

    ``run_shard`` and ``invoke`` are called from many threads at once, and block. ``close`` makes all of them
    return.
    """

    @abstractmethod
    def run_shard(self, shard: int, generation: int) -> None:
        """Run one incarnation of a shard; return when it ended in order.

        Raises:
            CirrusError: It crashed, or could not be started.
        """

    @abstractmethod
    def invoke(self, event: WorkerEvent) -> WorkerResult:
        """Run one generation of a worker.

        Raises:
            CirrusError: It failed.
        """

    @abstractmethod
    def close(self) -> None:
        """End all workers, then all shards, who snapshot; takes 2.5 s at most and may be called again."""

    @abstractmethod
    def kill(self) -> None:
        """End everything now; does not wait."""
