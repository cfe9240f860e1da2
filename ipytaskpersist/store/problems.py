"""The store's problems, in a file beside it, which must take what the store cannot.

Also failed notifications, which may have no user to be reported to.

One JSON document per line, ``{"at", "pid", "message"}``; only the newest are kept.
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ipytaskpersist.base.legible import legible
from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.private_files import make_private, new_private, open_own, open_private
from ipytaskpersist.errors import StoreError

SHOWN = 100
"""Number of newest problems that are read."""
LEFT = 50
"""Number of problems left when the file is cut."""
MESSAGE_CHARACTERS = 400
FILE_BYTES = 128 * 1024
"""Size at which the file is cut. `LEFT` messages are always smaller."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that went wrong with the store."""

    at: datetime
    pid: int
    """Process that recorded it."""
    message: str


def say(directory: StateDirectory, message: str) -> None:
    """Report a problem of the store, and keep it for the doctor."""
    record(directory, message)
    with suppress(OSError, ValueError):  # a file on the full disk, or closed
        print(legible(message), file=sys.stderr)


def record(directory: StateDirectory, message: str) -> None:
    """Keep a problem. If that fails, too, nothing is said: the message itself has been reported."""
    with suppress(OSError, StoreError):
        if directory.root.is_dir():
            make_private(directory.root)
        _append(directory.problems, message)


def record_once(directory: StateDirectory, message: str) -> None:
    """Keep a recurring problem once per process."""
    if message not in _said:
        _said.add(message)
        record(directory, message)


_said: set[str] = set()


def _append(file: Path, message: str) -> None:
    entry = {
        "at": time.time(),
        "pid": os.getpid(),
        "message": " ".join(message.split())[:MESSAGE_CHARACTERS],
    }
    # One write to an appending descriptor keeps concurrent processes' lines intact.
    descriptor = open_private(file, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(descriptor, f"{json.dumps(entry)}\n".encode())
        size = os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)
    if size > FILE_BYTES:
        _cut(file)


def _cut(file: Path) -> None:
    newest = file.read_bytes().splitlines(keepends=True)[-LEFT:]
    partial = file.with_name(f".{file.name}.{os.urandom(4).hex()}.part")
    with new_private(partial) as target:
        target.writelines(newest)
    partial.replace(file)


def recorded(directory: StateDirectory) -> list[Problem]:
    """Return the kept problems, newest last. Raises `OSError` when they cannot be read."""
    try:
        with open_own(directory.problems) as file:
            lines = file.read().splitlines()[-SHOWN:]
    except FileNotFoundError:
        return []
    found = (_problem(line) for line in lines)
    return [problem for problem in found if problem is not None]


def _problem(line: bytes) -> Problem | None:
    """Parse a line; None when it is incomplete, as after a power loss."""
    try:
        entry = json.loads(line)
        at = datetime.fromtimestamp(entry["at"], UTC)
        return Problem(at, int(entry["pid"]), str(entry["message"]))
    except (ValueError, TypeError, KeyError, OverflowError):
        return None
