"""A shard before strangers and broken peers: it refuses clearly, harms nobody else, and goes on serving."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ps_runs import FrameReader, Shards, complete, create_run, make_config, make_leases, make_table, running
from stand_ins import eventually

from cirrus.errors import (
    AuthenticationError,
    CirrusError,
    ConnectionLostError,
    LeaseLostError,
    ProtocolError,
    RegistrationError,
    SupersededError,
    VersionMismatchError,
)
from cirrus.paramserver import handshake
from cirrus.paramserver import protocol as p
from cirrus.paramserver.client import Channel
from cirrus.paramserver.codec import encode
from cirrus.paramserver.limits import Limits
from cirrus.paramserver.protocol import Challenge, Error, ErrorCode, Hello, Kind, Proof, Welcome
from cirrus.paramserver.server import Shard
from cirrus.run_folder import ShardAddress

SOCKET_SECONDS = 10.0


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Shards]:
    """Return the one shard of a run that would take for ever."""
    with running(tmp_path / "run", make_config(stop={"epochs": 1000})) as shards:
        yield shards


class RawPeer:
    """A peer that says whatever bytes a test likes.

    Args:
        shards: The run.
        hello: Begin in order.
    """

    def __init__(self, shards: Shards, *, hello: bool = True) -> None:
        address = shards.folder.shard_address(0)
        assert address is not None
        self.sock = socket.create_connection((address.host, address.port), SOCKET_SECONDS)
        self.address = address
        self.reader = FrameReader(self.sock)
        challenge = self.read()
        assert isinstance(challenge, Challenge)
        self.hello = Hello(shard=0, generation=address.generation, nonce=handshake.new_nonce())
        proof = handshake.prove(shards.token, handshake.WORKER, challenge, self.hello)
        self.greeting = encode(self.hello, 1) + encode(Proof(proof=proof), 2)
        """What shows the token to the shard."""
        if hello:
            self.send(self.greeting)
            welcome = self.read()
            assert isinstance(welcome, Welcome)
            handshake.check(welcome.proof, shards.token, handshake.SHARD, challenge, self.hello)

    def send(self, data: bytes) -> None:
        """Send bytes; a shard that has closed already is no error."""
        with contextlib.suppress(ConnectionError):
            self.sock.sendall(data)

    def ended_within(self, seconds: float) -> bool:
        """Tell whether the shard closes the connection in so long."""
        readable, _, _ = select.select([self.sock], [], [], seconds)
        return bool(readable)

    def read(self) -> p.Message | None:
        """Return the next message, or None at the end of the connection."""
        return self.reader.read()

    def refused(self, code: ErrorCode, word: str = "") -> bool:
        """Tell whether the last words are an error of this kind, and then the connection ends."""
        message = self.read()
        assert isinstance(message, Error), message
        assert (message.code, word in message.message) == (code, True), message
        return self.read() is None

    def close(self) -> None:
        """Hang up."""
        self.sock.close()


@contextlib.contextmanager
def peer(shards: Shards, *, hello: bool = True) -> Iterator[RawPeer]:
    """Connect for as long as the context lasts."""
    made = RawPeer(shards, hello=hello)
    try:
        yield made
    finally:
        made.close()


def assert_serves(shards: Shards) -> None:
    """Check that the shard is in order: it takes a connection, and pushes and pulls work."""
    client = shards.client()
    ids = {0: np.array([1, 5], np.uint32)}
    client.wait(client.pull(ids))
    client.close()


# The handshake.


@pytest.mark.parametrize(
    ("change", "error", "word"),
    [
        ({"token": "wrong"}, AuthenticationError, "the token is wrong"),
        ({"token": ""}, AuthenticationError, "the token is wrong"),
        ({"shard": 1}, ProtocolError, "this is shard 0, not 1"),
        ({"generation": 4}, SupersededError, "this is generation 5 of shard 0, not 4"),
    ],
)
def test_the_wrong_peer_is_refused(
    tmp_path: Path, change: dict[str, int | str], error: type[CirrusError], word: str
) -> None:
    """A wrong token, shard or older generation is told so, and the shard goes on for others."""
    with running(tmp_path / "run", make_config()) as shards:
        shards.shards[0].crash()
        for _ in range(4):
            shards.replace(0)
        address = shards.folder.shard_address(0)
        assert address is not None
        said = {"token": shards.token, "shard": 0, "generation": 5, **change}
        meant = ShardAddress(
            shard=int(said["shard"]), generation=int(said["generation"]), host=address.host, port=address.port
        )
        with pytest.raises(error, match=word):
            Channel(meant, str(said["token"]))
        assert_serves(shards)


def test_a_shard_that_hears_of_its_successor_serves_nobody(run: Shards) -> None:
    """Whoever has the token and names a newer generation knows that this one was replaced."""
    worker = run.worker()
    address = run.folder.shard_address(0)
    assert address is not None
    newer = ShardAddress(shard=0, generation=2, host=address.host, port=address.port)
    with pytest.raises((SupersededError, ConnectionLostError)):
        Channel(newer, run.token)
    assert run.shards[0].wait(SOCKET_SECONDS)
    with pytest.raises(CirrusError):
        worker.call(p.NextTask())
    with pytest.raises(ConnectionLostError):
        run.channel()


def test_a_stranger_cannot_end_a_shard(run: Shards) -> None:
    """Without the token a newer generation means nothing."""
    address = run.folder.shard_address(0)
    assert address is not None
    newer = ShardAddress(shard=0, generation=2, host=address.host, port=address.port)
    with pytest.raises(AuthenticationError):
        Channel(newer, "guess")
    assert_serves(run)


HELLO = Hello(shard=0, generation=1, nonce="0f" * 32)
SHORT = Hello(shard=0, generation=1, nonce="0f" * 31)


def header(kind: int, length: int, version: int = p.VERSION) -> bytes:
    """Return the header of a frame of any length."""
    return p.HEADER.pack(p.MAGIC, version, kind, 9, length, 0)


@pytest.mark.parametrize(
    ("data", "code", "word"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", ErrorCode.PROTOCOL, "begins with"),
        (p.HEADER.pack(p.MAGIC, 9, Kind.HELLO, 1, 2, 0) + b"{}", ErrorCode.VERSION, "version 9"),
        (header(Kind.HELLO, 4097), ErrorCode.AUTHENTICATION, "Hello must come first"),
        (header(Kind.HELLO, 2) + b"{}", ErrorCode.PROTOCOL, "shard is missing"),
        (encode(p.MarksRequest(), 1), ErrorCode.AUTHENTICATION, "Hello must come first"),
        (encode(p.End(), 1), ErrorCode.AUTHENTICATION, "Hello must come first"),
        (encode(Proof(proof="00" * 32), 1), ErrorCode.AUTHENTICATION, "Hello must come first"),
        (encode(HELLO, 1) + encode(HELLO, 2), ErrorCode.AUTHENTICATION, "Proof must come first"),
        (encode(HELLO, 1) + encode(p.End(), 2), ErrorCode.AUTHENTICATION, "Proof must come first"),
        (encode(HELLO, 1) + encode(Proof(proof="00" * 32), 2), ErrorCode.AUTHENTICATION, "token is wrong"),
        (encode(HELLO, 1) + encode(Proof(proof=""), 2), ErrorCode.AUTHENTICATION, "token is wrong"),
        (encode(HELLO, 1) + encode(Proof(proof="\ud800"), 2), ErrorCode.AUTHENTICATION, "token is wrong"),
        (encode(SHORT, 1) + encode(Proof(proof=""), 2), ErrorCode.AUTHENTICATION, "nonce must be 32 bytes"),
        (header(Kind.PUSH, 2**26), ErrorCode.AUTHENTICATION, "Hello must come first"),
    ],
)
def test_a_stranger_is_refused(run: Shards, data: bytes, code: ErrorCode, word: str) -> None:
    """Other protocols and versions, and anything said before the token, get an error frame and the door."""
    with peer(run, hello=False) as stranger:
        stranger.send(data)
        assert stranger.refused(code, word)
    assert_serves(run)


def test_the_answer_to_another_version_can_be_read_by_it(run: Shards) -> None:
    """Magic and version stand where they always will, so that either side can say what is wrong."""
    with peer(run, hello=False) as stranger:
        stranger.send(p.HEADER.pack(p.MAGIC, 200, Kind.HELLO, 1, 0, 0))
        assert stranger.reader.fill()
        magic, version, *_ = p.HEADER.unpack_from(stranger.reader.received)
        assert (magic, version) == (p.MAGIC, p.VERSION)


def test_a_client_tells_an_old_server(tmp_path: Path) -> None:
    """A shard of another version is named as such by the client."""
    with socket.create_server(("127.0.0.1", 0)) as old:

        def answer() -> None:
            sock, _ = old.accept()
            with sock:
                sock.recv(4096)
                sock.sendall(p.HEADER.pack(p.MAGIC, 7, Kind.WELCOME, 1, 0, 0))
                sock.recv(1)

        thread = threading.Thread(target=answer)
        thread.start()
        host, port = old.getsockname()
        with pytest.raises(VersionMismatchError, match="version 7"):
            Channel(ShardAddress(shard=0, generation=1, host=host, port=port), "token")
        thread.join()


def test_silence_and_half_a_hello_disturb_nobody(run: Shards) -> None:
    """Peers that connect and say nothing, or stop in the middle, or hang up, cost a thread and no more."""
    quiet = [RawPeer(run, hello=False) for _ in range(10)]
    for i, stranger in enumerate(quiet):
        stranger.send(stranger.greeting[: i * 20])
    assert_serves(run)
    for stranger in quiet:
        stranger.close()
    assert_serves(run)


def test_a_hello_may_come_in_pieces_and_with_more_behind_it(run: Shards) -> None:
    """Frames are cut out of the stream, however it arrives."""
    more = encode(p.StatisticsRequest(), 3) + encode(p.MarksRequest(), 4)
    for cut in (1, 16, 17, 200, 300, -len(more), 5 - len(more), -1):
        with peer(run, hello=False) as stranger:
            data = stranger.greeting + more
            stranger.send(data[:cut])
            eventually(lambda: len(run.shards[0]._connections) > 0)
            stranger.send(data[cut:])
            found = [type(stranger.read()) for _ in range(3)]
            assert found == [Welcome, p.StatisticsReply, p.MarksReply]


def raw_shards(path: Path, **options: Any) -> Shards:
    """Return a run's one shard, started with options of its own."""
    shards = Shards(create_run(path, make_config(stop={"epochs": 1000})))
    shards.shards[0].crash()
    shards.shards[0] = Shard(shards.url, shard=0, generation=2, limits=Limits(**options))
    shards.shards[0].start()
    return shards


