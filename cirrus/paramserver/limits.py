"""What a shard allows, all of it in one place, with units; ``docs/security.md`` lists it.

Lengths on the wire are limited in :mod:`cirrus.paramserver.protocol`. Here is what connections may take of
a shard, in time, number and memory. Whoever wants more is refused with a reason; the others are served.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cirrus.errors import ConfigError, LimitError

#: The most that all connections of a shard may hold for large frames, whatever the machine has.
CONNECTION_MEMORY_BYTES = 2 * 2**30
#: ... and as a part of the machine's memory.
CONNECTION_MEMORY_FRACTION = 0.25
#: Tables, their copy for a snapshot, and that copy as the bytes of an object.
COPIES_OF_TABLES = 3
#: A handshake has to fit whole.
MIN_BUFFER_BYTES = 64 * 1024
#: Where the kernel says how much memory this process and its like may have: cgroups, version 2 and 1.
_CGROUP_FILES = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What connections may take of a shard."""

    hello_seconds: float = 10.0
    """A peer has this long to prove that it has the token, in all."""
    max_strangers: int = 256
    """Peers that are about to. For one more, the one that has taken longest has to go ..."""
    stranger_seconds: float = 0.25
    """... once it has had this long; until then those who come wait to be accepted."""
    wrong_proof_seconds: float = 0.5
    """Whoever gave a wrong proof waits this long for the answer, and counts as a stranger meanwhile: at most
    ``max_strangers / stranger_seconds`` guesses a second."""
    max_connections: int = 4096
    """Peers that have proved it; or as many as there are file descriptors, if those are fewer."""
    idle_seconds: float = 3600.0
    """A peer that is silent for longer is dropped."""
    send_seconds: float = 60.0
    """So is one that has not taken an answer after this long."""
    buffer_bytes: int = 2**20
    """What each connection has for frames without asking."""
    memory_bytes: int = CONNECTION_MEMORY_BYTES
    """What all of them together may have beyond that; the machine may have less: :func:`memory_budget`."""
    memory_wait_seconds: float = 10.0
    """A request waits this long for memory that others hold, and is then refused."""
    memory_idle_seconds: float = 5.0
    """A connection that is silent for this long gives back what it holds beyond :attr:`buffer_bytes`."""
    large_frame_seconds: float = 60.0
    """A frame above :attr:`buffer_bytes`, for which memory is held, has to come within this time."""

    def __post_init__(self) -> None:
        """Check that each is positive."""
        for name, value in vars(self).items():
            if not value > 0:
                raise ConfigError(name, f"must be a positive number, got {value!r}")
        if self.buffer_bytes < MIN_BUFFER_BYTES:
            raise ConfigError("buffer_bytes", f"must be at least {MIN_BUFFER_BYTES}, got {self.buffer_bytes}")


def parse_limits(words: Sequence[str]) -> Limits:
    """Return limits of which some are given as ``NAME=VALUE``.

    Raises:
        ConfigError: A word is none of these.
    """
    kinds = {name: type(value) for name, value in vars(Limits()).items()}
    found: dict[str, float] = {}
    for word in words:
        name, _, value = word.partition("=")
        if name not in kinds:
            raise ConfigError("limit", f"there is no {name!r}; there are {', '.join(kinds)}")
        try:
            found[name] = kinds[name](value)
        except ValueError as error:
            raise ConfigError("limit", f"{name} takes a number, got {value!r}") from error
    return Limits(**found)  # type: ignore[arg-type]  # each was made of the type of its default


