"""What is made of the chunks of a dataset: another dataset, statistics, or what a user's functions return."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable
from typing import Any

from cirrus.chunks import (
    MANIFEST_KEY,
    ChunkInfo,
    DatasetSummary,
    Manifest,
    commit_dataset,
    read_manifest,
)
from cirrus.chunks.manifest import VocabularyInfo
from cirrus.chunks.vocabulary import copy_vocabularies
from cirrus.chunks.writer import find_replaced
from cirrus.client_backend.fleet import AttemptError
from cirrus.client_backend.map_client import JobClient, MapOptions, MapRequest, OnResult, unpack_written
from cirrus.errors import CirrusError, ConflictError, CorruptDataError
from cirrus.storage import ObjectStore, open_store
from cirrus.worker_runtime.column_statistics import ColumnStatistics
from cirrus.worker_runtime.map_job import unpack_arrays
from cirrus.worker_runtime.map_values import call_function, unpack_value


def rewrite_dataset(
    request: MapRequest, options: MapOptions, *, encoding: dict[str, Any], label_names: tuple[str, ...] | None
) -> Manifest:
    """Rewrite each chunk, and make a dataset of them.

    Args:
        request: Of kind ``columns`` or ``rewrite``, with an ``output_url``.
        options: Where it runs.
        encoding: Of the new dataset.
        label_names: Of the new dataset.

    Raises:
        ConflictError: Another living client writes to that URL, or has stored a dataset there meanwhile.
        DataError: The function failed, or no rows are left.
        RunError: Workers failed again and again.
    """
    assert request.output_url is not None
    written: dict[int, list[ChunkInfo]] = {}
    summary = DatasetSummary()
    store = open_store(request.output_url)
    replaces = find_replaced(store)

    def keep(number: int, data: bytes) -> None:
        written[number], part = unpack_written(data, number)
        summary.merge(part)

    with JobClient(request, options) as client:
        client.run(keep)
        done = _committed(store, client.job.prefix)
        if done is not None:  # all that an earlier client did not come to was to remove the job
            return done
        n_features = request.n_features or max(summary.n_features, request.manifest.n_features)
        vocabularies: tuple[VocabularyInfo, ...] = ()
        if request.keeps_features:
            vocabularies = copy_vocabularies(
                open_store(request.input_url), request.manifest, store, client.job.prefix
            )
        return commit_dataset(
            store,
            [chunk for number in sorted(written) for chunk in written[number]],
            summary,
            n_features=n_features,
            label_names=label_names,
            encoding=encoding,
            vocabularies=vocabularies,
            replaces=replaces,
        )


def _committed(store: ObjectStore, prefix: str) -> Manifest | None:
    if not store.exists(MANIFEST_KEY):
        return None
    with contextlib.suppress(CorruptDataError):
        manifest = read_manifest(store)
        if any(chunk.key.startswith(prefix) for chunk in manifest.chunks):
            return manifest
    return None


def column_statistics(request: MapRequest, options: MapOptions) -> ColumnStatistics:
    """Return the statistics of all entries; the same to the bit whatever the number of workers.

    Raises:
        CorruptDataError: A chunk is damaged.
        RunError: Workers failed again and again.
    """
    total = ColumnStatistics.empty()

    def fold(_: int, data: bytes) -> None:
        nonlocal total
        arrays = unpack_arrays(data, "statistics")[1]
        total = ColumnStatistics.merge([total, ColumnStatistics(**arrays)])

    run_job(request, options, fold, in_order=True)
    return total


def combine_results(request: MapRequest, options: MapOptions, combine: Callable[[Any, Any], Any]) -> Any:
    """Return a user's function over the results of all chunks, in the order of the chunks.

    Raises:
        AttemptError: A function failed, here or in a worker; or workers failed again and again.
        KeyboardInterrupt: It was interrupted. What workers did is kept for the next call.
    """
    values: list[Any] = []

    def fold(_: int, data: bytes) -> None:
        try:
            value = unpack_value(data)
            values[:] = [call_function("the reduce function", combine, *values, value)] if values else [value]
        except CirrusError as error:
            if isinstance(error.__cause__, KeyboardInterrupt):  # of whoever waits here: the job can go on
                raise error.__cause__ from None
            raise AttemptError(str(error), is_permanent=True) from (error.__cause__ or error)

    run_job(request, options, fold, in_order=True)
    return values[0]


def run_job(request: MapRequest, options: MapOptions, on_result: OnResult, *, in_order: bool = False) -> None:
    """Run a job without an output.

    The same job of another client does not get in the way: this one then has a folder of its own.

    Args:
        request: Of kind ``statistics`` or ``reduce``.
        options: Where it runs.
        on_result: See :meth:`JobClient.run`.
        in_order: Hand results over in the order of the chunks, else as they come.
    """
    with contextlib.ExitStack() as stack:
        try:
            client = stack.enter_context(JobClient(request, options))
        except ConflictError:
            client = stack.enter_context(JobClient(request, options, f"-{secrets.token_hex(4)}"))
        client.run(on_result, in_order=in_order)
