"""All of Cirrus' AWS on loopback: emulators, the real Terraform, and instances that run their user data.

S3, Lambda, IAM and logs are MiniStack's, which really runs functions; EC2 is moto's, which honours launch
templates. The zip and the wheels are made for this machine's Python.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from terraform_tool import need_terraform

from cirrus.client_backend.aws.host import compile_kernels

ACCOUNT = "123456789012"
REGION = "us-east-1"
START_SECONDS = 60.0
POLL_SECONDS = 0.1
STOP_SECONDS = 20.0
DEPLOY_ATTEMPTS = 3
#: Ends a server when whoever started it closes its standard input, or dies.
LEASH = Path(__file__).with_name("leash.py")
#: Of the servers: short enough to wait for.
KEEP_WARM_SECONDS = 20
CLIENT_LOST_SECONDS = 15


@dataclass(frozen=True, kw_only=True)
class AwsStack:
    """A deployment in emulators, and its instances."""

    deployment: Any
    """A ``cirrus.client_backend.aws.deployment.Deployment``."""
    environment: Mapping[str, str]
    """With which clients, and everything else, find the emulators."""
    operator: Any
    """An ``aws_sandbox.Operator``."""
    home: Path
    """The user's Cirrus folder."""

    def client(self, service: str) -> Any:
        """Return a boto3 client."""
        return client(self.environment, service)


def client(environment: Mapping[str, str], service: str) -> Any:
    """Return a boto3 client for an emulator, whatever this process' environment says."""
    import boto3

    variable = f"AWS_ENDPOINT_URL_{service.upper()}"
    return boto3.session.Session(
        aws_access_key_id="testing", aws_secret_access_key="testing", region_name=REGION
    ).client(service, endpoint_url=environment.get(variable, environment["AWS_ENDPOINT_URL"]))


@pytest.fixture(scope="session")
def aws_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AwsStack]:
    """Deploy to emulators; in the end destroy, and check that nothing is left."""
    plugins = need_terraform()
    compile_kernels()
    folder = tmp_path_factory.mktemp("aws")
    with contextlib.ExitStack() as stack:
        everything = stack.enter_context(ministack(folder))
        ec2 = stack.enter_context(moto(folder))
        environment = aws_environment(everything, ec2, folder / "home")
        before = leftovers(environment)
        deployment = _deploy(environment, plugins, everything, ec2)
        from aws_sandbox import Operator

        operator = Operator(folder / "instances", client(environment, "ec2"), environment)
        with operator:
            yield AwsStack(
                deployment=deployment, environment=environment, operator=operator, home=folder / "home"
            )
        assert operator.problems == []
        _launch_a_server(environment, deployment)
        _destroy(environment, plugins)
        after = leftovers(environment)
        assert {kind: after[kind] for kind in after if after[kind] != before[kind]} == {}
        assert not list((folder / "home").rglob("*.tfstate"))


@pytest.fixture
def on_aws(aws_stack: AwsStack, monkeypatch: pytest.MonkeyPatch) -> AwsStack:
    """The deployment, with this process' environment set for it."""
    use(monkeypatch, aws_stack.environment)
    return aws_stack


def use(patch: pytest.MonkeyPatch, environment: Mapping[str, str]) -> None:
    """Set the environment, and nothing else that begins with AWS_."""
    for name in list(os.environ):
        if re.match(r"(AWS|TF)_", name):
            patch.delenv(name)
    for name, value in environment.items():
        patch.setenv(name, value)


def aws_environment(everything: str, ec2: str, home: Path) -> dict[str, str]:
    """Return what makes AWS' SDKs find the emulators."""
    return {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": REGION,
        "AWS_REGION": REGION,
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL": everything,
        "AWS_ENDPOINT_URL_EC2": ec2,
        "CIRRUS_HOME": str(home),
    }


def provider_override(everything: str, ec2: str) -> str:
    """Return Terraform's file that sends the provider to the emulators."""
    services = ("s3", "lambda", "iam", "cloudwatchlogs", "sts")
    endpoints = "".join(f'    {service} = "{everything}"\n' for service in services)
    return f"""provider "aws" {{
  access_key                  = "testing"
  secret_key                  = "testing"
  s3_use_path_style           = true
  skip_credentials_validation = true
  skip_metadata_api_check     = true
  endpoints {{
{endpoints}    ec2 = "{ec2}"
  }}
}}
"""


def _deploy(environment: Mapping[str, str], plugins: Path, everything: str, ec2: str) -> Any:
    import boto3

    from cirrus.client_backend.aws.deploy import DeployOptions, deploy
    from cirrus.client_backend.aws.wheels import Target
    from cirrus.errors import CloudError

    options = DeployOptions(
        region=REGION,
        target=Target(architecture="host"),
        worker_memory_mb=(1769,),
        variables={
            "keep_warm_seconds": KEEP_WARM_SECONDS,
            "client_lost_seconds": CLIENT_LOST_SECONDS,
            "server_image_id": "ami-12c6146b",
        },
        plugin_folder=plugins,
        extra_files={"emulator_override.tf": provider_override(everything, ec2)},
    )
    with pytest.MonkeyPatch.context() as patch:
        use(patch, environment)
        for attempts_left in reversed(range(DEPLOY_ATTEMPTS)):
            try:
                deployment = deploy(options, boto3.session.Session(), lambda plan: True, lambda text: None)
                break
            except CloudError as error:
                if not attempts_left or not _is_repetition(str(error), environment):
                    raise
    assert deployment is not None
    return deployment


