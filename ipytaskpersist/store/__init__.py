"""The store: one SQLite file for each user, and the only channel between processes.

Only this package speaks SQL. It gives and takes the frozen records of `ipytaskpersist.task`.
"""

from __future__ import annotations

import os
import time
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ipytaskpersist import problems
from ipytaskpersist.errors import StoreDamaged, StoreError
from ipytaskpersist.paths import StateDirectory, make_durable, make_private
from ipytaskpersist.store.database import (
    SQLITE_VERSION,
    Database,
    journal_mode_for,
    one_at_a_time,
)
from ipytaskpersist.store.migrations import STEPS, migrate
from ipytaskpersist.store.outputs import NewOutput, Outputs, Results
from ipytaskpersist.store.processes import NewProcess, Processes, Supervisors
from ipytaskpersist.store.sessions import Sessions
from ipytaskpersist.store.tasks import NewTask, Selection, Tasks
from ipytaskpersist.store.upkeep import Upkeep

if TYPE_CHECKING:
    from ipytaskpersist.store.changes import Changes
    from ipytaskpersist.store.statistics import Statistics

BEFORE = "before-migration-from-"
"""What the name of a backup that a migration has made says after the date."""

__all__ = ["SQLITE_VERSION", "NewOutput", "NewProcess", "NewTask", "Selection", "TaskStore"]


