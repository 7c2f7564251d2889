"""``cirrus ps``: a shard by hand, for a look at it with clients of one's own."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from cirrus.cli.console import say, show
from cirrus.cli.options import Optimizer
from cirrus.client_backend.runs import new_run_id
from cirrus.config import LeaseRange, ModelConfig, OptimizerConfig, RunConfig, StopConfig, TableConfig
from cirrus.paramserver.server import Shard
from cirrus.run_folder import RunFolder

#: A shard by hand has one lease, long enough for whatever is pushed to it.
STEPS = 2**31 - 1


def serve(port: int, rows: int, width: int, optimizer: Optimizer, learning_rate: float) -> None:
    """Run one shard until it is interrupted."""
    root = Path(tempfile.mkdtemp(prefix="cirrus-ps-"))
    try:
        folder = RunFolder(str(root / "run"))
        folder.create(
            _config(rows, width, OptimizerConfig(name=optimizer.value, learning_rate=learning_rate))
        )
        shard = Shard(folder.url, shard=0, generation=1, host="127.0.0.1", port=port)
        address = shard.start()
        try:
            show(f"{address.host}:{address.port}")
            say(f"run folder {folder.url}; Ctrl-C ends it")
            shard.wait()
        finally:
            shard.stop()
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _config(rows: int, width: int, optimizer: OptimizerConfig) -> RunConfig:
    table = TableConfig(name="weights", n_rows=rows, width=width, optimizer=optimizer, boundaries=(0, rows))
    return RunConfig(
        run_id=new_run_id(),
        model=ModelConfig(name="logistic"),
        tables=(table,),
        train_url="memory://none",
        train_fingerprint="",
        n_features=rows,
        batch_size=1,
        leases=(LeaseRange(chunk=0, first_block=0, n_blocks=1, n_rows=STEPS, n_steps=STEPS),),
        stop=StopConfig(epochs=1),
        n_workers=1,
    )