def test_a_hello_in_driblets_comes_to_an_end(tmp_path: Path) -> None:
    """The time for the token is one for all of it: a byte now and then does not prolong it."""
    shards = raw_shards(tmp_path / "run", hello_seconds=0.5)
    try:
        stranger = RawPeer(shards, hello=False)
        for byte in stranger.greeting:
            stranger.send(bytes([byte]))
            if stranger.ended_within(0.1):
                break
        else:
            pytest.fail("it was listened to for as long as it liked")  # half a minute
        assert stranger.read() is None
        stranger.close()
        assert_serves(shards)
    finally:
        shards.close()


def test_strangers_make_room_for_each_other(tmp_path: Path) -> None:
    """Of too many peers without the token, the one that has taken longest goes; those with it stay."""
    shards = raw_shards(tmp_path / "run", max_strangers=3)
    try:
        known = RawPeer(shards)
        strangers = [RawPeer(shards, hello=False) for _ in range(5)]
        for gone in strangers[:2]:
            assert gone.read() is None
        eventually(lambda: len(shards.shards[0]._connections) == 4)
        known.send(encode(p.StatisticsRequest(), 2))
        assert isinstance(known.read(), p.StatisticsReply)
        assert_serves(shards)
        for each in (known, *strangers):
            each.close()
    finally:
        shards.close()


