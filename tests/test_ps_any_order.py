"""Everything going wrong in any order, drawn by hypothesis, around the real coordinator and real marks."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections import Counter
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from ps_runs import complete, make_config, make_leases

from cirrus.errors import RegistrationError
from cirrus.paramserver.coordinator import Coordinator, Phase
from cirrus.paramserver.marks import StepMarks
from cirrus.paramserver.protocol import Evaluation, Task

UNIX_NOW = 1_000_000_000.0


@dataclasses.dataclass
class _Snapshot:
    marks: tuple[int, dict[str, list[int]]]
    applied: Counter[tuple[int, int, int]]
    coordinator: dict[str, Any] | None


@dataclasses.dataclass
class _Work:
    """A lease in a worker's hands, and what it believes of the shards."""

    task: Task
    generations: list[int]
    attached: bool = False


class AnyOrder(RuleBasedStateMachine):
    """Workers and shards that do, lose and die in any order; at the end every step counts once a shard.

    When the run is stopped before, every lease is done on all shards, or on none.
    """

    @initialize(
        n_steps=st.lists(st.integers(1, 3), min_size=1, max_size=4),
        n_shards=st.integers(1, 3),
        epochs=st.integers(1, 3),
        validated=st.booleans(),
    )
    def begin(self, n_steps: list[int], n_shards: int, epochs: int, validated: bool) -> None:
        """Start a run."""
        self.config = make_config(
            leases=make_leases(*n_steps),
            n_shards=n_shards,
            stop={"epochs": epochs},
            validation_url="somewhere" if validated else None,
            lease_seconds=10.0,
        )
        self.now = 0.0
        self.next_connection = 1
        self.generations = [1] * n_shards
        self.marks = [StepMarks(self.config.leases) for _ in range(n_shards)]
        self.applied: list[Counter[tuple[int, int, int]]] = [Counter() for _ in range(n_shards)]
        self.snapshots: list[_Snapshot | None] = [None] * n_shards
        self.unreported = set(range(1, n_shards))
        self.coordinator = Coordinator(self.config, 1, self.now, UNIX_NOW)
        self.stop_asked = False
        self.workers: dict[int, list[_Work]] = {}
        self.evaluators: dict[int, list[Task]] = {}
        for shard in range(1, n_shards):
            self._report(shard)
        for worker in range(2):
            self.register(worker, 1)

    # What workers do.

    @rule(worker=st.integers(0, 3), generation=st.integers(0, 2))
    def register(self, worker: int, generation: int) -> None:
        """A worker connects."""
        connection, self.next_connection = self.next_connection, self.next_connection + 1
        try:
            self.coordinator.register(connection, worker, generation, "train")
        except RegistrationError:
            return
        self.workers[connection] = []

    @rule()
    def register_evaluator(self) -> None:
        """An evaluator connects."""
        connection, self.next_connection = self.next_connection, self.next_connection + 1
        try:
            self.coordinator.register(connection, 0, 1, "evaluate")
        except RegistrationError:
            return
        self.evaluators[connection] = []

    @precondition(lambda self: self.workers)
    @rule(data=st.data())
    def ask(self, data: st.DataObject) -> None:
        """A worker asks for a lease."""
        self._ask(data.draw(st.sampled_from(sorted(self.workers))))

    def _ask(self, connection: int) -> bool:
        try:
            task = self.coordinator.next_task(connection, self.now)
        except RegistrationError:
            del self.workers[connection]
            return False
        if task is None or task.action != "train":
            return False
        self.workers[connection].append(_Work(task, list(self.generations)))
        return True

    @precondition(lambda self: self.workers)
    @rule(data=st.data(), n_leases=st.integers(1, 4))
    def do_leases(self, data: st.DataObject, n_leases: int) -> None:
        """A worker does some leases without any trouble."""
        self._do_leases(data.draw(st.sampled_from(sorted(self.workers))), n_leases)

    @precondition(lambda self: self.workers)
    @rule(data=st.data())
    def do_a_lease(self, data: st.DataObject) -> None:
        """As above, once more: most of what workers do goes well."""
        self._do_leases(data.draw(st.sampled_from(sorted(self.workers))), 1)

    def _do_leases(self, connection: int, n_leases: int) -> None:
        for _ in range(n_leases):
            if not self._ask(connection):
                return
            self._complete(self.workers[connection].pop(), early=False)

    def _works(self) -> list[tuple[int, int]]:
        return [(c, i) for c, works in sorted(self.workers.items()) for i in range(len(works))]

    def _push(self, work: _Work, shard: int) -> None:
        """Push the next step that a shard lacks, having told shard 0 of the lease before."""
        if not work.attached:
            work.attached = True
            self.coordinator.attached((work.task.epoch, work.task.lease))
        epoch, lease = work.task.epoch, work.task.lease
        marks = self.marks[shard].of_epoch(epoch)
        position = int(marks[lease])
        if position < self.config.leases[lease].n_steps:
            self.applied[shard][(epoch, lease, position)] += 1
            marks[lease] += 1

    @precondition(lambda self: self._works())
    @rule(data=st.data(), n_pushes=st.integers(1, 4))
    def push(self, data: st.DataObject, n_pushes: int) -> None:
        """A worker, whether it still holds its lease or not, pushes steps to a shard."""
        connection, i = data.draw(st.sampled_from(self._works()))
        work = self.workers[connection][i]
        shard = data.draw(st.integers(0, self.config.n_shards - 1))
        if work.generations[shard] != self.generations[shard]:
            work.generations = list(self.generations)  # it finds out, connects and attaches anew
            work.attached = False
        for _ in range(n_pushes):
            self._push(work, shard)

    @precondition(lambda self: self._works())
    @rule(data=st.data(), early=st.booleans())
    def complete(self, data: st.DataObject, early: bool) -> None:
        """A worker pushes what is left and says that it is done, perhaps without a shard's knowledge."""
        connection, i = data.draw(st.sampled_from(self._works()))
        self._complete(self.workers[connection].pop(i), early, connection)

    def _complete(self, work: _Work, early: bool, connection: int = 0) -> None:
        lease = self.config.leases[work.task.lease]
        for shard in range(self.config.n_shards):
            if work.generations[shard] == self.generations[shard]:
                for _ in range(lease.n_steps):
                    self._push(work, shard)
            elif not early:
                return  # it would have found out
        full = self.marks[0].is_complete(work.task.epoch, work.task.lease)
        said = complete(work.task, work.generations, lease.n_steps)
        self.coordinator.complete(connection, said, full, self.now)

    @precondition(lambda self: self.evaluators)
    @rule(data=st.data(), dies=st.booleans())
    def evaluate(self, data: st.DataObject, dies: bool) -> None:
        """The evaluator asks, and reports or dies."""
        connection = data.draw(st.sampled_from(sorted(self.evaluators)))
        task = self.coordinator.next_task(connection, self.now)
        if dies:
            self.coordinator.disconnect(connection)
            del self.evaluators[connection]
        elif task is not None and task.action == "evaluate":
            self.coordinator.evaluated(Evaluation(epoch=task.epoch, grant=task.grant, loss=1.0), self.now)

    @precondition(lambda self: self.workers)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        """A worker's connection ends; what it knew is gone."""
        connection = data.draw(st.sampled_from(sorted(self.workers)))
        self.coordinator.disconnect(connection)
        del self.workers[connection]

    @precondition(lambda self: len(self.applied[0]) > 4)
    @rule()
    def stop(self) -> None:
        """Somebody asks the run to stop; the request stays in the folder."""
        self.stop_asked = True
        self._tick()

    @rule()
    def cut_checkpoint(self) -> None:
        """When shard 0 thinks that all are at rest, and all have said what they hold, they hold the same."""
        for shard in range(1, self.config.n_shards):
            self._report(shard)
        if self.coordinator.ledger.at_rest:
            self._assert_same_steps()

    def _assert_same_steps(self) -> None:
        """Check that every lease is whole on all shards, or not begun on any."""
        assert all(counter == self.applied[0] for counter in self.applied)
        leases = Counter((epoch, lease) for epoch, lease, _ in self.applied[0])
        assert all(n == self.config.leases[lease].n_steps for (_, lease), n in leases.items())

    @rule(seconds=st.sampled_from([0.1, 5.0, 11.0]))
    def pass_time(self, seconds: float) -> None:
        """Time passes; leases may expire."""
        self.now += seconds
        self._tick()

    def _tick(self) -> None:
        if self.stop_asked:
            self.coordinator.end("stopped")
        self.coordinator.tick(self.now, lambda key: int(self.marks[0].of_epoch(key[0])[key[1]]))

    # What shards do.

    @precondition(lambda self: any(self.applied))
    @rule(data=st.data())
    def snapshot(self, data: st.DataObject) -> None:
        """A shard takes a snapshot."""
        shard = data.draw(st.integers(0, self.config.n_shards - 1))
        plain = self.coordinator.to_plain(self.now) if shard == 0 else None
        self.snapshots[shard] = copy.deepcopy(
            _Snapshot(self.marks[shard].to_plain(), self.applied[shard], json.loads(json.dumps(plain)))
        )

    @precondition(lambda self: self.coordinator.phase is not Phase.ENDED and any(self.applied))
    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        """A shard dies and starts again from its snapshot."""
        shard = data.draw(st.integers(0, self.config.n_shards - 1))
        held = copy.deepcopy(self.snapshots[shard])
        self.generations[shard] += 1
        self.marks[shard] = StepMarks(self.config.leases)
        self.applied[shard] = Counter()
        if held is not None:
            self.marks[shard].restore(*held.marks)
            self.applied[shard] = held.applied
        if shard > 0:
            self.unreported.add(shard)
            return
        self.coordinator = Coordinator(self.config, self.generations[0], self.now, UNIX_NOW)
        if held is not None and held.coordinator is not None:
            self.coordinator.restore(held.coordinator)
        # Workers go on with what they have in hand, and register anew.
        for works in list(self.workers.values()):
            self.workers[self.next_connection] = works
            self.next_connection += 1
        self.workers = {c: w for c, w in self.workers.items() if c not in self.coordinator._workers and w}
        self.evaluators.clear()
        self.unreported = set(range(1, self.config.n_shards))

    @precondition(lambda self: self.unreported)
    @rule(data=st.data())
    def report(self, data: st.DataObject) -> None:
        """A shard tells shard 0 what it holds."""
        self._report(data.draw(st.sampled_from(sorted(self.unreported))))

    def _report(self, shard: int) -> int:
        self.unreported.discard(shard)
        return self.coordinator.shard_started(shard, self.generations[shard], *self.marks[shard].to_plain())

    # What must hold.

    @invariant()
    def nothing_is_applied_twice(self) -> None:
        """No step counts twice on any shard, at any time."""
        if hasattr(self, "applied"):
            assert all(n == 1 for counter in self.applied for n in counter.values())

    @invariant()
    def epochs_are_in_order(self) -> None:
        """Leases are open in the current epoch or, when they were lost, in earlier ones."""
        if hasattr(self, "coordinator"):
            assert all(epoch <= self.coordinator.ledger.epoch for epoch, _ in self.coordinator.ledger.open)
            assert self.coordinator.ledger.epoch < self.config.stop.epochs

    def teardown(self) -> None:
        """Let one worker and one evaluator finish the run, and count."""
        if not hasattr(self, "coordinator"):
            return
        for connection in [*self.workers, *self.evaluators]:
            self.coordinator.disconnect(connection)
        worker, evaluator = self.next_connection, self.next_connection + 1
        self.coordinator.register(worker, 0, 99, "train")
        self.coordinator.register(evaluator, 0, 99, "evaluate")
        for _ in range(1000):
            if self.coordinator.phase is Phase.ENDED:
                break
            self._finish_a_little(worker, evaluator)
        assert self.coordinator.phase is Phase.ENDED
        self._assert_same_steps()
        assert self.coordinator.updates == len(self.applied[0])
        if self.stop_asked:
            return
        leases = enumerate(self.config.leases)
        once = {(lease, i): 1 for lease, held in leases for i in range(held.n_steps)}
        every = {(epoch, *key): 1 for epoch in range(self.config.stop.epochs) for key in once}
        assert [dict(counter) for counter in self.applied] == [every] * self.config.n_shards
        assert all(marks.completed_epochs == self.config.stop.epochs for marks in self.marks)

    def _finish_a_little(self, worker: int, evaluator: int) -> None:
        for shard in sorted(self.unreported):
            self._report(shard)
        self.now += 0.1
        self._tick()
        if self.coordinator.phase is Phase.SAVING:
            # As before a checkpoint: shards are asked what they hold.
            for shard in range(1, self.config.n_shards):
                self._report(shard)
            self.coordinator.saved()
            return
        task = self.coordinator.next_task(evaluator, self.now)
        if task is not None and task.action == "evaluate":
            self.coordinator.evaluated(Evaluation(epoch=task.epoch, grant=task.grant, loss=1.0), self.now)
        task = self.coordinator.next_task(worker, self.now)
        if task is not None and task.action == "train":
            self.workers[worker] = [_Work(task, list(self.generations))]
            lease = self.config.leases[task.lease]
            for shard in range(self.config.n_shards):
                for _ in range(lease.n_steps):
                    self._push(self.workers[worker][0], shard)
            full = self.marks[0].is_complete(task.epoch, task.lease)
            said = complete(task, self.generations, lease.n_steps)
            assert self.coordinator.complete(worker, said, full, self.now)


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(
    max_examples=300,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
