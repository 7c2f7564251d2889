"""``cirrus deploy`` and ``cirrus destroy``: what they refuse, and how they talk to Terraform."""

from __future__ import annotations

import os
from pathlib import Path

import boto3
import pytest
from aws_services import Answer, answering, use_services, xml_error
from typer.testing import CliRunner

from cirrus.cli.commands import app
from cirrus.cli.deploying import parse_variables
from cirrus.client_backend.aws import sources
from cirrus.client_backend.aws.deploy import DeployOptions, deploy, destroy, read_deployment
from cirrus.client_backend.aws.terraform import Terraform
from cirrus.client_backend.aws.wheels import Target
from cirrus.errors import CloudError, ConfigError, CorruptDataError, CredentialsError

OUTPUTS = {
    "name": "cirrus",
    "region": "us-east-1",
    "availability_zone": "us-east-1a",
    "bucket": "cirrus-1",
    "architecture": "arm64",
    "worker_functions": {"1769": "cirrus-worker-1769"},
    "launch_template_id": "lt-1",
    "instance_type": "c7gn.large",
    "subnet_id": "subnet-1",
    "keep_warm_seconds": 300,
    "spot": False,
    "client_policy_arn": "arn:aws:iam::1:policy/cirrus-client",
}


def never(plan: str) -> bool:
    """Fail: nothing may be asked here."""
    pytest.fail(f"asked about {plan}")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Return a Cirrus folder of nobody else."""
    monkeypatch.setenv("CIRRUS_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def fake_terraform(tmp_path, monkeypatch):
    """Put a program ``terraform`` first on the path, whose text is given."""

    def write(text: str) -> Path:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        program = folder / "terraform"
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        return program

    return write


def test_without_terraform_it_says_where_to_get_it(home, monkeypatch):
    """A missing program is an error with the place to get it."""
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ConfigError, match=r"is not installed: see https://developer\.hashicorp\.com"):
        deploy(DeployOptions(), boto3.session.Session(), never, never)


def test_an_old_terraform_is_refused(tmp_path, fake_terraform):
    """A version that cannot read the files is told with the one that can."""
    fake_terraform("""echo '{"terraform_version": "1.5.7"}'""")
    with pytest.raises(ConfigError, match=r"version 1\.5 is too old; 1\.9 is needed"):
        Terraform(tmp_path)


def test_another_program_called_terraform_is_refused(tmp_path, fake_terraform):
    """What tells no version is not run any further."""
    fake_terraform("echo hello")
    with pytest.raises(ConfigError, match="does not tell its version"):
        Terraform(tmp_path)


def test_errors_of_terraform_are_told_without_frames(tmp_path, fake_terraform):
    """The text of the error reaches the user, with the command that failed."""
    fake_terraform(
        """case "$*" in *version*) echo '{"terraform_version": "1.11.4"}';;
        *) printf '╷\\n│ Error: no bucket\\n│ \\n│ It is taken.\\n╵\\n' >&2; exit 1;; esac"""
    )
    with pytest.raises(CloudError) as caught:
        Terraform(tmp_path).initialise()
    assert str(caught.value) == "terraform init failed:\nError: no bucket\nIt is taken."


def test_applying_tells_what_is_done(tmp_path, fake_terraform):
    """Each thing is told as it is made; an error ends it with Terraform's own words."""
    version = """case "$*" in *version*) echo '{"terraform_version": "1.11.4"}'; exit;; esac\n"""
    lines = "aws_vpc.this: Creating...\\naws_vpc.this: Creation complete after 2s [id=vpc-1]\\n"
    fake_terraform(f"{version}printf '{lines}'")
    said = []
    Terraform(tmp_path).apply(said.append)
    assert said == ["  aws_vpc.this: Creation complete after 2s [id=vpc-1]"]
    fake_terraform(f"{version}echo 'Error: quota' >&2; exit 1")
    with pytest.raises(CloudError, match="terraform apply failed:\nError: quota"):
        Terraform(tmp_path).apply(said.append)


def test_without_credentials_nothing_is_made(home, monkeypatch, fake_terraform):
    """Credentials are tried before minutes are spent on anything else."""
    fake_terraform("""echo '{"terraform_version": "1.11.4"}'""")
    use_services(monkeypatch, "http://127.0.0.1:9")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(CredentialsError, match="no AWS credentials can be used"):
        deploy(DeployOptions(), boto3.session.Session(), never, lambda text: None)
    assert not home.exists()


@pytest.mark.parametrize(
    ("region", "hint"),
    [(None, "give --region"), ("eu-centrl-1", "did you mean eu-central-1"), ("mars", "name one")],
)
def test_a_region_that_there_is_not_is_told_first(region, hint, home, monkeypatch, fake_terraform):
    """A slip of the pen, or none at all, is an error before anything is made or asked."""
    fake_terraform("""echo '{"terraform_version": "1.11.4"}'""")
    use_services(monkeypatch, "http://127.0.0.1:9")
    for name in ("AWS_DEFAULT_REGION", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match=f"region: .*{hint}"):
        deploy(DeployOptions(region=region), boto3.session.Session(region_name=region), never, never)
    assert not home.exists()


