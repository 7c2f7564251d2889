"""The kernels: every optimizer against a dense reference, and every way a push can be wrong."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ps_reference import DenseTable

from cirrus.config import OPTIMIZER_PARAMS, OptimizerConfig, TableConfig
from cirrus.paramserver import kernels
from cirrus.paramserver import protocol as p
from cirrus.paramserver.codec import encode
from cirrus.paramserver.tables import ShardTables

EPOCH, LEASE, N_LEASES = 2, 1, 4
N_ROWS = 2000


def table(
    name: str = "w",
    optimizer: str = "sgd",
    *,
    width: int = 1,
    n_rows: int = N_ROWS,
    boundaries: tuple[int, ...] | None = None,
    params: Mapping[str, float] | None = None,
    initial_scale: float = 0.5,
    **rates: float,
) -> TableConfig:
    """Return the config of a table, whole on one shard unless told otherwise."""
    return TableConfig(
        name=name,
        n_rows=n_rows,
        width=width,
        optimizer=OptimizerConfig(name=optimizer, params=params or {}, **rates),
        boundaries=boundaries or (0, n_rows),
        initial_scale=initial_scale,
    )


def test_the_version_is_that_of_the_protocol() -> None:
    """Kernels have it compiled in, and are compiled anew only when their file changes."""
    assert kernels._MAGIC_VERSION == p.MAGIC | p.VERSION << 16


class Bench:
    """One shard's tables and everything that a connection hands to the kernel."""

    def __init__(self, *tables: TableConfig, shard: int = 0, scratch_rows: int = 100_000) -> None:
        self.tables = ShardTables(tables, shard, seed=0)
        self.marks = np.zeros(N_LEASES, np.int32)
        self.counters = np.zeros(kernels.N_COUNTERS, np.int64)
        self.remembered_keys = np.full((p.REMEMBERED_PULLS, 1 + 2 * len(tables)), -1, np.int64)
        self.remembered = np.zeros((p.REMEMBERED_PULLS, 1024), np.uint32)
        self.scratch = np.empty(scratch_rows, np.uint32)
        self.out = np.zeros(4, np.int64)

    def remember(self, slot: int, request: int, rows: Mapping[int, Iterable[int]]) -> None:
        """Note the local rows of a pull, by table."""
        start = 0
        self.remembered_keys[slot] = -1
        self.remembered_keys[slot, 2::2] = 0
        self.remembered_keys[slot, 0] = request
        for number, found in rows.items():
            held = np.array(list(found), np.uint32)
            self.remembered[slot, start : start + len(held)] = held
            self.remembered_keys[slot, 1 + 2 * number : 3 + 2 * number] = start, len(held)
            start += len(held)

    def apply(self, data: bytes, *, attached: tuple[int, int] = (EPOCH, LEASE), start: int = 0) -> int:
        """Run the kernel over a receive buffer; return why it stopped."""
        buffer = np.zeros(start + len(data) + 64, np.uint8)
        buffer[start : start + len(data)] = np.frombuffer(data, np.uint8)
        kernels.apply_pushes(
            buffer, start, start + len(data), self.tables.layout, self.tables.hyper, self.tables.values,
            self.marks, *attached, self.remembered_keys, self.remembered, self.scratch, self.counters, True,
            self.out,
        )  # fmt: skip
        self.out[kernels.OUT_POSITION] -= start
        return int(self.out[kernels.OUT_STATUS])

    def array(self, number: int, name: str = "weights") -> np.ndarray[Any, np.dtype[np.float32]]:
        """Return a table's weights or states."""
        return np.array(self.tables.parts(self.tables.values)[number].arrays[name])


def frame(
    *sections: p.Section, position: int = 0, step: int = 0, request: int = 1, epoch: int = EPOCH,
    lease: int = LEASE, **options: bool,
) -> bytes:  # fmt: skip
    """Return one push."""
    push = p.Push(epoch=epoch, lease=lease, position=position, step=step, sections=sections)
    return encode(push, request, **options)


