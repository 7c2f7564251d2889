"""``cirrus package``: what AWS runs, as files."""

from __future__ import annotations

from pathlib import Path

from cirrus.cli.console import bytes_text, say, show
from cirrus.client_backend.aws.package import build_server_package, build_worker_package
from cirrus.client_backend.aws.wheels import Target


def package(out: Path, target: Target, *, server: bool) -> None:
    """Make the function's zip, or the shard servers' wheelhouse, below a folder."""
    if server:
        house = build_server_package(out / "server", target, say)
        show(f"{house.path}  {bytes_text(house.n_bytes)}  sha256 {house.sha256}")
        return
    worker = build_worker_package(out / "worker.zip", target, say)
    sizes = f"{bytes_text(worker.zipped_bytes)} zipped, {bytes_text(worker.unzipped_bytes)} unzipped"
    show(f"{worker.path}  {sizes}  sha256 {worker.sha256}")
