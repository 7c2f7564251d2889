"""Shard 0's other half: answers workers for the coordinator, and keeps the run folder up to date.

The coordinator is pure policy; here are its thread, its clock and its I/O: status and metrics, control
requests, checkpoints, the final model, and the word to the other shards that the run is over.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, TypeVar

from cirrus.config import RunConfig
from cirrus.errors import (
    AuthenticationError,
    CirrusError,
    ConfigError,
    ConnectionLostError,
    CorruptDataError,
    LeaseLostError,
    ProtocolError,
    ShardError,
    StorageError,
    SupersededError,
)
from cirrus.metrics import RunState
from cirrus.paramserver import checkpoint
from cirrus.paramserver.coordinator import Coordinator, Phase
from cirrus.paramserver.ledger import LeaseKey
from cirrus.paramserver.peers import PEER_SECONDS, Peers, at_once
from cirrus.paramserver.protocol import (
    Complete,
    Done,
    End,
    Evaluation,
    MarksReply,
    MarksRequest,
    Message,
    NextTask,
    Register,
    Registered,
    ShardStarted,
    StatisticsReply,
    StatisticsRequest,
    StepTurn,
    Task,
    TurnReply,
    WriteCheckpoint,
)
from cirrus.paramserver.run_events import EventLog
from cirrus.run_folder import ControlRequest, MetricsWriter, RunFolder
from cirrus.storage import open_store

log = logging.getLogger(__name__)

M = TypeVar("M")

#: The coordinator looks at the clock this often when nothing happens.
TICK_SECONDS = 0.05
STATUS_SECONDS = 0.5
#: An object store that refuses status and metrics for longer than this ends the run.
MUTE_SECONDS = 300.0
#: A checkpoint that could not be written is tried again after this long.
CHECKPOINT_RETRY_SECONDS = 5.0
PEER_COUNTS_SECONDS = 2.0
#: A shard that has not answered for this long is told of as silent.
PEER_SILENT_SECONDS = 10.0
#: A model that cannot be saved is tried for so long; the disk may be full for a moment.
SAVE_SECONDS = 30.0
CONTROL_SECONDS = 0.2
#: An object store over the network is asked less often.
REMOTE_CONTROL_SECONDS = 2.0
#: After the run ended, workers have this long to hear of it.
FAREWELL_SECONDS = 2.0
LONGEST_WAIT_SECONDS = 5.0
#: Writing a part of a checkpoint is the longest that one shard asks of another.
CHECKPOINT_SECONDS = 300.0
#: Requests that are carried out when the run has ended.
ENDING_ACTIONS = frozenset({"kill", "fail", "stop"})


class OwnShard(Protocol):
    """What the keeper needs of the shard that it lives in."""

    @property
    def stopping(self) -> threading.Event:
        """Set when the shard ends."""

    def is_complete(self, key: LeaseKey) -> bool:
        """Tell whether every step of a lease was applied here."""

    def mark_of(self, key: LeaseKey) -> int:
        """Return the next position of a lease."""

    def counts(self) -> dict[str, int]:
        """Return this shard's counters."""

    def write_part(self, url: str) -> None:
        """Write this shard's part of a checkpoint."""

    def superseded(self) -> None:
        """Stop at once: a newer generation works."""


def _wait_until(wait_seconds: float) -> float:
    """Return when somebody who wants to wait so long gets an answer at the latest."""
    bounded = 0 <= wait_seconds <= LONGEST_WAIT_SECONDS  # not so for NaN
    return time.monotonic() + (wait_seconds if bounded else LONGEST_WAIT_SECONDS)


