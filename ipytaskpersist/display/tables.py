"""Lists and details with rich: for a terminal, and as the plain text of a notebook's output."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, tzinfo

from ipytaskpersist.base.legible import kept_apart, legible
from ipytaskpersist.base.records import EventRecord, TaskRecord
from ipytaskpersist.display import console
from ipytaskpersist.display.drawing import (
    Console,
    ConsoleOptions,
    RenderableType,
    RenderResult,
    Segment,
    Style,
    Table,
    Text,
    cell_len,
    set_cell_size,
)
from ipytaskpersist.display.listing import Listing, SessionListing
from ipytaskpersist.text.formatting import (
    STATE_STYLES,
    clock,
    duration,
    first_line,
    notebook_name,
    reference,
    session_end,
    shorten,
    start,
    task_counts,
)

PLAIN_WIDTH = console.UNKNOWN_WIDTH
NARROW_WIDTH = 60
"""Width below which columns are separated by only one blank."""
SHARE_AT_LEAST = 12
"""Number of cells that a column may always take if there is room."""
LAST_LINE_AT_MOST = 200


def render(*renderables: RenderableType, plain: bool = False) -> str:
    """Render tables and texts with rich: for this terminal, or as plain text."""
    target = io.StringIO()
    styled = not plain and console.has_styles(sys.stdout)
    is_seen = not plain and console.is_terminal(sys.stdout)
    output = Console(
        file=target,
        width=console.width(sys.stdout) if is_seen else PLAIN_WIDTH,
        force_terminal=styled,
        force_jupyter=False,
        color_system="truecolor" if styled else None,
    )
    for renderable in renderables:
        output.print(renderable, highlight=False, markup=False, emoji=False)
    return "\n".join(line.rstrip() for line in target.getvalue().splitlines())


def fit(text: str, cells: int) -> str:
    """Return the text in at most so many cells, cut with an ellipsis if it is wider."""
    if cell_len(text) <= cells:
        return text
    return set_cell_size(text, max(0, cells - 1)).rstrip() + "…" if cells > 0 else ""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a list, and when it gives way to others."""

    title: str
    cells: Sequence[str]
    styles: Sequence[str] = ()
    """One style for all of its cells, or one for each."""
    turn: int = 0
    """0 for a column that always stays. Of the others the highest goes first."""
    least: int = 1
    """Width below which it is useless; a column that always stays is never narrower."""
    share: int = 0
    """Divisor of the width that limits it; 0 for all the remaining space."""
    grows: bool = False
    """Whether it takes the space that is left when each column has its share."""

    def wanted(self, width: int) -> int:
        """Return how many cells it would take; 0 if it is empty."""
        if self.turn and not any(self.cells):
            return 0
        at_most = max(self.least, SHARE_AT_LEAST, width // self.share) if self.share else width
        return min(at_most, max(_widest(self.cells), cell_len(self.title)))

    def style(self, row: int) -> str:
        """Return the style of a cell."""
        return self.styles[row % len(self.styles)] if self.styles else "none"


def _widest(cells: Sequence[str]) -> int:
    return max(map(cell_len, cells), default=0)


class Columns:
    """A list without lines that leaves out columns if space is short."""

    def __init__(self, *columns: Column) -> None:
        self._columns = columns

    def __rich_console__(self, output: Console, options: ConsoleOptions) -> RenderResult:
        """Lay it out in the available width."""
        width = options.max_width
        gap = 1 if width < NARROW_WIDTH else 2
        columns = self._columns
        widths = _widths(columns, width, gap)
        shown = [(column, widths[place]) for place, column in enumerate(columns) if widths[place]]
        dim = output.get_style("dim")
        yield from _row([(column.title, cells, dim) for column, cells in shown], gap)
        for row in range(len(columns[0].cells)):
            cells = [
                (column.cells[row], cells, output.get_style(column.style(row)))
                for column, cells in shown
            ]
            yield from _row(cells, gap)


def _row(cells: Sequence[tuple[str, int, Style]], gap: int) -> Iterator[Segment]:
    """Yield cells of given widths, each in its style. Not as a text, which rich would wrap."""
    for text, width, style in cells:
        shown = fit(text, width)
        yield Segment(kept_apart(shown), style)
        yield Segment(" " * (width - cell_len(shown) + gap))
    yield Segment.line()


def _widths(columns: Sequence[Column], width: int, gap: int) -> list[int]:
    """Return the width of each column; 0 for one that gives way."""
    widths = [0] * len(columns)
    always = [place for place, column in enumerate(columns) if not column.turn]
    for place in always:
        widths[place] = columns[place].wanted(width)
    left = width - sum(widths) - gap * (len(always) - 1)
    for place in reversed(always):
        if left >= 0:
            break
        narrower = max(0, min(-left, widths[place] - columns[place].least))
        widths[place], left = widths[place] - narrower, left + narrower
    others = [place for place, column in enumerate(columns) if column.turn]
    for place in sorted(others, key=lambda place: columns[place].turn):
        wanted = columns[place].wanted(width)
        cells = min(wanted, left - gap)
        if wanted and cells >= min(columns[place].least, wanted):
            widths[place], left = cells, left - gap - cells
    for place, column in enumerate(columns):
        if column.grows and widths[place]:
            widths[place] += min(max(0, left), max(0, _widest(column.cells) - widths[place]))
    return widths


def task_table(listing: Listing, zone: tzinfo | None = None) -> list[RenderableType]:
    """Return a list of tasks, with what is live first. Times are in the zone, or local."""
    if not listing.tasks:
        return [Text(listing.note, style="dim")]
    noted = [listing.note, "times are UTC" if zone is UTC else ""]
    note = " · ".join(filter(None, noted))
    table = Columns(*_task_columns(listing, zone))
    return [table, Text(note, style="dim")] if note else [table]


def _task_columns(listing: Listing, zone: tzinfo | None) -> list[Column]:
    tasks, now = [*listing.live, *listing.ended], listing.now
    looks = [STATE_STYLES[task.state] for task in tasks]

    def cells(text: Callable[[TaskRecord], str]) -> list[str]:
        return [legible(text(task)) for task in tasks]

    states = [f"{look.glyph} {task.state.value}" for task, look in zip(tasks, looks, strict=True)]
    references = cells(lambda task: reference(task, listing.every_notebook))
    names = cells(lambda task: shorten(task.name, LAST_LINE_AT_MOST))
    starts = cells(lambda task: start(task, now, zone))
    times = cells(lambda task: duration(task.elapsed_s(now)))
    gists = cells(lambda task: shorten(listing.gist(task), LAST_LINE_AT_MOST))
    outputs = cells(listing.output)
    columns = [
        Column("id" if listing.every_notebook else "#", references, ["dim"],
               least=_widest(references)),
        Column("name", names, ["bold"], least=3, share=5),
        Column("state", states, [look.style for look in looks], least=_widest(states)),
        Column("started", starts, ["dim"], turn=3, least=_widest(["started", *starts])),
        Column("took", times, least=_widest(times)),
        Column("result or last line", gists, turn=1, least=12, share=4, grows=True),
        Column("output", outputs, ["dim"], turn=4, least=_widest(outputs)),
    ]  # fmt: skip
    if listing.every_notebook:
        notebooks = cells(lambda task: notebook_name(task.notebook))
        columns.insert(1, Column("notebook", notebooks, turn=2, least=8, share=6))
    return columns


def session_table(listing: SessionListing) -> list[RenderableType]:
    """Return a list of sessions."""
    if not listing.sessions:
        return [Text(listing.note, style="dim")]
    sessions, now = listing.sessions, listing.now
    ends = [legible(session_end(session, now)) for session in sessions]
    columns = (
        Column("session", listing.short_ids, ["bold"], least=8),
        Column("notebook", [legible(notebook_name(session.path)) for session in sessions],
               turn=3, least=8, share=5),
        Column("host", [legible(session.host) for session in sessions],
               turn=5, least=6, share=6),
        Column("began", [clock(session.started_at, now) for session in sessions],
               turn=2, least=16),
        Column("ended", ends, least=8),
        Column("tasks", [task_counts(session) for session in sessions], turn=1, least=11),
        Column("first task", [legible(first_line(each.first_source)) for each in sessions],
               ["dim"], turn=4, least=12),
    )  # fmt: skip
    table = Columns(*columns)
    return [table, Text(listing.note, style="dim")] if listing.note else [table]


def details(rows: Sequence[tuple[str, str]]) -> Table:
    """Return names and values, one pair per line."""
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        lines = (kept_apart(legible(line)) for line in value.split("\n"))
        table.add_row(Text(name), Text("\n".join(lines)))
    return table


def variables(rows: Sequence[tuple[str, str, str]]) -> Table:
    """Return names, types and values of variables, one per line."""
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(width=1)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row("", *(Text(legible(each)) for each in row))
    return table


def history_line(event: EventRecord) -> str:
    """Return one entry of a state history."""
    why = f"  {event.reason}" if event.reason else ""
    return f"{event.at.astimezone(UTC):%H:%M:%S.%f}"[:-3] + f" UTC  {event.state.value}{why}"
