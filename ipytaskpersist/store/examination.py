"""Examine a store without changing its content, its schema or its marks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.errors import StoreBusy, StoreDamaged, StoreError
from ipytaskpersist.store.file.database import Database, sqlite3
from ipytaskpersist.store.file.migrations import STEPS, may_write
from ipytaskpersist.store.file.sqlite_errors import in_words
from ipytaskpersist.store.task_store import TaskStore

PATIENCE_MS = 1_000
FINDINGS = 3


class ReadOnlyDatabase(Database):
    """Connections that cannot write."""

    def __init__(self, directory: StateDirectory) -> None:
        super().__init__(directory)
        self.read_only = True

    @property
    def _own_patience_ms(self) -> int:
        return PATIENCE_MS

    def _connect(self) -> Any:
        self.directory.require_own()
        with self.errors():
            return self._connect_to(self._options)

    @property
    def _options(self) -> str:
        """URI options that open the file.

        A read-only connection would leave a log and shared memory beside a store that no process
        has open. It does not with a rollback journal, where closing a file that SQLite did not lock
        would drop the locks that this process holds.
        """
        return "mode=ro&immutable=1" if self._is_idle else "mode=ro"

    @property
    def _is_idle(self) -> bool:
        """Whether no process has the store open, this one included."""
        return not self.is_shared_by_hosts and not self.log.exists()

    def _connect_to(self, options: str) -> Any:
        connection = sqlite3.connect(
            f"{self.path.absolute().as_uri()}?{options}",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
        )
        connection.execute(f"PRAGMA busy_timeout = {PATIENCE_MS}")
        return connection

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn SQLite's errors into ours, without leaving a damage mark."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise in_words(self.path, str(error)) from error
        except sqlite3.DatabaseError as error:
            raise StoreDamaged(f"the store {self.path} is damaged ({error})") from error

    @property
    def schema_version(self) -> int:
        """Number of schema steps applied; 0 for an empty file."""
        return int(self.row("PRAGMA user_version")[0])

    @property
    def may_be_written(self) -> bool:
        """Whether the version that wrote it lets this one write, too."""
        return may_write(self.schema_version, int(self.row("PRAGMA application_id")[0]))

    @property
    def journal_mode(self) -> str:
        """How SQLite keeps changes until they are in the file."""
        if self._is_idle:
            # Without a log SQLite does not report WAL. The 19th byte is the write version.
            with self.path.open("rb") as file:
                return "WAL" if file.read(19)[18:] == b"\x02" else "DELETE"
        return str(self.row("PRAGMA journal_mode")[0]).upper()

    def damage(self) -> list[str]:
        """Return what SQLite finds wrong with the file; empty when it is intact."""
        found = self._quick_check()
        if found and "immutable" in self._options:
            # Another process may have started to write meanwhile.
            self.close()
            found = self._quick_check()
        return found

    def _quick_check(self) -> list[str]:
        try:
            rows = self.rows(f"PRAGMA quick_check({FINDINGS})")
        except StoreDamaged as error:
            return [str(error)]
        return [str(text) for (text,) in rows if text != "ok"]

    def can_be_written(self) -> bool:
        """Return whether the write lock is available within a moment. It is released at once.

        Raises `StoreError` when the store can never be written from here.
        """
        _ = self.connection  # the last connection to close would checkpoint the log
        if self._is_idle:
            return True
        connection = None
        try:
            with self.errors():
                connection = self._connect_to("mode=rw")
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("ROLLBACK")
        except StoreBusy:
            return False
        finally:
            if connection is not None:
                connection.close()
        return True


class ExaminedStore(TaskStore):
    """A store to examine. Opened without the usual migration or repair."""

    def __init__(self, directory: StateDirectory) -> None:
        self.file = ReadOnlyDatabase(directory)
        super().__init__(directory, database=self.file)

    @property
    def expected_schema_version(self) -> int:
        """Schema version that this version of the package writes."""
        return len(STEPS)

    def open(self) -> TaskStore:
        """Return the store as it is, without preparing anything."""
        return self

    @property
    def is_readable(self) -> bool:
        """Whether it has a schema that this version can read."""
        with suppress(StoreError, OSError):
            return self.exists and self.file.schema_version >= self.expected_schema_version
        return False
