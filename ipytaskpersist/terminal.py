"""Lists and details with rich: for a terminal, and as the plain text of a notebook's output."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment
from rich.style import Style
from rich.table import Table
from rich.text import Text

from ipytaskpersist import console
from ipytaskpersist.records import EventRecord, Progress, TaskRecord
from ipytaskpersist.safetext import kept_apart
from ipytaskpersist.views import (
    LOOKS,
    Listing,
    SessionListing,
    clock,
    duration,
    ending,
    first_line,
    how_far,
    notebook_name,
    printable,
    reference,
    session_end,
    shorten,
    task_counts,
)

PLAIN_WIDTH = console.UNKNOWN_WIDTH
NARROW_WIDTH = 60
"""Below it there is only one blank between two columns."""
BAR_WIDTH = 80
"""From here on progress is drawn."""
BAR_CELLS = 8
SHARE_AT_LEAST = 12
"""However narrow the terminal is, a column may take so many cells where there is room."""
LAST_LINE_AT_MOST = 200


def render(*renderables: RenderableType, plain: bool = False) -> str:
    """What rich makes of tables and texts: for this terminal, or as plain text."""
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
    """The text in so many cells at most, cut with an ellipsis where it is wider."""
    if cell_len(text) <= cells:
        return text
    return set_cell_size(text, max(0, cells - 1)).rstrip() + "…" if cells > 0 else ""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a list, and when it gives way to others."""

    title: str
    cells: Sequence[str]
    styles: Sequence[str] = ()
    """One for all of its cells, or one for each."""
    turn: int = 0
    """0 for one that is always there. Of the others the highest goes first."""
    least: int = 1
    """In fewer cells it says nothing; of one that is always there: it is not made narrower."""
    share: int = 0
    """It has at most one part in so many of the width; 0 for all that is left."""
    short: Sequence[str] = ()
    """The cells for a narrow terminal."""

    def at(self, width: int) -> Column:
        """The column as it is in a terminal of this width."""
        if self.short and width < BAR_WIDTH:
            title = self.title if cell_len(self.title) <= _widest(self.short) else ""
            return Column(title, self.short, self.styles, self.turn, self.least, self.share)
        return self

    def wanted(self, width: int) -> int:
        """How many cells it would take: none where it has nothing to say."""
        if self.turn and not any(self.cells):
            return 0
        at_most = max(self.least, SHARE_AT_LEAST, width // self.share) if self.share else width
        return min(at_most, max(_widest(self.cells), cell_len(self.title)))

    def style(self, row: int) -> str:
        """How a cell looks."""
        return self.styles[row % len(self.styles)] if self.styles else "none"


def _widest(cells: Sequence[str]) -> int:
    return max(map(cell_len, cells), default=0)


class Columns:
    """A list without lines that knows what to leave out where there is little room."""

    def __init__(self, *columns: Column) -> None:
        self._columns = columns

    def __rich_console__(self, output: Console, options: ConsoleOptions) -> RenderResult:
        """Lay it out in the width that there is."""
        width = options.max_width
        gap = 1 if width < NARROW_WIDTH else 2
        columns = [column.at(width) for column in self._columns]
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
    """Cells of given widths, each in its style. Not as a text, which rich would wrap."""
    for text, width, style in cells:
        shown = fit(text, width)
        yield Segment(kept_apart(shown), style)
        yield Segment(" " * (width - cell_len(shown) + gap))
    yield Segment.line()


def _widths(columns: Sequence[Column], width: int, gap: int) -> list[int]:
    """How wide each column is; 0 for one that gives way."""
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
    return widths


def task_table(listing: Listing) -> list[RenderableType]:
    """A list of tasks."""
    if not listing.tasks:
        return [Text(listing.note, style="dim")]
    table = Columns(*_task_columns(listing))
    return [table, Text(listing.note, style="dim")] if listing.note else [table]


def _task_columns(listing: Listing) -> list[Column]:
    tasks, now = listing.tasks, listing.now
    looks = [LOOKS[task.state] for task in tasks]

    def cells(text: Callable[[TaskRecord], str]) -> list[str]:
        return [printable(text(task)) for task in tasks]

    states = [f"{look.glyph} {task.state.value}" for task, look in zip(tasks, looks, strict=True)]
    references = cells(lambda task: reference(task, listing.every_notebook))
    whole = _widest(references)
    names = cells(lambda task: shorten(task.name, LAST_LINE_AT_MOST))
    endings = cells(lambda task: shorten(ending(task), 40) if task.state.is_final else "")
    last_lines = cells(lambda task: shorten(task.last_line or "", LAST_LINE_AT_MOST))
    columns = [
        Column("id" if listing.every_notebook else "#", references, ["dim"], least=whole),
        Column("name", names, ["bold"], least=3, share=5),
        Column("state", states, [look.style for look in looks], least=_widest(states)),
        Column("time", (times := cells(lambda task: duration(task.elapsed_s(now)))),
               least=_widest(times)),
        Column("", endings, turn=3, least=10, share=4),
        Column("last line", last_lines, turn=4, least=12),
    ]  # fmt: skip
    if listing.has_progress:
        far = cells(lambda task: progress_text(task.progress) if not task.state.is_final else
                    progress_text(task.progress, bar=False))  # fmt: skip
        short = cells(lambda task: progress_text(task.progress, bar=False))
        columns.insert(4, Column("progress", far, turn=1, least=_widest(short), short=short))
    if listing.every_notebook:
        notebooks = cells(lambda task: notebook_name(task.notebook))
        columns.insert(1, Column("notebook", notebooks, turn=2, least=8, share=6))
    return columns


def progress_text(progress: Progress | None, *, bar: bool = True) -> str:
    """``━━━━╸─── 58 %``, ``58 %``, or how many are done; empty where nothing is known."""
    if progress is None:
        return ""
    said, fraction = how_far(progress), progress.fraction
    if fraction is None or not bar:
        return said
    halves = int(fraction * BAR_CELLS * 2)
    drawn = "━" * (halves // 2) + ("╸" if halves % 2 else "")
    return f"{drawn}{'─' * (BAR_CELLS - len(drawn))} {said}"


def session_table(listing: SessionListing) -> list[RenderableType]:
    """A list of sessions."""
    if not listing.sessions:
        return [Text(listing.note, style="dim")]
    sessions, now = listing.sessions, listing.now
    ends = [printable(session_end(session, now)) for session in sessions]
    columns = (
        Column("session", listing.short_ids, ["bold"], least=8),
        Column("notebook", [printable(notebook_name(session.path)) for session in sessions],
               turn=3, least=8, share=5),
        Column("host", [printable(session.host) for session in sessions],
               turn=5, least=6, share=6),
        Column("began", [clock(session.started_at, now) for session in sessions],
               turn=2, least=16),
        Column("ended", ends, least=8),
        Column("tasks", [task_counts(session) for session in sessions], turn=1, least=11),
        Column("first task", [printable(first_line(each.first_source)) for each in sessions],
               ["dim"], turn=4, least=12),
    )  # fmt: skip
    table = Columns(*columns)
    return [table, Text(listing.note, style="dim")] if listing.note else [table]


def details(rows: Sequence[tuple[str, str]]) -> Table:
    """Names and values, one pair a line."""
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        lines = (kept_apart(printable(line)) for line in value.split("\n"))
        table.add_row(Text(name), Text("\n".join(lines)))
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
