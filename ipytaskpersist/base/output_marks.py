"""Marks in the metadata of a cell's outputs: which task they belong to.

The card of a task, and each display that a fill puts below it, carry the task's id::

    {"ipytaskpersist": {"task": "a7k3m9x2-3", "part": "card"}}

A notebook file keeps metadata of displays, results and nothing else: a stream or an error has no
room for a mark. So what stands between a card and the last marked output of its task belongs to
that task. In a background cell, which shows nothing but its task, so does all that follows. In
other cells an empty display with the part ``end`` closes what ends without a mark.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

KEY = "ipytaskpersist"
CARD = "card"
OUTPUT = "output"
FOLD = "fold"
"""The note that stands for the middle of a long output."""
END = "end"
"""An empty display behind outputs without a mark, so that what follows is not taken for theirs."""
UNMARKABLE = ("stream", "error")
"""The types of output that have no metadata."""


def mark(task_id: str, part: str) -> dict[str, Any]:
    """Return the metadata that says which task an output belongs to, and as what."""
    return {KEY: {"task": task_id, "part": part}}


def marked(output: dict[str, Any], task_id: str, part: str = OUTPUT) -> dict[str, Any]:
    """Return an output with a task's mark, if its type has room for one."""
    if output["output_type"] in UNMARKABLE:
        return output
    return {**output, "metadata": {**output["metadata"], **mark(task_id, part)}}


def task_of(output: Mapping[str, Any], part: str = "") -> str | None:
    """Return the id of the task that an output is marked with, as any part or as this one."""
    metadata = output.get("metadata")
    found = metadata.get(KEY) if isinstance(metadata, Mapping) else None
    if not isinstance(found, Mapping) or not isinstance(found.get("task"), str):
        return None
    return str(found["task"]) if part in ("", found.get("part")) else None


@dataclass(frozen=True, slots=True)
class Filled:
    """The part of a cell's outputs that belongs to one card."""

    task: str
    """Id of the task that the card is marked with."""
    start: int
    """Position of the card."""
    end: int
    """Position after the last output of the task."""


def filled_parts(outputs: Sequence[Mapping[str, Any]], *, is_whole: bool) -> list[Filled]:
    """Return the cards of a cell, each with the outputs that belong to it.

    `is_whole` says that the cell is one background cell: then all is of its last card.
    """
    cards = [place for place, output in enumerate(outputs) if task_of(output, CARD)]
    if is_whole and cards:
        marks = (place for place, output in enumerate(outputs) if task_of(output))
        return [Filled(str(task_of(outputs[cards[-1]])), next(marks), len(outputs))]
    found = []
    for card, following in zip(cards, [*cards[1:], len(outputs)], strict=False):
        task = str(task_of(outputs[card]))
        own = [place for place in range(card, following) if task_of(outputs[place]) == task]
        found.append(Filled(task, card, own[-1] + 1))
    return found


def closed(outputs: Sequence[dict[str, Any]], task_id: str) -> list[dict[str, Any]]:
    """Return the outputs of a task so that they end with a mark."""
    if outputs and task_of(outputs[-1]) is None:
        end = {"output_type": "display_data", "data": {}, "metadata": mark(task_id, END)}
        return [*outputs, end]
    return [*outputs]
