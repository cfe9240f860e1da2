"""Stores filled with a long past, through the package's own store and its own background cells."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.kernels import notebook_of
from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.process_identity import ProcessIdentity, SessionIdentity
from ipytaskpersist.base.records import OutputKind, SessionRecord, TaskState
from ipytaskpersist.store.outputs import NewOutput
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import NewTask

TASKS_A_SESSION = 100
SOURCE = "model = fit(frame, epochs=20)\nmodel.score(frame)\n"
ENDS: tuple[tuple[TaskState, str | None, int | None], ...] = (
    (TaskState.COMPLETED, None, 0),
    (TaskState.COMPLETED, None, 0),
    (TaskState.FAILED, "ValueError: no rows", 1),
    (TaskState.INTERRUPTED, "kernel restarted", None),
)


@contextmanager
def opened(state: Path) -> Iterator[TaskStore]:
    """The store in a state directory, for as long as the `with` block runs."""
    store = TaskStore(StateDirectory(state)).open()
    try:
        yield store
    finally:
        store.close()


def past_session(state: Path) -> SessionIdentity:
    """A kernel of the notebook that ran on this machine before it was booted last."""
    process = ProcessIdentity(
        host=ProcessIdentity.own().host, boot_id=str(uuid.uuid4()), pid=4321, start="1234567"
    )
    return SessionIdentity(
        id=str(uuid.uuid4()),
        front_end="kernel",
        path=str(notebook_of(state)),
        has_path=True,
        kernel_uuid=str(uuid.uuid4()),
        process=process,
    )


def new_task(session: SessionRecord, name: str) -> NewTask:
    """A cell to be run in a thread of the session."""
    return NewTask(
        notebook_key=session.notebook_key,
        session_id=session.id,
        name=name,
        kind="python",
        runner="thread",
        source=SOURCE,
    )


def fill(state: Path, tasks: int, *, tasks_a_session: int = TASKS_A_SESSION) -> None:
    """Store so many tasks of earlier sessions, each with a history and a line of output."""
    with opened(state) as store:
        for first in range(0, tasks, tasks_a_session):
            session = store.sessions.begin(past_session(state))
            for index in range(first, min(first + tasks_a_session, tasks)):
                store_task(store, session, index)
            store.sessions.end(session.id, "kernel restarted")


def store_task(store: TaskStore, session: SessionRecord, index: int) -> None:
    """Store one task that has ended."""
    task = store.tasks.insert(new_task(session, f"fit-{index}"))
    now = time.time()
    store.tasks.start(task.key, now)
    line = f"epoch 20: loss 0.{index:05d}"
    output = NewOutput(
        task.key, OutputKind.STDOUT, now, f"{line}\n".encode(), lines=1, last_line=line
    )
    store.outputs.append([output.as_row()])
    store.tasks.end(task.key, *ENDS[index % len(ENDS)], now)


def fill_sessions(state: Path, sessions: int) -> None:
    """Store so many sessions of the notebook that have ended."""
    with opened(state) as store:
        for _ in range(sessions):
            session = store.sessions.begin(past_session(state))
            store.sessions.end(session.id, "kernel restarted")
