"""The problems that the store has had, in a file beside it: it must take what the store cannot.

Also what could not be told of the end of tasks: nobody may be there to whom it could be said.

One JSON document a line, ``{"at", "pid", "message"}``; only the newest are kept.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ipytaskpersist.errors import StoreError
from ipytaskpersist.paths import (
    StateDirectory,
    make_private,
    new_private,
    open_own,
    open_private,
)

SHOWN = 100
"""How many of the newest are looked at."""
LEFT = 50
"""How many are left when the file is cut."""
MESSAGE_CHARACTERS = 400
FILE_BYTES = 128 * 1024
"""How large the file may grow before it is cut. No `LEFT` messages are as large."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something went wrong with the store."""

    at: datetime
    pid: int
    """The process that met it."""
    message: str


def record(directory: StateDirectory, message: str) -> None:
    """Keep a problem. Where that fails too, nothing is said: the message itself has been."""
    with suppress(OSError, StoreError):
        if directory.root.is_dir():
            make_private(directory.root)
        _append(directory.problems, message)


def record_once(directory: StateDirectory, message: str) -> None:
    """Keep a problem that would be met again and again: this process says it once."""
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
    # In one write to a descriptor that appends, so that lines of several processes stay whole.
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
    """The problems that are kept, the newest last. Raises `OSError` when they cannot be read."""
    try:
        with open_own(directory.problems) as file:
            lines = file.read().splitlines()[-SHOWN:]
    except FileNotFoundError:
        return []
    found = (_problem(line) for line in lines)
    return [problem for problem in found if problem is not None]


def _problem(line: bytes) -> Problem | None:
    """What a line says; None where it is not whole, as after a loss of power."""
    try:
        entry = json.loads(line)
        at = datetime.fromtimestamp(entry["at"], UTC)
        return Problem(at, int(entry["pid"]), str(entry["message"]))
    except (ValueError, TypeError, KeyError, OverflowError):
        return None
