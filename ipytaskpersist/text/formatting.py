"""How states, times, sizes, tasks and sessions are described in text."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo

from ipytaskpersist.base.checkpoint_folders import Latest
from ipytaskpersist.base.demands import Demands
from ipytaskpersist.base.legible import legible
from ipytaskpersist.base.process_tree import signal_name
from ipytaskpersist.base.records import Progress, SessionRecord, TaskRecord, TaskState


@dataclass(frozen=True, slots=True)
class StateStyle:
    """The look of a state. Never its colour alone."""

    glyph: str
    colour: str
    """For HTML, as an inline style."""
    style: str
    """For a terminal, in rich's notation."""


STATE_STYLES = {
    TaskState.PENDING: StateStyle("◌", "#767c85", "bright_black"),
    TaskState.RUNNING: StateStyle("●", "#2f7de1", "blue"),
    TaskState.COMPLETED: StateStyle("✓", "#27894e", "green"),
    TaskState.FAILED: StateStyle("✕", "#d6453d", "red"),
    TaskState.CANCELLED: StateStyle("⊘", "#767c85", "bright_black"),
    TaskState.INTERRUPTED: StateStyle("◐", "#a87408", "yellow"),
}
DIM = "opacity:.72"
"""Inline style of text that is less important, with enough contrast in light and dark."""
EDGE = "rgba(128,128,128,.45)"
WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
DAYS_OF_WEEK = len(WEEKDAYS)
NAMED_AT_MOST = 3
"""How many of the tasks that another one waits for are named."""
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
"""Whatever the locale."""
PACE_KNOWN_S = 2.0
"""Time after which a task's pace says how long the rest takes."""
LONGEST_LEFT_S = 100 * 86_400
MONOSPACE = (
    "font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;"
    "font-size:12px;line-height:1.45"
)


def state_html(state: TaskState, words: str = "") -> str:
    """Return a state as HTML: its word in the text's colour, the glyph in its own.

    The glyph is hidden from screen readers. `words` may be given for the state's own.
    """
    look = STATE_STYLES[state]
    return (
        '<span style="font-weight:600;white-space:nowrap">'
        f'<span aria-hidden="true" style="color:{look.colour}">{look.glyph} </span>'
        f"{words or state.value}</span>"
    )


def duration(seconds: float | None) -> str:
    """Return ``0:03``, ``12:41``, ``3:00:09``; ``–`` for None."""
    if seconds is None:
        return "–"
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def short_time(moment: datetime, now: datetime, zone: tzinfo | None) -> str:
    """Return a time as short as is clear: ``14:05``, ``Fri 18:20``, ``3 Nov 18:20``.

    In the zone, or in the local one.
    """
    at, today = moment.astimezone(zone), now.astimezone(zone).date()
    days = (today - at.date()).days
    if days == 0:
        return f"{at:%H:%M}"
    if 0 < days < DAYS_OF_WEEK:
        return f"{WEEKDAYS[at.weekday()]} {at:%H:%M}"
    date = f"{at.day} {MONTHS[at.month - 1]}"
    return f"{date} {at:%H:%M}" if at.year == today.year else f"{date} {at.year}"


def clock(moment: datetime, now: datetime) -> str:
    """Return ``14:05 UTC``, ``Fri 18:20 UTC``: a short time where no other words say its zone."""
    return f"{short_time(moment, now, UTC)} UTC"


def start(task: TaskRecord, now: datetime, zone: tzinfo | None) -> str:
    """Return when a task started, in the zone or in the local one."""
    return "–" if task.started_at is None else short_time(task.started_at, now, zone)


def utc_clock(at: datetime) -> str:
    """Return ``14:02:26 UTC``, for what is read in another place than it was written."""
    return f"{at.astimezone(UTC):%H:%M:%S} UTC"


def utc_date(at: datetime) -> str:
    """Return ``28 Nov 2026``, the date in UTC."""
    utc = at.astimezone(UTC)
    return f"{utc.day} {MONTHS[utc.month - 1]} {utc.year}"


def time_left(task: TaskRecord, now: datetime) -> str:
    """Return ``0:32``, as long as the rest takes at the task's pace; empty if that is unknown."""
    fraction = task.progress.fraction if task.progress else None
    elapsed_s = task.elapsed_s(now)
    if task.state is not TaskState.RUNNING or not fraction or not elapsed_s:
        return ""
    if fraction >= 1 or elapsed_s < PACE_KNOWN_S:
        return ""
    left_s = elapsed_s * (1 - fraction) / fraction
    return duration(left_s) if left_s < LONGEST_LEFT_S else ""


def exit_text(task: TaskRecord) -> str:
    """Return ``exit 3`` or ``SIGKILL``; empty for a thread, whose exit code says nothing more."""
    if task.exit_code is None or task.runner != "process":
        return ""
    code = task.exit_code
    return f"exit {code}" if code >= 0 else signal_name(-code)


