"""The tables of one shard: a range of the rows of every table, with optimizer state, in flat arrays.

The flat arrays are what :mod:`cirrus.paramserver.kernels` works on; the methods here are for everything that happens
less than once a step: initial values, copies for snapshots, restoring.
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
#: Names of the state arrays of each optimizer, in the order of the flat arrays.
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
        return np.zeros((n_rows, table.width), np.float32)
    digest = hashlib.sha256(f"{seed}/{table.name}".encode()).digest()
    key = np.frombuffer(digest[:8], np.uint64)
    counter = np.arange(first_row * table.width, (first_row + n_rows) * table.width, dtype=np.uint64)
    uniform1 = _hash_to_unit(counter * np.uint64(2) + key)
    uniform2 = _hash_to_unit(counter * np.uint64(2) + np.uint64(1) + key)
    normal = np.sqrt(-2.0 * np.log(uniform1)) * np.cos(2.0 * np.pi * uniform2)
    return (normal * table.initial_scale).astype(np.float32).reshape(n_rows, table.width)


def _hash_to_unit(counter: NDArray[np.uint64]) -> NDArray[np.float64]:
    """SplitMix64's output function, to (0, 1]."""
    z = counter * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return ((z >> np.uint64(11)).astype(np.float64) + 1.0) / 2.0**53


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
        self.layout: NDArray[np.int64] = np.zeros((len(self.tables), 5), np.int64)
        self.hyper: Floats = np.zeros((len(self.tables), 6), np.float32)
        size = 0
        for i, table in enumerate(self.tables):
            first, last = table.boundaries[shard], table.boundaries[shard + 1]
            code = OPTIMIZER_CODES[table.optimizer.name]
            self.layout[i] = (size, first, last - first, table.width, code)
            self.hyper[i] = hyper_row(table.optimizer)
            size += (last - first) * table.width
        self.weights: Floats = np.zeros(size, np.float32)
        most_state = max((len(STATE_NAMES[t.optimizer.name]) for t in self.tables), default=0)
        self.states: tuple[Floats, Floats] = (
            np.zeros(size if most_state > 0 else 1, np.float32),
            np.zeros(size if most_state > 1 else 1, np.float32),
        )
        for i, table in enumerate(self.tables):
            if table.initial_scale:
                first_row, n_rows = int(self.layout[i, 1]), int(self.layout[i, 2])
                self._rows_of(self.weights, i)[:] = initial_values(table, first_row, n_rows, seed)

    def _rows_of(self, flat: Floats, table: int) -> Floats:
        first, _, n_rows, width, _ = (int(v) for v in self.layout[table])
        return flat[first : first + n_rows * width].reshape(n_rows, width)

    def copy_parts(self) -> tuple[TablePart, ...]:
        """Return a copy of everything, for a snapshot; the caller holds pushes back meanwhile."""
        parts = []
        for i, table in enumerate(self.tables):
            arrays = {"weights": self._rows_of(self.weights, i).copy()}
            for name, state in zip(STATE_NAMES[table.optimizer.name], self.states, strict=False):
                arrays[name] = self._rows_of(state, i).copy()
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
        targets = {"weights": self.weights}
        targets |= dict(zip(STATE_NAMES[table.optimizer.name], self.states, strict=False))
        for name, flat in targets.items():
            source = held.arrays.get(name)
            if source is None:
                continue
            if source.shape[1] != table.width:
                raise CorruptDataError(
                    f"table {table.name} of the checkpoint has width {source.shape[1]}, not {table.width}"
                )
            rows = source[start - held.first_row : stop - held.first_row]
            self._rows_of(flat, index)[start - first : stop - first] = rows
