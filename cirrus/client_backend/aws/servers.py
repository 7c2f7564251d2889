"""The seats of a run's shards on virtual machines: taken over, booked, launched; watched, replaced, given up.

Shards sit where there are seats (:mod:`cirrus.client_backend.aws.seats`): those that the run has already,
because another client began it, then free ones of servers that are at work for other runs or wait for one,
and for what is left servers are launched, whose other seats are free for whoever comes. The shards of one run
may sit on several servers. From then on the client watches each server that the run has seats on: the host
program's own reports in the run folder, what EC2 says of the instance, and whether shard 0 still renews the
status. The client never connects to a server.

A server that fails, vanishes, is taken back by AWS or falls silent is left: nobody books there any more, and
it is ended as soon as no run has seats there. Other seats take the place of those that were lost; the shards
restore themselves from their snapshots under new generations, which supersede whatever might be left of the
old ones. Each run finds out by itself, and goes on by itself.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future

from cirrus.client_backend.aws.seat_search import SeatSearch, ServerPlan, give_up, leave_servers
from cirrus.client_backend.aws.seats import Booking
from cirrus.client_backend.aws.server_turns import ServerTurns
from cirrus.client_backend.aws.server_watch import Surroundings, Watch
from cirrus.errors import CirrusError
from cirrus.metrics import RunState

#: How long the end of a run waits for a launch that is under way, so that its instance is ended too.
LAUNCHING_SECONDS = 2.0


class _Server:
    """A server that the run has seats on."""

    def __init__(self, name: str, booking: Booking) -> None:
        self.name = name
        self.booking = booking
        self.is_watched = False
        self.end: Future[None] = Future()


class Servers:
    """All servers that one run has seats on.

    Args:
        plan: What they are.
        n_shards: Shards of the run.
        around: What the parts of its client share.
        turns: Whose turn it is to look for seats.
    """

    def __init__(self, plan: ServerPlan, n_shards: int, around: Surroundings, turns: ServerTurns) -> None:
        self._plan = plan
        self._n_shards = n_shards
        self._around = around
        self._turns = turns
        self._placing = threading.Lock()
        """Held while seats are looked for; one thread does so for all shards that have none."""
        self._lock = threading.Lock()
        self._server_of: dict[int, _Server] = {}
        self._search = SeatSearch(plan, self._around, self._note)

    @property
    def phase(self) -> str:
        """What the start-up is waiting for, in words."""
        return self._around.phase

    @property
    def uncounted_seconds(self) -> float:
        """Seconds of servers that the run pays for beyond those that shard 0 counts; may be below 0."""
        return self._around.bill.uncounted_seconds

    def serve(self, shard: int, generation: int) -> None:
        """Keep a shard on a server until the run is over.

        Args:
            shard: Which one; the threads of all shards on a server wait for the same watch.
            generation: Of the shard, as this client counts; part of the name of what is launched for it.

        Raises:
            AttemptError: The server is lost.
            CloudError: None could be had.
        """
        server = self._find(shard, generation)
        if server is None:  # the run is being ended
            return
        with self._lock:
            is_watched, server.is_watched = server.is_watched, True
        if is_watched:
            server.end.result()
            return
        try:
            Watch(self._around, server.name, server.booking).run()
        except BaseException as error:
            self._leave(server)
            server.end.set_exception(error)
            raise
        self._forget(server)
        server.end.set_result(None)

    def close(self) -> None:
        """Give up the seats, and end the servers that nobody has seats on.

        Where the run has finished, they wait for another one instead.
        """
        self._around.closed.set()
        held = self._placing.acquire(timeout=LAUNCHING_SECONDS)
        try:
            status = self._around.status.read_now()
            finished = status is not None and status.state is RunState.FINISHED
            keep = finished and self._plan.keep_warm_seconds > 0
            leave_servers(self._around.facade, self._around.records, self._plan.run_id, keep=keep)
        finally:
            if held:
                self._placing.release()

    def let_go(self) -> None:
        """End what this client does for a run that another client has taken over, with all its seats."""
        self._around.is_taken_over = True
        self._around.closed.set()
        if self._placing.acquire(timeout=LAUNCHING_SECONDS):  # a search takes back what it has found
            self._placing.release()

    # Looking for seats.

    def _find(self, shard: int, generation: int) -> _Server | None:
        """Return the server of a shard, once it has one; None when the run is being ended."""
        with self._placing:
            if (known := self._known(shard)) is None:
                with self._turns.turn(self._around.closed) as is_mine:
                    if is_mine:
                        self._search.run(self._homeless(), generation)
            return known or self._known(shard)

    def _known(self, shard: int) -> _Server | None:
        with self._lock:
            return self._server_of.get(shard)

    def _homeless(self) -> list[int]:
        """Return the shards that have no server."""
        with self._lock:
            return [shard for shard in range(self._n_shards) if shard not in self._server_of]

    def _note(self, name: str, booking: Booking) -> None:
        server = _Server(name, booking)
        with self._lock:
            self._server_of.update(dict.fromkeys(booking.shards, server))

    # Leaving servers.

    def _forget(self, server: _Server) -> None:
        with self._lock:
            for shard in server.booking.shards:
                if self._server_of.get(shard) is server:
                    del self._server_of[shard]

    def _leave(self, server: _Server) -> None:
        """Leave a server that is lost: this run has others from now on, and nobody else goes there."""
        self._search.lost.add(server.name)
        self._forget(server)
        try:
            give_up(self._around, server.name, server.booking, is_lost=True)
        except CirrusError as error:
            self._around.notice(f"server {server.name} is lost, but cannot be ended, and costs: {error}")