class MemoryBudget:
    """Memory that the connections of a shard share for frames that do not fit their buffers.

    It counts what is asked for and allocates nothing: whoever has been refused has not allocated either.

    Args:
        n_bytes: How much there is.
        wait_seconds: How long to wait for others to give some back.
    """

    def __init__(self, n_bytes: int, wait_seconds: float) -> None:
        self.n_bytes = n_bytes
        self._wait_seconds = wait_seconds
        self._left = n_bytes
        self._given_back = threading.Condition()

    def take(self, n_bytes: int, what: str) -> None:
        """Reserve memory, waiting for others if need be; :meth:`give_back` it.

        Raises:
            LimitError: There is not so much, or it did not become free in time.
        """
        with self._given_back:
            enough = n_bytes <= self.n_bytes and self._given_back.wait_for(
                lambda: n_bytes <= self._left, self._wait_seconds
            )
            if not enough:
                raise LimitError(
                    f"{what} takes {n_bytes} bytes; the connections of this shard may have {self.n_bytes}, "
                    f"of which {self._left} are free"
                )
            self._left -= n_bytes

    def give_back(self, n_bytes: int) -> None:
        """End a reservation."""
        with self._given_back:
            self._left += n_bytes
            self._given_back.notify_all()

    @contextlib.contextmanager
    def lend(self, n_bytes: int, what: str) -> Iterator[None]:
        """Reserve memory for as long as the context lasts."""
        self.take(n_bytes, what)
        try:
            yield
        finally:
            self.give_back(n_bytes)


class Holding:
    """What one connection holds of a budget, until it gives that back.

    Args:
        budget: Which it shares with others.
    """

    def __init__(self, budget: MemoryBudget) -> None:
        self.n_bytes = 0
        self._budget = budget

    def take(self, n_bytes: int, what: str) -> None:
        """As :meth:`MemoryBudget.take`."""
        self._budget.take(n_bytes, what)
        self.n_bytes += n_bytes

    def lend(self, n_bytes: int, what: str) -> contextlib.AbstractContextManager[None]:
        """As :meth:`MemoryBudget.lend`."""
        return self._budget.lend(n_bytes, what)

    def give_back(self) -> None:
        """End all that is held."""
        n_bytes, self.n_bytes = self.n_bytes, 0
        self._budget.give_back(n_bytes)


class Strangers:
    """Counts what strangers do, so that the log has a line every so often instead of one for each.

    Args:
        every_seconds: How often it may say something.
    """

    def __init__(self, every_seconds: float = 10.0) -> None:
        self._every_seconds = every_seconds
        self._lock = threading.Lock()
        self._next_at = 0.0
        self._n_silent = 0

    def count(self, now: float | None = None) -> int | None:
        """Count one; return how many there were since the last line if it is time for one, else None."""
        now = time.monotonic() if now is None else now
        with self._lock:
            self._n_silent += 1
            if now < self._next_at:
                return None
            self._next_at = now + self._every_seconds
            found, self._n_silent = self._n_silent, 0
            return found


def machine_memory_bytes() -> int:
    """Return how much memory this process may use: the machine's, or that of its container."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in _CGROUP_FILES:
        with contextlib.suppress(OSError, ValueError):
            found = min(found, int(Path(name).read_text()))
    return found


def memory_budget(limits: Limits, machine_bytes: int | None = None) -> MemoryBudget:
    """Return the budget of a shard's connections on a machine with so much memory (this one)."""
    machine_bytes = machine_memory_bytes() if machine_bytes is None else machine_bytes
    n_bytes = min(limits.memory_bytes, int(machine_bytes * CONNECTION_MEMORY_FRACTION))
    return MemoryBudget(n_bytes, limits.memory_wait_seconds)


def check_tables_fit(table_bytes: int, machine_bytes: int | None = None) -> None:
    """Refuse tables that this machine cannot hold together with what a snapshot of them takes.

    Raises:
        ConfigError: They do not fit.
    """
    machine_bytes = machine_memory_bytes() if machine_bytes is None else machine_bytes
    needed = COPIES_OF_TABLES * table_bytes
    if needed > machine_bytes:
        raise ConfigError(
            "n_shards",
            f"each shard would hold {table_bytes / 2**30:.1f} GiB of tables and optimizer state, and need "
            f"{needed / 2**30:.1f} GiB while it saves them, of {machine_bytes / 2**30:.1f} GiB that this "
            "machine has: use more shards on more machines, fewer rows or a smaller width",
        )
