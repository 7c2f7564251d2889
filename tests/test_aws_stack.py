"""The deployment as it comes out of the real Terraform, and instances that run their real user data."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import re
import subprocess
import sys
import threading
import time
import uuid

import pytest
from aws_sandbox import SandboxInstance
from real_runs import assert_exact, assert_whole, await_work, make_dataset, plan
from stand_ins import assert_within, eventually, last_report

import cirrus
from cirrus.client_backend.aws.deploy import destroy
from cirrus.client_backend.aws.deployment import bucket_deployment, local_deployment
from cirrus.client_backend.aws.facade import AwsFacade
from cirrus.client_backend.aws.seats import ServerRecords
from cirrus.client_backend.claims import new_claim
from cirrus.client_backend.processes import child_environment
from cirrus.errors import ConfigError
from cirrus.metrics import RunState
from cirrus.paramserver.host_records import HostPhase, HostReports, format_shards
from cirrus.run_folder import RunFolder
from cirrus.storage import open_store
from cirrus.worker_runtime.handler import handler

#: An instance that installs everything on a machine with other work.
BOOT_SECONDS = 240.0
#: From the call of a second fit to its first step.
WARM_START_SECONDS = 5.0


@pytest.fixture
def facade(on_aws):
    """The client's way to EC2."""
    import boto3

    facade = AwsFacade(boto3.session.Session(), region=on_aws.deployment.region)
    yield facade
    facade.close()


class Client:
    """A client that supervises a run by hand: claim, workers.

    Args:
        root: Where runs lie.
        config: Of the run.
    """

    def __init__(self, root, config):
        self.config = config
        self.folder = RunFolder(f"{root}/runs/{config.run_id}")
        self.folder.create(config)
        self.claim = new_claim()
        self.folder.claim(self.claim)
        self.stopping = threading.Event()
        self.renewing = threading.Thread(target=self._renew, daemon=True)
        self.renewing.start()

    def _renew(self):
        while not self.stopping.wait(3.0):
            self.claim = dataclasses.replace(self.claim, renewed_at=time.time())
            self.folder.claim(self.claim)

    def work(self):
        """Do a worker's work until the run is over, or its deadline."""
        event = {"role": "train", "run_url": self.folder.url, "worker_id": 0, "generation": 1}
        return handler({**event, "deadline_seconds": BOOT_SECONDS})

    def finished(self):
        """Return the status of the run once it has finished."""
        eventually(lambda: self.folder.status().state is RunState.FINISHED)
        return self.folder.status()

    def close(self):
        """Stop renewing."""
        self.stopping.set()
        self.renewing.join()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()


def launch(facade, deployment, run_id, shards):
    """Start an instance as clients do; return its id."""
    tags = {"cirrus:owner": "cirrus", "cirrus:deployment": deployment.name, "Name": f"cirrus-{run_id}"}
    return facade.run_instance(
        template_id=deployment.launch_template_id,
        client_token=uuid.uuid4().hex,
        tags={**tags, "cirrus:run": run_id, "cirrus:shards": format_shards(shards)},
    )


def test_clients_find_the_deployment(on_aws):
    """Its description lies in the bucket for any machine, and in this user's folder."""
    deployment = on_aws.deployment
    assert bucket_deployment(deployment.bucket) == local_deployment() == deployment
    assert deployment.keep_warm_seconds == 20
    assert deployment.worker_functions == {"1769": "cirrus-worker-1769"}


