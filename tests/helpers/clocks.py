"""Sessions that have begun, and a clock that a test moves."""

from __future__ import annotations

import time

from ipytaskpersist.base.process_identity import ProcessIdentity, SessionIdentity
from ipytaskpersist.base.records import SessionRecord
from ipytaskpersist.runners.liveness import Watch
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import NewTask


def begin(
    store: TaskStore, process: ProcessIdentity, front_end: str = "kernel", tasks: int = 1
) -> SessionRecord:
    identity = SessionIdentity(
        f"{time.monotonic_ns():x}"[-8:] + "-x", front_end, "/a.ipynb", True, None, process
    )
    session = store.sessions.begin(identity)
    for _ in range(tasks):
        task = store.tasks.insert(
            NewTask(session.notebook_key, session.id, "", "python", "thread", "1")
        )
        store.tasks.start(task.key, time.time())
    return session


class Clock:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def watch(self) -> Watch:
        """A watch that goes by this clock."""
        return Watch(clock=self)
