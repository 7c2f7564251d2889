"""A deployment on emulators: functions and bucket by MiniStack, instances by moto, real shards on them.

On the instances nothing is installed: the host program runs in a thread of the test for each of them, with
shards that are processes.
"""

from __future__ import annotations

import contextlib
import io
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from aws_services import moto_services, use_services
from aws_stack import ACCOUNT, ministack

from cirrus.client_backend.aws.deployment import DEPLOYMENT_KEY, Deployment
from cirrus.client_backend.aws.facade import TAG_OWNER, TAG_RUN, TAG_SHARDS
from cirrus.client_backend.aws.hosting import Host, HostOptions
from cirrus.client_backend.aws.instance import Instance, InstanceMetadata
from cirrus.client_backend.local import shard_command
from cirrus.paramserver.host_records import parse_shards
from cirrus.storage import open_store

ROOT = Path(__file__).parents[1]
BUCKET = "cirrus-stand-in"
FUNCTION = "cirrus-worker-1769"
POLL_SECONDS = 0.3
#: Of an instance that is ended, for its shards to save themselves.
GRACE_SECONDS = 10.0
RELEASE = "stand-in"
#: From the launch of an instance until its host program starts: a boot, in which others book its seats.
BOOT_SECONDS = 1.0


def worker_zip() -> bytes:
    """Return the worker as a zip, but for what this machine's Python has installed."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(ROOT / "lambda_package" / "cirrus_lambda.py", "cirrus_lambda.py")
        for path in sorted((ROOT / "cirrus").rglob("*.py")):
            archive.write(path, str(path.relative_to(ROOT)))
    return data.getvalue()


class _Metadata(InstanceMetadata):
    """Of an instance that nobody takes back."""

    def is_reclaimed(self) -> bool:
        """Say so."""
        return False


def _command(url: str, shard: int, generation: int) -> list[str]:
    """Return the command line of a shard. Of a function that is not the host's own, none is kept ready."""
    return list(shard_command(url, shard, generation))


class Hosts:
    """Runs a host for every instance that is launched.

    Args:
        warm_seconds: How long they say that they wait for another run.
    """

    def __init__(self, warm_seconds: float) -> None:
        self._warm_seconds = warm_seconds
        self._ec2 = boto3.session.Session().client("ec2")
        self._stopping = threading.Event()
        self.hosts: dict[str, Host] = {}
        self._threads: dict[str, threading.Thread] = {}
        self._poller = threading.Thread(target=self._poll, daemon=True)
        self._poller.start()

    def _poll(self) -> None:
        while not self._stopping.wait(POLL_SECONDS):
            for instance in self._instances():
                name = instance["InstanceId"]
                living = instance["State"]["Name"] in ("pending", "running")
                if living and name not in self.hosts:
                    self._boot(name, {tag["Key"]: tag["Value"] for tag in instance["Tags"]})
                elif not living and name in self.hosts:
                    self.hosts[name].stop()

    def _boot(self, name: str, tags: dict[str, str]) -> None:
        instance = Instance(
            instance=name,
            address="127.0.0.1",
            instance_type="c7g.large",
            run=tags[TAG_RUN],
            shards=parse_shards(tags[TAG_SHARDS]),
        )
        options = HostOptions(root=f"s3://{BUCKET}", keep_warm_seconds=self._warm_seconds, release=RELEASE)
        host = self.hosts[name] = Host(instance, _Metadata(), options, _command)

        def run() -> None:
            self._stopping.wait(BOOT_SECONDS)
            host.run()
            self._ec2.terminate_instances(InstanceIds=[name])

        thread = self._threads[name] = threading.Thread(target=run, daemon=True)
        thread.start()

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
        for host in list(self.hosts.values()):
            host.stop()
        for thread in list(self._threads.values()):
            thread.join(GRACE_SECONDS)
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
                server_release=RELEASE,
            )
            open_store(deployment.root).put(DEPLOYMENT_KEY, deployment.to_json())
            deployment.note_down()
            hosts = Hosts(warm_seconds)
            try:
                yield Stack(deployment, hosts, url)
            finally:
                hosts.close()
