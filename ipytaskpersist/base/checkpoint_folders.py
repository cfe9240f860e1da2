"""The folders of checkpoints: what tasks leave for those that go on from them.

All tasks that go on from one another have the same folder, named after the first of them. That of a
shell command belongs to the command. That of Python code holds signed pickles, and an index that
names the last two, so that there is always a whole one.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.private_files import (
    is_folder,
    make_durable,
    make_private,
    new_private,
    open_own,
    remove,
)
from ipytaskpersist.errors import StoreError

VARIABLE = "IPYTASKPERSIST_CHECKPOINT"
"""Names its folder to a shell command."""
INDEX = "index.json"
SHELL = "shell"
"""The kind of a task whose folder is its command's."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A value that a task has kept."""

    at: float
    """In seconds since the epoch."""
    size_bytes: int
    digest: str
    """SHA-256 of the pickle, in hexadecimal."""
    signature: str
    """HMAC-SHA256 with the user's key, which binds the digest to the folder."""
    text: str
    """Short text form of the value."""
    files: Sequence[str]
    """The files in the folder that it needs: the pickle, and its arrays."""


@dataclass(frozen=True, slots=True)
class Latest:
    """The latest checkpoint in a folder, as far as it is shown."""

    at: float
    """In seconds since the epoch."""
    size_bytes: int

    def as_json(self) -> dict[str, Any]:
        """Return it as ``show --json`` prints it."""
        return asdict(self)


def folder_of(directory: StateDirectory, place: str) -> Path:
    """Return the folder with this name."""
    return directory.checkpoints / place


def latest(directory: StateDirectory, place: str | None, kind: str) -> Latest | None:
    """Return the latest checkpoint in a folder; None if there is none.

    `kind` is that of its tasks. For a shell command, it is the time of the file that was written
    last, and the size of all files.
    """
    if not place or not is_folder(folder := folder_of(directory, place)):
        return None
    if kind != SHELL:
        newest = next(iter(checkpoints_in(folder)), None)
        return None if newest is None else Latest(newest.at, newest.size_bytes)
    found = [*_status_of_files(folder)]
    if not found:
        return None
    return Latest(max(each.st_mtime for each in found), sum(each.st_size for each in found))


def checkpoints_in(folder: Path) -> list[Checkpoint]:
    """Return the checkpoints that the index of a folder names, latest first."""
    try:
        with open_own(folder / INDEX) as file:
            return [Checkpoint(**each) for each in json.loads(file.read())]
    except (OSError, ValueError, TypeError):
        return []  # no checkpoint yet, or not an index of ours


def write_index(folder: Path, kept: Sequence[Checkpoint]) -> None:
    """Have the index name these checkpoints, on the disk when this returns.

    Raises `OSError`, and is then as it was before.
    """
    temporary = folder / f".{secrets.token_hex(8)}.part"
    try:
        with new_private(temporary) as file:
            file.write(json.dumps([asdict(each) for each in kept]).encode())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(folder / INDEX)
    except BaseException:
        remove(temporary)
        raise
    make_durable(folder)


def make_for_command(directory: StateDirectory, place: str) -> Path:
    """Make sure that a command finds its folder, and return it.

    Where it cannot be made, the command says so, if it needs it.
    """
    folder = folder_of(directory, place)
    with suppress(OSError, StoreError):
        make_private(folder)
    return folder


def remove_if_empty(directory: StateDirectory, place: str) -> None:
    """Remove the folder of a command that has left nothing there."""
    with suppress(OSError):
        folder_of(directory, place).rmdir()


def all_places(directory: StateDirectory) -> list[str]:
    """Return the names of all folders."""
    with suppress(OSError):
        return sorted(each.name for each in directory.checkpoints.iterdir() if is_folder(each))
    return []


def size_of(directory: StateDirectory, places: Iterable[str]) -> int:
    """Return the size of all files in folders, in bytes."""
    folders = [folder_of(directory, place) for place in places]
    return sum(each.st_size for folder in folders for each in _status_of_files(folder))


def _status_of_files(folder: Path) -> Iterator[os.stat_result]:
    for parent, _folders, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                yield Path(parent, name).lstat()
