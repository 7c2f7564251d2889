"""A client as a program: ``python real_client.py ROOT CONFIG`` starts a run and waits for it."""

from __future__ import annotations

import sys
from pathlib import Path

from cirrus.client_backend.local import LocalBackend
from cirrus.config import RunConfig
from cirrus.metrics import RunStatus


def tell(status: RunStatus) -> None:
    """Print how far the run is, once it has begun."""
    if status.updates:
        print(status.updates, flush=True)


if __name__ == "__main__":
    LocalBackend(root=sys.argv[1]).start(RunConfig.from_json(Path(sys.argv[2]).read_bytes())).wait(
        on_event=tell
    )
