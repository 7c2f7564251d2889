"""Probes that kill, hang or fool parameter servers, each against a shard in a process of its own.

After each of them the same process serves on: pushes and pulls of a good worker work, and its log has no
traceback. Of fifteen such probes eight kill, and one hangs, the server that this one is modelled on.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from probes import (
    GOOD_LEASE,
    N_ROWS,
    PROBE_LEASE,
    GoodWorkers,
    Peer,
    ProbedShard,
    header,
    peer,
    push,
    steps_at_once,
)
from stand_ins import eventually

from cirrus.errors import (
    AuthenticationError,
    ConnectionLostError,
    LeaseLostError,
    LimitError,
    ProtocolError,
    RegistrationError,
)
from cirrus.paramserver import protocol as p
from cirrus.paramserver.client import Channel
from cirrus.paramserver.codec import encode
from cirrus.paramserver.protocol import ErrorCode, Kind
from cirrus.run_folder import ShardAddress

#: What one frame and its rows may take beside the tables, and what the allocator keeps.
SPARE_BYTES = 600 * 2**20
HALF_SENT = 500
GOOD_WORKERS = 4
ROUND_SECONDS = 0.6
LOWEST_SHARE = 0.8
IDLE_CONNECTIONS = 1000
MAX_STRANGERS = 64
MAX_CONNECTIONS = 1100
SMALL_MEMORY_BYTES = 32 * 2**20
#: 80 KB of a push that cannot be compressed, of which as many zeros would become 20 MB, three times.
PUSHED_ROWS = 40_000
#: A push of these has 11.5 MB, and takes 21 MB beyond the buffer that all have.
LARGE_PUSH_ROWS = 2_300_000
#: A pull of these that is remembered takes 14 MB.
LARGE_PULL_ROWS = 200_000
ONES = np.ones(3)
ROWS = np.array([1, 5, 700_000])


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProbedShard]:
    """Return one shard for all probes."""
    made = ProbedShard(
        tmp_path_factory.mktemp("probes"),
        hello_seconds=3.0,
        wrong_proof_seconds=0.05,
        max_strangers=MAX_STRANGERS,
        max_connections=MAX_CONNECTIONS,
    )
    yield made
    made.close()


def hang_up(where: str, *, reset: bool) -> Callable[[ProbedShard], None]:
    """Return a probe that ends a connection at some place, by FIN or by RST."""

    def probe(shard: ProbedShard) -> None:
        before = shard.counts()["steps_applied"]
        for _ in range(5):
            made = Peer(shard)
            data = push(made.attach(), ROWS, ONES)
            made.send({"idle": b"", "mid-header": data[:7], "mid-gradient": data[:-5]}[where])
            made.close(reset=reset)
        assert shard.counts()["steps_applied"] == before

    return probe


def gone_before_a_large_reply(shard: ProbedShard) -> None:
    """A client asks for 40 MB and goes."""
    rows = np.arange(10_000_000, dtype=np.uint32)
    for reset in (False, True):
        made = Peer(shard)
        made.send(encode(p.Pull(sections=(p.Section(table=0, ids=rows),)), 5))
        made.close(reset=reset)


def pulls_in_flight(shard: ProbedShard) -> None:
    """A client asks for 50 answers and takes none."""
    rows = np.arange(100_000, dtype=np.uint32)
    pulls = 50 * encode(p.Pull(sections=(p.Section(table=0, ids=rows),)), 5)
    assert len(pulls) < 4096  # consecutive rows are named by the first one, and all of it fits any buffer
    for reset in (False, True):
        made = Peer(shard)
        made.sock.sendall(pulls)
        made.close(reset=reset)


def refused(
    data: bytes, code: ErrorCode, word: str, *, is_known: bool = True
) -> Callable[[ProbedShard], None]:
    """Return a probe that says something that is refused."""

    def probe(shard: ProbedShard) -> None:
        with peer(shard, is_known=is_known) as made:
            made.send(data)
            made.assert_refused(code, word)

    return probe


def bad_push(rows: np.ndarray, values: np.ndarray, word: str) -> Callable[[ProbedShard], None]:
    """Return a probe with a push that must not be applied."""

    def probe(shard: ProbedShard) -> None:
        before = shard.counts()["steps_applied"]
        with peer(shard) as made:
            made.send(push(made.attach(), rows, values))
            made.assert_refused(ErrorCode.PROTOCOL, word)
        assert shard.counts()["steps_applied"] == before

    return probe


def empty_gradient(shard: ProbedShard) -> None:
    """A push without any row, and one without any table, are steps like others: applied, acknowledged."""
    before = shard.counts()["steps_applied"]
    with peer(shard) as made:
        position = made.attach()
        made.send(push(position, ROWS[:0], ONES[:0]))
        assert made.read() == p.Ack()
        made.send(encode(p.Push(epoch=0, lease=0, position=position + 1, step=0), 10))
        assert made.read() == p.Ack()
    assert shard.counts()["steps_applied"] == before + 2


def large_push(shard: ProbedShard) -> None:
    """A push of 200 MB is refused by its header; what is under way of it ends with the connection."""
    with peer(shard) as made:
        made.attach()
        made.send(header(Kind.PUSH, 200 * 2**20) + bytes(8 * 2**20))
        made.assert_refused(ErrorCode.PROTOCOL, "above the limit")
    with pytest.raises(ProtocolError, match="above the limit"):
        push(0, np.arange(0, 60_000_000, 2), np.ones(30_000_000))


def large_pull(shard: ProbedShard) -> None:
    """A pull of 10 million rows is answered, with what these rows hold; one beyond the table is refused."""
    client = shard.client()
    rows = np.arange(10_000_000, dtype=np.uint32)
    values = client.wait(client.pull({0: rows}))[0]
    assert values.shape == (10_000_000, 1)
    assert np.isfinite(values).all()
    client.close()
    with peer(shard) as made:
        beyond = p.Section(table=0, ids=rows + np.uint32(N_ROWS - 9_999_999))
        made.send(encode(p.Pull(sections=(beyond,)), 5))
        made.assert_refused(ErrorCode.PROTOCOL, "does not own")


def not_numbers(shard: ProbedShard) -> None:
    """NaN and infinity are refused and counted, the step's place is taken, and the weights stay numbers."""
    before = shard.counts()
    client = shard.client()
    rows = {0: np.array([3, 4], np.uint32)}
    was = client.wait(client.pull(rows))[0]
    for bad in (np.nan, np.inf, -np.inf):
        position = shard.attach(client, 0)
        client.push_rows(position, position, rows, {0: np.array([[1.0], [bad]], np.float32)})
        client.flush()
    np.testing.assert_array_equal(client.wait(client.pull(rows))[0], was)
    client.close()
    after = shard.counts()
    assert after["nonfinite_refused"] == before["nonfinite_refused"] + 3
    assert after["steps_applied"] == before["steps_applied"] + 3


