"""The stateless function over one chunk, and the worker that keeps taking chunks until none is left.

Workers of a job share the chunks through claims in the job's folder (:mod:`~cirrus.worker_runtime.map_job`).
A chunk's result is written whole or not at all, and last: a worker that is killed leaves a claim, which the
client removes, and perhaps a chunk that the next worker writes again with the same content.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any

import numpy as np

from cirrus.chunks import Block, ChunkWriter, iterate_chunk, read_manifest
from cirrus.errors import ConfigError, DataError
from cirrus.storage import open_store
from cirrus.worker_runtime.column_map import BlockRewriter, ColumnMap
from cirrus.worker_runtime.column_statistics import ColumnStatistics
from cirrus.worker_runtime.map_job import (
    CLAIMS,
    FUNCTION_KEY,
    RESULTS,
    STOP_KEY,
    JobFolder,
    MapJob,
    pack_arrays,
    unpack_arrays,
)
from cirrus.worker_runtime.map_values import call_function, load_functions, pack_value, pack_values
from cirrus.worker_runtime.session import Clock

#: What comes of a chunk is one chunk as long as it gets no larger than this, and several else.
OUTPUT_CHUNK_BYTES = 24 * 2**20
#: A user's function is given so few rows that it returns no more entries than this at a time: some 50 MB.
MAX_CALL_ENTRIES = 2**20
#: So many rows tell how many entries a function makes of one.
PROBE_ROWS = 16

#: Makes blocks of a block: none, one or several.
Rewrite = Callable[[Block], Iterable[Block]]
Task = Callable[[int, Iterable[Block]], bytes]


class MapWorker:
    """Does chunks of a job until there are none, or its time is over.

    Args:
        job_url: The job's folder.
        worker_id: Who this is.
        generation: Which invocation of that worker.
        clock: When to stop.
    """

    def __init__(self, job_url: str, worker_id: int, generation: int, clock: Clock) -> None:
        self._folder = JobFolder(job_url)
        self._worker_id = worker_id
        self._generation = generation
        self._clock = clock
        self._job = self._folder.job()
        self.input = open_store(self._job.input_url)
        """The dataset that is read."""
        self.manifest = read_manifest(self.input)
        if self.manifest.fingerprint != self._job.fingerprint:
            raise DataError(f"{self._job.input_url}: was replaced while it was being read: start again")
        self.chunks = 0
        """Chunks done."""
        self.rows = 0

    def run(self) -> str:
        """Work; return ``finished`` or ``deadline``.

        Raises:
            CorruptDataError: The job or a chunk is damaged, or was changed.
            DataError: The function failed, or gave something that cannot be stored.
            StorageError: The store refused or failed.
        """
        while not self.is_stopped:
            if self._clock.is_over:
                return "deadline"
            number = self.take()
            if number is None:
                break
            self.do(number, iterate_chunk(self.input, self.manifest, number))
        return "finished"

    @property
    def is_stopped(self) -> bool:
        """True when the client wants no more chunks done."""
        return self._folder.store.exists(STOP_KEY)

    @cached_property
    def _task(self) -> Task:
        return _make_task(self._job, self._folder.function(), self.manifest.n_features)

    def do(self, number: int, blocks: Iterable[Block]) -> None:
        """Do one chunk, and write what comes of it."""
        self._folder.put_result(number, self._task(number, blocks))
        self.chunks += 1
        self.rows += self.manifest.chunks[number].n_rows

    def take(self) -> int | None:
        """Claim a chunk that nobody has done or claimed; return None when there is none."""
        taken = self._folder.numbers(CLAIMS) | self._folder.numbers(RESULTS)
        for number in range(self._job.n_chunks):
            if number not in taken and self._folder.claim(number, self._worker_id, self._generation):
                return number
        return None


def _make_task(job: MapJob, function: bytes, n_features: int) -> Task:
    if job.kind == "statistics":
        return lambda _, blocks: pack_statistics(ColumnStatistics.of_blocks(blocks))
    if job.kind == "columns":
        rewriter = BlockRewriter(_column_map(function), n_features)
        return functools.partial(_write, job, lambda: rewriter.parts)
    map_block, combine = load_functions(function)  # signed: JobFolder.function has checked it
    if job.kind == "rewrite":
        width = max(n_features, job.n_features or 0)
        return functools.partial(_write, job, lambda: BoundedCalls(map_block, width))
    return lambda _, blocks: _reduced(map_block, combine, blocks)


def _column_map(data: bytes) -> ColumnMap:
    _, arrays = unpack_arrays(data, FUNCTION_KEY)
    return ColumnMap.from_arrays(arrays)


def pack_statistics(statistics: ColumnStatistics) -> bytes:
    """Return statistics as bytes."""
    names = [field.name for field in dataclasses.fields(ColumnStatistics)]
    return pack_arrays({}, {name: getattr(statistics, name) for name in names})


def _write(job: MapJob, begin: Callable[[], Rewrite], number: int, blocks: Iterable[Block]) -> bytes:
    """Rewrite a chunk; return where it is now and what is in it.

    Chunks are written as they fill, and the result that names them comes last: what a worker wrote that was
    killed meanwhile is written again, under the same names.
    """
    assert job.output_url is not None
    store = open_store(job.output_url)
    writer = ChunkWriter(store, f"{job.prefix}{number:06}-", chunk_bytes=OUTPUT_CHUNK_BYTES)
    rewrite = begin()
    for block in blocks:
        for mapped in rewrite(block):
            if mapped.n_rows:
                writer.add(mapped)
    writer.flush()
    if job.n_features is not None and writer.summary.n_features > job.n_features:
        raise DataError(
            f"chunk {number}: feature {writer.summary.n_features - 1} is beyond n_features={job.n_features}"
        )
    plain, touches = writer.summary.to_parts()
    chunks = [dataclasses.asdict(chunk) for chunk in writer.chunks]
    return pack_arrays({"chunks": chunks, "summary": plain}, {"touches": np.frombuffer(touches, np.uint8)})


class BoundedCalls:
    """Calls a user's function with whole blocks, or with fewer rows where it makes many entries of them.

    Memory is then a matter of a row, and not of what a block of 1,024 rows may become. What is known of a
    function is how many entries a row it made at most, of one chunk: so the same chunk is always cut in the
    same way. At first nothing is known, and where a block could fill all columns the function is asked with a
    few rows, whose result is not used.

    Args:
        map_block: The function.
        width: Columns that rows could have.
    """

    def __init__(self, map_block: Callable[[Block], Any], width: int) -> None:
        self._map_block = map_block
        self._width = width
        self._entries_per_row: float | None = None

    def __call__(self, block: Block) -> Iterator[Block]:
        """Yield what the function makes of a block.

        Raises:
            DataError: The function failed, or gave something that cannot be stored.
            ConfigError: It gave something that is no block.
        """
        if self._entries_per_row is None and block.n_rows * self._width > MAX_CALL_ENTRIES:
            self._call(block.rows(0, PROBE_ROWS))
        start = 0
        while start < block.n_rows:
            most = MAX_CALL_ENTRIES / max(self._entries_per_row or 0.0, 1e-9)
            stop = min(start + max(int(min(most, block.n_rows)), 1), block.n_rows)
            mapped = self._call(block.rows(start, stop))
            if mapped is not None:
                yield mapped
            start = stop

    def _call(self, block: Block) -> Block | None:
        mapped = call_function("the function", self._map_block, block)
        if mapped is not None:
            check_block(mapped)
        entries = 0.0 if mapped is None else mapped.local.size / block.n_rows
        self._entries_per_row = max(self._entries_per_row or 0.0, entries)
        return mapped  # type: ignore[no-any-return]


def _reduced(
    map_block: Callable[[Block], Any], combine: Callable[[Any, Any], Any] | None, blocks: Iterable[Block]
) -> bytes:
    """Return what came of the blocks of a chunk, as one value; without a way to combine them, as a list."""
    values: Iterator[Any] = (call_function("the map function", map_block, block) for block in blocks)
    if combine is None:
        return pack_values(values)
    return pack_value(
        functools.reduce(functools.partial(call_function, "the reduce function", combine), values)
    )


_WHOLE = "iu"
#: The arrays of a block: name, kinds of numbers, numbers of dimensions.
_BLOCK_PARTS = (
    ("ids", _WHOLE, (1,)),
    ("local", _WHOLE, (1, 2)),
    ("row_starts", _WHOLE, (1,)),
    ("labels", "fiu", (1,)),
    ("values", "fiu", (1, 2)),
    ("weights", "fiu", (1,)),
)
_OPTIONAL_PARTS = frozenset({"row_starts", "values", "weights"})


def check_block(block: Any) -> None:
    """Check what a user's function returned.

    Raises:
        ConfigError: It is no block.
        DataError: It is one that cannot be stored.
    """
    if not isinstance(block, Block):
        raise ConfigError("fn", f"must return a Block or None, returned {type(block).__name__}")
    for part, kinds, n_dims in _BLOCK_PARTS:
        array = getattr(block, part)
        if array is None and part in _OPTIONAL_PARTS:
            continue
        if not isinstance(array, np.ndarray) or array.dtype.kind not in kinds or array.ndim not in n_dims:
            raise DataError(
                f"the function returned a block that cannot be stored: its {part} are no array of "
                f"{'whole numbers' if kinds == _WHOLE else 'numbers'} of the right shape"
            )
    ids, local, starts = block.ids, block.local, block.row_starts
    padding = int(starts is None)  # the padded layout marks what is no entry by the number of ids
    problems = {
        "ids are not below 2**32": bool(ids.size and (int(ids.min()) < 0 or int(ids.max()) >= 2**32)),
        "ids do not ascend": bool((ids[1:] <= ids[:-1]).any()),
        "local positions are beyond the ids": bool(local.size and int(local.max()) >= ids.size + padding),
        "local positions are negative": bool(local.size and int(local.min()) < 0),
        "values have another shape than the positions": block.values is not None
        and block.values.shape != local.shape,
        "local positions have the wrong number of dimensions": local.ndim != 1 + padding,
        "the rows' number is not that of the labels": (
            local.shape[-1] != block.n_rows if starts is None else starts.size != block.n_rows + 1
        ),
        "row_starts do not cut the positions into rows": starts is not None
        and not (
            starts.size
            and starts[0] == 0
            and starts[-1] == local.size
            and bool((starts[1:] >= starts[:-1]).all())
        ),
        "weights are not one a row": block.weights is not None and block.weights.size != block.n_rows,
    }
    for part in ("values", "labels", "weights"):
        array = getattr(block, part)
        problems[f"{part} are NaN, infinite or beyond float32"] = array is not None and not bool(
            (np.abs(array) <= np.finfo(np.float32).max).all()
        )
    for problem, is_so in problems.items():
        if is_so:
            raise DataError(f"the function returned a block that cannot be stored: its {problem}")