# Frames of peers that have shown the token.


@pytest.mark.parametrize("body", [b"", b"nonsense", b"[1]", b'{"no such field": 1}', b"\xff"])
def test_json_garbage_is_refused(run: Shards, body: bytes) -> None:
    """Whatever the kind, a body that is not what it promises gets an error frame and the door."""
    for kind in p.JSON_MESSAGES:
        with peer(run) as broken:
            broken.send(p.HEADER.pack(p.MAGIC, p.VERSION, kind, 5, len(body), 0) + body)
            assert broken.refused(ErrorCode.PROTOCOL, "malformed")
    assert_serves(run)


@pytest.mark.parametrize(
    "message",
    [
        HELLO,
        Proof(proof=""),
        Challenge(nonce=""),
        Welcome(shard=0, generation=1, proof=""),
        p.Ack(),
        p.NeedIds(),
        p.Attached(position=1),
        p.Task(action="train"),
        p.ValuesReply(sections=()),
        p.Done(),
        Error(code=1, message="x"),
    ],
    ids=lambda message: type(message).__name__,
)
def test_answers_are_not_requests(run: Shards, message: p.Message) -> None:
    """What only a shard says, a shard does not take."""
    with peer(run) as broken:
        broken.send(encode(message, 5))
        assert broken.refused(ErrorCode.PROTOCOL)
    assert_serves(run)