class _Timer:
    """Tells when something is due again."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._last = time.monotonic()

    def is_due(self) -> bool:
        now = time.monotonic()
        if now - self._last < self._seconds:
            return False
        self._last = now
        return True


class RunKeeper:
    """Runs the coordinator of one run.

    Args:
        shard: Shard 0 itself.
        folder: The run folder.
        config: The run.
        generation: Of shard 0.
        peers: The other shards.
    """

    def __init__(
        self, shard: OwnShard, folder: RunFolder, config: RunConfig, generation: int, peers: Peers
    ) -> None:
        lock = threading.RLock()
        self.work = threading.Condition(lock)
        """Guards the coordinator; notified when something may have changed for those who wait for work."""
        self._turns = threading.Condition(lock)
        """Notified when something may have changed for those who wait for their turn."""
        self.coordinator = Coordinator(config, generation, time.monotonic(), time.time())
        with contextlib.suppress(CorruptDataError, ConfigError):  # it is written anew in a moment
            if (before := folder.status()) is not None:
                self.coordinator.keep_told(before)
        self._shard = shard
        self._folder = folder
        self._config = config
        self._peers = peers
        self._generation = generation
        self._reported_at = time.monotonic()
        self._metrics = MetricsWriter(folder)
        self._events = EventLog(folder)
        self._events.started(0, generation, time.time())
        self._peer_counts: dict[int, Mapping[str, int]] = {}
        """What each of the other shards counted, as its present generation says it."""
        self._peers_seen_at = dict.fromkeys(self._other_shards, time.monotonic())
        self._refreshing = {peer: threading.Lock() for peer in self._other_shards}
        """Held while a shard is asked for its counts: of two answers the later one stands."""
        self._snapshots_asked: set[str] = set()
        """Requests that the next checkpoint answers."""
        self._has_cut = False
        self._retry_cut_at = float("inf")
        self._checkpoint_problem: str | None = None
        self._save_failing_since: float | None = None
        self._telling_end = threading.Lock()
        self._has_noted_end = self._has_told_end = False
        self._control_seconds = REMOTE_CONTROL_SECONDS if folder.is_remote else CONTROL_SECONDS

    @property
    def run_ended(self) -> bool:
        """True when nothing of the run is left to do."""
        return self.coordinator.phase is Phase.ENDED

    @property
    def is_served(self) -> bool:
        """True when somebody brings the run on, and no shard is missing."""
        with self.work:
            return self.coordinator.is_served and not self._silent_shards

    @property
    def _silent_shards(self) -> tuple[int, ...]:
        """The shards that have not answered for a while; one that is announced anew is given time."""
        now = time.monotonic()
        return tuple(
            peer for peer, seen_at in self._peers_seen_at.items() if now - seen_at > PEER_SILENT_SECONDS
        )

    @property
    def _other_shards(self) -> range:
        return range(1, self._config.n_shards)

    # What workers and shards ask.

    def answer(self, connection: int, message: Message) -> Message:
        """Carry out a request to the coordinator.

        Args:
            connection: The number of the connection that it came over.
            message: The request.
        """
        if isinstance(message, NextTask):
            return self._next_task(connection, message)
        if isinstance(message, StepTurn):
            return self._take_turn(message)
        with self.work:
            reply = self._answer_now(connection, message)
            self._notify()
        return reply

    def _answer_now(self, connection: int, message: Message) -> Message:
        coordinator = self.coordinator
        match message:
            case Register():
                coordinator.register(connection, message.worker, message.generation, message.role)
                self._events.joined(connection, message.role, message.worker, message.generation, time.time())
                coordinator.note_seconds(connection, message.seconds, time.monotonic())
                return Registered()
            case Complete():
                self._complete(connection, message)
            case Evaluation():
                coordinator.evaluated(message, time.monotonic())
            case ShardStarted():
                self._note_marks(message.shard, message)
                self._peers_seen_at[message.shard] = time.monotonic()
                self._events.started(message.shard, message.generation, time.time())
            case _:
                raise ProtocolError(f"a shard cannot answer a {type(message).__name__}")
        return Done()

    def _complete(self, connection: int, message: Complete) -> None:
        config = self._config
        if not (0 <= message.lease < len(config.leases) and 0 <= message.epoch < config.stop.epochs):
            raise ProtocolError(f"there is no lease {message.lease} in epoch {message.epoch}")
        now = time.monotonic()
        self.coordinator.note_seconds(
            self.coordinator.worker_of(connection, message), message.worker_seconds, now
        )
        full = self._shard.is_complete((message.epoch, message.lease))
        if not self.coordinator.complete(connection, message, full, now):
            raise LeaseLostError("steps of the lease were lost; it is given again")

    def _note_marks(self, shard: int, held: ShardStarted | MarksReply) -> int:
        well_formed = 0 < shard < self._config.n_shards and held.completed_epochs >= 0
        if not well_formed or not all(self._are_marks(marks) for marks in held.marks.values()):
            raise ProtocolError(f"marks of shard {shard} that make no sense")
        if held.generation < self.coordinator.shard_generations[shard]:
            raise SupersededError(
                f"shard {shard} generation {held.generation} was replaced by"
                f" {self.coordinator.shard_generations[shard]}"
            )
        lost = self.coordinator.shard_started(shard, held.generation, held.completed_epochs, held.marks)
        if lost:
            log.warning("shard %d lost steps of %d leases; they are given again", shard, lost)
        return lost

    def _are_marks(self, marks: object) -> bool:
        n_leases = len(self._config.leases)
        return (
            isinstance(marks, list)
            and len(marks) == n_leases
            and all(isinstance(mark, int) for mark in marks)
        )

    def _take_turn(self, message: StepTurn) -> TurnReply:
        deadline = _wait_until(message.wait_seconds)
        with self.work:
            self._turns.notify_all()  # that it asks tells others how far it is
            while True:
                self._check_alive()
                now = time.monotonic()
                granted = self.coordinator.take_turn(message, now)
                if granted or now >= deadline:
                    return TurnReply(granted=granted)
                self._turns.wait(deadline - now)

    def _check_alive(self) -> None:
        if self._shard.stopping.is_set() and not self.run_ended:
            raise ConnectionLostError("the shard is going down")

    def _notify(self) -> None:
        """Have all who wait look at the state again."""
        self.work.notify_all()
        self._turns.notify_all()

    def _next_task(self, connection: int, message: NextTask) -> Task:
        deadline = _wait_until(message.wait_seconds)
        with self.work:
            while True:
                self._check_alive()
                now = time.monotonic()
                task = self.coordinator.next_task(connection, now)
                if task is not None:
                    return task
                if now >= deadline:
                    return Task(action="wait")
                self.work.wait(deadline - now)

    def disconnect(self, connection: int) -> None:
        """A connection ended; if it was a worker's, its leases are given again."""
        with self.work:
            self.coordinator.disconnect(connection, time.monotonic())
            self._events.left(connection, time.time())
            self._notify()

    def attached(self, key: LeaseKey) -> None:
        """A worker takes up a lease here, before it does so on any other shard."""
        with self.work:
            self.coordinator.attached(key)
            self._notify()

    def wake(self) -> None:
        """Have those who wait for a task look at the state again."""
        with self.work:
            self._notify()

    # The thread.

    def run(self) -> None:
        """Keep the run going until it has ended or the shard stops."""
        coordinator = self.coordinator
        try:
            self._keep_going()
        except SupersededError:
            self._shard.superseded()
            return
        except CirrusError as error:
            log.exception("the coordinator failed")
            with self.work:
                coordinator.end("failed", RunState.FAILED, str(error))
                self._notify()
        if self.run_ended and not self._shard.stopping.is_set():
            self._say_farewell()

    def interrupt(self) -> None:
        """The client went away: unless the run has ended meanwhile, that is its end; say so in the folder."""
        with self.work:
            if not self.run_ended:
                self.coordinator.end("client lost", RunState.INTERRUPTED)
                self._notify()
        self.tell_end()

    def tell_end(self) -> bool:
        """Have the run folder say that the run is over, unless it does already; return whether it does.

        The keeper's thread does, and whoever shuts the shard down before that: what the run could be gone on
        with is deleted then, and a folder that calls it running would have it done again.

        Raises:
            StorageError: The folder has refused for :data:`MUTE_SECONDS`.
            SupersededError: A newer shard 0 looks after the run.
        """
        with self._telling_end:
            if not self._has_told_end:
                if not self._has_noted_end:
                    with self.work:
                        how = f"{self.coordinator.final_state}: {self.coordinator.stop_reason}"
                        self._events.ended(how, time.time())
                    self._has_noted_end = True
                self._has_told_end = self._report()
            return self._has_told_end

    def _keep_going(self) -> None:
        status, control = _Timer(STATUS_SECONDS), _Timer(self._control_seconds)
        every = self._config.checkpoint_seconds
        checkpoints = None if every is None else _Timer(every)
        cut_at = self.coordinator.updates
        for peer in self._other_shards:
            threading.Thread(target=self._watch_peer, args=(peer,), name=f"watch-{peer}", daemon=True).start()
        self._report()
        while not self._shard.stopping.is_set():
            phase = self._tick()
            if phase is Phase.ENDED:
                return
            # While a shard is away the model cannot be saved, but requests are heard, the status renewed.
            if phase is Phase.SAVING:
                last_due = checkpoints is not None and self.coordinator.updates > cut_at
                if not last_due or self._cut_checkpoint():
                    cut_at = self.coordinator.updates
                    self._save_model()
            elif self._checkpoint_due:
                self._cut_checkpoint()
            # Not twice at one moment: workers who wait for the first have to get on before the second.
            if checkpoints is not None and self.coordinator.updates > cut_at and checkpoints.is_due():
                cut_at = self.coordinator.updates
                self._want_checkpoint()
            if time.monotonic() >= self._retry_cut_at:
                self._want_checkpoint()
            if control.is_due():
                self._obey_requests()
            if status.is_due():
                self._report()

    def _want_checkpoint(self) -> None:
        self._retry_cut_at = float("inf")
        with self.work:
            self.coordinator.checkpoint_wanted = True

    def _tick(self) -> Phase:
        """Let the coordinator look at the clock; wait a little unless there is something to do here."""
        coordinator = self.coordinator
        with self.work:
            for waited in (False, True):
                before = coordinator.version
                coordinator.tick(time.monotonic(), self._shard.mark_of)
                if coordinator.version != before:
                    self._notify()
                busy = coordinator.phase in (Phase.SAVING, Phase.ENDED) or self._checkpoint_due
                if busy or waited:
                    break
                self.work.wait(TICK_SECONDS)
            return coordinator.phase

    @property
    def _checkpoint_due(self) -> bool:
        return self.coordinator.checkpoint_wanted and self.coordinator.ledger.at_rest

    def _report(self) -> bool:
        """Write status and metrics to the run folder; return whether it took them.

        Raises:
            StorageError: It has refused for :data:`MUTE_SECONDS`.
            SupersededError: A newer shard 0 looks after the run.
        """
        # Outside the lock: this takes the shard's lock of connections, under which a snapshot takes `work`.
        own_counts = self._shard.counts()
        with self.work:
            counts = dict(own_counts)
            for of_peer in self._peer_counts.values():
                counts.update(of_peer)
            points, self.coordinator.points = self.coordinator.points, []
            status = self.coordinator.status(time.monotonic(), time.time(), counts)
            self._events.take()
        problems = [status.warning, self._checkpoint_problem, *self._snapshot_problems(counts)]
        problems += [
            f"shard {shard} was lost; its last steps are done again" for shard in status.behind_shards
        ]
        status = dataclasses.replace(
            status,
            silent_shards=self._silent_shards,
            warning="; ".join(problem for problem in problems if problem) or None,
        )
        for point in points:
            self._metrics.append(point)
        try:
            self._check_generation()
            self._metrics.flush()
            self._events.flush()
            self._folder.write_status(status)
        except StorageError as error:
            log.warning("status and metrics cannot be written: %s", error)
            if time.monotonic() - self._reported_at > MUTE_SECONDS:
                raise
            return False
        self._reported_at = time.monotonic()
        return True

    def _snapshot_problems(self, counts: Mapping[str, int]) -> Iterator[str]:
        """Say which shards cannot write their recovery snapshots at present."""
        for shard in range(self._config.n_shards):
            if failures := counts.get(f"shard{shard}.snapshots_failing", 0):
                yield f"shard {shard} could not write its last {failures} snapshots"

    def _check_generation(self) -> None:
        """Write nothing for a run that a newer shard 0 looks after.

        Raises:
            SupersededError: There is one.
        """
        address = self._folder.shard_address(0)
        if address is not None and address.generation > self._generation:
            raise SupersededError(f"shard 0 was replaced by generation {address.generation}")

    def _watch_peer(self, peer: int) -> None:
        """Ask another shard regularly, in a thread: one that hangs holds up neither this one nor others."""
        while not (self._shard.stopping.wait(PEER_COUNTS_SECONDS) or self.run_ended):
            try:
                self._refresh_counts(peer)
            except CirrusError as error:
                log.info("shard %d does not answer, or cannot be found: %s", peer, error)

    def _refresh_counts(self, peer: int) -> None:
        with self._refreshing[peer]:
            reply = self._peers.ask(peer, StatisticsRequest(), StatisticsReply)
            self._peers_seen_at[peer] = time.monotonic()
            with self.work:
                if not self.run_ended:  # what was counted then is final
                    self._peer_counts[peer] = reply.counts

    def _obey_requests(self) -> None:
        """Carry out what is asked for; where the store cannot say, at another time."""
        try:
            self._try_requests()
        except StorageError as error:
            # For how long a store may fail is a matter of the reports, which it fails too.
            log.warning("control requests cannot be read: %s", error)

    def _try_requests(self) -> None:
        for key, request in self._folder.requests():
            with self.work:
                self._obey(request)
                self._notify()
            # What takes time stays in the folder until it is done, for the next generation if this one dies.
            if request.action == "snapshot":
                self._snapshots_asked.add(key)
            elif request.action not in ENDING_ACTIONS:
                self._folder.finish_request(key)

    def _obey(self, request: ControlRequest) -> None:
        coordinator = self.coordinator
        match request.action:
            case "kill":
                coordinator.end("killed", RunState.KILLED)
            case "fail":
                coordinator.end("failed", RunState.FAILED, request.reason)
            case "stop":
                coordinator.end("stopped")
            case "snapshot":
                coordinator.checkpoint_wanted = True
            case _:
                log.warning("unknown control request %r", request.action)

    # Checkpoints and the end.

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        """Renew the status meanwhile, in a thread: whoever looks after shard 0 would take it for hung."""
        done = threading.Event()

        def report() -> None:
            with contextlib.suppress(CirrusError):  # the keeper's own next report says so again
                while not done.wait(STATUS_SECONDS):
                    self._report()

        thread = threading.Thread(target=report, name="status", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _write_everywhere(self, url: str) -> bool:
        """Have every shard write its part of a checkpoint, then the manifest; False when one is not ready.

        Asked before what they hold, shards that lost steps, or have some that this one lost, are found out,
        and the leases done; asked again afterwards, those that got steps while they wrote.
        """
        with self.work:
            generations = self.coordinator.shard_generations
        try:
            if not self._have_same_steps():
                return False
            with self._reporting():
                self._ask_all(
                    WriteCheckpoint(url=url), Done, CHECKPOINT_SECONDS, lambda: self._shard.write_part(url)
                )
            if not self._have_same_steps():
                return False
        except (ConnectionLostError, SupersededError, AuthenticationError) as error:
            # Who does not know the run's token is a stranger at the port of a shard that is being replaced.
            log.info("a shard is not ready to save: %s", error)
            self._shard.stopping.wait(TICK_SECONDS)
            return False
        except ShardError as error:
            raise StorageError(f"{url}: a shard cannot write its part: {error}") from error
        store = open_store(url)
        parts = checkpoint.read_part_infos(store, self._config.n_shards)
        extra = self._checkpoint_extra()
        with self.work:
            # A shard that came back from an older snapshot meanwhile wrote what the ledger does not say.
            same = generations == self.coordinator.shard_generations and self.coordinator.ledger.at_rest
        if same:
            checkpoint.write_manifest(store, parts, extra)
        return same

    def _ask_all(
        self,
        message: Message,
        answer: type[M],
        timeout_seconds: float = PEER_SECONDS,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> Mapping[int, M]:
        """Ask all other shards; raise the first error that came of it."""
        found: dict[int, M] = {}
        replies = at_once(
            lambda peer: self._peers.ask(peer, message, answer, timeout_seconds),
            self._other_shards,
            meanwhile,
        )
        for peer, reply in replies.items():
            if isinstance(reply, CirrusError):
                raise reply
            found[peer] = reply
        return found

    def _have_same_steps(self) -> bool:
        """Ask all shards what they hold; tell whether that is what the ledger says, and nobody at work."""
        for peer, reply in self._ask_all(MarksRequest(), MarksReply).items():
            try:
                with self.work:
                    self._note_marks(peer, reply)
                    self._notify()
            except SupersededError:
                self._peers.forget(peer)
                raise
        with self.work:
            return self.coordinator.ledger.at_rest

    def _checkpoint_extra(self) -> Mapping[str, Any]:
        config = self._config
        leases = [[x.chunk, x.first_block, x.n_blocks, x.n_rows, x.n_steps] for x in config.leases]
        with self.work:
            plain = self.coordinator.to_plain(time.monotonic())
        return {
            "fingerprint": config.train_fingerprint,
            "batch_size": config.batch_size,
            "mode": config.mode,
            "leases": leases,
            "coordinator": plain,
            "model": {"name": config.model.name, "params": dict(config.model.params)},
            "optimizers": {table.name: table.optimizer.name for table in config.shard_tables},
            "metadata": dict(config.model_metadata),
        }

    def _save_model(self) -> None:
        try:
            counts = self._final_counts()
            saved = counts is not None and self._write_everywhere(self._folder.model_url)
        except StorageError as error:
            log.warning("the model cannot be saved: %s", error)
            now = time.monotonic()
            self._save_failing_since = self._save_failing_since or now
            if now - self._save_failing_since > SAVE_SECONDS:
                raise
            self._shard.stopping.wait(STATUS_SECONDS)
            return
        if saved:
            with self.work:
                if counts is not None:
                    self._peer_counts = counts
                self.coordinator.saved()
                self._notify()

    def _final_counts(self) -> dict[int, Mapping[str, int]] | None:
        """Return what the other shards count when nothing is left to do; None when one is not ready.

        They are asked before they write their parts: who has written may be gone, or back from an older
        snapshot, and with nothing to do. One that has lost steps is found out, and all are asked again.
        """
        for peer, reply in at_once(self._refresh_counts, self._other_shards).items():
            if isinstance(reply, StorageError):
                raise reply
            if isinstance(reply, CirrusError):
                log.info("shard %d is not ready to save: %s", peer, reply)
                self._shard.stopping.wait(TICK_SECONDS)
                return None
        with self.work:
            return dict(self._peer_counts)

    def _cut_checkpoint(self) -> bool:
        """Cut a checkpoint; False when a shard is not ready. One that fails is told of, and tried again.

        Raises:
            StorageError: None could ever be written: the place is wrong.
        """
        try:
            return self._try_checkpoint()
        except StorageError as error:
            if not self._has_cut:
                raise
            log.warning("the checkpoint cannot be written: %s", error)
            self._checkpoint_problem = f"the last checkpoint could not be written: {error}"
            self._retry_cut_at = time.monotonic() + CHECKPOINT_RETRY_SECONDS
            with self.work:
                self.coordinator.checkpoint_wanted = False
                self._notify()
            return True

    def _try_checkpoint(self) -> bool:
        base = self._folder.checkpoints_url(self._config)
        asked = set(self._snapshots_asked)
        name = checkpoint.name_of_steps(self.coordinator.updates)
        if not self._write_everywhere(f"{base}/{name}"):
            return False
        checkpoint.write_latest(open_store(base), name)
        self._has_cut, self._checkpoint_problem = True, None
        with self.work:
            self.coordinator.checkpoint_wanted = False
            self._notify()
        for key in asked:
            self._folder.finish_request(key)
        self._snapshots_asked -= asked
        return True

    def _say_farewell(self) -> None:
        """The run is over: say so in the folder, to the workers, and to the other shards."""
        while not self.tell_end():
            self._shard.stopping.wait(STATUS_SECONDS)
        with contextlib.suppress(StorageError):  # of a run that is over nobody reads them
            for key, _ in self._folder.requests():
                self._folder.finish_request(key)
        deadline = time.monotonic() + FAREWELL_SECONDS
        with self.work:
            self._notify()
            while self.coordinator.n_registered and time.monotonic() < deadline:
                self.work.wait(TICK_SECONDS)
        end = End(finished=self.coordinator.final_state is RunState.FINISHED)
        for peer, reply in at_once(lambda peer: self._peers.call(peer, end), self._other_shards).items():
            if isinstance(reply, CirrusError):
                log.info("shard %d was gone before the end: %s", peer, reply)
