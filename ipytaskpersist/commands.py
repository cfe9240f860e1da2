"""The verbs: each defined here once, for ``%bg_VERB``, ``%bg VERB`` and ``jupyter bg VERB``.

A command parses, makes one call, and shows what came back on the surface from which it was typed.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from ipytaskpersist import outputs, views
from ipytaskpersist.errors import InvalidRequest, TaskFailed, TaskNotDone
from ipytaskpersist.handle import Task, failure
from ipytaskpersist.outputs import Output
from ipytaskpersist.records import STREAM_KINDS, OutputKind, TaskRecord, TaskState
from ipytaskpersist.store import Selection
from ipytaskpersist.surfaces import NotebookSurface, Surface, stopped_by_interrupt

HELP = {"help_option_names": ["-h", "--help"]}
COUNTED_BACK = re.compile(r"-\d+")
TABLE_LIMIT = 30
FOLLOW_S = 0.03


class Verb(click.Command):
    """A command whose arguments may be ``-1``, ``-2`` …, which click takes for options."""

    def __init__(self, *args: Any, **options: Any) -> None:
        # Not taken from the group, because ``%bg_VERB`` calls a verb without it.
        super().__init__(*args, **{**options, "context_settings": HELP})

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put what is counted back behind ``--``, where nothing is an option."""
        end = args.index("--") if "--" in args else len(args)
        with_value = {name for param in self.params for name in param.opts if _takes_value(param)}
        back: list[str] = []
        rest: list[str] = []
        for before, arg in zip(["", *args], args[:end], strict=False):
            is_reference = COUNTED_BACK.fullmatch(arg) and before not in with_value
            (back if is_reference else rest).append(arg)
        return super().parse_args(ctx, [*rest, "--", *back, *args[end + 1 :]])


def _takes_value(param: click.Parameter) -> bool:
    return isinstance(param, click.Option) and not param.is_flag


class Verbs(click.Group):
    """All verbs. Knows which one was probably meant."""

    command_class = Verb

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Find the verb, or say which is nearest."""
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], self.commands, n=1)
            meant = (
                f"did you mean '{near[0]}'?" if near else f"there are {', '.join(self.commands)}."
            )
            raise click.UsageError(f"No verb '{args[0]}'; {meant}", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=Verbs, context_settings=HELP)
def verbs() -> None:
    """Background cells that outlive their kernel."""


@click.command(context_settings=HELP)
@click.argument("name", nargs=-1)
def background(name: Sequence[str]) -> None:
    """Run a cell in the background: %%background [NAME] above its code.

    The cell runs in a thread that shares the notebook's variables, and shows a card with its
    state. The name is optional; %bg_list, %bg_output and the others take it or the number.
    %background EXPRESSION runs one line.
    """


surface_and_manager = click.make_pass_decorator(Surface)
as_json = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
yes = click.option("--yes", is_flag=True, help="Do not ask.")
one = click.argument("ref", required=False, metavar="[REF]")
several = click.argument("refs", nargs=-1, metavar="[REF]...")


def print_json(document: Any) -> None:
    """Print one JSON document."""
    click.echo(json.dumps(document, ensure_ascii=False, indent=2))


@verbs.command("list")
@click.option("--all", "every_notebook", is_flag=True, help="The tasks of every notebook.")
@click.option(
    "--state", "states", multiple=True, type=click.Choice([state.value for state in TaskState]),
    help="Only tasks in this state. May be given several times.",
)  # fmt: skip
@click.option("--session", metavar="ID", help="Only this session's; 8 characters are enough.")
@click.option("--cleared", is_flag=True, help="Also those that clear took off the list.")
@click.option(
    "--limit", type=click.IntRange(min=1), metavar="N",
    help=f"Only the newest N. Default: {TABLE_LIMIT} in a table, all with --json.",
)  # fmt: skip
@as_json
@surface_and_manager
def list_(
    surface: Surface,
    every_notebook: bool,
    states: Sequence[str],
    session: str | None,
    cleared: bool,
    limit: int | None,
    as_json: bool,
) -> None:
    """List this notebook's background tasks, newest last."""
    manager = surface.manager
    every_notebook = every_notebook or bool(session)
    selection = Selection(
        notebook_key=None if every_notebook else manager.notebook_key() or -1,
        states=[TaskState(state) for state in states],
        session_prefix=_session_prefix(surface, session),
        cleared=cleared or bool(session),
        limit=limit or (None if as_json else TABLE_LIMIT),
    )
    tasks = manager.select(selection)
    now = views.utc_now()
    if as_json:
        print_json({"tasks": [task.as_json(now) for task in tasks], "count": len(tasks)})
        return
    full = len(tasks) == selection.limit
    total = manager.store.tasks.count(selection) if full else len(tasks)
    surface.listing(views.Listing(tasks, total, every_notebook, now))


