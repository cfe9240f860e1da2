"""The files that the user has sent with a task to its place, or wants back from there.

The task runs in a folder of its own there, where they have the same names as here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from ipytaskpersist.base.records import Options
from ipytaskpersist.places.far.keeper import FILES_FOLDER
from ipytaskpersist.values.travelling import FileToSend

PARTS_AT_MOST = 100


def has_own_folder(options: Options) -> bool:
    """Return whether a task runs in a folder of its own at its place."""
    return bool(options.send or options.fetch)


def files_of(options: Options) -> list[FileToSend]:
    """Return the files to send, those of folders among them. Raises `OSError`."""
    found: dict[str, FileToSend] = {}
    for typed in options.send or ():
        path = Path(os.path.normpath(Path(options.here or "/", typed)))
        name = PurePosixPath(FILES_FOLDER, _name_there(typed) or path.name)
        for each in _files_in(path):
            there = str(name / each.relative_to(path).as_posix()) if each != path else str(name)
            is_executable = os.access(each, os.X_OK)
            found[there] = FileToSend(there, each, is_executable=is_executable)
    return [*found.values()]


def _name_there(typed: str) -> str:
    """Return the name that a file has in the folder of its task: the typed one, if that is below.

    Empty for a path from elsewhere, of which the last part is left.
    """
    path = PurePosixPath(os.path.normpath(typed))
    return "" if path.is_absolute() or ".." in path.parts else str(path)


def _files_in(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        path.stat()  # raises an error that names it
        yield path
        return
    for folder, _folders, names in os.walk(path):
        for name in sorted(names):
            file = Path(folder, name)
            if file.is_file():
                yield file


def matches(pattern: str, name: str) -> bool:
    """Return whether a pattern, as a shell reads it, means this path.

    The far end was asked for what it means, and could answer anything.
    """
    parts = name.split("/")
    is_below = not {"", ".", ".."} & {*parts} and "\0" not in name
    return is_below and len(parts) <= PARTS_AT_MOST and _match(pattern.split("/"), parts)


def _match(patterns: list[str], parts: list[str]) -> bool:
    if not patterns or not parts:
        return not parts and all(each == "**" for each in patterns)
    first, *rest = patterns
    if first == "**":
        is_hidden = parts[0].startswith(".")
        return _match(rest, parts) or (not is_hidden and _match(patterns, parts[1:]))
    return _is_one(parts[0], first) and _match(rest, parts[1:])


def _is_one(part: str, pattern: str) -> bool:
    """Return whether a pattern means this part. A dot at its beginning has to be in both."""
    is_hidden = part.startswith(".")
    return (not is_hidden or pattern.startswith(".")) and fnmatchcase(part, pattern)
