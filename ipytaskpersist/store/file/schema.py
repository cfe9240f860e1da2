"""The schema of a new store, in schema.sql: what all migrations together make of an empty file.

A new store is made from it, without sqlite-utils. Importing that takes a tenth of a second, and
half a second more where pandas is installed, which it imports; the first background cell of a new
user would wait for it. ``make docs`` writes the file anew after a migration was added.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ipytaskpersist.store.file.migrations import STEPS, migrate

FILE = Path(__file__).with_name("schema.sql")
BETWEEN = ";\n\n"
"""What stands between two statements, and in none: those of triggers have semicolons inside."""


def create(connection: Any) -> None:
    """Write the schema into an empty file. The caller holds the write lock in a transaction.

    A step that the file does not have yet is made by its migration.
    """
    for statement in FILE.read_text("utf-8").split(BETWEEN):
        connection.execute(statement)
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version < len(STEPS):
        migrate(connection)
