"""Output and end of a forked copy of a process in which a task runs.

The copy has none of its parent's threads, so it can reach neither the recorder nor a supervisor's
channel. It prints to descriptors 1 and 2, which are pipes of the task, and it exits by itself.
"""

from __future__ import annotations

import atexit
import io
import os
import sys
import threading
from contextlib import suppress
from typing import Any, NoReturn

from ipytaskpersist.base.records import OutputKind
from ipytaskpersist.base.stand_ins import is_stand_in
from ipytaskpersist.running.sinks import Listener


class Pipe(io.FileIO):
    """A descriptor to print to. Output is dropped when there is no reader.

    The child may outlive its task's kernel, and printing must not end it then.
    """

    def write(self, data: Any) -> int:
        """Write some of the data, or drop all of it when there is no reader."""
        try:
            return super().write(data)
        except BrokenPipeError:
            return len(memoryview(data).cast("B"))


def text_stream(descriptor: int) -> io.TextIOWrapper:
    """Open a line-buffered stream, so that lines of several processes stay whole."""
    pipe = io.BufferedWriter(Pipe(descriptor, "w", closefd=False))
    return io.TextIOWrapper(pipe, "utf-8", "backslashreplace", line_buffering=True)


def take_streams() -> None:
    """Give a freshly forked process its own ``sys.stdout`` and ``sys.stderr``."""
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        # Leave a stream that other code has put there to capture output.
        if is_stand_in(getattr(getattr(sys, name), "write", None)):
            setattr(sys, name, text_stream(descriptor))


class ForkedRecording:
    """Stands in for a task's recording in a forked child of the task.

    It receives output that bypasses ``sys.stdout``: log records and displays.
    """

    listener: Listener | None = None

    def __init__(self) -> None:
        self._pipes = {
            OutputKind.STDOUT: Pipe(1, "w", closefd=False),
            OutputKind.STDERR: Pipe(2, "w", closefd=False),
        }

    def write(self, kind: OutputKind, text: str | bytes) -> None:
        """Print the text."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.flush()
        data = text if isinstance(text, bytes) else text.encode("utf-8", "backslashreplace")
        while data:
            data = data[self._pipes[kind].write(data) :]

    def add(self, kind: OutputKind, content: dict[str, Any]) -> None:
        """Print the text form of a display or a result, or the traceback of an error."""
        if kind is OutputKind.ERROR:
            self.write(OutputKind.STDERR, "\n".join(content["traceback"]) + "\n")
        elif content.get("data"):
            self.write(OutputKind.STDOUT, f"{content['data'].get('text/plain', '')}\n")

    def progress(self, progress: Any) -> None:
        """Drop the progress: the task's own process reports it."""

    def checkpointed(self, at: float) -> None:
        """Drop the time of a checkpoint: the task's own process keeps them."""


def end(exit_code: int | None) -> NoReturn:
    """End a forked child whose cell has ended, as multiprocessing ends its children.

    The child must not go on as a second copy of the kernel, or report an end of its parent's task.
    """
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
    finally:
        os._exit(1 if exit_code is None else exit_code & 0xFF)
