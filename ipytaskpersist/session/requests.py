"""What a launch may ask for besides its source, and which of it makes sense."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ipytaskpersist.base.paths import typed_path
from ipytaskpersist.base.records import Options, TaskRecord
from ipytaskpersist.errors import InvalidRequest

THREAD, PROCESS, SHELL = "thread", "process", "shell"

ASK, ATTACH, REPLACE, NEW = IF_RUNNING = ("ask", "attach", "replace", "new")
"""What to do when a cell is run whose task still runs."""


@dataclass(frozen=True, slots=True)
class PlaceInQueue:
    """What the user said about when a task may start."""

    after: Sequence[str] = ()
    """References to tasks that have to end first, each perhaps with how: ``any:3``."""
    group: str = ""
    """The tasks with which it shares a width; empty for the usual ones."""
    priority: int = 0
    at: str = ""
    """The time before which it does not start, as typed; empty for none."""
    delay: str = ""
    """How long it waits at least, as typed; empty for not at all."""


@dataclass(frozen=True, slots=True)
class WholeNotebook:
    """What the user said about a notebook to run as a whole."""

    path: str
    """As typed."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """The values to assign to variables, by name."""
    output: str = ""
    """Where to save the executed notebook, as typed; empty for beside the notebook."""


@dataclass(frozen=True, slots=True)
class Request:
    """The user's options for a task, besides its source."""

    name: str = ""
    where: str = ""
    """``thread``, ``process`` or ``shell``; empty to let the source and the trait decide."""
    options: Options = field(default_factory=Options)
    tags: Sequence[str] = ()
    notify: bool = False
    """Whether to send a notification of its end to the usual places."""
    notify_to: Sequence[str] = ()
    """Further places, for this task only."""
    if_running: str = ""
    """One of `IF_RUNNING`; empty to let the trait decide."""
    is_whole_cell: bool = False
    """Whether the source is all of its cell, so that the cell has no other task."""
    earlier: Sequence[TaskRecord] = ()
    """The live tasks of earlier runs of the cell."""
    place: PlaceInQueue = field(default_factory=PlaceInQueue)
    notebook: WholeNotebook | None = None
    """The notebook to run, instead of a source."""


FLAGS = {
    "cwd": "--cwd",
    "env": "--env",
    "timeout_s": "--timeout",
    "pty": "--pty",
    "shell_path": "--shell-path",
    "inputs": "--in",
    "outputs": "--out",
    "fresh": "--fresh",
}

NEEDS_PROCESS = "needs a process: add --process, or --shell for a shell command"

NEEDS_SHELL = "is for shell commands: add --shell"

NEEDS_INTERPRETER = "is for Python in a process: a shell command has no interpreter"

NOT_FOR_NOTEBOOKS = "is not for a whole notebook, which has a kernel of its own"

NEEDS_PYTHON = "is for Python in a process: a shell command has no variables"


def refuse(options: Options, names: Sequence[str], why: str) -> None:
    """Raise `InvalidRequest` if any of these options is given."""
    for name in names:
        if getattr(options, name) not in (None, False, {}):
            raise InvalidRequest(f"{FLAGS[name]} {why}")


def check(options: Options) -> None:
    """Raise `InvalidRequest` for an option that no process can have."""
    timeout_s = options.timeout_s
    if timeout_s is not None and not timeout_s > 0:
        raise InvalidRequest(f"--timeout is a number of seconds greater than 0, not {timeout_s}")
    for flag, names in (("--in", options.inputs), ("--out", options.outputs)):
        twice = [name for name in dict.fromkeys(names or ()) if list(names or ()).count(name) > 1]
        if twice:
            raise InvalidRequest(f"{flag} names {', '.join(twice)} more than once")
    for name, value in options.env.items():
        if not is_passable(name) or not is_passable(value):
            raise InvalidRequest(f"the value of {name!r} cannot be that of an environment variable")
        if not name or "=" in name:
            raise InvalidRequest(f"{name!r} cannot be the name of an environment variable")


def is_passable(text: object) -> bool:
    """Return whether this can be a program's argument, or part of its environment."""
    try:
        return isinstance(text, str) and b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def directory_of(options: Options) -> str:
    """Return the directory in which to run a task. Raise `InvalidRequest` if it does not exist."""
    path = typed_path(options.cwd or ".")
    if not is_passable(str(path)) or not path.is_dir():
        shown = str(path) if str(path).isprintable() else ascii(str(path))
        raise InvalidRequest(f"the directory {shown} does not exist; give another with --cwd")
    return str(path)
