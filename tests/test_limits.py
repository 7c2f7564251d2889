"""What a shard allows: each limit is a number in one place, and beyond it somebody is told."""

from __future__ import annotations

import dataclasses
import re
import threading
from pathlib import Path

import pytest
from ps_runs import create_run, make_config, make_table

from cirrus.config import MAX_TABLES
from cirrus.errors import ConfigError, LimitError
from cirrus.paramserver import protocol
from cirrus.paramserver.limits import (
    CONNECTION_MEMORY_BYTES,
    Limits,
    MemoryBudget,
    Strangers,
    check_tables_fit,
    machine_memory_bytes,
    memory_budget,
    parse_limits,
)
from cirrus.paramserver.marks import MAX_OPEN_MARKS
from cirrus.paramserver.server import Shard
from cirrus.paramserver.tables import ShardTables, table_bytes

TESTS = Path(__file__).resolve().parent
DOCS = TESTS.parent / "docs"


def test_a_budget_gives_what_it_has() -> None:
    """What was taken can be taken again once it was given back, and not before; nobody gets more than all."""
    budget = MemoryBudget(100, wait_seconds=0.05)
    budget.take(60, "one")
    with pytest.raises(LimitError, match="two takes 50 bytes; .* may have 100, of which 40 are free"):
        budget.take(50, "two")
    budget.give_back(60)
    with budget.lend(100, "three"), pytest.raises(LimitError):
        budget.take(1, "four")
    budget.take(100, "five")


def test_more_than_all_is_refused_at_once() -> None:
    """Nobody waits for what there will never be."""
    budget = MemoryBudget(100, wait_seconds=3600.0)
    with pytest.raises(LimitError, match="101"):
        budget.take(101, "it")


def test_who_waits_gets_what_others_give_back() -> None:
    """A request that others are in the way of goes on as soon as they are done."""
    budget = MemoryBudget(100, wait_seconds=20.0)
    budget.take(80, "first")
    waiter = threading.Thread(target=budget.take, args=(50, "second"))
    waiter.start()
    assert waiter.is_alive()
    budget.give_back(80)
    waiter.join(20.0)
    assert not waiter.is_alive()
    budget.take(50, "third")


def test_the_budget_is_a_part_of_the_machines_memory() -> None:
    """A small machine gives less than the constant says."""
    assert memory_budget(Limits(), 2**40).n_bytes == CONNECTION_MEMORY_BYTES
    assert memory_budget(Limits(), 2**30).n_bytes == 2**28
    assert memory_budget(Limits(memory_bytes=1000), 2**30).n_bytes == 1000
    assert 2**26 < machine_memory_bytes() < 2**50


def test_tables_have_to_fit_with_their_copies() -> None:
    """What would not survive its own snapshot is refused before anything is allocated."""
    check_tables_fit(100, 300)
    with pytest.raises(ConfigError, match="n_shards: .*use more shards"):
        check_tables_fit(101, 300)


def test_a_shard_of_enormous_tables_does_not_start(tmp_path: Path) -> None:
    """Not even a table of 2**32 rows and 2**16 values each takes memory before it is refused."""
    table = make_table(n_rows=2**32, width=2**16, optimizer="adam")
    url = create_run(tmp_path / "run", make_config(tables=[table]))
    with pytest.raises(ConfigError, match=r"would hold 3145728\.0 GiB"):
        Shard(url, shard=0, generation=1)


@pytest.mark.parametrize("optimizer", ["add", "sgd", "adagrad", "ftrl", "adam", "momentum"])
def test_the_size_of_tables_is_known_before_they_are(optimizer: str) -> None:
    """What is checked is what will be allocated."""
    tables = [make_table(optimizer=optimizer, n_rows=100, width=3, n_shards=3), make_table("b", n_shards=3)]
    for shard in range(3):
        assert table_bytes(tables, shard) == ShardTables(tables, shard, 0).values.nbytes


def test_a_model_has_so_many_tables_at_most() -> None:
    """One frame has a section for each, so a config with more is refused."""
    tables = [make_table(f"t{i}") for i in range(MAX_TABLES)]
    make_config(tables=tables)
    for wrong in ([*tables, make_table("more")], []):
        with pytest.raises(ConfigError, match="tables: a model has 1 to 64 tables"):
            make_config(tables=wrong)
    assert protocol.MAX_SECTIONS == MAX_TABLES


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Limits)])
def test_limits_are_positive(field: str) -> None:
    """No limit can be 0 or below, or no number."""
    for value in (0, -1, float("nan")):
        with pytest.raises(ConfigError, match=f"{field}: must be"):
            Limits(**{field: value})


def test_limits_of_the_command_line() -> None:
    """Each is given by name; what is none of them is refused."""
    found = parse_limits(["max_connections=5", "hello_seconds=0.5"])
    assert found == Limits(max_connections=5, hello_seconds=0.5)
    for word, problem in [
        ("x=1", "there is no 'x'"),
        ("max_connections=1.5", "takes a number"),
        ("idle", "no"),
    ]:
        with pytest.raises(ConfigError, match=f"limit: .*{problem}"):
            parse_limits([word])
    with pytest.raises(ConfigError, match="buffer_bytes"):
        parse_limits(["buffer_bytes=10"])


def test_strangers_do_not_fill_the_log() -> None:
    """One line each so often says how many there were."""
    strangers = Strangers(every_seconds=10.0)
    assert strangers.count(now=100.0) == 1
    assert [strangers.count(now=101.0 + i) for i in range(5)] == [None] * 5
    assert strangers.count(now=110.0) == 6


def test_every_limit_is_in_the_document() -> None:
    """docs/security.md lists each limit of a shard, with its value."""
    text = (DOCS / "security.md").read_text()
    for field in dataclasses.fields(Limits):
        assert f"`{field.name}`" in text or f".{field.name}`" in text, field.name
    said = {
        "hello_seconds": "10 s",
        "max_strangers": "256",
        "max_connections": "4,096",
        "send_seconds": "60 s",
        "memory_idle_seconds": "5 s",
        "large_frame_seconds": "60 s",
    }
    for name, value in said.items():
        assert re.search(rf"\| {re.escape(value)}[^|]*\|[^|]*{name}", text), name
    said_in_numbers = {
        "hello_seconds": 10, "max_strangers": 256, "max_connections": 4096, "send_seconds": 60,
        "memory_idle_seconds": 5, "large_frame_seconds": 60,
    }  # fmt: skip
    assert Limits() == Limits(**said_in_numbers)
    assert MAX_OPEN_MARKS == 2**20
    assert (protocol.MAX_FRAME_BYTES, protocol.MAX_DECODED_BYTES) == (64 * 2**20, 128 * 2**20)


@pytest.mark.parametrize("name", ["guarantees.md", "security.md", "protocol.md"])
def test_documents_name_tests_that_exist(name: str) -> None:
    """What they say is tested is tested by a file of that name; every guarantee names one."""
    text = (DOCS / name).read_text()
    assert [test for test in re.findall(r"\btest_\w+\.py", text) if not (TESTS / test).exists()] == []
    rows = [row for row in text.splitlines() if row.startswith("| **")]
    assert [row for row in rows if not re.search(r"test_\w+\.py", row.rsplit("|", 2)[1])] == []
    assert len(rows) >= (24 if name == "guarantees.md" else 0)
