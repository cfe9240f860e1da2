"""The locations of all files that tasks leave behind."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from ipytaskpersist.base import disk_errors
from ipytaskpersist.base.private_files import OTHER_FOLDER, is_own, make_private
from ipytaskpersist.errors import InvalidRequest, StoreError

SERVED = "IPYTASKPERSIST_SERVED"
"""Names, to the kernels of a Jupyter server, the state directory from which it brings its pages
up to date."""
NO_HOME = "this user has no home folder (neither HOME nor the list of users names one)"


def default_directory() -> Path:
    """Return ``$IPYTASKPERSIST_DIR``, else the user's state directory for this project."""
    named = os.environ.get("IPYTASKPERSIST_DIR")
    if named:
        return typed_path(named)
    return user_directory()


def typed_path(typed: str | os.PathLike[str]) -> Path:
    """Return the absolute path that the user typed.

    ``~name`` is a user's home or, as in a shell, a file of that name when there is no such user.
    Raises `InvalidRequest` for ``~`` when this user has no home.
    """
    path = Path(typed)
    try:
        path = path.expanduser()
    except (RuntimeError, ValueError):  # no user has this name, or it contains a null character
        if path.parts[0] == "~":
            raise InvalidRequest(
                f"{typed} is nowhere: {NO_HOME}; type a path that begins with /"
            ) from None
    return path.absolute()


def user_directory() -> Path:
    """Return the user's state directory for this project, the default one.

    Raises `StoreError` when this user has no home. A folder that the next process does not find
    again would be no place for a store.
    """
    import platformdirs

    with suppress(RuntimeError):  # raised by newer versions of platformdirs
        folder = Path(platformdirs.user_state_dir("ipytaskpersist", appauthor=False))
        if folder.is_absolute():
            return folder
    raise StoreError(
        f"there is no place for the store: {NO_HOME}; set HOME, or IPYTASKPERSIST_DIR to a folder "
        "that you can write"
    )


@dataclass(frozen=True, slots=True)
class StateDirectory:
    """The state directory, open to its owner alone."""

    root: Path
    file: str = "tasks.db"
    """Name of the store's file in it; another one for an archive."""
    values: str = "payloads"
    """Name of the folder of the values; another one for those of checkpoints."""

    @property
    def store(self) -> Path:
        """The SQLite store; SQLite keeps ``-wal`` and ``-shm`` beside it."""
        return self.root / self.file

    @property
    def damage_mark(self) -> Path:
        """Marks a store that SQLite found damaged, for the next process that opens it."""
        return self.root / f"{self.file}.damaged"

    @property
    def lock(self) -> Path:
        """Locked by the process that creates or repairs the store."""
        return self.root / f"{self.file}.lock"

    @property
    def search_index(self) -> Path:
        """The search index of the store's tasks. Rebuilt when missing."""
        return self.store.with_suffix(".search")

    @property
    def upkeep_lock(self) -> Path:
        """Locked by the process that moves tasks between the store and its archives."""
        return self.root / "upkeep.lock"

    @property
    def upkeep_log(self) -> Path:
        """Log of the latest upkeep's errors."""
        return self.root / "logs" / "upkeep.log"

    @property
    def notifier_log(self) -> Path:
        """Log of the notifier's errors that do not belong among the problems."""
        return self.root / "logs" / "notifier.log"

    @property
    def archives(self) -> Path:
        """The folder of the archives, one store per month."""
        return self.root / "archive"

    def archive(self, month: str) -> StateDirectory:
        """Return the archive of a month, ``YYYY-MM``: a separate store in the archives' folder."""
        return StateDirectory(self.root, f"archive/{month}.db")

    @property
    def month(self) -> str:
        """The month of an archive; empty for the store itself."""
        return self.store.stem if self.store.parent == self.archives else ""

    def months(self) -> list[str]:
        """Return the months that have an archive, latest first."""
        return sorted((file.stem for file in self.archives.glob("????-??.db")), reverse=True)

    @property
    def key(self) -> Path:
        """The key that signs this user's pickles."""
        return self.root / "signing.key"

    @property
    def trusted_places(self) -> Path:
        """The places from which values may be loaded."""
        return self.root / "trusted-places.json"

    @property
    def problems(self) -> Path:
        """The store's recorded problems."""
        return self.root / "problems.jsonl"

    @property
    def payloads(self) -> Path:
        """The pickled values, one folder per task."""
        return self.root / self.values

    @property
    def checkpoints(self) -> Path:
        """The checkpoints, one folder for all tasks that go on from one another."""
        return self.root / "checkpoints"

    @property
    def of_checkpoints(self) -> StateDirectory:
        """The same directory with the folder of the checkpoints as that of the values."""
        return replace(self, values=self.checkpoints.name)

    @property
    def buffers(self) -> Path:
        """The arrays among the values, by their content: each is linked into its tasks' folders."""
        return self.root / "buffers"

    @property
    def aside(self) -> Path:
        """Changes kept by processes that may no longer write the store, one file each."""
        return self.root / "aside"

    @property
    def environments(self) -> Path:
        """The environments of tasks that wait for their supervisor, one file each."""
        return self.root / "environments"

    def environment(self, task_id: str) -> Path:
        """Return the file with the environment of a task that waits for its supervisor."""
        return self.environments / f"{task_id}.json"

    @property
    def ssh(self) -> Path:
        """The sockets of ssh's master connections, one for each host and login."""
        return self.root / "ssh"

    @property
    def backups(self) -> Path:
        """Copies of the store, made by `backup` and before it is migrated or replaced."""
        return self.root / "backups"

    def supervisor_log(self, session_id: str) -> Path:
        """Return the log of a session's supervisor, for what has no place in the store."""
        return self.root / "logs" / f"supervisor-{session_id}.log"

    def guard_log(self, kernel: int) -> Path:
        """Return the log of the guard of the kernel with this pid."""
        return self.root / "logs" / f"guard-{kernel}.log"

    def payload(self, task_id: str, digest: str) -> Path:
        """Return the pickle of one value of one task, named after its content."""
        return self.payloads / task_id / f"{digest[:32]}.pickle"

    def create(self) -> None:
        """Create the directory if missing, and refuse one that others could write."""
        try:
            make_private(self.root)
            make_private(self.store.parent)
        except OSError as error:
            raise StoreError(
                f"cannot make the state directory {self.root}: "
                f"{disk_errors.in_words(error, self.root, OTHER_FOLDER)}"
            ) from error
        self.require_own()

    def require_own(self) -> None:
        """Refuse a directory, or a store in it, that belongs to another user.

        Raises `StoreError`. No other user can put anything into a directory of one's own: a file
        that is refused there was created before it was closed to others.
        """
        if not is_own(self.root):
            raise StoreError(
                f"the state directory {self.root} belongs to another user; "
                "set IPYTASKPERSIST_DIR to a folder of your own"
            )
        store = str(self.store)
        for file in (store, f"{store}-wal", f"{store}-shm", f"{store}-journal"):
            if not is_own(file):
                raise StoreError(
                    f"the store's file {file} belongs to another user, or is a link to what does; "
                    f"move it away: mv '{file}' '{file}.foreign'"
                )