@pytest.mark.parametrize(
    "message",
    [
        p.Attach(epoch=0, lease=3, grant=1),
        p.Attach(epoch=0, lease=-1, grant=1),
        p.Attach(epoch=-1, lease=0, grant=1),
        p.Attach(epoch=1000, lease=0, grant=1),
        p.Attach(epoch=10**30, lease=10**30, grant=1),
        p.Complete(epoch=0, lease=3, grant=1, generations=(1,)),
        p.Complete(epoch=0, lease=-1, grant=1, generations=(1,)),
        p.Complete(epoch=-1, lease=0, grant=1, generations=(1,)),
        p.Complete(epoch=1000, lease=0, grant=1, generations=(1,)),
        p.ShardStarted(shard=1, generation=1, completed_epochs=0),
        p.ShardStarted(shard=-1, generation=1, completed_epochs=0),
        p.ShardStarted(shard=0, generation=1, completed_epochs=0),
    ],
    ids=repr,
)
def test_what_there_is_not_is_refused(run: Shards, message: p.Message) -> None:
    """Leases, epochs, shards and marks that the run does not have change nothing."""
    with peer(run) as broken:
        broken.send(encode(message, 5))
        assert broken.refused(ErrorCode.PROTOCOL)
    assert_serves(run)
    worker = run.worker()
    task = worker.ask(p.NextTask(), p.Task)
    assert (task.action, task.epoch) == ("train", 0)
    assert 0 <= task.lease < 3
    worker.close()


@pytest.mark.parametrize("wait", ["NaN", "-1", "1e300", "Infinity"])
def test_odd_waits_are_short(run: Shards, wait: str) -> None:
    """A worker may wait for a task a few seconds at most, whatever it says; nothing spins meanwhile."""
    busy = [run.worker(i) for i in range(2)]
    for worker in busy:
        while worker.ask(p.NextTask(wait_seconds=0), p.Task).action == "train":
            pass
    with peer(run) as odd:
        odd.send(encode(p.Register(worker=9, generation=1), 2))
        body = f'{{"wait_seconds": {wait}}}'.encode()
        odd.send(p.HEADER.pack(p.MAGIC, p.VERSION, Kind.NEXT_TASK, 3, len(body), 0) + body)
        assert isinstance(odd.read(), p.Registered)
        busy[0].close()
        task = odd.read()
        assert isinstance(task, p.Task)
        assert task.action == "train"


def push(position: int, *sections: p.Section, lease: int = 0, request: int = 9, **options: bool) -> bytes:
    """Return a push of epoch 0."""
    message = p.Push(epoch=0, lease=lease, position=position, step=position, sections=sections)
    return encode(message, request, **options)


def one(*rows: int) -> p.Section:
    """Return a section that adds one to some rows."""
    return p.Section(table=0, ids=np.array(rows, np.uint32), values=np.ones(len(rows), np.float32))


def section(table: int, rows: list[int] | None, n_values: int) -> p.Section:
    """Return a section that may be wrong."""
    ids = None if rows is None else np.array(rows, np.uint32)
    return p.Section(table=table, ids=ids, values=np.ones(n_values, np.float32))