def ending(task: TaskRecord) -> str:
    """Return the exit code or the reason, whichever says more, or that a live task is to end."""
    if task.state is TaskState.COMPLETED:
        return exit_text(task)
    if not task.state.is_final and task.cancel_requested_at is not None:
        return "cancellation requested"
    if task.state is TaskState.RUNNING:
        return held_up(task) or which_try(task)
    return task.reason or ", ".join(filter(None, (which_try(task), waits_for(task))))


def which_try(task: TaskRecord) -> str:
    """Return ``try 2 of 4 of task 7``; empty for the first try."""
    if task.retries is None or task.try_number == 1:
        return ""
    first = "" if task.first_try is None else f" of task {task.first_try}"
    return f"try {task.try_number} of {task.retries.count + 1}{first}"


def held_up(task: TaskRecord) -> str:
    """Return ``paused since 14:02:26 UTC``, or since when and why its place is unreachable."""
    if task.unreachable_since is not None and not task.state.is_final:
        why = f": {legible(task.unreachable_why)}" if task.unreachable_why else ""
        return f"unreachable since {utc_clock(task.unreachable_since)}{why}"
    return _paused(task)


def _paused(task: TaskRecord) -> str:
    if task.paused_at is None:
        return "is to be paused" if task.pause_requested else ""
    since = f"paused since {utc_clock(task.paused_at)}"
    return (
        since
        if task.pause_requested
        else f"{since}, goes on when group {legible(task.group)} has room"
    )


def waits_for(task: TaskRecord) -> str:
    """Return ``waits for 3 (train)``, ``every 1d, next at 22:00:00 UTC`` …; empty for nothing."""
    due_at = task.waiting and task.waiting.due_at
    obstacle = f"next at {moment(due_at)}" if task.schedule and due_at else _obstacle(task)
    return ", ".join(filter(None, (schedule(task), obstacle)))


def schedule(task: TaskRecord) -> str:
    """Return ``every 1d``, or ``cron 0 22 * * 1-5 (Europe/Berlin)``; empty for a single run."""
    return "" if task.schedule is None else legible(task.schedule.in_words())


def moment(due: datetime) -> str:
    """Return ``22:00:00 UTC`` for a time to come, with the date if that is not today."""
    day = "" if due.date() == utc_now().date() else f"{utc_date(due)}, "
    return f"{day}{utc_clock(due)}"


def _obstacle(task: TaskRecord) -> str:
    """Return what a waiting task waits for; empty for nothing."""
    waiting = task.waiting
    if waiting is None:
        return ""
    if waiting.after:
        more = len(waiting.after) - NAMED_AT_MOST
        shown = [*waiting.after[:NAMED_AT_MOST], *([f"{more} more"] if more > 0 else [])]
        return f"waits for {', '.join(shown)}"
    if waiting.due_at is not None:
        return f"starts at {moment(waiting.due_at)}"
    group = legible(waiting.group)
    if waiting.is_paused:
        return f"group {group} is paused"
    if waiting.width is not None:
        if waiting.running >= waiting.width:
            return f"group {group} is full: {waiting.running} of {waiting.width}"
        return legible(waiting.lacks) if waiting.lacks else f"is next in group {group}"
    return legible(waiting.lacks or "")


def next_verbs(task: TaskRecord) -> tuple[str, ...]:
    """Return what may be done next with this task: first what to read, then what to do."""
    if task.state is TaskState.PENDING:
        return ("cancel",)
    if task.state is TaskState.RUNNING:
        return "output", "continue" if task.pause_requested else "cancel"
    if task.was_tried_again:
        return ("output",)
    if task.can_go_on:
        return "output", "resume"
    if task.state is TaskState.FAILED:
        return "show" if task.kind == "python" and task.exit_code == 1 else "output", "rerun"
    if task.state is TaskState.INTERRUPTED:
        return "output", "resume"
    if task.state is TaskState.CANCELLED:
        return "output", "rerun"
    return ("output",)


def next_commands(task: TaskRecord, every_notebook: bool = False) -> str:
    """Return what to type next about this task, in its notebook or in any."""
    named = reference(task, every_notebook)
    return " · ".join(f"%bg_{verb} {named}" for verb in next_verbs(task))


def place(task: TaskRecord) -> str:
    """Return where the task runs, in words."""
    if task.is_whole_notebook:
        return "whole notebook"
    kind = "shell command" if task.kind == "shell" else f"Python {task.runner}"
    return f"{kind} on {legible(task.place)}" if task.place else kind


def launched_text(task: TaskRecord) -> str:
    """Return a terminal's message about a task that was just launched."""
    look = STATE_STYLES[TaskState.RUNNING]
    commands = f"%bg_output {task.number} · %bg_cancel {task.number}"
    return f"{look.glyph} background task {legible(task.label)} has started   {commands}"


