"""Tasks, their states and their history in the store."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ipytaskpersist.base.demands import NONE as NO_DEMANDS
from ipytaskpersist.base.demands import Demands
from ipytaskpersist.base.records import (
    SILENT,
    EventRecord,
    Progress,
    TaskRecord,
    TaskState,
    Waiting,
    from_timestamp,
    label_of,
)
from ipytaskpersist.base.retries import Retries
from ipytaskpersist.base.schedules import Schedule
from ipytaskpersist.errors import AlreadyLaunched, AlreadyRunAgain
from ipytaskpersist.store.booking import gpu_ids_of
from ipytaskpersist.store.file.database import Database, storable
from ipytaskpersist.store.queue import Admission, add_dependencies
from ipytaskpersist.store.sessions import short_id
from ipytaskpersist.store.tries import add_try, tries_again

FIELDS = {
    "key": "tasks.key",
    "id": "tasks.id",
    "number": "tasks.number",
    "name": "tasks.name",
    "notebook_key": "tasks.notebook_key",
    "notebook": "notebooks.path",
    "session": "tasks.session_id",
    "kind": "tasks.kind",
    "runner": "tasks.runner",
    "state": "tasks.state",
    "reason": "tasks.reason",
    "exit_code": "tasks.exit_code",
    "source": "tasks.source",
    "cell_id": "tasks.cell_id",
    "execution_count": "tasks.execution_count",
    "created_at": "tasks.created_at",
    "started_at": "tasks.started_at",
    "ended_at": "tasks.ended_at",
    "cancel_requested_at": "tasks.cancel_requested_at",
    "cleared_at": "tasks.cleared_at",
    "rerun_of": "tasks.rerun_of",
    "is_call": "tasks.is_call",
    "output_bytes": "tasks.output_bytes",
    "max_output_bytes": "tasks.max_output_bytes",
    "dropped_bytes": "tasks.dropped_bytes",
    "progress": "tasks.progress",
    "notify": "tasks.notify",
    "provenance": "tasks.provenance",
    "declared_dead": "tasks.declared_dead",
    "tags": "(SELECT group_concat(tag, char(10)) FROM tags WHERE task_key = tasks.key)",
    "group": "tasks.group_name",
    "waiting": """iif(tasks.state <> 'pending' OR (tasks.waits_for = 0 AND tasks.lacks IS NULL
        AND NOT EXISTS (SELECT 1 FROM groups WHERE groups.name = tasks.group_name
        AND (width IS NOT NULL OR paused_at IS NOT NULL))), NULL, json_object(
        'group', tasks.group_name, 'priority', tasks.priority, 'due_at', tasks.due_at,
        'lacks', tasks.lacks,
        'after', (SELECT json_group_array(json_object('number', other.number, 'name', other.name))
            FROM dependencies JOIN tasks AS other ON other.key = on_key
            WHERE task_key = tasks.key),
        'width', (SELECT width FROM groups WHERE groups.name = tasks.group_name),
        'is_paused', EXISTS (SELECT 1 FROM groups WHERE groups.name = tasks.group_name
            AND paused_at IS NOT NULL),
        'running', (SELECT count(*) FROM tasks AS other WHERE other.group_name = tasks.group_name
            AND other.state = 'running' AND (other.paused_at IS NULL OR other.keeps_slot))))""",
    "demands": """iif(coalesce(tasks.cpus, tasks.memory_bytes, tasks.gpus) IS NULL, NULL,
        json_array(tasks.cpus, tasks.memory_bytes, tasks.gpus, tasks.gpu_memory_bytes))""",
    "gpu_ids": "tasks.gpu_ids",
    "paused_at": "tasks.paused_at",
    "paused_s": "tasks.paused_s",
    "pause_requested": "tasks.pause_requested",
    "checkpoint_place": "tasks.checkpoint_place",
    "checkpoint_at": "tasks.checkpoint_at",
    "retries": "tasks.retry",
    "schedule": "tasks.schedule",
    "try_of": "tasks.try_of",
    "try_number": "tasks.try_number",
    "unreachable_since": "tasks.unreachable_since",
    "unreachable_why": "iif(tasks.unreachable_since IS NULL, NULL, tasks.lacks)",
    "first_try": """iif(tasks.try_number = 1, NULL, (SELECT first.number FROM tasks AS first
        WHERE first.id = json_extract(tasks.provenance, '$.try_of')))""",
}
"""Where the fields of a `TaskRecord` come from; `LAST_LINE` may follow them."""
COLUMNS = ", ".join(FIELDS.values())
TIMES = (
    *("created_at", "started_at", "ended_at", "cancel_requested_at", "cleared_at"),
    *("paused_at", "checkpoint_at", "unreachable_since"),
)
ADD_TAG = "INSERT OR IGNORE INTO tags (task_key, tag) VALUES (?, ?)"
RUN_AGAIN = "json_extract(tasks.provenance, '$.rerun_as')"
"""Not whether a later task refers to it: that one may have been archived or deleted."""
MARK_RUN_AGAIN = """UPDATE tasks SET provenance = json_set(provenance, '$.rerun_as', ?)
    WHERE key = ?"""
IS_NOT_SILENT = f"""UPDATE sessions SET ended_at = NULL, end_reason = NULL
    WHERE id = ? AND end_reason LIKE '{SILENT}%'"""
"""A session that launches a task is alive, even if others saw no sign of that."""
LAST_LINE = """(SELECT last_line FROM outputs WHERE task_key = tasks.key AND last_line IS NOT NULL
    ORDER BY sequence DESC LIMIT 1)"""
INTERRUPT = """UPDATE tasks SET state = 'interrupted', reason = ?1, declared_dead = ?2,
    ended_at = max(?3, coalesce(started_at, created_at), coalesce(
        (SELECT at FROM outputs WHERE task_key = tasks.key ORDER BY sequence DESC LIMIT 1), 0))
    WHERE state IN ('pending', 'running')"""
"""Live tasks to interrupted: why, `TaskRecord.declared_dead`, and not before a time."""
IS_WHOLE = """(whole_environment OR tasks.retry IS NOT NULL OR tasks.schedule IS NOT NULL
    OR runs_at IS NOT NULL)"""
"""Whether the environment of a task's process is whole, so that any supervisor can start it."""
IS_NEXT_RUN = """(tasks.state = 'pending'
    AND json_extract(tasks.schedule, '$.first_task') IS NOT NULL)"""
