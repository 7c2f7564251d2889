"""Checkpoints and snapshots: one format, that is whole or not there, and says so when it is damaged."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cirrus.errors import CirrusError, CorruptDataError, NotFoundError, SupersededError
from cirrus.paramserver import checkpoint as c
from cirrus.paramserver.snapshots import Snapshots
from cirrus.run_folder import RunFolder
from cirrus.storage import ObjectStore, drop_memory_store, open_store

URL = "memory://test-ps-checkpoint/some/folder"


@pytest.fixture
def store() -> Iterator[ObjectStore]:
    """Return an empty store."""
    yield open_store(URL)
    drop_memory_store("test-ps-checkpoint")


def make_part(first_row: int = 0, n_rows: int = 4, value: float = 1.5) -> c.Part:
    """Return a part of two tables, one with states."""
    weights = np.arange(n_rows * 3, dtype=np.float32).reshape(n_rows, 3) * value
    return c.Part(
        tables=(
            c.TablePart(name="w", first_row=first_row, arrays={"weights": weights, "z": -weights}),
            c.TablePart(name="empty", first_row=0, arrays={"weights": np.zeros((0, 1), np.float32)}),
        ),
        extra={"marks": {"3": [1, 2]}},
    )


def same(first: c.Part, second: c.Part) -> bool:
    """Tell whether two parts hold the same."""
    return c.encode_part(first) == c.encode_part(second)


def test_a_part_survives() -> None:
    """Tables, states, row numbers and what is said beside them come back as they were."""
    part = make_part(first_row=10)
    found = c.decode_part(c.encode_part(part), "here")
    assert same(found, part)
    assert found.extra == part.extra
    assert [(held.name, held.first_row, held.n_rows) for held in found.tables] == [
        ("w", 10, 4),
        ("empty", 0, 0),
    ]


ENCODED = c.encode_part(make_part())


def test_a_truncated_part_is_refused() -> None:
    """A part cut at any byte is corrupt, and the error names the object."""
    for length in range(len(ENCODED)):
        with pytest.raises(CorruptDataError, match="over-there"):
            c.decode_part(ENCODED[:length], "over-there")


@given(bit=st.integers(0, 8 * len(ENCODED) - 1))
@settings(deadline=None, max_examples=300)
def test_a_damaged_part_is_refused_or_the_same_floats(bit: int) -> None:
    """A flipped bit in the floats is found by its checksum; one in the head never raises anything odd."""
    damaged = bytearray(ENCODED)
    damaged[bit // 8] ^= 1 << bit % 8
    try:
        found = c.decode_part(bytes(damaged), "here")
    except CorruptDataError:
        return
    original = make_part().tables[0].arrays
    held = next((t.arrays for t in found.tables if t.name == "w"), {})
    assert all(np.array_equal(array, original[name]) for name, array in held.items() if name in original)


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"[]",
        b'{"tables": 3, "extra": {}}',
        b'{"tables": [{}], "extra": {}}',
        b'{"tables": [{"name": "w", "first_row": 0, "arrays": [{"name": "z", "shape": [1e999, 1]}]}]}',
        b'{"tables": [{"name": "w", "first_row": 0, "arrays": [{"name": "z", "shape": [-1, -1]}]}]}',
        b'{"tables": [{"name": "w", "first_row": 0, "arrays": [{"name": "z", "shape": [1]}]}]}',
        b'{"tables": [{"name": "w", "first_row": 1e999, "arrays": []}], "extra": {}}',
        b'{"tables": [{"name": "w", "first_row": 0, "arrays": []}], "extra": {}}',
        b'{"tables": [{"name": "w", "first_row": 0, "arrays": [{"name": "z", "shape": [0, 1], "crc32": 0}]}],'
        b' "extra": {}}',
        b'{"tables": [], "extra": []}',
        b"[" * 100_000,
    ],
)
def test_a_head_that_makes_no_sense_is_refused(head: bytes) -> None:
    """Whatever stands in the head of a part, the error is a CorruptDataError."""
    with pytest.raises(CorruptDataError):
        c.decode_part(c._HEAD.pack(c._MAGIC, len(head)) + head, "here")


def test_a_checkpoint_of_several_parts_is_read_whole(store: ObjectStore) -> None:
    """Rows of a table are put together in their order, whichever part they came in."""
    infos = [
        c.write_part(store, f"part-{i}.bin", make_part(first_row=4 * i, value=i + 1.0)) for i in (1, 0, 2)
    ]
    c.write_manifest(store, infos, {"batch_size": 3})
    found = c.read_checkpoint(store)
    expected = np.concatenate([make_part(value=i + 1.0).tables[0].arrays["weights"] for i in range(3)])
    np.testing.assert_array_equal(found.tables["w"]["weights"], expected)
    np.testing.assert_array_equal(found.tables["w"]["z"], -expected)
    assert found.extra == {"batch_size": 3}


def test_a_checkpoint_exists_once_its_manifest_does(store: ObjectStore) -> None:
    """Parts alone are no checkpoint."""
    c.write_part(store, "part-0.bin", make_part())
    with pytest.raises(NotFoundError):
        c.read_checkpoint(store)


def test_a_checkpoint_from_memory_survives(store: ObjectStore) -> None:
    """What a client writes whole, it and shards read back."""
    tables = {"w": {"weights": np.ones((3, 2), np.float32), "squares": np.zeros((3, 2), np.float32)}}
    c.write_checkpoint(store, c.Checkpoint(tables=tables, extra={"a": 1}))
    found = c.read_checkpoint(store)
    assert found.extra == {"a": 1}
    assert {n: sorted(arrays) for n, arrays in found.tables.items()} == {"w": ["squares", "weights"]}
    np.testing.assert_array_equal(found.tables["w"]["weights"], tables["w"]["weights"])


def test_damage_is_named(store: ObjectStore) -> None:
    """A part that is missing, cut or changed, rows that are, and a wrong manifest are each told apart."""
    infos = [c.write_part(store, f"part-{i}.bin", make_part(first_row=4 * i)) for i in range(2)]
    c.write_manifest(store, infos[1:], {})
    with pytest.raises(CorruptDataError, match="rows 0 to 4 of w are missing"):
        c.read_checkpoint(store)
    c.write_manifest(store, infos, {})
    store.put("part-1.bin", ENCODED[:-1])
    with pytest.raises(CorruptDataError, match=r"part-1\.bin: is not the object"):
        c.read_checkpoint(store)
    store.delete("part-1.bin")
    with pytest.raises(NotFoundError, match=r"part-1\.bin"):
        c.read_checkpoint(store)
    for manifest, problem in [
        (b"{", r"checkpoint\.json"),
        (b"[]", "must be an object"),
        (b'{"version": 9, "parts": []}', "is of version 9"),
        (b'{"version": 1, "parts": [{"key": 3, "n_bytes": 0, "crc32": 0}]}', "key: must be str"),
    ]:
        store.put(c.MANIFEST_KEY, manifest)
        with pytest.raises(CorruptDataError, match=problem):
            c.read_checkpoint(store)


def _piece(first_row: int, **shapes: tuple[int, int]) -> c.Part:
    arrays = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    return c.Part(tables=(c.TablePart(name="w", first_row=first_row, arrays=arrays),))


@pytest.mark.parametrize(
    ("shapes", "problem"),
    [
        ({"z": (2, 1)}, "no weights"),
        ({"weights": (2, 1), "z": (1, 1)}, "several shapes"),
        ({"weights": (2, 1), "z": (2, 3)}, "several shapes"),
    ],
)
def test_arrays_of_a_table_must_fit_each_other(shapes: dict[str, tuple[int, int]], problem: str) -> None:
    """A table has weights, and states of the same shape."""
    with pytest.raises(CorruptDataError, match=f"here: table w has .*{problem}"):
        c.decode_part(c.encode_part(_piece(0, **shapes)), "here")


@pytest.mark.parametrize("shapes", [{"weights": (2, 3)}, {"weights": (2, 1), "z": (2, 1)}])
def test_parts_must_fit_each_other(store: ObjectStore, shapes: dict[str, tuple[int, int]]) -> None:
    """Pieces of a table have the same arrays and the same width, else the checkpoint is damaged."""
    parts = [_piece(0, weights=(2, 1)), _piece(2, **shapes)]
    c.write_manifest(store, [c.write_part(store, f"part-{i}.bin", part) for i, part in enumerate(parts)], {})
    with pytest.raises(CorruptDataError, match="the parts disagree on the arrays or the width of w"):
        c.read_checkpoint(store)


def test_a_part_outside_the_checkpoint_is_refused(store: ObjectStore) -> None:
    """A manifest cannot name objects that are not below it."""
    c.write_manifest(store, [c.PartInfo(key="../other", n_bytes=0, crc32=0)], {})
    with pytest.raises(CorruptDataError, match="names no usable part"):
        c.read_checkpoint(store)


@pytest.mark.parametrize("note", [b"", b"[]", b'{"key": 3}', b"\xff"])
def test_part_infos_that_make_no_sense_are_refused(store: ObjectStore, note: bytes) -> None:
    """What a shard left is checked before it gets into the manifest."""
    store.put("part-0.json", note)
    with pytest.raises(CorruptDataError, match=r"part-0\.json"):
        c.read_part_infos(store, 1)


def test_part_infos_are_taken_away(store: ObjectStore) -> None:
    """What shards leave for shard 0 is gone once it is in the manifest."""
    for shard in range(2):
        c.write_shard_part(store, shard, make_part())
    infos = c.read_part_infos(store, 2)
    assert [info.key for info in infos] == ["part-0.bin", "part-1.bin"]
    assert store.list() == ["part-0.bin", "part-1.bin"]


def test_the_newest_checkpoint_is_found(store: ObjectStore) -> None:
    """A folder of checkpoints stands for the one written last; a checkpoint stands for itself."""
    with pytest.raises(NotFoundError, match="there is no checkpoint"):
        c.resolve(URL)
    for name in ("step-1", "step-2"):
        c.write_checkpoint(store.child(name), c.Checkpoint(tables={}))
        c.write_latest(store, name)
    assert c.resolve(URL) == f"{URL}/step-2"
    assert c.resolve(f"{URL}/step-1") == f"{URL}/step-1"


@pytest.mark.parametrize(
    "name", [b"", b"\xff\xfe", b"../../other/model", b"/etc", b"a/b", b"step-1\n", b"x" * 101]
)
def test_the_newest_checkpoint_is_one_of_its_folder(store: ObjectStore, name: bytes) -> None:
    """What names another place, or nothing, is refused."""
    store.put("latest", name)
    with pytest.raises(CorruptDataError, match="/latest: names no checkpoint of this folder"):
        c.resolve(URL)


# Snapshots.


def snapshots(generation: int, shard: int = 0) -> Snapshots:
    """Return the snapshots of a shard, as one generation of it sees them."""
    return Snapshots(RunFolder(URL), shard, generation)


def test_the_newest_snapshot_is_the_one_restored(store: ObjectStore) -> None:
    """There is none at first; then always the last, and no other is kept, also over generations."""
    assert snapshots(1).newest() is None
    for generation in range(1, 4):
        made = snapshots(generation)
        made.newest()
        for value in (1.0, 2.0):
            made.write(make_part(value=generation + value))
        found = snapshots(generation + 1).newest()
        assert found is not None
        assert same(found, make_part(value=generation + 2.0))
        assert len(store.list("snapshots/0/")) == 2
    assert snapshots(1, shard=1).newest() is None
    snapshots(4).clear()
    assert snapshots(5).newest() is None
    assert store.list() == []


def test_a_death_while_writing_leaves_the_snapshot_before(store: ObjectStore) -> None:
    """A part without its word in the manifest is not restored, and does not disturb the next one."""
    snapshots(1).write(make_part(value=1.0))
    store.put("snapshots/0/000001-00000002.bin", ENCODED[:40])
    made = snapshots(2)
    found = made.newest()
    assert found is not None
    assert same(found, make_part(value=1.0))
    made.write(make_part(value=2.0))
    again = snapshots(3).newest()
    assert again is not None
    assert same(again, make_part(value=2.0))


def test_a_generation_that_was_replaced_writes_no_snapshot(store: ObjectStore) -> None:
    """A shard that was only slow, not dead, cannot put its past in the place of its successor's."""
    slow, successor = snapshots(1), snapshots(2)
    slow.write(make_part(value=1.0))
    successor.newest()
    successor.write(make_part(value=2.0))
    before = store.list()
    with pytest.raises(SupersededError):
        slow.write(make_part(value=3.0))
    found = snapshots(3).newest()
    assert found is not None
    assert same(found, make_part(value=2.0))
    assert store.list() == before


def test_a_damaged_snapshot_is_named(store: ObjectStore) -> None:
    """A snapshot that was changed, or whose manifest was, or that is gone, is one clear error each."""
    snapshots(1).write(make_part())
    manifest = store.get("snapshots/0/newest.json")
    key = f"snapshots/0/{json.loads(manifest)['key']}"
    data = store.get(key)
    store.put(key, data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CorruptDataError, match=key):
        snapshots(2).newest()
    store.delete(key)
    with pytest.raises(CirrusError, match=key):
        snapshots(2).newest()
    for wrong in (
        b"{",
        b"[]",
        b'{"key": "1-1.bin", "n_bytes": 1}',
        b'{"key": "x", "n_bytes": 1, "crc32": 1}',
    ):
        store.put("snapshots/0/newest.json", wrong)
        with pytest.raises(CorruptDataError, match=r"newest\.json"):
            snapshots(2).newest()
