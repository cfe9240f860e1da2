"""The runs of a task with a schedule in the store: one follows each, and nothing of it is lost."""

from __future__ import annotations

import time
from dataclasses import replace
from uuid import uuid4

import pytest

from ipytaskpersist.base.process_identity import ProcessIdentity
from ipytaskpersist.base.records import Options, TaskRecord, TaskState
from ipytaskpersist.base.retries import Retries
from ipytaskpersist.base.schedules import Schedule
from ipytaskpersist.session.notebook_identity import session_identity
from ipytaskpersist.store.processes import NewProcess
from ipytaskpersist.store.queue import Admission
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import NewTask, Selection

HOUR = 3600.0
START = 1_800_000_000.0


class Watched:
    """A session with a supervisor, in a store of which the test says the time."""

    def __init__(self, store: TaskStore) -> None:
        self.store = store
        self.session = store.sessions.begin(replace(session_identity(None), id=str(uuid4())))
        process = ProcessIdentity.own()
        self.supervisor = store.supervisors.begin(self.session.id, process)

    def add(self, missed: str = "run", **more: object) -> TaskRecord:
        schedule = Schedule(every_s=HOUR, zone="UTC", missed=missed).begun(START)
        new = NewTask(
            *(self.session.notebook_key, self.session.id, "hourly", "shell", "process", "true"),
            tags=["night"],
            schedule=schedule,
            **{"admission": Admission(priority=3, due_at=START), **more},  # type: ignore[arg-type]
        )
        process = NewProcess(["true"], "/", 1.0, Options(), {"A": True}, interpreter="kernel x")
        return self.store.tasks.insert(
            new, lambda connection, key, _id: process.insert(connection, key)
        )

    def claim(self, at: float) -> list[int]:
        """Claim as the supervisor does, and return the numbers of the claimed tasks."""
        if not self.store.queue.may_claim(self.session.id, "process", at):
            return []
        claimed = self.store.processes.claim(self.session.id, self.supervisor.key, at, 9)
        found = self.store.tasks.of_keys([process.task_key for process in claimed])
        return [task.number for task in found]

    def end(self, number: int, state: TaskState = TaskState.COMPLETED, code: int = 0) -> None:
        task = self.store.tasks.by_number(self.session.notebook_key, number)
        assert task is not None
        self.store.tasks.end(task.key, state, None, code, time.time())

    def task(self, number: int) -> TaskRecord:
        found = self.store.tasks.by_number(self.session.notebook_key, number)
        assert found is not None
        return found

    def count(self) -> int:
        return self.store.tasks.count(Selection())


@pytest.fixture
def watched(store: TaskStore) -> Watched:
    return Watched(store)


