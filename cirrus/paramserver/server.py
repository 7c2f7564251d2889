"""One shard: its tables and marks, its sockets and threads, its life.

There is a thread for each connection, one that accepts, one that takes recovery snapshots, one that looks
whether the shard was replaced, and one whose beat shows whether it stood still. Shard 0 has that of its
:class:`~cirrus.paramserver.run_keeper.RunKeeper` too, and one that watches each other shard; any other shard
has one that tells shard 0 what it holds. Everything a client may know lies in the run folder.

Lock order: ``attaching``, ``_connections_lock``, then the gates of connections, then the keeper's ``work``,
then ``_marks_lock``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from cirrus.config import RunConfig
from cirrus.errors import (
    CirrusError,
    ConfigError,
    ConnectionLostError,
    CorruptDataError,
    LeaseLostError,
    LimitError,
    ProtocolError,
    ShardError,
    StorageError,
    SupersededError,
)
from cirrus.metrics import RunState
from cirrus.paramserver import checkpoint, kernels
from cirrus.paramserver.connection import Connection
from cirrus.paramserver.ledger import LeaseKey
from cirrus.paramserver.limits import Limits, Strangers, check_tables_fit, memory_budget
from cirrus.paramserver.marks import Marks, StepMarks
from cirrus.paramserver.peers import Peers
from cirrus.paramserver.protocol import (
    Attach,
    Done,
    End,
    MarksReply,
    MarksRequest,
    Message,
    ShardStarted,
    StatisticsReply,
    StatisticsRequest,
    WriteCheckpoint,
)
from cirrus.paramserver.run_keeper import RunKeeper
from cirrus.paramserver.snapshots import Snapshots, snapshot_pause
from cirrus.paramserver.sockets import close
from cirrus.paramserver.tables import ShardTables, table_bytes
from cirrus.run_folder import ControlRequest, RunFolder, ShardAddress
from cirrus.storage import open_store

if TYPE_CHECKING:
    import ssl

log = logging.getLogger(__name__)

#: A shard tells a new shard 0 what it holds, and looks this often whether there is one.
FIRST_REPORT_SECONDS = 0.05
REPORT_SECONDS = 0.5
#: A shard looks this often whether a newer generation of it has been announced.
CONFIRM_SECONDS = 1.0
#: One that stood still for so long may have been replaced, and looks before it takes another push.
FENCE_SECONDS = 3.0
#: Whether it stands still shows in this.
BEAT_SECONDS = 0.5
#: A connection's thread has this long to end.
JOIN_SECONDS = 2.0
ACCEPT_RETRY_SECONDS = 0.05
#: File descriptors that a shard needs for other things than connections.
OTHER_FILES = 64
#: A snapshot that could not be written is tried again this soon, if not sooner.
SNAPSHOT_RETRY_SECONDS = 5.0
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
        limits: What connections may take of it.

    Raises:
        ConfigError: There is no such shard, or its tables do not fit this machine.
    """

    def __init__(
        self,
        run_url: str,
        *,
        shard: int,
        generation: int,
        host: str = "127.0.0.1",
        port: int = 0,
        limits: Limits | None = None,
    ) -> None:
        self.folder = RunFolder(run_url)
        self.config: RunConfig = self.folder.config()
        self.token = self.folder.token()
        self.shard = shard
        self.generation = generation
        if not 0 <= shard < self.config.n_shards:
            raise ConfigError("shard", f"must be in [0, {self.config.n_shards}), got {shard}")
        check_tables_fit(table_bytes(self.config.shard_tables, shard))
        self.tables = ShardTables(self.config.shard_tables, shard, self.config.seed)
        self.limits = limits or Limits()
        self.memory = memory_budget(self.limits)
        """What connections take for large frames."""
        self.refused = Strangers()
        """Those without the token."""
        self.stopping = threading.Event()
        """Set when the shard ends."""
        self._max_connections = min(self.limits.max_connections, _files_left())
        self._host, self._port = host, port
        self._marks = StepMarks(self.config.leases)
        self._marks_lock = threading.Lock()
        self.attaching = threading.Lock()
        """Held while a lease changes hands."""
        self._attachments: dict[LeaseKey, tuple[Connection, int]] = {}
        self._connections: dict[int, Connection] = {}
        self._connections_lock = threading.Lock()
        self._fewer_strangers = threading.Condition(self._connections_lock)
        self._n_accepted = 0
        self._awake_at = time.monotonic()
        """Until then it did not stand still, or has looked since."""
        self._confirming = threading.Lock()
        self._past_counters = np.zeros(kernels.N_COUNTERS, np.int64)
        self._past_rows_pulled = 0
        self._ended = threading.Event()
        self.failed = False
        """True when the shard ended by an error of its own."""
        self._has_asked_to_fail = False
        self._last_finite_epoch = self._last_nonfinite_epoch = -1
        self._snapshots_failing = 0
        """How many snapshots in a row could not be written."""
        self._interrupted = False
        self._restored = False
        self._model_saved = False
        self._threads: list[threading.Thread] = []
        self._listener: socket.socket | None = None
        self._snapshots = Snapshots(self.folder, shard, generation)
        self.tls: ssl.SSLContext | None = None
        """What strangers' connections are encrypted with, in runs with TLS."""
        worker_tls: ssl.SSLContext | None = None
        if self.config.tls:
            from cirrus.paramserver import tls

            self.tls, worker_tls = tls.shard_context(self.folder, shard), tls.worker_context(self.folder)
        self._peers = Peers(self.folder, self.config, self.token, shard, worker_tls)
        self._keeper: RunKeeper | None = None
        if shard == 0:
            self._keeper = RunKeeper(self, self.folder, self.config, generation, self._peers)

    # Life.

    def start(self) -> ShardAddress:
        """Restore, listen, announce the address, and serve in threads.

        Raises:
            SupersededError: A newer generation of this shard has announced itself.
        """
        kernels.compile_all()
        self._restore()
        self._restored = True
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
        self._awake_at = time.monotonic()
        self._spawn(self._accept, "accept")
        self._spawn(self._beat, "beat")
        self._spawn(self._keep_confirmed, "generation")
        self._spawn(self._take_snapshots, "snapshots")
        if self._keeper is not None:
            self._spawn(self._keep_run, "keeper")
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
        self._stop_waiting()
        self._close_sockets()
        self._ended.set()

    def superseded(self) -> None:
        """Somebody knows a newer generation of this shard: serve nobody any more."""
        log.warning("shard %d generation %d was superseded", self.shard, self.generation)
        self.crash()

    def confirm(self) -> None:
        """Look whether this is still the newest generation, if the shard stood still until now.

        It may have been replaced meanwhile: what it took from those who have not heard of that would be lost.
        Where nobody can be asked, it goes on: what it takes then counts only if shard 0 knows no other
        generation when the lease is done. A shard that works does not wait here for the object store.

        Raises:
            SupersededError: It is not; it has stopped then.
        """
        if time.monotonic() - self._awake_at < FENCE_SECONDS:
            return
        with self._confirming:
            if time.monotonic() - self._awake_at >= FENCE_SECONDS:
                self._look_up_generation()
                # Not when the look began: one that took long would have every later push look again.
                self._awake_at = time.monotonic()

    def _look_up_generation(self) -> None:
        try:
            address = self.folder.shard_address(self.shard)
        except CirrusError as error:
            log.warning("shard %d cannot look whether it was replaced: %s", self.shard, error)
            return
        if address is not None and address.generation > self.generation:
            self.superseded()
            raise SupersededError(
                f"generation {self.generation} of shard {self.shard} was replaced by {address.generation}"
            )

    def _beat(self) -> None:
        """Note that the shard has not stood still; after a gap only a look says so again."""
        while not self.stopping.wait(BEAT_SECONDS):
            now = time.monotonic()
            if now - self._awake_at < FENCE_SECONDS:
                self._awake_at = now

    def _keep_confirmed(self) -> None:
        """Look regularly, so that nobody who pushes has to."""
        with contextlib.suppress(SupersededError):
            while not self.stopping.wait(CONFIRM_SECONDS):
                self._look_up_generation()

    def _spawn(self, target: Any, name: str) -> None:
        thread = threading.Thread(target=target, name=f"shard{self.shard}-{name}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _shut_down(self) -> None:
        """Stop serving; write the last snapshot of a run that has not finished, and its status."""
        if self.stopping.is_set():
            self._ended.wait(JOIN_SECONDS)
            return
        self._stop_waiting()
        self._close_listener()
        keeper = self._keeper
        try:
            if keeper is not None and keeper.run_ended:
                is_told = keeper.tell_end()
                self._model_saved = is_told and keeper.coordinator.final_state is RunState.FINISHED
            if self._model_saved:
                self._snapshots.clear()
            elif self._restored:
                # What was not restored yet must not replace the snapshot that it should be restored from.
                self._snapshot()
            if keeper is not None and self._interrupted:
                keeper.interrupt()
        except CirrusError:
            log.exception("shard %d could not save its last snapshot", self.shard)
        finally:
            self._close_sockets()
            self._ended.set()

    def _stop_waiting(self) -> None:
        """Tell every thread that the shard ends."""
        self.stopping.set()
        if self._keeper is not None:
            self._keeper.wake()

    def _keep_run(self) -> None:
        assert self._keeper is not None
        try:
            self._keeper.run()
        except BaseException:
            # Without it the run would stand still: die, so that a new generation takes over.
            log.exception("the keeper of the run failed")
            self.failed = True
            self.crash()
            return
        if self._keeper.run_ended:
            self._shut_down()

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
                connection.join(JOIN_SECONDS)
        self._peers.close()

    def _accept(self) -> None:
        assert self._listener is not None
        while not self.stopping.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError as error:
                if self.stopping.is_set():
                    return
                # Out of file descriptors, or the peer was gone already: others must still be served.
                log.warning("shard %d could not accept a connection: %s", self.shard, error)
                self.stopping.wait(ACCEPT_RETRY_SECONDS)
                continue
            with self._connections_lock:
                self._make_room_for_a_stranger()
                self._n_accepted += 1
                connection = Connection(self, sock, self._n_accepted)
                self._connections[connection.number] = connection
                connection.start()  # before anybody who closes all connections can wait for its end
            if self.stopping.is_set():
                connection.end()

    def _make_room_for_a_stranger(self) -> None:
        """Wait for those who are proving that they have the token; show the slowest the door.

        A fleet that comes all at once is let in one after the other; whoever has had his time goes.
        """

        def waiting() -> list[Connection]:
            return [c for c in self._connections.values() if not (c.is_known or c.is_ending)]

        while len(strangers := waiting()) >= self.limits.max_strangers and not self.stopping.is_set():
            left = strangers[0].accepted_at + self.limits.stranger_seconds - time.monotonic()
            if left <= 0 or not self._fewer_strangers.wait(left):
                n_refused = self.refused.count()
                if n_refused is not None:
                    log.warning("shard %d has %d connections without the token", self.shard, len(strangers))
                strangers[0].end()

    def admit(self, connection: Connection) -> None:
        """A peer has proved that it has the token.

        Raises:
            LimitError: There are too many of them.
        """
        with self._connections_lock:
            n_known = sum(c.is_known for c in self._connections.values())
            if n_known >= self._max_connections:
                raise LimitError(f"this shard has {n_known} connections, the most that it may have")
            connection.is_known = True
            self._fewer_strangers.notify_all()

    def forget(self, connection: Connection) -> None:
        """A connection ended."""
        with self._connections_lock:
            self._connections.pop(connection.number, None)
            self._fewer_strangers.notify_all()
            self._past_counters += connection.counters
            self._past_rows_pulled += connection.pulls.rows_pulled
        with self._marks_lock:
            self._leave(connection)
        if self._keeper is not None:
            self._keeper.disconnect(connection.number)

    @property
    def has_workers(self) -> bool:
        """True when somebody brings the run on, as far as this shard knows: only shard 0 does."""
        return self._keeper is not None and self._keeper.is_served

    # What connections ask.

    def attach(self, connection: Connection, message: Attach) -> Marks:
        """Give a lease to one connection, taking it from another; return the marks of its epoch.

        Raises:
            ProtocolError: There is no such lease.
            LeaseLostError: A later grant of it is at work here.
            LimitError: There are too many epochs at work.
        """
        config = self.config
        if not (0 <= message.lease < len(config.leases) and 0 <= message.epoch < config.stop.epochs):
            raise ProtocolError(f"there is no lease {message.lease} in epoch {message.epoch}")
        key = (message.epoch, message.lease)
        if self._keeper is not None:
            self._keeper.attached(key)
        with self._marks_lock:
            previous = self._attachments.get(key)
            if previous is not None and previous[1] > message.grant:
                raise LeaseLostError(f"lease {message.lease} of epoch {message.epoch} was given again")
            marks = self._marks.of_epoch(message.epoch)
            self._leave(connection)
            self._attachments[key] = (connection, message.grant)
        # Outside the lock, since this waits for the other connection's gate, and who holds all gates wants
        # the lock.
        if previous is not None and previous[0] is not connection:
            previous[0].detach(key)
        return marks

    def _leave(self, connection: Connection) -> None:
        """Forget which lease a connection has attached to."""
        if connection.attached is not None:
            held = self._attachments.get(connection.attached)
            if held is not None and held[0] is connection:
                del self._attachments[connection.attached]

    def answer(self, connection: Connection, message: Message) -> Message:
        """Carry out a request that is neither pull, push nor attach."""
        if isinstance(message, MarksRequest):
            completed, marks = self._plain_marks()
            return MarksReply(generation=self.generation, completed_epochs=completed, marks=marks)
        if isinstance(message, StatisticsRequest):
            return StatisticsReply(counts=self.counts())
        if isinstance(message, WriteCheckpoint):
            self._check_place(message.url)
            self.write_part(message.url)
            return Done()
        if isinstance(message, End):
            self._model_saved = message.finished
            # Joining this very connection from here would wait for itself.
            self._spawn(self._shut_down, "end")
            return Done()
        if self._keeper is None:
            raise ProtocolError(f"a {type(message).__name__} is for shard 0")
        return self._keeper.answer(connection.number, message)

    def met_finite(self, epoch: int) -> None:
        """A step of an epoch was applied, nothing of it refused."""
        if epoch > self._last_finite_epoch:
            with self._connections_lock:
                self._last_finite_epoch = max(self._last_finite_epoch, epoch)

    def met_nonfinite(self, epoch: int) -> None:
        """A gradient with NaN or infinity was refused: fail the run if it does not want to go on then."""
        if epoch > self._last_nonfinite_epoch:
            with self._connections_lock:
                self._last_nonfinite_epoch = max(self._last_nonfinite_epoch, epoch)
        if self.config.nonfinite_gradients != "fail" or self._has_asked_to_fail:
            return
        self._has_asked_to_fail = True
        # A connection's thread must not wait for the object store.
        self._spawn(self._ask_to_fail, "nonfinite")

    def _ask_to_fail(self) -> None:
        reason = (
            f"shard {self.shard} was sent a gradient with NaN or infinity: training diverged, or the data "
            "has such values; try a lower learning_rate, or scale the features"
        )
        try:
            self.folder.request(ControlRequest(action="fail", reason=reason))
        except CirrusError:
            log.exception("shard %d could not have the run fail", self.shard)
            self._has_asked_to_fail = False  # at the next one, then

    # Marks and counters.

    def is_complete(self, key: LeaseKey) -> bool:
        """Tell whether every step of a lease was applied here."""
        with self._marks_lock:
            return self._marks.is_complete(*key)

    def mark_of(self, key: LeaseKey) -> int:
        """Return the next position of a lease on this shard."""
        with self._marks_lock:
            return self._marks.of_lease(*key)

    def _plain_marks(self) -> tuple[int, dict[str, list[int]]]:
        with self._marks_lock:
            return self._marks.to_plain()

    def counts(self) -> dict[str, int]:
        """Return this shard's counters, by names that carry its number."""
        with self._connections_lock:
            connections = list(self._connections.values())
            totals = self._past_counters + sum(c.counters for c in connections)
            pulled = self._past_rows_pulled + sum(c.pulls.rows_pulled for c in connections)
        counts = {f"shard{self.shard}.{name}": int(totals[i]) for name, i in _COUNTERS.items()}
        counts[f"shard{self.shard}.rows_pulled"] = pulled
        counts[f"shard{self.shard}.snapshots_failing"] = self._snapshots_failing
        if self.generation == 1:  # a later one does not know what those before it applied
            counts[f"shard{self.shard}.last_finite_epoch"] = self._last_finite_epoch
            counts[f"shard{self.shard}.last_nonfinite_epoch"] = self._last_nonfinite_epoch
        return counts

    # Snapshots and checkpoints.

    @contextlib.contextmanager
    def _at_rest(self) -> Iterator[None]:
        """Hold back every push (and on shard 0 every change of the ledger) meanwhile."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._connections_lock)
            for connection in self._connections.values():
                stack.enter_context(connection.gate)
            if self._keeper is not None:
                stack.enter_context(self._keeper.work)
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
            if self._keeper is not None:
                extra["coordinator"] = self._keeper.coordinator.to_plain(time.monotonic())
            flat = self.tables.values.copy()
        return checkpoint.Part(tables=self.tables.parts(flat), extra=extra)

    def _snapshot(self) -> None:
        self._snapshots.write(self._copy())

    def _take_snapshots(self) -> None:
        steps_before = -1
        n_bytes = table_bytes(self.config.shard_tables, self.shard)
        usual = snapshot_pause(self.config.snapshot_seconds, n_bytes, is_remote=self.folder.is_remote)
        pause = usual
        while not self.stopping.wait(pause):
            steps = self.counts()[f"shard{self.shard}.steps_applied"]
            if steps == steps_before:
                continue
            try:
                self._snapshot()
            except SupersededError:
                self.superseded()
            except CirrusError:
                log.exception("shard %d could not write a snapshot; it tries again", self.shard)
                self._snapshots_failing += 1
                pause = min(usual, SNAPSHOT_RETRY_SECONDS)
            else:
                self._snapshots_failing = 0
                pause = usual
                steps_before = steps

    def _check_place(self, url: str) -> None:
        """Write nowhere but where this run's model and checkpoints go, whoever asks.

        Raises:
            ProtocolError: That is elsewhere.
        """
        folder, _, name = url.rpartition("/")
        in_their_folder = folder == self.folder.checkpoints_url(self.config)
        is_checkpoint = in_their_folder and checkpoint.is_name_of_steps(name)
        if url != self.folder.model_url and not is_checkpoint:
            raise ProtocolError(f"{url!r} is no place for a checkpoint of this run")

    def write_part(self, url: str) -> None:
        """Write this shard's part of a checkpoint."""
        checkpoint.write_shard_part(open_store(url), self.shard, self._copy())

    def _restore(self) -> None:
        part = self._snapshots.newest()
        if part is not None:
            self.tables.restore([part])
            with _damaged(f"{self.folder.url}/snapshots/{self.shard}"):
                self._restore_extra(part.extra)
        elif self.config.resume_url is not None:
            store = open_store(self.config.resume_url)
            manifest = checkpoint.read_manifest(store)
            self.tables.restore(checkpoint.read_parts(store, manifest))
            if self.config.resume_ledger:
                with _damaged(f"{store.url}/{checkpoint.MANIFEST_KEY}"):
                    self._resume_ledger(manifest.extra)

    def _restore_extra(self, extra: Mapping[str, Any]) -> None:
        self._marks.restore(int(extra["completed_epochs"]), extra["marks"])
        before = np.array(extra["counters"], np.int64)  # an older version counted fewer things
        self._past_counters[: before.size] += before
        if self._keeper is not None:
            self._keeper.coordinator.restore(extra["coordinator"])

    def _resume_ledger(self, extra: Mapping[str, Any]) -> None:
        """Take over the place in the schedule from a checkpoint: what its ledger calls done is done here."""
        plain = extra["coordinator"]
        missing = [*plain["ledger"]["todo"], *plain["ledger"]["dropped"]]
        todo = {(int(e), int(lease)) for e, lease in missing}
        epoch = int(plain["ledger"]["epoch"])
        marks = [0 if (epoch, i) in todo else lease.n_steps for i, lease in enumerate(self.config.leases)]
        self._marks.restore(epoch, {str(epoch): marks})
        done = epoch * self.config.steps_per_epoch + sum(marks)
        self._past_counters[kernels.STEPS_APPLIED] = done
        self._last_finite_epoch = epoch  # some of it was applied already, as far as is known here
        if self._keeper is not None:
            self._keeper.coordinator.resume(plain)

    # What shards other than 0 do for shard 0.

    def _report_to_coordinator(self) -> None:
        """Tell shard 0 what this shard holds, and again whenever shard 0 was replaced."""
        told = -1
        while not self.stopping.is_set():
            try:
                told = self._report_to_another_than(told)
            except (ConnectionLostError, ShardError, StorageError) as error:
                log.info("shard %d cannot reach shard 0 yet: %s", self.shard, error)
            self.stopping.wait(FIRST_REPORT_SECONDS if told < 0 else REPORT_SECONDS)

    def _report_to_another_than(self, told: int) -> int:
        """Tell shard 0 what this shard holds unless its generation is ``told``; return its generation."""
        address = self.folder.shard_address(0)
        if address is None or address.generation == told:
            return told
        completed, marks = self._plain_marks()
        started = ShardStarted(
            shard=self.shard, generation=self.generation, completed_epochs=completed, marks=marks
        )
        self._peers.call(0, started)
        return address.generation


@contextlib.contextmanager
def _damaged(where: str) -> Iterator[None]:
    """Say of what is no ledger and no marks where it stands.

    Raises:
        CorruptDataError: It is none.
    """
    try:
        yield
    except CirrusError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CorruptDataError(
            f"{where}: does not say how far the run was ({error!r}): it was damaged, or written by another "
            "version of Cirrus; go on with the version of Cirrus that began it, or begin anew"
        ) from error


def _files_left() -> int:
    """Return how many connections there are file descriptors for, after asking for all that may be had."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        # macOS promises more than it gives.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else max(1, soft - OTHER_FILES)
