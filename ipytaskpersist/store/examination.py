"""A look at a store that changes nothing: neither its content, nor its schema, nor its marks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ipytaskpersist.errors import StoreBusy, StoreDamaged, StoreError
from ipytaskpersist.paths import StateDirectory
from ipytaskpersist.store import TaskStore
from ipytaskpersist.store.database import Database, sqlite3
from ipytaskpersist.store.migrations import STEPS, may_write
from ipytaskpersist.store.words import in_words

PATIENCE_MS = 1_000
FINDINGS = 3


class Look(Database):
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
        """How SQLite is told to open the file.

        A read-only connection would leave a log and shared memory beside a store that nobody has
        open. With a rollback journal it does not, and closing a file that SQLite did not lock
        would drop the locks that this very process holds.
        """
        return "mode=ro&immutable=1" if self._is_idle else "mode=ro"

    @property
    def _is_idle(self) -> bool:
        """Whether nobody has the store open, this process included."""
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
        """Turn SQLite's errors into ours, without a mark for whoever opens the store next."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise in_words(self.path, str(error)) from error
        except sqlite3.DatabaseError as error:
            raise StoreDamaged(f"the store {self.path} is damaged ({error})") from error

    @property
    def schema_version(self) -> int:
        """How many steps of the schema it has had; 0 for an empty file."""
        return int(self.row("PRAGMA user_version")[0])

    @property
    def may_be_written(self) -> bool:
        """Whether the version that wrote it lets this one write, too."""
        return may_write(self.schema_version, int(self.row("PRAGMA application_id")[0]))

    @property
    def journal_mode(self) -> str:
        """How SQLite keeps its changes until they are in the file."""
        if self._is_idle:
            # Without a log SQLite does not say WAL. The 19th byte is the version that may write.
            with self.path.open("rb") as file:
                return "WAL" if file.read(19)[18:] == b"\x02" else "DELETE"
        return str(self.row("PRAGMA journal_mode")[0]).upper()

    def damage(self) -> list[str]:
        """What SQLite finds wrong with the file; nothing when it is whole."""
        found = self._quick_check()
        if found and "immutable" in self._options:
            # Somebody may have begun to write meanwhile.
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
        """Whether the write lock can be had within a moment. It is given back at once.

        Raises `StoreError` when the store can never be written from here.
        """
        _ = self.connection  # the last connection to close would move the log into the store
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
    """A store to look at. It is never opened as others are, which could migrate or repair it."""

    def __init__(self, directory: StateDirectory) -> None:
        self.look = Look(directory)
        super().__init__(directory, database=self.look)

    @property
    def expected_schema_version(self) -> int:
        """The schema that this version of the package writes."""
        return len(STEPS)

    def open(self) -> TaskStore:
        """Nothing is made ready."""
        return self

    @property
    def is_readable(self) -> bool:
        """Whether it has a schema that this version can read."""
        with suppress(StoreError, OSError):
            return self.exists and self.look.schema_version >= self.expected_schema_version
        return False
