"""What clients know of a deployment, and where they find it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from aws_services import moto_services, use_services

from cirrus.client_backend.aws.deployment import (
    DEPLOYMENT_KEY,
    Deployment,
    bucket_deployment,
    local_deployment,
)
from cirrus.errors import ConfigError, CorruptDataError
from cirrus.storage import open_store


def make_deployment(**changes: Any) -> Deployment:
    """Return a deployment with some fields changed."""
    deployment = Deployment(
        region="us-east-1",
        availability_zone="us-east-1a",
        bucket="cirrus-testing",
        architecture="arm64",
        worker_functions={"1769": "cirrus-worker-1769", "3538": "cirrus-worker-3538"},
        launch_template_id="lt-1",
        instance_type="c7g.large",
        subnet_id="subnet-1",
    )
    return dataclasses.replace(deployment, **changes)


@pytest.fixture(scope="module")
def moto_url() -> Iterator[str]:
    """Serve moto."""
    with moto_services() as url:
        yield url


@pytest.fixture
def bucket(moto_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A bucket, and a user's folder of this test's own."""
    use_services(monkeypatch, moto_url)
    monkeypatch.setenv("CIRRUS_HOME", str(tmp_path))
    client = boto3.session.Session().client("s3")
    client.create_bucket(Bucket="cirrus-testing")
    client.delete_object(Bucket="cirrus-testing", Key="cirrus/deployment.json")
    client.close()
    return "cirrus-testing"


def test_a_deployment_is_found_by_its_bucket_and_on_this_machine(bucket: str) -> None:
    """Who made it needs nothing, another machine the bucket's name; forgetting removes the copy alone."""
    deployment = make_deployment(keep_warm_seconds=60)
    with pytest.raises(ConfigError, match="cirrus deploy"):
        local_deployment()
    with pytest.raises(ConfigError, match="no bucket that 'cirrus deploy' has made"):
        bucket_deployment(bucket)
    open_store(deployment.root).put(DEPLOYMENT_KEY, deployment.to_json())
    deployment.note_down()
    assert (
        local_deployment() == bucket_deployment(bucket) == bucket_deployment(f"s3://{bucket}/") == deployment
    )
    make_deployment(bucket="another").forget()
    assert local_deployment() == deployment
    deployment.forget()
    deployment.forget()
    with pytest.raises(ConfigError, match="cirrus deploy"):
        local_deployment()
    assert bucket_deployment(bucket) == deployment


def test_a_file_of_another_kind_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not JSON, lacks a field or has one too many is named."""
    monkeypatch.setenv("CIRRUS_HOME", str(tmp_path))
    path = tmp_path / "deployment.json"
    good = make_deployment().to_json().decode()
    for text, named in (
        ("{", "deployment.json"),
        ("[]", "must be an object"),
        (good.replace('"bucket"', '"pail"'), "pail"),
        (good.replace('"1769"', '"big"'), "worker_functions"),
        (good.replace('"arm64"', '"mips"'), "architecture"),
    ):
        path.write_text(text)
        with pytest.raises(CorruptDataError, match=named):
            local_deployment()


def test_the_bucket_of_another_deployment_is_refused(bucket: str) -> None:
    """A copy of somebody else's file must not send this user's data there."""
    client = boto3.session.Session().client("s3")
    body = make_deployment(bucket="elsewhere").to_json()
    client.put_object(Bucket=bucket, Key="cirrus/deployment.json", Body=body)
    client.close()
    with pytest.raises(CorruptDataError, match="another bucket, elsewhere"):
        bucket_deployment(bucket)


@pytest.mark.parametrize("name", ["", "s3://", "s3://bucket/prefix", "Bad Bucket", "ab"])
def test_names_that_are_no_buckets(name: str) -> None:
    """A bucket is named without anything behind it."""
    with pytest.raises(ConfigError, match="bucket"):
        bucket_deployment(name)


def test_a_size_without_a_function_names_the_variable() -> None:
    """Memory belongs to a function: a size that was not deployed is an error that says what to change."""
    deployment = make_deployment()
    assert deployment.worker_function(3538) == "cirrus-worker-3538"
    with pytest.raises(ConfigError, match=r"only of 1769, 3538.*worker_memory_mb, and deploy again"):
        deployment.worker_function(512)


@pytest.mark.parametrize("change", [{"region": ""}, {"architecture": "x86"}, {"keep_warm_seconds": -1.0}])
def test_fields_are_checked(change: dict[str, Any]) -> None:
    """A field that cannot be right is named."""
    with pytest.raises(ConfigError, match=next(iter(change))):
        make_deployment(**change)
