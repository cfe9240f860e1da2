"""The store: one SQLite file per user, and the only channel between processes.

Only this package speaks SQL. It accepts and returns the frozen records of `base.records`.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ipytaskpersist.base import disk_errors
from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.private_files import make_durable, make_private, new_private, remove
from ipytaskpersist.errors import StoreDamaged, StoreError, StoreFull, StoreNewer
from ipytaskpersist.store import problems
from ipytaskpersist.store.cells import Cells
from ipytaskpersist.store.elsewhere import Elsewhere
from ipytaskpersist.store.file import schema
from ipytaskpersist.store.file.database import SQLITE_VERSION, Database
from ipytaskpersist.store.file.file_systems import against_wal, journal_mode_for
from ipytaskpersist.store.file.locks import one_at_a_time
from ipytaskpersist.store.file.migrations import STEPS, may_write, migrate
from ipytaskpersist.store.outputs import NewOutput, Outputs, Results
from ipytaskpersist.store.processes import NewProcess, Processes, Supervisors
from ipytaskpersist.store.queue import Queue
from ipytaskpersist.store.sessions import Sessions
from ipytaskpersist.store.tasks import NewTask, Selection, Tasks
from ipytaskpersist.store.upkeep import Upkeep

if TYPE_CHECKING:
    from ipytaskpersist.store.changes import Changes
    from ipytaskpersist.store.statistics import Statistics

ASKED_S = 60.0
"""A store found damaged twice within this time is damaged, whatever SQLite's check says."""
SLACK_S = 5.0
"""Safety margin: the file may have been removed this much before it was last seen in place."""
BEFORE = "before-migration-from-"
"""Part of a migration backup's name after the date."""

__all__ = ["SQLITE_VERSION", "NewOutput", "NewProcess", "NewTask", "Selection", "TaskStore"]


