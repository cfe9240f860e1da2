"""Read what `faulthandler` has written about the threads of a process."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from ipytaskpersist.inspection.stacks import Frame, Stack
from ipytaskpersist.inspection.trimming import CELL, trimmed

THREAD = re.compile(r"(?:Current thread|Thread) 0x([0-9a-f]+)(?: \[(.*)\])? \(most recent call")
MAIN = "MainThread"
CALL = re.compile(r'  File "(.*)", line (\d+|\?\?\?) in (.*)')


def parse(text: str) -> list[Stack]:
    """Return the stacks in a dump. It ends with the oldest thread, a process's main one."""
    stacks = [*reversed([*_stacks(text)])]
    if stacks and stacks[0].name.startswith("0x") and not is_cut(text):
        stacks[0] = replace(stacks[0], name=MAIN)
    return [stack for stack in stacks if stack.frames]


def is_cut(text: str) -> bool:
    """Return whether a dump lacks the oldest threads: it has at most a hundred."""
    return text.rstrip().endswith("...")


def _stacks(text: str) -> Iterator[Stack]:
    name, ident = "", 0
    calls: list[Frame] = []
    for line in text.splitlines():
        if head := THREAD.match(line):
            if ident:
                yield _stack(name, ident, calls)
            ident, calls = int(head[1], 16), []
            name = head[2] or f"0x{ident:x}"
        elif call := CALL.match(line):
            number = int(call[2]) if call[2].isdecimal() else 0
            calls.append(Frame(call[1], number, call[3], CELL.search(call[1]) is not None))
    if ident:
        yield _stack(name, ident, calls)


def _stack(name: str, ident: int, calls: list[Frame]) -> Stack:
    return Stack(name, trimmed(calls[::-1]), ident=ident)
