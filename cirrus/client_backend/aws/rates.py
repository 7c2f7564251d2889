"""What the servers of a backend cost: its deployment, its price table, and the spot price of the moment."""

from __future__ import annotations

import contextlib
from functools import cached_property

import boto3.session

from cirrus.client_backend.aws import cost
from cirrus.client_backend.aws.deployment import Deployment
from cirrus.client_backend.aws.facade import AwsFacade
from cirrus.client_backend.aws.prices import InstancePrice, PriceTable, RegionPrices


class Rates:
    """Prices as they apply to one backend; each is looked up when somebody first wants to know it.

    Args:
        table: All prices.
        deployment: Where things run.
        instance_type: Of the servers.
        spot: Servers are spot instances.
    """

    def __init__(self, table: PriceTable, deployment: Deployment, instance_type: str, spot: bool) -> None:
        self._table = table
        self._deployment = deployment
        self._instance_type = instance_type
        self._spot = spot

    @cached_property
    def region(self) -> RegionPrices:
        """The region's prices."""
        return self._table.region(self._deployment.region)

    @cached_property
    def instance(self) -> InstancePrice:
        """What a server costs on demand, and what it has."""
        return self._table.instance(self._deployment.region, self._instance_type)

    @cached_property
    def spot_price(self) -> float | None:
        """What a spot server costs an hour now, or None where it is on demand or nobody says."""
        if not self._spot:
            return None
        region = self._deployment.region
        with contextlib.closing(AwsFacade(boto3.session.Session(), region=region)) as facade:
            return facade.spot_price(self._instance_type, self._deployment.availability_zone)

    @property
    def server_dollars_per_hour(self) -> float:
        """What one server costs with its disk."""
        return cost.server_dollars_per_hour(
            self.region,
            self.instance,
            disk_gb=self._deployment.disk_gb,
            spot_dollars_per_hour=self.spot_price,
        )

    @property
    def control_dollars_per_hour(self) -> float:
        """What the requests cost that keep a run's folder up to date."""
        return cost.control_dollars_per_hour(self.region)

    def counted_servers(self, dollars_per_hour: float) -> float:
        """Return how many servers a run's shard 0 counts, which counts by ``RunConfig.dollars_per_hour``."""
        server = self.server_dollars_per_hour
        return max(0.0, dollars_per_hour - self.control_dollars_per_hour) / server if server else 0.0
