"""Search results, as text and as HTML."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape

from ipytaskpersist.base.legible import kept_apart, legible
from ipytaskpersist.base.records import TaskRecord
from ipytaskpersist.display.drawing import (
    Console,
    ConsoleOptions,
    RenderableType,
    RenderResult,
    Text,
)
from ipytaskpersist.display.tables import fit
from ipytaskpersist.history.text_search import Found, Hit, Snippet
from ipytaskpersist.text.formatting import (
    DIM,
    MONOSPACE,
    STATE_STYLES,
    clock,
    counted,
    notebook_name,
    shorten,
    state_html,
)

MATCH = "bold yellow"
NAME_AT_MOST = 40


@dataclass(frozen=True, slots=True)
class Shown:
    """Search results with their presentation."""

    found: Found
    is_own: Callable[[TaskRecord], bool]
    """Returns whether a task belongs to this notebook, so that its number names it."""
    now: datetime

    def reference(self, task: TaskRecord) -> str:
        """Return the reference to type for the task."""
        return str(task.number) if self.is_own(task) else task.id

    @property
    def note(self) -> str:
        """Note to print below the results; empty if there is nothing to note."""
        found = self.found
        left_out = f"{counted(found.archives_left_out, 'archive')} not searched; add --archived"
        parts = [left_out] if found.archives_left_out else []
        if not found.hits:
            searched = f"{counted(found.searched, 'task')} searched"
            parts.insert(0, f"nothing has {legible(found.query.text)}; {searched}")
        elif found.has_more:
            parts.insert(0, "there is more; --limit N shows more")
        return " · ".join(parts)


def about(task: TaskRecord, when: str) -> str:
    """Return where and when the task ran."""
    archive = f" · archive {task.archive}" if task.archive else ""
    return f"{notebook_name(task.notebook)} · {when}{archive}"


def place(snippet: Snippet) -> str:
    """Return where the line is."""
    return snippet.place if snippet.place == "name" else f"{snippet.place}:{snippet.line}"


# In a terminal.


def found_table(shown: Shown) -> list[RenderableType]:
    """Return each task with its lines, cut at the edge of the terminal."""
    table = [_HitLines(hit, shown) for hit in shown.found.hits]
    return [*table, Text(shown.note, style="dim")] if shown.note else [*table]


class _HitLines:
    """One task with its lines."""

    def __init__(self, hit: Hit, shown: Shown) -> None:
        self._hit = hit
        self._shown = shown

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> RenderResult:
        task, look = self._hit.task, STATE_STYLES[self._hit.task.state]
        name = fit(shorten(legible(task.name), NAME_AT_MOST), options.max_width // 4)
        head = Text(self._shown.reference(task), style="bold", no_wrap=True, overflow="ellipsis")
        head.append(f"  {kept_apart(name)}" if name else "", "bold")
        head.append(f"  {look.glyph} {task.state.value}", f"not bold {look.style}")
        about_it = kept_apart(legible(about(task, clock(task.created_at, self._shown.now))))
        head.append(f"  {about_it}", "not bold dim")
        yield head
        yield from map(_snippet_text, self._hit.snippets)


def _snippet_text(snippet: Snippet) -> Text:
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append(f"    {place(snippet)}  ", "dim")
    shift = len(line)
    line.append(legible(snippet.text))
    for begin, end in snippet.matches:
        before, match = legible(snippet.text[:begin]), legible(snippet.text[:end])
        line.stylize(MATCH, shift + len(before), shift + len(match))
    return line


# In a notebook.


def found_html(shown: Shown) -> str:
    """Return each task with its lines, the matches marked."""
    hits = "".join(_hit_html(hit, shown) for hit in shown.found.hits)
    note = escape(shown.note)
    return f'{hits}<div style="{DIM};font-size:12px">{note}</div>' if note else hits


def _hit_html(hit: Hit, shown: Shown) -> str:
    task = hit.task
    name = escape(legible(shorten(task.name, 40)))
    when = clock(task.created_at, shown.now)
    more = escape(legible(about(task, when)))
    lines = "".join(map(_snippet_html, hit.snippets))
    return (
        '<div style="margin-bottom:8px;font-size:13px">'
        f"<b>{escape(shown.reference(task))}</b>&ensp;<b>{name}</b>&ensp;"
        f'{state_html(task.state)}&ensp;<span style="{DIM}">{more}</span>{lines}</div>'
    )


def _snippet_html(snippet: Snippet) -> str:
    style = f"{MONOSPACE};white-space:pre-wrap;overflow-wrap:anywhere;padding-left:1.5em"
    text = legible(snippet.text.replace("\t", " "))
    return (
        f'<div style="{style}"><span style="{DIM}">{place(snippet)}</span>&ensp;'
        f"{marked(text, snippet.matches)}</div>"
    )


def marked(text: str, matches: Sequence[tuple[int, int]]) -> str:
    """Return the text as HTML, with its matches marked and everything else escaped."""
    parts, done = [], 0
    for begin, end in matches:
        parts += [escape(text[done:begin]), f"<mark>{escape(text[begin:end])}</mark>"]
        done = end
    return "".join([*parts, escape(text[done:])])
