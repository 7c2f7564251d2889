"""What AWS charges: a table that is data (``prices.json``), dated, and open to be replaced."""

from __future__ import annotations

import importlib.resources
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cirrus.config import from_plain
from cirrus.errors import ConfigError

log = logging.getLogger(__name__)

#: The region whose prices stand in where a table has none.
DEFAULT_REGION = "us-east-1"
HOURS_PER_MONTH = 730.0


@dataclass(frozen=True, kw_only=True)
class InstancePrice:
    """One instance type."""

    vcpus: int
    memory_gib: float
    baseline_gbps: float
    """Bandwidth that it always has; bursts are higher."""
    dollars_per_hour: float
    """On demand, Linux."""

    def __post_init__(self) -> None:
        """Check every number."""
        for name in ("vcpus", "memory_gib", "baseline_gbps", "dollars_per_hour"):
            if not getattr(self, name) > 0:
                raise ConfigError(name, f"must be > 0, got {getattr(self, name)!r}")


@dataclass(frozen=True, kw_only=True)
class RegionPrices:
    """What things cost in one region, in dollars."""

    lambda_gb_second: Mapping[str, float]
    """By architecture."""
    lambda_request: float
    instances: Mapping[str, InstancePrice]
    disk_gb_month: float
    s3_gb_month: float
    s3_put: float
    """A PUT, POST or LIST request."""
    s3_get: float
    """A GET or HEAD request."""
    cross_zone_gb: float
    """In each direction."""

    def __post_init__(self) -> None:
        """Convert what JSON could not tell."""
        instances = {
            name: raw if isinstance(raw, InstancePrice) else from_plain(InstancePrice, raw, name)
            for name, raw in self.instances.items()
        }
        object.__setattr__(self, "instances", instances)


@dataclass(frozen=True, kw_only=True)
class PriceTable:
    """Prices of several regions at one date."""

    dated: str
    source: str
    regions: Mapping[str, RegionPrices]

    def __post_init__(self) -> None:
        """Convert what JSON could not tell."""
        regions = {
            name: raw if isinstance(raw, RegionPrices) else from_plain(RegionPrices, raw, name)
            for name, raw in self.regions.items()
        }
        if DEFAULT_REGION not in regions:
            raise ConfigError("prices", f"must have the region {DEFAULT_REGION}")
        object.__setattr__(self, "regions", regions)

    def region(self, name: str) -> RegionPrices:
        """Return a region's prices; those of :data:`DEFAULT_REGION` where there are none, and say so."""
        found = self.regions.get(name)
        if found is None:
            log.warning(
                "there are no prices for %s: costs are reckoned at those of %s; give your own with"
                " cirrus.AWSBackend(prices=...)",
                name,
                DEFAULT_REGION,
            )
            return self.regions[DEFAULT_REGION]
        return found

    def instance(self, region: str, instance_type: str) -> InstancePrice:
        """Return the price of an instance type; that in :data:`DEFAULT_REGION` where the region has none.

        Raises:
            ConfigError: The table has none.
        """
        own = self.region(region).instances
        found = own.get(instance_type)
        if found is not None:
            return found
        elsewhere = self.regions[DEFAULT_REGION].instances.get(instance_type)
        if elsewhere is None:
            known = ", ".join(sorted(own))
            raise ConfigError(
                "prices", f"there is no price for {instance_type}; add it, or choose one of {known}"
            )
        log.warning(
            "there is no price for %s in %s: it is reckoned at that of %s; give your own with"
            " cirrus.AWSBackend(prices=...)",
            instance_type,
            region,
            DEFAULT_REGION,
        )
        return elsewhere


def read_prices(path: str | os.PathLike[str] | None = None) -> PriceTable:
    """Read a price table.

    Args:
        path: A JSON file; None: the one that comes with Cirrus.

    Raises:
        ConfigError: It cannot be read, or is no price table.
    """
    try:
        if path is None:
            data = importlib.resources.files(__package__).joinpath("prices.json").read_bytes()
        else:
            data = Path(path).read_bytes()
        return from_plain(PriceTable, json.loads(data), "prices")
    except OSError as error:
        raise ConfigError("prices", f"{path} cannot be read: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise ConfigError("prices", f"{path} is not JSON: {error}") from error