def for_shell(text: str) -> str:
    """Return the text with IPython's commands as in the system's shell."""
    return re.sub(r"%bg_(\w+)", r"jupyter bg \1", text)


# Lists.


def how_far(progress: Progress) -> str:
    """Return ``68 %``, or the amount done when the total is unknown."""
    fraction = progress.fraction
    return f"{progress.done:,.12g}" if fraction is None else f"{int(fraction * 100)} %"


def reference(task: TaskRecord, every_notebook: bool) -> str:
    """Return how to name the task: its number, or its id where notebooks are mixed."""
    return task.id if every_notebook else str(task.number)


def notebook_name(path: str) -> str:
    """Return the last part of a notebook's path."""
    return path.rstrip("/").rpartition("/")[2] or path


def shorten(text: str, characters: int) -> str:
    """Return the text in one line, cut with an ellipsis when it is longer."""
    line = " ".join(text.split())
    return line if len(line) <= characters else line[: characters - 1] + "…"


def first_line(source: str) -> str:
    """Return the first line of a source that is not blank."""
    return next((line.strip() for line in source.splitlines() if line.strip()), "")


def counted(count: int, noun: str) -> str:
    """Return ``1 task``, ``2 tasks``, ``1,200 tasks``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def had_ended(task: TaskRecord, left: int) -> str:
    """Return the message for a cancellation after the end; `left` processes still ran."""
    said = f"task {task.label} had ended: {task.state.value}"
    if not left:
        return said
    them = "the process" if left == 1 else f"the {left} processes"
    return f"{said}; {them} that it had left {'is' if left == 1 else 'are'} ended now"


def size(size_bytes: int) -> str:
    """Return a readable size in powers of 1000: ``0 bytes``, ``12.3 kB``, ``4.0 MB`` …"""
    if size_bytes < 1000:
        return counted(size_bytes, "byte")
    amount, units = size_bytes / 1000, iter(("kB", "MB", "GB", "TB"))
    unit = next(units)
    while amount >= 1000 and unit != "TB":
        amount, unit = amount / 1000, next(units)
    return f"{amount:,.0f} {unit}" if amount >= 100 else f"{amount:,.1f} {unit}"


def short_size(size_bytes: int) -> str:
    """Return a size without a fraction of zero: ``8 GB``, ``8.3 GB``."""
    return size(size_bytes).replace(".0 ", " ")


def share(part_bytes: int, whole_bytes: int) -> str:
    """Return ``9 of 20 GB``: what of a size there is."""
    part, whole = short_size(part_bytes), short_size(whole_bytes)
    amount, _space, unit = part.rpartition(" ")
    return f"{amount if whole.endswith(f' {unit}') else part} of {whole}"


def is_or_are(count: float) -> str:
    """Return ``none is``, ``1 is``, ``2 are``."""
    return f"{count:g} are" if count not in (0, 1) else "1 is" if count else "none is"


def demands(needed: Demands) -> str:
    """Return ``2 CPUs, 8 GB of memory, 1 GPU with 20 GB``; empty for nothing."""
    parts = []
    if needed.cpus is not None:
        parts.append("1 CPU" if needed.cpus == 1 else f"{needed.cpus:g} CPUs")
    if needed.memory_bytes is not None:
        parts.append(f"{short_size(needed.memory_bytes)} of memory")
    if needed.gpus is not None:
        gpus = counted(needed.gpus, "GPU")
        shared = needed.gpu_memory_bytes
        each = " each" if needed.gpus > 1 else ""
        parts.append(gpus if shared is None else f"{gpus} with {short_size(shared)}{each}")
    return ", ".join(parts)


def age(seconds: float) -> str:
    """Return a readable age: ``3 days ago``, ``just now`` …"""
    for unit, factor in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= factor:
            return f"{counted(int(seconds / factor), unit)} ago"
    return "just now"


def checkpoint(latest: Latest | None) -> str:
    """Return how old a checkpoint is, and its size: ``3 minutes ago, 12 MB``; empty for None."""
    return "" if latest is None else f"{age(time.time() - latest.at)}, {size(latest.size_bytes)}"


# Sessions.


def session_end(session: SessionRecord, now: datetime) -> str:
    """Return how and when the session ended, or that it has not."""
    if session.ended_at is None:
        return "active"
    return f"{session.end_reason} at {clock(session.ended_at, now)}"


def task_counts(session: SessionRecord) -> str:
    """Return ``3 completed, 1 failed``, or a dash."""
    return ", ".join(f"{count} {state}" for state, count in session.task_counts) or "–"


def session_json(session: SessionRecord) -> dict[str, object]:
    """Return a session as ``sessions --json`` prints it."""
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
    """Return the current time, as views expect it."""
    return datetime.now(UTC)
