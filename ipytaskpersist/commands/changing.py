"""The verbs that wait for tasks and change them: wait, cancel, clear, delete."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import click

from ipytaskpersist.base.records import TaskRecord, TaskState
from ipytaskpersist.commands import completion
from ipytaskpersist.commands.definition import (
    Seconds,
    refuse_together,
    several,
    surface_and_manager,
    verbs,
    yes,
)
from ipytaskpersist.commands.surfaces import Surface, stopped_by_interrupt
from ipytaskpersist.errors import InvalidRequest, TaskFailed, TaskNotDone
from ipytaskpersist.session import results
from ipytaskpersist.session.finding import find_session
from ipytaskpersist.session.manager import BackgroundTasks
from ipytaskpersist.store.tasks import Selection
from ipytaskpersist.text import formatting


@verbs.command()
@several
@click.option("--timeout", type=Seconds(min=0), metavar="S", help="At most S seconds.")
@click.option("--all", "every_task", is_flag=True, help="All live tasks of this notebook.")
@click.option("--check", is_flag=True, help="An error when a task did not complete.")
@surface_and_manager
def wait(
    surface: Surface,
    manager: BackgroundTasks,
    refs: Sequence[str],
    every_task: bool,
    timeout: float | None,
    check: bool,
) -> None:
    """Wait until tasks have ended. An interrupt ends the waiting, not the task."""
    refuse_together({"--all": every_task, "references": bool(refs)})
    if every_task:  # not tomorrow's runs of schedules
        tasks = [task for task in _live(manager) if not task.is_next_run]
    else:
        tasks = manager.tasks.find_live(refs)
    if not tasks:
        click.echo("nothing to wait for")
        return
    waiting = surface.waiting()
    names = ", ".join(task.label for task in tasks)
    ended: list[TaskRecord] = []
    try:
        with stopped_by_interrupt(f"no longer waiting; {names} runs on"):
            ended = manager.waiting.wait(tasks, timeout, waiting.show)
    finally:
        waiting.close()
    surface.ends_shown(ended)
    late = [task for task in ended if not task.state.is_final]
    if late and (check or surface.has_exit_status):
        labels = ", ".join(task.label for task in late)
        raise TaskNotDone(f"still running after {timeout:g} s: {labels}")
    failed = [task for task in ended if task.state.is_final and task.exit_code != 0]
    if failed and check:
        message = str(results.failure(failed[0], []))
        if surface.is_ipython:
            raise TaskFailed(message)
        click.echo(surface.in_words(message), err=True)
    surface.exit(_exit_status(failed[0]) if failed else 0 if ended else 130)


def _live(manager: BackgroundTasks) -> list[TaskRecord]:
    live = (TaskState.PENDING, TaskState.RUNNING)
    return manager.tasks.select(Selection(manager.session.notebook_key() or -1, live))


def _exit_status(task: TaskRecord) -> int:
    """Return a task's exit code as a shell does: 128 plus a signal's number, 1 if there is none."""
    code = 1 if task.exit_code is None else task.exit_code
    return 128 - code if code < 0 else code


@verbs.command()
@several
@click.option("--all", "every_task", is_flag=True, help="All live tasks of this notebook.")
@yes
@surface_and_manager
def cancel(
    surface: Surface, manager: BackgroundTasks, refs: Sequence[str], every_task: bool, yes: bool
) -> None:
    """Cancel tasks. A process is killed if need be; a thread in a C call ends when it returns."""
    refuse_together({"--all": every_task, "references": bool(refs)})
    tasks = _live(manager) if every_task else manager.tasks.find_live(refs)
    _confirm_others(surface, manager, tasks, "Cancel", yes)
    asked = [task for task in tasks if manager.changes.cancel(task)]
    left = {task.id: manager.changes.end_left(task) for task in tasks if task not in asked}
    current = {task.id: task for task in manager.waiting.wait(asked, timeout_s=1.0)}
    for task in tasks:
        said = _cancelled(task, current.get(task.id), left.get(task.id, 0))
        click.echo(f"{said}{_of_schedule(manager, current.get(task.id, task))}")
    surface.ends_shown(current.values())
    if not tasks:
        click.echo("nothing to cancel")


def _cancelled(task: TaskRecord, now: TaskRecord | None, left: int) -> str:
    if now is None:
        return formatting.had_ended(task, left)
    if now.state.is_final:
        return f"task {task.label}: {now.state.value}"
    if now.runner == "process":
        return f"task {task.label}: was told to end; what is left after the grace will be killed"
    return (
        f"task {task.label}: cancellation requested; it runs on until the call that it is in "
        "returns, because a thread cannot be stopped inside C code, or until its code lets "
        "TaskCancelled through"
    )


def _of_schedule(manager: BackgroundTasks, task: TaskRecord) -> str:
    """Return what the cancellation of a task means for its schedule; empty without one."""
    following = None if task.archive else manager.store.tasks.next_run(task)
    if following is not None and following.schedule is not None:
        due_at = datetime.fromtimestamp(following.schedule.due_at, UTC)
        return (
            f"; task {following.label} is still due at {formatting.moment(due_at)}; "
            f"%bg_cancel {following.number} ends the schedule"
        )
    if task.schedule is not None and task.started_at is None and task.state.is_final:
        return f", and so its schedule ends ({formatting.schedule(task)})"
    return ""


def _confirm_others(
    surface: Surface, manager: BackgroundTasks, tasks: Sequence[TaskRecord], verb: str, yes: bool
) -> None:
    others = [task for task in tasks if not manager.tasks.is_own(task)]
    if others and not yes:
        ids = ", ".join(task.id for task in others)
        places = ", ".join(sorted({formatting.notebook_name(task.notebook) for task in others}))
        surface.confirm(
            f"{verb} {ids} of another notebook ({places})?",
            f"{ids} belongs to another notebook ({places}); add --yes to {verb.lower()} it",
        )


@verbs.command()
@surface_and_manager
def clear(surface: Surface, manager: BackgroundTasks) -> None:
    """Cancel this session's running tasks and take ended ones off the list. Deletes nothing."""
    cancelled, cleared = manager.changes.clear()
    stopped = f"cancelled {cancelled}, " if cancelled else ""
    shows = surface.in_words("%bg_list --cleared")
    click.echo(f"{stopped}took {cleared} off the list; {shows} still shows them")


