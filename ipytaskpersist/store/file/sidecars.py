"""A database file's identity, whatever its name, and the files that SQLite keeps beside it."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

Identity = tuple[int, int]
"""Device and inode, which identify a file whatever its name."""
Beside = tuple[Identity | None, Identity | None]
"""The log, and the memory that all users of the file share."""
LOST_LOG = b"log"
"""Content of the damage mark when the log was cut."""
LOG_HEAD_BYTES, FRAME_HEAD_BYTES = 32, 24
INDEX_HEAD_BYTES = 100
LOG_MAGIC = b"\x37\x7f\x06"
"""How a log begins, and the header that each page has in it (https://sqlite.org/fileformat2.html).
Bytes 8 to 15 of a frame header are the log's salt, which is not zero."""


def identity_of(path: Path) -> Identity | None:
    """Return the identity of the file at a path; None when there is none. Raises `OSError`."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_dev, status.st_ino


def log_of(path: Path) -> Path:
    """Return the path of the write-ahead log, which receives every commit."""
    return path.with_name(path.name + "-wal")


def was_log_cut(path: Path) -> bool:
    """Return whether a log was cut while a process used it, and that process went on writing.

    Later writes are where they would have been, with zeros before them. If the process wrote
    nothing after the cut, the log looks like one that was shortened for a good reason.
    """
    with suppress(OSError), log_of(path).open("rb") as log:
        head = log.read(LOG_HEAD_BYTES)
        if not head.startswith(LOG_MAGIC):
            return bool(head)
        frame_bytes = FRAME_HEAD_BYTES + int.from_bytes(head[8:12])
        places = range(LOG_HEAD_BYTES, os.fstat(log.fileno()).st_size, frame_bytes)
        heads = (os.pread(log.fileno(), FRAME_HEAD_BYTES, place) for place in places)
        return any(not any(frame[8:16]) for frame in heads)
    return False


def is_log_cut(path: Path, index: bytes) -> bool:
    """Return whether a file's log lacks frames that its index mentions.

    `index` is the beginning of the shared memory (https://sqlite.org/walformat.html). Raises
    `OSError`.
    """
    page_bytes, frames, copied = (
        int.from_bytes(index[place : place + size], sys.byteorder)
        for place, size in ((14, 2), (16, 4), (96, 4))
    )
    frame_bytes = FRAME_HEAD_BYTES + (65536 if page_bytes == 1 else page_bytes)
    is_needed = len(index) == INDEX_HEAD_BYTES and frames > copied
    return is_needed and log_of(path).stat().st_size < LOG_HEAD_BYTES + frames * frame_bytes


def shared_memory_of(path: Path) -> Path:
    """Return the path of the shared memory, in which all users of a file agree about its log."""
    return path.with_name(path.name + "-shm")


def beside(path: Path) -> Beside:
    """Return the identities of what is beside a file. Raises `OSError`."""
    return identity_of(log_of(path)), identity_of(shared_memory_of(path))


def read_options(path: Path) -> str:
    """Return the URI options that open a database file for reading without leaving a log beside it.

    A file that no process has open, and that contains all of its changes, needs no log. On a
    read-only medium there could be none.
    """
    has_log = any(Path(f"{path}{suffix}").exists() for suffix in ("-wal", "-journal"))
    return "mode=ro" if has_log else "mode=ro&immutable=1"


def move_log(path: Path, target: Path) -> None:
    """Rename what SQLite keeps beside a file, as if it belonged to another file."""
    for suffix in ("-wal", "-shm", "-journal"):
        with suppress(OSError):
            Path(f"{path}{suffix}").rename(f"{target}{suffix}")
