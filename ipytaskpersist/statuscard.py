"""The status card of a task, as HTML and as text.

The HTML has inline styles only, no SVG and no script: that is what an untrusted notebook leaves
standing. Text colour is inherited, so that one card serves light and dark themes.

A card of a running task says as of when it is true, because a page that is loaded again keeps the
card and gets no more updates. In a trusted page a rule of CSS hides that while updates come: the
card of a task that runs is updated at least every few seconds, and one that is not turns grey. The
rule is an animation, which begins anew with each update, so that no script is needed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape

from ipytaskpersist import outputs, processes
from ipytaskpersist.manager import BackgroundTasks
from ipytaskpersist.records import STREAM_KINDS, ProcessRecord, TaskRecord, TaskState
from ipytaskpersist.store import TaskStore
from ipytaskpersist.views import (
    LOOKS,
    MONOSPACE,
    counted,
    duration,
    ending,
    how_far,
    next_commands,
    place,
    printable,
    size,
)

LINES = 3
NAME_CHARACTERS = 200
STALE_S = 10
"""After how many seconds without an update a card in a trusted page says that it has none."""
MEMORY_S = 5.0
"""How often the memory of a running process is looked at."""
STYLE = f"""<style>
@keyframes ipytaskpersist-live{{from,to{{opacity:0;max-width:0;max-height:0}}}}
@keyframes ipytaskpersist-stale{{to{{filter:grayscale(1);opacity:.7}}}}
.ipytaskpersist-as-of{{animation:ipytaskpersist-live {STALE_S}s;overflow:hidden}}
.ipytaskpersist-card{{animation:ipytaskpersist-stale 0s {STALE_S}s forwards}}
</style>"""


@dataclass(frozen=True, slots=True)
class Card:
    """What a card shows besides what the task's record says."""

    task: TaskRecord
    now: datetime
    lines: Sequence[str] = ()
    """The last lines that it printed, as a terminal would show them."""
    line_count: int = 0
    """How many lines it has printed."""
    memory_bytes: int | None = None
    """What its processes have in memory now; at its end the most that one of them had."""
    failed_at: str = ""
    """Which line of the cell failed: ``cell line 4``."""


class CardReader:
    """Reads what one task's card shows, and of what costs something only what has changed."""

    def __init__(self, manager: BackgroundTasks) -> None:
        self._manager = manager
        self._sequence = -1
        self._lines: Sequence[str] = ()
        self._line_count = 0
        self._memory_bytes: int | None = None
        self._memory_at = 0.0

    def read(self, task: TaskRecord, now: datetime) -> Card:
        """The card of a task as it is now."""
        store = self._manager.store_of(task)
        self._read_lines(store, task.key)
        return Card(
            task,
            now,
            self._lines,
            self._line_count,
            self._memory(store, task),
            _failed_at(store, task),
        )

    def _read_lines(self, store: TaskStore, key: int) -> None:
        sequence = store.outputs.last_sequence(key)
        if sequence != self._sequence:
            self._sequence = sequence
            self._lines = outputs.last_lines(store, key, LINES)
            self._line_count = sum(
                store.outputs.stream_size(key, kind).lines for kind in STREAM_KINDS
            )

    def _memory(self, store: TaskStore, task: TaskRecord) -> int | None:
        if task.runner != "process":
            return None
        if not task.state.is_final and time.monotonic() - self._memory_at < MEMORY_S:
            return self._memory_bytes
        self._memory_at = time.monotonic()
        process = store.processes.get(task.key)
        self._memory_bytes = None if process is None else _memory_of(task, process)
        return self._memory_bytes


def _memory_of(task: TaskRecord, process: ProcessRecord) -> int | None:
    if task.state.is_final:
        return process.peak_memory_bytes
    used = processes.usage(process.pid_here, process.process_start)
    return None if used is None else used[0]


