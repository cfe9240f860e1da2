"""Several processes that claim from one group, and what they leave when they are killed."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest
from kernels import until

from ipytaskpersist.base.process_identity import ProcessIdentity
from ipytaskpersist.base.records import LIVE_STATES, Options, TaskState
from ipytaskpersist.session.notebook_identity import session_identity
from ipytaskpersist.store.processes import NewProcess
from ipytaskpersist.store.queue import Admission, Dependency
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import NewTask, Selection

WIDTH = 3
TASKS = 400
CLAIMER = """
import sys, time
from ipytaskpersist.base.paths import StateDirectory, default_directory
from ipytaskpersist.base.records import TaskState
from ipytaskpersist.store.task_store import TaskStore
session, supervisor = sys.argv[1], int(sys.argv[2])
store = TaskStore(StateDirectory(default_directory())).open()
running = "SELECT count(*) FROM tasks WHERE state = 'running'"
while store.processes.has_pending(session):
    if not store.queue.may_claim(session, "process", time.time()):
        continue
    for process in store.processes.claim(session, supervisor, time.time(), 2):
        (count,) = store.database.row(running)
        print(count, flush=True)
        time.sleep(0.005)
        store.tasks.end(process.task_key, TaskState.COMPLETED, None, 0, time.time())
"""

AddTask = Callable[..., int]


@pytest.fixture
def sessions(store: TaskStore) -> list[tuple[str, int, int]]:
    """Four notebooks: their sessions, the keys of their notebooks, and of their supervisors."""
    begun = [
        store.sessions.begin(replace(session_identity(None), id=str(uuid4()))) for _ in range(4)
    ]
    return [
        (
            session.id,
            session.notebook_key,
            store.supervisors.begin(session.id, ProcessIdentity.own()).key,
        )
        for session in begun
    ]


def add(store: TaskStore, session: tuple[str, int, int], admission: Admission) -> int:
    new = NewTask(session[1], session[0], "", "shell", "process", "true", admission=admission)
    process = NewProcess(["true"], "/", 1.0, Options())
    return store.tasks.insert(new, lambda connection, key, _id: process.insert(connection, key)).key


def claimers(sessions: list[tuple[str, int, int]]) -> list[subprocess.Popen[str]]:
    return [
        subprocess.Popen(
            [sys.executable, "-c", CLAIMER, session, str(supervisor)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for session, _notebook, supervisor in sessions
    ]


def test_four_supervisors_never_run_more_than_the_width(
    store: TaskStore, sessions: list[tuple[str, int, int]]
) -> None:
    store.queue.set_width("few", WIDTH)
    for number in range(TASKS):
        add(store, sessions[number % 4], Admission("few", priority=number % 2))
    programs = claimers(sessions)
    counts = [
        int(line) for program in programs for line in program.communicate(timeout=120)[0].split()
    ]
    assert [program.returncode for program in programs] == [0] * 4
    assert len(counts) == TASKS
    assert max(counts) <= WIDTH
    assert store.tasks.count(Selection(states=[TaskState.COMPLETED])) == TASKS


def test_a_killed_supervisor_keeps_its_slots_until_it_is_found_dead(
    store: TaskStore, sessions: list[tuple[str, int, int]]
) -> None:
    """Nothing is lost and nothing starts twice; the others go on."""
    store.queue.set_width("few", WIDTH)
    for number in range(TASKS):
        add(store, sessions[number % 4], Admission("few"))
    programs = claimers(sessions)
    killed = random.Random(7).choice(programs)
    completed = Selection(states=[TaskState.COMPLETED])
    until(lambda: store.tasks.count(completed) > TASKS // 20, 60, "some ends")
    killed.kill()
    assert killed.wait(30) == -signal.SIGKILL
    session, _notebook, supervisor = sessions[programs.index(killed)]
    store.processes.interrupt(supervisor, "supervisor died", time.time(), declared_dead="proven")
    store.supervisors.end(supervisor, "supervisor died")
    for program in programs:
        if program is not killed:
            assert program.wait(60) == 0
        assert program.stdout is not None
        program.stdout.close()
    left = store.tasks.select(Selection(states=LIVE_STATES))
    assert {task.state for task in left} <= {TaskState.PENDING}
    assert {task.session for task in left} <= {session}


def test_a_chain_of_thousands_is_cancelled_at_once(
    store: TaskStore, sessions: list[tuple[str, int, int]]
) -> None:
    """SQLite's triggers nest a thousand deep at most."""
    first = key = add(store, sessions[0], Admission())
    with store.database.transaction():
        for _ in range(3000):
            key = add(store, sessions[0], Admission(after=[Dependency(key)]))
    store.tasks.start(first, time.time())
    store.tasks.end(first, TaskState.FAILED, "exit status 1", 1, time.time())
    assert store.queue.may_claim(sessions[1][0], "process", time.time())
    assert store.processes.claim(sessions[1][0], sessions[1][2], time.time(), 1) == []
    assert store.tasks.count(Selection(states=[TaskState.CANCELLED])) == 3000
    last = store.tasks.get(key)
    assert last is not None
    assert last.reason == "task 3000 was cancelled"


def test_tasks_of_a_silent_owner_are_passed_over(
    store: TaskStore, sessions: list[tuple[str, int, int]]
) -> None:
    store.queue.set_width("few", 1)
    add(store, sessions[0], Admission("few"))
    mine = add(store, sessions[1], Admission("few"))
    session, _notebook, supervisor = sessions[1]
    assert not store.queue.may_claim(session, "process", time.time())
    store.database.write(
        "UPDATE supervisors SET heartbeat_at = ? WHERE key = ?", (time.time() - 90, sessions[0][2])
    )
    claimed = store.processes.claim(session, supervisor, time.time(), 5)
    assert [process.task_key for process in claimed] == [mine]


def test_a_clock_that_goes_back_starts_nothing_early_and_nothing_twice(
    store: TaskStore, sessions: list[tuple[str, int, int]]
) -> None:
    session, _notebook, supervisor = sessions[0]
    now = time.time()
    key = add(store, sessions[0], Admission(due_at=now + 3600))
    claim = store.processes.claim
    assert claim(session, supervisor, now + 3599, 1) == []
    assert claim(session, supervisor, now - 86_400, 1) == []
    assert [each.task_key for each in claim(session, supervisor, now + 3600, 1)] == [key]
    assert claim(session, supervisor, now + 7200, 1) == []


def test_what_is_launched_for_a_task_that_ends_meanwhile_does_not_wait(
    store: TaskStore, sessions: list[tuple[str, int, int]], tmp_path: Path
) -> None:
    session, _notebook, supervisor = sessions[0]
    first = add(store, sessions[0], Admission())
    store.tasks.start(first, time.time())
    store.tasks.end(first, TaskState.COMPLETED, None, 0, time.time())
    add(store, sessions[0], Admission(after=[Dependency(first)]))
    failed = add(store, sessions[0], Admission(after=[Dependency(first, "failed")]))
    assert len(store.processes.claim(session, supervisor, time.time(), 9)) == 1
    lost = store.tasks.get(failed)
    assert lost is not None
    assert (lost.state, lost.reason) == (TaskState.CANCELLED, "task 1 completed")
