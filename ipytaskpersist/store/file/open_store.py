"""The store's interface for the modules that work on its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.store.file.database import Database


class OpenStore(Protocol):
    """An open store."""

    directory: StateDirectory
    database: Database
    session_id: Any

    def require_writable(self) -> None:
        """Raise if this version may not write to it."""

    def new_backup(self, why: str) -> Path:
        """Return the path of a new backup."""

    def write_copy(self, source: Any, target: Path) -> None:
        """Write what a connection sees to a file."""

    def begin_anew(self) -> None:
        """Open the file that is now at the store's path."""

    def forget(self) -> None:
        """Forget everything about the file that was there."""

    def close(self) -> None:
        """Close the file."""