def registers_twice(shard: ProbedShard) -> None:
    """The second is refused, and the first not disturbed; over the same connection it is refused too."""
    first, second = shard.channel(), shard.channel()
    first.ask(p.Register(worker=1, generation=1), p.Registered)
    for channel in (second, first):
        with pytest.raises(RegistrationError, match="registered already"):
            channel.call(p.Register(worker=1, generation=1))
    assert first.ask(p.NextTask(wait_seconds=0.0), p.Task).action == "train"
    first.close()
    second.close()


def never_deregisters(shard: ProbedShard) -> None:
    """The end of its connection, of whatever kind, is the end of its registration and of its leases."""
    for reset in (False, True, False):
        with_lease = Peer(shard)
        with_lease.send(encode(p.Register(worker=2, generation=1), 4) + encode(p.NextTask(), 5))
        assert isinstance(with_lease.read(), p.Registered)
        task = with_lease.read()
        assert isinstance(task, p.Task)
        with_lease.close(reset=reset)
        again = shard.channel()

        def registered(channel: Channel = again) -> bool:
            try:
                channel.call(p.Register(worker=2, generation=1))
            except RegistrationError:
                return False
            return True

        eventually(registered)
        assert again.ask(p.NextTask(wait_seconds=0.0), p.Task).lease == task.lease
        again.close()


