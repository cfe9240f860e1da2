"""What ``/proc/PID/environ`` and ``/proc/PID/cmdline`` show of a forked process. Linux only.

They show the memory in which the system left the environment and the arguments when the program
was started, so a forked process shows its parent's. A task's processes are found by a variable
there (`base.process_tree`), so it must be the task's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOM = "IPYTASKPERSIST_ROOM"
"""Makes the initial environment longer, so that another one fits in its place."""
ROOM_BYTES = 1024
ARGUMENTS_START = 45
"""Position of ``arg_start`` in the fields of ``/proc/PID/stat`` after the command's name."""


@dataclass(frozen=True, slots=True)
class Block:
    """A part of this process's memory."""

    start: int
    end: int

    def write(self, text: bytes) -> None:
        """Write text, and null characters after it. Raises `OSError`."""
        size = self.end - self.start
        with open("/proc/self/mem", "r+b", buffering=0) as memory:
            os.pwrite(memory.fileno(), text[:size].ljust(size, b"\0"), self.start)


def blocks() -> tuple[Block, Block]:
    """Return where the initial arguments and environment of this process are. Raises `OSError`."""
    stat = Path("/proc/self/stat").read_bytes()
    fields = stat[stat.rindex(b")") + 2 :].split()
    first, last, *environment = map(int, fields[ARGUMENTS_START : ARGUMENTS_START + 4])
    if not (0 < first < last <= environment[0] < environment[1]):
        raise OSError("the system does not say where the environment is")
    return Block(first, last), Block(*environment)


def move_away() -> None:
    """Have nothing in this process refer to the environment's block any more."""
    os.environ.pop(ROOM, None)
    for name, value in os.environb.items():
        os.putenv(name, value)


def show(environment: Mapping[bytes, bytes], command: Sequence[str] | None = None) -> None:
    """Show these variables, the first ones of them that fit, and this command.

    Call `move_away` before. Raises `OSError`.
    """
    arguments, variables = blocks()
    entries, room = [], variables.end - variables.start
    for name, value in environment.items():
        entry = b"%b=%b\0" % (name, value)
        if len(entry) <= room:
            entries.append(entry)
            room -= len(entry)
    variables.write(b"".join(entries))
    if command is not None:
        text = b"".join(os.fsencode(word) + b"\0" for word in command)
        if len(text) <= arguments.end - arguments.start:
            arguments.write(text)
