"""Whatever is launched, moved, paused, ended and killed: widths and bookings hold, and nothing
waits in vain."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)

from ipytaskpersist.base.demands import Demands
from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.process_identity import ProcessIdentity, host_name
from ipytaskpersist.base.records import LIVE_STATES, Options, TaskRecord, TaskState
from ipytaskpersist.session.notebook_identity import session_identity
from ipytaskpersist.store import booking
from ipytaskpersist.store.booking import Gpu
from ipytaskpersist.store.processes import NewProcess
from ipytaskpersist.store.queue import ANY, CONDITIONS, FAILED, OK, Admission, Dependency
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import NewTask, Selection
from properties.profiles import tried

GROUPS = ("default", "gpu", "net")
SESSIONS = 3
WHOLE = 3
"""How many CPUs, bytes of memory, and GPUs the machine has."""
SHARE = st.none() | st.integers(1, WHOLE)
GPUS = [Gpu(f"GPU-{index}", index, "", 10, 10) for index in range(WHOLE)]
MACHINE = booking.Machine(host_name(), WHOLE, 0.2, WHOLE, WHOLE, GPUS)
ENDS = [TaskState.COMPLETED, TaskState.FAILED, TaskState.CANCELLED, TaskState.INTERRUPTED]


class Machine(RuleBasedStateMachine):
    """Three notebooks of one user, each with a supervisor and threads."""

    tasks = Bundle("tasks")

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.store = TaskStore(StateDirectory(Path(self.folder.name))).open()
        self.sessions = [
            self.store.sessions.begin(replace(session_identity(None), id=str(uuid4())))
            for _ in range(SESSIONS)
        ]
        self.supervisors = [
            self.store.supervisors.begin(session.id, ProcessIdentity.own())
            for session in self.sessions
        ]
        self.widths: dict[str, int | None] = {}
        self.paused: set[str] = set()
        self.after: dict[int, list[Dependency]] = {}
        self.began: set[int] = set()

    def teardown(self) -> None:
        if not hasattr(self, "store"):
            return
        for group in self.paused:
            self.store.queue.pause_group(group, None)
        self.paused.clear()
        self.drain()
        self.store.close()
        self.folder.cleanup()

    def live(self) -> list[TaskRecord]:
        return self.store.tasks.select(Selection(states=LIVE_STATES))

    def state(self, key: int) -> TaskState:
        task = self.store.tasks.get(key)
        assert task is not None
        return task.state

    @rule(
        target=tasks,
        session=st.integers(0, SESSIONS - 1),
        runner=st.sampled_from(["process", "thread"]),
        group=st.sampled_from(GROUPS),
        priority=st.integers(-1, 1),
        after=st.lists(st.tuples(tasks, st.sampled_from(CONDITIONS)), max_size=3),
        needs=st.just(Demands()) | st.builds(Demands, SHARE, SHARE, SHARE),
    )
    def launch(
        self,
        session: int,
        runner: str,
        group: str,
        priority: int,
        after: list[tuple[int, str]],
        needs: Demands,
    ) -> int:
        needs = needs if runner == "process" else Demands()
        dependencies = [Dependency(key, how) for key, how in dict(after).items()]
        record = self.sessions[session]
        new = NewTask(
            record.notebook_key, record.id, "", "shell", runner, "true",
            admission=Admission(group, priority, dependencies, demands=needs),
        )  # fmt: skip
        process = NewProcess(["true"], "/", 1.0, Options())
        task = self.store.tasks.insert(
            new,
            lambda connection, key, _id: (
                process.insert(connection, key) if runner == "process" else None
            ),
        )
        self.after[task.key] = dependencies
        return task.key

    @rule(group=st.sampled_from(GROUPS), width=st.none() | st.integers(1, 3))
    def set_width(self, group: str, width: int | None) -> None:
        self.store.queue.set_width(group, width)
        self.widths[group] = width

    @rule(group=st.sampled_from(GROUPS), is_paused=st.booleans())
    def pause_group(self, group: str, is_paused: bool) -> None:
        self.store.queue.pause_group(group, time.time() if is_paused else None)
        (self.paused.add if is_paused else self.paused.discard)(group)

    @rule(session=st.integers(0, SESSIONS - 1), limit=st.integers(1, 4))
    def claim(self, session: int, limit: int) -> None:
        before = self.running()
        next_of = {group: self.next_keys(group) for group in GROUPS}
        at, session_id = time.time(), self.sessions[session].id
        keys = [
            process.task_key
            for process in self.store.processes.claim(
                session_id, self.supervisors[session].key, at, limit, MACHINE
            )
        ]
        thread = self.store.queue.claim_for_threads(session_id, at)
        keys += [] if thread is None else [thread]
        for key in keys:
            task = self.store.tasks.get(key)
            assert task is not None
            assert key not in self.began, "it starts twice"
            self.began.add(key)
            assert task.session == session_id
            assert task.group not in self.paused
            assert all(self.is_met(each) for each in self.after[key])
            width = self.widths.get(task.group)
            if width is not None:
                room = width - len(before.get(task.group, ()))
                assert next_of[task.group].index(key) < room, "another one was before it"

    def next_keys(self, group: str) -> list[int]:
        """The tasks of a group that wait for room alone, in order, by the contract's own words."""
        waiting = [
            task
            for task in self.live()
            if task.state is TaskState.PENDING and task.group == group
            if all(self.is_met(each) for each in self.after[task.key])
        ]
        order = {key: place for place, key in enumerate(self.store.queue.next_keys(group, 1000))}
        return [task.key for task in sorted(waiting, key=lambda task: order[task.key])]

    def is_met(self, dependency: Dependency) -> bool:
        state = self.state(dependency.key)
        if not state.is_final:
            return False
        return dependency.condition in (ANY, OK if state is TaskState.COMPLETED else FAILED)

    def running(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for task in self.live():
            if task.state is TaskState.RUNNING and (task.paused_at is None):
                found.setdefault(task.group, []).append(task.key)
        return found

    @rule(key=tasks, state=st.sampled_from(ENDS))
    def end(self, key: int, state: TaskState) -> None:
        if self.state(key) is TaskState.RUNNING:
            code = 0 if state is TaskState.COMPLETED else None
            self.store.tasks.end(key, state, None, code, time.time())

    @rule(session=st.integers(0, SESSIONS - 1))
    def kernel_dies(self, session: int) -> None:
        """Its threads end with it; its supervisor goes on."""
        self.store.tasks.interrupt_session(
            self.sessions[session].id, "thread", "kernel died", time.time(), "proven"
        )

    @rule(key=tasks, first=st.booleans())
    def move(self, key: int, first: bool) -> None:
        self.store.queue.move_to_end(key, first=first)

    @rule(key=tasks, other=tasks)
    def move_before(self, key: int, other: int) -> None:
        if key != other and self.store.queue.move_before(key, other):
            task = self.store.tasks.get(key)
            assert task is not None
            order = self.store.queue.next_keys(task.group, 1000)
            ready = {
                each.key
                for each in self.live()
                if each.state is TaskState.PENDING and all(map(self.is_met, self.after[each.key]))
            }
            if key in ready and other in ready:
                assert order.index(key) == order.index(other) - 1

    @rule(key=tasks)
    def cancel(self, key: int) -> None:
        if self.state(key) is TaskState.PENDING:
            self.store.tasks.end(key, TaskState.CANCELLED, "cancelled", None, time.time())

    @invariant()
    def the_machine_has_what_is_booked(self) -> None:
        if not hasattr(self, "store"):
            return
        running = [task for task in self.live() if task.state is TaskState.RUNNING]
        for name in ("cpus", "memory_bytes", "gpus"):
            assert sum(getattr(task.demands, name) or 0 for task in running) <= WHOLE
        lent = [gpu for task in running for gpu in task.gpu_ids]
        assert len(lent) == len({*lent}), "a whole GPU is lent twice"
        assert all(len(task.gpu_ids) == (task.demands.gpus or 0) for task in running)

    @invariant()
    def every_counter_is_right(self) -> None:
        """A task waits for as many others as it names that have not ended."""
        if not hasattr(self, "store"):
            return
        for task in self.live():
            if task.state is TaskState.PENDING:
                open_ones = [each for each in self.after[task.key] if not self.is_met(each)]
                lost = [each for each in open_ones if self.state(each.key).is_final]
                row = self.store.database.row(
                    "SELECT waits_for, doomed_by FROM tasks WHERE key = ?", (task.key,)
                )
                assert row[0] == len(open_ones)
                assert (row[1] is not None) == bool(lost)

    def drain(self) -> None:
        """Whatever has happened, all that waits begins or is cancelled in the end."""
        for _round in range(1000):
            for session in range(SESSIONS):
                self.claim(session, 4)
            for keys in self.running().values():
                for key in keys:
                    self.store.tasks.end(key, TaskState.COMPLETED, None, 0, time.time())
            if not self.live():
                return
        raise AssertionError([(task.key, task.waiting) for task in self.live()])


TestQueue = Machine.TestCase
TestQueue.settings = tried(12, steps=40)