def lies_about_its_id(shard: ProbedShard) -> None:
    """Odd ids and roles, tasks without registering, and reports about leases of others change nothing."""
    honest, liar = shard.channel(), shard.channel()
    honest.ask(p.Register(worker=3, generation=1), p.Registered)
    task = honest.ask(p.NextTask(wait_seconds=0.0), p.Task)
    with pytest.raises(RegistrationError, match="before registering"):
        liar.call(p.NextTask(wait_seconds=0.0))
    done = p.Complete(epoch=0, lease=task.lease, grant=task.grant + 1, generations=(1,))
    with pytest.raises(LeaseLostError):
        liar.call(done)
    for word, register in (
        ("no role 'emperor'", p.Register(worker=4, generation=1, role="emperor")),
        ("no worker has such a number", p.Register(worker=-1, generation=1)),
        ("no worker has such a number", p.Register(worker=4, generation=10**30)),
    ):
        with peer(shard) as made:
            made.send(encode(register, 4))
            made.assert_refused(ErrorCode.PROTOCOL, word)
    assert honest.ask(p.NextTask(wait_seconds=0.0), p.Task).lease != task.lease
    honest.close()
    liar.close()


def writes_elsewhere(shard: ProbedShard) -> None:
    """Whoever has this run's token has none of another run's files overwritten, nor any other."""
    victim = shard.folder.url + "-victim"
    for url in (
        f"{victim}/model",
        f"{shard.folder.url}/model/",
        f"{shard.folder.url}/model/../../{victim.rpartition('/')[2]}/model",
        f"{shard.folder.url}/checkpoints",
        f"{shard.folder.url}/checkpoints/..",
        f"{shard.folder.url}/checkpoints/step-1",
        f"{victim}/checkpoints/step-000000000001",
        "memory://x/model",
        "",
    ):
        with peer(shard) as made:
            made.send(encode(p.WriteCheckpoint(url=url), 4))
            made.assert_refused(ErrorCode.PROTOCOL, "is no place for a checkpoint of this run")
    assert not Path(victim).exists()
    assert not shard.folder.store.list("model/")
    assert not shard.folder.store.list("checkpoints/")


def wrong_token(shard: ProbedShard) -> None:
    """It is refused after a pause, however often."""
    for token in ("", "0" * 64, shard.token[:-1], shard.token + "0"):
        with pytest.raises(AuthenticationError, match="token is wrong"):
            Channel(shard.address, token)


PROBES: dict[str, Callable[[ProbedShard], None]] = {
    **{
        f"{'RST' if reset else 'FIN'} {where}": hang_up(where, reset=reset)
        for reset in (False, True)
        for where in ("idle", "mid-header", "mid-gradient")
    },
    "gone before a large reply": gone_before_a_large_reply,
    "50 pulls in flight, then close": pulls_in_flight,
    "unknown opcode": refused(header(200, 0), ErrorCode.PROTOCOL, "unknown kind"),
    "wrong magic": refused(header(Kind.PULL, 0, magic=0x4141), ErrorCode.PROTOCOL, "begins with"),
    "wrong version": refused(header(Kind.PULL, 0, version=1), ErrorCode.VERSION, "version 1"),
    "wrong magic from a stranger": refused(
        header(Kind.PULL, 0, magic=0x4141), ErrorCode.PROTOCOL, "begins with", is_known=False
    ),
    "opcode of a stranger": refused(
        header(Kind.END, 2) + b"{}", ErrorCode.AUTHENTICATION, "must come first", is_known=False
    ),
    "wrong token": wrong_token,
    "empty gradient": empty_gradient,
    "push of an index out of range": bad_push(np.array([1, 2**30]), np.ones(2), "does not own"),
    "push of an index just out of range": bad_push(np.array([N_ROWS]), np.ones(1), "does not own"),
    "push of too few values": bad_push(ROWS, np.ones(2), "malformed"),
    "pull of an index out of range": refused(
        encode(p.Pull(sections=(p.Section(table=0, ids=np.array([2**30], np.uint32)),)), 5),
        ErrorCode.PROTOCOL,
        "does not own",
    ),
    "push of 200 MB": large_push,
    "pull of 10 million rows": large_pull,
    "NaN and infinity": not_numbers,
    "registers twice": registers_twice,
    "never deregisters": never_deregisters,
    "lies about its id": lies_about_its_id,
    "has a checkpoint written elsewhere": writes_elsewhere,
}


