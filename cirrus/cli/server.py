"""``cirrus ps``: a shard by hand, for a look at it with clients of one's own."""

from __future__ import annotations

import signal
import tempfile

from cirrus.cli.console import say, show
from cirrus.cli.options import Optimizer
from cirrus.client_backend.runs import new_run_id
from cirrus.config import OptimizerConfig
from cirrus.paramserver.server import Shard
from cirrus.paramserver.standalone import create_standalone_run


def serve(port: int, rows: int, width: int, optimizer: Optimizer, learning_rate: float) -> None:
    """Run one shard until it is interrupted."""
    config = OptimizerConfig(name=optimizer.value, learning_rate=learning_rate)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that it cleans up as with Ctrl-C
    with tempfile.TemporaryDirectory(prefix="cirrus-ps-") as root:
        url = create_standalone_run(root, new_run_id(), n_rows=rows, width=width, optimizer=config)
        shard = Shard(url, shard=0, generation=1, host="127.0.0.1", port=port)
        address = shard.start()
        try:
            show(f"{address.host}:{address.port}")
            say(f"run folder {url}; Ctrl-C ends it")
            shard.wait()
        finally:
            shard.stop()
