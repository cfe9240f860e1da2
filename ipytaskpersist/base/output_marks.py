"""Marks in the metadata of a cell's outputs: which task they belong to.

The card of a task, and each display that a fill puts below it, carry the task's id::

    {"ipytaskpersist": {"task": "a7k3m9x2-3", "part": "card"}}

A notebook file keeps metadata of displays, results and nothing else: a stream or an error has no
room for a mark. So what stands between a card and the last marked output of its task belongs to
that task, and so do the streams and errors that follow it directly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

KEY = "ipytaskpersist"
CARD = "card"
OUTPUT = "output"
FOLD = "fold"
"""The note that stands for the middle of a long output."""
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


def filled_parts(outputs: Sequence[Mapping[str, Any]]) -> Iterator[Filled]:
    """Yield the cards of a cell, each with the outputs that belong to it."""
    cards = [place for place, output in enumerate(outputs) if task_of(output, CARD)]
    for card, following in zip(cards, [*cards[1:], len(outputs)], strict=False):
        task = str(task_of(outputs[card]))
        end = card + 1
        for place in range(card + 1, following):
            if task_of(outputs[place]) == task:
                end = place + 1
        while end < following and outputs[end].get("output_type") in UNMARKABLE:
            end += 1
        yield Filled(task, card, end)
