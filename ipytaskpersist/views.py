"""A task and a list of tasks, as text and as HTML.

The HTML has inline styles only, no script, no SVG and no variables: that is what an untrusted
notebook leaves standing. Text colour is inherited, so that one card serves light and dark themes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape

from ipytaskpersist.records import SessionRecord, TaskRecord, TaskState


@dataclass(frozen=True, slots=True)
class Look:
    """How a state looks. Never by its colour alone."""

    glyph: str
    colour: str
    """For HTML."""
    style: str
    """For a terminal, in rich's words."""


LOOKS = {
    TaskState.PENDING: Look("◌", "#8a8f98", "bright_black"),
    TaskState.RUNNING: Look("●", "#2f7de1", "blue"),
    TaskState.COMPLETED: Look("✓", "#2e9e5b", "green"),
    TaskState.FAILED: Look("✕", "#d6453d", "red"),
    TaskState.CANCELLED: Look("⊘", "#8a8f98", "bright_black"),
    TaskState.INTERRUPTED: Look("◐", "#c98a00", "yellow"),
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
    """The exit code or the reason, whichever says more."""
    if task.state is TaskState.COMPLETED:
        return "exit 0"
    return task.reason or ""


def next_commands(task: TaskRecord) -> str:
    """What to type next about this task."""
    if task.state is TaskState.PENDING:
        return f"%bg_cancel {task.number}"
    if task.state is TaskState.RUNNING:
        return f"%bg_output {task.number} · %bg_cancel {task.number}"
    if task.state is TaskState.FAILED:
        return f"%bg_output {task.number} · %bg_show {task.number}"
    if task.state is TaskState.INTERRUPTED:
        return f"%bg_output {task.number} · %bg_resume {task.number}"
    return f"%bg_output {task.number}"


def place(task: TaskRecord) -> str:
    """Where the task runs, in words."""
    return "shell command" if task.kind == "shell" else f"Python {task.runner}"


def about(task: TaskRecord, now: datetime) -> str:
    """One line of what else there is to know."""
    if task.state in (TaskState.PENDING, TaskState.RUNNING):
        return f"{place(task)} · as of {clock(now, now)}"
    ended = clock(task.ended_at, now) if task.ended_at else ""
    if task.state is TaskState.INTERRUPTED:
        return f"{task.reason} at {ended} · everything printed until then is kept"
    if task.state is TaskState.CANCELLED:
        return f"cancelled at {ended}"
    return f"{place(task)} · finished {ended}"


def printable(text: str) -> str:
    """The text without characters that would steer a terminal."""
    return "".join(c if c.isprintable() or c == " " else "�" for c in text)


# The status card.


def card_html(task: TaskRecord, now: datetime) -> str:
    """The status card of one task."""
    look = LOOKS[task.state]
    return (
        f'<div style="border:1px solid rgba(128,128,128,.28);border-left:4px solid {look.colour};'
        "border-radius:6px;padding:8px 12px;max-width:640px;"
        'font-family:system-ui,-apple-system,sans-serif;font-size:13px;line-height:1.45">'
        f"{_card_head(task, look, now)}{_card_body(task)}{_card_foot(task, now)}</div>"
    )


def _card_head(task: TaskRecord, look: Look, now: datetime) -> str:
    code = f"exit {task.exit_code}" if task.exit_code is not None else ""
    separator = '<span style="opacity:.4">&ensp;·&ensp;</span>' if code else ""
    return (
        '<div style="display:flex;align-items:center;gap:10px">'
        f'<span style="color:{look.colour};font-weight:600;white-space:nowrap">'
        f"{look.glyph} {task.state.value}</span>"
        '<span style="font-weight:600;overflow:hidden;text-overflow:ellipsis;white-space:nowrap">'
        f'<span style="opacity:.55">{task.number}</span>&ensp;{escape(task.name)}</span>'
        '<span style="margin-left:auto;white-space:nowrap;font-variant-numeric:tabular-nums">'
        f"{code}{separator}{duration(task.elapsed_s(now))}</span></div>"
    )


def _card_body(task: TaskRecord) -> str:
    style = f"{MONOSPACE};white-space:pre-wrap;overflow-wrap:anywhere;margin-top:5px"
    lines = ""
    if task.last_line:
        lines = f'<div style="{style};opacity:.85">{escape(task.last_line)}</div>'
    if task.state is not TaskState.FAILED or not task.reason:
        return lines
    name, _colon, message = task.reason.partition(": ")
    return (
        f'{lines}<div style="{style}"><span style="color:#d6453d;font-weight:600">{escape(name)}'
        f"</span>{': ' if message else ''}{escape(message)}</div>"
    )


def _card_foot(task: TaskRecord, now: datetime) -> str:
    return (
        '<div style="display:flex;gap:14px;opacity:.65;font-size:12px;margin-top:5px">'
        '<span style="white-space:nowrap;overflow:hidden;text-overflow:ellipsis">'
        f"{escape(about(task, now))}</span>"
        f'<span style="margin-left:auto;white-space:nowrap;{MONOSPACE}">'
        f"{next_commands(task)}</span></div>"
    )


def card_text(task: TaskRecord, now: datetime) -> str:
    """The status card in one or two lines of text."""
    look = LOOKS[task.state]
    parts = [f"{look.glyph} {task.state.value}", task.label]
    if task.started_at is not None:
        parts.append(duration(task.elapsed_s(now)))
    if task.state.is_final and ending(task):
        parts.append(ending(task))
    line = printable(" · ".join(parts)) + f"   {next_commands(task)}"
    return f"{line}\n  {printable(task.last_line)}" if task.last_line else line


def launched_text(task: TaskRecord) -> str:
    """What a terminal says of a task that was just launched."""
    look = LOOKS[TaskState.RUNNING]
    commands = f"%bg_output {task.number} · %bg_cancel {task.number}"
    return f"{look.glyph} background task {printable(task.label)} has started   {commands}"


def for_shell(text: str) -> str:
    """The text with IPython's commands named as the system's shell knows them."""
    return re.sub(r"%bg_(\w+)", r"jupyter bg \1", text)


def cards_html(tasks: Sequence[TaskRecord], now: datetime) -> str:
    """Several cards, one below the other."""
    return "".join(f'<div style="margin-bottom:6px">{card_html(task, now)}</div>' for task in tasks)


def cards_text(tasks: Sequence[TaskRecord], now: datetime) -> str:
    """Several cards as text."""
    return "\n".join(card_text(task, now) for task in tasks)


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
    def note(self) -> str:
        """What is to be said below the list; empty when there is nothing."""
        left_out = self.total - len(self.tasks)
        if not self.total:
            if self.archived:
                return "no archived tasks"
            older = "; --archived shows those in the archives" if self.has_archives else ""
            return f"no background tasks{older}"
        return f"{left_out:,} earlier tasks are not shown; --limit N shows more" if left_out else ""


CELL = "text-align:left;padding:3px 14px 3px 0;vertical-align:top;white-space:nowrap"


def list_html(listing: Listing) -> str:
    """A list as a table."""
    if not listing.tasks:
        return f'<div style="opacity:.7">{listing.note}</div>'
    titles = ["", "name", "state", "time", "", "last line"]
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
    last = escape(printable(shorten(task.last_line or "", 90)))
    why = escape(printable(shorten(ending(task), 60))) if task.state.is_final else ""
    cells = [
        f'<span style="opacity:.55">{escape(reference(task, listing.every_notebook))}</span>',
        f'<span style="font-weight:600">{escape(printable(shorten(task.name, 40)))}</span>',
        f'<span style="color:{look.colour};font-weight:600">{look.glyph} {task.state.value}</span>',
        f'<span style="font-variant-numeric:tabular-nums">'
        f"{duration(task.elapsed_s(listing.now))}</span>",
        why,
        f'<span style="{MONOSPACE};opacity:.85">{last}</span>',
    ]
    if listing.every_notebook:
        cells.insert(1, escape(notebook_name(task.notebook)))
    return "<tr>" + "".join(f'<td style="{CELL}">{cell}</td>' for cell in cells) + "</tr>"


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


def size(size_bytes: int) -> str:
    """``0 bytes``, ``12.3 KB``, ``4.0 MB`` …: a size as a person reads it, by powers of 1024."""
    if size_bytes < 1024:
        return counted(size_bytes, "byte")
    amount, units = size_bytes / 1024, iter(("KB", "MB", "GB", "TB"))
    unit = next(units)
    while amount >= 1024 and unit != "TB":
        amount, unit = amount / 1024, next(units)
    return f"{amount:,.1f} {unit}"


# Sessions.


@dataclass(frozen=True, slots=True)
class SessionListing:
    """What a list of sessions shows."""

    sessions: Sequence[SessionRecord]
    total: int
    """How many there would be without the limit."""
    every_notebook: bool
    now: datetime

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
