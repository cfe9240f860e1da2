"""Wait for the tasks of a process that ends, and name those that are cut off.

They are named on the standard error with which the process was started, because no cell runs any
more: nbconvert and nbclient pass it on to the terminal, a Jupyter server to its log.
"""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from ipytaskpersist.base.legible import legible
from ipytaskpersist.base.records import TaskRecord
from ipytaskpersist.session.settings import WAIT_AT_EXIT

if TYPE_CHECKING:
    from ipytaskpersist.runners.thread import ThreadRunner

STDERR = 2
LOOK_S = 1.0


def wait(threads: ThreadRunner, seconds: float, *, is_kernel: bool) -> list[TaskRecord]:
    """Wait until all tasks have ended, at most for this time, and return those that have not."""
    running = threads.live()
    if not running or seconds <= 0:
        return running
    limit = f"; KernelManager.shutdown_wait_time={2 * seconds:g} allows that" if is_kernel else ""
    _say(f"waiting up to {seconds:g} s for {_named(running)}{limit}")
    deadline = time.monotonic() + seconds
    with suppress(KeyboardInterrupt):
        while running and (left_s := deadline - time.monotonic()) > 0:
            threads.ended(running[0].key).wait(min(left_s, LOOK_S))
            running = threads.live()
    return running


def say_cut_off(tasks: Sequence[TaskRecord], reason: str) -> None:
    """Name the tasks that the end of this process interrupts."""
    if tasks:
        were, them = ("was", "it") if len(tasks) == 1 else ("were", "them")
        numbers = " ".join(str(task.number) for task in tasks)
        _say(
            f"{_named(tasks)} {were} cut off: {reason}. %bg_resume {numbers} runs {them} again; "
            f"{WAIT_AT_EXIT}=SECONDS waits for such tasks"
        )


def _named(tasks: Sequence[TaskRecord]) -> str:
    return f"task{'' if len(tasks) == 1 else 's'} {', '.join(task.label for task in tasks)}"


def _say(text: str) -> None:
    """Print a line where the program that started this process sees it."""
    try:
        descriptor = sys.stderr.fileno()  # ipykernel's own stream has the kernel's descriptor
    except (AttributeError, io.UnsupportedOperation, ValueError):
        descriptor = STDERR
    with suppress(OSError):
        os.write(descriptor, legible(f"ipytaskpersist: {text}").encode() + b"\n")
