"""How states, times and sizes look, and lists of tasks and sessions as text and as HTML.

The HTML has inline styles only: that is what an untrusted notebook leaves standing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape

from ipytaskpersist import safetext
from ipytaskpersist.records import Progress, SessionRecord, TaskRecord, TaskState


@dataclass(frozen=True, slots=True)
class Look:
    """How a state looks. Never by its colour alone."""

    glyph: str
    colour: str
    """For HTML."""
    style: str
    """For a terminal, in rich's words."""


LOOKS = {
    TaskState.PENDING: Look("◌", "#767c85", "bright_black"),
    TaskState.RUNNING: Look("●", "#2f7de1", "blue"),
    TaskState.COMPLETED: Look("✓", "#27894e", "green"),
    TaskState.FAILED: Look("✕", "#d6453d", "red"),
    TaskState.CANCELLED: Look("⊘", "#767c85", "bright_black"),
    TaskState.INTERRUPTED: Look("◐", "#a67200", "yellow"),
}
MONOSPACE = (
    "font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;"
    "font-size:12px;line-height:1.45"
)


def duration(seconds: float | None) -> str:
    """``0:03``, ``12:41``, ``3:00:09``; ``–`` when there is none."""
    if seconds is None:
        return "–"
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def clock(at: datetime, now: datetime) -> str:
    """A time as a person here would say it: the hour, and the day when it was not today."""
    local, today = at.astimezone(), now.astimezone().date()
    return f"{local:%H:%M}" if local.date() == today else f"{local:%Y-%m-%d %H:%M}"


def ending(task: TaskRecord) -> str:
    """The exit code or the reason, whichever says more; of a live task, that it is to end."""
    if task.state is TaskState.COMPLETED:
        return "exit 0"
    if not task.state.is_final and task.cancel_requested_at is not None:
        return "cancellation requested"
    return task.reason or ""


def next_verbs(task: TaskRecord) -> tuple[str, ...]:
    """What may be done next with this task: first what to read, then what to do."""
    if task.state is TaskState.PENDING:
        return ("cancel",)
    if task.state is TaskState.RUNNING:
        return "output", "cancel"
    if task.state is TaskState.FAILED:
        return "show" if task.kind == "python" and task.exit_code == 1 else "output", "rerun"
    if task.state is TaskState.INTERRUPTED:
        return "output", "resume"
    if task.state is TaskState.CANCELLED:
        return "output", "rerun"
    return ("output",)


def next_commands(task: TaskRecord) -> str:
    """What to type next about this task."""
    return " · ".join(f"%bg_{verb} {task.number}" for verb in next_verbs(task))


def place(task: TaskRecord) -> str:
    """Where the task runs, in words."""
    return "shell command" if task.kind == "shell" else f"Python {task.runner}"


def printable(text: str) -> str:
    """The text without characters that would steer a terminal or hide what it says."""
    return safetext.legible(text)


def launched_text(task: TaskRecord) -> str:
    """What a terminal says of a task that was just launched."""
    look = LOOKS[TaskState.RUNNING]
    commands = f"%bg_output {task.number} · %bg_cancel {task.number}"
    return f"{look.glyph} background task {printable(task.label)} has started   {commands}"


def for_shell(text: str) -> str:
    """The text with IPython's commands named as the system's shell knows them."""
    return re.sub(r"%bg_(\w+)", r"jupyter bg \1", text)


# Lists.


@dataclass(frozen=True, slots=True)
class Listing:
    """What a list shows."""

    tasks: Sequence[TaskRecord]
    total: int
    """How many there would be without the limit."""
    every_notebook: bool
    now: datetime
    archived: bool = False
    """Whether the list is one of archived tasks."""
    has_archives: bool = False
    """Whether there are tasks in archives, which another list would show."""

    @property
    def has_progress(self) -> bool:
        """Whether it is known of any of the tasks how far it has come."""
        return any(task.progress is not None for task in self.tasks)

    @property
    def note(self) -> str:
        """What is to be said below the list; empty when there is nothing."""
        left_out = self.total - len(self.tasks)
        if not self.total:
            if self.archived:
                return "no archived tasks"
            older = "; --archived shows those in the archives" if self.has_archives else ""
            return f"no background tasks{older}"
        return f"{left_out:,} earlier tasks are not shown; --limit N shows more" if left_out else ""


CELL = (
    "text-align:left;padding:3px 14px 3px 0;vertical-align:top;white-space:nowrap;"
    "max-width:220px;overflow:hidden;text-overflow:ellipsis"
)


def list_html(listing: Listing) -> str:
    """A list as a table."""
    if not listing.tasks:
        return f'<div style="opacity:.7">{listing.note}</div>'
    titles = ["", "name", "state", "time", "", "last line"]
    if listing.has_progress:
        titles.insert(4, "progress")
    if listing.every_notebook:
        titles.insert(1, "notebook")
    head = "".join(
        f'<th style="{CELL};font-weight:600;opacity:.6">{title}</th>' for title in titles
    )
    rows = "".join(_row_html(task, listing) for task in listing.tasks)
    note = f'<div style="opacity:.7;font-size:12px">{listing.note}</div>' if listing.note else ""
    style = "border-collapse:collapse;font-size:13px"
    return (
        f'<table style="{style}"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{note}'
    )


