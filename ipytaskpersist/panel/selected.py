"""The output of the selected task as pieces of sanitized HTML, and the facts about it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import Any

from ipytaskpersist.base import process_tree
from ipytaskpersist.base.legible import legible, unturned
from ipytaskpersist.base.records import TaskRecord
from ipytaskpersist.history import export_page
from ipytaskpersist.output.counts import OutputCounter, OutputCounts
from ipytaskpersist.output.newest import newest_outputs
from ipytaskpersist.output.replay import CHANGES, Output
from ipytaskpersist.session.manager import BackgroundTasks
from ipytaskpersist.session.provenance import git_in_words
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.text import formatting
from ipytaskpersist.text.colours import PLAIN, Colours, Style, changed
from ipytaskpersist.text.screen import Screen

LINES = 200
DISPLAY = '<div class="display">'
STREAMS = ('<div class="stdout">', '<div class="stderr">')
LINE_CHARACTERS = 2000
CURSOR_MOVES = re.compile(r"\r(?!\n)|\x08|(?:\x1b\[|\x9b)[0-?]*[ -/]*[A-DGJK]")
"""Sequences with which a terminal overwrites what it has shown."""


class Tail:
    """What a page shows of one task's output, and the difference to the next state."""

    def __init__(self) -> None:
        self._shown: list[str] = []

    def change(self, pieces: list[str]) -> dict[str, Any] | None:
        """Return the change from what is shown to these pieces; None if there is none.

        `drop` pieces are removed from the top, `keep` of the rest stay, and `add` follows them.
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
    """Return how many pieces have gone from the top."""
    for drop in range(len(shown)):
        # Compare two in a row, because single lines are often alike.
        two = shown[drop : drop + 2]
        if two == pieces[: len(two)]:
            return drop
    return len(shown)


@dataclass(frozen=True, slots=True)
class Shown:
    """The end of a task's output: one piece of inert HTML for each line and each display."""

    pieces: list[str]
    left_out: str
    """What there is besides: ``59,800 lines, 172 figures``; empty if this is all."""


def shown_of(store: TaskStore, task: TaskRecord, counter: OutputCounter) -> Shown:
    """Return the newest output of a task, and how much comes before it."""
    newest = newest_outputs(store, task.key, LINES)
    found = [*pieces(newest.outputs)]
    shown = found[-LINES:]
    if newest.is_whole and len(found) == len(shown):
        return Shown(shown, "")
    counts, here = counter.count(store, task.key), _counts_in(shown)
    rewrites = bool(store.outputs.count(task.key, CHANGES))
    return Shown(shown, OutputCounts(
        0 if rewrites else max(0, counts.lines - here.lines),
        max(0, counts.figures - here.figures),
        max(0, counts.tables - here.tables),
        max(0, counts.displays - here.displays),
    ).in_words())  # fmt: skip


def _counts_in(shown: list[str]) -> OutputCounts:
    displays = [piece for piece in shown if piece.startswith(DISPLAY)]
    figures = sum(piece.startswith(f"{DISPLAY}<img ") for piece in displays)
    tables = sum("<table" in piece for piece in displays)
    lines = sum(piece.startswith(STREAMS) for piece in shown)
    return OutputCounts(lines, figures, tables, len(displays) - figures - tables)


def pieces(found: Iterable[Output]) -> Iterator[str]:
    """Yield each line and each display as inert HTML."""
    for output in found:
        if output["output_type"] == "stream":
            for line in stream_lines(output["text"]):
                yield f'<div class="{output["name"]}">{line or " "}</div>'
        elif output["output_type"] == "error":
            for line in stream_lines("\n".join(output["traceback"]) or _error(output)):
                yield f'<div class="stderr error">{line or " "}</div>'
        else:
            yield f"{DISPLAY}{export_page.shown(output)}</div>"


def _error(output: Output) -> str:
    return f"{output['ename']}: {output['evalue']}"


def stream_lines(raw: str) -> list[str]:
    """Return the lines that a terminal would show for a text, in colour, as HTML."""
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
    """A terminal that also knows the style in which each character was written."""

    row_characters = LINE_CHARACTERS

    def __init__(self) -> None:
        super().__init__()
        self._style = PLAIN
        self._styles: list[list[Style]] = [[]]

    def html_lines(self) -> list[str]:
        """Return the rows as HTML."""
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


# The facts about it.

Fact = tuple[str, str | float]


class Facts:
    """The facts about one task, including what its processes currently use."""

    def __init__(self, manager: BackgroundTasks, task: TaskRecord) -> None:
        self._manager = manager
        self._peak_bytes = 0
        self._process = manager.tasks.store_of(task).processes.get(task.key)

    def of(self, task: TaskRecord) -> list[Fact]:
        """Return names and values, in display order; times as seconds, for the browser's zone."""
        store = self._manager.tasks.store_of(task)
        if task.runner == "process":
            self._process = store.processes.get(task.key)
        facts: list[Fact] = [
            ("task", task.id),
            ("runs in", self._place(task)),
            ("started", task.started_at.timestamp() if task.started_at else ""),
            ("ended", task.ended_at.timestamp() if task.ended_at else ""),
            ("outcome", _ending(task)),
            *self._used(task),
            ("brings", ", ".join(each.name for each in store.results.variables(task.key))),
            ("checkpoint", formatting.checkpoint(self._manager.checkpoint(task))),
            ("git", git_in_words(task.provenance["git"]) if task.provenance.get("git") else ""),
            ("again as", task.provenance.get("rerun_as") or ""),
            ("tags", ", ".join(task.tags)),
        ]
        return [
            (name, legible(value) if isinstance(value, str) else value)
            for name, value in facts
            if value
        ]

    def _place(self, task: TaskRecord) -> str:
        process = self._process
        if task.runner != "process" or process is None:
            own = task.session == self._manager.session.identity.id
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
                ("memory", "" if peak is None else f"peak {formatting.size(peak)}"),
                ("CPU", "" if process.cpu_s is None else formatting.duration(process.cpu_s)),
            ]
        used = process_tree.usage(process.pid_here, process.process_start)
        if used is None:
            return []
        memory_bytes, cpu_s = used
        self._peak_bytes = max(self._peak_bytes, memory_bytes)
        peak_text = f" (peak {formatting.size(self._peak_bytes)})"
        return [
            ("memory", formatting.size(memory_bytes) + peak_text),
            ("CPU", formatting.duration(cpu_s)),
        ]


def _ending(task: TaskRecord) -> str:
    reason = formatting.ending(task)
    code = formatting.exit_text(task)
    says_code = not code or code in reason or reason.startswith(("exit status", "killed by"))
    return formatting.shorten(reason if says_code else f"{code}, {reason}".rstrip(", "), 200)