class TaskStore:
    """Everything that is kept, by what it is about: sessions, tasks, outputs and more."""

    def __init__(
        self,
        directory: StateDirectory,
        *,
        synchronous: str = "normal",
        backups_kept: int = 3,
        database: Database | None = None,
    ) -> None:
        """`synchronous` is ``normal`` or ``full``: whether a commit survives a loss of power.

        `backups_kept` is how many of the backups that a migration makes are kept. A `database`
        of its own is for who only looks.
        """
        self.directory = directory
        self.backups_kept = backups_kept
        self.database = database or Database(directory, synchronous)
        self.sessions = Sessions(self.database)
        self.tasks = Tasks(self.database, directory.month)
        self.processes = Processes(self.database)
        self.supervisors = Supervisors(self.database)
        self.outputs = Outputs(self.database)
        self.results = Results(self.database)
        self.upkeep = Upkeep(self.database)
        self.notice = ""
        """What the person should be told of the opening; empty when all was as ever."""
        self._is_open = False

    @property
    def exists(self) -> bool:
        """Whether there is anything to read. Asking does not make a store."""
        return self.database.exists

    @property
    def is_current(self) -> bool:
        """Whether it can be read as it is, without being repaired or brought up to date."""
        return not self.directory.damage_mark.exists() and self._schema_version() == len(STEPS)

    @cached_property
    def statistics(self) -> Statistics:
        """How much there is of everything. Imported for who asks."""
        from ipytaskpersist.store.statistics import Statistics

        return Statistics(self.database)

    @cached_property
    def changes(self) -> Changes:
        """What has changed since somebody looked. Imported for who shows tasks live."""
        from ipytaskpersist.store.changes import Changes

        return Changes(self.database)

    def open(self) -> TaskStore:
        """Make the store where there is none, bring its schema up to date, and return it.

        Raises `StoreError` when it cannot be used. One that a newer version wrote opens for
        reading only.
        """
        if not self._is_open:
            try:
                self._open()
            except StoreDamaged:
                self._repair()
            self._is_open = True
        return self

    def _open(self) -> None:
        if self.directory.damage_mark.exists():
            raise StoreDamaged(f"the store {self.database.path} is damaged")
        self.database.create_file()
        if self._schema_version() < len(STEPS):
            # SQLite does not wait for another process that makes the same store.
            with one_at_a_time(self.directory):
                self._prepare()
        else:
            self._prepare()

    def _prepare(self) -> None:
        self.database.create_file()
        version = self._schema_version()
        if version > len(STEPS):
            self.database.close()
            self.database.read_only = True
        elif version < len(STEPS):
            self._migrate(version)

    def _repair(self) -> None:
        """Set a damaged store aside, and save what can be read of it into another."""
        from ipytaskpersist.store import repair

        self.database.close()
        with one_at_a_time(self.directory):
            mark = self.directory.damage_mark
            is_begun = repair.is_begun(self.directory)
            if is_begun or (mark.exists() and not repair.is_whole(self.directory.store)):
                self._replace()
            # Otherwise another process has just repaired it, or nothing is wrong after all.
            # Until here the mark keeps others from beginning a store of their own.
            mark.unlink(missing_ok=True)
            self._prepare()

    def _replace(self) -> None:
        from ipytaskpersist.store import repair

        backup = repair.newest_whole_backup(self.directory)
        damaged = repair.set_aside(self.directory)
        if backup is not None:
            self.database.create_file()
            self.database.restore_from(backup)
        self._prepare()
        try:
            saved = repair.salvage(damaged, self.database)
            rescued = ", ".join(f"{count} {table}" for table, count in saved.items() if count)
        except StoreError:
            rescued = ""
        base = f"the backup {backup.name}" if backup else "an empty store"
        self.notice = (
            f"the store was damaged and has been set aside as {damaged}; begun anew with {base}, "
            f"and saved from the damaged one: {rescued or 'nothing, it cannot be read'}"
        )
        problems.record(self.directory, self.notice)

    @property
    def read_only(self) -> bool:
        """Whether a newer version wrote the store, so that this one only reads it."""
        return self.database.read_only

    def _schema_version(self) -> int:
        return int(self.database.row("PRAGMA user_version")[0])

    def _migrate(self, version: int) -> None:
        if version:
            self.back_up(why=f"{BEFORE}{version}")
            self._forget_old_backups()
        else:
            # The journal mode stays with the file, and cannot be changed in a transaction.
            mode = journal_mode_for(self.directory.root)
            self.database.execute(f"PRAGMA journal_mode = {mode}")
            if mode != "WAL":
                self.notice = (
                    f"the state directory {self.directory.root} is on a network file system, so "
                    "the store uses SQLite's rollback journal, which is slower; set "
                    "IPYTASKPERSIST_DIR to a folder on a local disk if you can"
                )
        with self.database.transaction() as connection:
            # Another first starter may have done it while this one waited for the lock.
            if int(connection.execute("PRAGMA user_version").fetchone()[0]) < len(STEPS):
                migrate(connection)

    def back_up(self, target: Path | None = None, why: str = "") -> Path:
        """Copy the store through SQLite's backup API while others write, and return the copy.

        Without a target it goes to the folder of backups, under a name that says when and `why`.
        """
        target = target or self.new_backup(why)
        self.write_copy(self.database.connection, target)
        return target

    def new_backup(self, why: str) -> Path:
        """A name for a backup that no other has."""
        folder = make_private(self.directory.backups)
        stem = f"{self.directory.store.stem}-{time.strftime('%Y%m%d-%H%M%S')}"
        names = (f"{stem}{turn}{f'-{why}' if why else ''}.db" for turn in ("", *range(-2, -99, -1)))
        return next(folder / name for name in names if not (folder / name).exists())

    def write_copy(self, connection: Any, target: Path) -> None:
        """Copy what a connection sees to a file, which appears complete or not at all."""
        partial = target.with_name(f".{target.name}.{os.urandom(4).hex()}.part")
        try:
            os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        except OSError as error:
            raise StoreError(f"cannot write {target} ({error.strerror})") from error
        try:
            self.database.copy(connection, partial)
            make_durable(partial)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)

    def _forget_old_backups(self) -> None:
        """Keep only the newest of the backups that nobody asked for."""
        for backup in self._automatic_backups()[self.backups_kept :]:
            backup.unlink(missing_ok=True)

    def _automatic_backups(self) -> list[Path]:
        from ipytaskpersist.store import repair

        return [file for file in repair.backups(self.directory) if f"-{BEFORE}" in file.name]

    def require_writable(self) -> None:
        """Raise `StoreError` when the store is open for reading only."""
        if self.read_only:
            raise StoreError(
                f"the store {self.database.path} was written by a newer version of "
                "ipytaskpersist, so this one only reads it; upgrade with "
                "'pip install -U ipytaskpersist'"
            )

    def close(self) -> None:
        """Close this process's connections."""
        self.database.close()
        self._is_open = False