def test_each_run_is_followed_by_exactly_one(watched: Watched) -> None:
    store = watched.store
    first = watched.add()
    assert watched.claim(START - 1) == []
    assert watched.claim(START + 1) == [1]
    assert watched.count() == 2
    second = watched.task(2)
    assert second.state is TaskState.PENDING
    assert second.schedule == replace(first.schedule, due_at=START + HOUR, first_task=first.id)
    assert (second.tags, second.name, second.source) == (("night",), "hourly", "true")
    assert second.rerun_of is None
    assert second.checkpoint_place == second.id
    process = store.processes.get(second.key)
    assert process is not None
    assert (process.environment, process.interpreter) == ({"A": True}, "kernel x")
    assert process.environment_of == first.id

    # It waits for the end of the one before, even when its time has come.
    assert watched.claim(START + 1.5 * HOUR) == []
    assert store.processes.may_be_adopted(watched.session.id)
    watched.end(1)
    assert watched.claim(START + 3.5 * HOUR) == [2]
    assert watched.task(3).schedule == replace(second.schedule, due_at=START + 4 * HOUR)  # type: ignore[type-var]
    assert watched.count() == 3
    assert watched.claim(START + 3.6 * HOUR) == []

    # The first one has what the others are given, and stays for as long as they come.
    assert [task.number for task in store.tasks.ended_before(2 * START, except_tag="")] == []
    assert first.id in store.tasks.environments_needed()
    assert store.tasks.with_inputs(watched.task(3)).id == first.id
    assert store.tasks.next_run(watched.task(2)) == watched.task(3)

    # The name, and the latest task, mean those that have begun.
    notebook = watched.session.notebook_key
    latest, named = store.tasks.from_end(notebook, 1), store.tasks.by_name(notebook, "hourly")
    assert latest is not None
    assert named is not None
    assert latest.number == named.number == 2
    assert [task.number for task in store.tasks.live_of_name(notebook, "hourly")] == [2, 3]

    # A supervisor's death interrupts the run, and leaves the next one.
    at = START + 3.7 * HOUR
    store.processes.interrupt(watched.supervisor.key, "supervisor died", at, declared_dead="proven")
    store.tasks.interrupt_pending(watched.session.id, "kernel died", at)
    assert watched.task(2).state is TaskState.INTERRUPTED
    assert watched.claim(START + 4 * HOUR) == [3]

    # The cancellation of the next one ends the schedule.
    assert store.tasks.request_cancel(watched.task(4).key)
    assert store.tasks.next_run(watched.task(3)) is None
    assert store.tasks.cancel_pending(watched.session.id) == 1
    watched.end(3)
    assert first.id not in store.tasks.environments_needed()
    assert watched.claim(START + 9 * HOUR) == []
    assert {task.number for task in store.tasks.ended_before(2 * START, except_tag="")} == {
        *range(1, 5)
    }


def test_missed_runs_and_clocks_set_back(watched: Watched) -> None:
    late = START + 8.5 * HOUR
    watched.add("skip")
    assert watched.claim(late) == []
    assert watched.store.queue.next_due(watched.session.id) == START + 9 * HOUR
    assert watched.count() == 1
    assert watched.claim(START + 9 * HOUR + 30) == [1]
    watched.end(1)
    assert watched.claim(START) == []  # the clock was set back: never twice
    assert watched.task(2).schedule is not None
    assert watched.task(2).schedule.due_at == START + 10 * HOUR

    other = Watched(watched.store)
    other.add("run")
    other.add("skip")
    # Another session's supervisor does not judge what this one would see.
    assert watched.claim(START + 10.5 * HOUR) == []
    assert other.claim(START + 10.5 * HOUR) == [3]
    assert other.count() == 5  # the one that was made up for has its next


def test_tries_belong_to_a_run_and_copy_no_schedule(watched: Watched) -> None:
    store = watched.store
    first = watched.add(retries=Retries(1, delay_s=0))
    assert watched.claim(START) == [1]
    watched.end(1, TaskState.FAILED, 7)
    again = watched.task(3)  # 2 is the next run
    assert (again.try_number, again.schedule) == (2, None)
    assert store.tasks.next_run(again) == watched.task(2)
    assert store.tasks.with_inputs(again).id == first.id
    # The next run waits for the last try of the one before.
    assert watched.claim(START + HOUR) == [3]
    watched.end(3, TaskState.FAILED, 7)
    assert watched.claim(START + HOUR) == [2]
    watched.end(2, TaskState.FAILED, 7)
    last = watched.task(5)
    assert (last.try_number, last.first_try) == (2, 2)
    process = store.processes.get(last.key)
    assert process is not None
    assert process.environment_of == first.id
    assert store.tasks.with_inputs(last).id == first.id
    assert watched.claim(START + HOUR) == [5]
    assert watched.task(4).state is TaskState.PENDING
    assert watched.count() == 5

    # What was cancelled just before the claim does not run, and nothing follows it.
    store.tasks.request_cancel(watched.task(4).key)
    watched.end(5)
    assert watched.claim(START + 2 * HOUR) == []
    assert watched.count() == 5
