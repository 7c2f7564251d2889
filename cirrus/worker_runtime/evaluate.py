"""The evaluator: one more function, which pulls the model and reports its validation loss to shard 0."""

from __future__ import annotations

import collections

import numpy as np

from cirrus.chunks import Block, iterate_blocks
from cirrus.errors import ConnectionLostError, DataError, ProtocolError, SupersededError
from cirrus.paramserver.client import Channel, ParameterClient
from cirrus.paramserver.protocol import Evaluation, NextTask, Task, Values
from cirrus.worker_runtime.session import DeadlineError, RunOverError, Session

POLL_SECONDS = 1.0
#: A validation set whose blocks take no more than this stays in memory between evaluations.
KEEP_BYTES = 256 * 2**20


class Evaluator:
    """Evaluates whenever shard 0 asks for it.

    Args:
        session: The worker's dealings with the run.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._kept: list[Block] | None = None
        self.steps = 0
        self.rows = 0

    def run(self) -> None:
        """Work; returns by one of the exceptions, as :meth:`cirrus.worker_runtime.trainer.Trainer.run`."""
        while True:
            channel = self._session.register()
            try:
                self._serve(channel)
            except (ConnectionLostError, SupersededError):
                self._session.check_run()
            finally:
                channel.close()

    def _serve(self, channel: Channel) -> None:
        while True:
            if self._session.clock.is_over:
                raise DeadlineError("the deadline came")
            task = channel.call(NextTask(wait_seconds=POLL_SECONDS))
            if not isinstance(task, Task):
                raise ProtocolError(f"shard 0 answered a request for a task with {type(task).__name__}")
            if task.action == "end":
                raise RunOverError("shard 0 says that the run is over")
            if task.action == "evaluate":
                channel.call(self._evaluate(task))

    def _evaluate(self, task: Task) -> Evaluation:
        client = self._session.connect()
        try:
            loss_sum = weight_sum = 0.0
            metrics: collections.Counter[str] = collections.Counter()
            for block in self._blocks():
                with np.errstate(over="ignore", invalid="ignore"):  # the model may have diverged
                    found = self._session.model.loss(self._pull(client, block), block)
                loss_sum += found.loss_sum
                weight_sum += found.weight_sum
                metrics.update(found.metrics)
                self.steps += 1
                self.rows += block.n_rows
        finally:
            client.close()
        if weight_sum <= 0:
            raise DataError("validation: the rows have no weight")
        means = {name: value / weight_sum for name, value in metrics.items()}
        return Evaluation(epoch=task.epoch, grant=task.grant, loss=loss_sum / weight_sum, metrics=means)

    def _pull(self, client: ParameterClient, block: Block) -> dict[str, Values]:
        session = self._session
        ids = {session.table(name)[0]: rows for name, rows in session.model.ids(block).items()}
        rows = client.wait(client.pull(ids))
        return {session.config.tables[number].name: values for number, values in rows.items()}

    def _blocks(self) -> collections.abc.Iterable[Block]:
        if self._kept is not None:
            return self._kept
        config = self._session.config
        assert config.validation_url is not None
        store, manifest = self._session.open_dataset(config.validation_url, config.validation_fingerprint)
        blocks = iterate_blocks(store, manifest)
        if manifest.n_bytes <= KEEP_BYTES // 8:
            self._kept = list(blocks)
            return self._kept
        return blocks
