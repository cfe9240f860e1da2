"""Lists of tasks and of sessions, as records and as HTML."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from html import escape

from ipytaskpersist.base.legible import legible
from ipytaskpersist.base.records import SessionRecord, TaskRecord, TaskState
from ipytaskpersist.output.counts import OutputCounts, counts_of
from ipytaskpersist.session.manager import BackgroundTasks
from ipytaskpersist.text.formatting import (
    DIM,
    MONOSPACE,
    duration,
    ending,
    how_far,
    notebook_name,
    reference,
    shorten,
    start,
    state_html,
    time_left,
)


@dataclass(frozen=True, slots=True)
class Produced:
    """What a task has produced."""

    counts: OutputCounts = field(default_factory=OutputCounts)
    """How much it has printed and displayed."""
    result: str = ""
    """The value of its last expression as text; empty if it has none."""


NOTHING = Produced()


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
    produced: Mapping[str, Produced] = field(default_factory=dict)
    """What the tasks have produced, by their ids."""
    expected: Mapping[int, str] = field(default_factory=dict)
    """When the tasks that wait will probably start, in words, by their rows."""

    @property
    def live(self) -> Sequence[TaskRecord]:
        """The tasks that have not ended, oldest first."""
        return [task for task in self.tasks if not task.state.is_final]

    @property
    def ended(self) -> Sequence[TaskRecord]:
        """The tasks that have ended, newest first."""
        return [task for task in reversed(self.tasks) if task.state.is_final]

    @property
    def left_out(self) -> int:
        """Number of tasks that the limit leaves out."""
        return self.total - len(self.tasks)

    @property
    def wider_limit(self) -> int:
        """A round limit that leaves nothing out."""
        return -(-self.total // 100) * 100

    @property
    def note(self) -> str:
        """Note to print below the list; empty if there is nothing to note."""
        if not self.total:
            if self.archived:
                return "no archived tasks"
            older = "; --archived shows those in the archives" if self.has_archives else ""
            return f"no background tasks{older}"
        more = f"{self.left_out:,} older tasks are not shown; --limit {self.wider_limit} shows them"
        return more if self.left_out else ""

    def output(self, task: TaskRecord) -> str:
        """Return how much a task has printed and displayed: ``8 lines, 2 figures``."""
        return self.produced.get(task.id, NOTHING).counts.in_words()

    def gist(self, task: TaskRecord) -> str:
        """Return why a task failed, how far it has come, its result, or else its last line."""
        last = task.last_line or ""
        if task.state is TaskState.FAILED:
            return ending(task) or last
        if task.state.is_final:
            last = self.produced.get(task.id, NOTHING).result or last
            return last or ("" if ending(task) == task.state.value else ending(task))
        parts = []
        if task.progress is not None:
            left = time_left(task, self.now)
            parts += [how_far(task.progress), f"{left} left" if left else ""]
            last = last or task.progress.drawn or task.progress.text
        start = self.expected.get(task.key, "")
        return " · ".join(filter(None, [*parts, ending(task), start, last]))


def produced_by(manager: BackgroundTasks, tasks: Iterable[TaskRecord]) -> dict[str, Produced]:
    """Return what each of these tasks has produced, by its id."""
    found = {}
    for task in tasks:
        store = manager.tasks.store_of(task)
        kept = store.results.get(task.key)
        found[task.id] = Produced(counts_of(store, task.key), "" if kept is None else kept.text)
    return found


# As HTML.

CELL = (
    "text-align:left;vertical-align:top;white-space:nowrap;line-height:20px;padding:4px 14px 4px 0;"
    "border:0;border-bottom:1px solid "
)
ROW, HEAD = f"{CELL}rgba(128,128,128,.2)", f"{CELL}rgba(128,128,128,.5);font-weight:600"
CUT = "display:inline-block;overflow:hidden;text-overflow:ellipsis;vertical-align:top"
TABLE = "border-collapse:collapse;font-size:13px;margin:6px 0 0 0;border:0"
NAME_WIDTH, GIST_WIDTH = 150, 280
"""In pixels."""
TITLE_CHARACTERS = 240
NUMERIC = f"{DIM};font-variant-numeric:tabular-nums"
GROUP = f'<span style="{DIM};font-size:12px">ended, newest first</span>'


def list_html(listing: Listing) -> str:
    """Return a list as a table, with what is live first."""
    if not listing.tasks:
        return f'<div style="{DIM}">{listing.note}</div>'
    titles = _titles(listing)
    head = "".join(f'<th scope="col" style="{HEAD}">{each}</th>' for each in titles)
    live, ended = listing.live, listing.ended
    rows = [_row_html(task, listing) for task in live]
    if live and ended:
        cell = f'<td colspan="{len(titles)}" style="{ROW};padding:2px 0">{GROUP}</td>'
        rows.append(f'<tr style="background:transparent">{cell}</tr>')
    rows += [_row_html(task, listing) for task in ended]
    where = "" if listing.every_notebook else f" of {notebook_name(listing.tasks[0].notebook)}"
    return (
        f'<table aria-label="Background tasks{escape(legible(where))}" '
        f'style="{TABLE}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>{_note_html(listing)}"
    )


def _titles(listing: Listing) -> list[str]:
    titles = ["#", "name", "state", "started", "took", "result or last line"]
    if listing.every_notebook:
        titles[:1] = ["id", "notebook"]
    return [*titles, "output"] if listing.produced else titles


def _row_html(task: TaskRecord, listing: Listing) -> str:
    now = listing.now
    cells = [
        f'<span style="{NUMERIC}">{escape(reference(task, listing.every_notebook))}</span>',
        _cut(task.name, NAME_WIDTH, "font-weight:600"),
        state_html(task.state),
        f'<span style="{NUMERIC}">{start(task, now, UTC)}</span>',
        f'<span style="{NUMERIC}">{duration(task.elapsed_s(now))}</span>',
        _cut(listing.gist(task), GIST_WIDTH, f"{MONOSPACE};line-height:20px"),
    ]
    if listing.every_notebook:
        cells.insert(1, escape(legible(notebook_name(task.notebook))))
    if listing.produced:
        cells.append(f'<span style="{NUMERIC}">{listing.output(task)}</span>')
    row = "".join(f'<td style="{ROW}">{cell}</td>' for cell in cells)
    return f'<tr style="background:transparent">{row}</tr>'


def _cut(text: str, width: int, style: str) -> str:
    """Return a text that is cut at a width and that the pointer shows whole."""
    line = escape(shorten(legible(text), TITLE_CHARACTERS))
    return (
        f'<span title="{line}" style="{CUT};max-width:{width}px;{style}"><bdi>{line}</bdi></span>'
    )


def _note_html(listing: Listing) -> str:
    noted = "times are UTC"
    if listing.left_out:
        command = f"%bg_list --limit {listing.wider_limit}"
        noted = f"{listing.left_out:,} older tasks: <code>{command}</code> · {noted}"
    return f'<div style="{DIM};font-size:12px;margin-top:4px">{noted}</div>'


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
