"""The messages for a disk that takes no more: the reason, and what to do.

The system reports the reason as a number, but SQLite mostly as "disk I/O error". So after an error
of SQLite, something is written beside its file to get the system's reason.
"""

from __future__ import annotations

import errno
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ipytaskpersist.errors import StoreError, StoreFull, StoreUnwritable

if sys.platform != "win32":
    import resource

TRIAL_BYTES = 64 * 1024
NO_ROOM = frozenset((errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)))
"""Errors for lack of space: output that waits in memory may yet be written."""


def has_words(error: OSError) -> bool:
    """Return whether an error of the system is about a disk and has a message here."""
    return error.errno in WORDS


def refused(what: str, error: OSError, place: Path, otherwise: str = "") -> StoreError:
    """Return the error that says why a file cannot be written, and what to do."""
    room = StoreFull if error.errno in NO_ROOM else StoreUnwritable
    kind = room if has_words(error) else StoreError
    return kind(f"cannot write {what}: {in_words(error, place, otherwise)}")


@contextmanager
def writing(what: str, place: Path) -> Iterator[None]:
    """Raise a `StoreError` with a message when the system refuses a write in the block."""
    try:
        yield
    except OSError as error:
        raise refused(what, error, place) from error


def refusal(error: OSError) -> StoreError:
    """Return the same for an error that names its file itself."""
    place = Path(os.fsdecode(error.filename or "."))
    return refused(str(place) if error.filename else "to the disk", error, place)


def in_words(error: OSError, place: Path, otherwise: str = "") -> str:
    """Return the meaning of the system's refusal to write somewhere, and what to do.

    `otherwise` is what to do about an error that has no message here.
    """
    if error.errno in WORDS:
        return WORDS[error.errno](nearest_folder(place))
    said = error.strerror or str(error)
    return f"{said}; {otherwise}" if otherwise else said


def _no_room(folder: Path) -> str:
    if has_no_inodes(folder):
        return (
            "its disk can hold no more files (no inodes are left); remove files there, "
            f"'df -i {folder}' counts them"
        )
    return "no room is left on its disk; make room there, or %bg_delete tasks"


def _over_quota(_folder: Path) -> str:
    return "your quota on its disk is used up; make room there, 'quota -s' says how much you have"


def _too_large(_folder: Path) -> str:
    limit = file_size_limit()
    if limit is None:
        return "its file system takes no larger file; set IPYTASKPERSIST_DIR to another disk"
    lift = f"'prlimit --pid {os.getpid()} --fsize=unlimited' lifts that at once, and "
    return (
        f"a file may have no more than {limit:,} bytes (ulimit -f); "
        f"{lift if sys.platform == 'linux' else ''}"
        "'ulimit -f unlimited' before Jupyter is started lifts it from then on"
    )


def _read_only(folder: Path) -> str:
    mount = next(each for each in (folder, *folder.parents) if os.path.ismount(each))
    return (
        "its disk can only be read; 'dmesg' says why if it was not meant to be, and "
        f"'mount -o remount,rw {mount}', as an administrator, makes it writable"
    )


def _broken(_folder: Path) -> str:
    return "its disk reports errors; 'dmesg' says which. Save what is on it"


WORDS = {
    errno.EFBIG: _too_large,
    errno.EROFS: _read_only,
    errno.EIO: _broken,
    getattr(errno, "EDQUOT", errno.ENOSPC): _over_quota,
    errno.ENOSPC: _no_room,
}


def nearest_folder(place: Path) -> Path:
    """Return the place itself, or its nearest existing parent folder."""
    # `Path.is_dir` raises for a path that is longer than the system allows.
    above = (place, *place.absolute().parents)
    return next(each for each in above if os.path.isdir(each))  # noqa: PTH112


def has_no_inodes(folder: Path) -> bool:
    """Return whether a folder's file system limits the number of files, and has none left."""
    try:
        status = os.statvfs(folder)
    except (OSError, AttributeError):
        return False
    return status.f_files > 0 and status.f_favail == 0


def file_size_limit() -> int | None:
    """Return the size limit of files of this process; None when there is none."""
    if sys.platform == "win32":
        return None
    limit, _most = resource.getrlimit(resource.RLIMIT_FSIZE)
    return None if limit == resource.RLIM_INFINITY else limit


def trial(folder: Path) -> OSError | None:
    """Return the system's error on a write to a folder; None when it succeeds.

    Nothing remains of it. Checking permissions is not enough: a disk on which the system has met
    errors may claim to be writable, and take nothing.
    """
    try:
        with tempfile.TemporaryFile(dir=folder, prefix=".", buffering=0) as file:
            left = memoryview(bytes(TRIAL_BYTES))
            while left:
                left = left[file.write(left) :]
            os.fsync(file.fileno())
    except OSError as error:
        return error
    return None


def why_not(folder: Path) -> OSError | None:
    """Return why SQLite could not write to a folder; None when the system gives no reason."""
    refusal = trial(folder)
    if refusal is None and file_size_limit() is not None:
        # The trial is small, and the limit may be larger.
        return OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    return refusal