def _failed_at(store: TaskStore, task: TaskRecord) -> str:
    found = store.tasks.post_mortem(task.key) if task.state is TaskState.FAILED else None
    places = [frame["place"] for frame in found["frames"]] if found else []
    return next((each for each in reversed(places) if each.startswith("cell line ")), "")


# As HTML.


def card_html(card: Card) -> str:
    """The card as HTML."""
    task = card.task
    look = LOOKS[task.state]
    style = "" if task.state.is_final else STYLE
    name = "" if task.state.is_final else ' class="ipytaskpersist-card"'
    return (
        f'{style}<div{name} style="border:1px solid rgba(128,128,128,.28);'
        f"border-left:4px solid {look.colour};border-radius:6px;padding:8px 12px;max-width:640px;"
        "box-sizing:border-box;overflow:hidden;text-align:left;"
        'font-family:system-ui,-apple-system,Segoe UI,sans-serif;font-size:13px;line-height:1.45">'
        f"{_head(card)}{_bar(task)}{_lines(card)}{_error(card)}{_foot(card)}</div>"
    )


def _head(card: Card) -> str:
    task, look = card.task, LOOKS[card.task.state]
    right = '<span style="opacity:.4">&ensp;·&ensp;</span>'.join(
        escape(part) for part in (*_measures(task), duration(task.elapsed_s(card.now)))
    )
    name = printable(task.name)[:NAME_CHARACTERS]
    return (
        '<div style="display:flex;align-items:center;gap:10px">'
        f'<span style="color:{look.colour};font-weight:600;white-space:nowrap">'
        f"{look.glyph} {task.state.value}</span>"
        '<span style="font-weight:600;overflow:hidden;text-overflow:ellipsis;white-space:nowrap">'
        f'<span style="opacity:.55">{task.number}</span>&ensp;<bdi>{escape(name)}</bdi></span>'
        '<span style="margin-left:auto;white-space:nowrap;font-variant-numeric:tabular-nums">'
        f"{right}</span></div>"
    )


def _measures(task: TaskRecord) -> list[str]:
    """What stands before the time: how far it has come, and how it ended."""
    found = []
    if task.progress is not None and task.state is not TaskState.COMPLETED:
        found.append(how_far(task.progress))
    if task.exit_code is not None:
        code = task.exit_code
        found.append(f"exit {code}" if code >= 0 else processes.signal_name(-code))
    return found


def _bar(task: TaskRecord) -> str:
    fraction = task.progress.fraction if task.progress else None
    if fraction is None or task.state is not TaskState.RUNNING:
        return ""
    percent = 100 * fraction
    return (
        f'<div role="progressbar" aria-valuenow="{percent:.0f}" style="height:4px;'
        'border-radius:2px;background:rgba(128,128,128,.22);margin:7px 0 5px">'
        f'<div style="height:4px;border-radius:2px;width:{percent:.1f}%;'
        f'background:{LOOKS[task.state].colour}"></div></div>'
    )


def shown_lines(card: Card) -> Sequence[str]:
    """The last lines, and what its code says of its progress where no line says that."""
    text = card.task.progress.text if card.task.progress and not card.task.state.is_final else ""
    if not text or any(text in line for line in card.lines):
        return card.lines
    return [*card.lines[1 - LINES :], text]


def _lines(card: Card) -> str:
    lines = [printable(line) for line in shown_lines(card)]
    if not lines:
        return ""
    shown = "".join(
        f'<div style="overflow:hidden;text-overflow:ellipsis"><bdi>{escape(line)}</bdi></div>'
        for line in lines
    )
    return f'<div style="{MONOSPACE};white-space:pre;opacity:.85;margin-top:5px">{shown}</div>'


