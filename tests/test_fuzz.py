"""A short round of what ``make fuzz`` does for ten minutes, and every input that ever broke something."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from fuzz_targets import CORPUS, ShardTarget, attempt, mutated, shard_seeds, targets
from hypothesis import given
from hypothesis import strategies as st

#: Inputs that one example makes of valid ones.
ROUND = 15
N_SHARD_INPUTS = 400

KEPT = sorted(path for path in CORPUS.glob("*/*") if path.is_file())


@pytest.fixture(scope="module")
def shard() -> Iterator[ShardTarget]:
    """Return a shard to be fuzzed."""
    target = ShardTarget()
    yield target
    target.close()


@pytest.mark.parametrize("name", targets())
@given(seed=st.integers(0, 2**32 - 1))
def test_damaged_input_is_refused(name: str, seed: int) -> None:
    """Whatever a reader is given, it returns something or raises an error of Cirrus."""
    target, rng = targets()[name], random.Random(seed)
    for _ in range(ROUND):
        attempt(target.run, mutated(rng.choice(target.seeds), rng, target.seeds, is_json=target.is_json))


@pytest.mark.parametrize("name", targets())
@given(data=st.binary(max_size=300))
def test_random_input_is_refused(name: str, data: bytes) -> None:
    """The same for bytes that were never valid."""
    attempt(targets()[name].run, data)


@pytest.mark.parametrize("name", targets())
def test_valid_input_is_read(name: str) -> None:
    """What the rounds begin with is near enough to what is read: it is refused, if at all, for one reason."""
    target = targets()[name]
    outcomes = {attempt(target.run, seed) for seed in target.seeds}
    assert outcomes <= {"ok", "NotFoundError", "ConfigError", "CorruptDataError"}
    if not target.is_json:
        assert outcomes == {"ok"}


def test_a_shard_takes_anything(shard: ShardTarget) -> None:
    """Frames that are damaged in any way end the connection and nothing else; no thread raises."""
    rng = random.Random(0)
    seeds = shard_seeds()
    for _ in range(N_SHARD_INPUTS):
        attempt(shard, mutated(rng.choice(seeds), rng, seeds, is_json=False))


@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_broke_something_once_does_not_again(path: Path, shard: ShardTarget) -> None:
    """Every input that fuzzing found is kept, and tried again."""
    name = path.parent.name.replace("-", " ")
    attempt(shard if name == "shard" else targets()[name].run, path.read_bytes())
