"""The greeting when the extension is loaded, as text and as HTML: each task, and what to type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from ipytaskpersist.base.legible import legible
from ipytaskpersist.base.records import TaskRecord, TaskState
from ipytaskpersist.display.greetings import News
from ipytaskpersist.output.counts import OutputCounts
from ipytaskpersist.text.formatting import (
    DIM,
    EDGE,
    STATE_STYLES,
    clock,
    counted,
    duration,
    ending,
    how_far,
    next_verbs,
    shorten,
    state_html,
    time_left,
)

RUNNING_SHOWN = 20
RESUMED_SHOWN = 4
NAME_CHARACTERS = 32
REASON_CHARACTERS = 60
VERBS = {
    TaskState.COMPLETED: ("finished", "finished"),
    TaskState.FAILED: ("failed", "failed"),
    TaskState.CANCELLED: ("was cancelled", "were cancelled"),
    TaskState.INTERRUPTED: ("was interrupted", "were interrupted"),
}
"""Wording of the first line, for one task and for several, in this order."""


def in_words(news: News) -> str:
    """Return the news as a few lines; empty if there are none."""
    if news.is_empty:
        return ""
    lines = [_first_line(news)] if news.ended or news.counts else []
    lines.extend(f"  {_line(task, news)}" for task in _shown(news))
    lines.extend(f"  {note}" for note in _notes(news))
    return "\n".join(lines)


def _shown(news: News) -> list[TaskRecord]:
    return [*news.running[:RUNNING_SHOWN], *news.ended]


def _first_line(news: News) -> str:
    if not news.ended:
        return f"{_from_before(news)}. %bg_list shows them"
    parts: list[str] = []
    for state, verbs in VERBS.items():
        count = news.ended_counts.get(state, 0)
        if count:
            noun = "" if parts else " task" if count == 1 else " tasks"
            parts.append(f"{count}{noun} {verbs[count != 1]}")
    line = f"While you were away: {', '.join(parts)}"
    if news.resumed:
        line += f"; {len(news.resumed)} {'runs' if len(news.resumed) == 1 else 'run'} again"
    if news.running:
        line += f"; {len(news.running)} {'is' if len(news.running) == 1 else 'are'} still running"
    return f"{line}."


def _from_before(news: News) -> str:
    """Return ``3 tasks from before, 1 running, 2 completed``."""
    return f"{counted(sum(news.counts.values()), 'task')} from before, {_states(news)}"


def _states(news: News) -> str:
    return ", ".join(f"{news.counts[state]} {state}" for state in TaskState if state in news.counts)


def _line(task: TaskRecord, news: News) -> str:
    name = f" ({shorten(task.name, NAME_CHARACTERS)})" if task.name else ""
    text = legible(" · ".join(filter(None, [f"{task.number}{name}", _evidence(task, news)])))
    look = STATE_STYLES[task.state]
    return f"{look.glyph} {task.state.value:<11} {text}   {' · '.join(_commands(task, news))}"


def _evidence(task: TaskRecord, news: News) -> str:
    """Return how far a task has come, or why it ended and what there is of it."""
    if not task.state.is_final:
        return _how_far(task, news)
    reason = shorten(ending(task), REASON_CHARACTERS)
    output = news.outputs.get(task.id, OutputCounts()).in_words()
    again = news.resumed.get(task.id)
    if task.state is TaskState.INTERRUPTED:
        kept = f"{output} {'is' if output.startswith('1 ') and ',' not in output else 'are'} kept"
        parts = [reason, kept if output else "", f"runs again as {again.number}" if again else ""]
        return " · ".join(filter(None, parts))
    if task.state is TaskState.FAILED:
        return reason
    return ", ".join(filter(None, [output, f"took {duration(task.elapsed_s(news.now))}"]))


def _how_far(task: TaskRecord, news: News) -> str:
    left = time_left(task, news.now)
    far = how_far(task.progress) if task.progress else ""
    taken = duration(task.elapsed_s(news.now)) if task.started_at else "waits to be started"
    return ", ".join(filter(None, [far or taken, f"about {left} left" if left else ""]))


def _commands(task: TaskRecord, news: News) -> list[str]:
    again = news.resumed.get(task.id)
    if again is not None:
        return [f"%bg_output {again.number}"]
    if not task.state.is_final:
        return [f"%bg_wait {task.number}"]
    verbs = next_verbs(task)
    # An interrupted task has something left to do.
    return [f"%bg_{verb} {task.number}" for verb in verbs[: 1 + _is_cut_off(task)]]


def _is_cut_off(task: TaskRecord) -> bool:
    return task.state is TaskState.INTERRUPTED


def _notes(news: News) -> list[str]:
    """Return what there is besides the tasks that are shown."""
    notes = [
        f"before %bg_resume {task.number}, {legible(news.needs[task.id])}"
        for task in news.ended
        if task.id in news.needs
    ]
    more = len(news.running) - RUNNING_SHOWN
    if more > 0:
        notes.append(f"and {more} more that run; %bg_list shows them all")
    more = sum(news.ended_counts.values()) - len(news.ended)
    if more:
        notes.append(f"and {more} more; %bg_list shows them all")
    return notes + _resumed(news.resumed, [task.id for task in news.ended])


def _resumed(resumed: Mapping[str, TaskRecord], told: Sequence[str]) -> list[str]:
    """Return one line about tasks that were run again and are not reported yet."""
    pairs = [
        f"{before.rpartition('-')[2]} as " + legible(shorten(again.label, 40))
        for before, again in resumed.items()
        if before not in told
    ]
    more = f" and {len(pairs) - RESUMED_SHOWN} more" if len(pairs) > RESUMED_SHOWN else ""
    return [f"run again: {', '.join(pairs[:RESUMED_SHOWN])}{more}"] if pairs else []


# As HTML.

CODE = '<code style="white-space:nowrap">'
TABLE = "border-collapse:collapse;font-size:13px;margin:4px 0 0 0;border:0"
CELL = (
    "text-align:left;vertical-align:top;line-height:20px;padding:4px 14px 4px 0;border:0;"
    "border-bottom:1px solid rgba(128,128,128,.2)"
)


def as_html(news: News) -> str:
    """Return the news as a card with a row for each task."""
    colour = STATE_STYLES[TaskState.INTERRUPTED].colour
    title = "While you were away" if news.ended else "Tasks from before"
    rows = "".join(_row_html(task, news) for task in _shown(news))
    table = f'<table style="{TABLE}">{rows}</table>'
    notes = "".join(f'<div style="margin-top:4px">{escape(note)}</div>' for note in _notes(news))
    return (
        f'<section role="group" aria-label="{title}" style="border:1px solid {EDGE};'
        f"border-left:4px solid {colour};border-radius:6px;max-width:760px;box-sizing:border-box;"
        "padding:8px 12px;overflow:hidden;text-align:left;"
        'font-family:system-ui,-apple-system,Segoe UI,sans-serif;font-size:13px;line-height:1.45">'
        f'<b>{title}</b> <span style="{DIM}">{escape(_when(news))}</span>'
        f"{table if rows else ''}{notes}</section>"
    )


def _when(news: News) -> str:
    if news.since is None:
        return f"{_states(news)} · %bg_list shows them" if news.counts else ""
    kernel, _space, verb = news.why.partition(" ")
    how = f", when this kernel {'was ' * (verb != 'died')}{verb}" if kernel == "kernel" else ""
    return f"since {clock(news.since, news.now)}{how}"


def _row_html(task: TaskRecord, news: News) -> str:
    state = "still running" if task.state is TaskState.RUNNING else task.state.value
    name = escape(legible(shorten(task.name, NAME_CHARACTERS)))
    commands = " · ".join(f"{CODE}{escape(each)}</code>" for each in _commands(task, news))
    cells = (
        state_html(task.state, state),
        f'<span style="white-space:nowrap"><b><bdi>{name}</bdi></b> '
        f'<span style="{DIM}">#{task.number}</span></span>',
        f'<span style="{DIM}"><bdi>{escape(legible(_evidence(task, news)))}</bdi></span>',
        commands,
    )
    row = "".join(f'<td style="{CELL}">{cell}</td>' for cell in cells)
    return f'<tr style="background:transparent">{row}</tr>'