def some_rows(rng: np.random.Generator, most: int, n_rows: int = N_ROWS) -> p.Ids:
    """Return sorted unique rows."""
    return np.sort(rng.choice(n_rows, rng.integers(1, most), replace=False)).astype(np.uint32)


def section(number: int, rows: Iterable[int], width: int = 1, value: float = 1.0) -> p.Section:
    """Return a section whose gradient is one number everywhere."""
    ids = np.array(list(rows), np.uint32)
    return p.Section(table=number, ids=ids, values=np.full(len(ids) * width, value, np.float32))


# Optimizers.

REGULARISATIONS = [{}, {"l1": 0.05}, {"l2": 0.1}, {"l1": 0.05, "l2": 0.1}]
OPTIMIZERS: list[tuple[str, dict[str, float]]] = [
    ("sgd", {}),
    ("sgd", {"decay": 0.1}),
    ("momentum", {"momentum": 0.7}),
    ("momentum", {"momentum": 0.7, "decay": 0.1}),
    ("nesterov", {"momentum": 0.7, "decay": 0.1}),
    ("adagrad", {}),
    ("adam", {"beta1": 0.8, "beta2": 0.95}),
    ("ftrl", {"beta": 0.5}),
    ("add", {}),
]


def test_the_table_has_every_optimizer() -> None:
    """No optimizer that a config may name is left out of the tests below."""
    assert {name for name, _ in OPTIMIZERS} == set(OPTIMIZER_PARAMS)


