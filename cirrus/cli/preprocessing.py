"""``cirrus preprocess``, and what ``cirrus describe`` says of columns."""

from __future__ import annotations

import time
from typing import Any

from cirrus.cli.console import count, say, show, table
from cirrus.cli.options import Preprocessing, PreprocessOptions
from cirrus.client_backend.backend import backend_at
from cirrus.errors import ConfigError
from cirrus.frontend.datasets import Dataset


def preprocess(source: str, target: str, options: PreprocessOptions) -> None:
    """Fit, and write the transformed dataset."""
    dataset = Dataset.open(source)
    transformer = _transformer(options)
    started_at = time.monotonic()
    made = transformer.fit_transform(dataset, target)
    seconds = time.monotonic() - started_at
    if options.save is not None:
        transformer.save(options.save)
        say(f"saved what was fitted in {options.save}")
    say(f"preprocessed {count(made.n_rows, 'row')} in {seconds:.1f} s ({made.n_rows / seconds:,.0f} rows/s)")
    show(f"dataset {made.url}")


def _transformer(options: PreprocessOptions) -> Any:
    from cirrus.frontend.preprocessing import FeatureHasher, MinMaxScaler, StandardScaler

    common: dict[str, Any] = {
        "densify": options.densify or "auto",
        "n_workers": options.workers,
        "backend": None if options.home is None else backend_at(options.home),
        "progress": True,
    }
    if options.kind is Preprocessing.MINMAX:
        return MinMaxScaler((options.low, options.high), clip=options.clip, **common)
    if options.kind is Preprocessing.STANDARD:
        return StandardScaler(with_mean=options.mean, with_std=options.std, **common)
    names = [part.strip() for part in options.columns.split(",") if part.strip()]
    for name in names:
        if not name.isdecimal():
            raise ConfigError("columns", f"must be numbers of columns, from 0; got {name!r}")
    return FeatureHasher(
        options.buckets,
        columns=[int(name) for name in names] or None,
        alternate_sign=options.alternate_sign,
        **common,
    )


def describe_columns(dataset: Dataset, n_columns: int, home: str | None) -> None:
    """Show the first columns' statistics."""
    found = dataset.describe(progress=True, backend=None if home is None else backend_at(home))
    found = found.first_columns(n_columns)
    rows = [["column", "min", "max", "mean", "std", "zeros", "missing"]]
    for number in range(found.n_features):
        numbers = (found.minimum, found.maximum, found.mean, found.variance**0.5)
        counts = (found.zeros, found.missing)
        statistics = [f"{part[number]:.6g}" for part in numbers]
        rows.append([str(number), *statistics, *(f"{part[number]:,}" for part in counts)])
    show(table(rows, right=frozenset(range(7))))
