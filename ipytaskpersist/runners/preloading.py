"""Import modules in a fork server, and find out which of them it must not have.

What an import has done besides cannot be undone, so a server that has imported such a module ends,
and its successor leaves the module out.
"""

from __future__ import annotations

import builtins
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from ipykernel.zmqshell import ZMQInteractiveShell
from IPython.core.interactiveshell import InteractiveShell

from ipytaskpersist.base.foreign_errors import class_name
from ipytaskpersist.runners.channel import unread_bytes

TASKS = Path("/proc/self/task")
DESCRIPTORS = Path("/proc/self/fd")
ENDING_S = 0.2
"""How long a thread that has ended may still be listed."""


class Preloading:
    """Imports modules one by one, and reports what each has left besides itself."""

    def __init__(self) -> None:
        self._descriptors = _descriptors()
        self._asked = False
        """Whether a module needs IPython's shell, of which there is none here."""

    def load(self, name: str) -> str:
        """Import a module. Returns why a fork server must not have it; empty if it may."""
        owner, printed = os.getpid(), unread_bytes(1)
        try:
            with self._noticing_shell():
                import_module(name)
        except BaseException as error:  # the code of a module may raise anything
            if os.getpid() != owner:
                os._exit(0)
            return f"its import fails: {class_name(error)}"
        if os.getpid() != owner:
            os._exit(0)  # a process that the import has forked
        return self._left(printed)

    def _left(self, printed: int) -> str:
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        if unread_bytes(1) != printed:
            return "its import prints"
        if self._asked:
            return "its import uses the notebook's shell"
        if _has_children():
            return "its import starts a process"
        if _descriptors() - self._descriptors:
            return "its import leaves a file open"
        if not _is_alone() and not _survives_fork():
            return "its import starts a thread"
        return ""

    @contextmanager
    def _noticing_shell(self) -> Iterator[None]:
        """Answer modules that ask in which shell they are imported, and notice who does more."""
        shell = ShellToAsk(self._notice)

        def get_ipython(*_owner: object) -> Any:
            return shell

        is_there = _replaced(InteractiveShell, "initialized", staticmethod(lambda: True))
        instance = _replaced(InteractiveShell, "instance", staticmethod(get_ipython))
        with is_there, instance, _replaced(builtins, "get_ipython", get_ipython):
            yield

    def _notice(self) -> None:
        self._asked = True


class ShellToAsk:
    """Stands for the shell of a task while modules are imported that its task may use.

    Its class says that it is a notebook's, and so does that it has a kernel: pandas asks. What a
    module does with it besides would be lost.
    """

    __class__ = ZMQInteractiveShell  # type: ignore[assignment]

    def __init__(self, notice: Callable[[], None]) -> None:
        self._notice = notice
        self.kernel = None

    def __getattr__(self, name: str) -> NoReturn:
        self._notice()
        raise AttributeError(name)


@contextmanager
def _replaced(owner: Any, name: str, value: object) -> Iterator[None]:
    had, before = name in vars(owner), vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if had:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


def _descriptors() -> set[tuple[str, str]]:
    """Return the open descriptors and what they refer to, without that of the look itself."""
    found = set()
    for entry in [*DESCRIPTORS.iterdir()]:
        with suppress(OSError):
            found.add((entry.name, str(entry.readlink())))
    return found


def _has_children() -> bool:
    """Return whether there is any child, running or not yet reaped."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _is_alone() -> bool:
    """Return whether this process has one thread only."""
    return len([*TASKS.iterdir()]) == 1


def _survives_fork() -> bool:
    """Return whether all threads but one end by themselves when the process forks.

    So do those of a library that has registered for it (`pthread_atfork`), as OpenBLAS has.
    """
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    until = time.monotonic() + ENDING_S
    while not _is_alone() and time.monotonic() < until:
        time.sleep(0.001)
    return _is_alone()
