"""Tasks as the panel's page receives them: plain values, and text without control characters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ipytaskpersist.base.legible import legible
from ipytaskpersist.base.records import SessionRecord, TaskRecord, TaskState
from ipytaskpersist.text import formatting

Row = dict[str, Any]
TEXT_CHARACTERS = 240


def row_of(task: TaskRecord, own_notebook: int | None, start: str = "") -> Row:
    """Return the task as one row. Times are seconds since the epoch.

    `start` says when it will probably start, if that is known: ``in about 12:30``.
    """
    progress = None if task.state.is_final else task.progress
    return {
        "id": task.id,
        "number": task.number,
        "name": text(task.name),
        "own": task.notebook_key == own_notebook,
        "notebook": text(formatting.notebook_name(task.notebook)),
        "state": task.state.value,
        "glyph": formatting.STATE_STYLES[task.state].glyph,
        "is_live": not task.state.is_final,
        "created": task.created_at.timestamp(),
        "started": task.started_at.timestamp() if task.started_at else None,
        "ended": task.ended_at.timestamp() if task.ended_at else None,
        "line": text(" · ".join(filter(None, (last_line(task), start)))),
        "fraction": progress.fraction if progress else None,
        "counts": progress is not None,
        "asked": task.cancel_requested_at is not None,
        "action": action(task),
        "pause": pausing(task),
        "again": task.provenance.get("rerun_as"),
    }


def text(raw: str) -> str:
    """Return one line without characters that control a terminal or reorder text."""
    return formatting.shorten(legible(raw.replace("\n", " ")), TEXT_CHARACTERS)


def last_line(task: TaskRecord) -> str:
    """Return why the task failed, or else its last printed line."""
    if task.state is TaskState.FAILED:
        return task.reason or task.last_line or ""
    if task.paused_at is not None:
        return formatting.held_up(task)
    progress = None if task.state.is_final else task.progress
    said = progress.drawn or progress.text if progress else ""
    return task.last_line or said or formatting.ending(task)


def action(task: TaskRecord) -> str | None:
    """Return the verb for its button; None if it has no button."""
    if not task.state.is_final:
        return "cancel"
    if task.is_imported or (task.is_call and task.runner == "thread"):
        return None
    if task.can_go_on:
        return "resume"
    if task.state is TaskState.INTERRUPTED and "rerun_as" not in task.provenance:
        return "resume"
    return "rerun"


def pausing(task: TaskRecord) -> str | None:
    """Return the verb for the button that pauses a task or lets it go on; None for no button."""
    if task.state is not TaskState.RUNNING or task.runner == "thread":
        return None
    return "continue" if task.pause_requested else "pause"


def ends_of_sessions(sessions: Iterable[SessionRecord]) -> list[dict[str, Any]]:
    """Return when and how sessions ended, for the timeline."""
    return [
        {
            "at": session.ended_at.timestamp(),
            "why": text(session.end_reason or ""),
            "notebook": text(formatting.notebook_name(session.path)),
        }
        for session in sessions
        if session.ended_at is not None
    ]
