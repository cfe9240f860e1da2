"""The ``pyproject.toml`` of the project that a notebook is in: which one it is, and what it says.

The project may be a stranger's, and the file may be another user's. Which files are believed is
told in `ownership`, and what they may set is told by each setting.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ipytaskpersist.errors import InvalidSetting
from ipytaskpersist.ownership import NotBelieved, read_believed

NAME = "pyproject.toml"
TABLE = "ipytaskpersist"
LIMIT_BYTES = 250_000
"""A larger file is not read."""
LONG_KEY = re.compile(
    rb"""(?<![\w-])(?:(?:[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*){100}""",
)
"""A key of more parts than anybody writes. `tomllib` takes memory with the square of the parts:
one of 200 kB would take all that the machine has."""
REASON_CHARACTERS = 120


@dataclass(frozen=True, slots=True)
class ProjectFile:
    """What was found of a project."""

    file: Path | None
    """The file with our table; None when there is none that is believed."""
    table: dict[str, Any] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    """The files that were not used, and why: a line each."""

    def has(self, notebook: Any) -> bool:
        """Whether a path leads to where the project is. What is no path is none that leads away."""
        if self.file is None or not isinstance(notebook, str) or not notebook:
            return True
        try:
            return Path(notebook).resolve().is_relative_to(self.file.parent)
        except (OSError, RuntimeError, ValueError):  # a circle of links, or no path at all
            return False


def find_project(folder: Path) -> ProjectFile:
    """The nearest ``pyproject.toml`` that has our table, in a folder or above it in its project.

    One that is not believed hides none that is further up; one that cannot be understood does.
    """
    problems = []
    for each in folders_of_project(folder):
        file = each / NAME
        try:
            table = _table(file)
        except NotBelieved as doubt:
            problems.append(f"{file} is not believed, so it sets nothing: {doubt}")
            continue
        except InvalidSetting as error:
            return ProjectFile(None, problems=(*problems, str(error)))
        if table is not None:
            return ProjectFile(file, _with_paths_from(each, table), tuple(problems))
    return ProjectFile(None, problems=tuple(problems))


def folders_of_project(folder: Path) -> list[Path]:
    """A folder and those above it, up to the root of its repository or the home folder.

    Where it is in neither, it is alone: nothing says that what is above belongs to the project.
    """
    try:
        place = folder.resolve()
    except (OSError, RuntimeError):  # a circle of links, or a folder that was removed
        return []
    home = _home()
    found = []
    for each in (place, *place.parents):
        found.append(each)
        if each == home or _is_repository(each):
            return found
    return found[:1]


def _home() -> Path | None:
    try:
        return Path.home().resolve()
    except (OSError, RuntimeError):  # there is none
        return None


def _is_repository(folder: Path) -> bool:
    try:
        (folder / ".git").lstat()
    except OSError:
        return False
    return True


def _table(file: Path) -> dict[str, Any] | None:
    """Our table in a file; None where there is no file or it does not speak of us."""
    try:
        data = None if file.is_dir() else read_believed(file, LIMIT_BYTES, TABLE.encode())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InvalidSetting(f"{file} cannot be read ({error.strerror})") from error
    # Whatever is wrong with one that does not speak of us is not our concern.
    return None if data is None else _parsed(file, data)


def _parsed(file: Path, data: bytes) -> dict[str, Any] | None:
    """Our table in the text of a file."""
    import tomllib

    if LONG_KEY.search(data):
        raise NotBelieved("it has a key of more than 100 parts")
    try:
        document = tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:REASON_CHARACTERS]
        raise InvalidSetting(f"{file} is not valid TOML, so it sets nothing ({reason})") from error
    tools = document.get("tool", {})
    table = tools.get(TABLE) if isinstance(tools, dict) else None
    if table is not None and not isinstance(table, dict):
        raise InvalidSetting(f"[tool.{TABLE}] in {file} must be a table of settings")
    return table


def _with_paths_from(folder: Path, table: dict[str, Any]) -> dict[str, Any]:
    """The table with its path where the file means it: beside the file."""
    notebook = table.get("notebook")
    if isinstance(notebook, str) and notebook:
        return {**table, "notebook": str(folder / notebook)}
    return table
