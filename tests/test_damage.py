"""What a run does when the objects that it lives on are replaced, damaged or refused meanwhile."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

import cirrus
from cirrus.errors import CirrusError, RunError, SupersededError
from cirrus.metrics import RunState
from cirrus.paramserver.checkpoint import Part, TablePart
from cirrus.paramserver.snapshots import Snapshots
from cirrus.run_folder import RunFolder


def rows(n_rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return dense rows and labels."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n_rows, 5)), rng.integers(0, 2, n_rows)


def estimator(tmp_path: Path, **params: object) -> cirrus.LogisticRegression:
    """Return an estimator that works in this process, with its runs where tests can see them."""
    backend = cirrus.InlineBackend(root=str(tmp_path / "home"))
    return cirrus.LogisticRegression(backend=backend, random_state=0, **params)


def part(value: float) -> Part:
    """Return a snapshot of one weight."""
    table = TablePart(name="weights", first_row=0, arrays={"weights": np.full((1, 1), value, np.float32)})
    return Part(tables=(table,))


def test_a_run_notices_that_its_dataset_was_replaced(tmp_path: Path) -> None:
    """Other rows at the URL of a planned run end it with an error that says so, before a step is taken."""
    url = str(tmp_path / "data")
    old = cirrus.load_arrays(*rows(400), url, random_state=0)
    cirrus.load_arrays(*rows(400, seed=1), url, random_state=0)
    with pytest.raises(CirrusError, match="was replaced"):
        estimator(tmp_path, epochs=3).fit(old)


@pytest.mark.parametrize("n_shards", [1, 2])
def test_a_checkpoint_that_cannot_be_written_fails_the_run(tmp_path: Path, n_shards: int) -> None:
    """Whichever shard it is that cannot write, the run ends with the reason instead of standing still."""
    (tmp_path / "file").write_text("in the way")
    est = estimator(
        tmp_path,
        n_shards=n_shards,
        epochs=100_000,
        tol=None,
        max_seconds=60,
        checkpoint_seconds=0.1,
        checkpoint_url=str(tmp_path / "file" / "checkpoints"),
    )
    with pytest.raises(RunError, match="/file: is a file, where a folder is needed"):
        est.fit(*rows(3000))


def test_an_older_generation_never_replaces_a_newer_snapshot(tmp_path: Path) -> None:
    """A shard that was replaced and comes back is told so, and what its successor saved stays the newest."""
    folder = RunFolder(str(tmp_path))
    old, new = Snapshots(folder, 0, 1), Snapshots(folder, 0, 2)
    old.write(part(1.0))
    new.write(part(2.0))
    with pytest.raises(SupersededError):
        old.write(part(3.0))
    newest = Snapshots(folder, 0, 3).newest()
    assert newest is not None
    assert newest.tables[0].arrays["weights"][0, 0] == 2.0
    new.clear()
    assert Snapshots(folder, 0, 3).newest() is None


def test_a_stray_file_among_the_requests_is_cleared_away(tmp_path: Path) -> None:
    """What is no control request is deleted, and the run goes on to its end."""
    est = estimator(tmp_path, epochs=100_000, tol=None, max_seconds=60)
    run = est.start(*rows(3000))
    folder = RunFolder(run.url)
    folder.store.put("control/.DS_Store", b"\x00\x01")
    deadline = time.monotonic() + 20
    while folder.store.exists("control/.DS_Store"):
        assert time.monotonic() < deadline, "the stray file is still there"
        time.sleep(0.02)
    run.stop()
    assert run.wait().state is RunState.FINISHED


def test_snapshots_are_gone_when_the_model_is_saved(tmp_path: Path) -> None:
    """A finished run keeps its model, and no snapshot of any shard beside it."""
    est = estimator(tmp_path, epochs=3, n_shards=2)
    run = est.start(*rows(3000))
    assert run.wait().state is RunState.FINISHED
    run.close()
    keys = RunFolder(run.url).store.list()
    assert not [key for key in keys if key.startswith("snapshots/")]
    assert "model/checkpoint.json" in keys