def test_the_bucket_is_closed_and_encrypted(on_aws):
    """Nothing in it is public, and it is encrypted."""
    s3, bucket = on_aws.client("s3"), on_aws.deployment.bucket
    block = s3.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"]
    assert all(block.values())
    rules = s3.get_bucket_encryption(Bucket=bucket)["ServerSideEncryptionConfiguration"]["Rules"]
    assert rules[0]["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"
    lifecycle = s3.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
    assert {rule["Filter"].get("Prefix") for rule in lifecycle if "Expiration" in rule} == {
        "tmp/",
        "scratch/",
        "jobs/",
        "servers/",
    }


def test_shards_are_reached_from_functions_and_servers_alone(on_aws):
    """The servers' group lets in two groups on the shards' ports, and no address range at all."""
    ec2 = on_aws.client("ec2")
    groups = {x["GroupName"]: x for x in ec2.describe_security_groups()["SecurityGroups"]}
    worker, server = groups["cirrus-worker"], groups["cirrus-server"]
    assert worker["IpPermissions"] == []
    allowed = server["IpPermissions"]
    assert {(x["FromPort"], x["ToPort"]) for x in allowed} == {(7700, 7799)}
    assert not any(x.get("IpRanges") or x.get("Ipv6Ranges") or x.get("PrefixListIds") for x in allowed)
    sources = {pair["GroupId"] for x in allowed for pair in x["UserIdGroupPairs"]}
    assert sources == {worker["GroupId"], server["GroupId"]}
    assert not any(
        x.get("IpRanges") for x in [*worker["IpPermissionsEgress"], *server["IpPermissionsEgress"]]
    )


def test_servers_are_launched_closed_and_end_by_themselves(on_aws):
    """The launch template: token-only metadata with tags, encrypted disk, no public address, terminate."""
    ec2 = on_aws.client("ec2")
    versions = ec2.describe_launch_template_versions(LaunchTemplateId=on_aws.deployment.launch_template_id)
    data = versions["LaunchTemplateVersions"][0]["LaunchTemplateData"]
    assert data["MetadataOptions"]["HttpTokens"] == "required"
    assert data["MetadataOptions"]["InstanceMetadataTags"] == "enabled"
    assert data["InstanceInitiatedShutdownBehavior"] == "terminate"
    assert data["BlockDeviceMappings"][0]["Ebs"]["Encrypted"]
    (interface,) = data["NetworkInterfaces"]
    assert not interface["AssociatePublicIpAddress"]
    assert interface["SubnetId"] == on_aws.deployment.subnet_id
    assert data["IamInstanceProfile"]["Arn"].endswith("/cirrus-server-us-east-1")
    script = base64.b64decode(data["UserData"]).decode()
    commands = [line for line in script.splitlines() if line and not line.startswith("#")]
    assert commands[0] == "shutdown -h +1440"


def test_functions_are_as_workers_need_them(on_aws):
    """The function runs the packed handler, long enough, beside the servers."""
    found = on_aws.client("lambda").get_function_configuration(FunctionName="cirrus-worker-1769")
    assert (found["Handler"], found["Timeout"], found["MemorySize"]) == ("cirrus_lambda.handler", 900, 1769)
    assert found["VpcConfig"]["SubnetIds"] == [on_aws.deployment.subnet_id]
    # New accounts would refuse a reservation.
    reserved = on_aws.client("lambda").get_function_concurrency(FunctionName="cirrus-worker-1769")
    assert "ReservedConcurrentExecutions" not in reserved
    groups = on_aws.client("logs").describe_log_groups(logGroupNamePrefix="/aws/lambda/cirrus-worker-1769")
    assert [group["retentionInDays"] for group in groups["logGroups"]] == [14]


def test_the_network_leads_to_s3_alone(on_aws):
    """One subnet in the deployment's zone, no gateway but S3's, which lets through Amazon's packages, too."""
    ec2 = on_aws.client("ec2")
    (subnet,) = ec2.describe_subnets(SubnetIds=[on_aws.deployment.subnet_id])["Subnets"]
    assert subnet["AvailabilityZone"] == on_aws.deployment.availability_zone
    assert not subnet["MapPublicIpOnLaunch"]
    here = [{"Name": "vpc-id", "Values": [subnet["VpcId"]]}]
    assert ec2.describe_nat_gateways(Filters=here)["NatGateways"] == []
    attached = [{"Name": "attachment.vpc-id", "Values": [subnet["VpcId"]]}]
    assert ec2.describe_internet_gateways(Filters=attached)["InternetGateways"] == []
    assert [x["SubnetId"] for x in ec2.describe_subnets(Filters=here)["Subnets"]] == [subnet["SubnetId"]]
    (endpoint,) = ec2.describe_vpc_endpoints(Filters=here)["VpcEndpoints"]
    assert (endpoint["ServiceName"], endpoint["VpcEndpointType"]) == ("com.amazonaws.us-east-1.s3", "Gateway")
    statements = {each["Sid"]: each for each in json.loads(endpoint["PolicyDocument"])["Statement"]}
    bucket = f"arn:aws:s3:::{on_aws.deployment.bucket}"
    assert set(statements["OwnBucket"]["Resource"]) == {bucket, f"{bucket}/*"}
    packages = statements["AmazonLinuxPackages"]
    assert (packages["Action"], packages["Resource"]) == (
        "s3:GetObject",
        "arn:aws:s3:::al2023-repos-us-east-1-de612dc2/*",
    )


def test_an_instance_runs_its_user_data_and_serves(on_aws, facade):
    """From RunInstances to the end of a run, and on to a second one on the warm server."""
    root = on_aws.deployment.root
    train = make_dataset(f"{root}/data-{uuid.uuid4().hex}")
    config = plan(train, epochs=2, n_workers=1)
    with Client(root, config) as client:
        name = launch(facade, on_aws.deployment, config.run_id, (0, 1))
        eventually(lambda: client.folder.shard_address(1), BOOT_SECONDS)
        assert client.work()["outcome"] == "finished"
        assert_exact(config, client.finished())
        instance = on_aws.operator.living[name]
        tools = [call[0] for call in instance.calls]
        assert instance.calls[0] == ["shutdown", "-h", "+1440"]
        assert ["dnf", "install", "--assumeyes", "--quiet", "python3.13", "python3.13-pip"] in instance.calls
        assert tools[-4:] == ["systemctl", "systemctl", "run-unit", "start-unit"]
        said = (instance.folder / "user_data").read_text() + instance.journal
        assert client.folder.token() not in said
        assert config.run_id not in (instance.folder / "user_data").read_text()
        records = ServerRecords(open_store(root))
        eventually(lambda: records.read(name).idle_since is not None)
        record = records.read(name)
        assert (record.capacity, record.release) == (2, on_aws.deployment.server_release)
        assert len(record.release) == 64
        assert last_report(client.folder, name).phase is HostPhase.ENDED
    second = plan(train, epochs=1, n_workers=1)
    with Client(root, second) as client:
        assert records.book(name, second.run_id, (0, 1)) is not None
        assert client.work()["outcome"] == "finished"
        assert_exact(second, client.finished())
    facade.terminate([name])
    eventually(lambda: name in on_aws.operator.gone, 30.0)
    assert on_aws.operator.gone[name].processes() == []


def seconds_to_first_step(est, train):
    """Fit; return how long after the call the progress told of a step."""
    told = []
    est.set_params(progress=lambda status: told.append(time.monotonic()) if status.updates else None)
    called_at = time.monotonic()
    est.fit(train)
    return told[0] - called_at


def test_a_second_fit_begins_within_five_seconds(on_aws):
    """As a user sees it: two fits in a row, and the second has taken a step within 5 s of its call."""
    root = on_aws.deployment.root
    train = make_dataset(f"{root}/data-{uuid.uuid4().hex}")
    est = cirrus.LogisticRegression(
        backend=cirrus.AWSBackend(on_aws.deployment.bucket), n_workers=1, n_shards=2, epochs=2, tol=None
    )
    print(f"a first fit takes its first step after {seconds_to_first_step(est, train):.1f} s")
    servers = set(on_aws.operator.living)

    def next_fit():
        seconds = seconds_to_first_step(est, train)
        print(f"the next one after {seconds:.1f} s")
        return seconds

    assert_within(WARM_START_SECONDS, next_fit)
    assert set(on_aws.operator.living) <= servers


def test_the_command_line_tells_what_it_costs(on_aws, tmp_path):
    """``cirrus train`` and ``cirrus runs`` show what a run has cost beside what it should have cost."""
    rows = tmp_path / "rows.svm"
    rows.write_text("".join(f"{i % 2} {1 + i % 2}:1 {3 + i % 5}:0.5\n" for i in range(2000)))
    home = ("--home", on_aws.deployment.root)
    trained = cli("train", str(rows), *home, "--workers", "1", "--epochs", "2")
    assert re.search(r"^cost \$0\.\d{4}; the model says \$0\.\d{4}", trained.stderr, re.MULTILINE)
    (run,) = re.findall(r"^run (\S+) ", trained.stderr, re.MULTILINE)
    head, *lines = cli("runs", *home).stdout.splitlines()
    (line,) = [line for line in lines if line.startswith(run)]
    assert "  COST  " in head
    assert "MODELLED" in head
    assert line.count("$") == 2


def cli(*words):
    """Run the command line."""
    done = subprocess.run(
        [sys.executable, "-m", "cirrus", *words],
        env=child_environment(os.environ),
        capture_output=True,
        text=True,
        timeout=BOOT_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_a_run_outlives_its_host_program_and_its_instance(on_aws):
    """The unit that user data installs starts a host program again that was killed, on the same instance.

    One that AWS takes back is replaced by another. The run goes on each time, exactly.
    """
    config = plan(make_dataset(f"{on_aws.deployment.root}/data-{uuid.uuid4().hex}"), n_workers=1)

    def goes_on_after(generation):
        eventually(lambda: run.folder.shard_address(1).generation > generation, BOOT_SECONDS)
        await_work(run, run.status.updates + config.steps_per_epoch)
        return run.folder.shard_address(1).generation

    with cirrus.AWSBackend(on_aws.deployment.bucket).start(config) as run:
        await_work(run)
        (name,) = {key.split("/")[1].removesuffix(".json") for key in run.folder.store.list("hosts/")}
        instance = on_aws.operator.living[name]
        starts = instance.calls.count(["start-unit", "cirrus-host.service"])
        generation = run.folder.shard_address(1).generation
        instance.host_program().kill()
        generation = goes_on_after(generation)
        assert instance.calls.count(["start-unit", "cirrus-host.service"]) == starts + 1
        assert name in on_aws.operator.living
        assert not run.notices
        instance.reclaim()
        goes_on_after(generation)
        eventually(lambda: name in on_aws.operator.gone, BOOT_SECONDS)
        assert any(f"takes back the spot server {name}" in notice for notice in run.notices)
        run.stop()
        status = run.wait(BOOT_SECONDS)
    assert status.state is RunState.FINISHED
    assert_whole(run, status)


def test_an_instance_whose_client_dies_ends_itself(on_aws, facade):
    """Without a sign of life from the client the run is saved, and the instance shuts itself down."""
    root = on_aws.deployment.root
    config = plan(make_dataset(f"{root}/data-{uuid.uuid4().hex}"), n_workers=1)
    with Client(root, config) as client:
        name = launch(facade, on_aws.deployment, config.run_id, (0, 1))
        eventually(lambda: client.folder.shard_address(0), BOOT_SECONDS)
    eventually(lambda: name in on_aws.operator.gone, 60.0)
    assert on_aws.operator.gone[name].is_down
    assert client.folder.status().state is RunState.INTERRUPTED
    assert [x.state for x in facade.instances(instance_ids=[name])] == ["terminated"]


def test_user_data_that_fails_says_so_and_ends(on_aws, tmp_path):
    """Where the packages cannot be installed, the client reads why, and the machine shuts down."""
    deployment = on_aws.deployment
    versions = on_aws.client("ec2").describe_launch_template_versions(
        LaunchTemplateId=deployment.launch_template_id
    )
    data = versions["LaunchTemplateVersions"][0]["LaunchTemplateData"]
    script = base64.b64decode(data["UserData"]).replace(b"/packages/server/", b"/packages/nowhere/")
    tags = {"cirrus:run": "a-run", "cirrus:shards": "0"}
    instance = SandboxInstance(tmp_path / "i-0bad", "i-0bad", script, tags, on_aws.environment)
    try:
        assert instance.wait_for_user_data(BOOT_SECONDS) == 1
        assert instance.is_down
        report = HostReports(open_store(f"{deployment.root}/runs/a-run")).read("i-0bad", 0)
        assert report.phase is HostPhase.FAILED
        assert "fetching the packages from the bucket failed" in report.error
    finally:
        instance.crash()


def test_data_is_not_destroyed_by_mistake(on_aws):
    """A bucket with a user's objects is an error that counts them, before anything is touched."""
    import boto3

    open_store(on_aws.deployment.root).put("thesis/chapter-1", b"text")
    with pytest.raises(ConfigError, match="objects of yours") as caught:
        destroy("cirrus", boto3.session.Session(), lambda plan: pytest.fail(plan), lambda text: None)
    assert caught.value.field == "delete_data"
    assert json.loads(open_store(on_aws.deployment.root).get("cirrus/deployment.json"))


def test_what_was_never_deployed_cannot_be_destroyed(on_aws):
    """A name that this machine knows nothing of is an error."""
    import boto3

    with pytest.raises(ConfigError, match="nothing is deployed as 'other'"):
        destroy("other", boto3.session.Session(), lambda plan: pytest.fail(plan), lambda text: None)