def _session_prefix(surface: Surface, session: str | None) -> str:
    if not session:
        return ""
    store = surface.manager.store
    if store.exists and store.open().sessions.find(session):
        return session
    recent = store.sessions.select(None, 5) if store.exists else []
    known = ", ".join(known.id[:8] for known in reversed(recent)) or "none yet"
    raise InvalidRequest(f"no session '{session}'; the most recent are {known}")


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
    """Show what a task printed, displayed and raised, in the order in which it happened."""
    _refuse_together({"--head": head is not None, "--tail": tail is not None, "--follow": follow})
    ways = {"--follow": follow, "--save": save is not None, "--raw": raw, "--json": as_json}
    _refuse_together(ways)
    task = surface.manager.find(ref)
    chosen = {OutputKind.STDOUT: stdout, OutputKind.STDERR: stderr}
    kinds = tuple(kind for kind, wanted in chosen.items() if wanted)
    if follow:
        _follow(surface, task, kinds)
    elif save is not None or raw:
        cut = outputs.Cut(kinds or STREAM_KINDS, head, tail)
        pieces = outputs.stream_bytes(surface.manager.store, task.key, cut)
        if save is None:
            surface.raw(pieces)
        else:
            _save(task, pieces, save)
    else:
        cut = outputs.Cut(kinds, head, tail)
        _show(surface, outputs.of_task(surface.manager.store, task.key, cut), as_json)


def _refuse_together(given: dict[str, bool]) -> None:
    """Refuse flags of which only one makes sense."""
    if sum(given.values()) > 1:
        *names, last = given
        raise InvalidRequest(f"{', '.join(names)} and {last} exclude each other; give one of them")


def _show(surface: Surface, chosen: Iterable[Output], as_json: bool) -> None:
    if as_json:
        print_json(outputs.as_nbformat(outputs.merge_streams(chosen)))
        return
    for each in chosen:
        surface.output(each)


def _save(task: TaskRecord, pieces: Iterable[bytes], path: Path) -> None:
    try:
        with path.expanduser().open("wb") as file:
            size = sum(file.write(piece) for piece in pieces)
    except OSError as error:
        raise InvalidRequest(f"cannot write {path}: {error.strerror}") from error
    click.echo(f"task {task.label}: {size:,} bytes written to {path}")


def _follow(surface: Surface, task: TaskRecord, kinds: Sequence[OutputKind]) -> None:
    manager, after, version = surface.manager, 0, -1
    follower = outputs.Follower()
    with stopped_by_interrupt(f"\nno longer following; task {task.label} runs on"):
        while True:
            seen = manager.store.database.data_version
            manager.reconcile()
            task = manager.refresh(task)
            if seen != version or task.state.is_final:
                version = seen
                for record in manager.store.outputs.of(task.key, kinds=kinds, after=after):
                    _pass_on(surface, record.kind, follower.output(record))
                    after = record.sequence
            if task.state.is_final:
                for each in follower.finish():
                    surface.output(each)
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
@one
@as_json
@surface_and_manager
def show(surface: Surface, ref: str | None, as_json: bool) -> None:
    """Show all that is known of one task: its state history, sizes, result and source."""
    from ipytaskpersist.details import as_document, as_text

    task = surface.manager.find(ref)
    if as_json:
        print_json(as_document(surface.manager, task))
    else:
        click.echo(as_text(surface.manager, task))


@verbs.command()
@several
@click.option("--timeout", type=click.FloatRange(min=0), metavar="S", help="At most S seconds.")
@click.option("--check", is_flag=True, help="An error when a task did not complete.")
@surface_and_manager
def wait(surface: Surface, refs: Sequence[str], timeout: float | None, check: bool) -> None:
    """Wait until tasks have ended. An interrupt ends the waiting, not the task."""
    tasks = surface.manager.find_all(refs)
    waiting = surface.waiting()
    names = ", ".join(task.label for task in tasks)
    ended: list[TaskRecord] = []
    try:
        with stopped_by_interrupt(f"no longer waiting; {names} runs on"):
            ended = surface.manager.wait(tasks, timeout, waiting.show)
    finally:
        waiting.close()
    late = [task for task in ended if not task.state.is_final]
    if late and (check or not surface.is_ipython):
        labels = ", ".join(task.label for task in late)
        raise TaskNotDone(f"still running after {timeout:g} s: {labels}")
    failed = [task for task in ended if task.state.is_final and task.exit_code != 0]
    if failed and check:
        message = str(failure(failed[0], []))
        if surface.is_ipython:
            raise TaskFailed(message)
        click.echo(surface.in_words(message), err=True)
    surface.exit(_exit_status(failed[0]) if failed else 0 if ended else 130)


def _exit_status(task: TaskRecord) -> int:
    """A task's exit code as a shell gives it: 128 and the number for a signal, 1 without any."""
    code = 1 if task.exit_code is None else task.exit_code
    return 128 - code if code < 0 else code


