"""What keeps a store small: whose turn it is, how much is in use, and giving space back."""

from __future__ import annotations

import time

from ipytaskpersist.store.database import Database

IN = "taken in of"
"""Before the name of a file stands how far one has come with it, where else stands a time."""


class Upkeep:
    """The table `upkeep`, and the pages of the file."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def claim(self, name: str, interval_s: float) -> bool:
        """Take a turn. False when somebody took one in the last `interval_s` seconds."""
        now = time.time()
        cursor = self._database.write(
            """INSERT INTO upkeep (name, at) VALUES (?1, ?2)
            ON CONFLICT (name) DO UPDATE SET at = excluded.at
            WHERE upkeep.at NOT BETWEEN ?2 - ?3 AND ?2""",
            (name, now, interval_s),
        )
        return bool(cursor.rowcount)

    def reached(self, name: str) -> int:
        """How much of a file of this name has been taken in; 0 where that has not begun."""
        row = self._database.row("SELECT at FROM upkeep WHERE name = ?", (f"{IN} {name}",))
        return 0 if row is None else int(row[0])

    def reach(self, name: str, position: int) -> None:
        """Note how far one has come, in the caller's transaction."""
        self._database.write(
            "INSERT OR REPLACE INTO upkeep (name, at) VALUES (?, ?)", (f"{IN} {name}", position)
        )

    def forget(self, name: str) -> None:
        """The file is gone."""
        self._database.write("DELETE FROM upkeep WHERE name = ?", (f"{IN} {name}",))

    def used_bytes(self) -> int:
        """How much of the file holds something, and how much the pickled results take."""
        (page,) = self._database.row("PRAGMA page_size")
        (pages,) = self._database.row("PRAGMA page_count")
        (free,) = self._database.row("PRAGMA freelist_count")
        (results,) = self._database.row(
            "SELECT coalesce(sum(size_bytes), 0) FROM results WHERE size_bytes IS NOT NULL"
        )
        return int(page * (pages - free) + results)

    def shrink(self) -> None:
        """Give free pages back to the file system. Others wait meanwhile."""
        self._database.execute("VACUUM")
        self._database.checkpoint()
