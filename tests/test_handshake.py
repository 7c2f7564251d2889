"""The handshake: a proof is good once, for one connection, for one side, for one shard and generation."""

from __future__ import annotations

import dataclasses
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from ps_runs import FrameReader, Shards, make_config, running

from cirrus.errors import AuthenticationError
from cirrus.paramserver import handshake
from cirrus.paramserver.client import Channel
from cirrus.paramserver.codec import encode
from cirrus.paramserver.protocol import Challenge, Error, ErrorCode, Hello, Proof, Welcome
from cirrus.run_folder import ShardAddress

TOKEN = "ab" * 32
CHALLENGE = Challenge(nonce="01" * handshake.NONCE_BYTES)
HELLO = Hello(shard=1, generation=2, nonce="02" * handshake.NONCE_BYTES)
WAIT_SECONDS = 10.0


@pytest.fixture
def shards(tmp_path: Path) -> Iterator[Shards]:
    """Return a shard."""
    with running(tmp_path / "run", make_config()) as made:
        yield made


def connect(address: ShardAddress) -> tuple[socket.socket, Challenge]:
    """Connect to a shard, and hear its first words."""
    sock = socket.create_connection((address.host, address.port), WAIT_SECONDS)
    challenge = FrameReader(sock).read()
    assert isinstance(challenge, Challenge)
    return sock, challenge


def test_a_proof_is_good_for_one_connection(shards: Shards) -> None:
    """Whoever heard a worker's words and says them again is refused: the challenge is another by then."""
    address = shards.folder.shard_address(0)
    assert address is not None
    hello = Hello(shard=0, generation=1, nonce=handshake.new_nonce())
    sock, first = connect(address)
    proof = Proof(proof=handshake.prove(shards.token, handshake.WORKER, first, hello))
    said = encode(hello, 1) + encode(proof, 2)
    with sock:
        sock.sendall(said)
        assert isinstance(FrameReader(sock).read(), Welcome)
    sock, second = connect(address)
    assert second.nonce != first.nonce
    with sock:
        sock.sendall(said)
        answer = FrameReader(sock).read()
    assert isinstance(answer, Error)
    assert answer.code == ErrorCode.AUTHENTICATION


def test_a_workers_proof_cannot_be_sent_back_to_it() -> None:
    """An impostor who has no token, and mirrors all that he hears, is found out."""
    with socket.create_server(("127.0.0.1", 0)) as mirror:

        def serve() -> None:
            sock, _ = mirror.accept()
            with sock:
                reader = FrameReader(sock)
                hello = reader.read()
                assert isinstance(hello, Hello)
                sock.sendall(encode(Challenge(nonce=hello.nonce), 0))
                proof = reader.read()
                assert isinstance(proof, Proof)
                sock.sendall(encode(Welcome(shard=0, generation=1, proof=proof.proof), 2))
                sock.recv(1)

        thread = threading.Thread(target=serve)
        thread.start()
        host, port = mirror.getsockname()
        with pytest.raises(AuthenticationError, match="does not have the run's token"):
            Channel(ShardAddress(shard=0, generation=1, host=host, port=port), TOKEN)
        thread.join(WAIT_SECONDS)


@pytest.mark.parametrize(
    "other",
    [
        {"speaker": handshake.SHARD},
        {"token": "ab" * 31 + "ac"},
        {"challenge": Challenge(nonce="03" * handshake.NONCE_BYTES)},
        {"hello": dataclasses.replace(HELLO, nonce="03" * handshake.NONCE_BYTES)},
        {"hello": dataclasses.replace(HELLO, shard=0)},
        {"hello": dataclasses.replace(HELLO, generation=3)},
    ],
    ids=lambda other: next(iter(other)),
)
def test_a_proof_covers_all_that_was_agreed(other: dict[str, object]) -> None:
    """With anything else in its place, it is wrong."""
    agreed = {"token": TOKEN, "speaker": handshake.WORKER, "challenge": CHALLENGE, "hello": HELLO}
    proof = handshake.prove(**agreed)  # type: ignore[arg-type]
    handshake.check(proof, **agreed)  # type: ignore[arg-type]
    with pytest.raises(AuthenticationError, match="token is wrong"):
        handshake.check(proof, **{**agreed, **other})  # type: ignore[arg-type]


def test_a_proof_depends_on_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody on the way can have two newer peers speak an older version."""
    proof = handshake.prove(TOKEN, handshake.WORKER, CHALLENGE, HELLO)
    monkeypatch.setattr(handshake, "VERSION", handshake.VERSION - 1)
    with pytest.raises(AuthenticationError, match="token is wrong"):
        handshake.check(proof, TOKEN, handshake.WORKER, CHALLENGE, HELLO)


@pytest.mark.parametrize(
    "nonce", ["", "0", "0" * 63, "0" * 65, "g" * 64, "A" * 64, "0" * 64 + "\n", "ä" * 64]
)
def test_a_nonce_has_one_form(nonce: str) -> None:
    """One of another length would be easier to guess, one with a line's end could pass for two words."""
    for challenge, hello in (
        (Challenge(nonce=nonce), HELLO),
        (CHALLENGE, dataclasses.replace(HELLO, nonce=nonce)),
    ):
        with pytest.raises(AuthenticationError, match="a nonce must be"):
            handshake.prove(TOKEN, handshake.WORKER, challenge, hello)


@pytest.mark.parametrize("proof", ["", "0", "é" * 64, "\ud800", "0" * 10_000])
def test_a_proof_may_be_any_text(proof: str) -> None:
    """What cannot be right is refused like what is wrong."""
    with pytest.raises(AuthenticationError, match="token is wrong"):
        handshake.check(proof, TOKEN, handshake.WORKER, CHALLENGE, HELLO)
