"""Find the ``pyproject.toml`` of a notebook's project, and read it.

The project may be a stranger's, and the file may be another user's. `base.ownership` decides which
files are trusted, and each setting says whether a project may set it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ipytaskpersist.base.ownership import NotBelieved, read_believed
from ipytaskpersist.errors import InvalidSetting

NAME = "pyproject.toml"
TABLE = "ipytaskpersist"
LIMIT_BYTES = 250_000
"""A larger file is not read."""
LONG_KEY = re.compile(
    rb"""(?<![\w-])(?:(?:[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*){100}""",
)
"""A key with an absurd number of parts.

The memory of `tomllib` grows with the square of the parts: 200 kB would use up the machine's.
"""
REASON_CHARACTERS = 120


@dataclass(frozen=True, slots=True)
class ProjectFile:
    """The project's file, and the problems on the way to it."""

    file: Path | None
    """The file with our table; None if there is no trusted one."""
    table: dict[str, Any] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    """The files that were not used, and why: one line each."""

    def has(self, notebook: Any) -> bool:
        """Return whether a notebook path is inside the project; True for an invalid value."""
        if self.file is None or not isinstance(notebook, str) or not notebook:
            return True
        try:
            return Path(notebook).resolve().is_relative_to(self.file.parent)
        except (OSError, RuntimeError, ValueError):  # a cycle of links, or not a path
            return False


def find_project(folder: Path) -> ProjectFile:
    """Return the project's nearest ``pyproject.toml`` with our table, in a folder or above.

    The search goes on above an untrusted file, but stops at one that cannot be parsed.
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
    """Return a folder and its parents, up to the root of its repository or the home folder.

    Outside both, return only the folder: nothing says that its parents belong to the project.
    """
    try:
        place = folder.resolve()
    except (OSError, RuntimeError):  # a cycle of links, or a removed folder
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
    """Return our table in a file; None if there is no file or no such table."""
    try:
        data = None if file.is_dir() else read_believed(file, LIMIT_BYTES, TABLE.encode())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InvalidSetting(f"{file} cannot be read ({error.strerror})") from error
    # Errors in a file that does not mention us are not our concern.
    return None if data is None else _parsed(file, data)


def _parsed(file: Path, data: bytes) -> dict[str, Any] | None:
    """Parse our table from the text of a file."""
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
    """Return the table with its path relative to the file made absolute."""
    notebook = table.get("notebook")
    if isinstance(notebook, str) and notebook:
        return {**table, "notebook": str(folder / notebook)}
    return table