BAD_PUSHES = [
    *(
        (push(position, wrong, float16=float16), word)
        for float16 in (False, True)
        for position, wrong, word in [
            (0, one(1000), "does not own"),
            (1, one(1), "leaves out a position"),
            (0, section(0, [3, 3], 2), "sorted"),
            (0, section(1, [3], 1), "malformed"),
            (0, section(0, [3], 2), "malformed"),
            (0, section(0, None, 2), "malformed"),
        ]
    ),
    (header(Kind.PUSH, 7) + bytes(7), "malformed"),
    (header(Kind.PUSH, p.MAX_FRAME_BYTES + 8), "above the limit"),
    (b"XX" + push(0, one(1))[2:], "begins with"),
]


@pytest.mark.parametrize(("data", "word"), BAD_PUSHES, ids=[word for _, word in BAD_PUSHES])
def test_a_bad_push_is_refused_and_changes_nothing(run: Shards, data: bytes, word: str) -> None:
    """The peer is told why, and the table is as it was."""
    with peer(run) as broken:
        broken.send(encode(p.Attach(epoch=0, lease=1, grant=1), 2))
        assert broken.read() == p.Attached(position=0)
        broken.send(encode(p.Attach(epoch=0, lease=0, grant=1), 3) + data)
        assert broken.read() == p.Attached(position=0)
        assert broken.refused(ErrorCode.PROTOCOL, word)
    assert not run.weights().any()
    assert_serves(run)
    assert run.counts("steps_applied") == [0]


BAD_PULLS = [
    (p.Section(table=0, ids=np.array([1000], np.uint32)), "does not own"),
    (p.Section(table=0, ids=np.array([990, 1009], np.uint32)), "does not own"),
    (p.Section(table=1, ids=np.array([1], np.uint32)), "malformed"),
    (p.Section(table=0, ids=np.array([5, 5], np.uint32)), "sorted"),
    (p.Section(table=0, ids=np.array([1], np.uint32), values=np.ones(1, np.float32)), "malformed"),
]


@pytest.mark.parametrize(("section", "word"), BAD_PULLS, ids=[word for _, word in BAD_PULLS])
def test_a_bad_pull_is_refused(run: Shards, section: p.Section, word: str) -> None:
    """Rows that are not there, and anything that is no list of rows, get an error and the door."""
    with peer(run) as broken:
        broken.send(encode(p.Pull(sections=(section,)), 5))
        assert broken.refused(ErrorCode.PROTOCOL, word)
    assert_serves(run)


def test_a_pull_of_more_than_a_frame_is_refused(tmp_path: Path) -> None:
    """A few bytes cannot make a shard build a reply without limit."""
    table = make_table(n_rows=20_000_000)
    with running(tmp_path / "run", make_config(tables=[table])) as shards, peer(shards) as broken:
        half = np.arange(9_000_000, dtype=np.uint32)
        sections = (p.Section(table=0, ids=half), p.Section(table=0, ids=half + np.uint32(9_000_000)))
        broken.send(encode(p.Pull(sections=sections), 5))
        assert broken.refused(ErrorCode.PROTOCOL, "too large")


def test_a_peer_may_hang_up_anywhere_in_a_frame(run: Shards) -> None:
    """Of a push that was cut nothing is applied, and its lease is free for others."""
    data = push(0, one(1, 7, 500))
    for length in range(0, len(data), 5):
        with peer(run) as broken:
            broken.send(encode(p.Attach(epoch=0, lease=0, grant=length), 2))
            assert broken.read() == p.Attached(position=0)
            broken.send(data[:length])
    eventually(lambda: not run.shards[0]._connections)
    assert not run.weights().any()
    assert run.counts("steps_applied") == [0]


def test_connections_that_ended_leave_nothing(run: Shards) -> None:
    """Whoever attached and went is forgotten, also by the list of who holds which lease."""
    for lease in range(3):
        with peer(run) as gone:
            gone.send(encode(p.Attach(epoch=lease, lease=lease, grant=1), 2))
            assert gone.read() == p.Attached(position=0)
    eventually(lambda: not run.shards[0]._connections)
    assert not run.shards[0]._attachments


def test_a_large_frame_may_come_slowly(tmp_path: Path) -> None:
    """A push larger than the receive buffer is put together from pieces, and applied once."""
    table = make_table(n_rows=2_000_000)
    with running(tmp_path / "run", make_config(tables=[table])) as shards, peer(shards) as slow:
        slow.send(encode(p.Attach(epoch=0, lease=0, grant=1), 2))
        assert slow.read() == p.Attached(position=0)
        rows = np.arange(0, 1_800_000, 3, dtype=np.uint32)
        data = push(0, p.Section(table=0, ids=rows, values=np.ones(len(rows), np.float32)))
        assert len(data) > 2 * 2**20
        for start in range(0, len(data), 300_000):
            slow.send(data[start : start + 300_000])
        assert slow.read() == p.Ack()
        weights = shards.weights()[:, 0]
        assert (weights[rows] == 1).all()
        assert weights.sum() == len(rows)


