"""The tables of a shard: initial values, and taking them apart and together again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ps_runs import make_table

from cirrus.config import TableConfig
from cirrus.errors import CorruptDataError
from cirrus.paramserver.checkpoint import Part
from cirrus.paramserver.tables import ShardTables, initial_values


def cut(table: TableConfig, *inner: int) -> TableConfig:
    """Return a table with other boundaries."""
    return TableConfig(
        name=table.name,
        n_rows=table.n_rows,
        width=table.width,
        optimizer=table.optimizer,
        boundaries=(0, *sorted(inner), table.n_rows),
        initial_scale=table.initial_scale,
    )


def part(tables: ShardTables) -> Part:
    """Return what a shard would save."""
    return Part(tables=tables.parts(tables.values))


@pytest.mark.parametrize("inner", [(), (500,), (1, 700), (0, 1000), (300, 300)])
@pytest.mark.parametrize("width", [1, 3])
def test_initial_values_do_not_depend_on_the_cut(inner: tuple[int, ...], width: int) -> None:
    """One, two or three shards, some of them empty, start from the same table to the bit."""
    table = make_table(width=width, optimizer="ftrl", initial_scale=0.1)
    whole = ShardTables([table], 0, seed=5)
    pieces = []
    for shard in range(len(inner) + 1):
        held = ShardTables([cut(table, *inner)], shard, seed=5)
        pieces.append(held.parts(held.values)[0].arrays["weights"])
    expected = whole.parts(whole.values)[0].arrays["weights"]
    np.testing.assert_array_equal(np.concatenate(pieces), expected)


def test_initial_values_are_normal() -> None:
    """Their mean, spread, tails and correlations are those of a normal distribution."""
    from scipy import stats

    table = make_table(n_rows=100_000, width=2, initial_scale=3.0)
    found = initial_values(table, 0, table.n_rows, seed=1)
    assert stats.kstest(found.reshape(-1) / 3.0, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(found.T)[0, 1]) < 0.02
    assert abs(np.corrcoef(found[:-1, 0], found[1:, 0])[0, 1]) < 0.02


def test_seeds_and_names_give_other_values() -> None:
    """Two seeds, or two tables of one run, do not start alike."""
    first, second = make_table("a", initial_scale=1.0), make_table("b", initial_scale=1.0)
    drawn = [
        initial_values(first, 0, 10, 0),
        initial_values(first, 0, 10, 1),
        initial_values(second, 0, 10, 0),
    ]
    assert len({values.tobytes() for values in drawn}) == 3


def test_states_start_at_zero() -> None:
    """Only weights are drawn; a scale of zero draws nothing."""
    tables = ShardTables([make_table("a", optimizer="adam", initial_scale=1.0), make_table("b")], 0, seed=0)
    arrays = [held.arrays for held in tables.parts(tables.values)]
    assert arrays[0]["weights"].all()
    assert not arrays[0]["mean"].any()
    assert not arrays[0]["variance"].any()
    assert not arrays[1]["weights"].any()


@given(
    before=st.lists(st.integers(0, 50), max_size=3),
    after=st.lists(st.integers(0, 50), max_size=3),
    optimizer=st.sampled_from(["sgd", "momentum", "adam", "ftrl"]),
    width=st.integers(1, 3),
)
@settings(deadline=None, max_examples=50)
def test_any_cut_restores_to_any_other(
    before: list[int], after: list[int], optimizer: str, width: int
) -> None:
    """What n shards saved is what m shards hold after restoring it, states and all."""
    table = make_table(n_rows=50, optimizer=optimizer, width=width)
    rng = np.random.default_rng(0)
    saved = []
    for shard in range(len(before) + 1):
        tables = ShardTables([cut(table, *before)], shard, seed=0)
        tables.values[:] = rng.normal(size=tables.values.size)
        saved.append(part(tables))
    restored = []
    for shard in range(len(after) + 1):
        tables = ShardTables([cut(table, *after)], shard, seed=9)
        tables.restore(saved)
        restored.append(part(tables))
    for name in saved[0].tables[0].arrays:
        np.testing.assert_array_equal(
            np.concatenate([held.tables[0].arrays[name] for held in saved]),
            np.concatenate([held.tables[0].arrays[name] for held in restored]),
        )


def test_another_optimizer_takes_the_weights_alone() -> None:
    """States that the new optimizer has no name for are left out; its own start anew."""
    old = ShardTables([make_table(optimizer="ftrl", initial_scale=1.0)], 0, seed=0)
    old.values[:] = 3.0
    new = ShardTables([make_table(optimizer="momentum")], 0, seed=0)
    new.restore([part(old)])
    arrays = new.parts(new.values)[0].arrays
    assert (arrays["weights"] == 3.0).all()
    assert not arrays["velocity"].any()


def test_tables_are_found_by_name() -> None:
    """A checkpoint's tables may stand in another order, and those of no name here are left alone."""
    a, b, c = make_table("a"), make_table("b", width=2), make_table("c")
    old = ShardTables([c, b, a], 0, seed=0)
    old.values[:] = np.arange(old.values.size)
    new = ShardTables([a, b], 0, seed=0)
    new.restore([part(old)])
    by_name = {held.name: held.arrays["weights"] for held in old.parts(old.values)}
    for held in new.parts(new.values):
        np.testing.assert_array_equal(held.arrays["weights"], by_name[held.name])


def test_another_width_is_refused() -> None:
    """A checkpoint of a model with other columns cannot be gone on with."""
    old = ShardTables([make_table(width=2)], 0, seed=0)
    new = ShardTables([make_table(width=3)], 0, seed=0)
    with pytest.raises(CorruptDataError, match="has width 2, not 3"):
        new.restore([part(old)])
