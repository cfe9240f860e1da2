"""What may come next where a task, a session or a tag is to be named: for Tab, everywhere.

The commands' parameters name these functions, as click has them; a shell and IPython ask the
commands. Nothing here raises or prints, changes anything, or reads more than a little.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import click
from click.shell_completion import CompletionItem

from ipytaskpersist.manager import BackgroundTasks
from ipytaskpersist.safetext import legible
from ipytaskpersist.store.tasks import TaskName
from ipytaskpersist.surfaces import Surface

AT_MOST = 50
ID_CHARACTERS = 2
"""Ids are offered when so much of one is typed: nobody begins with one by chance."""

Item = CompletionItem[str]
Complete = Callable[[click.Context, click.Parameter, str], list[Item]]


def _quietly(function: Callable[[BackgroundTasks, str], Iterator[Item]]) -> Complete:
    """A function of the manager and of what is typed, as click wants it. Nothing goes wrong."""

    @wraps(function)
    def complete(context: click.Context, _parameter: click.Parameter, typed: str) -> list[Item]:
        try:
            surface = context.find_object(Surface)
            return [] if surface is None else [*function(surface.manager, typed)]
        except Exception:  # A key press is no place for an error: the command will say it.
            return []

    return complete


def _is_ready(manager: BackgroundTasks) -> bool:
    return manager.store.exists and manager.store.is_current


@_quietly
def tasks(manager: BackgroundTasks, typed: str) -> Iterator[Item]:
    """This notebook's tasks: names and numbers, the newest first, and ids."""
    key = manager.notebook_key() if _is_ready(manager) else None
    if key is None:
        return
    found = manager.store.tasks.named(key, typed, AT_MOST)
    # A name means the latest task that has it, so the latest is put in last.
    latest = {task.name: task for task in reversed(found)}
    for name in dict.fromkeys(task.name for task in found):
        task = latest[name]
        if _is_word(name) and name.startswith(typed):
            yield CompletionItem(name, help=f"{task.number} {task.state}")
    for task in found:
        if str(task.number).startswith(typed):
            yield CompletionItem(str(task.number), help=_about(task))
    for task in found:
        if len(typed) >= ID_CHARACTERS and task.id.startswith(typed):
            yield CompletionItem(task.id, help=_about(task))


def _about(task: TaskName) -> str:
    return f"{legible(task.name)} {task.state}".strip()


def _is_word(name: str) -> bool:
    """Whether a name can be typed so that it means the task."""
    return bool(name) and name.isprintable() and not name.startswith("-")


@_quietly
def sessions(manager: BackgroundTasks, typed: str) -> Iterator[Item]:
    """The beginnings of the sessions' ids, the newest first."""
    if _is_ready(manager):
        for session_id, path in manager.store.sessions.beginning(typed, AT_MOST):
            short = manager.store.sessions.short(session_id)
            yield CompletionItem(max(short, typed, key=len), help=legible(path))


def tasks_and_sessions(
    context: click.Context, parameter: click.Parameter, typed: str
) -> list[Item]:
    """Tasks, and sessions where the beginning of an id is typed."""
    found = tasks(context, parameter, typed)
    return found + (sessions(context, parameter, typed) if len(typed) >= ID_CHARACTERS else [])


@_quietly
def tags(manager: BackgroundTasks, typed: str) -> Iterator[Item]:
    """The tags that tasks have."""
    if _is_ready(manager):
        yield from map(CompletionItem, filter(_is_word, manager.store.tasks.tags(typed, AT_MOST)))


@_quietly
def notebooks(manager: BackgroundTasks, typed: str) -> Iterator[Item]:
    """The file names of the notebooks that have tasks."""
    if _is_ready(manager):
        names = {each.path.rpartition("/")[2] for each in manager.store.sessions.notebooks()}
        found = [name for name in sorted(names) if name.startswith(typed) and _is_word(name)]
        yield from map(CompletionItem, found[:AT_MOST])


@_quietly
def settings(manager: BackgroundTasks, typed: str) -> Iterator[Item]:
    """The names of the settings."""
    for setting in manager.settings():
        if setting.name.startswith(typed):
            yield CompletionItem(setting.name, help=setting.help)


@_quietly
def variables(manager: BackgroundTasks, typed: str) -> Iterator[Item]:
    """The notebook's variables, after those that are typed already: ``a,b``."""
    before, comma, begun = typed.rpartition(",")
    for name in manager.shell.user_ns if manager.shell is not None else ():
        if name.startswith(begun) and (begun or not name.startswith("_")):
            yield CompletionItem(f"{before}{comma}{name}")


def folders(_context: Any, _parameter: Any, typed: str) -> list[Item]:
    """Folders, which whoever asks finds by himself."""
    return [CompletionItem(typed, type="dir")]


def files(_context: Any, _parameter: Any, typed: str) -> list[Item]:
    """Files, likewise."""
    return [CompletionItem(typed, type="file")]
