"""Another try of a task: a new pending task, recorded together with the end of the one before.

Both are in one transaction, so each try is followed by one other at most, whatever is killed when.
"""

from __future__ import annotations

import time
from typing import Any

from ipytaskpersist.base.records import FRESH_ASKED, FRESH_SETTING
from ipytaskpersist.base.retries import TRIES_AGAIN, Retries, causes_of

COPIED = """notebook_key, session_id, name, kind, runner, source, cell_id, execution_count, is_call,
    max_output_bytes, notify, group_name, priority, cpus, gpus, gpu_memory_bytes, checkpoint_place,
    checkpoint_at"""
ADD_TASK = f"""INSERT INTO tasks ({COPIED}, id, number, state, created_at, due_at, waits_for,
        memory_bytes, provenance, rerun_of, try_of, try_number, retry)
    SELECT {COPIED}, ?2, ?3, 'pending', ?4, ?5, ?5 IS NOT NULL, ?6,
        json_set(json_remove(provenance, '$.rerun_as'), '$.rerun_of', id,
            '$.try_of', coalesce(json_extract(provenance, '$.try_of'), id)), key,
        coalesce(try_of, key), try_number + 1,
        json_set(retry, '$.environment_of', coalesce(json_extract(retry, '$.environment_of'), id))
    FROM tasks WHERE key = ?1"""
PROCESS = """command, script, script_as, directory, environment, whole_environment, pty, timeout_s,
    grace_s, options, runs_at"""
ADD_PROCESS = f"""INSERT INTO processes (task_key, {PROCESS}, interpreter)
    SELECT ?2, {PROCESS},
        iif(interpreter IN (?3, ?4) OR interpreter LIKE 'kernel %', interpreter, NULL)
    FROM processes WHERE task_key = ?1"""
"""The interpreter is what was asked for, or the kernel of a whole notebook, not what was found."""
NOTE_TRY = """UPDATE processes SET script = json_insert(script, '$.tries[#]', ?2)
    WHERE task_key = ?1 AND (SELECT json_extract(provenance, '$.whole_notebook') FROM tasks
        WHERE key = ?1) IS NOT NULL"""
"""A whole notebook goes on from what its earlier tries have saved, under their ids."""
LEAVE = """UPDATE tasks SET notify = NULL, cleared_at = ?2,
    provenance = json_set(provenance, '$.rerun_as', ?3) WHERE key = ?1"""
"""The end of the last try alone is told, and the list shows that one."""


def add_try(
    connection: Any, key: int, state: str, reason: str | None, exit_code: int | None
) -> int | None:
    """Add the next try of a running task that is about to end so.

    Called in the transaction that records the end, and before that: the tasks that wait for the
    task wait for its next try from now on. Returns its number; None when there is none.
    """
    row = connection.execute(
        """SELECT id, notebook_key, try_number, retry, memory_bytes FROM tasks WHERE key = ?
        AND retry IS NOT NULL AND state = 'running' AND cancel_requested_at IS NULL""",
        (key,),
    ).fetchone()
    if row is None:
        return None
    task_id, notebook_key, try_number, retry, memory_bytes = row
    retries, causes = Retries.from_json(retry), causes_of(state, reason, exit_code)
    if retries is None or not retries.follow(try_number, causes):
        return None
    memory_bytes = retries.memory_after(causes, memory_bytes)
    number = next_number(connection, notebook_key)
    delay_s = retries.delay_after(try_number)
    new_id = f"{task_id.rpartition('-')[0]}-{number}"
    new_key = _add(connection, key, (new_id, number), delay_s, memory_bytes)
    connection.execute(NOTE_TRY, (new_key, task_id))
    return number


def next_number(connection: Any, notebook_key: int) -> int:
    """Take the next number of a notebook's tasks, in the caller's transaction."""
    (number,) = connection.execute(
        "UPDATE notebooks SET last_number = last_number + 1 WHERE key = ? RETURNING last_number",
        (notebook_key,),
    ).fetchone()
    return int(number)


def copy_parts(connection: Any, key: int, new_key: int) -> None:
    """Give a new task the process and the tags of another, in the caller's transaction."""
    connection.execute(ADD_PROCESS, (key, new_key, FRESH_ASKED, FRESH_SETTING))
    connection.execute(
        "INSERT INTO tags (task_key, tag) SELECT ?2, tag FROM tags WHERE task_key = ?1",
        (key, new_key),
    )


def _add(
    connection: Any, key: int, new: tuple[str, int], delay_s: float, memory_bytes: int | None
) -> int:
    (new_id, number), now = new, time.time()
    values = (key, new_id, number, now, now + delay_s if delay_s else None, memory_bytes)
    new_key = connection.execute(ADD_TASK, values).lastrowid
    copy_parts(connection, key, new_key)
    connection.execute("UPDATE dependencies SET on_key = ?2 WHERE on_key = ?1", (key, new_key))
    connection.execute(LEAVE, (key, now, new_id))
    return int(new_key)


def tries_again(number: int) -> str:
    """Return what the reason of an end says besides, when another try follows."""
    return f"task {number}{TRIES_AGAIN}"
