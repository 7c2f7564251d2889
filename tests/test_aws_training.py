"""The whole path: what Terraform deployed, its zip in functions, its user data on instances, a user's fit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from aws_stack import AwsStack

import cirrus
from cirrus.client_backend.processes import child_environment

A9A = Path(__file__).resolve().parents[2] / "shared" / "data" / "a9a"
#: Of a9a's test rows, with the same settings in processes of this machine.
LOCAL_ACCURACY = 0.850
#: To start the command line and read a bucket, on a machine that does all of AWS' work too.
CLI_SECONDS = 60.0

pytestmark = pytest.mark.skipif(not A9A.is_dir(), reason="the a9a files are not beside the project")


def test_a9a_ends_as_on_this_machine(on_aws: AwsStack, tmp_path: Path) -> None:
    """Four functions and two shards of what was deployed reach the accuracy that is reached here."""
    root = on_aws.deployment.root
    train = cirrus.load_svmlight(A9A / "a9a.gz", f"{root}/data/a9a", n_features=123, random_state=0)
    held_out = cirrus.load_svmlight(A9A / "a9a.t.gz", f"{root}/data/a9a.t", n_features=123, random_state=0)
    est = cirrus.LogisticRegression(
        backend="aws", n_workers=4, n_shards=2, epochs=10, tol=None, random_state=0
    )
    with est.start(train, validation=held_out) as run:
        status = run.wait()
    steps = 10 * run.config.steps_per_epoch
    assert [status.counts[f"shard{shard}.steps_applied"] for shard in (0, 1)] == [steps] * 2
    assert est.score(held_out) == pytest.approx(LOCAL_ACCURACY, abs=0.003)
    assert est.cost_ > 0
    # Another machine knows the bucket, and nothing else.
    listed = subprocess.run(
        [sys.executable, "-m", "cirrus", "runs", "--home", root],
        env={**child_environment(os.environ), "CIRRUS_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=CLI_SECONDS,
    )
    assert listed.returncode == 0, listed.stderr
    assert run.run_id in listed.stdout
    assert "finished" in listed.stdout