@pytest.mark.parametrize("regularisation", REGULARISATIONS, ids=str)
@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize(("name", "params"), OPTIMIZERS)
def test_an_optimizer_agrees_with_its_formula(
    name: str, params: dict[str, float], width: int, regularisation: dict[str, float]
) -> None:
    """Thirty pushes of up to 1,500 rows, several tiles each, leave the weights of a float64 reference."""
    config = table(optimizer=name, width=width, params=params, learning_rate=0.2, **regularisation)
    bench, reference = Bench(config), DenseTable(config)
    rng = np.random.default_rng(1)
    frames = []
    for position in range(30):
        rows = some_rows(rng, 1500)
        gradient = rng.normal(size=(len(rows), width)).astype(np.float32)
        step = 100 + position
        reference.step(rows, gradient, step)
        frames.append(frame(p.Section(table=0, ids=rows, values=gradient), position=position, step=step))
    assert bench.apply(b"".join(frames)) == kernels.NEED_MORE
    np.testing.assert_allclose(bench.array(0), reference.weights, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(("name", "params"), OPTIMIZERS)
@pytest.mark.parametrize(
    ("width", "n_rows"),
    [
        *((width, n) for width in (1, 3) for n in (1, 170, 171, 511, 512, 513, 1024)),
        *((width, 3) for width in (511, 512, 513, 1025)),
    ],
)
def test_tiles_meet_without_gap_or_overlap(
    name: str, params: dict[str, float], width: int, n_rows: int
) -> None:
    """Around the size of a tile every row of a push is updated once, and no other row at all."""
    config = table(optimizer=name, width=width, params=params)
    bench, reference = Bench(config), DenseTable(config)
    rng = np.random.default_rng(n_rows)
    rows = np.sort(rng.choice(N_ROWS, n_rows, replace=False)).astype(np.uint32)
    gradient = rng.normal(size=(n_rows, width)).astype(np.float32)
    before = bench.array(0)
    bench.apply(frame(p.Section(table=0, ids=rows, values=gradient)))
    reference.step(rows, gradient, 0)
    np.testing.assert_allclose(bench.array(0), reference.weights, rtol=1e-5, atol=1e-6)
    untouched = np.setdiff1d(np.arange(N_ROWS), rows)
    np.testing.assert_array_equal(bench.array(0)[untouched], before[untouched])


def test_zero_gradients_move_nothing_but_momentum() -> None:
    """A row that is pushed with a zero gradient and no regularisation keeps its weight to the bit."""
    for name in ("sgd", "adagrad", "adam", "add"):
        bench = Bench(table(optimizer=name))
        before = bench.array(0)
        bench.apply(frame(section(0, range(N_ROWS), value=0.0)))
        np.testing.assert_array_equal(bench.array(0), before)


@pytest.mark.parametrize("name", ["momentum", "adagrad", "adam", "ftrl"])
def test_states_lie_where_snapshots_look_for_them(name: str) -> None:
    """What the kernels keep beside a weight is what a snapshot saves under the state's name."""
    config = table(optimizer=name, width=3, initial_scale=0.0, learning_rate=0.1)
    bench, reference = Bench(config), DenseTable(config)
    rows = np.arange(10, 30, dtype=np.uint32)
    gradient = np.linspace(-1, 1, 60, dtype=np.float32).reshape(20, 3)
    bench.apply(frame(p.Section(table=0, ids=rows, values=gradient)))
    reference.step(rows, gradient, 0)
    names = {
        "momentum": ("velocity",),
        "adagrad": ("squares",),
        "adam": ("mean", "variance"),
        "ftrl": ("z", "squares"),
    }
    for state, expected in zip(names[name], (reference.first, reference.second), strict=False):
        np.testing.assert_allclose(bench.array(0, state), expected, rtol=1e-5, atol=1e-6)


# Frames.


def mixed_tables() -> tuple[TableConfig, ...]:
    """Return tables of several widths, sizes and optimizers, the second half of which is this shard's."""
    return (
        table("a", "sgd", boundaries=(0, 500, N_ROWS)),
        table("b", "ftrl", width=3, n_rows=70, boundaries=(0, 30, 70), l1=0.01),
        table("c", "adam", width=2, n_rows=9, boundaries=(0, 0, 9)),
    )


def test_many_frames_of_many_sections_are_one_call() -> None:
    """Pushes of several tables, in one buffer, are all applied to this shard's ranges, in order."""
    configs = mixed_tables()
    bench, references = Bench(*configs, shard=1), [DenseTable(config) for config in configs]
    rng = np.random.default_rng(0)
    frames = []
    for position in range(50):
        sections = []
        for number, config in enumerate(configs):
            first = config.boundaries[1]
            rows = first + some_rows(rng, 9, config.n_rows - first)
            gradient = rng.normal(size=(len(rows), config.width)).astype(np.float32)
            references[number].step(rows, gradient, position)
            sections.append(p.Section(table=number, ids=rows.astype(np.uint32), values=gradient))
        rng.shuffle(sections)
        frames.append(frame(*sections, position=position, step=position, request=position + 10))
    data = b"".join(frames)
    assert bench.apply(data) == kernels.NEED_MORE
    assert bench.out[:3].tolist() == [len(data), 59, 50]
    assert bench.marks.tolist() == [0, 50, 0, 0]
    assert bench.counters[kernels.STEPS_APPLIED] == 50
    for number, config in enumerate(configs):
        expected = references[number].weights[config.boundaries[1] :]
        np.testing.assert_allclose(bench.array(number), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("start", range(8))
def test_frames_may_lie_anywhere_in_the_buffer(start: int) -> None:
    """Frames behind a message of odd length are applied as well as aligned ones."""
    config = table(optimizer="add", width=3)
    bench, reference = Bench(config), DenseTable(config)
    rows = np.array([1, 400, 1999], np.uint32)
    gradient = np.arange(9, dtype=np.float32)
    reference.step(rows, gradient, 0)
    bench.apply(frame(p.Section(table=0, ids=rows, values=gradient)), start=start)
    np.testing.assert_allclose(bench.array(0), reference.weights, rtol=1e-6)


def test_a_frame_is_applied_when_its_last_byte_is_there() -> None:
    """Of a buffer that ends inside a frame the whole frames are applied, and the rest is waited for."""
    first = frame(section(0, [1, 5]), position=0, request=7)
    second = frame(section(0, [2]), position=1, request=8)
    data = first + second
    for length in range(len(data)):
        bench = Bench(table())
        assert bench.apply(data[:length]) == kernels.NEED_MORE
        whole = length >= len(first)
        assert bench.out[:3].tolist() == ([len(first), 7, 1] if whole else [0, 0, 0])
        assert bench.marks[LEASE] == whole


@pytest.mark.parametrize(
    "rows",
    [
        [3],
        [3, 4, 5],
        [0, 255],
        [0, 256, 257],
        [N_ROWS - 1],
        range(N_ROWS),
        [],
        [5, 70005, 99999],
    ],
    ids=str,
)
def test_every_encoding_of_ids_names_the_same_rows(rows: Iterable[int]) -> None:
    """Ranges and differences of 8, 16 and 32 bits touch exactly the rows that were meant."""
    bench = Bench(table(optimizer="add", n_rows=100_000, initial_scale=0.0))
    assert bench.apply(frame(section(0, rows))) == kernels.NEED_MORE
    assert np.flatnonzero(bench.array(0)[:, 0]).tolist() == list(rows)
    assert bench.counters[kernels.ROWS_PUSHED] == len(list(rows))


def test_a_push_may_name_a_pull() -> None:
    """A section that names a pull touches that pull's rows of its table, and of no other table."""
    bench = Bench(table("a", "add", initial_scale=0.0), table("b", "add", width=2, initial_scale=0.0))
    bench.remember(3, 70, {0: [5, 9], 1: [1, 2, 3]})
    bench.remember(4, 71, {1: [8]})
    ones = [np.ones(n, np.float32) for n in (2, 6, 0)]
    data = frame(
        p.Section(table=1, pull=70, values=ones[1]),
        p.Section(table=0, pull=70, values=ones[0]),
        p.Section(table=0, pull=71, values=ones[2]),
    )
    assert bench.apply(data) == kernels.NEED_MORE
    assert np.flatnonzero(bench.array(0)[:, 0]).tolist() == [5, 9]
    assert np.flatnonzero(bench.array(1)[:, 1]).tolist() == [1, 2, 3]
    assert bench.counters[kernels.ROWS_PUSHED] == 5


def test_a_push_that_names_a_forgotten_pull_is_not_applied() -> None:
    """The shard has to ask for the ids, and until then nothing of the step has happened."""
    bench = Bench(table("a", "add", initial_scale=0.0))
    bench.remember(0, 70, {0: [5]})
    one = np.ones(1, np.float32)
    data = frame(section(0, [1])) + frame(
        p.Section(table=0, pull=70, values=one), p.Section(table=0, pull=99, values=one), position=1
    )
    assert bench.apply(data) == kernels.NEED_IDS
    assert bench.out[kernels.OUT_FRAMES] == 1
    assert bench.marks[LEASE] == 1
    assert np.flatnonzero(bench.array(0)).tolist() == [1]


# What is not applied.


def test_a_step_is_applied_once() -> None:
    """A push below the mark is dropped and counted, and answered like one that was applied."""
    bench = Bench(table(optimizer="add", initial_scale=0.0))
    data = frame(section(0, [1]), request=5)
    bench.apply(data + data)
    assert bench.apply(data) == kernels.NEED_MORE
    assert bench.out[:3].tolist() == [len(data), 5, 1]
    assert bench.array(0)[1, 0] == 1
    assert bench.counters[[kernels.STEPS_APPLIED, kernels.DUPLICATES_DROPPED]].tolist() == [1, 2]


def test_marks_of_leases_are_apart() -> None:
    """Another lease's push, and another epoch's, belongs to a connection that is attached to it."""
    for key in ({"epoch": EPOCH + 1}, {"lease": LEASE + 1}, {"epoch": 0}, {"lease": 2**32 - 1}):
        bench = Bench(table(optimizer="add", initial_scale=0.0))
        data = frame(section(0, [1])) + frame(section(0, [2]), position=1, **key)
        assert bench.apply(data) == kernels.NOT_ATTACHED
        assert bench.out[kernels.OUT_FRAMES] == 1
        assert np.flatnonzero(bench.array(0)).tolist() == [1]
    bench = Bench(table())
    assert bench.apply(frame(section(0, [1])), attached=(-1, -1)) == kernels.NOT_ATTACHED


def test_the_kernel_leaves_other_frames_alone() -> None:
    """It stops in front of what is not a plain push: other kinds, compressed and float16 payloads."""
    ones = p.Section(table=0, ids=np.arange(0, 900, 3, dtype=np.uint32), values=np.ones(300, np.float32))
    others = [
        encode(p.MarksRequest(), 1),
        frame(ones, position=1, compressed=True),
        frame(ones, position=1, float16=True),
        b"XX" + frame(ones, position=1)[2:],
    ]
    for other in others:
        bench = Bench(table(optimizer="add", initial_scale=0.0))
        first = frame(section(0, [1999]))
        assert bench.apply(first + other) == kernels.OTHER_FRAME
        assert bench.out[kernels.OUT_POSITION] == len(first)
        assert np.flatnonzero(bench.array(0)).tolist() == [1999]


SectionHead = struct.Struct("<HBBIIIII")


def raw_frame(
    *sections: bytes, n_sections: int | None = None, extra: bytes = b"", position: int = 0
) -> bytes:
    """Return a push built byte by byte."""
    count = len(sections) if n_sections is None else n_sections
    body = struct.pack("<IIIHHQ", EPOCH, LEASE, position, count, 0, 0) + b"".join(sections) + extra
    return p.HEADER.pack(p.MAGIC, p.VERSION, p.Kind.PUSH, 1, len(body), 0) + body


def raw_section(
    *, number: int = 0, id_encoding: int = p.IdEncoding.RANGE, count: int = 1, first: int = 0,
    id_payload: bytes = b"", n_values: int | None = None, id_bytes: int | None = None,
) -> bytes:  # fmt: skip
    """Return a section built byte by byte."""
    value_payload = bytes(4 * (count if n_values is None else n_values))
    n_id_bytes = len(id_payload) if id_bytes is None else id_bytes
    head = SectionHead.pack(
        number, id_encoding, 0, count, first, n_id_bytes, len(value_payload), len(value_payload)
    )
    return head + b"".join(payload + bytes(-len(payload) % 8) for payload in (id_payload, value_payload))


GOOD = raw_section(first=7)
WRONG_SECTIONS = [
    ("an id above the table", raw_section(first=N_ROWS), kernels.ID_OUT_OF_RANGE),
    ("a range that ends above", raw_section(first=N_ROWS - 1, count=2), kernels.ID_OUT_OF_RANGE),
    ("the largest id", raw_section(first=2**32 - 1), kernels.ID_OUT_OF_RANGE),
    ("differences that end above", raw_section(
        id_encoding=p.IdEncoding.DELTA8, count=3, first=N_ROWS - 3, id_payload=b"\1\2"
    ), kernels.ID_OUT_OF_RANGE),
    ("differences that wrap around", raw_section(
        id_encoding=p.IdEncoding.DELTA32, count=3, first=5, id_payload=b"\xff\xff\xff\xff\1\0\0\0"
    ), kernels.ID_OUT_OF_RANGE),
    ("an id twice", raw_section(
        id_encoding=p.IdEncoding.DELTA8, count=3, id_payload=b"\1\0"
    ), kernels.IDS_NOT_ASCENDING),
    ("an id twice in 16 bits", raw_section(
        id_encoding=p.IdEncoding.DELTA16, count=2, id_payload=b"\0\0"
    ), kernels.IDS_NOT_ASCENDING),
    ("an id twice in 32 bits", raw_section(
        id_encoding=p.IdEncoding.DELTA32, count=2, id_payload=b"\0\0\0\0"
    ), kernels.IDS_NOT_ASCENDING),
    ("a table that is not there", raw_section(number=1), kernels.BAD_PUSH),
    ("too few values", raw_section(count=3, n_values=2), kernels.BAD_PUSH),
    ("too many values", raw_section(count=3, n_values=4), kernels.BAD_PUSH),
    ("more rows than the connection has room for", raw_section(count=101), kernels.BAD_PUSH),
    ("too few differences", raw_section(
        id_encoding=p.IdEncoding.DELTA8, count=3, id_payload=b"\1"
    ), kernels.BAD_PUSH),
    ("a range with a payload", raw_section(id_payload=b"\1"), kernels.BAD_PUSH),
    ("no rows with a payload", raw_section(count=0, id_payload=b"\1"), kernels.BAD_PUSH),
    ("no ids at all", raw_section(id_encoding=p.IdEncoding.NONE), kernels.BAD_PUSH),
    ("an encoding that is not there", raw_section(id_encoding=77), kernels.BAD_PUSH),
    ("a payload beyond the frame", raw_section(
        id_encoding=p.IdEncoding.DELTA8, count=3, id_payload=b"\1\1", id_bytes=2**32 - 1
    ), kernels.BAD_PUSH),
]  # fmt: skip


@pytest.mark.parametrize(("_", "wrong", "status"), WRONG_SECTIONS, ids=[case[0] for case in WRONG_SECTIONS])
@pytest.mark.parametrize("good_ones", [0, 1])
def test_a_wrong_push_changes_nothing(_: str, wrong: bytes, status: int, good_ones: int) -> None:
    """A push with one wrong section, behind a good one or not, leaves tables, marks and counters alone."""
    bench = Bench(table(optimizer="add"), scratch_rows=100)
    before = bench.tables.values.copy()
    assert bench.apply(raw_frame(*[GOOD] * good_ones, wrong)) == status
    assert bench.out[:3].tolist() == [0, 0, 0]
    np.testing.assert_array_equal(bench.tables.values, before)
    assert not bench.marks.any()
    assert not bench.counters.any()


@pytest.mark.parametrize(
    "data",
    [
        raw_frame(GOOD, n_sections=2),
        raw_frame(GOOD, n_sections=0),
        raw_frame(GOOD, extra=bytes(8)),
        raw_frame(GOOD, extra=bytes(4)),
        raw_frame(*[raw_section(count=0)] * 65),
        p.HEADER.pack(p.MAGIC, p.VERSION, p.Kind.PUSH, 1, 16, 0) + bytes(16),
    ],
    ids=[
        "a section missing",
        "a section too much",
        "bytes left over",
        "not padded",
        "65 sections",
        "cut key",
    ],
)
def test_a_frame_that_does_not_add_up_changes_nothing(data: bytes) -> None:
    """Sections have to fill a frame exactly, and there are no more than 64 of them."""
    bench = Bench(table(optimizer="add"))
    before = bench.tables.values.copy()
    assert bench.apply(data) == kernels.BAD_PUSH
    np.testing.assert_array_equal(bench.tables.values, before)
    assert not bench.marks.any()


def test_a_position_must_not_be_left_out() -> None:
    """A push beyond the mark is an error: the one before it must have been lost on the way."""
    bench = Bench(table(optimizer="add", initial_scale=0.0))
    assert bench.apply(frame(section(0, [1])) + frame(section(0, [2]), position=2)) == kernels.GAP
    assert bench.marks[LEASE] == 1
    assert np.flatnonzero(bench.array(0)).tolist() == [1]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [0, 700, 1499])
def test_numbers_that_are_none_are_refused(bad: float, where: int) -> None:
    """A section with NaN or infinity is left out and counted; the others, and the mark, go on."""
    bench = Bench(table("a", "add", initial_scale=0.0), table("b", "add", initial_scale=0.0))
    poisoned = section(0, range(1500))
    assert poisoned.values is not None
    poisoned.values[where] = bad
    assert bench.apply(frame(poisoned, section(1, [3]))) == kernels.NEED_MORE
    assert not bench.array(0).any()
    assert np.flatnonzero(bench.array(1)).tolist() == [3]
    assert bench.marks[LEASE] == 1
    assert bench.counters[[kernels.STEPS_APPLIED, kernels.NONFINITE_REFUSED]].tolist() == [1, 1]


def test_all_finite_knows_every_kind_of_number() -> None:
    """The largest, the smallest, zeros and denormals are finite; NaN and infinity of either sign are not."""
    info = np.finfo(np.float32)
    fine = np.array([0.0, -0.0, 1.0, info.max, info.min, info.tiny, info.smallest_subnormal], np.float32)
    assert kernels.all_finite(fine)
    assert kernels.all_finite(fine[:0])
    for bad in (np.nan, -np.nan, np.inf, -np.inf):
        for where in range(len(fine)):
            spoilt = fine.copy()
            spoilt[where] = bad
            assert not kernels.all_finite(spoilt)


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_damaged_pushes_stay_within_the_tables(data: st.DataObject) -> None:
    """Whatever bits of a push are changed, the kernel stops or applies it, and writes to its tables alone."""
    configs = mixed_tables()
    bench = Bench(*configs, shard=1, scratch_rows=64)
    bench.remember(0, 9, {0: [1, 2], 1: [3]})
    good = frame(
        section(0, [500, 700, 1700]),
        section(1, [30, 31], 3),
        p.Section(table=2, pull=9, values=np.empty(0, np.float32)),
    )
    damaged = bytearray(good)
    for _ in range(data.draw(st.integers(1, 8))):
        bit = data.draw(st.integers(8 * p.HEADER.size, 8 * len(damaged) - 1))
        damaged[bit // 8] ^= 1 << bit % 8
    # A guard around the flat array, to see what is written beyond it.
    size = bench.tables.values.size
    guarded = np.full(size + 2000, 7.0, np.float32)
    guarded[1000 : 1000 + size] = bench.tables.values
    bench.tables.values = guarded[1000 : 1000 + size]
    status = bench.apply(bytes(damaged))
    assert 0 <= status <= kernels.NEED_IDS
    assert bench.out[kernels.OUT_FRAMES] == (status == kernels.NEED_MORE)
    assert (guarded[:1000] == 7).all()
    assert (guarded[1000 + size :] == 7).all()


# Rows and pulls.


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("name", ["sgd", "adagrad", "ftrl"])
def test_gathered_rows_are_the_weights(name: str, width: int) -> None:
    """A pull copies weights alone, whatever states lie between them."""
    bench = Bench(table("x", width=2), table("w", name, width=width))
    rows = np.array([0, 7, 1999], np.uint32)
    found = np.empty(3 * width, np.float32)
    kernels.gather_rows(bench.tables.layout[1], bench.tables.values, rows, found)
    np.testing.assert_array_equal(found.reshape(3, width), bench.array(1)[rows])


def test_ids_become_local_rows() -> None:
    """Rows on the wire are numbered in the whole table; a shard that owns 500 to 600 takes no others."""
    out = np.zeros(4, np.uint32)
    for first, count, status in [(500, 4, 0), (499, 2, 1), (596, 4, 0), (597, 4, 1), (600, 1, 1)]:
        found = kernels.decode_rows(
            np.zeros(8, np.uint8), 0, 0, int(p.IdEncoding.RANGE), count, first, 500, 100, out
        )
        assert found == (kernels.ID_OUT_OF_RANGE if status else kernels.NEED_MORE)
        if not status:
            assert out.tolist() == [first - 500 + i for i in range(4)]


def test_two_threads_may_push_at_once() -> None:
    """Pushes of different rows by several threads do not disturb each other, and the lock is not held."""
    config = table(optimizer="ftrl", l1=0.01)
    bench, reference = Bench(config), DenseTable(config)
    rng = np.random.default_rng(0)
    halves = [np.arange(0, N_ROWS, 2, dtype=np.uint32), np.arange(1, N_ROWS, 2, dtype=np.uint32)]
    gradients = [rng.normal(size=(100, 1000)).astype(np.float32) for _ in halves]
    others, buffers = [], []
    for lease, (rows, found) in enumerate(zip(halves, gradients, strict=True)):
        other = Bench(config)
        other.tables = bench.tables
        others.append(other)
        for step in range(100):
            reference.step(rows, found[step], step)
        buffers.append(
            b"".join(
                frame(p.Section(table=0, ids=rows, values=found[i]), position=i, step=i, lease=lease)
                for i in range(100)
            )
        )
    threads = [
        threading.Thread(target=other.apply, args=(buffers[lease],), kwargs={"attached": (EPOCH, lease)})
        for lease, other in enumerate(others)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [int(o.counters[kernels.STEPS_APPLIED]) for o in others] == [100, 100]
    np.testing.assert_allclose(bench.array(0), reference.weights, rtol=2e-5, atol=2e-5)
