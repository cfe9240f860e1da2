"""The status card of a task, as HTML and as text.

The HTML has only inline styles, no SVG and no script, because an untrusted notebook keeps nothing
else. Text colour is inherited, so one card serves light and dark themes; only the glyph and the
border have the colour of the state.

A page that was loaded again keeps the card of a running task and gets no more updates. So what the
HTML says of such a task is what it was last seen doing, and when. In a trusted page a style sheet
shows it as running instead, for the few seconds after which the next update is overdue: it is an
animation that starts over with each update, so no script is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from ipytaskpersist.base.legible import legible
from ipytaskpersist.base.records import TaskRecord, TaskState
from ipytaskpersist.display import double_runs
from ipytaskpersist.display.card_content import Card
from ipytaskpersist.display.card_output import SHOWN_ANYWAY, details_html, figures_html
from ipytaskpersist.store.tries import tries_again
from ipytaskpersist.text.formatting import (
    DIM,
    EDGE,
    MONOSPACE,
    STATE_STYLES,
    duration,
    ending,
    exit_text,
    held_up,
    how_far,
    next_commands,
    reference,
    schedule,
    shorten,
    size,
    time_left,
    utc_clock,
    utc_date,
    waits_for,
    which_try,
)

NAME_CHARACTERS = 200
REASON_CHARACTERS = 80
"""Length of the reason of an earlier try."""
STALE_S = 3
"""Seconds without an update after which a card in a trusted page no longer looks live."""
PENDING, RUNNING = STATE_STYLES[TaskState.PENDING], STATE_STYLES[TaskState.RUNNING]
STYLE = f"""<style>
@keyframes ipytaskpersist-unseen{{from,to{{visibility:hidden;font-size:0;max-width:0;max-height:0;
margin:0;overflow:hidden}}}}
@keyframes ipytaskpersist-pending{{from,to{{border-style:solid}}}}
@keyframes ipytaskpersist-running{{from,to{{border-style:solid;
border-left-color:{RUNNING.colour}}}}}
.ipytaskpersist-old{{animation:ipytaskpersist-unseen {STALE_S}s}}
.ipytaskpersist-now{{animation:ipytaskpersist-unseen 0s {STALE_S}s forwards}}
span.ipytaskpersist-now{{display:inline!important}}
div.ipytaskpersist-now{{display:block!important}}
.ipytaskpersist-pending{{animation:ipytaskpersist-pending {STALE_S}s}}
.ipytaskpersist-running{{animation:ipytaskpersist-running {STALE_S}s}}
.ipytaskpersist-pending-glyph::before{{content:"{PENDING.glyph} ";color:{PENDING.colour}}}
.ipytaskpersist-running-glyph::before{{content:"{RUNNING.glyph} ";color:{RUNNING.colour}}}
@media print{{.ipytaskpersist-card,.ipytaskpersist-old{{animation:none!important}}
.ipytaskpersist-now{{display:none!important}}}}
</style>"""
NOW = 'class="ipytaskpersist-now" style="display:none"'
OLD = 'class="ipytaskpersist-old"'


def card_html(card: Card) -> str:
    """Return the card as HTML."""
    task = card.task
    state, colour = task.state.value, STATE_STYLES[task.state].colour
    style, name, border = "", "", f"1px solid {EDGE};border-left:4px solid {colour}"
    if not task.state.is_final:
        # A page that was loaded again finds the card of a task by the last of these classes.
        classes = f"ipytaskpersist-card ipytaskpersist-{state} ipytaskpersist-of-{escape(task.id)}"
        style, name = STYLE, f' class="{classes}"'
        border = f"1px dashed {EDGE};border-left:4px dashed {PENDING.colour}"
    return (
        f'{style}<section{name} role="group" aria-label="{escape(_title(task))}" style="'
        f"border:{border};border-radius:6px;max-width:760px;box-sizing:border-box;"
        "overflow:hidden;text-align:left;margin:0;"
        'font-family:system-ui,-apple-system,Segoe UI,sans-serif;font-size:13px;line-height:1.45">'
        f"{double_runs.as_html(task, card.also_running)}"
        f'<div style="padding:8px 12px">{_head(card)}{_picture_from(card)}{_bar(task)}'
        f"{_lines(card)}{_error(card)}{_warning(card)}{figures_html(card.output.figures)}"
        f"{details_html(task, card.counts, card.output)}{_foot(card)}</div></section>"
    )


def _title(task: TaskRecord) -> str:
    """Return the card's name for screen readers. A state that may be over is not part of it."""
    parts = [f"Background task {task.number}", legible(task.name)[:NAME_CHARACTERS]]
    if task.state.is_final:
        parts.append(task.state.value)
    return ", ".join(filter(None, parts))


