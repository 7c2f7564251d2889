"""What happens in a run, for people: who joined and left, which shards started, how it ended."""

from __future__ import annotations

from cirrus.metrics import RunEvent
from cirrus.run_folder import EventsWriter, RunFolder

#: Events of one run that are kept; a run that has more of them is broken, and need not fill the store.
MAX_EVENTS = 100_000


class EventLog:
    """Collects events under the keeper's lock, and writes them outside of it.

    Args:
        folder: The run folder.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._writer = EventsWriter(folder)
        self._new: list[RunEvent] = []
        self._present: dict[int, tuple[str, int]] = {}
        """Connection to name and generation of the worker that it is the life line of."""
        self._shards: dict[int, int] = {}
        self._count = 0

    def joined(self, connection: int, role: str, worker: int, generation: int, at: float) -> None:
        """A worker registered.

        Args:
            connection: Its life line.
            role: ``train`` or ``evaluate``.
            worker: Its id.
            generation: Its generation.
            at: Unix time.
        """
        who = f"{role}-{worker}"
        # One that a newer generation replaces has left, whenever its connection ends.
        for other, (name, _) in list(self._present.items()):
            if name == who:
                self.left(other, at)
        self._present[connection] = who, generation
        self._add(RunEvent(at=at, kind="joined", who=who, generation=generation))

    def left(self, connection: int, at: float) -> None:
        """A connection ended; those of no worker do not matter."""
        found = self._present.pop(connection, None)
        if found is not None:
            self._add(RunEvent(at=at, kind="left", who=found[0], generation=found[1]))

    def started(self, shard: int, generation: int, at: float) -> None:
        """A shard came up; it may say so more than once."""
        if self._shards.get(shard) == generation:
            return
        self._shards[shard] = generation
        self._add(RunEvent(at=at, kind="started", who=f"shard-{shard}", generation=generation))

    def ended(self, text: str, at: float) -> None:
        """The run ended."""
        self._add(RunEvent(at=at, kind="ended", who="run", text=text))

    def _add(self, event: RunEvent) -> None:
        self._count += 1
        if self._count <= MAX_EVENTS:
            self._new.append(event)

    def take(self) -> None:
        """Move what is new to what is to be written."""
        for event in self._new:
            self._writer.append(event)
        self._new.clear()

    def flush(self) -> None:
        """Write what was taken."""
        self._writer.flush()
