"""A shard without a training job: for looking at one by hand, for load generators and for probes.

Its run has one table and a number of leases so long that nobody finishes them; whoever has the token can
attach to them, pull and push.
"""

from __future__ import annotations

from cirrus.config import (
    LeaseRange,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    StopConfig,
    TableConfig,
)
from cirrus.run_folder import Certificates, RunFolder

#: Connections that can push at once, each to a lease of its own.
N_LEASES = 64
#: More steps than anybody pushes.
N_STEPS = 2**31 - 1


def create_standalone_run(
    root: str,
    run_id: str,
    *,
    n_rows: int = 2**20,
    width: int = 1,
    optimizer: OptimizerConfig | None = None,
    certificates: Certificates | None = None,
) -> str:
    """Create the run folder of a shard without a job; return its URL.

    Args:
        root: The object store's URL; the folder is ``ROOT/runs/RUN_ID``.
        run_id: The name of the run.
        n_rows: Rows of its one table, ``weights``.
        width: Values a row.
        optimizer: AdaGrad unless given.
        certificates: Encrypt connections with these; None: do not.

    Raises:
        ConflictError: There is a run of this id.
    """
    table = TableConfig(
        name="weights",
        n_rows=n_rows,
        width=width,
        optimizer=optimizer or OptimizerConfig(name="adagrad"),
        boundaries=(0, n_rows),
    )
    lease = LeaseRange(chunk=0, first_block=0, n_blocks=1, n_rows=N_STEPS, n_steps=N_STEPS)
    config = RunConfig(
        run_id=run_id,
        model=ModelConfig(name="standalone"),
        tables=(table,),
        train_url="",
        train_fingerprint="",
        n_features=n_rows,
        batch_size=1,
        leases=(lease,) * N_LEASES,
        stop=StopConfig(epochs=1),
        tls=certificates is not None,
    )
    url = f"{root.rstrip('/')}/runs/{run_id}"
    RunFolder(url).create(config, certificates)
    return url
