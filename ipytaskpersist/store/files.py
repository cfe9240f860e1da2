"""A database file: which one it is, whatever its name, and what SQLite keeps beside it."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

Identity = tuple[int, int]
"""Device and inode: which file it is, whatever its name."""
Beside = tuple[Identity | None, Identity | None]
"""The log and the memory shared by all who use the file."""
LOST_LOG = b"log"
"""What the mark of the damage says where the log was cut."""
LOG_HEAD_BYTES, FRAME_HEAD_BYTES = 32, 24
INDEX_HEAD_BYTES = 100
LOG_MAGIC = b"\x37\x7f\x06"
"""How a log begins, and what its frames have before each page: https://sqlite.org/fileformat2.html.
Bytes 8 to 15 of a frame's head are the log's salt, which is not zero."""


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


def was_log_cut(path: Path) -> bool:
    """Whether a file's log was cut while a process used it, which has gone on writing.

    What was written afterwards is where it would have been, and before it there are zeros. One that
    has ended with the cut cannot be told from a log that was made shorter with good reason.
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
    """Whether a file's log does not have all of the frames that its index speaks of.

    `index` is how the shared memory begins: https://sqlite.org/walformat.html. Raises `OSError`.
    """
    page_bytes, frames, copied = (
        int.from_bytes(index[place : place + size], sys.byteorder)
        for place, size in ((14, 2), (16, 4), (96, 4))
    )
    frame_bytes = FRAME_HEAD_BYTES + (65536 if page_bytes == 1 else page_bytes)
    is_needed = len(index) == INDEX_HEAD_BYTES and frames > copied
    return is_needed and log_of(path).stat().st_size < LOG_HEAD_BYTES + frames * frame_bytes


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
