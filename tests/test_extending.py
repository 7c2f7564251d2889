"""The model in docs/extending.md works as it stands there, in an installed package, on processes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cirrus.config import ModelConfig
from cirrus.errors import ConfigError
from cirrus.models import create_model

PAGE = Path(__file__).resolve().parents[1] / "docs" / "extending.md"
PROGRAM = """
import sys
import numpy as np
from sklearn.linear_model import PoissonRegressor
import cirrus
from cirrus_poisson import PoissonRegression

rng = np.random.default_rng(0)
X = rng.normal(size=(2000, 4))
y = rng.poisson(np.exp(X @ [0.5, -0.3, 0.0, 0.2] + 1.0))
exact = PoissonRegressor(alpha=0.0).fit(X, y)
est = PoissonRegression(
    backend=cirrus.LocalBackend(root=sys.argv[1]), random_state=0, epochs=30, n_shards=2
).fit(X, y, validation=(X, y))
est.save(sys.argv[1] + "/model")
loaded = cirrus.load_model(sys.argv[1] + "/model")
assert type(loaded) is PoissonRegression
print(np.abs(loaded.coef_ - exact.coef_).max(), np.abs(loaded.predict(X) - exact.predict(X)).mean())
"""


def snippets(language: str) -> list[str]:
    """Return the page's code in a language."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)


def test_the_page_adds_a_model(tmp_path):
    """Its code, installed as it says, trains by processes to an exact solver's weights."""
    (code,) = snippets("python")
    assert len(code.splitlines()) < 60
    package = tmp_path / "site"
    metadata = package / "cirrus_poisson-1.dist-info"
    metadata.mkdir(parents=True)
    (package / "cirrus_poisson.py").write_text(code)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: cirrus-poisson\nVersion: 1\n")
    (points,) = snippets("toml")
    ini = re.sub(r'\[project\.entry-points\."(.*?)"\]', r"[\1]", points).replace('"', "")
    (metadata / "entry_points.txt").write_text(ini)
    paths = [str(package), str(PAGE.parents[1]), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, str(tmp_path / "home")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    weights, predictions = map(float, done.stdout.split()[-2:])
    # Minibatches' noise and other workers' pushes leave 0.005 and 0.02.
    assert weights < 0.03
    assert predictions < 0.1


def test_models_that_are_not_installed_are_refused():
    """A name that nobody installed is refused, whatever it looks like."""
    for name in ("poisson", "os:system", "cirrus.models.logistic:LogisticModel"):
        with pytest.raises(ConfigError, match="unknown model"):
            create_model(ModelConfig(name=name))
