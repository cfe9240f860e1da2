"""The one place that knows every file that a task leaves behind."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from ipytaskpersist.errors import StoreError


def default_directory() -> Path:
    """``$IPYTASKPERSIST_DIR``, else the user's state directory for this project."""
    named = os.environ.get("IPYTASKPERSIST_DIR")
    if named:
        return Path(named).expanduser().absolute()
    return user_directory()


def user_directory() -> Path:
    """The user's state directory for this project, where nothing else is asked for."""
    import platformdirs

    return Path(platformdirs.user_state_dir("ipytaskpersist", appauthor=False))


@dataclass(frozen=True, slots=True)
class StateDirectory:
    """The state directory: open to its owner alone."""

    root: Path
    file: str = "tasks.db"
    """The store's file in it; another one for an archive."""

    @property
    def store(self) -> Path:
        """The SQLite store; SQLite keeps ``-wal`` and ``-shm`` beside it."""
        return self.root / self.file

    @property
    def damage_mark(self) -> Path:
        """Says that SQLite found the store damaged, for whoever opens it next."""
        return self.root / f"{self.file}.damaged"

    @property
    def lock(self) -> Path:
        """Locked by the process that makes or repairs the store."""
        return self.root / f"{self.file}.lock"

    @property
    def search_index(self) -> Path:
        """The words of the store's tasks. Made anew when it is missing."""
        return self.store.with_suffix(".search")

    @property
    def upkeep_lock(self) -> Path:
        """Locked by the process that moves tasks between the store and its archives."""
        return self.root / "upkeep.lock"

    @property
    def upkeep_log(self) -> Path:
        """What went wrong when the history was last kept in order."""
        return self.root / "logs" / "upkeep.log"

    @property
    def notifier_log(self) -> Path:
        """What went wrong when the end of tasks was told, and has no place among the problems."""
        return self.root / "logs" / "notifier.log"

    @property
    def archives(self) -> Path:
        """The folder of the archives, a store for each month."""
        return self.root / "archive"

    def archive(self, month: str) -> StateDirectory:
        """The archive of a month, ``YYYY-MM``: a store of its own beside the others."""
        return StateDirectory(self.root, f"archive/{month}.db")

    @property
    def month(self) -> str:
        """The month of an archive; empty for the store itself."""
        return self.store.stem if self.store.parent == self.archives else ""

    def months(self) -> list[str]:
        """The months that have an archive, the latest first."""
        return sorted((file.stem for file in self.archives.glob("????-??.db")), reverse=True)

    @property
    def key(self) -> Path:
        """The key that signs this user's pickles."""
        return self.root / "signing.key"

    @property
    def problems(self) -> Path:
        """The problems that the store has had."""
        return self.root / "problems.jsonl"

    @property
    def payloads(self) -> Path:
        """The pickled values, a folder for each task."""
        return self.root / "payloads"

    @property
    def backups(self) -> Path:
        """Copies of the store: made by `backup`, and before it is migrated or replaced."""
        return self.root / "backups"

    def supervisor_log(self, session_id: str) -> Path:
        """What a session's supervisor has to say that has no place in the store."""
        return self.root / "logs" / f"supervisor-{session_id[:8]}.log"

    def payload(self, task_id: str, digest: str) -> Path:
        """The pickle of one value of one task, named after its own content."""
        return self.payloads / task_id / f"{digest[:32]}.pickle"

    def create(self) -> None:
        """Make the directory where it is missing, and refuse one that others could write."""
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = self.root.stat()
        except OSError as error:
            raise StoreError(
                f"cannot make the state directory {self.root} ({error.strerror}); "
                "set IPYTASKPERSIST_DIR to a folder that you can write"
            ) from error
        if hasattr(os, "getuid") and status.st_uid != os.getuid():
            raise StoreError(
                f"the state directory {self.root} belongs to another user; "
                "set IPYTASKPERSIST_DIR to a folder of your own"
            )
        if stat.S_IMODE(status.st_mode) & 0o077:
            self.root.chmod(0o700)
        make_private(self.store.parent)


def make_private(folder: Path) -> Path:
    """Make a folder that only its owner can enter, and return it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def make_durable(file: Path) -> None:
    """Have a file that was written reach the disk."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
