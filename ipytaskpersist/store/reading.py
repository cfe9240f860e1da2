"""A store that this process only reads, however long, while others write, repair or replace it."""

from __future__ import annotations

from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.errors import StoreError
from ipytaskpersist.store.file.database import Database
from ipytaskpersist.store.file.migrations import STEPS
from ipytaskpersist.store.task_store import TaskStore


class ReadingStore(TaskStore):
    """A store that is never created, migrated, repaired or carried over by this process."""

    def __init__(self, directory: StateDirectory) -> None:
        database = Database(directory)
        database.read_only = True
        super().__init__(directory, database=database)
        database.on_replaced = self.keep_up

    @property
    def needs_command(self) -> bool:
        """Whether it can only be read after a command has migrated or repaired it."""
        return self.exists and not self._is_readable

    @property
    def _is_readable(self) -> bool:
        return not self.directory.damage_mark.exists() and self._schema_version() >= len(STEPS)

    def open(self) -> TaskStore:
        """Return the store if it can be read as it is. Raises `StoreError` otherwise."""
        self.directory.require_own()
        if not self._is_readable:
            raise StoreError(
                f"the store {self.database.path} is of an earlier version, or damaged; %bg_list "
                "brings it up to date, or repairs it"
            )
        return self

    def keep_up(self) -> None:
        """Read the file that is now at the store's path."""
        if self.database.is_out_of_place:
            self.replacements += 1
            self.database.close()

    def beside(self, directory: StateDirectory) -> TaskStore:
        """Return an archive that is only read, too."""
        return ReadingStore(directory)