@verbs.command()
@several
@click.option("--all", "every_task", is_flag=True, help="All live tasks of this notebook.")
@yes
@surface_and_manager
def cancel(surface: Surface, refs: Sequence[str], every_task: bool, yes: bool) -> None:
    """Cancel tasks. A thread inside a call of C code ends when that call returns."""
    manager = surface.manager
    if every_task and refs:
        raise InvalidRequest("cancel takes either --all or the tasks' references, not both")
    if every_task:
        live = (TaskState.PENDING, TaskState.RUNNING)
        tasks = manager.select(Selection(manager.notebook_key() or -1, live))
    else:
        tasks = manager.find_all(refs)
    _confirm_others(surface, tasks, "Cancel", yes)
    asked = [task for task in tasks if manager.cancel(task)]
    current = {task.key: task for task in manager.wait(asked, timeout_s=1.0)}
    for task in tasks:
        click.echo(_cancelled(task, current.get(task.key)))
    if not tasks:
        click.echo("nothing to cancel")


def _cancelled(task: TaskRecord, now: TaskRecord | None) -> str:
    if now is None:
        return f"task {task.label} had ended: {task.state.value}"
    if now.state.is_final:
        return f"task {task.label}: {now.state.value}"
    return (
        f"task {task.label}: cancellation requested; it runs on until the call that it is in "
        "returns, because a thread cannot be stopped inside C code"
    )


def _confirm_others(surface: Surface, tasks: Sequence[TaskRecord], verb: str, yes: bool) -> None:
    others = [task for task in tasks if not surface.manager.is_own(task)]
    if others and not yes:
        ids = ", ".join(task.id for task in others)
        places = ", ".join(sorted({views.notebook_name(task.notebook) for task in others}))
        surface.confirm(
            f"{verb} {ids} of another notebook ({places})?",
            f"{ids} belongs to another notebook ({places}); add --yes to {verb.lower()} it",
        )


@verbs.command()
@one
@as_json
@surface_and_manager
def result(surface: Surface, ref: str | None, as_json: bool) -> Any:
    """The value of a task's last expression."""
    manager = surface.manager
    task = manager.find(ref)
    if not task.state.is_final:
        raise TaskNotDone(
            f"task {task.label} is {task.state.value}, so it has no result yet; "
            f"%bg_wait {task.number} waits for it"
        )
    if task.state is not TaskState.COMPLETED:
        raise failure(task, [])
    value = Task(manager, task).value()
    if as_json:
        kept = manager.store.results.get(task.key)
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


@verbs.command()
@surface_and_manager
def clear(surface: Surface) -> None:
    """Cancel this session's running tasks and take ended ones off the list. Deletes nothing."""
    cancelled, cleared = surface.manager.clear()
    stopped = f"cancelled {cancelled}, " if cancelled else ""
    shows = surface.in_words("%bg_list --cleared")
    click.echo(f"{stopped}took {cleared} off the list; {shows} still shows them")


@verbs.command()
@several
@yes
@surface_and_manager
def delete(surface: Surface, refs: Sequence[str], yes: bool) -> None:
    """Delete ended tasks for good, with their outputs and results."""
    if not refs:
        raise InvalidRequest("which task? delete takes its number, name or id: %bg_delete 3")
    tasks = surface.manager.find_all(refs)
    for task in tasks:
        if not task.state.is_final:
            raise InvalidRequest(
                f"task {task.label} is {task.state.value}; cancel it first: "
                f"%bg_cancel {task.number}"
            )
    labels = ", ".join(task.label for task in tasks)
    if not yes:
        surface.confirm(
            f"Delete {labels} with all outputs?", f"add --yes to delete {labels} for good"
        )
    for task in tasks:
        surface.manager.delete(task)
    click.echo(f"deleted {labels}")


@verbs.command()
@click.option("--all", "every_notebook", is_flag=True, help="The sessions of every notebook.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the newest N.")
@as_json
@surface_and_manager
def sessions(surface: Surface, every_notebook: bool, limit: int | None, as_json: bool) -> None:
    """List this notebook's sessions, newest last."""
    from ipytaskpersist.terminal import render, session_table

    manager = surface.manager
    manager.reconcile()
    key = None if every_notebook else manager.notebook_key() or -1
    found = manager.store.sessions.select(key, limit) if manager.store.exists else []
    if as_json:
        print_json({"sessions": [*map(views.session_json, found)], "count": len(found)})
    else:
        click.echo(render(*session_table(found, views.utc_now()), plain=surface.is_ipython))


def run(arguments: Sequence[str], surface: Surface, command: click.Command = verbs) -> Any:
    """Run one command line, and return what it returns.

    Raises `BackgroundError` for what went wrong, and `click.ClickException` for what was typed
    wrong.
    """
    name = "" if command is verbs else f"_{command.name}"
    program = f"%bg{name}" if surface.is_ipython else "jupyter bg"
    words = list(arguments) or (["--help"] if command is verbs else [])
    with command.make_context(program, words, obj=surface) as context:
        return command.invoke(context)
