"""The AWS backend: shards on EC2 instances, workers as Lambda functions, one bucket for all they share."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import boto3.session

from cirrus.client_backend.aws import cost
from cirrus.client_backend.aws.deployment import Deployment, bucket_deployment, local_deployment
from cirrus.client_backend.aws.facade import AwsFacade
from cirrus.client_backend.aws.function_check import check_function
from cirrus.client_backend.aws.invocations import Invoker
from cirrus.client_backend.aws.launcher import STATUS_AGE_SECONDS, AwsLauncher, Notices
from cirrus.client_backend.aws.load_functions import FunctionLoadWorker, LoadFunctions
from cirrus.client_backend.aws.priced_backend import PricedBackend
from cirrus.client_backend.aws.prices import PriceTable, read_prices
from cirrus.client_backend.aws.rates import Rates
from cirrus.client_backend.aws.seat_search import ServerPlan, leave_servers
from cirrus.client_backend.aws.seats import MAX_SEATS, ServerRecords
from cirrus.client_backend.aws.server_bill import ServerBill
from cirrus.client_backend.aws.server_turns import ServerTurns
from cirrus.client_backend.aws.server_watch import Surroundings
from cirrus.client_backend.aws.servers import Servers
from cirrus.client_backend.launcher import Launcher
from cirrus.client_backend.runs import Run
from cirrus.client_backend.status_cache import StatusCache
from cirrus.config import RunConfig
from cirrus.errors import ConfigError
from cirrus.paramserver.host_records import HostReports
from cirrus.run_folder import RunFolder
from cirrus.storage import open_store

if TYPE_CHECKING:
    from cirrus.client_backend.load_tasks import LoadPlan
    from cirrus.client_backend.load_team import RemoteWorker

log = logging.getLogger(__name__)

#: Lifetime of an invocation. Connections that are idle for longer die in some networks, and a function that
#: is invoked again at once is warm.
GENERATION_SECONDS = 240.0
#: An answer may come this long after the generation's end.
ANSWER_SECONDS = 60.0
#: Map jobs get this many workers where the user names no number.
DEFAULT_JOB_WORKERS = 16
#: A task of a load may take so long, most of it in Python.
LOAD_TASK_SECONDS = 600.0
#: Size of the functions of map jobs: one full processor.
JOB_MEMORY_MB = 1769
#: Objects below this prefix are temporary; the bucket removes them after some days.
TEMPORARY_PREFIX = "tmp"


class AWSBackend(PricedBackend):
    """Runs shards on EC2 and workers on Lambda, in a deployment that ``cirrus deploy`` has made.

    Everything of a run that others need lies in the deployment's bucket; this process connects to AWS'
    services alone, never to a shard, so it may run anywhere.

    Args:
        config: The deployment, or the name of its bucket; None: the one that ``cirrus deploy`` noted down.
        generation_seconds: Lifetime of one invocation of a worker.
        instance_type: Of the servers; None: as deployed.
        shards_per_server: Seats of a server, which runs share: so many shards sit there at most, of whatever
            runs. None: one a virtual processor.
        tls: Encrypt what workers and shards say to each other, with certificates made for each run; see
            ``docs/security.md`` for its price.
        spot: Whether servers are spot instances; None: as deployed.
        prices: A price table instead of the one that comes with Cirrus: an object, or a JSON file's path.

    Raises:
        ConfigError: There is no such deployment, or a number cannot work.

    Example:
        >>> backend = cirrus.AWSBackend("my-cirrus-bucket")  # doctest: +SKIP
        >>> est = cirrus.LogisticRegression(backend=backend, n_workers=100, n_shards=2)  # doctest: +SKIP
    """

    default_job_workers = DEFAULT_JOB_WORKERS
    loads_remotely = True

    def __init__(
        self,
        config: Deployment | str | None = None,
        *,
        generation_seconds: float = GENERATION_SECONDS,
        instance_type: str | None = None,
        shards_per_server: int | None = None,
        spot: bool | None = None,
        tls: bool = False,
        prices: PriceTable | str | os.PathLike[str] | None = None,
    ) -> None:
        if isinstance(config, Deployment):
            self.deployment = config
        else:
            self.deployment = local_deployment() if config is None else bucket_deployment(config)
        self.root = self.deployment.root
        if not 1 <= generation_seconds <= 900:
            raise ConfigError("generation_seconds", f"must be in [1, 900], got {generation_seconds!r}")
        if shards_per_server is not None and not 1 <= shards_per_server <= MAX_SEATS:
            raise ConfigError(
                "shards_per_server", f"must be in [1, {MAX_SEATS}] or None, got {shards_per_server!r}"
            )
        self.generation_seconds: float = generation_seconds
        self.tls = tls
        self.instance_type = instance_type or self.deployment.instance_type
        self.spot = self.deployment.spot if spot is None else spot
        self.price_table = prices if isinstance(prices, PriceTable) else read_prices(prices)
        self._rates = Rates(self.price_table, self.deployment, self.instance_type, self.spot)
        self._shards_per_server = shards_per_server
        self._turns = ServerTurns()

    def __repr__(self) -> str:
        return f"AWSBackend({self.deployment.bucket!r})"

    # Places.

    @property
    def max_functions(self) -> int | None:
        """See :attr:`Backend.max_functions`: the least that AWS lets any worker function do at a time.

        Raises:
            CloudError: AWS refuses.
        """
        facade = self._facade(1)
        try:
            limits = [facade.concurrency(name) for name in self.deployment.worker_functions.values()]
        finally:
            facade.close()
        return min((limit for limit in limits if limit is not None), default=None)

    def scratch_url(self) -> str:
        """See :meth:`Backend.scratch_url`."""
        return f"{self.root}/{TEMPORARY_PREFIX}/{secrets.token_hex(8)}"

    def reaches(self, url: str) -> bool:
        """See :meth:`Backend.reaches`: what lies in S3, as far as the deployment's roles may read it."""
        return url.startswith("s3://")

    def _check_reach(self, config: RunConfig) -> None:
        places = {
            "train": config.train_url,
            "validation": config.validation_url,
            "checkpoint_url": config.checkpoint_url,
            "resume_from": config.resume_url,
        }
        for name, url in places.items():
            if url is not None and not self.reaches(url):
                raise ConfigError(
                    name,
                    f"{url} cannot be reached from AWS: it must lie in S3, such as in {self.root}",
                )

    # Runs.

    def start(self, config: RunConfig) -> Run:
        """See :meth:`Backend.start`; first it is checked that the deployment can do it.

        Raises:
            ConfigError: There is no function of this size or lifetime, or a URL is out of reach.
            CloudError: AWS refuses.
        """
        self._check_reach(config)
        self.deployment.worker_function(config.worker_memory_mb)
        return super().start(config)

    def launcher(self, folder: RunFolder, config: RunConfig) -> Launcher:
        """See :meth:`Backend.launcher`."""
        wanted = config.n_workers + (config.validation_url is not None)
        function = self.deployment.worker_function(config.worker_memory_mb)
        lifetime = config.generation_seconds or self.generation_seconds
        notices = Notices()
        with self._checked_facade(function, lifetime, wanted, notices) as (facade, is_scarce):
            status = StatusCache(folder, STATUS_AGE_SECONDS)
            around = Surroundings(
                facade=facade,
                status=status,
                reports=HostReports(folder.store),
                records=self._server_records(),
                bill=ServerBill(self._rates.counted_servers(config.dollars_per_hour)),
                notice=notices.add,
            )
            servers = Servers(self._server_plan(config.run_id), config.n_shards, around, self._turns)
            invoker = Invoker(
                facade,
                function,
                wanted=wanted,
                evaluator_first=is_scarce and config.validation_url is not None,
                notice=notices.add,
                status=status,
            )
            return AwsLauncher(
                facade,
                invoker,
                servers,
                notices,
                server_dollars_per_second=self._rates.server_dollars_per_hour / cost.SECONDS_PER_HOUR,
                worker_dollars_per_second=config.worker_prices.dollars_per_second,
            )

    def _server_plan(self, run_id: str) -> ServerPlan:
        return ServerPlan(
            run_id=run_id,
            deployment=self.deployment.name,
            launch_template_id=self.deployment.launch_template_id,
            instance_type=self.instance_type,
            overrides_type=self.instance_type != self.deployment.instance_type,
            spot=self.spot,
            release=self.deployment.server_release,
            keep_warm_seconds=self.deployment.keep_warm_seconds,
            shards_per_server=self.shards_per_server,
        )

    def job_launcher(self, job_url: str) -> Launcher:
        """See :meth:`Backend.job_launcher`."""
        if not self.reaches(job_url):
            raise ConfigError("url", f"{job_url} cannot be reached from AWS: it must lie in S3")
        function, notices = self._job_function(), Notices()
        with self._checked_facade(
            function, self.generation_seconds, 1, notices, max_invocations=DEFAULT_JOB_WORKERS
        ) as (facade, _):
            invoker = Invoker(facade, function, wanted=DEFAULT_JOB_WORKERS, notice=notices.add)
            return AwsLauncher(facade, invoker, None, notices)

    def load_workers(self, plan: LoadPlan) -> Sequence[RemoteWorker]:
        """See :meth:`Backend.load_workers`: functions, one invocation a task."""
        function, notices = self._job_function(), Notices()
        with self._checked_facade(function, LOAD_TASK_SECONDS, plan.n_workers, notices) as (facade, _):
            functions = LoadFunctions(facade, function, plan.n_workers, notice=notices.add)
            return [FunctionLoadWorker(functions, plan) for _ in range(plan.n_workers)]

    def _job_function(self) -> str:
        sizes = sorted(int(size) for size in self.deployment.worker_functions)
        if not sizes:
            raise ConfigError("worker_memory_mb", "the deployment has no worker function: deploy again")
        enough = [size for size in sizes if size >= JOB_MEMORY_MB]
        return self.deployment.worker_function(enough[0] if enough else sizes[-1])

    def end_leftovers(self, run_id: str) -> tuple[str, ...]:
        """See :meth:`Backend.end_leftovers`: its seats are free then, and servers end that no run sits on."""
        facade = self._facade(1)
        try:
            return leave_servers(facade, self._server_records(), run_id, keep=False)
        finally:
            facade.close()

    def _server_records(self) -> ServerRecords:
        return ServerRecords(open_store(self.root))

    def _facade(self, max_invocations: int, lifetime: float | None = None) -> AwsFacade:
        return AwsFacade(
            boto3.session.Session(),
            region=self.deployment.region,
            max_invocations=max_invocations,
            invocation_seconds=(lifetime or self.generation_seconds) + ANSWER_SECONDS,
        )

    @contextlib.contextmanager
    def _checked_facade(
        self,
        function: str,
        lifetime: float,
        wanted: int,
        notices: Notices,
        *,
        max_invocations: int | None = None,
    ) -> Iterator[tuple[AwsFacade, bool]]:
        """Yield a way to AWS for a job, and whether fewer functions may work at once than are wanted.

        Whoever is made of it in the body closes it; where the body or the check fails, it is closed here.

        Raises:
            ConfigError: The function is cut off before a generation ends, or may not work at all.
            MissingResourceError: It is not there.
        """
        facade = self._facade(max_invocations or wanted, lifetime)
        try:
            yield facade, check_function(facade, function, lifetime, wanted, notices.add)
        except BaseException:
            facade.close()
            raise
