"""What the machines that host shards report of a run.

Each report has one writer, the instance, and each of a run's bookings there has a report of its own. Who has
which seats on which instance is told elsewhere (:mod:`cirrus.client_backend.aws.seats`).

=====================================  ==========================================================
key                                    what
=====================================  ==========================================================
``runs/RUN/hosts/INSTANCE.json``       how it is set up, told to the run that it was launched for
``runs/RUN/hosts/INSTANCE/N.json``     how far it is with booking N
=====================================  ==========================================================
"""

from __future__ import annotations

import dataclasses
import enum
import json
from dataclasses import dataclass

from cirrus.config import from_plain, parse_json
from cirrus.errors import ConfigError, CorruptDataError, NotFoundError
from cirrus.storage import ObjectStore

HOSTS = "hosts/"


class HostPhase(enum.StrEnum):
    """How far an instance is with a run."""

    INSTALLING = "installing"
    """Its operating system runs; packages are being installed."""
    COMPILING = "compiling"
    """Kernels are compiled for its processor; takes some seconds on a fresh instance."""
    SERVING = "serving"
    """Its shards are being started or work."""
    ENDED = "ended"
    """The run is over; the instance may wait for another one."""
    INTERRUPTED = "interrupted"
    """The run's client went away, or gave its seats up: the shards have saved themselves and ended."""
    RECLAIMED = "reclaimed"
    """The cloud takes the instance back: the shards have saved themselves and ended."""
    FAILED = "failed"
    """It could not serve the run; ``error`` says why."""

    @property
    def is_last(self) -> bool:
        """True when no shard of the run works on the instance any more."""
        return self not in (HostPhase.INSTALLING, HostPhase.COMPILING, HostPhase.SERVING)


@dataclass(frozen=True, kw_only=True)
class HostStatus:
    """How far an instance is with a run."""

    instance: str
    """Its id."""
    phase: HostPhase
    shards: tuple[int, ...] = ()
    """Which shards of the run it hosts."""
    booking: int = 0
    """Number of the run's booking on the instance that this is about; 0: before any was served."""
    at: float = 0.0
    """Unix time at which the phase began."""
    error: str | None = None
    error_type: str | None = None
    """The name of the exception, where there was one: tells what another attempt can heal."""


class HostReports:
    """The reports of the instances in one run's folder.

    Args:
        folder: The store of the run folder.
    """

    def __init__(self, folder: ObjectStore) -> None:
        self._store = folder

    def write(self, status: HostStatus) -> None:
        """Replace an instance's report of a booking."""
        data = json.dumps(dataclasses.asdict(status)).encode()
        self._store.put(_key(status.instance, status.booking), data)

    def read(self, instance: str, booking: int) -> HostStatus | None:
        """Return what an instance says of a booking, else of its own setting up; None before its first word.

        Raises:
            CorruptDataError: It is no report.
        """
        found = self._read(_key(instance, booking))
        return self._read(_key(instance, 0)) if found is None and booking else found

    def _read(self, key: str) -> HostStatus | None:
        try:
            return from_plain(HostStatus, parse_json(self._store.get(key)), key)
        except NotFoundError:
            return None
        except (ValueError, ConfigError) as error:
            raise CorruptDataError(f"{self._store.url}/{key}: {error}") from error


def _key(instance: str, booking: int) -> str:
    return f"{HOSTS}{instance}/{booking}.json" if booking else f"{HOSTS}{instance}.json"


def parse_shards(text: str) -> tuple[int, ...]:
    """Return the shards that a tag such as ``0-3`` or ``0,2-3`` names, ascending.

    Raises:
        ConfigError: It names none, or is written otherwise.
    """
    shards: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        ends = (first, last if dash else first)
        if not all(end.isdecimal() and len(end) <= _SHARD_DIGITS for end in ends):
            raise ConfigError("shards", f"{text!r} names no shards; write 0-3 or 0,2-3")
        shards.update(range(int(ends[0]), int(ends[1]) + 1))
    if not shards:
        raise ConfigError("shards", f"{text!r} names no shards; write 0-3 or 0,2-3")
    return tuple(sorted(shards))


#: So that no tag makes a range that fills the memory.
_SHARD_DIGITS = 4


def format_shards(shards: tuple[int, ...]) -> str:
    """Return the text for some shards that :func:`parse_shards` reads."""
    runs: list[list[int]] = []
    for shard in sorted(shards):
        if runs and shard == runs[-1][1] + 1:
            runs[-1][1] = shard
        else:
            runs.append([shard, shard])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
