"""What a client's run knows of whoever keeps it alive, in this process or in another."""

from __future__ import annotations

from typing import Protocol

from cirrus.errors import CirrusError


class Supervision(Protocol):
    """Keeps one run alive, and ends it."""

    is_temporary: bool
    """The run folder goes away with :meth:`remove`."""

    @property
    def failure(self) -> CirrusError | None:
        """The error that the run was failed with, if it was by its supervisor."""

    @property
    def ended(self) -> bool:
        """True when nothing of the run is left at work."""

    @property
    def phase(self) -> str:
        """What the start-up is waiting for, in words; may be empty."""

    @property
    def notices(self) -> tuple[str, ...]:
        """What the user should know, such as that there are fewer workers than wanted."""

    def start(self) -> None:
        """Start everything; returns at once."""

    def wait(self, timeout: float | None) -> bool:
        """Wait until nothing is left at work; return whether that is so."""

    def close(self) -> None:
        """End everything and wait for that; nothing happens when it has ended already."""

    def close_soon(self) -> None:
        """End everything without waiting; a finalizer may call this."""

    def remove(self) -> None:
        """Remove the folder of a temporary run that has ended."""