def _head(card: Card) -> str:
    task, look = card.task, STATE_STYLES[card.task.state]
    glyph = f'<span aria-hidden="true" style="color:{look.colour}">{look.glyph} </span>'
    right = escape(_measures(card))
    if not task.state.is_final:
        glyph = (
            f'<span aria-hidden="true" {OLD} style="color:{PENDING.colour}">{PENDING.glyph} </span>'
            '<span aria-hidden="true" '
            f'class="ipytaskpersist-now ipytaskpersist-{task.state}-glyph"></span>'
            f"<span {OLD}>last seen </span>"
        )
        right = f"<span {NOW}>{right}</span><span {OLD}> at {_seen_at(card)}</span>"
    name = escape(legible(task.name)[:NAME_CHARACTERS])
    return (
        '<div style="display:flex;align-items:baseline">'
        f'<span style="font-weight:600;white-space:nowrap;margin-right:10px">{glyph}'
        f"{task.state.value}</span>"
        '<span style="font-weight:600;overflow:hidden;text-overflow:ellipsis;white-space:nowrap">'
        f'<bdi>{name}</bdi></span><span style="{DIM};margin-left:{10 if name else 0}px">'
        f"#{task.number}</span>"
        f'<span style="{DIM};margin-left:auto;padding-left:12px;white-space:nowrap;'
        f'font-variant-numeric:tabular-nums">{right}</span></div>'
    )


def _seen_at(card: Card) -> str:
    return f"{utc_clock(card.now)}, {utc_date(card.now)}"


def _measures(card: Card) -> str:
    """Return how far a task has come, or how it ended, and the time that it took."""
    task, time_taken = card.task, duration(card.task.elapsed_s(card.now))
    found = []
    if task.progress is not None and task.state is not TaskState.COMPLETED:
        found.append(how_far(task.progress))
    found.append(exit_text(task))
    if task.ended_at is not None:
        found += [f"took {time_taken}" * bool(task.started_at), f"ended {utc_clock(task.ended_at)}"]
    else:
        left = time_left(task, card.now)
        found += [time_taken * bool(task.started_at), f"about {left} left" if left else ""]
    return " · ".join(filter(None, found))


def _picture_from(card: Card) -> str:
    """Return what a card of a live task says once it gets no more updates."""
    if card.task.state.is_final:
        return ""
    return (
        f'<div {OLD} style="font-weight:600;margin-top:5px">A picture from {utc_clock(card.now)}. '
        "It no longer follows the task.</div>"
    )


def _bar(task: TaskRecord) -> str:
    fraction = task.progress.fraction if task.progress else None
    if fraction is None or task.state is not TaskState.RUNNING:
        return ""
    percent = 100 * fraction
    return (
        f'<div {NOW}><div role="progressbar" aria-label="progress" aria-valuemin="0" '
        f'aria-valuemax="100" aria-valuenow="{percent:.0f}" style="height:4px;'
        'border-radius:2px;background:rgba(128,128,128,.25);margin:7px 0 5px">'
        f'<div style="height:4px;border-radius:2px;width:{percent:.1f}%;'
        f'background:{RUNNING.colour}"></div></div></div>'
    )


def shown_lines(card: Card) -> Sequence[str]:
    """Return the last lines, and the progress text unless a line already contains it."""
    progress = None if card.task.state.is_final else card.task.progress
    text = progress.drawn or progress.text if progress else ""
    if not text or any(text in line for line in card.lines):
        return card.lines
    return [*card.lines[1 - SHOWN_ANYWAY :], text]


def _lines(card: Card) -> str:
    lines = [legible(line) for line in shown_lines(card)]
    if not lines:
        return ""
    shown = "".join(
        f'<div style="overflow:hidden;text-overflow:ellipsis"><bdi>{escape(line)}</bdi></div>'
        for line in lines
    )
    return f'<div style="{MONOSPACE};white-space:pre;margin-top:5px">{shown}</div>'


def _error(card: Card) -> str:
    task = card.task
    if task.state is not TaskState.FAILED or not _is_exception(task):
        return ""
    name, _colon, message = legible(task.reason or "").partition(": ")
    where = f"&ensp;({escape(legible(card.failed_at))})" if card.failed_at else ""
    return (
        f'<div style="{MONOSPACE};white-space:pre-wrap;overflow-wrap:anywhere;margin-top:5px">'
        f'<span style="font-weight:600">{escape(name)}</span>{": " if message else ""}'
        f"<bdi>{escape(message)}</bdi>{where}</div>"
    )


