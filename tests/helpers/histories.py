"""Long histories for tests: many tasks in real stores, and all that is known of each."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from kernels import until
from programs import environment

from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.process_identity import ProcessIdentity, SessionIdentity
from ipytaskpersist.base.records import OutputKind, SessionRecord, TaskRecord, TaskState
from ipytaskpersist.history.archives import Archives
from ipytaskpersist.store.outputs import NewOutput
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.store.tasks import NewTask, Selection

DAY_S = 86_400
OUTPUTS_OF_A_TASK = 4
_count = itertools.count()


def open_store(state_dir: Path) -> TaskStore:
    return TaskStore(StateDirectory(state_dir)).open()


def begin_session(store: TaskStore, path: str = "/home/ada/a.ipynb", **known: Any) -> SessionRecord:
    """A session of a notebook; two of the same path are of one notebook."""
    session_id = known.pop("id", None) or f"{next(_count):08x}-{random.randbytes(8).hex()}"
    process = ProcessIdentity.own()
    return store.sessions.begin(SessionIdentity(session_id, "kernel", path, True, None, process))


def add_tasks(
    store: TaskStore, session: SessionRecord, count: int, *, age_days: float = 0, name: str = ""
) -> list[TaskRecord]:
    """Ended tasks, each with output that only it has, which were launched so long ago."""
    return [add_task(store, session, age_days=age_days, name=name) for _ in range(count)]


def add_task(
    store: TaskStore,
    session: SessionRecord,
    *,
    age_days: float = 0,
    name: str = "",
    state: TaskState = TaskState.COMPLETED,
    printed: bytes | None = None,
    shown: Callable[[int], None] = lambda _key: None,
    **fields: Any,
) -> TaskRecord:
    """One task in a state, in the way in which a runner brings it there.

    `shown` adds its other outputs, while it may have some.
    """
    task = store.tasks.insert(
        NewTask(session.notebook_key, session.id, name, "python", "thread", "print(1)", **fields)
    )
    if state is TaskState.PENDING:
        shown(task.key)
        return task
    at = task.created_at.timestamp()
    store.tasks.start(task.key, at)
    _print(store, task, at, printed)
    shown(task.key)
    if state.is_final:
        code = 0 if state is TaskState.COMPLETED else None
        store.tasks.end(task.key, state, None if code == 0 else "a reason", code, at + 1)
    if age_days:
        _age(store, task, age_days * DAY_S)
    found = store.tasks.get(task.key)
    assert found is not None
    return found


def _print(store: TaskStore, task: TaskRecord, at: float, printed: bytes | None) -> None:
    pieces = [printed]
    if printed is None:
        pieces = [f"{task.id} {n}\n".encode() * 40 for n in range(OUTPUTS_OF_A_TASK)]
    position = lines = 0
    for piece in pieces:
        assert piece is not None
        output = NewOutput(
            task.key, OutputKind.STDOUT, at, piece, position, lines, piece.count(b"\n"), "last"
        )
        store.outputs.append([output.as_row()])
        position, lines = position + len(piece), lines + piece.count(b"\n")


def _age(store: TaskStore, task: TaskRecord, seconds: float) -> None:
    store.database.execute(
        """UPDATE tasks SET created_at = created_at - ?1, started_at = started_at - ?1,
        ended_at = ended_at - ?1 WHERE key = ?2""",
        (seconds, task.key),
    )


def all_of(store: TaskStore, task: TaskRecord) -> tuple[Any, ...]:
    """All that a store knows of a task, but what means something in that file alone."""
    return (
        *(task.number, task.name, task.notebook, task.session, task.kind, task.runner, task.state),
        *(task.reason, task.exit_code, task.source, task.created_at, task.started_at),
        *(task.ended_at, task.output_bytes, task.tags, dict(task.provenance)),
        tuple((event.state, event.reason, event.at) for event in store.tasks.history(task.key)),
        tuple((output.kind, output.at, output.data) for output in store.outputs.of(task.key)),
        store.results.get(task.key),
    )


def everything(state_dir: Path) -> dict[str, tuple[Any, ...]]:
    """All tasks by id, wherever they are. Fails when a task is there twice, or a file is broken."""
    with closing(open_store(state_dir)) as store, closing(Archives(store)) as archives:
        found: dict[str, tuple[Any, ...]] = {}
        for place in [store, *archives.all()]:
            assert place.database.row("PRAGMA integrity_check") == ("ok",)
            removed = place.database.rows("SELECT task_key FROM removed_tasks")
            for table, row, _parent, _number in place.database.rows("PRAGMA foreign_key_check"):
                # What removed tasks have printed may still be waiting to be removed, nothing else.
                assert table == "outputs"
                query = "SELECT task_key FROM outputs WHERE sequence = ?"
                assert place.database.row(query, (row,)) in removed
            tasks = place.tasks.select(Selection())
            for task in tasks if place is store else archives.without_own(tasks):
                assert task.id not in found, f"{task.id} is there twice"
                found[task.id] = all_of(place, task)
        return found


READY = """
import sys
from ipytaskpersist.base.paths import StateDirectory, default_directory
from ipytaskpersist.store.task_store import TaskStore
store = TaskStore(StateDirectory(default_directory()))
{before}
print("ready", flush=True)
sys.stdin.readline()
{work}
print("done", flush=True)
"""


KILLS = int(os.environ.get("IPYTASKPERSIST_KILLS", "10"))
"""How often it is killed: at moments that divide its time evenly."""


def kill_in_the_middle(
    before: str,
    work: str,
    state_dir: Path,
    check: Callable[[], None],
    *,
    prepare: Callable[[], None] = lambda: None,
    times: int = KILLS,
) -> None:
    """Run a piece of Python again and again, each time killed a little later, and check.

    The first time it runs to its end, so that it is known how long it takes. `prepare` makes the
    state in which it begins.
    """
    prepare()
    whole_s = _run_and_kill(before, work, state_dir, None)
    check()
    for turn in range(times):
        prepare()
        _run_and_kill(before, work, state_dir, whole_s * (turn + 0.5) / times)
        check()


def _run_and_kill(before: str, work: str, state_dir: Path, after_s: float | None) -> float:
    program = subprocess.Popen(
        [sys.executable, "-c", READY.format(before=before, work=work)],
        env=environment(state_dir), text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    with program:
        try:
            assert program.stdin is not None
            assert program.stdout is not None
            assert program.stdout.readline() == "ready\n"
            begun = time.perf_counter()
            program.stdin.write("\n")
            program.stdin.flush()
            if after_s is None:
                assert program.stdout.readline() == "done\n"
                return time.perf_counter() - begun
            until(lambda: time.perf_counter() - begun >= after_s)
            program.send_signal(signal.SIGKILL)
            return 0.0
        finally:
            program.kill()
