"""What a search has found, as text and as HTML."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.text import Text

from ipytaskpersist.records import TaskRecord
from ipytaskpersist.safetext import kept_apart
from ipytaskpersist.searching import Found, Hit, Snippet
from ipytaskpersist.terminal import fit
from ipytaskpersist.views import LOOKS, MONOSPACE, clock, notebook_name, printable, shorten

MATCH = "bold yellow"
NAME_AT_MOST = 40


@dataclass(frozen=True, slots=True)
class Shown:
    """What a person is to see of it."""

    found: Found
    is_own: Callable[[TaskRecord], bool]
    """Whether a task is this notebook's, so that its number names it."""
    now: datetime

    def reference(self, task: TaskRecord) -> str:
        """What to type to name the task."""
        return str(task.number) if self.is_own(task) else task.id

    @property
    def note(self) -> str:
        """What is to be said below; empty when there is nothing."""
        found = self.found
        left_out = f"{_count(found.archives_left_out, 'archive')} not searched; add --archived"
        parts = [left_out] if found.archives_left_out else []
        if not found.hits:
            searched = f"{_count(found.searched, 'task')} searched"
            parts.insert(0, f"nothing has {printable(found.query.text)}; {searched}")
        elif found.has_more:
            parts.insert(0, "there is more; --limit N shows more")
        return " · ".join(parts)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def about(task: TaskRecord, now: datetime) -> str:
    """Where and when the task ran."""
    archive = f" · archive {task.archive}" if task.archive else ""
    return f"{notebook_name(task.notebook)} · {clock(task.created_at, now)}{archive}"


def place(snippet: Snippet) -> str:
    """Where the line is."""
    return snippet.place if snippet.place == "name" else f"{snippet.place}:{snippet.line}"


# In a terminal.


def found_table(shown: Shown) -> list[RenderableType]:
    """Each task with its lines, cut where the terminal ends."""
    table = [_HitLines(hit, shown) for hit in shown.found.hits]
    return [*table, Text(shown.note, style="dim")] if shown.note else [*table]


class _HitLines:
    """One task with its lines."""

    def __init__(self, hit: Hit, shown: Shown) -> None:
        self._hit = hit
        self._shown = shown

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> RenderResult:
        task, look = self._hit.task, LOOKS[self._hit.task.state]
        name = fit(shorten(printable(task.name), NAME_AT_MOST), options.max_width // 4)
        head = Text(self._shown.reference(task), style="bold", no_wrap=True, overflow="ellipsis")
        head.append(f"  {kept_apart(name)}" if name else "", "bold")
        head.append(f"  {look.glyph} {task.state.value}", f"not bold {look.style}")
        about_it = kept_apart(printable(about(task, self._shown.now)))
        head.append(f"  {about_it}", "not bold dim")
        yield head
        yield from map(_snippet_text, self._hit.snippets)


def _snippet_text(snippet: Snippet) -> Text:
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append(f"    {place(snippet)}  ", "dim")
    shift = len(line)
    line.append(printable(snippet.text))
    for begin, end in snippet.matches:
        before, match = printable(snippet.text[:begin]), printable(snippet.text[:end])
        line.stylize(MATCH, shift + len(before), shift + len(match))
    return line


# In a notebook.


def found_html(shown: Shown) -> str:
    """Each task with its lines, the matches marked."""
    hits = "".join(_hit_html(hit, shown) for hit in shown.found.hits)
    note = escape(shown.note)
    return f'{hits}<div style="opacity:.7;font-size:12px">{note}</div>' if note else hits


def _hit_html(hit: Hit, shown: Shown) -> str:
    task, look = hit.task, LOOKS[hit.task.state]
    name = escape(printable(shorten(task.name, 40)))
    more = escape(printable(about(task, shown.now)))
    lines = "".join(map(_snippet_html, hit.snippets))
    return (
        '<div style="margin-bottom:8px;font-size:13px">'
        f"<b>{escape(shown.reference(task))}</b>&ensp;<b>{name}</b>&ensp;"
        f'<span style="color:{look.colour};font-weight:600">{look.glyph} {task.state.value}</span>'
        f'&ensp;<span style="opacity:.6">{more}</span>{lines}</div>'
    )


def _snippet_html(snippet: Snippet) -> str:
    style = f"{MONOSPACE};white-space:pre-wrap;overflow-wrap:anywhere;padding-left:1.5em"
    text = printable(snippet.text.replace("\t", " "))
    return (
        f'<div style="{style}"><span style="opacity:.55">{place(snippet)}</span>&ensp;'
        f"{marked(text, snippet.matches)}</div>"
    )


def marked(text: str, matches: Sequence[tuple[int, int]]) -> str:
    """The text as HTML, its matches marked and everything else escaped."""
    parts, done = [], 0
    for begin, end in matches:
        parts += [escape(text[done:begin]), f"<mark>{escape(text[begin:end])}</mark>"]
        done = end
    return "".join([*parts, escape(text[done:])])
