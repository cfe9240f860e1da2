"""Completion of tasks, sessions, tags and other arguments, for Tab everywhere.

Command parameters refer to these functions, as click expects; a shell and IPython ask the commands.
Nothing here raises, prints, changes anything, or reads more than a little.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import click
from click.shell_completion import CompletionItem

from ipytaskpersist.base.legible import legible
from ipytaskpersist.commands.surfaces import Surface
from ipytaskpersist.session.manager import BackgroundTasks
from ipytaskpersist.store.tasks import TaskName

AT_MOST = 50
ID_CHARACTERS = 2
"""Length from which ids are offered: nothing else begins like that by chance."""

Item = CompletionItem[str]
Complete = Callable[[click.Context, click.Parameter, str], list[Item]]


def _quietly(function: Callable[[BackgroundTasks, str], Iterator[Item]]) -> Complete:
    """Adapt a function of the manager and the typed text to click. Errors give no completions."""

    @wraps(function)
    def complete(context: click.Context, _parameter: click.Parameter, typed: str) -> list[Item]:
        try:
            surface = context.find_object(Surface)
            return [] if surface is None else [*function(surface.manager, typed)]
        except Exception:  # A key press must not raise; the command will report it.
            return []

    return complete


def _is_ready(manager: BackgroundTasks) -> bool:
    return manager.store.exists and manager.store.is_current


@_quietly
def tasks(manager: BackgroundTasks, typed: str) -> Iterator[Item]:
    """Complete this notebook's tasks: names and numbers, newest first, and ids."""
    key = manager.session.notebook_key() if _is_ready(manager) else None
    if key is None:
        return
    found = manager.store.tasks.named(key, typed, AT_MOST)
    # A name means the latest task that has it, so insert the latest last.
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
    """Return whether typing the name refers to the task."""
    return bool(name) and name.isprintable() and not name.startswith("-")


@_quietly
def groups(manager: BackgroundTasks, typed: str) -> Iterator[Item]:
    """Complete the names of groups."""
    if _is_ready(manager):
        for group in manager.queueing.groups():
            if group.name.startswith(typed):
                yield CompletionItem(group.name, help=f"{group.running} run, {group.pending} wait")


@_quietly
def places(manager: BackgroundTasks, typed: str) -> Iterator[Item]:
    """Complete the names of places."""
    for name, place in manager.places.items():
        if name.startswith(typed):
            yield CompletionItem(name, help=str(place.get("kind", "")))


@_quietly
def sessions(manager: BackgroundTasks, typed: str) -> Iterator[Item]:
    """Complete session ids, newest session first."""
    if _is_ready(manager):
        for session_id, path in manager.store.sessions.beginning(typed, AT_MOST):
            short = manager.store.sessions.short(session_id)
            yield CompletionItem(max(short, typed, key=len), help=legible(path))


def tasks_and_sessions(
    context: click.Context, parameter: click.Parameter, typed: str
) -> list[Item]:
    """Complete tasks, and sessions once the beginning of an id is typed."""
    found = tasks(context, parameter, typed)
    return found + (sessions(context, parameter, typed) if len(typed) >= ID_CHARACTERS else [])


@_quietly
def tags(manager: BackgroundTasks, typed: str) -> Iterator[Item]:
    """Complete the tags in use."""
    if _is_ready(manager):
        yield from map(CompletionItem, filter(_is_word, manager.store.tasks.tags(typed, AT_MOST)))


def task_and_tags(context: click.Context, parameter: click.Parameter, typed: str) -> list[Item]:
    """Complete a task, and after it tags."""
    given = context.params.get(parameter.name or "")
    return (tags if given else tasks)(context, parameter, typed)


@_quietly
def notebooks(manager: BackgroundTasks, typed: str) -> Iterator[Item]:
    """Complete the file names of notebooks that have tasks."""
    if _is_ready(manager):
        names = {each.path.rpartition("/")[2] for each in manager.store.sessions.notebooks()}
        found = [name for name in sorted(names) if name.startswith(typed) and _is_word(name)]
        yield from map(CompletionItem, found[:AT_MOST])


@_quietly
def settings(manager: BackgroundTasks, typed: str) -> Iterator[Item]:
    """Complete the names of settings."""
    for setting in manager.settings():
        if setting.name.startswith(typed):
            yield CompletionItem(setting.name, help=setting.help)


@_quietly
def variables(manager: BackgroundTasks, typed: str) -> Iterator[Item]:
    """Complete the notebook's variables, after those that are already typed: ``a,b``."""
    before, comma, begun = typed.rpartition(",")
    for name in manager.shell.user_ns if manager.shell is not None else ():
        if name.startswith(begun) and (begun or not name.startswith("_")):
            yield CompletionItem(f"{before}{comma}{name}")


def folders(_context: Any, _parameter: Any, typed: str) -> list[Item]:
    """Complete folders; the caller looks them up."""
    return [CompletionItem(typed, type="dir")]


def files(_context: Any, _parameter: Any, typed: str) -> list[Item]:
    """Complete files; the caller looks them up."""
    return [CompletionItem(typed, type="file")]
