"""The status card of a task, as HTML and as text.

The HTML has only inline styles, no SVG and no script, because an untrusted notebook keeps nothing
else. Text colour is inherited, so one card serves light and dark themes.

The card of a running task gives the time of its last update, because a reloaded page keeps the card
and gets no more updates. In a trusted page a CSS rule hides that while updates come: the card of a
running task is updated at least every few seconds, and turns grey if it is not. The rule is an
animation that starts over with each update, so no script is needed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape

from ipytaskpersist.base import process_tree
from ipytaskpersist.base.legible import legible
from ipytaskpersist.base.records import (
    CHANGED_HERE,
    NOT_ASKED,
    STREAM_KINDS,
    ProcessRecord,
    TaskRecord,
    TaskState,
)
from ipytaskpersist.display import double_runs
from ipytaskpersist.output import replay
from ipytaskpersist.session.cell_runs import also_running
from ipytaskpersist.session.manager import BackgroundTasks
from ipytaskpersist.store.task_store import TaskStore
from ipytaskpersist.text.formatting import (
    MONOSPACE,
    STATE_STYLES,
    counted,
    duration,
    ending,
    how_far,
    next_commands,
    place,
    size,
)

LINES = 3
NAME_CHARACTERS = 200
STALE_S = 10
"""Seconds without an update after which a card in a trusted page says so."""
MEMORY_S = 5.0
"""Interval at which the memory of a running process is measured."""
STYLE = f"""<style>
@keyframes ipytaskpersist-live{{from,to{{opacity:0;max-width:0;max-height:0}}}}
@keyframes ipytaskpersist-stale{{to{{filter:grayscale(1);opacity:.7}}}}
.ipytaskpersist-as-of{{animation:ipytaskpersist-live {STALE_S}s;overflow:hidden}}
.ipytaskpersist-card{{animation:ipytaskpersist-stale 0s {STALE_S}s forwards}}
</style>"""


@dataclass(frozen=True, slots=True)
class Card:
    """What a card shows besides the task's record."""

    task: TaskRecord
    now: datetime
    lines: Sequence[str] = ()
    """The last lines that it printed, as a terminal would show them."""
    line_count: int = 0
    """Number of lines that it has printed."""
    memory_bytes: int | None = None
    """Current memory of its processes; after its end the peak of any one of them."""
    failed_at: str = ""
    """The line of the cell that failed: ``cell line 4``."""
    not_back: str = ""
    """What it has changed of what it was given, and could not bring back, with the reasons."""
    also_running: Sequence[TaskRecord] = ()
    """The earlier runs of its cell that still run."""


class CardReader:
    """Reads what one task's card shows; costly parts only if they have changed."""

    def __init__(self, manager: BackgroundTasks) -> None:
        self._manager = manager
        self._sequence = -1
        self._lines: Sequence[str] = ()
        self._line_count = 0
        self._memory_bytes: int | None = None
        self._memory_at = 0.0

    def read(self, task: TaskRecord, now: datetime) -> Card:
        """Return the current card of a task."""
        store = self._manager.tasks.store_of(task)
        self._read_lines(store, task.key)
        return Card(
            task,
            now,
            self._lines,
            self._line_count,
            self._memory(store, task),
            _failed_at(store, task),
            _not_back(store, task),
            also_running(store, task),
        )

    def _read_lines(self, store: TaskStore, key: int) -> None:
        sequence = store.outputs.last_sequence(key)
        if sequence != self._sequence:
            self._sequence = sequence
            self._lines = replay.last_lines(store, key, LINES)
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
    used = process_tree.usage(process.pid_here, process.process_start)
    return None if used is None else used[0]


def _failed_at(store: TaskStore, task: TaskRecord) -> str:
    found = store.tasks.post_mortem(task.key) if task.state is TaskState.FAILED else None
    places = [frame["place"] for frame in found["frames"]] if found else []
    return next((each for each in reversed(places) if each.startswith("cell line ")), "")


def _not_back(store: TaskStore, task: TaskRecord) -> str:
    if task.runner != "process" or not task.state.is_final:
        return ""
    problems = {each.name: each.problem or "" for each in store.results.variables(task.key)}
    shown = [
        f"{name} ({problem.removeprefix(CHANGED_HERE).lstrip(': ')})"
        for name, problem in problems.items()
        if problem.startswith(CHANGED_HERE) and not problem.endswith(NOT_ASKED)
    ]
    return f"{CHANGED_HERE}: {', '.join(shown)}" if shown else ""


# As HTML.


def card_html(card: Card) -> str:
    """Return the card as HTML."""
    task = card.task
    look = STATE_STYLES[task.state]
    style = "" if task.state.is_final else STYLE
    name = "" if task.state.is_final else ' class="ipytaskpersist-card"'
    return (
        f'{style}<div{name} style="border:1px solid rgba(128,128,128,.28);'
        f"border-left:4px solid {look.colour};border-radius:6px;padding:8px 12px;max-width:640px;"
        "box-sizing:border-box;overflow:hidden;text-align:left;"
        'font-family:system-ui,-apple-system,Segoe UI,sans-serif;font-size:13px;line-height:1.45">'
        f"{double_runs.as_html(task, card.also_running)}"
        f"{_head(card)}{_bar(task)}{_lines(card)}{_error(card)}{_warning(card)}{_foot(card)}</div>"
    )


