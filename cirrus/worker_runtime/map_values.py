"""Users' functions and what they return, on their way between client and workers.

Both travel by cloudpickle, and both are signed (:mod:`~cirrus.worker_runtime.map_job`): only what carries the
signature of the job's token comes here.
"""

from __future__ import annotations

import contextlib
import io
import pickle  # of signed values alone  # nosec B403
import sys
import traceback
from collections.abc import Callable, Iterable
from types import ModuleType, TracebackType
from typing import Any

from cirrus.errors import CirrusError, DataError

#: Most bytes of what comes of one chunk: the worker and the client hold it several times over.
MAX_VALUE_BYTES = 64 * 2**20
#: Lines of a user's function that an error shows: those nearest to where it was raised.
TRACEBACK_FRAMES = 4

_ONE = b"1"
_LIST = b"L"


def load_functions(data: bytes) -> tuple[Callable[..., Any], Callable[..., Any] | None]:
    """Return a user's functions (map, and combine or None), with the modules that they import at hand.

    Args:
        data: What the client packed, and the job's folder has verified.

    Raises:
        DataError: They cannot be made here, such as where a library is missing.
    """
    try:
        import cloudpickle  # only where a user's function is to be run

        map_block, combine, modules = cloudpickle.loads(data)
    except (Exception, SystemExit) as error:
        raise DataError(
            f"the function cannot be loaded by a worker: {type(error).__name__}: {error}: what it uses must "
            "be installed there"
        ) from error
    for module in modules:
        _install(module)
    return map_block, combine


def _install(module: ModuleType) -> None:
    if module.__name__ in sys.modules:
        return
    sys.modules[module.__name__] = module
    above, _, name = module.__name__.rpartition(".")
    if above in sys.modules:
        setattr(sys.modules[above], name, module)


def call_function(what: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a user's function.

    Args:
        what: What to call it in an error message.
        function: The function.
        arguments: Its arguments.

    Raises:
        DataError: It raised something; the text says where.
        CirrusError: It raised that.
    """
    try:
        return function(*arguments)
    except CirrusError:
        raise
    except BaseException as error:  # a thread that exits or is interrupted would be waited for for ever
        raise DataError(
            f"{what} raised {type(error).__name__}: {error}{_places(error.__traceback__)}"
        ) from error


def _places(trace: TracebackType | None) -> str:
    """Return where in the user's code an error was raised, as lines of text."""
    frames = traceback.extract_tb(trace)[1:][-TRACEBACK_FRAMES:]
    return "".join(
        f"\n  in {frame.name}, {frame.filename}, line {frame.lineno}"
        + (f": {frame.line}" if frame.line else "")
        for frame in frames
    )


def pack_value(value: Any) -> bytes:
    """Return a value as bytes.

    Raises:
        DataError: It cannot be pickled, or is too large.
    """
    file = _Bounded()
    file.write(_ONE)
    _dump(value, file)
    return file.getvalue()


def pack_values(values: Iterable[Any]) -> bytes:
    """Return values as bytes; they come back as a list. Only one of them is in memory at a time.

    Raises:
        DataError: One cannot be pickled, or all together are too large.
    """
    file = _Bounded()
    file.write(_LIST)
    for value in values:
        _dump(value, file)
    return file.getvalue()


def unpack_value(data: bytes) -> Any:
    """Return the value, or the list of values, that a worker packed; its signature has been checked.

    Raises:
        DataError: It cannot be made again here.
    """
    file = io.BytesIO(data[1:])
    try:
        if data[:1] == _ONE:
            return pickle.load(file)  # nosec B301
        values = []
        while file.tell() < len(data) - 1:
            values.append(pickle.load(file))  # nosec B301
    except Exception as error:
        raise DataError(
            f"what the function returned cannot be read by this process: {type(error).__name__}: {error}"
        ) from error
    else:
        return values


def own_class(module: str, name: str, by_value: bytes) -> Any:
    """Return the class that this process has by a name, or else the one that was sent; pickled values say so.

    Values that were computed before and after an interruption then belong to one class.
    """
    with contextlib.suppress(KeyError, AttributeError):
        return _named_class(module, name)
    return pickle.loads(by_value)  # a part of a signed value  # nosec B301


def _named_class(module: str, name: str) -> Any:
    found: Any = sys.modules[module]
    for part in name.split("."):
        found = getattr(found, part)
    return found


class _Bounded(io.BytesIO):
    """Bytes in memory, up to a limit."""

    def write(self, data: Any) -> int:
        if self.tell() + memoryview(data).nbytes > MAX_VALUE_BYTES:
            raise DataError(
                f"what the function returned for one chunk takes more than {MAX_VALUE_BYTES >> 20} MB: "
                "return less, combine it with a reduce function, or store it with map_chunks"
            )
        return super().write(data)


def _dump(value: Any, file: io.BytesIO) -> None:
    import cloudpickle

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
        """Pickles classes of the user's own as those that the client has by that name."""

        def reducer_override(self, obj: Any) -> Any:
            if isinstance(obj, type) and _is_clients(obj):
                return own_class, (obj.__module__, obj.__qualname__, cloudpickle.dumps(obj))
            return super().reducer_override(obj)

    try:
        Pickler(file).dump(value)
    except CirrusError:
        raise
    except Exception as error:
        raise DataError(
            f"what the function returned cannot be sent back: {type(error).__name__}: {error}"
        ) from error


def _is_clients(kind: type) -> bool:
    """Tell whether a class came with the function, and has a name by which the client knows it."""
    if "<locals>" in kind.__qualname__:
        return False
    try:
        return _named_class(kind.__module__, kind.__qualname__) is not kind
    except (KeyError, AttributeError):
        return True
