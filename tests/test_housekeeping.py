"""Which run folders are removed, and which never."""

from __future__ import annotations

import dataclasses
import random
import time
from pathlib import Path

import pytest
from ps_runs import make_config

from cirrus.client_backend.housekeeping import YOUNG_SECONDS, remove_old_runs
from cirrus.client_backend.local import LocalBackend
from cirrus.client_backend.runs import run_ids, run_url
from cirrus.errors import ConfigError
from cirrus.metrics import RunState, RunStatus
from cirrus.run_folder import RunFolder

OLD = time.time() - YOUNG_SECONDS - 60.0


def make_run(
    root: Path,
    run_id: str,
    *,
    state: RunState = RunState.FINISHED,
    ended_at: float = OLD,
    search: str | None = None,
    checkpoint: bool = False,
) -> None:
    """Make the folder of a run that has ended in some way."""
    folder = RunFolder(run_url(str(root), run_id))
    folder.create(dataclasses.replace(make_config(), run_id=run_id, search=search))
    folder.write_status(RunStatus(state=state, heartbeat_at=ended_at))
    folder.store.put("model/checkpoint.json", b"{}")
    if checkpoint:
        folder.store.put("checkpoints/step-1/checkpoint.json", b"{}")


def test_old_runs_beyond_the_newest_are_removed_whole(tmp_path: Path) -> None:
    """Of five old runs the newest two stay; of the others nothing is left."""
    for number in range(5):
        make_run(tmp_path, f"run-{number}", state=list(RunState)[2 + number % 3])
    assert sorted(remove_old_runs(str(tmp_path), 2)) == ["run-0", "run-1", "run-2"]
    assert run_ids(str(tmp_path)) == ("run-3", "run-4")
    assert not (tmp_path / "runs" / "run-0").exists()


def test_what_somebody_may_need_is_never_removed(tmp_path: Path) -> None:
    """Young, live and interrupted runs, those of searches, those with checkpoints, and broken ones stay."""
    make_run(tmp_path, "young", ended_at=time.time() - 60.0)
    make_run(tmp_path, "running", state=RunState.RUNNING)
    make_run(tmp_path, "interrupted", state=RunState.INTERRUPTED)
    make_run(tmp_path, "searched", search="some")
    make_run(tmp_path, "checkpointed", checkpoint=True)
    make_run(tmp_path, "broken")
    (tmp_path / "runs" / "broken" / "config.json").write_text("nonsense")
    assert remove_old_runs(str(tmp_path), 0) == []
    assert len(run_ids(str(tmp_path))) == 6


def test_many_old_runs_are_removed_little_by_little(tmp_path: Path) -> None:
    """One start looks at a few only, and those that stay do not keep it from the others for ever."""
    for number in range(40):
        make_run(tmp_path, f"run-{number:02}", search="some" if number < 30 else None)
    rng = random.Random(0)
    counts = [len(remove_old_runs(str(tmp_path), 0, rng)) for _ in range(20)]
    assert sum(counts) == 10
    assert counts[0] < 10


def test_a_folder_without_runs_is_no_error(tmp_path: Path) -> None:
    """Nor is one that cannot be read: a run must not fail for old ones."""
    assert remove_old_runs(str(tmp_path / "none"), 0) == []


@pytest.mark.parametrize(("keep_runs", "left"), [(1, 0), (None, 1)])
def test_the_local_backend_tidies_up_when_a_run_starts(
    tmp_path: Path, keep_runs: int | None, left: int
) -> None:
    """The new run is the newest; the old one goes unless all are to be kept."""
    make_run(tmp_path, "0-old")
    backend = LocalBackend(root=tmp_path, keep_runs=keep_runs)
    with backend.start(dataclasses.replace(make_config(), run_id="1-new")):
        assert run_ids(str(tmp_path)) == ("0-old", "1-new")[1 - left :]


def test_a_wrong_number_is_refused() -> None:
    """By name."""
    with pytest.raises(ConfigError, match="keep_runs"):
        LocalBackend(keep_runs=-1)
