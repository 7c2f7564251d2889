"""Others do not answer, or take long: a store, other shards. Who works goes on, and nobody waits in a row."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ps_runs import SOME_LEASES, Shards, greet_like_a_shard, make_config, running
from ps_workers import Workers
from stand_ins import FOR_EVER, eventually

from cirrus.errors import StorageError
from cirrus.metrics import RunState, RunStatus
from cirrus.run_folder import ControlRequest, RunFolder, ShardAddress

N_DEAF = 5
SHORT_FENCE_SECONDS = 0.2
#: Less than what asking one deaf shard after the other takes.
HEARD_SECONDS = 15.0


class UnansweringFolder(RunFolder):
    """A run folder whose store takes a question and says nothing, as long as it is told so."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.answers = threading.Event()
        self.waiting = threading.Event()

    def shard_address(self, shard: int) -> ShardAddress | None:
        """See RunFolder."""
        if not self.answers.is_set():
            self.waiting.set()
            self.answers.wait()
        return super().shard_address(shard)


def test_a_store_that_does_not_answer_holds_no_push_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard that works has no need to ask whether it was replaced; only one that stood still has."""
    monkeypatch.setattr("cirrus.paramserver.server.FENCE_SECONDS", 0.5)
    monkeypatch.setattr("cirrus.paramserver.server.BEAT_SECONDS", 0.05)
    monkeypatch.setattr("cirrus.paramserver.server.CONFIRM_SECONDS", 0.05)
    config = make_config(leases=SOME_LEASES, stop={"epochs": FOR_EVER}, snapshot_seconds=1000.0)
    with running(tmp_path / "run", config) as shards, Workers(shards.url):
        folder = UnansweringFolder(shards.url)
        shard = shards.shards[0]
        eventually(lambda: shards.counts("steps_applied")[0] > 0)
        shard.folder = folder
        try:
            assert folder.waiting.wait(20.0)
            since = time.monotonic()
            eventually(lambda: time.monotonic() > since + 3 * 0.5)
            for _ in range(3):
                steps = shards.counts("steps_applied")[0]
                eventually(lambda steps=steps: shards.counts("steps_applied")[0] > steps + 20)
        finally:
            folder.answers.set()


class SlowRefusingFolder(RunFolder):
    """A run folder whose store refuses after a while, which is longer than a shard may have stood still."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.asked_by: list[int] = []

    def shard_address(self, shard: int) -> ShardAddress | None:
        """See RunFolder."""
        self.asked_by.append(threading.get_ident())
        threading.Event().wait(2 * SHORT_FENCE_SECONDS)
        raise StorageError("no answer")


def test_a_shard_that_stood_still_asks_a_slow_store_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nobody can say whether it was replaced it goes on, and does not ask again for every push."""
    monkeypatch.setattr("cirrus.paramserver.server.FENCE_SECONDS", SHORT_FENCE_SECONDS)
    with running(tmp_path / "run", make_config(leases=SOME_LEASES)) as shards:
        shard = shards.shards[0]
        folder = SlowRefusingFolder(shards.url)
        shard.folder = folder
        shard._awake_at = time.monotonic() - 2 * SHORT_FENCE_SECONDS
        for _ in range(3):
            shard.confirm()
        assert folder.asked_by.count(threading.get_ident()) == 1


class DeafShards:
    """Shards that can be reached, and shake hands, and answer nothing.

    Args:
        shards: The run; all of its shards but 0 are replaced by deaf ones.
    """

    def __init__(self, shards: Shards) -> None:
        self._lock = threading.Lock()
        self.n_waiting = 0
        """How many have a question at this moment that they do not answer."""
        self._listeners: list[socket.socket] = []
        self._token = shards.token
        for number in range(1, shards.config.n_shards):
            shards.shards.pop(number).crash()
            listener = socket.create_server(("127.0.0.1", 0))
            self._listeners.append(listener)
            threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
            host, port = listener.getsockname()
            shards.folder.announce_shard(
                ShardAddress(shard=number, generation=2, host=host, port=port, pid=os.getpid())
            )

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                threading.Thread(target=self._hear, args=(sock,), daemon=True).start()

    def _hear(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            greet_like_a_shard(sock, self._token)
            if sock.recv(65536):
                self._count(1)
                with contextlib.suppress(OSError):
                    while sock.recv(65536):
                        pass
                self._count(-1)

    def _count(self, change: int) -> None:
        with self._lock:
            self.n_waiting += change

    def close(self) -> None:
        """Be gone."""
        for listener in self._listeners:
            listener.close()


def status_of(shards: Shards) -> RunStatus:
    """Return the run's status, which is there."""
    found: RunStatus = eventually(shards.folder.status)
    return found


@pytest.fixture
def deaf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Shards, DeafShards]]:
    """Return a run of which all shards but the first hang."""
    monkeypatch.setattr("cirrus.paramserver.run_keeper.PEER_SILENT_SECONDS", 3.0)
    monkeypatch.setattr("cirrus.paramserver.run_keeper.PEER_COUNTS_SECONDS", 0.2)
    config = make_config(n_shards=1 + N_DEAF, leases=SOME_LEASES, stop={"epochs": FOR_EVER})
    with running(tmp_path / "run", config) as shards:
        made = DeafShards(shards)
        yield shards, made
        made.close()


def test_shards_that_hang_are_asked_at_once(deaf: tuple[Shards, DeafShards]) -> None:
    """All have their question at the same moment; meanwhile requests are heard, the status renewed."""
    shards, others = deaf
    eventually(lambda: others.n_waiting == N_DEAF)
    before = status_of(shards).heartbeat_at
    eventually(lambda: status_of(shards).heartbeat_at > before + 1.0)
    eventually(lambda: status_of(shards).silent_shards == tuple(range(1, 1 + N_DEAF)), 40.0)
    shards.folder.request(ControlRequest(action="kill"))
    assert shards.shards[0].wait(HEARD_SECONDS)
    assert status_of(shards).state is RunState.KILLED


def test_a_shard_that_writes_for_long_is_not_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it writes its part of a checkpoint it answers whether it lives: nobody would end it then."""
    monkeypatch.setattr("cirrus.paramserver.run_keeper.PEER_SILENT_SECONDS", 2.0)
    monkeypatch.setattr("cirrus.paramserver.run_keeper.PEER_COUNTS_SECONDS", 0.1)
    config = make_config(n_shards=3, leases=SOME_LEASES, stop={"epochs": FOR_EVER})
    with running(tmp_path / "run", config) as shards, Workers(shards.url):
        eventually(lambda: min(shards.counts("steps_applied")) > 0)
        writing = [threading.Event() for _ in range(3)]
        may_go_on = threading.Event()
        for number, shard in shards.shards.items():

            def write_slowly(url: str, number: int = number, write=shard.write_part) -> None:  # noqa: ANN001
                writing[number].set()
                assert may_go_on.wait(60.0)
                write(url)

            shard.write_part = write_slowly  # type: ignore[method-assign]
        key = shards.folder.request(ControlRequest(action="snapshot"))
        try:
            for event in writing:  # all three at the same time
                assert event.wait(20.0)
            before = status_of(shards).heartbeat_at
            eventually(lambda: status_of(shards).heartbeat_at > before + 5.0)
            assert status_of(shards).silent_shards == ()
        finally:
            may_go_on.set()
        eventually(lambda: not shards.folder.store.exists(key))
        shards.folder.request(ControlRequest(action="stop"))
        assert shards.wait().state is RunState.FINISHED
