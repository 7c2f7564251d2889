"""The Terraform files: formatted, valid, described, and refusing what cannot work."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import boto3
import pytest
from aws_services import moto_services
from aws_stack import provider_override
from terraform_tool import TERRAFORM, need_terraform, terraform

from cirrus.client_backend.aws import facade
from cirrus.client_backend.aws.prices import read_prices

#: EC2 takes no larger user data (before base64).
USER_DATA_BYTES = 16 * 1024
BLOCK = re.compile(r'^(variable|output) "(\w+)" \{\n(.*?)^\}', re.MULTILINE | re.DOTALL)


def blocks():
    """Return (kind, name, body) of all variables and outputs."""
    texts = [path.read_text() for path in sorted(TERRAFORM.glob("*.tf"))]
    return [match.groups() for text in texts for match in BLOCK.finditer(text)]


@pytest.fixture(scope="module")
def initialised(tmp_path_factory):
    """A copy of the folder with the provider installed."""
    plugins = need_terraform()
    folder = tmp_path_factory.mktemp("terraform") / "copy"
    shutil.copytree(TERRAFORM, folder, ignore=shutil.ignore_patterns(".terraform*", "*.tfstate*"))
    done = terraform(folder, ["init", "-input=false", "-backend=false", f"-plugin-dir={plugins}"])
    assert done.returncode == 0, done.stderr
    return folder


def test_it_is_formatted(initialised):
    """`terraform fmt -check` has nothing to say."""
    done = terraform(initialised, ["fmt", "-check", "-diff"])
    assert done.returncode == 0, done.stdout


def test_it_is_valid(initialised):
    """`terraform validate` accepts it with the real provider."""
    done = terraform(initialised, ["validate", "-no-color"])
    assert done.returncode == 0, done.stdout + done.stderr


def test_values_that_cannot_work_are_refused_by_name(initialised, tmp_path):
    """Each variable's own check speaks, all of them at once, before anything is made."""
    bad = {
        "name": '"Cirrus!"',
        "region": '"mars"',
        "tags": '{ "aws:mine" = "1" }',
        "availability_zone": '"1a"',
        "data_buckets": '["s3://bucket/path"]',
        "instance_type": '"large"',
        "server_image_id": '"linux"',
        "vpc_cidr": '"everything"',
        "disk_gb": "1",
        "keep_warm_seconds": "-1",
        "architecture": '"mips"',
        "python_version": '"3.14"',
        "worker_memory_mb": "[100]",
        "worker_package": '"missing.zip"',
        "server_package": '"missing"',
        "subnet_id": '"mine"',  # and no vpc_id, whose own check is made before all of this one's
        "max_hours": "0",
        "reserved_concurrency": "0",
        "client_lost_seconds": "1",
        "log_retention_days": "8",
        "temporary_days": "0",
        "bucket_name": '"A bucket"',
    }
    file = tmp_path / "test.tfvars"
    file.write_text("".join(f"{name} = {value}\n" for name, value in bad.items()))
    done = terraform(
        initialised, ["plan", "-input=false", "-no-color", "-refresh=false", f"-var-file={file}"]
    )
    assert done.returncode == 1
    said = " ".join(done.stderr.split())
    for name in bad:
        assert f"{name}: " in said.replace("│ ", ""), done.stderr
    assert "subnet_id: give vpc_id and subnet_id, or neither" in said.replace("│ ", "")
    assert {*bad, "vpc_id"} == {name for _, name, body in blocks() if "  validation {" in body}


@pytest.fixture(scope="module")
def emulator():
    """Serve an emulator of AWS."""
    with moto_services() as url:
        yield url


@pytest.fixture(scope="module")
def planned(initialised, emulator, tmp_path_factory):
    """Plan against the emulator with some variables; return terraform's end, and the plan if there is one."""
    (packages := tmp_path_factory.mktemp("packages")).joinpath("requirements.txt").touch()
    (packages / "worker.zip").touch()
    # Of its own: what is added is neither formatted nor the real provider's, and the tests of that come at
    # any time.
    folder = tmp_path_factory.mktemp("planned") / "copy"
    shutil.copytree(initialised, folder, symlinks=True)
    (folder / "emulator_override.tf").write_text(provider_override(emulator, emulator))

    def plan(region, **variables):
        every = {"worker_package": packages / "worker.zip", "server_package": packages, **variables}
        words = [f"-var={name}={value}" for name, value in {"region": region, **every}.items()]
        options = ["-input=false", "-no-color", f"-out={packages / 'plan'}"]
        done = terraform(folder, ["plan", *options, *words])
        if done.returncode:
            return done, None
        shown = terraform(folder, ["show", "-json", str(packages / "plan")])
        return done, json.loads(shown.stdout)["planned_values"]

    return plan


