"""Features that only the foreground can use. A task is refused them or gets a replacement.

These are the kernel's end, a debugger, which needs a keyboard, and the GUI event loop.
"""

from __future__ import annotations

import importlib
import os
import pdb
import sys
from collections import ChainMap
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

from IPython.core import interactiveshell
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell

from ipytaskpersist.base.patches import Patches
from ipytaskpersist.errors import TaskExit
from ipytaskpersist.isolation import working_directory
from ipytaskpersist.running.running_task import RunningTask, active_task

NO_WINDOWS = (
    "{magic} cannot start an event loop of windows for background task {label}; "
    "start it in a foreground cell, or add --process"
)
PROFILES_ALL = sys.version_info >= (3, 12)
"""Whether a profiler records the calls of all threads."""


def install(shell: InteractiveShell, patches: Patches) -> None:
    """Keep tasks from starting a debugger or ending the process."""
    _install_exits(shell, patches)
    _install_debugger(shell, patches)


def install_for_threads(shell: InteractiveShell, patches: Patches) -> None:
    """Refuse thread tasks some features that process tasks have."""
    patches.replace(os, "_exit", _exit)
    patches.replace(shell, "enable_gui", partial(_enable_gui, shell))
    patches.replace(shell, "enable_matplotlib", partial(_enable_matplotlib, shell))
    if PROFILES_ALL:
        patches.replace(_execution_magics(), "_run_with_profiler", _run_with_profiler)
    if working_directory.can_be_own():
        # Patch the class, because IPython creates its one instance when it is first needed.
        magics = importlib.import_module("IPython.core.magics.osm").OSMagics
        patches.set(magics, "shell", _seen_shell(ShellOfDirectories(shell)))


# The end.


def _install_exits(shell: Any, patches: Patches) -> None:
    if hasattr(shell, "ask_exit"):  # a shell without a front end lacks it
        patches.replace(shell, "ask_exit", _ending)
    # In a task, it accepts an exit code, which the terminal's does not.
    patches.stand_in(type(shell.exiter), "__call__", _ending)
    patches.replace(interactiveshell, "warn", _without_hint)


def _ending(plain: Callable[..., None]) -> Callable[..., None]:
    def end(*args: Any, **options: Any) -> None:
        if active_task.get() is None:
            plain(*args, **options)
        else:
            # A bool is the argument `keep_kernel`, and the kernel is kept in any case.
            codes = [value for value in args if isinstance(value, str | int)]
            raise TaskExit(*(code for code in codes if not isinstance(code, bool)))

    return end


def _without_hint(plain: Callable[..., None]) -> Callable[..., None]:
    """Suppress IPython's hint on how to exit after a cell has raised `TaskExit`."""

    def warn(*args: Any, **options: Any) -> None:
        if type(sys.exc_info()[1]) is not TaskExit:
            plain(*args, **{**options, "stacklevel": options.get("stacklevel", 1) + 1})

    return warn


def _exit(plain: Callable[..., NoReturn]) -> Callable[..., NoReturn]:
    def _exit(status: int) -> NoReturn:
        task = active_task.get()
        if task is None or task.children.in_child:
            plain(status)
        raise TaskExit(status)

    return _exit


# Debuggers.


def _execution_magics() -> Any:
    return importlib.import_module("IPython.core.magics.execution").ExecutionMagics


def _install_debugger(shell: Any, patches: Patches) -> None:
    magics = _execution_magics()
    patches.replace(shell, "debugger", _no_debugger)
    patches.replace(pdb.Pdb, "interaction", _refused)
    patches.replace(magics, "_debug_post_mortem", _refused)
    patches.replace(InteractiveShell.call_pdb, "fset", _refused)


def _no_debugger(plain: Callable[..., None]) -> Callable[..., None]:
    """With ``%pdb on``, only show an error in a task."""

    def debugger(*args: Any, **options: Any) -> None:
        if active_task.get() is None:
            plain(*args, **options)

    return debugger


def _refused(plain: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        task = active_task.get()
        if task is not None:
            raise UsageError(
                f"there is no debugger in background task {task.record.label}, which has no "
                "keyboard; run the code in a foreground cell"
            )
        return plain(*args, **options)

    return call


# Windows, backends and profilers.


def _enable_gui(shell: Any, plain: Callable[..., None]) -> Callable[..., None]:
    def enable_gui(gui: str | None = None) -> None:
        task = active_task.get()
        if task is None:
            plain(gui)
        elif gui not in (None, getattr(shell, "active_eventloop", None)):
            message = NO_WINDOWS.format(magic="%gui", label=task.record.label)
            task.show_error("UsageError", message, [f"UsageError: {message}"])

    return enable_gui


def _enable_matplotlib(shell: Any, plain: Callable[..., Any]) -> Callable[..., Any]:
    def enable_matplotlib(gui: str | None = None) -> Any:
        task = active_task.get()
        if task is not None and _starts_loop(shell, gui):
            raise UsageError(NO_WINDOWS.format(magic="%matplotlib", label=task.record.label))
        return plain(gui)

    return enable_matplotlib


def _starts_loop(shell: Any, gui: str | None) -> bool:
    """Whether a backend needs a GUI event loop that is not running yet."""
    from IPython.core import pylabtools

    loop, _backend = pylabtools.find_gui_and_backend(gui, shell.pylab_gui_select)
    return loop not in (None, "inline", getattr(shell, "active_eventloop", None))


def _run_with_profiler(plain: Callable[..., Any]) -> Callable[..., Any]:
    def _run_with_profiler(*args: Any, **options: Any) -> Any:
        task = active_task.get()
        if task is not None:
            raise UsageError(
                "a profiler records the calls of all threads since Python 3.12, so background "
                f"task {task.record.label} cannot have one of its own; add --process"
            )
        return plain(*args, **options)

    return _run_with_profiler


# Directories.


def _seen_shell(seen: ShellOfDirectories) -> property:
    def put(magics: Any, value: Any) -> None:
        vars(magics)["shell"] = value

    return property(lambda _magics: seen, put)


class ShellOfDirectories:
    """The shell as the directory magics see it, with a separate history for each task."""

    def __init__(self, shell: Any) -> None:
        self._shell = shell
        self._histories: WeakKeyDictionary[RunningTask, list[Any]] = WeakKeyDictionary()
        self._stacks: WeakKeyDictionary[RunningTask, list[Any]] = WeakKeyDictionary()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._shell, name)

    @property
    def user_ns(self) -> Any:
        """The notebook's variables, with the task's ``_dh``."""
        task, variables = active_task.get(), self._shell.user_ns
        if task is None:
            return variables
        history = self._histories.setdefault(task, list(variables.get("_dh", ())))
        return ChainMap({"_dh": history}, variables)

    @property
    def dir_stack(self) -> Any:
        """The directory stack of ``%pushd``."""
        task, stack = active_task.get(), self._shell.dir_stack
        return stack if task is None else self._stacks.setdefault(task, list(stack))

    @property
    def term_title(self) -> bool:
        """Whether the terminal's title shows the directory. Never for a task."""
        return active_task.get() is None and bool(getattr(self._shell, "term_title", False))
