"""The records of calls, stacks and processes at one moment. All are frozen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Frame:
    """One call on a stack, and where in its code it is."""

    file: str
    """Path of the code's file; the name that IPython gave to a cell."""
    line: int
    function: str
    is_cell: bool = False
    """Whether the code is that of a cell."""
    number: int | None = None
    """Execution count of that cell; None when unknown."""
    code: tuple[str, ...] = ()
    """Lines of source around the line; empty when there are none."""
    first_line: int = 0
    """Line number of the first of them."""

    @property
    def key(self) -> tuple[str, int]:
        """File and line, to see whether a stack has moved."""
        return self.file, self.line

    def with_lines(self, lines: Sequence[str], around: int) -> Frame:
        """Return the call with the line where it is, and so many around it, of its source."""
        first = max(1, self.line - around)
        code = tuple(each.rstrip("\n") for each in lines[first - 1 : self.line + around])
        return replace(self, code=code, first_line=first)

    def as_json(self) -> dict[str, Any]:
        """Return the frame as ``stack --json`` prints it."""
        here = self.line - self.first_line
        return {
            "file": self.file,
            "line": self.line,
            "function": self.function,
            "cell": self.number,
            "is_cell": self.is_cell,
            "code": self.code[here].strip() if 0 <= here < len(self.code) else None,
        }

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> Frame:
        """Return the frame that a process has sent."""
        return cls(**{**message, "code": tuple(message["code"])})


@dataclass(frozen=True, slots=True)
class Stack:
    """What one thread, or one asyncio task, does: its calls, the outermost first."""

    name: str
    frames: tuple[Frame, ...]
    is_asyncio: bool = False
    """Whether it is an asyncio task that waits."""
    ident: int = 0
    """The thread's identifier in its process; 0 for an asyncio task."""
    task_id: str | None = None
    """The task for which a kernel's thread works; None for any other."""

    def as_json(self) -> dict[str, Any]:
        """Return the stack as ``stack --json`` prints it."""
        return {"name": self.name, "frames": [frame.as_json() for frame in self.frames]}

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> Stack:
        """Return the stack that a process has sent."""
        frames = tuple(Frame.from_message(frame) for frame in message["frames"])
        return cls(**{**message, "frames": frames})


@dataclass(frozen=True, slots=True)
class ProcessStacks:
    """One process of a task."""

    pid: int
    parent: int
    command: str
    """The beginning of its command line."""
    state: str
    """``running``, ``sleeping``, ``stopped`` …, as the system says."""
    waits_in: str | None
    """Function of the system's kernel in which it waits; None when it does not, or is unknown."""
    cpu_s: float | None
    """Processor time that it has taken, in seconds."""
    stacks: tuple[Stack, ...] = ()
    note: str = ""
    """Why there are no stacks, or not all."""

    def as_json(self) -> dict[str, Any]:
        """Return the process as ``stack --json`` prints it."""
        return {
            "pid": self.pid,
            "parent": self.parent,
            "command": self.command,
            "state": self.state,
            "waits_in": self.waits_in,
            "cpu_s": self.cpu_s,
            "note": self.note or None,
            "threads": [each.as_json() for each in self.stacks if not each.is_asyncio],
            "asyncio_tasks": [each.as_json() for each in self.stacks if each.is_asyncio],
        }
