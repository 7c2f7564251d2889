"""The training loop: lease after lease, through losses of shards, until the run or the generation is over."""

from __future__ import annotations

from dataclasses import dataclass, field

from cirrus.errors import ConnectionLostError, LeaseLostError, SupersededError
from cirrus.paramserver.client import ParameterClient
from cirrus.worker_runtime.fetch import FetchedLease, LeaseFetcher
from cirrus.worker_runtime.session import DeadlineError, Session
from cirrus.worker_runtime.train import LeaseTrainer, Totals

#: How long to wait for a lease before looking at the clock again.
IDLE_SECONDS = 0.2


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
                totals = self._lease_trainer(client, lease).run()
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
            self.totals.fetch_seconds += lease.fetch_seconds
            self.totals.pull_seconds += totals.pull_seconds
            self.totals.compute_seconds += totals.compute_seconds
            self.totals.push_seconds += totals.push_seconds
            return client

    def _lease_trainer(self, client: ParameterClient, lease: FetchedLease) -> LeaseTrainer:
        kind = LeaseTrainer
        if self.session.config.mode == "average":
            # Imported here: a worker of the other mode starts without it.
            from cirrus.worker_runtime.averaging import AveragingTrainer

            kind = AveragingTrainer
        return kind(self.session, client, lease)
