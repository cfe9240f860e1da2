"""What the live displays are told of, beyond the entries that a task's own changes leave."""

from __future__ import annotations

import time

from histories import add_task

from ipytaskpersist.base.records import TaskState
from ipytaskpersist.session.notebook_identity import session_identity
from ipytaskpersist.store.changes import Changes, Position
from ipytaskpersist.store.queue import Admission
from ipytaskpersist.store.task_store import TaskStore


def test_a_waiting_task_is_named_when_what_it_waits_for_changes(store: TaskStore) -> None:
    session = store.sessions.begin(session_identity(None))
    store.queue.set_width("gpu", 1)
    gpu = Admission("gpu")
    running = add_task(store, session, state=TaskState.RUNNING, admission=gpu)
    waiting = add_task(store, session, state=TaskState.PENDING, admission=gpu)
    elsewhere = add_task(store, session, state=TaskState.PENDING)
    changes = Changes(store.database)

    def named(position: Position) -> tuple[bool, Position]:
        found = changes.since(position)
        assert elsewhere.key not in found.tasks
        return waiting.key in found.states, found.position

    position = changes.now()
    assert named(position) == (False, position)
    store.queue.set_width("gpu", 2)
    is_named, position = named(position)
    assert is_named
    store.queue.pause_group("gpu", time.time())
    is_named, position = named(position)
    assert is_named
    store.queue.set_width("gpu", 1)
    _is_named, position = named(position)
    store.tasks.end(running.key, TaskState.COMPLETED, None, 0, time.time())
    is_named, position = named(position)
    assert is_named
    assert named(position) == (False, position)
