"""What a run has cost as measured, beside what the model says of the same work.

Measured, and modelled::

    workers   their own seconds, corrected by what Lambda billed     n_workers * seconds * price
    servers   from their starts to their ends, and requests          seconds * dollars_per_hour

The model knows nothing but how long the run worked and how large it is: every worker works from the first
lease to the last, and nobody is started, waited for or replaced. So the difference is what that has cost: the
time in which servers start or have waited for the run, and workers that came late, died or were never there.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cirrus.config import RunConfig, WorkerPrices
from cirrus.metrics import RunStatus

SECONDS_PER_HOUR = 3600.0
#: Measure and model are said to differ where they are further apart than this share of the model.
LARGE_DIFFERENCE = 0.25


@dataclass(frozen=True, kw_only=True)
class CostItem:
    """Dollars of one kind."""

    measured: float
    modelled: float


@dataclass(frozen=True, kw_only=True)
class RunCost:
    """What a run has cost so far."""

    workers: CostItem
    """By their own time and by invocation."""
    servers: CostItem
    """With disks and the requests that keep the run folder up to date."""

    @property
    def measured(self) -> float:
        """All dollars, as ``cost_`` has them."""
        return self.workers.measured + self.servers.measured

    @property
    def modelled(self) -> float:
        """All dollars, by the model."""
        return self.workers.modelled + self.servers.modelled

    @property
    def ratio(self) -> float | None:
        """Measured by modelled; None where the model says nothing, as no lease was given out yet."""
        return self.measured / self.modelled if self.modelled > 0 else None

    @property
    def differs(self) -> bool:
        """True where the two are so far apart that somebody should ask why."""
        return self.ratio is not None and abs(self.ratio - 1.0) > LARGE_DIFFERENCE


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """Size and prices of a run: what its model needs.

    Args:
        n_workers: Workers and evaluators.
        dollars_per_hour: As :attr:`RunConfig.dollars_per_hour`.
        worker_prices: What a worker costs by its time.
        generation_seconds: Lifetime of an invocation; None: as long as it takes.
    """

    n_workers: int = 0
    dollars_per_hour: float = 0.0
    worker_prices: WorkerPrices = field(default_factory=WorkerPrices)
    generation_seconds: float | None = None

    @classmethod
    def of(cls, config: RunConfig) -> CostModel:
        """Return the model of a run."""
        return cls(
            n_workers=config.n_workers + (config.validation_url is not None),
            dollars_per_hour=config.dollars_per_hour,
            worker_prices=config.worker_prices,
            generation_seconds=config.generation_seconds,
        )

    def compare(self, status: RunStatus) -> RunCost:
        """Return what a run has cost by its status, beside what the model says of its working time."""
        seconds, prices = status.seconds, self.worker_prices
        generations = 1.0 if self.generation_seconds is None else max(1.0, seconds / self.generation_seconds)
        worker = seconds * prices.dollars_per_second + generations * prices.dollars_per_invocation
        fixed = seconds * self.dollars_per_hour / SECONDS_PER_HOUR
        return RunCost(
            workers=CostItem(
                measured=status.worker_cost, modelled=self.n_workers * worker if seconds > 0 else 0.0
            ),
            servers=CostItem(measured=status.cost - status.worker_cost, modelled=fixed),
        )
