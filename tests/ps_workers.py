"""Workers without data: their gradients are ones at rows that tell epoch, lease and position apart."""

from __future__ import annotations

import threading
from collections.abc import Iterable

import numpy as np
from ps_runs import complete

from cirrus.config import RunConfig
from cirrus.errors import CirrusError, ConnectionLostError, LeaseLostError, SupersededError
from cirrus.metrics import RunState
from cirrus.paramserver.client import Channel, ParameterClient
from cirrus.paramserver.protocol import Ids, NextTask, Register, Registered, Task
from cirrus.paramserver.tls import worker_context
from cirrus.run_folder import RunFolder, ShardAddress

#: Each step adds one to a row of its own in each third of the table.
THIRD_ROWS = 333
RETRY_SECONDS = 0.01


def rows_of(config: RunConfig, lease: int, position: int) -> Ids:
    """Return the rows that a step touches, the same in every epoch."""
    step = sum(held.n_steps for held in config.leases[:lease]) + position
    assert step < THIRD_ROWS
    return np.array([step, step + THIRD_ROWS, step + 2 * THIRD_ROWS], np.uint32)


def expected_weights(config: RunConfig, epochs: int, leases: Iterable[int] | None = None) -> np.ndarray:
    """Return the table after so many epochs of some leases, ``(n_rows, 1)``: each step is in it once."""
    weights = np.zeros((config.tables[0].n_rows, 1), np.float32)
    for lease in range(len(config.leases)) if leases is None else leases:
        for position in range(config.leases[lease].n_steps):
            weights[rows_of(config, lease, position)] += epochs
    return weights


class Worker(threading.Thread):
    """Works until the run is over, through losses of shards and leases.

    Args:
        url: The run folder.
        number: Its id.
    """

    def __init__(self, url: str, number: int) -> None:
        super().__init__(name=f"worker{number}", daemon=True)
        self.number = number
        self.generation = 0
        self.stopping = threading.Event()
        self.may_finish = threading.Event()
        """Until this is set the last epoch is not begun."""
        self.may_finish.set()
        self.failed: CirrusError | None = None
        self.ended = False
        """True when shard 0 sent it home."""
        self._folder = RunFolder(url)
        self._config = self._folder.config()
        self._token = self._folder.token()
        self._tls = worker_context(self._folder) if self._config.tls else None

    def run(self) -> None:
        """Work."""
        try:
            while not self.stopping.is_set() and not self.ended:
                try:
                    self._work()
                except (ConnectionLostError, SupersededError, LeaseLostError):
                    self.stopping.wait(RETRY_SECONDS)
        except CirrusError as error:
            self.failed = error

    def stop(self) -> None:
        """Stop in the middle of whatever it does."""
        self.stopping.set()
        self.may_finish.set()
        self.join()

    def _addresses(self) -> list[ShardAddress]:
        found = [self._folder.shard_address(shard) for shard in range(self._config.n_shards)]
        addresses = [address for address in found if address is not None]
        if len(addresses) < len(found):
            raise ConnectionLostError("not all shards are there")
        return addresses

    def _work(self) -> None:
        addresses = self._addresses()
        self.generation += 1
        channel = Channel(addresses[0], self._token, tls=self._tls)
        try:
            channel.ask(Register(worker=self.number, generation=self.generation), Registered)
            client = ParameterClient(addresses, self._token, self._config.tables, tls=self._tls)
            try:
                while not self.stopping.is_set():
                    task = channel.ask(NextTask(wait_seconds=0.2), Task)
                    if task.action == "end":
                        self._wait_for_end()
                        return
                    if task.action == "train":
                        self._train(client, task)
            finally:
                client.close()
        finally:
            channel.close()

    def _wait_for_end(self) -> None:
        """As a fleet does: a shard may die between its word and its last status, and come back.

        So may one that lost its client: the client that comes next needs workers.
        """
        for _ in range(round(1 / RETRY_SECONDS)):
            status = self._folder.status()
            if status is not None and status.state.ended and status.state is not RunState.INTERRUPTED:
                self.ended = True
                return
            self.stopping.wait(RETRY_SECONDS)

    def _train(self, client: ParameterClient, task: Task) -> None:
        if task.epoch == self._config.stop.epochs - 1:
            self.may_finish.wait()
        n_steps = self._config.leases[task.lease].n_steps
        for position in range(client.attach(task.epoch, task.lease, task.grant), n_steps):
            if self.stopping.is_set():
                return
            rows = rows_of(self._config, task.lease, position)
            ticket = client.pull({0: rows})
            client.wait(ticket)
            client.push(position, task.first_step + position, {0: np.ones((3, 1), np.float32)}, ticket)
        client.flush()
        client.call_coordinator(complete(task, client.generations, n_steps))


class Workers:
    """Several workers for as long as a context lasts.

    Args:
        url: The run folder.
        n_workers: How many.
        hold: They do not begin the last epoch before :meth:`release`, so that the run cannot end before.
    """

    def __init__(self, url: str, n_workers: int = 2, *, hold: bool = False) -> None:
        self.threads = [Worker(url, number) for number in range(n_workers)]
        if hold:
            for worker in self.threads:
                worker.may_finish.clear()

    def release(self) -> None:
        """Let them end the run."""
        for worker in self.threads:
            worker.may_finish.set()

    def __enter__(self) -> Workers:
        """Start them."""
        for worker in self.threads:
            worker.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop them, and fail if one failed."""
        for worker in self.threads:
            worker.stop()
        assert [worker.failed for worker in self.threads] == [None] * len(self.threads)
