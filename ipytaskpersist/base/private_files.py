"""Files and folders that only their owner can read."""

from __future__ import annotations

import errno
import os
import re
import stat
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from ipytaskpersist.base import disk_errors
from ipytaskpersist.errors import StoreError

OTHER_FOLDER = "set IPYTASKPERSIST_DIR to a folder that you can write"

NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
"""Keeps `open` from following a link, and from blocking on a pipe."""

OURS = re.compile(
    r"tasks.*|\..*\.part|\.?signing\.key.*|problems\.jsonl|trusted-places\.json|upkeep\.lock"
    r"|archive|backups|buffers|checkpoints|environments|logs|payloads|ssh"
    r"|\d{4}-\d\d[-.].*|\w{8,}-\d+(\.json)?|[0-9a-f]+\.pickle|\d+-[0-9a-f]+\.buffers|(supervisor-.*|upkeep|notifier)\.log"
)
"""Names of the entries that we create in our folders."""

SYSTEMS = (".nfs", ".fuse_hidden", ".DS_Store", "lost+found")
"""Prefixes of names that a system may create in any folder."""


def is_own(path: Path | str) -> bool:
    """Return whether a path is this user's. True for a missing one.

    A link must be this user's or root's, and lead to what is this user's.
    """
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
    """Return whether it is a folder itself: neither a link nor a name of its parent."""
    return path.name not in ("", "..") and path.is_dir() and not path.is_symlink()


def make_private(folder: Path) -> Path:
    """Create a folder that only its owner can enter, whatever the umask, and return it.

    Missing parents are created likewise. An existing folder is closed to others if it is empty or
    was created here. Raises `StoreError` for another user's folder, for one that others use, and
    when the disk is full or refuses; `OSError` otherwise.
    """
    try:
        _make(folder)
    except FileExistsError:
        if not folder.is_dir():
            raise
        _close_to_others(folder)
    except OSError as error:
        if not disk_errors.has_words(error):
            raise
        raise disk_errors.refused(f"the folder {folder}", error, folder) from error
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
    """Return whether others may enter or read a folder. Raises `OSError`."""
    return os.name == "posix" and bool(stat.S_IMODE(folder.stat().st_mode) & 0o077)


def why_not_closed(folder: Path) -> str:
    """Return why this user's open folder must stay open; empty when it may be closed.

    Others may use a folder that was not created here, like `/tmp`, a project's folder, or a home.
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
    with suppress(PermissionError):  # on file systems without modes
        folder.chmod(0o700)


def open_private(path: Path, flags: int) -> int:
    """Return the descriptor of a file that only its owner can read, created if missing.

    `flags` are those of `os.open`. A link is not followed. Raises `OSError`, also for another
    user's file.
    """
    descriptor = os.open(path, flags | os.O_CREAT | NO_FOLLOW, 0o600)
    try:
        # On some file systems a file that was just created may belong to another user.
        status = os.fstat(descriptor) if flags & os.O_EXCL else _of_own_file(descriptor, path)
        if os.name == "posix" and stat.S_IMODE(status.st_mode) != 0o600:
            with suppress(PermissionError):  # on file systems without modes
                os.fchmod(descriptor, 0o600)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def new_private(path: Path) -> BinaryIO:
    """Create a file that only its owner can read. Raises `OSError` when it exists."""
    return open(open_private(path, os.O_EXCL | os.O_WRONLY), "wb")


def open_own(path: Path) -> BinaryIO:
    """Open an ordinary file of this user's to read. A link is not followed. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY | NO_FOLLOW)
    try:
        _of_own_file(descriptor, path)
    except BaseException:
        os.close(descriptor)
        raise
    return open(descriptor, "rb")


def _of_own_file(descriptor: int, path: Path) -> os.stat_result:
    """Return an open file's status. Raises `OSError` unless it is this user's ordinary file."""
    # Ask the descriptor: the name may refer to another file by now.
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise PermissionError(errno.EPERM, "it is not an ordinary file", str(path))
    if hasattr(os, "getuid") and status.st_uid != os.getuid():
        raise PermissionError(errno.EPERM, "it belongs to another user", str(path))
    return status


def remove(file: Path) -> None:
    """Remove an unfinished file. If that fails, too, upkeep does it later."""
    with suppress(OSError):
        file.unlink(missing_ok=True)


def make_durable(file: Path) -> None:
    """Flush a written file to the disk."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
