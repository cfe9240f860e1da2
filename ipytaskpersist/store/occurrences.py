"""The runs of a task with a schedule: each is a task, recorded when the one before it is claimed.

Both are in one transaction, so each run is followed by one other at most, whatever is killed when.
"""

from __future__ import annotations

from typing import Any

from ipytaskpersist.base.schedules import Schedule
from ipytaskpersist.store.tries import copy_parts, next_number

COPIED = """notebook_key, session_id, name, kind, runner, source, cell_id, execution_count, is_call,
    max_output_bytes, notify, group_name, priority, cpus, memory_bytes, gpus, gpu_memory_bytes"""
ADD_TASK = f"""INSERT INTO tasks ({COPIED}, id, number, state, created_at, due_at, waits_for,
        provenance, checkpoint_place, schedule, retry)
    SELECT {COPIED}, ?2, ?3, 'pending', ?4, ?5, 2,
        json_remove(provenance, '$.rerun_as', '$.rerun_of'), ?2, ?6,
        json_set(retry, '$.environment_of', ?7)
    FROM tasks WHERE key = ?1"""
"""It waits for two things: its time, and the end of the run before it."""
MISSED = """SELECT key, schedule FROM tasks INDEXED BY tasks_due
    WHERE due_at <= ? AND state = 'pending' AND session_id = ? AND schedule IS NOT NULL"""


def add_next_run(connection: Any, key: int, at: float) -> None:
    """Add the next run of a task with a schedule, in the transaction that claims this one.

    None follows if the rule has no further time. A cancelled task is never claimed.
    """
    row = connection.execute(
        "SELECT id, notebook_key, schedule FROM tasks WHERE key = ? AND schedule IS NOT NULL",
        (key,),
    ).fetchone()
    if row is None:
        return
    task_id, notebook_key, kept = row
    schedule = Schedule.from_json(kept)
    following = None if schedule is None else schedule.following(task_id, at)
    if following is None:
        return
    number = next_number(connection, notebook_key)
    new_id = f"{task_id.rpartition('-')[0]}-{number}"
    values = (key, new_id, number, at, following.due_at, following.as_json(), following.first_task)
    new_key = connection.execute(ADD_TASK, values).lastrowid
    copy_parts(connection, key, new_key)
    connection.execute(
        "INSERT INTO dependencies (task_key, on_key, condition) VALUES (?, ?, 'any')",
        (new_key, key),
    )


def leave_out_missed(connection: Any, session_id: str, at: float) -> None:
    """Have runs of a session whose time was missed wait for their next one, if they are to."""
    for key, kept in connection.execute(MISSED, (at, session_id)).fetchall():
        schedule = Schedule.from_json(kept)
        if schedule is None or not schedule.is_missed(at):
            continue
        next_at = schedule.next_after(at)
        connection.execute(
            """UPDATE tasks SET due_at = coalesce(?2, due_at),
                schedule = json_set(schedule, '$.due_at', coalesce(?2, due_at)) WHERE key = ?1""",
            (key, next_at),
        )
