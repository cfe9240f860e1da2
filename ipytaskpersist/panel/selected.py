"""The output of the selected task as pieces of harmless HTML, and what is known of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import datetime
from html import escape
from itertools import groupby
from typing import Any

from ipytaskpersist import outputs, pages, processes, views
from ipytaskpersist.ansi import PLAIN, Colours, Style, changed
from ipytaskpersist.manager import BackgroundTasks
from ipytaskpersist.outputs import CHANGES, Output
from ipytaskpersist.provenance import git_in_words
from ipytaskpersist.records import (
    STREAM_KINDS,
    OutputKind,
    OutputRecord,
    TaskRecord,
)
from ipytaskpersist.safetext import unturned
from ipytaskpersist.screen import Screen
from ipytaskpersist.store import TaskStore
from ipytaskpersist.widgetmarks import is_about_widget

LINES = 200
SECONDS = ":%S"
DISPLAYS = (OutputKind.DISPLAY_DATA, OutputKind.UPDATE_DISPLAY_DATA)
READ_BYTES = 512 * 1024
"""How much of a task's newest output is looked at."""
LINE_CHARACTERS = 2000
CURSOR_MOVES = re.compile(r"\r(?!\n)|\x08|(?:\x1b\[|\x9b)[0-?]*[ -/]*[A-DGJK]")
"""What makes a terminal write over what it has shown."""


class Tail:
    """What a page shows of one task's output, and by how little the next state differs."""

    def __init__(self) -> None:
        self._shown: list[str] = []

    def change(self, pieces: list[str]) -> dict[str, Any] | None:
        """How to come from what is shown to these pieces; None where nothing changed.

        `drop` pieces go from the top, of the rest `keep` stay, and after them comes `add`.
        """
        shown, self._shown = self._shown, pieces
        if shown == pieces:
            return None
        drop = _shift(shown, pieces)
        rest = shown[drop:]
        keep = 0
        while keep < min(len(rest), len(pieces)) and rest[keep] == pieces[keep]:
            keep += 1
        return {"drop": drop, "keep": keep, "add": pieces[keep:]}


def _shift(shown: list[str], pieces: list[str]) -> int:
    """How many pieces have gone from the top."""
    for drop in range(len(shown)):
        # Two in a row, because one line alone is often like another.
        two = shown[drop : drop + 2]
        if two == pieces[: len(two)]:
            return drop
    return len(shown)


def pieces_of(store: TaskStore, task: TaskRecord) -> list[str]:
    """The newest output of a task: a piece of HTML for each line and each display."""
    found = [*pieces(_newest(store, task))]
    return found[-LINES:]


def _newest(store: TaskStore, task: TaskRecord) -> list[Output]:
    """The outputs of the last lines. What came before them is not looked at."""
    records = outputs.tail(_bounded(store.outputs.backwards(task.key)), LINES)
    return outputs.resolve(_shown_again(records))


def _bounded(records: Iterable[OutputRecord]) -> Iterator[OutputRecord]:
    """The records that come last first, until they are enough; the last one whatever its size."""
    left = READ_BYTES
    for record in records:
        is_stream = record.kind in STREAM_KINDS
        if is_stream and left == READ_BYTES:
            yield replace(record, data=record.data[-READ_BYTES:])
        elif len(record.data) <= left or left == READ_BYTES:
            yield record
        left -= len(record.data)
        if left <= 0:
            return


def _shown_again(records: list[OutputRecord]) -> Iterator[OutputRecord]:
    """The records, with an update of a display that came before them as a display."""
    known = set()
    for record in records:
        if record.kind in DISPLAYS and not is_about_widget(record.kind, record.data):
            display = outputs.display_id(record)
            is_known = display in known
            known.add(display)
            yield record if is_known else replace(record, kind=OutputKind.DISPLAY_DATA)
        else:
            yield record


def lines_above(store: TaskStore, task: TaskRecord, shown: int) -> int:
    """How many lines of its streams came before those that are shown, about."""
    if store.outputs.count(task.key, CHANGES):
        return 0
    lines = sum(store.outputs.stream_size(task.key, kind).lines for kind in STREAM_KINDS)
    return max(0, lines - shown) if shown >= LINES else 0


def pieces(found: Iterable[Output]) -> Iterator[str]:
    """Each line and each display as HTML that does nothing but show."""
    for output in found:
        if output["output_type"] == "stream":
            for line in stream_lines(output["text"]):
                yield f'<div class="{output["name"]}">{line or " "}</div>'
        elif output["output_type"] == "error":
            for line in stream_lines("\n".join(output["traceback"]) or _error(output)):
                yield f'<div class="stderr">{line or " "}</div>'
        else:
            yield f'<div class="display">{pages.shown(output)}</div>'


def _error(output: Output) -> str:
    return f"{output['ename']}: {output['evalue']}"


