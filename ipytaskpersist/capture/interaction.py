"""Errors shown and input requested in a task."""

from __future__ import annotations

import builtins
import getpass
import sys
import traceback
from asyncio import CancelledError
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import CodeType, TracebackType
from typing import TYPE_CHECKING, Any

from IPython.core.error import StdinNotImplementedError

from ipytaskpersist.base import stand_ins, traceback_frames
from ipytaskpersist.base.foreign_errors import class_name, message
from ipytaskpersist.base.patches import Patches
from ipytaskpersist.capture import post_mortem
from ipytaskpersist.errors import TaskCancelled, TaskExit
from ipytaskpersist.running.interruption import is_from_outside
from ipytaskpersist.running.running_task import FOREGROUND, RunningTask, active_task

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

PACKAGE = str(Path(__file__).parent.parent)


def install(shell: InteractiveShell, patches: Patches) -> None:
    """Route errors and refuse input from now on."""
    _route_errors(shell, patches)
    _refuse_input(shell, patches)
    _keep_warnings_apart(shell, patches)


def _keep_warnings_apart(shell: Any, patches: Patches) -> None:
    """Let a foreground cell begin without making running tasks repeat their warnings.

    At the beginning of each cell, IPython forgets which warnings it has shown, for all code of the
    notebook. It must not do so while a task runs.
    """
    if hasattr(shell, "_clear_warning_registry"):
        patches.replace(shell, "_clear_warning_registry", _clear_alone)


def _clear_alone(plain: Callable[[], None]) -> Callable[[], None]:
    def _clear_warning_registry() -> None:
        if not FOREGROUND.tasks:
            plain()

    return _clear_warning_registry


def _route_errors(shell: InteractiveShell, patches: Patches) -> None:
    patches.replace(shell, "_showtraceback", partial(_show, shell))
    patches.replace(shell, "showtraceback", partial(_show_whole, shell))
    patches.replace(shell.InteractiveTB, "structured_traceback", _format_again)


def _show(shell: InteractiveShell, plain: Callable[..., None]) -> Callable[..., None]:
    def _showtraceback(etype: type[BaseException], evalue: BaseException, stb: list[str]) -> None:
        task = active_task.get()
        if task is None:
            plain(etype, evalue, stb)
        elif not is_cancellation(task, evalue):
            task.show_error(class_name(evalue), message(evalue), list(stb))
            _look_at(shell, task, evalue)

    return _showtraceback


def _look_at(shell: InteractiveShell, task: RunningTask, error: BaseException) -> None:
    task.error = error
    task.post_mortem = _post_mortem(shell, error, task.record.execution_count)


def _show_whole(shell: InteractiveShell, plain: Callable[..., None]) -> Callable[..., None]:
    def showtraceback(*args: Any, **options: Any) -> None:
        task, error = active_task.get(), sys.exc_info()[1]
        if task is not None and is_cancellation(task, error):
            return  # not shown, and slow to render
        hide_frames(error, stand_ins.is_of_replacement if task is None else _is_own)
        if task is not None and type(error) is TaskExit:
            task.error, task.shown_error = error, (class_name(error), message(error))
            return
        try:
            plain(*args, **options)
        except BaseException as raised:
            if task is None or error is None or is_from_outside(raised):
                raise
            # The error's own class raised an exception when asked for its text.
            shell._showtraceback(type(error), error, traceback.format_tb(error.__traceback__))
        if task is not None and error is not None and task.error is not error:
            _look_at(shell, task, error)  # IPython prints exception groups itself

    return showtraceback


def _format_again(plain: Callable[..., Any]) -> Callable[..., Any]:
    def structured_traceback(*args: Any, **options: Any) -> Any:
        try:
            return plain(*args, **options)
        except SystemError:
            # CPython 3.11 may fail to build a syntax tree while another thread builds one.
            return plain(*args, **options)

    return structured_traceback


def is_cancellation(task: RunningTask, error: BaseException | None) -> bool:
    """Whether an error results from the task's cancellation and is not one of its own."""
    return task.cancelled and issubclass(type(error), TaskCancelled | CancelledError)


def _post_mortem(shell: Any, error: BaseException, own_cell: int | None) -> dict[str, Any] | None:
    cells = getattr(shell.compile, "_filename_map", {})
    try:
        return post_mortem.of_error(error, cells, own_cell)
    except BaseException as raised:
        if is_from_outside(raised):
            raise
        return None  # a failing post-mortem must not become the cell's error


def hide_frames(error: BaseException | None, is_hidden: Callable[[CodeType], bool]) -> None:
    """Remove frames of hidden code from the tracebacks of an error and of its causes."""
    for each in traceback_frames.related(error):
        shown = _shown(each.__traceback__, is_hidden)
        for step, following in pairwise([*shown, None]):
            if step is not None and step.tb_next is not following:
                step.tb_next = following
        each.__traceback__ = shown[0] if shown else None


def _shown(
    step: TracebackType | None, is_hidden: Callable[[CodeType], bool]
) -> list[TracebackType]:
    shown = []
    while step is not None:
        if not is_hidden(step.tb_frame.f_code):
            shown.append(step)
        step = step.tb_next
    return shown


def _is_own(code: CodeType) -> bool:
    """Whether code is from this package or from a replacement that it installs."""
    return code.co_filename.startswith(PACKAGE) or stand_ins.is_of_replacement(code)


def _refuse_input(shell: InteractiveShell, patches: Patches) -> None:
    kernel = getattr(shell, "kernel", None)
    places: list[tuple[Any, str]] = [(builtins, "input"), (getpass, "getpass")]
    if kernel is not None:
        # While a cell runs, the kernel's functions replace the interpreter's, which it saves and
        # restores at the cell's end.
        places += [(kernel, name) for name in ("_sys_raw_input", "_save_getpass")]
        places += [(kernel, name) for name in ("raw_input", "getpass")]
    patches.on_undo(partial(_put_back, places))
    replaced: list[Any] = []
    for owner, name in places:
        ask = getattr(owner, name, None)
        if ask is not None and ask not in replaced:
            replaced.append(ask)
            patches.replace(owner, name, partial(_refusing, name))


def _put_back(places: list[tuple[Any, str]]) -> None:
    """Restore the functions. The kernel may have exchanged them since."""
    for owner, name in places:
        value = getattr(owner, name, None)
        if stand_ins.is_stand_in(value):
            setattr(owner, name, stand_ins.plain_of(value))


def _refusing(name: str, plain: Callable[..., str]) -> Callable[..., str]:
    asked = "getpass()" if name.endswith("getpass") else "input()"

    def ask(*args: Any, **kwargs: Any) -> str:
        task = active_task.get()
        if task is None:
            return plain(*args, **kwargs)
        raise StdinNotImplementedError(
            f"{asked} was called in background task {task.record.label}, which has no keyboard; "
            "ask in a foreground cell and use the variable in the background"
        )

    return ask
