"""A deployment on emulators: functions and bucket by MiniStack, instances by moto, real shards on them.

What the instances do is a stand-in for user data and host program, as small as it can be: it starts the
shards that the tags name, keeps them alive, ends them with the instance, and waits for another run.
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pytest
from aws_services import moto_services, use_services
from aws_stack import ACCOUNT, ministack

from cirrus.client_backend.aws.deployment import DEPLOYMENT_KEY, Deployment
from cirrus.client_backend.aws.facade import TAG_OWNER, TAG_RUN, TAG_SHARDS
from cirrus.client_backend.processes import child_environment
from cirrus.metrics import RunState
from cirrus.paramserver.host_records import (
    HostPhase,
    HostReports,
    HostStatus,
    WarmServer,
    WarmServers,
    parse_shards,
)
from cirrus.run_folder import RunFolder
from cirrus.storage import open_store

ROOT = Path(__file__).parents[1]
BUCKET = "cirrus-stand-in"
FUNCTION = "cirrus-worker-1769"
POLL_SECONDS = 0.3
#: Of a shard that is asked to end.
GRACE_SECONDS = 3.0


def worker_zip() -> bytes:
    """Return the worker as a zip, but for what this machine's Python has installed."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(ROOT / "lambda_package" / "cirrus_lambda.py", "cirrus_lambda.py")
        for path in sorted((ROOT / "cirrus").rglob("*.py")):
            archive.write(path, str(path.relative_to(ROOT)))
    return data.getvalue()


@dataclass
class Host:
    """One instance: the shards of one run after the other."""

    instance: str
    warm_seconds: float
    ended: threading.Event = field(default_factory=threading.Event)
    shards: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    served: list[str] = field(default_factory=list)

    def run(self, run_id: str, shards: tuple[int, ...]) -> None:
        """Live until the instance ends, or nobody wants it any more."""
        next_one: tuple[str, tuple[int, ...]] | None = (run_id, shards)
        while next_one is not None and not self.ended.is_set():
            self._serve(*next_one)
            next_one = self._await_claim(next_one[1])
        self.ended.set()

    def _serve(self, run_id: str, shards: tuple[int, ...]) -> None:
        self.served.append(run_id)
        folder = RunFolder(f"s3://{BUCKET}/runs/{run_id}")
        reports = HostReports(folder.store)
        self._report(reports, HostPhase.SERVING, shards)
        while not self.ended.wait(POLL_SECONDS):
            status = folder.status()
            if status is not None and status.state.ended and status.state is not RunState.INTERRUPTED:
                break
            for shard in shards:
                process = self.shards.get(shard)
                if process is None or process.poll() is not None:
                    self._unleash(process)
                    self.shards[shard] = self._start(folder, shard)
        self._stop()
        self._report(reports, HostPhase.INTERRUPTED if self.ended.is_set() else HostPhase.ENDED, shards)

    def _report(self, reports: HostReports, phase: HostPhase, shards: tuple[int, ...]) -> None:
        reports.write(HostStatus(instance=self.instance, phase=phase, shards=shards, at=time.time()))

    def _start(self, folder: RunFolder, shard: int) -> subprocess.Popen[bytes]:
        before = folder.shard_address(shard)
        generation = 1 if before is None else before.generation + 1
        words = [
            "--run-url",
            folder.url,
            "--shard",
            str(shard),
            "--generation",
            str(generation),
        ]
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "cirrus.paramserver", *words],
            stdin=subprocess.PIPE,  # the leash: shards end with these tests, however those end
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=child_environment(os.environ),
        )

    @staticmethod
    def _unleash(process: subprocess.Popen[bytes] | None) -> None:
        if process is not None and process.stdin is not None:
            process.stdin.close()

    def _stop(self) -> None:
        for process in self.shards.values():
            process.terminate()
        for process in self.shards.values():
            try:
                process.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            self._unleash(process)
        self.shards.clear()

    def _await_claim(self, shards: tuple[int, ...]) -> tuple[str, tuple[int, ...]] | None:
        if self.warm_seconds <= 0:
            return None
        warm = WarmServers(open_store(f"s3://{BUCKET}"))
        now = time.time()
        warm.offer(
            WarmServer(
                instance=self.instance,
                address="127.0.0.1",
                since=now,
                until=now + self.warm_seconds,
                shards=len(shards),
                instance_type="c7g.large",
            )
        )
        while not self.ended.wait(POLL_SECONDS):
            claim = warm.claim_of(self.instance)
            if claim is not None and claim.run is not None:
                warm.withdraw(self.instance)
                return claim.run, claim.shards
        return None