@pytest.mark.parametrize("name", PROBES)
def test_a_shard_survives(shard: ProbedShard, name: str) -> None:
    """The same process serves on after the probe, and has not grown by more than a frame takes."""
    before = shard.memory_bytes
    PROBES[name](shard)
    shard.assert_serves()
    assert shard.memory_bytes < before + SPARE_BYTES


def test_half_sent_messages_slow_nobody_down(
    shard: ProbedShard, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """500 connections that stop in the middle of a push cost four good workers less than a fifth.

    They are compared with workers of another shard at the same moment: whatever else the machine does then,
    it does to both.
    """
    alone = ProbedShard(tmp_path_factory.mktemp("alone"))
    slow = [Peer(shard) for _ in range(HALF_SENT)]
    for i, made in enumerate(slow):
        made.send(push(0, ROWS, ONES)[: 8 + i % 60])
    assert shard.n_threads > HALF_SENT
    teams = [GoodWorkers(shard, GOOD_WORKERS), GoodWorkers(alone, GOOD_WORKERS)]

    def share() -> float:
        steps = steps_at_once(teams, ROUND_SECONDS)
        return steps[0] / steps[1]

    try:
        steps_at_once(teams, ROUND_SECONDS)
        assert any(share() >= LOWEST_SHARE for _ in range(5))
        for team in teams:
            team.close()
    finally:
        alone.close()
        for made in slow:
            made.close(reset=True)
    eventually(lambda: shard.n_threads < HALF_SENT)
    shard.assert_serves()


def serves(shard: ProbedShard) -> bool:
    """Tell whether a good worker gets in and is served."""
    try:
        shard.assert_serves()
    except ConnectionLostError:
        return False
    return True


def test_strangers_with_half_a_hello_are_shown_the_door(shard: ProbedShard) -> None:
    """So many at most are waited for, and none longer than its time, while others are let in."""
    n_before = shard.n_threads
    strangers = [Peer(shard, is_known=False) for _ in range(HALF_SENT)]
    for made in strangers:
        made.send(header(Kind.HELLO, 100)[:9])
    # Who is shown the door with them comes again, as workers do.
    eventually(lambda: serves(shard))
    assert shard.n_threads <= n_before + MAX_STRANGERS + 2
    eventually(lambda: shard.n_threads <= n_before + 2)
    for made in strangers:
        message = made.read()
        assert message is None or isinstance(message, p.Challenge)
        assert message is None or made.read() is None
        made.close()


def test_a_thousand_idle_connections_are_nothing(shard: ProbedShard) -> None:
    """They stay, others are served, and one above the limit is told why."""
    before = shard.memory_bytes
    idle = [Peer(shard) for _ in range(IDLE_CONNECTIONS)]
    shard.assert_serves()
    assert shard.memory_bytes < before + IDLE_CONNECTIONS * 512 * 1024
    more = [Peer(shard) for _ in range(MAX_CONNECTIONS - IDLE_CONNECTIONS)]
    with pytest.raises(LimitError, match=f"has {MAX_CONNECTIONS} connections"):
        shard.channel()
    for made in (*more, *idle[:-1]):
        made.close()
    eventually(lambda: shard.n_threads < 100)
    idle[-1].send(encode(p.StatisticsRequest(), 7))
    assert isinstance(idle[-1].read(), p.StatisticsReply)
    idle[-1].close()
    shard.assert_serves()


def test_large_frames_share_a_budget(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What would take more memory than connections may have is refused, and others are served."""
    made = ProbedShard(
        tmp_path_factory.mktemp("budget"), memory_bytes=SMALL_MEMORY_BYTES, memory_wait_seconds=0.2
    )
    try:
        before = made.memory_bytes
        for _ in range(3):
            client = made.client()
            with pytest.raises(LimitError, match="pull of 4194304 rows takes"):
                client.wait(client.pull({0: np.arange(10_000_000, dtype=np.uint32)}))
            client.close()
        with peer(made) as greedy:
            greedy.send(header(Kind.PUSH, 60 * 2**20))
            greedy.assert_refused(ErrorCode.LIMIT, "may have 33554432")
        assert made.memory_bytes < before + SMALL_MEMORY_BYTES
        made.assert_serves()
    finally:
        made.close()


def test_memory_that_nobody_needs_is_given_back(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Who had a large frame, and is silent now, leaves the memory to others, and can go on where he was."""
    made = ProbedShard(
        tmp_path_factory.mktemp("budget"), memory_bytes=SMALL_MEMORY_BYTES, memory_idle_seconds=0.2
    )
    try:
        rows = np.arange(0, 3 * LARGE_PUSH_ROWS, 3, dtype=np.uint32)
        ones = np.ones((LARGE_PUSH_ROWS, 1), np.float32)
        first, *others = (made.client() for _ in range(4))
        pulled = first.pull({0: rows[:LARGE_PULL_ROWS]})
        first.wait(pulled)
        # What each of them takes is more than another one leaves: it waits until that is given back.
        for lease, client in enumerate(others, start=GOOD_LEASE):
            client.push_rows(made.attach(client, lease), 0, {0: rows}, {0: ones})
            client.flush()
        # Of the first one the pull was forgotten meanwhile: the shard asks for its ids.
        first.push(made.attach(first, PROBE_LEASE), 0, {0: ones[:LARGE_PULL_ROWS]}, pulled)
        first.flush()
        assert first.wait(first.pull({0: rows[:1]}))[0][0, 0] == len(others) + 1
        for client in (first, *others):
            client.close()
    finally:
        made.close()


def test_a_large_frame_is_not_waited_for_for_ever(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Memory is held for a frame of which now and then a byte comes, or none, for so long and no longer."""
    made = ProbedShard(
        tmp_path_factory.mktemp("budget"), large_frame_seconds=0.5, memory_idle_seconds=0.1, send_seconds=0.5
    )
    try:
        for trickles in (False, True):
            with peer(made) as slow:
                slow.send(header(Kind.PUSH, 60 * 2**20))
                while trickles and not select.select([slow.sock], [], [], 0.02)[0]:
                    slow.send(b"x")
                slow.assert_refused(ErrorCode.LIMIT, "was not whole after 0.5 s")
        with peer(made) as slow:
            n_threads = made.n_threads
            pull = p.Pull(sections=(p.Section(table=0, ids=np.arange(10_000_000, dtype=np.uint32)),))
            slow.send(encode(pull, 5))
            n_taken = 0

            def given_up() -> bool:
                """Take a little of the answer; tell whether the shard has had enough of that."""
                nonlocal n_taken
                n_taken += len(slow.sock.recv(4096))
                return made.n_threads < n_threads

            eventually(given_up)
            with contextlib.suppress(ConnectionError):
                while data := slow.sock.recv(2**20):
                    n_taken += len(data)
            assert n_taken < 40_000_000
        made.assert_serves()
    finally:
        made.close()


def test_a_compressed_push_takes_of_the_budget_what_it_expands_to(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Not what so many bytes could expand to: small machines take large pushes too."""
    made = ProbedShard(
        tmp_path_factory.mktemp("budget"), memory_bytes=SMALL_MEMORY_BYTES, memory_wait_seconds=0.2
    )
    try:
        before = made.counts()["steps_applied"]
        client = made.client(float16=True, compression="lz4")
        position = made.attach(client, 0)
        rows = np.arange(0, 3 * PUSHED_ROWS, 3, dtype=np.uint32)
        values = np.random.default_rng(0).normal(size=(PUSHED_ROWS, 1)).astype(np.float32)
        client.push_rows(position, position, {0: rows}, {0: values})
        client.flush()
        client.close()
        assert made.counts()["steps_applied"] == before + 1
    finally:
        made.close()


def test_a_shard_that_goes_away_is_not_mistaken_for_another(shard: ProbedShard) -> None:
    """A server without the token cannot pass for the shard: the worker notices, and says nothing more."""
    with socket.create_server(("127.0.0.1", 0)) as impostor:

        def greet() -> None:
            sock, _ = impostor.accept()
            with sock:
                sock.sendall(encode(p.Challenge(nonce="ab" * 32), 0))
                sock.recv(65536)
                sock.sendall(encode(p.Welcome(shard=0, generation=1, proof="00" * 32), 2))
                heard.append(sock.recv(65536))

        heard: list[bytes] = []
        thread = threading.Thread(target=greet)
        thread.start()
        host, port = impostor.getsockname()
        address = ShardAddress(shard=0, generation=1, host=host, port=port)
        with pytest.raises(AuthenticationError, match="does not have the run's token"):
            Channel(address, shard.token)
        thread.join()
    assert shard.token.encode() not in b"".join(heard)
