"""A database file: which one it is, whatever its name, and what SQLite keeps beside it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

Identity = tuple[int, int]
"""Device and inode: which file it is, whatever its name."""
Beside = tuple[Identity | None, Identity | None]
"""The log and the memory shared by all who use the file."""


def identity_of(path: Path) -> Identity | None:
    """Which file has this name; None when none has. Raises `OSError` when nobody can tell."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_dev, status.st_ino


def log_of(path: Path) -> Path:
    """The write-ahead log, to which every commit is written."""
    return path.with_name(path.name + "-wal")


def shared_memory_of(path: Path) -> Path:
    """What all who use a database file agree in about its log."""
    return path.with_name(path.name + "-shm")


def beside(path: Path) -> Beside:
    """What is there beside a file. Raises `OSError` when nobody can tell."""
    return identity_of(log_of(path)), identity_of(shared_memory_of(path))


def read_options(path: Path) -> str:
    """How a database file is opened to be read: without leaving a log beside it.

    A file that nobody has open, and whose changes are all in it, needs none; on a medium that
    cannot be written there could not be one.
    """
    has_log = any(Path(f"{path}{suffix}").exists() for suffix in ("-wal", "-journal"))
    return "mode=ro" if has_log else "mode=ro&immutable=1"


def move_log(path: Path, target: Path) -> None:
    """Give what SQLite keeps beside a file another name, as if it were that of another file."""
    for suffix in ("-wal", "-shm", "-journal"):
        with suppress(OSError):
            Path(f"{path}{suffix}").rename(f"{target}{suffix}")
