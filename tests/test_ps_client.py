"""The client and the shards together: what is pulled is what was pushed, however it travels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ps_reference import DenseTable
from ps_runs import Shards, create_run, make_config, make_leases, make_table, running

from cirrus.config import RunConfig
from cirrus.errors import ConnectionLostError, NotFoundError, ProtocolError
from cirrus.paramserver import protocol as p
from cirrus.paramserver.client import ParameterClient, PullTicket
from cirrus.run_folder import RunFolder, ShardAddress

N_STEPS = 60


def several_tables(n_shards: int) -> RunConfig:
    """Return the config of a run with tables of several widths, sizes and optimizers."""
    return make_config(
        n_shards=n_shards,
        leases=make_leases(N_STEPS),
        tables=[
            make_table("a", optimizer="ftrl", n_shards=n_shards, l1=0.01, initial_scale=0.1),
            make_table("b", optimizer="adagrad", n_rows=200, width=3, n_shards=n_shards, initial_scale=0.1),
            make_table("c", optimizer="add", n_rows=1, n_shards=n_shards),
        ],
    )


def draw_ids(rng: np.random.Generator, config: RunConfig) -> dict[int, p.Ids]:
    """Return rows of every table: few, many, a range, or none at all."""
    found = {}
    for number, table in enumerate(config.tables):
        match rng.integers(0, 4):
            case 0:
                rows = np.arange(table.n_rows)
            case 1:
                rows = np.sort(rng.choice(table.n_rows, table.n_rows // 2 + 1, replace=False))
            case 2:
                rows = np.sort(rng.choice(table.n_rows, min(5, table.n_rows), replace=False))
            case _:
                rows = np.arange(0)
        found[number] = rows.astype(np.uint32)
    return found


def draw_gradients(rng: np.random.Generator, config: RunConfig, ids: dict[int, p.Ids]) -> dict[int, p.Values]:
    """Return gradients that float16 can hold exactly."""
    return {
        number: (rng.integers(-64, 64, (len(rows), config.tables[number].width)) / 64).astype(np.float32)
        for number, rows in ids.items()
    }


@pytest.mark.parametrize("n_shards", [1, 2, 3])
@pytest.mark.parametrize("compression", ["none", "lz4"])
@pytest.mark.parametrize("by_name", [True, False])
def test_training_equals_a_simulation(tmp_path: Path, n_shards: int, compression: str, by_name: bool) -> None:
    """Pulls and pushes of several tables over several shards leave what dense numpy tables would hold.

    Each pull is sent right behind a push that nobody has waited for, and sees it.
    """
    config = several_tables(n_shards)
    references = [DenseTable(table) for table in config.tables]
    rng = np.random.default_rng(0)
    with running(tmp_path / "run", config) as shards:
        client = shards.client(compression=compression)
        assert client.attach(0, 0, 1) == 0
        ticket, ids = None, draw_ids(rng, config)
        for position in range(N_STEPS):
            ticket = client.pull(ids)
            found = client.wait(ticket)
            for number, rows in ids.items():
                expected = references[number].weights[rows]
                assert found[number].shape == expected.shape
                np.testing.assert_allclose(found[number], expected, rtol=1e-4, atol=1e-5)
            gradients = draw_gradients(rng, config, ids)
            if by_name:
                client.push(position, position, gradients, ticket)
            else:
                client.push_rows(position, position, ids, gradients)
            for number, rows in ids.items():
                references[number].step(rows, gradients[number], position)
            ids = draw_ids(rng, config)
        client.flush()
        assert shards.counts("steps_applied") == [N_STEPS] * n_shards
        for number, reference in enumerate(references):
            np.testing.assert_allclose(shards.weights(number), reference.weights, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("compression", ["none", "lz4"])
def test_float16_halves_the_digits(tmp_path: Path, compression: str) -> None:
    """With float16 on the wire weights and gradients are rounded, and otherwise the same."""
    config = make_config(n_shards=2, tables=[make_table(n_shards=2, width=2, initial_scale=1.0)])
    with running(tmp_path / "run", config) as shards:
        client = shards.client(float16=True, compression=compression)
        ids = {0: np.arange(0, 1000, 3, dtype=np.uint32)}
        before = shards.weights()[ids[0]]
        client.attach(0, 0, 1)
        ticket = client.pull(ids)
        found = client.wait(ticket)[0]
        np.testing.assert_array_equal(found, before.astype(np.float16).astype(np.float32))
        gradient = np.full((len(ids[0]), 2), 1 / 3, np.float32)
        client.push(0, 0, {0: gradient}, ticket)
        client.flush()
        third = np.float32(np.float16(1 / 3))
        np.testing.assert_array_equal(shards.weights()[ids[0]], before + third)


@pytest.mark.parametrize("options", [{}, {"compression": "lz4"}, {"float16": True}])
@pytest.mark.parametrize("n_between", [7, 8, 9, 30])
def test_a_forgotten_pull_is_sent_again(tmp_path: Path, options: dict[str, Any], n_between: int) -> None:
    """A push may come after more pulls than a shard remembers: it asks for the ids, and nothing is lost.

    The pushes behind it, which the shard skips meanwhile, come again too, once.
    """
    config = make_config(n_shards=2, leases=make_leases(12), tables=[make_table(n_shards=2)])
    with running(tmp_path / "run", config) as shards:
        client = shards.client(**options)
        client.attach(0, 0, 1)
        ids = {0: np.arange(0, 1000, 2, dtype=np.uint32)}
        ones = {0: np.ones((500, 1), np.float32)}
        tickets: list[PullTicket] = [client.pull(ids) for _ in range(12)]
        for ticket in tickets:
            client.wait(ticket)
        for position, ticket in enumerate(tickets):
            client.push(position, position, ones, ticket)
            if position == 3:
                for _ in range(n_between):
                    client.wait(client.pull(ids))
        client.flush()
        assert shards.counts("steps_applied") == [12, 12]
        assert shards.counts("duplicates_dropped") == [0, 0]
        assert (shards.weights()[::2] == 12).all()
        assert not shards.weights()[1::2].any()


def test_pushes_wait_for_the_window(tmp_path: Path) -> None:
    """Thousands of pushes can be sent without asking for an answer in between."""
    config = make_config(leases=make_leases(3000))
    with running(tmp_path / "run", config) as shards:
        client = shards.client()
        client.attach(0, 0, 1)
        ids = {0: np.arange(1000, dtype=np.uint32)}
        ones = {0: np.ones((1000, 1), np.float32)}
        for position in range(3000):
            client.push_rows(position, position, ids, ones)
        client.flush()
        assert (shards.weights() == 3000).all()


def test_much_may_be_under_way_in_both_directions(tmp_path: Path) -> None:
    """A client that sends much before it reads does not lock itself up with a shard that answers much."""
    config = make_config(leases=make_leases(40), tables=[make_table(n_rows=300_000)])
    with running(tmp_path / "run", config) as shards:
        client = shards.client()
        client.attach(0, 0, 1)
        ids = {0: np.arange(300_000, dtype=np.uint32)}
        ones = {0: np.ones((300_000, 1), np.float32)}
        tickets = [client.pull(ids) for _ in range(40)]
        for position in range(40):
            client.push_rows(position, position, ids, ones)
        for ticket in tickets:
            assert client.wait(ticket)[0].shape == (300_000, 1)
        client.flush()
        assert (shards.weights() == 40).all()


def test_a_pull_of_more_than_a_frame_is_cut(tmp_path: Path) -> None:
    """A pull larger than a reply may be comes in several frames, and can be pushed to all the same."""
    n_rows = p.MAX_PULL_VALUES + 1000
    config = make_config(n_shards=2, tables=[make_table(n_rows=n_rows, n_shards=2, width=3)])
    with running(tmp_path / "run", config) as shards:
        client = shards.client()
        client.attach(0, 0, 1)
        ids = {0: np.arange(n_rows, dtype=np.uint32)}
        ticket = client.pull(ids)
        assert [len(requests) for requests in ticket.requests] == [2, 2]
        assert client.wait(ticket)[0].shape == (n_rows, 3)
        # What is pushed has to fit a frame; the ids are sent, since no one pull has them all.
        client.push(0, 0, {0: np.ones((n_rows, 3), np.float32)}, ticket)
        client.flush()
        assert (shards.weights() == 1).all()


def test_a_shard_that_has_a_step_is_left_out(tmp_path: Path) -> None:
    """After a loss, steps go to those shards that lack them; positions begin at the slowest."""
    with running(tmp_path / "run", make_config(n_shards=2, leases=make_leases(4))) as shards:
        both = {0: np.array([1, 999], np.uint32)}
        ones = {0: np.ones((2, 1), np.float32)}
        first = shards.client()
        first.attach(0, 0, 1)
        for position in range(4):
            first.push_rows(position, position, both, ones)
        first.flush()
        shards.replace(1)
        second = shards.client()
        assert second.attach(0, 0, 1) == 0
        for position in range(4):
            second.push_rows(position, position, both, ones)
        second.flush()
        assert shards.counts("steps_applied") == [4, 4]
        assert shards.counts("duplicates_dropped") == [0, 0]
        assert shards.weights()[[1, 999], 0].tolist() == [4, 4]


def test_a_step_without_rows_of_a_shard_moves_its_mark(tmp_path: Path) -> None:
    """Every shard counts every step, also those that do not concern it."""
    with running(tmp_path / "run", make_config(n_shards=3)) as shards:
        client = shards.client()
        client.attach(0, 1, 1)
        one, empty = np.array([400], np.uint32), np.empty(0, np.uint32)
        client.push_rows(0, 0, {0: one}, {0: np.ones((1, 1), np.float32)})
        client.push_rows(1, 1, {0: empty}, {0: np.empty((0, 1), np.float32)})
        ticket = client.pull({0: empty})
        assert client.wait(ticket)[0].shape == (0, 1)
        client.push(2, 2, {0: np.empty((0, 1), np.float32)}, ticket)
        client.flush()
        assert shards.counts("steps_applied") == [3, 3, 3]
        assert shards.weights().sum() == 1


def test_ids_at_the_cut_go_to_the_right_shard(tmp_path: Path) -> None:
    """The first and last row of each range are pulled from and pushed to their owner, and no other."""
    with running(tmp_path / "run", make_config(n_shards=3)) as shards:
        boundaries = shards.config.tables[0].boundaries
        rows = sorted({row for b in boundaries for row in (b - 1, b) if 0 <= row < 1000})
        client = shards.client()
        client.attach(0, 1, 1)
        ticket = client.pull({0: np.array(rows, np.uint32)})
        client.wait(ticket)
        client.push(0, 0, {0: np.ones((len(rows), 1), np.float32)}, ticket)
        client.flush()
        assert np.flatnonzero(shards.weights()).tolist() == rows


# What goes wrong on the way.


def test_nobody_there_is_an_error(tmp_path: Path) -> None:
    """A dead address is a ConnectionLostError that names the shard; nothing is left open."""
    with running(tmp_path / "run", make_config(n_shards=2)) as shards:
        shards.shards[1].crash()
        with pytest.raises(ConnectionLostError, match="cannot reach shard 1"):
            shards.client()


@pytest.mark.parametrize("during", ["wait", "flush", "attach", "push", "call"])
def test_a_shard_that_goes_away_is_an_error(tmp_path: Path, during: str) -> None:
    """Whatever the client is about, it learns that the shard is gone."""
    with running(tmp_path / "run", make_config(leases=make_leases(10_000))) as shards:
        client = shards.client()
        client.attach(0, 0, 1)
        ids, ones = {0: np.arange(1000, dtype=np.uint32)}, {0: np.ones((1000, 1), np.float32)}
        ticket = client.pull(ids)
        client.wait(ticket)
        shards.shards[0].crash()

        def act() -> None:
            if during == "wait":
                while True:
                    client.wait(client.pull(ids))
            elif during == "flush":
                client.push_rows(0, 0, ids, ones)
                client.flush()
            elif during == "attach":
                client.attach(0, 0, 2)
            elif during == "push":
                for position in range(10_000):
                    client.push(position, position, ones, ticket)
            else:
                client.call_coordinator(p.MarksRequest())

        with pytest.raises(ConnectionLostError, match="shard 0"):
            act()


def test_an_answer_to_nothing_is_an_error(tmp_path: Path) -> None:
    """A reply of the wrong number or kind is not taken for the right one."""
    with running(tmp_path / "run", make_config()) as shards:
        channel = shards.channel()
        channel.send(p.MarksRequest())
        with pytest.raises(ProtocolError, match="answered request"):
            channel.call(p.MarksRequest())
        channel = shards.channel()
        with pytest.raises(ProtocolError, match="MarksRequest with MarksReply"):
            channel.ask(p.MarksRequest(), p.Done)


def test_request_numbers_wrap_around(tmp_path: Path) -> None:
    """After four billion requests numbers begin again, and never are 0, which errors bear."""
    with running(tmp_path / "run", make_config()) as shards:
        channel = shards.channel()
        channel._request = 2**32 - 2
        for expected in (2**32 - 1, 1, 2):
            assert channel.send(p.StatisticsRequest()) == expected
            assert channel.receive()[0] == expected


def test_a_run_without_shards_says_so(tmp_path: Path) -> None:
    """An address that nobody announced is None; a run that is not there is an error."""
    folder = RunFolder(create_run(tmp_path / "run", make_config()))
    assert folder.shard_address(0) is None
    with pytest.raises(NotFoundError):
        Shards(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("host", "compression", "compressed"),
    [("127.0.0.1", "auto", False), ("127.0.0.1", "lz4", True), ("localhost", "auto", False)],
)
def test_auto_compresses_over_a_network_alone(
    tmp_path: Path, host: str, compression: str, compressed: bool
) -> None:
    """On one machine bytes are cheaper than compressing them."""
    with running(tmp_path / "run", make_config()) as shards:
        found = shards.folder.shard_address(0)
        assert found is not None
        address = ShardAddress(shard=0, generation=1, host=host, port=found.port)
        client = ParameterClient([address], shards.token, shards.config.tables, compression=compression)
        assert client._links[0]._compressed is compressed
        client.close()
