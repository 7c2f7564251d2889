"""The tables of one shard: a range of the rows of every table, with optimizer state, in one flat array.

The flat array is what :mod:`cirrus.paramserver.kernels` works on; the methods here are for everything that
happens less than once a step: initial values, copies for snapshots, restoring.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from cirrus.config import OPTIMIZER_PARAMS, OptimizerConfig, TableConfig
from cirrus.errors import CorruptDataError
from cirrus.paramserver import kernels
from cirrus.paramserver.checkpoint import Part, TablePart
from cirrus.paramserver.ftrl import ftrl_z

Floats = NDArray[np.float32]

OPTIMIZER_CODES = {
    "sgd": kernels.SGD,
    "momentum": kernels.MOMENTUM,
    "nesterov": kernels.NESTEROV,
    "adagrad": kernels.ADAGRAD,
    "adam": kernels.ADAM,
    "ftrl": kernels.FTRL,
    "add": kernels.ADD,
}
#: Names of the state values of each optimizer, in the order in which they follow a weight.
STATE_NAMES: dict[str, tuple[str, ...]] = {
    "sgd": (),
    "momentum": ("velocity",),
    "nesterov": ("velocity",),
    "adagrad": ("squares",),
    "adam": ("mean", "variance"),
    "ftrl": ("z", "squares"),
    "add": (),
}


def hyper_row(optimizer: OptimizerConfig) -> Floats:
    """Return an optimizer's parameters as the kernels want them, float32 ``(6,)``."""
    params = [optimizer.params[name] for name in OPTIMIZER_PARAMS[optimizer.name]]
    row = np.zeros(6, np.float32)
    row[: 3 + len(params)] = [optimizer.learning_rate, optimizer.l1, optimizer.l2, *params]
    return row


def initial_values(table: TableConfig, first_row: int, n_rows: int, seed: int) -> Floats:
    """Return starting values of some rows: a pure function of (seed, table, row), however the table is cut.

    Normal values by Box and Muller (1958) from counters hashed with SplitMix64 (Steele et al., 2014).

    Returns:
        float32 ``(n_rows, width)``.
    """
    if table.initial_scale == 0:
        return np.full((n_rows, table.width), table.initial_mean, np.float32)
    digest = hashlib.sha256(f"{seed}/{table.name}".encode()).digest()
    key = np.frombuffer(digest[:8], np.uint64)
    counter = np.arange(first_row * table.width, (first_row + n_rows) * table.width, dtype=np.uint64)
    uniform1 = _hash_to_unit(counter * np.uint64(2) + key)
    uniform2 = _hash_to_unit(counter * np.uint64(2) + np.uint64(1) + key)
    normal = np.sqrt(-2.0 * np.log(uniform1)) * np.cos(2.0 * np.pi * uniform2)
    values = normal * table.initial_scale + table.initial_mean
    return values.astype(np.float32).reshape(n_rows, table.width)


def _hash_to_unit(counter: NDArray[np.uint64]) -> NDArray[np.float64]:
    """SplitMix64's output function, to (0, 1]."""
    z = counter * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return ((z >> np.uint64(11)).astype(np.float64) + 1.0) / 2.0**53


def _stride(table: TableConfig) -> int:
    """Return the floats a value: itself and its state."""
    n_states = len(STATE_NAMES[table.optimizer.name])
    # One weight and two states are padded to four floats, so that they do not span two cache lines.
    return 4 if n_states == 2 and table.width == 1 else 1 + n_states


def table_bytes(tables: Sequence[TableConfig], shard: int) -> int:
    """Return the memory that a shard's tables take, in bytes."""
    n_values = 0
    for table in tables:
        n_rows = table.boundaries[shard + 1] - table.boundaries[shard]
        n_values += n_rows * table.width * _stride(table)
    return 4 * n_values


class ShardTables:
    """Weights and optimizer state of one shard.

    Args:
        tables: All tables of the run.
        shard: Which range of each this shard owns.
        seed: For initial values.
    """

    def __init__(self, tables: Sequence[TableConfig], shard: int, seed: int) -> None:
        self.tables = tuple(tables)
        self.shard = shard
        self.layout: NDArray[np.int64] = np.zeros((len(self.tables), 6), np.int64)
        self.hyper: Floats = np.zeros((len(self.tables), 6), np.float32)
        size = 0
        for i, table in enumerate(self.tables):
            first, last = table.boundaries[shard], table.boundaries[shard + 1]
            stride = _stride(table)
            code = OPTIMIZER_CODES[table.optimizer.name]
            self.layout[i] = (size, first, last - first, table.width, stride, code)
            self.hyper[i] = hyper_row(table.optimizer)
            size += (last - first) * table.width * stride
        # Not np.zeros: numpy asks for huge pages for np.empty alone, and a sparse push meets a new page every
        # few rows (measured: AdaGrad on 10,000 of 2**20 rows in half the time).
        self.values: Floats = np.empty(size, np.float32)
        self.values.fill(0.0)
        for i, table in enumerate(self.tables):
            if table.initial_scale or table.initial_mean:
                first_row, n_rows = int(self.layout[i, 1]), int(self.layout[i, 2])
                view, values = self._view(self.values, i), initial_values(table, first_row, n_rows, seed)
                view[:, :, 0] = values
                if table.optimizer.name == "ftrl":
                    # FTRL takes a weight from its state: without this the first gradient would undo it.
                    view[:, :, 1] = ftrl_z(values, table.optimizer)

    def _view(self, flat: Floats, table: int) -> Floats:
        """Return a table's part of a flat array as ``(n_rows, width, stride)``, in memory width last."""
        first, _, n_rows, width, stride, _ = (int(v) for v in self.layout[table])
        rows = flat[first : first + n_rows * width * stride].reshape(n_rows, stride, width)
        return rows.transpose(0, 2, 1)

    def parts(self, flat: Floats) -> tuple[TablePart, ...]:
        """Take a copy of ``values`` apart, for a snapshot.

        Copying is quick and happens while pushes wait; this need not.
        """
        parts = []
        for i, table in enumerate(self.tables):
            view = self._view(flat, i)
            names = ("weights", *STATE_NAMES[table.optimizer.name])
            arrays = {name: np.ascontiguousarray(view[:, :, k]) for k, name in enumerate(names)}
            parts.append(TablePart(name=table.name, first_row=int(self.layout[i, 1]), arrays=arrays))
        return tuple(parts)

    def restore(self, parts: Iterable[Part]) -> None:
        """Take over whatever rows of ours the parts of a checkpoint hold; parts may be cut in any way.

        State arrays of another optimizer are left out: the weights carry on, the state starts anew.

        Raises:
            CorruptDataError: A table has another width.
        """
        for part in parts:
            for held in part.tables:
                for i, table in enumerate(self.tables):
                    if table.name == held.name:
                        self._restore_table(i, table, held)

    def _restore_table(self, index: int, table: TableConfig, held: TablePart) -> None:
        first, n_rows = int(self.layout[index, 1]), int(self.layout[index, 2])
        start = max(first, held.first_row)
        stop = min(first + n_rows, held.first_row + held.n_rows)
        if start >= stop:
            return
        view = self._view(self.values, index)
        for k, name in enumerate(("weights", *STATE_NAMES[table.optimizer.name])):
            source = held.arrays.get(name)
            if source is None:
                continue
            if source.shape[1] != table.width:
                raise CorruptDataError(
                    f"table {table.name} of the checkpoint has width {source.shape[1]}, not {table.width}"
                )
            rows = source[start - held.first_row : stop - held.first_row]
            view[start - first : stop - first, :, k] = rows
