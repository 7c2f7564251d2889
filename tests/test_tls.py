"""Runs with TLS: they train the same, nobody else is believed, nothing can be read on the way."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ps_runs import Shards, make_config, make_leases, make_table
from ps_workers import Workers, expected_weights

import cirrus
from cirrus.client_backend.certificates import make_certificates
from cirrus.errors import AuthenticationError, ConnectionLostError, NotFoundError, ProtocolError
from cirrus.metrics import RunState
from cirrus.paramserver.client import Channel, ParameterClient
from cirrus.paramserver.protocol import StatisticsReply, StatisticsRequest
from cirrus.paramserver.tls import shard_name, worker_context
from cirrus.run_folder import RunFolder, ShardAddress

LARGE_ROWS = 3_000_000


@pytest.fixture
def shards(tmp_path: Path) -> Iterator[Shards]:
    """Return two shards of a run with TLS."""
    config = make_config(
        tls=True, n_shards=2, tables=[make_table(n_rows=LARGE_ROWS, n_shards=2)], stop={"epochs": 9}
    )
    url = str(tmp_path / "run")
    RunFolder(url).create(config, make_certificates(2))
    made = Shards(url)
    yield made
    made.close()


def address_of(shards: Shards, number: int) -> ShardAddress:
    """Return where a shard listens."""
    address = shards.folder.shard_address(number)
    assert address is not None
    return address


def test_large_frames_pass_both_ways(shards: Shards) -> None:
    """Pulls and pushes of many records arrive whole, whoever sends while the other sends too."""
    tls = worker_context(shards.folder)
    addresses = [address_of(shards, number) for number in range(2)]
    client = ParameterClient(addresses, shards.token, shards.config.tables, tls=tls)
    rows = np.arange(0, LARGE_ROWS, 2, dtype=np.uint32)
    ones = {0: np.ones((len(rows), 1), np.float32)}
    assert client.attach(0, 1, 1) == 0
    tickets = [client.pull({0: rows}) for _ in range(2)]
    for position in range(3):
        client.push_rows(position, position, {0: rows}, ones)
    for ticket in tickets:
        assert not client.wait(ticket)[0].any()
    client.flush()
    found = client.wait(client.pull({0: np.arange(100, dtype=np.uint32)}))[0][:, 0]
    np.testing.assert_array_equal(found, np.tile([3.0, 0.0], 50))
    client.close()
    assert shards.counts("steps_applied") == [3, 3]


def test_a_shard_of_another_run_is_not_believed(shards: Shards, tmp_path: Path) -> None:
    """A certificate of another authority ends the connection before anything is said."""
    other = RunFolder(str(tmp_path / "other"))
    other.create(dataclasses.replace(shards.config, run_id="other"), make_certificates(2))
    with pytest.raises(AuthenticationError, match="no certificate of this run"):
        Channel(address_of(shards, 0), shards.token, tls=worker_context(other))
    channel = Channel(address_of(shards, 0), shards.token, tls=worker_context(shards.folder))
    channel.ask(StatisticsRequest(), StatisticsReply)
    channel.close()


def test_a_shard_cannot_pass_for_another(shards: Shards) -> None:
    """The certificate is for one shard's number: shard 1 at the address of shard 0 is found out."""
    meant = dataclasses.replace(address_of(shards, 1), shard=0)
    with pytest.raises(AuthenticationError, match="no certificate of this run"):
        Channel(meant, shards.token, tls=worker_context(shards.folder))


def test_both_sides_notice_that_the_other_has_no_tls(shards: Shards, tmp_path: Path) -> None:
    """A plain worker at such a shard, and such a worker at a plain shard, get an error and no connection."""
    with pytest.raises((ProtocolError, ConnectionLostError)):
        Channel(address_of(shards, 0), shards.token, timeout_seconds=2.0)
    url = str(tmp_path / "plain")
    RunFolder(url).create(make_config())
    plain = Shards(url)
    try:
        with pytest.raises(ConnectionLostError, match="does not speak TLS"):
            Channel(address_of(plain, 0), plain.token, tls=worker_context(shards.folder))
        plain.channel().close()
    finally:
        plain.close()


