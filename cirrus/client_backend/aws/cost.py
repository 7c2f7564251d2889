"""What a run costs: modelled before it begins, measured as far as anybody reports it.

Modelled, per hour: ``servers + workers * (memory in GB * price of a GB second * 3600)``, with requests and
disks. Measured: shard 0 adds up what the workers say of their own time, at the same prices; what
Lambda bills in truth (cold starts, rounding) comes with the reports in the answers, and corrects the sum at
the end.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from cirrus.client_backend.aws.prices import HOURS_PER_MONTH, InstancePrice, RegionPrices
from cirrus.config import WorkerPrices

#: Requests to the object store an hour, of a client and shard 0 that renew claim, status and metrics.
CONTROL_PUTS_PER_HOUR = 12_000
CONTROL_GETS_PER_HOUR = 10_000
SECONDS_PER_HOUR = 3600.0
MB_PER_GB = 1024.0
BYTES_PER_GB = 1e9


@dataclass(frozen=True, kw_only=True)
class CostEstimate:
    """A run's dollars, item by item."""

    workers: float
    """Time of the functions."""
    invocations: float
    servers: float
    """Instances and their disks."""
    storage: float
    """What lies in the bucket, for as long as the run lasts."""
    storage_requests: float
    cross_zone: float
    """Bytes between availability zones; 0 where functions and servers share one."""

    @property
    def total(self) -> float:
        """All of it."""
        return float(sum(dataclasses.astuple(self)))


def worker_prices(prices: RegionPrices, architecture: str, memory_mb: int) -> WorkerPrices:
    """Return what a function of a size costs by its time."""
    return WorkerPrices(
        dollars_per_second=memory_mb / MB_PER_GB * prices.lambda_gb_second[architecture],
        dollars_per_invocation=prices.lambda_request,
    )


def server_dollars_per_hour(
    prices: RegionPrices,
    instance: InstancePrice,
    *,
    disk_gb: float,
    spot_dollars_per_hour: float | None = None,
) -> float:
    """Return what one server costs with its disk.

    Args:
        prices: The region's.
        instance: Its type.
        disk_gb: Size of its disk.
        spot_dollars_per_hour: What a spot instance costs now; None: on demand.
    """
    hourly = instance.dollars_per_hour if spot_dollars_per_hour is None else spot_dollars_per_hour
    return hourly + disk_gb * prices.disk_gb_month / HOURS_PER_MONTH


def control_dollars_per_hour(prices: RegionPrices) -> float:
    """Return what the requests cost that keep a run's folder up to date."""
    return CONTROL_PUTS_PER_HOUR * prices.s3_put + CONTROL_GETS_PER_HOUR * prices.s3_get


def model_cost(
    prices: RegionPrices,
    instance: InstancePrice,
    *,
    architecture: str,
    seconds: float,
    n_workers: int,
    n_servers: float,
    disk_gb: float,
    memory_mb: int,
    generation_seconds: float,
    startup_seconds: float = 0.0,
    chunk_reads: int = 0,
    stored_bytes: float = 0.0,
    cross_zone_bytes: float = 0.0,
    spot_dollars_per_hour: float | None = None,
) -> CostEstimate:
    """Return what a run costs by the model.

    Args:
        prices: The region's.
        instance: The servers' type.
        architecture: Of the functions.
        seconds: How long the workers work.
        n_workers: Functions at work all that time.
        n_servers: Servers that the run pays for; a part of one where it shares it.
        disk_gb: Size of a server's disk.
        memory_mb: Size of a function.
        generation_seconds: Lifetime of one invocation.
        startup_seconds: How long the servers run before the workers work.
        chunk_reads: Range requests for data, over all epochs.
        stored_bytes: Data and models in the bucket.
        cross_zone_bytes: What functions and servers exchange over zones, both directions together.
        spot_dollars_per_hour: Of a server; None: on demand.
    """
    rates = worker_prices(prices, architecture, memory_mb)
    generations = max(1.0, seconds / generation_seconds)
    hours = (seconds + startup_seconds) / SECONDS_PER_HOUR
    server = server_dollars_per_hour(
        prices, instance, disk_gb=disk_gb, spot_dollars_per_hour=spot_dollars_per_hour
    )
    return CostEstimate(
        workers=n_workers * seconds * rates.dollars_per_second,
        invocations=n_workers * generations * rates.dollars_per_invocation,
        servers=n_servers * hours * server,
        storage=stored_bytes / BYTES_PER_GB * prices.s3_gb_month * hours / HOURS_PER_MONTH,
        storage_requests=chunk_reads * prices.s3_get + hours * control_dollars_per_hour(prices),
        cross_zone=2 * cross_zone_bytes / BYTES_PER_GB * prices.cross_zone_gb,
    )
