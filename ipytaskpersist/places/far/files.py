"""Files of the far end: private, complete or not there, and made once."""

from __future__ import annotations

import errno
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

Json = dict[str, Any]
LARGEST_JSON = 16 * 1024 * 1024
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class Refused(Exception):
    """A request that cannot be met. The message says why."""


def host_name() -> str:
    """Return the name of this machine."""
    return os.uname().nodename


def place(path: str) -> Path:
    """Return a path of this machine: ``~`` is the home directory, and so is where others begin."""
    return Path.home() / Path(path).expanduser()


def make_folder(folder: Path) -> None:
    """Make a folder for this user alone, and those above it. Raises `Refused` for another's."""
    if not folder.is_dir():
        if not folder.parent.is_dir():
            make_folder(folder.parent)
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
    found = folder.stat()
    if found.st_uid != os.geteuid():
        raise Refused(f"the folder {folder} belongs to another user")
    if found.st_mode & 0o077:
        folder.chmod(0o700)


def open_private(path: Path, flags: int) -> int:
    """Open a file for this user alone, for writing; make it if it is missing."""
    return os.open(path, flags | os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)


def read_fresh(path: Path, offset: int, size: int) -> tuple[int, bytes]:
    """Return a file's size and a piece of it.

    A network file system says how a file is now only to one who opens it (nfs(5), close-to-open).
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = os.pread(descriptor, size, offset) if size else b""
        return os.fstat(descriptor).st_size, data
    finally:
        os.close(descriptor)


def read_json(path: Path) -> Json | None:
    """Return what a file holds: None without the file, nothing in one that is being written."""
    try:
        return json.loads(read_fresh(path, 0, LARGEST_JSON)[1])  # type: ignore[no-any-return]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        return {}


def write_json(path: Path, content: Json) -> None:
    """Write a file that appears complete or not at all."""
    new = path.with_name(f"{path.name}.new")
    descriptor = open_private(new, os.O_TRUNC)
    try:
        write_all(descriptor, json.dumps(content).encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    new.replace(path)


def write_once(path: Path, content: Json) -> bool:
    """Write a file if it is not there. Returns whether this call did; of several, one does.

    ``link`` is atomic wherever it exists, on each version of NFS too, and the file is complete
    when it appears. A server's lost reply makes a link that was made look refused: the number of
    links is the truth (open(2), O_EXCL). Without links, O_EXCL itself decides.
    """
    data = json.dumps(content).encode()
    own = path.with_name(f"{path.name}-{os.urandom(8).hex()}")
    descriptor = open_private(own, os.O_EXCL)
    try:
        write_all(descriptor, data)
        os.fsync(descriptor)
        with suppress(FileExistsError):
            os.link(own, path)
        return os.fstat(descriptor).st_nlink == 2
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        return write_exclusively(path, data)
    finally:
        os.close(descriptor)
        own.unlink()


def remove(path: Path) -> None:
    """Remove a file, if it is there."""
    with suppress(FileNotFoundError):
        path.unlink()


def write_exclusively(path: Path, data: bytes) -> bool:
    """Do as `write_once` on a file system without links. The file may be seen incomplete."""
    try:
        descriptor = open_private(path, os.O_EXCL)
    except FileExistsError:
        return False
    try:
        write_all(descriptor, data)
        return True
    finally:
        os.close(descriptor)


def append_line(path: Path, line: str) -> None:
    """Append a line to a file, at once."""
    descriptor = open_private(path, os.O_APPEND)
    try:
        write_all(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of it."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def in_words(error: OSError) -> str:
    """Return what the system said, and of what."""
    return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)
