"""Become the parent of a process that another one has forked. Linux only.

A process whose parent ends gets its nearest ancestor that is marked as a subreaper as its parent,
else pid 1. So a fork server can give its supervisor a child: it forks twice, and the process in the
middle ends. See prctl(2), PR_SET_CHILD_SUBREAPER.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


@cache
def _library() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int) -> None:
    if _library().prctl(option, *map(ctypes.c_ulong, (value, 0, 0, 0))):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def end_with_parent(parent: int, number: int) -> None:
    """Have this process be sent a signal when its parent ends. Raises `OSError`.

    Its own children do not inherit this.
    """
    _prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os._exit(1)


def ending_with_this_process(number: int) -> Callable[[], None]:
    """Return what a child calls before its program, to be sent a signal when this process ends."""
    _library()  # loaded before the fork, after which little is safe
    return partial(end_with_parent, os.getpid(), number)


@contextmanager
def adopting() -> Iterator[None]:
    """Be the parent of descendants whose parent ends meanwhile. Raises `OSError`.

    Only meanwhile: what a task leaves behind when it ends belongs to pid 1. A few may arrive with
    the one that is waited for, and `Strangers.reap` reaps them when they end.
    """
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        _prctl(PR_SET_CHILD_SUBREAPER, 0)


class Strangers:
    """Children of the main thread that nothing here has started. They must be reaped, too."""

    def __init__(self) -> None:
        self._pids: set[int] = set()

    def look(self, known: Collection[int]) -> None:
        """Find children besides the known ones. The other threads' are not among them."""
        with suppress(OSError, ValueError):  # not every kernel has this file
            file = Path(f"/proc/self/task/{os.getpid()}/children")
            self._pids.update(map(int, file.read_text().split()))
        self._pids -= {*known}

    def reap(self) -> None:
        """Reap those that have ended."""
        for pid in [*self._pids]:
            try:
                ended = os.waitpid(pid, os.WNOHANG) != (0, 0)
            except ChildProcessError:
                ended = True
            if ended:
                self._pids.discard(pid)
