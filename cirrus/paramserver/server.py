"""One shard: its sockets and threads, its life, and on shard 0 the coordinator's.

A shard owns its tables and marks, a thread for each connection, one that accepts, and one that takes recovery
snapshots. Shard 0 has one more, which looks at the clock for the coordinator, writes status and metrics, carries out
control requests and ends the run. Everything a client may know lies in the run folder.

Lock order: ``_connections_lock``, then the gates of connections, then ``work``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from cirrus.config import RunConfig
from cirrus.errors import (
    CirrusError,
    ConfigError,
    ConnectionLostError,
    LeaseLostError,
    ProtocolError,
    ShardError,
    SupersededError,
)
from cirrus.metrics import RunState
from cirrus.paramserver import checkpoint, kernels
from cirrus.paramserver.connection import Connection
from cirrus.paramserver.coordinator import Coordinator, Phase
from cirrus.paramserver.ledger import LeaseKey
from cirrus.paramserver.marks import Marks, StepMarks
from cirrus.paramserver.peers import Peers
from cirrus.paramserver.protocol import (
    Attach,
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
    Release,
    ShardStarted,
    StatisticsReply,
    StatisticsRequest,
    Task,
    WriteCheckpoint,
)
from cirrus.paramserver.snapshots import Snapshots
from cirrus.paramserver.sockets import close
from cirrus.paramserver.tables import ShardTables
from cirrus.run_folder import ControlRequest, MetricsWriter, RunFolder, ShardAddress
from cirrus.storage import open_store

log = logging.getLogger(__name__)

#: The coordinator looks at the clock this often when nothing happens.
TICK_SECONDS = 0.05
STATUS_SECONDS = 0.5
PEER_COUNTS_SECONDS = 2.0
CONTROL_SECONDS = 0.2
#: An object store over the network is asked less often.
REMOTE_CONTROL_SECONDS = 2.0
#: After the run ended, workers have this long to hear of it.
FAREWELL_SECONDS = 2.0
#: Writing a part of a checkpoint is the longest that one shard asks of another.
CHECKPOINT_SECONDS = 300.0
LONGEST_WAIT_SECONDS = 5.0
#: Counters that the status shows, in the order of the kernels' array.
_COUNTERS = {
    "steps_applied": kernels.STEPS_APPLIED,
    "duplicates_dropped": kernels.DUPLICATES_DROPPED,
    "nonfinite_refused": kernels.NONFINITE_REFUSED,
    "rows_pushed": kernels.ROWS_PUSHED,
}


class Shard:
    """A parameter-server shard of one run.

    Args:
        run_url: The run folder.
        shard: Which one this is.
        generation: Its incarnation, higher than that of any that ran before.
        host: Where to listen; loopback unless told otherwise.
        port: 0 lets the kernel choose.
    """

    def __init__(
        self, run_url: str, *, shard: int, generation: int, host: str = "127.0.0.1", port: int = 0
    ) -> None:
        self.folder = RunFolder(run_url)
        self.config: RunConfig = self.folder.config()
        self.token = self.folder.token()
        self.shard = shard
        self.generation = generation
        if not 0 <= shard < self.config.n_shards:
            raise ConfigError("shard", f"must be in [0, {self.config.n_shards}), got {shard}")
        self.tables = ShardTables(self.config.tables, shard, self.config.seed)
        self.work = threading.Condition()
        """Guards the coordinator; notified when something may have changed for those who wait."""
        self._host, self._port = host, port
        self._marks = StepMarks(self.config.leases)
        self._marks_lock = threading.Lock()
        self._attachments: dict[LeaseKey, tuple[Connection, int]] = {}
        self._connections: dict[int, Connection] = {}
        self._connections_lock = threading.Lock()
        self._n_accepted = 0
        self._past_counters = np.zeros(kernels.N_COUNTERS, np.int64)
        self._past_rows_pulled = 0
        self._stopping = threading.Event()
        self._ended = threading.Event()
        self._interrupted = False
        self._threads: list[threading.Thread] = []
        self._listener: socket.socket | None = None
        self._snapshots = Snapshots(self.folder, shard)
        self._coordinator: Coordinator | None = None
        self._peers = Peers(self.folder, self.config, self.token, shard)
        if shard == 0:
            self._coordinator = Coordinator(self.config, generation, time.monotonic(), time.time())
            self._metrics = MetricsWriter(self.folder)
            self._peer_counts: dict[str, int] = {}

    # Life.

    def start(self) -> ShardAddress:
        """Restore, listen, announce the address, and serve in threads.

        Raises:
            SupersededError: A newer generation of this shard has announced itself.
        """
        self._restore()
        self._listener = socket.create_server((self._host, self._port), backlog=1024)
        host, port = self._listener.getsockname()[:2]
        address = ShardAddress(
            shard=self.shard, generation=self.generation, host=host, port=port, pid=os.getpid()
        )
        try:
            self.folder.announce_shard(address)
        except CirrusError:
            close(self._listener)
            raise
        self._spawn(self._accept, "accept")
        self._spawn(self._take_snapshots, "snapshots")
        if self._coordinator is not None:
            self._spawn(self._coordinate, "coordinate")
        else:
            self._spawn(self._report_to_coordinator, "report")
        return address

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the shard has ended; return whether it has."""
        return self._ended.wait(timeout)

    def stop(self) -> None:
        """End at once, with a last snapshot, because the client went away or asked to."""
        self._interrupted = True
        self._shut_down()

    def crash(self) -> None:
        """End like a killed process: nothing is saved. For tests of recovery."""
        self._stopping.set()
        self._close_sockets()
        self._ended.set()

    def superseded(self) -> None:
        """Somebody knows a newer generation of this shard: serve nobody any more."""
        log.warning("shard %d generation %d was superseded", self.shard, self.generation)
        self.crash()

    def _spawn(self, target: Any, name: str) -> None:
        thread = threading.Thread(target=target, name=f"shard{self.shard}-{name}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _shut_down(self) -> None:
        """Stop serving; write the last snapshot of a run that did not finish, and its status."""
        if self._stopping.is_set():
            self._ended.wait(FAREWELL_SECONDS)
            return
        self._stopping.set()
        with self.work:
            self.work.notify_all()
        self._close_listener()
        coordinator = self._coordinator
        unfinished = self._interrupted or (coordinator is not None and coordinator.phase != Phase.ENDED)
        try:
            if unfinished or (coordinator is not None and coordinator.final_state != RunState.FINISHED):
                self._snapshot()
            if coordinator is not None and unfinished and coordinator.phase != Phase.ENDED:
                coordinator.end("client lost", RunState.INTERRUPTED)
                self._report(coordinator)
        except CirrusError:
            log.exception("shard %d could not save its last snapshot", self.shard)
        finally:
            self._close_sockets()
            self._ended.set()

    def _close_listener(self) -> None:
        if self._listener is not None:
            close(self._listener)

    def _close_sockets(self) -> None:
        self._close_listener()
        with self._connections_lock:
            connections = list(self._connections.values())
        for connection in connections:
            connection.end()
        for connection in connections:
            if connection is not threading.current_thread():
                connection.join(FAREWELL_SECONDS)
        self._peers.close()

    def _accept(self) -> None:
        assert self._listener is not None
        while not self._stopping.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError as error:
                if self._stopping.is_set():
                    return
                # Out of file descriptors, or the peer was gone already: others must still be served.
                log.warning("shard %d could not accept a connection: %s", self.shard, error)
                self._stopping.wait(TICK_SECONDS)
                continue
            with self._connections_lock:
                self._n_accepted += 1
                connection = Connection(self, sock, self._n_accepted)
                self._connections[connection.number] = connection
            connection.start()
            if self._stopping.is_set():
                connection.end()

    def forget(self, connection: Connection) -> None:
        """A connection ended."""
        with self._connections_lock:
            self._connections.pop(connection.number, None)
            self._past_counters += connection.counters
            self._past_rows_pulled += connection.rows_pulled
        if self._coordinator is not None:
            with self.work:
                self._coordinator.disconnect(connection.number)
                self.work.notify_all()

    # What connections ask.

    def attach(self, connection: Connection, message: Attach) -> Marks:
        """Give a lease to one connection, taking it from another; return the marks of its epoch.

        Raises:
            ProtocolError: There is no such lease.
            LeaseLostError: A later grant of it is at work here.
        """
        if message.lease >= len(self.config.leases) or message.epoch >= self.config.stop.epochs:
            raise ProtocolError(f"there is no lease {message.lease} in epoch {message.epoch}")
        key = (message.epoch, message.lease)
        with self._marks_lock:
            previous = self._attachments.get(key)
            if previous is not None and previous[1] > message.grant:
                raise LeaseLostError(f"lease {message.lease} of epoch {message.epoch} was given again")
            if connection.attached is not None:
                held = self._attachments.get(connection.attached)
                if held is not None and held[0] is connection:
                    del self._attachments[connection.attached]
            self._attachments[key] = (connection, message.grant)
            marks = self._marks.of_epoch(message.epoch)
        # Outside the lock, since this waits for the other connection's gate, and who holds all gates wants the lock.
        if previous is not None and previous[0] is not connection:
            previous[0].detach(key)
        return marks

    def answer(self, connection: Connection, message: Message) -> Message:
        """Carry out a request that is neither pull, push nor attach."""
        if isinstance(message, MarksRequest):
            completed, marks = self._plain_marks()
            return MarksReply(generation=self.generation, completed_epochs=completed, marks=marks)
        if isinstance(message, StatisticsRequest):
            return StatisticsReply(counts=self.counts())
        if isinstance(message, WriteCheckpoint):
            self._write_part(message.url)
            return Done()
        if isinstance(message, End):
            # Joining this very connection from here would wait for itself.
            self._spawn(self._shut_down, "end")
            return Done()
        if self._coordinator is None:
            raise ProtocolError(f"a {type(message).__name__} is for shard 0")
        return self._coordinate_request(self._coordinator, connection, message)

    def _coordinate_request(
        self, coordinator: Coordinator, connection: Connection, message: Message
    ) -> Message:
        if isinstance(message, NextTask):
            return self._next_task(coordinator, connection, message)
        with self.work:
            if isinstance(message, Register):
                coordinator.register(connection.number, message.worker, message.generation, message.role)
                reply: Message = Registered()
            elif isinstance(message, Complete):
                if message.lease >= len(self.config.leases):
                    raise ProtocolError(f"there is no lease {message.lease}")
                full = self._is_complete((message.epoch, message.lease))
                if not coordinator.complete(connection.number, message, full, time.monotonic()):
                    raise LeaseLostError("steps of the lease were lost; it is given again")
                reply = Done()
            elif isinstance(message, Release):
                coordinator.release(connection.number, (message.epoch, message.lease))
                reply = Done()
            elif isinstance(message, Evaluation):
                coordinator.evaluated(message, time.monotonic())
                reply = Done()
            elif isinstance(message, ShardStarted):
                lost = coordinator.shard_started(
                    message.shard, message.generation, message.completed_epochs, message.marks
                )
                if lost:
                    log.warning("shard %d lost steps of %d leases", message.shard, lost)
                reply = Done()
            else:
                raise ProtocolError(f"a shard cannot answer a {type(message).__name__}")
            self.work.notify_all()
        return reply

    def _next_task(self, coordinator: Coordinator, connection: Connection, message: NextTask) -> Task:
        deadline = time.monotonic() + min(message.wait_seconds, LONGEST_WAIT_SECONDS)
        with self.work:
            while True:
                if self._stopping.is_set() and coordinator.phase != Phase.ENDED:
                    raise ConnectionLostError("the shard is going down")
                now = time.monotonic()
                task = coordinator.next_task(connection.number, now)
                if task is not None:
                    return task
                if now >= deadline:
                    return Task(action="wait")
                self.work.wait(deadline - now)

    # Marks and counters.

    def _is_complete(self, key: LeaseKey) -> bool:
        with self._marks_lock:
            return self._marks.is_complete(*key)

    def _mark_of(self, key: LeaseKey) -> int:
        with self._marks_lock:
            return int(self._marks.of_epoch(key[0])[key[1]])

    def _plain_marks(self) -> tuple[int, dict[str, list[int]]]:
        with self._marks_lock:
            return self._marks.to_plain()

    def counts(self) -> dict[str, int]:
        """Return this shard's counters, by names that carry its number."""
        with self._connections_lock:
            connections = list(self._connections.values())
            totals = self._past_counters + sum(c.counters for c in connections)
            pulled = self._past_rows_pulled + sum(c.rows_pulled for c in connections)
        counts = {f"shard{self.shard}.{name}": int(totals[i]) for name, i in _COUNTERS.items()}
        counts[f"shard{self.shard}.rows_pulled"] = pulled
        return counts

    # Snapshots and checkpoints.

    @contextlib.contextmanager
    def _at_rest(self) -> Iterator[None]:
        """Hold back every push (and on shard 0 every change of the ledger) meanwhile."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._connections_lock)
            for connection in self._connections.values():
                stack.enter_context(connection.gate)
            stack.enter_context(self.work)
            yield

    def _copy(self) -> checkpoint.Part:
        """Copy everything that a later generation needs, at one moment."""
        with self._at_rest():
            completed, marks = self._plain_marks()
            totals = self._past_counters + sum(c.counters for c in self._connections.values())
            extra: dict[str, Any] = {
                "completed_epochs": completed,
                "marks": marks,
                "counters": totals.tolist(),
            }
            if self._coordinator is not None:
                extra["coordinator"] = self._coordinator.to_plain(time.monotonic())
            flat = self.tables.values.copy()
        return checkpoint.Part(tables=self.tables.parts(flat), extra=extra)

    def _snapshot(self) -> None:
        self._snapshots.write(self._copy())

    def _take_snapshots(self) -> None:
        steps_before = -1
        while not self._stopping.wait(self.config.snapshot_seconds):
            steps = self.counts()[f"shard{self.shard}.steps_applied"]
            if steps == steps_before:
                continue
            try:
                self._snapshot()
            except CirrusError:
                log.exception("shard %d could not write a snapshot; it tries again", self.shard)
            else:
                steps_before = steps

    def _write_part(self, url: str) -> None:
        store = open_store(url)
        info = checkpoint.write_part(store, f"part-{self.shard}.bin", self._copy())
        checkpoint.write_part_info(store, self.shard, info)

    def _restore(self) -> None:
        part = self._snapshots.newest()
        if part is not None:
            self.tables.restore([part])
            self._restore_extra(part.extra)
        elif self.config.resume_url is not None:
            store = open_store(self.config.resume_url)
            manifest = checkpoint.read_manifest(store)
            self.tables.restore(checkpoint.read_parts(store, manifest))
            if self.config.resume_ledger:
                self._resume_ledger(manifest.extra)

    def _restore_extra(self, extra: Mapping[str, Any]) -> None:
        self._marks.restore(int(extra["completed_epochs"]), extra["marks"])
        self._past_counters += np.array(extra["counters"], np.int64)
        if self._coordinator is not None:
            self._coordinator.restore(extra["coordinator"])

    def _resume_ledger(self, extra: Mapping[str, Any]) -> None:
        """Take over the place in the schedule from a checkpoint: what its ledger calls done is done here."""
        plain = extra["coordinator"]
        todo = {(int(e), int(lease)) for e, lease in plain["ledger"]["todo"]}
        epoch = int(plain["ledger"]["epoch"])
        marks = [
            0 if (epoch, i) in todo else lease.n_steps for i, lease in enumerate(self.config.leases)
        ]
        self._marks.restore(epoch, {str(epoch): marks})
        done = epoch * self.config.steps_per_epoch + sum(marks)
        self._past_counters[kernels.STEPS_APPLIED] = done
        if self._coordinator is not None:
            self._coordinator.resume(plain)

    # What shards other than 0 do for shard 0.

    def _report_to_coordinator(self) -> None:
        """Tell shard 0 what this shard holds, and again whenever shard 0 was replaced."""
        told = -1
        while not self._stopping.is_set():
            address = self.folder.shard_address(0)
            if address is not None and address.generation != told:
                completed, marks = self._plain_marks()
                started = ShardStarted(
                    shard=self.shard, generation=self.generation, completed_epochs=completed, marks=marks
                )
                try:
                    self._peers.call(0, started)
                    told = address.generation
                except (ConnectionLostError, ShardError) as error:
                    log.info("shard %d cannot reach shard 0 yet: %s", self.shard, error)
            self._stopping.wait(TICK_SECONDS if told < 0 else STATUS_SECONDS)

    # What shard 0 does for the run.

    def _coordinate(self) -> None:
        coordinator = self._coordinator
        assert coordinator is not None
        try:
            self._keep_going(coordinator)
        except CirrusError as error:
            log.exception("the coordinator failed")
            with self.work:
                coordinator.end("failed", RunState.FAILED, str(error))
                self.work.notify_all()
        if coordinator.phase == Phase.ENDED and not self._interrupted:
            self._say_farewell(coordinator)
            self._shut_down()

    def _keep_going(self, coordinator: Coordinator) -> None:
        status_at = control_at = checkpoint_at = counts_at = time.monotonic()
        control_seconds = REMOTE_CONTROL_SECONDS if "://" in self.folder.url else CONTROL_SECONDS
        if self.folder.url.startswith("memory:"):
            control_seconds = CONTROL_SECONDS
        self._report(coordinator)
        while not self._stopping.is_set():
            with self.work:
                now = time.monotonic()
                coordinator.tick(now, self._mark_of)
                self.work.notify_all()
                if coordinator.phase == Phase.ENDED:
                    return
                if coordinator.phase != Phase.SAVING and not self._checkpoint_due(coordinator):
                    self.work.wait(TICK_SECONDS)
                    coordinator.tick(time.monotonic(), self._mark_of)
                phase, due = coordinator.phase, self._checkpoint_due(coordinator)
            now = time.monotonic()
            if phase == Phase.ENDED:
                return
            if phase == Phase.SAVING:
                self._save_model(coordinator)
                continue
            if due:
                self._cut_checkpoint(coordinator)
            every = self.config.checkpoint_seconds
            if every is not None and now - checkpoint_at >= every:
                checkpoint_at = now
                coordinator.checkpoint_wanted = True
            if now - control_at >= control_seconds:
                control_at = now
                self._obey_requests(coordinator)
            if now - counts_at >= PEER_COUNTS_SECONDS:
                counts_at = now
                self._refresh_peer_counts()
            if now - status_at >= STATUS_SECONDS:
                status_at = now
                self._report(coordinator)

    @staticmethod
    def _checkpoint_due(coordinator: Coordinator) -> bool:
        return coordinator.checkpoint_wanted and coordinator.ledger.at_rest

    def _report(self, coordinator: Coordinator) -> None:
        """Write status and metrics to the run folder."""
        with self.work:
            points, coordinator.points = coordinator.points, []
            counts = {**self._peer_counts, **self.counts()}
            status = coordinator.status(time.monotonic(), time.time(), counts)
        for point in points:
            self._metrics.append(point)
        self._metrics.flush()
        self.folder.write_status(status)

    def _refresh_peer_counts(self) -> None:
        for peer in range(1, self.config.n_shards):
            try:
                reply = self._peers.call(peer, StatisticsRequest())
            except (ConnectionLostError, ShardError) as error:
                log.info("shard %d does not answer: %s", peer, error)
                continue
            if isinstance(reply, StatisticsReply):
                self._peer_counts.update(reply.counts)

    def _obey_requests(self, coordinator: Coordinator) -> None:
        for key, request in self.folder.requests():
            self._obey(coordinator, request)
            self.folder.finish_request(key)

    def _obey(self, coordinator: Coordinator, request: ControlRequest) -> None:
        with self.work:
            if request.action == "kill":
                coordinator.end("killed", RunState.KILLED)
            elif request.action == "fail":
                coordinator.end("failed", RunState.FAILED, request.reason)
            elif request.action == "stop":
                coordinator.end("stopped")
            elif request.action == "snapshot":
                coordinator.checkpoint_wanted = True
            else:
                log.warning("unknown control request %r", request.action)
            self.work.notify_all()

    def _write_everywhere(self, url: str, coordinator: Coordinator) -> bool:
        """Have every shard write its part of a checkpoint, then the manifest; False when a shard is not ready.

        Asked first what they hold, shards that lost steps are found out, and their leases given again.
        """
        peers = range(1, self.config.n_shards)
        try:
            for peer in peers:
                reply = self._peers.call(peer, MarksRequest())
                if isinstance(reply, MarksReply):
                    with self.work:
                        lost = coordinator.shard_started(
                            peer, reply.generation, reply.completed_epochs, reply.marks
                        )
                        self.work.notify_all()
                    if lost:
                        return False
            for peer in peers:
                self._peers.call(peer, WriteCheckpoint(url=url), CHECKPOINT_SECONDS)
        except (ConnectionLostError, SupersededError) as error:
            log.info("a shard is not ready to save: %s", error)
            self._stopping.wait(TICK_SECONDS)
            return False
        self._write_part(url)
        store = open_store(url)
        parts = checkpoint.read_part_infos(store, self.config.n_shards)
        with self.work:
            extra = {
                "fingerprint": self.config.train_fingerprint,
                "batch_size": self.config.batch_size,
                "leases": [[x.chunk, x.first_block, x.n_blocks, x.n_rows, x.n_steps] for x in self.config.leases],
                "coordinator": coordinator.to_plain(time.monotonic()),
                "model": {"name": self.config.model.name, "params": dict(self.config.model.params)},
                "metadata": dict(self.config.model_metadata),
            }
        checkpoint.write_manifest(store, parts, extra)
        return True

    def _save_model(self, coordinator: Coordinator) -> None:
        if self._write_everywhere(f"{self.folder.url}/model", coordinator):
            self._refresh_peer_counts()
            with self.work:
                coordinator.saved()
                self.work.notify_all()

    def _cut_checkpoint(self, coordinator: Coordinator) -> None:
        base = self.config.checkpoint_url or f"{self.folder.url}/checkpoints"
        with self.work:
            name = f"step-{coordinator.updates:012d}"
        if self._write_everywhere(f"{base}/{name}", coordinator):
            checkpoint.write_latest(open_store(base), name)
            coordinator.checkpoint_wanted = False
            with self.work:
                self.work.notify_all()

    def _say_farewell(self, coordinator: Coordinator) -> None:
        """The run is over: say so in the folder, to the workers, and to the other shards."""
        deadline = time.monotonic() + FAREWELL_SECONDS
        with self.work:
            self.work.notify_all()
        self._report(coordinator)
        with self.work:
            while coordinator.n_registered and time.monotonic() < deadline:
                self.work.wait(TICK_SECONDS)
        for peer in range(1, self.config.n_shards):
            try:
                self._peers.call(peer, End())
            except (ConnectionLostError, ShardError) as error:
                log.info("shard %d was gone before the end: %s", peer, error)
