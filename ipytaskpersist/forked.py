"""What is left to a forked copy of a process in which a task runs: descriptors 1 and 2.

The copy has none of its parent's threads, so neither the recorder nor a supervisor's channel can
be reached. What it prints goes to the task through pipes, and it ends by itself.
"""

from __future__ import annotations

import atexit
import io
import os
import sys
import threading
from contextlib import suppress
from typing import Any, NoReturn

from ipytaskpersist.records import OutputKind
from ipytaskpersist.standins import is_stand_in


class Pipe(io.FileIO):
    """A descriptor to print to. What nobody is left to read is dropped.

    The child may outlive the kernel of its task, and must not end because it then prints.
    """

    def write(self, data: Any) -> int:
        """Write some of the data; all of it when there is no reader."""
        try:
            return super().write(data)
        except BrokenPipeError:
            return len(memoryview(data).cast("B"))


def text_stream(descriptor: int) -> io.TextIOWrapper:
    """A stream that is written line by line, so that those of several processes stay whole."""
    pipe = io.BufferedWriter(Pipe(descriptor, "w", closefd=False))
    return io.TextIOWrapper(pipe, "utf-8", "backslashreplace", line_buffering=True)


def take_streams() -> None:
    """Let ``sys.stdout`` and ``sys.stderr`` be the calling process's own: it was just forked."""
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        # What somebody else has put there, to catch what is printed, goes on doing so.
        if is_stand_in(getattr(getattr(sys, name), "write", None)):
            setattr(sys, name, text_stream(descriptor))


class ForkedRecording:
    """Stands in the place of a task's recording in a forked child of the task.

    What comes here does not come by way of ``sys.stdout``: from a log handler, or as a display.
    """

    def __init__(self) -> None:
        self._pipes = {
            OutputKind.STDOUT: Pipe(1, "w", closefd=False),
            OutputKind.STDERR: Pipe(2, "w", closefd=False),
        }

    def write(self, kind: OutputKind, text: str | bytes) -> None:
        """Print."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.flush()
        data = text if isinstance(text, bytes) else text.encode("utf-8", "backslashreplace")
        while data:
            data = data[self._pipes[kind].write(data) :]

    def add(self, kind: OutputKind, content: dict[str, Any]) -> None:
        """Print the text form of a display or a result, and the traceback of an error."""
        if kind is OutputKind.ERROR:
            self.write(OutputKind.STDERR, "\n".join(content["traceback"]) + "\n")
        elif content.get("data"):
            self.write(OutputKind.STDOUT, f"{content['data'].get('text/plain', '')}\n")

    def progress(self, progress: Any) -> None:
        """Drop how far it has come: that of the task is what its own process says."""


def end(exit_code: int | None) -> NoReturn:
    """End a forked child whose cell has ended, as multiprocessing ends one of its.

    It must not go on as a second copy of the kernel, or say how its parent's task has ended.
    """
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
    finally:
        os._exit(1 if exit_code is None else exit_code & 0xFF)
