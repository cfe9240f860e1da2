"""The cells that launched tasks, as far as front ends name them."""

from __future__ import annotations

import json
from collections.abc import Collection

from ipytaskpersist.store.file.database import Database, storable


class Cells:
    """What the rows of `tasks` say about cells."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def latest(self, notebook_key: int, cell_ids: Collection[str]) -> dict[str, int]:
        """Return the row of the latest task of each of these cells of a notebook."""
        rows = self._database.rows(
            """SELECT cell_id, key, max(number) FROM tasks WHERE notebook_key = ?
            AND cell_id IN (SELECT value FROM json_each(?)) GROUP BY cell_id""",
            (notebook_key, json.dumps([*cell_ids])),
        )
        return {cell_id: key for cell_id, key, _number in rows}

    def latest_of_source(self, notebook_key: int, source: str) -> int | None:
        """Return the row of a notebook's latest task with this source and no known cell."""
        row = self._database.row(
            """SELECT key FROM tasks WHERE notebook_key = ? AND cell_id IS NULL
            AND trim(source, ?) = ? ORDER BY number DESC LIMIT 1""",
            (notebook_key, " \t\r\n", storable(source.strip(" \t\r\n"))),
        )
        return None if row is None else int(row[0])

    def notebooks(self, cell_ids: Collection[str]) -> list[tuple[int, str]]:
        """Return key and path of the notebooks with tasks of these cells, most tasks first."""
        rows = self._database.rows(
            """SELECT notebooks.key, notebooks.path FROM tasks
            JOIN notebooks ON notebooks.key = tasks.notebook_key
            WHERE cell_id IN (SELECT value FROM json_each(?))
            GROUP BY notebooks.key ORDER BY count(*) DESC""",
            (json.dumps([*cell_ids]),),
        )
        return [(key, path) for key, path in rows]
