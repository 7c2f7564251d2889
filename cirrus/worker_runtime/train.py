"""Training on one lease: minibatch, pull, gradient, push.

The pull of the next minibatch is under way while the gradient of this one is computed; the push of this one
goes out together with the pull of the one after next, and is not waited for. Where an epoch is long, pulls
are a minibatch further ahead. Pushes are acknowledged at the end of the lease.

With bounded staleness there is one pull under way, asked for when the pushes before it were sent: a worker
then sees its own steps. Where there are others it first waits for its turn.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cirrus.chunks import Block
from cirrus.config import LeaseRange
from cirrus.errors import CorruptDataError
from cirrus.models import Gradients
from cirrus.paramserver.client import ParameterClient, PullTicket
from cirrus.paramserver.protocol import Complete, Ids, StepTurn, TurnReply, Values
from cirrus.worker_runtime.batches import minibatches
from cirrus.worker_runtime.fetch import FetchedLease
from cirrus.worker_runtime.gradient_filter import GradientFilter
from cirrus.worker_runtime.session import DeadlineError, Session

#: With two, the reply for the next minibatch comes while this one's gradient is computed.
PULLS_AHEAD = 2
#: One more is for a shard that is late, since others ask it or it waits for a processor (a fifth faster on
#: busy ones). Gradients are then of older weights, which matters where an epoch has few steps: Adam swings.
LONG_PULLS_AHEAD = 3
LONG_EPOCH_STEPS = 256
#: Shard 0 says after this long at the latest whether it is a worker's turn.
TURN_SECONDS = 1.0


@dataclass(slots=True)
class Totals:
    """What a generation, or a lease, has done."""

    steps: int = 0
    rows: int = 0
    loss_sum: float = 0.0
    weight_sum: float = 0.0
    fetch_seconds: float = 0.0
    pull_seconds: float = 0.0
    compute_seconds: float = 0.0
    push_seconds: float = 0.0


def pulls_ahead(leases: Sequence[LeaseRange]) -> int:
    """Return how many pulls an asynchronous worker keeps under way, given an epoch's leases."""
    is_long = sum(lease.n_steps for lease in leases) >= LONG_EPOCH_STEPS
    return LONG_PULLS_AHEAD if is_long else PULLS_AHEAD


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
        self._pulls_ahead = 1 if config.staleness is not None else pulls_ahead(config.leases)
        self._takes_turns = config.staleness is not None and config.n_workers > 1
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
        task = self._lease.task
        position = self._client.attach(task.epoch, task.lease, task.grant)
        position = self._train(position)
        before = time.perf_counter()
        self._client.flush()
        self._totals.push_seconds += time.perf_counter() - before
        self._check_position(position, position >= self._range.n_steps)
        self._complete()
        return self._totals

    def _minibatches(self, first_position: int) -> Iterator[Block]:
        task, config = self._lease.task, self._session.config
        seed = (config.seed, task.epoch, task.lease)
        return minibatches(self._lease.blocks, config.batch_size, first_position, seed)

    def _train(self, position: int) -> int:
        """Do the steps of the lease from a position on; return the position after the last."""
        batches = self._minibatches(position)
        clock = time.perf_counter
        ahead: deque[tuple[Block, PullTicket]] = deque()
        self._look_ahead(ahead, batches, position)
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
            done = position + 1 == self._range.n_steps
            if self._session.config.staleness == 0:
                self._await_turn(position, pushing=True)
            self._push(position, gradients, ticket, last=over or done)
            totals = self._totals
            totals.pull_seconds += pulled - before
            totals.compute_seconds += computed - pulled
            totals.push_seconds += clock() - computed
            position += 1
            if over and not done:
                self._client.flush()
                raise DeadlineError("the deadline came")
            self._look_ahead(ahead, batches, position)
        return position

    def _await_turn(self, position: int, *, pushing: bool) -> None:
        """Wait until this worker may pull for a step, or push it, where workers wait for each other.

        Raises:
            DeadlineError: The generation's time was over before.
        """
        if not self._takes_turns:
            return
        task = self._lease.task
        turn = StepTurn(
            epoch=task.epoch,
            lease=task.lease,
            grant=task.grant,
            position=position,
            pushing=pushing,
            wait_seconds=TURN_SECONDS,
        )
        before = time.perf_counter()
        while not self._client.ask_coordinator(turn, TurnReply).granted:
            if self._session.clock.is_over:
                raise DeadlineError("the deadline came before the worker's turn")
        self._totals.pull_seconds += time.perf_counter() - before

    def _check_position(self, position: int, right: bool) -> None:
        """Refuse data that has not the rows of which leases were planned: it would never be done."""
        if not right:
            name = self._lease.blocks[0].name
            raise CorruptDataError(
                f"{name} and the blocks after it: {position} minibatches where the run's plan has"
                f" {self._range.n_steps}; load the data again"
            )

    def _look_ahead(
        self, ahead: deque[tuple[Block, PullTicket]], batches: Iterator[Block], position: int
    ) -> None:
        """Keep some pulls under way: those of the next minibatches, the last one with the last push.

        With bounded staleness it is one, that of the step at ``position``.
        """
        while len(ahead) < self._pulls_ahead:
            batch = next(batches, None)
            if batch is None:
                return
            self._await_turn(position, pushing=False)
            ahead.append((batch, self._request(batch)))

    def _request(self, batch: Block) -> PullTicket:
        session = self._session
        ids = {session.table(name)[0]: rows for name, rows in session.model.ids(batch).items()}
        return self._client.pull(ids)

    def _gradient(self, batch: Block, rows: dict[int, Values]) -> dict[int, Values]:
        tables = self._session.config.tables
        # Where training diverges, shards refuse what is no number, and count it; warnings say no more.
        with np.errstate(over="ignore", invalid="ignore"):
            found: Gradients = self._session.model.gradient(
                {tables[i].name: v for i, v in rows.items()}, batch
            )
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

    def _push(self, position: int, gradients: dict[int, Values], ticket: PullTicket, *, last: bool) -> None:
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
