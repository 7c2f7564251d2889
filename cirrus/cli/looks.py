"""What a file looks like by its first line, for errors about one that is not written as it has to be."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from cirrus.client_backend.inputs import is_stream, open_inputs
from cirrus.client_backend.loader import first_lines
from cirrus.errors import CirrusError, DataError

#: How much of a file is looked at.
_HEAD_BYTES = 1 << 16
#: What formats are called, by what a dataset says it was loaded from.
_NAMES = {"csv": "CSV", "svmlight": "svmlight", "vw": "Vowpal Wabbit's format"}
_PAIR = r"\d+:[^\s:]+"
_SVMLIGHT = re.compile(rf"[^\s,;|:]+(\s+{_PAIR})+\s*(#.*)?")
_VW = re.compile(r"[^|,;]*\|\S*(\s.*)?")
_CSV = re.compile(r"[^|:]*[,;\t][^|:]*")


@contextlib.contextmanager
def saying_what_it_looks_like(data: str, written: str) -> Iterator[None]:
    """Have an error about the lines of a file say so if it is written in another way than it is read.

    Args:
        data: The file.
        written: How it is read: the format of the rows that a model is trained on.

    Raises:
        DataError: It cannot be used.
    """
    try:
        yield
    except DataError as error:
        found = _looks_like(data)
        if found is None or found == written or written not in _NAMES:
            raise
        raise DataError(
            f"{data}: looks like {_NAMES[found]}, but the model is trained on {_NAMES[written]}: "
            "name rows that are written like those"
        ) from error


def _looks_like(data: str) -> str | None:
    """Return the format that the first line of a file can alone be of; None: nobody knows."""
    if is_stream(data):
        return None
    try:
        with open_inputs(data) as inputs:
            head = first_lines(inputs.files[0], quoted=False, n_bytes=_HEAD_BYTES)
    except CirrusError:
        return None
    lines = (line.strip() for line in head.decode(errors="replace").splitlines())
    first = next((line for line in lines if line and not line.startswith("#")), "")
    for name, pattern in (("svmlight", _SVMLIGHT), ("vw", _VW), ("csv", _CSV)):
        if pattern.fullmatch(first):
            return name
    return None