def _row_html(task: TaskRecord, listing: Listing) -> str:
    look = LOOKS[task.state]
    last = escape(shorten(printable(task.last_line or ""), 90))
    why = escape(shorten(printable(ending(task)), 60))
    cells = [
        f'<span style="opacity:.55">{escape(reference(task, listing.every_notebook))}</span>',
        f'<span style="font-weight:600">{escape(shorten(printable(task.name), 40))}</span>',
        f'<span style="color:{look.colour};font-weight:600">{look.glyph} {task.state.value}</span>',
        f'<span style="font-variant-numeric:tabular-nums">'
        f"{duration(task.elapsed_s(listing.now))}</span>",
        why,
        f'<span style="{MONOSPACE};opacity:.85">{last}</span>',
    ]
    if listing.has_progress:
        cells.insert(4, _progress_html(task))
    if listing.every_notebook:
        cells.insert(1, escape(printable(notebook_name(task.notebook))))
    return "<tr>" + "".join(f'<td style="{CELL}">{cell}</td>' for cell in cells) + "</tr>"


def _progress_html(task: TaskRecord) -> str:
    """How far the task has come; as a bar while it runs."""
    if task.progress is None:
        return ""
    said = f'<span style="font-variant-numeric:tabular-nums">{how_far(task.progress)}</span>'
    fraction = task.progress.fraction
    if fraction is None or task.state.is_final:
        return said
    bar, track = "display:inline-block;height:6px;border-radius:3px", "rgba(128,128,128,.28)"
    return (
        f'<span style="{bar};width:80px;background-color:{track};vertical-align:middle">'
        f'<span style="{bar};width:{fraction * 100:.0f}%;vertical-align:top;'
        f'background-color:{LOOKS[task.state].colour}"></span></span>&ensp;{said}'
    )


def how_far(progress: Progress) -> str:
    """``68 %``, or how many are done where nobody knows of how many."""
    fraction = progress.fraction
    return f"{progress.done:,.12g}" if fraction is None else f"{int(fraction * 100)} %"


def reference(task: TaskRecord, every_notebook: bool) -> str:
    """What to type to name the task: its number here, its id where notebooks are mixed."""
    return task.id if every_notebook else str(task.number)


def notebook_name(path: str) -> str:
    """The last part of a notebook's path."""
    return path.rstrip("/").rpartition("/")[2] or path


def shorten(text: str, characters: int) -> str:
    """The text in one line, cut with an ellipsis where it is longer."""
    line = " ".join(text.split())
    return line if len(line) <= characters else line[: characters - 1] + "…"


def first_line(source: str) -> str:
    """The first line of a source that says something."""
    return next((line.strip() for line in source.splitlines() if line.strip()), "")


def counted(count: int, noun: str) -> str:
    """``1 task``, ``2 tasks``, ``1,200 tasks``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def had_ended(task: TaskRecord, left: int) -> str:
    """What to say of a cancellation that came after the end: `left` processes were there still."""
    said = f"task {task.label} had ended: {task.state.value}"
    if not left:
        return said
    them = "the process" if left == 1 else f"the {left} processes"
    return f"{said}; {them} that it had left {'is' if left == 1 else 'are'} ended now"


def size(size_bytes: int) -> str:
    """``0 bytes``, ``12.3 KB``, ``4.0 MB`` …: a size as a person reads it, by powers of 1024."""
    if size_bytes < 1024:
        return counted(size_bytes, "byte")
    amount, units = size_bytes / 1024, iter(("KB", "MB", "GB", "TB"))
    unit = next(units)
    while amount >= 1024 and unit != "TB":
        amount, unit = amount / 1024, next(units)
    return f"{amount:,.0f} {unit}" if amount >= 100 else f"{amount:,.1f} {unit}"


# Sessions.


@dataclass(frozen=True, slots=True)
class SessionListing:
    """What a list of sessions shows."""

    sessions: Sequence[SessionRecord]
    total: int
    """How many there would be without the limit."""
    every_notebook: bool
    now: datetime
    short_ids: Sequence[str]
    """As much of each one's id as is needed to name it."""

    @property
    def note(self) -> str:
        """What is to be said below the list; empty when there is nothing."""
        left_out = self.total - len(self.sessions)
        if not self.total:
            return "no sessions" if self.every_notebook else "no sessions of this notebook yet"
        return (
            f"{left_out:,} earlier sessions are not shown; --limit N shows more" if left_out else ""
        )


def session_end(session: SessionRecord, now: datetime) -> str:
    """How and when the session ended, or that it has not."""
    if session.ended_at is None:
        return "active"
    return f"{session.end_reason} at {clock(session.ended_at, now)}"


def task_counts(session: SessionRecord) -> str:
    """``3 completed, 1 failed``, or a dash."""
    return ", ".join(f"{count} {state}" for state, count in session.task_counts) or "–"


def session_json(session: SessionRecord) -> dict[str, object]:
    """A session as ``sessions --json`` gives it."""
    return {
        "id": session.id,
        "notebook": session.path,
        "front_end": session.front_end,
        "host": session.host,
        "pid": session.pid,
        "started_at": session.started_at.isoformat(),
        "heartbeat_at": session.heartbeat_at.isoformat(),
        "ended_at": session.ended_at.isoformat() if session.ended_at else None,
        "end_reason": session.end_reason,
        "tasks": dict(session.task_counts),
        "first_line": first_line(session.first_source) or None,
        "last_active_at": session.last_active_at.isoformat() if session.last_active_at else None,
    }


def utc_now() -> datetime:
    """The time, as views take it."""
    return datetime.now(UTC)