def test_two_hundred_connections_are_served(run: Shards) -> None:
    """Each is registered, gets answers, and is gone when it closes."""
    workers = [run.worker(i) for i in range(200)]
    for worker in workers:
        worker.send(p.StatisticsRequest())
    for worker in workers:
        assert isinstance(worker.receive()[1], p.StatisticsReply)
    assert len(run.shards[0]._connections) == 200
    for worker in workers:
        worker.close()
    eventually(lambda: not run.shards[0]._connections)


# Requests between workers, shards and shard 0.


def test_a_shard_that_is_not_the_first_does_not_coordinate(tmp_path: Path) -> None:
    """Registration, tasks and reports are for shard 0 alone."""
    with running(tmp_path / "run", make_config(n_shards=2)) as shards:
        for message in (
            p.Register(worker=1, generation=1),
            p.NextTask(),
            p.StepTurn(epoch=0, lease=0, grant=1, position=0),
        ):
            channel = shards.channel(1)
            with pytest.raises(ProtocolError, match="is for shard 0"):
                channel.call(message)
            channel.close()


def test_a_duplicate_registration_is_refused_and_may_be_tried_again(run: Shards) -> None:
    """The second of two is told; when the first is gone, it gets in over the same connection."""
    first, second = run.worker(1), run.channel()
    with pytest.raises(RegistrationError, match="worker 1 is registered already"):
        second.call(p.Register(worker=1, generation=1))
    first.close()

    def registered() -> bool:
        try:
            second.ask(p.Register(worker=1, generation=1), p.Registered)
        except RegistrationError:
            return False
        return True

    assert eventually(registered)
    second.close()


def test_leases_of_a_lost_worker_are_given_again_at_once(run: Shards) -> None:
    """A worker that waits for work gets that of one that dies, long before any lease expires."""
    dying, waiting = run.worker(1), run.worker(2)
    held = [dying.ask(p.NextTask(), p.Task).lease for _ in range(2)]
    mine = waiting.ask(p.NextTask(), p.Task)
    waiting.send(p.NextTask(wait_seconds=5.0))
    dying.close()
    _, task = waiting.receive()
    assert isinstance(task, p.Task)
    assert (task.action, task.lease) == ("train", held[0])
    assert mine.lease not in held
    waiting.close()


def test_the_evaluator_gets_its_task_and_reports(tmp_path: Path) -> None:
    """After an epoch it is asked, and what it says stands in status and metrics."""
    config = make_config(leases=make_leases(1), stop={"epochs": 2}, validation_url="somewhere")
    with running(tmp_path / "run", config) as shards:
        worker, evaluator = shards.worker(), shards.worker(role="evaluate")
        client = shards.client()
        for _ in range(2):
            task = worker.ask(p.NextTask(wait_seconds=5), p.Task)
            client.attach(task.epoch, task.lease, task.grant)
            client.push_rows(0, task.first_step, {0: one(1).ids}, {0: one(1).values})
            client.call_coordinator(complete(task, [1], 1))
            asked = evaluator.ask(p.NextTask(wait_seconds=5), p.Task)
            assert (asked.action, asked.epoch) == ("evaluate", task.epoch + 1)
            report = p.Evaluation(epoch=1, grant=asked.grant, loss=0.5, metrics={"accuracy": 0.75})
            evaluator.ask(report, p.Done)
        assert worker.ask(p.NextTask(wait_seconds=5), p.Task).action == "end"
        client.close()
        worker.close()
        evaluator.close()
        status = shards.wait()
        assert status.validation_loss == 0.5
        lines = (tmp_path / "run" / "metrics" / "00000000.jsonl").read_text().splitlines()
        points = [json.loads(line) for line in lines]
        assert [pt["validation_metrics"] for pt in points if pt["validation_loss"]] == [
            {"accuracy": 0.75}
        ] * 2