def _error(card: Card) -> str:
    task = card.task
    if task.state is not TaskState.FAILED or not _is_exception(task):
        return ""
    name, _colon, message = printable(task.reason or "").partition(": ")
    where = f"&ensp;({escape(printable(card.failed_at))})" if card.failed_at else ""
    return (
        f'<div style="{MONOSPACE};white-space:pre-wrap;overflow-wrap:anywhere;margin-top:5px">'
        f'<span style="color:{LOOKS[TaskState.FAILED].colour};font-weight:600">{escape(name)}'
        f"</span>{': ' if message else ''}<bdi>{escape(message)}</bdi>{where}</div>"
    )


def _is_exception(task: TaskRecord) -> bool:
    """Whether it failed by an exception of Python's, which its reason names."""
    return task.kind == "python" and task.exit_code == 1


def _foot(card: Card) -> str:
    """What else there is to know, and what to type next."""
    as_of = ""
    if not card.task.state.is_final:
        as_of = (
            '<span class="ipytaskpersist-as-of" style="white-space:nowrap">'
            f"as of {_moment(card.now)}; %bg_list shows it now</span>"
        )
    about = escape(printable(_about(card)))
    return (
        '<div style="display:flex;flex-wrap:wrap;column-gap:14px;opacity:.68;font-size:12px;'
        f'margin-top:5px"><span style="overflow-wrap:anywhere">{about}</span>{as_of}'
        f'<span style="margin-left:auto;white-space:nowrap;{MONOSPACE}">'
        f"{next_commands(card.task)}</span></div>"
    )


def _moment(at: datetime) -> str:
    """A time that will still be right in a year."""
    return f"{at.astimezone():%Y-%m-%d %H:%M:%S}"


def _about(card: Card) -> str:
    """One line of what else there is to know."""
    return " · ".join(part for part in _facts(card) if part)


def _facts(card: Card) -> tuple[str, ...]:
    task = card.task
    memory = "" if card.memory_bytes is None else size(card.memory_bytes)
    ended = _moment(task.ended_at)[:-3] if task.ended_at else ""
    lines = counted(card.line_count, "line") if card.line_count > LINES else ""
    peak = f"peak {memory}" if memory else ""
    if task.state is TaskState.PENDING:
        return place(task), "waits to be started"
    if task.state is TaskState.RUNNING:
        outlives = "outlives the kernel" if task.runner == "process" else ""
        return place(task), outlives, lines, memory
    if task.state is TaskState.INTERRUPTED:
        return f"{task.reason} at {ended}", "what it printed is kept"
    if task.state is TaskState.CANCELLED:
        return place(task), lines, f"cancelled at {ended}"
    if task.state is TaskState.FAILED and not _is_exception(task):
        return place(task), ending(task), lines, f"finished {ended}", peak
    return place(task), lines, f"finished {ended}", peak


# As text.


def card_text(card: Card) -> str:
    """The card in a few lines of text."""
    task, look = card.task, LOOKS[card.task.state]
    parts = [f"{look.glyph} {task.state.value}", task.label, *_measures(task)]
    if task.started_at is not None:
        parts.append(duration(task.elapsed_s(card.now)))
    if task.state.is_final and task.state is not TaskState.COMPLETED:
        parts.append(ending(task))
    elif not task.state.is_final:
        parts.append(f"as of {_moment(card.now)}")
    head = printable(" · ".join(dict.fromkeys(filter(None, parts)))) + f"   {next_commands(task)}"
    return "\n".join([head, *(f"  {printable(line)}" for line in shown_lines(card))])


def cards_html(cards: Sequence[Card]) -> str:
    """Several cards, one below the other."""
    return "".join(f'<div style="margin-bottom:6px">{card_html(card)}</div>' for card in cards)


def cards_text(cards: Sequence[Card]) -> str:
    """Several cards as text."""
    return "\n".join(map(card_text, cards))


def bundle(cards: Sequence[Card]) -> dict[str, str]:
    """Cards as front ends show them."""
    html = card_html(cards[0]) if len(cards) == 1 else cards_html(cards)
    return {"text/html": html, "text/plain": cards_text(cards)}
