"""``cirrus load``; apart from the other commands on data, which load scikit-learn first."""

from __future__ import annotations

import shlex

from cirrus.cli.console import say, show
from cirrus.cli.options import FileOptions
from cirrus.cli.sources import OWN_MODEL_TYPES, load_file
from cirrus.client_backend.homes import default_home
from cirrus.client_backend.inputs import is_stream
from cirrus.client_backend.load_job import is_begun
from cirrus.errors import ConflictError, StorageError


def load(data: str, url: str, options: FileOptions) -> None:
    """Load files as a dataset."""
    try:
        dataset = load_file(data, url, options)
    except (KeyboardInterrupt, StorageError) as error:
        is_of_another = isinstance(error, ConflictError)
        if not is_of_another and not is_stream(data) and is_begun(url, default_home()):
            say("what is parsed is kept: the same command goes on with it")
        raise
    show(f"dataset {dataset.url}")
    kind = OWN_MODEL_TYPES.get(str(dataset.manifest.encoding.get("format")))
    say(f"next: cirrus train {shlex.quote(url)}" + ("" if kind is None else f" --model-type {kind.value}"))
