"""A program whose children do one thing to a store each, and are killed in the middle of it.

A child dies by SIGKILL when it begins its n-th statement of SQL, in whatever transaction that is.
They are forked from a small process with one thread, which has imported all that they need.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import sqlite_utils

from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.records import OutputKind, TaskRecord, TaskState
from ipytaskpersist.history import importing
from ipytaskpersist.history.archives import Archives
from ipytaskpersist.output.recorder import Recorder
from ipytaskpersist.output.recording import Recording
from ipytaskpersist.store import restoring, transfer
from ipytaskpersist.store.file import database, repair
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import NewTask
from ipytaskpersist.values.payloads import Payloads

transfer.PAUSE_S = 0
PRELOADED = (repair, sqlite_utils)
"""What the store imports when it needs it: each child would do so by itself."""
NEVER = -1


def die_at(statement: int) -> None:
    """Be killed when so many more statements have begun."""
    left = statement

    def count(_sql: str) -> None:
        nonlocal left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    connect = database.sqlite3.connect

    def counted(*arguments: Any, **options: Any) -> Any:
        connection = connect(*arguments, **options)
        connection.set_trace_callback(count)
        return connection

    database.sqlite3.connect = counted


def print_and_end(store: TaskStore, key: int, texts: Sequence[str]) -> None:
    """Print pieces as a kernel does, each committed, and complete."""
    recorder = Recorder(store, warn=print, heartbeat=lambda: None)
    recorder.start()
    recording = Recording(recorder, key)
    for text in texts:
        recording.write(OutputKind.STDOUT, text)
        recorder.change(lambda _store: None)
    recorder.change(lambda there: there.tasks.end(key, TaskState.COMPLETED, None, 0, 0.0))
    recorder.stop(10)


def found(store: TaskStore, ids: Sequence[str]) -> list[TaskRecord]:
    """The tasks of these ids, in the store or its archives."""
    places = [store, *Archives(store).all()]
    return [task for place in places for each in ids if (task := place.tasks.by_id(each))]


WORKS: dict[str, Callable[..., object]] = {
    "launch": lambda store, notebook, session: store.tasks.insert(
        NewTask(notebook, session, "launched", "python", "thread", "alpha", tags=["a", "b"])
    ),
    "print": print_and_end,
    "archive": lambda store, ids: Archives(store).archive(found(store, ids)),
    "unarchive": lambda store, ids: Archives(store).unarchive(found(store, ids)),
    "delete": lambda store, ids: Archives(store).delete(found(store, ids)),
    "import": lambda store, file: importing.import_file(
        Path(file), store, Archives(store).all, Payloads(store.directory)
    ),
    "restore": lambda store, file: restoring.restore(store, Path(file)),
    "open": lambda store: store.tasks.latest_key(),
}


def do(root: str, work: str, arguments: Sequence[Any], statement: int) -> None:
    """Do one thing to a store, and be killed in the middle of it."""
    if statement != NEVER:
        die_at(statement)
    store = TaskStore(StateDirectory(Path(root))).open()
    WORKS[work](store, *arguments)
    store.close()


def main() -> None:
    """A request a line: state directory, what to do, with what, and when to die."""
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if not child:
            try:
                do(*request)
                os._exit(0)
            finally:
                os._exit(1)
        _pid, status = os.waitpid(child, 0)
        print(status, flush=True)


if __name__ == "__main__":
    main()