def _warning(card: Card) -> str:
    if not card.not_back:
        return ""
    colour = STATE_STYLES[TaskState.INTERRUPTED].colour
    return (
        '<div style="margin-top:5px;overflow-wrap:anywhere">'
        f'<span aria-hidden="true" style="color:{colour}">⚠ </span>'
        f"<bdi>{escape(legible(card.not_back))}</bdi></div>"
    )


def _is_exception(task: TaskRecord) -> bool:
    """Return whether it failed with a Python exception, which its reason names."""
    return task.kind == "python" and task.exit_code == 1


def _foot(card: Card) -> str:
    """Return further facts, and what to type next."""
    task = card.task
    # In a copy of the notebook, the number may be another task's.
    commands = escape(_commands(card, every_notebook=task.state.is_final))
    if not task.state.is_final:
        shows_all = f"<b>%bg_output {escape(task.id)}</b> shows all of it"
        commands = f"<span {NOW}>{commands}</span><span {OLD}> {shows_all}</span>"
    about = escape(legible(" · ".join(filter(None, _facts(card)))))
    return (
        f'<div style="{DIM};display:flex;flex-wrap:wrap;font-size:12px;margin-top:6px">'
        f'<span style="overflow-wrap:anywhere;margin-right:14px">{about}</span>'
        f'<span style="margin-left:auto;white-space:nowrap;{MONOSPACE}">{commands}</span></div>'
    )


def _commands(card: Card, every_notebook: bool = False) -> str:
    """Return what to type next."""
    named = reference(card.task, every_notebook)
    result = f" · %bg_result {named}" if card.has_result else ""
    return f"{next_commands(card.task, every_notebook)}{result}"


def _facts(card: Card) -> tuple[str, ...]:
    task = card.task
    where = task.runner if task.kind == "python" else "shell command"
    where = "whole notebook" if task.is_whole_notebook else where
    where = f"{where} on {task.place}" if task.place else where
    outlives = "outlives the kernel" if task.runner == "process" else "ends with the kernel"
    memory = "" if card.memory_bytes is None else size(card.memory_bytes)
    if memory and card.memory_curve:
        memory += f" {card.memory_curve}"
    is_above = card.output.needs_unfolding(card.counts)
    counts, updated = "" if is_above else card.counts.in_words(), f"updated {utc_clock(card.now)}"
    tried = _try(card)
    if task.state is TaskState.PENDING:
        return where, tried, waits_for(task) or "waits to be started", card.starts, updated
    following = _next_run(card)
    if task.state is TaskState.RUNNING:
        runs = held_up(task), f"{where}, {outlives}", tried
        return *runs, counts, memory, following, updated
    peak, on = f"peak {memory}" if memory else "", f"on {utc_date(task.ended_at or card.now)}"
    if task.state is TaskState.INTERRUPTED:
        kept = f"{counts} kept" if counts else ""
        return where, tried, task.reason or "", kept, on, following
    if task.state is TaskState.CANCELLED or (
        task.state is TaskState.FAILED and not _is_exception(task)
    ):
        said = ending(task)
        said = "" if said == task.state.value else said
        return where, tried, said, counts, on, peak, following
    return where, tried, counts, on, peak, following


def _try(card: Card) -> str:
    """Return ``try 2 of 4 of task 7``, and why there is one if it has not ended; else empty."""
    which, before = which_try(card.task), card.earlier_try
    if before is None or card.task.state.is_final:
        return which
    reason = (before.reason or "").removesuffix(tries_again(card.task.number)).rstrip("; ")
    return f"{which}, after {shorten(reason or before.state.value, REASON_CHARACTERS)}"


def _next_run(card: Card) -> str:
    """Return when the schedule's next run is due, with the date; empty if none is."""
    run = card.next_run
    if run is None or run.waiting is None or run.waiting.due_at is None:
        return ""
    due_at = run.waiting.due_at
    return f"{schedule(run)}, next at {utc_clock(due_at)}, {utc_date(due_at)} (task {run.number})"


# As text.


def card_text(card: Card) -> str:
    """Return the card as a few lines of text."""
    task, look = card.task, STATE_STYLES[card.task.state]
    parts = [f"{look.glyph} {task.state.value}", task.label, _measures(card)]
    if task.state.is_final and task.state is not TaskState.COMPLETED:
        parts.append(ending(task))
    parts += [_try(card), _next_run(card) or waits_for(task), card.starts]
    parts += [held_up(task) if not task.state.is_final else "", card.counts.in_words()]
    if not task.state.is_final:
        parts.append(f"updated {_seen_at(card)}")
    head = legible(" · ".join(dict.fromkeys(filter(None, parts)))) + f"   {_commands(card)}"
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
