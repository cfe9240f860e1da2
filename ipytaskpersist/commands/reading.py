"""The verbs that show what is known about tasks: list, output, show, result."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click

from ipytaskpersist.base.records import TaskRecord, TaskState
from ipytaskpersist.commands import completion
from ipytaskpersist.commands.definition import (
    as_json,
    one,
    one_reference,
    print_json,
    surface_and_manager,
    verbs,
)
from ipytaskpersist.commands.surfaces import Surface
from ipytaskpersist.display.listing import Listing, produced_by
from ipytaskpersist.errors import InvalidRequest, TaskNotDone
from ipytaskpersist.session import finding, results
from ipytaskpersist.session.manager import BackgroundTasks
from ipytaskpersist.store.tasks import Selection
from ipytaskpersist.text import formatting

TABLE_LIMIT = 30
FOLLOW_S = 0.02
RECONCILE_S = 1.0
INTERRUPTED = 130
"""Exit status of a program ended by Ctrl-C."""


@verbs.command("list")
@click.option("--all", "every_notebook", is_flag=True, help="The tasks of every notebook.")
@click.option(
    "--state", "states", multiple=True, type=click.Choice([state.value for state in TaskState]),
    help="Only tasks in this state. May be given several times.",
)  # fmt: skip
@click.option(
    "--session", metavar="ID", shell_complete=completion.sessions,
    help="Only this session's; 8 characters are enough.",
)  # fmt: skip
@click.option(
    "--tag",
    "tags",
    multiple=True,
    metavar="TAG",
    shell_complete=completion.tags,
    help="Only tasks with this tag. May be given several times, for those with all of them.",
)
@click.option("--archived", is_flag=True, help="The tasks in the archives instead.")
@click.option("--cleared", is_flag=True, help="Also those that clear took off the list.")
@click.option(
    "--limit", type=click.IntRange(min=1), metavar="N",
    help=f"The newest N, and all that live. Default: {TABLE_LIMIT} in a table, all with --json.",
)  # fmt: skip
@as_json
@surface_and_manager
def list_(
    surface: Surface,
    manager: BackgroundTasks,
    every_notebook: bool,
    states: Sequence[str],
    session: str | None,
    tags: Sequence[str],
    archived: bool,
    cleared: bool,
    limit: int | None,
    as_json: bool,
) -> None:
    """List this notebook's background tasks: what is live first, then the newest."""
    every_notebook = every_notebook or bool(session)
    selection = Selection(
        notebook_key=None if every_notebook else manager.session.notebook_key() or -1,
        states=[TaskState(state) for state in states],
        session_prefix=finding.find_session(manager.store, session).id if session else "",
        cleared=cleared or archived or bool(session),
        tags=tags,
        limit=limit or (None if as_json else TABLE_LIMIT),
    )
    tasks = (
        manager.tasks.select_archived(selection)
        if archived
        else manager.tasks.select_with_live(selection)
    )
    now = formatting.utc_now()
    if as_json:
        print_json({"tasks": [task.as_json(now) for task in tasks], "count": len(tasks)})
        return
    total = len(tasks)
    if selection.limit is not None and total >= selection.limit:
        total = (manager.archives if archived else manager.store.tasks).count(selection)
    has_archives, produced = bool(manager.directory.months()), produced_by(manager, tasks)
    expected = manager.queueing.expected(tasks)
    surface.listing(
        Listing(tasks, total, every_notebook, now, archived, has_archives, produced, expected)
    )
    surface.ends_shown(tasks)


@verbs.command()
@one_reference(completion.tasks_and_sessions)
@as_json
@surface_and_manager
def show(surface: Surface, manager: BackgroundTasks, ref: str | None, as_json: bool) -> None:
    """Show everything known about one task, or about the session whose id begins so."""
    from ipytaskpersist.display import task_details

    manager.runners.reconcile()
    session = finding.session_meant(manager.store, ref)
    what = manager.tasks.find(ref) if session is None else session
    if as_json:
        print_json(task_details.as_document(manager, what))
    else:
        click.echo(task_details.as_text(manager, what))
        if isinstance(what, TaskRecord):
            surface.ends_shown([what])


@verbs.command()
@one
@as_json
@surface_and_manager
def result(surface: Surface, manager: BackgroundTasks, ref: str | None, as_json: bool) -> Any:
    """Show the value of a task's last expression; of one that was tried again, the last try's."""
    task = manager.tasks.last_try(manager.tasks.find(ref))
    if not task.state.is_final:
        raise TaskNotDone(
            f"task {task.label} is {task.state.value}, so it has no result yet; "
            f"%bg_wait {task.number} waits for it"
        )
    if task.state is not TaskState.COMPLETED:
        raise results.failure(task, [])
    if task.kind == "shell":
        raise InvalidRequest(
            f"task {task.label} is a shell command, which has no result; "
            f"%bg_output {task.number} shows what it printed"
        )
    value = manager.results.value(task) if surface.loads_values else None
    if as_json:
        kept = manager.tasks.store_of(task).results.get(task.key)
        known = {"value": _json_or_none(value)} if surface.loads_values else {}
        print_json(
            {
                "id": task.id,
                "number": task.number,
                "name": task.name or None,
                **known,
                "text": kept.text if kept else None,
            }
        )
        return None
    return surface.value(value)


def _json_or_none(value: Any) -> Any:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return None
    return value
