"""How far a run is, beside its ledger: sums of what leases report, losses of epochs, patience with them.

What of it must outlive shard 0 is in :meth:`RunProgress.to_plain`, a part of the coordinator's snapshot.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from cirrus.config import PATIENCE_EPOCHS
from cirrus.paramserver.protocol import Complete

#: Of so many of an epoch's rows losses must be known for its mean to stand beside those of other epochs.
KNOWN_SHARE = 0.99


@dataclass(slots=True)
class Sums:
    """What leases reported since some moment."""

    loss: float = 0.0
    weight: float = 0.0
    fetch: float = 0.0
    pull: float = 0.0
    compute: float = 0.0
    push: float = 0.0

    def add(self, done: Complete) -> None:
        """Count what a lease reports."""
        self.loss += done.loss_sum
        self.weight += done.weight_sum
        self.fetch += done.fetch_seconds
        self.pull += done.pull_seconds
        self.compute += done.compute_seconds
        self.push += done.push_seconds

    @property
    def mean_loss(self) -> float | None:
        """The mean over the rows, None without any."""
        return self.loss / self.weight if self.weight > 0 else None


@dataclass(slots=True)
class EpochLoss:
    """What the leases of an epoch reported; the mean does not depend on the order in which they came.

    Who takes up a lease in its middle reports the rest of it: what a killed worker found before is not known.
    """

    losses: list[float] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    n_rows: int = 0

    def add(self, done: Complete) -> None:
        """Count what a lease reports."""
        self.losses.append(done.loss_sum)
        self.weights.append(done.weight_sum)
        self.n_rows += done.n_rows

    def covers(self, n_rows: int) -> bool:
        """Tell whether it is the loss of about all rows of an epoch, not of those that happen to be known."""
        return self.n_rows >= KNOWN_SHARE * n_rows

    @property
    def mean(self) -> float | None:
        """The mean over the rows, None without any."""
        weight = math.fsum(self.weights)
        return math.fsum(self.losses) / weight if weight > 0 else None


@dataclass(slots=True)
class Patience:
    """scikit-learn's rule: stop after PATIENCE_EPOCHS without an improvement of ``tol``."""

    best: float = math.inf
    waited: int = 0

    def is_over(self, loss: float | None, tol: float) -> bool:
        """Look at the loss of one more epoch; tell whether it was the last one to wait for.

        Args:
            loss: None where it is not known of enough rows: the epoch is then as if it had not been.
            tol: What is an improvement.
        """
        if loss is None:
            return False
        if loss > self.best - tol:
            self.waited += 1
        else:
            self.waited = 0
        self.best = min(self.best, loss)
        return self.waited >= PATIENCE_EPOCHS


@dataclass(slots=True)
class RunProgress:
    """What a snapshot keeps beside the ledger."""

    #: What a run that goes on from another's checkpoint does not take over, as JSON.
    FRESH: ClassVar[Mapping[str, Any]] = {"seconds": 0.0, "lifetime": 0.0, "best": None, "waited": 0}

    samples: int = 0
    updates: int = 0
    seconds: float = 0.0
    """That former generations of shard 0 have worked."""
    lifetime: float = 0.0
    """That they were up."""
    completed_epochs: int = 0
    train_loss: float | None = None
    validation_loss: float | None = None
    patience: Patience = field(default_factory=Patience)
    epoch_loss: EpochLoss = field(default_factory=EpochLoss)
    epoch_is_known: bool = True
    """Whether ``train_loss`` at the end of the last epoch was of about all of its rows."""

    def to_plain(self, *, seconds: float, lifetime: float) -> dict[str, Any]:
        """Return it as JSON.

        Args:
            seconds: That the run has worked by now.
            lifetime: That shard 0 has been up by now, in all generations.
        """
        return {
            "samples": self.samples,
            "updates": self.updates,
            "seconds": seconds,
            "lifetime": lifetime,
            "completed_epochs": self.completed_epochs,
            "train_loss": self.train_loss,
            "validation_loss": self.validation_loss,
            "best": None if math.isinf(self.patience.best) else self.patience.best,
            "waited": self.patience.waited,
            "epoch_losses": list(self.epoch_loss.losses),
            "epoch_weights": list(self.epoch_loss.weights),
            "epoch_rows": self.epoch_loss.n_rows,
            "epoch_is_known": self.epoch_is_known,
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> RunProgress:
        """Read what :meth:`to_plain` returned, whatever else is beside it.

        Raises:
            LookupError: Something is missing.
            TypeError: Something is of another kind.
            ValueError: The same.
        """
        best = plain["best"]
        return cls(
            samples=int(plain["samples"]),
            updates=int(plain["updates"]),
            seconds=float(plain["seconds"]),
            lifetime=float(plain["lifetime"]),
            completed_epochs=int(plain["completed_epochs"]),
            train_loss=plain["train_loss"],
            validation_loss=plain["validation_loss"],
            patience=Patience(math.inf if best is None else float(best), int(plain["waited"])),
            # Snapshots of before have no rows: their epoch is one that is not known.
            epoch_loss=EpochLoss(
                list(plain["epoch_losses"]), list(plain["epoch_weights"]), int(plain.get("epoch_rows", 0))
            ),
            epoch_is_known=bool(plain.get("epoch_is_known", True)),
        )
