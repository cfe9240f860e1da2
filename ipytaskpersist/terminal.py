"""Lists and details with rich: for a terminal, and as the plain text of a notebook's output."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ipytaskpersist.records import EventRecord, TaskRecord
from ipytaskpersist.views import (
    LOOKS,
    Listing,
    SessionListing,
    clock,
    duration,
    ending,
    first_line,
    notebook_name,
    printable,
    reference,
    session_end,
    shorten,
    task_counts,
)

PLAIN_WIDTH = 110


def render(*renderables: Table | Text | str, plain: bool = False) -> str:
    """What rich makes of tables and texts: for this terminal, or as plain text."""
    target = io.StringIO()
    if plain:
        console = Console(file=target, width=PLAIN_WIDTH, color_system=None, force_jupyter=False)
    else:
        actual = Console(file=sys.stdout, force_jupyter=False)
        colours: Any = "truecolor" if actual.is_terminal and actual.color_system else None
        width = actual.width if actual.is_terminal else PLAIN_WIDTH
        console = Console(
            file=target,
            width=width,
            force_terminal=actual.is_terminal,
            force_jupyter=False,
            color_system=colours,
        )
    for renderable in renderables:
        console.print(renderable, highlight=False, markup=False, emoji=False)
    return "\n".join(line.rstrip() for line in target.getvalue().splitlines())


def columns(*columns: str) -> Table:
    """A table with these titles, without lines."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns:
        table.add_column(Text(column), no_wrap=True, overflow="ellipsis")
    return table


def task_table(listing: Listing) -> list[Table | Text]:
    """A list of tasks."""
    if not listing.tasks:
        return [Text(listing.note, style="dim")]
    titles = ["#", "name", "state", "time", "", "last line"]
    if listing.every_notebook:
        titles[:1] = ["id", "notebook"]
    table = columns(*titles)
    # The last line gives way when the terminal is narrow, and nothing else.
    table.expand, table.columns[-1].ratio = True, 1
    for task in listing.tasks:
        table.add_row(*_task_cells(task, listing))
    return [table, Text(listing.note, style="dim")] if listing.note else [table]


def _task_cells(task: TaskRecord, listing: Listing) -> list[Text]:
    look = LOOKS[task.state]
    cells = [
        Text(reference(task, listing.every_notebook), style="dim"),
        Text(shorten(printable(task.name), 40), style="bold"),
        Text(f"{look.glyph} {task.state.value}", style=look.style),
        Text(duration(task.elapsed_s(listing.now))),
        Text(shorten(printable(ending(task)), 40) if task.state.is_final else ""),
        Text(shorten(printable(task.last_line or ""), 200)),
    ]
    if listing.every_notebook:
        cells.insert(1, Text(printable(notebook_name(task.notebook))))
    return cells


def session_table(listing: SessionListing) -> list[Table | Text]:
    """A list of sessions."""
    if not listing.sessions:
        return [Text(listing.note, style="dim")]
    table = columns("session", "notebook", "host", "began", "ended", "tasks", "first task")
    table.expand, table.columns[-1].ratio = True, 1
    for session in listing.sessions:
        table.add_row(
            Text(session.id[:8], style="bold"),
            Text(printable(notebook_name(session.path))),
            Text(printable(session.host)),
            Text(clock(session.started_at, listing.now)),
            Text(session_end(session, listing.now)),
            Text(task_counts(session)),
            Text(printable(first_line(session.first_source)), style="dim"),
        )
    return [table, Text(listing.note, style="dim")] if listing.note else [table]


def details(rows: Sequence[tuple[str, str]]) -> Table:
    """Names and values, one pair a line."""
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(Text(name), Text("\n".join(map(printable, value.split("\n")))))
    return table


def variables(rows: Sequence[tuple[str, str, str]]) -> Table:
    """Names, types and values of variables, one a line."""
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(width=1)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row("", *(Text(printable(each)) for each in row))
    return table


def history_line(event: EventRecord, now: datetime) -> str:
    """One entry of a state history."""
    why = f"  {event.reason}" if event.reason else ""
    return f"{event.at.astimezone():%H:%M:%S.%f}"[:-3] + f"  {event.state.value}{why}"