"""Whether a task is a later run by a schedule, and waits."""
HAS_TAG = f"""tasks.notebook_key = ? AND NOT {IS_NEXT_RUN}
    AND tasks.key IN (SELECT task_key FROM tags WHERE tag = ?)"""
"""Whether a task of a notebook has a tag, and is not a later run by a schedule that waits."""
NAMED_AMONG = 10_000
"""Number of latest tasks that are searched to complete a name, or for earlier runs."""
FROM = "FROM tasks JOIN notebooks ON notebooks.key = tasks.notebook_key"


def _event(row: Any) -> EventRecord:
    state, reason, seconds = row
    at = from_timestamp(seconds)
    assert at is not None, "the column cannot be null"
    return EventRecord(TaskState(state), reason, at)


def _number_in(task_id: str) -> int | None:
    """Return the number of a task that is not in this file: its id ends with it."""
    number = task_id.rpartition("-")[2]
    return int(number) if number.isascii() and number.isdecimal() and len(number) < 10 else None


def _places(kept: str | None) -> tuple[str, ...]:
    if kept is None:
        return ()
    # Imported late: few tasks have any.
    from ipytaskpersist.base.notify_target import NotifyTarget

    return tuple(map(NotifyTarget, json.loads(kept)))


def _waiting(kept: str | None) -> Waiting | None:
    if kept is None:
        return None
    known = json.loads(kept)
    after = tuple(label_of(other["number"], other["name"]) for other in known["after"])
    due_at = from_timestamp(known["due_at"])
    return Waiting(
        **{**known, "after": after, "due_at": due_at, "is_paused": bool(known["is_paused"])}
    )


def _pending_record(key: int, path: str, row: dict[str, Any], new: NewTask) -> TaskRecord:
    """Return the record of a row that was just inserted."""
    unknown: dict[str, Any] = dict.fromkeys(
        (
            *("reason", "exit_code", "started_at", "ended_at", "cancel_requested_at"),
            *("cleared_at", "output_bytes"),
        )
    )
    known: dict[str, Any] = {
        **{
            name: value
            for name, value in row.items()
            if name not in ("session_id", "retry", "schedule", *new.admission.columns)
        },
        "session": row["session_id"],
        "group": new.admission.group,
        "demands": new.admission.demands,
        "state": TaskState.PENDING,
        "created_at": from_timestamp(row["created_at"]),
        "checkpoint_at": from_timestamp(row["checkpoint_at"]),
        "provenance": json.loads(row["provenance"]),
        "tags": tuple(sorted(new.all_tags)),
        "dropped_bytes": 0,
        "notify": tuple(new.notify),
        "retries": new.retries,
        "schedule": new.schedule,
    }
    return TaskRecord(key=key, notebook=path, **known, **unknown)


@dataclass(frozen=True, slots=True)
class NewTask:
    """A task before the store has numbered it."""

    notebook_key: int
    session_id: str
    name: str
    kind: str
    runner: str
    source: str
    cell_id: str | None = None
    execution_count: int | None = None
    is_call: bool = False
    """Whether it calls a function, so that its source alone does not say what it does."""
    rerun_of: int | None = None
    """Row of the task that it runs again."""
    once: bool = False
    """Whether it must be the first to run that task again."""
    tags: Sequence[str] = ()
    unique_tag: str = ""
    """A further tag, which no other task of its notebook may have yet; empty for none."""
    max_output_bytes: int | None = None
    """Maximum number of bytes of its output to keep; None for all."""
    notify: Sequence[str] = ()
    """Places to notify of its end."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Its origin."""
    admission: Admission = field(default_factory=Admission)
    """What it waits for before it starts."""
    checkpoint_place: str | None = None
    """Folder of the checkpoints from which it goes on; None for one of its own."""
    checkpoint_at: float | None = None
    """Time of the latest of them, in seconds since the epoch."""
    retries: Retries | None = None
    """When it is tried again; None for never. Only a task in a process is."""
    schedule: Schedule | None = None
    """The times at which it runs; None for once. Only a task in a process has one."""

    @property
    def all_tags(self) -> Sequence[str]:
        """Its tags, the unique one included."""
        return (*self.tags, self.unique_tag) if self.unique_tag else self.tags


@dataclass(frozen=True, slots=True)
class TaskName:
    """What a user can name a task by."""

    number: int
    name: str
    id: str
    state: str


@dataclass(frozen=True, slots=True)
class Selection:
    """Which tasks to list."""

    notebook_key: int | None = None
    """Only this notebook's; None for every notebook's."""
    states: Sequence[TaskState] = ()
    session_prefix: str = ""
    cleared: bool = True
    """Whether to include tasks that were removed from the default list."""
    tags: Sequence[str] = ()
    """Only tasks that have all of these."""
    created_after: float | None = None
    """Only tasks created since then, in seconds since the epoch."""
    limit: int | None = None
    """Maximum number of tasks, of which the newest are chosen."""


