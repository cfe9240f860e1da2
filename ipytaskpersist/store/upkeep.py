"""Keeping a store small: turns, space in use, and returning free space."""

from __future__ import annotations

import time

from ipytaskpersist.store.file.database import Database

IN = "taken in of"
"""Precedes a file's name in rows that hold a position in it instead of a time."""


class Upkeep:
    """The table `upkeep`, and the pages of the file."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def claim(self, name: str, interval_s: float) -> bool:
        """Take a turn. Return False if one was taken in the last `interval_s` seconds."""
        now = time.time()
        cursor = self._database.write(
            """INSERT INTO upkeep (name, at) VALUES (?1, ?2)
            ON CONFLICT (name) DO UPDATE SET at = excluded.at
            WHERE upkeep.at NOT BETWEEN ?2 - ?3 AND ?2""",
            (name, now, interval_s),
        )
        return bool(cursor.rowcount)

    def reached(self, name: str) -> int:
        """Return how much of the file with this name was applied; 0 before the first time."""
        row = self._database.row("SELECT at FROM upkeep WHERE name = ?", (f"{IN} {name}",))
        return 0 if row is None else int(row[0])

    def reach(self, name: str, position: int) -> None:
        """Record how much was applied, in the caller's transaction."""
        self._database.write(
            "INSERT OR REPLACE INTO upkeep (name, at) VALUES (?, ?)", (f"{IN} {name}", position)
        )

    def forget(self, name: str) -> None:
        """Forget a removed file."""
        self._database.write("DELETE FROM upkeep WHERE name = ?", (f"{IN} {name}",))

    def used_bytes(self) -> int:
        """Return the used part of the file plus the size of the pickled results."""
        (page,) = self._database.row("PRAGMA page_size")
        (pages,) = self._database.row("PRAGMA page_count")
        (free,) = self._database.row("PRAGMA freelist_count")
        (results,) = self._database.row(
            "SELECT coalesce(sum(size_bytes), 0) FROM results WHERE size_bytes IS NOT NULL"
        )
        return int(page * (pages - free) + results)

    def shrink(self) -> None:
        """Return free pages to the file system. Others wait meanwhile."""
        self._database.execute("VACUUM")
        self._database.checkpoint()