def _is_repetition(error: str, environment: Mapping[str, str]) -> bool:
    """Tell whether a deployment failed because the provider repeated a request whose answer came too late.

    What it was to take away is then not there any more, or what it was to make is there already, but not in
    its state: that is taken away. Deploying again goes on, as users would.
    """
    made = re.search(r"Role with name (\S+) already exists", error)
    if made is not None:
        client(environment, "iam").delete_role(RoleName=made[1])
    return made is not None or "InvalidPermission.NotFound" in error


def _launch_a_server(environment: Mapping[str, str], deployment: Any) -> None:
    """Have a server at work when the deployment is removed, as a run leaves it whose client died."""
    tags = {"cirrus:owner": "cirrus", "cirrus:deployment": deployment.name, "cirrus:run": "r"}
    pairs = [{"Key": key, "Value": value} for key, value in tags.items()]
    client(environment, "ec2").run_instances(
        LaunchTemplate={"LaunchTemplateId": deployment.launch_template_id, "Version": "$Latest"},
        MinCount=1,
        MaxCount=1,
        TagSpecifications=[{"ResourceType": "instance", "Tags": pairs}],
    )


def _destroy(environment: Mapping[str, str], plugins: Path) -> None:
    import boto3

    from cirrus.client_backend.aws.deploy import destroy

    with pytest.MonkeyPatch.context() as patch:
        use(patch, environment)
        session = boto3.session.Session()
        say = [].append
        assert destroy("cirrus", session, lambda plan: True, say, delete_data=True, plugin_folder=plugins)


def leftovers(environment: Mapping[str, str]) -> dict[str, list[str]]:
    """Return everything in the emulators that costs something or stands in the way, by kind."""
    s3, functions, iam = (client(environment, name) for name in ("s3", "lambda", "iam"))
    ec2, logs = client(environment, "ec2"), client(environment, "logs")
    states = [{"Name": "instance-state-name", "Values": ["pending", "running", "stopping", "stopped"]}]
    reservations = ec2.describe_instances(Filters=states)["Reservations"]
    endpoints = ec2.describe_vpc_endpoints()["VpcEndpoints"]
    found = {
        "buckets": [x["Name"] for x in s3.list_buckets()["Buckets"]],
        "functions": [x["FunctionName"] for x in functions.list_functions()["Functions"]],
        "roles": [x["RoleName"] for x in iam.list_roles()["Roles"]],
        "profiles": [x["InstanceProfileName"] for x in iam.list_instance_profiles()["InstanceProfiles"]],
        "policies": [x["PolicyName"] for x in iam.list_policies(Scope="Local")["Policies"]],
        "log groups": [x["logGroupName"] for x in logs.describe_log_groups()["logGroups"]],
        "instances": [x["InstanceId"] for r in reservations for x in r["Instances"]],
        "templates": [x["LaunchTemplateId"] for x in ec2.describe_launch_templates()["LaunchTemplates"]],
        "networks": [x["VpcId"] for x in ec2.describe_vpcs()["Vpcs"]],
        "endpoints": [x["VpcEndpointId"] for x in endpoints if x["State"] != "deleted"],
        "groups": [x["GroupId"] for x in ec2.describe_security_groups()["SecurityGroups"]],
    }
    return {kind: sorted(names) for kind, names in found.items()}


@contextlib.contextmanager
def ministack(folder: Path) -> Iterator[str]:
    """Run MiniStack; yield its URL."""
    port = free_port()
    settings = {
        "GATEWAY_PORT": str(port),
        "BIND_HOST": "127.0.0.1",
        "MINISTACK_HOST": "127.0.0.1",
        "MINISTACK_ACCOUNT_ID": ACCOUNT,
        "LAMBDA_EXECUTOR": "local",
        "IOT_MTLS_ENABLED": "0",
        "SFTP_ENABLED": "0",
        "S3_DATA_DIR": str(folder / "s3"),
        "TMPDIR": str(folder),
        "LOG_LEVEL": "WARNING",
    }
    command = [sys.executable, "-m", "ministack"]
    with _server(command, settings, f"http://127.0.0.1:{port}", folder / "ministack.log") as url:
        yield url


@contextlib.contextmanager
def moto(folder: Path) -> Iterator[str]:
    """Run moto's server as a process of its own, so that no other test shares its state; yield its URL."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)]
    settings = {"MOTO_ACCOUNT_ID": ACCOUNT}
    with _server(command, settings, f"http://127.0.0.1:{port}", folder / "moto.log") as url:
        yield url


def free_port() -> int:
    """Return a port that nobody uses now."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def _server(command: list[str], settings: Mapping[str, str], url: str, log: Path) -> Iterator[str]:
    kept = {k: v for k, v in os.environ.items() if not re.match(r"(AWS|TF|CIRRUS|PYTEST)_", k)}
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, str(LEASH), *command],
            env={**kept, **settings},
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        end = time.monotonic() + START_SECONDS
        while not _answers(url):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(POLL_SECONDS)
        yield url
    finally:
        process.communicate(timeout=STOP_SECONDS)  # closes the leash


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5.0):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return True
    except OSError:
        return False
