"""``cirrus load``; apart from the other commands on data, which load scikit-learn first."""

from __future__ import annotations

import shlex

from cirrus.cli.console import say, show
from cirrus.cli.options import FileOptions
from cirrus.cli.sources import load_file
from cirrus.client_backend.inputs import STANDARD_INPUT

#: What rows of a format are for, where that is not the model that is trained unless told otherwise.
_MODEL_TYPES = {"ratings": " --model-type mf", "bag_of_words": " --model-type lda"}


def load(data: str, url: str, options: FileOptions) -> None:
    """Load files as a dataset."""
    try:
        dataset = load_file(data, url, options)
    except KeyboardInterrupt:
        if data != STANDARD_INPUT:
            say("what is parsed is kept: the same command goes on with it")
        raise
    show(f"dataset {dataset.url}")
    kind = _MODEL_TYPES.get(str(dataset.manifest.encoding.get("format")), "")
    say(f"next: cirrus train {shlex.quote(url)}{kind}")
