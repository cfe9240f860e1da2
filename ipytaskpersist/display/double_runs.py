"""Say that a cell runs twice: since when the earlier run has gone on, and how to end either."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from html import escape

from ipytaskpersist.base.legible import legible
from ipytaskpersist.base.records import TaskRecord, TaskState
from ipytaskpersist.text import formatting

LINE_CHARACTERS = 60


def in_words(task: TaskRecord, earlier: Sequence[TaskRecord], now: datetime) -> str:
    """Return one line for a terminal; empty if no earlier run of the cell still runs."""
    if not earlier:
        return ""
    first = earlier[0]
    since = formatting.clock(first.started_at or first.created_at, now)
    return legible(
        f"this cell now runs {_times(earlier)}: task {first.label} has run since {since}"
        f"{_where(first)}; %bg_cancel {first.number} ends it, "
        f"%bg_cancel {task.number} ends this one"
    )


def as_html(task: TaskRecord, earlier: Sequence[TaskRecord]) -> str:
    """Return the strip at the top of the card; empty if no earlier run of the cell still runs."""
    if not earlier:
        return ""
    first = earlier[0]
    since = formatting.utc_clock(first.started_at or first.created_at)
    # In a copy of the notebook, the number may be another task's.
    ways = (
        f"<code>%bg_cancel {escape(first.id)}</code> ends it, "
        f"<code>%bg_cancel {escape(task.id)}</code> ends this one."
    )
    colour = formatting.STATE_STYLES[TaskState.INTERRUPTED].colour
    return (
        '<div role="status" style="padding:6px 12px;background:rgba(214,150,20,.13);'
        f'border-bottom:1px solid {formatting.EDGE};overflow-wrap:anywhere">'
        f'<b><span aria-hidden="true" style="color:{colour}">⚠ </span>'
        f"This cell now runs {_times(earlier)}.</b> "
        f"Task <bdi>{escape(legible(first.label))}</bdi> has run since {since}"
        f"<bdi>{escape(legible(_where(first)))}</bdi>. {ways}</div>"
    )


def _times(earlier: Sequence[TaskRecord]) -> str:
    return "twice" if len(earlier) == 1 else f"{len(earlier) + 1} times"


def _where(task: TaskRecord) -> str:
    """Return how far a task has come: its progress, else its last line."""
    if task.progress is not None:
        return f" and is at {formatting.how_far(task.progress)}"
    line = formatting.shorten(task.last_line or "", LINE_CHARACTERS)
    return f" and is at “{line}”" if line else ""


def attached(task: TaskRecord, source: str, now: datetime) -> str:
    """Return the line that says that nothing was started.

    The cell's task still runs, or the task of this key is known already.
    """
    if task.state.is_final:
        state = task.state.value
        return legible(f"nothing was started: task {task.label} was launched before: {state}")
    since = formatting.clock(task.started_at or task.created_at, now)
    text = f"nothing was started: task {task.label} of this cell has run since {since}"
    if task.source != source:
        text += ", with an earlier text of the cell; --if-running replace runs this one instead"
    return legible(text)


def replaced(task: TaskRecord, now: TaskRecord) -> str:
    """Return the line about a task that was to end before another one was launched."""
    if now.state.is_final:
        return legible(f"task {task.label} of this cell: {now.state.value}, to be replaced")
    return legible(f"task {task.label} of this cell was to be replaced, but has not ended yet")
