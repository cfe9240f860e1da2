"""A look at what a task does, as a record and as text in the form of a traceback."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ipytaskpersist.base.legible import legible
from ipytaskpersist.inspection.stacks import Frame, ProcessStacks, Stack

IDLE_S = 0.03
"""Processor time that a process needs to say what it does."""


@dataclass(frozen=True, slots=True)
class Look:
    """What a task did at one moment."""

    at: datetime
    took_s: float
    """How long the look has taken, in seconds."""
    processes: Sequence[ProcessStacks]
    """The task's own process, or its kernel, first."""

    def as_json(self) -> dict[str, Any]:
        """Return the look as ``stack --json`` prints it."""
        return {
            "at": self.at.isoformat(),
            "took_s": round(self.took_s, 4),
            "processes": [process.as_json() for process in self.processes],
        }

    def __str__(self) -> str:
        return "\n".join(line for process in self.processes for line in _process(process, self))


def change(before: Look, look: Look) -> str:
    """Return what has moved since the look before, in full, and what has not, in a line."""
    old = {(process.pid, _name(stack)): _keys(stack) for process, stack in _stacks(before)}
    lines: list[str] = []
    same = 0
    for process, stack in _stacks(look):
        if old.get((process.pid, _name(stack))) == _keys(stack):
            same += 1
        else:
            lines += _stack(stack)
    counts = {(each.pid, each.state) for each in look.processes}
    if not lines and counts == {(each.pid, each.state) for each in before.processes}:
        return "nothing has moved" + _processor_time(before, look)
    ended = {each.pid for each in before.processes} - {each.pid for each in look.processes}
    lines += [f"process {pid} has ended" for pid in sorted(ended)]
    return "\n".join([*lines, *([f"{same} more have not moved"] if same else [])])


def _processor_time(before: Look, look: Look) -> str:
    taken = _cpu_s(look) - _cpu_s(before)
    passed = (look.at - before.at).total_seconds()
    if taken < IDLE_S + passed / 100:
        return ", and no processor time was used"
    return f", but {taken:.1f} s of processor time were used in {passed:.1f} s"


def _cpu_s(look: Look) -> float:
    return sum(process.cpu_s or 0.0 for process in look.processes)


def _stacks(look: Look) -> Iterator[tuple[ProcessStacks, Stack]]:
    for process in look.processes:
        for stack in process.stacks:
            yield process, stack


def _keys(stack: Stack) -> list[tuple[str, int]]:
    return [frame.key for frame in stack.frames]


def _name(stack: Stack) -> str:
    return f"{'asyncio task' if stack.is_asyncio else 'thread'} {legible(stack.name)}"


def _process(process: ProcessStacks, look: Look) -> Iterator[str]:
    parents = {each.pid for each in look.processes} - {process.pid}
    words = [f"process {process.pid}"]
    if process.parent in parents:
        words.append(f"(of {process.parent})")
    state = process.state
    if process.waits_in:
        state += f" in {process.waits_in}"
    used = "" if process.cpu_s is None else f", {process.cpu_s:.1f} s of processor time"
    yield f"{' '.join(words)}: {legible(process.command)} · {state}{used}"
    if process.note:
        yield f"  {process.note}"
    for stack in process.stacks:
        yield from _stack(stack)


def _stack(stack: Stack) -> Iterator[str]:
    yield f"{_name(stack)}:"
    for frame in stack.frames:
        yield f"  {_place(frame)}"
        yield from _code(frame)


def _place(frame: Frame) -> str:
    where = "Cell" if frame.is_cell else f"File {legible(_from_home(frame.file))}"
    if frame.is_cell and frame.number is not None:
        where = f"Cell In[{frame.number}]"
    named = "" if frame.function.startswith("<") else f", in {legible(frame.function)}"
    return f"{where}, line {frame.line}{named}"


def _from_home(path: str) -> str:
    home = os.environ.get("HOME") or "~"
    return f"~{path[len(home) :]}" if path.startswith(f"{home}{os.sep}") else path


def _code(frame: Frame) -> Iterator[str]:
    numbered: Sequence[tuple[int, str]] = [*enumerate(frame.code, frame.first_line)]
    for number, text in numbered:
        mark = "---->" if number == frame.line else "     "
        yield f"  {mark} {number} {legible(text.expandtabs(8))}".rstrip()
