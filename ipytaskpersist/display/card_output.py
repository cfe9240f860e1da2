"""The output that a status card carries: figures, lines and tables that need no kernel.

Everything is inert HTML with inline styles, which is what an untrusted notebook keeps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import islice
from typing import Any

from ipytaskpersist.base.legible import legible_lines, unturned
from ipytaskpersist.base.records import OutputKind, TaskRecord
from ipytaskpersist.output.counts import FIGURE, OutputCounts
from ipytaskpersist.output.newest import DISPLAYS, newest_outputs
from ipytaskpersist.output.replay import Follower, Output
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.text.formatting import MONOSPACE, counted
from ipytaskpersist.text.pictures import joined, picture_source
from ipytaskpersist.text.sanitized_html import harmless_html
from ipytaskpersist.text.search_words import as_shown

FIGURES = 6
"""Number of figures on a card."""
FIGURES_CHARACTERS = 400 * 1024
"""Maximum size of the figures on the card of an ended task, which the notebook's file keeps."""
LINES = 500
"""Number of last lines on a card."""
SHOWN_ANYWAY = 3
"""Number of last lines that every card shows."""
HTML_CHARACTERS = 64 * 1024
"""Maximum size of the lines and tables on a card."""
PIECES_AT_MOST = 8
"""Number of a running task's last displays that are searched for a figure."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of a task."""

    number: int
    """1, 2, 3 … in the order in which they were displayed."""
    source: str
    """Address of its data, for an ``<img>``."""


@dataclass(frozen=True, slots=True)
class CardOutput:
    """The part of a task's output that its card carries."""

    figures: Sequence[Figure] = ()
    pieces: Sequence[str] = ()
    """Lines and tables, in order, as inert HTML."""
    lines: int = 0
    """Number of lines among them."""
    has_error: bool = False
    """Whether a traceback is among them."""
    is_whole: bool = True
    """Whether this is all of the task's output."""

    def needs_unfolding(self, counts: OutputCounts) -> bool:
        """Return whether there is more than the last lines and figures that every card shows."""
        shown_anyway = len(self.figures) + SHOWN_ANYWAY
        is_more = len(self.pieces) > shown_anyway or counts.tables or counts.displays
        return bool(self.pieces) and (bool(is_more) or not self.is_whole)


def latest_figure(store: TaskStore, task_key: int, characters: int) -> CardOutput | None:
    """Return the last figure of a running task; None if it is too large or too far back."""
    records = store.outputs.backwards(
        task_key, kinds=(*DISPLAYS, OutputKind.EXECUTE_RESULT, OutputKind.CLEAR_OUTPUT)
    )
    for record in islice(records, PIECES_AT_MOST):
        if record.kind is OutputKind.CLEAR_OUTPUT:
            continue  # what it clears is replaced by what follows, and shown until then
        source = picture_source(Follower().output(record).get("data", {}))
        if source:
            return CardOutput([Figure(0, source)]) if len(source) <= characters else None
    return None


def read_output(store: TaskStore, task_key: int, counts: OutputCounts) -> CardOutput:
    """Return the output of an ended task, from its end, up to the bounds of a card."""
    newest = newest_outputs(store, task_key, LINES)
    outputs = newest.outputs
    found = [output for output in outputs if "data" in output and picture_source(output["data"])]
    numbers = {id(each): counts.figures - back for back, each in enumerate(reversed(found))}
    figures = [*_fitting(found, numbers)][::-1]
    pieces, lines, size = [], 0, 0
    for html, count in _pieces_backwards(outputs, numbers):
        size += len(html)
        if size > HTML_CHARACTERS:
            break
        pieces.append(html)
        lines += count
    has_all = size <= HTML_CHARACTERS and len(figures) == counts.figures
    has_error = any(each["output_type"] == "error" for each in outputs)
    return CardOutput(figures, pieces[::-1], lines, has_error, newest.is_whole and has_all)


def _fitting(found: Sequence[Output], numbers: dict[int, int]) -> Iterator[Figure]:
    """Yield the last figures that fit, the last one first."""
    left = FIGURES_CHARACTERS
    for output in found[-FIGURES:][::-1]:
        source = picture_source(output["data"])
        left -= len(source)
        if left < 0:
            return
        yield Figure(numbers[id(output)], source)


def _pieces_backwards(
    outputs: Sequence[Output], numbers: dict[int, int]
) -> Iterator[tuple[str, int]]:
    """Yield lines and displays as HTML, the last one first, each with its number of lines."""
    for output in reversed(outputs):
        if output["output_type"] == "stream":
            for line in reversed(_lines_of(output["text"])):
                yield f"{_text_html(line)}\n", 1
        elif output["output_type"] == "error":
            text = "\n".join(output["traceback"]) or f"{output['ename']}: {output['evalue']}"
            for line in reversed(_lines_of(text)):
                yield f"{_text_html(line)}\n", 0
        elif id(output) in numbers:
            yield f"[figure {numbers[id(output)]}]\n", 0
        else:
            yield _display_html(output.get("data", {})), 0


def _lines_of(text: str) -> list[str]:
    lines = as_shown(text).split("\n")
    return lines[:-1] if lines[-1:] == [""] else lines


def _text_html(text: str) -> str:
    return f"<bdi>{escape(legible_lines(text.expandtabs(8)))}</bdi>" if text.strip() else ""


def _display_html(data: dict[str, Any]) -> str:
    if "text/html" in data:
        html = legible_lines(harmless_html(unturned(joined(data["text/html"]))))
        return f'<div style="white-space:normal">{html}</div>'
    text = joined(data.get("text/plain", f"<{', '.join(data)}>"))
    return f"{_text_html(as_shown(text))}\n"


# As HTML.


def figures_html(figures: Iterable[Figure]) -> str:
    """Return the figures in a row, small."""
    shown = "".join(
        f'<img alt="figure{f" {each.number}" if each.number else ""}" src="{each.source}" '
        'style="height:84px;max-width:100%;margin:0 8px 4px 0;background-color:#fff;'
        "border:1px solid rgba(128,128,128,.3);border-radius:3px;display:inline-block;"
        'vertical-align:top">'
        for each in figures
    )
    return f'<div style="margin-top:6px">{shown}</div>' if shown else ""


def details_html(task: TaskRecord, counts: OutputCounts, output: CardOutput) -> str:
    """Return all of the output to be unfolded; empty if the card shows it without."""
    if not output.needs_unfolding(counts):
        return ""
    whole = "" if output.is_whole else (
        f'<div style="margin-bottom:4px">%bg_output {escape(task.id)} shows all of it.</div>'
    )  # fmt: skip
    return (
        '<details style="margin-top:6px"><summary style="cursor:pointer;font-weight:600">'
        f"{escape(_summary(counts, output))}</summary>"
        '<div style="max-height:320px;overflow:auto;margin-top:4px;padding-top:4px;'
        f'border-top:1px solid rgba(128,128,128,.3)">{whole}'
        f'<div style="{MONOSPACE};white-space:pre">{"".join(output.pieces)}</div></div></details>'
    )


def _summary(counts: OutputCounts, output: CardOutput) -> str:
    error = ["the traceback"] * output.has_error
    if output.is_whole:
        return f"All output: {', '.join(filter(None, [counts.in_words(), *error]))}"
    parts = []
    if output.lines < counts.lines:
        parts.append(f"{output.lines:,} of {counted(counts.lines, 'line')}")
    if len(output.figures) < counts.figures:
        parts.append(f"{len(output.figures)} of {counted(counts.figures, FIGURE)}")
    return f"The end of its output: {', '.join(parts + error)}"
