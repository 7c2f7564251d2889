"""The ledger of leases: which parts of which epoch are to do, in work, or done.

It is pure state, with no clock of its own.

Epochs follow each other strictly: the next one opens when every lease of this one, and every lease of an
earlier one that had to be given again, is done. Within an epoch the leases are permuted by (seed, epoch).

A shard 0 that starts again from its snapshot has an older ledger than the other shards have steps. What they
hold of later leases is *begun*, whoever began it: such leases are finished before the run stops or a
checkpoint is cut, for otherwise some shards would have steps that others lack.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cirrus.config import LeaseRange

LeaseKey = tuple[int, int]
"""Epoch and lease."""


@dataclass(slots=True)
class Holder:
    """Who works on an open lease, and since when nothing has been heard of it."""

    worker: int
    grant: int
    progress_at: float
    mark: int = 0


class Ledger:
    """Which leases are left.

    Args:
        leases: The leases of every epoch.
        epochs: How many epochs there shall be at most.
        seed: For the order of the leases.
    """

    def __init__(self, leases: Sequence[LeaseRange], epochs: int, seed: int) -> None:
        self.leases = tuple(leases)
        self.epochs = epochs
        self._seed = seed
        self._steps_per_epoch = sum(lease.n_steps for lease in leases)
        self.epoch = 0
        self.open: dict[LeaseKey, Holder] = {}
        self.given_again = 0
        """How many leases were taken back from a worker or had lost steps."""
        self._begun: set[LeaseKey] = set()
        self._lost: set[LeaseKey] = set()
        self._dropped: set[LeaseKey] = set()
        self._later_epoch = -1
        self._later: set[int] = set()
        """Begun leases of ``_later_epoch``, the last epoch that is begun, when it is not open here yet."""
        self._orders: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}
        self._todo: list[tuple[int, int, int]] = []
        self._open_epoch()

    def _order(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return rank and first step (within the epoch) of every lease."""
        if epoch not in self._orders:
            order = np.random.default_rng((self._seed, epoch)).permutation(len(self.leases))
            steps = np.array([self.leases[lease].n_steps for lease in order])
            rank = np.empty(len(order), np.int64)
            rank[order] = np.arange(len(order))
            first = np.empty(len(order), np.int64)
            first[order] = np.cumsum(steps) - steps
            if len(self._orders) > 4:
                self._orders.clear()
            self._orders[epoch] = (rank, first)
        return self._orders[epoch]

    def _open_epoch(self) -> None:
        rank, _ = self._order(self.epoch)
        self._todo = [(self.epoch, int(rank[lease]), lease) for lease in range(len(self.leases))]
        heapq.heapify(self._todo)

    def first_step(self, key: LeaseKey) -> int:
        """Return the run's clock at position 0 of a lease."""
        epoch, lease = key
        return epoch * self._steps_per_epoch + int(self._order(epoch)[1][lease])

    @property
    def epoch_complete(self) -> bool:
        """True when everything given out so far, and all of the current epoch, is done."""
        return not self._todo and not self.open

    def advance(self) -> None:
        """Open the next epoch; the current one is complete."""
        self.epoch += 1
        self._open_epoch()
        if self.epoch == self._later_epoch:
            self._begun |= {(self.epoch, lease) for lease in self._later}

    @property
    def is_behind(self) -> bool:
        """True when a shard has steps of an epoch that is not open here yet: the ones before must be done."""
        return self._later_epoch > self.epoch

    @property
    def has_lost(self) -> bool:
        """True while leases that were done are done again, for a shard that lost steps of them."""
        return bool(self._lost)

    @property
    def at_rest(self) -> bool:
        """True when every lease that was ever begun is done: all shards hold the same steps."""
        return not self.open and not self._begun and not self.is_behind

    def note_begun(self, epoch: int, leases: Iterable[int]) -> None:
        """Some shard holds, or may get, steps of leases, whether they were granted here or not."""
        if epoch > self.epoch:
            if epoch > self._later_epoch:
                self._later_epoch, self._later = epoch, set()
            if epoch == self._later_epoch:
                self._later |= set(leases)
            self._take_up(self._dropped)
            return
        keys = {(epoch, lease) for lease in leases}
        self._take_up(keys & self._dropped)
        self._begun |= keys & {(e, lease) for e, _, lease in self._todo}

    def _take_up(self, keys: set[LeaseKey]) -> None:
        for key in keys:
            heapq.heappush(self._todo, self._entry(key))
        self._dropped = self._dropped - keys

    def note_held(self, completed_epochs: int, marks: Mapping[str, Sequence[int]]) -> None:
        """As :meth:`note_begun`, for all that a shard says it holds; see :meth:`reopen_lost`."""
        if completed_epochs > self.epoch:
            self.note_begun(completed_epochs - 1, range(len(self.leases)))
        for epoch, held in marks.items():
            if int(epoch) >= self.epoch:
                self.note_begun(int(epoch), [lease for lease, mark in enumerate(held) if mark > 0])

    def grant(
        self,
        worker: int,
        grant: int,
        now: float,
        *,
        only_begun: bool = False,
        may_take: Callable[[int], bool] | None = None,
    ) -> LeaseKey | None:
        """Give out the oldest lease that is to do, or None.

        Args:
            worker: Who gets it.
            grant: The number of the grant.
            now: Monotonic seconds.
            only_begun: Leave out leases that nobody has begun.
            may_take: Whether a lease that nobody has begun may be given out, by its place in the epoch's
                order.
        """
        entry = min(self._grantable(only_begun=only_begun, may_take=may_take), default=None)
        if entry is None:
            return None
        if entry == self._todo[0]:
            heapq.heappop(self._todo)
        else:
            self._todo.remove(entry)
            heapq.heapify(self._todo)
        key = (entry[0], entry[2])
        self._begun.add(key)
        self.open[key] = Holder(worker, grant, now)
        return key

    def _grantable(
        self, *, only_begun: bool, may_take: Callable[[int], bool] | None
    ) -> Iterable[tuple[int, int, int]]:
        only_begun = only_begun and not self.is_behind
        if not only_begun and may_take is None:
            return self._todo[:1]
        return (
            entry
            for entry in self._todo
            if (entry[0], entry[2]) in self._begun
            or (not only_begun and (may_take is None or may_take(entry[1])))
        )

    def ranks_to_do(self, *, only_begun: bool) -> set[int]:
        """Return the places in their epoch's order of the leases that :meth:`grant` may give out."""
        return {rank for _, rank, _ in self._grantable(only_begun=only_begun, may_take=lambda _: True)}

    def drop_rest(self) -> None:
        """Leave out the leases that nobody has begun: the run stops in the middle of an epoch.

        Not in an epoch after which a shard has begun another.
        """
        if self.is_behind:
            return
        rest = {(e, lease) for e, _, lease in self._todo} - self._begun
        self._dropped |= rest
        self._todo = [entry for entry in self._todo if (entry[0], entry[2]) not in rest]
        heapq.heapify(self._todo)

    def finish(self, key: LeaseKey) -> bool:
        """Mark a lease as done; False when it was done before, were it only to be lost by a shard."""
        self._begun.discard(key)
        pending = self.open.pop(key, None) is not None
        entry = self._entry(key)
        if entry in self._todo:
            self._todo.remove(entry)
            heapq.heapify(self._todo)
            pending = True
        first_time = key not in self._lost
        self._lost.discard(key)
        return pending and first_time

    def give_again(self, key: LeaseKey) -> None:
        """Put a lease back: its worker died, gave up or was too slow, or a shard lost steps of it."""
        self.open.pop(key, None)
        self._begun.add(key)
        entry = self._entry(key)
        if entry not in self._todo:
            heapq.heappush(self._todo, entry)
            self.given_again += 1

    def _entry(self, key: LeaseKey) -> tuple[int, int, int]:
        epoch, lease = key
        return epoch, int(self._order(epoch)[0][lease]), lease

    def reopen_lost(self, completed_epochs: int, marks: Mapping[str, Sequence[int]]) -> int:
        """Give again what is done here but not on a shard that came back; return how many leases.

        Args:
            completed_epochs: Epochs that the shard holds whole.
            marks: Of the others, epoch (as text) to the next position of every lease.
        """
        missing = {(e, lease) for e, _, lease in self._todo} | set(self.open) | self._dropped
        lost = 0
        for epoch in range(completed_epochs, self.epoch + 1):
            held = marks.get(str(epoch))
            for lease, lease_range in enumerate(self.leases):
                complete = held is not None and held[lease] >= lease_range.n_steps
                if not complete and (epoch, lease) not in missing:
                    self.give_again((epoch, lease))
                    self._lost.add((epoch, lease))
                    lost += 1
        return lost

    def to_plain(self) -> dict[str, Any]:
        """Return the state as JSON; open leases count as to do."""
        todo = sorted({(e, lease) for e, _, lease in self._todo} | set(self.open))
        return {
            "epoch": self.epoch,
            "todo": [list(key) for key in todo],
            "lost": [list(key) for key in sorted(self._lost)],
            "begun": [list(key) for key in sorted(self._begun)],
            "dropped": [list(key) for key in sorted(self._dropped)],
            "given_again": self.given_again,
        }

    def restore(self, plain: Mapping[str, Any]) -> None:
        """Go back to what :meth:`to_plain` returned."""
        self.epoch = int(plain["epoch"])
        self.given_again = int(plain["given_again"])
        self.open.clear()
        self._lost = {(int(e), int(lease)) for e, lease in plain["lost"]}
        self._begun = {(int(e), int(lease)) for e, lease in plain["begun"]}
        self._dropped = {(int(e), int(lease)) for e, lease in plain["dropped"]}
        self._later_epoch, self._later = -1, set()
        keys: Iterable[LeaseKey] = ((int(e), int(lease)) for e, lease in plain["todo"])
        self._todo = [self._entry(key) for key in keys]
        heapq.heapify(self._todo)
