"""The Terraform files: formatted, valid, described, and refusing what cannot work."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from aws_services import moto_services
from aws_stack import provider_override
from terraform_tool import TERRAFORM, need_terraform, terraform

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
        "architecture": '"mips"',
        "python_version": '"3.14"',
        "worker_memory_mb": "[100]",
        "worker_package": '"missing.zip"',
        "server_package": '"missing"',
        "vpc_id": '"vpc-1"',
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
        assert f"{'subnet_id' if name == 'vpc_id' else name}: " in said, done.stderr


@pytest.fixture(scope="module")
def planned(initialised, tmp_path_factory):
    """Plan against an emulator with some variables; return terraform's end, and the plan if there is one."""
    (packages := tmp_path_factory.mktemp("packages")).joinpath("requirements.txt").touch()
    (packages / "worker.zip").touch()
    with moto_services() as url:
        (initialised / "emulator_override.tf").write_text(provider_override(url, url))

        def plan(region, **variables):
            every = {"worker_package": packages / "worker.zip", "server_package": packages, **variables}
            words = [f"-var={name}={value}" for name, value in {"region": region, **every}.items()]
            options = ["-input=false", "-no-color", f"-out={packages / 'plan'}"]
            done = terraform(initialised, ["plan", *options, *words])
            if done.returncode:
                return done, None
            shown = terraform(initialised, ["show", "-json", str(packages / "plan")])
            outputs = json.loads(shown.stdout)["planned_values"]["outputs"]
            return done, {name: output.get("value") for name, output in outputs.items()}

        yield plan
        (initialised / "emulator_override.tf").unlink()


def test_servers_are_of_a_type_that_region_and_zone_have(planned):
    """The best type that EC2 offers there, in a zone that has it; one that is not to be had is an error.

    Frankfurt has no c7gn; us-east-1e has neither that nor its successor.
    """
    _, frankfurt = planned("eu-central-1")
    assert (frankfurt["instance_type"], frankfurt["availability_zone"]) == ("c8gn.large", "eu-central-1a")
    failed, _ = planned("us-east-1", instance_type="c7gn.large", availability_zone="us-east-1e")
    said = " ".join(failed.stderr.split())
    assert failed.returncode == 1
    assert "instance_type: EC2 offers no c7gn.large in us-east-1e" in said.replace("│ ", "")


def test_every_variable_and_output_is_described():
    """Variables have a type and a description, outputs a description; both end as sentences do."""
    found = blocks()
    assert len(found) > 25
    for kind, name, body in found:
        assert re.search(r'^  description = ".+\."$', body, re.MULTILINE), name
        assert kind == "output" or re.search(r"^  type        = ", body, re.MULTILINE), name


def test_user_data_arms_the_end_first():
    """The first command of the user data arms the shutdown, and the whole is short enough for EC2."""
    text = (TERRAFORM / "user_data.sh.tftpl").read_text()
    commands = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert commands[0] == "shutdown -h +${max_minutes}"
    assert len(text) < USER_DATA_BYTES
