"""Runs for tests of the dashboard: real folders with metrics that somebody could have written."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stand_ins import make_config

from cirrus.client_backend.claims import new_claim
from cirrus.client_backend.runs import run_url
from cirrus.config import RunConfig
from cirrus.metrics import MetricPoint, RunState, RunStatus
from cirrus.run_folder import MetricsWriter, RunFolder


def config_of(run_id: str, **params: Any) -> RunConfig:
    """Return the config of a run of an estimator with these parameters."""
    fields = {name: params.pop(name) for name in ("search", "trial") if name in params}
    card = {"estimator": "LogisticRegression", "params": params}
    return dataclasses.replace(make_config(run_id=run_id), model_metadata={"card": card}, **fields)


def points(losses: Iterable[float], *, begin: int = 0, dollars: float = 0.01) -> list[MetricPoint]:
    """Return a point a second with these training losses, each at so many dollars."""
    return [
        MetricPoint(
            seconds=float(second),
            epoch=0,
            updates=10 * second,
            samples=10 * second,
            train_loss=loss,
            cost=dollars * second,
            n_workers=1,
            compute_seconds=0.5,
        )
        for second, loss in enumerate(losses, begin + 1)
    ]


def make_run(
    root: Path,
    run_id: str,
    losses: Iterable[float] = (0.7, 0.5),
    *,
    state: RunState = RunState.FINISHED,
    dollars: float = 0.01,
    **params: Any,
) -> RunFolder:
    """Write a run with a curve; a live one is supervised by this process."""
    folder = RunFolder(run_url(str(root), run_id))
    folder.create(config_of(run_id, **params))
    folder.claim(dataclasses.replace(new_claim(), released=state.ended))
    writer = MetricsWriter(folder)
    for point in points(losses, dollars=dollars):
        writer.append(point)
    writer.flush()
    write_status(folder, state)
    return folder


def write_status(folder: RunFolder, state: RunState, **fields: Any) -> None:
    """Say where a run is, as shard 0 would."""
    now = time.time()
    defaults: dict[str, Any] = {
        "started_at": now,
        "seconds": 2.0,
        "cost": 0.25,
        "n_workers": 1,
        "updates": 20,
    }
    folder.write_status(RunStatus(state=state, heartbeat_at=now, **{**defaults, **fields}))
