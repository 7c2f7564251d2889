"""The training loop: lease, minibatch, pull, gradient, push.

The pull of the next minibatch is under way while the gradient of this one is computed; the push of this one
goes out together with the pull of the one after next, and is not waited for. Pushes are acknowledged at the
end of the lease.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from cirrus.chunks import Block
from cirrus.errors import ConnectionLostError, CorruptDataError, LeaseLostError, SupersededError
from cirrus.models import Gradients
from cirrus.paramserver.client import ParameterClient, PullTicket
from cirrus.paramserver.protocol import Complete, Ids, Values
from cirrus.worker_runtime.batches import minibatches
from cirrus.worker_runtime.fetch import FetchedLease, LeaseFetcher
from cirrus.worker_runtime.gradient_filter import GradientFilter
from cirrus.worker_runtime.session import DeadlineError, RunOverError, Session

#: How long to wait for a lease before looking at the clock again.
IDLE_SECONDS = 0.2
#: With two, the reply for the next minibatch comes while this one's gradient is computed.
PULLS_AHEAD = 2


@dataclass(slots=True)
class Totals:
    """What a generation, or a lease, has done."""

    steps: int = 0
    rows: int = 0
    loss_sum: float = 0.0
    weight_sum: float = 0.0
    pull_seconds: float = 0.0
    compute_seconds: float = 0.0
    push_seconds: float = 0.0


@dataclass(slots=True)
class Trainer:
    """Trains until the run or the generation is over.

    Args:
        session: The worker's dealings with the run.
    """

    session: Session
    totals: Totals = field(default_factory=Totals)

    def run(self) -> None:
        """Work; returns by one of the exceptions.

        Raises:
            RunOverError: The run ended.
            DeadlineError: This generation's time is over.
            RegistrationError: Another worker of this id is at work.
            ConnectionLostError: The shards cannot be reached any more.
        """
        config = self.session.config
        store, manifest = self.session.open_dataset(config.train_url, config.train_fingerprint)
        while True:
            fetcher = LeaseFetcher(self.session.register(), store, manifest, self.session.config.leases)
            try:
                self._train_on(fetcher)
            except (ConnectionLostError, SupersededError):
                # Shard 0 is gone, and with it whatever this worker held: begin anew when it is back.
                self.session.check_run()
            finally:
                fetcher.close()

    def _train_on(self, fetcher: LeaseFetcher) -> None:
        client = self.session.connect()
        try:
            while True:
                if self.session.clock.is_over:
                    raise DeadlineError("the deadline came")
                lease = fetcher.get(IDLE_SECONDS)
                if lease is None:
                    continue
                client = self._finish_lease(client, lease)
        finally:
            client.close()

    def _finish_lease(self, client: ParameterClient, lease: FetchedLease) -> ParameterClient:
        """Train a lease, through losses of shards; return a client that is in order."""
        while True:
            try:
                totals = LeaseTrainer(self.session, client, lease).run()
            except LeaseLostError:
                # Answers to requests of that lease may still be under way: a fresh client has none.
                client.close()
                return self.session.connect()
            except (ConnectionLostError, SupersededError):
                client.close()
                self.session.check_run()
                client = self.session.connect()
                continue
            self.totals.steps += totals.steps
            self.totals.rows += totals.rows
            return client


class LeaseTrainer:
    """Trains the rest of one lease.

    Args:
        session: The worker's dealings with the run.
        client: Connected to the shards, nothing under way.
        lease: What to train on.
    """

    def __init__(self, session: Session, client: ParameterClient, lease: FetchedLease) -> None:
        self._session = session
        self._client = client
        self._lease = lease
        self._totals = Totals()
        config = session.config
        self._range = config.leases[lease.task.lease]
        threshold = config.gradient_threshold
        self._filters: dict[int, GradientFilter] | None = None
        if threshold is not None:
            self._filters = {i: GradientFilter(threshold, t.width) for i, t in enumerate(config.tables)}

    def run(self) -> Totals:
        """Train, and tell shard 0.

        Raises:
            LeaseLostError: Another worker has the lease now, or a shard lost steps of it.
            ConnectionLostError: A shard went away.
            DeadlineError: The generation's time is over; what was done so far is acknowledged.
        """
        task, config = self._lease.task, self._session.config
        position = self._client.attach(task.epoch, task.lease, task.grant)
        batches = minibatches(
            self._lease.blocks, config.batch_size, position, (config.seed, task.epoch, task.lease)
        )
        clock = time.perf_counter
        ahead: deque[tuple[Block, PullTicket]] = deque()
        self._look_ahead(ahead, batches)
        while ahead:
            batch, ticket = ahead.popleft()
            self._check_position(position, position < self._range.n_steps)
            before = clock()
            rows = self._client.wait(ticket)
            pulled = clock()
            gradients = self._gradient(batch, rows)
            computed = clock()
            # The deadline is looked at once, so that the filter's last push is truly the last.
            over = self._session.clock.is_over
            self._push(position, gradients, batch, ticket, last=over or not ahead)
            totals = self._totals
            totals.pull_seconds += pulled - before
            totals.compute_seconds += computed - pulled
            totals.push_seconds += clock() - computed
            position += 1
            if over and ahead:
                self._client.flush()
                raise DeadlineError("the deadline came")
            self._look_ahead(ahead, batches)
        before = clock()
        self._client.flush()
        self._totals.push_seconds += clock() - before
        self._check_position(position, position >= self._range.n_steps)
        self._complete()
        return self._totals

    def _check_position(self, position: int, right: bool) -> None:
        """Refuse data that has not the rows of which leases were planned: it would never be done."""
        if not right:
            name = self._lease.blocks[0].name
            raise CorruptDataError(
                f"{name} and the blocks after it: {position} minibatches where the run's plan has"
                f" {self._range.n_steps}; load the data again"
            )

    def _look_ahead(self, ahead: deque[tuple[Block, PullTicket]], batches: Iterator[Block]) -> None:
        """Keep two pulls under way: that of the next minibatch, and one that goes out with the last push."""
        while len(ahead) < PULLS_AHEAD:
            batch = next(batches, None)
            if batch is None:
                return
            ahead.append((batch, self._request(batch)))

    def _request(self, batch: Block) -> PullTicket:
        session = self._session
        ids = {session.table(name)[0]: rows for name, rows in session.model.ids(batch).items()}
        return self._client.pull(ids)

    def _gradient(self, batch: Block, rows: dict[int, Values]) -> dict[int, Values]:
        tables = self._session.config.tables
        found: Gradients = self._session.model.gradient({tables[i].name: v for i, v in rows.items()}, batch)
        totals = self._totals
        totals.steps += 1
        totals.rows += batch.n_rows
        totals.loss_sum += found.loss_sum
        totals.weight_sum += found.weight_sum
        gradients = {}
        for name, values in found.values.items():
            number, table = self._session.table(name)
            if not table.optimizer.sums_gradients and found.weight_sum > 0:
                values = values / found.weight_sum
            gradients[number] = np.ascontiguousarray(values, np.float32)
        return gradients

    def _push(
        self, position: int, gradients: dict[int, Values], batch: Block, ticket: PullTicket, *, last: bool
    ) -> None:
        step = self._lease.task.first_step + position
        if self._filters is None:
            self._client.push(position, step, gradients, ticket)
            return
        ids: dict[int, Ids] = {}
        values: dict[int, Values] = {}
        for number, gradient in gradients.items():
            ids[number], values[number] = self._filters[number].select(
                ticket.ids[number], gradient, last=last
            )
        self._client.push_rows(position, step, ids, values)

    def _complete(self) -> None:
        task, totals = self._lease.task, self._totals
        self._client.call_coordinator(
            Complete(
                epoch=task.epoch,
                lease=task.lease,
                grant=task.grant,
                generations=self._client.generations,
                loss_sum=totals.loss_sum,
                weight_sum=totals.weight_sum,
                n_rows=totals.rows,
                n_steps=totals.steps,
                fetch_seconds=self._lease.fetch_seconds,
                pull_seconds=totals.pull_seconds,
                compute_seconds=totals.compute_seconds,
                push_seconds=totals.push_seconds,
                worker_seconds=self._session.clock.seconds,
            )
        )


__all__ = ["LeaseTrainer", "RunOverError", "Totals", "Trainer"]