def test_statistics_count_everything_once(tmp_path: Path) -> None:
    """Applied and dropped steps, rows both ways, also those of connections that have ended."""
    with running(tmp_path / "run", make_config(n_shards=2)) as shards:
        for grant in (1, 2):
            client = shards.client()
            assert client.attach(0, 1, grant) == (0 if grant == 1 else 3)
            for position in range(3):
                ticket = client.pull({0: np.array([1, 2, 999], np.uint32)})
                client.wait(ticket)
                ones = np.ones((3, 1), np.float32)
                # A client leaves out what the shard has; this one does not know.
                for link in client._links:
                    link.mark = 0
                client.push(position, position, {0: ones}, ticket)
            client.flush()
            client.close()
        # The shards' own connection to each other stays.
        eventually(lambda: all(len(shard._connections) <= 1 for shard in shards.shards.values()))
        assert shards.counts("steps_applied") == [3, 3]
        assert shards.counts("duplicates_dropped") == [3, 3]
        assert shards.counts("rows_pushed") == [6, 3]
        assert shards.counts("rows_pulled") == [12, 6]
        reply = shards.channel(1).ask(p.StatisticsRequest(), p.StatisticsReply)
        assert reply.counts["shard1.steps_applied"] == 3


@pytest.mark.parametrize(
    ("completed_epochs", "marks"),
    [(-1, {}), (0, {"0": [1]}), (0, {"0": ["a", "b", "c"]}), (0, {"0": 3}), (0, {"0": None})],
)
def test_marks_that_make_no_sense_are_refused(tmp_path: Path, completed_epochs: int, marks: Any) -> None:
    """What another shard says that it holds is checked before it is believed."""
    with running(tmp_path / "run", make_config(n_shards=2)) as shards, peer(shards) as broken:
        said = p.ShardStarted(shard=1, generation=1, completed_epochs=completed_epochs, marks=marks)
        broken.send(encode(said, 5))
        assert broken.refused(ErrorCode.PROTOCOL, "make no sense")


# Leases that change hands.


def test_a_lease_taken_over_is_lost_to_the_one_before(run: Shards) -> None:
    """Pushes of the old holder are dropped from that moment, and it learns so; the new one goes on."""
    old, new = run.client(), run.client()
    section = {0: one(4).ids}, {0: one(4).values}
    assert old.attach(0, 1, 1) == 0
    old.push_rows(0, 0, *section)
    old.flush()
    assert new.attach(0, 1, 2) == 1
    old.push_rows(1, 1, *section)
    old.push_rows(2, 2, *section)
    with pytest.raises(LeaseLostError):
        old.flush()
    new.push_rows(1, 1, *section)
    new.flush()
    assert run.weights()[4, 0] == 2
    assert run.counts("steps_applied") == [2]
    old.close()
    with_old_grant = run.client()
    with pytest.raises(LeaseLostError, match="was given again"):
        with_old_grant.attach(0, 1, 1)
    with_old_grant.close()
    new.push_rows(2, 2, *section)
    new.flush()
    new.close()
    assert run.weights()[4, 0] == 3


def test_leases_that_change_hands_all_the_time_are_applied_once(tmp_path: Path) -> None:
    """However many connections fight for a lease at once, no position of it is applied twice."""
    n_steps = 400
    with_many = make_config(leases=make_leases(n_steps), stop={"epochs": 1})
    with running(tmp_path / "run", with_many) as shards:
        grants = iter(range(1, 10_000))
        lock = threading.Lock()
        failed: list[BaseException] = []

        def fight() -> None:
            try:
                while True:
                    with lock:
                        grant = next(grants)
                    client = shards.client()
                    try:
                        position = client.attach(0, 0, grant)
                        if position == n_steps:
                            return
                        for p_ in range(position, min(position + 20, n_steps)):
                            client.push_rows(p_, p_, {0: one(p_).ids}, {0: one(p_).values})
                        client.flush()
                    except LeaseLostError:
                        continue
                    finally:
                        client.close()
            except BaseException as error:
                failed.append(error)
                raise

        threads = [threading.Thread(target=fight) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed
        weights = shards.weights()[:, 0]
        assert (weights[:n_steps] == 1).all()
        assert shards.counts("steps_applied") == [n_steps]
