"""Model averaging: a worker trains on a lease by itself, and pushes what that did to the tables.

It pulls the rows that the lease touches once, goes through the minibatches with an optimizer of its own, and
pushes the difference to where it began, divided by the number of workers, as the one step of the lease; the
shards add it. That is two messages a lease instead of two a minibatch. Of workers that go in rounds (a
staleness of 0) the model becomes the mean of what each has made of it.
"""

from __future__ import annotations

import time

import numpy as np

from cirrus.chunks import Block
from cirrus.paramserver.protocol import Ids, Values
from cirrus.worker_runtime.local_optimizers import LocalTable
from cirrus.worker_runtime.session import DeadlineError
from cirrus.worker_runtime.train import LeaseTrainer


class AveragingTrainer(LeaseTrainer):
    """Trains one lease as a whole; arguments as those of :class:`LeaseTrainer`."""

    def _train(self, position: int) -> int:
        if position == self._range.n_steps:
            return position
        batches = list(self._minibatches(0))
        ids = self._touched(batches)
        self._await_turn(position, pushing=False)
        before = time.perf_counter()
        ticket = self._client.pull(ids)
        start = self._client.wait(ticket)
        pulled = time.perf_counter()
        config = self._session.config
        share = self._range.n_rows / config.rows_per_epoch
        local = {i: LocalTable(rows, config.tables[i].optimizer, share) for i, rows in start.items()}
        self._go_through(batches, ids, local)
        n_workers = max(1, self._lease.task.n_workers)
        change = {i: (table.weights - start[i]) / np.float32(n_workers) for i, table in local.items()}
        computed = time.perf_counter()
        if config.staleness == 0:
            self._await_turn(position, pushing=True)
        self._client.push(position, self._lease.task.first_step, change, ticket)
        self._totals.pull_seconds += pulled - before
        self._totals.compute_seconds += computed - pulled
        return position + 1

    def _touched(self, batches: list[Block]) -> dict[int, Ids]:
        """Return the rows of each table that the minibatches touch: sorted, unique."""
        found: dict[int, list[Ids]] = {}
        for batch in batches:
            for name, rows in self._session.model.ids(batch).items():
                found.setdefault(self._session.table(name)[0], []).append(rows)
        return {i: np.unique(np.concatenate(rows)).astype(np.uint32) for i, rows in found.items()}

    def _go_through(self, batches: list[Block], ids: dict[int, Ids], local: dict[int, LocalTable]) -> None:
        first = self._lease.task.first_step * len(batches)
        for number, batch in enumerate(batches):
            if self._session.clock.is_over:
                raise DeadlineError("the deadline came")
            rows = {}
            for name, touched in self._session.model.ids(batch).items():
                i = self._session.table(name)[0]
                rows[i] = np.searchsorted(ids[i], touched)
            values: dict[int, Values] = {i: local[i].weights[at] for i, at in rows.items()}
            for i, gradient in self._gradient(batch, values).items():
                local[i].step(rows[i], gradient, first + number, number)