class TaskStore:
    """Everything that is kept, by subject: sessions, tasks, outputs and more."""

    def __init__(
        self,
        directory: StateDirectory,
        *,
        synchronous: str = "normal",
        backups_kept: int = 3,
        database: Database | None = None,
    ) -> None:
        """`synchronous` is ``normal`` or ``full``: whether a commit survives a power loss.

        `backups_kept` is how many migration backups to keep. A `database` is passed only to examine
        a store.
        """
        self.directory = directory
        self.backups_kept = backups_kept
        self.database = database or Database(directory, synchronous)
        self.sessions = Sessions(self.database)
        self.tasks = Tasks(self.database, directory.month)
        self.cells = Cells(self.database)
        self.queue = Queue(self.database)
        self.processes = Processes(self.database)
        self.elsewhere = Elsewhere(self.database)
        self.supervisors = Supervisors(self.database)
        self.outputs = Outputs(self.database)
        self.results = Results(self.database)
        self.upkeep = Upkeep(self.database)
        self.notice = ""
        """What to say to the user about the opening; empty when it was uneventful."""
        self.session_id = ""
        """Session whose tasks move along when the file is replaced; empty for readers."""
        self.replacements = 0
        """How often this process has switched to another file."""
        self.say: Callable[[str], None] = self._print
        """Prints a message about the store for the user, and records it for the doctor."""
        self._seen_at = time.time()
        """Time at which the open file was last known to be at the store's path."""
        self._hindrance: StoreError | None = None
        """Why it is read-only; None when it is not."""
        self._is_open = False
        self._asked_at = -math.inf
        """Time at which SQLite last checked a store that was found damaged."""
        self._succession = threading.RLock()
        if database is None:
            self.database.on_replaced = self.keep_up
            self.database.on_version = self._accept
            self.database.newer_words = self._words_if_newer

    @property
    def exists(self) -> bool:
        """Whether there is anything to read. Asking does not create a store."""
        self.keep_up()
        return self.database.exists

    @property
    def is_current(self) -> bool:
        """Whether it can be read as it is, without a repair or a migration."""
        version = self._schema_version()
        is_known = version >= len(STEPS) and self._may_write(version)
        return is_known and not self.directory.damage_mark.exists()

    @cached_property
    def statistics(self) -> Statistics:
        """Counts and sums over everything. Imported on first use."""
        from ipytaskpersist.store.statistics import Statistics

        return Statistics(self.database)

    @cached_property
    def changes(self) -> Changes:
        """What has changed since a position. Imported on first use, to show tasks live."""
        from ipytaskpersist.store.changes import Changes

        return Changes(self.database)

    def open(self) -> TaskStore:
        """Create the store if there is none, migrate its schema, and return it.

        Raises `StoreError` when it cannot be used. A store that a newer version wrote is opened
        read-only, unless that version lets this one write. A store that was found damaged since it
        was opened is repaired.
        """
        if not self._is_open:
            try:
                self._open()
            except StoreDamaged:
                self._repair()
            self._is_open = True
        elif self.directory.damage_mark.exists():
            with self._succession, self.database.being_replaced():
                self._repair()
                self.keep_up()
            if self.notice:
                self.say(self.notice)
                self.notice = ""
        self._look_at_version()
        return self

    def beside(self, directory: StateDirectory) -> TaskStore:
        """Return a store of the same kind in another file, for an archive."""
        # Durable at once: what leaves the store must be there even after a loss of power.
        return TaskStore(directory, synchronous="full")

    def keep_up(self) -> None:
        """Switch to the file at the store's path, if that is not the open one.

        The unfinished tasks of this process's session are carried over. The process that creates
        the new file saves the rest of the removed one as a backup. A store whose log was removed is
        first replaced by a copy.
        """
        if self.database.is_out_of_place:
            with self._succession:
                said = self._succeed()
            if said:
                self.say(said)
        self._seen_at = time.time()

    def _succeed(self) -> str:
        """Switch files, unless another thread has just done so. Return what to say."""
        if not self.database.is_out_of_place:
            return ""
        from ipytaskpersist.store.file import replacement

        said = replacement.succeed(self, since=self._seen_at - SLACK_S)
        self.replacements += 1
        return said

    def begin_anew(self) -> None:
        """Prepare the file at the store's path, or create it."""
        self.directory.create()
        with one_at_a_time(self.directory):
            self._prepare()

    def forget(self) -> None:
        """Have whatever file is at the store's path opened when it is next needed."""
        self._is_open = False

    def _print(self, message: str) -> None:
        print(message, file=sys.stderr)
        problems.record(self.directory, message)

    def _open(self) -> None:
        self.directory.require_own()
        if self.database.exists and self.database.cannot_be_written:
            self._open_for_reading()
        else:
            self._open_for_writing()

    def _open_for_reading(self) -> None:
        """Open the store read-only. A migration is impossible where nothing can be written."""
        self.database.read_only, self._hindrance = True, StoreError(self._not_writable)
        version = self._schema_version()
        if version < len(STEPS):
            raise StoreError(
                f"the store {self.database.path} was written by an earlier version of "
                "ipytaskpersist, and cannot be written, so it cannot be brought up to date; copy "
                "it to a folder of your own, and set IPYTASKPERSIST_DIR to that"
            )

    @property
    def _not_writable(self) -> str:
        refusal = disk_errors.trial(self.database.path.parent)
        why = "you may not write to it, or to its directory; %bg_doctor says what to change"
        if refusal is not None and disk_errors.has_words(refusal):
            why = disk_errors.in_words(refusal, self.database.path)
        return f"the store {self.database.path} can only be read: {why}"

    @property
    def _newer(self) -> str:
        return (
            f"the store {self.database.path} was written by a newer version of "
            "ipytaskpersist, so this one only reads it; upgrade with "
            "'pip install -U ipytaskpersist', and restart the kernel"
        )

    # Another process may migrate the schema at any time.

    def _may_write(self, version: int) -> bool:
        return may_write(version, int(self.database.row("PRAGMA application_id")[0]))

    def _accept(self, version: int) -> None:
        """Go on with the schema of another version. Raises `StoreNewer` if that forbids it."""
        if not self._may_write(version):
            self._hindrance = StoreNewer(self._newer)
            raise StoreNewer(self._newer)
        self.database.version, self._hindrance = version, None

    def _look_at_version(self) -> None:
        """Check whether this version may still write: another process may have migrated."""
        known = self.database.version
        if known is not None and (version := self._schema_version()) != known:
            with suppress(StoreNewer):
                self._accept(version)

    def _words_if_newer(self) -> str:
        """Return why a statement may have failed on an undamaged store; empty for no reason."""
        with suppress(Exception):  # bypasses the checks that would call this again
            (version,) = self.database.connection.execute("PRAGMA user_version").fetchone()
            return self._newer if version > len(STEPS) else ""
        return ""

    def _open_for_writing(self) -> None:
        self.directory.create()
        if self.directory.damage_mark.exists():
            raise StoreDamaged(f"the store {self.database.path} is damaged")
        if not self.database.exists or self._schema_version() < len(STEPS):
            # SQLite does not wait for another process that creates the same store.
            with one_at_a_time(self.directory):
                self._prepare()
        else:
            self._prepare()

    def _prepare(self) -> None:
        self.database.create_file()
        self.database.version, self._hindrance = None, None
        version = self._schema_version()
        if not self._may_write(version):
            self.database.close()
            self.database.read_only, self._hindrance = True, StoreNewer(self._newer)
            return
        if version < len(STEPS):
            self._migrate(version)
        self.database.version = self._schema_version()

    def _repair(self) -> None:
        """Replace a damaged store with one that contains everything that can be read from it."""
        from ipytaskpersist.store import restoring
        from ipytaskpersist.store.file import repair

        newer = self._words_if_newer()
        if newer:
            raise StoreNewer(f"{newer}. It is damaged, which the newer version repairs")
        if not self._is_open:
            self.database.close()
        with one_at_a_time(self.directory):
            mark = self.directory.damage_mark
            if mark.exists() and (
                repair.has_lost_log(self.directory)
                or not (self._may_be_whole() and repair.is_whole(self.database.path))
            ):
                fresh = self._fresh_one()
                try:
                    with closing(fresh):
                        self.notice = repair.replace(self.directory, fresh, restoring.missing_from)
                finally:
                    for suffix in ("", "-wal", "-shm"):  # if it has not been moved into place
                        remove(Path(f"{fresh.database.path}{suffix}"))
                problems.record(self.directory, self.notice)
            # Otherwise another process has just repaired it, or nothing is wrong after all. Until
            # here the mark keeps others from creating a store of their own.
            mark.unlink(missing_ok=True)
            if not self._is_open:
                self._prepare()

    def _may_be_whole(self) -> bool:
        """Return whether a check is worth it: not if damage was found again since the last one."""
        was_asked = self._asked_at > time.monotonic() - ASKED_S
        self._asked_at = time.monotonic()
        return not was_asked

    def _fresh_one(self) -> TaskStore:
        """Return a new, empty store in a file beside this one, unknown to other processes."""
        name = f".{self.directory.file.replace('/', '-')}.{os.urandom(4).hex()}.part"
        place = StateDirectory(self.directory.root, name)
        fresh = TaskStore(place, synchronous="full", database=Database(place, "full"))
        fresh.database.create_file()
        fresh._migrate(0)
        return fresh

    @property
    def read_only(self) -> bool:
        """Whether it is read-only: a newer version wrote it, or it cannot be written here."""
        return self.database.read_only or self._hindrance is not None

    @property
    def is_taken_over(self) -> bool:
        """Whether a newer version has migrated it since, and does not let this one write."""
        return self._hindrance is not None and self.database.version is not None

    @property
    def is_own_version(self) -> bool:
        """Whether it has exactly the schema of this version, and can be written."""
        return not self.read_only and self._schema_version() == len(STEPS)

    def _schema_version(self) -> int:
        return int(self.database.row("PRAGMA user_version")[0])

    def _migrate(self, version: int) -> None:
        if version:
            self.back_up(why=f"{BEFORE}{version}")
            self._forget_old_backups()
        else:
            # The journal mode is stored in the file, and cannot be changed in a transaction.
            root = self.directory.root
            mode = journal_mode_for(root)
            self.database.execute(f"PRAGMA journal_mode = {mode}")
            against = against_wal(root)
            if against:
                self.notice = (
                    f"the state directory {root} is on {against}, so the store uses SQLite's "
                    "rollback journal, which is slower; set IPYTASKPERSIST_DIR to a folder on a "
                    "local disk if you can"
                )
        with self.database.transaction() as connection:
            # Another process may have done it while this one waited for the lock.
            found = int(connection.execute("PRAGMA user_version").fetchone()[0])
            if not found:
                schema.create(connection)
            elif found < len(STEPS):
                migrate(connection)

    def back_up(self, target: Path | None = None, why: str = "") -> Path:
        """Copy the store through SQLite's backup API while others write, and return the copy.

        Without a target, it goes into the backup folder, under a name with the date and `why`.
        """
        target = target or self.new_backup(why)
        self.write_copy(self.database.connection, target)
        return target

    def new_backup(self, why: str) -> Path:
        """Return an unused path for a backup."""
        folder = make_private(self.directory.backups)
        stem = f"{self.directory.store.stem}-{time.strftime('%Y%m%d-%H%M%S')}"
        names = (f"{stem}{turn}{f'-{why}' if why else ''}.db" for turn in ("", *range(-2, -99, -1)))
        return next(folder / name for name in names if not (folder / name).exists())

    def write_copy(self, connection: Any, target: Path) -> None:
        """Copy what a connection sees to a file, which appears complete or not at all."""
        partial = target.with_name(f".{target.name}.{os.urandom(4).hex()}.part")
        try:
            new_private(partial).close()
        except OSError as error:
            raise disk_errors.refused(str(target), error, target.parent) from error
        try:
            self.database.copy(connection, partial)
            make_durable(partial)
            partial.replace(target)
        except StoreFull as error:
            raise StoreFull(f"no room is left for {target}; nothing was written there") from error
        except OSError as error:
            raise disk_errors.refused(str(target), error, target.parent) from error
        finally:
            remove(partial)

    def _forget_old_backups(self) -> None:
        """Keep only the newest of the automatic backups."""
        for backup in self._automatic_backups()[self.backups_kept :]:
            backup.unlink(missing_ok=True)

    def _automatic_backups(self) -> list[Path]:
        from ipytaskpersist.store.file import repair

        return [file for file in repair.backups(self.directory) if f"-{BEFORE}" in file.name]

    def require_writable(self) -> None:
        """Raise `StoreError` when the store is read-only."""
        self._look_at_version()
        if self._hindrance is not None:
            raise type(self._hindrance)(str(self._hindrance))

    def require_own_version(self) -> None:
        """Raise `StoreError` unless this version knows everything in the store.

        Required to move, copy and delete whole tasks: no part of them must be left behind.
        """
        self.require_writable()
        if not self.is_own_version:
            raise StoreNewer(
                f"the store {self.database.path} was brought up to date by a newer version of "
                "ipytaskpersist: tasks of this one go on, but only the newer one moves and deletes "
                "tasks; restart the kernel to use that"
            )

    def close(self) -> None:
        """Close this process's connections."""
        self.database.close()
        self._is_open = False
