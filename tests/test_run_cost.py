"""What a run has cost, measured and by the model, and how people are told."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from stand_ins import eventually, make_backend, make_config
from test_aws_deployment import make_deployment

from cirrus.cli.runs import list_all
from cirrus.client_backend.aws.backend import AWSBackend
from cirrus.client_backend.run_cost import LARGE_DIFFERENCE, CostItem, CostModel, RunCost
from cirrus.config import WorkerPrices
from cirrus.frontend.progress import RateMeter, cost_line, difference_text, status_line
from cirrus.metrics import RunState, RunStatus


def run_cost(measured: float, modelled: float = 1.0) -> RunCost:
    """Return costs of which half is the workers'."""
    item = CostItem(measured=measured / 2, modelled=modelled / 2)
    return RunCost(workers=item, servers=item)


@pytest.mark.parametrize(("n_workers", "n_shards", "validates"), [(1, 1, False), (100, 3, True)])
def test_the_model_of_a_run_is_the_one_that_is_asked_beforehand(
    n_workers: int, n_shards: int, validates: bool
) -> None:
    """For the same seconds, workers, shards and memory it is what the backend says that they cost."""
    backend = AWSBackend(make_deployment())
    config = dataclasses.replace(
        make_config(n_workers=n_workers, n_shards=n_shards),
        dollars_per_hour=backend.dollars_per_hour(n_workers, n_shards),
        worker_prices=backend.worker_prices(1769),
        generation_seconds=backend.generation_seconds,
        validation_url="s3://rows" if validates else None,
    )
    beforehand = backend.model_cost(
        seconds=1000.0, n_workers=n_workers + validates, n_shards=n_shards, memory_mb=1769, startup_seconds=0
    )
    found = CostModel.of(config).compare(RunStatus(state=RunState.FINISHED, seconds=1000.0))
    assert found.modelled == pytest.approx(beforehand.total)
    assert found.workers.modelled == pytest.approx(beforehand.workers + beforehand.invocations)


def test_what_is_measured_is_told_apart() -> None:
    """The workers' part is theirs, and what is left is the servers'; together they are the status' cost."""
    model = CostModel(
        n_workers=2, dollars_per_hour=3600.0, worker_prices=WorkerPrices(dollars_per_second=0.5)
    )
    found = model.compare(RunStatus(state=RunState.RUNNING, seconds=10.0, cost=25.0, worker_cost=9.0))
    assert found.workers == CostItem(measured=9.0, modelled=10.0)
    assert found.servers == CostItem(measured=16.0, modelled=10.0)
    assert (found.measured, found.modelled, found.ratio) == (25.0, 20.0, 1.25)


def test_before_the_first_lease_the_model_says_nothing() -> None:
    """There is nothing to compare then, and nothing is told to differ."""
    model = CostModel(n_workers=2, worker_prices=WorkerPrices(dollars_per_invocation=1.0))
    found = model.compare(RunStatus(state=RunState.STARTING, cost=0.5))
    assert (found.measured, found.modelled, found.ratio, found.differs) == (0.5, 0.0, None, False)
    assert difference_text(found) == ""


@pytest.mark.parametrize("share", [-0.5, -0.26, -0.2, 0.0, 0.2, 0.26, 3.0])
def test_a_large_difference_is_visible(share: float) -> None:
    """Beyond a quarter the line tells by how much they differ, and in what."""
    cost = run_cost(10.0 * (1.0 + share), 10.0)
    assert cost.differs is (abs(share) > LARGE_DIFFERENCE)
    line = cost_line(cost)
    assert line.startswith(f"cost ${10 * (1 + share):.2f}; the model says $10.00")
    assert ("workers" in line) is ("servers" in line) is cost.differs


def test_differences_are_told_in_words() -> None:
    """Shares of the model, and factors where they are large."""
    assert [difference_text(run_cost(x)) for x in (0.6, 1.304, 2.04)] == ["-40 %", "+30 %", "2.0 x"]
    assert cost_line(
        RunCost(workers=CostItem(measured=0.004, modelled=0.002), servers=run_cost(0.0, 0.0).workers)
    ) == ("cost $0.0040; the model says $0.0020, 2.0 x: workers $0.0040 (model $0.0020)")


def test_the_live_line_has_both() -> None:
    """Where a run is priced, the model's figure stands beside the measured one while it works."""
    status = RunStatus(state=RunState.RUNNING, seconds=10.0, cost=0.25, updates=1, samples_per_epoch=1)
    assert status_line(status, RateMeter(), CostModel(dollars_per_hour=72.0)).endswith(
        "  $0.25 (model $0.20)"
    )
    assert status_line(status, RateMeter(), CostModel()).endswith("  $0.25")


def test_the_list_of_runs_has_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``cirrus runs`` shows the modelled cost and marks one far off; without prices no such column."""
    backend = make_backend(tmp_path)
    with backend.start(make_config(run_id="free", finish_after=0.0)) as run:
        run.wait()
    list_all(str(tmp_path))
    assert "MODELLED" not in capsys.readouterr().out
    config = dataclasses.replace(make_config(run_id="priced", finish_after=0.0), dollars_per_hour=36.0)
    with backend.start(config) as run:
        run.wait()
    eventually(lambda: run.status.state is RunState.FINISHED)
    run.folder.write_status(dataclasses.replace(run.status, seconds=100.0, cost=1.5))
    assert (run.cost.measured, run.cost.modelled) == (1.5, 1.0)
    list_all(str(tmp_path))
    head, *rows = capsys.readouterr().out.splitlines()
    assert "COST  " in head
    assert "MODELLED" in head
    (row,) = [row for row in rows if row.startswith("priced")]
    assert "$1.50  $1.00 (+50 %)" in row