@verbs.command()
@several
@click.option(
    "--session", metavar="ID", shell_complete=completion.sessions,
    help="A session with all its tasks instead.",
)  # fmt: skip
@yes
@surface_and_manager
def delete(
    surface: Surface, manager: BackgroundTasks, refs: Sequence[str], session: str | None, yes: bool
) -> None:
    """Delete ended tasks for good, with their outputs and results."""
    refuse_together({"--session": session is not None, "references": bool(refs)})
    if session is not None:
        _delete_session(surface, manager, session, yes)
        return
    if not refs:
        raise InvalidRequest("which task? delete takes its number, name or id: %bg_delete 3")
    tasks = manager.tasks.find_all(refs)
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
    manager.changes.delete(tasks)
    click.echo(f"deleted {labels}")


def _delete_session(surface: Surface, manager: BackgroundTasks, reference: str, yes: bool) -> None:
    manager.runners.reconcile()
    session = find_session(manager.store, reference)
    tasks = manager.tasks.of_session(session)
    live = [task.label for task in tasks if not task.state.is_final]
    short = manager.store.sessions.short(session.id)
    if live:
        raise InvalidRequest(
            f"session {short} has tasks that have not ended ({', '.join(live)}); cancel them first"
        )
    active_at = max([session.started_at, *(task.ended_at or task.created_at for task in tasks)])
    count = formatting.counted(len(tasks), "task")
    about = f"{count}, last active {formatting.clock(active_at, formatting.utc_now())}"
    if not yes:
        hint = f"add --yes to delete session {short} ({about}) for good"
        surface.confirm(f"Delete session {short}? ({about})", hint)
    manager.changes.delete_session(session)
    kept = "" if session.ended_at else "; the session itself is still active"
    click.echo(f"deleted session {short} with {count}{kept}")
