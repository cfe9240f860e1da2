"""The one place that knows every file that a task leaves behind."""

from __future__ import annotations

import errno
import os
import re
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ipytaskpersist import disks
from ipytaskpersist.errors import InvalidRequest, StoreError

NO_HOME = "this user has no home folder (neither HOME nor the list of users names one)"


def default_directory() -> Path:
    """``$IPYTASKPERSIST_DIR``, else the user's state directory for this project."""
    named = os.environ.get("IPYTASKPERSIST_DIR")
    if named:
        return typed_path(named)
    return user_directory()


def typed_path(typed: str | os.PathLike[str]) -> Path:
    """The absolute path that a person has typed.

    ``~name`` is the home of a user or, as in a shell, a file of that name where there is no such
    user. Raises `InvalidRequest` for ``~`` where this user has no home.
    """
    path = Path(typed)
    try:
        path = path.expanduser()
    except (RuntimeError, ValueError):  # no user has this name, or a null character is in it
        if path.parts[0] == "~":
            raise InvalidRequest(
                f"{typed} is nowhere: {NO_HOME}; type a path that begins with /"
            ) from None
    return path.absolute()


def user_directory() -> Path:
    """The user's state directory for this project, where nothing else is asked for.

    Raises `StoreError` where this user has no home. A folder from which the next process does not
    find its way back would be no place for a store.
    """
    import platformdirs

    with suppress(RuntimeError):  # as newer versions of platformdirs say it
        folder = Path(platformdirs.user_state_dir("ipytaskpersist", appauthor=False))
        if folder.is_absolute():
            return folder
    raise StoreError(
        f"there is no place for the store: {NO_HOME}; set HOME, or IPYTASKPERSIST_DIR to a folder "
        "that you can write"
    )


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
    def aside(self) -> Path:
        """What processes have kept that may not write the store any more, a file for each."""
        return self.root / "aside"

    @property
    def environments(self) -> Path:
        """The environments of tasks that wait for their supervisor, a file for each."""
        return self.root / "environments"

    def environment(self, task_id: str) -> Path:
        """The environment of a task that waits for its supervisor."""
        return self.environments / f"{task_id}.json"

    @property
    def backups(self) -> Path:
        """Copies of the store: made by `backup`, and before it is migrated or replaced."""
        return self.root / "backups"

    def supervisor_log(self, session_id: str) -> Path:
        """What a session's supervisor has to say that has no place in the store."""
        return self.root / "logs" / f"supervisor-{session_id}.log"

    def guard_log(self, kernel: int) -> Path:
        """What the guard of the kernel with this pid has to say."""
        return self.root / "logs" / f"guard-{kernel}.log"

    def payload(self, task_id: str, digest: str) -> Path:
        """The pickle of one value of one task, named after its own content."""
        return self.payloads / task_id / f"{digest[:32]}.pickle"

    def create(self) -> None:
        """Make the directory where it is missing, and refuse what others could write to."""
        try:
            make_private(self.root)
            make_private(self.store.parent)
        except OSError as error:
            raise StoreError(
                f"cannot make the state directory {self.root}: "
                f"{disks.in_words(error, self.root, OTHER_FOLDER)}"
            ) from error
        self.require_own()

    def require_own(self) -> None:
        """Refuse a directory, and a store in it, of another user.

        Raises `StoreError`. Where the directory is one's own nobody else can put anything into it:
        what is refused there has come before it was closed to others.
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


# Files and folders that nobody else can read.

OTHER_FOLDER = "set IPYTASKPERSIST_DIR to a folder that you can write"
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
"""Neither opens what a link leads to, nor waits for the other end of a pipe."""


OURS = re.compile(
    r"tasks.*|\..*\.part|\.?signing\.key.*|problems\.jsonl|upkeep\.lock"
    r"|archive|backups|environments|logs|payloads"
    r"|\d{4}-\d\d[-.].*|\w{8,}-\d+(\.json)?|[0-9a-f]+\.pickle|(supervisor-.*|upkeep|notifier)\.log"
)
"""The names of what is in the folders that we make."""
SYSTEMS = (".nfs", ".fuse_hidden", ".DS_Store", "lost+found")
"""How names begin that a system puts into any folder."""


def is_own(path: Path | str) -> bool:
    """Whether a file or folder is this user's, and no link that another has made or to what is
    another's. What is not there is nobody else's."""
    if not hasattr(os, "getuid"):
        return True
    try:
        status = os.lstat(path)
        if not stat.S_ISLNK(status.st_mode):
            return status.st_uid == os.getuid()
        return status.st_uid in (0, os.getuid()) and Path(path).stat().st_uid == os.getuid()
    except (FileNotFoundError, NotADirectoryError):
        return True


def is_folder(path: Path) -> bool:
    """Whether it is a folder itself: no link to one, and no name for the one that it is in."""
    return path.name not in ("", "..") and path.is_dir() and not path.is_symlink()


def make_private(folder: Path) -> Path:
    """Make a folder that only its owner can enter, whatever the umask, and return it.

    So are those above it that are missing. One that is there is closed to others when it is empty
    or was made here. Raises `StoreError` for one of another user, for one that others use, and
    where the disk takes no more; `OSError` otherwise.
    """
    try:
        _make(folder)
    except FileExistsError:
        if not folder.is_dir():
            raise
        _close_to_others(folder)
    except OSError as error:
        if not disks.has_words(error):
            raise
        raise disks.refused(f"the folder {folder}", error, folder) from error
    return folder


def _make(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700)
    except FileNotFoundError:
        if folder.parent == folder:
            raise
        with suppress(FileExistsError):
            _make(folder.parent)
        folder.mkdir(mode=0o700)
    _chmod(folder)


def _close_to_others(folder: Path) -> None:
    if not is_own(folder):
        raise StoreError(
            f"the folder {folder} belongs to another user; "
            "set IPYTASKPERSIST_DIR to a folder of your own"
        )
    if is_open(folder):
        refusal = why_not_closed(folder)
        if refusal:
            raise StoreError(refusal)
        _chmod(folder)


def is_open(folder: Path) -> bool:
    """Whether others may enter or read a folder. Raises `OSError`."""
    return os.name == "posix" and bool(stat.S_IMODE(folder.stat().st_mode) & 0o077)


def why_not_closed(folder: Path) -> str:
    """Why a folder of one's own that is open to others has to stay so; empty when it may be closed.

    Others may use one that was not made here, as they use `/tmp`, a project's folder, or a home.
    """
    foreign = sorted(path.name for path in folder.iterdir() if not _is_ours(path.name))
    if folder.stat().st_mode & stat.S_ISVTX:
        why = "is meant for all users"
    elif foreign:
        why = f"holds what is not ipytaskpersist's ({foreign[0]!r})"
    else:
        return ""
    return (
        f"the folder {folder} is open to other users and {why}, so it is neither closed to them "
        f"nor used; set IPYTASKPERSIST_DIR to a folder of its own, such as "
        f"{folder}/ipytaskpersist, or type 'chmod 700 {folder}' if no other user needs it"
    )


def _is_ours(name: str) -> bool:
    return OURS.fullmatch(name) is not None or name.startswith(SYSTEMS)


def _chmod(folder: Path) -> None:
    with suppress(PermissionError):  # where there are no modes
        folder.chmod(0o700)


def open_private(path: Path, flags: int) -> int:
    """The descriptor of a file that only its owner can read, made where it is missing.

    `flags` are those of `os.open`. A link is not followed. Raises `OSError`, also for a file of
    another user.
    """
    descriptor = os.open(path, flags | os.O_CREAT | NO_FOLLOW, 0o600)
    try:
        # On file systems of others what one has just made may be somebody else's.
        status = os.fstat(descriptor) if flags & os.O_EXCL else _of_own_file(descriptor, path)
        if os.name == "posix" and stat.S_IMODE(status.st_mode) != 0o600:
            with suppress(PermissionError):  # where there are no modes
                os.fchmod(descriptor, 0o600)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def new_private(path: Path) -> BinaryIO:
    """A new file that only its owner can read. Raises `OSError` where there is one."""
    return open(open_private(path, os.O_EXCL | os.O_WRONLY), "wb")


def open_own(path: Path) -> BinaryIO:
    """An ordinary file of this user's, to be read. A link is not followed. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY | NO_FOLLOW)
    try:
        _of_own_file(descriptor, path)
    except BaseException:
        os.close(descriptor)
        raise
    return open(descriptor, "rb")


def _of_own_file(descriptor: int, path: Path) -> os.stat_result:
    """What is known of an open file. Raises `OSError` unless it is an ordinary one of one's own."""
    # Asked of what is open: its name may mean another file by now.
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise PermissionError(errno.EPERM, "it is not an ordinary file", str(path))
    if hasattr(os, "getuid") and status.st_uid != os.getuid():
        raise PermissionError(errno.EPERM, "it belongs to another user", str(path))
    return status


def remove(file: Path) -> None:
    """Remove an unfinished file. Where that cannot be done either, upkeep does it later."""
    with suppress(OSError):
        file.unlink(missing_ok=True)


def make_durable(file: Path) -> None:
    """Have a file that was written reach the disk."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
