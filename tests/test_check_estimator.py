"""scikit-learn's own suite over the estimators that follow its conventions."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

PROGRAM = """
import json, sys, warnings
warnings.simplefilter("error")
import cirrus
from sklearn.utils.estimator_checks import check_estimator
results = check_estimator(getattr(cirrus, sys.argv[1])(backend="inline"), on_fail=None)
print(json.dumps([(r["check_name"], r["status"], repr(r["exception"])) for r in results]))
"""


@pytest.mark.parametrize("name", ["LogisticRegression", "SoftmaxRegression", "LinearSVC", "LinearRegression"])
def test_scikit_learns_suite_passes(name):
    """Every check of `check_estimator` passes: none fails, none is skipped, none is expected to fail."""
    # scipy reads this at import; without it the check of array API inputs is skipped.
    environment = {**os.environ, "SCIPY_ARRAY_API": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, name],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    assert [result for result in results if result[1] != "passed"] == []
    assert len(results) > 50
