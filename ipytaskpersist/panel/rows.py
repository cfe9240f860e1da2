"""Tasks as the panel's page gets them: plain values, and text that steers nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ipytaskpersist import views
from ipytaskpersist.records import SessionRecord, TaskRecord, TaskState

Row = dict[str, Any]
TEXT_CHARACTERS = 240


def row_of(task: TaskRecord, own_notebook: int | None) -> Row:
    """The task as one row. Times are seconds since the epoch."""
    progress = None if task.state.is_final else task.progress
    return {
        "id": task.id,
        "number": task.number,
        "name": text(task.name),
        "own": task.notebook_key == own_notebook,
        "notebook": text(views.notebook_name(task.notebook)),
        "state": task.state.value,
        "created": task.created_at.timestamp(),
        "started": task.started_at.timestamp() if task.started_at else None,
        "ended": task.ended_at.timestamp() if task.ended_at else None,
        "line": text(last_line(task)),
        "fraction": progress.fraction if progress else None,
        "counts": progress is not None,
        "asked": task.cancel_requested_at is not None,
        "action": action(task),
        "again": task.provenance.get("rerun_as"),
    }


def text(raw: str) -> str:
    """One line in which no character steers: neither a terminal nor the order of letters."""
    return views.shorten(views.printable(raw.replace("\n", " ")), TEXT_CHARACTERS)


def last_line(task: TaskRecord) -> str:
    """What a row says of the task: why it failed, else what it printed last."""
    if task.state is TaskState.FAILED:
        return task.reason or task.last_line or ""
    said = task.progress.text if task.progress and not task.state.is_final else ""
    return task.last_line or said or views.ending(task)


def action(task: TaskRecord) -> str | None:
    """The verb that its button is for; None where there is none."""
    if not task.state.is_final:
        return "cancel"
    if task.is_imported or (task.is_call and task.runner == "thread"):
        return None
    if task.state is TaskState.INTERRUPTED and "rerun_as" not in task.provenance:
        return "resume"
    return "rerun"


def ends_of_sessions(sessions: Iterable[SessionRecord]) -> list[dict[str, Any]]:
    """When sessions ended and how, for the timeline."""
    return [
        {
            "at": session.ended_at.timestamp(),
            "why": text(session.end_reason or ""),
            "notebook": text(views.notebook_name(session.path)),
        }
        for session in sessions
        if session.ended_at is not None
    ]