def test_old_tls_is_refused(shards: Shards) -> None:
    """Nothing below version 1.3 is spoken."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=shards.folder.certificate_authority().decode())
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    address = address_of(shards, 0)
    with socket.create_connection((address.host, address.port)) as sock, pytest.raises(ssl.SSLError):
        context.wrap_socket(sock, server_hostname=shard_name(0))


def test_keys_are_private_and_the_authoritys_is_gone(shards: Shards) -> None:
    """Keys in the run folder have mode 0600, and there is none that could sign another certificate."""
    folder = Path(shards.url)
    assert sorted(path.name for path in (folder / "tls").iterdir()) == [
        "ca.pem",
        "shard-0.pem",
        "shard-1.pem",
    ]
    assert b"PRIVATE" not in shards.folder.certificate_authority()
    for number in range(2):
        assert (folder / "tls" / f"shard-{number}.pem").stat().st_mode & 0o777 == 0o600


def test_a_run_without_certificates_does_not_start(tmp_path: Path) -> None:
    """A config that says TLS is not served in the clear."""
    url = str(tmp_path / "run")
    RunFolder(url).create(make_config(tls=True))
    with pytest.raises(NotFoundError, match=r"tls/"):
        Shards(url)


class Eavesdropper:
    """Passes on what two say to each other, and keeps it.

    Args:
        target: Whom it stands before.
    """

    def __init__(self, target: ShardAddress) -> None:
        self.heard = b""
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        host, port = self._listener.getsockname()
        self.address = dataclasses.replace(target, host=host, port=port)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        near, _ = self._listener.accept()
        far = socket.create_connection((self._target.host, self._target.port))
        for source, sink in ((near, far), (far, near)):
            threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        # Whoever hangs up first may reset the other.
        with source, contextlib.suppress(OSError):
            while data := source.recv(65536):
                self.heard += data
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Stop."""
        self._listener.close()


def test_nothing_can_be_read_on_the_way(shards: Shards) -> None:
    """With TLS not even the messages' names pass in the clear; without it they do, but never the token."""
    for tls in (worker_context(shards.folder), None):
        if tls is None:
            shards.shards[0].tls = None
        ear = Eavesdropper(address_of(shards, 0))
        channel = Channel(ear.address, shards.token, tls=tls)
        channel.ask(StatisticsRequest(), StatisticsReply)
        channel.close()
        ear.close()
        assert (b"steps_applied" in ear.heard) == (tls is None)
        assert shards.token.encode() not in ear.heard
        assert bytes.fromhex(shards.token) not in ear.heard


def test_a_run_is_exact_with_tls_through_the_loss_of_a_shard(tmp_path: Path) -> None:
    """Shards talk to each other and come back as without TLS, and each step is applied once."""
    config = make_config(tls=True, n_shards=2, leases=make_leases(5, 3, 8), stop={"epochs": 20})
    url = str(tmp_path / "run")
    RunFolder(url).create(config, make_certificates(2))
    shards = Shards(url)
    try:
        with Workers(url, hold=True) as workers:
            shards.replace(1)
            workers.release()
            status = shards.wait()
        assert status.state is RunState.FINISHED
        weights = np.concatenate([shards.shards[number].tables.values for number in range(2)])
        np.testing.assert_array_equal(weights[:, None], expected_weights(config, 20))
    finally:
        shards.close()


@pytest.mark.parametrize("kind", ["inline", "local"])
def test_backends_encrypt_when_asked_to(tmp_path: Path, kind: str) -> None:
    """``tls=True`` gives the run certificates and says so in its config; training ends as it does without."""
    make = {"inline": cirrus.InlineBackend, "local": cirrus.LocalBackend}[kind]
    rng = np.random.default_rng(0)
    X = rng.normal(size=(2000, 5))
    y = (X[:, 0] > 0).astype(int)
    est = cirrus.LogisticRegression(
        backend=make(root=str(tmp_path), tls=True), epochs=2, n_shards=2, random_state=0
    )
    run = est.start(X, y)
    assert run.wait(60.0).state is RunState.FINISHED
    assert run.config.tls
    assert RunFolder(run.url).certificate_authority().startswith(b"-----BEGIN CERTIFICATE")
    run.close()
    est.fit(X, y)
    assert est.score(X, y) > 0.9