def _head(card: Card) -> str:
    task, look = card.task, STATE_STYLES[card.task.state]
    right = '<span style="opacity:.4">&ensp;·&ensp;</span>'.join(
        escape(part) for part in (*_measures(task), duration(task.elapsed_s(card.now)))
    )
    name = legible(task.name)[:NAME_CHARACTERS]
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
    """Return what comes before the time: progress, and how it ended."""
    found = []
    if task.progress is not None and task.state is not TaskState.COMPLETED:
        found.append(how_far(task.progress))
    if task.exit_code is not None:
        code = task.exit_code
        found.append(f"exit {code}" if code >= 0 else process_tree.signal_name(-code))
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
        f'background:{STATE_STYLES[task.state].colour}"></div></div>'
    )


def shown_lines(card: Card) -> Sequence[str]:
    """Return the last lines, and the progress text unless a line already contains it."""
    text = card.task.progress.text if card.task.progress and not card.task.state.is_final else ""
    if not text or any(text in line for line in card.lines):
        return card.lines
    return [*card.lines[1 - LINES :], text]


def _lines(card: Card) -> str:
    lines = [legible(line) for line in shown_lines(card)]
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
    name, _colon, message = legible(task.reason or "").partition(": ")
    where = f"&ensp;({escape(legible(card.failed_at))})" if card.failed_at else ""
    return (
        f'<div style="{MONOSPACE};white-space:pre-wrap;overflow-wrap:anywhere;margin-top:5px">'
        f'<span style="color:{STATE_STYLES[TaskState.FAILED].colour};font-weight:600">'
        f"{escape(name)}</span>{': ' if message else ''}<bdi>{escape(message)}</bdi>{where}</div>"
    )


def _warning(card: Card) -> str:
    if not card.not_back:
        return ""
    colour = STATE_STYLES[TaskState.INTERRUPTED].colour
    return (
        f'<div style="margin-top:5px;overflow-wrap:anywhere;color:{colour}">'
        f"<bdi>{escape(legible(card.not_back))}</bdi></div>"
    )


def _is_exception(task: TaskRecord) -> bool:
    """Return whether it failed with a Python exception, which its reason names."""
    return task.kind == "python" and task.exit_code == 1


def _foot(card: Card) -> str:
    """Return further facts, and what to type next."""
    as_of = ""
    if not card.task.state.is_final:
        as_of = (
            '<span class="ipytaskpersist-as-of" style="white-space:nowrap">'
            # By its id: in a copy of the notebook, the number may be another task's.
            f"as of {_moment(card.now)}; %bg_show {card.task.id} shows it now</span>"
        )
    about = escape(legible(_about(card)))
    return (
        '<div style="display:flex;flex-wrap:wrap;column-gap:14px;opacity:.68;font-size:12px;'
        f'margin-top:5px"><span style="overflow-wrap:anywhere">{about}</span>{as_of}'
        f'<span style="margin-left:auto;white-space:nowrap;{MONOSPACE}">'
        f"{next_commands(card.task)}</span></div>"
    )


def _moment(at: datetime) -> str:
    """Return a time that will still be unambiguous in a year."""
    return f"{at.astimezone():%Y-%m-%d %H:%M:%S}"


def _about(card: Card) -> str:
    """Return one line of further facts."""
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
    """Return the card as a few lines of text."""
    task, look = card.task, STATE_STYLES[card.task.state]
    parts = [f"{look.glyph} {task.state.value}", task.label, *_measures(task)]
    if task.started_at is not None:
        parts.append(duration(task.elapsed_s(card.now)))
    if task.state.is_final and task.state is not TaskState.COMPLETED:
        parts.append(ending(task))
    elif not task.state.is_final:
        parts.append(f"as of {_moment(card.now)}")
    head = legible(" · ".join(dict.fromkeys(filter(None, parts)))) + f"   {next_commands(task)}"
    twice = double_runs.in_words(task, card.also_running, card.now)
    lines = [*shown_lines(card), *filter(None, [card.not_back, twice])]
    return "\n".join([head, *(f"  {legible(line)}" for line in lines)])


def cards_html(cards: Sequence[Card]) -> str:
    """Return several cards, one below the other."""
    return "".join(f'<div style="margin-bottom:6px">{card_html(card)}</div>' for card in cards)


def cards_text(cards: Sequence[Card]) -> str:
    """Return several cards as text."""
    return "\n".join(map(card_text, cards))


def bundle(cards: Sequence[Card]) -> dict[str, str]:
    """Return cards as front ends show them."""
    html = card_html(cards[0]) if len(cards) == 1 else cards_html(cards)
    return {"text/html": html, "text/plain": cards_text(cards)}