class Hosts:
    """Runs a host for every instance that is launched.

    Args:
        warm_seconds: How long they say that they wait for another run.
    """

    def __init__(self, warm_seconds: float) -> None:
        self._warm_seconds = warm_seconds
        self._ec2 = boto3.session.Session().client("ec2")
        self._threads: list[threading.Thread] = []
        self._stopping = threading.Event()
        self.hosts: dict[str, Host] = {}
        self._poller = threading.Thread(target=self._poll, daemon=True)
        self._poller.start()

    def _poll(self) -> None:
        while not self._stopping.wait(POLL_SECONDS):
            for instance in self._instances():
                name = instance["InstanceId"]
                living = instance["State"]["Name"] in ("pending", "running")
                if living and name not in self.hosts:
                    tags = {tag["Key"]: tag["Value"] for tag in instance["Tags"]}
                    host = self.hosts[name] = Host(name, self._warm_seconds)
                    arguments = (tags[TAG_RUN], parse_shards(tags[TAG_SHARDS]))
                    thread = threading.Thread(target=host.run, args=arguments, daemon=True)
                    thread.start()
                    self._threads.append(thread)
                elif not living and name in self.hosts:
                    self.hosts[name].ended.set()

    def _instances(self) -> list[Any]:
        found = self._ec2.describe_instances(Filters=[{"Name": f"tag:{TAG_OWNER}", "Values": ["cirrus"]}])
        return [instance for group in found["Reservations"] for instance in group["Instances"]]

    def living(self) -> list[str]:
        """Return the instances that EC2 takes for living."""
        return [i["InstanceId"] for i in self._instances() if i["State"]["Name"] in ("pending", "running")]

    def end_all(self) -> None:
        """End every instance, and wait for that."""
        for name in self.living():
            self._ec2.terminate_instances(InstanceIds=[name])
        for host in self.hosts.values():
            host.ended.set()
        for thread in self._threads:
            thread.join(2 * GRACE_SECONDS)
            assert not thread.is_alive()

    def close(self) -> None:
        """End everything."""
        self._stopping.set()
        self._poller.join()
        self.end_all()
        self._ec2.close()


@dataclass
class Stack:
    """What a test works with."""

    deployment: Deployment
    hosts: Hosts
    lambda_url: str

    def limit_concurrency(self, limit: int | None) -> None:
        """Let so many functions work at once; None: any number."""
        client = boto3.session.Session().client("lambda")
        if limit is None:
            client.delete_function_concurrency(FunctionName=FUNCTION)
        else:
            client.put_function_concurrency(FunctionName=FUNCTION, ReservedConcurrentExecutions=limit)
        client.close()


@contextlib.contextmanager
def stand_in(home: Path, *, warm_seconds: float = 0.0) -> Iterator[Stack]:
    """Make a deployment on emulators, and leave nothing of it.

    Args:
        home: The user's folder.
        warm_seconds: How long a server waits for another run.
    """
    with pytest.MonkeyPatch.context() as patch, moto_services() as ec2_url:
        use_services(patch, ec2_url)
        with ministack(home) as url:
            use_services(patch, url, ec2=ec2_url)
            patch.setenv("CIRRUS_HOME", str(home))
            session = boto3.session.Session()
            with contextlib.closing(session.client("s3")) as s3:
                s3.create_bucket(Bucket=BUCKET)
            with contextlib.closing(session.client("lambda")) as functions:
                functions.create_function(
                    FunctionName=FUNCTION,
                    Runtime=f"python3.{sys.version_info.minor}",
                    Role=f"arn:aws:iam::{ACCOUNT}:role/worker",
                    Handler="cirrus_lambda.handler",
                    Code={"ZipFile": worker_zip()},
                    Timeout=900,
                    MemorySize=1769,
                )
            with contextlib.closing(session.client("ec2")) as ec2:
                template = ec2.create_launch_template(
                    LaunchTemplateName="cirrus",
                    LaunchTemplateData={"ImageId": "ami-12c6146b", "InstanceType": "c7g.large"},
                )
            deployment = Deployment(
                region="us-east-1",
                availability_zone="us-east-1a",
                bucket=BUCKET,
                architecture="arm64",
                worker_functions={"1769": FUNCTION},
                launch_template_id=template["LaunchTemplate"]["LaunchTemplateId"],
                instance_type="c7g.large",
                subnet_id="subnet-1",
                keep_warm_seconds=warm_seconds,
            )
            open_store(deployment.root).put(DEPLOYMENT_KEY, deployment.to_json())
            deployment.note_down()
            hosts = Hosts(warm_seconds)
            try:
                yield Stack(deployment, hosts, url)
            finally:
                hosts.close()
