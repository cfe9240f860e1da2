"""Tasks whose process runs at a place: how far they have come there, and who looks after them.

A place's task is handed over by the supervisor that claims it, waits until it begins there, and
runs on when that supervisor dies. Then it has none, until another one takes it over.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from ipytaskpersist.base.records import ProcessRecord
from ipytaskpersist.store.file.database import Database
from ipytaskpersist.store.file.migrations import ELSEWHERE
from ipytaskpersist.store.processes import FROM, PROCESS, record_of

IS_LEFT = f"{ELSEWHERE} AND state IN ('pending', 'running') AND submitted_at IS NOT NULL"
"""SQL for a live task at a place that no supervisor looks after."""


class Elsewhere:
    """The rows of tasks whose process runs at a place."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def waits(self, key: int, words: str | None) -> None:
        """Record what a task waits for at its place."""
        self._database.write(
            "UPDATE tasks SET lacks = ?1 WHERE key = ?2 AND state = 'pending' AND lacks IS NOT ?1",
            (words, key),
        )

    def began(self, key: int, far: Mapping[str, Any], at: float) -> None:
        """Record that a task runs at its place, and what is known of its process there."""
        with self._database.transaction() as connection:
            connection.execute(
                """UPDATE tasks SET state = 'running', started_at = ?, waits_for = 0, lacks = NULL
                WHERE key = ? AND state = 'pending'""",
                (at, key),
            )
            connection.execute(
                "UPDATE processes SET far = ? WHERE task_key = ?", (json.dumps(dict(far)), key)
            )

    def unreachable(self, keys: Collection[int], since: float | None, why: str | None) -> None:
        """Record since when and why the place of these tasks does not answer; None: it does."""
        self._database.write(
            """UPDATE tasks SET unreachable_since = ?1, lacks = iif(state = 'running', ?2, lacks)
            WHERE (unreachable_since IS NOT ?1 OR state = 'running' AND lacks IS NOT ?2)
            AND key IN (SELECT value FROM json_each(?3)) AND state IN ('pending', 'running')""",
            (since, why, json.dumps([*keys])),
        )

    def take_over(self, session_id: str, supervisor_key: int) -> list[ProcessRecord]:
        """Have a supervisor look after the session's tasks that none looks after. Return these."""
        with self._database.transaction() as connection:
            rows = connection.execute(
                f"SELECT {PROCESS} {FROM} WHERE {IS_LEFT} AND session_id = ? ORDER BY task_key",
                (session_id,),
            ).fetchall()
            left = [self._database.record(record_of, row) for row in rows]
            for process in left:
                connection.execute(
                    "UPDATE processes SET supervisor_key = ? WHERE task_key = ?",
                    (supervisor_key, process.task_key),
                )
        return left

    def are_left(self, session_id: str) -> bool:
        """Return whether no supervisor looks after some of the session's tasks."""
        row = self._database.row(
            f"SELECT 1 {FROM} WHERE {IS_LEFT} AND session_id = ? LIMIT 1", (session_id,)
        )
        return row is not None
