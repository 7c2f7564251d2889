"""Every exception that Cirrus raises on purpose.

The tree, so that one ``except`` catches the family you mean::

    CirrusError
    +-- ConfigError          a parameter is wrong (also a ValueError)
    +-- DataError            an input file, chunk or dataset is wrong (also a ValueError)
    |   +-- CorruptDataError a stored object does not match its checksum or format
    +-- StorageError         the object store refused or failed
    |   +-- NotFoundError    there is no such object (also a FileNotFoundError)
    |   +-- ConflictError    a conditional write lost against another writer
    +-- ProtocolError        the peer broke the wire protocol
    |   +-- VersionMismatchError  the peer speaks another protocol version
    +-- ShardError           a shard refused a request
    |   +-- AuthenticationError   a peer did not prove that it has the run's token
    |   +-- SupersededError  the shard or the caller belongs to an older generation
    |   +-- RegistrationError     a worker of this id and generation is registered already
    |   +-- LeaseLostError   the lease was given to another worker
    |   +-- LimitError       it would take more connections or memory than a shard may have
    +-- ConnectionLostError  a shard went away (also a ConnectionError)
    +-- CloudError           a cloud's service refused or failed
    |   +-- CredentialsError     there are none, or they are wrong or have expired
    |   +-- AccessDeniedError    they do not suffice
    |   +-- MissingResourceError a function, a launch template or an instance is not there
    |   +-- CapacityError        the cloud has no such machine now, or not for this account
    |   +-- ThrottledError       too much was asked for at once
    |   +-- NotReadyError        what was asked for is being made ready
    |   +-- LostResponseError    no answer came; the request may have been carried out
    +-- RunError             a run failed, was killed or cannot be started
        +-- RunInterruptedError   the run's client went away

Low-level errors (``OSError``, ``botocore`` errors, ``struct.error``) are translated where they enter,
and keep their cause.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CirrusError(Exception):
    """The root of all errors raised by Cirrus."""


class ConfigError(CirrusError, ValueError):
    """A parameter has a value that cannot work.

    Args:
        field: The name of the parameter, as the user typed it.
        problem: What is wrong with it and what would be right.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem

    def __reduce__(self) -> tuple[type[ConfigError], tuple[str, str]]:
        """Pickle by the constructor's own arguments (scikit-learn's joblib sends errors)."""
        return type(self), (self.field, self.problem)


class DataError(CirrusError, ValueError):
    """An input file, a dataset or a chunk holds something that cannot be used."""


class CorruptDataError(DataError):
    """A stored object does not match its checksum, its length or its format."""


class StorageError(CirrusError):
    """The object store refused or failed."""


class NotFoundError(StorageError, FileNotFoundError):
    """There is no object of that name."""


class ConflictError(StorageError):
    """A conditional write lost against another writer."""


class ProtocolError(CirrusError):
    """The peer sent something that the wire protocol does not allow."""


class VersionMismatchError(ProtocolError):
    """The peer speaks another version of the protocol."""


class ShardError(CirrusError):
    """A shard refused a request."""


class AuthenticationError(ShardError):
    """A peer did not prove that it has the run's token."""


class SupersededError(ShardError):
    """The shard, or the caller's idea of it, belongs to an older generation."""


class RegistrationError(ShardError):
    """A worker of this id is registered already, by the same or a newer generation."""


class LeaseLostError(ShardError):
    """The lease was given to another worker, or is not known any more."""


class LimitError(ShardError):
    """What was asked for would take more than a shard may have: connections, or memory."""


class ConnectionLostError(CirrusError, ConnectionError):
    """The connection to a shard broke or could not be made in time."""


class CloudError(CirrusError):
    """A cloud's service refused or failed."""


class CredentialsError(CloudError):
    """There are no credentials, or they are wrong or have expired."""


class AccessDeniedError(CloudError):
    """The credentials do not suffice for the request."""


class MissingResourceError(CloudError):
    """A function, a launch template or an instance is not there."""


class CapacityError(CloudError):
    """The cloud has no such machine now, or not for this account."""


class ThrottledError(CloudError):
    """Too much was asked for at once; later it may be granted."""


class NotReadyError(CloudError):
    """What was asked for is being made ready; soon it may be granted."""


class LostResponseError(CloudError):
    """No answer came; the request may have been carried out."""


class RunError(CirrusError):
    """A run failed, was killed, or cannot be started."""


class RunInterruptedError(RunError):
    """The run's client went away before the run ended."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return which of some known names somebody can have meant who typed another; None: none of them."""
    return next(iter(difflib.get_close_matches(name, sorted(known), 1)), None)
