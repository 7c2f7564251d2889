"""``cirrus load``, ``describe`` and ``predict``."""

from __future__ import annotations

import csv
import os
import secrets
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import numpy as np

from cirrus.cli.console import bytes_text, say, show
from cirrus.cli.console import count as count_of
from cirrus.cli.preprocessing import describe_columns
from cirrus.cli.sources import is_dataset, load_file_like, refuse_unfinished
from cirrus.client_backend.inputs import is_stream, open_inputs
from cirrus.errors import CirrusError, ConfigError, DataError, NotFoundError
from cirrus.frontend.datasets import Dataset
from cirrus.frontend.model_files import MODEL_KEY
from cirrus.frontend.scratch import Scratch
from cirrus.storage import open_store

if TYPE_CHECKING:
    from cirrus.frontend.base import Estimator


def describe(url: str, columns: int = 0, home: str | None = None) -> None:
    """Say what a dataset or a saved model holds."""
    if home is not None and columns <= 0:
        raise ConfigError("home", "needs --columns: all else is in the manifest, and no rows are read")
    if open_store(url).exists(MODEL_KEY):
        from cirrus.frontend.estimators import load_model  # with scikit-learn, which a dataset does not need

        _describe_model(url, load_model(url))
        return
    try:
        dataset = Dataset.open(url)
    except NotFoundError as error:
        if _is_file(url):
            raise DataError(
                f"{url}: is a file, not a dataset: load it first, with: cirrus load {shlex.quote(url)} URL"
            ) from error
        refuse_unfinished(url)
        raise NotFoundError(f"{url}: there is neither a dataset nor a saved model here") from error
    _describe_dataset(dataset)
    if columns > 0:
        describe_columns(dataset, columns, home)


def _is_file(url: str) -> bool:
    if "://" not in url:
        return Path(url).is_file()
    try:
        with open_inputs(url):
            return True
    except CirrusError:
        return False


def _describe_dataset(dataset: Dataset) -> None:
    manifest = dataset.manifest
    show(f"dataset   {dataset.url}")
    show(f"rows      {manifest.n_rows:,}")
    show(f"features  {manifest.n_features:,}")
    size = bytes_text(manifest.n_bytes)
    chunks, blocks = count_of(len(manifest.chunks), "chunk"), count_of(manifest.n_blocks, "block")
    show(f"stored    {size} in {chunks}, {blocks}")
    n_entries = sum(manifest.touches.n_nonzero)
    density = n_entries / (manifest.n_rows * manifest.n_features)
    show(f"density   {100 * density:.4g}%: {count_of(n_entries, 'value')} beside zeros")
    labels = []
    for value, count in zip(manifest.label_values, manifest.label_counts, strict=True):
        name = f"{value:g}" if manifest.label_names is None else manifest.label_names[int(value)]
        labels.append(f"{name}: {count:,} ({count / manifest.n_rows:.1%})")
    if manifest.encoding.get("format") == "bag_of_words":
        show("labels    none")
    else:
        show(f"labels    {', '.join(labels[:20]) or 'numbers'}{' ...' if len(labels) > 20 else ''}")
    for vocabulary in manifest.vocabularies:
        show(f"{vocabulary.name:<10}{vocabulary.n_ids:,}")
    if manifest.has_weights:
        show("weights   yes")
    if manifest.single_label_blocks:
        blocks = count_of(manifest.single_label_blocks, "block")
        show(f"warning   {blocks} of one label only: load with --shuffle")


def _describe_model(url: str, estimator: Estimator) -> None:
    show(f"model     {url}")
    show(f"kind      {type(estimator).__name__}")
    if hasattr(estimator, "classes_"):
        show(f"classes   {', '.join(str(label) for label in estimator.classes_)}")
    weights = ""
    if hasattr(estimator, "coef_"):
        weights = f", {np.count_nonzero(np.atleast_2d(estimator.coef_).any(axis=0)):,} with a weight"
    show(f"features  {estimator.n_features_in_:,}{weights}")
    show(f"trained   {count_of(estimator.n_iter_, 'epoch')}, ${estimator.cost_:.2f}")
    changed = {
        name: value
        for name, value in estimator.get_params().items()
        if value != type(estimator)().get_params()[name]
    }
    show(f"params    {', '.join(f'{name}={value!r}' for name, value in changed.items()) or 'defaults'}")


def predict(model: str, data: str, out: str, *, sep: str | None = None, header: bool | None = None) -> None:
    """Predict the label of each row, as CSV."""
    from cirrus.frontend.estimators import load_model
    from cirrus.frontend.preprocessing_steps import last_steps

    estimator = load_model(model)
    steps = last_steps(estimator.encoding_, {})
    scratch = Scratch()
    try:
        if is_dataset(data):
            for name, value in (("sep", sep), ("header", header)):
                if value is not None:
                    raise ConfigError(name, f"does not apply to {data}, which is a dataset: leave it out")
            dataset = Dataset.open(data)
        else:
            n_features = steps[0].n_features_in if steps else estimator.n_features_in_
            dataset = load_file_like(
                data, scratch.url("rows"), estimator.encoding_, n_features, sep=sep, header=header
            )
        with _output(out) as file:
            n_rows = _write_predictions(file, estimator, dataset)
    finally:
        scratch.close()
    say(f"predicted {count_of(n_rows, 'row')}" + ("" if out == "-" else f" into {out}"))


def _write_predictions(file: TextIO, estimator: Estimator, dataset: Dataset) -> int:
    from cirrus.frontend.outputs import iter_columns

    writer = csv.writer(file, lineterminator="\n")
    n_rows = 0
    for columns in iter_columns(estimator, dataset):
        if n_rows == 0:
            writer.writerow(columns)
        written = [
            [f"{value:.6g}" for value in values.tolist()] if name != "label" else values.tolist()
            for name, values in columns.items()
        ]
        n_rows += len(written[0])
        writer.writerows(zip(*written, strict=True))
    return n_rows


@contextmanager
def _output(out: str) -> Iterator[TextIO]:
    """Open a file that appears whole or not at all; a device or a pipe is written to as it is."""
    if out == "-":
        yield sys.stdout
        return
    given = Path(out)
    if given.is_dir():
        raise ConfigError("out", f"{out} is a folder; name a file")
    if is_stream(out):  # a file behind /dev/stdout has what others wrote into it
        with given.open("a" if given.is_file() else "w", newline="") as file:
            yield file
        return
    target = given.resolve()  # of a link, what it points to
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        with unfinished.open("w", newline="") as file:
            yield file
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)
