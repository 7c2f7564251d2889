"""How long workers have worked, as they say themselves: what functions are billed by. It has no clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cirrus.config import WorkerPrices


@dataclass(slots=True)
class _Generation:
    """The newest generation of one worker."""

    number: int
    seconds: float
    at: float | None
    """Monotonic seconds at which ``seconds`` was right and time runs on; None: the generation is not
    connected."""

    def elapsed(self, now: float) -> float:
        return self.seconds if self.at is None else self.seconds + max(0.0, now - self.at)


class WorkerTimes:
    """Adds up the time of all generations of all workers.

    A worker says how long its generation has worked when it registers and with every lease; between and
    after these, its connection is what tells. A generation that registers again, after shard 0 was replaced,
    goes on where it was and is not counted twice.
    """

    def __init__(self) -> None:
        self.invocations = 0
        """Generations that registered."""
        self._settled_seconds = 0.0
        self._newest: dict[str, _Generation] = {}

    def report(self, role: str, worker: int, generation: int, seconds: float, now: float) -> None:
        """A worker registers, or reports a lease.

        Args:
            role: ``train`` or ``evaluate``.
            worker: Its id.
            generation: Its generation; an older one than is known is left out.
            seconds: How long that generation has worked, by its own clock.
            now: Monotonic seconds.
        """
        name = f"{role}-{worker}"
        held = self._newest.get(name)
        if held is None or held.number < generation:
            if held is not None:
                self._settled_seconds += held.elapsed(now)
            self.invocations += 1
            self._newest[name] = _Generation(generation, max(0.0, seconds), now)
        elif held.number == generation:
            held.seconds, held.at = max(held.elapsed(now), seconds), now

    def end(self, role: str, worker: int, generation: int, now: float) -> None:
        """A worker's connection ended."""
        held = self._newest.get(f"{role}-{worker}")
        if held is not None and held.number == generation:
            held.seconds, held.at = held.elapsed(now), None

    def seconds(self, now: float) -> float:
        """Return the seconds of all generations together."""
        return self._settled_seconds + sum(held.elapsed(now) for held in self._newest.values())

    def dollars(self, prices: WorkerPrices, now: float) -> float:
        """Return what the workers have cost so far."""
        return (
            self.seconds(now) * prices.dollars_per_second + self.invocations * prices.dollars_per_invocation
        )

    def to_plain(self, now: float) -> dict[str, Any]:
        """Return what a later generation of shard 0 needs, as JSON."""
        return {
            "invocations": self.invocations,
            "settled": self._settled_seconds,
            "newest": {name: [held.number, held.elapsed(now)] for name, held in self._newest.items()},
        }

    def restore(self, plain: Mapping[str, Any]) -> None:
        """Go on from what :meth:`to_plain` returned; nobody is connected yet."""
        self.invocations = int(plain["invocations"])
        self._settled_seconds = float(plain["settled"])
        self._newest = {
            name: _Generation(int(number), float(seconds), None)
            for name, (number, seconds) in plain["newest"].items()
        }