def test_expired_credentials_are_told(home, monkeypatch, fake_terraform):
    """What AWS says of the credentials comes with what to do."""
    fake_terraform("""echo '{"terraform_version": "1.11.4"}'""")
    with answering(lambda request: expired()) as url:
        use_services(monkeypatch, url)
        with pytest.raises(CredentialsError, match="have expired: renew them"):
            deploy(DeployOptions(), boto3.session.Session(), never, lambda text: None)


def expired() -> Answer:
    """Return what STS says of a token that has expired."""
    body = b"<ErrorResponse><Error><Code>ExpiredToken</Code><Message>old</Message></Error></ErrorResponse>"
    return Answer(403, body, xml_error("ExpiredToken").headers)


def test_a_damaged_state_is_no_empty_one(home, fake_terraform):
    """Destroying from a state that cannot be read would leave everything in the account, silently."""
    fake_terraform("""echo '{"terraform_version": "1.11.4"}'""")
    state = home / "deployments/cirrus/terraform.tfstate"
    state.parent.mkdir(parents=True)
    state.write_text("{")
    with pytest.raises(CorruptDataError, match=r"terraform\.tfstate: is no state"):
        destroy("cirrus", boto3.session.Session(), never, lambda text: None)


def test_outputs_become_a_deployment():
    """Terraform's outputs carry the names of the deployment's fields; others are left out."""
    deployment = read_deployment(OUTPUTS)
    assert (deployment.bucket, deployment.name, deployment.spot) == ("cirrus-1", "cirrus", False)
    missing = {key: value for key, value in OUTPUTS.items() if key != "bucket"}
    with pytest.raises(ConfigError, match="bucket"):
        read_deployment(missing)


def test_options_become_variables(tmp_path):
    """Each option has its variable; memory sizes are a set; a region that is not given stays open."""
    options = DeployOptions(
        name="mine",
        target=Target(python="3.12", architecture="x86_64"),
        worker_memory_mb=(3008, 1769, 1769),
        variables={"spot": True},
    )
    assert options.terraform_variables(tmp_path) == {
        "name": "mine",
        "architecture": "x86_64",
        "python_version": "3.12",
        "worker_memory_mb": [1769, 3008],
        "worker_package": str(tmp_path / "worker.zip"),
        "server_package": str(tmp_path / "server"),
        "spot": True,
    }
    assert DeployOptions(region="eu-west-1").terraform_variables(tmp_path)["region"] == "eu-west-1"


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"name": "No Name"}, "name"),
        ({"name": "../.."}, "name"),
        ({"variables": {"region": "eu-west-1"}}, "var"),
        ({"extra_files": {"../evil.tf": ""}}, "extra_files"),
    ],
)
def test_options_that_cannot_work_are_refused(wrong, field):
    """Each by its name."""
    with pytest.raises(ConfigError) as caught:
        DeployOptions(**wrong)
    assert caught.value.field == field


def test_variables_are_read_as_json_or_text():
    """Numbers, lists and booleans are themselves; anything else is text."""
    texts = ["max_hours=2", "spot=true", 'data_buckets=["a"]', "bucket_name=mine", "vpc_cidr=10.0.0.0/16"]
    assert parse_variables(texts) == {
        "max_hours": 2,
        "spot": True,
        "data_buckets": ["a"],
        "bucket_name": "mine",
        "vpc_cidr": "10.0.0.0/16",
    }
    with pytest.raises(ConfigError, match="is not written NAME=VALUE"):
        parse_variables(["max_hours"])


@pytest.mark.parametrize("command", ["deploy", "destroy"])
def test_without_a_terminal_it_wants_yes(home, command):
    """Nobody could answer the question: that is an error before anything is done."""
    result = CliRunner().invoke(app, [command])
    assert result.exit_code == 1
    assert "give --yes" in result.output


def test_an_installed_package_carries_what_a_deployment_is_made_from():
    """The wheel holds both folders where they are looked for; a source tree has them at its top."""
    root = Path(__file__).parent.parent
    assert (sources.shipped_folder("terraform") / "versions.tf").is_file()
    assert (sources.shipped_folder("lambda_package") / "worker.lock").is_file()
    with pytest.raises(ConfigError, match="install it again"):
        sources.shipped_folder("missing")
    import tomllib

    wheel = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    places = {"lambda_package", "terraform"}
    assert wheel["force-include"] == {name: f"cirrus/client_backend/aws/{name}" for name in places}
    assert "cirrus" in wheel["packages"]
