"""What a launch may ask for besides its source, and which of it makes sense."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from ipytaskpersist.base.legible import legible
from ipytaskpersist.base.paths import typed_path
from ipytaskpersist.base.records import Options, TaskRecord
from ipytaskpersist.base.retries import CAUSES, MAX_DELAY_S, Retries
from ipytaskpersist.base.schedules import Schedule
from ipytaskpersist.errors import InvalidRequest
from ipytaskpersist.text.durations import parse_age

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
    cpus: float | None = None
    """How many CPUs it needs; None for none of its own."""
    memory: str = ""
    """How much memory it needs at most, as typed, or `AUTO`; empty for any amount."""
    gpus: int | None = None
    """How many GPUs it needs; None for none of its own."""
    gpu_memory: str = ""
    """How much memory of each GPU it needs, as typed; empty for all of it."""

    @property
    def demanding(self) -> str:
        """The first of the options that ask for a part of the machine; empty for none."""
        given = {"--cpus": self.cpus is not None, "--memory": bool(self.memory)}
        given |= {"--gpus": self.gpus is not None, "--gpu-memory": bool(self.gpu_memory)}
        return next((flag for flag, is_given in given.items() if is_given), "")


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
    key: str = ""
    """What makes a repetition of the launch the same launch; empty for a launch of its own."""
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
    on: str = ""
    """The name of the place where it runs; empty for here."""
    retries: Retries | None = None
    """When it is tried again; None for never."""
    schedule: Schedule | None = None
    """The rule of the times at which it runs; None for once."""
    notebook: WholeNotebook | None = None
    """The notebook to run, instead of a source."""


def retries_of(
    count: int,
    causes: Sequence[str] = (),
    delay: str = "",
    max_delay: str = "",
    memory_factor: float | None = None,
) -> Retries | None:
    """Return when a task is tried again, as the user says it. Raise `InvalidRequest`.

    Without causes: whatever has ended it, except a cancellation.
    """
    if not count:
        if causes or delay or max_delay or memory_factor is not None:
            raise InvalidRequest(
                "--on-cause, --delay, --max-delay and --memory-factor need --retries N"
            )
        return None
    unknown = [cause for cause in causes if cause not in CAUSES]
    if unknown:
        raise InvalidRequest(
            f"--on-cause knows no '{legible(unknown[0])}'; it knows {', '.join(CAUSES)}"
        )
    if count < 0:
        raise InvalidRequest(f"--retries is the number of further tries, not {count}")
    if memory_factor is not None and not 1 < memory_factor < math.inf:
        raise InvalidRequest(
            f"--memory-factor is a number above 1, such as 1.5, not {memory_factor:g}"
        )
    longest_s = parse_age(max_delay) if max_delay else MAX_DELAY_S
    delay_s = parse_age(delay) if delay else 0.0
    if delay_s > longest_s:
        raise InvalidRequest(f"--delay is longer than --max-delay, {longest_s:g} s; raise that")
    return Retries(count, [*dict.fromkeys(causes)] or CAUSES, delay_s, longest_s, memory_factor)


FLAGS = {
    "cwd": "--cwd",
    "env": "--env",
    "timeout_s": "--timeout",
    "pty": "--pty",
    "shell_path": "--shell-path",
    "inputs": "--in",
    "outputs": "--out",
    "fresh": "--fresh",
    "send": "--send",
    "fetch": "--fetch",
}

NEEDS_PROCESS = "needs a process: add --process, or --shell for a shell command"

NEEDS_SHELL = "is for shell commands: add --shell"

NEEDS_PLACE = "is for a task at a place: add --on NAME, or leave it out where the files are"

NEEDS_INTERPRETER = "is for Python in a process: a shell command has no interpreter"

NOT_FOR_NOTEBOOKS = "is not for a whole notebook, which has a kernel of its own"

OWN_FOLDER = "a folder of its own"

NEEDS_PYTHON = "is for Python in a process: a shell command has no variables"


def refuse(options: Options, names: Sequence[str], why: str) -> None:
    """Raise `InvalidRequest` if any of these options is given."""
    for name in names:
        if getattr(options, name) not in (None, False, {}):
            raise InvalidRequest(f"{FLAGS[name]} {why}")


def refuse_in_thread(request: Request) -> None:
    """Raise `InvalidRequest` if a task in a thread asks for what only a process can have."""
    if request.place.demanding:
        raise InvalidRequest(
            f"{request.place.demanding} {NEEDS_PROCESS}; a task in a thread has the CPUs, memory "
            "and GPUs of its kernel"
        )
    if request.retries is not None:
        raise InvalidRequest(f"--retries {NEEDS_PROCESS}")
    if request.schedule is not None:
        flag = "--every" if request.schedule.cron is None else "--cron"
        raise InvalidRequest(f"{flag} {NEEDS_PROCESS}; a task in a thread ends with its kernel")


def refuse_elsewhere(request: Request) -> None:
    """Raise `InvalidRequest` for what a task at a place cannot have."""
    if request.place.demanding:
        raise InvalidRequest(
            f"{request.place.demanding} is about this machine; what a task needs at "
            f"'{legible(request.on)}' is said in the place's own settings: %bg_places shows them"
        )
    if request.notebook is not None:
        raise InvalidRequest("a whole notebook runs on this machine; leave out --on")
    if request.where == THREAD:
        raise InvalidRequest("--thread is a thread of this kernel; leave out --on")


def with_files(request: Request) -> Request:
    """Return a request with the directory in which its files are meant. Raise `InvalidRequest`."""
    options = request.options
    if not options.send and not options.fetch:
        return request
    if options.cwd is not None:
        raise InvalidRequest(
            "with --send or --fetch a task runs in a folder of its own over there; leave out --cwd"
        )
    for typed in options.send or ():
        if not typed_path(typed).exists():
            raise InvalidRequest(f"--send: there is no file or folder {legible(typed)}")
    for pattern in options.fetch or ():
        path = PurePosixPath(pattern)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise InvalidRequest(
                f"--fetch {legible(pattern)} is not in the task's folder over there; give a path "
                "or a pattern such as 'results/*.csv'"
            )
    sent = [str(typed_path(each)) if each.startswith("~") else each for each in options.send or ()]
    fetched = [*map(_pattern, options.fetch or ())]
    here = replace(options, send=sent or None, fetch=fetched or None, here=str(Path.cwd()))
    return replace(request, options=here)


def _pattern(typed: str) -> str:
    """Return the pattern that is meant. A folder means all that is in it."""
    pattern = os.path.normpath(typed)
    return f"{pattern}/**" if typed.endswith("/") else pattern


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


def directory_of(options: Options, *, is_here: bool = True) -> str:
    """Return the directory in which to run a task. Raise `InvalidRequest` if it does not exist.

    Of a task at a place it is not known whether it does; the home directory there is usual.
    """
    if not is_here:
        return OWN_FOLDER if options.here else options.cwd or "~"
    path = typed_path(options.cwd or ".")
    if not is_passable(str(path)) or not path.is_dir():
        shown = str(path) if str(path).isprintable() else ascii(str(path))
        raise InvalidRequest(f"the directory {shown} does not exist; give another with --cwd")
    return str(path)
