"""The verbs that show what is known about tasks: list, output, show, result."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from ipytaskpersist.base import disk_errors
from ipytaskpersist.base.legible import legible
from ipytaskpersist.base.paths import typed_path
from ipytaskpersist.base.records import STREAM_KINDS, OutputKind, TaskRecord, TaskState
from ipytaskpersist.base.widget_marks import is_about_widget, is_kept_widget
from ipytaskpersist.commands import completion
from ipytaskpersist.commands.definition import (
    as_json,
    one,
    print_json,
    refuse_together,
    surface_and_manager,
    verbs,
)
from ipytaskpersist.commands.surfaces import NotebookSurface, Surface
from ipytaskpersist.display.listing import Listing, produced_by
from ipytaskpersist.errors import InvalidRequest, TaskNotDone
from ipytaskpersist.output import replay
from ipytaskpersist.output.replay import Output
from ipytaskpersist.session import finding, results
from ipytaskpersist.session.manager import BackgroundTasks
from ipytaskpersist.store.file.database import CommitWatch
from ipytaskpersist.store.tasks import Selection
from ipytaskpersist.text import formatting
from ipytaskpersist.text.sanitized_html import harmless_output

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
    surface.listing(Listing(tasks, total, every_notebook, now, archived, has_archives, produced))
    surface.ends_shown(tasks)


@verbs.command()
@one
@click.option("--stdout", is_flag=True, help="Only its standard output.")
@click.option("--stderr", is_flag=True, help="Only its standard error.")
@click.option("--raw", is_flag=True, help="The bytes of its streams as they were written.")
@click.option("--head", type=click.IntRange(min=0), metavar="N", help="Only the first N lines.")
@click.option("--tail", type=click.IntRange(min=0), metavar="N", help="Only the last N lines.")
@click.option("--follow", is_flag=True, help="Go on until the task ends; interrupt to leave.")
@click.option(
    "--save", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
    help="Write its streams to a file instead, as they were written.",
)  # fmt: skip
@as_json
@surface_and_manager
def output(
    surface: Surface,
    manager: BackgroundTasks,
    ref: str | None,
    stdout: bool,
    stderr: bool,
    raw: bool,
    head: int | None,
    tail: int | None,
    follow: bool,
    save: Path | None,
    as_json: bool,
) -> None:
    """Show what a task printed, displayed and raised, in order."""
    refuse_together({"--head": head is not None, "--tail": tail is not None, "--follow": follow})
    ways = {"--follow": follow, "--save": save is not None, "--raw": raw, "--json": as_json}
    refuse_together(ways)
    find = manager.tasks.find_live if follow else manager.tasks.find_all
    (task,) = find([] if ref is None else [ref])
    chosen = {OutputKind.STDOUT: stdout, OutputKind.STDERR: stderr}
    kinds = tuple(kind for kind, wanted in chosen.items() if wanted)
    if follow:
        _follow(surface, manager, task, kinds)
    elif save is not None or raw:
        cut = replay.Cut(kinds or STREAM_KINDS, head, tail)
        pieces = replay.stream_bytes(manager.tasks.store_of(task), task.key, cut)
        if save is None:
            surface.raw(pieces)
        else:
            _save(task, pieces, save)
    else:
        cut = replay.Cut(kinds, head, tail)
        found = replay.of_task(manager.tasks.store_of(task), task.key, cut)
        if task.is_imported and not as_json:
            found = map(harmless_output, replay.beside(found))
        _show(surface, found, as_json)


def _show(surface: Surface, chosen: Iterable[Output], as_json: bool) -> None:
    if as_json:
        print_json(replay.as_nbformat(replay.merge_streams(chosen)))
        return
    try:
        for each in chosen:
            surface.output(each)
    finally:
        surface.end_of_output()


def _save(task: TaskRecord, pieces: Iterable[bytes], path: Path) -> None:
    try:
        with typed_path(path).open("wb") as file:
            size = sum(file.write(piece) for piece in pieces)
    except OSError as error:
        raise disk_errors.refused(str(path), error, typed_path(path)) from error
    click.echo(legible(f"task {task.label}: {size:,} bytes written to {path}"))


def _follow(
    surface: Surface, manager: BackgroundTasks, task: TaskRecord, kinds: Sequence[OutputKind]
) -> None:
    try:
        _follow_to_the_end(surface, manager, task, kinds)
    except KeyboardInterrupt:
        surface.end_of_output()
        named = formatting.reference(task, not manager.tasks.is_own(task))
        back = surface.in_words(f"%bg_output {named} --follow")
        print(
            f"\nno longer following; task {task.label} runs on. {back} comes back to it",
            file=sys.stderr,
        )
        surface.exit(INTERRUPTED)
    finally:
        surface.end_of_output()


def _follow_to_the_end(
    surface: Surface, manager: BackgroundTasks, task: TaskRecord, kinds: Sequence[OutputKind]
) -> None:
    after, commits, reconciled_at = 0, CommitWatch(manager.store.database), 0.0
    follower = replay.Follower()
    while True:
        if time.monotonic() - reconciled_at > RECONCILE_S:
            manager.runners.reconcile()
            # What this process itself writes does not change the version that it sees.
            reconciled_at = time.monotonic()
            commits.forget()
        if commits.has_news():
            task = manager.tasks.refresh(task)
            for record in manager.tasks.store_of(task).outputs.of(
                task.key, kinds=kinds, after=after
            ):
                after = record.sequence
                if is_kept_widget(record.kind, record.data) and not task.is_imported:
                    content = json.loads(record.data)
                    surface.kept(content["model"], content["data"])
                if is_about_widget(record.kind, record.data):
                    continue  # it clears more than what was shown
                piece = follower.output(record)
                piece = harmless_output(piece) if task.is_imported else piece
                _pass_on(surface, record.kind, piece)
        if task.state.is_final:
            for each in follower.finish():
                surface.output(each)
            surface.ends_shown([task])
            return
        time.sleep(FOLLOW_S)


def _pass_on(surface: Surface, kind: OutputKind, output: Output) -> None:
    if kind is OutputKind.CLEAR_OUTPUT:
        surface.clear_output(bool(output["wait"]))
    elif kind is OutputKind.UPDATE_DISPLAY_DATA and isinstance(surface, NotebookSurface):
        surface.update(output)
    else:
        surface.output(output)


@verbs.command()
@click.argument(
    "ref", required=False, metavar="[REF]", shell_complete=completion.tasks_and_sessions
)
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
    """Show the value of a task's last expression."""
    task = manager.tasks.find(ref)
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
    value = manager.results.value(task)
    if as_json:
        kept = manager.tasks.store_of(task).results.get(task.key)
        print_json(
            {
                "id": task.id,
                "number": task.number,
                "name": task.name or None,
                "value": _json_or_none(value),
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
