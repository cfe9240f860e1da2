"""The verbs about the queue and about pauses: groups, group, move, pause, continue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from ipytaskpersist.base.legible import legible
from ipytaskpersist.base.records import LIVE_STATES, TaskRecord, TaskState
from ipytaskpersist.commands import completion
from ipytaskpersist.commands.definition import (
    as_json,
    print_json,
    refuse_together,
    several,
    surface_and_manager,
    verbs,
)
from ipytaskpersist.commands.surfaces import Surface
from ipytaskpersist.errors import InvalidRequest
from ipytaskpersist.session.manager import BackgroundTasks
from ipytaskpersist.session.requests import THREAD
from ipytaskpersist.store.tasks import Selection


@verbs.command()
@as_json
@surface_and_manager
def groups(surface: Surface, manager: BackgroundTasks, as_json: bool) -> None:
    """List the groups: how many of their tasks may run, do run, and wait, and for what."""
    from ipytaskpersist.display.groups import as_document, group_tables
    from ipytaskpersist.display.tables import render

    manager.runners.reconcile()
    found = manager.queueing.overview(manager.queueing.groups())
    if as_json:
        print_json({"groups": [as_document(each) for each in found]})
    else:
        click.echo(render(*group_tables(found), plain=surface.is_ipython))


@verbs.command()
@click.argument("name", metavar="NAME", shell_complete=completion.groups)
@click.option(
    "--width", type=click.IntRange(min=1, max=10**6), metavar="N",
    help="At most N of its tasks run at once. Makes the group if there is none.",
)  # fmt: skip
@click.option("--unlimited", is_flag=True, help="Any number of its tasks run at once.")
@click.option("--pause", is_flag=True, help="None of its tasks starts; those that run go on.")
@click.option("--continue", "go_on", is_flag=True, help="Its tasks start again.")
@as_json
@surface_and_manager
def group(
    surface: Surface,
    manager: BackgroundTasks,
    name: str,
    width: int | None,
    unlimited: bool,
    pause: bool,
    go_on: bool,
    as_json: bool,
) -> None:
    """Show a group of tasks that share a width, or change it: %bg_group gpu --width 2."""
    from ipytaskpersist.display.groups import as_document, group_tables
    from ipytaskpersist.display.tables import render

    refuse_together({"--width": width is not None, "--unlimited": unlimited})
    refuse_together({"--pause": pause, "--continue": go_on})
    manager.runners.reconcile()
    paused = True if pause else False if go_on else None
    if width is None and not unlimited and paused is None:
        found = manager.queueing.group(name)
    else:
        found = manager.queueing.change_group(name, width, unlimited=unlimited, paused=paused)
    (shown,) = manager.queueing.overview([found])
    if as_json:
        print_json(as_document(shown))
    else:
        click.echo(render(*group_tables([shown]), plain=surface.is_ipython))


@verbs.command()
@several
@click.option("--first", is_flag=True, help="Before all others of their groups.")
@click.option("--last", is_flag=True, help="Behind all others.")
@click.option(
    "--before", metavar="REF", shell_complete=completion.tasks,
    help="To just before this task of the same group.",
)  # fmt: skip
@surface_and_manager
def move(
    surface: Surface,
    manager: BackgroundTasks,
    refs: Sequence[str],
    first: bool,
    last: bool,
    before: str | None,
) -> None:
    """Change when waiting tasks start: %bg_move 7 --first."""
    where = {"--first": first, "--last": last, "--before": before is not None}
    refuse_together(where)
    if not any(where.values()):
        raise InvalidRequest("where to? give --first, --last or --before REF")
    tasks = manager.tasks.find_live(refs)
    if before is not None:
        other = manager.tasks.find(before, live=True)
        for task in tasks:
            manager.queueing.move_before(task, other)
    else:
        manager.queueing.move(tasks, first=first)
    for task in map(manager.tasks.refresh, tasks):
        ahead = manager.store.queue.ahead(task.key)
        place = "first" if not ahead else f"behind {ahead}"
        click.echo(f"task {task.label} is now {place} in group {legible(task.group)}")


chosen = (
    click.option("--all", "every_task", is_flag=True, help="All running tasks of this notebook."),
    click.option(
        "--group", "in_group", metavar="NAME", shell_complete=completion.groups,
        help="All running tasks of a group, of whatever notebook.",
    ),
)  # fmt: skip


def _with_choice(command: Any) -> Any:
    for option in reversed(chosen):
        command = option(command)
    return command


@verbs.command()
@several
@_with_choice
@click.option("--keep-slot", is_flag=True, help="No other task of its group starts instead.")
@surface_and_manager
def pause(
    surface: Surface,
    manager: BackgroundTasks,
    refs: Sequence[str],
    every_task: bool,
    in_group: str | None,
    keep_slot: bool,
) -> None:
    """Stop all processes of tasks until %bg_continue; their time limits stand still."""
    is_choice = every_task or in_group is not None
    for task in _chosen(manager, refs, every_task, in_group):
        if is_choice and (task.runner == THREAD or task.state is TaskState.PENDING):
            continue
        is_paused = manager.queueing.pause(task, keep_slot=keep_slot)
        said = "is paused" if is_paused else f"had ended already ({task.state.value})"
        click.echo(f"task {task.label} {said}")


@verbs.command("continue")
@several
@_with_choice
@surface_and_manager
def go_on(
    surface: Surface,
    manager: BackgroundTasks,
    refs: Sequence[str],
    every_task: bool,
    in_group: str | None,
) -> None:
    """Let paused tasks go on, as soon as their groups have room."""
    for task in _chosen(manager, refs, every_task, in_group):
        if task.paused_at is None and not task.pause_requested:
            if not (every_task or in_group):
                click.echo(f"task {task.label} is not paused ({task.state.value})")
        elif manager.queueing.go_on(task):
            click.echo(f"task {task.label} goes on")


def _chosen(
    manager: BackgroundTasks, refs: Sequence[str], every_task: bool, in_group: str | None
) -> list[TaskRecord]:
    """Return the tasks that references or flags mean."""
    refuse_together(
        {"--all": every_task, "--group": in_group is not None, "references": bool(refs)}
    )
    if not every_task and in_group is None:
        return manager.tasks.find_live(refs)
    manager.runners.reconcile()
    if in_group is not None:
        group = manager.queueing.group(in_group)
        return [
            task
            for task in manager.tasks.select(Selection(states=LIVE_STATES))
            if task.group == group.name
        ]
    key = manager.session.notebook_key() or -1
    return manager.tasks.select(Selection(key, LIVE_STATES))
