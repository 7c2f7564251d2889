"""How a worker finds its shards."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ps_runs import Shards, make_config, running
from stand_ins import eventually

from cirrus.errors import AuthenticationError, ConnectionLostError
from cirrus.run_folder import RunFolder, ShardAddress
from cirrus.worker_runtime import session
from cirrus.worker_runtime.session import Clock, Identity, Session


def announce(shards: Shards, address: ShardAddress) -> None:
    """Say in a run folder where shard 0 is, whether that is true or not."""
    shards.folder.store.put("shards/0.json", json.dumps(dataclasses.asdict(address)).encode())


def address_of(shards: Shards) -> ShardAddress:
    """Return where shard 0 is."""
    address = shards.folder.shard_address(0)
    assert address is not None
    return address


def new_session(shards: Shards) -> Session:
    """Return the session of a worker that nobody has heard of yet."""
    return Session(shards.url, Identity(worker_id=0, generation=1, role="train"), Clock(None))


@contextlib.contextmanager
def beside_a_stranger(folder: Path) -> Iterator[tuple[Shards, Callable[[Session, float], None]]]:
    """Run two runs of which the first's shard 0 is said to be where the second's is.

    Returns:
        The first run, and what registers a worker there within some seconds: it meets the stranger first, and
        is told the right address then.
    """
    with (
        running(folder / "own", make_config()) as own,
        running(folder / "other", make_config()) as other,
        ThreadPoolExecutor() as pool,
    ):
        right, wrong = address_of(own), address_of(other)

        def register(worker: Session, seconds: float) -> None:
            registered = pool.submit(worker.register)
            refused = other.shards[0].refused
            eventually(lambda: refused._n_silent or refused._next_at)
            announce(own, right)
            registered.result(timeout=seconds).close()
            announce(own, wrong)

        announce(own, wrong)
        yield own, register


def test_a_stranger_at_a_shards_old_address_does_not_end_a_worker(tmp_path: Path) -> None:
    """A port that a dead shard had may be another run's now: the worker waits for the shard's successor."""
    with beside_a_stranger(tmp_path) as (own, register):
        register(new_session(own), session.STRANGER_SECONDS)


def test_a_stranger_who_stays_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker does not look for ever at somebody who has not the run's token."""
    monkeypatch.setattr(session, "STRANGER_SECONDS", 0.2)
    with (
        beside_a_stranger(tmp_path) as (own, _),
        pytest.raises(AuthenticationError, match="token is wrong"),
    ):
        new_session(own).register()


class FarFolder(RunFolder):
    """A run folder that is said to lie in a remote store."""

    is_remote = True  # type: ignore[assignment]


def test_on_shared_machines_a_stranger_is_waited_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run's seat may be another run's for as long as its own new server boots: no run fails of that."""
    monkeypatch.setattr(session, "STRANGER_SECONDS", -1.0)
    with beside_a_stranger(tmp_path) as (own, register):
        worker = new_session(own)
        worker.folder = FarFolder(own.url)
        register(worker, 30.0)
        monkeypatch.setattr(session, "RECONNECT_SECONDS", 0.1)
        with pytest.raises(ConnectionLostError, match="token is wrong"):  # which another attempt may heal
            worker.register()
