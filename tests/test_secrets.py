"""Secrets of real runs stay in their own files: a training and a search, looked at from outside meanwhile."""

from __future__ import annotations

import contextlib
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

import cirrus
from cirrus.client_backend.overview import Overview
from cirrus.metrics import RunState
from cirrus.run_folder import RunFolder

LOOK_SECONDS = 0.02
#: Keys of a run folder that hold a secret, by how they begin.
SECRET_KEYS = ("token", "tls/shard-")


class Onlooker:
    """Collects what others may see of this process' children: command lines and environments."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self.commands: set[str] = set()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self._stopping.wait(LOOK_SECONDS):
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    command = " ".join(process.cmdline())
                    self.commands.add(command)
                    self.seen.add(command)
                    self.seen.update(process.environ().values())

    def __enter__(self) -> Onlooker:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self._stopping.set()
        self._thread.join()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return this user's folder of runs, where the index is too."""
    monkeypatch.setenv("CIRRUS_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def secrets_of(runs: list[Path]) -> Iterator[bytes]:
    """Yield the secrets of runs in every form in which they could leak."""
    for run in runs:
        token = RunFolder(str(run)).token()
        yield token.encode()
        yield bytes.fromhex(token)
        for pem in (run / "tls").glob("shard-*.pem"):
            yield pem.read_bytes().partition(b"-----BEGIN PRIVATE KEY-----")[2][:200].strip().split(b"\n")[0]


def test_secrets_are_in_their_files_alone(home: Path) -> None:
    """No token or key is in a command line, an environment, a log, the index or any other file of any run."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(3000, 5))
    y = (X[:, 0] > 0).astype(int)
    backend = cirrus.LocalBackend(root=str(home), tls=True)
    est = cirrus.LogisticRegression(backend=backend, epochs=3, n_shards=2, n_workers=2, random_state=0)
    with Onlooker() as onlooker:
        run = est.start(X, y, validation=(X, y))
        assert run.wait(60.0).state is RunState.FINISHED
        run.close()
        search = cirrus.GridSearch(est, {"learning_rate": [0.05, 0.1]}, max_concurrent=2)
        search.fit(X, y, validation=(X, y))
    assert len(Overview(str(home)).runs()) == 3
    assert list(home.glob("index*"))
    runs = sorted((home / "runs").iterdir())
    assert len(runs) == 3
    for word in ("cirrus.paramserver", "cirrus.worker_runtime"):
        assert any(word in command for command in onlooker.commands)
    secrets = list(secrets_of(runs))
    assert len(secrets) == 3 * (2 + 2)
    said = "\n".join(onlooker.seen).encode(errors="surrogateescape")
    assert not [secret for secret in secrets if secret in said]
    private = {run / key for run in runs for key in ("token", "tls/shard-0.pem", "tls/shard-1.pem")}
    looked_at = 0
    for path in home.rglob("*"):
        if path.is_file() and path not in private:
            looked_at += 1
            data = path.read_bytes()
            assert not [secret for secret in secrets if secret in data], path
    assert looked_at > 30
    for path in private:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