@dataclass(frozen=True, slots=True)
class CellRun:
    """The run of a cell that launches a task."""

    source: str
    name: str
    is_whole_cell: bool
    """Whether the task is the whole cell, so that the cell has no other task."""
    cell_id: str | None
    execution_count: int
    session: str


@dataclass(frozen=True, slots=True)
class Absence:
    """A period in which a notebook was not in use."""

    notebook_key: int
    since: float
    """When it began, in seconds since the epoch."""
    just_lost: Sequence[int] = ()
    """Rows of tasks that counted as live until they were just found dead."""
    cut_off: Sequence[str] = ()
    """Sessions whose end began it: their own interrupted tasks ended in it."""


class Tasks:
    """The rows of `tasks` and `events`."""

    def __init__(self, database: Database, archive: str = "") -> None:
        self._database = database
        self._archive = archive

    def _record(self, row: Any) -> TaskRecord:
        known: dict[str, Any] = dict(zip((*FIELDS, "last_line"), row, strict=False))
        known["state"] = TaskState(known["state"])
        known |= {name: from_timestamp(known[name]) for name in TIMES}
        known |= {name: bool(known[name]) for name in ("is_call", "pause_requested")}
        progress, tags = known["progress"], known["tags"]
        known["progress"] = Progress(**json.loads(progress)) if progress else None
        known["notify"] = _places(known["notify"])
        known["provenance"] = json.loads(known["provenance"])
        known["tags"] = tuple(sorted(tags.split("\n"))) if tags else ()
        known["waiting"] = _waiting(known["waiting"])
        demands = known["demands"]
        known["demands"] = Demands(*json.loads(demands)) if demands else NO_DEMANDS
        known["gpu_ids"] = gpu_ids_of(known["gpu_ids"])
        known["retries"] = Retries.from_json(known["retries"])
        known["schedule"] = Schedule.from_json(known["schedule"])
        if known["try_number"] > 1 and known["first_try"] is None:
            known["first_try"] = _number_in(known["provenance"].get("try_of", ""))
        return TaskRecord(**known, archive=self._archive)

    def insert(
        self, new: NewTask, complete: Callable[[Any, int, str], None] | None = None
    ) -> TaskRecord:
        """Record a pending task under the notebook's next number, durably, and return it.

        `complete` is called with the connection and the task's row and id before the commit. Raises
        `AlreadyRunAgain` when the task had to be the first to run another one again, and is not,
        and `AlreadyLaunched` when another task of the notebook has its unique tag.
        """
        with self._database.transaction() as connection:
            if new.unique_tag and self._is_taken(connection, new):
                raise AlreadyLaunched("another process has just launched the task with this key")
            if new.once and self._was_run_again(connection, new.rerun_of):
                raise AlreadyRunAgain("another kernel has run the task again")
            (number, path) = connection.execute(
                """UPDATE notebooks SET last_number = last_number + 1 WHERE key = ?
                RETURNING last_number, path""",
                (new.notebook_key,),
            ).fetchone()
            now = time.time()
            task_id = f"{short_id(self._database, new.session_id)}-{number}"
            row = {
                "id": task_id,
                "number": number,
                "name": storable(new.name),
                "notebook_key": new.notebook_key,
                "session_id": new.session_id,
                "kind": new.kind,
                "runner": new.runner,
                "source": storable(new.source),
                "cell_id": new.cell_id,
                "execution_count": new.execution_count,
                "rerun_of": new.rerun_of,
                "is_call": new.is_call,
                "max_output_bytes": new.max_output_bytes,
                "notify": json.dumps(list(new.notify)) if new.notify else None,
                "provenance": json.dumps(dict(new.provenance)),
                "created_at": now,
                "state": TaskState.PENDING.value,
                "checkpoint_place": new.checkpoint_place or task_id,
                "checkpoint_at": new.checkpoint_at,
                "retry": new.retries.as_json() if new.retries else None,
                "schedule": new.schedule.as_json() if new.schedule else None,
                **new.admission.columns,
            }
            names, marks = ", ".join(row), ", ".join("?" * len(row))
            cursor = connection.execute(
                f"INSERT INTO tasks ({names}) VALUES ({marks})", [*row.values()]
            )
            connection.execute(MARK_RUN_AGAIN, (task_id, new.rerun_of))
            connection.execute(IS_NOT_SILENT, (new.session_id,))
            for tag in new.all_tags:
                connection.execute(ADD_TAG, (cursor.lastrowid, storable(tag)))
            add_dependencies(connection, cursor.lastrowid, new.admission.after)
            if complete is not None:
                complete(connection, cursor.lastrowid, task_id)
        record = _pending_record(cursor.lastrowid, path, row, new)
        if new.admission == Admission():
            return record
        return self.get(record.key) or record

    @staticmethod
    def _was_run_again(connection: Any, key: int | None) -> bool:
        query = f"SELECT 1 FROM tasks WHERE key = ? AND {RUN_AGAIN} IS NOT NULL"
        return connection.execute(query, (key,)).fetchone() is not None

    @staticmethod
    def _is_taken(connection: Any, new: NewTask) -> bool:
        query = f"SELECT 1 FROM tasks WHERE {HAS_TAG}"
        values = (new.notebook_key, storable(new.unique_tag))
        return connection.execute(query, values).fetchone() is not None

    def start(self, key: int, at: float) -> bool:
        """Change the state from pending to running. Return whether the task was pending."""
        cursor = self._database.write(
            """UPDATE tasks SET state = 'running', started_at = ?
            WHERE key = ? AND state = 'pending'""",
            (at, key),
        )
        return bool(cursor.rowcount)

    def end(
        self, key: int, state: TaskState, reason: str | None, exit_code: int | None, at: float
    ) -> bool:
        """Set a final state. Return False when the task had already ended; its state then stays.

        Its next try is recorded with it, if one follows. No notification is sent for a cancelled
        task: its canceller knows.
        """
        with self._database.transaction() as connection:
            next_number = add_try(connection, key, state.value, reason, exit_code)
            if next_number is not None:
                reason = "; ".join(filter(None, (reason, tries_again(next_number))))
            cursor = connection.execute(
                """UPDATE tasks SET state = ?1, reason = ?2, exit_code = ?3,
                    ended_at = max(?4, coalesce(started_at, created_at)),
                    notify = iif(?1 = 'cancelled', NULL, notify)
                WHERE key = ?5 AND state IN ('pending', 'running')""",
                (state.value, storable(reason), exit_code, at, key),
            )
        return bool(cursor.rowcount)

    def usual_s(self, key: int) -> float | None:
        """Return how long earlier runs of a task took, in seconds; None if there is none.

        The median of the last five runs in the notebook that have completed: of the same name, or
        of the same source where it has no name.
        """
        rows = self._database.rows(
            """SELECT tasks.ended_at - tasks.started_at - tasks.paused_s
            FROM tasks AS it CROSS JOIN tasks WHERE it.key = ?1
            AND tasks.key BETWEEN ?1 - ?2 AND ?1 - 1 AND tasks.state = 'completed'
            AND tasks.notebook_key = it.notebook_key AND tasks.name = it.name
            AND (it.name <> '' OR tasks.source = it.source)
            ORDER BY tasks.key DESC LIMIT 5""",
            (key, NAMED_AMONG),
        )
        durations = sorted(float(seconds) for (seconds,) in rows)
        return durations[len(durations) // 2] if durations else None

    def last_try(self, task: TaskRecord) -> TaskRecord:
        """Return the latest try of a task; the task itself if there is no later one."""
        row = self._database.row(
            f"""SELECT {COLUMNS}, {LAST_LINE} {FROM} WHERE tasks.try_of = ?
            ORDER BY tasks.try_number DESC LIMIT 1""",
            (task.try_of or task.key,),
        )
        last = task if row is None else self._database.record(self._record, row)
        return last if last.try_number > task.try_number else task

    def with_inputs(self, task: TaskRecord) -> TaskRecord:
        """Return the task that has a task's inputs: the first of its tries, of the first run.

        The task itself if that is gone.
        """
        return (None if task.inputs_of == task.id else self.by_id(task.inputs_of)) or task

    def next_run(self, task: TaskRecord) -> TaskRecord | None:
        """Return the run that waits for the next time of a task's schedule; None if none does."""
        first = (None if task.try_of is None else self.get(task.try_of)) or task
        if first.schedule is None:
            return None
        return self._first(
            """tasks.notebook_key = ? AND tasks.state = 'pending' AND tasks.key <> ?
            AND tasks.cancel_requested_at IS NULL
            AND json_extract(tasks.schedule, '$.first_task') = ?""",
            (task.notebook_key, task.key, first.schedule.first_task or first.id),
        )

    def environments_needed(self) -> set[str]:
        """Return the ids of the tasks in whose names environments are kept that are still needed.

        That of a task that is tried again, or has a schedule, is needed until its end. That of
        another one is needed until its process has begun.
        """
        rows = self._database.rows(
            """SELECT coalesce(json_extract(retry, '$.environment_of'),
                json_extract(schedule, '$.first_task'), id)
            FROM tasks LEFT JOIN processes ON task_key = tasks.key
            WHERE state IN ('pending', 'running') AND runner = 'process'
            AND (coalesce(retry, schedule) IS NOT NULL OR pid IS NULL)"""
        )
        return {task_id for (task_id,) in rows}

    def waiting_for_threads(self, session_id: str, before: float) -> list[int]:
        """Return the keys of the session's tasks that wait for a thread since before a time."""
        rows = self._database.rows(
            """SELECT key FROM tasks WHERE session_id = ? AND state = 'pending'
            AND runner = 'thread' AND created_at < ?""",
            (session_id, before),
        )
        return [key for (key,) in rows]

    def take_back(self, keys: Sequence[int], at: float) -> list[str]:
        """Set those of these tasks that another process declared dead back to running.

        Called only by their owner, which still runs them and is marked alive, too. Returns their
        ids.
        """
        marks = ", ".join("?" * len(keys))
        with self._database.transaction() as connection:
            rows = connection.execute(
                f"""UPDATE tasks SET state = 'running', reason = NULL, ended_at = NULL,
                    output_bytes = NULL, declared_dead = NULL, cleared_at = NULL,
                    started_at = coalesce(started_at, ?)
                WHERE key IN ({marks}) AND state = 'interrupted' AND declared_dead IS NOT NULL
                RETURNING key, id, session_id, runner""",
                (at, *keys),
            ).fetchall()
            for key, _id, session_id, runner in rows:
                if runner == "thread":
                    connection.execute(
                        """UPDATE sessions SET heartbeat_at = ?, ended_at = NULL, end_reason = NULL
                        WHERE id = ?""",
                        (at, session_id),
                    )
                connection.execute(
                    """UPDATE supervisors SET heartbeat_at = ?, ended_at = NULL, end_reason = NULL
                    WHERE key = (SELECT supervisor_key FROM processes WHERE task_key = ?)""",
                    (at, key),
                )
        return sorted(task_id for _key, task_id, *_rest in rows)

    def declared_dead(self, keys: Collection[int]) -> list[int]:
        """Return those of these tasks that another process has declared dead."""
        rows = self._database.rows(
            """SELECT key FROM tasks WHERE key IN (SELECT value FROM json_each(?))
            AND state = 'interrupted' AND declared_dead IS NOT NULL""",
            (json.dumps([*keys]),),
        )
        return [key for (key,) in rows]

    def interrupt_session(
        self,
        session_id: str,
        runner: str,
        reason: str,
        at: float,
        declared_dead: str | None = None,
    ) -> int:
        """Interrupt every live task of the session on this runner. Return how many there were.

        `declared_dead` is `TaskRecord`'s.
        """
        cursor = self._database.write(
            f"{INTERRUPT} AND session_id = ?4 AND runner = ?5",
            (reason, declared_dead, at, session_id, runner),
        )
        return int(cursor.rowcount)

    def interrupt_pending(self, session_id: str, reason: str, at: float) -> int:
        """Interrupt the session's tasks that were about to start. Return how many.

        Not those that waited, may be tried again or have a schedule: another supervisor can start
        them.
        """
        cursor = self._database.write(
            f"""{INTERRUPT} AND session_id = ?4 AND state = 'pending' AND runner = 'process'
            AND NOT EXISTS (SELECT 1 FROM processes WHERE task_key = tasks.key AND {IS_WHOLE})""",
            (reason, "proven", at, session_id),
        )
        return int(cursor.rowcount)

    def cancel_pending(self, session_id: str) -> int:
        """Cancel waiting process tasks whose cancellation was requested. Return how many."""
        cursor = self._database.write(
            """UPDATE tasks SET state = 'cancelled', reason = 'cancelled',
                ended_at = max(?, created_at), notify = NULL
            WHERE session_id = ? AND state = 'pending' AND runner = 'process'
            AND cancel_requested_at IS NOT NULL""",
            (time.time(), session_id),
        )
        return int(cursor.rowcount)

    def request_cancel(self, key: int) -> bool:
        """Ask the owner of a task, or of a later try of it, to cancel it. Return whether one was
        live."""
        cursor = self._database.write(
            """UPDATE tasks SET cancel_requested_at = coalesce(cancel_requested_at, ?1)
            WHERE state IN ('pending', 'running') AND (key = ?2 OR try_of =
                (SELECT coalesce(it.try_of, it.key) FROM tasks AS it WHERE it.key = ?2))""",
            (time.time(), key),
        )
        return bool(cursor.rowcount)

    def cancel_requested(self, session_id: str) -> list[int]:
        """Return the keys of the session's live tasks whose cancellation was requested."""
        rows = self._database.rows(
            """SELECT key FROM tasks INDEXED BY tasks_to_cancel WHERE session_id = ?
            AND state IN ('pending', 'running') AND cancel_requested_at IS NOT NULL""",
            (session_id,),
        )
        return [key for (key,) in rows]

    def clear(self, notebook_key: int) -> int:
        """Remove the notebook's ended tasks from the default list. Return how many there were."""
        cursor = self._database.write(
            """UPDATE tasks SET cleared_at = ? WHERE notebook_key = ? AND cleared_at IS NULL
            AND state NOT IN ('pending', 'running')""",
            (time.time(), notebook_key),
        )
        return int(cursor.rowcount)

    def tag(self, key: int, added: Sequence[str], removed: Sequence[str] = ()) -> None:
        """Add and remove a task's tags."""
        with self._database.transaction() as connection:
            for tag in added:
                connection.execute(ADD_TAG, (key, storable(tag)))
            for tag in removed:
                connection.execute("DELETE FROM tags WHERE task_key = ? AND tag = ?", (key, tag))

    def add_provenance(self, keys: Sequence[int], found: Mapping[str, Any]) -> None:
        """Add to the provenance of tasks."""
        marks = ", ".join("?" * len(keys))
        self._database.write(
            f"""UPDATE tasks SET provenance = json_patch(provenance, ?) WHERE key IN ({marks})""",
            (json.dumps(dict(found)), *keys),
        )

    def dropped(self, key: int, size_bytes: int) -> None:
        """Record how many bytes of a task's output exceeded its limit."""
        self._database.write("UPDATE tasks SET dropped_bytes = ? WHERE key = ?", (size_bytes, key))

    def progress(self, key: int, progress: Progress) -> None:
        """Record how far a task has come."""
        self._database.write(
            "UPDATE tasks SET progress = ? WHERE key = ?", (json.dumps(progress.as_stored()), key)
        )

    def checkpointed(self, key: int, at: float) -> None:
        """Record the time of a task's latest checkpoint, in seconds since the epoch."""
        self._database.write("UPDATE tasks SET checkpoint_at = ? WHERE key = ?", (at, key))

    def places_in_use(self, places: Collection[str]) -> set[str]:
        """Return those of these folders of checkpoints that tasks have."""
        rows = self._database.rows(
            """SELECT DISTINCT checkpoint_place FROM tasks
            WHERE checkpoint_place IN (SELECT value FROM json_each(?))""",
            (json.dumps([*places]),),
        )
        return {place for (place,) in rows}

    def live_at(self, place: str) -> TaskRecord | None:
        """Return a live task that has this folder of checkpoints; None if there is none."""
        row = self._database.row(
            f"""SELECT {COLUMNS} {FROM} WHERE tasks.checkpoint_place = ?
            AND tasks.state IN ('pending', 'running') LIMIT 1""",
            (place,),
        )
        return None if row is None else self._database.record(self._record, row)

    def to_notify(self, key: int | None = None, *, before: float | None = None) -> list[TaskRecord]:
        """Return the ended tasks whose notifications no process has taken over.

        Only the task in this row, or those that ended before a time, when given.
        """
        if key is not None:
            task = self.get(key)
            return [task] if task is not None and task.notify and task.state.is_final else []
        rows = self._database.rows(
            f"""SELECT {COLUMNS} {FROM} WHERE tasks.notify IS NOT NULL
            AND tasks.state NOT IN ('pending', 'running')
            AND (?1 IS NULL OR tasks.ended_at < ?1) ORDER BY tasks.key""",
            (before,),
        )
        return [self._database.record(self._record, row) for row in rows]

    def take_notify(self, key: int) -> tuple[str, ...]:
        """Take over an ended task's notifications. Return their places, which are removed."""
        with self._database.transaction() as connection:
            row = connection.execute(
                """SELECT notify FROM tasks WHERE key = ? AND notify IS NOT NULL
                AND state NOT IN ('pending', 'running')""",
                (key,),
            ).fetchone()
            connection.execute(
                """UPDATE tasks SET notify = NULL WHERE key = ?
                AND state NOT IN ('pending', 'running')""",
                (key,),
            )
        return _places(None if row is None else row[0])

    def post_mortem(self, key: int) -> dict[str, Any] | None:
        """Return the variables at a Python task's failure; None when unknown."""
        row = self._database.row("SELECT post_mortem FROM tasks WHERE key = ?", (key,))
        return None if row is None or row[0] is None else dict(json.loads(row[0]))

    def save_post_mortem(self, key: int, found: Mapping[str, Any]) -> None:
        """Keep the variables at a Python task's failure."""
        self._database.write(
            "UPDATE tasks SET post_mortem = ? WHERE key = ?", (json.dumps(dict(found)), key)
        )

    def get(self, key: int) -> TaskRecord | None:
        """Return the task in this row."""
        row = self._database.row(
            f"SELECT {COLUMNS}, {LAST_LINE} {FROM} WHERE tasks.key = ?", (key,)
        )
        return None if row is None else self._database.record(self._record, row)

    def of_keys(self, keys: Collection[int]) -> list[TaskRecord]:
        """Return the tasks in these rows, in any order. Missing ones are left out."""
        rows = self._database.rows(
            f"""SELECT {COLUMNS}, {LAST_LINE} {FROM}
            WHERE tasks.key IN (SELECT value FROM json_each(?))""",
            (json.dumps([*keys]),),
        )
        return [self._database.record(self._record, row) for row in rows]

    def by_number(self, notebook_key: int, number: int) -> TaskRecord | None:
        """Return the notebook's task with this number."""
        return self._first("tasks.notebook_key = ? AND tasks.number = ?", (notebook_key, number))

    def by_id(self, task_id: str) -> TaskRecord | None:
        """Return the task with exactly this id, of any notebook."""
        return self._first("tasks.id = ?", (storable(task_id),))

    def by_name(self, notebook_key: int, name: str) -> TaskRecord | None:
        """Return the notebook's latest task with this name, or one that waits by a schedule."""
        condition = "tasks.notebook_key = ? AND tasks.name = ?"
        values = (notebook_key, storable(name))
        found = self._first(f"{condition} AND NOT {IS_NEXT_RUN}", values)
        return found or self._first(condition, values)

    def live_of_name(self, notebook_key: int, name: str) -> list[TaskRecord]:
        """Return the notebook's live tasks with this name, latest first.

        Those that wait by a schedule come last.
        """
        rows = self._database.rows(
            f"""SELECT {COLUMNS}, {LAST_LINE} FROM tasks INDEXED BY tasks_live
            JOIN notebooks ON notebooks.key = tasks.notebook_key
            WHERE tasks.notebook_key = ? AND tasks.state IN ('pending', 'running')
            AND tasks.name = ? ORDER BY {IS_NEXT_RUN}, tasks.number DESC""",
            (notebook_key, storable(name)),
        )
        return [self._database.record(self._record, row) for row in rows]

    def earlier_runs(self, notebook_key: int, run: CellRun) -> list[TaskRecord]:
        """Return the notebook's live tasks of earlier runs of a cell, oldest first.

        Without the ids of both cells, the source and the name say whether it is the same cell.
        """
        rows = self._database.rows(
            f"""SELECT {COLUMNS}, {LAST_LINE} FROM tasks INDEXED BY tasks_live
            JOIN notebooks ON notebooks.key = tasks.notebook_key
            WHERE tasks.notebook_key = ?1 AND tasks.state IN ('pending', 'running')
            AND NOT (tasks.session_id = ?2 AND tasks.execution_count = ?3) AND NOT tasks.is_call
            AND CASE WHEN tasks.cell_id IS NOT NULL AND ?4 IS NOT NULL
                THEN tasks.cell_id = ?4 AND (?5 OR tasks.source = ?6)
                ELSE tasks.source = ?6 AND tasks.name = ?7 END
            ORDER BY tasks.number""",
            (
                *(notebook_key, run.session, run.execution_count, run.cell_id),
                *(run.is_whole_cell, storable(run.source), storable(run.name)),
            ),
        )
        return [self._database.record(self._record, row) for row in rows]

    def from_end(self, notebook_key: int, back: int) -> TaskRecord | None:
        """Return the notebook's latest task (1), the one before it (2), and so on.

        Those that wait by a schedule do not count.
        """
        row = self._database.row(
            f"""SELECT {COLUMNS}, {LAST_LINE} {FROM} WHERE tasks.notebook_key = ?
            AND NOT {IS_NEXT_RUN} ORDER BY tasks.number DESC LIMIT 1 OFFSET ?""",
            (notebook_key, back - 1),
        )
        return None if row is None else self._database.record(self._record, row)

    def of_tag(self, notebook_key: int, tag: str) -> TaskRecord | None:
        """Return the notebook's latest task that has a tag.

        Those that wait by a schedule do not count.
        """
        return self._first(HAS_TAG, (notebook_key, storable(tag)))

    def by_id_prefix(self, notebook_key: int, prefix: str) -> list[TaskRecord]:
        """Return the notebook's tasks whose id starts with `prefix`."""
        rows = self._database.rows(
            f"""SELECT {COLUMNS} {FROM} WHERE tasks.notebook_key = ?
            AND substr(tasks.id, 1, ?) = ? ORDER BY tasks.number""",
            (notebook_key, len(prefix), storable(prefix)),
        )
        return [self._database.record(self._record, row) for row in rows]

    def _first(self, condition: str, parameters: Sequence[Any]) -> TaskRecord | None:
        row = self._database.row(
            f"""SELECT {COLUMNS}, {LAST_LINE} {FROM} WHERE {condition}
            ORDER BY tasks.number DESC LIMIT 1""",
            parameters,
        )
        return None if row is None else self._database.record(self._record, row)

    def select(self, selection: Selection) -> list[TaskRecord]:
        """Return the selected tasks, oldest first."""
        condition, parameters = _where(selection)
        # Not by key: tasks restored from an archive, or imported, have the latest.
        everywhere = selection.notebook_key is None
        order = "tasks.created_at DESC, tasks.key" if everywhere else "tasks.number"
        limit = -1 if selection.limit is None else selection.limit
        rows = self._database.rows(
            f"SELECT {COLUMNS}, {LAST_LINE} {FROM} WHERE {condition} ORDER BY {order} DESC LIMIT ?",
            (*parameters, limit),
        )
        return [self._database.record(self._record, row) for row in reversed(rows)]

    def count(self, selection: Selection) -> int:
        """Return how many tasks the selection would contain without its limit."""
        condition, parameters = _where(selection)
        row = self._database.row(f"SELECT count(*) FROM tasks WHERE {condition}", parameters)
        return int(row[0])

    def count_of_cells(self, notebook_key: int, cell_ids: Collection[str]) -> int:
        """Return how many of the notebook's tasks were launched by these cells."""
        row = self._database.row(
            """SELECT count(*) FROM tasks WHERE notebook_key = ?
            AND cell_id IN (SELECT value FROM json_each(?))""",
            (notebook_key, json.dumps([*cell_ids])),
        )
        return int(row[0])

    def keys(self, selection: Selection) -> set[int]:
        """Return the rows of the tasks that the selection would contain without its limit."""
        condition, parameters = _where(selection)
        rows = self._database.rows(f"SELECT key FROM tasks WHERE {condition}", parameters)
        return {key for (key,) in rows}

    def interrupted(self, notebook_key: int) -> list[TaskRecord]:
        """Return the notebook's interrupted tasks that were not run again, oldest first.

        Includes tasks that may still run because their owner was only presumed dead. Excludes
        imported ones: code from a file runs only when the user names the task.
        """
        rows = self._database.rows(
            f"""SELECT {COLUMNS} {FROM} WHERE tasks.notebook_key = ?
            AND tasks.state = 'interrupted'
            AND json_extract(tasks.provenance, '$.imported_at') IS NULL AND {RUN_AGAIN} IS NULL
            ORDER BY tasks.number""",
            (notebook_key,),
        )
        return [self._database.record(self._record, row) for row in rows]

    def existing(self, ids: Sequence[str]) -> set[str]:
        """Return those of these ids that tasks have."""
        rows = self._database.rows(
            "SELECT id FROM tasks WHERE id IN (SELECT value FROM json_each(?))",
            (json.dumps([*ids]),),
        )
        return {task_id for (task_id,) in rows}

    def ended_before(self, at: float, *, except_tag: str) -> list[TaskRecord]:
        """Return the tasks that ended before a time and lack this tag, the earliest end first.

        Without those that have the inputs of later tries and runs.
        """
        rows = self._database.rows(
            f"""SELECT {COLUMNS} {FROM} WHERE tasks.ended_at < ? AND NOT EXISTS
                (SELECT 1 FROM tags WHERE task_key = tasks.key AND tag = ?)
            AND NOT EXISTS (SELECT 1 FROM tasks AS later WHERE later.try_of = tasks.key
                AND later.state IN ('pending', 'running'))
            AND NOT EXISTS (SELECT 1 FROM tasks AS later WHERE later.notebook_key =
                tasks.notebook_key AND later.state IN ('pending', 'running')
                AND json_extract(later.schedule, '$.first_task') = tasks.id)
            ORDER BY tasks.ended_at, tasks.key""",
            (at, except_tag),
        )
        return [self._database.record(self._record, row) for row in rows]

    def of_session(self, session_id: str) -> list[TaskRecord]:
        """Return the tasks that a session launched, oldest first."""
        rows = self._database.rows(
            f"SELECT {COLUMNS}, {LAST_LINE} {FROM} WHERE tasks.session_id = ? ORDER BY tasks.key",
            (session_id,),
        )
        return [self._database.record(self._record, row) for row in rows]

    def latest_key(self) -> int:
        """Return the highest key of a task; 0 when there is none."""
        return int(self._database.row("SELECT coalesce(max(key), 0) FROM tasks")[0])

    def live(self, notebook_key: int) -> set[int]:
        """Return the rows of the notebook's live tasks. Fast however many have ended."""
        rows = self._database.rows(
            """SELECT key FROM tasks INDEXED BY tasks_live
            WHERE notebook_key = ? AND state IN ('pending', 'running')""",
            (notebook_key,),
        )
        return {key for (key,) in rows}

    def watched(self, notebook_key: int, keys: Sequence[int], after: int) -> dict[int, TaskState]:
        """Return the states of the notebook's tasks in these rows and in all rows after one."""
        rows = self._database.rows(
            """SELECT key, state FROM tasks WHERE +notebook_key = ? AND key IN
                (SELECT value FROM json_each(?) UNION ALL SELECT key FROM tasks WHERE key > ?)""",
            (notebook_key, json.dumps(list(keys)), after),
        )
        return {key: TaskState(state) for key, state in rows}

    def named(self, notebook_key: int, beginning: str, limit: int) -> list[TaskName]:
        """Return the notebook's latest tasks whose number, name or id starts so, newest first."""
        rows = self._database.rows(
            """SELECT number, name, id, state FROM tasks WHERE notebook_key = ?1 AND number >
                (SELECT max(number) FROM tasks WHERE notebook_key = ?1) - ?2
            AND (substr(number, 1, ?3) = ?4 OR substr(name, 1, ?3) = ?4 OR substr(id, 1, ?3) = ?4)
            ORDER BY number DESC LIMIT ?5""",
            (notebook_key, NAMED_AMONG, len(beginning), storable(beginning), limit),
        )
        return [TaskName(*row) for row in rows]

    def names_of_words(self, notebook_key: int) -> set[str]:
        """Return the names of the notebook's tasks that have a space in them."""
        rows = self._database.rows(
            "SELECT DISTINCT name FROM tasks WHERE notebook_key = ? AND instr(name, ' ')",
            (notebook_key,),
        )
        return {name for (name,) in rows}

    def tags(self, beginning: str, limit: int) -> list[str]:
        """Return the tags that start with this."""
        rows = self._database.rows(
            """SELECT DISTINCT tag FROM tags WHERE tag >= ?1 AND tag < ?1 || char(1114111)
            ORDER BY tag LIMIT ?2""",
            (storable(beginning), limit),
        )
        return [tag for (tag,) in rows]

    def history(self, key: int) -> list[EventRecord]:
        """Return the task's states in order."""
        rows = self._database.rows(
            "SELECT state, reason, at FROM events WHERE task_key = ? ORDER BY key", (key,)
        )
        return [self._database.record(_event, row) for row in rows]

    def ended_in(self, absence: Absence) -> list[tuple[int, TaskState]]:
        """Return row and state of the notebook's uncleared tasks that ended in an absence.

        The latest come first. Excludes imported tasks: they ended elsewhere.
        """
        lost, cut_off = (
            ", ".join("?" * len(each)) for each in (absence.just_lost, absence.cut_off)
        )
        rows = self._database.rows(
            f"""SELECT key, state FROM tasks WHERE notebook_key = ?
            AND ended_at IS NOT NULL AND cleared_at IS NULL
            AND (ended_at > ? OR key IN ({lost}) OR (
                state = 'interrupted' AND runner = 'thread' AND session_id IN ({cut_off})
                AND ended_at >= (SELECT ended_at FROM sessions WHERE id = tasks.session_id)))
            AND json_extract(provenance, '$.imported_at') IS NULL
            ORDER BY ended_at DESC, number DESC""",
            (absence.notebook_key, absence.since, *absence.just_lost, *absence.cut_off),
        )
        return [(key, TaskState(state)) for key, state in rows]

    def counts(self, notebook_key: int, *, except_session: str) -> dict[TaskState, int]:
        """Return the number of uncleared tasks of the notebook's other sessions, by state."""
        rows = self._database.rows(
            """SELECT state, count(*) FROM tasks WHERE notebook_key = ? AND session_id <> ?
            AND cleared_at IS NULL GROUP BY state""",
            (notebook_key, except_session),
        )
        return {TaskState(state): count for state, count in rows}


def _where(selection: Selection) -> tuple[str, list[Any]]:
    conditions = ["1"]
    parameters: list[Any] = []
    if selection.notebook_key is not None:
        conditions.append("tasks.notebook_key = ?")
        parameters.append(selection.notebook_key)
    if selection.states:
        conditions.append(f"tasks.state IN ({', '.join('?' * len(selection.states))})")
        parameters.extend(state.value for state in selection.states)
    if selection.session_prefix:
        conditions.append("substr(tasks.session_id, 1, ?) = ?")
        prefix = storable(selection.session_prefix)
        parameters.extend((len(selection.session_prefix), prefix))
    if not selection.cleared:
        conditions.append("tasks.cleared_at IS NULL")
    for tag in selection.tags:
        conditions.append("EXISTS (SELECT 1 FROM tags WHERE task_key = tasks.key AND tag = ?)")
        parameters.append(storable(tag))
    if selection.created_after is not None:
        conditions.append("tasks.created_at >= ?")
        parameters.append(selection.created_after)
    return " AND ".join(conditions), parameters
