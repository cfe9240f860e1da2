"""Lists of tasks and of sessions, as records and as HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape

from ipytaskpersist.base.legible import legible
from ipytaskpersist.base.records import SessionRecord, TaskRecord
from ipytaskpersist.text.formatting import (
    MONOSPACE,
    STATE_STYLES,
    duration,
    ending,
    how_far,
    notebook_name,
    reference,
    shorten,
)


@dataclass(frozen=True, slots=True)
class Listing:
    """The contents of a list of tasks."""

    tasks: Sequence[TaskRecord]
    total: int
    """Number of tasks without the limit."""
    every_notebook: bool
    now: datetime
    archived: bool = False
    """Whether the tasks are archived."""
    has_archives: bool = False
    """Whether there are archived tasks, which another list would show."""

    @property
    def has_progress(self) -> bool:
        """Whether the progress of any of the tasks is known."""
        return any(task.progress is not None for task in self.tasks)

    @property
    def note(self) -> str:
        """Note to print below the list; empty if there is nothing to note."""
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
    """Return a list as a table."""
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
    look = STATE_STYLES[task.state]
    last = escape(shorten(legible(task.last_line or ""), 90))
    why = escape(shorten(legible(ending(task)), 60))
    cells = [
        f'<span style="opacity:.55">{escape(reference(task, listing.every_notebook))}</span>',
        f'<span style="font-weight:600">{escape(shorten(legible(task.name), 40))}</span>',
        f'<span style="color:{look.colour};font-weight:600">{look.glyph} {task.state.value}</span>',
        f'<span style="font-variant-numeric:tabular-nums">'
        f"{duration(task.elapsed_s(listing.now))}</span>",
        why,
        f'<span style="{MONOSPACE};opacity:.85">{last}</span>',
    ]
    if listing.has_progress:
        cells.insert(4, _progress_html(task))
    if listing.every_notebook:
        cells.insert(1, escape(legible(notebook_name(task.notebook))))
    return "<tr>" + "".join(f'<td style="{CELL}">{cell}</td>' for cell in cells) + "</tr>"


def _progress_html(task: TaskRecord) -> str:
    """Return the task's progress, as a bar while it is running."""
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
        f'background-color:{STATE_STYLES[task.state].colour}"></span></span>&ensp;{said}'
    )


@dataclass(frozen=True, slots=True)
class SessionListing:
    """The contents of a list of sessions."""

    sessions: Sequence[SessionRecord]
    total: int
    """Number of sessions without the limit."""
    every_notebook: bool
    now: datetime
    short_ids: Sequence[str]
    """Beginning of each session's id that is long enough to be unique."""

    @property
    def note(self) -> str:
        """Note to print below the list; empty if there is nothing to note."""
        left_out = self.total - len(self.sessions)
        if not self.total:
            return "no sessions" if self.every_notebook else "no sessions of this notebook yet"
        return (
            f"{left_out:,} earlier sessions are not shown; --limit N shows more" if left_out else ""
        )
