"""Bounded staleness: who may begin a step, by how far the other workers are.

Pure state, guarded by shard 0. A worker's clock counts the steps that it has finished: those that every shard
has acknowledged. It may begin a step while it is at most ``staleness`` steps ahead of the slowest worker that
has something to do (stale-synchronous parallel, Ho et al., 2013).

With a staleness of 0 the workers go in rounds: each pulls, when all have finished the round before, and then
they push one after the other, in the order of their numbers, once all have pulled. What a round does to the
model then depends on nothing but the minibatches in it.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass

from cirrus.paramserver.ledger import LeaseKey

Step = tuple[LeaseKey, int]
"""A lease and a position in it."""


@dataclass(slots=True)
class _Member:
    worker: int
    clock: int
    step: Step | None = None
    """Begun, and not known to be finished."""
    pulled: bool = False
    resting: bool = False


class Turns:
    """The clocks of the workers, by the connections that they registered on.

    Args:
        staleness: How many steps a worker may be ahead of the slowest.
        busy: Returns who has something to do; those who have not hold nobody up.
    """

    def __init__(self, staleness: int, busy: Callable[[], Container[int]]) -> None:
        self._staleness = staleness
        self._busy = busy
        self._members: dict[int, _Member] = {}

    def join(self, connection: int, worker: int) -> None:
        """Count a worker from now on; it begins where the slowest is."""
        member = self._members.get(connection)
        if member is None:
            clock = self._slowest_but(connection)
            self._members[connection] = _Member(worker, 0 if clock is None else clock)
        elif member.resting:
            clock = self._slowest_but(connection)
            member.clock, member.resting = max(member.clock, clock or 0), False

    def leave(self, connection: int) -> None:
        """A worker is gone, or too slow to be waited for."""
        self._members.pop(connection, None)

    def open_epoch(self) -> None:
        """Begin anew: nobody is at work between two epochs."""
        self._members.clear()

    def finish_lease(self, connection: int, key: LeaseKey) -> None:
        """A worker is done with a lease; with nothing else to do it rests."""
        member = self._members.get(connection)
        if member is None:
            return
        if member.step is not None and member.step[0] == key:
            self._finish(member)
        member.resting = connection not in self._busy()

    def may_pull(self, connection: int, step: Step) -> bool:
        """Tell whether a member may begin a step; when it asks for the next one, it has finished the last."""
        member = self._members[connection]
        if member.step == step:
            return True
        if member.step is not None:
            self._finish(member)
        slowest = self._slowest_but(connection)
        if slowest is not None and member.clock - slowest > self._staleness:
            return False
        member.step = step
        return True

    def may_push(self, connection: int) -> bool:
        """Tell whether it is a member's turn to push, in a round: all have pulled, all before it pushed."""
        member = self._members[connection]
        member.pulled = True
        for other in self._others(connection):
            if other.clock > member.clock:
                continue
            if other.clock < member.clock or not other.pulled or other.worker < member.worker:
                return False
        return True

    @staticmethod
    def _finish(member: _Member) -> None:
        member.clock += 1
        member.step, member.pulled = None, False

    def _others(self, connection: int) -> Iterator[_Member]:
        busy = self._busy()
        for other, member in self._members.items():
            if other != connection and not member.resting and other in busy:
                yield member

    def _slowest_but(self, connection: int) -> int | None:
        return min((member.clock for member in self._others(connection)), default=None)
