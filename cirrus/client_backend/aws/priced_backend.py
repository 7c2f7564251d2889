"""What runs on AWS cost: by the model beforehand, and as shard 0 counts it while they work."""

from __future__ import annotations

from typing import Self

from cirrus.client_backend.aws import cost
from cirrus.client_backend.aws.deployment import Deployment
from cirrus.client_backend.aws.rates import Rates
from cirrus.client_backend.aws.seats import MAX_SEATS
from cirrus.client_backend.base import Backend
from cirrus.config import BackendRecord, WorkerPrices

#: A new server takes so long to host its first shard, by the model.
MODELLED_STARTUP_SECONDS = 90.0


class PricedBackend(Backend):
    """The part of :class:`~cirrus.client_backend.aws.backend.AWSBackend` that knows prices.

    Attributes:
        deployment: Where things run.
        generation_seconds: Lifetime of one invocation of a worker.
    """

    deployment: Deployment
    generation_seconds: float
    _rates: Rates
    _shards_per_server: int | None
    _has_many_runs: bool = False

    @property
    def record(self) -> BackendRecord:
        """See :attr:`Backend.record`."""
        return BackendRecord(name="aws")

    @property
    def shards_per_server(self) -> int:
        """Seats of a server: so many shards it hosts at most, of whatever runs."""
        return self._shards_per_server or min(self._rates.instance.vcpus, MAX_SEATS)

    def n_servers(self, n_shards: int) -> float:
        """Return how many servers a run of so many shards pays for.

        A run by itself is reckoned to be alone on its servers, and pays whole ones. Runs of a search share
        them, and each pays its seats. What a run has paid at its end is measured
        (:mod:`cirrus.client_backend.aws.server_bill`).
        """
        if self._has_many_runs:
            return n_shards / self.shards_per_server
        return -(-n_shards // self.shards_per_server)

    def dollars_per_hour(self, n_workers: int, n_shards: int) -> float:
        """Return what servers and the run folder's requests cost; workers cost by their own time."""
        servers = self.n_servers(n_shards) * self._rates.server_dollars_per_hour
        return servers + self._rates.control_dollars_per_hour

    def for_many_runs(self) -> Self:
        """See :meth:`Backend.for_many_runs`: servers are shared anyway; here each run pays its part alone."""
        shared = super().for_many_runs()
        shared._has_many_runs = True
        return shared

    def worker_prices(self, memory_mb: int) -> WorkerPrices:
        """See :meth:`Backend.worker_prices`."""
        return cost.worker_prices(self._rates.region, self.deployment.architecture, memory_mb)

    def model_cost(
        self,
        *,
        seconds: float,
        n_workers: int,
        n_shards: int,
        memory_mb: int,
        startup_seconds: float = MODELLED_STARTUP_SECONDS,
        chunk_reads: int = 0,
        stored_bytes: float = 0.0,
        cross_zone_bytes: float = 0.0,
    ) -> cost.CostEstimate:
        """Return what a run would cost by the model.

        Args:
            seconds: How long the workers work.
            n_workers: Workers at work all that time.
            n_shards: Shards.
            memory_mb: Size of a worker.
            startup_seconds: How long the servers run before; 0 for warm ones.
            chunk_reads: Reads of data, over all epochs.
            stored_bytes: Data in the bucket, for as long as the run lasts.
            cross_zone_bytes: What functions and servers exchange over zones; none where they share one.
        """
        return cost.model_cost(
            self._rates.region,
            self._rates.instance,
            architecture=self.deployment.architecture,
            seconds=seconds,
            n_workers=n_workers,
            n_servers=self.n_servers(n_shards),
            disk_gb=self.deployment.disk_gb,
            memory_mb=memory_mb,
            generation_seconds=self.generation_seconds,
            startup_seconds=startup_seconds,
            chunk_reads=chunk_reads,
            stored_bytes=stored_bytes,
            cross_zone_bytes=cross_zone_bytes,
            spot_dollars_per_hour=self._rates.spot_price,
        )