def test_servers_are_of_a_type_that_region_and_zone_have(planned):
    """The best type that EC2 offers there, in a zone that has it; one that is not to be had is an error.

    Frankfurt has no c7gn; us-east-1e has neither that nor its successor.
    """
    _, frankfurt = planned("eu-central-1")
    found = {name: frankfurt["outputs"][name]["value"] for name in ("instance_type", "availability_zone")}
    assert found == {"instance_type": "c8gn.large", "availability_zone": "eu-central-1a"}
    failed, _ = planned("us-east-1", instance_type="c7gn.large", availability_zone="us-east-1e")
    said = " ".join(failed.stderr.split())
    assert failed.returncode == 1
    assert "instance_type: EC2 offers no c7gn.large in us-east-1e" in said.replace("│ ", "")


def test_a_network_of_ones_own_is_used_as_it_is(planned, emulator):
    """With vpc_id and subnet_id no network is made, and all is in the zone that the subnet is in."""
    ec2 = boto3.session.Session("testing", "testing").client("ec2", "us-east-1", endpoint_url=emulator)
    vpc = ec2.create_vpc(CidrBlock="10.1.0.0/16")["Vpc"]["VpcId"]
    subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.1.0.0/24", AvailabilityZone="us-east-1b")["Subnet"]
    _, plan = planned("us-east-1", vpc_id=vpc, subnet_id=subnet["SubnetId"])
    ec2.close()
    failed, _ = planned("us-east-1", vpc_id="mine", subnet_id="subnet-1")
    assert "vpc_id: the id of a VPC" in " ".join(failed.stderr.split())
    assert plan["outputs"]["availability_zone"]["value"] == "us-east-1b"
    assert plan["outputs"]["subnet_id"]["value"] == subnet["SubnetId"]
    made = {resource["type"] for resource in plan["root_module"]["resources"]}
    network = ("aws_vpc", "aws_subnet", "aws_route", "aws_nat", "aws_internet", "aws_egress", "aws_default")
    rules = {"aws_vpc_security_group_egress_rule", "aws_vpc_security_group_ingress_rule"}
    assert {kind for kind in made if kind.startswith(network)} == rules


def test_preferred_types_are_priced_and_best_first():
    """Each type that servers get by default has a price, and no smaller baseline bandwidth than the next."""
    text = (TERRAFORM / "servers.tf").read_text()
    prices = read_prices()
    for architecture in ("arm64", "x86_64"):
        (names,) = re.findall(rf"{architecture} += (\[.+\])", text)
        baselines = [prices.instance("us-east-1", name).baseline_gbps for name in json.loads(names)]
        assert baselines == sorted(baselines, reverse=True)


def test_clients_may_do_what_the_client_does():
    """The policy for colleagues allows every call to Lambda and EC2 that the client makes."""
    calls = " ".join(re.findall(r'needs="([^"]+)"', Path(facade.__file__).read_text()))
    needed = set(re.findall(r"[a-z0-9]+:\w+", calls))
    policy = (TERRAFORM / "iam.tf").read_text().partition('"aws_iam_policy_document" "client"')[2]
    assert len(needed) > 8
    assert needed <= set(re.findall(r'"([a-z0-9]+:\w+)"', policy))


def test_every_variable_and_output_is_described():
    """Variables have a type, a check and a description, outputs a description, which ends as sentences do."""
    found = blocks()
    assert len(found) > 25
    for kind, name, body in found:
        assert re.search(r'^  description = ".+\."$', body, re.MULTILINE), name
        assert kind == "output" or re.search(r"^  type        = ", body, re.MULTILINE), name
        assert kind == "output" or re.search(r"^  (validation \{|type        = bool)", body, re.MULTILINE), (
            name
        )


def test_user_data_arms_the_end_first():
    """The first command of the user data arms the shutdown, and the whole is short enough for EC2."""
    text = (TERRAFORM / "user_data.sh.tftpl").read_text()
    commands = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert commands[0] == "shutdown -h +${max_minutes}"
    assert len(text) < USER_DATA_BYTES