def stream_lines(raw: str) -> list[str]:
    """The lines that a terminal would show of a text, in its colours, as HTML."""
    raw = unturned(raw)
    if CURSOR_MOVES.search(raw):
        screen = ColouredScreen()
        screen.feed(raw)
        lines = screen.html_lines()
    else:
        colours = Colours()
        lines = [colours.html(line[:LINE_CHARACTERS]) for line in raw.split("\n")]
    if len(lines) > 1 and not lines[-1]:
        lines.pop()
    return lines


class ColouredScreen(Screen):
    """A terminal that also knows in which style each character was written."""

    row_characters = LINE_CHARACTERS

    def __init__(self) -> None:
        super().__init__()
        self._style = PLAIN
        self._styles: list[list[Style]] = [[]]

    def html_lines(self) -> list[str]:
        """The rows as HTML."""
        return [_styled(*row) for row in zip(self.rows, self._styles, strict=False)]

    def _write(self, run: str) -> None:
        begin = self.column
        super()._write(run)
        styles = self._styles[self.row]
        styles.extend([PLAIN] * (begin - len(styles)))
        styles[begin : self.column] = [self._style] * (self.column - begin)

    def _move_down(self, count: int) -> None:
        super()._move_down(count)
        self._styles.extend([] for _ in range(len(self.rows) - len(self._styles)))

    def _command(self, command: str, arguments: str) -> None:
        if command == "m":
            self._style = changed(self._style, arguments if SAFE.fullmatch(arguments) else "")
            return
        super()._command(command, arguments)
        if command == "J" and len(self.rows) == 1:
            self._styles = [[]]

    def _erase_line(self, which: int) -> None:
        super()._erase_line(which)
        length = len(self.rows[self.row])
        if which == 1:
            self._styles[self.row][: self.column] = [PLAIN] * self.column
        del self._styles[self.row][length:]


SAFE = re.compile(r"[0-9;:]*")


def _styled(row: str, styles: list[Style]) -> str:
    row = row.rstrip()[:LINE_CHARACTERS]
    if all(style is PLAIN for style in styles):
        return escape(row)
    html, start = "", 0
    for style, run in groupby(styles[: len(row)]):
        end = start + sum(1 for _ in run)
        html += style.html(row[start:end])
        start = end
    return html + escape(row[start:])


# What is known of it.


class Facts:
    """What is known of one task, with what its processes use at the moment."""

    def __init__(self, manager: BackgroundTasks, task: TaskRecord) -> None:
        self._manager = manager
        self._peak_bytes = 0
        self._process = manager.store_of(task).processes.get(task.key)

    def of(self, task: TaskRecord) -> list[tuple[str, str]]:
        """Names and values, in the order in which they are shown."""
        store = self._manager.store_of(task)
        if task.runner == "process":
            self._process = store.processes.get(task.key)
        facts = [
            ("task", task.id),
            ("runs in", self._place(task)),
            ("started", _when(task.started_at)),
            ("ended", _when(task.ended_at)),
            ("exit", _ending(task)),
            *self._used(task),
            ("brings", ", ".join(each.name for each in store.results.variables(task.key))),
            ("git", git_in_words(task.provenance["git"]) if task.provenance.get("git") else ""),
            ("again as", task.provenance.get("rerun_as") or ""),
            ("tags", ", ".join(task.tags)),
        ]
        return [(name, views.printable(value)) for name, value in facts if value]

    def _place(self, task: TaskRecord) -> str:
        process = self._process
        if task.runner != "process" or process is None:
            own = task.session == self._manager.identity.id
            return "a thread of this kernel" if own else "a thread of another kernel"
        number = "" if process.pid is None else f" {process.pid}"
        what = "shell, process" if task.kind == "shell" else "process"
        return f"{what}{number}" + ("" if task.state.is_final else ", outlives the kernel")

    def _used(self, task: TaskRecord) -> list[tuple[str, str]]:
        process = self._process
        if process is None:
            return []
        if task.state.is_final or process.pid is None:
            peak = process.peak_memory_bytes
            return [
                ("memory", "" if peak is None else f"peak {views.size(peak)}"),
                ("CPU", "" if process.cpu_s is None else views.duration(process.cpu_s)),
            ]
        used = processes.usage(process.pid_here, process.process_start)
        if used is None:
            return []
        memory_bytes, cpu_s = used
        self._peak_bytes = max(self._peak_bytes, memory_bytes)
        peak_text = f" (peak {views.size(self._peak_bytes)})"
        return [
            ("memory", views.size(memory_bytes) + peak_text),
            ("CPU", views.duration(cpu_s)),
        ]


def _when(at: datetime | None) -> str:
    if at is None:
        return ""
    return views.clock(at, views.utc_now()) + f"{at.astimezone():{SECONDS}}"


def _ending(task: TaskRecord) -> str:
    if task.exit_code is None:
        return views.shorten(task.reason or "", 200)
    reason = f", {task.reason}" if task.reason and task.exit_code else ""
    return views.shorten(f"code {task.exit_code}{reason}", 200)
